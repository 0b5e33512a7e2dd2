"""A run from its beginning, or from its checkpoint, to its result: train, then test the best."""

import shlex
import shutil
import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from trainer.build.job import Job
from trainer.build.prepare import prepare
from trainer.comparing.grown import grown
from trainer.comparing.predictions import PREDICTIONS
from trainer.components.decisions import as_thresholds, number_of_each
from trainer.components.own import COPY
from trainer.config import Config
from trainer.distributed import processes
from trainer.distributed.processes import is_main, on_every_rank, on_main
from trainer.input.subset import Subset, decoded
from trainer.insight.board import Board, show_end, show_start
from trainer.insight.findings import ReportData
from trainer.insight.report import write_report
from trainer.insight.samples import THUMBNAIL
from trainer.loop.answers import (
    Judged,
    calibrate_best,
    part_of,
    predict_best,
    write_known,
    write_predictions,
)
from trainer.loop.epochs import Session, train_epochs
from trainer.loop.evaluate import (
    each_loss,
    evaluate,
    scalars,
    what_may_help,
    without_answer,
)
from trainer.loop.guard import Guard
from trainer.loop.record import about_data, set_aside, update_result, write_description
from trainer.loop.resume import Found, adopt, check, restore, send_content
from trainer.loop.state import State
from trainer.loop.step import new_task
from trainer.loop.summary import conclude, introduce, pictures_of_a_tag, shows_tensorboard
from trainer.process.console import Say, say, say_but_no_weights
from trainer.process.errors import (
    ComponentError,
    NoAnswer,
    NonFiniteLoss,
    RunError,
    Stopped,
    in_plain_words,
)
from trainer.process.launch import as_typed
from trainer.process.stop import StopRequest
from trainer.run.checkpoint import Entry, checkpoints
from trainer.run.disk import read_json
from trainer.run.folder import create_run, data_path_of, lock_run, read_metrics, tensorboard_command
from trainer.run.log import Lengths, NoLog, RunLog
from trainer.run.saver import Saver


def prepare_run(config: Config, folder: Path | None) -> Job:
    """The Job of a run that begins, or of the one in ``folder``, which goes on; prints notes."""
    began = on_main(lambda: data_path_of(folder))
    is_restored = on_main(lambda: folder is not None and bool(checkpoints(folder)))
    told = say_but_no_weights if is_restored else say
    return on_every_rank(lambda: prepare(config, told, began, is_restored=is_restored))


class Start(NamedTuple):
    """Where a run begins or goes on: its folder, its counters, the lengths of its logs.

    best_entry: the manifest entry of model.pt, if there is one.  is_finished: no work is left.
    """

    run: Path
    state: State
    lengths: Lengths
    best_entry: Entry | None = None
    is_finished: bool = False


def fit(job: Job, runs: Path, resume: Path | None, say: Say, stop: StopRequest) -> Path:
    """Train in a new run folder, or go on in the folder ``resume``; returns the folder.

    Raises Stopped (the state is saved), NonFiniteLoss, RunError (disk, checkpoint), ProcessFailed
    (one rank failed), and what reading the data raises. Once training has begun, each of them says
    how to go on, and result.json holds how the run ended.
    """
    budget = job.config.train.budget
    stop.training_begins(budget.value if budget else None)
    with ExitStack() as held:
        start = open_run(job, runs, resume, held, say)
        if start.is_finished:
            return start.run
        with ending(job, start):
            if start.state.epoch < job.config.train.epochs:
                job.train_loader.begin(start.state.epoch, start.state.batch)
            with open_session(job, start, say, stop) as session:
                train_epochs(session)
                result = evaluate_best(session)
        if result:
            conclude(start.run, job.config, result, say)
    return start.run


def open_run(job: Job, runs: Path, resume: Path | None, held: ExitStack, say: Say) -> Start:
    """A new run, or ``resume`` restored into ``job``. Rank 0's ``held`` gets the folder's lock."""
    run, found = on_main(lambda: take(job, runs, resume, held, say))
    job.folder = run
    if resume is None:
        return Start(run, State(), Lengths())
    found = send_content(found)
    state, lengths = processes.on_every_rank(lambda: restore(job, found))
    is_finished, best_entry = on_main(lambda: adopt(job, run, state, lengths, found, say))
    return Start(run, state, lengths, best_entry, is_finished)


