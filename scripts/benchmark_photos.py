"""The cases "photos" and "stream": photographs kept decoded, and photographs decoded each epoch.

Each way of loading runs in a process of its own, once a block, for a few epochs. All ways give
the same batches to the same step. Ratios to the tutorial are taken within a block.
"""

import importlib.util
import json
import shutil
import statistics
import tempfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from datasets import DataError
from scripts.benchmark_children import Ran, points_of_run, run_python
from scripts.benchmark_photo_arms import LIMITS, MEAN, SIDE, STD, fastest_decoder
from trainer.process.console import Say

WIDTH, HEIGHT, QUALITY, CLASSES = 500, 375, 90, 4
LARGE = 1200  # pixels, the longer side of what crops are taken from
BATCH, WORKERS = 64, 2
HELD_OUT = 2  # photographs of each class that are validated, and as many that are tested
CACHES = {"photos": ["ram", "store"], "stream": ["off"]}
PROGRAM = (
    "import sys, pathlib; from scripts.benchmark_photo_arms import do_task; "
    "sys.exit(do_task(pathlib.Path(sys.argv[1])))"
)
SUFFIXES = (".jpg", ".jpeg")


def make_photos(folder: Path, count: int, rmb: str, say: Say) -> Path:
    """``count`` JPEGs of 500 x 375 in ``folder``/train/CLASS, a few in val and test; returns it.

    They are crops of the photographs below ``rmb``, or of noise like photographs if there are none.
    """
    sources = sorted(path for path in Path(rmb).glob("*/*") if path.suffix.lower() in SUFFIXES)
    kind = f"crops of {len(sources)} photographs" if sources else "crops of noise"
    say(f"photos   makes {count:,} JPEGs of {WIDTH} x {HEIGHT}: {kind}")
    drawn = torch.Generator().manual_seed(0)
    opened: list[Image.Image] = []
    for number in range(min(len(sources) or 4, 160)):
        if sources:
            source = Image.open(sources[number]).convert("RGB")
            source.thumbnail((LARGE, LARGE))  # all are held in memory
            opened.append(source)
        else:
            opened.append(Image.fromarray(noise_like_photographs(drawn).numpy()))
    names = ["train"] * count + ["val", "test"] * (HELD_OUT * CLASSES)
    numbers = torch.rand(len(names), 3, generator=drawn).tolist()

    def write(number: int) -> None:
        source = opened[number % len(opened)]
        share, left, top = numbers[number]
        width = min(source.width, source.height * WIDTH / HEIGHT) * (0.6 + 0.4 * share)
        height = width * HEIGHT / WIDTH
        x, y = left * (source.width - width), top * (source.height - height)
        box = (x, y, x + width, y + height)
        # train begins with class 0; val and test alternate, so each of their pairs is of one class
        label = number % CLASSES if number < count else (number - count) // 2 % CLASSES
        into = folder / names[number] / f"class{label}"
        into.mkdir(parents=True, exist_ok=True)
        crop = source.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box)
        crop.save(into / f"{number:06d}.jpg", quality=QUALITY)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(len(names))))
    return folder


def noise_like_photographs(drawn: torch.Generator) -> Tensor:
    """(750, 1000, 3) uint8: noise whose amplitude falls with its frequency, as in photographs."""
    total = torch.zeros(1, 3, 750, 1000)
    for cells in (2, 4, 8, 16, 32, 64, 128, 256, 512):
        grey = torch.randn(1, 1, cells, cells, generator=drawn)
        colour = torch.randn(1, 3, cells, cells, generator=drawn)
        mixed = (grey + 0.3 * colour) / cells**0.25
        total += nn.functional.interpolate(mixed, (750, 1000), mode="bicubic")
    return (128 + 60 * total[0]).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def link_photos(given: Path, folder: Path) -> Path:
    """The JPEGs of ``given``/CLASS as links in ``folder``/train, a few in val and test too.

    Raises DataError if there are fewer than two classes, or less than a batch.
    """
    files = sorted(path for path in given.glob("*/*") if path.suffix.lower() in SUFFIXES)
    classes = sorted({path.parent.name for path in files})
    if len(classes) < 2 or len(files) < BATCH:
        raise DataError(
            f"--photos {given}: {len(files)} JPEGs in {len(classes)} class folders; expected "
            f"{given}/CLASS/NAME.jpg, at least {BATCH} of at least two classes."
        )
    for name in classes:
        own = [path for path in files if path.parent.name == name]
        for part, few in (("train", own), ("val", own[:HELD_OUT]), ("test", own[-HELD_OUT:])):
            (folder / part / name).mkdir(parents=True)
            for path in few:
                (folder / part / name / path.name).symlink_to(path.resolve())
    return folder


