"""Evaluate a run's best weights again, from its folder, or on new labelled images.

    python -m trainer.evaluate runs/lenet_rmb/20260131-120000-ab12
    python -m trainer.evaluate runs/lenet_rmb --split val dataset.root=/other/place
    python -m trainer.evaluate runs/lenet_rmb new_photographs
    python -m trainer.evaluate runs/lenet_rmb --predictions

Prints the numbers of result.json, if split, device, threads, batch size and metrics are the same.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.process.command_line import Parser, without_paths_taken_for_files
from trainer.process.launch import run_as_command

if TYPE_CHECKING:
    from trainer.config import Config

EXIT_CODES = """exit codes: 0 done, 2 config, 3 data, also where they have changed, 4 the model
answers with NaN or infinity, 5 run folder, 7 out of memory, 8 a worker process died"""
MOST_CLASSES = 20  # of a confusion matrix that is printed
WRITTEN = {"--predictions": (".csv", ".parquet")}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(
        prog="python -m trainer.evaluate",
        description="Evaluate a run's best weights on one of its splits, or on new images.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("run", metavar="RUN", help="a run, or a folder of runs for its newest")
    parser.add_argument("--split", choices=("train", "val", "test"), help="default: test")
    parser.add_argument(
        "--predictions",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write what is answered for each image, as .csv or .parquet "
        "(default: RUN/predictions.csv, with val and test)",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="with PLACE: where to write (default: RUN/evaluations/NAME)",
    )
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="the class OLD of PLACE is NEW of the run; may be repeated",
    )
    parser.add_argument(
        "--tta",
        choices=("none", "flip", "flip+shifts"),
        help="test-time augmentation (default: the run's evaluation.tta)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="PLACE | key=value",
        help="new images: a folder with a folder for each class, or a table with path and label; "
        "settings, e.g. train.device=cpu, dataset.root=...",
    )
    given = without_paths_taken_for_files(sys.argv[1:] if argv is None else argv, WRITTEN)
    arguments = parser.parse_intermixed_args(given)
    check_words(parser, arguments)

    from trainer.process.exits import exit_code_of

    return exit_code_of(lambda: run(arguments))


def check_words(parser: Parser, arguments: argparse.Namespace) -> None:
    """Take PLACE out of the overrides; end with exit code 2 if options do not go together."""
    is_setting = re.compile(r"[a-z_]+(\.\w+)*=")
    words = arguments.overrides
    places = [word for word in words if os.path.lexists(word) or not is_setting.match(word)]
    arguments.overrides = [word for word in words if word not in places]
    arguments.place = places[0] if places else None
    if len(places) > 1:
        parser.error(f"expected one folder or table of new images, not {' and '.join(places)}")
    if places and (arguments.split or arguments.predictions):
        option = "--split" if arguments.split else "--predictions"
        parser.error(f"{option} is of the run's own images, and {places[0]} has others")
    if not places and (arguments.output or arguments.rename):
        option = "--output" if arguments.output else "--rename"
        parser.error(f"{option} is for new images; name their folder or table after RUN")
    for text in arguments.rename:
        if "=" not in text:
            parser.error(f"--rename {text}: expected OLD=NEW")
    if arguments.predictions == "-" and arguments.split:
        parser.error("--predictions without a FILE writes val and test; name a FILE for one split")
    if arguments.predictions == "-" and arguments.tta:
        parser.error("--predictions without a FILE has the run's own tta; name a FILE for another")


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from trainer.process.start import start
    from trainer.run.folder import find_run
    from trainer.run.resume import config_for_use

    folder, overrides = find_run(arguments.run), list(arguments.overrides)
    of_place = [word for word in overrides if arguments.place and word.startswith("dataset.")]
    overrides = [word for word in overrides if word not in of_place]
    if arguments.tta:
        overrides.append(f"evaluation.tta={arguments.tta.replace('none', 'null')}")
    config = config_for_use(folder, overrides)
    if arguments.place:
        on_new_images(arguments, folder, config, of_place)
        return
    with start():
        from trainer.comparing.predictions import PREDICTIONS
        from trainer.inference.evaluation import evaluate_split, write_new
        from trainer.run.disk import read_json
    split = arguments.split or "test"
    values, part = evaluate_split(folder, config, split)
    show(arguments, config, values, f"{folder}, {split} split", folder, len(part.ids))
    if arguments.predictions:
        file = Path(arguments.predictions)
        file = folder / PREDICTIONS if arguments.predictions == "-" else file
        parts = [part]
        if not arguments.split:
            parts.insert(0, evaluate_split(folder, config, "val")[1])
        is_new = write_new(file, read_json(folder / "model.json")["classes"], parts)
        print(f"wrote   {file}" if is_new else f"{file} has this content", file=sys.stderr)


def on_new_images(
    arguments: argparse.Namespace, folder: Path, config: "Config", overrides: Sequence[str]
) -> None:
    """Evaluate on the images of PLACE."""
    from trainer.process.start import start

    with start():
        from trainer.inference.judging import judge
    place = Path(arguments.place)
    output = Path(arguments.output or folder / "evaluations" / place.resolve().stem)
    renames = dict(text.split("=", 1) for text in arguments.rename)
    values, images = judge(config, folder, place, output, renames, overrides)
    show(arguments, config, values, f"{folder} on {place}", folder, images)
    print(f"report  {output / 'report.html'}", file=sys.stderr)


def show(
    arguments: argparse.Namespace,
    config: "Config",
    values: Mapping[str, Any],
    title: str,
    folder: Path,
    images: int,
) -> None:
    """Print loss and metrics, as a table or JSON."""
    from datasets.words import counted
    from trainer.drawing.columns import lay_out, terminal_width
    from trainer.process.words import visible
    from trainer.run.disk import read_json

    if arguments.json:
        print(json.dumps(values))
        if config.evaluation.tta:
            print(f"note    the images had tta {config.evaluation.tta}", file=sys.stderr)
        return
    with_tta = f", tta {config.evaluation.tta}" if config.evaluation.tta else ""
    print(f"{visible(title)}, {counted(images, 'image')}{with_tta}")
    classes = [visible(one) for one in read_json(folder / "model.json")["classes"]]
    broad = max(20, *map(len, values))
    for name, value in values.items():
        if isinstance(value, float):
            print(f"  {name:<{broad}} {value:.6f}")
        elif len(value) > MOST_CLASSES:
            print(f"  {name:<{broad}} of {len(value)} classes; --json prints all numbers")
        elif not isinstance(value[0], list):  # a number for each class
            numbers = [["class", name]]
            for one, number in zip(classes, value, strict=True):
                numbers.append([one, "" if number is None else f"{number:.6f}"])
            print(*lay_out(numbers, terminal_width()), sep="\n")
        else:
            rows = zip(classes, value, strict=True)
            table = [["true, predicted", *classes], *([one, *map(str, row)] for one, row in rows)]
            print(f"  {name}", *lay_out(table, terminal_width()), sep="\n")


if __name__ == "__main__":
    run_as_command(main)
