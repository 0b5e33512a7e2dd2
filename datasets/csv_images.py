"""Images listed in CSV files."""

import os
import shlex
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from datasets import DataError
from datasets.bands import Bits, Channels, Form, check_form
from datasets.csv_columns import USUAL, without_columns
from datasets.csv_labels import (
    NUMBER,
    WITHOUT,
    LabelReader,
    UnusableRow,
    misspelt,
    several_in_one,
)
from datasets.csv_paths import OUTSIDE, Paths
from datasets.csv_table import Table, names_of
from datasets.files import (
    PARTS,
    ImageFiles,
    Sample,
    check_names,
    missing_folder,
    shorten,
    user_path,
)
from datasets.folders import part_of
from datasets.images import check_file, reason
from datasets.words import agreeing

_SHOWN = 10  # faults of one kind that are printed; 3 if there are several kinds
_LEAVE_OUT = "leave missing files out: dataset.on_broken=skip."
_TABLE = 40  # bits of a line's number, below that of its table


class CSVImages(ImageFiles):
    """Images below ``root`` that a CSV file lists: a header, then one line per image.

    Images: (3, H, W) uint8, RGB, or as ``channels`` and ``bits`` say; sizes may differ. Raises
    DataError with the CSV's line numbers, and ValueError for arguments that do not go together.
    With ``label_columns`` (without ``one_hot``) or ``label_separator`` an image may have several
    labels: a label is then a tuple with the share of each class, 0 to 1.

    root: The folder that the paths in the CSV start from, and may not leave; null is the folder of
        the CSV.
    csv: Required: the CSV file, a list of files, or {train: a.csv, test: b.csv}, also with val. In
        UTF-8, with a header, and commas, semicolons, tabs or ``|`` between the values.
    path_column: The column with the image's path, relative to root.
    label_column: The column with the class: text, or only numbers, which are sorted by value.
    part_column: The column with train, val (valid, validation) or test; null, or an empty cell,
        leaves it to split.
    on_broken: What a file that is missing or cannot be decoded, or a row without label, does: error
        ends the run, skip leaves it out.
    suffix: What is added to paths that do not end in it, such as .png where the column has ids. Of
        a list, such as [.jpg, .png], the first is added with which the file exists.
    decode: fast decodes a JPEG that is much larger than needed at 1/2, 1/4 or 1/8 of its size.
    label_columns: Columns that each hold 0, 1 or a probability for one of several labels; ``all``
        is all but those of path and part.
    label_separator: What stands between several labels in one cell, such as ";"; an empty cell is
        an image without any label.
    one_hot: In each row exactly one of label_columns is 1: it is the image's only class.
    empty_is_zero: An empty cell of label_columns is 0, instead of a fault.
    strip: What is removed from the beginning of paths that have it, such as /home/me/data/ of
        another machine.
    channels: keep leaves each file its own channels, from 1 to 64; rgb makes each image RGB.
    bits: 16 keeps the values of 16-bit files; 8 keeps their high byte.
    """

    def __init__(
        self,
        root: str | None = None,
        csv: str | list[str] | dict[str, str] = "",
        path_column: str = "path",
        label_column: str = "label",
        part_column: str | None = None,
        on_broken: Literal["error", "skip"] = "error",
        suffix: str | list[str] = "",
        decode: Literal["exact", "fast"] = "exact",
        label_columns: list[str] | Literal["all"] | None = None,
        label_separator: str | None = None,
        one_hot: bool = False,
        empty_is_zero: bool = False,
        strip: str = "",
        channels: Channels = "rgb",
        bits: Bits = 8,
    ) -> None:
        labels = LabelReader(label_column, label_columns, label_separator, one_hot, empty_is_zero)
        files = _files(csv, part_column)
        folder = user_path(root, "dataset.root") if root is not None else _folder(files)
        tables = [user_path(name, "dataset.csv") for name, _ in files]
        if not folder.is_dir():
            raise missing_folder(folder)
        suffixes = suffix if isinstance(suffix, list) else [suffix] * bool(suffix)
        wanted = {"path_column": path_column}
        wanted |= {} if labels.column is None else {"label_column": labels.column}
        wanted |= {} if part_column is None else {"part_column": part_column}
        reader = _Reader(Paths(folder, suffixes, strip), labels, wanted, on_broken == "skip")
        for path, (_, part) in zip(tables, files, strict=True):
            reader.read(path, part)
        samples, classes = reader.finish()
        self._tables, self._lines = reader.tables, reader.lines_of_tables()
        super().__init__(folder, samples, classes, on_broken, "\n".join(reader.notes), decode)
        self.form = Form(channels, bits)
        check_form(self.form, self.ids)

    def column(self, name: str) -> list[str]:
        """The text of a column for each sample, in the order of ``ids``.

        The files are read again. Raises DataError, with the columns that there are, if one lacks
        it, and if a file has changed since it was read.
        """
        pairs = zip(self._tables, self._lines, strict=True)
        return [text for table, lines in pairs for text in table.column(name, lines)]


