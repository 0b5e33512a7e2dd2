"""The memory that this process holds, and the most that it held since a moment.

Of a GPU it is what PyTorch allocated there. Of a CPU it is the process's resident memory, which
only Linux tells.
"""

import sys
from pathlib import Path

import torch

from trainer.process.start import give_back_freed_memory

OWN_STATUS, OWN_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held(device: torch.device) -> int | None:
    """The bytes that are held now, without what was freed; None if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    give_back_freed_memory()
    return _of_status("VmRSS") if device.type == "cpu" else None


def watch_peak(device: torch.device) -> None:
    """From now on, ``peak`` counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif held(device) is not None:
        try:
            OWN_PEAK.write_text("5")  # VmHWM becomes VmRSS: see the kernel's proc.rst
        except OSError:
            pass


def peak(device: torch.device) -> int | None:
    """The most bytes that were held since ``watch_peak``; None if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _of_status("VmHWM") if device.type == "cpu" else None


def _of_status(name: str) -> int | None:
    if sys.platform != "linux":
        return None
    lines = OWN_STATUS.read_text().splitlines()
    found = next((line.split() for line in lines if line.startswith(f"{name}:")), None)
    return int(found[1]) * 1024 if found else None  # in kB, which are KiB
