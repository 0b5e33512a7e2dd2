"""Large images and images of different sizes: bits, layouts and memory of their batches."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
from torch import Tensor

from trainer.input.kept import Kept, on_device
from trainer.input.pool import LAST, RECORD
from trainer.input.subset import Subset
from transforms.batched import KERNELS
from transforms.floats import normalized
from transforms.keyed import Draws
from transforms.memory import collected, is_channels_last, stacked
from transforms.own import AlternatingFlip, Normalize, RandomHorizontalFlip, RandomVerticalFlip
from transforms.pipeline import Pipeline

MODE = v2.InterpolationMode
COUNT, SIZE = 70, 128
NORMALIZE = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def photographs(tmp_path, layout: str, channels: int = 3) -> list[Tensor]:
    """Images of 70 sizes, some smaller than the result, as they lie in memory."""
    generator = np.random.default_rng(0)
    images = []
    for k in range(COUNT):
        shape = (40 + 3 * k, 150 - k, channels)
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        if layout == "read only":
            path = tmp_path / f"{k}-{channels}.npy"
            np.save(path, pixels)
            pixels = np.load(path, mmap_mode="r")
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        images.append(image.contiguous() if layout == "contiguous" else image)
    return images


def recipe(mode: str, antialias: bool) -> list[Any]:
    crop = v2.RandomResizedCrop(SIZE, interpolation=MODE(mode), antialias=antialias)
    return [v2.RandomVerticalFlip(), crop, v2.RandomHorizontalFlip(), AlternatingFlip(), NORMALIZE]


def by_torchvision(transforms: list[Any], image: Tensor, index: int) -> Tensor:
    """uint8: torchvision's functions, one after the other, with the parameters that are drawn."""
    for position, transform in enumerate(transforms):
        kernel = KERNELS.get(type(transform))
        if kernel is None:
            continue
        draws = Draws(5, 1, torch.tensor([index]), position)
        drawn = kernel.draw(transform, tuple(image.shape), draws)
        parameters = {name: values[0].tolist() for name, values in drawn.items()}
        if isinstance(transform, v2.RandomResizedCrop):
            image = transform.transform(image, parameters)
        elif parameters["chosen"]:
            vertical = isinstance(transform, v2.RandomVerticalFlip)
            flip = v2.functional.vertical_flip if vertical else v2.functional.horizontal_flip
            image = flip(image)
    return image


def digests(images: Tensor) -> list[str]:
    return [hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in images]


def through(images: list[Tensor], pipeline: Pipeline, size: int, early: int) -> list[str]:
    """A digest of each image's float32 values, from batches of ``size``."""
    rows, found = torch.arange(len(images)), []
    for some in rows.split(size):
        batch = [images[row] for row in some]
        begun, labels = pipeline.begin(batch, torch.zeros(len(some)), some, 1, early)
        result, _ = pipeline.finish(begun, labels, some, 1, early, channels_last=size == 3)
        assert result.is_contiguous(
            memory_format=torch.channels_last if size == 3 else torch.contiguous_format
        )
        found += digests(result)
    return found


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize(
    ("channels", "mode", "antialias"),
    [
        (3, "bilinear", True),
        (1, "bilinear", True),
        (3, "bilinear", False),
        (3, "bicubic", True),
        (3, "nearest", True),
    ],
)
def test_a_photograph_gets_torchvisions_bits_in_any_batch_and_from_any_memory(
    tmp_path, channels, mode, antialias
):
    transforms = recipe(mode, antialias)[: 4 if channels == 1 else 5]
    pipeline = Pipeline(transforms, seed=5)
    images = photographs(tmp_path, "contiguous", channels)
    want = [by_torchvision(transforms, image, k).unsqueeze(0) for k, image in enumerate(images)]
    mean, std = NORMALIZE.mean.flatten().tolist(), NORMALIZE.std.flatten().tolist()
    floats = [image / 255 for image in want]  # as ToTensor
    if channels == 3:
        floats = [v2.functional.normalize(image, mean, std) for image in floats]
    expected = digests(torch.cat(floats))
    before = digests(torch.cat([image.flatten() for image in images])[None])
    assert pipeline.early(cached=False) == 4 and pipeline.early(cached=True) == 0
    for layout in ("contiguous", "channels last", "read only"):
        some = photographs(tmp_path, layout, channels)
        for size in (1, 3, 64):
            for early in (0, 4):
                assert through(some, pipeline, size, early) == expected, (layout, size, early)
    assert digests(torch.cat([image.flatten() for image in images])[None]) == before


