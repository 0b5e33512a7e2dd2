"""Everything that a run is made of, built from the configuration and checked."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import MODELS
from models.external import timm_model, torchvision_model
from models.freeze import freeze
from models.initialise import initialise
from models.probe import check_input
from models.weights import load_weights, read_weights
from trainer.components import build, check_components
from trainer.config import Config
from trainer.errors import ConfigError
from trainer.loader import Loader, Part
from trainer.losses import balanced_weight
from trainer.optimizers import parameter_groups
from trainer.parts import Data, check_shape, eval_loader, load_data, train_loader
from trainer.schedulers import Schedule, build_schedule
from trainer.signatures import parameters_of, resolve
from trainer.tables import HIGHER_IS_BETTER, LOSSES, OPTIMIZERS
from transforms.keyed import seed_of

Say = Callable[[str], None]


@dataclass
class Job:
    """A run's parts, in the order in which they are built. input_shape is the model's (C, H, W)."""

    config: Config
    device: torch.device
    data: Data
    input_shape: tuple[int, int, int]
    model: nn.Module
    loss_fn: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    train_loader: Loader
    val_loader: Loader


def prepare(config: Config, say: Say) -> Job:
    """Check and build everything the configuration names; raises before anything is written."""
    if faults := check_components(config):
        raise ConfigError(faults)
    device = choose_device(config)
    data = load_data(config, device)
    tell(data, say)
    sides = {"train": "train", "val": "eval", "test": "eval"}
    shapes = {name: check_shape(config, data.parts[name], side) for name, side in sides.items()}
    input_shape, train_part = shapes["train"], data.parts["train"]
    for shape in shapes.values():
        if shape[0] != input_shape[0]:
            message = f"gives {shape[0]} channels where transforms.train gives {input_shape[0]}"
            raise ConfigError([config.fault("transforms.eval", message)])
    model = build_model(config, data.classes, input_shape)
    model.to(device)
    loss_fn = build_loss(config, train_part.labels, len(data.classes)).to(device)
    distinct = {shape: data.parts[name] for name, shape in reversed(shapes.items())}
    channels_last = choose_layout(config, model, loss_fn, list(distinct.values()), device, say)
    optimizer = build_optimizer(config, model)
    batches = train_loader(config, train_part, device, channels_last)
    check_batches(config, batches, model)
    steps = len(batches)
    return Job(
        config=config,
        device=device,
        data=data,
        input_shape=input_shape,
        model=model,
        loss_fn=loss_fn,
        optimizer=optimizer,
        schedule=build_schedule_of(config, optimizer, steps),
        train_loader=batches,
        val_loader=eval_loader(config, data.parts["val"], device, channels_last),
    )


def check_size(config: Config, model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Raise ConfigError where the model cannot take images of a shape; says which sizes it can."""
    try:
        check_input(model, shape)
    except ValueError as error:
        message = str(error)
        table = {} if "/" in config.model.name else MODELS
        if table and "variant" in parameters_of(resolve(table, config.model.name)):
            message += " Another model.variant may be made for such images."
        raise ConfigError([config.fault("model", message)]) from None


def choose_layout(
    config: Config,
    model: nn.Module,
    loss_fn: nn.Module,
    parts: Sequence[Part],
    device: torch.device,
    say: Say,
) -> bool:
    """Rehearse, and say whether images and weights lie channels last in memory.

    ``auto`` goes by what was measured (DECISIONS.md), not by measuring: a choice that could fall
    otherwise the next time would change last bits. A model that cannot work so is left as it was.
    """
    wanted = config.train.channels_last
    if wanted == "auto":
        has_convolutions = any(parameter.ndim == 4 for parameter in model.parameters())
        wanted = device.type == "cpu" and has_convolutions
    if wanted:
        model.to(memory_format=torch.channels_last)
    try:
        for part in parts:
            rehearse(config, part, model, loss_fn, device, wanted)
    except ConfigError as error:
        if not wanted or config.train.channels_last is True:
            raise
        model.to(memory_format=torch.contiguous_format)
        for part in parts:
            rehearse(config, part, model, loss_fn, device, False)
        reason = str(error.__cause__).partition("\n")[0]
        say(f"note    {config.model.name} cannot keep channels last, and is slower: {reason}")
        return False
    return wanted


