"""Several runs as one: the mean of their probabilities, or the average of their weights."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import sklearn.metrics
import torch
from torch.optim.swa_utils import update_bn

from models.ensemble import Ensemble
from tests.noisy_squares import YAML as NOISY
from tests.noisy_squares import pictures_of, save_pictures, write_squares
from tests.test_several_labels import LABELS, YAML
from tests.test_several_labels import coloured as coloured
from trainer.build.prepare import prepare
from trainer.build.trained import load_trained
from trainer.combine import main
from trainer.components.losses import probabilities
from trainer.config import load_config
from trainer.evaluate import main as evaluate
from trainer.explain import main as explain
from trainer.export import main as export
from trainer.input.data import digest_of_split
from trainer.loop.fit import fit
from trainer.predict import main as predict
from trainer.process.errors import ConfigError
from trainer.process.stop import StopRequest
from trainer.run.disk import read_json, write_json
from trainer.run.tensors import load_tensors, save_tensors
from trainer.train import main as train_main

MLP = ["model={name: MLP, hidden: [8]}"]


@pytest.fixture
def combine(tmp_path, capsys):
    """Call the command; its exit code, the new run, and what it printed on stdout and stderr."""

    def command(*arguments):
        capsys.readouterr()  # of trainings
        there = set((tmp_path / "made").glob("*/*"))
        code = main([*map(str, arguments), "--runs", str(tmp_path / "made")])
        new = set((tmp_path / "made").glob("*/*")) - there
        return code, next(iter(new), None), *capsys.readouterr()

    return command


def table_of(run, part=None):
    with open(run / "predictions.csv", encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if part in (None, row["part"])]


def chances_of(rows, classes):
    return np.array([[float(row[f"p:{name}"]) for name in classes] for row in rows])


def answers_to(capsys, *arguments):
    capsys.readouterr()  # of trainings
    assert predict([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def change_weights(run, change):
    """Replace a run's weights by ``change`` of them, as the run would have written them."""
    card, weights = read_json(run / "model.json"), load_tensors(run / "model.pt")
    card["weights"] = save_tensors(run / "model.pt", change(weights))
    write_json(run / "model.json", card)


def permuted(run):
    """The run with its classes in the other order: the same answers, by name."""

    def swap(weights):
        names = list(weights)[-2:]  # weight and bias of the last layer
        return weights | {name: weights[name].flip(0) for name in names}

    change_weights(run, swap)
    card = read_json(run / "model.json")
    write_json(run / "model.json", card | {"classes": card["classes"][::-1]})
    return run


def moved(run, sign, seed=0, size=0.1):
    """The run with noise added to its weights, or the same noise taken away."""
    generator = torch.Generator().manual_seed(seed)

    def change(weights):
        return {
            name: w + sign * size * torch.randn(w.shape, generator=generator)
            if w.is_floating_point() and "running" not in name
            else w
            for name, w in weights.items()
        }

    change_weights(run, change)
    return run


@pytest.mark.parametrize(
    "kind, loss", [("softmax", "CrossEntropyLoss"), ("sigmoids", "BCELoss"), ("shares", "BCELoss")]
)
@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_the_logits_of_an_ensemble_are_those_of_the_mean_of_probabilities(kind, loss, scale):
    logits = scale * torch.randn(3, 200, 5, generator=torch.Generator().manual_seed(scale))
    exact = logits.double()
    if kind == "softmax":
        each = exact.softmax(dim=2)
    else:
        each = exact.sigmoid()
        each = each if kind == "sigmoids" else exact.sigmoid().log().clamp_min(-1e9)
        if kind == "shares":
            each = torch.nn.functional.logsigmoid(exact).softmax(dim=2)
    found = Ensemble([torch.nn.Identity()] * 3, kind).mean(logits)
    assert found.isfinite().all()
    chances = probabilities(loss, found, kind == "sigmoids")
    torch.testing.assert_close(chances.double(), each.mean(dim=0), rtol=0, atol=5e-7)


