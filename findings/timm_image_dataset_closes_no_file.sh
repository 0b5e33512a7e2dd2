#!/usr/bin/env bash
# timm 1.0.31. ImageDataset opens the file of each picture and never closes it: Python's collector does, with a
# ResourceWarning for each picture. Where a reference to the picture's file stays, the file stays open.
# Expected: no warning. Seen:
#   ["unclosed file <_io.BufferedReader name='.../1.png'>"]
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q timm==1.0.31 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 pillow==13.0.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
import warnings
from pathlib import Path

from PIL import Image
from timm.data import ImageDataset

root = Path(sys.argv[1]) / "pictures"
(root / "a").mkdir(parents=True)
Image.new("RGB", (8, 8)).save(root / "a" / "1.png")
dataset = ImageDataset(str(root))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    picture, label = dataset[0]
    del picture
told = [str(one.message) for one in caught if one.category is ResourceWarning]
print(told)
as_seen = len(told) == 1 and told[0].startswith("unclosed file")
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
