"""Arrays in files of NumPy, .npy and .npz, from anybody: nothing is executed, memory is bounded."""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets import DataError
from datasets.files import natural, shorten
from datasets.images import check_file, reason

MAX_HEADER = 1 << 14  # bytes of an array's header; those of images have 128
MAX_RATIO = 100  # unpacked bytes per compressed byte; photographs have 1 to 5, drawn digits 10
FREE_BYTES = 1 << 28  # unpacked bytes allowed in addition, for small files
MAX_ARRAYS = 1000  # in a file or folder

_MAGIC, _ZIP = b"\x93NUMPY", b"PK"
_KINDS = {
    "O": "Python objects, which reading would execute",
    "V": "records",
    "c": "complex numbers",
}
_KINDS |= {"M": "dates", "m": "time spans"}
_DAMAGE = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError),
    *(zlib.error, zipfile.BadZipFile),
)


class StoredArray(NamedTuple):
    """An array that is not read yet: its place, and what its header says.

    member: its name in the zip file ``path``; "" in a file of its own. first: the first byte of the
    elements in ``path``; -1 if they are compressed. header: bytes before them. size: bytes of
    header and elements in ``path``.
    """

    path: Path
    member: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_fortran: bool
    first: int
    header: int
    size: int

    @property
    def place(self) -> str:
        """File and key, for messages."""
        return f"{self.path}: {self.member.removesuffix('.npy')}" if self.member else str(self.path)

    @property
    def about(self) -> str:
        """Type and shape, for messages."""
        return f"{self.dtype} {shorten(str(self.shape))}"

    def load(self, room: int | None = None) -> NDArray[Any]:
        """The array, mapped into memory unless it is compressed; writing to it changes no file.

        Raises DataError for Python objects and other types that hold no numbers or texts, for a
        file that is cut off or damaged, and for an array that takes more memory than ``room``
        bytes, by default the machine's.
        """
        if kind := _KINDS.get("O" if self.dtype.hasobject else self.dtype.kind):
            raise DataError(f"{self.place}: it holds {kind}; expected plain numbers or texts.")
        wanted, is_packed = math.prod(self.shape) * self.dtype.itemsize, self.first < 0
        limit = FREE_BYTES + MAX_RATIO * self.size if is_packed else self.size - self.header
        if min(self.shape, default=1) < 0 or wanted > limit:
            advice = "; if it is whole, save it uncompressed (numpy.savez)" * is_packed
            raise DataError(
                f"{self.place}: its header says {self.about}, which is {shorten(f'{wanted:,}')} "
                f"bytes, but it has {self.size:,}{' compressed' * is_packed}: it is cut off, or "
                f"its header is wrong{advice}."
            )
        if not wanted:
            return np.empty(self.shape, self.dtype)
        if not is_packed:
            if self.member:
                self._check_sum()
            memory = np.memmap(self.path, np.uint8, "c", self.first, (wanted,))
            order: Literal["F", "C"] = "F" if self.is_fortran else "C"
            return np.ndarray(self.shape, self.dtype, memory, order=order)
        if wanted > (room := _memory() if room is None else room):
            raise DataError(
                f"{self.place}: {wanted / 2**30:.1f} GiB do not fit into the {room / 2**30:.1f} "
                "GiB of memory left; save it uncompressed (numpy.savez): then it is mapped."
            )
        return self._unpacked()

    def _check_sum(self) -> None:
        """Raise DataError if the bytes in a zip file have another check sum than it says."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                while stream.read(1 << 20):
                    pass
        except _DAMAGE as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self.place}: it is damaged ({shorten(str(error))}).")

    def _unpacked(self) -> NDArray[Any]:
        array = np.empty(self.shape, self.dtype, "F" if self.is_fortran else "C")
        target = memoryview(array.reshape(-1, order="A").view(np.uint8).data)
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                stream.read(self.header)
                filled = 0
                while piece := stream.read(min(1 << 20, len(target) - filled) or 1):
                    target[filled : filled + len(piece)] = piece  # ValueError for one too many
                    filled += len(piece)
                if filled < len(target):
                    raise ValueError("it is cut off")
        except _DAMAGE as error:
            raise self._damaged(error) from error
        return array


def find_arrays(path: Path, labels: Path | None) -> dict[str, StoredArray]:
    """The arrays of an .npz file, of a folder of .npy files, or of one .npy file, by their keys.

    A single .npy file has the key "images", the .npy file ``labels`` the key "labels". Reads the
    headers only. Raises DataError for a file that cannot be read or is of another format.
    """
    if path.is_dir():
        files = [file for file in path.glob("*.npy") if _is_array(file.name)]
        if len(files) > MAX_ARRAYS:
            raise DataError(f"{path}: it holds {len(files):,} arrays, more than {MAX_ARRAYS:,}.")
        files.sort(key=lambda file: natural(file.name))
        found = {file.stem: _in_file(file) for file in files}
    elif _head(path).startswith(_ZIP):
        found = _in_zip(path)
    else:
        found = {"images": _in_file(path)}
    if labels is not None:
        found["labels"] = _in_file(labels)
    if not found:
        raise DataError(f"{path}: no arrays; expected an .npz file, or a folder of .npy files.")
    return found


def load_together(arrays: Sequence[StoredArray]) -> dict[str, NDArray[Any]]:
    """Load images by their places; unless they are one array of uint8, they are then copied.

    Raises DataError as ``load``, also if all of them and the copy take too much memory.
    """
    room, loaded = _memory(), dict[str, NDArray[Any]]()
    for one in arrays:
        array = loaded[one.place] = one.load(room)
        room -= array.nbytes * (one.first < 0)
    copied = sum(array.size for array in loaded.values())
    if copied > room and (len(loaded) > 1 or array.dtype != np.uint8):
        raise DataError(
            f"{arrays[0].path}: as uint8 the images take {copied / 2**30:.1f} GiB, which do not "
            f"fit into the {room / 2**30:.1f} GiB of memory left; take fewer or smaller images."
        )
    return loaded


def _is_array(name: str) -> bool:
    """Whether a file is an array; ._x.npy is what macOS writes beside x.npy."""
    return name.endswith(".npy") and not name.rpartition("/")[2].startswith(".")


def _head(path: Path) -> bytes:
    try:
        check_file(path)
        with open(path, "rb") as file:
            return file.read(len(_MAGIC))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {reason(error)}.") from error


def _in_file(path: Path) -> StoredArray:
    if not _head(path).startswith(_MAGIC):
        raise DataError(f"{path}: not a file of NumPy; expected .npy or .npz.")
    with open(path, "rb") as file:
        dtype, shape, is_fortran, header = _read_header(file, str(path))
        size = os.fstat(file.fileno()).st_size
    return StoredArray(path, "", dtype, shape, is_fortran, header, header, size)


def _in_zip(path: Path) -> dict[str, StoredArray]:
    found = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            members = [info for info in archive.filelist if _is_array(info.filename)]
            if len(members) > MAX_ARRAYS:
                raise ValueError(f"it holds {len(members):,} arrays, more than {MAX_ARRAYS:,}")
            for info in members:
                if info.filename.removesuffix(".npy") in found:
                    raise ValueError(f"it holds {info.filename} twice")
                with archive.open(info) as stream:
                    head = _read_header(stream, f"{path}: {info.filename.removesuffix('.npy')}")
                first = -1
                if info.compress_type == zipfile.ZIP_STORED:
                    file.seek(info.header_offset + 26)  # two lengths: of the name, of more fields
                    name, more = (int.from_bytes(file.read(2), "little") for _ in range(2))
                    first = info.header_offset + 30 + name + more + head[3]
                    if first - head[3] + info.compress_size > os.fstat(file.fileno()).st_size:
                        raise ValueError(f"{info.filename} is cut off")
                array = StoredArray(
                    path, info.filename, *head[:3], first, head[3], info.compress_size
                )
                found[info.filename.removesuffix(".npy")] = array
    except _DAMAGE as error:
        raise DataError(f"{path}: it is damaged or cut off ({shorten(str(error))}).") from error
    return found


def _read_header(file: IO[bytes], place: str) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Type, shape, whether Fortran's order, and the number of bytes of an array's header."""
    head = io.BytesIO(file.read(MAX_HEADER))
    try:
        version = np.lib.format.read_magic(head)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}, which is for records only")
        read = np.lib.format.read_array_header_1_0
        if version == (2, 0):
            read = np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(head)
    except Exception as error:  # of Python's parser, too: SyntaxError, MemoryError, RecursionError
        raise DataError(f"{place}: its header is damaged ({shorten(str(error))}).") from error
    return dtype, shape, is_fortran, head.tell()


def _memory() -> int:
    """Bytes of main memory; no limit where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62
