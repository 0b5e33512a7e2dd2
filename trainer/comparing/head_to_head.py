"""Pairs the answers of two sides, image by image, and says whether one is better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.comparing import comparison
from trainer.comparing.comparability import labels, losses_of
from trainer.comparing.compared import Compared, has_several
from trainer.comparing.listing import runs_below, short, strict_json
from trainer.comparing.paired import (
    CERTAINTY,
    RESAMPLES,
    SWAPS,
    Apart,
    Metric,
    Sides,
    difference,
)
from trainer.comparing.predictions import PREDICTIONS, SEPARATOR, Predictions, read_predictions
from trainer.components import METRICS, OF_EACH_CLASS, is_higher_better
from trainer.components.own import is_trusted
from trainer.drawing.columns import hang, lay_out
from trainer.process.errors import ConfigError, RunError
from trainer.process.words import visible

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer.config.settings import Component

LISTED_IDS = 5  # ids of images that only one side gets right, in a line
CELLS = 2**26  # probabilities that the resamples of a metric may read, about; seconds of work


class NotPaired(Exception):
    """The reason why two sides cannot be compared image by image."""


@dataclass(frozen=True)
class Measure:
    """A metric of a table: what it takes of each image, and how it makes one number of that."""

    take: Callable[[Predictions], "NDArray[Any]"]
    metric: Metric
    more_is_better: bool = True


@dataclass(frozen=True)
class Paired:
    """Two sides' answers to the same images, in the same order; tables of one model or of several.

    only: the rows that every model of one side gets right and none of the other, for each side.
    ``by`` is the metric that decides. repeated: images left out, as others have their content.
    """

    names: tuple[str, str]
    tables: tuple[list[Predictions], list[Predictions]]
    only: tuple[list[int], list[int]]
    alike: tuple[int, int]  # images that all models get right, and that none does
    differences: dict[str, Apart]
    by: str
    repeated: int

    @property
    def images(self) -> int:
        """How many images both sides answered."""
        return len(self.tables[0][0])

    @property
    def better(self) -> str | None:
        """The name of the side that is better; None without evidence."""
        one = self.differences[self.by]
        if one.p is None or one.p > 1 - CERTAINTY or not one.apart:
            return None
        return self.names[(one.apart > 0) == is_higher_better(self.by)]


def sides_of(texts: Sequence[str], runs: Sequence[Compared]) -> list[list[Compared]]:
    """The two sides that a command line names: two runs, or two folders. [] if there are others."""
    if len(runs) == 2:
        return [[run] for run in runs]
    if len(texts) != 2:
        return []
    first = {folder.resolve() for folder in runs_below(Path(texts[0]))}
    sides: list[list[Compared]] = [[], []]
    for run in runs:
        sides[run.found.folder.resolve() not in first].append(run)
    return sides if all(sides) else []


def pair(sides: Sequence[Sequence[Compared]], part: str = "test") -> Paired:
    """Compare two sides on the images of a part. Raises NotPaired with the reason if it cannot."""
    runs = [run for side in sides for run in side]
    require_comparable(sides)
    try:
        tables = [read_predictions(run.found.folder / PREDICTIONS).of_part(part) for run in runs]
    except RunError as error:
        raise NotPaired(str(error).rstrip(".")) from None
    same = aligned(tables, part)
    first, second = same[: len(sides[0])], same[len(sides[0]) :]
    measures = measures_of(runs)
    monitors = {str(run.found.monitor).removeprefix("val/") for run in runs}
    by = monitors.pop() if len(monitors) == 1 else "accuracy"
    by = by if by in measures else "accuracy"
    differences = {
        name: compared_by(
            measure, first, second, classes_of(same[0], has_several(runs[0].answers)), name == by
        )
        for name, measure in measures.items()
    }
    every, none = [], []  # which images each side's models all get right, or all wrong
    for side in (first, second):
        right = [is_right(table) for table in side]
        every.append(all_of(right))
        none.append(all_of([~each for each in right]))
    only = every[0] & none[1], every[1] & none[0]
    return Paired(
        (side_name(sides[0]), side_name(sides[1])),
        (first, second),
        (only[0].nonzero()[0].tolist(), only[1].nonzero()[0].tolist()),
        (int((every[0] & every[1]).sum()), int((none[0] & none[1]).sum())),
        differences,
        by,
        len(tables[0]) - len(same[0]),
    )


def all_of(flags: Sequence["NDArray[Any]"]) -> "NDArray[Any]":
    """Where all of several arrays (N,) bool are true."""
    import numpy

    found: NDArray[Any] = numpy.logical_and.reduce(flags)
    return found


def side_name(side: Sequence[Compared]) -> str:
    """A side's label: ``A``, or ``A-C`` for three runs."""
    return side[0].label + (f"-{side[-1].label}" if len(side) > 1 else "")


