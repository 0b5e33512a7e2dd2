"""Prepared images of one recipe, found by the SHA-256 of their file, in memory maps.

A pool is a folder of the store, or lies in memory only. It consists of segments: NAME.pixels has
the images one after the other, NAME.records a RECORD of each, NAME.json the sizes and digests of
both. The manifest NAME.json is written last, and nothing is changed afterwards. So a segment is
complete, or is not there. Each process of the machine maps the same pages.
"""

import errno
import hashlib
import json
import mmap
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.process.lock import PLAIN_FILE, hold
from trainer.run.disk import MINUTE, append, flush_file, remove_temporary, write_file

FORMAT = 1
ABOUT = "about.json"  # what a pool's images are; its time is that of the last use
# shape: (crops, C, H, W), or (0, C, H, W). offset: the first byte; -1 if only checked, not kept.
# layout: LAST if the memory has the channels of a pixel together, (H, W, C); WIDE for uint16.
RECORD = np.dtype(
    [
        ("digest", "u1", 32),
        ("shape", "<i4", 4),
        ("offset", "<i8"),
        ("remark", "<u2"),
        ("layout", "u1"),
    ]
)
LAST, WIDE = 1, 2
# What reading a damaged segment raises; a file of it may also be absent, or a folder or a link.
DAMAGE = (ValueError, KeyError, TypeError, RecursionError, FileNotFoundError, IsADirectoryError)
Records = NDArray[np.void]
Digests = NDArray[np.uint8]  # (N, 32)
Chunk = tuple[int, int, str]  # first byte, number of bytes, SHA-256


def as_digests(texts: Sequence[str]) -> Digests:
    """Digests in hex as (N, 32) uint8; the hash of other texts, which a dataset may give."""
    try:
        return np.frombuffer(bytes.fromhex("".join(texts)), np.uint8).reshape(len(texts), 32).copy()
    except ValueError:
        hashed = [hashlib.sha256(text.encode()).digest() for text in texts]
        return np.frombuffer(b"".join(hashed), np.uint8).reshape(-1, 32).copy()


def image_bytes(records: Records) -> NDArray[np.int64]:
    """Bytes of each image."""
    sizes: NDArray[np.int64] = records["shape"].astype(np.int64).clip(min=1).prod(axis=1)
    return sizes << (records["layout"] & WIDE > 0)


class Segment:
    """A segment that is being written, by several processes at once."""

    def __init__(self, folder: Path | None) -> None:
        """``folder`` None: in memory only."""
        self.folder, self.name = folder, secrets.token_hex(8)
        self._file = self._new_file()
        self._own: tuple[int, int] | None = None  # process, and its own descriptor

    def _new_file(self) -> IO[bytes]:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = open(self.folder / f"{self.name}.pixels", "xb+", buffering=0)
            with suppress(OSError):  # a file system without locks
                hold(file)
            return file
        if sys.platform == "linux":
            return os.fdopen(os.memfd_create("images"), "rb+", buffering=0)
        return tempfile.TemporaryFile(buffering=0)

    def append(self, data: bytes | memoryview) -> int:
        """Write ``data`` behind all else and return its first byte's place. Raises OSError."""
        if sys.platform != "linux":  # where one process writes
            return append(self._file.fileno(), data)
        if self._own is None or self._own[0] != os.getpid():
            self._own = os.getpid(), self._descriptor_at_end()
        return append(self._own[1], data)

    def _descriptor_at_end(self) -> int:
        """A descriptor with an own position, which writes at the end of the file."""
        if self.folder is not None:
            path = str(self.folder / f"{self.name}.pixels")
        else:
            path = f"/dev/fd/{self._file.fileno()}"
        return os.open(path, os.O_WRONLY | os.O_APPEND | (PLAIN_FILE if self.folder else 0))

    def commit(self, records: Records, chunks: Iterable[Chunk]) -> None:
        """Make the segment last: pixels, records and then the manifest. Raises OSError."""
        if self.folder is None:
            return
        flush_file(self._file.fileno())
        content = records.tobytes()
        write_file(self.folder / f"{self.name}.records", content)
        manifest = {
            "format": FORMAT,
            "records": hashlib.sha256(content).hexdigest(),
            "pixels": sorted(chunks),
            "state": _state(self.folder / f"{self.name}.pixels"),
        }
        write_file(self.folder / f"{self.name}.json", json.dumps(manifest))

    def map(self) -> Tensor:
        """All bytes so far, (size,) uint8."""
        return _map(self._file)

    def close(self) -> None:
        """Close the files. Pages that are mapped stay."""
        if self._own is not None and self._own[0] == os.getpid():
            os.close(self._own[1])
        self._own = None
        self._file.close()

    def discard(self) -> None:
        """Remove what was written."""
        self.close()
        if self.folder is not None:
            remove_segment(self.folder, self.name)


