"""The checkpoints of a run: ``checkpoints/step-000000123/`` with its files and MANIFEST.json.

weights.pt holds the model's weights, best.pt better weights of an earlier step, state.pt the rest.

A checkpoint is written under a temporary name, synced to the disk and renamed, so a visible one is
complete. The manifest is written last; it names each file with its size and SHA-256. A checkpoint
is never replaced: a second state of the same step becomes ``step-000000123.2``.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.process.errors import RunError
from trainer.run import disk
from trainer.run.tensors import load_tensors, save_tensors

MANIFEST, STATE, WEIGHTS, BEST = "MANIFEST.json", "state.pt", "weights.pt", "best.pt"
MANIFEST_SCHEMA = 3  # of the manifest, and which files there are
Entry = dict[str, Any]  # a file's size and sha256


def write_best(run: Path, weights: object, card: dict[str, Any], *copies: Path) -> Entry:
    """Write ``weights`` as the run's best ones: model.pt, and model.json, which describes them.

    ``copies`` are more paths for the same content, written together. Returns the file's entry.
    """
    entry = save_tensors(run / "model.pt", weights, *copies)
    disk.write_json(run / "model.json", card | {"weights": entry})
    return entry


def write_checkpoint(
    run: Path,
    step: int,
    state: dict[str, Any],
    keep: int,
    best_entry: Entry | None,
    card: dict[str, Any] | None = None,
) -> Entry | None:
    """Write ``state`` (tensors and plain values) as a checkpoint; keep the newest ``keep`` ones.

    With a ``card``, the weights of ``state`` become the run's best ones; without, the best ones are
    those of ``best_entry``, which the checkpoint holds too. Returns the entry of the best ones.
    Older checkpoints are removed only after the new one is whole. Raises RunError if the disk
    refuses; earlier checkpoints then stay.
    """
    folder = folder_of(run)
    final = folder / f"step-{step:09d}"
    for number in range(2, 1000):
        if not os.path.lexists(final):
            break
        final = folder / f"step-{step:09d}.{number}"
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    try:
        if not folder.exists():
            disk.make_folder(folder)
        disk.make_folder(temporary)
        if card:
            weights = best_entry = write_best(run, state["model"], card, temporary / WEIGHTS)
        else:
            weights = save_tensors(temporary / WEIGHTS, state["model"])
        rest = {name: value for name, value in state.items() if name != "model"}
        files = {WEIGHTS: weights, STATE: save_tensors(temporary / STATE, rest)}
        if best_entry and best_entry != weights:
            files[BEST] = best_entry
            take_along(run, best_entry, temporary / BEST)
        manifest = {"schema": MANIFEST_SCHEMA, "step": step, "files": files, "best": best_entry}
        manifest["sha256"] = digest_of(manifest)
        disk.write_json(temporary / MANIFEST, manifest)
        disk.rename(temporary, final)
        disk.sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise refused(f"{final}: the checkpoint", error) from None
    for old in checkpoints(run)[:-keep]:
        if old != final:  # if there are later steps, the new one may be among the oldest
            remove(old)
    return best_entry


def refused(what: str, error: OSError) -> RunError:
    """The error for ``what`` that could not be written to the disk."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return RunError(
        f"{what} could not be written ({error.strerror or error}). Earlier checkpoints are as they "
        f"were; {'free some space' if full else 'see to it that the folder is there, and yours,'} "
        "and resume."
    )


def take_along(run: Path, best_entry: Entry, target: Path) -> None:
    """Put the best weights into a checkpoint: a link to an earlier best.pt, or a copy of model.pt.

    A link to model.pt would change when a user writes into model.pt. With a link to an earlier
    checkpoint's weights.pt, one bad sector would damage both checkpoints.
    """
    for earlier in reversed(checkpoints(run)):
        if manifest_of(earlier).get("files", {}).get(BEST) == best_entry:
            try:
                disk.link(earlier / BEST, target)
                return
            except OSError:  # a file system without links
                break
    if disk.copy_file(run / "model.pt", target) != best_entry:
        raise RunError(f"{run / 'model.pt'} was changed while the run went on.")


