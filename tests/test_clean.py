"""Labels that are likely wrong: how they are ranked, shown and corrected, never without a tick."""

import csv
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import sklearn.metrics
import torch
from sklearn.datasets import load_digits, make_multilabel_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_predict
from sklearn.multiclass import OneVsRestClassifier

from datasets import DataError
from datasets.fixes import Fixes
from datasets.split import split
from datasets.ticks import Allowed, candidate_lines, fixes_before, merged, new_fixes
from tests.conftest import SMALL
from trainer.build.trained import load_with
from trainer.clean import main as clean
from trainer.comparing.fold_runs import FoldRuns, find_fold_runs
from trainer.comparing.predictions import Answer, prediction_lines, read_predictions
from trainer.components.label_errors import EM_STEPS, TRUST, judge_labels, judge_several
from trainer.inference.cleaning import NEIGHBOURS_SHOWN, _nearest, find_candidates, unseen
from trainer.input.data import load_subset
from trainer.insight.features import penultimate
from trainer.run.resume import config_for_use
from trainer.sweep import main as sweep

# --- The ranking


def by_hand(chances, given):
    """One annotator of unknown mistakes (Dawid and Skene, 1979), an image at a time."""
    count = len(chances[0])
    taken = [
        [TRUST if i == j else (1 - TRUST) / (count - 1) for j in range(count)] for i in range(count)
    ]

    def right(chance, label):
        weighed = [chance[i] * taken[i][label] for i in range(count)]
        return [weight / sum(weighed) for weight in weighed]

    for _ in range(EM_STEPS):
        seen = [[1 / count] * count for _ in range(count)]
        for chance, label in zip(chances, given, strict=True):
            for i, share in enumerate(right(chance, label)):
                seen[i][label] += share
        taken = [[number / sum(row) for number in row] for row in seen]
    return [right(chance, label) for chance, label in zip(chances, given, strict=True)]


def test_a_label_is_as_right_as_expectation_maximization_by_hand_says():
    random = numpy.random.default_rng(0)
    chances = random.dirichlet([0.4] * 4, 60)
    given = random.integers(0, 3, 60)  # no label says 3
    right, other = judge_labels(chances.astype("float32"), given)
    wanted = by_hand(chances.astype("float32").astype(float).tolist(), given.tolist())
    for row, label in enumerate(given.tolist()):
        assert right[row] == pytest.approx(wanted[row][label], abs=1e-9)
        others = {share: k for k, share in enumerate(wanted[row]) if k != label}
        assert other[row] == others[max(others)]


def test_each_of_several_labels_is_judged_by_itself_and_the_worst_one_is_turned_round():
    random = numpy.random.default_rng(1)
    chances, has = random.random((40, 3)), random.random((40, 3)) < 0.4
    right, likely = judge_several(chances, has)
    columns = [
        by_hand([[1 - p, p] for p in chances[:, k].tolist()], has[:, k].astype(int).tolist())
        for k in range(3)
    ]
    for row in range(40):
        each = [columns[k][row][int(has[row, k])] for k in range(3)]
        assert right[row] == pytest.approx(min(each), abs=1e-9)
        turned = {k for k, chance in enumerate(each) if chance < 0.5} | {each.index(min(each))}
        assert {*numpy.flatnonzero(likely[row] != has[row])} == turned


