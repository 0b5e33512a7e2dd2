#!/usr/bin/env bash
# torch 2.14.1 on a CPU. Pictures of a decoder are (H, W, 3) in memory, and permute(2, 0, 1) makes them views of
# (3, H, W). torch.stack of 64 such views of 224 x 224 takes some 10 times the time of stacking the same memory as
# (H, W, 3), and the result is channels first. Stacking before permuting gives the same pixels, channels last.
# Expected: at most some times as slow. Seen, one thread, ms a batch (yours differ; the test asks for 4 times):
#   views of (3, 224, 224): 5.4, as (224, 224, 3): 0.38;  strides (150528, 50176, 224, 1)
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

import torch

torch.set_num_threads(1)
pictures = [torch.randint(256, (224, 224, 3), dtype=torch.uint8) for _ in range(64)]
views = [picture.permute(2, 0, 1) for picture in pictures]


def least_time(work):
    times = []
    for _ in range(20):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


slow, fast = least_time(lambda: torch.stack(views)), least_time(lambda: torch.stack(pictures))
print(f"views of (3, 224, 224): {slow * 1e3:.2f} ms, as (224, 224, 3): {fast * 1e3:.2f} ms")
print(f"strides {torch.stack(views).stride()}")
equal = torch.equal(torch.stack(views), torch.stack(pictures).permute(0, 3, 1, 2))
as_seen = equal and slow > 4 * fast and torch.stack(views).is_contiguous()
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
