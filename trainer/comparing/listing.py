"""Run folders as they are found: in any state, whole or damaged, without PyTorch.

Nothing is written, and nothing raises for what a folder holds: what cannot be read is told.
"""

import contextlib
import errno
import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# As trainer.run.folder names a run's folder.
STAMPED = re.compile(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)-[0-9a-f]{4}")
STATES = ("running", "stopped", "failed", "done")
MAX_RUN_DEPTH = 3  # runs/NAME/RUN, and a folder of such folders
MAX_JSON_BYTES = 2**28
POWERS_BELOW = 1e-3  # metrics below it are powers of ten
TAIL = 2**16  # bytes of metrics.jsonl that surely hold its last line

# Never through a link that somebody put in a file's place, and never waiting for a pipe.
READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

_EPOCHS = re.compile(r"^train:\n(?:  .*\n)*?  epochs: (\d{1,9})$", re.MULTILINE)
_MONITOR = re.compile(r"^train:\n(?:  .*\n)*?  monitor: (val/\w+)$", re.MULTILINE)


@dataclass(frozen=True)
class FoundRun:
    """What a run's folder tells of it.

    ``status`` is one of STATES, "interrupted" (it says running, and nobody holds it) or "damaged";
    ``reason`` says why it stopped, failed or is damaged. ``epochs`` are those that ended.
    ``best`` is the best epoch's record, ``test`` the test split's numbers: empty where there is
    none.
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
        """The name of the run's configuration, which its folder lies in."""
        return Path(os.path.abspath(self.folder)).parent.name

    @property
    def stamp(self) -> str:
        """The name of the run's own folder."""
        return Path(os.path.abspath(self.folder)).name

    @property
    def started(self) -> str | None:
        """When it began, ``2026-01-31 12:00:00``, as its folder's name says."""
        match = STAMPED.fullmatch(self.stamp)
        return "{}-{}-{} {}:{}:{}".format(*match.groups()) if match else None

    @property
    def seconds(self) -> float | None:
        """How long the training took."""
        return number(self.result.get("train_seconds"))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, be it a damaged one's."""
    files = ("config.yaml", "result.json")
    return any((folder / file).is_file() for file in files) or (
        STAMPED.fullmatch(folder.name) is not None and folder.is_dir()
    )


def runs_below(folder: Path, depth: int = MAX_RUN_DEPTH) -> Iterator[Path]:
    """The run folders in ``folder``, by name; itself if it is one. Links are not followed."""
    if is_run(folder):
        yield folder
    elif depth:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for name in sorted(e.name for e in entries if e.is_dir(follow_symlinks=False)):
                yield from runs_below(folder / name, depth - 1)


def inspect_run(run: Path) -> FoundRun:
    """What the run's folder tells, from its small files and the end of metrics.jsonl."""
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
    if not best:  # until the end, the best epoch is told with its weights
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


def is_held(run: Path) -> bool:
    """Whether a process holds the run, as trainer.run.folder's ``lock_run`` does."""
    try:
        descriptor = os.open(run / "run.lock", READ)
    except OSError:
        return False
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBRLCK, 1)
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as one of many readers
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    finally:
        os.close(descriptor)
    return False


def last_epoch(path: Path) -> int | None:
    """How many epochs had ended when the last whole line of metrics.jsonl was written."""
    text, fault = read_text(path, TAIL, tail=True)
    for line in reversed(text.split("\n")):
        values = parsed(line)
        if isinstance(values, dict) and (epoch := as_count(values.get("epoch"))) is not None:
            return epoch - ("train/loss_epoch" not in values)
    return None if fault else 0


def read_object(path: Path) -> tuple[dict[str, Any], str]:
    """A file's JSON object and "", or {} and why there is none."""
    text, fault = read_text(path)
    if fault:
        return {}, fault
    content = parsed(text)
    if not isinstance(content, dict):
        return {}, f"{path.name} cannot be read: it is damaged"
    return content, ""


def read_text(path: Path, limit: int = MAX_JSON_BYTES, tail: bool = False) -> tuple[str, str]:
    """A file's text and "", or "" and why there is none; with ``tail`` its last ``limit`` bytes."""
    try:
        with open(os.open(path, READ), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return "", f"{path.name} is no file"
            if about.st_size > limit and not tail:
                return "", f"{path.name} is larger than any of ours"
            if tail:
                file.seek(max(about.st_size - limit, 0))
            return file.read(limit).decode(errors="replace"), ""
    except FileNotFoundError:
        return "", f"{path.name} is missing"
    except (OSError, ValueError) as error:
        return "", f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}"


def parsed(text: str) -> Any:
    """JSON as plain values; None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def number(value: Any) -> float | None:
    """A number as it is, NaN too; None for anything else, and for what no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, float) or abs(value) < 2**63 else None


def as_count(value: Any) -> int | None:
    """A whole number; None for anything else."""
    found = number(value)
    return int(found) if found is not None and math.isfinite(found) else None


def numbers_of(values: Any) -> dict[str, float]:
    """Those of a JSON object's values that are numbers."""
    items = values.items() if isinstance(values, dict) else ()
    return {key: n for key, value in items if (n := number(value)) is not None}


def strict_json(value: Any) -> Any:
    """Values as strict JSON has them: what is no finite number becomes null."""
    if isinstance(value, dict):
        return {key: strict_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def took(seconds: float | None) -> str:
    """``0.27`` seconds as ``0.3s``, ``95`` as ``1m35s``."""
    from trainer.process.console import duration

    if seconds is None or not math.isfinite(seconds):
        return "-"
    return duration(seconds)


def short(value: float | None) -> str:
    """A metric in few letters; what is 0 and not merely small is ``0``."""
    if not value:
        return "-" if value is None else "0"
    return f"{value:.1e}" if abs(value) < POWERS_BELOW or abs(value) >= 1e6 else f"{value:.4f}"
