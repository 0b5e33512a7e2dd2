"""A sweep's YAML as types: what each key may hold, and what it holds by default."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainer.settings import AtLeastOne, Count, Frozen

Method = Literal["grid", "random", "tpe"]


class Range(Frozen):
    """Numbers from ``low`` to ``high``; whole ones where both ends (and ``step``) are."""

    low: int | float
    """The least."""
    high: int | float
    """The largest, which may be drawn too."""
    log: bool = False
    """Draw the logarithm evenly: for learning rates and the like."""
    step: int | float | None = None
    """Draw only low, low + step, ...; null: any number, or any whole one."""

    @property
    def is_whole(self) -> bool:
        """Whether it is one of whole numbers."""
        ends = (self.low, self.high, 1 if self.step is None else self.step)
        return all(type(end) is int for end in ends)


class MedianPruner(Frozen):
    """Stop what is worse than the median of earlier trials at the same epoch."""

    name: Literal["MedianPruner"] = "MedianPruner"
    n_startup_trials: Count = 5
    """Trials that are not stopped, to compare with."""
    n_warmup_steps: Count = 0
    """Epochs in which none is stopped."""
    interval_steps: AtLeastOne = 1
    """Epochs between two looks."""


class PercentilePruner(Frozen):
    """Stop what is not among the best ``percentile`` percent at the same epoch."""

    name: Literal["PercentilePruner"]
    percentile: Annotated[float, Field(ge=0, le=100)]
    """How many of a hundred go on."""
    n_startup_trials: Count = 5
    """Trials that are not stopped, to compare with."""
    n_warmup_steps: Count = 0
    """Epochs in which none is stopped."""
    interval_steps: AtLeastOne = 1
    """Epochs between two looks."""


class SuccessiveHalvingPruner(Frozen):
    """Let 1 of ``reduction_factor`` go on at ever more epochs (Li et al., 2018, ASHA)."""

    name: Literal["SuccessiveHalvingPruner"]
    min_resource: AtLeastOne = 1
    """Epochs of the first look."""
    reduction_factor: Annotated[int, Field(ge=2)] = 4
    """One of so many goes on, for so many times as long."""
    min_early_stopping_rate: Count = 0
    """Looks that are left out at the beginning."""


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
    """grid: every combination; random: independent draws; tpe: draws that learn from results."""
    params: dict[str, Annotated[list[Any], Field(min_length=1)] | Range] = {}
    """Keys of the experiment, each with a list of choices or a range {low, high, log, step}."""
    trials: AtLeastOne | None = None
    """How many settings random and tpe try; a grid knows it by itself."""
    seed: Count = 0
    """Decides the draws of random and tpe; the runs' own seeds are ``seeds``."""
    seeds: Annotated[list[Count], Field(min_length=1)] | None = None
    """Each setting is run with each of these seeds; null: with the experiment's own."""
    folds: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Each setting is run on each of so many folds (split.folds, split.fold); null: on none."""
    prune: Annotated[Pruner, BeforeValidator(_named)] | None = None
    """Which trials of tpe are stopped before their end; null: none."""
    storage: str | None = None
    """A journal file, on a disk that the machines share; null: in the sweep's folder."""


class SweepFile(Frozen):
    """The whole file."""

    name: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", examples=["lr"])]
    """The sweep's folder in --runs; default the file's name."""
    base: str
    """The experiment's YAML, relative to this file."""
    sweep: Sweep
