"""Training in Python: ``train`` what a YAML file describes. Its faults are told before torch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaml_trainer.errors import all_errors
from yaml_trainer.model import Model, load

if TYPE_CHECKING:
    pass

Overrides = Sequence[str] | Mapping[str, object]


@dataclass(frozen=True)
class Run:
    """A run's folder, and what is read from it.

    folder: holds config.yaml, result.json, metrics.jsonl, model.pt, the report.
    """

    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        """The content of result.json: status, best epoch, val and test results, seconds."""
        from trainer.run.disk import read_json

        with all_errors():
            return read_json(self.folder / "result.json")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The epochs of metrics.jsonl, each with its metrics: "train/loss_epoch", "val/loss" ..."""
        from trainer.run.folder import read_metrics

        with all_errors():
            lines = read_metrics(self.folder / "metrics.jsonl")
        return [line for line in lines if "train/loss_epoch" in line]

    def model(self, *, device: str | None = None, threads: int | None = None) -> Model:
        """The best model; see ``load``."""
        return load(self.folder, device=device, threads=threads)


def train(
    file: str | os.PathLike[str] | None = None,
    overrides: Overrides = (),
    *,
    runs: str | os.PathLike[str] = "runs",
    resume: str | os.PathLike[str] | Run | None = None,
) -> Run:
    """Train what a YAML file describes, as ``python -m trainer.train`` does.

    Args:
        file: the YAML file; None if ``resume`` names a run.
        overrides: settings to change: ["train.epochs=3"] or {"train.epochs": 3}.
        runs: the folder in which the run's folder is made.
        resume: a run to go on with, or a folder of runs for its newest.

    Returns:
        The run, which is done.

    Raises:
        TrainerError: what the command would tell, with its exit code. A run whose
            ``train.budget`` is used up raises it too, with exit code 75, saved and resumable.
        KeyboardInterrupt: after Ctrl-C; the state is saved, and the message says how to go on.
    """
    raise NotImplementedError
