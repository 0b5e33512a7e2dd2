"""The command ``yaml-trainer``: ``yaml-trainer train ...`` does ``python -m trainer.train ...``."""

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

from trainer.process.launch import run_as_command
from trainer.process.quit import TRAINER, watch

COMMANDS = {
    "new": "look at your images, and write a YAML file that trains on them",
    "train": "train what a YAML file describes, or resume a run",
    "sweep": "run many trainings that a YAML file describes",
    "data": "show the data of a YAML file",
    "find_lr": "try learning rates, and suggest one",
    "speed": "measure which settings train faster on this machine",
    "predict": "predict the classes of images",
    "explain": "show what a model looks at",
    "evaluate": "compute the metrics of a run, or of new labelled images",
    "compare": "compare runs",
    "runs": "list the runs",
    "combine": "make several models one",
    "clean": "rank labels that are likely wrong",
    "mirror": "mirror runs in an experiment tracker",
    "export": "write a model for other programs",
    "schema": "write the JSON Schema of the YAML files, for editors",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of the trainer with the arguments that follow its name; see ``COMMANDS``."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"yaml-trainer {version('yaml-trainer')}")
        return 0
    command = name.replace("-", "_")
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"yaml-trainer: unknown command {name}; {hint}", file=sys.stderr)
        return 2
    watch(f"{TRAINER}.{command}")
    sys.argv = [f"yaml-trainer {command}", *arguments]
    run_as_command(importlib.import_module(f"{TRAINER}.{command}").main)


def usage() -> str:
    """What ``yaml-trainer --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {does}" for name, does in COMMANDS.items()]
    head = "usage: yaml-trainer COMMAND ...; yaml-trainer COMMAND --help tells its arguments"
    return "\n".join([head, "", *lines])


if __name__ == "__main__":
    sys.exit(main())
