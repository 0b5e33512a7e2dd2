"""One split of a dataset, and how its images become batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from datasets import DataError, Dataset
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
        """Images (B, [crops,] C, H, W) float32 and labels of these rows, as the model sees them.

        The pipeline's ``predecessors`` come first among the rows, and drop out. The v-th repeated
        visit of row r is r + v * N, and gets another augmentation. Raises DataError for images that
        are gone or broken, or that a transform refuses.
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
        """Random key of each row: sample index + (visit << 40).

        On the first visit it is the sample index, so that augmentation does not depend on the
        order.
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
    """The rows of a subset with these labels in the order of an epoch: (N,) int64."""
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


def to_device(tensors: Any, device: torch.device) -> Any:
    """A tensor, or a list of them, on ``device``; nothing waits for a GPU's copy."""
    non_blocking = device.type == "cuda"  # what comes to the CPU is read at once
    if isinstance(tensors, list):
        return [tensor.to(device, non_blocking=non_blocking) for tensor in tensors]
    return tensors.to(device, non_blocking=non_blocking)