def flipped(kind, true, random):
    given = true.copy()
    if kind == "uniform":
        rows = random.choice(len(true), len(true) // 20, replace=False)
        given[rows] = (true[rows] + random.integers(1, 10, len(rows))) % 10
    for one, other in ((6, 0), (2, 4), (7, 9), (3, 1), (8, 5)) if kind == "pairs" else ():
        rows = numpy.flatnonzero(true == one)
        given[random.choice(rows, round(0.3 * len(rows)), replace=False)] = other
    return given


@pytest.mark.parametrize(("kind", "gap"), [("uniform", 0.03), ("pairs", 0.0)])
def test_flipped_labels_come_first_as_with_cleanlab_on_the_same_probabilities(kind, gap):
    rank = pytest.importorskip("cleanlab.rank", reason="pip install cleanlab to compare")
    images, true = load_digits(return_X_y=True)
    given = flipped(kind, true, numpy.random.default_rng(0))
    model = LogisticRegression(max_iter=200)
    chances = cross_val_predict(model, images / 16, given, cv=3, method="predict_proba")
    right, _ = judge_labels(chances, given)
    own = average_precision_score(given != true, -right)
    theirs = [
        average_precision_score(
            given != true,
            -rank.get_label_quality_scores(
                given, chances, method=method, adjust_pred_probs=adjusted
            ),
        )
        for method in ("self_confidence", "normalized_margin")
        for adjusted in (False, True)
    ]
    assert own > max(theirs) - gap


def test_wrong_ones_of_several_labels_come_first_as_with_cleanlab():
    reason = "pip install cleanlab to compare"
    theirs = pytest.importorskip("cleanlab.multilabel_classification", reason=reason)
    inputs, true = make_multilabel_classification(1500, n_classes=6, random_state=0)
    random, has = numpy.random.default_rng(0), true.astype(bool)
    has[random.choice(1500, 75, replace=False), random.integers(0, 6, 75)] ^= True
    model = OneVsRestClassifier(LogisticRegression(max_iter=200))
    chances = cross_val_predict(model, inputs, has.astype(int), cv=3, method="predict_proba")
    wrong = (has != true).any(axis=1)
    labels = [numpy.flatnonzero(row).tolist() for row in has]
    least = average_precision_score(wrong, -theirs.get_label_quality_scores(labels, chances))
    assert average_precision_score(wrong, -judge_several(chances, has)[0]) > least


# --- From ticks to fixes


def sha(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


KNOWN = Allowed(("cat", "dog", "a,b"), False, {sha(number) for number in range(9)})


def folds_of(tmp_path, **changed) -> Any:
    """What is known of runs over folds, without any run."""
    known = {"sweep": tmp_path, "trial": 0, "base_split": None, "split": {}, "digest_of": {}}
    return FoldRuns(**(known | {"several": False, "held_out": "val"} | changed))


def made(tmp_path, table, known=KNOWN, with_test=False, before=()):
    """The labels by digest in the file of fixes that the ticks make, and the notes."""
    new, notes = new_fixes(table, known, with_test)
    content, _, replaced = merged(before, new)
    (tmp_path / "fixes.csv").write_text(content)
    return labels_in(tmp_path / "fixes.csv"), [*notes, *replaced]


def ticked(tmp_path, *rows):
    path = tmp_path / "ticked.csv"
    text = "".join(f"{tick},{label},cat,dog,0.1,0.1,0.9,{part},{number}.jpg,{sha(number)}\n"
                   for tick, label, part, number in rows)  # fmt: skip
    path.write_text("tick,label,given,likely,score,p_given,p_likely,part,id,sha256\n" + text)
    return path


def labels_in(path):
    with open(path, newline="") as file:
        return {row["sha256"]: row["label"] for row in csv.DictReader(file)}


def applied(tmp_path, labels, classes) -> Any:
    """What Fixes makes of a dataset's labels by the file."""
    data: Any = SimpleNamespace(labels=labels, classes=classes)
    digests = [(number, sha(number)) for number in range(len(labels))]
    left_out, _ = Fixes(str(tmp_path / "fixes.csv"), data).apply(data, digests)
    return data.labels, left_out


def test_only_ticked_rows_become_fixes_that_a_dataset_takes(tmp_path):
    table = ticked(
        tmp_path,
        *[("x", "dog", "train", 0), ("", "dog", "train", 1), ("1", '"a,b"', "val", 2)],
        *[("yes", "leave out", "train", 3), ("0", "dog", "train", 4), ("x", "cat", "train", 5)],
    )
    labels, notes = made(tmp_path, table)
    assert labels == {sha(0): "dog", sha(2): "a,b", sha(3): "leave out"}
    assert notes == ["1 tick with the label that was given: no change"]
    assert applied(tmp_path, (0,) * 6, KNOWN.classes) == ((1, 0, 2, 0, 0, 0), {3})


def test_test_images_are_fixed_with_the_flag_only(tmp_path):
    table = ticked(tmp_path, ("x", "dog", "test", 0), ("x", "dog", "train", 1))
    labels, notes = made(tmp_path, table)
    assert labels == {sha(1): "dog"}
    assert notes == ["1 tick of test images left out; --test takes them"]
    assert made(tmp_path, table, with_test=True) == ({sha(0): "dog", sha(1): "dog"}, [])


def test_the_new_file_holds_the_fixes_before_and_tells_what_it_contradicts(tmp_path):
    file = tmp_path / "before.csv"
    file.write_text(f"Label;note;SHA256\ndog;by A;{sha(0).upper()}\ncat;by A;{sha(7)}\n")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    table = ticked(tmp_path, ("x", "leave out", "train", 0), ("x", "dog", "train", 1))
    labels, notes = made(tmp_path, table, before=fixes_before(str(file), digest))
    assert labels == {sha(7): "cat", sha(0): "leave out", sha(1): "dog"}
    assert notes == ["0.jpg: the fixes before said 'dog', the tick 'leave out': the tick counts"]
    assert f"{sha(7)},cat,by A," in (tmp_path / "fixes.csv").read_text()
    assert fixes_before(None, None) == []
    file.write_text("sha256,label\n")
    with pytest.raises(DataError, match="before.csv has changed since the sweep"):
        fixes_before(str(file), digest)
    with pytest.raises(DataError, match="gone.csv is not there"):
        fixes_before(str(tmp_path / "gone.csv"), digest)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("x", "dgo", "train", 0)], "ticked.csv:2: 'dgo' is no class; did you mean 'dog'?"),
        ([("x", "", "train", 0)], ":2: the label is empty"),
        ([("x", "dog", "train", 99)], "is the SHA-256 of no image of the sweep"),
        ([("x", "dog", "train", 0), ("x", "a", "train", 1)], ":3: 'a' is no class"),
        ([("x", "dog", "train", 0), ("x", "leave out", "train", 0)], ":3: contradicts another"),
        ([("", "dog", "train", 0)], "no row is ticked with a new label: put an x in the column"),
        ([("x", "dog", "test", 0)], "1 tick of test images left out; --test takes them"),
    ],
)
def test_each_fault_of_a_ticked_table_is_told(tmp_path, rows, told):
    with pytest.raises(DataError) as caught:
        made(tmp_path, ticked(tmp_path, *rows))
    assert told in str(caught.value)


