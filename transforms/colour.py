"""Batched changes of colour, blur and noise: torchvision's arithmetic, factors drawn per sample.

The bits of a sample must not depend on its place in a batch, so no float32 sum runs over pixels.
torchvision blends with ``add(..., alpha)``, a fused multiply-add that rounds once. ``alpha`` is one
number for a batch, so this code gets the same single rounding from float64.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision.transforms.v2 as v2
from torch import Tensor
from torch.nn.functional import conv2d, pad

from transforms.kernel import Kernel, Parameters, change, is_large, of_one
from transforms.keyed import Draws
from transforms.own import SaltPepperNoise


def draw_grayscale(
    transform: v2.RandomGrayscale, size: tuple[int, int, int], draws: Draws
) -> Parameters:
    """chosen (B,) bool: the samples that become grey."""
    return {"chosen": draws.uniform() < transform.p}


def make_gray(transform: v2.RandomGrayscale, images: Tensor, parameters: Parameters) -> Tensor:
    """Make the chosen samples grey, with the same number of channels (1 or 3)."""

    def gray(images: Tensor, rows: Tensor) -> Tensor:
        result: Tensor = v2.functional.rgb_to_grayscale(images, images.shape[1])
        return result.contiguous()  # torchvision expands one channel to three

    return change(images, parameters["chosen"], gray)


def gray_one(transform: v2.RandomGrayscale, image: Tensor, parameters: dict[str, bool]) -> Tensor:
    """``make_gray`` of one image."""
    if not parameters["chosen"]:
        return image
    result: Tensor = v2.functional.rgb_to_grayscale(image, image.shape[-3])
    return result


def draw_jitter(transform: v2.ColorJitter, size: tuple[int, int, int], draws: Draws) -> Parameters:
    """fn_idx (B, 4): each sample's order of the four operations; and its factors, (B,) float64.

    A factor whose argument is None is left out. Raises ValueError unless there are 1 or 3 channels.
    """
    if size[0] not in (1, 3):
        raise ValueError(f"ColorJitter takes images of 1 or 3 channels, but these have {size[0]}")
    parameters = {"fn_idx": draws.permutation(4)}
    for name in _OPERATIONS:
        limits = getattr(transform, name.removesuffix("_factor"))
        if limits is not None:
            parameters[name] = draws.uniform(*limits)
    return parameters


def jitter(transform: v2.ColorJitter, images: Tensor, parameters: Parameters) -> Tensor:
    """Change brightness, contrast, saturation and hue, in each sample's own order.

    Equal to torchvision, but its mean for the contrast is a float32 sum: for float images, and for
    images of more than 2**16 pixels, the last bit may differ.
    """
    numbers = [number for number, name in enumerate(_OPERATIONS) if name in parameters]
    if images.shape[1] == 1:  # grey images have neither saturation nor hue
        numbers = [number for number in numbers if number < 2]
    slots = parameters["fn_idx"].argsort(dim=1)[:, numbers]  # of each active operation
    order = slots.argsort(dim=1)  # (B, active operations)
    names = list(_OPERATIONS)
    for turn in order.T:
        for place, number in enumerate(numbers):
            operation = partial(_adjusted, _OPERATIONS[names[number]], parameters[names[number]])
            images = change(images, turn == place, operation)
    return images


def jitter_one(transform: v2.ColorJitter, image: Tensor, parameters: dict[str, Any]) -> Tensor:
    """``jitter`` of one image. One factor needs no float64: torch multiplies, adds, rounds once."""
    is_usual = image.dtype == torch.uint8 and image.ndim == 3 and image.device.type == "cpu"
    if not is_usual or not is_large(image.shape, image.shape[1:]):
        return jitter(transform, image[None], of_one(parameters))[0]
    image, names = image.contiguous(), list(_OPERATIONS)
    for name in (names[number] for number in parameters["fn_idx"]):
        if name not in parameters or (len(image) == 1 and name in names[2:]):
            continue
        factor = parameters[name]
        if name == "brightness_factor":
            image = _level(image * factor, image.dtype)
        elif name == "hue_factor":
            image = _hue(image[None], torch.tensor([factor]).view(1, 1, 1, 1))[0]
        else:
            other = _gray(image)
            if name == "contrast_factor":
                other = (other.sum().to(torch.float32) / other.numel()).view(1, 1, 1)
            image = _level((image * factor).add_(other, alpha=1 - factor), image.dtype)
    return image


def _adjusted(
    operation: Callable[[Tensor, Tensor], Tensor], factors: Tensor, images: Tensor, rows: Tensor
) -> Tensor:
    return operation(images, factors[rows][:, None, None, None])


def _like(images: Tensor, factors: Tensor) -> Tensor:
    """``factors`` (float64 on the CPU) as float32 on the device of ``images``."""
    return factors.to(torch.float32).to(images.device, non_blocking=True)


def _wide(images: Tensor) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have no float64."""
    return torch.float32 if images.device.type == "mps" else torch.float64


