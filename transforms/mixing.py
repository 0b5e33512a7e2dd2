"""MixUp and CutMix of each sample with its predecessor in the epoch's order.

torchvision mixes a batch with itself rolled by one place, with one draw for all, so the result for
a sample depends on the batch. Here every sample has its own draw, and the input of a batch begins
with the predecessor of its first sample. So results do not depend on the batch size.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torchvision.transforms.v2 as v2
from torch import Tensor

from transforms.kernel import Parameters
from transforms.keyed import Draws

_ATTEMPTS = 16  # each succeeds with probability > 0.95; all fail once in 10**21


def _uniforms(draws: Draws, count: int) -> Tensor:
    """(B, count) float64, uniform in (0, 1): the middles of 2**48 steps."""
    high, low = draws.many(2 * count).to(torch.float64).chunk(2, dim=1)
    return high + low * 2.0**-24 + 2.0**-49


def _log_gamma_variates(alpha: float, draws: Draws) -> Tensor:
    """Logarithms (B,) float64 of samples from the gamma distribution of shape ``alpha``.

    Marsaglia and Tsang (2000), "A simple method for generating gamma variables", with a fixed
    number of attempts: a sample of shape alpha + 1, times U ** (1 / alpha). Logarithms, because for
    a small alpha nearly all samples are below the smallest float.
    """
    uniforms = _uniforms(draws, 2 * _ATTEMPTS + 1)
    normals = torch.special.ndtri(uniforms[:, :_ATTEMPTS])
    logs = uniforms[:, _ATTEMPTS:].log()
    d = alpha + 1 - 1 / 3
    root = 1 + normals / (9 * d) ** 0.5
    log_v = 3 * root.clamp(min=1e-9).log()
    bound = normals**2 / 2 + d - d * log_v.exp() + d * log_v
    accepted = (root > 0) & (logs[:, :-1] < bound)
    first = accepted.to(torch.uint8).argmax(dim=1, keepdim=True)
    variates: Tensor = log_v.gather(1, first)[:, 0] + logs[:, -1] / alpha + math.log(d)
    return variates


def draw_mix_up(transform: Any, size: tuple[int, int, int], draws: Draws) -> Parameters:
    """lam (B,) float64, from Beta(alpha, alpha): each sample's weight in its mixture.

    A beta variate is x / (x + y) of two gamma variates x and y. It is rounded to a float32 in
    (0, 1), as torch's is, so that no last bit of float64 can depend on the batch.
    """
    x, y = (_log_gamma_variates(transform.alpha, draws) for _ in range(2))
    limits = torch.finfo(torch.float32)
    lam = torch.sigmoid(x - y).to(torch.float32).clamp(limits.tiny, 1 - limits.eps / 2)
    return {"lam": lam.to(torch.float64)}


def draw_cut_mix(transform: Any, size: tuple[int, int, int], draws: Draws) -> Parameters:
    """The box that each sample gets from its predecessor, and the share of its own pixels.

    lam as in ``draw_mix_up``; box (B, 4) int64: left, top, right and bottom edge in pixels, right
    and bottom excluded; lam_adjusted (B,) float64: the share of the area outside the box.
    """
    _, height, width = size
    lam = draw_mix_up(transform, size, draws)["lam"]
    half = 0.5 * (1 - lam).sqrt()
    sides = []
    for side in (width, height):
        middle, reach = draws.integers(side), (half * side).to(torch.int64)
        sides.append(((middle - reach).clamp(min=0), (middle + reach).clamp(max=side)))
    (left, right), (top, bottom) = sides
    area = ((right - left) * (bottom - top)).to(torch.float64)
    return {
        "lam": lam,
        "box": torch.stack([left, top, right, bottom], dim=1),
        "lam_adjusted": 1 - area / (width * height),
    }


def _blend(values: Tensor, lam: Tensor) -> Tensor:
    """lam * value + (1 - lam) * its predecessor, (B, ...), for float32 values (B + 1, ...)."""
    lam = lam.view(-1, *[1] * (values.ndim - 1))
    own, other = (
        weight.to(torch.float32).to(values.device, non_blocking=True) for weight in (lam, 1 - lam)
    )
    return (values[:-1] * other).add_(values[1:] * own)


def _probabilities(transform: Any, labels: Tensor) -> Tensor:
    """Labels as class probabilities, (B + 1, num_classes) float32."""
    if labels.ndim == 2:
        if transform.num_classes not in (None, labels.shape[1]):
            raise ValueError(
                f"num_classes is {transform.num_classes}, but the labels, already mixed, have "
                f"{labels.shape[1]} classes"
            )
        return labels.to(torch.float32)
    if transform.num_classes is None:
        raise ValueError("num_classes is needed: the labels are class numbers")
    return one_hot(labels, transform.num_classes)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(B,) int64 as (B, num_classes) float32; unlike torch's, it does not wait for the device."""
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(torch.float32)