def test_several_labels_are_written_with_semicolons(tmp_path):
    known = KNOWN._replace(several=True)
    rows = [("x", "cat; dog", "train", 0), ("x", ";", "train", 1)]
    made(tmp_path, ticked(tmp_path, *rows), known)
    labels, _ = applied(tmp_path, ((1.0, 0.0),) * 3, ("cat", "dog"))
    assert labels == ((1.0, 1.0), (0.0, 0.0), (1.0, 0.0))
    with pytest.raises(DataError, match="'cow' is no class"):
        made(tmp_path, ticked(tmp_path, ("x", "cat;cow", "train", 0)), known)


def test_an_official_test_set_is_judged_by_the_mean_of_all_models_and_stands_apart(tmp_path):
    random = numpy.random.default_rng(0)
    chances = random.dirichlet([1.0, 1.0], (2, 30)).astype("float32")
    runs, fold_of = {}, dict[str, int]()
    for fold in (0, 1):
        runs[fold] = tmp_path / f"fold{fold}"
        runs[fold].mkdir()
        rows = []
        for number, pair in enumerate(chances[fold].tolist()):
            part = "test" if number >= 20 else "val"
            name = f"{number}.jpg" if part == "test" else f"{fold}-{number}.jpg"
            fold_of |= {name: fold} if part == "val" else {}
            rows.append(Answer(name, sha(name), part, "cat", "cat", pair[0], 0.0, pair))
        text = "\n".join([*prediction_lines(("cat", "dog"), rows), ""])
        (runs[fold] / "predictions.csv").write_text(text)
    folds = folds_of(tmp_path, runs=runs, held_out="val", fold_of=fold_of, classes=("cat", "dog"))
    part_of = dict.fromkeys(fold_of, "train") | {f"{n}.jpg": "test" for n in range(20, 30)}
    found = find_candidates(folds, part_of)
    assert found.judged == 50
    mean = chances[:, 20:].mean(axis=0)
    wanted = {f"{20 + row}.jpg" for row in numpy.flatnonzero(mean[:, 1] > mean[:, 0])}
    assert {one.id for one in found.of_test} == wanted
    assert all(one.fold is None and one.part == "test" for one in found.of_test)
    own = {f"{f}-{n}.jpg" for f in (0, 1) for n in range(20) if chances[f, n, 1] > chances[f, n, 0]}
    assert {one.id for one in found.candidates} == own
    scores = [one.score for one in found.candidates]
    assert scores == sorted(scores)
    assert all(one.fold == fold_of[one.id] for one in found.candidates)
    assert candidate_lines(found.candidates).count("\n") == 1 + len(own)


