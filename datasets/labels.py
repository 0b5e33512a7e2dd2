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
MAX_SHARES = 100_000_000  # of all different sets of labels, 8 bytes each
NO_LABEL = {"nan", "-nan", "na", "n/a", "#n/a", "#na", "<na>", "nat", "null"}  # pandas' names

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
    used_names, note = set(classes), ""
    if unused := [name for name in names if name not in used_names]:
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
    Raises DataError for a text that is empty, too long, no name or "nan", and for texts that differ
    in case only.
    """
    used, known = np.unique(codes).tolist(), set(names or ())
    for code in used:
        wrong = ""
        if not texts[code].strip() or not _is_text(texts[code]):
            wrong = "expected the name of a class"
        elif len(texts[code]) > MAX_NAME:
            wrong = f"expected a class name of at most {MAX_NAME} characters"
        elif names is not None and texts[code] not in known:
            wrong = f"the class names are {_some(names)}"
        elif names is None and texts[code].lower() in NO_LABEL:
            wrong = "it usually means that there is none; leave out the image, or name the classes"
        if wrong:
            first = where(int(np.argmax(codes == code)))
            raise DataError(f"{first}: the label is {shorten(texts[code])!r}; {wrong}.")
    rows = codes.tolist()
    check_names(place, [texts[code] for code in rows], where)
    found = {texts[code]: code for code in used}
    classes = [name for name in names or sorted(found, key=natural) if name in found]
    label_of = {found[name]: label for label, name in enumerate(classes)}
    return Labelled(tuple(classes), tuple(label_of[code] for code in rows))


def from_matrix(
    place: Path,
    rows: NDArray[Any],
    several: bool,
    classes: Sequence[str] | None,
    where: Where,
) -> Labelled:
    """Labels from rows of 0 and 1, (N, K): a single 1 in each is one class an image.

    several: such rows are several labels an image all the same. ``classes``: the K names.
    Raises DataError for other rows, another number of names, or if no image has a label.
    """
    if rows.dtype.kind not in "biuf":
        raise DataError(f"{where(0)}: labels {rows.dtype} {rows.shape}; expected rows of 0 and 1.")
    wrong = np.flatnonzero(((rows != 0) & (rows != 1)).any(axis=1))
    if len(wrong):
        raise DataError(
            f"{where(int(wrong[0]))}: {shorten(str(rows[wrong[0]].tolist()))} ({len(wrong):,} such "
            "rows of labels); expected 0 and 1 only."
        )
    if classes is not None and len(classes) != rows.shape[1]:
        raise DataError(
            f"dataset.classes has {len(classes):,} names, and each row of labels {rows.shape[1]:,} "
            "numbers; expected as many."
        )
    is_set = rows != 0
    if not several and (is_set.sum(axis=1) == 1).all():
        found = from_numbers(is_set.argmax(axis=1), classes, where)
        note = f"labels {rows.shape} have a single 1 in each row: they are one class an image"
        return found._replace(note="\n".join(filter(None, [note, found.note])))
    names = classes or [str(number) for number in range(rows.shape[1])]
    return from_sets(place, (tuple(np.flatnonzero(row).tolist()) for row in is_set), names)


def from_sets(place: Path, rows: Iterable[tuple[int, ...]], names: Sequence[str]) -> Labelled:
    """Several labels an image: each row has the class numbers of one. Equal rows share a tuple.

    Raises DataError if no row has any, or if the different rows take too much memory.
    """
    made: dict[tuple[int, ...], tuple[float, ...]] = {}
    labels = []
    for row in rows:
        if row not in made:
            if (len(made) + 1) * len(names) > MAX_SHARES:
                raise DataError(
                    f"{place}: {len(names):,} labels in over {len(made):,} different sets take too "
                    "much memory; are these the labels?"
                )
            shares = [0.0] * len(names)
            for number in row:
                shares[number] = 1.0
            made[row] = tuple(shares)
        labels.append(made[row])
    if not any(made):
        raise DataError(f"{place}: no image has a label.")
    return Labelled(tuple(names), tuple(labels))


def text_of(value: object) -> str:
    """A value of a column as text: "" for null and NaN, and a whole number for a whole float."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_text(name: str) -> bool:
    """Whether a name can be printed and stored: without halves of surrogate pairs."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(repr(shorten(name)) for name in names[:5]) + more
