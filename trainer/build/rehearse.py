"""Tries model and loss on two images before the run begins; chooses layout, prepares dropout."""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.dropout import draws_elsewhere, drop_out_by_batch
from models.freeze import train_mode
from trainer.build.model import check_size, ways_out
from trainer.components.averages import unfrozen_batch_norms
from trainer.config import Config
from trainer.distributed.fsdp import ELEMENTWISE_FUSED
from trainer.distributed.processes import world_size
from trainer.input.loader import Loader
from trainer.input.subset import Subset
from trainer.process.child import what_ends
from trainer.process.console import Say
from trainer.process.errors import ConfigError, Fault, OutOfMemory, in_plain_words, worded

SURVIVE = (
    "AlexNet",
    "CompactResNet",
    "LeNet",
    "MLP",
    "ResNet",
    "VGG",
)  # plain layers, whose kernels end no process
DEADLY = ": a fault of PyTorch, or of the model's own code, that no setting avoids"
OF_WHOLE_WEIGHTS = ("Adafactor", "Muon")  # they use rows and columns of a weight


def check_sharding(config: Config) -> None:
    """Raise ConfigError for settings that do not go with ``train.parallel: fsdp``."""
    faults: list[Fault] = []
    if config.optimizer.name in OF_WHOLE_WEIGHTS:
        message = f"{config.optimizer.name} needs whole weights, which train.parallel=fsdp cuts"
        faults.append(config.fault("optimizer.name", f"{message}; use AdamW or train.parallel=ddp"))
    if config.optimizer.arguments.get("fused") and config.optimizer.name not in ELEMENTWISE_FUSED:
        message = "PyTorch has no fused step of it for train.parallel=fsdp; leave it out"
        faults.append(config.fault("optimizer.fused", message))
    if config.train.precision == "fp16":
        message = "fp16 does not go with train.parallel=fsdp; use bf16"
        faults.append(config.fault("train.precision", message))
    if config.train.compile:
        message = "does not go with train.parallel=fsdp; leave it out, or use train.parallel=ddp"
        faults.append(config.fault("train.compile", message))
    if config.average is not None:
        message = "averages whole weights, which train.parallel=fsdp cuts; use train.parallel=ddp"
        faults.append(config.fault("average", message))
    if faults:
        raise ConfigError(faults)


def keep_dropout_alike(model: nn.Module, subset: Subset, device: torch.device, say: Say) -> None:
    """Let dropout draw masks of the batch over all ranks; if the model cannot, print a note."""
    images, _ = subset.sample(subset.extremes[:2])
    train_mode(model)
    if draws_elsewhere(model, images.to(device)):
        say(
            "note    the model draws random numbers beside its dropout layers: each process, and "
            "each micro-batch, has its own, and another number of them trains otherwise"
        )
    else:
        drop_out_by_batch(model)
    model.eval()


