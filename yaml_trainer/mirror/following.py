"""Brings trackers up to date with run folders: once, or for as long as the runs go on."""

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from trainer.comparing.listing import runs_below
from trainer.process.console import Say
from trainer.process.errors import RunError, in_plain_words
from trainer.process.lock import PLAIN_FILE, hold, is_by_another
from trainer.process.words import visible
from yaml_trainer.mirror.about import About, about_run
from yaml_trainer.mirror.points import Lines, Rows, contradicts, count, merge, missing
from yaml_trainer.mirror.tracker import Tracker, Unreachable

POLL = 1.0  # seconds between two looks at a run, at least
SHARE = 20  # a look that computes for t seconds is followed by a pause of 20 t: 5 % of a core,
LONGEST_POLL = 10.0  # but not by more seconds than these
TRIES = 4  # of a server that does not answer, once the run has ended
LONGEST = 60.0  # seconds between two tries


@dataclass(frozen=True)
class Task:
    """What the command line asks for. wait: seconds for a run to begin, or to be resumed."""

    name: str
    open_tracker: Callable[[], Tracker]
    with_model: bool = False
    follow: bool = False
    wait: float = 0.0


class Mirror:
    """One run in one tracker."""

    def __init__(self, run: Path, task: Task, say: Say) -> None:
        self.run, self.task, self.say = run, task, say
        self.lines = Lines(run / "metrics.jsonl")
        self.tracker: Tracker = task.open_tracker()
        self.have: Rows | None = None  # what the tracker holds; None: not known
        self.told: About | None = None  # what the tracker was told beside the points
        self.added = self.replaced = 0
        self.is_over = self.is_followed = False
        self.failure = ""
        self._ended_at: float | None = None
        self._tries, self._next_try = 0, 0.0
        self._held = ExitStack()

    def lock(self) -> None:
        """Hold the run for this tracker; raises RunError if another mirror does.

        A folder that may not be written to has no lock.
        """
        if (file := locked(self.run / f"mirror-{self.task.name}.lock")) is not None:
            self._held.enter_context(file)
        else:
            self.say(f"note    {self.run} is read-only: no second mirror is kept away")

    def look(self) -> About:
        """Bring the tracker up to date once; returns the run's state. Raises Unreachable."""
        about = about_run(self.run, self.task.with_model)  # before the points: those are not less
        if about.is_running:
            self._ended_at = None
        elif self._ended_at is None:
            self._ended_at = time.monotonic()
        is_over = self._ended_at is not None and (
            about.status == "done" or time.monotonic() - self._ended_at >= self.task.wait
        )
        try:
            self._bring_up_to_date(about, is_over)
        except BaseException:
            self.have = self.told = None  # what was sent may have arrived or not
            raise
        self.is_over = is_over or not self.task.follow
        return about

    def _bring_up_to_date(self, about: About, is_over: bool) -> None:
        if is_over:
            self.lines = Lines(self.run / "metrics.jsonl")  # each byte again, for the last word
        steps = self.lines.read()
        rows = self.lines.rows
        if about.test:
            last = max(rows, default=0)  # several models as one have no lines
            rows = rows | {last: rows.get(last, {}) | about.test}
            steps.add(last)
        if self.have is None:
            self.have = self.tracker.open(about)
            steps = set(rows)
        if contradicts(self.have, rows, steps | set(self.have) if is_over else steps, is_over):
            self.tracker.begin_again()
            self.have, self.told, steps = {}, None, set(rows)
            self.replaced += 1
        if new := missing(self.have, rows, steps):
            self.tracker.add(new)
            merge(self.have, new)
            self.added += count(new)
        if about != self.told:
            self.tracker.describe(about)
            self.told = about

    def try_to_look(self) -> About | None:
        """``look``, unless the server did not answer lately; None if it does not answer now."""
        if time.monotonic() < self._next_try:
            return None
        try:
            about = self.look()
        except Unreachable as error:
            self._tries += 1
            pause = min(2.0**self._tries, LONGEST)
            self._next_try = time.monotonic() + pause
            if self._tries == 1:
                self.say(f"note    {self.task.name} does not answer, it is tried again: {error}")
            if (self._ended_at or not self.task.follow) and self._tries >= TRIES:
                raise RunError(
                    f"{self.run}: {self.task.name} at {self.tracker.where()} does not answer "
                    f"({error}). Points are missing there; the same command adds them."
                ) from None
            return None
        if self._tries:
            self.say(f"note    {self.task.name} answers again")
        self._tries = 0
        return about

    def close(self) -> None:
        """Let the tracker write what waits, and free the run."""
        try:
            self.tracker.close()
        finally:
            self._held.close()

    def summary(self, about: About) -> str:
        """One line: where, how many points, what is new."""
        points = count(self.have or {})
        again = " (begun again: it held what the run has not)" if self.replaced else ""
        left = f"; left out, no numbers: {', '.join(sorted(self.lines.left_out))}"
        return visible(
            f"{self.task.name:<7} {self.run} is {about.status}: {points:,} points, "
            f"{self.added:,} of them new{again}, in {self.tracker.where()}"
            f"{left if self.lines.left_out else ''}"
        )


