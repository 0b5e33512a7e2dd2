"""What torchvision has opened, as datasets of this project: images, labels, classes and parts."""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor

from datasets import DataError
from datasets.files import ImageFiles, Sample
from datasets.labels import Labelled, from_numbers
from datasets.memory import ImagesInMemory

Opened = Sequence[tuple[str | None, Any]]  # each part, "train", "val", "test" or None, and its set

UNSORTED = ("SUN397", "Omniglot", "INaturalist")  # torchvision has the file system's order
MOST_PATCHES = 262_144  # of a part of PCAM


class GreyFiles(ImageFiles):
    """Grey image files: (1, H, W) uint8, the first channel of what ImageFiles gives."""

    def decode(self, index: int, content: bytes, at_least: int = 0) -> Tensor:
        """Decode what ``content`` returned: (1, H, W) uint8. Raises BrokenImage."""
        return super().decode(index, content, at_least)[:1]

    @property
    def recipe(self) -> str:
        """All that decides the pixels of a content, besides ``at_least``."""
        return f"the first channel of {super().recipe}"


class Faces:
    """A part of FER2013, as torchvision has it, read some four times as fast."""

    def __init__(self, root: str, split: str) -> None:
        official, folder = torchvision.datasets.FER2013._RESOURCES, Path(root) / "fer2013"
        both = [key for key in ("fer", "icml") if (folder / official[key][0]).exists()]
        name, md5 = official[[*both, split][0]]
        if not torchvision.datasets.utils.check_integrity(folder / name, md5):
            raise ValueError(f"{name} is not in {folder}, or is not the official file")
        wanted = ("Training",) if split == "train" else ("PublicTest", "PrivateTest")
        images, self.targets = [], list[int]()
        with open(folder / name, newline="") as file:
            rows = csv.DictReader(file, skipinitialspace=True)  # one of the headers has spaces
            if "emotion" not in (rows.fieldnames or ()):
                raise ValueError(f"{name} has no labels; fer2013.csv and icml_face_data.csv do")
            for row in rows:
                if row.get("Usage", wanted[0]) in wanted:
                    images.append(np.fromstring(row["pixels"], np.uint8, sep=" "))
                    self.targets.append(int(row["emotion"]))
        self.data = np.stack(images).reshape(-1, 48, 48)

    def __len__(self) -> int:
        return len(self.targets)


def images_in_memory(name: str, opened: Opened) -> ImagesInMemory:
    """The parts of a set that torchvision holds as arrays; the images are copied once.

    Raises ValueError for arrays that do not belong together.
    """
    images, labels, parts = None, list[int](), list[str | None]()
    for part, held in opened:
        pixels, numbers = _pixels_and_labels(name, held)
        if len(pixels) != len(numbers):
            raise ValueError(f"{part}: {len(pixels):,} images, but {len(numbers):,} labels")
        if images is None:
            images = pixels.new_empty((sum(len(one) for _, one in opened), *pixels.shape[1:]))
        if pixels.shape[1:] != images.shape[1:]:
            sizes = [tuple(one.shape[1:]) for one in (images, pixels)]
            raise ValueError(f"the images of {part} are {sizes[1]}, and others {sizes[0]}")
        images[len(labels) : len(labels) + len(pixels)] = pixels
        labels += numbers
        parts += [part] * len(pixels)
    found = _without_empty(_classes(name, opened), labels)
    assert images is not None
    result = ImagesInMemory(images[: len(labels)], found.labels, parts, found.classes)
    result.note = found.note
    return result


def image_files(
    name: str,
    root: Path,
    opened: Opened,
    on_broken: str = "error",
    decoding: Literal["exact", "fast"] = "exact",
) -> ImageFiles:
    """The parts of a set of image files; ids are paths below ``root``.

    Raises ValueError for labels without a class, and for files listed twice or outside of ``root``.
    """
    top = os.path.join(os.path.abspath(root), "")
    found: list[tuple[str, int, str | None]] = []
    for part, listed in opened:
        some = [
            (os.path.abspath(path), int(label)) for path, label in _paths_and_labels(name, listed)
        ]
        if outside := next((path for path, _ in some if not path.startswith(top)), None):
            raise ValueError(f"it lists {outside}, which is not below {root}")
        names = [(path[len(top) :].replace(os.sep, "/"), label) for path, label in some]
        if name in UNSORTED:
            names.sort()
        found += [(path, label, part) for path, label in names]
    classes, labels, note = _without_empty(_classes(name, opened), [one[1] for one in found])
    twice = [path for path, count in Counter(one[0] for one in found).items() if count > 1]
    if twice:
        raise ValueError(f"it lists {twice[0]} twice")
    samples = [
        Sample(path, classes[label], part)
        for (path, _, part), label in zip(found, labels, strict=True)
    ]
    kind = GreyFiles if name == "Omniglot" else ImageFiles
    return kind(root, samples, classes, on_broken, note, decoding)


