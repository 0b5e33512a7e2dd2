"""Checks whether a file that takes pictures answers as ``predict`` does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from datasets import DataError
from datasets.temporary import unfinished
from trainer.build.trained import TrainedModel
from trainer.components.novelty import split_scores
from trainer.config import Config
from trainer.input.data import load_subset
from trainer.process.errors import ConfigError, RunError
from trainer.run import disk
from trainer.run.known import Rejection
from transforms.keyed import seed_of
from yaml_trainer.export.export_check import (
    Network,
    at_most_max_images,
    image_files,
    note,
    test_images_of,
)
from yaml_trainer.export.exporting import as_run_error, quiet
from yaml_trainer.export.preparing import OTHER_SIZES

LIMIT = 2e-3  # of a probability: without AVX2, torchvision rounds a resized pixel otherwise
SCORE_LIMIT = 1e-2  # of ``unknown``, relative to the score


@dataclass(frozen=True)
class Pictures:
    """Pictures (C, H, W), as they were decoded, and a phrase that says where they are from."""

    images: list[Tensor]
    source: str

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """Heights and widths."""
        return {(image.shape[1], image.shape[2]) for image in self.images}

    def only_size(self) -> tuple[int, int]:
        """Their one size; RunError if there are several, which no transform makes equal."""
        if len(self.sizes) > 1:
            raise RunError(
                "--with-preprocessing: the run's transforms do not give all pictures the model's "
                "size, and those to try have several; name others with --images."
            )
        return next(iter(self.sizes))


def pictures_to_try(
    trained: TrainedModel, config: Config, images: Sequence[Path] | None
) -> Pictures:
    """Up to MAX_IMAGES pictures of ``images``, else of the run's test images, else noise."""
    if images is not None:
        more = trained.form.suffixes
        files = at_most_max_images([file for path in images for file in image_files(path, more)])
        if not files:
            raise DataError("--images: no images in it.")
        return Pictures([trained.read(file) for file in files], f"{len(files)} images of --images")
    try:
        chosen, offline = test_images_of(trained.run, config)
        dataset, subset = load_subset(offline, chosen, torch.device("cpu"))
        found = [dataset.image(index).contiguous() for index in subset.indices.tolist()]
        return Pictures(found, f"{len(found)} test images of {config.dataset.name}")
    except (DataError, ConfigError) as error:
        note(" ".join(str(error).split()))
        note("only noise is compared; name real images with --images, or dataset.root=...")
        shapes = [trained.input_shape[1:]] * 8
        return Pictures([noise(trained, *shape, number) for number, shape in enumerate(shapes)],
            "8 images of NOISE, no real ones")  # fmt: skip


def noise(trained: TrainedModel, height: int, width: int, number: int = 0) -> Tensor:
    """A picture (C, height, width) of random levels."""
    generator = torch.Generator().manual_seed(seed_of(trained.config.seed, "export", number))
    deep = trained.form.bits == 16
    shape = (trained.image_channels, height, width)
    levels = torch.randint(0, 65536 if deep else 256, shape, generator=generator)
    return levels.to(torch.int32).to(torch.uint16 if deep else torch.uint8)


def compare(
    path: Path,
    content: bytes,
    read: Callable[[Path], Network],
    trained: TrainedModel,
    rejection: Rejection | None,
    pictures: Pictures,
) -> str:
    """Write ``content`` to ``path`` if it answers as the run does; returns the differences.

    Raises RunError, and keeps no file, where a probability differs by more than LIMIT.
    """
    unproven = path.with_name(f".unproven-{path.name}")
    with unfinished(unproven):
        disk.write_file(unproven, content)
        with as_run_error(f"{path.name} cannot be read back"), quiet(), torch.inference_mode():
            network = read(unproven)
            each = [difference(trained, rejection, network, one) for one in pictures.images]
            more = other_sizes(trained)
            each += [difference(trained, rejection, network, one) for one in more]
        chances, unknown = max(chances for chances, _ in each), max(score for _, score in each)
        if not (chances <= LIMIT and unknown <= SCORE_LIMIT):  # NaN is no agreement
            raise RunError(
                f"{path.name} was removed: on {pictures.source} its probabilities differ from "
                f"predict's by {chances:.1e}, where {LIMIT:.0e} is allowed, and unknown by "
                f"{unknown:.1e} of the score, where {SCORE_LIMIT:.0e} is."
            )
        disk.rename(unproven, path)
    disk.sync_folder(path.parent)
    sizes = f", and on {len(more)} sizes of noise" if more else ""
    scores = "" if rejection is None else f", unknown {unknown:.1e} of the score"
    return f"greatest difference from predict: probabilities {chances:.1e}{scores}{sizes}"


def other_sizes(trained: TrainedModel) -> list[Tensor]:
    """Pictures of noise in those of OTHER_SIZES that the run's transforms take."""
    found = []
    for number, size in enumerate(OTHER_SIZES):
        picture = noise(trained, *size, number)
        try:
            trained.inputs([picture])
        except ValueError:
            continue
        found.append(picture)
    return found


def difference(
    trained: TrainedModel, rejection: Rejection | None, network: Network, image: Tensor
) -> tuple[float, float]:
    """The greatest difference of a probability, and that of ``unknown`` relative to the score."""
    through = None if rejection is None else rejection.model
    expected = trained.logits(trained.inputs([image]), trained.config.evaluation.tta, through)
    apart = 0.0
    found = network(image.contiguous())
    if rejection is not None:
        expected, scores = split_scores(expected)
        score = float(rejection.of(scores)[0])
        wanted = score - rejection.threshold
        apart = abs(float(found[2]) - wanted) / max(1.0, abs(score))
    chances = trained.chances(expected, trained.temperature)[0]
    return float((found[0] - chances).abs().max()), apart
