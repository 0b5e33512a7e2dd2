"""Tries each component of a configuration once, so that faults are found before data is read.

A model is built without memory, an optimizer steps small parameters, its schedule runs over the
epochs, a metric measures four images. Datasets are not tried.
"""

import math
import numbers
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from models.external import timm_model, torchvision_model
from trainer.components import OF_EACH_CLASS
from trainer.components.schedulers import build_schedule
from trainer.config import Config
from trainer.config.components import OF_GROUPS, TABLES, component_key
from trainer.config.config import components
from trainer.config.construct import build, kind_of_schedule, rate_of
from trainer.config.settings import Component
from trainer.config.signatures import arguments_schema
from trainer.process.errors import Fault, OutOfMemory, in_plain_words, refusal_of
from transforms import is_fixed
from transforms.keyed import seeded
from transforms.pipeline import FLOAT

MAX_TRIED_EPOCHS = 1000  # of a schedule
# Images on which a user's transform is tried, until it takes one.
TRIED_SHAPES = ((3, 32, 48), (1, 32, 48), (3, 224, 256), (1, 28, 28), (3, 32, 32), (3, 224, 224))
TRIED_SEEDS = 32  # a random transform may do nothing to most images


class Attempt(NamedTuple):
    """A trial of the component at ``path``: ``attempt`` raises if it cannot be used."""

    path: str
    component: Component
    attempt: Callable[[], object]


def check_components(config: Config, ranges: bool = True) -> list[Fault]:
    """Every fault in the components' arguments; they are tried only if all signatures fit.

    ranges: whether RANGES limits numbers, as when a training starts. A run that was trained before
    a range became narrower stays usable without.
    """
    if faults := config.own.faults():
        return faults
    used = {
        component_key(kind, name): arguments_schema(kind, name, ranges, component.own)
        for kind, _, component in components(config)
        for name in [component.name if component.own else _table_name(kind, component.name)]
    }
    return config.check_arguments(used) or list(_refusals(config, ranges))


def _table_name(kind: str, name: str) -> str:
    """The table's entry for a component: "torchvision/" for "torchvision/resnet18"."""
    return name if name in TABLES[kind] else name[: name.index("/") + 1]


def _refusals(config: Config, is_new: bool) -> Iterator[Fault]:
    """Faults of arguments whose types are right, such as a negative learning rate."""
    failed = set[str]()
    for trial in _attempts(config, is_new):
        if trial.path.startswith(("scheduler", "optimizer.")) and "optimizer" in failed:
            continue  # it is tried on the optimizer
        if trial.path.partition(".transforms.")[0] in failed:
            continue  # RandomApply has built it
        try:
            with warnings.catch_warnings(action="ignore"):
                trial.attempt()
        except NotImplementedError:
            continue  # a model of timm that needs real memory
        except Exception as error:
            if isinstance(in_plain_words(error), OutOfMemory):
                raise
            failed.add(trial.path)
            message = " ".join(refusal_of(error).split()) or type(error).__name__
            if isinstance(error, ArithmeticError):  # "division by zero" alone helps little
                message = f"its arguments lead to {message}"
            words = re.findall(r"\w+", message)
            named = [name for name in trial.component.written if name in words]
            place = f"{trial.path}.{named[0]}" if named else trial.path
            yield config.fault(place, f"{trial.component.name} cannot be used: {message}")


def _attempts(config: Config, is_new: bool) -> Iterator[Attempt]:
    """One attempt for each component, in the order in which faults are reported.

    is_new: whether a training starts, so that images are tried on a user's transforms.
    """
    listed = list(components(config))

    def of(kind: str, attempt: Callable[[str, Component], object]) -> Iterator[Attempt]:
        for found, path, component in listed:
            if found == kind and (component.own or ".transforms." not in path):
                yield Attempt(path, component, partial(attempt, path, component))

    optimizer = config.optimizer
    yield from of("transform", partial(_try_transform, config, is_new))
    yield from of("model", _try_model)
    yield from of("loss", partial(build, TABLES["loss"]))
    yield from of("optimizer", lambda path, component: _try_optimizer(config, {}))
    for index, group in enumerate(optimizer.trainer_arguments.get("groups", ())):
        more = {key: value for key, value in group.items() if key not in OF_GROUPS}
        if "lr_scale" in group:
            more["lr"] = rate_of(optimizer) * group["lr_scale"]
        path = f"optimizer.groups.{index}"
        tried = Component(name=optimizer.name, arguments=more)
        yield Attempt(path, tried, partial(_try_optimizer, config, more))
    yield from of("scheduler", lambda path, component: _try_schedule(config, component))
    yield from of("average", _try_average)
    yield from of("metric", _try_metric)