def _files(
    csv: str | list[str] | Mapping[str, str], part_column: str | None
) -> list[tuple[str, str]]:
    """Each file with its part, which is "" for files without. Raises ValueError."""
    if not csv:
        raise ValueError("csv is missing; name the table, such as csv: labels.csv")
    if isinstance(csv, str):
        return [(csv, "")]
    if not isinstance(csv, Mapping):
        return [(name, "") for name in csv]
    if unknown := [key for key in csv if key.lower() not in PARTS]:
        raise ValueError(f"csv: {unknown[0]!r} is no part; expected train, val and test")
    if part_column is not None:
        raise ValueError("csv gives a file for each part, so part_column says it twice; remove one")
    return [(name, PARTS[key.lower()]) for key, name in csv.items()]


def _folder(files: list[tuple[str, str]]) -> Path:
    """The folder in which the tables are."""
    folders = {user_path(name, "dataset.csv").parent for name, _ in files}
    if len(folders) > 1:
        raise DataError(
            "dataset.csv: the files are in several folders "
            f"({names_of(sorted(map(str, folders)))}); name the one of the images: dataset.root=..."
        )
    return folders.pop()


def _first(texts: list[str], what: str) -> list[str]:
    """The first texts, and how many more there are of what."""
    more = len(texts) - _SHOWN
    return texts[:_SHOWN] + [f"... and {more:,} more {what}"] * (more > 0)


