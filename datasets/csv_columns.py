"""The message for a table without the wanted columns: what seems to be meant, and what to type."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from datasets import DataError
from datasets.csv_paths import endings_of, places, typed_for
from datasets.csv_table import Table, names_of
from datasets.files import shorten

_TRIED = 20  # rows that are tried to find the column of paths
_LOOKED_AT = 100_000  # rows that are looked at in all
USUAL = {  # names of columns that a header may have instead, without blanks and in small letters
    "path_column": (
        *("path", "file", "filename", "file_name", "image", "image_id", "id", "img", "img_id"),
        *("image_name", "img_name", "image_path", "img_path", "imagepath", "filepath"),
        *("file_path", "image_file", "fname", "fn", "photo", "picture", "isic_id"),
    ),
    "label_column": (
        *("label", "class", "class_name", "category", "target", "species", "breed", "labels"),
        *("classes", "category_name", "label_name", "class_id", "category_id", "label_id"),
        *("diagnosis", "dx", "tags"),
    ),
    "part_column": ("split", "part", "subset", "partition", "set", "usage"),
}


def without_columns(table: Table, root: Path, wanted: Mapping[str, str], has_suffix: bool) -> str:
    """The message for a header that lacks a wanted column, or has it twice.

    wanted: the key of the dataset, such as path_column, and the name that the column should have.
    has_suffix: whether dataset.suffix has a value already.
    """
    header, rows = table.header, _rest(table)
    wants = ",".join(wanted.values())
    if not any(header):
        what = "the first line is empty" if rows else "the file is empty"
        return f"{table.path}: {what}; expected a header, such as {wants}, and one line an image."
    twice = [name for name in wanted.values() if header.count(name) > 1]
    lacking = {key: name for key, name in wanted.items() if name not in header}
    faults = [f"no column '{name}'" for name in lacking.values()]
    faults += [f"the column '{name}' stands {header.count(name)} times" for name in twice]
    line = table.above + 1
    text = f"{table.path}:{line}: {', '.join(faults)}; the header has: {names_of(header)}."
    if twice:
        text += " Rename columns, so that each name stands once."
    if len(header) == 1 and set(wanted.values()) <= set(re.split("[ :]+", header[0])):
        return f"{text} Blanks or colons are not read as separators: write commas instead."
    if _is_row(root, header, rows):
        return f"{text} It seems to have no header: write one above it, such as {wants}."
    if not lacking:
        return text
    return text + _advice(root, (header, rows), wanted, lacking, has_suffix)


def _advice(
    root: Path,
    content: tuple[Sequence[str], Sequence[Sequence[str]]],
    wanted: Mapping[str, str],
    lacking: Mapping[str, str],
    has_suffix: bool,
) -> str:
    """What to type so that the columns are found that are there, and the files that they name."""
    header, rows = content
    guesses = {key: _guess(name, key, header) for key, name in lacking.items()}
    found = _images(root, rows[:_TRIED], len(header))
    if found and "path_column" in lacking:
        guesses["path_column"] = header[found[0]]
    rest = [name for name in header if name not in (*guesses.values(), *wanted.values())]
    if len(rest) == 1 and guesses.get("label_column") == "NAME":
        guesses["label_column"] = rest[0]
    classes = _one_hot(header, rows) if guesses.get("label_column") == "NAME" else []
    text = ""
    if classes:
        del guesses["label_column"]
        text = f" It seems to have a column of 0 and 1 for each of {len(classes):,} classes "
        text += f"({shorten(', '.join(classes))})."
    typed = [shlex.quote(f"dataset.{key}={name}") for key, name in guesses.items()]
    if classes:
        typed.append(_typed_columns(classes, [*guesses.values(), *wanted.values()], header))
        at = [header.index(name) for name in classes]
        whole = (row for row in rows if len(row) == len(header))
        if all(sum(float(row[i]) for i in at) == 1 for row in whole):
            typed.append("dataset.one_hot=true")
    if found:
        column, folder = found
        counts = endings_of(folder, (row[column] for row in rows if column < len(row)))
        typed += typed_for(root, folder, counts, has_suffix)
    return f"{text} Type {' '.join(typed)}"


def _typed_columns(classes: Sequence[str], others: Sequence[str], header: Sequence[str]) -> str:
    """How to type the columns of the labels: their names, or all if these are many."""
    is_all = set(classes) == set(filter(None, header)) - set(others)
    if is_all and len(classes) > 10:
        return "dataset.label_columns=all"
    names = ", ".join(f'"{name}"' if re.search(r"\W", name) else name for name in classes)
    return shlex.quote(f"dataset.label_columns=[{names}]")


def _rest(table: Table) -> list[list[str]]:
    """The rows below the header, up to one that cannot be read."""
    read: list[list[str]] = []
    with suppress(DataError):
        read.extend(islice(table.rows(), 1, _LOOKED_AT))
    return read


def _is_row(root: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a header names an image, or its first cell differs from the next in digits only."""
    if any(next(places(root, name), None) for name in header[:_TRIED]):
        return True
    first, second = header[0], rows[0][0] if rows and rows[0] else ""
    shapes = {re.sub("[0-9]", "0", cell) for cell in (first, second)}
    return first != second and len(shapes) == 1 and not _one_hot(header, rows)


def _one_hot(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The columns that hold 0 and 1 only, if they are two or more."""
    whole = [row for row in rows if len(row) == len(header)]
    columns = dict(zip(header, zip(*whole, strict=True), strict=False))
    binary = [name for name, values in columns.items() if set(values) <= {"0", "1", "0.0", "1.0"}]
    return binary if len(binary) > 1 else []


def _images(root: Path, rows: Iterable[Sequence[str]], columns: int) -> tuple[int, Path] | None:
    """The first column in which a row names an image, and the folder where the image is."""
    for row in rows:
        for column, value in enumerate(row[: min(columns, _TRIED)]):
            if place := next(places(root, value), None):
                return column, place[0]
    return None


def _guess(name: str, key: str, header: Sequence[str]) -> str:
    """The column of the header that is meant by ``name``; "NAME" if that is not clear."""
    usual = (name.lower(), *USUAL[key])
    found = {column.lower().replace(" ", "_"): column for column in reversed(header) if column}
    return next((found[one] for one in usual if one in found), "NAME")
