"""How many pixels a pipeline needs, and what fast decoding changes in its result."""

import pytest
import torchvision.transforms.v2 as v2

from transforms.needed import needed_side
from transforms.own import AlternatingFlip, Letterbox, Normalize, RandomErasing, ToTensor

FLIP, NORMALIZE = v2.RandomHorizontalFlip(), Normalize([0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize(
    ("transforms", "side"),
    [
        ([v2.Resize(256)], 512),
        ([v2.Resize([256])], 512),
        ([v2.Resize([100, 300])], 600),
        ([v2.Resize(256, max_size=400)], 512),
        ([v2.Resize(None, max_size=400)], 800),
        ([v2.RandomResizedCrop(224)], 448),
        ([v2.RandomResizedCrop([100, 224])], 448),
        ([Letterbox(64)], 128),
        ([Letterbox([64, 100])], 200),
        ([v2.Resize(256), v2.CenterCrop(224)], 512),
        ([v2.Resize(64), v2.Resize(256)], 128),
        ([FLIP, v2.Grayscale(), v2.ColorJitter(0.1), v2.Resize(256)], 512),
        ([AlternatingFlip(), v2.RandomVerticalFlip(), ToTensor(), NORMALIZE, v2.Resize(256)], 512),
    ],
)
def test_twice_the_side_of_the_first_transform_that_sets_one(transforms, side):
    assert needed_side(transforms) == side


@pytest.mark.parametrize(
    "first",
    [
        v2.Pad(4),
        v2.CenterCrop(100),
        v2.FiveCrop(100),
        v2.RandomCrop(100),
        v2.GaussianBlur(5),
        v2.RandomRotation(10),
        v2.RandomAffine(10),
        RandomErasing(),
        v2.RandAugment(),
        v2.RandomApply([v2.RandomCrop(100)]),
    ],
)
def test_all_pixels_are_needed_where_a_transform_before_may_count_them(first):
    assert needed_side([first, v2.Resize(32)]) == 0
    assert needed_side([FLIP, first, v2.Resize(32)]) == 0


@pytest.mark.parametrize("transforms", [[], [FLIP], [NORMALIZE], [v2.RandomChoice([v2.Resize(8)])]])
def test_all_pixels_are_needed_where_no_transform_sets_a_side(transforms):
    assert needed_side(transforms) == 0
