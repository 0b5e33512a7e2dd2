"""A run from its beginning, or from where it stood, to its result: train, test the best once."""

import shlex
import shutil
import statistics
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint import Entry, bring_back_best, load_checkpoint, sweep
from trainer.disk import read_json, write_file, write_json
from trainer.distributed import alone, everywhere, from_main, is_main, on_main, was_met_by_all
from trainer.epochs import Session, train_epochs
from trainer.errors import NonFiniteLoss, RunError, Stopped, in_plain_words
from trainer.guard import Guard
from trainer.insight.board import show_end, show_start
from trainer.insight.report import write_report
from trainer.job import Job
from trainer.judge import judge, scalars
from trainer.loader import Part
from trainer.loop import predict
from trainer.losses import probabilities
from trainer.parts import eval_loader
from trainer.record import (
    best_weights,
    card,
    compare,
    describe,
    first_result,
    load_best,
    update_result,
    write_launcher,
    write_split,
)
from trainer.run import create_run, lock_run, read_metrics
from trainer.run_log import Lengths, NoLog, RunLog
from trainer.saver import Saver
from trainer.schedulers import forecast
from trainer.sharding import is_sharded, model_part
from trainer.state import State, restore
from trainer.stop import StopRequest
from trainer.summary import conclude, data_path, introduce, shows_tensorboard

Say = Callable[[str], None]
Found = tuple[Path, dict[str, Any]]  # a checkpoint's folder, and its content


def train(job: Job, runs: Path, resume: Path | None, say: Say, stop: StopRequest) -> Path:
    """Train in a new run folder, or go on in the folder ``resume``; returns the folder.

    Raises Stopped (the state is saved), NonFiniteLoss, RunError (disk, checkpoint, another
    process), and what reading the data raises; each says how to go on. result.json tells how it
    ended, whatever happens.
    """
    config = job.config
    stop.training_begins(config.train.budget.value if config.train.budget else None)
    with ExitStack() as held:
        run, found = on_main(lambda: taken(job, runs, resume, held, say))
        if resume is None:
            state, lengths, best = State(), Lengths(), None
        else:
            state, lengths = everywhere(lambda: restored(job, found))
            over, best = on_main(lambda: continued(job, run, state, lengths, found, say))
            if over:
                return run
        go_on = f"python -m trainer.train --resume {shlex.quote(str(run))}"
        try:
            introduce(job, say)
            say(f"run     {run}" + (f", going on after step {state.step:,}" if state.step else ""))
            if shows_tensorboard(config):
                say(f"look    tensorboard --logdir {shlex.quote(str(run.parent.parent))}")
            goes_on = config.train.skip_non_finite > 0 or job.precision.scaler.is_enabled()
            guard = Guard(job.model, job.optimizer, job.device, restore=goes_on)
            with (
                RunLog(run, config, lengths, job.device) if is_main() else NoLog() as log,
                Saver(run, config.checkpoint.keep, log.sync, best) as saver,
            ):
                session = Session(job, run, state, log, saver, guard, stop, say)
                state.seconds["start"] += stop.elapsed()
                if is_main():
                    with state.spending("log"):
                        log.begin_anew_what_is_lost(say)
                        show_start(log.events, job, run, state.step, say)
                train_epochs(session)
                result = judge_best(session)
        except Stopped as stopped:
            if is_main():
                with suppress(OSError, RunError):
                    update_result(run, status="stopped", reason=str(stopped))
            stopped.add_note(f"saved after step {state.step:,}; to go on:\n  {go_on}")
            raise
        except Exception as error:
            told = in_plain_words(error) if was_met_by_all(error) else alone(error)
            if is_main():
                with suppress(OSError, RunError):  # the disk may be what failed
                    update_result(run, status="failed", reason=str(told) or type(told).__name__)
            how = "once it is mended"
            if isinstance(told, NonFiniteLoss):
                how = "leaving such steps out"
                go_on += f" train.skip_non_finite={state.skipped + 10}"
            told.add_note(f"to go on, {how}:\n  {go_on}")
            if told is error:
                raise
            raise told from error
        finally:
            job.train_loader.close()
            job.val_loader.close()
    if result:
        conclude(run, config, result, say)
    return run


