"""The JSON Schema of a component's arguments, read from its constructor's signature."""

import collections.abc
import enum
import importlib
import inspect
import json
import numbers
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

from trainer.components.duration import Duration
from trainer.components.own import OwnFile
from trainer.config.arguments import OF_TORCH, RANGES, limited
from trainer.config.components import RESERVED, TABLES
from trainer.config.json_schema import Schema
from trainer.process.errors import UsageError

# Arguments that a YAML must not set. A scheduler of your own gets only ``optimizer`` of them.
SUPPLIED: Mapping[str, Collection[str]] = {
    "dataset": (),
    "transform": ("num_classes", "labels_getter"),
    "model": ("num_classes", "in_channels", "input_size"),
    "loss": ("num_classes",),
    "optimizer": ("params", "in_order"),
    "scheduler": ("optimizer", "last_epoch", "total_steps", "epochs", "steps_per_epoch"),
    "average": ("model", "steps_per_epoch"),
    "metric": ("probabilities", "labels", "thresholds"),
}
# Arguments that torch requires and the trainer fills in if the YAML leaves them out.
FILLED_IN = ("T_max", "max_lr")
# The files of the tables that are not in trainer/components/__init__.py.
TABLE_FILES = {kind: f"{kind}s/__init__.py" for kind in ("dataset", "transform", "model")}
# The run decides these, so the constructor's own default is never used.
DEFAULT_OF_THE_RUN = {("PolynomialLR", "total_iters"), ("ReduceLROnPlateau", "mode")}

_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # of nn.Module
_TYPE = r" *(?:\([^\n]*?\))? *"


def resolve(table: Mapping[str, str], name: str) -> Callable[..., Any]:
    """The entry ``name`` of a table. Raises KeyError, or UsageError if its import fails."""
    module, _, attribute = table[name].partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's module may raise anything while it is imported
        kinds = [kind for kind, lines in TABLES.items() if lines.get(name) == table[name]]
        file = TABLE_FILES.get(kinds[0], "trainer/components/__init__.py") if kinds else "a table"
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = f" ({frame.filename}:{frame.lineno})"
        at = "" if "<" in frame.filename or frame.filename == __file__ else at
        raise UsageError(
            f"{file}: '{name}' stands for {table[name]}, which cannot be imported: "
            f"{kind}{error}{at}"
        ) from error
    return found


