"""Parameter groups (weight decay, learning rate per layer), and Muon with AdamW or SGD."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.layers import layers

_NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Chosen:
    """Parameters with settings of their own. A parameter belongs to the first that names it.

    settings are arguments of the optimizer, or ``lr_scale``: a factor on the learning rate that the
    parameter would have without it, or ``until``, for the schedule. title is for people.
    """

    title: str
    names: Collection[str]
    settings: Mapping[str, Any]


def parameter_groups(
    model: nn.Module,
    no_decay: bool,
    lr: float = 1.0,
    layer_decay: float | None = None,
    chosen: Sequence[Chosen] = (),
) -> list[dict[str, Any]]:
    """The model's trainable parameters, as groups for an optimizer with learning rate ``lr``.

    ``no_decay``: norm layers and all parameters of at most one dimension (biases, scales) get
    weight_decay 0, also those in ``chosen``. ``layer_decay``: the head has ``lr``, and each of the
    model's ``layers`` below has the rate of the layer above it times this factor (Clark et al.,
    2020, "ELECTRA"; Bao et al., 2021, "BEiT"). A rate that ``chosen`` sets by ``lr`` stays.

    Groups outside ``chosen`` come first. Within both kinds the order is from the head downwards,
    and groups with weight decay come before those without. With ``layer_decay`` or ``chosen`` each
    group has a "name" for people. Raises ValueError if all parameters are frozen.
    """
    # named_parameters lists a shared parameter once.
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("every parameter of the model is frozen: there is nothing to train")
    norms = (m for m in model.modules() if isinstance(m, _NORM_LAYERS))
    of_norms = {id(p) for norm in norms for p in norm.parameters(recurse=False)}
    decay = 1.0 if layer_decay is None else layer_decay
    found = layers(model) if decay != 1 else []
    above = {name: number for number, layer in enumerate(reversed(found)) for name in layer}
    groups: dict[tuple[int, int, bool], list[Tensor]] = {}
    for name, p in trainable:
        number = next((i for i, group in enumerate(chosen) if name in group.names), -1)
        fixed = number >= 0 and "lr" in chosen[number].settings
        spared = no_decay and (p.ndim <= 1 or id(p) in of_norms)
        groups.setdefault((number, 0 if fixed else above.get(name, 0), spared), []).append(p)
    result: list[dict[str, Any]] = []
    for (number, depth, spared), parameters in sorted(groups.items(), key=lambda item: item[0]):
        settings = dict(chosen[number].settings) if number >= 0 else {}
        title = chosen[number].title if number >= 0 else "the rest" if chosen else ""
        layer = f"layer {len(found) - depth}" if found and "lr" not in settings else ""
        scale = settings.pop("lr_scale", 1.0) * decay**depth
        if scale != 1:
            settings["lr"] = lr * scale
        if spared:
            settings["weight_decay"] = 0.0
        if title or layer:
            words = title, layer, "no decay" if spared else ""
            settings["name"] = ", ".join(filter(None, words))
        result.append({"params": parameters, **settings})
    return result


class Muon(torch.optim.Optimizer):
    """Muon on the model's hidden matrices and AdamW on everything else, with one learning rate.

    Jordan et al., 2024, "Muon: an optimizer for hidden layers in neural networks". The update is
    scaled to AdamW's size, so that ``lr`` and ``weight_decay`` mean the same for both (Liu et al.,
    2025, "Muon is scalable for LLM training"). AdamW updates the first and the last weight (input
    and output layer), convolutions (unless ``filters``), and all parameters of fewer than two
    dimensions. Raises ValueError if there are hidden weights, and Muon can take none, also because
    they are frozen.

    lr: The learning rate of both, in AdamW's size, unless rest or adjust_lr_fn differ.
    weight_decay: The share, times lr, by which an update shrinks each weight (decoupled, as AdamW);
        SGD as rest adds it to the gradient.
    momentum: Muon's decay of the moving mean of gradients, 0 or more, less than 1.
    nesterov: Look a step ahead with Muon's momentum (Nesterov).
    ns_steps: The number of Newton-Schulz iterations, which make Muon's update orthogonal.
    betas: AdamW's decay of the moving means of gradient and squared gradient, 0 or more, below 1.
    filters: Take convolutions too, each as a matrix of one row per filter; a frozen first layer
        then counts as the first.
    normalise: Scale the weights before each update so that the mean square of their rows' norms is
        1, as airbench does; they need no weight decay then.
    adjust_lr_fn: The size of Muon's update, as in torch.optim.Muon: that of AdamW, or original, an
        orthogonal matrix times sqrt(max(1, rows / columns)).
    rest: The optimizer of all other parameters; SGD has the momentum and nesterov given here.
    in_order: The model's parameters in its order; needed if the groups have another order.
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
        filters: bool = False,
        normalise: bool = False,
        adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        rest: Literal["AdamW", "SGD"] = "AdamW",
        in_order: Sequence[Tensor] | None = None,
    ) -> None:
        # Every group has `momentum` and `betas`, because OneCycleLR may set them in each.
        common: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, {**common, "momentum": momentum, "betas": betas})
        every = [p for group in self.param_groups for p in group["params"]]
        ordered = [p for p in in_order or every if filters or p.requires_grad]
        hidden = [p for p in ordered if p.ndim > 1][1:-1]
        matrices = {id(p) for p in hidden if p.ndim == 2 or (filters and p.ndim > 3)}
        if hidden and not matrices:
            what, mended = ("matrix", "") if filters else ("linear", ", or filters: true")
            raise ValueError(f"Muon: no hidden layer of this model is {what}; use AdamW{mended}")
        of_muon, of_rest = [], []
        for group in self.param_groups:
            ours = [p for p in group["params"] if id(p) in matrices]
            others = [p for p in group["params"] if id(p) not in matrices]
            of_muon += [{**group, "params": ours, "muon": True}] if ours else []
            of_rest += [{**group, "params": others, "muon": False}] if others else []
        if matrices and not of_muon:
            raise ValueError("Muon: every hidden layer that it could take is frozen; use AdamW")
        self._inner: list[torch.optim.Optimizer] = []
        self._normalise = normalise
        if of_muon:
            own: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
            as_matrices = [
                {**g, "params": [p.detach().flatten(1) for p in g["params"]]} for g in of_muon
            ]
            self._inner.append(
                torch.optim.Muon(as_matrices, **common, **own, adjust_lr_fn=adjust_lr_fn)
            )
            for built, group in zip(self._inner[0].param_groups, of_muon, strict=True):
                built["params"] = group["params"]
        if of_rest and rest == "SGD":
            nested = nesterov and momentum > 0
            sgd = torch.optim.SGD(of_rest, **common, momentum=momentum, nesterov=nested)
            self._inner.append(sgd)
        elif of_rest:
            self._inner.append(torch.optim.AdamW(of_rest, **common, betas=betas))
        self.param_groups = [group for inner in self._inner for group in inner.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter from its gradient."""
        for inner in self._inner:
            is_muon = isinstance(inner, torch.optim.Muon)
            # load_state_dict replaces this optimizer's groups and state, so pass them on each time.
            groups = [g for g in self.param_groups if g["muon"] == is_muon]
            if is_muon:
                self._step_matrices(inner, groups)
                continue
            inner.param_groups, inner.state = groups, self.state
            inner.step()

    def _step_matrices(
        self, muon: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]
    ) -> None:
        """A step of torch's Muon, which takes matrices only: (rows, the other dimensions as one).

        The state belongs to the parameters, and its momentum has the order of the contiguous
        weight. So a run can go on with another memory layout.
        """
        moved = [p for group in groups for p in group["params"] if p.grad is not None]
        matrices = {p: p.detach().flatten(1) for p in moved}  # of channels-last weights a copy
        for p, matrix in matrices.items():
            if self._normalise:
                matrix.mul_(len(matrix) ** 0.5 / matrix.norm().clamp(min=1e-7))
            matrix.grad = p.grad.flatten(1)
        muon.state = defaultdict(dict, {matrices[p]: self.state[p] for p in moved})
        muon.param_groups = [
            {**group, "params": [matrices[p] for p in group["params"] if p in matrices]}
            for group in groups
        ]
        muon.step()
        for p, matrix in matrices.items():
            if matrix.data_ptr() != p.data_ptr():
                p.copy_(matrix.view(p.shape))
