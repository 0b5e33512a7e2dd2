"""Activation checkpointing: blocks whose insides are computed again for the backward pass."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute(model: nn.Module) -> int:
    """Have a model keep only what its blocks read, while it is trained; how many blocks there are.

    Chen et al., 2016, "Training deep nets with sublinear memory cost". Blocks are what stands in a
    row (``nn.Sequential``, ``nn.ModuleList``): residual or attention blocks one by one, of n single
    layers about sqrt(n) at once; in a model without rows, its parts. Dropout draws the same again,
    and a block sees its buffers as they were: batch norm's statistics move once a step.
    Names of weights, evaluation and numbers stay as they are.
    """
    blocks = list(_blocks(model))
    if not blocks:
        blocks = [part for part in model.children() if any(part.children())]
    for block in blocks:
        act = _recomputed_in_runs if _is_row(block) else _recomputed
        block.forward = MethodType(act, block)  # a method: a copy of the block has its own
    return len(blocks)


def _blocks(module: nn.Module, in_a_row: bool = False) -> Iterator[nn.Module]:
    """What is to be recomputed as one, and the rows whose single layers are, in runs."""
    if in_a_row and not _is_row(module) and not any(map(_repeats, module.modules())):
        yield module
        return
    if isinstance(module, nn.Sequential) and _is_row(module):
        if any(len(run) > 1 for run in _runs(module)):
            yield module
    for child in module.children():
        if any(child.children()):
            yield from _blocks(child, in_a_row or _is_row(module))


def _is_row(module: nn.Module) -> bool:
    """Whether a module is its children one after the other, and nothing else."""
    if isinstance(module, nn.Sequential):
        return type(module).forward is nn.Sequential.forward
    return isinstance(module, nn.ModuleList)


def _repeats(module: nn.Module) -> bool:
    """Whether a module is a row of two or more blocks of one kind."""
    kinds = [type(c) for c in module.children() if any(c.children()) and not _is_row(c)]
    return _is_row(module) and len(set(kinds)) < len(kinds)


def _runs(row: nn.Sequential) -> list[list[nn.Module]]:
    """A row's children in groups, of which those of several single layers are to be recomputed.

    None begins with a layer that writes into its input, from which it could not begin again.
    """
    single = {child for child in row if not any(child.children())}
    longest = max(2, math.ceil(math.sqrt(len(single))))
    runs: list[list[nn.Module]] = []
    for child in row:
        run = runs[-1] if runs and child in single and runs[-1][0] in single else []
        if run and not _writes(run[0]) and (len(run) < longest or _writes(child)):
            run.append(child)
        else:
            runs.append([child])
    return runs


def _writes(layer: nn.Module) -> bool:
    """Whether a layer says that it writes into its input."""
    return bool(getattr(layer, "inplace", False))


def _recomputed(self: nn.Module, *inputs: Any, **options: Any) -> Any:
    """A block's forward, whose insides are kept no longer than it runs."""
    forward = partial(type(self).forward, self)
    return _forgetting([self], forward, *inputs, **options)


def _recomputed_in_runs(self: nn.Sequential, inputs: Any) -> Any:
    """A row's forward, for which each run of single layers is as one block."""
    for run in _runs(self):
        forward = partial(_through, run)
        inputs = _forgetting(run, forward, inputs) if len(run) > 1 else forward(inputs)
    return inputs


def _through(layers: Sequence[nn.Module], inputs: Any) -> Any:
    for layer in layers:
        inputs = layer(inputs)
    return inputs


def _forgetting(parts: Sequence[nn.Module], forward: Any, *inputs: Any, **options: Any) -> Any:
    if not (torch.is_grad_enabled() and parts[0].training):
        return forward(*inputs, **options)
    if torch.compiler.is_compiling():  # the compiler has buffers move once by itself
        return checkpoint(forward, *inputs, use_reentrant=False, **options)
    contexts = partial(_contexts, parts)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **options)


def _contexts(
    parts: Sequence[nn.Module],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What is around a forward, and around its recomputation."""
    before = [
        (module, name, buffer.clone())
        for part in parts
        for module in part.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    return nullcontext(), _with_buffers(before)


@contextmanager
def _with_buffers(before: Sequence[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """Let modules have other tensors for their buffers; what they do to these is lost."""
    own = [getattr(module, name) for module, name, _ in before]
    for module, name, buffer in before:
        setattr(module, name, buffer)
    try:
        yield
    finally:
        for (module, name, _), buffer in zip(before, own, strict=True):
            setattr(module, name, buffer)
