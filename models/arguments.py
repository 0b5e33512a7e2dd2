"""Check the arguments of torchvision and timm models: the libraries check only some of them."""

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from torchvision.ops.stochastic_depth import StochasticDepth

# The argument for stochastic depth (Huang et al., 2016, "Deep networks with stochastic depth"): the
# probability that training skips the last residual block; for earlier blocks it grows with depth.
DEPTH = {"torchvision": "stochastic_depth_prob", "timm": "drop_path_rate"}
# Whole numbers above these would build for minutes, or take all memory.
MOST, MOST_LAYERS = 65_536, 1_000
COUNTS_LAYERS = re.compile("depth|layer|block|repeat|stage")
# Arguments that MobileNetV3's builders take and its class does not.
BUILDER_ARGUMENTS = frozenset({"width_mult", "reduced_tail", "dilated"})


def build_checked(
    library: str, name: str, build: Callable[..., nn.Module], arguments: Mapping[str, Any]
) -> nn.Module:
    """The model that ``build(**arguments)`` returns.

    Raises ValueError for an argument that the model does not take, even if its class would ignore
    it silently, for a stochastic depth rate outside [0, 1), and for whole numbers beyond reason.
    """
    for argument, value in arguments.items():
        most = MOST_LAYERS if COUNTS_LAYERS.search(argument) else MOST
        numbers = value if isinstance(value, list) else [value]
        if any(type(number) is int and number > most for number in numbers):
            raise ValueError(f"{library}/{name}: {argument} must be at most {most:,}, is {value}")
    rate = arguments.get(DEPTH[library], 0.0)
    if type(rate) not in (int, float) or not 0 <= rate < 1:
        message = f"must be a probability of 0 or more and below 1, but is {rate}"
        raise ValueError(f"{library}/{name}: {DEPTH[library]} {message}")
    try:
        model = build(**arguments)
    except TypeError as error:
        if "multiple values" in str(error) and DEPTH[library] in arguments:
            # The builders of Swin and MaxViT pass a fixed rate themselves.
            model = build(**without_depth(library, arguments))
            return with_depth(model, rate)
        word = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        advice = _advice(library, word[1], _known(build)) if word else ""
        raise ValueError(f"{library}/{name}: {error}{advice}") from None
    known = inspect.signature(type(model)).parameters
    if library == "torchvision" and any(p.kind == p.VAR_KEYWORD for p in known.values()):
        for argument in arguments.keys() - known.keys() - BUILDER_ARGUMENTS:
            advice = _advice(library, argument, known)
            raise ValueError(f"{library}/{name} takes no argument '{argument}'{advice}")
    return model


def without_depth(library: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without the stochastic depth rate, which changes no weight."""
    return {key: value for key, value in arguments.items() if key != DEPTH[library]}


def with_depth(model: nn.Module, rate: float) -> nn.Module:
    """Scale the stochastic depth rates, in place, so that the last block's is ``rate``."""
    layers = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    largest = max(layer.p for layer in layers)
    for layer in layers:
        layer.p = layer.p / largest * rate
    return model


def _known(build: Callable[..., nn.Module]) -> Collection[str]:
    """Arguments of the model's class; empty if the model cannot be built on the meta device."""
    try:
        with torch.device("meta"):
            return inspect.signature(type(build())).parameters
    except Exception:  # the model needs real memory, or an argument
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
