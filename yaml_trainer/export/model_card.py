"""Makes what lies beside an exported model: its card, and a program that uses it.

The program needs nothing of this project. It reads the card, which holds the transforms: it is
the same for every run but for the file's name and, for a folder of weights (Hugging Face's layout),
the lines that build the model.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from models import MODELS
from models.arguments import without_depth
from models.ensemble import Ensemble
from models.external import WITH_AUXILIARY_HEADS
from models.weights import first_convolution
from trainer.build.trained import TrainedModel, probability_kind
from trainer.components import OF_SEVERAL_LABELS
from trainer.components.own import COPY
from trainer.config.construct import factory_of
from trainer.config.signatures import parameters_of
from trainer.drawing.page import render
from trainer.loop.evaluate import scalars
from trainer.process.errors import PREFIX
from trainer.run.environment import ROOT
from trainer.run.known import Rejection

MAX_LISTED = 100  # classes in the README; all of them are in config.json
MODEL_CARD_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.j2"
SCRIPT_TEMPLATE = Path(__file__).parent / "templates" / "use.py.j2"
# Older versions average padded pools wrongly; AlexNet's normalisation uses such pools.
ONNX_RUNTIME = "import onnxruntime  # 1.25 or newer"
READERS = {"onnx": ONNX_RUNTIME, "int8": ONNX_RUNTIME, "openvino": "import openvino"}
ENDINGS = {"int8": "int8.onnx", "openvino": "xml"}


def describe_model(trained: TrainedModel, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a program needs to use the weights, as plain values; nothing about this machine."""
    config = trained.config.model_dump(mode="json")
    best, thresholds = result.get("best") or {}, trained.thresholds
    return {
        "name": trained.config.name,
        "classes": list(trained.classes),
        "model": architecture_of(trained),
        "input": {
            "name": "images",
            "type": "float32",
            "shape": ["batch", *trained.input_shape],
            "meaning": "images after the transforms below",
        },
        "output": {"name": "logits", "type": "float32", "shape": ["batch", len(trained.classes)]},
        "probabilities": kind_of_probabilities(trained),
        **({"temperature": trained.temperature} if trained.temperature else {}),
        **({} if thresholds is None else {"thresholds": thresholds.tolist()}),
        "image_channels": trained.image_channels,
        "image_bits": trained.form.bits,
        "transforms": config["transforms"]["eval"],
        "dataset": trained.config.dataset.name,
        "epoch": best.get("epoch"),
        "test": scalars(result.get("test_plain") or result.get("test") or {}),  # it answers plainly
        "made_with": f"torch {torch.__version__}",
    }


def architecture_of(trained: TrainedModel) -> dict[str, Any]:
    """The model's name and arguments; of several that answer as one, those of each."""
    if not trained.voters:
        model: dict[str, Any] = trained.config.model.model_dump(mode="json")
        return model
    members = [
        {"model": voter.model.model_dump(mode="json"), "order": voter.order}
        for voter in trained.voters
    ]
    mean_of = probability_kind(trained.config, trained.thresholds is not None)
    return {"name": "Ensemble", "mean_of": mean_of, "members": members}


def about_unknown(rejection: Rejection) -> dict[str, Any]:
    """What a card tells of the second output."""
    return {
        "unknown": {
            "name": "unknown",
            "type": "float32",
            "shape": ["batch"],
            "meaning": f"{rejection.score} less threshold; above 0 the image is unlike the known "
            f"ones; {float(rejection.level):g} of these are to be kept",
            "score": rejection.score,
            "threshold": rejection.threshold,
            "level": float(rejection.level),
            "val_images": rejection.val,
            "test_kept": [rejection.kept, rejection.tested],
        }
    }


def kind_of_probabilities(trained: TrainedModel) -> str:
    """How probabilities come from logits, in words that the generated programs read."""
    if trained.thresholds is not None:
        return "sigmoids, one a label; a label is predicted from its threshold on"
    if trained.config.loss.name in OF_SEVERAL_LABELS:
        return "sigmoids divided by their sum"
    return "softmax of the logits"


