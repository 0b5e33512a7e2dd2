"""Trains in several processes: ranks, collectives, DDP, FSDP, shares of a batch, micro-batches."""
