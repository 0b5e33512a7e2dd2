#!/usr/bin/env bash
# Pillow 13.0.0. A PNG may name one grey level or colour as transparent (chunk tRNS). The PNG specification
# compares it with a pixel in all bits of the file. Pillow's convert("RGBA") compares it with 8-bit values:
# - 4-bit grey, pixels 1 and 2, key 1: no pixel is transparent. Expected: the first.
# - 16-bit grey, pixels 0x1234 and 0x1235, key 0x1234: no pixel is transparent. Expected: the first.
# - 16-bit colour, pixels 0x1234 and 0x0012 (each three times), key 0x0012: the first pixel is transparent.
#   Expected: the second.
# Seen, alpha of the two pixels: [255, 255], [255, 255], [0, 255].
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import sys
import zlib

from PIL import Image


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def alpha(bits, colour, row, key):
    """Alpha of the two pixels of a PNG with a transparency key."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0))
    rest = chunk(b"tRNS", key) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    picture = Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + header + rest))
    return list(picture.convert("RGBA").getchannel("A").tobytes())


seen = [
    alpha(4, 0, b"\x12", b"\0\1"),
    alpha(16, 0, b"\x12\x34\x12\x35", b"\x12\x34"),
    alpha(16, 2, b"\x12\x34" * 3 + b"\x00\x12" * 3, b"\x00\x12" * 3),
]
print("alpha:", *seen)
as_seen = seen == [[255, 255], [255, 255], [0, 255]]
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
