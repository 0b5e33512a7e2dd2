"""A run from its first step to its result: train, judge each epoch, keep the best, test it once."""

import math
import shlex
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datasets import DataError
from trainer.checkpoint import Entry, bring_back_best, load_checkpoint, sweep
from trainer.config import Config
from trainer.console import bar
from trainer.data import eval_loader
from trainer.disk import read_json, write_file, write_json
from trainer.errors import NonFiniteLoss, RunError, Stopped, WorkerDied, in_plain_words
from trainer.guard import Guard
from trainer.job import Job
from trainer.judge import judge, scalars
from trainer.loop import predict, train_steps
from trainer.losses import probabilities
from trainer.record import card, compare, describe, load_best, save, update_result
from trainer.report import write_report
from trainer.run import create_run, lock_run, read_metrics
from trainer.run_log import Lengths, RunLog
from trainer.saver import Saver
from trainer.schedulers import forecast
from trainer.settings import Duration
from trainer.state import State, new_state, restore
from trainer.stop import StopRequest
from trainer.summary import conclude, data_path, introduce
from trainer.tables import HIGHER_IS_BETTER

Say = Callable[[str], None]


@dataclass
class Session:
    """A run that is going on in this process: what the functions below all work with."""

    job: Job
    run: Path
    state: State
    log: RunLog
    saver: Saver
    guard: Guard
    stop: StopRequest
    say: Say


def train(job: Job, runs: Path, resume: Path | None, say: Say, stop: StopRequest) -> Path:
    """Train in a new run folder, or go on in the folder ``resume``; returns the folder.

    Raises Stopped (the state is saved), NonFiniteLoss, RunError (disk, checkpoint, another
    process), and what reading the data raises; each says how to go on. result.json tells how it
    ended, whatever happens.
    """
    config = job.config
    run = resume or create_run(runs, config.name)
    with lock_run(run):
        if resume is None:
            try:
                describe(job, run)
            except BaseException:
                shutil.rmtree(run, ignore_errors=True)  # a failed start leaves no litter
                raise
            state, lengths, best = new_state(job), Lengths(), None
        else:
            state, lengths, best = continued(job, run, say)
            if is_finished(job, run, state):
                more = "early_stop.patience" if state.early_stopped else "train.epochs"
                say(f"{run} is finished; to go on from its end: {more}=...")
                return run
            sweep(run)
            write_file(run / "config.yaml", config.dump())
            write_json(run / "data_path.json", data_path(job))
            update_result(run, status="running")
        introduce(job, say)
        say(f"run     {run}" + (f", going on after step {state.step:,}" if state.step else ""))
        say(f"look    tensorboard --logdir {run.parent.parent}")
        stop.training_begins(config.train.budget.value if config.train.budget else None)
        go_on = f"python -m trainer.train --resume {shlex.quote(str(run))}"
        try:
            restore_buffers = config.train.skip_non_finite > 0
            guard = Guard(job.model, job.optimizer, job.device, restore=restore_buffers)
            with (
                RunLog(run, config, lengths) as log,
                Saver(run, config.checkpoint.keep, log.sync, best) as saver,
            ):
                session = Session(job, run, state, log, saver, guard, stop, say)
                if not state.step:
                    show_inputs(job, log)
                train_epochs(session)
                result = judge_best(session)
        except Stopped as stopped:
            update_result(run, status="stopped", reason=str(stopped))
            stopped.add_note(f"saved after step {state.step:,}; to go on:\n  {go_on}")
            raise
        except Exception as error:
            told = in_plain_words(error)
            with suppress(OSError, RunError):  # the disk may be what failed
                update_result(run, status="failed", reason=str(told) or type(told).__name__)
            told.add_note(f"once that is mended, to go on:\n  {go_on}")
            if told is error:
                raise
            raise told from error
        finally:
            job.train_loader.close()
            job.val_loader.close()
    conclude(run, result, say)
    return run


def train_epochs(session: Session) -> None:
    """Train and judge the epochs that are left, saving as often as ``checkpoint.every`` says."""
    job, state, log, saver = session.job, session.state, session.log, session.saver
    config = job.config
    try:
        while state.epoch < config.train.epochs and not state.early_stopped:
            loss, speed = train_one_epoch(session)
            best = end_epoch(session, loss, speed)
            due = is_due(config.checkpoint.every, state, epoch_ended=True)
            if best or due:
                save(job, state, log, saver, best, checkpoint=due)
        if state.saved != state.moment:  # the last state, before testing loads the best weights
            save(job, state, log, saver)
        saver.wait()
    except (Stopped, DataError, WorkerDied):  # these come between two steps
        save_here(session)
        raise
    if state.early_stopped:
        since = state.epoch - state.stale_epochs
        session.say(f"early stop: {config.train.monitor} has been no better since epoch {since}")


def save_here(session: Session) -> None:
    """Save this moment, unless it is saved already, and wait until that is done."""
    heed(session)
    if session.state.saved != session.state.moment:
        save(session.job, session.state, session.log, session.saver)
    session.saver.wait()


