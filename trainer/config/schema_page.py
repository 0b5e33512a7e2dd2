"""docs/yaml.md: the schema of a YAML file as a page for people."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from trainer.config.components import RESERVED, component_key
from trainer.config.document import flow
from trainer.config.json_schema import Schema
from trainer.process.words import listed

HEAD = """# The YAML, key by key

Written by `python -m trainer.schema` from the settings and the constructors' signatures: change
those, not this page.
{made_with}

A component is `{{name: X, argument: value}}`, or a bare `X` if no argument is required. Names and
arguments are those of PyTorch and torchvision v2. A wrong key, type or name is reported with its
line. `python -m trainer.train --config FILE --print-config` shows each value, and where it is from.
"""
ALSO = {
    "dataset": "Every dataset takes this too:",
    "model": "Every model takes these too:",
    "loss": "Every loss that weighs classes takes this too:",
    "optimizer": "Every optimizer takes these too:",
    "scheduler": "Every scheduler takes this too:",
}
# Of a family of models: the arguments are those of a builder that has no full signature.
OPEN = {
    "torchvision/": "Its other arguments are those of torchvision's builder, such as `dropout` and "
    "`stochastic_depth_prob`. The model decides which it takes; a wrong one is reported.",
    "timm/": "Its other arguments are those of `timm.create_model` for this model, such as "
    "`drop_rate`, `drop_path_rate` and `img_size`. The model decides which it takes; a wrong one "
    "is reported.",
}
PLURAL = {"transform": "transforms", "metric": "metrics"}  # the key whose list holds them
TYPES = {
    "boolean": ["`true`", "`false`"],
    "integer": ["whole number"],
    "number": ["number"],
    "string": ["text"],
    "null": ["`null`"],
    "object": ["mapping"],
}
CHINESE_STARTS = {"Made with ": "生成时的版本：", "NAME is one of ": "NAME 可以是："}
# Words of types in Chinese, by pattern, the longer ones first.
CHINESE_TYPES = {
    r"^type$": "类型",
    r"\ba whole number of steps, epochs or minutes\b": "步数、轮数或分钟数",
    r"\ba whole number of steps or epochs\b": "步数或轮数",
    r"\ba whole number of steps\b": "步数",
    r"\ba whole number of minutes\b": "分钟数",
    r"\blists? of lists of ": "列表的列表：",
    r"\blists? of (\d+) ": r"\1 项的列表：",
    r"\blists? of ": "列表：",
    r"\blist\b": "列表",
    r"\bwhole numbers?\b": "整数",
    r"\bnumbers?\b": "数",
    r"\btexts?\b": "文本",
    r"\bmappings?\b": "映射",
    r" and (?=[<>])": " 且 ",
    r",? or ": " 或 ",
    r", ": "、",
}
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def as_page(schema: Schema) -> str:
    """The Markdown page of a schema from ``trainer.schema.generate``."""
    made_with = re.sub("^generated .* with", "Made with", schema["$comment"])
    blocks = [HEAD.format(made_with=f"{made_with}.")]
    blocks += [
        _key_table(
            "key", _key_rows(schema["properties"], schema["required"], schema, "the file's name")
        )
    ]
    for key, described in schema["properties"].items():
        blocks += _section(key, described, schema)
    return "\n".join(blocks)


def in_chinese(page: str, words: Mapping[str, str]) -> str:
    """The page with Chinese in place of each cell, line and type that ``words`` translates.

    Its keys are English cells and lines. A text without a translation stays English.
    """
    lines = []
    for line in page.split("\n"):
        if line.startswith("|"):
            name, kind, *rest = re.split(r"(?<!\\) \| ", line.strip("| "))
            cells = [words.get(name, name), words.get(kind) or _type_in_chinese(kind)]
            cells += [words.get(cell, cell) for cell in rest]
            line = f"| {' | '.join(cells)} |"
        line = words.get(line, line)
        for english, chinese in CHINESE_STARTS.items():
            line = re.sub(f"^{english}", chinese, line)
        lines.append(line)
    return "\n".join(lines)


def _type_in_chinese(kind: str) -> str:
    """A cell of ``_types`` in Chinese; what stands between backquotes or brackets stays."""
    parts = re.split(r"(`[^`]*`|\[.*?\]\(.*?\))", kind)
    for i in range(0, len(parts), 2):
        for english, chinese in CHINESE_TYPES.items():
            parts[i] = re.sub(english, chinese, parts[i])
    return "".join(parts).replace("[keys](", "[各键](")


def _section(key: str, described: Schema, schema: Schema) -> Iterator[str]:
    """The heading of a top-level key, the keys below it, and the components it can have."""
    inner = next((d for d in _definitions(described, schema)), None)
    if inner is None:
        return
    heading = f"## {key}\n"
    if "properties" in inner:
        text = described.get("description") or inner.get("description", "")
        yield f"{heading}\n{text}\n"
        yield _key_table("key", _key_rows(inner["properties"], inner.get("required", ()), schema))
        inner = next((d for d in _definitions(inner["properties"], schema)), {})
    else:
        yield f"{heading}\n{described.get('description', '')}\n"
    if "discriminator" in inner:
        yield from _components(inner, schema)


def _definitions(node: Any, schema: Schema) -> Iterator[dict[str, Any]]:
    """The definitions that a schema refers to, in the order of its text."""
    if isinstance(node, dict):
        if "$ref" in node:
            yield schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _definitions(item, schema)


def _components(kind: Schema, schema: Schema) -> Iterator[str]:
    """Every component of a kind: its description and its arguments."""
    title = kind["title"]
    names = list(kind["discriminator"]["mapping"])
    yield ", ".join(f"[{name}](#{anchor(_heading(name))})" for name in names) + "\n"
    if left_out := kind.get("unsupported"):
        groups, lines = dict[str, list[str]](), list[str]()
        for name, why in left_out.items():
            groups.setdefault(why, []).append(name)
        for why, alike in groups.items():
            verb = "is" if len(alike) == 1 else "are"
            lines.append(f"- {listed(alike)} {verb} left out: {why}")
        yield "\n".join(lines) + "\n"
    common = RESERVED.get(title, {})
    if common:
        yield ALSO[title] + "\n"
        yield _key_table("argument", _key_rows(common, (), schema))
    for name in names:
        described = schema["$defs"][component_key(title, name)]
        yield f"### {_heading(name)}\n\n{_escaped(described.get('description', ''))}\n"
        if members := described["properties"]["name"].get("enum"):
            yield f"NAME is one of {', '.join(member.partition('/')[2] for member in members)}.\n"
        own = {
            argument: how
            for argument, how in described["properties"].items()
            if argument not in ("name", *common)
        }
        if rows := list(_key_rows(own, described["required"], schema, "from the run")):
            yield _key_table("argument", rows)
        else:
            none = "It takes no other argument." if common else "It takes no argument."
            yield f"{OPEN.get(name, none)}\n"


def _heading(name: str) -> str:
    return f"{name}NAME" if name.endswith("/") else name


def anchor(heading: str) -> str:
    """The anchor by which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _key_rows(
    properties: Mapping[str, Schema], required: Collection[str], schema: Schema, unset: str = ""
) -> Iterator[tuple[str, ...]]:
    """Name, type, default and help of each key, without keys that the trainer sets itself.

    unset: the text for a key that is not required and has no default of its own.
    """
    for name, described in properties.items():
        if "not" in described:
            continue
        kind, default = listed(_types(described), "or"), unset
        if "default" in described:
            default = f"`{flow(described['default'])}`"
        if name in required:
            default = "required"
        if described.get("default") == described.get("items", {}).get("enum", ()):
            default = "all"
        help_text = described.get("description", "")
        section = next(_definitions(described, schema), {})
        if "properties" in section:  # a section has its own table
            kind = f"[keys](#{anchor(name)})"
            default = "required" if name in required else "those of its keys"
            if described.get("default", 0) is None:
                kind, default = f"{kind} or `null`", "`null`"
            help_text = help_text or section.get("description", "")
        yield f"`{name}`", kind, default, _escaped(help_text)


