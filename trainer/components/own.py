"""Components of a user's own: a Python file that a YAML names by ``components``.

Its lists, such as ``MODELS = [MyNet]``, tell the names; they are read without running the file. It
is run when a component is built. Imports no torch before.
"""

import ast
import difflib
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from pathlib import Path
from pkgutil import resolve_name
from types import CodeType, ModuleType
from typing import Any

from trainer.process.console import say
from trainer.process.errors import Fault, RunError, Stopped
from trainer.process.words import listed, suggestion
from transforms import OWN_FIXED

# The lists of a file, and the kind of component that each holds.
LISTS: Mapping[str, str] = {
    "DATASETS": "dataset",
    "FIXED_TRANSFORMS": "transform",
    "RANDOM_TRANSFORMS": "transform",
    "MODELS": "model",
    "LOSSES": "loss",
    "OPTIMIZERS": "optimizer",
    "SCHEDULERS": "scheduler",
    "AVERAGES": "average",
    "METRICS": "metric",
}
COPY = "components.py"  # its name in a run's folder
MAX_SOURCE = 1 << 20
RANDOM = "RANDOM_TRANSFORMS"
MODULE = "own_components_"  # and the beginning of the content's hash: the name of its module
# Packages of this project, which may lie beside a user's file.
_OURS = ("datasets", "models", "transforms", "trainer", "yaml_trainer")
# What a class of each kind inherits from.
_BASES: Mapping[str, str] = {
    "model": "torch.nn:Module",
    "loss": "torch.nn:Module",
    "optimizer": "torch.optim:Optimizer",
    "scheduler": "torch.optim.lr_scheduler:LRScheduler",
}
# What an object of each kind must have to be one, besides what its base class gives.
_METHODS: Mapping[str, tuple[str, ...]] = {
    "dataset": ("image", "digest", "digests", "__len__"),
    "transform": ("__call__",),
    "average": ("after_step", "weights", "applied", "state_dict", "load_state_dict"),
}


@dataclass(frozen=True)
class OwnFile:
    """A file of own components; without ``path`` there is none.

    listed: the names in each of its lists, with the line of each. is_copy: it may come from
    elsewhere, as a run's copy; it is run only if this user has trusted its content. unlisted: the
    classes and functions that it defines and that stand in no list.
    """

    path: Path = Path()
    content: bytes = field(default=b"", repr=False)
    sha256: str = ""
    listed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    is_copy: bool = False
    unlisted: Collection[str] = ()

    @property
    def text(self) -> str:
        """The content as text."""
        return self.content.decode("utf-8-sig")

    def names(self, kind: str) -> list[str]:
        """The names of a kind of component."""
        return [name for one, names in self.listed.items() if LISTS[one] == kind for name in names]

    def reasons(self, kind: str) -> dict[str, str]:
        """Why a name that the file defines is no component of a kind: no list has it."""
        into = listed([one for one, held in LISTS.items() if held == kind], "or")
        reason = f"{self.path.name} defines it, but lists it nowhere; add it to {into} there"
        return dict.fromkeys(self.unlisted, reason)

    @property
    def random(self) -> Collection[str]:
        """The names of the random transforms."""
        return self.listed.get(RANDOM, {}).keys()

    def get(self, name: str) -> Any:
        """The class or function of a name. The file is run if it was not; raises as ``run``."""
        return getattr(self.run(), name)

    def run(self) -> ModuleType:
        """The module of the file, which is run once in a process, whatever its path.

        The module's name holds the content's hash, so files of several runs do not meet. Raises
        RunError for a copy that is not trusted, and what the file raises.
        """
        name = MODULE + self.sha256[:32]
        if name in sys.modules:
            return sys.modules[name]
        if self.is_copy and not is_trusted(self.sha256):
            raise RunError(untrusted(self))
        if not self.is_copy and (reason := trust(self)):
            what = f"{reason}: runs with {self.path} are not known as yours"
            say(f"note    {what}; name another folder by TRAINER_TRUST")
        spec = importlib.machinery.ModuleSpec(name, _Loader(self), origin=str(self.path.resolve()))
        spec.has_location = True  # gives __file__: an error's place, and the source to inspect
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            _Loader(self).exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        for one in self.listed.get("FIXED_TRANSFORMS", ()):
            if isinstance(kind := getattr(module, one, None), type):
                OWN_FIXED.add(kind)
        return module

    def faults(self) -> list[Fault]:
        """Why the file cannot be run, or what in its lists is no such component. Imports torch."""
        if not self.sha256:
            return []
        try:
            module = self.run()
        except (RunError, KeyboardInterrupt, Stopped):
            raise
        except BaseException as error:  # SystemExit, and exceptions of its own
            return [self._fault_of(error)]
        found = []
        for one, names in self.listed.items():
            for name, line in names.items():
                thing = getattr(module, name, None)
                if message := _misfit(LISTS[one], name, thing):
                    line = getattr(getattr(thing, "__code__", None), "co_firstlineno", line)
                    found.append(self.fault(f"{name} {message}", line))
        return found

    def fault(self, message: str, line: int | None = None) -> Fault:
        """A fault at a line of the file."""
        lines = self.text.splitlines()
        shown = lines[line - 1] if line and line <= len(lines) else None
        return Fault("", message, str(self.path), line, 1 if shown else None, shown)

    def _fault_of(self, error: BaseException) -> Fault:
        place = str(self.path.resolve())
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == place]
        try:
            text = " ".join(str(error).split())
        except Exception:  # its own text fails
            text = ""
        message = f"cannot be imported: {': '.join(filter(None, (type(error).__name__, text)))}"
        return self.fault(message, frames[-1].lineno if frames else None)


