"""Builds the object of a component by name and arguments; imports torch only when called."""

import enum
import typing
from collections.abc import Callable, Mapping
from typing import Any

from trainer.components.duration import Duration
from trainer.config.components import TABLES
from trainer.config.settings import Component
from trainer.config.signatures import parameters_of, resolve


def build(table: Mapping[str, str], path: str, component: Component, **supplied: Any) -> Any:
    """Call the class or function of ``component`` and return its result, such as a metric's value.

    It gets the component's arguments, and those of ``supplied`` that its signature names. Inner
    components are built too. Its errors pass through, with a note that names ``path``.
    """
    factory = factory_of(table, component)
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


def factory_of(table: Mapping[str, str], component: Component) -> Callable[..., Any]:
    """The class or function of a component: of the user's own file, or else of the table.

    Raises as ``resolve`` and ``OwnFile.run``.
    """
    if component.own:
        found: Callable[..., Any] = component.own.get(component.name)
        return found
    return resolve(table, component.name)


def kind_of_schedule(scheduler: Component | None) -> str | Callable[..., Any] | None:
    """What ``build_schedule`` takes: the name of a scheduler, or the class of a user's own."""
    if scheduler is None:
        return None
    if scheduler.own is None:
        return scheduler.name
    return factory_of(TABLES["scheduler"], scheduler)


def as_member(value: Any, annotation: Any) -> Any:
    """``value``; if the annotation is an enum or Duration, the member or Duration of its text."""
    for kind in (annotation, *typing.get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, enum.Enum) and isinstance(value, str):
            return kind(value)
        if kind is Duration and isinstance(value, str):
            return Duration.parse(value)
    return value


def rate_of(optimizer: Component) -> float:
    """The learning rate of an optimizer in the YAML, or else its constructor's default."""
    default = parameters_of(factory_of(TABLES["optimizer"], optimizer))["lr"].default
    return float(optimizer.arguments.get("lr", default))
