"""What measurements say of their machine: its processor, and what else ran on it."""

import os
import platform
from pathlib import Path


def processor() -> str:
    """The processor's name, if the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def load_average() -> str:
    """The mean number of processes that wanted to run in the last minute, the benchmark's too."""
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"


def seconds_of_others() -> float:
    """Processor seconds of all other programs since the machine began; 0 where none can tell."""
    try:
        fields = Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    except OSError:
        return 0.0
    user, nice, system, _idle, _wait, *interrupts = (int(field) for field in fields)
    ours = sum(os.times()[:4])  # also of our processes that have ended
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - ours
