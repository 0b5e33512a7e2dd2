#!/usr/bin/env bash
# torch 2.14.1. CrossEntropyLoss multiplies the smoothed share of each wrong class by that class's weight.
# With weight=[1, 40] and label_smoothing=0.1, an image of class 0 (95 % class 0, 5 % class 1 after smoothing)
# is counted as 0.95 * 1 against 0.05 * 40, so the loss is least where class 1 has probability 0.68. Expected:
# an image of class 0 pulls towards class 0, as it does with either option alone. Seen, gradient of the logit of
# class 0 at logits [0, 0] (below zero: the step raises the logit):
#   weight alone: -0.5;  smoothing alone: -0.45;  both: +0.525
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.nn import CrossEntropyLoss

WEIGHT = torch.tensor([1.0, 40.0])
gradients = {}
for name, loss in {
    "weight alone": CrossEntropyLoss(weight=WEIGHT),
    "smoothing alone": CrossEntropyLoss(label_smoothing=0.1),
    "both": CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1),
}.items():
    logits = torch.zeros(1, 2, requires_grad=True)
    loss(logits, torch.tensor([0])).backward()
    gradients[name] = round(float(logits.grad[0, 0]), 6)
    print(name, gradients[name])
as_seen = gradients == {"weight alone": -0.5, "smoothing alone": -0.45, "both": 0.525}
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
