"""Finds the runs of a sweep over folds, whose models judge what they did not see; no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DataError
from datasets.split import PARTS, is_digest
from trainer.comparing.listing import MAX_GROWING, read_object
from trainer.config import load_config
from trainer.config.settings import SplitSettings
from trainer.process.errors import RunError, UsageError


@dataclass(frozen=True)
class FoldRuns:
    """The runs of a sweep's trial, one for each fold, of the first seed.

    split: split.json of the first one. base_split: the settings of the experiment, without the
    sweep's folds. held_out: the part that a fold's model did not see, and that no other fold holds:
    "test", or "val" where the data has a test set. fold_of: the fold that holds a sample out, by
    its id. digest_of: SHA-256 by id, of all samples. several: an image may have several labels.
    """

    sweep: Path
    trial: int
    runs: dict[int, Path]
    base_split: SplitSettings
    split: dict[str, Any]
    held_out: str
    fold_of: dict[str, int]
    digest_of: dict[str, str]
    classes: tuple[str, ...]
    several: bool


def find_fold_runs(text: str, trial: int | None) -> FoldRuns:
    """The runs of a sweep's trial, by default of its best one.

    Raises UsageError for what is no sweep over folds, RunError if one of its runs is missing, not
    done or damaged, DataError if the split goes by names.
    """
    folder = Path(text)
    if not (folder / "plan.json").is_file():
        raise UsageError(
            f"{text} is no sweep's folder. Labels are judged by models that did not see them: make "
            "some by python -m trainer.sweep --config FILE, with 'folds: 5' in its section sweep."
        )
    number, runs = _runs_of_folds(folder, trial)
    splits = {fold: _read(run / "split.json") for fold, run in runs.items()}
    first = min(runs)
    card = _read(runs[first] / "model.json")
    try:
        tests = [{*split["test"]} for split in splits.values()]
        held_out = "val" if len(tests) > 1 and tests[0] == tests[1] else "test"
        fold_of = {name: fold for fold, split in splits.items() for name in split[held_out]}
        digest_of = {k: v for part in PARTS for k, v in splits[first][part].items()}
        classes, several = tuple(card["classes"]), card.get("thresholds") is not None
        by_name = not all(map(is_digest, digest_of.values()))
    except (LookupError, TypeError, AttributeError):
        raise RunError(f"a run of {text} is damaged: its split.json or model.json.") from None
    if by_name:
        raise DataError(f"{text} is split by name (split.by), and fixes need the files' content.")
    base = load_config(folder / "base.yaml").split
    held = (held_out, fold_of, digest_of)
    return FoldRuns(folder, number, runs, base, splits[first], *held, classes, several)


def _runs_of_folds(folder: Path, trial: int | None) -> tuple[int, dict[int, Path]]:
    """The number of a trial, and its runs of the first seed by their folds, in order."""
    number, ends = _ends_of(folder, trial)
    runs: dict[int, Path] = {}
    for end in ends:
        if end["fold"] is None:
            raise UsageError(
                f"{folder} is a sweep without folds, so each model has seen most of the labels. "
                "Write 'folds: 5' in its section sweep, under another name."
            )
        run = folder / str(end["run"])
        if end["status"] != "done" or not run.is_dir():
            what = "lies elsewhere" if end["status"] == "done" else f"is {end['status']}"
            raise RunError(f"{run} {what}, and every fold is needed; run the sweep again.")
        if end["seed"] == ends[0]["seed"]:
            runs[end["fold"]] = run
    return number, dict(sorted(runs.items()))


def _ends_of(folder: Path, wanted: int | None) -> tuple[int, list[dict[str, Any]]]:
    """The number of a trial, and its runs as sweep.json has them."""
    results = _read(folder / "sweep.json")
    try:
        number = results["best"] if wanted is None else wanted
        if number is None:
            raise RunError(f"no trial of {folder} is done yet.")
        found = [trial["runs"] for trial in results["trials"] if trial["trial"] == number]
        if not found or not found[0]:
            raise UsageError(f"--trial {number}: {folder} has no such trial with runs.")
        ends = [{key: end[key] for key in ("seed", "fold", "status", "run")} for end in found[0]]
    except (LookupError, TypeError):
        raise RunError(f"{folder / 'sweep.json'} is damaged; run the sweep again.") from None
    return int(number), ends


def _read(path: Path) -> dict[str, Any]:
    content, fault = read_object(path, MAX_GROWING)
    if fault:
        raise RunError(f"{path.parent}: {fault}.")
    return content
