"""Builds the model and the loss that a configuration names."""

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from models import MODELS
from models.external import timm_model, torchvision_model
from models.freeze import freeze
from models.initialise import Batches, initialise
from models.probe import ImageSizeError, check_input
from models.weights import (
    SAFETENSORS,
    Weights,
    classes_apart,
    load_weights,
    names_in,
    read_weights,
)
from trainer.components import LOSSES
from trainer.components.losses import balanced_pos_weight, balanced_weight
from trainer.config import Config
from trainer.config.construct import build, factory_of
from trainer.config.settings import Component
from trainer.config.signatures import parameters_of
from trainer.process.errors import (
    ConfigError,
    OutOfMemory,
    RunError,
    UsageError,
    in_plain_words,
    refusal_of,
)
from trainer.process.words import listed
from trainer.run.best import read_best, require_best
from trainer.run.folder import find_run
from transforms.keyed import seed_of
from transforms.mixing import one_hot
from transforms.views import views

LIBRARIES = {"torchvision": torchvision_model, "timm": timm_model}
SIZE_ARGUMENTS = ("img_size", "image_size", "input_size")  # of the libraries' models


def build_model(
    config: Config,
    classes: tuple[str, ...],
    shape: tuple[int, int, int],
    say: Callable[[str], object] = str,
    to_whiten: Batches | None = None,
    weights: Weights | str | None = None,
) -> nn.Module:
    """The model, with weights drawn from the seed or ``weights``, and ``model.freeze`` frozen.

    ``to_whiten`` gives the images of ``init: whiten``; None leaves it out, as the weights are
    loaded afterwards. ``weights`` come from ``first_weights``. Prints what of them was taken, and
    which parts started fresh.
    """
    component, ours = config.model, config.model.trainer_arguments
    scheme, patterns = ours.get("init"), ours.get("freeze")
    torch.manual_seed(seed_of(config.seed, "weights"))

    def tell(what: str) -> None:
        say(f"weights {what}")

    try:
        family, _, name = component.name.partition("/")
        if name:
            own = component.arguments
            model = LIBRARIES[family](name, len(classes), shape[0], weights, own, classes, tell)
        else:
            sizes = {"in_channels": shape[0], "input_size": list(shape[1:])}
            of_size = partial(_own_model, component, sizes)
            model = of_size(len(classes))
            require_sizes(model)
            if isinstance(weights, Weights):
                tell(load_weights(model, weights, classes, of_size))
        if scheme is not None:
            initialise_by(config, model, to_whiten, tell)
        if patterns:
            freeze(model, patterns)
    except Exception as error:  # a library's or a user's __init__ raises any kind
        if isinstance(error, ConfigError):
            raise
        if isinstance(in_plain_words(error), OutOfMemory | RunError):
            raise
        raise ConfigError([config.fault("model", refusal_of(error))]) from None
    assert isinstance(model, nn.Module)
    return model


def require_sizes(model: nn.Module) -> None:
    """Raise ValueError if a parameter gets its size by the first images: it would never train."""
    if lazy := [name for name, value in model.named_parameters() if is_lazy(value)]:
        raise ValueError(
            f"{listed(lazy)}: a lazy layer, whose size its first images decide; weights are drawn "
            "and given to the optimizer before that. Use the layer with a size: input_size and "
            "in_channels are arguments that a model may ask for"
        )


def first_weights(config: Config) -> Weights | str | None:
    """What ``model.weights`` names: weights that are read here, or a name for the model's library.

    A folder is that of a run, whose best weights are meant, or one in Hugging Face's layout.
    Raises ConfigError if they cannot be read or are damaged.
    """
    named = config.model.trainer_arguments.get("weights")
    if named is None or ("/" in config.model.name and not os.path.exists(named)):
        return named
    try:
        if os.path.isdir(named) and not os.path.isfile(os.path.join(named, SAFETENSORS)):
            found = _best_weights(find_run(named))
        else:
            found = read_weights(named)
        if "members" in found.card:
            raise RunError(f"{found.run} is several models; name one of the members in model.json")
        return found
    except (ValueError, UsageError, RunError) as error:
        message = str(error).removeprefix("weights: ")
        raise ConfigError([config.fault("model.weights", message)]) from None


def _best_weights(run: Path) -> Weights:
    """The best weights of a run, with its class names. Raises RunError."""
    require_best(run)
    try:
        state, card = read_best(run)
        if (classes := names_in(card)) is None:
            raise RunError(f"{run / 'model.json'} is damaged: it lacks classes.")
    except RunError as error:
        again = f"python -m trainer.train --resume {shlex.quote(str(run))}"
        message = f"{error}\nTo bring it back from the run's newest checkpoint: {again}"
        raise RunError(message) from None
    weights = Weights(state, classes, str(run), run, card)
    return weights._replace(source=f"{run}, epoch {weights.epoch}") if weights.epoch else weights


def with_first_weights(
    config: Config, weights: Weights | str | None, classes: Sequence[str]
) -> tuple[Config, dict[str, Any]]:
    """The configuration with the own folder of the run that gives weights, and what is known of it.

    The latter is for result.json: the run, the SHA-256 of its weights, their epoch, and the
    classes that it knows, that are new and that are gone. It is empty without such a run.
    """
    if not isinstance(weights, Weights) or weights.run is None:
        return config, {}
    if os.path.isdir(config.model.trainer_arguments["weights"]):
        arguments = config.model.trainer_arguments | {"weights": str(weights.run)}
        model = config.model.model_copy(update={"trainer_arguments": arguments})
        config = config.model_copy(update={"model": model})  # runs/NAME may get a newer run
    return config, {
        "run": str(weights.run),
        "sha256": weights.card["weights"]["sha256"],
        "epoch": weights.epoch,
        "classes": classes_apart(weights.classes or (), classes),
    }


