"""Code that uses an exported model without this project: with Pillow, NumPy and what reads it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from models import MODELS
from models.arguments import without_depth
from models.external import WITH_AUXILIARY_HEADS
from models.weights import first_convolution
from trainer.signatures import parameters_of, resolve
from trainer.trained import Trained

SIGMOIDS = ("BCELoss", "BCEWithLogitsLoss")
# The same result with Pillow as with the trainer: its transforms of single images.
DRAWN_BY_PILLOW = ("Resize", "CenterCrop", "FiveCrop", "TenCrop", "Pad", "Grayscale", "Letterbox")


def program(kind: str, trained: Trained) -> str:
    """Python code that classifies image files with a NAME.pt2, a NAME.onnx or a folder of weights.

    kind: "pt2", "onnx" or "safetensors". It needs NumPy, Pillow, and what reads the file.
    """
    name = trained.config.name
    file, answer = f"{name}_{kind}.py", "model(torch.from_numpy(images)).numpy()"
    local: list[str] = []
    if kind == "pt2":
        imports = ["import torch"]
        load = [
            'card = {"card.json": ""}',
            f'model = torch.export.load(HERE / "{name}.pt2", extra_files=card).module()',
            'classes = json.loads(card["card.json"])["classes"]',
        ]
    elif kind == "onnx":
        answer = 'session.run(["logits"], {"images": images})[0]'
        # Older ones average padded pools wrongly: AlexNet's normalisation has those.
        imports = ["import onnxruntime  # 1.25 or newer"]
        load = [
            f'session = onnxruntime.InferenceSession(HERE / "{name}.onnx")',
            'classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])',
        ]
    else:
        file, imports = "use.py", ["import torch", "from safetensors.torch import load_file"]
        imported, build = building(trained)
        (imports if "/" in trained.config.model.name else local).append(imported)
        load = [
            *build,
            'model.load_state_dict(load_file(HERE / "model.safetensors"))',
            "model.eval().requires_grad_(False)",
            'config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))',
            'classes = list(config["id2label"].values())',
        ]
    imports = [*imports, "import numpy as np", "from PIL import Image, ImageOps"]
    imports.sort(key=lambda line: (line.startswith("from"), line.lower()))
    if trained.config.loss.name in SIGMOIDS:
        chances = "1 / (1 + np.exp(-logits))"
    else:
        chances = "np.exp(logits - logits.max(axis=1, keepdims=True))"
    lines = [
        f'"""Tell what is on photographs: python {file} PHOTO..."""',
        "",
        *("import json", "import sys", "from pathlib import Path", ""),
        *(*imports, *([""] if local else []), *local),
        *("", "HERE = Path(__file__).resolve().parent", "", ""),
        *(*preprocessing(trained), "", ""),
        "if not sys.argv[1:]:",
        f'    print("usage: python {file} PHOTO...", file=sys.stderr)',
        "    sys.exit(2)",
        "",
        *(*load, ""),
        "failed = False",
        "for path in sys.argv[1:]:",
        "    try:",
        "        images = preprocess(path)  # of several images of one size: np.concatenate",
        "    except NotImplementedError:",
        "        raise",
        "    except Exception as error:  # Pillow has many for a file that is no image",
        '        print(f"{path}: {error}", file=sys.stderr)',
        "        failed = True",
        "        continue",
        f"    logits = {answer}",
        f"    chances = {chances}",
        "    chances /= chances.sum(axis=1, keepdims=True)",
        "    best = chances[0].argmax()",
        '    print(path, classes[best], f"{chances[0, best]:.4f}", sep="\\t")',
        *("if failed:", "    sys.exit(1)"),
    ]
    return "\n".join(lines) + "\n"


def preprocessing(trained: Trained) -> list[str]:
    """``preprocess(path)`` as lines of code: the run's eval transforms with Pillow and NumPy."""
    listed = trained.config.model_dump(mode="json")["transforms"]["eval"]
    steps: list[str] = []
    after: list[str] = []
    for transform in listed:
        arguments = {key: value for key, value in transform.items() if key != "name"}
        name = transform["name"]
        lines = None
        if name == "Normalize":
            after += [
                f"mean = np.array({arguments['mean']}, np.float32).reshape(-1, 1, 1)",
                f"std = np.array({arguments['std']}, np.float32).reshape(-1, 1, 1)",
                "pixels = (pixels - mean) / std",
            ]
            continue
        if name in ("ToTensor", "ToImage", "ToDtype"):
            continue
        if name in DRAWN_BY_PILLOW and not after:
            lines = pillow(name, arguments)
        if lines is None:
            told = f"do here what the run's {name} does: {json.dumps(arguments)}"
            (after or steps).append(f"raise NotImplementedError({told!r})")
        else:
            steps += lines
    body = [
        '"""An image file as the model wants it: (1, channels, height, width) float32."""',
        "image = ImageOps.exif_transpose(Image.open(path))",
        "if image.has_transparency_data:",
        '    white = Image.new("RGBA", image.size, "white")',
        '    image = Image.alpha_composite(white, image.convert("RGBA"))',
        'image = image.convert("RGB")' + '.convert("L")' * (trained.image_channels == 1),
        *steps,
        "pixels = np.asarray(image, np.float32) / 255",
        "pixels = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)  # channels first",
        *after,
        "return np.ascontiguousarray(pixels[None])",
    ]
    return ["def preprocess(path):", *(f"    {line}" for line in body)]


