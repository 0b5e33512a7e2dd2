"""What every dataset promises: files, labels, classes, official parts, and errors that help."""

import gzip
import hashlib
import importlib
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import warnings
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets import DATASETS, BrokenImage, DataError, Dataset, cifar10, draw, rmb
from datasets.cifar10 import CIFAR10
from datasets.csv_images import CSVImages
from datasets.fashion_mnist import FashionMNIST
from datasets.files import natural
from datasets.image_folder import ImageFolder
from datasets.memory import fetch_into
from datasets.rmb import RMB
from datasets.split import split
from scripts import draw_rmb

SHARED = Path("../shared/data")
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not on this machine")


def touch(root: Path, *names: str) -> Path:
    """Write each image as one pixel, whose colour is a hash of its name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = tuple(hashlib.sha256(name.encode()).digest()[:3])
        Image.new("RGB", (2, 3), colour).save(path, "PNG")
    return root


def check_contract(data: Dataset) -> None:
    assert len(data) == len(data.labels) == len(data.ids) == len(data.parts) > 0
    assert len(set(data.ids)) == len(data)
    assert set(data.labels) == set(range(len(data.classes)))
    assert set(data.parts) <= {None, "train", "val", "test"}
    assert data.on_broken in ("error", "skip")
    image = data.image(len(data) - 1)
    assert image.dtype == torch.uint8 and image.ndim == 3
    if data.images is not None:
        assert data.images.dtype == torch.uint8 and len(data.images) == len(data)
        assert torch.equal(data.images[len(data) - 1], image)
    assert len(data.digest(0)) == 64 and data.digest(0) == data.digest(0)
    some = [len(data) - 1, 0]
    at_once = data.digests(some)
    assert at_once is None or at_once == [data.digest(index) for index in some]
    assert at_once is not None or data.images is None


# --- the table -----------------------------------------------------------------------------------


def test_every_name_in_the_table_is_the_class_it_points_to():
    for name, target in DATASETS.items():
        module, attribute = target.split(":")
        found = getattr(importlib.import_module(module), attribute).__name__
        assert found == attribute == name.removeprefix("torchvision/")


def test_the_table_is_read_without_torch():
    code = "import sys, datasets; assert datasets.DATASETS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- folders -------------------------------------------------------------------------------------


def test_denominations_are_sorted_by_value(tmp_path):
    data = RMB(str(touch(tmp_path, "100/a.jpg", "5/b.jpg", "1/c.jpg", "0.5/d.jpg", "20/e.jpg")))
    check_contract(data)
    assert data.classes == ("0.5", "1", "5", "20", "100")
    assert dict(zip(data.ids, data.labels, strict=True)) == {
        "0.5/d.jpg": 0, "1/c.jpg": 1, "5/b.jpg": 2, "20/e.jpg": 3, "100/a.jpg": 4,
    }  # fmt: skip
    assert data.note == "" and data.images is None


@pytest.mark.parametrize("name", ["one", "nan", "-1", "1e3", "1 yuan"])
def test_a_folder_that_is_no_denomination_is_an_error(tmp_path, name):
    with pytest.raises(DataError, match=f"'{name}'.*ImageFolder"):
        RMB(str(touch(tmp_path, "100/a.jpg", f"{name}/b.jpg")))


def test_two_folders_of_one_value_are_an_error(tmp_path):
    with pytest.raises(DataError, match="same face value"):
        RMB(str(touch(tmp_path, "1/a.jpg", "1.0/b.jpg")))


def test_class_folders_are_in_natural_order_and_may_be_nested(tmp_path):
    data = ImageFolder(str(touch(tmp_path, "c10/2.png", "c10/x/y/1.PNG", "c9/10.png", "c9/9.webp")))
    check_contract(data)
    assert data.classes == ("c9", "c10")
    assert data.ids == ("c9/9.webp", "c9/10.png", "c10/2.png", "c10/x/y/1.PNG")
    assert data.labels == (0, 0, 1, 1)
    assert data.parts == (None,) * 4
    assert data.digest(2) == hashlib.sha256((tmp_path / "c10/2.png").read_bytes()).hexdigest()


@given(st.lists(st.text("aB0019. _-/!~é٣\x01", max_size=8)))
def test_natural_order_is_that_of_texts_and_whole_numbers_in_turn(names):
    def pieces(name):
        """Text, number, text, ..., text: compared one after the other."""
        found = [("".join(group), is_digit) for is_digit, group in groupby(name, str.isdecimal)]
        found = [("", False), *found] if found and found[0][1] else found
        found = [*found, ("", False)] if not found or found[-1][1] else found
        return [int(text) if is_digit else text for text, is_digit in found], name

    assert sorted(names, key=natural) == sorted(names, key=pieces)


def test_hidden_files_and_other_suffixes_are_ignored(tmp_path):
    touch(tmp_path, "a/1.png", "a/.hidden.png", "a/.thumbs/2.png", ".git/3.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "readme.md").write_text("no class")
    assert ImageFolder(str(tmp_path)).ids == ("a/1.png",)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Valid"])
def test_part_folders_fix_the_split(tmp_path, val):
    touch(
        tmp_path, "test/b/1.png", "test/a/1.png", f"{val}/a/1.png", "train/a/1.png", "train/b/1.png"
    )
    data = ImageFolder(str(tmp_path))
    check_contract(data)
    assert data.classes == ("a", "b")
    assert data.parts == ("train", "train", "val", "test", "test")
    assert data.ids[0] == "train/a/1.png" and data.ids[2] == f"{val}/a/1.png"
    assert data.labels == (0, 1, 0, 0, 1)


def test_rmb_reads_part_folders_too(tmp_path):
    data = RMB(str(touch(tmp_path, "train/100/1.png", "train/20/1.png", "test/20/1.png")))
    assert data.classes == ("20", "100") and data.parts == ("train", "train", "test")


def test_a_class_called_train_is_a_class(tmp_path):
    data = ImageFolder(str(touch(tmp_path, "train/1.png", "bus/1.png")))
    assert data.classes == ("bus", "train") and data.parts == (None, None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no class folders here; expected"),
        (["1.png"], "no class folders here; expected"),
        (["train/1.png"], "no class folders here; expected"),
        (["test/a/1.png"], "expected one train folder"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], "at most one of val, valid"),
        (["train/a/1.png", "test/a/1.png", "extra/1.png"], "'test', 'train' beside 'extra'"),
        (
            ["a/1.png", "b/2.text"],
            "b: this class has no images; it holds 1 .text",
        ),
    ],
)
def test_a_folder_of_another_form_is_an_error_that_says_what_was_expected(tmp_path, names, message):
    for name in sorted(names):
        touch(tmp_path, name)
    with pytest.raises(DataError, match=message):
        ImageFolder(str(tmp_path))


def test_a_misspelt_root_is_an_error_that_names_the_near_one(tmp_path, monkeypatch):
    touch(tmp_path, "data/rmb/1/a.jpg", "data/faces/1/a.jpg")
    monkeypatch.chdir(tmp_path)
    for root in ("data/rbm", str(tmp_path / "data" / "rbm"), "data/rbm/notes"):
        for dataset in (RMB, ImageFolder):
            with pytest.raises(DataError) as caught:
                dataset(root)
            assert root in str(caught.value) and "data/rmb'?" in str(caught.value)
    with pytest.raises(DataError, match="this is a file"):
        ImageFolder("data/rmb/1/a.jpg")


def test_constructing_decodes_nothing_and_a_broken_image_is_named_when_it_is_read(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b" / "1.png").write_bytes(b"")
    data = ImageFolder(str(tmp_path), on_broken="skip")
    assert len(data) == 2 and data.on_broken == "skip"
    with pytest.raises(BrokenImage, match="1.png: the file is empty"):
        data.image(1)
    (tmp_path / "b" / "1.png").unlink()
    with pytest.raises(BrokenImage, match="No such file"):
        data.digest(1)


def test_a_sub_folder_that_cannot_be_read_is_an_error_and_not_passed_over(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.png", "a/closed/2.png")
    scandir = os.scandir

    def guarded(path):  # rights alone do not stop an administrator, who may run the tests
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DataError, match="closed: cannot be read: Permission denied"):
        ImageFolder(str(tmp_path))


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        ("~nosuchuser/x", "the user after ~ is not known"),
        ("a\0b", "embedded null"),
        ("x" * 300, "File name too long"),
        ("x/" * 3000, "File name too long"),
    ],
)
def test_a_path_that_can_never_be_read_is_an_error_that_names_its_key(tmp_path, root, reason):
    for dataset in (RMB, ImageFolder, CIFAR10, FashionMNIST):
        with pytest.raises(DataError, match=reason) as caught:
            dataset(root)
        assert str(caught.value).startswith("dataset.root: ") and len(str(caught.value)) < 400
    with pytest.raises(DataError, match=f"dataset.root: .*{reason}"):
        CSVImages(root, str(tmp_path / "list.csv"))
    with pytest.raises(DataError, match=f"dataset.csv: .*{reason}"):
        CSVImages(str(tmp_path), root)


# --- CSV -----------------------------------------------------------------------------------------


def table(root: Path, text: str, encoding="utf-8") -> dict[str, Any]:
    touch(root, "images/a.png", "images/sub/b.png", "images/c.png")
    (root / "list.csv").write_text(text, encoding)
    return {"root": str(root / "images"), "csv": str(root / "list.csv")}


def test_a_csv_gives_paths_labels_and_parts(tmp_path):
    text = "path,label,part\na.png,cat,train\n./sub/b.png,dog,valid\nc.png,cat,\n"
    data = CSVImages(**table(tmp_path, text), part_column="part")
    check_contract(data)
    assert data.ids == ("a.png", "sub/b.png", "c.png")
    assert data.classes == ("cat", "dog") and data.labels == (0, 1, 0)
    assert data.parts == ("train", "val", None)


def test_a_csv_of_excel_with_other_column_names_is_read(tmp_path):
    text = '"file","kind"\r\n"a.png","fünf, ja"\r\n"c.png","acht"\r\n'
    arguments = table(tmp_path, text, "utf-8-sig")
    data = CSVImages(**arguments, path_column="file", label_column="kind")
    assert data.classes == ("acht", "fünf, ja") and data.parts == (None, None)


def test_numeric_labels_are_sorted_by_value(tmp_path):
    data = CSVImages(**table(tmp_path, "path,label\na.png,100\nsub/b.png,-2.5\nc.png,20\n"))
    assert data.classes == ("-2.5", "20", "100") and data.labels == (2, 0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\n", ":1: no column 'path'; the header has: file, label"),
        ("path,label\na.png,x\nnone.png,x\n", ":3: 'none.png': no such file"),
        ("path,label\n../list.csv,x\n", ":2: '../list.csv' leaves the root"),
        ("path,label\n/etc/passwd,x\n", ":2: '/etc/passwd' leaves the root"),
        (
            "path,label\na.png,x\nc.png,x\n./a.png,y\n",
            ":4: 'a.png' is listed a second time; first in line 2",
        ),
        ("path,label\na.png,\n", ":2: 'a.png' has no label"),
        ("path,label\na.png\n", ":2: 'a.png' has no label"),
        ("path,label\n,x\n", ":2: the path is empty"),
        ("path,label\na.png,1\nc.png,1.0\n", "the labels '1' and '1.0' are the same number"),
        (f"path,label\na.png,{'9' * 5000}\n", ":2: the label '9999"),
        (f"path,label\na.png,x{'9' * 5000}\n", "(5,001 characters)' is too long; at most 255"),
        (f"path,label\n{'x' * 5000},y\n", ":2: 'xxx"),
        (f"path,label\n{'x' * 5000},y\n", "(5,000 characters)': cannot be read: File name too"),
        ("path,label\na\0.png,x\n", ".png': cannot be read: embedded null"),
        ("path,label\nsub,x\n", ":2: 'sub': not a regular file"),
        ("path,label\n", "no images listed"),
        ("", "list.csv: the file is empty; expected a header, such as path,label, and"),
        ("\npath,label\n", "the first line is empty; expected a header"),
        ('path,label\n"a.png,x\n', "not a CSV file"),
    ],
)
def test_a_fault_in_a_csv_is_told_with_its_line(tmp_path, text, message):
    with pytest.raises(DataError) as caught:
        CSVImages(**table(tmp_path, text))
    assert message in str(caught.value) and "list.csv" in str(caught.value)


def test_faults_of_a_csv_are_told_together(tmp_path):
    lines = "".join(f"none{k}.png,x\n" for k in range(12))
    with pytest.raises(DataError) as caught:
        CSVImages(**table(tmp_path, "path,label\n" + lines))
    assert ":2:" in str(caught.value) and ":11:" in str(caught.value)
    assert "and 2 more" in str(caught.value)


def test_an_unknown_part_a_missing_csv_and_a_binary_one_are_errors(tmp_path):
    arguments = table(tmp_path, "path,label,part\na.png,x,learn\n")
    with pytest.raises(DataError, match=":2: 'a.png': unknown part 'learn'; expected train"):
        CSVImages(**arguments, part_column="part")
    (tmp_path / "list.csv").write_bytes(b"path,label\n\xff\xfe,x\n")
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        CSVImages(**arguments)
    (tmp_path / "list.csv").unlink()
    with pytest.raises(DataError, match="list.csv: cannot be read: No such file"):
        CSVImages(**arguments)


# --- drawn notes ---------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.jpg")}


def test_drawing_is_repeatable_and_more_pictures_keep_the_first_ones(tmp_path):
    for name, per_class, seed in (("a", 2, 0), ("b", 2, 0), ("more", 3, 0), ("other", 2, 1)):
        draw.draw(tmp_path / name, per_class, seed)
    first = content(tmp_path / "a")
    assert len(first) == 4 == len(set(first.values()))
    assert first == content(tmp_path / "b")
    assert first.items() < content(tmp_path / "more").items()
    assert not set(first.values()) & set(content(tmp_path / "other").values())


def test_both_series_of_each_value_are_drawn(tmp_path):
    draw.draw(tmp_path / "drawn", 4)
    names = [name.split("/")[0] + name[-9:-4] for name in content(tmp_path / "drawn")]
    assert Counter(names) == {"1-1990": 2, "1-1999": 2, "100-1990": 2, "100-1999": 2}


@pytest.fixture
def quick_draw(monkeypatch, tmp_path):
    monkeypatch.setattr(rmb, "draw", lambda target: draw.draw(target, per_class=2))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("quick_draw")
def test_notes_are_drawn_only_when_the_default_root_is_absent_and_this_is_allowed(tmp_path):
    with pytest.raises(DataError, match="draw_if_absent=true"):
        RMB()
    for root in ("data/rbm", "./data/rmb", str(tmp_path / "data" / "rmb")):
        with pytest.raises(DataError, match="does not exist"):
            RMB(root, draw_if_absent=True)
    assert not (tmp_path / "data").exists()

    drawn = RMB(draw_if_absent=True)
    check_contract(drawn)
    assert drawn.classes == ("1", "100") and drawn.labels == (0, 0, 1, 1)
    assert "DRAWN" in drawn.note and "data/rmb_drawn" in drawn.note
    assert "left out" not in drawn.note  # the mark is the project's own file
    assert drawn.image(0).shape == (3, 220, 400)
    assert RMB("data/rmb_drawn").note == drawn.note
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["rmb_drawn"]

    before = content(tmp_path / "data")
    RMB(draw_if_absent=True)
    assert content(tmp_path / "data") == before

    touch(tmp_path, "data/rmb/1/a.jpg", "data/rmb/100/a.jpg")
    real = RMB(draw_if_absent=True)
    assert real.note == "" and real.ids == ("1/a.jpg", "100/a.jpg")


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(draw, "photograph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw.draw(tmp_path / "drawn")
    assert not list(tmp_path.iterdir())


def test_of_two_processes_that_draw_at_once_the_first_wins(tmp_path):
    draw.draw(tmp_path / "drawn", 1)
    before = content(tmp_path / "drawn")
    draw.draw(tmp_path / "drawn", 2)  # comes to the rename when the folder is there
    assert content(tmp_path / "drawn") == before
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]


def test_the_draw_command_draws_into_a_new_folder_only(tmp_path, capsys):
    command = ["--target", str(tmp_path / "drawn"), "--per-class", "1", "--seed", "3"]
    assert draw_rmb.main(command) == 0
    assert len(content(tmp_path / "drawn")) == 2
    for wrong in (command, ["--target", str(tmp_path / "new"), "--per-class", "0"]):
        with pytest.raises(SystemExit) as ended:
            draw_rmb.main(wrong)
        assert ended.value.code == 2


# --- Fashion-MNIST -------------------------------------------------------------------------------


def write_idx(path: Path, values: torch.Tensor, packed: bool) -> None:
    head = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = head + bytes(values.flatten().tolist())
    Path(f"{path}.gz" if packed else path).write_bytes(gzip.compress(data) if packed else data)


@pytest.fixture(params=[True, False], ids=["gz", "raw"])
def fashion(tmp_path, request):
    generator = torch.Generator().manual_seed(0)
    for name, n in (("train", 30), ("t10k", 20)):
        images = torch.randint(0, 256, (n, 28, 28), generator=generator, dtype=torch.uint8)
        labels = torch.arange(n, dtype=torch.uint8) % 10
        raw = tmp_path / "FashionMNIST" / "raw"
        write_idx(raw / f"{name}-images-idx3-ubyte", images, request.param)
        write_idx(raw / f"{name}-labels-idx1-ubyte", labels, request.param)
    return tmp_path


def test_idx_files_packed_or_not_give_images_labels_and_the_official_test_part(fashion):
    data = FashionMNIST(str(fashion), download=False)
    check_contract(data)
    assert data.images.shape == (50, 1, 28, 28)
    assert data.labels == tuple(k % 10 for k in (*range(30), *range(20)))
    assert data.parts == ("train",) * 30 + ("test",) * 20
    assert data.ids[0] == "train/00000" and data.ids[30] == "test/00000"
    expected = torch.randint(
        0, 256, (30, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    assert torch.equal(data.images[:30, 0], expected)
    for index, digest in enumerate(data.digests(range(30))):
        assert digest == hashlib.sha256(bytes(expected[index].flatten().tolist())).hexdigest()


@pytest.mark.parametrize("damage", ["cut", "longer", "magic", "label", "count"])
def test_damaged_idx_files_are_named(fashion, damage):
    raw = fashion / "FashionMNIST" / "raw"
    for path in list(raw.iterdir()):  # the raw form only: damage inside gzip is the same to us
        content = path.read_bytes()
        path.unlink()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        (raw / path.name.removesuffix(".gz")).write_bytes(content)
    images, labels = raw / "t10k-images-idx3-ubyte", raw / "t10k-labels-idx1-ubyte"
    if damage == "cut":
        images.write_bytes(images.read_bytes()[:-1])
    if damage == "longer":
        images.write_bytes(images.read_bytes() + b"\0")
    if damage == "magic":
        images.write_bytes(b"<html>")
    if damage == "label":
        labels.write_bytes(labels.read_bytes()[:-1] + b"\x0a")
    if damage == "count":
        write_idx(labels, torch.zeros(19, dtype=torch.uint8), packed=False)
    with pytest.raises(DataError, match="t10k"):
        FashionMNIST(str(fashion), download=False)


def test_an_idx_file_that_claims_gigabytes_is_refused_before_they_are_taken(fashion):
    path = fashion / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.unlink(missing_ok=True)
    head = struct.pack(">4i", 2051, 2**31 - 1, 28, 28)
    for content in (head + bytes(1000), head[:4] + b"\xff" * 12, b"\0\0\x08\xff" + b"\xff" * 1020):
        Path(f"{path}.gz").write_bytes(gzip.compress(content))
        with pytest.raises(DataError, match=r"images-idx3-ubyte\.gz: its header says [\d,]+ bytes"):
            FashionMNIST(str(fashion), download=False)


def test_a_truncated_gzip_file_is_named(fashion):
    path = fashion / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    write_idx(path, torch.zeros(30, 28, 28, dtype=torch.uint8), packed=True)
    path.unlink(missing_ok=True)
    packed = Path(f"{path}.gz")
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz: cannot be read"):
        FashionMNIST(str(fashion), download=False)


def no_network(*_, **__):
    raise OSError("no route to host")


def test_without_network_the_error_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", no_network)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(DataError) as caught:
        FashionMNIST(str(tmp_path))
    told = str(caught.value)
    assert str(tmp_path / "FashionMNIST" / "raw") in told
    assert "http" in told and "train-images-idx3-ubyte.gz" in told
    with pytest.raises(DataError) as caught:
        CIFAR10(str(tmp_path))
    told = str(caught.value)
    assert str(tmp_path) in told and "https://www.cs.toronto.edu" in told
    assert "cifar-10-python.tar.gz" in told and "no route to host" in told


def test_a_failed_download_leaves_no_new_empty_folder(tmp_path, monkeypatch):
    def lost(_, folder, **__):
        os.makedirs(folder, exist_ok=True)  # as the real one does before it connects
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", lost)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    old = tmp_path / "old"
    old.mkdir()
    for dataset in (FashionMNIST, CIFAR10):
        for root in (tmp_path / "new" / "data", old):
            with pytest.raises(DataError, match="downloading failed"):
                dataset(str(root))
    assert list(tmp_path.rglob("*")) == [old]


def test_a_failed_download_leaves_what_it_did_fetch(tmp_path):
    def half():
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "part").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_into(tmp_path / "a" / "b", half)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "part"]


def test_with_download_off_nothing_is_fetched(tmp_path):
    for dataset in (FashionMNIST, CIFAR10):
        with pytest.raises(DataError, match="download is off"):
            dataset(str(tmp_path / "data"), download=False)
    assert not list(tmp_path.iterdir())


@needs_shared
def test_the_real_fashion_mnist_files_are_read_as_they_are():
    data = FashionMNIST(str(SHARED), download=False)
    check_contract(data)
    assert Counter(data.parts) == {"train": 8226, "test": 4443}
    assert data.images.shape == (12669, 1, 28, 28)
    assert data.labels[:5] == (9, 0, 0, 3, 0)  # the well-known first labels
    assert data.classes[9] == "Ankle boot"
    digests = [data.digest(index) for index in range(len(data))]
    parts = split(data.labels, digests, data.parts, (8, 1, 1), 0)
    assert len(parts["test"]) == 4443 and 800 < len(parts["val"]) < 1030


# --- CIFAR-10 ------------------------------------------------------------------------------------


def batch(pixels: bytes, labels: list[int]) -> bytes:
    """A batch as Python 2 pickled those of Toronto: the opcodes of cPickle, one after another."""
    shape = struct.pack("<2H", len(pixels) // 3072, 3072)
    dtype = (
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        + b"J\xff\xff\xff\xff" * 2
        + b"K\x00tb"
    )
    return (
        b"\x80\x02}(U\x0bbatch_labelU\x04someU\x06labels]("
        + b"".join(b"K%c" % label for label in labels)
        + b"eU\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        + b"(K\x01M%bM%b\x86" % (shape[:2], shape[2:])
        + dtype
        + b"\x89T%btbU\tfilenames](U\x05a.pngeu." % (struct.pack("<I", len(pixels)) + pixels)
    )


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Small batches of the official form; the table of MD5 sums is made to fit."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    sums = {}
    for k, name in enumerate(cifar10.BATCHES):
        data = torch.arange(20 * 3072).mul(k + 7).remainder(251).to(torch.uint8)
        content = batch(bytes(data.tolist()), [(index + k) % 10 for index in range(20)])
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(cifar10, "BATCHES", sums)
    return tmp_path


def test_the_batches_of_these_tests_are_what_numpy_would_read():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy on the old names in them
        read = pickle.loads(batch(bytes(range(256)) * 24, [1, 2]), encoding="latin1")  # noqa: S301
    assert read["data"].shape == (2, 3072) and read["data"].dtype == "uint8"
    assert read["data"].tobytes() == bytes(range(256)) * 24 and read["labels"] == [1, 2]


def test_cifar_batches_give_images_labels_and_the_official_test_part(cifar):
    data = CIFAR10(str(cifar), download=False)
    check_contract(data)
    assert data.images.shape == (120, 3, 32, 32)
    assert data.parts == ("train",) * 100 + ("test",) * 20
    assert data.labels[20:23] == (1, 2, 3) and data.labels[100:103] == (5, 6, 7)
    expected = torch.arange(3072).mul(7).remainder(251).to(torch.uint8).view(3, 32, 32)
    assert torch.equal(data.image(0), expected)  # planes of red, green, blue, each row by row
    assert data.digest(0) == hashlib.sha256(bytes(expected.flatten().tolist())).hexdigest()


def test_a_batch_that_is_not_the_official_one_is_refused_before_it_is_unpickled(cifar, monkeypatch):
    path = cifar / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setattr(cifar10, "_Batch", lambda *_, **__: pytest.fail("it was unpickled"))
    monkeypatch.setattr(cifar10, "BATCHES", {path.name: "0" * 32})
    with pytest.raises(DataError, match=r"data_batch_3: not the official CIFAR-10 batch"):
        CIFAR10(str(cifar))


class Call:
    """Pickled, it is a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


