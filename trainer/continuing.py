"""Going on in a run's folder: the checkpoint to go on from, and what must fit it."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.checkpoint import Entry, bring_back_best, load_checkpoint, sweep
from trainer.console import Say
from trainer.disk import read_json, write_file, write_json
from trainer.errors import RunError
from trainer.folder import read_metrics
from trainer.job import Job
from trainer.record import card, compare, describe, first_result, write_launcher, write_split
from trainer.run_log import Lengths
from trainer.schedulers import forecast
from trainer.state import State, restore
from trainer.summary import data_path

Found = tuple[Path, dict[str, Any]]  # a checkpoint's folder, and its content


def found_in(run: Path, job: Job, say: Say) -> Found | None:
    """The newest checkpoint of a run to go on in; None where it was stopped before its first."""
    found = load_checkpoint(run, say)
    sweep(run)  # before anything is written: the disk may be full of what killed processes left
    if found is not None:
        compare(job, found[1], run, say)
        return found
    if old_result(run).get("status") == "done":
        raise RunError(
            f"{run} is finished, and its checkpoints are gone: bring them back, or begin a new run."
        )
    if not (run / "checkpoints").is_dir():
        raise RunError(
            f"{run / 'checkpoints'} is missing, which was there when the run began: bring it back, "
            "or begin a new run."
        )
    say(f"note    {run} was stopped before its first checkpoint: it begins anew")
    return None


def restored(job: Job, found: Found | None) -> tuple[State, Lengths]:
    """The state to go on from, put into ``job``, and how long the logs were then."""
    if found is None:
        return State(), Lengths()
    folder, content = found
    try:
        state, lengths = restore(job, content)
    except RunError as error:
        raise RunError(f"{folder}: {error} Moved away, the one before it is taken.") from error
    state.saved = state.moment
    early_stop = job.config.early_stop
    state.early_stopped = early_stop is not None and state.stale_epochs >= early_stop.patience
    return state, lengths


def continued(
    job: Job, run: Path, state: State, lengths: Lengths, found: Found | None, say: Say
) -> tuple[bool, Entry | None]:
    """Make the run's folder fit the state to go on from.

    Returns whether nothing is left to do, and what model.pt holds.
    """
    best = None
    if found is None:
        describe(job, run)
    else:
        folder, content = found
        read_metrics(run / "metrics.jsonl", lengths.metrics)  # the report would stumble over damage
        write_split(job, run)  # the same; it may have been lost
        best = bring_back_best(folder, say)
        if best:
            write_json(run / "model.json", card(job, state.best) | {"weights": best})
        tell_plan(job, run, state, content, say)
    if is_finished(job, run, state):
        more = "early_stop.patience" if state.early_stopped else "train.epochs"
        say(f"{run} is finished; to go on from its end: {more}=...")
        return True, best
    write_file(run / "config.yaml", job.config.dump())
    write_json(run / "data_path.json", data_path(job))
    write_launcher(run)
    write_json(run / "result.json", old_result(run) | first_result(job))
    return False, best


def tell_plan(job: Job, run: Path, state: State, content: dict[str, Any], say: Say) -> None:
    """Say how the learning rate goes on where the number of epochs has changed."""
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
    """Whether a resumed run has nothing left to do; its test split is not read again."""
    over = state.early_stopped or state.epoch >= job.config.train.epochs
    return over and old_result(run).get("status") == "done"


def old_result(run: Path) -> dict[str, Any]:
    """What result.json said, without why the run stopped; empty where it was lost."""
    with suppress(RunError):
        return {k: v for k, v in read_json(run / "result.json").items() if k != "reason"}
    return {}
