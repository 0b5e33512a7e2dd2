"""How every command ends: errors become a message on stderr and an exit code."""

import enum
import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from datasets import DataError
from trainer.process import errors
from trainer.process.launch import is_first, restart_count
from trainer.process.words import visible


class Exit(enum.IntEnum):
    """Exit codes of every command, for schedulers. Ctrl-C without a StopRequest gives 130."""

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
    errors.ConfigError: Exit.CONFIG,
    errors.UsageError: Exit.CONFIG,
    DataError: Exit.DATA,
    errors.NonFiniteLoss: Exit.NON_FINITE,
    errors.RunError: Exit.CHECKPOINT,
    errors.OutOfMemory: Exit.MEMORY,
    errors.WorkerDied: Exit.WORKER,
    errors.ProcessFailed: Exit.DISTRIBUTED,
    errors.ComponentError: Exit.CONFIG,
}


def exit_code_of(action: Callable[[], None]) -> int:
    """Run ``action`` and return its exit code. An error's message goes to stderr."""
    open_missing_streams()
    if not faulthandler.is_enabled():
        with suppress(OSError, ValueError):  # a notebook's stderr is no file
            faulthandler.enable()  # a death by SIGSEGV and its like is told, with the line
    try:
        action()
        sys.stdout.flush()  # raises here if the disk is full, not when Python ends
        return Exit.DONE
    except errors.Stopped as stopped:
        print_message(message_of(stopped))
        return Exit.STOPPED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has ended, as `head` does
        sys.stdout = open(os.devnull, "w")
        return Exit.DONE
    except Exception as raised:
        error = errors.in_plain_words(raised)
        for kind, code in CODES.items():
            if isinstance(error, kind):
                cause = error.__cause__ if getattr(error, "is_own", False) else None
                plain = errors.in_plain_words(cause) if isinstance(cause, Exception) else None
                if plain is not None and not isinstance(plain, tuple(CODES)):
                    traceback.print_exception(cause)  # a bug of the trainer on one rank
                print_message(message_of(error))
                return code
        if is_first():  # all ranks raise it, so rank 0 prints it
            traceback.print_exc()
            bug = "this is a bug of the trainer; report it with the lines above"
            print(bug, file=sys.stderr)
        return Exit.BUG
    except BaseException as raised:  # such as SystemExit, which a component may raise
        error = errors.in_plain_words(raised)
        if error is raised:
            raise
        print_message(message_of(error))
        return Exit.CONFIG


def message_of(error: BaseException) -> str:
    """An error's message and its notes; empty on ranks other than 0 that did not fail alone."""
    if restart_count() and isinstance(error, errors.ConfigError | errors.UsageError):
        return ""  # torchrun's first start has printed it
    if not (is_first() or getattr(error, "is_own", False)):
        return ""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def print_message(message: str) -> None:
    """Print ``message`` on stderr; if stderr is closed, only the exit code remains."""
    try:
        text = "\n".join(map(visible, message.split("\n")))  # it may quote a file's name
        print(text, end="\n" if message else "", file=sys.stderr, flush=True)
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
