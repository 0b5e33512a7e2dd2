"""Image files with their own channels, or with 16 bits a channel, for ``channels`` and ``bits``."""

import contextlib
import functools
import hashlib
import io
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from datasets import BrokenImage, DataError, tiff
from datasets.heif import is_heif, read_heif, recipe_of_heif
from datasets.images import (
    FORMATS,
    MAX_PIXELS,
    UPRIGHT,
    Remark,
    decode_and_tell,
    decoders,
    reason,
)
from datasets.tiff import read_tiff
from datasets.words import agreeing

Channels = Literal["rgb", "keep"]
Bits = Literal[8, 16]
Pixels = npt.NDArray[Any]  # (H, W, C), uint8 or uint16

MAX_CHANNELS = 64
MAX_VALUES = 3 * MAX_PIXELS  # of an image, in all channels
NPY = b"\x93NUMPY"
FEWER_BITS = 256  # beside those of Remark: fewer than 16 bits, scaled to 16
_PNG = b"\x89PNG\r\n\x1a\n"
_CODESTREAM = b"\xff\x4f\xff\x51"  # how one of JPEG 2000 begins
_JPEG_2000 = (_CODESTREAM, b"\0\0\0\x0cjP  \r\n\x87\n")
_TOO_DEEP = "over 8 bits in this format are not read whole; save it as PNG or TIFF"
_BANDS_OF = {"1": 1, "L": 1, "I": 1, "F": 1, "I;16": 1, "I;16B": 1, "I;16L": 1, "I;16N": 1}
_WITH_ALPHA = {"LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA", "PA": "RGBA"}


class Form(NamedTuple):
    """What image files become: their own channels or RGB, of 8 or 16 bits."""

    channels: Channels = "rgb"
    bits: Bits = 8

    @property
    def is_plain(self) -> bool:
        """Whether images become RGB of 8 bits."""
        return self.channels == "rgb" and self.bits == 8

    @property
    def suffixes(self) -> frozenset[str]:
        """Suffixes of files that are read in this form only."""
        return frozenset() if self.is_plain else frozenset({".npy"})


def decode_as(form: Form, content: bytes, path: str, at_least: int = 0) -> tuple[Tensor, int]:
    """Decode an image file to ``form``: (C, H, W) uint8, or uint16 if it has 16 bits.

    The second value is a Remark, and FEWER_BITS. at_least: as for ``decode_and_tell``, which does
    it for a plain form.
    ``channels: keep`` keeps 1 to MAX_CHANNELS channels: grey, grey and alpha, RGB, RGBA, the bands
    of a TIFF or an array. A palette, CMYK and other colours become RGB; a transparent colour, which
    is no channel, becomes white.
    16 bits are read from PNG, TIFF and .npy files; 8 bits v become 257 v, b bits v / (2^b - 1)
    times 65535, rounded. ``bits: 8`` keeps the high byte.
    Raises BrokenImage with the reason for what cannot be read.
    """
    if form.is_plain and not is_heif(content, path):
        try:
            return decode_and_tell(content, path, at_least)
        except BrokenImage as error:
            raise BrokenImage(path, error.reason + _other_form(content)) from error.__cause__
    try:
        pixels, bits, remark = _read(form, content, path, at_least)
        pixels, more = _with_bits(pixels, bits, form.bits)
        return torch.from_numpy(pixels).permute(2, 0, 1), remark | more
    except (MemoryError, BrokenImage):
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage(path, "not an image of a known format") from error
    except Exception as error:  # decoders raise almost any type on damaged files
        raise BrokenImage(path, " ".join(reason(error).split())[:300]) from error


def decode_array(form: Form, pixels: Pixels) -> tuple[Tensor, int]:
    """Pixels (H, W, C), uint8 or uint16, as ``decode_as`` gives those of a file: (C, H, W).

    Two or four channels are grey or RGB and alpha, unless ``form`` keeps channels. Raises
    ValueError for other numbers of channels.
    """
    channels = pixels.shape[2]
    alpha = "straight" if form.channels == "rgb" and channels in (2, 4) else ""
    pixels = _as_rgb(pixels, alpha, channels > 2, form)
    pixels, more = _with_bits(pixels, pixels.itemsize * 8, form.bits)
    return torch.from_numpy(pixels).permute(2, 0, 1), Remark.READ | more


