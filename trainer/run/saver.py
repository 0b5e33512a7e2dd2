"""Writing beside training: the step waits for a copy of the state, not for the disk."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from trainer.process.errors import NonFiniteLoss
from trainer.run.checkpoint import Entry, is_finite, refused, write_best, write_checkpoint


class Saver:
    """Writes a run's states and best weights, one moment of the run after the other, in a thread.

    What goes wrong there is raised by the next ``check`` or ``wait``.
    """

    def __init__(
        self, run: Path, keep: int, sync_log: Callable[[], None], best: Entry | None = None
    ) -> None:
        """``sync_log`` brings to the disk what was logged up to a state, before that is seen."""
        self.run, self.keep, self.sync_log, self.best = run, keep, sync_log, best
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None
        self.memory: dict[str, Any] | None = None  # the last copy, for the next one

    def save(
        self,
        step: int,
        state: dict[str, Any],
        card: dict[str, Any] | None,
        checkpoint: bool,
        judged: dict[str, Any] | None = None,
    ) -> None:
        """Write ``state`` as a checkpoint, its weights as the best ones that ``card`` describes.

        Either may be left out. ``judged`` are the best weights where they are not the state's own,
        but an average. Nobody may change ``state`` before ``wait``.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, step, state, card, checkpoint, judged)

    def _write(
        self,
        step: int,
        state: dict[str, Any],
        card: dict[str, Any] | None,
        checkpoint: bool,
        judged: dict[str, Any] | None,
    ) -> None:
        parts = (state["model"], state["optimizer"], state.get("average"), judged)
        if not all(map(is_finite, parts)):
            raise NonFiniteLoss(
                f"a weight is infinite or NaN after step {step}; that state is not saved. "
                "Try a lower optimizer.lr, or train.clip_grad_norm=1."
            )
        try:
            self.sync_log()
            if card and (judged or not checkpoint):
                self.best = write_best(self.run, judged or state["model"], card)
                card = None
        except OSError as error:
            raise refused(f"{self.run}: the best weights", error) from None
        if checkpoint:
            self.best = write_checkpoint(self.run, step, state, self.keep, self.best, card)

    def check(self) -> None:
        """Raise what writing has failed with, without waiting for it."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until all is written; raise what that failed with."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # what is being written becomes whole, whatever else happened