def _try_transform(config: Config, is_new: bool, path: str, component: Component) -> object:
    check_values(component)
    built = build(TABLES["transform"], path, component, num_classes=2)
    if component.own and is_new:
        _require_images(built, _gets_floats(config, path))
    if component.own and is_fixed(built):
        _require_fixed(built)
    return built


def _gets_floats(config: Config, path: str) -> bool:
    """Whether the transform at a path, such as "transforms.train.2", gets float32 for uint8."""
    _, side, number = path.split(".")[:3]
    places = [f"transforms.{side}.{i}" for i in range(int(number) + 1)]
    return any(
        one.name in FLOAT and at.partition(".transforms.")[0] in places
        for _, at, one in components(config)
    )


def _require_images(transform: Callable[[torch.Tensor], Any], gets_floats: bool) -> None:
    """Raise ValueError if a user's transform gives no image, or draws elsewhere than from torch.

    A random one must give the same twice with torch's generator seeded alike. That generator is
    left as it was. An error of the transform is none here, as in ``_require_fixed``.
    """

    def twice(image: torch.Tensor, seed: int) -> list[Any]:
        results = []
        with suppress(Exception):
            for _ in range(2):
                with seeded(seed):
                    results.append(transform(image.clone()))
        return results if len(results) == 2 else []

    levels = (torch.arange(math.prod(s)).remainder(251).byte().view(s) for s in TRIED_SHAPES)
    images = (image.div(255) if gets_floats else image for image in levels)
    image = next((image for image in images if twice(image, 0)), None)
    if image is None:
        return
    for seed in range(1 if is_fixed(transform) else TRIED_SEEDS):
        results = [one if isinstance(one, tuple) else (one,) for one in twice(image, seed)]
        for one in (one for crops in results for one in crops):
            if misfit := _misfit_of_image(one, image):
                raise ValueError(misfit)
        for first, second in () if is_fixed(transform) else zip(*results, strict=False):
            same = first.shape == second.shape and first.dtype == second.dtype
            if not same or not torch.allclose(first, second, rtol=0, atol=0, equal_nan=True):
                raise ValueError(
                    "with torch's generator seeded alike it gives the same image something else "
                    "another time: it draws from another generator than torch's, which no seed "
                    "repeats; use torch.rand, torch.randn or torch.randint"
                )


def _misfit_of_image(result: Any, image: torch.Tensor) -> str:
    """Why the result of a transform is no image (C, H, W), or several; "" if it may be one."""
    if not isinstance(result, torch.Tensor):
        return f"it gives {type(result).__name__}; expected a torch.Tensor (C, H, W)"
    if result.dtype not in (image.dtype, torch.float32):
        return (
            f"it gives {result.dtype} for an image of {image.dtype}; return the same type, as by "
            ".to(images.dtype)"
        )
    channels, height, width = image.shape
    if result.shape == (height, width, channels):
        return "it gives images (H, W, C); expected (C, H, W), as by .permute(2, 0, 1)"
    if result.ndim not in (3, 4):  # FiveCrop and others give several for one
        return f"it gives {result.ndim} dimensions for an image (C, H, W); expected as many"
    return ""


