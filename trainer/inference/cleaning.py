"""Ranks the labels of a sweep over folds by how likely they are wrong, and shows them on a page."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from datasets import BrokenImage, DataError, Dataset
from datasets.duplicates import similar_contents
from datasets.fixes import LEAVE_OUT
from datasets.split import PARTS
from datasets.ticks import (
    CANDIDATES,
    Candidate,
    candidate_lines,
    fixes_before,
    header_of_fixes,
    note_of_fix,
    ticks_in,
)
from datasets.words import counted, label_words
from trainer.build.trained import TrainedModel, load_with
from trainer.comparing.fold_runs import FoldRuns
from trainer.comparing.folds import averaged, in_one
from trainer.comparing.head_to_head import NotPaired
from trainer.comparing.predictions import PREDICTIONS, SEPARATOR, Predictions, read_predictions
from trainer.components.label_errors import judge_labels, judge_several
from trainer.config import Config
from trainer.drawing.page import render
from trainer.drawing.pictures import to_picture
from trainer.input.cut import cut, find_groups, names_for_groups
from trainer.input.data import build_pipelines, load_subset
from trainer.input.kept import CPU
from trainer.input.source import Source
from trainer.input.subset import Subset
from trainer.insight.features import penultimate
from trainer.insight.report_page import CRISP_BELOW, data_url
from trainer.process.console import bar
from trainer.process.errors import RunError, UsageError
from trainer.process.words import visible
from trainer.run.disk import all_or_nothing, make_output_folder, write_file
from trainer.run.resume import config_for_use

CLEAN_PAGE = "clean.html"
CLEAN_TEMPLATE = Path(__file__).parent / "templates" / "clean.html.j2"
NEIGHBOURS_SHOWN, COPIES_SHOWN, CHANCES_SHOWN = 6, 6, 3
OWN_SIDE, BESIDE_SIDE = 192, 64  # pixels of the largest side: a candidate's picture, the others
AT_ONCE = 256  # images whose features are computed together


class Cleaning(NamedTuple):
    """All candidates, the worst first, those of test apart; and how many labels were judged."""

    candidates: list[Candidate]
    of_test: list[Candidate]
    judged: int


class Beside(NamedTuple):
    """What is shown beside candidates, by their digests: rows of images, and pairs of digests."""

    neighbours: dict[str, list[int]]
    similar: dict[str, list[str]]
    notes: list[str]


class Options(NamedTuple):
    """How to look: candidates in each of the page's two sections; whether similar images are looked
    for; whether test images can be ticked; what the command line changes in the runs' settings.
    """

    show: int
    near: bool
    with_test: bool
    overrides: Sequence[str] = ()


def clean(folds: FoldRuns, how: Options) -> tuple[Cleaning, list[Path], list[str]]:
    """Write SWEEP/clean/clean.html and candidates.csv; return what was found, files and notes.

    Raises UsageError if there is a candidates.csv with ticks, RunError if predictions are missing,
    DataError if images or the fixes have changed.
    """
    folder = folds.sweep / "clean"
    require_no_ticks(folder / CANDIDATES)
    if LEAVE_OUT in folds.classes:
        raise DataError(f"a class has the name {LEAVE_OUT!r}, which fixes need; rename it.")
    config = config_for_use(folds.runs[min(folds.runs)], how.overrides)
    file = config.dataset.trainer_arguments.get("fixes")
    before = fixes_before(file, folds.split.get("fixes"))
    dataset, subset = load_subset(config, folds.digest_of, CPU, folds.split)
    found = find_candidates(folds, parts_of(folds, config, dataset))
    shown = [*found.candidates[: how.show], *found.of_test[: how.show]]
    neighbours, notes = find_neighbours(folds, how.overrides, subset, shown)
    similar: dict[str, list[str]] = {}
    if how.near and shown:
        digests = [folds.digest_of.get(name, "") for name in dataset.ids]
        for one, other in similar_contents(dataset, digests, bar):
            similar.setdefault(one, []).append(other)
            similar.setdefault(other, []).append(one)
    cards = _Cards(folds, subset, Beside(neighbours, similar, notes))
    page = clean_page(folds, found, how, cards, before)
    with all_or_nothing():
        make_output_folder(folder)
        everything = [*found.candidates, *found.of_test]
        write_file(folder / CANDIDATES, candidate_lines(everything))
        write_file(folder / CLEAN_PAGE, page)
    return found, [folder / CLEAN_PAGE, folder / CANDIDATES], cards.notes


def require_no_ticks(file: Path) -> None:
    """Raise UsageError if a candidates.csv has ticks, which a new one would replace."""
    if file.is_file() and (ticks := ticks_in(file)):
        told = f"{visible(str(file))} has {counted(len(ticks), 'tick')}"
        raise UsageError(f"{told}; apply them (--apply), or move the file.")


# --- Which labels


def parts_of(folds: FoldRuns, config: Config, dataset: Dataset) -> dict[str, str]:
    """The part of each image, by its id, in the experiment itself: as if it ran without folds.

    The test images of a data set, or of the experiment's own cut, are no model's to correct.
    """
    base = folds.base_split
    how = config.split.model_copy(update={"folds": base.folds, "fold": base.fold})
    config = config.model_copy(update={"split": how})
    digests = [folds.digest_of.get(name, "") for name in dataset.ids]
    groups = None
    if how.group is not None:
        pipelines = build_pipelines(config, num_classes=len(dataset.classes))
        source = Source(dataset, pipelines, config, CPU)
        groups = find_groups(source, digests, names_for_groups(config, dataset))
    usable = [index for index, digest in enumerate(digests) if digest]
    found = cut(dataset, usable, digests, config, groups)
    return {dataset.ids[index]: part for part in PARTS for index in found[part]}


def find_candidates(folds: FoldRuns, part_of: Mapping[str, str]) -> Cleaning:
    """Judge the labels by the predictions of models that did not see them.

    part_of: an image's part in the experiment, by its id. Images of a test set that no fold holds
    are judged by the mean of all models. A label is a candidate if the models contradict it, or if
    it is more likely wrong than right. A content is listed once. Raises RunError.
    """
    tables = [read_predictions(run / PREDICTIONS) for run in folds.runs.values()]
    try:
        judged = [unseen(folds, tables)]
        if folds.held_out == "val":  # what is predicted is not looked at: no thresholds
            tests = [table.of_part("test") for table in tables]
            judged.append(averaged(tests, [None] * len(tests)))
    except NotPaired as error:
        raise RunError(f"the runs of {folds.sweep} do not go together: {error}.") from None
    found = [one for table in judged for one in _judge(folds, table, part_of)]
    once: dict[str, Candidate] = {}
    for one in sorted(found, key=lambda one: one.score):  # stable
        once.setdefault(one.digest, one)
    split: dict[bool, list[Candidate]] = {False: [], True: []}
    for one in once.values():
        split[one.part == "test"].append(one)
    return Cleaning(split[False], split[True], sum(map(len, judged)))


def unseen(folds: FoldRuns, tables: Sequence[Predictions]) -> Predictions:
    """The rows of each fold that its model did not see, as one table.

    It is the table that the sweep made of the trial, the mean over its seeds, if it made one.
    """
    joined = folds.sweep / f"t{folds.trial:03d}" / PREDICTIONS
    if joined.is_file():
        table = read_predictions(joined)
        if {*table.ids} == folds.fold_of.keys():
            return table
    return in_one([table.of_part(folds.held_out) for table in tables])


def _judge(folds: FoldRuns, table: Predictions, part_of: Mapping[str, str]) -> list[Candidate]:
    """The candidates among the rows of a table."""
    chances = table.probabilities
    number = {name: label for label, name in enumerate(folds.classes)}
    if table.classes != folds.classes or not numpy.isfinite(chances).all():
        raise RunError(f"a {PREDICTIONS} of {folds.sweep} is not of its run, or is damaged.")
    try:
        if folds.several:
            own = [[number[name] for name in text.split(SEPARATOR) if name] for text in table.true]
        else:
            own = [[number[name]] for name in table.true]
        missing = [name for name in table.ids if name not in part_of]
    except KeyError as error:
        raise RunError(f"{PREDICTIONS} of {folds.sweep} has a class {error} of no run.") from None
    if missing:
        raise RunError(f"{PREDICTIONS} of {folds.sweep} has images that the split has not.")
    given = numpy.zeros(chances.shape, bool)
    for row, labels in enumerate(own):
        given[row, labels] = True
    if folds.several:
        right, likely = judge_several(chances, given)
        suspect = ((chances > 0.5) != given).any(axis=1) | (right < 0.5)
    else:
        labels_given = given.argmax(axis=1)
        right, other = judge_labels(chances, labels_given)
        likely = numpy.zeros(chances.shape, bool)
        likely[numpy.arange(len(other)), other] = True
        suspect = (chances.argmax(axis=1) != labels_given) | (right < 0.5)

    def candidate(row: int) -> Candidate:
        pair = None
        if not folds.several:
            pair = float(chances[row][given[row]][0]), float(chances[row][likely[row]][0])
        return Candidate(
            digest=table.digests[row],
            id=table.ids[row],
            part=part_of[table.ids[row]],
            fold=folds.fold_of.get(table.ids[row]),
            given=_label_text(folds, given[row]),
            likely=_label_text(folds, likely[row]),
            score=float(right[row]),
            chances=pair,
            likeliest=_likeliest(folds, chances[row]),
        )

    return [candidate(row) for row in numpy.flatnonzero(suspect).tolist()]


def _label_text(folds: FoldRuns, flags: NDArray[Any]) -> str:
    """The label of an image that has these classes, as fixes write it."""
    return SEPARATOR.join(folds.classes[k] for k in numpy.flatnonzero(flags)) or SEPARATOR


def _likeliest(folds: FoldRuns, chances: NDArray[Any]) -> tuple[tuple[str, float], ...]:
    order = numpy.argsort(-chances, kind="stable")[:CHANCES_SHOWN].tolist()
    return tuple((folds.classes[label], float(chances[label])) for label in order)


# --- What is shown beside them


def find_neighbours(
    folds: FoldRuns, overrides: Sequence[str], subset: Subset, shown: Sequence[Candidate]
) -> tuple[dict[str, list[int]], list[str]]:
    """The rows of the images that are nearest to each candidate, by its digest; and notes.

    They are nearest by the cosine of the last features of the model that did not see the candidate.
    Images of its own content are left out.
    """
    ids = [subset.dataset.ids[index] for index in subset.indices.tolist()]
    row_of = {name: row for row, name in enumerate(ids)}
    numbers = {digest: number for number, digest in enumerate({*folds.digest_of.values()})}
    contents = torch.tensor([numbers[folds.digest_of[name]] for name in ids])
    by_fold: dict[int, list[Candidate]] = {}
    for one in shown:  # of a test set, any model has not seen it: the first one looks
        by_fold.setdefault(min(folds.runs) if one.fold is None else one.fold, []).append(one)
    found: dict[str, list[int]] = {}
    for fold, wanted in sorted(by_fold.items()):
        run = folds.runs[fold]
        trained = load_with(config_for_use(run, overrides), run)
        rows = torch.tensor([row_of[one.id] for one in wanted])
        try:
            nearest = _nearest(trained, subset, rows, contents, f"neighbours, fold {fold}")
        except ValueError as error:
            return {}, [f"no neighbours: {error}"]
        found |= {one.digest: near for one, near in zip(wanted, nearest, strict=True)}
    return found, []


def _nearest(
    trained: TrainedModel, subset: Subset, rows: Tensor, contents: Tensor, what: str
) -> list[list[int]]:
    """The nearest rows of each of ``rows``; contents (N,): equal numbers, equal content."""

    def features(some: Tensor) -> Tensor:
        device, layout = trained.device, trained.channels_last
        images, _ = subset.batch(some, 0, device, layout)
        images = images[:, 4] if images.ndim == 5 else images  # the middle one of several crops
        with trained.precision.autocast():
            return normalize(penultimate(trained.model, images))

    asked = torch.cat([features(some) for some in torch.split(rows, AT_ONCE)])
    best = torch.full((len(rows), NEIGHBOURS_SHOWN), -2.0)
    at = torch.full((len(rows), NEIGHBOURS_SHOWN), -1)
    chunks = torch.split(torch.arange(len(subset)), AT_ONCE)
    for chunk in bar(chunks, what, len(chunks), unit="chunk"):
        likeness = asked @ features(chunk).T
        likeness[contents[rows][:, None] == contents[chunk]] = -2.0
        both = torch.cat([best, likeness], dim=1)
        places = torch.cat([at, chunk.expand(len(rows), -1)], dim=1)
        best, order = both.topk(NEIGHBOURS_SHOWN, dim=1)
        at = places.gather(1, order)
    near = zip(at.tolist(), (best > -2).tolist(), strict=True)
    return [[row for row, real in zip(*pair, strict=True) if real] for pair in near]


class _Cards:
    """Makes what the page shows of a candidate."""

    def __init__(self, folds: FoldRuns, subset: Subset, beside: Beside) -> None:
        self.folds, self.dataset, self.beside = folds, subset.dataset, beside
        self.indices = subset.indices.tolist()
        self.notes = [*beside.notes]
        self.index_of = {name: index for index, name in enumerate(self.dataset.ids)}
        self.with_content: dict[str, list[int]] = {}
        for name, digest in folds.digest_of.items():
            self.with_content.setdefault(digest, []).append(self.index_of[name])

    def card(self, one: Candidate) -> dict[str, Any]:
        """The values of a candidate that the template takes."""
        own = self.index_of[one.id]
        equal = [index for index in self.with_content[one.digest] if index != own]
        alike = [self.with_content[digest][0] for digest in self.beside.similar.get(one.digest, [])]
        copies = [("equal", index) for index in equal] + [("similar", index) for index in alike]
        near = [self.indices[row] for row in self.beside.neighbours.get(one.digest, [])]
        return {
            "own": self._picture(own, OWN_SIDE),
            "one": one,
            "neighbours": [self._small(index, one) for index in near],
            "copies": [self._small(i, one) | {"what": w} for w, i in copies[:COPIES_SHOWN]],
            "more": max(0, len(copies) - COPIES_SHOWN),
        }

    def _small(self, index: int, one: Candidate) -> dict[str, Any]:
        label = self.dataset.labels[index]
        flags = numpy.array(label) > 0.5 if isinstance(label, tuple) else numpy.zeros(0)
        name = _label_text(self.folds, flags) if len(flags) else self.folds.classes[int(label)]  # type: ignore[arg-type]
        says = "likely" if name == one.likely else "given" if name == one.given else "other"
        words = label_words(label, self.folds.classes)
        name = self.dataset.ids[index]
        picture = self._picture(index, BESIDE_SIDE)
        return {"picture": picture, "label": words, "says": says, "id": name, "what": ""}

    def _picture(self, index: int, side: int) -> dict[str, Any] | None:
        """A picture's URL and sizes; None if it cannot be read."""
        try:
            picture = to_picture(self.dataset.image(index))
        except BrokenImage as error:
            self.notes.append(f"{error.path}: {error.reason}")
            return None
        picture.thumbnail((side, side), reducing_gap=2.0)
        small = max(picture.size) <= CRISP_BELOW
        scale = side / max(picture.size)
        sizes = (round(picture.width * scale), round(picture.height * scale))
        return {"url": data_url(picture), "small": small, "width": sizes[0], "height": sizes[1]}


