"""Things done before a run that make it faster, and change nothing of what it computes.

PyTorch's compiler is imported when it is used, not before: torchvision and torch's optimizers
import ``torch._dynamo`` (1.1 s) only to mark functions that it should leave alone. A stand-in does
that until anything else of the compiler is asked for, which then loads the real one.

Python's garbage is collected later: what imports and tables allocate is no garbage, and searching
it again and again takes 0.2 s.

OpenMP's threads do not wait long for one that another program keeps from its core.

And the C library keeps memory that is freed: to give each large tensor back to the system, and to
have the next one's pages cleared again, takes 10 to 30 % of a step on a CPU.
"""

import ctypes
import functools
import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"


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
    told = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")) for name in os.environ)
    if told or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def defer_compiler() -> None:
    """Put the stand-in where ``torch._dynamo`` will be looked for, unless that is there already."""
    import torch

    if NAME not in sys.modules:
        sys.modules[NAME] = torch._dynamo = _StandIn(NAME)
        sys.modules[f"{NAME}.utils"] = _Utils(f"{NAME}.utils")
        sys.meta_path.insert(0, _Finder())


def real(name: str = NAME) -> ModuleType:
    """The compiler's own module, imported now."""
    for stand_in in (NAME, f"{NAME}.utils"):
        if isinstance(sys.modules.get(stand_in), (_StandIn, _Utils)):
            del sys.modules[stand_in]
    return importlib.import_module(name)


def is_loaded() -> bool:
    """Whether the compiler itself has been imported."""
    return not isinstance(sys.modules.get(NAME), _StandIn)


class _StandIn(ModuleType):
    """What plain training asks of ``torch._dynamo``; anything else loads it."""

    def disable(
        self, fn: Callable[..., Any] | None = None, recursive: bool = True, **options: Any
    ) -> Any:
        """``fn``, left alone by the compiler from the moment when there is one."""
        if fn is None or is_loaded():
            return real().disable(fn, recursive, **options)

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_loaded():
                return real().disable(fn, recursive, **options)(*args, **kwargs)
            return fn(*args, **kwargs)

        return call

    def graph_break(self, *args: Any, **kwargs: Any) -> None:
        """Nothing, where nothing is being compiled."""
        if is_loaded():
            real().graph_break(*args, **kwargs)

    __path__: list[str] = []  # a package, whose modules _Finder finds

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # inspect asks every module for __file__
            raise AttributeError(name)
        return getattr(real(), name)


class _Utils(ModuleType):
    """The one function of ``torch._dynamo.utils`` that torchvision imports by name."""

    def is_compile_supported(self, device_type: Any) -> Any:
        """What the real one says."""
        return real(f"{NAME}.utils").is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(real(f"{NAME}.utils"), name)


class _Finder(MetaPathFinder, Loader):
    """Where a module of the compiler is imported by name: the real one, and that only once."""

    module: ModuleType

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """The module that the real compiler has, taken from it."""
        if is_loaded() or not fullname.startswith(f"{NAME}."):
            return None
        real()
        self.module = importlib.import_module(fullname)
        del sys.modules[fullname]  # else importlib would go by its spec, and run it once more
        return spec_from_loader(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """It is there already."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """It has run already."""
