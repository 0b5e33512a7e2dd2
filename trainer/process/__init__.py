"""Manages this process: errors, exit codes, signals, locks, start-up, terminal. Imports no torch."""
