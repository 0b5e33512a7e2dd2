"""Whether an exported model answers as the run's own does: the images to ask, and the verdict."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from datasets import DATASETS, DataError
from datasets.images import SUFFIXES
from trainer.config import Config
from trainer.disk import read_json
from trainer.errors import ConfigError
from trainer.evaluation import require_unchanged
from trainer.losses import probabilities
from trainer.parts import load_part
from trainer.signatures import parameters_of, resolve
from trainer.trained import Trained
from trainer.words import listed
from transforms.keyed import seed_of

TOLERANCE = 1e-5
MAX_IMAGES = 64  # of the run's test images, or of those that the user names

Items = TypeVar("Items", list[Path], list[str], Tensor)
ImagesToLogits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sample:
    """Inputs (N, C, H, W) float32 on the CPU, and what they are, in words."""

    inputs: Tensor
    source: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.inputs.shape[1:])

    def batches(self) -> list[Tensor]:
        """One, two and seven of them, and all; too few are taken again."""
        sizes = sorted({1, 2, 7, len(self.inputs)})
        return [self.inputs[torch.arange(size) % len(self.inputs)] for size in sizes]


@dataclass(frozen=True)
class Difference:
    """The greatest absolute differences, and the largest absolute logit of the original."""

    logits: float
    probabilities: float
    largest: float

    @property
    def is_small(self) -> bool:
        """Whether both are within TOLERANCE; of the logits, where they exceed 1, relative to them.

        A float32 has seven digits: two exact ways to sum up a logit of 100 may differ by 1e-5.
        """
        allowed = TOLERANCE * max(1.0, self.largest)
        return self.logits <= allowed and self.probabilities <= TOLERANCE  # False of NaN


def take_sample(trained: Trained, config: Config, images: Sequence[Path] | None) -> Sample:
    """The images named, or else the run's test images, or else noise, with a note that says so."""
    if images is not None:
        files = at_most_max_images([file for path in images for file in image_files(path)])
        if not files:
            raise DataError(f"--images: no images in {listed(images)}.")
        try:
            inputs = trained.inputs([trained.read(file) for file in files])
        except ValueError as error:
            raise DataError(f"--images: {error}.") from None
        source = f"{len(files)} images of --images"
    else:
        try:
            inputs = inputs_of_test_images(trained.run, config)
            source = f"{len(inputs)} test images of {config.dataset.name}"
        except (DataError, ConfigError) as error:
            note(" ".join(str(error).split()))
            note("only noise is compared; name real images with --images, or dataset.root=...")
            generator = torch.Generator().manual_seed(seed_of(config.seed, "export"))
            inputs = torch.randn(MAX_IMAGES, *trained.input_shape, generator=generator)
            source = f"{MAX_IMAGES} images of NOISE, no real ones"
    if inputs.ndim == 5:
        note(
            f"the run takes the mean over {inputs.shape[1]} crops of an image; the files take one "
            "crop as one image: give them all, and average the logits"
        )
        inputs = at_most_max_images(inputs.flatten(0, 1))
        source = f"{len(inputs)} crops of {source}"
    return Sample(inputs.contiguous(), source)


def image_files(path: Path) -> list[Path]:
    """The path itself, or the image files in and under that folder."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)


def inputs_of_test_images(run: Path, config: Config) -> Tensor:
    """Up to MAX_IMAGES of the test split, as the model sees them; nothing is fetched or drawn.

    Raises DataError or ConfigError where the dataset is absent or has changed.
    """
    split = read_json(run / "split.json")
    require_unchanged(run, split)
    names: list[str] = list(split["test"])
    known = parameters_of(resolve(DATASETS, config.dataset.name))
    offline = {name: False for name in ("download", "draw_if_absent") if name in known}
    arguments = config.dataset.arguments | offline
    dataset = config.dataset.model_copy(update={"arguments": arguments})
    part = {name: split["test"][name] for name in at_most_max_images(names)}
    config = config.model_copy(update={"dataset": dataset})
    rows = torch.arange(len(part))
    return load_part(config, part, torch.device("cpu"))[1].sample(rows)[0]


def at_most_max_images(items: Items) -> Items:
    """At most MAX_IMAGES of them, spread over all."""
    return items[:: max(1, -(-len(items) // MAX_IMAGES))]


def measure_difference(trained: Trained, other: ImagesToLogits, sample: Sample) -> Difference:
    """How far another model's answers are from those of the run's, over batches of several sizes.

    Raises ValueError where it answers with another shape.
    """
    logits, chances, largest = [], [], []
    for batch in sample.batches():
        expected, found = trained.logits(batch), other(batch)
        if found.shape != expected.shape:
            raise ValueError(f"it gives {tuple(found.shape)} for {tuple(batch.shape)}")
        loss = trained.config.loss.name
        logits.append((found - expected).abs().max())
        chances.append((probabilities(loss, found) - probabilities(loss, expected)).abs().max())
        largest.append(expected.abs().max())
    return Difference(*(float(torch.stack(v).max()) for v in (logits, chances, largest)))


def note(text: str) -> None:
    """Tell something beside the result."""
    print(f"note: {text}", file=sys.stderr)
