"""A YAML file becomes a frozen Config, or a list of all its faults. Imports no torch."""

from trainer.config.config import Config, load_config

__all__ = ["Config", "load_config"]
