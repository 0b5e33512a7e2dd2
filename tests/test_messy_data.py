"""Folders and tables as people have them: read as meant, or refused with what to type."""

import json
import os
import shlex
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image

from datasets import BrokenImage, DataError
from datasets.csv_images import CSVImages
from datasets.folders import part_of
from datasets.image_folder import ImageFolder
from datasets.images import FORMATS, SUFFIXES
from datasets.rmb import RMB
from datasets.shards import FORMAT, INDEX, Shards
from datasets.walk import describe_left_out
from scripts import split_dataset
from tests.test_datasets import touch
from trainer.build.model import build_loss
from trainer.build.prepare import prepare_data
from trainer.config import load_config
from trainer.data import main as inspect
from trainer.inference.image_files import find_images
from trainer.input.data import load_data
from trainer.process.errors import ConfigError


def of(*folders: str) -> list[str]:
    """An image of class a and one of class b below each folder."""
    return [f"{folder}/{name}/{i}.png" for folder in folders for name in "ab" for i in "12"]


# --- parts or classes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        {"Training": "train", "Testing": "test"},
        {"training": "train", "testing": "test"},
        {"TRAIN": "train", "Valid": "val", "TEST": "test"},
        {"tr": "train", "te": "test"},
        {"train": "train", "dev": "val", "test": "test"},
        {"train": "train", "eval": "val"},
        {"train2017": "train", "val2017": "val"},
        {"train_set": "train", "test_set": "test"},
        {"TrainImages": "train", "ValidationImages": "val"},
        {"seg_train/seg_train": "train", "seg_test/seg_test": "test"},
        {"training/training": "train", "validation/validation": "val"},
    ],
)
def test_part_folders_of_other_names_are_parts_and_no_classes(tmp_path, parts):
    data = ImageFolder(str(touch(tmp_path, *of(*parts), "__MACOSX/train/._1.png")))
    assert data.classes == ("a", "b")
    assert data.parts == tuple(part for part in parts.values() for _ in range(4))
    read_as_usual = all(
        name.lower() in ("training", "testing", "train", "valid", "test") for name in parts
    )
    told = "read " + ", ".join(f"'{name}' as {part}" for name, part in parts.items())
    assert (told in data.note) != read_as_usual
    assert "1 hidden (__MACOSX/)" in data.note


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["train/1.png", "bus/1.png"], ("bus", "train")),
        (["bullet_train/1.png", "crash_test/1.png"], ("bullet_train", "crash_test")),
        (["tr/1.png", "te/1.png", "de/1.png"], ("de", "te", "tr")),
        (["dev/1.png", "prod/x/1.png"], ("dev", "prod")),
        (["n1/images/1.png", "n2/images/1.png"], ("n1", "n2")),  # one common folder tells nothing
        (["cat/in/1.png", "cat/out/1.png", "dog/in/1.png", "dog/2.png"], ("cat", "dog")),
        (["test_tube/a/1.png", "cup/b/1.png"], ("cup", "test_tube")),
    ],
)
def test_classes_whose_names_have_a_word_of_parts_stay_classes(tmp_path, names, classes):
    data = ImageFolder(str(touch(tmp_path, *names)))
    assert data.classes == classes and set(data.parts) == {None} and data.note == ""


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            [*of("train"), "test_images/1.png"],
            "'train', 'test_images': are these parts of a split or classes?\n"
            "For parts: val and test are cut from it if you type dataset.root={root}/train\n"
            "For classes: type dataset.layout=classes",
        ),
        ([*of("train"), "bus/1.png"], "'train' beside 'bus': are these parts of a split or"),
        (
            [*of("seg_train", "seg_test"), "seg_pred/1.png"],
            "leaving out 'seg_pred', type dataset.layout=parts\nFor",
        ),
        ([*of("Training", "Test"), "more/1.png"], "'Test', 'Training' beside 'more': are these"),
        (
            [f"{name}/{place}/1.png" for name in ("cat", "dog") for place in ("in", "out")],
            "'cat', 'dog' hold no images themselves, but folders of the same names ('in', 'out'). "
            "Are they classes, or parts of a split? For classes, with the images of all folders "
            "below: type dataset.layout=classes\nFor parts, where 'in', 'out' are the classes: "
            "rename the folders to train, valid and test.\nFor one of them alone: type "
            "dataset.root={root}/cat",
        ),
        (
            [f"{name}/{part}/1.png" for name in ("cat", "dog") for part in ("train", "test")],
            "CLASS/PART/IMAGE is not read as a split: make it PART/CLASS/IMAGE.",
        ),
        (of("images", "masks"), "For one of them alone: type dataset.root={root}/images"),
        (
            of("dogscats/train", "dogscats/valid"),
            "one level too high. Type dataset.root={root}/dog",
        ),
        (of("x/dogscats/train", "x/dogscats/val"), "Type dataset.root={root}/x/dogscats"),
        (of("images"), "only the folder 'images' holds images, in 'a', 'b': this root seems one"),
        (
            [*of("train"), "test/1.png"],
            "test: no class folders here; expected {root}/test/CLASS/IM",
        ),
        (
            [*of("train"), "test/1.png"],
            "To leave out folders without classes, type dataset.layout=parts",
        ),
        (["train/1.png", "test/1.png"], "If 'train' is a class itself, type dataset.layout=classe"),
        (
            ["1.png", "2.png"],
            "It holds 2 images without a class ('1.png', '2.png').\nIf a table holds the labels",
        ),
        (["1.png"], "If '{name}' is one of the classes, type dataset.root={parent}"),
        (["1.png"], "It holds 1 image without a class"),
        (
            [*of("dogscats/train", "dogscats/valid"), "dogscats/stray.png", "stray.png"],
            "one level too high. Type dataset.root={root}/dogscats",
        ),
        (
            ["a/1.png", "b/1.png", "1.png", "2.png", "3.png"],
            "{root}: 3 images lie directly in this folder ('1.png', '2.png', '3.png'), and 2 in "
            "its folders 'a', 'b'.\nIf '{name}' is one of the classes, type "
            "dataset.root={parent}\nTo leave them out, type dataset.layout=classes",
        ),
        (
            [*of("train", "valid", "sample/train"), "test1/1.png"],
            "For parts: leaving out 'sample', 'test1', type dataset.layout=parts\n",
        ),
    ],
)
def test_what_can_be_read_two_ways_or_at_another_level_is_refused_with_what_to_type(
    tmp_path, names, told
):
    root = touch(tmp_path, *names)
    with pytest.raises(DataError) as caught:
        ImageFolder(str(root))
    assert told.format(root=root, name=root.name, parent=root.parent) in str(caught.value)


