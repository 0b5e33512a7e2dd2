"""Which trials there are and which is next: from a list, or from a study that workers share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.sweeping.folder import Trial
from trainer.sweeping.plan import Plan
from trainer.sweeping.space import points


class Trials(Protocol):
    """What a worker needs of a list or a study. The names ask, tell and report are Optuna's."""

    def known(self) -> Sequence[Trial]:
        """Trials of this folder that may have runs to do, in order."""

    def ask(self) -> Trial | None:
        """A new trial; None if there are enough."""

    def report(self, trial: Trial, values: dict[int, float]) -> bool:
        """Pass on the monitored values by epoch (from 1). Returns whether to stop the trial."""

    def tell(self, trial: Trial, rows: Sequence[dict[str, Any]], value: float | None) -> None:
        """Pass on how a trial's runs ended, and the trial's value; None if it failed."""

    def alive(self, trials: Sequence[Trial]) -> None:
        """Let other workers know that this one is still at work on ``trials``."""

    def others(self) -> int:
        """The number of trials on which workers with other folders are at work."""

    def everything(self) -> list[tuple[Trial, list[dict[str, Any]] | None]]:
        """Every trial, with its runs' ends if they are not in this folder; else None."""


class Listed:
    """The trials of a grid or of random draws. All are known; their state is in their folders."""

    def __init__(self, plan: Plan) -> None:
        self.trials = [
            Trial(number, settings) for number, settings in enumerate(points(plan.sweep))
        ]

    def known(self) -> Sequence[Trial]:
        """All of them."""
        return self.trials

    def ask(self) -> Trial | None:
        """Return None: all trials are known."""
        return None

    def report(self, trial: Trial, values: dict[int, float]) -> bool:
        """Return False: no trial is stopped early."""
        return False

    def tell(self, trial: Trial, rows: Sequence[dict[str, Any]], value: float | None) -> None:
        """Do nothing: each run has its end.json."""

    def alive(self, trials: Sequence[Trial]) -> None:
        """Do nothing: each run has its claim."""

    def others(self) -> int:
        """Return 0: there are no other folders."""
        return 0

    def everything(self) -> list[tuple[Trial, list[dict[str, Any]] | None]]:
        """All trials; their runs are in this folder."""
        return [(trial, None) for trial in self.trials]


def trials_of(plan: Plan, folder: Path, identity: str) -> Trials:
    """The trials of a sweep: a Study for tpe or with ``storage``, else a list."""
    if plan.sweep.method == "tpe" or plan.sweep.storage is not None:
        from trainer.sweeping.study import Study

        return Study(plan, folder, identity)
    return Listed(plan)
