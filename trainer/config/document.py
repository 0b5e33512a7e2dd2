"""A YAML file as plain data, with the origin of each value: a line, or the command line."""

import copy
import difflib
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from trainer.config.yaml_text import MAX_DEPTH, Origin, Place, is_text, parse
from trainer.process.errors import ConfigError, Fault
from trainer.process.words import listed

MAX_BYTES = 1 << 20
COMMAND_LINE = "command line"
SHIPPED = Path(__file__).resolve().parents[2] / "configs"  # examples
OWN = "own"  # in transforms.both: here come the steps of train, or of eval

_HAS_KEY = re.compile(r"[A-Za-z_][\w.]*=")
_ADDRESS = re.compile(r"[^\s'\"{}=]*(?:://|@)[^\s'\"{}]*")  # of a server or a person
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9_./](:?[A-Za-z0-9_./-])*")


class Document:
    """The values of a file and its overrides, their origins, and the faults of their text.

    ``data`` is None for a file without any value; ``messages`` report side effects of overrides.
    ``shared`` maps the place of an item in a list that it was put into to where it is written.
    """

    def __init__(self, text: str, file: str) -> None:
        parsed = parse(text, file)
        self.file = file
        self.data, self.values, self.keys = parsed.data, parsed.values, parsed.keys
        self.unknown, self.faults = parsed.unknown, parsed.faults
        self.messages: list[str] = []
        self.shared: dict[Place, Place] = {}

    def with_shared(self) -> Any:
        """``data`` with ``transforms.both`` in train and eval; ``shared`` learns their places."""
        data = self.data
        section = data.get("transforms") if isinstance(data, dict) else None
        both = section.get("both") if isinstance(section, dict) else None
        if not (isinstance(data, dict) and isinstance(section, dict) and isinstance(both, list)):
            return data
        self.shared.clear()
        lists = {}
        for side in ("train", "eval"):
            own = section.get(side, [])
            if not isinstance(own, list):
                return data  # a fault
            items = [(item, ("transforms", side, index)) for index, item in enumerate(own)]
            first = both.index(OWN) if OWN in both else len(both)
            shared = [(item, ("transforms", "both", index)) for index, item in enumerate(both)]
            every = [*shared[:first], *items, *shared[first + 1 :]]
            lists[side] = [item for item, _ in every]
            places = enumerate(place for _, place in every)
            self.shared |= {("transforms", side, number): place for number, place in places}
        return data | {"transforms": {**section, "both": [], **lists}}

    def value(self, place: Place) -> Any:
        """The value at ``place``, which must be there."""
        value = self.data
        for key in place:
            value = value[key]
        return value

    def as_written(self, place: Place) -> Place:
        """The place in ``data`` of the value that is at ``place`` once shared items are there."""
        return next(
            (at + place[len(to) :] for to, at in self.shared.items() if place[: len(to)] == to),
            place,
        )

    def origin(self, place: Place) -> Origin:
        """Where the value of ``place``, or of its nearest parent, was written."""
        while place and place not in self.values:
            place = place[:-1]
        return self.values.get(place, Origin(self.file))

    def fault(self, place: Place, message: str, at_key: bool = False) -> Fault:
        """A fault at the value of ``place``, or at its key."""
        origin = self.keys.get(place) if at_key else None
        fault = Fault(".".join(map(str, place)), message, *(origin or self.origin(place)))
        return without_address(fault) if "notify" in fault.path else fault

    def origin_text(self, place: Place) -> str:
        """The origin of the value of ``place`` as text for the user: "FILE:LINE" or "default"."""
        value, written, place = self.data, False, self.as_written(place)
        for depth, key in enumerate(place, 1):
            if isinstance(value, str) and key == "name":
                break  # a component's bare name
            items = value if isinstance(value, dict) else dict(enumerate(value or ()))
            if key not in items:
                return "default"
            value = items[key]
            origin = self.values.get(place[:depth])
            # An override of a section also sets every value inside it.
            written = origin is not None or (written and self.origin(place).file == COMMAND_LINE)
        return str(self.origin(place)) if written else "default"

    def is_unknown(self, place: Place) -> bool:
        """Whether the text of ``place`` could not be read, so that its value is unknown."""
        return any(place[:length] in self.unknown for length in range(len(place) + 1))

    def override(self, typed: str, defaults: Mapping[str, Any], at: Sequence[str] = ()) -> None:
        """Apply ``key=value``; ``defaults`` are the sections that the file may leave out.

        ``at`` is the key as a list, for names that hold a dot. A component that gets another name
        loses its arguments, because they belong to the old component.
        """
        origin = Origin(COMMAND_LINE, source=typed.encode(errors="replace").decode())
        key, equals, text = typed.partition("=")
        keys = list(at) or key.strip().split(".")
        if not all((*keys, text.strip())) or len(keys) > MAX_DEPTH:
            mended = as_one_word(typed)
            if not mended or mended.endswith(shlex.quote(typed)):  # it is one word already
                mended = ", as in optimizer.lr=0.1"
            self.faults.append(Fault("", f"expected key=value{mended}", *origin))
            return
        parsed = parse(text, COMMAND_LINE, origin)
        self.faults += [Fault(key, fault.message, *origin) for fault in parsed.faults]
        self.data = {} if self.data is None else self.data
        if parsed.faults or not isinstance(self.data, dict):
            return
        if len(keys) > 1 and keys[0] not in self.data and keys[0] in defaults:
            self.data[keys[0]] = copy.deepcopy(defaults[keys[0]])
        section = self.data.get("transforms")
        if keys[0] == "transforms" and len(keys) > 2 and isinstance(section, dict):
            if keys[1] == "both" or (keys[1] in ("train", "eval") and "both" in section):
                section.setdefault(keys[1], [])  # a list without items is the default
        try:
            self._set(keys, parsed.data, origin)
        except LookupError as error:
            self.faults.append(Fault(key, str(error.args[0]), *origin))

    def _set(self, keys: list[str], value: Any, origin: Origin) -> None:
        """Set the value at the key ``keys``; missing parents are created."""
        container, place, last = self.data, tuple[str | int, ...](), keys[-1]
        for depth, key in enumerate(keys):
            index: str | int = key
            if isinstance(container, list):
                if not re.fullmatch("[0-9]{1,6}", key) or int(key) >= len(container):
                    items = f"items 0 to {len(container) - 1}" if container else "no items"
                    items += self._by_place(keys, depth, container, origin)
                    raise LookupError(f"'{'.'.join(keys[:depth])}' is a list with {items}")
                index = int(key)
            elif not isinstance(container, dict):
                raise LookupError(f"'{'.'.join(keys[:depth])}' holds no keys")
            place = (*place, index)
            old = container[int(key)] if isinstance(container, list) else container.get(key)
            if depth == len(keys) - 2 and last == "name" and component_name(old):
                if value == component_name(old):
                    return
                value = {"name": value}  # another component
                break
            if depth == len(keys) - 1:
                break
            if old == OWN and place[:-1] == ("transforms", "both"):
                raise LookupError(f"{'.'.join(keys[:3])} is {OWN}, which takes no arguments")
            if old is None or isinstance(old, str):  # missing, or a component's bare name
                container[index] = {} if old is None else {"name": old}
                if place not in self.keys:
                    self.values[place] = self.keys[place] = origin
            container = container[index]
        names = component_name(old), component_name(value)
        if isinstance(old, dict) and len(old) > 1 and None not in names and names[0] != names[1]:
            dropped = ", ".join(key for key in old if key != "name")
            self.messages.append(f"{'.'.join(keys)}={names[1]} drops {names[0]}'s {dropped}")
        for known in [known for known in self.values if known[: len(place)] == place]:
            del self.values[known]
            self.keys.pop(known, None)
        self.unknown = {known for known in self.unknown if known[: len(place)] != place}
        container[index] = value
        self.values[place] = self.keys[place] = origin

    def _by_place(self, keys: list[str], depth: int, items: list[Any], origin: Origin) -> str:
        """ "; write transforms.train.4.alpha=0.5" for transforms.train.MixUp.alpha=0.5; else "".

        Also transforms.both.0.size for transforms.eval.0.size, if the item stands there.
        """
        key, found = keys[depth], list[Place]()
        found += [(*keys[:depth], i) for i, one in enumerate(items) if component_name(one) == key]
        if not found and depth == 2 and keys[0] == "transforms":
            self.with_shared()  # it fills ``shared``
            steps = [(to, at) for to, at in self.shared.items() if to[1] == keys[1]]
            names = {at: (str(to[2]), component_name(self.value(at))) for to, at in steps}
            found = [at for at, called in names.items() if key in called]
        text = (origin.source or "").partition("=")[2]
        typed = (".".join(map(str, (*place, *keys[depth + 1 :]))) for place in found)
        written = listed((shlex.quote(f"{place}={text}") for place in typed), "or")
        return f"; write {written}" * bool(found)


