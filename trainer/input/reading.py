"""Reads many files once: SHA-256, pixels, and what the fixed transforms make of them.

Processes read them, each a group of files (a task) at a time. Threads would wait for Python's
lock: two threads read fewer small files a second than one.
"""

import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets import BrokenImage, Dataset
from trainer.input.kept import CPU
from trainer.input.pool import (
    LAST,
    RECORD,
    WIDE,
    Chunk,
    Digests,
    Pool,
    Records,
    Segment,
    as_digests,
)
from trainer.input.store import Store
from trainer.input.subset import decodes_content
from trainer.input.workers import Workers
from trainer.process.console import bar
from trainer.process.errors import RunError
from transforms.kernel import is_large
from transforms.pipeline import Pipeline

TASK_FILES, TASK_BYTES = 512, 2**22  # of a task, at most
INLINE = 2  # tasks that this process reads itself: starting others takes longer
Pick = Callable[[int, str], int]  # sample and digest -> the Side's number, or -1 for none


class ImageRefused(Exception):
    """A fixed transform refused an image, with the ValueError that is the cause.

    number: of the Side. channels: of the image.
    """

    def __init__(self, number: int, channels: int) -> None:
        super().__init__(number, channels)
        self.number, self.channels = number, channels


@contextmanager
def naming_side(number: int, images: Tensor) -> Iterator[None]:
    """Context manager: a ValueError about ``images`` becomes ImageRefused."""
    try:
        yield
    except ValueError as error:
        raise ImageRefused(number, images.shape[-3]) from error


@dataclass(eq=False)
class Side:
    """How images are prepared, and where to: for train, or for val and test.

    keeping: "store", "ram", or None if images are only checked. recipe: what decides the prepared
    pixels of a content; None if that is not known.
    """

    pipeline: Pipeline
    pool: Pool
    at_least: int
    recipe: dict[str, Any] | None
    keeping: str | None = None
    is_decided: bool = False
    segment: Segment | None = None
    records: list[Records] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def is_durable(self) -> bool:
        """Whether the store remembers what is read."""
        return self.recipe is not None and self.keeping != "ram"

    def make(self, images: Tensor, number: int) -> Tensor:
        """``images`` after the fixed transforms. Raises ImageRefused with this Side's number."""
        with naming_side(number, images):
            return self.pipeline.prepare(images)

    def begin(self, store: Store | None) -> None:
        """Begin a segment, in the store if it is given. Raises OSError."""
        if store is not None and self.recipe is not None and self.is_durable:
            self.pool.folder = store.prepare(self.recipe)
            self.segment = Segment(self.pool.folder)
        else:
            self.segment = Segment(None)

    def finish(self) -> None:
        """Add what was read to the pool. Raises OSError if the store cannot be written."""
        if self.segment is not None and self.records:
            records = np.concatenate(self.records)
            self.segment.commit(records, self.chunks)
            self.pool.take(self.segment, records)
            self.segment.close()
            self.segment = None

    def discard(self) -> None:
        """Remove what was not added to the pool."""
        if self.segment is not None:
            self.segment.discard()
        self.segment, self.records, self.chunks = None, [], []


@dataclass(frozen=True)
class TaskResult:
    """What one task found: digests (n, 32) of its samples, the broken ones, and new images."""

    indices: NDArray[np.int64]
    digests: Digests
    broken: list[tuple[int, str, str]]
    records: list[Records]
    chunks: list[list[Chunk]]


