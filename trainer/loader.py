"""Batches of one split, as a pure function of (seed, epoch, batch number)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datasets import DataError, Dataset
from transforms.keyed import permutation
from transforms.pipeline import Pipeline


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
    images: Tensor | list[Tensor] | None
    extremes: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, rows: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Images (B, [crops,] C, H, W) float32 and labels of these rows, as the model sees them.

        Raises DataError for images that are gone or broken, or that a transform refuses.
        """
        images: Tensor | list[Tensor]
        if isinstance(self.images, Tensor):
            images = self.images[rows]
        elif self.images is not None:
            images = [self.images[row] for row in rows.tolist()]
        else:
            indices = self.indices[rows].tolist()
            images = [self.pipeline.prepare(self.dataset.image(index)) for index in indices]
        try:
            return self.pipeline(images, self.labels[rows], self.indices[rows], epoch)
        except ValueError as error:
            raise DataError(str(error)) from error


class Loader:
    """Cuts a part into batches; ``seed`` shuffles by (seed, epoch), None keeps the order.

    Every batch is known by (epoch, number), so an epoch can begin at any batch and workers need no
    state: what they compute does not depend on how many they are.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        *,
        seed: int | None = None,
        drop_last: bool = False,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.part, self.batch_size, self.seed, self.drop_last = part, batch_size, seed, drop_last
        self.workers, self.pin_memory = workers, pin_memory
        self._requests = _Requests()
        self._worker_loader: DataLoader[Any] | None = None

    def __len__(self) -> int:
        full, rest = divmod(len(self.part), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from batch number ``start`` on."""
        if self.seed is None:
            order = torch.arange(len(self.part))
        else:
            order = permutation(len(self.part), self.seed, epoch)
        cuts = torch.split(order, self.batch_size)[start : len(self)]
        if self.workers == 0:
            yield from (self.part.batch(rows, epoch) for rows in cuts)
            return
        if self._worker_loader is None:  # workers live as long as the loader: starting them is slow
            self._worker_loader = DataLoader(
                _PartBatches(self.part),
                sampler=self._requests,
                batch_size=None,
                num_workers=self.workers,
                persistent_workers=True,
                pin_memory=self.pin_memory,
                generator=torch.Generator(),  # without it, an iterator draws from the global one
            )
        self._requests.items = [(rows, epoch) for rows in cuts]
        for batch in self._worker_loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


class _Requests(torch.utils.data.Sampler[tuple[Tensor, int]]):
    """What the workers are to make next: set anew for each epoch."""

    def __init__(self) -> None:
        self.items: list[tuple[Tensor, int]] = []

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class _PartBatches(torch.utils.data.Dataset[tuple[Tensor, Tensor] | DataError]):
    """A part as a DataLoader asks it: one item is a whole batch.

    What is wrong with the data is handed over, not raised: DataLoader would add a traceback.
    """

    def __init__(self, part: Part) -> None:
        self.part = part

    def __getitem__(self, request: tuple[Tensor, int]) -> tuple[Tensor, Tensor] | DataError:
        try:
            return self.part.batch(*request)
        except DataError as error:
            return error
