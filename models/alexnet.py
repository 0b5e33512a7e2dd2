"""AlexNet, the network that won ImageNet 2012, and the same eight layers for 32 x 32 images."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.initialise import initialise

# variant: (kernel and stride of the first convolution, side of the last map, hidden width)
VARIANTS = {"imagenet": (11, 4, 6, 4096), "cifar": (5, 1, 3, 1024)}


class AlexNet(nn.Module):
    """AlexNet (Krizhevsky et al., 2012, "ImageNet classification with deep convolutional nets").

    variant "imagenet": the paper's network for (B, in_channels, 224, 224) float32, or 227 x 227.
    variant "cifar": the same layers for (B, in_channels, 32, 32); only the first convolution
    (5 x 5, stride 1) and the hidden layers (1024 wide) are smaller. No paper has it.
    Output (B, num_classes) logits. Raises ValueError for another variant.
    Deviation: Kaiming initialisation, not N(0, 0.01) with some biases at 1.
    ``groups=2`` stands for the paper's split of a convolution over two GPUs.

    variant: imagenet is the paper's network, for 224 x 224 pixels; cifar is for 32 x 32, with
        hidden layers 1024 wide.
    dropout: The probability that a unit of a hidden layer is set to 0 in training, 0-1.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        variant: Literal["imagenet", "cifar"] = "imagenet",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {list(VARIANTS)}, not {variant!r}")
        kernel, stride, side, hidden = VARIANTS[variant]
        self.features = nn.Sequential(                                         # imagenet  cifar
            nn.Conv2d(in_channels, 96, kernel, stride, padding=2), nn.ReLU(),  # 55 x 55   32 x 32
            _response_norm(), nn.MaxPool2d(3, stride=2),                       # 27 x 27   15 x 15
            nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2), nn.ReLU(),
            _response_norm(), nn.MaxPool2d(3, stride=2),                       # 13 x 13   7 x 7
            nn.Conv2d(256, 384, kernel_size=3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=2), nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1, groups=2), nn.ReLU(),
            nn.MaxPool2d(3, stride=2),                                         # 6 x 6     3 x 3
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(256 * side * side, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip
        initialise(self, "kaiming")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_channels, H, W)."""
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


class ResponseNorm(nn.LocalResponseNorm):
    """``torch.nn.LocalResponseNorm``, with the same bits and 1.7 times as fast in channels last.

    Torch takes the mean over neighbouring channels by a pooling that first copies the images to
    channels first. Here the channels of a pixel are the row that is pooled. A half-precision input
    gives a half-precision output, computed in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The normalised maps (B, C, H, W), with the dtype and layout of ``input``."""
        maps = input.float()
        if input.is_contiguous(memory_format=torch.channels_last):
            rows = (maps * maps).movedim(1, -1)  # (B, H, W, C)
            pooled = F.avg_pool2d(rows, (1, self.size), stride=1, padding=(0, self.size // 2))
            scale = pooled.movedim(-1, 1).mul(self.alpha).add(self.k).pow(self.beta)
            return (maps / scale).to(input.dtype)
        normalised: Tensor = super().forward(maps)
        return normalised.to(input.dtype)


def _response_norm() -> ResponseNorm:
    # The paper's section 3.3: n = 5, alpha = 1e-4, beta = 0.75, k = 2. Torch divides alpha by n.
    return ResponseNorm(size=5, alpha=5 * 1e-4, beta=0.75, k=2.0)
