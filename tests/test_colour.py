"""The batched colours, blur and noise: torchvision's arithmetic, its distributions, any batch."""

from typing import Any

import pytest
import torch
import torchvision.transforms.v2 as v2
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from transforms import colour
from transforms.kernel import Kernel, Parameters
from transforms.keyed import Draws, seeded
from transforms.own import SaltPepperNoise

JITTER = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5}
FACTORS = ["brightness_factor", "contrast_factor", "saturation_factor", "hue_factor"]
CASES: dict[str, tuple[Any, Kernel]] = {
    "RandomGrayscale": (v2.RandomGrayscale(0.5), colour.RANDOM_GRAYSCALE),
    "ColorJitter": (v2.ColorJitter(**JITTER), colour.COLOR_JITTER),
    "ColorJitter, contrast alone": (v2.ColorJitter(contrast=0.9), colour.COLOR_JITTER),
    "GaussianBlur": (v2.GaussianBlur((5, 3), (0.3, 3.0)), colour.GAUSSIAN_BLUR),
    "GaussianBlur, one row": (v2.GaussianBlur((3, 1)), colour.GAUSSIAN_BLUR),
    "SaltPepperNoise": (SaltPepperNoise(0.3, 0.4), colour.SALT_PEPPER_NOISE),
}
each_case = pytest.mark.parametrize(("transform", "kernel"), CASES.values(), ids=CASES.keys())
# The same examples in every run: torchvision's sums round by the place of a pixel in a vector.
fixed_examples = settings(derandomize=True, deadline=None, max_examples=30)
sizes = st.tuples(st.sampled_from([1, 3]), st.integers(3, 40), st.integers(3, 40))
MANY = 20_000
SURE = 1e-6  # p-values below it say that a distribution is wrong


def batch(size: tuple[int, ...], count: int = 8, seed: int = 0, dtype=torch.uint8) -> Tensor:
    """Noise of several contrasts, with some pixels black, white or grey."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, *size, generator=generator)
    images *= torch.rand(count, 1, 1, 1, generator=generator).sqrt()
    kind = torch.randint(0, 12, (count, 1, *size[1:]), generator=generator)
    images = torch.where(kind < 2, kind.float(), images)
    images = torch.where(kind == 2, images[:, :1], images)
    return images if dtype == torch.float32 else (images * 255).round().to(torch.uint8)


def torchvisions(transform: Any, images: Tensor, seed: int) -> tuple[Parameters, Tensor]:
    """torchvision's own parameters, stacked, and its result with them, sample by sample."""
    with seeded(seed):
        each = [transform.make_params([image]) for image in images]
    parameters = {
        name: torch.stack([torch.as_tensor(one[name], dtype=_dtype(one[name])) for one in each])
        for name in each[0]
        if each[0][name] is not None
    }
    pairs = zip(images, each, strict=True)
    return parameters, torch.stack([transform.transform(image, one) for image, one in pairs])


def _dtype(value: Any) -> torch.dtype:
    return torch.int64 if isinstance(value, Tensor) else torch.float64


def draw(transform: Any, kernel: Kernel, count: int = MANY, epoch: int = 0) -> Parameters:
    return kernel.draw(transform, (3, 9, 8), Draws(1, epoch, torch.arange(count), 2))


# --- equal to torchvision, given its parameters -------------------------------------------------


@pytest.mark.parametrize("name", ["brightness", "saturation", "hue"])
@fixed_examples
@given(size=sizes, seed=st.integers(0, 2**32), dtype=st.sampled_from([torch.uint8, torch.float32]))
def test_one_operation_of_color_jitter_equals_torchvisions(name, size, seed, dtype):
    images = batch(size, seed=seed, dtype=dtype)
    transform = v2.ColorJitter(**{name: JITTER[name]})
    parameters, expected = torchvisions(transform, images, seed)
    assert torch.equal(colour.jitter(transform, images, parameters), expected)


@pytest.mark.parametrize("arguments", [{"contrast": 0.9}, JITTER], ids=["contrast", "all"])
@fixed_examples
@given(size=sizes, seed=st.integers(0, 2**32))
def test_color_jitter_of_levels_equals_torchvisions(arguments, size, seed):
    images = batch(size, seed=seed)
    transform = v2.ColorJitter(**arguments)
    parameters, expected = torchvisions(transform, images, seed)
    assert torch.equal(colour.jitter(transform, images, parameters), expected)


@pytest.mark.parametrize("arguments", [{"contrast": 0.9}, JITTER], ids=["contrast", "all"])
@fixed_examples
@given(size=sizes, seed=st.integers(0, 2**32))
def test_color_jitter_of_floats_is_torchvisions_within_rounding(arguments, size, seed):
    images = batch(size, seed=seed, dtype=torch.float32)
    transform = v2.ColorJitter(**arguments)
    parameters, expected = torchvisions(transform, images, seed)
    result = colour.jitter(transform, images, parameters)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", JITTER)
