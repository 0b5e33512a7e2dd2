"""The transforms' tables, the batched kernels against torchvision, and the two-stage Pipeline."""

import importlib
import itertools
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import torchvision.transforms.v2 as v2
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from transforms import FIXED, MIXING, RANDOM, TRANSFORMS
from transforms.batched import KERNELS, is_batched
from transforms.kernel import Kernel
from transforms.keyed import Draws, seeded
from transforms.own import (
    Letterbox,
    LinearTransformation,
    Normalize,
    RandomErasing,
    SaltPepperNoise,
    ToDtype,
    ToTensor,
)
from transforms.pipeline import Pipeline

HEIGHT, WIDTH = 10, 12
RESULTS = {"Resize": (8, 9), "CenterCrop": (7, 7), "Pad": (14, 16), "Letterbox": (9, 6)}


def examples(channels: int) -> dict[str, dict[str, Any]]:
    """Arguments as a YAML file gives them, for every transform in the tables."""
    size = channels * HEIGHT * WIDTH
    matrix = torch.rand(size, size, generator=torch.Generator().manual_seed(0)).tolist()
    inner = [build("ColorJitter", brightness=0.4), build("RandomHorizontalFlip")]
    return {
        "Resize": {"size": [8, 9]},
        "CenterCrop": {"size": 7},
        "FiveCrop": {"size": [6, 5]},
        "TenCrop": {"size": 6, "vertical_flip": True},
        "Pad": {"padding": 2, "padding_mode": "reflect"},
        "Grayscale": {"num_output_channels": 3},
        "LinearTransformation": {
            "transformation_matrix": matrix,
            "mean_vector": [0.5] * size,
        },
        "Normalize": {"mean": [0.4] * channels, "std": [0.3] * channels},
        "Letterbox": {"size": [9, 6], "fill": 128},
        "ToTensor": {},
        "ToImage": {},
        "ToDtype": {"dtype": "float32", "scale": True},
        "RandomCrop": {"size": 8, "padding": [1, 2], "fill": 7},
        "RandomResizedCrop": {"size": [8, 8], "scale": [0.2, 1.0]},
        "RandomHorizontalFlip": {},
        "RandomVerticalFlip": {"p": 0.3},
        "RandomRotation": {"degrees": 30, "interpolation": "bilinear"},
        "RandomAffine": {"degrees": [-9, 9], "translate": [0.1, 0.1], "shear": 5},
        "RandomPerspective": {"distortion_scale": 0.4, "p": 0.8},
        "ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2},
        "RandomGrayscale": {"p": 0.5},
        "GaussianBlur": {"kernel_size": 3, "sigma": [0.1, 2.0]},
        "RandomErasing": {"p": 0.9, "value": "random"},
        "RandomApply": {"transforms": inner, "p": 0.7},
        "RandomChoice": {"transforms": inner},
        "RandomOrder": {"transforms": inner},
        "RandAugment": {"num_ops": 2, "magnitude": 9},
        "TrivialAugmentWide": {},
        "AutoAugment": {"policy": v2.AutoAugmentPolicy("cifar10")},
        "SaltPepperNoise": {"probability": 0.2},
        "AlternatingFlip": {},
        "MixUp": {"alpha": 0.4, "num_classes": 4},
        "CutMix": {"alpha": 1.0, "num_classes": 4},
    }


def build(name: str, **arguments: Any) -> Any:
    module, attribute = TRANSFORMS[name].split(":")
    return getattr(importlib.import_module(module), attribute)(**arguments)


def example(name: str, channels: int) -> Any:
    return build(name, **examples(channels)[name])


