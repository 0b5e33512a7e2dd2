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
    """Exit codes of every command, so that a scheduler can tell what to do next."""

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
        sys.stdout.flush()  # a full disk is told here, not when Python ends
        return Exit.DONE
    except Stopped as stopped:
        print_message(message_of(stopped))
        return Exit.STOPPED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has seen enough
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
                    traceback.print_exception(cause)  # a fault of the trainer in one process
                print_message(message_of(error))
                return code
        if is_first():  # of several processes that have all met it
            traceback.print_exc()
            fault = "this is a fault of the trainer itself; please report the lines above"
            print(fault, file=sys.stderr)
        return Exit.BUG


def message_of(error: BaseException) -> str:
    """An error's message and its notes; empty where this process leaves it to another one.

    Of several processes rank 0 speaks, and any that failed alone.
    """
    if restart_count() and isinstance(error, ConfigError | UsageError):
        return ""  # torchrun starts again what cannot go better: the first start has said it
    if not (is_first() or getattr(error, "is_own", False)):
        return ""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def print_message(message: str) -> None:
    """Print it on stderr; where nobody listens, the exit code has to do."""
    try:
        print(message, end="\n" if message else "", file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")


def open_missing_streams() -> None:
    """Give a process that was started with closed ones a standard input, output and error.

    Else the next file that is opened gets their numbers, and our messages.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))
