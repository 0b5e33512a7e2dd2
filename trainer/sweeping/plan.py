"""Reads and checks a sweep's YAML and its experiment. All faults are reported at once."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.components import is_higher_better
from trainer.config import Config, load_config
from trainer.config.components import published
from trainer.config.config import NAME_IN_WORDS, NAME_PATTERN
from trainer.config.document import COMMAND_LINE, Document, flow, read_document
from trainer.config.json_schema import Finding, Schema, Validator
from trainer.config.yaml_text import Place
from trainer.process.errors import ConfigError, Fault
from trainer.process.words import bare
from trainer.sweeping.settings import Sweep, SweepFile
from trainer.sweeping.space import Settings, overrides, points, samples

MAX_TRIALS = 10_000
LISTED = {  # methods whose choices give the number of trials
    "grid": "a grid tries every combination",
    "each": "each tries each choice once",
}
MAX_CHECKED = 200  # combinations of a grid that are checked; each single choice is always checked
NOT_VARIED = {  # keys that a sweep may not vary, and what to write instead
    "name": "names the folders of the sweep's runs",
    "seed": "is varied by 'seeds: [0, 1, 2]', which also shows mean and spread",
    "split.fold": "is varied by 'folds: 5', which also shows mean and spread",
    "split.folds": "is set by 'folds: 5', which runs each fold",
    "train.monitor": "is what trials are compared by, and must be the same for all",
    "train.device": "is chosen for all: on the command line, or in the experiment",
}


@dataclass(frozen=True)
class Plan:
    """A sweep that can run: its settings, the experiment that it varies, and the command line."""

    file: SweepFile
    base: Path  # the experiment's YAML
    config: Config  # the experiment
    overrides: tuple[str, ...]  # of the experiment, on the command line
    document: Document  # the sweep's YAML

    @property
    def sweep(self) -> Sweep:
        """The ``sweep`` section of the YAML: params, method and number of trials."""
        return self.file.sweep

    @property
    def monitor(self) -> str:
        """The number by which trials are compared, such as ``val/accuracy``."""
        return self.config.train.monitor

    @property
    def sign(self) -> int:
        """1 if more is better, -1 if less is."""
        return 1 if is_higher_better(self.monitor) else -1

    @property
    def members(self) -> list[tuple[int, int | None]]:
        """(seed, fold) of each run of a trial; fold is None if the sweep has no folds."""
        seeds = self.config.seed if self.sweep.seeds is None else self.sweep.seeds
        folds = [None] if self.sweep.folds is None else list(range(self.sweep.folds))
        listed = [seeds] if isinstance(seeds, int) else seeds
        return [(seed, fold) for seed in listed for fold in folds]

    def arguments(self, settings: Settings, seed: int, fold: int | None) -> list[str]:
        """The ``key=value`` overrides of one run, without its name."""
        folds = {} if fold is None else {"split.folds": self.sweep.folds, "split.fold": fold}
        return [*self.overrides, *overrides({**settings, "seed": seed, **folds})]


def load_sweep(path: str | Path, typed: Sequence[str] = ()) -> Plan:
    """Read a sweep, with ``key=value`` overrides of the sweep (``sweep.``) or of its experiment.

    Every choice, both ends of every range and the first combinations of a grid are checked as
    configurations. Raises ConfigError with all faults. Imports no torch.
    """
    path = Path(path)
    document = read_document(path)
    if isinstance(document.data, dict) and _is_experiment(document.data):
        message = f"this is an experiment, not a sweep; run python -m trainer.train --config {path}"
        raise ConfigError([document.fault((), message)], document.file)
    own = [text for text in typed if re.match(r"sweep\.|(name|base) *=", text)]
    others = tuple(text for text in typed if text not in own)
    for text in own:
        _override(document, text)
    _fill_in_name(document, path.stem)
    schema: Schema = SweepFile.model_json_schema()
    validator = Validator(schema["$defs"], lambda place: _where_it_belongs(place, schema))
    findings = list(validator.findings(document.data, schema)) if document.data is not None else []
    if document.data is None and not document.faults:
        findings = [Finding((), "is empty; expected 'base:' and 'sweep:'")]
    findings += _rules(document.data)
    known = [finding for finding in findings if not document.is_unknown(finding.place)]
    faults = [*document.faults, *(document.fault(*finding) for finding in known)]
    base, config = _load_experiment(document, path.parent, others, faults)
    if config is not None and (sweep := _without_faults(document.data, faults)) is not None:
        typed = [*others, f"train.monitor={config.train.monitor}"]
        faults += _faults_of_choices(document, base, typed, sweep)
        faults += _unlike_losses(document, config, sweep)
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)), document.file)
    assert config is not None
    return Plan(SweepFile.model_validate(document.data), base, config, others, document)


def _unlike_losses(document: Document, config: Config, sweep: Sweep) -> list[Fault]:
    """A fault for each key that changes what val/loss measures, where trials are compared by it."""
    if config.train.monitor != "val/loss":
        return []
    message = (
        "changes what val/loss measures, and trials are compared by it (train.monitor); monitor a "
        "metric, such as train.monitor=val/accuracy"
    )
    keys = [key for key in sweep.params if key.partition(".")[0] == "loss"]
    return [document.fault(("sweep", "params", key), message) for key in keys]


def _is_experiment(data: dict[Any, Any]) -> bool:
    return not data.keys() & {"base", "sweep"} and {"dataset", "model", "train"} <= data.keys()


def _override(document: Document, typed: str) -> None:
    """Apply an override such as ``sweep.params.optimizer.lr=[1, 2]``.

    All that follows ``sweep.params.`` is one key, with its dots. If the YAML has a range for the
    key, an override may set one of its ends: ``sweep.params.optimizer.lr.high=1``.
    """
    key = typed.partition("=")[0].strip()
    match = re.fullmatch(r"sweep\.params\.([\w-]+(?:\.[\w-]+)+)", key)
    sweep = document.data.get("sweep") if isinstance(document.data, dict) else None
    if not match or not isinstance(sweep, dict):
        document.override(typed, {})
        return
    params = sweep.get("params")
    known = params if isinstance(params, dict) else {}
    path, (outer, _, last) = match[1], match[1].rpartition(".")
    in_range = path not in known and isinstance(known.get(outer), dict)
    keys = ["sweep", "params", outer, last] if in_range else ["sweep", "params", path]
    document.override(typed, {}, keys)


def _fill_in_name(document: Document, stem: str) -> None:
    if isinstance(document.data, dict) and "name" not in document.data:
        if not re.fullmatch(NAME_PATTERN, stem):
            message = (
                f"the file's name '{stem}' is no name for a sweep, which is {NAME_IN_WORDS}; "
                "add 'name:' to the file"
            )
            document.faults.append(document.fault((), message))
            stem = "unnamed"
        document.data = {"name": stem, **document.data}


def _where_it_belongs(place: Place, schema: Schema) -> str:
    """The end of a message on an unknown key: the place where the key exists; "" if nowhere."""
    if bare(str(place[-1])) in ("metric", "metrics", "monitor", "objective", "goal", "direction"):
        return "; a sweep compares by train.monitor of its base; remove it"
    inner = schema["$defs"]["Sweep"]["properties"]
    if len(place) == 1 and place[0] in inner:
        return "; it belongs in 'sweep'"
    if len(place) == 2 and place[1] in schema["properties"]:
        return "; it belongs at the top level"
    return ""


def _rules(data: Any) -> Iterator[Finding]:
    """Faults that the schema does not find: values that exclude each other, and limits."""
    sweep = data.get("sweep") if isinstance(data, dict) else None
    if not isinstance(sweep, dict):
        return
    method, trials, params = (sweep.get(key) for key in ("method", "trials", "params"))
    if method in ("random", "tpe") and trials is None:
        yield Finding(("sweep", "trials"), f"'trials' is missing; {method} must know how many")
    if method in LISTED and trials is not None:
        message = f"{LISTED[method]}; remove it, or write method: random"
        yield Finding(("sweep", "trials"), message, at_key=True)
    if method in LISTED and "seed" in sweep:
        message = "decides draws, of which there are none; write seeds: [...] for the runs' seeds"
        yield Finding(("sweep", "seed"), message, at_key=True)
    if type(trials) is int and trials > MAX_TRIALS:
        yield Finding(("sweep", "trials"), f"a sweep has at most {MAX_TRIALS:,} trials")
    if sweep.get("prune") is not None and method in (*LISTED, "random"):
        message = f"only method: tpe stops trials early, and this is {method}"
        yield Finding(("sweep", "prune"), message, at_key=True)
    storage = sweep.get("storage")
    if isinstance(storage, str) and "://" in storage:
        message = "a database is no storage; write storage: FILE, a journal file on a shared disk"
        yield Finding(("sweep", "storage"), message)
    seeds = sweep.get("seeds")
    if isinstance(seeds, list):
        for index, seed in enumerate(seeds):
            if seed in seeds[:index]:
                yield Finding(("sweep", "seeds", index), f"{seed} is listed twice; remove one")
    if not params and not sweep.get("seeds") and not sweep.get("folds"):
        yield Finding(("sweep", "params"), "nothing is varied; expected params, seeds or folds")
    if method == "tpe" and not params:
        yield Finding(("sweep", "params"), "'params' is missing; tpe looks for the best of them")
    if isinstance(params, dict):
        for key, space in params.items():
            yield from _space_rules(("sweep", "params", key), space, method)
        sizes = [len(space) for space in params.values() if isinstance(space, list)]
        if method == "grid" and math.prod(sizes) > MAX_TRIALS:
            message = f"{math.prod(sizes):,} combinations, at most {MAX_TRIALS:,} are run"
            yield Finding(("sweep", "params"), f"{message}; fewer choices, or method: random")


def _space_rules(place: Place, space: Any, method: Any) -> Iterator[Finding]:
    key = str(place[-1])
    if not re.fullmatch(r"\w+(\.\w+)*", key):
        message = f"'{key}' is no path of a setting; expected one such as optimizer.lr"
        yield Finding(place, message, at_key=True)
        return
    if reason := NOT_VARIED.get(key):
        yield Finding(place, f"'{key}' {reason}", at_key=True)
    if space == []:
        yield Finding(place, "there is no choice; write values, such as [0.1, 0.01], or remove it")
    if isinstance(space, list):
        for index, choice in enumerate(space):
            if choice in space[:index] and type(choice) is type(space[space.index(choice)]):
                yield Finding((*place, index), f"{flow(choice)} is listed twice; remove one")
    if not isinstance(space, dict):
        return
    if method in LISTED:
        message = f"{method} needs a list of choices, not a range; or write method: random or tpe"
        yield Finding(place, message)
    low, high, step = (_number(space.get(name)) for name in ("low", "high", "step"))
    if low is not None and high is not None:
        if not (math.isfinite(low) and math.isfinite(high)):
            yield Finding(place, "expected finite numbers for low and high")
        elif low >= high:
            yield Finding((*place, "high"), f"expected more than low ({low:g}), got {high:g}")
        elif step is not None and not 0 < step <= high - low:
            yield Finding((*place, "step"), f"expected more than 0, at most {high - low:g}")
    if space.get("log") is True:
        if low is not None and low <= 0:
            yield Finding((*place, "low"), f"a logarithm needs more than 0, got {low:g}")
        if step is not None:
            yield Finding((*place, "step"), "log and step exclude each other; remove one", True)


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) else None


def _load_experiment(
    document: Document, folder: Path, typed: Sequence[str], faults: list[Fault]
) -> tuple[Path, Config | None]:
    """The path and the configuration of the experiment itself; adds its faults to ``faults``."""
    named = document.data.get("base") if isinstance(document.data, dict) else None
    if not isinstance(named, str) or document.is_unknown(("base",)):
        return folder, None
    base = folder / named
    if not base.is_file():
        faults.append(document.fault(("base",), f"{base} does not exist; expected an experiment"))
        return base, None
    try:
        config = load_config(base, typed, by_user=True)
    except ConfigError as error:
        faults += error.faults
        return base, None
    faults += config.check_arguments(published())
    return base, config


def _without_faults(data: Any, faults: Sequence[Fault]) -> Sweep | None:
    """The sweep with the params that have no fault, to check their choices; None if impossible."""
    faulty = {fault.path for fault in faults}
    sweep = data.get("sweep")
    if not isinstance(sweep, dict) or not isinstance(sweep.get("params", {}), dict):
        return None
    params = {}
    for key, space in sweep.get("params", {}).items():
        path = f"sweep.params.{key}"
        inner = isinstance(space, dict) and any(p.startswith(f"{path}.") for p in faulty)
        if path not in faulty and not inner:
            params[key] = space
    kept: dict[str, Any] = {"method": sweep.get("method"), "params": params}
    if kept["method"] not in (*LISTED, "tpe"):
        kept["method"] = "random"
    if "folds" in sweep and "sweep.folds" not in faulty:
        kept["folds"] = sweep["folds"]
    return Sweep.model_validate(kept)


def _faults_of_choices(
    document: Document, base: Path, typed: Sequence[str], sweep: Sweep
) -> list[Fault]:
    """The experiment's faults with each choice. Without any: those with combinations of a grid."""
    faults: dict[Fault, None] = {}
    for settings, key, place in samples(sweep):
        at: Place = ("sweep", "params", key, place)
        for fault in faults_of(base, typed, settings):
            if _concerns(fault, key):
                faults[document.fault(at, _message(fault, key))] = None
    if sweep.folds is not None:
        for fault in faults_of(base, typed, {"split.folds": sweep.folds, "split.fold": 0}):
            faults[document.fault(("sweep", "folds"), _message(fault, "split.folds"))] = None
    if faults or sweep.method != "grid":
        return list(faults)
    together: dict[tuple[str, str], Fault] = {}
    alone = {(fault.path, fault.message) for fault in faults_of(base, typed, {})}
    for settings in points(sweep)[:MAX_CHECKED]:
        for fault in faults_of(base, typed, settings):
            if (fault.path, fault.message) in alone:
                continue  # the experiment's own, which is told already
            message = f"{fault.path}: {fault.message} (with {' '.join(overrides(settings))})"
            found = document.fault(("sweep", "params"), message)
            together.setdefault((fault.path, fault.message), found)
    return list(together.values())


