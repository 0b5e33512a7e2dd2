import math
from pkgutil import resolve_name

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.components import HIGHER_IS_BETTER, METRICS, SCALAR, metrics
from trainer.components.decisions import LEAST, choose_thresholds

PERFECT = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 0])


@st.composite
def predictions(draw):
    """Probabilities with many ties, and labels in which classes may be absent."""
    num_images, num_classes = draw(st.integers(1, 30)), draw(st.integers(2, 6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = generator.integers(1, draw(st.sampled_from([3, 1000])), (num_images, num_classes))
    labels = generator.integers(0, draw(st.integers(1, num_classes)), num_images)
    return torch.from_numpy(scores / scores.sum(1, keepdims=True)), torch.from_numpy(labels)


@settings(max_examples=80, deadline=None)
@given(predictions())
def test_metrics_of_the_predicted_class_equal_scikit_learns(split):
    probabilities, labels = split
    y, predicted = labels.numpy(), probabilities.numpy().argmax(1)
    macro = {"average": "macro", "zero_division": 0}
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(y, predicted),
        "precision": sklearn.metrics.precision_score(y, predicted, **macro),
        "recall": sklearn.metrics.recall_score(y, predicted, **macro),
        "macro_f1": sklearn.metrics.f1_score(y, predicted, **macro),
    }
    actual = {name: getattr(metrics, name)(probabilities, labels) for name in expected}
    assert actual == pytest.approx(expected)
    matrix = sklearn.metrics.confusion_matrix(y, predicted, labels=range(probabilities.shape[1]))
    assert metrics.confusion_matrix(probabilities, labels) == matrix.tolist()


@settings(max_examples=80, deadline=None)
@given(predictions())
def test_per_class_rows_equal_scikit_learns(split):
    probabilities, labels = split
    classes = [f"class {k}" for k in range(probabilities.shape[1])]
    rows = metrics.per_class(probabilities, labels, classes)
    expected = sklearn.metrics.precision_recall_fscore_support(
        labels.numpy(), probabilities.numpy().argmax(1), labels=range(len(classes)), zero_division=0
    )
    assert [row["class"] for row in rows] == classes
    for key, column in zip(("precision", "recall", "f1", "images"), expected, strict=True):
        assert [row[key] for row in rows] == pytest.approx(column.tolist())


@settings(max_examples=80, deadline=None)
@given(predictions())
def test_auroc_is_scikit_learns_mean_over_the_classes_that_occur(split):
    probabilities, labels = split
    present = labels.unique().tolist()
    areas = [0.5]
    if len(present) > 1:
        areas = [
            float(sklearn.metrics.roc_auc_score((labels == k).numpy(), probabilities[:, k].numpy()))
            for k in present
        ]
    assert metrics.auroc(probabilities, labels) == pytest.approx(np.mean(areas))


def test_auroc_of_all_classes_equals_scikit_learns_multiclass_call():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), 200)
    labels = generator.integers(0, 4, 200)
    expected = sklearn.metrics.roc_auc_score(labels, probabilities, multi_class="ovr")
    actual = metrics.auroc(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert actual == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_equals_scikit_learns(k):
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(5), 100)
    labels = generator.integers(0, 5, 100)
    expected = sklearn.metrics.top_k_accuracy_score(labels, probabilities, k=k)
    actual = metrics.top_k(torch.from_numpy(probabilities), torch.from_numpy(labels), k=k)
    assert actual == pytest.approx(expected)


@given(predictions())
def test_top_1_is_accuracy_and_top_all_is_one_even_with_ties(split):
    probabilities, labels = split
    assert metrics.top_k(probabilities, labels, k=1) == metrics.accuracy(probabilities, labels)
    assert metrics.top_k(probabilities, labels, k=6) == 1


def test_calibration_error_equals_the_definition_by_hand():
    confidence = torch.tensor([0.9, 0.75, 0.58, 0.55])
    probabilities = torch.stack([confidence, 1 - confidence], dim=1)
    labels = torch.tensor([0, 1, 0, 0])
    # Of five bins, (0.8, 1] holds the right 0.9, (0.6, 0.8] the wrong 0.75, (0.4, 0.6] the rest.
    expected = 1 / 4 * 0.1 + 1 / 4 * 0.75 + 2 / 4 * (1 - 0.565)
    actual = metrics.calibration_error(probabilities, labels, bins=5)
    assert actual == pytest.approx(expected, abs=1e-6)


@given(predictions(), st.integers(1, 20))
def test_calibration_error_equals_a_loop_over_the_bins(split, bins):
    probabilities, labels = (t.numpy() for t in split)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for b in range(bins):
        inside = [b < c * bins <= b + 1 for c in confidence]
        if any(inside):
            expected += np.mean(inside) * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.calibration_error(split[0], split[1], bins) == pytest.approx(expected)


