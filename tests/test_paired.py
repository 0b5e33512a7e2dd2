"""Whether one side is better, image by image: its statistics, its words, and what it refuses."""

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from trainer.compare import main
from trainer.comparing.folds import averaged, out_of_fold
from trainer.comparing.head_to_head import ACCURACY, LOSS, NotPaired, classes_of, measure_of
from trainer.comparing.near_best import is_near, over_folds
from trainer.comparing.paired import (
    Sides,
    beyond,
    by_variance,
    difference,
    mcnemar,
    quantile_of_student,
    swapped,
)
from trainer.comparing.predictions import (
    PREDICTIONS,
    Answer,
    Predictions,
    prediction_lines,
    read_predictions,
)
from trainer.config.settings import Component

CLASSES = ("a", "b", "c")


def mean(values, _):
    return float(values.mean())


def sides(first, second, labels=None):
    one, other = ([numpy.asarray(each) for each in side] for side in (first, second))
    return Sides(one, other, numpy.zeros(len(first[0]), int) if labels is None else labels)


def random(seed=0):
    return numpy.random.default_rng(seed)


# Statistics


@pytest.mark.parametrize(
    "counts",
    [(0, 0), (0, 5), (5, 0), (3, 9), (12, 12), (31, 12), (500, 600), (0, 2000), (7000, 7300)],
)
def test_mcnemars_p_is_the_binomial_tests_of_scipy(counts):
    expected = stats.binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
    assert mcnemar(*counts) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("freedom", [1.0, 1.3, 2.0, 3.7, 10.0, 100.0, 1000.0])
def test_students_t_is_scipys(freedom):
    for t in (0.0, 0.1, 1.0, 2.0, 5.0, 12.0):
        assert beyond(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-5, abs=1e-12)
    expected = stats.t.ppf(0.975, freedom)
    assert quantile_of_student(0.05, freedom) == pytest.approx(expected, rel=1e-5)


def test_the_interval_is_that_of_scipys_paired_percentile_bootstrap():
    draws = random()
    first, second = draws.random((2, 200)) ** 3
    found = difference(sides([first], [second]), mean)
    expected = stats.bootstrap(
        (first, second),
        lambda a, b, axis: b.mean(axis) - a.mean(axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=draws,
    )
    interval, deviation = expected.confidence_interval, expected.standard_error
    assert found.apart == pytest.approx(second.mean() - first.mean())
    assert found.low == pytest.approx(interval.low, abs=deviation / 10)
    assert found.high == pytest.approx(interval.high, abs=deviation / 10)


def test_the_interval_of_any_metric_is_that_of_resampled_images_by_brute_force():
    draws = random(1)
    labels = draws.integers(0, 3, 150)
    first, second = draws.dirichlet(numpy.ones(3), (2, 150)).astype(numpy.float32)
    second[:60] = numpy.eye(3, dtype=numpy.float32)[labels[:60]]
    measure = measure_of(Component(name="macro_f1"), has_several=False)
    found = difference(sides([first], [second], labels), measure.metric)

    def f1(chances, rows):
        return f1_score(labels[rows], chances[rows].argmax(1), average="macro", zero_division=0)

    assert found.first == pytest.approx(f1(first, range(150)))
    resamples = [draws.integers(0, 150, 150) for _ in range(400)]
    drawn = [f1(second, rows) - f1(first, rows) for rows in resamples]
    low, high = numpy.quantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=numpy.std(drawn) / 2)
    assert found.high == pytest.approx(high, abs=numpy.std(drawn) / 2)


def test_p_of_swapped_answers_is_that_of_all_ways_to_swap_them():
    draws = random(2)
    for shift in (0.0, 0.3, 1.0):
        first, second = draws.normal(size=10), draws.normal(size=10) + shift
        signs = numpy.array(list(itertools.product([-1, 1], repeat=10)))
        sums = numpy.abs((signs * (second - first)).mean(axis=1))
        exact = numpy.mean(sums >= abs((second - first).mean()) - 1e-12)
        found = swapped(sides([first], [second]), mean, 4000)
        assert found == pytest.approx(exact, abs=4 * math.sqrt(exact / 4000) + 1 / 4000)


