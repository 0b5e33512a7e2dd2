"""The transforms of one split, run in two stages: once per sample, then batched."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice, product, takewhile
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torchvision.transforms.v2 as v2
from torch import Tensor

from transforms import MIXING, batched, is_fixed
from transforms.batched import KERNELS, NESTING, is_batched, predecessors
from transforms.by_image import Step, goes_by_image, run_by_image
from transforms.floats import in_16_bits, normalized
from transforms.keyed import Draws, seeded
from transforms.memory import Images, stacked
from transforms.own import Normalize

Transform = Callable[..., Any]
Sides = tuple[int, int]  # height and width

# These need float32 images in 0-1. RandomErasing does because of its `value`: uint8 holds neither
# 0.5 (mid-grey) nor normal noise ("random").
FLOAT = frozenset({"Normalize", "LinearTransformation", "RandomErasing", "MixUp"})
CROPS = (v2.RandomCrop, v2.RandomResizedCrop)
FLIPS = (v2.RandomHorizontalFlip, v2.RandomVerticalFlip)


class Item(NamedTuple):
    """A transform of stage 2: its position in the full list, and how it runs."""

    position: int
    transform: Transform
    way: str  # fixed, mixing, batched or per sample
    scales: bool  # whether images are made float32 in 0-1 before it


class Pipeline:
    """The transforms of one split, in the order of the YAML file.

    fixed: the leading transforms that are neither random nor in ``FLOAT``; ``prepare`` runs them
    (stage 1), once per sample.  rest: the others; calling the pipeline runs them (stage 2), in
    every epoch.  Images become float32 in 0-1 before the first transform in ``FLOAT``, or at the
    end.  predecessors: how many samples a batch needs before its first one, for MixUp and CutMix.
    sizes: the (height, width) to which finished images are resized, by the first epoch of each in
    ascending order; none where they keep the size that the transforms give.

    Random parameters are functions of (seed, epoch, sample index, position in the list), so a
    sample gets the same augmentation in any batch. MixUp and CutMix mix a sample with the one
    before it in the epoch's order.

    Raises ValueError if a RandomApply, RandomChoice or RandomOrder holds both MixUp or CutMix and
    transforms of single images, or both an alternating flip and one that runs per sample.
    """

    def __init__(
        self,
        transforms: Sequence[Transform],
        seed: int,
        sizes: Mapping[int, Sides] = MappingProxyType({}),
    ) -> None:
        for position, transform in enumerate(transforms):
            inner = set().union(*map(_names, _inner(transform)))
            if inner & MIXING.keys() and inner - MIXING.keys():
                raise ValueError(
                    f"{_name(transform)} (transform {position}) holds {', '.join(sorted(inner))}: "
                    "MixUp and CutMix mix a batch, the others change one image; separate them"
                )
            if (flip := _alternating(transform)) and not is_batched(transform):
                raise ValueError(
                    f"{_name(transform)} (transform {position}) holds {flip} beside a transform "
                    f"without a batched form, and {flip} has no other where it alternates"
                )
        once = 0
        while once < len(transforms) and _way(transforms[once]) == "fixed":
            if _names(transforms[once]) & FLOAT:
                break
            once += 1
        self.fixed, self.rest = tuple(transforms[:once]), tuple(transforms[once:])
        self.seed, self.sizes = seed, dict(sizes)
        self._items = [_item(once + i, transform) for i, transform in enumerate(self.rest)]
        self.predecessors = sum(predecessors(transform) for transform in self.rest)

    def size_at(self, epoch: int) -> Sides | None:
        """The size to which an epoch's images are resized; None if they are not."""
        begun = [size for first, size in self.sizes.items() if first <= epoch]
        return begun[-1] if begun else None

    def at(self, size: Sides | None) -> "Pipeline":
        """The same transforms, with images of this size in every epoch; None resizes none."""
        other = copy.copy(self)
        other.sizes = {} if size is None else {0: size}
        return other

    def early(self, cached: bool) -> int:
        """How many transforms of ``rest`` run where images are read (in worker processes).

        They end with the last one that has no batched form and so runs per sample. If images are
        not ``cached`` as one tensor of small images, they include the first crop, which makes
        images small and equal in size, and the flips that follow it.
        """
        slow = (i + 1 for i, item in enumerate(self._items) if item.way == "per sample")
        count = max(slow, default=0)
        crops = [i + 1 for i, transform in enumerate(self.rest) if isinstance(transform, CROPS)]
        if not cached and crops and not any(_names(t) & FLOAT for t in self.rest[: crops[0]]):
            flips = takewhile(lambda transform: isinstance(transform, FLIPS), self.rest[crops[0] :])
            count = max(count, crops[0] + len(list(flips)))
        return count

    def prepare(self, images: Tensor) -> Tensor:
        """Stage 1: the fixed transforms; one image and a stack of images give equal results.

        images: (..., C, H, W) uint8, or uint16 (0-65535), which transforms see as float32 in 0-1.
        Returns the same type with new C, H, W; FiveCrop and TenCrop add a dimension before C.
        Raises ValueError with the transform's name if it fails.
        """
        _check_levels(images)
        has_16_bits = images.dtype == torch.uint16
        if has_16_bits and self.fixed:
            images = normalized(images)
        for position, transform in enumerate(self.fixed):
            with _naming(transform, position, images):
                images = _apply(transform, images)
        return in_16_bits(images) if has_16_bits and self.fixed else images

    def __call__(
        self, images: Images, labels: Tensor, indices: Tensor, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Stage 2: the other transforms, for a batch of images that ``prepare`` returned.

        images: (B, [crops,] C, H, W) uint8 or uint16, or a list of B whose sizes differ.
        labels: (B,) int64.  indices: (B,) int64, the samples' indices in the dataset, on the CPU.
        The first ``predecessors`` samples are those before the batch in the epoch's order: they are
        mixed into their successors and not returned.  Returns images (B, [crops,] C, H, W) float32,
        and the labels, or class probabilities (B, num_classes) float32 after MixUp or CutMix.

        Raises ValueError if a transform fails, or if image sizes still differ at the end.
        Transforms that run per sample seed torch's CPU generator and restore it, so no other thread
        may draw from it meanwhile.
        """
        images, labels = self.begin(images, labels, indices, epoch, count=0)
        return self.finish(images, labels, indices, epoch, first=0)

    def begin(
        self, images: Images, labels: Tensor, indices: Tensor, epoch: int, count: int
    ) -> tuple[Images, Tensor]:
        """Run the first ``count`` transforms of stage 2 only, as where images are read."""
        if not 0 < len(images) == len(labels) == len(indices):
            raise ValueError(
                "a batch needs one label and one index an image, and at least one image; it has "
                f"{len(images)} images, {len(labels)} labels, {len(indices)} indices"
            )
        _check_levels(*images if isinstance(images, list) else [images])
        images, labels = self._run(self._items[:count], images, labels, indices, epoch)
        return stacked(images), labels

    def finish(
        self,
        images: Images,
        labels: Tensor,
        indices: Tensor,
        epoch: int,
        first: int,
        channels_last: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Run stage 2 from transform ``first`` on, on the images and labels from ``begin``.

        Images (B, C, H, W) lie in channels-last memory if ``channels_last``, others contiguous.
        Resizing comes last, so no transform needs to know the epoch's size.
        """
        items = self._items[first:]
        images, labels = self._run(items, images, labels, indices, epoch, channels_last)
        result = _one_size(_each(partial(normalized, channels_last=channels_last), images))
        if size := self.size_at(epoch):
            result = v2.functional.resize(result, list(size))  # bilinear, antialiased, in float32
        wanted = channels_last and result.ndim == 4
        layout = torch.channels_last if wanted else torch.contiguous_format
        return result.contiguous(memory_format=layout), labels

    def try_choices(self, images: Images, labels: Tensor, indices: Tensor) -> None:
        """Run every choice of each RandomApply and RandomChoice, and two orders of RandomOrder.

        At most 64 choices each. Raises ValueError if one fails, or if the image sizes differ.
        """
        for number, (position, transform, *_) in enumerate(self._items):
            if not isinstance(transform, NESTING):
                continue
            shapes = set()
            for chosen in islice(_ways_through(transform), 64):
                tried = [_item(position, inner) for inner in chosen]
                tried = [*self._items[:number], *tried, *self._items[number + 1 :]]
                result, _ = self._run(tried, images, labels, indices, 0)
                shapes.add(_one_size(stacked(result)).shape[1:])
            if len(shapes) > 1:
                sizes = ", ".join(str(tuple(shape)) for shape in sorted(shapes))
                raise ValueError(
                    f"{_name(transform)} (transform {position}) leaves images of different sizes, "
                    f"{sizes}, which cannot form a batch; let a Resize or a crop follow"
                )

    def _run(
        self,
        items: Sequence[Item],
        images: Images,
        labels: Tensor,
        indices: Tensor,
        epoch: int,
        channels_last: bool = False,
    ) -> tuple[Images, Tensor]:
        done = 0
        some = images[0] if isinstance(images, list) else images
        if items and some.dtype == torch.uint16:  # few kernels take it, all take float32
            images = _each(normalized, images)
        while done < len(items):
            if chain := _by_image(items[done:], images):
                images = self._run_chain(chain, images, indices, epoch)
                done += len(chain)
                continue
            position, transform, way, scales = items[done]
            done, images = done + 1, stacked(images)
            with _naming(transform, position, images):
                if scales:
                    images = _each(normalized, images)
                if isinstance(transform, Normalize):
                    images = _each(partial(transform, channels_last=channels_last), images)
                    continue
                if way == "fixed":
                    images = _each(transform, images)
                    continue
                draws = Draws(self.seed, epoch, indices, position)
                if way == "mixing":
                    images, labels = batched.run_mixing(transform, _one_size(images), labels, draws)
                    indices = indices[predecessors(transform) :]
                elif way == "batched":
                    images = batched.run_batched(transform, images, draws)
                else:
                    images = _per_sample(transform, images, draws)
        return images, labels

    def _run_chain(
        self, items: Sequence[Item], images: Images, indices: Tensor, epoch: int
    ) -> Images:
        def run(items: Sequence[Item], images: Images) -> Images:
            return run_by_image(
                [
                    Step(KERNELS[type(t)], t, Draws(self.seed, epoch, indices, position))
                    for position, t, *_ in items
                ],
                images,
            )

        with suppress(Exception):
            return run(items, images)
        for item in items:  # which one failed? Alone, it is named
            with _naming(item.transform, item.position, images):
                images = run([item], images)
        return images

    @property
    def without_batched_form(self) -> list[str]:
        """Names of the transforms without a batched form, because of which some run per sample."""
        return [
            name
            for item in self._items
            if item.way == "per sample"
            for name in _unbatched(item.transform)
        ]

    @property
    def description(self) -> list[tuple[str, str]]:
        """Each transform's name, and how it runs: once per sample, batched, or per sample."""
        ways = [(_name(transform), "once per sample") for transform in self.fixed]
        for item in self._items:
            per_sample = item.way == "per sample"
            ways.append((_name(item.transform), "per sample" if per_sample else "batched"))
        return ways


def _name(transform: Transform) -> str:
    return type(transform).__name__


def _inner(transform: Transform) -> Sequence[Transform]:
    """The inner transforms of a RandomApply, RandomChoice or RandomOrder; else none."""
    return transform.transforms if isinstance(transform, NESTING) else ()


def _names(transform: Transform) -> set[str]:
    return {_name(transform)}.union(*map(_names, _inner(transform)))


def _alternating(transform: Transform) -> str:
    """The name of a flip that alternates, in ``transform`` or in those that it holds; or ""."""
    if getattr(transform, "alternate", False):
        return _name(transform)
    return next(filter(None, map(_alternating, _inner(transform))), "")


def _item(position: int, transform: Transform) -> Item:
    # Normalize scales by itself.
    scales = bool(_names(transform) & FLOAT) and not isinstance(transform, Normalize)
    return Item(position, transform, _way(transform), scales)


def _ways_through(transform: Transform) -> Iterator[tuple[Transform, ...]]:
    """Every sequence of plain transforms that ``transform`` may choose (two for RandomOrder)."""
    if not isinstance(transform, NESTING):
        yield (transform,)
        return
    inner = list(transform.transforms)
    choices = [inner, inner[::-1]]  # two of the many orders of RandomOrder
    if isinstance(transform, v2.RandomApply):
        choices = [inner] * (transform.p > 0) + [[]] * (transform.p < 1)
    elif isinstance(transform, v2.RandomChoice):
        choices = [[one] for one, p in zip(inner, transform.p, strict=True) if p > 0]
    for choice in choices:
        for ways in product(*map(_ways_through, choice)):
            yield tuple(step for way in ways for step in way)


def _unbatched(transform: Transform) -> list[str]:
    inner = [name for held in _inner(transform) for name in _unbatched(held)]
    return inner or ([] if is_batched(transform) else [_name(transform)])


def _way(transform: Transform) -> str:
    """How stage 2 runs a transform: fixed, mixing, batched (it has a kernel), or per sample."""
    if is_fixed(transform):
        return "fixed"
    if _names(transform) & MIXING.keys():
        return "mixing"
    return "batched" if is_batched(transform) else "per sample"


def _by_image(items: Sequence[Item], images: Images) -> Sequence[Item]:
    """The first of ``items`` if it runs image by image, and those that can go on in that way."""
    first = items[0]
    if first.way != "batched":  # a kernel need not take all arguments
        return ()
    if not goes_by_image(KERNELS.get(type(first.transform)), first.transform, images):
        return ()

    def goes_on(item: Item) -> bool:
        kernel = KERNELS.get(type(item.transform))
        return item.way == "batched" and kernel is not None and kernel.one is not None

    return items[: sum(1 for _ in takewhile(goes_on, items))]


def _per_sample(transform: Transform, images: Images, draws: Draws) -> Images:
    results = []
    for image, key in zip(images, draws.keys.tolist(), strict=True):
        with seeded(key):
            results.append(_apply(transform, image))
    return stacked(results)


def _apply(transform: Transform, images: Tensor) -> Tensor:
    result = transform(images)
    # FiveCrop and TenCrop return a tuple of crops.
    return torch.stack(result, dim=-4) if isinstance(result, tuple) else result


def _each(transform: Transform, images: Images) -> Images:
    if isinstance(images, Tensor):
        return _apply(transform, images)
    return stacked([_apply(transform, image) for image in images])


def _one_size(images: Images) -> Tensor:
    if isinstance(images, Tensor):
        return images
    if len({image.shape[-3] for image in images}) > 1:
        raise ValueError(
            f"images of different numbers of channels, {_shapes(images)}, cannot form a batch; "
            "dataset.channels=rgb makes each RGB"
        )
    raise ValueError(
        f"images of different sizes, {_shapes(images)}, cannot form a batch; "
        "add Resize with a height and a width, or a crop, to the transforms"
    )


def _check_levels(*images: Tensor) -> None:
    for image in images:
        if not isinstance(image, Tensor):
            what = f"of {image.dtype}" if hasattr(image, "dtype") else f"such as {image!r:.50}"
            raise ValueError(
                f"images must be tensors (C, H, W), but are {type(image).__name__} {what}"
            )
        if image.dtype not in (torch.uint8, torch.uint16):
            raise ValueError(f"images must be uint8 (0-255) or uint16, but are {image.dtype}")


def _shapes(images: Images) -> str:
    tensors = [images] if isinstance(images, Tensor) else images
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    return ", ".join(map(str, shapes[:4])) + (", ..." if len(shapes) > 4 else "")


@contextmanager
def _naming(transform: Transform, position: int, images: Images) -> Iterator[None]:
    """Context manager: errors become a ValueError with the transform's name and image shapes."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torchvision's functions raise many types
        reason = ""
        with suppress(Exception):  # of a class that someone wrote for a transform
            reason = str(error)
        raise ValueError(
            f"{_name(transform)} (transform {position}) cannot work on images of shape "
            f"{_shapes(images)}: {reason or type(error).__name__}"
        ) from error
