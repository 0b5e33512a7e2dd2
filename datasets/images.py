"""The one place where image files become tensors."""

import errno
import functools
import hashlib
import io
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable
from enum import IntFlag
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import PIL
import simplejpeg
import torch
from PIL import Image, ImageFile, UnidentifiedImageError, features
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from datasets import BrokenImage, jpeg
from datasets.jpeg import decode_frame, read_frame
from datasets.words import agreeing

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)

HAS_AVIF = find_spec("PIL._avif") is not None  # Pillow before 11.3, or some builds, read none
# A file is listed by its suffix, but decoded by its content: a PNG named .jpg is read as a PNG.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".jif", ".jfi", ".mpo", ".png", ".apng", ".bmp", ".webp"}
    | {".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
    | {".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs"}
)
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", *["AVIF"] * HAS_AVIF)
MAX_BYTES = 1 << 30  # of a file: more than MAX_PIXELS in 16-bit colour
MAX_PIXELS = 120_000_000  # 12,000 x 10,000; the header of a small file can claim far more
# EXIF's orientation: whether rows become columns, then the steps down and across.
UPRIGHT = {
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}

_ORIENTATION = 0x0112  # the EXIF tag; its value says how the camera was held


class Remark(IntFlag):
    """What decoding converted or guessed in an image. READ alone: nothing."""

    READ = 1
    GUESSED = 2
    DIM = 4
    HIGH_BYTE = 8
    ON_WHITE = 16
    FIRST = 32
    COLOURS = 64
    TURNED = 128


_WORDS = {
    Remark.GUESSED: "hold integers of unknown range; over 255 it is taken for 16 bits",
    Remark.DIM: "hold 16-bit values below 4096 only and are nearly black; save 12 bits as 8",
    Remark.HIGH_BYTE: "hold more than 8 bits a channel; the high ones are kept",
    Remark.ON_WHITE: "are partly transparent, composed on white",
    Remark.FIRST: "have several frames or pages; the first is read",
    Remark.COLOURS: "are CMYK or Lab, converted without colour profiles",
    Remark.TURNED: "are turned upright as EXIF data say",
}


def notes_on(remarks: Iterable[int]) -> list[str]:
    """A line for each kind of Remark, with the number of images that have it."""
    counts = Counter(remarks)
    read = sum(count for remark, count in counts.items() if remark)
    found = {
        words: sum(count for remark, count in counts.items() if remark & kind)
        for kind, words in _WORDS.items()
    }
    return [
        f"{count:,} of {read:,} images {agreeing(count, words)}"
        for words, count in found.items()
        if count
    ]


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Decode a file: (3, H, W) uint8. Raises BrokenImage as ``read_file`` and ``decode`` do."""
    return decode(read_file(path), str(path))


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file. Raises BrokenImage if it is missing, not regular, or over MAX_BYTES."""
    try:
        check_file(path)
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise ValueError(f"larger than {MAX_BYTES >> 30} GiB")
            return file.read()
    except (OSError, ValueError) as error:
        raise BrokenImage(str(path), reason(error)) from error


def decode(content: bytes, path: str) -> Tensor:
    """``decode_and_tell`` without the remarks."""
    return decode_and_tell(content, path)[0]


def decode_and_tell(content: bytes, path: str, at_least: int = 0) -> tuple[Tensor, Remark]:
    """Decode the bytes of an image file of any of ``FORMATS`` to RGB: (3, H, W) uint8.

    The tensor is a view of (H, W, 3) in memory: who needs contiguous memory asks for it.
    The content decides the format; ``path`` is only for error messages. The Remark says what was
    converted or guessed: EXIF orientation is applied; transparency is composed on white; grey,
    palette, CMYK and other colour spaces are converted; 16-bit channels keep their high byte (value
    >> 8); integers of unknown range keep it if one is over 255; of several frames the first is
    read. Colour profiles and gamma have no effect.
    at_least: above 0, a JPEG may be decoded at 1/8, 1/4 or 1/2 of its size, the smallest of these
    whose shorter side has this many pixels.
    Raises BrokenImage for everything that cannot be decoded completely: empty, truncated, not an
    image, more than ``MAX_PIXELS`` pixels, pixels without a range (float, 32 bits over 65535).
    """
    frame = read_frame(content)
    if frame and frame.is_plain and frame.height * frame.width <= MAX_PIXELS:
        pixels = decode_frame(content, frame, at_least)
        if pixels is not None:
            return torch.from_numpy(pixels).permute(2, 0, 1), Remark.READ
    # Pillow warns about odd metadata in files that it reads well. `catch_warnings` is not
    # thread-safe, and this function may run in several threads. Repeating the filter is harmless.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        if not content:
            raise ValueError("the file is empty")
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,} are allowed"
                )
            pixels, remark = None, Remark.READ
            if frame and not frame.is_plain and image.format == "JPEG":
                pixels = decode_frame(content, frame, at_least)
            if pixels is None:
                rgb, remark = _by_pillow(image, content)
                pixels = np.array(rgb)
            pixels, turned = _upright(pixels, image)
            return torch.from_numpy(pixels).permute(2, 0, 1), remark | turned
    except MemoryError:
        raise  # this is about the machine, not about the file
    except UnidentifiedImageError as error:
        raise BrokenImage(path, _why_unknown(content)) from error
    except Exception as error:  # Pillow's decoders raise almost any type on damaged files
        raise BrokenImage(path, reason(error)) from error


