"""Run folders in any state, read and compared, as tables. Imports no torch."""
