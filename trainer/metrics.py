"""The metrics, each measured once over a whole split.

Each takes probabilities (N, K) float and labels (N,) int64 on the CPU, N >= 1. The predicted class
is the likeliest, the first of equals. All but ``confusion_matrix`` return one number in 0..1.
Means over classes take the classes that occur among labels or predictions, and 0 / 0 counts as 0,
as scikit-learn does with ``average="macro", zero_division=0``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MAX_BINS = 1_000_000  # memory for more is better spent


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Fraction of images whose predicted class is the true one."""
    return (probabilities.argmax(dim=1) == labels).double().mean().item()


def top_k(probabilities: Tensor, labels: Tensor, k: int = 5) -> float:
    """Fraction of images whose true class is among the ``k`` likeliest; 1 where k >= K."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    likeliest = probabilities.argsort(dim=1, descending=True, stable=True)[:, :k]
    return (likeliest == labels[:, None]).any(dim=1).double().mean().item()


def precision(probabilities: Tensor, labels: Tensor) -> float:
    """Of the images predicted as a class, the fraction that are of it; mean over classes."""
    return _by_class(probabilities, labels)["precision"].nanmean().item()


def recall(probabilities: Tensor, labels: Tensor) -> float:
    """Of a class's images, the fraction predicted as it; mean over classes."""
    return _by_class(probabilities, labels)["recall"].nanmean().item()


def macro_f1(probabilities: Tensor, labels: Tensor) -> float:
    """Harmonic mean of a class's precision and recall; mean over classes."""
    return _by_class(probabilities, labels)["f1"].nanmean().item()


def auroc(probabilities: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of each class against the rest; mean over classes.

    The chance that an image of the class gets a higher probability of it than one of another class
    does, a tie counting half (Hanley and McNeil, 1982). Classes without images are left out; with
    fewer than two classes the area is undefined and 0.5, pure chance, is returned.
    """
    areas = []
    for k in range(probabilities.shape[1]):
        inside = probabilities[labels == k, k]
        outside = probabilities[labels != k, k].sort().values
        if len(inside) and len(outside):
            below = torch.searchsorted(outside, inside)
            below_or_equal = torch.searchsorted(outside, inside, right=True)
            areas.append((below + below_or_equal).double().mean().item() / 2 / len(outside))
    return sum(areas) / len(areas) if areas else 0.5


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: how far confidence and accuracy lie apart, 0 being best.

    Guo et al., 2017, "On calibration of modern neural networks", eq. 3: the predicted class's
    probability is cut into ``bins`` equal intervals (a, b], each weighted by its images.
    """
    if not 1 <= bins <= MAX_BINS:
        raise ValueError(f"bins must be 1 to {MAX_BINS}, not {bins}")
    confidence, predicted = probabilities.double().max(dim=1)
    gap = (predicted == labels).double() - confidence
    interval = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, interval, gap)
    return sums.abs().sum().item() / len(labels)


def confusion_matrix(probabilities: Tensor, labels: Tensor) -> list[list[int]]:
    """Numbers of images: a row for each true class, a column for each predicted one."""
    rows: list[list[int]] = _confusion(probabilities, labels).tolist()
    return rows


def per_class(
    probabilities: Tensor, labels: Tensor, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """A row a class: {"class", "images", "precision", "recall", "f1"}, undefined ones being 0."""
    columns = {
        name: v.nan_to_num(0).tolist() for name, v in _by_class(probabilities, labels).items()
    }
    images = labels.bincount(minlength=len(classes)).tolist()
    return [
        {"class": name, "images": images[k]} | {key: values[k] for key, values in columns.items()}
        for k, name in enumerate(classes)
    ]


def _confusion(probabilities: Tensor, labels: Tensor) -> Tensor:
    """(K, K) int64, rows true, columns predicted."""
    k = probabilities.shape[1]
    return (labels * k + probabilities.argmax(dim=1)).bincount(minlength=k * k).view(k, k)


def _by_class(probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Precision, recall and f1, (K,) float64; NaN for a class neither labelled nor predicted."""
    confusion = _confusion(probabilities, labels).double()
    right, of_class, predicted = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
    absent = of_class + predicted == 0
    return {
        "precision": (right / predicted.clamp_min(1)).masked_fill(absent, torch.nan),
        "recall": (right / of_class.clamp_min(1)).masked_fill(absent, torch.nan),
        "f1": 2 * right / (of_class + predicted),
    }
