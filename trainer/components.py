"""From a component's name and arguments to the object, and to every fault before data is read.

Importing this imports no torch; looking a component up does.
"""

import enum
import functools
import math
import re
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainer.config import Component, Config, components
from trainer.errors import Fault
from trainer.rules import OF_GROUPS, RESERVED, TABLES, component_key
from trainer.settings import Duration
from trainer.signatures import describe, parameters_of, resolve

MAX_TRIED_EPOCHS = 1000  # of a schedule


def build(table: Mapping[str, str], path: str, component: Component, **supplied: Any) -> Any:
    """Call what ``component`` names with its arguments, and with those ``supplied`` it asks for.

    Components among the arguments are built too. What the constructor raises passes through, with
    a note that tells ``path``.
    """
    factory = resolve(table, component.name)
    parameters = parameters_of(factory)
    given = {name: value for name, value in supplied.items() if name in parameters}

    def converted(name: str, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(item, Component) for item in value):
            inner = f"{path}.{name}"
            return [build(table, f"{inner}.{i}", c, **supplied) for i, c in enumerate(value)]
        return as_member(value, parameters[name].annotation) if name in parameters else value

    try:
        arguments = {name: converted(name, value) for name, value in component.arguments.items()}
        return factory(**given, **arguments)
    except Exception as error:
        error.add_note(f"while building {path}: {component.name}")
        raise


def as_member(value: Any, annotation: Any) -> Any:
    """ "bilinear" as InterpolationMode.BILINEAR where the annotation knows such an enum, "1ep" as a

    Duration where it is one.
    """
    for kind in (annotation, *typing.get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, enum.Enum) and isinstance(value, str):
            return kind(value)
        if kind is Duration and isinstance(value, str):
            return Duration.parse(value)
    return value


def check_components(config: Config) -> list[Fault]:
    """Every fault in the arguments of every component, told before any data is read.

    First by the constructors' signatures, all together. Then, where those agree, each but the
    dataset is tried once: models without memory, an optimizer for a step on small parameters, its
    schedule over the epochs, a metric on four images.
    """
    used = {
        component_key(kind, name): describe(kind, name)
        for kind, _, component in components(config)
        for name in [_table_name(kind, component.name)]
    }
    return config.check(used) or list(_trials(config))


def _table_name(kind: str, name: str) -> str:
    """The table's entry for a component: "torchvision/" for "torchvision/resnet18"."""
    return name if name in TABLES[kind] else name[: name.index("/") + 1]


