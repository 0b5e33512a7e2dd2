"""The text of one CSV file: its separator, quotation mark, header and rows, within limits."""

import csv as csv_format
import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from datasets import DataError
from datasets.images import check_file, reason

LONGEST = 1 << 20  # characters of a row; what is longer is no table, and would fill the memory
_SEPARATORS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}
_OF_EXCEL = re.compile(r'"?sep=([,;|\t])"?\s*')  # a first line that Excel writes and hides
_MOST_COMMENTS = 1000  # lines above the header
_CSV = "save the sheet as 'CSV UTF-8'"
_OTHERS = {  # the first bytes of other formats -> what it is, and the way out
    b"PK\x03\x04": f"it is a workbook or an archive: {_CSV}",
    b"\xd0\xcf\x11\xe0": f"it is a workbook of an old Excel (.xls): {_CSV}",
    b"PAR1\x15": "it is Parquet: type dataset.name=Parquet, or write it with pandas' to_csv",
    b"ARROW1\0": "it is a Feather file of Arrow: write it with pandas' to_csv",
    b"SQLite format 3": "it is a database: sqlite3 -csv -header {file} 'SELECT * FROM T' > {new}",
    b"\x1f\x8b": "it is compressed: gunzip --stdout {file} > {new}",
    b"BZh9": "it is compressed: bunzip2 --stdout {file} > {new}",
    b"\xfd7zXZ": "it is compressed: xz --decompress --stdout {file} > {new}",
    b"\x28\xb5\x2f\xfd": "it is compressed: zstd --decompress --stdout {file} > {new}",
    b"<": "it is HTML or XML, perhaps a page that asks to log in: download the table itself",
    b"%PDF": "it is a PDF",
    b"\xff\xfe\0\0": "it is UTF-32: iconv -f UTF-32 -t UTF-8 {file} > {new}",
    b"\xff\xfe": "it is UTF-16: iconv -f UTF-16 -t UTF-8 {file} > {new}",
    b"\xfe\xff": "it is UTF-16: iconv -f UTF-16 -t UTF-8 {file} > {new}",
}


class Table:
    """A CSV file with a header, whose rows can be read several times.

    wanted: columns that the header should have; they show which separator is meant.
    header: the names of the columns, without blanks around them; [] if the first line is empty.
    line: the last line of the row that was read last, counted from 1.
    notes: what was found out about the file, for the user.
    Raises DataError for a file that is no text in UTF-8 or cannot be read, also in ``rows``.
    """

    def __init__(self, path: Path, wanted: Collection[str]) -> None:
        self.path = path
        self.above = 0  # lines above the header
        self.line = 0
        self.notes: list[str] = []
        self._separator, self._quote = ",", '"'
        self._unread = 0  # characters since the last row
        try:
            check_file(path)
            with open(path, "rb") as file:
                _refuse_other_formats(path, file.read(16))
            self._state = _state(path)
            with self._open() as lines:
                self._find_form(lines, set(wanted))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise DataError(_not_utf8(path)) from error
        except ValueError as error:
            raise DataError(f"{path}: {reason(error)}.") from error
        self.header = next(self.rows(), [])

    def rows(self) -> Iterator[list[str]]:
        """Each row, the header first: its values without blanks around them; [] if it is empty."""
        self.line, self._unread = self.above, 0
        try:
            with self._open() as file:
                for _ in range(self.above):
                    file.readline(LONGEST)
                rows = csv_format.reader(
                    self._lines(file),
                    delimiter=self._separator,
                    quotechar=self._quote,
                    skipinitialspace=True,
                    strict=True,
                )
                for row in rows:
                    self.line = self.above + rows.line_num
                    self._unread = 0
                    yield [value.strip() for value in row]
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise DataError(_not_utf8(self.path)) from error
        except csv_format.Error as error:
            raise DataError(
                f"{self.path}: not a CSV file in UTF-8: {error}, after line {self.line}; is a "
                "quotation mark there without its second one?"
            ) from error

    def column(self, name: str, lines: Iterable[int]) -> list[str]:
        """The text in a column of the rows that end in ``lines``, which ascend.

        Reads the file again. Raises DataError without such a column, and if the file has changed.
        """
        if self.header.count(name) != 1:
            has = f"the column '{name}' stands several times" if name in self.header else ""
            raise DataError(
                f"{self.path}:{self.above + 1}: {has or f'no column {name!r}'}; the header has: "
                f"{names_of(self.header)}."
            )
        at, texts, wanted = self.header.index(name), [], iter(lines)
        line = next(wanted, None)
        for row in self.rows():
            if line == self.line:
                texts.append(row[at] if at < len(row) else "")
                line = next(wanted, None)
            if line is None:
                break
        if line is not None or _state(self.path) != self._state:
            raise DataError(f"{self.path}: has changed since it was read; start again.")
        return texts

    @property
    def separator(self) -> str:
        """The character between the values."""
        return self._separator

    def _open(self) -> TextIO:
        return open(self.path, encoding="utf-8-sig", newline="")  # -sig: Excel writes a BOM

    def _lines(self, file: TextIO) -> Iterator[str]:
        while line := file.readline(LONGEST):
            self._unread += len(line)
            if self._unread >= LONGEST:
                raise DataError(
                    f"{self.path}: not a CSV file: the row from line {self.line + 1:,} on has over "
                    f"{LONGEST:,} characters; is a quotation mark there without its second one?"
                )
            yield line

    def _find_form(self, file: TextIO, wanted: set[str]) -> None:
        """Find out separator, quotation mark, and the lines above the header."""
        first = line = file.readline(LONGEST)
        if told := _OF_EXCEL.fullmatch(line):
            self.above, self._separator = 1, told[1]
            self.notes.append(
                f"{self.path}: its first line says that {_SEPARATORS[told[1]]} separates"
            )
            return
        while line.startswith("#") and self.above < _MOST_COMMENTS:
            self.above += 1
            line = file.readline(LONGEST)
        form, of_first = _form(line, wanted), _form(first, wanted)
        shown, by_first = (_columns(text, how) for text, how in ((line, form), (first, of_first)))
        if len(by_first) > 1 and len(shown & wanted) < max(1, len(by_first & wanted)):
            self.above, form = 0, of_first  # the line with # is the header itself
        if self.above:
            self.notes.append(
                f"{self.path}: lines 1 to {self.above} begin with # and are no header"
            )
        self._separator, self._quote = form
        if self._separator != ",":
            text = f"read with {_SEPARATORS[self._separator]} between values"
            self.notes.append(f"{self.path}: {text}")
        if self._quote != '"':
            self.notes.append(f"{self.path}: read with ' as the quotation mark")


