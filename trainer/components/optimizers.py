"""Parameter groups (weight decay, learning rate per layer), and Muon together with AdamW."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.layers import layers

_NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Chosen:
    """Parameters with settings of their own. A parameter belongs to the first that names it.

    settings are arguments of the optimizer, or ``lr_scale``: a factor on the learning rate that the
    parameter would have without it. title is for people.
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
    and output layer), convolutions (which are no matrices), and all parameters of fewer than two
    dimensions. Raises ValueError if there are hidden weights, and none is a matrix.

    lr: The learning rate of both, in AdamW's size.
    weight_decay: The share, times lr, by which an update shrinks each weight (decoupled, as AdamW).
    momentum: Muon's decay of the moving mean of gradients, 0 or more, less than 1.
    nesterov: Look a step ahead with Muon's momentum (Nesterov).
    ns_steps: The number of Newton-Schulz iterations, which make Muon's update orthogonal.
    betas: AdamW's decay of the moving means of gradient and squared gradient, 0 or more, below 1.
    in_order: The parameters in the model's order; needed if the groups have another order.
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
        in_order: Sequence[Tensor] | None = None,
    ) -> None:
        # Every group has `momentum` and `betas`, because OneCycleLR may set them in each.
        common: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, {**common, "momentum": momentum, "betas": betas})
        every = [p for group in self.param_groups for p in group["params"]]
        hidden = [p for p in in_order or every if p.ndim > 1][1:-1]
        matrices = {id(p) for p in hidden if p.ndim == 2}
        if hidden and not matrices:
            raise ValueError("Muon: no hidden layer of this model is linear; use AdamW")
        of_muon, of_adamw = [], []
        for group in self.param_groups:
            ours = [p for p in group["params"] if id(p) in matrices]
            others = [p for p in group["params"] if id(p) not in matrices]
            of_muon += [{**group, "params": ours, "muon": True}] if ours else []
            of_adamw += [{**group, "params": others, "muon": False}] if others else []
        self._inner: list[torch.optim.Optimizer] = []
        if of_muon:
            own: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
            muon = torch.optim.Muon(of_muon, **common, **own, adjust_lr_fn="match_rms_adamw")
            self._inner.append(muon)
        if of_adamw:
            self._inner.append(torch.optim.AdamW(of_adamw, **common, betas=betas))
        self.param_groups = [group for inner in self._inner for group in inner.param_groups]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter from its gradient."""
        for inner in self._inner:
            is_muon = isinstance(inner, torch.optim.Muon)
            # load_state_dict replaces this optimizer's groups and state, so pass them on each time.
            inner.param_groups = [g for g in self.param_groups if g["muon"] == is_muon]
            inner.state = self.state
            inner.step()
