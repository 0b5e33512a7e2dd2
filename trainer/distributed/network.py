"""Wraps the network for several ranks: DDP, and the weights and buffers of rank 0."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.freeze import train_mode
from trainer.distributed.fsdp import is_sharded, synchronise
from trainer.distributed.processes import world_size


def over_processes(model: nn.Module, images: Tensor, device: torch.device) -> nn.Module:
    """The model wrapped for training: its gradients become the mean over the ranks.

    ``images`` (B, C, H, W) are for a rehearsal. DDP sorts gradients into buckets in the order of
    its first backward pass. That pass is done here, so that a resumed run adds gradients up in the
    same order as an uninterrupted one.
    """
    images = images.to(device)
    buffers = [buffer.clone() for buffer in model.buffers()]
    train_mode(model)
    model(images).sum().backward()
    unused = any(p.grad is None for p in model.parameters() if p.requires_grad)
    shared = DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=unused
    )
    for _ in range(2):
        shared(images).sum().backward()
    model.zero_grad(set_to_none=True)
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return shared


def gradient_sync(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Context manager of a forward pass: ranks share gradients after the last micro-batch only."""
    if is_sharded(model):
        synchronise(model, is_last)
    if is_last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    waiting: AbstractContextManager[None] = model.no_sync()
    return waiting


def from_main(model: nn.Module) -> None:
    """Give every rank the weights and buffers of rank 0."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def buffers_from_main(model: nn.Module) -> None:
    """Give every rank the buffers of rank 0 before evaluation, as DDP does before each step."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
