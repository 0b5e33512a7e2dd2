"""Writes files of tensors atomically, by ``trainer.run.disk``, and reads them as plain data."""

from pathlib import Path
from typing import Any

import torch

from models.tensor_file import read_tensors
from trainer.process.errors import RunError
from trainer.run.disk import write_with


def save_tensors(path: Path, content: object, *copies: Path) -> dict[str, Any]:
    """Write tensors and plain values, readable with ``torch.load(path, weights_only=True)``.

    ``copies`` are more paths for the same content. Returns its size and SHA-256.
    """
    return write_with(path, lambda file: torch.save(content, file), *copies)  # type: ignore[arg-type]


def load_tensors(path: Path) -> Any:
    """Read what ``save_tensors`` wrote, else raise RunError; never runs code from a file."""
    try:
        return read_tensors(path)
    except FileNotFoundError:
        raise RunError(
            f"{path} is missing: the run has not saved it yet, or it was removed."
        ) from None
    except ValueError as error:
        raise RunError(f"{error}.") from None
