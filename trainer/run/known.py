"""A run's known.pt: what tells known images from unknown ones, and what it rejects."""

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.components import SCORES
from trainer.components.label_sets import fewest_images, rank_of
from trainer.components.novelty import TENSORS, Novelty, split_scores, threshold_of
from trainer.process.errors import RunError, UsageError
from trainer.process.words import listed, visible
from trainer.run.best import require_done
from trainer.run.disk import read_json, sha256_of
from trainer.run.tensors import load_tensors, save_tensors

KNOWN_FILE = "known.pt"
CONTENT = {"weights", "layer", "learned", "scores"}  # its keys


@dataclass(frozen=True)
class Rejection:
    """An image is unknown if its ``score`` is above ``threshold``, which keeps ``level`` of val.

    model: gives logits and scores. val: how many images decided. kept: how many of so many
    ``tested`` images of test the threshold keeps.
    """

    model: Novelty
    score: str
    level: Fraction
    threshold: float
    val: int
    kept: int
    tested: int

    @property
    def network(self) -> "Rejecting":
        """The model with a second output, for other programs."""
        return Rejecting(self.model, SCORES.index(self.score), self.threshold)

    def of(self, scores: Tensor) -> Tensor:
        """The column of this score: (N,) of (N, 3)."""
        return scores[:, SCORES.index(self.score)]

    def rejects(self, score: float | None) -> bool:
        """Whether an image with this score is unknown."""
        return score is not None and not score <= self.threshold


class Rejecting(nn.Module):
    """A ``Novelty`` with two outputs: logits (B, K), and (B,) the score less the threshold.

    Above 0 the image is unknown.
    """

    def __init__(self, model: Novelty, column: int, threshold: float) -> None:
        super().__init__()
        self.model, self.column, self.threshold = model, column, threshold

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and how far each image is from being known."""
        logits, scores = split_scores(self.model(images))
        return logits, scores[:, self.column] - self.threshold


def save_known(run: Path, weights: str, model: Novelty, scores: dict[str, Any]) -> dict[str, Any]:
    """Write known.pt; returns its size and SHA-256, which result.json has.

    weights: the SHA-256 of the model.pt that it is for. scores: part -> views (a name of
    ``evaluation.tta`` or "none") -> score -> (N,), ascending.
    """
    learned = {name: model.get_buffer(name).cpu() for name in TENSORS}
    content = {"weights": weights, "layer": model.layer, "learned": learned, "scores": scores}
    return save_tensors(run / KNOWN_FILE, content)


def read_known(run: Path, weights: str) -> dict[str, Any]:
    """The content of known.pt for these weights. Raises RunError if it is missing or another."""
    path, shown = run / KNOWN_FILE, visible(str(run / KNOWN_FILE))
    result = read_json(run / "result.json")
    if "members" in result:
        raise RunError(
            f"{run} was combined of other runs, and has no scores of its own for --reject; name "
            "one of these runs alone (members in result.json)."
        )
    novelty = result.get("novelty") or {}
    require_done(run, "--reject needs scores of the best weights")
    if not path.is_file() or "file" not in novelty:
        raise RunError(
            f"{shown} is missing, and --reject needs it. A run writes it at its end, unless it "
            "told why not (several labels, train.parallel=fsdp, a model without a last layer); "
            "runs of older versions have none. A new run has it."
        )
    if sha256_of(path) != novelty["file"]["sha256"]:
        raise RunError(f"{shown} is not the file of result.json: one of them was changed.")
    content: dict[str, Any] = load_tensors(path)
    if not isinstance(content, dict) or not content.keys() >= CONTENT:
        raise RunError(f"{shown} is damaged: expected {listed(sorted(CONTENT))} in it.")
    if content["weights"] != weights:
        raise RunError(
            f"{shown} was made for other weights than model.pt has now: the run has found better "
            "ones since. It is made anew when the run ends."
        )
    return content


def rejection_of(
    known: dict[str, Any], model: nn.Module, level: Fraction, score: str, tta: str | None
) -> Rejection:
    """What ``model`` rejects if it keeps ``level`` of known images by ``score``.

    known: the content of ``read_known``. tta: the views of an image, by name. Raises UsageError if
    there are too few val images, or none with these views.
    """
    views, scores = tta or "none", known["scores"]
    if views not in scores["val"]:
        had = listed([f"--tta {name}" for name in scores["val"]], "or")
        raise UsageError(f"--reject: val has no scores with --tta {views}; give {had}.")
    val, test = (scores[part][views][score] for part in ("val", "test"))
    if rank_of(len(val), level) > len(val):
        most = math.floor(len(val) / (len(val) + 1) * 100) / 100
        raise UsageError(
            f"--reject {float(level):g}: {len(val):,} val images cannot support it; at least "
            f"{fewest_images(level):,} are needed. In a new run give val more images, such as by "
            f"split.ratios=[6,2,2]; or ask for {most:g} or less."
        )
    scorer = Novelty(model, known["layer"], known["learned"])
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    threshold = threshold_of(val, level)
    kept = int((test <= threshold).sum())
    return Rejection(scorer.to(device).eval(), score, level, threshold, len(val), kept, len(test))
