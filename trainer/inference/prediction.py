"""Predicts images with a trained model: reads in threads, computes in batches; label sets."""

import hashlib
import math
import os
import shlex
import statistics
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import tee
from threading import Lock
from typing import NamedTuple, TypeVar

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from datasets import BrokenImage
from datasets.images import read_file
from datasets.words import counted
from trainer.build.trained import TrainedModel
from trainer.comparing.predictions import PREDICTIONS, SEPARATOR, Predictions, read_predictions
from trainer.components import SCORES
from trainer.components.calibration import tempered
from trainer.components.label_sets import measure_sets, sets_of
from trainer.components.novelty import Embedding, last_layer, split_scores
from trainer.drawing.pictures import to_picture
from trainer.input.data import build_pipelines
from trainer.insight.findings import lowest_in_words, sets_by_class, sets_in_words
from trainer.process.errors import (
    NO_ANSWER,
    ComponentError,
    RunError,
    UsageError,
    component_place,
    with_cause,
)
from trainer.process.words import listed
from trainer.run.best import require_done
from trainer.run.disk import MAX_SPLIT, read_json
from trainer.run.known import Rejection, read_known, rejection_of
from transforms import is_fixed
from transforms.batched import predecessors
from transforms.keyed import seed_of
from transforms.pipeline import Pipeline
from transforms.views import TTA

MAX_SHEET = 100  # pictures on a sheet
SHEET_THUMBNAIL = 160  # longest side in pixels
LIKE = 0.01  # of a mean loss: by so much, relatively, two machines may differ
BATCH_SIZE = 32  # views of images: fits the largest model on a laptop

Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Prediction:
    """An image's prediction: (K,) probabilities, or the reason why there are none.

    The probabilities are calibrated, if the run has a temperature; raw (K,) are those that decide.
    path: its file, or another name. predicted: the predicted class; or, if ``has_several``, the
    labels, the likeliest first.
    label_set: the classes of its label set, the likeliest first; None if there are no label sets.
    digest: the SHA-256 of the file's content. more: the texts of a table's further columns.
    score: how unlike known images it is; is_unknown: whether that is too much. None, False if
    nothing is rejected. features: (F,) float32, the last layer's input, if asked for.
    """

    path: str
    probabilities: Tensor | None = None
    reason: str = ""
    thumbnail: Image.Image | None = None
    predicted: tuple[int, ...] = ()
    has_several: bool = False
    digest: str = ""
    more: tuple[str, ...] = ()
    raw: Tensor | None = None
    label_set: tuple[int, ...] | None = None
    score: float | None = None
    is_unknown: bool = False
    features: Tensor | None = None


class Also(NamedTuple):
    """What is computed of an image besides its probabilities.

    rejection: says which images are unknown. layer: the name of the layer whose input is kept as
    ``Prediction.features``; see ``layer_of_features``.
    """

    rejection: Rejection | None = None
    layer: str | None = None

    def through(self, model: nn.Module) -> nn.Module | None:
        """What is called instead of the model, if it has more to give than logits."""
        inner = None if self.rejection is None else self.rejection.model
        return inner if self.layer is None else Embedding(inner or model, self.layer)


NOTHING_ELSE = Also()


@dataclass(frozen=True)
class _Views:
    """An image's inputs (1, [crops,] C, H, W), and random draws of it (N, C, H, W)."""

    path: str
    inputs: Tensor
    draws: Tensor | None
    thumbnail: Image.Image | None
    digest: str


class Decoded(NamedTuple):
    """An image as the run's dataset would give it: (C, H, W), uint8 or uint16; its Remark.

    digest: the SHA-256 of its file's content; empty if there is no file.
    """

    image: Tensor
    remark: int
    digest: str = ""


class Readable(NamedTuple):
    """An image to predict: its name, for messages, and what reads it as a run's images are.

    ``read`` is called in a thread. It raises BrokenImage or ValueError for what cannot be used.
    """

    name: str
    read: Callable[[TrainedModel], Decoded]


