"""Exports a run's model together with its preprocessing: a picture in, probabilities out."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from datasets import DataError
from trainer.build.model import averaged_logits
from trainer.build.trained import TrainedModel, probability_kind
from trainer.components.novelty import split_scores
from trainer.drawing.page import render
from trainer.inference.prediction import choose_rejection
from trainer.process.errors import NO_ANSWER, NoAnswer, component_place
from trainer.run import disk
from trainer.run.known import Rejection
from yaml_trainer.export.exporting import (
    as_graph,
    load_for_export,
    onnx_content,
    onnx_model,
    plain_copy,
    pt2_content,
    pt2_model,
)
from yaml_trainer.export.model_card import (
    MAX_LISTED,
    about_unknown,
    describe_model,
    program,
    shorter_side,
)
from yaml_trainer.export.preparing import Prepare, takes_any_size
from yaml_trainer.export.program_check import check_program
from yaml_trainer.export.whole_check import Pictures, compare, pictures_to_try

PICTURE_TEMPLATE = Path(__file__).parent / "templates" / "picture.md.j2"


class Whole(nn.Module):
    """A run's model from a picture to its answer, as ``predict`` gives it.

    The picture is (C, H, W) uint8, or uint16 for a run with ``bits: 16``. The outputs are
    probabilities (K,) with the run's temperature, logits (K,), which are means over crops and the
    views of ``evaluation.tta``, and, with a rejection, ``unknown`` (): above 0 it is.
    """

    def __init__(
        self, trained: TrainedModel, prepare: Prepare, rejection: Rejection | None
    ) -> None:
        super().__init__()
        self.prepare = prepare
        self.model = plain_copy(trained.model if rejection is None else rejection.model)
        self.tta, self.temperature = trained.config.evaluation.tta, trained.temperature or 1.0
        self.kind = probability_kind(trained.config, trained.thresholds is not None)
        self.rejection = rejection

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Probabilities, logits, and how far the picture is from being known."""
        logits = averaged_logits(self.model, self.prepare(image)[None], self.tta)
        unknown: tuple[Tensor, ...] = ()
        if self.rejection is not None:
            logits, scores = split_scores(logits)
            unknown = ((self.rejection.of(scores) - self.rejection.threshold)[0],)
        logits = logits[0]
        return self.probabilities(logits), logits, *unknown

    def probabilities(self, logits: Tensor) -> Tensor:
        """As ``calibrated`` makes them: of one class, the temperature acts on log probabilities."""
        if self.kind == "sigmoids":
            return (logits / self.temperature).sigmoid()
        if self.kind == "shares":  # the logarithm of a sigmoid, without that of 0
            logits = logits.clamp(max=0) - (-logits.abs()).exp().log1p()
        return functional.softmax(logits / self.temperature, dim=0)


def export_whole(
    run: Path,
    formats: Sequence[str],
    folder: Path,
    images: Sequence[Path] | None = None,
    overrides: Sequence[str] = (),
    reject: tuple[Fraction, str] | None = None,
) -> None:
    """Write NAME-picture.pt2 and .onnx into ``folder``, and print what was done.

    The arguments are those of ``export_run``. Raises RunError if a transform cannot be expressed in
    a graph, or if a file or its program answers otherwise than ``predict``.
    """
    trained, config = load_for_export(run, overrides)
    prepare = Prepare(trained.pipeline, trained.form.bits)
    pictures = pictures_to_try(trained, config, images)
    rejection = choose_rejection(trained, *reject) if reject else None
    channels = trained.image_channels
    sizes: tuple[int, int] | None = None
    if not takes_any_size(prepare, channels, trained.input_shape):
        sizes = pictures.only_size()
    card = describe_whole(trained, disk.read_json(run / "result.json"), rejection, sizes)
    require_answers(trained, pictures)
    print(f"{run}: {trained.model_name}, a picture ({shape_in_words(channels, sizes)}) "
        f"{card['input']['type']}")  # fmt: skip
    print(f"tried on {pictures.source}")
    whole = Whole(trained, prepare, rejection).eval()
    exported = export(whole, trained, sizes)
    for number, name in enumerate(formats, 1):
        with disk.all_or_nothing():
            disk.make_output_folder(folder)
            path = folder / f"{trained.config.name}-picture.{name}"
            content = CONTENT[name](exported, card)
            told = compare(path, content, READ[name], trained, rejection, pictures)
            disk.write_json(path.with_suffix(".json"), card)
            page = picture_card(path.stem, card, trained, formats[:number])
            disk.write_file(path.with_suffix(".md"), page)
            its_program = path.with_name(f"{path.stem}_{name}.py")
            text = program(name, trained, rejection is not None, whole=path.stem)
            disk.write_file(its_program, text)
            tried = check_program(its_program, trained, rejection, pictures.sizes)
        print(f"{name:<12} {path} ({path.stat().st_size / 2**20:,.1f} MiB)")
        print(f"{'':<12} {told}")
        print(f"{'':<12} {its_program.name}: {tried}")
    why = f"{sizes[0]} pixels high and {sizes[1]} wide" if sizes else "of any size"
    print(f"each takes one picture at a time, {why}")


