"""Evaluate on new labelled images, and the tables that evaluate and predict write."""

import csv
import json
import shutil
import unicodedata
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import sklearn.metrics
import torch
from PIL import Image

from datasets.fashion_mnist import FashionMNIST
from trainer.evaluate import main
from trainer.inference.labelled import match
from trainer.predict import main as predict
from trainer.train import main as train_command


def table(file):
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def write_rows(file, rows):
    with open(file, "w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows(rows)


def ids_of(run, part):
    return list(json.loads((run / "split.json").read_text())[part])


def folder_of(root, place, ids, names=None):
    """Copy images to class folders, which ``names`` may rename."""
    for name in ids:
        label, file = name.split("/")
        target = place / (names or {}).get(label, label) / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, target)
    return place


def without_part(rows):
    """What is answered for each content."""
    told = [{k: v for k, v in row.items() if k not in ("id", "part")} for row in rows]
    return sorted(told, key=lambda row: row["sha256"])


@pytest.fixture
def judged(capsys):
    """Call the command: exit code, the JSON of stdout, stderr."""

    def command(*words):
        capsys.readouterr()
        code = main([*map(str, words), "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return command


@pytest.mark.parametrize("form", ["folder", "csv"])
def test_copies_of_the_test_images_give_the_digits_of_the_run(
    finished, notes, tmp_path, judged, form
):
    run = finished()
    place = folder_of(notes, tmp_path / "new", ids_of(run, "test"))
    if form == "csv":
        lines = [f"{name},{name.split('/')[0]}" for name in ids_of(run, "test")]
        place = tmp_path / "new.csv"
        place.write_text("\n".join(["path,label", *lines]) + "\n")
    words = [f"dataset.root={tmp_path / 'new'}"] * (form == "csv")
    code, values, err = judged(run, place, *words)
    assert code == 0 and "note" not in err
    assert values == json.loads((run / "result.json").read_text())["test"]
    output = run / "evaluations" / "new"
    rows = table(output / "predictions.csv")
    assert {row["part"] for row in rows} == {"new"}
    of_run = [row for row in table(run / "predictions.csv") if row["part"] == "test"]
    assert without_part(rows) == without_part(of_run)
    assert json.loads((output / "metrics.json").read_text())["metrics"] == values
    pages = [(output / f"report.{kind}").read_text() for kind in ("md", "html")]
    assert all("small on new" in page and f"{len(rows)} images, measured" in page for page in pages)
    assert not any("Curves" in page or "Test split" in page for page in pages)
    assert not (output / "curves.png").exists()


def test_what_is_left_out_or_flatters_is_told_with_counts(finished, notes, tmp_path, judged):
    run, place = finished(), tmp_path / "new"
    test, train = ids_of(run, "test"), ids_of(run, "train")
    folder_of(notes, place, test)
    folder_of(notes, place, train[:3])
    folder_of(notes, place, test[:2], {"1": "coin", "100": "coin"})
    (place / "1" / "broken.jpg").write_bytes((notes / "1" / "000.jpg").read_bytes()[:90])
    name = next(name for name in test if name.startswith("1/"))
    shutil.copy(notes / name, place / "100" / "copy.jpg")
    code, values, err = judged(run, place)
    assert code == 0
    count = len(test) + 4
    assert f"3 of {count} images are of the run's train part (equal content)" in err
    assert "'coin' is no class of the run: 2 images in no metric" in err
    assert "1 image cannot be read, in no metric; first" in err and "broken.jpg" in err
    assert "1 image repeats the content of another, 1 of 1 groups with another class" in err
    rows = table(run / "evaluations" / "new" / "predictions.csv")
    assert len(rows) == count and not any("coin" in row["id"] for row in rows)
    true, predicted = zip(*((row["true"], row["predicted"]) for row in rows), strict=True)
    assert values["accuracy"] == sklearn.metrics.accuracy_score(true, predicted)
    expected = sklearn.metrics.f1_score(true, predicted, average="macro")
    assert values["macro_f1"] == pytest.approx(expected, abs=1e-12)
    assert values["loss"] == np.mean([float(row["loss"]) for row in rows])


def test_a_class_has_its_exact_name_or_the_one_that_is_told(finished, notes, tmp_path, judged):
    run, place = finished(), tmp_path / "new"
    folder_of(notes, place, ids_of(run, "test"), {"100": "100 Yuan", "1": "1"})
    _, _, err = judged(run, place)
    assert "did you mean '100'? type --rename '100 Yuan=100'" in err
    assert "no image of the run's '100'; --rename OLD=NEW takes a class there as one" in err
    code, values, err = judged(run, place, "--rename", "100 Yuan=100")
    assert code == 0 and "which are replaced" in err and "no class" not in err
    assert values == json.loads((run / "result.json").read_text())["test"]
    for rename, reason in (("5=100", "'5' is no class there"), ("1=5", "no class of the run")):
        code, _, err = judged(run, place, "--rename", rename)
        assert code == 2 and reason in err


def test_a_name_in_another_unicode_form_is_the_same(train, notes, tmp_path, judged):
    data, names = tmp_path / "data", {"1": "café", "100": "thé"}
    for label, name in names.items():
        shutil.copytree(notes / label, data / name)
    run = train(f"dataset={{name: ImageFolder, root: {data}}}", "train.epochs=1")
    other = {"café": unicodedata.normalize("NFD", "café"), "thé": "thé"}
    place = folder_of(data, tmp_path / "new", ids_of(run, "test"), other)
    code, values, _ = judged(run, place)
    assert code == 0 and values == json.loads((run / "result.json").read_text())["test"]


def test_classes_that_differ_in_their_unicode_form_only_are_never_taken_for_each_other():
    names = ("café", unicodedata.normalize("NFD", "café"))
    place = SimpleNamespace(classes=names, labels=(0, 1, 1))
    assert match(names, place, {}).numbers == {names[0]: 0, names[1]: 1}
    assert match(names[:1], place, {}).numbers == {names[0]: 0}
    assert match(("thé", *names[:1]), place, {names[1]: "thé"}).numbers == {
        names[0]: 1,
        names[1]: 0,
    }
    both_as_one = {names[0]: "thé", names[1]: "thé"}
    assert match(("thé", "lait"), place, both_as_one).numbers == {names[0]: 0, names[1]: 0}


def test_classes_of_which_none_is_the_runs_are_refused_and_nothing_is_written(
    finished, notes, tmp_path, judged
):
    run = finished()
    place = folder_of(notes, tmp_path / "new", ids_of(run, "test"), {"1": "cat", "100": "dog"})
    code, _, err = judged(run, place)
    assert code == 3 and "there: 'cat' and 'dog'" in err and "the run's: '1' and '100'" in err
    assert not (run / "evaluations").exists()


def test_answers_for_another_place_are_not_overwritten(finished, notes, tmp_path, judged):
    run = finished()
    place = folder_of(notes, tmp_path / "a" / "new", ids_of(run, "test"))
    assert judged(run, place)[0] == 0
    before = (run / "evaluations" / "new" / "metrics.json").read_bytes()
    other = folder_of(notes, tmp_path / "b" / "new", ids_of(run, "val"))
    code, _, err = judged(run, other)
    assert code == 2 and "name another folder: --output" in err
    assert (run / "evaluations" / "new" / "metrics.json").read_bytes() == before
    assert judged(run, other, "--output", tmp_path / "out")[0] == 0
    assert len(table(tmp_path / "out" / "predictions.csv")) == len(ids_of(run, "val"))


def test_neither_the_runs_dataset_nor_its_loss_weights_are_needed(train, notes, tmp_path, judged):
    data = shutil.copytree(notes, tmp_path / "data")
    run = train(f"dataset.root={data}", "loss.weight=balanced", "train.epochs=1")
    place = folder_of(data, tmp_path / "new", ids_of(run, "test"))
    shutil.rmtree(data)
    code, values, err = judged(run, place)
    assert code == 0 and "no loss: loss.weight=balanced goes by" in err
    of_run = json.loads((run / "result.json").read_text())["test"]
    assert values == {name: value for name, value in of_run.items() if name != "loss"}
    assert all(row["loss"] == "" for row in table(run / "evaluations" / "new" / "predictions.csv"))


def test_a_run_on_grey_arrays_judges_png_files_by_their_pixels(
    fashion_root, tmp_path, judged, capsys
):
    file = tmp_path / "fashion.yaml"
    file.write_text(
        f"dataset: {{name: FashionMNIST, root: {fashion_root}}}\n"
        "transforms: {both: [{name: Normalize, mean: [0.5], std: [0.25]}]}\n"
        "model: {name: MLP, hidden: [8]}\noptimizer: {name: SGD, lr: 0.1}\n"
        "metrics: [accuracy]\ntrain: {epochs: 1, device: cpu}\n"
    )
    assert train_command(["--config", str(file), "--runs", str(tmp_path / "runs")]) == 0
    (run,) = (tmp_path / "runs" / "fashion").iterdir()
    capsys.readouterr()
    dataset, place = FashionMNIST(str(fashion_root), download=False), tmp_path / "new"
    for name in [*ids_of(run, "test"), *ids_of(run, "train")[:2]]:
        index = dataset.ids.index(name)
        label = dataset.classes[dataset.labels[index]].replace("/", " or ")
        (place / label).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(dataset.image(index)[0].numpy())
        picture.save(place / label / f"{name.replace('/', '-')}.png")
    code, values, err = judged(run, place, "--rename", "T-shirt or top=T-shirt/top")
    assert code == 0 and "2 of 32 images are of the run's train part" in err
    for file in place.glob("*/train-*"):
        file.unlink()
    _, values, err = judged(run, place, "--rename", "T-shirt or top=T-shirt/top")
    assert "train part" not in err
    assert values == json.loads((run / "result.json").read_text())["test"]
    large = tmp_path / "large" / "Bag"
    large.mkdir(parents=True)
    Image.new("L", (40, 40)).save(large / "a.png")
    code, _, err = judged(run, large.parent)
    assert code == 3 and "1 x 40 x 40, and its model was trained on 1 x 28 x 28" in err


def test_labels_of_arrays_are_those_of_the_place_and_not_of_the_run(tmp_path, judged):
    drawn, labels = np.random.default_rng(0), np.arange(60) % 3
    images = (drawn.integers(0, 100, (60, 8, 8)) + 70 * labels[:, None, None]).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    file = tmp_path / "own.yaml"
    file.write_text(
        f"dataset: {{name: Arrays, root: {tmp_path}/images.npy, labels: {tmp_path}/labels.npy, "
        "classes: [low, middle, high]}\n"
        "transforms: {both: [{name: Normalize, mean: [0.5], std: [0.25]}]}\n"
        "model: {name: MLP, hidden: [8]}\noptimizer: {name: SGD, lr: 0.1}\n"
        "metrics: [accuracy]\ntrain: {epochs: 1, device: cpu}\n"
    )
    assert train_command(["--config", str(file), "--runs", str(tmp_path / "runs")]) == 0
    (run,) = (tmp_path / "runs" / "own").iterdir()
    np.savez(tmp_path / "new.npz", images=images[::-1] ^ 1, labels=labels[::-1])
    code, values, _ = judged(run, tmp_path / "new.npz")
    rows = table(run / "evaluations" / "new" / "predictions.csv")
    names = np.array(["low", "middle", "high"])
    assert code == 0 and [row["true"] for row in rows] == names[labels[::-1]].tolist()
    predicted = [row["predicted"] for row in rows]
    expected = sklearn.metrics.accuracy_score(names[labels[::-1]], predicted)
    assert values["accuracy"] == pytest.approx(expected)


def test_images_with_several_labels_are_judged_by_the_columns_of_the_run(tmp_path, judged, capsys):
    labels, drawn = ["red", "green", "blue"], np.random.default_rng(0)
    rows: list[list[object]] = []
    for number in range(80):
        has = [number % 2, number // 2 % 2, int(number % 5 == 2)]
        pixels = drawn.integers(0, 120, (8, 8, 3)) + 100 * np.array(has)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number:03d}.png")
        rows.append([f"{number:03d}.png", *has])
    write_rows(tmp_path / "all.csv", [["path", *labels], *rows])
    file = tmp_path / "several.yaml"
    file.write_text(
        f"dataset: {{name: CSVImages, root: {tmp_path}, csv: {tmp_path}/all.csv, "
        "label_columns: all}\n"
        "transforms: {both: [{name: Normalize, mean: [0.5], std: [0.25]}]}\n"
        "model: {name: MLP, hidden: [8]}\nloss: BCEWithLogitsLoss\n"
        "optimizer: {name: AdamW, lr: 0.01}\nmetrics: [accuracy, macro_f1]\n"
        "train: {epochs: 2, device: cpu}\n"
    )
    assert train_command(["--config", str(file), "--runs", str(tmp_path / "runs")]) == 0
    (run,) = (tmp_path / "runs" / "several").iterdir()
    capsys.readouterr()
    test = ids_of(run, "test")
    # the columns in another order, and one that the run does not know
    chosen = [[name, blue, 1, red, green] for name, red, green, blue in rows if name in test]
    lines: list[list[object]] = [["path", "blue", "odd", "red", "green"], *chosen]
    write_rows(tmp_path / "new.csv", lines)
    code, values, err = judged(run, tmp_path / "new.csv")
    assert code == 0 and f"'odd' is no class of the run: is not judged ({len(test)} images)" in err
    assert values == json.loads((run / "result.json").read_text())["test"]
    of_run = [row for row in table(run / "predictions.csv") if row["part"] == "test"]
    of_place = table(run / "evaluations" / "new" / "predictions.csv")
    assert without_part(of_place) == without_part(of_run)
    (tmp_path / "folder" / "red").mkdir(parents=True)
    shutil.copy(tmp_path / "001.png", tmp_path / "folder" / "red")
    code, _, err = judged(run, tmp_path / "folder")
    assert code == 3 and "one class, and one of the run has several labels" in err


def test_evaluate_writes_the_table_of_the_run_to_the_byte_and_replaces_no_other(
    finished, tmp_path, capsys
):
    run = finished()
    expected = (run / "predictions.csv").read_bytes()
    (run / "predictions.csv").unlink()  # as in an older run
    assert main([str(run), "--predictions"]) == 0
    assert (run / "predictions.csv").read_bytes() == expected
    assert main([str(run), "--predictions"]) == 0 and "has this content" in capsys.readouterr().err
    (run / "predictions.csv").write_text("mine\n")
    assert main([str(run), "--predictions"]) == 2
    assert "another content" in capsys.readouterr().err
    assert (run / "predictions.csv").read_text() == "mine\n"
    assert main([str(run), "--predictions", str(tmp_path / "val.csv"), "--split", "val"]) == 0
    rows = table(tmp_path / "val.csv")
    assert [row["id"] for row in rows] == ids_of(run, "val")
    assert not [file.name for file in run.iterdir() if ".new" in file.name]


def test_parquet_holds_the_cells_of_the_csv(finished, notes, tmp_path, capsys):
    run = finished()
    written = {
        run / "predictions.csv": tmp_path / "run.parquet",
        tmp_path / "some.csv": tmp_path / "some.parquet",
    }
    assert main([str(run), "--predictions", str(tmp_path / "run.parquet")]) == 0
    files = [str(tmp_path / f"some.{kind}") for kind in ("csv", "parquet")]
    assert predict([str(run), str(notes), "--csv", files[0], "--parquet", files[1]]) == 0
    for comma, parquet in written.items():
        found = pyarrow.parquet.read_table(parquet)
        rows = table(comma)
        assert found.column_names == list(rows[0])
        kinds = [str(kind) for kind in found.schema.types]
        assert kinds == ["string"] * 5 + ["float", "double"] + ["float"] * 2
        for name in found.column_names[:5]:
            assert found[name].to_pylist() == [row[name] for row in rows]
        for name in ["probability", "p:1", "p:100"]:
            read = torch.tensor([float(row[name]) for row in rows])
            assert torch.equal(torch.tensor(found[name].to_pylist()), read)
        losses = [float(row["loss"]) if row["loss"] else None for row in rows]
        assert found["loss"].to_pylist() == losses


@pytest.mark.parametrize(
    "words, reason",
    [
        (["nowhere"], "does not exist"),
        (["{notes}", "{run}"], "expected one folder or table"),
        (["{notes}", "--split", "val"], "--split is of the run's own images"),
        (["{notes}", "--predictions"], "--predictions is of the run's own"),
        (["--output", "x"], "--output is for new images"),
        (["{notes}", "--rename", "x"], "expected OLD=NEW"),
        (["--predictions", "--split", "val"], "name a FILE for one split"),
        (["--predictions", "--tta", "flip"], "name a FILE for another"),
        (["{run}/config.yaml"], "expected a folder with class folders, or a file of"),
        (["{notes}", "dataset.colour=1"], "dataset.colour"),
        (["{notes}", "dataset.root={run}"], "name their place after RUN"),
    ],
)
def test_what_does_not_go_together_ends_with_code_2(finished, notes, capsys, words, reason):
    run = finished()
    given = [str(run), *(word.format(notes=notes, run=run) for word in words)]
    try:
        assert main(given) == 2
    except SystemExit as ended:
        assert ended.code == 2
    assert reason in " ".join(capsys.readouterr().err.split())
