"""Copies of a run's curves in experiment trackers, which follow the run's folder from outside."""
