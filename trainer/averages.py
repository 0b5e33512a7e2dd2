"""Averages of the weights over training: they are judged and kept, training goes on as it was.

Each keeps tensors of its own beside those of the model, by their names in its state_dict. They go
by the number of steps, one that is left out (no number) being a step in which no weight moved: what
an average becomes never depends on when a GPU is asked. Frozen parameters take no part.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.freeze import train_mode
from trainer.duration import Duration

ONCE_A_STEP, ONCE_AN_EPOCH = Duration(1, "st"), Duration(1, "ep")


class Average:
    """What the averages share: the tensors, and a model that holds them for a while.

    count: how often the weights were taken in; while it is 0, the model itself is judged.
    """

    def __init__(self, model: nn.Module, with_buffers: bool = False) -> None:
        """``with_buffers``: average floating-point buffers (batch norm's statistics) too."""
        # All names of a parameter that has several.
        parameters = model.named_parameters(remove_duplicate=False)
        moving = {name for name, parameter in parameters if parameter.requires_grad}
        buffers = dict(model.named_buffers(remove_duplicate=False))
        if with_buffers:
            moving |= {name for name, buffer in buffers.items() if buffer.is_floating_point()}
        self.model, self.count = model, 0
        self._all = model.state_dict()  # of the model's own memory
        self._changing = [name for name in self._all if name in moving or name in buffers]
        self.values = {name: self._all[name].clone() for name in self._all if name in moving}
        self._own = list(self.values.values())
        self._live = [self._all[name] for name in self.values]

    def after_step(self, step: int) -> None:
        """Heed that ``step`` steps are done; nothing here waits for the device."""
        raise NotImplementedError

    def judged(self) -> dict[str, Tensor]:
        """The tensors that differ from the model's where it is judged, by their names."""
        return self.values if self.count else {}

    def weights(self) -> dict[str, Tensor]:
        """The model's state_dict as it is judged, partly of the model's own memory."""
        weights = self.model.state_dict()  # with the version numbers that go along
        weights.update(self.judged())
        return weights

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the model hold what is judged for the time of the body."""
        kept = {name: self._all[name].clone() for name in self._changing if self.count}
        try:
            self._put(self.judged())
            yield
        finally:
            self._put(kept)

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._all[name].copy_(tensor)

    def needs_statistics(self) -> bool:
        """Whether ``take_statistics`` is to be called before the model is judged."""
        return False

    def take_statistics(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        autocast: Callable[[], AbstractContextManager[None]],
        reseed: Callable[[int], None],
    ) -> None:
        """Measure what the average itself can't tell."""

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` goes on from exactly."""
        return {"count": self.count, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; raises ValueError where it is not that of such an average."""
        count, values = state["count"], state["values"]
        if type(count) is not int or not 0 <= count < 2**53:
            raise ValueError("the count of its average is none")
        forms = {name: (value.shape, value.dtype) for name, value in values.items()}
        if forms != {name: (value.shape, value.dtype) for name, value in self.values.items()}:
            raise ValueError("its average is one of other weights")
        self.count = count
        for name, value in values.items():
            self.values[name].copy_(value)


class EMA(Average):
    """The exponential moving average of the weights, and of batch norm's statistics.

    An update makes it d * average + (1 - d) * weights; it begins at the first weights. Update n has
    d = min(decay, (1 + n) / (10 + n)) with ``warmup``, as TensorFlow's ExponentialMovingAverage:
    a short run is not judged by the weights that were drawn. Floating-point buffers are averaged as
    the weights are, as timm's ModelEmaV3 and torchvision's references do.

    decay: The share of the average that an update keeps, 0 or more, less than 1.
    every: The time between two updates.
    warmup: Keep less in the first updates, so that a short run forgets its first weights.
    """

    def __init__(
        self,
        model: nn.Module,
        steps_per_epoch: int,
        decay: float = 0.999,
        every: Duration = ONCE_A_STEP,
        warmup: bool = True,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be 0 or more and less than 1, not {decay}")
        super().__init__(model, with_buffers=True)
        self.decay, self.warmup = decay, warmup
        self.every = steps_of(every, steps_per_epoch)

    def after_step(self, step: int) -> None:
        """Take the weights in, if their time has come."""
        if step % self.every:
            return
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.warmup else self.decay
        torch._foreach_lerp_(self._own, self._live, 1 - decay)


class SWA(Average):
    """Stochastic weight averaging: the mean of weights at ``start`` and each ``every`` after it.

    Izmailov et al., 2018, "Averaging weights leads to wider optima and better generalization",
    algorithm 1. Batch norm's statistics are measured anew on the training images before the mean is
    judged, as torch.optim.swa_utils.update_bn does. The learning rate is the scheduler's: one that
    goes to 0 leaves nothing to average.

    start: When the first weights are taken; before, the trained ones are judged.
    every: The time between two that are taken.
    """

    def __init__(
        self,
        model: nn.Module,
        steps_per_epoch: int,
        start: Duration,
        every: Duration = ONCE_AN_EPOCH,
    ) -> None:
        super().__init__(model)
        self.start = steps_of(start, steps_per_epoch)
        self.every = steps_of(every, steps_per_epoch)
        self._statistics: dict[str, Tensor] = {}

    def after_step(self, step: int) -> None:
        """Take the weights in, if their time has come."""
        if step < self.start or (step - self.start) % self.every:
            return
        torch._foreach_lerp_(self._own, self._live, 1 / (self.count + 1))
        self.count += 1

    def judged(self) -> dict[str, Tensor]:
        """The mean, and the statistics last measured for it."""
        return {**self.values, **self._statistics} if self.count else {}

    def needs_statistics(self) -> bool:
        """Whether the model has batch norm layers whose statistics are to be measured."""
        return self.count > 0 and bool(measuring(self.model))

    def take_statistics(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        autocast: Callable[[], AbstractContextManager[None]],
        reseed: Callable[[int], None],
    ) -> None:
        """Measure batch norm's statistics over ``batches``, the mean of each batch's.

        The model must hold the average (``applied``) and takes them. ``reseed`` is called with each
        batch's number, for dropout. Layers that are frozen keep theirs.
        """
        layers = measuring(self.model)
        momenta = [layer.momentum for layer in layers]
        try:
            for layer in layers:
                layer.reset_running_stats()
            with torch.no_grad():
                for number, (images, _) in enumerate(batches):
                    reseed(number)
                    for layer in layers:
                        layer.momentum = 1 / (number + 1)  # as None, which would ask the device
                    with autocast():
                        self.model(images)
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
        names = [name for name in self._changing if name not in self.values]
        self._statistics = {name: self._all[name].clone() for name in names}


class Lookahead(Average):
    """Slow weights: every ``steps`` steps they go part of the way, and training goes on from there.

    Zhang, Lucas, Hinton and Ba, 2019, "Lookahead optimizer: k steps forward, 1 step back",
    algorithm 1. The slow weights are judged, with batch norm's statistics as they are. The
    optimizer's momentum stays as it is.

    steps: The steps between two meetings, the paper's k.
    alpha: The share of the way to the trained weights, more than 0, at most 1.
    """

    def __init__(
        self, model: nn.Module, steps_per_epoch: int, steps: int = 5, alpha: float = 0.5
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, not {steps}")
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be more than 0 and at most 1, not {alpha}")
        super().__init__(model)
        self.steps, self.alpha = steps, alpha

    def after_step(self, step: int) -> None:
        """Have slow and trained weights meet, if their time has come."""
        if step % self.steps:
            return
        self.count += 1
        torch._foreach_lerp_(self._own, self._live, self.alpha)
        torch._foreach_copy_(self._live, self._own)


def steps_of(duration: Duration, steps_per_epoch: int) -> int:
    """A duration of steps or epochs in steps."""
    return duration.value * (steps_per_epoch if duration.unit == "ep" else 1)


def measuring(model: nn.Module) -> list[_BatchNorm]:
    """The batch norm layers that take statistics in training: those that are not frozen."""
    train_mode(model)  # whoever judges or trains sets the mode anyway
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
    ]