def initialise_by(
    config: Config, model: nn.Module, to_whiten: Batches | None, tell: Callable[[str], object]
) -> None:
    """Initialise the model by ``model.init``, and tell of whitening. Raises ConfigError."""
    try:
        told = initialise(model, config.model.trainer_arguments["init"], to_whiten)
    except ValueError as error:
        raise ConfigError([config.fault("model.init", str(error))]) from None
    if told:
        tell(told)


def _own_model(component: Component, sizes: Mapping[str, Any], num_classes: int) -> nn.Module:
    model: nn.Module = build(MODELS, "model", component, num_classes=num_classes, **sizes)
    return model


def check_size(config: Config, model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Raise ConfigError if the model cannot take images of this shape; it says which sizes fit.

    A model that fails at every size passes: its first real batch shows the error.
    """
    try:
        check_input(model, shape)
    except ImageSizeError as error:
        message = str(error)
        if error.size is None:
            return
        is_ours = "/" not in config.model.name
        if is_ours and "variant" in parameters_of(factory_of(MODELS, config.model)):
            message += " Another model.variant may be made for such images."
        message += "".join(ways_out(config, model, shape, error.size))
        raise ConfigError([config.fault("model", message)]) from None


def check_training_sizes(config: Config, model: nn.Module, channels: int) -> None:
    """Raise ConfigError with each of ``train.sizes`` that the model cannot take."""
    faults = []
    for first, size in config.train.sizes_by_epoch.items():
        try:
            check_input(model, (channels, *size))
        except ImageSizeError as error:
            faults.append(config.fault(f"train.sizes.{first}ep", str(error)))
    if faults:
        raise ConfigError(faults)


def ways_out(
    config: Config, model: nn.Module, shape: tuple[int, int, int], size: int | None = None
) -> Iterator[str]:
    """Lines with what to type for a model that cannot take such images, but squares of ``size``."""
    if argument := size_argument(config, shape):
        yield f"\n        {argument} makes the model for such images"
    own = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")  # of timm
    with suppress(ImageSizeError):
        if own and tuple(own[1:]) != shape[1:]:
            check_input(model, (shape[0], *own[1:]))
            size = own[1]
    if size is not None:
        resize = f"{{name: Resize, size: [{size}, {size}]}}"
        yield f"\n        {resize} in transforms.train and transforms.eval makes images for it"


def size_argument(config: Config, shape: tuple[int, int, int]) -> str:
    """The argument that makes a library's model for images of (C, H, W); empty if none does."""
    family, _, name = config.model.name.partition("/")
    height, width = shape[1:]
    for argument in SIZE_ARGUMENTS if name else ():
        value = height if height == width and argument != "input_size" else [height, width]
        given = {**config.model.arguments, argument: value}
        with suppress(Exception), torch.inference_mode():  # most models take none of them
            made = LIBRARIES[family](name, 2, shape[0], None, given)
            made.eval()(torch.zeros(2, *shape))
            return f"model.{argument}={value}"
    return ""


def build_loss(config: Config, labels: Tensor, classes: Sequence[str]) -> nn.Module:
    """The loss; ``weight: balanced`` weighs each class by the training labels."""
    weight, component = config.loss.trainer_arguments.get("weight"), config.loss
    supplied = {}
    if component.arguments.get("pos_weight") == "balanced":
        own = {"pos_weight": positive_weight(config, labels, classes)}
        component = component.model_copy(update={"arguments": component.arguments | own})
    if weight == "balanced":
        trained = set(labels.tolist())
        if lacking := [repr(name) for k, name in enumerate(classes) if k not in trained]:
            names = listed(lacking[:5] + [f"{len(lacking) - 5:,} more"] * (len(lacking) > 5))
            message = f"balanced needs training images of every class; none of {names}"
            typed = "another split.fold or split.seed, or loss.weight=null"
            raise ConfigError([config.fault("loss.weight", f"{message}: type {typed}")])
        supplied["weight"] = balanced_weight(labels, len(classes))
    elif weight is not None:
        if len(weight) != len(classes):
            message = f"has {len(weight)} numbers for {len(classes)} classes"
            raise ConfigError([config.fault("loss.weight", message)])
        supplied["weight"] = torch.tensor(weight)
    loss: nn.Module = build(LOSSES, "loss", component, **supplied)
    return loss


def positive_weight(config: Config, labels: Tensor, classes: Sequence[str]) -> list[float]:
    """The numbers of ``pos_weight: balanced``. Raises ConfigError if no image has a label."""
    shares = labels if labels.ndim == 2 else one_hot(labels, len(classes))
    lacking = (shares.sum(dim=0) == 0).nonzero().flatten().tolist()
    if lacking:
        names = listed([repr(classes[k]) for k in lacking[:5]])
        message = f"balanced needs training images with every label; none with {names}"
        typed = "another split.fold or split.seed, or loss.pos_weight=null"
        raise ConfigError([config.fault("loss.pos_weight", f"{message}: type {typed}")])
    numbers: list[float] = balanced_pos_weight(shares).tolist()
    return numbers


def averaged_logits(model: nn.Module, images: Tensor, tta: str | None = None) -> Tensor:
    """``logits_of``; with ``tta`` the weighted mean over the ``views`` of the images."""
    if tta is None:
        return logits_of(model, images)
    parts = [weight * logits_of(model, view) for weight, view in views(images, tta)]
    return torch.stack(parts).sum(dim=0)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, num_classes) of (B, C, H, W); of (B, crops, C, H, W) the mean over crops."""
    logits: Tensor = model(images.flatten(0, -4)).float()
    return logits if images.ndim < 5 else logits.view(*images.shape[:2], -1).mean(dim=1)
