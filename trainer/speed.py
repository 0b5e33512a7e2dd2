"""Find the settings with which a YAML file trains faster on this machine, by measuring.

    python -m trainer.speed --config configs/lenet_rmb.yaml
    python -m trainer.speed --config configs/lenet_rmb.yaml loader.batch_size=64 --seconds 300

Times real training steps with other precision, memory layout, threads, workers and compiler, by
turns with the file's own settings. Advises what is faster by more than chance. Changes nothing and
makes no run.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer.process.command_line import Parser
from trainer.process.launch import run_as_command

if TYPE_CHECKING:
    from trainer.config import Config

EXIT_CODES = """exit codes: 0 done, also if nothing is faster, 2 config, 3 data, 4 no finite loss,
5 disk, 7 out of memory, 8 a worker process died, 130 Ctrl-C, after the table so far"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(
        prog="python -m trainer.speed",
        description="Measure which settings make a YAML file's training faster on this machine.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--config", metavar="FILE", required=True, help="the YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.device=cpu")
    parser.add_argument(
        "--seconds",
        type=float,
        default=180.0,
        metavar="N",
        help="the longest time to measure (default: 180)",
    )
    parser.add_argument("--no-compile", action="store_true", help="do not try train.compile")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    arguments = parser.parse_intermixed_args(argv)
    if not 0 < arguments.seconds < 1e6:
        parser.error(f"--seconds {arguments.seconds:g}: expected a number above 0, such as 180")

    from trainer.process.exits import exit_code_of

    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from trainer.process.console import say
    from trainer.process.errors import UsageError
    from trainer.process.launch import is_one_of_several
    from trainer.process.start import start
    from trainer.tuning.load import load_without_sizes

    with start():
        load_without_sizes(arguments.config, arguments.overrides)
        if is_one_of_several():
            raise UsageError("this measures one process; leave torchrun out.")
        from trainer.drawing.columns import terminal_width
        from trainer.tuning.advice import advised_lines, facts_of, table
        from trainer.tuning.race import lines_of
        from trainer.tuning.search import find_faster
        from trainer.tuning.timer import CTRL_C

    def config_of(settings: dict[str, Any]) -> "Config":
        lines = lines_of(settings)
        return load_without_sizes(arguments.config, [*arguments.overrides, *lines], quietly=True)

    # Messages of the work go to stderr, so that stdout holds JSON only.
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        found, course = find_faster(config_of, arguments.seconds, not arguments.no_compile, say)
    if arguments.json:
        print(json.dumps(facts_of(found, course)), flush=True)
    else:
        width = terminal_width()
        for line in table(found, course, width):
            say(line)
        for line in advised_lines(found, arguments.config, arguments.overrides, width):
            say(line)
    if found.ended == CTRL_C:
        raise KeyboardInterrupt


if __name__ == "__main__":
    run_as_command(main)
