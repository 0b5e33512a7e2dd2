"""Validate plain data against a JSON Schema, with messages that help.

Editors use the same schema (configs/schema.json), so an editor and the trainer agree. Only the
keywords that our schema has are implemented, and 3.0 does not count as a whole number.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from trainer.config.document import component_name
from trainer.config.yaml_text import Place, missing_colon, scalar
from trainer.process.words import listed, nearest, shortened, suggestion

Schema = Mapping[str, Any]


class Finding(NamedTuple):
    """A fault at ``place``; ``at_key`` if the key is wrong rather than its value."""

    place: Place
    message: str
    at_key: bool = False


@dataclass(frozen=True)
class Validator:
    """Finds everything in a value that a schema does not allow.

    ``definitions`` are the schema's ``$defs``. ``hint`` returns the text that says where an unknown
    key belongs, or ""; ``instead`` returns what to write for a wrong value, or "".
    """

    definitions: Schema
    hint: Callable[[Place], str] = lambda place: ""
    instead: Callable[[Place], str] = lambda place: ""

    def findings(self, value: Any, schema: Schema, place: Place = ()) -> Iterator[Finding]:
        """Every fault, in the order of the value's keys."""
        schema = self.resolved(schema)
        if "not" in schema:
            yield Finding(place, schema["description"], at_key=True)
        elif "discriminator" in schema:
            yield from self._component(value, schema, place)
        elif "anyOf" in schema:
            yield from self._alternatives(value, schema["anyOf"], schema, place)
        elif not _has_type(value, schema.get("type")) or not _is_allowed(value, schema):
            message = f"expected {self.expected(schema)}, got {got(value)}"
            yield Finding(place, message + (self.instead(place) or advice(value, schema)))
        elif isinstance(value, dict):
            yield from self._mapping(value, schema, place)
        elif isinstance(value, list):
            firsts, rest = schema.get("prefixItems", []), schema.get("items", {})
            for index, item in enumerate(value):
                inner = firsts[index] if index < len(firsts) else rest
                yield from self.findings(item, inner, (*place, index))

    def resolved(self, schema: Schema) -> Schema:
        """The schema itself, or the definition that it refers to."""
        if "$ref" in schema:
            found: Schema = self.definitions[schema["$ref"].removeprefix("#/$defs/")]
            return found
        return schema

    def _mapping(self, value: dict[str, Any], schema: Schema, place: Place) -> Iterator[Finding]:
        known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        for key, item in value.items():
            inner = (*place, key)
            if key in known:
                yield from self.findings(item, known[key], inner)
            elif others is False:
                allowed = [name for name, described in known.items() if "not" not in described]
                mended = self.hint(inner) or suggestion(key, allowed) or _described(key, known)
                message = f"unknown key '{shortened(key)}'{mended}; allowed are {listed(allowed)}"
                yield Finding(inner, message, at_key=True)
            else:
                yield from self.findings(item, others, inner)
        for key in schema.get("required", ()):
            if key not in value:
                wanted = self.expected(known.get(key, {}))
                yield Finding((*place, key), f"'{key}' is missing; expected {wanted}")

    def _component(self, value: Any, schema: Schema, place: Place) -> Iterator[Finding]:
        """``{name: X, **arguments}`` or a bare ``X``: the name chooses the arguments' schema."""
        kind, mapping = schema["title"], schema["discriminator"]["mapping"]
        component = {"name": value} if isinstance(value, str) else value
        choice = [f"{name}NAME" if name.endswith("/") else name for name in mapping]
        if not isinstance(component, dict):
            bare = "; write it without the list" if isinstance(value, list) else ""
            yield Finding(place, f"expected {self.expected(schema)}, got {got(value)}{bare}")
        elif "name" not in component:
            slip = next((key for key in component if _means_name(key)), None)
            if slip is not None:
                yield Finding((*place, slip), f"unknown key '{slip}'; did you mean 'name'?", True)
                return
            meant = [key for key in component if key in mapping]  # RandomCrop: {size: 32}
            example = f"{{name: {(meant or choice)[0]}, ...}}"
            yield Finding((*place, "name"), f"'name' is missing; write the {kind} as {example}")
        elif not isinstance(name := component["name"], str):
            yield Finding((*place, "name"), f"expected the {kind}'s name, got {got(name)}")
        elif self._is_known(name, mapping):
            reference = mapping.get(name) or mapping[_family(name)]
            yield from self.findings(component, {"$ref": reference}, place)
        else:
            message = f"unknown {kind} '{shortened(name)}'"
            reason = schema.get("unsupported", {}).get(name)
            mended = f": {reason}" if reason else suggestion(name, schema["examples"])
            names = "" if mended and len(choice) > 15 else f"; there are {listed(choice)}"
            yield Finding((*place, "name"), f"{message}{mended}{names}")
            near = "" if reason else nearest(name, schema["examples"])
            if near in mapping:  # its arguments are judged at once
                yield from self.findings(
                    {**component, "name": near}, {"$ref": mapping[near]}, place
                )

    def _is_known(self, name: str, mapping: Schema) -> bool:
        """Whether the table has the name, or its family. A family that lists names must have it."""
        if name in mapping or _family(name) not in mapping:
            return name in mapping
        family = self.resolved({"$ref": mapping[_family(name)]})
        return name in family["properties"]["name"].get("enum", [name])

    def _alternatives(
        self, value: Any, alternatives: Iterable[Schema], schema: Schema, place: Place
    ) -> Iterator[Finding]:
        """No faults if one alternative fits; else the faults of the one most likely meant."""
        attempts = [list(self.findings(value, inner, place)) for inner in alternatives]
        if not all(attempts):
            return
        if deeper := [found for found in attempts if all(f.place != place for f in found)]:
            as_word = self._as_word(value, list(alternatives), place)
            yield from [as_word] if as_word else min(deeper, key=len)
            return
        message = f"expected {self.expected(schema)}, got {got(value)}"
        options = [self.resolved(inner) for inner in alternatives]
        advices = [advice(value, inner) for inner in options]
        kinds = {inner.get("type") for inner in options}
        if type(value) in (int, float) and kinds & {"integer", "number"}:
            advices = []  # a number out of range, where a list could stand as well
        yield Finding(place, message + (self.instead(place) or next(filter(None, advices), "")))

    def _as_word(self, value: Any, alternatives: list[Schema], place: Place) -> Finding | None:
        """The fault of a value that means the bare word which may stand in a component's place."""
        words = [inner["const"] for inner in alternatives if "const" in inner]
        keys = [*value] if isinstance(value, dict) else []
        name = component_name(value)
        if len(keys) == 1 and keys[0] in words:  # own: {size: 3}
            return Finding((*place, keys[0]), f"write {keys[0]}, with nothing below it", True)
        if name in words:
            more = " and takes no arguments" * (len(keys) > 1)
            return Finding((*place, "name"), f"{name} stands without name{more}; write {name}")
        resolved = [self.resolved(inner) for inner in alternatives]
        names = [text for inner in resolved for text in inner.get("examples", ())]
        if name is None or nearest(name, [*names, *words]) not in words:
            return None
        near = difflib.get_close_matches(name[:100].lower(), words, n=1)  # not one within the name
        kind = next(inner["title"] for inner in resolved if "discriminator" in inner)
        if not near:
            return None
        message = f"unknown {kind} '{shortened(name)}'; did you mean {near[0]}?"
        return Finding((*place, "name"), message)

    def expected(self, schema: Schema) -> str:
        """What a schema allows, in words: "a whole number of at least 1"."""
        schema = self.resolved(schema)
        if "discriminator" in schema:
            article = "an" if schema["title"][0] in "aeiou" else "a"
            return f"{article} {schema['title']} as {{name: ..., ...}}"
        if "anyOf" in schema:
            words = [w for s in schema["anyOf"] for w in _words(s) or [self.expected(s)]]
            return listed(dict.fromkeys(words), "or")
        if words := _words(schema):
            return listed(words, "or")
        if "pattern" in schema and "examples" in schema:
            kind = schema.get("$comment", "text")
            return f"{kind} (such as {', '.join(schema['examples'])})"
        if schema.get("type") == "array":
            return self._expected_list(schema)
        if "type" not in schema:
            return "a value"
        bounds = {key: _limit(schema[key]) for key in _LIMITS if key in schema}
        limits = [f"{_LIMITS[key]} {number}" for key, number in bounds.items()]
        if {"minimum", "maximum"} <= bounds.keys():
            limits = [f"from {bounds['minimum']} to {bounds['maximum']}"]
        return " ".join([_TYPES[schema["type"]][1], " and ".join(limits)]).strip()

    def _expected_list(self, schema: Schema) -> str:
        fewest, most = schema.get("minItems"), schema.get("maxItems")
        text = "a list" if fewest is None or most is None else f"a list of {fewest} to {most}"
        text = f"a list of {fewest}" if fewest == most is not None else text
        items = schema.get("prefixItems") or [schema.get("items", {})]
        words = list(dict.fromkeys(map(self.expected, items)))
        each = "each " if len(words) == 1 else ""
        return text if words == ["a value"] else f"{text} ({each}{', '.join(words)})"


_TYPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "null": (lambda value: value is None, "null"),
    "boolean": (lambda value: isinstance(value, bool), "true or false"),
    "integer": (lambda value: type(value) is int, "a whole number"),
    "number": (lambda value: type(value) in (int, float), "a number"),
    "string": (lambda value: isinstance(value, str), "text"),
    "array": (lambda value: isinstance(value, list), "a list"),
    "object": (lambda value: isinstance(value, dict), "a mapping"),
}
_YES, _NO = {"yes", "on", "y", "true"}, {"no", "off", "n", "false"}
_LIMITS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "of at most",
    "exclusiveMaximum": "below",
}


def _has_type(value: Any, name: str | None) -> bool:
    return name is None or _TYPES[name][0](value)


def _is_allowed(value: Any, schema: Schema) -> bool:
    """Whether a value of the right type is allowed: choice, range, pattern and length."""
    if "enum" in schema or "const" in schema:
        return _plain(value) in _words(schema)
    if isinstance(value, str):
        # $ in JSON Schema is the end of the text; in Python also the place before a last newline.
        pattern = re.sub(r"\$$", r"\\Z", schema.get("pattern", ""))
        return re.search(pattern, value) is not None
    if isinstance(value, list):
        return bool(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)))
    if type(value) in (int, float):
        return bool(
            value >= schema.get("minimum", value)
            and value <= schema.get("maximum", value)
            and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
            and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        )
    return True


