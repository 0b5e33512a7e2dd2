"""The metrics. Each is computed once, over all images of a split.

Each takes probabilities (N, K) float and labels (N,) int64 on the CPU, N >= 1. The predicted class
has the highest probability; of several equal ones it is the first. All metrics return one number in
0..1 unless they say otherwise. A mean over classes is over those that occur in the labels or the
predictions, and 0 / 0 counts as 0, as in scikit-learn with ``average="macro", zero_division=0``.

Where an image may have several labels, labels are (N, K) float: it has those above 0.5. Predicted
are the labels whose probability is at least their threshold, of ``thresholds`` (K,), which is 0.5
unless given. A class is then a label in all that is said here.

An image whose probabilities are NaN counts as wrong: nothing is predicted for it, ``auroc`` and
``average_precision`` give it the wrong place for each class, and ``calibration_error``, ``brier``
and ``nll`` take it as certain and wrong.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.components.decisions import (
    are_of_class,
    by_class,
    certainties,
    confusion_counts,
    decided,
    half_unless,
    hits,
    likeliest,
    number_of_each,
    shares,
)

MAX_BINS = 1_000_000  # so that a typing error does not fill the memory


def accuracy(probabilities: Tensor, labels: Tensor, thresholds: Tensor | None = None) -> float:
    """Fraction of images whose predicted class is the true class; all labels, if several."""
    if labels.ndim == 1:
        return (likeliest(probabilities) == labels).double().mean().item()
    is_right = (decided(probabilities, thresholds) == (labels > 0.5)).all(dim=1)
    return (is_right & ~probabilities[:, 0].isnan()).double().mean().item()


def top_k(probabilities: Tensor, labels: Tensor, k: int = 5) -> float:
    """Fraction of images whose true class is among the ``k`` most likely ones; 1 if k >= K.

    k: How many of the likeliest of the K classes count, 1 or more.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    first = probabilities.argsort(dim=1, descending=True, stable=True)[:, :k]
    right = (first == labels[:, None]).any(dim=1) & (likeliest(probabilities) >= 0)
    return right.double().mean().item()


def precision(probabilities: Tensor, labels: Tensor, thresholds: Tensor | None = None) -> float:
    """Fraction of the images predicted as a class that belong to it; mean over classes."""
    return by_class(probabilities, labels, thresholds)["precision"].nanmean().item()


def recall(probabilities: Tensor, labels: Tensor, thresholds: Tensor | None = None) -> float:
    """Fraction of a class's images that are predicted as this class; mean over classes."""
    return by_class(probabilities, labels, thresholds)["recall"].nanmean().item()


def macro_f1(probabilities: Tensor, labels: Tensor, thresholds: Tensor | None = None) -> float:
    """Harmonic mean of a class's precision and recall; mean over classes."""
    return by_class(probabilities, labels, thresholds)["f1"].nanmean().item()


def micro_f1(probabilities: Tensor, labels: Tensor, thresholds: Tensor | None = None) -> float:
    """F1 of all decisions together, each image with each class; of one class an image, accuracy."""
    right, predicted, of_class = hits(probabilities, labels, thresholds)
    total = (predicted + of_class).sum()
    return (2 * right.sum() / total.clamp_min(1)).item()


def balanced_accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Mean over the classes that occur in the labels of the fraction that is predicted right."""
    right, _, of_class = hits(probabilities, labels)
    return (right / of_class)[of_class > 0].mean().item()


def matthews(probabilities: Tensor, labels: Tensor) -> float:
    """Matthews' correlation coefficient of predicted and true classes, -1..1; 0 is chance.

    Gorodkin, 2004, "Comparing two K-category assignments by a K-category correlation coefficient".
    An image without prediction counts as one of a further class. 0 / 0 counts as 0.
    """
    right, predicted, of_class = hits(probabilities, labels)
    images, unanswered = len(labels), len(labels) - predicted.sum()
    covariance = right.sum() * images - (predicted * of_class).sum()
    of_predicted = images**2 - predicted.square().sum() - unanswered**2
    of_true = images**2 - of_class.square().sum()
    return (covariance / (of_predicted * of_true).sqrt()).nan_to_num(0.0, 0.0, 0.0).item()


def quadratic_kappa(probabilities: Tensor, labels: Tensor) -> float:
    """Cohen's kappa for classes in their order, -1..1: a mistake counts by its squared distance.

    Cohen, 1968, "Weighted kappa"; the distance is that of the class numbers. An image without
    prediction counts as furthest from its class. 0 / 0 counts as 0.
    """
    counts = confusion_counts(probabilities, labels).double()
    of_class = labels.bincount(minlength=len(counts)).double()
    places = torch.arange(len(counts), dtype=torch.float64)
    far = torch.where(places * 2 < len(places), len(places) - 1, 0).long()
    counts[torch.arange(len(counts)), far] += of_class - counts.sum(dim=1)
    distance = (places[:, None] - places).square()
    by_chance = of_class[:, None] * counts.sum(dim=0) / len(labels)
    observed, expected = (distance * counts).sum(), (distance * by_chance).sum()
    return (1 - observed / expected).item() if expected else 0.0


def auroc(probabilities: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of each class against the rest; mean over classes.

    The area is the chance that an image of the class has a higher probability for the class than an
    image of another class; a tie counts half (Hanley and McNeil, 1982). Classes without images are
    left out. With fewer than two classes the area is undefined, and 0.5 (pure chance) is returned.
    """
    areas, is_of_class = [], are_of_class(probabilities, labels)
    for k in range(probabilities.shape[1]):
        inside = probabilities[is_of_class[:, k], k].nan_to_num(-1.0)
        outside = probabilities[~is_of_class[:, k], k].nan_to_num(2.0)
        if len(inside) and len(outside):
            areas.append(chance_above(inside, outside))
    return sum(areas) / len(areas) if areas else 0.5


