"""Draw note-like pictures of 1 and 100 yuan, for machines that have no photographs.

python -m scripts.draw_rmb --target data/rmb_drawn --per-class 120 --seed 0
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.ending import code_of_writing


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the pictures. Returns the exit code: 0, or 5 (the target cannot be written)."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.draw_rmb",
        description="Draw note-like pictures of 1 and 100 yuan into TARGET/1 and TARGET/100.",
    )
    parser.add_argument("--target", type=Path, required=True, help="a folder that is new or empty")
    parser.add_argument(
        "--per-class", type=int, default=120, help="pictures a value (default: 120)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed draws other pictures (default: 0)"
    )
    arguments = parser.parse_args(argv)
    target, per_class, seed = arguments.target, arguments.per_class, arguments.seed
    if per_class < 1:
        parser.error(f"--per-class {per_class}: expected at least 1")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        parser.error(f"--target {target}: exists already; name a folder that is new or empty")

    def work() -> None:
        from datasets.draw import draw

        draw(target, per_class, seed)
        print(f"{target}: {per_class} pictures of each value, seed {seed}")

    return code_of_writing(target, work)


if __name__ == "__main__":
    sys.exit(main())
