"""Dropout masks of a whole batch, for a forward pass over only some of its images.

A batch split into micro-batches or over ranks gets the same masks as one that is not split.
"""

import torch
from torch import Tensor, nn

# Layer class -> how many leading dimensions of the input its random numbers have; None if the layer
# does more than multiply by them. Classes are given by name: no library is imported for this table.
DRAWN: dict[str, int | None] = {
    "torch.nn.modules.dropout.Dropout": 9,
    "torch.nn.modules.dropout.Dropout1d": 2,
    "torch.nn.modules.dropout.Dropout2d": 2,
    "torch.nn.modules.dropout.Dropout3d": 2,
    "torch.nn.modules.dropout.AlphaDropout": None,
    "torch.nn.modules.dropout.FeatureAlphaDropout": None,
    "torchvision.ops.stochastic_depth.StochasticDepth": 1,
    "timm.layers.drop.DropPath": 1,
}


class Rows:
    """The rows of the whole batch that the model's next input holds; None stands for all rows."""

    def __init__(self) -> None:
        self.indices: Tensor | None = None  # (n,) int64; two integers would cause recompilation
        self.batch_size = 0

    def take(self, start: int, end: int, batch_size: int, device: torch.device) -> None:
        """Set the rows of the next inputs to ``start`` (at least 0) up to ``end`` (exclusive).

        ``batch_size`` is the size of the whole batch. Rows beyond it are padding.
        """
        self.batch_size = max(batch_size, end)
        is_partial = end - start < self.batch_size
        self.indices = torch.arange(start, end, device=device) if is_partial else None


def drop_out_by_batch(model: nn.Module) -> Rows | None:
    """Make the model's dropout layers draw masks for whole batches, in place; returns their Rows.

    Returns None if there are none. Parameter names do not change. The layers work as before until
    ``Rows.take`` is called. See ``draws_elsewhere`` for random numbers drawn without such a layer.
    """
    rows = Rows()
    for module in model.modules():
        kind = type(module)
        if (name := _full_name(kind)) in DRAWN:
            members = {"drawn": DRAWN[name], "__module__": kind.__module__}
            module.__class__ = type(kind.__name__, (_WholeBatchDropout, kind), members)
            module.rows = rows  # type: ignore[assignment]
    return rows_of(model)


def rows_of(model: nn.Module) -> Rows | None:
    """The ``Rows`` that ``drop_out_by_batch`` attached to the model, or None."""
    return next((m.rows for m in model.modules() if isinstance(m, _WholeBatchDropout)), None)


@torch.no_grad()
def draws_elsewhere(model: nn.Module, images: Tensor) -> bool:
    """Whether the model's forward draws random numbers outside the layers named in ``DRAWN``.

    Runs ``images`` (B, C, H, W) in the model's current mode, then restores the model's buffers.
    """
    kept = [buffer.clone() for buffer in model.buffers()]
    layers = [m for m in model.modules() if _full_name(type(m)) in DRAWN and m.training]
    for layer in layers:
        layer.eval()
    before = _generator_state(images.device)
    model(images)
    after = _generator_state(images.device)
    for layer in layers:
        layer.train()
    for buffer, value in zip(model.buffers(), kept, strict=True):
        buffer.copy_(value)
    return not torch.equal(before, after)


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _generator_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


class _WholeBatchDropout(nn.Module):
    """Mixin for a dropout class: draws the mask of the whole batch and uses the rows at hand."""

    rows: Rows
    drawn: int | None

    def forward(self, input: Tensor) -> Tensor:
        """The rows of ``input`` in the layer's output for the whole batch; shape as ``input``."""
        indices, batch_size = self.rows.indices, self.rows.batch_size
        # The input of some layers has several rows per image, such as one for each window.
        per_image, rest = (0, 1) if indices is None else divmod(len(input), len(indices))
        if indices is None or rest or not self.training:
            unchanged: Tensor = super().forward(input)
            return unchanged
        if per_image > 1:
            within = torch.arange(per_image, device=indices.device)
            indices = (indices.unsqueeze(1) * per_image + within).flatten()
        if self.drawn is None:
            batch = _filled(input, batch_size * per_image, input.ndim, 0.0)
            output: Tensor = super().forward(batch.index_copy_(0, indices, input))
            return output.index_select(0, indices)
        mask: Tensor = super().forward(_filled(input, batch_size * per_image, self.drawn, 1.0))
        return input * mask.index_select(0, indices)


def _filled(input: Tensor, rows: int, drawn: int, value: float) -> Tensor:
    """A tensor of ``rows`` rows, all ``value``, in the memory order of ``input``.

    Dimensions from 1 up to ``drawn`` (exclusive) have the sizes of ``input``; later ones are 1.
    """
    shape = (rows, *input.shape[1:drawn], *[1] * (input.ndim - max(drawn, 1)))
    strides = list(input.stride())
    if len(input) == 1:  # then the first stride is arbitrary
        strides[0] = input.numel()
    order = sorted(range(input.ndim), key=lambda dim: -strides[dim])
    empty = torch.empty_permuted(shape, order, dtype=input.dtype, device=input.device)
    return empty.fill_(value)
