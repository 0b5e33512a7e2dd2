"""MixUp and CutMix with the predecessor: torchvision's arithmetic, Beta shares, any batches."""

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
import torchvision.transforms.v2 as v2
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from transforms import mixing
from transforms.keyed import Draws, seeded

MANY = 20_000
SURE = 1e-6  # p-values below it say that a distribution is wrong
CLASSES = 5
TRANSFORMS = [v2.MixUp(alpha=0.4, num_classes=CLASSES), v2.CutMix(num_classes=CLASSES)]
each_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=["MixUp", "CutMix"])
APPLY = {v2.MixUp: mixing.blend, v2.CutMix: mixing.paste}
DRAW = {v2.MixUp: mixing.draw_mix_up, v2.CutMix: mixing.draw_cut_mix}


def batch(count: int, size: tuple[int, ...] = (3, 9, 7), seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, *size, generator=generator)
    return images, torch.randint(0, CLASSES, (count,), generator=generator)


def shares(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, CLASSES).float() * 0.8 + 0.2 / CLASSES


# --- equal to torchvision on a rolled batch -----------------------------------------------------


@each_transform
@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    size=st.tuples(st.sampled_from([1, 3]), st.integers(1, 33), st.integers(1, 33)),
    count=st.integers(1, 9),
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["numbers", "shares", "uint8"]),
)
def test_with_one_draw_for_all_a_rolled_batch_equals_torchvisions(
    transform, size, count, seed, kind
):
    images, labels = batch(count, size, seed)
    if kind == "shares":
        labels = shares(labels)
    if kind == "uint8" and isinstance(transform, v2.CutMix):
        images = (images * 255).to(torch.uint8)
    with seeded(seed):
        one = transform.make_params([images])
    both = {"labels": labels, "batch_size": count, **one}
    expected = transform.transform(images, both), transform.transform(labels, both)

    def with_last_before_first(values: Tensor) -> Tensor:
        return torch.cat([values[-1:], values])

    parameters = {
        name: torch.tensor([value] * count, dtype=torch.int64 if name == "box" else torch.float64)
        for name, value in one.items()
    }
    result = APPLY[type(transform)](
        transform, with_last_before_first(images), with_last_before_first(labels), parameters
    )
    assert torch.equal(result[0], expected[0])
    assert torch.equal(result[1], expected[1])


@each_transform
def test_labels_that_do_not_fit_are_refused(transform):
    images, labels = batch(4)
    mix = mixing.MIXING_KERNELS[type(transform)]
    draws = Draws(0, 0, torch.arange(4), 0)
    with pytest.raises(ValueError, match="num_classes is needed"):
        mix(type(transform)(), images, labels, draws)
    with pytest.raises(ValueError, match="have 5 classes"):
        mix(type(transform)(num_classes=6), images, shares(labels), draws)
    mixed = mix(type(transform)(), images, shares(labels), draws)[1]
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(3))


def test_mix_up_refuses_images_of_levels():
    images, labels = batch(4)
    with pytest.raises(ValueError, match="float"):
        mixing.mix_up(TRANSFORMS[0], images.to(torch.uint8), labels, Draws(0, 0, labels, 0))


# --- each sample with its predecessor, by its own draw ------------------------------------------


@each_transform
def test_each_sample_is_mixed_with_its_predecessor_by_its_own_draw(transform):
    images, labels = batch(6)
    draws = Draws(3, 1, torch.tensor([50, 7, 8, 1000, 2, 3]), 4)
    mixed, mixed_labels = mixing.MIXING_KERNELS[type(transform)](transform, images, labels, draws)
    assert mixed.shape == (5, 3, 9, 7) and mixed_labels.shape == (5, CLASSES)
    assert mixed_labels.dtype == torch.float32
    for k, index in enumerate([7, 8, 1000, 2, 3]):
        own_draws = Draws(3, 1, torch.tensor([index]), 4)
        own = DRAW[type(transform)](transform, (3, 9, 7), own_draws)
        if isinstance(transform, v2.MixUp):
            lam = float(own["lam"])
            expected = lam * images[k + 1] + (1 - lam) * images[k]
        else:
            left, top, right, bottom = own["box"][0].tolist()
            lam = float(own["lam_adjusted"])
            expected = images[k + 1].clone()
            expected[:, top:bottom, left:right] = images[k, :, top:bottom, left:right]
        torch.testing.assert_close(mixed[k], expected)
        share = torch.zeros(CLASSES)
        share[labels[k + 1]] += lam
        share[labels[k]] += 1 - lam
        torch.testing.assert_close(mixed_labels[k], share)


