"""Reads what is compared of a run: its settings, its curves, its code, data and device."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.comparing import listing
from trainer.config.document import read_document
from trainer.process.errors import ConfigError

CurvePoints = list[tuple[float, float]]

LARGEST = 1e30  # a larger loss cannot be drawn


@dataclass(frozen=True)
class Compared:
    """A run to compare. ``config`` is flat; ``curves`` holds (epoch, value) points by tag.

    answers: the classes, and whether an image may have several; "" where a file does not tell.
    """

    label: str
    found: listing.FoundRun
    config: dict[str, Any]
    curves: dict[str, CurvePoints]
    commit: str
    torch: str
    device: str
    dataset: str
    split: str
    answers: str
    faults: tuple[str, ...]


def read_runs(folders: Sequence[Path]) -> list[Compared]:
    """Read what is compared of each run. Labels are A, B, ..., or R1, R2, ... for more than 26."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    labels = letters if len(folders) <= len(letters) else [f"R{i + 1}" for i in range(len(folders))]
    return [read_run(label, folder) for label, folder in zip(labels, folders, strict=False)]


def read_run(label: str, folder: Path) -> Compared:
    """Read what is compared of a run; ``faults`` says which of its files cannot be read."""
    found, faults = listing.inspect_run(folder), []
    config: dict[str, Any] = {}
    try:
        if listing.read_text(folder / "config.yaml")[1]:  # such as a pipe, which would block
            raise ConfigError([])
        document = read_document(folder / "config.yaml")
        data = document.data
        config = flat_config(data) if data and isinstance(data, dict) else {}
        if document.faults or not config:
            faults.append("config.yaml is damaged")
    except ConfigError:
        faults.append("config.yaml cannot be read")
    curves, fault = read_curves(folder / "metrics.jsonl")
    if isinstance(members := found.result.get("members"), list):
        config["combined"] = f"{found.result.get('mean_of')} of {len(members)} runs"
    environment, other = listing.read_object(folder / "environment.json")
    faults += [text for text in (fault, other) if text]
    packages = environment.get("packages")
    dataset = found.result.get("dataset")
    dataset = dataset if isinstance(dataset, dict) else {}
    named = str(dataset.get("name") or config.get("dataset.name") or "")
    return Compared(
        label,
        found,
        config,
        curves,
        code_of(folder, environment),
        str(packages.get("torch") or "") if isinstance(packages, dict) else "",
        str(found.result.get("device") or environment.get("device") or ""),
        f"{named} ({dataset['note']})" if dataset.get("note") else named,
        str(found.result.get("split") or ""),
        what_it_answers(folder),
        tuple(faults),
    )


def what_it_answers(folder: Path) -> str:
    """What a run's model answers, by its model.json: one or several of its classes."""
    card, _ = listing.read_object(folder / "model.json")
    if not isinstance(classes := card.get("classes"), list):
        return ""
    return f"{'several' if 'thresholds' in card else 'one'} of {', '.join(map(str, classes))}"


def has_several(answers: str) -> bool:
    """Whether an image may have several labels, by what ``what_it_answers`` gives."""
    return answers.startswith("several")


def code_of(folder: Path, environment: Mapping[str, Any]) -> str:
    """Return the short commit, with a digest of the changes that were not committed."""
    commit = environment.get("git_commit")
    patch, fault = listing.read_text(folder / "uncommitted.patch")
    if not isinstance(commit, str):  # of the wheel
        return str(environment.get("code", ""))
    digest = hashlib.sha256(patch.encode()).hexdigest()[:6]
    return commit[:10] + (f" + changes {digest}" if patch and not fault else "")


def flat_config(value: Any, path: str = "") -> dict[str, Any]:
    """Return ``{"a": {"b": 1}}`` as ``{"a.b": 1}``.

    A list of components becomes the list of their names, and each one's arguments under its name:
    ``transforms.train: [Resize]`` and ``transforms.train.Resize.size: 32``.
    """
    names: list[str] = []
    if isinstance(value, dict) and value:
        items = [(str(key), inner) for key, inner in value.items()]
    elif (
        isinstance(value, list)
        and value
        and all(isinstance(item, dict) and "name" in item for item in value)
    ):
        names = [str(item["name"]) for item in value]
        counted = [
            name if names.count(name) == 1 else f"{name}#{names[:i].count(name) + 1}"
            for i, name in enumerate(names)
        ]
        arguments = [{k: v for k, v in item.items() if k != "name"} for item in value]
        items = [(n, a) for n, a in zip(counted, arguments, strict=True) if a]
    else:
        return {path: value}
    result: dict[str, Any] = {path: names} if names else {}
    for key, inner in items:
        result |= flat_config(inner, f"{path}.{key}" if path else key)
    return result


def read_curves(path: Path) -> tuple[dict[str, CurvePoints], str]:
    """Return the curves of a metrics.jsonl over the epochs, and the file's fault, or ""."""
    text, fault = listing.read_text(path, listing.MAX_GROWING)
    *lines, _ = text.split("\n")  # the run may be writing the last one
    curves: dict[str, CurvePoints] = {}
    damaged = 0
    for line in lines:
        if '"val/' not in line and line.endswith("}"):  # a step's line
            continue
        values = listing.parsed(line)
        epoch = listing.number(values.get("epoch")) if isinstance(values, dict) else None
        if epoch is None or not 0 < epoch < 1e9:
            damaged += 1
            continue
        for tag, value in listing.numbers_of(values).items():
            if (tag.startswith("val/") or tag == "train/loss_epoch") and abs(value) < LARGEST:
                curves.setdefault(tag, []).append((epoch, value if abs(value) > 1e-30 else 0.0))
    if damaged:
        fault = f"{damaged} line{'s' * (damaged > 1)} of metrics.jsonl cannot be read"
    return curves, fault
