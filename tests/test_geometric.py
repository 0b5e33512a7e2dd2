"""The batched rotations, affine maps, perspectives, resized crops and erasures: torchvision's."""

import pytest
import torch
import torchvision.transforms.v2 as v2
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import (
    chi2_contingency,
    chisquare,
    ks_2samp,
    kstest,
    pearsonr,
)

from transforms.geometric import RANDOM_AFFINE, RANDOM_PERSPECTIVE, RANDOM_ROTATION
from transforms.keyed import Draws
from transforms.rectangles import RANDOM_ERASING
from transforms.resized_crop import RANDOM_RESIZED_CROP

MODE = v2.InterpolationMode  # older releases take no plain names
MANY = 4000
LIKELY = 1e-4  # a right distribution falls below this p value once in 10,000 tests; seeds are fixed


def images_of(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images if dtype == torch.uint8 else images / 255


def drawn_by_torchvision(transform, images):
    """Parameters of each image as a dict, and all of them as a batched transform wants them."""
    each = [transform.make_params([image]) for image in images]
    names = [name for name in each[0] if name != "v"]
    stacked = {
        name: torch.tensor([params[name] for params in each], dtype=torch.float64) for name in names
    }
    for name, values in stacked.items():
        if isinstance(each[0][name], int):
            stacked[name] = values.long()
    if "coefficients" in stacked:
        stacked["coefficients"] = stacked["coefficients"].float()
    stacked["chosen"] = torch.tensor([params.get("v", 0) is not None for params in each])
    return each, stacked


def both(kernel, transform, images, seed=0):
    """The batched result and torchvision's, for the parameters that torchvision draws."""
    torch.manual_seed(seed)
    each, stacked = drawn_by_torchvision(transform, images)
    before = images.clone()
    got = kernel.apply(transform, images, stacked)
    assert torch.equal(images, before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "bmm", product)
        want = torch.stack([transform.transform(*pair) for pair in zip(images, each, strict=True)])
    assert got.dtype == want.dtype and got.shape == want.shape and got.is_contiguous()
    return got, want


def product(left, right):
    """torchvision's product of places (1, N, 3) and a matrix, rounded after each operation.

    A BLAS that fuses them moves a place by an ulp, which shows beside a fill of 200.
    """
    x, y, z = (left[..., k, None] * right[:, k, None] for k in range(3))
    return x + y + z


def products_are_fused():
    """Whether this BLAS rounds only once where it multiplies and adds: torchvision relies on it."""
    factors = torch.rand(1, 99, 3, generator=torch.Generator().manual_seed(0))
    theta = factors[:, :3, :2]
    x, y, z = (factors[0, :, k, None] * theta[0, k] for k in range(3))
    return not torch.equal(factors.bmm(theta)[0], x + y + z)


def assert_warped_alike(mode, got, want):
    if mode == "nearest":  # fused products move a place by an ulp, sometimes across a border
        assert (got != want).float().mean() <= (0.01 if products_are_fused() else 0)
    elif got.dtype == torch.uint8:
        assert (got.int() - want.int()).abs().max() <= 1
    else:
        assert (got - want).abs().max() <= 1e-5


SIDES = st.integers(1, 40)
WARPED = {
    "size": st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), SIDES, SIDES),
    "dtype": st.sampled_from([torch.uint8, torch.float32]),
    "mode": st.sampled_from(["nearest", "bilinear"]),
    "fill": st.sampled_from([None, 0, 0.3, 200, [0.5], [0.2, 0.6, 0.9]]),
    "center": st.sampled_from([None, (0, 0), [3.5, -2]]),
    "seed": st.integers(0, 1000),
}


def fitting(fill, channels):
    return fill[:channels] if isinstance(fill, list) else fill


@settings(deadline=None, max_examples=150)
@given(**WARPED, degrees=st.sampled_from([0, 15, 180, (30, 700)]))
def test_rotation_equals_torchvision(size, dtype, mode, fill, center, seed, degrees):
    fill = 1 if fill == 200 and degrees == 0 else fitting(fill, size[1])
    transform = v2.RandomRotation(degrees, interpolation=MODE(mode), center=center, fill=fill)
    images = images_of(size, dtype, seed)
    assert_warped_alike(mode, *both(RANDOM_ROTATION, transform, images, seed))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("angle", [0, 45, 90, 180, 270, -90, 450])
