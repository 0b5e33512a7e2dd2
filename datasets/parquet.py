"""Images in Parquet files, as Hugging Face's datasets are."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datasets import BrokenImage, DataError
from datasets.files import PARTS, missing_folder, natural, user_path
from datasets.images import decode_and_tell, decoders
from datasets.parquet_columns import (
    Values,
    find_columns,
    labels_of,
    read_texts,
    read_values,
)
from datasets.parquet_file import Contents, open_part
from datasets.walk import walk
from datasets.words import counted

OLDEST = 26  # pyarrow; older ones crash on a schema that is deeply nested
_LOOKED_AT = 16  # rows
_EMBED = (
    "The library datasets writes only the paths of local files unless it is told to embed them: "
    "from datasets.table import embed_table_storage; "
    'data.with_format("arrow").map(embed_table_storage, batched=True).to_parquet(FILE), or '
    "push_to_hub with embed_external_files=True, its default."
)


class Parquet:
    """Images in one Parquet file or in all below a folder, as Hugging Face's datasets are.

    A file's name tells its split: train-00000-of-00002.parquet, validation-..., test-..., or the
    folder that it lies in. The images are the bytes of image files: a column of binary, or of
    structs with bytes. Labels are numbers, named by ClassLabel if they are one, texts, or lists of
    them: several labels an image. Lists of one length that hold only 0 and 1 are the shares of the
    classes. Null, -1 of a ClassLabel and a text such as nan is no label. Without image_column and
    label_column the marked or usual ones are found, and a note tells them. Needs pyarrow.
    Images: (3, H, W) uint8, RGB, sizes may differ. Raises DataError for files that are damaged,
    that claim what they cannot hold, or that hold paths instead of images.

    root: The .parquet file, or a folder with such files in it or below.
    image_column: The column of the images.
    label_column: The column of the labels.
    on_broken: What an image that cannot be decoded, or a row without label, does: error ends the
        run, skip leaves it out.
    decode: fast decodes a JPEG that is much larger than needed at 1/2, 1/4 or 1/8 of its size.
    """

    images: Tensor | None = None

    def __init__(
        self,
        root: str,
        image_column: str | None = None,
        label_column: str | None = None,
        on_broken: Literal["error", "skip"] = "error",
        decode: Literal["exact", "fast"] = "exact",
    ) -> None:
        try:
            import pyarrow.parquet

            version = int(pyarrow.__version__.partition(".")[0])
        except ImportError:
            version = 0
        if version < OLDEST:
            raise ImportError(
                f'Parquet needs pyarrow {OLDEST} or newer: pip install -e ".[parquet]"'
            )
        self.root = user_path(root, "dataset.root")
        self.on_broken, self.decoding = on_broken, decode
        names, notes = _find_files(self.root)
        self._files = [open_part(self.root / name) for name in names]
        columns = find_columns(self._files, image_column, label_column)
        notes.append(columns.note)
        counts = [file.metadata.num_rows for file in self._files]
        self._contents = Contents(self._files, columns.image, columns.leaf)
        self._check_embedded(columns.image, min(sum(counts), _LOOKED_AT))
        parts = [_part_of(name) for name in names]
        values = read_values(self._files, columns)
        self._rows, told = self._with_label(values, np.repeat(np.arange(len(names)), counts), parts)
        starts = np.cumsum([0, *counts])
        file_of = np.searchsorted(starts, self._rows, "right") - 1
        within = (self._rows - starts[file_of]).tolist()
        self.ids = tuple(
            f"{names[file] or self.root.name}/{row}"
            for file, row in zip(file_of.tolist(), within, strict=True)
        )
        self.parts = tuple(parts[file] for file in file_of.tolist())
        found = labels_of(values, columns, self.root, self._place)
        self.classes, self.labels = found.classes, found.labels
        self.note = "\n".join(filter(None, [*notes, *told, found.note]))
        self.remarks = bytearray(len(self.ids))  # as those of ImageFiles

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Tensor:
        """Decode one image: (3, H, W) uint8. Raises BrokenImage."""
        return self.decode(index, self.content(index))

    def content(self, index: int) -> bytes:
        """The bytes of one image file. Raises BrokenImage, also if its Parquet file has changed."""
        try:
            content = self._contents.read(int(self._rows[index]))
        except DataError as error:
            raise BrokenImage(self._place(index), str(error)) from error
        if content is None:
            raise BrokenImage(self._place(index), "no bytes: null, or a path only")
        return content

    def decode(self, index: int, content: bytes, at_least: int = 0) -> Tensor:
        """Decode what ``content`` returned: (3, H, W) uint8; as ``decode`` of ImageFiles."""
        image, self.remarks[index] = decode_and_tell(content, self._place(index), at_least)
        return image

    @property
    def recipe(self) -> str:
        """All that decides the pixels of a content, besides ``at_least``."""
        return f"{self.decoding} decoding by {decoders()}"

    def digest(self, index: int) -> str:
        """SHA-256 (hex) of the image file's bytes. Raises BrokenImage."""
        return hashlib.sha256(self.content(index)).hexdigest()

    def digests(self, indices: Sequence[int]) -> None:
        """None: each digest needs its image to be read."""

    def states(self) -> NDArray[np.int64]:
        """(N, 4): as long as it stays, a sample's content does; the first is its bytes, about."""
        return self._contents.states()[self._rows]

    def column(self, name: str) -> list[str]:
        """The text of another column for each sample, such as a patient.

        Null and NaN are "". Raises DataError if there is no such column of texts or numbers.
        """
        texts = [text for file in self._files for text in read_texts(file, name)]
        return [texts[row] for row in self._rows.tolist()]

    def _check_embedded(self, column: str, rows: int) -> None:
        """Raise DataError if the first rows have no bytes of images."""
        try:
            is_empty = all(self._contents.read(row) is None for row in range(rows))
        except DataError:
            return  # it is a broken image, and told when it is met
        if rows and is_empty:
            raise DataError(
                f"{self.root}: the column {column!r} holds no bytes of images. {_EMBED}"
            )

    def _place(self, index: int) -> str:
        """File and row, for messages."""
        return f"{self.root.parent if self.root.is_file() else self.root}/{self.ids[index]}"

    def _with_label(
        self, values: Values, file_of: NDArray[np.int64], parts: Sequence[str | None]
    ) -> tuple[NDArray[np.int64], list[str]]:
        """The rows that have a label, and notes on those that do not."""
        is_labelled, notes = values.lengths >= 0, []
        if len(is_labelled) != len(file_of):
            raise DataError(f"{self.root}: {len(is_labelled):,} labels for {len(file_of):,} rows.")
        for part in dict.fromkeys(parts):
            rows = np.flatnonzero(np.array([parts[k] == part for k in range(len(parts))])[file_of])
            without = int((~is_labelled[rows]).sum())
            if without and self.on_broken == "error" and (part is None or without < len(rows)):
                first = rows[~is_labelled[rows]][0]
                file = int(file_of[first])
                row = first - int(np.argmax(file_of == file))
                raise DataError(
                    f"{self._files[file].path}: row {row} has no label ({without:,} such rows in "
                    "all; null, -1 of a ClassLabel and texts such as 'nan' are none); leave them "
                    "out with dataset.on_broken=skip."
                )
            if without:
                notes.append(
                    f"{counted(without, 'row')} of {part or 'the data'} without label: left out"
                )
        if not is_labelled.any():
            raise DataError(f"{self.root}: no row has a label.")
        return np.flatnonzero(is_labelled), notes


