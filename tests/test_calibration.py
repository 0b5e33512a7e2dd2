"""One temperature for a run's probabilities: its fit, when it is used, and where it comes in."""

import csv
import json
import runpy
import shutil
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from tests.noisy_squares import pictures_of, save_pictures, train_noisy
from trainer.build.trained import load_trained
from trainer.components.calibration import (
    HIGHEST,
    LEAST_IMAGES,
    LOWEST,
    calibrate,
    calibrated,
    fit_temperature,
    how_true,
    tempered,
)
from trainer.components.losses import probabilities
from trainer.evaluate import main as evaluate
from trainer.explain import main as explain
from trainer.inference.prediction import file_source, predict_images
from trainer.loop.record import best_card
from trainer.predict import main as predict
from trainer.process.errors import RunError
from trainer.run.best import load_best
from trainer.run.checkpoint import write_best
from trainer.run.disk import read_json, write_json
from trainer.train import main as train_main


def answers(images, certainty=3.0, seed=0, classes=4):
    """Logits that are ``certainty`` times those by which the labels are drawn, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return certainty * logits, labels


def several_answers(images, certainty=3.0):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(images, 4, generator=generator)
    labels = (torch.rand(images, 4, generator=generator) < logits.sigmoid()).float()
    return certainty * logits, labels


# --- the fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("certainty", [0.3, 1.0, 3.0])
def test_the_temperature_is_that_of_scikit_learn(certainty):
    calibration = pytest.importorskip("sklearn.calibration")
    if not hasattr(calibration, "_TemperatureScaling"):
        pytest.skip("scikit-learn is older than 1.8")
    logits, labels = answers(2000, certainty)
    reference = calibration._TemperatureScaling().fit(logits.double().numpy(), labels.numpy())
    expected = 1 / reference.beta_
    assert fit_temperature("CrossEntropyLoss", logits, labels) == pytest.approx(expected, rel=2e-4)


def by_scipy(loss_of):
    found = scipy.optimize.minimize_scalar(
        lambda log: loss_of(np.exp(log)), bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded"
    )
    return np.exp(found.x)


def test_the_temperature_of_sigmoids_has_the_least_loss_of_a_search_by_scipy():
    logits, labels = answers(2000)
    rows, z = np.arange(2000), logits.double().numpy()

    def of_one_class(temperature):
        chances = scipy.special.expit(z)
        chances = (chances / chances.sum(axis=1, keepdims=True)) ** (1 / temperature)
        return -np.log(chances[rows, labels] / chances.sum(axis=1)).mean()

    expected = by_scipy(of_one_class)
    assert fit_temperature("BCEWithLogitsLoss", logits, labels) == pytest.approx(expected, rel=1e-3)

    logits, sets = several_answers(2000)
    z, wanted = logits.double().numpy(), sets.numpy()

    def of_several(temperature):
        signed = np.where(wanted > 0.5, z, -z) / temperature
        return -scipy.special.log_expit(signed).mean()

    expected = by_scipy(of_several)
    assert fit_temperature("BCEWithLogitsLoss", logits, sets) == pytest.approx(expected, rel=1e-3)
    assert 2.5 < expected < 3.5  # as the labels were drawn


def test_the_temperature_is_equal_to_the_bit_on_any_number_of_threads_and_in_any_order():
    logits, labels = answers(9000, classes=10)
    order = torch.randperm(9000, generator=torch.Generator().manual_seed(1))
    before, found = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.add(calibrate("CrossEntropyLoss", logits, labels))
            found.add(calibrate("CrossEntropyLoss", logits[order], labels[order]))
    finally:
        torch.set_num_threads(before)
    assert len({one.temperature for one in found}) == len({one.nll for one in found}) == 1


# --- whether it is used ---------------------------------------------------------------------------


def test_true_probabilities_get_a_temperature_in_one_of_twenty_cases():
    used = sum(calibrate("CrossEntropyLoss", *answers(300, 1.0, s)).used for s in range(400))
    assert 8 <= used <= 36  # 99.9 % of the binomial distribution with p = 0.05


@pytest.mark.parametrize("certainty", [0.4, 2.5])
def test_probabilities_that_are_not_true_get_a_temperature_and_become_true(certainty):
    logits, labels = answers(400, certainty)
    found = calibrate("CrossEntropyLoss", logits, labels)
    assert found.used
    assert found.temperature == pytest.approx(certainty, rel=0.2)
    assert found.nll is not None
    for chances, nll in zip((logits, logits / found.temperature), found.nll, strict=True):
        expected = sklearn.metrics.log_loss(labels, chances.double().softmax(dim=1))
        assert nll == pytest.approx(expected, abs=1e-6)
    fresh, truth = answers(5000, certainty, seed=9)
    before = how_true(fresh.softmax(dim=1), truth)
    after = how_true(tempered(fresh.softmax(dim=1), found.temperature), truth)
    assert all(after[name] < before[name] for name in before)


def test_no_temperature_is_used_for_few_images_nor_where_none_is_the_best():
    few = calibrate("CrossEntropyLoss", *answers(LEAST_IMAGES - 1))
    assert few.in_words == (
        "probabilities stay raw: 99 val images, and at least 100 are needed for a temperature"
    )
    assert calibrate("CrossEntropyLoss", *answers(LEAST_IMAGES)).used
    logits, _ = answers(300)
    all_right = calibrate("CrossEntropyLoss", logits, logits.argmax(dim=1))  # the lowest is best
    assert not all_right.used
    assert "no temperature" in all_right.why
    logits[7, 1] = torch.nan
    assert not calibrate("CrossEntropyLoss", logits, torch.zeros(300, dtype=torch.int64)).used


# --- what it does to probabilities ----------------------------------------------------------------


def test_of_a_softmax_the_temperature_divides_the_logits():
    logits, _ = answers(500)
    expected = (logits.double() / 1.7).softmax(dim=1)
    found = calibrated("CrossEntropyLoss", logits, 1.7)
    assert (found - expected).abs().max() < 1e-6
    assert torch.equal(calibrated("CrossEntropyLoss", logits, None), logits.softmax(dim=1))
    several = calibrated("BCEWithLogitsLoss", logits, 1.7, several_labels=True)
    assert (several - (logits.double() / 1.7).sigmoid()).abs().max() < 1e-6


def test_how_true_probabilities_are_is_what_scikit_learn_says():
    logits, labels = answers(700)
    chances = logits.softmax(dim=1)
    found = how_true(chances, labels)
    assert found["nll"] == pytest.approx(sklearn.metrics.log_loss(labels, chances.numpy()))
    wanted = np.eye(4)[labels]
    assert found["brier"] == pytest.approx(((chances.numpy() - wanted) ** 2).sum(axis=1).mean())


class Given(nn.Module):
    """A model that answers with these logits, whatever it is shown."""

    def __init__(self, logits):
        super().__init__()
        self.rows = iter(logits)

    def forward(self, images):
        return torch.stack([next(self.rows) for _ in images])


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([0.05, 0.3, 1.7, 20.0]), st.booleans())
def test_predicted_classes_and_labels_are_those_of_raw_probabilities_to_the_bit(
    bare, seed, temperature, has_several
):
    trained, photo = bare
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 2, generator=generator) * 10.0 ** torch.randint(
        -7, 3, (6, 1), generator=generator
    )
    logits[::2, 1] = logits[::2, 0].nextafter(torch.tensor(torch.inf))  # they are equal, divided
    used = trained.calibration._replace(used=True, temperature=temperature)
    limits = torch.rand(2, generator=generator) if has_several else None
    loss = trained.config.loss.model_copy(update={"name": "BCEWithLogitsLoss"})
    config = trained.config.model_copy(update={"loss": loss}) if has_several else trained.config
    found = predict_images(
        replace(trained, model=Given(logits), calibration=used, thresholds=limits, config=config),
        [file_source(photo)] * 6,
        batch_size=3,
    )
    for one, logit in zip(found, logits, strict=True):
        raw = logit.sigmoid() if has_several else logit.softmax(dim=0)
        if has_several:
            assert set(one.predicted) == set((raw >= limits).nonzero().flatten().tolist())
        else:
            assert one.predicted == (int(raw.argmax()),)


@pytest.fixture(scope="module")
def bare(_trained_once, notes):
    """A trained model, and a photograph that it takes."""
    return load_trained(_trained_once()), str(notes / "1" / "000.jpg")


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A run on labels of which some are wrong: it is too sure, and has 397 val images."""
    return train_noisy(tmp_path_factory.mktemp("noisy"))


