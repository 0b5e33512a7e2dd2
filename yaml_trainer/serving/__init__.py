"""Serves a run's model over HTTP, through litserve: requests, their limits, batches, a page."""