def test_the_table_that_a_sweep_joined_of_its_folds_is_used_if_it_has_their_images(tmp_path):
    def write(path, share, names):
        path.mkdir(exist_ok=True)
        rows = [
            Answer(name, sha(name), "test", "cat", "cat", share, 0.0, (share, 1 - share))
            for name in names
        ]
        lines = prediction_lines(("cat", "dog"), rows)
        (path / "predictions.csv").write_text("\n".join([*lines, ""]))

    for fold, name in enumerate("ab"):
        write(tmp_path / f"fold{fold}", 0.5, name)
    runs = {fold: tmp_path / f"fold{fold}" for fold in (0, 1)}
    known: dict[str, Any] = {"runs": runs, "fold_of": {"a": 0, "b": 1}, "held_out": "test"}
    folds = folds_of(tmp_path, classes=("cat", "dog"), **known)
    tables = [read_predictions(run / "predictions.csv") for run in runs.values()]
    for names, share in (("ab", 0.25), ("ac", 0.5)):
        write(tmp_path / "t000", 0.25, names)
        table = unseen(folds, tables)
        assert table.ids == ["a", "b"] and table.probabilities[:, 0].tolist() == [share] * 2


# --- A sweep, its page and its fixes

NAMES = ('</script><b>"1", one', "100 'yuan'; & <i>")  # hostile in HTML, CSV and JavaScript


@pytest.fixture(scope="module")
def swept(tmp_path_factory, notes):
    """A sweep over three folds of notes, of which six have the other label: folder, ids, labels."""
    folder = tmp_path_factory.mktemp("swept")
    images = sorted(path.relative_to(notes).as_posix() for path in notes.rglob("*.jpg"))
    true = [int(name.startswith("100/")) for name in images]
    given = [label ^ (row % 8 == 3) for row, label in enumerate(true)]
    with open(folder / "labels.csv", "w", newline="") as file:
        rows = [[name, NAMES[label]] for name, label in zip(images, given, strict=True)]
        csv.writer(file).writerows([["path", "label"], *rows])
    text = SMALL.format(root=notes).replace(
        "name: RMB", f"name: CSVImages, csv: {folder}/labels.csv"
    )
    (folder / "base.yaml").write_text(text.replace("epochs: 2", "epochs: 6"))
    (folder / "folds.yaml").write_text("base: base.yaml\nsweep: {method: grid, folds: 3}\n")
    assert not sweep(["--config", f"{folder}/folds.yaml", "--runs", f"{folder}/runs"])
    return folder / "runs" / "folds", images, true, given


