"""The ranks of a run as torchrun's environment variables describe them, without PyTorch."""

import atexit
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from trainer.process.errors import UsageError
from trainer.process.quit import COMMAND, IS_INSTALLED, SIGNALS, TRAINER, is_watching, watch

RANK, WORLD_SIZE = "RANK", "WORLD_SIZE"
NEEDED = (RANK, WORLD_SIZE, "MASTER_ADDR", "MASTER_PORT")


def restart_count() -> int:
    """The number of times that torchrun has restarted its processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def was_launched() -> bool:
    """Whether torchrun or the like started this process. UsageError if variables are missing."""
    there = [name for name in NEEDED if os.environ.get(name)]
    if RANK not in there or WORLD_SIZE not in there:
        return False
    for name in (RANK, WORLD_SIZE):
        if not os.environ[name].isdecimal():
            raise _unusable(f"the environment's {name} is '{os.environ[name]}', not a number.")
    if int(os.environ[RANK]) >= int(os.environ[WORLD_SIZE]):
        raise _unusable(
            f"the environment's {RANK} is {os.environ[RANK]}, and {WORLD_SIZE} "
            f"{os.environ[WORLD_SIZE]}: ranks count from 0."
        )
    if absent := [name for name in NEEDED if name not in there]:
        raise _unusable(
            f"the environment has {' and '.join(there)}, but not {' and '.join(absent)}. To train "
            "in several processes: torchrun --nproc-per-node 2 -m trainer.train --config FILE"
        )
    return True


def _unusable(message: str) -> UsageError:
    """An error that every process prints, because it is not clear which one is rank 0."""
    error = UsageError(message)
    error.is_own = True  # type: ignore[attr-defined]
    return error


def is_first() -> bool:
    """Whether this process prints: it is the only one, or rank 0."""
    return os.environ.get(RANK, "0") == "0" or os.environ.get(WORLD_SIZE, "1") == "1"


def is_one_of_several() -> bool:
    """Whether the run has other ranks."""
    return was_launched() and os.environ[WORLD_SIZE] != "1"


def local_rank() -> int:
    """This process's number on its machine, from 0. It is also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get(RANK, "0")))


def local_world_size() -> int:
    """The number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def as_typed(name: str) -> str:
    """A command of the trainer as a person types it; it starts the same number of ranks."""
    if is_one_of_several():
        here = local_world_size()
        machines = int(os.environ[WORLD_SIZE]) // here
        nodes = f" --nnodes {machines} ..." * (machines > 1)
        return f"torchrun --nproc-per-node {here}{nodes} -m {TRAINER}.{name}"
    if IS_INSTALLED or sys.argv[0].startswith(f"{COMMAND} "):
        return f"{COMMAND} {name}"
    return f"python -m {TRAINER}.{name}"


def run_as_command(main: Callable[[], int]) -> NoReturn:
    """Run a command's ``main``, and end this process with its exit code, also if a signal comes.

    Where another program runs the command, such as a profiler, that program goes on.
    """
    is_alone = is_watching()  # `python -m trainer.NAME` is watched from trainer/__init__ on
    if not is_alone:
        watch(f"{TRAINER}.{os.path.basename(sys.argv[0]).removesuffix('.py')}")
    code = main()
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(code))
    if not is_alone and os.environ.get(WORLD_SIZE, "1") == "1":
        sys.exit(code)
    leave(code)


def leave(code: int) -> NoReturn:
    """End this process with an exit code, without Python's finalization.

    During finalization a signal would end the process with another exit code. gloo's threads
    outlive the process group: one that calls Python then aborts the process (SIGABRT), and torchrun
    would report a failure of a run that ended well.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader has ended
            stream.flush()
    os._exit(code)
