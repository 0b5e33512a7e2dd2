"""The image classification sets of torchvision.datasets, with all their official labelled parts."""

import functools
import importlib.util
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Never

import torchvision

from datasets import DataError, Dataset
from datasets.files import user_path
from datasets.memory import fetch_into
from datasets.torchvision_folders import OFFICIAL
from datasets.torchvision_read import Faces, image_files, images_in_memory
from datasets.words import counted

# Arguments of torchvision that a YAML cannot give, and what it is told.
_TAKEN = {
    "transform": "transforms.train and transforms.eval change the images; remove it.",
    "transforms": "transforms.train and transforms.eval change the images; remove it.",
    "target_transform": "labels stay as they are; remove it.",
    "loader": "image files are read as those of all other datasets; remove it.",
    "train": "train and test are both opened, and stay what they are; remove it.",
    "split": "all official parts are opened, and stay what they are; remove it.",
    "what": "train and test are both opened, and stay what they are; remove it.",
    "compat": "the label is the class; remove it.",
    "target_type": "the label is the class; remove it.",
    "download": "torchvision cannot download these files, or not safely; remove it.",
}
_HELP = {
    "root": "The folder in which torchvision looks for the set's files or folder.",
    "download": "Fetch what is missing; the checksum of each file is compared.",
    "on_broken": "What a file that cannot be decoded does: error ends the run, skip leaves it out.",
    "decode": "fast decodes a JPEG that is much larger than needed at 1/2, 1/4 or 1/8 of its size.",
}


def __getattr__(name: str) -> Callable[..., Dataset]:
    """The builder of a set: MNIST for torchvision/MNIST."""
    if name not in OFFICIAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _builder(name)


@functools.cache
def _builder(name: str) -> Callable[..., Dataset]:
    """A function with the arguments of a YAML in its signature and docstring."""
    official = OFFICIAL[name]
    kinds: dict[str, tuple[Any, Any]] = {"root": (str, "data")}
    kinds |= {key: (own.type, own.default) for key, own in official.own.items()}
    texts = _HELP | {key: own.text for key, own in official.own.items()}
    if official.fetched != "never":
        kinds["download"] = (bool, official.fetched == "yes")
    if official.is_file_set:
        kinds["on_broken"] = (Literal["error", "skip"], "error")
        kinds["decode"] = (Literal["exact", "fast"], "exact")
    taken = _taken_by(getattr(torchvision.datasets, name)) - kinds.keys()
    refused = {key: (Never, None) for key in _TAKEN if key in taken}
    keyword, empty = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
    signature = inspect.Signature(
        [
            inspect.Parameter(
                key, keyword, default=empty if default is ... else default, annotation=kind
            )
            for key, (kind, default) in {**kinds, **refused}.items()
        ]
    )

    def build(**given: Any) -> Dataset:
        bound = signature.bind(**given)
        bound.apply_defaults()
        return open_set(name, {key: bound.arguments[key] for key in kinds})

    build.__name__ = build.__qualname__ = name
    lines = [
        f"{key}: {texts[key] if key in kinds else _TAKEN[key]}" for key in signature.parameters
    ]
    build.__doc__ = "\n".join([official.about, "", *lines])
    vars(build)["__signature__"] = signature
    return build


def _taken_by(kind: type) -> set[str]:
    """The arguments of a class of torchvision, also those that it hands on to its base."""
    inits = [one for one in kind.__mro__ if "__init__" in vars(one)]
    return {key for one in inits for key in inspect.signature(one).parameters}


def open_set(name: str, arguments: Mapping[str, Any]) -> Dataset:
    """All official labelled parts of one of torchvision's sets, with torchvision's labels.

    Grey sets in memory, and Omniglot, give (1, H, W) uint8; all others (3, H, W), RGB. Image files
    are read by datasets/images.py, as all commands read them. So an image with an EXIF orientation
    is upright, one with transparency is composed on white, and of 16 bits the high ones are kept,
    where torchvision's ``convert("RGB")`` does otherwise. All other pixels are torchvision's.
    Classes without any image, such as the "N/A" of EMNIST's letters, are left out, and a note says
    so. Raises ImportError if a package is missing, DataError for files that are missing, damaged or
    not official; it names them, and where they are from.
    """
    official = OFFICIAL[name]
    if official.needs and importlib.util.find_spec(official.needs) is None:
        raise ImportError(
            f'torchvision/{name} needs {official.needs}: pip install -e ".[torchvision]"'
        )
    root = user_path(arguments["root"], "dataset.root")
    own = {key: arguments[key] for key in official.own}
    files = _Files(name, root, own)
    opened = [
        (part, files.opened(given, bool(arguments.get("download"))))
        for part, given in official.parts(own)
    ]
    try:
        if not official.is_file_set:
            return images_in_memory(name, opened)
        found = image_files(name, root, opened, arguments["on_broken"], arguments["decode"])
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise files.damaged(error) from error
    if len(found) < official.images:  # a folder that was cut short while it was unpacked
        few = f"{counted(len(found), 'image')} of {official.images:,} of the official set are there"
        found.note = "\n".join(filter(None, [found.note, few]))
    return found


