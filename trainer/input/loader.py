"""Batches of one split, as a pure function of (seed, epoch, batch number)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from trainer.distributed.shares import Shares
from trainer.input.subset import CPU, Subset, in_a_ring, order_of
from trainer.input.workers import Workers

BLOCK = 2**23  # bytes of float32 images that are made in one go


@dataclass(frozen=True)
class Order:
    """Which images an epoch shows, in which order.

    seed shuffles by (seed, epoch); None keeps the subset's order. sampling "balanced" visits each
    class equally often, and as many images as there are.
    """

    seed: int | None = None
    sampling: str = "shuffle"
    drop_last: bool = False


@dataclass(frozen=True)
class Place:
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
        place: Place = Place(),
        shares: Shares = Shares(),  # noqa: B008
    ) -> None:
        self.subset, self.batch_size = subset, batch_size
        self.order, self.place, self.shares = order, place, shares
        self._workers = Workers(subset, place.workers, place.device)
        self._block: int | None = None

    def __len__(self) -> int:
        full, rest = divmod(len(self.subset), self.batch_size)
        return full + (rest > 0 and not self.order.drop_last)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from batch number ``start`` on, on the device."""
        bounds = self._bounds()
        own = len(bounds)
        if self.shares.even and own < self.rounds:
            bounds.append((0, 1))
        if start >= len(bounds):
            return
        order = self._order(epoch)
        order = order[in_a_ring(self.subset.pipeline, len(self.subset))]
        at_once = 1 if self.place.workers else self._batches_at_once()
        first = start // at_once * at_once
        pieces = [bounds[i : i + at_once] for i in range(first, len(bounds), at_once)]
        batches = self._by_workers if self.place.workers else self._here
        made = islice(batches(pieces, order, epoch), start - first, None)
        for number, (images, labels) in enumerate(made, start):
            if self.place.channels_last and images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            yield images, labels if number < own else labels[:0]

    def size(self, number: int) -> int:
        """How many images batch ``number`` has, over all ranks."""
        return min(self.batch_size, len(self.subset) - number * self.batch_size)

    def sizes(self) -> list[int]:
        """The size of each batch."""
        return [self.size(number) for number in range(len(self))]

    @property
    def rounds(self) -> int:
        """How many batches of an epoch the rank has that has most."""
        return len(self) if self.order.seed is not None else self.shares.rounds(len(self))

    def _bounds(self) -> list[tuple[int, int]]:
        """From and to of each of this rank's batches in the epoch's order."""
        bounds = []
        for number, size in enumerate(self.sizes()):
            begin = number * self.batch_size
            if self.order.seed is not None:
                bounds.append(self.shares.of_batch(begin, size))
            elif self.shares.has_batch(number):
                bounds.append((begin, begin + size))
        return bounds

    def _rows(self, piece: list[tuple[int, int]], order: Tensor) -> Tensor:
        """The rows of batches in the epoch's order, after the predecessors that are mixed in."""
        before = self.subset.pipeline.predecessors
        if self.shares.ranks == 1 or len(piece) == 1:
            return order[piece[0][0] : piece[-1][1] + before]
        # Several batches at once have no predecessors: see _batches_at_once.
        return torch.cat([order[low:high] for low, high in piece])

    def rows(self, epoch: int, number: int) -> Tensor:
        """The subset's rows that batch ``number`` of an epoch shows, over all ranks."""
        order = self._order(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        return order % len(self.subset)  # without the number of the visit

    @property
    def will_fork(self) -> bool:
        """Whether the next epoch starts worker processes."""
        return self.place.workers > 0 and not self._workers.are_running

    def close(self) -> None:
        """End the worker processes; the next epoch would start new ones."""
        self._workers.close()

    def _order(self, epoch: int) -> Tensor:
        return order_of(self.subset.labels, self.order.seed, epoch, self.order.sampling)

    def _here(
        self, pieces: list[list[tuple[int, int]]], order: Tensor, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for piece in pieces:
            images, labels = self.subset.batch(self._rows(piece, order), epoch, self.place.device)
            sizes = [high - low for low, high in piece]
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
                crooked = images.nbytes % 64 or self.subset.pipeline.predecessors
            else:
                crooked = size % 64
            self._block = 1 if crooked else max(1, BLOCK // size)
        return self._block

    def _by_workers(
        self, pieces: list[list[tuple[int, int]]], order: Tensor, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        requests = [(self._rows(piece, order), epoch) for piece in pieces]
        read = self._workers.read(requests)
        for (rows, _), (images, labels) in zip(requests, read, strict=True):
            yield self.subset.finish(images, labels, rows, epoch)
