"""A run's folder: created once, written so that nothing half-written is ever seen.

config.yaml  environment.json  uncommitted.patch  split.json  metrics.jsonl  events.out.tfevents.*
checkpoints/step-000000123/  model.pt  model.json  result.json  report/
"""

import io
import json
import os
import platform
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch

from trainer.errors import RunError, UsageError

ROOT = Path(__file__).resolve().parent.parent


def create_run(runs: Path, name: str) -> Path:
    """Make ``runs/name/YYYYmmdd-HHMMSS-xxxx`` and return it; never one that existed before."""
    try:
        (runs / name).mkdir(parents=True, exist_ok=True)
        while True:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            run = runs / name / f"{stamp}-{secrets.token_hex(2)}"
            try:
                run.mkdir()
            except FileExistsError:  # another start in this second drew the same four digits
                continue
            return run
    except OSError as error:
        raise RunError(
            f"--runs {runs}: no run folder can be made there ({error.strerror}). "
            "Name a folder that can be written to."
        ) from None


def find_run(text: str) -> Path:
    """The run folder that ``text`` names: a run, or a folder of runs, of which the newest.

    Raises UsageError where there is none.
    """
    folder = Path(text)
    if (folder / "config.yaml").is_file():
        return folder
    runs = sorted(folder.glob("*/config.yaml")) or sorted(folder.glob("*/*/config.yaml"))
    if runs:
        return max((path.parent for path in runs), key=lambda run: run.name)
    what = "holds no run" if folder.is_dir() else "does not exist"
    raise UsageError(f"{text} {what}. Expected a folder such as runs/NAME/20260131-120000-ab12.")


def lock_run(run: Path) -> IO[str]:
    """Hold the run until the returned file is closed; raises RunError where another does."""
    try:
        lock = (run / "run.lock").open("a")
    except OSError as error:
        raise RunError(f"{run} cannot be written to: {error.strerror}.") from None
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise RunError(
            f"{run} is being written by another process; wait for it or stop it."
        ) from None
    return lock


def write_file(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` at once: whoever looks sees the old file or the new one."""
    # File names need not be UTF-8: what is not, JSON can say with a backslash.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` last: a rename is only safe once its folder is on the disk."""
    if sys.platform == "win32":  # which has no such call, and needs none
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write ``content`` as JSON, at once; readable, or with ``indent`` None ten times as fast."""
    write_file(path, json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what ``write_json`` wrote."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): the run folder is damaged.") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} does not hold what was written: the run folder is damaged.")
    return content


def save_tensors(path: Path, content: object) -> bytes:
    """Write tensors and plain values, readable with ``torch.load(path, weights_only=True)``.

    Returns what was to be written, for a digest of it: one of the file would certify a bad write.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    write_file(path, data)
    return data


def load_tensors(path: Path) -> Any:
    """Read what ``save_tensors`` wrote; never runs code that a file may hold."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(
            f"{path} is missing: the run has not saved it yet, or it was removed."
        ) from None
    except Exception as error:  # torch names a dozen kinds of damage by a dozen exceptions
        reason = type(error).__name__  # its text advises to load the file unsafely
        raise RunError(
            f"{path} cannot be read: it is damaged or no file of ours ({reason})."
        ) from None


class MetricsFile:
    """metrics.jsonl: a line for each logged step or epoch, each exactly once."""

    def __init__(self, path: Path, length: int = 0) -> None:
        """Open the file and cut it to its first ``length`` bytes: a resumed run writes the rest."""
        self._file = path.open("ab")
        if self._file.tell() < length:
            self._file.close()
            raise RunError(f"{path} is shorter than when the run was saved: lines of it are lost.")
        self._file.truncate(length)
        self._file.seek(0, os.SEEK_END)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        self._file.write((json.dumps(line) + "\n").encode())
        self._file.flush()

    def sync(self) -> int:
        """Bring every line to the disk; the file's length in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def environment(device: torch.device) -> dict[str, Any]:
    """What a run ran on: versions, hardware, command, commit. Never the environment's variables."""
    packages = ("torch", "torchvision", "tensorboard", "pydantic", "pyyaml", "pillow", "numpy")
    return {
        "command": [_without_password(argument) for argument in sys.orig_argv],
        "git_commit": _git("rev-parse", "HEAD").strip() or None,
        "git_changed_files": _git("status", "--porcelain").splitlines(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in packages},
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }


def uncommitted_patch() -> str:
    """What the checkout's tracked files hold beyond the commit, as a patch; empty without git."""
    return _git("diff", "HEAD", "--binary")


def device_name(device: torch.device) -> str:
    """The device as a person knows it: ``cpu (2 threads)`` or the GPU's name."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def _without_password(argument: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://", argument)


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""
