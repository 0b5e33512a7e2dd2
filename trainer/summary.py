"""What is said of a job before it runs and after: the first and the last lines of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from models.freeze import train_mode
from trainer.console import duration
from trainer.job import Job
from trainer.judge import scalars
from trainer.loop import to_device
from trainer.run import device_name

Say = Callable[[str], None]


def introduce(job: Job, say: Say) -> None:
    """Say what will be trained, on what."""
    config, data = job.config, job.data
    parameters = list(job.model.parameters())
    count = sum(p.numel() for p in parameters)
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    sizes = ", ".join(f"{name} {len(part):,}" for name, part in data.parts.items())
    say(f"device  {device_name(job.device)}, torch {torch.__version__}, seed {config.seed}")
    say(f"data    {config.dataset.name}, {len(data.classes)} classes: {sizes}")
    size = " x ".join(map(str, job.input_shape))
    still = f" ({frozen:,} frozen)" if frozen else ""
    say(f"model   {config.model.name}, {count:,} parameters{still}, input {size}")


def conclude(run: Path, result: dict[str, Any], say: Say) -> None:
    """Say what came out, and what a user does next."""
    test = ", ".join(f"{name} {value:.4f}" for name, value in scalars(result["test"]).items())
    speed = result["images_per_second"]
    per_second = f", {speed:,.0f} images/s" if speed else ""
    say(f"best    epoch {result['best']['epoch']} of {result['epochs']}")
    say(f"test    {test}")
    if note := result["dataset"]["note"]:
        say(f"note    {note}")
    say(f"time    {duration(result['train_seconds'])} of training{per_second}")
    say(f"report  {run / 'report' / 'report.md'}")
    say(f"next    python -m trainer.evaluate {run}")
    say(f"        tensorboard --logdir {run.parent.parent}")


def dry_run(job: Job, say: Say) -> None:
    """Push one batch through model, loss and gradient, and say how the data is prepared."""
    introduce(job, say)
    for side, part in (("train", job.data.parts["train"]), ("eval", job.data.parts["val"])):
        kept = "decoded anew each epoch" if part.images is None else "kept in memory"
        say(f"{side:<7} {kept} after the once-per-sample transforms")
        for name, stage in part.pipeline.description:
            say(f"        {name:<24} {stage}")
    say(f"workers {job.train_loader.workers}, {len(job.train_loader):,} steps an epoch")
    images, labels = next(job.train_loader.epoch())
    train_mode(job.model)
    loss = job.loss_fn(job.model(to_device(images, job.device)), to_device(labels, job.device))
    loss.backward()
    say(f"batch   {' x '.join(map(str, images.shape))}, loss {loss.item():.4f}")
    say("dry run: nothing was written")
