"""Stopping on request: the first signal ends a run after its step, the second at once."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Self, TypeVar

from trainer.process.errors import Stopped
from trainer.process.launch import WORLD_SIZE, is_first
from trainer.process.quit import SIGNALS, quit_at_once

Watched = TypeVar("Watched")
Handler = Callable[[int, FrameType | None], object] | signal.Handlers
BUDGET = 1000  # stands for a used-up budget among the numbers of signals

RETRY = 0.05  # seconds


class StopRequest:
    """Whether the process was asked to stop, by a signal or because its time is used up.

    Before ``training_begins`` there is nothing to save. A process that runs the command is ended
    by ``quit_at_once``; where another program called ``main``, a signal raises Stopped, as Ctrl-C
    does. From then on the handler only remembers the signal, and ``check`` raises.
    at_second: the handler of a second Ctrl-C. SIG_DFL, the default, ends the process.
    """

    def __init__(self, at_second: Handler = signal.SIG_DFL) -> None:
        self._at_second = at_second
        self.reason = ""  # "SIGTERM" or "train.budget (30m)"; empty if no stop was asked for
        # Given this rank's signal (0: none), returns the one that any rank got.
        self.agree: Callable[[int], int] = int
        self._nothing_to_save = True
        self._deadline, self._budget = math.inf, ""
        self._began = time.monotonic()
        self._asked: float | None = None  # when the first signal came; not set by the budget
        self._signal = 0  # the number of the first signal
        self._is_one_of_several = os.environ.get(WORLD_SIZE, "1") != "1"
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            before = signal.getsignal(number)
            # nohup has SIGHUP ignored; None: a program that embeds Python has its own handler
            if before not in (signal.SIG_IGN, None):
                self._previous[number] = before
                if before is not quit_at_once:  # which stays until training begins
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            if handler is quit_at_once and not self._nothing_to_save:
                handler = signal.SIG_IGN  # it is saved and done; ``leave`` follows
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            # `timeout` sends a signal twice, to the process and its group; a person is slower.
            # torchrun passes signals on to ranks that got them already, or when a rank has ended.
            passed_on = self._is_one_of_several and number != signal.SIGINT
            patience = 3.0 if self._is_one_of_several else 0.5
            if not passed_on and time.monotonic() - self._asked > patience:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self._nothing_to_save and is_importing(frame):
            threading.Timer(RETRY, os.kill, (os.getpid(), number)).start()
            return
        self.reason, self._asked = signal.Signals(number).name, time.monotonic()
        self._signal = number
        for again in self._previous:
            if again == signal.SIGINT:
                if not self._is_one_of_several:
                    signal.signal(again, self._at_second)
            elif again != signal.SIGTERM:  # a shell that ends sends SIGHUP, then the system does
                signal.signal(again, signal.SIG_IGN)
        if self._nothing_to_save:
            raise Stopped(f"stopped by {self.reason}")
        if not is_first() or (self._is_one_of_several and number != signal.SIGINT):
            return  # torchrun may have sent the signal because another rank is lost
        try:
            os.write(2, b"\nstopping after this step and saving; again: stop at once, unsaved\n")
        except OSError:
            pass  # the terminal is gone

    @property
    def came_early(self) -> bool:
        """Whether the process was asked to stop before ``training_begins``."""
        return bool(self.reason) and self._nothing_to_save

    def training_begins(self, budget: int | None) -> None:
        """From now on a stop waits for ``check``. ``budget``: minutes since the command began."""
        self._nothing_to_save = False
        for number in self._previous:
            signal.signal(number, self._handle)
        if budget is not None:
            self._deadline, self._budget = self._began + budget * 60, f"train.budget ({budget}m)"

    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self._began

    def check(self) -> None:
        """Raise Stopped if any rank got a signal or the budget is used up."""
        if not self.reason and time.monotonic() >= self._deadline:
            self.reason = self._budget
        mine = self._signal or (BUDGET if self.reason else 0)
        if asked := self.agree(mine):
            if not self.reason:
                self.reason = self._budget if asked == BUDGET else signal.Signals(asked).name
            raise Stopped(f"stopped by {self.reason}")

    def watch(self, items: Iterable[Watched], rounds: int = 0) -> Iterator[Watched]:
        """Yield ``items``, with a ``check`` before each, which raises Stopped.

        ``rounds``: the least number of checks. All ranks must check equally often.
        """
        done = 0
        for item in items:
            self.check()
            yield item
            done += 1
        for _ in range(done, rounds):
            self.check()


def is_importing(frame: FrameType | None) -> bool:
    """Whether ``frame`` or a caller is importlib's, whose lock an exception may leave held."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
