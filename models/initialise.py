"""Initial weights of a model."""

import math
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeGuard

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from models import INITIALISATIONS
from models.freeze import matching
from models.whiten import whiten

Batches = Callable[[], Iterable[Tensor]]


def initialise(
    model: nn.Module, ways: str | Mapping[str, str], batches: Batches | None = None
) -> str:
    """Initialise convolutions and linear layers, in place; returns what to tell of it, or "".

    ways: one way for every layer, or a way for each shell pattern of layer names; the first pattern
    that matches a layer counts, and a layer without a match does not change.
    "xavier": uniform, variance 2 / (fan_in + fan_out) (Glorot & Bengio, 2010).
    "kaiming": normal, variance 2 / fan_in, for ReLU (He et al., 2015).
    "normal": normal, standard deviation 0.01 (Krizhevsky et al., 2012).
    "orthogonal": orthogonal rows or columns (Saxe et al., 2014), times sqrt(2) for ReLU.
    "dirac": the first filters of a convolution pass its input on (Zagoruyko & Komodakis, 2017); the
    other filters and linear layers do not change.
    "whiten": filters that decorrelate the pixels of ``batches`` of images, in the first layer only
    (see ``whiten``). Without batches nothing is whitened, as if the weights are loaded afterwards.
    The biases of layers with another way than their own become 0; other parameters (norm layers,
    embeddings) do not change. Raises ValueError for another way, for a pattern that is the first
    match of no layer, for dirac without a convolution, and for a layer that cannot be whitened.
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | _ConvNd)}
    if unknown := [way for way in _ways(ways) if way not in INITIALISATIONS]:
        raise ValueError(f"init must be one of {list(INITIALISATIONS)}, not {unknown[0]!r}")
    first = next(iter(found), "")
    if ways == "whiten":
        ways = {first: "whiten"}
    patterns = ways if isinstance(ways, Mapping) else {"*": ways}
    matching(list(found), list(patterns), "layer")
    firsts = {n: next((p for p in patterns if fnmatchcase(n, p)), "") for n in found}
    _require_effect(patterns, {p: [found[n] for n in found if firsts[n] == p] for p in patterns})
    told = ""
    for name, layer in found.items():
        way = patterns.get(firsts[name], "")
        if way == "whiten":
            if name != first or not isinstance(layer, nn.Conv2d):
                raise ValueError(f"whiten is for a first layer that is a convolution, not {name!r}")
            told = f"{name}: {whiten(layer, batches())}" if batches is not None else ""
        elif way and not layer.weight.is_meta:  # no values; initialising imports sympy (0.4 s)
            _fill(layer, way)
        if way and layer.bias is not None and (way != "dirac" or _passes_on(layer)):
            layer.bias.data.zero_()
    return told


def _ways(ways: str | Mapping[str, str]) -> Iterable[str]:
    return [ways] if isinstance(ways, str) else ways.values()


def _require_effect(patterns: Mapping[str, str], taken: Mapping[str, list[nn.Module]]) -> None:
    """Raise ValueError for a pattern that changes none of the layers of which it is the first."""
    for pattern, way in patterns.items():
        if not taken[pattern]:
            raise ValueError(
                f"all that {pattern!r} matches is matched before it; let the narrower one come "
                "first"
            )
        if way == "dirac" and not any(map(_passes_on, taken[pattern])):
            raise ValueError(f"dirac is for convolutions, and {pattern!r} matches none")


def _passes_on(layer: nn.Module) -> TypeGuard[_ConvNd]:
    """Whether ``dirac`` has an effect on a layer."""
    return isinstance(layer, _ConvNd) and not layer.transposed


def _fill(layer: nn.Linear | _ConvNd, way: str) -> None:
    match way:
        case "xavier":
            nn.init.xavier_uniform_(layer.weight)
        case "kaiming":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        case "normal":
            nn.init.normal_(layer.weight, std=0.01)
        case "orthogonal":
            nn.init.orthogonal_(layer.weight, gain=math.sqrt(2))
        case "dirac" if _passes_on(layer):
            inputs = layer.in_channels // layer.groups
            for filters in layer.weight.data.chunk(layer.groups):
                nn.init.dirac_(filters[:inputs])
