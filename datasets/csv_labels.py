"""The labels in a table: one cell with a class or with several names, or a column for each."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from decimal import Decimal
from functools import lru_cache
from operator import itemgetter
from typing import Any, Literal

from datasets import DataError
from datasets.csv_table import Table, names_of
from datasets.files import Sample, natural, shorten
from datasets.labels import MAX_SHARES, NO_LABEL

WITHOUT = "rows without label"
_LONGEST = 255  # characters of a label, the limit for the name of a class folder
_REMEMBERED = 1_000_000  # cells of different rows, so that most rows are not parsed again
NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")
_SHARE = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_RARE = 0.05  # a label with at most this share of the images of a similar one may be misspelt
_DOUBTFUL = {"none", "unknown", "unlabeled", "unlabelled", "undefined", "missing", "unspecified"}
_DOUBTFUL |= {"?", "??", "???", "-", "--", "---", ".", "_", "n.a.", "tbd", "todo", "not available"}
_DOUBTFUL |= {"''", '""', "[]", "no label", "no_label", "not labeled", "not labelled"}


class UnusableRow(Exception):
    """A row that cannot be used: the kind of fault, and the text about this row."""


class LabelReader:
    """Reads the labels of each row, of all tables of a dataset.

    column: the column with a class, or with several names that ``separator`` divides.
    columns: instead, the columns that hold the share of one class each, 0 to 1; "all": all others.
    one_hot: of these columns exactly one is 1, and is the class.
    empty_is_zero: an empty cell in these columns is 0, not a fault.
    converted: how many rows were converted, by what was done.
    Raises ValueError for arguments that do not go together.
    """

    def __init__(
        self,
        column: str,
        columns: list[str] | Literal["all"] | None,
        separator: str | None,
        one_hot: bool,
        empty_is_zero: bool,
    ) -> None:
        if columns is None and (one_hot or empty_is_zero):
            key = "one_hot" if one_hot else "empty_is_zero"
            raise ValueError(f"{key} is about label_columns; name these columns")
        if columns is not None and (separator is not None or column != "label"):
            other = "label_column" if separator is None else "label_separator"
            raise ValueError(f"label_columns and {other} exclude each other; remove one")
        if separator is not None and not separator.strip() and separator != " ":
            raise ValueError("label_separator must not be empty; such as ';'")
        if isinstance(columns, list) and len(set(columns)) != max(len(columns), 2):
            raise ValueError("label_columns must name at least two columns, each once")
        self.column = None if columns is not None else column
        self.columns, self.separator, self.one_hot = columns, separator, one_hot
        self.empty = 0.0 if empty_is_zero else None
        self.are_several = separator is not None or (columns is not None and not one_hot)
        self.converted: Counter[str] = Counter()
        self.classes: list[str] = []  # of columns
        self._cells: itemgetter[Any] = itemgetter(0)
        self._usual: dict[str, str] = {}  # labels without fault or remark, each one object
        self._same: dict[tuple[float, ...], tuple[float, ...]] = {}  # equal ones are one object
        self._known: dict[tuple[str, ...], tuple[str, tuple[float, ...] | None]] = {}

    def names_of_columns(self) -> list[str]:
        """The columns that are named, which a header should have; none for "all"."""
        return self.columns if isinstance(self.columns, list) else []

    def start(self, table: Table, others: Collection[str]) -> None:
        """Find the columns in the header of a table, where ``others`` are no labels.

        Raises DataError if one is absent or stands twice, or if "all" is others than before.
        """
        header, place = table.header, f"{table.path}:{table.above + 1}"
        if self.columns is None:
            self._cells = itemgetter(header.index(self.column or ""))
            return
        columns = list(self.columns)
        if self.columns == "all":
            columns = [name for name in header if name and name not in others]
            if self.classes and set(columns) != set(self.classes):
                only = names_of(sorted(set(columns) ^ set(self.classes)))
                raise DataError(
                    f"{place}: not the columns of the first table; they differ in {only}."
                )
            columns = self.classes or columns
        faults = [f"no column '{name}'" for name in columns if name not in header]
        faults += [f"'{name}' stands several times" for name in columns if header.count(name) > 1]
        if len(columns) < 2:
            faults.append("fewer than two columns beside the path")
        if faults:
            told = ", ".join(faults[:5]) + f" and {len(faults) - 5:,} more" * (len(faults) > 5)
            raise DataError(
                f"{place}: dataset.label_columns: {told}; the header has: {names_of(header)}."
            )
        self.classes = columns
        self._cells = itemgetter(*(header.index(name) for name in columns))

    def read(self, path: str, values: Sequence[str]) -> tuple[str, tuple[float, ...] | None]:
        """The label of a row and, of columns that hold shares, the share of each class.

        Several names in a cell are one text, the same for the same names. Raises UnusableRow.
        """
        if self.columns is not None:
            return self._of_columns(path, self._cells(values))
        cell: str = self._cells(values)
        if self.separator is None:
            if known := self._usual.get(cell):
                return known, None
            self._check(path, cell)
            if cell.lower() not in _DOUBTFUL and len(self._usual) < _REMEMBERED:
                self._usual[cell] = cell
            return cell, None
        names = [name for name in map(str.strip, cell.split(self.separator)) if name]
        if not names:
            self.converted["rows have no label at all"] += 1
        different = sorted(set(names))
        for name in different:
            self._check(path, name)
        if len(different) < len(names):
            self.converted["rows have a label twice, which counts once"] += 1
        return self.separator.join(different), None

    def _check(self, path: str, label: str) -> None:
        """Raise UnusableRow for a text that is no label; count a doubtful one."""
        if not label:
            raise UnusableRow(WITHOUT, f"'{path}' has no label.")
        if len(label) > _LONGEST:
            text = f"the label '{shorten(label)}' is too long; at most {_LONGEST} are allowed."
            raise UnusableRow("long labels", text)
        lower = label.lower()
        if lower in NO_LABEL:
            text = (
                f"'{path}': the label '{label}' usually means that there is none; remove the row, "
            )
            raise UnusableRow(WITHOUT, text + "or write the class by another word.")
        if "\0" in label:
            raise UnusableRow("labels with NUL", f"'{path}': the label {label!r} has a NUL byte.")
        if lower in _DOUBTFUL:
            what = f"rows have the label '{label}', which is taken as a class"
            self.converted[f"{what} (does it mean that there is none?)"] += 1

    def _of_columns(
        self, path: str, cells: tuple[str, ...]
    ) -> tuple[str, tuple[float, ...] | None]:
        if not (found := self._known.get(cells)):
            found = self._parse(path, cells)
            if len(self._known) * len(cells) < _REMEMBERED:
                self._known[cells] = found
        if found[1] is not None and not any(found[1]):
            self.converted["rows have no label at all"] += 1
        if self.empty is not None and "" in cells:
            self.converted["rows have empty cells, read as 0"] += 1
        return found

    def _parse(self, path: str, cells: tuple[str, ...]) -> tuple[str, tuple[float, ...] | None]:
        if not any(cells) and self.empty is None:
            raise UnusableRow(WITHOUT, f"'{path}' has no label.")
        shares = []
        for name, cell in zip(self.classes, cells, strict=True):
            share = _share(cell) if cell else self.empty
            if share is None:
                text = f"'{path}': the column '{name}' {_why(cell)}"
                raise UnusableRow("rows with other values than 0 to 1", text)
            shares.append(share)
        if not self.one_hot:
            return "", self._same.setdefault(tuple(shares), tuple(shares))
        if shares.count(1.0) != 1 or shares.count(0.0) != len(shares) - 1:
            ones = ", ".join(
                name for name, share in zip(self.classes, shares, strict=True) if share
            )
            text = (
                f"'{path}': {ones or 'no column'} above 0, but dataset.one_hot needs exactly one 1."
            )
            raise UnusableRow("rows without exactly one 1", text)
        return self.classes[shares.index(1.0)], None

    def names(self, sample: Sample) -> list[str]:
        """The labels that stand in a sample's cell."""
        if self.separator is None:
            return [sample.class_name]
        return sample.class_name.split(self.separator) if sample.class_name else []

    def finish(self, samples: list[Sample], place: object) -> tuple[list[Sample], list[str]]:
        """The samples, with shares if they have several labels, and the classes.

        Raises DataError for numbers that are equal, or too many different sets of labels.
        """
        if self.separator is not None:
            return self._finish_names(samples, place)
        if self.classes:
            return samples, self.classes
        return samples, classes_of({sample.class_name for sample in samples}, place)

    def _finish_names(self, samples: list[Sample], place: object) -> tuple[list[Sample], list[str]]:
        sets = {sample.class_name: self.names(sample) for sample in samples}
        classes = classes_of({name for names in sets.values() for name in names}, place)
        if not classes:
            raise DataError(f"{place}: no image has a label.")
        if len(sets) * len(classes) > MAX_SHARES:
            raise DataError(
                f"{place}: {len(classes):,} labels in {len(sets):,} different sets take too much "
                "memory; is dataset.label_separator right, and the column that of labels?"
            )
        number = {name: k for k, name in enumerate(classes)}
        shares: dict[str, tuple[float, ...]] = {}
        for text, names in sets.items():
            row = [0.0] * len(classes)
            for name in names:
                row[number[name]] = 1.0
            shares[text] = tuple(row)
        return [
            Sample(s.path, s.class_name, s.part, shares[s.class_name]) for s in samples
        ], classes

    def notes(self, samples: Sequence[Sample]) -> Iterator[str]:
        """Notes on all labels: each image has one only, or some are probabilities."""
        if not self.are_several:
            return
        different = {id(sample.shares): sample.shares or () for sample in samples}.values()
        if all(share in (0.0, 1.0) for shares in different for share in shares):
            if all(sum(shares) == 1.0 for shares in different):
                how = "without dataset.label_separator"
                how = how if self.separator is not None else "with dataset.one_hot=true"
                yield f"each image has exactly one label; {how} these are read as classes"
        else:
            soft = sum(any(0.0 < x < 1.0 for x in sample.shares or ()) for sample in samples)
            yield f"{soft:,} images have labels between 0 and 1, which are taken as probabilities"


