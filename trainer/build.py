"""From the configuration to the device, the model, the loss, the optimizer and its schedule."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models import MODELS
from models.external import timm_model, torchvision_model
from models.freeze import freeze, matching
from models.initialise import initialise
from models.probe import check_input
from models.weights import load_weights, read_weights
from trainer.averages import Average, steps_of
from trainer.components import build, rate_of
from trainer.config import Config
from trainer.distributed import world_size
from trainer.errors import ConfigError
from trainer.launch import local_rank, local_world_size
from trainer.losses import balanced_weight
from trainer.optimizers import Chosen, parameter_groups
from trainer.schedulers import Schedule, build_schedule
from trainer.settings import Duration
from trainer.sharding import ELEMENTWISE_FUSED, is_sharded
from trainer.signatures import parameters_of, resolve
from trainer.tables import AVERAGES, HIGHER_IS_BETTER, LOSSES, OPTIMIZERS
from transforms.keyed import seed_of


def choose_device(config: Config) -> torch.device:
    """The device that ``train.device`` names, set up; auto takes what is there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = config.train.device
    if name == "auto":
        name = next((kind for kind, there in available.items() if there), "cpu")
    if config.train.threads != "auto":
        torch.set_num_threads(config.train.threads)
    device = torch.device(name)
    if world_size() > 1:
        device = device_of_process(config, device)
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


def device_of_process(config: Config, device: torch.device) -> torch.device:
    """The device of one of several processes: each has a GPU of its own, or all the processor."""
    if config.train.sync_batch_norm and device.type != "cuda":
        message = (
            f"needs GPUs, and the processes compute on the {device}; write false, and each process "
            "normalises by its own images, or start one process"
        )
        raise ConfigError([config.fault("train.sync_batch_norm", message)])
    if device.type == "cpu":
        return device
    reason = ""
    if device.type != "cuda" or device.index is not None:
        reason = f"{device} can't be shared by several processes; write auto, cuda or cpu"
    elif local_world_size() > torch.cuda.device_count():
        reason = (
            f"{local_world_size()} processes on this machine need a GPU each, and it has "
            f"{torch.cuda.device_count()}; start fewer (torchrun --nproc-per-node), or write cpu"
        )
    if reason:
        raise ConfigError([config.fault("train.device", reason)])
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
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
    groups = parameter_groups(
        model,
        arguments.pop("no_decay", False),
        rate_of(config.optimizer),
        arguments.pop("layer_decay", None),
        chosen_groups(config, model, arguments.pop("groups", ())),
    )
    in_order = [p for p in model.parameters() if p.requires_grad]
    component = config.optimizer.model_copy(update={"arguments": arguments})
    # One pass over the weights instead of eight; who chose another way has that.
    ways = {"fused", "foreach", "capturable", "differentiable"} & arguments.keys()
    fusing = {"cpu": ("SGD", "Adam", "AdamW", "Adagrad"), "cuda": ("SGD", "Adam", "AdamW")}
    has_it = component.name in fusing.get(next(model.parameters()).device.type, ())
    has_it &= not is_sharded(model) or component.name in ELEMENTWISE_FUSED
    fused = {"fused": True} if has_it and not ways else {}
    try:
        built: torch.optim.Optimizer
        built = build(OPTIMIZERS, "optimizer", component, params=groups, in_order=in_order, **fused)
    except ValueError as error:
        raise ConfigError([config.fault("optimizer", str(error))]) from None
    return built


def chosen_groups(
    config: Config, model: nn.Module, groups: Sequence[Mapping[str, Any]]
) -> list[Chosen]:
    """The parameters of each of ``optimizer.groups``, and their settings.

    Raises ConfigError for a pattern that matches nothing, and for a group that is left nothing.
    """
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    names = [name for name, _ in model.named_parameters()]
    chosen: list[Chosen] = []
    faults = []
    for index, group in enumerate(groups):
        match, path = group["match"], f"optimizer.groups.{index}.match"
        patterns = [match] if isinstance(match, str) else list(match)
        try:
            matched = matching(names, patterns)
        except ValueError as error:
            faults.append(config.fault(path, str(error)))
            continue
        left = {name for name in matched if name in trained}
        if not left:
            faults.append(config.fault(path, "matches frozen parameters only (model.freeze)"))
        elif not left - {name for earlier in chosen for name in earlier.names}:
            message = "all that it matches is in groups before it; let the narrower one come first"
            faults.append(config.fault(path, message))
        settings = {key: value for key, value in group.items() if key != "match"}
        chosen.append(Chosen(" ".join(patterns), left, settings))
    if faults:
        raise ConfigError(faults)
    return chosen


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


def build_average(config: Config, model: nn.Module, steps_per_epoch: int) -> Average | None:
    """The average of the weights that is judged; None where the weights themselves are."""
    if (component := config.average) is None:
        return None
    if "start" in component.arguments:
        start = steps_of(Duration.parse(component.arguments["start"]), steps_per_epoch)
        steps = config.train.epochs * steps_per_epoch
        if start >= steps:
            message = f"is step {start:,}, and the run ends after {steps:,}: nothing is averaged"
            raise ConfigError([config.fault("average.start", message)])
    built: Average
    built = build(AVERAGES, "average", component, model=model, steps_per_epoch=steps_per_epoch)
    return built
