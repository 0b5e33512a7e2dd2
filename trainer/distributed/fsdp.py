"""FSDP: each rank keeps a shard of the model, for models too large for one GPU.

Weights, gradients and optimizer state are split along their first dimension. The weights of a block
are gathered while it is computed. All ranks do every forward pass together.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

ELEMENTWISE_FUSED = ("Adam", "AdamW")  # PyTorch can do their fused steps on shards
# Shares of a model's parameters: a larger module is searched for blocks, a smaller one is no block.
LARGE, SMALL = 1 / 8, 1 / 100


def shard(model: nn.Module, images: Tensor) -> None:
    """Keep only this rank's shard of the model's weights, in place; names and order stay.

    images (B, C, H, W), on the model's device, go through the forward pass that finds the blocks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for parameter in model.parameters():  # FSDP needs contiguous weights; images need not be
        parameter.data = parameter.data.contiguous()
    mesh = init_device_mesh(images.device.type, (dist.get_world_size(),))
    for block in blocks(model, images):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def blocks(model: nn.Module, images: Tensor) -> list[nn.Module]:
    """The modules whose weights are gathered and freed together.

    The forward pass calls each of them exactly once. A module without a call of its own is no
    block, because its parent may use its weights. A module that returns a view is no block, because
    FSDP misses changes in place.
    """
    calls = dict.fromkeys(model.modules(), 0)

    def count(module: nn.Module, _: Any, output: Any) -> None:
        is_view = not isinstance(output, Tensor) or output._is_view()
        calls[module] += 2 if is_view else 1

    handles = [module.register_forward_hook(count) for module in calls]
    was_training = [module.training for module in calls]
    model.eval()(images)
    for module, training in zip(calls, was_training, strict=True):
        module.training = training
    for handle in handles:
        handle.remove()
    uses: dict[int, int] = {}  # id of a parameter -> number of modules that have it
    for module in calls:
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    total = size(model)
    found: list[nn.Module] = []

    def search(parent: nn.Module) -> bool:
        """Add the blocks inside ``parent``; returns whether it has any."""
        number = len(found)
        for child in parent.children():
            if size(child) < SMALL * total or child in found:
                continue
            alone = calls[child] == 1 and all(uses[id(p)] == 1 for p in child.parameters())
            below = size(child) > LARGE * total and search(child)
            if alone and not below:
                found.append(child)
        return len(found) > number

    search(model)
    return found


def size(module: nn.Module) -> int:
    """The number of elements of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank keeps only a shard of the model."""
    return hasattr(model, "set_requires_gradient_sync")


def full(tensor: Tensor) -> Tensor:
    """A tensor gathered from the shards of all ranks, which all call it; a plain one as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def hand_over(state: Any) -> None:
    """Take part in rank 0's calls of ``full``, one for each tensor of an equal ``state``."""
    if isinstance(state, Tensor):
        full(state)
    elif isinstance(state, dict):
        for item in state.values():
            hand_over(item)
    elif isinstance(state, list | tuple):
        for item in state:
            hand_over(item)


def shard_of(tensor: Tensor, own: Tensor) -> Tensor:
    """This rank's shard of a full ``tensor``, cut as ``own`` is, without communication."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(own, DTensor) or tensor.shape != own.shape:
        return tensor
    tensor = tensor.to(own.device)
    return distribute_tensor(tensor, own.device_mesh, own.placements, src_data_rank=None)


def model_shard(model: nn.Module, content: dict[str, Tensor]) -> dict[str, Tensor]:
    """This rank's shard of a plain model's state_dict, for ``model.load_state_dict``."""
    own = model.state_dict()
    return {n: shard_of(t, own[n]) if n in own else t for n, t in content.items()}


def optimizer_shard(optimizer: torch.optim.Optimizer, content: dict[str, Any]) -> dict[str, Any]:
    """This rank's shard of a plain optimizer's state_dict, for ``optimizer.load_state_dict``."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {
            name: shard_of(value, parameters[number]) if isinstance(value, Tensor) else value
            for name, value in kept.items()
        }
        for number, kept in content["state"].items()
    }
    return {**content, "state": state}


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of the full gradient, of which each rank has a shard."""
    own: Any = gradients
    length = nn.utils.get_total_norm([gradient.to_local() for gradient in own])
    square = length.square()
    dist.all_reduce(square)
    return square.sqrt()


def clip(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """``nn.utils.clip_grad_norm_``, also for sharded gradients. Returns the norm before it."""
    gradients: Any = [p.grad for p in parameters if p.grad is not None]
    if not gradients or not hasattr(gradients[0], "to_local"):
        return nn.utils.clip_grad_norm_(parameters, most)
    norm = gradient_norm(gradients)
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.to_local().mul_(factor)
    return norm


def synchronise(model: nn.Module, is_last: bool) -> None:
    """Prepare a micro-batch: gradients are reduced over ranks only after the ``is_last`` one."""
    share_buffers(model)
    of_fsdp: Any = model
    of_fsdp.set_requires_gradient_sync(is_last)


def share_buffers(model: nn.Module) -> None:
    """Give every rank the float buffers of rank 0, in one message. DDP does that before a step."""
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    if not buffers:
        return
    together = torch.cat([buffer.flatten().float() for buffer in buffers])
    dist.broadcast(together, src=0)
    values = torch.split(together, [buffer.numel() for buffer in buffers])
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value.view_as(buffer))
