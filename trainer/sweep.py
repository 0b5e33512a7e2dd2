"""Run many trials of one experiment (grid, each, random or tpe), each with several seeds or folds.

    python -m trainer.sweep --config configs/sweeps/lenet_rmb_lr.yaml
    python -m trainer.sweep --config configs/sweeps/lenet_rmb_lr.yaml --dry-run
    python -m trainer.sweep --config configs/sweeps/lenet_rmb_lr.yaml --jobs 2 dataset.root=photos

The same command resumes the sweep later. In a second terminal, it shares the work.
"""

import argparse
import importlib.util
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.process.command_line import Parser
from trainer.process.console import say
from trainer.process.errors import RunError, Stopped, UsageError
from trainer.process.exits import exit_code_of
from trainer.process.launch import as_typed, run_as_command
from trainer.process.stop import StopRequest
from trainer.process.words import visible

if TYPE_CHECKING:
    from trainer.sweeping.folder import Trial
    from trainer.sweeping.plan import Plan
    from trainer.sweeping.trials import Trials

EXIT_CODES = """exit codes: 0 all trials ended and at least one is done (the last lines and
sweep.json name those that failed), 2 config, 5 disk or storage, or every trial failed, 75 stopped
and resumable, 70 a bug of the trainer"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    with StopRequest() as stop:
        return exit_code_of(lambda: parse_and_run(argv, stop))


def parse_and_run(argv: Sequence[str], stop: StopRequest) -> None:
    """Parse the command line and run it. On a stop, add the command to resume to Stopped."""
    again = f"{as_typed('sweep')} {shlex.join(argv)}"
    how = f"what has ended is kept, the rest is saved; to go on:\n  {again}"
    try:
        run(parse(argv), stop, how)
    except Stopped as stopped:
        stopped.add_note(how)
        raise


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line's arguments."""
    parser = Parser(
        prog="python -m trainer.sweep",
        description="Run the trials that a sweep's YAML describes, or resume them.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--config", metavar="FILE", required=True, help="the sweep's YAML file")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="for the sweep (sweep.trials=20) or for the experiment (train.epochs=5)",
    )
    parser.add_argument(
        "--runs", metavar="DIR", default="runs", help="root of runs (default: runs)"
    )
    parser.add_argument(
        "--jobs", metavar="N", type=int, default=1, help="runs at once (default: 1)"
    )
    parser.add_argument("--retry", action="store_true", help="do failed runs again (not with tpe)")
    parser.add_argument("--dry-run", action="store_true", help="check all, list the trials, stop")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.jobs < 1:
        parser.error(f"--jobs {arguments.jobs}: expected 1 or more")
    return arguments


def run(arguments: argparse.Namespace, stop: StopRequest, how: str) -> None:
    """Do what the command line asks for. ``how``: what is told of a stop, to go on."""
    from trainer.config.notes import as_lines, notes_on_config
    from trainer.process.launch import is_one_of_several
    from trainer.sweeping.plan import check_with_torch, load_sweep

    if is_one_of_several():  # under torchrun, the sweep's runs would take themselves for ranks
        raise UsageError("a sweep makes each run in one process; leave torchrun out, use --jobs.")
    plan = load_sweep(arguments.config, arguments.overrides)
    require_extras(plan)
    for message in plan.config.messages:
        print(message, file=sys.stderr)
    for note in as_lines(plan.config, notes_on_config(plan.config)):
        print(f"note    {note}", file=sys.stderr)
    if arguments.dry_run:
        check_with_torch(plan)
        list_trials(plan, Path(arguments.runs))
        return

    from yaml_trainer.notifying import telling

    with telling(plan.config, "sweep", plan.file.name) as notice:
        notice.check()
        notice.if_stopped, notice.folder = how, Path(arguments.runs) / plan.file.name
        notice.text = run_trials(plan, arguments, stop)


def run_trials(plan: "Plan", arguments: argparse.Namespace, stop: StopRequest) -> str:
    """Run what is left of the sweep's trials, and show the results; returns what is told of them.

    Raises RunError if every trial failed, and Stopped.
    """
    from trainer.drawing.columns import terminal_width
    from trainer.sweeping.folder import open_folder
    from trainer.sweeping.plan import check_with_torch
    from trainer.sweeping.process import Starter
    from trainer.sweeping.results import conclusion, judge_noise, ranked, rows_of, sweep_table
    from trainer.sweeping.trials import trials_of
    from trainer.sweeping.work import Work, join_folds, write_results

    starter = Starter(plan, arguments.jobs, say)
    with ThreadPoolExecutor(1) as pool:  # OpenMP's threads end with its thread: none are forked
        pool.submit(check_with_torch, plan).result()
    folder, identity = open_folder(plan, Path(arguments.runs))
    trials = trials_of(plan, folder, identity)
    if arguments.retry:
        forget_failures(plan, folder, trials)
    introduce_sweep(plan, folder, trials)
    work = Work(plan, folder, trials, starter, say, lambda trial: print_trial(trial, work))
    stop.training_begins(None)
    try:
        work.run(stop)
    finally:
        rows = rows_of(plan, folder, trials)
        write_results(plan, folder, rows)
    rows = judge_noise(plan, folder, rows)
    if any(row.near is not None for row in rows):
        write_results(plan, folder, rows)
    joined = join_folds(plan, folder, rows)
    table = sweep_table(plan, rows, terminal_width())
    concluded = conclusion(plan, folder, rows)
    for line in ["", *table, "", *concluded, *joined]:
        say(line)
    say(f"page    {folder / 'sweep.html'}")
    failed = [row for row in rows if row.status == "failed"]
    if failed and not ranked(plan, rows):
        raise RunError(f"every trial failed; t{failed[0].number:03d}: {failed[0].reason}")
    return "\n".join(concluded)


