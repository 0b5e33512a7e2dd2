"""Train from one YAML file.

    python -m trainer.train --config configs/lenet_rmb.yaml
    python -m trainer.train --config configs/lenet_rmb.yaml optimizer.lr=0.1 train.epochs=20
    python -m trainer.train --config configs/lenet_rmb.yaml --dry-run
    python -m trainer.train --config configs/lenet_rmb.yaml --profile 20
    python -m trainer.train --resume runs/lenet_rmb/20260131-120000-ab12
    torchrun --nproc-per-node 2 -m trainer.train --config configs/lenet_rmb.yaml

PyTorch is imported only after the file's keys, types and names have been checked.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.process.command_line import Parser
from trainer.process.console import say
from trainer.process.errors import Stopped, UsageError
from trainer.process.exits import exit_code_of
from trainer.process.launch import as_typed, is_first, is_one_of_several, run_as_command
from trainer.process.stop import StopRequest

if TYPE_CHECKING:
    from trainer.build.job import Job
    from trainer.config import Config

MAX_PROFILED = 1000  # a step of a large model has thousands of events
EXIT_CODES = """exit codes: 0 done, 2 config, 3 data, 4 no finite numbers (loss or
answers), 5 checkpoint or disk, 6 one of several processes failed, 7 out of memory, 8 a worker
process died, 75 stopped and resumable, 70 a bug of the trainer"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    with StopRequest() as stop:  # from now on, a signal lets the command save and end
        return exit_code_of(lambda: command(argv, stop))


def command(argv: Sequence[str], stop: StopRequest) -> None:
    """Parse the command line and run it; after an early stop, say how to start again."""
    try:
        run(*parse(argv), stop)
    finally:
        if stop.came_early:  # libraries can turn Stopped into an error of their own
            again = f"{as_typed('train')} {shlex.join(argv)}"
            raise Stopped(
                f"stopped by {stop.reason}\n"
                f"before training began, nothing was written; to start again:\n  {again}"
            ) from None


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line's arguments, and its overrides."""
    parser = Parser(
        prog="python -m trainer.train",
        description="Train, validate and test what a YAML file describes.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--config", metavar="FILE", help="the YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. optimizer.lr=0.1")
    parser.add_argument(
        "--runs", metavar="DIR", type=Path, default="runs", help="root of runs (default: runs)"
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        nargs="?",
        const="",
        help="continue a run; without RUN, the newest one of the config's name",
    )
    parser.add_argument("--dry-run", action="store_true", help="build all, try it, print its cost")
    parser.add_argument(
        "--profile", metavar="N", type=number_of_steps, help="time the parts of N training steps"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show every setting and where it came from"
    )
    arguments = parser.parse_intermixed_args(argv)
    overrides: list[str] = arguments.overrides
    if re.match(r"[\w.]+=", arguments.resume or "") and not Path(arguments.resume).exists():
        # --resume key=value: RUN was left out
        arguments.resume, overrides = "", [arguments.resume, *overrides]
    if not arguments.config and arguments.resume == "":
        from trainer.run.folder import begun, runs_in

        runs = [run for folder in arguments.runs.glob("*/") for run in runs_in(folder)]
        newest = "".join(f"\n  --resume {run}" for run in sorted(runs, key=begun)[:-6:-1])
        parser.error(
            f"name a run: --resume RUN; {'the newest are' if newest else 'none is'} in "
            f"{arguments.runs}{newest}"
        )
    if not arguments.config and not arguments.resume:
        file = next((word for word in overrides if "=" not in word), "FILE.yaml")
        how = "; python -m trainer.new --data PATH writes one for your images"
        parser.error(f"name a file: --config {file}{how * (file == 'FILE.yaml')}")
    return arguments, overrides


def number_of_steps(text: str) -> int:
    """The argument of --profile."""
    if not text.isdecimal() or not 0 < int(text) <= MAX_PROFILED:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of steps from 1 to {MAX_PROFILED}; 20 tell enough, as a rule"
        )
    return int(text)