@functools.cache
def decoders() -> str:
    """All that decides the pixels of a content: versions of libraries, and this code."""
    parts = {name: features.version(name) for name in features.get_supported_codecs()}
    parts["libjpeg_turbo"] = features.version("libjpeg_turbo")
    parts["webp"] = features.version("webp")
    parts["avif"] = features.version("avif") if HAS_AVIF else None
    bundled = ", ".join(f"{name} {version}" for name, version in parts.items())
    code = b"".join(Path(name).read_bytes() for name in (__file__, jpeg.__file__))
    return (
        f"simplejpeg {simplejpeg.__version__}, Pillow {PIL.__version__} ({bundled}), "
        f"code {hashlib.sha256(code).hexdigest()}"
    )


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise OSError or ValueError unless ``path`` is a regular file, or a link to one.

    Call this before opening a file: opening a FIFO blocks until another process writes to it.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL or a lone surrogate, which no file system takes
        raise ValueError(f"cannot be read: {error}") from error
    if not stat.S_ISREG(mode):
        raise ValueError("not a regular file")


def reason(error: Exception) -> str:
    """A few words for a message about an error that reading an image raised.

    Raises an error that is no fault of the image: this process may open no more files.
    """
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        raise error
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return str(error) or type(error).__name__


def _by_pillow(image: ImageFile.ImageFile, content: bytes) -> tuple[Image.Image, Remark]:
    remark = Remark.READ | (Remark.FIRST if _has_frames(image) else Remark(0))
    if isinstance(image, TiffImageFile):
        remark |= _prepare_tiff(image)
    part = image.tile[0].extents if image.format == "GIF" and image.tile else None
    image.load()
    rgb, converted = _to_rgb(image, content)
    if part and part != (0, 0, *rgb.size):
        rgb = _on_white_canvas(rgb, part)
    return rgb, remark | converted


def _upright(pixels: Pixels, image: Image.Image) -> tuple[Pixels, Remark]:
    # Not ImageOps.exif_transpose: it also rewrites the EXIF data, which fails if they are damaged.
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # the pixels are good, only the metadata is not
        orientation = None
    if not isinstance(orientation, int) or orientation not in UPRIGHT:
        return pixels, Remark(0)
    rows_to_columns, down, across = UPRIGHT[orientation]
    grid = pixels.view("V3")[..., 0]  # (H, W): a pixel is one item, which is copied at once
    grid = (grid.T if rows_to_columns else grid)[::down, ::across]
    turned = np.ascontiguousarray(grid).view(np.uint8).reshape(*grid.shape, 3)
    return turned, Remark.TURNED


def _on_white_canvas(rgb: Image.Image, part: tuple[int, int, int, int]) -> Image.Image:
    """A GIF's first frame, of which Pillow fills all but ``part`` with the palette's colour 0."""
    canvas = Image.new("RGB", rgb.size, "white")
    canvas.paste(rgb.crop(part), part)
    return canvas


def _has_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # what follows the first frame is damaged, and is not read
        return True


def _why_unknown(content: bytes) -> str:
    """Why Pillow cannot open a file: the reason of the format whose first bytes these are."""
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory and accepts and accepts(content[:16]):
            try:
                factory(io.BytesIO(content), "")
            except Exception as error:  # as for any damaged file
                return f"a {name} file that Pillow cannot open ({error}); save it as an 8-bit PNG"
    return f"not an image of a known format ({', '.join(FORMATS)})"


