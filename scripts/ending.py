"""Ends the commands that write files: one exit code and one line for each kind of failure."""

import sys
from collections.abc import Callable
from pathlib import Path

from datasets import DataError


def code_of_writing(
    target: Path, action: Callable[[], None], interrupted: str = "interrupted."
) -> int:
    """Run ``action``; returns 0, 3 (bad data), 5 (``target`` cannot be written) or 130 (Ctrl-C)."""
    try:
        action()
        return 0
    except DataError as error:
        code, message = 3, f"error: {error}"
    except OSError as error:
        code, message = 5, f"error: {target}: cannot be written: {error.strerror}."
    except KeyboardInterrupt:
        code, message = 130, interrupted
    print(message, file=sys.stderr)
    return code
