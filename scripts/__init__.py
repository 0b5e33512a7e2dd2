"""Small commands for data and benchmarks, run as ``python -m scripts.NAME`` from the root."""
