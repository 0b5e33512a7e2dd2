"""A run that began with another run's weights: both on the same images; imports no torch."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.split import is_digest
from datasets.words import counted
from trainer.comparing.listing import MAX_GROWING, read_object
from trainer.comparing.predictions import (
    PREDICTIONS,
    SEPARATOR,
    Answer,
    Predictions,
    prediction_lines,
    read_predictions,
)
from trainer.process.errors import RunError
from trainer.process.words import shortened

BEFORE = "before.csv"  # of a run's folder: what the old run answered for images of this run's test


def lines_before(old: Path, test: Mapping[str, str]) -> list[str]:
    """The lines of before.csv: what the run ``old`` answered for its test images that are in test.

    test: the part of this run's split.json, {id: SHA-256}. Raises RunError with the reason if there
    is no such answer.
    """
    result, fault = read_object(old / "result.json")
    if fault or result.get("status") != "done":
        raise RunError(f"{old} has not ended, so its {PREDICTIONS} is not that of these weights")
    try:
        found = read_predictions(old / PREDICTIONS).of_part("test")
    except RunError as error:
        raise RunError(str(error).rstrip(".")) from None
    here = {_key(name, content) for name, content in test.items()}
    shared = found.rows([row for row, key in enumerate(found.keys) if key in here])
    if not len(shared):
        raise RunError(f"no image of this run's test was in the test of {old}")
    return list(prediction_lines(shared.classes, _as_answers(shared)))


def _as_answers(found: Predictions) -> list[Answer]:
    columns = (found.ids, found.digests, found.parts, found.true, found.predicted)
    rows = zip(zip(*columns, strict=True), found.probabilities.tolist(), strict=True)
    return [Answer(*texts, None, None, chances) for texts, chances in rows]


def note_on_trained(old: Path, test: Mapping[str, str]) -> str:
    """A sentence if ``old`` was trained on images that this run tests on; else empty."""
    split, _ = read_object(old / "split.json", MAX_GROWING)
    seen = {_key(name, text) for name, text in (split.get("train") or {}).items()}
    if not (count := sum(_key(name, text) in seen for name, text in test.items())):
        return ""
    return (
        f"{counted(count, 'test image')} of {len(test):,} were training images of {old}: the test "
        "says too much. The same split.seed and split.ratios as there keep images in their part"
    )


def note_on_seen(runs: Iterable[Path], part: str) -> str:
    """A sentence if the weights that runs began with were trained on images of their ``part``.

    runs: of a trial, one or more for each fold. Empty if they were not, or began with no run's.
    """
    held: set[str] = set()
    seen: set[str] = set()
    named: dict[str, bool] = {}  # the runs they began with: whether its split is there
    for run in runs:
        split, _ = read_object(run / "split.json", MAX_GROWING)
        mine = {_key(name, text) for name, text in (split.get(part) or {}).items()}
        held |= mine
        origin, _ = read_object(run / "result.json", MAX_GROWING)
        if old := (origin.get("weights") or {}).get("run"):
            theirs, _ = read_object(Path(old) / "split.json", MAX_GROWING)
            seen |= mine & {_key(name, text) for name, text in (theirs.get("train") or {}).items()}
            named[old] = "train" in theirs
    gone = [old for old, is_there in named.items() if not is_there]
    began = "whose weights these models began with (model.weights)"
    if seen:
        told = f"{len(seen):,} of {counted(len(held), 'image')} trained {', '.join(named)}, {began}"
        return f"{told}: they have seen these, and agree with their labels too easily"
    if gone:
        return f"whether the images trained {', '.join(gone)}, {began}, is not known: it is gone"
    return ""


def grown(run: Path, classes: Mapping[str, Sequence[str]], several: bool) -> dict[str, Any]:
    """Old and new classes of a run apart, for result.json, by its before.csv and predictions.csv.

    classes: those that the weights knew, new and gone ones. several: an image may have several
    labels; it counts as new if any is. "old" and "new" have images and accuracy ("after"). "old"
    counts images that both runs tested on, with the accuracy "before", how many are right only
    since ("won") and no longer ("lost"), and how many have another label than then ("relabelled").
    The label of now counts for both. Raises RunError with the reason if a table is missing.
    """
    if not (run / BEFORE).is_file():
        raise RunError(f"{BEFORE} was removed from {run}")
    then, now = read_predictions(run / BEFORE), read_predictions(run / PREDICTIONS).of_part("test")
    new, there = {*classes["new"]}, {key: row for row, key in enumerate(then.keys)}
    pairs, of_new = list[tuple[bool, bool]](), list[bool]()
    untested = relabelled = 0
    for key, true, predicted in zip(now.keys, now.true, now.predicted, strict=True):
        right = true == predicted
        if new & {*(true.split(SEPARATOR) if several else [true])}:
            of_new.append(right)
        elif key not in there:
            untested += 1
        else:
            row, label = there[key], _composed(true)
            pairs.append((_composed(then.predicted[row]) == label, right))
            relabelled += _composed(then.true[row]) != label
    old = {
        "images": len(pairs),
        "before": _mean([before for before, _ in pairs]),
        "after": _mean([after for _, after in pairs]),
        "won": sum(after > before for before, after in pairs),
        "lost": sum(before > after for before, after in pairs),
        "untested": untested,
        "relabelled": relabelled,
    }
    return {"old": old, "new": {"images": len(of_new), "after": _mean(of_new)}}


def about_grown(found: Mapping[str, Any], origin: Mapping[str, Any]) -> list[str]:
    """What ``grown`` found, or the reason why nothing, as sentences for a report.

    origin: result.json's "weights".
    """
    if "run" not in origin:
        return []
    classes, lines = origin["classes"], list[str]()
    named = {key: shortened(", ".join(classes[key]), 200) for key in ("new", "gone")}
    if old := found.get("old"):
        lines.append("old classes: no image that both runs tested")
        if old["images"]:
            lines[-1] = (
                f"old classes: before {old['before']:.4f}, after {old['after']:.4f} on "
                f"{counted(old['images'], 'image')} that both runs tested"
                f" ({old['won']:,} right only now, {old['lost']:,} only then)"
            )
        if old["untested"]:
            lines[-1] += f"; {counted(old['untested'], 'more image')} of them only here"
        if old["relabelled"]:
            lines[-1] += f"; {counted(old['relabelled'], 'image')} with another label since"
    else:
        lines.append(f"old classes: not compared: {found.get('reason', 'the run has not ended')}")
    if classes["new"]:
        new = found.get("new") or {}
        images = counted(new.get("images", 0), "image")
        after = f": {new['after']:.4f} on {images}" if new.get("images") else ""
        lines.append(f"new classes ({named['new']}){after}")
    if classes["gone"]:
        lines.append(f"gone classes: {named['gone']}")
    return lines


def _mean(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def _composed(name: str) -> str:
    """A class name as ``model.weights`` matches it."""
    return unicodedata.normalize("NFC", name)


def _key(name: str, content: str) -> str:
    """What tells an image of split.json apart, as ``Predictions.keys``."""
    return content if is_digest(content) else name