@pytest.fixture
def copy(noisy, tmp_path):
    return shutil.copytree(noisy, tmp_path / "runs" / "noisy" / noisy.name)


def table_of(run, part):
    with open(run / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == part]
    chances = np.array([[float(row[f"p:{k}"]) for k in classes_of(run)] for row in rows])
    return chances, np.array([classes_of(run).index(row["true"]) for row in rows])


def classes_of(run):
    return read_json(run / "model.json")["classes"]


def test_a_run_fits_its_temperature_on_val_and_tells_what_it_does_on_test(noisy):
    found, result = read_json(noisy / "model.json")["calibration"], read_json(noisy / "result.json")
    chances, labels = table_of(noisy, "val")

    def loss_of(temperature):
        logs = scipy.special.log_softmax(np.log(chances) / temperature, axis=1)
        return -logs[np.arange(len(labels)), labels].mean()

    assert found["used"]
    assert found["images"] == len(labels)
    assert found["temperature"] == pytest.approx(by_scipy(loss_of), rel=1e-3)
    assert found["nll"] == pytest.approx([loss_of(1), loss_of(found["temperature"])], abs=1e-5)
    chances, labels = table_of(noisy, "test")
    after = scipy.special.softmax(np.log(chances) / found["temperature"], axis=1)
    for when, expected in (("before", chances), ("after", after)):
        told = result["calibration"]["test"][when]
        nll = sklearn.metrics.log_loss(labels, expected.astype(np.float32))
        assert told["nll"] == pytest.approx(nll, abs=1e-5)
        wanted = np.eye(10)[labels]
        assert told["brier"] == pytest.approx(((expected - wanted) ** 2).sum(axis=1).mean(), 1e-5)
    for page in ("report.md", "report.html"):
        text = (noisy / "report" / page).read_text(encoding="utf-8")
        assert "Predictions and accuracy are unchanged" in text
        assert f"temperature {found['temperature']:.4g}, fitted on {found['images']} val" in text
        for name, value in result["calibration"]["test"]["after"].items():
            assert name in text
            assert f"{value:.4f}" in text