def train_one_epoch(session: Session) -> tuple[float, float | None]:
    """Do the epoch's steps that are left; returns the epoch's mean loss, and images/s if any."""
    job, state, log, stop = session.job, session.state, session.log, session.stop
    config, rates = job.config, learning_rates(job)
    log_every, save_every = config.log.every, config.checkpoint.every
    started, images_done, whole = time.perf_counter(), 0, state.batch == 0
    steps = train_steps(
        job.model,
        job.train_loader.epoch(state.epoch, start=state.batch),
        job.loss_fn,
        job.optimizer,
        job.schedule,
        session.guard,
        job.device,
        seed=config.seed,
        step=state.step,
        accumulate=config.train.accumulate,
        clip_grad_norm=config.train.clip_grad_norm,
    )
    title = f"epoch {state.epoch + 1}/{config.train.epochs}"
    stop.check()
    for loss, images in bar(steps, title, len(job.train_loader), state.batch, "batch"):
        state.step += 1
        state.batch += 1
        images_done += images
        state.loss.add(loss, images)
        state.rates, rates = rates, learning_rates(job)  # of this step, and of the next
        heed(session, wait=False)
        if is_due(log_every, state):
            heed(session)
            values = {"train/loss": state.loss.take_logged(), **tagged(state.rates)}
            skipped = {"train/skipped": float(state.skipped)} if state.skipped else {}
            log.step(state.step, state.epoch + 1, values | skipped)
        # The last step's state is saved once the epoch is judged: then it is one to go on from.
        if is_due(save_every, state) and state.batch < len(job.train_loader):
            heed(session)
            save(job, state, log, session.saver)
        session.saver.check()
        stop.check()
    heed(session)
    mean = state.loss.of_epoch()  # waits for the last step: the time is true
    seconds = time.perf_counter() - started
    state.train_seconds += seconds
    speed = images_done / seconds if images_done else None
    if whole and speed:
        state.speeds.append(speed)
    return mean, speed


def heed(session: Session, wait: bool = True) -> None:
    """Leave out steps whose loss or gradient was no number, as many as may be; else end the run.

    Without ``wait`` only those that can be known without waiting for the device.
    """
    state, loader = session.state, session.job.train_loader
    for step, loss, norm in session.guard.noticed(wait):
        batch = state.batch - (state.step - step)
        rows = loader.rows(state.epoch, batch)
        ids = [session.job.data.dataset.ids[i] for i in loader.part.indices[rows[:8]].tolist()]
        more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        became = (
            f"gradient's length became {norm}" if math.isfinite(loss) else f"loss became {loss}"
        )
        what = (
            f"the {became} in step {step + 1} (epoch {state.epoch + 1}, batch {batch + 1}), "
            f"of these images: {', '.join(ids)}{more}"
        )
        if state.skipped >= session.job.config.train.skip_non_finite:
            raise NonFiniteLoss(
                f"{what}. The step was not taken, the checkpoints before it stay. "
                "Try a lower optimizer.lr, train.clip_grad_norm=1, a warmup in the scheduler, or "
                f"train.skip_non_finite={state.skipped + 10} to leave such steps out."
            )
        state.skipped += 1
        session.say(f"note    {what}; it is left out")


def end_epoch(session: Session, loss: float, speed: float | None) -> dict[str, Any] | None:
    """Judge the epoch on the validation split and log it; its record if it is the best so far."""
    job, state = session.job, session.state
    config = job.config
    if job.val_loader.will_fork:  # no other thread should be in the middle of something then
        session.saver.wait()
    logits, labels = predict(job.model, session.stop.watch(job.val_loader.epoch()))
    values = scalars(judge(config, logits, labels, job.loss_fn))
    record = {
        "step": state.step,
        "epoch": state.epoch + 1,
        "train/loss_epoch": loss,
        **{f"val/{name}": value for name, value in values.items()},
        **tagged(state.rates),
    }
    monitored = record[config.train.monitor]
    if early_stop := config.early_stop:
        state.stale_epochs += 1
        if improves(config, monitored, state.reference, by=early_stop.min_delta):
            state.reference, state.stale_epochs = monitored, 0
        state.early_stopped = state.stale_epochs >= early_stop.patience
    is_best = is_better(config, record, state.best)
    if is_best:
        state.best = record
    job.schedule.after_epoch(monitored)
    state.epoch += 1
    state.batch = 0
    state.loss.begin_epoch()
    session.log.epoch(record, speed, is_best)
    return record if is_best else None