def check_with_torch(plan: Plan) -> None:
    """Raise ConfigError for choices and ends of ranges that PyTorch's constructors refuse."""
    from trainer.build.trial import check_components

    tried: list[tuple[Settings, str, Place, list[Fault]]] = []
    for settings, key, place in samples(plan.sweep):
        typed = [*plan.overrides, *overrides(settings)]
        config = load_config(plan.base, typed, by_user=True)
        tried.append((settings, key, ("sweep", "params", key, place), check_components(config)))
    if not tried:  # only seeds and folds vary
        tried = [({}, "", ("sweep",), check_components(plan.config))]
    # A fault that no choice changes is reported once, at its own line.
    common = set.intersection(*(set(faults) for *_, faults in tried))
    found, others = dict[tuple[str, str], list[Fault]](), dict[tuple[str, str], list[Fault]]()
    for settings, key, at, faults in tried:
        for fault in faults:
            what = fault.path, fault.message
            if fault in common and _set_by(fault) not in plan.sweep.params:
                found[what] = [fault]
            elif _concerns(fault, key):
                moved = plan.document.fault(at, _message(fault, key))
                found.setdefault(what, []).append(moved)
            else:  # two choices exclude each other
                message = f"{fault.path}: {fault.message} (with {' '.join(overrides(settings))})"
                others.setdefault(what, [plan.document.fault(("sweep", "params"), message)])
    if found or others:
        raise ConfigError(sum((others | found).values(), []), plan.document.file)


def faults_of(base: Path, typed: Sequence[str], settings: Mapping[str, Any]) -> list[Fault]:
    """The experiment's faults with these settings."""
    try:
        return load_config(base, [*typed, *overrides(settings)]).check_arguments(published())
    except ConfigError as error:
        return error.faults


def _concerns(fault: Fault, key: str) -> bool:
    """Whether to report a fault at this key: unless another override has caused it."""
    if fault.file != COMMAND_LINE:
        return True
    return _set_by(fault) == key


def _set_by(fault: Fault) -> str | None:
    """The key of the override that caused a fault; None if none did."""
    if fault.file != COMMAND_LINE or fault.source is None:
        return None
    return fault.source.partition("=")[0].strip()


def _message(fault: Fault, key: str) -> str:
    inner = fault.path.removeprefix(key).lstrip(".") if fault.path.startswith(key) else fault.path
    place = "" if fault.file == COMMAND_LINE else f" ({fault.file}:{fault.line})"
    return f"{inner}: {fault.message}{place}" if inner else f"{fault.message}{place}"