def test_what_the_refusal_says_to_type_gives_either_reading(tmp_path):
    root = touch(tmp_path / "parts", *of("seg_train/seg_train", "seg_test"), "seg_pred/1.png")
    data = ImageFolder(str(root), layout="parts")
    assert data.classes == ("a", "b") and data.parts == ("train",) * 4 + ("test",) * 4
    assert "1 folder that is no part (seg_pred: 1 image)" in data.note
    data = ImageFolder(str(root), layout="classes")
    assert data.classes == ("seg_pred", "seg_test", "seg_train") and set(data.parts) == {None}
    root = touch(tmp_path / "same", *of("cat", "dog"))
    assert ImageFolder(str(root), layout="classes").classes == ("cat", "dog")
    with pytest.raises(DataError, match="found 'cat', 'dog', but expected one train folder"):
        ImageFolder(str(root), layout="parts")
    assert RMB(str(touch(tmp_path / "rmb", *of("1", "100")))).classes == ("1", "100")


def test_unlabelled_folders_beside_parts_are_left_out_with_counts_where_asked(tmp_path):
    names = [*of("train", "valid", "sample/train", "sample/valid"), "test1/1.png", "test1/2.png"]
    data = ImageFolder(str(touch(tmp_path, *names, "test/test/1.png")), layout="parts")
    assert data.classes == ("a", "b") and data.parts == ("train",) * 4 + ("val",) * 4
    told = "3 folders that are no part (sample: 8 images, test1: 2 images, test: 1 image)"
    assert told in data.note


@pytest.mark.parametrize("outer", ["my photos (new)", "it's", "plain"])
def test_every_key_that_a_refusal_says_to_type_can_be_pasted_into_a_shell(tmp_path, outer):
    for number, names in enumerate(
        (of("x/train", "x/valid"), [*of("train"), "bus/1.png"], of("cat", "dog"), ["1.png"])
    ):
        root = touch(tmp_path / str(number) / outer / "root", *names)
        with pytest.raises(DataError) as caught:
            ImageFolder(str(root))
        typed = [
            word
            for line in str(caught.value).splitlines()
            if "type dataset" in line.lower() or "type 'dataset" in line.lower()
            for word in shlex.split(line[line.lower().index("ype ") + 4 :])
        ]
        roots = [word.split("=", 1)[1] for word in typed if word.startswith("dataset.root=")]
        assert roots and all(Path(place).is_dir() for place in roots)


def test_a_name_with_two_parts_in_it_or_none_names_no_part():
    assert part_of("seg_train") == part_of("trainImages") == part_of("TRAIN") == "train"
    assert part_of("train_val") is part_of("restaurant") is part_of("trained") is None


def test_split_dataset_takes_the_class_below_nested_part_folders(tmp_path):
    touch(tmp_path / "in", *of("seg_train/seg_train", "seg_test/seg_test"))
    assert (
        split_dataset.main(["--source", str(tmp_path / "in"), "--target", str(tmp_path / "out")])
        == 0
    )
    placed = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")}
    assert {name.split("/")[1] for name in placed} == {"a", "b"}
    assert {name for name in placed if name.startswith("test/")} == {
        f"test/{name}/{i}.png" for name in "ab" for i in "12"
    }


