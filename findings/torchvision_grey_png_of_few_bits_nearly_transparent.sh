#!/usr/bin/env bash
# torchvision 0.29.1 with torch 2.14.1. decode_png with mode RGB_ALPHA makes opaque grey PNGs of 1, 2 and 4 bits
# nearly transparent: the alpha that it fills in is the largest value of the file's depth (1, 3, 15) and is not
# scaled to 255 as the grey values are. Composed on a background, such pictures almost vanish. Expected: alpha 255,
# since the files have no transparency. Seen, the alpha of the first pixel by bits:
#   1: 1, 2: 3, 4: 15, 8: 255
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 torchvision==0.29.1
"$folder/venv/bin/python" - <<'PYTHON'
import struct
import sys
import zlib

import torch
from torchvision.io import ImageReadMode, decode_png


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def grey_png(bits):
    """Eight grey pixels in a row, without transparency."""
    header = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
    row = zlib.compress(b"\0" + bytes(range(bits)))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


alpha = {}
for bits in (1, 2, 4, 8):
    content = torch.frombuffer(bytearray(grey_png(bits)), dtype=torch.uint8)
    alpha[bits] = int(decode_png(content, ImageReadMode.RGB_ALPHA)[3, 0, 0])
print("alpha by bits:", alpha)
as_seen = alpha == {1: 1, 2: 3, 4: 15, 8: 255}
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
