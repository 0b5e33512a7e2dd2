import ast
import csv
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import yaml_trainer
from trainer import evaluate, explain, export, train
from trainer.build.prepare import prepare
from trainer.build.trained import TrainedModel, load_trained
from trainer.config import load_config
from trainer.config.arguments import RANGES
from trainer.drawing.pictures import caption_lines
from trainer.inference import prediction, prediction_output
from trainer.inference.evaluation import evaluate_run
from trainer.inference.image_files import find_images
from trainer.inference.prediction import file_source, map_in_order, predict_images
from trainer.inference.prediction_output import table_lines
from trainer.loop.fit import fit
from trainer.predict import main
from trainer.process.errors import ConfigError, UsageError
from trainer.process.stop import StopRequest
from trainer.run.folder import find_run

CONFIG = """
dataset: {{name: RMB, root: {root}}}
transforms:
  train:
    - {{name: Resize, size: [32, 32]}}
    {augment}
    - {{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
  eval:
    - {{name: Resize, size: [32, 32]}}
    - {{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
loader: {{batch_size: 8, workers: 0}}
model: {{name: LeNet}}
optimizer: {{name: SGD, lr: 0.01, momentum: 0.9}}
train: {{epochs: 2, device: cpu}}
"""
MIRRORED_AND_MIXED = (
    "- {name: RandomHorizontalFlip, p: 1.0}\n    - {name: MixUp, alpha: 0.5}"  # the first: always
)


def made(folder, notes, augment):
    """A run whose dataset is gone, as a run that was copied to another machine."""
    data = shutil.copytree(notes, folder / "data")
    (folder / "small.yaml").write_text(CONFIG.format(root=data, augment=augment))
    job = prepare(load_config(folder / "small.yaml", []), lambda line: None)
    with StopRequest() as stop:
        run = fit(job, folder / "runs", None, lambda line: None, stop)
    shutil.rmtree(data)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory, notes):
    return made(
        tmp_path_factory.mktemp("plain"), notes, "- {name: RandomCrop, size: 32, padding: 4}"
    )


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory, notes):
    return made(tmp_path_factory.mktemp("mirrored"), notes, MIRRORED_AND_MIXED)


@pytest.fixture
def predict(run, capsys):
    """Call the command; its exit code, and what it printed on stdout and stderr."""

    def command(*arguments, run=run):
        code = main([str(run), *map(str, arguments)])
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def listed(predict):
    """The entries of --json."""

    def command(*arguments, **more):
        code, out, err = predict(*arguments, "--json", **more)
        assert code == 0, err
        return json.loads(out)

    return command


def photo(path, colour=(180, 60, 60), size=(48, 24), save="PNG", mode="RGB", **options):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, save, **options)
    return path


def lopsided(path):
    """A picture of which a model may think otherwise in the mirror: half like each class."""
    with Image.open(photo(path)) as picture:
        picture.paste((60, 140, 60), (0, 0, 24, 24))
        picture.save(path)
    return path


def by_hand(run, path, flip=False):
    """Probabilities by Pillow, torchvision and a plain forward pass."""
    pixels = v2.functional.pil_to_tensor(Image.open(path).convert("RGB"))
    image = v2.functional.resize(pixels, [32, 32], antialias=True).float() / 255
    image = (image - 0.5) / 0.25
    model = load_trained(run).model
    with torch.no_grad():
        return model((image.flip(-1) if flip else image)[None]).softmax(dim=1)[0]


# What is predicted


def test_images_are_decoded_as_the_run_decoded_them(run, tmp_path):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    fast = shutil.copytree(run, tmp_path / "fast")
    (fast / "config.yaml").write_text(
        yaml.safe_dump(settings | {"dataset": settings["dataset"] | {"decode": "fast"}})
    )
    large = photo(tmp_path / "large.jpg", size=(800, 600), save="JPEG")
    assert load_trained(run).read(large).shape == (3, 600, 800)
    assert load_trained(fast).read(large).shape == (3, 75, 100)  # at least twice 32