def batch(channels: int = 3, count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8, labels in 0..3, and indices that are neither sorted nor near each other."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, HEIGHT, WIDTH)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return images, torch.arange(count) % 4, torch.arange(count) * 7919 % 1009


def scaled(images: Tensor) -> Tensor:
    return images.to(torch.float32) / 255


def run(
    transforms: list[Any], images: Tensor, indices: Tensor, seed: int = 3, epoch: int = 2
) -> Tensor:
    """Both stages, in an epoch."""
    pipeline = Pipeline(transforms, seed)
    result, _ = pipeline(pipeline.prepare(images), torch.zeros(len(images)), indices, epoch)
    assert isinstance(result, Tensor)
    return result


# --- the tables ---------------------------------------------------------------------------------


def test_importing_the_tables_does_not_import_torch():
    code = "import transforms, sys; assert len(transforms.TRANSFORMS) == 33; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "transforms" in modules and "torch" not in modules


def test_the_three_tables_share_no_name():
    assert len(FIXED) + len(RANDOM) + len(MIXING) == len(TRANSFORMS)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_name_is_its_class_name(name):
    module, attribute = TRANSFORMS[name].split(":")
    assert getattr(importlib.import_module(module), attribute).__name__ == name


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_transform_runs_from_plain_arguments(name, channels):
    images, labels, indices = batch(channels)
    before = images.clone()
    pipeline = Pipeline([example(name, channels)], seed=0)
    result, _ = pipeline(pipeline.prepare(images), labels, indices, epoch=0)
    crops = {"FiveCrop": (5, channels, 6, 5), "TenCrop": (10, channels, 6, 6)}
    height, width = RESULTS.get(name, (8, 8) if "Crop" in name else (HEIGHT, WIDTH))
    one = (3 if name == "Grayscale" else channels, height, width)
    assert isinstance(result, Tensor) and pipeline.predecessors == (name in MIXING)
    assert result.shape == (6 - pipeline.predecessors, *crops.get(name, one))
    assert result.dtype == torch.float32 and result.isfinite().all()
    assert torch.equal(images, before), "the cached images were changed in place"


# --- what a sample gets does not depend on the batch --------------------------------------------


@pytest.mark.parametrize("name", [*FIXED, *RANDOM])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_gets_the_same_bits_in_any_batch(name, channels):
    images, _, indices = batch(channels)
    # Both stages meet it: as the first transform, and after a random one.
    for transforms in ([], [build("RandomVerticalFlip")]):
        transforms = [*transforms, example(name, channels)]
        whole = run(transforms, images, indices)
        order = torch.tensor([4, 1, 5, 0, 3, 2])
        assert torch.equal(run(transforms, images[order], indices[order]), whole[order])
        cut = [run(transforms, images[k : k + 1], indices[k : k + 1]) for k in range(6)]
        assert torch.equal(torch.cat(cut), whole)


@pytest.mark.parametrize("name", RANDOM)
def test_random_transforms_differ_by_sample_epoch_seed_and_position(name):
    images, labels, indices = batch(count=1)
    images, labels, indices = images.expand(40, -1, -1, -1), labels.expand(40), torch.arange(40)
    transform = example(name, 3)
    results = [
        Pipeline([transform], seed=0)(images, labels, indices, epoch=0)[0],
        Pipeline([transform], seed=0)(images, labels, indices, epoch=1)[0],
        Pipeline([transform], seed=1)(images, labels, indices, epoch=0)[0],
        Pipeline([ToTensor(), transform], seed=0)(images, labels, indices, epoch=0)[0],
    ]
    assert len(results[0].unique(dim=0)) > 1
    for other in results[1:]:
        assert not torch.equal(results[0], other)


@pytest.mark.parametrize("name", FIXED)
def test_fixed_transforms_are_equal_in_every_epoch_and_for_one_image_or_a_stack(name):
    images, labels, indices = batch()
    one, other = Pipeline([example(name, 3)], seed=0), Pipeline([example(name, 3)], seed=1)
    prepared = one.prepare(images)
    assert torch.equal(torch.stack([one.prepare(image) for image in images]), prepared)
    first, _ = one(prepared, labels, indices, epoch=0)
    second, _ = other(prepared, labels, indices + 5, epoch=1)
    assert torch.equal(first, second)


@given(st.sampled_from(["nearest", "bilinear", "bicubic"]), st.data())
def test_resize_gives_one_image_and_a_stack_the_same_bits(interpolation, data):
    numbers = st.integers(1, 40)
    channels = data.draw(st.sampled_from([1, 3]))
    height, width = data.draw(numbers), data.draw(numbers)
    # Not 1 x 1: torch 2.15 itself fails there on three uint8 channels (an internal assert).
    size = [data.draw(numbers), data.draw(st.integers(2, 40))]
    pipeline = Pipeline(
        [v2.Resize(size, interpolation=v2.InterpolationMode(interpolation))], seed=0
    )
    images = torch.randint(0, 256, (3, channels, height, width), dtype=torch.uint8)
    each = torch.stack([pipeline.prepare(image) for image in images])
    assert torch.equal(pipeline.prepare(images), each)


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in MIXING])
def test_the_layout_of_an_image_in_memory_changes_no_bit(name):
    pipeline = Pipeline([example(name, 3)], seed=0)
    sizes = [(101, 120), (90, 133)]
    if name == "LinearTransformation":  # its matrix has one size
        sizes = [(HEIGHT, WIDTH), (WIDTH, HEIGHT)]
    rows = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8) for size in sizes]
    views = [image.permute(2, 0, 1) for image in rows]  # as files are decoded
    zeros, results = torch.zeros(2), []
    for images in (views, [image.contiguous() for image in views]):
        prepared = [pipeline.prepare(image) for image in images]
        count = len(pipeline.rest)
        results.append(pipeline.begin(prepared, zeros, torch.tensor([5, 8]), 1, count)[0])
    for view, contiguous in zip(*results, strict=True):
        assert torch.equal(view, contiguous)


