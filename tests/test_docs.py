"""The pages tell the truth: links lead somewhere, commands and options exist, examples run."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Never

import pytest

from trainer.config import Config, settings
from trainer.config.components import SCHEMA_FILE, TABLES
from trainer.config.schema_page import anchor, as_page
from trainer.config.signatures import SUPPLIED, parameters_of, resolve
from trainer.process.quit import SIGNALS, _This

PAGES = sorted(
    [
        *(path for folder in ("", "docs") for path in Path(folder).glob("*.md")),
        *(Path(folder) / "README.md" for folder in ("findings", "runs")),
    ]
)
NOTEBOOK = Path("docs/tour.ipynb")
TEXTS = {path: path.read_text(encoding="utf-8") for path in [*PAGES, NOTEBOOK]}
YAML_PAGE = TEXTS[Path("docs/yaml.md")]
CODE = ("configs", "datasets", "docs", "models", "trainer", "transforms", "yaml_trainer")


def headings(page: Path) -> list[str]:
    """The headings, without comments in blocks of code."""
    text = re.sub(r"^```.*?^```$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    return [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if re.match("[a-z]+:", target):  # the web
            continue
        file, _, heading = target.partition("#")
        path = Path(os.path.normpath(page.parent / file)) if file else page
        assert path.exists(), target
        if heading:
            assert heading in map(anchor, headings(path)), target


def test_no_heading_of_a_page_that_is_linked_to_is_there_twice():
    for page in PAGES:
        if page.parent == Path("docs"):
            assert len(set(map(anchor, headings(page)))) == len(headings(page)), page


def test_every_page_is_linked_from_the_readme():
    for path in [*PAGES, NOTEBOOK]:
        if path.parent == Path("docs"):
            readme = Path("README.zh-CN.md" if path.name.endswith(".zh.md") else "README.md")
            assert f"]({path.as_posix()})" in TEXTS[readme]


def commands() -> dict[str, set[str]]:
    """Every command that a page names, with the options that stand behind it."""
    found: dict[str, set[str]] = {}
    for path in PAGES:
        if path.name in ("CHANGELOG.md", "DECISIONS.md"):  # they describe the past
            continue
        for module, verb, rest in re.findall(
            r"python -m ((?:trainer|scripts|tests)\.[a-z_.]+)( list\b)?([^`\n]*)", TEXTS[path]
        ):
            options = {option for option in re.findall(r"--[a-z][a-z-]*", rest)}
            found.setdefault(module + verb, set()).update(options)
    return found


COMMANDS = commands()


@pytest.fixture
def _no_command(monkeypatch):
    """Afterwards this process is no command again, and its signals are handled as before."""
    monkeypatch.setattr(_This, "process", _This.process)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_no_command")
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself_and_every_option_that_a_page_names(
    command, monkeypatch, capsys
):
    module, *verb = command.split()
    monkeypatch.setattr(sys, "argv", [module, *verb, "--help"])
    for name in (module, f"{module}.__main__"):  # another test may have imported it
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(module, run_name="__main__")
    output = capsys.readouterr().out
    assert command in output
    assert not module.startswith("trainer.") or "exit codes: 0 " in " ".join(output.split())
    assert {option for option in COMMANDS[command] if option not in output} == set()


def test_every_command_stands_in_the_readme():
    for folder in ("trainer", "scripts", "tests/torture"):
        for path in Path(folder).glob("*.py"):
            if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
                module = ".".join(path.with_suffix("").parts).removesuffix(".__main__")
                named = path.stem if folder == "scripts" else module
                assert re.search(rf"\b{re.escape(named)}\b", TEXTS[Path("README.md")]), path


def test_the_tree_lists_every_folder_of_code_and_no_other():
    (tree,) = re.findall(r"^```\n(configs/.*?)^```$", TEXTS[Path("docs/extending.md")], re.M | re.S)
    lines = [line.partition(" ") for line in tree.splitlines()]
    assert all(meaning.strip() for _, _, meaning in lines)
    folders = "configs datasets models scripts tests trainer transforms yaml_trainer".split()
    there = {
        f"{path.parent.as_posix()}/"
        for folder in folders
        for path in Path(folder).rglob("*")
        if path.suffix in (".py", ".yaml")
    }
    assert sorted(folder for folder, _, _ in lines) == sorted(
        there | {"docs/", "findings/", "runs/"}
    )


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_row_of_a_table_has_as_many_cells_as_its_head(page):
    for table in re.findall(r"(?:^\|.*\n)+", TEXTS[page], re.MULTILINE):
        cells = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
        assert set(cells) == {cells[0]}, table.splitlines()[0]


def test_everything_that_log_show_can_choose_is_described():
    page = TEXTS[Path("docs/seeing.md")]
    assert re.findall(r"^\| `(\w+)` \| .*\|.*\|.*\|$", page, re.MULTILINE) == list(
        settings.LogSettings().show
    )


def test_no_page_has_a_gap():
    for path, text in TEXTS.items():
        assert "TODO" not in text, path


# The YAML, key by key


def test_the_page_of_the_yaml_is_what_the_schema_says():
    assert as_page(json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))) == YAML_PAGE


def section(heading: str) -> str:
    """A page's text below a heading, up to the next one of its level."""
    level = heading.partition(" ")[0]
    return re.split(rf"^#{{2,{len(level)}}} ", YAML_PAGE.split(f"\n{heading}\n")[1], flags=re.M)[0]