def test_nearest_rotation_by_round_angles_equals_torchvision(angle, threads):
    if products_are_fused():
        pytest.skip("places lie on the borders of pixels, and this BLAS moves them by an ulp")
    torch.set_num_threads(threads)  # of more than one, set back by conftest.py for the next test
    transform = v2.RandomRotation((angle, angle), fill=7)
    for height, width in [(1, 1), (1, 8), (28, 28), (31, 31), (32, 31), (31, 32), (64, 128)]:
        for dtype in (torch.uint8, torch.float32):
            got, want = both(RANDOM_ROTATION, transform, images_of((2, 3, height, width), dtype))
            assert torch.equal(got, want)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_large_rotated_images_equal_torchvision(mode):
    transform = v2.RandomRotation(180, interpolation=MODE(mode), fill=[1, 2, 3])
    images = images_of((8, 3, 224, 225), torch.uint8)
    assert_warped_alike(mode, *both(RANDOM_ROTATION, transform, images))


@settings(deadline=None, max_examples=150)
@given(
    **WARPED,
    translate=st.sampled_from([None, (0.3, 0.1)]),
    scale=st.sampled_from([None, (0.4, 2)]),
    shear=st.sampled_from([None, 20, (-10, 30, 5, 15)]),
)
def test_affine_equals_torchvision(size, dtype, mode, fill, center, seed, translate, scale, shear):
    fill = fitting(fill, size[1])
    transform = v2.RandomAffine(180, translate, scale, shear, MODE(mode), fill, center)
    images = images_of(size, dtype, seed)
    assert_warped_alike(mode, *both(RANDOM_AFFINE, transform, images, seed))


@settings(deadline=None, max_examples=100)
@given(**{**WARPED, "center": st.just(None)}, scale=st.sampled_from([0.1, 0.5]))
def test_perspective_equals_torchvision(size, dtype, mode, fill, center, seed, scale):
    batch, channels, height, width = size
    transform = v2.RandomPerspective(scale, 1, MODE(mode), fitting(fill, channels))
    # in smaller ones, the horizon may cross the image: there torchvision divides by 0, into nan
    images = images_of((batch, channels, height + 8, width + 8), dtype, seed)
    assert_warped_alike(mode, *both(RANDOM_PERSPECTIVE, transform, images, seed))


@settings(deadline=None, max_examples=200)
@given(
    size=WARPED["size"],
    dtype=WARPED["dtype"],
    # torch enlarges a single column of pixels by copies of its first: widths start at 2
    resized=st.tuples(SIDES, st.integers(2, 40)),
    mode=st.sampled_from(
        [("nearest", True), ("bilinear", True), ("bilinear", False), ("bicubic", True)]
    ),
    seed=WARPED["seed"],
)
def test_resized_crop_equals_torchvision(size, dtype, resized, mode, seed):
    transform = v2.RandomResizedCrop(
        resized, (0.05, 1), interpolation=MODE(mode[0]), antialias=mode[1]
    )
    images = images_of(size, dtype, seed)
    got, want = both(RANDOM_RESIZED_CROP, transform, images, seed)
    if mode[0] == "nearest":
        assert torch.equal(got, want)
    elif dtype == torch.float32:
        assert (got - want).abs().max() <= 1e-5
    else:
        assert (got.int() - want.int()).abs().max() <= 1


def test_resized_crop_of_a_window_of_the_same_size_copies_it():
    images = images_of((3, 3, 20, 30), torch.float32)
    window = {"top": 5, "left": 7, "height": 9, "width": 11}
    parameters = {name: torch.full((3,), value) for name, value in window.items()}
    for mode in ("nearest", "bilinear", "bicubic"):
        transform = v2.RandomResizedCrop((9, 11), interpolation=MODE(mode))
        got = RANDOM_RESIZED_CROP.apply(transform, images, parameters)
        assert torch.equal(got, images[:, :, 5:14, 7:18])


@settings(deadline=None, max_examples=100)
@given(
    size=WARPED["size"],
    dtype=WARPED["dtype"],
    value=st.sampled_from([0, 3, 0.75, [0.5], (1, 2.25, 3)]),
    inplace=st.booleans(),
    seed=WARPED["seed"],
)
def test_erasing_equals_torchvision(size, dtype, value, inplace, seed):
    value = value[: size[1]] if isinstance(value, tuple) else value
    transform = v2.RandomErasing(1, value=value, inplace=inplace)
    images = images_of(size, dtype, seed)
    torch.manual_seed(seed)
    each, stacked = drawn_by_torchvision(transform, images)
    got = RANDOM_ERASING.apply(transform, images, stacked)
    assert torch.equal(images, images_of(size, dtype, seed))  # even if inplace
    for image, params, result in zip(images, each, got, strict=True):
        assert torch.equal(result, transform.transform(image, params))


