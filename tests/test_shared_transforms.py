"""transforms.both: steps of train and eval that are written once."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.build.trial import check_components
from trainer.config import load_config
from trainer.config.components import published
from trainer.config.notes import as_lines, notes_on_transforms
from trainer.process.errors import ConfigError
from trainer.sweeping.folder import open_folder
from trainer.sweeping.plan import load_sweep
from trainer.train import main

RESIZE = {"name": "Resize", "size": [32, 32]}
CROP = {"name": "RandomCrop", "size": 32, "padding": 4}
NORMALIZE = {"name": "Normalize", "mean": [0.5], "std": [0.25]}


@pytest.fixture
def load(tmp_path):
    """Load a configuration with these transforms; its file is exp.yaml."""

    def load(transforms, *overrides):
        data = {
            "dataset": {"name": "RMB", "root": str(tmp_path)},
            "transforms": transforms,
            "model": "LeNet",
            "optimizer": {"name": "SGD", "lr": 0.1},
            "train": {"epochs": 1},
        }
        path = tmp_path / "exp.yaml"
        path.write_text(yaml.safe_dump(json.loads(json.dumps(data)), sort_keys=False))
        return load_config(path, overrides)

    return load


def faults_of(load, *arguments):
    with pytest.raises(ConfigError) as caught:
        load(*arguments)
    return [(fault.path, fault.message) for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("written", "train", "evaluation"),
    [
        (
            {"both": [RESIZE, "own", NORMALIZE], "train": [CROP]},
            [RESIZE, CROP, NORMALIZE],
            [RESIZE, NORMALIZE],
        ),
        ({"both": [RESIZE, NORMALIZE], "train": [CROP]}, [RESIZE, NORMALIZE, CROP], None),
        ({"both": ["own", NORMALIZE], "eval": [RESIZE]}, [NORMALIZE], [RESIZE, NORMALIZE]),
        ({"both": [RESIZE, NORMALIZE]}, [RESIZE, NORMALIZE], [RESIZE, NORMALIZE]),
        ({"both": [], "train": [CROP], "eval": [RESIZE]}, [CROP], [RESIZE]),
        ({"both": ["own"], "train": [CROP]}, [CROP], []),
    ],
)
def test_both_is_the_same_as_writing_its_steps_in_both_lists(load, written, train, evaluation):
    by_hand = {"train": train, "eval": [RESIZE, NORMALIZE] if evaluation is None else evaluation}
    assert load(written) == load(by_hand)
    assert load(written).model_dump() == load(by_hand).model_dump()


def test_what_a_run_keeps_and_what_is_printed_load_as_the_same_configuration(load, tmp_path):
    config = load({"both": [RESIZE, "own", NORMALIZE], "train": [CROP]})
    for number, text in enumerate((config.dump(), config.print())):
        again = tmp_path / f"again{number}.yaml"
        again.write_text(text)
        assert load_config(again) == config


def test_each_printed_value_names_the_line_of_both_or_the_command_line(load, tmp_path):
    given = {"both": [RESIZE, "own", NORMALIZE], "train": [CROP]}
    printed = load(given, "transforms.both.0.size=[48,48]").print().splitlines()
    lines = (tmp_path / "exp.yaml").read_text().splitlines()
    sizes = [line for line in printed if "size: [48, 48]" in line]
    assert len(sizes) == 2 and all(line.endswith("# command line") for line in sizes)
    at = lines.index("  - name: Normalize") + 1
    shown = [line for line in printed if "name: Normalize" in line]
    assert len(shown) == 2 and all(line.endswith(f"exp.yaml:{at}") for line in shown)


def test_a_fault_in_both_is_told_once_at_the_place_where_it_is_written(load):
    wrong = {"name": "Resize", "size": [32, 32], "sise": 3}
    flip = {"name": "RandomHorizontalFlip"}
    given = {"both": [wrong, "own", flip, "own", "Resiz"], "train": [{"name": "RandomCrop"}]}
    paths = dict(faults_of(load, given))
    assert paths.keys() == {
        "transforms.both.0.sise",
        "transforms.both.2.name",
        "transforms.both.3",
        "transforms.both.4.name",
        "transforms.both.4.size",
        "transforms.train.0.size",
    }
    assert paths["transforms.both.2.name"].endswith("move it to transforms.train")


@pytest.mark.parametrize(
    "given",
    [
        {"train": ["own"], "eval": [RESIZE]},
        {"both": [RESIZE], "train": ["own"]},
        {"both": [RESIZE], "train": [{"name": "RandomApply", "transforms": ["own"]}]},
    ],
)
def test_own_in_another_list_is_one_fault(load, given):
    ((path, message),) = faults_of(load, given)
    assert path.startswith("transforms.train.0") and "stands once, in transforms.both" in message


def test_own_beside_other_faults_hides_none(load):
    found = faults_of(load, {"train": [{"name": "own"}, "Resiz"], "eval": ["own"]})
    paths = [path for path, _ in found]
    assert paths[:2] == ["transforms.train.0.name", "transforms.train.1.name"]
    assert "transforms.eval.0" in paths and "transforms.eval.0.name" not in paths


@pytest.mark.parametrize(
    ("item", "key", "message"),
    [
        ("Own", "name", "unknown transform 'Own'; did you mean own?"),
        ({"name": "onw", "size": 3}, "name", "unknown transform 'onw'; did you mean own?"),
        ({"name": "own"}, "name", "own stands without name; write own"),
        (
            {"name": "own", "size": 3},
            "name",
            "own stands without name and takes no arguments; write own",
        ),
        ({"own": None}, "own", "write own, with nothing below it"),
        ("Resiz", "name", "unknown transform 'Resiz'; did you mean 'Resize'?"),
        (5, "", "expected own or a transform as {name: ..., ...}, got 5"),
    ],
)
def test_a_slip_in_writing_own_is_told_as_such(load, item, key, message):
    found = faults_of(load, {"both": [RESIZE, item]})
    assert found[0] == (f"transforms.both.1.{key}".rstrip("."), message)
    assert len(found) == 1 or item == "Resiz"  # Resize needs a size


@pytest.mark.parametrize("key", ["size", "size.0", "interpolation"])
def test_an_override_of_an_argument_of_own_says_that_it_takes_none(load, key):
    given, typed = {"both": [RESIZE, "own", NORMALIZE]}, f"transforms.both.1.{key}"
    told = "transforms.both.1 is own, which takes no arguments"
    assert faults_of(load, given, f"{typed}=3") == [(typed, told)]


@pytest.mark.parametrize(
    ("typed", "place"),
    [
        ("transforms.eval.0.size=3", "transforms.both.0.size=3"),
        ("transforms.eval.1.mean=3", "transforms.both.2.mean=3"),
        ("transforms.train.1.size=3", "transforms.train.0.size=3"),
        ("transforms.train.Normalize.std=3", "transforms.both.2.std=3"),
        ("transforms.eval.2.size=3", None),
        ("transforms.eval.own.size=3", None),
    ],
)
def test_an_override_of_a_step_that_stands_in_both_is_told_its_place(load, typed, place):
    given = {"both": [RESIZE, "own", NORMALIZE], "train": [CROP]}
    ((path, message),) = faults_of(load, given, typed)
    assert path == typed.partition("=")[0] and "is a list with" in message
    assert message.endswith(f"; write {place}") if place else "write" not in message


@pytest.mark.parametrize("way", ["constructor", "schema"])
def test_a_fault_found_when_a_transform_is_built_is_told_once_at_its_place(load, way):
    config = load({"both": ["own", {**RESIZE, "interpolation": "x"}], "train": [CROP, CROP]})
    if way == "schema":
        faults = config.check_arguments(published())
    else:
        faults = list(ConfigError(list(check_components(config))).faults)
    assert [fault.path for fault in faults] == ["transforms.both.1.interpolation"]


def test_a_file_with_one_list_only_and_without_both_is_refused(load):
    found = faults_of(load, {"train": [RESIZE]})
    assert [path for path, _ in found] == ["transforms.eval"]
    assert "'eval' is missing" in found[0][1]


def test_notes_see_the_full_lists_and_tell_each_thing_once(load):
    late = {"name": "ColorJitter", "brightness": 0.2}
    config = load({"both": [RESIZE, NORMALIZE], "train": [late]})  # the own steps come at the end
    (note,) = as_lines(config, notes_on_transforms(config))
    assert "transforms.train.0: ColorJitter takes pixels of 0 to 1" in note
    config = load({"both": [{"name": "Pad", "padding": 0}]})
    (note,) = as_lines(config, notes_on_transforms(config))
    assert "transforms.both.0: Pad changes no image" in note
    config = load({"both": [RESIZE], "train": [NORMALIZE]})
    (note,) = as_lines(config, notes_on_transforms(config))
    assert "transforms.train.0: Normalize is not in transforms.eval" in note


def test_a_sweep_varies_a_step_of_both_in_both_lists(load, tmp_path):
    load({"both": [RESIZE, "own", NORMALIZE], "train": [CROP]})
    key = "transforms.both.0.size"
    sweep: dict[str, Any] = {"method": "grid", "params": {key: [[32, 32], [48, 48]]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"base": "exp.yaml", "sweep": sweep}))
    plan = load_sweep(tmp_path / "sweep.yaml")
    config = load_config(tmp_path / "exp.yaml", [*plan.overrides, f"{key}=[48,48]"])
    lists = config.transforms.train, config.transforms.eval
    assert [found[0].arguments["size"] for found in lists] == [[48, 48], [48, 48]]
    folder, _ = open_folder(plan, tmp_path / "runs")  # its runs load base.yaml there
    for change in (f"{key}=[48,48]", "transforms.train=[{name: RandomCrop, size: 24}]"):
        files = folder / "base.yaml", tmp_path / "exp.yaml"
        runs, checked = (load_config(file, [change]) for file in files)
        assert runs.dump() == checked.dump()
    sweep["params"] = {"transforms.both.0.sise": [1, 2]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"base": "exp.yaml", "sweep": sweep}))
    with pytest.raises(ConfigError, match="sise"):
        load_sweep(tmp_path / "sweep.yaml")


def test_a_run_with_both_has_the_bits_of_a_run_with_two_lists(config_file, tmp_path):
    data = yaml.safe_load(Path(config_file).read_text())
    resize, crop, normalize = data["transforms"]["train"]
    data["transforms"] = {"both": [resize, "own", normalize], "train": [crop]}
    shared = tmp_path / "shared.yaml"
    shared.write_text(yaml.safe_dump({**data, "name": "two"}))
    found = []
    for file, name in ((config_file, "one"), (shared, "two")):
        runs = tmp_path / name
        assert (
            main(["--config", str(file), "--runs", str(runs), "train.epochs=1", "log.show=[]"]) == 0
        )
        (result,) = runs.rglob("result.json")
        found.append(json.loads(result.read_text())["best"])
    assert found[0] == found[1]
