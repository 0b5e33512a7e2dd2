"""Images of no class: their scores, what is rejected, and what is measured of it."""

import csv
import dataclasses
import io
import json
import math
import runpy
import sys
from contextlib import redirect_stdout
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2

from models import MODELS
from trainer.build.prepare import prepare
from trainer.build.trained import load_trained
from trainer.components import SCORES
from trainer.components.label_sets import fewest_images, rank_of
from trainer.components.novelty import (
    Novelty,
    kept_unknown,
    last_layer,
    learn,
    rows_to_learn,
    threshold_of,
    told_apart,
    with_features,
)
from trainer.config import load_config
from trainer.config.signatures import resolve
from trainer.export import main as export
from trainer.inference import prediction_output
from trainer.inference.prediction import Prediction
from trainer.inference.prediction_output import prediction_sheet
from trainer.insight.features import penultimate
from trainer.loop.answers import training_images
from trainer.predict import main as predict
from trainer.run.disk import write_json
from trainer.run.tensors import save_tensors
from trainer.train import main as train_command
from yaml_trainer.export.export_check import Difference

MANY_VAL = "split.ratios=[3,5,2]"  # of the 50 notes, 25 or so are val
WITH_95 = Fraction("0.95")


@pytest.fixture(scope="session")
def strangers(tmp_path_factory):
    """Thirty pictures that are no notes: blue, grey, or noise; and a broken one."""
    folder, random = tmp_path_factory.mktemp("strangers"), np.random.default_rng(0)
    for number in range(30):
        pixels = random.integers(0, 256, (24, 48, 3), dtype=np.uint8)
        pixels[..., : number % 3] //= 8
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:400])
    return folder


def result_of(run):
    return json.loads((run / "result.json").read_text())


def read_csv(capsys, run, *more):
    capsys.readouterr()
    code = predict([str(run), *map(str, more), "--csv"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return list(csv.DictReader(out.splitlines())), err


def examples(count, width, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator).relu()
    labels = torch.randint(classes, (count,), generator=generator)
    features[torch.arange(count), labels] += 3
    return features, labels


# Scores


@pytest.mark.parametrize("count, width", [(300, 20), (40, 90), (60, 60), (139, 512)])
def test_the_distance_is_that_of_ledoit_and_wolfs_covariance_of_unit_features(count, width):
    features, labels = examples(count, width)
    unit = functional.normalize(features.double(), dim=1).numpy()
    means = np.stack([unit[labels == k].mean(axis=0) for k in range(3)])
    precision = LedoitWolf(assume_centered=True).fit(unit - means[labels]).precision_
    others = examples(50, width, seed=1)[0]
    apart = functional.normalize(others.double(), dim=1).numpy()[:, None] - means
    expected = np.einsum("nkf,fg,nkg->nk", apart, precision, apart).min(axis=1)
    found = Novelty(nn.Identity(), "", learn(features, labels)).scores(torch.zeros(50, 3), others)
    assert found[:, 0].numpy() == pytest.approx(expected, rel=1e-4)


def test_scores_of_logits_are_those_of_pytorch_ood():
    detector = pytest.importorskip("pytorch_ood.detector")
    logits = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)) * 9
    model = Novelty(nn.Identity(), "", learn(*examples(30, 5)))
    scores = dict(zip(SCORES, model.scores(logits, torch.ones(40, 5)).T, strict=True))
    assert torch.equal(scores["energy"], detector.EnergyBased.score(logits))
    assert torch.equal(scores["max_logit"], detector.MaxLogit.score(logits))


def test_auroc_and_fpr95_are_those_of_sklearn_and_of_a_count():
    random = torch.Generator().manual_seed(0)
    test = torch.randn(213, 3, generator=random).mul(4).round()  # with ties
    unknown = (torch.randn(97, 3, generator=random) + 1).mul(4).round()
    found = told_apart(test, unknown)
    truth = [0] * len(test) + [1] * len(unknown)
    for i, name in enumerate(SCORES):
        column = torch.cat([test[:, i], unknown[:, i]])
        assert found["auroc"][name] == pytest.approx(roc_auc_score(truth, column), abs=1e-12)
        least = min(t for t in test[:, i].tolist() if (test[:, i] <= t).float().mean() >= 0.95)
        assert found["fpr95"][name] == pytest.approx(
            (unknown[:, i] <= least).double().mean().item()
        )


