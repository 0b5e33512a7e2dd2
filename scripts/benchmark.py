"""Measure training speed, next to computing alone, to loops by hand and to other frameworks.

    python -m scripts.benchmark
    python -m scripts.benchmark --quick --cases fashion --arms "by hand" framework
    python -m scripts.benchmark --rmb data/rmb --full --out benchmark
    python -m scripts.benchmark --cases variants --device cuda
    python -m scripts.benchmark --cases models --models alexnet_rmb vgg16_cifar10
    python -m scripts.benchmark --cases photos stream start ranks --rmb data/rmb

All run in one process, in turns, the cases of the last line in a process each. So other programs
on the machine slow all of them alike.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CASES = ("fashion", "step", "rmb")
# Only if --cases names them:
MORE_CASES = ("variants", "models", "photos", "stream", "start", "ranks")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write them and a picture; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark",
        description="Measure training speed: ratios first, absolute numbers second.",
        epilog="exit codes: 0 done, 2 usage, 3 data is missing, 4 a loss was not finite, "
        "5 a run failed or the disk is full",
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=CASES + MORE_CASES,
        default=list(CASES),
        help=f"what to measure ({' '.join(CASES)})",
    )
    parser.add_argument(
        "--arms", nargs="+", metavar="ARM", help='ways of training, e.g. "by hand" framework (all)'
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="rows of --cases models (all)")
    parser.add_argument("--blocks", type=int, metavar="N", help="blocks after the warm-up (5)")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="images a step")
    parser.add_argument("--root", default="data", metavar="DIR", help="holds FashionMNIST (data)")
    parser.add_argument(
        "--rmb", default="data/rmb", metavar="DIR", help="photographs (data/rmb, or drawn notes)"
    )
    parser.add_argument("--photos", metavar="DIR", help="DIR/CLASS/*.jpg (made on the spot)")
    parser.add_argument("--files", type=int, metavar="N", help="small images of start (60000)")
    parser.add_argument("--full", action="store_true", help="AlexNet on photographs too: minutes")
    parser.add_argument("--quick", action="store_true", help="less of all, and less certain")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="torch's threads (its default)")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark"), metavar="DIR", help="where to write"
    )
    arguments = parser.parse_args(argv)
    for name in ("blocks", "batch_size", "threads", "files"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: expected at least 1")

    from trainer.process.exits import exit_code_of  # errors end here, as a message and an exit code

    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    import json
    import tempfile

    import torch

    from scripts.benchmark_arms import ARMS, is_installed
    from scripts.benchmark_cases import fashion_task, measure_fashion, measure_rmb, measure_step
    from scripts.benchmark_models import measure_models
    from scripts.benchmark_photos import link_photos, make_photos, measure_photos
    from scripts.benchmark_report import picture, picture_of_photos, report
    from scripts.benchmark_start import measure_ranks, measure_start
    from scripts.benchmark_variants import measure_variants
    from scripts.machine import load_average
    from trainer.process.console import say
    from trainer.process.errors import UsageError

    names = arguments.arms or list(ARMS)
    if unknown := [name for name in names if name not in ARMS]:
        raise UsageError(f"--arms {unknown[0]}: expected one of {', '.join(ARMS)}")
    for name in names:
        if not is_installed(name):
            say(f"skipped  {name}: it is not installed")
    names = [name for name in names if is_installed(name)]
    device = device_named(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    quick = arguments.quick
    blocks = arguments.blocks or (2 if quick else 5)
    results: dict[str, Any] = {"machine": machine(device)}
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        if "fashion" in arguments.cases:
            task = fashion_task(arguments.root, arguments.batch_size, device, runs)
            seconds = 1.0 if quick else 4.0
            results["fashion"] = measure_fashion(task, names, blocks, seconds, say)
        if "step" in arguments.cases:
            results["step"] = measure_step(1000 if quick else 5000, blocks, device, runs, say)
        if "rmb" in arguments.cases:
            models = ["LeNet", "AlexNet"] if arguments.full else ["LeNet"]
            rounds = min(blocks, 3)
            results["rmb"] = measure_rmb(arguments.rmb, models, rounds, device, runs, say)
        if "variants" in arguments.cases:
            size, seconds = arguments.batch_size, 0.2 if quick else 1.0
            results["variants"] = measure_variants(size, blocks, seconds, device, runs, say)
        if "models" in arguments.cases:
            seconds, chosen = 1.0 if quick else 10.0, arguments.models or ()
            results["models"] = measure_models(seconds, chosen, device, runs, say)
        if with_photos := {"photos", "stream", "ranks"} & set(arguments.cases):
            photos = runs / "photos"
            if arguments.photos:
                link_photos(Path(arguments.photos), photos)
            else:
                make_photos(photos, 600 if quick else 2400, arguments.rmb, say)
            if loading := with_photos - {"ranks"}:
                rounds = arguments.blocks or (2 if quick else 3)
                results["photos"] = measure_photos(loading, photos, 3, rounds, device, runs, say)
            if "ranks" in with_photos:
                results["ranks"] = measure_ranks(photos, device, runs, arguments.rmb, say)
        if "start" in arguments.cases:
            files = arguments.files or (6000 if quick else 60_000)
            results["start"] = measure_start(files, arguments.rmb, device, runs, say)
    results["machine"] |= {"load average, at the end": load_average()}
    text = report(results)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.md").write_text(text, encoding="utf-8")
    (out / "benchmark.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    written = ["benchmark.md", "benchmark.json"]
    for case, draw in (("fashion", picture), ("photos", picture_of_photos)):
        if case in results:
            written.append("benchmark.svg" if case == "fashion" else "photos.svg")
            (out / written[-1]).write_text(draw(results), encoding="utf-8")
    say(f"\n{text}\n{out}: {', '.join(written)}")


def device_named(name: str) -> Any:
    """The device; raises UsageError if this machine has no device of that name."""
    import torch

    from trainer.process.errors import UsageError

    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(name.partition(":")[0], False):
        has = ", ".join(kind for kind, there in available.items() if there)
        raise UsageError(f"--device {name}: this machine has {has}")
    return torch.device(name)


def machine(device: Any) -> dict[str, str]:
    """What the numbers were measured on."""
    import datetime
    import os

    from scripts.machine import load_average, processor
    from trainer.run.environment import environment

    found = environment(device)
    changed = " and changes" if found["git_changed_files"] else ""
    return {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "device": found["device"],
        "threads": str(found["threads"]),
        "torch": found["packages"]["torch"],
        "python": found["python"],
        "commit": f"{(found['git_commit'] or 'unknown')[:7]}{changed}",
        "date": datetime.date.today().isoformat(),
        "load average, at the start": load_average(),
    }


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its temporary folders go too
    sys.exit(main())
