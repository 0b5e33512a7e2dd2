"""Evaluates a finished run again, on the images that its split.json names."""

import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datasets import DataError, Dataset
from datasets.bands import notes_on_bits
from datasets.fixes import FIXES_NOTE
from datasets.images import notes_on
from datasets.words import counted
from trainer.build.model import build_loss, check_size
from trainer.build.teacher import first_names
from trainer.build.trained import TrainedModel, load_with, tell_which
from trainer.components.decisions import Answers
from trainer.config import Config, load_config
from trainer.input.data import check_shape, digest_of_split, load_subset
from trainer.input.loader import eval_loader
from trainer.input.subset import Subset
from trainer.loop.answers import Part, part_of, write_predictions
from trainer.loop.evaluate import (
    answers_of,
    each_loss,
    evaluate,
    predict,
    what_may_help,
    without_answer,
)
from trainer.process.errors import NoAnswer, RunError, UsageError
from trainer.process.launch import is_first
from trainer.process.words import visible
from trainer.run.disk import MAX_SPLIT, read_json, sha256_of
from trainer.run.resume import MAY_DIFFER, refuse_changes, require_own_images


class SubsetResult(NamedTuple):
    """What ``evaluate`` finds for some images, and what it found that from.

    losses (N,), logits (N, K). calibrated: the answers with the run's temperature; None if it has
    none.
    """

    values: dict[str, Any]
    answers: Answers
    losses: Tensor | None
    logits: Tensor
    calibrated: Answers | None = None


def evaluate_run(run: Path, config: Config, split: str) -> dict[str, Any]:
    """Loss and metrics of the best weights on a split.

    Raises DataError if images or classes changed, NoAnswer if a logit is NaN or infinite.
    """
    return evaluate_split(run, config, split)[0]


def evaluate_split(run: Path, config: Config, split: str) -> tuple[dict[str, Any], Part]:
    """``evaluate_run``, and what is answered for each image."""
    refuse_changes(load_config(run / "config.yaml"), config, MAY_DIFFER)
    require_own_images(run, config)
    saved = read_json(run / "split.json", MAX_SPLIT)
    if not isinstance(saved.get(split), dict) or not isinstance(saved.get("train"), dict):
        raise RunError(f"{run / 'split.json'} names no {split} split: the run folder is damaged.")
    require_unchanged(run, saved)
    if not saved[split]:
        raise RunError(f"{run}: no image is {split} of all its members, so none is measured.")
    trained = load_with(config, run)
    tell_which(trained)
    subset, loss_fn = open_part(trained, saved, split)
    tell_notes(run, trained.config, subset.dataset)
    found = measure_subset(trained, trained.config, subset, loss_fn, split)
    assert found.losses is not None  # there is a loss function
    return found.values, part_of(subset, split, saved[split], found.answers, found.losses)


def open_part(trained: TrainedModel, saved: dict[str, Any], part: str) -> tuple[Subset, nn.Module]:
    """The images of a part of ``saved``, the content of split.json, and the loss for them.

    Raises DataError if images or classes changed.
    """
    config = trained.config
    dataset, subset = load_subset(config, saved[part], trained.device, saved)
    if dataset.classes != trained.classes:
        raise DataError(
            f"{config.dataset.name} no longer has the classes of this run in its order: it had "
            f"{first_names(trained.classes)}; now there are {first_names(dataset.classes)}."
        )
    label_of = dict(zip(dataset.ids, dataset.labels, strict=True))
    train_labels = [label_of[name] for name in saved["train"] if name in label_of]
    return subset, build_loss(config, torch.tensor(train_labels), dataset.classes)


def measure_subset(
    trained: TrainedModel, config: Config, subset: Subset, loss_fn: nn.Module | None, part: str
) -> SubsetResult:
    """Predict all images of ``subset``, and measure; without ``loss_fn`` there is no loss.

    Raises NoAnswer, which names ``part``, if a logit is NaN or infinite.
    """
    check_size(config, trained.model, check_shape(config, subset, "eval"))
    tta = config.evaluation.tta
    with closing(eval_loader(config, subset, trained.device, trained.channels_last)) as loader:
        logits, labels = predict(trained.model, loader.epoch(), trained.precision, tta)
    if what := without_answer(logits, subset, part):
        raise NoAnswer(f"{trained.run}: {what}. {what_may_help(config, trained.model)}")
    losses = None
    if loss_fn is not None:
        losses = each_loss(loss_fn.to(trained.device), logits, labels)
    values = evaluate(config, logits, labels, loss_fn, trained.thresholds)
    answers, after = answers_of(config, logits, labels, trained.thresholds), None
    if trained.temperature is not None:
        after = answers._replace(probabilities=trained.chances(logits, trained.temperature))
    return SubsetResult(values, answers, losses, logits, after)


def write_new(path: Path, classes: Sequence[str], parts: Sequence[Part]) -> bool:
    """Write the table of the images of all parts; return whether it was not there already.

    Raises UsageError, and leaves it, if ``path`` has another content.
    """
    if not path.exists():
        write_predictions(path, classes, parts)
        return True
    beside = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        write_predictions(beside, classes, parts)
        if sha256_of(beside) == sha256_of(path):
            return False
    finally:
        beside.unlink(missing_ok=True)
    raise UsageError(
        f"{path} is there, with another content: name another file, --predictions FILE, or move it."
    )


def tell_notes(run: Path, config: Config, dataset: Dataset) -> None:
    """Print on stderr what was corrected, left out or converted, as training does."""
    remarks = getattr(dataset, "remarks", b"")
    notes = dataset.note.splitlines() + notes_on(remarks) + notes_on_bits(remarks)
    with suppress(RunError, KeyError, TypeError):
        of_run = read_json(run / "result.json")["dataset"]
        if file := config.dataset.trainer_arguments.get("fixes"):
            told = "\n".join(of_run["notes"]).splitlines()
            counts = [line.rpartition(": ")[2] for line in told if line.startswith(FIXES_NOTE)]
            notes += [f"{FIXES_NOTE}{file}: {one}" for one in counts]  # the file may have moved
        if unread := len(of_run["left_out"]):
            notes.append(f"{counted(unread, 'image')} that the run could not read: in no split")
    for note in notes if is_first() else ():
        print(f"note    {visible(note)}", file=sys.stderr)


def require_unchanged(run: Path, split: dict[str, Any]) -> None:
    """Raise RunError if split.json has changed since the run wrote it."""
    try:
        digest = digest_of_split(split)
    except TypeError:
        digest = ""
    if read_json(run / "result.json").get("split") != digest:
        raise RunError(f"{run / 'split.json'} is not the split that result.json names.")
