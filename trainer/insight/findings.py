"""Finds the content of a run's report, once for its two forms: Markdown and a page of HTML."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, float64, zeros

from datasets.words import counted
from trainer.comparing.grown import about_grown
from trainer.components import SCORES
from trainer.components.calibration import Calibration
from trainer.components.decisions import Answers, certainties, confusion_counts
from trainer.components.label_sets import Coverage, measure_sets
from trainer.components.metrics import per_class
from trainer.drawing.charts import numbers
from trainer.drawing.text import Bins, sentence
from trainer.insight.run_facts import commands_for, facts_of_run, notes_for_report
from trainer.insight.samples import ReportImage, rows_to_show, shown_image

MAX_CLASSES = 20  # with more, tables show the worst, and a table of all is at the end
FEW_IMAGES = 1000  # with fewer, accuracy has a confidence interval
NUM_BINS = 15  # intervals of confidence, as in Guo et al., 2017
SETS_LEVEL = Fraction(9, 10)  # of the label sets that a report measures
SETS_COLUMNS = ("class", "images", "in the set", "at least", "at most")
UNCHANGED = "Predictions and accuracy are unchanged: the raw probabilities decide them."
MAX_LOWEST = 10  # classes that a sentence on label sets names
SECONDS = {
    "start": "reading the data, building the model",
    "data": "waiting for images",
    "compute": "forward, backward, step",
    "eval": "validation",
    "save": "checkpoints",
    "log": "metrics, TensorBoard",
}


@dataclass(frozen=True)
class ReportData:
    """What a report is made from.

    history: one dict per epoch, with "epoch" (from 1) and tags such as "val/accuracy" and
    "train/loss_epoch" (or "train/loss"); values that are not numbers are ignored. answers and ids
    (N) are those of the test split. result: the content of
    result.json, at least "best" (with its "epoch") and "test". picture_of(i): test image i, uint8
    (C, H, W); it may raise. class_balance: images of each class by split. notes: what the run told.
    calibration: what val says about a temperature; calibrated and val: the answers on test and val
    after it.
    about: what the images are, as a heading. Without history there are no curves.
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
    calibration: Calibration | None = None
    calibrated: Answers | None = None
    val: Answers | None = None
    about: str = "Test split"


@dataclass(frozen=True)
class Findings:
    """The content of the report's pages."""

    title: str
    best_epoch: int  # 0 if it is not known
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
    novelty: Mapping[str, Any] = field(default_factory=dict)  # of result.json
    temperature: str = ""  # what val says about a temperature
    truth: Sequence[tuple[str, float, float]] = ()  # (metric, raw, calibrated)
    calibrated_bins: Bins | None = None  # if a temperature is used
    about_sets: str = ""
    sets: Sequence[tuple[Any, ...]] = ()  # by class, in the order of SETS_COLUMNS
    about: str = "Test split"
    grown: Sequence[str] = ()  # old and new classes apart, in words

    @property
    def measured(self) -> str:
        """A sentence on the images and the weights."""
        weights = f"weights of epoch {self.best_epoch}" if self.best_epoch else "best weights"
        return f"{counted(self.num_images, 'image')}, measured once with the {weights}."

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
    def about_unknown(self) -> str:
        """What ``unknown_rows`` show; "" if the run has no scores."""
        if not self.novelty:
            return ""
        share, val = f"{self.novelty['level']:.0%}", f"{self.novelty['val_images']:,} val images"
        parts = [
            f"predict --reject {self.novelty['level']:g} is to keep {share} of known images, by "
            f"the scores of {val}."
        ]
        if needed := self.novelty.get("needed"):
            parts = [f"{val} cannot support predict --reject: {share} needs at least {needed}."]
        if unknown := self.novelty.get("unknown"):
            lost = f", {unknown['left_out']:,} left out" * bool(unknown["left_out"])
            parts.append(
                f"dataset.unknown has {unknown['images']:,} images of no class{lost}; AUROC is "
                "how well they are told from test, and FPR95 the share of them that is kept with "
                "95% of test."
            )
        return " ".join(parts)

    @property
    def unknown_columns(self) -> list[str]:
        """The columns of ``unknown_rows``."""
        kept = ["test images kept", "share", "95 % confidence"] if "kept" in self.novelty else []
        told_apart = ["AUROC", "FPR95"] if self.novelty.get("unknown", {}).get("auroc") else []
        return ["score", *kept, *told_apart] if kept or told_apart else []

    @property
    def unknown_rows(self) -> list[list[Any]]:
        """For each score what it keeps of test, and how well it tells pictures of no class."""
        rows = []
        for score in SCORES if self.unknown_columns else ():
            row: list[Any] = [score]
            if "kept" in self.novelty:
                kept, tested = self.novelty["kept"][score], self.novelty["test_images"]
                low, high = wilson(kept, tested)
                row += [f"{kept:,} of {tested:,}", kept / tested, f"{low:.3f} to {high:.3f}"]
            unknown = self.novelty.get("unknown", {})
            row += [unknown[name][score] for name in ("auroc", "fpr95") if name in unknown]
            rows.append(row)
        return rows

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
    rows, num_wrong = rows_to_show(given.answers)
    dataset = result.get("dataset", {})
    left_out = [f"{entry['path']}: {entry['reason']}" for entry in dataset.get("left_out", ())]

    def show(row: int) -> ReportImage:
        return shown_image(given.answers, classes, given.ids[row], row, given.picture_of)

    after = given.calibrated if given.calibration and given.calibration.used else None
    about_sets, sets = sets_on_test(given)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding and resizing release the GIL
        shown = list(pool.map(show, rows))
    return Findings(
        title=str(result.get("name") or "Report"),
        best_epoch=result["best"]["epoch"],
        facts=facts_of_run(result, run),
        notes=notes_for_report(result, given.notes, run),
        left_out=left_out,
        # metrics.jsonl has train/loss of a few steps, and train/loss_epoch as the epoch's mean.
        history=[{k.removesuffix("_epoch"): v for k, v in row.items()} for row in given.history],
        classes=classes,
        num_images=len(labels),
        metrics=numbers(result["test"]),
        counts=confusion_counts(*given.answers),
        by_class=per_class(*given.answers[:2], classes, given.answers.thresholds),
        bins=bins,
        calibration_error=error_of(bins),
        num_wrong=num_wrong,
        shown=shown,
        balance=balance,
        config_text=given.config_text,
        seconds={k: v for k, v in numbers(result.get("seconds") or {}).items() if v >= 0},
        commands=commands_for(run, result),
        several_labels=labels.ndim == 2,
        novelty=result.get("novelty") or {},
        temperature=sentence(given.calibration.in_words) if given.calibration else "",
        truth=compared_truth(result) if after else (),
        calibrated_bins=calibration_bins(after) if after else None,
        about_sets=about_sets,
        sets=sets,
        about=given.about,
        grown=about_grown(result.get("grown", {}), result.get("weights", {})),
    )


