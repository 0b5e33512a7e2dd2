"""Small files in the form of each of torchvision's data sets, with their checksums as official."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from datasets import torchvision_sets
from tests.official_arrays import (
    OF,
    cifar,
    emnist,
    faces_by_kaggle,
    fer2013,
    mat,
    mnist,
    pcam,
    picture,
    qmnist,
    semeion,
    stl10,
    svhn,
    usps,
    write,
)

TRAIN = {"train": {"train": True}, "test": {"train": False}}
TWO = {"train": {"split": "train"}, "test": {"split": "test"}}
WITH_VAL = {"train": {"split": "train"}, "val": {"split": "val"}}
THREE = {**WITH_VAL, "test": {"split": "test"}}
WHOLE: dict[str | None, dict[str, Any]] = {None: {}}


class Case(NamedTuple):
    """A set, the arguments of its YAML, its parts by torchvision's arguments, and its maker."""

    name: str
    make: Callable[[Path, Any], None]
    parts: dict[Any, dict[str, Any]]
    own: dict[str, Any] = {}


def _flowers(root: Path, patch: Any) -> None:
    folder = root / "flowers-102"
    ids = {"trnid": [5, 2, 4], "valid": [1, 6], "tstid": [3, 8, 7]}
    md5 = write(folder / "imagelabels.mat", mat(labels=[[1, 2, 3, 102, 1, 2, 3, 102]]))
    official = {**OF.Flowers102._file_dict, "label": ("imagelabels.mat", md5)}
    official["setid"] = ("setid.mat", write(folder / "setid.mat", mat(**ids)))
    patch.setattr(OF.Flowers102, "_file_dict", official)
    for number in range(1, 9):
        picture(folder / f"jpg/image_{number:05d}.jpg")


def _pets(root: Path, patch: Any) -> None:
    folder = root / "oxford-iiit-pet"
    for part in ("trainval", "test"):
        lines = []
        for number, (name, species) in enumerate([("Abyssinian", 1), ("great_pyrenees", 2)] * 2):
            stem = f"{name}_{number + 10 * len(part)}"
            picture(folder / f"images/{stem}.jpg")
            lines.append(f"{stem} {1 + number % 2} {species} 1")
        write(folder / f"annotations/{part}.txt", "\n".join(lines))


def _food(root: Path, patch: Any) -> None:
    for part in ("train", "test"):
        listed = {name: [f"{name}/{part}{k}" for k in (2, 1)] for name in ("waffles", "apple_pie")}
        write(root / f"food-101/meta/{part}.json", json.dumps(listed))
        for stem in sum(listed.values(), []):
            picture(root / f"food-101/images/{stem}.jpg")


def _folders(*names: str) -> Callable[[Path, Any], None]:
    """Pictures at these places."""

    def make(root: Path, patch: Any) -> None:
        for name in names:
            picture(root / name)

    return make


def _gtsrb(root: Path, patch: Any) -> None:
    for sign in (0, 1, 14):
        for number in range(2):
            picture(root / f"gtsrb/GTSRB/Training/{sign:05d}/{number:05d}.ppm")
    lines = ["Filename;Width;Height;ClassId"]
    for number, sign in enumerate((1, 0, 2)):
        picture(root / f"gtsrb/GTSRB/Final_Test/Images/{number:05d}.ppm")
        lines.append(f"{number:05d}.ppm;9;8;{sign}")
    write(root / "gtsrb/GT-final_test.csv", "\n".join(lines))


def _dtd(root: Path, patch: Any) -> None:
    for number, part in enumerate(("train", "val", "test")):
        names = [f"{kind}/{kind}_{number}{k}.jpg" for kind in ("zigzagged", "banded") for k in "ba"]
        write(root / f"dtd/dtd/labels/{part}3.txt", "\n".join(names))
        for name in names:
            picture(root / "dtd/dtd/images" / name)


def _aircraft(root: Path, patch: Any) -> None:
    folder = root / "fgvc-aircraft-2013b/data"
    write(folder / "families.txt", "Boeing 737\nA320 \n")
    for number, part in enumerate(("train", "val", "test")):
        lines = [f"{number}00{k} {name}" for k, name in enumerate(["A320", "Boeing 737"])]
        write(folder / f"images_family_{part}.txt", "\n".join(lines))
        for line in lines:
            picture(folder / f"images/{line.split()[0]}.jpg")


