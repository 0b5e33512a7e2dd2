"""The trials of kind "store": processes that prepare images are killed, mixed, robbed and deceived.

A builder is a fork that prepares pictures as a training does, by ``load_data``, and writes down the
SHA-256 of each prepared image and of all batches. Whatever happened to the store before, they must
equal those of a builder with ``loader.cache=ram`` and an empty store.
"""

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.torture import faults
from tests.torture.run import (
    DONE,
    FORK,
    STEP,
    TIMEOUT,
    WORKER,
    Bench,
    Lost,
    NotReached,
    Trial,
    digest,
    last_lines,
    write_json,
)
from trainer.process.exits import exit_code_of

MODULES = ("store", "pool", "file_index", "reading", "source")  # of trainer.input
CALLS = (*faults.ERRORS, "close", "lseek")  # of ``os``, by trainer.run.disk and trainer.input.pool
RANDOM_CROP = "{name: RandomResizedCrop, size: 32}"
VARIANTS = {  # how pictures are prepared -> overrides
    "one recipe": (),
    "two recipes": ("transforms.eval.0={name: Resize, size: [90, 90]}",),
    "sizes differ": (f"transforms.train.0={RANDOM_CROP}",),
    "fresh files": ("transforms.eval.0={name: Resize, size: [40, 40]}",),
}
KILLED = "killed"
PLAN = (  # what trial number n does is PLAN[n % 12]; each 24th is one in real processes
    *(KILLED, "two", "damaged", "waiting", KILLED, "cleared run"),
    *(KILLED, "three", "damaged", "cleared builder", KILLED, KILLED),
)
EACH_REAL = 24
MANY = {"two": 2, "three": 3}  # builders
OLD = 120  # seconds, after which what nobody holds is removed


@dataclass
class Builder:
    """A process that prepares pictures, what it prints and what it finds."""

    process: Any
    log: Path
    found: Path

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def store(trial: Trial) -> None:
    """One trial of PLAN, or one in real processes; then all that is left is looked at."""
    before = states(trial.bench)
    try:
        do(trial)
    finally:
        for process in FORK.active_children():  # if the trial was lost
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
    if states(trial.bench) != before:
        raise Lost("a file of the user's was touched")
    refuse_locks(the_store(trial))


def do(trial: Trial) -> None:
    """What PLAN says."""
    what = PLAN[trial.number % len(PLAN)]
    if trial.number % EACH_REAL == EACH_REAL - 1:
        real(trial)
    elif what == KILLED:
        killed(trial)
    elif what in MANY:
        many(trial, MANY[what])
    elif what == "damaged":
        damaged(trial)
    elif what == "waiting":
        waiting(trial)
    elif what == "cleared run":
        cleared_run(trial)
    else:
        cleared_builder(trial)


def the_store(trial: Trial) -> Path:
    """The store of a trial."""
    return trial.folder / "store"


def pictures(bench: Bench) -> Path:
    """A folder of 64 pictures in several sizes: two are equal, one is broken."""
    folder = bench.folder / "pictures"

    def make(_: Trial) -> dict[str, Any]:
        rng = random.Random(0)
        for number in range(64):
            source = sorted(bench.images.rglob("*.jpg"))[number % 48]
            file = folder / source.parent.name / f"{number:02d}.{rng.choice(('jpg', 'png'))}"
            file.parent.mkdir(parents=True, exist_ok=True)
            size = rng.choice([(64, 36), (50, 50), (96, 100), (81, 120)])
            with Image.open(source) as image:
                image.convert(rng.choice(["RGB", "L"])).resize(size).save(file)
        first, second, broken, *others = sorted(folder.rglob("*.jpg"))
        assert others
        second.write_bytes(first.read_bytes())
        broken.write_bytes(broken.read_bytes()[:300])
        time.sleep(2.5)  # files that have just been written are not remembered
        return {}

    bench.kept("pictures", (), make)
    return folder


def states(bench: Bench) -> dict[str, tuple[Any, ...]]:
    """Content and times of each picture."""
    found = {}
    for path in sorted(pictures(bench).rglob("*")):
        if path.is_file():
            stat = path.stat()
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = content, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
    return found


