#!/usr/bin/env bash
# simplejpeg 1.9.0, decode_jpeg with min_height and min_width. It takes the smallest of all factors 1/8 to 8/8 that
# leaves both sides, so 3/8 and 5/8 too, not only 1/2, 1/4 and 1/8. min_factor=2 ("minimum scaling factor (original
# size / decoded size)") makes the picture larger where no factor up to 1/2 leaves the sides: full size.
# Expected: with min_factor=2 a picture of at most half the size, or an error. Seen, heights of 1000 pixels:
#   asked for 126, 251, 376, 501, 626: 250, 375, 500, 625, 750;  with min_factor=2: 250, 375, 500, 1000, 1000
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q simplejpeg==1.9.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import simplejpeg

content = simplejpeg.encode_jpeg(np.zeros((1000, 1400, 3), np.uint8))
asked, seen = (126, 251, 376, 501, 626), []
for factor in (1, 2):
    seen.append(
        [
            simplejpeg.decode_jpeg(content, min_height=h, min_width=1, min_factor=factor).shape[0]
            for h in asked
        ]
    )
    print(f"min_factor={factor}: heights {seen[-1]} for {list(asked)} of 1000")
as_seen = seen == [[250, 375, 500, 625, 750], [250, 375, 500, 1000, 1000]]
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
