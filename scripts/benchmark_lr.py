"""Small cases, each trained at the rate that find_lr suggests, and at a grid of rates beside it.

    python -m scripts.benchmark_lr --fashion data --cifar10 DIR --photos data/rmb

fashion: the root of FashionMNIST; cifar10: a folder with train/CLASS and test/CLASS; photos: the
RMB notes. The rule of find_lr was made on ``TUNING``. ``EARLIER`` was measured once after that, and
changed one line of it: when two orders of batches contradict each other. ``HELD_OUT`` was measured
once, after that.
Prints a row for each case: the difference in test accuracy, in points, to the best of the grid.
What is in --output (JSON lines) is not measured again.
"""

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from datasets.fashion_mnist import FashionMNIST
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.input.data import Data
from trainer.loop.fit import fit
from trainer.process.errors import NonFiniteLoss
from trainer.process.stop import StopRequest
from trainer.run.disk import read_json
from trainer.tuning.rates import NoSuggestion, find_rate

# A case: data, training images, model, optimizer, batch size, epochs, and other keys of the YAML.
Case = tuple[str, int, str, str, int, int, str]
SGD, NESTEROV = "SGD momentum=0.9", "SGD momentum=0.9 nesterov=true weight_decay=0.0005"
SMALL = "CompactResNet widths=[16,32] depth=2"
COSINE, CYCLE = "scheduler=CosineAnnealingLR", "scheduler=OneCycleLR"
MIXED, FLIPPED = "mix=MixUp", "mix=RandomHorizontalFlip"
TUNING: list[Case] = [
    ("fashion", 4000, "MLP hidden=[128]", SGD, 64, 4, ""),
    ("fashion", 1000, "LeNet", "AdamW", 32, 10, COSINE),
    ("fashion", 60000, "MLP hidden=[64]", "Adam", 512, 2, ""),
    ("fashion", 100, "LeNet", "Adam", 16, 40, ""),
    ("fashion 1:20", 3000, "LeNet", SGD, 32, 4, COSINE),
    ("fashion", 2000, SMALL, SGD, 64, 4, CYCLE),
    ("cifar10", 2000, SMALL, "AdamW weight_decay=0.05", 64, 4, COSINE),
    ("cifar10", 4000, "LeNet", "SGD", 16, 3, ""),
    ("cifar10", 1000, "torchvision/resnet18", SGD, 32, 2, ""),
    ("photos", 72, "LeNet", SGD, 16, 12, "scheduler=StepLR step_size=6"),
    ("photos", 33, "LeNet", "Adam", 8, 20, ""),
    ("photos", 72, SMALL, "RMSprop", 16, 10, MIXED),
    ("fashion", 3000, "MLP hidden=[64,64,64,64]", "Adagrad", 32, 3, MIXED),
    ("fashion", 3000, "MLP hidden=[128,128]", "Muon", 64, 3, COSINE),
]
EARLIER: list[Case] = [
    ("photos", 30, "LeNet", SGD, 8, 20, ""),
    ("photos", 30, "MLP hidden=[32]", "AdamW", 64, 40, ""),
    ("photos", 33, "LeNet", SGD, 8, 15, COSINE),
    ("photos", 33, SMALL, "AdamW", 8, 12, FLIPPED),
    ("photos", 80, "LeNet", "RMSprop", 16, 10, ""),
    ("photos", 80, "AlexNet variant=cifar", SGD, 16, 8, ""),
    ("photos", 80, "torchvision/mobilenet_v3_small", "Adam", 16, 6, ""),
    ("photos 1:5", 60, "LeNet", "AdamW", 16, 15, ""),
    ("fashion", 100, "MLP hidden=[64]", SGD, 10, 20, ""),
    ("fashion", 160, "LeNet", "AdamW", 16, 20, COSINE),
    ("fashion", 160, SMALL, "Adam", 32, 15, MIXED),
    ("fashion", 300, "MLP hidden=[256]", "Adagrad", 32, 15, ""),
    ("fashion", 500, "LeNet", NESTEROV, 25, 10, CYCLE),
    ("fashion", 500, "LeNet", "SGD", 8, 8, ""),
    ("fashion", 1000, "LeNet", "RMSprop", 64, 10, ""),
    ("fashion", 1000, "MLP hidden=[128,64]", "Muon", 32, 6, ""),
    ("fashion", 1000, SMALL, NESTEROV, 32, 3, COSINE),
    ("fashion 1:20", 1000, "LeNet", "AdamW", 32, 10, ""),
    ("fashion 1:20", 2000, "MLP hidden=[128]", "SGD", 32, 8, COSINE),
    ("fashion 1:20", 3000, SMALL, "Adam", 64, 3, "scheduler=CosineAnnealingLR warmup=10st"),
    ("fashion 1:20", 4000, "LeNet", SGD, 128, 8, MIXED),
    ("fashion", 2000, "torchvision/mobilenet_v3_small", "AdamW", 64, 3, COSINE),
    ("fashion", 3000, "LeNet", "Adamax", 32, 4, ""),
    ("fashion", 4000, "LeNet", "Adagrad", 64, 4, ""),
    ("fashion", 8226, "MLP hidden=[128]", "Adam", 128, 5, "scheduler=StepLR step_size=2"),
    ("fashion", 8226, "LeNet", SGD, 64, 4, ""),
    ("fashion", 8226, "LeNet", "NAdam", 256, 5, COSINE),
    ("fashion", 8226, "MLP hidden=[64,64,64]", "RMSprop", 8, 1, CYCLE),
    ("fashion", 8226, "MLP hidden=[256]", "SGD", 512, 10, ""),
    ("fashion", 8226, SMALL, "Muon filters=true rest=AdamW", 128, 1, CYCLE),
    ("cifar10", 1000, "LeNet", "Adam", 16, 8, ""),
    ("cifar10", 2000, "LeNet", SGD, 32, 6, COSINE + "; " + FLIPPED),
    ("cifar10", 1000, "torchvision/squeezenet1_1", "AdamW", 32, 4, COSINE),
    ("cifar10", 4000, SMALL, NESTEROV, 64, 3, CYCLE),
    ("cifar10 1:20", 4000, "LeNet", "AdamW", 64, 6, ""),
    ("cifar10", 8226, "MLP hidden=[256,128]", "AdamW", 128, 4, MIXED),
    ("cifar10", 8226, "LeNet", "RAdam", 32, 3, CYCLE),
    ("cifar10", 30000, "LeNet", SGD, 256, 3, COSINE),
    ("cifar10", 50000, "MLP hidden=[128]", "Adam", 512, 2, ""),
    ("cifar10", 500, "torchvision/resnet18", "AdamW", 32, 2, COSINE),
]
HELD_OUT: list[Case] = [
    ("photos", 30, "LeNet", "AdamW weight_decay=0.1", 10, 30, CYCLE),
    ("photos", 33, "MLP hidden=[64,32]", SGD, 8, 25, ""),
    ("photos", 33, "LeNet", "SGD", 33, 60, ""),
    ("photos", 40, "LeNet", "Adagrad", 8, 15, MIXED),
    ("photos", 50, "LeNet", "NAdam", 16, 20, COSINE),
    ("photos", 80, "MLP hidden=[128]", "Adamax", 20, 15, ""),
    ("photos 1:4", 50, "LeNet", SGD, 16, 20, FLIPPED),
    ("photos", 60, SMALL, SGD, 16, 10, ""),
    ("fashion", 60, "LeNet", "Adam", 12, 40, COSINE),
    ("fashion", 100, "LeNet", NESTEROV, 16, 25, ""),
    ("fashion", 120, "MLP hidden=[32,32]", "RMSprop", 30, 40, ""),
    ("fashion", 200, "LeNet", "SGD", 10, 20, COSINE),
    ("fashion", 200, "MLP hidden=[64]", "Muon rest=SGD", 20, 15, ""),
    ("fashion", 400, "LeNet", "Adamax", 16, 10, CYCLE),
    ("fashion", 400, "MLP hidden=[200,100]", "AdamW", 64, 20, MIXED),
    ("fashion", 600, "LeNet", "Adagrad", 20, 8, COSINE),
    ("fashion", 800, "MLP hidden=[100]", NESTEROV, 16, 5, FLIPPED),
    ("fashion", 1200, "LeNet", SGD, 100, 15, "scheduler=StepLR step_size=6"),
    ("fashion", 1500, "MLP hidden=[300]", "RAdam", 50, 6, ""),
    ("fashion 1:20", 600, "LeNet", SGD, 16, 8, COSINE),
    ("fashion 1:20", 1500, "MLP hidden=[64,64]", "Adam", 64, 8, MIXED),
    ("fashion 1:20", 2500, "LeNet", "RMSprop", 32, 4, COSINE),
    ("fashion 1:20", 4000, "MLP hidden=[128]", "Adagrad", 256, 10, ""),
    ("fashion", 2000, "LeNet", "AdamW", 16, 3, MIXED),
    ("fashion", 2500, "MLP hidden=[128,128,128]", SGD, 32, 4, CYCLE),
    ("fashion", 3500, "LeNet", "SGD", 32, 5, FLIPPED),
    ("fashion", 5000, "MLP hidden=[50]", "NAdam", 100, 4, ""),
    ("fashion", 6000, "LeNet", "Adam", 128, 4, CYCLE),
    ("fashion", 8226, "MLP hidden=[128]", SGD, 256, 8, COSINE),
    ("fashion", 8226, "MLP hidden=[64]", "Adamax", 32, 3, ""),
    ("fashion", 8226, "MLP hidden=[400]", "Muon", 512, 6, CYCLE),
    ("fashion", 8226, "LeNet", "AdamW", 512, 8, ""),
    ("fashion", 700, SMALL, "RMSprop", 64, 5, COSINE),
    ("fashion", 2500, SMALL, "Adagrad", 64, 2, ""),
    ("cifar10", 500, "MLP hidden=[64]", "AdamW", 25, 8, COSINE),
    ("cifar10", 1500, "LeNet", "Adamax", 32, 8, ""),
    ("cifar10 1:20", 2000, "LeNet", SGD, 64, 10, FLIPPED),
    ("cifar10", 3000, "MLP hidden=[200]", SGD, 50, 4, ""),
    ("cifar10", 5000, "LeNet", "Adam", 128, 6, CYCLE),
    ("cifar10", 20000, "MLP hidden=[100]", "AdamW", 256, 3, COSINE),
]
# Exponents of 10 in half steps: where the grid of each optimizer begins; it has seven rates.
FIRST = {"SGD": -2.5, "Adagrad": -3.5, "Muon": -3.5, SGD: -3.0, NESTEROV: -3.0}
GRID = 7
LARGE = re.compile("torchvision|AlexNet|Compact")


