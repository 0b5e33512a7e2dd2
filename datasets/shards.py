"""Images packed into a few large tar files, as ``python -m scripts.pack_shards`` writes them."""

import hashlib
import json
import os
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from torch import Tensor

from datasets import BrokenImage, DataError
from datasets.bands import Bits, Channels, Form, check_form, decode_as, recipe_of_form
from datasets.files import PARTS, check_names, missing_folder, shorten, user_path
from datasets.images import check_file, read_file, reason

INDEX = "shards.json"
FORMAT = "images in tar shards, 1"  # the number increases when the format of the index changes

_Types = dict[str, tuple[type, ...]]
_INDEX: _Types = {"format": (str,), "classes": (list,), "shards": (list,), "samples": (list,)}
_SHARD: _Types = {"name": (str,), "size": (int,), "sha256": (str,)}
_SAMPLE: _Types = {
    "id": (str,),
    "label": (int,),
    "part": (str, type(None)),
    "sha256": (str,),
    "shard": (int,),
    "offset": (int,),
    "size": (int,),
}
_SHA256 = re.compile("[0-9a-f]{64}")


def shard_name(number: int) -> str:
    """The file name of a shard, counted from 0."""
    return f"shard-{number:06d}.tar"


class Shards:
    """An ImageFolder packed into ``root/shard-000000.tar`` and so on, with ``shards.json``.

    Ids, labels, splits, digests, pixels and results are the same as with the folder. The tar files
    are in WebDataset's format; they are read at the offsets in the index, in any order, without
    that library. The SHA-256 of each image is checked when it is read.
    Images: (3, H, W) uint8, RGB, or as ``channels`` and ``bits`` say; sizes may differ. Raises
    DataError for a missing or malformed index, and for shards that are missing or of another size
    than in the index.

    root: The folder with shards.json and the tar files, as scripts.pack_shards writes it.
    on_broken: What a file that cannot be decoded does: error ends the run, skip leaves it out.
    decode: fast decodes a JPEG that is much larger than needed at 1/2, 1/4 or 1/8 of its size.
    channels: keep leaves each file its own channels, from 1 to 64; rgb makes each image RGB.
    bits: 16 keeps the values of 16-bit files; 8 keeps their high byte.
    """

    images: Tensor | None = None
    note = ""

    def __init__(
        self,
        root: str,
        on_broken: Literal["error", "skip"] = "error",
        decode: Literal["exact", "fast"] = "exact",
        channels: Channels = "rgb",
        bits: Bits = 8,
    ) -> None:
        folder = user_path(root, "dataset.root")
        if not folder.is_dir():
            raise missing_folder(folder)
        index = _read_index(folder / INDEX)
        samples = index["samples"]
        self.root = folder
        self.on_broken = on_broken
        self.decoding = decode
        self.form = Form(channels, bits)
        self.classes = tuple(index["classes"])
        self.labels: tuple[int, ...] = tuple(sample["label"] for sample in samples)
        self.ids: tuple[str, ...] = tuple(sample["id"] for sample in samples)
        self.parts: tuple[str | None, ...] = tuple(sample["part"] for sample in samples)
        self.remarks = array("H", bytes(2 * len(samples)))  # as those of ImageFiles
        names = [self.classes[label] for label in self.labels]
        check_names(folder / INDEX, names, lambda number: self.ids[number])
        check_form(self.form, self.ids)
        self._digests: tuple[str, ...] = tuple(sample["sha256"] for sample in samples)
        self.sizes = np.array(  # bytes of each file
            [sample["size"] for sample in samples], np.int64
        )
        # Of each sample: number of the shard, first byte, number of bytes.
        self._places = tuple(
            (sample["shard"], sample["offset"], sample["size"]) for sample in samples
        )

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Tensor:
        """Decode one image: (3, H, W) uint8. Raises BrokenImage, also if its bytes have changed."""
        return self.decode(index, self.content(index))

    def content(self, index: int) -> bytes:
        """The bytes of one image file. Raises BrokenImage, also if they have changed."""
        shard, offset, size = self._places[index]
        path = self.root / shard_name(shard)
        try:
            check_file(path)
            with open(path, "rb") as file:  # per read: safe in any thread and process
                file.seek(offset)
                content = file.read(size)
        except (OSError, ValueError) as error:
            raise BrokenImage(self._name(index), reason(error)) from error
        if hashlib.sha256(content).hexdigest() != self._digests[index]:
            raise BrokenImage(self._name(index), f"its bytes are not those that {INDEX} tells of")
        return content

    def decode(self, index: int, content: bytes, at_least: int = 0) -> Tensor:
        """Decode what ``content`` returned: (3, H, W) uint8; as ``decode`` of ImageFiles."""
        image, self.remarks[index] = decode_as(self.form, content, self._name(index), at_least)
        return image

    @property
    def recipe(self) -> str:
        """All that decides the pixels of a content, besides ``at_least``."""
        return recipe_of_form(self.form, self.decoding, self.ids)

    def _name(self, index: int) -> str:
        return f"{self.root / shard_name(self._places[index][0])}: {self.ids[index]}"

    def digest(self, index: int) -> str:
        """SHA-256 (hex) of the image file's bytes, from the index."""
        return self._digests[index]

    def digests(self, indices: Sequence[int]) -> list[str]:
        """``digest`` of each index."""
        return [self._digests[index] for index in indices]


