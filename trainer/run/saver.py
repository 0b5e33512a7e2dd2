"""Writes checkpoints in a thread: a step waits for a copy of the state, not for the disk."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from trainer.process.errors import NonFiniteLoss
from trainer.run.checkpoint import Entry, is_finite, refused, write_best, write_checkpoint


class Saver:
    """Writes checkpoints and best weights in a thread; ``check`` and ``wait`` raise its errors."""

    def __init__(
        self, run: Path, keep: int, sync_log: Callable[[], None], best_entry: Entry | None = None
    ) -> None:
        """``sync_log`` syncs the log to the disk; it is called before each write."""
        self.run, self.keep, self.sync_log, self.best_entry = run, keep, sync_log, best_entry
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None
        self.memory: dict[str, Any] | None = None  # the last copy, for the next one

    def save(
        self,
        step: int,
        state: dict[str, Any],
        card: dict[str, Any] | None,
        checkpoint: bool,
        average: dict[str, Any] | None = None,
    ) -> None:
        """Write ``state`` if ``checkpoint`` is true; with a ``card``, its weights as the best ones.

        ``average`` are the best weights if they are an average rather than the state's own.
        ``state`` must not change before ``wait``.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, step, state, card, checkpoint, average)

    def _write(
        self,
        step: int,
        state: dict[str, Any],
        card: dict[str, Any] | None,
        checkpoint: bool,
        average: dict[str, Any] | None,
    ) -> None:
        tensors = (state["model"], state["optimizer"], state.get("average"), average)
        if not all(map(is_finite, tensors)):
            raise NonFiniteLoss(
                f"a weight is infinite or NaN after step {step}; that state is not saved. "
                "Try a lower optimizer.lr, or train.clip_grad_norm=1."
            )
        try:
            self.sync_log()
            if card and (average or not checkpoint):
                self.best_entry = write_best(self.run, average or state["model"], card)
                card = None
        except OSError as error:
            raise refused(f"{self.run}: the best weights", error) from None
        if checkpoint:
            best_entry = self.best_entry
            self.best_entry = write_checkpoint(self.run, step, state, self.keep, best_entry, card)

    def check(self) -> None:
        """Raise the error of a finished write, without waiting for an unfinished one."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written; raise the error of a failed write."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Self:
        self._thread.submit(int).result()  # a system that refuses the thread does so before a step
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # waits until the current write is complete
