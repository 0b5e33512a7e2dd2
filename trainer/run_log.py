"""What a run writes and prints while it trains: metrics.jsonl, TensorBoard, a line an epoch."""

import json
import time
from pathlib import Path
from typing import Any, Self

from trainer.config import Config
from trainer.console import Table, duration
from trainer.disk import AppendedFile
from trainer.events import Events


class RunLog:
    """The three places, kept in step. Times go to TensorBoard and the terminal only.

    metrics.jsonl holds none, so that it is equal to the byte for two runs of one seed.
    """

    def __init__(
        self, run: Path, config: Config, first_step: int | None = None, metrics_length: int = 0
    ) -> None:
        """Open all three. Of a resumed run ``first_step`` is the first to be logged (again)."""
        self.events = Events(run, first_step)
        self.metrics = AppendedFile(run / "metrics.jsonl", metrics_length)
        self.epochs, self.epochs_logged = config.train.epochs, 0
        self.began = time.monotonic()
        self.last_step = (first_step or 0) - 1  # the last one of which the rates are drawn
        self.table: Table | None = None

    def step(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Log a step of the epoch that is under way (counted from 1)."""
        self._line({"step": step, "epoch": epoch, **values})
        self.events.scalars(values, step)
        self.last_step = step

    def epoch(self, record: dict[str, Any], speed: float, is_best: bool) -> None:
        """Log a finished epoch: its line of metrics, its images/s, and whether it is the best."""
        self._line(record)
        values = {name: record[name] for name in record if name not in ("step", "epoch")}
        new = {n: v for n, v in values.items() if self.last_step < record["step"] or n[:3] != "lr/"}
        self.events.scalars(new | {"perf/images_per_second": speed}, record["step"])
        self.events.flush()
        cells = {"epoch": f"{record['epoch']}/{self.epochs}"}
        for name, value in values.items():
            if name == "train/loss_epoch":
                cells["train/loss"] = f"{value:.4f}"
            elif name == "lr/group0":
                cells["lr"] = f"{value:.3g}"
            elif name.startswith("val/"):
                cells[name] = f"{value:.4f}"
        self.epochs_logged += 1
        an_epoch = (time.monotonic() - self.began) / self.epochs_logged
        left = duration(an_epoch * (self.epochs - record["epoch"]))
        cells |= {"images/s": f"{speed:,.0f}", "left": left}
        if self.table is None:
            self.table = Table(list(cells))
        self.table.row(list(cells.values()), "* best" if is_best else "")

    def _line(self, values: dict[str, Any]) -> None:
        self.metrics.write((json.dumps(values) + "\n").encode())

    def flush(self) -> int:
        """Let others see what was logged; the length of metrics.jsonl in bytes."""
        self.events.flush()
        return self.metrics.length

    def sync(self) -> None:
        """Bring what was flushed to the disk; may be called from another thread."""
        self.metrics.sync()
        self.events.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.metrics.close()
        self.events.close()
