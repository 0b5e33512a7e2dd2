"""Label sets: which classes an image may be of, at a level that holds, or a refusal in words."""

import csv
import json
import math
import shutil
from contextlib import nullcontext
from fractions import Fraction

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from tests.noisy_squares import pictures_of, save_pictures, train_noisy
from trainer.components.decisions import likeliest
from trainer.components.label_sets import (
    coverage_of,
    fewest_images,
    measure_sets,
    set_threshold,
    sets_of,
)
from trainer.predict import main as predict
from trainer.run.disk import read_json, write_json


@pytest.fixture(scope="module")
def digits():
    """Probabilities (N, 10) of real digits by a model that saw 150 others of them, and labels."""
    images, labels = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=200, C=1e-4).fit(images[:150], labels[:150])
    chances = model.predict_proba(images[150:]).astype(np.float32)
    return torch.from_numpy(chances), torch.from_numpy(labels[150:])


def draw(digits, seed, images):
    """Val of this many digits, and the others as test."""
    chances, labels = digits
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    val, test = order[:images], order[images:]
    return (chances[val], labels[val]), (chances[test], labels[test])


# --- the threshold and the sets -------------------------------------------------------------------


@pytest.mark.parametrize("level", ["0.5", "0.7", "0.9", "0.95", "0.99"])
@pytest.mark.parametrize("images", [99, 100, 500])
def test_the_threshold_is_the_score_of_the_rank_in_the_definition(digits, level, images):
    chances, labels = draw(digits, 0, images)[0]
    scores = sorted(1 - float(p[k]) for p, k in zip(chances.double(), labels, strict=True))
    rank = -(-(images + 1) * int(float(level) * 100 + 0.5) // 100)
    found = set_threshold(chances, labels, Fraction(level))
    assert 1 - found == pytest.approx(scores[rank - 1], abs=1e-12)


def test_sets_are_those_of_mapie_and_the_predicted_class(digits):
    mapie = pytest.importorskip("mapie.classification")

    class Given:
        """A classifier whose images are its probabilities."""

        classes_ = np.arange(10)

        def fit(self, images, labels):
            return self

        def predict_proba(self, images):
            return np.asarray(images, np.float64)

        def predict(self, images):
            return np.asarray(images).argmax(axis=1)

        def __sklearn_is_fitted__(self):
            return True

    val, test = draw(digits, 3, 400)
    for level in ("0.6", "0.9", "0.95"):
        reference = mapie.SplitConformalClassifier(
            Given(), confidence_level=float(level), conformity_score="lac", prefit=True
        ).conformalize(val[0].numpy(), val[1].numpy())
        expected = reference.predict_set(test[0].numpy())[1][:, :, 0]
        found = sets_of(
            test[0], set_threshold(val[0], val[1], Fraction(level)), likeliest(test[0])
        ).numpy()
        expected[np.arange(len(expected)), test[0].argmax(dim=1)] = True
        assert np.array_equal(found, expected)


def test_the_fewest_images_are_the_first_number_whose_rank_exists():
    for text in ("0.05", "0.5", "0.7", "0.8", "0.9", "0.95", "0.99", "0.999"):
        level = Fraction(text)
        few = next(n for n in range(1, 2000) if math.ceil((n + 1) * level) <= n)
        assert fewest_images(level) == few
        chances = torch.rand(few, 3)
        set_threshold(chances, torch.zeros(few, dtype=torch.int64), level)
        with pytest.raises(ValueError, match=f"{few - 1} val images cannot support {text}: at "):
            set_threshold(chances[1:], torch.zeros(few - 1, dtype=torch.int64), level)
    assert fewest_images(Fraction("0.95")) == 19


def test_no_set_is_empty_and_each_has_the_predicted_class(digits):
    val, (chances, labels) = draw(digits, 1, 500)
    sets = sets_of(chances, set_threshold(val[0], val[1], Fraction("0.3")), likeliest(chances))
    assert sets.gather(1, chances.argmax(dim=1)[:, None]).all()
    assert sets.sum(dim=1).min() == 1
    found = coverage_of(sets, labels)
    assert found.mean_size == pytest.approx(sets.sum(dim=1).double().mean().item())
    for k in range(10):
        has = [bool(row[k]) for row, label in zip(sets, labels.tolist(), strict=True) if label == k]
        assert (found.images[k], found.covered[k]) == (len(has), sum(has))


def outside(digits, seeds, images, level):
    """How many draws of val and test have a coverage outside its exact 95 % interval."""
    below = above = 0
    for seed in range(seeds):
        val, test = draw(digits, seed, images)
        coverage = measure_sets(val, test, test[0], Fraction(level))[1]
        covered, count = sum(coverage.covered), sum(coverage.images)
        rank = math.ceil((images + 1) * Fraction(level))  # the coverage is a beta variable of it
        exact = scipy.stats.betabinom(count, rank, images + 1 - rank)
        low, high = exact.ppf([0.025, 0.975])
        below, above = below + (covered < low), above + (covered > high)
    return below, above


def test_the_coverage_of_real_digits_is_within_its_exact_interval_in_95_of_100_seeds(digits):
    # Draws of the same digits; at a level above the accuracy the predicted class adds nothing.
    assert sum(outside(digits, 100, 800, "0.95")) <= 5


@pytest.mark.slow
@pytest.mark.parametrize("level", ["0.9", "0.95", "0.98"])
@pytest.mark.parametrize("images", [100, 400, 1200])
def test_the_coverage_is_seldom_too_low_for_any_level_and_size_of_val(digits, level, images):
    below, _ = outside(digits, 1000, images, level)
    assert below <= scipy.stats.binom(1000, 0.025).ppf(0.999)


# --- predict --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A run on labels of which some are wrong, with a temperature."""
    return train_noisy(tmp_path_factory.mktemp("noisy"))


@pytest.fixture
def copy(noisy, tmp_path):
    return shutil.copytree(noisy, tmp_path / "runs" / "noisy" / noisy.name)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The first 40 test images of the run."""
    return save_pictures(tmp_path_factory.mktemp("photos"), pictures_of(500, seed=1)[0][:40])


def of_part(run, part, temperature):
    """Calibrated probabilities and labels of a part, by the run's predictions.csv."""
    with open(run / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == part]
    classes = read_json(run / "model.json")["classes"]
    chances = np.array([[float(row[f"p:{k}"]) for k in classes] for row in rows])
    labels = np.array([classes.index(row["true"]) for row in rows])
    return scipy.special.softmax(np.log(chances) / temperature, axis=1), labels


@pytest.mark.parametrize("calibration", [[], ["--no-calibration"]])
def test_predicts_sets_and_their_measured_coverage_follow_from_predictions_csv(
    noisy, photos, capsys, calibration
):
    card = read_json(noisy / "model.json")
    temperature = 1 if calibration else card["calibration"]["temperature"]
    val, labels = of_part(noisy, "val", temperature)
    scores = np.sort(1 - val[np.arange(len(labels)), labels])
    least = 1 - scores[math.ceil((len(scores) + 1) * 0.8) - 1] - 1e-6
    assert predict([str(noisy), str(photos), "--json", "--sets", "0.8", *calibration]) == 0
    output = capsys.readouterr()
    for one in json.loads(output.out):
        chances = one["probabilities"]
        likely = {name for name in chances if chances[name] >= least} | {one["class"]}
        assert set(one["set"]) == likely
        assert one["set"] == sorted(one["set"], key=lambda name: -chances[name])
    test, labels = of_part(noisy, "test", temperature)
    sets = test >= least
    sets[np.arange(len(test)), test.argmax(axis=1)] = True
    has = sets[np.arange(len(test)), labels]
    ends = scipy.stats.binomtest(int(has.sum()), 500).proportion_ci(method="wilson")
    assert (
        f"label sets for 0.8 have the true class of {has.sum()} of 500 test images: "
        f"{has.mean():.4f} ({ends.low:.4f} to {ends.high:.4f} with 95 % confidence), "
        f"with {sets.sum(axis=1).mean():.2f} classes on average"
    ) in output.err
    for k, name in enumerate(card["classes"]):
        assert f"{name} {has[labels == k].mean():.3f} (" in output.err


def test_sets_stand_in_the_table_and_as_the_last_column_of_the_csv(
    noisy, photos, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "400")  # a path has its own line where there is no room
    paths = [str(path) for path in sorted(photos.iterdir())]
    assert predict([str(noisy), *paths, "--sets", "0.8", "--json"]) == 0
    expected = [one["set"] for one in json.loads(capsys.readouterr().out)]
    assert {len(one) for one in expected} > {1, 2}
    assert predict([str(noisy), *paths, "--sets", "0.8", "--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert list(rows[0])[-1] == "set"
    assert [sorted(row["set"].split(";")) for row in rows] == [sorted(one) for one in expected]
    assert predict([str(noisy), *paths, "--sets", "0.8"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.endswith("probability  set")
    for line, one in zip(lines, expected, strict=True):
        assert line.endswith(f"  {{{', '.join(one)}}}")


def test_the_report_has_label_sets_for_nine_of_ten(noisy):
    for page in ("report.md", "report.html"):
        text = (noisy / "report" / page).read_text(encoding="utf-8")
        assert "Label sets for 0.9 have the true class of " in text


def test_sets_are_given_where_no_test_image_can_measure_them(copy, photos, capsys):
    table = copy / "predictions.csv"
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join(one for one in lines if ",test," not in one), encoding="utf-8")
    write_json(copy / "split.json", read_json(copy / "split.json") | {"test": {}})
    assert predict([str(copy), str(photos), "--sets", "0.8"]) == 0
    assert "no test images: how often sets are right is not known" in capsys.readouterr().err


def refusal(run, photos, capsys, *more, code=2):
    capsys.readouterr()
    with pytest.raises(SystemExit) if code is None else nullcontext():
        assert predict([str(run), str(photos), *more]) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    return " ".join(output.err.split())


def test_too_few_val_images_are_refused_with_the_number_that_is_needed(finished, notes, capsys):
    run, photos = finished(), notes / "1"
    told = refusal(run, photos, capsys, "--sets", "0.95")
    assert "--sets 0.95: 5 val images cannot support 0.95: at least 19 are needed." in told
    assert predict([str(run), str(photos), "--sets", "0.8"]) == 0
    for page in ("report.md", "report.html"):
        text = (run / "report" / page).read_text(encoding="utf-8")
        assert "There are no label sets: 5 val images cannot support 0.9: at least 9 are" in text


def test_what_sets_cannot_stand_on_is_refused_in_words(copy, photos, capsys):
    sets = ["--sets", "0.8"]
    told = refusal(copy, photos, capsys, *sets, "--tta", "flip")
    assert "--sets 0.8: val was answered with tta none; leave out --tta." in told
    for text in ("0", "1", "1.5", "-0.1", "nan", "90"):
        told = refusal(copy, photos, capsys, f"--sets={text}", code=None)
        assert f"{text!r} is no number between 0 and 1, such as 0.9" in told
    card, result = read_json(copy / "model.json"), read_json(copy / "result.json")
    write_json(copy / "model.json", card | {"thresholds": [0.5] * 10})
    assert "may have several labels" in refusal(copy, photos, capsys, *sets)
    write_json(copy / "model.json", card)
    write_json(copy / "result.json", result | {"status": "stopped"})
    told = refusal(copy, photos, capsys, *sets, code=5)
    assert f"is stopped; to end it: python -m trainer.train --resume {copy}" in told
    write_json(copy / "result.json", result)
    text = (copy / "predictions.csv").read_text()
    (copy / "predictions.csv").write_text(text.replace("p:Bag", "p:Sack"))
    assert "has other classes than model.json" in refusal(copy, photos, capsys, *sets, code=5)
    (copy / "predictions.csv").unlink()
    assert "is missing" in refusal(copy, photos, capsys, *sets, code=5)


def test_sets_stand_on_no_table_that_was_cut_or_changed_or_is_of_other_weights(
    copy, photos, capsys
):
    table, sets = copy / "predictions.csv", ["--sets", "0.8"]
    head, *rows = table.read_text(encoding="utf-8").splitlines(keepends=True)
    val = [row for row in rows if ",val," in row]
    cells = val[0].split(",")
    damaged = {
        "without test": val,
        "a row less": rows[1:],
        "a row twice": [rows[0], *rows],
        "another order": rows[::-1],
        "no number": [",".join([*cells[:7], "nan", *cells[8:]]), *rows[1:]],
        "other losses": [
            ",".join([*(c := row.split(","))[:6], str(2 * float(c[6])), *c[7:]]) for row in rows
        ],
    }
    for lines in damaged.values():
        table.write_text("".join([head, *lines]), encoding="utf-8")
        told = refusal(copy, photos, capsys, *sets, code=5)
        assert "predictions.csv is not what this run's weights answer" in told
        assert told.endswith(f"python -m trainer.evaluate {copy} --predictions")
    table.write_text("".join([head, *rows]), encoding="utf-8")
    assert predict([str(copy), str(photos), *sets]) == 0
