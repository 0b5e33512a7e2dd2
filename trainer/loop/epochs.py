"""The epochs of a run: steps, with logging and saving between them, then an evaluation."""

import math
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from datasets import DataError
from trainer.build.job import Job
from trainer.components import is_higher_better
from trainer.components.decisions import as_thresholds, choose_thresholds
from trainer.components.duration import Duration
from trainer.config import Config
from trainer.distributed.micro_batches import reseed
from trainer.distributed.network import buffers_from_main
from trainer.distributed.processes import is_main, mark_common, on_main, world_size
from trainer.insight.board import Board, show_epoch
from trainer.loop.evaluate import (
    answers_of,
    evaluate,
    predict,
    scalars,
    without_answer,
)
from trainer.loop.guard import StepResult
from trainer.loop.record import save
from trainer.loop.state import State
from trainer.loop.step import Batches, Task, train_steps
from trainer.process.console import Say, bar
from trainer.process.errors import NonFiniteLoss, Stopped, WorkerDied
from trainer.process.stop import StopRequest
from trainer.run.log import RunLog
from trainer.run.saver import Saver
from transforms.keyed import seed_at, seed_of


@dataclass
class Session:
    """A run that is going on in this process: its job, and what its epochs need."""

    job: Job
    run: Path
    state: State
    log: RunLog
    saver: Saver
    task: Task
    stop: StopRequest
    say: Say


def train_epochs(session: Session) -> None:
    """Train and evaluate the remaining epochs, and save as often as ``checkpoint.every`` says."""
    job, state, log, saver = session.job, session.state, session.log, session.saver
    config = job.config
    try:
        while state.epoch < config.train.epochs and not state.early_stopped:
            speed = train_one_epoch(session)
            with weights_to_evaluate(session):
                best_metrics = end_epoch(session, speed)
            due = is_due(config.checkpoint.every, state, epoch_ended=True)
            if best_metrics or due:
                with state.spending("save"):
                    save(job, state, log, saver, best_metrics, checkpoint=due)
        if state.saved != state.position:  # before testing loads the best weights
            save(job, state, log, saver)
        with state.spending("save"):
            on_main(saver.wait)
    except (Stopped, DataError, WorkerDied) as error:  # raised between two steps only
        if isinstance(error, Stopped) or world_size() == 1:  # another rank may be in another step
            save_here(session)
        raise
    if state.early_stopped:
        since = state.epoch - state.stale_epochs
        session.say(f"early stop: {config.train.monitor} has been no better since epoch {since}")


def save_here(session: Session) -> None:
    """Save the current state, unless it is saved already, and wait until it is on the disk."""
    collect_results(session)
    if session.state.saved != session.state.position:
        save(session.job, session.state, session.log, session.saver)
    on_main(session.saver.wait)


def train_one_epoch(session: Session) -> float | None:
    """Do the remaining steps of the epoch; returns images/s, or None if there were none."""
    job, state, stop, saver = session.job, session.state, session.stop, session.saver
    rates = learning_rates(job)
    started, images_done, is_whole = time.perf_counter(), 0, state.batch == 0
    seconds_before = state.train_seconds
    then = state.epoch + 1 if state.epoch + 1 < job.config.train.epochs else None
    batches = job.train_loader.epoch(state.epoch, start=state.batch, then=then)
    steps = train_steps(session.task, waited_for(batches, state), state.step)
    title = f"epoch {state.epoch + 1}/{job.config.train.epochs}"
    stop.check()
    for num_images in bar(steps, title, len(job.train_loader), state.batch, "batch"):
        state.step += 1
        state.batch += 1
        images_done += num_images
        state.rates = rates  # of the step just done
        rates = learning_rates(job)  # of the next one
        state.train_seconds = seconds_before + time.perf_counter() - started
        collect_results(session, wait=False)
        if job.average is not None:
            job.average.after_step(state.step)
        log_if_due(session)
        save_if_due(session)
        saver.check()
        stop.check()
    collect_results(session)  # waits for the last loss: the time is true
    seconds = time.perf_counter() - started
    state.train_seconds = seconds_before + seconds
    speed = images_done / seconds if images_done else None
    if is_whole and speed:
        state.speeds.append(speed)
    return speed


def log_if_due(session: Session) -> None:
    """Log the means since the last log line, as often as ``log.every`` says."""
    state = session.state
    if not is_due(session.job.config.log.every, state):
        return
    collect_results(session)
    values = state.means.take_logged() | tagged(state.rates)
    if math.isfinite(state.norm):
        values["train/gradient_norm"] = state.norm
    if state.skipped:
        values["train/skipped"] = float(state.skipped)
    with state.spending("log", in_training=True):
        session.log.step(state.step, state.epoch + 1, values)