# --- The page


def clean_page(
    folds: FoldRuns,
    found: Cleaning,
    how: Options,
    cards: _Cards,
    old: Sequence[Mapping[str, str]],
) -> str:
    """The page as HTML. old: the rows of the fixes that the sweep used, which it hands on."""
    sections = [
        [cards.card(one) for one in some[: how.show]] for some in (found.candidates, found.of_test)
    ]
    ticked = [one["one"] for one in sections[0] + (sections[1] if how.with_test else [])]
    before = {row["sha256"]: row["label"] for row in old}
    data = {
        "header": header_of_fixes(old),
        "old": [dict(row) for row in old],
        "classes": list(folds.classes),
        "several": folds.several,
        "separator": SEPARATOR,
        "leaveOut": LEAVE_OUT,
        "candidates": [[one.digest, one.id, one.likely, note_of_fix(one.given)] for one in ticked],
    }
    script = CLEAN_TEMPLATE.with_name("clean.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = json.dumps(data).replace("<", "\\u003c")  # no tag ends within the data
    facts: dict[str, Any] = {
        "trial": f"t{folds.trial:03d} of {folds.sweep}",
        "judged": f"{found.judged:,} labels by {len(folds.runs)} models",
        "suspect": f"{len(found.candidates):,} labels, and {len(found.of_test):,} of test",
    }
    if old:
        facts["fixes"] = f"{len(old):,} rows of before, which the new file holds too"
    return render(
        CLEAN_TEMPLATE,
        title=folds.sweep.name,
        kind="clean labels",
        facts=facts,
        found=found,
        cards=sections,
        before=before,
        with_test=how.with_test,
        folds=folds,
        separator=SEPARATOR,
        notes=cards.notes,
        policy=Markup(f"; script-src 'sha256-{digest}'"),
        script=Markup(script),
        data=Markup(text),
    )