def test_random_erasing_fills_the_rectangle_with_normal_noise_of_its_own():
    transform = v2.RandomErasing(1, scale=(0.2, 0.3), value="random")
    images = torch.full((40, 3, 40, 40), 9.0)
    draws = Draws(0, 0, torch.arange(40), 0)
    parameters = RANDOM_ERASING.draw(transform, (3, 40, 40), draws)
    erased = RANDOM_ERASING.apply(transform, images, parameters)
    inside = erased != 9
    assert (inside.sum((1, 2, 3)) == 3 * parameters["h"] * parameters["w"]).all()
    noise = erased[inside]
    assert kstest(noise, "norm").pvalue > LIKELY
    whole = torch.stack(
        [erased[k][:, 15:25, 15:25] for k in range(40) if inside[k, 0, 15:25, 15:25].all()]
    )
    assert len(whole) > 3
    correlation = torch.corrcoef(whole.flatten(1)) - torch.eye(len(whole))
    assert correlation.abs().max() < 5 / 300**0.5  # between samples
    channels = torch.corrcoef(whole.transpose(0, 1).flatten(1)) - torch.eye(3)
    assert channels.abs().max() < 5 / (100 * len(whole)) ** 0.5
    neighbours = pearsonr(whole[..., 1:].flatten(), whole[..., :-1].flatten())
    assert neighbours.pvalue > LIKELY


# How parameters are drawn.


def ours(kernel, transform, size, epoch=0, count=MANY):
    return kernel.draw(transform, size, Draws(3, epoch, torch.arange(count), 1))


def theirs(transform, size, count=MANY):
    torch.manual_seed(0)
    image = torch.zeros(size)
    each = [transform.make_params([image]) for _ in range(count)]
    return {
        name: torch.tensor([params[name] for params in each]) for name in each[0] if name != "v"
    } | {"erased": torch.tensor([params.get("v") is not None for params in each])}


def assert_same_distribution(one, other):
    one, other = one.double(), other.double()
    values = torch.cat([one, other]).unique()
    if len(values) == 1:
        return
    assert ks_2samp(one, other, method="asymp").pvalue > LIKELY
    if len(values) <= 60:  # whole numbers: a test of each one's share
        counts = torch.stack([(x[:, None] == values).sum(0) for x in (one, other)])
        counts = counts[:, counts.sum(0) >= 10]
        assert chi2_contingency(counts).pvalue > LIKELY


def test_rotation_and_affine_draw_what_torchvision_draws():
    size = (3, 30, 50)
    rotation = v2.RandomRotation((-20, 70))
    assert_same_distribution(
        ours(RANDOM_ROTATION, rotation, size)["angle"], theirs(rotation, size)["angle"]
    )
    for transform in (
        v2.RandomAffine(30),
        v2.RandomAffine(30, translate=(0.1, 0.3), scale=(0.5, 0.8), shear=10),
        v2.RandomAffine((5, 30), translate=(0.0, 0.02), shear=(-1, 2, 3, 5)),
    ):
        mine, expected = ours(RANDOM_AFFINE, transform, size), theirs(transform, size)
        assert mine.keys() == expected.keys() - {"erased"}
        for name in ("angle", "scale"):
            assert_same_distribution(mine[name], expected[name])
        for name in ("translate", "shear"):
            for k in range(2):
                assert_same_distribution(mine[name][:, k], expected[name][:, k])
        if transform.shear is not None and transform.translate[0]:
            assert pearsonr(*mine["translate"].T).pvalue > LIKELY
            assert pearsonr(mine["angle"], mine["shear"][:, 0]).pvalue > LIKELY


def corners(coefficients, height, width):
    """Where the perspective moves the image's corners to, (B, 4, 2), from its inverse."""
    matrices = torch.cat([coefficients.double(), torch.ones(len(coefficients), 1)], 1)
    forward = torch.linalg.inv(matrices.view(-1, 3, 3))
    right, bottom = width - 1, height - 1
    start = torch.tensor([[0, 0, 1], [right, 0, 1], [right, bottom, 1], [0, bottom, 1]])
    end = start.double() @ forward.mT
    return end[..., :2] / end[..., 2:]


