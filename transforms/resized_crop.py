"""RandomResizedCrop: batched for small images, by torch's kernel for uint8 images for large ones.

Both give the same bits for a sample in any batch. They differ by at most one grey level, and the
shapes of the sample and of its result decide which one runs (``is_large``).
"""

import math
from typing import Any

import torch
import torchvision.transforms.v2 as v2
from torch import Tensor
from torch.nn.functional import embedding_bag, interpolate

from transforms.geometric import mode_of
from transforms.kernel import Kernel, Parameters, Size, is_large, of_one
from transforms.keyed import Draws
from transforms.rectangles import first_valid, random_rectangles

# Where torch resizes uint8 images by vector instructions, torchvision calls the same function.
IS_VECTORISED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")

LARGE_CROP = 2**14  # as ``LARGE``: a batched resized crop costs more than a flip


def takes_resized_crop(transform: v2.RandomResizedCrop) -> bool:
    """Whether interpolation is "nearest" or "bilinear", or "bicubic" with antialias=True."""
    return mode_of(transform) in ("nearest", "bilinear") + ("bicubic",) * bool(transform.antialias)


def draw_resized_crop(transform: v2.RandomResizedCrop, size: Size, draws: Draws) -> Parameters:
    """top, left, height and width (B,) of each window; a central one if no attempt fits."""
    height, width = (torch.as_tensor(side) for side in size[1:])
    widths, heights = random_rectangles(transform, (height * width).view(-1, 1), draws)
    valid = (widths > 0) & (widths <= width.view(-1, 1))
    valid &= (heights > 0) & (heights <= height.view(-1, 1))
    narrowest, widest = min(transform.ratio), max(transform.ratio)
    ratio = width.double() / height
    by_width, by_height = (width.double() / narrowest).round(), (height.double() * widest).round()
    central_height = torch.where(ratio < narrowest, by_width.long(), height)
    central_width = torch.where(ratio > widest, by_height.long(), width)
    h = first_valid(valid, heights, central_height)
    w = first_valid(valid, widths, central_width)
    found = valid.any(1)
    top = torch.where(found, draws.integers(height - h + 1), (height - central_height) // 2)
    left = torch.where(found, draws.integers(width - w + 1), (width - central_width) // 2)
    return {"top": top, "left": left, "height": h, "width": w}


def _hat(x: Tensor) -> Tensor:
    """The filter of bilinear interpolation."""
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """The filter of bicubic interpolation (Keys, 1981, a = -0.5)."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _taps(transform: Any, start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Source positions and weights for resizing a line of ``length`` pixels to ``size`` pixels.

    Source pixels are those from ``start`` to ``start + length`` (B,). Returns (B, size, taps) int64
    and float32. The number of taps depends on the batch; surplus taps have weight 0.
    """
    mode, last = mode_of(transform), (length - 1)[:, None, None]
    if mode == "nearest":
        step = length.float() / size
        places = (torch.arange(size) * step[:, None]).long()[..., None]
        return start[:, None, None] + places.minimum(last), torch.ones(places.shape)
    radius, kernel = (1, _hat) if mode == "bilinear" else (2, _cubic)
    step = length.double() / size
    reach = radius * (step.clamp(min=1) if transform.antialias else torch.ones_like(step))
    center = (torch.arange(size) + 0.5) * step[:, None] - 0.5
    first = torch.ceil(center - reach[:, None]).long()
    places = first[..., None] + torch.arange(math.ceil(2 * float(reach.max())))
    weights = kernel((places - center[..., None]) * radius / reach[:, None, None])
    weights = torch.where((places >= 0) & (places <= last), weights, 0.0)
    weights = weights / weights.sum(2, keepdim=True)
    return start[:, None, None] + places.clamp(min=0).minimum(last), weights.float()


def _combine_rows(images: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Rows (B, C, size, W), each the sum of the rows at ``places`` times ``weights``.

    images: (B, C, H, W) float32.  embedding_bag adds the taps in their order and in one pass over
    memory, which is many times faster than a sum of products.
    """
    batch, channels, height, width = images.shape
    first = (torch.arange(batch * channels) * height).view(batch, channels, 1, 1)
    bags = (first + places[:, None]).flatten(0, 2).to(images.device, non_blocking=True)
    weights = weights[:, None].expand(-1, channels, -1, -1).flatten(0, 2)
    weights = weights.to(images.device, non_blocking=True)
    rows = images.reshape(-1, width).contiguous()  # embedding_bag adds a view in another order
    sums = embedding_bag(bags, rows, mode="sum", per_sample_weights=weights)
    return sums.view(batch, channels, -1, width)


def resized_crop(transform: v2.RandomResizedCrop, images: Tensor, parameters: Parameters) -> Tensor:
    """Crop each sample to its window, and resize the crop to ``transform.size``."""
    height, width = transform.size
    rows = _taps(transform, parameters["top"], parameters["height"], height)
    columns = _taps(transform, parameters["left"], parameters["width"], width)
    values = _combine_rows(images.mT.contiguous().float(), *columns).mT
    if images.dtype == torch.float32:
        return _combine_rows(values, *rows)
    values = _combine_rows(values.clamp_(0, 255), *rows)  # clamped twice, as in torchvision
    return values.round_().clamp_(0, 255).to(images.dtype)


def resized_crop_one(
    transform: v2.RandomResizedCrop, image: Tensor, parameters: dict[str, int]
) -> Tensor:
    """``resized_crop`` of one image: a large uint8 image on the CPU in torchvision's bits.

    The result of a large colour image is in channels-last memory.
    """
    is_usual = image.dtype == torch.uint8 and image.ndim == 3 and image.device.type == "cpu"
    if (
        not is_usual
        or not is_large(image.shape, transform.size, LARGE_CROP)
        or min(transform.size) < 2
    ):
        return resized_crop(transform, image[None], of_one(parameters))[0]
    top, left, height, width = (parameters[name] for name in ("top", "left", "height", "width"))
    window = image[:, top : top + height, left : left + width]
    # torch's kernel is fast for channels last. It would copy the window itself, but more slowly.
    window = window.movedim(0, -1).clone(memory_format=torch.contiguous_format)
    pixels, size = window[None].movedim(-1, 1), list(transform.size)
    mode, antialias = mode_of(transform), bool(transform.antialias)
    if not IS_VECTORISED:
        resized: Tensor = v2.functional.resize(
            pixels, size, interpolation=v2.InterpolationMode(mode), antialias=antialias
        )
    elif mode == "nearest":
        resized = interpolate(pixels, size, mode=mode)
    else:
        resized = interpolate(pixels, size, mode=mode, align_corners=False, antialias=antialias)
    return resized[0]


RANDOM_RESIZED_CROP = Kernel(
    draw_resized_crop, resized_crop, takes_resized_crop, one=resized_crop_one, large=LARGE_CROP
)
