"""Small files in the form of each of torchvision's data sets, with their checksums as official."""

import bz2
import csv
import gzip
import hashlib
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import scipy.io
import torch
import torchvision
from PIL import Image

OF = torchvision.datasets
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


def noise(*shape: int) -> np.ndarray:
    """Pixels (uint8) that are the same each time, and other ones for another shape."""
    seed = int(hashlib.sha256(repr(shape).encode()).hexdigest()[:8], 16)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def picture(path: Path, mode: str = "RGB") -> None:
    """An image file of some pixels that its path decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(ord(c) * (i + 1) for i, c in enumerate(f"{path.parent.name}/{path.name}"))
    pixels = noise(9 + seed % 5, 8, 3, 1 + seed % 97)[..., 0]
    Image.fromarray(pixels).convert(mode).save(path)


def write(path: Path, content: bytes | str) -> str:
    """Write a file; its MD5."""
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def idx(values: np.ndarray) -> bytes:
    """An IDX file of bytes, or of 32-bit integers."""
    kind = 8 if values.dtype == np.uint8 else 12
    head = struct.pack(f">{1 + values.ndim}i", kind << 8 | values.ndim, *values.shape)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def mat(**values: Any) -> bytes:
    """A .mat file."""
    out = io.BytesIO()
    scipy.io.savemat(out, values)
    return out.getvalue()


def digits(count: int, classes: int = 10) -> np.ndarray:
    """Labels in which each class occurs, not in order."""
    return ((np.arange(count) * 7 + 3) % classes).astype(np.uint8)


def _mnist(name: str) -> Callable[[Path, Any], None]:
    def make(root: Path, patch: Any) -> None:
        for part, count in (("train", 30), ("t10k", 20)):
            raw = root / name / "raw"
            write(raw / f"{part}-images-idx3-ubyte", idx(noise(count, 28, 28)))
            write(raw / f"{part}-labels-idx1-ubyte", idx(digits(count)))

    return make


def make_gz(root: Path, patch: Any) -> None:
    """MNIST as it is downloaded: four .gz files."""
    md5s = {}
    for part, count in (("train", 30), ("t10k", 20)):
        for kind, values in (("images-idx3", noise(count, 28, 28)), ("labels-idx1", digits(count))):
            name = f"{part}-{kind}-ubyte.gz"
            md5s[name] = write(root / "MNIST/raw" / name, gzip.compress(idx(values)))
    patch.setattr(OF.MNIST, "resources", [(name, md5s[name]) for name, _ in OF.MNIST.resources])


def _emnist(root: Path, patch: Any) -> None:
    for part, count in (("train", 60), ("test", 30)):
        start = root / "EMNIST/raw" / f"emnist-letters-{part}"
        write(Path(f"{start}-images-idx3-ubyte"), idx(noise(count, 28, 28)))
        write(Path(f"{start}-labels-idx1-ubyte"), idx(digits(count, 26) + 1))


def _qmnist(root: Path, patch: Any) -> None:
    for part, count in (("train", 30), ("test", 20)):
        labels = np.zeros((count, 8), np.int32)
        labels[:, 0], labels[:, 1:] = digits(count), 70_000
        write(root / f"QMNIST/raw/qmnist-{part}-images-idx3-ubyte", idx(noise(count, 28, 28)))
        write(root / f"QMNIST/raw/qmnist-{part}-labels-idx2-int", idx(labels))


def _cifar(name: str, classes: int, key: str, each: int) -> Callable[[Path, Any], None]:
    def make(root: Path, patch: Any) -> None:
        kind = getattr(OF, name)
        lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
        for which, listed in lists.items():
            for number, (file, _) in enumerate(getattr(kind, which)):
                labels = digits(each + number, classes).tolist()
                batch = {"data": noise(each + number, 3072), key: labels}
                content = pickle.dumps(batch, protocol=2)
                listed.append([file, write(root / kind.base_folder / file, content)])
            patch.setattr(kind, which, listed)
        meta = {kind.meta["key"]: [f"class {k}" for k in range(classes)]}
        md5 = write(root / kind.base_folder / kind.meta["filename"], pickle.dumps(meta, protocol=2))
        patch.setattr(kind, "meta", {**kind.meta, "md5": md5})

    return make


def _svhn(root: Path, patch: Any) -> None:
    official = {}
    for part, count in (("train", 20), ("extra", 14), ("test", 12)):
        content = mat(X=noise(32, 32, 3, count), y=digits(count)[:, None] + 1)
        url, file, _ = OF.SVHN.split_list[part]
        official[part] = [url, file, write(root / file, content)]
    patch.setattr(OF.SVHN, "split_list", official)


def _stl10(root: Path, patch: Any) -> None:
    folder = root / "stl10_binary"
    contents = {"train_y.bin": digits(20) + 1, "test_y.bin": digits(12) + 1}
    contents |= {"train_X.bin": noise(20, 3, 96, 96), "test_X.bin": noise(12, 3, 96, 96)}
    contents["unlabeled_X.bin"] = noise(1, 3, 96, 96)
    md5s = {name: write(folder / name, values.tobytes()) for name, values in contents.items()}
    for which in ("train_list", "test_list"):
        patch.setattr(OF.STL10, which, [[n, md5s[n]] for n, _ in getattr(OF.STL10, which)])
    write(folder / "class_names.txt", "\n".join(f"thing {k}" for k in range(10)))
    write(folder / "fold_indices.txt", "0 1 2 3 4 5 6 7 8 9 10 11\n3 1 5 7 9 11 13 15 17 19 2 4\n")


def _usps(root: Path, patch: Any) -> None:
    official = {}
    for part, count in (("train", 20), ("test", 12)):
        url, file, _ = OF.USPS.split_list[part]
        rows = [
            " ".join([str(label + 1), *(f"{k}:{v / 127.5 - 1:.4f}" for k, v in enumerate(row, 1))])
            for label, row in zip(digits(count), noise(count, 256), strict=True)
        ]
        content = bz2.compress("\n".join(rows).encode())
        official[part] = [url, file, write(root / file, content)]
    patch.setattr(OF.USPS, "split_list", official)


def _semeion(root: Path, patch: Any) -> None:
    rows = np.hstack([noise(20, 256) % 2, np.eye(10, dtype=np.uint8)[digits(20)]])
    text = "\n".join(" ".join(f"{value:.4f}" for value in row) for row in rows)
    patch.setattr(OF.SEMEION, "md5_checksum", write(root / "semeion.data", text))


def _fer2013(root: Path, patch: Any) -> None:
    out = io.StringIO(newline="")
    rows = csv.writer(out)
    rows.writerow(["emotion", "pixels", "Usage"])
    for number, row in enumerate(noise(21, 48 * 48)):
        usage = ("Training", "PublicTest", "PrivateTest")[number // 7]
        rows.writerow([number * 3 % 7, " ".join(map(str, row)), usage])
    md5 = write(root / "fer2013/fer2013.csv", out.getvalue())
    patch.setattr(OF.FER2013, "_RESOURCES", {**OF.FER2013._RESOURCES, "fer": ("fer2013.csv", md5)})


def _pcam(root: Path, patch: Any) -> None:
    (root / "pcam").mkdir()
    for part, count in (("train", 6), ("valid", 4), ("test", 5)):
        for axis, values in (
            ("x", noise(count, 96, 96, 3)),
            ("y", (digits(count) % 2)[:, None, None, None]),
        ):
            name = root / f"pcam/camelyonpatch_level_2_split_{part}_{axis}.h5"
            with h5py.File(name, "w") as file:
                file.create_dataset(axis, data=values)


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
    Case("MNIST", _mnist("MNIST"), TRAIN),
    Case("KMNIST", _mnist("KMNIST"), TRAIN),
    Case("FashionMNIST", _mnist("FashionMNIST"), TRAIN),
    Case("EMNIST", _emnist, TRAIN, {"split": "letters"}),
    Case("QMNIST", _qmnist, {"train": {"what": "train"}, "test": {"what": "test"}}),
    Case("CIFAR10", _cifar("CIFAR10", 10, "labels", 11), TRAIN),
    Case("CIFAR100", _cifar("CIFAR100", 100, "fine_labels", 101), TRAIN),
    Case("SVHN", _svhn, TWO),
    Case("STL10", _stl10, TWO),
    Case("STL10", _stl10, {"train": {"split": "train", "folds": 1}, "test": {"split": "test"}},
         {"folds": 1}),
    Case("USPS", _usps, TRAIN),
    Case("SEMEION", _semeion, WHOLE),
    Case("FER2013", _fer2013, TWO),
    Case("PCAM", _pcam, THREE),
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
