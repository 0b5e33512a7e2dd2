"""Uses a finished run: evaluates, predicts, explains, exports."""
