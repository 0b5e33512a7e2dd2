"""torchvision/NAME gives what torchvision.datasets.NAME gives, and says what is missing."""

import hashlib
import os
import time
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import datasets.torchvision_sets as sets
from datasets import TORCHVISION, UNSUPPORTED
from datasets.images import read_image
from datasets.torchvision_folders import OFFICIAL
from tests.official_arrays import noise
from tests.official_sets import CASES, IDS, case_of, opened
from trainer.build.trial import check_components
from trainer.config import load_config
from trainer.input import source
from trainer.input.data import load_data
from trainer.process.errors import ConfigError

AS_IT_IS = ("Caltech101", "Caltech256", "INaturalist")  # of any mode, from file to file
UNSORTED = ("SUN397", "Omniglot", "INaturalist")


def class_of(case, held, label):
    """The name of a label, by torchvision's own attributes."""
    if case.name == "ImageNet":
        return held.wnids[label]
    if case.name == "INaturalist":
        return held.category_name(case.own.get("target_type", "full"), label)
    if case.name == "Omniglot":
        return held._characters[label]
    if case.name == "LFWPeople":
        return {k: name for name, k in held.class_to_idx.items()}[label]
    names = getattr(held, "bin_classes", ()) if "target_types" in case.own else ()
    names = names or getattr(held, "classes", None) or getattr(held, "categories", None)
    name = str(label) if names is None else names[label]
    return name[0] if isinstance(name, tuple) else name


def as_torchvision_has_them(case, root):
    """(part, class, pixels) of each sample, from torchvision's items."""
    found = []
    for part, given in case.parts.items():
        held = getattr(torchvision.datasets, case.name)(str(root), **{**case.own, **given})
        for i in range(len(held)):
            image, label = held[i]
            image = (
                image if image.mode == "L" and case.name != "Caltech101" else image.convert("RGB")
            )
            pixels = np.asarray(image)
            pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
            found.append((part, class_of(case, held, label), pixels))
    return found


def key(one):
    return str(one[0]), one[1], one[2].shape, one[2].tobytes()


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_parts_classes_order_and_pixels_are_those_of_torchvision(case, tmp_path, monkeypatch):
    case.make(tmp_path, monkeypatch)
    data = opened(case, tmp_path)
    found = [
        (data.parts[i], data.classes[data.labels[i]], data.image(i).numpy())
        for i in range(len(data))
    ]
    wanted = as_torchvision_has_them(case, tmp_path)
    if case.name in UNSORTED:  # torchvision's order is that of the file system
        found, wanted = sorted(found, key=key), sorted(wanted, key=key)
    assert [one[:2] for one in found] == [one[:2] for one in wanted]
    for (*_, ours), (*_, theirs) in zip(found, wanted, strict=True):
        assert ours.dtype == np.uint8 and np.array_equal(ours, theirs)


def test_every_set_in_the_table_is_made_and_compared():
    assert {one.name for one in CASES} == set(TORCHVISION) == set(OFFICIAL)


def test_each_image_has_a_name_and_a_digest_of_its_own(tmp_path, monkeypatch):
    for name in ("MNIST", "GTSRB", "SEMEION"):
        case_of(name).make(tmp_path, monkeypatch)
        data = opened(case_of(name), tmp_path)
        assert len(set(data.ids)) == len(data) == len(data.labels) == len(data.parts)
        assert set(data.labels) == set(range(len(data.classes)))
        hashed = data.image(3).numpy().tobytes()
        if name == "GTSRB":
            hashed = (tmp_path / data.ids[3]).read_bytes()
        assert data.digest(3) == hashlib.sha256(hashed).hexdigest()


def test_a_class_without_images_is_left_out_and_told(tmp_path, monkeypatch):
    case_of("EMNIST").make(tmp_path, monkeypatch)
    data = opened(case_of("EMNIST"), tmp_path)
    assert data.classes == tuple("abcdefghijklmnopqrstuvwxyz")
    assert data.note == "1 class name of 27 without any image: left out ('N/A')"


