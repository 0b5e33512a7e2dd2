"""What ``Model.predict`` takes for an image: paths, files' bytes, PIL images, arrays, tensors."""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile
from torch import Tensor

from datasets.bands import Form, decode_array
from trainer.build.trained import TrainedModel, fitted
from trainer.inference.prediction import Decoded, Readable, decoded_file, file_source
from yaml_trainer.errors import InputError

Pixels: TypeAlias = npt.NDArray[Any]
Picture: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | Pixels | Tensor
)
Pictures: TypeAlias = Picture | Iterable[Picture]

FILES = (str, os.PathLike, bytes, bytearray, memoryview)
REFUSALS = (ValueError, TypeError, OSError, RuntimeError, SyntaxError)  # of Pillow and torch
GIVE_FILE = "give its path or its file's bytes"
KINDS = "a path, the bytes of a file, a PIL image, a NumPy array or a tensor"
COLOURS = frozenset({1, 2, 3, 4})  # channels of a picture: grey or RGB, each also with alpha
ALPHA = (2, 4)  # of these, the last channel
ORIENTATION = 0x0112  # the EXIF tag
SAVED = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})  # modes that a PNG holds
TO_RGB = frozenset({"CMYK", "YCbCr", "HSV", "LAB"})  # modes that become RGB
TO_ALPHA = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}  # and these


def sources_of(images: Pictures) -> Iterator[Readable]:
    """Yield a Readable for each image; what is no image is refused when it is read."""
    for number, image in enumerate(one_by_one(images)):
        name = f"images[{number}]"
        try:
            yield source_of(image, name)
        except REFUSALS as error:
            yield _refused(name, " ".join(str(error).split()) or type(error).__name__)


def one_by_one(images: Pictures) -> Iterator[Picture]:
    """Yield the images: of one, itself; of an array of four dimensions, its first one's parts.

    Raises InputError if it is neither an image nor a collection of images.
    """
    if isinstance(images, np.ndarray | Tensor):
        of_several = images.ndim == 4 or (
            isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "UO"
        )
        yield from images if of_several else (images,)
    elif isinstance(images, (*FILES, Image.Image)):
        yield images
    elif isinstance(images, Mapping) or getattr(images, "ndim", 1) != 1:
        raise InputError(f"images: {_kind(images)}; expected {KINDS}, or a list of these")
    elif hasattr(images, "read"):
        raise InputError(f"images: {_kind(images)}, an open file; give its content: file.read()")
    else:
        try:
            found = iter(images)
        except TypeError:
            what = f"images: {_kind(images)}; expected {KINDS}, or a list of these"
            raise InputError(what) from None
        yield from found


def source_of(image: Picture, name: str) -> Readable:
    """The Readable of an image. Pixels are copied now; all else is read later, in a thread.

    Raises one of REFUSALS.
    """
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        return Readable(f"{name} ({path})", file_source(path).read)
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes_source(bytes(image), name)
    if isinstance(image, Image.Image):
        return pil_source(image, name)
    if isinstance(image, np.ndarray | Tensor):
        copy = image.detach().cpu().clone() if isinstance(image, Tensor) else image.copy()
        return Readable(name, lambda trained: of_pixels(trained, pixels_of(copy, trained), name))
    raise ValueError(f"{_kind(image)}; expected {KINDS}")


def bytes_source(content: bytes, name: str) -> Readable:
    """The image in a file's bytes."""
    return Readable(name, lambda trained: decoded_file(trained, content, name))


def of_pixels(trained: TrainedModel, pixels: Pixels, name: str) -> Decoded:
    """The image of decoded pixels (H, W, C), as the run's reader would give those of a file."""
    form = trained.form
    if form.is_plain and pixels.shape[2] in ALPHA:  # Pillow composes it, as that of a file
        return of_pil(trained, Image.fromarray(pixels), name)
    image, remark = decode_array(form, pixels)
    return Decoded(fitted(image, form, trained.image_channels, name), remark)


def pil_source(image: Image.Image, name: str) -> Readable:
    """The image as its file would give it, where that can still be known; ValueError if not."""
    if path := getattr(image, "filename", ""):
        name = f"{name} ({path})"
    if (content := _unread_file(image)) is not None:
        return bytes_source(content, name)
    image.load()
    if 0 in image.size:
        raise ValueError("a PIL image of {} x {} pixels, which are none".format(*image.size))
    orientation = image.getexif().get(ORIENTATION, 1)
    copy, origin = image.copy(), image.format or ""
    part = getattr(image, "dispose_extent", None)
    if origin == "GIF" and part not in (None, (0, 0, *image.size)):
        raise ValueError(f"a GIF whose first frame is a part of it; {GIVE_FILE}")
    return Readable(name, lambda trained: of_pil(trained, copy, name, orientation, origin))


def of_pil(
    trained: TrainedModel, image: Image.Image, name: str, orientation: int = 1, origin: str = ""
) -> Decoded:
    """The image of a PIL image whose pixels are decoded. Raises ValueError.

    orientation: by EXIF. origin: the format of its file.
    """
    mode = image.mode
    if mode not in SAVED | TO_RGB | TO_ALPHA.keys() or (mode == "I;16" and origin == "TIFF"):
        what = f"a PIL image of mode {mode}{f' from a {origin}' * bool(origin)}"
        raise ValueError(f"{what}, whose pixels have no known range; {GIVE_FILE}")
    if trained.form.bits == 16 and mode != "I;16" and origin != "JPEG":
        raise ValueError(
            f"a PIL image of mode {mode}, in which Pillow keeps 8 bits a channel, and the run's "
            f"images have 16; {GIVE_FILE}, or a uint16 array"
        )
    if mode in TO_RGB:
        image = image.convert("RGB")
    elif mode in TO_ALPHA:
        image = image.convert(TO_ALPHA[mode])
    if image.mode in ("L", "RGB") and orientation == 1 and "transparency" not in image.info:
        pixels = np.array(image)
        return of_pixels(trained, pixels.reshape(*pixels.shape[:2], -1), name)
    return decoded_file(trained, _as_png(image, orientation), name)


