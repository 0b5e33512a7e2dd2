"""Configured training: one YAML file in, one run folder out."""

import sys

from trainer.process.quit import watch

if sys.argv[:1] == ["-m"]:  # Python's sign that it is about to run `python -m trainer.NAME ...`
    _name = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
    if _name.startswith(f"{__name__}."):
        watch(_name)

from pathlib import Path

# PyPI has packages named `datasets`, `models` and `transforms`: the checkout must come first.
_root = str(Path(__file__).resolve().parent.parent)
if __name__ == "trainer" and sys.path[:1] != [_root]:  # where it is installed, it has another name
    sys.path.insert(0, _root)
