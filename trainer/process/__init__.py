"""Manages this process: errors, exit codes, signals, start-up, terminal. Imports no torch."""
