#!/usr/bin/env bash
# wandb 0.31.0, WANDB_MODE=offline. Run.finish() may return before the .wandb file of the run is written: another
# process writes it. Expected: after finish() the file is complete, so that a script may copy it, mark it as done or
# upload it. Seen, of 40 runs of 20 points on a busy machine with two cores: after finish() some files had only their
# 7 bytes of header (of 5,600), and were complete some tenths of a second later. With wandb.teardown() after finish(),
# which waits for the process, all 40 were complete.
# Exits with 1 if this changes. It is a race: on an idle machine it may not be seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q wandb==0.31.0
cat > "$folder/race.py" <<'PYTHON'
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time

os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
import wandb


def burn():
    while True:
        pass


def grew_later(wait, number):
    place = tempfile.mkdtemp(dir=sys.argv[1])
    quiet = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True, silent=True)
    run = wandb.init(project="p", id=f"r{number}", dir=place, mode="offline", settings=quiet)
    for step in range(20):
        run.log({"a": step}, step=step)
    run.finish()
    if wait:
        wandb.teardown()
    (file,) = pathlib.Path(place).glob("wandb/offline-run-*/*.wandb")
    at_once = file.stat().st_size
    time.sleep(0.7)
    return file.stat().st_size > at_once


if __name__ == "__main__":
    busy = [multiprocessing.Process(target=burn, daemon=True) for _ in range(2 * os.cpu_count())]
    for process in busy:
        process.start()
    without = sum(grew_later(False, n) for n in range(40))
    waited = sum(grew_later(True, 100 + n) for n in range(40))
    for process in busy:
        process.kill()
    print(f"files that grew after finish(): {without} of 40; after teardown() too: {waited} of 40")
    as_seen = without > 0 and waited == 0
    print("as seen" if as_seen else "changed")
    sys.exit(not as_seen)
PYTHON
"$folder/venv/bin/python" "$folder/race.py" "$folder"
