"""What the shipped YAMLs are for, shown by training them on real photographs or drawn notes."""

import json
from pathlib import Path

import pytest
import torch

from datasets.draw import draw
from models.lenet import LeNet
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.loop.fit import fit
from trainer.process.stop import StopRequest

REAL_DATA = Path("../shared/data")


def result_of(config: str, runs: Path, *overrides: str):
    job = prepare(load_config(f"configs/{config}.yaml", overrides), print)
    with StopRequest() as stop:
        return json.loads((fit(job, runs, None, print, stop) / "result.json").read_text())


@pytest.mark.skipif(not (REAL_DATA / "rmb").exists(), reason="the real photographs are not here")
def test_lenet_knows_every_real_photograph_of_the_test_split(tmp_path):
    result = result_of("lenet_rmb", tmp_path, f"dataset.root={REAL_DATA / 'rmb'}")
    assert result["test"]["accuracy"] == 1.0
    assert result["best"]["epoch"] <= 10
    assert result["dataset"]["note"] == ""
    weights = torch.load(next(tmp_path.rglob("model.pt")), weights_only=True)
    LeNet(num_classes=2, in_channels=3).load_state_dict(weights)


def test_the_grayscale_recipe_trained_on_the_blue_note_knows_the_red_one(tmp_path):
    """Train on the blue 100 and the dark red 1; test on the red 100 and on other 1s."""
    draw(tmp_path / "drawn", per_class=80, seed=1)
    for value, series in (("1", "1990"), ("100", "1990"), ("100", "1999")):
        notes = sorted((tmp_path / "drawn" / value).glob(f"*-{series}.jpg"))
        for number, note in enumerate(notes):
            held_out = series == "1999" or (value == "1" and number % 4 == 0)
            target = tmp_path / "notes" / ("test" if held_out else "train") / value / note.name
            target.parent.mkdir(parents=True, exist_ok=True)
            note.rename(target)
    overrides = [f"dataset.root={tmp_path / 'notes'}", "train.device=cpu"]
    in_colour = result_of("lenet_rmb", tmp_path / "runs", *overrides)
    in_grey = result_of("lenet_rmb_grayscale", tmp_path / "runs", *overrides)
    assert in_grey["test"]["accuracy"] >= 0.95
    assert in_colour["test"]["accuracy"] < 0.8
