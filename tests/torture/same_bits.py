"""Prove that a change of the code changes no bit of training.

    python -m tests.torture.same_bits --old 80af801
    python -m tests.torture.same_bits --old 80af801 --only plain fp16 handed_over
    python -m tests.torture.same_bits --old 80af801 --record tests/torture/same_bits_80af801.json
    python -m tests.torture.same_bits --against tests/torture/same_bits_80af801.json

The code of an old commit and the code of this checkout train the same runs, at the same paths. The
SHA-256 of model.pt and of metrics.jsonl must be equal. This file imports nothing of the trainer:
the command line drives both checkouts, so their layouts may differ.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torchvision

from datasets.draw import draw

ROOT = Path(__file__).resolve().parents[2]  # the new checkout
TIMEOUT = 600.0  # seconds after which a run counts as hanging
CONFIG = """
dataset: {name: RMB, root: NOTES}
transforms:
  train: [{name: Resize, size: [36, 36]}, {name: RandomCrop, size: 32}, RandomHorizontalFlip,
          {name: ColorJitter, brightness: 0.3}, {name: Normalize, mean: [0.5], std: [0.25]}]
  eval: [{name: Resize, size: [32, 32]}, {name: Normalize, mean: [0.5], std: [0.25]}]
loader: {batch_size: 8, workers: 0}
model: {name: LeNet}
optimizer: {name: SGD, lr: 0.01, momentum: 0.9}
scheduler: {name: CosineAnnealingLR, warmup: 1ep}
metrics: [accuracy, macro_f1]
train: {epochs: 3, device: cpu, threads: 1}
log: {every: 1st, images: 4, show: [scalars]}
"""
PER_CLASS = 30  # drawn pictures; training uses 48 of the 60
MIXED = "[{name: Resize, size: [32, 32]}, {name: Normalize, mean: [0.5], std: [0.25]}, MixUp]"
VGG = "model={name: VGG, depth: 11, batch_norm: true, variant: cifar, dropout: 0.2}"
RUNS: dict[str, list[str]] = {  # name -> overrides of CONFIG; RUNS_DIR becomes the folder of runs
    "plain": ["log.show=[scalars, histograms, feature_maps, predictions, report]"],
    "dropout": ["model={name: AlexNet, variant: cifar}"],
    "accumulate": ["train.accumulate=4"],
    "two_processes": [],
    "fsdp": ["train.parallel=fsdp"],
    "bf16": ["train.precision=bf16"],
    "fp16": ["train.precision=fp16"],
    "ema": ["average={name: EMA, decay: 0.9}"],
    "swa": [VGG, "average={name: SWA, start: 1ep}"],
    "distillation": ["distill={run: RUNS_DIR/plain}", "model=MLP"],
    "mixup": [f"transforms.train={MIXED}"],
    "workers": ["loader.workers=2", "loader.cache=off"],
    "resume": ["train.epochs=30", "loader.batch_size=4", "checkpoint.every=5st"],
    "folds": ["split={folds: 3, fold: 1}"],
}
RUNS["handed_over"] = RUNS["resume"]  # begun by the old code, killed, ended by the new code
STEPS = 12  # in an epoch of the runs that are killed in the middle of one
Digests = dict[str, str]  # file -> SHA-256


class Failed(Exception):
    """Nothing could be compared; the message says why."""


def start(checkout: Path, folder: Path, name: str, run: Path | None) -> subprocess.Popen[bytes]:
    """Start the run ``name`` by the code of ``checkout``; resume ``run`` if it is given."""
    runs, module = folder / "runs", ["trainer.train"]
    if name in ("two_processes", "fsdp"):
        module = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *module]
    what = ["--resume", str(run)]
    if run is None:
        shutil.rmtree(runs / name, ignore_errors=True)
        changes = [change.replace("RUNS_DIR", str(runs)) for change in RUNS[name]]
        what = ["--config", str(folder / "same_bits.yaml"), f"name={name}", *changes]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *module, *what, "--runs", str(runs)],
            cwd=checkout,
            env=inherited | {"OMP_NUM_THREADS": "1", "TRAINER_STORE": str(folder / "store")},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started; wait for it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def printed(folder: Path) -> str:
    """The end of what the last run printed."""
    return (folder / "output.txt").read_text(errors="replace").strip()[-1500:]


def train(checkout: Path, folder: Path, name: str, run: Path | None = None) -> Digests:
    """Train the run ``name`` to its end; the digests of its files. Raises Failed."""
    process = start(checkout, folder, name, run)
    try:
        code = process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        raise Failed(f"not over after {TIMEOUT:.0f} s: {printed(folder)}") from None
    finally:
        kill(process)
    if code:
        raise Failed(f"exit code {code}: {printed(folder)}")
    (run,) = (folder / "runs" / name).iterdir()
    files = {name: (run / name).read_bytes() for name in ("model.pt", "metrics.jsonl")}
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def begin_and_kill(checkout: Path, folder: Path, name: str) -> Path:
    """Begin a run and kill it in the middle of an epoch; the run's folder. Raises Failed."""
    for _ in range(5):
        process, saved = start(checkout, folder, name, None), f"{name}/*/checkpoints/step-?????????"
        try:
            while process.poll() is None and not list((folder / "runs").glob(saved)):
                time.sleep(0.002)
        finally:
            kill(process)
        steps = [int(path.name[5:]) for path in (folder / "runs").glob(saved)]
        if process.returncode == -signal.SIGKILL and max(steps, default=0) % STEPS:
            (run,) = (folder / "runs" / name).iterdir()
            if json.loads((run / "result.json").read_text())["status"] == "running":
                return run
    raise Failed(f"not killed in the middle of an epoch, in five tries: {printed(folder)}")