class _Files:
    """The files of a set below ``root``: what is missing, and where it is from."""

    def __init__(self, name: str, root: Path, own: Mapping[str, Any]) -> None:
        self.name, self.root, official = name, root, OFFICIAL[name]
        words = dict(own)
        for value in own.values():
            words |= official.words.get(value, {})
        self.names = official.files.format(**words).split()
        self.urls = official.urls.format(**words).split()
        self.is_fetched = official.fetched != "never"
        self.place = None if official.place is None else root / official.place

    def missing(self) -> list[str]:
        """The files and folders that are looked for, and are not there."""
        return [name for name in self.names if not os.path.exists(self.root / name)]

    def opened(self, given: Mapping[str, Any], download: bool) -> Any:
        """One part, as torchvision opens it. Raises DataError."""
        kind = getattr(torchvision.datasets, self.name)
        if self.name == "FER2013":
            kind = Faces
        if hasattr(kind, "_check_legacy_exist"):  # processed/*.pt of old versions: pickles
            kind = type(kind.__name__, (kind,), {"_check_legacy_exist": lambda self: False})
        takes = _taken_by(kind)
        arguments = dict(given)
        if "loader" in takes:
            arguments["loader"] = str  # an item is then the path of its file
        missing = self.missing()
        if missing and not download and self.is_fetched:
            raise self.absent(missing, "download is off; type dataset.download=true")
        if "download" in takes:
            arguments["download"] = bool(missing) and download
        try:
            self._require_official()
            return fetch_into(self._deepest(), lambda: kind(str(self.root), **arguments))
        except (MemoryError, DataError):
            raise
        except Exception as error:  # torchvision raises almost any type on damaged files
            if not missing:
                raise self.damaged(error) from error
            why = "downloading failed" if download else "torchvision cannot download them"
            raise self.absent(missing, f"{why}: {_in_one_line(error)}") from error

    def _deepest(self) -> Path:
        """The deepest folder that files are looked for in, or downloaded to."""
        return max(((self.root / name).parent for name in self.names), key=lambda p: len(p.parts))

    def _require_official(self) -> None:
        """Compare the checksums that torchvision does not compare before it unpacks a file."""
        if self.name == "USPS":
            for _, name, md5 in torchvision.datasets.USPS.split_list.values():
                is_there = os.path.exists(path := self.root / name)
                if is_there and not torchvision.datasets.utils.check_md5(path, md5):
                    raise self.damaged(ValueError(f"{name}: its MD5 is not {md5}"))

    def absent(self, missing: list[str], reason: str) -> DataError:
        """The error for files that are not there; it also names archives that lie there already."""
        archives = [url.rpartition("/")[2] for url in self.urls]
        mend = f"Download by hand, and unpack, so that they are there: {', '.join(self.urls)}"
        if self.is_fetched and self.place is not None:
            mend += f". Or put that into {self.place} as it is: with download: true it is unpacked"
            there = [name for name in archives if os.path.isfile(self.place / name)]
            if there:
                reason += f"; there are {', '.join(there)}, but not all are whole and official"
        return DataError(f"{self.root}: missing {', '.join(missing)} ({reason}). {mend}")

    def damaged(self, error: Exception) -> DataError:
        """The error for files that are there and cannot be read."""
        return DataError(
            f"{self.root}: torchvision/{self.name} cannot be read from {', '.join(self.names)}: "
            f"{_in_one_line(error)}. The files are damaged, or not the official ones: remove them, "
            f"and download them again from {', '.join(self.urls)}"
        )


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    own = ("Dataset not found or corrupted", "Dataset not found")
    known = next((one for one in own if text.startswith(one)), text)  # without download=True
    return known if isinstance(error, RuntimeError | DataError) else f"{_kind(error)}{known}"


def _kind(error: Exception) -> str:
    return "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
