"""Configured training: one YAML file in, one run folder out."""

import sys

from trainer.process.quit import watch

if sys.argv[:1] == ["-m"]:  # Python's sign that it is about to run `python -m trainer.NAME ...`
    _name = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
    if _name.startswith("trainer."):
        watch(_name)

from pathlib import Path

# PyPI has packages named `datasets`, `models` and `transforms`: the checkout must come first.
_root = str(Path(__file__).resolve().parent.parent)
if not sys.path or sys.path[0] != _root:
    sys.path.insert(0, _root)
