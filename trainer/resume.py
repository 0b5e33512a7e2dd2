"""Which run to continue, and whether the configuration still is the one it began with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config import Config, load_config
from trainer.errors import ConfigError
from trainer.run import find_run

# Keys that leave every weight as it is (or, for epochs, only add to the run).
MAY_CHANGE = ("train.epochs", "log.", "checkpoint.", "loader.workers", "loader.cache")


def find_resumable(
    run: str, config_file: str | None, overrides: Sequence[str], runs: Path
) -> tuple[Config, Path]:
    """The configuration to continue with, and the run's folder.

    ``run`` is a run's folder, or empty for the newest run of the config's name. Raises ConfigError
    where a setting differs that the weights depend on, UsageError where there is no such run.
    """
    if run:
        folder = find_run(run)
    else:
        assert config_file is not None  # main() asks for one of the two
        folder = find_run(str(runs / load_config(config_file, overrides).name))
    began = load_config(folder / "config.yaml")
    config = load_config(config_file or folder / "config.yaml", overrides)
    faults = [
        config.fault(path, f"is {new!r}, but this run began with {old!r}; start a new run for it")
        for path, old, new in differences(began, config)
        if not path.startswith(MAY_CHANGE)
    ]
    if faults:
        raise ConfigError(faults)
    return config, folder


def differences(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """(path, old value, new value) of every setting that differs."""
    before, after = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    return [
        (path, before.get(path), after.get(path))
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    ]


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; list items by their number."""
    if isinstance(value, dict) and value:
        items = list(value.items())
    elif isinstance(value, list) and value:
        items = list(enumerate(value))
    else:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat |= flatten(inner, f"{path}.{key}" if path else str(key))
    return flat