class Reader:
    """Reads tasks of samples, in any process."""

    def __init__(
        self,
        dataset: Dataset,
        sides: Sequence[Side],
        pick: Pick,
        digests: Digests,
        known: NDArray[np.bool_],
    ) -> None:
        self.dataset, self.sides, self.pick = dataset, sides, pick
        self.digests, self.known = digests, known

    def __call__(self, indices: NDArray[np.int64]) -> TaskResult | OSError | None:
        """What ``read`` returns; the OSError that it raises; or None.

        None if something but a broken image came in the way: the caller reads the task itself.

        So an error of a transform, or of a dataset's own code, is raised where it can be shown.
        """
        try:
            return self.read(indices)
        except OSError as error:
            return error
        except MemoryError:
            raise
        except Exception:
            return None

    def read(self, indices: NDArray[np.int64]) -> TaskResult:
        """Read the samples of a task. Raises OSError if a segment cannot be written."""
        digests = self.digests[indices]
        no_records: list[Records] = [np.empty(0, RECORD) for _ in self.sides]
        found = TaskResult(indices, digests, [], no_records, [[] for _ in self.sides])
        images: dict[tuple[int, Any], list[tuple[int, Tensor]]] = defaultdict(list)
        for row, index in enumerate(indices.tolist()):
            try:
                side, image = self._read_one(index, digests[row])
            except BrokenImage as error:
                found.broken.append((index, error.path, error.reason))
                continue
            if image is None:
                continue
            if is_large(image.shape, image.shape[1:]):  # many of them would fill the memory
                self._keep(found, side, [(row, image)])
            else:
                images[side, image.shape].append((row, image))
        for (side, _), group in images.items():
            self._keep(found, side, group)
        return found

    def _read_one(self, index: int, digest: NDArray[np.uint8]) -> tuple[int, Tensor | None]:
        """The side, and the decoded image unless it is kept already. Fills in the digest."""
        dataset: Any = self.dataset
        by_content = decodes_content(type(dataset))
        content = dataset.content(index) if by_content else b""
        if by_content or not self.known[index]:
            text = hashlib.sha256(content).hexdigest() if by_content else dataset.digest(index)
            read = as_digests([text])[0]
            if self.known[index] and (read != digest).any():
                raise BrokenImage(dataset.ids[index], "has changed while the images were read")
            digest[:] = read
        side = self.pick(index, digest.tobytes().hex())
        if side < 0:
            return side, None
        one = self.sides[side]
        if one.pool.find(digest[None], kept=one.keeping is not None)[0] >= 0:
            return side, None
        if not by_content:
            return side, dataset.image(index)
        return side, dataset.decode(index, content, one.at_least)

    def _keep(self, found: TaskResult, side: int, group: Sequence[tuple[int, Tensor]]) -> None:
        """Prepare images of one shape and write them; adds their records and the place of bytes."""
        one, rows = self.sides[side], [row for row, _ in group]
        stacked = group[0][1][None] if len(group) == 1 else torch.stack([i for _, i in group])
        images = one.make(stacked, side)
        records = np.zeros(len(group), RECORD)
        records["digest"], records["offset"] = found.digests[rows], -1
        shape = images.shape[1:]
        records["shape"] = [*[0] * (4 - len(shape)), *shape]
        records["layout"] = WIDE * (images.dtype == torch.uint16)
        if (remarks := getattr(self.dataset, "remarks", None)) is not None:
            records["remark"] = [remarks[index] for index in found.indices[rows].tolist()]
        if one.keeping is not None and one.segment is not None:
            last = shape[0] > 1 and len(shape) == 3 and is_large(shape, shape[1:])
            pixels = (images.movedim(-3, -1) if last else images).contiguous()
            data = pixels.numpy().data.cast("B")
            first = one.segment.append(data)
            records["offset"] = first + np.arange(len(group)) * (len(data) // len(group))
            records["layout"] |= LAST * last
            found.chunks[side].append((first, len(data), hashlib.sha256(data).hexdigest()))
        found.records[side] = np.concatenate([found.records[side], records])


def read_files(
    reader: Reader,
    indices: NDArray[np.int64],
    sizes: NDArray[np.int64] | None,
    what: str,
    is_alone: bool,
) -> dict[int, BrokenImage]:
    """Read the samples ``indices``; ``sizes``: bytes of each file, if they are known.

    ``is_alone``: other ranks wait meanwhile, so this one shows the progress of ``what`` it does.
    Fills in the reader's digests, and adds the new images to its sides. Returns the broken images.
    Raises OSError if a segment cannot be written.
    """
    tasks = cut_tasks(indices, sizes)
    broken: dict[int, BrokenImage] = {}
    for found in bar(_by_image(reader, tasks), what, len(indices), on_any_rank=is_alone):
        if found is None:
            continue
        broken |= {index: BrokenImage(path, reason) for index, path, reason in found.broken}
        good = ~np.isin(found.indices, [index for index, *_ in found.broken])
        reader.digests[found.indices[good]] = found.digests[good]
        reader.known[found.indices[good]] = True
        for side, records, chunks in zip(reader.sides, found.records, found.chunks, strict=True):
            side.records += [records] if len(records) else []
            side.chunks += chunks
    return broken


def cut_tasks(
    indices: NDArray[np.int64], sizes: NDArray[np.int64] | None
) -> list[NDArray[np.int64]]:
    """The samples in tasks of at most TASK_FILES files and about TASK_BYTES bytes."""
    if sizes is None:
        return [indices[first : first + 32] for first in range(0, len(indices), 32)]
    number = np.arange(len(indices)) // TASK_FILES
    number += np.cumsum(sizes[indices].clip(min=0)) // TASK_BYTES
    return np.split(indices, np.flatnonzero(np.diff(number)) + 1)


def _by_image(reader: Reader, tasks: Sequence[NDArray[np.int64]]) -> Iterator[TaskResult | None]:
    """What each task found, and then None for each further image, so that a bar counts images."""
    with closing(_by_processes(reader, tasks)) as results:  # processes end where a task failed
        for task, result in zip(tasks, results, strict=True):
            if isinstance(result, OSError):
                raise result
            yield reader.read(task) if result is None else result
            for _ in range(len(task) - 1):
                yield None


def _by_processes(
    reader: Reader, tasks: Sequence[NDArray[np.int64]]
) -> Generator[TaskResult | OSError | None, None, None]:
    if len(tasks) <= INLINE or sys.platform != "linux":  # where workers inherit the segments
        yield from map(reader, tasks)
        return
    count = min(len(tasks), len(os.sched_getaffinity(0)))
    try:
        workers = Workers(lambda request: reader(tasks[request[0]]), count, CPU, size=0)
    except RunError:  # the system gives no more processes
        yield from map(reader, tasks)
        return
    try:
        yield from workers.read([(number,) for number in range(len(tasks))])
    finally:
        workers.close()
