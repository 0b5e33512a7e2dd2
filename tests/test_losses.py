import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from trainer.build.precision import HALF, Precision
from trainer.build.teacher import Distillation
from trainer.components import LOSSES, losses
from trainer.components.schedulers import Schedule
from trainer.loop.guard import Guard
from trainer.loop.step import new_task, train_steps

K = 5
LOGITS = torch.randn(12, K, generator=torch.Generator().manual_seed(0)) * 3
LABELS = torch.arange(12) % K
ONE_HOT = F.one_hot(LABELS, K).float()
MIXED = 0.7 * ONE_HOT + 0.3 * ONE_HOT.roll(1, dims=0)
WEIGHT = [0.5, 1.0, 2.0, 3.0, 0.25]


def make(name, **arguments):
    return getattr(losses, name)(**arguments)


def test_the_tables_import_no_torch():
    code = "import sys, trainer.components; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CrossEntropyLoss", nn.CrossEntropyLoss()(LOGITS, LABELS)),
        ("NLLLoss", nn.NLLLoss()(LOGITS.log_softmax(1), LABELS)),
        ("BCELoss", nn.BCELoss()(LOGITS.sigmoid(), ONE_HOT)),
        ("BCEWithLogitsLoss", nn.BCEWithLogitsLoss()(LOGITS, ONE_HOT)),
        ("SigmoidFocalLoss", sigmoid_focal_loss(LOGITS, ONE_HOT, reduction="mean")),
        ("MSELoss", nn.MSELoss()(LOGITS, ONE_HOT)),
        ("L1Loss", nn.L1Loss()(LOGITS, ONE_HOT)),
    ],
)
def test_a_loss_without_arguments_equals_torchs_of_its_name(name, expected):
    torch.testing.assert_close(make(name)(LOGITS, LABELS), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [-1, 0.25])
def test_the_sigmoid_focal_loss_equals_torchvisions_and_has_finite_gradients(gamma, alpha):
    expected = sigmoid_focal_loss(LOGITS, MIXED, alpha, gamma, reduction="mean")
    found = make("SigmoidFocalLoss", gamma=gamma, alpha=alpha)
    torch.testing.assert_close(found(LOGITS, MIXED), expected)
    sure = torch.tensor([[40.0, -40.0]], requires_grad=True)
    found(sure, torch.tensor([[1.0, 0.0]])).backward()
    assert sure.grad is not None and sure.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_one_hot_labels_give_the_same_loss_as_class_numbers(name):
    loss_fn = make(name, weight=WEIGHT)
    torch.testing.assert_close(loss_fn(LOGITS, ONE_HOT), loss_fn(LOGITS, LABELS))


@pytest.mark.parametrize("name", LOSSES)
def test_parts_of_a_batch_weighted_by_images_average_to_the_whole(name):
    loss_fn = make(name, weight=WEIGHT)
    parts = 5 / 12 * loss_fn(LOGITS[:5], LABELS[:5]) + 7 / 12 * loss_fn(LOGITS[5:], LABELS[5:])
    torch.testing.assert_close(parts, loss_fn(LOGITS, LABELS))


