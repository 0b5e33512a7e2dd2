"""Initial weights of a model."""

import math

from torch import nn
from torch.nn.modules.conv import _ConvNd

from models import INITIALISATIONS


def initialise(model: nn.Module, scheme: str) -> None:
    """Initialise the weights of every convolution and linear layer, in place; biases become 0.

    "xavier": uniform, variance 2 / (fan_in + fan_out) (Glorot & Bengio, 2010).
    "kaiming": normal, variance 2 / fan_in, for ReLU (He et al., 2015).
    "normal": normal, standard deviation 0.01 (Krizhevsky et al., 2012).
    "orthogonal": orthogonal rows or columns (Saxe et al., 2014), times sqrt(2) for ReLU.
    Other parameters (norm layers, embeddings) do not change. Raises ValueError for another scheme.
    """
    if scheme not in INITIALISATIONS:
        raise ValueError(f"init must be one of {list(INITIALISATIONS)}, not {scheme!r}")
    for layer in model.modules():
        if not isinstance(layer, nn.Linear | _ConvNd) or layer.weight.is_meta:
            continue  # a meta tensor has no values, and initialising it imports sympy (0.4 s)
        match scheme:
            case "xavier":
                nn.init.xavier_uniform_(layer.weight)
            case "kaiming":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            case "normal":
                nn.init.normal_(layer.weight, std=0.01)
            case "orthogonal":
                nn.init.orthogonal_(layer.weight, gain=math.sqrt(2))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