def take(
    job: Job, runs: Path, resume: Path | None, held: ExitStack, say: Say
) -> tuple[Path, Found | None]:
    """On rank 0: make and lock a new run's folder, or lock ``resume`` and find its checkpoint."""
    run = resume or create_run(runs, job.config.name)
    held.enter_context(lock_run(run))
    if resume is not None:
        return run, check(run, job, say)
    try:
        write_description(job, run)
    except BaseException:
        shutil.rmtree(run, ignore_errors=True)  # a failed start leaves no litter
        raise
    return run, None


@contextmanager
def open_session(job: Job, start: Start, say: Say, stop: StopRequest) -> Iterator[Session]:
    """Context manager: print what is trained; inside, the run's log and saver are open."""
    config, state, run = job.config, start.state, start.run
    introduce(job, say)
    say(f"run     {run}" + (f", going on after step {state.step:,}" if state.step else ""))
    if shows_tensorboard(config):
        say(f"look    {tensorboard_command(run.parent.parent, pictures_of_a_tag(config))}")
    goes_on = config.train.skip_non_finite > 0 or job.precision.scaler.is_enabled()
    guard = Guard(
        job.model,
        job.optimizer,
        config.train.clip_grad_norm,
        restore=goes_on,
        several_labels=job.data.several_labels,
    )
    with (
        RunLog(run, config, start.lengths, job.device) if is_main() else NoLog() as log,
        Saver(run, config.checkpoint.keep, log.sync, start.best_entry) as saver,
    ):
        session = Session(job, run, state, log, saver, new_task(job, guard), stop, say)
        state.seconds["start"] += stop.elapsed()
        if is_main():
            with state.spending("log"):
                log.begin_anew_what_is_lost(say)
                show_start(Board(log.events, job, say), run, state.step)
        yield session


@contextmanager
def ending(job: Job, start: Start) -> Iterator[None]:
    """Context manager: if the body raises, write why into result.json, and add how to go on.

    An error of only one rank becomes ProcessFailed. The loaders are closed at the end.
    """
    run, state = start.run, start.state
    go_on = f"{as_typed('train')} --resume {shlex.quote(str(run))}"
    try:
        yield
    except Stopped as stopped:
        finish(run, status="stopped", reason=str(stopped))
        stopped.add_note(f"saved after step {state.step:,}; to go on:\n  {go_on}")
        raise
    except Exception as error:
        is_common = processes.is_common(error)
        failure = in_plain_words(error) if is_common else processes.as_process_failure(error)
        finish(run, status="failed", reason=str(failure) or type(failure).__name__)
        how = "once it is repaired"
        if isinstance(failure, NoAnswer):
            how = "with more epochs"
            go_on += f" train.epochs={2 * job.config.train.epochs}"
        elif isinstance(failure, ComponentError) and job.config.own.sha256:
            how = f"with {COPY} as it is (what is mended in it needs a new run)"
        elif isinstance(failure, NonFiniteLoss):
            how = "leaving such steps out"
            go_on += f" train.skip_non_finite={state.skipped + 10}"
        failure.add_note(f"to go on, {how}:\n  {go_on}")
        if failure is error:
            raise
        raise failure from error
    finally:
        job.train_loader.close()
        job.val_loader.close()


def finish(run: Path, **values: str) -> None:
    """Write into result.json how the run ended, if this is rank 0 and the disk allows it."""
    if is_main():
        with suppress(OSError, RunError):  # the disk may be what failed
            update_result(run, **values)


