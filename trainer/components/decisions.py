"""What is predicted for each image, and how often that is right, by class; used by the metrics.

Shapes, and what counts where an image may have several labels, are as in ``metrics``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LEAST = 5  # images with a label, or without: with fewer, a threshold would be chance


class Answers(NamedTuple):
    """What a model answers for N images, and their labels, on the CPU.

    probabilities (N, K) float32. labels (N,) int64; or (N, K) float32 where an image may have
    several labels, and then thresholds (K,): a label is predicted from this probability on.
    """

    probabilities: Tensor
    labels: Tensor
    thresholds: Tensor | None = None


def number_of_each(labels: Tensor, num_classes: int) -> list[int]:
    """The number of images of each class, or with each label, for labels (N,) or (N, K)."""
    if labels.ndim == 2:
        counts: list[int] = (labels > 0.5).sum(dim=0).tolist()
        return counts
    return labels.bincount(minlength=num_classes).tolist()


def choose_thresholds(probabilities: Tensor, labels: Tensor) -> Tensor:
    """For each label the threshold with the highest F1 on these images: (K,) float32.

    probabilities (N, K) and labels (N, K). A threshold lies in the middle between two
    neighbouring probabilities; of equally good ones it is the nearest to 0.5. A label that fewer
    than LEAST images have, or lack, keeps 0.5.
    """
    chosen, is_of_class = torch.full((probabilities.shape[1],), 0.5), labels > 0.5
    for k in range(len(chosen)):
        scores, order = probabilities[:, k].double().nan_to_num(-1.0).sort(descending=True)
        has = is_of_class[order, k]
        if min(int(has.sum()), int((~has).sum())) < LEAST:
            continue
        predicted = torch.arange(1, len(scores) + 1, dtype=torch.float64)
        f1 = 2 * has.cumsum(dim=0) / (predicted + has.sum())
        below = torch.cat([scores[1:], torch.full((1,), -1.0, dtype=torch.float64)])
        f1[(scores == below) | (scores < 0)] = -1  # it cuts between equal ones
        middles = (scores + below.clamp_min(0)) / 2
        middles = torch.where(middles.float() > below, middles, scores)  # neighbours in float32
        best = (f1 == f1.max()).nonzero().flatten()
        chosen[k] = middles[best[(middles[best] - 0.5).abs().argmin()]]
    return chosen


def decided(probabilities: Tensor, thresholds: Tensor | None = None) -> Tensor:
    """Which of several labels are predicted, (N, K) bool; none where probabilities are NaN."""
    return probabilities >= half_unless(thresholds, probabilities.shape[1])


def as_thresholds(numbers: Sequence[float] | None) -> Tensor | None:
    """Thresholds as a file or a checkpoint keeps them, as a tensor."""
    return None if numbers is None else torch.tensor(numbers, dtype=torch.float32)


def half_unless(thresholds: Tensor | None, num_classes: int) -> Tensor:
    """The thresholds (K,), or 0.5 for each class."""
    return torch.full((num_classes,), 0.5) if thresholds is None else thresholds


def certainties(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The confidence of each prediction, float64, and whether it is right, bool.

    (N,) each; of several labels (N * K,): each label's probability, and whether the image has it.
    """
    if labels.ndim == 2:
        has = (labels > 0.5).flatten()
        chances = probabilities.double().flatten()
        return chances.where(~chances.isnan(), (~has).double()), has
    confidence = probabilities.double().amax(dim=1).nan_to_num(1.0)
    return confidence, likeliest(probabilities) == labels


def likeliest(probabilities: Tensor) -> Tensor:
    """The likeliest class of each image, (N,) int64; -1 for probabilities that are NaN."""
    highest, predicted = probabilities.max(dim=1)
    return predicted.masked_fill_(highest.isnan(), -1)


def confusion_counts(
    probabilities: Tensor, labels: Tensor, thresholds: Tensor | None = None
) -> Tensor:
    """Numbers of images, (K, K) int64: rows are true classes, columns predicted ones.

    Of several labels, the diagonal has the images whose label is found. Beside it, the row's label
    is missed and the column's is predicted wrongly.
    """
    if labels.ndim == 2:
        has, found = labels > 0.5, decided(probabilities, thresholds)
        missed, wrong = (has & ~found).double(), (found & ~has).double()
        return (missed.T @ wrong).long() + (has & found).sum(dim=0).diag()
    k, predicted = probabilities.shape[1], likeliest(probabilities)
    places = (labels * k + predicted)[predicted >= 0]
    return places.bincount(minlength=k * k).view(k, k)


def hits(
    probabilities: Tensor, labels: Tensor, thresholds: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """For each class the images predicted right, predicted, and of the class: (K,) float64 each."""
    if labels.ndim == 2:
        has, found = labels > 0.5, decided(probabilities, thresholds)
        right = (has & found).sum(dim=0).double()
        return right, found.sum(dim=0).double(), has.sum(dim=0).double()
    confusion = confusion_counts(probabilities, labels).double()
    of_class = labels.bincount(minlength=len(confusion)).double()
    return confusion.diagonal(), confusion.sum(dim=0), of_class


def by_class(
    probabilities: Tensor, labels: Tensor, thresholds: Tensor | None = None
) -> dict[str, Tensor]:
    """Precision, recall and f1, (K,) float64; NaN for a class neither true nor predicted."""
    right, predicted, of_class = hits(probabilities, labels, thresholds)
    absent = of_class + predicted == 0
    return {
        "precision": (right / predicted.clamp_min(1)).masked_fill(absent, torch.nan),
        "recall": (right / of_class.clamp_min(1)).masked_fill(absent, torch.nan),
        "f1": 2 * right / (of_class + predicted),
    }


def shares(scores: Tensor, labels: Tensor) -> Tensor:
    """Labels as shares of the classes, (N, K), with the dtype of the scores (N, K)."""
    if labels.ndim == 1:
        labels = torch.nn.functional.one_hot(labels, scores.shape[1])
    return labels.to(scores.dtype)


def are_of_class(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is of each class, (N, K) bool."""
    if labels.ndim == 2:
        return labels > 0.5
    return labels[:, None] == torch.arange(probabilities.shape[1])
