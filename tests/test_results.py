"""The tables of results are what was measured, and what is missing is measured only once."""

import json
import shutil
import time
from pathlib import Path

import pytest
import yaml

from scripts import results
from scripts.results_page import MEASURED, PAGE, READMES, all_recipes, texts
from tests.conftest import SMALL, fork
from trainer.predict import main as predict

HEADS = {
    READMES[0]: "| YAML | data | test accuracy | training | commit |\n|---|---|---|---|---|\n",
    READMES[1]: "| YAML | 数据 | 测试准确率 | 训练时间 | 提交 |\n|---|---|---|---|---|\n",
    PAGE: "| YAML | a | b | c | d | e | f |\n|---|---|---|---|---|---|---|\n\n"
    "| YAML | a | b | c | d | e | f | g | h |\n|---|---|---|---|---|---|---|---|---|\n",
}
ENTRY = {
    "digest": "",
    "date": "2026-11-30",
    "images": [7259, 967, 4443],
    "accuracy": [0.88, 0.89, 0.9],
    "seconds": [8.0, 9.0, 10.0],
    "epochs": 30,
    "precision": "bf16",
    "processor": "Abacus",
    "cores": 2,
    "device": "cpu (2 threads)",
    "torch": "2.14.1",
    "commit": "0123abc",
    "data": "RMB",
    "seeds": [0, 1, 2],
    "others": 0.02,
    "command": "python -m trainer.train --config configs/one.yaml",
}