def is_large(case: Case) -> bool:
    """Whether its trainings take long: they are the last, and have one seed instead of two."""
    return bool(LARGE.match(case[2])) or case[1] > 20_000


def fashion(root: Path) -> list[NDArray[Any]]:
    """Images (N, 32, 32) and labels of train, and of test."""
    data = FashionMNIST(str(root))
    images = np.pad(data.images[:, 0].numpy(), ((0, 0), (2, 2), (2, 2)))
    labels, train = np.asarray(data.labels), np.asarray(data.parts) == "train"
    return [images[train], labels[train], images[~train], labels[~train]]


def folders(root: Path, side: int, most: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images (N, side, side, 3) and labels of a folder of class folders, ``most`` of each class."""
    images, labels = [], []
    for label, folder in enumerate(sorted(path for path in root.iterdir() if path.is_dir())):
        for file in sorted(folder.iterdir())[:most]:
            picture = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BOX)
            images.append(np.asarray(picture))
            labels.append(label)
    return np.stack(images), np.asarray(labels, np.uint8)


def arrays(kind: str, places: argparse.Namespace) -> list[NDArray[Any]]:
    """Images and labels of train, and of test."""
    if kind == "fashion":
        return fashion(places.fashion)
    if kind == "cifar10":
        both = (folders(places.cifar10 / part, 32, 5000) for part in ("train", "test"))
        return [array for part in both for array in part]
    images, labels = folders(places.photos, 32, 80)
    rows = np.random.default_rng(0).permutation(len(labels))  # half of the 160 are the test
    return [images[rows[:80]], labels[rows[:80]], images[rows[80:]], labels[rows[80:]]]


def chosen(labels: NDArray[Any], count: int, ratio: float, seed: int) -> NDArray[Any]:
    """About ``count`` numbers of images; the last class has 1 / ratio of the first one's."""
    classes = int(labels.max()) + 1
    shares = ratio ** -(np.arange(classes) / max(classes - 1, 1))
    order = np.random.default_rng(seed).permutation(len(labels))
    wanted = np.maximum(np.round(count * shares / shares.sum()), 2).astype(int)
    return np.concatenate([order[labels[order] == k][: wanted[k]] for k in range(classes)])


def component(text: str) -> dict[str, Any]:
    """``NAME key=value ...`` as a mapping."""
    name, *rest = text.split()
    return {"name": name} | {k: yaml.safe_load(v) for k, v in (p.split("=", 1) for p in rest)}


def write_case(case: Case, places: argparse.Namespace, folder: Path) -> Path:
    """Write the arrays and the YAML of a case into ``folder``."""
    kind, count, model, optimizer, batch, epochs, more = case
    source, _, imbalance = kind.partition(" 1:")
    if source not in places.read:
        places.read[source] = arrays(source, places)
    images, labels, test_images, test_labels = places.read[source]
    ratio = float(imbalance or 1)
    train, test = chosen(labels, count, ratio, 1), chosen(test_labels, 2000, ratio, 2)
    np.savez(
        folder / "data.npz",
        train_images=images[train],
        train_labels=labels[train],
        test_images=test_images[test],
        test_labels=test_labels[test],
    )
    settings = dict(p.split("=", 1) for p in more.split("; ") if p)
    same = [{"name": "Normalize", "mean": [0.4], "std": [0.3]}]
    if source != "fashion":
        same = [{"name": "Normalize", "mean": [0.45] * 3, "std": [0.25] * 3}]
    mixed = [component(settings["mix"])] if "mix" in settings else []
    own = mixed + same if mixed and mixed[0]["name"] != "MixUp" else same + mixed
    document: dict[str, Any] = {
        "dataset": {"name": "Arrays", "root": str(folder / "data.npz")},
        "transforms": {"train": own, "eval": same},
        "loader": {"batch_size": batch, "workers": 0},
        "model": component(model),
        "loss": {"name": "CrossEntropyLoss"},
        "optimizer": component(optimizer),
        "train": {"epochs": epochs, "device": "cpu"},
        "log": {"show": []},
    }
    if "scheduler" in settings:
        document["scheduler"] = component(settings["scheduler"])
    file = folder / "case.yaml"
    file.write_text(json.dumps(document))
    return file


def quiet(line: str) -> None:
    """Print nothing."""


def accuracy(file: Path, rate: float, seed: int, data: Data | None) -> tuple[float, float, Data]:
    """Test accuracy of a whole training, 0 if it failed; its seconds; the data, to use again."""
    job = prepare(load_config(file, [f"optimizer.lr={rate!r}", f"seed={seed}"]), quiet, data=data)
    began = time.perf_counter()
    result: dict[str, Any] = {}
    with StopRequest() as stop, suppress(NonFiniteLoss), redirect_stdout(StringIO()):
        result = read_json(fit(job, file.parent / "runs", None, quiet, stop) / "result.json")
    return result.get("test", {}).get("accuracy", 0.0), time.perf_counter() - began, job.data


def measure(case: Case, file: Path) -> dict[str, Any]:
    """The suggestion, the grid, and what each comes to."""
    first = FIRST.get(case[3], FIRST.get(case[3].split()[0], -4.5))
    job = prepare(load_config(file), quiet)
    data, reason, rate = job.data, "", None
    began = time.perf_counter()
    try:
        with redirect_stdout(StringIO()):
            rate = float(f"{find_rate(job, (1e-7, 10.0), 100, file.parent / 'x.png', quiet):.2g}")
    except NoSuggestion as error:
        reason = str(error)
    seconds = time.perf_counter() - began
    rates = {float(f"{10 ** (first + k / 2):.2g}") for k in range(GRID)}
    found: dict[float, float] = {}
    whole = 0.0
    for each in sorted(rates | ({rate} if rate else set())):
        done = []
        for seed in range(1 if is_large(case) else 2):
            value, whole, data = accuracy(file, each, seed, data)
            done.append(value)
        found[each] = statistics.fmean(done)
    best = max(rates, key=lambda each: found[each])
    return {
        "case": " ".join(map(str, case)),
        "rate": rate,
        "accuracy": found.get(rate or 0.0),
        "best": best,
        "best_accuracy": found[best],
        "grid": found,
        "seconds": seconds,
        "training": whole,
        "reason": reason,
    }


def row(result: dict[str, Any]) -> str:
    """A line of the table."""
    told = "can't tell      "
    if result["rate"]:
        points = 100 * (result["accuracy"] - result["best_accuracy"])
        told = f"{result['rate']:<8.2g} {points:+6.1f} "
    grid = f"{result['best']:<8.2g} {result['best_accuracy']:.3f}"
    return f"{told} {grid} {result['seconds']:6.1f}s {result['training']:6.1f}s  {result['case']}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the cases that the output lacks, and print the table."""
    parser = argparse.ArgumentParser(description="Try find_lr on many cases.")
    for name in ("--fashion", "--cifar10", "--photos"):
        parser.add_argument(name, type=Path, required=True)
    lists = {"held-out": HELD_OUT, "earlier": EARLIER, "tuning": TUNING}
    parser.add_argument("--cases", choices=lists, default="held-out")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark_lr.jsonl"))
    places = parser.parse_args(argv)
    places.read = {}
    places.output.parent.mkdir(parents=True, exist_ok=True)
    lines = places.output.read_text().splitlines() if places.output.exists() else []
    results = [json.loads(line) for line in lines]
    cases = lists[places.cases]
    print("suggested, points from the best; best of the grid, accuracy; find_lr; a training")
    for case in sorted(cases, key=is_large):
        name = " ".join(map(str, case))
        result = next((each for each in results if each["case"] == name), None)
        if result is None:
            with tempfile.TemporaryDirectory() as folder:
                result = measure(case, write_case(case, places, Path(folder)))
            with places.output.open("a") as file:
                file.write(json.dumps(result) + "\n")
            results.append(result)
        print(row(result), flush=True)
    names = {" ".join(map(str, case)) for case in cases}
    mine = [result for result in results if result["case"] in names]
    near = [r for r in mine if r["rate"] and r["accuracy"] >= r["best_accuracy"] - 0.02]
    silent = sum(not each["rate"] for each in mine)
    print(f"{len(near)} of {len(mine)} within two points of the best; {silent} times: can't tell")


if __name__ == "__main__":
    main()
