"""A run's best model, loaded for use from the run's folder alone, without its dataset."""

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from datasets import BrokenImage
from datasets.bands import NPY, Form, decode_as, form_in
from datasets.images import read_file
from models.ensemble import Ensemble, Kind
from trainer.build.device import choose_device
from trainer.build.model import averaged_logits, build_model, check_size
from trainer.build.precision import FP32, Precision, build_precision
from trainer.build.trial import check_components
from trainer.components import OF_SEVERAL_LABELS
from trainer.components.calibration import Calibration, calibrated, calibration_of
from trainer.components.decisions import as_thresholds, decided
from trainer.components.own import OwnFile
from trainer.config import Config, load_config
from trainer.config.config import bind
from trainer.config.notes import as_lines, notes_on_transforms
from trainer.config.settings import Component, ModelSettings
from trainer.input.data import build_pipelines
from trainer.process.errors import ConfigError, RunError
from trainer.process.launch import is_first
from trainer.process.words import visible
from trainer.run.best import load_best, require_best, require_same_model, state_of
from trainer.run.disk import read_json
from trainer.run.folder import runs_in
from transforms.needed import needed_side
from transforms.pipeline import Pipeline

OF_MANY = {b"PK\3\4": "a zip file, such as .npz", b"PAR1": "a Parquet file"}
FOR_MANY = (
    "metrics of labelled ones: python -m trainer.evaluate RUN FILE; save other images as .png, "
    "or predict arrays in Python: yaml_trainer.load(RUN).predict(ARRAYS)"
)


class Voter(NamedTuple):
    """One of several models that answer as one (``Ensemble``): its component, and its run.

    order: the number of each class in its output; None if it is the same.
    """

    model: Component
    run: str
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TrainedModel:
    """A run's best model, with all that prediction needs. Label k is ``classes[k]``.

    input_shape: the model's (C, H, W). image_channels: before any transform. epoch: the one
    whose weights these are (None: model.json has none), digest: the SHA-256 of their file.
    at_least: the pixels of an image's shorter side that are decoded, 0 if all, as in training.
    form: the images' channels and bits. remarks: those on the files that were taken. thresholds:
    where an image may have several labels, the probability from which on each is predicted, (K,)
    float32; else None. calibration: what val says about a temperature; None for raw probabilities.
    voters: of several models that answer as one; else none.
    """

    run: Path
    config: Config
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    model: nn.Module
    image_channels: int
    pipeline: Pipeline
    device: torch.device
    precision: Precision = FP32
    channels_last: bool = False
    at_least: int = 0
    remarks: "bytearray | array[int]" = field(default_factory=lambda: array("H"))
    epoch: int | None = None
    digest: str = ""
    thresholds: Tensor | None = None
    form: Form = Form()
    calibration: Calibration | None = None
    voters: tuple[Voter, ...] = ()

    @property
    def model_name(self) -> str:
        """The model's name, for messages."""
        if self.voters:
            return f"the mean of {len(self.voters)} models"
        return self.config.model.name

    def read(self, path: Path) -> Tensor:
        """An image file as the run's dataset gives it: (C, H, W), uint8 or uint16.

        ``remarks`` get its remark. Raises BrokenImage.
        """
        image, remark = self.decode(read_file(path), str(path))
        self.remarks.append(remark)
        return image

    def decode(self, content: bytes, path: str) -> tuple[Tensor, int]:
        """``read`` for a file's bytes; the remark comes with the image, which may be refused."""
        if kind := _kind_of_many(self.form, content):
            raise BrokenImage(path, f"{kind}, no image file; {FOR_MANY}")
        image, remark = decode_as(self.form, content, path, self.at_least)
        return fitted(image, self.form, self.image_channels, path), remark

    def inputs(self, images: Sequence[Tensor]) -> Tensor:
        """Return the model's inputs for images of ``read``: (B, [crops,] C, H, W) float32.

        They are on the device. Raises ValueError if a transform refuses an image, or leaves
        another size than the model was trained with.
        """
        prepared = [self.pipeline.prepare(image) for image in images]
        zeros = torch.zeros(len(prepared), dtype=torch.int64)  # labels, numbers: without effect
        inputs = self.pipeline(prepared, zeros, zeros, 0)[0]
        if inputs.shape[-3:] != self.input_shape:
            became, wanted = (
                " x ".join(map(str, s)) for s in (inputs.shape[-2:], self.input_shape[1:])
            )
            raise ValueError(
                f"the run's transforms make it {became}, and its model was trained on {wanted}; "
                "it needs the size of the training images, or a run whose transforms resize"
            )
        return inputs.to(self.device)

    @torch.inference_mode()
    def logits(
        self, inputs: Tensor, tta: str | None = None, through: nn.Module | None = None
    ) -> Tensor:
        """Return the logits (B, num_classes) of ``inputs``, the mean over crops and ``views``.

        through: a module that is called instead of the model, such as a ``Novelty`` of it.
        """
        with self.precision.autocast():
            return averaged_logits(self.model if through is None else through, inputs, tta)

    @property
    def temperature(self) -> float | None:
        """The temperature of calibrated probabilities; None if they are the raw ones."""
        return self.calibration.temperature if self.calibration and self.calibration.used else None

    def probabilities(self, inputs: Tensor, tta: str | None = None) -> Tensor:
        """Return raw probabilities (B, num_classes) on the CPU."""
        return self.chances(self.logits(inputs, tta).cpu())

    def chances(self, logits: Tensor, temperature: float | None = None) -> Tensor:
        """Probabilities (B, num_classes) of logits, by the run's loss; raw without temperature."""
        several = self.thresholds is not None
        return calibrated(self.config.loss.name, logits, temperature, several)

    def predicted(self, probabilities: Tensor) -> tuple[int, ...]:
        """The predicted classes of an image with these raw probabilities (K,), the likeliest first.

        It is one, unless an image may have several labels: then those above their thresholds.
        """
        if self.thresholds is None:
            return (int(probabilities.argmax()),)
        order = probabilities.argsort(descending=True, stable=True).tolist()
        found = decided(probabilities[None], self.thresholds)[0].tolist()
        return tuple(label for label in order if found[label])


