"""Finds the content of a run's report, once for its two forms: Markdown and a page of HTML."""

import math
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, float64, where, zeros

from trainer.components.decisions import (
    Answers,
    certainties,
    confusion_counts,
    decided,
)
from trainer.components.metrics import per_class
from trainer.drawing.charts import numbers
from trainer.drawing.fonts import drawable
from trainer.drawing.pictures import to_picture
from trainer.drawing.text import Bins
from trainer.process.console import duration
from trainer.process.errors import RunError
from trainer.process.words import listed
from trainer.run.disk import read_json
from trainer.run.folder import tensorboard_command

NUM_SHOWN = 16  # mistakes
MAX_CLASSES = 20  # with more, tables show the worst, and a table of all is at the end
FEW_IMAGES = 1000  # with fewer, accuracy has a confidence interval
NUM_BINS = 15  # intervals of confidence, as in Guo et al., 2017
THUMBNAIL = 320  # largest side of a mistake's picture, in pixels
SECONDS = {
    "start": "reading the data, building the model",
    "data": "waiting for images",
    "compute": "forward, backward, step",
    "eval": "validation",
    "save": "checkpoints",
    "log": "metrics, TensorBoard",
}
_EQUAL = re.compile(r"([\d,]+) groups? of equal images .*?(one of the labels|what is tested)")
_ABSENT = re.compile(r"(train|val|test) has no image of")


