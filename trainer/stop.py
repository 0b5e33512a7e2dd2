"""Stopping on request: the first signal ends a run after its step, the second at once."""

import math
import os
import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Self, TypeVar

from trainer.errors import Stopped

Item = TypeVar("Item")

# What asks a program to end: Ctrl-C, a scheduler, a terminal that is closed.
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class StopRequest:
    """Whether the process was asked to stop, by a signal or because its time is used up.

    Until ``training_begins`` there is nothing to save, and a signal raises Stopped where it finds
    the program, as Ctrl-C does. From then on the handler only remembers it.
    """

    def __init__(self) -> None:
        self.reason = ""  # "SIGTERM", or "train.budget (30m)"; empty while nothing came
        self._nothing_to_save = True
        self._deadline, self._budget = math.inf, ""
        self._began = time.monotonic()
        self._asked: float | None = None  # when the first signal came; a budget is none
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish goes first
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            # `timeout` sends its signal to the process and to its group; a person takes longer.
            if time.monotonic() - self._asked > 0.5:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.reason, self._asked = signal.Signals(number).name, time.monotonic()
        for again in self._previous:
            if again == signal.SIGINT:
                signal.signal(again, signal.SIG_DFL)
            elif again != signal.SIGTERM:  # a shell that ends sends SIGHUP, and then the system
                signal.signal(again, signal.SIG_IGN)
        if self._nothing_to_save:
            raise Stopped(f"stopped by {self.reason}")
        try:
            os.write(2, b"\nstopping after this step and saving; again: stop at once, unsaved\n")
        except OSError:
            pass  # the terminal is gone

    @property
    def came_early(self) -> bool:
        """Whether the process was asked to stop while there was nothing to save."""
        return bool(self.reason) and self._nothing_to_save

    def training_begins(self, budget: int | None) -> None:
        """From now on a stop waits for the next check; ``budget`` is in minutes, from the start."""
        self._nothing_to_save = False
        if budget is not None:
            self._deadline, self._budget = self._began + budget * 60, f"train.budget ({budget}m)"

    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self._began

    def check(self) -> None:
        """Raise Stopped if a signal came or the budget is used up."""
        if not self.reason and time.monotonic() >= self._deadline:
            self.reason = self._budget
        if self.reason:
            raise Stopped(f"stopped by {self.reason}")

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield ``items`` until a stop is asked for; then raise Stopped."""
        for item in items:
            self.check()
            yield item