def outcome(checkout: Path, folder: Path, name: str) -> Digests:
    """The digests of the run ``name`` by the code of ``checkout``. Raises Failed."""
    if name == "distillation" and not (folder / "runs" / "plain").exists():
        train(checkout, folder, "plain")  # the teacher
    run = None
    if name == "resume":
        run = begin_and_kill(checkout, folder, name)
    elif name == "handed_over" and checkout == ROOT:  # the old code trains it without a stop
        run = begin_and_kill(folder / "old", folder, name)
    return train(checkout, folder, name, run)


def environment(folder: Path) -> dict[str, str]:
    """What the digests depend on, besides the code."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = re.findall(r"^(?:cpu family|model.*?)\s*: (.*)", cpu, re.MULTILINE)[:3]
    images = b"".join(path.read_bytes() for path in sorted(folder.glob("notes/*/*.jpg")))
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "CPU": " ".join([platform.machine(), *models, torch.backends.cpu.get_cpu_capability()]),
        "configs": hashlib.sha256(repr((CONFIG, RUNS)).encode()).hexdigest(),
        "images": hashlib.sha256(images).hexdigest(),
    }


def recorded(file: Path, folder: Path) -> dict[str, Digests]:
    """The digests in a file. Raises Failed if they were recorded in another environment."""
    content = json.loads(file.read_text())
    pairs = [(key, content["environment"][key], here) for key, here in environment(folder).items()]
    if unlike := [f"{key} {there}, here {here}" for key, there, here in pairs if there != here]:
        raise Failed(
            f"the digests in {file} do not hold here: {'; '.join(unlike)}. "
            f"Compare with the code itself: --old {content['commit']}"
        )
    digests: dict[str, Digests] = content["digests"]
    return digests


def check_out(commit: str, target: Path) -> None:
    """Clone this checkout at ``commit`` into ``target``. Raises Failed."""
    asked = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"]
    found = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    if not found:
        raise Failed(
            f"commit {commit} is not in {ROOT}: this is a shallow clone, or none. "
            "Fetch it (git fetch --unshallow), or compare with recorded digests: --against FILE"
        )
    shared = ["git", "clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(target)]
    subprocess.run(shared, check=True)
    subprocess.run(["git", "-C", str(target), "checkout", "--quiet", "--detach", found], check=True)


def train_old(commit: str, names: list[str], folder: Path) -> dict[str, Digests]:
    """The digests of an old commit's runs. Raises Failed."""
    digests: dict[str, Digests] = {}
    check_out(commit, folder / "old")
    for name in names:
        print(f"{name}: by {commit} ...", file=sys.stderr, flush=True)
        digests[name] = outcome(folder / "old", folder, name)
    shutil.rmtree(folder / "runs")  # the new code uses the same paths
    return digests


def compare(name: str, old: Digests, folder: Path) -> bool:
    """Train a run by this checkout and print its row; whether it equals the ``old`` one."""
    begun = time.monotonic()
    try:
        new = outcome(ROOT, folder, name)
    except Failed as failure:
        print(f"{name:<14} FAILS    {failure}", flush=True)
        return False
    files = "  ".join(f"{file} {old[file][:12]} {new[file][:12]}" for file in new)
    verdict, seconds = "equal" if new == old else "DIFFERS", time.monotonic() - begun
    print(f"{name:<14} {verdict:<8} {files} {seconds:6.1f} s", flush=True)
    return new == old


def main(argv: Sequence[str] | None = None) -> int:
    """Compare. Returns the exit code: 0 all equal, 1 a run differs or fails, 2 no comparison."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture.same_bits",
        description="Train the same runs by old code and by this checkout; compare their bits.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--old", metavar="COMMIT", help="the code to compare with")
    source.add_argument("--against", type=Path, metavar="FILE", help="recorded digests instead")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=RUNS, default=list(RUNS))
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the old code's digests")
    arguments = parser.parse_args(argv)
    names = [name for name in RUNS if name in arguments.only]
    if arguments.against and (arguments.record or names == ["handed_over"]):
        parser.error("--record and handed_over need the old code: --old COMMIT")
    try:
        with tempfile.TemporaryDirectory(prefix="same-bits-") as temporary:
            folder = Path(temporary).resolve()
            draw(folder / "notes", PER_CLASS)
            (folder / "same_bits.yaml").write_text(CONFIG.replace("NOTES", str(folder / "notes")))
            if arguments.old:
                digests = train_old(arguments.old, names, folder)
            else:  # without handed_over, which needs the old code
                digests = recorded(arguments.against, folder)
            if arguments.record:
                own = {name: digests[name] for name in digests if name != "handed_over"}
                content = {"commit": arguments.old, "environment": environment(folder)}
                text = json.dumps(content | {"digests": own}, indent=2)
                arguments.record.write_text(text + "\n")
            rows = [compare(name, digests[name], folder) for name in names if name in digests]
    except Failed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    return 0 if all(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
