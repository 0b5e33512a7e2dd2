"""The losses: each takes raw logits, and labels as class numbers or as a mixture of classes.

logits: (B, K) float; labels: (B,) int64, or (B, K) float whose rows sum to one (from MixUp and
CutMix). Where an image may have several labels, they are (B, K) float in 0..1, and the losses are
those of OF_SEVERAL_LABELS. The result is the mean over the B images, with class weights too. So the
losses of micro-batches, weighted by their numbers of images, have exactly the batch's loss as their
mean.

``weight`` holds K numbers; an image of class k counts ``weight[k]`` times. A mixed image counts by
the mean of its classes' weights over their shares. The weight multiplies the image's whole loss: if
each class's term had its own weight, the rare classes' shares of a label (from mixing or from label
smoothing) would outgrow the share of the true class.

The logits are float32, and no autocast is active: a loss computes in float32.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.components import OF_SEVERAL_LABELS
from trainer.components.decisions import shares

LOSS_STEP = 2.0**-32


class _Weighted(nn.Module):
    """Base of all losses: holds ``weight`` as a buffer, which ``.to`` moves to the device."""

    weight: Tensor | None

    def __init__(self, weight: list[float] | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", _class_weight(weight), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the images, a scalar."""
        return self.each(logits, labels).mean()

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image, with the weight of its class or classes: (B,)."""
        losses = self.unweighted(logits, labels)
        if self.weight is None:
            return losses
        # Not ``labels @ weight``: a GPU that may use TF32 would round the weights to 10 bits.
        mixed = labels.ndim == 2
        return losses * ((labels * self.weight).sum(dim=1) if mixed else self.weight[labels])

    def unweighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image without class weights: (B,)."""
        raise NotImplementedError


