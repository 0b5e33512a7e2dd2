"""Parquet files from anybody: opened with limits, and read row by row in bounded memory."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets import DataError
from datasets.files import shorten
from datasets.images import check_file, reason

# Nothing here reads the metadata of a column of a row group: pyarrow (26) ends the process with
# "terminate called" where they are damaged. The same damage is an exception when data is read.
MAX_FOOTER = 1 << 24  # bytes of a file's metadata; those of 1,000 row groups have 300,000
MAX_LIST = 10_000  # row groups, or columns, of a file
ROW_BYTES = 16  # of a file, at least, for each row; the smallest images have 35
FREE_ROWS = 10_000  # rows allowed in addition, for compressed and repeated ones
BATCH_BYTES = 1 << 18  # of images that are read at a time, about
BATCH_ROWS = 16  # at most: one image of a dictionary may stand in many rows
LABELS = 1024  # labels that are read at a time
KEPT_BYTES = 1 << 26  # of images that were read along with others, in each process
OPEN = 4  # row groups that a process reads at a time
_CHANGED = "it has changed since it was opened"
FAULTS = (OSError, ValueError, MemoryError, NotImplementedError, StopIteration)


class ParquetPart(NamedTuple):
    """A file that is checked: its metadata, and size, times (ns) and inode when it was opened."""

    path: Path
    metadata: Any
    state: tuple[int, int, int, int]


def open_part(path: Path) -> ParquetPart:
    """Check a file's ends and metadata. Raises DataError for what is no sound Parquet file."""
    try:
        check_file(path)
        state = _state(path)
        with open(path, "rb") as file:
            ends = file.read(4)
            file.seek(max(state[0] - 8, 0))
            ends += file.read(8)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {reason(error)}.") from error
    footer = int.from_bytes(ends[4:8], "little")
    if len(ends) < 12 or ends[:4] != b"PAR1" or ends[8:] != b"PAR1" or footer + 12 > state[0]:
        raise DataError(f"{path}: it is cut off, or not a Parquet file.")
    if footer > MAX_FOOTER:
        raise DataError(
            f"{path}: {footer:,} bytes of metadata; expected at most {MAX_FOOTER:,}: write it with "
            "fewer row groups or columns."
        )
    try:
        metadata = open_file(ParquetPart(path, None, state)).metadata
    except FAULTS as error:
        raise DataError(f"{path}: {_told(error)}.") from error
    rows = metadata.num_rows
    of_groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if min(of_groups, default=0) < 0 or sum(of_groups) != rows:
        raise DataError(f"{path}: {rows:,} rows, but its row groups have {sum(of_groups):,}.")
    if rows > FREE_ROWS + state[0] // ROW_BYTES:
        raise DataError(f"{path}: {rows:,} rows in {state[0]:,} bytes cannot be images.")
    return ParquetPart(path, metadata, state)


def open_file(part: ParquetPart, dictionaries: Sequence[str] = ()) -> Any:
    """A pyarrow.parquet.ParquetFile. ``dictionaries``: leaves whose texts are read once each.

    Raises what pyarrow does, one of FAULTS, also if the file has changed since it was checked.
    """
    import pyarrow.parquet  # Parquet has tried it

    if _state(part.path) != part.state:
        raise ValueError(_CHANGED)
    return pyarrow.parquet.ParquetFile(
        str(part.path),
        metadata=part.metadata,
        read_dictionary=list(dictionaries) or None,
        buffer_size=1 << 20,  # a page is read at a time, not a whole row group
        pre_buffer=False,  # which would use threads that a fork lacks
        thrift_string_size_limit=MAX_FOOTER,
        thrift_container_size_limit=MAX_LIST,
    )


def leaves_of(part: ParquetPart, column: str) -> list[str]:
    """The paths of the leaves of a column, such as image.bytes and image.path."""
    schema = part.metadata.schema
    paths = [schema.column(number).path for number in range(len(schema))]
    return [path for path in paths if path == column or path.startswith(f"{column}.")]


def read_column(part: ParquetPart, column: str) -> Iterator[Any]:
    """The arrays (pyarrow) of a whole column, one after the other; texts are dictionaries.

    Raises DataError for data that cannot be read.
    """
    leaves = leaves_of(part, column)
    schema = part.metadata.schema
    texts = [
        leaf
        for number in range(len(schema))
        if (leaf := schema.column(number).path) in leaves
        and schema.column(number).physical_type == "BYTE_ARRAY"
    ]
    try:
        file = open_file(part, texts)
        for batch in file.iter_batches(batch_size=LABELS, columns=leaves, use_threads=False):
            yield _column(batch, column)
    except FAULTS as error:
        raise DataError(f"{part.path}: column {column!r}: {_told(error)}.") from error


