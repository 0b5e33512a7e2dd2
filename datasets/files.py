"""Image files below one folder: the common code of RMB, ImageFolder and CSVImages."""

import difflib
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from datasets import DataError
from datasets.images import read_and_tell, read_file

# Folder names and CSV values that name an official split -> the split.
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
PARTS |= {"test": "test", "testing": "test"}


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

    def __init__(
        self,
        root: Path,
        samples: Sequence[Sample],
        classes: Sequence[str],
        on_broken: str,
        note: str = "",
    ) -> None:
        label_of = {name: label for label, name in enumerate(classes)}
        self.root = root
        self.classes = tuple(classes)
        self.labels = tuple(label_of[sample.class_name] for sample in samples)
        self.ids = tuple(sample.path for sample in samples)
        self.parts = tuple(sample.part for sample in samples)
        self.on_broken = on_broken
        self.remarks = bytearray(len(samples))
        self.note = note

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


def missing_folder(root: Path) -> DataError:
    """The error for a root that is not a folder; it suggests folders with similar names."""
    if root.exists():
        return DataError(f"{root}: this is a file, but dataset.root must be a folder.")
    existing = next(parent for parent in root.parents if parent.is_dir())
    wanted = root.relative_to(existing).parts[0]
    try:
        names = [path.name for path in existing.iterdir() if path.is_dir()]
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


def check_names(place: Path, samples: Iterable[tuple[str, object]]) -> None:
    """Raise DataError if class names differ only in case, spaces or Unicode form.

    The case of single letters counts: "a" and "A" are two classes. ``samples``: the class of each
    image, and where it is.
    """
    first: dict[str, object] = {}
    counts: Counter[str] = Counter()
    for name, where in samples:
        counts[name] += 1
        first.setdefault(name, where)
    groups: dict[str, list[str]] = {}
    for name in counts:
        key = " ".join(unicodedata.normalize("NFKC", name).split())
        groups.setdefault(key.casefold() if len(key) > 1 else key, []).append(name)
    lines = []
    for group in groups.values():
        if len(group) > 1:
            is_form = len({unicodedata.normalize("NFC", name) for name in group}) == 1
            what = "Unicode form (composed or not)" if is_form else "case, spaces or Unicode form"
            told = (f"{ascii(n)} ({counts[n]:,} times, first {first[n]})" for n in group)
            lines.append(f"{place}: the classes {' and '.join(told)} differ only in {what}.")
    if lines:
        raise DataError("\n".join([*lines, "Give each class one name, the same everywhere."]))
