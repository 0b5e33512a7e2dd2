"""Image files below one folder: the common code of RMB, ImageFolder and CSVImages."""

import difflib
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from datasets import DataError
from datasets.images import SUFFIXES, read_and_tell, read_file

# Folder names and CSV values that name an official split -> the split.
PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Sample(NamedTuple):
    """One image file; the path is relative to the dataset's root, with forward slashes."""

    path: str
    class_name: str
    part: str | None


class ImageFiles:
    """Labelled image files of any colour mode, decoded one at a time to (3, H, W) uint8 RGB.

    remarks: the last Remark on each file that this process decoded, else 0.
    """

    images: Tensor | None = None
    note = ""

    def __init__(
        self, root: Path, samples: Sequence[Sample], classes: Sequence[str], on_broken: str
    ) -> None:
        label_of = {name: label for label, name in enumerate(classes)}
        self.root = root
        self.classes = tuple(classes)
        self.labels = tuple(label_of[sample.class_name] for sample in samples)
        self.ids = tuple(sample.path for sample in samples)
        self.parts = tuple(sample.part for sample in samples)
        self.on_broken = on_broken
        self.remarks = bytearray(len(samples))

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Tensor:
        """Decode one file: (3, H, W) uint8. Raises BrokenImage."""
        image, self.remarks[index] = read_and_tell(self.root / self.ids[index])
        return image

    def digest(self, index: int) -> str:
        """SHA-256 (hex) of the file's bytes. Raises BrokenImage if it cannot be read."""
        return hashlib.sha256(read_file(self.root / self.ids[index])).hexdigest()

    def digests(self, indices: Sequence[int]) -> None:
        """None: each digest needs its file to be read."""


def user_path(text: str, key: str) -> Path:
    """The path ``text`` of the setting ``key``, with a leading ``~`` or ``~user`` expanded.

    It need not exist. Raises DataError for an unknown user, and for a path that cannot be looked
    up: a name too long or with a NUL, a loop of links, a folder without search permission.
    """
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # the reader of the path reports it as missing
    except RuntimeError as error:
        raise DataError(f"{key}: {shorten(text)!r}: the user after ~ is not known here.") from error
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise DataError(f"{key}: {shorten(text)!r} cannot be read: {why}.") from error
    return path


def shorten(text: str) -> str:
    """``text`` for a message: if it has more than 200 characters, its beginning and length."""
    return text if len(text) <= 200 else f"{text[:80]}... ({len(text):,} characters)"


def scan(root: Path) -> list[Sample]:
    """List ``root/CLASS/**/IMAGE``, or ``root/SPLIT/CLASS/**/IMAGE`` with names as in ``PARTS``.

    Sorted by split, class and path. Hidden files and suffixes outside ``SUFFIXES`` are ignored;
    links to files are followed. A single ``train`` folder beside other folders is a class (of
    vehicles, for example); ``train`` and ``test`` beside other folders are an error.
    Raises DataError: no such folder, no class folder, a class without images or without training
    images, split folders mixed with others, a folder that cannot be read.
    """
    if not root.is_dir():
        raise missing_folder(root)
    try:
        names = sorted(_folders(root))
        given = {name: PARTS[name.lower()] for name in names if name.lower() in PARTS}
        if given and set(given.values()) != {"train"} and len(given) < len(names):
            others = sorted(set(names) - set(given))
            raise DataError(
                f"{root}: {_list(given)} beside {_list(others)}: are these parts of a split or "
                f"classes? Expected either only train, valid and test, or only class folders."
            )
        if given and len(given) == len(names):
            return _scan_parts(root, given)
        return _scan_classes(root, "", None)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}.") from error


def missing_folder(root: Path) -> DataError:
    """The error for a root that is not a folder; it suggests folders with similar names."""
    if root.exists():
        return DataError(f"{root}: this is a file, but dataset.root must be a folder.")
    existing = next(parent for parent in root.parents if parent.is_dir())
    wanted = root.relative_to(existing).parts[0]
    try:
        names = _folders(existing)
    except OSError:  # then the error has no hint
        names = []
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(str(existing / name)) for name in near)}?"
    return DataError(
        f"{root}: this folder does not exist (started in {Path.cwd()})." + (hint if near else "")
    )


def natural(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts "img2" before "img10"; ties are sorted by the plain text."""
    pieces = re.split(r"(\d+)", name)  # text, digits, text, digits, ..., text
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], name


def _scan_parts(root: Path, given: dict[str, str]) -> list[Sample]:
    if len(set(given.values())) < len(given) or "train" not in given.values():
        raise DataError(
            f"{root}: found {_list(given)}, but expected one train folder, and at most one of "
            f"val, valid, validation, and at most one test."
        )
    order = list(dict.fromkeys(PARTS.values()))
    names = sorted(given, key=lambda name: order.index(given[name]))
    samples = [sample for name in names for sample in _scan_classes(root, name, given[name])]
    trained = {sample.class_name for sample in samples if sample.part == "train"}
    for sample in samples:
        if sample.class_name not in trained:
            raise DataError(
                f"{root / sample.path}: class '{sample.class_name}' is in {sample.part} but not "
                f"in train; classes of train: {_list(sorted(trained, key=natural))}."
            )
    return samples


def _scan_classes(root: Path, folder: str, part: str | None) -> list[Sample]:
    samples: list[Sample] = []
    for name in sorted(_folders(root / folder), key=natural):
        paths = _image_paths(root, root / folder / name)
        if not paths:
            raise DataError(
                f"{root / folder / name}: this class has no images; expected files that end in "
                f"{', '.join(sorted(SUFFIXES))}. Add some or remove the folder."
            )
        samples += [Sample(path, name, part) for path in paths]
    if not samples:
        raise DataError(
            f"{root / folder}: no class folders here; expected {root / folder}/CLASS/IMAGE.jpg"
            + ("." if folder else f", or {root}/train/CLASS/IMAGE.jpg beside valid and test.")
        )
    return samples


def _image_paths(root: Path, folder: Path) -> list[str]:
    found = []
    for place, folders, files in os.walk(folder, onerror=_fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = Path(place).relative_to(root).as_posix()
        found += [
            f"{prefix}/{name}"  # no Path per file: making them takes longer than everything else
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        ]
    return sorted(found, key=natural)


def _fail(error: OSError) -> None:
    raise error  # by default os.walk skips a folder that it cannot read


def _folders(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]


def _list(names: Sequence[str] | dict[str, str]) -> str:
    shown = [f"'{name}'" for name in names]
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")
