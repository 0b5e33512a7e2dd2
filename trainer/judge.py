"""How good a model is on a split: loss and metrics, measured once over all of it."""

from typing import Any

from torch import Tensor, nn

from trainer.components import build
from trainer.config import Config
from trainer.losses import probabilities
from trainer.tables import METRICS


def judge(config: Config, logits: Tensor, labels: Tensor, loss_fn: nn.Module) -> dict[str, Any]:
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
