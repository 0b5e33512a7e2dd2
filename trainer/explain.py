"""Show why a run's best weights predict what they predict for one image.

    python -m trainer.explain runs/lenet_rmb photo.jpg
    python -m trainer.explain runs/lenet_rmb photo.jpg --class 100 --output folder

Writes overview.png (the image, the model's input, the evidence, the most probable classes),
grad_cam.png (with --class 100 also grad_cam_100.png), kernels.png, feature_maps/ and
explanation.json to RUN/explain/IMAGE. Prints what each picture shows. A model without maps, such
as an MLP or a ViT, gets integrated_gradients.png; --method chooses.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

from trainer.components import EVIDENCE
from trainer.process.command_line import Parser
from trainer.process.launch import run_as_command


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(
        prog="python -m trainer.explain",
        description="Draw pictures that show why a run's best weights predict a class.",
        epilog="exit codes: 0 done, 2 usage, 3 the image cannot be read, "
        "4 the model answers with NaN or infinity, 5 run folder or disk, 7 out of memory",
    )
    parser.add_argument("run", metavar="RUN", help="a run, or a folder of runs for its newest")
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument(
        *("--class", "-c"), dest="class_name", metavar="NAME", help="the evidence for this one too"
    )
    parser.add_argument(
        "--method",
        choices=EVIDENCE,
        help="how evidence is found (default: grad_cam, or integrated_gradients for a model "
        "without maps; all but grad_cam need captum)",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="where to write (default: RUN/explain/ and IMAGE's name)"
    )
    parser.add_argument("--device", help="as train.device: auto, cpu, cuda, cuda:1, mps")
    arguments = parser.parse_args(argv)

    from trainer.process.exits import exit_code_of

    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from trainer.process.start import start
    from trainer.run.folder import find_run

    folder = find_run(arguments.run)
    with start():
        from datasets import BrokenImage
        from datasets.bands import notes_on_bits
        from datasets.images import notes_on
        from trainer.build.trained import load_trained
        from trainer.inference.explanation import choose_folder, explain
        from trainer.process.errors import UsageError, component_place
        from trainer.process.words import listed, suggestion, visible
        from trainer.run.disk import all_or_nothing

    path, name = Path(arguments.image), arguments.class_name
    if path.is_dir() or not os.path.lexists(path):
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"{visible(str(path))} {what}. Expected one image file.")
    device = [f"train.device={arguments.device}"] if arguments.device else []
    trained = load_trained(folder, device)
    if trained.voters:
        members = "".join(f"\n  {voter.run}" for voter in trained.voters)
        raise UsageError(
            f"{folder} is several models, each of which sees its own; name one:{members}"
        )
    if name is not None and name not in trained.classes:
        # A keyboard and a file system may write the same letters in other forms of Unicode.
        same = [one for one in trained.classes if normalize("NFC", one) == normalize("NFC", name)]
        name = same[0] if same else name
    if name is not None and name not in trained.classes:
        choice = listed(trained.classes[:20]) + (", ..." if len(trained.classes) > 20 else "")
        raise UsageError(
            f"--class {name}: the run has no such class{suggestion(name, trained.classes)}; "
            f"it has {choice}."
        )
    image = trained.read(path)
    if arguments.output and Path(arguments.output).exists() and not Path(arguments.output).is_dir():
        raise UsageError(f"--output {arguments.output} is no folder.")
    output = Path(arguments.output) if arguments.output else choose_folder(folder, path)
    label = None if name is None else trained.classes.index(name)
    try:
        with all_or_nothing():
            made = explain(trained, path, image, output, label, arguments.method)
    except ValueError as error:
        if component_place(error):
            raise
        raise BrokenImage(visible(str(path)), str(error)) from None
    print(visible(str(path)))
    for name, probability in made.top:
        mark = "  predicted" if trained.thresholds is not None and name in made.predicted else ""
        print(f"  {probability:.4f}  {visible(name)}{mark}")
    print(f"written to {visible(str(output))}")
    for file, what in made.written:
        print(f"  {file.relative_to(output)}: {visible(what)}")
    for note in [*notes_on(trained.remarks), *notes_on_bits(trained.remarks), *made.notes]:
        print(f"note    {note}", file=sys.stderr)


if __name__ == "__main__":
    run_as_command(main)
