#!/usr/bin/env bash
# torch 2.14.1 on an x86 processor with AVX2. An antialiased bilinear resize of a uint8 RGB image to 1 x 1 pixel
# fails with an internal assert; other sizes, one channel, floats, and channels-last memory are fine. A tensor of
# 1 x 1 pixels counts as contiguous and as channels-last at once. torchvision 0.29.1's resize passes it on.
# Expected: a picture of one pixel, as from channels-last memory. Seen:
#   contiguous: RuntimeError ... INTERNAL ASSERT FAILED ...;  channels-last: (1, 3, 1, 1)
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.nn.functional import interpolate

image = torch.full((1, 3, 8, 8), 7, dtype=torch.uint8)
seen = {}
for layout in (torch.contiguous_format, torch.channels_last):
    given = image.contiguous(memory_format=layout)
    try:
        small = interpolate(given, size=(1, 1), mode="bilinear", antialias=True)
        seen[layout] = str(tuple(small.shape))
    except RuntimeError as error:
        seen[layout] = "INTERNAL ASSERT" if "INTERNAL ASSERT" in str(error) else "another error"
    print(layout, seen[layout])
as_seen = list(seen.values()) == ["INTERNAL ASSERT", "(1, 3, 1, 1)"]
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
