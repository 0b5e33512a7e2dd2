"""The README tells the truth: its commands run, its file trains, its tree is the tree."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from datasets import DATASETS
from models import MODELS
from trainer.evaluate import main as evaluate
from trainer.tables import LOSSES, METRICS, SCHEDULERS
from trainer.train import main as train
from transforms import TRANSFORMS

README = Path("README.md").read_text()


def blocks(language: str) -> list[str]:
    fenced = README.split("```")[1::2]  # each opens with its language
    return [
        text.removeprefix(f"{language}\n") for text in fenced if text.startswith(f"{language}\n")
    ]


def test_the_two_commands_are_there_word_for_word_for_ci():
    commands = re.findall(r"^python -m pip install .* && .*$", README, re.MULTILINE)
    assert [command.split(" && ")[1] for command in commands] == [
        "python -m trainer.train --config configs/lenet_rmb.yaml",
        "python -m pytest -n 2",
    ]


def test_every_link_within_the_readme_has_its_heading():
    headings = {
        line.lstrip("# ").lower().replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings


def test_every_file_that_the_readme_links_to_is_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert Path(target).exists(), target


@pytest.mark.parametrize(
    "module", sorted(set(re.findall(r"python -m ((?:trainer|scripts)\.\w+)", README)))
)
def test_every_command_of_the_readme_explains_itself(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(module, run_name="__main__")
    assert module in capsys.readouterr().out


def test_the_yaml_of_the_readme_trains_and_its_run_can_be_judged_and_continued(
    notes, tmp_path, capsys
):
    (example,) = blocks("yaml")
    file = tmp_path / "example.yaml"
    file.write_text(example)
    small = [f"dataset.root={notes}", "train.epochs=1", "train.device=cpu"]
    runs = ["--runs", str(tmp_path / "runs")]
    assert train(["--config", str(file), *small, *runs]) == 0
    run = next((tmp_path / "runs" / "example").iterdir())
    assert "python -m trainer.evaluate " + str(run) in capsys.readouterr().out
    assert evaluate([str(run)]) == 0
    assert evaluate([str(run), "--split", "val"]) == 0
    assert train(["--resume", str(run), "train.epochs=2"]) == 0
    assert train(["--resume", "--config", str(file), *small, *runs, "train.epochs=3"]) == 0


def test_the_tree_lists_every_file_and_no_other():
    (tree,) = (block for block in blocks("") if block.startswith("configs/"))
    listed, folder = set(), ""
    for line in tree.splitlines():
        name = line.split()[0]
        if name.endswith("/"):
            folder = name
        else:
            listed.add(folder + name)
    there = {
        path.as_posix()
        for folder in ("configs", "datasets", "models", "scripts", "trainer", "transforms")
        for path in Path(folder).iterdir()
        if path.suffix in (".py", ".yaml", ".json") and path.name != "__init__.py"
    }
    assert listed == there


def test_every_choice_is_named_in_the_readme():
    words = set(re.findall(r"\w+", README))
    for table in (DATASETS, MODELS, LOSSES, METRICS, SCHEDULERS, TRANSFORMS):
        assert set(table) - words <= {"ToTensor", "ToImage", "ToDtype"}  # accepted, never needed


def test_every_shipped_yaml_stands_in_the_results_table():
    for path in Path("configs").glob("*.yaml"):
        assert f"| `{path.stem}` |" in README
        assert yaml.safe_load(path.read_text())["name"] == path.stem