def test_auroc_and_fpr95_are_those_of_pytorch_ood():
    metrics = pytest.importorskip("pytorch_ood.metrics").OODMetrics()
    random = torch.Generator().manual_seed(1)
    test, unknown = torch.randn(400, generator=random), torch.randn(300, generator=random) + 1.5
    # Theirs is the share of test among what holds 95 % of the unknown images: the parts swapped.
    metrics.update(torch.cat([test, unknown]), torch.cat([torch.zeros(400), -torch.ones(300)]))
    theirs = metrics.compute()
    ours = told_apart(test[:, None].expand(-1, 3), unknown[:, None].expand(-1, 3))
    assert ours["auroc"]["energy"] == pytest.approx(theirs["AUROC"], abs=1e-6)
    assert kept_unknown(-unknown, -test) == pytest.approx(theirs["FPR95TPR"], abs=1 / 300)


@pytest.mark.parametrize("name, more", [("LeNet", {}), ("MLP", {"input_size": [32, 32]}),
                                        ("ResNet", {})])  # fmt: skip
def test_the_last_features_are_what_the_last_layer_gets(name, more):
    torch.manual_seed(0)
    model = resolve(MODELS, name)(num_classes=5, in_channels=3, **more).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        logits, features = with_features(model, last_layer(model, images, 5), images)
        assert torch.equal(logits, model(images))
        assert torch.equal(features, penultimate(model, images))


def test_a_last_convolution_is_averaged_and_no_layer_at_all_is_told():
    class Convolved(nn.Sequential):
        def forward(self, images):
            return super().forward(images).mean((2, 3))

    model = Convolved(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))
    images = torch.randn(2, 1, 8, 8)
    _, features = with_features(model, last_layer(model, images, 4), images)
    assert torch.equal(features, model[1](model[0](images)).flatten(2).mean(2))
    with pytest.raises(ValueError, match="no linear layer or convolution of 5 outputs"):
        last_layer(model, images, 5)


def test_as_many_images_of_each_class_teach_and_at_most_a_thousand():
    labels = torch.cat([torch.zeros(5000), torch.ones(2000), torch.full((7,), 2.0)]).long()
    rows = rows_to_learn(labels, 3, seed=0)
    assert len(set(rows.tolist())) == len(rows) == 1000
    assert sorted(labels[rows].bincount().tolist()) == [7, 496, 497]
    assert len(rows_to_learn(labels[:60], 3, seed=0)) == 60


# The threshold


@pytest.mark.parametrize("level", ["0.5", "0.8", "0.9", "0.95", "0.99"])
def test_the_threshold_keeps_at_least_the_level_of_new_images_and_one_rank_less_does_not(level):
    share = Fraction(level)
    for count in range(fewest_images(share), fewest_images(share) + 40):
        place = rank_of(count, share)  # a new score is of each rank from 1 to count + 1 alike
        assert Fraction(place, count + 1) >= share > Fraction(place - 1, count + 1)
        scores = torch.arange(count).flip(0).float()
        assert threshold_of(scores, share) == place - 1
    few = fewest_images(share) - 1  # one image fewer cannot
    assert rank_of(few, share) > few


def test_the_share_of_new_images_that_is_kept_is_that_of_theory():
    random = torch.Generator().manual_seed(0)
    kept = []
    for _ in range(400):
        scores = torch.randn(60, generator=random)
        kept.append((torch.randn(500, generator=random) <= threshold_of(scores, WITH_95)).float())
    expected = rank_of(60, WITH_95) / 61
    spread = math.sqrt(expected * (1 - expected) / 62 / 400)  # of a beta distribution's mean
    assert torch.cat(kept).mean().item() == pytest.approx(expected, abs=4 * spread)


# A run


def test_what_a_run_says_it_keeps_of_test_is_what_predict_keeps(finished, notes, capsys):
    run = finished(MANY_VAL)
    told = result_of(run)["novelty"]
    split = json.loads((run / "split.json").read_text())
    test = [notes / name for name in split["test"]]
    for score in SCORES:
        rows, err = read_csv(capsys, run, *test, "--reject", "0.95", "--score", score)
        kept = [row["unknown"] == "no" for row in rows]
        assert sum(kept) == told["kept"][score]
        assert f"of test it keeps {sum(kept)} of {len(test)}" in " ".join(err.split())
        val, _ = read_csv(
            capsys, run, *(notes / n for n in split["val"]), "--reject", ".95", "--score", score
        )
        ordered = sorted(float(row["score"]) for row in val)
        threshold = ordered[rank_of(len(val), WITH_95) - 1]
        assert kept == [float(row["score"]) <= threshold * (1 + 1e-5 * (1 if threshold > 0 else -1))
                        for row in rows]  # fmt: skip


