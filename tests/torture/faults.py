"""The faults of a training process, inside it and around it: kill, stop, fail, fill, damage.

A fault is a function without arguments. A forked child calls it before the command begins, so it
changes the modules of that process only. Production code knows nothing of it.
"""

import ctypes
import errno
import functools
import importlib
import inspect
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

Action = Callable[[], object]

PHASES = {  # phase of a run -> the modules whose functions it calls
    "start-up": (
        *("config.config", "config.construct", "input.data", "run.resume", "loop.resume"),
        *("build.prepare", "build.rehearse", "build.job"),
    ),
    "decoding": ("input.source", "input.reading", "input.pool", "input.store", "input.file_index"),
    "train": (
        *("loop.step", "loop.guard", "loop.epochs", "loop.fit", "distributed.micro_batches"),
        "components.schedulers",
    ),
    "eval and test": ("loop.evaluate", "components.metrics"),
    "save": (
        *("run.saver", "run.checkpoint", "run.disk", "run.tensors", "run.best", "run.folder"),
        *("run.environment", "run.log", "run.events"),
        *("loop.record", "loop.state", "loop.snapshot"),
    ),
    "report": (
        *("insight.report", "insight.findings", "insight.board"),
        *("drawing.pictures", "drawing.text"),
    ),
}


def wrap(name: str, before: Action | None = None, after: Action | None = None) -> None:
    """Make ``package.module:function`` or ``...:Class.method`` call these, wherever it is used."""
    module, _, path = name.partition(":")
    *outer, last = path.split(".")
    owner: Any = functools.reduce(getattr, outer, importlib.import_module(module))
    function = getattr(owner, last)

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if before:
            before()
        result = function(*arguments, **named)
        if after:
            after()
        return result

    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] == "trainer"]
    for holder in [owner] if outer else ours:  # ``from x import f`` puts f into other modules too
        for key, value in list(vars(holder).items()):
            if value is function:
                setattr(holder, key, wrapped)


def functions(phase: str) -> Iterator[str]:
    """The functions and methods of a phase's modules, as ``wrap`` takes them."""
    for module in PHASES[phase]:
        yield from functions_of(f"trainer.{module}")


def functions_of(name: str) -> Iterator[str]:
    """The functions and methods of a module, as ``wrap`` takes them."""
    for key, value in vars(importlib.import_module(name)).items():
        if getattr(value, "__module__", None) != name:
            continue
        if isinstance(value, FunctionType):
            yield f"{name}:{key}"
        elif inspect.isclass(value) and not issubclass(value, tuple):
            for method, member in vars(value).items():
                if isinstance(member, FunctionType) and not method.startswith("__"):
                    yield f"{name}:{key}.{method}"


def at(n: int, action: Action) -> Action:
    """A function that calls ``action`` when it is called for the n-th time."""
    calls = itertools.count(1)

    def hook() -> None:
        if next(calls) == n:
            action()

    return hook


def kill() -> None:
    """End this process and its workers as a power cut would: at once."""
    os.killpg(0, signal.SIGKILL)


def send(number: signal.Signals) -> Action:
    """An action that sends a signal to this process."""
    return lambda: os.kill(os.getpid(), number)


def pause() -> None:
    """Stop this process until it gets SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


ERRORS = {  # system call -> the error of a disk that is full, broken or read-only
    "open": errno.EMFILE,
    "write": errno.ENOSPC,
    "fsync": errno.EIO,
    "replace": errno.EIO,
    "rename": errno.EROFS,
    "mkdir": errno.ENOSPC,
    "link": errno.EIO,
    "unlink": errno.EIO,
    "rmdir": errno.EIO,
    "ftruncate": errno.EIO,
}


Hook = Callable[[str, Callable[..., Any], tuple[Any, ...]], Any]  # name, function, arguments


class Calls:
    """Replaces ``os`` in a module: the calls of ``names`` go through ``hook``."""

    def __init__(self, hook: Hook, names: Collection[str]) -> None:
        self._hook, self._names = hook, names

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self._names:
            return real
        return lambda *arguments, **named: self._hook(
            name, functools.partial(real, **named), arguments
        )


def intercept(
    hook: Hook,
    modules: Sequence[str] = ("trainer.run.disk",),
    names: Collection[str] = tuple(ERRORS),
) -> None:
    """Put ``hook`` between modules and the system's calls ``names``."""
    for module in modules:
        importlib.import_module(module).os = Calls(hook, names)  # type: ignore[attr-defined]


def disturb(call: str, n: int, how: str, first: Callable[[object], None]) -> None:
    """At the n-th ``call`` of ``trainer.run.disk``, call ``first`` with its path, then do ``how``.

    "before" and "after": kill before or after the call. "torn": kill after half a write. "short":
    write half and return that, which is no error. "error": fail; a write fails after its half.
    """
    calls = itertools.count(1)

    def hook(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if name != call or next(calls) != n:
            return real(*arguments)
        first(arguments[0])
        if how == "before":
            kill()
        if call == "write" and how != "after":
            descriptor, data = arguments
            written = real(descriptor, memoryview(data)[: len(data) // 2])
            if how == "short":
                return written
        if how == "error":
            raise OSError(ERRORS[call], os.strerror(ERRORS[call]), str(arguments[0]))
        result = real(*arguments) if how == "after" else None
        kill()
        return result

    intercept(hook)


def slow(seconds: float) -> None:
    """Make every fsync take ``seconds`` longer, as on a busy disk."""

    def hook(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if name == "fsync":
            time.sleep(seconds)
        return real(*arguments)

    intercept(hook)


def kill_a_worker() -> None:
    """End one of this process's workers."""
    import multiprocessing

    if workers := multiprocessing.active_children():
        assert workers[0].pid is not None
        os.kill(workers[0].pid, signal.SIGKILL)


def break_image(path: Path, how: str) -> None:
    """Make an image unreadable in one of four ways."""
    data = path.read_bytes()
    if how == "removed":
        path.unlink()
    else:
        content = {"cut": data[: len(data) // 2], "empty": b"", "no image": b"\0" * len(data)}
        path.write_bytes(content[how])


NEW_NAMESPACE, PRIVATE, BIND, REMOUNT, READ_ONLY = 0x20000, 0x44000, 0x1000, 0x20, 0x1


def mount(source: str, target: Path, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2) in this process's own mount namespace; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = source.encode(), os.fsencode(target), kind.encode(), flags, options.encode()
    if libc.mount(*arguments):
        raise OSError(ctypes.get_errno(), "mount")


def own_mounts() -> None:
    """Give this process its own mount namespace; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NAMESPACE):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", Path("/"), "none", PRIVATE)


def try_mounts() -> None:
    """End this process with exit code 1 if it cannot mount."""
    try:
        own_mounts()
    except OSError:
        sys.exit(1)


def small_disk(folder: Path, size: int) -> None:
    """Put ``folder`` and its content on a disk of ``size`` bytes."""
    own_mounts()
    content = folder.with_name(f"{folder.name}.content")
    shutil.copytree(folder, content)
    mount("tmpfs", folder, "tmpfs", 0, f"size={size}")
    shutil.copytree(content, folder, dirs_exist_ok=True)
    shutil.rmtree(content)


def read_only(folder: Path) -> None:
    """Make ``folder`` read-only."""
    own_mounts()
    mount(str(folder), folder, "none", BIND)
    mount("none", folder, "none", BIND | REMOUNT | READ_ONLY)