def test_a_handful_of_val_images_is_too_few_and_the_run_says_so(train, capsys):
    run = train("train.epochs=1")
    why = "5 val images, and at least 100 are needed for a temperature"
    assert f"note    probabilities stay raw: {why}\n" in capsys.readouterr().out
    assert not read_json(run / "model.json")["calibration"]["used"]
    assert "after" not in read_json(run / "result.json")["calibration"]["test"]
    assert why in (run / "report" / "report.md").read_text()
    assert not (run / "report" / "calibration_after.png").exists()


def test_new_best_weights_have_no_temperature_of_older_ones(copy):
    card = read_json(copy / "model.json")
    weights = torch.load(copy / "model.pt")
    old = {k: v for k, v in card.items() if k not in ("calibration", "weights")}
    entry = write_best(copy, {name: value + 1 for name, value in weights.items()}, old)
    assert "calibration" not in read_json(copy / "model.json")
    write_json(copy / "model.json", card)  # killed between the two files
    with pytest.raises(RunError, match="is not the file that model.json describes"):
        load_best(nn.Identity(), copy)
    assert entry != card["weights"]


def test_a_resume_keeps_the_temperature_of_the_same_weights_and_fits_it_anew_at_the_end(
    copy, capsys
):
    again = ["--resume", str(copy)]
    before = {name: (copy / name).read_bytes() for name in ("model.json", "model.pt")}
    assert train_main(again) == 0  # nothing is left to do
    assert {name: (copy / name).read_bytes() for name in before} == before
    card, result = read_json(copy / "model.json"), read_json(copy / "result.json")
    write_json(copy / "model.json", {k: v for k, v in card.items() if k != "calibration"})
    write_json(copy / "result.json", result | {"status": "running"})  # killed before its end
    assert train_main(again) == 0
    assert {name: (copy / name).read_bytes() for name in before} == before
    stale = card | {"weights": {"size": 1, "sha256": "0" * 64}}
    write_json(copy / "model.json", stale)  # of later weights, which the checkpoint takes back
    write_json(copy / "result.json", result | {"status": "running"})
    assert train_main([*again, "train.epochs=7"]) == 0
    found = read_json(copy / "model.json")
    assert found["calibration"] == card["calibration"]  # the seventh epoch was not the best
    capsys.readouterr()