def chance_above(inside: Tensor, outside: Tensor) -> float:
    """The chance that one of ``inside`` (N,) is above one of ``outside`` (M,); a tie is half."""
    outside = outside.sort().values
    below = torch.searchsorted(outside, inside)
    below_or_equal = torch.searchsorted(outside, inside, right=True)
    return below.add(below_or_equal).double().mean().item() / 2 / len(outside)


def mean_average_precision(probabilities: Tensor, labels: Tensor) -> float:
    """``average_precision``, mean over the classes that have images; 0 if none has."""
    values = [v for v in average_precision(probabilities, labels) if v is not None]
    return sum(values) / len(values) if values else 0.0


def average_precision(probabilities: Tensor, labels: Tensor) -> list[float | None]:
    """For each class, the mean precision over its images, ranked by their probability for it.

    The precision at each threshold, weighted by the images of the class that it adds; images of
    equal probability come together. Returns K numbers; None for a class without images.
    """
    found: list[float | None] = []
    is_of_class = are_of_class(probabilities, labels)
    for k in range(probabilities.shape[1]):
        if not is_of_class[:, k].any():
            found.append(None)
            continue
        scores = probabilities[:, k].nan_to_num(-1.0)
        scores = torch.where(is_of_class[:, k] | ~probabilities[:, k].isnan(), scores, 2.0)
        scores, order = scores.sort(descending=True)
        right = is_of_class[order, k].double().cumsum(dim=0)
        last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])
        right, seen = right[last], last.nonzero().flatten().double() + 1
        gained = right.diff(prepend=torch.zeros(1, dtype=torch.float64))
        found.append(((gained * right / seen).sum() / right[-1]).item())
    return found


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Mean squared error of the probabilities, summed over the classes: 0..2, 0 is best.

    Brier, 1950. Where an image may have several labels: the mean over labels too, 0..1.
    """
    wanted = shares(probabilities, labels).double()
    each = (probabilities.double() - wanted).square()
    if labels.ndim == 2:
        worst = torch.maximum(wanted, 1 - wanted).square()
        return torch.where(each.isnan(), worst, each).mean().item()
    return each.sum(dim=1).nan_to_num(2.0).mean().item()


def nll(probabilities: Tensor, labels: Tensor) -> float:
    """Negative log likelihood: mean of -log of the true class's probability, 0 or more.

    Where an image may have several labels: the binary cross entropy, mean over labels too. A
    probability is taken as at least 1.2e-7, float32's precision, as in scikit-learn.
    """
    least = torch.finfo(torch.float32).eps
    wanted, chances = shares(probabilities, labels).double(), probabilities.double()
    inside = wanted * -chances.nan_to_num(0.0).clamp_min(least).log()
    if labels.ndim == 1:
        return inside.sum(dim=1).mean().item()
    outside = (1 - wanted) * -(1 - chances).nan_to_num(0.0).clamp_min(least).log()
    return (inside + outside).mean().item()


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy; 0 is best.

    Guo et al., 2017, "On calibration of modern neural networks", eq. 3. Images are sorted into
    ``bins`` equal intervals (a, b] by the probability of the predicted class; each interval is
    weighted by its number of images. Of several labels, each label of each image counts as one,
    with its probability, and is right if the image has it.

    bins: The number of equal intervals of confidence, 1 or more.
    """
    if not 1 <= bins <= MAX_BINS:
        raise ValueError(f"bins must be 1 to {MAX_BINS}, not {bins}")
    confidence, is_right = certainties(probabilities, labels)
    interval = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = is_right.double() - confidence
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, interval, gap)
    return sums.abs().sum().item() / len(gap)


def confusion_matrix(
    probabilities: Tensor, labels: Tensor, thresholds: Tensor | None = None
) -> list[list[int]]:
    """Numbers of images, with a row for each true class and a column for each predicted class.

    Images whose probabilities are NaN are in no column. Of several labels, see
    ``confusion_counts``.
    """
    rows: list[list[int]] = confusion_counts(probabilities, labels, thresholds).tolist()
    return rows


def per_class(
    probabilities: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    thresholds: Tensor | None = None,
) -> list[dict[str, Any]]:
    """One dict per class: class, images, precision, recall, f1. An undefined number is 0.

    Of several labels, also average_precision and threshold.
    """
    columns = {
        name: v.nan_to_num(0).tolist()
        for name, v in by_class(probabilities, labels, thresholds).items()
    }
    if labels.ndim == 2:
        columns["average_precision"] = [v or 0.0 for v in average_precision(probabilities, labels)]
        columns["threshold"] = half_unless(thresholds, len(classes)).tolist()
    images = number_of_each(labels, len(classes))
    return [
        {"class": name, "images": images[k]} | {key: values[k] for key, values in columns.items()}
        for k, name in enumerate(classes)
    ]
