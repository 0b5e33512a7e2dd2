"""Creates, finds and locks a run's folder; imports no torch.

config.yaml  components.py  environment.json  uncommitted.patch  split.json  metrics.jsonl
events.out.tfevents.*  checkpoints/step-000000123/  model.pt  model.json  known.pt  before.csv
predictions.csv  result.json  report/  evaluations/  data_path.json  run.lock
"""

import json
import os
import re
import secrets
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from trainer.components.own import COPY
from trainer.config import Config
from trainer.process.errors import RunError, UsageError
from trainer.process.lock import PLAIN_FILE, hold, is_by_another
from trainer.run import disk

STAMP = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
MAX_NAMES = 20  # in a message
FORM = " such as runs/NAME/20260131-120000-ab12"


def create_run(runs: Path, name: str) -> Path:
    """Make the new folder ``runs/name/YYYYmmdd-HHMMSS-xxxx`` and return it."""
    try:
        (runs / name).mkdir(parents=True, exist_ok=True)
        disk.sync_folder(runs)
        while True:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            run = runs / name / f"{stamp}-{secrets.token_hex(2)}"
            try:
                disk.make_folder(run)
            except FileExistsError:  # another start in this second drew the same four digits
                continue
            return run
    except (OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "its path is too deep"
        raise RunError(
            f"--runs {runs}: no run folder can be made there ({reason}). "
            "Name a folder that can be written to."
        ) from None


def keep_own_file(config: Config, folder: Path) -> None:
    """Copy the file of own components into a folder, beside its YAML, under the name in it."""
    if config.own.sha256:
        disk.write_file(folder / COPY, config.own.content)


def tensorboard_command(root: Path, pictures: int = 0) -> str:
    """The command that shows the runs below ``root`` in TensorBoard.

    pictures: the largest number of pictures of one tag. TensorBoard keeps ten of them, by chance,
    unless it is told to keep all.
    """
    more = " --samples_per_plugin images=0" if pictures > 10 else ""
    return f"tensorboard --logdir {shlex.quote(str(root))}{more}"


def find_run(text: str) -> Path:
    """The run folder that ``text`` names. If it names a folder of runs, that is the newest run.

    Raises UsageError if there is none, if the runs have several names, and for a sweep's folder,
    whose newest run means nothing.
    """
    folder = Path(text)
    if (folder / "config.yaml").is_file():
        return folder
    if (folder / "plan.json").is_file():
        raise UsageError(f"{text} is a sweep; {_best_of(folder)}")
    runs = runs_in(folder) or [run for inner in sorted(folder.glob("*/")) for run in runs_in(inner)]
    newest = {name_of(run): run for run in sorted(runs, key=begun)}
    if len(newest) > 1:
        listed = [f"  {run}, the newest of {name}" for name, run in sorted(newest.items())]
        more = [f"  and {len(listed) - MAX_NAMES} more"] if len(listed) > MAX_NAMES else []
        lines = "\n".join(listed[:MAX_NAMES] + more)
        raise UsageError(f"{text} holds runs of {len(newest)} names; name one run:\n{lines}")
    if newest:
        return next(iter(newest.values()))
    what = "holds no run" if folder.is_dir() else "does not exist"
    if folder.is_file():
        own = folder.parent if (folder.parent / "config.yaml").is_file() else None
        name = f"name its run's folder, {own}" if own else "name a run's folder"
        raise UsageError(f"{text} is a file: {name}{'' if own else FORM}.")
    if sweeps := sorted(folder.glob("*/plan.json")):
        what = f"holds no run but the sweep {sweeps[0].parent}; {_best_of(sweeps[0].parent)}"
    raise UsageError(f"{text} {what}. Expected a folder{FORM}.")


def find_runs(texts: Sequence[str]) -> list[Path]:
    """The runs that the texts name, each as ``find_run`` does; a sweep's folder gives several.

    They are those of its best trial, and SWEEP/t003 names those of that trial. Raises UsageError,
    also for a run that is named twice.
    """
    runs = [run for text in texts for run in _runs_of(text)]
    known: set[Path] = set()
    for run in runs:
        if (place := run.resolve()) in known:
            raise UsageError(f"{run} is named twice; name each run once.")
        known.add(place)
    return runs


def _runs_of(text: str) -> list[Path]:
    folder = Path(text)
    if (folder / "plan.json").is_file():
        if not (runs := _best_runs(folder)) or not all(run.is_dir() for run in runs):
            raise UsageError(f"{text} is a sweep; {_best_of(folder)}")
        return runs
    if _is_trial(folder):
        newest = [runs_in(one)[-1:] for one in sorted(folder.parent.glob(f"{folder.name}-seed*/"))]
        if not any(newest):
            raise UsageError(f"{folder.parent} has no run of trial {folder.name} yet.")
        return [run for one in newest for run in one]
    return [find_run(text)]


def _is_trial(folder: Path) -> bool:
    """Whether a path is SWEEP/t003, which stands for the folders SWEEP/t003-seed0 and so on."""
    is_number = re.fullmatch(r"t\d{3,}", folder.name) is not None
    return is_number and (folder.parent / "plan.json").is_file()


def names_runs(text: str) -> bool:
    """Whether a text names what only we write: a run, a folder of runs, a sweep, or its trial."""
    if not os.path.isdir(text) and not re.fullmatch(r"t\d{3,}", os.path.basename(text)):
        return False
    folder = Path(text)
    has_runs = any((run / "result.json").is_file() for run in [folder, *runs_in(folder)])
    return has_runs or (folder / "plan.json").is_file() or _is_trial(folder)


def runs_in(folder: Path) -> list[Path]:
    """The runs that lie in a folder, the newest last."""
    return sorted((path.parent for path in folder.glob("*/config.yaml")), key=begun)


def begun(run: Path) -> tuple[bool, str]:
    """A sort key: when a run began, by its folder's name. A folder with another name is older."""
    return STAMP.match(run.name) is not None, run.name


def name_of(run: Path) -> str:
    """The name in a run's config.yaml, else that of the folder in which the run lies."""
    with suppress(OSError), (run / "config.yaml").open(encoding="utf-8", errors="replace") as file:
        if match := re.search(r"^name: (\S+)$", file.read(2**16), re.MULTILINE):
            return match[1]
    return run.parent.name


def _best_of(sweep: Path) -> str:
    """The end of a message to a user who named a sweep instead of a run: its best runs."""
    runs = _best_runs(sweep)
    if here := [str(run) for run in runs if run.is_dir()]:
        if len(here) == 1:
            return f"its best run is {here[0]}: name that one."
        return f"its best trial's runs are {', '.join(here)}: name one of them."
    if runs:
        return "its best run lies in the folder of another machine: name it there."
    return f"none of its trials is done yet: name one of the runs in it, {sweep}/tNNN-seedN."


def _best_runs(sweep: Path) -> list[Path]:
    """The runs of a sweep's best trial, by its sweep.json; none if there is none."""
    results: dict[str, Any] = {}
    with suppress(RunError):
        results = disk.read_json(sweep / "sweep.json")
    with suppress(LookupError, TypeError):  # somebody has edited it
        best = next(t for t in [*results["trials"], None] if not t or t["trial"] == results["best"])
        return [sweep / run["run"] for run in best["runs"] if run["run"]] if best else []
    return []


def lock_run(run: Path) -> IO[str]:
    """Hold the run until the returned file is closed; raises RunError if a process holds it."""
    try:
        flags = os.O_RDWR | os.O_CREAT | PLAIN_FILE
        lock = open(os.open(run / "run.lock", flags, 0o666), "a")
    except OSError as error:
        raise RunError(f"{run} cannot be written to: {error.strerror}.") from None
    try:
        try:
            hold(lock)
        except BlockingIOError:  # `trainer.runs list` holds it for some microseconds
            time.sleep(0.05)
            hold(lock)
    except OSError as error:
        lock.close()
        if not is_by_another(error):
            raise RunError(f"{run} cannot be locked: {error.strerror}.") from None
        raise RunError(
            f"{run} is being written by another process; wait for it or stop it."
        ) from None
    # A worker process that outlives a killed trainer must not hold the run for it.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock.close)
    return lock


def data_path_of(run: Path | None) -> dict[str, Any]:
    """A run's data_path.json; empty if it is lost, or if there is no run."""
    with suppress(RunError):
        return {} if run is None else disk.read_json(run / "data_path.json")
    return {}


def read_metrics(path: Path, length: int | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, or of its first ``length`` bytes. Raises RunError."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(size if length is None else min(length, size)).decode()
        lines = [json.loads(line) for line in content.splitlines()]
        if not all(isinstance(line, dict) and "step" in line for line in lines):
            raise ValueError("it has lines that the trainer did not write")
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}): the run folder is damaged.") from None
    return lines
