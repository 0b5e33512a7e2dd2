"""Batch norm before a run begins: batches of one image, and statistics that would lag behind."""

import math

import torch
from torch import nn

from models.freeze import train_mode
from trainer.build.job import Job
from trainer.components.averages import SWA, unfrozen_batch_norms
from trainer.input.loader import Loader
from trainer.process.errors import in_plain_words

STALE = 0.05  # the share of the initial statistics from which on a note tells


def note_on_statistics(job: Job) -> str:
    """A note if evaluation would use much of batch norm's initial statistics; or empty.

    Each forward pass in training replaces the share ``momentum`` of the running statistics. After n
    passes, (1 - momentum)^n of the initial ones is left, which say nothing of the images.
    """
    train, loader = job.config.train, job.train_loader
    momenta = [m.momentum for m in unfrozen_batch_norms(job.model) if m.momentum is not None]
    steps = train.epochs * len(loader)
    has_weights = job.config.model.trainer_arguments.get("weights") is not None
    if not momenta or has_weights or isinstance(job.average, SWA):
        return ""
    kept = 1 - min(momenta)
    left = kept ** (steps * train.accumulate)
    if left <= STALE:
        return ""
    mends = []
    if 0 < kept < 1:
        epochs = math.ceil(math.log(STALE, kept) / (len(loader) * train.accumulate))
        mends.append(f"train.epochs={epochs}")
    if steps > 1:
        start = f"average={{name: SWA, start: {steps // 2}st}}"
        mends.append(f"{start}, which measures them anew,")
    return (
        f"batch norm's momentum is {min(momenta):.2g}: after the run's {steps:,} steps {left:.0%} "
        f"of its statistics are still the initial ones. Evaluation, which uses them, may stay at "
        f"chance; {' or '.join(mends)} mends that"
    )


def fails_on_one_image(loader: Loader, model: nn.Module) -> str:
    """The reason why the model cannot be trained on a batch of one image; empty if it can.

    Batch norm can, if it is frozen or if more than one pixel is left. Restores the model's buffers.
    """
    subset, device = loader.subset, loader.delivery.device
    images, _ = subset.sample(subset.extremes[:1])
    buffers = [buffer.clone() for buffer in model.buffers()]
    train_mode(model)
    try:
        devices = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            model(images.to(device))
    except (ValueError, RuntimeError) as error:
        if in_plain_words(error) is not error:  # the memory is full
            raise
        return str(error)
    finally:
        model.eval()
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return ""
