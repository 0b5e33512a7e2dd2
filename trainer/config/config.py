"""One YAML file as a frozen, checked Config: the only thing the code reads settings from.

    config = load_config("configs/lenet_rmb.yaml", ["optimizer.lr=0.1"])

Nothing here imports torch: every wrong key, type and name is told in a fraction of a second.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr
from pydantic_core import to_jsonable_python

from trainer.components.duration import Duration
from trainer.config.components import (
    NESTING,
    SECTIONS,
    full_schema,
    home,
    published,
    unset_arguments,
)
from trainer.config.document import COMMAND_LINE, Document, flow, read_document, write
from trainer.config.json_schema import Finding, Schema, Validator
from trainer.config.rules import default_monitor, rule_findings
from trainer.config.settings import (
    AverageSettings,
    CheckpointSettings,
    Component,
    Count,
    DatasetSettings,
    DistillSettings,
    EarlyStopSettings,
    Frozen,
    LoaderSettings,
    LogSettings,
    LossSettings,
    MetricSettings,
    ModelSettings,
    OptimizerSettings,
    SchedulerSettings,
    SplitSettings,
    TrainSettings,
    TransformsSettings,
)
from trainer.config.yaml_text import Place
from trainer.process.errors import ConfigError, Fault

__all__ = ["Component", "Config", "Duration", "components", "load_config"]

NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Config(Frozen):
    """Everything that decides a run."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, examples=["lenet_rmb"])]
    """The run's name and folder; default the file's name."""
    seed: Count = 0
    """Decides weights, order and augmentation; not the split."""
    dataset: DatasetSettings
    """Where images and labels come from."""
    split: SplitSettings = SplitSettings()
    transforms: TransformsSettings = TransformsSettings(train=(), eval=())
    """What happens to images before the model; scaling to 0-1 happens by itself."""
    loader: LoaderSettings = LoaderSettings()
    model: ModelSettings
    """What is trained; num_classes and in_channels come from the data."""
    loss: LossSettings = Component(name="CrossEntropyLoss")
    """What training makes small."""
    optimizer: OptimizerSettings
    """How weights follow the gradient."""
    scheduler: SchedulerSettings | None = None
    """How the learning rate changes; null keeps it."""
    average: AverageSettings | None = None
    """Averaged weights, to be judged and kept in place of the trained ones; null has none."""
    distill: DistillSettings | None = None
    """A finished run to learn from, beside the labels; null has none."""
    metrics: tuple[MetricSettings, ...] = (Component(name="accuracy"),)
    """What is measured on val and test."""
    train: TrainSettings
    early_stop: EarlyStopSettings | None = None
    """When to stop before the last epoch; null never does."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    _document: Document = PrivateAttr()

    @property
    def messages(self) -> tuple[str, ...]:
        """What the overrides did that a user should be told."""
        return tuple(self._document.messages)

    def dump(self) -> str:
        """The effective configuration as YAML with all defaults; loads again to an equal Config."""
        return write(self.model_dump(mode="json"))

    def print(self) -> str:
        """The same, each value with where it came from: file and line, default, or command line.

        Below each component a comment tells the arguments that it would also take.
        """
        described, below = published(), dict[Place, str]()
        for kind, path, component in components(self):
            also = [
                f"{name}: {flow(schema['default'])}"
                if "default" in schema
                else f"{name}: from the run"
                for name, schema in unset_arguments(
                    kind, component.name, component.written, described
                )
            ]
            if also:
                below[as_place(path)] = f"also: {', '.join(also)}"
        return write(self.model_dump(mode="json"), self._document.told_origin, below)

    def check_arguments(self, described: Mapping[str, Schema]) -> list[Fault]:
        """Every fault in the components' arguments, by their JSON Schemas."""
        found = _component_findings(self._document.data, full_schema(_settings_schema(), described))
        return [self._document.fault(*finding) for finding in found]

    def fault(self, path: str, message: str) -> Fault:
        """A fault where ``path`` ("optimizer.lr") stands in the file, or its nearest parent."""
        return self._document.fault(as_place(path), message)


def as_place(path: str) -> Place:
    """ "metrics.0.k" as ("metrics", 0, "k")."""
    return tuple(int(part) if part.isdecimal() else part for part in path.split(".") if path)


