"""Batches of one split, as a pure function of (seed, epoch, batch number)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from trainer.distributed.shares import Bounds, Shares
from trainer.input.subset import CPU, Subset, order_of
from trainer.input.workers import Workers

BLOCK = 2**23  # bytes of float32 images that are made in one go


@dataclass(frozen=True)
class Order:
    """Which images an epoch shows, in which order.

    seed shuffles by (seed, epoch); None keeps the subset's order. sampling "balanced" visits each
    class equally often; the number of visits stays the number of images.
    """

    seed: int | None = None
    sampling: str = "shuffle"
    drop_last: bool = False


@dataclass(frozen=True)
class Delivery:
    """How many worker processes read batches, and where batches lie: device and memory layout."""

    workers: int = 0
    device: torch.device = CPU
    channels_last: bool = False


class Loader:
    """Cuts a subset into batches.

    Every batch is a function of (epoch, number): an epoch can begin at any batch, workers need no
    state, and their number changes no batch. ``shares`` says what a rank gets of the batches.
    """

    def __init__(
        self,
        subset: Subset,
        batch_size: int,
        order: Order = Order(),
        delivery: Delivery = Delivery(),
        shares: Shares = Shares(),  # noqa: B008
    ) -> None:
        self.subset, self.batch_size = subset, batch_size
        self.order, self.delivery, self.shares = order, delivery, shares
        self._workers = Workers(subset, delivery.workers, delivery.device)
        self._block: int | None = None

    def __len__(self) -> int:
        full, rest = divmod(len(self.subset), self.batch_size)
        return full + (rest > 0 and not self.order.drop_last)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's batches of an epoch from batch number ``start`` on, on its device.

        A batch may be one padding image without a label (see ``Shares``).
        """
        begins = range(0, len(self) * self.batch_size, self.batch_size)
        every = [(begin, begin + size) for begin, size in zip(begins, self.sizes(), strict=True)]
        own, padding = self.shares.bounds(every, cut_each=self.order.seed is not None)
        bounds = own + padding
        if start >= len(bounds):
            return
        order = self.subset.in_a_ring(self._order(epoch))
        at_once = 1 if self.delivery.workers else self._batches_at_once()
        first = start // at_once * at_once
        blocks = [bounds[i : i + at_once] for i in range(first, len(bounds), at_once)]
        make = self._by_workers if self.delivery.workers else self._here
        made = islice(make(blocks, order, epoch), start - first, None)
        for number, (images, labels) in enumerate(made, start):
            if self.delivery.channels_last and images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            yield images, labels if number < len(own) else labels[:0]

    def size(self, number: int) -> int:
        """How many images batch ``number`` has, over all ranks."""
        return min(self.batch_size, len(self.subset) - number * self.batch_size)

    def sizes(self) -> list[int]:
        """The size of each batch."""
        return [self.size(number) for number in range(len(self))]

    @property
    def rounds(self) -> int:
        """The largest number of batches that any rank gets in an epoch."""
        return self.shares.rounds(len(self), cut_each=self.order.seed is not None)

    def _rows(self, block: list[Bounds], order: Tensor) -> Tensor:
        """The rows of a block of batches; before them those that are mixed into the first row."""
        if self.shares.ranks == 1 or len(block) == 1:
            return order[block[0][0] : block[-1][1] + self.subset.pipeline.predecessors]
        # Then none are mixed in: see _batches_at_once.
        return torch.cat([order[low:high] for low, high in block])

    def rows(self, epoch: int, number: int) -> Tensor:
        """The subset's rows that batch ``number`` of an epoch shows, over all ranks."""
        order = self._order(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        return order % len(self.subset)  # without the number of the visit

    @property
    def will_fork(self) -> bool:
        """Whether the next epoch starts worker processes."""
        return self.delivery.workers > 0 and not self._workers.are_running

    def close(self) -> None:
        """End the worker processes; the next epoch would start new ones."""
        self._workers.close()

    def _order(self, epoch: int) -> Tensor:
        return order_of(self.subset.labels, self.order.seed, epoch, self.order.sampling)

    def _here(
        self, blocks: list[list[Bounds]], order: Tensor, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for block in blocks:
            images, labels = self.subset.batch(
                self._rows(block, order), epoch, self.delivery.device
            )
            sizes = [high - low for low, high in block]
            yield from zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)

    def _batches_at_once(self) -> int:
        """How many batches to make in one pass, which is faster for small images.

        1 if the batches would not start on 64-byte boundaries: unaligned inputs can change the last
        bits of a matrix product.
        """
        if self._block is None:
            images, _ = self.subset.sample(torch.arange(1))
            size = images.nbytes * self.batch_size
            if self.shares.ranks > 1:  # shares of a batch differ in size
                unaligned = images.nbytes % 64 or self.subset.pipeline.predecessors
            else:
                unaligned = size % 64
            self._block = 1 if unaligned else max(1, BLOCK // size)
        return self._block

    def _by_workers(
        self, blocks: list[list[Bounds]], order: Tensor, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        requests = [(self._rows(block, order), epoch) for block in blocks]
        read = zip(requests, self._workers.read(requests), strict=True)
        for (rows, _), (images, labels) in read:
            yield self.subset.finish(images, labels, rows, epoch)
