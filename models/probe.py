"""Check on the meta device, without computation, which image sizes a model accepts."""

import re
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MAX_SIDE = 512  # pixels; larger square sizes are not tried
# Tried first: from each size that alone works (as of ViT, MaxViT or Inception), others are found.
MARKS = (1, 2, 4, 8, 16, *sorted({*range(32, MAX_SIDE + 1, 32), 240, 299, 336}))


class ImageSizeError(ValueError):
    """A model cannot take images of a size. ``size``: a side at which squares work, or None."""

    def __init__(self, message: str, size: int | None) -> None:
        super().__init__(message)
        self.size = size


def check_input(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Check that the model accepts images of shape (C, H, W); the model does not change.

    Runs a batch of two on the meta device (shapes only), in the model's current mode.
    Raises ImageSizeError that names the failing layer, the shape of its input, and the smallest
    square size that works (or the range of sizes, if the image is not too small).
    A model that cannot run on the meta device passes: its first real batch shows the error.
    """
    # Running statistics are updated in these stand-ins, not in the model.
    stand_ins = _stand_ins(model)
    entered: list[tuple[str, nn.Module, Any]] = []  # layers whose forward is running
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
        text = _text(error)
        if isinstance(error, NotImplementedError) or re.search(r"\bmeta\b", text, re.IGNORECASE):
            return
        name, layer, inputs = entered[-1]
        received = " and ".join(str(tuple(x.shape)) for x in inputs if isinstance(x, Tensor))
        reason = text.partition("\n")[0].rstrip(".")
        if not reason:  # such as "AssertionError: assert size % 2 == 0"
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if "/torch/" not in frame.filename]  # not its _assert
            reason = f"{type(error).__name__}: {own[-1].line}"
        channels, height, width = shape
        mend, size = _mend(model, stand_ins, shape)
        raise ImageSizeError(
            f"{type(model).__name__} cannot take {channels}-channel images of {height} x {width}:"
            f" layer {name or '(root)'} ({type(layer).__name__}) received {received} in a"
            f" batch of two and failed: {reason}. {mend}",
            size,
        ) from error


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # of a class that someone wrote for a model
        return ""


def _stand_ins(model: nn.Module) -> dict[str, Tensor]:
    """A meta tensor for each parameter and buffer; tied ones have the same, shared modules one."""
    made: dict[Tensor, Tensor] = {}
    named: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():  # a module with two names comes once
        own = {**dict(module.named_parameters(recurse=False)), **module._buffers}
        for name, tensor in own.items():
            if tensor is not None:
                meta = made.setdefault(tensor, torch.empty_like(tensor, device="meta"))
                named[f"{prefix}.{name}".lstrip(".")] = meta
    return named


def _run(model: nn.Module, stand_ins: dict[str, Tensor], shape: tuple[int, int, int]) -> None:
    images = torch.empty(2, *shape, device="meta")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        # With tie_weights, the stand-ins would stay in a module that has two names.
        torch.func.functional_call(model, stand_ins, images, tie_weights=False)


def _mend(
    model: nn.Module, stand_ins: dict[str, Tensor], shape: tuple[int, int, int]
) -> tuple[str, int | None]:
    """Which square sizes work, in words, and one of them; None if none does.

    Batch norm changes no shape, and would take 19 / 20 of the time.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    try:
        for norm in norms:
            norm.forward = lambda input: input  # type: ignore[method-assign]
        return _sizes_that_work(model, stand_ins, shape)
    finally:
        for norm in norms:
            del norm.forward


def _sizes_that_work(
    model: nn.Module, stand_ins: dict[str, Tensor], shape: tuple[int, int, int]
) -> tuple[str, int | None]:
    channels, height, width = shape

    def works(side: int) -> bool:
        try:
            _run(model, stand_ins, (channels, side, side))
        except Exception:
            return False
        return True

    # Not each size is tried: a large model takes 0.2 s. The smallest that works is found by halving
    # between one that fails and a larger one that works.
    good = next(filter(works, MARKS), None) or next(filter(works, range(1, MAX_SIDE + 1)), None)
    if good is None:
        none = f"No square size up to {MAX_SIDE} x {MAX_SIDE} works with {channels} channel(s)."
        return none, None
    smallest = _edge(works, good, max((m for m in MARKS if m < good), default=0))
    if min(height, width) < smallest:
        square = f"{smallest} x {smallest}"
        return f"The smallest square size that works is {square}; resize the images.", smallest
    bad = next((m for m in MARKS if m > good and not works(m)), MAX_SIDE + 1)
    largest = _edge(works, max(m for m in (good, *MARKS) if good <= m < bad), bad)
    if largest == smallest:
        return f"It works at {smallest} x {smallest} only; resize the images.", smallest
    if smallest <= height == width <= largest:  # which fails: only some sizes in between work
        return f"Square sizes such as {good} x {good} work; resize the images.", good
    return f"Square sizes from {smallest} to {largest} work; resize the images.", smallest


def _edge(works: Callable[[int], bool], good: int, bad: int) -> int:
    """The last size that works on the way from ``good``, which does, to ``bad``, which does not."""
    while abs(good - bad) > 1:
        middle = (good + bad) // 2
        if works(middle):
            good = middle
        else:
            bad = middle
    return good
