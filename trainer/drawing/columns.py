"""Lays out text in columns that fit a terminal: no number or word is cut that a line can hold."""

import re
import shutil
import unicodedata
from collections.abc import Sequence

NARROWEST = 12  # least width of a column of longer text
FIRST = 20  # least width of the first column, if its cells need it
GAP = "  "
SIGN = re.compile(r"[,_=;]|[-.](?=[^\d.])")  # a word that is too long may be cut after it


def terminal_width(without: int = 100) -> int:
    """Return the columns of the terminal, at least 40; ``without`` if there is no terminal."""
    return max(shutil.get_terminal_size((without, 24)).columns, 40)


def width_of(text: str) -> int:
    """Return the columns that ``text`` takes in a terminal: a Chinese letter takes two."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me") for c in text)


def pad(text: str, width: int, right: bool = False) -> str:
    """Return text filled with blanks to ``width``: after it, or before it if ``right``."""
    blanks = " " * (width - width_of(text))
    return blanks + text if right else text + blanks


def wrap(text: str, width: int) -> list[str]:
    """Return text in lines of at most ``width``, cut after a blank; a longer word after a sign."""
    lines = []
    while width_of(text) > width:
        fits = width
        while fits > 1 and width_of(text[:fits]) > width:
            fits -= 1
        blank = text.rfind(" ", 0, fits + 1) + 1
        slash = text.rfind("/", 0, fits) + 1
        sign = max((found.end() for found in SIGN.finditer(text, 0, fits)), default=0)
        cut = blank or next((at for at in (slash, sign) if at >= fits // 3 > 0), fits)
        lines.append(text[:cut].rstrip())
        text = text[cut:].lstrip(" ")
    return [*lines, text]


def hang(line: str, at: int, width: int) -> list[str]:
    """Return the line in lines of at most ``width``; later ones begin at column ``at``."""
    first, *more = wrap(line[at:], width - at)
    return [line[:at] + first, *(" " * at + part for part in more)]


def longest_word(cells: Sequence[str]) -> int:
    """Return the width of the widest word of the cells: a narrower column would cut it."""
    return max((width_of(word) for cell in cells for word in cell.split()), default=0)


def fit_columns(
    rows: Sequence[Sequence[str]], width: int, drop: Sequence[str], left: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Return a table as lines of at most ``width``, and the heads of the columns it leaves out.

    ``rows[0]`` is the head. Columns are left out in the order of ``drop`` until the others fit as
    they are. A first cell of more than two thirds of the width has a line of its own. Columns in
    ``left`` begin at the left, the others end at the right.
    """
    first, *columns = [list(column) for column in zip(*rows, strict=True)]
    own = max(wide for wide in map(width_of, first) if wide <= width * 2 // 3)
    shown = {column[0]: column for column in columns}
    wide = {head: max(map(width_of, column)) for head, column in shown.items()}
    out = []
    for head in drop:
        if own + sum(wide[name] + len(GAP) for name in shown) > width:
            out.append(head)
            del shown[head]
    lines = []
    for number, name in enumerate(first):
        cells = [pad(c[number], wide[head], head not in left) for head, c in shown.items()]
        if width_of(name) > own:
            lines += wrap(name, width)
            name = ""
        line = GAP.join([pad(name, own), *cells]).rstrip()
        lines += [line] if line else []
    return lines, out


def left_out(heads: Sequence[str], width: int, elsewhere: str) -> list[str]:
    """Return lines that name the columns that were left out and where they are, or none."""
    text = f"left out at {width} columns: {', '.join(heads)}; {elsewhere}"
    return wrap(text, width) if heads else []


def lay_out(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return a table as lines of at most ``width``; ``rows[0]`` is the head.

    Long cells are wrapped between words. Columns without room go into another table below, which
    repeats the first column.
    """
    first, *columns = [list(column) for column in zip(*rows, strict=True)]
    natural = [max(map(width_of, column)) for column in columns]
    least = least_widths(rows, width)
    first_width = min(max(map(width_of, first)), max(width // 3, width - sum(least[1:]), FIRST))
    if fits_in_one_block(rows, width):
        first_width = min(first_width, width - sum(least[1:]))
    first_width = max(first_width, least[0])
    room = width - first_width
    blocks: list[list[int]] = [[]]
    used = 0
    for i, needed in enumerate(least[1:]):  # a block holds as many as fit at their least width
        if blocks[-1] and used + needed > room:
            blocks.append([])
            used = 0
        blocks[-1].append(i)
        used += needed
    lines: list[str] = []
    for block in blocks:
        bounds = [(min(least[i + 1] - len(GAP), room - len(GAP)), natural[i]) for i in block]
        widths = [first_width, *_fair(bounds, room - len(GAP) * len(block))]
        lines += [""] if lines else []
        for number in range(len(rows)):
            cells = [first[number], *(columns[i][number] for i in block)]
            wrapped = [wrap(cell, w) for cell, w in zip(cells, widths, strict=True)]
            for at in range(max(map(len, wrapped))):
                texts = [cell[at] if at < len(cell) else "" for cell in wrapped]
                padded = [pad(text, w) for text, w in zip(texts, widths, strict=True)]
                lines.append(GAP.join(padded).rstrip())
    return lines


def least_widths(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the least width of each column, with its gap but for the first: no word is cut."""
    columns = list(zip(*rows, strict=True))
    first = max(longest_word(columns[0]), min(max(map(width_of, columns[0])), FIRST))
    others = []
    for column in columns[1:]:
        needed = max(longest_word(column), min(max(map(width_of, column)), NARROWEST))
        others.append(needed + len(GAP))
    return [min(first, max(width // 2, width - max(others, default=0))), *others]


def fits_in_one_block(rows: Sequence[Sequence[str]], width: int) -> bool:
    """Return whether ``lay_out`` needs no second table below the first."""
    return sum(least_widths(rows, width)) <= width


def _fair(bounds: Sequence[tuple[int, int]], room: int) -> list[int]:
    """Return each column's width within its (least, natural), so that all fit if they can."""
    limit = max((natural for _, natural in bounds), default=0)
    while True:
        widths = [max(least, min(natural, limit)) for least, natural in bounds]
        if sum(widths) <= room or limit <= 1:
            return widths
        limit -= 1
