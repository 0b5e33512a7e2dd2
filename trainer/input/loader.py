"""Batches of one split, as a pure function of (seed, epoch, batch number)."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from trainer.config import Config
from trainer.distributed.processes import rank, world_size
from trainer.distributed.shares import Bounds, Shares
from trainer.input.kept import CPU, Kept
from trainer.input.subset import Subset, order_of
from trainer.input.worker import Request, packed
from trainer.input.workers import Workers
from trainer.process.console import say
from trainer.process.launch import local_world_size
from trainer.process.words import visible
from transforms.memory import Images
from transforms.pipeline import Sides

BLOCK = 2**23  # bytes of float32 images that are made in one go
LABEL = 64  # bytes, at most as a rule, of the label of an image in shared memory
# What worker processes cost, in seconds of processor time.
TO_START = 1.0  # in all, with what is copied on write afterwards
TO_WAKE = 0.0004  # a batch, in both processes, beside the copy to shared memory
WORTH = 4  # how many times as long reading must take as sending


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
        self._reading = _Reading(subset, order)
        self._workers: Workers | None = None
        self._blocks = dict[Sides | None, int]()  # by the size of images

    def __len__(self) -> int:
        full, rest = divmod(len(self.subset), self.batch_size)
        return full + (rest > 0 and not self.order.drop_last)

    def epoch(
        self, epoch: int = 0, start: int = 0, then: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's batches of an epoch from batch number ``start`` on, on its device.

        A batch may be one padding image without a label (see ``Shares``). Workers that have read
        all of them go on with epoch ``then``, for the next call.
        """
        own, padding = self._bounds()
        bounds = own + padding
        if start >= len(bounds):
            return
        if self.delivery.workers:
            made = self._by_workers(epoch, start, then)
        else:
            at_once = self.batches_at_once(self.subset.pipeline.size_at(epoch))
            first = start // at_once * at_once
            blocks = [bounds[i : i + at_once] for i in range(first, len(bounds), at_once)]
            made = islice(self._here(blocks, epoch), start - first, None)
        for number, (images, labels) in enumerate(made, start):
            yield images, labels if number < len(own) else labels[:0]
        if self.subset.met is not None:
            for path, why in self.subset.met.new():
                say(f"left out {visible(path)}: {why}; the next image that can be read is shown")

    def _bounds(self) -> tuple[list[Bounds], list[Bounds]]:
        """Where this rank's batches begin and end in the order of an epoch, and its padding."""
        begins = range(0, len(self) * self.batch_size, self.batch_size)
        every = [(begin, begin + size) for begin, size in zip(begins, self.sizes(), strict=True)]
        return self.shares.bounds(every, cut_each=self.order.seed is not None)

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
        # Then none are mixed in: see batches_at_once.
        return torch.cat([order[low:high] for low, high in block])

    def rows(self, epoch: int, number: int) -> Tensor:
        """The subset's rows that batch ``number`` of an epoch shows, over all ranks."""
        order = self._order(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        return order % len(self.subset)  # without the number of the visit

    @property
    def will_fork(self) -> bool:
        """Whether the next epoch starts worker processes."""
        return self.delivery.workers > 0 and self._workers is None

    def begin(self, epoch: int, start: int) -> None:
        """Let workers, if there are to be any, begin to read this epoch from this batch on."""
        if self.delivery.workers:
            self._started().begin(self._requests(epoch)[start:])

    def close(self) -> None:
        """End the worker processes; the next epoch would start new ones."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _order(self, epoch: int) -> Tensor:
        return order_of(self.subset.labels, self.order.seed, epoch, self.order.sampling)

    def _here(self, blocks: list[list[Bounds]], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._reading.rows(epoch)
        for block in blocks:
            images, labels = self.subset.batch(
                self._rows(block, order), epoch, self.delivery.device, self.delivery.channels_last
            )
            sizes = [high - low for low, high in block]
            yield from zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)

    def batches_at_once(self, image_size: Sides | None = None) -> int:
        """How many batches to make in one pass, which is faster for small images.

        1 if the batches would not start on 64-byte boundaries: unaligned inputs can change the last
        bits of a matrix product.
        """
        if image_size not in self._blocks:
            images, _ = self.subset.at(image_size).sample(torch.arange(1))
            size = images.nbytes * self.batch_size
            if self.shares.ranks > 1:  # shares of a batch differ in size
                unaligned = images.nbytes % 64 or self.subset.pipeline.predecessors
            else:
                unaligned = size % 64
            self._blocks[image_size] = 1 if unaligned else max(1, BLOCK // size)
        return self._blocks[image_size]

    def _by_workers(
        self, epoch: int, start: int, then: int | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        workers, requests = self._started(), self._requests(epoch)[start:]
        following = [] if then is None else self._requests(then)
        order = self._reading.rows(epoch)
        read = zip(requests, workers.read(requests, following), strict=True)
        for (_, low, high), (images, labels) in read:
            with one_thread():
                images, labels = self.subset.finish(
                    images, labels, order[low:high], epoch, self.delivery.channels_last
                )
            yield workers.own(images), workers.own(labels)

    def _requests(self, epoch: int) -> list[Request]:
        own, padding = self._bounds()
        more = self.subset.pipeline.predecessors
        return [(epoch, low, high + more) for low, high in own + padding]

    def _started(self) -> Workers:
        if self._workers is None:
            images, _ = self.subset.read(self.subset.extremes, 0)
            largest = max(image.nbytes for image in images)
            number = self.batch_size + self.subset.pipeline.predecessors
            count, device = self.delivery.workers, self.delivery.device
            size, warm_up = number * (largest + LABEL), self._reading.warm_up
            self._workers = Workers(self._reading, count, device, size, warm_up)
        return self._workers


@dataclass
class _Reading:
    """What workers do for a request: an epoch, and the first row and the end in its order."""

    subset: Subset
    order: Order
    _epoch: int = -1
    _rows: Tensor = field(default_factory=lambda: torch.empty(0))

    def __call__(self, request: Request) -> tuple[Images, Tensor]:
        epoch, low, high = request
        return self.subset.read(self.rows(epoch)[low:high], epoch)

    def warm_up(self) -> None:
        """Do what would slow the first batches."""
        if isinstance(self.subset.images, Kept):
            self.subset.images.map_pages()
        self.subset.read(self.subset.extremes, 0)

    def rows(self, epoch: int) -> Tensor:
        """The rows of an epoch in its order; before them those mixed into the first."""
        if epoch != self._epoch:
            labels, order = self.subset.labels, self.order
            rows = order_of(labels, order.seed, epoch, order.sampling)
            self._epoch, self._rows = epoch, self.subset.in_a_ring(rows)
        return self._rows


@contextmanager
def one_thread() -> Iterator[None]:
    """Context manager: PyTorch computes in this thread alone, while workers use the cores.

    Its threads would wait for each other at the end of each small operation.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_loader(
    config: Config, subset: Subset, device: torch.device, channels_last: bool = False
) -> Loader:
    """The shuffled batches of the training split."""
    settings = config.loader
    order = Order(config.seed, settings.sampling, settings.drop_last)
    delivery = Delivery(choose_workers(config, subset), device, channels_last)
    return Loader(subset, settings.batch_size, order, delivery, Shares(rank(), world_size()))


def eval_loader(
    config: Config, subset: Subset, device: torch.device, channels_last: bool = False
) -> Loader:
    """The batches of a split in its own order."""
    images, _ = subset.sample(torch.arange(1))
    # Small images want large batches; at 224 x 224 a batch of 256 would fill a laptop's memory.
    fitting = 256 if images.numel() <= 3 * 64 * 64 else config.loader.batch_size
    batch_size = config.loader.eval_batch_size or max(fitting, config.loader.batch_size)
    even = config.train.parallel == "fsdp"  # all ranks do each forward pass together
    delivery = Delivery(choose_workers(config, subset), device, channels_last)
    return Loader(subset, batch_size, Order(), delivery, Shares(rank(), world_size(), even))


def choose_workers(config: Config, subset: Subset) -> int:
    """The number of worker processes; auto: 0 where they would save little or nothing."""
    if subset.cache not in ("ram", "store", "off"):
        return 0  # other processes cannot share a device's memory
    if config.loader.workers != "auto":
        return config.loader.workers
    rows = torch.arange(min(config.loader.batch_size, len(subset)))
    reading = cpu_seconds(lambda: subset.read(rows, 0))
    in_all = reading / len(rows) * len(subset) * config.train.epochs
    if cores() == 1 or in_all < TO_START:
        return 0
    batch = subset.read(rows, 0)
    piece = torch.empty(sum(image.nbytes + LABEL for image in batch[0]), dtype=torch.uint8)
    sending = cpu_seconds(lambda: packed(batch, piece)) + TO_WAKE
    return min(cores(), 8) if reading > WORTH * sending else 0


def cpu_seconds(work: Callable[[], Any]) -> float:
    """The processor time of ``work``, the second time, whatever other processes do."""
    work()  # warms up
    began = time.process_time()
    work()
    return time.process_time() - began


def cores() -> int:
    """The processor cores for this rank: those of the machine, shared among its ranks."""
    return max((os.cpu_count() or 1) // local_world_size(), 1)