def pillow(name: str, arguments: Mapping[str, Any]) -> list[str] | None:
    """The lines that do with Pillow what a transform does; None where Pillow has no such thing."""
    if name == "Grayscale":
        back = '.convert("RGB")' if arguments.get("num_output_channels", 1) == 3 else ""
        return [f'image = image.convert("L"){back}']
    if name == "Resize":
        return _resize(arguments)
    if name == "Letterbox":
        height, width = _pair(arguments["size"])
        return [
            f"height, width = {height}, {width}",
            "scale = min(height / image.height, width / image.width)",
            "inner = [max(1, int(side * scale + 0.5)) for side in image.size]",
            "small = image.resize(inner, Image.Resampling.BILINEAR)",
            f"fill = {_colour(arguments)}",
            "image = Image.new(image.mode, (width, height), fill)",
            "image.paste(small, ((width - inner[0]) // 2, (height - inner[1]) // 2))",
        ]
    if name == "Pad" and arguments.get("padding_mode", "constant") == "constant":
        padding = arguments["padding"]
        sides = [padding] if isinstance(padding, int) else list(padding)
        border = {1: sides * 4, 2: sides * 2, 4: sides}[len(sides)]  # left, top, right, bottom
        return [f"image = ImageOps.expand(image, {tuple(border)}, {_colour(arguments)})"]
    if name in ("CenterCrop", "FiveCrop", "TenCrop"):
        height, width = _pair(arguments["size"])
        told = [] if name == "CenterCrop" else [f"# The run takes the mean over {name}'s crops."]
        return [
            *told,
            f"height, width = {height}, {width}",
            "top = round((image.height - height) / 2)",
            "left = round((image.width - width) / 2)",
            "image = image.crop((left, top, left + width, top + height))",
        ]
    return None


def _colour(arguments: Mapping[str, Any]) -> str:
    """The ``fill`` of a transform as code: Pillow wants as many numbers as the image has bands."""
    fill = arguments.get("fill") or 0
    levels = fill if isinstance(fill, list) else [fill]
    values = tuple(int(level) for level in levels)
    return repr(values) if len(values) > 1 else f"({values[0]},) * len(image.getbands())"


def _resize(arguments: Mapping[str, Any]) -> list[str] | None:
    size, how = arguments["size"], arguments.get("interpolation", "bilinear")
    if how not in ("bilinear", "bicubic") or arguments.get("max_size") or not size:
        return None
    if arguments.get("antialias", True) is False:  # Pillow always smooths what it makes smaller
        return None
    end = f"Image.Resampling.{how.upper()})"
    if isinstance(size, list) and len(size) == 2:
        return [f"image = image.resize(({size[1]}, {size[0]}), {end}"]
    side = size if isinstance(size, int) else size[0]
    return [
        "short = min(image.size)",
        f"sides = [int({side} * side / short) for side in image.size]",
        f"image = image.resize(sides, {end}",
    ]


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    sides = [size] if isinstance(size, int) else list(size)
    return sides[0], sides[-1]


def building(trained: Trained) -> tuple[str, list[str]]:
    """The import and the lines that make an empty ``model`` for the weights."""
    family, _, name = trained.config.model.name.partition("/")
    arguments = trained.config.model.arguments
    classes, (channels, *sides) = len(trained.classes), trained.input_shape
    if not name:  # one of ours, whose source lies in the folder
        module, _, attribute = MODELS[family].partition(":")
        supplied = {"num_classes": classes, "in_channels": channels, "input_size": sides}
        taken = parameters_of(resolve(MODELS, family))
        arguments = {k: v for k, v in supplied.items() if k in taken} | arguments
        return f"from {module} import {attribute}", [f"model = {attribute}({_passed(arguments)})"]
    if family == "timm":
        arguments = {"num_classes": classes, "in_chans": channels} | arguments
        return "import timm", [f"model = timm.create_model({name!r}, {_passed(arguments)})"]
    if name in WITH_AUXILIARY_HEADS:
        arguments = {"aux_logits": False, "init_weights": False} | arguments
    arguments = without_depth("torchvision", arguments)  # it is for training only
    arguments = {"weights": None, "num_classes": classes} | arguments
    lines = [f"model = torchvision.models.get_model({name!r}, {_passed(arguments)})"]
    if channels != 3:
        stem = first_convolution(trained.model)
        lines += [
            f"stem = model.get_submodule({stem!r})",
            f"shape = (stem.out_channels, {channels}, *stem.kernel_size)",
            f"stem.in_channels, stem.weight = {channels}, torch.nn.Parameter(torch.zeros(shape))",
        ]
    return "import torchvision", lines


def _passed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())
