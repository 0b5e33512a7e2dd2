"""Parses YAML text to plain data, with the origin of every key and value, and all faults at once.

Unquoted text means what it does in YAML 1.2's core schema: ``1e-3`` is a number, ``off`` and
``12:30`` are text, ``010`` is ten, only true and false are booleans. Tags, anchors, aliases, merge
keys and repeated keys are faults, so that a reader needs only the line itself.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import yaml

from trainer.process.errors import Fault
from trainer.process.words import shortened

Place = tuple[str | int, ...]  # ("transforms", "train", 1, "padding")

MAX_DEPTH = 32
MAX_NODES = 20_000  # a loss's weight has one for each class
MAX_KEYS = 1000  # at the left margin
MAX_LINE = 1000  # characters; a message does not repeat a longer line

_TOP_LEVEL_KEY = re.compile(r"""["']?([A-Za-z_][\w.-]*)["']?[ ]*:(?=\s|$)""")

# A key without a colon ("seed 0", "seed = 0", "loader {...}"), or without the space after it.
_NO_COLON = re.compile(r"([A-Za-z_][\w-]*)(?:\s*=\s*|:(?=[^\s/])|\s+|(?=[\[{]))(\S.*)", re.DOTALL)
_KEY_WITH_TEXT = re.compile(r"""\s*(- +)*[\w.-]+: +[^\s#|>\[{"'].*""")
# A key with a tuple as Python writes it: betas: (0.9, 0.99).
_TUPLE = re.compile(r"""([^#"']*[\s{])?(\w+):\s+\(([^()\[\]{}"':#]+,[^()\[\]{}"':#]*)\)""")
_WORD = re.compile(r"[A-Za-z_][\w-]*")

_INT = re.compile(r"[-+]?[0-9]{1,30}|0o[0-7]{1,30}|0x[0-9a-fA-F]{1,30}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
_NOT_A_NUMBER = (".nan", ".NaN", ".NAN")

# A piece of PyYAML's message -> the message of ours.
_SYNTAX = {
    "mapping values are not allowed": "a ': ' is not expected here; check this line's indentation, "
    "or put text that holds ': ' in quotes",
    "expected <block end>": "this does not line up with the lines before it; check the indentation",
    "could not find expected ':'": "expected 'key: value'; a colon or a closing quote is missing, "
    "or the indentation is wrong",
    "expected ',' or '}'": "this '{' is not closed; a '}' or a comma is missing",
    "expected ',' or ']'": "this '[' is not closed; a ']' or a comma is missing",
    "expected the node content": "a value is missing here, or a bracket is not closed",
    "unexpected end of stream": "these quotes are not closed",
    "found character '\\t'": "a tab is not allowed here; use spaces",
    "that cannot start any token": "text must not begin with this character; put it in quotes",
    "sequence entries are not allowed": "a list item '- ' is not expected here; check the "
    "indentation",
    "unknown escape": "this backslash means nothing inside double quotes; write it twice, or use "
    "single quotes",
}


class Origin(NamedTuple):
    """Where a value was written. ``source`` is that line; an override has no line number."""

    file: str
    line: int | None = None
    column: int | None = None
    source: str | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass
class Parsed:
    """Plain data, the origins of its keys and values, and the faults of the text.

    ``unknown`` holds the places whose value could not be read; no other fault is reported there.
    """

    data: Any = None
    values: dict[Place, Origin] = field(default_factory=dict)
    keys: dict[Place, Origin] = field(default_factory=dict)
    unknown: set[Place] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)


def parse(text: str, file: str, override: Origin | None = None) -> Parsed:
    """Parse YAML text. If ``override`` is given, it is the origin of everything in the text.

    After a syntax error each top-level key is read by itself, so that one fault hides no other.
    """
    # Characters that YAML forbids are removed first, so that they hide no other fault.
    forbidden = yaml.reader.Reader.NON_PRINTABLE
    lines = forbidden.sub("", text).splitlines()
    reader = _Reader(file, lines, override)
    faults = []
    if found := forbidden.search(text):
        *before, last = f"{text[: found.start()]}|".splitlines()
        faults.append(reader.fault(len(before), len(last) - 1, "a control character; remove it"))
    spaced = []
    for row, line in enumerate(lines):
        indentation = line[: len(line) - len(line.lstrip(" \t"))]
        if "\t" in indentation and line.strip():
            column = indentation.index("\t")
            faults.append(reader.fault(row, column, "a tab in the indentation; use spaces"))
        line = indentation.replace("\t", " ") + line[len(indentation) :]
        while found := _TUPLE.match(line):
            message = f"a list has square brackets; write {found[2]}: [{found[3]}]"
            faults.append(reader.fault(row, found.start(3) - 1, message))
            line = f"{line[: found.start(3) - 1]}[{found[3]}]{line[found.end() :]}"
        spaced.append(line)
    try:
        try:
            _require_few_keys(spaced)
            parsed = reader.read(spaced, 0)
        except _TooMuch:
            raise
        except yaml.MarkedYAMLError as error:
            reader.nodes = 0
            parsed = _parse_blocks(reader, spaced)
            if not parsed.faults and not faults:
                parsed.faults.append(reader.syntax_fault(error, 0))
    except _TooMuch as error:  # other faults do not matter then
        parsed = Parsed(unknown={()}, faults=[reader.syntax_fault(error, 0)])
    parsed.faults[:0] = faults
    return parsed


def _require_few_keys(lines: list[str]) -> None:
    """Raise _TooMuch if far more keys begin a line than a configuration has; PyYAML is slow."""
    rows = [row for row, line in enumerate(lines) if _TOP_LEVEL_KEY.match(line)]
    if len(rows) > MAX_KEYS:
        what = f"too many keys; {MAX_KEYS:,} may begin at the left"
        raise _TooMuch(problem=what, problem_mark=yaml.Mark("", 0, rows[MAX_KEYS], 0, None, 0))


def _parse_blocks(reader: "_Reader", lines: list[str]) -> Parsed:
    """Read the lines of each top-level key by themselves; unreadable ones become unknown."""
    parsed = Parsed(data={})
    starts = [row for row, line in enumerate(lines) if _TOP_LEVEL_KEY.match(line)]
    for start, end in pairwise(sorted({0, *starts, len(lines)})):
        try:
            block = reader.read(lines[start:end], start)
        except _TooMuch as error:
            assert error.problem_mark is not None
            error.problem_mark.line += start
            raise
        except yaml.MarkedYAMLError as error:
            key = _TOP_LEVEL_KEY.match(lines[start])
            parsed.unknown.add((key[1],) if key else ())
            if any(re.match(r"\s*\t", line) for line in reader.lines[start:end]):
                continue  # the tab itself is told
            row = _without_colon(lines, start, error)
            if row is None:
                parsed.faults.append(reader.syntax_fault(error, start))
            else:
                parsed.faults.append(reader.colon_fault(row))
                parsed.unknown.add((lines[row].replace(":", " ").split()[0],))
            continue
        parsed.faults += block.faults
        if not isinstance(block.data, dict):
            if block.data is not None:
                origin = block.values[()]
                parsed.faults.append(reader.colon_fault((origin.line or start + 1) - 1))
                parsed.unknown.add((str(block.data).partition(" ")[0],))
            continue
        for key in block.data.keys() & parsed.data.keys():
            first, again = parsed.keys[(key,)], block.keys[(key,)]
            parsed.faults.append(Fault(key, _twice(key, first), *again))
        for found, all_found in (
            (block.data, parsed.data),
            (block.values, parsed.values),
            (block.keys, parsed.keys),
        ):
            for name, value in found.items():
                all_found.setdefault(name, value)  # the first of two equal keys counts
        parsed.unknown |= block.unknown
    return parsed


def _without_colon(lines: list[str], start: int, error: yaml.MarkedYAMLError) -> int | None:
    """The row of a key without a colon that explains an error in the block from row ``start``."""
    noticed = re.search("values are not allowed|expected ':'|block end", error.problem or "")
    if not noticed or error.problem_mark is None:
        return None
    for row in reversed(range(start, min(start + error.problem_mark.line + 1, len(lines)))):
        text = re.sub(r"(^|\s)#.*", "", lines[row]).strip()
        if _goes_on(lines, row):
            continue
        if missing_colon(text) or (_WORD.fullmatch(text) and row < start + error.problem_mark.line):
            return row
    return None


def _goes_on(lines: list[str], row: int) -> bool:
    """Whether a row is a further line of the plain text beside a key, as yaml.dump folds it."""
    depth = len(lines[row]) - len(lines[row].lstrip())
    above = (line for line in reversed(lines[:row]) if line.strip())
    owner = next((line for line in above if len(line) - len(line.lstrip()) < depth), "")
    return _KEY_WITH_TEXT.fullmatch(owner) is not None


class _TooMuch(yaml.MarkedYAMLError):
    """The text is larger than any configuration; it is not read a second time."""


class _Reader:
    """Reads the events of PyYAML's parser, because they show tags, anchors and positions."""

    def __init__(self, file: str, lines: list[str], override: Origin | None) -> None:
        self.file, self.lines, self.override = file, lines, override
        self.nodes = 0

    def read(self, lines: list[str], first_row: int) -> Parsed:
        """Parse lines of the file; raises yaml.MarkedYAMLError for text that is not YAML."""
        self.parsed, self.first_row = Parsed(), first_row
        self.events = _events("\n".join(lines) + "\n")
        next(self.events)  # the stream's start
        if isinstance(next(self.events), yaml.DocumentStartEvent):
            self.parsed.data = self.node((), next(self.events))
            next(self.events)  # the document's end
            event = next(self.events)
            if isinstance(event, yaml.DocumentStartEvent):
                self.add((), event, "a second configuration begins here; one file holds one")
        return self.parsed

    def node(self, place: Place, event: Any) -> Any:
        """The value that begins with ``event``."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            what = f"too many values; {MAX_NODES:,} are allowed"
            raise _TooMuch(problem=what, problem_mark=event.start_mark)
        if len(place) > MAX_DEPTH:
            what = f"more than {MAX_DEPTH} levels"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)
        self.parsed.values[place] = self.origin_of(event)
        if isinstance(event, yaml.AliasEvent):
            message = f"'*{event.anchor}': references are not allowed; repeat the value"
            self.add(place, event, message)
            self.parsed.unknown.add(place)
            return None
        if event.anchor is not None:
            self.add(place, event, f"'&{event.anchor}': anchors are not allowed; remove it")
        if event.tag is not None:
            tag = shortened(event.tag, 40)
            self.add(place, event, f"the tag '{tag}' is not allowed; remove it")
            self.parsed.unknown.add(place)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                items.append(self.node((*place, len(items)), item))
            return items
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(place)
        return self.text(place, event)

    def mapping(self, place: Place) -> dict[str, Any]:
        """The keys and values up to the mapping's end; the first of two equal keys counts."""
        data: dict[str, Any] = {}
        while not isinstance(found := next(self.events), yaml.MappingEndEvent):
            event: Any = found
            plain = isinstance(event, yaml.ScalarEvent) and not _has_half_character(event)
            if not plain or event.tag or event.anchor:
                self.add(place, event, "a key must be plain text")
                self.node((*place, "?"), event)
                self.node((*place, "?"), next(self.events))
                continue
            key, inner = event.value, (*place, event.value)
            if key == "<<" and event.implicit[0]:
                self.add(place, event, "merge keys ('<<') are not allowed; write the keys out")
                self.node((*place, "?"), next(self.events))
            elif event.style is None and (mended := missing_colon(key)):
                row = self.first_row + event.start_mark.line
                value = self.node((*place, "?"), next(self.events))
                what = "a space is missing after the colon" if ":" in key else "a colon is missing"
                mended += "" if value is None else ": ..."
                self.parsed.faults.append(
                    self.fault(row, event.start_mark.column, f"{what}: write '{shortened(mended)}'")
                )
                self.parsed.unknown.add((*place, mended.partition(":")[0]))
            elif key in data:
                self.add(inner, event, _twice(key, self.parsed.keys[inner]))
                self.node((*place, f"{key} (again)"), next(self.events))
            else:
                self.parsed.keys[inner] = self.origin_of(event)
                data[key] = self.node(inner, next(self.events))
        return data

    def text(self, place: Place, event: Any) -> Any:
        """The value of a scalar: quoted text is text, the rest is parsed by ``scalar``."""
        if _has_half_character(event):
            message = "'\\ud800' to '\\udfff' are half a character; write the whole one"
        elif not event.implicit[0]:
            return event.value
        elif event.style is None and self.runs_on(place, event):
            row = self.first_row + event.start_mark.line + 1
            while row < len(self.lines) - 1 and not self.lines[row].split("#")[0].strip():
                row += 1
            several = "text over several lines needs quotes, and a list is [a, b]"
            self.parsed.faults.append(self.colon_fault(row, several))
            self.parsed.unknown.add(place)
            return None
        else:
            try:
                return scalar(event.value)
            except ValueError as error:
                message = str(error)
        self.add(place, event, message)
        self.parsed.unknown.add(place)
        return None

    def runs_on(self, place: Place, event: Any) -> bool:
        """Whether text goes on below, except text after a key on its line, as yaml.dump folds it.

        A list without its dashes and a key without its colon look like text on several lines.
        """
        key = self.parsed.keys.get(place)
        beside_key = key is not None and key.line == self.origin_of(event).line
        return bool(event.end_mark.line > event.start_mark.line) and not beside_key

    def origin_of(self, event: Any) -> Origin:
        return self.origin(self.first_row + event.start_mark.line, event.start_mark.column)

    def origin(self, row: int, column: int) -> Origin:
        source = self.lines[row] if row < len(self.lines) else None
        if source is not None and len(source) > MAX_LINE:
            source = None
        return self.override or Origin(self.file, row + 1, column + 1, source)

    def add(self, place: Place, event: Any, message: str) -> None:
        path = ".".join(map(str, place))
        self.parsed.faults.append(Fault(path, message, *self.origin_of(event)))

    def fault(self, row: int, column: int, message: str) -> Fault:
        return Fault("", message, *self.origin(row, column))

    def colon_fault(self, row: int, otherwise: str = "") -> Fault:
        """The fault of a line that lacks the colon after its key, or the space after the colon."""
        text = re.sub(r"(^|\s)#.*", "", self.lines[row])
        mended, message = missing_colon(text), otherwise or "expected 'key: value'"
        if not mended and not otherwise and _WORD.fullmatch(text.strip()):
            mended = f"{text.strip()}:"
        if mended:
            what = "a space is missing after the colon" if ":" in text else "a colon is missing"
            message = f"expected 'key: value'; {what}: write '{shortened(mended)}'"
        return self.fault(row, len(text) - len(text.lstrip()), message)

    def syntax_fault(self, error: yaml.MarkedYAMLError, first_row: int) -> Fault:
        """PyYAML's error in plain words, at the mistake rather than at the place it was noticed."""
        mark, began = error.problem_mark or yaml.Mark("", 0, 0, 0, None, 0), error.context_mark
        if began and re.search("flow|quoted", error.context or "") and began.line != mark.line:
            mark = began  # the bracket or the quote that is not closed
        problem = error.problem or "this is not YAML"
        message = next((plain for piece, plain in _SYNTAX.items() if piece in problem), problem)
        return self.fault(first_row + mark.line, mark.column, message)


def _events(text: str) -> Iterator[Any]:
    """PyYAML's events. Numbers that make PyYAML fail become errors with their position."""
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_event():
            yield loader.get_event()  # type: ignore[no-untyped-call]
    except (ValueError, OverflowError):  # "\UFFFFFFFF", or a %YAML version of thousands of digits
        problem = "no character has this number; '\\U0010ffff' is the last"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=loader.get_mark()) from None
    finally:
        loader.dispose()