def test_a_combined_run_answers_with_the_mean_of_its_runs_and_is_measured_by_it(finished, combine):
    runs = [finished("seed=1"), finished("seed=2"), finished("seed=2", *MLP)]
    code, made, out, err = combine(*runs)
    assert code == 0 and "of every member" not in err and made.name in out
    result = read_json(made / "result.json")
    for part in ("val", "test"):
        rows = table_of(made, part)
        mean = np.mean([chances_of(table_of(run, part), ["1", "100"]) for run in runs], axis=0)
        np.testing.assert_allclose(chances_of(rows, ["1", "100"]), mean, rtol=0, atol=2e-7)
        true = [row["true"] for row in rows]
        assert true == [row["true"] for row in table_of(runs[0], part)]
        right = np.array(["1", "100"])[mean.argmax(axis=1)] == true
        assert result[part]["accuracy"] == right.mean()
        mean /= mean.sum(axis=1, keepdims=True)  # of float32
        expected = sklearn.metrics.log_loss(true, mean, labels=["1", "100"])
        assert result[part]["loss"] == pytest.approx(expected, abs=1e-6)
        for member, run in zip(result["members"], runs, strict=True):
            assert member[part]["accuracy"] == read_json(run / "result.json")[part]["accuracy"]
    assert [one["run"] for one in result["members"]] == [str(run) for run in runs]


