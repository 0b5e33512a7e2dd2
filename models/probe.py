"""Find out, without computing a number, whether a model can take images of a certain size."""

import itertools
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 512  # sides from 1 to this are tried when looking for one that works


def check_input(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Check that the model takes images of a shape (C, H, W), and leave the model as it is.

    Runs a batch of two through the model on the meta device: shapes only, in the model's own mode.
    Raises ValueError that names the failing layer, the shape that reached it, and the smallest
    square size that works (or the range of sizes, when the image is not too small).
    A model that cannot run on the meta device at all is not judged: the first real batch will.
    """
    # Stand-ins take the blows: running statistics are updated in them, not in the model.
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    stand_ins = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    entered: list[tuple[str, nn.Module, Any]] = []  # the layers that have begun and not yet ended
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, inputs: Any) -> None:
        entered.append((names[module], module, inputs))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        entered.pop()

    try:
        with ExitStack() as hooks:
            for module in names:
                hooks.callback(module.register_forward_pre_hook(enter).remove)
                hooks.callback(module.register_forward_hook(leave).remove)
            _run(model, stand_ins, shape)
    except Exception as error:
        if isinstance(error, NotImplementedError) or "meta" in str(error):
            return
        name, layer, inputs = entered[-1]
        received = " and ".join(str(tuple(x.shape)) for x in inputs if isinstance(x, Tensor))
        reason = str(error).partition("\n")[0].rstrip(".")
        channels, height, width = shape
        raise ValueError(
            f"{type(model).__name__} cannot take {channels}-channel images of {height} x {width}:"
            f" layer {name or '(root)'} ({type(layer).__name__}) received {received} in a"
            f" batch of two and failed: {reason}. {_mend(model, stand_ins, shape)}"
        ) from error


def _run(model: nn.Module, stand_ins: dict[str, Tensor], shape: tuple[int, int, int]) -> None:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.func.functional_call(model, stand_ins, torch.empty(2, *shape, device="meta"))


def _mend(model: nn.Module, stand_ins: dict[str, Tensor], shape: tuple[int, int, int]) -> str:
    channels, height, width = shape

    def works(side: int) -> bool:
        try:
            _run(model, stand_ins, (channels, side, side))
        except Exception:
            return False
        return True

    smallest = next(filter(works, range(1, LARGEST + 1)), None)
    if smallest is None:
        return f"No square size up to {LARGEST} x {LARGEST} works with {channels} channel(s)."
    if min(height, width) < smallest:
        return f"The smallest square size that works is {smallest} x {smallest}; resize the images."
    largest = max(itertools.takewhile(works, range(smallest, LARGEST + 1)))
    if largest == smallest:
        return f"It works at {smallest} x {smallest} only; resize the images."
    return f"Square sizes from {smallest} to {largest} work; resize the images."