# --- equal to torchvision's ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RandAugment", "TrivialAugmentWide", "AutoAugment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transforms_without_a_kernel_equal_torchvision_under_the_same_seed(name, channels):
    transform = example(name, channels)
    images, _, indices = batch(channels)
    expected = []
    for image, key in zip(images, Draws(3, 2, indices, 0).keys.tolist(), strict=True):
        torch.manual_seed(key)
        expected.append(scaled(transform(image)))
    assert torch.equal(run([transform], images, indices), torch.stack(expected))


@pytest.mark.parametrize("name", RANDOM)
def test_every_other_random_transform_is_batched(name):
    per_sample = ("RandAugment", "TrivialAugmentWide", "AutoAugment")
    assert is_batched(example(name, 3)) == (name not in per_sample)


@given(st.data())
def test_random_crop_equals_torchvision_given_the_same_place(data):
    small = st.integers(0, 3)
    height, width = data.draw(st.integers(6, 12)), data.draw(st.integers(6, 12))
    pad_if_needed = data.draw(st.booleans())
    mode = data.draw(st.sampled_from(["constant", "edge", "reflect", "symmetric"]))
    padding = data.draw(st.none() | small | st.tuples(small, small, small, small).map(list))
    extra = 2 if pad_if_needed else 0
    transform = v2.RandomCrop(
        [data.draw(st.integers(1, height + extra)), data.draw(st.integers(1, width + extra))],
        padding=padding,
        pad_if_needed=pad_if_needed,
        fill=data.draw(st.sampled_from([0, 9, [1, 2, 3]])) if mode == "constant" else 0,
        padding_mode=mode,
    )
    images = torch.randint(0, 256, (4, 3, height, width), dtype=torch.uint8)
    if data.draw(st.booleans()):
        images = scaled(images)
    with seeded(data.draw(st.integers(0, 1000))):
        drawn = [transform.make_params([image]) for image in images]
    pairs = zip(images, drawn, strict=True)
    expected = torch.stack([transform.transform(image, parameters) for image, parameters in pairs])
    stacked = {name: torch.tensor([p[name] for p in drawn]) for name in ("top", "left")}
    assert torch.equal(KERNELS[v2.RandomCrop].apply(transform, images, stacked), expected)


@pytest.mark.parametrize("flip", [v2.RandomHorizontalFlip, v2.RandomVerticalFlip])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_random_flips_equal_torchvision_given_the_same_choice(flip, p):
    images = torch.randint(0, 256, (50, 3, 7, 5), dtype=torch.uint8)
    parameters = KERNELS[flip].draw(flip(p=p), (3, 7, 5), Draws(0, 0, torch.arange(50), 0))
    flipped = parameters["chosen"]
    assert flipped.any() == (p > 0) and flipped.all() == (p == 1)
    expected = torch.stack(
        [flip(p=float(chosen))(image) for image, chosen in zip(images, flipped, strict=True)]
    )
    assert torch.equal(KERNELS[flip].apply(flip(p=p), images, parameters), expected)


