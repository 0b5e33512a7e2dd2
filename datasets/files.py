"""Image files below one folder: the common code of RMB, ImageFolder, CSVImages, torchvision's."""

import difflib
import hashlib
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from datasets import DataError
from datasets.bands import Form, decode_as, recipe_of_form
from datasets.images import read_file

# Folder names and CSV values that name an official split -> the split.
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
PARTS |= {"test": "test", "testing": "test"}
_NUMBERS = re.compile(r"\d+")


class Sample(NamedTuple):
    """One image file; the path is relative to the dataset's root, with forward slashes.

    shares: the share of each class, 0 to 1, where an image may have several labels.
    """

    path: str
    class_name: str
    part: str | None
    shares: tuple[float, ...] | None = None


class ImageFiles:
    """Labelled image files of any colour mode, decoded one at a time to ``form``.

    decoding: exact, or fast: JPEGs may be decoded at a part of their size, see ``decode``.
    remarks: the last Remark on each file that this process decoded, else 0.
    form: channels and bits of the images; a subclass sets it after this class's constructor.
    """

    images: Tensor | None = None
    form = Form()

    def __init__(
        self,
        root: Path,
        samples: Sequence[Sample],
        classes: Sequence[str],
        on_broken: str,
        note: str = "",
        decoding: str = "exact",
    ) -> None:
        label_of = {name: label for label, name in enumerate(classes)}
        self.root = root
        self.classes = tuple(classes)
        self.labels: tuple[Any, ...] = tuple(  # numbers of classes, or shares of them
            label_of[sample.class_name] if sample.shares is None else sample.shares
            for sample in samples
        )
        self.ids = tuple(sample.path for sample in samples)
        self.parts = tuple(sample.part for sample in samples)
        self.on_broken = on_broken
        self.remarks = array("H", bytes(2 * len(samples)))
        self.note = note
        self.decoding = decoding

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Tensor:
        """Decode one file: (3, H, W) uint8, or as ``form`` says. Raises BrokenImage."""
        return self.decode(index, self.content(index))

    def content(self, index: int) -> bytes:
        """The bytes of one file. Raises BrokenImage if it cannot be read."""
        return read_file(self.root / self.ids[index])

    def decode(self, index: int, content: bytes, at_least: int = 0) -> Tensor:
        """Decode what ``content`` returned: (3, H, W) uint8, or as ``form`` says.

        Raises BrokenImage.

        at_least: how many pixels of the shorter side are needed; 0 is all. A JPEG is decoded at
        1/8, 1/4 or 1/2 of its size, the smallest of these that has them.
        """
        path = self.root / self.ids[index]
        image, self.remarks[index] = decode_as(self.form, content, str(path), at_least)
        return image

    @property
    def recipe(self) -> str:
        """All that decides the pixels of a content, besides ``at_least``."""
        return recipe_of_form(self.form, self.decoding, self.ids)

    def digest(self, index: int) -> str:
        """SHA-256 (hex) of the file's bytes. Raises BrokenImage if it cannot be read."""
        return hashlib.sha256(self.content(index)).hexdigest()

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


def natural(name: str) -> tuple[str, str]:
    """Sort key that puts "img2" before "img10"; ties are sorted by the plain text."""
    return _NUMBERS.sub(_by_value, name), name


def _by_value(match: re.Match[str]) -> str:
    """A number as text that is sorted by its value, and before any other text."""
    digits = match[0]
    if digits[0] == "0" or not digits.isascii():
        digits = str(int(digits))
    return f"\0{chr(len(digits))}{digits}"


def check_names(place: Path, names: Sequence[str], where: Callable[[int], object]) -> None:
    """Raise DataError if class names differ only in case, spaces or Unicode form.

    The case of single letters counts: "a" and "A" are two classes. ``names``: the class of each
    image; ``where`` tells where image number i is.
    """
    counts = Counter(names)
    groups: dict[str, list[str]] = {}
    for name in counts:
        key = " ".join(unicodedata.normalize("NFKC", name).split())
        groups.setdefault(key.casefold() if len(key) > 1 else key, []).append(name)
    lines = []
    for group in groups.values():
        if len(group) > 1:
            is_form = len({unicodedata.normalize("NFC", name) for name in group}) == 1
            what = "Unicode form (composed or not)" if is_form else "case, spaces or Unicode form"
            first = {name: where(names.index(name)) for name in group}
            told = (f"{ascii(n)} ({counts[n]:,} times, first {first[n]})" for n in group)
            lines.append(f"{place}: the classes {' and '.join(told)} differ only in {what}.")
    if lines:
        raise DataError("\n".join([*lines, "Give each class one name, the same everywhere."]))
