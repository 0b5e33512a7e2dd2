"""A run's eval transforms as a module that exporters can follow, for pictures of any size.

torchvision's own code asks for the size of a picture in ``if``; an exporter would take the answer
of one picture for all. Here sizes are numbers to compute with.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torchvision.transforms.v2 as v2
from torch import Tensor, nn

from trainer.process.errors import RunError
from transforms.own import Letterbox, LinearTransformation, Normalize, ToTensor
from transforms.pipeline import Pipeline
from yaml_trainer.export.resizing import Size, resized

OTHER_SIZES = ((37, 53), (64, 40), (300, 211))  # height and width of pictures to try
_BILINEAR, _BICUBIC = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.BICUBIC


class Prepare(nn.Module):
    """Stage 1 and 2 of a run's eval pipeline: (C, H, W) uint8 or uint16 to ([crops,] C, H, W).

    The result is float32, as ``TrainedModel.inputs`` gives it. Levels are float32 on the way: of 8
    bits whole numbers from 0 to 255, of 16 bits from 0 to 1. Raises RunError with the transform's
    name for what a graph cannot express.
    """

    def __init__(self, pipeline: Pipeline, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.once = nn.ModuleList(filter(None, (_step(each, bits == 8) for each in pipeline.fixed)))
        self.later = nn.ModuleList(filter(None, (_step(each, False) for each in pipeline.rest)))

    def forward(self, image: Tensor) -> Tensor:
        """The model's input for one picture, without a batch."""
        levels = image.to(torch.float32)
        if self.bits == 16:
            levels = levels / 65535
        for step in self.once:
            levels = step(levels)
        if self.bits == 8:
            levels = levels / 255
        elif len(self.once):
            levels = (levels * 65535).round().clamp(0, 65535) / 65535
        for step in self.later:
            levels = step(levels)
        return levels


def takes_any_size(prepare: Prepare, channels: int, shape: tuple[int, int, int]) -> bool:
    """Whether pictures of all sizes become ``shape`` (C, H, W)."""
    try:
        made = [prepare(torch.zeros(channels, *size, dtype=torch.uint8)) for size in OTHER_SIZES]
    except (RuntimeError, IndexError):
        return False
    return all(tuple(one.shape[-3:]) == shape for one in made)


