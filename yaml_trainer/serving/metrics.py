"""Counts requests, and tells the counts in Prometheus' text format, version 0.0.4."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TEXT = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "yaml_trainer"


class Histogram:
    """How many values were at most each of ``bounds``, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, what: str) -> list[str]:
        """Its lines: cumulative counts, sum and count."""
        lines, below = [f"# HELP {name} {what}", f"# TYPE {name} histogram"], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*lines, f"{name}_sum {self.total:.6f}", f"{name}_count {below}"]


class Counts:
    """What the server has answered since its start."""

    def __init__(self) -> None:
        self.answers = Counter[tuple[str, int]]()  # by path and status
        self.seconds = Histogram(SECONDS)
        self.images = Histogram(IMAGES)

    def text(self, requests: int, held: int) -> str:
        """All counts. requests: how many are at work or waiting now. held: their bytes."""
        name = f"{PREFIX}_requests_total"
        lines = [f"# HELP {name} Answers by path and status.", f"# TYPE {name} counter"]
        for (path, status), count in sorted(self.answers.items()):
            lines.append(f'{name}{{path="{path}",status="{status}"}} {count}')
        of_time = "Seconds from a request to its answer, of predictions."
        lines += self.seconds.lines(f"{PREFIX}_predict_seconds", of_time)
        of_size = "Images in the batch that an image was predicted in."
        lines += self.images.lines(f"{PREFIX}_batch_images", of_size)
        for name, what, now in (
            (
                "requests_in_progress",
                "Requests to predict that are read, wait or are at work.",
                requests,
            ),
            ("bytes_in_progress", "Bytes that these requests hold.", held),
        ):
            name = f"{PREFIX}_{name}"
            lines += [f"# HELP {name} {what}", f"# TYPE {name} gauge", f"{name} {now}"]
        return "\n".join(lines) + "\n"