def test_a_perfect_model_has_the_best_of_every_metric():
    for name in SCALAR:
        value = resolve_name(METRICS[name])(*PERFECT)
        assert value == (1 if name in HIGHER_IS_BETTER else 0), name


RANGES = {"matthews": (-1, 1), "quadratic_kappa": (-1, 1), "brier": (0, 2), "nll": (0, 16)}


@settings(max_examples=40, deadline=None)
@given(predictions())
def test_every_scalar_metric_is_a_plain_float_in_its_range(split):
    for name in SCALAR:
        value = resolve_name(METRICS[name])(*split)
        low, high = RANGES.get(name, (0, 1))
        assert type(value) is float and low - 1e-9 <= value <= high + 1e-9, name
        assert math.isfinite(value), name


def test_the_metrics_that_are_no_number_have_one_for_each_class():
    assert set(METRICS) - SCALAR == {"confusion_matrix", "average_precision"}


@settings(max_examples=60, deadline=None)
@given(predictions())
def test_further_metrics_of_one_class_an_image_equal_scikit_learns(split):
    probabilities, labels = split
    y, predicted, k = labels.numpy(), probabilities.numpy().argmax(1), probabilities.shape[1]
    kappa = 0.0
    if len({*y.tolist(), *predicted.tolist()}) > 1:
        kappa = sklearn.metrics.cohen_kappa_score(
            y, predicted, labels=range(k), weights="quadratic"
        )
    shares = probabilities.numpy()
    every = np.eye(k)[y]
    expected = {
        "balanced_accuracy": np.mean([(predicted == y)[y == c].mean() for c in np.unique(y)]),
        "matthews": sklearn.metrics.matthews_corrcoef(y, predicted)
        if len({*y, *predicted}) > 1
        else 0.0,
        "quadratic_kappa": 0.0 if np.isnan(kappa) else kappa,
        "micro_f1": sklearn.metrics.f1_score(y, predicted, average="micro"),
        "brier": ((shares - every) ** 2).sum(1).mean()
        if k == 2
        else sklearn.metrics.brier_score_loss(y, shares, labels=range(k), scale_by_half=False),
        "nll": sklearn.metrics.log_loss(y, shares, labels=range(k)),
        "mean_average_precision": np.mean(
            [sklearn.metrics.average_precision_score(y == c, shares[:, c]) for c in np.unique(y)]
        ),
    }
    actual = {name: getattr(metrics, name)(probabilities, labels) for name in expected}
    assert actual == pytest.approx(expected, abs=1e-9)


# scikit-learn looks at its arguments for longer than it computes with them.
UNCHECKED = sklearn.config_context(assume_finite=True, skip_parameter_validation=True)


@st.composite
def several_labels(draw):
    """Probabilities with many ties, a 0/1 matrix with absent, few and all labels, thresholds."""
    num_images, num_labels = draw(st.integers(1, 30)), draw(st.integers(2, 6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.sampled_from([3, 1000]))
    scores = generator.integers(0, steps + 1, (num_images, num_labels)) / steps
    share = generator.choice([0.0, 0.1, 0.5, 1.0], num_labels)  # of each label
    labels = (generator.random((num_images, num_labels)) < share).astype(np.float32)
    thresholds = generator.choice([0.25, 0.5, 0.75], num_labels)
    return torch.from_numpy(scores), torch.from_numpy(labels), torch.from_numpy(thresholds)


@settings(max_examples=200, deadline=None)
@given(several_labels())
@UNCHECKED
def test_metrics_of_several_labels_equal_scikit_learns(split):
    probabilities, labels, thresholds = split
    probabilities = probabilities.float()  # as a model gives them
    y, p = labels.numpy() > 0.5, probabilities.numpy()
    predicted = p >= thresholds.numpy()
    occur = np.flatnonzero((y | predicted).any(0)).tolist()  # the mean is over these labels
    has_images = np.flatnonzero(y.any(0)).tolist()
    macro = {"labels": occur, "average": "macro", "zero_division": 0}
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(y, predicted),
        "micro_f1": sklearn.metrics.f1_score(y, predicted, average="micro", zero_division=0),
    }
    if occur:
        means = sklearn.metrics.precision_recall_fscore_support(y, predicted, **macro)
        expected |= dict(zip(("precision", "recall", "macro_f1"), means, strict=False))
    actual = {name: getattr(metrics, name)(probabilities, labels, thresholds) for name in expected}
    assert actual == pytest.approx(expected)
    least = np.finfo(np.float32).eps  # as scikit-learn does with float32, whose sum is not exact
    off_the_ends = p.astype(np.float64).clip(least, 1 - least)
    by_rank = {
        "mean_average_precision": sklearn.metrics.average_precision_score(
            y[:, has_images], p[:, has_images]
        )
        if has_images
        else 0.0,
        "brier": ((p - y) ** 2).mean(),
        "nll": sklearn.metrics.log_loss(y.ravel(), off_the_ends.ravel(), labels=[0, 1]),
    }
    both = [k for k in has_images if not y[:, k].all()]
    if both:
        by_rank["auroc"] = sklearn.metrics.roc_auc_score(y[:, both], p[:, both])
    actual = {name: getattr(metrics, name)(probabilities, labels) for name in by_rank}
    assert actual == pytest.approx(by_rank, abs=1e-6)
    rows = metrics.per_class(probabilities, labels, list("abcdef")[: y.shape[1]], thresholds)
    columns = sklearn.metrics.precision_recall_fscore_support(y, predicted, zero_division=0)
    for key, column in zip(("precision", "recall", "f1", "images"), columns, strict=True):
        assert [row[key] for row in rows] == pytest.approx(column.tolist())