@pytest.mark.parametrize(("name", "dim"), [("Horizontal", -1), ("Vertical", -2)])
def test_a_flip_that_alternates_shows_each_image_both_ways_in_two_epochs(name, dim):
    images, _, indices = batch(count=200)
    transforms = [build(f"Random{name}Flip", alternate=True)]
    seen = [run(transforms, images, indices, epoch=epoch) for epoch in range(4)]
    flipped = torch.ne(seen[0], scaled(images)).flatten(1).any(1)
    assert 70 < flipped.sum() < 130  # a random half
    both = torch.stack([scaled(images), torchvision_flip(dim)(scaled(images))])
    assert torch.equal(seen[0], both[flipped.long(), torch.arange(200)])
    assert torch.equal(seen[1], both[1 - flipped.long(), torch.arange(200)])
    assert torch.equal(seen[2], seen[0]) and torch.equal(seen[3], seen[1])
    other_seed = run(transforms, images, indices, seed=1, epoch=0)
    assert 70 < torch.ne(other_seed, seen[0]).flatten(1).any(1).sum() < 130


def test_the_older_name_of_a_flip_that_alternates_gives_the_same_bits():
    images, _, indices = batch(count=20)
    for epoch in range(2):
        new = run([build("RandomHorizontalFlip", alternate=True)], images, indices, epoch=epoch)
        assert torch.equal(run([build("AlternatingFlip")], images, indices, epoch=epoch), new)


def torchvision_flip(dim: int) -> Any:
    flips = torchvision.transforms.functional
    return flips.hflip if dim == -1 else flips.vflip


def test_crop_and_flip_have_torchvisions_distribution():
    # Each pixel holds its own number, so the first one of a crop tells its place and its flip.
    count, image = 50_000, torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    pipeline = Pipeline([v2.RandomCrop(4), v2.RandomHorizontalFlip()], seed=0)
    labels, indices = torch.zeros(count), torch.arange(count)
    result, _ = pipeline(image.expand(count, -1, -1, -1), labels, indices, epoch=0)
    assert isinstance(result, Tensor)
    first, second = (result[:, 0, 0, :2] * 255).round().long().unbind(1)
    flipped = (second < first).long()
    top, left = first // 8, first % 8 - 3 * flipped
    assert top.max() == left.max() == 4
    counts = torch.bincount((top * 5 + left) * 2 + flipped, minlength=50).double()
    chi_square = ((counts - count / 50) ** 2 / (count / 50)).sum()
    assert chi_square < 49 + 4 * (2 * 49) ** 0.5


def test_random_erasing_fills_with_a_share_of_full_scale():
    images, _, indices = batch()
    result = run([RandomErasing(p=1.0, scale=(0.2, 0.3), value=0.3)], images, indices)
    assert ((result == torch.tensor(0.3)).flatten(1).sum(1) >= 3 * 10).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_scaling_and_normalize_equal_torchvision_to_the_bit(channels):
    levels = torch.arange(256, dtype=torch.uint8).expand(channels, 2, 256)
    as_float = torchvision.transforms.ToTensor()(np.ascontiguousarray(levels.permute(1, 2, 0)))
    result = run([], levels[None], torch.tensor([0]))
    assert torch.equal(result[0], as_float)
    mean, std = [0.485, 0.456, 0.406][:channels], [0.229, 0.224, 0.225][:channels]
    result = run([Normalize(mean, std)], levels[None], torch.tensor([0]))
    assert torch.equal(result[0], v2.Normalize(mean, std)(as_float))


def test_linear_transformation_equals_torchvision(tmp_path):
    images, _, indices = batch(count=2)
    matrix, mean = torch.randn(360, 360), torch.rand(360)
    torch.save(matrix, tmp_path / "matrix.pt")
    transform = LinearTransformation(str(tmp_path / "matrix.pt"), mean.tolist())
    reference = v2.LinearTransformation(matrix, mean)
    expected = torch.stack([reference(image) for image in scaled(images)])
    assert torch.equal(run([transform], images, indices), expected)


# --- the two stages -----------------------------------------------------------------------------


