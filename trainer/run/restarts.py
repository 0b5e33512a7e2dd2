"""Continues a run after torchrun has started its processes again (``--max-restarts``).

A run's folder holds launcher.json: which torchrun trains it. The processes that this torchrun
starts after a failure find their run by that file.
"""

import json
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.process.console import say
from trainer.process.errors import Stopped
from trainer.process.launch import restart_count


def launcher() -> dict[str, Any] | None:
    """The content of launcher.json: the torchrun that started this process, and its restarts.

    ``agent`` names torchrun's own process by machine, number and start time, because a number is
    used again after a restart of the machine, or in another container. Returns None without
    torchrun.
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
        "restarts": restart_count(),
    }


def run_before_restart(runs: Path, name: str, resumed: Path | None = None) -> Path | None:
    """Find the run that this torchrun trained before it started its processes again.

    Looks in ``resumed``, the run that the command names, or in all runs of ``name``. Returns None
    if there is no such run. Raises Stopped if that run was asked to stop: a stop is final, although
    torchrun takes exit code 75 for a failure. A start without a higher restart count is no failure:
    torchrun itself stopped its processes because a machine came or went.

    The run is known by its agent. On several machines rank 0 may have moved to another one: then
    torchrun's run id decides, but only after a restart, because an id may be used again.
    """
    now = launcher()
    if now is None:
        return None
    newest_first = sorted((runs / name).glob("*/launcher.json"), reverse=True)
    for path in [resumed / "launcher.json"] if resumed else newest_first:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            before = json.loads(path.read_text(encoding="utf-8"))
            again = bool(now["restarts"] > before["restarts"])
            if before["agent"] == now["agent"] or (now["id"] == before["id"] != "none" and again):
                result = json.loads((path.parent / "result.json").read_text(encoding="utf-8"))
                if result.get("status") == "stopped" and again:
                    raise Stopped(f"{path.parent} was stopped")
                say(f"torchrun started its processes again: {path.parent} goes on")
                return path.parent
    return None
