"""Pictures that are nearly the same: re-encoded, resized, brightened or slightly cropped copies.

Three steps, each dearer and stricter than the one before. Every image is described by its coarsest
cosine waves (the numbers whose signs are pHash's bits), and its nearest neighbours are found by
matrix products. A neighbour is laid over the image as well as a small shift, stretch and change of
brightness can do it (Lucas and Kanade, 1981), and their edges are compared at 32 x 32. Where
images are larger, this is done again at 128 x 128, on files read anew: two photographs of the same
kind of banknote agree to 0.99 there, copies of one photograph to 0.997.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from trainer.console import bar

SIZE = 32  # pixels of a side of the thumbnails that are kept
DETAIL = 128  # of those that decide where images are larger
WAVES = 8  # of a side, kept of the cosine transform
NEIGHBOURS = 8
FLAT = 4.0  # grey levels: a thumbnail of less contrast looks like any other

# Correlations that must be passed, measured on copies and on 80 million pairs of other images: of
# descriptors; of edges of 16 x 16 as they lie; of edges laid over each other, by side.
RELATED, SIMILAR = 0.9, 0.88
ALIKE = {SIZE // 2: 0.98, SIZE: 0.987, DETAIL: 0.994}
LARGE = 96  # images of shorter sides have no more detail to look at


def near_duplicates(
    thumbnails: Tensor, shortest: Tensor, detail: Callable[[list[int]], Tensor]
) -> list[tuple[int, int, float]]:
    """Pairs of images that are nearly the same, the likest first: (i, j, likeness), i < j.

    thumbnails: (N, SIZE, SIZE) of images of different contents. shortest: (N,) the pixels of each
    one's shorter side. detail: gives thumbnails (n, DETAIL, DETAIL) of the images of n numbers.
    """
    pairs = related(descriptors(thumbnails))
    half = nn.functional.avg_pool2d(thumbnails.float()[:, None], 2)[:, 0]
    pairs = pairs[as_they_lie(pairs, half) > SIMILAR]
    pairs = pairs[either_way(pairs, half, half, "comparing edges") > ALIKE[SIZE // 2]]
    scores = either_way(pairs, thumbnails, thumbnails, "comparing closer")
    pairs, scores = pairs[scores > ALIKE[SIZE]], scores[scores > ALIKE[SIZE]]
    large = (shortest[pairs] >= LARGE).all(dim=1)
    found = [(pairs[~large], scores[~large])]
    for some in torch.split(pairs[large], 2048) if large.any() else ():
        numbers, places = torch.unique(some, return_inverse=True)
        fine = detail(numbers.tolist())
        coarse = nn.functional.avg_pool2d(fine.float()[:, None], 2)[:, 0]
        scores = either_way(places, coarse, fine, "comparing details")
        found.append((some[scores > ALIKE[DETAIL]], scores[scores > ALIKE[DETAIL]]))
    pairs, scores = (torch.cat(column) for column in zip(*found, strict=True))
    order = scores.argsort(descending=True, stable=True)
    rows = zip(pairs[order].tolist(), scores[order].tolist(), strict=True)
    return [(i, j, min(score, 1.0)) for (i, j), score in rows]


def thumbnail(images: Tensor, size: int = SIZE) -> Tensor:
    """Images (..., C, H, W) uint8 in grey: (..., size, size) uint8, stretched to a square."""
    small = functional.resize(images, [size, size], antialias=True)
    if small.shape[-3] == 3:
        small = functional.rgb_to_grayscale(small)
    grey: Tensor = small[..., 0, :, :]
    return grey


def descriptors(thumbnails: Tensor) -> Tensor:
    """Unit vectors (N, WAVES * WAVES) of thumbnails (N, S, S), blind to brightness and contrast.

    Zero for those of hardly any contrast.
    """
    side = thumbnails.shape[-1]
    places, frequencies = torch.arange(side) + 0.5, torch.arange(WAVES)
    waves = torch.cos(math.pi / side * frequencies[:, None] * places)
    # Photographs have little of the high frequencies, and that little tells them apart.
    weights = torch.hypot(frequencies[:, None].float(), frequencies.float()).sqrt()
    found = []
    for chunk in torch.split(thumbnails, 4096):
        grey = chunk.float()
        vectors = (waves @ grey @ waves.T * weights).flatten(1)
        vectors[is_flat(chunk)] = 0
        found.append(nn.functional.normalize(vectors))
    return torch.cat(found)


def is_flat(thumbnails: Tensor) -> Tensor:
    """(N,) bool: whether a thumbnail is of nearly one colour."""
    return thumbnails.float().flatten(1).std(dim=1, correction=0) < FLAT


def related(vectors: Tensor) -> Tensor:
    """(P, 2) int64, i < j: each vector and those of its nearest neighbours that are near enough."""
    count = min(NEIGHBOURS + 1, len(vectors))  # it is its own neighbour, mostly
    found = []
    rows = torch.split(torch.arange(len(vectors)), max(1, 2**23 // len(vectors)))
    for chunk in bar(rows, "comparing images", len(rows), unit="chunk"):
        likeness, neighbours = (vectors[chunk] @ vectors.T).topk(count, dim=1, sorted=False)
        pairs = torch.stack([chunk[:, None].expand_as(neighbours), neighbours], dim=-1)
        pairs = pairs[likeness > RELATED]
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        found.append(torch.stack([pairs.amin(1), pairs.amax(1)], dim=1))
    pairs = torch.cat(found)
    # Each pair is found from both sides, mostly; as one number, sorting is ten times as fast.
    numbers = torch.unique(pairs[:, 0] * len(vectors) + pairs[:, 1])
    return torch.stack([numbers // len(vectors), numbers % len(vectors)], dim=1)


def as_they_lie(pairs: Tensor, images: Tensor) -> Tensor:
    """(P,) the correlation of the edges of each pair of images (N, S, S)."""
    if not len(pairs):
        return torch.zeros(0)
    chunks = torch.split(pairs, 4096)
    return torch.cat(
        [correlation(*(edges(images[chunk[:, k]]) for k in (0, 1))) for chunk in chunks]
    )


def edges(images: Tensor, mask: Tensor | None = None) -> Tensor:
    """Differences between neighbours, to the right and down, of blurred images (P, S, S)."""
    soft = nn.functional.avg_pool2d(images[:, None], 2, 1)
    soft = nn.functional.avg_pool2d(soft, 2, 1, padding=1)[:, 0]
    found = torch.stack([soft[:, 1:, 1:] - soft[:, 1:, :-1], soft[:, 1:, 1:] - soft[:, :-1, 1:]], 1)
    if mask is not None:
        inside = -nn.functional.max_pool2d(-mask[:, None], 3, 1, padding=1)
        found = found * inside[:, :, 1:, 1:]
    return found.flatten(1)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """(P,) from -1 to 1, of rows (P, D) whose mean is taken for zero."""
    found: Tensor = nn.functional.cosine_similarity(a, b, dim=1, eps=1e-6)
    return found


def likeness(a: Tensor, b: Tensor, fine_a: Tensor, fine_b: Tensor) -> Tensor:
    """(P,) up to 1: how well b can be laid over a, (P, S, S), judged by the edges of the fine ones.

    Three steps of Gauss and Newton over shift and scale of x and y, and contrast and brightness.
    """
    side = a.shape[-1]
    place = (torch.arange(side) + 0.5) / side * 2 - 1  # as grid_sample counts: -1 to 1
    x, y = place[None, None, :], place[None, :, None]
    moved = torch.zeros(len(a), 4)  # shift and scale of x, of y
    target = a.flatten(1)[:, None]
    for _ in range(3):
        laid, inside = _warped(b, moved, "bilinear")
        padded = nn.functional.pad(laid[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        right = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) * (side / 4)
        down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) * (side / 4)
        ones = torch.full_like(laid, 64.0)
        terms = torch.stack([right, right * x, down, down * y, laid, ones], dim=1).flatten(2)
        masked = terms * inside.flatten(1)[:, None]
        normal = masked @ terms.mT
        normal += torch.diag_embed(normal.diagonal(dim1=1, dim2=2) * 1e-3 + 1e-2)
        solved = torch.linalg.solve(normal, masked @ target.mT)[..., 0]
        contrast = solved[:, 4:5].clamp_min(0.1)
        moved = (moved + solved[:, :4] / contrast).clamp(-0.12, 0.12)
    laid, inside = _warped(fine_b, moved, "bicubic")
    return correlation(edges(fine_a, inside), edges(laid, inside))


def _warped(images: Tensor, moved: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Images (P, S, S) shifted and scaled, and where they are not from beyond the edge."""
    side = images.shape[-1]
    place = ((torch.arange(side) + 0.5) / side * 2 - 1).expand(len(images), side)
    xs = (place * (1 + moved[:, 1:2]) + moved[:, 0:1])[:, None, :].expand(-1, side, -1)
    ys = (place * (1 + moved[:, 3:4]) + moved[:, 2:3])[:, :, None].expand(-1, -1, side)
    grid = torch.stack([xs, ys], dim=-1)
    laid = nn.functional.grid_sample(
        images[:, None], grid, mode=mode, padding_mode="border", align_corners=False
    )
    inside = (xs.abs() <= 1) & (ys.abs() <= 1)
    return laid[:, 0], inside.float()


def either_way(pairs: Tensor, coarse: Tensor, fine: Tensor, description: str) -> Tensor:
    """(P,) the likeness of each pair of thumbnails, laid over each other either way."""
    if not len(pairs):
        return torch.zeros(0)
    found = []
    chunks = torch.split(pairs, max(1, 2**18 // fine.shape[-1] ** 2))
    for chunk in bar(chunks, description, len(chunks), unit="chunk"):
        (a, b), (fine_a, fine_b) = (
            [some[chunk[:, k]].float() for k in (0, 1)] for some in (coarse, fine)
        )
        one, other = likeness(a, b, fine_a, fine_b), likeness(b, a, fine_b, fine_a)
        found.append(torch.maximum(one, other))
    return torch.cat(found)