def _cars(root: Path, patch: Any) -> None:
    folder = root / "stanford_cars"
    write(folder / "devkit/cars_meta.mat", mat(class_names=np.array(["Audi TT", "BMW"], object)))
    kind = np.dtype([("class", "O"), ("fname", "O")])
    for part, name in (
        ("train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test_annos_withlabels.mat"),
    ):
        rows = np.array([(2, f"{part}1.jpg"), (1, f"{part}0.jpg"), (2, f"{part}2.jpg")], kind)
        write(folder / name, mat(annotations=rows))
        for k in range(3):
            picture(folder / f"cars_{part}/{part}{k}.jpg")


def _sun(root: Path, patch: Any) -> None:
    write(root / "SUN397/ClassName.txt", "/a/abbey\n/b/bath/indoor\n")
    for name in ("b/bath/indoor/sun_b", "b/bath/indoor/sun_a", "a/abbey/sun_z", "a/abbey/sun_c"):
        picture(root / f"SUN397/{name}.jpg")


def _omniglot(root: Path, patch: Any) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x", "")
    md5 = write(root / "omniglot-py/images_background.zip", out.getvalue())
    patch.setattr(OF.Omniglot, "zips_md5", {"images_background": md5})
    for letter in ("Greek/character02", "Greek/character01", "Bengali/character01"):
        for number in (2, 1):
            name = f"{letter.replace('/', '_')}_{number}.png"
            picture(root / "omniglot-py/images_background" / letter / name, "1")


def _lfw(root: Path, patch: Any) -> None:
    folder, sums = root / "lfw-py", {}
    write(folder / "lfw_funneled/.keep", "")
    md5 = write(folder / "lfw-funneled.tgz", b"")
    patch.setattr(
        OF.LFWPeople,
        "file_dict",
        {**OF.LFWPeople.file_dict, "funneled": ("lfw_funneled", "lfw-funneled.tgz", md5)},
    )
    sums["people.txt"] = write(folder / "people.txt", "2\n1\nZoe_A\t2\n2\nAl_B\t1\nCy_C\t1\n")
    sums["lfw-names.txt"] = write(folder / "lfw-names.txt", "Al_B\t1\nCy_C\t1\nZoe_A\t2\n")
    patch.setattr(OF.LFWPeople, "checksums", sums)
    for name, count in (("Zoe_A", 2), ("Al_B", 1), ("Cy_C", 1)):
        for number in range(1, count + 1):
            picture(folder / f"lfw_funneled/{name}/{name}_{number:04d}.jpg")


SPECIES = ("00000_Animalia_Chordata_Aves_A_B_C_d", "00001_Plantae_X_Y_Z_V_W_u")


def _places(root: Path, patch: Any) -> None:
    lists = {}
    md5 = write(root / "categories_places365.txt", "/a/airfield 0\n/b/bar 1\n")
    patch.setattr(OF.Places365, "_CATEGORIES_META", ("categories_places365.txt", md5))
    for part, name, folder in (
        ("train-standard", "places365_train_standard.txt", "data_256_standard"),
        ("val", "places365_val.txt", "val_256"),
    ):
        lines = [f"/b/bar/{k}{part}.jpg 1\n/a/airfield/{k}{part}.jpg 0" for k in range(2)]
        lists[part] = (name, write(root / name, "\n".join(lines)))
        for line in "\n".join(lines).splitlines():
            picture(root / folder / line.split()[0][1:])
    patch.setattr(OF.Places365, "_FILE_LIST_META", lists)


def _imagenet(root: Path, patch: Any) -> None:
    names = {"n02": ("crane", "bird"), "n01": ("tench",), "n03": ("crane",)}
    torch.save((names, ["n01"]), root / "meta.bin")
    for part in ("train", "val"):
        for wnid in names:
            picture(root / f"{part}/{wnid}/{part}_{wnid}.JPEG")


def _clevr(root: Path, patch: Any) -> None:
    folder = root / "clevr/CLEVR_v1.0"
    for part in ("train", "val"):
        scenes = []
        for number, objects in enumerate((5, 3, 10, 3)):
            name = f"CLEVR_{part}_{number:06d}.png"
            picture(folder / f"images/{part}/{name}")
            scenes.append({"image_filename": name, "objects": [{}] * objects})
        write(folder / f"scenes/CLEVR_{part}_scenes.json", json.dumps({"scenes": scenes}))


_SIZES = [f"{part}/{wnid}/{k}.JPEG" for part in ("train", "val") for wnid in
          ("n03888257", "n01440764") for k in "ba"]  # fmt: skip
_TREE = [f"{part}/{name}/{part}{k}" for part in ("train", "valid", "test") for name in
         ("positive", "negative") for k in "ba"]  # fmt: skip
