"""A run under trial: launched in forks, resumed, and compared with an undisturbed run."""

import contextlib
import ctypes
import fcntl
import hashlib
import importlib
import json
import mmap
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.torture import faults
from tests.torture.faults import Action

FORK = multiprocessing.get_context("fork")
TIMEOUT = 60.0  # seconds after which a launch counts as hanging

CONFIG = """
dataset: {{name: ImageFolder, root: {root}}}
transforms:
  train:
    - {{name: Resize, size: [32, 32]}}
    - {{name: RandomCrop, size: 32, padding: 4}}
    - {{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
  eval:
    - {{name: Resize, size: [32, 32]}}
    - {{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
loader: {{batch_size: 8, workers: 0}}
model: {{name: LeNet}}
optimizer: {{name: SGD, lr: 0.003, momentum: 0.9}}
scheduler: {{name: StepLR, step_size: 1, gamma: 0.5}}
metrics: [accuracy, macro_f1]
train: {{epochs: 3, device: cpu, threads: 1}}
checkpoint: {{every: 3st}}
log: {{every: 2st, images: 4}}
"""
STEP = "trainer.distributed.micro_batches:reseed"  # called once as each step begins
STOPPED, DATA, DISK, WORKER, DONE = 75, 3, 5, 8, 0  # exit codes


class Lost(Exception):
    """A run did not survive; the message says why."""


class NotReached(Exception):
    """The run did not reach the fault: the trial proves nothing and is not counted."""


@dataclass
class Reference:
    """An undisturbed run: its digest, its seconds, the bytes of a checkpoint's largest file."""

    digest: str
    seconds: float
    largest_file: int


@dataclass
class Counts:
    """How often a run calls each function of PHASES and, in trainer.run.disk, each of ERRORS."""

    functions: dict[str, int]
    calls: dict[str, int]


@dataclass
class Bench:
    """What all trials of one invocation share: a folder with images, a YAML and references."""

    folder: Path

    @property
    def images(self) -> Path:
        """Two classes of small images."""
        return self.folder / "images"

    @property
    def config(self) -> Path:
        """The YAML that trains on them."""
        return self.folder / "torture.yaml"

    def reference(self, *overrides: str) -> Reference:
        """The undisturbed run. The first process that asks makes it; then it is kept."""
        return Reference(**self.kept("reference", overrides, self._measure))

    def kept(
        self, name: str, overrides: Sequence[str], make: Callable[["Trial"], dict[str, Any]]
    ) -> dict[str, Any]:
        """The result of ``make``, which is called once in this invocation."""
        key = hashlib.sha256(repr((name, tuple(overrides))).encode()).hexdigest()[:16]
        file = self.folder / "kept" / f"{key}.json"
        file.parent.mkdir(exist_ok=True)
        with file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                trial = Trial(self, 0, self.folder / "kept" / key)
                trial.use(*overrides)
                content = make(trial)
                shutil.rmtree(trial.folder)
                partial_file = file.with_suffix(".new")
                partial_file.write_text(json.dumps(content))
                partial_file.replace(file)
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def _measure(self, trial: "Trial") -> dict[str, Any]:
        started = time.monotonic()
        trial.expect(trial.launch(), DONE)
        seconds = time.monotonic() - started
        run = trial.the_run()
        size = max(path.stat().st_size for path in run.glob("checkpoints/*/*"))
        return {"digest": digest(run, self.images), "seconds": seconds, "largest_file": size}

    def counts(self, *overrides: str) -> Counts:
        """The calls of an undisturbed run, which must equal the reference."""
        return Counts(**self.kept("counts", overrides, self._count))

    def _count(self, trial: "Trial") -> dict[str, Any]:
        file = trial.folder / "counts.json"
        trial.expect(trial.launch(partial(count_calls, file)), DONE)
        trial.compare()
        counts: dict[str, Any] = json.loads(file.read_text())
        return counts


