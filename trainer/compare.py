"""Compare runs: which settings differ, whose numbers are best, and whether they are comparable.

    python -m trainer.compare runs/lenet_rmb
    python -m trainer.compare runs/lenet_rmb/20260131-120000-ab12 runs/vgg11_rmb

Prints tables and warnings, and draws all curves into one picture. Of two runs, or of two folders
with runs of several seeds, it says which is better, image by image.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.comparing.listing import runs_below
from trainer.drawing.columns import terminal_width
from trainer.process.command_line import Parser
from trainer.process.errors import UsageError
from trainer.process.exits import exit_code_of
from trainer.process.launch import run_as_command
from trainer.process.words import visible

if TYPE_CHECKING:
    from PIL import Image

    from trainer.comparing.compared import Compared
    from trainer.comparing.head_to_head import Paired

EXIT_CODES = "exit codes: 0 done, 2 usage or fewer than two runs, 5 disk"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(
        prog="python -m trainer.compare",
        description="Show what differs between two or more runs, in settings and in results.",
        epilog=EXIT_CODES,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, or a folder for all runs in it"
    )
    parser.add_argument(
        "--picture",
        metavar="FILE.png",
        help="the picture of the curves (default: compare.png in the common folder of the runs, "
        "or in the current folder if that is the root or cannot be written)",
    )
    parser.add_argument("--no-picture", action="store_true", help="draw no curves")
    parser.add_argument("--all", action="store_true", help="show the equal settings too")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    arguments = parser.parse_args(argv)

    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from trainer.comparing.compared import read_runs
    from trainer.comparing.comparison import common_folder, comparison_json
    from trainer.comparing.side_by_side import draw_comparison, text_of

    folders = folders_of(arguments.runs)
    place = None
    if not arguments.no_picture:
        place = picture_at(arguments.picture) or common_folder(folders) / "compare.png"
    runs = read_runs(folders)
    if not arguments.json:
        for line in text_of(runs, terminal_width(), arguments.all):
            print(line)
    paired, content = show_paired(runs, arguments)
    picture = None
    if place and (drawn := draw_comparison(runs)):
        picture = write_picture(drawn, place, "curves", arguments)
    if place and paired and any(paired.only):
        content["picture"] = draw_paired(paired, runs[0], place, arguments)
    if arguments.json:
        print(json.dumps(comparison_json(runs, picture) | {"paired": content or None}, indent=2))


def show_paired(
    runs: Sequence["Compared"], arguments: argparse.Namespace
) -> tuple["Paired | None", dict[str, Any]]:
    """Print two sides' answers, image by image, or why not; return them, as JSON too."""
    from trainer.comparing.head_to_head import NotPaired, pair, paired_json, paired_lines, sides_of

    if not (sides := sides_of(arguments.runs, runs)):
        return None, {}
    try:
        paired = pair(sides)
    except NotPaired as error:
        if not arguments.json:
            print(f"\nnot paired image by image: {visible(str(error))}")
        return None, {"reason": str(error)}
    if not arguments.json:
        print("", *paired_lines(paired, terminal_width()), sep="\n")
    return paired, paired_json(paired)


def draw_paired(
    paired: "Paired", first: "Compared", beside: Path, arguments: argparse.Namespace
) -> str | None:
    """Draw the images that only one side gets right, beside the curves; return the path."""
    from datasets import DataError
    from trainer.inference.prediction_output import disagreement
    from trainer.process.errors import ComponentError, ConfigError, RunError

    picture = beside.with_name(f"{beside.stem}-images.png")
    try:
        drawn = disagreement(paired, first.found.folder)
    except (ConfigError, DataError, RunError, ComponentError) as error:
        reason = str(error).partition("\n")[0]
        print(f"note    no picture of those images: {visible(reason)}", file=sys.stderr)
        return None
    written = write_picture(drawn, picture, "images", arguments)
    return str(written) if written else None


def write_picture(
    drawn: "Image.Image", picture: Path, what: str, arguments: argparse.Namespace
) -> Path | None:
    """Write a picture and print where; return the path. None if it cannot be, which is told."""
    from trainer.drawing.pictures import png
    from trainer.run.disk import write_file

    try:
        write_file(picture, png(drawn))
    except OSError as error:
        if arguments.picture:
            raise
        print(
            f"note    no picture of the {what}, as {visible(str(picture))} cannot be written "
            f"({error.strerror}); name a file with --picture",
            file=sys.stderr,
        )
        return None
    if not arguments.json:
        print(f"\n{what:<9}{visible(str(picture))}")
    return picture


def folders_of(texts: Sequence[str]) -> list[Path]:
    """Return the run folders that ``texts`` name, each once; UsageError if fewer than two."""
    found: dict[Path, Path] = {}
    others = []  # runs/NAME/* also matches an older compare.png, or a folder of trainer.data
    for text in texts:
        runs = list(runs_below(Path(text)))
        if not runs and Path(text).exists():
            others.append(text)
        elif not runs:
            raise no_run(text, "does not exist")
        if runs != [Path(text)] and runs:
            count = f"its {len(runs)} runs" if len(runs) > 1 else f"its one run, {runs[0]}"
            print(f"note    {visible(text)} stands for {visible(count)}", file=sys.stderr)
        for folder in runs:
            found.setdefault(folder.resolve(), folder)
    if len(found) < 2 and others:
        is_folder = Path(others[0]).is_dir()
        raise no_run(others[0], "holds no run" if is_folder else "is a file, not a run's folder")
    if others:
        names = ", ".join(map(visible, others))
        print(f"note    passed over what is no run: {names}", file=sys.stderr)
    if len(found) < 2:
        raise UsageError(
            f"a comparison needs two or more runs, and {visible(str(next(iter(found.values()))))} "
            "is one. Name another, or a folder that holds several."
        )
    return list(found.values())


def no_run(text: str, what: str) -> Exception:
    """Return the error for an argument that names no run."""
    return UsageError(
        f"{visible(text)} {what}. Expected a folder such as "
        "runs/NAME/20260131-120000-ab12, or runs/NAME for all of its runs."
    )


def picture_at(text: str | None) -> Path | None:
    """Return the file that --picture names; raises UsageError if no .png can be written there."""
    if text is None:
        return None
    path = Path(text)
    if path.suffix.lower() != ".png" or path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            f"--picture {visible(text)}: expected a file name.png in a folder that exists."
        )
    return path


if __name__ == "__main__":
    run_as_command(main)
