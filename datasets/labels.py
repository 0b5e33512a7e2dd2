"""Class names and labels from the numbers, texts and sets that arrays and tables hold."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets import DataError
from datasets.files import check_names, natural, shorten
from datasets.words import counted

MAX_CLASSES = 1_000_000  # class numbers are below it
MAX_NAME = 255  # characters of a class name, as of a class folder

Where = Callable[[int], str]  # the place of label number i, for messages


class Labelled(NamedTuple):
    """Class names, a label for each sample, and a note for the user.

    A label is a class number, or a tuple of a 0.0 or 1.0 for each class.
    """

    classes: tuple[str, ...]
    labels: tuple[Any, ...]
    note: str = ""


def from_numbers(numbers: NDArray[Any], names: Sequence[str] | None, where: Where) -> Labelled:
    """Labels from whole numbers (N,): each number that occurs is a class, in order.

    ``names``: the name of each number; without it the number is the name. Raises DataError for a
    number below 0, or without a name.
    """
    limit = MAX_CLASSES if names is None else len(names)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= limit))
    if len(wrong):
        more = f" (and {len(wrong) - 1:,} more such labels)" if len(wrong) > 1 else ""
        raise DataError(
            f"{where(int(wrong[0]))}: the label is {numbers[wrong[0]]}{more}; expected a class "
            f"number from 0 to {limit - 1:,}."
        )
    used, labels = np.unique(numbers, return_inverse=True)
    if names is None:
        return Labelled(tuple(map(str, used.tolist())), tuple(labels.tolist()))
    classes = tuple(names[number] for number in used.tolist())
    note = ""
    if unused := [name for name in names if name not in set(classes)]:
        what = counted(len(unused), "class name")
        note = f"{what} of {len(names):,} without any image: left out ({_some(unused)})"
    return Labelled(classes, tuple(labels.tolist()), note)


def from_texts(
    place: Path,
    texts: Sequence[str],
    codes: NDArray[Any],
    names: Sequence[str] | None,
    where: Where,
) -> Labelled:
    """Labels from texts: sample i has ``texts[codes[i]]``; classes are in natural order.

    ``texts`` differ. ``names`` gives the order of the classes, and then no other text may occur.
    Raises DataError for a text that is empty, too long or no name, and for texts that differ in
    case only.
    """
    used = np.unique(codes).tolist()
    for code in used:
        wrong = ""
        if not texts[code].strip() or not _is_text(texts[code]):
            wrong = "expected the name of a class"
        elif len(texts[code]) > MAX_NAME:
            wrong = f"expected a class name of at most {MAX_NAME} characters"
        elif names is not None and texts[code] not in names:
            wrong = f"the class names are {_some(names)}"
        if wrong:
            first = where(int(np.argmax(codes == code)))
            raise DataError(f"{first}: the label is {shorten(texts[code])!r}; {wrong}.")
    rows = codes.tolist()
    check_names(place, [texts[code] for code in rows], where)
    found = {texts[code]: code for code in used}
    classes = [name for name in names or sorted(found, key=natural) if name in found]
    label_of = {found[name]: label for label, name in enumerate(classes)}
    return Labelled(tuple(classes), tuple(label_of[code] for code in rows))


def from_sets(rows: Iterable[tuple[int, ...]], names: Sequence[str]) -> Labelled:
    """Several labels an image: each row has the class numbers of one. Equal rows share a tuple."""
    made: dict[tuple[int, ...], tuple[float, ...]] = {}
    labels = []
    for row in rows:
        if row not in made:
            made[row] = tuple(1.0 if k in row else 0.0 for k in range(len(names)))
        labels.append(made[row])
    return Labelled(tuple(names), tuple(labels))


def _is_text(name: str) -> bool:
    """Whether a name can be printed and stored: without halves of surrogate pairs."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(repr(shorten(name)) for name in names[:5]) + more