def test_the_extra_digits_of_svhn_are_for_training_and_only_if_asked(tmp_path, monkeypatch):
    case_of("SVHN").make(tmp_path, monkeypatch)
    assert len(sets.SVHN(root=str(tmp_path))) == 32
    data: Any = sets.SVHN(root=str(tmp_path), extra=True)
    extra = torchvision.datasets.SVHN(str(tmp_path), split="extra")
    assert data.parts == ("train",) * 34 + ("test",) * 12
    assert [data.classes[label] for label in data.labels[20:34]] == [str(k) for k in extra.labels]
    assert np.array_equal(data.images[20:34].numpy(), extra.data)
    assert len(set(data.ids)) == len(data)


@pytest.mark.parametrize("name", UNSORTED)
def test_order_and_labels_do_not_depend_on_the_order_of_the_file_system(
    name, tmp_path, monkeypatch
):
    case, listdir = case_of(name), os.listdir
    case.make(tmp_path, monkeypatch)
    found = []
    for is_backwards in (False, True):
        monkeypatch.setattr(
            os, "listdir", lambda path, turn=is_backwards: sorted(listdir(path), reverse=turn)
        )
        data = opened(case, tmp_path)
        assert list(data.classes) == sorted(data.classes)
        for part in set(data.parts):
            ids = [one for one, its in zip(data.ids, data.parts, strict=True) if its == part]
            assert len(ids) > 3 and ids == sorted(ids)
        found.append((data.ids, data.labels, data.classes))
    assert found[0] == found[1]


def test_what_is_stored_of_a_grey_set_is_never_met_by_one_in_colour(tmp_path, monkeypatch):
    for name in ("Omniglot", "GTSRB"):
        case_of(name).make(tmp_path, monkeypatch)
    grey, colour = (opened(case_of(name), tmp_path) for name in ("Omniglot", "GTSRB"))
    content = grey.content(0)
    assert grey.decode(0, content).shape[0] == 1 and colour.decode(0, content).shape[0] == 3
    assert grey.recipe != colour.recipe


def test_orientation_and_transparency_are_those_of_all_other_datasets(tmp_path):
    """The one difference to torchvision, which shows such a picture lying and drops its alpha."""
    folder = tmp_path / "eurosat/2750"
    (folder / "A").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(6, 9, 3)).save(folder / "A/a.jpg", exif=exif)
    Image.fromarray(noise(6, 9, 4), "RGBA").save(folder / "A/b.png")
    data = sets.EuroSAT(root=str(tmp_path))
    official = torchvision.datasets.EuroSAT(str(tmp_path))
    for i, name in enumerate(["A/a.jpg", "A/b.png"]):
        ours, theirs = data.image(i), np.asarray(official[i][0]).transpose(2, 0, 1)
        assert torch.equal(ours, read_image(folder / name))
        assert ours.shape != theirs.shape or not np.array_equal(ours.numpy(), theirs)


# --- the YAML


def faults_of(file, words):
    try:
        config = load_config(file, [words])
    except ConfigError as error:
        return [f"{one.path}: {one.message}" for one in error.faults]
    return [f"{one.path}: {one.message}" for one in check_components(config)]


FAULTS = [
    ("{name: torchvision/MNITS}", "did you mean 'torchvision/MNIST'?"),
    ("{name: torchvision/VOCDetection}", "unknown dataset 'torchvision/VOCDetection'"),
    ("mnist", "did you mean 'torchvision/MNIST'?"),
    ("{name: torchvision/MNIST, transform: x}", "transforms.train and transforms.eval"),
    ("{name: torchvision/MNIST, target_transform: x}", "labels stay as they are"),
    ("{name: torchvision/MNIST, train: true}", "train and test are both opened"),
    ("{name: torchvision/Food101, loader: x}", "image files are read as those of all other"),
    ("{name: torchvision/Food101, split: test}", "all official parts are opened"),
    ("{name: torchvision/ImageNet, transform: x}", "transforms.train and transforms.eval"),
    ("{name: torchvision/LFWPeople, download: true}", "torchvision cannot download these files"),
    ("{name: torchvision/EMNIST}", "'split' is missing"),
    ("{name: torchvision/EMNIST, split: train}", "byclass"),
    ("{name: torchvision/DTD, partition: 11}", "got 11"),
    ("{name: torchvision/DTD, partision: 2}", "did you mean 'partition'?"),
    ("{name: torchvision/STL10, folds: 10}", "got 10"),
    ("{name: torchvision/Imagenette, size: 320}", "320px"),
    ("{name: torchvision/MNIST, on_broken: skip}", "unknown key 'on_broken'"),
]


