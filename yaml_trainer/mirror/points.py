"""The points of a run: what metrics.jsonl holds, also while a run writes it and cuts it back."""

import json
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from trainer.comparing.listing import number
from trainer.process.errors import RunError
from trainer.process.lock import PLAIN_FILE

Rows = dict[int, dict[str, float]]  # step: the values of that step by name
NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)*", re.ASCII)  # every tracker takes such names
LARGEST = 1.7976931348623157e308  # a float64
REMEMBERED = 4096  # bytes before the place where reading goes on


class Lines:
    """The rows of a metrics.jsonl. ``read`` goes on where it ended, or from the beginning.

    A resumed run cuts its file back to its checkpoint. Then the file is shorter, or other bytes lie
    before the place where reading ended. Of two values of one name and step the first counts, as in
    TensorBoard: the line of an epoch repeats the learning rate of its last step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: Rows = {}
        self.left_out: set[str] = set()  # names of what is no number
        self._place, self._before, self._count = 0, b"", 0

    def read(self) -> set[int]:
        """Read what is new; returns the steps whose rows may be others than before.

        Raises RunError if a whole line is none of ours. A file that is missing has no rows.
        """
        was = set(self.rows)
        data = self._new_bytes()
        changed = was - set(self.rows)
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._count += 1
            changed.add(self._take(line))
        self._place += len(whole)
        self._before = (self._before + whole)[-REMEMBERED:]
        return changed

    def _new_bytes(self) -> bytes:
        try:
            with open(os.open(self.path, os.O_RDONLY | PLAIN_FILE), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise RunError(f"{self.path} is no file: the run folder is damaged.")
                file.seek(self._place - len(self._before))
                content = file.read()
        except FileNotFoundError:
            content = b""
        if len(content) >= len(self._before) and content.startswith(self._before):
            return content[len(self._before) :]
        self.rows, self._place, self._before, self._count = {}, 0, b"", 0
        return self._new_bytes()

    def _take(self, line: bytes) -> int:
        try:
            values = json.loads(line)
            step = values.pop("step")
            if not isinstance(step, int) or not 0 <= step < 2**63:
                raise ValueError("its step is no whole number from 0 on")
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
            where = f"{self.path}, line {self._count}"
            raise RunError(
                f"{where} cannot be read ({error}): the run folder is damaged."
            ) from None
        row = self.rows.setdefault(step, {})
        for name, value in values.items():
            if number(value) is None or not NAME.fullmatch(name) or ".." in name:
                self.left_out.add(name)
            else:
                row.setdefault(name, value)
        return step


def is_same(one: float, other: float) -> bool:
    """Whether a tracker's number is that of the run.

    Databases of MLflow hold the largest float in the place of infinity.
    """
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return max(-LARGEST, min(LARGEST, one)) == max(-LARGEST, min(LARGEST, other))


def missing(have: Rows, wanted: Rows, steps: Iterable[int]) -> Rows:
    """The values of ``wanted`` at these steps that ``have`` lacks, in the order of the steps."""
    lacking = {
        step: {k: v for k, v in wanted[step].items() if k not in have.get(step, {})}
        for step in sorted(steps)
        if step in wanted
    }
    return {step: row for step, row in lacking.items() if row}


def contradicts(have: Rows, wanted: Rows, steps: Iterable[int], is_final: bool) -> bool:
    """Whether a tracker holds what the run does not.

    A value that differs always counts. A value that the run lacks counts if ``is_final``: until
    then a resumed run computes again what it was cut back by, on the same machine to the same bits.
    Test results of an earlier end stay, because the run had them.
    """
    for step in steps:
        row = wanted.get(step, {})
        for name, value in have.get(step, {}).items():
            if name in row and not is_same(value, row[name]):
                return True
            if is_final and name not in row and not name.startswith("test/"):
                return True
    return False


def merge(into: Rows, rows: Mapping[int, Mapping[str, float]]) -> None:
    """Add ``rows`` to ``into``."""
    for step, row in rows.items():
        into.setdefault(step, {}).update(row)


def count(rows: Rows) -> int:
    """The number of points."""
    return sum(map(len, rows.values()))