def blend(
    transform: Any, images: Tensor, labels: Tensor, parameters: Parameters
) -> tuple[Tensor, Tensor]:
    """MixUp of samples 1 to B with samples 0 to B - 1, with the parameters of the former.

    images: (B + 1, C, H, W) float32.  labels: (B + 1,) int64 or (B + 1, num_classes).  Raises
    ValueError for uint8 images, and for labels that do not fit ``num_classes``.
    """
    if not images.is_floating_point():
        raise ValueError(f"MixUp mixes float images, but these are {images.dtype}")
    lam = parameters["lam"]
    return _blend(images, lam), _blend(_probabilities(transform, labels), lam)


def paste(
    transform: Any, images: Tensor, labels: Tensor, parameters: Parameters
) -> tuple[Tensor, Tensor]:
    """CutMix of samples 1 to B with samples 0 to B - 1, with the parameters of the former.

    images: (B + 1, C, H, W).  labels: (B + 1,) int64 or (B + 1, num_classes).  Raises ValueError
    for labels that do not fit ``num_classes``.
    """
    height, width = images.shape[-2:]
    box = parameters["box"].to(images.device, non_blocking=True)[:, :, None, None, None]
    left, top, right, bottom = box.unbind(1)  # (B, 1, 1, 1)
    columns = torch.arange(width, device=images.device)
    rows = torch.arange(height, device=images.device)[:, None]
    inside = (left <= columns) & (columns < right) & (top <= rows) & (rows < bottom)
    mixed = torch.where(inside, images[:-1], images[1:])
    return mixed, _blend(_probabilities(transform, labels), parameters["lam_adjusted"])


def _without_first(parameters: Parameters) -> Parameters:
    """The parameters of samples 1 to B."""
    return {name: values[1:] for name, values in parameters.items()}


def mix_up(
    transform: v2.MixUp, images: Tensor, labels: Tensor, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Mix each sample but the first with its predecessor: Zhang et al. (2018), "mixup".

    images: (B + 1, C, H, W) float32.  labels: (B + 1,) int64, or (B + 1, num_classes) from an
    earlier mixing.  Returns images (B, C, H, W) and labels (B, num_classes) float32.  Raises
    ValueError as ``blend`` does.
    """
    parameters = _without_first(draw_mix_up(transform, _size(images), draws))
    return blend(transform, images, labels, parameters)


def cut_mix(
    transform: v2.CutMix, images: Tensor, labels: Tensor, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Paste a box of the predecessor onto each sample but the first: Yun et al. (2019), "CutMix".

    Shapes as in ``mix_up``; images may also be uint8.  Raises ValueError as ``paste`` does.
    """
    parameters = _without_first(draw_cut_mix(transform, _size(images), draws))
    return paste(transform, images, labels, parameters)


def _size(images: Tensor) -> tuple[int, int, int]:
    channels, height, width = images.shape[-3:]
    return channels, height, width


MIXING_KERNELS: dict[type, Callable[[Any, Tensor, Tensor, Draws], tuple[Tensor, Tensor]]] = {
    v2.MixUp: mix_up,
    v2.CutMix: cut_mix,
}
