"""Find labels that are likely wrong, look at them, and correct them without touching the data.

    python -m trainer.clean runs/photos_folds
    python -m trainer.clean runs/photos_folds --apply runs/photos_folds/clean/candidates.csv

The sweep has folds, so each label is judged by the model that did not see it. Writes clean.html and
candidates.csv to SWEEP/clean. What a person ticks becomes a file for dataset.fixes.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.process.command_line import Parser
from trainer.process.launch import run_as_command

EXIT_CODES = """exit codes: 0 done, 2 usage, 3 data or a table that has faults, 5 a run's folder or
the disk, 7 out of memory"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(
        prog="python -m trainer.clean",
        description="Rank the labels of a sweep over folds by how likely they are wrong.",
        epilog=EXIT_CODES,
    )
    add = parser.add_argument
    add("sweep", metavar="SWEEP", help="the folder of a sweep over folds")
    add("--trial", metavar="N", type=int, help="the trial whose models judge (default: the best)")
    add("--show", metavar="N", type=int, default=200, help="candidates on the page (default 200)")
    add("--no-near", action="store_true", help="do not look for similar images")
    add("--test", action="store_true", help="let test images be ticked and fixed too")
    add("--apply", metavar="CSV", type=Path, help="make a file of fixes of a ticked candidates.csv")
    add("--out", metavar="CSV", type=Path, help="with --apply: the new file (default fixes.csv)")
    add("overrides", nargs="*", metavar="key=value", help="e.g. dataset.root=..., train.device=cpu")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.show < 1:
        parser.error(f"--show {arguments.show}: expected 1 or more")
    if arguments.out and not arguments.apply:
        parser.error("--out goes with --apply: no fixes are written without ticks")

    from trainer.process.exits import exit_code_of

    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from trainer.inference.label_fixes import apply_ticks, find_fold_runs
    from trainer.process.words import visible

    folds = find_fold_runs(arguments.sweep, arguments.trial, arguments.overrides)
    if arguments.apply:
        out = arguments.out or Path("fixes.csv")
        first, *notes = apply_ticks(folds, arguments.apply, out, arguments.test)
        print(f"written {visible(first)}")
        for note in notes:
            print(f"note    {visible(note)}", file=sys.stderr)
        print(f"next    train with dataset.fixes={shlex.quote(str(out))}")
        return

    from trainer.process.start import start

    with start():
        from trainer.inference.cleaning import clean
    print(f"sweep   {folds.sweep}, trial t{folds.trial:03d}, {len(folds.runs)} folds")
    found, files, notes = clean(folds, arguments.show, not arguments.no_near, arguments.test)
    print(f"labels  {found.judged:,} judged by models that did not see them")
    told = f"{len(found.candidates):,} that the models contradict"
    print(f"suspect {told}, and {len(found.of_test):,} of test images")
    print("written " + "\n        ".join(visible(str(file)) for file in files))
    for note in notes:
        print(f"note    {visible(note)}", file=sys.stderr)
    print("next    tick in the page and download fixes.csv; or put an x in the column tick:")
    words = shlex.join([str(folds.sweep), "--apply", str(files[1])])
    print(f"        python -m trainer.clean {visible(words)}")


if __name__ == "__main__":
    run_as_command(main)
