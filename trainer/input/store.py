"""The store of prepared images: one folder for all runs, ranks, sweeps and commands of a user."""

import hashlib
import inspect
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets import Dataset
from trainer.config.settings import StoreSettings
from trainer.input.file_index import FileIndex
from trainer.input.pool import ABOUT, FORMAT, RECORD, Pool, clear_away
from trainer.process.console import say
from trainer.process.errors import RunError, UsageError
from trainer.process.lock import hold, is_by_another
from trainer.run.disk import write_file

KEY = re.compile("[0-9a-f]{32}")  # the name of a pool's folder
TOLD_BY_VERSION = ("torch.", "torchvision.")  # their versions tell what their transforms do
OF_EACH_MODULE = vars(torch.nn.Module())


@dataclass(frozen=True)
class StoredPool:
    """A pool of the store: its folder, bytes, images, last use (s since 1970) and about.json."""

    folder: Path
    size: int
    images: int
    used: float
    about: Mapping[str, Any]

    @property
    def made_by(self) -> str:
        """The transforms and the decoding, for people."""
        transforms = [
            f"{one['name'].rpartition('.')[2]}({one.get('size', '')})"
            for one in self.about.get("transforms", ())
        ]
        return ", ".join([str(self.about.get("decoder", "?")).partition(" by ")[0], *transforms])