class CrossEntropyLoss(_Weighted):
    """Cross entropy of the softmax, as ``torch.nn.CrossEntropyLoss``.

    Deviations: with ``weight``, torch divides by the sum of the weights if the labels are class
    numbers, and by B if they are mixtures; this loss always divides by B. With ``weight`` and mixed
    or smoothed labels, torch multiplies each class's term by that class's weight; this loss
    multiplies the image's loss by its own weight (see the top of the file).

    label_smoothing: The share of each label that is spread evenly over all classes, 0-1.
    """

    def __init__(self, weight: list[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__(weight)
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must lie in 0..1, not {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the images, a scalar."""
        if self.weight is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return super().forward(logits, labels)

    def unweighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of each image: (B,)."""
        smoothing = self.label_smoothing
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


class NLLLoss(_Weighted):
    """Negative log likelihood, as ``torch.nn.NLLLoss`` of the logits' log-softmax.

    It equals CrossEntropyLoss without label smoothing.
    With ``weight`` it deviates as CrossEntropyLoss does.
    """

    def unweighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Negative log likelihood of each image: (B,)."""
        return F.cross_entropy(logits, labels, reduction="none")


class FocalLoss(_Weighted):
    """Focal loss, -(1 - p)^gamma log(p) for the true class's softmax probability p.

    Lin et al., 2017, "Focal loss for dense object detection", eq. 5, whose alpha is ``weight``.
    Deviations: a softmax over K classes replaces the paper's sigmoid; a mixed label has the sum of
    its classes' terms, weighted by their shares.

    gamma: How much less images count that the model is sure of, 0 or more; 0 is cross entropy.
    """

    def __init__(self, gamma: float = 2.0, weight: list[float] | None = None) -> None:
        super().__init__(weight)
        if gamma < 0:
            raise ValueError(f"gamma must be at least 0, not {gamma}")
        self.gamma = gamma

    def unweighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Focal loss of each image: (B,)."""
        log_p = F.log_softmax(logits, dim=1)
        # At p = 1 the slope of (1 - p)^gamma is infinite for gamma < 1: the floor keeps it finite.
        rest = (1 - log_p.exp()).clamp_min(torch.finfo(log_p.dtype).eps)
        terms = -shares(logits, labels) * rest**self.gamma * log_p  # (B, K)
        return terms.sum(dim=1)


class BCELoss(_Weighted):
    """Binary cross entropy of each class against the rest: ``torch.nn.BCELoss`` of the sigmoids."""

    def unweighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the classes, of each image: (B,)."""
        chances = logits.sigmoid()
        targets, known = shares(logits, labels), chances.nan_to_num(0.5)
        terms = F.binary_cross_entropy(known, targets, reduction="none")  # it raises for NaN
        terms = terms.where(~chances.isnan(), torch.nan)
        return terms.mean(dim=1)


class BCEWithLogitsLoss(_Weighted):
    """BCELoss computed so that large logits stay exact, as ``torch.nn.BCEWithLogitsLoss``.

    pos_weight: One number >= 0 for each class, by which the term of its own images is multiplied.
        balanced: images without the label / images with it, in training.
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        weight: list[float] | None = None,
        pos_weight: list[float] | Literal["balanced"] | None = None,
    ) -> None:
        super().__init__(weight)
        if pos_weight == "balanced":  # until the training labels are known
            pos_weight = None
        self.register_buffer("pos_weight", _class_weight(pos_weight), persistent=False)

    def unweighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the classes, of each image: (B,)."""
        targets = shares(logits, labels)
        terms = F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=self.pos_weight, reduction="none"
        )
        return terms.mean(dim=1)


class SigmoidFocalLoss(_Weighted):
    """Focal loss of each class against the rest, as ``torchvision.ops.sigmoid_focal_loss``.

    Lin et al., 2017, "Focal loss for dense object detection", eq. 5, with the paper's sigmoid.

    gamma: How much less a class counts that the model is sure of, 0 or more; 0 is BCE.
    alpha: The share of a class's own images in the loss, 0-1; -1 weighs none.
    """

    def __init__(
        self, gamma: float = 2.0, alpha: float = 0.25, weight: list[float] | None = None
    ) -> None:
        super().__init__(weight)
        if gamma < 0:
            raise ValueError(f"gamma must be at least 0, not {gamma}")
        if not 0 <= alpha <= 1 and alpha != -1:
            raise ValueError(f"alpha must lie in 0..1, or be -1, not {alpha}")
        self.gamma, self.alpha = gamma, alpha

    def unweighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the classes, of each image: (B,)."""
        targets, chances = shares(logits, labels), logits.sigmoid()
        # As for FocalLoss: the floor keeps the slope of the power finite.
        wrong = (chances + targets - 2 * chances * targets).clamp_min(torch.finfo(logits.dtype).eps)
        crossed = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        terms = crossed * wrong**self.gamma
        if self.alpha >= 0:
            terms = terms * (self.alpha * targets + (1 - self.alpha) * (1 - targets))
        return terms.mean(dim=1)


class AsymmetricLoss(_Weighted):
    """BCE in which labels that an image lacks count less, the surer the model is.

    Ridnik et al., 2021, "Asymmetric loss for multi-label classification", eq. 7, as a mean over
    images and classes; the paper's code gives the sum.

    gamma_negative: The focusing of labels that an image lacks, 0 or more.
    gamma_positive: The focusing of labels that it has, 0 or more.
    clip: Below this probability a label that an image lacks costs nothing, 0 to less than 1.
    """

    def __init__(
        self,
        gamma_negative: float = 4.0,
        gamma_positive: float = 0.0,
        clip: float = 0.05,
        weight: list[float] | None = None,
    ) -> None:
        super().__init__(weight)
        if gamma_negative < 0 or gamma_positive < 0:
            raise ValueError("gamma_negative and gamma_positive must be at least 0")
        if not 0 <= clip < 1:
            raise ValueError(f"clip must lie in 0 to less than 1, not {clip}")
        self.gamma_negative, self.gamma_positive, self.clip = gamma_negative, gamma_positive, clip

    def unweighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the classes, of each image: (B,)."""
        targets, chances = shares(logits, labels), logits.sigmoid()
        least = torch.finfo(logits.dtype).eps  # the slope of x^gamma is infinite at 0, gamma < 1
        shifted = (chances - self.clip).clamp_min(0)
        has = (1 - chances).clamp_min(least) ** self.gamma_positive * F.logsigmoid(logits)
        lacks = shifted.clamp_min(least) ** self.gamma_negative * torch.log1p(-shifted)
        if not self.clip:
            lacks = shifted.clamp_min(least) ** self.gamma_negative * F.logsigmoid(-logits)
        terms = -targets * has - (1 - targets) * lacks
        return terms.mean(dim=1)


class MSELoss(_Weighted):
    """Mean squared difference of logits and one-hot labels, as ``torch.nn.MSELoss``."""

    def unweighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the classes, of each image: (B,)."""
        terms = (logits - shares(logits, labels)).square()
        return terms.mean(dim=1)


class L1Loss(_Weighted):
    """Mean absolute difference of logits and one-hot labels, as ``torch.nn.L1Loss``."""

    def unweighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the classes, of each image: (B,)."""
        terms = (logits - shares(logits, labels)).abs()
        return terms.mean(dim=1)


def in_steps(losses: Tensor) -> Tensor:
    """Losses as float64 multiples of LOSS_STEP: their sum is the same in any order."""
    return torch.round(losses.double() / LOSS_STEP) * LOSS_STEP + 0.0  # no -0.0


def balanced_weight(labels: Sequence[int] | Tensor, num_classes: int) -> Tensor:
    """Class weights with which all classes have the same total weight: N / (K * images of a class).

    labels: (N,) class numbers of the training split. Returns (K,) float32; their mean over the
    images is one (as with scikit-learn's ``class_weight="balanced"``). Raises ValueError if a class
    has no image.
    """
    counts = torch.bincount(torch.as_tensor(labels, dtype=torch.int64), minlength=num_classes)
    if empty := (counts == 0).nonzero().flatten().tolist():
        raise ValueError(f"weight: balanced needs training images of every class; none of {empty}")
    return (counts.sum() / (num_classes * counts.double())).float()


def balanced_pos_weight(labels: Tensor) -> Tensor:
    """For each label, images without it / images with it, (K,) float32; labels: (N, K) in 0..1.

    Each label must have an image.
    """
    with_it = labels.double().sum(dim=0)
    return ((len(labels) - with_it) / with_it).float()


def probabilities(loss_name: str, logits: Tensor, several_labels: bool = False) -> Tensor:
    """Probabilities of a model trained with this loss, from its logits (N, K).

    Returns (N, K) float32; each row sums to one, unless an image may have several labels: then each
    is the sigmoid of its logit. For one class an image, losses that train one sigmoid a class have
    the sigmoids divided by their sum; for every other loss it is the softmax. Where a logit is NaN
    or infinite, the model gives no answer: the whole row is NaN.
    """
    logits = logits.float()
    is_answer = are_finite(logits)
    if several_labels:
        return logits.sigmoid().masked_fill_(~is_answer[:, None], torch.nan)
    if loss_name in OF_SEVERAL_LABELS:
        logits = F.logsigmoid(logits)  # exp(logsigmoid) / sum, without 0 / 0
    return logits.softmax(dim=1).masked_fill_(~is_answer[:, None], torch.nan)


def are_finite(logits: Tensor) -> Tensor:
    """Whether all logits of an image are finite, (N,) bool, from logits (N, K)."""
    least, most = logits.aminmax(dim=1)  # NaN if one is NaN
    return least.isfinite() & most.isfinite()


def _class_weight(weight: list[float] | None) -> Tensor | None:
    if weight is None:
        return None
    values = torch.as_tensor(weight, dtype=torch.float32)
    if values.ndim != 1 or not values.isfinite().all() or (values < 0).any():
        raise ValueError(f"class weights must be a list of finite numbers >= 0, not {weight}")
    return values