class Pool:
    """Prepared images by the digest of their file.

    records: those of all segments, sorted by the first 8 bytes of the digest. pixels: the bytes of
    each segment, mapped. segments (len(records),): the number of each record's segment.
    damaged: names of segments that were not as their manifest says, and were removed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Read the complete segments in ``folder``; None is an empty pool in memory."""
        self.folder = folder
        self.records: Records = np.empty(0, RECORD)
        self.segments: NDArray[np.int32] = np.empty(0, np.int32)
        self.pixels: list[Tensor] = []
        self.damaged: list[str] = []
        self._keys: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._read: set[str] = set()
        self.read_new()

    def read_new(self) -> None:
        """Read the segments that other processes have completed since."""
        if self.folder is None:
            return
        for manifest in sorted(self.folder.glob("*.json")):
            name = manifest.stem
            if manifest.name == ABOUT or name in self._read:
                continue
            self._read.add(name)
            try:
                records, pixels = _read_segment(self.folder, name)
            except (*DAMAGE, OSError) as error:
                is_damage = isinstance(error, DAMAGE) or error.errno in (errno.ELOOP, errno.ENOTDIR)
                # Else the system refuses it now, or another process clears the store.
                if is_damage and os.path.lexists(manifest):
                    self.damaged.append(str(manifest))
                    remove_segment(self.folder, name)
            else:
                self._add(records, pixels)

    def take(self, segment: Segment, records: Records) -> None:
        """Add a segment that this process has written."""
        self._read.add(segment.name)
        self._add(records, segment.map())

    def _add(self, records: Records, pixels: Tensor) -> None:
        if len(self.records):
            records = np.concatenate([self.records, records])
        numbers = np.full(len(records) - len(self.segments), len(self.pixels), np.int32)
        segments = np.concatenate([self.segments, numbers])
        self.pixels.append(pixels)
        keys = _keys(records["digest"])
        # Of equal digests a kept image comes before one that was only checked.
        order = np.lexsort([records["offset"] < 0, keys])
        self.records, self.segments, self._keys = records[order], segments[order], keys[order]

    def find(self, digests: Digests, kept: bool = True) -> NDArray[np.int64]:
        """The place in ``records`` of each digest, or -1. ``kept``: only of images that are kept.

        Two different digests with the same first 8 bytes are both not found, in the worst case.
        """
        if not len(self.records):
            return np.full(len(digests), -1, np.int64)
        places = np.searchsorted(self._keys, _keys(digests)).clip(max=len(self.records) - 1)
        equal = (self.records["digest"][places] == digests).all(axis=1)
        if kept:
            equal &= self.records["offset"][places] >= 0
        result: NDArray[np.int64] = np.where(equal, places, -1)
        return result

    def remove_unfinished(self) -> None:
        """Remove what writers left that ended before it was complete, a minute ago or more."""
        if self.folder is None:
            return
        for path in self.folder.glob("*.pixels"):
            with suppress(OSError), open(path, "rb") as file:
                recent = time.time() - os.fstat(file.fileno()).st_mtime < MINUTE  # or unlocked yet
                if recent or path.with_suffix(".json").exists():
                    continue
                hold(file)  # raises OSError while its writer lives
                if not path.with_suffix(".json").exists():  # it may just have been completed
                    remove_segment(self.folder, path.stem)
        remove_temporary(self.folder)


def remove_segment(folder: Path, name: str) -> None:
    """Remove a segment, its manifest first."""
    files = [folder / f"{name}.{suffix}" for suffix in ("json", "records", "pixels")]
    for path in (*files, *folder.glob(f".{name}.*.tmp")):
        clear_away(path)


def clear_away(path: Path) -> None:
    """Remove what is at ``path``, if that is possible: a file, a link, or a folder."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _keys(digests: Digests) -> NDArray[np.uint64]:
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64)[:, 0]


def _state(path: Path) -> list[int]:
    """What changes whenever a file is written: size, time of its content, time of any change."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read_segment(folder: Path, name: str) -> tuple[Records, Tensor]:
    """The records and pixels of a complete segment.

    The pixels are read only if their file has changed since it was written. Raises ValueError or
    another error if anything is not as the manifest says.
    """
    manifest = json.loads((folder / f"{name}.json").read_text())
    if manifest["format"] != FORMAT:
        raise ValueError("another format")
    content = (folder / f"{name}.records").read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["records"]:
        raise ValueError("the records have changed")
    records: Records = np.frombuffer(content, RECORD)
    path = folder / f"{name}.pixels"
    with open(path, "rb") as file:
        pixels = _map(file)
    kept = records[records["offset"] >= 0]
    if len(kept) and int((kept["offset"] + image_bytes(kept)).max()) > len(pixels):
        raise ValueError("images beyond the end of the pixels")
    if _state(path) != manifest["state"]:
        _check_pixels(pixels, manifest["pixels"])
        with suppress(OSError):  # a store that cannot be written is read each time
            write_file(folder / f"{name}.json", json.dumps(manifest | {"state": _state(path)}))
    return records, pixels


def _check_pixels(pixels: Tensor, chunks: Sequence[Sequence[Any]]) -> None:
    end = 0
    view = pixels.numpy().data
    for first, size, digest in chunks:
        if first != end or hashlib.sha256(view[first : first + size]).hexdigest() != digest:
            raise ValueError("the pixels have changed")
        end = first + size
    if end != len(pixels):
        raise ValueError("the pixels have changed")


def _map(file: IO[bytes]) -> Tensor:
    """A file's bytes as (size,) uint8, in pages that all processes share.

    A write to the tensor changes a copy of the page: a transform that works in place would
    otherwise end the process, or change the file.
    """
    if not os.fstat(file.fileno()).st_size:
        return torch.empty(0, dtype=torch.uint8)
    if sys.platform == "win32":
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    else:
        without_reserve = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE
        flags = mmap.MAP_PRIVATE | without_reserve
        pages = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.frombuffer(pages, dtype=torch.uint8)
