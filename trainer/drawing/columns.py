"""Lays out text in columns that fit a terminal: long text is wrapped, or cut in the middle."""

import shutil
import unicodedata
from collections.abc import Sequence

NARROWEST = 12  # least width of a column
FIRST = 20  # least width of the first column, if its cells need it
GAP = "  "


def terminal_width(without: int = 100) -> int:
    """Return the columns of the terminal, at least 40; ``without`` if there is no terminal."""
    return max(shutil.get_terminal_size((without, 24)).columns, 40)


def width_of(text: str) -> int:
    """Return the columns that ``text`` takes in a terminal: a Chinese letter takes two."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def pad(text: str, width: int, right: bool = False) -> str:
    """Return text filled with blanks to ``width``: after it, or before it if ``right``."""
    blanks = " " * (width - width_of(text))
    return blanks + text if right else text + blanks


def shorten(text: str, width: int, end: int = 0) -> str:
    """Return text of at most ``width`` columns: "..." replaces letters before the last ``end``."""
    if width_of(text) <= width:
        return text
    end = min(end, max(width - 3, 0))
    head, tail = text[: len(text) - end], text[len(text) - end :]
    while head and width_of(head) + 3 + width_of(tail) > width:
        head = head[:-1]
    return f"{head}...{tail}"


def wrap(text: str, width: int) -> list[str]:
    """Return text in lines of at most ``width``, cut after a blank, else a sign, else anywhere."""
    lines = []
    while width_of(text) > width:
        fits = width
        while fits > 1 and width_of(text[:fits]) > width:
            fits -= 1
        blank = text.rfind(" ", 0, fits + 1) + 1
        sign = max(text.rfind(c, 0, fits) for c in ",./_=") + 1
        cut = next((at for at in (blank, sign) if at >= fits // 3 > 0), fits)
        lines.append(text[:cut].rstrip())
        text = text[cut:].lstrip(" ")
    return [*lines, text]


def lay_out(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return a table as lines of at most ``width``; ``rows[0]`` is the head.

    Long cells are wrapped. Columns without room go into another table below, which repeats the
    first column.
    """
    first, *columns = [list(column) for column in zip(*rows, strict=True)]
    natural = [max(map(width_of, column)) for column in columns]
    first_width = min(max(map(width_of, first)), max(width // 3, width - least_room(rows), FIRST))
    if fits_in_one_block(rows, width):
        first_width = min(first_width, width - least_room(rows))
    room = width - first_width
    blocks: list[list[int]] = [[]]
    used = 0
    for i, needed in enumerate(natural):  # a block holds as many as fit at their least width
        least = min(needed, NARROWEST) + len(GAP)
        if blocks[-1] and used + least > room:
            blocks.append([])
            used = 0
        blocks[-1].append(i)
        used += least
    lines: list[str] = []
    for block in blocks:
        limit = _fair([natural[i] for i in block], room - len(GAP) * len(block))
        widths = [first_width, *(min(natural[i], limit) for i in block)]
        lines += [""] if lines else []
        for number in range(len(rows)):
            cells = [first[number], *(columns[i][number] for i in block)]
            wrapped = [wrap(cell, w) for cell, w in zip(cells, widths, strict=True)]
            for at in range(max(map(len, wrapped))):
                texts = [cell[at] if at < len(cell) else "" for cell in wrapped]
                padded = [pad(text, w) for text, w in zip(texts, widths, strict=True)]
                lines.append(GAP.join(padded).rstrip())
    return lines


def least_room(rows: Sequence[Sequence[str]]) -> int:
    """Return the least width that a table takes beside its first column."""
    columns = list(zip(*rows, strict=True))[1:]
    return sum(min(max(map(width_of, c)), NARROWEST) + len(GAP) for c in columns)


def fits_in_one_block(rows: Sequence[Sequence[str]], width: int) -> bool:
    """Return whether ``lay_out`` needs no second table below the first."""
    first = min(max(width_of(row[0]) for row in rows), FIRST)
    return first + least_room(rows) <= width


def _fair(natural: Sequence[int], room: int) -> int:
    """Return the width to which the widest columns are cut, so that all columns fit."""
    limit = max(natural, default=0)
    while limit > NARROWEST and sum(min(n, limit) for n in natural) > room:
        limit -= 1
    return limit