# --- names that only look different --------------------------------------------------------------

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        (NFC, NFD, "Unicode form (composed or not)"),
        ("Cat", "cat", "case, spaces or Unicode form"),
        ("hot dog", "hot  dog", "case, spaces or Unicode form"),
        ("\uff11\uff12", "12", "case, spaces or Unicode form"),
    ],
)
def test_classes_whose_names_only_look_different_are_refused_with_counts(
    tmp_path, one, other, what
):
    root = touch(tmp_path / "root", f"{one}/1.png", f"{one}/2.png", f"{other}/1.png", "x/1.png")
    rows = ["path,label", "x/1.png,x", f"{one}/1.png,{one}", f"{other}/1.png,{other}"]
    table = tmp_path / "list.csv"
    table.write_text("\n".join([*rows, f"{one}/2.png,{one}"]))
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "shard-000000.tar").write_bytes(b"0")
    place = {"part": None, "sha256": "0" * 64, "shard": 0, "offset": 0, "size": 1}
    index = {
        "format": FORMAT,
        "classes": [one, other],
        "shards": [{"name": "shard-000000.tar", "size": 1, "sha256": "0" * 64}],
        "samples": [{"id": str(i), "label": i % 2} | place for i in range(3)],
    }
    (shards / INDEX).write_text(json.dumps(index))
    for construct in (
        lambda: ImageFolder(str(root)),
        lambda: CSVImages(str(root), str(table)),
        lambda: Shards(str(shards)),
    ):
        with pytest.raises(DataError) as caught:
            construct()
        told = str(caught.value)
        assert f"{ascii(one)} (2 times, first " in told and f"{ascii(other)} (1 times" in told
        assert f"differ only in {what}" in told
    with pytest.raises(DataError, match="first in line 3.* first in line 4"):
        CSVImages(str(root), str(table))


def test_a_large_and_a_small_letter_are_two_classes(tmp_path):
    assert ImageFolder(str(touch(tmp_path, "A/1.png", "a/1.png"))).classes == ("A", "a")


# --- what is left out, and links -----------------------------------------------------------------


def test_pillows_suffixes_of_all_formats_that_are_read_are_read():
    known = Image.registered_extensions()
    of_formats = {suffix for suffix, name in known.items() if name in (*FORMATS, "MPO")}
    assert of_formats - {".pfm"} <= SUFFIXES  # its floats have no fixed range
    assert not SUFFIXES & {".heic", ".tga", ".psd"}


@pytest.fixture
def messy(tmp_path):
    """Two classes among all that lies in people's folders."""
    root = touch(tmp_path / "root", "a/1.png", "b/1.png", "stray.png")
    touch(root, "a/ok.jpe", "a/OK.MPO", "a/photo", "a/frame.0001")
    for name in ("a/1.heic", "a/2.HEIC", "a/3.psd", "b/4.tga", "b/.DS_Store", "b/._1.png"):
        (root / name).write_bytes(b"no format that is read")
    (root / "a" / "README").write_text("no image")
    touch(tmp_path / "elsewhere", "1.png", "deep/2.png")
    (root / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "twice").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere" / "deep" / "..")
    (root / "lost").symlink_to(tmp_path / "nowhere")
    (root / "c").symlink_to(touch(tmp_path / "c", "1.png"))
    return root


IMAGES = ["a/1.png", "a/OK.MPO", "a/frame.0001", "a/linked/1.png", "a/linked/deep/2.png"]
IMAGES += ["a/ok.jpe", "a/photo", "b/1.png", "c/1.png"]
LEFT_OUT = ["2 .heic (a/1.heic, a/2.HEIC)", "1 .psd (a/3.psd)", "1 .tga (b/4.tga)"]
LEFT_OUT += ["2 hidden (b/.DS_Store, b/._1.png)", "1 without suffix (a/README)"]
LEFT_OUT += ["2 links in a circle (a/linked/round, a/up)"]


def test_linked_folders_are_read_once_without_loops_and_all_that_is_left_out_is_counted(messy):
    data = ImageFolder(str(messy))
    assert sorted(data.ids) == sorted(IMAGES)
    assert data.note.startswith("left out 11: ")
    for text in (*LEFT_OUT, "1 image beside folders (stray.png)", "1 broken link (lost)"):
        assert text in data.note
    assert "convert them to .png or .jpg" in data.note


def test_a_dangling_link_named_like_a_picture_is_left_out_and_counted_by_every_command(tmp_path):
    root = touch(tmp_path / "root", *of("."))
    for name in ("a/dead.jpg", "b/dead.png"):
        (root / name).symlink_to(tmp_path / "nowhere")
    data = ImageFolder(str(root))
    assert sorted(data.ids) == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    assert data.note == "left out 2: 2 broken links (a/dead.jpg, b/dead.png)"
    found = find_images([str(root)])
    assert len(found.paths) == 4 and "2 broken links" in found.note