def hub_files(trained: TrainedModel, card: Mapping[str, Any]) -> dict[str, str]:
    """The files of a model's folder in Hugging Face's layout, without the weights, by path."""
    classes = list(trained.classes)
    family, _, name = card["model"]["name"].partition("/")
    names = [voter.model.name for voter in trained.voters] or [card["model"]["name"]]
    modules = [module_of(MODELS[one])[0] for one in names if one in MODELS]
    modules += [Ensemble.__module__.removeprefix(PREFIX)] if trained.voters else []
    channels, height, width = trained.input_shape
    config: dict[str, Any] = {
        "architectures": [name or family],
        "model": card["model"],
        "num_classes": len(classes),
        "num_labels": len(classes),
        "id2label": {str(label): text for label, text in enumerate(classes)},
        "label2id": {text: label for label, text in enumerate(classes)},
        "num_channels": channels,
        "image_size": [height, width],
        "probabilities": card["probabilities"],
        "torch_dtype": "float32",
    }
    if "temperature" in card:
        config["temperature"] = card["temperature"]
    if "thresholds" in card:
        config |= {
            "thresholds": card["thresholds"],
            "problem_type": "multi_label_classification",
        }
    if family == "timm":  # so that timm.create_model("local-dir:FOLDER", pretrained=True) reads it
        config |= {
            "architecture": name.partition(".")[0],
            "model_args": {"in_chans": channels, **trained.config.model.arguments},
            "pretrained_cfg": {"num_classes": len(classes), "input_size": trained.input_shape},
        }
    preprocessor = {
        key: card[key] for key in ("input", "image_channels", "image_bits", "transforms")
    }
    use = program("safetensors", trained)
    return {
        "config.json": _json(config),
        "preprocessor_config.json": _json(preprocessor),
        "use.py": use,
        "README.md": readme(card, use),
        **(sources(modules) if modules else {}),
        **({COPY: trained.config.own.text} if trained.config.own.sha256 else {}),
    }


def sources(modules: Sequence[str]) -> dict[str, str]:
    """The source of modules of ``models``, and of all modules there that they import, by path.

    They lie beside the program, as in a checkout: the wheel's name of their package is taken out.
    """
    found: dict[str, str] = {}
    waiting = ["models", *modules]
    while waiting:
        file = Path(str(sys.modules[PREFIX + waiting.pop()].__file__))
        path = file.relative_to(ROOT).as_posix()
        if path not in found:
            text = file.read_text(encoding="utf-8")
            found[path] = text.replace(f"{PREFIX}models", "models")
            inner = re.findall(r"^(?:from|import) (models[\w.]*)", found[path], re.MULTILINE)
            waiting += [each for each in inner if PREFIX + each in sys.modules]
    return found


def module_of(line: str) -> tuple[str, str]:
    """The module that a line of the table of models names, as in a checkout, and the class."""
    module, _, attribute = line.partition(":")
    return module.removeprefix(PREFIX), attribute


