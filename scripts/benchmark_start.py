"""The cases "start" and "ranks": seconds from a process's start to its first step, and memory.

All runs are ``python -m trainer.train`` in processes of their own. TensorBoard's first point tells
when the first step was done. What a run on a few pictures takes, imports above all, is told too.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from datasets.rmb import RMB
from scripts.benchmark_children import ROOT, points_of_run, run_python
from scripts.benchmark_photos import BATCH, QUALITY, config_of_photos, make_photos
from trainer.process.console import Say
from trainer.process.errors import RunError

SMALL, SMALL_CLASSES = 32, 10
PARTS = {"train": 1.0, "val": 0.02, "test": 0.02}  # images next to those of train
FEW = 20  # images of each class and part
CACHES_OF_A_START = ("auto", "store")
CACHES_OF_RANKS = ("ram", "store")
RANKS = (1, 4)
SHOWN = ["log.show=[scalars]", "log.images=0", "log.every=1st"]


def make_small(folder: Path, count: int, say: Say) -> Path:
    """About ``count`` JPEGs of 32 x 32 noise in ``folder``/PART/CLASS; returns ``folder``."""
    say(f"start    makes {count:,} JPEGs of {SMALL} x {SMALL}")
    jobs = []
    for part, share in PARTS.items():
        for label in range(SMALL_CLASSES):
            into = folder / part / f"class{label}"
            into.mkdir(parents=True)
            each = round(count * share / sum(PARTS.values()) / SMALL_CLASSES)
            jobs.append((into, max(each, FEW // 10)))

    def write(number: int) -> None:
        into, each = jobs[number]
        drawn = torch.Generator().manual_seed(number)
        cells = torch.randint(0, 256, (each, 8, 8, 3), dtype=torch.uint8, generator=drawn)
        for image, array in enumerate(cells.numpy()):
            patch = Image.fromarray(array).resize((SMALL, SMALL), Image.Resampling.BICUBIC)
            patch.save(into / f"{image:06d}.jpg", quality=QUALITY)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(len(jobs))))
    return folder


def config_of_small(root: Path, device: torch.device) -> dict[str, Any]:
    """LeNet on the small images, for one epoch."""
    normalise = {"name": "Normalize", "mean": [0.5] * 3, "std": [0.25] * 3}
    crop = {"name": "RandomCrop", "size": SMALL, "padding": 4}
    return {
        "name": "small",
        "dataset": {"name": "ImageFolder", "root": str(root), "layout": "parts"},
        "transforms": {"train": [crop, normalise], "eval": [normalise]},
        "loader": {"batch_size": 128},
        "model": {"name": "LeNet"},
        "optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.9},
        "train": {"epochs": 1, "device": str(device)},
    }


def measure_start(
    files: int, rmb: str, device: torch.device, runs: Path, say: Say
) -> list[dict[str, Any]]:
    """A row for each data set and kind of keeping: first and second start, and a few pictures'."""
    few = make_small(Path(tempfile.mkdtemp(dir=runs)), FEW * SMALL_CLASSES, lambda _: None)
    many = make_small(Path(tempfile.mkdtemp(dir=runs)), files, say)
    notes = RMB(rmb, draw_if_absent=True)
    few_count, many_count = (sum(1 for _ in folder.glob("*/*/*")) for folder in (few, many))
    small = runs / "small.yaml"
    small.write_text(json.dumps(config_of_small(many, device)), encoding="utf-8")
    alexnet = [str(ROOT / "configs" / "alexnet_rmb.yaml"), f"train.device={device}"]
    alexnet += ["train.epochs=1"]
    kinds: list[tuple[str, list[str], list[str], int, int]] = [
        (
            f"{many_count:,} files of {SMALL} x {SMALL}, LeNet",
            [str(small)],
            [str(small), f"dataset.root={few}"],
            many_count,
            SMALL,
        ),
        (
            f"{len(notes)} photographs, AlexNet at 224",
            [*alexnet, f"dataset.root={notes.root.resolve()}"],
            [*alexnet, f"dataset={{name: ImageFolder, root: '{few}', layout: parts}}"],
            len(notes),
            256,  # that configuration keeps images of 256 x 256
        ),
    ]
    for name in notes.ids:  # so that the first start finds them in the system's memory, as others
        (notes.root / name).read_bytes()
    rows = []
    for data, words, with_few, count, side in kinds:
        for cache in CACHES_OF_A_START:
            row: dict[str, Any] = {"data": data, "cache": cache, "files": count}
            row["more_pixels"] = (count - few_count) * 3 * side**2
            for name, chosen in (("few", with_few), ("all", words)):
                keep = f"loader.cache={cache}"
                if name == "few":  # for the imports, not measured
                    run_once([], [*chosen, keep], runs / "store", runs)
                found = two_starts([*chosen, keep], runs)
                if found is None:
                    break
                row[name] = found
                for which, began in zip(("first", "second"), found, strict=True):
                    say(f"start    {data}, cache {cache}, {name}, {which}: {in_words(began)}")
            if "all" in row:
                rows.append(row)
            else:
                say(f"skipped  {data}: the configuration does not allow loader.cache={cache}")
    return rows