def build(trial: Trial, variant: str, *arms: Callable[[], object], cache: str = "auto") -> Builder:
    """Start a builder; ``arms`` are called in it first."""
    folder = pictures(trial.bench)
    if variant == "fresh files":
        own = trial.folder / "pictures"
        if not own.exists():
            shutil.copytree(folder, own)
        folder = own
    trial.launches += 1
    log = trial.folder / f"launch-{trial.launches}.txt"
    found = log.with_suffix(".json")
    overrides = (f"dataset.root={folder}", "dataset.on_broken=skip", *VARIANTS[variant])
    work = partial(prepare, trial.config, (*overrides, f"loader.cache={cache}"), found)
    return Builder(fork(trial, log, arms, partial(exit_code_of, work)), log, found)


def fork(
    trial: Trial, log: Path, arms: Sequence[Callable[[], object]], work: Callable[[], int]
) -> Any:
    """A process with its own group, the trial's store, and output to ``log``, that does work."""
    reader, writer = os.pipe()
    if arms:  # else another builder may still look at what it has noted
        trial.notes[:] = memoryview(bytes(32)).cast("q")

    def child() -> None:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ["TRAINER_STORE"] = str(the_store(trial))
        torch.set_num_threads(1)
        for arm in arms:
            arm()
        os.write(writer, b".")
        os.close(writer)
        os.close(reader)
        sys.exit(work())

    process = FORK.Process(target=child)
    process.start()
    os.close(writer)
    os.read(reader, 1)  # its group exists, and its faults are armed
    os.close(reader)
    return process


def prepare(file: Path, overrides: Sequence[str], found: Path) -> None:
    """Prepare pictures, in many small tasks, and write down what came out."""
    from trainer.config import load_config
    from trainer.input import data, reading

    reading.TASK_FILES = 6
    config = load_config(file, overrides)
    made = data.load_data(config, torch.device("cpu"))
    content: dict[str, Any] = {"skipped": made.skipped, "split": made.split_digest}
    for name, subset in made.subsets.items():
        batches = [subset.batch(rows, 1) for rows in torch.arange(len(subset)).split(8)]
        images = subset.images
        assert images is not None
        single = [images[row] for row in range(len(subset))]
        content[name] = {
            "labels": subset.labels.tolist(),
            "images": [bits(image) for image in single],
            "batches": [[bits(images), bits(labels)] for images, labels in batches],
        }
    write_json(found, content)