def taken(
    job: Job, runs: Path, resume: Path | None, held: ExitStack, say: Say
) -> tuple[Path, Found | None]:
    """A new run's folder, or the one to go on in with the state that was found; held from now on.

    ``held`` is for the main process to let it go.
    """
    run = resume or create_run(runs, job.config.name)
    held.enter_context(lock_run(run))
    if resume is not None:
        return run, found_in(run, job, say)
    try:
        describe(job, run)
    except BaseException:
        shutil.rmtree(run, ignore_errors=True)  # a failed start leaves no litter
        raise
    return run, None


def judge_best(session: Session) -> dict[str, Any]:
    """Judge the best weights on the test split, for the first and only time; the run's result.

    Empty in processes that are not the main one.
    """
    job, run, state, log = session.job, session.run, session.state, session.log
    if not state.best:
        raise NonFiniteLoss(f"{job.config.train.monitor} was never a number: no epoch is the best.")
    if is_sharded(job.model):
        job.model.load_state_dict(model_part(job.model, on_main(lambda: best_weights(run))))
    else:
        on_main(lambda: load_best(job.model, run))
        from_main(job.model)
    part = job.data.parts["test"]
    layout = job.train_loader.channels_last
    with state.spending("eval"):
        with closing(eval_loader(job.config, part, job.device, layout)) as loader:
            batches = session.stop.watch(loader.epoch(), loader.rounds)
            logits, labels = predict(job.model, batches, job.precision)
    if not is_main():
        return {}
    with state.spending("eval"):
        test = judge(job.config, logits, labels, job.loss_fn)
    with state.spending("log"):
        log.scalars({f"test/{name}": v for name, v in scalars(test).items()}, state.step)
        show_end(log.events, run, job, part, logits, labels, state.step, session.say)
    # The first epoch warms caches up; of a run of one epoch there is no other.
    speeds = state.speeds[1:] or state.speeds
    best = {name: value for name, value in state.best.items() if not name.startswith("lr/")}
    result = {
        "best": best,
        "test": test,
        "images_per_second": statistics.median(speeds) if speeds else None,
        "train_seconds": state.train_seconds,
        "seconds": spent(state),
        "epochs": state.epoch,
        "early_stopped": state.early_stopped,
        "skipped_steps": state.skipped,
    }
    with state.spending("log"):
        log.flush()
        if "report" in job.config.log.show:
            report(session, part, logits, labels, result)
    result["seconds"] = spent(state)
    log.sync()
    return update_result(run, status="done", **result)  # last: a run that is done has all its files


def report(
    session: Session, part: Part, logits: Tensor, labels: Tensor, result: dict[str, Any]
) -> None:
    """Write the report on the test split ``part``; what cannot be told is no reason to fail."""
    job, run = session.job, session.run
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "train/loss_epoch" in line]
    numbers, num_classes = part.indices.tolist(), len(job.data.classes)
    try:
        write_report(
            run / "report",
            history=lines,
            classes=job.data.classes,
            probabilities=probabilities(job.config.loss.name, logits),
            labels=labels,
            ids=[job.data.dataset.ids[number] for number in numbers],
            picture_of=lambda row: job.data.dataset.image(numbers[row]),
            class_balance={
                name: torch.bincount(part.labels, minlength=num_classes).tolist()
                for name, part in job.data.parts.items()
            },
            config_text=job.config.dump(),
            result=read_json(run / "result.json") | result,
            run=run,
        )
    except (OSError, RunError):  # the disk, which the result needs too
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        session.say(f"note    the report cannot be written: {reason}")


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


def spent(state: State) -> dict[str, float]:
    """Seconds by what they went to, over all starts of the run."""
    compute = state.train_seconds - state.seconds["data"] - state.aside
    parts = state.seconds | {"compute": compute}
    return {name: parts[name] for name in ("start", "data", "compute", "eval", "save", "log")}
