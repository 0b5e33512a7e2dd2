"""The messages as a whole: one voice, and what they name exists."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_docs import headings
from trainer.config import settings

FOLDERS = ("trainer", "models", "datasets", "transforms", "yaml_trainer")
GAP = "{}"  # in place of what a message inserts


def text_of(node: ast.AST) -> str | None:
    """The text of a string, with a gap for each inserted value; None for what is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) or GAP for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [text_of(side) for side in (node.left, node.right)]
        return "".join(side or GAP for side in sides) if any(sides) else None
    return None


def messages() -> Iterator[tuple[str, str]]:
    """Every text of the code that a person may read: place and text, without docstrings."""

    def walk(node: ast.AST) -> Iterator[tuple[int, str]]:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        text = text_of(node)
        if text is not None:
            if " " in text.strip() and isinstance(node, ast.expr):
                yield node.lineno, text
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    for folder in FOLDERS:
        for path in sorted(Path(folder).rglob("*.py")):
            if "templates" not in path.parts and path.name != "words.py":  # what people type
                for line, text in walk(ast.parse(path.read_text(encoding="utf-8"))):
                    yield f"{path}:{line}", text


MESSAGES = list(messages())


def found(pattern: str) -> list[str]:
    return [f"{place}: {text}" for place, text in MESSAGES if re.search(pattern, text)]


def test_the_walk_finds_the_messages():
    texts = [text for _, text in MESSAGES]
    assert len(texts) > 1500
    assert any(text.startswith("out of memory: {}\nSmaller images") for text in texts)
    assert "no image of train can be read" in texts


@pytest.mark.parametrize(
    "pattern",
    [
        r"[a-z]!( |$)",  # no message shouts
        r"(?i)\b(please|sorry|oops|successfully|invalid|illegal|abort(ed|ing))\b",
        r"\b(color|grayscale|normaliz|initializ|optimis(er|ation)\b)(?!\w*[=.:])",  # one spelling
        r"(?i)\b(working|output|input|run|image|parent|temporary) director(y|ies)\b(?!\")",
        r"\(default [^:)]|^default [^:]",  # (default: X)
        r"\b(begin a new run|pictures? of dataset|of ours)\b",
        r"\b(the the|a a|is is|of of|to to|and and)\b",
        r" ,|,,|\.\.$(?<!\.\.\.)",
    ],
)
def test_no_message_is_worded_so(pattern):
    allowed = ("No usable temporary directory", "a cache would be unpickled from the working")
    assert [one for one in found(pattern) if not any(text in one for text in allowed)] == []


def options_of(command: str) -> set[str]:
    """The options that the code of a command adds to its parser."""
    tree = ast.parse(Path(*command.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
    strings = (str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {text for text in strings if text.startswith("--")}


def test_each_command_and_option_that_a_message_names_exists():
    named = 0
    for place, text in MESSAGES:
        for command, rest in re.findall(r"python -m ((?:trainer|scripts)\.\w+)([^\n;.]*)", text):
            assert Path(*command.split(".")).with_suffix(".py").exists(), place
            options = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest))
            assert options <= options_of(command), f"{place}: {command} {options}"
            named += 1
    assert named > 20


def test_each_page_and_heading_that_a_message_names_exists():
    for place, text in MESSAGES:
        for page in re.findall(r"\bdocs/\w+\.md\b", text):
            assert Path(page).exists(), place
        for heading, page in re.findall(r'"([^"]+)" in (docs/\w+\.md)', text):
            assert heading in headings(Path(page)), place


def test_each_extra_that_a_message_names_exists():
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name for _, text in MESSAGES for name in re.findall(r'-e "?\.\[(\w+)\]', text)}
    assert {"export", "timm", "tiff"} <= extras <= set(project["optional-dependencies"])


def test_each_setting_that_a_message_tells_to_write_exists():
    sections = {}
    for name, model in settings.__dict__.items():
        if isinstance(model, type) and issubclass(model, settings.Frozen) and "Settings" in name:
            key = re.sub("(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Settings")).lower()
            sections[key] = set(model.model_fields)
    assert {"train", "split", "loader", "store"} <= set(sections)
    named = 0
    for place, text in MESSAGES:
        for section, key in re.findall(r"(?<![\w.])(\w+)\.(\w+)=", text):
            if section in sections:
                assert key in sections[section], f"{place}: {section}.{key}"
                named += 1
    assert named > 20


def test_every_command_tells_its_exit_codes_alike():
    told = [text for _, text in MESSAGES if text.startswith("exit codes:")]
    assert len(told) >= 14
    for text in told:
        assert re.match(r"exit codes: 0 .*[^.]$", " ".join(text.split())), text
