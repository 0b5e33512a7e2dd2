"""Judges a finished run on labelled images that it has not seen: metrics, table, report."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datasets import DATASETS, DataError, Dataset
from datasets.bands import notes_on_bits
from datasets.files import ImageFiles
from datasets.images import notes_on
from trainer.build.model import build_loss
from trainer.build.trained import TrainedModel, load_with, tell_which
from trainer.comparing.predictions import PREDICTIONS
from trainer.components.calibration import before_and_after
from trainer.components.decisions import number_of_each
from trainer.config import Config
from trainer.config.construct import factory_of
from trainer.inference.evaluation import SubsetResult, measure_subset
from trainer.inference.labelled import (
    Matched,
    OwnFiles,
    labels_in,
    match,
    notes_on_broken,
    notes_on_classes,
    notes_on_copies,
    open_place,
    pixel_digests,
)
from trainer.input.data import build_pipelines, check_shape, transforms_named
from trainer.input.source import Source
from trainer.input.subset import Subset, decoded
from trainer.insight.findings import ReportData
from trainer.insight.report import write_report
from trainer.insight.samples import THUMBNAIL
from trainer.loop.answers import Part, write_predictions
from trainer.process.errors import ConfigError, RunError, UsageError
from trainer.process.words import visible
from trainer.run.disk import (
    MAX_SPLIT,
    all_or_nothing,
    make_output_folder,
    read_json,
    write_json,
)
from trainer.run.environment import device_name

NEW_PART = "new"  # the part that the images are
JUDGED = "metrics.json"


@dataclass(frozen=True)
class NewImages:
    """A place's images that can be judged. matched: its classes. broken: (id, reason).

    subset: the images that can be read and have a class of the run, with the run's labels.
    """

    subset: Subset
    digests: list[str]
    matched: Matched
    broken: list[tuple[str, str]]
    notes: list[str]


def judge(
    config: Config,
    run: Path,
    place: Path,
    output: Path,
    renames: Mapping[str, str],
    overrides: Sequence[str],
) -> tuple[dict[str, Any], int]:
    """Evaluate a run's best weights on the images of ``place``, and write the folder ``output``.

    Returns loss and metrics, and the number of images. renames: class names of the place -> those
    of the run. overrides: settings of the place's dataset. Raises DataError if the images cannot
    be used, UsageError if ``output`` has the answers for another place.
    """
    is_again = require_own_folder(output, place)
    new_config, dataset = open_place(run, place, overrides)
    trained = load_with(config, run)
    tell_which(trained)
    new_config = trained.config.model_copy(
        update={"dataset": new_config.dataset, "split": new_config.split}
    )
    images = prepare_new(trained, new_config, dataset, renames)
    loss_fn, about_loss = loss_of(trained.config, trained.classes)
    images.notes.extend(about_loss)
    again = [f"{output} has answers for this place, which are replaced"] * is_again
    for note in images.notes + again:
        print(f"note    {visible(note)}", file=sys.stderr)
    found = measure_subset(trained, new_config, images.subset, loss_fn, NEW_PART)
    with all_or_nothing():
        make_output_folder(output)
        write_answers(output, trained, images, found)
        write_report(output, report_on(trained, place, images, found), run)
        write_json(output / JUDGED, judgement(trained, place, images, found))
    return found.values, len(images.subset)


def require_own_folder(output: Path, place: Path) -> bool:
    """Whether ``output`` has the answers for this place. Raises UsageError for another content."""
    if not output.exists():
        return False
    try:
        told = read_json(output / JUDGED).get("place")
    except RunError:
        told = None
    if told == str(place.resolve()):
        return True
    if told is None and output.is_dir() and not any(output.iterdir()):
        return False
    what = f"has the answers for {told}" if told else "is there, with another content"
    raise UsageError(f"{output} {what}; name another folder: --output FOLDER.")


def prepare_new(
    trained: TrainedModel, config: Config, dataset: Dataset, renames: Mapping[str, str]
) -> NewImages:
    """Read the images whose class the run has. Raises DataError if there are none."""
    matched = match(trained.classes, dataset, renames)
    labels = labels_in(trained, dataset, matched)
    if isinstance(dataset, ImageFiles) and type(dataset).decode is ImageFiles.decode:
        dataset = OwnFiles(dataset, trained.image_channels)
    source = Source(dataset, build_pipelines(config, len(trained.classes)), config, trained.device)
    chosen = (labels >= 0).nonzero().flatten().tolist() if labels.ndim == 1 else range(len(labels))
    with transforms_named(config):
        source.prepare("test", chosen)
        rows = [row for row in chosen if row not in source.broken]
        broken = [(dataset.ids[row], e.reason) for row, e in sorted(source.broken.items())]
        if not rows:
            raise DataError("\n".join(["no image there can be judged:", *notes_on_broken(broken)]))
        subset = source.subset("test", rows)
    subset = replace(subset, labels=labels[rows])
    require_shape(trained, config, subset)
    known = source.identities()
    digests = [known[row] for row in rows]
    remarks = getattr(dataset, "remarks", b"")
    notes = notes_on_classes(trained.classes, dataset, matched) + notes_on_broken(broken)
    notes = notes_on_new(trained, subset, digests) + notes + source.notes
    notes += dataset.note.splitlines() + notes_on(remarks) + notes_on_bits(remarks)
    return NewImages(subset, digests, matched, broken, notes)


def notes_on_new(trained: TrainedModel, subset: Subset, digests: Sequence[str]) -> list[str]:
    """Lines on copies of the run's images, and of each other."""
    split, rows = read_json(trained.run / "split.json", MAX_SPLIT), subset.indices.tolist()
    known = {digest for part in ("train", "val") for digest in split[part].values()}
    own = factory_of(DATASETS, trained.config.dataset)
    if known.isdisjoint(digests) and not hasattr(own, "content"):
        digests = pixel_digests(subset.dataset, rows)  # the run's may be of images in memory
    return notes_on_copies([subset.dataset.ids[row] for row in rows], digests, subset.labels, split)


