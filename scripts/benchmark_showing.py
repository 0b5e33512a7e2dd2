"""Measure what it costs to show a run in TensorBoard and its report: all shown against nothing.

    python -m scripts.benchmark_showing --root data
    python -m scripts.benchmark_showing --config configs/lenet_rmb.yaml --root data/rmb --pairs 9

Trains the same run with ``log.show`` at its default and with ``log.show=[]``, in turns, in one
process; prints the median of the pairs' ratios, and what the time went to.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOTHING = ["log.show=[]", "log.images=0"]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark_showing", description="What it costs to show a run."
    )
    parser.add_argument("--config", metavar="FILE", default="configs/lenet_fashion_mnist.yaml")
    parser.add_argument("--root", metavar="DIR", default="data", help="where the dataset lies")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each kind (default 5)")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)

    from trainer.process.exits import exit_code_of

    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Train in turns, and print the results."""
    from trainer.process.console import bar
    from trainer.process.start import start

    with start():  # as the command does it
        import trainer.loop.fit  # noqa: F401
    overrides = [f"dataset.root={arguments.root}", *arguments.overrides]
    kinds = {"shown": overrides, "not shown": [*overrides, *NOTHING]}
    measured: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        train_once(arguments.config, overrides, Path(folder))  # warms caches and imports up
        for pair in bar(range(arguments.pairs), "measuring", arguments.pairs, unit="pair"):
            for kind in sorted(kinds, reverse=bool(pair % 2)):
                result = train_once(arguments.config, kinds[kind], Path(folder))
                measured[kind].append(result)
    for kind, results in measured.items():
        seconds = {
            name: statistics.median(result["seconds"][name] for result in results)
            for name in results[0]["seconds"]
        }
        listed = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
        print(f"{kind:<10} {statistics.median(r['wall'] for r in results):6.2f} s ({listed})")
    pairs = zip(measured["shown"], measured["not shown"], strict=True)
    ratio = statistics.median(shown["wall"] / other["wall"] for shown, other in pairs)
    share = statistics.median(r["seconds"]["log"] / r["wall"] for r in measured["shown"])
    print(f"median of {arguments.pairs} pairs: {ratio - 1:+.1%} of the time without")
    print(f"by its own clock, drawing and writing what is shown took {share:.1%} of a run")


def train_once(config_file: str, overrides: Sequence[str], runs: Path) -> dict[str, Any]:
    """Train one run; return its result, with "wall": the seconds that ``fit`` took."""
    from trainer.build.prepare import prepare
    from trainer.config import load_config
    from trainer.loop.fit import fit
    from trainer.process.stop import StopRequest

    job = prepare(load_config(config_file, overrides), lambda _: None)
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), StopRequest() as stop:
        folder = fit(job, runs, None, lambda _: None, stop)
    wall = time.perf_counter() - began
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result | {"wall": wall}


if __name__ == "__main__":
    sys.exit(main())
