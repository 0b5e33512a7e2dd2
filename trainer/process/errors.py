"""The exceptions that a user may meet, and the faults of a configuration."""

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass

# Pieces of PyTorch's messages when memory runs out, on a GPU or on a CPU.
NO_MEMORY = "out of memory|not enough memory|[Cc]an('t|not) allocate memory"

NO_ANSWER = "the model gives no finite numbers (NaN or infinity)"

MAX_FAULTS = 50  # in one message; more do not help


@dataclass(frozen=True)
class Fault:
    """One fault of a configuration: where it is, and what to do about it.

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
        place = ":".join(str(piece) for piece in (self.file, self.line, self.column) if piece)
        text = ": ".join(piece for piece in (place, self.path, self.message) if piece)
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
        # Faults of the command line come last.
        self.faults = sorted(
            dict.fromkeys(faults),
            key=lambda fault: (fault.file != file, fault.line or 0, fault.column or 0),
        )

    def __str__(self) -> str:
        """Returns the list as a user sees it."""
        count = len(self.faults)
        head = f"{count} fault{'s' * (count != 1)}" + (f" in {self.file}" if self.file else "")
        rest = [f"... and {count - MAX_FAULTS} more"] if count > MAX_FAULTS else []
        return "\n".join([head, *map(str, self.faults[:MAX_FAULTS]), *rest])


class UsageError(Exception):
    """The command line names something that is not there."""


class RunError(Exception):
    """A run folder, a checkpoint or the disk does not allow what the command needs."""


class NonFiniteLoss(Exception):
    """The loss or the weights became NaN or infinite; they are not saved."""


class NoAnswer(NonFiniteLoss):
    """A trained model's answers are NaN or infinite, in an evaluation or a prediction."""


class OutOfMemory(Exception):
    """The memory of the machine or of the GPU is not enough."""


class WorkerDied(Exception):
    """A process that reads images for the trainer ended unexpectedly."""


class ProcessFailed(Exception):
    """A rank failed or was lost, so all ranks end. is_own: this process is the one that failed."""

    def __init__(self, message: str, is_own: bool = True) -> None:
        super().__init__(message)
        self.is_own = is_own


class Stopped(BaseException):
    """The process was asked to stop. ``except Exception`` does not catch it."""


def in_plain_words(error: Exception) -> Exception:
    """Turn an error about memory or the disk into one of this module; return others as they are."""
    text = " ".join(str(error).split())
    full = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if full or (isinstance(error, RuntimeError) and re.search(NO_MEMORY, text)):
        return OutOfMemory(
            f"out of memory: {text[:300] or 'no more could be had'}\n"
            "Smaller images, a smaller loader.batch_size, train.accumulate=2 or loader.cache=off "
            "need less."
        )
    if isinstance(error, OSError) and error.strerror:  # such as a full disk
        return RunError(f"{error.filename or 'writing the output'}: {error.strerror}")
    return error
