"""Transforms that torchvision lacks or has in a form that does not fit YAML or batches.

Each takes images (..., C, H, W), uint8 (0-255) or float32 (0-1 before ``Normalize``), and
returns new images of the same type.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torchvision.transforms.v2 as v2
from torch import Tensor

from transforms.floats import normalized


class Letterbox:
    """Resize an image to fit into ``size`` with its aspect ratio kept, and fill the rest with bars.

    Bilinear with antialiasing, as ``Resize``; sides are rounded half up. If the bars cannot be
    equal, the bottom or right one is a pixel wider. Raises ValueError for an invalid size or fill.

    size: [height, width] of the result in pixels, or one number for both.
    fill: The grey level of the bars, 0-255, or one level per channel.
    """

    def __init__(self, size: int | list[int], fill: int | list[int] = 0) -> None:
        sides = [size, size] if isinstance(size, int) else list(size)
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(f"size must be one or two numbers >= 1 (height, width), but is {size}")
        levels = [fill] if isinstance(fill, int) else list(fill)
        if not levels or min(levels) < 0 or max(levels) > 255:
            raise ValueError(f"fill must be grey levels in 0..255, but is {fill}")
        self.height, self.width = sides
        self.levels = levels

    def __call__(self, images: Tensor) -> Tensor:
        """Images (..., C, H, W) to (..., C, *size)."""
        channels, old_height, old_width = images.shape[-3:]
        if len(self.levels) not in (1, channels):
            raise ValueError(f"fill has {len(self.levels)} values for {channels} channels")
        if old_height * self.width >= old_width * self.height:  # height limits the scale
            height, width = self.height, _rounded(old_width * self.height, old_height)
        else:
            height, width = _rounded(old_height * self.width, old_width), self.width
        top, left = (self.height - height) // 2, (self.width - width) // 2
        right, bottom = self.width - width - left, self.height - height - top
        scale = 255 if images.is_floating_point() else 1
        result: Tensor = v2.functional.pad(
            v2.functional.resize(images, [height, width]),
            [left, top, right, bottom],
            fill=[level / scale for level in self.levels],
        )
        return result


def _rounded(numerator: int, denominator: int) -> int:
    return max(1, (2 * numerator + denominator) // (2 * denominator))


class SaltPepperNoise:
    """Make random pixels white (salt) or black (pepper), in all channels.

    Impulse noise as in Gonzalez and Woods, "Digital Image Processing", section 5.2. Place it before
    ``Normalize``.  Raises ValueError for a probability outside 0-1.

    probability: The probability that a pixel changes, 0-1.
    salt: The probability that a changed pixel is white, 0-1; else it is black.
    """

    def __init__(self, probability: float = 0.05, salt: float = 0.5) -> None:
        if not 0 <= probability <= 1 or not 0 <= salt <= 1:
            raise ValueError(
                f"probability and salt must lie in 0..1, but are {probability} and {salt}"
            )
        self.probability = probability
        self.salt = salt

    def __call__(self, images: Tensor) -> Tensor:
        """Noisy images (..., C, H, W); the noise is drawn from torch's CPU generator."""
        white = 1 if images.is_floating_point() else 255
        draw = torch.rand(*images.shape[:-3], 1, *images.shape[-2:]).to(images.device)
        noisy = images.masked_fill(draw < self.probability, 0)
        return noisy.masked_fill(draw < self.probability * self.salt, white)


class RandomErasing(v2.RandomErasing):  # type: ignore[misc]
    """torchvision's RandomErasing, which fills a random rectangle, with a complete signature.

    As in Zhong et al. (2017), "Random Erasing Data Augmentation".

    p: The probability that an image is changed at all, 0-1.
    scale: [least, most] of the rectangle's share of the image's area, 0-1.
    ratio: [least, most] of the rectangle's height / width.
    value: The fill, one number or one per channel (0-1 before Normalize), or random for noise.
    inplace: Accepted as in torchvision, without effect.
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        value: float | list[float] | Literal["random"] = 0.0,
        inplace: bool = False,
    ) -> None:
        super().__init__(p=p, scale=scale, ratio=ratio, value=value)


class _Flip:
    """The constructor of both flips. Comes before torchvision's class, whose ``p`` it sets."""

    def __init__(self, p: float = 0.5, alternate: bool = False) -> None:
        super().__init__(p)  # type: ignore[call-arg]
        if alternate and p != 0.5:
            raise ValueError(
                f"p must be 0.5 where flips alternate, but is {p}: half of the images are flipped "
                "in an epoch, and the others in the next; leave out p"
            )
        self.alternate = alternate


class RandomHorizontalFlip(_Flip, v2.RandomHorizontalFlip):  # type: ignore[misc]
    """torchvision's RandomHorizontalFlip, which mirrors images left to right, or in turn.

    In turn as in Jordan (2024), "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.6: two
    epochs show each image both ways, which a random flip does not ensure. Raises ValueError if
    ``alternate`` has another ``p`` than 0.5.

    p: The probability that an image is flipped, 0-1.
    alternate: Flip a random half of the images in the first epoch, the others in the next one, and
        so on.
    """