NO_FILE = OwnFile()


class Rerun:
    """The files that have run here: unpickled before their objects, it runs them in that process.

    A forked process has them; one that is spawned, as on macOS and Windows, has not.
    """

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Any, ...]]:
        modules = [one for name, one in sys.modules.items() if name.startswith(MODULE)]
        return _run_again, tuple(module.__loader__.own for module in modules)  # type: ignore[union-attr]


def _run_again(*files: OwnFile) -> Rerun:
    for own in files:
        own.run()
    return Rerun()


class _Loader(importlib.abc.InspectLoader):
    """Loads the text that was hashed, whatever the disk has by now; nothing is kept compiled."""

    def __init__(self, own: OwnFile) -> None:
        self.own = own

    def get_source(self, fullname: str) -> str:
        return self.own.text

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.own.text, str(self.own.path.resolve()))


def read_own_file(
    path: Path, known: Mapping[str, Collection[str]], is_copy: bool = False
) -> tuple[OwnFile, list[Fault]]:
    """The file with the names in its lists, and every fault that is found without running it.

    known: the project's own names of each kind, which no other component may have.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SOURCE + 1)
        text = content.decode("utf-8-sig")
        problem = f"is larger than {MAX_SOURCE >> 20} MiB" if len(content) > MAX_SOURCE else ""
    except UnicodeDecodeError:
        problem = "is not UTF-8 text; save the file as UTF-8"
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if problem:
        return NO_FILE, [Fault("", problem, str(path))]
    own = OwnFile(path, content, hashlib.sha256(content).hexdigest(), {}, is_copy)
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        shown = error.text.rstrip("\n") if error.text else None
        at = error.lineno, error.offset
        return NO_FILE, [Fault("", f"is no Python: {error.msg}", str(path), *at, shown)]
    except (ValueError, RecursionError, MemoryError) as error:
        return NO_FILE, [Fault("", f"is no Python: {str(error) or 'too deeply nested'}", str(path))]
    faults: list[Fault] = []
    lists = _lists(tree, own, faults)
    for one, names in lists.items():
        for name, line in names.items():
            if name in known[LISTS[one]] or (one, name) == ("METRICS", "loss"):
                message = f"{name} is a {LISTS[one]} of the project; give yours another name"
                faults.append(own.fault(message, line))
    faults += _neighbours(tree, own)
    inside = {name for names in lists.values() for name in names}
    kinds = ast.ClassDef | ast.FunctionDef
    unlisted = {one.name for one in _top_level(tree) if isinstance(one, kinds)} - inside
    return OwnFile(path, content, own.sha256, lists, is_copy, unlisted), faults


def _lists(tree: ast.Module, own: OwnFile, faults: list[Fault]) -> dict[str, dict[str, int]]:
    """The names in each list of the file; adds to ``faults``."""
    defined, lists = dict(_defined(tree)), dict[str, dict[str, int]]()
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        for one in (name for name in names if name in LISTS):
            value = getattr(statement, "value", None)
            items = value.elts if isinstance(value, ast.List | ast.Tuple) else [None]
            if not all(isinstance(item, ast.Name) for item in items):
                message = f"expected {one} = [NAME, ...], a list of names that the file defines"
                faults.append(own.fault(message, statement.lineno))
                continue
            lists[one] = {}
            for item in items:
                assert isinstance(item, ast.Name)
                if item.id not in defined:
                    mended = suggestion(item.id, list(defined))
                    message = f"{one} lists '{item.id}', which this file does not define{mended}"
                    faults.append(own.fault(message, item.lineno))
                elif any(item.id in names for names in lists.values()):
                    faults.append(own.fault(f"{item.id} is listed twice; remove one", item.lineno))
                lists[one][item.id] = defined.get(item.id, item.lineno)
        for name in names:
            if name.isupper() and name not in LISTS and (meant := _meant(name)):
                message = f"{name} is none of the lists that are read; did you mean {meant}?"
                faults.append(own.fault(message, statement.lineno))
    for node, one in _changed_lists(tree):
        message = f"is read without running the file; write {one} = [NAME, ...] once, unindented"
        faults.append(own.fault(f"{one} {message}", node.lineno))
    if not lists and not faults:
        message = f"lists no component; expected such as MODELS = [MyNet]; lists are {_ALL_LISTS}"
        faults.append(own.fault(message))
    return lists


def _changed_lists(tree: ast.Module) -> Iterator[tuple[ast.Name, str]]:
    """Each place, but a plain assignment, where the file makes or changes one of the lists."""
    plain = [
        target
        for statement in tree.body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        for target in getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    ]
    for node in _top_level(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in plain:
            named: ast.expr = node
        elif isinstance(node, ast.Attribute) and node.attr in ("append", "extend", "insert"):
            named = node.value
        else:
            continue
        if isinstance(named, ast.Name) and named.id in LISTS:
            yield named, named.id


_ALL_LISTS = listed(LISTS)


def _meant(name: str) -> str:
    """The list, or two, that the name of another list means; "" for any other name."""
    if "TRANSFORM" in name:
        return "FIXED_TRANSFORMS (the same image always gives the same) or RANDOM_TRANSFORMS"
    return "".join(difflib.get_close_matches(name, LISTS, n=1, cutoff=0.8))


def _defined(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The names that the file's top level defines, and their lines."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                yield alias.asname or alias.name.partition(".")[0], statement.lineno
        elif isinstance(statement, ast.Name) and isinstance(statement.ctx, ast.Store):
            yield statement.id, statement.lineno
    for statement in _top_level(tree):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            yield statement.name, statement.lineno


def _top_level(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs when the file is imported: all but the bodies of classes and functions."""
    waiting = [tree]
    for node in waiting:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += (found := list(ast.iter_child_nodes(node)))
            yield from found


