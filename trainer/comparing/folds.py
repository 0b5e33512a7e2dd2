"""Joins the tables of folds and seeds: each image once, by models that did not train on it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trainer.comparing.head_to_head import NotPaired
from trainer.comparing.predictions import SEPARATOR, Answer, Predictions

Runs = Mapping[tuple[int, int], Predictions]  # the tables of a trial's runs, by seed and fold
Thresholds = Sequence[float] | None  # of several labels


def in_one(tables: Sequence[Predictions]) -> Predictions:
    """The rows of all tables in one. Raises NotPaired if their classes differ."""
    import numpy

    if len({table.classes for table in tables}) > 1:
        raise NotPaired("their classes differ")
    columns: dict[str, Any] = {
        name: [cell for table in tables for cell in getattr(table, name)]
        for name in ("ids", "digests", "parts", "true", "predicted", "losses")
    }
    chances = numpy.concatenate([table.probabilities for table in tables])
    return replace(tables[0], **columns, probabilities=chances)


def out_of_fold(runs: Runs, thresholds: Mapping[tuple[int, int], Thresholds]) -> Predictions:
    """The rows of each fold that its models did not train on, the mean over the seeds.

    They are the rows of test; or those of val, if all folds have the same (official) test images,
    which are left out. Raises NotPaired if an image would be there twice or lack a seed.
    """
    seeds = sorted({seed for seed, _ in runs})
    folds = sorted({fold for _, fold in runs})
    tests = [frozenset(runs[seeds[0], fold].of_part("test").ids) for fold in folds]
    part = "val" if len(folds) > 1 and len(set(tests)) == 1 else "test"
    tables = [
        averaged(
            [runs[seed, fold].of_part(part) for seed in seeds],
            [thresholds[seed, fold] for seed in seeds],
        )
        for fold in folds
    ]
    table = in_one(tables)
    if twice := len(table) - len({*table.ids}):
        raise NotPaired(f"{twice:,} images would be in it twice")
    return table


def averaged(tables: Sequence[Predictions], thresholds: Sequence[Thresholds]) -> Predictions:
    """The mean of several tables' probabilities and losses, and what is predicted from it.

    Of several labels, those from the mean of the thresholds on.
    """
    import numpy

    first = tables[0]
    if len(tables) == 1:
        return first
    if any(
        (table.ids, table.true, table.classes) != (first.ids, first.true, first.classes)
        for table in tables
    ):
        raise NotPaired("their images, labels or classes differ")
    exact = [table.probabilities.astype(numpy.float64) for table in tables]
    chances = numpy.mean(exact, axis=0).astype(numpy.float32)
    limits = [each for each in thresholds if each is not None]
    if limits:
        chosen = chances >= numpy.mean(limits, axis=0).astype(numpy.float32)
        predicted = [
            SEPARATOR.join(first.classes[k] for k in row.nonzero()[0].tolist()) for row in chosen
        ]
    else:
        known = ~numpy.isnan(chances).any(axis=1)
        places = numpy.where(known, chances.argmax(axis=1), -1).tolist()
        predicted = ["" if place < 0 else first.classes[place] for place in places]
    losses = numpy.mean([table.losses for table in tables], axis=0).tolist()
    return replace(first, predicted=predicted, losses=losses, probabilities=chances)


def answers_in(table: Predictions, has_several: bool) -> Iterator[Answer]:
    """The rows of a table, to be written."""
    number = {name: k for k, name in enumerate(table.classes)}
    for row, chances in enumerate(table.probabilities.tolist()):
        predicted = table.predicted[row]
        chance = None if has_several or predicted not in number else chances[number[predicted]]
        loss = table.losses[row]
        yield Answer(
            table.ids[row],
            table.digests[row],
            table.parts[row],
            table.true[row],
            predicted,
            chance,
            loss if loss == loss else None,
            chances,
        )