def test_small_images_of_different_sizes_get_their_bits_in_any_batch():
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, 9 + k % 5, 30 - k % 3), dtype=torch.uint8, generator=generator)
        for k in range(COUNT)
    ]
    transforms = [v2.RandomResizedCrop(20), v2.RandomHorizontalFlip()]
    pipeline = Pipeline(transforms, seed=5)
    begun, _ = pipeline.begin(images, torch.zeros(COUNT), torch.arange(COUNT), 1, 2)
    expected = through(images, pipeline, 64, 0)
    assert through(images, pipeline, 1, 2) == through(images, pipeline, 3, 0) == expected
    for k, image in enumerate(images):
        want = by_torchvision(transforms, image, k)
        assert (begun[k].int() - want.int()).abs().max() <= 1
    same = [image for image in images if image.shape == images[0].shape]  # one tensor in a batch
    assert through(same, pipeline, 5, 0) == through(same, pipeline, 1, 0)


@pytest.mark.parametrize("transform", [v2.RandomCrop(60, padding=20, fill=7), v2.RandomCrop(40)])
def test_crops_of_photographs_equal_torchvision(tmp_path, transform):
    images, rows = photographs(tmp_path, "channels last"), torch.arange(COUNT)
    pipeline = Pipeline([transform, v2.RandomHorizontalFlip(1.0)], seed=5)
    got, _ = pipeline.begin(images, torch.zeros(COUNT), rows, 1, 2)
    for k, image in enumerate(images):
        draws = Draws(5, 1, rows[k : k + 1], 0)
        drawn = KERNELS[v2.RandomCrop].draw(transform, tuple(image.shape), draws)
        padded = v2.functional.pad(image, list(transform.padding or [0]), fill=transform.fill)
        place = [int(drawn[name]) for name in ("top", "left")]
        expected = v2.functional.crop(padded, *place, *transform.size)
        assert torch.equal(got[k], v2.functional.horizontal_flip(expected))


def test_a_crop_that_one_of_many_photographs_is_too_small_for_names_its_size(tmp_path):
    images, rows = photographs(tmp_path, "contiguous"), torch.arange(COUNT)
    pipeline = Pipeline([v2.RandomHorizontalFlip(), v2.RandomCrop(43)], seed=5)
    with pytest.raises(ValueError, match=r"RandomCrop \(transform 1\).* image of 40 x 150"):
        pipeline.begin(images, torch.zeros(COUNT), rows, 1, 2)


def in_a_pool(images: Sequence[Tensor]) -> Kept:
    """The images as a pool keeps them: one after the other, the channels of a pixel together."""
    records = np.zeros(len(images), RECORD)
    records["shape"][:, 1:] = [image.shape for image in images]
    records["offset"] = np.cumsum([0, *(image.numel() for image in images)])[:-1]
    records["layout"] = LAST
    pixels = torch.cat([image.movedim(0, -1).flatten() for image in images])
    return Kept(records, torch.zeros(len(images), dtype=torch.int64), [pixels], "store", True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kept", ["views", "views of one size", "tensor"])
def test_kept_photographs_give_what_those_that_are_read_anew_give(tmp_path, kept, channels):
    images: Any = photographs(tmp_path, "channels last", channels)
    if kept != "views":
        images = torch.stack([image[:, :40, :80].repeat(1, 3, 2) for image in images])
    transforms = [v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4)]
    rows, labels = torch.arange(COUNT), torch.zeros(COUNT, dtype=torch.int64)

    class Files:
        def image(self, index: int) -> Tensor:
            image: Tensor = images[index]
            return image

    dataset: Any = Files()
    subsets = [
        Subset(dataset, Pipeline(transforms, 0), rows, labels, place, rows[:2])
        for place in (images if kept == "tensor" else in_a_pool(images), None)
    ]
    assert [subset.early for subset in subsets] == [2, 2]
    got, expected = (digests(subset.batch(rows)[0]) for subset in subsets)
    assert got == expected
    alone = [digests(subsets[0].batch(row)[0])[0] for row in rows.split(1)]
    assert alone == expected


def test_large_kept_images_of_one_size_go_to_a_device(tmp_path):
    images = [image[:, :40, :80].contiguous() for image in photographs(tmp_path, "contiguous")]
    kept = in_a_pool(images)
    assert kept.gives_views
    assert torch.equal(on_device(kept, torch.device("cpu")), torch.stack(images))


@pytest.mark.parametrize(("mode", "antialias"), [("nearest-exact", True), ("bicubic", False)])
def test_a_resized_crop_that_has_no_kernel_is_the_same_alone_and_among_others(
    tmp_path, mode, antialias
):
    crop = v2.RandomResizedCrop(SIZE, interpolation=MODE(mode), antialias=antialias)
    images, pipeline = photographs(tmp_path, "channels last")[:6], Pipeline([crop], 5)
    rows = torch.arange(6)
    among, _ = pipeline.begin(images, rows, rows, 1, 1)
    for k in range(6):
        alone, _ = pipeline.begin([images[k]], rows[:1], rows[k : k + 1], 1, 1)
        assert torch.equal(alone[0], among[k])