def recipe_of_form(form: Form, how: str, ids: Iterable[str]) -> str:
    """All that decides the pixels of a content, besides ``at_least``.

    how: exact or fast. ids: the names of all files.
    """
    text = f"{how} decoding by {decoders()}{recipe_of_heif(ids, __file__)}"
    if form.is_plain:
        return text
    return f"{text}, channels {form.channels}, {form.bits} bits by {_own_code()}"


@functools.cache
def _own_code() -> str:
    code = b"".join(Path(str(name)).read_bytes() for name in (__file__, tiff.__file__))
    return f"{tiff.tiff_readers()}, code {hashlib.sha256(code).hexdigest()}"


def check_form(form: Form, ids: Sequence[str]) -> None:
    """Raise DataError if ``ids`` name TIFF files, and what reads them in ``form`` is missing."""
    if form.is_plain or _reads_tiff():
        return
    if count := sum(name.lower().endswith((".tif", ".tiff")) for name in ids):
        wanted = f"channels: {form.channels}, bits: {form.bits}"
        raise DataError(f"dataset: {count:,} TIFF files; to read them with {wanted}: {tiff.EXTRA}")


def form_in(arguments: Mapping[str, Any]) -> Form:
    """The form that a dataset's arguments give."""
    channels: Channels = "keep" if arguments.get("channels") == "keep" else "rgb"
    return Form(channels, 16 if arguments.get("bits") == 16 else 8)


def notes_on_bits(remarks: Iterable[int]) -> list[str]:
    """A line with the number of images that hold fewer bits than they are given."""
    kept = [remark for remark in remarks if remark]
    count = sum(bool(remark & FEWER_BITS) for remark in kept)
    what = agreeing(count, "hold fewer than 16 bits a channel, scaled to 16 (8 bits: times 257)")
    return [f"{count:,} of {len(kept):,} images {what}"] if count else []


def notes_on_pictures(form: Form, channels: Collection[int]) -> list[str]:
    """A line on what pictures of images with these numbers of channels leave out."""
    parts = [f"the first three of {count} channels" for count in channels if count > 3]
    parts += ["the first of 2 channels"] * (2 in channels)
    parts += ["the high byte of 16 bits"] * (form.bits == 16)
    return [f"pictures of these images show {' and '.join(parts)}"] if parts else []


def _reads_tiff() -> bool:
    return bool(find_spec("tifffile") and find_spec("imagecodecs"))


def _other_form(content: bytes) -> str:
    """What to say of a form that reads a TIFF, or a PNG of 16 bits, that Pillow cannot; or ""."""
    is_tiff = content.startswith(tiff.MARKS)
    if not is_tiff and not (content.startswith(_PNG) and content[24:25] == b"\x10"):
        return ""
    if is_tiff and not _reads_tiff():
        how = f"dataset.channels=keep or dataset.bits=16 may read it, with {tiff.EXTRA}"
        return f"; training with {how}"
    for form, typed in ((Form("rgb", 16), "bits=16"), (Form("keep", 8), "channels=keep")):
        with contextlib.suppress(Exception):  # of a damaged file too
            _read(form, content, "", 0)
            return f"; training with dataset.{typed} reads it"
    return ""


def _read(form: Form, content: bytes, path: str, at_least: int) -> tuple[Pixels, int, int]:
    """Pixels (H, W, C), their bits, and a Remark."""
    if content.startswith(NPY):
        pixels = _from_npy(content)
        return _as_rgb(pixels, "", pixels.shape[2] == 3, form), pixels.itemsize * 8, Remark.READ
    if content.startswith(tiff.MARKS):
        found = read_tiff(content, MAX_VALUES, MAX_CHANNELS)
        if found is not None:
            pixels, turned = _turned(found.values, found.orientation)
            pixels = _as_rgb(pixels, found.alpha, found.is_rgb, form, found.bits)
            return pixels, found.bits, Remark.READ | turned
    elif content.startswith(_PNG) and content[24:25] == b"\x10":
        return _png_of_16_bits(content, form)
    elif is_heif(content, path):
        return _from_heif(content, form)
    return _of_8_bits(form, content, path, at_least)


