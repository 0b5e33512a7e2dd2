"""Images that are in memory as a whole: what CIFAR10 and FashionMNIST have in common."""

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
    """A set with an official test part; training samples first, then the test samples."""

    on_broken = "error"
    note = ""

    def __init__(
        self, images: Tensor, labels: Sequence[int], num_train: int, classes: Sequence[str]
    ) -> None:
        counts = {"train": num_train, "test": len(labels) - num_train}
        self.images = images.contiguous()  # (N, C, H, W) uint8
        self.labels = tuple(labels)
        self.classes = tuple(classes)
        self.ids = tuple(f"{part}/{i:05d}" for part, n in counts.items() for i in range(n))
        self.parts = tuple(part for part, n in counts.items() for _ in range(n))

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        """One image: (C, H, W) uint8."""
        return self.images[index]

    def digest(self, index: int) -> str:
        """SHA-256 (hex) of the pixels, in the order C, H, W."""
        return self.digests([index])[0]

    def digests(self, indices: Sequence[int]) -> list[str]:
        """``digest`` of each, in a plain loop: a thread costs more than hashing 784 bytes."""
        rows, sha256 = self.images.numpy(), hashlib.sha256
        return [sha256(rows[index]).hexdigest() for index in indices]


def fetch_into(folder: Path, fetch: Callable[[], Result]) -> Result:
    """What ``fetch`` returns; where it fails, folders down to ``folder`` that it made are removed.

    Those that were there before or hold something stay. Raises what ``fetch`` raises.
    """
    new = [place for place in (folder, *folder.parents) if not os.path.exists(place)]
    try:
        return fetch()
    except BaseException:  # an interrupt as well
        for place in new:  # the deepest first
            with contextlib.suppress(OSError):  # never made, or it holds something
                place.rmdir()
        raise


def absent(folder: Path, files: Sequence[str], urls: Sequence[str], reason: str) -> DataError:
    """The error for official files that are neither on disk nor to be had."""
    return DataError(
        f"{folder}: missing {', '.join(files)} ({reason}). Download by hand and put into this "
        f"folder: " + ", ".join(urls)
    )