def require_shape(trained: TrainedModel, config: Config, subset: Subset) -> None:
    """Raise DataError unless the eval transforms give the size that the model was trained with."""
    try:
        became = " x ".join(map(str, check_shape(config, subset, "eval")))
    except ConfigError:  # they cannot form a batch
        became = "of several sizes"
    wanted = " x ".join(map(str, trained.input_shape))
    if became != wanted:
        raise DataError(
            f"the run's transforms make the images {became}, and its model was trained on {wanted} "
            "(channels x height x width): they need the size and channels of the run's images, or "
            "a run whose transforms resize."
        )


def loss_of(config: Config, classes: Sequence[str]) -> tuple[nn.Module | None, list[str]]:
    """The run's loss, or a line that says why there is none without its training images."""
    arguments = config.loss.arguments | config.loss.trainer_arguments
    for name in ("weight", "pos_weight"):
        if arguments.get(name) == "balanced":
            return None, [f"no loss: loss.{name}=balanced goes by the run's training images"]
    return build_loss(config, torch.empty(0, dtype=torch.int64), classes), []


def write_answers(
    folder: Path, trained: TrainedModel, images: NewImages, found: SubsetResult
) -> None:
    """Write predictions.csv."""
    ids = [images.subset.dataset.ids[row] for row in images.subset.indices.tolist()]
    part = Part(NEW_PART, ids, images.digests, found.answers, found.losses)
    write_predictions(folder / PREDICTIONS, trained.classes, [part])


def report_on(
    trained: TrainedModel, place: Path, images: NewImages, found: SubsetResult
) -> ReportData:
    """What the report is made from: the run's, as far as it is about these images."""
    subset, of_run = images.subset, read_json(trained.run / "result.json")
    rows, dataset = subset.indices.tolist(), subset.dataset
    about = {"name": str(place), "images": {NEW_PART: len(rows)}}
    left_out = [{"path": path, "reason": reason} for path, reason in images.broken]
    return ReportData(
        history=[],
        classes=trained.classes,
        answers=found.answers,
        ids=[dataset.ids[row] for row in rows],
        config_text=trained.config.dump(),
        result={
            **{key: of_run[key] for key in ("seed", "epochs") if key in of_run},
            "name": f"{trained.config.name} on {place.resolve().name}",
            "best": {"epoch": trained.epoch or 0},
            "test": found.values,
            "dataset": about | {"left_out": left_out},
            "device": device_name(trained.device),
            "calibration": {"test": before_and_after(found.answers, found.calibrated)},
        },
        calibration=trained.calibration,
        calibrated=found.calibrated,
        picture_of=lambda row: decoded(dataset, rows[row], THUMBNAIL),
        class_balance={NEW_PART: number_of_each(subset.labels, len(trained.classes))},
        notes=images.notes,
        about="New images",
    )


def judgement(
    trained: TrainedModel, place: Path, images: NewImages, found: SubsetResult
) -> dict[str, Any]:
    """The content of metrics.json."""
    return {
        "run": str(trained.run),
        "place": str(place.resolve()),
        "images": len(images.subset),
        "tta": trained.config.evaluation.tta,
        "metrics": found.values,
        "calibration": before_and_after(found.answers, found.calibrated),
        "classes": {name: trained.classes[k] for name, k in images.matched.numbers.items()},
        "unknown_classes": images.matched.unknown,
        "classes_without_images": images.matched.lacking,
        "broken": [{"path": path, "reason": reason} for path, reason in images.broken],
        "notes": images.notes,
    }
