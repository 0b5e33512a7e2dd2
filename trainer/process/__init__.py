"""Manages this process: errors, exits, signals, locks, start-up, terminal. Imports no torch."""