@dataclass(frozen=True)
class ReportData:
    """What a report is made from.

    history: one dict per epoch, with "epoch" (from 1) and tags such as "val/accuracy" and
    "train/loss_epoch" (or "train/loss"); values that are not numbers are ignored. answers and ids
    (N) are those of the test split. result: the content of
    result.json, at least "best" (with its "epoch") and "test". picture_of(i): test image i, uint8
    (C, H, W); it may raise. class_balance: images of each class by split. notes: what the run told.
    """

    history: Sequence[dict[str, Any]]
    classes: Sequence[str]
    answers: Answers
    ids: Sequence[str]
    config_text: str
    result: dict[str, Any]
    picture_of: Callable[[int], Tensor] | None = None
    class_balance: Mapping[str, Sequence[int]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class ReportImage:
    """An image of the test split: its class, its predicted class, and both probabilities.

    Of several labels, true and predicted name all; a probability is the lowest among them, None
    where there is none.
    """

    name: str
    true: str
    predicted: str
    of_predicted: float | None
    of_true: float | None
    picture: Image.Image | None
    # Lines of true and predicted names, in letters that a picture can show.
    caption: tuple[str | list[str], ...] = ()
    fault: str = ""  # the reason if there is no picture


@dataclass(frozen=True)
class Findings:
    """The content of the report's pages."""

    title: str
    best_epoch: int
    facts: dict[str, str]
    notes: list[str]
    left_out: list[str]
    history: Sequence[dict[str, Any]]
    classes: Sequence[str]
    num_images: int
    metrics: dict[str, float]
    counts: Tensor  # (K, K): rows are true classes, columns predicted ones
    by_class: list[dict[str, Any]]
    bins: Bins
    calibration_error: float
    num_wrong: int
    shown: list[ReportImage]
    balance: Mapping[str, Sequence[int]]
    config_text: str
    seconds: dict[str, float]
    commands: list[tuple[str, str]]
    several_labels: bool = False  # an image may have several

    @property
    def kind(self) -> str:
        """What a class is called: "class", or "label" where an image may have several."""
        return "label" if self.several_labels else "class"

    @property
    def columns(self) -> list[str]:
        """The columns of ``by_class``, as a table names them."""
        more = ["average precision", "threshold"] if self.several_labels else []
        return [self.kind, "images", "precision", "recall", "F1", *more]

    @property
    def about_matrix(self) -> str:
        """What the rows and columns of ``counts`` mean."""
        if not self.several_labels:
            return "Rows: true class. Columns: predicted class."
        return (
            "Diagonal: images whose label is found. Else: the row's label is missed and the "
            "column's is predicted wrongly, in one image."
        )

    @property
    def about_shares(self) -> str:
        """What the probabilities of a mistake are, where that is not plain."""
        if not self.several_labels:
            return ""
        return "A probability is the lowest among the labels that are predicted, or true."

    @property
    def about_bins(self) -> str:
        """What the intervals of the calibration count, where that is not plain."""
        if not self.several_labels:
            return ""
        return (
            "Each label of each image counts as one: its probability, and whether the image has it."
        )

    @cached_property
    def tags(self) -> list[str]:
        """The columns of the history's table."""
        return list(
            dict.fromkeys(["epoch", *(tag for row in self.history for tag in numbers(row))])
        )

    @property
    def epochs(self) -> list[list[float | None]]:
        """The rows of the history's table; None where an epoch has no such number."""
        tags = self.tags
        return [[row.get(tag) for tag in tags] for row in map(numbers, self.history)]

    @property
    def balance_rows(self) -> list[tuple[Any, ...]]:
        """Each class with its number of images in each split."""
        counts = list(zip(*self.balance.values(), strict=True)) or [()] * len(self.classes)
        return [(name, *row) for name, row in zip(self.classes, counts, strict=True)]

    @property
    def balance_columns(self) -> list[str]:
        """The columns of ``balance_sums``."""
        total = "labels" if self.several_labels else "images"
        return ["split", total, f"smallest {self.kind}", f"largest {self.kind}"]

    @property
    def balance_sums(self) -> list[tuple[Any, ...]]:
        """Each split's number of images: in all, in its smallest class, in its largest class."""
        return [(split, sum(c), min(c), max(c)) for split, c in self.balance.items()]

    @property
    def times(self) -> list[tuple[str, str, str, str]]:
        """The run's time by activity: its name, what it is, seconds, share of the total."""
        total = sum(self.seconds.values()) or 1
        return [
            (name, SECONDS.get(name, ""), f"{value:.2f}", f"{value / total:.1%}")
            for name, value in self.seconds.items()
        ]

    @property
    def certainty(self) -> str:
        """The confidence interval of the accuracy of a small test split; "" for a large one."""
        accuracy, images = self.metrics.get("accuracy"), self.num_images
        if accuracy is None or images >= FEW_IMAGES:
            return ""
        low, high = wilson(round(accuracy * images), images)
        # Rounded outwards, so that the interval does not shrink.
        ends = f"{math.floor(low * 100) / 100:g} and {math.ceil(high * 100) / 100:g}"
        return f"{images} image{'s' * (images > 1)}: between {ends} with 95 % confidence"

    @property
    def many(self) -> bool:
        """Whether there are more than MAX_CLASSES classes."""
        return len(self.classes) > MAX_CLASSES

    @property
    def worst(self) -> list[dict[str, Any]]:
        """The rows of ``by_class``; if there are many classes, those with the smallest F1."""
        if not self.many:
            return self.by_class
        return sorted(self.by_class, key=lambda row: (row["f1"], -row["images"]))[:MAX_CLASSES]

    @property
    def confusion(self) -> list[list[int]]:
        """The rows of ``counts``, for a few classes."""
        rows: list[list[int]] = self.counts.tolist()
        return rows

    @property
    def confused(self) -> list[tuple[str, str, int, float]]:
        """(true class, predicted class, images, share of the true class), most images first."""
        mistakes = self.counts.clone().fill_diagonal_(0)
        places = mistakes.nonzero()
        order = mistakes[places[:, 0], places[:, 1]].argsort(descending=True, stable=True)
        return [
            (self.classes[row], self.classes[column], int(count), int(count) / int(whole))
            for row, column in places[order[:MAX_CLASSES]].tolist()
            for count, whole in [(self.counts[row, column], self.by_class[row]["images"])]
        ]


def find(given: ReportData, run: Path) -> Findings:
    """Return the content of the report on the folder ``run``."""
    result, classes, balance = given.result, given.classes, given.class_balance
    labels = given.answers.labels
    bins = calibration_bins(given.answers)
    rows, num_wrong = _rows_to_show(given.answers)
    dataset = result.get("dataset", {})
    left_out = [f"{entry['path']}: {entry['reason']}" for entry in dataset.get("left_out", ())]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding and resizing release the GIL
        shown = list(pool.map(lambda row: _show(given, row), rows))
    return Findings(
        title=str(result.get("name") or "Report"),
        best_epoch=result["best"]["epoch"],
        facts=_facts(result, run),
        notes=_notes(given, run),
        left_out=left_out,
        # metrics.jsonl has train/loss of a few steps, and train/loss_epoch as the epoch's mean.
        history=[{k.removesuffix("_epoch"): v for k, v in row.items()} for row in given.history],
        classes=classes,
        num_images=len(labels),
        metrics=numbers(result["test"]),
        counts=confusion_counts(*given.answers),
        by_class=per_class(*given.answers[:2], classes, given.answers.thresholds),
        bins=bins,
        calibration_error=sum(n * abs(right - sure) for n, sure, right in bins)
        / sum(n for n, *_ in bins),
        num_wrong=num_wrong,
        shown=shown,
        balance=balance,
        config_text=given.config_text,
        seconds={k: v for k, v in numbers(result.get("seconds") or {}).items() if v >= 0},
        commands=_commands(run, result),
        several_labels=labels.ndim == 2,
    )


def calibration_bins(answers: Answers, bins: int = NUM_BINS) -> Bins:
    """(images, mean confidence, accuracy) of ``bins`` equal intervals (a, b] from 0 to 1.

    Of several labels, each label of each image counts, as in ``certainties``.
    """
    confidence, is_right = certainties(answers.probabilities.nan_to_num(0), answers.labels)
    interval = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = interval.bincount(minlength=bins)
    sure = zeros(bins, dtype=float64).index_add_(0, interval, confidence)
    right = zeros(bins, dtype=float64).index_add_(0, interval, is_right.double())
    divisor = counts.clamp_min(1)
    columns = (counts.tolist(), (sure / divisor).tolist(), (right / divisor).tolist())
    return list(zip(*columns, strict=True))


def wilson(right: int, images: int) -> tuple[float, float]:
    """The 95 % interval of the share ``right / images`` (Wilson, 1927)."""
    share, z = right / images, 1.959964
    middle = share + z**2 / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2)
    scale = 1 + z**2 / images
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def _rows_to_show(answers: Answers) -> tuple[list[int], int]:
    """Rows of the most certain mistakes (else of the least certain images); number of mistakes."""
    confidence, predicted = answers.probabilities.max(dim=1)
    if answers.labels.ndim == 1:
        is_wrong = predicted != answers.labels
    else:  # how far the furthest label is from what it should be
        has = answers.labels > 0.5
        is_wrong = (decided(answers.probabilities, answers.thresholds) != has).any(dim=1)
        error = (answers.probabilities - has.float()).abs().amax(dim=1)
        confidence = where(is_wrong, error, 1 - error)
    wrong = is_wrong.nonzero().flatten()
    if len(wrong):
        order = confidence[wrong].argsort(descending=True, stable=True)[:NUM_SHOWN]
        rows: list[int] = wrong[order].tolist()
    else:
        rows = confidence.argsort(stable=True)[:NUM_SHOWN].tolist()
    return rows, len(wrong)


