"""Evaluation of a split: predict all of its images, then measure loss and metrics once."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.build.model import logits_of
from trainer.build.precision import FP32, Precision
from trainer.components import METRICS
from trainer.components.losses import probabilities
from trainer.config import Config
from trainer.config.construct import build
from trainer.distributed.processes import gathered, is_main, world_size


@torch.inference_mode()
def predict(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision = FP32
) -> tuple[Tensor, Tensor]:
    """Logits (N, num_classes) and labels (N,) of a whole split, on the CPU.

    If ranks share the split's batches, rank 0 gets all of them and the others get none. Padding
    images, which have no label, give no row.
    """
    model.eval()
    done = []
    for images, labels in batches:
        with precision.autocast():
            done.append((logits_of(model, images)[: len(labels)], labels))
    if world_size() > 1:
        done = gathered([(logits.cpu(), labels.cpu()) for logits, labels in done])
        if not is_main():
            return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
    all_logits, all_labels = zip(*done, strict=True)
    return torch.cat(all_logits).cpu(), torch.cat(all_labels).cpu()


def evaluate(config: Config, logits: Tensor, labels: Tensor, loss_fn: nn.Module) -> dict[str, Any]:
    """``{"loss": ..., "accuracy": ...}`` of a whole split, never a mean of batch means.

    logits (N, num_classes) and labels (N,) on the CPU. Keys are the metrics' names in the YAML's
    order; a value is a float, or a nested list for the confusion matrix.
    """
    device = next((buffer.device for buffer in loss_fn.buffers()), logits.device)
    values: dict[str, Any] = {"loss": loss_fn(logits.to(device), labels.to(device)).item()}
    chances = probabilities(config.loss.name, logits)
    for i, metric in enumerate(config.metrics):
        measure = build(METRICS, f"metrics.{i}", metric, probabilities=chances, labels=labels)
        values[metric.name] = measure
    return values


def scalars(values: dict[str, Any]) -> dict[str, float]:
    """Those values that can be drawn as a curve."""
    return {name: value for name, value in values.items() if isinstance(value, float)}
