#!/usr/bin/env bash
# Pillow 13.0.0, files written by tifffile 2026.3.3. Samples of 32 bits in a big-endian TIFF that is compressed come
# with their bytes swapped, without a warning; a picture of values 0 to 255 becomes noise or black. Uncompressed, or
# little-endian, the same samples are right. Expected: [0, 1, 255, 65536] each time. Seen:
#   big-endian with zlib [0, 16777216, -16777216, 256];  the others [0, 1, 255, 65536]
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

values = np.array([[0, 1, 255, 65536]], np.int32)
seen = {}
for order in "<>":
    for compression in (None, "zlib"):
        file = io.BytesIO()
        tifffile.imwrite(
            file, values, byteorder=order, compression=compression, photometric="minisblack"
        )
        seen[order, compression] = np.asarray(Image.open(io.BytesIO(file.getvalue())))[0].tolist()
        print(order, compression, seen[order, compression])
right = values[0].tolist()
swapped = [0, 16777216, -16777216, 256]
as_seen = seen.pop((">", "zlib")) == swapped and all(row == right for row in seen.values())
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
