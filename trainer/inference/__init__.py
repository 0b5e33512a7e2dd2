"""The use of a finished run: evaluate, predict, explain, export."""
