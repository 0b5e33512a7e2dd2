"""What a configuration must keep to, without PyTorch: keys, types, names, what goes together."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import DATASETS
from models import INITIALISATIONS, MODELS
from trainer.check import Finding, Judge, Schema
from trainer.document import Document, component_name
from trainer.errors import Fault
from trainer.parse import Place
from trainer.settings import NESTING, Duration
from trainer.tables import (
    AVERAGES,
    LOSSES,
    METRICS,
    OPTIMIZERS,
    SCALAR,
    SCHEDULERS,
    UNSUPPORTED_OPTIMIZERS,
)
from trainer.words import listed, shortened, suggestion
from transforms import MIXING, RANDOM, TRANSFORMS

SCHEMA_FILE = Path(__file__).resolve().parent.parent / "configs" / "schema.json"

TABLES: Mapping[str, Mapping[str, str]] = {
    "dataset": DATASETS,
    "transform": TRANSFORMS,
    "model": {
        **MODELS,
        "torchvision/": "models.external:torchvision_model",
        "timm/": "models.external:timm_model",
    },
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "scheduler": SCHEDULERS,
    "average": AVERAGES,
    "metric": METRICS,
}

# What a group of optimizer.groups says beside arguments of the optimizer.
OF_GROUPS: Mapping[str, Schema] = {
    "match": {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "minItems": 1},
        ],
        "description": "The group's parameters, by name pattern: features.*",
    },
    "lr_scale": {
        "type": "number",
        "exclusiveMinimum": 0,
        "description": "A factor on the learning rate that they would have without it.",
    },
}
# Arguments of optimizers that are one for all parameters: torch reads them nowhere else.
NOT_OF_GROUPS = (
    *("foreach", "fused", "capturable", "differentiable"),
    "initial_accumulator_value",
)
# Arguments that the trainer takes itself, whichever component it is.
RESERVED: Mapping[str, Mapping[str, Schema]] = {
    "model": {
        "weights": {
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "default": None,
            "description": "DEFAULT, a name of torchvision's, or a file of a state_dict.",
        },
        "init": {
            "enum": [*INITIALISATIONS, None],
            "default": None,
            "description": "How weights are drawn; null is the model's own way.",
        },
        "freeze": {
            "type": "array",
            "items": {"type": "string"},
            "default": [],
            "description": "Parameters that stay as they are, by name pattern: features.*",
        },
    },
    "loss": {
        "weight": {
            "anyOf": [
                {"enum": ["balanced"]},
                {"type": "array", "items": {"type": "number", "minimum": 0}},
                {"type": "null"},
            ],
            "default": None,
            "description": "A number for each class; balanced: from the training labels.",
        }
    },
    "optimizer": {
        "no_decay": {
            "type": "boolean",
            "default": False,
            "description": "No weight decay for biases and norm layers.",
        },
        "layer_decay": {
            "anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {"type": "null"}],
            "default": None,
            "description": "Each layer's learning rate is that of the one above it, times this; "
            "the last layer has lr. null: all have lr.",
        },
        "groups": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": OF_GROUPS,
                "required": ["match"],
            },
            "default": [],
            "description": "Parameters with settings of their own, by name pattern: "
            '{match: "features.*", lr: 0.01}, or lr_scale: 0.1, or weight_decay... '
            "The first that matches counts; no_decay spares biases and norm layers in all.",
        },
    },
    "scheduler": {
        "warmup": {
            "anyOf": [Duration.schema("st", "ep"), {"type": "null"}],
            "default": None,
            "description": "The time in which the learning rate first rises to its start.",
        }
    },
}
_HERE_NOT = {"not": {}, "description": "write the arguments beside 'name', without 'arguments:'"}
_SEVERAL_CROPS = ("FiveCrop", "TenCrop")


def component_key(kind: str, name: str) -> str:
    """The key of a component in the schema's ``$defs``."""
    return f"{kind}.{name.rstrip('/')}"


def definitions(described: Mapping[str, Schema]) -> dict[str, dict[str, Any]]:
    """The schema of each kind of component and of each one, whose arguments ``described`` tells.

    Where it does not, any argument is allowed.
    """
    result: dict[str, dict[str, Any]] = {}
    for kind, table in TABLES.items():
        references = {}
        for name in table:
            key = component_key(kind, name)
            references[name] = f"#/$defs/{key}"
            result[key] = _component_schema(kind, name, described.get(key))
        bare = [n for n in table if result[component_key(kind, n)]["required"] == ["name"]]
        examples = [e for n in table for e in result[component_key(kind, n)].get("examples", [n])]
        result[kind] = {
            "title": kind,
            "anyOf": [
                {"enum": [name for name in bare if not name.endswith("/")]},
                *(
                    result[component_key(kind, name)]["properties"]["name"]
                    for name in table
                    if name.endswith("/")
                ),
                *({"$ref": reference} for reference in references.values()),
            ],
            "discriminator": {"propertyName": "name", "mapping": references},
            "examples": examples,
        }
    result["optimizer"]["unsupported"] = UNSUPPORTED_OPTIMIZERS
    return result