@pytest.fixture
def own_sweep(swept, tmp_path):
    """A copy of the sweep, to write in."""
    return shutil.copytree(swept[0], tmp_path / "folds")


class Page(HTMLParser):
    """The tags of a page, and the text of its script of data."""

    def __init__(self, text):
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.data, self.words, self._in = "", "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = dict(attrs).get("id") or tag

    def handle_data(self, data):
        self.data += data if self._in == "data" else ""
        self.words += data if self._in not in ("data", "script", "style") else ""


def test_swapped_labels_are_found_shown_and_mended_without_touching_the_data(
    swept, own_sweep, notes, tmp_path, capsys
):
    _, images, true, given = swept
    contents = {name: (notes / name).read_bytes() for name in images}
    digests = [hashlib.sha256(contents[name]).hexdigest() for name in images]
    in_test = {images[row] for row in split(given, digests, [None] * 50, (8, 1, 1), 0)["test"]}
    assert not clean([str(own_sweep), "--no-near"])
    file = own_sweep / "clean" / "candidates.csv"
    with open(file, newline="") as opened:
        rows = list(csv.DictReader(opened))
    wrong = {name for name, a, b in zip(images, true, given, strict=True) if a != b}
    first = {row["id"] for row in rows if row["part"] != "test"}
    assert wrong - in_test <= first and {row["part"] for row in rows if row["id"] in in_test} <= {
        "test"
    }
    assert [row["tick"] for row in rows] == [""] * len(rows)
    assert f"suspect {len(first)} that the models contradict" in capsys.readouterr().out

    for row in rows:
        row["tick"] = "x" * (row["id"] in wrong)
    with open(file, "w", newline="") as opened:
        writer = csv.DictWriter(opened, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    assert clean([str(own_sweep)]) == 2  # the ticks would be lost
    apply = [str(own_sweep), "--apply", str(file), "--out", f"{tmp_path}/fixes.csv"]
    assert not clean(apply)
    assert clean(apply) == 2 and "exists, and is not overwritten" in capsys.readouterr().err
    numbers = {name: k for k, name in enumerate(NAMES)}
    fixed = {digest: numbers[name] for digest, name in labels_in(tmp_path / "fixes.csv").items()}
    assert fixed == {digests[k]: true[k] for k in range(50) if images[k] in wrong - in_test}
    assert {name: (notes / name).read_bytes() for name in images} == contents


def test_the_page_needs_nothing_escapes_names_and_lists_test_images_without_boxes(own_sweep):
    assert not clean([str(own_sweep), "--show", "5"])
    text = (own_sweep / "clean" / "clean.html").read_text()
    page = Page(text)
    assert json.loads(page.data)["classes"] == sorted(NAMES)
    assert not [tag for tag, _ in page.tags if tag == "i"] and "</script><b>" not in text
    assert NAMES[0] in page.words and NAMES[1] in page.words
    sources = [has["src"] for tag, has in page.tags if tag == "img"]
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?://", text)
    cards = [has for tag, has in page.tags if tag == "article"]
    assert 1 <= sum("data-number" in has for has in cards) <= 5
    boxes = [has for tag, has in page.tags if has.get("type") == "checkbox"]
    assert len(boxes) == len(json.loads(page.data)["candidates"])


@pytest.mark.browser
def test_the_page_in_a_browser_makes_the_file_that_the_command_makes(own_sweep, tmp_path):
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright to look")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if not chromium:
        pytest.skip("needs a browser: apt-get install chromium")
    assert not clean([str(own_sweep), "--no-near", "--test"])
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.goto((own_sweep / "clean" / "clean.html").as_uri())
        assert page.locator("#download").is_disabled()
        page.keyboard.press("j")
        page.keyboard.press("Space")
        page.keyboard.press("j")
        page.keyboard.press("o")
        page.keyboard.press("j")
        select = page.locator("select.choice").nth(2)
        given = page.locator("article b").nth(2).inner_text()
        select.focus()
        select.select_option(label=next(n for n in NAMES if n.split() != given.split()))
        assert page.locator("#state").inner_text() == "3 ticked"
        with page.expect_download() as got:
            page.locator("#download").click()
        content = Path(got.value.path()).read_bytes()
        browser.close()
    assert not faults
    file = own_sweep / "clean" / "candidates.csv"
    with open(file, newline="") as opened:
        rows = list(csv.DictReader(opened))
    for row in rows[:3]:
        row["tick"] = "x"
    rows[1]["label"] = "leave out"
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]])
    writer.writeheader()
    writer.writerows(rows)
    file.write_text(text.getvalue())
    out = tmp_path / "fixes.csv"
    assert not clean([str(own_sweep), "--apply", str(file), "--out", str(out), "--test"])
    assert out.read_bytes() == content


