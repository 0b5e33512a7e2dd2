"""Exclude parameters of a model from training."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn


def freeze(model: nn.Module, patterns: Sequence[str]) -> int:
    """Exclude the parameters that match a pattern from training; returns how many values they hold.

    patterns: shell patterns on parameter names, such as "features.*" or "layer[12].*"; ``*`` also
    crosses dots. Raises ValueError, and changes nothing, if a pattern matches no name or if nothing
    would be left to train.
    """
    parameters = dict(model.named_parameters())
    try:
        frozen = matching(list(parameters), patterns)
    except ValueError as error:
        raise ValueError(f"freeze: {error}") from None
    if not any(p.requires_grad for name, p in parameters.items() if name not in frozen):
        raise ValueError(f"freeze: {list(patterns)} leaves nothing to train; drop a pattern")
    for name in frozen:
        parameters[name].requires_grad_(False)
    return sum(parameters[name].numel() for name in frozen)


def matching(names: Sequence[str], patterns: Sequence[str], what: str = "parameter") -> list[str]:
    """The names that match a shell pattern. Raises ValueError if a pattern matches none."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = " or ".join(map(repr, _near(pattern, names)))
            raise ValueError(f"no {what} matches {pattern!r}; did you mean {near}?")
    return [name for name in names if any(fnmatchcase(name, p) for p in patterns)]


def train_mode(model: nn.Module) -> None:
    """Set training mode, except in frozen batch norm, which would update its mean and variance."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        keeps_statistics = getattr(module, "running_mean", None) is not None
        if keeps_statistics and own and not any(p.requires_grad for p in own):
            module.eval()


def _near(pattern: str, names: Sequence[str]) -> list[str]:
    """Patterns and names similar to ``pattern``; if there are none, those of the top level."""
    paths = [name.split(".") for name in names]
    groups = [".".join(path[:n]) + ".*" for path in paths for n in range(1, len(path))]
    near = difflib.get_close_matches(pattern, [*dict.fromkeys(groups), *names], n=3)
    return near or list(dict.fromkeys(path[0] + ".*" * (len(path) > 1) for path in paths))