def test_a_temperature_of_other_weights_or_other_views_is_not_kept(copy, monkeypatch):
    card = read_json(copy / "model.json")
    monkeypatch.setattr(
        "trainer.loop.record.card",
        lambda job, best: {k: v for k, v in card.items() if k not in ("calibration", "weights")},
    )
    job: Any = None
    assert best_card(job, copy, {}, card["weights"]) == card
    assert "calibration" not in best_card(job, copy, {}, {"size": 1, "sha256": "0"})
    write_json(copy / "model.json", card | {"evaluation": {"tta": "flip"}})
    assert "calibration" not in best_card(job, copy, {}, card["weights"])


@pytest.mark.parametrize(
    "damage", [{"used": True}, 7, {"used": True, "why": "", "images": 200, "temperature": 0.0}]
)
def test_a_damaged_temperature_is_told_not_used(copy, damage):
    write_json(copy / "model.json", read_json(copy / "model.json") | {"calibration": damage})
    with pytest.raises(RunError, match=r"model.json is damaged: .* calibration"):
        load_trained(copy)


# --- predict and export ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve pictures like those of the run."""
    return save_pictures(tmp_path_factory.mktemp("photos"), pictures_of(12, seed=5)[0])


def predicted(run, photos, capsys, *more):
    assert predict([str(run), str(photos), "--json", *more]) == 0
    output = capsys.readouterr()
    return json.loads(output.out), output.err


def matrix(predictions):
    return np.array([list(one["probabilities"].values()) for one in predictions])


def test_predict_applies_the_temperature_and_says_so(noisy, photos, capsys):
    temperature = read_json(noisy / "model.json")["calibration"]["temperature"]
    found, told = predicted(noisy, photos, capsys)
    raw, silent = predicted(noisy, photos, capsys, "--no-calibration")
    assert [one["class"] for one in found] == [one["class"] for one in raw]
    expected = scipy.special.softmax(np.log(matrix(raw)) / temperature, axis=1)
    assert matrix(found) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert f"note    probabilities have temperature {temperature:.4g}, fitted on 397 val" in told
    assert "temperature" not in silent
    _, told = predicted(noisy, photos, capsys, "--tta", "flip")
    assert "fitted on 397 val images with tta none; --no-calibration" in told


def test_explain_shows_the_probabilities_of_predict_and_names_the_temperature(
    noisy, photos, tmp_path, capsys
):
    picture = sorted(photos.iterdir())[0]
    (one,), _ = predicted(noisy, picture, capsys)
    assert explain([str(noisy), str(picture), "--output", str(tmp_path / "out")]) == 0
    assert "note    probabilities have temperature" in capsys.readouterr().err
    top = read_json(tmp_path / "out" / "explanation.json")["top"]
    expected = {name: one["probabilities"][name] for name in top}
    assert top == pytest.approx(expected, rel=1e-5)


def test_the_temperature_acts_on_the_mean_over_draws(finished, notes, capsys):
    run = finished()
    card = read_json(run / "model.json")
    used = {"used": True, "why": "", "images": 500, "temperature": 2.5, "nll": [1.0, 0.5]}
    write_json(run / "model.json", card | {"calibration": used})
    found, _ = predicted(run, notes / "1" / "000.jpg", capsys, "--tta", "4")
    raw, _ = predicted(run, notes / "1" / "000.jpg", capsys, "--tta", "4", "--no-calibration")
    expected = scipy.special.softmax(np.log(matrix(raw)) / 2.5, axis=1)
    assert matrix(found) == pytest.approx(expected, rel=1e-5)
    assert found[0]["class"] == raw[0]["class"]


