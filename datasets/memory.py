"""Datasets that fit into memory: the common code of CIFAR10 and FashionMNIST."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from datasets import DataError

Result = TypeVar("Result")


class ImagesInMemory:
    """A dataset with an official test split; the training samples come before the test samples."""

    on_broken = "error"
    note = ""

    def __init__(
        self, images: Tensor, labels: Sequence[int], num_train: int, classes: Sequence[str]
    ) -> None:
        counts = {"train": num_train, "test": len(labels) - num_train}
        self.images = images.contiguous()  # (N, C, H, W) uint8
        self.labels = tuple(labels)
        self.classes = tuple(classes)
        self.ids = tuple(f"{split}/{i:05d}" for split, n in counts.items() for i in range(n))
        parts = (split for split, n in counts.items() for _ in range(n))
        self.parts: tuple[str | None, ...] = tuple(parts)

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
