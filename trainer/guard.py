"""Steps whose loss or gradient is no number: noticed before they change a weight."""

import math

import torch
from torch import Tensor, nn

WINDOW = 64  # steps after which a GPU is asked at the latest


class Guard:
    """Looks at each step's loss and gradient, and keeps the optimizer from a step that is not fit.

    On a CPU a value is there when it is asked for. A GPU would have to be waited for: there a fused
    optimizer is told by a flag on the device, and what was noticed is read with the next log line.
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
        at_once = device.type == "cpu" or not optimizer.defaults.get("fused")
        self.optimizer, self.lag = optimizer, lag or (1 if at_once else WINDOW)
        self._seen = torch.zeros(self.lag, 2, device=device)
        self._first = self._count = 0
        self._noticed: list[tuple[int, float, float]] = []
        self._buffers = list(model.buffers()) if restore else []
        self._before: list[Tensor] = []
        # Of a first step that is left out, fused SGD would keep a momentum that nothing was put in.
        self._begun = not restore

    def begin(self) -> None:
        """Remember the buffers of the step that begins."""
        self._before = [buffer.clone() for buffer in self._buffers]

    def passes(self, step: int, loss: Tensor, norm: Tensor) -> bool:
        """Whether the optimizer may do ``step`` (from 0), of this loss and length of the gradient.

        Where the answer is on the device, it is yes, and the optimizer is told there.
        """
        if self.lag == 1 or not self._begun:
            values = (loss.item(), norm.item())
            if all(map(math.isfinite, values)):
                self._begun = True
                return True
            self._noticed.append((step, *values))
            for buffer, before in zip(self._buffers, self._before, strict=True):
                buffer.copy_(before)
            return False
        self._first = step - self._count
        torch.stack((loss.detach(), norm), out=self._seen[self._count])
        bad = ~torch.isfinite(self._seen[self._count]).all()
        self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(bad, before, buffer))
        self._count += 1
        if self._count == self.lag:
            self._read()
        return True

    def noticed(self, wait: bool) -> list[tuple[int, float, float]]:
        """(step from 0, loss, length of the gradient) of unfit steps not yet told.

        Without ``wait`` only those that are known already.
        """
        if wait and self._count:
            self._read()
        noticed, self._noticed = self._noticed, []
        return noticed

    def _read(self) -> None:
        for offset, (loss, norm) in enumerate(self._seen[: self._count].tolist()):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._noticed.append((self._first + offset, loss, norm))
        self._count = 0