def in_one_word(overrides: Sequence[str]) -> list[str]:
    """The overrides; the words of one that was typed with spaces are one again."""
    words: list[str] = []
    for word in overrides:
        before = words[-1] if words else "="
        opened = before.count("[") + before.count("{") > before.count("]") + before.count("}")
        is_value = "=" not in word and (before.endswith("=") or "=" not in before)
        goes_on = opened and not _HAS_KEY.match(word)  # dataset.root=x[1 seed=3 are two
        if words and (goes_on or is_value or (word == "=" and "=" not in before)):
            words[-1] = f"{before} {word}"
        else:
            words.append(word)
    return words


def as_one_word(typed: str) -> str:
    """ "; write optimizer.lr=0.1" for "optimizer.lr 0.1" or "optimizer.lr: 0.1"; else ""."""
    if typed.count("{") > typed.count("}") or typed.count("[") > typed.count("]"):
        return "; close its bracket, as in 'split.ratios=[8, 1, 1]'"
    found = re.fullmatch(r"([A-Za-z][\w.]*)\s*[=:\s]\s*([^\s/].*)", typed)
    return f"; write {shlex.quote(f'{found[1]}={found[2]}')}" if found else ""


def component_name(component: Any) -> str | None:
    """The name in ``{name: X, ...}`` or a bare ``X``; None for anything else."""
    name = component.get("name") if isinstance(component, dict) else component
    return name if isinstance(name, str) else None


