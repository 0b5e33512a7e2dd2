"""One temperature that makes a model's probabilities true: fitted on val, used where val says so.

Guo et al., 2017, "On calibration of modern neural networks". A temperature above 1 makes the
probabilities less certain, one below 1 more certain.

Of one class an image, the temperature acts on the final probabilities, which may be a mean over
views: each is raised to the power 1 / temperature, and all are divided by their sum. For a softmax
this is the same as dividing the logits. Of several labels, the logits are divided, and a mean over
views comes after it. What is predicted is decided by the raw probabilities, so it never changes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.words import counted
from trainer.components import OF_SEVERAL_LABELS
from trainer.components.decisions import Answers
from trainer.components.losses import are_finite, in_steps, probabilities
from trainer.components.metrics import brier, calibration_error, nll

LEAST_IMAGES = 100  # of val: with 50, most of the temperatures that were used made test worse
LOWEST, HIGHEST = 0.05, 20.0  # a temperature; at an end it is no minimum, and not used
GOLDEN = (math.sqrt(5) - 1) / 2
PRECISION = 1e-5  # of the logarithm of a temperature, which is then rounded to 4 digits
NLL_ROWS = 4096  # images whose float64 copies are in memory at once
MOST_LOGITS = 4_000_000  # that are fitted: of 1000 classes 4,000 images, which is to 2 %


class Calibration(NamedTuple):
    """What val says about a temperature; the content of ``calibration`` in model.json.

    nll: the mean negative log likelihood of val's raw and of its calibrated probabilities.
    temperature and nll are None if there are too few images to fit one. why: a reason for ``used``.
    """

    used: bool
    why: str
    images: int
    temperature: float | None = None
    nll: tuple[float, float] | None = None

    @property
    def in_words(self) -> str:
        """A sentence without a full stop: how probabilities are calibrated, or why they are not."""
        images = counted(self.images, "val image")
        if self.used:
            return f"probabilities have temperature {self.temperature:.4g}, fitted on {images}"
        return f"probabilities stay raw: {images}, {self.why}"


def calibrate(loss_name: str, logits: Tensor, labels: Tensor) -> Calibration:
    """Fit a temperature to val, and decide whether it is used.

    logits (N, K); labels (N,), or (N, K) where an image may have several.

    It is used if the mean of the images' gains in log likelihood is above its standard error. For
    a model whose probabilities are true, this happens in one of 20 cases: the ratio of the two is
    half the absolute value of a standard normal number, as the temperature has seen these images.
    """
    images = len(logits)
    if images < LEAST_IMAGES:
        why = f"and at least {LEAST_IMAGES} are needed for a temperature"
        return Calibration(False, why, images)
    if not are_finite(logits).all():
        return Calibration(False, "with NaN or infinity among the logits", images)
    temperature = fit_temperature(loss_name, logits, labels)
    before, after = (_losses(loss_name, logits, labels, t) for t in (1.0, temperature))
    gain, means = before - after, (before.mean().item(), after.mean().item())
    error = gain.std().item() / math.sqrt(images)
    used, why = True, "it lowers val's negative log likelihood by more than chance"
    if not 1.001 * LOWEST < temperature < HIGHEST / 1.001:
        used, why = False, f"of which no temperature from {LOWEST:g} to {HIGHEST:g} is the best"
    elif gain.mean().item() <= error:
        used, why = False, f"where temperature {temperature:.4g} gains no more than chance"
    return Calibration(used, why, images, temperature, means)


def fit_temperature(loss_name: str, logits: Tensor, labels: Tensor) -> float:
    """The temperature with the least mean negative log likelihood, to 4 digits.

    It is that of a golden-section search, from LOWEST to HIGHEST. On any number of threads it is
    equal. Logits (N, K) are finite; labels are those of ``calibrate``. Of more than MOST_LOGITS,
    every second image is fitted, or every third, and so on.
    """
    step = math.ceil(logits.numel() / MOST_LOGITS)
    logits, labels = logits[::step], labels[::step]

    def loss(log_temperature: float) -> float:
        return _losses(loss_name, logits, labels, math.exp(log_temperature)).sum().item()

    return float(f"{math.exp(_least(loss, math.log(LOWEST), math.log(HIGHEST))):.4g}")


def _least(function: Callable[[float], float], low: float, high: float) -> float:
    """Where in low..high a function with one minimum is the least, to PRECISION."""
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > PRECISION:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = function(right)
    return (low + high) / 2


def _losses(loss_name: str, logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The negative log likelihood of each image, (N,) float64; of several labels their mean."""
    found = []
    for scores, wanted in zip(
        torch.split(logits, NLL_ROWS), torch.split(labels, NLL_ROWS), strict=True
    ):
        scores = scores.double()
        if wanted.ndim == 2:
            each = F.binary_cross_entropy_with_logits(
                scores / temperature, wanted.double(), reduction="none"
            ).mean(dim=1)
        else:
            if loss_name in OF_SEVERAL_LABELS:
                scores = F.logsigmoid(scores)
            each = F.cross_entropy(scores / temperature, wanted, reduction="none")
        found.append(in_steps(each))
    return torch.cat(found)


def tempered(chances: Tensor, temperature: float | None) -> Tensor:
    """Calibrated probabilities (N, K) float32 from raw ones of one class an image; NaN stays NaN.

    Without a temperature they are as they were.
    """
    if temperature is None:
        return chances
    return (chances.double().log() / temperature).softmax(dim=1).float()


def calibrated(
    loss_name: str, logits: Tensor, temperature: float | None, several_labels: bool = False
) -> Tensor:
    """Calibrated probabilities (N, K) float32 from logits (N, K); raw ones without temperature."""
    if several_labels:
        divided = logits if temperature is None else logits / temperature
        return probabilities(loss_name, divided, several_labels=True)
    return tempered(probabilities(loss_name, logits), temperature)


def how_true(chances: Tensor, labels: Tensor) -> dict[str, float]:
    """How true probabilities are, by the metrics' names; of each, 0 is the best."""
    return {metric.__name__: metric(chances, labels) for metric in (calibration_error, nll, brier)}


def before_and_after(raw: Answers, after: Answers | None) -> dict[str, dict[str, float]]:
    """``how_true`` of raw probabilities, and of calibrated ones if there are any."""
    found = {"before": how_true(raw.probabilities, raw.labels)}
    return found | ({"after": how_true(after.probabilities, after.labels)} if after else {})


def calibration_of(card: dict[str, Any]) -> Calibration | None:
    """What a model.json says about a temperature; None if nothing.

    Raises KeyError, TypeError or ValueError if it is damaged.
    """
    if (found := card.get("calibration")) is None:
        return None
    read = Calibration(**found)
    is_number = type(read.temperature) is float and LOWEST <= read.temperature <= HIGHEST
    if type(read.used) is not bool or type(read.images) is not int or (read.used and not is_number):
        raise ValueError
    return read
