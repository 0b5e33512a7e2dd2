"""VGG, the networks of 3 x 3 convolutions."""

from typing import Literal

import torch
from torch import Tensor, nn

from models.initialise import initialise

# The paper's table 1, columns A, B, D and E: the number of 3 x 3 convolutions in each block.
CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
CHANNELS = (64, 128, 256, 512, 512)

# variant: (side of the last feature map, width of the hidden layers)
VARIANTS = {"imagenet": (7, 4096), "cifar": (1, 512)}


class VGG(nn.Module):
    """VGG (Simonyan & Zisserman, 2014, "Very deep convolutional networks", table 1, A, B, D and E).

    variant "imagenet": the paper's network; input (B, in_channels, 224, 224) float32.
    variant "cifar": the same convolutions for (B, in_channels, 32, 32); hidden layers 512 wide.
    Output (B, num_classes) logits. Raises ValueError for another depth or variant.
    Parameters have the names and shapes of torchvision's, so its weights load.
    Deviations: Kaiming initialisation (the paper started deep networks from trained shallow ones);
    ``batch_norm`` is newer than the paper.

    depth: The number of layers with weights: 11, 13, 16 or 19 (the paper's columns A, B, D and E).
    batch_norm: Add batch normalisation after each convolution; it needs batches of 16 or more.
    variant: imagenet is the paper's network, for 224 x 224 pixels; cifar is for 32 x 32, with
        hidden layers 512 wide.
    dropout: The probability that a unit of a hidden layer is set to 0 in training, 0-1.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        depth: Literal[11, 13, 16, 19] = 16,
        batch_norm: bool = False,
        variant: Literal["imagenet", "cifar"] = "imagenet",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"depth must be one of {list(CONVOLUTIONS)}, not {depth}")
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {list(VARIANTS)}, not {variant!r}")
        side, hidden = VARIANTS[variant]

        layers: list[nn.Module] = []
        channels = in_channels
        for count, width in zip(CONVOLUTIONS[depth], CHANNELS, strict=True):
            for _ in range(count):
                layers.append(nn.Conv2d(channels, width, kernel_size=3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU())
                channels = width
            layers.append(nn.MaxPool2d(2))  # each block halves the side: 224 -> 7, 32 -> 1
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512 * side * side, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip
        initialise(self, "kaiming")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_channels, H, W)."""
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits
