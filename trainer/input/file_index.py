"""Remembers the SHA-256 of files by their path and state, so that a start need not read them."""

import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.input.pool import Digests, clear_away
from trainer.run.disk import remove_temporary, write_file

# A file that was changed this long before it was read may change again within one tick of its
# file system's clock, and look the same. The coarsest clock, FAT's, ticks every 2 s.
RACY_NS = 2_100_000_000
CHANGED = 1 if sys.platform == "win32" else 2  # the column of states with the time of any change


def states_of(root: Path, names: Sequence[str]) -> NDArray[np.int64]:
    """(N, 4) of files below ``root``: size, times of content and of any change (ns), inode.

    -1 for a file that cannot be looked at.
    """
    prefix, stat = os.path.join(root, ""), os.stat

    def numbers() -> Iterator[int]:  # a list of tuples would take 180 bytes a file
        for name in names:
            try:
                found = stat(prefix + name)
            except (OSError, ValueError):
                yield from (-1, -1, -1, -1)
            else:
                yield found.st_size
                yield found.st_mtime_ns
                yield found.st_ctime_ns
                yield found.st_ino

    return np.fromiter(numbers(), np.int64, 4 * len(names)).reshape(-1, 4)


class FileIndex:
    """The digests of a folder's files as they were when they were last read."""

    def __init__(self, folder: Path, root: Path) -> None:
        """``folder``: where the index of the files below ``root`` lies."""
        key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
        self.path = folder / f"{key}.files"

    def recall(
        self, names: Sequence[str], states: NDArray[np.int64]
    ) -> tuple[Digests, NDArray[np.bool_]]:
        """Digests (N, 32) of the files ``names``, and which are known (N,) bool."""
        digests, known = np.zeros((len(names), 32), np.uint8), np.zeros(len(names), bool)
        old = self._load()
        if old is None or not len(old[1]):
            return digests, known
        old_names, old_states, old_digests = old
        if old_names == _joined(names):
            rows, there = np.arange(len(names)), np.ones(len(names), bool)
        else:
            place = {name: row for row, name in enumerate(os.fsdecode(old_names).split("\0"))}
            rows = np.fromiter((place.get(name, -1) for name in names), np.int64, len(names))
            there, rows = rows >= 0, rows.clip(min=0)
        known = there & (old_states[rows] == states).all(axis=1) & (states[:, 0] >= 0)
        digests[known] = old_digests[rows[known]]
        return digests, known

    def remember(
        self,
        names: Sequence[str],
        states: NDArray[np.int64],
        digests: Digests,
        known: NDArray[np.bool_],
        began: int,
    ) -> None:
        """Replace the index. ``began``: the time (ns) before the first of the files was read.

        Files that were changed shortly before are not remembered: git's index leaves them out for
        the same reason. Raises OSError.
        """
        trusted = known & (states[:, 0] >= 0) & (states[:, CHANGED] < began - RACY_NS)
        chosen = np.flatnonzero(trusted)
        count = np.array([len(chosen)], "<i8")
        arrays = count, states[chosen].astype("<i8"), digests[chosen]
        data = b"".join(array.tobytes() for array in arrays)
        data += _joined([names[row] for row in chosen.tolist()])
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove_temporary(self.path.parent)
        if self.path.is_dir():  # somebody put it there
            clear_away(self.path)
        write_file(self.path, hashlib.sha256(data).digest() + data)

    def _load(self) -> tuple[bytes, NDArray[np.int64], Digests] | None:
        """Names, states and digests; None if there is no index, or a damaged one."""
        try:
            content = self.path.read_bytes()
            if hashlib.sha256(memoryview(content)[32:]).digest() != content[:32]:
                return None
            (count,) = np.frombuffer(content, "<i8", 1, 32).tolist()
            states = np.frombuffer(content, "<i8", 4 * count, 40).reshape(-1, 4)
            digests = np.frombuffer(content, np.uint8, 32 * count, 40 + 32 * count)
        except (OSError, ValueError):
            return None
        with suppress(OSError):
            os.utime(self.path)  # used
        return content[40 + 64 * count :], states, digests.reshape(-1, 32)


def _joined(names: Sequence[str]) -> bytes:
    return os.fsencode("\0".join(names))


def clock() -> int:
    """The time in ns, as files have it."""
    return time.time_ns()
