"""One process of a run under torchrun, killed at a named place: the trainer's command, disturbed.

    STRIKE="1 trainer.loop:reseed before 7" torchrun --standalone --nproc-per-node 2 \\
        --max-restarts 2 -m scripts.torture_ranks --config FILE

STRIKE says which rank, at which function, before or after it, at which call. It strikes in the
first start only: torchrun starts all again, and the run must come to what it comes to alone.
"""

import importlib
import os
import sys


def main() -> int:
    """Lay the fault, train; the trainer's exit code."""
    from scripts import torture_faults as faults

    command = importlib.import_module("trainer.train")
    importlib.import_module("trainer.epochs")
    rank, place, when, number = (os.environ.get("STRIKE") or "-1 - before 0").split()
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (rank, "0"):
        faults.wrap(place, **{when: faults.at(int(number), faults.kill)})
    code: int = command.main()
    return code


if __name__ == "__main__":
    sys.exit(main())
