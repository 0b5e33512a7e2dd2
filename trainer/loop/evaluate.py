"""Evaluation of a split: predict all of its images, then measure loss and metrics once."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.build.model import averaged_logits
from trainer.build.precision import FP32, HALF, Precision
from trainer.components import METRICS
from trainer.components.decisions import Answers
from trainer.components.losses import are_finite, in_steps, probabilities
from trainer.config import Config
from trainer.config.construct import build
from trainer.distributed.processes import gathered, is_main, world_size
from trainer.input.subset import Subset
from trainer.process.errors import NO_ANSWER
from trainer.process.words import visible


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: Precision = FP32,
    tta: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits (N, num_classes) and labels of a whole split, on the CPU.

    labels: (N,), or (N, num_classes) where an image may have several.

    ``tta``: see ``averaged_logits``.

    If ranks share the split's batches, rank 0 gets all of them and the others get none. Padding
    images, which have no label, give no row.
    """
    model.eval()
    done = []
    for images, labels in batches:
        with precision.autocast():
            done.append((averaged_logits(model, images, tta)[: len(labels)], labels))
    if world_size() > 1:
        done = gathered([(logits.cpu(), labels.cpu()) for logits, labels in done])
        if not is_main():
            return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
    all_logits, all_labels = zip(*done, strict=True)
    return torch.cat(all_logits).cpu(), torch.cat(all_labels).cpu()


def evaluate(
    config: Config,
    logits: Tensor,
    labels: Tensor,
    loss_fn: nn.Module | None,
    thresholds: Tensor | None = None,
) -> dict[str, Any]:
    """``{"loss": ..., "accuracy": ...}`` of a whole split, never a mean of batch means.

    logits (N, num_classes) and labels (N,) on the CPU, or (N, num_classes) of several labels, which
    are predicted from ``thresholds`` on. Keys are the metrics' names in the YAML's order; a value
    is a float, or a list for those with a number for each class. If a logit is NaN or infinite, the
    loss is NaN, and its image counts as wrong. Without ``loss_fn`` there is no loss.
    """
    answers = answers_of(config, logits, labels, thresholds)
    values: dict[str, Any] = {}
    if loss_fn is not None:
        is_lost = answers.probabilities[:, 0].isnan().any()
        loss = math.nan if is_lost else each_loss(loss_fn, logits, labels).mean().item()
        values = {"loss": loss}
    for i, metric in enumerate(config.metrics):
        value = build(METRICS, f"metrics.{i}", metric, **answers._asdict())
        is_number = metric.own and isinstance(value, numbers.Real)  # such as one of NumPy
        values[metric.name] = float(value) if is_number else value
    return values


@torch.no_grad()
def each_loss(loss_fn: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each image, (N,) float64 on the CPU; shapes are those of ``evaluate``.

    They are in steps (``in_steps``), so that any order of adding them gives the same sum.
    """
    device = next((buffer.device for buffer in loss_fn.buffers()), logits.device)
    logits, labels = logits.to(device), labels.to(device)
    if (each := getattr(loss_fn, "each", None)) is not None:
        losses: Tensor = each(logits, labels)
    else:  # a loss from elsewhere, which gives a mean
        rows = zip(logits[:, None], labels[:, None], strict=True)
        losses = torch.stack([loss_fn(logit, label) for logit, label in rows])
    return in_steps(losses.cpu())


def answers_of(
    config: Config, logits: Tensor, labels: Tensor, thresholds: Tensor | None = None
) -> Answers:
    """The answers that logits (N, num_classes) are; the labels tell whether there are several."""
    return Answers(probabilities(config.loss.name, logits, labels.ndim == 2), labels, thresholds)


def without_answer(logits: Tensor, subset: Subset, part: str) -> str:
    """A sentence on the images of ``subset`` with a logit that is NaN or infinite; or empty."""
    rows = (~are_finite(logits)).nonzero().flatten()
    if not len(rows):
        return ""
    ids = [subset.dataset.ids[i] for i in subset.indices[rows[:3]].tolist()]
    more = f" and {len(rows) - 3:,} more" if len(rows) > 3 else ""
    return (
        f"{NO_ANSWER} for {len(rows):,} of {len(logits):,} {part} images: "
        f"{', '.join(map(visible, ids))}{more}"
    )


def what_may_help(config: Config, model: nn.Module) -> str:
    """What helps if training is finite and evaluation is not."""
    parts = []
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        parts.append(
            "Evaluation uses batch norm's running statistics, which may lag behind: more epochs, a "
            "smaller loader.batch_size, or average={name: SWA, start: 1ep}, which measures them "
            "anew, may help."
        )
    if config.train.precision in HALF:
        parts.append(f"{config.train.precision} may be too narrow: try train.precision=fp32.")
    parts.append("In a new run, a lower optimizer.lr or train.clip_grad_norm=1 may help.")
    return " ".join(parts)


def scalars(values: dict[str, Any]) -> dict[str, float]:
    """Those values that can be drawn as a curve."""
    return {name: value for name, value in values.items() if isinstance(value, float)}
