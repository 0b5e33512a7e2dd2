"""The table of a model's answers, ``predictions.csv``: a row for each image; imports no torch."""

import csv
import io
import itertools
import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.process.errors import RunError, UsageError
from trainer.process.words import shortened, visible

if TYPE_CHECKING:
    from numpy.typing import NDArray

PREDICTIONS = "predictions.csv"
FIXED = ("id", "sha256", "part", "true", "predicted", "probability", "loss")
OF_CLASS = "p:"  # how the column of a class begins
SEPARATOR = ";"  # between the names of several labels
CHUNK = 4096  # rows whose cells wait to become numbers, or a piece of a Parquet file
PARQUET = ".parquet"


class Answer(NamedTuple):
    """A row: what is known of an image, and what a model answers. Unknown texts are "".

    true and predicted are class names, several of them with SEPARATOR between them. probability is
    that of the predicted class; None where an image may have several. loss: None if not known.
    probabilities: one for each class. more: the texts of further columns, after all others.
    """

    id: str
    digest: str
    part: str
    true: str
    predicted: str
    probability: float | None
    loss: float | None
    probabilities: Sequence[float]
    more: Sequence[str] = ()


@dataclass(frozen=True)
class Predictions:
    """A table as columns: losses, NaN where unknown; probabilities (N, K) float32."""

    classes: tuple[str, ...]
    ids: list[str]
    digests: list[str]
    parts: list[str]
    true: list[str]
    predicted: list[str]
    losses: list[float]
    probabilities: "NDArray[Any]"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def keys(self) -> list[str]:
        """What tells the images of two tables apart: their SHA-256, or the id where it is empty."""
        return [digest or name for digest, name in zip(self.digests, self.ids, strict=True)]

    def rows(self, chosen: Sequence[int]) -> "Predictions":
        """The table of these rows."""
        lists = [field.name for field in fields(self)[1:-1]]  # neither classes nor probabilities
        taken: dict[str, Any] = {
            name: [getattr(self, name)[row] for row in chosen] for name in lists
        }
        return replace(self, **taken, probabilities=self.probabilities[list(chosen)])

    def of_part(self, part: str) -> "Predictions":
        """The table of a part's rows."""
        return self.rows([row for row, name in enumerate(self.parts) if name == part])


def prediction_lines(
    classes: Sequence[str], answers: Iterable[Answer], more: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the table's lines, without line ends; the first one names the columns.

    A probability has nine digits, which give back the same float32. more: the names of further
    columns, whose texts each answer has; none begins with OF_CLASS.
    """
    text = io.StringIO()
    writer = csv.writer(text)  # it quotes \r and \n, its own line end

    def line(cells: Sequence[object]) -> str:
        text.seek(0)
        text.truncate()
        writer.writerow(cells)
        return text.getvalue().removesuffix("\r\n")

    yield line([*FIXED, *(OF_CLASS + name for name in classes), *more])
    for one in answers:
        chances = [f"{chance:.9g}" for chance in one.probabilities]
        probability = "" if one.probability is None else f"{one.probability:.9g}"
        loss = "" if one.loss is None else repr(one.loss)
        yield line([*one[:5], probability, loss, *chances, *one.more])


def fill_table(
    file: Any,
    suffix: str,
    classes: Sequence[str],
    answers: Iterable[Answer],
    more: Sequence[str] = (),
) -> None:
    """Write a table into an open file of bytes: Parquet if ``suffix`` says so, else CSV.

    A byte of a name that is not UTF-8 becomes an escape. more: as for ``prediction_lines``.
    """
    if suffix.lower() == PARQUET:
        _fill_parquet(file, classes, answers, more)
        return
    for line in prediction_lines(classes, answers, more):
        file.write(f"{line}\n".encode(errors="backslashreplace"))


def require_parquet(option: str) -> None:
    """Raise UsageError if what writes Parquet is not installed."""
    if find_spec("pyarrow") is None:
        raise UsageError(f'{option}: Parquet needs pyarrow: pip install -e ".[parquet]"')


def _fill_parquet(
    file: Any, classes: Sequence[str], answers: Iterable[Answer], more: Sequence[str]
) -> None:
    """The columns of the CSV: texts as strings, probabilities as float32, the loss as float64."""
    import pyarrow
    import pyarrow.parquet

    text, single = pyarrow.string(), pyarrow.float32()
    kinds = [*[text] * 5, single, pyarrow.float64(), *[single] * len(classes), *[text] * len(more)]
    names = [*FIXED, *(OF_CLASS + name for name in classes), *more]
    schema = pyarrow.schema(list(zip(map(_valid, names), kinds, strict=True)))
    rows = iter(answers)
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while chunk := list(itertools.islice(rows, CHUNK)):
            cells = zip(*map(_cells_of, chunk), strict=True)
            columns = [pyarrow.array(c, kind) for c, kind in zip(cells, kinds, strict=True)]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))


def _cells_of(one: Answer) -> tuple[Any, ...]:
    texts, more = map(_valid, one[:5]), map(_valid, one.more)
    return (*texts, one.probability, one.loss, *one.probabilities, *more)


def _valid(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def read_predictions(path: Path) -> Predictions:
    """Read a table. Raises RunError if it is missing or damaged, and says what to type.

    Columns after those of the classes are not read.
    """
    import numpy

    columns: list[list[str]] = [[] for _ in range(5)]
    losses: list[float] = []
    pieces: list[NDArray[Any]] = []
    end = len(FIXED)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            named = itertools.takewhile(lambda name: name.startswith(OF_CLASS), header[end:])
            classes = tuple(name.removeprefix(OF_CLASS) for name in named)
            stop = end + len(classes)
            if tuple(header[:end]) != FIXED or len(classes) < 2:
                raise ValueError(f"its columns are {shortened(','.join(header), 100)}")
            while chunk := list(itertools.islice(rows, CHUNK)):
                if any(len(row) != len(header) for row in chunk):
                    raise ValueError(f"a row near line {rows.line_num} has too few or many cells")
                for column, cells in zip(columns, zip(*chunk, strict=True), strict=False):
                    column += cells
                losses += [float(row[6]) if row[6] else math.nan for row in chunk]
                pieces.append(numpy.array([row[end:stop] for row in chunk], numpy.float32))
    except FileNotFoundError:
        command = f"python -m trainer.evaluate {shlex.quote(str(path.parent))} --predictions"
        raise RunError(
            f"{visible(str(path))} is missing: the run has not ended yet, or is of an older version"
            f" ({visible(command)} writes it)."
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{visible(str(path))} cannot be read: {reason}.") from None
    found = numpy.concatenate([numpy.empty((0, len(classes)), numpy.float32), *pieces])
    ids, digests, parts, true, predicted = columns
    return Predictions(classes, ids, digests, parts, true, predicted, losses, found)
