"""What a command does before it imports PyTorch: faster runs, and the same results.

``start`` does all of it, around the command's imports.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from trainer.process.compiler_stand_in import defer_compiler


@contextmanager
def start() -> Iterator[None]:
    """Set up the process before PyTorch is there; the body imports what the command needs."""
    spin_briefly()
    keep_freed_memory()
    defer_compiler()
    with collecting_later():
        yield


@contextmanager
def collecting_later() -> Iterator[None]:
    """Run the body without searches for garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def spin_briefly() -> None:
    """Have OpenMP's threads wait for each other for microseconds, then sleep; before torch starts.

    libgomp's waits are long: where another program needs one of the cores, each of a step's
    hundred waits burns it until the system takes it away (30 times as slow; now 6).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Have glibc's ``malloc`` keep what is freed for the next tensor; whether it could be done.

    Left alone where the environment tells how memory is to be had, and on other systems.
    """
    names = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if any(name.startswith(names) for name in os.environ) or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
