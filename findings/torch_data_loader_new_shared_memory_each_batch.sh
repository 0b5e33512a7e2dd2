#!/usr/bin/env bash
# torch 2.14.1 on Linux, DataLoader with one worker and persistent_workers=True. Each batch is made in a new segment
# of shared memory, whose pages the system makes one by one while the worker writes them: 2,352 page faults for a
# batch of 9.6 MB, which has as many pages, in every epoch. Writing into memory that is kept gives none.
# Expected: persistent workers keep some buffers. Seen, page faults of the worker a batch, in the third epoch:
#   DataLoader's collate: 2352;  torch.stack into a kept tensor, in the same worker: 0
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import resource
import statistics
import sys

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

pictures = [torch.full((3, 224, 224), number, dtype=torch.uint8) for number in range(64)]
kept = torch.stack(pictures)


class Pictures(Dataset):
    def __len__(self):
        return 64 * 8

    def __getitem__(self, index):
        return pictures[index % 64]


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def collate(samples):
    first = faults()
    batch = default_collate(samples)
    second = faults()
    torch.stack(samples, out=kept)
    return batch, second - first, faults() - second


loader = DataLoader(
    Pictures(), batch_size=64, num_workers=1, persistent_workers=True, collate_fn=collate
)
for _ in range(3):  # the first two warm up
    batches = [numbers for _, *numbers in loader]
new, same = map(statistics.median, zip(*batches))
print(f"collate: {new:.0f} page faults a batch, into a kept tensor: {same:.0f}")
as_seen = new > 2000 and same < 200
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
