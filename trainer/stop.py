"""Stopping on request: the first signal ends a run after its step, the second at once."""

import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Self, TypeVar

from trainer.errors import Stopped

Item = TypeVar("Item")


class StopRequest:
    """Whether SIGINT or SIGTERM came; the handler only says so and remembers it."""

    def __init__(self) -> None:
        self.came = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        os.write(2, b"\nstopping after this step and saving; again: stop at once, unsaved\n")
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, signal.SIG_DFL)

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.came:
            raise Stopped

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield ``items`` until a signal comes; then raise Stopped."""
        for item in items:
            self.check()
            yield item
