"""Evaluates a finished run again, on the images that its split.json names."""

import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch

from datasets import DataError, Dataset
from datasets.bands import notes_on_bits
from datasets.fixes import FIXES_NOTE
from datasets.images import notes_on
from datasets.words import counted
from trainer.build.model import build_loss, check_size
from trainer.build.teacher import first_names
from trainer.build.trained import load_with, tell_which
from trainer.config import Config, load_config
from trainer.input.data import check_shape, digest_of_split, load_subset
from trainer.input.loader import eval_loader
from trainer.loop.evaluate import evaluate, predict, what_may_help, without_answer
from trainer.process.errors import NoAnswer, RunError
from trainer.process.launch import is_first
from trainer.process.words import visible
from trainer.run.disk import MAX_SPLIT, read_json
from trainer.run.resume import MAY_DIFFER, refuse_changes, require_own_images


def evaluate_run(run: Path, config: Config, split: str) -> dict[str, Any]:
    """Loss and metrics of the best weights on a split.

    Raises DataError if images or classes changed, NoAnswer if a logit is NaN or infinite.
    """
    refuse_changes(load_config(run / "config.yaml"), config, MAY_DIFFER)
    require_own_images(run, config)
    saved = read_json(run / "split.json", MAX_SPLIT)
    if not isinstance(saved.get(split), dict) or not isinstance(saved.get("train"), dict):
        raise RunError(f"{run / 'split.json'} names no {split} split: the run folder is damaged.")
    require_unchanged(run, saved)
    trained = load_with(config, run)
    tell_which(trained)
    device, config = trained.device, trained.config
    dataset, subset = load_subset(config, saved[split], device, saved)
    tell_notes(run, config, dataset)
    if dataset.classes != trained.classes:
        raise DataError(
            f"{config.dataset.name} no longer has the classes of this run in its order: it had "
            f"{first_names(trained.classes)}; now there are {first_names(dataset.classes)}."
        )
    check_size(config, trained.model, check_shape(config, subset, "eval"))
    tta = config.evaluation.tta
    with closing(eval_loader(config, subset, device, trained.channels_last)) as loader:
        logits, labels = predict(trained.model, loader.epoch(), trained.precision, tta)
    if what := without_answer(logits, subset, split):
        raise NoAnswer(f"{run}: {what}. {what_may_help(config, trained.model)}")
    label_of = dict(zip(dataset.ids, dataset.labels, strict=True))
    train_labels = [label_of[name] for name in saved["train"] if name in label_of]
    loss_fn = build_loss(config, torch.tensor(train_labels), dataset.classes).to(device)
    return evaluate(config, logits, labels, loss_fn, trained.thresholds)


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
