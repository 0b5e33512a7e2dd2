"""Computes the settings that a sweep tries: choices and their combinations, or draws."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.config.document import component_name, flow
from trainer.sweeping.settings import Range, Sweep

Settings = dict[str, Any]  # of one trial: key of the experiment -> value


def points(sweep: Sweep) -> list[Settings]:
    """The settings of all trials.

    grid: all combinations, the last key fastest.  each: the first choices of all keys, then every
    other choice with the first ones of the other keys.  random: draws.
    """
    if sweep.method == "each":
        tried = enumerate(samples(sweep))
        return [settings for index, (settings, _, place) in tried if place or not index] or [{}]
    if sweep.method == "grid":
        lists = [choices for choices in sweep.params.values() if isinstance(choices, list)]
        combined = itertools.product(*lists)
        return [dict(zip(sweep.params, values, strict=True)) for values in combined]
    return [draw_settings(sweep, number) for number in range(sweep.trials or 0)]


def count(sweep: Sweep) -> int:
    """The number of trials."""
    if sweep.method == "each":
        return len(points(sweep))
    if sweep.method != "grid":
        return sweep.trials or 0
    return math.prod(len(c) for c in sweep.params.values() if isinstance(c, list))


def draw_settings(sweep: Sweep, number: int) -> Settings:
    """The settings of random trial ``number`` (from 0); each depends on seed, number and key."""
    from transforms.keyed import seed_of

    settings = {}
    for key, space in sweep.params.items():
        share = seed_of("sweep", sweep.seed, number, key) / 2**63
        if isinstance(space, list):
            settings[key] = space[int(share * len(space))]
        else:
            settings[key] = at(space, share)
    return settings


def at(space: Range, share: float) -> int | float:
    """The number at ``share`` (in [0, 1)) of the way from low to high, or of their logarithms."""
    low, high = space.low, space.high
    if space.log:
        # Whole numbers are drawn from half below low to half above high, and then rounded.
        around = 0.5 if space.is_whole else 0.0
        first, last = math.log(low - around), math.log(high + around)
        found = math.exp(first + share * (last - first))
        found = min(max(found, low), high)
        return round(found) if space.is_whole else found
    step = 1 if space.step is None and space.is_whole else space.step
    if step is None:
        return low + share * (high - low)
    steps = math.floor((high - low) / step + 1e-9) + 1
    return low + int(share * steps) * step


def samples(sweep: Sweep) -> Iterator[tuple[Settings, str, int | str]]:
    """Yield (settings, key, place): each choice or end of a range, other keys at their first."""
    first = {key: ends(space)[0][1] for key, space in sweep.params.items()}
    for key, space in sweep.params.items():
        for place, value in ends(space):
            yield {**first, key: value}, key, place


def ends(space: list[Any] | Range) -> list[tuple[int | str, Any]]:
    """(index, choice) for each choice of a list; ("low", number), ("high", number) of a range."""
    if isinstance(space, list):
        return list(enumerate(space))
    return [("low", space.low), ("high", space.high)]


def in_words(space: list[Any] | Range) -> str:
    """Choices or a range, for people: ``0.001 to 1, evenly in the logarithm``."""
    if isinstance(space, list):
        return f"one of {', '.join(map(display_value, space))}"
    kind = "whole numbers from " if space.is_whole else ""
    step = f" in steps of {flow(space.step)}" if space.step is not None else ""
    log = ", evenly in the logarithm" if space.log else ""
    return f"{kind}{flow(space.low)} to {flow(space.high)}{step}{log}"


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings as overrides on the command line: ``optimizer.lr=0.1``."""
    return [f"{key}={flow(value)}" for key, value in settings.items()]


def display_value(value: Any) -> str:
    """A value for people: ``0.001``; a component as ``SGD(lr=0.1)``."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict) and component_name(value):
        rest = ", ".join(f"{k}={display_value(v)}" for k, v in value.items() if k != "name")
        return f"{value['name']}({rest})" if rest else str(value["name"])
    return flow(value)
