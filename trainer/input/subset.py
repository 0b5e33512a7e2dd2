"""One split of a dataset, and how its images become batches."""

import json
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from datasets import BrokenImage, DataError, Dataset, has_several_labels
from trainer.config import Config
from trainer.input.kept import CPU, Kept, choose_keeping, place_kept
from trainer.process.console import bar
from trainer.process.errors import ComponentError, component_place, with_cause
from transforms.kernel import is_large
from transforms.keyed import balanced, permutation
from transforms.memory import Images
from transforms.needed import needed_side
from transforms.pipeline import Pipeline, Sides


@dataclass(frozen=True)
class Subset:
    """One split of a dataset after the once-per-sample stage of its pipeline.

    indices (N,) int64 number the samples in the whole dataset; labels (N,) int64, or (N, K) float32
    where an image may have several. images is one
    uint8 tensor (N, ..., C, H, W), ``Kept`` in memory maps, or None if nothing is kept and each
    image is read anew. extremes are rows of the smallest and largest images: what works for them
    works for all. used (N,): the row that is shown for each row, if some images are broken and
    others take their places. met: broken images that are met while reading; without it they are
    errors.
    """

    dataset: Dataset
    pipeline: Pipeline
    indices: Tensor
    labels: Tensor
    images: Tensor | Kept | None
    extremes: Tensor
    used: Tensor | None = None
    met: "MetImages | None" = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def cache(self) -> str:
        """Where the images are kept: "ram", "store", a device such as "cuda:0", or "off"."""
        if self.images is None:
            return "off"
        if isinstance(self.images, Kept):
            return self.images.place
        return "ram" if self.images.device == CPU else str(self.images.device)

    @cached_property
    def early(self) -> int:
        """How many of the pipeline's later transforms run where the image is read."""
        return self.pipeline.early(cached=self.images is not None and not self._goes_one_by_one)

    @cached_property
    def _goes_one_by_one(self) -> bool:
        """Whether images are kept in main memory, and so large that they run one by one."""
        kept = self.images
        if isinstance(kept, Kept):
            return kept.gives_views
        if kept is None or kept.device != CPU or kept.ndim != 4:
            return False
        return is_large(kept.shape[1:], kept.shape[2:])

    def batch(
        self,
        rows: Tensor,
        epoch: int = 0,
        device: torch.device = CPU,
        channels_last: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Images (B, [crops,] C, H, W) float32 and labels of these rows, as the model gets them.

        The first rows are the pipeline's ``predecessors``; they are not returned. The v-th repeated
        visit of row r is r + v * N, and is augmented differently. Raises DataError if an image is
        gone or broken, or if a transform refuses it.
        """
        images, labels = self.read(rows, epoch)
        images, labels = to_device(images, device), to_device(labels, device)
        return self.finish(images, labels, rows, epoch, channels_last)

    def read(self, rows: Tensor, epoch: int) -> tuple[Images, Tensor]:
        """The first half of ``batch``, which worker processes do. Images are uint8 as a rule."""
        keys, rows = self._keys(rows), rows % len(self)
        rows = rows if self.used is None else self.used[rows]
        images: Images
        if self.images is None:
            images, rows = self._read_anew(rows)
        elif isinstance(self.images, Kept):
            images = self.images.gather(rows)
        elif self._goes_one_by_one and self.early:
            images = [self.images[row] for row in rows.tolist()]
        else:
            images = self.images.index_select(0, to_device(rows, self.images.device))
        with _as_data_error():
            return self.pipeline.begin(images, self.labels[rows], keys, epoch, self.early)

    def finish(
        self,
        images: Images,
        labels: Tensor,
        rows: Tensor,
        epoch: int,
        channels_last: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The second half of ``batch``, on the device of ``images``."""
        keys = self._keys(rows[len(rows) - len(images) :])
        with _as_data_error():
            return self.pipeline.finish(images, labels, keys, epoch, self.early, channels_last)

    def at(self, size: Sides | None) -> "Subset":
        """The subset with images of this size in every epoch; None: the transforms' own size."""
        return replace(self, pipeline=self.pipeline.at(size))

    @property
    def of_each_size(self) -> list["Subset"]:
        """``at`` each size that its epochs have; one as a rule."""
        return [self.at(size) for size in dict.fromkeys(self.pipeline.sizes.values()) or [None]]

    def _keys(self, rows: Tensor) -> Tensor:
        """Random key of each row, whatever the order: sample index + (visit << 40)."""
        return self.indices[rows % len(self)] + (rows // len(self) << 40)

    def try_choices(self, rows: Tensor) -> None:
        """Call ``Pipeline.try_choices`` with the images of these rows. Raises DataError."""
        rows = self.in_a_ring(rows)
        images: Images
        if self.images is None:
            images, rows = self._read_anew(rows)
        else:
            images = [self.images[row].cpu() for row in rows.tolist()]
        with _as_data_error():
            self.pipeline.try_choices(images, self.labels[rows], self.indices[rows])

    def sample(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A batch of these rows in epoch 0, as if the epoch had no other rows."""
        return self.batch(self.in_a_ring(rows))

    def in_a_ring(self, rows: Tensor) -> Tensor:
        """``rows``, with the last ones as predecessors of the first, for MixUp and CutMix."""
        return rows[torch.arange(-self.pipeline.predecessors, len(rows)) % len(rows)]

    def _read_anew(self, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        """The images of these rows, and the rows that were read in the end."""
        found = [self._first_readable(row) for row in rows.tolist()]
        return [image for image, _ in found], torch.tensor([row for _, row in found])

    def _first_readable(self, row: int) -> tuple[Tensor, int]:
        """The image of this row, or of the first row behind it that is not broken."""
        for one in chain(range(row, len(self)), range(row)):
            try:
                image = decoded(self.dataset, int(self.indices[one]), self._needed)
            except BrokenImage as error:
                if self.met is None:
                    raise
                self.met.add(error)
            else:
                return self.pipeline.prepare(image), one
        raise DataError("no image of this split can be read")

    @cached_property
    def _needed(self) -> int:
        return at_least_of(self.dataset, self.pipeline)


class MetImages:
    """Broken images that any process of this rank meets while it reads."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)
        weakref.finalize(self, self._file.close)
        self._mine: set[str] = set()  # those that this process has added
        self.found: dict[str, str] = {}  # path -> reason

    def add(self, error: BrokenImage) -> None:
        """Note a broken image; worker processes share the file."""
        if error.path not in self._mine:
            self._mine.add(error.path)
            line = json.dumps([error.path, error.reason]).encode() + b"\n"
            os.write(self._file.fileno(), line)  # at once, so lines of two processes never mix

    def new(self) -> list[tuple[str, str]]:
        """(path, reason) of those that were met since the last call."""
        size = os.fstat(self._file.fileno()).st_size
        lines = os.pread(self._file.fileno(), size, 0).splitlines()
        new = {path: why for path, why in map(json.loads, lines) if path not in self.found}
        self.found |= new
        return list(new.items())


def decodes_content(kind: type) -> bool:
    """Whether a dataset's ``image`` is ``decode`` of ``content``, and not a subclass's own."""
    names = {"image", "content", "decode"}
    owner = next((one for one in kind.__mro__ if names & vars(one).keys()), kind)
    has_halves = hasattr(kind, "content") and hasattr(kind, "decode")
    return has_halves and ("image" not in vars(owner) or names <= vars(owner).keys())


def at_least_of(dataset: Any, pipeline: Pipeline) -> int:
    """The ``at_least`` of ``dataset.decode``: 0 unless the dataset decodes fast."""
    is_fast = getattr(dataset, "decoding", "exact") == "fast"
    return needed_side([*pipeline.fixed, *pipeline.rest]) if is_fast else 0


def decoded(dataset: Any, index: int, at_least: int) -> Tensor:
    """One image, (C, H, W) uint8; ``at_least`` is that of ``dataset.decode``, if it has one."""
    if not decodes_content(type(dataset)):
        return dataset.image(index)  # type: ignore[no-any-return]
    return dataset.decode(index, dataset.content(index), at_least)  # type: ignore[no-any-return]


def order_of(labels: Tensor, seed: int | None, epoch: int, sampling: str = "shuffle") -> Tensor:
    """The rows of a subset with these labels in the order of an epoch: (N,) int64."""
    if seed is None:
        return torch.arange(len(labels))
    if sampling == "balanced":
        return balanced(labels if labels.ndim == 1 else rarest(labels), seed, epoch)
    return permutation(len(labels), seed, epoch)


def rarest(labels: Tensor) -> Tensor:
    """Of several labels (N, K) each image's rarest one, (N,) int64; K for images without any."""
    has = labels > 0.5
    counts = torch.cat([has.sum(dim=0), torch.tensor([len(labels) + 1])])
    has = torch.cat([has, torch.ones(len(labels), 1, dtype=torch.bool)], dim=1)
    return torch.where(has, counts, len(labels) + 2).argmin(dim=1)


@contextmanager
def _as_data_error() -> Iterator[None]:
    """Context manager: a ValueError of a transform becomes a DataError.

    It becomes a ComponentError where the transform's code is not a library's.
    """
    try:
        yield
    except ValueError as error:
        kind = ComponentError if component_place(error) else DataError
        raise kind(with_cause(error)) from error


def to_device(tensors: Any, device: torch.device) -> Any:
    """A tensor, or a list of tensors, on ``device``. A copy to a GPU is not waited for."""
    non_blocking = device.type == "cuda"  # what comes to the CPU is read at once
    if isinstance(tensors, list):
        return [tensor.to(device, non_blocking=non_blocking) for tensor in tensors]
    return tensors.to(device, non_blocking=non_blocking)


def labels_of(dataset: Dataset, rows: Tensor) -> Tensor:
    """The labels of the samples ``rows``: (N,) int64, or (N, K) float32 of several labels."""
    kind = torch.float32 if has_several_labels(dataset.labels) else torch.int64
    return torch.tensor([dataset.labels[row] for row in rows.tolist()], dtype=kind)


def subset_in_memory(
    dataset: Dataset, pipeline: Pipeline, rows: Tensor, config: Config, device: torch.device
) -> Subset:
    """The samples ``rows`` of a dataset with ``images``, which all have one size."""
    assert dataset.images is not None
    labels = labels_of(dataset, rows)
    first = pipeline.prepare(dataset.images[rows[:1]])
    size = first.nbytes * len(rows)
    place = place_kept(config, pipeline, size, True, device, first.dtype == torch.uint16)
    kept = None
    if place != CPU or choose_keeping(config, size, "it is in memory", device):
        kept = prepare_all(dataset.images, pipeline, rows, first.shape[1:], place)
    return Subset(dataset, pipeline, rows, labels, kept, torch.arange(len(rows))[:2])


def prepare_all(
    images: Tensor, pipeline: Pipeline, rows: Tensor, shape: torch.Size, place: torch.device
) -> Tensor:
    """``rows`` of ``images`` (N, C, H, W), each prepared to ``shape``, at ``place``."""
    kept = torch.empty((len(rows), *shape), dtype=images.dtype, device=place)
    chunks = torch.split(torch.arange(len(rows)), 4096)
    for chunk in bar(chunks, "preparing images", len(chunks), unit="chunk"):
        kept[chunk[0] : chunk[-1] + 1] = pipeline.prepare(images.index_select(0, rows[chunk]))
    return kept
