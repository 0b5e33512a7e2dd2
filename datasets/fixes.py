"""Corrections of labels from a CSV file, by the SHA-256 of each image's content."""

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import DataError, Dataset, has_several_labels
from datasets.csv_table import Table
from datasets.files import shorten, user_path
from datasets.images import check_file, reason
from datasets.words import counted

LEAVE_OUT = "leave out"  # in place of a label
FIXES_NOTE = "dataset.fixes="  # how the note begins, before the file and ": "
_MOST = 2**26  # bytes of a file
_SHOWN = 10  # faults that are printed
_COLUMNS = ("sha256", "label")
_DIGEST = re.compile("[0-9a-f]{64}")
_Fixed = int | tuple[float, ...] | None  # None: the image is left out


class Fixes:
    """What a file says about images: another label, or that they are left out.

    The file has a header with ``sha256`` and ``label``, in any case; other columns are for people.
    A label is a class, several with ";" between them where an image may have several, or "leave
    out". Raises DataError with all faults and their lines.

    digest: the SHA-256 of the file.
    """

    def __init__(self, file: str, dataset: Dataset) -> None:
        self.path = user_path(file, "dataset.fixes")
        self.classes = dataset.classes
        self._number = {name: number for number, name in enumerate(self.classes)}
        self._shares: dict[tuple[int, ...], tuple[float, ...]] = {}  # equal ones are one object
        self.several = has_several_labels(dataset.labels)
        try:
            check_file(self.path)
            with open(self.path, "rb") as opened:
                content = opened.read(_MOST + 1)
        except (OSError, ValueError) as error:
            raise DataError(f"dataset.fixes: {self.path}: {reason(error)}.") from error
        if len(content) > _MOST:
            raise DataError(f"{self.path}: larger than {_MOST >> 20} MiB; is it a table of fixes?")
        self.digest = hashlib.sha256(content).hexdigest()
        self.label_of: dict[str, _Fixed] = {}
        self.line_of: dict[str, int] = {}
        self.faults: list[str] = []
        self.repeated = 0
        table = Table(self.path, _COLUMNS)
        self.notes = table.notes
        self._read(table)
        if self.faults:
            more = len(self.faults) - _SHOWN
            rest = [f"... and {more:,} more"] if more > 0 else []
            raise DataError("\n".join([*self.faults[:_SHOWN], *rest]))

    def apply(self, dataset: Any, digests: Iterable[tuple[int, str]]) -> tuple[set[int], str]:
        """Set the labels of ``dataset``; return the samples that are left out, and a note.

        digests: (index, SHA-256) of the samples whose content is known.
        """
        labels, left_out = list(dataset.labels), set[int]()
        same = {label: label for label in labels}  # equal tuples are one object
        met: Counter[str] = Counter()
        for index, digest in digests:
            if digest not in self.label_of:
                continue
            label = self.label_of[digest]
            met[digest] += 1
            if label is None:
                left_out.add(index)
            elif labels[index] != label:
                labels[index] = same.setdefault(label, label)
        changed = sum(one != other for one, other in zip(labels, dataset.labels, strict=True))
        told = [f"{counted(changed, 'label')} changed", f"{counted(len(left_out), 'image')} out"]
        if as_before := sum(met.values()) - changed - len(left_out):
            told.append(f"{counted(as_before, 'image')} had the label already")
        if unmet := len(self.label_of) - len(met):
            told.append(f"{counted(unmet, 'row')} of contents that no image has")
        if self.repeated:
            told.append(f"{counted(self.repeated, 'row')} repeated")
        try:
            dataset.labels = tuple(labels)
        except AttributeError as error:
            kind = type(dataset).__name__
            raise DataError(
                f"dataset.fixes: {kind} gives its labels as a property; expected an attribute."
            ) from error
        note = f"{FIXES_NOTE}{self.path}: {', '.join(told)}"
        return left_out, "\n".join([*self.notes, note])

    def _read(self, table: Table) -> None:
        header = table.header
        columns = [at for name in _COLUMNS if (at := _column(header, name)) is not None]
        if len(columns) < len(_COLUMNS):
            raise DataError(
                f"{self.path}:{table.above + 1}: expected a header with the columns "
                f"sha256,label, each once; got {shorten(','.join(header))!r}."
            )
        if LEAVE_OUT in self.classes:
            raise DataError(f"{self.path}: a class has the name {LEAVE_OUT!r}, which fixes need.")
        rows = table.rows()
        next(rows, None)
        for row in rows:
            if not any(row):
                continue
            row += [""] * (len(header) - len(row))
            digest, text = (row[column] for column in columns)
            for fault in self._add(digest.lower(), text, table.line):
                self.faults.append(f"{self.path}:{table.line}: {fault}")

    def _add(self, digest: str, text: str, line: int) -> Iterator[str]:
        """Learn from a row; yield its fault."""
        if not _DIGEST.fullmatch(digest):
            yield f"{shorten(digest)!r} is no SHA-256; expected 64 of 0-9 and a-f."
            return
        label: _Fixed = None
        if not text:
            none = ", or ';' for no class" if self.several else ""
            yield f"the label is empty; write a class, or {LEAVE_OUT!r}{none}."
            return
        if text != LEAVE_OUT:
            names = [name.strip() for name in text.split(";")] if self.several else [text]
            names = [*filter(None, names)]
            if unknown := [name for name in names if name not in self._number]:
                yield self._no_class(unknown[0])
                return
            numbers = tuple(sorted({self._number[name] for name in names}))
            label = self._shares_of(numbers) if self.several else numbers[0]
        if self.label_of.setdefault(digest, label) != label:
            first = self.line_of[digest]
            yield f"contradicts line {first}, which says something else of the same content."
        elif digest in self.line_of:
            self.repeated += 1
        self.line_of.setdefault(digest, line)

    def _shares_of(self, numbers: tuple[int, ...]) -> tuple[float, ...]:
        if numbers not in self._shares:
            shares = [0.0] * len(self.classes)
            for number in numbers:
                shares[number] = 1.0
            self._shares[numbers] = tuple(shares)
        return self._shares[numbers]

    def _no_class(self, name: str) -> str:
        folded = {one.casefold(): one for one in (*self.classes, LEAVE_OUT)}
        near = difflib.get_close_matches(name.casefold(), folded, n=1)
        meant = f"; did you mean {folded[near[0]]!r}?" if near else ""
        shown = ", ".join(map(repr, self.classes[:_SHOWN]))
        more = ", ..." if len(self.classes) > _SHOWN else ""
        return (
            f"{shorten(name)!r} is no class{meant or '.'} There are {shown}{more}, "
            f"and {LEAVE_OUT!r}."
        )


def rows_of_fixes(path: Path) -> list[dict[str, str]]:
    """The rows of a file of fixes as they are: the text by column, with sha256 (a-f) and label.

    Raises DataError if it is no such table.
    """
    table = Table(path, _COLUMNS)
    names = list(table.header)
    for name in _COLUMNS:
        if (at := _column(table.header, name)) is None:
            raise DataError(f"{path}:{table.above + 1}: expected the columns sha256 and label.")
        names[at] = name
    rows = table.rows()
    next(rows, None)
    found = [dict(zip(names, row + [""] * len(names), strict=False)) for row in rows if any(row)]
    return [row | {"sha256": row["sha256"].lower()} for row in found]


def _column(header: Sequence[str], name: str) -> int | None:
    """Where a column stands in a header, perhaps in another case; None unless it stands once."""
    for names in (header, [one.casefold() for one in header]):
        if names.count(name) == 1:
            return names.index(name)
    return None