def test_every_unreadable_file_is_told_at_once_whether_it_opens_or_not(tmp_path, monkeypatch):
    root = touch(tmp_path / "root", *(f"{name}/{i}.png" for name in "ab" for i in range(9)))
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    (root / "a" / "0.png").write_bytes(b"opens, but is no picture")
    content = ImageFolder.content

    def guarded(self, index):  # rights alone do not stop an administrator
        if self.ids[index] == "b/1.png":
            raise BrokenImage("b/1.png", "cannot be read: Permission denied")
        return content(self, index)

    monkeypatch.setattr(ImageFolder, "content", guarded)
    config = load_config(
        "configs/lenet_rmb.yaml", ["dataset.name=ImageFolder", f"dataset.root={root}"]
    )
    with pytest.raises(DataError) as caught:
        load_data(config, torch.device("cpu"))
    told = str(caught.value)
    assert "2 of 18 images cannot be read" in told
    assert "a/0.png: " in told and "b/1.png: cannot be read: Permission denied" in told


def test_of_many_unreadable_files_ten_are_named_and_all_are_counted(tmp_path):
    root = touch(tmp_path / "root", *(f"{name}/{i:02}.png" for name in "ab" for i in range(20)))
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    for number in range(12):
        (root / "a" / f"{number:02}.png").write_bytes(b"no picture")
    typed = ["dataset.name=ImageFolder", f"dataset.root={root}"]
    with pytest.raises(DataError) as caught:
        load_data(load_config("configs/lenet_rmb.yaml", typed), torch.device("cpu"))
    head, *lines = str(caught.value).splitlines()
    assert head == "12 of 40 images cannot be read:"
    named = [f"  {root}/a/{number:02}.png: " for number in range(10)]
    assert all(map(str.startswith, lines[:10], named)) and len(lines) == 12
    assert lines[10].startswith("  ... and 2 more; python -m trainer.data lists all")
    config = load_config("configs/lenet_rmb.yaml", [*typed, "dataset.on_broken=skip"])
    told: list[str] = []
    data = prepare_data(config, torch.device("cpu"), told.append)
    shown = [line for line in told if line.startswith("left out")]
    assert len(shown) == 11 and shown[-1].startswith("left out 2 more; ")
    assert len(data.skipped) == 12


def test_all_files_beside_class_folders_and_parts_are_counted(tmp_path):
    for parts in ((".",), ("train", "test"), ("seg_train/seg_train", "seg_test")):
        root = touch(tmp_path / parts[0].split("/")[0].strip(".") / "root", *of(*parts))
        outer = {"", parts[0], parts[0].split("/")[0]} - {"."}
        for place in outer:
            for name in ("Thumbs.db", "README.txt", "labels.csv"):
                (root / place / name).write_text("no picture")
        count = len(outer)
        note = ImageFolder(str(root)).note
        assert note.startswith(f"left out {3 * count}: {count} .csv (")
        assert f"{count} .db (" in note and f"{count} .txt (" in note


def test_what_may_be_pictures_is_named_first_and_junk_last():
    kinds = {"hidden": 9, ".txt": 9, ".db": 1, ".csv": 1, ".md": 1, ".ini": 2, ".odd": 3}
    kinds |= {".heic": 1, ".xcf": 1, "images beside folders": 2, ".avif": 1, "broken links": 1}
    told = describe_left_out({kind: [f"{i}" for i in range(n)] for kind, n in kinds.items()})
    order = ["2 images beside folders", "1 .avif", "1 .heic", "1 broken link (", "3 .odd", "1 .xcf"]
    places = [told.index(text) for text in [*order, "9 .txt", "9 hidden"]]
    assert places == sorted(places) and told.startswith("left out 32: 2 images")
    assert "5 files of 4 more kinds; to use" in told
    assert (
        describe_left_out({"hidden": ["a"], ".txt": ["b"]})
        == "left out 2: 1 .txt (b), 1 hidden (a)"
    )


def test_predict_reads_a_folder_as_training_does_and_tells_what_it_leaves_out(messy):
    paths, faults, unreadable, note = find_images([str(messy)])
    names = [os.path.relpath(path, messy) for path in paths]
    assert sorted(names) == sorted([*IMAGES, "stray.png"])
    assert not faults and not unreadable
    for text in LEFT_OUT:
        assert text in note.replace(f"{messy}/", "")
    *_, note = find_images([str(messy / "a" / "*.*")])
    assert f"2 .heic ({messy}/a/1.heic, {messy}/a/2.HEIC)" in note


def test_a_folder_that_cannot_be_read_is_told_by_predict(messy, monkeypatch):
    scandir = os.scandir

    def guarded(path):  # rights alone do not stop an administrator, who may run the tests
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    found = find_images([str(messy)])
    assert found.unreadable == [f"{messy}/b: cannot be read: Permission denied"]
    assert found.paths


