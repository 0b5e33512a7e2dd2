"""Averages of the weights, to be evaluated and saved. Of them, only Lookahead changes training.

An average keeps its own tensors, by their names in the model's state_dict. It counts all steps,
also those that are skipped for a loss that is not finite (the weights do not move in them): so it
never depends on when a GPU answers. Frozen parameters are not averaged.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.freeze import train_mode
from trainer.components.duration import Duration

ONCE_A_STEP, ONCE_AN_EPOCH = Duration(1, "st"), Duration(1, "ep")


class Average:
    """Base of the averages: their tensors, and a model that can hold them for a while.

    count: the number of updates. While it is 0, the model's own weights are evaluated.
    """

    def __init__(self, model: nn.Module, with_buffers: bool = False) -> None:
        """``with_buffers``: average floating-point buffers (batch-norm statistics) too."""
        # A shared parameter is listed with all its names.
        parameters = model.named_parameters(remove_duplicate=False)
        moving = {name for name, parameter in parameters if parameter.requires_grad}
        buffers = dict(model.named_buffers(remove_duplicate=False))
        if with_buffers:
            moving |= {name for name, buffer in buffers.items() if buffer.is_floating_point()}
        self.model, self.count = model, 0
        self._all = model.state_dict()  # shares the model's memory
        self._changing = [name for name in self._all if name in moving or name in buffers]
        self.values = {name: self._all[name].clone() for name in self._all if name in moving}
        self._own = list(self.values.values())
        self._live = [self._all[name] for name in self.values]

    def after_step(self, step: int) -> None:
        """Update the average after step ``step`` (from 1). Never waits for the device."""
        raise NotImplementedError

    def averaged(self) -> dict[str, Tensor]:
        """The tensors that replace the model's in evaluation, by their names."""
        return self.values if self.count else {}

    def weights(self) -> dict[str, Tensor]:
        """The state_dict to evaluate and save; what is not averaged shares the model's memory."""
        weights = self.model.state_dict()  # with torch's version numbers
        weights.update(self.averaged())
        return weights

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager: inside, the model holds the average; afterwards its own weights."""
        kept = {name: self._all[name].clone() for name in self._changing if self.count}
        try:
            self._put(self.averaged())
            yield
        finally:
            self._put(kept)

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._all[name].copy_(tensor)

    def needs_statistics(self) -> bool:
        """Whether ``take_statistics`` must be called before the average is evaluated."""
        return False

    def take_statistics(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        autocast: Callable[[], AbstractContextManager[None]],
        reseed: Callable[[int], None],
    ) -> None:
        """Measure the batch-norm statistics of the average; only SWA does."""

    def state_dict(self) -> dict[str, Any]:
        """A state from which ``load_state_dict`` continues exactly."""
        return {"count": self.count, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``; raises ValueError if it is no average of these weights."""
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

    It begins with the initial weights; an update makes it d * average + (1 - d) * weights. With
    ``warmup``, update n has d = min(decay, (1 + n) / (10 + n)), as TensorFlow's
    ExponentialMovingAverage: the random initial weights soon count for little. Floating-point
    buffers are averaged like weights, as in timm's ModelEmaV3 and torchvision's references.

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
        """Update the average every ``every`` steps."""
        if step % self.every:
            return
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.warmup else self.decay
        torch._foreach_lerp_(self._own, self._live, 1 - decay)


class SWA(Average):
    """Stochastic weight averaging: the mean of weights at ``start`` and each ``every`` after it.

    Izmailov et al., 2018, "Averaging weights leads to wider optima and better generalization",
    algorithm 1. Before the mean is evaluated, the batch-norm statistics are measured again on the
    training images, as torch.optim.swa_utils.update_bn does. The learning rate is the scheduler's:
    with a rate near 0 the weights hardly move, and their mean is no better than they are.

    start: When the first weights are taken; before, the trained ones are evaluated.
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
        """Add the weights to the mean at step ``start``, and then every ``every`` steps."""
        if step < self.start or (step - self.start) % self.every:
            return
        torch._foreach_lerp_(self._own, self._live, 1 / (self.count + 1))
        self.count += 1

    def averaged(self) -> dict[str, Tensor]:
        """The mean of the weights, and the batch-norm statistics last measured for it."""
        return {**self.values, **self._statistics} if self.count else {}

    def needs_statistics(self) -> bool:
        """Whether the model has batch norm layers whose statistics must be measured."""
        return self.count > 0 and bool(unfrozen_batch_norms(self.model))

    def take_statistics(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        autocast: Callable[[], AbstractContextManager[None]],
        reseed: Callable[[int], None],
    ) -> None:
        """Measure the batch-norm statistics: the mean over ``batches`` of each batch's statistics.

        The model must hold the average (see ``applied``); it then has the new statistics too.
        ``reseed`` is called with the number of each batch, for dropout. Frozen layers keep theirs.
        """
        measure_statistics(self.model, unfrozen_batch_norms(self.model), batches, autocast, reseed)
        names = [name for name in self._changing if name not in self.values]
        self._statistics = {name: self._all[name].clone() for name in names}


class Lookahead(Average):
    """Slow weights: every ``steps`` steps they move towards the trained ones, which restart there.

    Zhang, Lucas, Hinton and Ba, 2019, "Lookahead optimizer: k steps forward, 1 step back",
    algorithm 1. The slow weights are evaluated, with the batch-norm statistics as they are. The
    optimizer's momentum stays as it is.

    steps: The steps between two moves of the slow weights, the paper's k.
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
        """Every ``steps`` steps move the slow weights, and set the trained ones to them."""
        if step % self.steps:
            return
        self.count += 1
        torch._foreach_lerp_(self._own, self._live, self.alpha)
        torch._foreach_copy_(self._live, self._own)


def measure_statistics(
    model: nn.Module,
    layers: Sequence[_BatchNorm],
    batches: Iterable[tuple[Tensor, Tensor]],
    autocast: Callable[[], AbstractContextManager[None]],
    reseed: Callable[[int], None],
) -> None:
    """Set the statistics of batch norm layers to the mean over ``batches`` of each batch's.

    The model's mode is the caller's. ``reseed`` is called with the number of each batch.
    """
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
        with torch.no_grad():
            for number, (images, _) in enumerate(batches):
                reseed(number)
                for layer in layers:
                    layer.momentum = 1 / (number + 1)  # like None, which waits for the device
                with autocast():
                    model(images)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def steps_of(duration: Duration, steps_per_epoch: int) -> int:
    """The number of steps of a duration, which is given in steps or epochs."""
    return duration.value * (steps_per_epoch if duration.unit == "ep" else 1)


def unfrozen_batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norm layers that update their statistics in training. Sets ``train_mode``."""
    train_mode(model)  # evaluation and training set their own mode afterwards
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
    ]
