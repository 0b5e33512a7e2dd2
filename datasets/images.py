"""The one place where image files become tensors."""

import io
import os
import stat
import warnings
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
MAX_BYTES = 1 << 30  # of a file: more than MAX_PIXELS in 16-bit colour
MAX_PIXELS = 120_000_000  # 12,000 x 10,000; the header of a small file can claim far more

# torchvision decodes plain JPEGs of up to this many pixels. It gives the same pixels as Pillow in a
# third of the time for 32 x 32; for large images both take the same time.
SMALL = 256 * 256
# Markers allowed before the pixels of a plain JPEG: tables, restart interval, JFIF, comment, frame.
_PLAIN = frozenset({0xC4, 0xDB, 0xDD, 0xE0, 0xFE, 0xC0})

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
    """Decode the bytes of an image file of any of ``FORMATS`` to RGB: (3, H, W) uint8.

    The content decides the format; ``path`` is only for error messages. EXIF orientation is
    applied; transparency is composed on white; grey, palette, CMYK and other colour spaces are
    converted; 16-bit channels keep their high byte (value >> 8); the first frame of an animation
    is read.
    Raises BrokenImage for everything that cannot be decoded completely: empty, truncated, not an
    image, more than ``MAX_PIXELS`` pixels, pixels without a fixed range (float, 32-bit).
    """
    if _is_small_plain_jpeg(content):
        try:
            return _decode_plain_jpeg(content)
        except RuntimeError:
            pass  # damaged, or this torchvision has no decoder: use Pillow
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
            image.load()
            return _to_tensor(_to_rgb(_upright(image)))
    except MemoryError:
        raise  # this is about the machine, not about the file
    except Exception as error:  # Pillow's decoders raise almost any type on damaged files
        raise BrokenImage(path, reason(error)) from error


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
    """A few words for a message about an error that reading an image raised."""
    if isinstance(error, UnidentifiedImageError):
        return f"not an image of a known format ({', '.join(FORMATS)})"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return str(error) or type(error).__name__


def _is_small_plain_jpeg(content: bytes) -> bool:
    """Whether ``content`` is a baseline JPEG of up to SMALL pixels, 8 bits, without EXIF."""
    place, frames = 2, []
    while (head := content[place : place + 10])[:1] == b"\xff" and head[1:] and head[1] in _PLAIN:
        if head[1] == 0xC0:  # marker, length (2 bytes each), bits, height, width (2), channels
            frames.append(head)
        place += 2 + int.from_bytes(head[2:4], "big")
    if content[:2] != b"\xff\xd8" or head[:2] != b"\xff\xda" or len(frames) != 1:
        return False
    bits, channels = frames[0][4], frames[0][9]
    height, width = (int.from_bytes(frames[0][at : at + 2], "big") for at in (5, 7))
    return bits == 8 and channels in (1, 3) and 0 < height * width <= SMALL


def _decode_plain_jpeg(content: bytes) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg  # takes a second; not every run needs it

    pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    image: Tensor = decode_jpeg(pixels, mode=ImageReadMode.RGB)
    return image.contiguous()


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also rewrites the EXIF data, which fails if they are damaged.
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
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_tensor(rgb: Image.Image) -> Tensor:
    pixels = bytearray()
    for band in "RGB":  # channel by channel: takes a quarter of the time of permuting (H, W, 3)
        pixels += rgb.tobytes("raw", band)
    return torch.frombuffer(pixels, dtype=torch.uint8).view(3, rgb.height, rgb.width)


def _high_byte(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey. (For 16-bit colour, Pillow itself keeps the high byte.)"""
    low, high = cast(tuple[float, float], image.getextrema())
    if image.mode == "F" or low < 0 or high > 0xFFFF:
        raise ValueError("float or 32-bit pixels, of unknown range; save it with 8 or 16 bits")
    return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
