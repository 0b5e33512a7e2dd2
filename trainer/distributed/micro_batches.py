"""The micro-batches of a batch, whose gradients the step sums up; one if the batch is not split."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.dropout import rows_of
from trainer.distributed.network import gradient_sync
from trainer.distributed.processes import rank, world_size
from trainer.distributed.shares import Shares, in_micro_batches
from transforms.keyed import seed_at, seed_of

Autocast = Callable[[], AbstractContextManager[Any]]


class MicroBatch(NamedTuple):
    """The images that go through the network at once.

    weight: the share of these images in the mean over the batch.  loss_factor: what the loss is
    multiplied by before the backward pass: the weight times the number of ranks, because gradients
    are summed over micro-batches and averaged over ranks.  batch_size: images of the batch over all
    ranks.  forward: context manager for the forward pass.
    """

    images: Tensor
    labels: Tensor
    weight: float
    loss_factor: float
    batch_size: int
    forward: AbstractContextManager[Any]

    def for_backward(self, loss: Tensor) -> Tensor:
        """The loss times ``loss_factor``."""
        return loss if self.loss_factor == 1.0 else loss * self.loss_factor


MicroBatches = Callable[[int, Tensor, Tensor], Iterable[MicroBatch]]  # of step, images, labels


def choose_micro_batches(
    network: nn.Module,
    device: torch.device,
    seed: int,
    accumulate: int = 1,
    autocast: Autocast = nullcontext,
    batch_size_at: Callable[[int], int] | None = None,
) -> MicroBatches:
    """Choose how batches reach the network. ``batch_size_at(step)``: images over all ranks."""
    if world_size() == 1 and accumulate == 1:
        return whole_batch(device, seed, autocast)
    return cut_batch(network, device, seed, accumulate, autocast, batch_size_at)


def whole_batch(device: torch.device, seed: int, autocast: Autocast) -> MicroBatches:
    """Each batch as one micro-batch."""
    draws = seed_of(seed, "step")

    def micro_batches(step: int, images: Tensor, labels: Tensor) -> tuple[MicroBatch]:
        reseed(device, seed_at(draws, step))  # a resumed run draws what an uninterrupted one does
        return (MicroBatch(images, labels, 1.0, 1.0, len(images), autocast()),)

    return micro_batches


def cut_batch(
    network: nn.Module,
    device: torch.device,
    seed: int,
    accumulate: int,
    autocast: Autocast,
    batch_size_at: Callable[[int], int] | None,
) -> MicroBatches:
    """This rank's share of each batch in up to ``accumulate`` micro-batches."""
    rows, shares = rows_of(network), Shares(rank(), world_size())
    # Dropout layers draw for the batch over all ranks, so all ranks need the same seed. Without
    # such layers, or if the model draws elsewhere too (rows is None), each rank has its own seed.
    is_same_seed = rows is not None or shares.rank == 0
    draws = seed_of(seed, "step") if is_same_seed else seed_of(seed, "step", shares.rank)

    def micro_batches(step: int, images: Tensor, labels: Tensor) -> Iterator[MicroBatch]:
        size = len(images) if batch_size_at is None else batch_size_at(step)
        reseed(device, seed_at(draws, step))
        pieces = in_micro_batches(images, labels, size, accumulate, shares)
        for some, targets, weight, start, is_last in pieces:
            if rows is not None:
                rows.take(start, start + len(some), size, device)
                reseed(device, seed_at(draws, step))
            forward = forward_of(network, is_last, autocast)
            yield MicroBatch(some, targets, weight, weight * shares.ranks, size, forward)

    return micro_batches


@contextmanager
def forward_of(network: nn.Module, is_last: bool, autocast: Autocast) -> Iterator[None]:
    """Context manager for the forward pass of one of several micro-batches."""
    with gradient_sync(network, is_last), autocast():
        yield


def reseed(device: torch.device, seed: int) -> None:
    """Seed the generator that dropout draws from on ``device``."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)  # torch.manual_seed visits every back end: slower
    else:
        torch.manual_seed(seed)
