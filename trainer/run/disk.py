"""Writes files atomically and durably: the content is on the disk before its name is.

These functions write every file of a run. All system calls go through this module's ``os``, so that
tests can replace it by one that fails, or kills the process, at the n-th call.
"""

import errno
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from datasets.temporary import begin, complete
from trainer.process.errors import RunError
from trainer.process.lock import PLAIN_FILE

NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0) | PLAIN_FILE
PIECE = 2**22  # bytes written and hashed in one go
# Bytes of a file that may wait in the page cache before a sync. A gigabyte of new pages would take
# longer than all the rest, and would push cached images out.
CACHED = 2**26
MINUTE = 60.0  # seconds after which a file that nobody has completed is left over
MAX_JSON = 2**28
MAX_SPLIT = 2**36  # of split.json: a million images take 2**27

# What ``all_or_nothing`` has seen made: new files as they are on the disk, and folders (None).
_made: ContextVar["list[tuple[Path, os.stat_result | None]] | None"] = ContextVar(
    "_made", default=None
)


class Digest:
    """A file that is being written, with its size and the SHA-256 of the bytes given to ``write``.

    A digest of the file read back would certify a bad write.
    """

    closed = False  # pyarrow asks

    def __init__(self, descriptors: Sequence[int]) -> None:
        """All open files ``descriptors`` get the same content."""
        self._descriptors, self._sha256, self.size = descriptors, hashlib.sha256(), 0
        self._waiting = bytearray()  # torch.save writes a thousand small pieces
        self._cached = 0
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of ``data``, any buffer of bytes."""
        view = memoryview(data).cast("B")
        if len(self._waiting) + len(view) > PIECE:
            self.flush()
        if len(view) > PIECE:
            for begin in range(0, len(view), PIECE):
                self._put(view[begin : begin + PIECE])
        else:
            self._waiting += view
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        """Write the buffered bytes."""
        waiting, self._waiting = self._waiting, bytearray()
        if waiting:
            self._put(waiting)

    def _put(self, piece: bytearray | memoryview) -> None:
        self._sha256.update(piece)
        try:
            for descriptor in self._descriptors:
                write_all(descriptor, piece)
            self._cached += len(piece)
            if self._cached >= CACHED:
                self._cached = 0
                for descriptor in self._descriptors:
                    os.fsync(descriptor)
                    if hasattr(os, "posix_fadvise"):
                        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            self.failure = error  # torch.save raises a RuntimeError without the reason
            raise

    def entry(self) -> dict[str, Any]:
        """Size and digest, as a manifest names them."""
        return {"size": self.size, "sha256": self._sha256.hexdigest()}


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of ``data``; one call of ``os.write`` may write less."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def append(descriptor: int, data: bytes | memoryview) -> int:
    """Append ``data`` in one call to a file opened with O_APPEND; return its first byte's place.

    Several processes may append at once. Raises OSError if the disk did not take all.
    """
    size = len(data)
    if os.write(descriptor, data) < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return os.lseek(descriptor, 0, os.SEEK_CUR) - size


def flush_file(descriptor: int) -> None:
    """Sync a file's content to the disk."""
    os.fsync(descriptor)


def write_with(path: Path, fill: Callable[[Digest], object], *copies: Path) -> dict[str, Any]:
    """Replace ``path`` atomically by what ``fill`` writes: a reader finds the old or the new file.

    ``copies`` are new paths that get the same content, before ``path`` does. Returns size and
    SHA-256. If writing fails, ``path`` stays as it was.
    """
    paths = [*copies, path]
    temporaries = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]
    descriptors: list[int] = []
    try:
        try:
            for temporary in temporaries:
                descriptors.append(os.open(temporary, NEW, 0o666))
            digest = Digest(descriptors)
            try:
                fill(digest)
                digest.flush()
            except RuntimeError as error:
                raise digest.failure or error from None
            for descriptor in descriptors:
                os.fsync(descriptor)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        for temporary, final in zip(temporaries, paths, strict=True):
            _note_new(final, temporary)
            os.replace(temporary, final)
    except BaseException as error:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # name the file itself, not the temporary one
            error.filename, error.filename2 = str(path), None
        raise
    for final in paths:
        sync_folder(final.parent)
    return digest.entry()


def write_file(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content``, atomically."""
    # The text may hold file names that are not UTF-8; JSON can hold them with a backslash.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    write_with(path, lambda file: file.write(data))


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files that killed writers left in ``folder`` a minute ago or more."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime >= MINUTE:
                path.unlink()


def copy_file(source: Path, target: Path) -> dict[str, Any]:
    """Copy a file; returns the size and SHA-256 of the bytes that were read."""

    def fill(file: Digest) -> None:
        with source.open("rb") as original:
            while piece := original.read(PIECE):
                file.write(piece)

    return write_with(target, fill)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as JSON, atomically."""
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=True) + "\n")


