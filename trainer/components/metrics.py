"""The metrics. Each is computed once, over all images of a split.

Each takes probabilities (N, K) float and labels (N,) int64 on the CPU, N >= 1. The predicted class
has the highest probability; of several equal ones it is the first. All metrics return one number in
0..1, except ``confusion_matrix``. A mean over classes is over those that occur in the labels or the
predictions, and 0 / 0 counts as 0, as in scikit-learn with ``average="macro", zero_division=0``.

An image whose probabilities are NaN counts as wrong: no class is predicted for it, ``auroc`` gives
it the wrong place for each class, and ``calibration_error`` takes it as certain and wrong.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MAX_BINS = 1_000_000  # so that a typing error does not fill the memory


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Fraction of images whose predicted class is the true class."""
    return (_likeliest(probabilities) == labels).double().mean().item()


def top_k(probabilities: Tensor, labels: Tensor, k: int = 5) -> float:
    """Fraction of images whose true class is among the ``k`` most likely ones; 1 if k >= K.

    k: How many of the likeliest of the K classes count, 1 or more.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    likeliest = probabilities.argsort(dim=1, descending=True, stable=True)[:, :k]
    right = (likeliest == labels[:, None]).any(dim=1) & (_likeliest(probabilities) >= 0)
    return right.double().mean().item()


def precision(probabilities: Tensor, labels: Tensor) -> float:
    """Fraction of the images predicted as a class that belong to it; mean over classes."""
    return _by_class(probabilities, labels)["precision"].nanmean().item()


def recall(probabilities: Tensor, labels: Tensor) -> float:
    """Fraction of a class's images that are predicted as this class; mean over classes."""
    return _by_class(probabilities, labels)["recall"].nanmean().item()


def macro_f1(probabilities: Tensor, labels: Tensor) -> float:
    """Harmonic mean of a class's precision and recall; mean over classes."""
    return _by_class(probabilities, labels)["f1"].nanmean().item()


def auroc(probabilities: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of each class against the rest; mean over classes.

    The area is the chance that an image of the class has a higher probability for the class than an
    image of another class; a tie counts half (Hanley and McNeil, 1982). Classes without images are
    left out. With fewer than two classes the area is undefined, and 0.5 (pure chance) is returned.
    """
    areas = []
    for k in range(probabilities.shape[1]):
        inside = probabilities[labels == k, k].nan_to_num(-1.0)
        outside = probabilities[labels != k, k].nan_to_num(2.0).sort().values
        if len(inside) and len(outside):
            below = torch.searchsorted(outside, inside)
            below_or_equal = torch.searchsorted(outside, inside, right=True)
            areas.append((below + below_or_equal).double().mean().item() / 2 / len(outside))
    return sum(areas) / len(areas) if areas else 0.5


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy; 0 is best.

    Guo et al., 2017, "On calibration of modern neural networks", eq. 3. Images are sorted into
    ``bins`` equal intervals (a, b] by the probability of the predicted class; each interval is
    weighted by its number of images.

    bins: The number of equal intervals of confidence, 1 or more.
    """
    if not 1 <= bins <= MAX_BINS:
        raise ValueError(f"bins must be 1 to {MAX_BINS}, not {bins}")
    confidence = probabilities.double().amax(dim=1).nan_to_num(1.0)
    gap = (_likeliest(probabilities) == labels).double() - confidence
    interval = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, interval, gap)
    return sums.abs().sum().item() / len(labels)


def confusion_matrix(probabilities: Tensor, labels: Tensor) -> list[list[int]]:
    """Numbers of images, with a row for each true class and a column for each predicted class.

    Images whose probabilities are NaN are in no column.
    """
    rows: list[list[int]] = confusion_counts(probabilities, labels).tolist()
    return rows


def per_class(
    probabilities: Tensor, labels: Tensor, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """One dict per class: class, images, precision, recall, f1. An undefined number is 0."""
    columns = {
        name: v.nan_to_num(0).tolist() for name, v in _by_class(probabilities, labels).items()
    }
    images = labels.bincount(minlength=len(classes)).tolist()
    return [
        {"class": name, "images": images[k]} | {key: values[k] for key, values in columns.items()}
        for k, name in enumerate(classes)
    ]


def _likeliest(probabilities: Tensor) -> Tensor:
    """The likeliest class of each image, (N,) int64; -1 for probabilities that are NaN."""
    highest, predicted = probabilities.max(dim=1)
    return predicted.masked_fill_(highest.isnan(), -1)


def confusion_counts(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Numbers of images, (K, K) int64: rows are true classes, columns predicted ones."""
    k, predicted = probabilities.shape[1], _likeliest(probabilities)
    places = (labels * k + predicted)[predicted >= 0]
    return places.bincount(minlength=k * k).view(k, k)


def _by_class(probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Precision, recall and f1, (K,) float64; NaN for a class neither true nor predicted."""
    confusion = confusion_counts(probabilities, labels).double()
    right, predicted = confusion.diagonal(), confusion.sum(dim=0)
    of_class = labels.bincount(minlength=len(right)).double()
    absent = of_class + predicted == 0
    return {
        "precision": (right / predicted.clamp_min(1)).masked_fill(absent, torch.nan),
        "recall": (right / of_class.clamp_min(1)).masked_fill(absent, torch.nan),
        "f1": 2 * right / (of_class + predicted),
    }
