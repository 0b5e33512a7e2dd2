"""Going on with a run: may it continue (check), restore its state, make its folder fit (adopt)."""

import json
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.words import counted
from trainer.build.job import Job, data_path
from trainer.comparing.predictions import PREDICTIONS
from trainer.components.schedulers import forecast
from trainer.distributed.processes import is_true_everywhere, on_main
from trainer.input.data import digest_of_split
from trainer.loop import record, snapshot
from trainer.loop.state import State
from trainer.process.console import Say
from trainer.process.errors import RunError
from trainer.process.launch import as_typed
from trainer.run import checkpoint
from trainer.run.disk import MAX_SPLIT, read_json, write_file, write_json
from trainer.run.folder import read_metrics
from trainer.run.log import Lengths
from trainer.run.resume import MAY_CHANGE, as_yaml, differences, settings


@dataclass
class Found:
    """A checkpoint: its folder, its manifest's digest, and what it holds.

    Sent to another rank, it arrives without ``content``: see ``send_content``.
    """

    folder: Path
    digest: str
    content: dict[str, Any]

    def __reduce__(self) -> Any:
        return Found, (self.folder, self.digest, {})


def check(run: Path, job: Job, say: Say) -> Found | None:
    """The newest whole checkpoint of a run; None if the run was stopped before its first one.

    Prints what differs from the run so far; raises RunError if the run may not go on like this.
    """
    loaded = checkpoint.load_checkpoint(run, say)
    checkpoint.remove_leftovers(run)  # before any write: killed processes may have filled the disk
    if loaded is not None:
        folder, content = loaded
        compare(job, content, run, say)
        return Found(folder, checkpoint.manifest_of(folder)["sha256"], content)
    if "members" in old_result(run):
        raise RunError(f"{run} was combined of other runs, and was never trained: resume those.")
    if old_result(run).get("status") == "done":
        raise RunError(
            f"{run} is finished, and its checkpoints are gone: bring them back, or start a new run."
        )
    if not (run / "checkpoints").is_dir():
        raise RunError(
            f"{run / 'checkpoints'} is missing, which was there when the run began: bring it back, "
            "or start a new run."
        )
    say(f"note    {run} ended before its first checkpoint: it begins anew")
    return None


def compare(job: Job, content: dict[str, Any], run: Path, say: Say) -> None:
    """Print what differs between a checkpoint and the job; raise RunError if it must not differ."""
    try:
        json.dumps([content["settings"], content["split"], content["made_on"]])  # plain values
        is_ours = isinstance(content["settings"]["train"]["epochs"], int)
    except (KeyError, TypeError, ValueError, RecursionError):
        is_ours = False
    if not is_ours:
        raise RunError(f"{run}: its checkpoint is not one that the trainer wrote.")
    refused = []
    for path, old, new in differences(content["settings"], settings(job.config)):
        if path.startswith(MAY_CHANGE):
            say(f"changed {path} is now {as_yaml(new)}, was {as_yaml(old)}")
        else:
            refused.append(f"{path} is {as_yaml(new)}, but its checkpoint has {as_yaml(old)}")
    if refused:
        raise RunError(f"{run / 'config.yaml'} was changed: {'; '.join(refused)}.")
    if content.get("classes") != list(job.data.classes):
        raise RunError(
            f"{run} began with other classes, or in another order, than {job.config.dataset.name} "
            "gives now. Bring them back, or start a new run."
        )
    require_same_split(job, content["split"], run)
    require_same_teacher(job, content.get("teacher"), run)
    for name, old, new in differences(content["made_on"], snapshot.made_on(job)):
        say(f"note    {name} is now {new}, was {old}: last bits may differ from here on")


def require_same_split(job: Job, digest: object, run: Path) -> None:
    """Raise RunError if the images are no longer those that the run began with."""
    if digest != job.data.split_digest:
        raise RunError(
            f"{run} began with another split than {job.config.dataset.name} gives now: "
            f"{what_changed(run, digest, job.data.split)}. Bring them back, or start a new run."
        )


def what_changed(run: Path, digest: object, now: dict[str, Any]) -> str:
    """Counts and first names of the images that are absent, added or changed since the run began.

    The run's split.json tells them, if it is the split of this digest.
    """
    before: dict[str, Any] = {}
    with suppress(RunError, TypeError):
        saved = read_json(run / "split.json", MAX_SPLIT)
        before = saved if digest_of_split(saved) == digest else {}
    old, new = (
        {
            name: (part, content)
            for part in ("train", "val", "test")
            for name, content in split.get(part, {}).items()
        }
        for split in (before, now)
    )
    both = [name for name in old if name in new]
    found = {
        "absent": [name for name in old if name not in new],
        "added": [name for name in new if name not in old],
        "changed": [name for name in both if old[name][1] != new[name][1]],
    }
    found["now in another part"] = [
        name for name in both if old[name][1] == new[name][1] and old[name][0] != new[name][0]
    ]
    told = []
    for what, names in found.items():
        more = ", ..." * (len(names) > 3)
        if names:
            told.append(f"{counted(len(names), 'image')} {what} ({', '.join(names[:3])}{more})")
    if before and before.get("fixes") != now.get("fixes"):
        told.append("dataset.fixes holds other fixes")
    return "; ".join(told) if before and told else "images were added, removed or changed"


