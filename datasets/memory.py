"""Datasets that fit into memory: CIFAR10, FashionMNIST, Arrays, and such of torchvision."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from datasets import DataError

Result = TypeVar("Result")


class ImagesInMemory:
    """Images and labels in memory, in official parts; ids are the parts and numbers in them.

    images: (N, C, H, W) uint8. parts: the part of each sample; or the number of training samples,
    which come first, before the test samples.
    """

    on_broken = "error"
    note = ""

    def __init__(
        self,
        images: Tensor,
        labels: Sequence[int],
        parts: int | Sequence[str | None],
        classes: Sequence[str],
    ) -> None:
        if isinstance(parts, int):
            parts = ["train"] * parts + ["test"] * (len(labels) - parts)
        self.images = images.contiguous()
        self.labels = tuple(labels)
        self.classes = tuple(classes)
        self.parts = tuple(parts)
        numbers = {part: count() for part in self.parts}
        self.ids = tuple(
            f"{part}/{next(numbers[part]):05d}" if part else f"{next(numbers[part]):05d}"
            for part in self.parts
        )

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        """One image: (C, H, W) uint8."""
        return self.images[index]

    def digest(self, index: int) -> str:
        """SHA-256 (hex) of the pixels, in the order C, H, W."""
        return self.digests([index])[0]

    def digests(self, indices: Sequence[int]) -> list[str]:
        """``digest`` of each index, without threads: one costs more than hashing 784 bytes."""
        rows, sha256 = self.images.numpy(), hashlib.sha256
        return [sha256(rows[index]).hexdigest() for index in indices]


def fetch_into(folder: Path, fetch: Callable[[], Result]) -> Result:
    """Return ``fetch()``; if it raises, remove the empty folders it made, up from ``folder``."""
    new = [place for place in (folder, *folder.parents) if not os.path.exists(place)]
    try:
        return fetch()
    except BaseException:  # also KeyboardInterrupt
        for place in new:  # deepest first
            with contextlib.suppress(OSError):  # it was not made, or is not empty
                place.rmdir()
        raise


def absent(folder: Path, files: Sequence[str], urls: Sequence[str], reason: str) -> DataError:
    """The error for official files that are not on disk and cannot be downloaded."""
    return DataError(
        f"{folder}: missing {', '.join(files)} ({reason}). Download by hand and put into this "
        f"folder: " + ", ".join(urls)
    )
