"""Evaluate a run's best weights again, from its folder.

    python -m trainer.evaluate runs/lenet_rmb/20260131-120000-ab12
    python -m trainer.evaluate runs/lenet_rmb --split val dataset.root=/other/place

Prints the numbers of result.json, if split, device, threads, batch size and metrics are the same.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from trainer.process.command_line import Parser
from trainer.process.launch import run_as_command

EXIT_CODES = """exit codes: 0 done, 2 config, 3 data, also where they have changed, 4 the model
answers with NaN or infinity, 5 run folder, 7 out of memory, 8 a worker process died"""
MOST_CLASSES = 20  # of a confusion matrix that is printed


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(
        prog="python -m trainer.evaluate",
        description="Evaluate a run's best weights on one of its splits.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("run", metavar="RUN", help="a run, or a folder of runs for its newest")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument(
        "--tta",
        choices=("none", "flip", "flip+shifts"),
        help="test-time augmentation (default: the run's evaluation.tta)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. train.device=cpu, dataset.root=..."
    )
    arguments = parser.parse_intermixed_args(argv)

    from trainer.process.exits import exit_code_of

    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from trainer.process.start import start
    from trainer.run.folder import find_run
    from trainer.run.resume import config_for_use

    folder, overrides = find_run(arguments.run), list(arguments.overrides)
    if arguments.tta:
        overrides.append(f"evaluation.tta={arguments.tta.replace('none', 'null')}")
    config = config_for_use(folder, overrides)
    with start():
        from datasets.words import counted
        from trainer.drawing.columns import lay_out, terminal_width
        from trainer.inference.evaluation import evaluate_run
        from trainer.process.words import visible
        from trainer.run.disk import MAX_SPLIT, read_json
    values = evaluate_run(folder, config, arguments.split)
    if arguments.json:
        print(json.dumps(values))
        if config.evaluation.tta:
            print(f"note    the images had tta {config.evaluation.tta}", file=sys.stderr)
        return
    with_tta = f", tta {config.evaluation.tta}" if config.evaluation.tta else ""
    images = len(read_json(folder / "split.json", MAX_SPLIT)[arguments.split])
    print(f"{folder}, {arguments.split} split, {counted(images, 'image')}{with_tta}")
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
