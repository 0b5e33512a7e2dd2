#!/usr/bin/env bash
# torch 2.14.1, timm 1.0.31. timm's BatchNormAct2d is a batch norm with its activation inside, and a
# subclass of torch's BatchNorm2d. torch.nn.SyncBatchNorm.convert_sync_batchnorm replaces it by a plain
# SyncBatchNorm: no error, no warning, and the ReLU is gone. timm has a converter of its own
# (timm.layers.convert_sync_batchnorm), which keeps it. Seen in evaluation mode on a CPU:
#   before: smallest output 0.0 (a ReLU);  torch's converter: SyncBatchNorm, smallest output below 0;
#   timm's converter: SyncBatchNormAct, smallest output 0.0.
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 torchvision==0.29.1 timm==1.0.31
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm

torch.manual_seed(0)
images = torch.randn(2, 4, 3, 3)
with torch.inference_mode():
    smallest = {}
    for name, convert in {
        "before": lambda model: model,
        "torch": torch.nn.SyncBatchNorm.convert_sync_batchnorm,
        "timm": convert_sync_batchnorm,
    }.items():
        model = convert(torch.nn.Sequential(BatchNormAct2d(4))).eval()
        smallest[name] = type(model[0]).__name__, float(model(images).min())
        print(name, *smallest[name])
as_seen = (
    smallest["before"] == ("BatchNormAct2d", 0.0)
    and smallest["torch"][0] == "SyncBatchNorm"
    and smallest["torch"][1] < 0
    and smallest["timm"] == ("SyncBatchNormAct", 0.0)
)
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