def _require_fixed(transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Raise ValueError if a user's transform gives an image something else another time.

    Or if it gives it something else in a stack of images, as they are prepared. An error is none
    here: the images may be too small, or of other channels than it needs.
    """
    stack = torch.arange(2 * 3 * 32 * 32).remainder(251).byte().view(2, 3, 32, 32)
    found = []
    for images in (stack, stack, stack[0]):
        with suppress(Exception):
            found.append(transform(images.clone()))
    if len(found) == 3 and all(isinstance(one, torch.Tensor) for one in found):
        if not torch.equal(found[0], found[1]):
            raise ValueError(
                "it gives the same images something else another time; list it in RANDOM_TRANSFORMS"
            )
        if not torch.equal(found[0][0], found[2]):
            raise ValueError(
                "it gives an image (C, H, W) something else than in a stack (B, C, H, "
                "W); count its dimensions from the end"
            )


def _try_model(path: str, component: Component) -> object:
    with torch.device("meta"):  # shapes without memory
        family, _, name = component.name.partition("/")
        if name:
            factory = torchvision_model if family == "torchvision" else timm_model
            return factory(name, 2, 3, None, component.arguments)
        supplied = {"num_classes": 2, "in_channels": 3, "input_size": [32, 32]}
        built = build(TABLES["model"], path, component, **supplied)
        if not isinstance(built, nn.Module):
            raise TypeError(f"it gives {type(built).__name__}, which is no nn.Module")
        return built


def _try_optimizer(config: Config, more: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer with ``more`` arguments, after a step on four small parameters."""
    arguments = {**config.optimizer.arguments, **more}
    component = config.optimizer.model_copy(update={"arguments": arguments})
    # Only steps on a GPU can be captured.
    wanted = arguments.get("capturable") and config.train.device.startswith(("auto", "cuda"))
    device = "cuda" if wanted and torch.cuda.is_available() else "cpu"
    # Muon and others treat the first, hidden and last weights differently; (2,) has no decay.
    shapes: list[tuple[int, ...]] = [(2, 2), (2, 2), (2, 2), (2,)]
    parameters = [nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if config.optimizer.trainer_arguments.get("no_decay"):
        groups = [{"params": parameters[:3]}, {"params": parameters[3:], "weight_decay": 0.0}]
    built: torch.optim.Optimizer
    built = build(TABLES["optimizer"], "optimizer", component, params=groups)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    built.step()
    if not all(parameter.isfinite().all() for parameter in parameters):
        raise ValueError("the weights are no longer numbers after one step")
    return built


def _try_schedule(config: Config, component: Component) -> object:
    epochs, stepped = min(config.train.epochs, MAX_TRIED_EPOCHS), _try_optimizer(config, {})
    # A prime number of steps, so that no phase of the schedule ends exactly on a step.
    kind = kind_of_schedule(component)
    built = build_schedule(kind, component.arguments, stepped, epochs, 997, 0)
    for epoch in range(1, max(epochs, 2) + 1):
        built.after_step()
        built.after_epoch(0.5)
        for group in stepped.param_groups:
            if not math.isfinite(group["lr"]):
                raise ValueError(f"the learning rate is {group['lr']} after epoch {epoch}")
    return built


def _try_average(path: str, component: Component) -> object:
    supplied = {"model": nn.Linear(1, 1), "steps_per_epoch": 1}
    return build(TABLES["average"], path, component, **supplied)


def _try_metric(path: str, component: Component) -> object:
    probabilities = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.5], [1.5, 0.0]]).softmax(1)
    labels = torch.tensor([0, 1, 0, 1])
    value = build(TABLES["metric"], path, component, probabilities=probabilities, labels=labels)
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)  # also of NumPy
    if component.name not in OF_EACH_CLASS and not is_number:
        advice = "; write .item()" if getattr(value, "ndim", None) == 0 else ""
        raise ValueError(f"it gives {value!r} for four images; expected a float{advice}")
    return value


def check_values(component: Component) -> None:
    """Raise ValueError for numbers that torchvision accepts but that destroy the image."""
    for name, value in component.arguments.items():
        listed = value if isinstance(value, list) else [value]
        numbers = [item for item in listed if isinstance(item, int | float)]
        if any(not math.isfinite(number) for number in numbers):
            raise ValueError(f"{name} must be finite, but is {value}")
        for inner in listed:
            if isinstance(inner, Component):
                check_values(inner)
