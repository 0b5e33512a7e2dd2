"""Batch norm over the images of several processes, also on a CPU, for which PyTorch has none."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def with_synced_batch_norm(model: nn.Module) -> nn.Module:
    """The model with batch norm layers, in place, whose statistics are those of all processes.

    Parameters, buffers and their names stay. A GPU gets PyTorch's own. Raises ValueError for layers
    of another library that are batch norm and something else that is not known.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    for module in model.modules():
        kind = type(module)
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        has_act = kind not in PLAIN
        if has_act and not (hasattr(module, "drop") and hasattr(module, "act")):
            raise ValueError(f"a layer {kind.__name__} cannot be synchronised")
        if on_cpu:
            module.__class__ = type(kind.__name__, (_Synced, kind), {"has_act": has_act})
        else:
            module.__class__ = _SyncedAct if has_act else nn.SyncBatchNorm
            module.process_group = None  # type: ignore[assignment]
    return model


class _SyncedAct(nn.SyncBatchNorm):
    """For timm's BatchNormAct2d, which has an activation behind it."""

    def forward(self, input: Tensor) -> Tensor:
        """The activation of what batch norm gives."""
        output: Tensor = self.act(self.drop(super().forward(input)))  # type: ignore[operator]
        return output


class _Synced(nn.modules.batchnorm._BatchNorm):
    """Stands before a batch norm's own class among its bases."""

    has_act: bool

    def forward(self, input: Tensor) -> Tensor:
        """While training, each channel loses its mean and variance over all processes."""
        if not self.training:
            own: Tensor = super().forward(input)
            return own
        output: Tensor = self._normalised(input)
        return self.act(self.drop(output)) if self.has_act else output  # type: ignore[operator]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _normalised(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        output, mean, variance, count = _Normalised.apply(input, self.weight, self.bias, self.eps)
        if self.running_mean is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None and self.running_var is not None
                self.num_batches_tracked.add_(1)
                share = self.momentum
                if share is None:  # then it is the mean over all batches
                    share = 1.0 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * (count / (count - 1)), share)
        normalised: Tensor = output
        return normalised


class _Normalised(torch.autograd.Function):
    """Ioffe and Szegedy, 2015, "Batch normalization", algorithm 1, with sums over all processes.

    The gradient of the weights is this process's own, as of every other layer.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [dim for dim in range(input.ndim) if dim != 1]
        # Of each process its mean and variance: a sum of squares would lose digits.
        variances, means = torch.var_mean(input.float(), dims, correction=0)
        own = torch.cat((means, variances, means.new_tensor([input.numel() / input.shape[1]])))
        everyone = own.new_empty(dist.get_world_size() * len(own))
        dist.all_gather_into_tensor(everyone, own)
        sizes = [len(means), len(means), 1]
        means, variances, counts = torch.split(everyone.view(-1, len(own)), sizes, dim=1)
        count = counts.sum()
        if count <= 1:
            raise ValueError("batch norm got one value per channel of all processes together")
        shares = counts / count
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean).square())).sum(0)
        ctx.save_for_backward(input, weight, mean, (variance + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, variance, count)
        output = F.batch_norm(input, mean, variance, weight, bias, training=False, eps=eps)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, scale, count = ctx.saved_tensors
        shape = (1, -1, *[1] * (input.ndim - 2))
        dims = [dim for dim in range(input.ndim) if dim != 1]
        normalised = (input.float() - mean.view(shape)) * scale.view(shape)
        of_bias = gradient.float().sum(dims)
        of_weight = (gradient.float() * normalised).sum(dims)
        sums = torch.cat((of_bias, of_weight))
        dist.all_reduce(sums)
        by_mean, by_scale = (sums / count).view(2, *shape)
        factor = scale if weight is None else scale * weight.float()
        of_input = (gradient.float() - by_mean - normalised * by_scale) * factor.view(shape)
        needs = ctx.needs_input_grad
        return (
            of_input.to(input.dtype) if needs[0] else None,
            of_weight.to(weight.dtype) if needs[1] else None,
            of_bias.to(weight.dtype) if needs[2] else None,
            None,
        )
