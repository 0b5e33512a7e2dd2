"""A sweep's folder: its plan, its runs, the claims of workers, and how each run ended.

plan.json  base.yaml  tNNN-seedS[-foldF]/{claim.lock, log.txt, end.json, RUN/}  hparams/
sweep.json  sweep.csv  sweep.html  study.journal (with tpe)
"""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainer.process.errors import ConfigError, RunError
from trainer.process.lock import hold, is_by_another
from trainer.run import disk
from trainer.run.folder import keep_own_file
from trainer.run.resume import as_yaml, differences, settings
from trainer.sweeping.plan import Plan
from trainer.sweeping.space import Settings

# Settings that may change when a sweep is resumed: they have no influence on the weights.
SWEEP_MAY_CHANGE = (
    *("log.", "checkpoint.", "dataset.root", "train.budget", "train.skip_non_finite"),
    *("loader.workers", "loader.cache", "loader.eval_batch_size", "store.", "notify"),
)


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep. ``number`` counts from 0; ``key`` is its id in an Optuna study."""

    number: int
    settings: Settings
    key: int | None = None


@dataclass(frozen=True)
class Member:
    """One run of a trial: its seed and fold."""

    trial: Trial
    seed: int
    fold: int | None

    @property
    def name(self) -> str:
        """The run's name, which is also its folder within the sweep's."""
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"t{self.trial.number:03d}-seed{self.seed}{fold}"


def members_of(plan: Plan, trial: Trial) -> list[Member]:
    """The runs of a trial, in the order in which they are done."""
    return [Member(trial, seed, fold) for seed, fold in plan.members]


def open_folder(plan: Plan, runs: Path) -> tuple[Path, str]:
    """Make or check the sweep's folder; return it and the sweep's id.

    Raises ConfigError if the folder holds a sweep with other settings or another experiment, and
    RunError if it cannot be used.
    """
    folder = runs / plan.file.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--runs {runs}: {folder} cannot be made ({error.strerror}).") from None
    file = plan.file.model_dump(mode="json")
    asked = {"sweep": file["sweep"], "base": settings(plan.config)}
    with locked(folder / "sweep.lock"):
        identity = secrets.token_hex(4)
        if (folder / "plan.json").exists():
            began = disk.read_json(folder / "plan.json")
            try:
                refuse_another(plan, folder, began, asked)
                identity = str(began["id"])
            except (KeyError, TypeError, AttributeError):
                raise damaged(folder / "plan.json") from None
        elif any(folder.glob("*/config.yaml")):
            raise RunError(
                f"{folder} holds runs that belong to no sweep; give the sweep another name:"
            )
        keep_own_file(plan.config, folder)
        disk.write_file(folder / "base.yaml", plan.config.dump_as_written())
        disk.write_json(folder / "plan.json", {"id": identity, **asked})
    return folder, identity


def refuse_another(plan: Plan, folder: Path, began: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise ConfigError with all forbidden differences; more trials or seeds are allowed."""
    another = "give this one another name, as in name=again"
    faults = []
    old, new = began["sweep"], asked["sweep"]
    # A study already has the values of older trials, so their seeds cannot change.
    in_study = new["storage"] is not None or new["method"] == "tpe"
    for key in new:
        before, now = old.get(key), new[key]
        more = (key == "trials" and before and now and before <= now) or (
            key == "seeds" and not in_study and before and now and set(before) <= set(now)
        )
        if before != now and not more:
            message = f"is {as_yaml(now)}, but the sweep in {folder} began with {as_yaml(before)}"
            faults.append(plan.document.fault(("sweep", key), f"{message}; {another}"))
    for path, before, now in differences(began["base"], asked["base"]):
        if not path.startswith(SWEEP_MAY_CHANGE):
            message = f"is {as_yaml(now)}, but the sweep in {folder} began with {as_yaml(before)}"
            faults.append(plan.config.fault(path, f"{message}; {another}"))
    if faults:
        raise ConfigError(faults, plan.document.file)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Context manager: holds a lock, which the system frees if the process dies."""
    with path.open("a") as file:
        hold(file, wait=True)
        yield


def claim(folder: Path) -> IO[str] | None:
    """Claim the run in ``folder``; return the claim, or None if another worker holds it.

    The claim is an open file. It lasts until each process that has it open closes it or ends.
    """
    folder.mkdir(exist_ok=True)
    file = (folder / "claim.lock").open("a")
    try:
        hold(file)
    except OSError as error:
        file.close()
        if is_by_another(error):
            return None
        raise RunError(f"{folder} cannot be locked: {error.strerror}.") from None
    return file


def ended(folder: Path) -> dict[str, Any] | None:
    """The content of the run's end.json; None if the run has not ended.

    A file that the sweep did not write counts as a failure of this run, so it costs no other one.
    """
    path = folder / "end.json"
    if not path.exists():
        return None
    try:
        end = disk.read_json(path)
        require_ours(end)
    except (RunError, LookupError, TypeError):
        reason = f"{path} is damaged; without it, the sweep takes the run's own result"
        return end_of(None, "", "failed", reason)
    return end


def require_ours(end: dict[str, Any]) -> None:
    """Raise LookupError or TypeError if ``end`` has not the form that ``end_of`` gives."""
    kinds = {"status": str, "reason": str, "run": str | None, "best": dict, "test": dict}
    values = {key: end[key] for key in ("value", "epoch", "epochs", "seconds")}
    numbers = [value for value in values.values() if value is not None]
    numbers += [*end["best"].values(), *end["test"].values()]
    if not all(isinstance(end[name], kind) for name, kind in kinds.items()):
        raise TypeError
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise TypeError


def damaged(path: Path) -> RunError:
    """The error for a file of the sweep whose content the sweep did not write."""
    return RunError(f"{path} is not what the sweep wrote; remove it, or give the sweep a new name.")


def newest_run(folder: Path) -> Path | None:
    """The run in ``folder`` that was begun last; None if there is none."""
    return max((path.parent for path in folder.glob("*/config.yaml")), default=None)


def end_of(run: Path | None, monitor: str, status: str, reason: str = "") -> dict[str, Any]:
    """The content of a run's end.json; its ``value`` is ``monitor`` at the run's best epoch."""
    from trainer.comparing.listing import inspect_run

    found = None if run is None else inspect_run(run)
    best = found.best if found else {}
    return {
        "status": status,
        "reason": reason,
        "run": None if run is None else os.path.join(run.parent.name, run.name),
        "value": best.get(monitor),
        "epoch": best.get("epoch"),
        "epochs": found.epochs if found else None,
        "best": {tag: value for tag, value in best.items() if tag.startswith("val/")},
        "test": found.test if found and status == "done" else {},
        "seconds": found.seconds if found else None,
        "wall_seconds": None,  # known to who saw its process begin and end
        "ended": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
