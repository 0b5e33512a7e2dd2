"""Write configs/schema.json. With it, editors complete and check a YAML file while a person types.

    python -m trainer.schema            write it, docs/yaml.md and docs/yaml.zh.md
    python -m trainer.schema --check    exit 1 if a file is out of date
    python -m trainer.schema --output FILE.json    write the schema for YAML files elsewhere
    python -m trainer.schema --config FILE.yaml    one with its own components, beside them

The schema is generated from Config and the signatures of constructors, also of torch and
torchvision. So --check compares it only under the versions that it was made with. docs/yaml.md, the
same content for people, is made from the schema alone; --check always compares it. For the Chinese
page, docs/yaml.zh.json has the Chinese of each English line and cell; what it lacks stays English.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.components.own import NO_FILE, OwnFile
from trainer.config import Config
from trainer.config.components import SCHEMA_FILE, TABLES, component_key, full_schema
from trainer.config.config import read_own
from trainer.config.document import read_document
from trainer.config.schema_page import as_page, in_chinese
from trainer.config.signatures import arguments_schema
from trainer.process.command_line import Parser
from trainer.process.errors import ConfigError, UsageError
from trainer.process.exits import exit_code_of
from trainer.process.launch import run_as_command
from trainer.process.quit import IS_INSTALLED
from trainer.run.disk import write_file

EXIT_CODES = "exit codes: 0 done, 1 a file is out of date, 2 usage, 5 disk"


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check both files, and return the exit code."""
    found: list[int] = []
    return exit_code_of(lambda: found.append(_main(argv))) or found[0]


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="python -m trainer.schema",
        description="Write the schema of YAML files for editors; in a checkout, to its "
        "configs/schema.json, and docs/yaml.md for people.",
        epilog=EXIT_CODES,
    )
    how = parser.add_mutually_exclusive_group(required=IS_INSTALLED)
    how.add_argument("--check", action="store_true", help="only compare; exit 1 on a difference")
    how.add_argument(
        "--output", metavar="FILE.json", type=Path, help="write only the schema, to this file"
    )
    how.add_argument(
        "--config", metavar="FILE", type=Path, help="write a schema with its own components"
    )
    arguments = parser.parse_args(argv)
    if arguments.config is not None:
        write_own(arguments.config)
        return 0
    if arguments.output is not None:
        write_for_editors(arguments.output)
        return 0
    if not arguments.check:
        schema = generate()
        for file, text in {SCHEMA_FILE: as_text(schema), **pages(schema)}.items():
            if file.parent.is_dir():  # a copy of the checkout may have no docs/
                write_file(file, text)
                print(f"wrote {file}")
        return 0
    text = SCHEMA_FILE.read_text(encoding="utf-8") if SCHEMA_FILE.exists() else "{}"
    made = json.loads(text).get("$comment")
    if made not in (None, made_with()):
        print(f"{SCHEMA_FILE.name}: {made}; not compared here")
    elif text != as_text(generate()):
        print(f"{SCHEMA_FILE} is out of date: python -m trainer.schema", file=sys.stderr)
        return 1
    for page, content in pages(json.loads(text)).items() if page_file().parent.is_dir() else ():
        if not page.exists() or page.read_text(encoding="utf-8") != content:
            print(f"{page} is out of date: python -m trainer.schema", file=sys.stderr)
            return 1
    return 0


def write_for_editors(file: Path) -> None:
    """Write the schema to a file, and print what names it in a YAML file beside it."""
    if file.suffix != ".json":
        raise UsageError(f"--output {file}: expected a file's name that ends in .json")
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent}: this folder does not exist")
    write_file(file, as_text(generate()))
    print(f"wrote {file}")
    print("a YAML file beside it names it in its first line:")
    print(f"# yaml-language-server: $schema=./{file.name}")


def page_file() -> Path:
    """The path of docs/yaml.md, in the checkout of the schema."""
    return SCHEMA_FILE.parent.parent / "docs" / "yaml.md"


def pages(schema: Mapping[str, Any]) -> dict[Path, str]:
    """The pages of a schema: the English one, and the Chinese one where its words are there."""
    page = page_file()
    made, words = {page: as_page(schema)}, page.with_name("yaml.zh.json")
    if words.exists():
        chinese = json.loads(words.read_text(encoding="utf-8"))
        made[page.with_name("yaml.zh.md")] = in_chinese(made[page], chinese)
    return made


def write_own(file: Path) -> None:
    """Write the schema of a YAML with own components beside them, and print how to use it.

    Values of the YAML may be wrong. Raises ConfigError for faults of its text and the components.
    """
    own = read_own(read_document(file))
    if faults := own.faults():
        raise ConfigError(faults, str(own.path))
    schema = own.path.with_suffix(".schema.json")
    write_file(schema, as_text(generate(own)))
    place = Path(os.path.relpath(schema, file.parent)).as_posix()
    place = place if place.startswith(".") else f"./{place}"
    line = f"# yaml-language-server: $schema={place}"
    print(f"wrote {schema}")
    with file.open(encoding="utf-8-sig") as text:
        if text.readline().strip() != line:
            print(f"write as the first line of {file}: {line}")


def generate(own: OwnFile = NO_FILE) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a configuration, with every component's arguments."""
    described = {
        component_key(kind, name): arguments_schema(kind, name)
        for kind, table in TABLES.items()
        for name in table
    }
    described |= {
        component_key(kind, name): arguments_schema(kind, name, own=own)
        for kind in TABLES
        for name in own.names(kind)
    }
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$comment": made_with()}
    return head | full_schema(Config.model_json_schema(), described, own)


def made_with() -> str:
    """The schema's comment: the versions of torch and torchvision without their builds (+cpu)."""
    versions = [f"{name} {version(name).partition('+')[0]}" for name in ("torch", "torchvision")]
    return f"generated by python -m trainer.schema with {', '.join(versions)}"


def as_text(schema: dict[str, Any]) -> str:
    """The content of schema.json: the same on every machine."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    run_as_command(main)