def test_color_jitter_at_its_limits_equals_torchvisions(name):
    limits = (-0.5, 0.5) if name == "hue" else (0.0, 3.0)
    transform = v2.ColorJitter(**{name: limits})
    levels = torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8)
    images = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 12, 18)
    for factor in (*limits, 0.0, 1.0 if name != "hue" else 1 / 3):
        one = dict.fromkeys(FACTORS) | {f"{name}_factor": factor, "fn_idx": torch.arange(4)}
        parameters = {
            "fn_idx": torch.arange(4)[None],
            f"{name}_factor": torch.tensor([factor], dtype=torch.float64),
        }
        expected = transform.transform(images[0], one)
        assert torch.equal(colour.jitter(transform, images, parameters)[0], expected)


def test_color_jitter_refuses_what_is_neither_gray_nor_rgb():
    with pytest.raises(ValueError, match="1 or 3 channels"):
        colour.draw_jitter(v2.ColorJitter(0.1), (2, 8, 8), Draws(0, 0, torch.arange(2), 0))


@fixed_examples
@given(
    size=sizes,
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    chosen=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_random_grayscale_equals_torchvisions_of_the_chosen(size, seed, dtype, chosen):
    images = batch(size, seed=seed, dtype=dtype)
    transform = v2.RandomGrayscale()
    _, gray = torchvisions(transform, images, seed)
    mask = torch.tensor(chosen)
    expected = torch.where(mask[:, None, None, None], gray, images)
    result = colour.make_gray(transform, images, {"chosen": mask})
    assert torch.equal(result, expected)
    assert result.is_contiguous()


odd = st.sampled_from([1, 3, 5, 7])


@fixed_examples
@given(
    size=st.tuples(st.sampled_from([1, 3]), st.integers(4, 40), st.integers(4, 40)),
    kernel_size=st.tuples(odd, odd),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
)
def test_gaussian_blur_equals_torchvisions(size, kernel_size, seed, dtype):
    images = batch(size, seed=seed, dtype=dtype)
    transform = v2.GaussianBlur(list(kernel_size), (0.1, 3.0))
    parameters, expected = torchvisions(transform, images, seed)
    parameters["sigma"][:, 1] *= 1.5  # torchvision draws equal ones, but takes two
    pairs = zip(images, parameters["sigma"].tolist(), strict=True)
    expected = torch.stack([transform.transform(image, {"sigma": two}) for image, two in pairs])
    result = colour.blur(transform, images, parameters)
    if size[0] == 3:
        assert torch.equal(result, expected)
    else:  # a single channel is another algorithm of torch, with sums in another order
        limit = 1 if dtype == torch.uint8 else 1e-5
        assert (result.double() - expected.double()).abs().max() <= limit


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_salt_and_pepper_noise_is_the_class_given_the_same_numbers(monkeypatch, channels, dtype):
    images = batch((channels, 9, 7), dtype=dtype)
    transform = SaltPepperNoise(0.4, 0.3)
    parameters = colour.draw_noise(transform, (channels, 9, 7), Draws(0, 0, torch.arange(8), 0))
    numbers = Draws(0, 0, parameters["seed"]).many(9 * 7).view(8, 1, 9, 7)
    monkeypatch.setattr(torch, "rand", lambda *shape: numbers)
    assert torch.equal(colour.add_noise(transform, images, parameters), transform(images))


# --- the same distribution ----------------------------------------------------------------------


@pytest.mark.parametrize("name", FACTORS)
def test_factors_of_color_jitter_have_torchvisions_distribution(name):
    arguments = {"brightness": 0.4, "contrast": 1.5, "saturation": (0.2, 0.9), "hue": (-0.1, 0.3)}
    transform = v2.ColorJitter(**arguments)
    drawn = draw(transform, colour.COLOR_JITTER)[name].numpy()
    with seeded(0):
        theirs = [transform.make_params([])[name] for _ in range(4000)]
    assert stats.ks_2samp(drawn, theirs).pvalue > SURE
    low, high = getattr(transform, name.removesuffix("_factor"))
    assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > SURE


def test_every_order_of_color_jitter_is_equally_likely_and_free_of_the_factors():
    parameters = draw(v2.ColorJitter(**JITTER), colour.COLOR_JITTER)
    order = (parameters["fn_idx"] * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    numbers, counts = order.unique(return_counts=True)
    assert len(numbers) == 24
    assert stats.chisquare(counts.numpy()).pvalue > SURE
    columns = torch.stack([order, *(parameters[name] for name in FACTORS)]).double()
    correlations = torch.corrcoef(columns) - torch.eye(5, dtype=torch.float64)
    assert correlations.abs().max() < 5 / MANY**0.5


def test_color_jitter_draws_no_factor_for_an_argument_that_is_off():
    parameters = draw(v2.ColorJitter(contrast=0.1, hue=0), colour.COLOR_JITTER)
    assert parameters.keys() == {"fn_idx", "contrast_factor"}


@pytest.mark.parametrize("p", [0.0, 0.1, 0.7, 1.0])
def test_random_grayscale_chooses_a_share_of_p(p):
    chosen = draw(v2.RandomGrayscale(p), colour.RANDOM_GRAYSCALE)["chosen"]
    assert stats.binomtest(int(chosen.sum()), MANY, p).pvalue > SURE


def test_sigma_of_gaussian_blur_has_torchvisions_distribution():
    transform = v2.GaussianBlur(3, (0.2, 1.7))
    sigma = draw(transform, colour.GAUSSIAN_BLUR)["sigma"]
    assert torch.equal(sigma[:, 0], sigma[:, 1])
    with seeded(0):
        theirs = [transform.make_params([])["sigma"][0] for _ in range(4000)]
    assert stats.ks_2samp(sigma[:, 0].numpy(), theirs).pvalue > SURE


@pytest.mark.parametrize(
    ("probability", "salt"), [(0.3, 0.25), (0.05, 1.0), (1.0, 0.5), (0.0, 0.5)]
)
def test_salt_and_pepper_have_their_shares(probability, salt):
    transform = SaltPepperNoise(probability, salt)
    images = torch.full((100, 3, 20, 30), 128, dtype=torch.uint8)
    parameters = colour.draw_noise(transform, (3, 20, 30), Draws(0, 0, torch.arange(100), 0))
    noisy = colour.add_noise(transform, images, parameters)
    assert (noisy == noisy[:, :1]).all(), "the channels of a pixel are hit together"
    pixels = noisy[:, 0]
    for level, share in ((255, probability * salt), (0, probability * (1 - salt))):
        hits = int((pixels == level).sum())
        assert stats.binomtest(hits, pixels.numel(), share).pvalue > SURE
    assert set(pixels.unique().tolist()) <= {0, 128, 255}


@pytest.mark.parametrize("shift", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 3, 7)])
def test_pixels_and_samples_are_hit_independently(shift):
    transform = SaltPepperNoise(0.5, 0.5)
    images = torch.full((100, 1, 20, 30), 128, dtype=torch.uint8)
    parameters = colour.draw_noise(transform, (1, 20, 30), Draws(0, 0, torch.arange(100), 0))
    noisy = colour.add_noise(transform, images, parameters)[:, 0]
    kinds = noisy.unique(return_inverse=True)[1]  # 0, 1, 2: pepper, as before, salt
    other = kinds.roll(shift, (0, 1, 2))
    table = torch.bincount((3 * kinds + other).flatten(), minlength=9).view(3, 3)
    assert stats.chi2_contingency(table.numpy()).pvalue > SURE


