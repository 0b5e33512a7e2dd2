"""A folder of pictures that belong to no class: ``dataset.unknown``."""

import hashlib
from collections.abc import Mapping

from datasets import BrokenImage, DataError
from datasets.files import user_path
from datasets.images import read_file
from datasets.walk import describe_left_out, walk
from datasets.words import counted

KEY = "dataset.unknown"
_SHOWN = 3  # paths in a message


def unknown_images(
    root: str, more: frozenset[str], digests: Mapping[str, str] | None
) -> tuple[list[str], list[str]]:
    """Paths of the images in and below the folder ``root``, in natural order, and notes on them.

    more: suffixes of images beside the usual ones. digests: the id of each image of the dataset by
    the SHA-256 of its content; None if they are not known, so that nothing is compared. Raises
    DataError if the folder is none, holds no image, cannot be read, or holds an image of the
    dataset: that one has a class.
    """
    folder = user_path(root, KEY)
    if not folder.is_dir():
        raise DataError(f"{KEY}: {folder} is no folder; expected one with images of no class.")
    images, left_out, unreadable = walk(str(folder), more)
    if unreadable:
        first = f"{unreadable[0].filename}: {unreadable[0].strerror}"
        raise DataError(f"{KEY}: {counted(len(unreadable), 'folder')} cannot be read ({first}).")
    if not images:
        raise DataError(f"{KEY}: {folder} holds no images.")
    notes = [f"{KEY}: {counted(len(images), 'image')} in {folder}; none is trained on"]
    if text := describe_left_out(left_out):
        notes.append(f"{KEY}: {text}")
    if digests is None:
        notes.append(f"{KEY}: not compared with the dataset, whose contents are not read")
    elif ours := _of_the_dataset(images, digests):
        shown = ", ".join(f"{path} is {name}" for path, name in ours[:_SHOWN])
        more_of_them = f" and {len(ours) - _SHOWN:,} more" * (len(ours) > _SHOWN)
        are = "is" if len(ours) == 1 else "are"
        raise DataError(
            f"{KEY}: {counted(len(ours), 'image')} of {len(images):,} {are} also in the "
            f"dataset: {shown}{more_of_them}. Take them out of {folder}, or out of the dataset."
        )
    return images, notes


def _of_the_dataset(images: list[str], digests: Mapping[str, str]) -> list[tuple[str, str]]:
    """(path, id in the dataset) of each image with the content of an image of the dataset."""
    found = []
    for path in images:
        try:
            digest = hashlib.sha256(read_file(path)).hexdigest()
        except BrokenImage:  # a broken one is told when it is used
            continue
        if digest in digests:
            found.append((path, digests[digest]))
    return found