def _types(schema: Schema) -> list[str]:
    """The types and choices of a value, in words."""
    if "anyOf" in schema:
        words = [word for choice in schema["anyOf"] for word in _types(choice)]
        return list(dict.fromkeys(words))
    if "$ref" in schema:
        kind = schema["$ref"].removeprefix("#/$defs/")
        return [f"[{kind}](#{anchor(PLURAL.get(kind, kind))})"]
    if "const" in schema or "enum" in schema:
        return [f"`{flow(choice)}`" for choice in schema.get("enum", [schema.get("const")])]
    if "pattern" in schema:
        examples = listed([f"`{example}`" for example in schema["examples"]], "or")
        return [f"{schema.get('$comment', 'text')} ({examples})"]
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            firsts = [word for item in schema["prefixItems"] for word in _types(item)]
            bare = dict.fromkeys(_plural(word).partition(" >")[0] for word in firsts)
            many = listed(bare, "or")
            return [f"list of {len(schema['prefixItems'])} {many}"]
        items = [_plural(word) for word in _types(schema.get("items", {}))]
        return [f"list of {listed(items, 'or')}" if items else "list"]
    words = TYPES.get(schema.get("type", ""), [])
    limits = [f"{sign} {schema[bound]}" for bound, sign in BOUNDS.items() if bound in schema]
    return [" ".join([word, " and ".join(limits)]).strip() for word in words]


def _plural(words: str) -> str:
    """Words of ``_types`` for several of them: ``whole numbers >= 0``."""
    return re.sub(r"^(whole number|number|list|text|mapping)\b", r"\1s", words)


def _key_table(first: str, rows: Iterable[tuple[str, ...]]) -> str:
    lines = [(first, "type", "default", "what"), ("---",) * 4, *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines) + "\n"


def _escaped(text: str) -> str:
    """Plain text with Markdown's special characters escaped, also for the cell of a table."""
    return re.sub(r"([|\\*<\[\]`])", r"\\\1", " ".join(text.split()))
