"""Unpack an archive from somebody else safely: plain files only, all or nothing.

python -m scripts.unpack --archive data.tar.gz --target data/images --sha256 HEX
"""

import argparse
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.ending import code_of_writing


def main(argv: Sequence[str] | None = None) -> int:
    """Unpack. Returns the exit code: 0, 2, 3 (a bad archive), 5 (target not written) or 130."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.unpack",
        description="Unpack a tar (also .gz, .bz2, .xz) or zip file into a new folder. Links, paths"
        " that lead elsewhere, damage and sizes out of proportion are refused.",
    )
    add = parser.add_argument
    add("--archive", type=Path, required=True, help="a tar or zip file")
    add("--target", type=Path, required=True, help="a folder that is new")
    add("--sha256", type=_digest, help="what the archive's SHA-256 must be")
    arguments = parser.parse_args(argv)
    archive, target = arguments.archive, arguments.target.absolute()

    from datasets.archive import unpack
    from trainer.process.console import say

    def work() -> None:
        say(f"unpacking {archive} ...")
        count = unpack(archive, target, arguments.sha256)
        say(f"{target}: {count:,} files")

    return code_of_writing(target, work, "interrupted: nothing was unpacked.")


def _digest(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r}; expected 64 hexadecimal digits")
    return text.lower()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing half-written stays
    sys.exit(main())