def test_a_run_on_reduced_photographs_is_judged_and_used_on_the_same_ones(tmp_path, listed, capsys):
    draws = random.Random(0)
    for name, colour in (("1", (60, 140, 60)), ("100", (180, 60, 60))):
        for number in range(12):
            noise = Image.effect_noise((400, 300), draws.uniform(20, 120)).convert("RGB")
            picture = Image.blend(noise, Image.new("RGB", noise.size, colour), draws.random() / 2)
            path = tmp_path / "photographs" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    root = tmp_path / "photographs"
    text = CONFIG.format(root=root, augment="- {name: RandomHorizontalFlip}")
    (tmp_path / "fast.yaml").write_text(text + "metrics: [accuracy, macro_f1, auroc]\n")
    job = prepare(load_config(tmp_path / "fast.yaml", ["dataset.decode=fast"]), lambda line: None)
    with StopRequest() as stop:
        run = fit(job, tmp_path / "runs", None, lambda line: None, stop)
    expected = json.loads((run / "result.json").read_text())["test"]
    for workers in (0, 1):  # whether the images come from the store or are read anew
        options = [f"loader.workers={workers}", f"loader.cache={'off' if workers else 'auto'}"]
        config = load_config(run / "config.yaml", options)
        found = evaluate_run(run, config, "test")
        assert {name: found[name] for name in expected} == expected
    names = list(json.loads((run / "split.json").read_text())["test"])
    model = load_trained(run).model
    capsys.readouterr()  # the table of training
    for entry in listed(*(root / name for name in names), run=run):
        with Image.open(entry["path"]) as image:
            image.draft(
                "RGB", (100, 75)
            )  # Pillow's own reduction: the smallest of at least twice 32
            assert image.size == (100, 75)
            pixels = v2.functional.pil_to_tensor(image)
        inputs = (v2.functional.resize(pixels, [32, 32], antialias=True) / 255 - 0.5) / 0.25
        with torch.no_grad():
            chances = model(inputs[None]).softmax(dim=1)[0]
        values = torch.tensor(list(entry["probabilities"].values()))
        assert torch.allclose(values, chances, rtol=0, atol=1e-6)
        by_all_pixels = by_hand(run, entry["path"])
        assert not torch.allclose(values, by_all_pixels, rtol=0, atol=1e-6)


def test_the_test_images_get_the_accuracy_of_the_runs_result(run, notes, listed):
    names = list(json.loads((run / "split.json").read_text())["test"])
    entries = listed(*(notes / name for name in names))
    right = [Path(e["path"]).parent.name == e["class"] for e in entries]
    result = json.loads((run / "result.json").read_text())
    assert sum(right) / len(right) == result["test"]["accuracy"]
    config = load_config(run / "config.yaml", [f"dataset.root={notes}"])
    assert sum(right) / len(right) == evaluate_run(run, config, "test")["accuracy"]
    loss = -sum(
        torch.tensor(e["probabilities"][Path(e["path"]).parent.name]).log().item() for e in entries
    )
    assert loss / len(entries) == pytest.approx(result["test"]["loss"], rel=1e-4)


def test_images_are_prepared_as_in_training_and_numbers_are_exact(run, notes, listed):
    paths = sorted(notes.glob("*/00*.jpg"))
    for entry, path in zip(listed(*paths), paths, strict=True):
        assert list(entry) == ["path", "class", "probability", "probabilities"]
        assert entry["path"] == str(path)
        assert list(entry["probabilities"]) == ["1", "100"]
        values = torch.tensor(list(entry["probabilities"].values()), dtype=torch.float64)
        assert torch.allclose(values, by_hand(run, path).double(), atol=1e-5)
        assert torch.equal(values, values.float().double())  # nothing was rounded
        assert entry["probability"] == values.max() == entry["probabilities"][entry["class"]]


