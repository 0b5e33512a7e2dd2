"""Measure the recipes of configs/ with several seeds, and write the tables of results.

    python -m scripts.results --list
    python -m scripts.results --data data --cifar data/cifar10
    python -m scripts.results --only lenet_rmb --seeds 0 1 2 3 4

Each recipe is a sweep over seeds. So the same command, given again after a kill, does only what is
missing. The numbers are kept in docs/results.json.
"""

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from scripts.machine import processor, seconds_of_others
from scripts.results_page import MEASURED, Recipe, all_recipes, read_measured, write_all
from trainer.process.console import duration, say
from trainer.process.errors import RunError, Stopped, UsageError
from trainer.process.exits import Exit, exit_code_of
from trainer.run import disk
from trainer.run.environment import ROOT
from trainer.sweeping.process import end_with

RUN_SECONDS = 8  # of a run besides its training: start, test, report
LONG = {"alexnet_cifar10", "resnet18_cifar10", "vgg16_cifar10"}  # seed 0 only
FOR_GPU = {"cifar10_speedrun"}
CODE = ("trainer/", "models/", "datasets/", "transforms/")  # what decides a result, with the YAML
RED = (70, 10, 20), (255, 190, 180)  # what black and white become on a note that is recoloured
RECOLOURED = ("lenet_rmb", "lenet_rmb_grayscale")