def names_of(header: Iterable[str]) -> str:
    """The names of columns for a message, at most 30."""
    names = [name if len(name) <= 60 else f"{name[:60]}..." for name in header]
    more = f" and {len(names) - 30:,} more" if len(names) > 30 else ""
    return ", ".join(names[:30]) + more


def _form(line: str, wanted: set[str]) -> tuple[str, str]:
    """Separator and quotation mark of a header: those that show most wanted columns."""

    def columns(form: tuple[str, str]) -> tuple[int, int]:
        names = _columns(line, form)
        return len(names & wanted), len(names) * (form[1] == '"')

    forms = [(separator, quote) for quote in "\"'" for separator in _SEPARATORS]
    return max(forms, key=columns)  # the first of equals, a comma


def _columns(line: str, form: tuple[str, str]) -> set[str]:
    """The names in a header that is written in a form; none if it cannot be read."""
    try:
        rows = csv_format.reader(
            [line], delimiter=form[0], quotechar=form[1], skipinitialspace=True
        )
        return {name.strip() for name in next(rows, [])}
    except csv_format.Error:
        return set()


def _refuse_other_formats(path: Path, head: bytes) -> None:
    """Raise DataError if a file begins as no text in UTF-8 does, or as HTML does."""
    what = next((what for begin, what in _OTHERS.items() if head.startswith(begin)), "")
    if head[:4].count(b"\0") == 2 and not what:  # every second byte of a Latin text
        code = "UTF-16BE" if head[0] == 0 else "UTF-16LE"
        what = f"it is UTF-16: iconv -f {code} -t UTF-8 {{file}} > {{new}}"
    if head.lstrip().startswith((b'{"', b"{\n", b"{\r", b"[{", b"[\n", b"[\r")):
        what = "it is JSON: a list of records is written as CSV by pandas' read_json and to_csv"
    if what:
        what = what.format(file=shlex.quote(str(path)), new="NEW.csv")
        raise DataError(f"{path}: not a CSV file in UTF-8: {what}.")


def _not_utf8(path: Path) -> str:
    """The message for a file with a byte that is not UTF-8: the line, and what to do."""
    found = ""
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                found = f"line {number} has the byte {line[error.start]:#04x}"
                break
    quoted = shlex.quote(str(path))
    return (
        f"{path}: not a CSV file in UTF-8: {found}. In a spreadsheet save it as 'CSV UTF-8'. If it "
        f"is a text of Windows: iconv -f WINDOWS-1252 -t UTF-8 {quoted} > NEW.csv"
    )


def _state(path: Path) -> tuple[int, int]:
    """What changes with a file's content: its size and the time of its last change."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
