"""Table of the datasets for ``dataset.name``, without torch. To add one: its file, a line here."""

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
RMB_ROOT = "data/rmb"  # where RMB looks, unless its ``root`` is another folder


class DataError(Exception):
    """The data on disk is not as requested; the message says where, and how to correct it."""


class BrokenImage(DataError):
    """One image file that cannot be decoded."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Dataset(Protocol):
    """Interface of every dataset. The constructor lists files and labels, but decodes nothing.

    A dataset of files may also have these three; one without them is read by image and digest:

    - ``content(index) -> bytes``: the file's bytes, whose SHA-256 is the digest. Raises
      BrokenImage.
    - ``decode(index, content, at_least=0) -> Tensor``: image(index) from these bytes. at_least is
      the number of pixels of the shorter side that are needed, 0 if all are; fewer may be decoded.
    - ``recipe -> str``, a property: all that decides the pixels of a content besides at_least.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names: ``classes[k]`` is the name of label k."""

    @property
    def labels(self) -> tuple[int, ...]:
        """The label of each sample."""

    @property
    def ids(self) -> tuple[str, ...]:
        """A unique, stable name of each sample, such as its path below the root or "test/00017"."""

    @property
    def parts(self) -> tuple[str | None, ...]:
        """The official split of each sample, "train", "val" or "test"; None if there is none."""

    @property
    def on_broken(self) -> str:
        """What the trainer does on a BrokenImage: "error" or "skip"."""

    @property
    def note(self) -> str:
        """A warning about this data for the user; normally ""."""

    @property
    def images(self) -> "Tensor | None":
        """All images, (N, C, H, W) uint8 or uint16, if it holds them in memory; else None."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> "Tensor":
        """Decode one image: (C, H, W), the same C for all images. Raises BrokenImage.

        All images are uint8 (0 to 255), or all are uint16 (0 to 65535). The tensor may be a view of
        (H, W, C) in memory.
        """

    def digest(self, index: int) -> str:
        """SHA-256 (hex) of the file's bytes, or of the pixels if there are no image files."""

    def digests(self, indices: "Sequence[int]") -> "list[str] | None":
        """``digest`` of each index, if that opens no file; else None."""
