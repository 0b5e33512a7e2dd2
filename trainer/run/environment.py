"""The environment of a run: versions, hardware, command, commit. Imports torch only when called."""

import hashlib
import os
import platform
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.process.quit import COMMAND, IS_INSTALLED

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]  # the checkout's; in the wheel, yaml_trainer
GIT_HEAD, GIT_STATUS, GIT_DIFF = "rev-parse HEAD", "status --porcelain", "diff HEAD --binary"
_said: dict[str, str] = {}  # what git said, by its arguments, in a process that is to be forked


def environment(device: "torch.device") -> dict[str, Any]:
    """Versions, hardware, command and commit of a run. Environment variables are left out."""
    import torch

    return {
        **({"code": installed_code()} if IS_INSTALLED else {}),
        "command": [without_password(argument) for argument in sys.orig_argv],
        "git_commit": _git(GIT_HEAD).strip() or None,
        "git_changed_files": _git(GIT_STATUS).splitlines(),
        "python": platform.python_version(),
        "packages": packages(),
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }


@cache
def packages() -> dict[str, str]:
    """The versions of the packages that a run uses; to read them takes 20 ms."""
    names = ("torch", "torchvision", "tensorboard", "pydantic", "pyyaml", "pillow", "numpy")
    return {name: version(name) for name in names}


@cache
def installed_code() -> str:
    """What tells the wheel's code, which has no commit: version, and a hash of its files."""
    about = distribution(COMMAND)
    files = [line for line in (about.read_text("RECORD") or "").splitlines() if ".py," in line]
    digest = hashlib.sha256("\n".join(sorted(files)).encode()).hexdigest()
    return f"{COMMAND} {about.version}, {digest[:10]}"


def uncommitted_patch() -> str:
    """The uncommitted changes of the checkout's tracked files, as a patch; empty without git."""
    return _git(GIT_DIFF)


def device_name(device: "torch.device") -> str:
    """The device's name for people: ``cpu (2 threads)``, or the GPU's name."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' * (threads > 1)})" if device.type == "cpu" else str(device)


def without_password(argument: str) -> str:
    """A command's argument, or a URL, without passwords."""
    argument = re.sub(r"://\S*@", "://", argument)
    secret = r"([?&][^=&\s]*(?:token|key|secret|password|signature|sig)[^=&\s]*=)[^&\s]+"
    return re.sub(secret, r"\1...", argument, flags=re.IGNORECASE)


def keep_what_git_says() -> None:
    """Let this process and its forks, which run the code that it has imported, ask git only now."""
    _said.update({arguments: _git(arguments) for arguments in (GIT_HEAD, GIT_STATUS, GIT_DIFF)})


def _git(arguments: str) -> str:
    if IS_INSTALLED:
        return ""  # a repository around it is of another project
    if arguments in _said:
        return _said[arguments]
    try:
        result = subprocess.run(
            # A killed `git status` must not leave a lock in somebody's checkout.
            ["git", "--no-optional-locks", "-C", str(ROOT), *arguments.split()],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""