def config_of_photos(root: Path, device: torch.device, epochs: int) -> dict[str, Any]:
    """The configuration of the framework's arms."""
    normalise = {"name": "Normalize", "mean": MEAN, "std": STD}
    crop = [{"name": "RandomResizedCrop", "size": SIDE}, {"name": "RandomHorizontalFlip"}]
    fixed = [{"name": "Resize", "size": 256}, {"name": "CenterCrop", "size": SIDE}]
    on_cuda = device.type == "cuda"
    return {
        "name": "photos",
        "dataset": {"name": "ImageFolder", "root": str(root), "layout": "parts"},
        "transforms": {"train": [*crop, normalise], "eval": [*fixed, normalise]},
        "loader": {"batch_size": BATCH, "drop_last": True},
        "model": {"name": "torchvision/resnet18" if on_cuda else "Pixels"},
        "optimizer": {"name": "SGD", "lr": 0.0002, "momentum": 0.9},
        "train": {
            "epochs": epochs,
            "device": str(device),
            "precision": "bf16" if on_cuda else "fp32",
        },
        "log": {"show": ["scalars"], "images": 0},
    }


def measure_photos(
    cases: Collection[str],
    root: Path,
    epochs: int,
    blocks: int,
    device: torch.device,
    runs: Path,
    say: Say,
) -> dict[str, Any]:
    """For "with a step" and "batches only": the rows of each arm, one per block.

    An arm that this machine or this version refuses is skipped with a message.
    """
    caches = [cache for case in CACHES if case in cases for cache in CACHES[case]]
    caches += ["device"] if device.type == "cuda" and "photos" in cases else []
    files = list((root / "train").glob("*/*"))
    measured: dict[str, Any] = {
        "photographs": len(files),
        "bytes": statistics.mean(path.stat().st_size for path in files),
    }
    fastest = fastest_decoder([str(path) for path in files[:200]])
    alone = [f"decode, {name}" for name in dict.fromkeys(["torchvision.io", fastest])]
    alone += [f"decode and crop, {fastest}", "crop, kept in memory"]
    arms = [*alone, "tutorial", "tutorial, torchvision.io", "timm"]
    arms += [f"framework, {cache}" for cache in caches]
    if not importlib.util.find_spec("timm"):
        say("skipped  timm: it is not installed")
        arms.remove("timm")
    for table, model in (("with a step", True), ("batches only", False)):
        rows: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        for block in range(blocks):
            for arm in list(rows) if block % 2 == 0 else list(reversed(rows)):
                found = run_arm(arm, model, root, epochs, device, runs, say)
                if found is None:
                    arms.remove(arm)
                    del rows[arm]
                    continue
                rows[arm].append({"block": block, **found})
                say(f"photos   {table}, block {block + 1} of {blocks}: {arm} {spoken(found)}")
        measured[table] = rows
        arms = [arm for arm in arms if arm not in alone]  # they have no step
    return measured


def spoken(row: dict[str, Any]) -> str:
    """A row in a line of progress."""
    return f"{row['images_per_second']:,.0f} images/s, in epoch 1 {row['first_epoch']:,.0f}"


def run_arm(
    arm: str, model: bool, root: Path, epochs: int, device: torch.device, runs: Path, say: Say
) -> dict[str, Any] | None:
    """Run an arm in a process of its own; returns its row, None if it is refused.

    Raises RunError if it fails.
    """
    folder = Path(tempfile.mkdtemp(dir=runs))
    try:
        words = [f"loader.cache={arm.partition(', ')[2]}"] if arm.startswith("framework") else []
        config = config_of_photos(root, device, epochs)
        (folder / "photos.yaml").write_text(json.dumps(config), encoding="utf-8")
        task = {
            "arm": arm,
            "model": model,
            "root": str(root),
            "epochs": epochs,
            "batch_size": BATCH,
            "workers": WORKERS,
            "device": str(device),
            "words": ["--runs", str(folder / "runs"), *words],
        }
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        images = sum(1 for _ in (root / "train").glob("*/*"))
        images -= 0 if arm.startswith(tuple(LIMITS)) else images % BATCH
        program = ["-c", PROGRAM, str(folder / "task.json")]
        ran = run_python(program, folder, folder / "store")
        if words and ran.refuses_cache:
            say(f"skipped  {arm}: the configuration does not allow {words[0]}")
            return None
        ran.require_done()
        file = folder / "epochs.json"
        if file.exists():
            done = json.loads(file.read_text(encoding="utf-8"))
        else:
            points = points_of_run(folder / "runs", "perf/images_per_second")
            done = [{"ended": at, "images_per_second": value} for at, value in points]
        return row_of(ran, done, images)
    finally:
        shutil.rmtree(folder)


def row_of(ran: Ran, epochs: Sequence[dict[str, float]], images: int) -> dict[str, Any]:
    """What a process did: images/s (all epochs but the first), seconds, CPU seconds, bytes.

    images is their number in an epoch.
    """
    speeds = [epoch["images_per_second"] for epoch in epochs]
    cpu = ran.usage.cpu_between(epochs[0]["ended"], epochs[-1]["ended"])
    return {
        "images_per_second": statistics.median(speeds[1:] or speeds),
        "first_epoch": speeds[0],
        "seconds_to_the_end_of_epoch_1": epochs[0]["ended"] - ran.began,
        "cpu_seconds_an_image": cpu / images / (len(epochs) - 1) if cpu is not None else None,
        "peak_bytes": ran.usage.peak(),
    }
