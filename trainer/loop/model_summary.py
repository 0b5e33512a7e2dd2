"""What a model consists of and costs: its layers, and the memory and time of real steps.

Everything but the FLOPs is measured: a forward pass, a step, some batches of training and of
validation. This changes the job, so it cannot be trained afterwards.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from models.freeze import train_mode
from trainer.build.job import Job
from trainer.drawing.columns import fit_columns, hang, left_out
from trainer.loop.evaluate import predict
from trainer.loop.guard import Guard
from trainer.loop.step import Batches, new_task, train_steps
from trainer.process.console import duration
from trainer.process.errors import worded

MOST_ROWS = 60  # of the table of layers; if there are more, deeper levels are summed up
TIMED_SECONDS = 1.5  # of training, or an epoch if it takes less
NO_LOSS = (
    "the first batch's loss is not finite: a run ends there. Look at transforms (Normalize?), "
    "loss and model"
)


@dataclass(frozen=True)
class Layer:
    """A row of the table. output: without the batch. parameters: shared ones count once.

    trainable: None without parameters, "part" if some are frozen.
    """

    name: str
    kind: str
    output: str
    parameters: int
    trainable: bool | str | None


@dataclass(frozen=True)
class Cost:
    """The bytes that a training step takes, and the seconds of an epoch.

    loss: of the first batch. activations: what the forward pass of a micro-batch keeps for the
    backward pass. peak: the most that the GPU held, None without a GPU.
    """

    batch: tuple[int, ...]
    loss: float
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    peak: int | None
    train_seconds: float
    val_seconds: float
    run_seconds: float


@dataclass(frozen=True)
class ModelSummary:
    """A job's model and its cost. flops: of one image's forward pass, or why none are counted."""

    rows: list[Layer]
    hidden: int  # layers without a row
    parameters: int
    frozen: int
    flops: int | str
    cost: Cost
    epochs: int


def summarize(job: Job) -> ModelSummary:
    """Measure a job that is ready to train. This changes the job's weights."""
    largest = max(epochs_of_sizes(job), key=lambda first: pixels(job, first))
    images, labels = (tensor.clone() for tensor in next(job.train_loader.epoch(largest)))
    flops, outputs = count_flops(job.model, images[:1])
    rows, hidden = table_of(job.model, outputs)
    parameters = list(job.model.parameters())
    return ModelSummary(
        rows=rows,
        hidden=hidden,
        parameters=sum(p.numel() for p in parameters),
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        flops=flops,
        cost=measure(job, images, labels),
        epochs=job.config.train.epochs,
    )


def count_flops(model: nn.Module, image: Tensor) -> tuple[int | str, dict[str, str]]:
    """Return the FLOPs of a forward pass of ``image`` (1, C, H, W), and each module's output shape.

    A multiplication and an addition are two FLOPs. As torch does, only convolutions, matrix
    products and attention are counted: other layers take time for memory, not for arithmetic.
    If torch cannot count them, FLOPs are the reason. The model is in eval mode afterwards.
    """
    from torch.utils.flop_counter import FlopCounterMode  # 0.1 s

    outputs: dict[str, str] = {}
    names = {module: name for name, module in model.named_modules()}

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[names[module]] = _shape(output)

    flops: int | str
    hooks = [module.register_forward_hook(record) for module in names]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its one fused kernel is not counted
    model.eval()
    try:
        # Without gradients the counter fails for a layer whose input is an expanded parameter.
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            model(image)
        flops = counter.get_total_flops()
    except Exception as error:  # the counter's: the model's forward has been rehearsed
        flops = f"not counted ({worded(error)[:200]})"
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for hook in hooks:
            hook.remove()
    return flops, outputs


def _shape(output: Any) -> str:
    """Return the shape, without the batch, of a tensor or of the first one in a collection."""
    if isinstance(output, Tensor):
        return " x ".join(map(str, output.shape[1:])) or "1"
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple) and output:
        more = f" (+{len(output) - 1})" if len(output) > 1 else ""
        return _shape(output[0]) + more
    return "-"


def table_of(model: nn.Module, outputs: dict[str, str]) -> tuple[list[Layer], int]:
    """The layers in order, as deep as MOST_ROWS allow, and the number of layers left out."""
    modules = [(name, module) for name, module in model.named_modules() if name] or [("", model)]
    deepest = max(name.count(".") for name, _ in modules)
    for depth in range(deepest, -1, -1):
        rows = list(_layer_rows(model, outputs, depth))
        if len(rows) <= MOST_ROWS:
            break
    return rows[:MOST_ROWS], max(len(rows) - MOST_ROWS, 0)