@settings(max_examples=200, deadline=None)
@given(several_labels())
@UNCHECKED
def test_no_other_threshold_has_a_higher_f1_than_the_chosen_one(split):
    probabilities, labels, _ = split
    chosen = choose_thresholds(probabilities, labels).numpy()
    for k, threshold in enumerate(chosen):
        y, p = labels[:, k].numpy() > 0.5, probabilities[:, k].numpy()
        if min(y.sum(), (~y).sum()) < LEAST:
            assert threshold == 0.5
            continue
        precision, recall, _ = sklearn.metrics.precision_recall_curve(y, p)  # of each threshold
        best = max(2 * precision * recall / np.maximum(precision + recall, 1e-9))
        assert sklearn.metrics.f1_score(y, p >= threshold) == pytest.approx(best)


def test_images_without_an_answer_count_as_wrong_among_several_labels():
    probabilities = torch.tensor([[0.9, 0.1], [torch.nan, torch.nan], [0.2, 0.8]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    assert metrics.accuracy(probabilities, labels) == pytest.approx(2 / 3)
    assert metrics.mean_average_precision(probabilities, labels) == 0.5  # it comes before them
    assert metrics.brier(probabilities, labels) == pytest.approx((0.01 * 2 + 1 * 2 + 0.04 * 2) / 6)


def test_impossible_arguments_are_refused():
    for k in (0, -1):
        with pytest.raises(ValueError, match="k must be"):
            metrics.top_k(*PERFECT, k=k)
    for bins in (0, -1, 10**12):
        with pytest.raises(ValueError, match="bins must be"):
            metrics.calibration_error(*PERFECT, bins=bins)


def test_an_image_whose_probabilities_are_nan_counts_as_wrong_in_every_metric():
    """Six images of three classes; the second, of class 1, and the last, of class 0, have none."""
    none = [math.nan] * 3
    chances = torch.tensor(
        [[0.8, 0.1, 0.1], none, [0.2, 0.7, 0.1], [0.1, 0.3, 0.6], [0.5, 0.2, 0.3], none]
    )
    labels = torch.tensor([0, 1, 1, 2, 2, 0])
    assert metrics.accuracy(chances, labels) == 3 / 6
    assert metrics.top_k(chances, labels, k=2) == 4 / 6
    assert metrics.top_k(chances, labels, k=3) == 4 / 6
    assert metrics.confusion_matrix(chances, labels) == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert metrics.precision(chances, labels) == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert metrics.recall(chances, labels) == pytest.approx(1 / 2)
    assert metrics.macro_f1(chances, labels) == pytest.approx((2 / 4 + 2 / 3 + 2 / 3) / 3)
    # Of 2 x 4 pairs for each class, those in which an image without a probability loses.
    assert metrics.auroc(chances, labels) == pytest.approx((3 / 8 + 3 / 8 + 4 / 8) / 3)
    gaps = [1 - 0.8, 1 - 0.7, 1 - 0.6, -0.5, -1.0, -1.0]  # in their own bins, the last two in one
    assert metrics.calibration_error(chances, labels, bins=100) == pytest.approx(
        sum(map(abs, gaps)) / 6
    )
    assert [row["images"] for row in metrics.per_class(chances, labels, "abc")] == [2, 2, 2]


@pytest.mark.parametrize("name", sorted(SCALAR))
def test_a_model_without_answers_has_the_worst_value_of_every_metric(name):
    chances, labels = torch.full((4, 2), math.nan), torch.tensor([0, 0, 0, 1])
    expected = 0.0 if name in HIGHER_IS_BETTER else 1.0
    # Where the worst depends on the labels: all images alike, each as far away as it can be.
    other = {"mean_average_precision": 0.5, "quadratic_kappa": -0.6, "brier": 2.0, "nll": 15.942385}
    assert getattr(metrics, name)(chances, labels) == pytest.approx(other.get(name, expected))
