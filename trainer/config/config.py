"""A YAML file as a frozen, checked Config: the only object from which the code reads settings.

    config = load_config("configs/lenet_rmb.yaml", ["optimizer.lr=0.1"])

Nothing here imports torch: every wrong key, type and name is reported in a fraction of a second.
"""

import copy
import functools
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr
from pydantic_core import to_jsonable_python

from trainer.components.own import COPY, NO_FILE, OwnFile, read_own_file
from trainer.config import settings
from trainer.config.components import (
    NESTING,
    SECTIONS,
    TABLES,
    full_schema,
    home,
    instead,
    published,
    unset_arguments,
)
from trainer.config.document import (
    COMMAND_LINE,
    OWN,
    Document,
    as_one_word,
    flow,
    in_one_word,
    read_document,
    write,
)
from trainer.config.json_schema import Finding, Schema, Validator
from trainer.config.rules import default_monitor, rule_findings
from trainer.config.settings import Component, Count, Frozen
from trainer.config.yaml_text import Origin, Place
from trainer.process.errors import ConfigError, Fault
from trainer.process.words import listed

NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
NAME_IN_WORDS = (
    "text of at most 64 letters A-Z and a-z, digits, '.', '_' and '-', "
    "the first a letter or a digit"
)


class Config(Frozen):
    """All settings of a run."""

    name: Annotated[
        str,
        Field(
            pattern=NAME_PATTERN,
            examples=["lenet_rmb"],
            json_schema_extra={"$comment": NAME_IN_WORDS},
        ),
    ]
    """The run's name and folder; the default is the file's name."""
    seed: Count = 0
    """Decides initial weights, order and augmentation; not the split."""
    components: settings.OwnComponents = None
    """A Python file of your own, with models, transforms, losses or metrics; beside this file."""
    dataset: settings.DatasetSettings
    """Where images and labels come from."""
    split: settings.SplitSettings = settings.SplitSettings()
    transforms: settings.TransformsSettings = settings.TransformsSettings()
    """The transforms of images before the model; scaling to 0-1 is automatic."""
    loader: settings.LoaderSettings = settings.LoaderSettings()
    store: settings.StoreSettings = settings.StoreSettings()
    model: settings.ModelSettings
    """The model to train; num_classes and in_channels come from the data."""
    loss: settings.LossSettings = Component(name="CrossEntropyLoss")
    """The loss that training minimises."""
    optimizer: settings.OptimizerSettings
    """How the weights are updated from their gradients."""
    scheduler: settings.SchedulerSettings | None = None
    """How the learning rate changes; null keeps it constant."""
    average: settings.AverageSettings | None = None
    """Averaged weights, evaluated and saved in place of the trained ones; null has none."""
    distill: settings.DistillSettings | None = None
    """A finished run to learn from, beside the labels; null has none."""
    metrics: tuple[settings.MetricSettings, ...] = (Component(name="accuracy"),)
    """The metrics of val and test."""
    train: settings.TrainSettings
    evaluation: settings.EvaluationSettings = settings.EvaluationSettings()
    early_stop: settings.EarlyStopSettings | None = None
    """When to stop before the last epoch; null trains all epochs."""
    checkpoint: settings.CheckpointSettings = settings.CheckpointSettings()
    log: settings.LogSettings = settings.LogSettings()
    notify: settings.NotifySettings | None = None
    """Who is told when the run, or the sweep, has ended; null tells nobody."""

    _document: Document = PrivateAttr()
    _own: OwnFile = PrivateAttr(default=NO_FILE)

    @property
    def messages(self) -> tuple[str, ...]:
        """Notes for the user about side effects of the overrides."""
        return tuple(self._document.messages)

    @property
    def file(self) -> str:
        """The YAML file, as the command line named it."""
        return self._document.file

    @property
    def own(self) -> OwnFile:
        """The file of own components; without a path if there is none."""
        return self._own

    def dump(self) -> str:
        """The effective configuration as YAML with all defaults; ``load_config`` reads it equal."""
        return write(self.model_dump(mode="json"))

    def dump_as_written(self) -> str:
        """``dump`` with the transforms as written, so that overrides find them at their places."""
        values = self.model_dump(mode="json")
        written = self._document.data.get("transforms")
        if isinstance(written, dict) and "both" in written:
            values["transforms"] = written
        return write(values)

    def print(self) -> str:
        """``dump`` with the origin of each value: file and line, default, or command line.

        A comment below each component lists the arguments that it would also take.
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
        values = self.model_dump(mode="json")
        values["components"] = self._document.data.get("components")
        return write(values, self._document.origin_text, below)

    def check_arguments(self, described: Mapping[str, Schema]) -> list[Fault]:
        """Every fault in the components' arguments, found by the JSON Schemas ``described``."""
        schema = full_schema(_settings_schema(), described, self.own)
        found = _component_findings(self._document, schema)
        return [self._document.fault(*finding) for finding in found]

    def fault(self, path: str, message: str) -> Fault:
        """A fault at the line of ``path`` ("optimizer.lr"), or of its nearest parent there."""
        return self._document.fault(self._document.as_written(as_place(path)), message)


