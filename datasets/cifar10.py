"""CIFAR-10, read from its official python batches without running code from the pickles."""

import hashlib
import io
import os
import pickle
import secrets
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from datasets import DataError
from datasets.archive import unpack
from datasets.files import user_path
from datasets.memory import ImagesInMemory, absent, fetch_into
from datasets.temporary import unfinished

_OFFICIAL = torchvision.datasets.CIFAR10
URL = _OFFICIAL.url
ARCHIVE_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
BATCHES = {name: md5 for name, md5 in (*_OFFICIAL.train_list, *_OFFICIAL.test_list)}
CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())


class CIFAR10(ImagesInMemory):
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 32 x 32, 10 classes.

    Reads ``root/cifar-10-batches-py``. Missing batches are unpacked from the archive
    ``cifar-10-python.tar.gz`` in ``root``, which must have the official SHA-256. If the archive is
    missing too, it is downloaded if ``download`` is set.
    Images: (3, 32, 32) uint8, RGB. Raises DataError for batches that are missing or not official.

    root: The folder that holds cifar-10-batches-py, or the archive cifar-10-python.tar.gz.
    download: Fetch the archive (170 MB) if neither is there; its SHA-256 is checked.
    """

    def __init__(self, root: str = "data", download: bool = True) -> None:
        folder = user_path(root, "dataset.root") / _OFFICIAL.base_folder
        if missing := [name for name in BATCHES if not os.path.isfile(folder / name)]:
            _complete(folder, missing, download)
        images: list[Tensor] = []
        labels: list[int] = []
        for name, md5 in BATCHES.items():
            num_train = len(labels)  # the test batch is the last one
            batch_images, batch_labels = _read_batch(folder / name, md5)
            images.append(batch_images)
            labels += batch_labels
        super().__init__(torch.cat(images).view(-1, 3, 32, 32), labels, num_train, CLASSES)


def _complete(folder: Path, missing: list[str], download: bool) -> None:
    """Unpack the missing batches from the archive beside ``folder``; download it if necessary."""
    archive = folder.parent / _OFFICIAL.filename
    if not os.path.isfile(archive):
        if not download:
            raise absent(folder, missing, [URL], "download is off")
        try:
            fetch_into(folder.parent, lambda: _download(archive))
        except Exception as error:  # no network, a full disk, an odd server answer: same advice
            reason = f"downloading failed: {error}"
            raise absent(folder.parent, [archive.name], [URL], reason) from error
    unpacked = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"
    try:
        with unfinished(unpacked):
            unpack(archive, unpacked, ARCHIVE_SHA256)
            folder.mkdir(exist_ok=True)
            for name in missing:
                (unpacked / folder.name / name).replace(folder / name)
    except OSError as error:
        raise DataError(
            f"{folder}: {archive.name} cannot be unpacked there: {error.strerror}."
        ) from error


def _download(archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    # Writes a temporary file in the same folder and renames it after checking its SHA-256.
    torch.hub.download_url_to_file(URL, str(archive), hash_prefix=ARCHIVE_SHA256)


def _read_batch(path: Path, md5: str) -> tuple[Tensor, list[int]]:
    """Images (N, 3072) uint8 and labels of one batch."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise DataError(
            f"{path}: not the official CIFAR-10 batch (its MD5 is not {md5}); "
            f"delete it to have it downloaded again."
        )
    try:
        batch = _Batch(io.BytesIO(content), encoding="bytes").load()
        _, (count, length), dtype, fortran, pixels = batch[b"data"].state
        labels = batch[b"labels"]
        plain = dtype.state[0] == b"u1" and not fortran and len(pixels) == count * length
        known = len(labels) == count and all(type(k) is int and 0 <= k < 10 for k in labels)
        if not plain or not known or length != 3072:
            raise ValueError("not 3072 bytes and a label from 0 to 9 for each image")
        return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(count, length), labels
    except Exception as error:  # an untrusted pickle can fail in any way
        raise DataError(f"{path}: not a batch of CIFAR-10: {error}.") from error


class _Inert:
    """Stand-in for a NumPy object; keeps the arguments it would be made from."""

    def __init__(self, *state: Any) -> None:
        self.state = state

    def __setstate__(self, state: Any) -> None:
        if not self.state or isinstance(self.state[0], type):  # an array: this state is its content
            self.state = state


class _Batch(pickle.Unpickler):
    """Unpickles a batch with stand-ins for the three NumPy names in it.

    A pickle can only run functions that ``find_class`` returns, so it can run no other code.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for one of the three names; raises UnpicklingError for any other."""
        if (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }:
            return _Inert
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no image or label needs")
