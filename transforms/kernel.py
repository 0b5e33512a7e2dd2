"""The form of a batched random transform: draw parameters per sample, apply them to the batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from transforms.keyed import Draws

Parameters = dict[str, Tensor]


def _always(transform: Any) -> bool:
    return True


class Kernel(NamedTuple):
    """The batched form of one class of transforms.

    draw(transform, (C, H, W), draws) returns the parameters: (B, ...) tensors on the CPU, with the
    names of torchvision's ``make_params``. ``chosen`` (B,) bool: the samples that a transform with
    a probability changes.  apply(transform, images, parameters) returns new images (B, C, H, W),
    uint8 or float32, without waiting for their device. With the same parameters it equals
    torchvision's transform of each sample.  takes(transform) is false for arguments that are not
    supported; then the transform runs per sample.
    """

    draw: Callable[[Any, tuple[int, int, int], Draws], Parameters]
    apply: Callable[[Any, Tensor, Parameters], Tensor]
    takes: Callable[[Any], bool] = _always


def change(images: Tensor, chosen: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``images`` with those that are ``chosen`` replaced by ``function(chosen images, rows)``.

    chosen: (B,) bool on the CPU, so that counting them does not wait for a GPU.  function keeps the
    images' shape; rows (K,) int64 on the CPU are the positions of the chosen samples in the batch.
    """
    rows = chosen.nonzero().flatten()
    if not len(rows):
        return images
    if len(rows) == len(images):
        return function(images, rows)
    places = rows.to(images.device, non_blocking=True)
    return images.index_copy(0, places, function(images.index_select(0, places), rows))
