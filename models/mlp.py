"""The multilayer perceptron."""

import itertools

import torch
from torch import Tensor, nn

from models.initialise import initialise


class MLP(nn.Module):
    """Fully connected layers with ReLU between them (Rumelhart et al., 1986, with sigmoids).

    Input (B, in_channels, H, W) float32 with input_size = [H, W]; output (B, num_classes) logits.
    Dropout follows each hidden layer. Kaiming initialisation.
    Raises ValueError for a width below 1 or an input_size that is not two sizes.

    hidden: The width of each hidden layer, from the input on; [] makes it softmax regression.
    dropout: The probability that a hidden unit is set to 0 in training, 0-1.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        input_size: list[int],
        hidden: list[int] = [512, 256],  # noqa: B006 (only read)
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(input_size) != 2:
            raise ValueError(f"input_size must be [height, width], not {input_size}")
        if min(hidden, default=1) < 1:
            raise ValueError(f"hidden must hold widths of at least 1, not {hidden}")
        height, width = input_size
        widths = [in_channels * height * width, *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
        initialise(self, "kaiming")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_channels, H, W)."""
        logits: Tensor = self.layers(torch.flatten(images, 1))
        return logits
