"""Resizing as products of matrices whose weights are made of the picture's height and width.

Exporters have no operator that rounds as PyTorch's resize of uint8 images does. So a graph computes
the weights as PyTorch does (ATen's ``UpSampleKernel.cpp``): in float64, for uint8 then as integers
of up to 15 bits and their common shift.
"""

import torch
from torch import Tensor

Size = int | torch.SymInt  # symbolic while a graph is made
PLACES = 22  # the largest shift of integer weights
_POWERS = [2.0**power for power in range(PLACES + 1)]


def resized(
    images: Tensor, height: Size, width: Size, cubic: bool, smooth: bool, whole: bool
) -> Tensor:
    """Images (..., C, H, W) float32 as (..., C, height, width); sizes may be symbolic.

    cubic: bicubic instead of bilinear. smooth: with antialiasing. whole: the values are levels of 8
    bits, 0 to 255, and are rounded after each of the two passes, as those of uint8 images are.
    """
    across = weights(images.shape[-1], width, cubic, smooth)
    down = weights(images.shape[-2], height, cubic, smooth)
    if not whole:
        wide: Tensor = images @ across.float().T
        return down.float() @ wide
    (across, across_one), (down, down_one) = as_integers(across), as_integers(down)
    return _rounded(down @ _rounded(images @ across.T, across_one), down_one)


def weights(old: Size, new: Size, cubic: bool, smooth: bool) -> Tensor:
    """(new, old) float64: the share of each old pixel in each new one; rows add up to 1."""
    before = torch.arange(old, dtype=torch.float64)
    after = torch.arange(new, dtype=torch.float64)
    scale = (before[-1] + 1) / (after[-1] + 1)
    stretch = scale.clamp(min=1.0) if smooth else torch.ones_like(scale)
    apart = (before - scale * (after[:, None] + 0.5) + 0.5).abs() / stretch
    if cubic:
        near = (1.5 * apart - 2.5) * apart * apart + 1
        far = (((apart - 5) * apart + 8) * apart - 4) * -0.5
        shares = torch.where(apart < 1, near, torch.where(apart < 2, far, torch.zeros_like(far)))
    else:
        shares = (1 - apart).clamp(min=0.0)
    return shares / shares.sum(dim=1, keepdim=True)


def as_integers(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Shares as integers in float32, and the number that stands for 1: a power of two.

    It is the largest of up to 2^22 with which no integer needs over 15 bits.
    """
    powers = torch.tensor(_POWERS, dtype=torch.float64)
    fits = (shares.max() * powers[1:] + 0.5).floor() < 2**15
    one = powers[fits.sum()]
    scaled = shares * one
    return (scaled + 0.5 * scaled.sign()).trunc().float(), one.float()


def _rounded(sums: Tensor, one: Tensor) -> Tensor:
    """Sums with integer weights as levels; float32 holds nearly all of them exactly."""
    return ((sums + one / 2) / one).floor().clamp(0, 255)