def test_every_key_of_the_settings_is_described_with_its_default():
    tables: dict[str, tuple[type[settings.Frozen], str]] = {
        "": (Config, YAML_PAGE.split("\n## ")[0])
    }
    for name, model in settings.__dict__.items():
        if isinstance(model, type) and issubclass(model, settings.Frozen):
            key = re.sub("(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Settings")).lower()
            if key in Config.model_fields:
                tables[key] = (model, section(f"## {key}").split("\n### ")[0])
    assert len(tables) == 12
    for model, text in tables.values():
        for name, field in model.model_fields.items():
            (row,) = re.findall(rf"^\| `{name}` \|.*$", text, re.MULTILINE)
            if isinstance(field.default, bool | int | float | None):
                assert f"| `{json.dumps(field.default)}` |" in row


@pytest.mark.parametrize("kind", TABLES)
def test_every_component_is_described_with_each_of_its_arguments(kind):
    for name in TABLES[kind]:
        if name.endswith("/"):
            assert f"\n### {name}NAME\n" in YAML_PAGE
            continue
        text = section(f"### {name}")
        assert re.match(r"\n\S.{10}", text), f"{name} has no sentence"
        parameters = parameters_of(resolve(TABLES[kind], name)).values()
        taken = {one.name for one in parameters if one.annotation is not Never}
        arguments = taken - {*SUPPLIED[kind], "weight"}
        assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == arguments


# What is shown is done, in a copy of the checkout


@pytest.fixture
def checkout(tmp_path, notes):
    """A copy of the code, with pictures of notes where the shipped YAML looks for them."""
    for folder in CODE:
        shutil.copytree(folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(notes, tmp_path / "data" / "rmb")
    return tmp_path


def follow(block: str, checkout: Path) -> None:
    """Put a block of the worked example where its first line says: ``# FILE, in TABLE``."""
    head, text = block.split("\n", 1)
    name, _, place = head.removeprefix("# ").partition(", ")
    file = checkout / name
    if place == "at its end":
        file.write_text(file.read_text() + text)
    elif place:
        before, line, after = re.split(
            rf"^({place.removeprefix('in ')}\b.* = {{\n)", file.read_text(), flags=re.MULTILINE
        )
        file.write_text(before + line + text + after)
    else:
        assert not file.exists(), f"{name} is there already"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_the_worked_example_adds_a_model_a_dataset_a_transform_and_a_loss(checkout):
    text = TEXTS[Path("docs/extending.md")]
    blocks = re.findall(r"^```(python|yaml|sh)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for language, block in blocks:
        if language != "sh":
            follow(block, checkout)
    done = ""
    for language, block in blocks:
        for line in block.splitlines() if language == "sh" else ():
            words = [sys.executable if word == "python" else word for word in line.split()]
            result = subprocess.run(words, cwd=checkout, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            done += result.stdout
    (run,) = (checkout / "runs" / "own").iterdir()
    assert json.loads((run / "result.json").read_text())["status"] == "done"
    assert "Tiny" in done and "Squares, 2 classes" in done
    for page in ("docs/yaml.md", "configs/schema.json"):
        for name in ("Tiny", "Squares", "RandomNegative", "PolyLoss"):
            assert name in (checkout / page).read_text()


@pytest.mark.notebook
def test_the_notebook_trains_looks_and_predicts(checkout):
    nbformat = pytest.importorskip("nbformat", reason='needs pip install -e ".[dev]"')
    nbclient = pytest.importorskip("nbclient", reason='needs pip install -e ".[dev]"')
    notebook = nbformat.read(checkout / NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(checkout / "docs")}}  # where Jupyter opens it
    nbclient.NotebookClient(notebook, timeout=120, resources=place).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    results = [output["data"] for output in shown if "data" in output]
    texts = [data["text/plain"] for data in results]
    assert texts.count("<Exit.DONE: 0>") == 1  # predict
    assert "'val/loss'" in texts[0] and texts[1].startswith("[(1, ") and "(6, " in texts[1]
    assert sum("image/png" in data for data in results) == 3
    assert "'1':" in results[-1]["text/plain"] and "'100':" in results[-1]["text/plain"]


def test_the_notebook_is_kept_small_with_what_it_showed_and_tells_of_no_machine():
    cells = [c for c in json.loads(TEXTS[NOTEBOOK])["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not [output for output in outputs if output["output_type"] == "error"]
    texts = [output.get("text") or output["data"]["text/plain"] for output in outputs]
    assert not [text for text in texts if re.search(r"(^|\s)/\w|[A-Z]:\\", text)]
    assert NOTEBOOK.stat().st_size < 200_000


@pytest.mark.parametrize("picture", ["report.png", "tensorboard.png"])
def test_the_pictures_of_the_pages_are_small_and_wide_enough_to_read(picture):
    from PIL import Image

    with Image.open(Path("docs", picture)) as image:
        assert image.width >= 1000
    assert Path("docs", picture).stat().st_size < 150_000


@pytest.mark.parametrize(
    "script", sorted(Path("findings").glob("*.sh")), ids=lambda path: path.stem
)
def test_a_finding_has_the_form_that_the_readme_of_findings_states(script):
    text = script.read_text(encoding="utf-8")
    head = re.match(r"(#.*\n)+", text)
    assert head and re.search(r"\b\d+\.\d+(\.\d+)?\b", head[0]), "states the version"
    assert "mktemp -d" in text and "rm -rf" in text
    installed = re.findall(r'pip" install -q (.*)', text)
    assert installed
    for package in " ".join(installed).replace('"', "").split():
        assert "==" in package, f"{package} is not pinned"
    assert "as seen" in text and "changed" in text
    assert not re.search(r"^\s*(import|from) (trainer|models|datasets|transforms)\b", text, re.M)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
