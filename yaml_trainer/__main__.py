"""The command ``yaml-trainer``: ``yaml-trainer train ...`` does ``python -m trainer.train ...``."""

import os
import sys

from trainer.process.quit import COMMAND, TRAINER, watch

# As `python -m trainer.train` does, it can be stopped while it imports.
if __name__ == "__main__" or os.path.basename(sys.argv[0]).removesuffix(".exe") == COMMAND:
    watch(f"{TRAINER}.{''.join(sys.argv[1:2])}")
    sys.argv[0] = COMMAND

import difflib
import importlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from trainer.process.exits import exit_code_of
from trainer.process.launch import run_as_command

# What each command does, in groups; the first group is what a newcomer needs.
GROUPS = {
    "train": {
        "new": "look at your images, and write a YAML file that trains on them",
        "train": "train what a YAML file describes, or resume a run",
        "sweep": "run many trainings that a YAML file describes",
    },
    "prepare": {
        "data": "show the data of a YAML file",
        "find_lr": "try learning rates, and suggest one",
        "speed": "measure which settings train faster on this machine",
        "schema": "write the JSON Schema of the YAML files, for editors",
    },
    "look at runs": {
        "runs": "list the runs",
        "compare": "compare runs",
        "evaluate": "compute the metrics of a run, or of new labelled images",
        "mirror": "mirror runs in an experiment tracker",
        "clean": "rank labels that are likely wrong",
    },
    "use a run": {
        "predict": "predict the classes of images",
        "explain": "show what a model looks at",
        "combine": "make several models one",
        "export": "write a model for other programs",
        "serve": "answer requests for predictions over HTTP, and show a page to try it",
    },
}
COMMANDS = {name: does for group in GROUPS.values() for name, does in group.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of the trainer with the arguments that follow its name; see ``COMMANDS``."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        return exit_code_of(lambda: print(usage()))
    if name in ("-V", "--version"):
        return exit_code_of(lambda: print(about()))
    command = name.replace("-", "_")
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"{COMMAND}: unknown command {name}; {hint}", file=sys.stderr)
        return 2
    watch(f"{TRAINER}.{command}")
    sys.argv = [f"{COMMAND} {command}", *arguments]
    run_as_command(importlib.import_module(f"{TRAINER}.{command}").main)


def usage() -> str:
    """What ``yaml-trainer --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"usage: {COMMAND} COMMAND ...; {COMMAND} COMMAND --help tells its arguments"]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<{width}}  {does}" for name, does in group.items())]
    return "\n".join([*lines, "", f"{COMMAND} --version tells the version and the folder"])


def about() -> str:
    """The version, and the folder whose code runs."""
    folder = os.path.dirname(os.path.abspath(__file__))
    try:
        return f"{COMMAND} {version(COMMAND)} ({folder})"
    except PackageNotFoundError:
        return f"{COMMAND}, a checkout that is not installed ({folder})"


if __name__ == "__main__":
    sys.exit(main())
