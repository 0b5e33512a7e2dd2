"""Arguments for models of torchvision and timm, which neither library checks to the end."""

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from torchvision.ops import StochasticDepth

# Stochastic depth (Huang et al., 2016, "Deep networks with stochastic depth"): the probability that
# an image passes the last residual block by, in training; that of earlier ones is in proportion.
DEPTH = {"torchvision": "stochastic_depth_prob", "timm": "drop_path_rate"}
# What the builders of MobileNetV3 take beside what its class does.
BUILDERS_OWN = frozenset({"width_mult", "reduced_tail", "dilated"})


def built(
    library: str, name: str, build: Callable[..., nn.Module], arguments: Mapping[str, Any]
) -> nn.Module:
    """The model that ``build`` makes of ``arguments``.

    Raises ValueError for an argument that the model does not take, also where its class would
    swallow it, and for a rate of stochastic depth that is none.
    """
    rate = arguments.get(DEPTH[library], 0.0)
    if type(rate) not in (int, float) or not 0 <= rate < 1:
        message = f"must be a probability of 0 or more and below 1, but is {rate}"
        raise ValueError(f"{library}/{name}: {DEPTH[library]} {message}")
    try:
        model = build(**arguments)
    except TypeError as error:
        if "multiple values" in str(error) and DEPTH[library] in arguments:
            # Swin's and MaxViT's builders have a rate of their own, and take no other.
            model = build(**without_depth(library, arguments))
            return with_depth(model, rate)
        word = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        advice = _advice(library, word[1], _known(build)) if word else ""
        raise ValueError(f"{library}/{name}: {error}{advice}") from None
    known = inspect.signature(type(model)).parameters
    if library == "torchvision" and any(p.kind == p.VAR_KEYWORD for p in known.values()):
        for argument in arguments.keys() - known.keys() - BUILDERS_OWN:
            advice = _advice(library, argument, known)
            raise ValueError(f"{library}/{name} takes no argument '{argument}'{advice}")
    return model


def without_depth(library: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments but the rate of stochastic depth, which changes no weight."""
    return {key: value for key, value in arguments.items() if key != DEPTH[library]}


def with_depth(model: nn.Module, rate: float) -> nn.Module:
    """Give the model's last block this rate of stochastic depth, and earlier ones in proportion."""
    layers = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    largest = max(layer.p for layer in layers)
    for layer in layers:
        layer.p = layer.p / largest * rate
    return model


def _known(build: Callable[..., nn.Module]) -> Collection[str]:
    """What the model's class takes; nothing where that can't be had without building it."""
    try:
        with torch.device("meta"):
            return inspect.signature(type(build())).parameters
    except Exception:  # a model that needs real memory, or an argument
        return ()


def _advice(library: str, word: str, known: Collection[str]) -> str:
    if word in DEPTH.values() and DEPTH[library] in known:
        return f"; did you mean '{DEPTH[library]}'?"
    if word in DEPTH.values():
        return (
            "; it has no stochastic depth. torchvision's convnext, efficientnet, maxvit and swin "
            f"have ({DEPTH['torchvision']}), and most of timm's models ({DEPTH['timm']})"
        )
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
