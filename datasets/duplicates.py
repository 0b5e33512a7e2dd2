"""Finds nearly equal pictures: re-encoded, resized, brightened or slightly cropped copies.

The search has three steps, each slower and stricter than the one before. First, every image gets
a descriptor of its lowest cosine frequencies (their signs are pHash's bits), and matrix products
find its nearest neighbours. Second, a neighbour is aligned with the image by a small shift, stretch
and change of brightness (Lucas and Kanade, 1981), and the edges of both are compared at 32 x 32.
Third, larger images are read again and compared at 128 x 128. There, two photographs of the same
kind of banknote have a likeness of 0.99, copies of one photograph 0.997.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from datasets import BrokenImage, Dataset

SIZE = 32  # side of the thumbnails that are kept, in pixels
DETAIL = 128  # side of the thumbnails that decide for larger images, in pixels
WAVES = 8  # lowest frequencies of the cosine transform, along each side
NEIGHBOURS = 8
FLAT = 4.0  # grey levels: thumbnails with a smaller standard deviation all look alike

# A pair must exceed these correlations, measured on copies and on 80 million pairs of other images.
# RELATED: descriptors. SIMILAR: edges at 16 x 16, not aligned. ALIKE: aligned edges, by side.
RELATED, SIMILAR = 0.9, 0.88
ALIKE = {SIZE // 2: 0.98, SIZE: 0.987, DETAIL: 0.994}
# ``watch(items, what, total)`` yields the items, and may show how far the work is.
Watch = Callable[[Iterable[Any], str, int], Iterable[Any]]
LARGE_SIDE = 96  # pixels: an image with a shorter side shows little more than its thumbnail


def unwatched(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """The items, without a word."""
    return items


def similar_contents(
    dataset: Dataset, digests: Sequence[str], watch: Watch = unwatched
) -> list[tuple[str, str]]:
    """Return pairs of digests whose images are nearly the same, most alike first.

    digests: of each sample, "" for those that are left out. All images are decoded. Neither the
    names nor the order of the samples matters. Images that cannot be read are like no other.
    """
    index_of = {digest: index for index, digest in reversed([*enumerate(digests)]) if digest}
    contents = sorted(index_of, key=index_of.__getitem__)  # read in the order of the data

    def look(digest: str) -> tuple[str, Tensor, int] | None:
        try:
            image = dataset.image(index_of[digest])
        except BrokenImage:
            return None
        return digest, thumbnail(image), min(image.shape[-2:])

    def in_detail(digest: str) -> Tensor:
        return thumbnail(dataset.image(index_of[digest]), DETAIL)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        looked = watch(threads.map(look, contents), "looking for similar images", len(contents))
        seen = sorted((one for one in looked if one is not None), key=lambda one: one[0])
        if len(seen) < 2:
            return []
        pairs = near_duplicates(
            torch.stack([small for _, small, _ in seen]),
            torch.tensor([side for _, _, side in seen]),
            lambda rows: torch.stack([*threads.map(in_detail, [seen[row][0] for row in rows])]),
            watch,
        )
    return [(seen[i][0], seen[j][0]) for i, j, _ in pairs]


def near_duplicates(
    thumbnails: Tensor,
    shortest: Tensor,
    detail: Callable[[list[int]], Tensor],
    watch: Watch = unwatched,
) -> list[tuple[int, int, float]]:
    """Return pairs of images that are nearly the same: (i, j, likeness), i < j, most alike first.

    thumbnails: (N, SIZE, SIZE) uint8 of images of different contents. shortest: (N,) the shorter
    side of each image in pixels. detail: returns thumbnails (n, DETAIL, DETAIL) for n indices.
    """

    def closer(pairs: Tensor, coarse: Tensor, fine: Tensor, what: str) -> Tensor:
        return either_way(pairs, coarse, fine, lambda items, total: watch(items, what, total))

    pairs = related(descriptors(thumbnails), watch)
    half = nn.functional.avg_pool2d(thumbnails.float()[:, None], 2)[:, 0]
    pairs = pairs[as_they_lie(pairs, half) > SIMILAR]
    pairs = pairs[closer(pairs, half, half, "comparing edges") > ALIKE[SIZE // 2]]
    scores = closer(pairs, thumbnails, thumbnails, "comparing closer")
    pairs, scores = pairs[scores > ALIKE[SIZE]], scores[scores > ALIKE[SIZE]]
    large = (shortest[pairs] >= LARGE_SIDE).all(dim=1)
    found = [(pairs[~large], scores[~large])]
    for chunk in torch.split(pairs[large], 2048) if large.any() else ():
        numbers, places = torch.unique(chunk, return_inverse=True)
        fine = detail(numbers.tolist())
        coarse = nn.functional.avg_pool2d(fine.float()[:, None], 2)[:, 0]
        scores = closer(places, coarse, fine, "comparing details")
        found.append((chunk[scores > ALIKE[DETAIL]], scores[scores > ALIKE[DETAIL]]))
    pairs, scores = (torch.cat(column) for column in zip(*found, strict=True))
    order = scores.argsort(descending=True, stable=True)
    rows = zip(pairs[order].tolist(), scores[order].tolist(), strict=True)
    return [(i, j, min(score, 1.0)) for (i, j), score in rows]


def groups_of_equals(usable: Sequence[int], digests: Sequence[str]) -> list[list[int]]:
    """Return the groups of samples of equal content."""
    groups: dict[str, list[int]] = {}
    for index in usable:
        groups.setdefault(digests[index], []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def groups_of_pairs(pairs: Sequence[tuple[int, int, float]]) -> list[tuple[list[int], float]]:
    """Return groups of images that pairs (i, j, likeness) connect, and the least of its pairs.

    Each group is sorted; the most alike group comes first.
    """
    group_of: dict[int, list[int]] = {}
    least: dict[int, float] = {}  # by a group's first image
    for i, j, score in pairs:
        one, other = (group_of.setdefault(k, [k]) for k in (i, j))
        scores = [score, least.get(one[0], score), least.get(other[0], score)]
        if one is not other:
            one += other
            group_of |= dict.fromkeys(other, one)
        least[one[0]] = min(scores)
    groups = {group[0]: group for group in group_of.values()}
    found = [(sorted(group), least[first]) for first, group in groups.items()]
    return sorted(found, key=lambda one: (-one[1], one[0]))


def thumbnail(images: Tensor, size: int = SIZE) -> Tensor:
    """Return images (..., C, H, W) in grey, stretched to (..., size, size) uint8.

    Of uint16 the high byte counts, of other channels than 1 or 3 the first.
    """
    if images.dtype == torch.uint16:
        images = (images.int() >> 8).byte()
    small = functional.resize(images, [size, size], antialias=True)
    if small.shape[-3] == 3:
        small = functional.rgb_to_grayscale(small)
    grey: Tensor = small[..., 0, :, :]
    return grey


def descriptors(thumbnails: Tensor) -> Tensor:
    """Return unit vectors (N, WAVES * WAVES) of thumbnails (N, S, S); zero for flat ones."""
    side = thumbnails.shape[-1]
    places, frequencies = torch.arange(side) + 0.5, torch.arange(WAVES)
    waves = torch.cos(math.pi / side * frequencies[:, None] * places)
    # Photographs have little of the high frequencies, but differ most in them.
    weights = torch.hypot(frequencies[:, None].float(), frequencies.float()).sqrt()
    found = []
    for chunk in torch.split(thumbnails, 4096):
        grey = chunk.float()
        vectors = (waves @ grey @ waves.T * weights).flatten(1)
        vectors[is_flat(chunk)] = 0
        found.append(nn.functional.normalize(vectors))
    return torch.cat(found)


def is_flat(thumbnails: Tensor) -> Tensor:
    """Return (N,) bool: whether a thumbnail is of nearly one colour."""
    return thumbnails.float().flatten(1).std(dim=1, correction=0) < FLAT


def related(vectors: Tensor, watch: Watch = unwatched) -> Tensor:
    """Return pairs (P, 2) int64, i < j, of vectors and their nearest neighbours above RELATED."""
    count = min(NEIGHBOURS + 1, len(vectors))  # a vector is mostly its own nearest neighbour
    found = []
    rows = torch.split(torch.arange(len(vectors)), max(1, 2**23 // len(vectors)))
    for chunk in watch(rows, "comparing images", len(rows)):
        likeness, neighbours = (vectors[chunk] @ vectors.T).topk(count, dim=1, sorted=False)
        pairs = torch.stack([chunk[:, None].expand_as(neighbours), neighbours], dim=-1)
        pairs = pairs[likeness > RELATED]
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        found.append(torch.stack([pairs.amin(1), pairs.amax(1)], dim=1))
    pairs = torch.cat(found)
    # Most pairs are found twice. Sorting is ten times as fast if a pair is one number.
    numbers = torch.unique(pairs[:, 0] * len(vectors) + pairs[:, 1])
    return torch.stack([numbers // len(vectors), numbers % len(vectors)], dim=1)


def as_they_lie(pairs: Tensor, images: Tensor) -> Tensor:
    """Return (P,): the correlation of the edges of each pair of images (N, S, S), not aligned."""
    if not len(pairs):
        return torch.zeros(0)
    chunks = torch.split(pairs, 4096)
    return torch.cat(
        [correlation(*(edges(images[chunk[:, k]]) for k in (0, 1))) for chunk in chunks]
    )


def edges(images: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return differences of neighbouring pixels, right and down, of blurred images (P, S, S)."""
    soft = nn.functional.avg_pool2d(images[:, None], 2, 1)
    soft = nn.functional.avg_pool2d(soft, 2, 1, padding=1)[:, 0]
    found = torch.stack([soft[:, 1:, 1:] - soft[:, 1:, :-1], soft[:, 1:, 1:] - soft[:, :-1, 1:]], 1)
    if mask is not None:
        inside = -nn.functional.max_pool2d(-mask[:, None], 3, 1, padding=1)
        found = found * inside[:, :, 1:, 1:]
    return found.flatten(1)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return (P,) from -1 to 1: the correlation of rows (P, D), whose means are taken as zero."""
    found: Tensor = nn.functional.cosine_similarity(a, b, dim=1, eps=1e-6)
    return found


def likeness(a: Tensor, b: Tensor, fine_a: Tensor, fine_b: Tensor) -> Tensor:
    """Return (P,) up to 1: the correlation of the edges of fine_a and the aligned fine_b.

    The alignment of b with a, both (P, S, S), is found by three Gauss-Newton steps over shift and
    scale in x and y, contrast and brightness.
    """
    side = a.shape[-1]
    place = (torch.arange(side) + 0.5) / side * 2 - 1  # in grid_sample's units: -1 to 1
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
    """Return images (P, S, S) shifted and scaled, and a mask of pixels from inside the image."""
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


def either_way(
    pairs: Tensor,
    coarse: Tensor,
    fine: Tensor,
    watch: Callable[[Iterable[Tensor], int], Iterable[Tensor]],
) -> Tensor:
    """Return (P,): the likeness of each pair, the larger of a aligned with b and b with a."""
    if not len(pairs):
        return torch.zeros(0)
    found = []
    chunks = torch.split(pairs, max(1, 2**18 // fine.shape[-1] ** 2))
    for chunk in watch(chunks, len(chunks)):
        (a, b), (fine_a, fine_b) = (
            [images[chunk[:, k]].float() for k in (0, 1)] for images in (coarse, fine)
        )
        one, other = likeness(a, b, fine_a, fine_b), likeness(b, a, fine_b, fine_a)
        found.append(torch.maximum(one, other))
    return torch.cat(found)
