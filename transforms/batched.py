"""Random transforms of a whole batch at once, with parameters drawn per sample.

To add one, write its ``Kernel`` and a line in ``KERNELS``. A random transform without a line runs
per sample.
"""

from collections.abc import Callable
from typing import Any

import torch
import torchvision.transforms.v2 as v2
from torch import Tensor

from transforms import (
    colour,
    crops_and_flips,
    geometric,
    is_fixed,
    own,
    rectangles,
    resized_crop,
)
from transforms.by_image import Step, goes_by_image, run_by_image
from transforms.kernel import Kernel
from transforms.keyed import Draws
from transforms.memory import CHUNK, Images, stacked
from transforms.mixing import MIXING_KERNELS, one_hot

KERNELS: dict[type, Kernel] = {
    v2.RandomCrop: crops_and_flips.RANDOM_CROP,
    v2.RandomHorizontalFlip: crops_and_flips.RANDOM_HORIZONTAL_FLIP,
    v2.RandomVerticalFlip: crops_and_flips.RANDOM_VERTICAL_FLIP,
    own.RandomHorizontalFlip: crops_and_flips.ALTERNATING_HORIZONTAL_FLIP,
    own.RandomVerticalFlip: crops_and_flips.ALTERNATING_VERTICAL_FLIP,
    own.AlternatingFlip: crops_and_flips.ALTERNATING_HORIZONTAL_FLIP,
    v2.RandomRotation: geometric.RANDOM_ROTATION,
    v2.RandomAffine: geometric.RANDOM_AFFINE,
    v2.RandomPerspective: geometric.RANDOM_PERSPECTIVE,
    v2.RandomResizedCrop: resized_crop.RANDOM_RESIZED_CROP,
    own.RandomErasing: rectangles.RANDOM_ERASING,
    v2.RandomGrayscale: colour.RANDOM_GRAYSCALE,
    v2.ColorJitter: colour.COLOR_JITTER,
    v2.GaussianBlur: colour.GAUSSIAN_BLUR,
    own.SaltPepperNoise: colour.SALT_PEPPER_NOISE,
}
NESTING = (v2.RandomApply, v2.RandomChoice, v2.RandomOrder)


def is_batched(transform: Any) -> bool:
    """Whether a transform, with its arguments, can run on a whole batch."""
    if isinstance(transform, NESTING):
        return all(is_batched(inner) for inner in transform.transforms)
    kernel = KERNELS.get(type(transform))
    return is_fixed(transform) or (kernel is not None and kernel.takes(transform))


