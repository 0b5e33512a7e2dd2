#!/usr/bin/env bash
# Pillow 13.0.0, files written by tifffile 2026.3.3. A TIFF of 16-bit colour in separate planes (what tifffile
# writes for an array of (3, H, W)) without compression is read byte by byte: the planes are taken for 8-bit ones,
# without a warning. Compressed, the same pixels are right. Expected: the high bytes of the samples both times.
# Seen, first row of the picture (its high bytes are [0, 19, 39], [58, 78, 97]):
#   uncompressed [0, 136, 16], [0, 19, 39];  zlib [0, 19, 39], [58, 78, 97]
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import numpy as np
import tifffile
from PIL import Image

pixels = np.arange(12, dtype=np.uint16).reshape(2, 2, 3) * 5000
planes = np.moveaxis(pixels, -1, 0).copy()
rows = {}
for compression in (None, "zlib"):
    file = io.BytesIO()
    tifffile.imwrite(
        file, planes, photometric="rgb", planarconfig="separate", compression=compression
    )
    rows[compression] = np.asarray(Image.open(io.BytesIO(file.getvalue())))[0].tolist()
    print(compression, rows[compression])
as_seen = rows == {None: [[0, 136, 16], [0, 19, 39]], "zlib": (pixels[0] >> 8).tolist()}
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
