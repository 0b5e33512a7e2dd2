"""Predicts image files with a trained model: reads in threads, computes in batches."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from threading import Lock
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from datasets import BrokenImage
from datasets.images import read_file
from trainer.build.trained import TrainedModel
from trainer.components import SCORES
from trainer.components.novelty import split_scores
from trainer.drawing.pictures import to_picture
from trainer.input.data import build_pipelines
from trainer.process.errors import (
    NO_ANSWER,
    ComponentError,
    UsageError,
    component_place,
    with_cause,
)
from trainer.run.known import Rejection, read_known, rejection_of
from transforms import RANDOM
from transforms.batched import predecessors
from transforms.keyed import seed_of
from transforms.pipeline import Pipeline
from transforms.views import TTA

MAX_SHEET = 100  # pictures on a sheet
SHEET_THUMBNAIL = 160  # longest side in pixels
BATCH_SIZE = 32  # views of images: fits the largest model on a laptop

Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Prediction:
    """A file's prediction: (K,) probabilities, or the reason why there are none.

    predicted: the predicted class; or, if ``has_several``, the labels, the likeliest first.
    digest: the SHA-256 of the file's content. more: the texts of a table's further columns.
    score: how unlike known images it is; is_unknown: whether that is too much. None, False if
    nothing is rejected.
    """

    path: str
    probabilities: Tensor | None = None
    reason: str = ""
    thumbnail: Image.Image | None = None
    predicted: tuple[int, ...] = ()
    has_several: bool = False
    digest: str = ""
    more: tuple[str, ...] = ()
    score: float | None = None
    is_unknown: bool = False


@dataclass(frozen=True)
class _Views:
    """A file's inputs (1, [crops,] C, H, W), and random draws of it (N, C, H, W)."""

    path: str
    inputs: Tensor
    draws: Tensor | None
    thumbnail: Image.Image | None
    digest: str


def predict_files(
    trained: TrainedModel,
    paths: Sequence[str],
    *,
    batch_size: int | None = None,
    tta: int | str | None = None,
    thumbnails: int = 0,
    rejection: Rejection | None = None,
) -> Generator[Prediction, None, None]:
    """Yield a Prediction for each path, in order. Memory does not grow with the number of paths.

    tta: the logits are the mean over ``views`` by this name (None: as evaluation.tta says, "none":
    of the image alone), or the probabilities are the mean over the image and tta - 1 random draws
    of the run's training transforms without those that mix images.
    The draws are a function of the run's seed and the image's pixels. thumbnails: the number of
    predictions with a small picture. rejection: says which images are unknown; of several draws
    the image itself decides. Raises UsageError if tta needs draws and nothing is random.
    """
    tta = trained.config.evaluation.tta if tta is None else tta
    count = tta - 1 if isinstance(tta, int) else 0
    named = tta if tta in TTA else None
    augment = augmentation(trained) if count else None
    one_at_a_time = Lock()  # some transforms use the process's one generator
    with_thumbnail = set(paths[:thumbnails])

    def read(path: str) -> _Views | Prediction:
        try:
            content = read_file(path)
            image, remark = trained.decode(content, path)
            inputs, draws = trained.inputs([image]), None
            if augment:
                with one_at_a_time:
                    draws = draw_views(augment, image, count).to(trained.device)
                if draws.shape[1:] != trained.input_shape:
                    raise ValueError("the run's training transforms leave another size of it")
        except (BrokenImage, ValueError) as error:
            if component_place(error):
                raise ComponentError(f"{path}: {with_cause(error)}") from error
            return Prediction(
                path, reason=error.reason if isinstance(error, BrokenImage) else str(error)
            )
        trained.remarks.append(remark)
        thumbnail = None
        if path in with_thumbnail:
            thumbnail = to_picture(image)
            thumbnail.thumbnail((SHEET_THUMBNAIL, SHEET_THUMBNAIL))
        return _Views(path, inputs, draws, thumbnail, hashlib.sha256(content).hexdigest())

    at_once = batch_size or trained.config.loader.eval_batch_size or BATCH_SIZE
    size = max(1, at_once // (count + 1))
    waiting: list[_Views | Prediction] = []
    with closing(map_in_order(read, paths)) as results:
        for result in results:
            waiting.append(result)
            if len(waiting) == size:
                yield from _predicted(trained, waiting, named, rejection)
                waiting = []
    if waiting:
        yield from _predicted(trained, waiting, named, rejection)


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


def _predicted(
    trained: TrainedModel,
    waiting: Sequence[_Views | Prediction],
    tta: str | None,
    rejection: Rejection | None,
) -> Iterator[Prediction]:
    """Yield a Prediction for each waiting item; the images are one batch."""
    views = [item for item in waiting if isinstance(item, _Views)]
    rows: Iterator[Tensor] = iter(())
    scores: Iterator[float] = iter(())
    if views:
        inputs = torch.cat([item.inputs for item in views])
        logits = trained.logits(inputs, tta, None if rejection is None else rejection.model).cpu()
        if rejection is not None:
            logits, found = split_scores(logits)
            scores = iter(rejection.of(found).tolist())
        total, count = trained.chances(logits), 1
        draws = [item.draws for item in views if item.draws is not None]
        if draws:
            drawn = trained.probabilities(torch.cat(draws)).view(len(views), -1, total.shape[1])
            total, count = total + drawn.sum(dim=1), 1 + drawn.shape[1]
        rows = iter(total / count)
    for item in waiting:
        if isinstance(item, Prediction):
            yield item
            continue
        chances, score = next(rows), next(scores, None)
        if chances.isfinite().all():
            yield Prediction(
                item.path,
                chances,
                thumbnail=item.thumbnail,
                predicted=trained.predicted(chances),
                has_several=trained.thresholds is not None,
                digest=item.digest,
                score=score,
                is_unknown=rejection is not None and rejection.rejects(score),
            )
        else:
            yield Prediction(item.path, reason=f"{NO_ANSWER} for it")


def augmentation(trained: TrainedModel) -> Pipeline:
    """Return those training transforms that need one image only; UsageError if none is random."""
    full = build_pipelines(trained.config, len(trained.classes))["train"]
    kept = [step for step in (*full.fixed, *full.rest) if not predecessors(step)]
    if not any(type(step).__name__ in RANDOM for step in kept):
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
