"""A Config becomes a Job; a finished run becomes a TrainedModel."""
