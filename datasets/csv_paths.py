"""The paths in a table of images: how they are read, and what mends those without a file."""

import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from datasets.images import SUFFIXES

OUTSIDE = "paths outside of the root"
_DRIVE = re.compile("[A-Za-z]:/")
_ODD = re.compile(r"[\\:]|^[./]|//|/\.|/$|[^\x00-\x7f]|^$")  # in a path that may need a change
_ENDINGS = ["", *(e for suffix in sorted(SUFFIXES) for e in (suffix, suffix.upper()))]


class Paths:
    """Reads paths of a table as paths below ``root``.

    suffixes: what is added to paths that end in none of them; the first with which a file exists.
    strip: what is removed from the beginning of paths that have it.
    converted: how many paths were converted, by what was done.
    """

    def __init__(self, root: Path, suffixes: Sequence[str], strip: str) -> None:
        self.root, self.suffixes, self.strip = root, suffixes, strip.replace("\\", "/")
        self.converted: Counter[str] = Counter()
        self._stripped = f"paths are read without '{self.strip}' at their beginning"
        self._top = os.path.join(os.path.abspath(root), "")

    def relative(self, path: str) -> str:
        """The path with the suffix, relative to the root, in one spelling: no "./a.jpg"."""
        if not (self.suffixes or self.strip or _ODD.search(path)):
            return path  # as most are
        if "\\" in path and not os.path.exists(self.root / path):
            path = path.replace("\\", "/")
            self.converted["paths with \\ are read with /"] += 1
        if "://" in path:
            if not path.startswith("file:"):
                return path
            path = unquote(path.removeprefix("file:").removeprefix("//localhost")).lstrip("/")
            path = path if _DRIVE.match(path) else f"/{path}"
            self.converted["paths with file:// are read without it"] += 1
        if self.strip and path.startswith(self.strip):
            path = path[len(self.strip) :].lstrip("/")
            self.converted[self._stripped] += 1
        endings = self.suffixes
        if endings and path and not path.endswith(tuple(filter(None, endings))):
            if len(endings) > 1:
                there = [end for end in endings if os.path.exists(self.root / (path + end))]
                if len(there) > 1:
                    what = f"ids have files with {' and '.join(there)}; {there[0]} is read"
                    self.converted[what] += 1
                endings = there or endings
            path += endings[0]
        if os.path.isabs(path) and os.path.normpath(path).startswith(self._top):
            path = os.path.normpath(path)[len(self._top) :]
            self.converted["absolute paths below the root are read as relative"] += 1
        if not {"", "."}.isdisjoint(path.split("/")):
            path = PurePosixPath(path).as_posix()
        if not path.isascii() and not os.path.lexists(self.root / path):
            for form in ("NFC", "NFD"):  # a Mac writes names of files decomposed
                other = unicodedata.normalize(form, path)
                if other != path and os.path.lexists(self.root / other):
                    self.converted["paths are read in the Unicode form of the files"] += 1
                    return other
        return path

    def note(self) -> str:
        """A note if ``strip`` had no effect, else ""."""
        if not self.strip or self.converted[self._stripped]:
            return ""
        return f"no path begins with dataset.strip, '{self.strip}'"

    def fault(self, path: str) -> tuple[str, str] | None:
        """The kind of fault and the text, if a path cannot be used whatever files there are."""
        if not _ODD.search(path):
            return None
        if path == ".":
            return "empty paths", "the path is empty."
        if "://" in path:
            text = f"'{path}' is an address: download the images, and list their files."
            return "addresses of the web", text
        if path.startswith("/") or _DRIVE.match(path) or ".." in path.split("/"):
            text = f"'{path}' leaves the root {self.root}; paths must be relative to it."
            return OUTSIDE, text
        return None

    def hint_for_outside(self, paths: Sequence[str]) -> str:
        """What to type so that paths from another place are found below the root, or ""."""
        pieces = paths[0].split("/")
        for number in range(1, len(pieces)):
            tail = "/".join(pieces[number:])
            if tail and ".." not in pieces[number:] and _is_file(self.root, tail):
                begin = paths[0][: len(paths[0]) - len(tail)]
                tails = [path[len(begin) :] for path in paths if path.startswith(begin)]
                found = sum(_is_file(self.root, tail) for tail in tails)
                typed = shlex.quote(f"dataset.strip={begin}")
                return (
                    f"To find {found:,} of {len(paths):,} such paths below the root, type {typed}"
                )
        return ""

    def hint_for_missing(self, missing: Sequence[str], paths: Iterable[str]) -> str:
        """How to mend missing files, found with the first and counted with all paths, or ""."""
        path, first = missing[0], self._plain(missing[0])
        if place := next(places(self.root, first), None):
            counts = endings_of(place[0], map(self._plain, paths))
            typed = " ".join(typed_for(self.root, place[0], counts, bool(self.suffixes)))
            if len(counts) == 1:
                return f"To find '{first}', type {typed}"
            (ending, number), *more = counts.items()
            told = f"{number:,} of the ids are found with {ending or 'no suffix'}"
            told += "".join(f", {n:,} with {ending or 'no suffix'}" for ending, n in more)
            return f"{told}: type {typed}"
        folder, name = os.path.split(os.path.join(self.root, path))
        return _near_name(os.listdir(folder) if os.path.isdir(folder) else [], name, first)

    def _plain(self, path: str) -> str:
        """The path as it stands in the table, without the suffix."""
        return next((path.removesuffix(e) for e in self.suffixes if e and path.endswith(e)), path)


