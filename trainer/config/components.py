"""The JSON Schema of every component that a YAML can name, and of a YAML file; no torch."""

import functools
import json
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import DATASETS
from models import INITIALISATIONS, MODELS
from trainer import components as tables
from trainer.components.duration import Duration
from trainer.config.document import COMMAND_LINE, Document, component_name, flow
from trainer.config.json_schema import Schema, Validator
from trainer.config.yaml_text import Place
from trainer.process.words import NO_SETTINGS, SETTINGS, bare, shortened
from transforms import TRANSFORMS

SCHEMA_FILE = Path(__file__).resolve().parents[2] / "configs" / "schema.json"

TABLES: Mapping[str, Mapping[str, str]] = {
    "dataset": DATASETS,
    "transform": TRANSFORMS,
    "model": {
        **MODELS,
        "torchvision/": "models.external:torchvision_model",
        "timm/": "models.external:timm_model",
    },
    "loss": tables.LOSSES,
    "optimizer": tables.OPTIMIZERS,
    "scheduler": tables.SCHEDULERS,
    "average": tables.AVERAGES,
    "metric": tables.METRICS,
}

# Sections of a configuration that hold components.
SECTIONS = "dataset transforms model loss optimizer scheduler average metrics".split()
NESTING = ("RandomApply", "RandomChoice", "RandomOrder")  # their `transforms:` are components too

_TRANSFORMS: Schema = {
    "type": "array",
    "items": {"$ref": "#/$defs/transform"},
    "description": "The transforms to choose from, as in transforms.train.",
}
_TEXTS: Schema = {"type": "array", "items": {"type": "string"}}

# The keys of a group in optimizer.groups, besides arguments of the optimizer.
OF_GROUPS: Mapping[str, Schema] = {
    "match": {
        "anyOf": [{"type": "string"}, {**_TEXTS, "minItems": 1}],
        "description": "The group's parameters, by name pattern, such as features.*.",
    },
    "lr_scale": {
        "type": "number",
        "exclusiveMinimum": 0,
        "description": "A factor by which the group's learning rate is multiplied.",
    },
}
# Arguments of optimizers that no group can set: torch reads them once for all parameters.
NOT_OF_GROUPS = ("foreach", "fused", "capturable", "differentiable", "initial_accumulator_value")
# Arguments that the trainer itself uses, for every component of the kind. A constructor never gets
# them. A Component holds them as its ``trainer_arguments``.
RESERVED: Mapping[str, Mapping[str, Schema]] = {
    "model": {
        "weights": {
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "default": None,
            "description": "DEFAULT, a name of torchvision's weights, or a file of a state_dict, "
            "such as a run's model.pt. Rows of the head are matched by class name.",
        },
        "init": {
            "enum": [*INITIALISATIONS, None],
            "default": None,
            "description": "How weights are initialised; null is the model's own way.",
        },
        "freeze": {
            **_TEXTS,
            "default": [],
            "description": "Parameters that are not trained, by name pattern, such as features.*.",
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
            "description": "How much the loss of an image counts, for each class; a mixed image "
            "counts by its mix. balanced computes it from training labels.",
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
            "description": "The factor from a layer's learning rate to that of the layer before, "
            "more than 0, at most 1; the last layer has lr. null: all layers have lr.",
        },
        "groups": {
            "type": "array",
            "items": {"type": "object", "properties": OF_GROUPS, "required": ["match"]},
            "default": [],
            "description": "Parameters with settings of their own, by name pattern: "
            '{match: "features.*", lr: 0.01}, or lr_scale: 0.1, or weight_decay... '
            "The first group that matches counts; no_decay applies in all groups.",
        },
    },
    "scheduler": {
        "warmup": {
            "anyOf": [Duration.schema("st", "ep"), {"type": "null"}],
            "default": None,
            "description": "The time in which the learning rate first rises to its start value. "
            "The scheduler begins after it, so milestones and step_size count from there.",
        }
    },
}
_HERE_NOT = {"not": {}, "description": "write the arguments beside 'name', without 'arguments:'"}