def require_comparable(sides: Sequence[Sequence[Compared]]) -> None:
    """Raise NotPaired if the sides' answers do not mean the same, or some are not there."""
    runs = [run for side in sides for run in side]
    for side in sides:
        if len(side) > 1 and not comparison.over_seeds(side):
            reason = f"{labels(side)} differ in more than the seed, or are not done"
            raise NotPaired(f"{reason}; name two runs, or two folders that differ so within none")
    if (len(sides[0]) > 1) != (len(sides[1]) > 1):
        raise NotPaired("one side is a single run; name two runs, or two folders of several seeds")
    if lacking := [run for run in runs if not (run.found.folder / PREDICTIONS).is_file()]:
        command = f"python -m trainer.evaluate {lacking[0].found.folder} --predictions"
        raise NotPaired(f"no {PREDICTIONS} in {labels(lacking)}; to make it: {command}")
    if len({run.answers for run in runs}) > 1:
        raise NotPaired("their classes differ")
    if len({str(run.found.result.get("fixes")) for run in runs}) > 1:
        raise NotPaired("their fixes of labels differ")


def aligned(tables: Sequence[Predictions], part: str) -> list[Predictions]:
    """The tables in the first one's order, each content once. Raises NotPaired if they differ."""
    if len({table.classes for table in tables}) > 1:
        raise NotPaired("their classes differ")
    rows = [first_rows(table.keys) for table in tables]
    for theirs in rows[1:]:
        if theirs.keys() != rows[0].keys():
            sizes = dict.fromkeys((len(rows[0]), len(theirs)))
            raise NotPaired(
                f"their splits differ: they share {len(rows[0].keys() & theirs.keys()):,} of their "
                f"{' and '.join(f'{size:,}' for size in sizes)} {part} images"
            )
    if not rows[0]:
        raise NotPaired(f"{PREDICTIONS} has no {part} images")
    same = [
        table.rows([found[key] for key in rows[0]])
        for table, found in zip(tables, rows, strict=True)
    ]
    for table in same[1:]:
        if other := sum(a != b for a, b in zip(same[0].true, table.true, strict=True)):
            raise NotPaired(f"{other:,} of their {part} images have another label")
    return same


def first_rows(keys: Sequence[str]) -> dict[str, int]:
    """The first row of each key."""
    found: dict[str, int] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, row)
    return found


# What is measured of a table


def is_right(table: Predictions) -> "NDArray[Any]":
    """Which images are answered right, all labels if several: (N,) bool."""
    import numpy

    return numpy.array([a == b for a, b in zip(table.true, table.predicted, strict=True)], bool)


def losses_in(table: Predictions) -> "NDArray[Any]":
    """Each image's loss: (N,) float64."""
    import numpy

    return numpy.array(table.losses, numpy.float64)


def classes_of(table: Predictions, has_several: bool) -> "NDArray[Any]":
    """The true classes: (N,) int64, or (N, K) float32 of several labels."""
    import numpy

    if has_several:
        return flags_of(table.true, table.classes)
    number = {name: k for k, name in enumerate(table.classes)}
    try:
        return numpy.array([number[name] for name in table.true], numpy.int64)
    except KeyError as error:
        raise NotPaired(f"{PREDICTIONS} names no class for an image: {error}") from None


def flags_of(cells: Sequence[str], classes: Sequence[str]) -> "NDArray[Any]":
    """Cells such as "cat;dog" as (N, K) float32 of 0 and 1."""
    import numpy

    flags = numpy.zeros((len(cells), len(classes)), numpy.float32)
    number = {name: k for k, name in enumerate(classes)}
    for row, cell in enumerate(cells):
        for name in filter(None, cell.split(SEPARATOR)):
            if name not in number:
                raise NotPaired(f"{PREDICTIONS} names no class for an image: {name!r}")
            flags[row, number[name]] = 1
    return flags


def mean_of(values: "NDArray[Any]", _: "NDArray[Any]") -> float:
    """The mean over the images."""
    return float(values.mean())


ACCURACY, LOSS = Measure(is_right, mean_of), Measure(losses_in, mean_of, more_is_better=False)


