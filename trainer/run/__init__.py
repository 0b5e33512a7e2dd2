"""Reads and writes a run's folder: durable files, checkpoints, logs, lock. Knows no model."""