@pytest.mark.parametrize(
    "kind",
    [
        {"save": "PNG"},
        {"save": "PNG", "mode": "RGBA"},
        {"save": "PNG", "mode": "P"},
        {"save": "JPEG", "mode": "CMYK"},
        {"save": "GIF", "mode": "P"},
    ],
)
def test_the_content_decides_not_the_suffix_or_the_colour_space(tmp_path, listed, kind):
    plain, odd = listed(photo(tmp_path / "plain.png"), photo(tmp_path / "odd.jpg", **kind))
    assert odd["class"] == plain["class"]
    assert odd["probability"] == pytest.approx(plain["probability"], abs=0.02)


def test_a_picture_is_turned_upright(tmp_path, listed):
    upright = Image.open(photo(tmp_path / "upright.png"))
    upright.paste((60, 140, 60), (0, 0, 24, 24))
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    first, second = listed(tmp_path / "upright.png", tmp_path / "turned.png")
    assert first["probabilities"] == second["probabilities"]


def test_sixteen_bits_are_read(tmp_path, listed):
    Image.new("I;16", (40, 20), 40000).save(tmp_path / "deep.png")
    assert len(listed(tmp_path / "deep.png")) == 1


def test_what_was_converted_is_told_with_counts(tmp_path, predict):
    photo(tmp_path / "ink" / "cmyk.jpg", save="JPEG", mode="CMYK")
    photo(tmp_path / "ink" / "plain.png")
    code, _, err = predict(tmp_path / "ink")
    assert code == 0
    (note,) = [line for line in err.splitlines() if line.startswith("note")]
    assert note == "note    1 of 2 images is CMYK or Lab, converted without colour profiles"


def test_the_batch_has_no_say_in_the_result(notes, listed):
    wide = listed(notes)
    for size in (1, 7):
        for one, other in zip(listed(notes, "--batch-size", size), wide, strict=True):
            assert one["path"] == other["path"]
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_an_image_of_another_size_than_the_models_is_told_of(run, notes):
    trained = replace(load_trained(run), input_shape=(3, 16, 16))
    (made,) = predict_images(trained, [file_source(str(notes / "1" / "000.jpg"))])
    assert made.probabilities is None
    assert "32 x 32" in made.reason and "16 x 16" in made.reason


# Broken files, and PATHs without images


def test_broken_files_are_named_and_counted_and_the_rest_is_done(tmp_path, predict):
    good = photo(tmp_path / "a.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no picture")
    whole = photo(tmp_path / "cut.jpg", size=(300, 300), save="JPEG", quality=95).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    os.mkfifo(tmp_path / "pipe.jpg")
    code, out, err = predict(tmp_path, "--json")
    assert code == 3
    assert [entry["path"] for entry in json.loads(out)] == [str(good)]
    for name in ("empty.jpg", "text.png", "cut.jpg", "pipe.jpg"):
        assert f"{tmp_path / name}: " in err
    assert "4 files cannot be used; 1 file is done." in err and "Traceback" not in err


def test_a_path_without_images_is_told_and_the_rest_is_done(tmp_path, predict):
    good = photo(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    code, out, err = predict(tmp_path / "empty", tmp_path / "none.png", f"{tmp_path}/z*", good)
    assert code == 2
    assert str(good) in out
    assert "empty: holds no images" in err
    assert "none.png: does not exist" in err
    assert "z*: matches no images" in err
    assert "3 paths cannot be used; 1 file is done." in err


def test_the_counts_say_when_nothing_is_done_and_no_table_is_without_rows(tmp_path, predict):
    (tmp_path / "text.png").write_text("not an image")
    code, out, err = predict(tmp_path / "text.png")
    assert (code, out) == (3, "")
    assert "1 file cannot be used; nothing is done." in err
    code, out, err = predict(tmp_path / "text.png", tmp_path / "none.png", f"{tmp_path}/z*")
    assert (code, out) == (3, "")
    assert "1 file and 2 paths cannot be used; nothing is done." in err


def test_nothing_at_all_is_an_error_of_the_data(tmp_path, predict):
    code, out, err = predict(tmp_path)
    assert (code, out) == (3, "")
    assert "nothing to predict" in err


def test_what_a_folder_holds_beside_images_is_counted_on_stderr(tmp_path, predict):
    photo(tmp_path / "one.jpg")
    (tmp_path / "two.heic").touch()
    code, out, err = predict(tmp_path)
    assert code == 0 and "one.jpg" in out
    assert f"note    left out 1: 1 .heic ({tmp_path}/two.heic); to use images among them" in err


# Which files


def test_folders_are_searched_in_natural_order_without_hidden_files_and_loops(tmp_path):
    wanted = [photo(tmp_path / name) for name in ("img2.PNG", "img10.jpg", "sub/a.webp")]
    for name in (".hidden.jpg", "notes.txt", "sub/.b.png", ".git/c.png"):
        photo(tmp_path / name)
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "linked.png").symlink_to(wanted[0])
    paths, faults, *_ = find_images([str(tmp_path), str(wanted[0])])
    assert paths == [str(p) for p in (*wanted[:2], tmp_path / "linked.png", wanted[2])]
    assert not faults


