"""Find a learning rate for a YAML file: short trainings at several rates, from the same weights.

    python -m trainer.find_lr --config configs/lenet_rmb.yaml
    python -m trainer.find_lr --config configs/lenet_rmb.yaml optimizer.momentum=0 --steps 200

A trial is a thirtieth of the file's training, at least --steps; its scheduler passes faster. Keeps
only a picture of the losses.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from trainer.process.command_line import Parser
from trainer.process.launch import run_as_command

EXIT_CODES = """exit codes: 0 a rate is suggested, 2 config, 3 data, 4 nothing can be suggested,
5 disk, 7 out of memory, 8 a worker process died"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(
        prog="python -m trainer.find_lr",
        description="Suggest a learning rate for what a YAML file describes.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--config", metavar="FILE", required=True, help="the YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. seed=1")
    parser.add_argument(
        "--from",
        dest="low",
        type=float,
        default=1e-7,
        metavar="LR",
        help="the lowest rate (default: 1e-7)",
    )
    parser.add_argument(
        "--to",
        dest="high",
        type=float,
        default=10.0,
        metavar="LR",
        help="the highest rate (default: 10)",
    )
    parser.add_argument(
        "--steps", type=int, default=100, metavar="N", help="of a training (default: 100)"
    )
    parser.add_argument(
        "--output",
        metavar="FILE.png",
        type=Path,
        help="the picture (default: runs/NAME/find_lr.png)",
    )
    parser.add_argument(
        "--runs", metavar="DIR", default="runs", help="root of runs (default: runs)"
    )
    arguments = parser.parse_intermixed_args(argv)
    if not 0 < arguments.low < arguments.high < float("inf"):
        parser.error("--from and --to: expected 0 < --from < --to, such as 1e-7 and 10")
    if arguments.steps < 20:
        parser.error(f"--steps {arguments.steps}: expected at least 20")
    if arguments.output and (arguments.output.suffix != ".png" or arguments.output.is_dir()):
        parser.error(f"--output {arguments.output}: expected a file's name that ends in .png")

    from trainer.process.exits import exit_code_of

    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from trainer.process.console import say
    from trainer.process.start import start
    from trainer.tuning.load import load_without_sizes

    with start():
        config = load_without_sizes(arguments.config, arguments.overrides)
        from trainer.build.prepare import prepare
        from trainer.loop.summary import introduce
        from trainer.tuning.rates import NoSuggestion, find_rate, rate_key

        job = prepare(config, say)
    introduce(job, say)
    output = arguments.output or Path(arguments.runs) / config.name / "find_lr.png"
    key, limits = rate_key(config), (arguments.low, arguments.high)
    try:
        rate = find_rate(job, limits, arguments.steps, output, say)
    except NoSuggestion as error:
        grid = {key: [1.0, 0.1, 0.01, 0.001, 0.0001]}
        error.add_note(
            "or train a grid: python -m trainer.sweep --config grid.yaml, and in grid.yaml:\n"
            f"  base: {arguments.config}\n  sweep: {{method: grid, params: {grid}}}"
        )
        raise
    kept = [word for word in arguments.overrides if not word.startswith(f"{key}=")]
    command = shlex.join(["--config", arguments.config, *kept])
    say(f"next    python -m trainer.train {command} {key}={rate:.2g}")


if __name__ == "__main__":
    run_as_command(main)