_SIZED = {part: {"size": "160px", **given} for part, given in WITH_VAL.items()}
_VALID = {"train": {"version": "2021_train_mini"}, "val": {"version": "2021_valid"}}

CASES = [
    Case("MNIST", mnist("MNIST"), TRAIN),
    Case("KMNIST", mnist("KMNIST"), TRAIN),
    Case("FashionMNIST", mnist("FashionMNIST"), TRAIN),
    Case("EMNIST", emnist, TRAIN, {"split": "letters"}),
    Case("QMNIST", qmnist, {"train": {"what": "train"}, "test": {"what": "test"}}),
    Case("CIFAR10", cifar("CIFAR10", 10, "labels", 11), TRAIN),
    Case("CIFAR100", cifar("CIFAR100", 100, "fine_labels", 101), TRAIN),
    Case("SVHN", svhn, TWO),
    Case("STL10", stl10, TWO),
    Case("STL10", stl10, {"train": {"split": "train", "folds": 1}, "test": {"split": "test"}},
         {"folds": 1}),
    Case("USPS", usps, TRAIN),
    Case("SEMEION", semeion, WHOLE),
    Case("FER2013", fer2013, TWO),
    Case("FER2013", faces_by_kaggle, TWO),
    Case("PCAM", pcam, THREE),
    Case("Flowers102", _flowers, THREE),
    Case("OxfordIIITPet", _pets, {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    Case("OxfordIIITPet", _pets, {"train": {"split": "trainval"}, "test": {"split": "test"}},
         {"target_types": "binary-category"}),
    Case("Food101", _food, TWO),
    Case("EuroSAT", _folders(*(f"eurosat/2750/{k}.jpg" for k in ("River/b", "River/a", "Crop/c"))),
         WHOLE),
    Case("GTSRB", _gtsrb, TWO),
    Case("DTD", _dtd, THREE, {"partition": 3}),
    Case("Imagenette", _folders(*(f"imagenette2-160/{name[:-5]}.jpeg" for name in _SIZES)), _SIZED,
         {"size": "160px"}),
    Case("Caltech101", _folders(*(f"caltech101/101_ObjectCategories/{k}.jpg" for k in (
        "BACKGROUND_Google/image_0001", "ant/image_0001", "ant/image_0002", "Faces/image_0001"))),
        WHOLE),
    Case("Caltech256", _folders(*(f"caltech256/256_ObjectCategories/{k}.jpg" for k in (
        "002.flag/002_0001", "001.gun/001_0001", "001.gun/001_0002"))), WHOLE),
    Case("Country211", _folders(*(f"country211/{name}.jpg" for name in _TREE)),
         {**THREE, "val": {"split": "valid"}}),
    Case("FGVCAircraft", _aircraft, THREE, {"annotation_level": "family"}),
    Case("StanfordCars", _cars, TWO),
    Case("RenderedSST2", _folders(*(f"rendered-sst2/{name}.png" for name in _TREE)), THREE),
    Case("SUN397", _sun, WHOLE),
    Case("Omniglot", _omniglot, WHOLE),
    Case("LFWPeople", _lfw, WHOLE),
    Case("INaturalist", _folders(*(f"2021_{part}/{name}/{part}{k}.jpg" for part in (
        "train_mini", "valid") for name in SPECIES for k in "ba")), _VALID,
        {"version": "2021_train_mini"}),
    Case("INaturalist", _folders(*(f"2021_{part}/{name}/{part}{k}.jpg" for part in (
        "train_mini", "valid") for name in SPECIES for k in "ba")), _VALID,
        {"version": "2021_train_mini", "target_type": "kingdom"}),
    Case("INaturalist", _folders("2018/Aves/0/a.jpg", "2018/Aves/2/b.jpg", "2018/Fungi/1/c.jpg"),
         WHOLE, {"version": "2018"}),
    Case("Places365", _places, {"train": {"split": "train-standard"}, "val": {"split": "val"}},
         {"small": True}),
    Case("ImageNet", _imagenet, WITH_VAL),
    Case("CLEVRClassification", _clevr, WITH_VAL),
]  # fmt: skip

IDS = [f"{one.name}{''.join(f'-{value}' for value in one.own.values())}" for one in CASES]


def case_of(name: str) -> Case:
    """The first case of a set."""
    return next(one for one in CASES if one.name == name)


def opened(case: Case, root: Path, **more: Any) -> Any:
    """The set as the YAML's dataset opens it."""
    return getattr(torchvision_sets, case.name)(root=str(root), **case.own, **more)
