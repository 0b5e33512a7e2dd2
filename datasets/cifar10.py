"""CIFAR-10, read from its official python batches."""

import hashlib
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision

from datasets import DataError
from datasets.files import user_path
from datasets.memory import ImagesInMemory, absent, fetch_into

_OFFICIAL = torchvision.datasets.CIFAR10
BATCHES = {name: md5 for name, md5 in (*_OFFICIAL.train_list, *_OFFICIAL.test_list)}
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


class CIFAR10(ImagesInMemory):
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 32 x 32, 10 classes.

    Reads ``root/cifar-10-batches-py``; if batches are missing and ``download`` is set, torchvision
    fetches ``cifar-10-python.tar.gz``, or unpacks the one that lies in ``root``.
    Images: (3, 32, 32) uint8, RGB. Raises DataError for batches that are absent or not the official
    ones: they are pickles, and unpickling a file of unknown content would run its code.
    """

    def __init__(self, root: str = "data", download: bool = True) -> None:
        folder = user_path(root, "dataset.root") / _OFFICIAL.base_folder
        if missing := [name for name in BATCHES if not os.path.isfile(folder / name)]:
            _fetch(folder, missing, download)
        batches = {name: _read_batch(folder / name, md5) for name, md5 in BATCHES.items()}
        images = [torch.from_numpy(batch["data"]) for batch in batches.values()]
        labels = [label for batch in batches.values() for label in batch["labels"]]
        super().__init__(
            torch.cat(images).view(-1, 3, 32, 32),
            labels,
            len(labels) - len(batches["test_batch"]["labels"]),
            CLASSES,
        )


def _fetch(folder: Path, missing: list[str], download: bool) -> None:
    if not download:
        raise absent(folder, missing, [_OFFICIAL.url], "download is off")
    try:
        fetch_into(folder, lambda: _OFFICIAL(str(folder.parent), download=True))
    except Exception as error:  # no network, disk full, a server's odd answer: the cure is the same
        reason = f"downloading failed: {error}"
        raise absent(folder.parent, [_OFFICIAL.filename], [_OFFICIAL.url], reason) from error


def _read_batch(path: Path, md5: str) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise DataError(
            f"{path}: not the official CIFAR-10 batch (its MD5 is not {md5}); "
            f"delete it to have it downloaded again."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy on the old way in which these files say `align`
        batch: dict[str, Any] = pickle.loads(content, encoding="latin1")  # noqa: S301 - checked above
    return batch