class RandomVerticalFlip(_Flip, v2.RandomVerticalFlip):  # type: ignore[misc]
    """torchvision's RandomVerticalFlip, which turns images upside down, or in turn.

    As in RandomHorizontalFlip, also in its errors.

    p: The probability that an image is flipped, 0-1.
    alternate: Flip a random half of the images in the first epoch, the others in the next one, and
        so on.
    """


class AlternatingFlip(RandomHorizontalFlip):
    """RandomHorizontalFlip with ``alternate: true``, by the name that older files have."""

    def __init__(self) -> None:
        super().__init__(alternate=True)


class Normalize:
    """Subtract ``mean`` from each channel, then divide by ``std``; bitwise equal to torchvision.

    uint8 images are first scaled to 0-1, as ToTensor does.

    Deviations: three means for images of one channel are a ValueError (torchvision makes three
    channels), and the constants stay on the images' device (a copy in every step would make a GPU
    wait).

    mean: One number per channel, or one for all, in units of full scale: 0 is black, 1 is white.
    std: One number per channel, or one for all, in units of full scale; images are divided by it.
    inplace: Accepted as in torchvision, without effect.
    """

    def __init__(self, mean: list[float], std: list[float], inplace: bool = False) -> None:
        if not len(mean) or len(mean) != len(std):
            raise ValueError(
                f"mean and std need one value a channel each, but have {len(mean)} and {len(std)}"
            )
        if 0 in std:
            raise ValueError(f"std must not hold zero, for images are divided by it; it is {std}")
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def __call__(self, images: Tensor, channels_last: bool = False) -> Tensor:
        """Images (..., C, H, W) to float32 of the same shape. ValueError: wrong channel count.

        ``channels_last``: see ``normalized``.
        """
        if len(self.mean) not in (1, images.shape[-3]):
            raise ValueError(
                f"mean and std have {len(self.mean)} values, but the images have "
                f"{images.shape[-3]} channels; give one value a channel"
            )
        if self.mean.device != images.device:
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        return normalized(images, (self.mean, self.std), channels_last)


class LinearTransformation:
    """Flatten an image, subtract ``mean_vector``, multiply by ``transformation_matrix``.

    For whitening. Raises ValueError if a file cannot be read or the sizes do not match.

    transformation_matrix: D rows of D numbers, D = C * H * W, or a .pt file that holds this tensor.
    mean_vector: D numbers, or a .pt file that holds this tensor; it is subtracted first.
    """

    def __init__(
        self, transformation_matrix: list[list[float]] | str, mean_vector: list[float] | str
    ) -> None:
        matrix = _tensor("transformation_matrix", transformation_matrix, dimensions=2)
        mean = _tensor("mean_vector", mean_vector, dimensions=1)
        self.transform = v2.LinearTransformation(matrix, mean)

    def __call__(self, images: Tensor) -> Tensor:
        """Float images (..., C, H, W) to the same shape."""
        transform = self.transform
        if transform.mean_vector.device != images.device:
            transform.transformation_matrix = transform.transformation_matrix.to(images.device)
            transform.mean_vector = transform.mean_vector.to(images.device)
        # One product per sample: the last bits of a product of the batch depend on the batch size.
        samples = images.reshape(-1, *images.shape[-3:])
        return torch.stack([transform(sample) for sample in samples]).reshape(images.shape)


def _tensor(argument: str, value: list[list[float]] | list[float] | str, dimensions: int) -> Tensor:
    """``value``, or the file it names, as a float32 tensor. ValueError names a wrong argument."""
    try:
        if isinstance(value, str):
            tensor = torch.load(Path(value), map_location="cpu", weights_only=True)
        else:
            tensor = torch.tensor(value)
    except Exception as error:  # torch.load raises many types: missing, not a .pt, unsafe content
        raise ValueError(f"{argument}: no tensor in {str(value)[:200]!r}: {error}") from error
    if not isinstance(tensor, Tensor) or tensor.ndim != dimensions:
        found = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor)
        raise ValueError(
            f"{argument}: expected a tensor of {dimensions} dimension(s), found {found}"
        )
    return tensor.to(torch.float32)


class ToTensor:
    """Does nothing: images are tensors from the start, and are scaled to 0-1 where necessary."""

    def __call__(self, images: Tensor) -> Tensor:
        """The images as they are."""
        return images


class ToImage(ToTensor):
    """Does nothing: images are tensors from the start."""


class ToDtype(ToTensor):
    """Does nothing: the pipeline makes images float32 in 0-1, before the first float transform.

    Raises ValueError for any other conversion: another ``dtype``, or ``scale: false``.

    dtype: float32, or torch.float32; nothing else is possible.
    scale: true is needed: images become 0-1 whether it is written or not.
    """

    def __init__(self, dtype: str, scale: bool = False) -> None:
        if dtype.removeprefix("torch.") != "float32" or not scale:
            raise ValueError(
                f"dtype: {dtype}, scale: {str(scale).lower()} is not supported: images are uint8, "
                "and become float32 in 0-1 by themselves; remove ToDtype, or write "
                "dtype: float32, scale: true"
            )