def _unread_file(image: Image.Image) -> bytes | None:
    """The content of the file whose pixels are not read yet; None if they are, or are changed."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile or image.fp is None:
        return None
    if image.tell():  # another frame than the first
        return None
    place = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(place)
    with Image.open(io.BytesIO(content)) as again:
        is_same = (again.size, again.mode) == (image.size, image.mode)  # not so after `draft`
    return content if is_same else None


def _as_png(image: Image.Image, orientation: int) -> bytes:
    """A PNG of the pixels, the palette, the transparency and the EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, exif=exif)
    return file.getvalue()


def pixels_of(array: Pixels | Tensor, trained: TrainedModel) -> Pixels:
    """An image's pixels, contiguous (H, W, C), in native byte order.

    A tensor is (C, H, W) or (H, W); an array may be (H, W, C) too. Raises ValueError.
    """
    pixels, form = _as_array(array), trained.form
    allowed = COLOURS if form.channels == "rgb" else frozenset({trained.image_channels})
    _require_levels(array, pixels, form)
    shape = tuple(pixels.shape)
    if len(shape) not in (2, 3) or 0 in shape:
        _refuse_shape(array, shape, allowed)
    if len(shape) == 2:
        pixels = pixels[..., None]
    is_first, is_last = pixels.shape[0] in allowed, pixels.shape[2] in allowed
    if len(shape) == 3 and isinstance(array, Tensor):
        if not is_first:
            _refuse_shape(array, shape, allowed)
        pixels = pixels.transpose(1, 2, 0)
    elif len(shape) == 3 and is_first and is_last:
        raise ValueError(
            f"an array of shape {shape}, whose first and last side may both be channels; give "
            "torch.tensor(x) of (C, H, W), which leaves no doubt"
        )
    elif len(shape) == 3 and is_first:
        pixels = pixels.transpose(1, 2, 0)
    elif not is_last:
        _refuse_shape(array, shape, allowed)
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def _as_array(array: Pixels | Tensor) -> Pixels:
    if not isinstance(array, Tensor):
        return array
    try:  # bfloat16, which NumPy lacks, is no level anyway
        return array.float().numpy() if array.is_floating_point() else array.numpy()
    except (TypeError, RuntimeError) as error:  # a sparse or quantised one
        raise ValueError(f"a tensor that is no array of pixels: {error}") from None


def _refuse_shape(
    array: Pixels | Tensor, shape: tuple[int, ...], allowed: frozenset[int]
) -> NoReturn:
    counts = " or ".join(map(str, sorted(allowed)))
    wanted = "(C, H, W)" if isinstance(array, Tensor) else "(H, W, C), (C, H, W)"
    message = f"{_kind(array)} of shape {shape}; expected {wanted} or (H, W), with C {counts}"
    if len(shape) == 1 and array.dtype in (np.uint8, torch.uint8):
        message += "; of a file's bytes give bytes(x)"
    elif isinstance(array, Tensor) and len(shape) == 3 and shape[2] in allowed:
        message += ": x.permute(2, 0, 1) makes it so"
    elif len(shape) > 4:
        message += "; of several images give a list"
    raise ValueError(message)


def _require_levels(array: Pixels | Tensor, pixels: Pixels, form: Form) -> None:
    """Raise ValueError unless the values are levels of uint8, or uint16 for a run of 16 bits."""
    is_tensor = isinstance(array, Tensor)
    if isinstance(pixels, np.ma.MaskedArray):
        raise ValueError("a masked array; expected all pixels: x.filled(0) gives the masked ones 0")
    kind, size = pixels.dtype.kind, pixels.dtype.itemsize
    if kind == "u" and (size == 1 or (size == 2 and form.bits == 16)):
        return
    best, most = ("uint16", 65535) if form.bits == 16 else ("uint8", 255)
    wanted = f"expected {'uint8 or ' * (form.bits == 16)}{best}, 0 to {most}"
    cast = f".to(torch.{best})" if is_tensor else f".astype(np.{best})"
    what = f"{_kind(array)} of {array.dtype}, shape {tuple(pixels.shape)}"
    if kind not in "buif" or not pixels.size:
        raise ValueError(f"{what}; {wanted}")
    if kind == "b":
        raise ValueError(f"{what}; {wanted}: x{cast} * {most}")
    low, high = pixels.min(), pixels.max()
    what += f", values {low:.6g} to {high:.6g}"
    if not np.isfinite([low, high]).all():
        help_ = "it holds NaN or infinity"
    elif low < 0:
        help_ = "if it is normalised, give the image from before that"
    elif kind == "f" and high <= 1:
        help_ = f"(x * {most}).round(){cast}"
    elif high <= most:
        help_ = f"x{'.round()' * (kind == 'f')}{cast}"
    elif high <= 65535 and kind != "f":
        help_ = f"(x >> 8){cast} keeps the high byte, as a file's is kept"
    else:
        help_ = f"scale it to 0 to {most} first"
    raise ValueError(f"{what}; {wanted}: {help_}")


def _refused(name: str, reason: str) -> Readable:
    def read(trained: TrainedModel) -> Decoded:
        raise ValueError(reason)

    return Readable(name, read)


def _kind(thing: object) -> str:
    """What something is, for a message: "a list", "a float"."""
    if isinstance(thing, Tensor):
        return "a tensor"
    if isinstance(thing, np.ndarray):
        return "an array"
    name = type(thing).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