def test_with_several_seeds_and_no_noise_of_images_it_is_welchs_t_test():
    draws = random(3)
    first, second = draws.normal(size=3), draws.normal(size=4) + 1
    found = difference(sides(*([[value] * 50 for value in side] for side in (first, second))), mean)
    expected = stats.ttest_ind(second, first, equal_var=False)
    interval = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue, rel=1e-4)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-4)


def test_two_seeds_widen_the_interval_by_their_own_noise_only():
    found = by_variance((0.0, 1.0), 1.0, [(1e-12, 1), (1e-12, 1)])  # all noise is of images
    half = stats.norm.ppf(0.975)
    assert (found.low, found.high) == pytest.approx((1 - half, 1 + half), abs=1e-5)
    assert found.p == pytest.approx(2 * stats.norm.sf(1), abs=1e-5)


def test_equal_answers_are_no_difference_whatever_is_measured():
    right, losses = random().random(40) > 0.3, random().random(40)
    for values in (right, losses):
        assert difference(sides([values], [values]), mean, swaps=99).p == 1
        several = difference(sides([values] * 2, [values] * 2), mean)
        assert (several.p, several.low, several.high) == (1, 0, 0)


def test_the_same_answers_give_the_same_bits_whatever_was_drawn_before():
    first, second = random().random((2, 100))
    found = difference(sides([first], [second]), mean, swaps=99)
    torch.rand(5)
    random().random(7)
    assert difference(sides([first], [second]), mean, swaps=99) == found


# How often equal models are told apart


def equal_pairs(count, images, seed):
    """Right and wrong answers of two equal models, by the chance of each image: few are unsure."""
    draws = random(seed)
    chance = 1 - draws.beta(0.3, 2.0, images)
    for _ in range(count):
        yield draws.random((2, images)) < chance


def claims(count, images, seed):
    """How often the first and the second of equal models is called better."""
    found = [0, 0]
    for first, second in equal_pairs(count, images, seed):
        if mcnemar(int((first & ~second).sum()), int((second & ~first).sum())) <= 0.05:
            found[int(second.sum() > first.sum())] += 1
    return found


@pytest.mark.parametrize("images", [11, 33, 160, 1000])
def test_of_equal_models_neither_is_called_better_in_more_than_one_of_twenty_pairs(images):
    found = claims(1000, images, seed=images)
    assert sum(found) <= 50


def seeds_apart(count, models, images, seed):
    """How often two sides of equal models, which differ by seed as strongly as by image, differ."""
    draws, found = random(seed), 0
    for _ in range(count):
        ease = draws.normal(1.5, 1.5, images)
        skill = draws.normal(0, 0.3, (2, models, 1))
        right = draws.random((2, models, images)) < 1 / (1 + numpy.exp(-ease - skill))
        found += bool((difference(sides(*right), mean).p or 0) <= 0.05)
    return found


@pytest.mark.parametrize("models", [2, 3])
def test_of_equal_settings_neither_is_called_better_too_often_by_two_or_three_seeds(models):
    assert seeds_apart(100, models, 200, seed=models) <= 11  # 5 + 2.8 deviations


@pytest.mark.slow
@pytest.mark.parametrize("models", [2, 3, 5])
def test_of_a_thousand_equal_settings_at_most_one_in_twenty_is_called_better(models):
    assert seeds_apart(1000, models, 500, seed=10 + models) <= 50


def losses_apart(count, images, seed):
    draws, found = random(seed), 0
    for _ in range(count):
        each = draws.gamma(0.3, 1.0, (2, images))
        one = difference(sides([each[0]], [each[1]]), mean, resamples=0, swaps=199)
        found += bool((one.p or 0) <= 0.05)
    return found


def test_of_equal_models_neither_is_called_better_by_a_loss_that_few_images_decide():
    assert losses_apart(200, 30, seed=5) <= 18  # 10 + 2.6 deviations