def judge_best(session: Session) -> dict[str, Any]:
    """Judge the best weights on the test split, for the first and only time; the run's result."""
    job, run, state, log = session.job, session.run, session.state, session.log
    if not state.best:
        raise NonFiniteLoss(f"{job.config.train.monitor} was never a number: no epoch is the best.")
    load_best(job.model, run)
    part = job.data.parts["test"]
    layout = job.train_loader.channels_last
    loader = eval_loader(job.config, part, job.device, layout)
    logits, labels = predict(job.model, session.stop.watch(loader.epoch()))
    loader.close()
    test = judge(job.config, logits, labels, job.loss_fn)
    log.events.scalars({f"test/{name}": v for name, v in scalars(test).items()}, state.step)
    # The first epoch warms caches up; of a run of one epoch there is no other.
    speeds = state.speeds[1:] or state.speeds
    best = {name: value for name, value in state.best.items() if not name.startswith("lr/")}
    result = {
        "best": best,
        "test": test,
        "images_per_second": statistics.median(speeds) if speeds else None,
        "train_seconds": state.train_seconds,
        "epochs": state.epoch,
        "early_stopped": state.early_stopped,
        "skipped_steps": state.skipped,
    }
    log.flush()
    epochs = [line for line in read_metrics(run / "metrics.jsonl") if "train/loss_epoch" in line]
    write_report(
        run / "report",
        [line | {"train/loss": line["train/loss_epoch"]} for line in epochs],
        job.data.classes,
        probabilities(job.config.loss.name, logits),
        labels,
        [job.data.dataset.ids[index] for index in part.indices.tolist()],
        job.config.dump(),
        read_json(run / "result.json") | result,
    )
    log.sync()
    return update_result(run, status="done", **result)  # last: a run that is done has all its files


def continued(job: Job, run: Path, say: Say) -> tuple[State, Lengths, Entry | None]:
    """The state to go on from, how long the logs were then, and what model.pt held."""
    found = load_checkpoint(run, say)
    if found is None:
        say(f"note    {run} was stopped before its first checkpoint: it begins anew")
        describe(job, run)
        return new_state(job), Lengths(), None
    folder, content = found
    compare(job, content, run, say)
    state, lengths = restore(job, content)
    state.saved = state.moment
    best = bring_back_best(run, folder, content)
    if best:
        write_json(run / "model.json", card(job, state.best) | {"weights": best})
    early_stop = job.config.early_stop
    state.early_stopped = early_stop is not None and state.stale_epochs >= early_stop.patience
    began, epochs = content["settings"]["train"]["epochs"], job.config.train.epochs
    if job.config.scheduler and began != epochs:
        name, steps = job.config.scheduler.name, len(job.train_loader)
        rates = forecast(job.schedule, job.optimizer, epochs - state.epoch, steps)
        if rates is None:
            say(f"note    {name} goes on as before, by what it watches")
        else:
            shown = f"{rates[0]:.3g} in epoch {state.epoch + 1}" if rates else ""
            if len(rates) > 1:
                shown += f" to {rates[-1]:.3g} in epoch {epochs}, at most {max(rates):.3g}"
            say(f"note    {name} keeps the {began} epochs that it was planned for: lr {shown}")
    return state, lengths, best


def is_finished(job: Job, run: Path, state: State) -> bool:
    """Whether a resumed run has nothing left to do; its test split is not read again."""
    over = state.early_stopped or state.epoch >= job.config.train.epochs
    return over and read_json(run / "result.json")["status"] == "done"


def improves(config: Config, value: float, than: float | None, by: float = 0.0) -> bool:
    """Whether a monitored ``value`` beats ``than`` by more than ``by``; NaN never does."""
    if math.isnan(value) or than is None:
        return not math.isnan(value)
    higher_is_better = config.train.monitor.removeprefix("val/") in HIGHER_IS_BETTER
    return (value - than if higher_is_better else than - value) > by


def is_due(every: Duration, state: State, epoch_ended: bool = False) -> bool:
    """Whether something that happens once in ``every`` is to happen now."""
    if every.unit == "st":
        return state.step % every.value == 0
    if every.unit == "ep":
        return epoch_ended and state.epoch % every.value == 0
    return time.monotonic() - state.saved_at >= every.value * 60


def learning_rates(job: Job) -> list[float]:
    """The rate of each parameter group."""
    return [float(group["lr"]) for group in job.optimizer.param_groups]


def tagged(rates: list[float]) -> dict[str, float]:
    """Rates by their tags in TensorBoard."""
    return {f"lr/group{group}": rate for group, rate in enumerate(rates)}


def is_better(config: Config, record: dict[str, Any], best: dict[str, Any]) -> bool:
    """Whether an epoch is the best so far; of two equals, the one of lower validation loss.

    Small validation splits reach an accuracy of 1 in an early epoch, which is not the best.
    """
    value, than = record[config.train.monitor], best.get(config.train.monitor)
    if value == than:
        return bool(record["val/loss"] < best["val/loss"])
    return improves(config, value, than)


def show_inputs(job: Job, log: RunLog) -> None:
    """Give TensorBoard the configuration and the first training images as the model sees them."""
    log.events.config(job.config.dump())
    if count := job.config.log.images:
        rows = torch.arange(min(count, len(job.train_loader.part)))
        log.events.images(job.train_loader.part.sample(rows)[0])
