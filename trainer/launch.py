"""What the environment tells of other processes of a run, without PyTorch: torchrun's variables."""

import atexit
import hashlib
import json
import os
import platform
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from trainer.errors import UsageError

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


def restarts() -> int:
    """How often torchrun has started its processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


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


def launcher() -> dict[str, Any] | None:
    """What tells this torchrun from others, and how often it has started its processes again.

    Others on this machine have other process numbers; the same number after a restart of the
    machine, or in another container, has another start time. None without torchrun.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = os.getppid()
    try:  # field 22: the start time, in ticks since the machine started
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
        started += Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, IndexError):
        started = ""
    return {
        "agent": f"{platform.node()} {parent} {started}".strip(),
        "id": os.environ["TORCHELASTIC_RUN_ID"],
        "restarts": restarts(),
    }


def run_before_restart(
    runs: Path, name: str, resumed: Path | None = None
) -> tuple[Path | None, bool]:
    """The run that this torchrun trained before it started its processes again, or None.

    ``resumed`` is the one that the command names. And whether all were told to stop: a stop means
    all of it, for good, though torchrun takes the exit code for a failure. Where torchrun itself
    stops its processes, because machines come or go, it does not count as a restart. Of a job on
    several machines rank 0 may be on another one now: then the job's id decides, which is known to
    be this job's only after a restart.
    """
    now = launcher()
    if now is None:
        return None, False
    with suppress(OSError, ValueError):
        if now["restarts"] > int(_early_stop(now).read_text()):
            return None, True
    found = sorted((runs / name).glob("*/launcher.json"), reverse=True)
    for path in [resumed / "launcher.json"] if resumed else found:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            again = bool(now["restarts"] > before["restarts"])
            if before["agent"] == now["agent"] or (now["id"] == before["id"] != "none" and again):
                result = json.loads((path.parent / "result.json").read_text(encoding="utf-8"))
                return path.parent, result.get("status") == "stopped" and again
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None, False


def remember_early_stop() -> None:
    """Leave word for the next start that this one was told to stop before there was a run.

    Not where torchrun told it, because another of its processes is gone: that is to begin again.
    """
    now = launcher()
    if now is None or _living_siblings() < local_world_size():
        return
    with suppress(OSError):
        _early_stop(now).write_text(str(now["restarts"]))


def _living_siblings() -> int:
    """How many processes of our torchrun live on this machine, with this one; as Linux tells."""
    living, parent = 0, os.getppid()
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in children.read_text().split():
            with suppress(OSError):
                state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
                living += state != "Z"
    return living


def _early_stop(launcher: dict[str, Any]) -> Path:
    """Where such word is left: for this torchrun's processes on this machine."""
    agent = hashlib.sha256(launcher["agent"].encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"yaml-trainer-stopped-{agent}"