def test_leading_fixed_transforms_run_once_and_the_rest_in_every_epoch():
    transforms = [
        v2.Resize([32, 32]),
        ToTensor(),
        v2.RandomCrop(28),
        v2.Grayscale(),
        v2.ColorJitter(0.1),
        v2.RandAugment(),
        Normalize([0.5], [0.5]),
        v2.MixUp(num_classes=2),
    ]
    pipeline = Pipeline(transforms, seed=0)
    assert pipeline.fixed == tuple(transforms[:2])
    assert pipeline.rest == tuple(transforms[2:])
    assert pipeline.description == [
        ("Resize", "once per sample"),
        ("ToTensor", "once per sample"),
        ("RandomCrop", "batched"),
        ("Grayscale", "batched"),
        ("ColorJitter", "batched"),
        ("RandAugment", "per sample"),
        ("Normalize", "batched"),
        ("MixUp", "batched"),
    ]
    assert Pipeline([Normalize([0.5], [0.5]), v2.Resize(4)], seed=0).fixed == ()


@pytest.mark.parametrize("stage_one", [True, False])
def test_crops_become_a_dimension_before_the_channels(stage_one):
    images, _, indices = batch()
    transforms = [v2.TenCrop(6), Normalize([0.5] * 3, [0.2] * 3)]
    result = run(transforms if stage_one else transforms[::-1], images, indices)
    assert result.shape == (6, 10, 3, 6, 6)
    crops = v2.TenCrop(6)(scaled(images[4]))
    assert torch.equal(result[4], (torch.stack(crops) - 0.5) / 0.2)


def test_images_of_different_sizes_become_a_batch_as_soon_as_a_transform_makes_them_equal():
    images = [torch.randint(0, 256, (3, 6 + k, 9 - k), dtype=torch.uint8) for k in range(4)]
    labels, indices = torch.zeros(4), torch.tensor([5, 3, 8, 1])
    for transform in (
        v2.RandomCrop(8, pad_if_needed=True),
        v2.RandomResizedCrop(8),
        v2.Compose([v2.RandomHorizontalFlip(), v2.Resize([8, 8])]),
    ):
        transforms = [build("RandomVerticalFlip"), transform, Normalize([0.5] * 3, [0.2] * 3)]
        pipeline = Pipeline(transforms, seed=0)
        result, _ = pipeline(images, labels, indices, epoch=0)
        assert isinstance(result, Tensor) and result.shape == (4, 3, 8, 8)
        for k in range(4):
            alone, _ = pipeline(images[k][None], labels[:1], indices[k : k + 1], epoch=0)
            assert torch.equal(result[k], alone[0])


