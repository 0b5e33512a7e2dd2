import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from trainer.components import LOSSES, losses

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
        ("MSELoss", nn.MSELoss()(LOGITS, ONE_HOT)),
        ("L1Loss", nn.L1Loss()(LOGITS, ONE_HOT)),
    ],
)
def test_a_loss_without_arguments_equals_torchs_of_its_name(name, expected):
    torch.testing.assert_close(make(name)(LOGITS, LABELS), expected)


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


def test_cross_entropy_of_mixed_labels_equals_torchs_with_weight_and_smoothing():
    expected = nn.CrossEntropyLoss(torch.tensor(WEIGHT), label_smoothing=0.1)(LOGITS, MIXED)
    actual = make("CrossEntropyLoss", weight=WEIGHT, label_smoothing=0.1)(LOGITS, MIXED)
    torch.testing.assert_close(actual, expected)


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
