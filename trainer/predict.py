"""Predict the classes of images, with a run's best weights, or with those of several runs.

    python -m trainer.predict runs/lenet_rmb photo.jpg folder 'more/**/*.png'
    python -m trainer.predict runs/lenet_rmb runs/resnet18_rmb photo.jpg
    python -m trainer.predict runs/lenet_rmb folder --json result.json --sheet sheet.png

It needs the run's folder only, not its dataset: images are prepared as in the run's evaluation.
"""

import argparse
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.components import SCORES
from trainer.process.command_line import Parser, level, without_paths_taken_for_files
from trainer.process.launch import run_as_command

if TYPE_CHECKING:
    from trainer.build.trained import TrainedModel
    from trainer.inference.prediction import Prediction
    from trainer.run.known import Rejection

OF_REJECTION = ("unknown", "score")  # columns of a CSV

FILES = {"--json": (".json",), "--csv": (".csv",)}  # what follows is a PATH unless it ends so


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(
        prog="python -m trainer.predict",
        description="Predict the classes of images, with a run's best weights.",
        epilog="exit codes: 0 done, 2 usage, or a PATH without images (the others are done), "
        "3 files or folders that cannot be read (the others are done), or nothing to predict, "
        "4 the model answers with NaN or infinity, 5 run folder or disk, 7 out of memory",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="a run, or a folder of runs for its newest; of several RUNs, or a sweep for the runs "
        "of its best trial, the mean of the probabilities",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a file, folder, or 'pattern'")
    parser.add_argument("--top", type=at_least(1), metavar="K", help="classes shown")
    for kind in ("json", "csv"):
        parser.add_argument(
            f"--{kind}",
            nargs="?",
            const="-",
            type=ending_in(f".{kind}"),
            metavar=f"FILE.{kind}",
            help=f"write all probabilities as {kind.upper()}; to stdout if no file is named",
        )
    parser.add_argument(
        "--parquet",
        type=ending_in(".parquet"),
        metavar="FILE.parquet",
        help="write the table of --csv as Parquet",
    )
    parser.add_argument(
        "--embeddings",
        type=ending_in(".npz"),
        metavar="FILE.npz",
        help="write what the last layer gets of each image: arrays for numpy.load",
    )
    parser.add_argument(
        "--sheet", type=ending_in(".png"), metavar="FILE.png", help="draw the pictures, captioned"
    )
    parser.add_argument(
        "--tta",
        type=views,
        metavar="none|flip|flip+shifts|N",
        help="mean over mirror images, and over shifts; or over the image and N - 1 draws of train "
        "transforms (default: the run's evaluation.tta)",
    )
    parser.add_argument(
        "--sets",
        type=level,
        metavar="LEVEL",
        help="also the classes it may be: e.g. 0.9 for sets with the true one in 90 %% of images",
    )
    parser.add_argument(
        "--no-calibration", action="store_true", help="raw probabilities, without a temperature"
    )
    parser.add_argument(
        "--reject",
        type=level,
        metavar="LEVEL",
        help="say unknown to images unlike those of the run, such that this share of known images "
        "is kept: 0.95; the run's val images decide",
    )
    parser.add_argument(
        "--score",
        choices=SCORES,
        help="how --reject measures this: by the last features (distance, the default) or by the "
        "logits",
    )
    parser.add_argument("--batch-size", type=at_least(1), metavar="N", help="images at once")
    parser.add_argument("--device", help="as train.device: auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--threads", type=at_least(1), metavar="N", help="as train.threads")
    given = without_paths_taken_for_files(sys.argv[1:] if argv is None else argv, FILES)
    # parse_intermixed_args loses the meaning of --.
    parse = parser.parse_args if "--" in given else parser.parse_intermixed_args
    arguments = parse(given)
    if arguments.json == arguments.csv == "-":
        parser.error("--json and --csv cannot both go to stdout; name a file for one")
    if arguments.score and arguments.reject is None:
        parser.error("--score says how --reject measures: give --reject too, such as 0.95")

    from trainer.process.exits import exit_code_of

    return exit_code_of(lambda: run(arguments))


def at_least(least: int) -> Callable[[str], int]:
    """Return an argument type: a whole number of at least ``least``."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return number


def ending_in(suffix: str) -> Callable[[str], str]:
    """Return an argument type: a file's name with this suffix, or "-"."""

    def name(text: str) -> str:
        if text != "-" and not text.lower().endswith(suffix):
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {suffix}")
        return text

    return name


def views(text: str) -> int | str:
    """Return the argument of --tta: a name, or a whole number of at least 2."""
    return text if text in ("none", "flip", "flip+shifts") else at_least(2)(text)


def notes_on_probabilities(trained: "TrainedModel", tta: int | str | None) -> list[str]:
    """A note on the temperature of the probabilities, if they have one."""
    if trained.calibration is None or trained.temperature is None:
        return []
    own = trained.config.evaluation.tta or "none"
    is_own = tta is None or tta == own
    told = trained.calibration.in_words + ("" if is_own else f" with tta {own}")
    return [f"{told}; --no-calibration gives raw ones"]


def notes_on_mean(models: Sequence["TrainedModel"]) -> list[str]:
    """A note on the temperatures of several models, which their mean does not have."""
    if all(one.temperature is None for one in models):
        return []
    how = "python -m trainer.combine fits one for it"
    return [f"a mean of raw probabilities, without temperature; {how}"]


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from trainer.process.start import start
    from trainer.run.folder import find_runs

    named = runs_before_paths(arguments)
    runs = find_runs(named)
    with start():
        from datasets import DataError
        from datasets.bands import notes_on_bits, notes_on_pictures
        from datasets.images import notes_on
        from trainer.build.trained import load_trained
        from trainer.comparing.predictions import require_parquet
        from trainer.inference.image_files import find_images
        from trainer.inference.prediction import (
            MAX_SHEET,
            Also,
            choose_rejection,
            file_source,
            label_sets_of,
            layer_of_features,
            predict_as_one,
            predict_images,
            require_same_classes,
            with_sets,
        )
        from trainer.process.errors import NO_ANSWER, NoAnswer, UsageError
        from trainer.process.words import visible

    files = output_files(arguments)
    if arguments.parquet:
        require_parquet("--parquet")
    settings = {"train.device": arguments.device, "train.threads": arguments.threads}
    overrides = [f"{k}={v}" for k, v in settings.items() if v is not None]
    models = [load_trained(run, overrides) for run in runs]
    require_same_classes(models)
    if len(models) > 1 and arguments.embeddings:
        raise UsageError("--embeddings are of one model; name one RUN.")
    if len(models) > 1 and (arguments.sets or arguments.reject is not None):
        raise UsageError(
            "--sets needs one run, and python -m trainer.combine makes one of these."
            if arguments.sets
            else "--reject needs the scores of one run; name it alone."
        )
    trained = models[0]
    suffixes = frozenset[str]().union(*(one.form.suffixes for one in models))
    paths, faults, unreadable, note = find_images(arguments.paths[len(named) - 1 :], suffixes)
    if note:
        print(f"note    {note}", file=sys.stderr)
    if not paths:
        raise DataError("\n".join([*unreadable, *faults, "There is nothing to predict."]))
    if arguments.no_calibration:
        trained = replace(trained, calibration=None)
    sets = arguments.sets and label_sets_of(trained, arguments.sets, arguments.tta)
    is_one = len(models) == 1
    told_first = notes_on_probabilities(trained, arguments.tta) if is_one else notes_on_mean(models)
    for told in (*told_first, *(sets.notes if sets else ())):
        print(f"note    {visible(told)}", file=sys.stderr)
    rejection = None
    if arguments.reject is not None:
        rejection = choose_rejection(trained, arguments.reject, arguments.score, arguments.tta)
    layer = layer_of_features(trained) if arguments.embeddings else None
    options = {
        "batch_size": arguments.batch_size,
        "tta": arguments.tta,
        "thumbnails": MAX_SHEET if arguments.sheet else 0,
    }
    sources = map(file_source, paths)
    if is_one:
        predictions = predict_images(trained, sources, **options, also=Also(rejection, layer))
    else:
        predictions = predict_as_one(models, sources, **options)
    unknown = Counter[bool]()

    def counting() -> Iterator["Prediction"]:
        for one in predictions:
            unknown[one.is_unknown] += not one.reason
            yield one

    with closing(predictions):
        given = with_sets(counting(), sets.threshold, trained.classes) if sets else counting()
        broken = print_predictions(arguments, trained, paths, given, files)
    notes = [] if rejection is None else [about_rejection(rejection, unknown)]
    notes += [*notes_on(trained.remarks), *notes_on_bits(trained.remarks)]
    if arguments.sheet:
        notes += notes_on_pictures(trained.form, [trained.image_channels])
    for note in notes:
        print(f"note    {note}", file=sys.stderr)
    if not (broken or unreadable or faults):
        return
    lines = [*faults, *unreadable, *broken]
    lines.append(what_is_done(len(paths) - len(broken), len(broken), len(faults + unreadable)))
    if broken or unreadable:
        unanswered = [line for line in broken if NO_ANSWER in line]
        error = NoAnswer if unanswered else DataError
        raise error("\n".join(lines))
    raise UsageError("\n".join(lines))


def runs_before_paths(arguments: argparse.Namespace) -> list[str]:
    """The texts that name runs: RUN, and those of the PATHs right after it that are runs too.

    Raises UsageError if no PATH is left.
    """
    from trainer.process.errors import UsageError
    from trainer.run.folder import names_runs

    count = next((i for i, text in enumerate(arguments.paths) if not names_runs(text)), None)
    if count is None:
        last = arguments.paths[-1]
        raise UsageError(f"{last} is a run, and no PATH of images follows; name one.")
    return [arguments.run, *arguments.paths[:count]]


def about_rejection(rejection: "Rejection", unknown: Mapping[bool, int]) -> str:
    """How many images are unknown, and what share of known ones is kept, in a line."""
    from datasets.words import counted
    from trainer.insight.findings import wilson

    low, high = wilson(rejection.kept, rejection.tested)
    return (
        f"{unknown[True]:,} of {counted(sum(unknown.values()), 'image')} unknown, with "
        f"{rejection.score} above {rejection.threshold:.4g}: that is to keep "
        f"{float(rejection.level):g} of known images, by {rejection.val:,} of val; of test it "
        f"keeps {rejection.kept:,} of {rejection.tested:,} ({low:.3f} to {high:.3f} with 95 % "
        "confidence)"
    )


def what_is_done(done: int, files: int, paths: int) -> str:
    """A line with the number of files that are done, and of files and paths that are not."""
    from datasets.words import counted

    left = [counted(n, what) for n, what in ((files, "file"), (paths, "path")) if n]
    is_done = f"{counted(done, 'file')} {'is' if done == 1 else 'are'} done"
    return f"{' and '.join(left)} cannot be used; {is_done if done else 'nothing is done'}."


def output_files(arguments: argparse.Namespace) -> dict[str, Path]:
    """Return the files to write, by kind; raises UsageError if one cannot be written."""
    from trainer.process.errors import UsageError

    files = {}
    for kind in ("json", "csv", "parquet", "embeddings", "sheet"):
        if (name := getattr(arguments, kind)) in (None, "-"):
            continue
        files[kind] = file = Path(name)
        if not file.parent.is_dir():
            raise UsageError(f"{file}: there is no folder {file.parent}.")
        # The shell may expand a pattern after --sheet: the first photograph would be overwritten.
        if file.is_dir() or (kind == "sheet" and file.exists()):
            raise UsageError(f"{file} is there already; give another name, or remove it.")
    return files


def print_predictions(
    arguments: argparse.Namespace,
    trained: "TrainedModel",
    paths: Sequence[str],
    predictions: Iterable["Prediction"],
    files: Mapping[str, Path],
) -> list[str]:
    """Print predictions as they come, then write ``files``; return a line per unreadable file."""
    from trainer.drawing.columns import terminal_width
    from trainer.drawing.fonts import note_on_names
    from trainer.drawing.pictures import png
    from trainer.inference import prediction_output
    from trainer.inference.prediction import MAX_SHEET
    from trainer.process.console import bar, draws_bars, say
    from trainer.process.words import visible
    from trainer.run.disk import write_file

    classes = trained.classes
    more = ["set"] * bool(arguments.sets) + [*OF_REJECTION] * (arguments.reject is not None)
    done: list[Prediction] = []
    broken: list[str] = []

    def watched() -> Iterator["Prediction"]:
        for one in bar(predictions, "predicting", len(paths)) if draws_bars() else predictions:
            if one.reason:
                broken.append(f"{visible(one.path)}: {one.reason}")
            else:
                if files:
                    done.append(one)
                yield one

    if arguments.json == "-":
        unlike_utf8 = (sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8")
        lines = prediction_output.json_lines(watched(), classes, ascii_only=unlike_utf8)
    elif arguments.csv == "-":
        lines = prediction_output.csv_lines(watched(), classes, more)
    else:
        columns = terminal_width(without=240)
        lines = prediction_output.table_lines(
            watched(), classes, paths, arguments.top, columns, with_sets=bool(arguments.sets)
        )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for line in lines:
        if sys.stdout.isatty():  # below a bar, without control characters
            say(visible(line))
        else:
            print(line)  # which raises if the disk is full
    sys.stdout.flush()
    for kind, file in files.items():
        if kind == "json":
            prediction_output.write_lines(file, prediction_output.json_lines(done, classes))
        elif kind == "embeddings":
            prediction_output.write_embeddings(file, done, classes)
        elif kind in ("csv", "parquet"):
            prediction_output.write_predicted(file, done, classes, more)
        else:
            write_file(file, png(prediction_output.prediction_sheet(done, classes)))
            if note := note_on_names(classes):
                print(f"note: {note}", file=sys.stderr)
            if len(paths) > MAX_SHEET:
                print(f"the sheet shows the first {MAX_SHEET} of {len(paths)}", file=sys.stderr)
        print(f"wrote {visible(str(file))}", file=sys.stderr)
    return broken


if __name__ == "__main__":
    run_as_command(main)
