"""An image may have several labels: from the table to thresholds, result, predictions and files."""

import csv
import json
import runpy
import shutil
import sys
from itertools import islice
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image

from tests.test_resume import stopped_at
from tests.test_training import assert_same_run
from trainer.build.model import build_loss
from trainer.build.prepare import prepare
from trainer.build.trained import load_trained
from trainer.components.decisions import LEAST
from trainer.config import load_config
from trainer.evaluate import main as evaluate
from trainer.explain import main as explain
from trainer.export import main as export
from trainer.input.data import load_data
from trainer.input.subset import order_of
from trainer.insight.data_facts import inspect_dataset
from trainer.loop import guard
from trainer.loop.guard import number_correct
from trainer.loop.model_summary import real_steps
from trainer.new import main as new
from trainer.predict import main as predict
from trainer.process.errors import ConfigError, RunError
from trainer.run.disk import read_json
from trainer.run.folder import read_metrics
from trainer.train import main
from trainer.tuning.race import contender_of, do_steps
from trainer.tuning.rates import Tried, take_probe, train_at
from transforms.keyed import balanced

LABELS = ["red", "green", "blue"]
YAML = """
name: small
dataset:
  {{name: CSVImages, root: {root}, csv: {root}/labels.csv, label_columns: [red, green, blue]}}
transforms:
  train:
    - {{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
  eval:
    - {{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
loader: {{batch_size: 16, workers: 0}}
model: {{name: MLP, hidden: [16]}}
loss: {{name: BCEWithLogitsLoss}}
optimizer: {{name: AdamW, lr: 0.005}}
metrics: [mean_average_precision, accuracy, macro_f1, average_precision]
train: {{epochs: 3, device: cpu}}
log: {{every: 2st, images: 4}}
"""


