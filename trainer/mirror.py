"""Mirror the curves of runs in an experiment tracker, while they train or afterwards.

    python -m trainer.mirror runs/lenet_rmb --to mlflow
    python -m trainer.mirror runs/lenet_rmb/20260131-120000-ab12 --to csv --follow
    python -m trainer.mirror runs/lenet_rmb_lr --to trackio --follow --wait 10

Reads run folders only: training does not know of it. The same command again adds what is missing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from trainer.process.command_line import Parser
from trainer.process.console import say
from trainer.process.errors import RunError, UsageError
from trainer.process.exits import exit_code_of
from trainer.process.launch import run_as_command

EXIT_CODES = """exit codes: 0 done, 2 usage, a package that is not installed or a folder without
runs, 5 a run folder is damaged, or the tracker cannot be written to or does not answer"""
TO = ("mlflow", "wandb", "trackio", "csv")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(
        prog="python -m trainer.mirror",
        description="Mirror runs in an experiment tracker: each point of metrics.jsonl once, "
        "settings, status, test result, report.",
        epilog=EXIT_CODES,
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="runs, or folders of runs, for all in it"
    )
    parser.add_argument("--to", required=True, choices=TO, help="the tracker")
    parser.add_argument(
        "--place",
        metavar="PLACE",
        help="mlflow: a folder, database or address (default: MLFLOW_TRACKING_URI, else mlruns); "
        "wandb, trackio: a folder (default: that of the tracker); csv: a folder (default: RUN)",
    )
    parser.add_argument("--follow", action="store_true", help="go on until the runs have ended")
    parser.add_argument(
        "--wait",
        metavar="MINUTES",
        type=float,
        default=0.0,
        help="with --follow: wait so long for a run to begin, or to go on after a stop or a kill",
    )
    parser.add_argument("--with-model", action="store_true", help="mlflow: copy model.pt too")
    arguments = parser.parse_args(argv)
    if arguments.place == "":
        parser.error("--place is empty: expected a folder or an address, or no --place")
    if arguments.wait and not arguments.follow:
        parser.error("--wait is for --follow")
    if not 0 <= arguments.wait < 10**6:
        parser.error(f"--wait {arguments.wait}: expected minutes, 0 or more")
    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from trainer.comparing.listing import runs_below
    from yaml_trainer.mirror.following import Task, mirror_all
    from yaml_trainer.mirror.tracker import new_tracker, require
    from yaml_trainer.notifying import tell_killed

    require(arguments.to)
    waits = arguments.follow and arguments.wait
    for folder in arguments.runs:
        if not waits and next(runs_below(folder), None) is None:
            kind = "is a file" if folder.is_file() else "does not exist"
            what = "holds no run" if folder.is_dir() else kind
            raise UsageError(f"{folder} {what}. Expected a run, or a folder of runs.")
    task = Task(
        arguments.to,
        lambda: new_tracker(arguments.to, arguments.place),
        arguments.with_model,
        arguments.follow,
        60 * arguments.wait,
    )
    failures = mirror_all(arguments.runs, task, say, tell_killed)
    for folder in arguments.runs:
        if waits and next(runs_below(folder), None) is None:
            raise UsageError(f"{folder}: no run began within {arguments.wait:g} minutes.")
    if failures:
        raise RunError("\n".join(failures))


if __name__ == "__main__":
    run_as_command(main)