PIXELS = bytes(2 * 3072)


@pytest.mark.parametrize(("content", "told"), [
    (pickle.dumps(Call(os.system, "touch marker"), 2), "posix.system"),
    (pickle.dumps(Call(eval, "open('marker', 'w')"), 4), "builtins.eval"),
    (pickle.dumps(Call(os.system, "touch marker"), 0), "posix.system"),
    (b"cos\nsystem\n(S'touch marker'\ntR.", "os.system"),
    (b"(ios\nsystem\n.", "os.system"),
    (b"\x80\x04\x8c\x05numpy\x8c\x07fromstr\x93.", "numpy.fromstr"),
    (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "numpy.ndarray.tofile"),
    (b"cnumpy\nndarray\n.", "not a batch"),
    (b"cnumpy\nndarray\n)R}U\x08__init__Nsb.", "not a batch"),
    (b"\x82\x01.", "not a batch"),
    (b"", "not a batch"),
    (b"not a pickle", "not a batch"),
    (batch(PIXELS, [1, 2])[:-9], "not a batch"),
    (batch(PIXELS, [1, 10]), "3072 bytes and a label from 0 to 9"),
    (batch(PIXELS, [1]), "3072 bytes and a label from 0 to 9"),
    (batch(PIXELS, [1, 2]).replace(b"u1", b"f4"), "3072 bytes and a label from 0 to 9"),
    (batch(PIXELS, [1, 2]).replace(b"\x00\x0c\x86", b"\x00\x06\x86"), "3072 bytes"),
    (batch(PIXELS, [1, 2]).replace(b"M\x02\x00", b"M\x02\x10"), "3072 bytes"),
    (batch(PIXELS, [1, 2]).replace(b"\x89T", b"\x88T"), "3072 bytes"),
])  # fmt: skip
def test_a_pickle_of_anything_but_bytes_and_numbers_is_refused_even_if_its_md5_is_right(
    cifar, tmp_path, monkeypatch, content, told
):
    monkeypatch.chdir(tmp_path)
    (cifar / "cifar-10-batches-py" / "data_batch_2").write_bytes(content)
    digest = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(cifar10, "BATCHES", cifar10.BATCHES | {"data_batch_2": digest})
    with pytest.raises(DataError, match="data_batch_2: not a batch of CIFAR-10: ") as caught:
        CIFAR10(str(cifar))
    assert told in str(caught.value)
    assert not (tmp_path / "marker").exists()


