"""Show that the tests notice known bugs: plant one after the other.

    python -m tests.torture.sabotage                            all of them, some minutes
    python -m tests.torture.sabotage --only "no fsync of files,relative cursor"
    python -m tests.torture.sabotage --list

Each bug is planted in its own copy of the checkout, and is caught if a test fails there. Tests
that cannot run, crash or hang catch nothing.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.torture.sabotages import SABOTAGES, Sabotage

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = {"data", "runs"}
LIMIT = 600  # seconds for one pytest


def main(argv: Sequence[str] | None = None) -> int:
    """Plant the bugs. Returns 0 if each is caught, 1 if not, 2 if tests fail without any."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture.sabotage",
        description="Plant known bugs, one at a time, and show that the tests notice each of them.",
    )
    parser.add_argument("--only", metavar="NAME,...", help="these, not all")
    parser.add_argument("--list", action="store_true", help="show what there is, and do nothing")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    arguments = parser.parse_args(argv)
    chosen = SABOTAGES
    if arguments.only:
        names = [name.strip() for name in arguments.only.split(",")]
        chosen = [sabotage for sabotage in SABOTAGES if sabotage.name in names]
        if unknown := set(names) - {sabotage.name for sabotage in chosen}:
            parser.error(f"unknown: {', '.join(sorted(unknown))}; see --list")
    if arguments.list:
        for sabotage in chosen:
            print(f"{sabotage.name:42} {sabotage.harm}")
        return 0
    return run(ROOT, chosen, arguments.jobs)


def run(root: Path, sabotages: Sequence[Sabotage], jobs: int) -> int:
    """Plant all bugs in copies of ``root`` and print a table; return the exit code."""
    began = time.monotonic()
    for sabotage in sabotages:
        patched(root, sabotage)  # raises before any test runs if a patch does not fit
    with tempfile.TemporaryDirectory(prefix="sabotage-") as name, ThreadPoolExecutor(jobs) as pool:
        folder = Path(name)
        copy(root, folder / "plain")
        tests = list(dict.fromkeys(test for sabotage in sabotages for test in sabotage.tests))
        print("without sabotage ...", flush=True)
        code, output = run_tests(folder / "plain", tests)
        if code != 0:
            print(f"{output[-3000:]}\nthe tests fail without any sabotage (exit code {code})")
            return 2
        results = pool.map(lambda numbered: attempt(folder, *numbered), enumerate(sabotages))
        caught = 0
        for sabotage, by in zip(sabotages, results, strict=True):
            caught += by is not None
            print(f"{sabotage.name:42} {by or f'SURVIVED: {sabotage.harm}'}", flush=True)
    print(f"{caught} of {len(sabotages)} caught in {time.monotonic() - began:.0f} s")
    return 0 if caught == len(sabotages) else 1


def attempt(folder: Path, number: int, sabotage: Sabotage) -> str | None:
    """The test that fails in a copy with this sabotage; None if none does."""
    place = folder / str(number)
    shutil.copytree(folder / "plain", place, ignore=shutil.ignore_patterns("__pycache__"))
    try:
        (place / sabotage.file).write_text(patched(place, sabotage), encoding="utf-8")
        code, output = run_tests(place, sabotage.tests)
    finally:
        shutil.rmtree(place)
    failed = re.search(r"^FAILED (\S+::.+?)(?: - |$)", output, re.MULTILINE)
    return failed[1] if code == 1 and failed else None


def patched(root: Path, sabotage: Sabotage) -> str:
    """The file's text with the bug in it. Raises ValueError if the patch no longer fits."""
    text = (root / sabotage.file).read_text(encoding="utf-8")
    if text.count(sabotage.old) != 1:
        raise ValueError(f"{sabotage.name}: {sabotage.file} holds its text not exactly once")
    return text.replace(sabotage.old, sabotage.new)


def copy(root: Path, target: Path) -> None:
    """Copy the working tree: tracked and untracked files, without ignored ones, data and runs."""
    listing = ["git", "-C", str(root), "ls-files", "-coz", "--exclude-standard"]
    names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if Path(name).parts[0] not in LEFT_OUT and (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, target / name)


def run_tests(place: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit code (1: a test failed; 124: it hung) and what it printed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(place)}
    try:
        done = subprocess.run(
            [*command, "--hypothesis-seed=0", *tests],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return 124, "it hangs"
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
