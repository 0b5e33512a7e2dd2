"""Formats predictions as a table, JSON, CSV, or a sheet of pictures; also those of two sides."""

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy
import torch
from PIL import Image
from torch import Tensor

from trainer.comparing.head_to_head import Paired
from trainer.comparing.predictions import SEPARATOR, Answer, fill_table, prediction_lines
from trainer.drawing.axes import COLOURS
from trainer.drawing.columns import pad, width_of, wrap
from trainer.drawing.fonts import drawable, fit_to_pixels, font
from trainer.drawing.pictures import LETTERS, caption_width, sheet
from trainer.inference.prediction import SHEET_THUMBNAIL, Prediction
from trainer.input.data import load_subset
from trainer.insight.samples import original_images
from trainer.process.errors import RunError
from trainer.process.words import visible
from trainer.run.disk import MAX_SPLIT, Digest, read_json, write_file, write_with
from trainer.run.resume import config_for_use

Numbers: TypeAlias = "numpy.ndarray[Any, Any]"
NO_LABEL = "no label"  # of several, none is likely enough
UNKNOWN = "unknown"  # shown instead of a class
PICTURED = 16  # images that one of two sides alone gets right, of each
COLUMNS, PICTURE_SIDE = 8, 160  # of their sheet; pixels of a picture


def table_lines(
    predictions: Iterable[Prediction],
    classes: Sequence[str],
    paths: Sequence[str],
    top: int | None = None,
    columns: int = 240,
    with_sets: bool = False,
) -> Iterator[str]:
    """Yield a table's lines: ``top`` classes per file, or the predicted ones, one or several.

    A path that is too long has its own line. So has a class, and a label set.
    For an unknown image UNKNOWN comes first, and classes only with ``top``.
    """
    names, end = [visible(name) for name in classes], columns
    columns -= len("  set") if with_sets else 0
    most = columns - len("path    probability")
    width = min(max(len("class"), *map(width_of, names)), most)
    longest = max((width_of(visible(path)) for path in paths), default=0)
    room = max(len("path"), min(longest, columns - width - len("    probability")))
    head = f"{pad('path', room)}  {pad('class', width)}  probability{'  set' * with_sets}"
    for one in predictions:
        if one.probabilities is None:
            continue
        yield from [head] if head else []  # none above an empty table
        head = ""
        path = visible(one.path)
        if width_of(path) > room:
            yield path
            path = ""
        labels = list(one.predicted)
        if top is not None:
            decided_by = one.probabilities if one.raw is None else one.raw
            labels = decided_by.topk(min(top, len(names))).indices.tolist()
        shown = [(names[label], f"{one.probabilities[label]:11.4f}") for label in labels]
        if one.is_unknown:
            shown = [(UNKNOWN, ""), *(shown if top is not None else [])]
        in_set = one.label_set or ()
        told = f"{{{', '.join(names[label] for label in in_set)}}}" if in_set else ""
        for name, value in shown or [("-", "")]:  # of several labels none
            if width_of(name) > width and value:
                yield from [path] if path else []
                yield from (f"  {part}" for part in wrap(name, columns - 2))
                path = name = ""
            line = f"{pad(path, room)}  {pad(name, width)}  {value}"
            if told and width_of(line) + 2 + width_of(told) <= end:
                line, told = f"{line}  {told}", ""
            yield line.rstrip()
            yield from (f"  {part}" for part in (wrap(told, end - 2) if told else ()))
            path = told = ""


def json_lines(
    predictions: Iterable[Prediction], classes: Sequence[str], ascii_only: bool = False
) -> Iterator[str]:
    r"""Yield the lines of a JSON list, a line for each file, with exact numbers.

    A byte of a path that is not UTF-8 becomes an escape, \udc80 to \udcff; ``os.fsencode`` restores
    it.
    """
    line = "["  # held back until its comma is known: JSON has none after the last entry
    for one in predictions:
        if one.probabilities is None:
            continue
        values = one.probabilities.tolist()
        entry: dict[str, object] = {"path": one.path}
        if one.has_several:
            entry["labels"] = [classes[label] for label in one.predicted]
        else:
            label = one.predicted[0]
            entry |= {"class": classes[label], "probability": values[label]}
        if one.score is not None:
            entry |= {"unknown": one.is_unknown, "score": one.score}
        if one.label_set is not None:
            entry["set"] = [classes[label] for label in one.label_set]
        entry["probabilities"] = dict(zip(classes, values, strict=True))
        text = json.dumps(entry, ensure_ascii=ascii_only)
        if line == "[":
            line = f"[{text}"
        else:
            yield f"{line},"
            line = f" {text}"
    yield f"{line}]"


