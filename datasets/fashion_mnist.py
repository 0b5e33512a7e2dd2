"""Fashion-MNIST, read from its official IDX files."""

import gzip
import math
import os
import zlib
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from datasets import DataError
from datasets.files import user_path
from datasets.memory import ImagesInMemory, absent, fetch_into

_OFFICIAL = torchvision.datasets.FashionMNIST
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class FashionMNIST(ImagesInMemory):
    """Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 grey images of 28 x 28, 10 classes.

    Reads ``root/FashionMNIST/raw/*-ubyte``, packed (.gz) or not, and never writes there; what is
    missing is fetched by torchvision if ``download``. Fewer images than the official ones are fine.
    Images: (1, 28, 28) uint8. Raises DataError for files that are absent or damaged.
    """

    def __init__(self, root: str = "data", download: bool = True) -> None:
        folder = user_path(root, "dataset.root") / "FashionMNIST" / "raw"
        if missing := [name for name in _FILES if _find(folder, name) is None]:
            _fetch(folder, missing, download)
        train_images, train_labels, test_images, test_labels = (
            _read_idx(_find(folder, name) or folder / name) for name in _FILES
        )
        for name, images, labels in (
            ("train", train_images, train_labels),
            ("t10k", test_images, test_labels),
        ):
            if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
                raise DataError(
                    f"{folder}: the {name} files hold images {tuple(images.shape)} and labels "
                    f"{tuple(labels.shape)}; expected (N, H, W) and (N,)."
                )
            if len(labels) and int(labels.max()) >= len(_OFFICIAL.classes):
                raise DataError(f"{folder}: the {name} labels go beyond 0..9.")
        super().__init__(
            torch.cat([train_images, test_images]).unsqueeze(1),  # (N, 1, 28, 28)
            torch.cat([train_labels, test_labels]).tolist(),
            len(train_labels),
            _OFFICIAL.classes,
        )


def _find(folder: Path, name: str) -> Path | None:
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if os.path.isfile(path)), None)


def _fetch(folder: Path, missing: list[str], download: bool) -> None:
    packed = [f"{name}.gz" for name in missing]
    urls = [_OFFICIAL.mirrors[0] + name for name in packed]
    if not download:
        raise absent(folder, packed, urls, "download is off")
    try:
        fetch_into(folder, lambda: _OFFICIAL(str(folder.parent.parent), download=True))
    except Exception as error:  # no network, disk full, a server's odd answer: the cure is the same
        raise absent(folder, packed, urls, f"downloading failed: {error}") from error


def _read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes (http://yann.lecun.com/exdb/mnist): uint8 of the header's shape."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08":
                raise DataError(f"{path}: not an IDX file of bytes.")
            shape = [int.from_bytes(file.read(4), "big") for _ in range(magic[3])]
            data = file.read(math.prod(shape) + 1)  # one more, to notice a file that is too long
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from error
    if len(data) != math.prod(shape):
        raise DataError(f"{path}: {len(data):,} bytes of data; its header says {tuple(shape)}.")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(shape)