def _show(given: ReportData, i: int) -> ReportImage:
    classes, (all_chances, labels, thresholds) = given.classes, given.answers
    probabilities = all_chances[i]
    picture, fault = None, "no picture was given"
    if given.picture_of:
        try:
            picture, fault = to_picture(given.picture_of(i)), ""
            if max(picture.size) > THUMBNAIL:
                picture.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=1.5)
        except Exception as error:  # the report is useful without this picture
            fault = f"cannot be shown: {error or type(error).__name__}"
    chosen, wanted = probabilities.argmax()[None], labels[i][None]
    if labels.ndim == 2:
        flags = decided(probabilities[None], thresholds)[0]
        chosen, wanted = flags.nonzero().flatten(), (labels[i] > 0.5).nonzero().flatten()
    named = [[classes[label] for label in some.tolist()] for some in (wanted, chosen)]
    drawn = [[drawable(classes[k], k) for k in some.tolist()] for some in (wanted, chosen)]
    shares = [float(probabilities[some].min()) if len(some) else None for some in (wanted, chosen)]
    true, predicted = (", ".join(names) or "no label" for names in named)
    caption: tuple[str | list[str], ...] = (" -> ".join(chain(*drawn)),)
    if labels.ndim == 2:
        of_true, of_predicted = (names or ["no label"] for names in drawn)
        caption = (of_true, [f"-> {of_predicted[0]}", *of_predicted[1:]])
    return ReportImage(
        name=given.ids[i],
        true=true,
        predicted=predicted,
        of_predicted=shares[1],
        of_true=shares[0],
        picture=picture,
        caption=caption,
        fault=fault,
    )


