"""Dataset, split, decoded images, batches."""