@pytest.mark.slow
def test_of_a_thousand_equal_models_at_most_one_in_twenty_is_called_better_by_the_loss():
    assert losses_apart(1000, 100, seed=6) <= 50 + 2 * math.sqrt(50)


def test_the_truly_best_trial_is_marked_in_95_of_100_sweeps_of_equal_trials():
    draws, kept = random(4), 0
    chance = 1 - draws.beta(0.5, 2.0, 100)
    labels = draws.integers(0, 3, 100)
    for _ in range(200):
        right = draws.random((8, 100)) < chance
        tables = [table(labels, numpy.where(row, labels, (labels + 1) % 3), "val") for row in right]
        best, truly = int(right.sum(axis=1).argmax()), 0  # all are: take the first
        kept += best == truly or is_near(
            {(0, 0): tables[best]}, {(0, 0): tables[truly]}, ACCURACY, 7, False
        )
    assert kept >= 185  # 190 less 1.6 deviations


# A table, and the command


def table(true, predicted, part="test", ids=None, digests=None, chances=None, losses=None):
    """A table of N images of CLASSES, by numbers."""
    count = len(true)
    chances = numpy.full((count, 3), 0.1, numpy.float32) if chances is None else chances
    if len(chances) == count and (chances == numpy.float32(0.1)).all():
        chances[numpy.arange(count), predicted] = 0.8
    ids = [f"{part}/{i}.png" for i in range(count)] if ids is None else list(ids)
    return Predictions(
        CLASSES,
        ids,
        [f"{i:064x}" for i in range(count)] if digests is None else list(digests),
        [part] * count,
        [CLASSES[k] for k in true],
        [CLASSES[k] for k in predicted],
        [1 - float(a == b) for a, b in zip(true, predicted, strict=True)]
        if losses is None
        else list(losses),
        chances,
    )


def write(path, *tables):
    def answers():
        for one in tables:
            for i, chances in enumerate(one.probabilities.tolist()):
                cells = one.ids[i], one.digests[i], one.parts[i], one.true[i], one.predicted[i]
                yield Answer(*cells, max(chances), one.losses[i], chances)

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in prediction_lines(tables[0].classes, answers())))


SETTINGS = """
name: x
seed: {seed}
dataset: {{name: RMB, root: data}}
model: {{name: LeNet}}
optimizer: {{name: SGD, lr: {lr}}}
metrics: [accuracy, macro_f1]
train:
  epochs: 1
  monitor: val/{monitor}
"""


@pytest.fixture
def make(tmp_path):
    """Make a finished run's folder with a table."""
    count = itertools.count()

    def run(answers=None, seed=0, lr=0.1, name="x", monitor="accuracy", **result):
        folder = tmp_path / "runs" / name / f"20260131-12{next(count):04d}-ab12"
        folder.mkdir(parents=True)
        settings = SETTINGS.format(seed=seed, lr=lr, monitor=monitor)
        (folder / "config.yaml").write_text(settings.lstrip())
        content = {"status": "done", "dataset": {"name": "RMB", "note": ""}, "split": "a" * 64}
        content["test"] = {"accuracy": 0.5}
        (folder / "result.json").write_text(json.dumps(content | result))
        (folder / "model.json").write_text(json.dumps({"classes": CLASSES}))
        if answers is not None:
            write(folder / PREDICTIONS, answers)
        return folder

    return run


@pytest.fixture
def paired(capsys):
    """The section of the command's JSON for some runs, and its text."""

    def call(*folders):
        names = [*map(str, folders), "--no-picture"]
        assert main([*names, "--json"]) == 0
        content = json.loads(capsys.readouterr().out)["paired"]
        assert main(names) == 0
        return content, " ".join(capsys.readouterr().out.split())

    return call


TRUE = [i % 3 for i in range(100)]


def wrong(*rows):
    """The answers to TRUE with some wrong."""
    return [(k + 1) % 3 if i in rows else k for i, k in enumerate(TRUE)]