@lru_cache(10_000)
def _share(cell: str) -> float | None:
    """The number from 0 to 1 that a cell holds, or true or false; None if it is another text."""
    if _SHARE.fullmatch(cell):
        return share if 0.0 <= (share := float(cell) + 0.0) <= 1.0 else None  # -0 is 0
    return {"true": 1.0, "false": 0.0}.get(cell.lower())


def _why(cell: str) -> str:
    """Why a cell is no share, and what to do."""
    if not cell:
        return "is empty; write 0 or 1, or type dataset.empty_is_zero=true"
    if cell.startswith("-") and _SHARE.fullmatch(cell):
        return (
            f"holds {shorten(cell)}, often 'not known', which cannot be learned: write 0, 1 or a "
            "probability, or remove the row"
        )
    return f"holds '{shorten(cell)}'; expected 0, 1, true, false or a number between 0 and 1"


def classes_of(names: Collection[str], place: object) -> list[str]:
    """The classes in their order: numbers by value, else natural order.

    Raises DataError for numbers that are equal, such as 1 and 1.0.
    """
    if not all(NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=natural)
    by_value: dict[Decimal, str] = {}
    for name in sorted(names):
        if (other := by_value.setdefault(Decimal(name), name)) != name:
            raise DataError(f"{place}: the labels '{other}' and '{name}' are the same number.")
    return [by_value[value] for value in sorted(by_value)]