def as_place(path: str) -> Place:
    """ "metrics.0.k" as ("metrics", 0, "k")."""
    return tuple(int(key) if key.isdecimal() else key for key in path.split(".") if path)


def components(config: Config) -> Iterator[tuple[str, str, Component]]:
    """(kind, path, component) of each component, also of those inside other components."""
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


def load_config(path: str | Path, overrides: Sequence[str] = (), by_user: bool = False) -> Config:
    """Read a YAML file and ``key=value`` overrides; raises ConfigError with every fault at once.

    by_user: the user named this file to train, so its own components may be run; those of a file
    that was found in a run's folder may come from elsewhere.
    """
    document = read_document(Path(path))
    if isinstance(document.data, dict) and {"base", "sweep"} <= document.data.keys():
        message = f"this is a sweep; run python -m trainer.sweep --config {path}"
        raise ConfigError([document.fault(("sweep",), message, at_key=True)], document.file)
    # Outer keys first, so that `model.depth=11 model.name=VGG` means the same in both orders.
    for typed in sorted(in_one_word(overrides), key=_depth):
        if re.fullmatch(r"[^=]+=\s*", typed):
            document.faults.append(_fault_of_no_value(document, typed.strip()))
        elif typed in overrides:
            document.override(typed, DEFAULTS)
        else:
            message = f"a setting is one word, without spaces{as_one_word(typed)}"
            document.faults.append(Fault("", message, *Origin(COMMAND_LINE, source=typed)))
    _let_folds_replace_ratios(document)
    own = _own_file(document, by_user)
    _fill_in(document, Path(path).stem, own)
    if faults := _faults(document, own):
        raise ConfigError(faults, document.file)
    data = document.with_shared()
    if own.sha256:  # as a run's folder has it
        data = data | {"components": {"file": COPY, "sha256": own.sha256}}
    config = Config.model_validate(data)
    config._document, config._own = document, own
    for kind, _, component in components(config):
        bind(component, kind, own)
    return config


def bind(component: Component, kind: str, own: OwnFile) -> None:
    """Let a component be that of the user's own file, if the file has its name."""
    if component.name in own.names(kind):
        component._own = own


def read_own(document: Document) -> OwnFile:
    """The file that ``components`` names; raises ConfigError if it names none, or for faults."""
    own = _own_file(document, by_user=True)
    if not document.faults and not own.sha256:
        document.faults.append(document.fault((), "names no file by 'components'"))
    if document.faults:
        raise ConfigError(document.faults, document.file)
    return own


def _own_file(document: Document, by_user: bool) -> OwnFile:
    """The file that ``components`` names, beside the YAML; the document learns its faults."""
    given = document.data.get("components") if isinstance(document.data, dict) else None
    wanted = given.get("sha256") if isinstance(given, dict) else None
    name = given.get("file") if isinstance(given, dict) else given
    if not isinstance(name, str) or document.is_unknown(("components",)):
        return NO_FILE  # the schema tells what is wrong
    path = Path(document.file).parent / name
    if not path.is_file():
        lost = "bring back the copy" if wanted else "expected a Python file; its place is relative"
        message = f"{path} is no file; {lost}" + ("" if wanted else f" to {document.file}")
        document.faults.append(document.fault(("components",), message))
        return NO_FILE
    own, faults = read_own_file(path, TABLES, is_copy=not by_user or wanted is not None)
    is_hash = isinstance(wanted, str) and re.fullmatch("[0-9a-f]{64}", wanted)
    if is_hash and own.sha256 not in ("", wanted):
        message = (
            f"{path} was changed: its SHA-256 is {own.sha256}, and the run was trained with "
            f"{wanted}; undo the change, or train a new run with components: {path}"
        )
        faults = [document.fault(("components", "sha256"), message)]
    document.faults += faults
    return own


def _fault_of_no_value(document: Document, typed: str) -> Fault:
    """The fault of ``key=`` without a value: it shows values that the key may have."""
    schema, place = full_schema(_settings_schema(), published()), as_place(typed[:-1])
    validator = Validator(schema["$defs"])
    fitting, expected = list[str](), "expected key=value, as in optimizer.lr=0.1"
    for text in ("null", '""', "[]", "0.1", "1"):
        trial = copy.deepcopy(document)
        trial.override(f"{typed}{text}", DEFAULTS)
        found = [
            f for f in validator.findings(trial.data, schema) if f.place[: len(place)] == place
        ]
        is_set = trial.data != document.data or len(trial.faults) == len(document.faults)
        fitting += [text] * (not found and is_set)
        expected = next((f.message for f in found), expected).partition(", got ")[0]
    plain = [text for text in fitting if not text[-1].isdecimal()] or fitting[:1]
    shown = listed((shlex.quote(f"{typed}{text}") for text in plain), "or")
    message = f"no value; write {shown}" if plain else f"no value; {expected}"
    return Fault("", message, COMMAND_LINE, source=typed)


