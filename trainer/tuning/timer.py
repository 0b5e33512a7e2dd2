"""Ends a measurement after some seconds, or at Ctrl-C, wherever it is."""

import signal
import threading
from collections.abc import Callable
from types import FrameType

from trainer.process.stop import RETRY, is_importing

CTRL_C = "Ctrl-C"
AGAIN = 1.0  # seconds after which the exception is raised again, if a library has swallowed it


class Enough(BaseException):
    """The time is used up, or Ctrl-C was pressed. ``except Exception`` does not catch it."""


def at_most(seconds: float, work: Callable[[], None]) -> str:
    """Call ``work``, and end it by Enough at Ctrl-C or after ``seconds``.

    Returns why it ended early, or "". Outside of the main thread, where no signals come, and on
    systems without timers ``work`` must end by itself.
    """
    reasons: list[str] = []
    is_over = False

    def end(number: int, frame: FrameType | None) -> None:
        if is_over:
            return
        if not reasons:
            reasons.append(CTRL_C if number == signal.SIGINT else f"{seconds:g} s are over")
        waits = is_importing(frame)  # an exception may leave importlib's lock held
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, RETRY if waits else AGAIN, AGAIN)
        if not waits:
            raise Enough

    if threading.current_thread() is not threading.main_thread():
        work()
        return ""
    numbers = [signal.SIGINT, *([signal.SIGALRM] if hasattr(signal, "setitimer") else [])]
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        try:
            for number in numbers:
                signal.signal(number, end)
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
            work()
        finally:
            is_over = True  # a signal may come between any two lines, also of these
    except Enough:
        is_over = True
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return "".join(reasons)
