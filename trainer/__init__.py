"""Configured training: one YAML file in, one run folder out."""

import sys
from pathlib import Path

# `datasets`, `models` and `transforms` are also names of packages on PyPI: the checkout must win.
_root = str(Path(__file__).resolve().parent.parent)
if not sys.path or sys.path[0] != _root:
    sys.path.insert(0, _root)
