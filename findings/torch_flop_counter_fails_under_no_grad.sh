#!/usr/bin/env bash
# torch 2.14.1. torch.utils.flop_counter.FlopCounterMode fails on a model that runs without it: under
# torch.no_grad(), where a submodule is called with an expanded parameter (a class token, as in many vision
# transformers). Its module tracker registers a gradient hook on each input that says requires_grad; a view of a
# parameter that was made under no_grad says so and has no gradient function. Expected: a count of operations.
# Seen:
#   with gradients: 48;  under no_grad: AssertionError: Expected gradient function to be set
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.drop = nn.Parameter(torch.zeros(1, 4)), nn.Identity()
        self.linear = nn.Linear(4, 2)

    def forward(self, images):
        return self.linear(images + self.drop(self.token.expand(len(images), -1)))


def count():
    with FlopCounterMode(display=False) as counter:
        Model()(torch.rand(3, 4))
    return counter.get_total_flops()


with_gradients = count()
with torch.no_grad():
    Model()(torch.rand(3, 4))
    try:
        without = str(count())
    except AssertionError as error:
        without = f"AssertionError: {error}"
print("with gradients:", with_gradients)
print("under no_grad:", without)
as_seen = (with_gradients, without) == (48, "AssertionError: Expected gradient function to be set")
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
