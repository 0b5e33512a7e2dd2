"""Scores of how unlike the known images an image is: by its logits, and by its last features."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.components import SCORES
from trainer.components.label_sets import fewest_images, rank_of
from trainer.components.metrics import chance_above
from transforms.keyed import permutation, seed_of

LEVEL = Fraction("0.95")  # the share of known images that reports keep
MIN_IMAGES, PER_CLASS = 1000, 10  # training images whose features are learned
MAX_NUMBERS = 2**25  # of all their features
LEAST_VARIANCE = 1e-10  # the least variance of unit features in any direction
LAST_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TENSORS = ("means", "directions", "scales", "rest")


class Novelty(nn.Module):
    """A model that also gives each image's ``SCORES``; for each, more means less known.

    Input (B, C, H, W). Output (B, K + 3) float32: logits, then the scores, from one forward pass.

    - distance: the squared Mahalanobis distance of the last layer's input, scaled to length 1, to
      the nearest class mean (Lee et al., 2018; the scaling: Mueller and Hein, 2025,
      "Mahalanobis++").
    - energy: -logsumexp of the logits (Liu et al., 2020).
    - max_logit: the negative largest logit (Hendrycks et al., 2022).

    layer: the name of the last layer. learned: see ``learn``.
    """

    def __init__(self, model: nn.Module, layer: str, learned: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        for name in TENSORS:
            self.register_buffer(name, learned[name].float())

    def forward(self, images: Tensor) -> Tensor:
        """Logits and scores."""
        logits, features = with_features(self.model, self.layer, images)
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([logits, self.scores(logits, features)], dim=1)

    def scores(self, logits: Tensor, features: Tensor) -> Tensor:
        """The scores (B, 3) of logits (B, K) and features (B, F), both float32."""
        spread = self.whitened(functional.normalize(features, dim=1))
        means: Tensor = self.get_buffer("means")
        # The nearest mean by a product of matrices; its distance by the difference, which is exact.
        nearest = ((means**2).sum(dim=1) - 2 * spread @ means.T).argmin(dim=1)
        distance = ((spread - means[nearest]) ** 2).sum(dim=1)
        return torch.stack([distance, -logits.logsumexp(dim=1), -logits.amax(dim=1)], dim=1)

    def whitened(self, unit: Tensor) -> Tensor:
        """Unit features (B, F) in coordinates with the identity as covariance: (B, R [+ F])."""
        return _whitened(unit, *(self.get_buffer(name) for name in TENSORS[1:]))


class Embedding(nn.Module):
    """A model, or a ``Novelty`` of one, that also gives each image's features.

    Input (B, C, H, W). Output (B, N + F) float32: what ``inner`` gives, and the input of ``layer``.
    """

    def __init__(self, inner: nn.Module, layer: str) -> None:
        super().__init__()
        self.inner = inner
        self.layer = f"model.{layer}" if isinstance(inner, Novelty) else layer

    def forward(self, images: Tensor) -> Tensor:
        """What ``inner`` gives, and the features."""
        return torch.cat(with_features(self.inner, self.layer, images), dim=1)


def _whitened(unit: Tensor, directions: Tensor, scales: Tensor, rest: Tensor) -> Tensor:
    along = unit @ directions.T
    if len(directions) == unit.shape[1]:
        return along * scales
    beside = unit - along @ directions  # all directions without data have one variance
    return torch.cat([along * scales, beside * rest], dim=1)


def with_features(model: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """The model's logits (B, K), and its features (B, F): the input of ``layer``, float32.

    Of an input with positions, such as maps or tokens, the mean over them is taken.
    """
    read: list[Tensor] = []
    module = model.get_submodule(layer)
    hook = module.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    try:
        logits = model(images).float()
    finally:
        hook.remove()
    features = read[-1].float()
    if features.ndim > 2:
        is_linear = isinstance(module, nn.Linear)
        features = features.flatten(1, -2).mean(1) if is_linear else features.flatten(2).mean(2)
    return logits, features


def last_layer(model: nn.Module, images: Tensor, num_classes: int) -> str:
    """The name of the last linear layer or convolution that gives each image's ``num_classes``.

    Raises ValueError if no layer does.
    """
    found: list[str] = []

    def keep(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and len(output) == len(images):
            found.append(name)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if num_classes in (
                getattr(module, "out_features", 0),
                getattr(module, "out_channels", 0),
            ):
                if name and isinstance(module, LAST_LAYERS):
                    hook = module.register_forward_hook(lambda _, __, out, n=name: keep(n, out))
                    hooks.callback(hook.remove)
        model(images)
    if not found:
        raise ValueError(
            f"{type(model).__name__} ends with no linear layer or convolution of {num_classes} "
            "outputs, so it has no last features"
        )
    return found[-1]


def rows_to_learn(labels: Tensor, num_classes: int, seed: int) -> Tensor:
    """The training images from whose features ``learn`` learns, (n,) int64; as many of each class.

    labels: (N,) int64.
    """
    shuffled = permutation(len(labels), seed_of("novelty", seed), 0)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    sizes = labels.bincount(minlength=num_classes)
    first = (sizes.cumsum(0) - sizes)[labels[by_class]]
    turn = torch.arange(len(labels)) - first  # its number within its class
    return by_class[turn.argsort(stable=True)][: max(MIN_IMAGES, PER_CLASS * num_classes)]


def learn(features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What ``Novelty`` needs, from training images: features (N, F), labels (N,) int64.

    The unit features' covariance within the classes is shrunk towards a multiple of the identity
    (Ledoit and Wolf, 2004), so that N may be less than F. Returns ``means`` (K, R [+ F]) of the
    classes with images, whitened; ``directions`` (R, F), orthonormal; ``scales`` (R,) and ``rest``
    (): one over the standard deviation along them, and beside them. Computes in float64. Raises
    ValueError if a feature is not finite, or if no class has two images.
    """
    if not features.isfinite().all():
        raise ValueError("the last features of training images are not finite")
    classes, labels = torch.unique(labels, return_inverse=True)
    if len(classes) == len(labels):
        raise ValueError("no class has two training images, so nothing tells how they vary")
    unit = functional.normalize(features.double().cpu(), dim=1)
    means = torch.zeros(len(classes), unit.shape[1], dtype=unit.dtype).index_add_(0, labels, unit)
    means /= labels.bincount()[:, None]
    centred = unit - means[labels]
    variances, directions = principal(centred)
    shrinkage, mean = ledoit_wolf(centred, variances)
    ours = (1 - shrinkage) * variances + shrinkage * mean
    scales = ours.clamp_min(LEAST_VARIANCE).rsqrt()
    rest = (shrinkage * mean).clamp_min(LEAST_VARIANCE).rsqrt()
    whitened = _whitened(means, directions, scales, rest)
    return {"means": whitened, "directions": directions, "scales": scales, "rest": rest}


def principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """The variances (R,) and directions (R, F), R = min(N, F), of rows (N, F) with mean 0."""
    count, width = centred.shape
    if width <= count:
        values, vectors = torch.linalg.eigh(centred.T @ centred / count)
        return values.clamp_min(0), vectors.T.contiguous()
    values, vectors = torch.linalg.eigh(centred @ centred.T / count)
    real = values > 1e-12 * values[-1].clamp_min(LEAST_VARIANCE)  # others have no direction
    values, vectors = values[real], vectors[:, real]
    return values, (centred.T @ vectors / (values * count).sqrt()).T.contiguous()


def ledoit_wolf(centred: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """The share of shrinkage, 0-1, and the mean variance, of rows (N, F) with mean 0.

    Ledoit and Wolf, 2004, "A well-conditioned estimator for large-dimensional covariance
    matrices", lemma 3.4.
    """
    count, width = centred.shape
    mean, squares = variances.sum() / width, (variances**2).sum()
    noise = ((centred**2).sum(dim=1) ** 2).sum() / count**2 - squares / count
    apart = (squares - width * mean**2).clamp_min(torch.finfo(centred.dtype).tiny)
    return (noise / apart).clamp(0, 1), mean


def threshold_of(scores: Tensor, level: Fraction) -> float:
    """The largest score that is kept, so that a share ``level`` of known images is kept.

    scores: those of n images that taught nothing. A new known image is kept with a probability of
    at least ``level`` (conformal prediction: Vovk et al., 2005). Raises ValueError with the number
    of images that are needed, if there are fewer.
    """
    rank = rank_of(len(scores), level)
    if rank > len(scores):
        raise ValueError(f"{fewest_images(level):,}")
    return float(scores.sort().values[rank - 1])


def kept_unknown(known: Tensor, unknown: Tensor, level: Fraction = LEVEL) -> float:
    """The share of unknown images that are kept where ``level`` of the known ones are: FPR95."""
    place = math.ceil(level * len(known))
    return float((unknown <= known.sort().values[place - 1]).double().mean())


def kept_of_test(val: Tensor, test: Tensor, level: Fraction = LEVEL) -> dict[str, Any]:
    """How many test images each score keeps, if it keeps ``level`` by val; scores are (N, 3).

    With too few val images, the number that is needed.
    """
    if rank_of(len(val), level) > len(val):
        return {"level": float(level), "needed": fewest_images(level)}
    kept = {
        name: int((test[:, i] <= threshold_of(val[:, i], level)).sum())
        for i, name in enumerate(SCORES)
    }
    return {"level": float(level), "test_images": len(test), "kept": kept}


def told_apart(test: Tensor, unknown: Tensor) -> dict[str, dict[str, float]]:
    """AUROC, and ``kept_unknown`` (FPR95), of each score, from scores (N, 3) and (M, 3)."""
    columns = test.T.contiguous(), unknown.T.contiguous()
    pairs = dict(zip(SCORES, zip(*columns, strict=True), strict=True))
    return {
        "auroc": {name: chance_above(*pair[::-1]) for name, pair in pairs.items()},
        "fpr95": {name: kept_unknown(*pair) for name, pair in pairs.items()},
    }


def sorted_scores(scores: Tensor) -> dict[str, Tensor]:
    """Scores (N, 3) as a tensor (N,) of each kind, in ascending order."""
    return {name: scores[:, i].sort().values.contiguous() for i, name in enumerate(SCORES)}


def split_scores(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (N, K) and the scores (N, 3) in what ``Novelty`` gives."""
    return outputs[:, : -len(SCORES)], outputs[:, -len(SCORES) :]