@pytest.mark.parametrize("pattern", ["*.png", "**/*.png", "s?b/*", "*/[ab].png", "**", "sub/**"])
def test_patterns_match_what_a_shell_would_give(tmp_path, pattern):
    for name in ("a.png", "b.png", ".c.png", "sub/a.png", "sub/deep/b.png", "sub/.d/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        photo(tmp_path / name)
    done = subprocess.run(
        ["bash", "-O", "globstar", "-c", f"printf '%s\\n' {pattern}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    by_shell, *_ = find_images([str(tmp_path / name) for name in done.stdout.split()])
    assert set(find_images([str(tmp_path / pattern)])[0]) == set(by_shell)


def test_a_literal_name_wins_over_the_pattern(tmp_path):
    literal = photo(tmp_path / "a[1].png")
    photo(tmp_path / "a1.png")
    inside = photo(tmp_path / "x[1]" / "b.png")
    assert find_images([str(literal)])[0] == [str(literal)]
    assert find_images([str(tmp_path / "x[1]" / "*.png")])[0] == [str(inside)]
    assert find_images([str(tmp_path / "a[1-3].png")])[0] == [str(tmp_path / "a1.png")]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20))
def test_any_text_finds_files_or_tells_why_not(text):
    paths, faults, *_ = find_images([f"nowhere/{text}"])
    assert not paths and len(faults) == 1 and faults[0].isprintable()


# How it is told


def test_a_value_that_is_no_output_file_is_a_path(notes, tmp_path, predict):
    images = sorted(notes.glob("1/00[0-2].jpg"))
    code, out, _ = predict("--json", *images)
    assert code == 0 and len(json.loads(out)) == 3
    code, out, _ = predict(images[0], "--csv", *images[1:])
    assert code == 0 and len(out.splitlines()) == 4
    file = tmp_path / "made.JSON"
    code, out, err = predict("--json", file, images[0])
    assert code == 0 and len(json.loads(file.read_text())) == 1
    assert out.startswith("path") and f"wrote {file}" in err


def test_a_name_that_begins_with_a_dash_may_follow_two(run, tmp_path, monkeypatch, capsys):
    photo(tmp_path / "-a.png")
    monkeypatch.chdir(tmp_path)
    assert main(["--json", "--", str(run), "-a.png"]) == 0
    assert [entry["path"] for entry in json.loads(capsys.readouterr().out)] == ["-a.png"]


@pytest.mark.parametrize(
    "arguments", [["--json", "--csv"], ["--sheet", "a.jpg"], ["--json=a.txt"], ["--tta", "1"]]
)
def test_what_cannot_be_asked_for_is_refused_at_once(arguments, predict, capsys):
    with pytest.raises(SystemExit) as ended:
        predict("photo.jpg", *arguments)
    assert ended.value.code == 2


def test_csv_holds_a_column_for_each_class(notes, tmp_path, listed, predict):
    file = tmp_path / "made.csv"
    predict(notes, "--csv", file)
    with file.open(newline="") as lines:
        header, *rows = csv.reader(lines)
    known = ["id", "sha256", "part", "true", "predicted", "probability", "loss"]
    assert header == [*known, "p:1", "p:100"]
    entries = listed(notes)
    for row, entry in zip(rows, entries, strict=True):
        digest = hashlib.sha256(Path(entry["path"]).read_bytes()).hexdigest()
        assert row[:5] == [entry["path"], digest, "", "", entry["class"]] and row[6] == ""
        numbers = [entry["probability"], *entry["probabilities"].values()]
        assert np.array([row[5], *row[7:]], "float32").tolist() == numbers


@pytest.mark.parametrize(
    "name", [b"\xe4\xb8\x80.png", b"a\nb.png", b"a\rb.png", b"caf\xe9.png", b"e\x1b[31m.png"]
)
def test_any_file_name_survives_and_none_commands_the_terminal(
    tmp_path, name, listed, predict, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "1000")
    path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    shutil.copy(photo(tmp_path / "plain" / "a.png"), path)
    made, table = tmp_path / "made.json", tmp_path / "made.csv"
    code, out, _ = predict(path, "--json", made, "--csv", table)
    assert code == 0
    assert all(line.isprintable() for line in out.splitlines()) and len(out.splitlines()) == 2
    (entry,) = json.loads(made.read_text(encoding="utf-8"))
    assert entry["path"] == path
    with table.open(newline="", encoding="utf-8") as lines:
        cell = list(csv.reader(lines))[1][0]
    assert cell == path.encode(errors="backslashreplace").decode()
    assert listed(path) == [entry]


def test_the_table_shows_the_top_classes_below_each_other(notes, predict):
    _, out, _ = predict(notes / "1" / "000.jpg", notes / "1" / "001.jpg", "--top", 5)
    header, *rows = out.splitlines()
    assert header.split() == ["path", "class", "probability"]
    assert len({row.rindex(".") for row in rows}) == 1
    assert [bool(row.strip().startswith("/")) for row in rows] == [True, False] * 2
    for pair in (rows[:2], rows[2:]):
        assert sum(float(row.split()[-1]) for row in pair) == pytest.approx(1, abs=1e-3)


def test_chinese_names_and_long_paths_keep_the_columns():
    value = torch.tensor([0.9, 0.1])
    paths = ["一百元.png", "a.png", "x" * 90]
    made = [prediction.Prediction(path, value, predicted=(0,)) for path in paths]
    header, first, second, long, below = table_lines(made, ["人民币", "b"], paths, columns=80)
    assert second.index("人民币") - first.index("人民币") == 3  # three letters of two columns each
    assert long == paths[2] and below.strip().startswith("人民币")


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_narrow_table_of_predictions_cuts_no_word_and_no_number(columns):
    classes = ["a hand of bananas, green", "one_word_of_a_class_name"]
    made = [prediction.Prediction("folder/a.png", torch.tensor([0.75, 0.25]))]
    lines = list(table_lines(made, classes, ["folder/a.png"], top=2, columns=columns))
    assert max(map(len, lines)) <= columns
    words = " ".join(lines[1:]).split()
    assert words == ["folder/a.png", *classes[0].split(), "0.7500", classes[1], "0.2500"]


@pytest.mark.parametrize("kind", ["zip file", "Parquet file", "array"])
@pytest.mark.parametrize("by", ["predict", "explain"])
def test_a_file_of_many_images_is_told_from_a_broken_one(run, tmp_path, capsys, kind, by):
    contents = {"Parquet file": b"PAR1" + bytes(9), "array": b"\x93NUMPY" + bytes(9)}
    place = tmp_path / "many"
    place.write_bytes(contents.get(kind, b""))
    if kind == "zip file":
        with open(place, "wb") as file:
            np.savez(file, images=np.zeros((2, 9, 9), np.uint8))
    command = main if by == "predict" else explain.main
    assert command([str(run), str(place)]) == 3
    err = capsys.readouterr().err
    assert re.search(rf"{place}: an? {kind}.*, no image file; metrics of labelled", err)
    assert "python -m trainer.evaluate RUN" in err and "yaml_trainer.load(RUN).predict" in err


def test_the_lines_of_the_docs_predict_the_images_of_an_array(run, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(
        r"^### Predictions of arrays\n.*?^```python\n(.*?)^```$",
        Path("docs/data.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    array = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3)).astype(np.uint8)
    np.savez(tmp_path / "new.npz", images=array)
    for number, image in enumerate(array):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    exec(block.replace("runs/NAME/20260131-120000-ab12", str(run)), {})
    lines = capsys.readouterr().out.splitlines()
    files = [f"{number}.png" for number in range(3)]
    found = predict_images(load_trained(run), map(file_source, files))
    for line, one in zip(lines, found, strict=True):
        ((name, chance),) = ast.literal_eval(line)
        assert one.probabilities is not None
        assert (name,) == tuple(load_trained(run).classes[label] for label in one.predicted)
        assert chance == pytest.approx(float(one.probabilities.max()), abs=1e-6)


def test_the_sheet_shows_the_first_pictures_and_replaces_none(
    notes, tmp_path, predict, monkeypatch
):
    file = tmp_path / "sheet.png"
    monkeypatch.setattr(prediction, "MAX_SHEET", 6)
    code, _, err = predict(notes, "--sheet", file)
    assert code == 0 and "first 6 of 50" in err
    with Image.open(file) as picture:
        assert picture.width > 4 * 160 and picture.height > 2 * 160
    before = file.read_bytes()
    code, _, err = predict(notes, "--sheet", file)
    assert code == 2 and "already" in err
    assert file.read_bytes() == before


def test_the_sheet_names_each_label_with_its_probability_or_counts_it(monkeypatch):
    shown = []
    monkeypatch.setattr(
        prediction_output, "sheet", lambda _, captions, **__: shown.extend(captions)
    )
    classes = ["an animal of a very long name", *(f"animal {i}" for i in range(9))]
    made = [
        prediction.Prediction(
            f"in/{count}.png",
            torch.full((10,), 0.75),
            thumbnail=Image.new("RGB", (9, 9)),
            predicted=tuple(range(count)),
            has_several=True,
        )
        for count in (0, 1, 2, 10)
    ]
    prediction_output.prediction_sheet(made, classes)
    lines = [caption_lines(caption, prediction.SHEET_THUMBNAIL) for caption in shown]
    assert lines[0] == ["no label", "0.png"]
    assert lines[1][0].startswith("an animal of") and lines[1][0].endswith("... (0.7500)")
    assert lines[2][1:] == ["animal 0 (0.7500)", "2.png"]
    assert lines[3][1:] == [
        "animal 0 (0.7500)",
        "animal 1 (0.7500)",
        "animal 2 (0.7500), +6",
        "10.png",
    ]


def test_a_full_disk_is_told_of(notes, run, capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main([str(run), str(notes), "--json"]) == 5
        monkeypatch.undo()
    assert "No space left" in capsys.readouterr().err


def test_an_interrupt_ends_it_and_leaves_no_file(notes, tmp_path, predict, monkeypatch):
    def interrupted(self, content, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainedModel, "decode", interrupted)
    code, _, err = predict(notes, "--json", tmp_path / "made.json")
    assert code == 130 and err.endswith("\ninterrupted\n")
    assert not list(tmp_path.glob("*.json"))


def test_files_are_read_only_a_few_ahead():
    begun: list[int] = []

    def begin(i):
        begun.append(i)
        return i

    ahead = 2 * min(os.cpu_count() or 1, 16) + 1
    for taken, result in enumerate(map_in_order(begin, range(500))):
        assert result == taken
        assert len(begun) <= taken + 1 + ahead


# Test-time augmentation


def test_flip_is_of_the_mean_logits_of_the_image_and_its_mirror_image(run, tmp_path, listed):
    path = lopsided(tmp_path / "a.png")
    (entry,) = listed(path, "--tta", "flip")
    plain, flipped = by_hand(run, path), by_hand(run, path, flip=True)
    assert (plain - flipped).abs().max() > 1e-3
    values = torch.tensor(list(entry["probabilities"].values()))
    of_mean_logits = ((plain.log() + flipped.log()) / 2).softmax(-1)
    assert torch.allclose(values, of_mean_logits, atol=1e-5)


def test_draws_are_those_of_the_training_transforms_without_mixing(mirrored, tmp_path, listed):
    path = lopsided(tmp_path / "a.png")  # each draw mirrors it: two of three views
    (entry,) = listed(path, "--tta", 3, run=mirrored)
    plain, flipped = by_hand(mirrored, path), by_hand(mirrored, path, flip=True)
    assert (plain - flipped).abs().max() > 1e-3
    values = torch.tensor(list(entry["probabilities"].values()))
    assert torch.allclose(values, (plain + 2 * flipped) / 3, atol=1e-5)


def test_draws_depend_on_the_pixels_alone(notes, tmp_path, listed):
    source = notes / "1" / "004.jpg"
    copied = Path(shutil.copy(source, tmp_path / "other.jpg"))
    (alone,) = listed(copied, "--tta", 4)
    among = {e["path"]: e for e in listed(notes, "--tta", 4, "--batch-size", 5)}
    assert alone["probability"] == pytest.approx(among[str(source)]["probability"], abs=1e-5)
    (plain,) = listed(copied)
    assert alone["probability"] != plain["probability"]


def test_draws_without_anything_random_are_refused(tmp_path, notes, predict):
    run = made(tmp_path, notes, "")
    code, _, err = predict(notes, "--tta", 4, run=run)
    assert code == 2 and "--tta flip" in err


def test_help_needs_nothing_heavy():
    code = "import sys, trainer.predict, trainer.explain; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pydantic", "yaml", "tqdm", "PIL"} & set(re.split(r"\s", done.stdout))


def test_a_run_on_grey_images_greys_colour_pictures_as_pillow_does(run, tmp_path):
    pixels = torch.randint(0, 256, (3, 40, 50), generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(pixels.byte().permute(1, 2, 0).contiguous().numpy())
    picture.save(tmp_path / "colour.png")
    grey = replace(load_trained(run), image_channels=1).read(tmp_path / "colour.png")
    assert grey.shape == (1, 40, 50)
    assert bytes(grey.flatten().tolist()) == picture.convert("L").tobytes()


def copies(run, folder, name, stamps):
    """Copies of a run below ``folder``/``name``, with ``name`` in their config.yaml."""
    for stamp in stamps:
        made = Path(shutil.copytree(run, folder / name / stamp))
        config = (made / "config.yaml").read_text()
        (made / "config.yaml").write_text(re.sub("^name: .*$", f"name: {name}", config, flags=re.M))
        yield made


def test_the_newest_run_of_a_name_is_taken_and_named_with_its_epoch(run, notes, tmp_path, capsys):
    stamps = ["20260101-000000-0001", "20260102-000000-0002", "old one"]  # no stamp: not the newest
    older, newer, _ = copies(run, tmp_path, "small", stamps)
    epoch = json.loads((run / "model.json").read_text())["metrics"]["epoch"]
    photo = str(notes / "1" / "003.jpg")
    for named, taken, place in [
        (tmp_path, newer, "the newest of 3"),
        (tmp_path / "small", newer, "the newest of 3"),
        (newer, newer, "the newest of 3"),
        (older, older, "1 newer beside it"),
    ]:
        assert main([str(named), photo, "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == f"run     {taken} ({place}), weights of epoch {epoch}\n"
        assert len(json.loads(out)) == 1
    (newer / "result.json").write_text("damaged")  # which has no say in its weights
    assert main([str(newer), photo]) == 0
    assert "the best so far: the run is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        lambda runs, photo: main([runs, photo]),
        lambda runs, photo: evaluate.main([runs]),
        lambda runs, photo: explain.main([runs, photo]),
        lambda runs, photo: export.main([runs, "--format", "pt2"]),
        lambda runs, photo: train.main(["--resume", runs]),
    ],
    ids=["predict", "evaluate", "explain", "export", "resume"],
)
def test_a_folder_with_runs_of_several_names_is_refused_with_their_list(
    run, notes, tmp_path, capsys, command
):
    (a,) = copies(run, tmp_path, "a", ["20260101-000000-0001"])
    *_, b = copies(run, tmp_path, "b", ["20260101-000000-0002", "20260102-000000-0001"])
    told = f"  {a}, the newest of a\n  {b}, the newest of b\n"
    assert command(str(tmp_path), str(notes / "1" / "003.jpg")) == 2
    assert capsys.readouterr().err == f"{tmp_path} holds runs of 2 names; name one run:\n{told}"
    shutil.copytree(b, tmp_path / "a" / b.name)  # a folder of one name with another's run in it
    with pytest.raises(UsageError, match="a holds runs of 2 names"):
        find_run(str(tmp_path / "a"))


def test_a_file_that_is_named_as_a_run_is_told_with_the_folder_to_name(
    run, notes, tmp_path, capsys
):
    (a,) = copies(run, tmp_path, "a", ["20260101-000000-0001"])
    file = tmp_path / "notes.yaml"
    file.write_text("dataset: {name: RMB}\n")
    with pytest.raises(yaml_trainer.TrainerError) as told:
        yaml_trainer.load(file)
    form = "such as runs/NAME/20260131-120000-ab12"
    assert str(told.value) == f"{file} is a file: name a run's folder {form}."
    with pytest.raises(yaml_trainer.TrainerError) as told:
        yaml_trainer.load(a / "model.pt")
    expected = f"{a / 'model.pt'} is a file: name its run's folder, {a}."
    assert str(told.value) == expected
    assert main([str(a / "model.pt"), str(notes / "1" / "003.jpg")]) == 2
    assert expected in capsys.readouterr().err


def test_the_newest_run_without_weights_is_refused_and_the_newest_with_weights_is_named(
    run, notes, tmp_path, capsys
):
    def fail(one):
        (one / "model.pt").unlink()
        (one / "model.json").unlink()
        (one / "result.json").write_text('{"status": "failed", "reason": "the disk is full"}')

    stamps = [f"2026010{day}-000000-0001" for day in (1, 2, 3, 4)]
    _, older, failed, newest = copies(run, tmp_path, "a", stamps)
    fail(failed)
    fail(newest)
    assert main([str(tmp_path / "a"), str(notes / "1" / "003.jpg")]) == 5
    error = capsys.readouterr().err
    assert f"{newest} has no weights yet" in error
    assert f"\n{older} has weights: it is the newest that has some\n" in error
    with pytest.raises(yaml_trainer.TrainerError, match=f"\n{older} has weights"):
        yaml_trainer.load(tmp_path / "a")
    (alone,) = copies(run, tmp_path, "b", stamps[:1])
    fail(alone)
    with pytest.raises(yaml_trainer.TrainerError) as told:
        yaml_trainer.load(tmp_path / "b")
    assert "has weights" not in str(told.value)


def test_a_run_is_found_from_its_own_folder_and_with_more_workers_than_this_machine_takes(
    finished, notes, monkeypatch, capfd
):
    run, image = finished(), str(next(notes.resolve().glob("1/*.jpg")))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("workers: 0", "workers: 1000"))
    monkeypatch.chdir(run)
    assert main([".", image]) == 0
    assert "run     ., weights of epoch" in capfd.readouterr().err


def test_a_range_that_became_narrower_stops_new_runs_and_not_the_use_of_old_ones(
    finished, monkeypatch
):
    run = finished("train.epochs=1")
    before = evaluate_run(run, load_config(run / "config.yaml"), "test")
    for name, argument in (("SGD", "momentum"), ("RandomCrop", "padding")):
        monkeypatch.setitem(RANGES, name, {argument: {"maximum": 0.1}})
    with pytest.raises(ConfigError) as told:
        prepare(load_config(run / "config.yaml"), print)
    assert [fault.path for fault in told.value.faults] == [
        "transforms.train.1.padding", "optimizer.momentum",
    ]  # fmt: skip
    assert load_trained(run).run == run  # as predict, explain, export and a teacher do
    assert evaluate_run(run, load_config(run / "config.yaml"), "test") == before
