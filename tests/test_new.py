"""python -m trainer.new: a YAML that trains at the first try, or a reason that names the place."""

import csv
import io
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import DataError
from scripts import pack_shards
from tests.test_datasets import touch
from tests.test_messy_data import of
from trainer.build.notes import notes_on_run, warm_up_note
from trainer.build.prepare import prepare
from trainer.build.trial import check_components
from trainer.config import load_config
from trainer.config.notes import as_lines, notes_on_config
from trainer.input.data import load_data
from trainer.loop import model_summary
from trainer.new import main, seen
from trainer.process.errors import UsageError
from trainer.train import main as train
from trainer.tuning import first_file, look
from trainer.tuning.look import advice_in, look_at_data

CPU = first_file.Machine(has_gpu=False, has_bf16=True)
RMB = Path(__file__).resolve().parents[2] / "shared" / "data" / "rmb"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(model_summary, "TIMED_SECONDS", 0.01)


def paint(root: Path, names: list[str], size=(32, 32), grey=False) -> Path:
    """Write pictures of noise, of the colour of their class's first letter; (width, height)."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(number)
        pixels = random.integers(0, 120, (size[1], size[0], 1 if grey else 3), np.uint8)
        pixels[..., 0] += np.uint8(ord(path.parent.name[0]) % 2 * 120)
        Image.fromarray(pixels[..., 0] if grey else pixels).save(path)
    return root


def many(folder: str, count: int) -> list[str]:
    return [f"{folder}/{number:04}.png" for number in range(count)]


@pytest.fixture
def new(tmp_path, capsys):
    """Call the command; its exit code, the file (there or not), and all that it said."""

    def new(data, *more):
        out = tmp_path / "first.yaml"
        code = main(["--data", str(data), "--out", str(out), *more])
        said = capsys.readouterr()
        return code, out, said.out + said.err

    return new


def test_a_folder_of_classes_gets_a_file_that_loads_and_passes_a_dry_run(new, tmp_path):
    data = paint(tmp_path / "data", [*many("cat", 40), *many("dog", 40)], (60, 50))
    code, out, said = new(data)
    assert code == 0, said
    config = load_config(out)
    assert config.dataset.name == "ImageFolder" and config.name == "data"
    assert "ImageFolder, 80 images, 2 classes: cat 40, dog 40" in said
    assert f"python -m trainer.train --config {out}" in said
    assert train(["--config", str(out), "--dry-run"]) == 0


@pytest.mark.parametrize("folder", [".", "configs"])
def test_the_file_names_the_schema_if_that_lies_beside_it_and_else_how_to_get_it(
    tmp_path, monkeypatch, capsys, folder
):
    paint(tmp_path / "data", [*many("cat", 40), *many("dog", 40)])
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir(exist_ok=True)
    assert main(["--data", "data"]) == 0
    out = Path(folder) / "data.yaml"
    assert "$schema" not in out.read_text()
    schema = Path(folder) / "schema.json"
    assert f"python -m trainer.schema --output {schema} " in capsys.readouterr().out
    schema.write_text("{}")
    assert main(["--data", "data", "--name", "second"]) == 0
    first = (Path(folder) / "second.yaml").read_text().partition("\n")[0]
    assert first == "# yaml-language-server: $schema=./schema.json"
    assert "trainer.schema" not in capsys.readouterr().out


def test_the_written_file_trains_to_the_end(new, tmp_path):
    data = paint(tmp_path / "data", [*many("cat", 30), *many("dog", 30)])
    _, out, _ = new(data)
    runs = ["--runs", str(tmp_path / "runs"), "log.show=[]", "train.epochs=2"]
    assert train(["--config", str(out), *runs]) == 0


@pytest.mark.parametrize("side", [32, 28])  # 28 get an edge, and are not enlarged
def test_mean_and_std_are_those_of_the_training_images_as_they_are_resized(new, tmp_path, side):
    data = paint(tmp_path / "data", [*many("cat", 40), *many("dog", 40)], (side, side))
    _, out, _ = new(data)
    config = load_config(out)
    found = load_data(config, torch.device("cpu"))
    files = [data / found.dataset.ids[i] for i in found.subsets["train"].indices.tolist()]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]) / 255
    normalize = config.transforms.eval[-1].arguments
    assert normalize["mean"] == pytest.approx(pixels.mean((0, 1, 2)), abs=2e-3)
    assert normalize["std"] == pytest.approx(pixels.std((0, 1, 2)), abs=2e-3)


def test_official_parts_are_told_and_kept(new, tmp_path):
    names = [
        n
        for part, count in (("train", 40), ("test", 9))
        for k in "ab"
        for n in many(f"{part}/{k}", count)
    ]
    code, out, said = new(paint(tmp_path / "data", names))
    assert code == 0, said
    assert "parts   train 80, test 18" in said
    assert "# the data's own parts stay: train 80, test 18; val cut from train" in out.read_text()
    assert re.search(r"^split   train \d+, val \d+, test 18$", said, re.MULTILINE)


def test_an_unbalanced_folder_is_sampled_evenly_and_judged_by_a_mean_over_classes(new, tmp_path):
    data = paint(tmp_path / "data", [*many("cat", 90), *many("dog", 18)])
    _, out, _ = new(data)
    config = load_config(out)
    assert config.loader.sampling == "balanced" and config.train.monitor == "val/macro_f1"
    assert "classes of 18 to 90 images" in out.read_text()
    shutil.rmtree(data / "cat")
    paint(data, many("cat", 36))
    _, out, _ = new(data, "--name", "again", "--out", str(tmp_path / "again.yaml"))
    assert load_config(tmp_path / "again.yaml").loader.sampling == "shuffle"


def test_grey_pictures_get_one_channel_and_keep_their_28_pixels(new, tmp_path, monkeypatch):
    monkeypatch.setattr(first_file, "FEW_TO_TRAIN", 20)
    data = paint(tmp_path / "data", [*many("coat", 30), *many("bag", 30)], (28, 28), grey=True)
    code, out, said = new(data)
    assert code == 0 and ", grey" in said
    names = [step.name for step in load_config(out).transforms.train]
    assert names == [
        "Grayscale",
        "Resize",
        "Pad",
        "RandomCrop",
        "RandomHorizontalFlip",
        "Normalize",
    ]
    assert len(load_config(out).transforms.eval[-1].arguments["mean"]) == 1


@pytest.mark.parametrize(
    ("classes", "flips"),
    [(["cat", "dog"], True), (["3", "8"], False), (["b", "d"], False), (["left", "right"], False)],
)
def test_classes_that_may_be_characters_or_directions_are_not_mirrored(
    tmp_path, monkeypatch, classes, flips
):
    monkeypatch.setattr(first_file, "FEW_TO_TRAIN", 10)
    names = [name for one in classes for name in many(one, 20)]
    data = paint(tmp_path / "data", names, (12, 12))
    text = "\n".join(first_file.choose_recipe(look_at_data(str(data), []), CPU).train)
    assert ("RandomHorizontalFlip" in text) == flips


def rows_of(root: Path, header: list[str], part: bool = True) -> list[list[str]]:
    """A table of pictures that are written: name without suffix, class, part."""
    names = [f"{number:04}" for number in range(60)]
    paint(root, [f"{name}.png" for name in names])
    rows = [
        [n, "cat" if i % 2 else "dog", "test" if i > 49 else "train"] for i, n in enumerate(names)
    ]
    return [header, *(row if part else row[:2] for row in rows)]


@pytest.mark.parametrize("place", ["in it", "beside it", "the table itself"])
def test_a_table_of_other_columns_is_read_wherever_it_lies(new, tmp_path, place):
    root = tmp_path / "data" / "images"
    rows = rows_of(root, ["image_id", "species", "split"])
    table = (root if place == "in it" else root.parent) / "labels.csv"
    with table.open("w") as file:
        csv.writer(file).writerows(rows)
    code, out, said = new(table if place == "the table itself" else root)
    assert code == 0, said
    given = load_config(out).dataset
    assert given.name == "CSVImages" and given.arguments["label_column"] == "species"
    assert given.arguments["part_column"] == "split" and given.arguments["suffix"] == ".png"
    assert "parts   train 50, test 10" in said
    assert train(["--config", str(out), "--dry-run"]) == 0


def test_shards_and_rmb_are_known_by_what_they_hold(new, tmp_path):
    source = paint(tmp_path / "data", [*many("1", 30), *many("100", 30)])
    code, out, _ = new(source)
    assert code == 0 and load_config(out).dataset.name == "RMB"
    target = tmp_path / "shards"
    assert pack_shards.main(["--source", str(source), "--target", str(target)]) == 0
    code, _, said = new(target, "--out", str(tmp_path / "s.yaml"))
    assert code == 0, said
    assert load_config(tmp_path / "s.yaml").dataset.name == "Shards"


def test_a_file_that_is_there_is_never_overwritten(new, tmp_path):
    (tmp_path / "first.yaml").write_text("mine")
    code, out, said = new(touch(tmp_path / "data", *of(".")))
    assert code == 2 and out.read_text() == "mine"
    assert f"{out} is there already" in said and f"--out {tmp_path}/first_2.yaml" in said


def test_an_override_decides_what_can_be_read_two_ways(new, tmp_path):
    data = paint(
        tmp_path / "data",
        [n for p in ("train", "test", "more") for k in "ab" for n in many(f"{p}/{k}", 12)],
    )
    code, out, said = new(data)
    assert code == 3 and not out.exists() and "dataset.layout=classes" in said
    code, out, said = new(data, "dataset.layout=parts")
    assert code == 0 and load_config(out).dataset.arguments["layout"] == "parts", said


def test_a_larger_folder_is_sampled_and_its_broken_files_are_skipped_by_the_run(
    new, tmp_path, monkeypatch
):
    monkeypatch.setattr("trainer.tuning.look.MANY", 50)
    data = paint(tmp_path / "data", [*many("cat", 40), *many("dog", 40)])
    code, out, said = new(data)
    assert code == 0 and "split   " not in said
    assert load_config(out).dataset.arguments["on_broken"] == "skip"
    monkeypatch.setattr(look, "LOOKED_AT", 20)
    assert len(look_at_data(str(data), []).sizes) == 20


def test_two_calls_write_the_same_but_for_the_time(new, tmp_path):
    data = paint(tmp_path / "data", [*many("cat", 40), *many("dog", 40)])
    texts = []
    for number in range(2):
        out = tmp_path / f"{number}.yaml"
        assert new(data, "--out", str(out))[0] == 0
        text = re.sub(r"about \S+, measured", "", out.read_text())
        texts.append(text.replace(str(out), ""))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("refusal", "typed"),
    [
        ("no column 'path'. Type dataset.path_column=id dataset.suffix=.png", 2),
        ("To find 'a', type 'dataset.root=my photos'", 1),
        ("no column. Type dataset.label_column=NAME", 0),
        ("For parts: type dataset.layout=parts\nFor classes: type dataset.layout=classes", 0),
        ("If 'x' is one of the classes, type dataset.root=/y", 0),
        ("nothing to type", 0),
        ("missing x (download is off; type dataset.download=true). Download by hand", 0),
        ("Type dataset.root=x, it's there", 0),
    ],
)
def test_only_advice_without_a_choice_is_followed(refusal, typed):
    assert len(advice_in(refusal)) == typed


MESSY: dict[str, tuple[list[str], int]] = {
    "parts of other names": (of("Training", "Testing"), 0),
    "nested parts": (
        [
            n
            for p in ("seg_train/seg_train", "seg_test/seg_test")
            for k in "ab"
            for n in many(f"{p}/{k}", 12)
        ],
        0,
    ),
    "one level too high": ([n for k in "ab" for n in many(f"photos/{k}", 12)], 0),
    "parts, one level too high": (
        [n for p in ("train", "val") for k in "ab" for n in many(f"d/{p}/{k}", 12)],
        0,
    ),
    "parts beside a class": ([*of("train"), "bus/1.png"], 3),
    "same folders in each class": (
        [f"{k}/{i}/1.png" for k in ("cat", "dog") for i in ("in", "out")],
        3,
    ),
    "pictures without a class": (["1.png", "2.png"], 3),
    "one class": (many("cat", 9), 3),
    "a class without pictures": ([*many("cat", 9), "dog/notes.txt"], 3),
    "a text among the pictures": ([*many("cat", 30), *many("dog", 30), "cat/README.txt"], 0),
    "broken pictures": ([*many("cat", 30), *many("dog", 30), "cat/broken.jpg"], 0),
    "all are broken": ([f"{k}/broken{i}.jpg" for k in "ab" for i in range(9)], 3),
    "a class of broken ones": ([*many("a", 9), *many("b", 9), "c/broken.jpg"], 3),
    "hidden files": (
        [*many("cat", 30), *many("dog", 30), "cat/.DS_Store", "__MACOSX/cat/._1.png"],
        0,
    ),
    "names that look alike": ([*many("hot dog", 9), *many("hot  dog", 9)], 3),
    "odd names of classes": ([*many("it's: {new}", 30), *many("#b, \u732b", 30)], 0),
    "two pictures in all": (["a/1.png", "b/1.png"], 3),
    "pictures of another suffix": ([f"{k}/{i}.heic" for k in "ab" for i in range(4)], 3),
    "an empty folder": ([], 3),
    "a table without header": ([*many(".", 9), "labels.csv"], 3),
}


@pytest.mark.parametrize("case", MESSY)
def test_a_messy_folder_gets_a_file_that_trains_or_a_reason_with_its_place(new, tmp_path, case):
    names, expected = MESSY[case]
    root = tmp_path / "my data"
    root.mkdir()
    odd = [n for n in names if not n.endswith(".png") or "__MACOSX" in n]
    paint(root, [name for name in names if name not in odd])
    for name in odd:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("0001,cat\n0002,dog\n")
    code, out, said = new(root)
    assert "Traceback" not in said and code == expected, said
    assert out.exists() == (code == 0)
    if code == 0:
        assert load_data(load_config(out), torch.device("cpu")).classes
    else:
        assert str(root) in said, "the reason names the place"


def test_of_many_tables_beside_a_folder_some_are_named_and_all_are_counted(new, tmp_path):
    data = paint(tmp_path / "data" / "images", ["1.png", "2.png"])
    for number in range(9):
        (data.parent / f"other{number}.csv").write_text("a,b\n5,6\n")
    code, _, said = new(data)
    assert code == 3 and said.count("as CSVImages") == 0 and "no class folders here" in said
    assert f"9 tables beside it, in {data.parent}, cannot be read for it (other0.csv, " in said
    assert f"and 6 more); if one belongs to it: --data TABLE.csv dataset.root={data}" in said
    for number in range(5):
        (data / f"inner{number}.csv").write_text(f"path,label\nabsent{number}.png,6\n")
    code, _, said = new(data)
    assert code == 3 and said.count("as CSVImages by inner") == 3
    assert "2 tables more cannot be read for it (inner3.csv, inner4.csv)" in said


@pytest.mark.parametrize("name", ["FashionMNIST", "MNIST", "other"])
@pytest.mark.parametrize("where", ["root", "set", "raw", "file"])
def test_idx_files_are_read_where_a_dataset_looks_for_them_or_told_where_that_is(
    fashion_root, tmp_path, name, where
):
    raw = shutil.copytree(fashion_root / "FashionMNIST" / "raw", tmp_path / name / "raw")
    file = raw / "train-images-idx3-ubyte.gz"
    data = {"root": tmp_path, "set": raw.parent, "raw": raw, "file": file}[where]
    if name == "other" and where != "root":
        with pytest.raises(UsageError, match="IDX files.*FashionMNIST, MNIST or KMNIST"):
            look._ways(data, [])
    elif name != "other":
        way = {"name": look.IDX_SETS[name], "root": str(tmp_path), "download": False}
        assert look._ways(data, []) == [way]
    way = {"name": "CIFAR10", "root": str(data)}
    assert look._ways(data, ["dataset.name=CIFAR10"]) == [way]  # what is typed decides
    if name == "FashionMNIST":
        assert set(look_at_data(str(data), []).parts) == {"train", "test"}


def test_the_name_of_a_set_in_place_of_a_folder_is_told_and_a_typed_one_keeps_the_root(
    new, tmp_path, fashion_root
):
    code, _, said = new("torchvision/CelebA")
    assert code == 2 and "an image has 40 attributes there, and no class" in said
    code, _, said = new("torchvision/MNIST")
    assert code == 2 and "type --data FOLDER dataset.name=torchvision/MNIST" in said
    code, _, said = new(tmp_path, "dataset.name=torchvision/CelebA")
    assert code == 2 and said.count("unknown dataset 'torchvision/CelebA': an image has 40") == 1
    assert "1 fault" not in said
    data = paint(tmp_path / "data", [*many("1", 9), *many("100", 9)])  # as RMB's folders
    for root, name in ((fashion_root, "FashionMNIST"), (data, "ImageFolder")):
        found = look_at_data(str(root), [f"dataset.name={name}"]).config.dataset
        assert found.name == name and found.arguments["root"] == str(root)


def test_a_folder_of_npz_files_is_read_if_there_is_one(new, tmp_path):
    arrays_of(tmp_path)
    assert look_at_data(str(tmp_path), []).config.dataset.arguments["root"] == f"{tmp_path}/a.npz"
    shutil.copy(tmp_path / "a.npz", tmp_path / "b.npz")
    code, _, said = new(tmp_path)
    assert code == 2 and "it holds a.npz or b.npz; name one of them" in said


def test_a_folder_of_several_kinds_of_arrays_is_refused_with_their_names(new, tmp_path):
    arrays_of(tmp_path)
    np.save(tmp_path / "images.npy", np.zeros((9, 8, 8), np.uint8))
    code, _, said = new(tmp_path)
    assert code == 2 and "it holds a.npz or images.npy; name one of them" in said
    way = {"name": "Arrays", "root": str(tmp_path)}
    assert look._ways(tmp_path, ["dataset.name=Arrays"]) == [way]  # what is typed decides
    (tmp_path / "b.parquet").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    code, _, said = new(tmp_path)
    assert code == 2 and "it holds a.npz, b.parquet or images.npy; name one of them" in said


@pytest.mark.parametrize("pattern", ["npz", "npy", "parquet", "csv", "tsv"])
def test_hidden_files_and_folders_of_systems_are_no_data(tmp_path, fashion_root, pattern):
    arrays_of(tmp_path)
    (tmp_path / f"._a.{pattern}").write_bytes(b"\0\5\x16\7")
    for folder in (".cache", "__MACOSX"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"a.{pattern}").write_bytes(b"\0\5\x16\7")
    assert [way["root"] for way in look._ways(tmp_path, [])] == [f"{tmp_path}/a.npz"]
    (tmp_path / "a.npz").unlink()
    (tmp_path / "._train-images-idx3-ubyte").write_bytes(b"")
    assert {way["name"] for way in look._ways(tmp_path, [])} == {"ImageFolder"}


def written_table(file: Path, rows: list[list[str]]) -> Path:
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    return file


@pytest.mark.parametrize("odd", ["tset", "holdout", "1"])
def test_a_column_of_parts_with_an_unknown_word_is_never_left_out_unsaid(new, tmp_path, odd):
    rows = rows_of(tmp_path / "data", ["path", "label", "Split"])
    rows[1:] = [[f"{name}.png", *more] for name, *more in rows[1:]]
    rows[9][2] = odd
    table = written_table(tmp_path / "data" / "a.csv", rows)
    for data in (table, table.parent):
        code, out, said = new(data)
        assert code == 3 and not out.exists() and f"{table}:10: " in said, said
        assert f"part '{odd}'" in said or f"part is '{odd}'" in said
        assert "dataset.part_column=NAME; null is none" in said
    found = look_at_data(str(table), ["dataset.part_column=null"])
    assert not found.parts and not found.notes
    with pytest.raises(DataError, match=f"part(?: is)? '{odd}'"):
        look_at_data(str(table), [f"dataset.csv=[{table}]"])


def test_a_column_that_names_no_part_is_told_and_not_used(tmp_path):
    rows = rows_of(tmp_path / "data", ["path", "label", "set"])
    rows[1:] = [[f"{n}.png", label, f"box {i % 3}"] for i, (n, label, _) in enumerate(rows[1:])]
    found = look_at_data(str(written_table(tmp_path / "data" / "a.csv", rows)), [])
    assert not found.parts
    assert [*found.notes] == [
        "the column 'set' names no part (train, val or test), and is not used"
    ]


@pytest.mark.parametrize("where", ["in it", "beside it"])
def test_of_several_tables_that_can_be_read_none_is_chosen(new, tmp_path, where, monkeypatch):
    data = tmp_path / "photos" / "images"
    rows = rows_of(data, ["path", "label"], part=False)
    rows[1:] = [[f"{name}.png", label] for name, label in rows[1:]]
    place = data if where == "in it" else data.parent
    tables = [written_table(place / f"{name}.csv", rows) for name in "abc"]
    (place / "d.csv").write_text("other,table\n1,2\n")
    code, out, said = new(data)
    holds = "it holds" if where == "in it" else f"beside it, in {place}, is"
    assert code == 2 and not out.exists()
    assert f"{holds} a.csv, b.csv or c.csv; name one of them" in said
    typed = f", as in --data {tables[0]} dataset.root={data}\n"
    assert (typed in said) == (where == "beside it")
    monkeypatch.chdir(data)
    assert new(".")[0] == 2
    named = look_at_data(str(tables[1]), [f"dataset.root={data}"])
    assert f"data    CSVImages by {tables[1]}, 60 images" in seen(named)[0]
    for table in tables[1:]:
        table.unlink()
    found = seen(look_at_data(str(data), []))
    assert f"data    CSVImages by {tables[0]}, 60 images" in found[0]
    assert any(line.startswith(f"note    {place}/d.csv is not used: ") for line in found)


def test_tables_that_are_the_parts_by_their_names_are_read_together(tmp_path):
    rows = rows_of(tmp_path, ["path", "label"], part=False)
    rows[1:] = [[f"{name}.png", label] for name, label in rows[1:]]
    for name, own in (("test", rows[51:]), ("train", rows[1:41]), ("valid", rows[41:51])):
        written_table(tmp_path / f"{name}.csv", [rows[0], *own])
    found = look_at_data(str(tmp_path), [])
    assert found.parts == {"train": 40, "val": 10, "test": 10}
    names = [f"{tmp_path}/{name}.csv" for name in ("train", "valid", "test")]
    assert look.tables_of(found.config) == names


def test_a_folder_without_a_listed_image_is_told_with_the_one_that_is_read(tmp_path):
    rows = rows_of(tmp_path / "photos", ["path", "label"], part=False)
    rows[1:] = [[f"photos/{name}.png", label] for name, label in rows[1:]]
    table = written_table(tmp_path / "labels.csv", rows)
    (tmp_path / "empty").mkdir()
    found = look_at_data(str(tmp_path / "empty"), [])
    told = f"note    {tmp_path}/empty is not read: none of its files is in {table}, whose images"
    assert any(line.startswith(told) for line in seen(found))


@pytest.mark.parametrize("most", [5000, 10])
def test_a_broken_file_is_told_once(new, tmp_path, monkeypatch, most):
    monkeypatch.setattr(look, "MANY", most)
    data = paint(tmp_path / "data", [*many("cat", 30), *many("dog", 30)])
    file = data / "cat" / "0003.png"
    file.write_bytes(file.read_bytes()[:99])
    code, _, said = new(data)
    assert code == 0 and said.count("0003.png") == 1, said


@pytest.mark.parametrize("option", ["--foo=1", "--epochs=5", "--model=MLP"])
def test_an_unknown_option_is_answered_with_a_setting_that_is_taken(capsys, option):
    with pytest.raises(SystemExit):
        main(["--data", "x", option])
    assert "such as: dataset.root=images\n" in capsys.readouterr().err


def test_control_characters_of_names_reach_no_terminal_and_end_no_comment(new, tmp_path):
    data = paint(tmp_path / "a\nb", [*many("cat\x1b[2J", 20), *many("dog", 20)])
    code, out, said = new(data, "--name", "x", "--out", str(tmp_path / "c\nd.yaml"))
    assert code == 0, said
    assert "\x1b" not in said and "cat\\x1b[2J 20" in said
    assert load_config(tmp_path / "c\nd.yaml").name == "x"


def test_a_file_without_suffix_is_no_folder(new, tmp_path):
    (tmp_path / "README").write_text("text")
    code, _, said = new(tmp_path / "README")
    assert code == 2 and "expected a folder, or a file of .csv" in said


def test_a_path_that_is_not_there_or_no_data_is_told(new, tmp_path):
    touch(tmp_path / "photos", *of("."))
    code, _, said = new(tmp_path / "photo")
    assert code == 3 and "Did you mean" in said and "photos" in said
    (tmp_path / "a.txt").write_text("text")
    code, _, said = new(tmp_path / "a.txt")
    assert code == 2 and "expected a folder, or a file of .csv" in said


@pytest.mark.skipif(not RMB.is_dir(), reason="needs the photographs of notes")
def test_the_photographs_of_notes_get_a_file_that_learns_them(new, tmp_path, monkeypatch):
    monkeypatch.setattr(look, "LOOKED_AT", 32)  # fewer take less time
    code, out, said = new(RMB)
    assert code == 0, said
    runs = tmp_path / "runs"
    assert train(["--config", str(out), "--runs", str(runs), "log.show=[]"]) == 0
    (result,) = runs.rglob("result.json")
    assert '"accuracy": 1.0' in result.read_text()


class Seen(SimpleNamespace):
    """A dataset of which only the labels, parts, classes and ids are known."""

    def __len__(self) -> int:
        return len(self.ids)


def sight_of(parts: dict[str, int], size: tuple[int, int], grey: bool, classes: int) -> look.Sight:
    """What would be seen of so many images of each part; nothing is on the disk."""
    labels = tuple(i % classes for n in parts.values() for i in range(n))
    of_parts = tuple(part for part, n in parts.items() for _ in range(n))
    names = tuple(f"class {k}" for k in range(classes))
    ids = tuple(map(str, range(len(labels))))
    data = Seen(labels=labels, parts=of_parts, classes=names, ids=ids)
    pixels = [torch.zeros(3, *size, dtype=torch.uint8)]
    data.images = None
    config = SimpleNamespace(dataset=SimpleNamespace(name="ImageFolder"))
    return look.Sight(config, data, [size], pixels, grey, [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shipped", "parts", "size", "grey"),
    [
        ("cifar10_cpu", {"train": 50_000, "test": 10_000}, (32, 32), False),
        ("lenet_fashion_mnist", {"train": 8226, "test": 4443}, (28, 28), True),
    ],
)
def test_where_a_measured_recipe_is_shipped_its_training_is_written(
    tmp_path, shipped, parts, size, grey
):
    sight = sight_of(parts, size, grey, classes=10)
    told = {"file": "x.yaml", "schema": "./schema.json", "data": "x", "time": ""}
    recipe = first_file.choose_recipe(sight, CPU)
    out = tmp_path / "x.yaml"
    out.write_text(first_file.first_file(sight, "x", recipe, told, {"root": "x"}))
    written, wanted = load_config(out), load_config(f"configs/{shipped}.yaml")
    assert not list(check_components(written))
    for section in ("model", "loss", "optimizer", "scheduler", "loader", "evaluation"):
        assert getattr(written, section) == getattr(wanted, section), section
    assert written.train.epochs == wanted.train.epochs
    assert written.train.sizes == wanted.train.sizes
    random = [
        [step for step in one.transforms.train if step.name.startswith("Random")]
        for one in (written, wanted)
    ]
    assert random[0] == random[1]


@pytest.mark.parametrize(("has_gpu", "side"), [(True, 224), (False, 128)])
def test_photographs_get_the_size_that_the_device_can_compute(has_gpu, side):
    sight = sight_of({"train": 2000}, (400, 300), False, classes=2)
    recipe = first_file.choose_recipe(sight, first_file.Machine(has_gpu, True))
    assert recipe.side == side and "{name: ResNet, depth: 18}" in recipe.lines[0]
    small = sight_of({"train": 2000}, (100, 120), False, classes=2)
    assert first_file.choose_recipe(small, first_file.Machine(True, True)).side == 96


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        ([f"a/scene{s}_{i:02}.jpg" for s in range(20) for i in range(5)], 20),
        ([f"a/IMG_{i:04}.jpg" for i in range(100)], 0),
        ([f"a/{i}.jpg" for i in range(100)], 0),
    ],
)
def test_names_that_tell_groups_of_several_pictures_are_noticed(names, groups):
    sight = sight_of({"train": 100}, (32, 32), False, classes=2)
    vars(sight.dataset)["ids"] = tuple(names)
    assert sight.bursts() == groups
    text = "\n".join(first_file._split(sight))
    assert ("File names tell 20 groups" in text) == bool(groups)


def test_a_folder_named_like_a_number_gives_a_name_that_is_text(new, tmp_path):
    data = paint(tmp_path / "2024", [*many("cat", 20), *many("dog", 20)])
    code, out, said = new(data)
    assert code == 0 and load_config(out).name == "2024", said
    code, _, said = new(data, "--name", "a b", "--out", str(tmp_path / "b.yaml"))
    assert code == 2 and "--name a b: expected text" in said
    code, _, said = new(data, "--out", str(tmp_path / "none" / "b.yaml"))
    assert code == 2 and f"{tmp_path}/none: this folder does not exist" in said


def test_images_with_several_labels_get_sigmoids_and_are_counted_by_class():
    sight = sight_of({"train": 100}, (32, 32), False, classes=2)
    vars(sight.dataset)["labels"] = ((1.0, 1.0),) * 40 + ((0.0, 1.0),) * 60
    assert sight.class_sizes == [40, 100]
    told = {"file": "x.yaml", "schema": "./schema.json", "data": "x", "time": ""}
    text = first_file.first_file(sight, "x", first_file.choose_recipe(sight, CPU), told, {})
    assert "loss: {name: BCEWithLogitsLoss}" in text


def test_photographs_get_a_file_whose_training_can_be_prepared(new, tmp_path, monkeypatch):
    monkeypatch.setattr(first_file, "FEW_TO_TRAIN", 10)
    data = paint(tmp_path / "data", [*many("cat", 24), *many("dog", 24)], (70, 80))
    code, out, said = new(data)
    assert code == 0, said
    config = load_config(out)
    assert config.model.name == "ResNet" and config.loader.drop_last
    assert [step.name for step in config.transforms.eval] == ["Resize", "CenterCrop", "Normalize"]


def test_mean_and_std_of_16_bits_are_shares_of_their_range(new, tmp_path):
    drawn = np.random.default_rng(0)
    for name, level in (("a", 10_000), ("b", 40_000)):
        (tmp_path / "deep" / name).mkdir(parents=True)
        for number in range(12):
            pixels = (level + drawn.integers(0, 1000, (32, 32))).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / "deep" / name / f"{number}.png")
    code, file, said = new(tmp_path / "deep", "dataset.bits=16")
    assert code == 0, said
    (mean,) = load_config(file).transforms.train[-1].arguments["mean"]
    assert 10_000 / 65_535 < mean < 41_000 / 65_535


def arrays_of(tmp_path: Path) -> str:
    counts = {"train": 30, "val": 8, "test": 12}
    arrays: dict[str, Any] = {f"{part}_labels": np.arange(n) % 3 for part, n in counts.items()}
    arrays |= {f"{part}_images": np.zeros((n, 9, 9), np.uint8) for part, n in counts.items()}
    np.savez(tmp_path / "a.npz", **arrays)
    return str(tmp_path / "a.npz")


def parquet_of(tmp_path: Path) -> str:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    content = io.BytesIO()
    Image.new("RGB", (9, 9)).save(content, "png")
    (tmp_path / "parquet").mkdir()
    for part, n in {"train": 30, "validation": 8, "test": 12}.items():
        column = {"image": [content.getvalue()] * n, "label": [i % 3 for i in range(n)]}
        name = f"{part}-00000-of-00001.parquet"
        parquet.write_table(pyarrow.table(column), tmp_path / "parquet" / name)
    return str(tmp_path / "parquet")


def table_of(tmp_path: Path) -> str:
    lines, number = ["path,label,split"], 0
    for part, n in {"train": 30, "val": 8, "test": 12}.items():
        for i in range(n):
            number += 1
            lines.append(f"{number}.png,{i % 3},{part}")
            Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return str(tmp_path / "labels.csv")


@pytest.mark.parametrize("write", [arrays_of, parquet_of, table_of])
def test_classes_are_counted_without_test_and_the_line_says_of_how_many_images(tmp_path, write):
    first, _, parts, *_ = seen(look_at_data(write(tmp_path), []))
    assert first.endswith(
        ", 50 images, 3 classes: 0 13, 1 13, 2 12 (the 38 without test)"  # 10, 10, 10 and 3, 3, 2
    )
    assert parts == "parts   train 30, val 8, test 12"


KINDS = {  # classes, images of each, (width, height), grey
    "few": ("ab", 9, (32, 32), False),
    "hundreds": ("ab", 40, (40, 30), False),
    "small grey": ("ab", 120, (28, 28), True),
    "three": ("ab", 3, (32, 32), False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_gives_no_note_of_its_own(new, tmp_path, monkeypatch, kind):
    classes, count, size, grey = KINDS[kind]
    if count > 100:
        monkeypatch.setattr(first_file, "FEW_TO_TRAIN", 20)
    names = [name for one in classes for name in many(one, count)]
    code, out, said = new(paint(tmp_path / "data", names, size, grey))
    assert code == 0, said
    config = load_config(out)
    assert [metric.name for metric in config.metrics[1:]] == ["macro_f1"] * (count > 100)
    job = prepare(config, lambda line: None)
    job.train_loader.close()
    job.val_loader.close()
    assert as_lines(config, notes_on_run(job)) == []


@pytest.mark.parametrize(
    ("parts", "size", "grey", "model"),
    [
        ({"train": 50_000, "test": 10_000}, (32, 32), False, "CompactResNet"),
        ({"train": 8000}, (32, 32), False, "CompactResNet"),
        ({"train": 4000, "val": 900}, (300, 400), False, "ResNet"),
        ({"train": 90_000}, (300, 400), True, "ResNet"),
        ({"train": 9000, "test": 10}, (28, 28), True, "LeNet"),
    ],
)
def test_what_is_written_for_many_images_gives_no_note(tmp_path, parts, size, grey, model):
    sight = sight_of(parts, size, grey, classes=10)
    told = {"file": "x.yaml", "schema": "./schema.json", "data": "x", "time": ""}
    recipe = first_file.choose_recipe(sight, CPU)
    (tmp_path / "x.yaml").write_text(first_file.first_file(sight, "x", recipe, told, {"root": "x"}))
    config = load_config(tmp_path / "x.yaml")
    assert config.model.name == model and as_lines(config, notes_on_config(config)) == []
    schedule = SimpleNamespace(warmup_steps=100)
    job: Any = SimpleNamespace(config=config, schedule=schedule, train_loader=range(100))
    assert warm_up_note(job) == ""
    means = [metric.name for metric in config.metrics[1:]]
    assert means == ["macro_f1"] * (parts.get("test") != 10)  # one image of each class


def test_several_tables_that_are_typed_are_read(new, tmp_path):
    paint(tmp_path / "data", [f"{number}.png" for number in range(40)])
    for part, rows in (("train", range(30)), ("val", range(30, 40))):
        lines = [f"{number}.png,{number % 2}" for number in rows]
        (tmp_path / f"{part}.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    typed = f"dataset.csv={{train: {tmp_path}/train.csv, val: {tmp_path}/val.csv}}"
    code, file, said = new(tmp_path / "train.csv", typed, f"dataset.root={tmp_path}/data")
    assert code == 0 and "val" in str(load_config(file).dataset.arguments["csv"])
