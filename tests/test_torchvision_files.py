"""Of torchvision/NAME, missing and damaged files are told, and nothing in them is executed."""

import gzip
import hashlib
import io
import pickle
import re
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import datasets.torchvision_sets as sets
from datasets import TORCHVISION, DataError
from datasets.torchvision_folders import OFFICIAL
from tests.official_arrays import digits, idx, make_gz, noise, write
from tests.official_sets import case_of, opened


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No download succeeds."""

    def refuse(*args, **more):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.parametrize("name", TORCHVISION)
def test_without_files_a_run_ends_with_3_and_says_where_they_are_looked_for(
    name, tmp_path, start, capsys
):
    root, more = tmp_path / "data", ", split: letters" if name == "EMNIST" else ""
    if OFFICIAL[name].fetched == "no":
        more += ", download: true"
    assert start(f"dataset={{name: torchvision/{name}, root: {root}{more}}}") == 3
    told = capsys.readouterr().err
    assert "Traceback" not in told and str(root) in told and "missing" in told
    first = OFFICIAL[name].files.split()[0]
    assert "{" in first or first.split("/")[0] in told
    assert "http" in told and "no network here" in told or OFFICIAL[name].fetched != "yes"
    assert not root.exists()


def test_a_large_set_is_only_downloaded_if_asked(tmp_path):
    with pytest.raises(DataError, match=r"download is off.*SUN397\.tar\.gz"):
        sets.SUN397(root=str(tmp_path))


def served(contents, monkeypatch):
    """Let downloads find these contents, by the last part of the URL."""

    class Response(io.BytesIO):
        url = length = None

    def urlopen(request):
        return Response(contents[request.full_url.rpartition("/")[2]])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def test_missing_files_are_downloaded_once_and_their_checksums_compared(tmp_path, monkeypatch):
    there, here = tmp_path / "there", tmp_path / "here"
    make_gz(there, monkeypatch)
    contents = {path.name: path.read_bytes() for path in (there / "MNIST/raw").iterdir()}
    served(contents, monkeypatch)
    data: Any = sets.MNIST(root=str(here))
    assert np.array_equal(data.images[:30, 0].numpy(), noise(30, 28, 28))
    served({}, monkeypatch)
    again: Any = sets.MNIST(root=str(here))
    assert torch.equal(again.images, data.images)
    contents["t10k-labels-idx1-ubyte.gz"] = gzip.compress(idx(digits(20)[::-1]))
    served(contents, monkeypatch)
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte .*not all are whole and official"):
        sets.MNIST(root=str(tmp_path / "other"))


def test_official_archives_that_lie_there_are_unpacked_without_a_network(tmp_path, monkeypatch):
    make_gz(tmp_path, monkeypatch)
    data = sets.MNIST(root=str(tmp_path))
    assert data.labels[30:] == tuple(digits(20)) and data.parts[29:31] == ("train", "test")


def test_an_archive_that_was_cut_short_is_told(tmp_path, monkeypatch):
    make_gz(tmp_path, monkeypatch)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="missing MNIST/raw/train-images-idx3-ubyte") as told:
        sets.MNIST(root=str(tmp_path))
    assert f"there are {path.name}" in str(told.value)
    assert "but not all are whole and official" in str(told.value)


PACKED = [
    ("Food101", "", "food-101.tar.gz", "_MD5"),
    ("DTD", "dtd", "dtd-r1.0.1.tar.gz", "_MD5"),
    ("CIFAR100", "", "cifar-100-python.tar.gz", "tgz_md5"),
    ("RenderedSST2", "", "rendered-sst2.tgz", "_MD5"),
]


@pytest.mark.parametrize(("name", "place", "archive", "md5"), PACKED)
def test_an_official_archive_is_unpacked_where_the_message_says_and_no_other_one(
    name, place, archive, md5, tmp_path, monkeypatch
):
    case, here = case_of(name), tmp_path / "here"
    case.make(tmp_path / "there", monkeypatch)
    with pytest.raises(DataError, match=re.escape(f"put that into {here / place} as it is")):
        opened(case, here)
    (here / place).mkdir(parents=True)
    with tarfile.open(here / place / archive, "w:gz") as file:
        for path in (tmp_path / "there" / place).iterdir():
            file.add(path, path.name)
    with pytest.raises(DataError, match=f"there are {archive}, but not all are whole"):
        opened(case, here)
    assert [path.name for path in (here / place).iterdir()] == [archive]
    content = (here / place / archive).read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(getattr(torchvision.datasets, name), md5, found)
    data = opened(case, here)
    assert data.labels == opened(case, tmp_path / "there").labels
    assert torch.equal(data.image(3), opened(case, tmp_path / "there").image(3))


DAMAGED = [
    ("MNIST", "MNIST/raw/train-images-idx3-ubyte", lambda content: content[:-9]),
    ("MNIST", "MNIST/raw/t10k-labels-idx1-ubyte", lambda content: idx(digits(19))),
    ("MNIST", "MNIST/raw/t10k-labels-idx1-ubyte", lambda content: idx(digits(20) + 1)),
    ("MNIST", "MNIST/raw/t10k-images-idx3-ubyte", lambda content: idx(noise(20, 27, 28))),
    ("MNIST", "MNIST/raw/t10k-images-idx3-ubyte", lambda content: b""),
    ("QMNIST", "QMNIST/raw/qmnist-test-labels-idx2-int", lambda content: content[:-1]),
    ("CIFAR100", "cifar-100-python/test", lambda content: content + b" "),
    ("SVHN", "test_32x32.mat", lambda content: content[:-1]),
    ("STL10", "stl10_binary/test_X.bin", lambda content: content[:-1]),
    ("USPS", "usps.t.bz2", lambda content: content + b" "),
    ("SEMEION", "semeion.data", lambda content: content[:-1]),
    ("FER2013", "fer2013/fer2013.csv", lambda content: content[:-1]),
    ("PCAM", "pcam/camelyonpatch_level_2_split_test_x.h5", lambda content: content[:900]),
    ("Flowers102", "flowers-102/setid.mat", lambda content: content[:-1]),
    ("OxfordIIITPet", "oxford-iiit-pet/annotations/test.txt", lambda content: b"a 1\n"),
    ("Food101", "food-101/meta/test.json", lambda content: content[:-1]),
    ("Food101", "food-101/meta/test.json", lambda content: b"[]"),
    ("GTSRB", "gtsrb/GT-final_test.csv", lambda content: b"no;csv\n1;2"),
    ("DTD", "dtd/dtd/labels/test3.txt", lambda content: b"banded/a.jpg"),
    ("FGVCAircraft", "fgvc-aircraft-2013b/data/images_family_test.txt", lambda content: b"1 X"),
    ("StanfordCars", "stanford_cars/devkit/cars_meta.mat", lambda content: content[:99]),
    ("SUN397", "SUN397/ClassName.txt", lambda content: b"/a/abbey\n"),
    ("Places365", "places365_val.txt", lambda content: content + b" "),
    ("ImageNet", "meta.bin", lambda content: content[:99]),
    ("CLEVRClassification", "clevr/CLEVR_v1.0/scenes/CLEVR_val_scenes.json", lambda c: b"{}"),
]


@pytest.mark.parametrize(("name", "file", "damage"), DAMAGED)
def test_damaged_files_are_told_and_never_end_in_a_traceback(
    name, file, damage, tmp_path, monkeypatch
):
    case = case_of(name)
    case.make(tmp_path, monkeypatch)
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    with pytest.raises(DataError) as told:
        opened(case, tmp_path)
    assert file.rpartition("/")[0].partition("/")[0] in str(told.value)
    assert "remove them, and download them again from http" in str(told.value)
    assert "\n" not in str(told.value)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("was-run"),)


def test_a_pickle_that_is_not_the_official_one_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("CIFAR10", "CIFAR100"):
        case_of(name).make(tmp_path, monkeypatch)
        folder = tmp_path / getattr(torchvision.datasets, name).base_folder
        for path in folder.iterdir():
            good = path.read_bytes()
            path.write_bytes(pickle.dumps(Bomb()))
            with pytest.raises(DataError):
                opened(case_of(name), tmp_path)
            path.write_bytes(good)
        assert len(opened(case_of(name), tmp_path).classes) == int(name[5:])
    assert not Path("was-run").exists()


def test_tensors_that_an_old_torchvision_left_are_not_read(tmp_path, monkeypatch):
    case_of("MNIST").make(tmp_path, monkeypatch)
    (tmp_path / "MNIST/processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28), torch.zeros(3)), tmp_path / "MNIST/processed" / name)
    assert len(torchvision.datasets.MNIST(str(tmp_path))) == 3
    assert len(sets.MNIST(root=str(tmp_path))) == 50


def test_a_list_of_images_cannot_lead_out_of_the_root(tmp_path, monkeypatch):
    case_of("Food101").make(tmp_path / "a", monkeypatch)
    listed = '{"waffles": ["../../../outside"], "apple_pie": []}'
    write(tmp_path / "a/food-101/meta/train.json", listed)
    with pytest.raises(DataError, match="not below"):
        sets.Food101(root=str(tmp_path / "a"))
    case_of("GTSRB").make(tmp_path / "b", monkeypatch)
    write(tmp_path / "b/gtsrb/GT-final_test.csv", "Filename;ClassId\n/etc/passwd;1")
    with pytest.raises(DataError, match="it lists /etc/passwd, which is not below"):
        sets.GTSRB(root=str(tmp_path / "b"))


def test_images_that_are_listed_and_missing_are_broken_images(tmp_path, monkeypatch):
    case_of("DTD").make(tmp_path, monkeypatch)
    data = opened(case_of("DTD"), tmp_path)
    (tmp_path / data.ids[2]).unlink()
    with pytest.raises(DataError, match=f"{data.ids[2]}: .*No such file"):
        data.image(2)


def test_sets_of_image_files_take_on_broken_and_decode(tmp_path, monkeypatch):
    case_of("EuroSAT").make(tmp_path, monkeypatch)
    Image.fromarray(noise(800, 800, 3)).save(tmp_path / "eurosat/2750/River/large.jpg")
    data = opened(case_of("EuroSAT"), tmp_path, on_broken="skip", decode="fast")
    assert data.on_broken == "skip"
    large = data.ids.index("eurosat/2750/River/large.jpg")
    assert data.decode(large, data.content(large), 150).shape == (3, 200, 200)
    assert data.recipe != opened(case_of("EuroSAT"), tmp_path).recipe


def test_a_folder_with_fewer_images_than_the_official_one_is_told(tmp_path, monkeypatch):
    case_of("EuroSAT").make(tmp_path, monkeypatch)
    data = opened(case_of("EuroSAT"), tmp_path)
    assert data.note == "3 images of 27,000 of the official set are there"


@pytest.mark.parametrize(("name", "package"), [("SVHN", "scipy"), ("PCAM", "h5py")])
def test_a_missing_package_is_a_fault_that_names_the_extra(
    name, package, tmp_path, monkeypatch, start, capsys
):
    case_of(name).make(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, package, None)
    assert start(f"dataset={{name: torchvision/{name}, root: {tmp_path}}}") == 2
    told = capsys.readouterr().err
    assert f'torchvision/{name} needs {package}: pip install -e ".[torchvision]"' in told