def test_evaluate_prints_the_numbers_of_a_combined_run_and_resume_is_refused(
    finished, combine, notes, capsys
):
    _, made, _, _ = combine(finished("seed=1"), finished("seed=2"))
    result = read_json(made / "result.json")
    for part in ("val", "test"):
        assert evaluate([str(made), "--split", part, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == result[part]
    assert evaluate([str(made), str(notes)]) == 0  # on labelled images of any place
    assert (made / "evaluations" / notes.name / "report.html").is_file()
    assert train_main(["--resume", str(made)]) == 5
    assert "was combined of other runs" in capsys.readouterr().err


def test_a_member_that_was_stopped_is_told_to_be_the_best_so_far(finished, combine):
    runs = finished(), finished("seed=1")
    result = json.loads((runs[1] / "result.json").read_text())
    (runs[1] / "result.json").write_text(json.dumps(result | {"status": "stopped"}))
    code, _, _, err = combine(*runs)
    assert code == 0
    told = [line for line in err.splitlines() if line.startswith("run ")]
    assert [str(run) in line for run, line in zip(runs, told, strict=True)] == [True, True]
    assert ["the best so far: the run is stopped" in line for line in told] == [False, True]


def test_equal_calls_give_equal_files(finished, combine):
    runs = [finished("seed=1"), finished("seed=2")]
    one, other = combine(*runs)[1], combine(*runs)[1]
    for name in ("model.pt", "model.json", "result.json", "predictions.csv", "split.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_predict_takes_several_runs_and_gives_the_mean_of_what_each_predicts(
    finished, combine, notes, capsys
):
    larger = [f"transforms.{side}.0.size=[34, 34]" for side in ("train", "eval")]
    runs = [finished("seed=1"), finished("seed=2"), finished(*larger, "transforms.train.1.size=34")]
    each = [answers_to(capsys, run, notes) for run in runs]
    for count in (2, 3):  # the third has images of another size
        found = answers_to(capsys, *runs[:count], notes)
        for number, one in enumerate(found):
            for name in ("1", "100"):
                mean = np.mean([all_of[number]["probabilities"][name] for all_of in each[:count]])
                assert one["probabilities"][name] == pytest.approx(mean, abs=2e-7)
            assert one["class"] == max(one["probabilities"], key=one["probabilities"].get)
    code, _, _, err = combine(*runs)
    assert code == 5 and "the model's input" in err and "(3, 34, 34)" in err
    _, made, _, _ = combine(*runs[:2])
    for one, other in zip(answers_to(capsys, made, notes), each[0], strict=True):
        assert one["path"] == other["path"]
    as_one, in_memory = answers_to(capsys, made, notes), answers_to(capsys, *runs[:2], notes)
    for one, other in zip(as_one, in_memory, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=2e-7)


def test_predict_says_which_runs_it_took_and_wants_a_path(finished, notes, tmp_path, capsys):
    run, other = finished("seed=1"), finished("seed=2")
    shutil.copytree(notes / "1", tmp_path / "pictures")
    assert predict([str(run), str(other), str(tmp_path / "pictures")]) == 0
    told = capsys.readouterr().err
    assert f"run     {run}" in told and f"run     {other}" in told
    assert predict([str(run), str(tmp_path / "pictures"), str(notes / "100")]) == 0
    assert "pictures" not in capsys.readouterr().err  # no run: its images are predicted
    assert predict([str(run), str(other)]) == 2
    assert "no PATH" in capsys.readouterr().err
    assert predict([str(run), str(run), str(notes)]) == 2
    assert "named twice" in capsys.readouterr().err


def test_classes_in_another_order_are_matched_by_name(finished, combine, notes, capsys):
    run = finished("seed=1")
    code, made, _, _ = combine(run, permuted(finished("seed=1")))
    assert code == 0
    one, other = table_of(run), table_of(made)
    assert [row["predicted"] for row in one] == [row["predicted"] for row in other]
    difference = chances_of(one, ["1", "100"]) - chances_of(other, ["1", "100"])
    assert abs(difference).max() < 2e-7
    other = permuted(finished("seed=2"))
    alone = [answers_to(capsys, each, notes) for each in (run, other)]
    for a, b, both in zip(*alone, answers_to(capsys, run, other, notes), strict=True):
        for name in ("1", "100"):
            mean = (a["probabilities"][name] + b["probabilities"][name]) / 2
            assert both["probabilities"][name] == pytest.approx(mean, abs=2e-7)


def test_the_classes_of_top_are_those_of_the_mean_not_of_the_first_run(finished, notes, capsys):
    first, other = finished("seed=1"), finished("seed=2")

    def opposed_and_sure(weights):
        *_, head, bias = weights
        return weights | {head: -50 * weights[head], bias: -50 * weights[bias]}

    change_weights(other, opposed_and_sure)
    alone, both = answers_to(capsys, first, notes), answers_to(capsys, first, other, notes)
    assert [one["class"] for one in alone] != [one["class"] for one in both]
    assert predict([str(first), str(other), str(notes), "--top", "1"]) == 0
    shown = [line.split()[-2:] for line in capsys.readouterr().out.splitlines()[1:]]
    assert shown == [[one["class"], f"{one['probability']:.4f}"] for one in both]


def test_runs_of_other_classes_do_not_answer_together(finished, combine, notes, capsys):
    run, other = finished("seed=1"), finished("seed=2")
    card = read_json(other / "model.json")
    write_json(other / "model.json", card | {"classes": ["1", "50"]})
    assert predict([str(run), str(other), str(notes)]) == 5
    assert "'100'" in capsys.readouterr().err
    code, made, _, err = combine(run, other)
    assert code == 5 and made is None and "the set of classes" in err


def test_the_exported_files_of_a_combined_run_give_its_answers(
    finished, combine, notes, tmp_path, capsys
):
    import onnxruntime

    runs = [finished("seed=1"), permuted(finished("seed=2")), finished("seed=2", *MLP)]
    _, made, _, _ = combine(*runs)
    files = sorted(notes.rglob("*.jpg"))[::10]
    expected = answers_to(capsys, *runs, *files)
    assert export([str(made), "--format", "all"]) == 0
    folder, trained = made / "export", load_trained(made)
    inputs = trained.inputs([trained.read(file) for file in files])
    session = onnxruntime.InferenceSession(folder / "small-combined.onnx")
    logits = {
        "onnx": torch.from_numpy(session.run(None, {"images": inputs.numpy()})[0]),
        "pt2": torch.export.load(folder / "small-combined.pt2").module()(inputs),
    }
    for name, found in logits.items():
        for row, one in zip(found.softmax(dim=1), expected, strict=True):
            wanted = list(one["probabilities"].values())
            np.testing.assert_allclose(row.numpy(), wanted, rtol=0, atol=1e-6, err_msg=name)
    # The folder of weights alone, where this project is not to be had.
    command = [sys.executable, "-B", folder / "small-combined-safetensors" / "use.py", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line, one in zip(done.stdout.splitlines(), expected, strict=True):
        path, name, chance = line.split("\t")
        assert (path, name) == (one["path"], one["class"])
        assert float(chance) == pytest.approx(one["probability"], abs=0.01)  # Pillow resizes


def test_weights_are_averaged_only_if_val_becomes_better(finished, combine):
    code, made, _, err = combine(finished("seed=1"), finished("seed=2"), "--weights")
    assert code == 5 and made is None and "no average of the weights is better on val" in err
    alone = finished("seed=1")
    code, made, _, err = combine(
        moved(finished("seed=1"), 1), moved(finished("seed=1"), -1), "--weights"
    )
    assert code == 0 and "not in the average" not in err
    weights = load_tensors(made / "model.pt")
    for name, expected in load_tensors(alone / "model.pt").items():
        torch.testing.assert_close(weights[name], expected, rtol=0, atol=1e-6)
    one, other = read_json(made / "result.json"), read_json(alone / "result.json")
    for part in ("val", "test"):
        assert one[part]["accuracy"] == other[part]["accuracy"]
        assert one[part]["loss"] == pytest.approx(other[part]["loss"], abs=1e-5)


def test_batch_norm_of_averaged_weights_is_measured_on_the_training_images(finished, combine):
    small = ["model={name: CompactResNet, widths: [8, 8], depth: 2}", "loader.batch_size=16"]
    alone = finished(*small)
    runs = [moved(finished(*small), sign, size=0.05) for sign in (1, -1)]
    code, made, _, err = combine(*runs, "--weights", "loader.eval_batch_size=16")
    assert code == 0, err
    averaged, trained = load_trained(made).model, load_trained(alone)
    data = prepare(load_config(alone / "config.yaml"), print).data
    chosen = data.subsets["train"].indices.tolist()
    images = [trained.inputs([data.dataset.image(index)]) for index in chosen]
    update_bn(torch.cat(images).split(16), trained.model)
    for name, expected in trained.model.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(averaged.state_dict()[name], expected, rtol=1e-4, atol=1e-5)


def test_folds_answer_together_but_have_no_val_and_test(finished, combine, notes, capsys):
    runs = [finished("split.folds=3", f"split.fold={fold}") for fold in range(3)]
    code, made, _, err = combine(*runs)
    assert code == 0 and "no val numbers" in err and "no test numbers" in err
    result, split = read_json(made / "result.json"), read_json(made / "split.json")
    assert not {"val", "test", "best"} & set(result) and len(split["train"]) == 50
    assert evaluate([str(made)]) == 5
    assert "no image is test of all its members" in capsys.readouterr().err
    found, both = answers_to(capsys, made, notes), answers_to(capsys, *runs, notes)
    assert [one["class"] for one in found] == [one["class"] for one in both]
    assert export([str(made), "--format", "pt2"]) == 0
    assert combine(*runs, "--weights")[0] == 5


def test_a_part_of_val_that_is_common_is_measured_and_told(finished, combine):
    runs = [finished("seed=1"), finished("seed=1", "split.seed=5")]
    code, made, _, err = combine(*runs)
    assert code == 0
    splits = [read_json(run / "split.json") for run in (*runs, made)]
    for part in ("val", "test"):
        common = splits[0][part].items() & splits[1][part].items()
        assert common == splits[2][part].items()
        most = max(len(split[part]) for split in splits)
        assert f"{part}: {len(common)} of up to {most} images" in err
        assert not splits[2][part].keys() & (splits[0]["train"].keys() | splits[1]["train"].keys())


@pytest.fixture
def labelled_runs(coloured, tmp_path):
    (tmp_path / "several.yaml").write_text(YAML.format(root=coloured))
    runs = []
    for seed in (0, 1):
        job = prepare(load_config(tmp_path / "several.yaml", [f"seed={seed}"]), print)
        with StopRequest() as stop:
            runs.append(fit(job, tmp_path / "runs", None, print, stop))
    return runs


def test_several_labels_have_the_mean_of_sigmoids_and_thresholds_of_val(
    labelled_runs, combine, coloured, capsys
):
    for run in labelled_runs:  # their own thresholds are bad ones, and so is the mean of these
        card = read_json(run / "model.json")
        write_json(run / "model.json", card | {"thresholds": [0.99] * len(LABELS)})
    code, made, _, err = combine(*labelled_runs)
    assert code == 0, err
    thresholds = read_json(made / "model.json")["thresholds"]
    for part in ("val", "test"):
        rows = table_of(made, part)
        mean = np.mean([chances_of(table_of(run, part), LABELS) for run in labelled_runs], axis=0)
        np.testing.assert_allclose(chances_of(rows, LABELS), mean, rtol=0, atol=2e-7)
        for row, chances in zip(rows, mean, strict=True):
            found = [n for n, p, t in zip(LABELS, chances, thresholds, strict=True) if p >= t]
            assert row["predicted"] == ";".join(found)
        has = np.array([[name in row["true"].split(";") for name in LABELS] for row in rows])
        if part == "val":
            for k, threshold in enumerate(thresholds):
                tried = [sklearn.metrics.f1_score(has[:, k], mean[:, k] >= t) for t in mean[:, k]]
                found = sklearn.metrics.f1_score(has[:, k], mean[:, k] >= threshold)
                assert found == pytest.approx(max(tried)) or has[:, k].sum() < 5
    assert evaluate([str(made), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    result = read_json(made / "result.json")["test"]
    assert all(told[name] == pytest.approx(result[name], abs=0) for name in ("loss", "accuracy"))
    files = sorted(coloured.glob("*.png"))[:5]
    one, other = answers_to(capsys, made, *files), answers_to(capsys, *labelled_runs, *files)
    for a, b in zip(one, other, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=2e-7)
    assert export([str(made), "--format", "onnx", "safetensors"]) == 0


def test_the_mean_has_a_temperature_of_its_own_and_the_members_lend_none(combine, tmp_path, capsys):
    write_squares(tmp_path)
    (tmp_path / "noisy.yaml").write_text(NOISY.format(root=tmp_path))
    for seed in (0, 1):
        words = ["--config", str(tmp_path / "noisy.yaml"), "--runs", str(tmp_path / "runs")]
        assert train_main([*words, f"seed={seed}"]) == 0
    runs = sorted((tmp_path / "runs" / "noisy").glob("2*"))
    code, made, _, err = combine(*runs)
    card, rows = read_json(made / "model.json"), table_of(made, "val")
    assert code == 0 and card["calibration"]["used"] and "probabilities have temperature" in err
    classes = card["classes"]
    true = [classes.index(row["true"]) for row in rows]
    logs = np.log(np.mean([chances_of(table_of(run, "val"), classes) for run in runs], axis=0))

    def loss(temperature):
        powers = logs / temperature
        picked = powers[np.arange(len(true)), true]
        return (scipy.special.logsumexp(powers, axis=1) - picked).mean()

    least = scipy.optimize.minimize_scalar(loss, bounds=(0.05, 20), method="bounded")
    temperature = card["calibration"]["temperature"]
    assert temperature == pytest.approx(least.x, rel=1e-3)
    picture = save_pictures(tmp_path, pictures_of(3, 5)[0]) / "000.png"
    (one,), (both,) = answers_to(capsys, made, picture), answers_to(capsys, *runs, picture)
    raw = np.array(list(both["probabilities"].values()))
    each = [answers_to(capsys, run, picture, "--no-calibration")[0] for run in runs]
    mean = np.mean([list(answer["probabilities"].values()) for answer in each], axis=0)
    np.testing.assert_allclose(raw, mean, rtol=0, atol=2e-7)
    expected = scipy.special.softmax(np.log(raw) / temperature)
    np.testing.assert_allclose(list(one["probabilities"].values()), expected, rtol=1e-4, atol=1e-6)
    assert predict([str(made), str(picture), "--sets", "0.9"]) == 0
    assert predict([*map(str, runs), str(picture), "--sets", "0.9"]) == 2
    assert "trainer.combine" in capsys.readouterr().err
    assert export([str(made), "--format", "pt2"]) == 0
    assert read_json(made / "export" / "noisy-combined.json")["temperature"] == temperature


def test_a_sweep_stands_for_the_runs_of_its_best_trial(finished, combine, tmp_path, notes, capsys):
    sweep = tmp_path / "tuned"
    trials: list[dict] = []
    for number in (0, 1):
        ends = []
        for seed in (1, 2):
            run = finished(f"seed={seed}", *([] if number else MLP))
            place = sweep / f"t{number:03d}-seed{seed}" / run.name
            place.parent.mkdir(parents=True)
            os.rename(run, place)
            ends.append({"run": str(place.relative_to(sweep))})
        trials.append({"trial": number, "runs": ends})
    write_json(sweep / "plan.json", {})
    assert combine(sweep)[0] == 2
    write_json(sweep / "sweep.json", {"best": 1, "trials": trials})
    code, made, _, _ = combine(sweep)
    assert code == 0 and made.parent.name == "tuned-combined"
    of_trial = [str(sweep / end["run"]) for end in trials[1]["runs"]]
    assert [one["run"] for one in read_json(made / "result.json")["members"]] == of_trial
    code, made, _, _ = combine(sweep / "t000")
    of_trial = [str(sweep / end["run"]) for end in trials[0]["runs"]]
    assert [one["run"] for one in read_json(made / "result.json")["members"]] == of_trial
    assert made.parent.name == "tuned-t000-combined"
    assert answers_to(capsys, sweep / "t000", notes) == answers_to(capsys, *of_trial, notes)


def test_what_cannot_be_combined_is_told_and_leaves_nothing(
    finished, combine, notes, train, capsys
):
    run, other = finished("seed=1"), finished("seed=2")
    assert combine(run)[0] == 2
    _, made, _, _ = combine(run, other)
    code, none, _, err = combine(made, run)
    assert code == 5 and none is None and "name its members" in err
    assert explain([str(made), str(next(Path(notes).rglob("*.jpg")))]) == 2
    assert str(run) in capsys.readouterr().err
    picture = str(next(Path(notes).rglob("*.jpg")))
    assert predict([str(made), picture, "--reject", "0.95"]) == 5
    assert "combined of other runs" in capsys.readouterr().err
    assert predict([str(run), str(other), picture, "--reject", "0.95"]) == 2
    with pytest.raises(ConfigError, match="several models"):
        train(f"model.weights={made}")
    code, none, _, err = combine(run, finished("seed=2", *MLP), "--weights")
    assert code == 5 and none is None and "the model differs" in err
    weights = load_tensors(other / "model.pt")
    save_tensors(other / "model.pt", {name: w * torch.nan for name, w in weights.items()})
    assert combine(run, other)[1] is None


def test_runs_with_other_corrections_of_labels_are_not_combined(finished, combine):
    run, other = finished("seed=1"), finished("seed=2")
    split, result = (read_json(other / f"{name}.json") for name in ("split", "result"))
    split["fixes"] = "c" * 64
    write_json(other / "split.json", split)
    write_json(other / "result.json", result | {"split": digest_of_split(split)})
    code, made, _, err = combine(run, other)
    assert code == 5 and made is None and "have other corrections of labels" in err


def test_a_combined_run_teaches(finished, combine, train):
    _, made, _, _ = combine(finished("seed=1"), finished("seed=2"))
    digest = read_json(made / "model.json")["weights"]["sha256"]
    student = train("train.epochs=1", f"distill={{run: {made}}}")
    assert read_json(student / "result.json")["teacher"]["weights"]["sha256"] == digest