def test_perspective_draws_corners_as_torchvision_does():
    transform = v2.RandomPerspective(distortion_scale=0.3, p=0.3)
    size = (3, 31, 50)
    mine, expected = ours(RANDOM_PERSPECTIVE, transform, size), theirs(transform, size)
    ends, expected_ends = (corners(p["coefficients"], 31, 50) for p in (mine, expected))
    assert (ends - ends.round()).abs().max() < 1e-3
    for corner in range(4):
        for axis in range(2):
            assert_same_distribution(
                ends[:, corner, axis].round(), expected_ends[:, corner, axis].round()
            )
    across = ends.flatten(1).T.corrcoef() - torch.eye(8)
    assert across.abs().max() < 5 / MANY**0.5
    chosen = int(mine["chosen"].sum())
    assert chisquare([chosen, MANY - chosen], [0.3 * MANY, 0.7 * MANY]).pvalue > LIKELY


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 1), (3, 4, 4), (3, 28, 28)])
def test_perspective_leaves_an_image_whose_corners_meet_as_it_is(size):
    transform = v2.RandomPerspective(distortion_scale=1, p=1)
    images = images_of((500, *size), torch.float32)
    parameters = ours(RANDOM_PERSPECTIVE, transform, size, count=500)
    changed = RANDOM_PERSPECTIVE.apply(transform, images, parameters)
    assert changed.isfinite().all()
    assert torch.equal(changed[~parameters["chosen"]], images[~parameters["chosen"]])
    expected = [0.0] if size[2] == 1 else [0.5, 1.0]
    assert expected[0] <= parameters["chosen"].float().mean() <= expected[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"scale": (0.5, 1.0), "ratio": (0.5, 3.0)},  # some of the ten do not fit
        {"scale": (0.9, 1.0), "ratio": (2.0, 3.0)},  # none fits: the central crop
    ],
)
@pytest.mark.parametrize("size", [(3, 20, 26), (1, 40, 11), (1, 9, 100)])
def test_resized_crop_draws_what_torchvision_draws(arguments, size):
    transform = v2.RandomResizedCrop(8, **arguments)
    mine, expected = ours(RANDOM_RESIZED_CROP, transform, size), theirs(transform, size)
    assert mine.keys() == expected.keys() - {"erased"}
    for name, values in mine.items():
        assert_same_distribution(values, expected[name])
    assert (mine["top"] + mine["height"] <= size[1]).all() and (mine["top"] >= 0).all()
    assert (mine["left"] + mine["width"] <= size[2]).all() and (mine["left"] >= 0).all()
    for one, other in (("height", "width"), ("top", "height"), ("left", "width")):
        assert_same_distribution(
            mine[one] * 101 + mine[other], expected[one] * 101 + expected[other]
        )


@pytest.mark.parametrize(
    "arguments", [{}, {"scale": (0.5, 1.0), "ratio": (1.0, 3.0)}, {"scale": (1.0, 1.0)}]
)
def test_erasing_draws_what_torchvision_draws(arguments):
    transform = v2.RandomErasing(0.7, **arguments)
    size = (3, 20, 16)
    mine, expected = ours(RANDOM_ERASING, transform, size), theirs(transform, size)
    erased, theirs_erased = mine["chosen"], expected["erased"]
    expected_share = 0.7 * float(theirs_erased.float().mean())
    if expected_share == 0:
        assert not erased.any()
        return
    count = int(erased.sum())
    assert abs(count / MANY - expected_share) < 0.04
    for name in "ijhw":
        assert_same_distribution(mine[name][erased], expected[name][theirs_erased])
    assert_same_distribution(
        (mine["h"] * 101 + mine["w"])[erased],
        (expected["h"] * 101 + expected["w"])[theirs_erased],
    )


DRAWN = [
    (RANDOM_ROTATION, v2.RandomRotation(30), "angle"),
    (RANDOM_AFFINE, v2.RandomAffine(9, scale=(0.5, 1)), "scale"),
    (RANDOM_PERSPECTIVE, v2.RandomPerspective(), "coefficients"),
    (RANDOM_RESIZED_CROP, v2.RandomResizedCrop(8), "height"),
    (RANDOM_RESIZED_CROP, v2.RandomResizedCrop(8), "left"),
    (RANDOM_ERASING, v2.RandomErasing(), "h"),
    (RANDOM_ERASING, v2.RandomErasing(), "chosen"),
]


