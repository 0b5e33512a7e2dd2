"""Tries something in a forked child, so that what ends the child does not end this process."""

import ctypes
import faulthandler
import os
import resource
import signal
import threading
import warnings
from collections.abc import Callable

from trainer.process.console import say
from trainer.process.quit import SIGNALS

PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
TELL_AFTER = 10.0  # seconds after which a line tells what is waited for
TIME_LIMIT = 300  # seconds after which a child is ended, and nothing is known
SURVIVED = 86  # the exit code of a child that came to its end


def what_ends(action: Callable[[], object]) -> str:
    """Run ``action`` in a forked child; what ended it ("SIGSEGV"), empty if it came to its end.

    What it returns, raises or prints is dropped. ``action`` runs in a new thread, for which OpenMP
    makes threads of its own: those that the calling thread has are not forked.
    """
    with warnings.catch_warnings(action="ignore"):  # about the other threads
        child = os.fork()
    if child == 0:
        try:
            _become_quiet()
            thread = threading.Thread(target=action)
            thread.start()
            thread.join()
        finally:
            os._exit(SURVIVED)
    told = f"note    still waiting for a step that is tried first, for {TIME_LIMIT} s at most"
    timer = threading.Timer(TELL_AFTER, say, [told])
    timer.start()
    try:
        _, status = os.waitpid(child, 0)
    except BaseException:  # the trainer was asked to stop
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        timer.cancel()
        timer.join()
    code = os.waitstatus_to_exitcode(status)
    if code in (SURVIVED, -signal.SIGALRM):
        return ""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _become_quiet() -> None:
    """Drop output and core files, leave signals to the system, and end after TIME_LIMIT."""
    for number in (*SIGNALS, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.alarm(TIME_LIMIT)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it does not outlive the trainer
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