def two_starts(words: Sequence[str], runs: Path) -> list[dict[str, Any]] | None:
    """A start with an empty store, and one with the store that it left.

    Returns None if ``loader.cache`` is refused.
    """
    store = Path(tempfile.mkdtemp(dir=runs))
    try:
        found = [run_once([], words, store, runs) for _ in range(2)]
        return None if None in found else [began for began in found if began]
    finally:
        shutil.rmtree(store)


def measure_ranks(
    photos: Path, device: torch.device, runs: Path, rmb: str, say: Say
) -> list[dict[str, Any]]:
    """A row for each number of ranks and kind of keeping, on all photographs and on a batch."""
    few = make_photos(Path(tempfile.mkdtemp(dir=runs)), BATCH, rmb, lambda _: None)
    rows = []
    for cache in CACHES_OF_RANKS:
        for ranks in RANKS:
            row: dict[str, Any] = {"ranks": ranks, "cache": cache}
            for name, root in (("few", few), ("all", photos)):
                config = config_of_photos(root, device, 1)
                config["model"] = {"name": "LeNet"}
                config["transforms"]["train"][0]["size"] = SMALL  # what is kept is not cropped
                config["transforms"]["eval"][1]["size"] = SMALL
                file = runs / f"ranks_{name}.yaml"
                file.write_text(json.dumps(config), encoding="utf-8")
                launch = ["-m", "torch.distributed.run", "--standalone"]
                launch += ["--nproc-per-node", str(ranks)]
                words = [str(file), f"loader.cache={cache}"]
                store = Path(tempfile.mkdtemp(dir=runs))
                began = run_once(launch, words, store, runs)
                shutil.rmtree(store)
                if began is None:
                    break
                row[name] = began
                row[f"pixels, {name}"] = pixels_below(root / "train")
                say(f"ranks    {ranks} of cache {cache}, {name}: {in_words(began)}")
            if "all" not in row:
                say(f"skipped  ranks: the configuration does not allow loader.cache={cache}")
                break
            rows.append(row)
    return rows


def pixels_below(folder: Path) -> int:
    """Bytes of the decoded images in ``folder``/CLASS."""
    total = 0
    for path in folder.glob("*/*"):
        with Image.open(path) as image:
            total += 3 * image.width * image.height
    return total


def run_once(
    launch: Sequence[str], words: Sequence[str], store: Path, runs: Path
) -> dict[str, Any] | None:
    """Train for an epoch; returns the seconds to the end of the first step, and the peak memory.

    words are a configuration and overrides. Returns None if ``loader.cache`` is refused; raises
    RunError if the run fails.
    """
    folder = Path(tempfile.mkdtemp(dir=runs))
    try:
        config, *overrides = words
        command = ["-m", "trainer.train"] if not launch else [*launch, "-m", "trainer.train"]
        place = ["--config", config, "--runs", str(folder / "runs")]
        ran = run_python([*command, *place, *overrides, *SHOWN], folder, store)
        if ran.refuses_cache:
            return None
        ran.require_done()
        points = points_of_run(folder / "runs", "train/loss")
        if not points:
            raise RunError(f"{config}: the run logged no step")
        return {
            "seconds": points[0][0] - ran.began,
            "peak_bytes": ran.usage.peak(),
        }
    finally:
        shutil.rmtree(folder)


def in_words(began: dict[str, Any]) -> str:
    """A start in a line of progress."""
    peak = began["peak_bytes"]
    memory = "unknown" if peak is None else f"{peak / 2**20:,.0f} MiB"
    return f"{began['seconds']:.2f} s to the first step, {memory}"