def parameters_of(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class or function, with their annotations as types."""
    # torch imports some of its types for type checkers only, so these names are looked up here.
    names = {**vars(typing), **vars(collections.abc), **vars(sys.modules[factory.__module__])}
    try:
        return inspect.signature(factory, globals=names, eval_str=True).parameters
    except NameError:
        return inspect.signature(factory).parameters


def arguments_schema(
    kind: str, name: str, ranges: bool = True, own: OwnFile | None = None
) -> Schema:
    """The JSON Schema of a component's own arguments, from its constructor's signature.

    ranges: whether RANGES limits them too. own: the user's file that has the component; there, an
    argument without an annotation has the type of its default, but if it is a run's already.
    """
    factory = own.get(name) if own else resolve(TABLES[kind], name)
    text = (inspect.cleandoc(factory.__doc__ or "") if own else inspect.getdoc(factory)) or ""
    description = _sentence(text)
    if name.endswith("/"):  # the arguments are those of a builder that has no full signature
        return {"properties": {}, "description": description, "examples": _model_names(name)}
    properties: dict[str, dict[str, Any]] = {}
    required = []
    parameters = parameters_of(factory)
    for parameter in parameters.values():
        if parameter.name in SUPPLIED[kind]:
            message = f"'{parameter.name}' is set by the trainer; remove it"
            properties[parameter.name] = {"not": {}, "description": message}
        elif parameter.name not in RESERVED.get(kind, {}) and parameter.kind not in _STARRED:
            described = _parameter_schema(_typed(parameter) if own and ranges else parameter, text)
            if factory.__module__.partition(".")[0] in ("torch", "torchvision"):
                said = described.get("description", "")
                said = f"{said[:1].upper()}{said[1:].removesuffix('.')}."
                said = OF_TORCH.get(parameter.name, said)
                described["description"] = OF_TORCH.get(f"{name}.{parameter.name}", said)
            limits = RANGES.get(name, {}).get(parameter.name, {}) if ranges else {}
            properties[parameter.name] = limited(described, limits)
            if (name, parameter.name) in DEFAULT_OF_THE_RUN:
                del properties[parameter.name]["default"]
            if parameter.default is parameter.empty and parameter.name not in FILLED_IN:
                required.append(parameter.name)
    if kind == "loss" and "weight" not in parameters:
        message = f"{name} takes no class weights; remove 'weight'"
        properties["weight"] = {"not": {}, "description": message}
    return {
        "description": description,
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _typed(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter with the type of its default, if it has no other; an int may be a fraction."""
    kind = type(parameter.default)
    if parameter.annotation is not parameter.empty or kind not in (bool, int, float, str):
        return parameter
    return parameter.replace(annotation=float if kind is int else kind)


def _parameter_schema(parameter: inspect.Parameter, text: str) -> dict[str, Any]:
    schema = dict(schema_of(parameter.annotation) or {})
    default = parameter.default
    if isinstance(default, enum.Enum):
        default = default.value
    if isinstance(default, Duration):
        default = str(default)
    if default is None or isinstance(default, bool | int | float | str | list | tuple):
        schema["default"] = list(default) if isinstance(default, tuple) else default
    # "    name (type): text", up to the next such line
    entry = rf"^ *{re.escape(parameter.name)}{_TYPE}: *(.+?)(?=\n *\w+{_TYPE}:|\n\n|\Z)"
    if found := re.search(entry, text, re.MULTILINE | re.DOTALL):
        schema["description"] = _sentence(found[1])
    return schema


def _sentence(text: str) -> str:
    """The first sentence of a docstring, as plain text, without the default that it repeats."""
    first = re.split(r"\n\s*\n|(?<=\.)\s", text.strip(), maxsplit=1)[0]
    first = re.sub(r"`([^`<]*?)\s*(<[^>`]*>)?`_+", r"\1", first)  # a link: its text
    first = re.sub(r"\(default: ([^()]|\([^()]*\))*\)|:\w+:|\.\.$", "", first)
    first = re.sub(r"\*+(\w[^*`]*\w)\*+", r"\1", first).replace("`", "")  # bold; not CLASS/**/IMAGE
    return re.sub(r" \.$", ".", " ".join(first.split()))


def schema_of(annotation: Any) -> Schema | None:
    """The JSON Schema of a type annotation; None if YAML cannot express it, such as a Tensor."""
    simple = {
        bool: "boolean",
        int: "integer",
        float: "number",
        numbers.Number: "number",
        str: "string",
        None: "null",
        types.NoneType: "null",
    }
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is inspect.Parameter.empty or annotation is Any:
        return {}
    if annotation is typing.Never:  # refused; the docstring tells why
        return {"not": {}}
    if isinstance(annotation, typing.Hashable) and annotation in simple:
        return {"type": simple[annotation]}
    if annotation is Duration:
        return Duration.schema("st", "ep")
    if origin is Literal:
        return {"enum": list(inner)}
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return {"enum": [member.value for member in annotation]}
    if origin in (typing.Union, types.UnionType):
        schemas = [schema for kind in inner if (schema := schema_of(kind)) is not None]
        if any("enum" in schema for schema in schemas):  # names help more
            schemas = [s for s in schemas if s not in ({"type": "string"}, {"type": "integer"})]
        for wide in [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]:
            if wide in schemas:  # whole numbers are numbers
                narrow = json.loads(json.dumps(wide).replace("number", "integer"))
                schemas = [schema for schema in schemas if schema != narrow]
        return {"anyOf": schemas} if len(schemas) > 1 else next(iter(schemas), None)
    if origin is tuple and Ellipsis not in inner:
        items = [schema_of(kind) or {} for kind in inner]
        size = len(items)
        return {"type": "array", "prefixItems": items, "minItems": size, "maxItems": size}
    if origin is dict and inner == (str, str):
        return {"type": "object", "additionalProperties": {"type": "string"}}
    kind = origin or annotation
    if isinstance(kind, type) and issubclass(kind, Iterable) and not issubclass(kind, Mapping):
        if kind.__module__ in ("builtins", "collections.abc"):
            items = [schema for item in inner[:1] if (schema := schema_of(item)) is not None]
            return {"type": "array", "items": items[0]} if items else {"type": "array"}
    return None


def _model_names(family: str) -> list[str]:
    """The names of torchvision's classifiers; none for timm, which has more than a thousand."""
    if family != "torchvision/":
        return []
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    return [f"torchvision/{name}" for name in sorted(names)]