def choose_layout(
    config: Config,
    model: nn.Module,
    loss_fn: nn.Module,
    subsets: Sequence[Subset],
    device: torch.device,
    say: Say,
) -> bool:
    """Rehearse, and return whether images and weights are channels-last in memory.

    ``auto``: channels-last for convolutions on a CPU, where it is faster. Measuring here instead
    could differ in a resumed run and change last bits. A model that cannot do it stays contiguous,
    as does one whose step in this layout ends the process. Raises OutOfMemory if it is killed.
    """
    wanted = config.train.channels_last
    if wanted == "auto":
        has_convolutions = any(parameter.ndim == 4 for parameter in model.parameters())
        wanted = device.type == "cpu" and has_convolutions
    if wanted:
        model.to(memory_format=torch.channels_last)
    if ended := what_ends_a_step(config, model, loss_fn, subsets, device, wanted):
        if ended == "SIGKILL":  # no layout mends it; another one would change the run's bits
            what = f"the system killed a first step of {config.model.name} (SIGKILL)"
            raise in_plain_words(MemoryError(f"{what}, as it does when memory is short"))
        what = f"a step of {config.model.name} ends the process ({ended})"
        if not wanted or config.train.channels_last is True:
            message = f"{what}{' in this layout; write false' if wanted else DEADLY}"
            path = "train.channels_last" if wanted else "model"
            raise ConfigError([config.fault(path, message)])
        say(f"note    {what} with channels last in memory; it keeps channels first, and is slower")
        plain = config.train.model_copy(update={"channels_last": False})
        model.to(memory_format=torch.contiguous_format)
        config = config.model_copy(update={"train": plain})
        return choose_layout(config, model, loss_fn, subsets, device, say)
    try:
        for subset in subsets:
            logits = rehearse(config, subset, model, loss_fn, device, wanted)
    except ConfigError as error:
        is_of_layout = error.__cause__ is not None  # not of the size, or of the logits' shape
        if not (wanted and is_of_layout) or config.train.channels_last is True:
            raise
        model.to(memory_format=torch.contiguous_format)
        for subset in subsets:
            rehearse(config, subset, model, loss_fn, device, False)
        reason = str(error.__cause__).partition("\n")[0]
        say(f"note    {config.model.name} cannot keep channels last, and is slower: {reason}")
        return False
    if config.model.own and not config.loss.own and _are_shares(logits):
        say(
            f"note    {config.model.name} gives numbers from 0 to 1 with the sum 1, as softmax "
            f"does, and {config.loss.name} takes logits: end the model without softmax"
        )
    return wanted


def _are_shares(logits: Tensor) -> bool:
    """Whether each row of (N, num_classes) is as softmax gives it."""
    sums = logits.sum(dim=1)
    return bool(logits.shape[1] > 1 and (logits >= 0).all() and ((sums - 1).abs() < 0.01).all())


def what_ends_a_step(
    config: Config,
    model: nn.Module,
    loss_fn: nn.Module,
    subsets: Sequence[Subset],
    device: torch.device,
    channels_last: bool,
) -> str:
    """What ends a process that evaluates and trains a small batch; empty if nothing does.

    A kernel of PyTorch may end it by a signal. So this is tried in a child, for models that are not
    known to survive. The batch is of two images, or of eight small ones, to save time.
    """
    if device.type != "cpu" or sys.platform != "linux" or config.model.name in SURVIVE:
        return ""

    half, kind = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def step() -> None:
        torch.set_autocast_enabled("cpu", half)  # a thread has its own
        torch.set_autocast_dtype("cpu", kind)
        for subset in subsets:
            images, labels = two_images(subset, channels_last)
            count = 8 if images[0].numel() <= 3 * 64 * 64 else 2
            rows = torch.arange(min(config.loader.batch_size, count)) % len(images)
            images, labels = images[rows], labels[rows]  # in the same layout
            with torch.inference_mode():
                model.eval()(images)
            train_mode(model)
            loss_fn(model(images).float(), labels).backward()

    return what_ends(step)


@torch.inference_mode()
def rehearse(
    config: Config,
    subset: Subset,
    model: nn.Module,
    loss_fn: nn.Module,
    device: torch.device,
    channels_last: bool,
) -> Tensor:
    """The model's logits of two images, (2, num_classes); their loss is computed too.

    Raises ConfigError if that fails, as it would in evaluation; for a wrong image size it says
    which sizes fit.
    """
    images, labels = two_images(subset, channels_last)
    model.eval()
    num_classes = len(subset.dataset.classes)
    try:
        logits: Tensor = model(images.to(device)).float()
    except Exception as error:
        if isinstance(in_plain_words(error), OutOfMemory):
            raise
        channels, height, width = images.shape[-3:]
        check_size(config, model, (channels, height, width))
        of_size = f" of {height} x {width}" if config.train.sizes else ""
        message = f"fails on the first images{of_size}: {worded(error)}"
        message += "".join(ways_out(config, model, (channels, height, width)))
        raise ConfigError([config.fault("model", message)]) from error
    if logits.shape != (len(images), num_classes):
        message = (
            f"gives {tuple(logits.shape)} for {len(images)} images of {num_classes} classes; "
            f"expected logits of shape {(len(images), num_classes)}"
        )
        raise ConfigError([config.fault("model", message)])
    try:
        with torch.autocast(device.type, enabled=False):  # as in a step
            loss = loss_fn(logits, labels.to(device))
    except Exception as error:
        if isinstance(in_plain_words(error), OutOfMemory):
            raise
        is_mixed = labels.ndim > subset.labels.ndim
        mixed = " (mixed, by MixUp or CutMix)" if is_mixed else ""
        message = f"fails on labels of shape {tuple(labels.shape)}{mixed}: {worded(error)}"
        raise ConfigError([config.fault("loss", message)]) from error
    if not isinstance(loss, Tensor) or loss.ndim:
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        message = f"gives {given}; expected a tensor of one number, the mean"
        raise ConfigError([config.fault("loss", message)])
    return logits


