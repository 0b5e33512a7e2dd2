"""Label sets for ``predict``: their threshold and their coverage by the run's predictions.csv."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.build.trained import TrainedModel
from trainer.comparing.predictions import PREDICTIONS, SEPARATOR, Predictions, read_predictions
from trainer.components.calibration import tempered
from trainer.components.label_sets import measure_sets, sets_of
from trainer.inference.prediction import Prediction
from trainer.insight.findings import lowest_in_words, sets_by_class, sets_in_words
from trainer.process.errors import RunError, UsageError
from trainer.run.best import state_of
from trainer.run.disk import read_json


class LabelSets(NamedTuple):
    """The probability from which on a class is in a set, and what is told of such sets."""

    threshold: float
    notes: list[str]


def label_sets_of(trained: TrainedModel, level: Fraction, tta: int | str | None) -> LabelSets:
    """Label sets that have the true class with a probability of at least ``level``.

    tta: None for the run's own, which alone is possible. Raises UsageError if there are too few val
    images or an image may have several labels, RunError if the run is not done or predictions.csv
    is not usable.
    """
    run, what = trained.run, f"--sets {float(level):g}"
    if trained.thresholds is not None:
        raise UsageError(f"{what}: an image of this run may have several labels; sets are for one.")
    if (state := state_of(run)[0]) != "done":
        raise RunError(f"{what} needs what the best weights answer on val: {run} is {state}.")
    had = read_json(run / "result.json").get("tta")
    asked = trained.config.evaluation.tta if tta is None else tta
    if (None if asked == "none" else asked) != had:
        raise UsageError(f"{what}: val was answered with tta {had or 'none'}; leave out --tta.")
    table = read_predictions(run / PREDICTIONS)
    if table.classes != trained.classes:
        raise RunError(f"{run / PREDICTIONS} has other classes than model.json.")
    (_, *val), (raw, *test) = (_part(trained, table.of_part(name)) for name in ("val", "test"))
    try:
        threshold, coverage = measure_sets((val[0], val[1]), (test[0], test[1]), raw, level)
    except ValueError as few:
        raise UsageError(f"{what}: {few}.") from None
    rows = sets_by_class(coverage, trained.classes)
    return LabelSets(threshold, [sets_in_words(level, coverage), lowest_in_words(rows)])


def _part(trained: TrainedModel, table: Predictions) -> tuple[Tensor, Tensor, Tensor]:
    """Raw and calibrated probabilities (N, K), and labels (N,), of a part's images."""
    numbers = {name: label for label, name in enumerate(table.classes)}
    try:
        labels = torch.tensor([numbers[name] for name in table.true], dtype=torch.int64)
    except KeyError as error:
        raise RunError(f"{trained.run / PREDICTIONS}: {error} is no class of the run.") from None
    raw = torch.from_numpy(table.probabilities)
    return raw, tempered(raw, trained.temperature), labels


def with_sets(
    predictions: Iterable[Prediction], threshold: float, classes: Sequence[str]
) -> Iterator[Prediction]:
    """Yield each prediction with its label set; in a table, the set is a further column."""
    for one in predictions:
        if one.probabilities is None:
            yield one
            continue
        chances, predicted = one.probabilities[None], torch.tensor(one.predicted[:1])
        found = sets_of(chances, threshold, predicted)[0]
        order = one.probabilities.argsort(descending=True, stable=True).tolist()
        label_set = tuple(label for label in order if found[label])
        named = SEPARATOR.join(classes[label] for label in sorted(label_set))
        yield replace(one, label_set=label_set, more=(*one.more, named))
