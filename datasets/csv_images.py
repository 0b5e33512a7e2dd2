"""Images listed in a CSV file."""

import csv as csv_format
import os
import re
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Literal, TextIO

from datasets import DataError
from datasets.bands import Bits, Channels, Form, check_form
from datasets.files import (
    PARTS,
    ImageFiles,
    Sample,
    check_names,
    missing_folder,
    natural,
    shorten,
    user_path,
)
from datasets.folders import part_of
from datasets.images import SUFFIXES, check_file, reason
from datasets.words import agreeing

_SHOWN = 10  # faults of one kind that are printed; 3 if there are several kinds
_TRIED = 20  # rows of a table that are tried to find its column of paths
_WITHOUT = "rows without label"
_LEAVE_OUT = "leave missing files out: dataset.on_broken=skip."
_LONGEST = 255  # characters of a label, the limit for the name of a class folder
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")
_DRIVE = re.compile("[A-Za-z]:/")
_SEPARATORS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}
_ENDINGS = ["", *(e for suffix in sorted(SUFFIXES) for e in (suffix, suffix.upper()))]
_NO_LABEL = {"nan", "-nan", "na", "n/a", "#n/a", "#na", "<na>", "nat", "null"}  # pandas' names
_DOUBTFUL = {"none", "unknown", "unlabeled", "unlabelled", "undefined", "missing", "unspecified"}
_DOUBTFUL |= {"?", "??", "???", "-", "--", "---", ".", "_", "n.a.", "tbd", "todo", "not available"}
_DOUBTFUL |= {"''", '""', "[]", "no label", "no_label", "not labeled", "not labelled"}
_RARE = 0.05  # a label with at most this share of the images of a similar one may be misspelt
_USUAL = {  # names of columns that a header may have instead
    "path_column": ("path", "file", "filename", "file_name", "image", "image_id", "id"),
    "label_column": ("label", "class", "class_name", "category", "target", "species", "breed"),
    "part_column": ("split", "part", "subset", "partition", "set", "usage"),
}


