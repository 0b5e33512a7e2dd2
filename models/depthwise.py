"""Depthwise convolutions whose gradient in half precision a CPU computes slowly."""

import torch
from torch import Tensor, nn


def keep_depthwise_float32(model: nn.Module) -> None:
    """Let such layers compute in float32 in training under a CPU's autocast, in place.

    oneDNN has fast kernels for the gradient of a depthwise convolution in float32. In bf16 its
    general ones are chosen where the stride is above 1 or the kernel is larger than 3 x 3: up to 20
    times as slow (findings/torch_bf16_depthwise_gradient_slow.sh). Names of parameters stay.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and 1 < module.groups == module.in_channels:
            if max(module.stride) > 1 or max(module.kernel_size) > 3:
                module.__class__ = Float32Conv2d


class Float32Conv2d(nn.Conv2d):
    """A convolution that trains in float32; its output has the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        """The maps (B, C, H, W), as those of ``nn.Conv2d``."""
        if not (self.training and torch.is_autocast_enabled("cpu")):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float()).to(input.dtype)
