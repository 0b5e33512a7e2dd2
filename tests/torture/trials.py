"""The kinds of trial of ``tests.torture.__main__``: disturb a run, resume it, compare.

Each kind is one function. It gets a ``Trial``, whose number alone decides what happens. It raises
Lost if the run does not survive, NotReached if the run never reaches the fault.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.torture import faults
from tests.torture.run import (
    CONFIG,
    DATA,
    DISK,
    DONE,
    FORK,
    STEP,
    STOPPED,
    TIMEOUT,
    WORKER,
    Bench,
    Lost,
    NotReached,
    Trial,
    digest,
    last_lines,
    torchrun,
)
from tests.torture.stored import store as store  # a kind of its own

MODELS = {
    "LeNet": (),
    "AlexNet": ("model={name: AlexNet, variant: cifar}", "train.epochs=2"),
    "VGG": ("model={name: VGG, depth: 11, variant: cifar, batch_norm: true}", "train.epochs=2"),
}
SGD, ADAMW = "optimizer={name: SGD, lr: 0.003, momentum: 0.9}", "optimizer={name: AdamW, lr: 0.001}"
ONE_CYCLE = "scheduler={name: OneCycleLR, max_lr: 0.003}"
PLATEAU = "scheduler={name: ReduceLROnPlateau, patience: 0}"
USUAL = {  # the optimizer and schedule with which a model is killed
    "LeNet": (),
    "AlexNet": (ADAMW, ONE_CYCLE),
    "VGG": (SGD, PLATEAU),
}
WORKERS = ("loader.workers=2", "transforms.train.1={name: RandAugment}")  # run per sample


def kill(trial: Trial) -> None:
    """Up to five SIGKILLs at random times, each followed by --resume."""
    rng = trial.rng
    (model,) = rng.choices(list(MODELS), (0.94, 0.03, 0.03))
    workers = WORKERS if rng.random() < 0.25 else ()
    cache = rng.choice(["auto", "off"])
    every = rng.choice(["1st", "3st", "1ep"])
    trial.use(
        *MODELS[model],
        *USUAL[model],
        *workers,
        f"loader.cache={cache}",
        f"checkpoint.every={every}",
    )
    for _ in range(rng.randint(1, 5)):
        code = trial.launch(kill_after=rng.uniform(0, 1.05 * trial.reference.seconds))
        trial.expect(code, -signal.SIGKILL, DONE)
        trial.steps()
        if code == DONE:
            break
    trial.conclude()


PLACES = ((STEP, "before"), ("torch.optim:SGD.step", "after"))  # of a process under torchrun


def rank_cases(bench: Bench) -> list[tuple[int, str, str, int]]:
    """(rank, function, before or after, n-th step): either process, as a step begins and ends."""
    steps = bench.counts().functions[STEP]
    return [
        (rank, place, when, step)
        for step in range(1, steps + 1)
        for place, when in PLACES
        for rank in (0, 1)
    ]


def ranks(trial: Trial) -> None:
    """SIGKILL to one of two processes at a step; torchrun starts both again."""

    def alone(other: Trial) -> dict[str, str]:
        torchrun("", other.folder / "runs", other.folder / "log.txt", *config)
        return {"digest": digest(other.the_run(), other.images)}

    config = ("--config", str(trial.config))
    expected = trial.bench.kept("ranks", (), alone)["digest"]
    cases = rank_cases(trial.bench)
    strike = " ".join(map(str, cases[trial.number % len(cases)]))
    log = trial.folder / "launch-1.txt"
    try:
        code = torchrun(strike, trial.folder / "runs", log, *config)
    except subprocess.TimeoutExpired:
        raise Lost(f"hangs after {strike}") from None
    if code != DONE:
        raise Lost(f"torchrun ended with {code} after {strike}: {last_lines(log.read_text())}")
    if "exitcode: -9" not in log.read_text():
        raise NotReached
    if digest(trial.the_run(), trial.images) != expected:
        raise Lost(f"after {strike}, the run differs from the undisturbed one")


MANY = 40  # calls that are tried of a function that is called more often, evenly spread


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of the numbers 1..count, evenly spread, with both ends."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({1 + round(i * (count - 1) / (most - 1)) for i in range(most)})


def point_cases(bench: Bench) -> list[tuple[str, str, int]]:
    """(function, before or after, n-th call) for the calls of every function in PHASES."""
    counts = bench.counts().functions
    steps = counts[STEP]
    places = [(name, "before", count) for name, count in counts.items()]
    places += [(name, "after", count) for name, count in counts.items()]
    places += [("torch:Tensor.backward", "after", steps), ("torch.optim:SGD.step", "after", steps)]
    return [(name, when, n) for name, when, count in places for n in spread(count, MANY)]


def points(trial: Trial) -> None:
    """SIGKILL before or after the n-th call of a function that a run calls."""
    cases = point_cases(trial.bench)
    name, when, n = cases[trial.number % len(cases)]

    def strike() -> None:
        trial.note_newest()
        faults.kill()

    hooks = {when: faults.at(n, strike)}
    trial.expect(trial.launch(lambda: faults.wrap(name, **hooks)), -signal.SIGKILL, DONE)
    if not trial.notes[0]:
        raise NotReached
    trial.keeps_what_it_had()
    trial.conclude()


def call_cases(bench: Bench) -> list[tuple[str, str, int]]:
    """(system call, how, n) for the calls that ``trainer.run.disk`` makes."""
    ways = {"write": ["before", "torn", "after", "short", "error"]}
    return [
        (call, how, n)
        for call, count in sorted(bench.counts().calls.items())
        for how in ways.get(call, ["before", "after", "error"])
        for n in spread(count, 3 * MANY)
    ]


def is_harmless(call: str, path: object) -> bool:
    """Whether a run may go on if this call fails: it copies instead, or clears up later."""
    old_checkpoint = re.search(r"/step-\d+(\.\d+)?$", str(path)) is not None
    return call in ("link", "unlink", "rmdir") or (call in ("replace", "rename") and old_checkpoint)


def calls(trial: Trial) -> None:
    """SIGKILL or an error at the n-th fsync, rename, write, ... of trainer.run.disk."""
    cases = call_cases(trial.bench)
    call, how, n = cases[trial.number % len(cases)]

    def note(path: object) -> None:
        trial.note_newest()
        trial.notes[3] = is_harmless(call, path)

    code = trial.launch(lambda: faults.disturb(call, n, how, note))
    if not trial.notes[0]:
        raise NotReached
    if how == "short":
        trial.expect(code, DONE)
    elif how == "error":
        trial.expect(code, DISK, *([DONE] if trial.notes[3] else []))
        if code and os.strerror(faults.ERRORS[call]) not in trial.log:
            raise Lost(f"the message does not say why: {last_lines(trial.log)}")
    else:
        trial.expect(code, -signal.SIGKILL)
    trial.keeps_what_it_had()
    trial.conclude()


INJECTIONS = (  # (system calls, what strace does at the n-th of them in each thread)
    ("fsync,fdatasync", "signal=SIGKILL"),
    ("rename,renameat,renameat2", "signal=SIGKILL"),
    ("fsync,fdatasync", "error=EIO"),
    ("rename,renameat,renameat2", "error=EIO"),
    ("mkdir,mkdirat", "signal=SIGKILL"),
)


def no_strace() -> str:
    """The reason why the kind ``strace`` is impossible here; "" if it is possible."""
    if shutil.which("strace") is None:
        return "no strace here"
    probe = ["strace", "-o", os.devnull, "true"]
    return "" if subprocess.run(probe, capture_output=True).returncode == 0 else "no ptrace here"


def traced(trial: Trial, log: Path, *options: str) -> int:
    """Launch under strace; the exit code."""
    process = trial.start(lambda: faults.wrap("trainer.train:main", before=faults.pause))
    status = Path(f"/proc/{process.pid}/status")
    while "State:\tT" not in status.read_text():
        time.sleep(0.001)
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", str(log), "-p", str(process.pid), *options],
        stderr=subprocess.DEVNULL,
    )
    while "TracerPid:\t0" in status.read_text():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGCONT)
    try:
        return trial.wait(process)
    finally:
        tracer.kill()
        tracer.wait()


def trace_counts(bench: Bench) -> dict[str, int]:
    """For each system call of INJECTIONS: the most calls that a single thread makes."""

    def measure(trial: Trial) -> dict[str, int]:
        log, names = trial.folder / "strace", ",".join(names for names, _ in INJECTIONS)
        trial.expect(traced(trial, log, "-e", f"trace={names}"), DONE)
        counts: dict[str, dict[str, int]] = {}
        for line in log.read_text().splitlines():
            if match := re.match(r"(\d+) +(\w+)\(", line):
                threads = counts.setdefault(match[2], {})
                threads[match[1]] = threads.get(match[1], 0) + 1
        return {name: max(threads.values()) for name, threads in counts.items()}

    return bench.kept("strace", (), measure)


def strace_cases(bench: Bench) -> list[tuple[str, str, int]]:
    """(system calls, what strace does, n)."""
    if no_strace():
        return []
    counts = trace_counts(bench)
    return [
        (names, what, n)
        for names, what in INJECTIONS
        for n in range(1, 1 + max(counts.get(name, 0) for name in names.split(",")))
    ]


def strace(trial: Trial) -> None:
    """SIGKILL or an error, by strace, at the n-th fsync, rename or mkdir of a thread."""
    cases = strace_cases(trial.bench)
    names, what, n = cases[trial.number % len(cases)]
    log = trial.folder / "strace"
    inject = f"inject={names}:{what}:when={n}"
    code = traced(trial, log, "-e", f"trace={names}", "-e", inject)
    failed = re.search(r'(\w+)\((?:AT_FDCWD, )?"?([^",)]*).*INJECTED', log.read_text())
    if failed is None and code != -signal.SIGKILL:
        raise NotReached
    if "KILL" in what:
        trial.expect(code, -signal.SIGKILL)
    else:
        trial.expect(code, DISK, *([DONE] if failed and is_harmless(failed[1], failed[2]) else []))
    trial.steps()
    trial.conclude()


def term(trial: Trial) -> None:
    """SIGTERM or SIGINT at a random time or in a phase: the run saves, and loses at most a step."""
    rng = trial.rng
    workers = rng.choice([(), (*WORKERS, "loader.cache=off")])
    trial.use(*workers, "checkpoint.every=1ep")
    number = rng.choice([signal.SIGTERM, signal.SIGINT])
    phases = ["any time", *faults.PHASES]
    phase = phases[trial.number % len(phases)]
    if phase == "any time":
        process = trial.start()
        process.join(rng.uniform(0, 1.05 * trial.reference.seconds))
        if process.exitcode is None:
            os.kill(process.pid, number)
        code = trial.wait(process)
    else:
        counts = trial.bench.counts(*trial.overrides).functions
        name = rng.choice([name for name in faults.functions(phase) if name in counts])
        hook = faults.at(rng.randint(1, counts[name]), faults.send(number))
        code = trial.launch(lambda: faults.wrap(name, **{rng.choice(["before", "after"]): hook}))
    trial.expect(code, STOPPED, DONE)
    if code == STOPPED:
        if "python -m trainer.train --" not in trial.log:
            raise Lost(f"no command to go on with: {last_lines(trial.log)}")
        lost = trial.notes[2] - max(trial.steps(), default=0)
        if lost > 1:
            raise Lost(f"{lost} steps lost")
    trial.conclude()


def twice(trial: Trial) -> None:
    """Two Ctrl-C during a save on a slow disk: the run dies at once, with whole checkpoints."""
    rng = trial.rng
    steps = trial.bench.counts(*trial.overrides).functions[STEP]

    def strike() -> None:
        faults.slow(0.1)
        faults.send(signal.SIGINT)()

    hook = faults.at(rng.randint(1, steps), strike)
    process = trial.start(lambda: faults.wrap(STEP, before=hook))
    while "again" not in trial.log and process.exitcode is None:
        time.sleep(0.005)
    process.join(rng.uniform(0, 0.8))
    sent = time.monotonic()
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGINT)
    code = trial.wait(process)
    trial.expect(code, -signal.SIGINT, 128 + signal.SIGINT, STOPPED, DONE)
    if code not in (STOPPED, DONE) and time.monotonic() - sent > 5:
        raise Lost(f"took {time.monotonic() - sent:.1f} s to die")
    trial.steps()
    trial.conclude()


def resume_cases(bench: Bench) -> list[tuple[tuple[str, ...], int]]:
    """(overrides, step): every step of two epochs, for every combination of settings."""
    cells = [
        (*MODELS[model], "train.epochs=2", optimizer, schedule, *workers, f"loader.cache={cache}")
        for model in MODELS
        for optimizer in (SGD, ADAMW)
        for schedule in (ONE_CYCLE, PLATEAU)
        for workers in ((), WORKERS)
        for cache in ("auto", "off")
    ]
    steps = bench.counts("train.epochs=2").functions[STEP]
    return [(cell, step) for cell in cells for step in range(1, steps + 1)]


def resume(trial: Trial) -> None:
    """SIGTERM at a step, for a combination of model, optimizer, schedule, workers and cache."""
    cases = resume_cases(trial.bench)
    overrides, step = cases[trial.number % len(cases)]
    trial.use(*overrides)
    hook = faults.at(step, faults.send(signal.SIGTERM))
    trial.expect(trial.launch(lambda: faults.wrap(STEP, after=hook)), STOPPED)
    if max(trial.steps()) != step:
        raise Lost(f"stopped at step {step}, saved step {max(trial.steps())}")
    trial.conclude()


def no_mounts() -> str:
    """The reason why no disk can be mounted here; "" if one can."""
    process = FORK.Process(target=faults.try_mounts)
    process.start()
    process.join()
    return "" if process.exitcode == 0 else "no mounts here, files limited instead"


FULL = tuple(0.25 * quarter for quarter in range(1, 19))  # free space, in checkpoints


def full(trial: Trial) -> None:
    """A disk of a quarter to four and a half checkpoints, files cut off, a read-only folder."""
    how = ("disk", "disk", "limit", "read-only")[trial.number % 4]
    if how != "limit" and no_mounts():
        how = "limit"
    # A checkpoint counts as two of the largest file. RLIMIT_FSIZE limits one file: half of that.
    files = 0.5 if how == "limit" else 2
    size = int(FULL[trial.number // 2 % len(FULL)] * files * trial.reference.largest_file)
    runs = trial.folder / "runs"
    if how == "read-only" or trial.number % 8 > 3:  # a run that has checkpoints already
        stop = faults.at(trial.rng.randint(2, 9), faults.send(signal.SIGTERM))
        trial.expect(
            trial.launch(lambda: faults.wrap(STEP, before=stop)),
            STOPPED,
        )
    had = max(trial.steps(), default=0)
    if how == "limit":
        limit = (size, resource.RLIM_INFINITY)
        code = trial.launch(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    elif how == "read-only":
        code = trial.launch(lambda: faults.read_only(runs))
        trial.expect(code, DISK)
    else:
        code = full_disk(trial, runs, size)
    trial.expect(code, DISK, DONE)
    if max(trial.steps(), default=0) < had:
        raise Lost(f"the checkpoint of step {had} is gone")
    trial.conclude()


def full_disk(trial: Trial, runs: Path, size: int) -> int:
    """Launch with ``runs`` on a disk with ``size`` free bytes; return the exit code.

    The disk vanishes with the process. So the process copies its content to ``saved`` at its end.
    """
    saved = trial.folder / "saved"
    used = sum(path.stat().st_size + 4096 for path in runs.rglob("*"))

    def arm() -> None:
        faults.small_disk(runs, size + used)
        faults.wrap("trainer.train:main", after=lambda: shutil.copytree(runs, saved))

    code = trial.launch(arm)
    shutil.rmtree(runs)
    saved.rename(runs)
    return code


DAMAGES = (
    *(f"cut {k}/16" for k in range(16)),
    *(f"flip {k}" for k in range(16)),
    *("no tensors", "no manifest", "empty manifest", "{} manifest", "no files", "forged digest"),
    *("forged garbage", "cut manifest", "list manifest", "empty folder"),
    *("best cut", "shared best cut", "best missing", "model.pt", "metrics.jsonl", "all"),
)


BESIDE = ("model.pt", "metrics.jsonl")  # a resume repairs these without a message


def damage(trial: Trial) -> None:
    """The newest checkpoint is damaged: the resume names it, and takes the one before it."""
    how = DAMAGES[trial.number % len(DAMAGES)]
    stop = faults.at(trial.rng.randint(7, 11), faults.send(signal.SIGTERM))
    trial.expect(trial.launch(lambda: faults.wrap(STEP, before=stop)), STOPPED)
    folders = sorted(trial.the_run().glob("checkpoints/step-*"))
    if len(folders) < 2:
        raise Lost(f"stopped with {len(folders)} checkpoints, not two")
    if how == "all":
        refuse_all_damaged(trial, folders)
        return
    spoil(folders[-1], how, trial.rng)
    trial.expect(trial.launch(), DONE)
    # model.pt holds the best weights too, and replaces the checkpoint's.
    named = f"{folders[-1].name}{'/best.pt' if 'best' in how else ''} is damaged"
    if how not in BESIDE and named not in trial.log:
        raise Lost(f"{folders[-1].name} was passed over without a word")
    trial.compare()


def spoil(folder: Path, how: str, rng: random.Random) -> None:
    """Damage a checkpoint, or a file of BESIDE, in the way ``how``."""
    manifest = folder / "MANIFEST.json"
    state = folder / rng.choice(["state.pt", "weights.pt"])
    data, said = state.read_bytes(), json.loads(manifest.read_text())
    word, _, rest = how.partition(" ")
    if how == "cut manifest":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    elif word == "best":
        best = folder / "best.pt"
        data = best.read_bytes()
        best.unlink()
        if rest == "cut":
            best.write_bytes(data[:-1])
    elif word == "shared":  # in place: checkpoints may have one file under two names
        os.truncate(folder / "best.pt", (folder / "best.pt").stat().st_size - 1)
    elif how in BESIDE:  # a piece of a line, bytes behind the weights
        with (folder.parent.parent / how).open("ab") as file:
            file.write(b'{"step": 1')
    elif word == "cut":
        state.write_bytes(data[: len(data) * int(rest.split("/")[0]) // 16])
    elif word == "flip":
        bit = rng.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        state.write_bytes(flipped)
    elif how == "empty folder":
        state.unlink()
        manifest.unlink()
    elif word == "no":
        (manifest if rest == "manifest" else state).unlink()
        if rest == "files":
            manifest.write_text(json.dumps(said | {"files": {}}))
    elif word == "forged":  # the digest of other bytes; or garbage with its true digest
        content = rng.randbytes(1000) if rest == "garbage" else b"another"
        entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if rest == "garbage":
            state.write_bytes(content)
        manifest.write_text(json.dumps(said | {"files": said["files"] | {state.name: entry}}))
    else:
        manifest.write_text({"empty": "", "{}": "{}", "list": "[1]"}[word])


def refuse_all_damaged(trial: Trial, folders: Sequence[Path]) -> None:
    """If no checkpoint is whole, a resume must refuse, and change nothing."""
    for folder in folders:
        spoil(folder, "cut 8/16", trial.rng)

    def contents() -> list[str]:
        files = [p for p in trial.the_run().rglob("*") if p.is_file() and p.name != "run.lock"]
        kept = [p for p in files if "events" not in p.name and p.name != "result.json"]
        return sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in kept)

    before = contents()
    trial.expect(trial.launch(), DISK)
    if contents() != before:
        raise Lost("a run without a whole checkpoint was written to")


def images(trial: Trial) -> None:
    """An image is broken or removed during the run, or a worker killed; then it is put right."""
    rng = trial.rng
    how = ("removed", "cut", "empty", "no image", "worker")[trial.number % 5]
    workers = WORKERS if trial.number // 5 % 2 or how == "worker" else ()
    trial.use(*workers, "loader.cache=off", "checkpoint.every=1st")
    _ = trial.reference
    trial.images = trial.folder / "images"
    trial.config = trial.folder / trial.bench.config.name
    shutil.copytree(trial.bench.images, trial.images)
    trial.config.write_text(CONFIG.format(root=trial.images))
    broken = rng.choice(sorted(trial.images.rglob("*.jpg")))
    if how == "worker":
        strike, wanted = faults.kill_a_worker, WORKER
    else:
        strike, wanted = partial(faults.break_image, broken, how), DATA
    hook = faults.at(rng.randint(1, 5), strike)  # in the first epoch, or at its end
    code = trial.launch(lambda: faults.wrap(STEP, after=hook))
    trial.expect(code, wanted)
    if how != "worker" and broken.name not in trial.log:
        raise Lost(f"{broken.name} is not named: {last_lines(trial.log)}")
    shutil.copy(trial.bench.images / broken.relative_to(trial.images), broken)
    trial.steps()
    trial.conclude()


def together(trial: Trial) -> None:
    """Sixteen starts at once, two processes on one run, or a resume right after a SIGKILL."""
    (sixteen_starts, two_on_one_run, resumed_at_once)[trial.number % 3](trial)


def sixteen_starts(trial: Trial) -> None:
    """Sixteen starts at the same moment get a folder each."""
    barrier = FORK.Barrier(16)

    def meet() -> None:
        barrier.wait(TIMEOUT)

    arms = [lambda: faults.wrap("trainer.run.folder:create_run", before=meet)]
    trial.use("train.epochs=1")
    processes = [trial.start(*arms, arguments=first_arguments(trial)) for _ in range(16)]
    codes = [trial.wait(process) for process in processes]
    finished = len(list(trial.folder.glob("runs/*/*/result.json")))
    if any(codes) or finished != 16:
        raise Lost(f"{finished} runs of 16 starts at once; exit codes {codes}")


def first_arguments(trial: Trial) -> list[str]:
    """The command line of a new run."""
    runs = ["--runs", str(trial.folder / "runs")]
    return ["--config", str(trial.config), *runs, *trial.overrides]


def two_on_one_run(trial: Trial) -> None:
    """A second process on a run is refused, and does no harm."""
    pause = faults.at(trial.rng.randint(1, 10), faults.pause)
    trial.use(*trial.rng.choice([(), WORKERS]))
    first = trial.start(lambda: faults.wrap(STEP, after=pause))
    status = Path(f"/proc/{first.pid}/status")
    while "State:\tT" not in status.read_text():
        time.sleep(0.001)
    try:
        trial.expect(trial.launch(), DISK)
        if "another process" not in trial.log:
            raise Lost(f"refused, but not for the other process: {last_lines(trial.log)}")
    finally:
        os.kill(first.pid, signal.SIGCONT)
        code = trial.wait(first)
    trial.expect(code, DONE)
    trial.compare()


def resumed_at_once(trial: Trial) -> None:
    """A process is killed, its workers are not: they do not hold the run's lock."""
    trial.use(*WORKERS)
    pause = faults.at(trial.rng.randint(2, 10), faults.pause)
    first = trial.start(lambda: faults.wrap(STEP, after=pause))
    status = Path(f"/proc/{first.pid}/status")
    while "State:\tT" not in status.read_text():
        time.sleep(0.001)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    try:
        trial.conclude()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
