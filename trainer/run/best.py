"""Reads the best weights of a run's folder, and checks them; knows no job."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from trainer.config import Config
from trainer.process.errors import RunError
from trainer.run.checkpoint import is_finite
from trainer.run.disk import read_json, sha256_of
from trainer.run.tensors import load_tensors


def require_best(run: Path) -> None:
    """Raise RunError if a run has no best weights."""
    if not (run / "model.pt").is_file():
        raise RunError(
            f"{run / 'model.pt'} is missing: no epoch was the best yet, or it was removed."
        )


def best_weights(run: Path) -> dict[str, Any]:
    """The run's best weights; raises RunError if model.pt is not the file of model.json."""
    require_best(run)
    expected = read_json(run / "model.json").get("weights")
    if not isinstance(expected, dict) or sha256_of(run / "model.pt") != expected.get("sha256"):
        raise RunError(f"{run / 'model.pt'} is not the file that model.json describes.")
    content: dict[str, Any] = load_tensors(run / "model.pt")
    return content


def load_best(model: nn.Module, run: Path) -> None:
    """Load the run's best weights into ``model``; RunError if they do not fit or are not finite."""
    content = best_weights(run)
    try:
        model.load_state_dict(content)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"{run / 'model.pt'} does not fit the run's model: {reason}") from None
    if not is_finite(content):
        raise RunError(f"{run / 'model.pt'} holds weights that are no numbers.")


def require_same_model(run: Path, config: Config) -> None:
    """Raise RunError if config.yaml and model.json differ in the model or in eval transforms."""
    card = read_json(run / "model.json")
    settings = json.loads(json.dumps(config.model_dump(mode="json")))
    expected = {"model": settings["model"], "transforms": settings["transforms"]["eval"]}
    for name, value in expected.items():
        if card.get(name) != value:
            raise RunError(f"{run / 'config.yaml'}: its {name} is not that of model.json.")