def _layer_rows(model: nn.Module, outputs: dict[str, str], depth: int) -> Iterator[Layer]:
    counted: set[int] = set()  # shared parameters count in the first module that has them
    for name, module in model.named_modules():
        level = name.count(".") if name else -1
        is_leaf = level == depth or not any(module.children())
        if level > depth or isinstance(module, nn.Identity):
            continue
        own = [p for p in module.parameters(recurse=is_leaf) if id(p) not in counted]
        counted.update(map(id, own))
        if not is_leaf and not own:  # the layers of a container have their own rows
            continue
        trained = {p.requires_grad for p in own}
        inside = sum(1 for inner in module.modules() if not any(inner.children()))
        kind = type(module).__name__
        yield Layer(
            name=name or "(model)",
            kind=f"{kind}, {inside} layers" if is_leaf and inside > 1 else kind,
            output=outputs.get(name, "-"),
            parameters=sum(p.numel() for p in own),
            trainable=None if not own else "part" if len(trained) > 1 else trained.pop(),
        )


def measure(job: Job, images: Tensor, labels: Tensor) -> Cost:
    """Measure a forward pass and a step of the first batch, and some batches of train and val."""
    train_mode(job.model)
    count = job.config.train.accumulate
    loss, activations = kept_for_backward(job, images.chunk(count)[0], labels.chunk(count)[0])
    on_gpu = job.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(job.device)
    began = now(job.device)
    for _ in real_steps(job, [(images, labels)]):
        pass
    step_seconds = now(job.device) - began
    is_slow = step_seconds > TIMED_SECONDS  # then one step is enough, and needs no warm-up
    peak = torch.cuda.max_memory_allocated(job.device) if on_gpu else None
    gradients = [p.grad for p in job.model.parameters() if p.grad is not None]
    parameters = [*job.model.parameters(), *job.model.buffers()]
    state = [v for kept in job.optimizer.state.values() for v in kept.values()]
    counts, epochs = epochs_of_sizes(job), job.config.train.epochs
    if is_slow and len(counts) == 1:
        train_seconds = step_seconds * len(job.train_loader)
    else:
        each = {first: time_training(job, first, warm_up=not is_slow) for first in counts}
        train_seconds = sum(each[first] * count for first, count in counts.items()) / epochs
    image_seconds = time_validation(job, warm_up=not is_slow)
    sizes = {split: len(images) for split, images in job.data.subsets.items()}
    evaluated = epochs * sizes["val"] + sizes["test"]  # each epoch on val, the best weights on test
    return Cost(
        batch=tuple(images.shape),
        loss=loss,
        parameters=bytes_of(parameters),
        gradients=bytes_of(gradients),
        optimizer=bytes_of([v for v in state if isinstance(v, Tensor)]),
        activations=activations,
        peak=peak,
        train_seconds=train_seconds,
        val_seconds=image_seconds * sizes["val"],
        run_seconds=epochs * train_seconds + image_seconds * evaluated,
    )