def _neighbours(tree: ast.Module, own: OwnFile) -> Iterator[Fault]:
    """A fault for each import of a file that lies beside: a run keeps a copy of one file."""
    for statement in ast.walk(tree):
        names = []
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            names = [statement.module or "" if not statement.level else "."]
        for name in (name.partition(".")[0] for name in names):
            beside = own.path.parent / name
            is_file = beside.with_name(f"{name}.py").is_file() if name else False
            if not name or name in _OURS or not (is_file or (beside / "__init__.py").is_file()):
                continue
            message = (
                f"imports '{name}', which lies beside it, and a run keeps a copy of this file "
                "alone; write it into this file, or install it as a package"
            )
            yield own.fault(message, getattr(statement, "lineno", None))


def _misfit(kind: str, name: str, thing: Any) -> str:
    """Why a thing is no component of its kind; "" if it may be one. Imports torch."""
    from torch import nn

    is_class = isinstance(thing, type)
    if kind == "metric" and (is_class or not callable(thing)):
        return "is no function; a metric is one of (probabilities, labels)"
    if not callable(thing):
        return f"is no class or function, but {type(thing).__name__}"
    if is_class and thing.__name__ != name:
        return f"is the class {thing.__name__}; list it by that name"
    if kind == "transform" and not thing.__module__.startswith(MODULE):
        return f"comes from {thing.__module__}; write a class of yours that inherits from it"
    if kind != "metric" and kind != "model" and not is_class:
        return f"is no class, as a {kind} must be"
    if is_class and kind in _BASES and not issubclass(thing, resolve_name(_BASES[kind])):
        return f"is no {kind}: it must inherit from {_BASES[kind].replace(':', '.')}"
    if is_class and kind in ("model", "loss") and thing.forward is nn.Module.forward:
        return "has no forward"
    has = {name for one in getattr(thing, "__mro__", ())[:-1] for name in vars(one)}
    if lacking := [method for method in _METHODS.get(kind, ()) if method not in has]:
        return f"is no {kind}: it has no {listed(lacking, 'and')}"
    if getattr(thing, "__init__", None) is nn.Module.__init__:
        return ""  # without a constructor of its own it takes no argument
    return _misfit_of_signature(thing)


def _misfit_of_signature(thing: Callable[..., Any]) -> str:
    """Why a YAML cannot give the arguments of a component; "" if it can."""
    try:
        parameters = signature(thing).parameters.values()
    except (TypeError, ValueError):
        return "tells no arguments"
    for one in parameters:
        if one.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            stars = "*" if one.kind is Parameter.VAR_POSITIONAL else "**"
            return f"takes {stars}{one.name}; name each argument, so that a YAML can be checked"
        if one.kind is Parameter.POSITIONAL_ONLY:
            return f"takes '{one.name}' by position only; a YAML gives arguments by name"
    return ""


def trust_folder() -> Path:
    """Where the hashes of the code that this user trusts are: a file for each."""
    named = os.environ.get("TRAINER_TRUST")
    if named:
        return Path(named).expanduser()
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or "~"
    else:
        base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "yaml-trainer" / "trusted"


def is_trusted(sha256: str) -> bool:
    """Whether this user has trained with this code, or has said that it may run."""
    return (trust_folder() / sha256).is_file()


def trust(own: OwnFile) -> str:
    """Remember that this user lets the code run; returns why that is impossible, or ""."""
    folder = trust_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / own.sha256).write_text(f"{own.path.resolve()}\n", encoding="utf-8")
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return ""


def untrusted(own: OwnFile) -> str:
    """The message for a run's code that this user has not run yet."""
    return (
        f"{own.path} is code that came with the run, and you have not trained with it here "
        f"(SHA-256 {own.sha256}). It can do whatever you can. Read it; if you trust it:\n"
        f"  python -m trainer.runs trust {own.path.parent}"
    )
