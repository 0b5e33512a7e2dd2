"""Finds classes, and parts of an official split, by the names and the content of folders."""

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

from datasets import DataError
from datasets.draw import MARK
from datasets.files import PARTS, Sample, check_names, missing_folder, natural
from datasets.images import SUFFIXES
from datasets.walk import describe_left_out, is_folder, is_visible, kind_left_out, walk
from datasets.words import counted

Layout = Literal["auto", "parts", "classes"]
# Words of folder names such as seg_train and val2017. Some also mean other things, so they name a
# part only if all folders beside them are parts too.
_WORDS = PARTS | {"tr": "train", "trn": "train", "trainset": "train", "te": "test", "tst": "test"}
_WORDS |= {"testset": "test", "valset": "val", "dev": "val", "eval": "val", "evaluation": "val"}


def scan(
    root: Path,
    layout: Layout = "auto",
    same_inside: bool = False,
    more: frozenset[str] = frozenset(),
) -> tuple[list[Sample], str]:
    """List ``root/CLASS/**/IMAGE``, or ``root/PART/CLASS/**/IMAGE``. The second value is a note.

    Samples are sorted by part, class and path. ``layout``: "classes" takes every folder as a class;
    "parts" takes folders as parts whose names have a word such as "train", and leaves out others
    and those without class folders;
    "auto" decides, and refuses folders that can be read both ways, such as classes that hold
    folders of the same names (which ``same_inside`` allows). A single ``train`` folder that holds
    images, beside others, is a class. ``more``: suffixes of images beside the usual ones.
    Raises DataError: no such folder, no class folder, classes without images, class names that only
    look different, a root one level too high or too low (with ``layout`` "auto" also one that holds
    more images than its class folders), folders that cannot be read.
    """
    if not root.is_dir():
        raise missing_folder(root)
    samples: list[Sample] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    try:
        parts = {} if layout == "classes" else _parts(root, layout, same_inside, more)
        if parts:
            for outer in sorted({"", *(str(p) for f in parts for p in Path(f).parents[:-1])}):
                _left_beside(root, outer, left_out, more)
            unread = set(_folders(root)) - {folder.split("/")[0] for folder in parts}
            held = {name: walk(os.path.join(root, name), more) for name in sorted(unread)}
            told = [f"{name}: {counted(len(one.images), 'image')}" for name, one in held.items()]
            left_out |= {"folders that are no part": told} if told else {}
        for folder, part in parts.items() or [("", None)]:
            level = "classes" if same_inside else layout  # RMB has no argument layout
            samples += _scan_classes(root, folder, part, left_out, level, more)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}.") from error
    check_names(root, [sample.class_name for sample in samples], lambda i: samples[i].path)
    notes = [describe_left_out(left_out)] if left_out else []
    if not all(name.lower() in PARTS for name in parts):
        read = ", ".join(f"'{name}' as {part}" for name, part in parts.items())
        notes += [f"read {read} (dataset.layout=classes reads all folders as classes)"]
    return samples, "\n".join(notes)


