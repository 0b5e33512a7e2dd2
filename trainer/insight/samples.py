"""Some images of a split, as pictures to look at, and the mistakes of a report."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import torch
from PIL import Image
from torch import Tensor

from datasets import BrokenImage, DataError
from trainer.components.decisions import Answers, decided
from trainer.drawing.fonts import drawable
from trainer.drawing.pictures import to_picture
from trainer.input.subset import Subset, decoded
from transforms.own import Normalize
from transforms.pipeline import Pipeline

NUM_SHOWN = 16  # mistakes
THUMBNAIL = 320  # largest side of a mistake's picture, in pixels


def spread(count: int, most: int) -> Tensor:
    """Return at most ``most`` of 0..count-1, evenly spaced, because files are sorted by class."""
    if count <= most:
        return torch.arange(count)
    return torch.arange(most) * count // most


def one_crop(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) as they are, or the first crop of each of (B, crops, C, H, W)."""
    return images if images.ndim == 4 else images.flatten(1, -4)[:, 0]


def original_image(subset: Subset, row: int, at_least: int = 0) -> Tensor:
    """Return an image of a split as the dataset gives it: (C, H, W) uint8.

    at_least: pixels of the shorter side that are needed, 0 for all; fewer may be decoded.
    If it is broken, and ``on_broken`` is skip, it is the next one that is not, as in training.
    """
    for one in chain(range(row, len(subset)), range(row)):
        try:
            return decoded(subset.dataset, int(subset.indices[one]), at_least)
        except BrokenImage:
            if subset.dataset.on_broken == "error":
                raise
    raise DataError("no image of this split can be read")


def original_images(subset: Subset, rows: Sequence[int], at_least: int) -> list[Tensor]:
    """Return ``original_image`` of each row, by threads: decoding releases the GIL."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(lambda row: original_image(subset, row, at_least), rows))


def stored_image(subset: Subset, row: int) -> Tensor:
    """Return an image of a split from the cache, else from the dataset: (C, H, W) uint8."""
    if subset.images is None:
        return original_image(subset, row)
    image = subset.images[row].cpu()
    return image if image.ndim == 3 else image.flatten(0, -4)[0]


def as_pictures(pipeline: Pipeline, inputs: Tensor) -> Tensor:
    """Return a model's inputs (B, C, H, W) float as uint8 pictures, with Normalize undone.

    If values are then outside 0-1, the range is stretched to 0-1. Of images with more than 3
    channels, the first three are returned, of 2 the first.
    """
    images = inputs
    for transform in reversed((*pipeline.fixed, *pipeline.rest)):
        if isinstance(transform, Normalize):
            images = (images * transform.std.to(images.device)).add_(
                transform.mean.to(images.device)
            )
            break
    low, high = images.aminmax()
    if low < -0.01 or high > 1.01:
        images = (images - low) / (high - low)
    images = images[:, : 3 if images.shape[1] > 2 else 1]
    return (images * 255).round_().clamp_(0, 255).byte()


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


def rows_to_show(answers: Answers) -> tuple[list[int], int]:
    """Rows of the most certain mistakes (else of the least certain images); number of mistakes."""
    confidence, predicted = answers.probabilities.max(dim=1)
    if answers.labels.ndim == 1:
        is_wrong = predicted != answers.labels
    else:  # how far the furthest label is from what it should be
        has = answers.labels > 0.5
        is_wrong = (decided(answers.probabilities, answers.thresholds) != has).any(dim=1)
        error = (answers.probabilities - has.float()).abs().amax(dim=1)
        confidence = torch.where(is_wrong, error, 1 - error)
    wrong = is_wrong.nonzero().flatten()
    if len(wrong):
        order = confidence[wrong].argsort(descending=True, stable=True)[:NUM_SHOWN]
        rows: list[int] = wrong[order].tolist()
    else:
        rows = confidence.argsort(stable=True)[:NUM_SHOWN].tolist()
    return rows, len(wrong)


def shown_image(
    answers: Answers,
    classes: Sequence[str],
    name: str,
    i: int,
    picture_of: Callable[[int], Tensor] | None,
) -> ReportImage:
    """Test image ``i``, its true and its predicted classes; picture_of(i) may raise."""
    labels, probabilities = answers.labels, answers.probabilities[i]
    picture, fault = None, "no picture was given"
    if picture_of:
        try:
            picture, fault = to_picture(picture_of(i)), ""
            if max(picture.size) > THUMBNAIL:
                picture.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=1.5)
        except Exception as error:  # the report is useful without this picture
            fault = f"cannot be shown: {error or type(error).__name__}"
    chosen, wanted = probabilities.argmax()[None], labels[i][None]
    if labels.ndim == 2:
        flags = decided(probabilities[None], answers.thresholds)[0]
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
        name=name,
        true=true,
        predicted=predicted,
        of_predicted=shares[1],
        of_true=shares[0],
        picture=picture,
        caption=caption,
        fault=fault,
    )
