"""Several processes, and batches cut for them: ranks, collectives, DDP, FSDP, micro-batches."""