def csv_lines(
    predictions: Iterable[Prediction], classes: Sequence[str], more: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the lines of a table like ``predictions.csv``; a file's path is its id.

    more: the names of further columns, whose texts are ``Prediction.more``.
    """
    return prediction_lines(classes, _answers_of(predictions, classes), more)


def write_predicted(
    path: Path, predictions: Iterable[Prediction], classes: Sequence[str], more: Sequence[str] = ()
) -> None:
    """Write what ``csv_lines`` gives, or the same as Parquet if ``path`` ends so, atomically."""
    answers = _answers_of(predictions, classes)
    write_with(path, lambda file: fill_table(file, path.suffix, classes, answers, more))


def write_embeddings(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """Write the arrays of ``predict --embeddings``, compressed, atomically; all have answers.

    embeddings (N, F) and probabilities (N, K) float32; paths and sha256 (N,), classes (K,) texts.
    """
    features = [one.features for one in predictions if one.features is not None]
    chances = [one.probabilities for one in predictions if one.probabilities is not None]
    content = io.BytesIO()
    numpy.savez_compressed(
        content,
        embeddings=as_rows(features),
        probabilities=as_rows(chances),
        paths=numpy.array([one.path for one in predictions]),
        sha256=numpy.array([one.digest for one in predictions]),
        classes=numpy.array(classes),
    )
    write_file(path, content.getvalue())


def as_rows(values: Sequence[Tensor]) -> Numbers:
    """A float32 array with a row for each; without any, of the shape (0, 0)."""
    return torch.stack([*values]).float().numpy() if values else numpy.zeros((0, 0), "float32")


def _answers_of(predictions: Iterable[Prediction], classes: Sequence[str]) -> Iterator[Answer]:
    for one in predictions:
        if one.probabilities is None:
            continue
        values = one.probabilities.tolist()
        named = SEPARATOR.join(classes[label] for label in sorted(one.predicted))
        probability = None if one.has_several else values[one.predicted[0]]
        name, digest, more = one.path, one.digest, one.more
        if one.score is not None:
            more = (*more, "yes" if one.is_unknown else "no", f"{one.score:.9g}")
        yield Answer(name, digest, "", "", named, probability, None, values, more)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of text as UTF-8, atomically; other bytes become escapes, as in JSON."""

    def fill(file: Digest) -> None:
        for line in lines:
            file.write(f"{line}\n".encode(errors="backslashreplace"))

    write_with(path, fill)


def prediction_sheet(predictions: Iterable[Prediction], classes: Sequence[str]) -> Image.Image:
    """Return a sheet of the thumbnails, each with its class, probability and file name."""
    names = [drawable(name, label) for label, name in enumerate(classes)]
    pictures, captions = [], []
    width = caption_width(SHEET_THUMBNAIL) - font(LETTERS).getlength(", +99")
    for one in predictions:
        if one.probabilities is not None and one.thumbnail is not None:
            pictures.append(one.thumbnail)
            told = [f"{names[label]} ({one.probabilities[label]:.4f})" for label in one.predicted]
            # A long name is shortened before its probability, and leaves room for ", +99".
            told = [fit_to_pixels(text, LETTERS, width, end=len(" (0.1234)")) for text in told]
            told = [UNKNOWN] if one.is_unknown else told
            captions.append([told or [NO_LABEL], os.path.basename(one.path)])
    columns = 4 if len(pictures) <= 16 else 10
    return sheet(pictures, captions, columns=columns, size=SHEET_THUMBNAIL)


def disagreement(paired: Paired, run: Path) -> Image.Image:
    """Return up to PICTURED images of each side, in the colour of its first curve.

    run: the first side's run, whose dataset gives the images. Raises RunError or DataError if they
    are not there any more.
    """
    first = paired.tables[0][0]
    rows = [row for side in paired.only for row in side[:PICTURED]]
    sides = [number for number, side in enumerate(paired.only) for _ in side[:PICTURED]]
    saved = read_json(run / "split.json", MAX_SPLIT)
    try:
        wanted = {first.ids[row]: saved["test"][first.ids[row]] for row in rows}
    except (KeyError, TypeError):
        raise RunError(f"{run / 'split.json'} does not name the images of its table.") from None
    config = config_for_use(run, ["loader.cache=off"])
    _, subset = load_subset(config, wanted, torch.device("cpu"))
    captions = []
    for row in rows:
        answers = [side[0].predicted[row] for side in paired.tables]
        told = zip(paired.names, answers, strict=True)
        captions.append(
            [in_letters(first.true[row], first.classes)]
            + [f"{name}: {in_letters(answer, first.classes)}" for name, answer in told]
        )
    pictures = original_images(subset, range(len(rows)), PICTURE_SIDE)
    return sheet(pictures, captions, [COLOURS[side] for side in sides], COLUMNS, PICTURE_SIDE)


def in_letters(cell: str, classes: Sequence[str]) -> str:
    """The names in a cell of the table in letters that a picture can show."""
    number = {name: k for k, name in enumerate(classes)}
    names = [drawable(name, number.get(name, 0)) for name in cell.split(SEPARATOR)]
    return ", ".join(names) if cell else NO_LABEL
