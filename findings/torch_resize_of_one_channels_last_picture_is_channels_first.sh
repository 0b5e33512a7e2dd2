#!/usr/bin/env bash
# torch 2.14.1 on a CPU. interpolate keeps channels-last memory of a batch, but not of one picture that got its
# batch dimension by picture[None]. Both forms of the one picture say is_contiguous(memory_format=channels_last);
# they differ in the stride of the dimension of length 1, which no element depends on. The result is then
# channels first, so what comes after it runs in the other layout. See also issue 68430 of pytorch/pytorch.
# Expected: channels last three times. Seen, strides of the result:
#   picture[None]: (150528, 50176, 224, 1), batch first, then permuted: (150528, 1, 672, 3), two pictures: the same
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

picture = torch.randint(256, (375, 500, 3), dtype=torch.uint8)  # as decoders give it
forms = {
    "picture[None]": picture.permute(2, 0, 1)[None],
    "batch first, then permuted": picture[None].permute(0, 3, 1, 2),
    "two pictures": torch.stack([picture, picture]).permute(0, 3, 1, 2),
}
seen = []
for name, pixels in forms.items():
    small = interpolate(pixels, size=(224, 224), mode="bilinear", antialias=True)
    layouts = [one.is_contiguous(memory_format=torch.channels_last) for one in (pixels, small)]
    print(f"{name}: channels last before and after {layouts}, strides {small.stride()}")
    seen.append(layouts)
as_seen = seen == [[True, False], [True, True], [True, True]]
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
