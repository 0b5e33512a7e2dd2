"""Steps whose loss or gradient is no number: noticed before they change a weight."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.sharding import gradient_norm, is_sharded

WINDOW = 64  # steps after which a GPU is asked at the latest


class Seen(NamedTuple):
    """What a step, counted from 0, came to: images, their mean loss, the gradient's length, how

    many of the images were predicted right, and by what fp16 scaled the loss (else 0).
    """

    step: int
    images: int
    loss: float
    norm: float
    correct: float
    scale: float = 0.0

    @property
    def is_overflow(self) -> bool:
        """Whether only the scaled gradient was too large for fp16: the next scale is the half.

        At a scale of 1 or less it was the gradient itself.
        """
        return math.isfinite(self.loss) and not math.isfinite(self.norm) and self.scale > 1


class Guard:
    """Looks at each step's loss and gradient, and keeps the optimizer from a step that is not fit.

    On a CPU a value is there when it is asked for. A GPU would have to be waited for: there a fused
    optimizer is told by a flag on the device, and what was seen is read with the next log line.
    An optimizer without fused steps is waited for.

    ``restore``: bring back what such a step's forward left in buffers (batch norm's statistics),
    for those who mean to go on behind it. ``lag`` is the most steps between two looks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        restore: bool = False,
        lag: int | None = None,
    ) -> None:
        self._is_sharded = is_sharded(model)
        at_once = device.type == "cpu" or not optimizer.defaults.get("fused") or self._is_sharded
        self.optimizer, self.lag = optimizer, lag or (1 if at_once else WINDOW)
        self._sums_here = device.type == "cpu" and self.lag == 1
        self._waiting = torch.zeros(self.lag, 4, device=device)
        self._steps: list[tuple[int, int]] = []  # number and images of those that wait there
        self._seen: list[Seen] = []
        self._buffers = list(model.buffers()) if restore else []
        self._before: list[Tensor] = []
        # Of a first step that is left out, fused SGD would keep a momentum that nothing was put in.
        self._begun = not restore

    def begin(self) -> None:
        """Remember the buffers of the step that begins."""
        if self._buffers:
            self._before = [buffer.clone() for buffer in self._buffers]

    def norm(self, parameters: Sequence[nn.Parameter]) -> Tensor | float:
        """The length of all gradients together."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self._is_sharded:
            return gradient_norm(gradients)
        if self._sums_here:  # a third of the time of torch's own, which a small model feels
            return math.hypot(*(torch.linalg.vector_norm(g).item() for g in gradients))
        return nn.utils.get_total_norm(gradients)

    def passes(
        self,
        step: int,
        images: int,
        loss: Tensor,
        norm: Tensor | float,
        correct: Tensor,
        scale: Tensor | None = None,
    ) -> bool:
        """Whether the optimizer may do ``step`` (from 0), of this loss and length of the gradient.

        Where the answer is on the device, it is yes, and the optimizer is told there. ``scale`` is
        what the loss was multiplied by, and the gradient divided by again.
        """
        if self.lag == 1 or not self._begun:
            if loss.device.type == "cpu":
                values = [loss.item(), float(norm), float(correct)]
                values += [] if scale is None else [scale.item()]
            else:  # one look at the device
                values = torch.stack(_columns(loss, norm, correct, scale)).tolist()
            seen = Seen(step, images, *values)
            self._seen.append(seen)
            if math.isfinite(seen.loss) and math.isfinite(seen.norm):
                self._begun = True
                return True
            for buffer, before in zip(self._buffers, self._before, strict=True):
                buffer.copy_(before)
            return False
        row = self._waiting[len(self._steps)]
        columns = _columns(loss, norm, correct, scale)
        torch.stack(columns, out=row[: len(columns)])
        self._steps.append((step, images))
        bad = ~torch.isfinite(row[:2]).all()
        self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(bad, before, buffer))
        if len(self._steps) == self.lag:
            self._read()
        return True

    def seen(self, wait: bool) -> list[Seen]:
        """The steps since the last call, in their order; without ``wait`` those known already."""
        if wait and self._steps:
            self._read()
        seen, self._seen = self._seen, []
        return seen

    def _read(self) -> None:
        values = self._waiting[: len(self._steps)].tolist()
        for (step, images), row in zip(self._steps, values, strict=True):
            self._seen.append(Seen(step, images, *row))
        self._steps = []


def _columns(
    loss: Tensor, norm: Tensor | float, correct: Tensor, scale: Tensor | None
) -> list[Tensor]:
    length = torch.as_tensor(norm, device=loss.device)
    columns = [loss.detach(), length, correct.to(loss.dtype)]
    return columns if scale is None else [*columns, scale]