def components(config: Config) -> Iterator[tuple[str, str, Component]]:
    """(kind, path, component) of each component, those inside others too."""
    yield "dataset", "dataset", config.dataset
    for side in ("train", "eval"):
        listed = getattr(config.transforms, side)
        yield from _with_inner("transform", f"transforms.{side}", listed)
    for kind in ("model", "loss", "optimizer", "scheduler", "average"):
        if (component := getattr(config, kind)) is not None:
            yield kind, kind, component
    yield from _with_inner("metric", "metrics", config.metrics)


def _with_inner(
    kind: str, path: str, listed: Iterable[Component]
) -> Iterator[tuple[str, str, Component]]:
    for index, component in enumerate(listed):
        inner = f"{path}.{index}"
        yield kind, inner, component
        if component.name in NESTING:
            nested = component.arguments.get("transforms", [])
            yield from _with_inner(kind, f"{inner}.transforms", nested)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and ``key=value`` overrides; raises ConfigError with every fault at once."""
    document = read_document(Path(path))
    if isinstance(document.data, dict) and {"base", "sweep"} <= document.data.keys():
        message = f"this is a sweep; run python -m trainer.sweep --config {path}"
        raise ConfigError([document.fault(("sweep",), message, at_key=True)], document.file)
    # The outer before the inner: `model.depth=11 model.name=VGG` means what its reverse means.
    for typed in sorted(overrides, key=_depth):
        document.override(typed, DEFAULTS)
    _let_folds_replace_ratios(document)
    _fill_in(document, Path(path).stem)
    if faults := _faults(document):
        raise ConfigError(faults, document.file)
    config = Config.model_validate(document.data)
    config._document = document
    return config


def _faults(document: Document) -> list[Fault]:
    """Every fault that can be told without PyTorch: of keys, types, names, and what goes together.

    Arguments of components are left to the constructors' signatures, unless there are other faults:
    then configs/schema.json describes them, so that one go tells everything.
    """
    data = document.data
    if data is None and not document.faults:
        return [document.fault((), "is empty; expected a configuration")]

    @functools.cache
    def by_file() -> Schema:
        return full_schema(_settings_schema(), published())

    schema = full_schema(_settings_schema(), {})
    validator = Validator(schema["$defs"], lambda place: home(place, data, by_file()))
    found = {finding.place: finding for finding in validator.findings(data, schema)}
    rules = list(rule_findings(data)) if isinstance(data, dict) else []
    if found or rules or document.faults:
        found |= {finding.place: finding for finding in _component_findings(data, by_file())}
    known = [f for f in (*found.values(), *rules) if not document.is_unknown(f.place)]
    return document.faults + [document.fault(*finding) for finding in known]


def _component_findings(data: Any, schema: Schema) -> Iterator[Finding]:
    """What is wrong with the components, their arguments too, by the ``schema`` of a whole file."""
    validator = Validator(schema["$defs"], lambda place: home(place, data, schema))
    for section in SECTIONS:
        if isinstance(data, dict) and section in data:
            inner = schema["properties"][section]
            yield from validator.findings(data[section], inner, (section,))


@functools.cache
def _settings_schema() -> Schema:
    return Config.model_json_schema()


def _depth(typed: str) -> int:
    key = typed.partition("=")[0].strip()
    return key.removesuffix(".name").count(".")


def _let_folds_replace_ratios(document: Document) -> None:
    """Drop the file's ratios where an override asks for folds, beside which they mean nothing."""
    split = document.data.get("split") if isinstance(document.data, dict) else None
    if not isinstance(split, dict) or split.get("folds") is None or "ratios" not in split:
        return
    folds, ratios = (document.origin(("split", key)).file for key in ("folds", "ratios"))
    if folds == COMMAND_LINE != ratios:
        if ("split", "ratios") in document.values:
            document.messages.append(f"split.folds={split['folds']} drops split.ratios")
        del split["ratios"]


def _fill_in(document: Document, stem: str) -> None:
    """The two defaults that depend on something else: the run's name, and what is monitored."""
    data = document.data
    if not isinstance(data, dict):
        return
    if "name" not in data:
        if not re.fullmatch(NAME_PATTERN, stem):
            message = f"the file's name '{stem}' is no name for a run; add 'name:' to the file"
            document.faults.append(document.fault((), message))
            stem = "unnamed"
        document.data = data = {"name": stem, **data}
    if isinstance(train := data.get("train"), dict) and "monitor" not in train:
        train["monitor"] = default_monitor(data)


# What an override may go into although the file leaves it out: `loss.label_smoothing=0.1`.
DEFAULTS: dict[str, Any] = {
    key: to_jsonable_python(field.default)
    for key, field in Config.model_fields.items()
    if not field.is_required() and field.default is not None
}
