"""Makes pictures with Pillow alone: sheets of images with captions, grids of kernels, PNGs."""

import io
import math
import zlib
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import pad

from trainer.drawing.charts import GRID, INK
from trainer.drawing.fonts import fit_to_pixels, font, legible, names_in_lines

LETTERS = 13  # the size of a sheet's captions


def to_picture(image: Tensor) -> Image.Image:
    """Return an image (C, H, W), uint8 or uint16, as an RGB picture.

    Of other channels than 1 or 3 the first three are shown, of 2 the first; of 16 bits the high
    ones.
    """
    image = high_byte(image.cpu()) if image.dtype == torch.uint16 else image.cpu()
    planes = image[: 3 if len(image) > 2 else 1].expand(3, -1, -1)
    if (pixels := planes.permute(1, 2, 0)).is_contiguous():  # a decoded file
        return Image.fromarray(pixels.numpy())
    # Plane by plane takes a tenth of the time of permuting to (H, W, 3).
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes.numpy()])


def high_byte(images: Tensor) -> Tensor:
    """uint16 images as uint8."""
    return (images.int() >> 8).byte()


def sheet(
    pictures: Sequence[Image.Image | Tensor],
    captions: Sequence[str | Sequence[str | Sequence[str]]],
    colours: Sequence[str | None] | None = None,
    columns: int = 4,
    size: int = 160,
) -> Image.Image:
    """Return pictures or images (C, H, W) in rows, each fitted into size x size pixels.

    captions: one or more lines below each picture; one that is a list of names may take several.
    colours: those of its frame and caption.
    """
    lines = [caption_lines([text] if isinstance(text, str) else text, size) for text in captions]
    frames = colours or [None] * len(pictures)
    gap, text_height = 14, 17 * max(map(len, lines), default=0)
    columns = max(1, min(columns, len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    step_x, step_y = size + gap, size + 6 + text_height + gap
    made = Image.new("RGB", (columns * step_x + gap, max(rows * step_y, gap) + gap), "white")
    draw = ImageDraw.Draw(made)
    for i, (picture, texts, colour) in enumerate(zip(pictures, lines, frames, strict=True)):
        x, y = gap + i % columns * step_x, gap + i // columns * step_y
        draw.rectangle((x - 4, y - 4, x + size + 3, y + size + 3), colour or GRID)
        draw.rectangle((x, y, x + size - 1, y + size - 1), "#f2f2f2")
        fitted = fit_into(to_picture(picture) if isinstance(picture, Tensor) else picture, size)
        made.paste(fitted, (x + (size - fitted.width) // 2, y + (size - fitted.height) // 2))
        for n, line in enumerate(texts):
            text = fit_to_pixels(line, LETTERS, caption_width(size))
            draw.text((x - 3, y + size + 7 + 17 * n), text, colour or INK, font(LETTERS, text))
    return made


def caption_width(size: int) -> int:
    """The pixels of a line below a picture of a sheet."""
    return size + 6


def caption_lines(caption: Sequence[str | Sequence[str]], size: int) -> list[str]:
    """The lines of a caption below a picture of ``size``, in letters that a font can write."""
    lines: list[str] = []
    for line in caption:
        if isinstance(line, str):
            lines.append(legible(line))
        else:
            lines += names_in_lines([*map(legible, line)], LETTERS, caption_width(size))
    return lines


def fit_into(picture: Image.Image, size: int) -> Image.Image:
    """Return the picture fitted into size x size; a small one is enlarged by a whole factor."""
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    largest = max(picture.size)
    if largest * 2 <= size:
        times = size // largest
        wanted = (picture.width * times, picture.height * times)
        return picture.resize(wanted, Image.Resampling.NEAREST)
    wanted = (
        max(1, round(picture.width * size / largest)),
        max(1, round(picture.height * size / largest)),
    )
    return picture.resize(wanted, Image.Resampling.BICUBIC, reducing_gap=2.0)


def grid(tensor: Tensor, scale: int | None = None) -> Image.Image:
    """Return float planes (N, h, w) or (N, 3, h, w), such as kernels, as one picture.

    If C is not 3, every plane of (N, C, h, w) is shown by itself. Each item is stretched to
    black..white by its own range. scale: pixels per element.
    """
    planes = tensor.detach().float().cpu().nan_to_num(0, 0, 0)
    if planes.ndim == 3 or planes.shape[1] != 3:
        planes = planes.reshape(-1, 1, *planes.shape[-2:])
    count, _, height, width = planes.shape
    if not planes.numel():
        return Image.new("RGB", (8, 8), "white")
    columns = min(count, 8 if count <= 64 else math.ceil(math.sqrt(count)))
    room = 128 if columns <= 8 else 1024 // columns  # pixels for each plane
    scale = scale or max(1, round(room / max(height, width)))
    low, high = (end((1, 2, 3), keepdim=True) for end in (planes.amin, planes.amax))
    values = ((planes - low) / (high - low).clamp_min(1e-12) * 255).round().byte()
    values = values.expand(-1, 3, -1, -1)
    values = values.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    values = pad(values, (0, 2, 0, 2), value=255)  # thin white gaps
    rows = math.ceil(count / columns)
    values = torch.cat([values, values.new_full((rows * columns - count, *values.shape[1:]), 255)])
    tall, wide = values.shape[-2:]
    planes = values.view(rows, columns, 3, tall, wide).permute(2, 0, 3, 1, 4)
    return to_picture(pad(planes.reshape(3, rows * tall, columns * wide), (2, 0, 2, 0), value=255))


def png(picture: Image.Image) -> bytes:
    """Return the picture as a PNG, compressed fast: files are a tenth larger than they could be."""
    content = io.BytesIO()
    picture.save(content, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return content.getvalue()
