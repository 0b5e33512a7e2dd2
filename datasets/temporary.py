"""What is unfinished on disk: removed at the end, also by a signal that ends the process."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

UNFINISHED: set[Path] = set()
SUFFIXES = (".tmp", ".partial")  # of files that are renamed when they are complete


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """Context manager: at its end the file or folder ``path`` is removed, unless it was renamed."""
    UNFINISHED.add(path)
    try:
        yield
    finally:
        _remove(path)
        UNFINISHED.discard(path)


def remove_all() -> None:
    """Remove what is unfinished now; on Linux also a download that a library is writing."""
    for path in UNFINISHED:
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
