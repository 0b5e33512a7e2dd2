"""Inspect a dataset before training: no model is built, and the data are not changed.

    python -m trainer.data --config configs/lenet_rmb.yaml
    python -m trainer.data --config configs/lenet_rmb.yaml dataset.root=/photos --output look
    python -m trainer.data --store
    python -m trainer.data --store --clear 1f3a9c

Reports counts by class and split, sizes, mean and std for Normalize, equal and similar images,
broken files, and pictures: of each class, and of augmented training images. With --store it
lists, or clears, the decoded images that runs have stored on this machine.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from trainer.process.command_line import Parser
from trainer.process.launch import run_as_command

EXIT_CODES = """exit codes: 0 done, also with warnings; 2 config; 3 data, also where training would
refuse them: a class without training images, or images that cannot be read and dataset.on_broken
is not skip (all the rest is written first); 5 disk"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(
        prog="python -m trainer.data",
        description="Inspect the dataset that a YAML file names, with the splits of training.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--config", metavar="FILE", help="the YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. dataset.root=...")
    parser.add_argument("--output", metavar="DIR", help="where to write (default: runs/NAME/data)")
    parser.add_argument(
        "--runs", metavar="DIR", default="runs", help="root of runs (default: runs)"
    )
    parser.add_argument("--no-near", action="store_true", help="do not search for similar images")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--store", action="store_true", help="list the stored images instead")
    parser.add_argument(
        "--clear", metavar="KEY", nargs="*", help="with --store: remove those, or all without KEY"
    )
    arguments = parser.parse_intermixed_args(argv)
    if arguments.clear is not None and not arguments.store:
        parser.error("--clear removes stored images: write --store --clear")
    if not arguments.store and arguments.config is None:
        parser.error("the following arguments are required: --config")

    from trainer.process.exits import exit_code_of

    return exit_code_of(lambda: (show_store if arguments.store else run)(arguments))


def show_store(arguments: argparse.Namespace) -> None:
    """List what the store holds, or remove it."""
    from trainer.config import load_config
    from trainer.config.settings import StoreSettings
    from trainer.drawing.columns import lay_out, terminal_width
    from trainer.input.store import Store, shown_size
    from trainer.process.errors import UsageError

    settings = StoreSettings()
    if arguments.overrides and not arguments.config:
        raise UsageError("key=value changes settings of a file: name it by --config FILE")
    if arguments.config:
        settings = load_config(arguments.config, arguments.overrides).store
    store = Store(settings)
    if store.unusable:
        raise UsageError(store.unusable)
    if store.root.exists():
        os.listdir(store.root)  # raises an OSError, where there would seem to be nothing
    if arguments.clear is not None:
        removed = store.clear(arguments.clear)
        told = json.dumps({"root": str(store.root), "removed": removed})
        print(told if arguments.json else f"removed {shown_size(removed)} of {store.root}")
        return
    entries = sorted(store.entries(), key=lambda entry: -entry.used)
    if arguments.json:
        facts = [
            {"key": one.folder.name, "images": one.images, "bytes": one.size, "used": one.used}
            | {"made": dict(one.about)}
            for one in entries
        ]
        print(json.dumps({"root": str(store.root), "stored": facts}))
        return
    rows = [("key", "images", "size", "last used", "made by")]
    for one in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used))
        size = shown_size(one.size)
        rows.append((one.folder.name[:12], f"{one.images:,}", size, used, one.made_by))
    total = shown_size(sum(one.size for one in entries))
    print(f"{store.root}: {total} of at most {shown_size(store.limit)}")
    print("\n".join(lay_out(rows, terminal_width(without=10_000)) if entries else []))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from trainer.config import load_config
    from trainer.config.notes import as_lines, notes_on_transforms
    from trainer.process.start import start

    with start():
        config = load_config(arguments.config, arguments.overrides, by_user=True)
        for message in config.messages:
            print(message, file=sys.stderr)
        for note in as_lines(config, notes_on_transforms(config)):
            print(f"note    {note}", file=sys.stderr)
        from datasets import DataError
        from trainer.build.trial import check_components
        from trainer.drawing.columns import hang, terminal_width
        from trainer.drawing.fonts import note_on_names
        from trainer.input.cut import BrokenImages
        from trainer.insight.data_facts import inspect_dataset
        from trainer.insight.data_report import is_ours, summary, write_data_report
        from trainer.process.errors import ConfigError, UsageError

    of_data = ("dataset", "split", "transforms", "loader")
    faults = [fault for fault in check_components(config) if fault.path.startswith(of_data)]
    if faults:
        raise ConfigError(faults)
    folder = Path(arguments.output or Path(arguments.runs) / config.name / "data")
    if folder.exists() and not (folder.is_dir() and is_ours(folder)):
        raise UsageError(
            f"{folder} holds other things than an earlier look at data; name a folder that is "
            "empty or new: --output DIR"
        )
    # Messages of the inspection go to stderr, so that stdout holds JSON only.
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        look = inspect_dataset(config, search_near=not arguments.no_near)
        files = write_data_report(look, folder)
        if note := note_on_names(look.dataset.classes):
            print(f"note    {note}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(look.facts))
    else:
        width = terminal_width(without=10_000)
        told = [part for line in summary(look.facts) for part in hang(line, 12, width)]
        print("\n".join([*told, *(f"wrote       {file}" for file in files)]))
    if look.broken and look.dataset.on_broken == "error":
        raise BrokenImages(look.broken, len(look.dataset))
    if look.refused:
        raise DataError(look.refused)


if __name__ == "__main__":
    run_as_command(main)
