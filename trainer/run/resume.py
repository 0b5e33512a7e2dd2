"""Finds the run to resume, and compares its configuration with the one it began with."""

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from datasets import RMB_ROOT, DataError
from trainer.components.own import COPY
from trainer.config import Config, load_config
from trainer.config.components import published
from trainer.process.errors import ConfigError, RunError, UsageError
from trainer.process.launch import is_first
from trainer.run.disk import read_json
from trainer.run.folder import find_run, runs_in

# Keys, or their beginnings, that may differ when a run is resumed. Data at another place are
# compared by the split's digests, and a teacher by its own digest.
MAY_CHANGE = (
    *("train.epochs", "train.budget", "train.skip_non_finite", "early_stop", "train.parallel"),
    *("evaluation.", "log.", "checkpoint.", "dataset.root", "dataset.fixes"),
    *("dataset.unknown", "distill.run", "notify"),
    *("loader.workers", "loader.cache", "loader.eval_batch_size", "store."),
)

# The same for a use of the finished run: where images lie, how they are read, the device, metrics.
MAY_DIFFER = (
    *(
        "dataset.root",
        "dataset.on_broken",
        "dataset.fixes",
        "dataset.unknown",
        "loader.",
        "store.",
        "train.device",
        "train.threads",
        "evaluation.",
        "metrics",
    ),
)


def find_resumable(
    run: str, config_file: str | None, overrides: Sequence[str], runs: Path
) -> tuple[Config, Path]:
    """The configuration to continue with, and the run's folder.

    ``run`` is a run's folder, or empty for the newest run of the config's name. Raises ConfigError
    if a setting differs that may not change, UsageError if there is no such run, DataError as
    ``require_own_images`` does.
    """
    if run:
        folder = find_run(run)
    else:
        assert config_file is not None  # main() asks for one of the two
        folder = find_run(str(runs / load_config(config_file, overrides).name))
    if is_first() and folder != Path(run):  # before its settings may be refused
        print(f"resume  {folder}, the newest of {len(runs_in(folder.parent))}", file=sys.stderr)
    began = load_config(folder / "config.yaml")
    named = config_file or folder / "config.yaml"
    config = load_config(named, overrides, by_user=config_file is not None)
    if config.train.precision == "auto":  # the run's config.yaml has what that was
        train = config.train.model_copy(update={"precision": began.train.precision})
        config = config.model_copy(update={"train": train})
    config = with_same_weights(config, began)
    if config.name != began.name:
        raise UsageError(f"{folder} is a run of '{began.name}', and {config_file} another file's.")
    try:
        refuse_changes(began, config, MAY_CHANGE)
    except ConfigError as error:
        if any("the run began" in fault.message for fault in error.faults):
            error.add_note(what_resume_can(folder, config_file, overrides, runs))
        if began.own.sha256 and config.own.sha256 != began.own.sha256:
            error.add_note(f"With its own copy of {COPY} it goes on by --resume {folder} alone.")
        raise
    require_own_images(folder, config)
    return config, folder


def with_same_weights(config: Config, began: Config) -> Config:
    """The configuration with the run of ``model.weights`` that the run began with.

    Where the YAML names runs/NAME, the run's config.yaml has the folder of the newest one then.
    """
    named, had = (each.model.trainer_arguments.get("weights") for each in (config, began))
    if not (named and had and Path(had).is_relative_to(named)):
        return config
    arguments = config.model.trainer_arguments | {"weights": had}
    model = config.model.model_copy(update={"trainer_arguments": arguments})
    return config.model_copy(update={"model": model})


def require_own_images(run: Path, config: Config) -> None:
    """Raise DataError if the run's photographs are missing and drawn images would replace them."""
    arguments = config.dataset.arguments
    root = str(arguments.get("root", RMB_ROOT))
    if not arguments.get("draw_if_absent") or Path(root).exists():
        return
    drawn = True
    with suppress(RunError):  # the file is lost: the split's digest finds it later
        dataset = read_json(run / "result.json").get("dataset")
        drawn = not isinstance(dataset, dict) or bool(dataset.get("note"))
    if not drawn:
        raise DataError(
            f"{root} does not exist, where the images of {run} were. Bring them back, or name "
            "their place: dataset.root=..."
        )


def what_resume_can(
    run: Path, config_file: str | None, overrides: Sequence[str], runs: Path
) -> str:
    """What a resumed run may change, and the command that begins a new run from its weights."""
    root = ["--runs", str(runs)] if runs != Path("runs") else []
    kept = [word for word in overrides if not word.startswith("model.init=")]
    began = load_config(run / "config.yaml")
    if began.model.trainer_arguments.get("init") is not None:  # the weights replace it
        kept.append("model.init=null")
    again = ["--config", config_file or str(run / "config.yaml"), *root, *kept]
    allowed = ", ".join(path.removesuffix(".") for path in MAY_CHANGE)
    return (
        f"A resumed run goes on as it began; it may change {allowed}.\n"
        "To train its best weights further with other settings, start a new run:\n"
        f"  python -m trainer.train {shlex.join([*again, f'model.weights={run}/model.pt'])}"
    )


def config_for_use(run: Path, overrides: Sequence[str]) -> Config:
    """The configuration of a run with ``overrides``, which may set ``MAY_DIFFER`` only."""
    config = load_config(run / "config.yaml", overrides)
    refuse_changes(load_config(run / "config.yaml"), config, MAY_DIFFER)
    return config


def refuse_changes(began: Config, config: Config, may_change: tuple[str, ...]) -> None:
    """Raise ConfigError with every setting that differs and is not in ``may_change``."""
    changed = {
        path: config.fault(path, f"is {as_yaml(new)}, but the run began with {as_yaml(old)}")
        for path, old, new in differences(settings(began), settings(config))
        if not path.startswith(may_change)
    }
    named = {path.removesuffix("name") for path in changed if path.endswith(".name")}
    slips = {fault.path: fault for fault in config.check_arguments(published())}
    faults = [
        slips.get(path, fault)
        for path, fault in changed.items()
        if path.endswith(".name") or not path.startswith(tuple(named))  # another name says it all
    ]
    if faults:
        raise ConfigError(faults)


def settings(config: Config) -> dict[str, Any]:
    """A configuration as plain values."""
    return config.model_dump(mode="json")


def as_yaml(value: Any) -> str:
    """A value as text in YAML."""
    return json.dumps(value, ensure_ascii=False)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(path, old value, new value) of every setting that differs."""
    before, after = flatten(old), flatten(new)
    return [
        (path, before.get(path), after.get(path))
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    ]


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; components of a list by their number."""
    if isinstance(value, dict) and value:
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = list(enumerate(value))
    else:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat |= flatten(inner, f"{path}.{key}" if path else str(key))
    return flat
