"""What the environment tells of other processes of a run, without PyTorch: torchrun's variables."""

import json
import os
import platform
from pathlib import Path
from typing import Any

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
    if absent := [name for name in NEEDED if name not in there]:
        raise UsageError(
            f"the environment has {' and '.join(there)}, but not {' and '.join(absent)}. To train "
            "in several processes: torchrun --nproc-per-node 2 -m trainer.train --config FILE"
        )
    return True


def is_first() -> bool:
    """Whether this is the process that speaks: the only one, or rank 0."""
    return os.environ.get(RANK, "0") == "0" or WORLD_SIZE not in os.environ


def is_one_of_several() -> bool:
    """Whether there are other processes."""
    return was_launched() and os.environ[WORLD_SIZE] != "1"


def local_rank() -> int:
    """This process's number on its machine, from 0: the GPU that it takes."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get(RANK, "0")))


def local_world_size() -> int:
    """How many of the processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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
        "restarts": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    }


def run_before_restart(runs: Path, name: str) -> tuple[Path | None, bool]:
    """The run that this torchrun began before it started its processes again, or None.

    And whether that was told to stop: a stop means all of it, for good, though torchrun takes the
    exit code for a failure. Where torchrun itself stops its processes, because machines come or go,
    it does not count as a restart. Of a job on several machines rank 0 may be on another one now:
    then the job's id decides, which is known to be this job's only after a restart.
    """
    now = launcher()
    if now is None:
        return None, False
    for path in sorted((runs / name).glob("*/launcher.json"), reverse=True):
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            again = bool(now["restarts"] > before["restarts"])
            if before["agent"] == now["agent"] or (now["id"] == before["id"] != "none" and again):
                result = json.loads((path.parent / "result.json").read_text(encoding="utf-8"))
                return path.parent, result.get("status") == "stopped" and again
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None, False