def read_document(path: Path) -> Document:
    """Read a YAML file; raises ConfigError if the file cannot be read as text."""
    line, text = None, ""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
        problem = f"is larger than {MAX_BYTES >> 20} MiB" if len(content) > MAX_BYTES else None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = "is not UTF-8 text; save the file as UTF-8"
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        problem = f"cannot be read: {getattr(error, 'strerror', None) or error}{_near(path)}"
    if problem:
        raise ConfigError([Fault("", problem, str(path), line)], str(path))
    return Document(text, str(path))


def _near(path: Path) -> str:
    """The YAML files that a wrong path may mean, as the end of a message."""
    with suppress(OSError, ValueError):
        folders = dict.fromkeys([path if path.is_dir() else path.parent, Path("configs")])
        files = [file for folder in folders for file in sorted(folder.glob("*.y*ml"))]
        if path.is_dir():
            return f"; name a file in it, such as {files[0]}" if files else ""
        same = [str(file) for file in files if file.stem == path.stem]
        near = difflib.get_close_matches(path.name, [file.name for file in files])
        found = same or [str(file) for name in near for file in files if file.name == name]
        if not found and Path("configs").resolve() != SHIPPED:
            found = [str(file) for file in SHIPPED.glob(f"{path.stem}.yaml")]
        if found:
            return f"; did you mean {listed(found[:3], 'or')}?"
        return f"; {path.parent} holds no YAML file" if path.parent.is_dir() and not files else ""
    return ""


def write(
    data: Any,
    comment: Callable[[Place], str] = lambda place: "",
    below: Mapping[Place, str] | None = None,
) -> str:
    """Plain data as YAML that ``Document`` reads back equal.

    ``comment`` gives the comment on the line of a value. ``below`` holds comments on lines of their
    own, each at the end of the mapping at its place.
    """
    found = _lines(data, (), "", below or {})
    lines = [(text, comment(place) if place else "") for text, place in found]
    width = min(max((len(text) for text, note in lines if note), default=0), 60)
    return "".join(f"{text:<{width}}  # {note}\n" if note else f"{text}\n" for text, note in lines)


def flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float) and math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    if not isinstance(value, str):
        return repr(value)
    if _PLAIN_TEXT.fullmatch(value) and is_text(value):
        return value
    quoted: str = yaml.safe_dump(value, default_style='"', width=math.inf, allow_unicode=True)
    return quoted.strip()


def _lines(
    data: Any, place: Place, indent: str, below: Mapping[Place, str]
) -> Iterator[tuple[str, Place]]:
    """The lines of a mapping or of a list of mappings, each with the place of the value on it."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        inner = (*place, key)
        head = f"{indent}{flow(key)}:" if isinstance(data, dict) else f"{indent}-"
        if _fits_on_a_line(value):
            yield f"{head} {flow(value)}", inner
        elif isinstance(data, dict):
            yield head, ()
            yield from _lines(value, inner, f"{indent}  ", below)
        else:  # the first line of a list item stands after its dash
            (text, first), *rest = _lines(value, inner, f"{indent}  ", below)
            yield f"{head} {text.lstrip(' ')}", first
            yield from rest
    if place in below:
        yield f"{indent}# {below[place]}", ()


def _fits_on_a_line(value: Any) -> bool:
    if isinstance(value, dict):
        return not value
    return not isinstance(value, list) or not any(isinstance(item, dict) for item in _flat(value))


def _flat(value: Any) -> Iterator[Any]:
    for item in value:
        yield from _flat(item) if isinstance(item, list) else (item,)


def without_address(fault: Fault) -> Fault:
    """The fault with dots in place of an address, which may hold a password; says where it goes."""
    message, source = (_ADDRESS.sub("...", text or "") for text in (fault.message, fault.source))
    if (message, source) == (fault.message, fault.source or ""):
        return fault
    message = (
        f"{message.partition('; write ')[0]}; an address may hold a password, and each run keeps "
        "its settings: put it into an environment variable, and write the variable's name here"
    )
    return replace(fault, message=message, source=source or None)