@pytest.fixture
def cifar_archive(cifar, monkeypatch):
    """The batches in an archive like the official one, and none beside it."""
    path = cifar / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(cifar / "cifar-10-batches-py", "cifar-10-batches-py")
    shutil.rmtree(cifar / "cifar-10-batches-py")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", digest)
    return path


def test_an_archive_that_lies_there_is_unpacked_and_missing_batches_come_from_it(cifar_archive):
    root = cifar_archive.parent
    whole = CIFAR10(str(root), download=False)
    check_contract(whole)
    batches = root / "cifar-10-batches-py"
    (batches / "data_batch_4").unlink()
    (batches / "mine").write_text("kept")
    assert torch.equal(CIFAR10(str(root), download=False).images, whole.images)
    assert (batches / "mine").read_text() == "kept"
    assert {path.name for path in root.iterdir()} == {cifar_archive.name, batches.name}


def test_an_archive_that_is_not_the_official_one_is_refused_and_not_unpacked(cifar_archive):
    cifar_archive.write_bytes(cifar_archive.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz: its SHA-256 is .* not "):
        CIFAR10(str(cifar_archive.parent))
    assert [path.name for path in cifar_archive.parent.iterdir()] == [cifar_archive.name]


def test_what_is_downloaded_must_have_the_official_sha256(cifar_archive, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "URL", cifar_archive.as_uri())
    root = tmp_path / "elsewhere"
    check_contract(CIFAR10(str(root)))
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", "0" * 64)
    with pytest.raises(DataError, match="downloading failed: invalid hash value"):
        CIFAR10(str(tmp_path / "third"))
    assert not (tmp_path / "third").exists()


def test_the_sha256_of_the_archive_is_the_one_that_keras_pins():
    digest = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    assert cifar10.ARCHIVE_SHA256 == digest


def test_the_md5_sums_are_the_official_ones():
    assert list(cifar10.BATCHES) == [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    assert cifar10.BATCHES["data_batch_1"] == "c99cafc152244af753f735de768cd75f"


# --- the real files ------------------------------------------------------------------------------


@needs_shared
def test_the_real_photographs_are_found_with_their_values():
    data = RMB(str(SHARED / "rmb"), draw_if_absent=True)
    check_contract(data)
    assert data.classes == ("1", "100") and Counter(data.labels) == {0: 80, 1: 80}
    assert data.note == "" and data.image(0).shape[0] == 3
    assert ImageFolder(str(SHARED / "rmb")).ids == data.ids


@needs_shared
def test_a_train_and_test_folder_without_validation_is_read_from_the_real_archive(tmp_path):
    with tarfile.open(SHARED / "cifar10_jpeg.tar.gz") as archive:
        for member in archive:  # the archive is sorted: a few members of its first folders will do
            if member.name.startswith("train/bird"):
                break
            content = archive.extractfile(member)
            if content is not None and member.name.endswith(("7.jpg", "3.jpg")):
                image = tmp_path / member.name
                image.parent.mkdir(parents=True, exist_ok=True)
                image.write_bytes(content.read())
    for path in list(tmp_path.glob("train/*/*3.jpg")):
        target = tmp_path / "test" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    data = ImageFolder(str(tmp_path))
    check_contract(data)
    assert data.classes == ("airplane", "automobile") and data.image(0).shape == (3, 32, 32)
    digests = [data.digest(index) for index in range(len(data))]
    parts = split(data.labels, digests, data.parts, (8, 1, 1), 0)
    assert [data.parts[index] for index in parts["test"]] == ["test"] * len(parts["test"])
    assert len(parts["test"]) == data.parts.count("test") and parts["val"] and parts["train"]
