"""Look at a folder or a table of images, and write a YAML that trains on it at the first try.

    python -m trainer.new --data photos
    python -m trainer.new --data labels.csv dataset.root=images --out configs/mine.yaml

Opens the data with the datasets of trainer.train, decodes some pictures, and chooses size, mean and
std, model, batch size and epochs by rules. A comment on each line has the reason. Up to 5,000
images, the training is prepared once before the file is written. No file is overwritten.
"""

import argparse
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.process.command_line import Parser
from trainer.process.launch import run_as_command

if TYPE_CHECKING:
    from trainer.process.console import Say
    from trainer.tuning.first_check import Expected
    from trainer.tuning.look import Sight

EXIT_CODES = """exit codes: 0 the file is written; 2 an argument, or the file is there already;
3 data that no dataset reads as they are, with what to do; 5 disk; 7 out of memory"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(
        prog="python -m trainer.new",
        description="Write a YAML for a folder or a table of images.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--data", metavar="PATH", required=True, help="the folder or the table")
    parser.add_argument(
        "overrides", nargs="*", metavar="dataset.key=value", help="e.g. dataset.layout=classes"
    )
    parser.add_argument(
        "--out",
        metavar="FILE.yaml",
        type=Path,
        help="the new file (default: configs/NAME.yaml, or NAME.yaml)",
    )
    parser.add_argument("--name", metavar="NAME", help="of the run (default: the name of PATH)")
    parser.section, parser.example = "dataset.", ("dataset.root", "images")
    arguments = parser.parse_intermixed_args(argv)
    if wrong := [word for word in arguments.overrides if not word.startswith("dataset.")]:
        parser.error(f"{wrong[0]}: only dataset.key=value here; change the rest in the file")
    if arguments.out is not None and arguments.out.suffix not in (".yaml", ".yml"):
        parser.error(f"--out {arguments.out}: expected a file's name that ends in .yaml")

    from trainer.process.exits import exit_code_of

    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from datasets import DataError
    from trainer.process.console import say
    from trainer.process.errors import UsageError
    from trainer.process.start import start

    with start():
        from trainer.config.config import NAME_IN_WORDS, NAME_PATTERN
        from trainer.tuning.first_file import name_for
        from trainer.tuning.look import look_at_data

    name = arguments.name or name_for(Path(arguments.data))
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"--name {name}: expected {NAME_IN_WORDS}")
    folder = Path("configs") if Path("configs").is_dir() else Path()
    out = arguments.out or folder / f"{name}.yaml"
    if out.exists():
        other = out.with_stem(f"{out.stem}_2")
        raise UsageError(f"{out} is there already, and stays as it is; write --out {other}")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent}: this folder does not exist; make it, or write --out FILE")
    said = list[str]()

    def say_once(line: str) -> None:
        if line not in said:
            say(line)
        said.append(line)

    try:
        sight = look_at_data(arguments.data, arguments.overrides)
        for line in seen(sight):
            say_once(line)
        text = written(sight, arguments.data, name, out, say_once)
    except DataError as error:
        if arguments.data in str(error) or str(error).startswith("--data"):
            raise
        raise DataError(f"{arguments.data}: {error}") from None
    with out.open("x", encoding="utf-8") as file:
        file.write(text)
    quoted = shlex.quote(str(out))
    say(f"wrote   {out}")
    say(f"next    python -m trainer.data --config {quoted}")
    say(f"        python -m trainer.train --config {quoted}")
    if "$schema=" not in text.partition("\n")[0]:
        schema = shlex.quote(str(out.parent / "schema.json"))
        say(f"        python -m trainer.schema --output {schema}  (for editors)")


def seen(sight: "Sight") -> list[str]:
    """What was seen of the data, as lines."""
    from datasets.words import counted
    from trainer.process.words import listed, visible
    from trainer.tuning.look import tables_of

    data, sizes = sight.dataset, Counter(sight.sizes)
    shown = [f"{visible(data.classes[k])} {n:,}" for k, n in enumerate(sight.class_sizes)]
    more = f" and {len(shown) - 20:,} more" if len(shown) > 20 else ""
    if sight.parts["test"]:
        more += f" (the {len(data) - sight.parts['test']:,} without test)"
    (height, width), number = sizes.most_common(1)[0]
    size = (
        f"all {width} x {height}" if len(sizes) == 1 else f"median of the shorter side {sight.side}"
    )
    if len(sizes) > 1 and 2 * number > len(sight.sizes):
        size += f", most {width} x {height}"
    tables = [visible(table) for table in tables_of(sight.config)]
    by = f" by {listed(tables)}" * bool(tables)
    lines = [
        f"data    {sight.config.dataset.name}{by}, {counted(len(data), 'image')}, "
        f"{len(data.classes)} classes: {', '.join(shown[:20])}{more}",
        f"looked  at {counted(len(sight.sizes), 'image')}: {size}" + ", grey" * sight.is_grey,
    ]
    if sight.parts:
        parts = ", ".join(f"{part} {n:,}" for part, n in sight.parts.items())
        lines.append(f"parts   {parts}")
    notes = [*sight.notes, *data.note.splitlines()]
    return lines + [f"note    {visible(line)}" for line in notes]


def broken(sight: "Sight") -> list[str]:
    """The first files that cannot be read among those that were looked at, as lines."""
    from trainer.process.words import shortened, visible

    lines = [f"note    {visible(one.path)}: {shortened(one.reason, 200)}" for one in sight.broken]
    return lines[:5] + [f"note    and {len(lines) - 5:,} more"] * (len(lines) > 5)


def written(sight: "Sight", data: str, name: str, out: Path, say: "Say") -> str:
    """The text of the file, once its training was prepared, or its model was timed."""
    from trainer.config.components import SCHEMA_FILE, component_key, published
    from trainer.input.cut import BrokenImages
    from trainer.process.console import duration
    from trainer.process.words import visible
    from trainer.tuning.first_check import load_text, rehearse_all, this_machine, time_model
    from trainer.tuning.first_file import choose_recipe, first_file
    from trainer.tuning.look import MANY

    recipe = choose_recipe(sight, this_machine(sight.config))
    chosen = sight.config.dataset
    keys = published().get(component_key("dataset", chosen.name), {}).get("properties", {})
    may_skip = "on_broken" in keys and "on_broken" not in chosen.arguments
    is_large = len(sight.dataset) > MANY and sight.dataset.images is None
    skip = may_skip and (is_large or bool(sight.broken))
    file = visible(shlex.quote(str(out)))  # a comment is one line
    schema = "./schema.json" * (out.parent / SCHEMA_FILE.name).is_file()
    shown = {"file": file, "data": visible(data), "schema": schema}
    told = {**shown, "time": ""}

    def text() -> str:
        arguments = {**chosen.arguments, **({"on_broken": "skip"} if skip else {})}
        return first_file(sight, name, recipe, told, arguments)

    def cost() -> "Expected":
        config = load_text(text(), out.name)
        if not is_large:
            return rehearse_all(config, say)
        for line in broken(sight):  # a rehearsal tells them itself
            say(line)
        shape = 1 if sight.is_grey else sight.channels, recipe.side, recipe.side
        return time_model(config, sight.dataset.classes, shape, sight.num_train)

    try:
        found = cost()
    except BrokenImages:
        if skip or not may_skip:
            raise
        skip = True
        found = cost()
    told["time"] = f"; about {duration(found.seconds)}, measured on {found.device}"
    say(f"time    about {duration(found.seconds)} for {recipe.epochs} epochs on {found.device}")
    return text()


if __name__ == "__main__":
    run_as_command(main)
