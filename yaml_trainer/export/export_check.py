"""Checks whether an exported model gives the outputs of the run's model, on test inputs."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from datasets import DATASETS, DataError
from datasets.walk import walk
from trainer.build.trained import TrainedModel
from trainer.components.novelty import split_scores
from trainer.config import Config
from trainer.config.construct import factory_of
from trainer.config.signatures import parameters_of
from trainer.inference.evaluation import require_unchanged
from trainer.input.data import load_subset
from trainer.process.errors import ConfigError, component_place
from trainer.process.words import listed
from trainer.run.disk import MAX_SPLIT, read_json
from trainer.run.known import Rejection
from transforms.keyed import seed_of

TOLERANCE = 1e-5
SCORE_TOLERANCE = 1e-3  # of ``unknown``, whose distance weighs small differences of features
MAX_IMAGES = 64  # of the run's test images, or of the user's

Items = TypeVar("Items", list[Path], list[str], Tensor)
Network = Callable[[Tensor], Tensor | Sequence[Tensor]]  # logits, or logits and ``unknown``


@dataclass(frozen=True)
class Sample:
    """Inputs (N, C, H, W) float32 on the CPU, and a phrase that says where they are from.

    rejection: the model that is tried has its second output, ``unknown``.
    """

    inputs: Tensor
    source: str
    rejection: Rejection | None = None

    def batches(self) -> list[Tensor]:
        """Return batches of one, two, seven and all inputs; inputs repeat if there are too few."""
        sizes = sorted({1, 2, 7, len(self.inputs)})
        return [self.inputs[torch.arange(size) % len(self.inputs)] for size in sizes]


@dataclass(frozen=True)
class Difference:
    """The greatest absolute differences, and the largest absolute logit of the run's model.

    unknown: that of the second output, relative to the largest score if above 1; None without one.
    """

    logits: float
    probabilities: float
    largest: float
    unknown: float | None = None

    @property
    def is_small(self) -> bool:
        """Whether logits and probabilities differ by at most TOLERANCE, unknown by SCORE_TOLERANCE.

        A logit's is relative to ``largest`` if that is above 1.
        """
        # A float32 has seven digits: a logit of 100, summed in another order, may differ by 1e-5.
        allowed = TOLERANCE * max(1.0, self.largest)
        is_known = self.unknown is None or self.unknown <= SCORE_TOLERANCE
        return is_known and self.logits <= allowed and self.probabilities <= TOLERANCE  # not NaN

    @property
    def in_words(self) -> str:
        """What differs, and by how much it may."""
        told = f"{self.logits:.1e} in the logits (of up to {self.largest:.3g}) and "
        told += f"{self.probabilities:.1e} in the probabilities; {TOLERANCE:.0e} is allowed"
        if self.unknown is None:
            return told
        return f"{told}, and {self.unknown:.1e} in unknown; {SCORE_TOLERANCE:.0e} is allowed"


def take_sample(trained: TrainedModel, config: Config, images: Sequence[Path] | None) -> Sample:
    """Return inputs from ``images``, else from the run's test images, else noise with a note."""
    if images is not None:
        more = trained.form.suffixes
        files = at_most_max_images([file for path in images for file in image_files(path, more)])
        if not files:
            raise DataError(f"--images: no images in {listed(images)}.")
        try:
            inputs = trained.inputs([trained.read(file) for file in files])
        except ValueError as error:
            if component_place(error):
                raise
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
            "crop as one image: give them all, and average the logits, as the programs beside them "
            "do; --with-preprocessing makes files that do"
        )
        inputs = at_most_max_images(inputs.flatten(0, 1))
        source = f"{len(inputs)} crops of {source}"
    return Sample(inputs.contiguous(), source)


def image_files(path: Path, more: frozenset[str] = frozenset()) -> list[Path]:
    """Return the path itself, or, for a folder, the image files in and below it.

    more: suffixes beside the usual ones.
    """
    if not path.is_dir():
        return [path]
    return sorted(map(Path, walk(str(path), more).images))


def inputs_of_test_images(run: Path, config: Config) -> Tensor:
    """Return up to MAX_IMAGES of the test split as the model's inputs.

    No dataset is downloaded or drawn. Raises DataError or ConfigError if it is absent or changed.
    """
    chosen, config = test_images_of(run, config)
    rows = torch.arange(len(chosen))
    return load_subset(config, chosen, torch.device("cpu"))[1].sample(rows)[0]


def test_images_of(run: Path, config: Config) -> tuple[dict[str, str], Config]:
    """Up to MAX_IMAGES images of the test split, and a configuration that downloads no dataset.

    Raises DataError if there are none, or if split.json was changed.
    """
    split = read_json(run / "split.json", MAX_SPLIT)
    require_unchanged(run, split)
    names: list[str] = list(split["test"])
    if not names:
        raise DataError(f"{run} has no test images")
    chosen = {name: split["test"][name] for name in at_most_max_images(names)}
    return chosen, offline(config)


def offline(config: Config) -> Config:
    """The config with a dataset that is neither downloaded nor drawn."""
    known = parameters_of(factory_of(DATASETS, config.dataset))
    never = {name: False for name in ("download", "draw_if_absent") if name in known}
    arguments = config.dataset.arguments | never
    dataset = config.dataset.model_copy(update={"arguments": arguments})
    return config.model_copy(update={"dataset": dataset})


def at_most_max_images(items: Items) -> Items:
    """Return at most MAX_IMAGES items, spread evenly over all."""
    return items[:: max(1, -(-len(items) // MAX_IMAGES))]


def deviation(trained: TrainedModel, other: Network, sample: Sample) -> Difference:
    """Compare another model's outputs with the run's; raises ValueError if their shapes differ."""
    chances_of = partial(trained.chances, temperature=trained.temperature)
    logits, chances, largest, unknown = [], [], [], list[Tensor]()
    for batch in sample.batches():
        expected, given = trained.logits(batch), other(batch)
        found, *more = [given] if isinstance(given, Tensor) else given
        if (rejection := sample.rejection) is not None:
            scores = rejection.of(split_scores(trained.logits(batch, None, rejection.model))[1])
            apart = (more[0] - (scores - rejection.threshold)).abs().max()
            unknown.append(apart / scores.abs().max().clamp_min(1))
        if found.shape != expected.shape:
            raise ValueError(f"it gives {tuple(found.shape)} for {tuple(batch.shape)}")
        logits.append((found - expected).abs().max())
        chances.append((chances_of(found) - chances_of(expected)).abs().max())
        largest.append(expected.abs().max())
    return Difference(
        logits=float(torch.stack(logits).max()),
        probabilities=float(torch.stack(chances).max()),
        largest=float(torch.stack(largest).max()),
        unknown=float(torch.stack(unknown).max()) if unknown else None,
    )


def note(text: str) -> None:
    """Print a note on stderr."""
    print(f"note    {text}", file=sys.stderr)