class CSVImages(ImageFiles):
    """Images below ``root`` that a CSV file lists: a header, then one line per image.

    Images: (3, H, W) uint8, RGB, or as ``channels`` and ``bits`` say; sizes may differ. Raises
    DataError with the CSV's line numbers.

    root: The folder that the paths in the CSV start from; none may leave it.
    csv: The CSV file: UTF-8, a header, and commas, semicolons, tabs or ``|`` between the values.
    path_column: The column with the image's path, relative to root.
    label_column: The column with the class: text, or only numbers, which are sorted by value.
    part_column: The column with train, val (valid, validation) or test; null, or an empty cell,
        leaves it to split.
    on_broken: What a file that is missing or cannot be decoded, or a row without label, does: error
        ends the run, skip leaves it out.
    suffix: What is added to paths that do not end in it, such as .png where the column has ids. Of
        a list, such as [.jpg, .png], the first is added with which the file exists.
    decode: fast decodes a JPEG that is much larger than needed at 1/2, 1/4 or 1/8 of its size.
    channels: keep leaves each file its own channels, from 1 to 64; rgb makes each image RGB.
    bits: 16 keeps the values of 16-bit files; 8 keeps their high byte.
    """

    def __init__(
        self,
        root: str,
        csv: str,
        path_column: str = "path",
        label_column: str = "label",
        part_column: str | None = None,
        on_broken: Literal["error", "skip"] = "error",
        suffix: str | list[str] = "",
        decode: Literal["exact", "fast"] = "exact",
        channels: Channels = "rgb",
        bits: Bits = 8,
    ) -> None:
        folder, table = user_path(root, "dataset.root"), user_path(csv, "dataset.csv")
        if not folder.is_dir():
            raise missing_folder(folder)
        wanted = {"path_column": path_column, "label_column": label_column}
        if part_column is not None:
            wanted["part_column"] = part_column
        suffixes = suffix if isinstance(suffix, list) else [suffix] * bool(suffix)
        reader = _Reader(table, folder, suffixes, may_miss=on_broken == "skip")
        try:
            with open(table, encoding="utf-8-sig", newline="") as file:  # -sig: Excel writes a BOM
                reader.read(file, wanted)
        except OSError as error:
            raise DataError(f"{table}: cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise DataError(_not_utf8(table, error)) from error
        except csv_format.Error as error:
            raise DataError(
                f"{table}: not a CSV file in UTF-8: {error}, after line {reader.line}; is a "
                "quotation mark there without its second one?"
            ) from error
        samples, note = reader.finish()
        super().__init__(folder, samples, _classes(samples, table), on_broken, note, decode)
        self.form = Form(channels, bits)
        check_form(self.form, self.ids)


class _Reader:
    """Samples, faults by kind and counts of conversions, while a table is read."""

    def __init__(self, table: Path, root: Path, suffixes: list[str], may_miss: bool) -> None:
        self.table, self.root, self.suffixes, self.may_miss = table, root, suffixes, may_miss
        self.start = os.path.join(root, "")
        self.top = os.path.join(os.path.abspath(root), "")
        self.line = 0  # the last line of the last row
        self.rows = 0
        self.samples: dict[str, Sample] = {}  # by path
        self.lines: dict[str, int] = {}  # path -> the line that lists it
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.missing: list[str] = []
        self.without = 0  # rows without label that are left out
        self.notes: list[str] = []
        self.converted: Counter[str] = Counter()

    def read(self, file: TextIO, wanted: Mapping[str, str]) -> None:
        """Read all rows. Raises DataError for a header without the wanted columns, csv.Error."""
        separator = _separator(file.readline(), set(wanted.values()))
        file.seek(0)
        if separator != ",":
            self.notes.append(f"{self.table}: read with {_SEPARATORS[separator]} between values")
        rows = csv_format.reader(file, delimiter=separator, strict=True, skipinitialspace=True)
        header = [name.strip() for name in next(rows, [])]
        if any(header.count(name) != 1 for name in wanted.values()):
            raise DataError(self._without_columns(header, _rest(rows), wanted))
        at = {key: header.index(name) for key, name in wanted.items()}
        if os.path.isfile(self.root / (name := self._relative(wanted["path_column"]))):
            text = f"the header names an image, '{name}', which is left out: to read it, write a"
            self.notes.append(f"{self.table}:1: {text} header above it, such as path,label")
        unused = [i for i, name in enumerate(header) if name.lower() in _USUAL["part_column"]]
        unused = [] if "part_column" in wanted else unused[:1]
        parts: set[str | None] = set()
        for row in rows:
            self.line = rows.line_num
            values = [value.strip() for value in row]
            if not any(values):
                self.converted["rows without values are passed over"] += bool(row)
                continue
            self.rows += 1
            if any(values[len(header) :]):
                text = f"{len(row)} values, but the header has {len(header)} columns; write a value"
                self._fault("rows of more values", f"{text} that has {separator!r} in quotes.")
                continue
            values += [""] * (len(header) - len(values))
            parts |= {part_of(values[i]) for i in unused}
            part = values[at["part_column"]] if "part_column" in at else ""
            if _NUMBER.fullmatch(part):
                raise DataError(
                    f"{self.table}:{self.line}: the part is '{part}': the column "
                    f"'{wanted['part_column']}' seems to number folds; expected {', '.join(PARTS)} "
                    "or nothing. Folds are cut by each image's content instead: type "
                    "dataset.part_column=null split.folds=5 split.fold=0."
                )
            self._add(values[at["path_column"]], values[at["label_column"]], part)
        if parts and None not in parts:
            name = shlex.quote(f"dataset.part_column={header[unused[0]]}")
            self.notes.append(f"the column '{header[unused[0]]}' is not used; {name} splits by it")

    def _add(self, path: str, label: str, part: str) -> None:
        path = self._relative(path)
        if fault := _fault(path, label, part, self.root):
            if fault[0] == _WITHOUT and self.may_miss:
                self.without += 1
            else:
                self._fault(*fault)
            return
        sample = Sample(path, label, part_of(part))
        if part and part.lower() not in PARTS:
            self.converted[f"rows with the part '{part}' are read as {sample.part}"] += 1
        if (first := self.samples.get(path, sample)) != sample:
            text = f"'{path}' is listed a second time; first in line {self.lines[path]}"
            what = f", there with the label '{first.class_name}'"
            what = what if first.class_name != label else f", there with the part '{first.part}'"
            self._fault("rows that contradict an earlier one", f"{text}{what}.")
            return
        if path in self.samples:
            self.converted["rows repeat an earlier row and are passed over"] += 1
            return
        try:
            check_file(self.start + path)
        except FileNotFoundError:
            self.missing.append(path)
            if not self.may_miss:
                self._fault("missing files", f"'{path}': no such file below {self.root}.")
        except (OSError, ValueError) as error:
            self._fault("files that cannot be read", f"'{shorten(path)}': {reason(error)}.")
        if label.lower() in _DOUBTFUL:
            what = f"rows have the label '{label}', which is taken as a class"
            self.converted[f"{what} (does it mean that there is none?)"] += 1
        self.samples[path], self.lines[path] = sample, self.line

    def _relative(self, path: str) -> str:
        """The path with the suffix, relative to the root, in one spelling: no "./a.jpg"."""
        if "\\" in path and not os.path.exists(self.root / path):
            path = path.replace("\\", "/")
            self.converted["paths with \\ are read with /"] += 1
        endings = self.suffixes
        if endings and path and not path.endswith(tuple(filter(None, endings))):
            if len(endings) > 1:
                there = [end for end in endings if os.path.exists(self.root / (path + end))]
                if len(there) > 1:
                    what = f"ids have files with {' and '.join(there)}; {there[0]} is read"
                    self.converted[what] += 1
                endings = there or endings
            path += endings[0]
        if os.path.isabs(path) and os.path.normpath(path).startswith(self.top):
            path = os.path.normpath(path)[len(self.top) :]
            self.converted["absolute paths below the root are read as relative"] += 1
        if not {"", "."}.isdisjoint(path.split("/")):
            path = PurePosixPath(path).as_posix()
        if not path.isascii() and not os.path.lexists(self.root / path):
            for form in ("NFC", "NFD"):  # a Mac writes names of files decomposed
                other = unicodedata.normalize(form, path)
                if other != path and os.path.lexists(self.root / other):
                    self.converted["paths are read in the Unicode form of the files"] += 1
                    return other
        return path

    def _fault(self, kind: str, text: str) -> None:
        self.faults[kind].append(f"{self.table}:{self.line}: {text}")

    def finish(self) -> tuple[list[Sample], str]:
        """The samples, and a note. Raises DataError with all faults: counts and the first lines."""
        samples = list(self.samples.values())
        if self.may_miss and self.missing and len(self.missing) == len(samples):
            self._fault("missing files", f"none of {self.rows:,} files is below {self.root}.")
        if self.without and not samples:
            self._fault(_WITHOUT, f"none of {self.rows:,} rows has a label.")
        if self.faults:
            count = sum(map(len, self.faults.values()))
            lines = [f"{self.table}: {count:,} of {self.rows:,} rows cannot be used:"]
            shown = _SHOWN if len(self.faults) == 1 else 3
            for kind, told in self.faults.items():
                more = [f"... and {len(told) - shown:,} more {kind}"] if len(told) > shown else []
                lines += told[:shown] + more
            if self.missing:
                hint = _hint(self.root, self.missing, list(self.samples), self.suffixes)
                lines += [hint or f"Correct dataset.root or the paths, or {_LEAVE_OUT}"]
            elif _WITHOUT in self.faults and not self.may_miss:
                lines.append("Correct them, or leave them out: dataset.on_broken=skip.")
            raise DataError("\n".join(lines))
        if not samples:
            raise DataError(
                f"{self.table}: no images listed; expected a header and one line an image."
            )
        if self.missing and (
            hint := _hint(self.root, self.missing, list(self.samples), self.suffixes)
        ):
            self.notes.append(f"{self.table}: {len(self.missing):,} files are missing. {hint}")
        if self.without:
            self.notes.append(f"{self.table}: {self.without:,} rows without label are left out")
        labels = [sample.class_name for sample in samples]
        self.notes += [f"{self.table}: {text}" for text in _misspelt(labels)]
        paths = list(self.samples)
        check_names(self.table, labels, lambda i: f"in line {self.lines[paths[i]]}")
        converted = [
            f"{count:,} {agreeing(count, what)}" for what, count in self.converted.items() if count
        ]
        converted = [f"{self.table}: {', '.join(converted)}"] if converted else []
        return samples, "\n".join(self.notes + converted)

    def _without_columns(
        self, header: Sequence[str], rows: list[list[str]], wanted: Mapping[str, str]
    ) -> str:
        """The message for a header that lacks a wanted column, or has it twice."""
        if not any(header):
            what = "the first line is empty" if rows else "the file is empty"
            wants = ",".join(wanted.values())
            return (
                f"{self.table}: {what}; expected a header, such as {wants}, and one line an image."
            )
        twice = [name for name in wanted.values() if header.count(name) > 1]
        lacking = {key: name for key, name in wanted.items() if name not in header}
        faults = [f"no column '{name}'" for name in lacking.values()]
        faults += [f"the column '{name}' stands {header.count(name)} times" for name in twice]
        text = f"{self.table}:1: {', '.join(faults)}; the header has: {_header(header)}."
        if twice:
            text += " Rename columns, so that each name stands once."
        if _is_row(self.root, header, rows):
            wants = ",".join(wanted.values())
            return f"{text} It seems to have no header: write one above it, such as {wants}."
        if not lacking:
            return text
        guesses = {key: _guess(name, key, header) for key, name in lacking.items()}
        found = _images(self.root, rows[:_TRIED], len(header))
        if found and "path_column" in lacking:
            guesses["path_column"] = header[found[0]]
        rest = [name for name in header if name not in (*guesses.values(), *wanted.values())]
        if len(rest) == 1 and guesses.get("label_column") == "NAME":
            guesses["label_column"] = rest[0]
        classes = _one_hot(header, rows) if guesses.get("label_column") == "NAME" else []
        if classes:
            guesses["label_column"] = "label"
            text += (
                f" It seems to have a column of 0 and 1 for each of {len(classes):,} classes "
                f"({shorten(', '.join(classes))}). Labels must be in one column: write a column "
                "'label' with the class's name."
            )
        typed = [shlex.quote(f"dataset.{key}={name}") for key, name in guesses.items()]
        if found:
            column, folder = found
            counts = _endings(folder, (row[column] for row in rows if column < len(row)))
            typed += _typed(self.root, folder, counts, bool(self.suffixes))
        return f"{text} Type {' '.join(typed)}"


def _rest(rows: Iterator[list[str]]) -> list[list[str]]:
    """The rest of a table, up to a row that cannot be read."""
    read = []
    with suppress(csv_format.Error, UnicodeDecodeError):
        for row in rows:
            read.append([value.strip() for value in row])
    return read


def _is_row(root: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a header names an image, or its first cell differs from the next in digits only."""
    if any(next(_places(root, name), None) for name in header):
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
        for column, value in enumerate(row[:columns]):
            if place := next(_places(root, value), None):
                return column, place[0]
    return None


def _guess(name: str, key: str, header: Sequence[str]) -> str:
    """The column of the header that is meant by ``name``; "NAME" if that is not clear."""
    usual = (name.lower(), *_USUAL[key])
    found = {column.lower().replace(" ", "_"): column for column in reversed(header) if column}
    return next((found[one] for one in usual if one in found), "NAME")


def _separator(line: str, wanted: set[str]) -> str:
    """The character between the values of a header: the one that shows most wanted columns."""

    def columns(separator: str) -> tuple[int, int]:
        rows = csv_format.reader([line], delimiter=separator, skipinitialspace=True)
        names = {name.strip() for name in next(rows, [])}
        return len(names & wanted), len(names)

    return max(_SEPARATORS, key=columns)  # the first of equals, a comma


def _fault(path: str, label: str, part: str, root: Path) -> tuple[str, str] | None:
    """The kind of fault and the text, if a row cannot be used whatever files there are."""
    if path == ".":
        return "empty paths", "the path is empty."
    if path.startswith("/") or _DRIVE.match(path) or ".." in path.split("/"):
        text = f"'{path}' leaves the root {root}; paths must be relative to it."
        return "paths outside of the root", text
    if not label:
        return _WITHOUT, f"'{path}' has no label."
    if label.lower() in _NO_LABEL:
        text = f"'{path}': the label '{label}' usually means that there is none; remove the row, "
        return _WITHOUT, text + "or write the class by another word."
    if len(label) > _LONGEST:
        text = f"the label '{shorten(label)}' is too long; at most {_LONGEST} are allowed."
        return "long labels", text
    if part and not part_of(part):
        text = f"'{path}': unknown part '{part}'; expected {', '.join(PARTS)} or nothing."
        return "rows of unknown parts", text
    return None


def _places(root: Path, path: str) -> Iterator[tuple[Path, str]]:
    """Each folder and suffix with which ``path`` is a file; the suffix may be empty."""
    folders = [root, *sorted(p for p in root.iterdir() if p.is_dir())[:100], root.parent]
    for folder in folders if path else ():
        for ending in _ENDINGS:
            if os.path.isfile(os.path.join(folder, path + ending)):
                yield folder, ending


def _endings(folder: Path, paths: Iterable[str]) -> Counter[str]:
    """How many of the paths are files below a folder with each suffix, the most frequent first."""
    counts: Counter[str] = Counter()
    order = _ENDINGS
    for path in paths:
        for ending in order:
            if path and os.path.isfile(os.path.join(folder, path + ending)):
                counts[ending] += 1
                if ending != order[0]:  # the next path has the same, as a rule
                    order = [ending, *(other for other in order if other != ending)]
                break
    return Counter(dict(counts.most_common()))


def _typed(root: Path, folder: Path, counts: Mapping[str, int], is_set: bool) -> list[str]:
    """What to type so that files are found in a folder with these suffixes.

    is_set: whether dataset.suffix has a value already.
    """
    texts = [f"dataset.root={folder}"] * (folder != root)
    if len(counts) > 1:
        listed = ", ".join(ending or "''" for ending in counts)
        texts.append(f"dataset.suffix=[{listed}]")
    elif any(counts):
        texts.append(f"dataset.suffix={next(iter(counts))}")
    elif is_set:
        texts.append('dataset.suffix=""')
    return [shlex.quote(text) for text in texts]


def _hint(root: Path, missing: list[str], paths: list[str], suffixes: list[str]) -> str:
    """How to mend missing files, found with the first of them and counted with all paths, or ""."""

    def plain(path: str) -> str:
        return next((path.removesuffix(e) for e in suffixes if e and path.endswith(e)), path)

    path, first = missing[0], plain(missing[0])
    if place := next(_places(root, first), None):
        counts = _endings(place[0], [plain(one) for one in paths])
        typed = " ".join(_typed(root, place[0], counts, bool(suffixes)))
        if len(counts) == 1:
            return f"To find '{first}', type {typed}"
        (ending, number), *more = counts.items()
        told = f"{number:,} of the ids are found with {ending or 'no suffix'}"
        told += "".join(f", {n:,} with {ending or 'no suffix'}" for ending, n in more)
        return f"{told}: type {typed}"
    folder, name = os.path.split(os.path.join(root, path))
    names = os.listdir(folder) if os.path.isdir(folder) else []
    for other in names:
        if _folded(other) == _folded(name):
            return f"{other!r} is there: names differ in case or Unicode form; write them alike."
    digits = os.path.basename(first).split(".")[0]
    for other in names if digits.isdecimal() else ():
        stem = other.split(".")[0]
        if stem.isdecimal() and len(stem) > len(digits) and stem.lstrip("0") == digits.lstrip("0"):
            return (
                f"{other!r} is there: leading zeros are lost, as in a spreadsheet; the files have "
                f"{len(stem)} digits. Export the column as text, so that it has '{stem}'."
            )
    return ""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _not_utf8(table: Path, error: UnicodeDecodeError) -> str:
    head = table.read_bytes()[:4]
    what = f"{error}. In a spreadsheet save it as 'CSV UTF-8'"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        what = f"it is UTF-16: iconv -f UTF-16 -t UTF-8 {shlex.quote(str(table))} > NEW.csv"
    elif head[:2] == b"PK":
        what = "it is a workbook or an archive: save the sheet as 'CSV UTF-8'"
    return f"{table}: not a CSV file in UTF-8: {what}."


def _misspelt(labels: Iterable[str]) -> Iterator[str]:
    """A note for each rare label that is one letter, or two swapped ones, from a frequent one."""
    counts = Counter(labels)
    near: dict[str, list[str]] = defaultdict(list)  # label, or label without a letter -> labels
    for label in counts:
        for key in _shortened(label):
            near[key].append(label)
    for label, count in counts.items():
        others = {other for key in _shortened(label) for other in near[key]}
        digits = re.sub("[^0-9]", "", label)
        others = {other for other in others if re.sub("[^0-9]", "", other) == digits}
        other = max(sorted(others), key=counts.__getitem__, default=label)
        if count <= _RARE * counts[other]:
            yield (
                f"the label '{label}' ({count:,} images) is similar to '{other}' "
                f"({counts[other]:,}); is it misspelt?"
            )


def _shortened(label: str) -> set[str]:
    """The label, and the label without any one of its letters; nothing for short labels."""
    if len(label) < 4:
        return set()
    return {label, *(label[:i] + label[i + 1 :] for i in range(len(label)))}


def _header(names: Sequence[str]) -> str:
    more = f" and {len(names) - 30:,} more" if len(names) > 30 else ""
    return ", ".join(names[:30]) + more


def _classes(samples: list[Sample], table: Path) -> list[str]:
    names = {sample.class_name for sample in samples}
    if not all(_NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=natural)
    by_value: dict[Decimal, str] = {}
    for name in sorted(names):
        if (other := by_value.setdefault(Decimal(name), name)) != name:
            raise DataError(f"{table}: the labels '{other}' and '{name}' are the same number.")
    return [by_value[value] for value in sorted(by_value)]
