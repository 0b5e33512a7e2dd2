"""Full states of a run: ``checkpoints/step-000000123/`` with state.pt and MANIFEST.json.

A checkpoint is written beside its final name, brought to the disk, and renamed: one that can be
seen is whole. The manifest is written last and names each file with its size and SHA-256.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer.errors import RunError
from trainer.run import load_tensors, save_tensors, sync_folder, write_json

MANIFEST = "MANIFEST.json"


def save_checkpoint(run: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``state`` (tensors and plain values) as the checkpoint of ``step``; keep the last few.

    One of the same step is replaced. Older ones go only after the new one is whole. Raises RunError
    where the disk refuses; what was there before then stays as it was.
    """
    final = run / "checkpoints" / f"step-{step:09d}"
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    replaced = final.with_name(f"{final.name}.tmp-{os.getpid()}-replaced")
    try:
        temporary.mkdir(parents=True)
        data = save_tensors(temporary / "state.pt", state)
        digest = hashlib.sha256(data).hexdigest()
        files = {"state.pt": {"size": len(data), "sha256": digest}}
        write_json(temporary / MANIFEST, {"schema": 1, "step": step, "files": files})
        if final.exists():  # killed between these two renames, a run goes on from an older one
            final.replace(replaced)
        temporary.replace(final)
        sync_folder(final.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"{final}: the checkpoint could not be written ({error.strerror or error}). "
            "Earlier checkpoints are as they were; free some space and resume."
        ) from None
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    sweep(run)
    return final


def sweep(run: Path) -> None:
    """Remove what killed processes left half-written; only for the process that holds the run."""
    for path in (run / "checkpoints").glob("step-*.tmp-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def load_checkpoint(run: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest state that is whole, or None where none was ever saved.

    Each one passed over is named through ``say``. Raises RunError where none is whole.
    """
    folders = checkpoints(run)
    for folder in reversed(folders):
        if is_valid(folder):
            state: dict[str, Any] = load_tensors(folder / "state.pt")
            return state
        say(f"{folder} is damaged and passed over.")
    if folders:
        raise RunError(f"{run} cannot be resumed: no checkpoint of it is whole. Start a new run.")
    return None


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first."""
    folders = (run / "checkpoints").glob("step-*")
    return sorted(path for path in folders if re.fullmatch(r"step-\d{9,}", path.name))


def is_valid(folder: Path) -> bool:
    """Whether every file that the manifest names is there, byte for byte."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return "state.pt" in files and all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
            for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def is_finite(state: object) -> bool:
    """Whether every floating-point tensor of a state is free of NaN and infinity."""
    if isinstance(state, torch.Tensor):
        return not state.is_floating_point() or bool(torch.isfinite(state).all())
    if isinstance(state, dict):
        return all(is_finite(value) for value in state.values())
    if isinstance(state, list | tuple):
        return all(is_finite(value) for value in state)
    return True
