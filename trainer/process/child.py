"""Forked children: one that tries something which may end it, and one that runs a command.

Neither ends this process.
"""

import ctypes
import faulthandler
import os
import resource
import runpy
import signal
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence

from trainer.process.console import say
from trainer.process.launch import leave
from trainer.process.quit import SIGNALS, watch

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


class Fork:
    """A forked child that runs ``python -m MODULE ...`` with what this process has imported.

    It has the methods of subprocess.Popen that a sweep calls. command: its ``sys.orig_argv``.
    first: called in the child before the command; it may replace the child by another program.
    This process must have no other threads than libraries start at their import, and have run no
    parallel region of OpenMP: the child lacks these threads, and would wait for them.
    """

    def __init__(self, command: Sequence[str], first: Callable[[], None]) -> None:
        sys.stdout.flush()  # else the child would write it too
        sys.stderr.flush()
        self.returncode: int | None = None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # they wait for their handlers
        try:
            with warnings.catch_warnings(action="ignore"):  # about the other threads
                self.pid = os.fork()
            if self.pid == 0:
                _become(command, first, before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> int | None:
        """The exit code, or -N if signal N ended the child; None if it still runs."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        """Wait for the child's end; returns its exit code as ``poll`` does."""
        code = self._reap(0)
        assert code is not None
        return code

    def terminate(self) -> None:
        """Send SIGTERM to the child, unless it is known to have ended."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGTERM)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _become(
    command: Sequence[str], first: Callable[[], None], mask: "set[int | signal.Signals]"
) -> None:
    """Run the command in this process, which is a fork, and end it as Python ends a command."""
    code = 1
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)  # those of this process are for its parent
        for inherited in list(weakref.finalize._registry):  # type: ignore[attr-defined]
            inherited.atexit = False  # what its parent made is its parent's to remove
        first()
        sys.orig_argv[:], sys.argv[:] = command, ["", *command[3:]]
        watch(command[2])
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        sys.modules.pop(command[2], None)  # else runpy warns that it runs twice
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    except SystemExit as end:  # of argparse
        code = end.code if isinstance(end.code, int) else code
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)
