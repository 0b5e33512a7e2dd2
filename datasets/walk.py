"""Finds the image files below a folder, and names all that it leaves out."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.files import natural
from datasets.heif import EXTRA, HEIF_SUFFIXES, has_heif
from datasets.images import SUFFIXES, check_file
from datasets.words import agreeing, counted

# Folders that systems and programs make; none holds a user's images.
SYSTEM = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
SYSTEM |= {"lost+found", "__pycache__"}
# The first bytes of the formats that are read -> the usual suffix.
_MAGIC = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png", b"GIF8": ".gif"}
_MAGIC |= {b"II*\0": ".tif", b"MM\0*": ".tif", b"\xffO\xffQ": ".j2k"}
_MAGIC |= {b"\0\0\0\x0cjP  \r\n\x87\n": ".jp2"}
_MAGIC |= {b"P%d%c" % (kind, space): ".ppm" for kind in range(1, 7) for space in b" \t\r\n"}
_KINDS, _EXAMPLES = 8, 3  # shown of what was left out
# What holds no pictures stands last among what was left out, and what may be pictures first.
_PICTURES = frozenset(".heic .heif .hif .avif .jxl .psd .tga .svg .exr .hdr .ico .pfm".split())
_PICTURES |= frozenset(".raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .pef .srw".split())
_JUNK = frozenset(".db .txt .md .csv .tsv .json .xml .yaml .yml .ini .log .html .pdf .py".split())


class Found(NamedTuple):
    """Image files in natural order, what was left out by kind, and folders that cannot be read."""

    images: list[str]
    left_out: Mapping[str, list[str]]
    unreadable: list[OSError]


def walk(folder: str, more: frozenset[str] = frozenset()) -> Found:
    """Find the image files in and below ``folder``; their paths begin with ``folder``.

    Links to folders are followed, each real folder once; a link to a folder that holds the link or
    ``folder`` is left out. Hidden files and folders and those of ``SYSTEM`` are left out.
    more: suffixes of images beside SUFFIXES.
    """
    images: list[str] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    unreadable: list[OSError] = []
    top, seen, waiting = os.path.realpath(folder), set[str](), [folder]
    while waiting:
        links: list[str] = []
        inner = [(start := waiting.pop(0), os.path.realpath(start))]  # with the real paths
        while inner:
            place, here = inner.pop()
            try:
                with os.scandir(place) as entries:
                    files, folders = _files_and_folders(entries)
            except OSError as error:
                unreadable.append(error)
                continue
            if here in seen:
                continue
            seen.add(here)
            deeper = []
            for entry in folders:
                if not is_visible(entry.name):
                    left_out["hidden"].append(f"{entry.path}/")
                elif entry.is_symlink():
                    links.append(entry.path)
                else:
                    deeper.append((entry.path, os.path.join(here, entry.name)))
            inner += reversed(deeper)
            for entry in files:
                if kind := kind_left_out(entry, more):
                    left_out[kind].append(entry.path)
                else:
                    images.append(entry.path)
        for path in sorted(links):
            target = os.path.realpath(path)
            holder = os.path.realpath(os.path.dirname(path))
            if any(os.path.commonpath([target, inner]) == target for inner in (holder, top)):
                left_out["links in a circle"].append(path)
            else:
                waiting.append(path)
    images.sort(key=lambda path: natural(path[len(folder) :]))  # all begin with ``folder``
    return Found(images, left_out, unreadable)


def _files_and_folders(
    entries: Iterable[os.DirEntry[str]],
) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    found: tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]] = ([], [])
    for entry in entries:
        found[is_folder(entry)].append(entry)
    return found


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_visible(folder: str) -> bool:
    """Whether a folder of this name may hold a user's images."""
    return not folder.startswith(".") and folder not in SYSTEM


def kind_left_out(file: os.DirEntry[str] | Path, more: frozenset[str] = frozenset()) -> str:
    """What a file is that is not read, such as ".heic"; "" for an image.

    The suffix decides; for a name without suffix, or with digits as its suffix, the content does.
    """
    name = file.name
    if name.startswith("."):  # .DS_Store, and ._x.jpg that macOS writes beside x.jpg
        return "hidden"
    if _is_broken_link(file):
        return "broken links"
    _, dot, ending = name.rpartition(".")
    suffix = f".{ending.lower()}" if dot else ""
    if suffix in SUFFIXES or suffix in more or (suffix in HEIF_SUFFIXES and has_heif()):
        return ""
    if suffix.strip(".0123456789"):
        return suffix
    return "" if suffix_by_content(file) else "without suffix"


def _is_broken_link(file: os.DirEntry[str] | Path) -> bool:
    try:
        return file.is_symlink() and not os.path.exists(file)
    except OSError:
        return False


def suffix_by_content(path: str | os.PathLike[str]) -> str:
    """The usual suffix of a file's format; "" if it is no image or cannot be read."""
    try:
        check_file(path)
        with open(path, "rb") as file:
            head = file.read(16)
    except (OSError, ValueError):
        return ""
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return ".bmp"
    if head[:4] + head[8:12] == b"RIFFWEBP":
        return ".webp"
    if head[4:12] == b"ftypavif":
        return ".avif"
    return next((suffix for magic, suffix in _MAGIC.items() if head.startswith(magic)), "")


def describe_left_out(left_out: Mapping[str, Sequence[str]]) -> str:
    """A line with counts and names of what ``walk`` left out; "" for nothing."""
    if not left_out:
        return ""
    kinds = sorted(left_out, key=lambda kind: (_rank(kind), -len(left_out[kind]), kind))
    texts = []
    for kind in kinds[:_KINDS]:
        paths = sorted(left_out[kind], key=natural)
        names = ", ".join(paths[:_EXAMPLES]) + ", ..." * (len(paths) > _EXAMPLES)
        texts.append(f"{len(paths):,} {agreeing(len(paths), kind)} ({names})")
    if rest := sum(len(left_out[kind]) for kind in kinds[_KINDS:]):
        more = len(kinds) - _KINDS
        texts.append(f"{counted(rest, 'file')} of {counted(more, 'more kind')}")
    total = sum(map(len, left_out.values()))
    advice = "; to use images among them, convert them to .png or .jpg"
    if not has_heif() and left_out.keys() & HEIF_SUFFIXES:
        advice += f", or for HEIF: {EXTRA}"
    is_file = any(kind.startswith((".", "without")) and kind not in _JUNK for kind in kinds)
    return f"left out {total:,}: {', '.join(texts)}{advice * is_file}"


def _rank(kind: str) -> int:
    """0 for kinds that may be pictures, 1 for unknown ones, 2 for what holds none."""
    if kind in _JUNK or kind in ("hidden", "without suffix"):
        return 2
    return int(kind.startswith(".") and kind not in _PICTURES)
