"""A small network of 3 x 3 convolutions for fast training on small images."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import gelu, max_pool2d


class CompactResNet(nn.Module):
    """Keller Jordan's airbench network, 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU".

    A 2 x 2 convolution, ``whiten``, with twice as many filters as a patch has values: ``model.init:
    whiten`` fills it. Then ``groups``: each halves the side. The largest value of each map goes to
    ``head``, which has no bias. Input (B, in_channels, H, W) float32 with H and W of 9 or more,
    best 24-40; output (B, num_classes) logits. Batch norm trains biases only; its scales are 1.
    Deviations: batch norm's eps is PyTorch's, and the last pooling takes maps of any size.
    Raises ValueError for another depth, for no width, and for a momentum outside (0, 1].

    widths: The number of filters in each group; the paper has [64, 256, 256], and 128, 384, 512 for
        95 % and 128, 512, 512 for 96 %.
    depth: The convolutions in a group, 2 or 3; the third has a residual connection.
    batch_norm_momentum: The share of the new batch in batch norm's statistics, 0-1; a run of few
        steps needs a large one.
    scale: The factor on the logits; a small one makes the first predictions uncertain.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        widths: Sequence[int] = (64, 256, 256),
        depth: Literal[2, 3] = 2,
        batch_norm_momentum: float = 0.4,
        scale: float = 1 / 9,
    ) -> None:
        super().__init__()
        if depth not in (2, 3):
            raise ValueError(f"depth must be 2 or 3, not {depth}")
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must be one number or more, each at least 1, not {widths}")
        if not 0 < batch_norm_momentum <= 1:
            message = f"must be more than 0 and at most 1, not {batch_norm_momentum}"
            raise ValueError(f"batch_norm_momentum {message}")
        inputs = [2 * in_channels * 2 * 2, *widths]
        self.whiten = nn.Conv2d(in_channels, inputs[0], kernel_size=2)
        self.groups = nn.Sequential(
            *(
                Group(channels, width, depth, batch_norm_momentum)
                for channels, width in zip(inputs, widths, strict=False)
            )
        )
        self.head = nn.Linear(inputs[-1], num_classes, bias=False)
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_channels, H, W)."""
        maps = self.groups(gelu(self.whiten(images)))
        largest = maps.flatten(2).max(2).values  # adaptive_max_pool2d may give other bits on a GPU
        logits: Tensor = self.head(largest) * self.scale
        return logits


class Group(nn.Module):
    """Two or three convolutions with batch norm and GELU; the first one's map is pooled.

    Pooling comes before batch norm and GELU, so these compute only a quarter of the values.
    """

    def __init__(self, in_channels: int, width: int, depth: int, momentum: float) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(in_channels, width), _norm(width, momentum)
        self.conv2, self.norm2 = _convolution(width, width), _norm(width, momentum)
        self.depth = depth
        if depth == 3:
            self.conv3, self.norm3 = _convolution(width, width), _norm(width, momentum)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, width, H // 2, W // 2) of maps (B, in_channels, H, W)."""
        pooled = gelu(self.norm1(max_pool2d(self.conv1(maps), 2)))
        maps = gelu(self.norm2(self.conv2(pooled)))
        return maps if self.depth == 2 else gelu(self.norm3(self.conv3(maps)) + pooled)


def _convolution(in_channels: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False)


def _norm(width: int, momentum: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, momentum=momentum)
    norm.weight.requires_grad_(False)
    return norm