def misspelt(labels: Iterable[str]) -> Iterator[str]:
    """A note for each rare label that is one letter, or two swapped ones, from a frequent one."""
    counts = Counter(labels)
    digits = {label: re.sub("[^0-9]", "", label) for label in counts}
    # Digits, and the label or the label without a letter -> labels.
    near: dict[tuple[str, str], list[str]] = defaultdict(list)
    for label in counts:
        for key in _shortened(label):
            near[digits[label], key].append(label)
    for label, count in counts.items():
        others = {other for key in _shortened(label) for other in near[digits[label], key]}
        other = max(sorted(others), key=counts.__getitem__, default=label)
        if count <= _RARE * counts[other]:
            yield (
                f"the label '{label}' ({count:,} images) is similar to '{other}' "
                f"({counts[other]:,}); is it misspelt?"
            )


def several_in_one(labels: Iterable[str]) -> Iterator[str]:
    """A note if classes seem to be several names in one cell, such as "cat;dog".

    Blanks, empty names and repeated ones count as ``LabelReader`` reads them. Each name must occur
    in another class too, and a single such class is told if its names are classes themselves: so
    "Smith, John" alone tells nothing.
    """
    classes = {*labels}
    for separator in ";|,":
        parts = {
            one: {*map(str.strip, one.split(separator))} - {""}
            for one in classes
            if separator in one
        }
        count = Counter(name for names in parts.values() for name in names)
        count.update(classes - parts.keys())
        joined = sorted(
            one for one, names in parts.items() if names and all(count[n] > 1 for n in names)
        )
        is_clear = len(joined) > 1 or any(parts[one] <= classes for one in joined)
        if is_clear and 2 * len(joined) >= len(parts):
            yield (
                f"{len(joined):,} classes such as '{joined[0]}' are names joined by '{separator}'; "
                f"if they are several labels, type dataset.label_separator='{separator}'"
            )


def _shortened(label: str) -> set[str]:
    """The label, and the label without any one of its letters; nothing for short labels."""
    if len(label) < 4:
        return set()
    return {label, *(label[:i] + label[i + 1 :] for i in range(len(label)))}
