"""The epochs of a run: steps, what is logged and saved between them, and each epoch's judgement."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DataError
from trainer.config import Config
from trainer.console import Say, bar
from trainer.distributed import buffers_from_main, is_main, met_by_all, on_main, world_size
from trainer.duration import Duration
from trainer.errors import NonFiniteLoss, Stopped, WorkerDied
from trainer.guard import Guard
from trainer.insight.board import Board, show_epoch
from trainer.job import Job
from trainer.judge import judge, scalars
from trainer.loop import Batches, predict, reseed, train_steps
from trainer.record import save
from trainer.run_log import RunLog
from trainer.saver import Saver
from trainer.state import State
from trainer.stop import StopRequest
from trainer.tables import HIGHER_IS_BETTER
from transforms.keyed import seed_at, seed_of


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


def train_epochs(session: Session) -> None:
    """Train and judge the epochs that are left, saving as often as ``checkpoint.every`` says."""
    job, state, log, saver = session.job, session.state, session.log, session.saver
    config = job.config
    try:
        while state.epoch < config.train.epochs and not state.early_stopped:
            speed = train_one_epoch(session)
            with judged_weights(session):
                best = end_epoch(session, speed)
            due = is_due(config.checkpoint.every, state, epoch_ended=True)
            if best or due:
                with state.spending("save"):
                    save(job, state, log, saver, best, checkpoint=due)
        if state.saved != state.moment:  # the last state, before testing loads the best weights
            save(job, state, log, saver)
        with state.spending("save"):
            on_main(saver.wait)
    except (Stopped, DataError, WorkerDied) as error:  # these come between two steps
        if isinstance(error, Stopped) or world_size() == 1:  # the others may be in another step
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
    on_main(session.saver.wait)


def train_one_epoch(session: Session) -> float | None:
    """Do the epoch's steps that are left; returns images/s, of none if none were."""
    job, state, log, stop = session.job, session.state, session.log, session.stop
    config, rates = job.config, learning_rates(job)
    log_every, save_every = config.log.every, config.checkpoint.every
    started, images_done, whole = time.perf_counter(), 0, state.batch == 0
    batches = job.train_loader.epoch(state.epoch, start=state.batch)
    steps = train_steps(
        job.network,
        waited_for(batches, state),
        job.loss_fn,
        job.optimizer,
        job.schedule,
        session.guard,
        job.device,
        seed=config.seed,
        step=state.step,
        accumulate=config.train.accumulate,
        clip_grad_norm=config.train.clip_grad_norm,
        precision=job.precision,
        teacher=job.teacher,
        wholes=job.train_loader.sizes(state.batch),
    )
    seconds_before = state.train_seconds
    title = f"epoch {state.epoch + 1}/{config.train.epochs}"
    stop.check()
    for images in bar(steps, title, len(job.train_loader), state.batch, "batch"):
        state.step += 1
        state.batch += 1
        images_done += images
        state.rates, rates = rates, learning_rates(job)  # of this step, and of the next
        state.train_seconds = seconds_before + time.perf_counter() - started
        heed(session, wait=False)
        if job.average is not None:
            job.average.after_step(state.step)
        if is_due(log_every, state):
            heed(session)
            values = state.means.take_logged() | tagged(state.rates)
            if math.isfinite(state.norm):
                values["train/gradient_norm"] = state.norm
            if state.skipped:
                values["train/skipped"] = float(state.skipped)
            with state.spending("log", in_training=True):
                log.step(state.step, state.epoch + 1, values)
        # The last step's state is saved once the epoch is judged: then it is one to go on from.
        if is_due(save_every, state) and state.batch < len(job.train_loader):
            heed(session)
            with state.spending("save", in_training=True):
                save(job, state, log, session.saver)
        session.saver.check()
        stop.check()
    heed(session)  # waits for the last loss: the time is true
    seconds = time.perf_counter() - started
    state.train_seconds = seconds_before + seconds
    speed = images_done / seconds if images_done else None
    if whole and speed:
        state.speeds.append(speed)
    return speed


def waited_for(batches: Batches, state: State) -> Batches:
    """Yield the batches; the time until each is there counts as the data's."""
    began = time.perf_counter()
    for batch in batches:
        state.seconds["data"] += time.perf_counter() - began
        yield batch
        began = time.perf_counter()


def heed(session: Session, wait: bool = True) -> None:
    """Count the losses of the steps done; leave out those that were no number, or end the run.

    Without ``wait`` only of steps that can be known without waiting for the device.
    """
    state, loader = session.state, session.job.train_loader
    for seen in session.guard.seen(wait):
        step, images, loss, norm, correct, scale = seen
        state.norm = norm
        if math.isfinite(loss):
            state.means.add(loss, correct, images)
            if math.isfinite(norm) or seen.is_overflow:  # fp16 goes on at half its scale
                continue
        batch = state.batch - (state.step - step)
        rows = loader.rows(state.epoch, batch)
        ids = [session.job.data.dataset.ids[i] for i in loader.part.indices[rows[:8]].tolist()]
        more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        became = (
            f"gradient's length became {norm}" if math.isfinite(loss) else f"loss became {loss}"
        )
        became += f" (fp16, scaled by {scale:g})" if scale else ""
        what = (
            f"the {became} in step {step + 1} (epoch {state.epoch + 1}, batch {batch + 1}), "
            f"of these images: {', '.join(ids)}{more}"
        )
        if state.skipped >= session.job.config.train.skip_non_finite:
            error = NonFiniteLoss(
                f"{what}. The step was not taken, what was saved before it stays. In a new run, a "
                "lower optimizer.lr, train.clip_grad_norm=1 or a warmup in the scheduler may help."
            )
            raise met_by_all(error)
        state.skipped += 1
        session.say(f"note    {what}; it is left out")


@contextmanager
def judged_weights(session: Session) -> Iterator[None]:
    """Have the model hold what is judged for the time of the body: the average where there is one.

    Batch norm's statistics of a mean of weights are those of the epoch's images, as it saw them.
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
    """Judge the epoch on the validation split and log it; its record if it is the best so far."""
    job, state = session.job, session.state
    config = job.config
    if job.val_loader.will_fork:  # no other thread should be in the middle of something then
        with state.spending("save"):
            session.saver.wait()
    with state.spending("eval"):
        buffers_from_main(job.model)
        batches = session.stop.watch(job.val_loader.epoch(), job.val_loader.rounds)
        logits, labels = predict(job.model, batches, job.precision)
        values = on_main(lambda: scalars(judge(config, logits, labels, job.loss_fn)))
    record = {
        "step": state.step,
        "epoch": state.epoch + 1,
        **state.means.take_epoch(),
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
    with state.spending("log"):
        if is_main():
            board = Board(session.log.events, job, session.say)
            show_epoch(board, state.epoch, state.step, logits, labels)
        session.log.epoch(record, speed, is_best)
    return record if is_best else None


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
    return on_main(lambda: time.monotonic() - state.saved_at >= every.value * 60)  # its clock


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