@pytest.mark.parametrize("kernel, transform, name", DRAWN)
def test_draws_of_neighbours_and_of_epochs_are_independent(kernel, transform, name):
    first, second = (
        ours(kernel, transform, (3, 40, 40), epoch)[name].double().view(MANY, -1)[:, 0].contiguous()
        for epoch in (0, 1)
    )
    assert pearsonr(first[1:], first[:-1]).pvalue > LIKELY
    assert pearsonr(first, second).pvalue > LIKELY
    pairs = torch.zeros(4, 4)
    cells = torch.quantile(first, torch.tensor([0.25, 0.5, 0.75]).double())
    one, other = torch.bucketize(first, cells), torch.bucketize(second, cells)
    pairs.index_put_((one, other), torch.ones(MANY), accumulate=True)
    pairs = pairs[pairs.sum(1) > 0][:, pairs.sum(0) > 0]
    assert chi2_contingency(pairs).pvalue > LIKELY


ALL = [
    (RANDOM_ROTATION, v2.RandomRotation(30)),
    (RANDOM_ROTATION, v2.RandomRotation(30, interpolation=MODE("bilinear"), fill=3)),
    (RANDOM_AFFINE, v2.RandomAffine(9, (0.1, 0.1), (0.5, 1), 8)),
    (RANDOM_AFFINE, v2.RandomAffine(9, (0.1, 0.1), interpolation=MODE("bilinear"), fill=None)),
    (RANDOM_PERSPECTIVE, v2.RandomPerspective()),
    (RANDOM_PERSPECTIVE, v2.RandomPerspective(0.9, 0.8, MODE("nearest"))),
    (RANDOM_RESIZED_CROP, v2.RandomResizedCrop(24)),
    (RANDOM_RESIZED_CROP, v2.RandomResizedCrop((9, 33), interpolation=MODE("bicubic"))),
    (RANDOM_RESIZED_CROP, v2.RandomResizedCrop(24, interpolation=MODE("nearest"))),
    (RANDOM_ERASING, v2.RandomErasing(value=0.5)),
    (RANDOM_ERASING, v2.RandomErasing(value="random")),
]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("kernel, transform", ALL)
def test_a_sample_is_the_same_in_every_batch_and_for_every_thread_count(kernel, transform, dtype):
    if dtype == torch.uint8 and getattr(transform, "value", 0) is None:
        pytest.skip("uint8 holds no normal noise")
    images = images_of((64, 3, 37, 41), dtype)

    def run(seed, indices):
        parameters = kernel.draw(transform, (3, 37, 41), Draws(seed, 1, indices, 2))
        return kernel.apply(transform, images[indices], parameters)

    for seed in range(2):
        torch.set_num_threads(1)
        together = run(seed, torch.arange(64))
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
        torch.set_num_threads(2)
        assert torch.equal(run(seed, order), together[order])
        for some in order.split(7):
            assert torch.equal(run(seed, some), together[some])
        for one in order[:4].split(1):
            assert torch.equal(run(seed, one), together[one])
    assert torch.equal(images, images_of((64, 3, 37, 41), dtype))


def test_arguments_without_a_batched_form_are_refused():
    for kernel, refused in (
        (RANDOM_ROTATION, v2.RandomRotation(9, expand=True)),
        (RANDOM_ROTATION, v2.RandomRotation(9, interpolation=MODE("bicubic"))),
        (RANDOM_ROTATION, v2.RandomRotation(9, interpolation=0)),
        (RANDOM_AFFINE, v2.RandomAffine(9, fill={torch.Tensor: 3, "others": 0})),
        (RANDOM_PERSPECTIVE, v2.RandomPerspective(interpolation=MODE("bicubic"))),
        (
            RANDOM_RESIZED_CROP,
            v2.RandomResizedCrop(9, interpolation=MODE("bicubic"), antialias=False),
        ),
        (RANDOM_RESIZED_CROP, v2.RandomResizedCrop(9, interpolation=MODE("lanczos"))),
    ):
        assert not kernel.takes(refused)
    for kernel, taken in ALL:
        assert kernel.takes(taken)


def test_lists_that_do_not_fit_the_channels_raise_errors():
    images = images_of((2, 3, 8, 8), torch.float32)
    rotation = v2.RandomRotation(9, fill=[1, 2])
    with pytest.raises(ValueError, match="fill has 2 numbers, and the images 3 channels"):
        RANDOM_ROTATION.apply(rotation, images, {"angle": torch.zeros(2)})
    with pytest.raises(ValueError, match="value has 2 numbers, and the images 3 channels"):
        ours(RANDOM_ERASING, v2.RandomErasing(value=[1, 2]), (3, 8, 8))
