"""Kill, stop, starve and damage training runs. Resumed, each must equal an undisturbed run exactly.

    python -m tests.torture --quick
    python -m tests.torture --long --jobs 2 --rmb data/rmb --json torture.json
    python -m tests.torture --only kill --seed 17 --trials 1

PyTorch is imported once. Each launch of a trial is a fork of this process that runs the command
``python -m trainer.train``, so a trial takes tenths of a second. A trial's number decides all that
happens in it, but for the instant at which a signal arrives.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tests.torture.run import Bench


class Kind(NamedTuple):
    """A kind of trial: how many trials --quick and --long do, and what a trial does.

    Its function in ``tests.torture.trials`` has the kind's name. ``cases`` names the list of its
    cases there, or a function that returns it; without it, each number is another random trial.
    """

    quick: int
    long: int
    title: str
    cases: str = ""


KINDS = {
    "kill": Kind(20, 500, "up to 5 SIGKILLs at random times"),
    "points": Kind(20, 10**6, "SIGKILL before and after each call of a function", "point_cases"),
    "calls": Kind(24, 10**6, "each fsync, rename, write ... killed or failing", "call_cases"),
    "strace": Kind(6, 10**6, "the same by the system's own calls (strace)", "strace_cases"),
    "term": Kind(21, 700, "SIGTERM or SIGINT in each phase, at most one step lost"),
    "twice": Kind(3, 50, "two Ctrl-C through a save"),
    "resume": Kind(4, 10**6, "stopped at every step of two epochs, 48 set-ups", "resume_cases"),
    "full": Kind(6, 72, "a full disk, files cut off, a read-only folder"),
    "damage": Kind(9, 10**6, "checkpoints cut, flipped, forged, missing", "DAMAGES"),
    "images": Kind(5, 50, "images broken in mid-run, a worker killed"),
    "store": Kind(12, 600, "builders of the store killed, robbed, deceived, against each other"),
    "together": Kind(3, 15, "16 starts at once, two processes on one run"),
    "ranks": Kind(2, 50, "one of two processes killed, started again by torchrun", "rank_cases"),
}


PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Outcome(NamedTuple):
    """How a trial ended: "survived", "lost", or "not reached" if the fault never struck."""

    number: int
    verdict: str
    reason: str


def main(argv: Sequence[str] | None = None) -> int:
    """Do the trials and print a table; returns the exit code: 1 if a run did not survive."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description="Kill, stop, starve and damage training runs, resume them and compare bits.",
        epilog="exit codes: 0 all survived, 1 not all, 2 usage, 130 interrupted. Kinds: "
        + "; ".join(f"{name}: {kind.title}" for name, kind in KINDS.items()),
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="some of each kind: a minute (default)")
    form.add_argument("--long", action="store_true", help="every case, 500 chains: half an hour")
    parser.add_argument("--trials", type=int, metavar="N", help="so many of each kind")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first one's number")
    parser.add_argument("--only", metavar="KIND,...", help=f"some of {', '.join(KINDS)}")
    parser.add_argument("--rmb", type=Path, metavar="DIR", help="photographs; else notes are drawn")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials at once (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there too")
    arguments = parser.parse_args(argv)
    names = arguments.only.split(",") if arguments.only else list(KINDS)
    if unknown := [name for name in names if name not in KINDS]:
        parser.error(f"--only {unknown[0]}: expected some of {', '.join(KINDS)}")
    for option in ("trials", "jobs"):
        if getattr(arguments, option) is not None and getattr(arguments, option) < 1:
            parser.error(f"--{option}: expected at least 1")
    if arguments.rmb and not arguments.rmb.is_dir():
        parser.error(f"--rmb {arguments.rmb}: is no folder")
    if not sys.platform.startswith("linux"):
        parser.error("processes are forked, killed and watched as Linux does it")
    import_once()
    try:
        return torture(arguments, names)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def import_once() -> None:
    """Import all that training needs, and start no thread: a fork would lose it."""
    import importlib
    import logging
    import pkgutil
    import threading

    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["GIT_DIR"] = os.devnull  # a killed git would leave its lock in the checkout
    import trainer
    from trainer.process.compiler_stand_in import defer_compiler

    defer_compiler()
    importlib.import_module("torch").set_num_threads(1)
    for module in pkgutil.walk_packages(trainer.__path__, "trainer."):
        if not module.name.startswith("trainer.sweeping"):  # no part of training; needs Optuna
            importlib.import_module(module.name)
    importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    importlib.import_module("tests.torture.trials")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it logs each purged point
    tqdm = importlib.import_module("tqdm").tqdm
    tqdm.monitor_interval = 0  # no thread that watches bars
    tqdm.set_lock(threading.RLock())  # tqdm's own is shared by forks: a killed one would keep it


def torture(arguments: argparse.Namespace, names: Sequence[str]) -> int:
    """Do the trials of each kind, one kind after the other; return the exit code."""
    import json
    import shutil
    import signal
    import tempfile
    import time

    from tests.torture.run import Bench, adopt_orphans
    from trainer.process.console import bar, duration, say

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    adopt_orphans()
    bench = Bench(Path(tempfile.mkdtemp(prefix="torture-")))
    os.environ["TRAINER_STORE"] = str(bench.folder / "store")  # not the user's own
    rows: list[tuple[str, list[Outcome], str]] = []
    failed = False
    try:
        prepare(bench, arguments.rmb)
        for name in names:
            started = time.monotonic()
            numbers, note = choose(bench, name, arguments)
            outcomes: list[Outcome] = []
            rows.append((name, outcomes, note))
            trials = tried(bench, name, numbers, arguments.jobs)
            for outcome in bar(trials, name, len(numbers), unit="trial"):
                outcomes.append(outcome)
                if outcome.verdict == "lost":
                    failed = True
                    say(f"lost    {outcome.reason}\n        {command(name, outcome, arguments)}")
                    say(f"        kept: {trial_folder(bench, name, outcome.number)}")
            failed |= not survived(outcomes, note)
            counts = f"{sum(o.verdict == 'survived' for o in outcomes)} of {len(outcomes)} survived"
            say(f"{name:<9} {counts}, {duration(time.monotonic() - started)} {note}".rstrip())
    finally:
        if not failed:
            shutil.rmtree(bench.folder, ignore_errors=True)
    say(f"\n{table(rows)}")
    if arguments.json:
        content = {name: [o._asdict() for o in outcomes] for name, outcomes, _ in rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return int(failed)


def command(name: str, outcome: Outcome, arguments: argparse.Namespace) -> str:
    """The command that repeats one trial."""
    images = f" --rmb {arguments.rmb}" if arguments.rmb else ""
    one = f"--only {name} --seed {outcome.number} --trials 1"
    return f"python -m tests.torture {one}{images}"


def prepare(bench: "Bench", photographs: Path | None) -> None:
    """Write small images, 24 per class, and the YAML that trains on them."""
    import shutil

    from PIL import Image

    from datasets.draw import draw
    from tests.torture.run import CONFIG

    source = photographs or bench.folder / "drawn"
    if photographs is None:
        draw(source, per_class=24)
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        (bench.images / folder.name).mkdir(parents=True)
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
        for number, file in enumerate(files[:24]):
            with Image.open(file) as picture:
                small = picture.convert("RGB").resize((64, 36))
            small.save(bench.images / folder.name / f"{number:02d}.jpg", quality=90)
    if photographs is None:
        shutil.rmtree(source)
    bench.config.write_text(CONFIG.format(root=bench.images))


def choose(bench: "Bench", name: str, arguments: argparse.Namespace) -> tuple[list[int], str]:
    """The numbers of the trials, and a note on what this machine cannot do; "" if nothing."""
    from tests.torture import trials

    kind, seed = KINDS[name], arguments.seed
    note = {"strace": trials.no_strace, "full": trials.no_mounts}.get(name, str)()
    count = arguments.trials or (kind.long if arguments.long else kind.quick)
    if not kind.cases:
        return list(range(seed, seed + count)), note
    cases = getattr(trials, kind.cases)
    size = len(cases(bench) if callable(cases) else cases)
    if arguments.trials:
        return [number % size for number in range(seed, seed + count)] if size else [], note
    numbers = trials.spread(size, min(count, size)) if size else []
    return [(seed + number - 1) % size for number in numbers], note


def tried(bench: "Bench", name: str, numbers: Sequence[int], jobs: int) -> Iterator[Outcome]:
    """Yield the outcomes of trials as they end. Each has its own process, ``jobs`` at a time."""
    import json
    from multiprocessing.connection import wait

    from tests.torture.run import FORK

    waiting = list(numbers)
    live: dict[Any, int] = {}
    try:
        while waiting or live:
            while waiting and len(live) < jobs:
                process = FORK.Process(target=attempt, args=(bench, name, waiting[0]))
                process.start()
                live[process] = waiting.pop(0)
            ended = wait([process.sentinel for process in live])
            for process in [process for process in live if process.sentinel in ended]:
                process.join()
                number = live.pop(process)
                file = trial_folder(bench, name, number).with_suffix(".json")
                if file.exists():
                    yield Outcome(**json.loads(file.read_text()))
                else:
                    yield Outcome(number, "lost", f"the trial itself ended with {process.exitcode}")
    finally:
        for process in live:
            process.terminate()
        for process in live:
            process.join()


def trial_folder(bench: "Bench", name: str, number: int) -> Path:
    """The folder of a trial's run, images and logs."""
    return bench.folder / "trials" / name / str(number)


def attempt(bench: "Bench", name: str, number: int) -> None:
    """Do one trial and write its outcome. Remove its folder, unless the trial was lost."""
    import json
    import shutil
    import signal
    import traceback

    from tests.torture import trials
    from tests.torture.run import Lost, NotReached, Trial, adopt_orphans

    def leave(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent sends this one SIGTERM
    signal.signal(signal.SIGTERM, leave)
    adopt_orphans()
    folder = trial_folder(bench, name, number)
    outcome = Outcome(number, "survived", "")
    try:
        getattr(trials, name)(Trial(bench, number, folder, name))
    except NotReached:
        outcome = Outcome(number, "not reached", "")
    except Lost as error:
        outcome = Outcome(number, "lost", str(error))
    except Exception:
        outcome = Outcome(number, "lost", traceback.format_exc())
    if outcome.verdict != "lost":
        shutil.rmtree(folder)
    folder.with_suffix(".json").write_text(json.dumps(outcome._asdict()))


def survived(outcomes: Sequence[Outcome], note: str) -> bool:
    """Whether no trial was lost, and one survived, or a note says why none was possible."""
    verdicts = {outcome.verdict for outcome in outcomes}
    return "lost" not in verdicts and ("survived" in verdicts or bool(note))


def table(rows: Sequence[tuple[str, list[Outcome], str]]) -> str:
    """The outcomes in Markdown."""
    lines = ["| kind | what happens to a run | tried | survived | lost |", "|---|---|---|---|---|"]
    for name, outcomes, note in rows:
        reached = [outcome for outcome in outcomes if outcome.verdict != "not reached"]
        lost = [str(outcome.number) for outcome in outcomes if outcome.verdict == "lost"]
        title = KINDS[name].title + (f" ({note})" if note else "")
        count = len(reached) - len(lost)
        lines.append(f"| {name} | {title} | {len(reached)} | {count} | {', '.join(lost)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
