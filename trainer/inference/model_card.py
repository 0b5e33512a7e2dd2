"""Makes the card of an exported model, and the files of a folder in Hugging Face's layout."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from models import MODELS
from trainer.build.trained import TrainedModel
from trainer.components import OF_SEVERAL_LABELS
from trainer.drawing.page import render
from trainer.inference.script_writer import program
from trainer.loop.evaluate import scalars
from trainer.run.environment import ROOT

MAX_LISTED = 100  # classes in the README; all of them are in config.json
MODEL_CARD_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.j2"


def describe_model(trained: TrainedModel, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a program needs to use the weights, as plain values; nothing about this machine."""
    config = trained.config.model_dump(mode="json")
    best, thresholds = result.get("best") or {}, trained.thresholds
    return {
        "name": trained.config.name,
        "classes": list(trained.classes),
        "model": config["model"],
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
    family, _, name = trained.config.model.name.partition("/")
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
        **({} if name else sources(MODELS[family].partition(":")[0])),
    }


def sources(module: str) -> dict[str, str]:
    """The source of a module of ``models``, and of all modules there that it imports, by path."""
    found: dict[str, str] = {}
    waiting = ["models", module]
    while waiting:
        file = Path(str(sys.modules[waiting.pop()].__file__))
        path = file.relative_to(ROOT).as_posix()
        if path not in found:
            found[path] = file.read_text(encoding="utf-8")
            inner = re.findall(r"^(?:from|import) (models[\w.]*)", found[path], re.MULTILINE)
            waiting += [each for each in inner if each in sys.modules]
    return found


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
