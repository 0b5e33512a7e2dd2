"""One split of a dataset, and how its images become batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from datasets import DataError, Dataset
from trainer.process.errors import ComponentError, component_place, with_cause
from transforms.batched import Images
from transforms.keyed import balanced, permutation
from transforms.pipeline import Pipeline

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Subset:
    """One split of a dataset after the once-per-sample stage of its pipeline.

    indices (N,) int64 number the samples in the whole dataset; labels (N,) int64. images is one
    uint8 tensor (N, ..., C, H, W), a list if sizes differ, or None if nothing is kept and each
    image is read anew. extremes are rows of the smallest and largest images: what works for them
    works for all.
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

    @cached_property
    def early(self) -> int:
        """How many of the pipeline's later transforms run where the image is read."""
        return self.pipeline.early(cached=self.images is not None)

    def batch(
        self, rows: Tensor, epoch: int = 0, device: torch.device = CPU
    ) -> tuple[Tensor, Tensor]:
        """Images (B, [crops,] C, H, W) float32 and labels of these rows, as the model gets them.

        The first rows are the pipeline's ``predecessors``; they are not returned. The v-th repeated
        visit of row r is r + v * N, and is augmented differently. Raises DataError if an image is
        gone or broken, or if a transform refuses it.
        """
        images, labels = self.read(rows, epoch)
        return self.finish(to_device(images, device), to_device(labels, device), rows, epoch)

    def read(self, rows: Tensor, epoch: int) -> tuple[Images, Tensor]:
        """The first half of ``batch``, which worker processes do. Images are uint8 as a rule."""
        keys, rows = self._keys(rows), rows % len(self)
        images: Images
        if isinstance(self.images, Tensor):
            images = self.images.index_select(0, to_device(rows, self.images.device))
        elif self.images is not None:
            images = [self.images[row] for row in rows.tolist()]
        else:
            images = self._read_anew(rows)
        with _as_data_error():
            return self.pipeline.begin(images, self.labels[rows], keys, epoch, self.early)

    def finish(
        self, images: Images, labels: Tensor, rows: Tensor, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """The second half of ``batch``, on the device of ``images``."""
        keys = self._keys(rows[len(rows) - len(images) :])
        with _as_data_error():
            return self.pipeline.finish(images, labels, keys, epoch, self.early)

    def _keys(self, rows: Tensor) -> Tensor:
        """Random key of each row, whatever the order: sample index + (visit << 40)."""
        return self.indices[rows % len(self)] + (rows // len(self) << 40)

    def try_choices(self, rows: Tensor) -> None:
        """Call ``Pipeline.try_choices`` with the images of these rows. Raises DataError."""
        rows = self.in_a_ring(rows)
        images: Images
        if self.images is None:
            images = self._read_anew(rows)
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

    def _read_anew(self, rows: Tensor) -> list[Tensor]:
        indices = self.indices[rows].tolist()
        return [self.pipeline.prepare(self.dataset.image(index)) for index in indices]


def order_of(labels: Tensor, seed: int | None, epoch: int, sampling: str = "shuffle") -> Tensor:
    """The rows of a subset with these labels in the order of an epoch: (N,) int64."""
    if seed is None:
        return torch.arange(len(labels))
    if sampling == "balanced":
        return balanced(labels, seed, epoch)
    return permutation(len(labels), seed, epoch)


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
