"""Batches of one split, as a pure function of (seed, epoch, batch number)."""

import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datasets import DataError, Dataset
from trainer.process.errors import WorkerDied
from trainer.process.stop import SIGNALS
from transforms.batched import Images
from transforms.keyed import balanced, permutation
from transforms.pipeline import Pipeline

CPU = torch.device("cpu")
BLOCK = 2**23  # bytes of float32 images that are made in one go


def cut(count: int, process: int, processes: int) -> tuple[int, int]:
    """Which of ``count`` images in a row are a process's: from, to. Sizes differ by at most one."""
    least, more = divmod(count, processes)
    low = process * least + min(process, more)
    return low, low + least + (process < more)


@dataclass(frozen=True)
class Part:
    """One split of a dataset after the once-per-sample stage of its pipeline.

    indices (N,) int64 number the samples in the whole dataset; labels (N,) int64. images is one
    uint8 tensor (N, ..., C, H, W), or a list where sizes differ, or None where nothing is kept and
    each image is read anew. extremes are rows of the smallest and largest images: what works for
    them works for all.
    """

    dataset: Dataset
    pipeline: Pipeline
    indices: Tensor
    labels: Tensor
    images: Images | None
    extremes: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def cache(self) -> str:
        """Where the images are kept: "ram", a device such as "cuda:0", or "off"."""
        if self.images is None:
            return "off"
        device = self.images.device if isinstance(self.images, Tensor) else CPU
        return "ram" if device == CPU else str(device)

    @property
    def early(self) -> int:
        """How many of the pipeline's later transforms run where the image is read."""
        return self.pipeline.early(cached=self.images is not None)

    def batch(
        self, rows: Tensor, epoch: int = 0, device: torch.device = CPU
    ) -> tuple[Tensor, Tensor]:
        """Images (B, [crops,] C, H, W) float32 and labels of these rows, as the model sees them.

        The pipeline's ``predecessors`` come first among the rows, and drop out. A row that an epoch
        visits again stands as ``balanced`` says, and gets another augmentation. Raises DataError
        for images that are gone or broken, or that a transform refuses.
        """
        images, labels = self.read(rows, epoch)
        return self.finish(to_device(images, device), to_device(labels, device), rows, epoch)

    def read(self, rows: Tensor, epoch: int) -> tuple[Images, Tensor]:
        """The first half of ``batch``, which worker processes do: uint8 as a rule."""
        keys, rows = self._keys(rows), rows % len(self)
        images: Images
        if isinstance(self.images, Tensor):
            images = self.images.index_select(0, to_device(rows, self.images.device))
        elif self.images is not None:
            images = [self.images[row] for row in rows.tolist()]
        else:
            numbers = self.indices[rows].tolist()
            images = [self.pipeline.prepare(self.dataset.image(number)) for number in numbers]
        with _refused():
            return self.pipeline.begin(images, self.labels[rows], keys, epoch, self.early)

    def finish(
        self, images: Images, labels: Tensor, rows: Tensor, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """The second half, on the device where ``images`` lie."""
        keys = self._keys(rows[len(rows) - len(images) :])
        with _refused():
            return self.pipeline.finish(images, labels, keys, epoch, self.early)

    def _keys(self, rows: Tensor) -> Tensor:
        """What the random numbers of each row depend on: its sample, and which visit of it it is.

        Of a first visit the sample's number alone, whatever the order.
        """
        return self.indices[rows % len(self)] + (rows // len(self) << 40)

    def try_choices(self, rows: Tensor) -> None:
        """Try what the pipeline may choose on the images of these rows; raises DataError."""
        rows = rows[in_a_ring(self.pipeline, len(rows))]
        indices = self.indices[rows]
        images: Images
        if self.images is None:
            images = [self.pipeline.prepare(self.dataset.image(i)) for i in indices.tolist()]
        else:
            images = [self.images[row].cpu() for row in rows.tolist()]
        with _refused():
            self.pipeline.try_choices(images, self.labels[rows], indices)

    def sample(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A batch of these rows in epoch 0, as if the epoch had no others."""
        return self.batch(rows[in_a_ring(self.pipeline, len(rows))])


def order_of(labels: Tensor, seed: int | None, epoch: int, sampling: str = "shuffle") -> Tensor:
    """The rows of a part of these labels as an epoch visits them: (N,) int64."""
    if seed is None:
        return torch.arange(len(labels))
    if sampling == "balanced":
        return balanced(labels, seed, epoch)
    return permutation(len(labels), seed, epoch)


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise DataError(str(error)) from error


def in_a_ring(pipeline: Pipeline, n: int) -> Tensor:
    """0..n-1 after the predecessors of 0: the last ones precede the first."""
    return torch.arange(-pipeline.predecessors, n) % n


class Loader:
    """Cuts a part into batches; ``seed`` shuffles by (seed, epoch), None keeps the order.

    ``sampling`` "balanced" visits each class equally often, and as many images as there are.
    Every batch is known by (epoch, number), so an epoch can begin at any batch and workers need no
    state: what they compute does not depend on how many they are.

    Of several ``processes``, number ``process`` (from 0) gets its share of each shuffled batch; of
    a part in its own order, to be judged, every ``processes``-th batch whole. ``even``: who has a
    batch less of those gets one image without a label in its place.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        *,
        seed: int | None = None,
        drop_last: bool = False,
        sampling: str = "shuffle",
        workers: int = 0,
        device: torch.device = CPU,
        channels_last: bool = False,
        process: int = 0,
        processes: int = 1,
        even: bool = False,
    ) -> None:
        self.process, self.processes, self.even = process, processes, even
        self.part, self.batch_size, self.seed, self.drop_last = part, batch_size, seed, drop_last
        self.sampling = sampling
        self.workers, self.device, self.channels_last = workers, device, channels_last
        self._requests = _Requests()
        self._worker_loader: DataLoader[Any] | None = None
        self._end_workers: Callable[[], None] = lambda: None
        self._block: int | None = None

    def __len__(self) -> int:
        full, rest = divmod(len(self.part), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from batch number ``start`` on, on the loader's device."""
        bounds = self._bounds()
        own = len(bounds)
        if self.even and own < self.rounds:
            bounds.append((0, 1))
        if start >= len(bounds):
            return
        order = self._order(epoch)
        order = order[in_a_ring(self.part.pipeline, len(self.part))]
        at_once = 1 if self.workers else self._batches_at_once()
        first = start // at_once * at_once
        pieces = [bounds[i : i + at_once] for i in range(first, len(bounds), at_once)]
        batches = self._by_workers if self.workers else self._here
        made = islice(batches(pieces, order, epoch), start - first, None)
        for number, (images, labels) in enumerate(made, start):
            if self.channels_last and images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            yield images, labels if number < own else labels[:0]

    def size(self, number: int) -> int:
        """How many images batch ``number`` has, over all ranks."""
        return min(self.batch_size, len(self.part) - number * self.batch_size)

    def sizes(self) -> list[int]:
        """The size of each batch."""
        return [self.size(number) for number in range(len(self))]

    @property
    def rounds(self) -> int:
        """How many batches of an epoch the process has that has most."""
        return len(self) if self.seed is not None else -(-len(self) // self.processes)

    def _bounds(self) -> list[tuple[int, int]]:
        """Of each of this process's batches, from and to where it lies in the epoch's order."""
        bounds = []
        for number, size in enumerate(self.sizes()):
            begin = number * self.batch_size
            if self.seed is not None:
                low, high = cut(size, self.process, self.processes)
                low = min(low, size - 1)  # fewer images than processes: one to go on with
                bounds.append((begin + low, begin + max(high, low + 1)))
            elif number % self.processes == self.process:
                bounds.append((begin, begin + size))
        return bounds

    def _rows(self, piece: list[tuple[int, int]], order: Tensor) -> Tensor:
        """The rows of batches in the epoch's order, those before them that are mixed in first."""
        before = self.part.pipeline.predecessors
        if self.processes == 1 or len(piece) == 1:
            return order[piece[0][0] : piece[-1][1] + before]
        return torch.cat([order[low:high] for low, high in piece])  # none is mixed in then

    def rows(self, epoch: int, number: int) -> Tensor:
        """The part's rows that batch ``number`` of an epoch shows."""
        order = self._order(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        return order % len(self.part)  # which visit of it a row stands for is of no interest

    @property
    def will_fork(self) -> bool:
        """Whether the next epoch starts worker processes."""
        return self.workers > 0 and self._worker_loader is None

    def close(self) -> None:
        """End the worker processes; the next epoch would start new ones."""
        self._worker_loader = None
        self._end_workers()

    def _order(self, epoch: int) -> Tensor:
        return order_of(self.part.labels, self.seed, epoch, self.sampling)

    def _here(
        self, pieces: list[list[tuple[int, int]]], order: Tensor, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for piece in pieces:
            images, labels = self.part.batch(self._rows(piece, order), epoch, self.device)
            sizes = [high - low for low, high in piece]
            yield from zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)

    def _batches_at_once(self) -> int:
        """How many batches are made in one go, and then cut: of small images that is cheaper.

        One where the cut would fall beside the 64 bytes to which memory is aligned, on which the
        last bits of a matrix product may depend.
        """
        if self._block is None:
            images, _ = self.part.sample(torch.arange(1))
            size = images.nbytes * self.batch_size
            if self.processes > 1:  # shares differ in size
                crooked = images.nbytes % 64 or self.part.pipeline.predecessors
            else:
                crooked = size % 64
            self._block = 1 if crooked else max(1, BLOCK // size)
        return self._block

    def _by_workers(
        self, pieces: list[list[tuple[int, int]]], order: Tensor, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if self._worker_loader is None:  # workers live until `close`: starting them is slow
            self._worker_loader = DataLoader(
                _Reading(self.part),
                sampler=self._requests,
                batch_size=None,
                num_workers=self.workers,
                persistent_workers=True,
                worker_init_fn=leave_signals_to_the_trainer,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # without it, an iterator draws from the global one
            )
            self._end_workers = weakref.finalize(self, end_workers, self._worker_loader)
        requests = [(self._rows(piece, order), epoch) for piece in pieces]
        self._requests.items = requests
        read = copied_ahead(from_workers(self._worker_loader), self.device)
        for (rows, _), (images, labels) in zip(requests, read, strict=True):
            yield self.part.finish(images, labels, rows, epoch)


def copied_ahead(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """What workers have read, on ``device``; a GPU copies the next while it works on this one.

    Raises a DataError that comes instead of a batch.
    """
    if device.type != "cuda":
        for batch in batches:
            yield _checked(batch)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copies() -> Iterator[tuple[Any, Tensor]]:
        for images, labels in map(_checked, batches):
            with torch.cuda.stream(stream):
                copied = to_device(images, device), to_device(labels, device)
            yield copied  # not inside: the reader would go on in the copies' queue

    following = copies()
    ahead = next(following, None)
    while ahead is not None:
        images, labels = ahead
        working = torch.cuda.current_stream(device)
        working.wait_stream(stream)
        for tensor in (*(images if isinstance(images, list) else [images]), labels):
            tensor.record_stream(working)  # its memory is not free before the work is done
        ahead = next(following, None)
        yield images, labels


def _checked(batch: Any) -> Any:
    if isinstance(batch, DataError):
        raise batch
    return batch


def to_device(tensors: Any, device: torch.device) -> Any:
    """A tensor, or a list of them, on ``device``; a GPU's copy is not waited for."""
    non_blocking = device.type == "cuda"  # what comes to the CPU is read at once
    if isinstance(tensors, list):
        return [tensor.to(device, non_blocking=non_blocking) for tensor in tensors]
    return tensors.to(device, non_blocking=non_blocking)


def end_workers(worker_loader: DataLoader[Any]) -> None:
    """Ask the workers to end, and wait for it.

    Left to itself, Python ends them at its exit by the SIGTERM that they ignore, and waits forever.
    """
    iterator: Any = worker_loader._iterator
    if iterator is not None:
        iterator._shutdown_workers()
        for worker in iterator._workers:
            if worker.is_alive():
                worker.kill()


def from_workers(worker_loader: DataLoader[Any]) -> Iterator[Any]:
    """What the workers made; raises WorkerDied where it is waited for, if one of them ended.

    DataLoader would raise that from a signal handler too: in the middle of a step, which then is
    neither done nor undone.
    """
    handler = None
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and hasattr(signal, "SIGCHLD"):
        handler = signal.getsignal(signal.SIGCHLD)
        if getattr(handler, "__module__", "").startswith("torch."):  # another DataLoader left it
            handler = signal.SIG_DFL
    try:
        batches = iter(worker_loader)
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        yield from batches
    except (RuntimeError, OSError, EOFError) as error:
        iterator: Any = worker_loader._iterator
        workers = iterator._workers if iterator else []
        patience = time.monotonic() + isinstance(error, EOFError | ConnectionError)
        while not (dead := [str(worker.pid) for worker in workers if not worker.is_alive()]):
            if time.monotonic() >= patience:
                break
            time.sleep(0.001)  # a process that ends closes its connections before it is gone
        if not dead:
            raise
        raise WorkerDied(
            f"the worker process {', '.join(dead)} ended by itself. Where memory ran out, fewer "
            "loader.workers or a smaller loader.batch_size help."
        ) from error


def leave_signals_to_the_trainer(worker: int) -> None:
    """Ignore what asks a whole group of processes to stop: the trainer stops its workers itself."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = quiet_where_the_trainer_hangs_up


def quiet_where_the_trainer_hangs_up(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Tell of an error in a worker's own threads; what reading raises goes another way.

    Where another worker died, the trainer may leave a connection while it is greeted: no news.
    """
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


class _Requests(torch.utils.data.Sampler[tuple[Tensor, int]]):
    """What the workers are to make next: set anew for each epoch."""

    def __init__(self) -> None:
        self.items: list[tuple[Tensor, int]] = []

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class _Reading(torch.utils.data.Dataset[Any]):
    """A part as a DataLoader asks it: one item is a whole batch, read but not finished.

    What is wrong with the data is handed over, not raised: DataLoader would add a traceback.
    """

    def __init__(self, part: Part) -> None:
        self.part = part

    def __getitem__(self, request: tuple[Tensor, int]) -> Any:
        try:
            return self.part.read(*request)
        except DataError as error:
            return error