def _read_index(path: Path) -> dict[str, Any]:
    """The index. Every value is checked, because the file may be untrusted."""

    def fail(what: str) -> NoReturn:
        raise DataError(f"{path}: {what}. Pack anew: python -m scripts.pack_shards.")

    if not path.exists():
        fail(f"no such file; expected {shard_name(0)} and so on, and {INDEX} beside them")
    try:
        index: dict[str, Any] = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        fail(f"not a whole JSON file ({shorten(str(error))})")
    if not _is(index, _INDEX) or index["format"] != FORMAT:
        fail(f"not an index of shards in the form of {FORMAT!r}")

    classes, shards, samples = index["classes"], index["shards"], index["samples"]
    if not classes or not all(type(name) is str and name for name in classes):
        fail("classes must be names")
    if len(set(classes)) < len(classes):
        fail("two classes have one name")
    for number, shard in enumerate(shards):
        if not _is(shard, _SHARD) or shard["name"] != shard_name(number):
            fail(f"shard {number} must be {shard_name(number)}, with a size and a SHA-256")
        _check_shard(path.parent / shard["name"], shard["size"])
    for number, sample in enumerate(samples):
        if not _is(sample, _SAMPLE):
            fail(f"sample {number} must have {', '.join(_SAMPLE)}")
        if not _is_relative(sample["id"]) or not _is_file_name(sample["id"]):
            fail(f"sample {number}: id {shorten(sample['id'])!r} is not a relative path")
        if not 0 <= sample["label"] < len(classes):
            fail(f"sample {number}: its label is none of the {len(classes)} classes")
        if sample["part"] not in (None, *PARTS.values()):
            fail(f"sample {number}: unknown part {shorten(sample['part'])!r}")
        if not _SHA256.fullmatch(sample["sha256"]):
            fail(f"sample {number}: {shorten(sample['sha256'])!r} is not a SHA-256")
        if not 0 <= sample["shard"] < len(shards):
            fail(f"sample {number}: its shard is none of the {len(shards)}")
        end = sample["offset"] + sample["size"]
        if not 0 <= sample["offset"] < end <= shards[sample["shard"]]["size"]:
            fail(f"sample {number}: lies outside of its shard")
    if not samples:
        fail("no samples")
    if len({sample["id"] for sample in samples}) < len(samples):
        fail("two samples have one id")
    return index


def _is_file_name(text: str) -> bool:
    """Whether ``text`` can name a file: some lone surrogates stand for bytes, others cannot."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _check_shard(path: Path, size: int) -> None:
    try:
        check_file(path)
        found = os.path.getsize(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: {reason(error)}; {INDEX} lists it: copy it here again."
        ) from error
    if found != size:
        stated = shorten(f"{size:,}")
        raise DataError(
            f"{path}: {found:,} bytes, but {INDEX} says {stated}: cut off, or of another packing; "
            f"copy both again."
        )


def _is(value: object, types: _Types) -> bool:
    """Whether ``value`` is a dict with exactly these keys and types; a bool is not an int here."""
    return (
        isinstance(value, dict)
        and value.keys() == types.keys()
        and all(type(value[key]) in allowed for key, allowed in types.items())
    )


def _is_relative(path: str) -> bool:
    pieces = path.split("/")
    return "\0" not in path and not {"", ".", ".."} & set(pieces)