@pytest.mark.parametrize("name", LOSSES)
def test_weight_counts_an_image_as_often_as_its_class_says(name):
    weighted = make(name, weight=[1.0, 3.0, 0.0, 1.0, 1.0])
    repeats = torch.tensor([1, 3, 0, 1, 1])[LABELS]
    logits, labels = LOGITS.repeat_interleave(repeats, 0), LABELS.repeat_interleave(repeats)
    expected = make(name)(logits, labels) * len(labels) / len(LABELS)
    torch.testing.assert_close(weighted(LOGITS, LABELS), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_mixed_labels_are_taken_and_differ_from_their_larger_class(name):
    logits = LOGITS.clone().requires_grad_()
    loss = make(name)(logits, MIXED)
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert not torch.isclose(loss, make(name)(LOGITS, LABELS))


def sigmoid_focal_by_hand(s, y):
    right = y * s + (1 - y) * (1 - s)
    crossed = -(y * s.log() + (1 - y) * (1 - s).log())
    return (0.25 * y + 0.75 * (1 - y)) * (1 - right) ** 2 * crossed


def asymmetric_by_hand(s, y):
    m = (s - 0.05).clamp(min=0)
    return -(y * s.log() + (1 - y) * m**4 * (1 - m).log())


def by_hand(name, logits, shares, weight, smoothing=0.0):
    """The mean loss in float64: (B, K) logits, (B, K) shares of the label, K weights."""
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(logits.double(), shares.double(), strict=True):
        p, s, y_smooth = x.softmax(0), x.sigmoid(), y * (1 - smoothing) + smoothing / len(y)
        image = {
            "CrossEntropyLoss": -(y_smooth * p.log()).sum(),
            "NLLLoss": -(y * p.log()).sum(),
            "FocalLoss": -(y * (1 - p) ** 2 * p.log()).sum(),
            "BCELoss": -(y * s.log() + (1 - y) * (1 - s).log()).mean(),
            "BCEWithLogitsLoss": -(y * s.log() + (1 - y) * (1 - s).log()).mean(),
            "SigmoidFocalLoss": sigmoid_focal_by_hand(s, y).mean(),
            "AsymmetricLoss": asymmetric_by_hand(s, y).mean(),
            "MSELoss": (x - y).square().mean(),
            "L1Loss": (x - y).abs().mean(),
        }[name]
        total = total + sum(share * w for share, w in zip(y, weight, strict=True)) * image
    return total / len(logits)


CASES: list[tuple[str, dict[str, float]]] = [(name, {}) for name in LOSSES] + [
    ("CrossEntropyLoss", {"label_smoothing": 0.1})
]


@pytest.mark.parametrize(("name", "more"), CASES)
@pytest.mark.parametrize("shares", [ONE_HOT, MIXED], ids=["class numbers", "mixed"])
def test_an_image_counts_by_the_weight_of_its_own_class_or_mix(name, more, shares):
    expected = by_hand(name, LOGITS, shares, WEIGHT, more.get("label_smoothing", 0.0))
    labels = LABELS if shares is ONE_HOT else shares
    found = make(name, weight=WEIGHT, **more)(LOGITS, labels)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=0)


def test_a_weight_without_smoothing_keeps_the_bits_of_torchs_weighted_loss():
    for name in ("CrossEntropyLoss", "NLLLoss"):
        gradients = []
        for loss_fn in (
            make(name, weight=WEIGHT),
            lambda x, y: F.cross_entropy(x, y, torch.tensor(WEIGHT), reduction="none").mean(),
        ):
            logits = LOGITS.clone().requires_grad_()
            loss_fn(logits, LABELS).backward()
            gradients.append(logits.grad)
        ours, torchs = gradients
        assert ours is not None and torchs is not None and torch.equal(ours, torchs)


@pytest.mark.parametrize(("name", "more"), CASES)
@pytest.mark.parametrize("mixes", [False, True])
def test_balanced_weights_keep_240_images_and_6_of_another_class_apart(name, more, mixes):
    """A linear model on one separable feature; a mixture has the mean of images and labels."""
    labels = torch.cat([torch.zeros(240), torch.ones(6)]).long()
    images = torch.stack([labels * 2.0 - 1.0, torch.ones(246)], dim=1)
    loss_fn = make(name, weight=losses.balanced_weight(labels, 2), **more)
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        x, y = images, labels
        if mixes:
            other, kept = torch.randperm(246, generator=generator), 0.8
            x = kept * images + (1 - kept) * images[other]
            y = kept * F.one_hot(labels, 2) + (1 - kept) * F.one_hot(labels[other], 2)
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
    assert (model(images).argmax(1) == labels).all()


class Given(nn.Module):
    """A network whose logits are its parameters, whatever the images."""

    loss: float  # of its step

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, images):
        return self.logits[images.flatten(1)[:, 0].long()]


