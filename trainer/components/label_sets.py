"""Label sets: the classes that an image may be of, so that a set has the true one at a known rate.

Split conformal prediction with the score 1 - p of the true class: Sadinle et al., 2019, "Least
ambiguous set-valued classifiers with bounded error levels". A set has all classes whose probability
is at least that of the threshold, and the predicted class too, so that no set is empty. For images
like those of val, drawn independently, the true class is in the set with a probability of at
least ``level``.
"""

import math
from fractions import Fraction
from typing import NamedTuple

from torch import Tensor

from trainer.components.decisions import likeliest


class Coverage(NamedTuple):
    """How label sets do on N labelled images: by class, the images, and those whose set has it.

    classes: the number of classes in all sets together.
    """

    images: list[int]
    covered: list[int]
    classes: int

    @property
    def mean_size(self) -> float:
        """Classes in a set, on average."""
        return self.classes / sum(self.images)


def fewest_images(level: Fraction) -> int:
    """The fewest val images that can support ``level``: at most (1 - level) of n + 1 is 1."""
    return math.ceil(level / (1 - level))


def rank_of(count: int, level: Fraction) -> int:
    """The rank, from 1, up to which ``level`` of ``count`` + 1 images are kept."""
    return math.ceil(level * (count + 1))


def set_threshold(probabilities: Tensor, labels: Tensor, level: Fraction) -> float:
    """The probability from which on a class belongs to a set.

    probabilities (N, K) and labels (N,) are those of val. It is the true class's probability of
    rank ceil((N + 1) * level), the largest first. Raises ValueError for too few images.
    """
    rank = rank_of(len(labels), level)
    if rank > len(labels):
        raise ValueError(
            f"{len(labels)} val images cannot support {float(level):g}: at least "
            f"{fewest_images(level)} are needed"
        )
    of_true = probabilities.gather(1, labels[:, None])[:, 0]
    return of_true.sort(descending=True).values[rank - 1].item()


def sets_of(probabilities: Tensor, threshold: float, predicted: Tensor) -> Tensor:
    """Which classes are in each image's set, (N, K) bool, for predicted classes (N,)."""
    return (probabilities >= threshold).scatter(1, predicted.clamp_min(0)[:, None], True)


def coverage_of(sets: Tensor, labels: Tensor) -> Coverage:
    """How sets (N, K) do on images with these labels (N,)."""
    has = sets.gather(1, labels[:, None])[:, 0]
    count = sets.shape[1]
    return Coverage(
        labels.bincount(minlength=count).tolist(),
        labels[has].bincount(minlength=count).tolist(),
        int(sets.sum()),
    )


def measure_sets(
    val: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], raw: Tensor, level: Fraction
) -> tuple[float, Coverage]:
    """The threshold by val, and how the sets of test do.

    val and test: probabilities (N, K) and labels (N,). raw (N, K): test's probabilities by which
    classes are predicted. Raises ValueError if val has too few images.
    """
    threshold = set_threshold(*val, level)
    return threshold, coverage_of(sets_of(test[0], threshold, likeliest(raw)), test[1])