def with_temperature(run, temperature, **more):
    used = {"used": True, "why": "", "images": 500, "temperature": temperature, "nll": None}
    card = read_json(run / "model.json") | {"calibration": used} | more
    write_json(run / "model.json", card)
    return run


def test_evaluate_tells_what_the_temperature_does_on_new_images(noisy, tmp_path, capsys):
    classes, (pictures, labels) = classes_of(noisy), pictures_of(80, seed=7)
    for number, (picture, label) in enumerate(zip(pictures, labels.tolist(), strict=True)):
        folder = tmp_path / "new" / classes[label].replace("/", " or ")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.numpy()).save(folder / f"{number}.png")
    place, output = str(tmp_path / "new"), tmp_path / "out"
    rename = ["--rename", "T-shirt or top=T-shirt/top"]
    assert evaluate([str(noisy), place, "--output", str(output), *rename]) == 0
    told = read_json(output / "metrics.json")["calibration"]
    with open(output / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chances = np.array([[float(row[f"p:{k}"]) for k in classes] for row in rows])
    labels = np.array([classes.index(row["true"]) for row in rows])
    temperature = read_json(noisy / "model.json")["calibration"]["temperature"]
    after = scipy.special.softmax(np.log(chances) / temperature, axis=1)
    for when, expected in (("before", chances), ("after", after)):
        nll = sklearn.metrics.log_loss(labels, expected.astype(np.float32), labels=np.arange(10))
        assert told[when]["nll"] == pytest.approx(nll, abs=1e-5)
    assert f"| nll | {told['before']['nll']:.4f} | {told['after']['nll']:.4f} |" in (
        output / "report.md"
    ).read_text(encoding="utf-8")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("kind", "loss"),
    [("pt2", "BCEWithLogitsLoss"), ("onnx", "several"), ("safetensors", "CrossEntropyLoss")],
)
def test_the_programs_of_an_export_print_the_probabilities_of_predict(
    finished, notes, tmp_path, capsys, monkeypatch, kind, loss
):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    from trainer.export import main as export

    run = finished(*([] if loss == "CrossEntropyLoss" else ["loss.name=BCEWithLogitsLoss"]))
    with_temperature(run, 0.4, **({"thresholds": [0.3, 0.6]} if loss == "several" else {}))
    assert export([str(run), "--format", kind, "--output", str(tmp_path / "out")]) == 0
    photos = [str(path) for name in ("1", "100") for path in sorted((notes / name).glob("00*"))]
    capsys.readouterr()
    assert predict([str(run), *photos, "--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    expected = []
    for row in rows:
        labels = row["predicted"].split(";")
        chances = {name: float(row[f"p:{name}"]) for name in labels if name}
        expected += [[row["id"], name, f"{chances[name]:.4f}"] for name in chances]
        expected += [] if chances else [[row["id"], "-"]]
    program = next(
        path
        for path in (tmp_path / "out").rglob("*.py")
        if path.name in ("use.py", f"small_{kind}.py")
    )
    monkeypatch.setattr(sys, "argv", [str(program), *photos])
    monkeypatch.syspath_prepend(str(program.parent))
    runpy.run_path(str(program), run_name="__main__")
    told = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    for one, other in zip(sorted(told), sorted(expected), strict=True):
        assert one[:2] == other[:2]
        assert [float(n) for n in one[2:]] == pytest.approx([*map(float, other[2:])], abs=1.1e-4)
    cards = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("*.json")]
    assert [card["temperature"] for card in cards if "temperature" in card] == [0.4]


def test_without_a_temperature_the_card_names_none(finished, tmp_path, capsys):
    from trainer.export import main as export

    run = finished()
    assert export([str(run), "--format", "safetensors", "--output", str(tmp_path / "out")]) == 0
    for path in (tmp_path / "out").rglob("*"):
        assert path.suffix != ".json" or "temperature" not in path.read_text()
        assert path.suffix != ".md" or "With the temperature" not in path.read_text()
    capsys.readouterr()


def test_probabilities_that_are_nan_stay_nan():
    chances = probabilities("CrossEntropyLoss", torch.tensor([[torch.nan, 1.0], [0.0, 1.0]]))
    found = tempered(chances, 2.0)
    assert found[0].isnan().all()
    assert found[1].sum().item() == pytest.approx(1)
