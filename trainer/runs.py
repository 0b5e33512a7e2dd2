"""List the runs: status, epochs, best metrics and time of each.

    python -m trainer.runs list
    python -m trainer.runs list lenet_rmb --sort test
    python -m trainer.runs list --json
    python -m trainer.runs trust RUN     let the own components of somebody's run be used

Reads a few small files of each run, changes nothing, and does not load PyTorch.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.comparing.listing import FoundRun, inspect_run, runs_below, short, strict_json, took
from trainer.drawing.columns import fit_columns, left_out, terminal_width, wrap
from trainer.process.command_line import Parser
from trainer.process.errors import RunError, UsageError
from trainer.process.exits import exit_code_of
from trainer.process.launch import run_as_command
from trainer.process.words import visible

SORT = ("started", "name", "status", "epochs", "val", "test", "time")
TRUST_CODES = "exit codes: 0 done, 2 usage, or the code was changed, 5 disk"
EXIT_CODES = "exit codes: 0 done, 2 usage or a folder that does not exist"
MAX_REASONS = 10
RUNS = "runs"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(prog="python -m trainer.runs", description="List the runs.", epilog=EXIT_CODES)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    one = commands.add_parser("list", help="one line per run: status, epochs, best values, time")
    one.description = "One line per run: status, epochs, best values, time; the newest last."
    one.epilog = EXIT_CODES
    one.add_argument("folders", nargs="*", metavar="NAME", help="name or folder of runs")
    one.add_argument("--runs", default=RUNS, metavar="DIR", help="root of runs (default: runs)")
    one.add_argument(
        "--sort",
        type=sort_key,
        default="started",
        metavar="KEY",
        help=f"what is largest or best comes last: {', '.join(SORT)}; val and test are the "
        "metric that the run's train.monitor names",
    )
    one.add_argument("--json", action="store_true", help="print one JSON list only")
    two = commands.add_parser("trust", help="let the code that came with a run be used here")
    two.description = "Let the own components in a run's folder, which are code, be used by you."
    two.epilog = TRUST_CODES
    two.add_argument("run", metavar="RUN", help="the run's folder, after reading its code")
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    if arguments.command == "trust":
        return exit_code_of(lambda: let_run(arguments.run))
    return exit_code_of(lambda: run(arguments))


def let_run(text: str) -> None:
    """Remember that this user trusts the own components of a run."""
    from trainer.components.own import trust
    from trainer.config import load_config
    from trainer.run.folder import find_run

    own = load_config(find_run(text) / "config.yaml").own
    if not own.sha256:
        print(f"{visible(text)} has no code of its own; there is nothing to trust.")
        return
    if reason := trust(own):
        raise RunError(f"{reason}; name another folder by TRAINER_TRUST.")
    print(f"trusted {visible(str(own.path))}, {len(own.content):,} bytes, SHA-256 {own.sha256}")


def sort_key(text: str) -> str:
    """Return ``text`` if it is one of SORT; raises ArgumentTypeError if not."""
    if text not in SORT:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected {', '.join(SORT[:-1])} or {SORT[-1]}; val and test are the metric "
            "that the run's train.monitor names, such as the accuracy"
        )
    return text


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    folders = [named_folder(text, arguments.runs) for text in arguments.folders] or [
        Path(arguments.runs)
    ]
    if not arguments.folders and arguments.runs != RUNS:
        named_folder(arguments.runs, "")
    paths = dict.fromkeys(path for folder in folders for path in runs_below(folder))
    found = sorted(map(inspect_run, paths), key=order(arguments.sort))
    if not found:
        where = ", ".join(map(str, folders))
        how = "python -m trainer.train --config FILE.yaml"
        print(f"no runs in {where} yet; to start one: {how}", file=sys.stderr)
    if arguments.json:
        print(json.dumps([run_json(one) for one in found], indent=2))
    elif found:
        for line in runs_table(found, Path(arguments.runs), terminal_width(without=10_000)):
            print(line)


def named_folder(text: str, runs: str) -> Path:
    """Return the folder ``runs``/``text`` or ``text``; raises UsageError if there is neither."""
    for folder in (Path(runs) / text, Path(text)):
        if folder.is_dir():
            return folder
    below = f" Expected a name below {runs}, or a folder of runs." if runs else ""
    raise UsageError(f"{visible(text)} does not exist.{below}")


def order(key: str) -> Callable[[FoundRun], tuple[object, ...]]:
    """Return a sort key: the largest or best run comes last, runs without a value come first."""
    from trainer.components import is_higher_better

    def place(one: FoundRun) -> tuple[object, ...]:
        value: object = one.stamp
        if key in ("val", "test"):
            number = (one.best.get if key == "val" else one.test.get)(metric_of(one, key))
            metric = metric_of(one, "test")
            value = number if number is None or is_higher_better(metric) else -number
            value = None if value != value else value  # NaN
        elif key != "started":
            value = {"name": one.name, "status": one.status, "epochs": one.epochs}.get(
                key, one.seconds
            )
        return value is not None, value, one.stamp, str(one.folder)

    return place


def metric_of(one: FoundRun, split: str) -> str:
    """Return the name of the run's monitored metric in ``best`` (val) or ``test``."""
    monitor = one.monitor or "val/loss"
    return monitor if split == "val" else monitor.removeprefix("val/")


def runs_table(found: Sequence[FoundRun], runs: Path, width: int) -> list[str]:
    """Return lines of at most ``width``: a head, a row per run, reasons of failures, counts."""
    metrics = {metric_of(one, "test") for one in found if one.best or one.test}
    same = metrics.pop() if len(metrics) == 1 else ""
    rows = [["run", "status", "epochs", "best val", "test", "time"]]
    paths = []
    for one in found:
        inside = one.folder.is_relative_to(runs)
        path = visible(str(one.folder.relative_to(runs) if inside else one.folder))
        paths.append(path)
        done = "-" if one.epochs is None else str(one.epochs)
        best, test = one.best.get(metric_of(one, "val")), one.test.get(metric_of(one, "test"))
        named = "" if same or best is None else f"{metric_of(one, 'test')} "
        planned = "" if one.planned is None else f"/{one.planned}"
        cells = [one.status, done + planned, named + short(best), short(test), took(one.seconds)]
        rows.append([path, *cells])
    lines, out = fit_columns(rows, width, ("time", "epochs", "best val", "test"), left=["status"])
    lines += left_out(out, width, "--json has all")
    reasons = [
        f"{path}: {one.status}: {' '.join(visible(one.reason).split())}"
        for path, one in zip(paths, found, strict=True)
        if one.status in ("damaged", "failed")
    ]
    more = len(reasons) - MAX_REASONS
    lines += [""] if reasons else []
    for reason in reasons[:MAX_REASONS]:
        lines += wrap(reason, width)
    lines += [f"and {more} more; --json has all"] if more > 0 else []
    counts = Counter(one.status for one in found)
    states = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    lines += ["", f"{len(found)} run{'s' * (len(found) != 1)} in {visible(str(runs))}: {states}"]
    return [*lines, f"best val and test are {same}"] if same else lines


def run_json(one: FoundRun) -> dict[str, object]:
    """Return a run as plain values."""
    values = {
        "name": one.name,
        "run": one.stamp,
        "path": str(one.folder),
        "status": one.status,
        "reason": one.reason,
        "epochs": one.epochs,
        "planned_epochs": one.planned,
        "monitor": one.monitor,
        "best": one.best,
        "test": one.test,
        "train_seconds": one.seconds,
        "started": one.started,
    }
    return {key: strict_json(value) for key, value in values.items()}


if __name__ == "__main__":
    run_as_command(main)
