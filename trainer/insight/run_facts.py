"""What a report tells of its run in words: facts, notes, and commands that use the run."""

import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.drawing.charts import numbers
from trainer.process.console import duration
from trainer.process.errors import RunError
from trainer.process.words import listed
from trainer.run.disk import read_json
from trainer.run.folder import tensorboard_command

_EQUAL = re.compile(r"([\d,]+) groups? of equal images .*?(one of the labels|what is tested)")
_ABSENT = re.compile(r"(train|val|test) has no image of")


def facts_of_run(result: dict[str, Any], run: Path) -> dict[str, str]:
    """The first facts of a report: when, on which data and device, with which code."""
    environment: dict[str, Any] = {}
    with suppress(RunError):
        environment = read_json(run / "environment.json")
    epochs, best = result.get("epochs"), result["best"]["epoch"]
    facts = {"best epoch": f"{best} of {epochs}" if epochs else str(best)}
    if result.get("early_stopped"):
        facts["best epoch"] += ", stopped early"
    if result.get("status") in ("stopped", "failed"):
        facts["status"] = result["status"]
    dataset = result.get("dataset", {})
    if images := dataset.get("images"):
        sizes = listed((f"{count:,} {split}" for split, count in images.items()))
        facts["data"] = f"{dataset.get('name', '')}: {sizes} images"
    if seconds := numbers(result).get("train_seconds"):
        facts["training"] = duration(seconds) if seconds >= 10 else f"{seconds:.2g}s"
    if speed := numbers(result).get("images_per_second"):
        facts["speed"] = f"{speed:,.0f} images/s"
    if stamp := re.match(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)-", run.name):
        facts["begun"] = "{}-{}-{} {}:{}:{}".format(*stamp.groups())
    if device := result.get("device") or environment.get("device"):
        torch_version = (environment.get("packages") or {}).get("torch")
        facts["device"] = f"{device}, torch {torch_version}" if torch_version else str(device)
    if commit := environment.get("git_commit"):
        changed = len(environment.get("git_changed_files") or ())
        files = f", {changed} file{'s' if changed > 1 else ''} changed since" if changed else ""
        facts["code"] = f"commit {str(commit)[:12]}{files}"
    elif code := environment.get("code"):
        facts["code"] = str(code)
    if "seed" in result:
        facts["seed"] = str(result["seed"])
    if "run" in (origin := result.get("weights", {})):
        facts["began with"] = f"{origin['run']}, epoch {origin['epoch']}"
    facts["folder"] = str(run)
    return facts


def notes_for_report(result: dict[str, Any], told_notes: Sequence[str], run: Path) -> list[str]:
    """Warnings about the numbers, the run's and those of ``trainer.data`` on the same split.

    Each fact is told once, in the run's words; lines of examples belong to their note.
    """
    dataset = result.get("dataset", {})
    notes = list(dataset.get("notes") or filter(None, [dataset.get("note")]))
    if taken := result.get("weights", {}).get("taken"):
        notes.append(f"model.weights: {taken}")
    if skipped := numbers(result).get("skipped_steps"):
        notes += [f"{skipped:,} steps without finite numbers were skipped in training."]
    facts: dict[str, Any] = {}
    with suppress(RunError):
        facts = read_json(run.parent / "data" / "data.json")
    # The examples of a note stand on further lines, which begin with two spaces.
    joined = "\n".join([*notes, *told_notes]).replace("\n  ", "; ").split("\n")
    if result.get("split") and facts.get("split") == result["split"]:
        told = facts.get("warnings", ())
        # The report itself lists the images that this run could not read.
        told = [warning for warning in told if not warning.endswith(" images cannot be read.")]
        joined += [f"{warning} (trainer.data)" for warning in told]
    once: dict[Any, str] = {}
    for note in filter(None, joined):
        once.setdefault(_fact(note), note)
    return list(once.values())


def _fact(note: str) -> Any:
    """What a note tells; the run and ``trainer.data`` tell two facts in different words."""
    found = _EQUAL.match(note) or _ABSENT.match(note)
    return found.groups() if found else note.removesuffix(" (trainer.data)").rstrip(".")


def commands_for(run: Path, result: dict[str, Any]) -> list[tuple[str, str]]:
    """(purpose, command) of commands that use the run; they are run in the checkout's root."""
    folder, siblings = shlex.quote(str(run)), shlex.quote(str(run.parent))
    epochs = int(numbers(result).get("epochs") or result["best"]["epoch"])
    return [
        ("watch the curves", tensorboard_command(run.parent.parent, epochs)),
        ("evaluate the weights again", f"python -m trainer.evaluate {folder}"),
        ("classify images", f"python -m trainer.predict {folder} path/to/images"),
        ("see what the model looks at", f"python -m trainer.explain {folder} path/to/image.jpg"),
        ("take it elsewhere", f"python -m trainer.export {folder} --format onnx"),
        ("compare the runs of this name", f"python -m trainer.compare {siblings}"),
        ("train on", f"python -m trainer.train --resume {folder} train.epochs={2 * epochs}"),
    ]
