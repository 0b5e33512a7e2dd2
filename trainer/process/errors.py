"""The exceptions that a user may meet, and the faults of a configuration."""

import errno
import os
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import DATASETS, DataError
from models import MODELS
from trainer.process.quit import TRAINER
from transforms import TRANSFORMS

# Pieces of PyTorch's messages when memory runs out, on a GPU or on a CPU.
NO_MEMORY = "out of memory|not enough memory|[Cc]an('t|not) allocate memory|failed to map seg"

NO_ANSWER = "the model gives no finite numbers (NaN or infinity)"

LIMITS = {  # numbers of errors about what the system gives to a process, and how to get more
    errno.EMFILE: "raise the limit of open files (ulimit -n 4096)",
    errno.ENFILE: "close files of other programs",
    errno.EAGAIN: "raise the limit of processes and threads (ulimit -u, docker --pids-limit)",
    errno.ENOSPC: "raise the size of /dev/shm (docker --shm-size=2g)",
}
IN_WORDS = {  # of RuntimeErrors about the same
    "Too many open files": errno.EMFILE,
    "start new thread": errno.EAGAIN,
    "No space left": errno.ENOSPC,
}

MAX_FAULTS = 50  # in one message; more do not help

CHECKOUT = Path(__file__).resolve().parents[2]  # in the wheel, the folder yaml_trainer
PREFIX = TRAINER.removesuffix("trainer")  # in the wheel, the beginning of modules' names
STANDARD_LIBRARY = str(Path(os.__file__).parent)
COMPONENTS = ("datasets/", "models/", "transforms/")  # folders
OF_TRAINER = ("trainer/", "scripts/", "yaml_trainer/")
REFUSALS = (ValueError, OSError, ImportError, RuntimeError)
# Where PyTorch runs a model or a loss, forward and backward.
RUNS_A_MODULE = ("torch/nn/modules/module.py", "torch/autograd/graph.py")


@dataclass(frozen=True)
class Fault:
    """One fault of a configuration: where it is, and what to do about it.

    ``path`` is dotted as on the command line ("transforms.train.1.padding"; "" for all of it).
    ``line`` and ``column`` count from 1; an override's file is "command line", and it has neither.
    """

    path: str
    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    source: str | None = None  # the file's line, or the override as it was typed

    def __str__(self) -> str:
        """Returns ``file:line:column: path: message``, and the source line with a caret below."""
        place = ":".join(str(piece) for piece in (self.file, self.line, self.column) if piece)
        text = ": ".join(piece for piece in (place, self.path, self.message) if piece)
        if self.source is None:
            return text
        if self.line is None or self.column is None:
            return f"{text}\n        {self.source}"
        # A tab in the source stays a tab below it, so that the caret stands under its character.
        indent = "".join("\t" if char == "\t" else " " for char in self.source[: self.column - 1])
        return f"{text}\n{self.line:>7} | {self.source}\n        | {indent}^"


class ConfigError(Exception):
    """A configuration that cannot run, with all of its faults in the order of the file."""

    def __init__(self, faults: Sequence[Fault], file: str | None = None) -> None:
        super().__init__(faults, file)
        self.file = file
        # Faults of the command line come last.
        self.faults = sorted(
            dict.fromkeys(faults),
            key=lambda fault: (fault.file != file, fault.line or 0, fault.column or 0),
        )

    def __str__(self) -> str:
        """Returns the list as a user sees it."""
        count = len(self.faults)
        head = f"{count} fault{'s' * (count != 1)}" + (f" in {self.file}" if self.file else "")
        rest = [f"... and {count - MAX_FAULTS} more"] if count > MAX_FAULTS else []
        return "\n".join([head, *map(str, self.faults[:MAX_FAULTS]), *rest])


class UsageError(Exception):
    """The command line names something that is not there."""


class RunError(Exception):
    """A run folder, a checkpoint or the disk does not allow what the command needs."""


class NonFiniteLoss(Exception):
    """The loss or the weights became NaN or infinite; they are not saved."""


class NoAnswer(NonFiniteLoss):
    """A trained model's answers are NaN or infinite, in an evaluation or a prediction."""


class OutOfMemory(Exception):
    """The memory of the machine or of the GPU is not enough."""


class WorkerDied(Exception):
    """A process that reads images for the trainer ended unexpectedly."""


class ProcessFailed(Exception):
    """A rank failed or was lost, so all ranks end. is_own: this process is the one that failed."""

    def __init__(self, message: str, is_own: bool = True) -> None:
        super().__init__(message)
        self.is_own = is_own


class ComponentError(Exception):
    """The code of a dataset, transform, model, loss or metric raised; the message says where."""


class Stopped(BaseException):
    """The process was asked to stop. ``except Exception`` does not catch it."""


def is_machinery(name: str) -> bool:
    """Whether a file of the checkout serves components, and is none: no line of a table names it.

    All files of ``trainer/components`` are components.
    """
    lines = (*DATASETS.values(), *MODELS.values(), *TRANSFORMS.values())
    modules = (line.partition(":")[0].removeprefix(PREFIX) for line in lines)
    named = {f"{module.replace('.', '/')}.py" for module in modules}
    return name.startswith(COMPONENTS) and name not in named