def test_the_pipeline_leaves_the_global_generator_as_it_was():
    images, labels, indices = batch()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    transforms = [example(name, 3) for name in ("RandomCrop", "ColorJitter", "MixUp")]
    Pipeline(transforms, seed=0)(images, labels, indices, epoch=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_bits_of_the_cpu():
    images, labels, indices = batch()
    transforms = [example(name, 3) for name in ("RandomCrop", "RandomHorizontalFlip", "Normalize")]
    transforms[1:1] = [SaltPepperNoise()]
    expected, _ = Pipeline(transforms, seed=0)(images, labels, indices, epoch=0)
    result, _ = Pipeline(transforms, seed=0)(images.cuda(), labels, indices, epoch=0)
    assert torch.equal(result.cpu(), expected)


# --- transforms that hold others ---------------------------------------------------------------


class Marking:
    """Writes its number into the first pixel that is still 0: so images tell what they went by."""

    def __init__(self, number: int) -> None:
        self.number = number

    def draw(self, transform: Any, size: tuple[int, int, int], draws: Draws) -> dict[str, Tensor]:
        return {}

    def apply(self, transform: Any, images: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        marked = images.clone()
        free = (images.flatten(1) == 0).int().argmax(1)
        marked.flatten(1)[torch.arange(len(images)), free] = transform.number
        return marked


@pytest.fixture
def marking(monkeypatch) -> list[Marking]:
    kernel = Marking(0)
    monkeypatch.setitem(KERNELS, Marking, Kernel(kernel.draw, kernel.apply))
    return [Marking(number) for number in (1, 2, 3)]


def marks(transform: Any, count: int = 6000) -> list[tuple[int, ...]]:
    images = torch.zeros(count, 1, 1, 4, dtype=torch.uint8)
    result = run([transform], images, torch.arange(count)) * 255
    return [tuple(int(mark) for mark in row if mark) for row in result.flatten(1).tolist()]


def test_random_apply_runs_all_of_its_transforms_or_none(marking):
    found = Counter(marks(v2.RandomApply(marking, p=0.3)))
    assert found.keys() == {(), (1, 2, 3)}
    assert abs(found[1, 2, 3] - 1800) < 150  # four standard deviations


def test_random_choice_runs_one_of_its_transforms_as_often_as_p_says(marking):
    found = Counter(marks(v2.RandomChoice(marking, p=[1, 3, 6])))
    assert found.keys() == {(1,), (2,), (3,)}
    for number, expected in ((1, 600), (2, 1800), (3, 3600)):
        assert abs(found[number,] - expected) < 160


def test_random_order_runs_all_of_its_transforms_in_every_order(marking):
    found = Counter(marks(v2.RandomOrder(marking)))
    assert found.keys() == set(itertools.permutations((1, 2, 3)))
    assert all(abs(count - 1000) < 120 for count in found.values())


def test_a_transform_in_another_draws_its_own_parameters():
    images, _, indices = batch(count=64)
    flips = [build("RandomHorizontalFlip"), build("RandomHorizontalFlip")]
    twice = run([v2.RandomApply(flips, p=1.0)], images, indices)
    as_it_was = torch.eq(twice, scaled(images)).flatten(1).all(1)
    assert 16 < as_it_was.sum() < 48, "two flips that draw alike would undo each other"


def test_crops_of_some_samples_only_become_equal_by_a_later_resize():
    images, labels, indices = batch(count=12)
    transforms = [v2.RandomApply([v2.RandomCrop(6)], p=0.5), v2.Resize([8, 8])]
    pipeline = Pipeline(transforms, seed=0)
    result, _ = pipeline(images, labels, indices, epoch=0)
    assert result.shape == (12, 3, 8, 8)
    with pytest.raises(ValueError, match=r"different sizes.*\(3, 6, 6\), \(3, 10, 12\)"):
        Pipeline(transforms[:1], seed=0)(images, labels, indices, epoch=0)


# --- mixing -------------------------------------------------------------------------------------


def mixings() -> dict[str, Any]:
    """Every way to name MixUp and CutMix in a list of transforms."""
    both = [example(name, 3) for name in MIXING]
    return {
        "MixUp": both[:1],
        "CutMix": both[1:],
        "both": both,
        "apply": [v2.RandomApply(both, p=0.5)],
        "choice": [v2.RandomChoice(both, p=[0.3, 0.7])],
        "order": [v2.RandomOrder(both)],
    }


@pytest.mark.parametrize("name", mixings())
def test_a_sample_is_mixed_alike_in_any_batch(name):
    images, labels, indices = batch(count=20)
    pipeline = Pipeline([build("RandomVerticalFlip"), *mixings()[name]], seed=0)
    before = pipeline.predecessors
    assert before == (2 if name in ("both", "apply", "order") else 1)
    whole, shares = pipeline(images, labels, indices, epoch=0)
    assert len(whole) == len(shares) == 20 - before and shares.shape == (20 - before, 4)
    assert torch.allclose(shares.sum(1), torch.ones(20 - before))
    for size in (1, 3, 7):
        cut = [
            pipeline(images[rows], labels[rows], indices[rows], epoch=0)
            for rows in (slice(k, k + size + before) for k in range(0, 20 - before, size))
        ]
        assert torch.equal(torch.cat([some for some, _ in cut]), whole)
        assert torch.equal(torch.cat([some for _, some in cut]), shares)


def test_a_choice_between_mixup_and_cutmix_takes_each_as_often_as_it_says():
    images, labels, indices = batch(count=401)
    # A predecessor of all zeros: CutMix then leaves either a whole pixel or nothing of it.
    images[::2] = 0
    images[1::2] = 255
    result, _ = Pipeline(mixings()["choice"], seed=0)(images, labels, indices, epoch=0)
    cut = torch.isin(result, torch.tensor([0.0, 1.0])).flatten(1).all(1)
    assert 240 < cut.sum() < 320  # 0.7 of 400


def test_a_random_apply_of_mixup_leaves_the_others_as_they_are():
    images, labels, indices = batch(count=401)
    transform = v2.RandomApply([example("MixUp", 3)], p=0.25)
    result, shares = Pipeline([transform], seed=0)(images, labels, indices, epoch=0)
    as_they_are = torch.eq(result, scaled(images[1:])).flatten(1).all(1)
    assert 260 < as_they_are.sum() < 340
    assert torch.equal(shares[as_they_are].argmax(1), labels[1:][as_they_are])


def test_mixing_and_image_transforms_in_one_choice_are_refused():
    with pytest.raises(ValueError, match=r"RandomChoice \(transform 1\).*ColorJitter, MixUp"):
        choice = v2.RandomChoice([v2.MixUp(num_classes=2), v2.ColorJitter(0.1)])
        Pipeline([ToTensor(), choice], seed=0)


# --- faults -------------------------------------------------------------------------------------


def test_normalize_for_colour_on_grey_images_names_itself_and_the_shapes():
    images, labels, indices = batch(channels=1)
    pipeline = Pipeline([ToTensor(), Normalize([0.5] * 3, [0.5] * 3)], seed=0)
    with pytest.raises(ValueError, match=r"Normalize \(transform 1\).*\(6, 1, 10, 12\).*3 values"):
        pipeline(images, labels, indices, epoch=0)


@pytest.mark.parametrize(
    "transform",
    [v2.RandomCrop(30), RandomErasing(1.0, value=[1, 2]), v2.Pad(11, padding_mode="reflect")],
)
def test_a_transform_that_refuses_the_images_is_named(transform):
    images, labels, indices = batch()
    pipeline = Pipeline([Normalize([0.5] * 3, [0.5] * 3), transform], seed=0)
    with pytest.raises(ValueError, match=rf"{type(transform).__name__} \(transform 1\)"):
        pipeline(images, labels, indices, epoch=0)


def test_stage_one_names_a_transform_that_refuses_the_images():
    with pytest.raises(ValueError, match=r"Letterbox \(transform 0\).*2 values for 3 channels"):
        Pipeline([Letterbox(8, fill=[1, 2])], seed=0).prepare(batch()[0])


class Refusing:
    """A transform that raises what it is given."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, images: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize(
    "transform", [v2.Resize([0, 32]), v2.FiveCrop(-1), v2.Pad(1, fill=-1)], ids=lambda t: str(t)
)
def test_sizes_and_fills_that_no_image_can_have_name_their_transform(transform):
    name = type(transform).__name__
    with pytest.raises(ValueError, match=rf"{name} \(transform 0\)"):
        Pipeline([transform], seed=0).prepare(batch()[0])
    if name == "Pad":  # floats may be negative
        return
    images, labels, indices = batch()
    pipeline = Pipeline([v2.RandomHorizontalFlip(), transform], seed=0)
    with pytest.raises(ValueError, match=rf"{name} \(transform 1\)"):
        pipeline(images, labels, indices, epoch=0)


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("by zero"), AssertionError(), IndexError("i"), OverflowError("o")]
)
def test_whatever_a_transform_raises_is_a_value_error_that_names_it(error, monkeypatch):
    images, labels, indices = batch()
    told = str(error) or "AssertionError"
    with pytest.raises(ValueError, match=rf"Refusing \(transform 0\).*: {told}$"):
        Pipeline([Refusing(error)], seed=0)(images, labels, indices, epoch=0)
    monkeypatch.setitem(FIXED, "Refusing", "")
    with pytest.raises(ValueError, match=rf"Refusing \(transform 0\).*: {told}$"):
        Pipeline([Refusing(error)], seed=0).prepare(images)


def test_out_of_memory_stays_what_it_is():
    images, labels, indices = batch()
    with pytest.raises(torch.OutOfMemoryError):
        refusing = Refusing(torch.OutOfMemoryError("full"))
        Pipeline([refusing], seed=0)(images, labels, indices, epoch=0)


def test_images_whose_sizes_never_agree_are_refused_with_the_sizes():
    images = [torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(3, 4, 6, dtype=torch.uint8)]
    for transforms in ([], [v2.RandomHorizontalFlip()], [v2.MixUp(num_classes=2)]):
        with pytest.raises(ValueError, match=r"\(3, 4, 5\), \(3, 4, 6\).*add Resize"):
            Pipeline(transforms, seed=0)(images, torch.arange(2), torch.arange(2), epoch=0)


def test_float_images_are_refused_at_the_door():
    images, labels, indices = batch()
    pipeline = Pipeline([], seed=0)
    for call in (
        lambda: pipeline.prepare(scaled(images)),
        lambda: pipeline(scaled(images), labels, indices, epoch=0),
    ):
        with pytest.raises(ValueError, match="uint8"):
            call()


def test_a_batch_with_too_few_labels_or_indices_is_refused():
    images, labels, indices = batch()
    for cut in ((0, 1, 0), (0, 0, 1), (6, 6, 6)):
        with pytest.raises(ValueError, match="one label and one index"):
            Pipeline([], seed=0)(images[cut[0] :], labels[cut[1] :], indices[cut[2] :], epoch=0)


# --- own transforms -----------------------------------------------------------------------------


def test_letterbox_keeps_the_shape_and_fills_the_rest():
    wide = torch.full((3, 10, 20), 200, dtype=torch.uint8)
    result = Letterbox(8, fill=[1, 2, 3])(wide)
    assert result.shape == (3, 8, 8)
    assert (result[:, 2:6] == 200).all()
    for channel, level in enumerate([1, 2, 3]):
        assert (result[channel, :2] == level).all() and (result[channel, 6:] == level).all()
    tall = Letterbox([6, 9])(wide.transpose(1, 2))
    assert (tall[:, :, 3:6] == 200).all() and (tall[:, :, [0, 1, 2, 6, 7, 8]] == 0).all()


@given(*[st.integers(1, 60)] * 4)
def test_letterbox_fits_and_distorts_by_less_than_a_pixel(height, width, new_height, new_width):
    result = Letterbox([new_height, new_width])(torch.ones(1, 1, height, width))
    assert result.shape == (1, 1, new_height, new_width)
    inside = result[0, 0] > 0.5
    rows, columns = int(inside.any(1).sum()), int(inside.any(0).sum())
    scale = min(new_height / height, new_width / width)
    assert rows == new_height or columns == new_width
    assert abs(rows - max(1, height * scale)) <= 0.5 + 1e-9
    assert abs(columns - max(1, width * scale)) <= 0.5 + 1e-9


def test_salt_and_pepper_hit_their_share_of_the_pixels_in_all_channels():
    for white, images in (
        (255, torch.full((3, 300, 300), 100, dtype=torch.uint8)),
        (1, torch.full((3, 300, 300), 0.4)),
    ):
        with seeded(0):
            noisy = SaltPepperNoise(probability=0.2, salt=0.25)(images)
        assert noisy.dtype == images.dtype
        assert (noisy == noisy[:1]).all()
        assert abs((noisy == white).float().mean() - 0.05) < 0.004
        assert abs((noisy == 0).float().mean() - 0.15) < 0.006
        assert ((noisy == 0) | (noisy == white) | (noisy == images)).all()


class Payload:
    """Pickled, it would run code when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the file was unpickled",))


def test_linear_transformation_reads_tensors_only(tmp_path):
    torch.save(Payload(), tmp_path / "unsafe.pt")
    torch.save({"a": 1}, tmp_path / "other.pt")
    for name in ("unsafe.pt", "other.pt", "absent.pt"):
        with pytest.raises(ValueError, match="transformation_matrix"):
            LinearTransformation(str(tmp_path / name), [0.0])


@pytest.mark.parametrize(
    ("transform", "arguments", "message"),
    [
        (Letterbox, {"size": [1, 2, 3]}, "size"),
        (Letterbox, {"size": 0}, "size"),
        (Letterbox, {"size": 8, "fill": 256}, "fill"),
        (SaltPepperNoise, {"probability": 1.5}, "probability"),
        (SaltPepperNoise, {"salt": -0.1}, "salt"),
        (Normalize, {"mean": [0.5], "std": [0.5, 0.5]}, "1 and 2"),
        (Normalize, {"mean": [], "std": []}, "one value a channel"),
        (Normalize, {"mean": [0.5], "std": [0.0]}, "zero"),
        (LinearTransformation, {"transformation_matrix": [[1.0]], "mean_vector": [0.0] * 2}, "2"),
        (LinearTransformation, {"transformation_matrix": [1.0], "mean_vector": [0.0]}, "2 dim"),
        (ToDtype, {"dtype": "float32"}, "scale: true"),
        (ToDtype, {"dtype": "uint8", "scale": True}, "remove ToDtype"),
    ],
)
def test_impossible_arguments_are_refused_when_it_is_built(transform, arguments, message):
    with pytest.raises(ValueError, match=message):
        transform(**arguments)
