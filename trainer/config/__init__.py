"""Reads a YAML file as a frozen Config, or reports all its faults. Imports no torch."""

from trainer.config.config import Config, load_config

__all__ = ["Config", "load_config"]
