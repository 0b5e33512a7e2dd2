"""What a model makes of an image inside: kernels, feature maps, last features, Grad-CAM.

All run the model in eval mode and leave it as it was: modes, buffers, gradients, hooks, and the
generators that dropout draws from.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Seen = Callable[[str, nn.Module, Tensor], Tensor | None]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def first_kernels(model: nn.Module, input_shape: tuple[int, int, int]) -> Tensor | None:
    """The first layer's weights as (N, C, h, w) float pictures on the CPU.

    A first convolution's kernels; of a first linear layer over the flattened (C, H, W) input, its
    rows. None where the first layer with weights is neither.
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
    """What each layer makes of one image (1, C, H, W): name -> (channels, h, w) float on the CPU.

    Every layer without inner ones whose output is such a stack of maps of more than one pixel, in
    the order in which they run; one that runs again has its turn behind its name. ``channels``:
    only the first so many.
    """
    maps: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, output: Tensor) -> None:
        if any(layer.children()):
            return
        # A copy: a ReLU may write into what the layer before it gave.
        maps[_again(name, maps)] = output[0, :channels].float().cpu().clone()

    with evaluating(model, inputs.device), torch.inference_mode():
        with _watching(model, inputs, maps=keep):
            model(inputs)
    return maps


def penultimate(model: nn.Module, inputs: Tensor) -> Tensor:
    """What the last linear layer reads of images (B, C, H, W): (B, F) float on the CPU.

    Of a model without one, the last convolution's input, averaged over its positions.
    Raises ValueError for a model without either.
    """
    read: dict[bool, Tensor] = {}  # by whether it is a linear layer's

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
    """Where a model looks for a class in one image (1, C, H, W): (H, W) in 0-1, and the layer.

    Selvaraju et al., 2017, "Grad-CAM", eq. 1 and 2, at the last layer that gives maps of more than
    one pixel; enlarged to the image, its largest value 1 (0 where nothing speaks for the class).
    Raises ValueError for a model that has no such layer, or leaves its maps for tokens.
    """
    found: list[tuple[str, Tensor, Tensor]] = []
    tokens: list[str] = []

    def keep(name: str, layer: nn.Module, output: Tensor) -> Tensor | None:
        is_block = any(layer.children())
        if found and output is found[-1][2] and is_block and not output._version:
            return None  # it ends in the layer just seen, and has written nothing into its output
        tokens.clear()
        found.append((name, output, output.clone()))  # what comes next may write into its input
        return found[-1][2]

    def other(name: str, layer: nn.Module, output: Tensor) -> None:
        if output.ndim == 3:
            tokens.append(name)

    name_of_model = type(model).__name__
    with evaluating(model, inputs.device), torch.inference_mode(False), torch.enable_grad():
        # Of the input too: a frozen model has no other gradient. Twice: a leaf can't be written to.
        images = inputs.detach().clone().requires_grad_().clone()
        with _watching(model, images, maps=keep, others=other):
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
    seen = (weights * maps.detach().float()).sum(dim=1, keepdim=True).relu()
    seen = functional.interpolate(seen, inputs.shape[-2:], mode="bilinear")[0, 0].cpu()
    return seen / seen.max().clamp_min(torch.finfo(seen.dtype).tiny), name


@contextmanager
def evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run the body in eval mode; modes and generators are afterwards as they were."""
    was_training = [layer for layer in model.modules() if layer.training]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            for layer in was_training:  # one by one: some layers of a model may be frozen
                layer.training = True


@contextmanager
def _watching(
    model: nn.Module,
    inputs: Tensor,
    maps: Seen,
    others: Seen = lambda name, layer, output: None,
) -> Iterator[None]:
    """Show each layer's output to ``maps`` or ``others``; what they return replaces it."""
    names = {layer: name for name, layer in model.named_modules()}
    height, width = inputs.shape[-2:]

    def look(layer: nn.Module, arguments: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        if output.ndim != 4 or output.shape[-2:].numel() < 2:
            return others(names[layer], layer, output)
        # Swin and ConvNeXt turn their maps to have channels last and work along these. What has
        # not about the image's proportions is no picture of it.
        h, w = output.shape[-2:]
        stretched = (h * width) / (w * height)
        if isinstance(layer, nn.Linear) or type(layer) is nn.LayerNorm:
            return None
        return maps(names[layer], layer, output) if 2 / 3 < stretched < 3 / 2 else None

    with ExitStack() as hooks:
        for layer in names:
            hooks.callback(layer.register_forward_hook(look).remove)
        yield


def _again(name: str, taken: dict[str, Tensor]) -> str:
    turn = 1
    while (f"{name} ({turn})" if turn > 1 else name) in taken:
        turn += 1
    return f"{name} ({turn})" if turn > 1 else name