def readme(card: Mapping[str, Any], use: str) -> str:
    """A model card: what the model is, how good it is, how to use it."""
    model = card["model"]["name"]
    family = model.partition("/")[0]
    library = family if family in ("timm", "torchvision") else "pytorch"
    metrics = [{"type": name, "name": name, "value": value} for name, value in card["test"].items()]
    head: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "pytorch", "safetensors", model.rpartition("/")[2]],
    }
    if metrics:
        head["metrics"] = [metric["name"] for metric in metrics]
        task = {"type": "image-classification", "name": "Image classification"}
        data = {"type": card["dataset"], "name": card["dataset"], "split": "test"}
        results = [{"task": task, "dataset": data, "metrics": metrics}]
        head["model-index"] = [{"name": card["name"], "results": results}]
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return render(MODEL_CARD_TEMPLATE, card=card, front=front, use=use, max_listed=MAX_LISTED)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def program(
    kind: str, trained: TrainedModel, unknown: bool = False, whole: str | None = None
) -> str:
    """Python code that classifies images with a model file.

    kind: pt2, onnx, int8 (an ONNX file), openvino or safetensors. unknown: the model has this last
    output. whole: the file's name, without suffix, of a model that takes pictures and gives
    probabilities.
    """
    imports = ["import numpy as np", "from PIL import Image, ImageOps, UnidentifiedImageError"]
    built: list[str] = [""]
    own: list[str] = []
    reader, ending = READERS.get(kind, "import torch"), ENDINGS.get(kind, kind)
    if kind == "safetensors":
        needed, built = building_all(trained)
        of_folder = ("from models", f"from {Path(COPY).stem} ")
        own = sorted({line for line in needed if line.startswith(of_folder)})
        imports += ["from safetensors.torch import load_file", *({*needed} - {*own})]
    imports = sorted([*imports, reader], key=lambda line: (line.startswith("from"), line.lower()))
    name = whole or ("model" if kind == "safetensors" else trained.config.name)
    packages = {line.split()[1].partition(".")[0] for line in imports} - {"PIL"} | {"pillow"}
    values: dict[str, Any] = {"imports": [*imports, *own], "building": built}
    values["packages"] = sorted(packages)
    # Of files with their own channels or 16 bits the program reads arrays and plain pictures.
    values |= trained.form._asdict() | {"arrays": not trained.form.is_plain}
    # The threshold of ``unknown`` is that of the image alone.
    values |= {"whole": whole is not None, "tta": not unknown and trained.config.evaluation.tta}
    values |= {"at_least": trained.at_least, "side": shorter_side(trained)}
    kind = "onnx" if kind == "int8" else kind
    return render(SCRIPT_TEMPLATE, kind=kind, file=f"{name}.{ending}", unknown=unknown, **values)


def shorter_side(trained: TrainedModel) -> int:
    """The largest size to which a ``Resize`` of the run brings the shorter side; 0 without one."""
    sides = [0]
    for step in trained.config.transforms.eval:
        size = step.arguments.get("size")
        size = [size] if isinstance(size, int) else size or []
        if step.name == "Resize" and len(size) == 1 and not step.arguments.get("max_size"):
            sides += size
    return max(sides)


def building_all(trained: TrainedModel) -> tuple[list[str], list[str]]:
    """``building``, with a list of imports; of several models that answer as one, of all."""
    if not trained.voters:
        own, lines = building(trained)
        return [own], lines
    assert isinstance(trained.model, Ensemble)
    imports, built = ["from models.ensemble import Ensemble"], ["members = []"]
    for voter, model in zip(trained.voters, trained.model.members, strict=True):
        config = trained.config.model_copy(update={"model": voter.model})
        own, lines = building(replace(trained, config=config, model=model, voters=()))
        imports, built = [*imports, own], [*built, *lines, "members.append(model)"]
    orders = [voter.order for voter in trained.voters]
    made = f"model = Ensemble(members, {trained.model.mean_of!r}, {orders!r})"
    return imports, [*built, made]


def building(trained: TrainedModel) -> tuple[str, list[str]]:
    """The import, and the lines that build ``model``; the program loads the weights into it."""
    family, _, name = trained.config.model.name.partition("/")
    arguments = trained.config.model.arguments
    classes, (channels, *sides) = len(trained.classes), trained.input_shape
    if not name:  # a model of this project; its source is in the folder
        module, attribute = module_of(MODELS.get(family, f"{Path(COPY).stem}:{family}"))
        supplied = {"num_classes": classes, "in_channels": channels, "input_size": sides}
        taken = parameters_of(factory_of(MODELS, trained.config.model))
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
