"""Draws why a model predicts a class for one image: Grad-CAM, kernels, feature maps."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from trainer.build.trained import TrainedModel
from trainer.drawing.fonts import drawable, fit_to_pixels, font, note_on_names
from trainer.drawing.pictures import fit_into, grid, png, sheet, to_picture
from trainer.inference.attribution import find_evidence
from trainer.insight.features import feature_maps, first_kernels
from trainer.insight.samples import as_pictures
from trainer.process.errors import NO_ANSWER, NoAnswer, RunError
from trainer.process.words import visible
from trainer.run.disk import make_folders, sha256_of, write_file, write_json

MAX_CHANNELS = 64  # of a layer, in a picture
PANEL = 320  # side of a picture in the overview, in pixels
TOP = 5  # classes in the overview
INDEX = "explanation.json"
EVIDENCE_TITLES = {
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "Gradients",
    "occlusion": "Occlusion",
}

# From little to much evidence; pixels without evidence stay grey.
_HEAT = torch.tensor(
    [[0, 0, 143], [0, 80, 255], [0, 220, 200], [250, 230, 0], [255, 110, 0], [215, 0, 0]]
)


@dataclass(frozen=True)
class Explanation:
    """Files with their descriptions, the likeliest classes, and notes on what is missing.

    predicted: the names of the predicted class, or of several labels.
    """

    written: list[tuple[Path, str]]
    top: list[tuple[str, float]]
    notes: list[str]
    predicted: tuple[str, ...]


def explain(
    trained: TrainedModel,
    path: Path,
    image: Tensor,
    folder: Path,
    label: int | None = None,
    method: str | None = None,
) -> Explanation:
    """Write the pictures for one image, (C, H, W) uint8 from ``trained.read``, to ``folder``.

    Evidence is drawn for what is predicted, one class or several labels (the likeliest if there is
    none), and for class ``label`` if given; method: see ``find_evidence``. Raises ValueError
    if the run's transforms refuse the image, NoAnswer if a logit is NaN or infinite, UsageError if
    the method needs a package that is absent.
    """
    written: list[tuple[Path, str]] = []
    notes: list[str] = []

    def write(name: str, picture: Image.Image, what: str) -> None:
        make_folders((folder / name).parent)
        write_file(folder / name, png(picture))
        written.append((folder / name, what))

    inputs = trained.inputs([image])
    logits = trained.logits(inputs).cpu()
    raw, probabilities = (trained.chances(logits, t)[0] for t in (None, trained.temperature))
    notes += [trained.calibration.in_words] if trained.calibration and trained.temperature else []
    if not raw.isfinite().all():
        raise NoAnswer(f"{trained.run}: {NO_ANSWER} for {visible(path.name)}.")
    if inputs.ndim == 5:
        notes.append(
            f"the run averages {inputs.shape[1]} crops; the pictures are of the middle one"
        )
        inputs = inputs[:, 4]  # the middle one of FiveCrop and TenCrop
    model_view = to_picture(as_pictures(trained.pipeline, inputs.cpu())[0])
    answer = trained.predicted(raw)[:TOP]
    predicted = answer or (int(raw.argmax()),)
    if not answer:
        notes.append("no label is predicted; the evidence is of the likeliest")
    panels = [to_picture(image), model_view]
    captions = [
        [path.name, f"{image.shape[2]} x {image.shape[1]}"],
        ["as the model sees it", f"{model_view.width} x {model_view.height}"],
    ]
    for chosen in dict.fromkeys([*predicted, *([] if label is None else [label])]):
        try:
            with trained.precision.autocast():
                by, (heat, seen), note = find_evidence(trained.model, inputs, chosen, method)
        except ValueError as error:
            notes.append(f"no Grad-CAM: {error}")
            break
        notes += [note] if note and note not in notes else []
        drawn = overlay(model_view, heat)
        suffix = "" if chosen == predicted[0] else f"_{file_name(trained, chosen)}"
        seen = f"seen at {seen}" if by == "grad_cam" else f"by {seen}"
        what = f"what speaks for class {trained.classes[chosen]}, {seen}"
        write(f"{by}{suffix}.png", drawn, what)
        panels.append(drawn)
        evidence = "red speaks for it" if heat.any() else "nothing speaks for it"
        name = drawable(trained.classes[chosen], chosen)
        captions.append(
            [f"{EVIDENCE_TITLES[by]}: {name}", f"{evidence}, {seen.partition(', whose')[0]}"]
        )
    notes += _write_layers(trained, inputs, write)
    likely = probabilities.topk(min(TOP, len(probabilities))).indices.tolist()
    # Thresholds differ, so that a predicted label may be less likely than another one.
    likely = sorted({*likely, *predicted}, key=lambda i: -float(probabilities[i]))
    bars = [(drawable(trained.classes[i], i), float(probabilities[i]), i in answer) for i in likely]
    notes += filter(None, [note_on_names(trained.classes)])
    write("overview.png", overview(panels, captions, bars), "all at a glance")
    written.insert(0, written.pop())
    top = [(trained.classes[i], float(probabilities[i])) for i in likely]
    pictures = [file.name for file, _ in written if file.parent == folder]
    for name in set(pictures_of(folder / INDEX)) - {*pictures}:  # of an earlier call
        (folder / name).unlink(missing_ok=True)
    index = {"image": str(path), "sha256": sha256_of(path), "top": dict(top), "pictures": pictures}
    names = tuple(trained.classes[i] for i in answer)
    write_json(folder / INDEX, index | {"predicted": list(names)})
    return Explanation(written, top, notes, names)


def pictures_of(index: Path) -> list[str]:
    """The names of the pictures that an earlier call wrote beside its index; empty without one."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["pictures"]
        return [name for name in names if name == Path(name).name and name.endswith(".png")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _write_layers(
    trained: TrainedModel, inputs: Tensor, write: Callable[[str, Image.Image, str], None]
) -> list[str]:
    """Write the first layer's kernels and all feature maps; return notes on missing pictures."""
    notes = []
    kernels = first_kernels(trained.model, trained.input_shape)
    if kernels is None:
        notes.append("no kernels: the first layer is no convolution, and not linear in the pixels")
    else:
        write("kernels.png", *_grid_of(kernels, "kernels of the first layer"))
    layers = dict(trained.model.named_modules())
    with trained.precision.autocast():
        all_maps = feature_maps(trained.model, inputs)
    for number, (name, maps) in enumerate(all_maps.items()):
        kind = type(layers[name.partition(" (")[0]]).__name__  # "relu (2)": its second call
        file = f"feature_maps/{number:02d}_{re.sub('[^A-Za-z0-9._-]+', '_', name)}.png"
        write(file, *_grid_of(maps, f"maps of {name} ({kind}), {maps.shape[2]} x {maps.shape[1]}"))
    return notes


def overlay(picture: Image.Image, heat: Tensor, size: int = PANEL) -> Image.Image:
    """Return a picture, enlarged and grey, with ``heat`` (h, w) in 0-1 over it: clear to red."""
    grey = fit_into(picture, size).convert("L").convert("RGB")
    smooth = Image.fromarray(heat.float().numpy()).resize(grey.size, Image.Resampling.BICUBIC)
    values = torch.frombuffer(bytearray(smooth.tobytes()), dtype=torch.float32).clamp(0, 1)
    places = values * (len(_HEAT) - 1)
    below = places.long().clamp(max=len(_HEAT) - 2)
    colours = _HEAT.float()[below].lerp(_HEAT.float()[below + 1], (places - below)[:, None])
    pixels = colours.round().byte().view(grey.height, grey.width, 3).permute(2, 0, 1)
    depth = (values.sqrt() * 0.6 * 255).byte().view(grey.height, grey.width)
    return Image.composite(to_picture(pixels), grey, Image.fromarray(depth.numpy()))


def overview(
    panels: list[Image.Image], captions: list[list[str]], top: list[tuple[str, float, bool]]
) -> Image.Image:
    """Return the panels in a row, above the likeliest classes with their probabilities.

    top: a class's name, its probability, and whether it is predicted: then its bar is dark.
    """
    above = sheet(panels, captions, columns=len(panels), size=PANEL)
    row, margin = 30, 14
    made = Image.new("RGB", (above.width, above.height + row * len(top) + margin), "white")
    made.paste(above, (0, 0))
    draw = ImageDraw.Draw(made)
    left = margin + 12 + max(font(17, name).getlength(name) for name, *_ in top)
    left, right = min(left, made.width / 3), made.width - 100
    for i, (name, probability, is_predicted) in enumerate(top):
        y = above.height + row * i
        name = fit_to_pixels(name, 17, left - margin - 12)
        draw.text((left - 12, y + row / 2), name, "#222222", font(17, name), "rm")
        end = left + probability * (right - left)
        draw.rectangle((left, y + 5, right, y + row - 6), "#f2f2f2")
        draw.rectangle(
            (left, y + 5, max(end, left + 1), y + row - 6), "#1f77b4" if is_predicted else "#aec7e8"
        )
        draw.text((right + 12, y + row / 2), f"{probability:.4f}", "#222222", font(17), "lm")
    return made


def file_name(trained: TrainedModel, label: int) -> str:
    """Return a class's name for a file's name if it is safe and unique, else class_LABEL."""
    # Some file systems ignore case. No class may be called like another one's class_LABEL.
    safe = [_safe(name)[:40].casefold() for name in trained.classes]
    taken = [*safe, *(f"class_{i}" for i in range(len(safe)))]
    is_unique = taken.count(safe[label]) == 1 and safe[label].strip("_. ")
    return _safe(trained.classes[label])[:40] if is_unique else f"class_{label}"


def choose_folder(run: Path, image: Path) -> Path:
    """Return RUN/explain/STEM, or STEM-2, ... if another image has it; RunError if it is a link."""
    stem, digest, number = _safe(image.stem), sha256_of(image), 1
    while True:
        folder = run / "explain" / (f"{stem}-{number}" if number > 1 else stem)
        for place in (folder.parent, folder):
            if place.is_symlink():
                raise RunError(f"{place} is a link; nothing is written behind it.")
        try:
            if json.loads((folder / INDEX).read_text(encoding="utf-8"))["sha256"] == digest:
                return folder
        except FileNotFoundError:
            return folder
        except (OSError, ValueError, KeyError, TypeError):
            pass  # something else lies there
        number += 1


def _safe(name: str) -> str:
    safe = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in name)
    return safe.strip(". ") or "_"  # neither "." nor ".."


def _grid_of(maps: Tensor, what: str) -> tuple[Image.Image, str]:
    """Return a grid of the first MAX_CHANNELS maps, and its description."""
    shown = maps[:MAX_CHANNELS]
    return grid(shown), f"{len(shown)} of {len(maps)} {what}"
