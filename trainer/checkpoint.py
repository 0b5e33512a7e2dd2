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

    Older ones go only after the new one is whole. Raises RunError where the disk refuses; what was
    there before then stays as it was.
    """
    final = run / "checkpoints" / f"step-{step:09d}"
    if is_valid(final):  # the same step is the same state
        return final
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        save_tensors(temporary / "state.pt", state)
        data = (temporary / "state.pt").read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        files = {"state.pt": {"size": len(data), "sha256": digest}}
        write_json(temporary / MANIFEST, {"schema": 1, "step": step, "files": files})
        if final.exists():  # a damaged one of the same step: this one replaces it
            shutil.rmtree(final)
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
    return final


def load_checkpoint(run: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The newest state that is whole; each one passed over is named through ``say``."""
    folders = checkpoints(run)
    for folder in reversed(folders):
        if is_valid(folder):
            state: dict[str, Any] = load_tensors(folder / "state.pt")
            return state
        say(f"{folder} is damaged and passed over.")
    what = "no checkpoint of it is whole" if folders else "it has no checkpoint yet"
    raise RunError(f"{run} cannot be resumed: {what}. Start a new run with --config.")


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first."""
    folders = (run / "checkpoints").glob("step-*")
    return sorted(path for path in folders if re.fullmatch(r"step-\d{9,}", path.name))


def is_valid(folder: Path) -> bool:
    """Whether every file that the manifest names is there, byte for byte."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
            for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
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
