"""Runs parts of the benchmark in processes of their own; measures what each uses."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from trainer.process.errors import RunError

ROOT = Path(__file__).resolve().parent.parent
INTERVAL = 0.05  # seconds between two looks at the memory
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100  # a second, in /proc
STORE = "TRAINER_STORE"  # the environment variable with the folder of kept images


@dataclass(frozen=True)
class Sample:
    """What a process and all below it use at a moment: seconds since 1970, bytes, CPU seconds.

    memory is None where the system does not tell it. cpu counts from their start.
    """

    moment: float
    memory: int | None
    cpu: float


@dataclass
class Usage:
    """Samples of a process from its start to its end; none where there is no /proc."""

    samples: list[Sample] = field(default_factory=list)

    def peak(self) -> int | None:
        """The most bytes at any time; None if unknown."""
        known = [sample.memory for sample in self.samples if sample.memory is not None]
        return max(known, default=None)

    def cpu_between(self, begin: float, end: float) -> float | None:
        """The CPU seconds used between two moments; None if unknown."""
        first, last = self.cpu_at(begin), self.cpu_at(end)
        return None if first is None or last is None else last - first

    def cpu_at(self, moment: float) -> float | None:
        """The CPU seconds used until a moment, between two samples in proportion."""
        for one, other in pairwise(self.samples):
            if one.moment <= moment <= other.moment:
                share = (moment - one.moment) / (other.moment - one.moment)
                return one.cpu + share * (other.cpu - one.cpu)
        return self.samples[-1].cpu if self.samples else None


@dataclass(frozen=True)
class Ran:
    """A process that ended by itself: its start (seconds since 1970), its exit code, its output."""

    began: float
    code: int
    said: str
    usage: Usage

    def require_done(self) -> None:
        """Raise RunError with the process's output unless its exit code is 0."""
        if self.code:
            raise RunError(f"a process ended with exit code {self.code}\n{self.said}")

    @property
    def refuses_cache(self) -> bool:
        """Whether the trainer does not know this value of ``loader.cache``."""
        return self.code in (1, 2) and "loader.cache" in self.said  # torchrun makes a 2 a 1


def run_python(words: Sequence[str], folder: Path, store: Path) -> Ran:
    """Run ``python WORDS`` from the project's root, with its images kept in the folder ``store``.

    The output goes into a file in ``folder``. If this process is interrupted, that one is ended.
    """
    output, usage = folder / "output.txt", Usage()
    with output.open("wb") as file:
        began = time.time()
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, STORE: str(store)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes to this process only, which ends that one
        )
        try:
            with watched(process.pid, usage):
                code = process.wait()
        finally:
            if process.returncode is None:
                end(process)
    return Ran(began, code, output.read_text(encoding="utf-8", errors="replace"), usage)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that runs, and all below it: first by asking, after ten seconds by force."""
    every = family(process.pid)
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        for pid in every:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.wait()


@contextmanager
def watched(pid: int, usage: Usage) -> Iterator[None]:
    """Context manager: inside, a thread samples what a process and all below it use."""
    done = threading.Event()

    def watch() -> None:
        pause = INTERVAL
        while not done.wait(pause):
            began = time.thread_time()
            if every := family(pid):
                sample = Sample(time.time(), proportional_size(every), sum(every.values()))
                usage.samples.append(sample)
            pause = max(INTERVAL, 9 * (time.thread_time() - began))  # at most 10 % of a core

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def family(pid: int, processes: Path = Path("/proc")) -> dict[int, float]:
    """CPU seconds of a process, of those that it started, of those that these started, and so on.

    Children that have ended count for their parent. Empty where there is no such folder.
    """
    children: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for name in os.listdir(processes) if processes.exists() else ():
        with suppress(OSError, ValueError, IndexError):  # it is no process, or has ended
            own = int(name)
            with open(f"{processes}/{name}/stat", "rb") as file:
                words = file.read().rpartition(b")")[2].split()
            children.setdefault(int(words[1]), []).append(own)
            seconds[own] = sum(map(int, words[11:15])) / TICKS
    found = [pid]
    for one in found:  # grows
        found += children.get(one, [])
    return {one: seconds[one] for one in found if one in seconds}


def proportional_size(pids: Iterable[int], processes: Path = Path("/proc")) -> int | None:
    """The sum of the processes' PSS in bytes: a page that n processes share counts 1/n for each.

    None if the system tells it of none of them.
    """
    sizes = []
    for pid in pids:
        with suppress(OSError):  # it has ended, or there is no such file
            for line in (processes / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    sizes.append(1024 * int(line.split()[1]))
    return sum(sizes) if sizes else None


def points_of_run(runs: Path, tag: str) -> list[tuple[float, float]]:
    """(seconds since 1970, value) of each point of a tag, from the events of the one run there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = runs.glob("*/*/")
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return [(point.wall_time, point.value) for point in events.Scalars(tag)]
