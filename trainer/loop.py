"""The training step, and the prediction of a whole split: all the arithmetic of a run."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from models.freeze import train_mode
from trainer.guard import Guard
from trainer.schedulers import Schedule
from transforms.keyed import seed_at, seed_of

Batches = Iterable[tuple[Tensor, Tensor]]


def train_steps(
    model: nn.Module,
    batches: Batches,
    loss_fn: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    guard: Guard,
    device: torch.device,
    *,
    seed: int,
    step: int,
    accumulate: int = 1,
    clip_grad_norm: float | None = None,
) -> Iterator[int]:
    """Update ``model`` once a batch, yielding its number of images.

    The caller logs, saves and stops between two steps; nothing here waits for the device.
    ``accumulate`` cuts a batch into that many parts to save memory: the gradient stays the batch's
    mean. Dropout is drawn anew from (seed, step), so that a resumed run draws what an uninterrupted
    one does. ``guard`` keeps the optimizer from a step whose loss or gradient is no number, and
    remembers both of each step, and how many images were right.
    """
    train_mode(model)
    draws = seed_of(seed, "step")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for images, labels in batches:  # (B, C, H, W) float32; (B,) int64 or (B, num_classes) float32
        reseed(device, seed_at(draws, step))
        optimizer.zero_grad(set_to_none=True)
        guard.begin()
        if accumulate == 1:
            logits = model(images)
            loss = loss_fn(logits, labels)
            loss.backward()
            correct = number_right(logits, labels)
        else:
            loss, correct = torch.zeros(2, device=device)
            for some, targets in zip(
                images.chunk(accumulate), labels.chunk(accumulate), strict=True
            ):
                logits = model(some)
                share = loss_fn(logits, targets) * (len(some) / len(images))
                share.backward()
                loss += share.detach()
                correct += number_right(logits, targets)
        norm = (
            guard.norm(parameters)
            if clip_grad_norm is None
            else nn.utils.clip_grad_norm_(parameters, clip_grad_norm)
        )
        if guard.passes(step, len(images), loss, norm, correct):
            optimizer.step()
        schedule.after_step()
        step += 1
        yield len(images)


@torch.inference_mode()
def predict(model: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    """Logits (N, num_classes) and labels (N,) of a whole split, on the CPU."""
    model.eval()
    all_logits, all_labels = [], []
    for images, labels in batches:
        all_logits.append(logits_of(model, images))
        all_labels.append(labels)
    return torch.cat(all_logits).float().cpu(), torch.cat(all_labels).cpu()


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, num_classes) of a batch (B, C, H, W); the mean over crops, (B, crops, C, H, W)."""
    logits: Tensor = model(images.flatten(0, -4))
    return logits if images.ndim < 5 else logits.view(*images.shape[:2], -1).mean(dim=1)


def number_right(logits: Tensor, labels: Tensor) -> Tensor:
    """How many images' likeliest class is the true one; of mixed labels, that of greatest share."""
    if labels.ndim == 2:
        labels = labels.argmax(dim=1)
    return (logits.detach().argmax(dim=1) == labels).count_nonzero()


def reseed(device: torch.device, seed: int) -> None:
    """Seed the generator that dropout draws from on ``device``."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)  # torch.manual_seed visits every back end: slower
    else:
        torch.manual_seed(seed)