def require_same_teacher(job: Job, digest: object, run: Path) -> None:
    """Raise RunError if the teacher's weights are no longer those that the run began with."""
    if job.teacher is not None and digest != job.teacher.digest:
        raise RunError(
            f"{run} began with another teacher than {job.teacher.run}, whose best weights have "
            f"SHA-256 {job.teacher.digest[:12]}..., and were {str(digest)[:12]}...: name the one "
            "that it began with, distill.run=..., or start a new run."
        )


def send_content(found: Found | None) -> Found | None:
    """The checkpoint that rank 0 found, with its content on every rank; all ranks call it.

    A rank that finds the same checkpoint on its own disk reads it there. If any rank does not find
    it, rank 0 sends the content to all.
    """
    if found is None:
        return None
    with suppress(RunError, OSError):
        if not found.content and checkpoint.manifest_of(found.folder).get("sha256") == found.digest:
            if checkpoint.problem_of(found.folder) is None:
                found.content = checkpoint.read_state(found.folder)
    if not is_true_everywhere(bool(found.content)):
        found.content = on_main(lambda: found.content)
    return found


def restore(job: Job, found: Found | None) -> tuple[State, Lengths]:
    """Restore ``job`` from a checkpoint; returns the counters and the lengths of the logs."""
    if found is None:
        return State(), Lengths()
    try:
        state, lengths = snapshot.restore_job(job, found.content)
    except RunError as error:
        message = f"{found.folder}: {error} Moved away, the one before it is taken."
        raise RunError(message) from error
    state.saved = state.position
    early_stop = job.config.early_stop
    state.early_stopped = early_stop is not None and state.stale_epochs >= early_stop.patience
    return state, lengths


def adopt(
    job: Job, run: Path, state: State, lengths: Lengths, found: Found | None, say: Say
) -> tuple[bool, checkpoint.Entry | None]:
    """On rank 0: make the folder fit the restored state; returns is_finished, model.pt's entry."""
    best_entry = None
    if found is None:
        record.write_description(job, run)
    else:
        read_metrics(run / "metrics.jsonl", lengths.metrics)  # raises for damage before training
        record.write_split(job, run)  # it may have been lost
        best_entry = checkpoint.bring_back_best(found.folder, say)
        if best_entry:
            write_json(run / "model.json", record.best_card(job, run, state.best, best_entry))
        print_plan(job, run, state, found.content, say)
    if is_finished(job, run, state):
        more = "early_stop.patience" if state.early_stopped else "train.epochs"
        say(f"{run} is finished, epochs done: {state.epoch}; to go on from its end: {more}=...")
        tell_tta(job, run, say)
        return True, best_entry
    write_file(run / "config.yaml", job.config.dump())
    write_json(run / "data_path.json", data_path(job))
    record.write_launcher(run)
    (run / PREDICTIONS).unlink(missing_ok=True)  # of an earlier end, perhaps of other weights
    write_json(run / "result.json", old_result(run) | record.first_result(job))
    return False, best_entry


def tell_tta(job: Job, run: Path, say: Say) -> None:
    """Print that a finished run's test is not done again with another ``evaluation.tta``."""
    asked, had = job.config.evaluation.tta, None
    with suppress(RunError):
        had = read_json(run / "result.json").get("tta")
    if asked != had:
        how = f"{as_typed('evaluate')} {shlex.quote(str(run))} --tta {asked or 'none'}"
        say(f"note    evaluation.tta is {asked or 'null'}, and the run's test had {had or 'null'}: "
            f"it is not done again; to do it: {how}")  # fmt: skip


def print_plan(job: Job, run: Path, state: State, content: dict[str, Any], say: Say) -> None:
    """Print how the learning rate goes on if the number of epochs has changed."""
    began, epochs = content["settings"]["train"]["epochs"], job.config.train.epochs
    if epochs <= state.epoch and not is_finished(job, run, state):
        say(f"note    {state.epoch} epochs are done already: no more is trained")
    elif job.config.scheduler and began != epochs and epochs > state.epoch:
        name, steps = job.config.scheduler.name, len(job.train_loader)
        rates = forecast(job.schedule, job.optimizer, epochs - state.epoch, steps)
        if rates is None:
            say(f"note    {name} goes on as before, by what it watches")
        else:
            shown = f"{rates[0]:.3g} in epoch {state.epoch + 1}"
            if len(rates) > 1:
                shown += f" to {rates[-1]:.3g} in epoch {epochs}, at most {max(rates):.3g}"
            say(f"note    {name} goes on as it was planned when the run began: lr {shown}")
            if max(rates) < 1e-3 * job.schedule.first_lrs[0]:
                say("note    at such rates next to nothing is learned; a new run plans anew")


def is_finished(job: Job, run: Path, state: State) -> bool:
    """Whether a resumed run has nothing left to do; test is not evaluated again then."""
    over = state.early_stopped or state.epoch >= job.config.train.epochs
    return over and old_result(run).get("status") == "done"


def old_result(run: Path) -> dict[str, Any]:
    """The content of result.json without what an end measured; empty if the file was lost."""
    of_end = (
        *("reason", "best", "val", "test", "tta", "test_plain"),
        *("calibration", "grown", "novelty"),
    )
    with suppress(RunError):
        return {k: v for k, v in read_json(run / "result.json").items() if k not in of_end}
    return {}