def component_key(kind: str, name: str) -> str:
    """The key of a component in the schema's ``$defs``."""
    return f"{kind}.{name.rstrip('/')}"


def definitions(described: Mapping[str, Schema]) -> dict[str, dict[str, Any]]:
    """The schema of each kind of component, and of each component.

    ``described`` holds their arguments; a component that it lacks may have any argument.
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
    result["optimizer"]["unsupported"] = tables.UNSUPPORTED_OPTIMIZERS
    return result


def _component_schema(kind: str, name: str, described: Schema | None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", **(described or {})}
    named: Schema = {"const": name}
    if name.endswith("/"):  # a family; some families list their members
        members = schema.get("examples")
        named = {"enum": members} if members else {"type": "string", "pattern": f"^{name}."}
    own = {**schema.get("properties", {}), "arguments": _HERE_NOT}
    if kind == "optimizer" and described:
        own["groups"] = _with_arguments(RESERVED[kind]["groups"], described)
    if name in NESTING:
        own = {**own, "transforms": _TRANSFORMS}
    schema["properties"] = {"name": named, **RESERVED.get(kind, {}), **own}
    schema["required"] = list(dict.fromkeys(["name", *schema.get("required", ())]))
    return schema


def _with_arguments(groups: Schema, optimizer: Schema) -> Schema:
    """The schema of ``groups`` with those arguments of the optimizer that a group can set."""
    for_all = {"name", *NOT_OF_GROUPS, *RESERVED["optimizer"]}
    own = {
        argument: how
        for argument, how in optimizer["properties"].items()
        if argument not in for_all and "not" not in how
    }
    items = {**groups["items"], "properties": {**OF_GROUPS, **own}, "additionalProperties": False}
    return {**groups, "items": items}


@functools.cache
def published() -> Mapping[str, Schema]:
    """The components as configs/schema.json describes them; empty if it cannot be read."""
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
    """The schema of a YAML file, from pydantic's schema of the settings and the components."""
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


def home(place: Place, document: Document, schema: Schema) -> str:
    """Where an unknown key belongs and what to write there, or "" if that is not clear."""
    key, word = str(place[-1]), bare(str(place[-1]))
    homes = _homes(key, document.data, schema)
    if len(place) == 1 and key.partition(".")[0] in schema["properties"]:
        homes = [key]  # optimizer.lr: 0.1
    found = homes if len(homes) == 1 else SETTINGS.get(word, []) * (place[0] != "transforms")
    if word.isdecimal():  # lr: 0,01
        return "; a number has a point, such as 0.01"
    if not found:
        return "".join(f"; {advice}" for advice in NO_SETTINGS.get(word, ()))
    path, equals, value = found[0].partition("=")
    section, _, inner = path.rpartition(".")
    if len(place) > 1 and path == ".".join(map(str, place)):
        return ""  # momentum, of an optimizer without one
    is_here = section == ".".join(map(str, place[:-1]))
    if is_here and not equals:
        return f"; did you mean '{inner}'?"
    value = value.format(flow(document.value(place))) if equals else flow(document.value(place))
    typed = shlex.quote(f"{path}={value}")
    if document.origin(place).file != COMMAND_LINE:
        typed = f"{inner}: {value}"
    where = f"it belongs in '{section}'" if section else "it belongs at the top level"
    return f"; {'write' if is_here else f'{where}:'} {shortened(typed)}"


def _homes(key: str, data: Any, schema: Schema) -> list[str]:
    """The paths of all settings with this name, in the sections as they are."""
    validator = Validator(schema["$defs"])
    homes = [key] if key in schema["properties"] else []
    for section, described in schema["properties"].items():
        inner = validator.resolved(described.get("anyOf", [described])[0])
        if "discriminator" in inner:
            reference = inner["discriminator"]["mapping"].get(component_name(data.get(section)))
            inner = validator.resolved({"$ref": reference}) if reference else {}
        if key != "name" and "not" not in inner.get("properties", {}).get(key, {"not": {}}):
            homes.append(f"{section}.{key}")
    return homes
