"""What torch.optim leaves open: which parameters decay, and which of them Muon may have."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(model: nn.Module, no_decay: bool) -> list[dict[str, Any]]:
    """The model's trainable parameters, as the groups that an optimizer takes.

    With ``no_decay`` the parameters of norm layers, and all others of at most one dimension
    (biases, scales), stand in a last group with weight_decay 0. Raises ValueError when all
    are frozen.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]  # a shared one is listed once
    if not trainable:
        raise ValueError("every parameter of the model is frozen: there is nothing to train")
    if not no_decay:
        return [{"params": trainable}]
    norms = (m for m in model.modules() if isinstance(m, _NORM_LAYERS))
    of_norms = {id(p) for norm in norms for p in norm.parameters(recurse=False)}
    decay, rest = _partition(trainable, lambda p: p.ndim > 1 and id(p) not in of_norms)
    groups: list[dict[str, Any]] = [{"params": decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Muon(torch.optim.Optimizer):
    """Muon on the model's hidden matrices and AdamW on everything else, with one learning rate.

    Jordan et al., 2024, "Muon: an optimizer for hidden layers in neural networks", with the update
    scaled to AdamW's size so that ``lr`` and ``weight_decay`` mean the same for both (Liu et al.,
    2025, "Muon is scalable for LLM training"). Of the weights (parameters of two or more
    dimensions, in the model's order) the first and the last, input and output layer, are AdamW's;
    so are convolutions, which are no matrices. Raises ValueError when no hidden weight is a matrix.

    momentum, nesterov, ns_steps (Newton-Schulz iterations) are Muon's; betas are AdamW's.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        # `momentum` and `betas` in every group: OneCycleLR may set them in each.
        shared = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas}
        super().__init__(params, shared)
        hidden = [p for group in self.param_groups for p in group["params"] if p.ndim > 1][1:-1]
        matrices = {id(p) for p in hidden if p.ndim == 2}
        if hidden and not matrices:
            raise ValueError("Muon: no hidden layer of this model is linear; use AdamW")
        of_muon, of_adamw = [], []
        for group in self.param_groups:
            ours, others = _partition(group["params"], lambda p: id(p) in matrices)
            of_muon += [{**group, "params": ours, "muon": True}] if ours else []
            of_adamw += [{**group, "params": others, "muon": False}] if others else []
        self._inner: list[torch.optim.Optimizer] = []
        if of_muon:
            self._inner.append(
                torch.optim.Muon(
                    of_muon,
                    lr=lr,
                    weight_decay=weight_decay,
                    momentum=momentum,
                    nesterov=nesterov,
                    ns_steps=ns_steps,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if of_adamw:
            self._inner.append(
                torch.optim.AdamW(of_adamw, lr=lr, weight_decay=weight_decay, betas=betas)
            )
        self.param_groups = [group for inner in self._inner for group in inner.param_groups]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter from its gradient."""
        for inner in self._inner:
            is_muon = isinstance(inner, torch.optim.Muon)
            # Groups and state are this optimizer's own, and new objects after load_state_dict.
            inner.param_groups = [g for g in self.param_groups if g["muon"] == is_muon]
            inner.state = self.state
            inner.step()


def _partition(
    parameters: Iterable[Tensor], belongs: Callable[[Tensor], bool]
) -> tuple[list[Tensor], list[Tensor]]:
    yes: list[Tensor] = []
    no: list[Tensor] = []
    for parameter in parameters:
        (yes if belongs(parameter) else no).append(parameter)
    return yes, no
