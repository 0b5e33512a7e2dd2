"""A run from its first step to its result: train, judge each epoch, keep the best, test it once."""

import math
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint import load_checkpoint, sweep
from trainer.config import Config
from trainer.console import bar
from trainer.data import eval_loader
from trainer.errors import NonFiniteLoss, RunError, Stopped
from trainer.job import Job
from trainer.judge import judge, scalars
from trainer.loop import predict, train_steps
from trainer.losses import probabilities
from trainer.record import (
    describe,
    keep_best,
    load_best,
    refuse_other_run,
    save_state,
    update_result,
)
from trainer.report import write_report
from trainer.run import (
    create_run,
    lock_run,
    read_json,
    read_metrics,
    write_file,
    write_json,
)
from trainer.run_log import RunLog
from trainer.settings import Duration
from trainer.state import State, new_state, restore
from trainer.stop import StopRequest
from trainer.summary import conclude, data_path, introduce
from trainer.tables import HIGHER_IS_BETTER

Say = Callable[[str], None]


def train(job: Job, runs: Path, resume: Path | None, say: Say) -> Path:
    """Train in a new run folder, or go on in the folder ``resume``; returns the folder.

    Raises Stopped (a signal came, the state is saved), NonFiniteLoss, and RunError (disk,
    checkpoint, another process). result.json tells how it ended, whatever happens.
    """
    run = resume or create_run(runs, job.config.name)
    with lock_run(run), StopRequest() as stop:
        if resume is None:
            try:
                describe(job, run)
            except BaseException:
                shutil.rmtree(run, ignore_errors=True)  # a failed start leaves no litter
                raise
            state, metrics_length = new_state(job), 0
        else:
            state, metrics_length = continued(job, run, say)
            if is_finished(job, run, state):
                more = "early_stop.patience" if state.early_stopped else "train.epochs"
                say(f"{run} is finished; to go on from its end: {more}=...")
                return run
            sweep(run)
            write_file(run / "config.yaml", job.config.dump())
            write_json(run / "data_path.json", data_path(job))
            update_result(run, status="running")
        introduce(job, say)
        say(f"run     {run}" + (f", going on after step {state.step:,}" if state.step else ""))
        say(f"look    tensorboard --logdir {run.parent.parent}")
        try:
            first_step = None if resume is None else state.step + (state.step > 0)
            with RunLog(run, job.config, first_step, metrics_length) as log:
                if not state.step:
                    show_inputs(job, log)
                train_epochs(job, run, state, log, stop, say)
                result = judge_best(job, run, state, log, stop)
        except Stopped:
            update_result(run, status="stopped")
            go_on = f"python -m trainer.train --resume {run}"
            raise Stopped(f"stopped and saved; to go on:\n  {go_on}") from None
        except BaseException as error:
            update_result(run, status="failed", reason=str(error) or type(error).__name__)
            if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
                raise RunError(
                    f"{str(error).strip()} Where memory ran out, fewer loader.workers help. "
                    f"To go on:\n  python -m trainer.train --resume {run}"
                ) from None
            raise
    conclude(run, result, say)
    return run


def train_epochs(
    job: Job, run: Path, state: State, log: RunLog, stop: StopRequest, say: Say
) -> None:
    """Train and judge the epochs that are left, saving as often as ``checkpoint.every`` says."""
    config = job.config
    try:
        while state.epoch < config.train.epochs and not state.early_stopped:
            loss, speed = train_one_epoch(job, run, state, log, stop)
            end_epoch(job, run, state, log, stop, loss, speed)
            if is_due(config.checkpoint.every, state, epoch_ended=True):
                save_state(job, run, state, log)
    except Stopped:
        save_state(job, run, state, log)
        raise
    if not is_due(config.checkpoint.every, state, epoch_ended=True):
        save_state(job, run, state, log)  # the last state, before testing loads the best weights
    if state.early_stopped:
        since = state.epoch - state.stale_epochs
        say(f"early stop: {config.train.monitor} has been no better since epoch {since}")


