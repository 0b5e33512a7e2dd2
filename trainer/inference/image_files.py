"""Finds the image files that a user names by files, folders and patterns."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.files import natural
from datasets.walk import describe_left_out, kind_left_out, walk
from trainer.process.words import visible


class FoundImages(NamedTuple):
    """Image files; a line for each text that names none, or each folder that cannot be read.

    note: a line with counts and names of the files that were left out, or "".
    """

    paths: list[str]
    faults: list[str]
    unreadable: list[str]
    note: str


def find_images(texts: Sequence[str], more: frozenset[str] = frozenset()) -> FoundImages:
    """Find the image files that ``texts`` name. more: suffixes beside the usual ones.

    A file may have any suffix. A folder or pattern gives the files that ``walk`` takes for images,
    sorted naturally. If a file has the name of a text, the text is no pattern. Each file is
    returned once.
    """
    found: dict[str, None] = {}
    faults: list[str] = []
    unreadable: list[str] = []
    left_out: dict[str, list[str]] = defaultdict(list)

    def in_folder(folder: str) -> list[str]:
        images, others, errors = walk(folder, more)
        for kind, paths in others.items():
            left_out[kind] += paths
        unreadable.extend(
            f"{visible(str(error.filename))}: cannot be read: {error.strerror}" for error in errors
        )
        return images

    def matching(pattern: str) -> list[str]:
        base, rest = _fixed_part(pattern)
        images: list[str] = []
        for path in base.glob(rest):  # ``**`` follows no links to folders
            if any(name.startswith(".") for name in path.relative_to(base).parts):
                continue
            if path.is_dir():
                images += in_folder(str(path))
            elif kind := kind_left_out(path, more):
                left_out[kind].append(str(path))
            else:
                images.append(str(path))
        return sorted(images, key=natural)

    for text in texts:
        place = text if os.path.lexists(text) else os.path.expanduser(text)
        if os.path.isdir(place):
            images, wrong = in_folder(place), "holds no images"
        elif os.path.lexists(place):
            images, wrong = [place], ""
        elif any(letter in place for letter in "*?["):
            images, wrong = matching(place), "matches no images"
        else:
            images, wrong = [], "does not exist"
        if not images:
            faults.append(f"{visible(text)}: {wrong}")
        found.update(dict.fromkeys(images))
    left_out = {kind: list(dict.fromkeys(paths)) for kind, paths in left_out.items()}
    return FoundImages(list(found), faults, unreadable, visible(describe_left_out(left_out)))


def _fixed_part(pattern: str) -> tuple[Path, str]:
    """The folder that a pattern begins with, and the rest, as a shell reads it."""
    names = Path(pattern).parts
    fixed = 0  # the number of leading names that exist as they are
    while fixed < len(names) and os.path.exists(Path(*names[: fixed + 1])):
        fixed += 1
    # "a**" is "a*" in a shell; pathlib refuses it.
    rest = [name if name == "**" else name.replace("**", "*") for name in names[fixed:]]
    return Path(*names[:fixed]), "/".join(rest)
