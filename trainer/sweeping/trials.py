"""Which trials there are, and which come next: a list in the folder, or a study that is shared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.sweeping.folder import Trial
from trainer.sweeping.reading import Plan
from trainer.sweeping.space import points


class Trials(Protocol):
    """What the work asks of either."""

    def known(self) -> Sequence[Trial]:
        """Trials of this folder that may have runs to make, in order."""

    def ask(self) -> Trial | None:
        """The next trial; None where there are as many as were asked for."""

    def report(self, trial: Trial, values: dict[int, float]) -> bool:
        """Tell a trial's values after epochs (from 1); whether it should be stopped."""

    def tell(self, trial: Trial, rows: Sequence[dict[str, Any]], value: float | None) -> None:
        """Tell how a trial's runs ended, and its value; None where it failed."""

    def alive(self, trials: Sequence[Trial]) -> None:
        """Let others know that these are being worked on."""

    def others(self) -> int:
        """How many trials are being worked on elsewhere."""

    def everything(self) -> list[tuple[Trial, list[dict[str, Any]] | None]]:
        """Every trial; with its runs' ends where they are not in this folder."""


class Listed:
    """The trials of a grid or of random draws: all are known, and their folders tell the rest."""

    def __init__(self, plan: Plan) -> None:
        self.trials = [
            Trial(number, settings) for number, settings in enumerate(points(plan.sweep))
        ]

    def known(self) -> Sequence[Trial]:
        """All of them."""
        return self.trials

    def ask(self) -> Trial | None:
        """None: all are known."""
        return None

    def report(self, trial: Trial, values: dict[int, float]) -> bool:
        """None is stopped."""
        return False

    def tell(self, trial: Trial, rows: Sequence[dict[str, Any]], value: float | None) -> None:
        """Nothing: end.json of each run tells it."""

    def alive(self, trials: Sequence[Trial]) -> None:
        """Nothing: the claims tell it."""

    def others(self) -> int:
        """None: there is but this folder."""
        return 0

    def everything(self) -> list[tuple[Trial, list[dict[str, Any]] | None]]:
        """All of them, none elsewhere."""
        return [(trial, None) for trial in self.trials]


def trials_of(plan: Plan, folder: Path, identity: str) -> Trials:
    """The folder's own list; or a study, for tpe and where ``storage`` names one."""
    if plan.sweep.method == "tpe" or plan.sweep.storage is not None:
        from trainer.sweeping.study import Study

        return Study(plan, folder, identity)
    return Listed(plan)