def fitted(image: Tensor, form: Form, channels: int, path: str) -> Tensor:
    """A decoded image with the channels of a run's: grey if they are. Raises BrokenImage."""
    if form.channels == "keep" and len(image) != channels:
        its = f"it has {len(image)} channels, and the run's images {channels}"
        raise BrokenImage(path, its)
    if form.is_plain and channels == 1:
        # Pillow's "L", exact for grey pictures kept as RGB
        red, green, blue = image.int()
        image = ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).byte()[None]
    return image


def _kind_of_many(form: Form, content: bytes) -> str:
    """The kind of a file that holds many images or none; "" for any other file."""
    if form.is_plain and content.startswith(NPY):
        return "an array (a run with channels: keep or bits: 16 takes it as an image)"
    return next((kind for mark, kind in OF_MANY.items() if content.startswith(mark)), "")


def load_trained(run: Path | str, overrides: Sequence[str] = ()) -> TrainedModel:
    """Load the best weights of a run, in eval mode, with its classes and eval transforms.

    overrides may set ``train.device`` and ``train.threads``. Prints on stderr which weights were
    taken, and notes on the transforms. Raises RunError if the folder is damaged or has no weights
    yet, ConfigError if settings cannot be used.
    """
    run = Path(run)
    trained = load_with(load_config(run / "config.yaml", overrides), run)
    tell_which(trained)
    return trained


def load_with(config: Config, run: Path) -> TrainedModel:
    """``load_trained`` with a given configuration, silently."""
    if faults := check_components(config, ranges=False):
        raise ConfigError(faults)
    device = choose_device(config)
    require_best(run)
    require_same_model(run, config)
    card = read_json(run / "model.json")
    try:
        classes, shape, image_channels = _read_card(card)
        voters = _read_voters(card, config.own)
        calibration = calibration_of(card)
    except (KeyError, TypeError, ValueError, ValidationError):
        what = "its classes, sizes or calibration are missing or wrong"
        raise RunError(f"{run / 'model.json'} is damaged: {what}.") from None
    pipeline = build_pipelines(config, num_classes=len(classes))["eval"]
    config = without_weights(config)
    thresholds = as_thresholds(card.get("thresholds"))
    model = build_network(config, voters, classes, shape, thresholds is not None)
    check_size(config, model, shape)
    best = load_best(model, run)
    model.to(device).eval()
    channels_last = bool(read_json(run / "data_path.json").get("channels_last"))
    if channels_last:  # the run's layout gives the same bits
        model.to(memory_format=torch.channels_last)
    metrics = best.get("metrics")
    epoch = metrics.get("epoch") if isinstance(metrics, dict) else None
    epoch = epoch if type(epoch) is int else None
    fast = config.dataset.arguments.get("decode") == "fast"
    return TrainedModel(
        run=run,
        config=config,
        classes=classes,
        input_shape=shape,
        model=model,
        image_channels=image_channels,
        pipeline=pipeline,
        device=device,
        precision=build_precision(config, device),  # as the run computed
        channels_last=channels_last,
        at_least=needed_side([*pipeline.fixed, *pipeline.rest]) if fast else 0,
        epoch=epoch,
        digest=str(best["weights"]["sha256"]),
        thresholds=thresholds,
        form=form_in(config.dataset.arguments),
        voters=voters,
        calibration=calibration,
    )


