"""This process: errors, exit codes, signals, start-up, the terminal. Imports no torch."""
