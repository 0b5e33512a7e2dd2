"""Every dataset that ``dataset.name`` can select. To add one: write its file, add its line here.

Importing this module is cheap: it imports neither torch nor any dataset.
"""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

DATASETS = {
    "RMB": "datasets.rmb:RMB",
    "CIFAR10": "datasets.cifar10:CIFAR10",
    "FashionMNIST": "datasets.fashion_mnist:FashionMNIST",
    "ImageFolder": "datasets.image_folder:ImageFolder",
    "CSVImages": "datasets.csv_images:CSVImages",
    "Shards": "datasets.shards:Shards",
}


class DataError(Exception):
    """The data on disk is not what was asked for; the message says where, and how to mend it."""


class BrokenImage(DataError):
    """One image file that cannot be decoded."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Dataset(Protocol):
    """What every dataset offers; constructing one lists files and reads labels, decodes nothing."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Label k is called ``classes[k]``."""

    @property
    def labels(self) -> tuple[int, ...]:
        """The label of each sample."""

    @property
    def ids(self) -> tuple[str, ...]:
        """A unique, stable name of each: "100/0012.jpg" relative to the root, "test/00017"."""

    @property
    def parts(self) -> tuple[str | None, ...]:
        """The part of each where the source fixes it, "train", "val" or "test"; else None."""

    @property
    def on_broken(self) -> str:
        """What the trainer shall do about a BrokenImage: "error" or "skip"."""

    @property
    def note(self) -> str:
        """What a user must be told about this data; normally ""."""

    @property
    def images(self) -> "Tensor | None":
        """All of them, (N, C, H, W) uint8, where the set is in memory anyway, else None."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> "Tensor":
        """Decode one image: (C, H, W) uint8, C the same for the whole set. Raises BrokenImage."""

    def digest(self, index: int) -> str:
        """SHA-256 (hex) of the file's bytes, or of the pixels where the set has no image files."""

    def digests(self, indices: "Sequence[int]") -> "list[str] | None":
        """``digest`` of each, where that needs no file to be opened, else None."""
