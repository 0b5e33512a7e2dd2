"""Reads run folders in any state, whole or damaged, without PyTorch.

Nothing is written. No content of a folder raises an error: results name what cannot be read.
"""

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.process.lock import PLAIN_FILE, is_held

# As trainer.run.folder names a run's folder.
STAMPED = re.compile(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)-[0-9a-f]{4}")
STATES = ("running", "stopped", "failed", "done")
MAX_RUN_DEPTH = 3  # runs/NAME/RUN, and a folder of such folders
MAX_JSON_BYTES = 2**28
MAX_GROWING = 2**36  # of what grows with the images or the steps: split.json, metrics.jsonl
POWERS_BELOW = 1e-3  # smaller metrics are shown with powers of ten
TAIL = 2**16  # bytes of metrics.jsonl that surely hold its last line

_EPOCHS = re.compile(r"^train:\n(?:  .*\n)*?  epochs: (\d{1,9})$", re.MULTILINE)
_MONITOR = re.compile(r"^train:\n(?:  .*\n)*?  monitor: (val/\w+)$", re.MULTILINE)


@dataclass(frozen=True)
class FoundRun:
    """A run, as its folder describes it.

    ``status`` is one of STATES, "interrupted" (result.json says running, but no process holds the
    run) or "damaged"; ``reason`` says why it stopped, failed or is damaged. ``epochs`` counts the
    epochs that ended. ``best``: the numbers of the best epoch; ``test``: of the test split; or {}.
    """

    folder: Path
    status: str
    reason: str = ""
    epochs: int | None = None
    planned: int | None = None
    monitor: str | None = None
    best: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the run's configuration: the parent folder's name."""
        return Path(os.path.abspath(self.folder)).parent.name

    @property
    def stamp(self) -> str:
        """The name of the run's own folder."""
        return Path(os.path.abspath(self.folder)).name

    @property
    def started(self) -> str | None:
        """When the run began, from its folder's name: ``2026-01-31 12:00:00``; else None."""
        match = STAMPED.fullmatch(self.stamp)
        return "{}-{}-{} {}:{}:{}".format(*match.groups()) if match else None

    @property
    def seconds(self) -> float | None:
        """How long the training took."""
        return number(self.result.get("train_seconds"))


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, also of a damaged one."""
    files = ("config.yaml", "result.json")
    return any((folder / file).is_file() for file in files) or (
        STAMPED.fullmatch(folder.name) is not None and folder.is_dir()
    )


def runs_below(folder: Path, depth: int = MAX_RUN_DEPTH) -> Iterator[Path]:
    """The run folders in ``folder``, by name; or ``folder`` if it is one. No link is followed."""
    if is_run(folder):
        yield folder
    elif depth:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for name in sorted(e.name for e in entries if e.is_dir(follow_symlinks=False)):
                yield from runs_below(folder / name, depth - 1)


def inspect_run(run: Path) -> FoundRun:
    """Read a run's small files and the end of its metrics.jsonl."""
    result, fault = read_object(run / "result.json")
    status = result.get("status")
    held = False
    if fault or status == "running":
        held = is_held(run)
        if not held:  # it may have ended while we looked
            result, fault = read_object(run / "result.json")
            status = result.get("status")
    config, config_fault = read_text(run / "config.yaml", 2**20)
    fault = fault or config_fault
    if fault:
        status, reason = ("running", "it is being made") if held else ("damaged", fault)
    elif status not in STATES:
        status, reason = "damaged", f"result.json: its status is {status!r}"
    elif status == "running" and not held:
        status, reason = "interrupted", "it was killed, or lies on another machine"
    else:
        reason = str(result.get("reason") or "")
    best = numbers_of(result.get("best"))
    epochs = as_count(result.get("epochs")) if status == "done" else None
    if not best:  # until a run ends, only model.json holds the best epoch's numbers
        best = numbers_of(read_object(run / "model.json")[0].get("metrics"))
    if epochs is None:
        epochs = last_epoch(run / "metrics.jsonl")
    planned, monitor = _EPOCHS.search(config), _MONITOR.search(config)
    return FoundRun(
        run,
        str(status),
        reason,
        epochs,
        int(planned[1]) if planned else None,
        monitor[1] if monitor else next((k for k in best if k != "val/loss" and "val/" in k), None),
        best,
        numbers_of(result.get("test")),
        result,
    )


def last_epoch(path: Path) -> int | None:
    """The number of epochs that had ended at the last whole line of metrics.jsonl; None: unread."""
    text, fault = read_text(path, TAIL, tail=True)
    for line in reversed(text.split("\n")):
        values = parsed(line)
        if isinstance(values, dict) and (epoch := as_count(values.get("epoch"))) is not None:
            return epoch - ("train/loss_epoch" not in values)
    return None if fault else 0


def read_object(path: Path, limit: int = MAX_JSON_BYTES) -> tuple[dict[str, Any], str]:
    """A file's JSON object and "", or {} and the reason why it cannot be read."""
    text, fault = read_text(path, limit)
    if fault:
        return {}, fault
    content = parsed(text)
    if not isinstance(content, dict):
        return {}, f"{path.name} cannot be read: it is damaged"
    return content, ""


def read_text(path: Path, limit: int = MAX_JSON_BYTES, tail: bool = False) -> tuple[str, str]:
    """A file's text and "", or "" and the fault. ``tail``: the last ``limit`` bytes of the text."""
    try:
        with open(os.open(path, os.O_RDONLY | PLAIN_FILE), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return "", f"{path.name} is no file"
            if about.st_size > limit and not tail:
                return "", f"{path.name} is larger than any that the trainer writes"
            if tail:
                file.seek(max(about.st_size - limit, 0))
            return file.read(min(limit, about.st_size)).decode(errors="replace"), ""
    except FileNotFoundError:
        return "", f"{path.name} is missing"
    except (OSError, ValueError) as error:
        return "", f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}"


def parsed(text: str) -> Any:
    """JSON as plain values; None if ``text`` is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def number(value: Any) -> float | None:
    """A float (NaN too), or an int of less than 64 bits, as it is; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, float) or abs(value) < 2**63 else None


def as_count(value: Any) -> int | None:
    """A whole number; None for anything else."""
    found = number(value)
    return int(found) if found is not None and math.isfinite(found) else None


def numbers_of(values: Any) -> dict[str, float]:
    """The values of a JSON object that are numbers, by their keys."""
    items = values.items() if isinstance(values, dict) else ()
    return {key: n for key, value in items if (n := number(value)) is not None}


def strict_json(value: Any) -> Any:
    """Values for strict JSON: NaN and infinity become None (null)."""
    if isinstance(value, dict):
        return {key: strict_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def took(seconds: float | None) -> str:
    """Seconds as text: ``1m35s``; "-" if they are not known."""
    from trainer.process.console import duration

    if seconds is None or not math.isfinite(seconds):
        return "-"
    return duration(seconds)


def short(value: float | None) -> str:
    """A metric as short text: ``0.1234``, ``1.2e-05``, ``0`` for exactly 0, ``-`` for None."""
    if not value:
        return "-" if value is None else "0"
    return f"{value:.1e}" if abs(value) < POWERS_BELOW or abs(value) >= 1e6 else f"{value:.4f}"