def test_the_better_of_two_runs_is_named_with_its_p_and_both_counts(make, paired):
    a, b = make(table(TRUE, wrong(*range(20)))), make(table(TRUE, wrong(0, 1, 2, 50, 51)))
    for first, second, better in ((a, b, "B"), (b, a, "A")):
        found, text = paired(first, second)
        counts = {"A": 2, "B": 17} if better == "B" else {"A": 17, "B": 2}
        assert {name: len(ids) for name, ids in found["only"].items()} == counts
        assert found["better"] == better and found["by"] == "accuracy"
        p = stats.binomtest(2, 19).pvalue
        assert found["differences"]["accuracy"]["p"] == pytest.approx(p)
        assert f"{better} is better: accuracy of B less that of A" in text
        assert f"p = {p:.2g}" in text and "paired on the same 100 test images" in text
        assert (found["both_right"], found["none_right"]) == (78, 3)


def test_without_evidence_it_says_so_plainly(make, paired):
    found, text = paired(make(table(TRUE, wrong(0, 1))), make(table(TRUE, wrong(2, 3, 4, 5, 6))))
    assert found["better"] is None
    assert (
        "no evidence that B is better, nor that A is: accuracy of B less that of A -0.0300" in text
    )
    assert "2 images only B gets right, 5 only A" in text
    assert found["only"]["B"] == ["test/0.png", "test/1.png"]


def test_images_are_paired_by_content_and_copies_count_once(make, paired):
    predicted = wrong(*range(10))
    a = table(
        [*TRUE, 0], [*predicted, 1], digests=[*(f"{i:064x}" for i in range(100)), f"{0:064x}"]
    )
    order = random().permutation(100)
    b = table(
        [TRUE[i] for i in order],
        [TRUE[i] for i in order],
        ids=[f"renamed/{i}" for i in order],
        digests=[f"{i:064x}" for i in order],
    )
    found, text = paired(make(a), make(b))
    assert (found["images"], found["repeated"]) == (100, 1)
    assert found["only"]["B"] == [f"test/{i}.png" for i in range(10)]
    assert "100 test images; 1 copies of others are left out" in text


def test_where_no_content_is_known_images_are_paired_by_id(make, paired):
    runs = [table(TRUE, wrong(i), digests=[""] * 100) for i in (1, 2)]
    assert paired(*map(make, runs))[0]["images"] == 100


@pytest.mark.parametrize(
    ("other", "result", "reason"),
    [
        (None, {}, "no predictions.csv in B; to make it: python -m trainer.evaluate "),
        (table(TRUE[:40], TRUE[:40]), {}, "their splits differ: they share 40 of their 100 and 40"),
        (table(TRUE, TRUE, part="val"), {}, "their splits differ: they share 0 of"),
        (table(TRUE, TRUE), {"fixes": "c" * 64}, "their fixes of labels differ"),
        (table(wrong(3), TRUE), {}, "1 of their test images have another label"),
    ],
)
def test_what_cannot_be_paired_is_refused_with_the_reason(make, paired, other, result, reason):
    found, text = paired(make(table(TRUE, TRUE)), make(other, **result))
    assert list(found) == ["reason"] and reason in found["reason"]
    assert f"not paired image by image: {reason[:40]}" in text


def test_other_classes_or_a_damaged_table_are_refused(make, paired):
    a, b, c = make(table(TRUE, TRUE)), make(table(TRUE, TRUE)), make(table(TRUE, TRUE))
    (b / "model.json").write_text(json.dumps({"classes": ["a", "b", "d"]}))
    assert paired(a, b)[0]["reason"] == "their classes differ"
    (c / PREDICTIONS).write_bytes((c / PREDICTIONS).read_bytes()[:-30])
    assert "cannot be read" in paired(a, c)[0]["reason"]


