"""Finds the image files that a user names by files, folders and patterns."""

import os
from collections.abc import Sequence
from pathlib import Path

from datasets.files import natural
from datasets.images import SUFFIXES
from trainer.process.words import visible


def find_images(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the image files that ``texts`` name, and a line for each text that names none.

    A file may have any suffix. A folder or pattern gives the files with one of ``SUFFIXES``, sorted
    naturally, without hidden files; links to folders are not followed. If a file has the name of a
    text, the text is no pattern. Each file is returned once.
    """
    found: dict[str, None] = {}
    faults: list[str] = []
    for text in texts:
        place = text if os.path.lexists(text) else os.path.expanduser(text)
        if os.path.isdir(place):
            images = _in_folder(place, faults)
            wrong = "holds no images"
        elif os.path.lexists(place):
            images, wrong = [place], ""
        elif any(letter in place for letter in "*?["):
            images = _matching(place, faults)
            wrong = "matches no images"
        else:
            images, wrong = [], "does not exist"
        if not images:
            faults.append(f"{visible(text)}: {wrong}")
        found.update(dict.fromkeys(images))
    return list(found), faults


def _in_folder(folder: str, faults: list[str]) -> list[str]:
    def unreadable(error: OSError) -> None:
        faults.append(f"{visible(str(error.filename))}: cannot be read: {error.strerror}")

    found = []
    for place, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(place, name) for name in files if _is_image(name)]
    return sorted(found, key=natural)


def _matching(pattern: str, faults: list[str]) -> list[str]:
    """Return the images that a shell finds for the pattern; ``**`` stands for any folders."""
    names = Path(pattern).parts
    fixed = 0  # the number of leading names that exist as they are
    while fixed < len(names) and os.path.exists(Path(*names[: fixed + 1])):
        fixed += 1
    base = Path(*names[:fixed])
    # "a**" is "a*" in a shell; pathlib refuses it.
    rest = [name if name == "**" else name.replace("**", "*") for name in names[fixed:]]
    found: list[str] = []
    for path in base.glob("/".join(rest)):  # follows no links to folders either
        if any(name.startswith(".") for name in path.parts[fixed:]):
            continue
        if path.is_dir():
            found += _in_folder(str(path), faults)
        elif _is_image(path.name):
            found.append(str(path))
    return sorted(found, key=natural)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
