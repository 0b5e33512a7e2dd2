"""Writes a program that uses an exported model without this project.

The program reads the model's card, which holds the transforms. So it is the same for every run but
for the file's name and, for a folder of weights, the lines that build the model.
"""

from pathlib import Path
from typing import Any

from models import MODELS
from models.arguments import without_depth
from models.external import WITH_AUXILIARY_HEADS
from models.weights import first_convolution
from trainer.build.trained import TrainedModel
from trainer.config.signatures import parameters_of, resolve
from trainer.drawing.page import render

SCRIPT_TEMPLATE = Path(__file__).parent / "templates" / "use.py.j2"


def program(kind: str, trained: TrainedModel, unknown: bool = False) -> str:
    """Python code that classifies images with a model file; kind: pt2, onnx or safetensors.

    unknown: the model has this second output.
    """
    imports = ["import numpy as np", "from PIL import Image, ImageOps, UnidentifiedImageError"]
    built, own = [""], ""
    # Older versions average padded pools wrongly; AlexNet's normalisation uses such pools.
    reader = "import onnxruntime  # 1.25 or newer" if kind == "onnx" else "import torch"
    if kind == "safetensors":
        own, built = building(trained)
        imports += ["from safetensors.torch import load_file"]
        if "/" in trained.config.model.name:
            imports, own = [*imports, own], ""
    imports = sorted([*imports, reader], key=lambda line: (line.startswith("from"), line.lower()))
    name = "model" if kind == "safetensors" else trained.config.name
    packages = {line.split()[1].partition(".")[0] for line in imports} - {"PIL"} | {"pillow"}
    values: dict[str, Any] = {"imports": [*imports, *([own] if own else [])], "building": built}
    values["packages"] = sorted(packages)
    # Of files with their own channels or 16 bits the program reads arrays and plain pictures.
    values |= trained.form._asdict() | {"arrays": not trained.form.is_plain}
    return render(SCRIPT_TEMPLATE, kind=kind, file=f"{name}.{kind}", unknown=unknown, **values)


def building(trained: TrainedModel) -> tuple[str, list[str]]:
    """The import, and the lines that build ``model``; the program loads the weights into it."""
    family, _, name = trained.config.model.name.partition("/")
    arguments = trained.config.model.arguments
    classes, (channels, *sides) = len(trained.classes), trained.input_shape
    if not name:  # a model of this project; its source is in the folder
        module, _, attribute = MODELS[family].partition(":")
        supplied = {"num_classes": classes, "in_channels": channels, "input_size": sides}
        taken = parameters_of(resolve(MODELS, family))
        arguments = {k: v for k, v in supplied.items() if k in taken} | arguments
        return f"from {module} import {attribute}", [f"model = {attribute}(**{arguments!r})"]
    if family == "timm":
        arguments = {"num_classes": classes, "in_chans": channels} | arguments
        return "import timm", [f"model = timm.create_model({name!r}, **{arguments!r})"]
    if name in WITH_AUXILIARY_HEADS:
        arguments = {"aux_logits": False, "init_weights": False} | arguments
    arguments = without_depth("torchvision", arguments)  # stochastic depth is for training only
    arguments = {"weights": None, "num_classes": classes} | arguments
    lines = [f"model = torchvision.models.get_model({name!r}, **{arguments!r})"]
    if channels != 3:
        stem = first_convolution(trained.model)
        lines += [
            f"stem = model.get_submodule({stem!r})",
            f"shape = (stem.out_channels, {channels}, *stem.kernel_size)",
            f"stem.in_channels, stem.weight = {channels}, torch.nn.Parameter(torch.zeros(shape))",
        ]
    return "import torchvision", lines