def test_all_classes_without_images_are_told_at_once_with_what_they_hold(tmp_path):
    root = touch(tmp_path, "a/1.png")
    for name in ("b/1.heic", "b/2.heic", "c/notes.txt", "d/.DS_Store"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    (root / "e").mkdir()
    with pytest.raises(DataError) as caught:
        ImageFolder(str(root))
    told = str(caught.value).replace(f"{root}/", "")
    assert "b: this class has no images; it holds 2 .heic (b/1.heic, b/2.heic)" in told
    assert "c: this class has no images; it holds 1 .txt (c/notes.txt)" in told
    assert "d: this class has no images; it holds 1 hidden (d/.DS_Store)" in told
    assert "e: this class has no images; it is empty" in told


# --- tables --------------------------------------------------------------------------------------


def table(tmp_path: Path, text: str, encoding: str = "utf-8", **arguments) -> CSVImages:
    root = touch(tmp_path / "images", "a.png", "sub/b.png", "c.png", "000.png", "more/d.jpg")
    path = tmp_path / "list.csv"
    path.write_text(text.replace("ROOT", str(root)), encoding)
    return CSVImages(str(root), str(path), **arguments)


@pytest.mark.parametrize(
    ("text", "labels", "note"),
    [
        ("path;label\na.png;x, y\nc.png;y\n", ("x, y", "y"), "read with ';' between values"),
        ("path\tlabel\na.png\tx\nc.png\ty\n", ("x", "y"), "read with tabs between values"),
        ("path|label\na.png|x\nc.png|y\n", ("x", "y"), "read with '|' between values"),
        ('path, label\na.png, "x, y"\nc.png,  z \n', ("x, y", "z"), ""),
        ("\ufeffpath,label\na.png,x,,\nc.png,y\n", ("x", "y"), ""),
        ("path,label\na.png,x\na.png,x\nc.png,y\n", ("x", "y"), "1 row repeats an earlier row"),
        ("path,label\nsub\\b.png,x\nc.png,y\n", ("x", "y"), "1 path with \\ is read with /"),
        ("path,label\nROOT/a.png,x\nc.png,y\n", ("x", "y"), "1 absolute path below the root"),
        ("path,label\na.png,x\n,\nc.png,y\n", ("x", "y"), "1 row without values is passed over"),
        ("path,label\na.png,None\nc.png,y\n", ("None", "y"), "1 row has the label 'None'"),
        ("path,label\na.png,?\nc.png,y\n", ("?", "y"), "1 row has the label '?'"),
        ("path,label\na.png,Unknown\nc.png,y\n", ("Unknown", "y"), "1 row has the label 'Un"),
        ("path,label,split\na.png,x,train\nc.png,y,dev\n", ("x", "y"), "dataset.part_column=split"),
    ],
)
def test_a_table_is_read_as_it_is_meant_and_what_is_converted_is_counted(
    tmp_path, text, labels, note
):
    data = table(tmp_path, text)
    assert tuple(data.classes[label] for label in data.labels) == labels
    assert note in data.note and bool(note) == bool(data.note)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "path,label,note\na.png,x, y,n\nc.png,y,n\n",
            ":2: 4 values, but the header has 3 columns",
        ),
        ("path,label,label\na.png,x,y\n", ":1: the column 'label' stands 2 times; the header has"),
        ("path,label\na.png,nan\nc.png,x\n", ":2: 'a.png': the label 'nan' usually means that the"),
        ("path,label\na.png,N/A\nc.png,x\n", ":2: 'a.png': the label 'N/A' usually means that the"),
        (
            "path,label\na.png,x\nc.png,x\na.png,y\n",
            ":4: 'a.png' is listed a second time; first in line 2, there with the label 'x'",
        ),
        ("path,label\nC:\\a.png,x\n", ":2: 'C:/a.png' leaves the root"),
        ("path,label\n000,x\n", "To find '000', type dataset.suffix=.png"),
        ("path,label\nd.jpg,x\n", "To find 'd.jpg', type dataset.root={root}/more"),
        ("path,label\nd,x\n", "type dataset.root={root}/more dataset.suffix=.jpg"),
        ("path,label\nimages/a.png,x\n", "To find 'images/a.png', type dataset.root={parent}"),
        ("path,label\nA.PNG,x\n", "'a.png' is there: names differ in case or Unicode form"),
        ("path,label\nnone.png,x\n", "or leave missing files out: dataset.on_broken=skip."),
        (
            "id,breed\n000,x\n",
            ":1: no column 'path', no column 'label'; the header has: id, breed. Type "
            "dataset.path_column=id dataset.label_column=breed dataset.suffix=.png",
        ),
        (",Image ID,Class Name\n0,a.png,x\n", "'dataset.path_column=Image ID' 'dataset.label_colu"),
        ("Path,LABEL\na.png,x\n", "Type dataset.path_column=Path dataset.label_column=LABEL"),
        ("id,label\n7,x\n", "the header has: id, label. Type dataset.path_column=id"),
        (
            "a.png,x\nc.png,y\n",
            "It seems to have no header: write one above it, such as path,label",
        ),
        ("000,x\n001,y\n", "It seems to have no header: write one above it, such as path,label"),
        ("777,x\n778,y\n", "It seems to have no header: write one above it, such as path,label"),
        (
            "id,cat,dog\n000,1,0\n001,0,1\n",
            "a column of 0 and 1 for each of 2 classes (cat, dog). Type dataset.path_column=id "
            "'dataset.label_columns=[cat, dog]' dataset.one_hot=true dataset.suffix=.png",
        ),
        ('path,label\na.png,x\nc.png,"y\n', "after line 2; is a quotation mark there without its"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_its_line_and_what_to_type(
    tmp_path, text, told
):
    with pytest.raises(DataError) as caught:
        table(tmp_path, text)
    root = tmp_path / "images"
    assert told.format(root=root, parent=root.parent) in str(caught.value)


def test_faults_of_all_kinds_are_told_at_once_with_their_number(tmp_path):
    rows = [f"gone{i}.png,x" for i in range(9)] + ["a.png,nan", "c.png,", "../a.png,x", "000.png,x"]
    with pytest.raises(DataError) as caught:
        table(tmp_path, "\n".join(["path,label", *rows]))
    told = str(caught.value)
    assert "list.csv: 12 of 13 rows cannot be used:" in told
    assert ":2: 'gone0.png'" in told and ":4:" in told and ":5:" not in told
    assert "... and 6 more missing files" in told
    assert ":11: 'a.png': the label 'nan'" in told and ":12: 'c.png' has no label" in told
    assert ":13: '../a.png' leaves the root" in told


def test_ids_get_the_suffix_and_missing_files_are_left_out_where_asked(tmp_path):
    data = table(tmp_path, "path,label\n000,x\na.png,y\n", suffix=".png")
    assert data.ids == ("000.png", "a.png")
    data = table(tmp_path, "path,label\ngone.png,x\na.png,y\n", on_broken="skip")
    assert data.ids == ("gone.png", "a.png")
    with pytest.raises(DataError, match="none of 1 files is below"):
        table(tmp_path, "path,label\ngone.png,x\n", on_broken="skip")


def test_ids_with_files_of_two_suffixes_are_counted_and_read_with_a_list(tmp_path):
    root = touch(tmp_path / "images", "0.jpg", "1.png", "2.jpg", "3.jpg", "4.jpg", "3.png")
    path = tmp_path / "list.csv"
    path.write_text("id,label\n" + "".join(f"{i},{'xy'[i % 2]}\n" for i in range(5)))
    told = "4 of the ids are found with .jpg, 1 with .png: type 'dataset.suffix=[.jpg, .png]'"
    for suffix in ("", ".jpg"):
        with pytest.raises(DataError) as caught:
            CSVImages(str(root), str(path), "id", suffix=suffix)
        assert told in str(caught.value)
    with pytest.raises(DataError) as caught:
        CSVImages(str(root), str(path))
    assert "dataset.path_column=id 'dataset.suffix=[.jpg, .png]'" in str(caught.value)
    data = CSVImages(str(root), str(path), "id", suffix=[".jpg", ".png"])
    assert data.ids == ("0.jpg", "1.png", "2.jpg", "3.jpg", "4.jpg")
    assert "1 id has files with .jpg and .png; .jpg is read" in data.note
    data = CSVImages(str(root), str(path), "id", suffix=".jpg", on_broken="skip")
    assert f"1 files are missing. {told}" in data.note


def test_a_suffix_that_spoils_whole_paths_is_taken_back(tmp_path):
    with pytest.raises(DataError) as caught:
        table(tmp_path, "path,label\nimages\\a.png,x\n", suffix=".jpg")
    assert f"type dataset.root={tmp_path} 'dataset.suffix=\"\"'" in str(caught.value)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        ("7", "'00007.png' is there: leading zeros are lost"),
        ("0", "the files have 5 digits. Export the column as text, so that it has '00000'."),
    ],
)
def test_ids_that_lost_their_leading_zeros_are_told(tmp_path, number, told):
    root = touch(tmp_path / "images", "00000.png", "00007.png")
    path = tmp_path / "list.csv"
    path.write_text(f"path,label\n{number},x\n")
    with pytest.raises(DataError) as caught:
        CSVImages(str(root), str(path), suffix=".png")
    assert told in str(caught.value) and "on_broken" not in str(caught.value)


