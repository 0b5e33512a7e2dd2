"""What is unfinished on disk: removed at the end, also by a signal that ends the process."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_UNFINISHED: dict[Path, int] = {}  # and the process whose it is: a fork must not remove it
SUFFIXES = (".tmp", ".partial")  # of files that are renamed when they are complete


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """Context manager: at its end the file or folder ``path`` is removed, unless it was renamed."""
    begin(path)
    try:
        yield
    finally:
        _remove(path)
        complete(path)


def begin(path: Path) -> None:
    """Let ``remove_all`` remove the file or folder ``path`` too, if this process calls it."""
    _UNFINISHED[path] = os.getpid()


def complete(path: Path) -> None:
    """Let ``remove_all`` leave ``path``, which ``begin`` named, alone."""
    _UNFINISHED.pop(path, None)


def remove_all() -> None:
    """Remove what this process has begun; on Linux also a download that a library is writing."""
    for path, process in list(_UNFINISHED.items()):
        if process == os.getpid():
            _remove(path)
    with contextlib.suppress(OSError):
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if (name := os.readlink(f"/proc/self/fd/{number}")).endswith(SUFFIXES):
                    os.unlink(name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