class OwnLoss(nn.Module):
    """A loss that somebody wrote: the expected cost, by a matrix product."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.tensor(weight)

    def forward(self, logits, labels):
        return (logits.softmax(1) @ self.weight).mean()


def gradient_of_a_step(loss_fn, labels, precision, accumulate=1, teacher=None):
    """The gradient of the logits in a training step."""
    return step_of(loss_fn, labels, precision, accumulate, teacher).logits.grad


def step_of(loss_fn, labels, precision, accumulate=1, teacher=None):
    """The network of ``LOGITS`` after a training step, with its gradient, and the step's loss."""
    network = Given(LOGITS)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    train = SimpleNamespace(accumulate=accumulate)
    job: Any = SimpleNamespace(
        network=network, optimizer=optimizer, loss_fn=loss_fn, teacher=teacher,
        train_loader=None, schedule=Schedule(optimizer), device=torch.device("cpu"),
        config=SimpleNamespace(seed=0, train=train),
        precision=Precision(
            partial(torch.autocast, "cpu", HALF[precision]),
            torch.amp.GradScaler("cpu", enabled=precision == "fp16"),
        ),
    )  # fmt: skip
    images = torch.arange(12.0).view(12, 1, 1, 1)
    guard = Guard(network, optimizer)
    list(train_steps(new_task(job, guard), [(images, labels)], 0))
    network.loss = guard.results(wait=True)[0].loss
    return network


def assert_gradient(found, loss_of):
    """``found`` is the gradient of ``loss_of(logits)`` in float64."""
    logits = LOGITS.double().requires_grad_()
    loss_of(logits).backward()
    assert logits.grad is not None
    torch.testing.assert_close(
        found.double(), logits.grad, rtol=1e-5, atol=1e-6 * logits.grad.abs().max().item()
    )


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize(("name", "more"), CASES)
@pytest.mark.parametrize("shares", [ONE_HOT, MIXED], ids=["class numbers", "mixed"])
@pytest.mark.parametrize("large", [1.0, 1e6])
def test_in_half_precision_a_loss_has_the_gradient_of_float64(name, more, shares, large, precision):
    weight = [large * w for w in WEIGHT]
    labels = LABELS if shares is ONE_HOT else shares
    found = gradient_of_a_step(make(name, weight=weight, **more), labels, precision, accumulate=2)
    smoothing = more.get("label_smoothing", 0.0)
    assert_gradient(found, lambda logits: by_hand(name, logits, shares, weight, smoothing))


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize(("name", "more"), CASES)
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("labels", [LABELS, MIXED], ids=["class numbers", "mixed"])
def test_in_half_precision_a_loss_of_float32_logits_has_the_bits_of_float32(
    name, more, weight, labels, precision
):
    loss_fn = make(name, weight=weight, **more)
    logits = LOGITS.clone().requires_grad_()
    expected = loss_fn(logits, labels)
    expected.backward()
    found = step_of(loss_fn, labels, precision)
    assert found.loss == expected.item()
    if precision == "bf16":  # fp16's scale may round the smallest ones
        assert found.logits.grad is not None and logits.grad is not None
        assert torch.equal(found.logits.grad, logits.grad)


@pytest.mark.parametrize("precision", HALF)
def test_in_half_precision_distillation_and_somebodys_own_loss_do_too(precision):
    answers, costs = LOGITS.flip(0) / 2, [0.1, 70000.0, 3.3, 0.7, 1e-6]

    def own(logits):
        return (logits.softmax(1) @ torch.tensor(costs).double()).mean()

    def divergence(logits):
        p, q = (answers.double() / 3).softmax(1), (logits / 3).softmax(1)
        return (p * (p / q).log()).sum(1).mean()

    assert_gradient(gradient_of_a_step(OwnLoss(costs), LABELS, precision), own)
    teacher = Distillation(Given(answers), 0.4, 3.0, Path("run"), "")
    found = gradient_of_a_step(OwnLoss(costs), LABELS, precision, teacher=teacher)
    assert_gradient(found, lambda x: 0.6 * own(x) + 0.4 * 9 * divergence(x))