@pytest.mark.parametrize(
    ("encoding", "told"),
    [("utf-16", "it is UTF-16: iconv -f UTF-16 -t UTF-8"), ("cp1252", "save it as 'CSV UTF-8'")],
)
def test_another_encoding_is_named_with_what_to_do(tmp_path, encoding, told):
    with pytest.raises(DataError, match=f"not a CSV file in UTF-8: .*{told}"):
        table(tmp_path, "path,label\na.png,é\n", encoding)


def test_parts_in_a_table_have_the_names_that_folders_have(tmp_path):
    text = "path,label,part\na.png,x,Training\nc.png,y,dev\n000.png,x,TEST\n"
    data = table(tmp_path, text, part_column="part")
    assert data.parts == ("train", "val", "test")
    assert "1 row with the part 'dev' is read as val" in data.note


def test_a_header_that_is_named_as_a_column_but_is_an_image_is_told(tmp_path):
    named = {"path_column": "000", "label_column": "y", "suffix": ".png"}
    data = table(tmp_path, "000,y\na.png,x\n", **named)
    assert ":1: the header names an image, '000.png', which is left out: to read it" in data.note


def test_rows_without_label_are_left_out_where_broken_files_are(tmp_path):
    text = "path,label\na.png,\nc.png,x\nsub/b.png,NaN\n000.png,y\n"
    with pytest.raises(DataError) as caught:
        table(tmp_path, text)
    assert "2 of 4 rows cannot be used" in str(caught.value)
    assert str(caught.value).endswith("or leave them out: dataset.on_broken=skip.")
    data = table(tmp_path, text, on_broken="skip")
    assert data.ids == ("c.png", "000.png") and "2 rows without label are left out" in data.note
    with pytest.raises(DataError, match="none of 1 rows has a label"):
        table(tmp_path, "path,label\na.png,\n", on_broken="skip")