def _of_8_bits(form: Form, content: bytes, path: str, at_least: int) -> tuple[Pixels, int, int]:
    """A file that is RGB of 8 bits but for its own channels: grey, or with alpha."""
    if form.bits == 16 and _hides_bits(content):
        raise ValueError(_TOO_DEEP)
    bands = 3
    if form.channels == "keep":
        warnings.filterwarnings("ignore", module="PIL")
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if mode := _WITH_ALPHA.get(image.mode):
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"more than {MAX_PIXELS:,} pixels")
                frames = Remark.FIRST if getattr(image, "is_animated", False) else Remark(0)
                pixels, turned = _turned(np.array(image.convert(mode)), _orientation(image))
                return pixels, 8, Remark.READ | frames | turned
            bands = _BANDS_OF.get(image.mode, 3)
    rgb, remark = decode_and_tell(content, path, at_least)
    _check_bits(remark, form)
    return rgb.permute(1, 2, 0).numpy()[..., :bands], 8, remark


def _check_bits(remark: int, form: Form) -> None:
    if remark & Remark.HIGH_BYTE and form.bits == 16:
        raise ValueError(_TOO_DEEP)


def _hides_bits(content: bytes) -> bool:
    """Whether a file holds over 8 bits a channel, of which Pillow gives 8 and tells nothing."""
    if content[:2] in (b"P3", b"P6"):
        with Image.open(io.BytesIO(content), formats=("PPM",)) as image:
            args = image.tile[0].args  # of 8 bits a text, else with the highest level
            return isinstance(args, tuple) and args[-1] > 255
    if content.startswith(_JPEG_2000) and (start := content.find(_CODESTREAM)) >= 0:
        channels = int.from_bytes(content[start + 40 : start + 42])
        sizes = content[start + 42 : start + 42 + 3 * channels : 3]  # a sign, and the bits less 1
        return any(size & 127 > 7 for size in sizes)
    if content[8:12] in (b"avif", b"avis") and (start := content.find(b"av1C")) >= 0:
        return bool(content[start + 6] & 64)  # 10 or 12 bits
    return False


def _from_heif(content: bytes, form: Form) -> tuple[Pixels, int, int]:
    pixels, remark = read_heif(content)
    _check_bits(remark, form)
    alpha = "straight" if pixels.shape[2] == 4 else ""
    if alpha and form.channels == "rgb" and (pixels[..., -1] < 255).any():
        remark |= Remark.ON_WHITE
    return _as_rgb(pixels, alpha, True, form), 8, remark


def _png_of_16_bits(content: bytes, form: Form) -> tuple[Pixels, int, int]:
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"more than {MAX_PIXELS:,} pixels")
        key, orientation = image.info.get("transparency"), _orientation(image)
        frames = Remark.FIRST if getattr(image, "is_animated", False) else Remark(0)
    pixels = _samples_of_png(content)
    remark = Remark.READ | frames
    if key is not None:  # one colour is transparent, compared in all its bits
        is_key = (pixels == np.array(key)).all(axis=2)
        pixels = np.where(is_key[..., None], np.uint16(65535), pixels)
        remark |= Remark.ON_WHITE if is_key.any() else Remark(0)
    pixels, turned = _turned(pixels, orientation)
    channels = pixels.shape[2]
    alpha = "" if channels in (1, 3) else "straight"
    if alpha and form.channels == "rgb" and (pixels[..., -1] < 65535).any():
        remark |= Remark.ON_WHITE
    return _as_rgb(pixels, alpha, channels > 2, form), 16, remark | turned


def _samples_of_png(content: bytes) -> Pixels:
    """All bits of a 16-bit PNG, of which Pillow keeps the high byte of colours: read it twice.

    Not by torchvision: its decode_image ends the process at some damaged files.
    """
    by_byte = []
    for order in "BL":  # "L" takes the other byte of each two
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            raw = str(image.tile[0].args)
            if raw == "LA;16B":  # four bytes a pixel
                image.tile = [tile._replace(args="RGBA") for tile in image.tile]
                return np.array(image).view(">u2").astype(np.uint16)
            if raw == "I;16B":
                return np.array(image, np.uint16)[..., None]
            image.tile = [tile._replace(args=f"{raw[:-1]}{order}") for tile in image.tile]
            by_byte.append(np.array(image, np.uint16))
    return by_byte[0] << 8 | by_byte[1]


