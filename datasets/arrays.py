"""Images and labels in arrays of NumPy: .npz and .npy files."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets import DataError
from datasets.files import PARTS, user_path
from datasets.labels import Labelled, Where, from_matrix, from_numbers, from_texts, text_of
from datasets.memory import ImagesInMemory
from datasets.npy import StoredArray, find_arrays, load_together
from datasets.pixels import as_images
from datasets.words import counted

_IMAGES = ("images", "image", "imgs", "img", "x", "data", "arr_0")  # usual keys, in small letters
_LABELS = ("labels", "label", "y", "targets", "target", "arr_1")
_SHOWN = 20  # keys in a message
_NAMED = 5  # keys in a note


class _Pair(NamedTuple):
    """An official split, or None, and its keys."""

    part: str | None
    images: str
    labels: str


class Arrays(ImagesInMemory):
    """Images and labels in an .npz file, in a folder of .npy files, or in two .npy files.

    Keys such as train_images and train_labels, x_test and y_test give the official splits, so
    MedMNIST's files are read as they are. Without images_key and labels_key the usual names are
    found, and a note tells them. Arrays that are neither are left out, and a note names them.
    Grey images have the shape (N, H, W), (N, H, W, 1) or (N, 1, H, W), colour images (N, H, W, 3)
    or (N, 3, H, W). They are uint8. A note tells how other types are converted: whole numbers from
    0 to 255 stay, false and true become 0 and 255, floats from 0 to 1 are multiplied by 255.
    Labels are whole numbers or texts, (N,) or (N, 1), or rows of 0 and 1, (N, K): one-hot if each
    row has a single 1, else several labels an image. A single uncompressed array of uint8 is
    mapped into memory, not read.
    Images: (C, H, W) uint8, C 1 or 3. Raises DataError for all else, and executes nothing.

    root: The .npz file, the folder of .npy files, or the .npy file with the images.
    labels: The .npy file with the labels, if root is an .npy file.
    images_key: The key of the images; images stands for train_images, val_images and test_images.
    labels_key: The key of the labels, likewise.
    channels: Where the channels are in the images' shape: first or last, where both are possible.
    several: True if rows of 0 and 1 are several labels an image, though each has a single 1.
    classes: The names of the classes 0, 1 and so on; of texts, their order.
    """

    def __init__(
        self,
        root: str,
        labels: str | None = None,
        images_key: str | None = None,
        labels_key: str | None = None,
        channels: Literal["auto", "first", "last"] = "auto",
        several: bool = False,
        classes: list[str] | None = None,
    ) -> None:
        if classes is not None and len({*classes}) < max(len(classes), 2):
            raise ValueError("classes must be at least two names that differ")
        path = user_path(root, "dataset.root")
        beside = None if labels is None else user_path(labels, "dataset.labels")
        self._arrays = find_arrays(path, beside)
        self._path = path
        self._pairs, notes = _find_pairs(path, self._arrays, images_key, labels_key)
        _check_counts(self._arrays, self._pairs)
        stored = [self._arrays[pair.images] for pair in self._pairs]
        self.images, note = as_images(load_together(stored), channels)
        notes.append(note)
        found = self._read_labels(several, classes)
        self.classes, self.labels = found.classes, found.labels
        counts = [(pair.part, one.shape[0]) for pair, one in zip(self._pairs, stored, strict=True)]
        self.parts = tuple(part for part, n in counts for _ in range(n))
        self.ids = tuple(
            f"{part}/{i:05d}" if part else f"{i:05d}" for part, n in counts for i in range(n)
        )
        self.note = "\n".join(filter(None, [*notes, found.note]))

    def digests(self, indices: Sequence[int]) -> list[str]:
        """``digest`` of each index."""
        rows, sha256 = self.images.numpy(), hashlib.sha256
        return [sha256(rows[index].tobytes()).hexdigest() for index in indices]

    def column(self, name: str) -> list[str]:
        """The text of the array ``name`` for each sample, such as a patient.

        ``name`` stands for train_name and so on where the images are in parts. NaN is "". Raises
        DataError if there is no such array of one dimension for each part.
        """
        kinds = _by_kind(self._path, self._arrays)
        fitting = {
            kind: keys
            for kind, keys in kinds.items()
            if all(self._is_column(keys.get(pair.part), pair) for pair in self._pairs)
        }
        if len(self._pairs) == 1:  # whole keys too: blood_test may be no part
            (pair,) = self._pairs
            whole = [key for key in self._arrays if self._is_column(key, pair)]
            fitting = {key: {pair.part: key} for key in whole} | fitting
        if name not in fitting:
            there = ", ".join(fitting) or "none"
            raise DataError(
                f"{self._path}: no array {name!r} with a value an image; there: {there}."
            )
        arrays = [self._arrays[fitting[name][pair.part]].load() for pair in self._pairs]
        return [text for array in arrays for text in _texts(name, array.reshape(-1))]

    def _is_column(self, key: str | None, pair: _Pair) -> bool:
        rows = self._arrays[pair.images].shape[0]
        return key is not None and self._arrays[key].shape in ((rows,), (rows, 1))

    def _read_labels(self, several: bool, classes: Sequence[str] | None) -> Labelled:
        """Classes and labels of all parts."""
        places = [self._arrays[pair.labels].place for pair in self._pairs]
        arrays = [self._arrays[pair.labels].load() for pair in self._pairs]
        _check_kinds(places, arrays)
        starts = np.cumsum([0, *map(len, arrays)])

        def where(index: int) -> str:
            part = int(np.searchsorted(starts, index, "right")) - 1
            return f"{places[part]}[{index - starts[part]}]"

        arrays = [a[:, 0] if a.ndim == 2 and a.shape[1] == 1 and not several else a for a in arrays]
        if {array.ndim for array in arrays} == {2} and len({a.shape[1] for a in arrays}) == 1:
            return from_matrix(self._path, np.concatenate(arrays), several, classes, where)
        if {array.ndim for array in arrays} != {1}:
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise DataError(f"{places[0]}: labels {shapes}; expected (N,), (N, 1) or (N, K).")
        if several:
            raise DataError(
                f"{places[0]}: labels {arrays[0].shape}; dataset.several=true needs rows of 0 and "
                "1, (N, K): remove it, or give such labels."
            )
        labels = np.concatenate(arrays)
        if labels.dtype.kind in "US":
            texts, codes = np.unique(labels, return_inverse=True)
            return from_texts(self._path, _texts(places[0], texts), codes, classes, where)
        return from_numbers(_whole(labels, where), classes, where)


def _by_kind(path: Path, keys: Mapping[str, object]) -> dict[str, dict[str | None, str]]:
    """The keys without the name of a split in them -> split, or None -> key.

    Raises DataError for two keys of the same, such as train_x and x_train.
    """
    kinds: dict[str, dict[str | None, str]] = {}
    for key in keys:
        words = re.split(r"[_.\- ]", key)
        parts = [PARTS[word.lower()] for word in words if word.lower() in PARTS]
        part, kind = None, key
        if len(parts) == 1 and len(words) > 1:
            part = parts[0]
            kind = "_".join(word for word in words if word.lower() not in PARTS)
        if (other := kinds.setdefault(kind, {}).setdefault(part, key)) != key:
            raise DataError(
                f"{path}: {other!r} and {key!r} both mean {kind} of {part}; remove or rename one."
            )
    return kinds


def _find_pairs(
    path: Path, arrays: Mapping[str, StoredArray], images_key: str | None, labels_key: str | None
) -> tuple[list[_Pair], list[str]]:
    """The keys of each split, and notes on what was found by itself or left out."""
    kinds = _by_kind(path, arrays)
    there = "\n".join(f"  {key}: {array.about}" for key, array in [*arrays.items()][:_SHOWN])
    there = f"It holds {len(arrays):,}:\n{there}"

    def keys_of(argument: str, given: str | None, usual: Sequence[str]) -> dict[str | None, str]:
        if given is not None:
            if found := kinds.get(given) or ({None: given} if given in arrays else None):
                return found
            raise DataError(f"{path}: no array {given!r} (dataset.{argument}). {there}")
        candidates = [kind for kind in kinds if kind.lower() in usual]
        if len(candidates) == 1:
            return kinds[candidates[0]]
        which = (
            f"several may be: {', '.join(candidates)}" if candidates else "none has a usual name"
        )
        file = "; a single .npy needs dataset.labels=FILE.npy" if argument == "labels_key" else ""
        raise DataError(
            f"{path}: name the array with dataset.{argument}=KEY ({which}{file}). {there}"
        )

    images = keys_of("images_key", images_key, _IMAGES)
    labels = keys_of("labels_key", labels_key, _LABELS)
    if len(images) == len(labels) == 1:  # two whole keys, such as train_x and y
        (part,), (other,) = images, labels
        parts = [part if part == other else None]
        images, labels = {parts[0]: images[part]}, {parts[0]: labels[other]}
    order = (None, "train", "val", "test")
    pairs = [
        _Pair(part, images[part], labels[part])
        for part in order
        if {part} <= images.keys() & labels.keys()
    ]
    if not pairs:
        raise DataError(
            f"{path}: {[*images.values()]} and {[*labels.values()]} do not go together. {there}"
        )
    if len(pairs) > 1 and pairs[0].part is None:
        raise DataError(f"{path}: {pairs[0].images} stands beside those of splits. {there}")
    notes = []
    if None in (images_key, labels_key):
        names = (", ".join(getattr(pair, what) for pair in pairs) for what in ("images", "labels"))
        notes.append("{}: images are those of {}, labels those of {}".format(path, *names))
    used = {key for pair in pairs for key in pair[1:]}
    if unused := [key for key in (*images.values(), *labels.values()) if key not in used]:
        notes.append(f"{path}: left out, images without labels or the reverse: {', '.join(unused)}")
    if others := [key for key in arrays if key not in {*used, *unused}]:
        notes.append(f"{path}: {_in_no_pair(others)}")
    return pairs, notes


def _in_no_pair(keys: Sequence[str]) -> str:
    """A note on arrays that give no images and no labels."""
    named = ", ".join(keys[:_NAMED])
    more = f" and {len(keys) - _NAMED:,} more" if len(keys) > _NAMED else ""
    verb = "is" if len(keys) == 1 else "are"
    return f"{counted(len(keys), 'array')} {verb} read as neither images nor labels: {named}{more}"


def _check_counts(arrays: Mapping[str, StoredArray], pairs: Sequence[_Pair]) -> None:
    for pair in pairs:
        images, labels = arrays[pair.images], arrays[pair.labels]
        if images.shape[:1] != labels.shape[:1] or not images.shape:
            raise DataError(
                f"{images.place}: {images.about} and {labels.place}: {labels.about}; expected as "
                "many labels as images."
            )


def _check_kinds(places: Sequence[str], arrays: Sequence[NDArray[Any]]) -> None:
    """Raise DataError if some labels are texts or bytes, and others are not."""
    kinds = [array.dtype.kind if array.dtype.kind in "US" else "" for array in arrays]
    for place, array, kind in zip(places, arrays, kinds, strict=True):
        if kind != kinds[0]:
            raise DataError(
                f"{place}: labels {array.dtype}, but those of {places[0]} are {arrays[0].dtype}; "
                "expected the same kind in all splits."
            )


def _whole(labels: NDArray[Any], where: Where) -> NDArray[Any]:
    """Whole numbers; floats must be whole."""
    if labels.dtype.kind == "b":
        return labels.astype(np.int64)
    if labels.dtype.kind == "f":
        wrong = np.flatnonzero(~((labels == np.floor(labels)) & (np.abs(labels) < 2**31)))
        if len(wrong):
            raise DataError(
                f"{where(int(wrong[0]))}: the label is {labels[wrong[0]]} ({len(wrong):,} such "
                "labels); expected whole numbers."
            )
        return labels.astype(np.int64)
    return labels


def _texts(place: str, values: NDArray[Any]) -> list[str]:
    try:
        if values.dtype.kind == "S":
            return [value.decode() for value in values.tolist()]
        return [text_of(value) for value in values.tolist()]
    except ValueError as error:  # also of 32 bits that are no character
        raise DataError(f"{place}: its texts are not UTF-8 or UCS-4 ({error}).") from error
