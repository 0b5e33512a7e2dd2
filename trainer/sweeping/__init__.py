"""Runs many trials of one experiment: plan, workers, results. Imports torch late."""