def remove(checkpoint: Path) -> None:
    """Rename a checkpoint, then remove it: a half-removed one must not look like a checkpoint."""
    doomed = checkpoint.with_name(f"{checkpoint.name}.tmp-{os.getpid()}")
    try:
        disk.rename(checkpoint, doomed)
    except OSError:  # no reason to end a run
        return
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(run: Path) -> None:
    """Remove half-written files of killed processes; the caller must hold the run's lock."""
    for path in [*folder_of(run).glob("step-*.tmp-*"), *run.rglob(".*.tmp")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def load_checkpoint(run: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest undamaged checkpoint and its state; None if there is no checkpoint.

    Newer damaged ones are renamed, and named through ``say``. Raises RunError if all are damaged.
    """
    folders = checkpoints(run)
    damaged: list[Path] = []
    for folder in reversed(folders):
        require_rights(folder)
        problem = problem_of(folder)
        if problem is None:
            try:
                state = read_state(folder)
            except RunError as error:
                problem = str(error)
            else:
                for other in damaged:  # so that it does not count among those to keep
                    with suppress(OSError):
                        other.rename(free_name(other.with_name(f"{other.name}.damaged")))
                return folder, state
        say(f"note    {folder} is damaged and passed over: {problem}")
        damaged.append(folder)
    if folders:
        raise RunError(f"{run} cannot be resumed: no checkpoint of it is whole. Start a new run.")
    return None


def require_rights(folder: Path) -> None:
    """Raise RunError if a checkpoint's files exist but this user may not read them."""
    for path in (folder, *(folder / name for name in (MANIFEST, WEIGHTS, STATE, BEST))):
        wanted = os.R_OK | os.X_OK if path == folder else os.R_OK
        if os.access(path, os.F_OK) and not os.access(path, wanted):
            raise RunError(f"{path}: you have no permission to read it.")


def read_state(folder: Path) -> dict[str, Any]:
    """The state in a checkpoint; raises RunError if its files are not from this program."""
    state = load_tensors(folder / STATE)
    if not isinstance(state, dict):
        raise RunError(f"{folder / STATE} holds no state.")
    return {"model": load_tensors(folder / WEIGHTS)} | state


def free_name(path: Path) -> Path:
    """``path`` if it is free, else ``path`` with the first number that makes it free."""
    names = (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in range(1, 10**6))
    return next(name for name in names if not os.path.lexists(name))


def folder_of(run: Path) -> Path:
    """The folder of the run's checkpoints. Raises RunError for a link, which may lead anywhere."""
    folder = run / "checkpoints"
    if folder.is_symlink():
        raise RunError(f"{folder} is a link; nothing is written or removed behind it.")
    return folder


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first."""
    named = re.compile(r"step-(\d{9,15})(?:\.(\d{1,3}))?")
    found, folder = [], folder_of(run)
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:  # a glob would find nothing, and the run would begin anew
        raise RunError(f"{folder} cannot be read: {error.strerror}.") from None
    for path in paths:
        if (match := named.fullmatch(path.name)) and path.is_dir() and not path.is_symlink():
            found.append((int(match[1]), int(match[2] or 1), path))
    return [path for _, _, path in sorted(found)]


def manifest_of(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest; empty if it cannot be read."""
    try:
        return disk.read_json(folder / MANIFEST)
    except RunError:
        return {}


def digest_of(manifest: dict[str, Any]) -> str:
    """The SHA-256 of a manifest's content, by which its own damage is found."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def problem_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if each file has the manifest's size and SHA-256.

    A damaged best.pt does not count while the run's model.pt holds the same bytes.
    """
    manifest = manifest_of(folder)
    files: Any = manifest.get("files")
    if manifest.get("sha256") != digest_of(manifest):
        return f"{MANIFEST} is missing or damaged"
    if manifest.get("schema") != MANIFEST_SCHEMA:
        return f"its form is {manifest.get('schema')}, and this version reads {MANIFEST_SCHEMA}"
    needed = {STATE, WEIGHTS}
    is_ours = isinstance(files, dict) and needed <= files.keys() <= needed | {BEST}
    if not is_ours or "best" not in manifest:
        return f"{MANIFEST} is not one that the trainer wrote"
    for name, entry in files.items():
        problem = damage_of(folder / name, entry)
        if problem and not (name == BEST and damage_of(model_of(folder), entry) is None):
            return problem
    return None


def damage_of(path: Path, entry: Entry) -> str | None:
    """What is wrong with a file; None if its size and SHA-256 are those of ``entry``."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return f"{path.name} is missing"
        size = path.stat().st_size
        if size != entry["size"]:
            return f"{path.name} has {size:,} bytes, not {entry['size']:,}"
        if disk.sha256_of(path) != entry["sha256"]:
            return f"{path.name} does not hold what was written"
    except OSError as error:
        return f"{path.name}: {error.strerror}"
    except (KeyError, TypeError, ValueError):
        return f"{MANIFEST} is no manifest"
    return None


def model_of(folder: Path) -> Path:
    """The path of model.pt in the run that a checkpoint belongs to."""
    return folder.parent.parent / "model.pt"


def bring_back_best(folder: Path, say: Callable[[str], None]) -> Entry | None:
    """Restore model.pt as it was when the checkpoint ``folder`` was written; returns its entry.

    A run that was killed later may have newer best weights, which a resumed run must not use yet.
    If only the checkpoint's own copy is damaged, that copy is repaired.
    """
    manifest, weights = manifest_of(folder), model_of(folder)
    best_entry: Entry | None = manifest["best"]
    if best_entry is None:
        return None
    if damage_of(weights, best_entry):
        return disk.copy_file(folder / (BEST if BEST in manifest["files"] else WEIGHTS), weights)
    if BEST in manifest["files"] and damage_of(folder / BEST, best_entry):
        say(
            f"note    {folder / BEST} is damaged; it is written again from model.pt, which holds "
            "the same"
        )
        with suppress(OSError):
            disk.copy_file(weights, folder / BEST)
    return best_entry


def is_finite(state: object) -> bool:
    """Whether every floating-point tensor of a state is free of NaN and infinity."""
    if isinstance(state, torch.Tensor):
        if state.dtype not in (torch.float32, torch.float64):
            return not state.is_floating_point() or bool(torch.isfinite(state).all())
        # By NumPy, which takes one core: PyTorch would take all of them away from training.
        dense = state.untyped_storage().nbytes() == state.nbytes
        values = state.as_strided((state.numel(),), (1,), 0) if dense else state.flatten()
        return all(np.isfinite(piece.numpy()).all() for piece in torch.split(values, 2**18))
    if isinstance(state, dict):
        return all(is_finite(value) for value in state.values())
    if isinstance(state, list | tuple):
        return all(is_finite(value) for value in state)
    return True
