"""Steps whose loss or gradient is not finite: noticed before they change a weight."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.distributed.fsdp import clip, gradient_norm, is_sharded
from trainer.distributed.micro_batches import MicroBatch
from trainer.distributed.processes import added_up

WINDOW = 64  # steps after which the CPU reads a GPU's results at the latest


class StepResult(NamedTuple):
    """What a step came to.

    step counts from 0. images and correct count the batch over all ranks; loss is its mean. norm is
    the gradient's length. scale is the factor of the loss for fp16, 0 without fp16.
    """

    step: int
    images: int
    loss: float
    norm: float
    correct: float
    scale: float = 0.0

    @property
    def is_overflow(self) -> bool:
        """Whether only the scaled gradient was too large for fp16: GradScaler halves its scale.

        At a scale of 1 or less, the gradient itself was too large.
        """
        return math.isfinite(self.loss) and not math.isfinite(self.norm) and self.scale > 1


class Guard:
    """Looks at each step's loss and gradient, and prevents an update if one is not finite.

    On a CPU both can be read at once. Reading them from a GPU would make the CPU wait: there a flag
    on the device makes the fused optimizer's step a no-op, and results are read with the next log
    line. For an optimizer without fused steps the CPU waits.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_grad_norm: float | None = None,
        restore: bool = False,
        lag: int | None = None,
        several_labels: bool = False,
    ) -> None:
        """``clip_grad_norm``: clip the gradient to this length.

        ``restore``: after a step that is left out, bring back the buffers (batch norm's statistics)
        that its forward pass changed; for runs that go on then. ``lag``: the most steps between two
        readings. ``several_labels``: whether an image may have several.
        """
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        device, self._is_sharded = self.parameters[0].device, is_sharded(model)
        at_once = device.type == "cpu" or not optimizer.defaults.get("fused") or self._is_sharded
        self.optimizer, self.clip_grad_norm = optimizer, clip_grad_norm
        self.several_labels = several_labels
        self.lag = lag or (1 if at_once else WINDOW)
        self._on_cpu = device.type == "cpu"
        self._waiting = torch.zeros(self.lag, 4, device=device)
        self._steps: list[tuple[int, int]] = []  # number and images of the results in _waiting
        self._results: list[StepResult] = []
        self._buffers = list(model.buffers()) if restore else []
        self._before: list[Tensor] = []
        # If its first step were left out by the flag, fused SGD would keep an uninitialised
        # momentum.
        self._begun = not restore
        self.step = self.images = 0
        self._loss: Tensor | None = None
        self._correct: Tensor | None = None

    def begin(self, step: int) -> None:
        """Begin ``step`` (from 0): remember the buffers."""
        self.step, self._loss = step, None
        if self._buffers:
            self._before = [buffer.clone() for buffer in self._buffers]

    def add(self, micro: MicroBatch, loss: Tensor, logits: Tensor) -> None:
        """Add a micro-batch's mean loss, and how many of its images were classified correctly."""
        loss, correct = loss.detach(), number_correct(logits, micro.labels, self.several_labels)
        if micro.weight != 1.0:
            loss = loss * micro.weight
            correct = correct if micro.weight else correct * 0.0
        if self._loss is None or self._correct is None:
            self._loss, self._correct, self.images = loss, correct, micro.batch_size
        else:
            self._loss, self._correct = self._loss + loss, self._correct + correct

    def accepts(self, scaler: torch.amp.GradScaler) -> bool:
        """Whether to call ``optimizer.step()``: loss and gradient are finite. Clips the gradient.

        On a GPU with a fused optimizer it is True at once: ``found_inf`` makes a bad step a no-op.
        But the CPU waits with FSDP and, with ``restore``, until the first good step.
        """
        loss, correct = self._loss, self._correct
        assert loss is not None and correct is not None
        loss, correct = added_up(loss, correct)
        scaler.unscale_(self.optimizer)
        norm = self.norm()
        scale = scaler.scale(torch.ones_like(loss)) if scaler.is_enabled() else None
        if self.lag == 1 or not self._begun:
            return self._accepts_now(loss, norm, correct, scale)
        self._flag(loss, norm, correct, scale)
        return True

    def results(self, wait: bool) -> list[StepResult]:
        """The steps since the last call, in order; with ``wait=False`` those already on the CPU."""
        if wait and self._steps:
            self._read()
        results, self._results = self._results, []
        return results

    def norm(self) -> Tensor | float:
        """Clip the gradient, if ``clip_grad_norm`` is set; return its length before that."""
        if self.clip_grad_norm is not None:
            return clip(self.parameters, self.clip_grad_norm)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self._is_sharded:
            return gradient_norm(gradients)
        if self._on_cpu and self.lag == 1:  # faster than torch's own, which a small model feels
            return math.hypot(*(n.item() for n in torch._foreach_norm(gradients)))
        return nn.utils.get_total_norm(gradients)

    def _accepts_now(
        self, loss: Tensor, norm: Tensor | float, correct: Tensor, scale: Tensor | None
    ) -> bool:
        if self._on_cpu:
            values = [loss.item(), float(norm), float(correct.item())]
            values += [] if scale is None else [scale.item()]
        else:  # one reading of the GPU
            values = torch.stack(_columns(loss, norm, correct, scale)).tolist()
        result = StepResult(self.step, self.images, *values)
        self._results.append(result)
        if math.isfinite(result.loss) and math.isfinite(result.norm):
            self._begun = True
            return True
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)
        return False

    def _flag(
        self, loss: Tensor, norm: Tensor | float, correct: Tensor, scale: Tensor | None
    ) -> None:
        """Tell the optimizer on the device whether to step, and keep the results there."""
        row = self._waiting[len(self._steps)]
        columns = _columns(loss, norm, correct, scale)
        torch.stack(columns, out=row[: len(columns)])
        self._steps.append((self.step, self.images))
        bad = ~torch.isfinite(row[:2]).all()
        self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(bad, before, buffer))
        if len(self._steps) == self.lag:
            self._read()

    def _read(self) -> None:
        values = self._waiting[: len(self._steps)].tolist()
        for (step, images), row in zip(self._steps, values, strict=True):
            self._results.append(StepResult(step, images, *row))
        self._steps = []


def number_correct(logits: Tensor, labels: Tensor, several_labels: bool = False) -> Tensor:
    """How many images have their class as likeliest; of mixed labels the largest share counts.

    With ``several_labels``, how many have all labels right: a positive logit predicts a label.
    """
    if several_labels:
        return ((logits > 0) == (labels > 0.5)).all(dim=1).count_nonzero()
    if labels.ndim == 2:
        labels = labels.argmax(dim=1)
    return (logits.argmax(dim=1) == labels).count_nonzero()


def _columns(
    loss: Tensor, norm: Tensor | float, correct: Tensor, scale: Tensor | None
) -> list[Tensor]:
    length = torch.as_tensor(norm, device=loss.device)
    columns = [loss.detach(), length, correct.to(loss.dtype)]
    return columns if scale is None else [*columns, scale]
