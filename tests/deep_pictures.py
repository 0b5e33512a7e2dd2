"""Small files of 16 bits and of any number of channels, written by NumPy, Pillow and tifffile."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

tifffile = pytest.importorskip("tifffile", reason='needs pip install -e ".[tiff]"')
imagecodecs = pytest.importorskip("imagecodecs", reason='needs pip install -e ".[tiff]"')


def levels(*shape, bits=16, seed=0):
    dtype = np.uint8 if bits <= 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 1 << bits, shape).astype(dtype)


def tif(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def patched(content, tag, value):
    """A little-endian TIFF with another number in a tag of its first page."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        place = file.pages.first.tags[tag].valueoffset
    return content[:place] + struct.pack("<I", value) + content[place + 4 :]


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def saved(array, format, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format, **options)
    return file.getvalue()