def write_long_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as JSON in one line, atomically; ten times as fast, and in little memory.

    Its values may be mappings of a million items.
    """

    def fill(file: Digest) -> None:
        for text in _pieces(content):
            file.write(text.encode(errors="backslashreplace"))  # as in ``write_file``

    write_with(path, fill)


def _pieces(content: Mapping[str, Any]) -> Iterator[str]:
    """The text of ``json.dumps``, of the values that are mappings 4,096 items at a time."""
    dumps = partial(json.dumps, ensure_ascii=False, allow_nan=True)
    before = "{"
    for key, value in content.items():
        yield f"{before}{dumps(key)}: "
        before = ", "
        items = iter(value.items() if isinstance(value, Mapping) else ())
        between = "{"
        while some := dict(islice(items, 4096)):
            yield between + dumps(some)[1:-1]
            between = ", "
        yield dumps(value) if between == "{" else "}"
    yield "}\n" if content else "{}\n"


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """Read what ``write_json`` wrote, at most ``limit`` bytes; raises RunError for all else."""
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= limit):
            raise ValueError("it is not one that the trainer wrote")
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}): the run folder is damaged.") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} does not hold what was written: the run folder is damaged.")
    return content


def make_folder(path: Path) -> None:
    """Make a folder that does not exist yet, and sync its name to the disk."""
    os.mkdir(path)
    sync_folder(path.parent)


def make_output_folder(folder: Path) -> None:
    """Make a folder for results, unless it is there; raises RunError for a link."""
    if folder.is_symlink():
        raise RunError(f"{folder} is a link; nothing is written behind it.")
    make_folders(folder)


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, unless they are there."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not folder.is_dir():  # else another process has just made it
            raise
    else:
        if (made := _made.get()) is not None:
            made.append((folder, None))


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """Context manager: if the body fails, the new files and folders that it made are removed again.

    New files are removed too if a signal ends the process, as in ``datasets/temporary.py``.

    They are those that this module's functions made. A file that was there before stays, in the old
    or the new form, and so do a file that another process wrote, and a folder that holds one.
    """
    made: list[tuple[Path, os.stat_result | None]] = []
    token = _made.set(made)
    try:
        yield
    except BaseException:
        for path, file in reversed(made):
            with suppress(OSError):
                if file is None:
                    path.rmdir()  # if it is empty
                elif os.path.samestat(path.lstat(), file):
                    path.unlink()
        raise
    finally:
        for path, _ in made:
            complete(path)
        _made.reset(token)


def _note_new(path: Path, source: Path) -> None:
    """Note that ``source`` is about to get the name ``path``, if that is a new name."""
    if (made := _made.get()) is not None and not os.path.lexists(path):
        made.append((path, source.lstat()))
        begin(path)


def rename(old: Path, new: Path) -> None:
    """Rename a file or folder; a file that has the new name is replaced."""
    _note_new(new, old)
    try:
        os.replace(old, new)
    except OSError as error:  # name the file that is wanted, not the temporary one
        error.filename, error.filename2 = str(new), None
        raise


def link(old: Path, new: Path) -> None:
    """Give a file a second name."""
    os.link(old, new)


def sync_folder(folder: Path) -> None:
    """Sync the names in ``folder``: a rename is only durable once its folder is on the disk."""
    if sys.platform == "win32":  # Windows has no such call, and needs none
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class AppendedFile:
    """A file that grows by complete pieces. At first it is truncated to ``length`` bytes."""

    def __init__(self, path: Path, length: int = 0) -> None:
        """Raises RunError if the file is shorter than ``length``."""
        self._path, self._descriptor = path, os.open(path, NEW & ~os.O_TRUNC, 0o666)
        if os.fstat(self._descriptor).st_size < length:
            os.close(self._descriptor)
            raise RunError(f"{path} is shorter than when the run was saved: lines of it are lost.")
        os.ftruncate(self._descriptor, length)
        self.length = os.lseek(self._descriptor, length, os.SEEK_SET)

    def write(self, data: bytes) -> None:
        """Append ``data``; it is on the disk only after ``sync``."""
        try:
            write_all(self._descriptor, data)
        except OSError as error:
            error.filename = str(self._path)
            raise
        self.length += len(data)

    def sync(self) -> None:
        """Sync everything that was appended to the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