@pytest.mark.parametrize("typo", ["airplnae", "airplan", "airpllane", "airplame"])
def test_a_rare_label_beside_a_similar_frequent_one_is_told(tmp_path, typo):
    labels = ["airplane"] * 40 + [typo, "class1"] + ["class2"] * 40 + ["cat"] + ["car"] * 40
    root = touch(tmp_path / "images", *(f"{i}.png" for i in range(len(labels))))
    path = tmp_path / "list.csv"
    path.write_text("path,label\n" + "".join(f"{i}.png,{x}\n" for i, x in enumerate(labels)))
    note = f"{path}: the label '{typo}' (1 images) is similar to 'airplane' (40); is it misspelt?"
    assert CSVImages(str(root), str(path)).note == note


def test_a_column_of_fold_numbers_is_one_fault_that_points_to_folds(tmp_path):
    rows = "".join(f"{name},x,{fold}\n" for fold, name in enumerate(("a.png", "c.png", "000.png")))
    with pytest.raises(DataError) as caught:
        table(tmp_path, f"path,label,fold\n{rows}", part_column="fold")
    told = str(caught.value)
    assert ":2: the part is '0': the column 'fold' seems to number folds" in told
    assert told.endswith("type dataset.part_column=null split.folds=5 split.fold=0.")
    assert "\n" not in told


# --- classes that some parts lack ----------------------------------------------------------------


@pytest.fixture
def data(config_file, tmp_path):
    """Load ImageFolder with these images, in which "broken" is written into the name."""

    def load(*names, **settings):
        root = touch(tmp_path / "root", *names)
        for path in root.rglob("*broken*"):
            path.write_bytes(b"")
        given = {"dataset": f"{{name: ImageFolder, root: {root}}}"} | settings
        config = load_config(config_file, [f"{key}={value}" for key, value in given.items()])
        return load_data(config, torch.device("cpu"))

    return load


def many(folder: str, count: int, start: str = "") -> list[str]:
    return [f"{folder}/{start}{i}.png" for i in range(count)]


def test_a_class_that_only_test_has_is_no_output_unless_it_is_pooled(data, tmp_path, config_file):
    names = [*many("train/a", 8), *many("train/b", 8), *many("test/a", 4), *many("test/c", 6)]
    with pytest.raises(DataError) as caught:
        data(*names)
    assert "train has no image of 1 of 3 classes: 'c' (6 in test)" in str(caught.value)
    assert data(*names, **{"split.pool": "true"}).classes == ("a", "b", "c")
    rows = [f"{name},{name.split('/')[1]},{name.split('/')[0]}" for name in names]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,part", *rows]))
    table = (
        f"{{name: CSVImages, root: {tmp_path}/root, csv: {tmp_path}/list.csv, part_column: part}}"
    )
    with pytest.raises(DataError, match="train has no image of 1 of 3 classes: 'c'"):
        data(dataset=table)
    output = tmp_path / "look"
    told = ["--config", str(config_file), "--no-near", "--output", str(output), f"dataset={table}"]
    assert inspect(told) == 3 and (output / "data.md").is_file()


