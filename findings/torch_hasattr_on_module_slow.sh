#!/usr/bin/env bash
# torch 2.14.1. hasattr(module, name) of a name that a module does not have takes some 30 times as long as of a plain
# object: nn.Module looks into three tables and then formats a message for the error that hasattr drops. In a loop
# over pictures, getattr with a default costs the same; vars(module).get(name) does not.
# Expected: at most some times as slow. Seen, microseconds (yours differ; the test asks for 6 times):
#   module: 1.53, plain object: 0.04
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import timeit

from torch import nn


class Plain:
    pass


def microseconds(one):
    times = timeit.repeat(lambda: hasattr(one, "absent"), number=20_000, repeat=7)
    return min(times) / 20_000 * 1e6


module, plain = microseconds(nn.Linear(2, 2)), microseconds(Plain())
print(f"module: {module:.2f}, plain object: {plain:.2f}")
as_seen = module > 6 * plain
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
