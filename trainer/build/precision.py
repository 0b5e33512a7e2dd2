"""The number format of the arithmetic: autocast, and the scaling of fp16 gradients."""

import shlex
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
    On a CPU so do depthwise convolutions in training that are slow in half precision (``prepare``).
    """
    name = config.train.precision
    if device.type == "cuda":  # PyTorch's own default lets convolutions round to 10 bits
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = name == "tf32"
    if name not in HALF:
        return FP32
    autocast = partial(torch.autocast, device.type, HALF[name])
    return Precision(autocast, torch.amp.GradScaler(device.type, enabled=name == "fp16"))


def with_precision(config: Config, device: torch.device) -> Config:
    """The configuration with the precision that ``auto`` means on this device."""
    if config.train.precision != "auto":
        return config
    name = "bf16" if _is_fast_in_bf16(device) else "fp32"
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": name})})


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
    elif name in HALF and device.type == "cpu" and not computes_in(name, device):
        return [f"train.precision: this CPU has no {name} arithmetic: fp32 is faster"]
    return []


def computes_in(name: str, device: torch.device) -> bool:
    """Whether the device reports instructions for ``tf32``, ``bf16`` or ``fp16``."""
    if device.type == "cuda":
        newer = torch.cuda.get_device_capability(device) >= (8, 0) or not torch.version.cuda
        least_of_fp16 = (7, 0)  # Volta; below it fp16 saves memory only
        return {
            "tf32": newer and bool(torch.version.cuda),
            "bf16": newer,
            "fp16": torch.cuda.get_device_capability(device) >= least_of_fp16,
        }[name]
    # Such as avx512_bf16 or amx_bf16.
    found = any(has for what, has in torch.cpu.get_capabilities().items() if name in what)
    return device.type == "cpu" and found


def note_on_unused(config: Config, device: torch.device) -> str:
    """A note if the device has faster arithmetic than the fp32 that the YAML sets; else empty."""
    if config.train.precision != "fp32":
        return ""
    if device.type == "cpu":
        names = ["bf16"] * _is_fast_in_bf16(device)
    elif device.type == "cuda":
        names = [name for name in ("bf16", "tf32", "fp16") if computes_in(name, device)][:2]
    else:
        names = []
    if not names:
        return ""
    can = " and ".join(names)
    written = " or ".join(f"train.precision={name}" for name in names)
    kind = {"cuda": "GPU", "cpu": "CPU"}[device.type]
    return (
        f"this {kind} also computes in {can}, and the YAML in fp32. {written} may be faster, or "
        f"slower: python -m trainer.speed --config {shlex.quote(config.file)} measures it"
    )


def _is_fast_in_bf16(device: torch.device) -> bool:
    """Whether convolutions and products have instructions for bf16 here, and use them."""
    return computes_in("bf16", device) and (device.type != "cpu" or _bf16_is_for_onednn())


def _bf16_is_for_onednn() -> bool:
    """Whether oneDNN, which computes convolutions and products on a CPU, takes bf16 here."""
    return bool(torch.backends.mkldnn.enabled and torch.ops.mkldnn._is_mkldnn_bf16_supported())