class Contents:
    """The values of one binary column, in any order, thread and process.

    A row group is read from its beginning, in batches, and what was read along is kept for a while:
    rows in order are each read once. Memory: about KEPT_BYTES and OPEN pages.
    """

    def __init__(self, parts: Sequence[ParquetPart], column: str, leaf: str) -> None:
        self._parts, self._column, self._leaf = parts, column, leaf
        self._groups: list[tuple[int, int, int]] = []  # file, row group in it, rows in a batch
        rows, means = [], []
        for number, part in enumerate(parts):
            mean = max(part.state[0] // max(part.metadata.num_rows, 1), 1)
            for group in range(part.metadata.num_row_groups):
                rows.append(part.metadata.row_group(group).num_rows)
                means.append(mean)
                self._groups.append((number, group, min(max(BATCH_BYTES // mean, 1), BATCH_ROWS)))
        self._starts = np.cumsum([0, *rows])
        self._rows, self._means = np.array(rows, np.int64), np.array(means, np.int64)
        self._mine = _Mine()

    def states(self) -> NDArray[np.int64]:
        """(rows, 4): bytes on average, times of content and any change (ns), a number of the rest.

        As long as its state stays, a row has the same value.
        """
        files = []
        for part in self._parts:
            size, content, change, inode = part.state
            text = f"{size} {inode} {self._column!r} {self._leaf}"
            files.append((content, change, int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)))
        table = [
            (mean, *files[group[0]])
            for mean, group in zip(self._means.tolist(), self._groups, strict=True)
        ]
        return np.repeat(np.array(table, np.int64).reshape(-1, 4), self._rows, axis=0)

    def read(self, row: int) -> bytes | None:
        """The value of a row of all files, None if there is none. Raises DataError."""
        mine = self._mine  # once: another thread may replace it
        if mine.process != os.getpid():  # in a fork: another thread may have held the lock
            mine = self._mine = _Mine()
        with mine.lock:
            return self._read(mine, row)

    def _read(self, mine: "_Mine", row: int) -> bytes | None:
        number = int(np.searchsorted(self._starts, row, "right")) - 1
        file, group, size = self._groups[number]
        batch, place = divmod(row - int(self._starts[number]), size)
        if (number, batch) not in mine.kept:
            following, batches = mine.open.pop(number, (0, None))
            try:
                if batches is None or following > batch:
                    opened = open_file(self._parts[file])
                    batches = opened.iter_batches(size, [group], [self._leaf], use_threads=False)
                    following = 0
                if _state(self._parts[file].path) != self._parts[file].state:
                    raise ValueError(_CHANGED)
                while following <= batch:
                    mine.keep((number, following), _values(next(batches), self._column))
                    following += 1
            except FAULTS as error:
                raise DataError(_told(error)) from error
            mine.open[number] = following, batches
            while len(mine.open) > OPEN:
                mine.open.popitem(last=False)
        mine.kept.move_to_end((number, batch))
        value: bytes | None = mine.kept[number, batch][place].as_py()
        return value


class _Mine:
    """What one process has open and keeps."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.open: OrderedDict[int, tuple[int, Any]] = OrderedDict()  # group -> its next batch
        self.kept: OrderedDict[tuple[int, int], Any] = OrderedDict()  # (group, batch) -> values
        self.bytes = 0

    def __reduce__(self) -> tuple[type["_Mine"], tuple[()]]:
        return _Mine, ()  # another process opens its own

    def keep(self, key: tuple[int, int], values: Any) -> None:
        """Keep a batch; those that were not used for longest go, but not the last one."""
        if key in self.kept:
            return
        self.kept[key] = values
        self.bytes += values.nbytes
        while self.bytes > KEPT_BYTES and len(self.kept) > 1:
            _, old = self.kept.popitem(last=False)
            self.bytes -= old.nbytes


def _column(batch: Any, name: str) -> Any:
    """A column of a batch: beside ``label`` pyarrow also reads a column called ``label.name``."""
    if (at := batch.schema.get_field_index(name)) < 0:
        raise ValueError(f"several columns are called {name!r}")
    return batch.column(at)


def _values(batch: Any, name: str) -> Any:
    """The binary values of a batch's column, also where they are in a struct."""
    column = _column(batch, name)
    while column.type.num_fields:
        (column,) = column.flatten()
    return column


def _state(path: Path) -> tuple[int, int, int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _told(error: Exception) -> str:
    if isinstance(error, StopIteration):
        return "a row group has fewer rows than its metadata say"
    if isinstance(error, MemoryError):
        return f"it asks for too much memory ({shorten(str(error))})"
    why = " ".join(reason(error).split())
    return f"it is damaged, or cannot be read ({shorten(why)})"
