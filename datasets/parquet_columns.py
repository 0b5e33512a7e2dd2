"""Which columns of a Parquet file hold the images and the labels, and what the labels are."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets import DataError
from datasets.files import shorten
from datasets.labels import (
    MAX_NAME,
    NO_LABEL,
    Labelled,
    Where,
    from_matrix,
    from_numbers,
    from_sets,
    from_texts,
    text_of,
)
from datasets.parquet_file import ParquetPart, read_column
from datasets.words import counted

_IMAGES = ("image", "img", "images", "picture", "photo")  # usual names, in small letters
_LABELS = ("label", "labels", "class", "class_name", "target", "category", "fine_label")


class Columns(NamedTuple):
    """The columns: leaf is the image's bytes; names those of the labels' numbers, if they have any.

    kind: the type of the labels.
    """

    image: str
    leaf: str
    label: str
    names: tuple[str, ...] | None
    kind: str
    note: str

    @property
    def is_list(self) -> bool:
        """Whether an image has several labels."""
        return "list" in self.kind.partition("<")[0]


class Values(NamedTuple):
    """Labels of all rows, without gaps: codes of all values, how many each row has (-1: none).

    texts: the text of each code, or None if the codes are the values.
    """

    codes: NDArray[Any]
    lengths: NDArray[np.int64]
    texts: list[str] | None


def find_columns(
    parts: Sequence[ParquetPart], image_column: str | None, label_column: str | None
) -> Columns:
    """The columns of all files, which must agree. Raises DataError."""
    found = [_columns(part, image_column, label_column) for part in parts]
    for part, columns in zip(parts, found, strict=True):
        if columns[:5] != found[0][:5]:
            raise DataError(
                f"{part.path}: its columns of images and labels, or the names of the classes, are "
                f"others than those of {parts[0].path}: {columns[:5]}; expected {found[0][:5]}."
            )
    return found[0]


def _columns(part: ParquetPart, image_column: str | None, label_column: str | None) -> Columns:
    try:
        schema = part.metadata.schema.to_arrow_schema()
    except (ValueError, OSError, MemoryError, NotImplementedError, KeyError) as error:
        raise DataError(f"{part.path}: its schema is damaged ({shorten(str(error))}).") from error
    features = _features(part.metadata.metadata or {})
    kinds = {field.name: field.type for field in schema}
    images = [name for name, kind in kinds.items() if _leaf(name, kind)]
    marked = [name for name in images if _kind(features.get(name)) == "Image"]
    usual = [name for name in images if name.lower() in _IMAGES]
    image = _choose(part, kinds, "image_column", image_column, [marked, usual, images])
    if not (leaf := _leaf(image, kinds[image])):
        raise DataError(
            f"{part.path}: the column {image!r} is {shorten(str(kinds[image]))}; expected the "
            "bytes of image files: binary, or a struct with bytes."
        )
    marked = [name for name in kinds if _names(features.get(name)) is not None]
    usual = [name for name in kinds if name.lower() in _LABELS]
    label = _choose(part, kinds, "label_column", label_column, [marked, usual])
    note = ""
    if None in (image_column, label_column):
        note = f"images are those of the column {image!r}, labels those of {label!r}"
    return Columns(image, leaf, label, _names(features.get(label)), str(kinds[label]), note)


def _choose(
    part: ParquetPart,
    kinds: Mapping[str, Any],
    argument: str,
    given: str | None,
    candidates: Sequence[Sequence[str]],
) -> str:
    """The given column, or the only candidate of the first list that has any."""
    if given is not None and given in kinds:
        return given
    found = next(filter(None, candidates), [])
    if given is None and len(found) == 1:
        return found[0]
    there = ", ".join(f"{name} ({shorten(str(kind))})" for name, kind in [*kinds.items()][:20])
    which = f"several may be: {', '.join(found)}" if found else "none is marked or has a usual name"
    what = f"no column {given!r}" if given is not None else which
    raise DataError(f"{part.path}: name dataset.{argument}: {what}. Its columns: {there}.")


def _leaf(name: str, kind: Any) -> str:
    """The leaf of a column with the bytes of image files, or ""."""
    if str(kind) in ("binary", "large_binary"):
        return name
    for number in range(kind.num_fields if str(kind).startswith("struct<") else 0):
        field = kind.field(number)
        if field.name == "bytes" and str(field.type) in ("binary", "large_binary"):
            return f"{name}.bytes"
    return ""


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """What the library datasets says of the columns; nothing if that is absent or odd.

    It writes {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}.
    Several labels are {"feature": {... "ClassLabel"}, "_type": "List"}, in older versions
    "Sequence" or [{... "ClassLabel"}].
    """
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _kind(feature: Any) -> object:
    return feature.get("_type") if isinstance(feature, dict) else None


def _names(feature: Any) -> tuple[str, ...] | None:
    """The class names of a ClassLabel, or of a list of them."""
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    elif _kind(feature) in ("List", "LargeList", "Sequence"):
        feature = feature.get("feature")
    names = feature.get("names") if _kind(feature) == "ClassLabel" else None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        return None
    return tuple(names) if len(set(names)) == len(names) else None


def read_values(parts: Sequence[ParquetPart], columns: Columns) -> Values:
    """The labels of all rows; -1 of a ClassLabel is none. Raises DataError."""
    texts: dict[str, int] = {}
    codes, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for part in parts:
        for array in read_column(part, columns.label):
            try:
                values = array
                counts = np.ones(len(array), np.int64)
                if columns.is_list:
                    counts = array.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
                    values = array.flatten()
                found, absent = _codes(values, texts)
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"{part.path}: column {columns.label!r}: {shorten(str(error))}."
                ) from error
            if columns.names is not None and not columns.is_list:
                absent |= found == -1
            if columns.is_list and absent.any():
                raise DataError(
                    f"{part.path}: column {columns.label!r}: a list with a null or 'nan'; "
                    "expected classes only, or an empty list."
                )
            if not columns.is_list:
                counts[absent] = -1
            codes.append(found[~absent])
            lengths.append(counts.astype(np.int64))
    return Values(np.concatenate(codes[1:] or codes), np.concatenate(lengths), [*texts] or None)


def labels_of(values: Values, columns: Columns, place: Path, where: Where) -> Labelled:
    """Classes and labels of the rows that have one. ``where``: the place of such a row."""
    lengths = values.lengths[values.lengths >= 0]
    if values.texts is None and columns.names is None and _are_shares(values.codes, lengths):
        matrix = values.codes.reshape(len(lengths), -1)
        told = f"lists of {lengths[0]:,} numbers, 0 or 1: each is the share of a class"
        found = from_matrix(place, matrix, False, None, where)
        return found._replace(note="\n".join(filter(None, [told, found.note])))
    ends = np.cumsum(lengths)

    def where_of(value: int) -> str:
        return where(int(np.searchsorted(ends, value, "right")))

    if values.texts is None:
        found = from_numbers(values.codes, columns.names, where_of)
    else:
        found = from_texts(place, values.texts, values.codes, columns.names, where_of)
    if not columns.is_list:
        return found
    rows = [row.tolist() for row in np.split(np.array(found.labels, np.int64), ends[:-1])]
    twice = [number for number, row in enumerate(rows) if len({*row}) < len(row)]
    if twice and values.texts is None:
        raise DataError(
            f"{where(twice[0])}: its list of labels holds a number twice ({len(twice):,} such "
            "rows); expected the numbers of its classes, or in each row a 0 or 1 for each class."
        )
    sets = from_sets(place, (tuple(sorted({*row})) for row in rows), found.classes)
    told = f"{counted(len(twice), 'row')} with a label twice, which counts once" if twice else ""
    return sets._replace(note="\n".join(filter(None, [found.note, told])))


def _are_shares(codes: NDArray[Any], lengths: NDArray[np.int64]) -> bool:
    """Whether all lists have the same length above 1, and hold only 0 and 1."""
    length = lengths[0]
    return bool(
        length > 1 and (lengths == length).all() and (codes <= 1).all() and (codes >= 0).all()
    )


def _codes(values: Any, texts: dict[str, int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Numbers of an array's values, and which are null. Texts are numbered, and added."""
    absent = values.is_null().to_numpy(zero_copy_only=False).astype(bool)
    kind = str(values.type)
    if values.type.num_fields:
        raise ValueError(f"it holds {kind}; expected whole numbers, texts, or lists of them")
    if "string" in kind or "binary" in kind:
        values = values if kind.startswith("dictionary") else values.dictionary_encode()
        places = values.indices.fill_null(0).to_numpy(zero_copy_only=False)
        numbers = np.zeros(max(len(values.dictionary), 1), np.int64)
        for place in np.unique(places[~absent]).tolist():
            content = values.dictionary[place].as_buffer()
            if content.size > 4 * MAX_NAME:
                raise ValueError(f"a text of {content.size:,} bytes is no class name")
            text = content.to_pybytes().decode()
            is_label = text.lower() not in NO_LABEL
            numbers[place] = texts.setdefault(text, len(texts)) if is_label else -1
        return numbers[places], absent | (numbers[places] < 0)
    if kind == "null":
        return np.zeros(len(values), np.int64), absent
    if kind == "bool":
        return values.fill_null(False).to_numpy(zero_copy_only=False).astype(np.int64), absent
    if kind.startswith(("int", "uint")):
        return values.fill_null(0).to_numpy(zero_copy_only=False), absent
    raise ValueError(f"it holds {kind}; expected whole numbers, texts, or lists of them")


def read_texts(part: ParquetPart, column: str) -> list[str]:
    """The text of a column of texts or numbers, for each row: "" for none. Raises DataError."""
    from pyarrow import types  # Parquet has tried it

    try:
        there = part.metadata.schema.to_arrow_schema().names
        if column not in there:
            raise ValueError(f"no such column; there: {', '.join(there)}")
        found: list[str] = []
        for array in read_column(part, column):
            kind = array.type.value_type if types.is_dictionary(array.type) else array.type
            tests = (types.is_string, types.is_large_string, types.is_integer, types.is_floating)
            if not any(test(kind) for test in (*tests, types.is_boolean, types.is_null)):
                raise ValueError(f"it holds {kind}; expected texts or numbers")
            found += map(text_of, array.to_pylist())
    except (ValueError, OSError) as error:
        raise DataError(f"{part.path}: column {column!r}: {shorten(str(error))}.") from error
    return found
