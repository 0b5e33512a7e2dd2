"""The training step, and the prediction of a whole split: all the arithmetic of a run."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from models.dropout import rows_of
from models.freeze import train_mode
from trainer.distributed import added_up, averaging, gathered, is_main, rank, world_size
from trainer.guard import Guard
from trainer.loader import cut
from trainer.precision import FP32, Precision
from trainer.schedulers import Schedule
from trainer.sharding import clip
from transforms.keyed import seed_at, seed_of

Batches = Iterable[tuple[Tensor, Tensor]]
NOTHING = torch.zeros(())  # of a sum that has not begun
Teacher = Callable[[Tensor, Tensor, Tensor], Tensor]  # of images, logits and loss, the loss


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
    precision: Precision = FP32,
    teacher: Teacher | None = None,
    wholes: Iterable[int] | None = None,
) -> Iterator[int]:
    """Update ``model`` once a batch, yielding its number of images.

    The caller logs, saves and stops between two steps; nothing here waits for the device.
    ``accumulate`` cuts a batch into that many parts to save memory: the gradient stays the batch's
    mean. Dropout is drawn anew from (seed, step), so that a resumed run draws what an uninterrupted
    one does. ``guard`` keeps the optimizer from a step whose loss or gradient is no number, and
    remembers both of each step, and how many images were right. ``precision`` is the arithmetic of
    the forward pass; a ``teacher`` has its share in the loss.

    Where processes share each batch, ``wholes`` tells how many images it has in all of them:
    gradient, loss, and what was right are those of the whole batch.
    """
    train_mode(model)
    rows = rows_of(model)
    alike = rows is not None or rank() == 0  # masks are of whole batches, or each process's own
    draws = seed_of(seed, "step") if alike else seed_of(seed, "step", rank())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    scaler, processes = precision.scaler, world_size()
    sizes = iter(wholes) if wholes is not None else None
    for images, labels in batches:  # (B, C, H, W) float32; (B,) int64 or (B, num_classes) float32
        whole = len(images) if sizes is None else next(sizes)
        reseed(device, seed_at(draws, step))
        optimizer.zero_grad(set_to_none=True)
        guard.begin()
        loss, correct = NOTHING, NOTHING
        for some, targets, share, low, is_last in in_parts(images, labels, whole, accumulate):
            if rows is not None:
                rows.take(low, low + len(some), whole, device)
                reseed(device, seed_at(draws, step))
            with averaging(model, is_last), precision.autocast():
                logits = model(some).float()
                mean = loss_fn(logits, targets)
                if teacher is not None:
                    mean = teacher(some, logits, mean)
            # The gradients of parts are added, those of processes averaged.
            scaled: Tensor = scaler.scale(times(mean, share * processes))
            scaled.backward()  # type: ignore[no-untyped-call]
            mean = times(mean.detach(), share)
            right = times(number_right(logits, targets), float(share > 0))
            loss, correct = plus(loss, mean), plus(correct, right)
        loss, correct = added_up(loss, correct)
        scaler.unscale_(optimizer)
        norm = (
            guard.norm(parameters) if clip_grad_norm is None else clip(parameters, clip_grad_norm)
        )
        scale = scaler.scale(torch.ones_like(loss)) if scaler.is_enabled() else None
        if guard.passes(step, whole, loss, norm, correct, scale):
            optimizer.step()  # not by the scaler, whose verdict the guard's includes
        scaler.update()
        schedule.after_step()
        step += 1
        yield whole


def in_parts(
    images: Tensor, labels: Tensor, whole: int, accumulate: int
) -> Iterator[tuple[Tensor, Tensor, float, int, bool]]:
    """This process's images in as many parts as every other has, each with its labels, its share

    in the mean over the ``whole`` batch, where in that it begins, and whether it is the last. A
    share is 0 where the batch has fewer images than processes: then the images only fill a place.
    """
    low, high = cut(whole, rank(), world_size())
    parts = min(accumulate, max(whole // world_size(), 1))
    if parts == 1:
        yield images, labels, (high - low) / whole, low, True
        return
    pieces = zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True)
    for number, (some, targets) in enumerate(pieces, start=1):
        yield some, targets, len(some) / whole if high > low else 0.0, low, number == parts
        low += len(some)


def times(value: Tensor, factor: float) -> Tensor:
    """The product, for nothing where the factor is 1."""
    return value if factor == 1.0 else value * factor


def plus(total: Tensor, value: Tensor) -> Tensor:
    """The sum, for nothing where there is no total yet."""
    return value if total is NOTHING else total + value


@torch.inference_mode()
def predict(
    model: nn.Module, batches: Batches, precision: Precision = FP32
) -> tuple[Tensor, Tensor]:
    """Logits (N, num_classes) and labels (N,) of a whole split, on the CPU.

    Where processes share the split's batches, the main one gets all of them, others nothing.
    Images without labels only fill a place.
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


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, num_classes) of a batch (B, C, H, W); the mean over crops, (B, crops, C, H, W)."""
    logits: Tensor = model(images.flatten(0, -4)).float()
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
