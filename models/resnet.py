"""ResNet, the residual networks of torchvision, with a first layer for small images."""

from typing import Literal

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

# The paper's table 1: depth: (kind of block, the number of blocks of each size)
BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
}


class ResNet(torchvision.models.ResNet):  # type: ignore[misc]
    """ResNet (He et al., 2015, "Deep residual learning for image recognition", table 1).

    variant "imagenet": torchvision's network; input (B, in_channels, 224, 224) float32.
    variant "cifar": the same blocks for (B, in_channels, 32, 32): the first convolution is 3 x 3
    with stride 1, and no pooling follows. It is in common use; the paper's own networks for CIFAR
    are narrower. Output (B, num_classes) logits. Raises ValueError for another depth or variant.
    Parameters have the names and shapes of torchvision's, so its weights load (but for ``conv1`` of
    "cifar"). Deviation: strides of depth 50 stand in the 3 x 3 convolutions, as torchvision has it.

    depth: The number of layers with weights: 18, 34 or 50.
    variant: imagenet is the paper's network, for 224 x 224 pixels; cifar is for 32 x 32, with a
        first convolution of 3 x 3 and no pooling after it.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        depth: Literal[18, 34, 50] = 18,
        variant: Literal["imagenet", "cifar"] = "imagenet",
    ) -> None:
        if depth not in BLOCKS:
            raise ValueError(f"depth must be one of {list(BLOCKS)}, not {depth}")
        if variant not in ("imagenet", "cifar"):
            raise ValueError(f"variant must be one of ['imagenet', 'cifar'], not {variant!r}")
        super().__init__(*BLOCKS[depth], num_classes=num_classes)
        kernel, stride = (7, 2) if variant == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(in_channels, 64, kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        if variant == "cifar":
            self.maxpool = nn.Identity()