def test_label_smoothing_of_class_numbers_equals_torchs():
    expected = nn.CrossEntropyLoss(label_smoothing=0.2)(LOGITS, LABELS)
    torch.testing.assert_close(
        make("CrossEntropyLoss", label_smoothing=0.2)(LOGITS, LABELS), expected
    )


def test_pos_weight_equals_torchs():
    expected = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(WEIGHT))(LOGITS, ONE_HOT)
    torch.testing.assert_close(
        make("BCEWithLogitsLoss", pos_weight=WEIGHT)(LOGITS, LABELS), expected
    )


@pytest.mark.parametrize("labels", [LABELS, MIXED], ids=["class numbers", "mixed"])
def test_focal_loss_with_gamma_0_is_cross_entropy(labels):
    torch.testing.assert_close(
        make("FocalLoss", gamma=0.0, weight=WEIGHT)(LOGITS, labels),
        make("CrossEntropyLoss", weight=WEIGHT)(LOGITS, labels),
    )


def test_focal_loss_equals_the_papers_formula_by_hand():
    p = 0.8
    logits = torch.tensor([[np.log(p), np.log(1 - p)]])
    expected = -((1 - p) ** 2.5) * np.log(p)
    assert make("FocalLoss", gamma=2.5)(logits, torch.tensor([0])).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_logit_that_is_nan_makes_the_loss_nan_and_raises_nothing(name):
    logits = LOGITS.clone()
    logits[3, 2] = torch.nan
    assert make(name, weight=WEIGHT)(logits, LABELS).isnan()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_has_a_finite_gradient_for_a_certain_model(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    make("FocalLoss", gamma=gamma)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_impossible_weights_are_refused(name):
    for weight in ([1.0, -1.0], [1.0, float("nan")], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="class weights"):
            make(name, weight=weight)


def test_impossible_gamma_and_smoothing_are_refused():
    with pytest.raises(ValueError, match="gamma"):
        make("FocalLoss", gamma=-1.0)
    with pytest.raises(ValueError, match="label_smoothing"):
        make("CrossEntropyLoss", label_smoothing=1.5)


def test_balanced_weight_equals_scikit_learns():
    labels = np.random.default_rng(0).choice(4, size=100, p=[0.1, 0.2, 0.3, 0.4])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    actual = losses.balanced_weight(torch.from_numpy(labels), 4)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-6)
    assert actual[labels].mean().item() == pytest.approx(1)


def test_balanced_weight_is_taken_by_every_loss_as_it_is():
    weight = losses.balanced_weight(LABELS.tolist(), K)
    for name in LOSSES:
        assert make(name, weight=weight)(LOGITS, LABELS).isfinite()


def test_balanced_weight_names_a_class_without_images():
    with pytest.raises(ValueError, match=r"none of \[1, 3\]"):
        losses.balanced_weight([0, 2], 4)


@pytest.mark.parametrize("name", LOSSES)
def test_probabilities_sum_to_one_and_keep_the_order_of_logits(name):
    logits = torch.cat([LOGITS, torch.full((1, K), -1000.0), torch.full((1, K), 80.0)])
    p = losses.probabilities(name, logits)
    torch.testing.assert_close(p.sum(dim=1), torch.ones(len(logits)))
    assert (p[:12].argsort(dim=1) == logits[:12].argsort(dim=1)).all()


def test_probabilities_are_softmax_or_sigmoids_divided_by_their_sum():
    sigmoid = LOGITS.sigmoid()
    expected = sigmoid / sigmoid.sum(dim=1, keepdim=True)
    torch.testing.assert_close(losses.probabilities("BCELoss", LOGITS), expected)
    torch.testing.assert_close(losses.probabilities("FocalLoss", LOGITS), LOGITS.softmax(dim=1))


def test_weight_moves_with_the_loss_to_another_device():
    assert all(make(name, weight=WEIGHT).to("meta").weight.is_meta for name in LOSSES)
