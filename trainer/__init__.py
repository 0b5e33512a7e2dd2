"""Configured training: one YAML file in, one run folder out."""

import sys
from pathlib import Path

# PyPI has packages named `datasets`, `models` and `transforms`: the checkout must come first.
_root = str(Path(__file__).resolve().parent.parent)
if not sys.path or sys.path[0] != _root:
    sys.path.insert(0, _root)