def _trials(config: Config) -> Iterator[Fault]:
    """What constructors refuse although the types are right, such as a negative learning rate."""
    import torch

    from models.external import timm_model, torchvision_model
    from trainer.schedulers import build_schedule

    def transform(path: str, component: Component) -> object:
        check_values(component)
        return build(TABLES["transform"], path, component, num_classes=2)

    def model() -> object:
        component = _without_reserved("model", config.model)
        with torch.device("meta"):  # shapes without memory
            family, _, name = component.name.partition("/")
            if name:
                factory = torchvision_model if family == "torchvision" else timm_model
                return factory(name, 2, 3, None, component.arguments)
            supplied = {"num_classes": 2, "in_channels": 3, "input_size": [32, 32]}
            return build(TABLES["model"], "model", component, **supplied)

    def optimizer(more: dict[str, Any] | None = None) -> Any:
        component = _without_reserved("optimizer", config.optimizer)
        component = component.model_copy(update={"arguments": component.arguments | (more or {})})
        # Only a GPU's steps can be captured.
        wanted = component.arguments.get("capturable") and config.train.device.startswith(
            ("auto", "cuda")
        )
        device = "cuda" if wanted and torch.cuda.is_available() else "cpu"
        # First and last weight, a hidden one, and the group that does not decay.
        shapes: list[tuple[int, ...]] = [(2, 2), (2, 2), (2, 2), (2,)]
        parameters = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]
        groups: list[dict[str, Any]] = [{"params": parameters}]
        if config.optimizer.arguments.get("no_decay"):
            groups = [{"params": parameters[:3]}, {"params": parameters[3:], "weight_decay": 0.0}]
        built = build(TABLES["optimizer"], "optimizer", component, params=groups)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        built.step()
        if not all(parameter.isfinite().all() for parameter in parameters):
            raise ValueError("the weights are no longer numbers after one step")
        return built

    def schedule() -> object:
        assert config.scheduler is not None
        component = _without_reserved("scheduler", config.scheduler)
        epochs, arguments = min(config.train.epochs, MAX_TRIED_EPOCHS), dict(component.arguments)
        stepped = optimizer()
        # A prime number of steps, so that no round share of the run ends exactly on one.
        built = build_schedule(component.name, arguments, stepped, epochs, 997, 0, "min")
        for epoch in range(1, max(epochs, 2) + 1):
            built.after_step()
            built.after_epoch(0.5)
            for group in stepped.param_groups:
                if not math.isfinite(group["lr"]):
                    raise ValueError(f"the learning rate is {group['lr']} after epoch {epoch}")
        return built

    def average(component: Component) -> object:
        supplied = {"model": torch.nn.Linear(1, 1), "steps_per_epoch": 1}
        return build(TABLES["average"], "average", component, **supplied)

    def metric(path: str, component: Component) -> object:
        probabilities = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.5], [1.5, 0.0]]).softmax(1)
        labels = torch.tensor([0, 1, 0, 1])
        return build(TABLES["metric"], path, component, probabilities=probabilities, labels=labels)

    def loss() -> object:
        return build(TABLES["loss"], "loss", _without_reserved("loss", config.loss))

    attempts: list[tuple[str, Component, Callable[[], object]]] = [
        (path, component, functools.partial(transform, path, component))
        for kind, path, component in components(config)
        if kind == "transform" and ".transforms." not in path
    ]
    attempts += [("model", config.model, model), ("loss", config.loss, loss)]
    attempts += [("optimizer", config.optimizer, optimizer)]
    for index, group in enumerate(config.optimizer.arguments.get("groups", ())):
        more = {key: value for key, value in group.items() if key not in OF_GROUPS}
        if "lr_scale" in group:
            more["lr"] = rate_of(config.optimizer) * group["lr_scale"]
        path = f"optimizer.groups.{index}"
        tried = config.optimizer.model_copy(update={"arguments": more})
        attempts += [(path, tried, functools.partial(optimizer, more))]
    if config.scheduler is not None:
        attempts += [("scheduler", config.scheduler, schedule)]
    if config.average is not None:
        attempts += [("average", config.average, functools.partial(average, config.average))]
    for kind, path, component in components(config):
        if kind == "metric":
            attempts += [(path, component, functools.partial(metric, path, component))]
    failed = set[str]()
    for path, component, attempt in attempts:
        if path.startswith(("scheduler", "optimizer.")) and "optimizer" in failed:
            continue  # it is tried on the optimizer
        try:
            with warnings.catch_warnings(action="ignore"):
                attempt()
        except NotImplementedError:
            continue  # a model of timm that needs real memory
        except Exception as error:
            failed.add(path)
            message = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, ArithmeticError):  # "division by zero" alone tells little
                message = f"its arguments lead to {message}"
            words = re.findall(r"\w+", message)
            named = [name for name in component.arguments if name in words]
            place = f"{path}.{named[0]}" if named else path
            yield config.fault(place, f"{component.name} cannot be used: {message}")


def rate_of(optimizer: Component) -> float:
    """The learning rate that the YAML gives an optimizer, or else its constructor's own."""
    default = parameters_of(resolve(TABLES["optimizer"], optimizer.name))["lr"].default
    return float(optimizer.arguments.get("lr", default))


def check_values(component: Component) -> None:
    """Raise ValueError for numbers that torchvision takes, and that leave nothing of an image."""
    for name, value in component.arguments.items():
        listed = value if isinstance(value, list) else [value]
        numbers = [item for item in listed if isinstance(item, int | float)]
        if any(not math.isfinite(number) for number in numbers):
            raise ValueError(f"{name} must be finite, but is {value}")
        if name == "fill" and any(not 0 <= number <= 255 for number in numbers):
            raise ValueError(f"fill must be grey levels in 0..255, but is {value}")
        if (component.name, name) == ("RandomChoice", "p") and min(numbers, default=0) < 0:
            raise ValueError(f"p must be shares of 0 or more, but is {value}")
        if name == "scale" and component.name in ("RandomResizedCrop", "RandomErasing"):
            if min(numbers, default=1) < 0:
                raise ValueError(f"scale must be shares of the image, 0 or more, but is {value}")
        for inner in listed:
            if isinstance(inner, Component):
                check_values(inner)


def _without_reserved(kind: str, component: Component) -> Component:
    reserved = RESERVED.get(kind, {})
    arguments = {k: value for k, value in component.arguments.items() if k not in reserved}
    return component.model_copy(update={"arguments": arguments})