def save_if_due(session: Session) -> None:
    """Save a checkpoint within the epoch, as often as ``checkpoint.every`` says.

    The state after the epoch's last step is saved after the evaluation: a resumed run goes on from
    there.
    """
    job, state = session.job, session.state
    if is_due(job.config.checkpoint.every, state) and state.batch < len(job.train_loader):
        collect_results(session)
        with state.spending("save", in_training=True):
            save(job, state, session.log, session.saver)


def waited_for(batches: Batches, state: State) -> Batches:
    """Yield the batches, and count the time that each takes to arrive."""
    began = time.perf_counter()
    for batch in batches:
        state.seconds["data"] += time.perf_counter() - began
        yield batch
        began = time.perf_counter()


def collect_results(session: Session, wait: bool = True) -> None:
    """Add the results of finished steps to the running means.

    A step whose loss or gradient is not finite is skipped, up to ``train.skip_non_finite`` times;
    the next one raises NonFiniteLoss. A gradient too large for fp16 does not count as such a step.
    ``wait=False`` takes only the results that are already on the CPU.
    """
    state = session.state
    for result in session.task.guard.results(wait):
        state.norm = result.norm
        if math.isfinite(result.loss):
            state.means.add(result.loss, result.correct, result.images)
            if math.isfinite(result.norm) or result.is_overflow:  # fp16 goes on at half its scale
                continue
        what = description_of(session, result)
        if state.skipped >= session.job.config.train.skip_non_finite:
            error = NonFiniteLoss(
                f"{what}. The step was not taken, what was saved before it stays. In a new run, a "
                "lower optimizer.lr, train.clip_grad_norm=1 or a warmup in the scheduler may help."
                + about_teacher(session.job)
            )
            raise mark_common(error)
        state.skipped += 1
        session.say(f"note    {what}; it is left out")


def about_teacher(job: Job) -> str:
    """A sentence on the teacher, whose answers may be what is not finite; empty without one."""
    if job.teacher is None:
        return ""
    run = shlex.quote(str(job.teacher.run))
    return f" The teacher may be the cause: python -m trainer.evaluate {run} --split train tells."


def description_of(session: Session, result: StepResult) -> str:
    """Text that names a number that is not finite, its step, and up to eight of its images."""
    state, loader = session.state, session.job.train_loader
    batch = state.batch - (state.step - result.step)
    rows = loader.rows(state.epoch, batch)
    ids = [session.job.data.dataset.ids[i] for i in loader.subset.indices[rows[:8]].tolist()]
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    became = f"loss became {result.loss}"
    if math.isfinite(result.loss):
        became = f"gradient's length became {result.norm}"
    became += f" (fp16, scaled by {result.scale:g})" if result.scale else ""
    return (
        f"the {became} in step {result.step + 1} (epoch {state.epoch + 1}, batch {batch + 1}), "
        f"of these images: {', '.join(ids)}{more}"
    )


@contextmanager
def weights_to_evaluate(session: Session) -> Iterator[None]:
    """Context manager: inside, the model holds the weights to evaluate.

    These are the averaged ones, if ``average`` is set. SWA first recomputes the batch-norm
    statistics on this epoch's training images.
    """
    job, state = session.job, session.state
    if (average := job.average) is None:
        yield
        return
    with average.applied():
        if average.needs_statistics():
            if job.train_loader.will_fork:
                session.saver.wait()
            draws = seed_of(job.config.seed, "average", state.epoch)
            batches = job.train_loader.epoch(state.epoch)
            with state.spending("eval"):
                average.take_statistics(
                    session.stop.watch(batches, job.train_loader.rounds),
                    job.precision.autocast,
                    lambda number: reseed(job.device, seed_at(draws, number)),
                )
        yield


def end_epoch(session: Session, speed: float | None) -> dict[str, Any] | None:
    """Evaluate and log the epoch; returns its metrics if it is the best so far, else None."""
    job, state = session.job, session.state
    logits, labels, epoch_metrics = evaluate_epoch(session)
    thresholds = epoch_metrics.pop("thresholds", None)
    monitored = epoch_metrics[job.config.train.monitor]
    if not math.isfinite(epoch_metrics["val/loss"]):
        monitored = math.nan  # no improvement, whatever it is
        tell_no_answer(session, logits)
    count_stale_epochs(job.config, state, monitored)
    if is_best := is_better(job.config, epoch_metrics, state.best):
        state.best = dict(epoch_metrics)
        if thresholds is not None:
            state.best["thresholds"] = thresholds
    job.schedule.after_epoch(monitored)
    state.epoch += 1
    state.batch = 0
    with state.spending("log"):
        if is_main():
            board = Board(session.log.events, job, session.say)
            answers = answers_of(job.config, logits, labels, as_thresholds(thresholds))
            show_epoch(board, state.epoch, state.step, answers)
        session.log.epoch(epoch_metrics, speed, is_best)
    return state.best if is_best else None


