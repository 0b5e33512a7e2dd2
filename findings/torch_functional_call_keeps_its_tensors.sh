#!/usr/bin/env bash
# torch 2.14.1. torch.func.functional_call says that it leaves the module as it was. It does not where one
# submodule has two names, as blocks that are used twice: the module keeps the call's tensors in place of its
# parameters, which are lost. With tie_weights=False they come back. Seen, after a call with zeros:
#   type of the weight: Tensor (before: Parameter), sum of its absolute values: 0.0
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch import nn


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Linear(2, 2)

    def forward(self, images):
        return self.second(self.first(images))


seen = {}
for tied in (False, True):
    model = Twice()
    zeros = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    torch.func.functional_call(model, zeros, torch.rand(1, 2), tie_weights=tied)
    weight = model.first.weight
    total = weight.detach().abs().sum().item()
    seen[tied] = type(weight).__name__, total == 0
    print(f"tie_weights={tied}: {type(weight).__name__}, sum {total:.1f}")
as_seen = seen == {False: ("Parameter", False), True: ("Tensor", True)}
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