def train_one_epoch(
    job: Job, run: Path, state: State, log: RunLog, stop: StopRequest
) -> tuple[float, float]:
    """Do the epoch's steps that are left; returns the epoch's mean loss, and images/s."""
    config, rates = job.config, learning_rates(job)
    log_every, save_every = config.log.every, config.checkpoint.every
    started, images_before = time.perf_counter(), state.loss.in_epoch
    steps = train_steps(
        job.model,
        job.train_loader.epoch(state.epoch, start=state.batch),
        job.loss_fn,
        job.optimizer,
        job.schedule,
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
        state.loss.add(loss, images)
        state.rates, rates = rates, learning_rates(job)  # of this step, and of the next
        if is_due(log_every, state):
            mean = finite(state.loss.take_logged(), state)
            log.step(state.step, state.epoch + 1, {"train/loss": mean, **tagged(state.rates)})
        # The last step's state is saved once the epoch is judged: then it is one to go on from.
        if is_due(save_every, state) and state.batch < len(job.train_loader):
            save_state(job, run, state, log)
        stop.check()
    mean = finite(state.loss.of_epoch(), state)  # waits for the last step: the time is true
    seconds = time.perf_counter() - started
    state.train_seconds += seconds
    speed = (state.loss.in_epoch - images_before) / seconds
    if images_before == 0:
        state.speeds.append(speed)
    return mean, speed


def end_epoch(
    job: Job, run: Path, state: State, log: RunLog, stop: StopRequest, loss: float, speed: float
) -> None:
    """Judge the epoch on the validation split, keep the weights if they are the best, log it."""
    config = job.config
    logits, labels = predict(job.model, stop.watch(job.val_loader.epoch()))
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
        keep_best(job, run, record)
        state.best = record
    job.schedule.after_epoch(monitored)
    state.epoch += 1
    state.batch = 0
    state.loss.begin_epoch()
    log.epoch(record, speed, is_best)


def judge_best(job: Job, run: Path, state: State, log: RunLog, stop: StopRequest) -> dict[str, Any]:
    """Judge the best weights on the test split, for the first and only time; the run's result."""
    if not state.best:
        raise NonFiniteLoss(f"{job.config.train.monitor} was never a number: no epoch is the best.")
    load_best(job.model, run)
    part = job.data.parts["test"]
    layout = job.train_loader.channels_last
    batches = eval_loader(job.config, part, job.device, layout).epoch()
    logits, labels = predict(job.model, stop.watch(batches))
    test = judge(job.config, logits, labels, job.loss_fn)
    log.events.scalars({f"test/{name}": v for name, v in scalars(test).items()}, state.step)
    # The first epoch warms caches up; of a run of one epoch there is no other.
    speeds = state.speeds[1:] or state.speeds
    best = {name: value for name, value in state.best.items() if not name.startswith("lr/")}
    result = update_result(
        run,
        status="done",
        best=best,
        test=test,
        images_per_second=statistics.median(speeds) if speeds else None,
        train_seconds=state.train_seconds,
        epochs=state.epoch,
        early_stopped=state.early_stopped,
    )
    epochs = [line for line in read_metrics(run / "metrics.jsonl") if "train/loss_epoch" in line]
    write_report(
        run / "report",
        [line | {"train/loss": line["train/loss_epoch"]} for line in epochs],
        job.data.classes,
        probabilities(job.config.loss.name, logits),
        labels,
        [job.data.dataset.ids[index] for index in part.indices.tolist()],
        job.config.dump(),
        result,
    )
    return result


def continued(job: Job, run: Path, say: Say) -> tuple[State, int]:
    """The state to go on from, and the length of metrics.jsonl that belongs to it."""
    content = load_checkpoint(run, say)
    if content is None:
        say(f"note    {run} was stopped before its first checkpoint: it begins anew")
        return new_state(job), 0
    refuse_other_run(job, content, run)
    state, length = restore(job, content), int(content["metrics_length"])
    early_stop = job.config.early_stop
    state.early_stopped = early_stop is not None and state.stale_epochs >= early_stop.patience
    if job.config.scheduler and content["settings"]["train"]["epochs"] != job.config.train.epochs:
        name = job.config.scheduler.name
        say(f"note    {name} goes on with the number of epochs that it began with")
    return state, length


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


def finite(loss: float, state: State) -> float:
    """``loss``, or NonFiniteLoss where training has gone astray."""
    if math.isfinite(loss):
        return loss
    raise NonFiniteLoss(
        f"the loss became {loss} by step {state.step} (epoch {state.epoch + 1}). "
        "Try a lower optimizer.lr, train.clip_grad_norm=1, or a warmup in the scheduler."
    )


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
