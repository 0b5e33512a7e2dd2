"""Several networks that answer as one: the mean of their probabilities."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# How probabilities come from logits: their softmax; one sigmoid a label; or sigmoids over their sum
Kind = Literal["softmax", "sigmoids", "shares"]


class Ensemble(nn.Module):
    """The mean of the members' probabilities, given back as logits (B, num_classes) float32.

    The same step that makes probabilities of a member's logits makes that mean of these logits:
    of ``softmax`` they are the logarithm of the mean, else its logit, log(p) - log(1 - p). Source:
    Lakshminarayanan et al., 2017, "Simple and scalable predictive uncertainty estimation using deep
    ensembles", section 2.4. For ``shares``, a p is at most 1 - 2**-24.

    orders: for each member, the number in its output of each class; None if that is the same.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        mean_of: Kind = "softmax",
        orders: Sequence[Sequence[int] | None] | None = None,
    ) -> None:
        super().__init__()
        self.members, self.mean_of = nn.ModuleList(members), mean_of
        self.orders = [None] * len(members) if orders is None else list(orders)
        if not members or len(self.orders) != len(members):
            raise ValueError(f"{len(members)} members with {len(self.orders)} orders")

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the mean, for images (B, C, H, W)."""
        answers = []
        for member, order in zip(self.members, self.orders, strict=True):
            logits = member(images).float()
            answers.append(logits if order is None else logits[:, order])
        return self.mean(torch.stack(answers))

    def mean(self, logits: Tensor) -> Tensor:
        """The logits (B, K) of the mean, from the logits (M, B, K) of M members."""
        # -softplus(-x) is logsigmoid(x), which an ONNX file would have as log(sigmoid(x)): -inf at
        # -100, and coarse above 5.
        if self.mean_of == "sigmoids":
            return _log_mean(-F.softplus(-logits)) - _log_mean(-F.softplus(logits))
        if self.mean_of == "softmax":
            return _log_mean(logits.log_softmax(dim=2))
        log_p = _log_mean((-F.softplus(-logits)).log_softmax(dim=2))
        return log_p - torch.log1p(-log_p.exp().clamp_max(1 - 2.0**-24))


def _log_mean(values: Tensor) -> Tensor:
    """The logarithm of the mean over the first dimension of numbers given as logarithms."""
    return values.logsumexp(dim=0) - math.log(len(values))
