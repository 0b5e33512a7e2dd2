"""Reads the inside of a model: kernels, feature maps, last features, Grad-CAM.

All functions run the model in eval mode and leave it as it was: modes, buffers, gradients, hooks,
and the random generators that dropout uses.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

OutputHook = Callable[[str, nn.Module, Tensor], Tensor | None]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def first_kernels(model: nn.Module, input_shape: tuple[int, int, int]) -> Tensor | None:
    """Return the weights of the first layer as (N, C, h, w) float on the CPU.

    It is a Conv2d, or a Linear that takes the pixels. Return None for any other model.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            return layer.weight.detach().float().cpu().contiguous()
        if isinstance(layer, nn.Linear):
            if layer.in_features != math.prod(input_shape):
                return None
            return layer.weight.detach().float().cpu().reshape(-1, *input_shape)
    return None


def feature_maps(
    model: nn.Module, inputs: Tensor, channels: int | None = None
) -> dict[str, Tensor]:
    """Return the output maps of each layer for one image (1, C, H, W), in the order of forward.

    name -> (channels, h, w) float on the CPU, for layers without inner layers whose maps have more
    than one pixel. A layer that runs twice appears again as "name (2)". channels: at most so many.
    """
    maps: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, output: Tensor) -> None:
        if any(layer.children()):
            return
        numbered = chain([name], (f"{name} ({turn})" for turn in count(2)))
        key = next(each for each in numbered if each not in maps)
        # A copy: an in-place ReLU may write into the output of the layer before it.
        maps[key] = output[0, :channels].float().cpu().clone()

    with evaluating(model, inputs.device), torch.inference_mode():
        with _outputs_hooked(model, inputs, maps=keep):
            model(inputs)
    return maps


def penultimate(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the last linear layer's input for images (B, C, H, W): (B, F) float on the CPU.

    Without a linear layer it is the last convolution's input, averaged over its positions.
    Raises ValueError if the model has neither.
    """
    read: dict[bool, Tensor] = {}  # key: whether the layer is linear

    def keep(layer: nn.Module, arguments: Any) -> None:
        if arguments and isinstance(arguments[0], Tensor) and len(arguments[0]) == len(inputs):
            read[isinstance(layer, nn.Linear)] = arguments[0]

    with evaluating(model, inputs.device), torch.inference_mode(), ExitStack() as hooks:
        for layer in model.modules():
            if isinstance(layer, (nn.Linear, *_CONVOLUTIONS)):
                hooks.callback(layer.register_forward_pre_hook(keep).remove)
        model(inputs)
        if not read:
            raise ValueError(f"{type(model).__name__} has no linear layer and no convolution")
        features = read[True].flatten(1) if True in read else read[False].flatten(2).mean(2)
        return features.float().cpu().clone()


def grad_cam(model: nn.Module, inputs: Tensor, class_index: int) -> tuple[Tensor, str]:
    """Return where a model finds evidence for a class: (H, W) in 0-1, and the name of the layer.

    inputs: one image (1, C, H, W). Selvaraju et al., 2017, "Grad-CAM", eq. 1 and 2, at the last
    layer whose maps have more than one pixel. The largest value is 1, or 0 if there is no evidence.
    Raises ValueError if there are no such maps, tokens follow them, or no logit depends on them.
    """
    found: list[tuple[str, Tensor, Tensor]] = []
    tokens: list[str] = []

    def keep(name: str, layer: nn.Module, output: Tensor) -> Tensor | None:
        is_block = any(layer.children())
        if found and output is found[-1][2] and is_block and not output._version:
            return None  # the block returns its last layer's output, unchanged
        tokens.clear()
        found.append((name, output, output.clone()))  # the next layer may write into its input
        return found[-1][2]

    def other(name: str, layer: nn.Module, output: Tensor) -> None:
        if output.ndim == 3:
            tokens.append(name)

    name_of_model = type(model).__name__
    with evaluating(model, inputs.device), torch.inference_mode(False), torch.enable_grad():
        # The input gets a gradient too: a frozen model has no other. The second clone is no leaf,
        # so that an in-place layer may write into it.
        images = inputs.detach().clone().requires_grad_().clone()
        with _outputs_hooked(model, images, maps=keep, others=other):
            logits = model(images)
        if not found:
            raise ValueError(f"{name_of_model} has no layer that gives maps: no place to look at")
        if tokens:
            raise ValueError(
                f"{name_of_model} goes on with tokens ({tokens[0]}) after its last maps "
                f"({found[-1][0]}); Grad-CAM is made for convolutions up to the last layers"
            )
        name, maps, _ = found[-1]
        (gradient,) = torch.autograd.grad(logits[0, class_index], maps, allow_unused=True)
    if gradient is None:
        raise ValueError(f"{name_of_model}'s logits do not depend on its last maps ({name})")
    weights = gradient.float().mean(dim=(2, 3), keepdim=True)
    heat = (weights * maps.detach().float()).sum(dim=1, keepdim=True).relu()
    heat = functional.interpolate(heat, inputs.shape[-2:], mode="bilinear")[0, 0].cpu()
    return heat / heat.max().clamp_min(torch.finfo(heat.dtype).tiny), name


@contextmanager
def evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Context manager: eval mode inside; modes and random generators are restored afterwards."""
    was_training = [layer for layer in model.modules() if layer.training]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            for layer in was_training:  # one by one: frozen layers were in eval mode before
                layer.training = True


@contextmanager
def _outputs_hooked(
    model: nn.Module,
    inputs: Tensor,
    maps: OutputHook,
    others: OutputHook = lambda name, layer, output: None,
) -> Iterator[None]:
    """Context manager: ``maps`` or ``others`` gets each output, and may return a replacement."""
    names = {layer: name for name, layer in model.named_modules()}
    height, width = inputs.shape[-2:]

    def look(layer: nn.Module, arguments: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        if output.ndim != 4 or output.shape[-2:].numel() < 2:
            return others(names[layer], layer, output)
        # Linear layers and LayerNorms of Swin and ConvNeXt have channels last: these are no maps.
        # Neither is an output whose proportions are not about the image's.
        h, w = output.shape[-2:]
        stretched = (h * width) / (w * height)
        if isinstance(layer, nn.Linear) or type(layer) is nn.LayerNorm:
            return None
        return maps(names[layer], layer, output) if 2 / 3 < stretched < 3 / 2 else None

    with ExitStack() as hooks:
        for layer in names:
            hooks.callback(layer.register_forward_hook(look).remove)
        yield
