"""Locks on files, by fcntl or, on Windows, msvcrt.

The system frees a lock when all processes that have the file open have closed it or ended.
"""

import errno
import os
import sys
from pathlib import Path
from typing import IO, Any

# Flags: do not follow a link that somebody put in a file's place, and do not wait for a pipe.
PLAIN_FILE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def hold(file: IO[Any], wait: bool = False) -> None:
    """Lock an open file, or raise OSError. ``wait``: until no process has it locked.

    On Windows this waits for 10 seconds only.
    """
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_by_another(error: OSError) -> bool:
    """Whether ``hold`` raised the error because another process has the file locked."""
    return error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)


def is_held(run: Path) -> bool:
    """Whether a process holds the run, as trainer.run.folder's ``lock_run`` does."""
    try:
        descriptor = os.open(run / "run.lock", os.O_RDONLY | PLAIN_FILE)
    except OSError:
        return False
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBRLCK, 1)
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as one of many readers
    except OSError as error:
        return is_by_another(error)
    finally:
        os.close(descriptor)
    return False