def evaluate_epoch(session: Session) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Evaluate the validation split: logits and labels (on rank 0), and the epoch's metrics.

    The means of the training steps are among the metrics; they begin anew. Of several labels,
    "thresholds" has the best threshold of each on this split.
    """
    job, state = session.job, session.state
    if job.val_loader.will_fork:  # a fork must not find another thread in the middle of a write
        with state.spending("save"):
            session.saver.wait()
    with state.spending("eval"):
        buffers_from_main(job.model)
        batches = session.stop.watch(job.val_loader.epoch(), job.val_loader.rounds)
        logits, labels = predict(job.model, batches, job.precision)
        values, thresholds = on_main(lambda: rate(job, logits, labels))
    epoch_metrics = {
        "step": state.step,
        "epoch": state.epoch + 1,
        **state.means.take_epoch(),
        **{f"val/{name}": value for name, value in values.items()},
        **tagged(state.rates),
        **({} if thresholds is None else {"thresholds": thresholds}),
    }
    return logits, labels, epoch_metrics


def rate(job: Job, logits: Tensor, labels: Tensor) -> tuple[dict[str, float], list[float] | None]:
    """Loss and metrics on the validation split, and of several labels the best thresholds."""
    thresholds = None
    if job.data.several_labels:
        thresholds = choose_thresholds(*answers_of(job.config, logits, labels)[:2])
    values = scalars(evaluate(job.config, logits, labels, job.loss_fn, thresholds))
    return values, None if thresholds is None else thresholds.tolist()


def tell_no_answer(session: Session, logits: Tensor) -> None:
    """Print why an epoch whose ``val/loss`` is not finite cannot be the best."""
    if is_main():
        job, epoch = session.job, session.state.epoch + 1
        why = without_answer(logits, job.val_loader.subset, "val") or "val/loss is not finite"
        session.say(f"note    epoch {epoch} cannot be the best: {why}")


def count_stale_epochs(config: Config, state: State, monitored: float) -> None:
    """Count the epochs without an improvement of ``monitored``; enough of them end the run."""
    if early_stop := config.early_stop:
        state.stale_epochs += 1
        if improves(config, monitored, state.reference, by=early_stop.min_delta):
            state.reference, state.stale_epochs = monitored, 0
        state.early_stopped = state.stale_epochs >= early_stop.patience


def improves(config: Config, value: float, than: float | None, by: float = 0.0) -> bool:
    """Whether ``value`` beats ``than`` by more than ``by``; any number beats None, NaN nothing."""
    if math.isnan(value) or than is None:
        return not math.isnan(value)
    return (value - than if is_higher_better(config.train.monitor) else than - value) > by


def is_due(every: Duration, state: State, epoch_ended: bool = False) -> bool:
    """Whether ``every`` has passed; all ranks must call it.

    Minutes count from the last checkpoint that this process wrote, or from its start.
    """
    if every.unit == "st":
        return state.step % every.value == 0
    if every.unit == "ep":
        return epoch_ended and state.epoch % every.value == 0
    # Clocks differ between ranks, so rank 0 decides.
    return on_main(lambda: time.monotonic() - state.saved_at >= every.value * 60)


def learning_rates(job: Job) -> list[float]:
    """The learning rate of each parameter group."""
    return [float(group["lr"]) for group in job.optimizer.param_groups]


def tagged(rates: list[float]) -> dict[str, float]:
    """Learning rates by their tags in TensorBoard."""
    return {f"lr/group{group}": rate for group, rate in enumerate(rates)}


def is_better(config: Config, epoch_metrics: dict[str, Any], best: dict[str, Any]) -> bool:
    """Whether an epoch is the best so far; between equal ones, the lower validation loss decides.

    Small validation splits reach an accuracy of 1 in an early epoch, which is not the best. An
    epoch whose validation loss is not finite never is.
    """
    if not math.isfinite(epoch_metrics["val/loss"]):
        return False
    value, than = epoch_metrics[config.train.monitor], best.get(config.train.monitor)
    if value == than:
        return bool(epoch_metrics["val/loss"] < best["val/loss"])
    return improves(config, value, than)
