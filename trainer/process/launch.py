"""What the environment tells of other processes of a run, without PyTorch: torchrun's variables."""

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn

from trainer.process.errors import UsageError

RANK, WORLD_SIZE = "RANK", "WORLD_SIZE"
NEEDED = (RANK, WORLD_SIZE, "MASTER_ADDR", "MASTER_PORT")


def was_launched() -> bool:
    """Whether torchrun, or something like it, started this process as one of several.

    Raises UsageError where its variables are incomplete.
    """
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
    """A fault of the environment, which each process tells: who is the first is not clear."""
    error = UsageError(message)
    error.is_own = True  # type: ignore[attr-defined]
    return error


def is_first() -> bool:
    """Whether this is the process that speaks: the only one, or rank 0."""
    return os.environ.get(RANK, "0") == "0" or os.environ.get(WORLD_SIZE, "1") == "1"


def is_one_of_several() -> bool:
    """Whether there are other processes."""
    return was_launched() and os.environ[WORLD_SIZE] != "1"


def local_rank() -> int:
    """This process's number on its machine, from 0: the GPU that it takes."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get(RANK, "0")))


def local_world_size() -> int:
    """How many of the processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def started_by() -> str:
    """What a command is to begin with that starts such processes again."""
    if not is_one_of_several():
        return "python"
    here = local_world_size()
    machines = int(os.environ[WORLD_SIZE]) // here
    return f"torchrun --nproc-per-node {here}" + (f" --nnodes {machines} ..." * (machines > 1))


def leave(code: int) -> NoReturn:
    """End this process with an exit code; one of several without taking the interpreter apart.

    gloo's threads outlive its process group. One that meets Python while that is taken apart aborts
    the process (SIGABRT), and torchrun would take what had ended well for a failure.
    """
    if os.environ.get(WORLD_SIZE, "1") == "1":
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever read it is gone
            stream.flush()
    os._exit(code)