def _facts(result: dict[str, Any], run: Path) -> dict[str, str]:
    """The first facts of a report: when, on which data and device, with which code."""
    environment: dict[str, Any] = {}
    with suppress(RunError):
        environment = read_json(run / "environment.json")
    epochs, best = result.get("epochs"), result["best"]["epoch"]
    facts = {"best epoch": f"{best} of {epochs}" if epochs else str(best)}
    if result.get("early_stopped"):
        facts["best epoch"] += ", stopped early"
    if result.get("status") in ("stopped", "failed"):
        facts["status"] = result["status"]
    dataset = result.get("dataset", {})
    if images := dataset.get("images"):
        sizes = listed((f"{count:,} {split}" for split, count in images.items()))
        facts["data"] = f"{dataset.get('name', '')}: {sizes} images"
    if seconds := numbers(result).get("train_seconds"):
        facts["training"] = duration(seconds) if seconds >= 10 else f"{seconds:.2g}s"
    if speed := numbers(result).get("images_per_second"):
        facts["speed"] = f"{speed:,.0f} images/s"
    if stamp := re.match(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)-", run.name):
        facts["begun"] = "{}-{}-{} {}:{}:{}".format(*stamp.groups())
    if device := result.get("device") or environment.get("device"):
        torch_version = (environment.get("packages") or {}).get("torch")
        facts["device"] = f"{device}, torch {torch_version}" if torch_version else str(device)
    if commit := environment.get("git_commit"):
        changed = len(environment.get("git_changed_files") or ())
        files = f", {changed} file{'s' if changed > 1 else ''} changed since" if changed else ""
        facts["code"] = f"commit {str(commit)[:12]}{files}"
    if "seed" in result:
        facts["seed"] = str(result["seed"])
    facts["folder"] = str(run)
    return facts


def _notes(given: ReportData, run: Path) -> list[str]:
    """Warnings about the numbers, the run's and those of ``trainer.data`` on the same split.

    Each fact is told once, in the run's words; lines of examples belong to their note.
    """
    result = given.result
    dataset = result.get("dataset", {})
    notes = list(dataset.get("notes") or filter(None, [dataset.get("note")]))
    if skipped := numbers(result).get("skipped_steps"):
        notes += [f"{skipped:,} steps without finite numbers were skipped in training."]
    facts: dict[str, Any] = {}
    with suppress(RunError):
        facts = read_json(run.parent / "data" / "data.json")
    # The examples of a note stand on further lines, which begin with two spaces.
    joined = "\n".join([*notes, *given.notes]).replace("\n  ", "; ").split("\n")
    if result.get("split") and facts.get("split") == result["split"]:
        told = facts.get("warnings", ())
        # The report itself lists the images that this run could not read.
        told = [warning for warning in told if not warning.endswith(" images cannot be read.")]
        joined += [f"{warning} (trainer.data)" for warning in told]
    once: dict[Any, str] = {}
    for note in filter(None, joined):
        once.setdefault(_fact(note), note)
    return list(once.values())


def _fact(note: str) -> Any:
    """What a note tells; the run and ``trainer.data`` tell two facts in different words."""
    found = _EQUAL.match(note) or _ABSENT.match(note)
    return found.groups() if found else note.removesuffix(" (trainer.data)").rstrip(".")


def _commands(run: Path, result: dict[str, Any]) -> list[tuple[str, str]]:
    """(purpose, command) of commands that use the run; they are run in the checkout's root."""
    folder, siblings = shlex.quote(str(run)), shlex.quote(str(run.parent))
    epochs = int(numbers(result).get("epochs") or result["best"]["epoch"])
    return [
        ("watch the curves", tensorboard_command(run.parent.parent, epochs)),
        ("evaluate the weights again", f"python -m trainer.evaluate {folder}"),
        ("classify pictures", f"python -m trainer.predict {folder} path/to/pictures"),
        ("see what the model looks at", f"python -m trainer.explain {folder} path/to/picture.jpg"),
        ("take it elsewhere", f"python -m trainer.export {folder} --format onnx"),
        ("compare the runs of this name", f"python -m trainer.compare {siblings}"),
        ("train on", f"python -m trainer.train --resume {folder} train.epochs={2 * epochs}"),
    ]
