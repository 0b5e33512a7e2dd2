"""The training step: forward pass, loss, backward pass, update."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.freeze import train_mode
from trainer.build.job import Job
from trainer.components.schedulers import Schedule
from trainer.distributed.micro_batches import MicroBatches, choose_micro_batches
from trainer.distributed.processes import world_size
from trainer.loop.guard import Guard

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (images, logits, labels) -> scalar


@dataclass(frozen=True)
class Task:
    """What the steps of a run work with; made once a run.

    loss takes images (B, C, H, W), logits (B, num_classes) and labels (B,), or (B, num_classes) if
    they are mixed, and returns the mean loss.  scaler scales the loss for fp16; else it does
    nothing.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    micro_batches: MicroBatches
    scaler: torch.amp.GradScaler
    schedule: Schedule
    guard: Guard


def train_steps(task: Task, batches: Batches, first: int) -> Iterator[int]:
    """Update the weights once per batch; after each, yield how many images the batch had.

    ``first`` is the number of the first step, from 0. The caller logs, saves and stops between two
    steps. With a fused optimizer nothing here waits for a GPU, but see ``Guard.accepts``.
    """
    network, optimizer, scaler, guard = task.network, task.optimizer, task.scaler, task.guard
    train_mode(network)
    for step, (images, labels) in enumerate(batches, first):  # (B, C, H, W) float32; (B,) int64
        drop_gradients(guard.parameters)
        guard.begin(step)
        for micro in task.micro_batches(step, images, labels):  # as a rule one: the batch itself
            with micro.forward:
                logits = network(micro.images).float()  # (b, num_classes)
            loss = task.loss(micro.images, logits, micro.labels)  # without autocast: in float32
            scaler.scale(micro.for_backward(loss)).backward()  # type: ignore[no-untyped-call]
            guard.add(micro, loss, logits)
        if guard.accepts(scaler):  # finite; unscaled and clipped, so scaler.step is not needed
            optimizer.step()
        scaler.update()
        task.schedule.after_step()
        yield guard.images


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Set every gradient to None.

    ``optimizer.zero_grad`` also reports to the profiler. Without it, a step took 173 microseconds
    instead of 188.
    """
    for parameter in parameters:
        parameter.grad = None


def new_task(job: Job, guard: Guard) -> Task:
    """The task of a job that is ready to train."""
    config, loader = job.config, job.train_loader

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        mean: Tensor = job.loss_fn(logits, labels)
        return mean

    def batch_size_at(step: int) -> int:
        return loader.size(step % len(loader))

    return Task(
        network=job.network,
        optimizer=job.optimizer,
        loss=loss
        if job.teacher is None
        else job.teacher.around(job.loss_fn, job.precision.autocast),
        micro_batches=choose_micro_batches(
            job.network,
            job.device,
            config.seed,
            config.train.accumulate,
            job.precision.autocast,
            batch_size_at if world_size() > 1 else None,
        ),
        scaler=job.precision.scaler,
        schedule=job.schedule,
        guard=guard,
    )