class Store:
    """The pools, and the indexes of folders, below ``root``. Nothing is made before it is needed.

    limit: bytes of all pools; the least recently used ones are removed to keep it. age: seconds
    without use after which a pool is removed. unusable: why ``root`` can be no folder, else "".
    """

    def __init__(self, settings: StoreSettings) -> None:
        environment = os.environ.get
        root = settings.root or environment("TRAINER_STORE") or default_root()
        self.root = Path(os.path.expanduser(root)).absolute()
        self.unusable = ""
        if os.path.expanduser(root).startswith("~"):
            self.unusable = f"{root}: the user after ~ is not known here"
        elif "\0" in root:
            self.unusable = f"{root!r} is no path"
        gigabytes = settings.gigabytes or from_environment("TRAINER_STORE_GIGABYTES", 100)
        self.limit = gigabytes * 1e9
        self.age = (settings.days or from_environment("TRAINER_STORE_DAYS", 60)) * 86400

    def pool(self, recipe: Mapping[str, Any]) -> Pool:
        """The images of a recipe that are there. Raises OSError."""
        folder = self.root / "images" / key_of(recipe)
        with suppress(OSError):
            os.utime(folder / ABOUT)
        pool = Pool(folder)
        pool.remove_unfinished()
        for name in pool.damaged:
            say(f"note    {name} or what it names has changed: its images are prepared anew")
        if len(pool.records) and read_about(folder) != json.loads(as_json(recipe)):
            say(f"note    {folder / ABOUT} has changed: it is written anew")
            clear_away(folder / ABOUT)
            with suppress(OSError):
                self.prepare(recipe)
        return pool

    def index(self, root: Path) -> FileIndex:
        """The index of the files below ``root``."""
        return FileIndex(self.root / "files", root)

    def remembered(self, about: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """What ``make`` gives, as JSON keeps it: made once for all that ``about`` tells."""
        path = self.root / "made" / f"{key_of(about)}.json"
        with self.builder(path.name):
            with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
                found = json.loads(path.read_text())
                if (
                    hashlib.sha256(json.dumps(found["made"]).encode()).hexdigest()
                    == found["sha256"]
                ):
                    return found["made"]
            made = make()
            digest = hashlib.sha256(json.dumps(made).encode()).hexdigest()
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_file(path, json.dumps({"sha256": digest, "made": made}))
        return made

    def prepare(self, recipe: Mapping[str, Any]) -> Path:
        """The folder of a recipe's pool, which is made. Raises OSError."""
        folder = self.root / "images" / key_of(recipe)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (folder / ABOUT).exists():
            write_file(folder / ABOUT, as_json(recipe))
        return folder

    def room(self, size: int, keep: Sequence[Path] = ()) -> str:
        """Make room for ``size`` bytes, not from ``keep``; return why there is none, else "".

        Removes pools that were not used for long, and then the least recently used ones.
        """
        with suppress(OSError):
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.root.is_dir():
            return f"{self.root} is no folder, and none can be made there"
        if not os.access(self.root, os.W_OK):
            return f"{self.root} cannot be written"
        entries = sorted(self.entries(), key=lambda entry: entry.used)
        kept = sum(entry.size for entry in entries if entry.folder in keep)
        total, free = sum(entry.size for entry in entries), shutil.disk_usage(self.root).free
        if kept + size > self.limit:
            return f"{shown_size(size)} more pass the store's limit of {shown_size(self.limit)}"
        if size > (free + total - kept) // 2:
            return f"{shown_size(size)} are more than half of what is free in {self.root}"
        for entry in entries:
            old = time.time() - entry.used > self.age
            is_needed = total + size > self.limit or size > free // 2
            if entry.folder not in keep and (old or is_needed):
                remove_pool(entry.folder)
                total, free = total - entry.size, free + entry.size
        return ""

    def is_in(self, data: Path | str | None) -> str:
        """Why the store cannot be used if it lies in the folder ``data``, else ""."""
        if data is None or not self.root.resolve().is_relative_to(Path(data).resolve()):
            return ""
        return f"{self.root} lies in the folder of the images, into which nothing is written"

    def entries(self) -> list[StoredPool]:
        """All pools of the store."""
        folders = self.root / "images"
        found = []
        with suppress(OSError):
            found = sorted(folder for folder in folders.iterdir() if KEY.fullmatch(folder.name))
        return [entry for folder in found if (entry := entry_of(folder))]

    def clear(self, names: Sequence[str]) -> int:
        """Remove the pools whose folders' names begin so, or all without names; return the bytes.

        The indexes of folders are removed with all. What a run has mapped stays until it ends.
        Raises UsageError, and removes nothing, if no pool has one of the names.
        """
        chosen = entries = self.entries()
        if names:
            chosen = [one for one in entries if one.folder.name.startswith(tuple(names))]
        for name in names:
            if not name or not any(one.folder.name.startswith(name) for one in chosen):
                raise UsageError(
                    f"{self.root}: no stored images have a key that begins with {name!r}"
                )
        for entry in chosen:
            remove_pool(entry.folder)
        if left := [str(entry.folder) for entry in chosen if entry.folder.exists()]:
            raise RunError(f"{', '.join(left)}: cannot be removed")
        if not names:
            for path in (*self.root.glob("files/*.files"), *self.root.glob("made/*.json")):
                clear_away(path)
        return sum(entry.size for entry in chosen)

    @contextmanager
    def builder(self, name: str) -> Iterator[None]:
        """Context manager: one process of the machine at a time prepares images of ``name``.

        Without a lock, on some file systems, several prepare the same ones, which does no harm.
        """
        locks = self.root / "locks"
        try:
            locks.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = open(locks / hashlib.sha256(name.encode()).hexdigest()[:32], "w")
        except OSError:
            yield
            return
        with file:
            try:
                hold(file)
            except OSError as error:
                if is_by_another(error):
                    say("waiting for another process that prepares the same images")
                    with suppress(OSError):
                        hold(file, wait=True)
            yield


def shown_size(size: float) -> str:
    """Bytes for people: ``1.25 GB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:g} bytes"


def default_root() -> str:
    """``yaml-trainer`` in the user's folder for caches."""
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or "~"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return os.path.join(base, "yaml-trainer")


def from_environment(name: str, default: float) -> float:
    """The environment variable's number above 0; the default if it is unset or empty.

    Raises UsageError for anything else.
    """
    text = os.environ.get(name, "").strip()
    with suppress(ValueError):
        value = float(text) if text else default
        if value > 0:
            return value
    raise UsageError(f"The environment's {name} is {text!r}; expected a number above 0.")


def key_of(recipe: Mapping[str, Any]) -> str:
    """The name of a recipe's folder."""
    text = json.dumps(recipe, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def as_json(recipe: Mapping[str, Any]) -> str:
    """A recipe's about.json."""
    return json.dumps(recipe, indent=2, default=str)


def recipe_of(dataset: Dataset, fixed: Sequence[Any], at_least: int) -> dict[str, Any] | None:
    """All that decides the prepared pixels of a file's content; None if that is not known.

    ``fixed``: the transforms of the once-per-sample stage. at_least: as for ``dataset.decode``.
    """
    decoder = getattr(dataset, "recipe", None)
    if decoder is None or has_own_decoding(type(dataset)):
        return None
    try:
        transforms = [description(transform) for transform in fixed]
    except (ValueError, OSError, TypeError):
        return None
    return {
        "format": FORMAT,
        "decoder": decoder,
        "at_least": at_least,
        "transforms": transforms,
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        # Processors without AVX2 resize uint8 images in another way.
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def has_own_decoding(kind: type) -> bool:
    """Whether a dataset's class decodes in another way than the class whose ``recipe`` it has."""
    classes = kind.__mro__  # the recipe may also be an object's own, and no class has it
    owner = next((i for i, one in enumerate(classes) if "recipe" in vars(one)), 0)
    own = {"image", "content", "decode", "digest"}
    return any(own & vars(one).keys() for one in classes[:owner])


def description(transform: Any) -> dict[str, Any]:
    """A transform's class and all that it holds; of one that is not torchvision's, its source too.

    The source may be changed, so it counts. Raises ValueError for an object of which ``repr`` does
    not tell all: it gives an address in memory, or leaves numbers out.
    """
    kind = type(transform)
    text: dict[str, Any] = {"name": f"{kind.__module__}.{kind.__qualname__}"}
    for name, value in sorted(vars(transform).items()):
        if name in OF_EACH_MODULE:
            continue
        if isinstance(value, torch.Tensor | np.ndarray):
            value = as_digest(value)
        text[name] = repr(value)
        if any(mark in text[name] for mark in (" at 0x", "...", "tensor(", "array(")):
            raise ValueError(f"{kind.__name__}.{name} cannot be compared")
    if isinstance(transform, torch.nn.Module):
        tensors = [*transform.named_parameters(recurse=False), *transform.named_buffers("", False)]
        text |= {f"tensor {name}": as_digest(tensor.detach()) for name, tensor in tensors}
        text |= {f"in it {name}": description(one) for name, one in transform.named_children()}
    for one in kind.__mro__[:-1]:
        if not f"{one.__module__}.".startswith(TOLD_BY_VERSION):
            code = Path(inspect.getfile(one)).read_bytes()
            text[f"source of {one.__qualname__}"] = hashlib.sha256(code).hexdigest()
    return text


def as_digest(value: torch.Tensor | np.ndarray[Any, Any]) -> str:
    """Type, shape and SHA-256 of an array."""
    array = np.ascontiguousarray(value)
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def entry_of(folder: Path) -> StoredPool | None:
    """A pool's StoredPool; None if it is no folder, or is just being removed."""
    try:
        files = [(path, path.lstat()) for path in folder.iterdir()]
        about = folder / ABOUT
        used = (about if about.exists() else folder).stat().st_mtime
    except OSError:
        return None
    kept = [np.empty((0, 32), np.uint8)]
    for path, _ in files:
        if path.suffix == ".records" and path.with_suffix(".json").exists():
            with suppress(OSError, ValueError):
                records = np.frombuffer(path.read_bytes(), RECORD)
                kept.append(records["digest"][records["offset"] >= 0])
    size = sum(stat.st_size for _, stat in files)
    images = len(np.unique(np.concatenate(kept), axis=0))  # not those that were only checked
    return StoredPool(folder, size, images, used, read_about(folder))


def read_about(folder: Path) -> dict[str, Any]:
    """What a pool's about.json holds; nothing if it is absent or damaged."""
    try:
        about = json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def remove_pool(folder: Path) -> None:
    """Remove a pool; what a process has mapped stays until it ends."""
    for manifest in folder.glob("*.json"):
        with suppress(OSError):
            manifest.unlink()
    shutil.rmtree(folder, ignore_errors=True)