def build_network(
    config: Config,
    voters: Sequence[Voter],
    classes: tuple[str, ...],
    shape: tuple[int, int, int],
    several_labels: bool,
) -> nn.Module:
    """The config's model, or the ``Ensemble`` of those of the voters, with any weights."""
    if not voters:
        return build_model(config, classes, shape)
    each = [config.model_copy(update={"model": voter.model}) for voter in voters]
    models = [build_model(one, classes, shape) for one in each]
    return Ensemble(
        models, probability_kind(config, several_labels), [voter.order for voter in voters]
    )


def probability_kind(config: Config, several_labels: bool) -> Kind:
    """How the config's loss makes probabilities of logits."""
    if several_labels:
        return "sigmoids"
    return "shares" if config.loss.name in OF_SEVERAL_LABELS else "softmax"


def _read_card(card: dict[str, Any]) -> tuple[tuple[str, ...], tuple[int, int, int], int]:
    """Return classes, the model's (C, H, W) and the images' channels, if the card is ours."""
    classes, sizes = card["classes"], [card["in_channels"], *card["input_size"]]
    channels, height, width = sizes
    numbers = [*sizes, card["image_channels"]]
    is_ours = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if (thresholds := card.get("thresholds")) is not None:
        is_ours &= len(thresholds) == len(classes) and all(0 <= t <= 1 for t in thresholds)
    if not (
        is_ours
        and len({*classes}) == len(classes) > 1
        and all(type(n) is int and 0 < n < 2**16 for n in numbers)
    ):
        raise ValueError
    return tuple(classes), (channels, height, width), card["image_channels"]


def _read_voters(card: dict[str, Any], own: OwnFile) -> tuple[Voter, ...]:
    """The ``members`` of a card; raises an error if they are not ours."""
    voters = []
    for member in card.get("members", ()):
        order = member["order"]
        if order is not None and sorted(order) != list(range(len(card["classes"]))):
            raise ValueError
        model = TypeAdapter(ModelSettings).validate_python(member["model"])
        bind(model, "model", own)
        voters.append(Voter(model, str(member["run"]), order and tuple(order)))
    return tuple(voters)


def tell_which(trained: TrainedModel) -> None:
    """Print on stderr which weights were taken, if others may follow, and notes on transforms."""
    if not is_first():
        return
    *notes, which = notes_on_model(trained)
    for note in notes:
        print(f"note    {note}", file=sys.stderr)
    print(f"run     {which}", file=sys.stderr)


def notes_on_model(trained: TrainedModel) -> list[str]:
    """Lines on the transforms; the last one says which weights were taken, if others may follow."""
    run, epoch, config = trained.run, trained.epoch, trained.config
    (state, _), beside = state_of(run), runs_in(run.resolve().parent)
    newer = len(beside) - 1 - [each.resolve() for each in beside].index(run.resolve())
    place = f" (the newest of {len(beside)})" if not newer else f" ({newer} newer beside it)"
    so_far = "" if state == "done" else f", the best so far: the run is {visible(state)}"
    of_epoch = "best weights" if epoch is None else f"weights of epoch {epoch}"
    of_epoch = trained.model_name if trained.voters else of_epoch
    where = visible(str(run)) + (place if len(beside) > 1 else "")
    return [*as_lines(config, notes_on_transforms(config)), f"{where}, {of_epoch}{so_far}"]


def without_weights(config: Config) -> Config:
    """Return the config without initial weights: the model gets the run's own weights."""
    kept = {k: v for k, v in config.model.trainer_arguments.items() if k == "freeze"}
    bare = config.model.model_copy(update={"trainer_arguments": kept})
    return config.model_copy(update={"model": bare})