@pytest.fixture
def threads():
    """Sets torch's number of threads, which is restored after."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@each_transform
@pytest.mark.parametrize("kind", ["numbers", "shares"])
def test_any_cut_of_an_order_into_batches_gives_the_same_bits(transform, kind, threads):
    mix = mixing.MIXING_KERNELS[type(transform)]
    images, labels = batch(65, (3, 33, 21))
    labels = shares(labels) if kind == "shares" else labels
    indices = torch.arange(65) * 7919 % 1009

    def cut(length: int) -> list[Tensor]:
        parts = []
        for start in range(0, 64, length):
            rows = slice(start, min(start + length, 64) + 1)
            draws = Draws(0, 2, indices[rows], 0)
            parts.append(mix(transform, images[rows], labels[rows], draws))
        return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]

    threads(1)
    together = cut(64)
    assert all(map(torch.equal, cut(1), together))
    assert all(map(torch.equal, cut(7), together))
    threads(2)
    assert all(map(torch.equal, cut(7), together))
    assert all(map(torch.equal, cut(64), together))


@each_transform
def test_images_and_labels_are_not_changed_in_place(transform):
    images, labels = batch(6)
    labels = shares(labels)
    before = images.clone(), labels.clone()
    mix = mixing.MIXING_KERNELS[type(transform)]
    mixed, mixed_labels = mix(transform, images, labels, Draws(0, 0, torch.arange(6), 0))
    assert torch.equal(images, before[0]) and torch.equal(labels, before[1])
    assert not torch.equal(mixed, images[1:]) and not torch.equal(mixed_labels, labels[1:])


# --- the same distribution ----------------------------------------------------------------------


def draw(transform: Any, size=(3, 9, 7), seed: int = 1, epoch: int = 0) -> dict[str, Tensor]:
    draws = Draws(seed, epoch, torch.arange(MANY), 2)
    return DRAW[type(transform)](transform, size, draws)


def distance(values: Tensor, alpha: float) -> float:
    """Kolmogorov-Smirnov: of the values' distribution to Beta(alpha, alpha), times sqrt(count).

    At fixed points that float32 can tell apart: a small alpha has much of its mass so near 1 that
    all of it is rounded to one number.
    """
    ends = torch.logspace(-7, -1, 60, dtype=torch.float64)
    points = torch.cat([ends, torch.linspace(0.1, 0.9, 200).double(), 1 - ends]).sort().values
    empirical = torch.searchsorted(values.sort().values, points, right=True) / len(values)
    expected = torch.from_numpy(stats.beta(alpha, alpha).cdf(points.numpy()))
    largest: float = (empirical - expected).abs().max().item()
    return largest * math.sqrt(len(values))


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha):
    transform = v2.MixUp(alpha=alpha, num_classes=2)
    lam = draw(transform)["lam"]
    assert 0 < lam.min() and lam.max() < 1
    assert distance(lam, alpha) < 2.7  # exceeded once in 10**6
    for wrong in (0.8 * alpha, 1.25 * alpha):
        assert distance(lam, wrong) > 2.7, "the test would not notice a wrong alpha"
    with seeded(0):
        theirs = torch.tensor([transform.make_params([])["lam"] for _ in range(4000)])
    assert stats.ks_2samp(lam.numpy(), theirs.double().numpy()).pvalue > SURE


@pytest.mark.parametrize("alpha", [1e-3, 1e-2, 1e3])
def test_extreme_alphas_give_shares_in_0_1_with_the_right_mean_and_variance(alpha):
    lam = draw(v2.MixUp(alpha=alpha, num_classes=2))["lam"]
    assert 0 < lam.min() and lam.max() < 1
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(lam.mean() - 0.5) < 5 * (variance / MANY) ** 0.5
    assert lam.var() == pytest.approx(variance, rel=0.06)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
def test_gamma_variates_follow_the_gamma_distribution(alpha):
    logs = mixing._log_gamma_variates(alpha, Draws(0, 0, torch.arange(MANY), 0))
    assert stats.kstest(logs.exp().numpy(), stats.gamma(alpha).cdf).pvalue > SURE


def test_gamma_variates_are_marsaglias_and_tsangs_one_by_one():
    alpha, indices = 0.1, torch.arange(1500)
    logs = mixing._log_gamma_variates(alpha, Draws(0, 0, indices, 0))
    rejected = 0
    for log, row in zip(logs.tolist(), mixing._uniforms(Draws(0, 0, indices, 0), 33), strict=True):
        uniforms = row.tolist()
        d = alpha + 1 - 1 / 3
        for normal_share, u in zip(uniforms[:16], uniforms[16:32], strict=True):
            x = NormalDist().inv_cdf(normal_share)
            v = (1 + x / math.sqrt(9 * d)) ** 3
            if v > 0 and math.log(u) < x * x / 2 + d - d * v + d * math.log(v):
                break
            rejected += 1
        assert log == pytest.approx(math.log(d * v) + math.log(uniforms[32]) / alpha, rel=1e-9)
    assert rejected > 20


def test_a_box_that_no_edge_cuts_has_the_area_of_lam():
    drawn = draw(v2.CutMix(num_classes=2), (3, 1000, 900))
    inside = (drawn["box"] > 0).all(dim=1)
    inside &= (drawn["box"][:, 2:] < torch.tensor([900, 1000])).all(dim=1)
    assert inside.sum() > 1000
    assert (drawn["lam"] - drawn["lam_adjusted"])[inside].abs().max() < 0.005


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_boxes_of_cut_mix_have_torchvisions_distribution(alpha):
    transform = v2.CutMix(alpha=alpha, num_classes=2)
    drawn = draw(transform, (1, 5, 7))
    image = torch.zeros(1, 5, 7)
    with seeded(0):
        theirs = [transform.make_params([image]) for _ in range(8000)]
    left, top, right, bottom = torch.cat([drawn["box"], torch.tensor([p["box"] for p in theirs])]).T
    box = ((left * 8 + top) * 8 + right) * 8 + bottom  # every box is a number
    count, place = len(box.unique()), box.unique(return_inverse=True)[1]
    table = torch.stack(
        [torch.bincount(some, minlength=count) for some in (place[:MANY], place[MANY:])]
    )
    often = table.sum(dim=0) >= 40
    assert table[:, often].sum() > 0.95 * len(box)
    table = table[:, often]
    assert stats.chi2_contingency(table.numpy()).pvalue > SURE
    area = (drawn["box"][:, 2] - drawn["box"][:, 0]) * (drawn["box"][:, 3] - drawn["box"][:, 1])
    torch.testing.assert_close(drawn["lam_adjusted"], 1 - area.double() / 35)


@each_transform
def test_draws_of_neighbouring_samples_epochs_and_seeds_are_independent(transform):
    values = draw(transform)["lam"]
    others = [values.roll(1), draw(transform, epoch=1)["lam"], draw(transform, seed=2)["lam"]]
    correlations = torch.corrcoef(torch.stack([values, *others]))[0, 1:]
    assert correlations.abs().max() < 5 / MANY**0.5
    assert torch.equal(values, draw(transform)["lam"])