def _prepare_tiff(image: TiffImageFile) -> Remark:
    """Correct or refuse what Pillow would read wrongly without an error."""
    tags = image.tag_v2
    bits, order = max(tags.get(258, (1,))), "B" if tags.prefix == b"MM" else "L"
    is_raw, in_planes = tags.get(259, 1) == 1, tags.get(284, 1) == 2
    is_signed, colours = 2 in tags.get(339, (1,)), tags.get(262)
    pixels = image.width * image.height
    faults = {
        "signed 8-bit pixels": is_signed and bits == 8,
        "Lab colours in planes": colours == 8 and in_planes,
        "YCbCr with fewer colours than pixels, uncompressed": colours == 6
        and is_raw
        and sum(tags.get(279, tags.get(325, ()))) < 3 * pixels,
        "compressed big-endian integers of 32 bits or with a sign": order == "B"
        and not is_raw
        and image.mode == "I",
        "CMYK of 16 bits in planes": image.mode == "CMYK" and bits == 16 and in_planes and is_raw,
    }
    if wrong := next((name for name, is_so in faults.items() if is_so), ""):
        raise ValueError(f"a TIFF of {wrong}, which Pillow reads wrongly; save it as an 8-bit PNG")
    if bits == 16 and in_planes and is_raw:  # Pillow takes each byte for a pixel
        image.tile = [
            tile._replace(args=(f"{band};16{order}", *rest))
            for tile in image.tile
            for band, *rest in [cast(tuple[Any, ...], tile.args)]
        ]
    return Remark.TURNED if tags.get(_ORIENTATION) in UPRIGHT else Remark(0)  # Pillow turns it


def _to_rgb(image: Image.Image, content: bytes) -> tuple[Image.Image, Remark]:
    bits, remark, is_png = 8, Remark(0), image.format == "PNG"
    if isinstance(image, TiffImageFile):
        bits = max(image.tag_v2.get(258, (1,)))
    elif is_png:
        bits = content[24]
    if image.mode[0] in "IF":
        image, remark = _grey_of_8_bits(image, bits)
    elif bits == 16:
        extrema = cast(tuple[tuple[int, int], ...], image.getextrema())
        highest = max(high for _, high in extrema[:3])
        remark = Remark.HIGH_BYTE | (Remark.DIM if highest < 16 else Remark(0))
    if is_png and "transparency" in image.info:
        image = _with_key(image, bits, content)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            remark |= Remark.ON_WHITE
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    elif image.mode in ("CMYK", "LAB"):
        remark |= Remark.COLOURS
    return image if image.mode == "RGB" else image.convert("RGB"), remark


def _grey_of_8_bits(image: Image.Image, bits: int) -> tuple[Image.Image, Remark]:
    """Grey of more than 8 bits as 8 bits; ``bits`` are those of the file."""
    values = np.asarray(image)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(262) == 0:
        values = 0xFFFF - values  # 0 is white: of fewer bits Pillow inverts it
    lowest, highest = values.min(), values.max()
    if image.mode == "F" or lowest < 0 or highest > 0xFFFF:
        raise ValueError("float or 32-bit pixels, of unknown range; save it with 8 or 16 bits")
    shift, remark = 8, Remark.HIGH_BYTE
    if bits == 12:
        shift = 4
    elif image.format == "TIFF" and image.mode == "I":
        shift, remark = (0 if highest < 256 else 8), Remark.GUESSED
    if shift == 8 and highest < 4096:
        remark |= Remark.DIM
    grey = Image.fromarray((values >> shift).astype(np.uint8))
    if (key := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey, remark


def _with_key(image: Image.Image, bits: int, content: bytes) -> Image.Image:
    """A PNG whose transparent level or colour is compared in all bits of the file.

    Pillow compares the file's number with the 8 bits that it made of each pixel.
    """
    key = image.info["transparency"]
    if image.mode == "L":
        most = (1 << bits) - 1
        image.info["transparency"] = (key & most) * 255 // most
    elif image.mode == "RGB" and bits == 16:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as low:
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]  # the other bytes
            is_key = np.asarray(image) == np.array(key) >> 8
            is_key &= np.asarray(low) == np.array(key) & 255
        image.putalpha(Image.fromarray(np.where(is_key.all(axis=2), 0, 255).astype(np.uint8)))
    return image