@pytest.fixture
def checkout(tmp_path, notes, monkeypatch):
    """A folder with two recipes, whose pages hold the heads of the tables."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "docs").mkdir()
    head = "# One.\n# Measured: not yet\n"
    small = SMALL.format(root=notes).replace("epochs: 2", "epochs: 1")
    (tmp_path / "configs" / "one.yaml").write_text(head + small)
    fetched = small.replace("{name: LeNet}", "{name: torchvision/resnet18, weights: DEFAULT}")
    (tmp_path / "configs" / "two.yaml").write_text(head + fetched)
    for path, text in HEADS.items():
        (tmp_path / path).write_text(f"# Page\n\n{text}\n## Next\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(**changes):
    """docs/results.json with an entry for the recipe `one` as it stands."""
    (one,) = (recipe for recipe in all_recipes() if recipe.name == "one")
    MEASURED.write_text(json.dumps({"one": {**ENTRY, "digest": one.digest, **changes}}))


def rows(path):
    return [line for line in texts()[path].splitlines() if line.startswith("| `")]


def test_the_pages_and_headers_of_this_checkout_are_what_the_script_writes():
    for path, text in texts().items():
        assert path.read_text(encoding="utf-8") == text, f"run python -m scripts.results ({path})"


def test_every_recipe_has_a_row_and_no_result_is_of_an_unknown_recipe():
    names = {recipe.name for recipe in all_recipes()}
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in names)
    assert not MEASURED.exists() or set(json.loads(MEASURED.read_text())) <= names


def test_the_grayscale_recipe_is_right_on_photographs_recoloured_red_where_colour_misleads():
    found = {r.name: r.entry["recoloured"] for r in all_recipes() if "recoloured" in r.entry}
    if not {"lenet_rmb", "lenet_rmb_grayscale"} <= set(found):
        pytest.skip("the recipes are not measured")
    assert min(found["lenet_rmb_grayscale"]) == 1.0
    assert max(found["lenet_rmb"]) < 0.8


def test_mean_deviation_seeds_time_and_commit_stand_in_the_tables(checkout):
    measured()
    row = "| `one` | RMB: 7,259 + 967 + 4,443 | **0.8900** ± 0.0100 (3) | 9.0s | 0123abc |"
    assert rows(READMES[0]) == rows(READMES[1]) == [row]
    first, second, how = rows(PAGE)
    assert "| **0.8900** ± 0.0100 | 0: 0.8800, 1: 0.8900, 2: 0.9000 |" in first
    assert "| `two` | | | not measured: not yet |" in second.replace("|  |  |", "| | |")
    assert (
        "| 30 | Abacus, 2 cores, cpu (2 threads) | bf16 | 2.14.1 | 0123abc | 2026-11-30 | 2% |"
        in how
    )
    header = texts()[Path("configs/one.yaml")].splitlines()[:3]
    assert header == [
        "# One.",
        "# Measured: test accuracy 0.8900 ± 0.0100, seeds 0, 1, 2, RMB",
        "#   9.0s of training, cpu (2 threads), bf16, commit 0123abc",
    ]


def test_a_changed_recipe_is_told_as_older_and_a_comment_changes_nothing(checkout, capsys):
    measured()
    file = Path("configs/one.yaml")
    file.write_text(file.read_text() + "# a comment\n")
    assert "older" not in texts()[PAGE] and r"\*" not in texts()[READMES[0]]
    file.write_text(file.read_text().replace("lr: 0.01", "lr: 0.02"))
    assert "**0.8900** ± 0.0100 (measured with an older file)" in texts()[PAGE]
    assert r"**0.8900** ± 0.0100 (3) \* |" in texts()[READMES[0]]
    assert "# Measured with an older file: test" in texts()[file]
    assert results.main(["--list", "--data", "absent"]) == 0
    assert "measured with an older file; cannot be measured: its data" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("configs/three.yaml", "a: [1\n", "configs/three.yaml cannot be read as YAML"),
        ("docs/results.json", "{", "docs/results.json is damaged"),
        ("docs/results.json", "[1]", "docs/results.json is damaged"),
    ],
)
def test_a_damaged_file_is_told_by_its_name(name, text, told, checkout, capsys):
    Path(name).write_text(text)
    assert results.main(["--list"]) == 2
    assert told in capsys.readouterr().err


def test_a_named_folder_that_is_missing_is_told_and_nothing_is_written(checkout, capsys):
    before = {path: path.read_text() for path in checkout.rglob("*.*")}
    assert results.main(["--only", "one", "--rmb", "/nosuch"]) == 2
    assert "--rmb /nosuch: there is no such folder" in capsys.readouterr().err
    assert {path: path.read_text() for path in checkout.rglob("*.*")} == before


def test_a_sweep_is_no_recipe_a_misspelt_one_is_told_and_a_seed_is_no_negative_number(
    checkout, capsys
):
    Path("configs/four.yaml").write_text("base: one.yaml\nsweep: {seeds: [1, 2]}\n")
    assert [recipe.name for recipe in all_recipes()] == ["one", "two"]
    Path("configs/one.yaml").write_text(Path("configs/one.yaml").read_text().replace("tr", "rt"))
    assert results.main(["--list"]) == 2
    assert "configs/one.yaml lacks dataset, model or train" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        results.main(["--seeds", "0", "-1"])
    assert "--seeds -1: expected whole numbers" in capsys.readouterr().err


def test_a_time_beside_other_programs_is_marked(checkout):
    measured(others=None)  # nobody knows
    assert "| 9.0s † |" in texts()[READMES[0]]
    measured(others=0.4)
    assert "| 9.0s † |" in texts()[READMES[0]] and "| 40% |" in texts()[PAGE]


def test_writing_twice_changes_nothing(checkout):
    measured()
    first = texts()
    for path, text in first.items():
        path.write_text(text)
    assert texts() == first


def seeds_in(command):
    """The seeds of the sweep that a command starts."""
    return yaml.safe_load(Path(command[2]).read_text())["sweep"]["seeds"]


def test_a_killed_call_resumes_a_finished_one_runs_nothing_and_more_seeds_are_added(
    checkout, notes, monkeypatch
):
    command = ["--rmb", str(notes), "--only", "one", "two", "--seeds", "0", "1"]
    monkeypatch.setattr(results, "RECOLOURED", ("one",))
    start = results.code_of_command

    def code_of_command(argv, output):  # a prediction needs no process of its own
        return predict(argv[1:]) if argv[0] == "trainer.predict" else start(argv, output)

    monkeypatch.setattr(results, "code_of_command", code_of_command)
    first = Path("runs/results") / f"one-{all_recipes()[0].digest}" / "t000-seed0"
    process = fork(checkout / "killed.txt", lambda: results.main(command))
    end = time.monotonic() + 120
    while not (first / "end.json").exists() and process.is_alive() and time.monotonic() < end:
        time.sleep(0.05)
    process.kill()
    process.join()
    kept = (first / "end.json").read_bytes()
    assert not MEASURED.exists()

    assert results.main(command) == 0
    assert (first / "end.json").read_bytes() == kept
    entry = json.loads(MEASURED.read_text())["one"]
    assert entry["seeds"] == [0, 1] and len(entry["accuracy"]) == 2
    tested = [
        json.loads(path.read_text())["test"]["accuracy"]
        for path in sorted(first.parent.glob("*/*/result.json"))
    ]
    assert entry["accuracy"] == tested
    assert len(entry["recoloured"]) == 2 and all(0 <= share <= 1 for share in entry["recoloured"])
    assert sum(entry["images"]) == 50 and entry["others"] is None
    assert f"| {' + '.join(map(str, entry['images']))} |" in PAGE.read_text()
    assert "not measured: its weights must be downloaded" in PAGE.read_text()
    assert yaml.safe_load(Path("configs/two.yaml").read_text())["model"]["weights"] == "DEFAULT"

    monkeypatch.setattr(results, "code_of_command", lambda *argv: pytest.fail(f"it ran {argv}"))
    assert results.main(command) == 0
    assert results.main(command[:-2] + ["1"]) == 0
    assert json.loads(MEASURED.read_text())["one"] == entry
    assert results.main([*command, "--again"]) == 5  # it would show the same runs again
    asked = []
    monkeypatch.setattr(results, "code_of_command", lambda argv, _: asked.append(seeds_in(argv)))
    shutil.rmtree("runs")
    assert results.main([*command, "2"]) == 5  # nothing ran, so there is no result
    assert asked == [[0], [0, 1], [0, 1, 2]]  # no run beside another; no seed is forgotten
    monkeypatch.setattr(results, "code_of_command", lambda *argv: 75)
    assert results.main([*command, "2"]) == 75
    assert json.loads(MEASURED.read_text())["one"] == entry
