"""Write a run's best model as a file that other programs read, and test that file on images.

    python -m trainer.export runs/lenet_rmb --format onnx
    python -m trainer.export runs/lenet_rmb/20260131-120000-ab12 --format all --images photos/

A file is kept only if it gives the outputs of the run's model.
"""

import argparse
import importlib.util
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.components import SCORES
from trainer.process.command_line import Parser, level
from trainer.process.errors import UsageError
from trainer.process.exits import exit_code_of
from trainer.process.launch import run_as_command
from trainer.process.words import listed

EXIT_CODES = """exit codes: 0 done, 2 config, 3 images, 4 the model answers with NaN or infinity,
5 run folder or disk, or a file would not give the model's outputs, 7 out of memory"""
# The packages that each format needs beyond the project's own dependencies.
FORMATS: dict[str, tuple[str, ...]] = {
    "safetensors": ("safetensors",),
    "pt2": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}
ALL = ("safetensors", "pt2", "onnx")  # --format all
MAX_DROP = 0.01  # of val accuracy


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(
        prog="python -m trainer.export",
        description="Write a run's best model as a file that other programs read.",
        epilog="pt2 is for PyTorch, onnx for ONNX Runtime and many others; safetensors is a folder "
        "in Hugging Face's layout; openvino, which all leaves out, is a graph and its weights. "
        "All take float32 images (batch, C, H, W) after the run's eval "
        "transforms, and give logits (batch, classes). Beside each lies a small program that uses "
        f"it. {EXIT_CODES}",
    )
    parser.add_argument("run", metavar="RUN", help="a run, or a folder of runs for its newest")
    parser.add_argument(
        "--format", nargs="+", required=True, choices=(*FORMATS, "all"), help="one or more"
    )
    parser.add_argument(
        "--reject", type=level, metavar="LEVEL", help="all but safetensors: give a second output, "
        "unknown, above 0 for images unlike the known ones; this share of them is kept: 0.95",
    )  # fmt: skip
    parser.add_argument(
        "--with-preprocessing", action="store_true", help="pt2 and onnx: take a picture (C, H, W) "
        "uint8 of any size, and give probabilities: transforms and temperature are inside",
    )  # fmt: skip
    parser.add_argument("--score", choices=SCORES, help="as that of predict --reject")
    parser.add_argument(
        "--int8", action="store_true", help="with onnx: also write NAME.int8.onnx, in integers of "
        "8 bits, and tell what that costs on val and what it brings",
    )  # fmt: skip
    parser.add_argument(
        "--max-drop", type=allowed_drop, metavar="SHARE", help="refuse the int8 file if val "
        f"accuracy falls by more (default: {MAX_DROP})",
    )  # fmt: skip
    parser.add_argument(
        "--benchmark", action="store_true", help="time each file beside PyTorch on this machine"
    )
    parser.add_argument("--output", metavar="FOLDER", help="where to write (default: RUN/export)")
    parser.add_argument(
        "--images", nargs="+", metavar="PATH", help="test it on these files or folders of images "
        "(default: up to 64 of the run's test images)",
    )  # fmt: skip
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. dataset.root=..., train.threads=2"
    )
    words = list(sys.argv[1:] if argv is None else argv)
    # Settings are taken out first, because the lists of --format and --images would swallow them.
    settings = [word for word in words if re.match(r"[a-z_]+(\.\w+)+=", word)]
    arguments = parser.parse_intermixed_args([word for word in words if word not in settings])
    arguments.overrides += settings
    require_fitting(parser, arguments)

    return exit_code_of(lambda: run(arguments))


def require_fitting(parser: Parser, arguments: argparse.Namespace) -> None:
    """End with exit code 2 if an option does not fit the others."""
    if arguments.score and arguments.reject is None:
        parser.error("--score says how --reject measures: give --reject too, such as 0.95")
    if arguments.reject is not None and set(arguments.format) == {"safetensors"}:
        parser.error("--reject gives a graph a second output; safetensors holds weights only")
    if arguments.with_preprocessing and {"safetensors", "openvino"} & set(arguments.format):
        weights = "; safetensors holds weights" * ("safetensors" in arguments.format)
        parser.error(f"--with-preprocessing is for pt2 and onnx{weights}")
    if arguments.with_preprocessing and (arguments.int8 or arguments.benchmark):
        parser.error("--int8 and --benchmark are for files without --with-preprocessing")
    if arguments.int8 and not {"onnx", "all"} & set(arguments.format):
        parser.error("--int8 rounds the ONNX file: give --format onnx too")
    if arguments.int8 and arguments.reject is not None:
        parser.error("--int8 has no output unknown, for the score needs exact features: leave out "
            "--reject or --int8")  # fmt: skip
    if arguments.max_drop is not None and not arguments.int8:
        parser.error("--max-drop says what --int8 may cost: give --int8 too")


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    asked = {*arguments.format, *(ALL if "all" in arguments.format else ())}
    formats = [name for name in FORMATS if name in asked]
    if arguments.with_preprocessing and "safetensors" in formats:  # of --format all
        formats.remove("safetensors")
        print("note    safetensors holds weights, which take no picture: left out", file=sys.stderr)
    require_packages(formats)
    images = arguments.images and [Path(text) for text in arguments.images]
    for path in images or ():
        if not path.exists():
            raise UsageError(f"--images {path} does not exist.")
    output = Path(arguments.output) if arguments.output else None
    if output and (output.suffix in (".pt2", ".onnx", ".safetensors", ".xml") or output.is_file()):
        raise UsageError(f"--output {output}: name a folder; the files are named after the run.")

    from trainer.process.start import start
    from trainer.run.folder import find_run
    from trainer.run.resume import config_for_use

    folder = find_run(arguments.run)
    config_for_use(folder, arguments.overrides)  # its faults come before PyTorch
    with start():
        from yaml_trainer.export.exporting import export_run
        from yaml_trainer.export.whole import export_whole

    reject = None if arguments.reject is None else (arguments.reject, arguments.score or SCORES[0])
    place = output or folder / "export"
    given = folder, formats, place, images, arguments.overrides, reject
    if arguments.with_preprocessing:
        export_whole(*given)
        return
    done = export_run(*given)
    if arguments.int8:
        from yaml_trainer.export.int8 import write_int8

        max_drop = MAX_DROP if arguments.max_drop is None else arguments.max_drop
        done.files["int8"] = write_int8(done, place, max_drop)
    if arguments.benchmark:
        from yaml_trainer.export.latency import write_benchmark

        write_benchmark(done, place)


def allowed_drop(text: str) -> float:
    """Return an argument that is a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1, such as {MAX_DROP}")
    return number


def require_packages(formats: Sequence[str]) -> None:
    """Raise UsageError if a package that one of the formats needs is absent."""
    needed = [package for name in formats for package in FORMATS[name]]
    if absent := [package for package in needed if importlib.util.find_spec(package) is None]:
        extras = "export,openvino" if "openvino" in absent else "export"
        raise UsageError(
            f"--format {' '.join(formats)} needs {listed(absent)}, not installed here: "
            f'pip install -e ".[{extras}]"'
        )


if __name__ == "__main__":
    run_as_command(main)
