"""Says which trials of a sweep are within noise of its best one, by their answers to val."""

from collections.abc import Sequence

from trainer.comparing.folds import Runs, in_one
from trainer.comparing.head_to_head import Measure, aligned, classes_of
from trainer.comparing.paired import CERTAINTY, SWAPS, Sides, difference
from trainer.comparing.predictions import Predictions


def by_seed(runs: Runs) -> list[Predictions]:
    """The val rows of each seed's folds, in_one: each image once for each seed."""
    seeds = sorted({seed for seed, _ in runs})
    return [
        in_one([table.of_part("val") for (of, _), table in sorted(runs.items()) if of == seed])
        for seed in seeds
    ]


def is_near(
    best: Sequence[Predictions],
    other: Sequence[Predictions],
    measure: Measure,
    others: int,
    has_several: bool,
) -> bool:
    """Whether a trial may be as good as the best; both have a table for each seed.

    Each of ``others`` trials is tested from one side at (1 - CERTAINTY) / others (Bonferroni). So
    the trial that is truly the best is the best one or near it with CERTAINTY, although the best
    one was chosen by the same images (Gupta, 1965, "On some multiple decision rules"). Raises
    NotPaired if the images are not the same.
    """
    same = aligned([*best, *other], "val")
    first, second = same[: len(best)], same[len(best) :]
    sides = Sides(
        [measure.take(table) for table in first],
        [measure.take(table) for table in second],
        classes_of(same[0], has_several),
    )
    # The least p that swaps can give must be below the limit.
    found = difference(sides, measure.metric, resamples=0, swaps=max(SWAPS, 10 * others))
    limit = 2 * (1 - CERTAINTY) / others  # of a two-sided p
    is_worse = (found.apart < 0) == measure.more_is_better and found.apart != 0
    return not (is_worse and found.p is not None and found.p <= limit)
