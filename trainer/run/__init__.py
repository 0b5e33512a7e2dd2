"""The folder of a run: durable files, checkpoints, logs, the lock. Knows no model."""
