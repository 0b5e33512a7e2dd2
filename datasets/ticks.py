"""Labels that are likely wrong, as a table for a person to tick, and the ticks as fixes."""

import csv
import difflib
import hashlib
import io
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import DataError
from datasets.csv_table import Table
from datasets.files import shorten, user_path
from datasets.fixes import LEAVE_OUT, rows_of_fixes
from datasets.words import counted

CANDIDATES = "candidates.csv"
BETWEEN = ";"  # several labels
_SHOWN = 10  # faults that are printed
_NOT_TICKED = {"", "0", "no", "false", "n", "-"}
_OF_LABELS = ("tick", "label", "given", "likely", "score", "p_given", "p_likely")
_COLUMNS = (*_OF_LABELS, "part", "id", "sha256")


class Candidate(NamedTuple):
    """A label that is likely wrong. score: how likely it is right, from 0 to 1.

    given, likely: class names, with ";" between several. chances: the model's probability of each;
    None where an image may have several. part: of the experiment without folds. fold: whose model
    judged; None for the mean of all. likeliest: classes and their probabilities, the largest first.
    """

    digest: str
    id: str
    part: str
    fold: int | None
    given: str
    likely: str
    score: float
    chances: tuple[float, float] | None
    likeliest: tuple[tuple[str, float], ...]


class Allowed(NamedTuple):
    """What a label and a content may be: classes, whether an image may have several, digests."""

    classes: Sequence[str]
    several: bool
    digests: Collection[str]


def candidate_lines(candidates: Iterable[Candidate]) -> str:
    """The content of candidates.csv: a row for each, none of them ticked."""
    rows = [
        ["", one.likely, one.given, one.likely, f"{one.score:.6f}"]
        + (["", ""] if one.chances is None else [f"{chance:.6f}" for chance in one.chances])
        + [one.part, one.id, one.digest]
        for one in candidates
    ]
    return "".join(csv_line(row) for row in [_COLUMNS, *rows])


def csv_line(cells: Iterable[object]) -> str:
    """A row of a CSV file, with its line end."""
    text = io.StringIO()
    csv.writer(text).writerow(cells)  # it quotes \r and \n, its own line end
    return text.getvalue().removesuffix("\r\n") + "\n"


def ticks_in(file: Path) -> list[tuple[int, dict[str, str]]]:
    """The line and the text by column of each ticked row of a candidates.csv.

    A tick is anything but nothing, 0, no, false, n and -. Raises DataError.
    """
    table = Table(file, _COLUMNS)
    names = [name.casefold() for name in table.header]
    needed = ("tick", "label", "given", "part", "id", "sha256")
    if any(names.count(name) != 1 for name in needed):
        raise DataError(
            f"{file}:{table.above + 1}: expected the columns {', '.join(needed)}, each once, as "
            "python -m trainer.clean SWEEP writes them."
        )
    rows = table.rows()
    next(rows, None)
    found = []
    for row in rows:
        values = dict(zip(names, [*row, *[""] * len(names)], strict=False))
        if values["tick"].casefold() not in _NOT_TICKED:
            found.append((table.line, values))
    return found


def new_fixes(
    file: Path, allowed: Allowed, with_test: bool
) -> tuple[list[dict[str, str]], list[str]]:
    """The ticked rows of a candidates.csv as rows of fixes, and notes on those that are left out.

    Rows of test are left out without ``with_test``. Raises DataError with all faults of the table,
    and if no row is left.
    """
    new: dict[str, dict[str, str]] = {}
    faults, count = [], Counter[str]()
    for line, row in ticks_in(file):
        digest, label = row["sha256"].lower(), row["label"]
        if row["part"] == "test" and not with_test:
            count["test"] += 1
            continue
        fault = _fault_of(allowed, label)
        if digest not in allowed.digests:
            fault = f"{shorten(digest)!r} is the SHA-256 of no image of the sweep"
        elif digest in new and new[digest]["label"] != label:
            fault = "contradicts another tick on the same content"
        if fault:
            faults.append(f"{file}:{line}: {fault}")
        elif label == row["given"]:
            count["same"] += 1
        else:
            note = note_of_fix(row["given"])
            new[digest] = {"sha256": digest, "label": label, "id": row["id"], "note": note}
    if faults:
        more = [f"... and {len(faults) - _SHOWN:,} more"] * (len(faults) > _SHOWN)
        raise DataError("\n".join([*faults[:_SHOWN], *more]))
    notes = []
    if number := count["test"]:
        notes.append(f"{counted(number, 'tick')} of test images left out; --test takes them")
    if number := count["same"]:
        notes.append(f"{counted(number, 'tick')} with the label that was given: no change")
    if not new:
        nothing = "no row is ticked with a new label: put an x in the column tick"
        raise DataError("\n".join([f"{file}: {nothing}; nothing is written.", *notes]))
    return [*new.values()], notes


def note_of_fix(given: str) -> str:
    """The note on a new row, for people."""
    return f"was {given}"


def _fault_of(allowed: Allowed, label: str) -> str:
    """What is wrong with the label of a ticked row; "" if nothing is."""
    if not label:
        none = f", or '{BETWEEN}' for none" if allowed.several else ""
        return f"the label is empty; expected a class{none}, or {LEAVE_OUT!r}"
    if label == LEAVE_OUT:
        return ""
    names = [name.strip() for name in label.split(BETWEEN)] if allowed.several else [label]
    for name in names:
        if name and name not in allowed.classes:
            near = difflib.get_close_matches(name, [*allowed.classes, LEAVE_OUT], n=1)
            return f"{shorten(name)!r} is no class" + (
                f"; did you mean {near[0]!r}?" if near else ""
            )
    return ""


def fixes_before(file: str | None, digest: str | None) -> list[dict[str, str]]:
    """The rows of the fixes of a run, whose split.json has their digest.

    Raises DataError if the file is another one now.
    """
    if file is None:
        return []
    path = user_path(file, "dataset.fixes")
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != digest:
        what = "has changed since the sweep" if path.is_file() else "is not there"
        raise DataError(
            f"dataset.fixes: {path} {what}, and the new file holds its rows too. Bring it back, or "
            "name its place: dataset.fixes=..."
        )
    return rows_of_fixes(path)


def header_of_fixes(before: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns of a new file of fixes, which holds the rows of ``before`` too."""
    others = [name for row in before[:1] for name in row]
    return list(dict.fromkeys(["sha256", "label", *others, "id", "note"]))


def merged(
    before: Sequence[Mapping[str, str]], new: Sequence[Mapping[str, str]]
) -> tuple[str, int, list[str]]:
    """The content of a file of fixes with the rows ``before`` and new ones.

    A new row takes the place of an old one of the same content. Also returns how many old rows are
    kept, and a line for each that was replaced.
    """
    header = header_of_fixes(before)
    again = {row["sha256"]: row for row in new}
    kept = [row for row in before if row["sha256"] not in again]
    replaced = [
        f"{again[row['sha256']]['id']}: the fixes before said {row['label']!r}, the tick "
        f"{again[row['sha256']]['label']!r}: the tick counts"
        for row in before
        if row["sha256"] in again
    ]
    rows = [[row.get(name, "") for name in header] for row in [*kept, *new]]
    return "".join(csv_line(row) for row in [header, *rows]), len(kept), replaced
