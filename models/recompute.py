"""Activation checkpointing: the backward pass recomputes the activations inside blocks."""

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
    """Keep only the inputs of a model's blocks in training, in place; returns the number of blocks.

    Chen et al., 2016, "Training deep nets with sublinear memory cost". A block is a residual or
    attention block in an ``nn.Sequential`` or ``nn.ModuleList``, or a run of about sqrt(n) of n
    single layers in it. Without such a sequence, the model's children are the blocks.
    The recomputation draws the same dropout masks and sees the same buffers as the first forward;
    batch norm updates its statistics once per step. Names of weights and results do not change.
    """
    blocks = list(_blocks(model))
    if not blocks:
        blocks = [child for child in model.children() if any(child.children())]
    for block in blocks:
        forward = _forward_by_runs if _is_sequence(block) else _forward_as_block
        block.forward = MethodType(forward, block)  # bound: a copy of the block gets its own
    return len(blocks)


def _blocks(module: nn.Module, in_sequence: bool = False) -> Iterator[nn.Module]:
    """The modules to recompute as one block, and the sequences to recompute in runs of layers."""
    if in_sequence and not (_is_sequence(module) or any(map(_has_blocks, module.modules()))):
        yield module
        return
    if isinstance(module, nn.Sequential) and _is_sequence(module):
        if any(len(run) > 1 for run in _runs(module)):
            yield module
    for child in module.children():
        if any(child.children()):
            yield from _blocks(child, in_sequence or _is_sequence(module))


def _is_sequence(module: nn.Module) -> bool:
    """Whether a module only runs its children one after the other."""
    if isinstance(module, nn.Sequential):
        return type(module).forward is nn.Sequential.forward
    return isinstance(module, nn.ModuleList)


def _has_blocks(module: nn.Module) -> bool:
    """Whether a module is a sequence with two or more blocks of the same class."""
    kinds = [type(c) for c in module.children() if any(c.children()) and not _is_sequence(c)]
    return _is_sequence(module) and len(set(kinds)) < len(kinds)


def _runs(sequence: nn.Sequential) -> list[list[nn.Module]]:
    """A sequence's children in groups; the groups of several single layers are recomputed.

    No such group begins with an in-place layer, which overwrites the input to restart from.
    """
    single = {child for child in sequence if not any(child.children())}
    max_length = max(2, math.ceil(math.sqrt(len(single))))
    runs: list[list[nn.Module]] = []
    for child in sequence:
        run = runs[-1] if runs and child in single and runs[-1][0] in single else []
        if run and not _is_in_place(run[0]) and (len(run) < max_length or _is_in_place(child)):
            run.append(child)
        else:
            runs.append([child])
    return runs


def _is_in_place(layer: nn.Module) -> bool:
    """Whether a layer is marked as writing into its input."""
    return bool(getattr(layer, "inplace", False))


def _forward_as_block(self: nn.Module, *inputs: Any, **options: Any) -> Any:
    """A block's forward, which does not keep the activations inside the block."""
    forward = partial(type(self).forward, self)
    return _checkpointed([self], forward, *inputs, **options)


def _forward_by_runs(self: nn.Sequential, inputs: Any) -> Any:
    """A sequence's forward, in which each run of single layers is one block."""
    for run in _runs(self):
        forward = partial(_run_through, run)
        inputs = _checkpointed(run, forward, inputs) if len(run) > 1 else forward(inputs)
    return inputs


def _run_through(layers: Sequence[nn.Module], inputs: Any) -> Any:
    for layer in layers:
        inputs = layer(inputs)
    return inputs


def _checkpointed(modules: Sequence[nn.Module], forward: Any, *inputs: Any, **options: Any) -> Any:
    if not (torch.is_grad_enabled() and modules[0].training):
        return forward(*inputs, **options)
    if torch.compiler.is_compiling():  # compiled code updates buffers only once
        return checkpoint(forward, *inputs, use_reentrant=False, **options)
    contexts = partial(_contexts, modules)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **options)


def _contexts(
    modules: Sequence[nn.Module],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Context managers for the forward and for its recomputation."""
    before = [
        (module, name, buffer.clone())
        for outer in modules
        for module in outer.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    return nullcontext(), _with_buffers(before)


@contextmanager
def _with_buffers(before: Sequence[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """Context manager: the modules use the buffers ``before``; changes to these are discarded."""
    own = [getattr(module, name) for module, name, _ in before]
    for module, name, buffer in before:
        setattr(module, name, buffer)
    try:
        yield
    finally:
        for (module, name, _), buffer in zip(before, own, strict=True):
            setattr(module, name, buffer)
