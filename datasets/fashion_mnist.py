"""Fashion-MNIST, read from its official IDX files."""

import gzip
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray

from datasets import DataError
from datasets.files import user_path
from datasets.memory import ImagesInMemory, absent, fetch_into

MAX_BYTES = 1 << 28  # of an unpacked file: five times the largest official one

_OFFICIAL = torchvision.datasets.FashionMNIST
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class FashionMNIST(ImagesInMemory):
    """Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 grey images of 28 x 28, 10 classes.

    Reads ``root/FashionMNIST/raw/*-ubyte``, compressed (.gz) or not, and never changes these files.
    torchvision downloads missing files if ``download`` is set. Files with fewer images are allowed.
    Images: (1, 28, 28) uint8. Raises DataError for files that are missing or damaged.

    root: The folder that holds FashionMNIST/raw with the four IDX files, compressed or not.
    download: Fetch the files (31 MB) that are missing.
    """

    def __init__(self, root: str = "data", download: bool = True) -> None:
        folder = user_path(root, "dataset.root") / "FashionMNIST" / "raw"
        if missing := [name for name in _FILES if _find(folder, name) is None]:
            _fetch(folder, missing, download)
        paths = [_find(folder, name) or folder / name for name in _FILES]
        pixels, sizes = _read_idx(paths[::2])
        labels, counts = _read_idx(paths[1::2])
        for name, size, count in zip(("train", "t10k"), sizes, counts, strict=True):
            if len(size) != 3 or len(count) != 1 or size[0] != count[0] or size[1:] != sizes[0][1:]:
                raise DataError(
                    f"{folder}: the {name} files hold images {tuple(size)} and labels "
                    f"{tuple(count)}; expected (N, H, W) and (N,), H and W the same in all."
                )
        for name, split_labels in zip(("train", "t10k"), np.split(labels, counts[0]), strict=True):
            if len(split_labels) and int(split_labels.max()) >= len(_OFFICIAL.classes):
                raise DataError(f"{folder}: the {name} labels go beyond 0..9.")
        images = torch.from_numpy(pixels.reshape(len(labels), 1, *sizes[0][1:]))
        super().__init__(images, labels.tolist(), counts[0][0], _OFFICIAL.classes)


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
    except Exception as error:  # no network, a full disk, an odd server answer: same advice
        raise absent(folder, packed, urls, f"downloading failed: {error}") from error


def _read_idx(paths: Sequence[Path]) -> tuple[NDArray[np.uint8], list[list[int]]]:
    """Read IDX files (http://yann.lecun.com/exdb/mnist): (N,) uint8 of all files, and each shape.

    One thread per file fills a slice of one array: decompression releases the GIL.
    """
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        files, shapes = [], []
        for path in paths:
            with _as_data_error(path):
                file = gzip.open(path) if path.suffix == ".gz" else open(path, "rb")
                files.append(stack.enter_context(file))
                magic = file.read(4)
                if len(magic) < 4 or magic[:3] != b"\0\0\x08":
                    raise DataError(f"{path}: not an IDX file of bytes.")
                shapes.append([int.from_bytes(file.read(4), "big") for _ in range(magic[3])])
                size = math.prod(shapes[-1])
                if size > MAX_BYTES:
                    raise DataError(
                        f"{path}: its header says {size:,} bytes; {MAX_BYTES:,} are allowed."
                    )
                # gzip cannot compress by more than about 1000: such a header is wrong.
                if size > 1100 * path.stat().st_size:
                    raise DataError(f"{path}: too short; its header says {tuple(shapes[-1])}.")
        sizes = [math.prod(shape) for shape in shapes]
        pixels = np.empty(sum(sizes), np.uint8)
        slices = np.split(pixels, np.cumsum(sizes)[:-1])
        list(pool.map(_fill, paths, files, shapes, slices))
    return pixels, shapes


def _fill(path: Path, file: Any, shape: list[int], pixels: NDArray[np.uint8]) -> None:
    with _as_data_error(path):
        found = file.readinto(pixels) if len(pixels) else 0
        found += len(file.read(1))  # one byte more, to detect a file that is too long
    if found != len(pixels):
        raise DataError(f"{path}: {found:,} bytes of data; its header says {tuple(shape)}.")


@contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from error
