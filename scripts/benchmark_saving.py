"""Measure what saving costs the training, and how soon a resumed run takes its next step.

    python -m scripts.benchmark_saving --rmb data/rmb
    python -m scripts.benchmark_saving --config configs/lenet_fashion_mnist.yaml --epochs 20

One run saves every second epoch: a checkpoint, and the weights if they are the best. A thread
writes during the epoch after a save. These epochs are compared with the others.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Runs in its own process. The clock starts after PyTorch's import, which every program waits for.
RESUME = """
import sys, time
from trainer.process.start import spin_briefly
spin_briefly()
import torch
began = time.perf_counter()
import trainer.train
def first_batch(task, batches, first):
    for batch in batches:
        print("seconds", time.perf_counter() - began, flush=True)
        raise KeyboardInterrupt
        yield
import trainer.loop.step
trainer.loop.step.train_steps = first_batch
sys.exit(trainer.train.main(sys.argv[1:]))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark_saving",
        description="Measure what saving costs the training, and the time to resume.",
    )
    parser.add_argument(
        "--config", default="configs/vgg16_rmb.yaml", metavar="FILE", help="what is trained (VGG16)"
    )
    parser.add_argument("--rmb", metavar="DIR", help="photographs, for a configuration of RMB")
    parser.add_argument("--epochs", type=int, default=9, metavar="N", help="odd, 7 or more (9)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.threads=1")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.epochs < 7:
        parser.error(f"--epochs {arguments.epochs}: expected 7 or more")

    from trainer.process.exits import exit_code_of

    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from trainer.process.console import say

    overrides = [*arguments.overrides, f"train.epochs={arguments.epochs}"]
    if arguments.rmb:
        overrides.append(f"dataset.root={arguments.rmb}")
    with tempfile.TemporaryDirectory() as folder:
        say(f"cost    {arguments.config}, {arguments.epochs} epochs, every second one saved")
        plain, saved, waits = measure(arguments.config, overrides, Path(folder))
        ratio = statistics.median(saved) / statistics.median(plain) - 1
        say(f"epochs  without a save {shown(plain)} s; with one {shown(saved)} s")
        say(f"waits   {shown(waits)} s per save: a step waits for the copy in memory")
        say(f"saving costs {ratio:+.1%} of the training time, at one save an epoch")
        checkpoint = next(Path(folder).glob("*/*/checkpoints/step-*[0-9]"))
        size = sum(path.stat().st_size for path in checkpoint.iterdir())
        say(f"size    {size / 2**20:,.0f} MiB a checkpoint")
        resumed = [resume(checkpoint.parents[1], arguments.epochs) for _ in range(3)]
        say(f"resume  {shown(resumed)} s from the end of `import torch` to the next step")


def shown(seconds: Sequence[float]) -> str:
    """The median and the span of some times."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def measure(
    config_file: str, overrides: Sequence[str], runs: Path
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of the epochs after no save, of the epochs after a save, and of the saves' waits.

    An epoch lasts from the end of the last epoch's evaluation to the end of its own.
    """
    from trainer.process.start import start

    with start():
        import trainer.loop.epochs
        from trainer.build.prepare import prepare
        from trainer.config import load_config
        from trainer.loop.fit import fit
        from trainer.process.stop import StopRequest

    epochs: dict[bool, list[float]] = {False: [], True: []}
    waits: list[float] = []
    hook: Any = trainer.loop.epochs
    save, end_epoch = hook.save, hook.end_epoch
    began, was_saved = time.perf_counter(), False

    def every_second(*arguments: Any, **keywords: Any) -> None:
        nonlocal was_saved
        was_saved = arguments[1].epoch % 2 == 0 and arguments[1].epoch > 0
        if was_saved:
            started = time.perf_counter()
            save(*arguments, **keywords)
            waits.append(time.perf_counter() - started)

    def timed(session: Any, *arguments: Any) -> Any:
        nonlocal began, was_saved
        result = end_epoch(session, *arguments)
        now = time.perf_counter()
        if session.state.epoch > 3:  # the first of each kind warm up, and take their memory
            epochs[was_saved].append(now - began)
        began, was_saved = now, False
        return result

    job = prepare(load_config(config_file, overrides), lambda line: None)
    hook.save, hook.end_epoch = every_second, timed
    try:
        with StopRequest() as stop:
            fit(job, runs, None, print, stop)
    finally:
        hook.save, hook.end_epoch = save, end_epoch
    return epochs[False], epochs[True], waits


def resume(run_folder: Path, epochs: int) -> float:
    """Seconds from the end of ``import torch`` until a resumed run begins a step."""
    from trainer.process.errors import RunError

    command = [sys.executable, "-c", RESUME, "--resume", str(run_folder)]
    done = subprocess.run(
        [*command, f"train.epochs={epochs + 1}"],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("seconds")]
    if not lines:
        raise RunError(f"the resumed run failed: {done.stderr.strip()[-500:]}")
    return float(lines[0].split()[1])


if __name__ == "__main__":
    sys.exit(main())