def test_unknown_is_in_the_table_and_a_column_and_the_probabilities_stay(
    finished, notes, strangers, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "400")  # a path has its own line where there is no room
    run = finished(MANY_VAL)
    paths = [strangers / "0.png", notes / "1" / "003.jpg"]
    rows, _ = read_csv(capsys, run, *paths, "--reject", "0.8")
    plain, _ = read_csv(capsys, run, *paths)
    assert [*rows[0]][-2:] == ["unknown", "score"]
    assert [{k: row[k] for k in plain[0]} for row in rows] == plain
    assert rows[0]["unknown"] == "yes"
    assert predict([str(run), *map(str, paths), "--reject", "0.8"]) == 0
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["path", "class", "probability"]  # no column of label sets
    assert first.split() == [str(paths[0]), "unknown"]
    assert predict([str(run), *map(str, paths), "--reject", "0.8", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["unknown"] for entry in entries] == [row["unknown"] == "yes" for row in rows]


def test_a_sheet_says_unknown_instead_of_the_class(monkeypatch):
    told = []
    monkeypatch.setattr(prediction_output, "sheet", lambda _, captions, **__: told.extend(captions))
    one = Prediction("a.png", torch.tensor([0.9, 0.1]), thumbnail=Image.new("L", (8, 8)))
    one = dataclasses.replace(one, predicted=(0,))
    prediction_sheet([one, dataclasses.replace(one, is_unknown=True)], ("cat", "dog"))
    assert told == [[["cat (0.9000)"], "a.png"], [["unknown"], "a.png"]]


def test_too_few_val_images_are_refused_with_the_number_that_is_needed(finished, notes, capsys):
    run = finished()  # 5 or so val images
    count = result_of(run)["novelty"]["val_images"]
    assert result_of(run)["novelty"]["needed"] == 19
    assert predict([str(run), str(notes), "--reject", "0.95"]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert f"{count} val images cannot support it; at least 19 are needed" in err
    most = math.floor(count / (count + 1) * 100) / 100
    assert f"ask for {most:g} or less" in err
    assert predict([str(run), str(notes), "--reject", str(most)]) == 0


@pytest.mark.parametrize("text", ["1", "0", "95", "x", "-0.5"])
def test_a_level_is_a_share(text, capsys):
    with pytest.raises(SystemExit) as error:
        predict(["run", "path", f"--reject={text}"])
    assert error.value.code == 2
    assert "is no number between 0 and 1, such as 0.95" in " ".join(capsys.readouterr().err.split())


def test_scores_of_other_weights_missing_ones_and_damaged_ones_are_never_used(
    finished, notes, capsys
):
    run = finished(MANY_VAL)
    file, words = run / "known.pt", [str(run), str(notes), "--reject", "0.8"]
    whole = file.read_bytes()
    at = len(whole) // 2
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert predict(words) == 5
    assert "is not the file of result.json" in " ".join(capsys.readouterr().err.split())
    file.write_bytes(whole)
    assert predict(words) == 0
    other = finished(MANY_VAL, "train.epochs=1")
    for name in ("model.pt", "model.json"):
        (run / name).write_bytes((other / name).read_bytes())
    assert predict(words) == 5
    assert "was made for other weights" in " ".join(capsys.readouterr().err.split())
    entry, result = save_tensors(file, {"weights": "0"}), result_of(run)
    write_json(run / "result.json", result | {"novelty": result["novelty"] | {"file": entry}})
    assert predict(words) == 5
    assert "known.pt is damaged: expected layer, learned, scores and weights in it" in " ".join(
        capsys.readouterr().err.split()
    )
    file.unlink()
    assert predict(words) == 5
    assert "known.pt is missing" in " ".join(capsys.readouterr().err.split())


def test_views_are_averaged_as_logits_are_and_others_than_the_runs_are_refused(
    finished, notes, capsys
):
    run = finished(MANY_VAL, "evaluation.tta=flip")
    picture = notes / "1" / "003.jpg"
    mirrored = run / "mirrored.png"
    Image.open(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
    words = ["--reject", "0.8", "--tta"]
    alone = [read_csv(capsys, run, p, *words, "none")[0][0]["score"] for p in (picture, mirrored)]
    both, _ = read_csv(capsys, run, picture, *words, "flip")
    expected = sum(map(float, alone)) / 2
    assert float(both[0]["score"]) == pytest.approx(expected, rel=1e-3)
    assert predict([str(run), str(notes), *words, "flip+shifts"]) == 2
    assert "give --tta none or --tta flip" in " ".join(capsys.readouterr().err.split())


# dataset.unknown


def test_pictures_of_no_class_are_measured_and_change_no_weight(finished, train, strangers, capsys):
    run = train(MANY_VAL, f"dataset.unknown={strangers}")
    out = capsys.readouterr().out
    assert "1 of 31 images left out" in out
    assert (run / "model.pt").read_bytes() == (finished(MANY_VAL) / "model.pt").read_bytes()
    found = result_of(run)["novelty"]["unknown"]
    assert (found["images"], found["left_out"]) == (30, 1)
    scores = torch.load(run / "known.pt", weights_only=True)["scores"]["test"]["none"]
    for score in SCORES:
        pictures = [strangers / f"{number}.png" for number in range(30)]
        rows, _ = read_csv(capsys, run, *pictures, "--reject", "0.8", "--score", score)
        unknown = [float(row["score"]) for row in rows]
        known = scores[score].tolist()
        truth = [0] * len(known) + [1] * len(unknown)
        assert found["auroc"][score] == pytest.approx(
            roc_auc_score(truth, [*known, *unknown]), abs=1e-2
        )
    for name in ("report.md", "report.html"):
        text = (run / "report" / name).read_text()
        assert "30 images of no class, 1 left out" in text and "FPR95" in text


def test_an_image_of_the_dataset_is_no_unknown_one_and_an_empty_folder_is_refused(
    start, notes, tmp_path, capsys
):
    folder = tmp_path / "others"
    assert start(f"dataset.unknown={folder}") == 3
    assert "is no folder" in " ".join(capsys.readouterr().err.split())
    folder.mkdir()
    assert start(f"dataset.unknown={folder}") == 3
    assert "holds no images" in " ".join(capsys.readouterr().err.split())
    (folder / "copy.jpg").write_bytes((notes / "1" / "003.jpg").read_bytes())
    assert start(f"dataset.unknown={folder}") == 3
    err = " ".join(capsys.readouterr().err.split())
    assert "1 image of 1 is also in the dataset" in err and "1/003.jpg" in err
    assert start(f"data.unknown={folder}") == 2
    assert "did you mean 'dataset'?" in " ".join(capsys.readouterr().err.split())


def test_a_resumed_run_may_have_another_folder_of_unknown_pictures(train, strangers, capsys):
    run = train(MANY_VAL, "train.epochs=1")
    more = ["train.epochs=2", f"dataset.unknown={strangers}"]
    assert train_command(["--resume", str(run), *more]) == 0
    assert result_of(run)["novelty"]["unknown"]["images"] == 30


# Where there are no scores


def test_a_run_with_several_labels_says_that_it_rejects_nothing(train, notes, tmp_path, capsys):
    table, config = tmp_path / "labels.csv", tmp_path / "several.yaml"
    names = [f"{label}/{number:03d}.jpg" for label in ("1", "100") for number in range(25)]
    rows = [f"{name},{int('1/' in name)},{number % 2}" for number, name in enumerate(names)]
    table.write_text("\n".join(["path,one,odd", *rows]))
    text = (tmp_path / "small.yaml").read_text().replace("RMB", "CSVImages")
    text = text.replace(f"root: {notes}", f"root: {notes}, csv: {table}, label_columns: [one, odd]")
    config.write_text(text + "loss: {name: BCEWithLogitsLoss}\n")
    run = train(file=config)
    assert "an image may have several labels" in capsys.readouterr().out
    assert not (run / "known.pt").exists() and "novelty" not in result_of(run)
    assert predict([str(run), str(notes), "--reject", "0.9"]) == 2
    assert "may have several labels" in " ".join(capsys.readouterr().err.split())


def test_a_model_without_a_last_layer_trains_and_says_that_it_keeps_no_scores(
    train, notes, monkeypatch, capsys
):
    monkeypatch.setattr("trainer.components.novelty.LAST_LAYERS", ())
    run = train("train.epochs=1")
    assert "no scores for predict --reject are kept: LeNet ends with no" in capsys.readouterr().out
    assert not (run / "known.pt").exists() and (run / "predictions.csv").exists()


# Exported


@pytest.mark.parametrize("score", SCORES)
def test_exported_graphs_give_unknown_as_their_second_output(
    finished, notes, strangers, tmp_path, capsys, score
):
    onnxruntime = pytest.importorskip("onnxruntime", reason='needs pip install -e ".[export]"')
    run, words = finished(MANY_VAL), ["--reject", "0.8", "--score", score]
    pictures = [notes / "1" / "003.jpg", *(strangers / f"{n}.png" for n in range(3))]
    files = ["--format", "pt2", "onnx", "--output", str(tmp_path), "--images", *map(str, pictures)]
    assert export([str(run), *files, *words]) == 0
    rows, _ = read_csv(capsys, run, *pictures, *words)
    trained = load_trained(run)
    inputs = trained.inputs([trained.read(path) for path in pictures])
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    card = json.loads((tmp_path / "small.json").read_text())["unknown"]
    graphs = {
        "pt2": torch.export.load(tmp_path / "small.pt2").module()(inputs),
        "onnx": session.run(["logits", "unknown"], {"images": inputs.numpy()}),
    }
    for kind, (logits, unknown) in graphs.items():
        assert np.asarray(logits) == pytest.approx(trained.logits(inputs).numpy(), abs=1e-4)
        scores = np.asarray(unknown) + card["threshold"]
        assert scores == pytest.approx([float(row["score"]) for row in rows], rel=1e-3)
        assert [bool(u > 0) for u in unknown] == [row["unknown"] == "yes" for row in rows]
        with redirect_stdout(io.StringIO()) as out, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["use", *map(str, pictures)])
            runpy.run_path(str(tmp_path / f"small_{kind}.py"), run_name="__main__")
        shown = [line.split("\t")[1] for line in out.getvalue().splitlines()]
        assert shown == ["unknown" if row["unknown"] == "yes" else row["predicted"] for row in rows]


def test_weights_alone_have_no_second_output(finished, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        export([str(finished()), "--format", "safetensors", "--reject", "0.9"])
    assert error.value.code == 2
    assert "safetensors holds weights only" in " ".join(capsys.readouterr().err.split())


def test_a_graph_that_says_unknown_otherwise_is_refused():
    rejecting = {"logits": 0.0, "probabilities": 0.0, "largest": 1.0}
    assert Difference(**rejecting, unknown=9e-4).is_small
    assert not (other := Difference(**rejecting, unknown=2e-3)).is_small
    assert other.in_words.endswith(", and 2.0e-03 in unknown; 1e-03 is allowed")
    assert not Difference(**rejecting, unknown=math.nan).is_small


@pytest.mark.parametrize("side", [40, 36])  # as eval resizes, or not
@pytest.mark.parametrize("cache", ["ram", "off"])
def test_training_images_teach_after_the_eval_transforms(config_file, notes, side, cache):
    text = config_file.read_text().replace("size: [32, 32]", f"size: [{side}, {side}]", 1)
    tail = text.index("eval:")
    text = text[:tail] + text[tail:].replace(
        "{name: Resize, size: [32, 32]}",
        "{name: Resize, size: [40, 40]}\n    - {name: CenterCrop, size: 32}",
    )
    config_file.write_text(text)
    job = prepare(load_config(config_file, [f"loader.cache={cache}"]), print)
    train, rows = job.data.subsets["train"], torch.tensor([3, 0, 5])
    images, labels = next(training_images(job, rows))
    for row, image, label in zip(rows, images, labels, strict=True):
        name = train.dataset.ids[int(train.indices[row])]
        pixels = v2.functional.pil_to_tensor(Image.open(notes / name).convert("RGB"))
        small = v2.functional.center_crop(
            v2.functional.resize(pixels, [40, 40], antialias=True), [32, 32]
        )
        assert torch.allclose(image, (small.float() / 255 - 0.5) / 0.25, atol=1e-6)
        assert job.data.classes[int(label)] == name.partition("/")[0]