def compared_truth(result: dict[str, Any]) -> list[tuple[str, float, float]]:
    """How true the probabilities of test are, by result.json: (metric, raw, calibrated)."""
    test = result["calibration"]["test"]
    return [(name, value, test["after"][name]) for name, value in test["before"].items()]


def sets_on_test(given: ReportData) -> tuple[str, list[tuple[Any, ...]]]:
    """What label sets for SETS_LEVEL do on test: a sentence, and a row for each class."""
    test, val = given.calibrated, given.val
    if test is None or val is None or test.labels.ndim == 2:
        return "", []
    try:
        parts = (val.probabilities, val.labels), (test.probabilities, test.labels)
        coverage = measure_sets(*parts, given.answers.probabilities, SETS_LEVEL)[1]
    except ValueError as few:
        return sentence(f"there are no label sets: {few}"), []
    return sentence(sets_in_words(SETS_LEVEL, coverage)), sets_by_class(coverage, given.classes)


def sets_in_words(level: Fraction, coverage: Coverage) -> str:
    """A sentence, without a full stop, on what label sets do on test."""
    right, images = sum(coverage.covered), sum(coverage.images)
    low, high = wilson(right, images)
    return (
        f"label sets for {float(level):g} have the true class of {right:,} of "
        f"{counted(images, 'test image')}: {right / images:.4f} ({low:.4f} to {high:.4f} with 95 % "
        f"confidence), with {coverage.mean_size:.2f} classes on average"
    )


def sets_by_class(coverage: Coverage, classes: Sequence[str]) -> list[tuple[Any, ...]]:
    """A row of SETS_COLUMNS for each class that test has."""
    rows = zip(classes, coverage.images, coverage.covered, strict=True)
    return [(name, n, right / n, *wilson(right, n)) for name, n, right in rows if n]


def lowest_first(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows of SETS_COLUMNS, the rarest coverage first, at most MAX_CLASSES of them."""
    return sorted(rows, key=lambda row: row[2])[:MAX_CLASSES]


def lowest_in_words(rows: Sequence[tuple[Any, ...]]) -> str:
    """The classes whose label sets have the true class most rarely, for a note."""
    lowest = lowest_first(rows)[:MAX_LOWEST]
    told = "; ".join(f"{row[0]} {row[2]:.3f} ({row[3]:.3f} to {row[4]:.3f})" for row in lowest)
    return f"by class{', the lowest' if len(rows) > MAX_LOWEST else ''}: {told}"


def error_of(bins: Bins) -> float:
    """The expected calibration error of these intervals."""
    return sum(n * abs(right - sure) for n, sure, right in bins) / sum(n for n, *_ in bins)


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