def _faults(document: Document, own: OwnFile) -> list[Fault]:
    """Every fault that can be found without PyTorch: in keys, types, names and combinations.

    The arguments of components are checked later, by the constructors' signatures. But if there are
    other faults, configs/schema.json checks them here, so that all faults are reported at once.
    """
    data = document.data
    if data is None and not document.faults:
        return [document.fault((), "is empty; expected a configuration")]

    @functools.cache
    def by_file() -> Schema:
        return full_schema(_settings_schema(), published(), own)

    schema = full_schema(_settings_schema(), {}, own)
    validator = Validator(schema["$defs"], *_hints(document, by_file))
    found = {finding.place: finding for finding in validator.findings(data, schema)}
    for section, _, key in [str(place[0]).partition(".") for place in found if place]:
        if key:  # the file has train.epochs: its section is not missing as well
            found.pop((section,), None)
    rules = list(rule_findings(document.with_shared(), own)) if isinstance(data, dict) else []
    rules = [finding._replace(place=document.as_written(finding.place)) for finding in rules]
    if found or rules or document.faults:
        found |= {finding.place: finding for finding in _component_findings(document, by_file())}
    found = {at: finding for at, finding in found.items() if not _is_of_own(at, document)}
    if isinstance(data, dict) and data.get("components") and not own.sha256:  # names are unknown
        unknown = {at[:-1] for at, f in found.items() if re.match("unknown (?!key)", f.message)}
        found = {at: finding for at, finding in found.items() if at[:-1] not in unknown}
        rules = [finding for finding in rules if finding.place != ("train", "monitor")]
    known = [f for f in (*found.values(), *rules) if not document.is_unknown(f.place)]
    if any("not closed" in fault.message for fault in document.faults):
        known = [f for f in known if len(f.place) != 1]  # the open bracket took these keys
    return document.faults + [document.fault(*finding) for finding in known]


def _is_of_own(place: Place, document: Document) -> bool:
    """Whether a fault is that ``own`` is no transform, of which a rule says where it belongs."""
    *inner, last = place or ("",)
    return inner[:1] == ["transforms"] and last == "name" and document.value(tuple(inner)) == OWN


def _hints(document: Document, schema: Callable[[], Schema]) -> Iterator[Callable[[Place], str]]:
    """What a Validator says of an unknown key, and of a wrong value."""
    yield lambda place: home(place, document, schema())
    yield lambda place: instead(place, document) if place else ""


def _component_findings(document: Document, schema: Schema) -> Iterator[Finding]:
    """Every fault of the components and their arguments, by the ``schema`` of a YAML file."""
    validator = Validator(schema["$defs"], *_hints(document, lambda: schema))
    for section in SECTIONS:
        if isinstance(document.data, dict) and section in document.data:
            inner = schema["properties"][section]
            yield from validator.findings(document.data[section], inner, (section,))


@functools.cache
def _settings_schema() -> Schema:
    return Config.model_json_schema()


def _depth(typed: str) -> int:
    key = typed.partition("=")[0].strip()
    return key.removesuffix(".name").count(".")


def _let_folds_replace_ratios(document: Document) -> None:
    """Drop the file's ratios if an override sets folds: a config cannot have both."""
    split = document.data.get("split") if isinstance(document.data, dict) else None
    if not isinstance(split, dict) or split.get("folds") is None or "ratios" not in split:
        return
    folds, ratios = (document.origin(("split", key)).file for key in ("folds", "ratios"))
    if folds == COMMAND_LINE != ratios:
        if ("split", "ratios") in document.values:
            document.messages.append(f"split.folds={split['folds']} drops split.ratios")
        del split["ratios"]


def _fill_in(document: Document, stem: str, own: OwnFile) -> None:
    """Fill in the two defaults that depend on other values: ``name`` and ``train.monitor``."""
    data = document.data
    if not isinstance(data, dict):
        return
    if "name" not in data:
        if not re.fullmatch(NAME_PATTERN, stem):
            message = (
                f"the file's name '{stem}' is no name for a run, which is {NAME_IN_WORDS}; "
                "add 'name:' to the file"
            )
            document.faults.append(document.fault((), message))
            stem = "unnamed"
        document.data = data = {"name": stem, **data}
    if isinstance(train := data.get("train"), dict) and "monitor" not in train:
        train["monitor"] = default_monitor(data, own)


# Sections that an override may change although the file omits them: `loss.label_smoothing=0.1`.
DEFAULTS: dict[str, Any] = {
    key: to_jsonable_python(field.default)
    for key, field in Config.model_fields.items()
    if not field.is_required() and field.default is not None
}
