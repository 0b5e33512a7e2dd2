"""Distillation: a student model learns from a teacher's logits for the same images."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.build.model import logits_of
from trainer.build.trained import TrainedModel, load_with
from trainer.components import OF_SEVERAL_LABELS
from trainer.config import Config, load_config
from trainer.config.settings import Component
from trainer.distributed.micro_batches import Autocast
from trainer.input.subset import Subset
from trainer.process.errors import (
    NO_ANSWER,
    ConfigError,
    OutOfMemory,
    RunError,
    UsageError,
    in_plain_words,
)
from trainer.process.words import shortened
from trainer.run.folder import find_run

VALUES = ("Normalize", "LinearTransformation")  # transforms that scale the pixel values


@dataclass(frozen=True)
class Distillation:
    """The loss with a teacher: (1 - w) * loss + w * T^2 * KL(teacher || student).

    Both distributions are the softmax of logits / T. KL is the mean over the images. T^2 keeps the
    gradient's size when T changes. Source: Hinton, Vinyals and Dean, 2015, "Distilling the
    knowledge in a neural network", section 2.

    run is the teacher's folder, digest the SHA-256 of its model.pt, epoch that of these weights.
    """

    model: nn.Module
    weight: float
    temperature: float
    run: Path
    digest: str
    epoch: int | None = None

    def __call__(
        self, images: Tensor, logits: Tensor, loss: Tensor, autocast: Autocast = nullcontext
    ) -> Tensor:
        """The loss with the teacher, a scalar, from images (B, C, H, W), logits (B, K) and loss.

        logits and loss: the student's. The teacher computes under ``autocast``, gets no gradient
        and draws no random numbers.
        """
        with torch.no_grad(), autocast():
            answers = self.model(images)
        divergence = F.kl_div(
            F.log_softmax(logits.float() / self.temperature, dim=1),
            F.log_softmax(answers.float() / self.temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * divergence

    def around(
        self, loss_fn: nn.Module, autocast: Autocast
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The loss function of a step: ``loss_fn`` combined with the teacher."""
        return lambda images, logits, labels: self(
            images, logits, loss_fn(logits, labels), autocast
        )

    @torch.no_grad()
    def require_answers(self, config: Config, subset: Subset) -> None:
        """Raise ConfigError if it has no finite answers to training images, of each size."""
        device = next(self.model.parameters()).device
        for of_size in subset.of_each_size:
            images, _ = of_size.sample(subset.extremes[:2])
            reason = NO_ANSWER
            try:
                is_finite = logits_of(self.model, images.to(device)).isfinite().all()
            except Exception as error:
                if not config.train.sizes or isinstance(in_plain_words(error), OutOfMemory):
                    raise
                is_finite, reason = torch.tensor(False), "train.sizes: it cannot take their size"
            if not is_finite:
                message = f"{self.run} cannot teach this run: {reason} for its training images"
                raise ConfigError([config.fault("distill.run", message)])

    def description(self) -> dict[str, Any]:
        """The teacher's run and digest, for result.json."""
        return {"run": str(self.run), "weights": {"sha256": self.digest}}


def load_teacher(
    config: Config, classes: tuple[str, ...], input_shape: tuple[int, int, int]
) -> Distillation:
    """The teacher that ``distill`` names, on the student's device.

    Raises ConfigError if its run has no weights, or if it was trained with other classes, another
    image size (C, H, W) or another normalisation than the student.
    """
    distill = config.distill
    assert distill is not None  # the caller has checked it
    require_softmax(config)
    place = [f"train.device={config.train.device}", f"train.threads={config.train.threads}"]
    try:
        run = find_run(distill.run)
        trained = load_with(load_config(run / "config.yaml", place), run)
    except (UsageError, RunError, ConfigError) as error:
        message = f"cannot teach: {error}"
        raise ConfigError([config.fault("distill.run", message)]) from None
    if reason := mismatch(config, trained, classes, input_shape):
        message = f"{run} cannot teach this run: {reason}"
        raise ConfigError([config.fault("distill.run", message)])
    model = trained.model.requires_grad_(False)
    return Distillation(
        model, distill.weight, distill.temperature, run, trained.digest, trained.epoch
    )


def require_softmax(config: Config) -> None:
    """Raise ConfigError for a student whose loss is not on a softmax of its logits.

    BCE trains one sigmoid for each class. The KL of sigmoids would be another method, and no
    temperature makes logits for a sigmoid comparable with logits for a softmax.
    """
    if config.loss.name in OF_SEVERAL_LABELS:
        message = (
            f"{config.loss.name} trains a sigmoid a class, and distill compares softmax "
            "probabilities; expected a loss such as CrossEntropyLoss"
        )
        raise ConfigError([config.fault("loss", message)])


def mismatch(
    config: Config, teacher: TrainedModel, classes: tuple[str, ...], shape: tuple[int, int, int]
) -> str:
    """Why a teacher cannot be used for the student's images; empty if it can."""
    if teacher.classes != classes:
        order = "in another order" if set(teacher.classes) == set(classes) else "other ones"
        return (
            f"its classes are {order}: {first_names(teacher.classes)}; here {first_names(classes)}"
        )
    if teacher.input_shape != shape:
        its, here = (" x ".join(map(str, sizes)) for sizes in (teacher.input_shape, shape))
        return f"it was trained on images of {its} (channels, height, width); here they are {here}"
    if teacher.config.loss.name in OF_SEVERAL_LABELS:
        return f"its loss, {teacher.config.loss.name}, trains a sigmoid a class, not a softmax"
    its_values = values(teacher.config.transforms.eval)
    own_values = values(config.transforms.train)
    if its_values != own_values:
        return (
            f"its images were made by {transforms_text(its_values)}, and this run's "
            f"transforms.train has {transforms_text(own_values)}"
        )
    return ""


def values(transforms: tuple[Component, ...]) -> list[tuple[str, dict[str, Any]]]:
    """The transforms in a list that scale the pixel values, besides the scaling to 0-1."""
    return [
        (item.name, {name: value for name, value in item.arguments.items() if name != "inplace"})
        for item in transforms
        if item.name in VALUES
    ]


def transforms_text(transforms: list[tuple[str, dict[str, Any]]]) -> str:
    """The transforms as text inside a sentence."""
    texts = []
    for name, arguments in transforms:
        pairs = (f"{key} {shortened(str(value), 100)}" for key, value in arguments.items())
        texts.append(f"{name} ({', '.join(pairs)})")
    return " and ".join(texts) or "no Normalize"


def first_names(names: tuple[str, ...]) -> str:
    """The first ten class names."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