def test_neighbours_are_those_of_scikit_learn_without_images_of_equal_content(own_sweep):
    folds = find_fold_runs(str(own_sweep), None)
    run = folds.runs[0]
    config = config_for_use(run, ["train.device=cpu"])
    _, subset = load_subset(config, folds.digest_of, torch.device("cpu"), folds.split)
    trained = load_with(config, run)
    everything = torch.arange(len(subset))
    images, _ = subset.batch(everything, 0, trained.device, trained.channels_last)
    with torch.no_grad():
        features = penultimate(trained.model, images).numpy()
    contents = everything // 2  # each two count as copies
    found = _nearest(trained, subset, everything[:6], contents, "neighbours")
    distances = sklearn.metrics.pairwise.cosine_distances(features)
    for row, near in enumerate(found):
        others = [other for other in everything.tolist() if other // 2 != row // 2]
        wanted = sorted(distances[row, others])[:NEIGHBOURS_SHOWN]
        assert not {row, row ^ 1} & {*near}
        assert distances[row, near] == pytest.approx(wanted, abs=1e-5)


def test_tables_that_do_not_go_together_are_refused_in_words(own_sweep, capsys):
    (own_sweep / "t000" / "predictions.csv").unlink()  # what the sweep joined
    table = sorted(own_sweep.glob("t000-*/*/predictions.csv"))[-1]
    header, rows = table.read_text(encoding="utf-8").split("\n", 1)
    table.write_text("\n".join([header.replace(",p:", ",p:other "), rows]), encoding="utf-8")
    assert clean([str(own_sweep)]) == 5
    assert "do not go together: their classes differ" in capsys.readouterr().err
    assert not (own_sweep / "clean").exists()


def test_what_is_no_sweep_over_folds_is_refused(own_sweep, tmp_path, capsys):
    assert clean([str(tmp_path)]) == 2
    assert "is no sweep's folder" in capsys.readouterr().err
    assert clean([str(own_sweep), "--trial", "7"]) == 2
    results = json.loads((own_sweep / "sweep.json").read_text())
    for change, code, told in (
        ({"fold": None}, 2, "is a sweep without folds"),
        ({"status": "failed"}, 5, "is failed, and every fold is needed"),
        ({"run": "gone/away"}, 5, "gone/away lies elsewhere"),
    ):
        changed = json.loads(json.dumps(results))
        changed["trials"][0]["runs"][1] |= change
        (own_sweep / "sweep.json").write_text(json.dumps(changed))
        assert clean([str(own_sweep)]) == code
        assert told in capsys.readouterr().err
    (own_sweep / "sweep.json").write_text("{}")
    assert clean([str(own_sweep)]) == 5
    with pytest.raises(SystemExit):
        clean([str(own_sweep), "--out", "x.csv"])
    assert not (own_sweep / "clean").exists()
