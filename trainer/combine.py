"""Combine several runs into one run, which every other command takes.

    python -m trainer.combine runs/lenet_rmb/20260131-120000-ab12 runs/resnet18_rmb
    python -m trainer.combine runs/my_sweep
    python -m trainer.combine runs/my_sweep/t003 --weights

It answers with the mean of the runs' probabilities. With --weights it is one model with the average
of their weights, if that is better on val than each run.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.process.command_line import Parser
from trainer.process.launch import run_as_command

if TYPE_CHECKING:
    from trainer.inference.combination import Combined

EXIT_CODES = """exit codes: 0 done, 2 usage or config, 3 data, also where they have changed, 4 the
model answers with NaN or infinity, 5 runs that cannot be one, or whose average of weights is no
better than the best run, or the disk, 7 out of memory, 8 a worker process died"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(
        prog="python -m trainer.combine",
        description="Combine several runs into one run, which answers with the mean of their "
        "probabilities.",
        epilog=EXIT_CODES,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run, a folder of runs for its newest, a sweep for the runs of its best trial, or "
        "SWEEP/t003 for those of a trial",
    )
    parser.add_argument(
        "--weights", action="store_true", help="average the weights, if val becomes better by it"
    )
    parser.add_argument("--name", help="of the new run (default: the first one's and -combined)")
    parser.add_argument(
        "--runs",
        dest="folder",
        default="runs",
        metavar="DIR",
        help="where it is written (default: runs)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. train.device=cpu, dataset.root=..."
    )
    words = list(sys.argv[1:] if argv is None else argv)
    settings = [word for word in words if re.match(r"[a-z_]+(\.\w+)+=|metrics=", word)]
    arguments = parser.parse_intermixed_args([word for word in words if word not in settings])
    arguments.overrides = settings

    from trainer.process.exits import exit_code_of

    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from trainer.process.start import start
    from trainer.run.folder import find_runs

    runs = find_runs(arguments.runs)
    with start():
        from trainer.inference.combination import combine
        from trainer.process.words import visible

    name = arguments.name or f"{first_name(Path(arguments.runs[0]), runs[0])}-combined"
    made = combine(runs, Path(arguments.folder), name, arguments.weights, arguments.overrides)
    for line in result_lines(made):
        print(line)
    for note in notes_on(made):
        print(f"note    {visible(note)}", file=sys.stderr)


def first_name(named: Path, run: Path) -> str:
    """The name of a sweep, of a sweep's trial, or of a run, whichever was named."""
    from trainer.run.folder import name_of

    if (named / "plan.json").is_file():
        return named.resolve().name
    if (named.parent / "plan.json").is_file():
        return f"{named.parent.resolve().name}-{named.name}"
    return name_of(run)


def result_lines(made: "Combined") -> list[str]:
    """Lines with val and test of each member, and of all as one."""
    from trainer.comparing.listing import short
    from trainer.drawing.columns import lay_out, terminal_width
    from trainer.process.words import visible

    monitor = made.monitor
    names = ["loss"] if monitor == "loss" else [monitor, "loss"]
    columns = [(part, name) for part in ("val", "test") for name in names]
    cells = [["run", *(f"{part}/{name}" for part, name in columns)]]
    for member in made.result["members"]:
        values = [member.get(part, {}).get(name) for part, name in columns]
        cells.append([visible(member["run"]), *map(short, values)])
    values = [made.result.get(part, {}).get(name) for part, name in columns]
    cells.append([visible(str(made.run)), *map(short, values)])
    return lay_out(cells, terminal_width())


def notes_on(made: "Combined") -> list[str]:
    """What was left out, and what has no honest numbers."""
    notes = [f"{run}: not in the average, val was no better with it" for run in made.left_out]
    for part, (common, most) in made.images.items():
        if common < most:
            has = f"{part}: {common:,} of up to {most:,} images are {part} of every member"
            notes.append(
                has + ("" if common else f"; others were trained on, so no {part} numbers")
            )
    if made.calibration:
        notes.append(made.calibration)
    if made.result["mean_of"] == "probabilities" and made.loss in ("MSELoss", "L1Loss"):
        notes.append(f"{made.loss} compares logits, and a mean's are others: no loss to compare")
    return notes


if __name__ == "__main__":
    run_as_command(main)
