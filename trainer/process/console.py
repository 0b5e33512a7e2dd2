"""Output for people: permanent lines on stdout, a temporary bar on stderr, no escape codes."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from trainer.process.launch import is_first

Counted = TypeVar("Counted")
Say = Callable[[str], None]  # prints one permanent line, as ``say`` does


def say(line: str = "", on_any_rank: bool = False) -> None:
    """Print a permanent line at once, also if stdout is a pipe. A progress bar stays below it.

    Only rank 0 prints, unless ``on_any_rank``. If stdout cannot be written to (``| head`` has
    ended, the terminal is closed, the disk is full), the run goes on and nothing more is printed.
    """
    if not (on_any_rank or is_first()):
        return
    line = line.encode(errors="backslashreplace").decode()  # file names need not be UTF-8
    try:
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
        else:
            print(line, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")


def say_but_no_weights(text: str) -> None:
    """``say``, but not of initial weights, which the checkpoint of a resumed run replaces."""
    if not text.startswith("weights "):
        say(text)


def noting(say: Say, notes: list[str]) -> Say:
    """``say``, which also adds the text of each new note to ``notes``."""

    def say_and_note(line: str) -> None:
        if line.startswith("note    ") and line[8:] not in notes:
            notes.append(line[8:])
        say(line)

    return say_and_note


def draws_bars(on_any_rank: bool = False) -> bool:
    """Whether bars are drawn: on rank 0, if stderr is a terminal that can redraw a line."""
    is_shown = on_any_rank or is_first()
    return is_shown and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def bar(
    items: Iterable[Counted],
    description: str,
    total: int,
    initial: int = 0,
    unit: str = "image",
    on_any_rank: bool = False,
) -> Iterator[Counted]:
    """Yield ``items`` with a progress bar; without a terminal print a line every 30 seconds.

    ``on_any_rank``: for work that one rank does while the others wait; else only rank 0 shows it.
    """
    if draws_bars(on_any_rank):
        from tqdm import tqdm

        yield from tqdm(
            items, description, total, initial=initial, unit=unit, leave=False, delay=0.3
        )
        return
    last = time.monotonic()
    for done, item in enumerate(items, start=initial + 1):
        yield item
        if time.monotonic() - last > 30:
            last = time.monotonic()
            say(f"{description}: {done:,} of {total:,}", on_any_rank)


def duration(seconds: float) -> str:
    """A duration for people: ``1m35s`` for 95 seconds, ``0.4s`` for 0.42."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
