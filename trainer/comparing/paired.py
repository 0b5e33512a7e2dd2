"""Statistics of two sides' answers to the same images: is one better, and by how much?

A side is one model, or several that differ in their seed. Its value is the mean of a metric over
its models. Every draw is keyed, so the same answers give the same bits.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

CERTAINTY = 0.95  # of an interval; a claim is wrong in at most 1 - CERTAINTY of equal pairs
RESAMPLES = 2000
FEW_RESAMPLES = 200  # enough for a standard deviation
SWAPS = 999
LEAST_P = 1e-300
MAX_FREEDOM = 1000  # degrees of freedom; with more, Student's t is the normal distribution

# A metric's value from what it takes of each image, (N,) or (N, K), and the images' labels.
Metric = Callable[["NDArray[Any]", "NDArray[Any]"], float]


@dataclass(frozen=True)
class Apart:
    """The values of two sides, and second - first: its interval, and p of no difference.

    low and high are NaN without resamples. p is two-sided, None if it was not asked for.
    """

    first: float
    second: float
    low: float
    high: float
    p: float | None

    @property
    def apart(self) -> float:
        """The second side's value less the first's."""
        return self.second - self.first


@dataclass(frozen=True)
class Sides:
    """What a metric takes of each model of two sides, for the same N images in the same order.

    An array is (N,) bool (right or not) or float (such as losses), of which the metric is the mean;
    or (N, K) probabilities. labels: (N,) class numbers, or (N, K) of several labels.
    """

    first: Sequence["NDArray[Any]"]
    second: Sequence["NDArray[Any]"]
    labels: "NDArray[Any]"

    @property
    def is_single(self) -> bool:
        """Whether each side is one model."""
        return len(self.first) == len(self.second) == 1


def difference(sides: Sides, metric: Metric, resamples: int = RESAMPLES, swaps: int = 0) -> Apart:
    """Compare two sides by a metric.

    One model each: the paired percentile bootstrap over images (Efron and Tibshirani, 1993), and p
    by ``swapped``. Several each: ``by_variance``, of the bootstrap's variance over images and of
    the seeds. (To resample two or three seeds would give too narrow an interval.) resamples and
    swaps: how many are drawn; 0 for no interval, or no p.
    """
    import numpy

    everything = numpy.arange(len(sides.labels))
    first, second = (on_rows(side, sides, metric, everything) for side in both(sides))
    means = statistics.fmean(first), statistics.fmean(second)
    if not sides.is_single:
        seeds = [
            (statistics.variance(values) / len(values), len(values) - 1)
            for values in (first, second)
        ]
        return by_variance(means, over_images(sides, metric), seeds)
    low = high = math.nan
    if drawn := redrawn(sides, metric, resamples):
        tail = (1 - CERTAINTY) / 2
        low, high = map(float, numpy.quantile(drawn, [tail, 1 - tail]))
    return Apart(*means, low, high, swapped(sides, metric, swaps) if swaps else None)


def redrawn(sides: Sides, metric: Metric, count: int) -> list[float]:
    """The difference of two sides on ``count`` resamples of the images."""
    return [
        statistics.fmean(on_rows(sides.second, sides, metric, rows))
        - statistics.fmean(on_rows(sides.first, sides, metric, rows))
        for rows in resampled(len(sides.labels), count)
    ]


def over_images(sides: Sides, metric: Metric) -> float:
    """The bootstrap's variance of the difference over images; of a mean without drawing them."""
    import numpy

    if sides.first[0].ndim == 1:
        apart = numpy.mean(sides.second, axis=0) - numpy.mean(sides.first, axis=0)
        return float(apart.var() / len(apart))
    return statistics.variance(redrawn(sides, metric, FEW_RESAMPLES))


def both(sides: Sides) -> tuple[Sequence["NDArray[Any]"], Sequence["NDArray[Any]"]]:
    """The first side and the second."""
    return sides.first, sides.second


def on_rows(
    side: Sequence["NDArray[Any]"], sides: Sides, metric: Metric, rows: "NDArray[Any]"
) -> list[float]:
    """The metric of each model of a side on these rows."""
    return [metric(each[rows], sides.labels[rows]) for each in side]


def resampled(images: int, count: int) -> Iterator["NDArray[Any]"]:
    """``count`` times as many rows as there are images, each drawn anew from all of them."""
    import torch

    from transforms.keyed import Draws, seed_of

    draws = Draws(seed_of("resampled", images), 0, torch.arange(images))
    for _ in range(count):
        yield draws.integers(images).numpy()


