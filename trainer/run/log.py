"""Logs a run while it trains: metrics.jsonl, TensorBoard, and a printed line for each epoch."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from trainer.config import Config
from trainer.drawing.columns import left_out, terminal_width
from trainer.process.console import duration, say
from trainer.run.disk import AppendedFile
from trainer.run.events import Events
from trainer.run.folder import read_metrics


def memory_used(device: torch.device) -> float | None:
    """The peak memory in MiB of this process, or of the GPU; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class Lengths(NamedTuple):
    """Bytes of metrics.jsonl and of the event file that belong to a state of the run."""

    metrics: int = 0
    events: int = 0


NO_LENGTHS = Lengths()
ON_CPU = torch.device("cpu")


class RunLog:
    """Writes metrics.jsonl, TensorBoard and the terminal.

    metrics.jsonl holds no times, so it is equal byte by byte in two runs with the same seed.
    """

    def __init__(
        self,
        run: Path,
        config: Config,
        lengths: Lengths = NO_LENGTHS,
        device: torch.device = ON_CPU,
    ) -> None:
        """Open the files; for a resumed run, ``lengths`` are those of its checkpoint."""
        self.events = Events(run, lengths.events)
        self.metrics = AppendedFile(run / "metrics.jsonl", lengths.metrics)
        self.run, self.lengths, self.device = run, lengths, device
        self.epochs, self.epochs_logged = config.train.epochs, 0
        self.every, self.shows_scalars = config.log.every.value, "scalars" in config.log.show
        self.began, self.monitor = time.monotonic(), config.train.monitor
        self.table: Table | None = None

    def step(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Log a step of the current epoch (counted from 1)."""
        self._line({"step": step, "epoch": epoch, **values})
        self.scalars(values, step)

    def epoch(self, epoch_metrics: dict[str, Any], speed: float | None, is_best: bool) -> None:
        """Log a finished epoch: its metrics, its images/s, and whether it is the best so far."""
        self._line(epoch_metrics)
        values = self._curves(epoch_metrics)
        if speed is not None:
            values["perf/images_per_second"] = speed
        if (memory := memory_used(self.device)) is not None:
            values["perf/memory_mib"] = memory
        self.scalars(values, epoch_metrics["step"])
        self.events.flush()
        cells = {"epoch": f"{epoch_metrics['epoch']}/{self.epochs}"}
        for name, value in epoch_metrics.items():
            if name == "train/loss_epoch":
                cells["train/loss"] = f"{value:.4f}"
            elif name == "lr/group0":
                cells["lr"] = f"{value:.3g}"
            elif name.startswith("val/"):
                cells[name] = f"{value:.4f}"
        self.epochs_logged += 1
        an_epoch = (time.monotonic() - self.began) / self.epochs_logged
        left = duration(an_epoch * (self.epochs - epoch_metrics["epoch"]))
        cells |= {"images/s": "" if speed is None else f"{speed:,.0f}", "left": left}
        if self.table is None:
            others = [name for name in cells if name.startswith("val/") and name != self.monitor]
            drop = ["images/s", "lr", *reversed(others), "left", "train/loss"]
            self.table = Table(list(cells), drop)
        self.table.row(list(cells.values()), "* best" if is_best else "")

    def _curves(self, line: dict[str, Any]) -> dict[str, float]:
        """Return the points of a line of metrics.jsonl for TensorBoard, each tag once a step."""
        twice = "train/loss_epoch" in line and line["step"] % self.every == 0
        return {
            name: value
            for name, value in line.items()
            if name not in ("step", "epoch") and not (twice and name.startswith("lr/"))
        }

    def begin_anew_what_is_lost(self, say: Callable[[str], None]) -> None:
        """Write the curves of metrics.jsonl again if the event file is gone or damaged."""
        for path in self.events.moved:
            say(f"note    {path.name}: damaged, or one too many; TensorBoard no longer reads it")
        if self.events.is_new and self.lengths.metrics:
            for line in read_metrics(self.run / "metrics.jsonl", self.lengths.metrics):
                self.scalars(self._curves(line), line["step"])

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add a point for each tag to TensorBoard, unless ``log.show`` leaves scalars out."""
        if self.shows_scalars:
            self.events.scalars(values, step)

    def _line(self, values: dict[str, Any]) -> None:
        self.metrics.write((json.dumps(values) + "\n").encode())

    def flush(self) -> Lengths:
        """Write what was logged; return the lengths of the files."""
        return Lengths(self.metrics.length, self.events.flush())

    def sync(self) -> None:
        """Sync what was flushed to the disk; may be called from another thread."""
        self.metrics.sync()
        self.events.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.metrics.close()
        self.events.close()


class Table:
    """Prints rows one by one; the first call prints the column names, which give the widths.

    Columns without room are left out, in the order of ``drop``, and named once.
    """

    def __init__(self, columns: Sequence[str], drop: Sequence[str] = ()) -> None:
        self.columns, self.drop = columns, drop
        self.shown: list[int] | None = None

    def row(self, cells: Sequence[str], mark: str = "") -> None:
        """Print one row; ``mark`` follows it."""
        widths = [max(len(column), 9) for column in self.columns]
        if self.shown is None:
            self._print_head(widths, terminal_width(without=10_000))
        shown = [cells[i].rjust(widths[i]) for i in self.shown or ()]
        say(f"{'  '.join(shown)}  {mark}".rstrip())

    def _print_head(self, widths: Sequence[int], room: int) -> None:
        out: list[str] = []
        for name in self.drop:
            kept = [w for w, column in zip(widths, self.columns, strict=True) if column not in out]
            if sum(kept) + 2 * len(kept) + len("* best") > room:
                out.append(name)
        self.shown = [i for i, column in enumerate(self.columns) if column not in out]
        if lines := left_out(out, room, "metrics.jsonl has all"):
            say(f"note    {' '.join(lines)}")
        say("  ".join(self.columns[i].rjust(widths[i]) for i in self.shown))


class NoLog(RunLog):
    """The log of a rank other than 0: it writes nothing, because rank 0 does."""

    def __init__(self) -> None: ...

    def step(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Nothing."""

    def epoch(self, epoch_metrics: dict[str, Any], speed: float | None, is_best: bool) -> None:
        """Nothing."""

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Nothing."""

    def flush(self) -> Lengths:
        """No lengths."""
        return NO_LENGTHS

    def sync(self) -> None:
        """Nothing."""

    def __exit__(self, *_: object) -> None: ...