def kept_for_backward(job: Job, images: Tensor, labels: Tensor) -> tuple[float, int]:
    """Return the loss of a batch, and the bytes that its forward pass keeps for the backward pass.

    Weights do not count. Several views of one storage count once, as the whole storage. A compiled
    model may keep other tensors: the uncompiled model is measured.
    """
    known = {p.untyped_storage().data_ptr() for p in job.model.parameters()}
    known |= {b.untyped_storage().data_ptr() for b in job.model.buffers()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a result that the graph holds, itself, would hold the graph

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with job.precision.autocast():
            logits = job.model(images).float()
        loss = job.loss_fn(logits, labels)
    return loss.item(), sum(kept.values())


def real_steps(job: Job, batches: Batches) -> Iterator[Any]:
    """Do real steps of training, whatever their loss."""
    guard = Guard(
        job.model,
        job.optimizer,
        job.config.train.clip_grad_norm,
        several_labels=job.data.several_labels,
    )
    return train_steps(new_task(job, guard), batches, 0)


def epochs_of_sizes(job: Job) -> dict[int, int]:
    """The first epoch of each size of training images, with the number of the size's epochs."""
    epochs = job.config.train.epochs
    firsts = [first for first in job.config.train.sizes_by_epoch if first < epochs] or [0]
    return {first: end - first for first, end in pairwise([*firsts, epochs])}


def pixels(job: Job, epoch: int) -> int:
    """The pixels of an epoch's training images if ``train.sizes`` sets their size, else 0."""
    return math.prod(job.train_loader.subset.pipeline.size_at(epoch) or (0,))


def time_training(job: Job, first: int, warm_up: bool) -> float:
    """Return the seconds of an epoch's steps with loading, from those done in TIMED_SECONDS.

    The epoch is one with images of the size that epoch ``first`` has.
    """
    pipeline = job.train_loader.subset.pipeline
    after = first + (pipeline.size_at(first) == pipeline.size_at(first + 1))
    if warm_up:  # starts the workers, fills caches
        for _ in real_steps(job, islice(job.train_loader.epoch(first), 2)):
            pass
    done, began = 0, now(job.device)
    for _ in real_steps(job, job.train_loader.epoch(after)):
        done += 1
        if time.perf_counter() - began > TIMED_SECONDS:
            break
    return (now(job.device) - began) * len(job.train_loader) / done


def time_validation(job: Job, warm_up: bool) -> float:
    """Return the seconds to load and predict one image of the validation split."""
    if warm_up:
        predict(job.model, islice(job.val_loader.epoch(), 1), job.precision)
    done = 0

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal done
        for images, labels in job.val_loader.epoch():
            yield images, labels
            done += len(labels)
            if time.perf_counter() - began > TIMED_SECONDS / 3:
                return

    began = now(job.device)
    predict(job.model, batches(), job.precision)
    return (now(job.device) - began) / done


def now(device: torch.device) -> float:
    """Return the clock in seconds, after the GPU has done all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def bytes_of(tensors: list[Tensor]) -> int:
    """Return the bytes of the distinct tensors among ``tensors``."""
    return sum(t.nbytes for t in {id(t): t for t in tensors}.values())


def lines(summary: ModelSummary, width: int = 100) -> list[str]:
    """Return the summary as lines for a terminal of ``width`` columns."""
    cost = summary.cost
    flops = summary.flops if isinstance(summary.flops, str) else f"{scaled(summary.flops)}FLOPs"
    names = ("parameters", "gradients", "optimizer", "activations")
    memory = ", ".join(f"{name} {mebibytes(getattr(cost, name))}" for name in names)
    peak = "" if cost.peak is None else f"; at most {mebibytes(cost.peak)} at once on the GPU"
    images = " x ".join(map(str, cost.batch))
    frozen = f", {summary.frozen:,} of them frozen" if summary.frozen else ""
    epoch = f"{seconds(cost.train_seconds)} of training, {seconds(cost.val_seconds)} of validation"
    text = [
        f"total   {summary.parameters:,} parameters{frozen}; one image forward: {flops}",
        f"batch   {images}, loss {cost.loss:.4f}",
        *([] if math.isfinite(cost.loss) else [f"note    {NO_LOSS}"]),
        f"memory  {memory}{peak}",
        f"time    an epoch about {epoch}; {summary.epochs} epochs {seconds(cost.run_seconds)}",
    ]
    made = layer_table(summary, width)
    return made + [part for line in text for part in hang(line, 8, width)]


def layer_table(summary: ModelSummary, width: int = 100) -> list[str]:
    """Return the table of layers as lines of at most ``width``; it names columns without room."""
    cells = [("layer", "type", "output", "parameters", "trained")]
    words = {None: "", True: "yes", False: "no", "part": "part"}
    for row in summary.rows:
        number = f"{row.parameters:,}" if row.parameters else ""
        cells.append((row.name, row.kind, row.output, number, words[row.trainable]))
    drop, left = ("trained", "type", "output"), ("type", "output", "trained")
    rows, out = fit_columns(cells, width, drop, left)
    more = [f"... and {summary.hidden} more layers"] if summary.hidden else []
    return [*rows, *more, *left_out(out, width, "a wider terminal shows all")]


def scaled(number: int) -> str:
    """Return ``1540000`` as ``1.54 M``."""
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.4g} {letter}"
    return f"{number} "


def mebibytes(size: int) -> str:
    """Return bytes as MiB."""
    return f"{size / 2**20:,.1f} MiB"


def seconds(number: float) -> str:
    """Return seconds as text, such as ``1m35s`` or ``0.27 s``."""
    return duration(number) if number >= 10 else f"{number:.2g} s"
