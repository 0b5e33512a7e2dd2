"""A stand-in for PyTorch's compiler until it is needed, because its import takes 1.1 s.

torchvision and torch's optimizers import ``torch._dynamo`` only to mark functions that must not be
compiled. The stand-in does that much. Any other use of the compiler imports the real one.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"


def defer_compiler() -> None:
    """Put the stand-in into sys.modules as ``torch._dynamo``, unless that is already imported."""
    if NAME not in sys.modules:
        sys.modules[NAME] = _StandIn(NAME)
        sys.modules[f"{NAME}.utils"] = _Utils(f"{NAME}.utils")
        sys.meta_path.insert(0, _Finder())


def real(name: str = NAME) -> ModuleType:
    """Import and return the compiler's own module."""
    for stand_in in (NAME, f"{NAME}.utils"):
        if isinstance(sys.modules.get(stand_in), (_StandIn, _Utils)):
            del sys.modules[stand_in]
    return importlib.import_module(name)


def is_loaded() -> bool:
    """Whether the stand-in is gone or was never there: the real compiler is used."""
    return not isinstance(sys.modules.get(NAME), _StandIn)


class _StandIn(ModuleType):
    """The functions of ``torch._dynamo`` that plain training uses; any other name imports it."""

    def disable(
        self, fn: Callable[..., Any] | None = None, recursive: bool = True, **options: Any
    ) -> Any:
        """``fn`` as a function that the compiler skips, once it is imported."""
        if fn is None or is_loaded():
            return real().disable(fn, recursive, **options)

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_loaded():
                return real().disable(fn, recursive, **options)(*args, **kwargs)
            return fn(*args, **kwargs)

        return call

    def graph_break(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing unless the compiler is imported."""
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
        """The result of the real function."""
        return real(f"{NAME}.utils").is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(real(f"{NAME}.utils"), name)


class _Finder(MetaPathFinder, Loader):
    """Import hook that imports submodules of the compiler by name, each only once."""

    module: ModuleType

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """The spec of the real compiler's submodule."""
        if is_loaded() or not fullname.startswith(f"{NAME}."):
            return None
        real()
        self.module = importlib.import_module(fullname)
        del sys.modules[fullname]  # else importlib would take its spec and run it again
        return spec_from_loader(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module exists already."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """The module's code has run already."""
