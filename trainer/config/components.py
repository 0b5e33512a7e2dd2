"""The JSON Schema of every component that a YAML can name, and of a YAML file; no torch."""

import functools
import hashlib
import json
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import DATASETS, UNSUPPORTED
from models import INITIALISATIONS, MODELS
from trainer import components as tables
from trainer.components.duration import Duration
from trainer.components.own import NO_FILE, OwnFile
from trainer.config.document import COMMAND_LINE, Document, component_name, flow
from trainer.config.json_schema import Schema, Validator
from trainer.config.yaml_text import Place
from trainer.process.words import NAMES, NO_SETTINGS, SETTINGS, bare, nearest, shortened, with_value
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
    "until": {
        **Duration.schema("st", "ep"),
        "description": "The time after which the group's learning rate is 0.",
    },
}
# Arguments of optimizers that no group can set: they are read once for all parameters.
NOT_OF_GROUPS = (
    *("foreach", "fused", "capturable", "differentiable", "initial_accumulator_value"),
    *("filters", "normalise", "rest"),  # of Muon
)
# The value of split.group.
GROUP: Schema = {
    "anyOf": [
        {"const": "duplicates"},
        {
            "type": "object",
            "properties": {
                "column": {"type": "string"},
                "folder": {"type": "integer", "minimum": 1, "maximum": 100},
                "regex": {"type": "string"},
            },
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}
# The value of components.
OWN_FILE: Schema = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {
                "file": {"type": "string"},
                "sha256": {
                    "type": "string",
                    "pattern": "^[0-9a-f]{64}$",
                    "examples": [hashlib.sha256().hexdigest()],
                },
            },
            "required": ["file", "sha256"],
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}
# Arguments that the trainer itself uses, for every component of the kind. A constructor never gets
# them. A Component holds them as its ``trainer_arguments``.
RESERVED: Mapping[str, Mapping[str, Schema]] = {
    "dataset": {
        "fixes": {
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "default": None,
            "description": "A CSV file with the columns sha256 and label: the right label of a "
            "content, or leave out.",
        },
        "unknown": {
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "default": None,
            "description": "A folder of pictures that belong to no class. The run's end measures "
            "how well they are told from the test images; they never train.",
        },
    },
    "model": {
        "weights": {
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "default": None,
            "description": "DEFAULT, a name of torchvision's weights, a run's folder (runs/NAME is "
            "its newest), or a file of a state_dict. Rows of the head are matched by class name.",
        },
        "init": {
            "anyOf": [
                {"enum": [*INITIALISATIONS, None]},
                {"type": "object", "additionalProperties": {"enum": [*INITIALISATIONS]}},
            ],
            "default": None,
            "description": "How weights are initialised: one way for the model, or a way for each "
            'pattern of layer names, as in {stem: whiten, "blocks.*": dirac}; the first match '
            "counts. null, or no match, is the model's own way.",
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
# Words for weights that a library has.
PRETRAINED = ("imagenet", "imagenet1k", "pretrained", "default", "true")
# The mean and std of data sets that people know by name.
STATISTICS: Mapping[str | int, Mapping[str, list[float]]] = {
    "mean": {
        "imagenet": [0.485, 0.456, 0.406],
        "cifar": [0.4914, 0.4822, 0.4465],
        "fashion": [0.2860],
        "mnist": [0.1307],
    },
    "std": {
        "imagenet": [0.229, 0.224, 0.225],
        "cifar": [0.2470, 0.2435, 0.2616],
        "fashion": [0.3530],
        "mnist": [0.3081],
    },
}
_UNSUPPORTED = {"optimizer": tables.UNSUPPORTED_OPTIMIZERS, "dataset": UNSUPPORTED}
_HERE_NOT = {"not": {}, "description": "write the arguments beside 'name', without 'arguments:'"}


def component_key(kind: str, name: str) -> str:
    """The key of a component in the schema's ``$defs``."""
    return f"{kind}.{name.rstrip('/')}".replace("/", ".")  # a $ref has no "/" in a key


def definitions(
    described: Mapping[str, Schema], own: OwnFile = NO_FILE
) -> dict[str, dict[str, Any]]:
    """The schema of each kind of component, and of each component, with those of ``own``.

    ``described`` holds their arguments; a component that it lacks may have any argument.
    """
    result: dict[str, dict[str, Any]] = {}
    for kind, shipped in TABLES.items():
        table = [*own.names(kind), *shipped]
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
        if reasons := {**own.reasons(kind), **_UNSUPPORTED.get(kind, {})}:
            result[kind]["unsupported"] = reasons
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
    ours = RESERVED.get(kind, {})
    # A dataset's own arguments come first: its fixes are a rare one.
    keys = {**own, **ours} if kind == "dataset" else {**ours, **own}
    schema["properties"] = {"name": named, **keys}
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


def full_schema(
    settings: Schema, described: Mapping[str, Schema], own: OwnFile = NO_FILE
) -> dict[str, Any]:
    """The schema of a YAML file, from pydantic's schema of the settings and the components."""
    schema: dict[str, Any] = _with_references(settings)
    schema["required"].remove("name")  # the file's name is its default
    schema["$defs"] |= definitions(described, own)
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
    homes = [] if (place[0], key) == ("early_stop", "mode") else _homes(key, document.data, schema)
    if len(place) == 1 and key.partition(".")[0] in schema["properties"]:
        homes = [key]  # optimizer.lr: 0.1
    found = homes if len(homes) == 1 else SETTINGS.get(word, []) * (place[0] != "transforms")
    if word.isdecimal():  # lr: 0,01
        return "; a number has a point, such as 0.01"
    if not found:
        advices = NO_SETTINGS.get(word) or _as_transform(place, document, schema)
        return "".join(f"; {advice}" for advice in advices)
    path, value = with_value(found[0], flow(document.value(place)))
    model = component_name(document.data.get("model")) or ""
    if path == "model.weights" and bare(value) in PRETRAINED:
        if "/" not in model:
            return f"; {no_pretrained(model, document.origin(place).file == COMMAND_LINE)}"
        value = "DEFAULT"
    section, _, inner = path.rpartition(".")
    if len(place) > 1 and path == ".".join(map(str, place)):
        return ""  # momentum, of an optimizer without one
    is_here = section == ".".join(map(str, place[:-1]))
    if is_here and value == flow(document.value(place)):
        return f"; did you mean '{inner}'?"
    typed = shlex.quote(f"{path}={value}")
    if document.origin(place).file != COMMAND_LINE:
        typed = f"{inner}: {value}"
        if isinstance(name := document.data.get(section), str):
            typed = f"{section}: {{name: {name}, {typed}}}"
            return f"; write {shortened(typed)}"
    where = f"it belongs in '{section}'" if section else "it belongs at the top level"
    return f"; {'write' if is_here else f'{where}:'} {shortened(typed)}"


def no_pretrained(model: str, is_override: bool = False) -> str:
    """What to write for ``weights`` of a model whose weights no library has."""
    typed = "model.weights=" if is_override else "weights: "
    return f"{model} has no pretrained weights; give a file: {typed}runs/NAME/DATE/model.pt"


def _as_transform(place: Place, document: Document, schema: Schema) -> list[str]:
    """What to write for a key that names a transform, such as ``mixup: 0.2``."""
    known, value = TABLES["transform"], document.value(place)
    near = nearest(str(place[-1]), [name for name in known if _is_word_for(str(place[-1]), name)])
    if near is None or len(place) > 1:
        return []
    validator = Validator(schema["$defs"])
    described = schema["$defs"][component_key("transform", near)]["properties"]
    taking = (
        f", {name}: {flow(value)}"
        for name, how in described.items()
        if name != "name" and not isinstance(value, bool)
        if not any(validator.findings(value, how))
    )
    return [f"it is a transform; write it in transforms.train: {{name: {near}{next(taking, '')}}}"]


def _is_word_for(word: str, name: str) -> bool:
    return bare(word) == bare(name) or name in NAMES.get(bare(word), ())


def instead(place: Place, document: Document) -> str:
    """What to write instead of a wrong value, where its type alone does not say it; or ""."""
    if place[-1] == "name":  # "model: LeNet" is short for a mapping that the file does not have
        return ""
    key, value = place[-1], document.value(place)
    is_override = document.origin(place).file == COMMAND_LINE
    typed = f"{'.'.join(map(str, place))}=" if is_override else f"{key}: "
    if place == ("model", "weights") and value is True:
        model = component_name(document.data["model"]) or ""
        return "; write DEFAULT" if "/" in model else f"; {no_pretrained(model, is_override)}"
    if place == ("model", "freeze") and value is not False:
        return f"; write name patterns of parameters, such as {typed}[features.*]"
    if place == ("loss", "weight") and (value is True or isinstance(value, dict)):
        numbers = "a list of numbers in the order of the classes"
        return f"; write {typed}balanced, or {numbers}, such as {typed}[1, 10]"
    if place[0] == "transforms" and key in STATISTICS and isinstance(value, str):
        data = next((data for data in STATISTICS[key] if data in bare(value)), "imagenet")
        return f"; write the numbers, for {data}: {typed}{STATISTICS[key][data]}"
    return ""


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
