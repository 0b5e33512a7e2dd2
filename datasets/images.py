"""The one place where image files become tensors."""

import io
import os
import stat
import warnings
from pathlib import Path
from typing import cast

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from datasets import BrokenImage

# A file is listed by its suffix, but decoded by its content: a PNG named .jpg is read as a PNG.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 120_000_000  # 12,000 x 10,000; a small file can claim far more

_ORIENTATION = 0x0112  # the EXIF tag; its value says how the camera was held
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Decode an image file of any of ``FORMATS`` to RGB: (3, H, W) uint8.

    The content decides the format, not the suffix. EXIF orientation is applied; transparency is
    composed on white; grey, palette, CMYK and other colour spaces are converted; 16-bit channels
    keep their high byte (value >> 8); of an animation the first frame is read.
    Raises BrokenImage for everything that cannot be decoded completely: missing, not a regular
    file, empty, truncated, not an image, more than ``MAX_PIXELS`` pixels, pixels without a fixed
    range (float, 32-bit).
    """
    # Pillow warns about odd metadata in files that it reads well. Not `catch_warnings`: this
    # function may run in several threads, and that is not thread-safe. Adding twice is harmless.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        check_file(path)
        content = Path(path).read_bytes()
        if not content:
            raise ValueError("the file is empty")
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,} are allowed"
                )
            image.load()
            rgb = _to_rgb(_upright(image))
    except MemoryError:
        raise  # says something about this machine, not about the file
    except Exception as error:  # Pillow's decoders raise almost any type on damaged files
        raise BrokenImage(str(path), reason(error)) from error
    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return pixels.view(rgb.height, rgb.width, 3).permute(2, 0, 1).contiguous()  # (3, H, W)


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise OSError or ValueError unless ``path`` is a regular file, or a link to one.

    To be called before a file is opened: opening a FIFO waits until somebody writes into it.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL or a lone surrogate, which no file system takes
        raise ValueError(f"cannot be read: {error}") from error
    if not stat.S_ISREG(mode):
        raise ValueError("not a regular file")


def reason(error: Exception) -> str:
    """What a user should know of an error that reading an image raised: a few words."""
    if isinstance(error, UnidentifiedImageError):
        return f"not an image of a known format ({', '.join(FORMATS)})"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return str(error) or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also rewrites the EXIF data, which fails on damaged ones.
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # the pixels are good, only the metadata is not
        orientation = None
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _high_byte(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _high_byte(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey; of 16-bit colour Pillow keeps the high byte by itself."""
    low, high = cast(tuple[float, float], image.getextrema())
    if image.mode == "F" or low < 0 or high > 0xFFFF:
        raise ValueError("float or 32-bit pixels, of unknown range; save it with 8 or 16 bits")
    return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
