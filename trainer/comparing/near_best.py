"""Says which trials of a sweep are within noise of its best one, by their answers to val."""

import math
import statistics
from collections.abc import Sequence

from trainer.comparing.folds import Runs, in_one
from trainer.comparing.head_to_head import Measure, aligned, classes_of
from trainer.comparing.paired import CERTAINTY, SWAPS, Apart, Sides, beyond, difference
from trainer.comparing.predictions import Predictions


def is_near(best: Runs, other: Runs, measure: Measure, others: int, has_several: bool) -> bool:
    """Whether a trial may be as good as the best, by the runs of both.

    Each of ``others`` trials is tested from one side at (1 - CERTAINTY) / others (Bonferroni). So
    the trial that is truly the best is the best one or near it with CERTAINTY, although the best
    one was chosen by the same images (Gupta, 1965, "On some multiple decision rules"). Raises
    NotPaired if the images are not the same.
    """
    # The least p that swaps can give must be below the limit.
    swaps, limit = max(SWAPS, 10 * others), 2 * (1 - CERTAINTY) / others  # of a two-sided p
    found = on_val(by_seed(best), by_seed(other), measure, swaps, has_several)
    is_worse = (found.apart < 0) == measure.more_is_better and found.apart != 0
    p = found.p or 0.0
    if len({seed for seed, _ in best}) == 1 and len(best) > 1:
        p = max(p, over_folds(best, other, measure, has_several))
    return not (is_worse and p <= limit)


def by_seed(runs: Runs) -> list[Predictions]:
    """The val rows of each seed's folds, in one: each image once for each seed."""
    seeds = sorted({seed for seed, _ in runs})
    return [
        in_one([table.of_part("val") for (of, _), table in sorted(runs.items()) if of == seed])
        for seed in seeds
    ]


def on_val(
    best: Sequence[Predictions],
    other: Sequence[Predictions],
    measure: Measure,
    swaps: int,
    has_several: bool,
) -> Apart:
    """The difference of two trials on the same val images; each has a table for each seed."""
    same = aligned([*best, *other], "val")
    first, second = (
        [measure.take(table) for table in side] for side in (same[: len(best)], same[len(best) :])
    )
    sides = Sides(first, second, classes_of(same[0], has_several))
    return difference(sides, measure.metric, resamples=0, swaps=swaps)


def over_folds(best: Runs, other: Runs, measure: Measure, has_several: bool) -> float:
    """Two-sided p of the paired t-test on the differences in each fold: models differ by chance."""
    apart = [
        on_val(
            [best[run].of_part("val")], [other[run].of_part("val")], measure, 0, has_several
        ).apart
        for run in best
    ]
    deviation = statistics.stdev(apart) / math.sqrt(len(apart))
    if deviation == 0:
        return float(statistics.fmean(apart) == 0)
    return beyond(abs(statistics.fmean(apart)) / deviation, len(apart) - 1)