class NotMeasured(Exception):
    """A recipe cannot be measured here; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.results",
        description="Measure the recipes of configs/, and write the tables of results.",
        epilog="exit codes: 0 done, 2 usage, 5 a recipe failed (the others are done), "
        "75 stopped: the same command resumes",
    )
    add = parser.add_argument
    add("--list", action="store_true", help="show what is measured, older or missing, and stop")
    add("--only", nargs="+", metavar="NAME", help="recipes to measure (all)")
    add("--seeds", nargs="+", type=int, metavar="N", help="(0 1 2; of long recipes 0)")
    add("--again", action="store_true", help="measure also what is measured already")
    add("--data", type=Path, default=Path("data"), metavar="DIR", help="holds all data sets (data)")
    add("--rmb", type=Path, metavar="DIR", help="photographs of notes (DATA/rmb)")
    add("--fashion", type=Path, metavar="DIR", help="holds FashionMNIST (DATA)")
    add("--cifar", type=Path, metavar="DIR", help="CIFAR-10, or train/ and test/ of JPEGs (DATA)")
    add("--photos", type=Path, metavar="DIR", help="your own photographs (not measured)")
    add("--download", action="store_true", help="also recipes whose weights are downloaded")
    add("--runs", type=Path, default=Path("runs/results"), metavar="DIR", help="(runs/results)")
    arguments = parser.parse_args(argv)
    if wrong := [seed for seed in arguments.seeds or () if not 0 <= seed < 2**32]:
        parser.error(f"--seeds {wrong[0]}: expected whole numbers of at least 0, such as 0 1 2")
    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    for option in ("rmb", "fashion", "cifar", "photos"):
        folder = getattr(arguments, option)
        if folder is not None and not folder.is_dir():
            raise UsageError(f"--{option} {folder}: there is no such folder")
    names = [recipe.name for recipe in all_recipes()]
    if unknown := sorted({*(arguments.only or ())} - {*names}):
        raise UsageError(f"--only {unknown[0]}: expected one of {', '.join(names)}")
    chosen = [r for r in all_recipes() if arguments.only is None or r.name in arguments.only]
    if arguments.list:
        for recipe in chosen:
            say(f"{recipe.name:24}{state_in_words(recipe, arguments)}")
        return
    todo = [recipe for recipe in chosen if arguments.again or missing_seeds(recipe, arguments)]
    failed = []
    for number, recipe in enumerate(todo):
        left = sum(expected_seconds(r, arguments) or 0.0 for r in todo[number:])
        about = f", about {duration(left)} left, and what is not known" if left else ""
        say(f"\nrecipe  {recipe.name}, {number + 1} of {len(todo)}{about}")
        measured = read_measured()
        try:
            measured[recipe.name] = measure(recipe, arguments)
        except NotMeasured as reason:
            say(f"note    not measured: {reason}")
            if "accuracy" not in recipe.entry:
                measured[recipe.name] = {"reason": str(reason)}
        except RunError as error:
            failed.append(str(error))
        disk.write_json(MEASURED, dict(sorted(measured.items())))
        write_all()
    write_all()
    say(f"\nresults {len(todo)} recipes looked at, {len(chosen) - len(todo)} were measured before")
    if failed:
        raise RunError("\n".join(failed))


def seeds_of(recipe: Recipe, arguments: argparse.Namespace) -> list[int]:
    """The seeds that are asked for."""
    return list(arguments.seeds or ([0] if recipe.name in LONG else [0, 1, 2]))


def missing_seeds(recipe: Recipe, arguments: argparse.Namespace) -> list[int]:
    """The seeds that are asked for and not measured; all, if the recipe has changed since."""
    known = recipe.entry["seeds"] if recipe.state == "measured" else []
    return [seed for seed in seeds_of(recipe, arguments) if seed not in known]


def expected_seconds(recipe: Recipe, arguments: argparse.Namespace) -> float | None:
    """How long a recipe will take, by the last measurement; None if it has none."""
    if "seconds" not in recipe.entry:
        return None
    each = sum(recipe.entry["seconds"]) / len(recipe.entry["seconds"]) + RUN_SECONDS
    seeds = seeds_of(recipe, arguments) if arguments.again else missing_seeds(recipe, arguments)
    return each * len(seeds)


def state_in_words(recipe: Recipe, arguments: argparse.Namespace) -> str:
    """What ``--list`` says of a recipe."""
    lacks = missing_seeds(recipe, arguments)
    seconds = expected_seconds(recipe, arguments)
    left = f"takes {duration(seconds)}" if seconds else "takes unknown time"
    try:
        data_of(recipe, arguments)
    except NotMeasured as reason:
        left = f"cannot be measured: {reason}"
    if recipe.state == "measured":
        with_seeds = f"measured with seeds {' '.join(map(str, recipe.entry['seeds']))}"
        return with_seeds + (f", lacks {' '.join(map(str, lacks))}; {left}" if lacks else "")
    return f"{recipe.state.partition(':')[0]}; {left}"


def data_of(recipe: Recipe, arguments: argparse.Namespace) -> tuple[str, str, list[str]]:
    """The data's name in the tables, and overrides: which selects the data, which anybody needs.

    Raises NotMeasured if the data, the model's weights or a GPU are not here.
    """
    if recipe.name in FOR_GPU and not torch.cuda.is_available():
        raise NotMeasured("not measured on a GPU")
    if recipe.content["model"].get("weights") == "DEFAULT" and not arguments.download:
        raise NotMeasured("its weights must be downloaded")
    label, folder, inside = {
        "RMB": ("RMB", arguments.rmb or arguments.data / "rmb", ["100"]),
        "FashionMNIST": ("Fashion-MNIST", arguments.fashion or arguments.data, ["FashionMNIST"]),
        "CIFAR10": (
            "CIFAR-10",
            arguments.cifar or arguments.data,
            ["cifar-10-batches-py", "cifar-10-python.tar.gz"],
        ),
        "ImageFolder": ("photographs", arguments.photos, ["."]),
    }[recipe.content["dataset"]["name"]]
    if folder is None:
        raise NotMeasured("it is for your own photographs")
    if label == "CIFAR-10" and (folder / "train/airplane").is_dir():
        other = "dataset={{name: ImageFolder, root: {}}}"
        here, general = other.format(json.dumps(str(folder))), other.format("data/cifar10")
        return "CIFAR-10 (JPEG)", here, [general]
    if not any((folder / name).exists() for name in inside):
        raise NotMeasured("its data were absent")
    return label, f"dataset.root={json.dumps(str(folder))}", []


def measure(recipe: Recipe, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a recipe with each seed, and return its entry in docs/results.json.

    Raises NotMeasured, Stopped, or RunError if a run failed.
    """
    label, here, general = data_of(recipe, arguments)
    name = f"{recipe.name}-{recipe.digest}"
    folder = arguments.runs / name
    if arguments.again and recipe.state == "measured" and folder.exists():
        raise RunError(f"{folder} holds the runs of {recipe.name}; remove it to measure them again")
    plan = folder / "plan.json"  # a sweep may get more seeds, but none is taken away
    known = disk.read_json(plan)["sweep"]["seeds"] if plan.exists() else []
    kept = recipe.entry["seeds"] if recipe.state == "measured" else []
    added = sorted({*seeds_of(recipe, arguments), *kept} - {*known})
    begun = any(folder.glob("*/*/config.yaml"))  # in an earlier call: nobody knows what else ran
    others, began = seconds_of_others(), time.monotonic()
    # Seed by seed, so that no run begins beside the end of the one before: it has its time alone.
    for number in range(0 if known else 1, len(added) + 1):
        run_sweep(recipe, name, [*known, *added[:number]], arguments.runs, here)
    share = (seconds_of_others() - others) / (time.monotonic() - began) / (os.cpu_count() or 1)
    (trial,) = disk.read_json(folder / "sweep.json")["trials"]
    if trial["status"] != "done":
        raise RunError(f"{recipe.name} failed: {trial['reason']}")
    command = ["python", "-m", "trainer.train", "--config", recipe.path.as_posix(), *general]
    entry = entry_of(recipe, [folder / end["run"] for end in trial["runs"]])
    if recipe.name in RECOLOURED:
        root = Path(json.loads(here.partition("=")[2]))
        runs = [folder / end["run"] for end in trial["runs"]]
        entry["recoloured"] = [recoloured_accuracy(run, root) for run in runs]
    return entry | {
        "data": label,
        "seeds": [end["seed"] for end in trial["runs"]],
        "others": None if begun else round(max(share, 0.0), 2),
        "command": shlex.join(command),
    }


