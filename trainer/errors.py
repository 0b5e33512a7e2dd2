"""What can go wrong, in a user's words: faults of a configuration, and a process's exit codes."""

import enum
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAX_SHOWN = 50  # more faults than this in one message help nobody


class Exit(enum.IntEnum):
    """Exit codes of every command, so that a scheduler can tell what to do next."""

    DONE = 0
    CONFIG = 2
    DATA = 3
    NON_FINITE = 4
    CHECKPOINT = 5
    DISTRIBUTED = 6
    BUG = 70
    STOPPED = 75


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a configuration: where it stands, and what to do about it.

    ``path`` is dotted as on the command line ("transforms.train.1.padding"; "" for all of it).
    ``line`` and ``column`` count from 1; an override's file is "command line", and it has neither.
    """

    path: str
    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    source: str | None = None  # the file's line, or the override as it was typed

    def __str__(self) -> str:
        """Returns ``file:line:column: path: message``, and the source line with a caret below."""
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        text = ": ".join(part for part in (place, self.path, self.message) if part)
        if self.source is None:
            return text
        if self.line is None or self.column is None:
            return f"{text}\n        {self.source}"
        # A tab in the source stays a tab below it, so that the caret stands under its character.
        indent = "".join("\t" if char == "\t" else " " for char in self.source[: self.column - 1])
        return f"{text}\n{self.line:>7} | {self.source}\n        | {indent}^"


class ConfigError(Exception):
    """A configuration that cannot run, with all of its faults in the order of the file."""

    def __init__(self, faults: Sequence[Fault], file: str | None = None) -> None:
        super().__init__(faults, file)
        self.file = file
        # Those of the command line come last.
        self.faults = sorted(
            dict.fromkeys(faults),
            key=lambda fault: (fault.file != file, fault.line or 0, fault.column or 0),
        )

    def __str__(self) -> str:
        """Returns the list as a user sees it."""
        count = len(self.faults)
        head = f"{count} fault{'s' * (count != 1)}" + (f" in {self.file}" if self.file else "")
        rest = [f"... and {count - MAX_SHOWN} more"] if count > MAX_SHOWN else []
        return "\n".join([head, *map(str, self.faults[:MAX_SHOWN]), *rest])


class UsageError(Exception):
    """The command line names something that is not there."""


class RunError(Exception):
    """A run folder, a checkpoint or the disk does not allow what was asked for."""


class NonFiniteLoss(Exception):
    """The loss or the weights are no longer numbers; nothing of them is saved."""


class Stopped(Exception):
    """A signal ended the run early; its state is saved and it can be resumed."""


def exit_code_of(action: Callable[[], None]) -> int:
    """Run ``action`` and return its exit code; what went wrong is told on stderr."""
    from datasets import DataError

    codes: list[tuple[type[Exception], Exit]] = [
        (ConfigError, Exit.CONFIG),
        (UsageError, Exit.CONFIG),
        (DataError, Exit.DATA),
        (NonFiniteLoss, Exit.NON_FINITE),
        (RunError, Exit.CHECKPOINT),
        (Stopped, Exit.STOPPED),
    ]
    try:
        action()
        return Exit.DONE
    except KeyboardInterrupt:  # before the first step: from there on a signal saves and stops
        print("interrupted before training began; nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stdout = open(os.devnull, "w")
        return Exit.DONE
    except Exception as error:
        for kind, code in codes:
            if isinstance(error, kind):
                print(error, file=sys.stderr)
                return code
        if isinstance(error, OSError) and error.strerror:  # the disk is full, or not ours to write
            print(f"{error.filename or 'writing the run'}: {error.strerror}", file=sys.stderr)
            return Exit.CHECKPOINT
        traceback.print_exc()
        print(
            "this is a fault of the trainer itself; please report the lines above", file=sys.stderr
        )
        return Exit.BUG