def require_answers(trained: TrainedModel, pictures: Pictures) -> None:
    """Raise DataError for a picture that the run does not take, NoAnswer for NaN or infinity."""
    for image in pictures.images:
        try:
            inputs = trained.inputs([image])
        except ValueError as error:
            if component_place(error):
                raise
            raise DataError(f"{pictures.source}: {error}.") from None
        if not trained.logits(inputs).isfinite().all():
            raise NoAnswer(f"{trained.run}: {NO_ANSWER} on {pictures.source}; no file was written.")


def export(
    whole: Whole, trained: TrainedModel, sizes: tuple[int, int] | None
) -> torch.export.ExportedProgram:
    """The module as a graph for pictures of any size, or of one size (height, width)."""
    dtype = torch.uint16 if trained.form.bits == 16 else torch.uint8
    example = torch.zeros(trained.image_channels, *(sizes or (211, 307)), dtype=dtype)
    dims = {number: torch.export.Dim(name, min=2) for number, name in ((1, "height"), (2, "width"))}
    return as_graph(whole, example, {} if sizes else dims, trained.model_name)


def picture_onnx(exported: torch.export.ExportedProgram, card: dict[str, Any]) -> bytes:
    """The bytes of an .onnx file; the card tells names, and whether it takes any size."""
    free = {1: "height", 2: "width"} if card["input"]["shape"][1] == "height" else {}
    outputs = [output["name"] for output in card["outputs"]]
    return onnx_content(exported, card, card["name"], outputs, free)


CONTENT = {"pt2": pt2_content, "onnx": picture_onnx}
READ = {"pt2": pt2_model, "onnx": onnx_model}


def describe_whole(
    trained: TrainedModel,
    result: dict[str, Any],
    rejection: Rejection | None,
    sizes: tuple[int, int] | None,
) -> dict[str, Any]:
    """What a program needs to use the file; nothing about this machine."""
    card = describe_model(trained, result)
    classes = len(trained.classes)
    if rejection is not None:
        card["unknown"] = about_unknown(rejection)["unknown"] | {"shape": []}
    del card["output"]
    tta = trained.config.evaluation.tta
    return card | {
        "input": {
            "name": "image",
            "type": "uint16" if trained.form.bits == 16 else "uint8",
            "shape": [trained.image_channels, *(sizes or ("height", "width"))],
            "meaning": "one picture, as it was decoded",
        },
        "outputs": [
            {"name": "probabilities", "type": "float32", "shape": [classes]},
            {"name": "logits", "type": "float32", "shape": [classes]},
            *([] if rejection is None else [{"name": "unknown", "type": "float32", "shape": []}]),
        ],
        "inside": [step["name"] for step in card["transforms"]]
        + (["mean over crops"] if trained_crops(trained) else [])
        + ([f"mean over views: {tta}"] if tta else [])
        + ["temperature"] * (trained.temperature is not None)
        + [card["probabilities"]],
        "outside": DECODING,
    }


DECODING = (
    "decoding: turn the picture upright as EXIF says; transparent pixels on white; grey, palette, "
    "CMYK to the channels above; of several frames the first; no colour profile, no gamma. ONNX "
    "Runtime and torch.export have no decoder of JPEG in a graph."
)


def picture_card(
    stem: str, card: dict[str, Any], trained: TrainedModel, formats: Sequence[str]
) -> str:
    """A page on the files ``stem``: their input and outputs, what is inside, how to call them.

    formats: those that are written. Its code takes the modes of Pillow that it treats as the run.
    """
    modes = {1: ["L"], 3: ["RGB"]}.get(trained.image_channels, [])
    if modes and trained.form.channels == "rgb":
        modes = ["L", "RGB"]
    values: dict[str, Any] = {"formats": formats, "modes": modes, "form": trained.form}
    values |= {"at_least": trained.at_least, "max_listed": MAX_LISTED}
    values["side"] = shorter_side(trained)
    return render(PICTURE_TEMPLATE, stem=stem, card=card, **values)


def trained_crops(trained: TrainedModel) -> bool:
    """Whether the run's transforms give several crops of a picture."""
    return any(step.name in ("FiveCrop", "TenCrop") for step in trained.config.transforms.eval)


def shape_in_words(channels: int, sizes: tuple[int, int] | None) -> str:
    """The input's shape."""
    return f"{channels}, {sizes[0]}, {sizes[1]}" if sizes else f"{channels}, height, width"
