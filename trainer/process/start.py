"""What a command sets up before it imports PyTorch, for faster runs with the same results.

Commands call ``start`` around their imports.
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
    """Context manager: sets up the process; the body then imports PyTorch and the rest.

    Python's garbage collector then passes over what was imported: to look at it takes 0.1 s.
    """
    spin_briefly()
    keep_freed_memory()
    defer_compiler()
    is_fresh = "torch" not in sys.modules  # else the process may hold tensors of earlier calls
    with collecting_later():
        yield
        if is_fresh:
            gc.freeze()


@contextmanager
def collecting_later() -> Iterator[None]:
    """Context manager: inside, Python's garbage collector does not run."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def spin_briefly() -> None:
    """Let OpenMP's waiting threads spin for microseconds only, then sleep. Call it before torch.

    libgomp spins for long: if another program needs a core, each of a step's hundred waits burns
    it until the system takes it away. A step was then 30 times as slow; with this it is 6 times.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc's ``malloc`` keep freed memory for the next tensor; returns whether that worked.

    Does nothing if the environment configures malloc, or on other systems than Linux.
    """
    names = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if any(name.startswith(names) for name in os.environ) or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def give_back_freed_memory() -> None:
    """Return to the system what was freed, which ``keep_freed_memory`` keeps. Linux only."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