def locked(path: Path) -> IO[str] | None:
    """An open file that holds a lock; None if it cannot be made. Raises RunError if it is held."""
    try:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT | PLAIN_FILE, 0o666), "a")
    except OSError:
        return None
    try:
        hold(file)
    except OSError as error:
        file.close()
        if is_by_another(error):
            raise RunError(f"{path.parent} is being mirrored by another process.") from None
        return None
    return file


def mirror_all(
    folders: Sequence[Path], task: Task, say: Say, killed: Callable[[Path], None]
) -> list[str]:
    """Mirror every run in the folders; returns a line for each run that could not be mirrored.

    ``killed`` is called for a run that was killed while it was followed.
    """
    mirrors: dict[Path, Mirror] = {}
    failures: list[str] = []
    looks: dict[str, None] = {}  # the commands to look that were told
    began = time.monotonic()
    tell_wait(folders, task, say)
    try:
        while True:
            computed = time.process_time()
            for run in dict.fromkeys(path for folder in folders for path in runs_below(folder)):
                if run not in mirrors and (run / "config.yaml").is_file():
                    mirrors[run] = Mirror(run, task, say)
                    attempt(mirrors[run], mirrors[run].lock, failures)
            for mirror in mirrors.values():
                if not mirror.is_over:
                    attempt(mirror, lambda one=mirror: step(one, say, killed, looks), failures)  # type: ignore[misc]
            waits = not mirrors and task.follow and time.monotonic() - began < task.wait
            if all(one.is_over for one in mirrors.values()) and not waits:
                for mirror in mirrors.values():
                    tell_look(mirror, say, looks)
                return failures
            computed = time.process_time() - computed
            time.sleep(max(POLL, min(SHARE * computed, LONGEST_POLL)))
    finally:
        for mirror in mirrors.values():
            mirror.close()


def tell_wait(folders: Sequence[Path], task: Task, say: Say) -> None:
    """Say that a run is waited for, if none has begun."""
    if task.follow and task.wait and not any(is_begun(folder) for folder in folders):
        where = ", ".join(map(str, folders))
        say(visible(f"waits   for a run in {where}, at most {task.wait / 60:g} min"))


def is_begun(folder: Path) -> bool:
    """Whether a folder holds a run that can be mirrored."""
    return any((run / "config.yaml").is_file() for run in runs_below(folder))


def tell_look(mirror: Mirror, say: Say, looks: dict[str, None]) -> None:
    """Say how to look at what the tracker holds, if it is known, once for each place."""
    command = visible(mirror.tracker.look()) if mirror.have is not None else ""
    if command and command not in looks:
        looks[command] = None
        say(f"look    {command}")


def step(mirror: Mirror, say: Say, killed: Callable[[Path], None], looks: dict[str, None]) -> None:
    """Look at a run once; say that it is followed, and at its end what came of it."""
    before = mirror.told
    about = mirror.try_to_look()
    if about is None:
        return
    if before is not None and before.is_running and about.status == "interrupted":
        say(f"note    {mirror.run} was killed, or its machine died")
        killed(mirror.run)
    if not mirror.is_over and not mirror.is_followed:
        mirror.is_followed = True
        place = f"{mirror.task.name} {mirror.tracker.where()}"
        say(visible(f"follows {mirror.run} to {place}, {count(mirror.have or {}):,} points so far"))
        tell_look(mirror, say, looks)
    if mirror.is_over:
        mirror.tracker.close()
        say(mirror.summary(about))


def attempt(mirror: Mirror, action: Callable[[], None], failures: list[str]) -> None:
    """Do ``action``; what a run's folder or its tracker refuses ends this mirror only."""
    try:
        action()
    except (RunError, OSError, sqlite3.Error) as error:
        mirror.is_over = True
        where = "" if isinstance(error, RunError) else f"{mirror.run}: {mirror.task.name}: "
        failures.append(f"{where}{in_plain_words(error)}")