def _pixels_and_labels(name: str, held: Any) -> tuple[Tensor, list[int]]:
    """Images (N, C, H, W) uint8 and labels (N,) of a part."""
    if name == "PCAM":
        return _of_hdf5(held)
    pixels = torch.as_tensor(np.asarray(held.data))
    labels = np.asarray(held.targets if hasattr(held, "targets") else held.labels)
    if name == "QMNIST":  # the class, then the writer and other numbers
        labels = labels[:, 0]
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.dtype != torch.uint8 or pixels.ndim != 4:
        raise ValueError(f"the images are {tuple(pixels.shape)} {pixels.dtype}, not 8-bit pixels")
    return pixels, labels.astype(np.int64).tolist()


def _of_hdf5(held: Any) -> tuple[Tensor, list[int]]:
    """PCAM's images, read at once instead of one by one."""
    images, targets = (held._FILES[held._split][key][0] for key in ("images", "targets"))
    with held.h5py.File(held._base_folder / images) as file:
        stored = file["x"]
        if stored.shape[1:] != (96, 96, 3) or stored.dtype != np.uint8:
            raise ValueError(f"{images}: {stored.shape} {stored.dtype}; expected (N, 96, 96, 3)")
        if len(stored) > MOST_PATCHES:
            raise ValueError(f"{images}: {len(stored):,} images; at most {MOST_PATCHES:,}")
        pixels = torch.from_numpy(stored[:]).permute(0, 3, 1, 2)
    with held.h5py.File(held._base_folder / targets) as file:
        if file["y"].size != len(pixels):
            raise ValueError(f"{targets}: {file['y'].size:,} labels of {len(pixels):,} images")
        labels = file["y"][:].reshape(-1).tolist()
    return pixels, labels


def _paths_and_labels(name: str, listed: Any) -> list[tuple[str, int]]:
    """The path and the label of each image file of a part."""
    if name == "OxfordIIITPet":
        is_breed = listed._target_types == ["category"]
        labels = listed._labels if is_breed else listed._bin_labels
        return list(zip(map(str, listed._images), labels, strict=True))
    if name == "GTSRB":
        return list(listed._samples)
    if name == "Omniglot":  # whose labels are numbers in the file system's order
        characters = sorted(listed._characters)
        label_of = {place: characters.index(text) for place, text in enumerate(listed._characters)}
        return [(path, label_of[k]) for path, k in (listed[i] for i in range(len(listed)))]
    if name.startswith("Caltech"):
        folder = "101_ObjectCategories" if name == "Caltech101" else "256_ObjectCategories"
        form = "image_{1:04d}.jpg" if name == "Caltech101" else "{0:03d}_{1:04d}.jpg"
        return [
            (os.path.join(listed.root, folder, listed.categories[y], form.format(y + 1, number)), y)
            for y, number in zip(listed.y, listed.index, strict=True)
        ]
    return [listed[i] for i in range(len(listed))]  # ``loader`` gave the path itself


def _classes(name: str, opened: Opened) -> list[str] | None:
    """The names of the classes, which are the same in all parts; None if torchvision has none."""
    found = [_classes_of(name, held) for _, held in opened]
    if any(one != found[0] for one in found):
        sizes = ", ".join(
            f"{len(one or ())} in {part}" for one, (part, _) in zip(found, opened, strict=True)
        )
        raise ValueError(f"the parts have other classes ({sizes}), so their labels do not agree")
    return found[0]


def _classes_of(name: str, held: Any) -> list[str] | None:
    if name == "ImageNet":  # two of its classes are both named "crane"
        return list(held.wnids)
    if name == "Omniglot":
        return sorted(held._characters)
    if name == "INaturalist":
        wanted = held.target_type[0]
        if wanted == "full":
            return list(held.all_categories)
        index: dict[str, int] = held.categories_index[wanted]
        return sorted(index, key=index.__getitem__)
    if name == "OxfordIIITPet" and held._target_types != ["category"]:
        return list(held.bin_classes)
    if name == "LFWPeople":
        return list(held.class_to_idx)
    names = getattr(held, "classes", None) or getattr(held, "categories", None)
    return names and [one[0] if isinstance(one, tuple) else str(one) for one in names]


def _without_empty(names: Sequence[str] | None, labels: list[int]) -> Labelled:
    """The classes that have images, the labels as their numbers, and a note on the others."""
    if not labels:
        raise ValueError("it holds no image with a label")
    lowest, highest = min(labels), max(labels)
    if lowest < 0 or (names is not None and highest >= len(names)):
        most = "" if names is None else f"..{len(names) - 1}"
        raise ValueError(f"it has the labels {lowest} to {highest}, expected 0{most}")
    found = from_numbers(np.array(labels), names, lambda row: f"label number {row}")
    if len(set(found.classes)) < len(found.classes):
        raise DataError("two of its classes have the same name")
    return found
