"""Where a run stands: its counters, clocks and means."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

SPENT = ("start", "data", "eval", "log", "save")  # what takes time beside the steps' arithmetic
PLAIN = (
    *("epoch", "batch", "step", "best", "reference"),
    *("stale_epochs", "early_stopped", "skipped", "rates"),
)
CLOCKS = ("train_seconds", "seconds", "aside", "speeds")  # saved, but no weight depends on them


@dataclass
class Means:
    """Mean loss and accuracy of training images: since the last logged step, and of the epoch.

    totals: for each of the two the sum of losses, the correct images, and all images.
    """

    totals: list[float] = field(default_factory=lambda: [0.0] * 6)

    def add(self, loss: float, correct: float, images: int) -> None:
        """Add a batch: its mean loss, and how many of its images were classified correctly."""
        for first in (0, 3):
            self.totals[first] += loss * images
            self.totals[first + 1] += correct
            self.totals[first + 2] += images

    def take_logged(self) -> dict[str, float]:
        """The means since the last call, which then begin anew."""
        taken, self.totals = self.totals[:3], [0.0] * 3 + self.totals[3:]
        return _means("", *taken)

    def take_epoch(self) -> dict[str, float]:
        """The means of the epoch, which then begin anew."""
        taken, self.totals = self.totals[3:], self.totals[:3] + [0.0] * 3
        return _means("_epoch", *taken)


def _means(suffix: str, loss: float, correct: float, images: float) -> dict[str, float]:
    mean, accuracy = (loss / images, correct / images) if images else (math.nan, math.nan)
    return {f"train/loss{suffix}": mean, f"train/accuracy{suffix}": accuracy}


@dataclass
class State:
    """The counters of a run; the rest of its state is in the job's model, optimizer and schedule.

    epoch counts finished epochs, batch the steps done in the current one, step all steps.
    """

    means: Means = field(default_factory=Means)
    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)  # the best epoch's line of metrics.jsonl
    reference: float | None = None  # the monitored value from which early stopping counts
    stale_epochs: int = 0  # epochs since then
    early_stopped: bool = False
    skipped: int = 0  # steps left out because their loss or gradient was not finite
    train_seconds: float = 0.0  # of the steps, with reading, logging and saving between them
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPENT, 0.0))
    aside: float = 0.0  # seconds of train_seconds that logging and saving took
    speeds: list[float] = field(default_factory=list)  # images/s of each uninterrupted epoch
    rates: list[float] = field(default_factory=list)  # of the last step, one for each group
    saved_at: float = field(default_factory=time.monotonic)  # not saved: clocks differ
    saved: tuple[int, int] | None = None  # the position of the last checkpoint
    norm: float = math.nan  # the length of the last step's gradient; logged with it, or never

    @contextmanager
    def spending(self, work: str, in_training: bool = False) -> Iterator[None]:
        """Context manager: add the body's seconds to ``work``; ``in_training`` to aside too."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self.seconds[work] += took
            self.aside += took if in_training else 0.0

    @property
    def position(self) -> tuple[int, int]:
        """(step, epoch): the step is the same before and after an evaluation, the epoch is not."""
        return self.step, self.epoch