@torch.inference_mode()
def rehearse(
    config: Config,
    part: Part,
    model: nn.Module,
    loss_fn: nn.Module,
    device: torch.device,
    channels_last: bool,
) -> None:
    """Take two images through model and loss, as evaluation would, before anything is written.

    Raises ConfigError; where the images' size is at fault, it says which sizes the model takes.
    """
    images, labels = part.sample(part.extremes[:2])
    if images.ndim == 5:  # cut by FiveCrop or TenCrop: one crop of each will do
        images = images[:, 0]
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    model.eval()
    num_classes = len(part.dataset.classes)
    try:
        logits = model(images.to(device))
    except (RuntimeError, ValueError, TypeError) as error:
        channels, height, width = images.shape[-3:]
        check_size(config, model, (channels, height, width))
        raise ConfigError([config.fault("model", f"fails on the first images: {error}")]) from error
    if logits.shape != (len(images), num_classes):
        message = (
            f"gives {tuple(logits.shape)} for {len(images)} images of {num_classes} classes; "
            f"expected logits of shape {(len(images), num_classes)}"
        )
        raise ConfigError([config.fault("model", message)])
    try:
        loss = loss_fn(logits, labels.to(device))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        mixed = " (mixed, by MixUp or CutMix)" if labels.ndim == 2 else ""
        message = f"fails on labels of shape {tuple(labels.shape)}{mixed}: {error}"
        raise ConfigError([config.fault("loss", message)]) from error
    if loss.ndim:
        message = f"gives a tensor of shape {tuple(loss.shape)}; expected one number, the mean"
        raise ConfigError([config.fault("loss", message)])


def tell(data: Data, say: Say) -> None:
    """Say what a user should know of the data before trusting a result."""
    for note in data.notes:
        say(f"note    {note}")
    for path, reason in data.skipped:
        say(f"left out {path}: {reason}")