def is_of_machinery(error: BaseException) -> bool:
    """Whether machinery raised ``error``, also in the standard library, as a bug of the trainer.

    REFUSALS are none: a component may call machinery with what it cannot take.
    """
    frames = traceback.extract_tb(error.__traceback__)
    for file in (Path(frame.filename) for frame in reversed(frames)):
        if file.is_relative_to(STANDARD_LIBRARY) and "site-packages" not in file.parts:
            continue
        return is_machinery(_in_checkout(file)) and not isinstance(error, REFUSALS)
    return False


def _in_checkout(path: Path) -> str:
    """A file's path in the checkout, also where the package is installed; else all of it."""
    if not path.is_relative_to(CHECKOUT):
        return str(path)
    name = path.relative_to(CHECKOUT).as_posix()
    is_ours = TRAINER == "trainer" or name.startswith(("trainer/", *COMPONENTS))
    return name if is_ours else f"yaml_trainer/{name}"


def component_place(error: BaseException) -> str:
    """``FILE:LINE, in FUNCTION`` of the component's code that raised ``error``; empty if none did.

    That is the deepest frame below the trainer's last one that belongs to no library. A model or
    loss of a library has none: then it is the library's, and PyTorch's own if there is no other.
    A library's transform is no such code: it refuses an image, which is a fault of the data.
    """
    own = library = ""
    in_module = in_transform = False
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        name = _in_checkout(path)
        place = f"{name}:{line}, in {frame.f_code.co_qualname}"
        if is_machinery(name):
            in_transform |= name == "transforms/pipeline.py"
            continue
        if name.startswith(OF_TRAINER) and not name.startswith("trainer/components/"):
            own, library, in_module = "", "", False
        elif "-packages/" in name:
            place = place.rpartition("-packages/")[2]
            in_module |= place.startswith(RUNS_A_MODULE)
            if not (library and place.startswith("torch/")):
                library = place
        elif path.is_absolute() and not name.startswith(STANDARD_LIBRARY):
            own = place
    place = own or (library if in_module and not in_transform else "")
    if place and not is_of_machinery(error):
        return place
    return component_place(error.__cause__) if error.__cause__ else ""


def worded(error: BaseException) -> str:
    """An error's text; if the code of a component raised it, also its type and its place."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # of a class that someone wrote for a component
        text = ""
    place = component_place(error)
    if text and not place:
        return text
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.line or "" for frame in frames if "/torch/" not in frame.filename]
    text = text or "".join(lines[-1:])  # such as "assert size % 2 == 0"
    return ": ".join(filter(None, (type(error).__name__, text))) + (f" ({place})" if place else "")


def with_cause(error: Exception) -> str:
    """The text of an error, and the type and place of what a component's code raised for it."""
    place, kind = component_place(error), type(error.__cause__ or error).__name__
    return f"{error} ({kind}, {place})" if place and place not in str(error) else str(error)


def refusal_of(error: Exception) -> str:
    """The text of an error of a constructor: a ValueError refuses arguments in its own words."""
    return str(error) if isinstance(error, ValueError | ImportError) else worded(error)


def limit_met(error: BaseException) -> int | None:
    """The key of LIMITS for an error that the system's limit of something caused, or None."""
    if isinstance(error, OSError):
        return error.errno if error.errno in LIMITS else None
    found = (number for words, number in IN_WORDS.items() if words in str(error))
    return next(found, None) if isinstance(error, RuntimeError) else None


def in_plain_words(error: BaseException) -> BaseException:
    """Turn an error of memory, the disk, a limit or a component into one of this module.

    Returns others, and those of this module, as they are.
    """
    if isinstance(error, KNOWN):
        return error
    text = worded(error)
    full = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if full or (isinstance(error, RuntimeError | ImportError) and re.search(NO_MEMORY, text)):
        return OutOfMemory(
            f"out of memory: {text[:300] or 'no more could be had'}\n"
            "Smaller images, a smaller loader.batch_size, train.accumulate=2 or loader.cache=off "
            "need less."
        )
    if (number := limit_met(error)) not in (None, errno.ENOSPC):
        return RunError(f"{os.strerror(number)}: {LIMITS[number]}.")
    is_of_disk = isinstance(error, OSError) and bool(error.strerror)  # such as a full disk
    if component_place(error) and not (is_of_disk and not isinstance(error, FileNotFoundError)):
        return ComponentError(
            f"{text}\nThis code is of a dataset, transform, model, loss or metric, which the "
            "trainer only calls: correct it there, or report it to its author."
        )
    if isinstance(error, OSError) and error.strerror:
        return RunError(f"{error.filename or 'writing the output'}: {error.strerror}")
    return error


KNOWN = (
    *(ConfigError, UsageError, DataError, RunError, NonFiniteLoss, OutOfMemory, WorkerDied),
    *(ProcessFailed, ComponentError, Stopped),
)