def file_source(path: str) -> Readable:
    """The image in a file."""
    return Readable(path, lambda trained: decoded_file(trained, read_file(path), path))


def decoded_file(trained: TrainedModel, content: bytes, path: str) -> Decoded:
    """The image in a file's bytes. Raises BrokenImage."""
    image, remark = trained.decode(content, path)
    return Decoded(image, remark, hashlib.sha256(content).hexdigest())


def predict_images(
    trained: TrainedModel,
    sources: Iterable[Readable],
    *,
    batch_size: int | None = None,
    tta: int | str | None = None,
    thumbnails: int = 0,
    also: Also = NOTHING_ELSE,
) -> Generator[Prediction, None, None]:
    """Yield a Prediction for each image, in order. Memory does not grow with their number.

    tta: the logits are the mean over ``views`` by this name (None: as evaluation.tta says, "none":
    of the image alone), or the probabilities are the mean over the image and tta - 1 random draws
    of the run's training transforms without those that mix images.
    The draws are a function of the run's seed and the image's pixels. thumbnails: the number of
    predictions with a small picture. also: what else is computed; of several draws, of the image
    itself. Raises UsageError if tta needs draws and nothing is random.
    """
    tta = trained.config.evaluation.tta if tta is None else tta
    count = tta - 1 if isinstance(tta, int) else 0
    named = tta if tta in TTA else None
    augment = augmentation(trained) if count else None
    one_at_a_time = Lock()  # some transforms use the process's one generator

    def read(numbered: tuple[int, Readable]) -> _Views | Prediction:
        number, (name, read_as) = numbered
        try:
            image, remark, digest = read_as(trained)
            inputs, draws = trained.inputs([image]), None
            if augment:
                with one_at_a_time:
                    draws = draw_views(augment, image, count).to(trained.device)
                if draws.shape[1:] != trained.input_shape:
                    raise ValueError("the run's training transforms leave another size of it")
        except (BrokenImage, ValueError) as error:
            if component_place(error):
                raise ComponentError(f"{name}: {with_cause(error)}") from error
            return Prediction(
                name, reason=error.reason if isinstance(error, BrokenImage) else str(error)
            )
        trained.remarks.append(remark)
        thumbnail = None
        if number < thumbnails:
            thumbnail = to_picture(image)
            thumbnail.thumbnail((SHEET_THUMBNAIL, SHEET_THUMBNAIL))
        return _Views(name, inputs, draws, thumbnail, digest)

    at_once = batch_size or trained.config.loader.eval_batch_size or BATCH_SIZE
    size = max(1, at_once // (count + 1))
    waiting: list[_Views | Prediction] = []
    with closing(map_in_order(read, enumerate(sources))) as results:
        for result in results:
            waiting.append(result)
            if len(waiting) == size:
                yield from _predicted(trained, waiting, named, also)
                waiting = []
    if waiting:
        yield from _predicted(trained, waiting, named, also)


def choose_rejection(
    trained: TrainedModel, level: Fraction, score: str | None = None, tta: int | str | None = None
) -> Rejection:
    """What the run's model rejects if it keeps ``level`` of known images; tta: see above.

    Raises UsageError or RunError, as ``read_known`` and ``rejection_of`` do.
    """
    if trained.thresholds is not None:
        raise UsageError(
            "--reject: an image of this run may have several labels, or none, which is another "
            "answer than unknown; the probabilities tell which labels are unlikely."
        )
    known = read_known(trained.run, trained.digest)
    tta = trained.config.evaluation.tta if tta is None else tta
    named = tta if isinstance(tta, str) else None
    return rejection_of(known, trained.model, level, score or SCORES[0], named)


def layer_of_features(trained: TrainedModel) -> str:
    """The name of the last layer, whose input are the features. RunError if there is none."""
    images = torch.zeros(2, *trained.input_shape, device=trained.device)
    try:
        with torch.inference_mode(), trained.precision.autocast():
            return last_layer(trained.model, images, len(trained.classes))
    except ValueError as error:
        raise RunError(f"--embeddings: {error}.") from None


def predict_as_one(
    models: Sequence[TrainedModel],
    sources: Iterable[Readable],
    *,
    batch_size: int | None = None,
    tta: int | str | None = None,
    thumbnails: int = 0,
) -> Generator[Prediction, None, None]:
    """``predict_images`` of several models at once: the mean of their probabilities.

    Each model reads the images by its own transforms and settings. Classes are matched by name, and
    stand in the order of the first model's. An image that one model cannot use has its reason. The
    threshold of each of several labels is the mean of the models'. Probabilities are raw: a
    temperature of a model's own does not fit the mean.
    """
    models = [replace(one, calibration=None) for one in models]
    joint = replace(models[0], thresholds=thresholds_of(models))
    orders = [order_in(one, joint.classes) for one in models]
    with ExitStack() as held:
        each: list[Generator[Prediction, None, None]] = []
        for one, given in zip(models, tee(sources, len(models)), strict=True):
            shown = 0 if each else thumbnails
            its = predict_images(one, given, batch_size=batch_size, tta=tta, thumbnails=shown)
            each.append(held.enter_context(closing(its)))
        for answers in zip(*each, strict=True):
            yield _answer_as_one(joint, orders, answers)


def _answer_as_one(
    joint: TrainedModel, orders: Sequence[tuple[int, ...] | None], answers: Sequence[Prediction]
) -> Prediction:
    chances = []
    for one, order in zip(answers, orders, strict=True):
        if one.probabilities is None:
            return one
        chances.append(one.probabilities if order is None else one.probabilities[list(order)])
    mean = torch.stack(chances).mean(dim=0)
    return replace(answers[0], probabilities=mean, raw=mean, predicted=joint.predicted(mean))


def require_same_classes(models: Sequence[TrainedModel]) -> None:
    """Raise RunError unless the models choose among the same classes, one or several of them."""
    first = models[0]
    for other in models[1:]:
        if lacking := {*first.classes} ^ {*other.classes}:
            names = listed(sorted(map(repr, lacking))[:10])
            what = f"only one of them has {counted(len(lacking), 'class')}: {names}"
        elif (first.thresholds is None) != (other.thresholds is None):
            what = "one gives an image one class, the other several labels"
        else:
            continue
        raise RunError(f"{first.run} and {other.run} cannot answer as one: {what}.")


def order_in(other: TrainedModel, classes: Sequence[str]) -> tuple[int, ...] | None:
    """The number of each of ``classes`` in the output of ``other``; None if it is the same."""
    order = tuple(other.classes.index(name) for name in classes)
    return None if order == tuple(range(len(classes))) else order


def thresholds_of(members: Sequence[TrainedModel]) -> Tensor | None:
    """The mean of the members' thresholds for several labels, until val gives better ones."""
    found = []
    for one in members:
        if one.thresholds is None:
            return None
        order = order_in(one, members[0].classes)
        found.append(one.thresholds if order is None else one.thresholds[list(order)])
    return torch.stack(found).mean(dim=0)


def _predicted(
    trained: TrainedModel,
    waiting: Sequence[_Views | Prediction],
    tta: str | None,
    also: Also,
) -> Iterator[Prediction]:
    """Yield a Prediction for each waiting item; the images are one batch."""
    views = [item for item in waiting if isinstance(item, _Views)]
    rows: Iterator[tuple[Tensor, Tensor, float | None, Tensor | None]] = iter(())
    if views:
        rows = _scored(trained, views, tta, also)
    for item in waiting:
        if isinstance(item, Prediction):
            yield item
            continue
        raw, chances, score, features = next(rows)
        if raw.isfinite().all():
            yield Prediction(
                item.path,
                chances,
                thumbnail=item.thumbnail,
                predicted=trained.predicted(raw),
                raw=raw,
                has_several=trained.thresholds is not None,
                digest=item.digest,
                score=score,
                is_unknown=also.rejection is not None and also.rejection.rejects(score),
                features=features,
            )
        else:
            yield Prediction(item.path, reason=f"{NO_ANSWER} for it")


def _scored(
    trained: TrainedModel, views: Sequence[_Views], tta: str | None, also: Also
) -> Iterator[tuple[Tensor, Tensor, float | None, Tensor | None]]:
    """Yield raw and calibrated probabilities (K,) of each image, its score and its features."""
    inputs = torch.cat([item.inputs for item in views])
    logits = trained.logits(inputs, tta, also.through(trained.model)).cpu()
    features: Sequence[Tensor | None] = [None] * len(views)
    scores: list[float | None] = [None] * len(views)
    if also.layer is not None:
        width = len(trained.classes) + len(SCORES) * (also.rejection is not None)
        logits, features = logits[:, :width], list(logits[:, width:])
    if also.rejection is not None:
        logits, found = split_scores(logits)
        scores = also.rejection.of(found).tolist()
    yield from zip(*_probabilities(trained, logits, views), scores, features, strict=True)


def _probabilities(
    trained: TrainedModel, logits: Tensor, views: Sequence[_Views]
) -> tuple[Tensor, Tensor]:
    """Raw and calibrated probabilities of images: (B, K) each, means over their draws."""
    draws = [item.draws for item in views if item.draws is not None]
    drawn = trained.logits(torch.cat(draws)).cpu() if draws else None

    def mean(temperature: float | None) -> Tensor:
        total, count = trained.chances(logits, temperature), 1
        if drawn is not None:
            more = trained.chances(drawn, temperature).view(len(views), -1, total.shape[1])
            total, count = total + more.sum(dim=1), 1 + more.shape[1]
        return total / count

    raw = mean(None)
    if trained.thresholds is not None:  # of several labels, the logits are divided
        return raw, mean(trained.temperature) if trained.temperature else raw
    return raw, tempered(raw, trained.temperature)


def augmentation(trained: TrainedModel) -> Pipeline:
    """Return those training transforms that need one image only; UsageError if none is random."""
    full = build_pipelines(trained.config, len(trained.classes))["train"]
    kept = [step for step in (*full.fixed, *full.rest) if not predecessors(step)]
    if all(map(is_fixed, kept)):
        raise UsageError(
            "--tta: this run's training transforms draw nothing at random for one image; "
            "use --tta flip, or leave it out."
        )
    return Pipeline(kept, trained.config.seed)


def draw_views(pipeline: Pipeline, image: Tensor, count: int) -> Tensor:
    """Return random views (count, C, H, W) float32 of an image (C, H, W) uint8; it seeds them."""
    pixels = hashlib.sha256(image.numpy().tobytes()).hexdigest()
    numbers = torch.tensor([seed_of("view", pixels, number) for number in range(count)])
    images = pipeline.prepare(image).expand(count, -1, -1, -1).contiguous()
    return pipeline(images, torch.zeros(count, dtype=torch.int64), numbers, 0)[0]


def map_in_order(
    function: Callable[[Input], Output], items: Iterable[Input]
) -> Generator[Output, None, None]:
    """Yield ``function(item)`` in order; threads compute it a few items ahead."""
    workers = min(os.cpu_count() or 1, 16)
    pool = ThreadPoolExecutor(workers)
    running: deque[Future[Output]] = deque()
    try:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class LabelSets(NamedTuple):
    """The probability from which on a class is in a set, and what is told of such sets."""

    threshold: float
    notes: list[str]


def label_sets_of(trained: TrainedModel, level: Fraction, tta: int | str | None) -> LabelSets:
    """Label sets that have the true class with a probability of at least ``level``.

    tta: None for the run's own, which alone is possible. Raises UsageError if there are too few val
    images or an image may have several labels, RunError if the run is not done or predictions.csv
    is not usable.
    """
    run, what = trained.run, f"--sets {float(level):g}"
    if trained.thresholds is not None:
        raise UsageError(f"{what}: an image of this run may have several labels; sets are for one.")
    require_done(run, f"{what} needs what the best weights answer on val")
    had = read_json(run / "result.json").get("tta")
    asked = trained.config.evaluation.tta if tta is None else tta
    if (None if asked == "none" else asked) != had:
        raise UsageError(f"{what}: val was answered with tta {had or 'none'}; leave out --tta.")
    table = own_table(trained)
    (_, *val), (raw, *test) = (_part(trained, table.of_part(name)) for name in ("val", "test"))
    try:
        threshold, coverage = measure_sets((val[0], val[1]), (test[0], test[1]), raw, level)
    except ValueError as few:
        more = "A new run may give val more images (split.ratios); or ask for less"
        raise UsageError(f"{what}: {few}. {more}.") from None
    if not sum(coverage.images):  # such as of combined runs without common test images
        return LabelSets(threshold, ["no test images: how often sets are right is not known"])
    rows = sets_by_class(coverage, trained.classes)
    return LabelSets(threshold, [sets_in_words(level, coverage), lowest_in_words(rows)])


def own_table(trained: TrainedModel) -> Predictions:
    """A run's predictions.csv. Raises RunError if it is not what its best weights answer.

    It has each image of split.json once, in that order, and the means of its losses are those of
    result.json: nearly, as another machine may have written it.
    """
    run = trained.run
    table = read_predictions(run / PREDICTIONS)
    split, result = read_json(run / "split.json", MAX_SPLIT), read_json(run / "result.json")
    if table.classes != trained.classes:
        raise RunError(f"{run / PREDICTIONS} has other classes than model.json.")
    is_own = bool(numpy.isfinite(table.probabilities).all())
    for part in ("val", "test"):
        rows = table.of_part(part)
        is_own = is_own and rows.ids == list(split[part])
        told = (result.get(part) or {}).get("loss")
        if is_own and rows.ids and told is not None:
            is_own = math.isclose(statistics.fmean(rows.losses), told, rel_tol=LIKE)
    if not is_own:
        command = f"python -m trainer.evaluate {shlex.quote(str(run))} --predictions"
        raise RunError(
            f"{run / PREDICTIONS} is not what this run's weights answer: it was cut or changed, or "
            f"is another run's. Move it away; this makes it anew: {command}"
        )
    return table


def _part(trained: TrainedModel, table: Predictions) -> tuple[Tensor, Tensor, Tensor]:
    """Raw and calibrated probabilities (N, K), and labels (N,), of a part's images."""
    numbers = {name: label for label, name in enumerate(table.classes)}
    try:
        labels = torch.tensor([numbers[name] for name in table.true], dtype=torch.int64)
    except KeyError as error:
        raise RunError(f"{trained.run / PREDICTIONS}: {error} is no class of the run.") from None
    raw = torch.from_numpy(table.probabilities)
    return raw, tempered(raw, trained.temperature), labels


def with_sets(
    predictions: Iterable[Prediction], threshold: float, classes: Sequence[str]
) -> Iterator[Prediction]:
    """Yield each prediction with its label set; in a table, the set is a further column."""
    for one in predictions:
        if one.probabilities is None:
            yield one
            continue
        chances, predicted = one.probabilities[None], torch.tensor(one.predicted[:1])
        found = sets_of(chances, threshold, predicted)[0]
        order = one.probabilities.argsort(descending=True, stable=True).tolist()
        label_set = tuple(label for label in order if found[label])
        named = SEPARATOR.join(classes[label] for label in sorted(label_set))
        yield replace(one, label_set=label_set, more=(*one.more, named))
