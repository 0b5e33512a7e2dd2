"""Filters that decorrelate neighbouring pixels, computed from images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

EPS = 5e-4  # of airbench; it bounds what the directions of least variance are multiplied by


def whiten(layer: nn.Conv2d, batches: Iterable[Tensor]) -> str:
    """Fill a convolution with whitening filters, in place; returns how many, and from what.

    K. Jordan, 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.1. A patch has
    n = C * kh * kw values. The first n filters are the eigenvectors of the covariance of all
    patches, largest variance first, each divided by sqrt(eigenvalue + EPS): their outputs are
    uncorrelated and have a variance of nearly 1. The next n are their negatives. Further filters do
    not change. Deviation: the mean of the patches is subtracted, as a covariance has it.

    batches: images (B, C, H, W). The sums are of float64. Of an eigenvector and its negative the
    one comes first whose first large value is positive. Raises ValueError if the layer has groups,
    other input channels, or fewer than 2 n filters, and if the images have no patch.
    """
    filters, channels, height, width = layer.weight.shape
    size = channels * height * width
    if layer.groups != 1 or filters < 2 * size:
        room = f"patches of {channels} x {height} x {width} need {2 * size:,} filters"
        message = f"{room}, and the first convolution has {filters:,}"
        raise ValueError(f"whiten: {message}" if layer.groups == 1 else "whiten: it has groups")
    count, images = 0, 0
    total = torch.zeros(size, dtype=torch.double)
    products = torch.zeros(size, size, dtype=torch.double)
    for batch in batches:
        if batch.shape[1] != channels:
            message = f"the first convolution takes {channels} channels, images have"
            raise ValueError(f"whiten: {message} {batch.shape[1]}")
        if batch.shape[2] < height or batch.shape[3] < width:
            message = f"images of {batch.shape[2]} x {batch.shape[3]} have no patch of"
            raise ValueError(f"whiten: {message} {height} x {width}")
        patches = nn.functional.unfold(batch.double().cpu(), (height, width))  # (B, n, places)
        patches = patches.transpose(0, 1).flatten(1)
        total += patches.sum(1)
        products += patches @ patches.T
        count, images = count + patches.shape[1], images + len(batch)
    mean = total / count
    values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    values, vectors = values.flip(0).clamp(min=0), vectors.T.flip(0)
    large = vectors.abs() >= vectors.abs().amax(1, keepdim=True) / 2
    vectors = vectors * vectors.gather(1, large.int().argmax(1, keepdim=True)).sign()
    found = (vectors / (values + EPS).sqrt()[:, None]).unflatten(1, (channels, height, width))
    with torch.no_grad():
        layer.weight[: 2 * size] = torch.cat((found, -found)).to(layer.weight)
    of = f"{count:,} patches of {images:,} training images"
    return f"{2 * size:,} of {filters:,} filters whiten {of}"