def measure_of(component: "Component", has_several: bool) -> Measure:
    """A metric of the YAML. One that knows thresholds takes what was predicted with the run's."""
    from trainer.config.construct import build, factory_of
    from trainer.config.signatures import parameters_of

    if component.name == "accuracy":
        return ACCURACY

    def metric(values: "NDArray[Any]", labels: "NDArray[Any]") -> float:
        import torch

        given = {"probabilities": torch.from_numpy(values), "labels": torch.from_numpy(labels)}
        return float(build(METRICS, "metrics", component, **given))

    decides = "thresholds" in parameters_of(factory_of(METRICS, component))
    more = is_higher_better(component.name)
    if has_several and decides:
        return Measure(lambda table: flags_of(table.predicted, table.classes), metric, more)
    return Measure(lambda table: table.probabilities, metric, more)


def measures_of(runs: Sequence[Compared]) -> dict[str, Measure]:
    """What is measured of all runs: accuracy, their common metrics, and their loss if it is one."""
    from trainer.config import load_config

    found = {"accuracy": ACCURACY}
    try:
        configs = [load_config(run.found.folder / "config.yaml") for run in runs]
    except ConfigError:  # such as one of another version
        configs = []
    listed, files = [one.metrics for one in configs], {one.own.sha256 for one in configs}
    for component in listed[0] if listed else ():
        # A metric of a file that came with the run is code, which runs only if it is trusted.
        if component.own and (len(files) > 1 or not is_trusted(component.own.sha256)):
            continue
        is_one = component.name not in OF_EACH_CLASS
        if is_one and all(component in others for others in listed):
            found[component.name] = measure_of(component, has_several(runs[0].answers))
    return found if len(losses_of(runs)) > 1 else found | {"loss": LOSS}


def compared_by(
    measure: Measure,
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    labels: "NDArray[Any]",
    decides: bool,
) -> Apart:
    """The difference of two sides of aligned tables by one measure; p where it decides."""
    of_first, of_second = ([measure.take(table) for table in side] for side in (first, second))
    cells = len(labels) * len(first[0].classes) if of_first[0].ndim == 2 else 1
    resamples = min(RESAMPLES, max(CELLS // cells, RESAMPLES // 10))
    sides = Sides(of_first, of_second, labels)
    return difference(sides, measure.metric, resamples, SWAPS if decides else 0)


# What is said


def paired_lines(paired: Paired, width: int) -> list[str]:
    """The section of a comparison, as lines of at most ``width``."""
    a, b = paired.names
    copies = f"; {paired.repeated:,} copies of others are left out" if paired.repeated else ""
    lines = [f"paired on the same {paired.images:,} test images{copies}"]
    for name, rows in zip(paired.names, paired.only, strict=True):
        ids = [visible(paired.tables[0][0].ids[row]) for row in rows[:LISTED_IDS]]
        more = ", ..." if len(rows) > LISTED_IDS else ""
        lines += hang(
            f"only {name} right  {len(rows):,}  {', '.join(ids)}{more}".rstrip(), 2, width
        )
    lines += [f"both right  {paired.alike[0]:,}, none right  {paired.alike[1]:,}"]
    table = [["", a, b, f"{b} less {a}", f"{CERTAINTY:.0%} interval"]]
    for name, one in paired.differences.items():
        values = [short(one.first), short(one.second), f"{one.apart:+.4f}"]
        table.append([f"test/{name}", *values, f"{one.low:+.4f}..{one.high:+.4f}"])
    return [*lines, *lay_out(table, width), *hang(verdict(paired), 0, width)]


def verdict(paired: Paired) -> str:
    """Which side is better, or that there is no evidence, in words."""
    (a, b), one, better = paired.names, paired.differences[paired.by], paired.better
    claim = f"{better} is better" if better else f"no evidence that {b} is better, nor that {a} is"
    counts = f"{len(paired.only[1]):,} images only {b} gets right, {len(paired.only[0]):,} only {a}"
    p = "" if one.p is None else f", p = {one.p:.2g}"
    apart = f"{one.apart:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"
    said = f"{claim}: {paired.by} of {b} less that of {a} {apart}{p}; {counts}"
    if len(paired.tables[0]) > 1:
        return said
    return f"{said}. This is about two models: for settings, name two folders of several seeds"


def paired_json(paired: Paired) -> dict[str, Any]:
    """The section as plain values."""
    tables = zip(paired.names, paired.only, strict=True)
    content: dict[str, Any] = strict_json(
        {
            "images": paired.images,
            "repeated": paired.repeated,
            "only": {name: [paired.tables[0][0].ids[i] for i in rows] for name, rows in tables},
            "both_right": paired.alike[0],
            "none_right": paired.alike[1],
            "differences": {
                name: {
                    paired.names[0]: one.first,
                    paired.names[1]: one.second,
                    "difference": one.apart,
                    "low": one.low,
                    "high": one.high,
                    "p": one.p,
                }
                for name, one in paired.differences.items()
            },
            "by": paired.by,
            "better": paired.better,
            "verdict": verdict(paired),
        }
    )
    return content