def two_images(subset: Subset, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Two images of a split (2, C, H, W) in a memory layout, and their labels."""
    images, labels = subset.sample(subset.extremes[:2])
    if images.ndim == 5:  # FiveCrop or TenCrop: one crop of each image is enough
        images = images[:, 0]
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, labels


def check_batches(config: Config, loader: Loader, model: nn.Module) -> None:
    """Raise ConfigError for batches that would fail in the first epoch."""
    if not len(loader):
        message = f"is more than the {len(loader.subset)} training images, and drop_last drops them"
        raise ConfigError([config.fault("loader.batch_size", message)])
    processes, accumulate = world_size(), config.train.accumulate
    least = 1 if config.train.sync_batch_norm and processes > 1 else 2  # images in a micro-batch
    if least_images(config, loader, loader.batch_size) >= least:
        return
    if least == 1:
        reason = "each process needs one for batch norm" * bool(unfrozen_batch_norms(model))
    else:
        reason = _fails_on_one_image(loader, model)
    if reason:
        cuts = [f"{processes} processes"] * (processes > 1)
        cuts += [f"{accumulate} micro-batches"] * (accumulate > 1)
        for_these = f" for {' and '.join(cuts)}" if cuts else ""
        message = (
            f"leaves a batch of {min(loader.sizes())}{for_these}, too few for this model "
            f"({reason}); {mend_of_batches(config, loader, least)}"
        )
        raise ConfigError([config.fault("loader.batch_size", message)])


def least_images(config: Config, loader: Loader, batch_size: int) -> int:
    """How many images the smallest micro-batch of a rank would have with this ``batch_size``."""
    images = len(loader.subset)
    rest = 0 if config.loader.drop_last else images % batch_size
    share = (rest or min(batch_size, images)) // world_size()
    return share // max(min(config.train.accumulate, share), 1)


def mend_of_batches(config: Config, loader: Loader, least: int) -> str:
    """What to write so that each micro-batch has ``least`` images."""
    whole, images = loader.batch_size // world_size(), len(loader.subset)
    mends = []
    if whole // config.train.accumulate >= least and images > loader.batch_size:
        mends.append("loader.drop_last=true")  # then the rest is to blame
    elif config.train.accumulate > 1 and whole >= least:
        mends.append(f"train.accumulate={whole // least}")
    sizes = range(loader.batch_size + 1, images + 1)
    if found := next((n for n in sizes if least_images(config, loader, n) >= least), None):
        mends.append(f"loader.batch_size={found}")
    return f"set {' or '.join(mends)}" if mends else "it needs more images"


def _fails_on_one_image(loader: Loader, model: nn.Module) -> str:
    """The reason why the model cannot be trained on a batch of one image; empty if it can.

    Batch norm can, if it is frozen or if more than one pixel is left. Restores the model's buffers.
    """
    device = loader.delivery.device
    tried = [subset.sample(subset.extremes[:1])[0] for subset in loader.subset.of_each_size]
    buffers = [buffer.clone() for buffer in model.buffers()]
    train_mode(model)
    try:
        devices = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            for images in tried:
                model(images.to(device))
    except (ValueError, RuntimeError) as error:
        if isinstance(in_plain_words(error), OutOfMemory):
            raise
        return str(error)
    finally:
        model.eval()
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return ""
