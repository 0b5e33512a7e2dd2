"""Dropout that is drawn for a whole batch where only some of its images are at hand.

Who cuts a batch, into parts or among processes, gets the masks of one that does not.
"""

import torch
from torch import Tensor, nn

# By full name, so that no library is imported for its class: how many of the dimensions of its
# input, from the first one, a layer draws numbers for; None where it does not merely multiply.
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
    """Which images of a batch of ``whole`` a model is given now: those ``numbers``, or all."""

    def __init__(self) -> None:
        self.numbers: Tensor | None = None  # (n,) int64, not two integers: compiled code stays fit
        self.whole = 0

    def take(self, low: int, high: int, whole: int, device: torch.device) -> None:
        """From now on the model is given images ``low`` to ``high`` of ``whole``, with 0 <= low.

        An image beyond the last only fills a place.
        """
        self.whole = max(whole, high)
        self.numbers = None if high - low == self.whole else torch.arange(low, high, device=device)


def drop_out_by_batch(model: nn.Module) -> Rows | None:
    """Make the model's dropout layers, in place, draw for whole batches; None where it has none.

    The names of its parameters stay, and what the layers do while the ``Rows`` say nothing. What a
    forward draws itself, without such a layer, is not reached: see ``draws_elsewhere``.
    """
    rows = Rows()
    for module in model.modules():
        kind = type(module)
        if (name := _full_name(kind)) in DRAWN:
            own = {"drawn": DRAWN[name], "__module__": kind.__module__}
            module.__class__ = type(kind.__name__, (_OfWholeBatch, kind), own)
            module.rows = rows  # type: ignore[assignment]
    return rows_of(model)


def rows_of(model: nn.Module) -> Rows | None:
    """What ``drop_out_by_batch`` gave the model, or None."""
    return next((m.rows for m in model.modules() if isinstance(m, _OfWholeBatch)), None)


@torch.no_grad()
def draws_elsewhere(model: nn.Module, images: Tensor) -> bool:
    """Whether training the model draws random numbers outside of the layers named in ``DRAWN``.

    images (B, C, H, W) are tried, with the model's mode as it is; its buffers are left as they
    were.
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


class _OfWholeBatch(nn.Module):
    """Stands before a dropout layer's own class among its bases."""

    rows: Rows
    drawn: int | None

    def forward(self, input: Tensor) -> Tensor:
        """What the layer would give for these images, were the others of the batch with them."""
        numbers, whole = self.rows.numbers, self.rows.whole
        # Some layers see several rows an image, such as one for each of its windows.
        each, rest = (0, 1) if numbers is None else divmod(len(input), len(numbers))
        if numbers is None or rest or not self.training:
            own: Tensor = super().forward(input)
            return own
        if each > 1:
            within = torch.arange(each, device=numbers.device)
            numbers = (numbers.unsqueeze(1) * each + within).flatten()
        if self.drawn is None:
            others = _like(input, whole * each, input.ndim, 0.0)
            some: Tensor = super().forward(others.index_copy_(0, numbers, input))
            return some.index_select(0, numbers)
        noise: Tensor = super().forward(_like(input, whole * each, self.drawn, 1.0))
        return input * noise.index_select(0, numbers)


def _like(input: Tensor, rows: int, drawn: int, value: float) -> Tensor:
    """As many ``rows``, of the same order in memory, in which random numbers are drawn."""
    shape = (rows, *input.shape[1:drawn], *[1] * (input.ndim - max(drawn, 1)))
    strides = list(input.stride())
    if len(input) == 1:  # then its first stride may be any
        strides[0] = input.numel()
    order = sorted(range(input.ndim), key=lambda dim: -strides[dim])
    empty = torch.empty_permuted(shape, order, dtype=input.dtype, device=input.device)
    return empty.fill_(value)
