"""Builds a Job from a Config, and a TrainedModel from a finished run."""