@each_case
def test_draws_of_neighbouring_samples_and_epochs_are_independent(transform, kernel):
    now, later = (draw(transform, kernel, epoch=epoch) for epoch in (3, 4))
    for name, values in now.items():
        if name == "fn_idx":
            continue
        first = values.double().view(MANY, -1)[:, 0]
        assert first.unique().numel() > 1
        others = [first.roll(1), later[name].double().view(MANY, -1)[:, 0]]
        correlations = torch.corrcoef(torch.stack([first, *others]))[0, 1:]
        assert correlations.abs().max() < 5 / MANY**0.5


# --- any batch, any number of threads -----------------------------------------------------------


@pytest.fixture
def threads():
    """Sets torch's number of threads, which is restored after."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@each_case
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [(3, 33, 21), (1, 8, 9), (1, 40, 40)])
def test_a_sample_gets_the_same_bits_in_any_batch(transform, kernel, size, dtype, threads):
    images = batch(size, count=64, dtype=dtype)
    indices = torch.arange(64) * 7919 % 1009
    everyone = torch.arange(64)

    def run(rows: Tensor) -> Tensor:
        parameters = kernel.draw(transform, size, Draws(0, 1, indices[rows], 0))
        result: Tensor = kernel.apply(transform, images[rows], parameters)
        return result

    threads(1)
    together = run(everyone)
    for rows in [*everyone[:12].split(1), *everyone.split(7)]:
        assert torch.equal(run(rows), together[rows])
    threads(2)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for rows in (everyone, order, order[:7], order[:1]):
        assert torch.equal(run(rows), together[rows])


@each_case
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_not_changed_in_place(transform, kernel, channels, dtype):
    images = batch((channels, 12, 10), dtype=dtype)
    before = images.clone()
    size = (channels, 12, 10)
    parameters = kernel.draw(transform, size, Draws(0, 0, torch.arange(8), 0))
    result = kernel.apply(transform, images, parameters)
    assert torch.equal(images, before)
    assert result.shape == images.shape and result.dtype == dtype
    if channels == 3:
        assert not torch.equal(result, images)