def require_extras(plan: "Plan") -> None:
    """Raise UsageError if the sweep needs packages that are not installed."""
    needed = ["optuna"] if plan.sweep.method == "tpe" or plan.sweep.storage else []
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"method: tpe and storage need {', '.join(missing)}, an extra: "
            'python -m pip install -e ".[sweep]"'
        )


def list_trials(plan: "Plan", runs: Path) -> None:
    """Print the trials (of tpe only the ranges: trials are not drawn yet) and the runs of each."""
    from trainer.drawing.columns import hang, terminal_width
    from trainer.sweeping.space import count, in_words, overrides, points

    many, each = count(plan.sweep), len(plan.members)
    say(f"sweep   {plan.file.name}: {plan.sweep.method}, {number_of_trials(many, each)}")
    say(f"folder  {visible(str(runs / plan.file.name))}")
    say(f"best    by {plan.monitor}, {'more' if plan.sign > 0 else 'less'} is better")
    if plan.sweep.method == "tpe":
        for key, space in plan.sweep.params.items():
            say(f"        {key}: {visible(in_words(space))}")
    else:
        for number, settings in enumerate(points(plan.sweep)):
            text = f"t{number:03d}    {visible(' '.join(overrides(settings)))}"
            for line in hang(text, 8, terminal_width()):
                say(line.rstrip())
    for seed, fold in plan.members:
        say(f"each    seed={seed}" + ("" if fold is None else f" split.fold={fold}"))
    say("dry run: no trial was begun")


def number_of_trials(trials: int, each: int) -> str:
    """The number of trials, and of runs in each, as text: "12 trials of 2 runs"."""
    return f"{trials} trial{'s' * (trials != 1)}" + (f" of {each} runs" if each > 1 else "")


def introduce_sweep(plan: "Plan", folder: Path, trials: "Trials") -> None:
    """Print the number of trials, how many have ended already, and the folder."""
    from trainer.run.folder import tensorboard_command
    from trainer.sweeping.results import rows_of
    from trainer.sweeping.space import count

    over = [r for r in rows_of(plan, folder, trials) if r.status not in ("begun", "waiting")]
    before = f", {len(over)} of them over" if over else ""
    what = number_of_trials(count(plan.sweep), len(plan.members))
    say(f"sweep   {plan.file.name}: {plan.sweep.method}, {what}{before}")
    say(f"folder  {folder}, to look: {tensorboard_command(folder)}")


def print_trial(trial: "Trial", work: object) -> None:
    """Print one line about a trial that has ended, and write the results, but not too often."""
    from trainer.sweeping.results import ranked, rows_of
    from trainer.sweeping.space import count, display_value
    from trainer.sweeping.work import Work, write_results

    assert isinstance(work, Work)
    plan = work.plan
    rows = rows_of(plan, work.folder, work.trials)
    began = time.monotonic()
    if began - work.written > 10 * work.writing:  # thousands of rows take long
        write_results(plan, work.folder, rows)
        work.written = time.monotonic()
        work.writing = work.written - began
    row = next(row for row in rows if row.number == trial.number)
    settings = " ".join(
        f"{key}={visible(display_value(value))}" for key, value in row.settings.items()
    )
    reached = f"{plan.monitor} {row.shown}" if row.values else ""
    why = f": {visible(row.reason)}" if row.reason else ""
    state = "" if row.status == "done" else f" ({row.status}{why})"
    best = ranked(plan, rows)[:1]
    so_far = f"; best t{best[0].number:03d} {best[0].shown}" if best else ""
    over = sum(row.status not in ("begun", "waiting") for row in rows)
    many = count(plan.sweep)
    left = work.time_left((many - over) * len(plan.members))
    about = f", about {left}" if left and many > over else ""
    came_to = f"{reached}{state}".strip()
    say(f"t{row.number:03d}    {settings}  {came_to}{so_far}; {many - over} left{about}")


def forget_failures(plan: "Plan", folder: Path, trials: "Trials") -> None:
    """Let failed runs be done again, from a checkpoint if any; raises UsageError for a study."""
    from trainer.sweeping.folder import claim, ended, members_of

    if plan.sweep.method == "tpe" or plan.sweep.storage is not None:
        raise UsageError(
            "--retry: a study has used the results of its trials already; "
            "it is for grid, each and random"
        )
    for trial in trials.known():
        for member in members_of(plan, trial):
            place = folder / member.name
            end = ended(place)
            if end is None or end["status"] != "failed":
                continue
            if (taken := claim(place)) is not None:
                with taken:
                    (place / "end.json").unlink(missing_ok=True)


if __name__ == "__main__":
    run_as_command(main)