@pytest.mark.parametrize("size", [(3, 224, 230), (1, 190, 140)])
def test_colour_jitter_of_large_images_equals_torchvision(size):
    transform = v2.ColorJitter(0.4, 0.4, 0.4, 0.3)
    images = torch.randint(0, 256, (8, *size), dtype=torch.uint8)
    got, _ = Pipeline([transform], 0).begin(images, torch.zeros(8), torch.arange(8), 0, 1)
    drawn = KERNELS[v2.ColorJitter].draw(transform, size, Draws(0, 0, torch.arange(8), 0))
    for k, image in enumerate(images):
        parameters = {name: values[k].tolist() for name, values in drawn.items()}
        assert torch.equal(got[k], transform.transform(image, parameters))


@pytest.mark.parametrize("transform", [v2.RandomResizedCrop(8), v2.RandomCrop(8)])
def test_sizes_of_many_images_draw_what_each_draws_alone(transform):
    kernel, rows = KERNELS[type(transform)], torch.arange(400)
    heights, widths = rows % 70 + 9, rows % 51 * 7 + 9
    together = kernel.draw(transform, (3, heights, widths), Draws(0, 0, rows, 0))
    for k in rows.tolist():
        size = (3, int(heights[k]), int(widths[k]))
        alone = kernel.draw(transform, size, Draws(0, 0, rows[k : k + 1], 0))
        for name, values in together.items():
            assert values[k] == alone[name][0]


@pytest.mark.parametrize(
    "shape", [(5, 3, 224, 224), (700, 3, 32, 31), (5, 1, 9, 9), (2, 2, 3, 4, 5)]
)
@pytest.mark.parametrize("source_last", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_floats_have_torchvisions_bits_from_and_into_any_layout(shape, source_last, channels_last):
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    mean, std = torch.rand(shape[-3], 1, 1), torch.rand(shape[-3], 1, 1) + 0.1
    floats = images / 255  # as ToTensor
    expected = v2.functional.normalize(floats, mean.flatten().tolist(), std.flatten().tolist())
    if source_last:
        images = images.movedim(-3, -1).contiguous().movedim(-1, -3)
    assert torch.equal(normalized(images, (mean, std), channels_last), expected)
    assert torch.equal(normalized(images, None, channels_last), floats)
    pipeline = Pipeline([], seed=0)
    rows = torch.arange(len(images))
    result, _ = pipeline.finish(images, rows, rows, 0, 0, channels_last=channels_last)
    wanted = torch.channels_last if channels_last and images.ndim == 4 else torch.contiguous_format
    assert torch.equal(result, floats) and result.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize("join", [stacked, lambda images: collected(iter(images), len(images))])
@pytest.mark.parametrize("is_last", [False, True])
def test_a_batch_is_in_the_layout_of_its_images(join, is_last):
    planar = torch.randint(0, 256, (3, 3, 4, 5), dtype=torch.uint8)
    last = planar.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    batch = join(list(last if is_last else planar))
    assert torch.equal(batch, planar) and is_channels_last(batch) == is_last


ONES = [v2.RandomResizedCrop(50), v2.RandomCrop(40), v2.RandomHorizontalFlip(), AlternatingFlip()]
ONES += [RandomHorizontalFlip(alternate=True), RandomVerticalFlip(alternate=True)]
ONES += [v2.RandomVerticalFlip(), v2.RandomGrayscale(0.5), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)]


@pytest.mark.parametrize(
    "shape", [(3, 50, 52), (3, 64, 64), (3, 74, 75), (1, 90, 92), (1, 129, 130)]
)
@pytest.mark.parametrize("transform", ONES, ids=lambda transform: type(transform).__name__)
def test_images_about_as_large_as_the_bound_get_the_same_bits_alone_and_among_others(
    transform, shape
):
    assert {type(one) for one in ONES} == {key for key, kernel in KERNELS.items() if kernel.one}
    images = torch.randint(0, 256, (12, *shape), dtype=torch.uint8)
    rows, other = torch.arange(12), torch.zeros(shape[0], 60, 61, dtype=torch.uint8)
    for listed in ([transform], [v2.RandomApply([transform], p=0.5)]):
        pipeline = Pipeline(listed, seed=0)
        together, _ = pipeline.begin(images, rows, rows, 0, 1)
        among, _ = pipeline.begin([*images, other], torch.arange(13), torch.arange(13), 0, 1)
        for k in range(12):
            alone, _ = pipeline.begin(images[k : k + 1], rows[:1], rows[k : k + 1], 0, 1)
            assert torch.equal(alone[0], together[k]) and torch.equal(among[k], together[k])
