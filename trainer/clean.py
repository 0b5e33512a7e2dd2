"""Find labels that are likely wrong, look at them, and correct them without touching the data.

    python -m trainer.clean runs/photos_folds
    python -m trainer.clean runs/photos_folds --apply runs/photos_folds/clean/candidates.csv

The sweep has folds, so each label is judged by the model that did not see it. Writes clean.html and
candidates.csv to SWEEP/clean. What a person ticks becomes a file for dataset.fixes.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.process.command_line import Parser
from trainer.process.launch import run_as_command

if TYPE_CHECKING:
    from trainer.comparing.fold_runs import FoldRuns

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
    add("--show", metavar="N", type=int, default=200, help="candidates on the page (default: 200)")
    add("--no-near", action="store_true", help="do not look for similar images")
    add("--test", action="store_true", help="let test images be ticked and fixed too")
    add("--apply", metavar="CSV", type=Path, help="make a file of fixes of a ticked candidates.csv")
    add("--out", metavar="CSV", type=Path, help="with --apply: the new file (default: fixes.csv)")
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
    from trainer.comparing.fold_runs import find_fold_runs

    folds = find_fold_runs(arguments.sweep, arguments.trial)
    if arguments.apply:
        apply(folds, arguments)
        return

    from trainer.process.start import start
    from trainer.process.words import visible

    with start():
        from trainer.inference.cleaning import Options, clean
    print(f"sweep   {folds.sweep}, trial t{folds.trial:03d}, {len(folds.runs)} folds")
    how = Options(arguments.show, not arguments.no_near, arguments.test, arguments.overrides)
    found, files, notes = clean(folds, how)
    judges = "the models of their folds" if folds.seen else "models that did not see them"
    print(f"labels  {found.judged:,} judged by {judges}")
    told = f"{len(found.candidates):,} that the models contradict"
    print(f"suspect {told}, and {len(found.of_test):,} of test images")
    print("written " + "\n        ".join(visible(str(file)) for file in files))
    for note in notes:
        print(f"note    {visible(note)}", file=sys.stderr)
    if not found.candidates and not found.of_test:
        return
    print("next    tick in the page and download fixes.csv; or put an x in the column tick:")
    words = shlex.join([str(folds.sweep), "--apply", str(files[1])])
    print(f"        python -m trainer.clean {visible(words)}")


def apply(folds: "FoldRuns", arguments: argparse.Namespace) -> None:
    """Write the ticked rows of a candidates.csv, and the fixes that the sweep used, as one file.

    Raises UsageError if the new file is there already, DataError as ``new_fixes`` does.
    """
    from datasets.fixes import LEAVE_OUT
    from datasets.ticks import Allowed, fixes_before, merged, new_fixes
    from datasets.words import counted
    from trainer.process.errors import UsageError
    from trainer.process.words import visible
    from trainer.run.disk import write_file
    from trainer.run.resume import config_for_use

    out = arguments.out or Path("fixes.csv")
    if os.path.lexists(out):
        raise UsageError(
            f"--out {out} exists, and is not overwritten; name another file. It will hold the "
            "fixes that the sweep used too."
        )
    allowed = Allowed(folds.classes, folds.several, {*folds.digest_of.values()})
    new, notes = new_fixes(arguments.apply, allowed, arguments.test)
    config = config_for_use(folds.runs[min(folds.runs)], arguments.overrides)
    file = config.dataset.trainer_arguments.get("fixes")
    content, kept, replaced = merged(fixes_before(file, folds.split.get("fixes")), new)
    write_file(out, content)
    left_out = sum(row["label"] == LEAVE_OUT for row in new)
    done = f"{counted(len(new) - left_out, 'new label')}, {counted(left_out, 'image')} left out"
    done += f", {counted(kept, 'row')} kept of the fixes before" * bool(file)
    print(f"written {visible(str(out))}: {done}")
    for note in [*notes, *replaced]:
        print(f"note    {visible(note)}", file=sys.stderr)
    print(f"next    train with dataset.fixes={shlex.quote(str(out))}")


if __name__ == "__main__":
    run_as_command(main)