def by_variance(
    means: tuple[float, float], images: float, seeds: Sequence[tuple[float, int]]
) -> Apart:
    """The difference of two means, by its variance over images and that over each side's seeds.

    seeds: variances of each mean, with their degrees of freedom. They are added as in Welch's
    t-test (Satterthwaite, 1946). Of images and of seeds the squares of half the intervals are
    added, not the variances: with one degree of freedom, that claims too often.
    """
    apart, over_seeds = means[1] - means[0], math.fsum(part for part, _ in seeds)
    if images + over_seeds == 0:
        return Apart(*means, apart, apart, float(apart == 0))
    squares = math.fsum(part**2 / degrees for part, degrees in seeds)
    degrees = over_seeds**2 / squares if squares else MAX_FREEDOM

    def half(t: float) -> float:
        """Half the interval whose certainty is that of -t..t."""
        normal = -statistics.NormalDist().inv_cdf(max(beyond(t, degrees), LEAST_P) / 2)
        return math.hypot(normal * math.sqrt(images), t * math.sqrt(over_seeds))

    whole = half(quantile_of_student(1 - CERTAINTY, degrees))
    p = beyond(where(lambda t: half(t) >= abs(apart)), degrees)
    return Apart(*means, apart - whole, apart + whole, p)


def swapped(sides: Sides, metric: Metric, swaps: int) -> float:
    """Two-sided p that two models are equal, by swapping their answers image by image.

    Of equal models each swap is as likely as none, so p is at most x in x of all cases, however few
    images they answer differently. Of right and wrong answers this is ``mcnemar``, exactly; else
    ``swaps`` of all 2**N ways are drawn (Good, 2005, "Permutation tests").
    """
    import numpy
    import torch

    from transforms.keyed import Draws, seed_of

    (first,), (second,), labels = sides.first, sides.second, sides.labels
    if first.dtype == bool:
        return mcnemar(int((first & ~second).sum()), int((second & ~first).sum()))
    observed = abs(metric(second, labels) - metric(first, labels))
    draws = Draws(seed_of("swapped", len(labels)), 0, torch.arange(len(labels)))
    as_far = 1
    for _ in range(swaps):
        swap = draws.integers(2).numpy().astype(bool).reshape(-1, *[1] * (first.ndim - 1))
        one, other = numpy.where(swap, second, first), numpy.where(swap, first, second)
        as_far += abs(metric(other, labels) - metric(one, labels)) >= observed * (1 - 1e-9)
    return as_far / (swaps + 1)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p that two models are equal, by the images that only one of them gets right.

    The exact binomial form of McNemar, 1947, "Note on the sampling error of the difference between
    correlated proportions". It is 1 if there is no such image.
    """
    count, least = only_first + only_second, min(only_first, only_second)
    if 2 * least == count:
        return 1.0
    log = math.lgamma
    whole = log(count + 1) - count * math.log(2)
    ways = (math.exp(whole - log(k + 1) - log(count - k + 1)) for k in range(least + 1))
    return min(1.0, 2 * math.fsum(ways))


def beyond(t: float, freedom: float) -> float:
    """The probability that Student's t lies beyond -t..t, for 1 or more degrees of freedom."""
    import numpy

    freedom = min(freedom, MAX_FREEDOM)
    begin = math.atan(t / math.sqrt(freedom))  # with t = sqrt(freedom) * tan, it is cos ** n
    places, weights = nodes()
    half = (math.pi / 2 - begin) / 2
    tail = float(weights @ numpy.cos(begin + half * (places + 1)) ** (freedom - 1)) * half
    log_half = math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)
    return min(1.0, 2 * tail / (math.sqrt(math.pi) * math.exp(log_half)))


@cache
def nodes() -> tuple["NDArray[Any]", "NDArray[Any]"]:
    """Places in -1..1 and weights that integrate a smooth function (Gauss and Legendre)."""
    import numpy

    places, weights = numpy.polynomial.legendre.leggauss(200)
    return places, weights


def quantile_of_student(p: float, freedom: float) -> float:
    """The t for which ``beyond`` is p."""
    return where(lambda t: beyond(t, freedom) <= p)


def where(is_far: Callable[[float], bool]) -> float:
    """The least t in 0..2**20 from which on ``is_far``; the last one if none is."""
    low, high = 0.0, 2.0**20
    for _ in range(70):
        middle = (low + high) / 2
        low, high = (low, middle) if is_far(middle) else (middle, high)
    return high