def run(arguments: argparse.Namespace, overrides: Sequence[str], stop: StopRequest) -> None:
    """Do what the command line asks for."""
    from trainer.config import load_config
    from trainer.process.start import collecting_later, start

    with start():
        config, folder = read(arguments, overrides)
        if arguments.print_config:
            require_known_arguments(config)
            print(config.print() if is_first() else "", end="")
            return
        from trainer.build.prepare import distribute, fetch
        from trainer.distributed.processes import joined, on_every_rank, on_main
        from trainer.loop.fit import fit, prepare_run
        from trainer.run.restarts import run_before_restart
        from yaml_trainer.notifying import result_text, telling
    is_trial = bool(arguments.dry_run or arguments.profile)
    with (
        telling(config, "run", config.name, is_trial) as notice,
        joined(config.train.device in ("auto", "cuda"), stop),
    ):
        on_main(notice.check)
        begun = on_main(lambda: run_before_restart(arguments.runs, config.name, folder))
        if begun is not None:
            config, folder = load_config(begun / "config.yaml"), begun
        notice.folder = folder
        with collecting_later():
            if is_one_of_several():
                own = on_main(lambda: config.own.sha256)
                on_every_rank(lambda: require_same_file(config, own))
                on_every_rank(lambda: fetch(config))
            job = prepare_run(config, folder)
        if arguments.dry_run:
            look_at(job, folder)
            return
        if arguments.profile:
            profile(job, arguments.profile, arguments.runs / config.name / "profile")
            return
        distribute(job, say)
        try:
            notice.text = result_text(fit(job, arguments.runs, folder, say, stop))
        finally:
            notice.folder = job.folder or folder


def require_same_file(config: "Config", first: str) -> None:
    """Raise UsageError if this rank's own components are not those of rank 0."""
    if config.own.sha256 != first:
        raise UsageError(
            f"{config.own.path}: its SHA-256 is {config.own.sha256}, and {first} on rank 0; all "
            "ranks need the same file"
        )


def read(arguments: argparse.Namespace, overrides: Sequence[str]) -> tuple["Config", Path | None]:
    """The configuration and, with ``--resume``, the run's folder; without PyTorch."""
    from trainer.config import load_config

    folder = None
    if arguments.resume is None:
        config = load_config(arguments.config, overrides, by_user=True)
    else:
        from trainer.run.resume import find_resumable

        config, folder = find_resumable(
            arguments.resume, arguments.config, overrides, arguments.runs
        )
    if is_first():
        for message in config.messages:
            print(message, file=sys.stderr)
    is_trial = arguments.dry_run or arguments.profile
    if is_trial and is_one_of_several() and not arguments.print_config:
        option = "--dry-run" if arguments.dry_run else "--profile"
        raise UsageError(f"{option} looks at one process; leave torchrun out.")
    return config, folder


def require_known_arguments(config: "Config") -> None:
    """Raise ConfigError for arguments that configs/schema.json does not allow; without PyTorch."""
    from trainer.config.components import component_key, published
    from trainer.config.config import components
    from trainer.process.errors import ConfigError

    if faults := config.check_arguments(described := published()):
        error = ConfigError(faults, faults[0].file)
        error.add_note("Checked by configs/schema.json; --dry-run asks the PyTorch that is here.")
        raise error
    for kind, path, component in components(config):
        is_described = component_key(kind, component.name) in described
        if component.arguments and not is_described and is_first():
            message = f"note    {path}: the arguments of {component.name} are checked by --dry-run"
            print(f"{message}, not here", file=sys.stderr)


def look_at(job: "Job", folder: Path | None) -> None:
    """Do what ``--dry-run`` asks for; ``folder`` is the run to resume, of the same split."""
    from trainer.loop.resume import require_same_split
    from trainer.loop.summary import dry_run
    from trainer.run.disk import read_json

    if folder is not None:
        require_same_split(job, read_json(folder / "result.json").get("split"), folder)
    dry_run(job, say)


def profile(job: "Job", steps: int, folder: Path) -> None:
    """Do what ``--profile`` asks for."""
    from trainer.loop.summary import introduce
    from trainer.tuning.profiling import profile_steps

    introduce(job, say)
    profile_steps(job, steps, folder, say)


if __name__ == "__main__":
    run_as_command(main)