def count_calls(file: Path) -> None:
    """Count the calls that a fault can disturb; write the counts when the command ends."""
    functions: dict[str, int] = {}
    calls: dict[str, int] = {}

    def counted(table: dict[str, int], name: str) -> None:
        table[name] = table.get(name, 0) + 1

    for phase in faults.PHASES:
        for name in faults.functions(phase):
            faults.wrap(name, partial(counted, functions, name))

    def hook(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        counted(calls, name)
        return real(*arguments)

    faults.intercept(hook)
    counts = {"functions": functions, "calls": calls}
    faults.wrap("trainer.train:main", after=lambda: write_json(file, counts))


def write_json(file: Path, content: Any) -> None:
    """Write plain values."""
    file.write_text(json.dumps(content))


class Trial:
    """One run that is disturbed: its folder, its launches, and the checks at its end."""

    def __init__(self, bench: Bench, number: int, folder: Path, kind: str = "") -> None:
        self.bench, self.number, self.folder = bench, number, folder
        self.rng = random.Random(f"{kind} {number}")
        self.overrides: tuple[str, ...] = ()
        self.images, self.config = bench.images, bench.config
        self.launches = 0
        # Shared with the child: fault struck? newest step then; steps begun; fault harmless?
        self.notes = memoryview(mmap.mmap(-1, 32)).cast("q")
        (folder / "runs").mkdir(parents=True, exist_ok=True)

    def use(self, *overrides: str) -> None:
        """Train with these overrides."""
        self.overrides = overrides

    @property
    def reference(self) -> Reference:
        """The undisturbed run with these overrides."""
        return self.bench.reference(*self.overrides)

    def run(self) -> Path | None:
        """The run's folder; None if it has no config.yaml yet: then there is no run."""
        found = sorted(self.folder.glob("runs/*/*/config.yaml"))
        if len(found) > 1:
            raise Lost(f"{len(found)} run folders, and each launch resumed the first")
        return found[0].parent if found else None

    def the_run(self) -> Path:
        """The run's folder, which must be there."""
        if (run := self.run()) is None:
            raise Lost("there is no run folder")
        return run

    @property
    def log(self) -> str:
        """What the last launch printed."""
        path = self.folder / f"launch-{self.launches}.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, *arms: Action, arguments: Sequence[str] | None = None) -> Any:
        """Fork a process that calls ``arms``, then trains or resumes; returns it running."""
        if arguments is None:
            if run := self.run():
                arguments = ["--resume", str(run)]
            else:
                runs = ["--runs", str(self.folder / "runs")]
                arguments = ["--config", str(self.config), *runs, *self.overrides]
        self.launches += 1
        self.notes[:] = memoryview(bytes(32)).cast("q")
        log = self.folder / f"launch-{self.launches}.txt"
        reader, writer = os.pipe()
        process = FORK.Process(target=child, args=(list(arguments), log, arms, self.notes, writer))
        process.start()
        os.close(writer)
        os.read(reader, 1)  # now its group exists, and its faults are armed
        os.close(reader)
        return process

    def launch(
        self, *arms: Action, kill_after: float | None = None, arguments: Sequence[str] | None = None
    ) -> int:
        """Start, kill the whole group after ``kill_after`` seconds, wait; return the exit code."""
        process = self.start(*arms, arguments=arguments)
        if kill_after is not None:
            process.join(kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return self.wait(process)

    def wait(self, process: Any) -> int:
        """Wait for the end; the exit code, or the signal's negative number."""
        try:
            process.join(TIMEOUT)
            if process.exitcode is None:
                raise Lost(f"hangs: not over after {TIMEOUT:.0f} s")
            code = int(process.exitcode)
            self.refuse_orphans(process.pid, patience=0.0 if code == -signal.SIGKILL else 2.0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
        return code

    def refuse_orphans(self, group: int, patience: float) -> None:
        """Raise Lost if a process of a group outlives the one that trained."""
        end = time.monotonic() + patience
        while True:
            with contextlib.suppress(ChildProcessError):  # orphans come to us: see adopt_orphans
                while os.waitpid(-group, os.WNOHANG)[0]:
                    pass
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return
            if time.monotonic() > end:
                if patience:
                    raise Lost("a worker outlived the process that trained")
                end = time.monotonic() + 1.0  # all are killed; only reaping takes time
                patience = 1.0
            time.sleep(0.005)

    def expect(self, code: int, *wanted: int) -> None:
        """Raise Lost if the exit code is not ``wanted``, or if the output has a traceback."""
        if code not in wanted:
            codes = " or ".join(map(str, wanted))
            raise Lost(f"exit code {code}, not {codes}: {last_lines(self.log)}")
        if "Traceback" in self.log or "bug of the trainer" in self.log:
            raise Lost(f"a traceback (exit code {code}): {last_lines(self.log)}")

    def steps(self) -> list[int]:
        """The steps of the run's checkpoints; raises Lost if a visible one is not whole.

        The check uses MANIFEST.json, and none of the trainer's code.
        """
        run, found = self.run(), []
        for folder in sorted(run.glob("checkpoints/step-*")) if run else []:
            if not (match := re.fullmatch(r"step-(\d+)(\.\d+)?", folder.name)):
                continue
            if not is_whole(folder):
                if not folder.exists():  # the saver's thread has just pruned it
                    continue
                raise Lost(f"{folder.name} can be seen, and is not whole")
            found.append(int(match[1]))
        return sorted(found)

    def note_newest(self) -> None:
        """In the child, when a fault strikes: note this, and the newest checkpoint before it."""
        self.notes[0], self.notes[1] = 1, max(self.steps(), default=0)

    def keeps_what_it_had(self) -> None:
        """Raise Lost if the newest checkpoint from before the fault is gone."""
        if self.notes[1] > max(self.steps(), default=0):
            raise Lost(f"the checkpoint of step {self.notes[1]} is gone")

    def conclude(self) -> None:
        """Resume the run to its end without a fault, and compare it."""
        self.expect(self.launch(), DONE)
        self.compare()

    def compare(self) -> None:
        """Raise Lost if the run differs from the undisturbed one, or leaves temporary files."""
        run = self.the_run()
        if not self.steps():
            raise Lost("the finished run has no checkpoint")
        if digest(run, self.images) != self.reference.digest:
            raise Lost("weights, state, metrics or result differ from the uninterrupted run's")
        if litter := [str(path.relative_to(run)) for path in run.rglob("*") if ".tmp" in path.name]:
            raise Lost(f"left behind: {', '.join(litter)}")
        if not (run / "report" / "report.md").exists():
            raise Lost("there is no report")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        logged = [(line["step"], "train/loss_epoch" in line) for line in lines]
        if len(logged) != len(set(logged)):
            raise Lost("metrics.jsonl has a line twice")
        compare_events(run)


def child(
    arguments: list[str], log: Path, arms: Sequence[Action], notes: memoryview, ready: int
) -> None:
    """The forked process: the command ``python -m trainer.train``, in its own process group.

    SIGINT and SIGTERM are blocked until the command has set its handlers.
    """
    os.setsid()
    os.environ["TRAINER_STORE"] = str(log.with_name("store"))  # each trial prepares its own images
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    stops = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    set_handler = signal.signal

    def set_and_let_in(number: int, handler: Any) -> Any:
        before = set_handler(number, handler)
        if number in stops and os.getpid() == leader:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        return before

    leader = os.getpid()
    signal.signal = set_and_let_in  # type: ignore[assignment]
    torch.set_num_threads(1)

    def count_step() -> None:
        notes[2] += 1

    faults.wrap(STEP, before=count_step)
    for arm in arms:
        arm()
    command = importlib.import_module("trainer.train")  # by name: it is run here, not built upon
    os.write(ready, b".")
    os.close(ready)
    sys.exit(command.main(arguments))


STRUCK = """
import importlib, os, sys
from tests.torture import faults

command = importlib.import_module("trainer.train")
importlib.import_module("trainer.loop.epochs")
if strike := os.environ["STRIKE"]:  # rank, function, before or after, n-th call
    rank, place, when, number = strike.split()
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (rank, "0"):
        faults.wrap(place, **{when: faults.at(int(number), faults.kill)})
sys.exit(command.main())
"""


def torchrun(strike: str, folder: Path, log: Path, *arguments: str) -> int:
    """Train in two processes by torchrun, with the run below ``folder``; torchrun's exit code.

    ``strike``: "rank function before-or-after n", the rank to kill at the n-th call, only in the
    first start, because torchrun starts both ranks again. The output goes to ``log``. Raises
    subprocess.TimeoutExpired after five minutes.
    """
    script = folder.with_name("struck.py")
    script.write_text(STRUCK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "STRIKE": strike, "PYTHONPATH": "."}
    environment |= {"TRAINER_STORE": str(folder.with_name("store"))}
    with log.open("w") as output:
        return subprocess.run(
            [*command, *arguments, "--runs", str(folder)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=300,
            check=False,
        ).returncode


def adopt_orphans() -> None:
    """Make the orphans of this process's children its own children."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint's files have the sizes and SHA-256 that its manifest names."""
    try:
        files = json.loads((folder / "MANIFEST.json").read_text())["files"]
        return {"weights.pt", "state.pt"} <= files.keys() and all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
            and (folder / name).stat().st_size == entry["size"]
            for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def last_lines(text: str) -> str:
    """The end of a log, on one line."""
    return " / ".join(text.strip().splitlines()[-4:])[-600:] or "(nothing printed)"


CLOCKS = ("images_per_second", "train_seconds", "seconds")


def digest(run: Path, images: Path) -> str:
    """SHA-256 of all that a run computes: equal for runs that are equal to the bit.

    It covers the newest checkpoint without its clocks, the best weights, metrics.jsonl,
    predictions.csv, and result.json without its times. The place of the images does not count.
    """
    newest = max(
        (path for path in run.glob("checkpoints/step-*") if is_whole(path)),
        key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)],
    )
    weights = torch.load(newest / "weights.pt", weights_only=True, map_location="cpu")
    state = torch.load(newest / "state.pt", weights_only=True, map_location="cpu")
    best = torch.load(run / "model.pt", weights_only=True, map_location="cpu")
    result = json.loads((run / "result.json").read_text())
    sha = hashlib.sha256((run / "metrics.jsonl").read_bytes())
    sha.update((run / "predictions.csv").read_bytes())
    for name, value in [
        *flat(weights, "weights"),
        *flat({key: value for key, value in state.items() if key != "clocks"}, "state"),
        *flat(best, "model"),
        *flat({key: value for key, value in result.items() if key not in CLOCKS}, "result"),
    ]:
        if isinstance(value, torch.Tensor):
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            sha.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            sha.update(f"{name} {value!r}\n".replace(str(images), "images").encode())
    return sha.hexdigest()


def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(dotted name, tensor or plain value) of nested dicts and lists, sorted by name.

    The order of a dict's keys may differ after a resume, and means nothing.
    """
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from flat(value[key], f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from flat(item, f"{name}.{number}")
    else:
        yield name, value


def compare_events(run: Path) -> None:
    """Raise Lost if TensorBoard shows two points of a tag at one step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run)).Reload()
    for tag in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        if len(steps) != len(set(steps)):
            raise Lost(f"TensorBoard has {tag} twice at a step: {steps}")
