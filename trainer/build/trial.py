"""Tries each component of a configuration once, so that faults are found before data is read.

A model is built without memory, an optimizer steps small parameters, its schedule runs over the
epochs, a metric measures four images. Datasets are not tried.
"""

import math
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

MAX_TRIED_EPOCHS = 1000  # of a schedule


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
    return config.check_arguments(used) or list(_refusals(config))


def _table_name(kind: str, name: str) -> str:
    """The table's entry for a component: "torchvision/" for "torchvision/resnet18"."""
    return name if name in TABLES[kind] else name[: name.index("/") + 1]


def _refusals(config: Config) -> Iterator[Fault]:
    """Faults of arguments whose types are right, such as a negative learning rate."""
    failed = set[str]()
    for trial in _attempts(config):
        if trial.path.startswith(("scheduler", "optimizer.")) and "optimizer" in failed:
            continue  # it is tried on the optimizer
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


def _attempts(config: Config) -> Iterator[Attempt]:
    """One attempt for each component, in the order in which faults are reported."""
    listed = list(components(config))

    def of(kind: str, attempt: Callable[[str, Component], object]) -> Iterator[Attempt]:
        for found, path, component in listed:
            if found == kind and ".transforms." not in path:
                yield Attempt(path, component, partial(attempt, path, component))

    optimizer = config.optimizer
    yield from of("transform", _try_transform)
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


def _try_transform(path: str, component: Component) -> object:
    check_values(component)
    built = build(TABLES["transform"], path, component, num_classes=2)
    if is_fixed(built) and component.own:
        _require_fixed(built)
    return built


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
    if component.name not in OF_EACH_CLASS and type(value) not in (int, float):
        raise ValueError(f"it gives {value!r} for four images; expected a float")
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