def _from_npy(content: bytes) -> Pixels:
    """An array of a .npy file as (H, W, C); the header decides, and nothing is unpickled."""
    file = io.BytesIO(content)
    form = np.lib.format
    read = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}
    if (found := form.read_magic(file)) not in read:
        raise ValueError(f"a .npy file of version {found}")
    shape, by_columns, dtype = read[found](file)
    if dtype.kind != "u" or dtype.itemsize > 2:
        raise ValueError(f"an array of {dtype}; uint8 and uint16 are read")
    if len(shape) not in (2, 3) or min(shape) < 1 or (*shape, 1)[2] > MAX_CHANNELS:
        what = f"expected (H, W) or (H, W, C), with C up to {MAX_CHANNELS}"
        raise ValueError(f"an array of shape {shape}; {what}")
    height, width, channels = (*shape, 1)[:3]
    size, values = len(content) - file.tell(), height * width * channels
    if values > MAX_VALUES:
        raise ValueError(f"an array of {values:,} values, more than {MAX_VALUES:,} are allowed")
    if size != values * dtype.itemsize:
        raise ValueError(f"{size:,} bytes of pixels; {shape} of {dtype} needs another number")
    array = np.frombuffer(content, dtype, offset=file.tell())
    array = array.reshape(shape, order="F" if by_columns else "C").reshape(height, width, channels)
    return np.array(array, dtype.newbyteorder("="), order="C")


def _as_rgb(pixels: Pixels, alpha: str, is_rgb: bool, form: Form, bits: int = 0) -> Pixels:
    """Pixels (H, W, C) as three channels if ``form`` wants them, alpha composed on white."""
    if form.channels == "keep":
        return pixels
    channels = pixels.shape[2]
    colours = channels - bool(alpha)
    if colours != (3 if is_rgb else 1):
        raise ValueError(f"{channels} channels that are not RGB; to keep them: channels: keep")
    shown = pixels[..., :colours]
    if alpha:
        white = (1 << (bits or 8 * pixels.itemsize)) - 1
        levels, share = shown.astype(np.uint64), pixels[..., -1:].astype(np.uint64)
        if alpha == "straight":
            levels = (2 * levels * share + white) // (2 * white)
        shown = np.minimum(levels + white - share, white).astype(pixels.dtype)
    return np.repeat(shown, 3, axis=2) if shown.shape[2] == 1 else shown


def _with_bits(pixels: Pixels, bits: int, wanted: int) -> tuple[Pixels, int]:
    """Pixels of ``bits`` bits as ``wanted``: scaled up, or the high ones; and a Remark for that."""
    if wanted == 16:
        if bits == 16:
            return np.ascontiguousarray(pixels), 0
        return _scaled(pixels, bits, 65535).astype(np.uint16), FEWER_BITS
    if bits == 8:
        return np.ascontiguousarray(pixels), 0
    if bits < 8:
        return _scaled(pixels, bits, 255).astype(np.uint8), 0
    remark = Remark.HIGH_BYTE | (Remark.DIM if bits == 16 and pixels.max() < 4096 else Remark(0))
    return (pixels >> (bits - 8)).astype(np.uint8), remark


def _scaled(pixels: Pixels, bits: int, white: int) -> Pixels:
    most = (1 << bits) - 1
    scaled: Pixels = (pixels.astype(np.uint64) * 2 * white + most) // (2 * most)  # rounded
    return scaled


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(274, 1))
    except Exception:  # the pixels are good, only the metadata is not
        return 1


def _turned(pixels: Pixels, orientation: int) -> tuple[Pixels, Remark]:
    if orientation not in UPRIGHT:
        return pixels, Remark(0)
    rows_to_columns, down, across = UPRIGHT[orientation]
    turned = pixels.swapaxes(0, 1) if rows_to_columns else pixels
    return np.ascontiguousarray(turned[::down, ::across]), Remark.TURNED
