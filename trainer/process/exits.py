"""How every command ends: errors become a message on stderr and an exit code."""

import enum
import os
import signal
import sys
import traceback
from collections.abc import Callable

from datasets import DataError
from trainer.process.errors import (
    ConfigError,
    NonFiniteLoss,
    OutOfMemory,
    ProcessFailed,
    RunError,
    Stopped,
    UsageError,
    WorkerDied,
    in_plain_words,
)
from trainer.process.launch import is_first
from trainer.process.restarts import restart_count


class Exit(enum.IntEnum):
    """Exit codes of every command, by which a scheduler can decide what to do next."""

    DONE = 0
    CONFIG = 2
    DATA = 3
    NON_FINITE = 4
    CHECKPOINT = 5
    DISTRIBUTED = 6
    MEMORY = 7
    WORKER = 8
    BUG = 70
    STOPPED = 75


CODES = {
    ConfigError: Exit.CONFIG,
    UsageError: Exit.CONFIG,
    DataError: Exit.DATA,
    NonFiniteLoss: Exit.NON_FINITE,
    RunError: Exit.CHECKPOINT,
    OutOfMemory: Exit.MEMORY,
    WorkerDied: Exit.WORKER,
    ProcessFailed: Exit.DISTRIBUTED,
}


def exit_code_of(action: Callable[[], None]) -> int:
    """Run ``action`` and return its exit code. An error's message goes to stderr."""
    open_missing_streams()
    try:
        action()
        sys.stdout.flush()  # raises here if the disk is full, not when Python ends
        return Exit.DONE
    except Stopped as stopped:
        print_message(message_of(stopped))
        return Exit.STOPPED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has ended, as `head` does
        sys.stdout = open(os.devnull, "w")
        return Exit.DONE
    except Exception as raised:
        error = in_plain_words(raised)
        for kind, code in CODES.items():
            if isinstance(error, kind):
                cause = error.__cause__ if getattr(error, "is_own", False) else None
                if isinstance(cause, Exception) and not isinstance(
                    in_plain_words(cause), tuple(CODES)
                ):
                    traceback.print_exception(cause)  # a bug of the trainer on one rank
                print_message(message_of(error))
                return code
        if is_first():  # all ranks raise it, so rank 0 prints it
            traceback.print_exc()
            fault = "this is a fault of the trainer itself; please report the lines above"
            print(fault, file=sys.stderr)
        return Exit.BUG


def message_of(error: BaseException) -> str:
    """An error's message and its notes; empty if another rank prints them.

    Rank 0 prints, and so does every rank that failed alone.
    """
    if restart_count() and isinstance(error, ConfigError | UsageError):
        return ""  # torchrun's first start has printed it
    if not (is_first() or getattr(error, "is_own", False)):
        return ""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def print_message(message: str) -> None:
    """Print ``message`` on stderr; if stderr is closed, only the exit code remains."""
    try:
        print(message, end="\n" if message else "", file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")


def open_missing_streams() -> None:
    """Open standard input, output and error if the process was started without them.

    Else the next opened file would get their numbers, and our messages.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))