def bits(tensor: torch.Tensor) -> str:
    """Shape, type and SHA-256 of a tensor's values."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return f"{tuple(tensor.shape)} {tensor.dtype} {hashlib.sha256(data).hexdigest()}"


def reference(bench: Bench, variant: str) -> dict[str, Any]:
    """What a builder finds with an empty store that it does not use, and how long it takes."""

    def make(other: Trial) -> dict[str, Any]:
        began = time.monotonic()
        builder = build(other, variant, cache="ram")
        finish(other, builder, DONE)
        found = json.loads(builder.found.read_text().replace(str(other.folder), "FOLDER"))
        return {"found": found, "seconds": time.monotonic() - began}

    pictures(bench)
    return bench.kept("stored reference", (variant,), make)


def finish(trial: Trial, builder: Builder, *wanted: int) -> int:
    """Wait for a builder; raise Lost unless it ends with a code of ``wanted`` and no traceback."""
    code = trial.wait(builder.process)
    if code not in wanted:
        raise Lost(f"a builder ended with {code}, not {wanted}: {last_lines(builder.text)}")
    if "Traceback" in builder.text or "bug of the trainer" in builder.text:
        raise Lost(f"a traceback (exit code {code}): {last_lines(builder.text)}")
    return code


def check(trial: Trial, builder: Builder, variant: str) -> None:
    """Wait for a builder that must come to its end, and compare what it found."""
    finish(trial, builder, DONE)
    found = json.loads(builder.found.read_text().replace(str(trial.folder), "FOLDER"))
    expected = reference(trial.bench, variant)["found"]
    for name, value in expected.items():
        if found[name] != value:
            raise Lost(f"{variant}: {name} differs from what was prepared without a store")


def check_again(trial: Trial, variant: str) -> None:
    """A start long after the others finds all, and leaves complete segments only."""
    make_old(the_store(trial))
    check(trial, build(trial, variant), variant)
    if litter := unfinished(the_store(trial)):
        raise Lost(f"left in the store: {', '.join(map(str, litter))}")


def unfinished(folder: Path) -> list[Path]:
    """Files that belong to no complete segment."""
    files = [path for path in folder.glob("images/*/*") if path.name != "about.json"]
    whole = {path.stem for path in files if path.suffix == ".json"}
    return [path for path in files if path.stem not in whole]


def make_old(folder: Path) -> None:
    """Give what is unfinished an old time."""
    for path in unfinished(folder):
        os.utime(path, (time.time() - OLD, time.time() - OLD))


def refuse_locks(folder: Path) -> None:
    """Raise Lost if a lock is still held."""
    for path in [*folder.glob("locks/*"), *folder.glob("images/*/*.pixels")]:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Lost(f"{path.name} is locked, and no process is left") from None


Point = tuple[str, str, str, int]  # parent or reader, call, before or after, n


def places(hook: Callable[[str, str], object]) -> None:
    """Call ``hook`` before and after each function of MODULES, and each of CALLS, with the name."""
    for module in MODULES:
        name = f"trainer.input.{module}"
        for function in faults.functions_of(name):
            faults.wrap(
                function, partial(hook, function, "before"), partial(hook, function, "after")
            )

    def call(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        hook(name, "before")
        if name == "write":
            hook(name, "torn")
        result = real(*arguments)
        hook(name, "after")
        return result

    faults.intercept(call, ("trainer.run.disk", "trainer.input.pool"), CALLS)


def points(bench: Bench, variant: str) -> list[Point]:
    """Each call of a builder, of those that are called often some; in a random order."""

    def make(trial: Trial) -> dict[str, Any]:
        file = trial.folder / "calls"
        check(trial, build(trial, variant, partial(note_calls, file)), variant)
        counts: dict[tuple[str, ...], dict[str, int]] = {}
        for line in file.read_text().splitlines():
            process, *place = line.split()
            numbers = counts.setdefault(tuple(place), {})
            numbers[process] = numbers.get(process, 0) + 1
        return {"counts": [[*place, max(n.values())] for place, n in sorted(counts.items())]}

    some = [
        (role, name, when, n)
        for role, name, when, count in bench.kept("stored calls", (variant,), make)["counts"]
        for n in sorted({1, 2, count // 2, count} & {*range(1, count + 1)})
    ]
    random.Random(0).shuffle(some)
    return some


def note_calls(file: Path) -> None:
    """Write a line for each call of a place."""
    descriptor, leader = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), os.getpid()

    def hook(name: str, when: str) -> None:
        role = "parent" if os.getpid() == leader else "reader"
        os.write(descriptor, f"{os.getpid()} {role} {name} {when}\n".encode())

    places(hook)


def at_point(trial: Trial, point: Point, strike: Callable[[], object]) -> Callable[[], None]:
    """An arm that calls ``strike`` at a point of a builder, and notes the process that is there."""
    wanted, called, at, number = point

    def arm() -> None:
        leader, counts = os.getpid(), dict[int, int]()

        def hook(name: str, when: str) -> None:
            if (name, when) != (called, at) or trial.notes[0]:
                return
            process = os.getpid()
            counts[process] = counts.get(process, 0) + 1
            if counts[process] == number and (process == leader) == (wanted == "parent"):
                trial.notes[0] = process
                strike()

        places(hook)

    return arm


def kill_alone() -> None:
    """End this process only."""
    os.kill(os.getpid(), signal.SIGKILL)


def variant_of(trial: Trial) -> str:
    """The variant of a trial."""
    return list(VARIANTS)[trial.number // len(PLAN) % len(VARIANTS)]


def point_of(trial: Trial, variant: str) -> Point:
    """The point of a trial: the killed ones try one after the other."""
    found = points(trial.bench, variant)
    turn = trial.number // len(PLAN) // len(VARIANTS) * PLAN.count(KILLED)
    turn += PLAN[: trial.number % len(PLAN)].count(KILLED)
    return found[turn % len(found)]


def killed(trial: Trial) -> None:
    """SIGKILL to a builder, or to one process of it, at a point; then it is started again."""
    variant, alone = variant_of(trial), trial.rng.random() < 0.5
    role, *_ = point = point_of(trial, variant)
    arm = at_point(trial, point, kill_alone if alone else faults.kill)
    first = build(trial, variant, arm)
    if alone and role == "parent":  # the next start does not wait for what is left of the first
        first.process.join(TIMEOUT)
        struck = trial.notes[0]
        check(trial, build(trial, variant), variant)
        finish(trial, first, -signal.SIGKILL if struck else DONE)
    else:
        reader_only = alone and role == "reader"
        code = trial.wait(first.process)
        struck = trial.notes[0]
        if code not in ((WORKER, DONE) if reader_only else (-signal.SIGKILL, DONE)):
            raise Lost(f"a builder ended with {code} at {point}: {last_lines(first.text)}")
        if "Traceback" in first.text:
            raise Lost(f"a traceback at {point}: {last_lines(first.text)}")
        check(trial, build(trial, variant), variant)
    if not struck:
        raise NotReached
    check_again(trial, variant)


def many(trial: Trial, count: int) -> None:
    """Builders against each other on one store; of each round some are killed at random times."""
    rng = trial.rng
    seconds = reference(trial.bench, "one recipe")["seconds"]
    some = rng.sample([name for name in VARIANTS if name != "fresh files"], rng.randint(1, 2))
    for variant in some:
        reference(trial.bench, variant)
    for _ in range(3):
        live, ends = list[tuple[str, Builder]](), list[float]()
        for _ in range(count):
            variant = rng.choice(some)
            live.append((variant, build(trial, variant)))
            limit = rng.uniform(0, 1.5 * count * seconds) if rng.random() < 0.6 else TIMEOUT
            ends.append(time.monotonic() + limit)
        for end, (variant, builder) in sorted(zip(ends, live, strict=True), key=lambda one: one[0]):
            builder.process.join(max(0.0, min(end - time.monotonic(), TIMEOUT)))
            if builder.process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(builder.process.pid, signal.SIGKILL)
            if finish(trial, builder, DONE, -signal.SIGKILL) == DONE:
                check(trial, builder, variant)
    make_old(the_store(trial))
    for variant in some:
        check(trial, build(trial, variant), variant)
    check_again(trial, some[-1])


def damaged(trial: Trial) -> None:
    """Files of the store are changed between two starts, and their times are put back."""
    rng, variant = trial.rng, variant_of(trial)
    check(trial, build(trial, variant), variant)
    for _ in range(3):
        time.sleep(0.02)  # the clock of a file system ticks every 4 ms or 10 ms
        files = sorted(path for path in the_store(trial).rglob("*") if path.is_file())
        for path in rng.sample(files, rng.randint(1, min(4, len(files)))):
            spoil(path, rng)
        check(trial, build(trial, variant), variant)
    check_again(trial, variant)


def spoil(path: Path, rng: random.Random) -> None:
    """Flip bits of a file in place, or rarely cut it, and put its times back."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 8, 1000]) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    with path.open("rb+") as file:
        file.write(data)
        if rng.random() < 0.1:
            file.truncate(rng.randrange(len(data) + 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def pause_at(trial: Trial, variant: str) -> Builder:
    """A builder that was stopped at a random point, by SIGSTOP. Raises NotReached."""
    point = trial.rng.choice(points(trial.bench, variant))
    builder = build(trial, variant, at_point(trial, point, faults.pause))

    def is_over() -> bool:
        return builder.process.exitcode is not None

    wait_for(lambda: is_stopped(trial.notes[0]) or is_over(), builder.process)
    if is_over():
        check(trial, builder, variant)
        raise NotReached
    return builder


def wait_for(condition: Callable[[], bool], *processes: Any) -> None:
    """Wait until it is true; after TIMEOUT end the processes' groups and raise Lost."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > end:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            raise Lost(f"hangs: {condition.__qualname__} has not come in {TIMEOUT:.0f} s")
        time.sleep(0.002)


def is_stopped(process: int) -> bool:
    """Whether a process is stopped; 0 is none."""
    try:
        return bool(process) and "State:\tT" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def waiting(trial: Trial) -> None:
    """A builder is killed, or goes on, while another one waits for its lock."""
    variant = variant_of(trial)
    other = "one recipe" if variant == "two recipes" else variant
    reference(trial.bench, other)
    first = pause_at(trial, variant)
    struck = trial.notes[0]
    second = build(trial, other)
    told = "waiting for another process"
    wait_for(
        lambda: told in second.text or second.process.exitcode is not None,
        first.process,
        second.process,
    )
    is_waiting = second.process.exitcode is None
    how = trial.rng.choice(["group", "parent", "go on"])
    if how == "go on":
        os.kill(struck, signal.SIGCONT)
        check(trial, first, variant)
    elif how == "parent":
        os.kill(first.process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(struck, signal.SIGCONT)  # a reader that is stopped holds what it has
        finish(trial, first, -signal.SIGKILL)
    else:
        os.killpg(first.process.pid, signal.SIGKILL)
        finish(trial, first, -signal.SIGKILL)
    check(trial, second, other)
    check_again(trial, variant)
    if not is_waiting:
        raise NotReached


def clear(trial: Trial) -> None:
    """Do ``python -m trainer.data --store --clear``."""
    log = trial.folder / "clear.txt"
    command = importlib.import_module("trainer.data")
    work = partial(command.main, ["--store", "--clear"])
    process = fork(trial, log, (), work)
    if (code := trial.wait(process)) != DONE:
        raise Lost(f"--store --clear ended with {code}: {last_lines(log.read_text())}")


def cleared_builder(trial: Trial) -> None:
    """The store is cleared while a builder is at work."""
    variant = variant_of(trial)
    builder = pause_at(trial, variant)
    struck = trial.notes[0]
    clear(trial)
    os.kill(struck, signal.SIGCONT)
    check(trial, builder, variant)
    check(trial, build(trial, variant), variant)
    check_again(trial, variant)


def cleared_run(trial: Trial) -> None:
    """The store is cleared while a run trains from it: the run ends with the same bits."""
    _ = trial.reference
    use_own = partial(os.environ.__setitem__, "TRAINER_STORE", str(the_store(trial)))
    pause = faults.at(trial.rng.randint(1, 12), faults.pause)
    run = trial.start(use_own, lambda: faults.wrap(STEP, after=pause))
    wait_for(lambda: is_stopped(run.pid) or run.exitcode is not None, run)
    if run.exitcode is not None:
        raise Lost(f"the run ended with {run.exitcode}: {last_lines(trial.log)}")
    if not list(the_store(trial).glob("images/*/*.json")):
        raise Lost("the run stored no images")
    clear(trial)
    os.kill(run.pid, signal.SIGCONT)
    trial.expect(trial.wait(run), DONE)
    trial.compare()
    if list(the_store(trial).glob("images/*/*")):
        raise Lost("the store was cleared, and is not empty")


def real(trial: Trial) -> None:
    """``python -m trainer.train`` itself is killed while it prepares images, and started again."""
    expected, folder = trial.reference.digest, the_store(trial)
    environment = os.environ | {"TRAINER_STORE": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trainer.train", "--config", str(trial.config)]
    log, struck = trial.folder / "launch-1.txt", 0
    for turn in range(4):
        runs = trial.folder / "runs" / str(turn)
        runs.mkdir()
        process = subprocess.Popen(
            [*command, "--runs", str(runs), *(["--dry-run"] if turn < 3 else [])],
            env=environment,
            stdout=log.open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if turn < 3:
            while process.poll() is None and len(list(folder.rglob("*"))) < 1 + turn:
                time.sleep(0.001)
            time.sleep(trial.rng.uniform(0, 0.05))
            if process.poll() is None:
                struck += 1
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait(300)
        if code not in ((-signal.SIGKILL, DONE) if turn < 3 else (DONE,)):
            raise Lost(f"exit code {code}: {last_lines(log.read_text())}")
        trial.refuse_orphans(process.pid, 2.0)
    (run,) = runs.glob("*/*/config.yaml")
    if digest(run.parent, trial.images) != expected:
        raise Lost("the run differs from the undisturbed one")
    refuse_locks(folder)
    if not struck:
        raise NotReached