class _Reader:
    """Samples, faults by kind and counts of conversions, while tables are read.

    may_miss: whether missing files and rows without label are left out.
    """

    def __init__(
        self, paths: Paths, labels: LabelReader, wanted: Mapping[str, str], may_miss: bool
    ) -> None:
        self.paths, self.labels, self.wanted, self.may_miss = paths, labels, wanted, may_miss
        self.start = os.path.join(paths.root, "")
        self.tables: list[Table] = []
        self.rows = 0
        self.samples: dict[str, Sample] = {}  # by path
        self.lines: dict[str, int] = {}  # path -> the line that lists it, and the table
        self.faults: dict[str, list[str]] = defaultdict(list)  # the first of each kind
        self.counts: Counter[str] = Counter()  # faults of each kind
        self.missing: list[str] = []
        self.outside: list[str] = []  # paths that leave the root
        self.without = 0  # rows without label that are left out
        self.notes: list[str] = []
        self.converted: Counter[str] = Counter()

    def read(self, path: Path, part: str) -> None:
        """Read a table, whose images are of ``part`` unless it is "". Raises DataError."""
        table = Table(path, [*self.wanted.values(), *self.labels.names_of_columns()])
        header, wanted = table.header, self.wanted
        if any(header.count(name) != 1 for name in wanted.values()):
            has_suffix = bool(self.paths.suffixes)
            raise DataError(without_columns(table, self.paths.root, wanted, has_suffix))
        others = [wanted["path_column"], wanted.get("part_column", "")]
        self.labels.start(table, others)
        self.tables.append(table)
        self.notes += table.notes
        if os.path.isfile(self.start + (name := self.paths.relative(wanted["path_column"]))):
            text = f"the header names an image, '{name}', which is left out: to read it, write a"
            self.notes.append(
                f"{path}:{table.above + 1}: {text} header above it, such as path,label"
            )
        unused = [name for name in header if name.lower() in USUAL["part_column"]]
        unused = [] if "part_column" in wanted or part else unused[:1]
        parts: set[str | None] = set()
        path_at, unused_at = header.index(wanted["path_column"]), list(map(header.index, unused))
        part_at = header.index(wanted["part_column"]) if "part_column" in wanted else None
        for values in self._whole_rows(table):
            parts |= {part_of(values[i]) for i in unused_at}
            told = part if part_at is None else values[part_at]
            if NUMBER.fullmatch(told):
                raise DataError(self._folds(told))
            self._add(values[path_at], values, told)
        if parts and None not in parts:
            typed = shlex.quote(f"dataset.part_column={unused[0]}")
            self.notes.append(f"the column '{unused[0]}' is not used; {typed} splits by it")

    def _whole_rows(self, table: Table) -> Iterator[list[str]]:
        """The rows below the header that hold anything, each with as many values as the header."""
        size, rows = len(table.header), table.rows()
        next(rows)
        for values in rows:
            if not any(values):
                self.converted["rows without values are passed over"] += bool(values)
                continue
            if values[0][:1] == "#" and not any(values[1:]):
                if not os.path.isfile(self.start + values[0]):
                    self.converted["rows that begin with # are passed over"] += 1
                    continue
            self.rows += 1
            if any(values[size:]):
                text = f"{len(values)} values, but the header has {size} columns; write a value"
                text = f"{text} that has {table.separator!r} in quotes."
                self._fault("rows of more values", text)
                continue
            if len(values) < size:
                values += [""] * (size - len(values))
            yield values

    def _folds(self, part: str) -> str:
        return (
            f"{self._here()}: the part is '{part}': the column "
            f"'{self.wanted['part_column']}' seems to number folds; expected {', '.join(PARTS)} "
            "or nothing. Folds are cut by each image's content instead: type "
            "dataset.part_column=null split.folds=5 split.fold=0."
        )

    def _add(self, path: str, values: Sequence[str], part: str) -> None:
        path = self.paths.relative(path)
        if fault := self.paths.fault(path):
            self._fault(*fault)
            self.outside += [path] * (fault[0] == OUTSIDE)
            return
        try:
            label, shares = self.labels.read(path, values)
        except UnusableRow as unusable:
            kind, text = unusable.args
            if kind == WITHOUT and self.may_miss:
                self.without += 1
            else:
                self._fault(kind, text)
            return
        sample = Sample(path, label, part_of(part), shares)
        if part and sample.part is None:
            text = f"'{path}': unknown part '{part}'; expected {', '.join(PARTS)} or nothing."
            self._fault("rows of unknown parts", text)
            return
        if part and part.lower() not in PARTS:
            self.converted[f"rows with the part '{part}' are read as {sample.part}"] += 1
        if path in self.samples:
            self._add_again(self.samples[path], sample)
            return
        self._look_for(path)
        self.samples[path] = sample
        self.lines[path] = (len(self.tables) - 1) << _TABLE | self.tables[-1].line

    def _add_again(self, first: Sample, sample: Sample) -> None:
        """Take note of a row whose image is listed already."""
        if first == sample:
            self.converted["rows repeat an earlier row and are passed over"] += 1
            return
        what = f"the part '{first.part}'"
        if (first.class_name, first.shares) != (sample.class_name, sample.shares):
            what = f"the label '{first.class_name}'" if first.shares is None else "other labels"
        text = f"'{first.path}' is listed a second time; first in {self._place_of(first.path)}"
        self._fault("rows that contradict an earlier one", f"{text}, there with {what}.")

    def _look_for(self, path: str) -> None:
        """Take note if there is no such file, or one that cannot be read."""
        try:
            check_file(self.start + path)
        except FileNotFoundError:
            self.missing.append(path)
            if not self.may_miss:
                text = f"'{path}': no such file below {self.paths.root}."
                self._fault("missing files", text)
        except (OSError, ValueError) as error:
            self._fault("files that cannot be read", f"'{shorten(path)}': {reason(error)}.")

    def _fault(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        if len(self.faults[kind]) < _SHOWN:
            self.faults[kind].append(f"{self._here()}: {text}")

    def _here(self) -> str:
        return f"{self.tables[-1].path}:{self.tables[-1].line}"

    def _place_of(self, path: str) -> str:
        """The line that lists a path, with the name of its table if there are several."""
        number, line = divmod(self.lines[path], 1 << _TABLE)
        return f"{self.tables[number].path}:{line}" if len(self.tables) > 1 else f"line {line}"

    def lines_of_tables(self) -> "list[array[int]]":
        """Of each table, the lines whose rows became samples, in the order of the samples."""
        lines: list[array[int]] = [array("q") for _ in self.tables]
        for code in self.lines.values():
            lines[code >> _TABLE].append(code & ((1 << _TABLE) - 1))
        return lines

    def finish(self) -> tuple[list[Sample], list[str]]:
        """The samples and classes; notes are then complete. Raises DataError with all faults."""
        samples = list(self.samples.values())
        place = shorten(", ".join(str(table.path) for table in self.tables))
        if self.may_miss and self.missing and len(self.missing) == len(samples):
            text = f"none of {self.rows:,} files is below {self.paths.root}."
            self._fault("missing files", text)
        if self.without and not samples:
            self._fault(WITHOUT, f"none of {self.rows:,} rows has a label.")
        if self.faults:
            raise DataError("\n".join(self._told(place)))
        if not samples:
            raise DataError(f"{place}: no images listed; expected a header and one line an image.")
        if self.missing and (hint := self.paths.hint_for_missing(self.missing, self.samples)):
            self.notes.append(f"{place}: {len(self.missing):,} files are missing. {hint}")
        if self.without:
            self.notes.append(f"{place}: {self.without:,} rows without label are left out")
        self._check_labels(samples, place)
        samples, classes = self.labels.finish(samples, place)
        self.notes += [f"{place}: {text}" for text in self.labels.notes(samples)]
        self.notes += [f"{place}: {text}"] if (text := self.paths.note()) else []
        counts = self.converted + self.paths.converted + self.labels.converted
        converted = [f"{n:,} {agreeing(n, what)}" for what, n in counts.items()]
        converted = _first(converted, "kinds of rows")
        self.notes += [f"{place}: {', '.join(converted)}"] if converted else []
        return samples, classes

    def _check_labels(self, samples: list[Sample], place: str) -> None:
        """Look for names that differ too little. Raises DataError if it is in case or form only."""
        if self.labels.columns is not None:
            names = self.labels.classes
            check_names(self.tables[0].path, names, lambda i: f"in column '{names[i]}'")
            return
        names = [sample.class_name for sample in samples]
        paths = [sample.path for sample in samples]
        if self.labels.separator is not None:
            pairs = [(name, s.path) for s in samples for name in self.labels.names(s)]
            names, paths = [name for name, _ in pairs], [path for _, path in pairs]
        else:
            self.notes += [f"{place}: {text}" for text in several_in_one(names)]
        similar = _first(list(misspelt(names)), "labels that are similar")
        self.notes += [f"{place}: {text}" for text in similar]
        check_names(self.tables[0].path, names, lambda i: f"in {self._place_of(paths[i])}")

    def _told(self, place: str) -> list[str]:
        """The lines of the message about all faults: counts, the first of each kind, what helps."""
        count = self.counts.total()
        lines = [f"{place}: {count:,} of {self.rows:,} rows cannot be used:"]
        shown = _SHOWN if len(self.faults) == 1 else 3
        for kind, told in self.faults.items():
            more = self.counts[kind] - shown
            lines += told[:shown] + [f"... and {more:,} more {kind}"] * (more > 0)
        if self.outside and (hint := self.paths.hint_for_outside(self.outside)):
            lines.append(hint)
        if self.missing:
            hint = self.paths.hint_for_missing(self.missing, self.samples)
            lines.append(hint or f"Correct dataset.root or the paths, or {_LEAVE_OUT}")
        elif WITHOUT in self.faults and not self.may_miss:
            lines.append("Correct them, or leave them out: dataset.on_broken=skip.")
            if self.labels.columns is None and self.labels.separator is None:
                hints = several_in_one(one.class_name for one in self.samples.values())
                lines += [f"If an empty cell is an image without any label: {h}." for h in hints]
        return lines
