"""Ends a command that is asked to stop while it has nothing to save: at once, without an exception.

A handler that raises may raise inside an import, whose lock then stays held, or inside a library
that swallows the exception or aborts. ``trainer/__init__`` calls ``watch`` before a command's first
import. Therefore this file imports almost nothing, and ``quit_at_once`` imports nothing.
"""

import _thread
import os
import signal
import sys

# Sent by Ctrl-C, by a scheduler, and by a terminal that is closed.
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
STOPPED = 75  # the exit code of a command that the same command resumes
TRAINER = __name__.removesuffix(".process.quit")  # in the wheel it lies in yaml_trainer
IS_INSTALLED = TRAINER != "trainer"
COMMAND = "yaml-trainer"  # the wheel's; where it started this process, sys.argv[0] begins with it
NO_THREADS = 5  # as of a full disk
OUT_OF_THREADS = (
    "the system refuses another thread: raise its limit of processes and threads "
    "(ulimit -u, docker --pids-limit)\n"
)
GO_ON = {  # these commands, and what they say
    f"{TRAINER}.train": "before training began, nothing was written; to start again:",
    f"{TRAINER}.sweep": "before its work began, nothing was lost; to go on:",
}


class _This:
    """The command that this process runs, and its process id."""

    command = ""
    process = 0
    is_quitting = False


def watch(command: str) -> None:
    """From now on, SIGINT, SIGTERM or SIGHUP ends this process, which is ``python -m command``."""
    _This.command, _This.process = command, os.getpid()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup has SIGHUP ignored
            signal.signal(number, quit_at_once)


def is_watching() -> bool:
    """Whether ``watch`` was called in this process: no other program called the command."""
    return _This.process == os.getpid()


def quit_at_once(number: int, frame: object) -> None:
    """The handler: print why, remove what is unfinished, end worker processes and this process.

    The exit code is 75, 128 + ``number`` of a command that has nothing to resume, or 5.
    """
    code = STOPPED if _This.command in GO_ON else 128 + number
    code = NO_THREADS if number == signal.SIGINT and not _may_start_threads() else code
    if _This.is_quitting or not is_watching():  # a second signal; a worker of this process
        os._exit(code)
    _This.is_quitting = True
    try:
        _write(OUT_OF_THREADS if code == NO_THREADS else _why(number))
        _end_workers()
        _remove_unfinished()
    finally:
        os._exit(code)  # whatever was raised, such as by a module that is imported in part


def _may_start_threads() -> bool:
    """Whether a thread can be started. If not, SIGINT comes from OpenBLAS, which numpy imports."""
    try:
        _thread.start_new_thread(int, ())
    except RuntimeError:
        return False
    return True


def _why(number: int) -> str:
    """Why the command ends, and how to start it again; "" on ranks other than 0."""
    if os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1":
        return ""
    lines = [f"stopped by {signal.Signals(number).name}"]
    if _This.command in GO_ON:
        words = " ".join(map(_quoted, sys.argv[1:]))
        lines += [GO_ON[_This.command], f"  {_as_typed()} {words}".rstrip()]
    below_a_bar = "\n" * os.isatty(2)
    return below_a_bar + "\n".join(lines) + "\n"


def _as_typed() -> str:
    """What launch.as_typed returns, if it is imported and the environment is in order."""
    if sys.argv[0] == COMMAND:  # so early that its name is still an argument
        return COMMAND
    try:
        name = _This.command.removeprefix(f"{TRAINER}.")
        return str(sys.modules[f"{TRAINER}.process.launch"].as_typed(name))
    except Exception:
        return f"python -m {_This.command}"


def _quoted(word: str) -> str:
    """The word as a shell takes it, as shlex.quote gives it, which may not be imported yet."""
    if word and all(char.isalnum() and char.isascii() or char in "@%+=:,./-_" for char in word):
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"


def _write(message: str) -> None:
    """Write to stderr what stands in stdout's buffer, then ``message`` to stderr."""
    try:
        sys.stdout.flush()
    except Exception:  # its reader is gone, or this handler interrupted a write to it
        pass
    try:
        os.write(2, message.encode(errors="backslashreplace"))
    except OSError:
        pass  # the terminal is gone


def _end_workers() -> None:
    """Kill this process's workers, which ignore signals, and wait until they are gone."""
    multiprocessing = sys.modules.get("multiprocessing")
    workers = multiprocessing.active_children() if multiprocessing is not None else []
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(1)


def _remove_unfinished() -> None:
    datasets = f"{TRAINER.removesuffix('trainer')}datasets"
    if (temporary := sys.modules.get(f"{datasets}.temporary")) is not None:
        temporary.remove_all()