def choose_device(config: Config) -> torch.device:
    """The device that ``train.device`` names, set up; auto takes what is there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = config.train.device
    if name == "auto":
        name = next((kind for kind, there in available.items() if there), "cpu")
    if config.train.threads != "auto":
        torch.set_num_threads(config.train.threads)
    device = torch.device(name)
    there = available.get(device.type, True)
    if there and device.type == "cuda" and device.index is not None:
        there = device.index < torch.cuda.device_count()
    if not there:
        has = [kind for kind, yes in available.items() if yes] + ["cpu"]
        message = f"{name} is not on this machine, which has {', '.join(has)}; or write auto"
        raise ConfigError([config.fault("train.device", message)])
    if device.type == "cuda":
        # The same seed gives the same bits only with kernels that add in a fixed order.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def build_model(config: Config, classes: tuple[str, ...], shape: tuple[int, int, int]) -> nn.Module:
    """The model, its weights drawn from the seed, or loaded, and frozen where asked."""
    component, path = config.model, "model"
    arguments = dict(component.arguments)
    weights, scheme = arguments.pop("weights", None), arguments.pop("init", None)
    patterns = arguments.pop("freeze", ())
    torch.manual_seed(seed_of(config.seed, "weights"))
    try:
        family, _, name = component.name.partition("/")
        if name:
            factory = {"torchvision": torchvision_model, "timm": timm_model}[family]
            model = factory(name, len(classes), shape[0], weights, arguments)
        else:
            model = build(
                MODELS,
                path,
                component.model_copy(update={"arguments": arguments}),
                num_classes=len(classes),
                in_channels=shape[0],
                input_size=list(shape[1:]),
            )
            if weights is not None:
                load_weights(model, read_weights(weights), len(classes))
        if scheme is not None:
            initialise(model, scheme)
        if patterns:
            freeze(model, patterns)
    except (ValueError, ImportError) as error:
        raise ConfigError([config.fault(path, str(error))]) from None
    assert isinstance(model, nn.Module)
    return model


def build_loss(config: Config, labels: Tensor, num_classes: int) -> nn.Module:
    """The loss; ``weight: balanced`` weighs each class by the training labels."""
    component = config.loss
    arguments = dict(component.arguments)
    weight = arguments.pop("weight", None)
    supplied = {}
    if weight == "balanced":
        try:
            supplied["weight"] = balanced_weight(labels, num_classes)
        except ValueError as error:
            raise ConfigError([config.fault("loss", str(error))]) from None
    elif weight is not None:
        if len(weight) != num_classes:
            message = f"has {len(weight)} numbers for {num_classes} classes"
            raise ConfigError([config.fault("loss.weight", message)])
        supplied["weight"] = torch.tensor(weight)
    component = component.model_copy(update={"arguments": arguments})
    loss: nn.Module = build(LOSSES, "loss", component, **supplied)
    return loss


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the parameters that are not frozen."""
    arguments = dict(config.optimizer.arguments)
    groups = parameter_groups(model, arguments.pop("no_decay", False))
    component = config.optimizer.model_copy(update={"arguments": arguments})
    # One pass over the weights instead of eight; who chose another way has that.
    ways = {"fused", "foreach", "capturable", "differentiable"} & arguments.keys()
    fusing = {"cpu": ("SGD", "Adam", "AdamW", "Adagrad"), "cuda": ("SGD", "Adam", "AdamW")}
    has_it = component.name in fusing.get(next(model.parameters()).device.type, ())
    fused = {"fused": True} if has_it and not ways else {}
    try:
        built: torch.optim.Optimizer
        built = build(OPTIMIZERS, "optimizer", component, params=groups, **fused)
    except ValueError as error:
        raise ConfigError([config.fault("optimizer", str(error))]) from None
    return built


def build_schedule_of(
    config: Config, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> Schedule:
    """The learning-rate schedule with its warm-up; constant where no scheduler is named."""
    scheduler = config.scheduler
    arguments = dict(scheduler.arguments) if scheduler else {}
    warmup = arguments.pop("warmup", None)
    warmup_steps = 0
    if warmup is not None:
        warmup_steps = warmup.value * (steps_per_epoch if warmup.unit == "ep" else 1)
    metric = config.train.monitor.removeprefix("val/")
    try:
        return build_schedule(
            scheduler.name if scheduler else None,
            arguments,
            optimizer,
            epochs=config.train.epochs,
            steps_per_epoch=steps_per_epoch,
            warmup_steps=warmup_steps,
            mode="max" if metric in HIGHER_IS_BETTER else "min",
        )
    except ValueError as error:
        raise ConfigError([config.fault("scheduler", str(error))]) from None


def check_batches(config: Config, loader: Loader, model: nn.Module) -> None:
    """Refuse batches that would fail in the first epoch."""
    if not len(loader):
        message = f"is more than the {len(loader.part)} training images, and drop_last drops them"
        raise ConfigError([config.fault("loader.batch_size", message)])
    sizes = [len(loader.part) % loader.batch_size, min(loader.batch_size, len(loader.part))]
    if loader.drop_last:
        sizes = [loader.batch_size]
    parts = [chunk for n in sizes for chunk in torch.empty(n).chunk(config.train.accumulate)]
    smallest = min(len(part) for part in parts if len(part))
    if smallest == 1 and any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()
    ):
        message = (
            "leaves a batch of one image, whose variance batch norm can't take; "
            "set loader.drop_last=true or another batch size"
        )
        raise ConfigError([config.fault("loader.batch_size", message)])
