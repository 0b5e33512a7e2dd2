"""Trains a Job to a finished run: step, evaluation, epochs, guard, state and resume."""