def test_a_class_that_only_the_official_test_set_has_is_refused_with_folds_too(data, tmp_path):
    names = [*many("train/a", 30), *many("train/b", 30), "train/d/0.png"]
    names += [*many("test/a", 4), *many("test/c", 6)]
    for fold in range(3):
        folds = {"split.folds": 3, "split.fold": fold}
        with pytest.raises(DataError) as caught:
            data(*names, **folds)
        assert "train has no image of 1 of 4 classes: 'c' (6 in test)" in str(caught.value)
        assert "split.pool=true" in str(caught.value)
    shutil.rmtree(tmp_path / "root/test/c")
    notes = [data(**{"split.folds": 3, "split.fold": fold}).notes for fold in range(3)]
    told = "train has no image of 1 of 3 classes: 'd' (1 in val)"
    assert sum(told in one for one in notes) == 1


def test_balanced_weights_name_the_class_without_training_images_and_what_to_type(config_file):
    config = load_config(config_file, ["loss.weight=balanced"])
    with pytest.raises(ConfigError) as caught:
        build_loss(config, torch.tensor([0, 2, 2]), ["cat", "dog", "owl"])
    told = "needs training images of every class; none of 'dog': type another split.fold or spl"
    assert told in str(caught.value) and "loss.weight=null" in str(caught.value)


def test_a_class_that_val_or_test_lacks_is_told_with_counts(data):
    names = [*many("train/a", 20), *many("train/b", 9), *many("val/a", 2), *many("test/b", 4)]
    assert data(*names).notes == [
        "val has no image of 1 of 2 classes: 'b' (9 in train, 4 in test)",
        "test has no image of 1 of 2 classes: 'a' (20 in train, 2 in val)",
    ]


def test_a_class_whose_images_are_all_broken_is_an_error_that_says_so(data):
    names = [*many("a", 9), *many("b", 9), *many("c", 3, "broken")]
    skip = {"dataset.on_broken": "skip"}
    with pytest.raises(DataError) as caught:
        data(*names, **skip)
    told = str(caught.value)
    assert "train has no image of 1 of 3 classes: 'c' (3 that cannot be read)" in told
    assert "c/broken0.png: the file is empty" in told
    with pytest.raises(DataError, match="3 that cannot be read"):
        data(*names, **skip, **{"split.folds": 5, "split.fold": 0})
    assert len(data(*names, "c/1.png", "c/2.png", **skip).skipped) == 3


def test_a_rare_class_may_be_held_out_whole_with_folds_and_this_is_told(data):
    names = [*many("a", 30), *many("b", 30), "c/1.png"]
    told = [data(*names, **{"split.folds": 5, "split.fold": fold}).notes for fold in range(5)]
    assert sum(any(n.startswith("train has no image of 1 of 3") for n in one) for one in told) == 2


def test_parts_that_were_cut_from_train_are_told_by_training_and_the_look(
    data, tmp_path, config_file, capsys
):
    folders = [f"{part}/{name}" for part in ("Training", "Testing") for name in "ab"]
    names = [name for folder in folders for name in many(folder, 20)]
    made = data(*names)
    told = f"the data has no val of its own: {len(made.split['val'])} images of train are val"
    assert made.notes == [told]
    look = ["--config", str(config_file), "--no-near", "--output", str(tmp_path / "look")]
    dataset = f"dataset={{name: ImageFolder, root: {tmp_path}/root}}"
    assert inspect([*look, dataset]) == 0
    assert f"note        {told}" in capsys.readouterr().out
    assert data(**{"split.pool": "true"}).notes == []


def test_equal_images_in_two_parts_are_told_with_their_total_and_some_groups(data, tmp_path):
    names = [*many("train/a", 12), *many("train/b", 12), *many("test/a", 2), *many("test/b", 2)]
    root = touch(tmp_path / "root", *names)
    for i in range(8):
        shutil.copy(root / f"train/a/{i}.png", root / f"test/a/copy{i}.png")
    notes = data().notes
    assert len(notes) == 2  # the other one says that val was cut
    first, *groups = notes[1].splitlines()
    assert first == (
        "8 groups of equal images (16 in all) in different parts of the official split: what is "
        "tested was trained on"
    )
    assert groups[0] == "  train/a/0.png = test/a/copy0.png" and len(groups) == 6
    assert groups[-1] == "  and 3 more groups; python -m trainer.data lists all"


@pytest.mark.parametrize(("in_table", "on_disk"), [(NFC, NFD), (NFD, NFC)])
def test_a_path_in_the_other_unicode_form_than_its_file_is_read_with_a_note(
    tmp_path, in_table, on_disk
):
    root = touch(tmp_path / "images", f"{on_disk}/1.png", f"{on_disk}/2.png", "tea/1.png")
    listed = tmp_path / "list.csv"
    rows = [f"{in_table}/1.png,x", f"{in_table}/2.png,x", "tea/1.png,y"]
    listed.write_text("\n".join(["path,label", *rows]), "utf-8")
    data = CSVImages(str(root), str(listed))
    assert data.ids == (f"{on_disk}/1.png", f"{on_disk}/2.png", "tea/1.png")
    assert "2 paths are read in the Unicode form of the files" in data.note
    assert data.image(0).shape[0] == 3
