"""The trials of a sweep and the next one: from a list, or from a study that workers share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from trainer.sweeping.folder import Trial
from trainer.sweeping.plan import Plan
from trainer.sweeping.space import points

if TYPE_CHECKING:
    from trainer.sweeping.study import Study

# What a worker asks for trials. The names ask, tell and report are Optuna's.
Trials: TypeAlias = "Listed | Study"


class Listed:
    """The trials of a grid or of random draws. All are known; their state is in their folders."""

    def __init__(self, plan: Plan) -> None:
        self.trials = [Trial(number, each) for number, each in enumerate(points(plan.sweep))]

    def known(self) -> Sequence[Trial]:
        """All trials."""
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
        """Every trial; None says that its runs are in this folder."""
        return [(trial, None) for trial in self.trials]


def trials_of(plan: Plan, folder: Path, identity: str) -> Trials:
    """The trials of a sweep: a Study for tpe or with ``storage``, else a list."""
    if plan.sweep.method == "tpe" or plan.sweep.storage is not None:
        from trainer.sweeping.study import Study

        return Study(plan, folder, identity)
    return Listed(plan)