def _near_name(names: Sequence[str], name: str, plain: str) -> str:
    """What a file is called that differs from ``name`` in case, form or leading zeros, or ""."""
    for other in names:
        if _folded(other) == _folded(name):
            return f"{other!r} is there: names differ in case or Unicode form; write them alike."
    digits = os.path.basename(plain).split(".")[0]
    for other in names if digits.isdecimal() else ():
        stem = other.split(".")[0]
        if stem.isdecimal() and len(stem) > len(digits) and stem.lstrip("0") == digits.lstrip("0"):
            return (
                f"{other!r} is there: leading zeros are lost, as in a spreadsheet; the files have "
                f"{len(stem)} digits. Export the column as text, so that it has '{stem}'."
            )
    return ""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _is_file(folder: Path, path: str) -> bool:
    return os.path.isfile(os.path.join(folder, path))


def places(root: Path, path: str) -> Iterator[tuple[Path, str]]:
    """Each folder and suffix with which ``path`` is a file; the suffix may be empty."""
    folders = [root, *sorted(p for p in root.iterdir() if p.is_dir())[:100], root.parent]
    for folder in folders if path else ():
        for ending in _ENDINGS:
            if _is_file(folder, path + ending):
                yield folder, ending


def endings_of(folder: Path, paths: Iterable[str]) -> Counter[str]:
    """How many of the paths are files below a folder with each suffix, the most frequent first."""
    counts: Counter[str] = Counter()
    order = _ENDINGS
    for path in paths:
        for ending in order:
            if path and _is_file(folder, path + ending):
                counts[ending] += 1
                if ending != order[0]:  # the next path has the same, as a rule
                    order = [ending, *(other for other in order if other != ending)]
                break
    return Counter(dict(counts.most_common()))


def typed_for(root: Path, folder: Path, counts: Mapping[str, int], is_set: bool) -> list[str]:
    """What to type so that files are found in a folder with these suffixes.

    is_set: whether dataset.suffix has a value already.
    """
    texts = [f"dataset.root={folder}"] * (folder != root)
    if len(counts) > 1:
        listed = ", ".join(ending or "''" for ending in counts)
        texts.append(f"dataset.suffix=[{listed}]")
    elif any(counts):
        texts.append(f"dataset.suffix={next(iter(counts))}")
    elif is_set:
        texts.append('dataset.suffix=""')
    return [shlex.quote(text) for text in texts]
