"""Finds labels that are likely wrong, by predictions of models that did not see the images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

EM_STEPS = 50  # of the expectation-maximization; more change no rank that matters
TRUST = 0.9  # how often a class is taken to have its own label, before the first step
LEAST_CHANCE = 1e-9  # a smaller probability counts as this: no model is that sure


def judge_labels(
    probabilities: "NDArray[Any]", given: "NDArray[Any]"
) -> "tuple[NDArray[Any], NDArray[Any]]":
    """Return how likely each label is right, (N,) float64 in 0-1, and the likeliest other class.

    probabilities (N, K): of models that did not see the image. given (N,): the class in its label.
    The label counts as the answer of one annotator, who takes class i for class j in a share of
    cases that is not known. Expectation-maximization finds these shares; the model's probabilities
    take the place of the classes' shares (Dawid and Skene, 1979, "Maximum likelihood estimation of
    observer error-rates"). So a label is suspect where the model contradicts it, and more where
    many of its class are mistaken in the same way.
    """
    import numpy

    count = probabilities.shape[1]
    rows_of = [numpy.flatnonzero(given == label) for label in range(count)]
    shares = numpy.full((count, count), (1 - TRUST) / (count - 1))  # (right, given)
    numpy.fill_diagonal(shares, TRUST)
    for _ in range(EM_STEPS):
        found = numpy.full((count, count), 1 / count)  # an image of each class, unseen
        for label, rows in enumerate(rows_of):
            found[:, label] += _chances(probabilities[rows], shares[:, label]).sum(axis=0)
        shares = found / found.sum(axis=1, keepdims=True)
    right, other = numpy.zeros(len(given)), numpy.zeros(len(given), numpy.int64)
    for label, rows in enumerate(rows_of):
        chances = _chances(probabilities[rows], shares[:, label])
        right[rows] = chances[:, label]
        chances[:, label] = -1
        other[rows] = chances.argmax(axis=1)
    return right, other


def judge_several(
    probabilities: "NDArray[Any]", has: "NDArray[Any]"
) -> "tuple[NDArray[Any], NDArray[Any]]":
    """``judge_labels`` where an image may have several labels: (N,) float64, and (N, K) bool.

    has (N, K): whether the image has the label. Each label is judged by itself, as has or has not.
    An image is as right as its worst label. The second result is the likely labels: those in which
    has not is likelier are turned round, at least the worst one.
    """
    import numpy

    of_label = [
        judge_labels(numpy.stack([1 - chance, chance], axis=1), own.astype(numpy.int64))[0]
        for chance, own in zip(probabilities.T, has.T, strict=True)
    ]
    right = numpy.stack(of_label, axis=1)
    wrong = right < 0.5
    wrong[numpy.arange(len(right)), right.argmin(axis=1)] = True
    return right.min(axis=1), has ^ wrong


def _chances(probabilities: "NDArray[Any]", shares: "NDArray[Any]") -> "NDArray[Any]":
    """How likely each class is right, (n, K), for images of one label; shares: of it by class."""
    found = probabilities.astype("float64").clip(LEAST_CHANCE) * shares
    return found / found.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
