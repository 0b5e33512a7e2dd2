"""The step, evaluation, epochs, guard, state and resume: a Job becomes a finished run."""