def _has_half_character(event: Any) -> bool:
    """Whether text holds half of a UTF-16 pair, which cannot be written to a file."""
    return any("\ud800" <= char <= "\udfff" for char in event.value)


def _twice(key: str, first: Origin) -> str:
    where = f" (first on line {first.line})" if first.line else ""
    return f"key '{shortened(key, 40)}' is given twice{where}; remove one"


def scalar(text: str) -> Any:
    """The value of unquoted text; raises ValueError for NaN and for numbers that are too large."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        number = int(text, base)
        if abs(number) >= 1 << 63:
            raise ValueError("this number is too large")
        return number
    if text in _NOT_A_NUMBER:
        raise ValueError("'.nan' is no setting; write a number")
    if _FLOAT.fullmatch(text):
        value = float(text)
        if math.isinf(value):
            raise ValueError("this number is too large")
        return value
    return text


def missing_colon(text: str) -> str:
    """ "seed: 0" for "seed 0", "seed = 0" and "seed:0"; "" for text of another form."""
    found = _NO_COLON.fullmatch(text.strip())
    return f"{found[1]}: {found[2]}" if found else ""


def is_text(text: str) -> bool:
    """Whether ``text`` without quotes is read as this same text."""
    try:
        return isinstance(scalar(text), str)
    except ValueError:
        return False
