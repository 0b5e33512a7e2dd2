"""Measure whether the settings that trainer.speed advises make real runs faster.

    python -m scripts.benchmark_advice --data data
    python -m scripts.benchmark_advice --data data --only resnet18 --seconds 90

For each case: trainer.speed first; then, by turns, runs of the YAML alone, of the YAML with the
advised settings, and of the YAML in bf16 where bf16 was measured and not advised. If the advice is
right, the second are faster than the first, and the third are not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.process.console import say
from trainer.process.errors import RunError
from trainer.process.exits import exit_code_of

RMB = ("configs/alexnet_rmb.yaml", "dataset.root={data}/rmb")
CASES = {  # name: (epochs of a run, its configuration and overrides)
    "lenet": (10, ("configs/lenet_fashion_mnist.yaml", "dataset.root={data}")),
    "alexnet": (2, RMB),
    "resnet18": (2, (*RMB, "model={{name: torchvision/resnet18}}")),
    "mobilenet_v3_small": (3, (*RMB, "model={{name: torchvision/mobilenet_v3_small}}")),
}
BF16 = "train.precision=bf16"
COMPILED = ("lenet",)  # the cases for which the compiler is tried, too: the others take minutes


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark_advice",
        description="Measure whether what trainer.speed advises makes real runs faster.",
    )
    add = parser.add_argument
    add("--data", default="data", metavar="DIR", help="holds rmb/ and FashionMNIST/ (data)")
    add("--only", nargs="+", choices=CASES, default=list(CASES), help="cases to measure (all)")
    add("--seconds", type=float, default=45, metavar="N", help="of trainer.speed, a case (45)")
    add("--turns", type=int, default=2, metavar="N", help="runs of each kind (2)")
    arguments = parser.parse_args(argv)
    if arguments.turns < 1:
        parser.error(f"--turns {arguments.turns}: expected 1 or more")
    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Measure the cases that the command line names, and print each as soon as it is done."""
    for name in arguments.only:
        epochs, words = CASES[name]
        config = [word.format(data=arguments.data) for word in words]
        compiler = [] if name in COMPILED else ["--no-compile"]
        options = ["--json", "--seconds", f"{arguments.seconds:g}", *compiler]
        facts = json.loads(output_of("trainer.speed", [*config, *options]))
        say(f"\n{name}: advised {' '.join(facts['advice']) or 'nothing'}")
        for row in facts["rows"]:
            say(f"    {settings_in_words(row)}")
        kinds = kinds_of(facts)
        speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(arguments.turns):
            for kind, settings in kinds.items():
                speeds[kind].append(images_per_second([*config, *settings], epochs))
        for kind, found in speeds.items():
            pairs = zip(found, speeds["alone"], strict=True)
            ratios = ", ".join(f"{speed / alone:.3f}" for speed, alone in pairs)
            say(f"    runs {kind:20} {', '.join(f'{s:,.1f}' for s in found)} images/s; x {ratios}")


def kinds_of(facts: dict[str, Any]) -> dict[str, list[str]]:
    """The kinds of runs, each with the settings that it adds to the YAML."""
    kinds = {"alone": [], "with the advice": list(facts["advice"])}
    measured = any(row["settings"] == {"train.precision": "bf16"} for row in facts["rows"])
    if measured and BF16 not in facts["advice"]:
        kinds["in bf16, not advised"] = [BF16]
    return {kind: settings for kind, settings in kinds.items() if settings or kind == "alone"}


def settings_in_words(row: dict[str, Any]) -> str:
    """A row of trainer.speed: its settings, and the ratio of speeds, or why there is none."""
    settings = " ".join(f"{key}={value}" for key, value in row["settings"].items()) or "the YAML"
    ratio = f"x {row['ratio']:.3f}" if row["ratio"] else ""
    return f"{settings:45} {row['failed'] or ratio}"


def images_per_second(words: Sequence[str], epochs: int) -> float:
    """The training speed of a run of its own, by its result.json."""
    with tempfile.TemporaryDirectory() as runs:
        quiet = ["log.show=[]", "checkpoint.every=100ep", f"train.epochs={epochs}"]
        output_of("trainer.train", [*words, *quiet, "--runs", runs])
        (result,) = Path(runs).glob("*/*/result.json")
        return float(json.loads(result.read_text())["images_per_second"])


def output_of(module: str, words: Sequence[str]) -> str:
    """What a command of the trainer prints; raises RunError with its own error if it fails."""
    command = [sys.executable, "-m", module, "--config", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