def test_seeds_of_two_folders_are_compared_together_and_other_settings_within_one_are_not(
    make, paired
):
    draws = random(7)
    for seed in range(3):
        make(table(TRUE, wrong(*draws.choice(100, 40, False))), seed, name="weak")
        make(table(TRUE, wrong(*draws.choice(100, 3, False))), seed, 0.2, name="strong")
    single = make(table(TRUE, TRUE), name="single")
    folder = single.parent.parent
    found, text = paired(folder / "weak", folder / "strong")
    assert found["better"] == "D-F" and "D-F is better: accuracy" in text
    weak = [read_predictions(path) for path in sorted((folder / "weak").glob("*/*.csv"))]
    every = [i for i in range(100) if all(t.true[i] != t.predicted[i] for t in weak)]
    assert set(found["only"]["D-F"]) <= {f"test/{i}.png" for i in every}
    assert found["differences"]["accuracy"]["A-C"] == pytest.approx(0.6)
    assert "one side is a single run" in paired(folder / "weak", single)[0]["reason"]
    make(table(TRUE, TRUE), 5, lr=0.9, name="weak")
    assert "differ in more than the seed" in paired(folder / "weak", folder / "strong")[0]["reason"]


def test_the_monitored_metric_decides_and_the_others_have_an_interval_only(make, paired):
    a = make(table(TRUE, wrong(*range(30))), monitor="macro_f1")
    b = make(table(TRUE, wrong(1)), monitor="macro_f1")
    found, _ = paired(a, b)
    assert (found["by"], found["better"]) == ("macro_f1", "B")
    assert {name: one["p"] is None for name, one in found["differences"].items()} == {
        "accuracy": True,
        "macro_f1": False,
        "loss": True,
    }


def test_more_than_two_runs_have_no_pair(make, paired):
    assert paired(*(make(table(TRUE, TRUE)) for _ in range(3)))[0] is None


