"""TIFF files with the channels and bits that they hold, by tifffile (extra ``tiff``)."""

import io
import logging
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

EXTRA = 'pip install -e ".[tiff]"'
MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the first bytes; + is BigTIFF
# Compressions without loss, which keep each channel as it is: none, LZW, deflate (two numbers),
# PackBits, Zstandard.
_LOSSLESS = frozenset({1, 5, 8, 32946, 32773, 50000})
_WHITE_IS_0, _BLACK_IS_0, _RGB = 0, 1, 2  # kinds of colours
_KINDS = {2: "signed integers", 3: "floats", 4: "values of no kind", 5: "complex integers"}
_REDUCED, _MASK = 1, 4  # kinds of further pages that are no image of their own


class Bands(NamedTuple):
    """The pixels of a TIFF: values (H, W, C), uint8 or uint16, of ``bits`` bits, upright or not.

    alpha: how the last channel is one: "", "straight" or "premultiplied". is_rgb: whether the first
    three channels are red, green and blue. orientation: EXIF's, 1 to 8.
    """

    values: npt.NDArray[Any]
    bits: int
    alpha: str
    is_rgb: bool
    orientation: int


def read_tiff(content: bytes, most_values: int, most_channels: int) -> Bands | None:
    """The bands of a TIFF; None for colours that only a conversion to RGB can show.

    most_values, most_channels: limits of an image. Raises ValueError with the reason for a file
    that is not read: several pages, floats, signs, over 16 bits, channels of different bits,
    sparse. It may raise other types for a damaged one.
    """
    try:
        import imagecodecs  # noqa: F401  without it tifffile reads no LZW, and bounds no deflate
        import tifffile
    except ImportError as error:
        raise ValueError(f"a TIFF with its own channels or 16 bits needs {EXTRA}") from error
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what it also raises
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages.first
        _check_pages(file)
        if page.photometric not in (_WHITE_IS_0, _BLACK_IS_0, _RGB):
            return None
        if page.compression not in _LOSSLESS:
            if page.samplesperpixel > 3:
                name = getattr(page.compression, "name", page.compression)
                raise ValueError(f"a TIFF of {page.samplesperpixel} channels compressed by {name}")
            return None
        _check_kind(page, most_channels)
        _check_size(page, len(content), most_values)
        values = page.asarray(squeeze=False, maxworkers=1)  # (planes, 1, H, W, channels of each)
    values = np.moveaxis(values[:, 0], 0, -1)  # (H, W, channels of each, planes); one of them is 1
    values = values.reshape(*values.shape[:2], -1)
    bits = page.bitspersample
    if values.dtype == bool:
        values = values.astype(np.uint8)
    values = values.astype(np.uint8 if bits <= 8 else np.uint16, copy=False)
    if page.photometric == _WHITE_IS_0:
        values = (1 << bits) - 1 - values
    alpha = {1: "premultiplied", 2: "straight"}.get(next(reversed(page.extrasamples), 0), "")
    tag = page.tags.get(274)
    return Bands(values, bits, alpha, page.photometric == _RGB, tag.value if tag else 1)


def tiff_readers() -> str:
    """The versions of what reads TIFF files."""
    try:
        return f"tifffile {version('tifffile')}, imagecodecs {version('imagecodecs')}"
    except ModuleNotFoundError:
        return "no reader of TIFF"


def _check_pages(file: Any) -> None:
    """Raise ValueError for a second image; a smaller copy of the first, and a mask, are none."""
    for number in range(1, 64):
        try:
            page = file.pages[number]
        except IndexError:
            return
        if not getattr(page, "subfiletype", 0) & (_REDUCED | _MASK):
            raise ValueError("a TIFF of several pages; save each page as a file of its own")
    raise ValueError("a TIFF of 64 pages or more")


def _check_kind(page: Any, most_channels: int) -> None:
    bits, kind = page.bitspersample, page.sampleformat
    if not isinstance(bits, int) or not isinstance(kind, int):
        raise ValueError("a TIFF whose channels differ in bits or kind")
    if kind != 1:
        what = _KINDS.get(kind, f"values of kind {kind}")
        raise ValueError(f"a TIFF of {what}, of unknown range; save it with 8 or 16 bits")
    if bits > 16:
        raise ValueError(f"a TIFF of {bits} bits, of unknown range; save it with 8 or 16 bits")
    if page.samplesperpixel > most_channels:
        channels = f"{page.samplesperpixel:,} channels"
        raise ValueError(f"a TIFF of {channels}; {most_channels} are allowed")


def _check_size(page: Any, size: int, most_values: int) -> None:
    """Raise ValueError for more than the limits, and for pixels that the file does not hold.

    tifffile makes absent pixels 0.
    """
    if page.imagedepth != 1 or min(page.imagewidth, page.imagelength) < 1:
        raise ValueError("a TIFF without pixels, or of a volume")
    values = page.imagewidth * page.imagelength * page.samplesperpixel
    if page.is_tiled:  # a tile may be larger than its image
        values = max(values, page.tilewidth * page.tilelength * page.samplesperpixel)
    if values > most_values:
        raise ValueError(f"a TIFF of {values:,} values, more than {most_values:,} are allowed")
    places, counts = page.dataoffsets, page.databytecounts
    pieces = 1
    for number in page.chunked:
        pieces *= number
    if min(len(places), len(counts)) < pieces:
        raise ValueError("a TIFF without the places of all its pixels")
    for place, count in zip(places, counts, strict=False):
        if not place or not count:
            raise ValueError("a sparse TIFF: some of its pixels are absent")
        if place + count > size:
            raise ValueError("the file is cut off")