def test_every_set_of_torchvision_is_offered_or_refused_with_the_reason(config_file):
    names = {name for name in torchvision.datasets.__all__ if name[0].isupper()}
    refused = {name.removeprefix("torchvision/") for name in UNSUPPORTED}
    assert names - {"VisionDataset"} == {*TORCHVISION} | refused
    assert not refused & {*TORCHVISION}
    (found,) = faults_of(config_file, "dataset.name=torchvision/CelebA")
    assert "unknown dataset 'torchvision/CelebA': an image has 40 attributes there" in found
    assert "did you mean" not in found


@pytest.mark.parametrize(("dataset", "message"), FAULTS)
def test_wrong_names_and_arguments_are_told_before_any_file_is_looked_for(
    dataset, message, config_file
):
    found = faults_of(config_file, f"dataset={dataset}")
    assert len(found) == 1 and message in found[0] and found[0].startswith("dataset")


def test_classes_that_a_version_lacks_are_a_fault(config_file):
    config = load_config(
        config_file, ["dataset={name: torchvision/INaturalist, target_type: super}"]
    )
    with pytest.raises(ConfigError, match="super is of the versions 2017, 2018 and 2019 only"):
        load_data(config, torch.device("cpu"))


@pytest.mark.parametrize("name", ["MNIST", "OxfordIIITPet"])
def test_a_run_keeps_the_official_test_part_and_ends_well(
    name, tmp_path, monkeypatch, start, config_file, capsys
):
    case = case_of(name)
    case.make(tmp_path / "data", monkeypatch)
    grey = "Normalize, mean: [0.5], std: [0.5]"
    words = [f"dataset={{name: torchvision/{name}, root: {tmp_path / 'data'}}}", "train.epochs=1"]
    if name == "MNIST":
        both = f"[{{name: Resize, size: [32, 32]}}, {{name: {grey}}}]"
        words += [f"transforms={{train: {both}, eval: {both}}}"]
    assert start(*words) == 0, capsys.readouterr().err
    data = load_data(load_config(config_file, words), torch.device("cpu"))
    test = {data.dataset.ids[i] for i in data.subsets["test"].indices.tolist()}
    parts = zip(data.dataset.ids, data.dataset.parts, strict=True)
    assert test == {one for one, part in parts if part == "test"}


def test_a_second_start_reads_no_image_file(tmp_path, monkeypatch, config_file):
    case_of("EuroSAT").make(tmp_path / "data", monkeypatch)
    for k in range(20):
        for name in ("River", "Crop"):
            picture = Image.fromarray(noise(40, 40 + k, 3) // (1 + (name == "Crop")))
            picture.save(tmp_path / f"data/eurosat/2750/{name}/{k}.jpg")
    words = [f"dataset={{name: torchvision/EuroSAT, root: {tmp_path / 'data'}}}"]
    monkeypatch.setattr(source, "clock", lambda: time.time_ns() + 10**10)  # files are old by then
    first = load_data(load_config(config_file, words), torch.device("cpu"))

    def refuse(*args):
        raise AssertionError("a file is read")

    monkeypatch.setattr("datasets.files.read_file", refuse)
    second = load_data(load_config(config_file, words), torch.device("cpu"))
    rows = torch.arange(len(first.subsets["train"].indices))
    shown: list[Any] = [data.subsets["train"].read(rows, 0)[0] for data in (first, second)]
    assert len(rows) > 20 and torch.equal(*shown)
