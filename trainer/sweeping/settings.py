"""A sweep's YAML as types: what each key may hold, and its default."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainer.config.config import NAME_IN_WORDS, NAME_PATTERN
from trainer.config.settings import AtLeastOne, Count, Frozen

Method = Literal["grid", "each", "random", "tpe"]


class Range(Frozen):
    """Numbers from ``low`` to ``high``: only whole ones if both ends and ``step`` are whole."""

    low: int | float
    """The smallest number."""
    high: int | float
    """The largest number, which may be drawn too."""
    log: bool = False
    """Draw the logarithm evenly: for learning rates and similar settings."""
    step: int | float | None = None
    """Draw only low, low + step, ...; null: any number, or any whole one."""

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        ends = (self.low, self.high, 1 if self.step is None else self.step)
        return all(type(end) is int for end in ends)


class MedianPruner(Frozen):
    """Stop a trial that is worse than the median of earlier trials at the same epoch."""

    name: Literal["MedianPruner"] = "MedianPruner"
    n_startup_trials: Count = 5
    """The first trials, which are not stopped: later ones are compared with them."""
    n_warmup_steps: Count = 0
    """The first epochs of a trial, in which it is not stopped."""
    interval_steps: AtLeastOne = 1
    """Epochs between two comparisons."""


class PercentilePruner(Frozen):
    """Stop a trial that is not among the best ``percentile`` percent at the same epoch."""

    name: Literal["PercentilePruner"]
    percentile: Annotated[float, Field(ge=0, le=100)]
    """The percentage of trials that go on."""
    n_startup_trials: Count = 5
    """The first trials, which are not stopped: later ones are compared with them."""
    n_warmup_steps: Count = 0
    """The first epochs of a trial, in which it is not stopped."""
    interval_steps: AtLeastOne = 1
    """Epochs between two comparisons."""


class SuccessiveHalvingPruner(Frozen):
    """Let the best of ``reduction_factor`` trials go on, repeatedly (Li et al., 2018, ASHA)."""

    name: Literal["SuccessiveHalvingPruner"]
    min_resource: AtLeastOne = 1
    """The epoch of the first comparison."""
    reduction_factor: Annotated[int, Field(ge=2)] = 4
    """One of this many trials goes on, until this many times the epoch."""
    min_early_stopping_rate: Count = 0
    """The number of first comparisons that are left out."""


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Pruner = Annotated[
    MedianPruner | PercentilePruner | SuccessiveHalvingPruner,
    Field(
        discriminator="name",
        title="pruner",
        examples=["MedianPruner", "PercentilePruner", "SuccessiveHalvingPruner"],
    ),
]


class Sweep(Frozen):
    """What is varied, how, and how often."""

    method: Method
    """grid: every combination; each: one choice changed at a time; random: independent draws;
    tpe: draws that learn from results."""
    params: dict[str, list[Any] | Range] = {}
    """Keys of the experiment, each with a list of choices or a range {low, high, log, step}."""
    trials: AtLeastOne | None = None
    """The number of trials of random and tpe; a grid has one per combination, and
    each has one per choice."""
    seed: Count = 0
    """Seed of the draws of random and tpe; the seeds of the runs are ``seeds``."""
    seeds: Annotated[list[Count], Field(min_length=1)] | None = None
    """Each trial has a run with each of these seeds; null: with the experiment's seed."""
    folds: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Each trial has a run on each of this many folds (split.folds, split.fold); null: no folds."""
    prune: Annotated[Pruner, BeforeValidator(_named)] | None = None
    """Which trials of tpe are stopped before their end; null: none."""
    storage: str | None = None
    """A journal file, on a disk that the machines share; null: in the sweep's folder."""


class SweepFile(Frozen):
    """The whole YAML file of a sweep."""

    name: Annotated[
        str,
        Field(pattern=NAME_PATTERN, examples=["lr"], json_schema_extra={"$comment": NAME_IN_WORDS}),
    ]
    """The name of the sweep's folder in --runs; default: the file's name."""
    base: str
    """The experiment's YAML, relative to this file."""
    sweep: Sweep