@lru_cache(1024)  # a table of images has few names, a million times
def part_of(name: str) -> str | None:
    """The part that a word of ``name`` names: "train" for seg_train, None for none or several."""
    words = {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)} | {name.lower()}
    found = {_WORDS[word] for word in words if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def _parts(root: Path, layout: Layout, same_inside: bool, more: frozenset[str]) -> dict[str, str]:
    """The folders that are parts, below ``root``, in the order train, val, test; {} for classes."""
    names = sorted(_folders(root))
    exact = {name: PARTS[name.lower()] for name in names if name.lower() in PARTS}
    loose = {name: part for name in names if (part := part_of(name)) not in (None, *exact.values())}
    named = exact | {name: part for name, part in loose.items() if part is not None}
    labelled = {n: part for n, part in named.items() if _folders(root / _inner(root, n, part))}
    if layout == "parts":
        named = labelled if "train" in labelled.values() else named
    if (exact and len(exact) == len(names)) or layout == "parts":
        if len(set(named.values())) < len(named) or "train" not in named.values():
            raise DataError(
                f"{root}: found {_list(named or names)}, but expected one train folder, and at "
                f"most one of val, valid, validation, and at most one test."
            )
        return _in_order(root, named)
    inside = {name: _inside(os.path.join(root, name), 0, more) for name in names}
    nested = all(inside[name] for name in named)  # the named ones hold no images, only folders
    is_split = nested and len(set(named.values())) == len(named) > 1 and "train" in named.values()
    if is_split and len(named) == len(names):
        return _in_order(root, named)
    is_part = exact and all(inside[name] for name in exact)  # no class, if alone
    if is_split or is_part or not set(exact.values()) <= {"train"}:
        raise DataError(_either(root, named, names, labelled))
    if shared := {} if same_inside else _sharing(inside):
        raise DataError(_same_inside(root, shared, inside))
    return {}


def _in_order(root: Path, named: Mapping[str, str]) -> dict[str, str]:
    """The parts in their order; a folder such as seg_train/seg_train is the inner one."""
    order = list(dict.fromkeys(PARTS.values()))
    parts = {}
    for name in sorted(named, key=lambda name: order.index(named[name])):
        parts[_inner(root, name, named[name])] = named[name]
    return parts


def _inner(root: Path, name: str, part: str) -> str:
    """The folder of a part's classes: ``name``, or the only folder in it that names the part."""
    while len(inner := _folders(root / name)) == 1 and part_of(inner[0]) == part:
        name = f"{name}/{inner[0]}"
    return name


def _inside(folder: str, most: int, more: frozenset[str]) -> tuple[str, list[str]] | None:
    """The folders in a folder, or in the only folder that it holds.

    None if it holds more than ``most`` images beside them.
    """
    inner: list[str] = []
    for _ in range(8):
        inner = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_folder(entry):
                    inner += [entry.name] if is_visible(entry.name) else []
                elif not kind_left_out(entry, more):
                    most -= 1
                    if most < 0:
                        return None
        if len(inner) != 1:
            break
        folder = os.path.join(folder, inner[0])
    return (folder, sorted(inner, key=natural)) if inner else None


def _sharing(inside: Mapping[str, tuple[str, list[str]] | None]) -> dict[str, list[str]]:
    """The folders that hold no images, but two or more folders of the same names as another."""
    sets = {name: set(found[1]) for name, found in inside.items() if found}
    result = {}
    for name, own in sets.items():
        common = max((own & o for key, o in sets.items() if key != name), key=len, default=set())
        if len(common) > 1:
            result[name] = sorted(common, key=natural)
    return result


def _either(
    root: Path, named: Mapping[str, str], names: list[str], labelled: Mapping[str, str]
) -> str:
    """The message for folders of which some are named like parts of a split."""
    others = sorted(set(names) - set(named))
    without = sorted(set(names) - set(labelled))  # what layout=parts leaves out
    how = f"rename them to train, valid and test (below {root})"
    if len(set(labelled.values())) == len(labelled) > 1 and "train" in labelled.values():
        how = f"leaving out {_list(without)}, " * bool(without) + "type dataset.layout=parts"
    elif train := next((name for name, part in named.items() if part == "train"), None):
        folder = next(iter(_in_order(root, {train: "train"})))
        how = f"val and test are cut from it if you type {_key('root', root / folder)}"
    beside = f" beside {_list(others)}" if others else ""
    return (
        f"{root}: {_list(named)}{beside}: are these parts of a split or classes?\n"
        f"For parts: {how}\nFor classes: type dataset.layout=classes"
    )


def _same_inside(
    root: Path, shared: Mapping[str, list[str]], inside: Mapping[str, tuple[str, list[str]] | None]
) -> str:
    """The message for folders that hold the same folders."""
    name, common = next(iter(shared.items()))
    found = inside[name]
    parts = (
        f"For parts, where {_list(common)} are the classes: rename the folders to train, valid and "
        "test.\n"
    )
    if all(part_of(folder) for folder in common):
        parts = "CLASS/PART/IMAGE is not read as a split: make it PART/CLASS/IMAGE.\n"
    return (
        f"{root}: {_list(shared)} hold no images themselves, but folders of the same names "
        f"({_list(common)}). Are they classes, or parts of a split? For classes, with the images "
        f"of all folders below: type dataset.layout=classes\n{parts}For one of them alone: type "
        f"{_key('root', found[0] if found else root / name)}"
    )


def _scan_classes(
    root: Path,
    folder: str,
    part: str | None,
    left_out: dict[str, list[str]],
    layout: Layout,
    more: frozenset[str],
) -> list[Sample]:
    """The samples of a folder of classes. Adds to ``left_out``; paths are relative to ``root``."""
    place, start = os.path.join(root, folder), len(os.path.join(root, ""))
    stray = _left_beside(root, folder, left_out, more)
    names = sorted(_folders(place), key=natural)
    if not names:
        raise DataError(_without_classes(root, Path(place), stray))
    found = {name: walk(os.path.join(place, name), more) for name in names}
    if errors := [error for one in found.values() for error in one.unreadable]:
        lines = [f"{error.filename}: cannot be read: {error.strerror}." for error in errors]
        raise DataError(_lines(lines))
    full = [name for name, one in found.items() if one.images]
    inside = sum(len(one.images) for one in found.values())
    low = ""
    if len(stray) > inside and part is None and layout == "auto":
        low = (
            f"{root}: {counted(len(stray), 'image')} {'lie' if len(stray) > 1 else 'lies'} "
            f"directly in this folder ({_list(sorted(stray)[:3])}), and {inside:,} in its "
            f"folders {_list(names)}.\n{_one_too_low(root)}"
        )
        if inside:
            raise DataError(f"{low}\nTo leave them out, type dataset.layout=classes")
    if len(full) == 1 and part is None:
        inner = _inside(os.path.join(place, full[0]), len(found[full[0]].images) // 2, more)
        if inner and len(inner[1]) > 1:
            raise DataError(
                f"{root}: only the folder '{full[0]}' holds images, in {_list(inner[1])}: this "
                f"root seems one level too high. Type {_key('root', inner[0])}"
            )
    if len(full) < len(names):
        lines = [
            f"{os.path.join(place, name)}: this class has no images; {_holding(one.left_out)}."
            for name, one in found.items()
            if not one.images
        ]
        suffixes = ", ".join(sorted(SUFFIXES | more))
        advice = f"Expected files that end in {suffixes}. Add some or remove the folder."
        raise DataError(f"{_lines(lines)}\n{advice}" + f"\n{low}" * bool(low))
    for one in found.values():
        for kind, paths in one.left_out.items():
            left_out[kind] += [path[start:] for path in paths]
    # Paths first: samples between them would leave holes in memory when they are gone.
    images = {
        name: [path[start:].replace(os.sep, "/") for path in one.images]
        for name, one in found.items()
    }
    return [Sample(path, name, part) for name, some in images.items() for path in some]


def _left_beside(
    root: Path, folder: str, left_out: dict[str, list[str]], more: frozenset[str]
) -> list[str]:
    """Add all files beside folders, and hidden folders; return the images' names."""
    place, start = os.path.join(root, folder), len(os.path.join(root, ""))
    images = []
    for entry in os.scandir(place):
        path = entry.path[start:]
        if is_folder(entry):
            if not is_visible(entry.name):
                left_out["hidden"].append(f"{path}/")
            continue
        if entry.name == MARK:  # the project's own file
            continue
        if not (kind := kind_left_out(entry, more)):
            images.append(entry.name)
        left_out[kind or "images beside folders"].append(path)
    return images


def _without_classes(root: Path, place: Path, stray: list[str]) -> str:
    other = "" if place != root else f", or {root}/train/CLASS/IMAGE.jpg beside valid and test"
    text = f"{place}: no class folders here; expected {place}/CLASS/IMAGE.jpg{other}."
    if not stray:
        return text
    text += (
        f" It holds {counted(len(stray), 'image')} without a class ({_list(sorted(stray)[:3])})."
    )
    if place == root:
        return (
            f"{text}\nIf a table holds the labels, type dataset.name=CSVImages\n"
            f"{_one_too_low(root)}"
        )
    text += f"\nIf '{place.name}' is a class itself, type dataset.layout=classes"
    train = [name for name in _folders(root) if part_of(name) == "train"]
    if not train or place.is_relative_to(root / train[0]):
        return text
    return f"{text}\nTo leave out folders without classes, type dataset.layout=parts"


def _one_too_low(root: Path) -> str:
    place = root.resolve()
    return f"If '{place.name}' is one of the classes, type {_key('root', place.parent)}"


def _key(key: str, value: object) -> str:
    """``dataset.KEY=VALUE`` as a shell takes it; nothing may follow it but a space or an end."""
    return shlex.quote(f"dataset.{key}={value}")


def _holding(left_out: Mapping[str, list[str]]) -> str:
    text = describe_left_out(left_out).partition(";")[0]
    return f"it holds {text.partition(': ')[2]}" if text else "it is empty"


def _folders(folder: str | Path) -> list[str]:
    return [
        entry.name for entry in os.scandir(folder) if is_folder(entry) and is_visible(entry.name)
    ]


def _lines(lines: Iterable[str], shown: int = 10) -> str:
    listed = list(lines)
    more = [f"... and {len(listed) - shown} more"] if len(listed) > shown else []
    return "\n".join(listed[:shown] + more)


def _list(names: Iterable[str]) -> str:
    listed = [f"'{name}'" for name in names]
    return ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")