def _component_schema(kind: str, name: str, described: Schema | None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", **(described or {})}
    named: Schema = {"const": name}
    if name.endswith("/"):  # a family, of which some list their members
        members = schema.get("examples")
        named = {"enum": members} if members else {"type": "string", "pattern": f"^{name}."}
    own = {**schema.get("properties", {}), "arguments": _HERE_NOT}
    if kind == "optimizer" and described:
        own["groups"] = _with_arguments(RESERVED[kind]["groups"], described)
    if name in NESTING:
        own = {**own, "transforms": {"type": "array", "items": {"$ref": "#/$defs/transform"}}}
    schema["properties"] = {"name": named, **RESERVED.get(kind, {}), **own}
    schema["required"] = list(dict.fromkeys(["name", *schema.get("required", ())]))
    return schema


def _with_arguments(groups: Schema, optimizer: Schema) -> Schema:
    """The schema of ``groups``, each of which may have those arguments that are not for all."""
    for_all = {"name", *NOT_OF_GROUPS, *RESERVED["optimizer"]}
    own = {
        argument: how
        for argument, how in optimizer["properties"].items()
        if argument not in for_all and "not" not in how
    }
    items = {**groups["items"], "properties": {**OF_GROUPS, **own}, "additionalProperties": False}
    return {**groups, "items": items}


def check_document(document: Document, settings: Schema) -> list[Fault]:
    """Every fault that can be told without PyTorch; ``settings`` is pydantic's schema of Config.

    Arguments of components are left to the constructors' signatures, unless there are other faults:
    then they are judged by configs/schema.json, so that one go tells everything.
    """
    if document.data is None and not document.faults:
        return [document.fault((), "is empty; expected a configuration")]
    faults = document.faults + judge_document(document, settings, {})
    return document.faults + judge_document(document, settings, published()) if faults else []


def judge_document(
    document: Document, settings: Schema, described: Mapping[str, Schema]
) -> list[Fault]:
    """Every fault by the settings, the components as ``described``, and what goes together."""
    data, schema = document.data, full_schema(settings, described)
    judge = Judge(schema["$defs"], lambda place: _home(place, data, schema))
    findings = list(judge.judge(data, schema))
    if isinstance(data, dict):
        findings += [*_split_rules(data), *_transform_rules(data), *_metric_rules(data)]
        findings += _train_rules(data)
        findings += _group_rules(data)
    known = [finding for finding in findings if not document.is_unknown(finding.place)]
    return [document.fault(*finding) for finding in known]


def published() -> Mapping[str, Schema]:
    """The components as configs/schema.json describes them; nothing where it cannot be read."""
    try:
        found: Mapping[str, Schema] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["$defs"]
    except (OSError, ValueError, KeyError):
        return {}
    return found


def unset_arguments(
    kind: str, component: str, given: Collection[str], described: Mapping[str, Schema]
) -> Iterator[tuple[str, Schema]]:
    """Each argument that a component would also take, and its schema."""
    key = component_key(kind, component)
    key = key if key in described else component_key(kind, component.partition("/")[0])
    for name, schema in described.get(key, {}).get("properties", {}).items():
        if name != "name" and name not in given and "not" not in schema:
            yield name, schema


def full_schema(settings: Schema, described: Mapping[str, Schema]) -> dict[str, Any]:
    """The schema of a YAML file: pydantic's of the settings, and that of the components."""
    schema: dict[str, Any] = _with_references(settings)
    schema["required"].remove("name")  # the file's name is its default
    schema["$defs"] |= definitions(described)
    return schema


def _with_references(schema: Any) -> Any:
    """Pydantic's schema with its placeholders for components replaced by references."""
    if isinstance(schema, list):
        return [_with_references(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kind = {"$ref": f"#/$defs/{schema['component']}"} if "component" in schema else {}
    rest = {key: value for key, value in schema.items() if key not in ("component", "title")}
    return kind | {key: _with_references(value) for key, value in rest.items()}


def _home(place: Place, data: Any, schema: Schema) -> str:
    """Where an unknown key belongs, if there is one place only."""
    judge, homes = Judge(schema["$defs"]), []
    if place[-1] in schema["properties"]:
        homes.append("at the top level")
    for section, described in schema["properties"].items():
        inner = judge.resolved(described.get("anyOf", [described])[0])
        if "discriminator" in inner:
            name = component_name(data.get(section))
            reference = inner["discriminator"]["mapping"].get(name)
            inner = judge.resolved({"$ref": reference}) if reference else {}
        if place[-1] in inner.get("properties", {}) and place[-1] != "name":
            homes.append(f"in '{section}'")
    return f"; it belongs {homes[0]}" if len(homes) == 1 else ""


def _items(data: Any, *path: str) -> list[Any]:
    """The list at ``path``, or nothing where the file has something else there."""
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, list) else []


def _split_rules(data: dict[str, Any]) -> Iterator[Finding]:
    split = data.get("split")
    if not isinstance(split, dict):
        return
    given = {key for key in ("folds", "fold", "ratios") if split.get(key) is not None}
    folds, fold = split.get("folds"), split.get("fold")
    if "fold" in given and "folds" not in given:
        yield Finding(("split", "folds"), "'folds' is missing beside 'fold'; such as folds: 5")
    elif "folds" in given and "fold" not in given:
        message = "'fold' is missing beside 'folds': which of them, from 0, is held out"
        yield Finding(("split", "fold"), message)
    elif type(folds) is int and type(fold) is int and fold >= folds >= 2:
        message = f"there are folds 0 to {folds - 1} (split.folds), got {fold}"
        yield Finding(("split", "fold"), message)
    if {"folds", "ratios"} <= given:
        message = "play no part where 'folds' cuts into equal shares; remove one of the two"
        yield Finding(("split", "ratios"), message, at_key=True)


def _group_rules(data: dict[str, Any]) -> Iterator[Finding]:
    for index, group in enumerate(_items(data, "optimizer", "groups")):
        if isinstance(group, dict) and {"lr", "lr_scale"} <= group.keys():
            message = "sets the rate that 'lr' sets too; remove one of the two"
            yield Finding(("optimizer", "groups", index, "lr_scale"), message, at_key=True)


def _transform_rules(data: dict[str, Any]) -> Iterator[Finding]:
    for side in ("train", "eval"):
        for index, component in enumerate(_items(data, "transforms", side)):
            yield from _transform_rule(component, ("transforms", side, index), side)


def _transform_rule(component: Any, place: Place, side: str, outer: str = "") -> Iterator[Finding]:
    name = component_name(component)
    reason = ""
    if side == "eval" and name in {**RANDOM, **MIXING}:
        reason = "is random, but evaluation must always give the same; move it to transforms.train"
    elif side == "train" and name in _SEVERAL_CROPS:
        reason = "gives several crops of an image, which only evaluation averages; use RandomCrop"
    elif outer and name in MIXING:
        reason = f"mixes whole batches, the others in {outer} change one image; separate them"
    if reason:
        yield Finding((*place, "name"), f"{name} {reason}")
    elif name in NESTING:
        inner = _items(component, "transforms")
        alike = all(component_name(item) in MIXING for item in inner)  # as [MixUp, CutMix]
        for index, item in enumerate(inner):
            outer = "" if alike else str(name)
            yield from _transform_rule(item, (*place, "transforms", index), side, outer)


def _train_rules(data: dict[str, Any]) -> Iterator[Finding]:
    train = data.get("train")
    if not isinstance(train, dict) or train.get("cuda_graphs") is not True:
        return
    others = {"compile": False, "accumulate": 1, "activation_checkpointing": False}
    for key, off in others.items():
        if train.get(key, off) not in (off, None):
            told = f"does not go with {key}; write train.{key}={str(off).lower()}"
            also = ", or train.compile=reduce-overhead alone" if key == "compile" else ""
            yield Finding(("train", "cuda_graphs"), f"{told}{also}, or train.cuda_graphs=false")


def default_monitor(data: dict[str, Any]) -> str:
    """val/ and the first metric that is one number; the loss where there is none."""
    names = map(component_name, _items({"metrics": ["accuracy"], **data}, "metrics"))
    return f"val/{next((name for name in names if name in SCALAR), 'loss')}"


def _metric_rules(data: dict[str, Any]) -> Iterator[Finding]:
    names = [component_name(m) for m in _items({"metrics": ["accuracy"], **data}, "metrics")]
    for index, name in enumerate(names):
        if name is not None and name in names[:index]:
            yield Finding(("metrics", index), f"{name} is listed twice; remove one")
    train = data.get("train")
    monitor = train.get("monitor") if isinstance(train, dict) else None
    allowed = ["val/loss", *(f"val/{name}" for name in names if name in SCALAR)]
    if isinstance(monitor, str) and monitor not in allowed:
        message = f"'{shortened(monitor)}' is not measured{suggestion(monitor, allowed)}"
        choice = listed(dict.fromkeys(allowed))
        yield Finding(("train", "monitor"), f"{message}; allowed are {choice}")
