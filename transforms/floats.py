"""From grey levels to the numbers of a model: float32 in 0-1, and normalised."""

import torch
from torch import Tensor

from transforms.memory import CHUNK


def normalized(
    images: Tensor, by: tuple[Tensor, Tensor] | None = None, channels_last: bool = False
) -> Tensor:
    """``images`` (..., C, H, W) as float32: uint8 is divided by 255; then minus mean, over std.

    uint16 is divided by 65535.

    by: mean and std, (C or 1, 1, 1).  Bitwise equal to ToTensor and torchvision's Normalize:
    multiplying by 1/255 gives other bits.  ``channels_last`` is the memory layout of uint8 images
    (B, C, H, W) on the CPU; other results keep the layout of their images.
    """
    if images.dtype == torch.uint16:
        images = _from_16_bits(images)
    if images.is_floating_point():
        return images if by is None else images.sub(by[0]).div_(by[1])
    is_chunk = images.numel() <= CHUNK and not channels_last and images.is_contiguous()
    if is_chunk or images.ndim != 4 or images.device.type != "cpu":
        result = images.div(255)
        return result if by is None else result.sub_(by[0]).div_(by[1])
    last = channels_last and images.shape[1] > 1
    layout = torch.channels_last if last else torch.contiguous_format
    result = torch.empty(images.shape, dtype=torch.float32, memory_format=layout)
    values, levels = result, images
    if last:  # as rows of W * C values: to repeat three numbers pixel by pixel is slow
        levels, values = images.movedim(1, 3), result.movedim(1, 3).flatten(2)
        if by is not None:
            by = _row(by[0], *levels.shape[2:]), _row(by[1], *levels.shape[2:])
    # A chunk stays in the cache from the first operation to the last.
    at_once = max(1, CHUNK // max(1, images[0].numel()))
    for start in range(0, len(images), at_once):
        chunk, numbers = levels[start : start + at_once], values[start : start + at_once]
        torch.div(chunk.flatten(2) if last else chunk, 255, out=numbers)
        if by is not None:
            numbers.sub_(by[0]).div_(by[1])
    return result


def in_16_bits(images: Tensor) -> Tensor:
    """float32 images in 0-1 as uint16, rounded: the inverse of ``normalized``, to the bit."""
    return images.mul(65535).round_().clamp_(0, 65535).to(torch.int32).to(torch.uint16)


def _from_16_bits(images: Tensor) -> Tensor:
    """uint16 as float32 in 0-1, by int32: torch has few functions of uint16, fewer on a GPU."""
    return images.view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF).float().div_(65535)


def _row(numbers: Tensor, width: int, channels: int) -> Tensor:
    """(width * channels,): ``numbers`` (C or 1, 1, 1) for each pixel of a row."""
    return numbers.flatten().expand(channels).repeat(width)