def _find_files(root: Path) -> tuple[list[str], list[str]]:
    """The Parquet files below ``root``, "" for itself; and notes on those that are left out."""
    if root.is_file():
        return [""], []
    if not root.is_dir():
        raise missing_folder(root)
    found = walk(str(root), frozenset({".parquet"}))
    if found.unreadable:
        error = found.unreadable[0]
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}.")
    circles, broken = (
        found.left_out.get(kind, []) for kind in ("links in a circle", "broken links")
    )
    files = [Path(path) for path in (*found.images, *broken) if path.lower().endswith(".parquet")]
    names = [file.relative_to(root).as_posix() for file in files]
    notes = [f"left out {counted(len(circles), 'link')} in a circle: {', '.join(circles[:5])}"]
    notes *= bool(circles)
    if not names:
        raise DataError(f"{root}: no .parquet files in this folder or below.")
    names.sort(key=natural)
    if not any(map(_part_of, names)):
        return names, notes
    used, left = [n for n in names if _part_of(n)], [n for n in names if not _part_of(n)]
    note = f"left out {counted(len(left), 'file')} that no split names: {', '.join(left[:5])}"
    return used, [*notes, *[note] * bool(left)]


def _part_of(name: str) -> str | None:
    """The split of a file: the first word of its name, or a folder that it lies in."""
    *folders, file = name.split("/")
    words = [re.split(r"[-_.]", file)[0], *reversed(folders)]
    return next((PARTS[word.lower()] for word in words if word.lower() in PARTS), None)
