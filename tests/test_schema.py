"""The JSON Schema that editors use: it says what the trainer says, and is kept up to date."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from trainer.config.arguments import OF_TORCH
from trainer.config.components import SCHEMA_FILE, TABLES
from trainer.config.document import Document
from trainer.config.json_schema import Validator
from trainer.config.schema_page import as_page
from trainer.config.signatures import SUPPLIED, arguments_schema, resolve
from trainer.schema import as_text, generate, made_with, main, page_file

SPOKEN_FOR = ("torch", "torchvision")  # the project describes their arguments itself
SHIPPED = sorted(Path("configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def schema():
    return generate()


@pytest.fixture(scope="module")
def validator(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def read(path):
    document = Document(path.read_text(encoding="utf-8"), str(path))
    assert not document.faults
    return document.data


def test_the_file_in_configs_is_up_to_date():
    if json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["$comment"] != made_with():
        pytest.skip(f"made with other versions than {made_with()}")
    assert main(["--check"]) == 0


def test_drift_is_told(tmp_path, monkeypatch, capsys):
    stale = tmp_path / "schema.json"
    monkeypatch.setattr("trainer.schema.SCHEMA_FILE", stale)
    assert main(["--check"]) == 1
    assert "is out of date: python -m trainer.schema" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0
    stale.write_text(stale.read_text().replace('"LeNet"', '"LeNot"', 1))
    assert main(["--check"]) == 1


def test_the_schema_is_written_where_it_is_asked_for_with_the_line_that_names_it(
    schema, tmp_path, capsys
):
    file = tmp_path / "mine.json"
    assert main(["--output", str(file)]) == 0
    assert file.read_text() == as_text(schema)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "# yaml-language-server: $schema=./mine.json"
    )


@pytest.mark.parametrize(
    ("name", "told"), [("mine.yaml", "ends in .json"), ("none/a.json", "this folder does not")]
)
def test_a_schema_overwrites_no_yaml_and_makes_no_folder(tmp_path, capsys, name, told):
    (tmp_path / "mine.yaml").write_text("seed: 1")
    assert main(["--output", str(tmp_path / name)]) == 2
    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert (tmp_path / "mine.yaml").read_text() == "seed: 1"


def test_a_table_line_that_leads_nowhere_is_told_without_a_traceback(monkeypatch, capsys):
    place = "trainer.components.losses:Typo"
    monkeypatch.setitem(TABLES["loss"], "Typo", place)
    assert main([]) == 2
    told = capsys.readouterr().err
    assert told.startswith(
        f"trainer/components/__init__.py: 'Typo' stands for {place}, which cannot"
    )
    assert "Traceback" not in told


def test_the_file_is_the_same_each_time(schema):
    assert as_text(generate()) == as_text(schema)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_names_the_schema(path, validator):
    assert list(validator.iter_errors(read(path))) == []
    assert list(validator.iter_errors(yaml.safe_load(path.read_text(encoding="utf-8")))) == []
    first_line = path.read_text(encoding="utf-8").partition("\n")[0]
    assert first_line == "# yaml-language-server: $schema=./schema.json"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("sed",), 0),
        (("seed",), True),
        (("seed",), "0"),
        (("model",), "Lenet"),
        (("model",), {"name": "LeNet", "num_classes": 3}),
        (("model",), {"name": "LeNet", "depth": 3}),
        (("model",), {"name": "VGG", "depth": 12}),
        (("model",), "torchvision/"),
        (("model",), "torchvision/RESNET18"),
        (("model",), {"name": "torchvision/RESNET18"}),
        (("optimizer", "learning_rate"), 0.1),
        (("optimizer", "lr"), "fast"),
        (("loader",), {"batch_size": 0}),
        (("transforms", "train"), ["RandomCrop"]),
        (("transforms", "train"), [{"name": "RandomApply", "transforms": [{"name": "Nothing"}]}]),
        (("log",), {"every": "1ep"}),
        (("scheduler",), {"name": "StepLR", "step_size": 3, "warmup": "3m"}),
        (("train", "epochs"), None),
    ],
)
def test_the_judge_and_jsonschema_refuse_the_same(place, value, schema, validator):
    data = read(Path("configs/lenet_rmb.yaml"))
    ours = Validator(schema["$defs"])
    assert list(ours.findings(data, schema)) == []
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert not validator.is_valid(data)
    findings = list(ours.findings(data, schema))
    assert findings
    assert all(finding.place[: len(place)] == place for finding in findings)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model",), "torchvision/resnet18"),
        (("model",), {"name": "timm/resnet18", "drop_rate": 0.1, "weights": "DEFAULT"}),
        (("scheduler",), None),
        (("scheduler",), {"name": "CosineAnnealingLR", "warmup": "20st"}),
        (("loss",), {"name": "CrossEntropyLoss", "weight": "balanced"}),
        (("loss",), {"name": "CrossEntropyLoss", "weight": [1, 2.5]}),
        (("train", "device"), "cuda:1"),
        (("early_stop",), {"patience": 3}),
        (("name",), "x"),
    ],
)
def test_the_judge_and_jsonschema_accept_the_same(place, value, schema, validator):
    data = read(Path("configs/lenet_rmb.yaml"))
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert list(validator.iter_errors(data)) == []
    assert list(Validator(schema["$defs"]).findings(data, schema)) == []


def test_the_judge_knows_every_word_of_the_schema(schema):
    judged = {
        "$ref", "not", "discriminator", "anyOf", "type", "enum", "const", "pattern", "properties",
        "additionalProperties", "required", "items", "prefixItems", "minItems", "maxItems",
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    }  # fmt: skip
    told = {"$schema", "$comment", "$defs", "description", "default", "examples", "title"}
    by_us = {"unsupported"}  # why a known name is not there
    used = set()

    def walk(node):
        used.update(node)
        for key in ("properties", "$defs"):
            for inner in node.get(key, {}).values():
                walk(inner)
        for key in ("anyOf", "prefixItems"):
            for inner in node.get(key, []):
                walk(inner)
        if isinstance(node.get("items"), dict):
            walk(node["items"])

    walk(schema)
    assert used <= judged | told | by_us


def test_every_setting_has_a_description(schema):
    sections = [schema, *(d for key, d in schema["$defs"].items() if key[0].isupper())]
    for section in sections:
        for name, inner in section["properties"].items():
            of_its_type = schema["$defs"].get(inner.get("$ref", "").rpartition("/")[2], {})
            assert inner.get("description") or of_its_type.get("description"), name


def test_every_argument_of_every_component_has_a_description_in_whole_sentences(schema):
    missing, unlike = [], []
    for key, component in schema["$defs"].items():
        for name, inner in component.get("properties", {}).items() if "." in key else ():
            if name == "name" or "not" in inner:
                continue
            text = inner.get("description", "")
            if len(text) < 10 or not text.endswith("."):
                missing.append(f"{key}.{name}: {text!r}")
            if "(default" in text or "`" in text or "http" in text or ":class:" in text:
                unlike.append(f"{key}.{name}: {text!r}")
    assert not missing
    assert not unlike


def test_every_key_of_every_section_has_a_description(schema):
    for name, section in {"": schema, **schema["$defs"]}.items():
        for key, inner in section.get("properties", {}).items() if "." not in name else ():
            referred = schema["$defs"].get(inner.get("$ref", "").rpartition("/")[2], {})
            assert len(inner.get("description") or referred["description"]) > 10, f"{name}.{key}"


def test_every_argument_of_torch_and_torchvision_is_described_in_the_projects_own_words():
    if json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["$comment"] != made_with():
        pytest.skip("arguments that are new in a version are described by its own texts")
    for kind, table in TABLES.items():
        for name in table:
            factory = resolve(table, name)
            if name.endswith("/") or factory.__module__.split(".")[0] not in SPOKEN_FOR:
                continue
            for argument in arguments_schema(kind, name)["properties"]:
                if argument not in (*SUPPLIED[kind], "transforms", "weight"):
                    assert argument in OF_TORCH or f"{name}.{argument}" in OF_TORCH, name


def test_no_cell_of_the_page_is_empty_and_no_component_lacks_a_word_on_its_arguments():
    page = page_file().read_text(encoding="utf-8")
    for row in re.findall(r"^\|.*\|$", page, re.MULTILINE):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert all(cells), row
    for component in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        assert "\n| argument |" in component or re.search(r"argument(s are|\.\n)", component)


def test_every_better_description_belongs_to_an_argument(schema):
    arguments = {
        (key.partition(".")[2], name)
        for key, component in schema["$defs"].items()
        for name in component.get("properties", {})
    }
    for key in OF_TORCH:
        component, _, name = key.rpartition(".")
        assert any(name == one and component in ("", of) for of, one in arguments), key


def test_the_page_shows_limits_plurals_and_patterns_as_they_are(schema):
    page = as_page(schema)
    assert "root/CLASS/\\*\\*/IMAGE" in page  # Markdown for root/CLASS/**/IMAGE
    assert "| `layer_decay` | number > 0 and <= 1 or `null` | `null` |" in page
    assert "| `transformation_matrix` | list of lists of numbers or text | required |" in page
    assert "| `ratios` | list of 3 numbers | `[8, 1, 1]` |" in page
    assert "| `eps` | list of 2 numbers or `null` | `[null, 0.001]` |" in page
    assert "numberss" not in page
    assert ">_" not in page