def evaluate_best(session: Session) -> dict[str, Any]:
    """Evaluate the best weights on test; write and return the run's result ({} on other ranks)."""
    job, run, state, log = session.job, session.run, session.state, session.log
    if not state.best:
        monitor = job.config.train.monitor
        what = f"no epoch is the best: {monitor} was never a finite number"
        helps = f"Where val/loss is NaN too: {what_may_help(job.config, job.model)}"
        raise processes.mark_common(NoAnswer(f"{what}. {helps}"))
    subset, tta = job.data.subsets["test"], job.config.evaluation.tta
    parts, known = predict_best(session)
    logits, labels = parts["test"][tta]
    thresholds = as_thresholds(state.best.get("thresholds"))
    require_answers(job, {part: found[tta][0] for part, found in parts.items()})
    if not is_main():
        return {}
    with state.spending("eval"):
        test = evaluate(job.config, logits, labels, job.loss_fn, thresholds)
        val = scalars(evaluate(job.config, *parts["val"][tta], job.loss_fn, thresholds))
        chosen = {name: found[tta] for name, found in parts.items()}
        judged = calibrate_best(session, chosen, thresholds)
        plain = {}
        novelty = write_known(session, known) if known else None
        if tta:
            plain = scalars(evaluate(job.config, *parts["test"][None], job.loss_fn, thresholds))
    with state.spending("log"):
        log.scalars({f"test/{name}": v for name, v in scalars(test).items()}, state.step)
        tested = set_aside(run, test, job.data.classes)
        # Now the run only draws, embeds and writes: a sweep that sees "test" begins the next one.
        update_result(run, dataset=about_data(job), test=tested)
        write_table(session, chosen, judged)
        show_end(Board(log.events, job, session.say), run, subset, judged.raw["test"], state.step)
    # The first epoch warms up the caches, so it counts only if it is the only one.
    speeds = state.speeds[1:] or state.speeds
    best = {name: v for name, v in state.best.items() if not name.startswith("lr/")}
    best.pop("thresholds", None)  # model.json has them
    result = {
        "best": best,
        "val": val,
        "test": tested,
        "calibration": judged.result,
        **({"tta": tta, "test_plain": plain} if tta else {}),
        **({"novelty": novelty} if novelty else {}),
        "images_per_second": statistics.median(speeds) if speeds else None,
        "train_seconds": state.train_seconds,
        "seconds": spent(state),
        "epochs": state.epoch,
        "early_stopped": state.early_stopped,
        "skipped_steps": state.skipped,
        **since_before(run, job.data.several_labels),
    }
    with state.spending("log"):
        log.flush()
        shutil.rmtree(run / "report", ignore_errors=True)  # of an earlier end
        if "report" in job.config.log.show:
            report(session, subset, judged, result)
    result["seconds"] = spent(state)
    log.sync()
    return update_result(run, status="done", **result)  # last: a run that is done has all its files


def require_answers(job: Job, logits: Mapping[str, Tensor]) -> None:
    """Raise NoAnswer on all ranks if a logit of val or test on rank 0 is NaN or infinite."""
    for part, found in logits.items():
        if what := on_main(partial(without_answer, found, job.data.subsets[part], part)):
            raise processes.mark_common(NoAnswer(f"{what}. {what_may_help(job.config, job.model)}"))


def write_table(
    session: Session, parts: Mapping[str, tuple[Tensor, Tensor]], judged: Judged
) -> None:
    """Write predictions.csv: what is answered for each image of val and test, with raw numbers."""
    job = session.job
    rows = [
        part_of(
            job.data.subsets[name],
            name,
            job.data.split[name],
            judged.raw[name],
            each_loss(job.loss_fn, logits, labels),
        )
        for name, (logits, labels) in parts.items()
    ]
    write_predictions(session.run / PREDICTIONS, job.data.classes, rows)


def since_before(run: Path, several_labels: bool) -> dict[str, Any]:
    """For result.json: old and new classes apart, if the run began with another run's weights."""
    result = read_json(run / "result.json")
    if "run" not in (origin := result.get("weights", {})):
        return {}
    try:
        return {"grown": grown(run, origin["classes"], several_labels)}
    except RunError as error:
        return {"grown": {"reason": origin.get("not_compared", str(error))}}


def report(session: Session, subset: Subset, judged: Judged, result: dict[str, Any]) -> None:
    """Write the report on the test split ``subset``; an error in it does not end the run."""
    job, run = session.job, session.run
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "train/loss_epoch" in line]
    numbers, num_classes = subset.indices.tolist(), len(job.data.classes)
    try:
        results = ReportData(
            history=lines,
            classes=job.data.classes,
            answers=judged.raw["test"],
            val=judged.calibrated["val"],
            calibrated=judged.calibrated["test"],
            calibration=judged.calibration,
            ids=[job.data.dataset.ids[number] for number in numbers],
            config_text=job.config.dump(),
            result=read_json(run / "result.json") | result,
            picture_of=lambda row: decoded(job.data.dataset, numbers[row], THUMBNAIL),
            class_balance={
                name: number_of_each(subset.labels, num_classes)
                for name, subset in job.data.subsets.items()
            },
            notes=job.notes,
        )
        write_report(run / "report", results)
    except (OSError, RunError):  # the disk, which the result needs too
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        session.say(f"note    the report cannot be written: {reason}")


def spent(state: State) -> dict[str, float]:
    """Seconds spent on each kind of work, over all starts of the run."""
    compute = state.train_seconds - state.seconds["data"] - state.aside
    seconds = state.seconds | {"compute": compute}
    return {name: seconds[name] for name in ("start", "data", "compute", "eval", "save", "log")}