def test_images_that_one_side_alone_gets_right_are_shown(finished, capsys):
    a, b = finished(), finished("seed=1", "optimizer.lr=0.00001")
    rows = [read_predictions(run / PREDICTIONS).of_part("test") for run in (a, b)]
    is_right = [numpy.array(each.true) == numpy.array(each.predicted) for each in rows]
    expected = (is_right[0] != is_right[1]).sum()
    assert expected  # else the seeds give no case to test
    capsys.readouterr()
    assert main([str(a), str(b), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["paired"]
    assert sum(map(len, found["only"].values())) == expected
    with Image.open(found["picture"]) as picture:
        assert picture.width == 8 * 174 + 14 or picture.width == expected * 174 + 14
    (a / "split.json").write_text("{}")
    assert main([str(a), str(b)]) == 0
    assert "no picture of those images" in capsys.readouterr().err


def test_of_several_labels_what_was_predicted_with_the_runs_thresholds_is_measured():
    draws = random(6)
    true, predicted = draws.random((2, 50, 3)) < 0.5
    cells = [[";".join(numpy.array(CLASSES)[row]) for row in flags] for flags in (true, predicted)]
    one = replace(table(TRUE[:50], TRUE[:50]), true=cells[0], predicted=cells[1])
    labels, measure = classes_of(one, True), measure_of(Component(name="macro_f1"), True)
    assert (labels == true).all() and (measure.take(one) == predicted).all()
    expected = f1_score(true, predicted, average="macro", zero_division=0)
    assert measure.metric(measure.take(one), labels) == pytest.approx(expected)
    assert ACCURACY.take(one).mean() == accuracy_score(true, predicted)


def test_runs_without_tables_are_compared_without_torch(make):
    folders = [str(make()), str(make())]
    code = (
        "import sys\nfrom trainer.compare import main\n"
        "assert main([*sys.argv[1:], '--no-picture']) == 0\nassert 'torch' not in sys.modules"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, *folders], capture_output=True, text=True, check=True
    ).stdout
    assert "no predictions.csv in A and B" in told


# Folds


def fold_of(rows, part, shift=0):
    chances = random(shift + rows[0]).dirichlet(numpy.ones(3), len(rows)).astype(numpy.float32)
    return table(
        [i % 3 for i in rows],
        chances.argmax(1),
        part,
        [f"{i}.png" for i in rows],
        [f"{i // 2:064x}" for i in rows],  # each content twice
        chances,
        random(shift).random(len(rows)).round(4),
    )


def in_parts(val, test):
    from trainer.comparing.folds import in_one

    return in_one([val, test])


def test_out_of_fold_each_image_is_once_as_its_own_fold_tested_it_copies_too():
    parts = [range(8), range(8, 20), range(20, 30)]
    runs = {
        (0, fold): in_parts(fold_of(parts[(fold + 1) % 3], "val"), fold_of(parts[fold], "test", 9))
        for fold in range(3)
    }
    found = out_of_fold(runs, dict.fromkeys(runs))
    assert found.ids == [f"{i}.png" for i in range(30)] and set(found.parts) == {"test"}
    for fold, rows in enumerate(parts):
        expected = runs[0, fold].of_part("test").probabilities
        assert (found.probabilities[list(rows)] == expected).all()


def test_with_an_official_test_set_the_images_are_those_of_val():
    official = fold_of(range(50, 60), "test")
    parts = [range(8), range(8, 20)]
    runs = {(0, f): in_parts(fold_of(parts[f], "val", f), official) for f in range(2)}
    found = out_of_fold(runs, dict.fromkeys(runs))
    assert found.ids == [f"{i}.png" for i in range(20)] and set(found.parts) == {"val"}


def test_over_seeds_the_probabilities_and_losses_are_means():
    tables = [fold_of(range(6), "test", seed) for seed in range(3)]
    found = averaged(tables, [None] * 3)
    expected = numpy.mean([each.probabilities.astype(float) for each in tables], axis=0)
    assert numpy.abs(found.probabilities - expected).max() < 1e-7
    assert found.predicted == [CLASSES[k] for k in expected.argmax(1)]
    assert found.losses == pytest.approx(numpy.mean([each.losses for each in tables], axis=0))
    several = averaged(tables, [[0.1, 0.2, 0.9], [0.2, 0.3, 0.9], [0.3, 0.4, 0.9]])
    flags = expected >= [0.2, 0.3, 0.9]
    assert several.predicted == [";".join(numpy.array(CLASSES)[row]) for row in flags]


def test_an_image_that_would_be_twice_or_lacks_a_seed_is_refused():
    runs = {(0, f): in_parts(fold_of([9], "val"), fold_of(range(f, 5), "test")) for f in range(2)}
    with pytest.raises(NotPaired, match="4 images would be in it twice"):
        out_of_fold(runs, dict.fromkeys(runs))
    with pytest.raises(NotPaired, match="images, labels or classes differ"):
        averaged([fold_of(range(5), "test"), fold_of(range(6), "test")], [None, None])


def test_a_loss_within_noise_is_near_and_one_beyond_is_not():
    losses = random(8).random(200)
    tables = [
        table([0] * 200, [0] * 200, "val", losses=losses + more)
        for more in (0, random(9).normal(0.001, 0.1, 200), random(9).normal(0.2, 0.1, 200))
    ]
    best, near, far = tables
    for seeds in (1, 2):  # of two seeds, each alike
        runs = [{(seed, 0): one for seed in range(seeds)} for one in (best, near, far)]
        assert is_near(runs[0], runs[1], LOSS, 2, False)
        assert not is_near(runs[0], runs[2], LOSS, 2, False)
        assert is_near(runs[2], runs[0], LOSS, 2, False)  # one that is better is never left out


def test_folds_that_disagree_are_noise_although_their_images_together_are_not():
    def trial(*wrong):
        return {
            (0, fold): table(
                [0] * 100,
                [1] * n + [0] * (100 - n),
                "val",
                [f"{fold}/{i}" for i in range(100)],
                [""] * 100,
            )
            for fold, n in enumerate(wrong)
        }

    best, other, worse = trial(10, 10, 10, 10), trial(10, 10, 10, 70), trial(25, 24, 26, 25)
    assert is_near(best, other, ACCURACY, 1, False)
    assert not is_near(best, worse, ACCURACY, 1, False)
    differences = [0.0, 0.0, 0.0, -0.6]
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert over_folds(best, other, ACCURACY, False) == pytest.approx(expected, rel=1e-4)