class _Resize(nn.Module):
    """``Resize`` of torchvision, and the inner part of ``Letterbox``."""

    def __init__(self, transform: Any, whole: bool) -> None:
        super().__init__()
        self.sides, self.longest = transform.size, transform.max_size
        self.cubic = _mode(transform.interpolation) == _BICUBIC
        self.smooth, self.whole = bool(transform.antialias), whole

    def forward(self, images: Tensor) -> Tensor:
        height, width = self.size_for(images.shape[-2], images.shape[-1])
        return resized(images, height, width, self.cubic, self.smooth, self.whole)

    def size_for(self, height: Size, width: Size) -> tuple[Size, Size]:
        """The new size of a picture; as torchvision computes it, without asking which is longer."""
        if self.sides and len(self.sides) == 2:
            return self.sides[0], self.sides[1]
        if not self.sides:
            side = torch.sym_max(height, width)
            return self.longest * height // side, self.longest * width // side
        side = torch.sym_min(height, width)
        height, width = self.sides[0] * height // side, self.sides[0] * width // side
        if self.longest:
            side = torch.sym_max(height, width)
            height = torch.sym_min(height, self.longest * height // side)
            width = torch.sym_min(width, self.longest * width // side)
        return height, width


class _Letterbox(nn.Module):
    def __init__(self, transform: Letterbox, whole: bool) -> None:
        super().__init__()
        self.height, self.width, self.whole = transform.height, transform.width, whole
        fill = [level / (1 if whole else 255) for level in transform.levels]
        self.register_buffer("fill", _colour(fill))

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        inner = (
            torch.sym_min(self.height, _share(height * self.width, width)),
            torch.sym_min(self.width, _share(width * self.height, height)),
        )
        images = resized(images, *inner, cubic=False, smooth=True, whole=self.whole)
        top, left = (self.height - inner[0]) // 2, (self.width - inner[1]) // 2
        return _window(images, -top, -left, self.height, self.width, self.get_buffer("fill"))


class _Pad(nn.Module):
    def __init__(self, transform: Any) -> None:
        super().__init__()
        sides = transform.padding
        sides = [sides] if isinstance(sides, int) else list(sides)
        self.left, self.top, self.right, self.bottom = (sides * 4)[:4]
        fill = transform.fill or 0
        fill = list(fill) if isinstance(fill, list | tuple) else [fill]
        self.register_buffer("fill", _colour(fill))
        self.is_edge = transform.padding_mode == "edge"

    def forward(self, images: Tensor) -> Tensor:
        height = images.shape[-2] + self.top + self.bottom
        width = images.shape[-1] + self.left + self.right
        fill = None if self.is_edge else self.get_buffer("fill")
        return _window(images, -self.top, -self.left, height, width, fill)


class _Crops(nn.Module):
    """``CenterCrop`` (many 1), ``FiveCrop`` (5) and ``TenCrop`` (10), whose flip is along ``axis``.

    Around a picture that is smaller than its middle crop are zeros.
    """

    def __init__(self, size: Any, many: int = 1, axis: int = -1) -> None:
        super().__init__()
        sides = [size] if isinstance(size, int) else list(size)
        self.height, self.width = sides[0], sides[-1]
        self.many, self.axis = many, axis
        self.register_buffer("fill", torch.zeros(1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if self.many == 1:
            return self.middle(images)
        crops = self.five(images)
        if self.many == 10:
            crops += self.five(images.flip(self.axis))
        return torch.stack(crops, dim=-4)

    def five(self, images: Tensor) -> list[Tensor]:
        height, width = self.height, self.width
        upper, lower = images[..., :height, :], images[..., images.shape[-2] - height :, :]
        right = images.shape[-1] - width
        corners = [each[..., at] for each in (upper, lower) for at in _both(width, right)]
        return [*corners, self.middle(images)]

    def middle(self, images: Tensor) -> Tensor:
        top = _half(images.shape[-2], self.height)
        left = _half(images.shape[-1], self.width)
        return _window(images, top, left, self.height, self.width, self.get_buffer("fill"))


class _Grayscale(nn.Module):
    def __init__(self, channels: int, whole: bool) -> None:
        super().__init__()
        self.channels, self.whole = channels, whole

    def forward(self, images: Tensor) -> Tensor:
        grey = images
        if images.shape[-3] > 1:
            red, green, blue = images[..., :1, :, :], images[..., 1:2, :, :], images[..., 2:3, :, :]
            grey = red * 0.2989 + green * 0.587 + blue * 0.114
            grey = grey.floor() if self.whole else grey
        return torch.cat([grey] * self.channels, dim=-3)


class _Normalize(nn.Module):
    def __init__(self, transform: Normalize) -> None:
        super().__init__()
        self.register_buffer("mean", transform.mean)
        self.register_buffer("std", transform.std)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.get_buffer("mean")) / self.get_buffer("std")


class _Linear(nn.Module):
    def __init__(self, transform: LinearTransformation) -> None:
        super().__init__()
        self.register_buffer("matrix", transform.transform.transformation_matrix)
        self.register_buffer("mean", transform.transform.mean_vector)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(-3) - self.get_buffer("mean")
        return (flat @ self.get_buffer("matrix")).reshape(images.shape)


def _step(transform: Any, whole: bool) -> nn.Module | None:
    """A transform as a module; None if it changes nothing. Raises RunError with its name."""
    if reason := _why_not(transform):
        raise RunError(
            f"--with-preprocessing: {type(transform).__name__} {reason}; leave out "
            "--with-preprocessing, and prepare images as transforms.eval does."
        )
    match transform:
        case ToTensor():
            return None
        case v2.Resize():
            return _Resize(transform, whole)
        case Letterbox():
            return _Letterbox(transform, whole)
        case v2.Pad():
            return _Pad(transform)
        case v2.CenterCrop():
            return _Crops(transform.size)
        case v2.FiveCrop():
            return _Crops(transform.size, 5)
        case v2.TenCrop():
            return _Crops(transform.size, 10, -2 if transform.vertical_flip else -1)
        case v2.Grayscale():
            return _Grayscale(transform.num_output_channels, whole)
        case Normalize():
            return _Normalize(transform)
        case _:
            return _Linear(transform)


def _why_not(transform: Any) -> str:
    """Why a graph cannot do what a transform does; "" if it can."""
    if isinstance(transform, v2.Resize):
        mode = _mode(transform.interpolation)
        if mode not in (_BILINEAR, _BICUBIC):
            return f"with interpolation {mode.value} is not expressed in graphs"
        if transform.antialias is None or (mode == _BICUBIC and not transform.antialias):
            return f"by {mode.value} without antialiasing is not expressed in graphs"
    elif isinstance(transform, v2.Pad) and transform.padding_mode not in ("constant", "edge"):
        return f"with padding_mode {transform.padding_mode} refuses pictures below a size"
    known = (ToTensor, v2.Resize, Letterbox, v2.Pad, v2.CenterCrop, v2.FiveCrop, v2.TenCrop)
    if not isinstance(transform, (*known, v2.Grayscale, Normalize, LinearTransformation)):
        return "has no form in graphs"
    return ""


def _mode(interpolation: Any) -> Any:
    return v2.InterpolationMode(getattr(interpolation, "value", interpolation))


def _colour(fill: Sequence[float]) -> Tensor:
    """Levels (C, 1, 1), one a channel or one for all."""
    return torch.tensor(fill, dtype=torch.float32).view(-1, 1, 1)


def _share(numerator: Size, denominator: Size) -> Size:
    """The quotient rounded half up, at least 1."""
    return torch.sym_max(1, (2 * numerator + denominator) // (2 * denominator))


def _half(old: Size, new: int) -> Size:
    """Where the middle ``new`` of ``old`` pixels begin; below 0 where there are fewer."""
    room, lacking = torch.sym_max(old - new, 0), torch.sym_max(new - old, 0)
    return room // 2 + room % 4 // 3 - lacking // 2  # halves are rounded to even numbers


def _both(width: int, right: int) -> tuple[slice, slice]:
    return slice(None, width), slice(right, None)


def _window(
    images: Tensor, top: Size, left: Size, height: Size, width: Size, fill: Tensor | None
) -> Tensor:
    """The part of images from ``top`` and ``left`` on, which may lie partly outside.

    There it has the colour ``fill`` (C or 1, 1, 1), or without one the nearest pixel's.
    """
    rows = torch.arange(height) + top
    columns = torch.arange(width) + left
    last_row = torch.arange(images.shape[-2])[-1]
    last_column = torch.arange(images.shape[-1])[-1]
    near_rows = torch.minimum(rows.clamp(min=0), last_row)
    near_columns = torch.minimum(columns.clamp(min=0), last_column)
    part = images.index_select(-2, near_rows).index_select(-1, near_columns)
    if fill is None:
        return part
    inside = (rows == near_rows)[:, None] & (columns == near_columns)
    return torch.where(inside, part, fill)