def _level(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Clamp float32 images, in place, to the range of ``dtype``, and round down to ``dtype``."""
    return images.clamp_(0, 1 if dtype.is_floating_point else 255).to(dtype)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _level(images * _like(images, factor), images.dtype)


def _blend(images: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    """factor * images + (1 - factor) * others."""
    wide = _wide(images)
    rest = others.to(wide) * _like(images, 1 - factor)  # exact
    blended = (images * _like(images, factor)).to(wide).add_(rest).to(torch.float32)
    return _level(blended, images.dtype)


def _gray(images: Tensor) -> Tensor:
    gray: Tensor = v2.functional.rgb_to_grayscale(images)
    return gray


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    levels = _gray(images)
    total = levels.sum(dim=(1, 2, 3), keepdim=True, dtype=_wide(images))
    return _blend(images, total.to(torch.float32) / levels[0].numel(), factor)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _gray(images), factor)


def _hue(images: Tensor, factor: Tensor) -> Tensor:
    """Shift the hue by ``factor`` (-0.5 to 0.5 of a full turn) in HSV, as Pillow does.

    ``clamp``, and ``lerp`` with weights 0 and 1, select values here: torch.where is far slower.
    """
    scaled: Tensor = v2.functional.to_dtype(images, torch.float32, scale=True)
    red, green, blue = scaled.unbind(1)
    value = red.maximum(green).maximum(blue)
    span = value - red.minimum(green).minimum(blue)
    tiny = torch.finfo(torch.float32).tiny  # avoids division by 0
    saturation = span / value.clamp(min=tiny)
    gaps = (value[:, None] - scaled).div_(span.clamp_(min=tiny)[:, None])
    red_gap, green_gap, blue_gap = gaps.unbind(1)
    near_green, near_blue = red_gap + 2 - blue_gap, green_gap + 4 - red_gap
    sixths = near_blue.lerp_(near_green, (green == value).to(torch.float32))
    sixths = sixths.lerp_(blue_gap - green_gap, (red == value).to(torch.float32))
    hue = sixths.mul_(1 / 6).add_(1)
    hue = hue.sub_(hue.floor()).add_(_like(images, factor)[:, 0])
    hue = hue.sub_(hue.floor())

    sixths = hue.mul_(6)
    sextant = sixths.floor()
    fraction = (sixths - sextant).mul_(saturation)
    pale = 1 - saturation
    falling = (1 - fraction).mul_(value).clamp_(0, 1)
    rising = fraction.add_(pale).mul_(value).clamp_(0, 1)
    odd = sextant.sub_(sextant.mul(0.5).floor_().mul_(2))
    between = rising.lerp_(falling, odd)[:, None]
    least = pale.mul_(value).clamp_(0, 1)[:, None]
    # A channel is maximal within 1/6 turn of its own hue, and minimal beyond 2/6.
    own = torch.tensor([0.0, 2.0, 4.0]).to(images.device, non_blocking=True)[:, None, None]
    distance = (sixths[:, None] - own).abs_()
    distance = torch.minimum(distance, 6 - distance)
    beyond = distance.clamp(1, 2).sub_(distance).mul_(1e30)
    turned = beyond.add_(between).clamp_(least, value[:, None])
    result: Tensor = v2.functional.to_dtype(turned, images.dtype, scale=True)
    return result


_OPERATIONS = {  # in the order of torchvision's fn_idx
    "brightness_factor": _brightness,
    "contrast_factor": _contrast,
    "saturation_factor": _saturation,
    "hue_factor": _hue,
}


def draw_blur(transform: v2.GaussianBlur, size: tuple[int, int, int], draws: Draws) -> Parameters:
    """sigma (B, 2): each sample's standard deviation in pixels, the same for x and y."""
    return {"sigma": draws.uniform(*transform.sigma)[:, None].expand(-1, 2)}


def _weights(size: int, sigma: Tensor) -> Tensor:
    """(B, size) float32: torchvision's Gaussian weights for sigma (B,)."""
    limit = (size - 1) / (2 * math.sqrt(2))
    places = torch.linspace(-limit, limit, size) / sigma.to(torch.float32)[:, None]
    return torch.softmax(-(places**2), dim=1)


def blur(transform: v2.GaussianBlur, images: Tensor, parameters: Parameters) -> Tensor:
    """Blur each sample with its own sigma, edges mirrored; for 3 channels bitwise torchvision's.

    Each channel of each sample is a group of one convolution. The bits do not depend on the number
    of groups, except that a single group uses another algorithm; so that one is duplicated.
    """
    batch, channels, height, width = images.shape
    columns, rows = transform.kernel_size
    across, down = parameters["sigma"].unbind(1)
    kernels = _weights(rows, down)[:, :, None] * _weights(columns, across)[:, None]
    kernels = kernels.to(images.device, non_blocking=True).repeat_interleave(channels, dim=0)
    margins = [columns // 2, columns // 2, rows // 2, rows // 2]
    values = images.to(torch.float32, memory_format=torch.contiguous_format)
    padded = pad(values, margins, mode="reflect").flatten(0, 1)
    if len(padded) == 1:
        padded, kernels = padded.expand(2, -1, -1), kernels.expand(2, -1, -1)
    blurred = conv2d(padded[None], kernels[:, None], groups=len(padded))[0, : batch * channels]
    if not images.is_floating_point():
        blurred = blurred.round_().to(images.dtype)
    return blurred.reshape(images.shape)


def draw_noise(transform: SaltPepperNoise, size: tuple[int, int, int], draws: Draws) -> Parameters:
    """seed (B,) int64, in [0, 2**62): the seed of each sample's noise."""
    return {"seed": draws.integers(2**31) * 2**31 + draws.integers(2**31)}


def add_noise(transform: SaltPepperNoise, images: Tensor, parameters: Parameters) -> Tensor:
    """Add salt and pepper noise, drawn on the images' device from each sample's seed."""
    batch, _, height, width = images.shape
    noise = Draws(0, 0, parameters["seed"]).many(height * width, images.device)
    noise = noise.view(batch, 1, height, width)
    white = 1 if images.is_floating_point() else 255
    kept, salt = noise >= transform.probability, noise < transform.probability * transform.salt
    # Products with 0 and 1, because masked_fill is many times slower.
    return (images * kept).add_(salt.to(images.dtype).mul_(white))


RANDOM_GRAYSCALE = Kernel(draw_grayscale, make_gray, one=gray_one)
COLOR_JITTER = Kernel(draw_jitter, jitter, one=jitter_one)
GAUSSIAN_BLUR = Kernel(draw_blur, blur)
SALT_PEPPER_NOISE = Kernel(draw_noise, add_noise)
