"""The number format of the arithmetic: autocast, and the scaling of fp16 gradients."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from trainer.config import Config

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The number format of a step. In fp32 and tf32 both fields do nothing.

    ``autocast`` wraps the forward pass; ``scaler`` scales fp16 gradients.
    """

    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: torch.amp.GradScaler


FP32 = Precision(nullcontext, torch.amp.GradScaler("cpu", enabled=False))


def build_precision(config: Config, device: torch.device) -> Precision:
    """The Precision that ``train.precision`` names; also sets whether a GPU may use TF32.

    bf16 and fp16 are autocast's mixed precision (Micikevicius et al., 2018): weights, gradients,
    optimizer and some operations such as softmax stay in float32. The loss is computed without it.
    """
    name = config.train.precision
    if device.type == "cuda":  # PyTorch's own default lets convolutions round to 10 bits
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = name == "tf32"
    if name not in HALF:
        return FP32
    autocast = partial(torch.autocast, device.type, HALF[name])
    return Precision(autocast, torch.amp.GradScaler(device.type, enabled=name == "fp16"))


def notes_on_precision(config: Config, device: torch.device) -> list[str]:
    """Notes for the user if ``train.precision`` is slow on this device."""
    name = config.train.precision
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if name in ("tf32", "bf16") and capability < (8, 0) and torch.version.cuda:
            what = "computes in fp32" if name == "tf32" else "is slow with bf16: fp16 is faster"
            return [f"train.precision: this GPU has no {name} and {what}"]
    elif name == "tf32":
        return [f"train.precision: tf32 is NVIDIA's; on {device.type} it is fp32"]
    elif name in HALF and device.type == "cpu" and not _computes_in(name):
        return [f"train.precision: this CPU has no {name} arithmetic: fp32 is faster"]
    return []


def _computes_in(name: str) -> bool:
    """Whether the CPU reports instructions for ``bf16`` or ``fp16``, such as amx_bf16."""
    return any(has for what, has in torch.cpu.get_capabilities().items() if name in what)