def run_sweep(recipe: Recipe, name: str, seeds: Sequence[int], runs: Path, here: str) -> None:
    """Run a recipe with seeds, as far as that is not done; raises Stopped, or RunError."""
    grid = {"method": "grid", "params": {}, "seeds": list(seeds)}
    plan = {"name": name, "base": str(recipe.path.resolve()), "sweep": grid}
    disk.make_folders(runs)
    disk.write_file(runs / f"{name}.yaml", yaml.safe_dump(plan))
    command = ["trainer.sweep", "--config", str(runs / f"{name}.yaml"), "--runs", str(runs)]
    code = code_of_command([*command, "--retry", here], None)
    if code == Exit.STOPPED:
        raise Stopped("stopped; what has ended is kept, and the same command resumes")
    if code:
        raise RunError(f"{recipe.name} failed with exit code {code}; the lines above say why")


def code_of_command(command: Sequence[str], output: int | None) -> int:
    """Run ``python -m`` with a command, which is told to end if this process dies."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        env=os.environ | {"PYTHONPATH": path},
        stdout=output,
        stderr=output,
        preexec_fn=end_with(os.getpid()),
    )
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the command was told too: it saves, and ends
            continue


def entry_of(recipe: Recipe, runs: Sequence[Path]) -> dict[str, Any]:
    """What the folders of a recipe's runs say: numbers, machine and commit."""
    results = [disk.read_json(run / "result.json") for run in runs]
    places = [disk.read_json(run / "environment.json") for run in runs]
    config = yaml.safe_load((runs[0] / "config.yaml").read_text(encoding="utf-8"))
    changed = any(line[3:].startswith(CODE) for p in places for line in p["git_changed_files"])
    commits = dict.fromkeys((place["git_commit"] or "unknown")[:7] for place in places)
    return {
        "digest": recipe.digest,
        "date": datetime.date.today().isoformat(),
        "images": list(results[0]["dataset"]["images"].values()),
        "accuracy": [result["test"]["accuracy"] for result in results],
        "seconds": [round(result["train_seconds"], 1) for result in results],
        "epochs": config["train"]["epochs"],
        "precision": config["train"]["precision"],
        "processor": processor(),
        "cores": os.cpu_count(),
        "device": places[0]["device"],
        "torch": places[0]["packages"]["torch"],
        "commit": ", ".join(commits) + (" + changes" if changed else ""),
    }


def recoloured_accuracy(run: Path, root: Path) -> float:
    """The accuracy on a run's test photographs, with the notes of 100 recoloured red."""
    from PIL import Image, ImageOps

    with tempfile.TemporaryDirectory() as temporary:
        folder, answers = Path(temporary) / "notes", Path(temporary) / "answers.json"
        for name in disk.read_json(run / "split.json", disk.MAX_SPLIT)["test"]:
            with Image.open(root / name) as photograph:
                picture = ImageOps.exif_transpose(photograph).convert("RGB")
            if Path(name).parent.name == "100":
                picture = ImageOps.colorize(picture.convert("L"), *RED)
            target = (folder / name).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target)
        command = ["trainer.predict", str(run), str(folder), "--json", str(answers)]
        if code := code_of_command(command, subprocess.DEVNULL):
            raise RunError(f"{run}: the recoloured notes were not predicted, exit code {code}")
        found = json.loads(answers.read_text(encoding="utf-8"))
    right = sum(bool(Path(answer["path"]).parent.name == answer["class"]) for answer in found)
    return right / len(found)


if __name__ == "__main__":
    sys.exit(main())