def run_batched(transform: Any, images: Images, draws: Draws) -> Images:
    """Apply an ``is_batched`` transform to images (B, C, H, W), with each sample's own draws."""
    kernel = KERNELS.get(type(transform))
    if kernel is not None and goes_by_image(kernel, transform, images):
        return run_by_image([Step(kernel, transform, draws)], images)
    if isinstance(images, list):
        return _by_shape(images, lambda group, i: run_batched(transform, group, draws.rows(i)))
    at_once = max(1, CHUNK // images[0].numel())
    if images.device.type == "cpu" and len(images) > at_once:
        rows = torch.split(torch.arange(len(images)), at_once)
        chunks = zip(torch.split(images, at_once), rows, strict=True)
        return _joined([_run_chunk(transform, chunk, draws.rows(i)) for chunk, i in chunks])
    return _run_chunk(transform, images, draws)


def _run_chunk(transform: Any, images: Tensor, draws: Draws) -> Images:
    if isinstance(transform, NESTING):
        result: Images = images
        for choice in choices(transform, draws):
            result = _by_choice(transform.transforms, choice, result, draws)
        return result
    if (kernel := KERNELS.get(type(transform))) is None:
        fixed: Tensor = transform(images)
        return fixed
    channels, height, width = images.shape[-3:]
    return kernel.apply(transform, images, kernel.draw(transform, (channels, height, width), draws))


def choices(transform: Any, draws: Draws) -> list[Tensor]:
    """Index of the inner transform that each sample gets in each step; -1 stands for none.

    A list of (B,) int64: one step for RandomChoice, one step per inner transform for RandomApply
    (all in their order, or none) and for RandomOrder (in each sample's own order).
    """
    count = len(transform.transforms)
    if isinstance(transform, v2.RandomApply):
        applied = draws.uniform() < transform.p
        return [torch.where(applied, i, -1) for i in range(count)]
    if isinstance(transform, v2.RandomChoice):
        ends = torch.tensor(transform.p, dtype=torch.float64).cumsum(0)
        chosen = torch.searchsorted(ends, draws.uniform() * ends[-1], right=True)
        return [chosen.clamp(max=count - 1)]
    return list(draws.permutation(count).unbind(dim=1))


def _by_choice(inner: Any, choice: Tensor, images: Images, draws: Draws) -> Images:
    """Apply to each image the inner transform of its choice, in one call per choice."""
    if isinstance(images, list):
        return _by_shape(
            images, lambda group, i: _by_choice(inner, choice[i], group, draws.rows(i))
        )
    groups, results = [], []
    for number in range(-1, len(inner)):
        rows = (choice == number).nonzero().flatten()
        if len(rows):
            group: Images = images[rows.to(images.device, non_blocking=True)]
            if number >= 0:
                group = run_batched(inner[number], group, draws.inside(number).rows(rows))
            groups.append(rows)
            results.append(group)
    places, joined = torch.cat(groups).argsort(), _joined(results)
    if isinstance(joined, Tensor):
        return joined.index_select(0, places.to(images.device, non_blocking=True))
    return [joined[place] for place in places.tolist()]


def _by_shape(images: list[Tensor], function: Callable[[Tensor, Tensor], Images]) -> Images:
    """``function(images of one shape, their rows)`` for each shape, put into their old order."""
    rows_of: dict[torch.Size, list[int]] = {}
    for row, image in enumerate(images):
        rows_of.setdefault(image.shape, []).append(row)
    results = dict[int, Tensor]()
    for rows in rows_of.values():
        group = stacked([images[row] for row in rows])
        assert isinstance(group, Tensor)
        results.update(zip(rows, function(group, torch.tensor(rows)), strict=True))
    return stacked([results[row] for row in range(len(images))])


def _joined(chunks: list[Images]) -> Images:
    """The concatenated chunks of a batch: a tensor if all images have the same shape."""
    tensors = [chunk for chunk in chunks if isinstance(chunk, Tensor)]
    if len(tensors) == len(chunks) and len({chunk.shape[1:] for chunk in tensors}) == 1:
        return torch.cat(tensors)
    return [image for chunk in chunks for image in chunk]


def predecessors(transform: Any) -> int:
    """How many samples before the batch a transform needs: one for each mixing it may apply."""
    if isinstance(transform, NESTING):
        count = sum(type(inner) in MIXING_KERNELS for inner in transform.transforms)
        return min(count, 1) if isinstance(transform, v2.RandomChoice) else count
    return int(type(transform) in MIXING_KERNELS)


def run_mixing(
    transform: Any, images: Tensor, labels: Tensor, draws: Draws
) -> tuple[Tensor, Tensor]:
    """MixUp, CutMix, or a RandomApply, RandomChoice or RandomOrder of them.

    images (B + n, C, H, W) and labels of n ``predecessors``, then of B samples.  Returns B images
    and their class probabilities (B, num_classes) float32.
    """
    if not isinstance(transform, NESTING):
        return MIXING_KERNELS[type(transform)](transform, images, labels, draws)
    for choice in choices(transform, draws):  # each step mixes once, and drops the first sample
        rows = torch.arange(len(draws) - len(images), len(draws))
        chosen = choice[rows[1:]]
        before, after, after_labels = images, images[1:], labels[1:]
        for number, inner in enumerate(transform.transforms):
            if not (mine := chosen == number).any():
                continue
            kernel, mine = MIXING_KERNELS[type(inner)], mine.to(images.device, non_blocking=True)
            mixed, shares = kernel(inner, before, labels, draws.inside(number).rows(rows))
            after = torch.where(mine.view(-1, 1, 1, 1), mixed, after)
            if after_labels.ndim == 1:
                after_labels = one_hot(after_labels, shares.shape[1])
            after_labels = torch.where(mine.view(-1, 1), shares, after_labels)
        images, labels = after, after_labels
    if labels.ndim == 1:  # no sample of this batch was mixed
        labels = one_hot(labels, transform.transforms[0].num_classes)
    return images, labels
