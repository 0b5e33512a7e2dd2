"""A model of which each process keeps a part: FSDP, for models too large to be kept whole by each.

Weights, gradients and the optimizer's state are cut along their first dimension; a block's weights
are put together where it is computed. Every forward, also one that only judges, is done by all
processes together.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.config import Config
from trainer.errors import ConfigError, Fault

# What works on rows and columns of a weight, not on each number by itself.
OF_WHOLE_WEIGHTS = ("Adafactor", "Muon")
ELEMENTWISE_FUSED = ("Adam", "AdamW")  # whose fused steps PyTorch can do on parts
LARGE, SMALL = 1 / 8, 1 / 100  # of a model's parameters: what is cut further, what is no block


def check_sharding(config: Config) -> None:
    """Raise ConfigError for settings that do not go with ``train.parallel: fsdp``."""
    faults: list[Fault] = []
    if config.optimizer.name in OF_WHOLE_WEIGHTS:
        message = f"{config.optimizer.name} needs whole weights, which train.parallel=fsdp cuts"
        faults.append(config.fault("optimizer.name", f"{message}; use AdamW or train.parallel=ddp"))
    if config.optimizer.arguments.get("fused") and config.optimizer.name not in ELEMENTWISE_FUSED:
        message = "PyTorch has no fused step of it for train.parallel=fsdp; leave it out"
        faults.append(config.fault("optimizer.fused", message))
    if config.train.precision == "fp16":
        message = "fp16 does not go with train.parallel=fsdp; use bf16"
        faults.append(config.fault("train.precision", message))
    if config.train.compile:
        message = "does not go with train.parallel=fsdp; leave it out, or use train.parallel=ddp"
        faults.append(config.fault("train.compile", message))
    if config.average is not None:
        message = "averages whole weights, which train.parallel=fsdp cuts; use train.parallel=ddp"
        faults.append(config.fault("average", message))
    if faults:
        raise ConfigError(faults)


def shard(model: nn.Module, images: Tensor) -> None:
    """Keep this process's part of the model's weights, in place; their names and order stay.

    images (B, C, H, W), on the model's device, are tried to see what its blocks are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for parameter in model.parameters():  # FSDP takes no channels last; images may go on lying so
        parameter.data = parameter.data.contiguous()
    mesh = init_device_mesh(images.device.type, (dist.get_world_size(),))
    for block in blocks(model, images):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def blocks(model: nn.Module, images: Tensor) -> list[nn.Module]:
    """The modules whose weights are put together and let go at once; the rest is the model's.

    Only those that the forward calls once: of others the parent may use the weights itself. What
    gives a view of other numbers is none, for FSDP would not notice what happens to them in place.
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
    uses: dict[int, int] = {}  # in how many places a parameter stands
    for module in calls:
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    total = size(model)
    found: list[nn.Module] = []

    def search(parent: nn.Module) -> bool:
        """Whether a block was found below."""
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
    """How many numbers the parameters of a module are."""
    return sum(parameter.numel() for parameter in module.parameters())


def is_sharded(model: nn.Module) -> bool:
    """Whether each process keeps a part of the model."""
    return hasattr(model, "set_requires_gradient_sync")


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from all processes' parts; all must ask. A plain one as it is."""
    put_together = getattr(tensor, "full_tensor", None)
    return tensor if put_together is None else put_together()


def hand_over(state: Any) -> None:
    """What the others do while the main process makes each tensor of an equal state ``whole``."""
    if isinstance(state, Tensor):
        whole(state)
    elif isinstance(state, dict):
        for item in state.values():
            hand_over(item)
    elif isinstance(state, list | tuple):
        for item in state:
            hand_over(item)


def part_of(full: Tensor, own: Tensor) -> Tensor:
    """This process's part of a ``full`` tensor, as ``own`` is cut; nobody is asked."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(own, DTensor) or full.shape != own.shape:
        return full
    full = full.to(own.device)
    return distribute_tensor(full, own.device_mesh, own.placements, src_data_rank=None)


def model_part(model: nn.Module, content: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a plain model's state_dict what ``model.load_state_dict`` takes; others are left alone."""
    own = model.state_dict()
    return {n: part_of(full, own[n]) if n in own else full for n, full in content.items()}


def optimizer_part(optimizer: torch.optim.Optimizer, content: dict[str, Any]) -> dict[str, Any]:
    """Of a plain optimizer's state_dict what ``optimizer.load_state_dict`` takes."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {
            name: part_of(value, parameters[number]) if isinstance(value, Tensor) else value
            for name, value in kept.items()
        }
        for number, kept in content["state"].items()
    }
    return {**content, "state": state}


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The length of all gradients together, of whose parts each process has its own."""
    own: Any = gradients
    length = nn.utils.get_total_norm([gradient.to_local() for gradient in own])
    square = length.square()
    dist.all_reduce(square)
    return square.sqrt()


def clip(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """``nn.utils.clip_grad_norm_``, which can be told how long gradients are that are cut."""
    gradients: Any = [p.grad for p in parameters if p.grad is not None]
    if not gradients or not hasattr(gradients[0], "to_local"):
        return nn.utils.clip_grad_norm_(parameters, most)
    norm = gradient_norm(gradients)
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.to_local().mul_(factor)
    return norm


def synchronise(model: nn.Module, is_last: bool) -> None:
    """Before a part of a batch: only after the ``is_last`` one gradients are brought together."""
    share_buffers(model)
    of_fsdp: Any = model
    of_fsdp.set_requires_gradient_sync(is_last)


def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers, in one message, as DDP does before a step."""
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    if not buffers:
        return
    together = torch.cat([buffer.flatten().float() for buffer in buffers])
    dist.broadcast(together, src=0)
    values = torch.split(together, [buffer.numel() for buffer in buffers])
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value.view_as(buffer))
