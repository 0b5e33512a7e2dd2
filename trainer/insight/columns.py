"""Text in columns that fit a terminal: what is too long goes on below, or is cut in the middle."""

import shutil
import unicodedata
from collections.abc import Sequence

NARROWEST = 12  # no column is made narrower, however many there are
FIRST = 20  # nor the first one
GAP = "  "


def visible(text: str) -> str:
    """Text without control characters and other things that a terminal would act on."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


def terminal_width(without: int = 100) -> int:
    """Columns of the terminal; ``without`` one, as in a pipe, so many."""
    return max(shutil.get_terminal_size((without, 24)).columns, 40)


def width_of(text: str) -> int:
    """Columns that ``text`` takes: a Chinese letter takes two."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def pad(text: str, width: int, right: bool = False) -> str:
    """Text with blanks after it, or before it."""
    blanks = " " * (width - width_of(text))
    return blanks + text if right else text + blanks


def shorten(text: str, width: int, end: int = 0) -> str:
    """Text that takes at most ``width``; "..." stands for what is cut before its last ``end``."""
    if width_of(text) <= width:
        return text
    end = min(end, max(width - 3, 0))
    head, tail = text[: len(text) - end], text[len(text) - end :]
    while head and width_of(head) + 3 + width_of(tail) > width:
        head = head[:-1]
    return f"{head}...{tail}"


def wrap(text: str, width: int) -> list[str]:
    """Text in lines of at most ``width``, cut after a blank if one is near the end, else after a

    dot and its like, else anywhere.
    """
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
    """Lines of a table within ``width``; ``rows[0]`` is the head, the first column names a row.

    Long cells go on below themselves; columns that find no room make another table below, which
    repeats the first column.
    """
    first, *columns = [list(column) for column in zip(*rows, strict=True)]
    natural = [max(map(width_of, column)) for column in columns]
    first_width = min(max(map(width_of, first)), max(width // 3, width - least_room(rows), FIRST))
    if fits_in_one_block(rows, width):  # then in one block
        first_width = min(first_width, width - least_room(rows))
    room = width - first_width
    blocks: list[list[int]] = [[]]
    used = 0
    for i, needed in enumerate(natural):  # as many in a block as fit with the least they need
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
                parts = [part[at] if at < len(part) else "" for part in wrapped]
                padded = [pad(part, w) for part, w in zip(parts, widths, strict=True)]
                lines.append(GAP.join(padded).rstrip())
    return lines


def least_room(rows: Sequence[Sequence[str]]) -> int:
    """Columns of the terminal that a table takes beside its first column, when made narrow."""
    columns = list(zip(*rows, strict=True))[1:]
    return sum(min(max(map(width_of, c)), NARROWEST) + len(GAP) for c in columns)


def fits_in_one_block(rows: Sequence[Sequence[str]], width: int) -> bool:
    """Whether ``lay_out`` needs one block only."""
    first = min(max(width_of(row[0]) for row in rows), FIRST)
    return first + least_room(rows) <= width


def _fair(natural: Sequence[int], room: int) -> int:
    """The width to which the widest columns are cut, so that all of them fit."""
    limit = max(natural, default=0)
    while limit > NARROWEST and sum(min(n, limit) for n in natural) > room:
        limit -= 1
    return limit