def _means_name(key: str) -> bool:
    """Whether a key of a component without a name is meant as ``name``: "naem" or "type"."""
    words = ("name", "type", "class", "class_name", "_target_", "kind", "method")
    return bool(difflib.get_close_matches(key.lower(), words, n=1, cutoff=0.75))


def _words(schema: Schema) -> list[str]:
    """The allowed values, if the schema lists them."""
    allowed = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return [_plain(value) for value in allowed]


def _family(name: str) -> str:
    """ "torchvision/" of "torchvision/resnet18"; "" for a name without a family."""
    family, slash, rest = name.partition("/")
    return family + slash if rest else ""


def got(value: Any) -> str:
    """A value as a message shows it."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"the text '{shortened(value)}'" if isinstance(value, str) else _plain(value)


def advice(value: Any, schema: Schema) -> str:
    """How to mend a value of the wrong type, if that can be guessed; else ""."""
    kind = schema.get("type")
    if isinstance(value, str) and kind in ("integer", "number"):
        try:
            number = scalar(value.replace("_", "").replace(",", "."))
        except ValueError:
            return ""
        return f"; write {_plain(number)}" if type(number) in (int, float) else ""
    if isinstance(value, float) and kind == "integer" and value.is_integer():
        return f"; write {int(value)}"
    if isinstance(value, str) and kind == "boolean" and value.lower() in _YES | _NO:
        return f"; write {_plain(value.lower() in _YES)}"
    if kind == "null" and value is False:
        return "; write null for none"
    if kind == "string" and "examples" in schema and type(value) is int and value >= 0:
        wholes = [re.sub("[0-9]+", str(value), example) for example in schema["examples"]]
        return f"; write {listed(wholes, 'or')}"  # 5ep, cuda:0
    if kind == "array" and isinstance(value, str) and re.fullmatch(r"\(.*\)", value):
        return f"; write [{value[1:-1].rstrip(', ')}]"
    if kind == "array" and isinstance(value, str | int | float) and not isinstance(value, bool):
        return f"; write [{_plain(value)}]"
    if kind == "object" and not isinstance(value, bool) and value is not None:
        return _as_mapping(value, schema)
    return "" if value is None else suggestion(_plain(value), _words(schema))


def _as_mapping(value: Any, schema: Schema) -> str:
    """How to write a value as the mapping that is expected; "" if that cannot be guessed."""
    mended = missing_colon(value) if isinstance(value, str) else ""
    if mended.partition(":")[0] in schema.get("properties", ()):
        return f"; a colon is missing: write '{mended}'"
    keys = schema.get("required") or list(schema.get("properties", ()))[:1]
    if isinstance(value, list) and len(keys) > 1:  # transforms
        return f"; write {' and '.join(f'{key}: [...]' for key in keys)} below it"
    shown = "[...]" if isinstance(value, list) else _plain(value)
    return f"; write {{{keys[0]}: {shown}}}" if keys else ""


def _described(key: str, known: Schema) -> str:
    """ "; did you mean 'lr'?" for "learning_rate", found by the descriptions of the arguments."""
    words = key.replace("_", " ").lower()
    for name, schema in known.items():
        said = schema.get("description", "").lower().removeprefix("the ")
        if len(words) > 3 and said.startswith(words):
            return f"; did you mean '{name}'?"
    return ""


def _limit(number: float) -> str:
    return f"{int(number):,}" if float(number).is_integer() and number < 1e15 else f"{number:g}"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