@pytest.fixture(scope="session")
def coloured(tmp_path_factory):
    """240 pictures; a label a channel that is bright. One in eight is blue; some have no label."""
    root, drawn = tmp_path_factory.mktemp("coloured"), np.random.default_rng(0)
    rows = ["path," + ",".join(LABELS)]
    for number in range(240):
        has = [number % 2, number // 2 % 2, int(number % 8 == 5)]
        pixels = drawn.integers(0, 120, (8, 8, 3)) + 100 * np.array(has)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number:03d}.png")
        rows.append(f"{number:03d}.png," + ",".join(map(str, has)))
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def config_file(tmp_path, coloured):
    path = tmp_path / "small.yaml"
    path.write_text(YAML.format(root=coloured))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, coloured):
    """A run of the file, trained once."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "small.yaml").write_text(YAML.format(root=coloured))
    argv = ["--config", str(folder / "small.yaml"), "--runs", str(folder / "runs")]
    assert main([*argv, "train.epochs=12"]) == 0
    (run,) = (folder / "runs" / "small").iterdir()
    return run


def truth(coloured, names):
    with open(coloured / "labels.csv") as file:
        rows = {row["path"]: [int(row[name]) for name in LABELS] for row in csv.DictReader(file)}
    return np.array([rows[name] for name in names])


def predicted(run, paths, capsys, *more):
    capsys.readouterr()
    assert predict([str(run), *map(str, paths), "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_test_result_is_scikit_learns_of_what_predict_says(trained, coloured, capsys):
    names = list(read_json(trained / "split.json")["test"])
    answers = predicted(trained, [coloured / name for name in names], capsys)
    chances = np.array([[one["probabilities"][name] for name in LABELS] for one in answers])
    found = np.array([[name in one["labels"] for name in LABELS] for one in answers])
    y, result = truth(coloured, names), read_json(trained / "result.json")["test"]
    occur = np.flatnonzero((y | found).any(0)).tolist()
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(y, found),
        "macro_f1": sklearn.metrics.f1_score(y, found, labels=occur, average="macro"),
        "mean_average_precision": sklearn.metrics.average_precision_score(
            y[:, y.any(0)], chances[:, y.any(0)]
        ),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert expected["mean_average_precision"] > 0.95  # it has learnt
    thresholds = np.array(read_json(trained / "model.json")["thresholds"], np.float32)
    assert (found == (chances.astype(np.float32) >= thresholds)).all()


def test_the_thresholds_are_the_best_on_val(trained, coloured, capsys):
    names = list(read_json(trained / "split.json")["val"])
    answers = predicted(trained, [coloured / name for name in names], capsys)
    y = truth(coloured, names)
    for k, name in enumerate(LABELS):
        p = np.array([one["probabilities"][name] for one in answers])
        found = np.array([name in one["labels"] for one in answers])
        if min(y[:, k].sum(), (1 - y[:, k]).sum()) >= LEAST:
            best = max(sklearn.metrics.f1_score(y[:, k], p >= t) for t in p)
            assert sklearn.metrics.f1_score(y[:, k], found) == pytest.approx(best)


def test_steps_of_find_lr_speed_and_a_dry_run_count_as_those_of_a_run(config_file, monkeypatch):
    def counted(self, micro, loss, logits):
        right = ((logits > 0) == (micro.labels > 0.5)).all(dim=1).sum()
        count.append((guard.number_correct(logits, micro.labels, self.several_labels), right))
        add(self, micro, loss, logits)

    add, count = guard.Guard.add, list[tuple[Any, Any]]()
    monkeypatch.setattr(guard.Guard, "add", counted)
    job = prepare(load_config(config_file), print)
    list(real_steps(job, islice(job.train_loader.epoch(0), 3)))
    do_steps(contender_of(job, 1), 3)
    weights = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    list(train_at(job, weights, take_probe(job), Tried(1e-3, 3), 0))
    assert len(count) == 9 and all(found == right for found, right in count)


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluate_gives_the_digits_of_the_run(trained, split, capsys):
    capsys.readouterr()
    assert evaluate([str(trained), "--split", split, "--json"]) == 0
    again, result = json.loads(capsys.readouterr().out), read_json(trained / "result.json")
    known = result["test"]
    if split == "val":
        known = {k.removeprefix("val/"): v for k, v in result["best"].items() if "val/" in k}
    assert {name: again[name] for name in known} == known


def test_evaluate_prints_a_line_for_each_label(trained, capsys):
    capsys.readouterr()
    assert evaluate([str(trained)]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = read_json(trained / "result.json")["test"]["average_precision"]
    for name, value in zip(LABELS, values, strict=True):
        assert [name, f"{value:.6f}"] in [line.split() for line in lines]


def test_a_label_that_few_val_images_have_keeps_its_threshold_and_a_note_tells_it(
    trained, coloured, tmp_path, capsys
):
    rows = (coloured / "labels.csv").read_text().splitlines()
    kept = [row for row in rows if not row.endswith(",1") or row[:3] < "100"]
    (tmp_path / "few.csv").write_text("\n".join(kept) + "\n")
    file = tmp_path / "few.yaml"
    file.write_text(
        YAML.format(root=coloured).replace(f"{coloured}/labels.csv", str(tmp_path / "few.csv"))
    )
    assert main(["--config", str(file), "--runs", str(tmp_path), "train.epochs=1"]) == 0
    assert "'blue'" in capsys.readouterr().out.partition("too few images with, or without,")[2]
    (run,) = (tmp_path / "small").iterdir()
    assert read_json(run / "model.json")["thresholds"][2] == 0.5


def test_exported_programs_predict_the_same_labels(
    trained, coloured, tmp_path, monkeypatch, capsys
):
    paths = sorted(coloured.glob("0[0-2]?.png"))
    expected = {one["path"]: one["labels"] for one in predicted(trained, paths, capsys)}
    for kind in ("onnx", "safetensors", "pt2"):
        assert export([str(trained), "--format", kind, "--output", str(tmp_path)]) == 0
    programs = {
        "onnx": tmp_path / "small_onnx.py",
        "pt2": tmp_path / "small_pt2.py",
        "safetensors": tmp_path / "small-safetensors" / "use.py",
    }
    for program in programs.values():
        monkeypatch.chdir(program.parent)
        monkeypatch.setattr(sys, "argv", [program.name, *map(str, paths)])
        capsys.readouterr()
        runpy.run_path(program.name, run_name="__main__")
        found = {str(path): set[str]() for path in paths}
        told = capsys.readouterr().out
        for path, label, *_ in (line.split("\t") for line in told.splitlines()):
            found[path] |= {label} - {"-"}
        assert found == {path: set(labels) for path, labels in expected.items()}
    assert any(len(labels) > 1 for labels in expected.values())
    assert any(not labels for labels in expected.values())


def test_the_table_and_the_csv_of_predictions_name_all_labels(trained, coloured, capsys):
    paths = sorted(coloured.glob("00?.png"))
    expected = predicted(trained, paths, capsys)
    assert predict([str(trained), *map(str, paths), "--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    for row, one in zip(rows, expected, strict=True):
        assert row["predicted"] == ";".join(name for name in LABELS if name in one["labels"])
        assert row["probability"] == ""
    assert predict([str(trained), *map(str, paths)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == sum(max(1, len(one["labels"])) for one in expected)


def test_the_csv_of_files_that_cannot_be_read_has_the_header(trained, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"none")
    assert predict([str(trained), str(tmp_path / "broken.png"), "--csv"]) == 3
    header = ["id,sha256,part,true,predicted,probability,loss", *(f"p:{one}" for one in LABELS)]
    assert capsys.readouterr().out.splitlines() == [",".join(header)]


def test_explain_draws_a_grad_cam_for_each_predicted_label(coloured, train, tmp_path, capsys):
    run = train("model={name: LeNet}", "transforms.train.0={name: Resize, size: [32, 32]}",
                "transforms.eval.0={name: Resize, size: [32, 32]}", "train.epochs=1")  # fmt: skip
    card = read_json(run / "model.json")
    (run / "model.json").write_text(json.dumps(card | {"thresholds": [0.0, 1.0, 0.0]}))
    out = tmp_path / "explained"
    assert explain([str(run), str(coloured / "003.png"), "--output", str(out)]) == 0
    assert len(list(out.glob("grad_cam*.png"))) == 2
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines if line.endswith("  predicted")} == {"red", "blue"}
    assert sorted(read_json(out / "explanation.json")["predicted"]) == ["blue", "red"]
    (run / "model.json").write_text(json.dumps(card | {"thresholds": [1.0, 1.0, 1.0]}))
    assert explain([str(run), str(coloured / "003.png"), "--output", str(out)]) == 0
    out, err = capsys.readouterr()
    assert (
        "predicted" not in out and "no label is predicted; the evidence is of the likeliest" in err
    )


def test_a_stopped_and_resumed_run_has_the_bits_of_one_that_was_not(train, monkeypatch, tmp_path):
    mixes = (
        "transforms.train=[{name: MixUp, alpha: 0.5}]",
        "transforms.eval=[{name: ToDtype, dtype: float32, scale: true}]",
        "loader.sampling=balanced",
        "loss={name: BCEWithLogitsLoss, pos_weight: balanced}",
    )
    whole = train(*mixes)
    stopped_at(train, monkeypatch, 7, *mixes)
    (stopped,) = (run for run in (tmp_path / "runs" / "small").iterdir() if run != whole)
    train(*mixes, resume=stopped)
    assert_same_run(whole, stopped)
    assert (
        read_json(stopped / "model.json")["thresholds"]
        == read_json(whole / "model.json")["thresholds"]
    )


def test_two_processes_train_and_choose_as_one(together, train, tmp_path):
    one = train()
    assert together(2) == [0, 0]
    (two,) = (tmp_path / "together" / "small").iterdir()
    kept = [read_json(run / "model.json")["thresholds"] for run in (one, two)]
    assert kept[0] == pytest.approx(kept[1], abs=1e-4)
    results = [read_json(run / "result.json")["test"] for run in (one, two)]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-4)


def test_report_and_board_speak_of_labels(trained):
    text = (trained / "report" / "report.md").read_text()
    assert "## Labels" in text and "average precision" in text and "## Label balance" in text
    page = (trained / "report" / "report.html").read_text()
    assert "the row's label is missed" in page.replace("&#39;", "'")
    assert "Class balance" not in text + page


def located(config_file, *overrides):
    with pytest.raises(ConfigError) as raised:
        load_config(config_file, overrides)
    return str(raised.value)


def test_losses_and_metrics_of_one_class_are_located_faults_before_anything_runs(config_file):
    text = located(config_file, "loss=CrossEntropyLoss", "metrics=[accuracy, top_k]")
    assert "loss" in text and "BCEWithLogitsLoss" in text and "metrics.1" in text
    text = located(config_file, "loss={name: BCEWithLogitsLoss, weight: balanced}")
    assert "loss.weight" in text and "pos_weight" in text


def test_the_default_loss_is_located_too(config_file):
    config_file.write_text(config_file.read_text().replace("loss: {name: BCEWithLogitsLoss}\n", ""))
    assert "BCEWithLogitsLoss" in located(config_file)


def test_pos_weight_balanced_is_the_ratio_of_images_without_and_with_a_label(config_file):
    config = load_config(config_file, ["loss={name: BCEWithLogitsLoss, pos_weight: balanced}"])
    data = load_data(config, torch.device("cpu"))
    labels = data.subsets["train"].labels
    weight = build_loss(config, labels, data.classes).pos_weight
    assert weight is not None
    expected = (labels == 0).sum(dim=0) / (labels == 1).sum(dim=0)
    torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("loss", ["SigmoidFocalLoss", "AsymmetricLoss", "BCELoss"])
def test_each_loss_of_several_labels_trains(train, loss):
    run = train(f"loss={{name: {loss}}}", "train.epochs=6", "optimizer.lr=0.02")
    assert read_json(run / "result.json")["test"]["mean_average_precision"] > 0.9


def test_balanced_sampling_visits_the_images_of_a_rare_label_as_often_as_the_others():
    labels = torch.zeros(1000, 2)
    labels[:, 0] = torch.arange(1000) % 2
    labels[::100, 1] = 1  # 1:100
    visited = labels[order_of(labels, 0, 0, "balanced") % 1000]
    shares = [int((visited[:, 1] == 1).sum()), int((visited.sum(dim=1) == 0).sum())]
    assert shares == pytest.approx([333, 333], abs=2)
    one_class = torch.arange(10) % 3
    assert torch.equal(order_of(one_class, 0, 5, "balanced"), balanced(one_class, 0, 5))


def test_loaded_thresholds_that_are_not_one_a_label_are_refused(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    card = read_json(copy / "model.json")
    (copy / "model.json").write_text(json.dumps(card | {"thresholds": [0.5]}))
    with pytest.raises(RunError, match="damaged"):
        load_trained(copy)


def test_the_first_yaml_for_such_a_table_trains_with_what_fits_it(coloured, tmp_path, capsys):
    out = tmp_path / "first.yaml"
    assert new(["--data", str(coloured), "--out", str(out)]) == 0  # it has prepared the training
    config = load_config(out)
    assert config.loss.name == "BCEWithLogitsLoss"
    assert config.train.monitor == "val/mean_average_precision"
    assert config.dataset.arguments["label_columns"] == LABELS


def test_evaluate_predicts_from_the_thresholds_of_the_run_on(trained, coloured, tmp_path, capsys):
    copy = shutil.copytree(trained, tmp_path / "small" / trained.name)
    card = read_json(copy / "model.json")
    (copy / "model.json").write_text(json.dumps(card | {"thresholds": [0.0, 0.0, 0.0]}))
    capsys.readouterr()
    assert evaluate([str(copy), "--json"]) == 0
    y = truth(coloured, list(read_json(copy / "split.json")["test"]))
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(y.all(axis=1).mean())


def test_in_training_an_image_is_right_if_all_its_labels_are(trained):
    epochs = [line for line in read_metrics(trained / "metrics.jsonl") if "val/loss" in line]
    assert epochs[-1]["train/accuracy_epoch"] > 0.95
    logits = torch.tensor([[2.0, 1.0], [2.0, -1.0], [-1.0, -2.0]])
    labels = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    assert number_correct(logits, labels, several_labels=True).item() == 2


def test_the_data_report_counts_images_and_names_pos_weight(coloured, tmp_path):
    rows = (coloured / "labels.csv").read_text().splitlines()
    kept = [row for row in rows if not row.endswith(",1") or row[:3] < "040"]
    (tmp_path / "rare.csv").write_text("\n".join(kept) + "\n")
    file = tmp_path / "rare.yaml"
    table = str(tmp_path / "rare.csv")
    file.write_text(YAML.format(root=coloured).replace(f"{coloured}/labels.csv", table))
    facts = inspect_dataset(load_config(file), search_near=False).facts
    assert sum(facts["images_of_splits"].values()) == len(kept) - 1
    assert any("loss.pos_weight: balanced" in line for line in facts["warnings"])
