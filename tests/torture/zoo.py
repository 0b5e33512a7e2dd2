"""Try the models of torchvision and timm: a dry run and an epoch of tiny pictures, each in a child.

    python -m tests.torture.zoo                    # goes on where it was stopped; hours
    python -m tests.torture.zoo --only timm/pit_ti_224 torchvision/vit_b_16

Tried are every classifier of torchvision and the smallest model of each module of timm. A child
has bounded memory and time. Each model is a line of runs/zoo.jsonl; at the end, docs/models.md is
written from them. Exit code 70, a signal or a child that does not end makes this program fail.
"""

import argparse
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from PIL import Image

import trainer.build.prepare
import trainer.loop.fit
import trainer.loop.model_summary
import trainer.loop.resume  # with the others, before the fork
from trainer.train import main as train

PAGE, CHINESE = Path("docs/models.md"), Path("docs/models.zh.md")

MEMORY, SECONDS = 12 * 2**30, 600.0  # of a child
PICTURES, SIZE = 12, 32  # pixels; then what the refusal of this size names
CONFIG = """
dataset: {name: ImageFolder, root: ROOT}
split: {ratios: [8, 2, 2]}
transforms:
  train: [{name: Resize, size: [SIZE, SIZE]}, {name: Normalize, mean: [0.5], std: [0.25]}]
  eval: [{name: Resize, size: [SIZE, SIZE]}, {name: Normalize, mean: [0.5], std: [0.25]}]
loader: {batch_size: 4, workers: 0}
model: {name: MODEL}
optimizer: {name: SGD, lr: 0.0001}
train: {epochs: 1, device: cpu, threads: 1}
log: {show: []}
"""
BAD = (70, "time")  # beside signals, which are negative
Line = dict[str, Any]


class Outcome(NamedTuple):
    """How a child ended: an exit code, minus a signal's number, or "time"; and what it printed."""

    code: int | str
    text: str


def in_child(arguments: Sequence[str], folder: Path) -> Outcome:
    """``trainer.train`` with these arguments in a forked child of bounded memory and time."""
    output = folder / "output.txt"
    child = os.fork()
    if child == 0:
        code = 70
        try:
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            with output.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            code = train([*arguments, "--runs", str(folder / "runs")])
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    end = time.monotonic() + SECONDS
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        text = output.read_text(errors="replace") if output.exists() else ""
        if pid:
            return Outcome(os.waitstatus_to_exitcode(status), text)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Outcome("time", text)
        time.sleep(0.05)


def try_model(name: str, folder: Path) -> Line:
    """A dry run and an epoch of a model, at SIZE or as the refusal of SIZE advises."""
    began = time.monotonic()
    size, option, refusal = SIZE, "", ""
    while True:
        overrides = [option] if option else []
        command = ["--config", str(config_file(name, size, folder)), *overrides]
        dry = in_child([*command, "--dry-run"], folder)
        if dry.code != 2 or refusal:
            break
        refusal = dry.text
        size, option = advice(refusal)
        if not size:
            break
    epoch = in_child(command, folder) if dry.code == 0 else dry
    shutil.rmtree(folder / "runs", ignore_errors=True)
    bad = dry if is_bad(dry.code) or dry.code else epoch
    return {
        "model": name,
        "dry_run": dry.code,
        "epoch": epoch.code,
        "size": size,
        "option": option,
        "notes": [line[8:] for line in epoch.text.splitlines() if line.startswith("note ")],
        "refusal": refusal[-1500:],
        "text": bad.text[-3000:] if bad.code else "",
        "seconds": round(time.monotonic() - began, 1),
    }


def advice(refusal: str) -> tuple[int, str]:
    """The size to try, and an argument of the model, that a refusal names; 0 if it names none."""
    option = re.search(r"model\.\w+=(\d+|\[\d+, \d+\])", refusal)
    if option:
        return SIZE, option[0]
    found = re.search(r"\{name: Resize, size: \[(\d+), \d+\]\}", refusal)
    return (int(found[1]) if found else 0), ""


def is_bad(code: int | str) -> bool:
    """Whether an end is a fault of the trainer: a bug, a signal, or no end in time."""
    return code in BAD or (isinstance(code, int) and code < 0)


def config_file(name: str, size: int, folder: Path) -> Path:
    """The YAML of a model at an image size."""
    pictures = folder / "pictures"
    if not pictures.exists():
        generator = torch.Generator().manual_seed(0)
        for number in range(PICTURES):
            place = pictures / f"class_{number % 2}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(place)
    text = CONFIG.replace("ROOT", str(pictures)).replace("SIZE", str(size)).replace("MODEL", name)
    file = folder / "zoo.yaml"
    file.write_text(text)
    return file


def models() -> list[str]:
    """Every classifier of torchvision, and the smallest model of each module of timm."""
    ours = torchvision.models.list_models(module=torchvision.models)
    return [f"torchvision/{name}" for name in ours] + [f"timm/{name}" for name in smallest()]


def smallest() -> Iterator[str]:
    """The model with the fewest parameters of each module of timm."""
    import timm

    for module in timm.list_modules():
        counts = {name: parameters(name) for name in timm.list_models(module=module)}
        if counts:
            yield min(counts, key=lambda name: counts[name])


def parameters(name: str) -> float:
    """The parameters of a model of timm; infinite for one that can't be built without memory."""
    import timm

    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name, num_classes=2).parameters())
    except Exception:
        return float("inf")


def main(argv: Sequence[str] | None = None) -> int:
    """Try the models that have no line yet, and write the page; 1 if one ended badly."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.zoo", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("runs/zoo.jsonl"), metavar="FILE")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="try these, anew")
    parser.add_argument("--page", action="store_true", help="write the page after --only too")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # a fork of a process with OpenMP's threads could hang
    warnings.simplefilter("ignore")
    trainer.loop.model_summary.TIMED_SECONDS = 0.0  # one step is enough
    results = read(arguments.results)
    names = arguments.only or models()  # this also imports timm, for all children
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names, 1):
            if name in results and not arguments.only:
                continue
            line = try_model(name, Path(folder))
            results[name] = line
            with arguments.results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{number}/{len(names)} {name}: {said(line)}; {line['seconds']} s", flush=True)
    if arguments.page or not arguments.only:
        lines = [results[name] for name in sorted(results)]
        PAGE.write_text(page(lines))
        head = re.split(r"(?<=---\|\n)", CHINESE.read_text(encoding="utf-8"))[0]
        CHINESE.write_text(head + rows(lines), encoding="utf-8")  # its numbers: by hand
    return int(any(is_bad(results[name][kind]) for name in names for kind in ("dry_run", "epoch")))


def read(file: Path) -> dict[str, Line]:
    """The lines of the results, by model; a later line replaces an earlier one."""
    lines: Iterator[Line] = (
        map(json.loads, file.read_text().splitlines()) if file.exists() else iter(())
    )
    return {line["model"]: line for line in lines}


def said(line: Line) -> str:
    """A result in a few words."""
    size = f"{line['size']} x {line['size']}" + f" with {line['option']}" * bool(line["option"])
    return f"dry run {line['dry_run']}, epoch {line['epoch']}, {size}"


def page(lines: Sequence[Line]) -> str:
    """docs/models.md: a row for each model."""
    import timm

    works = sum(line["epoch"] == 0 for line in lines)
    versions = (
        f"torch {torch.__version__.partition('+')[0]}, "
        f"torchvision {torchvision.__version__.partition('+')[0]} and timm {timm.__version__}"
    )
    bad = [line["model"] for line in lines if is_bad(line["dry_run"]) or is_bad(line["epoch"])]
    ends = "None ends by a signal, or with exit code 70."
    if bad:
        ends = f"These end by a signal, too late or with exit code 70: {', '.join(bad)}."
    head = f"""# Models of torchvision and timm

`python -m tests.torture.zoo` tries every classifier of torchvision, and the smallest model of each
module of timm, on a CPU with `--dry-run` and with an epoch of {PICTURES} tiny pictures, and writes
this page. With {versions}, {works} of the
{len(lines)} models below work; the others are refused with a reason. {ends}

Tried first are pictures of {SIZE} x {SIZE} pixels. Where the model refuses them, the trainer says
what to type, and that is tried then: an argument of the model, or else larger pictures.

| model | works at | without the argument, or why it is refused |
|---|---|---|
"""
    return head + rows(lines)


def rows(lines: Sequence[Line]) -> str:
    """The rows of the table of models."""
    return "".join(f"| `{line['model']}` | {works_at(line)} |\n" for line in lines)


def works_at(line: Line) -> str:
    """The last two cells of a model's row."""
    text = line["text"] or line["refusal"]
    if line["epoch"] != 0:
        reason = re.search(r": model\S*: (.*)", text)
        why = {7: f"needs more than {MEMORY >> 30} GiB of memory"}.get(line["epoch"])
        return f"- | {why or (reason[1] if reason else str(line['epoch']))}"
    size = f"{line['size']} x {line['size']}"
    if not line["option"]:
        return f"{size} | "
    without = re.search(r"size: \[(\d+), \d+\]", line["refusal"])
    return f"{size} with `{line['option']}` | {f'{without[1]} x {without[1]}' if without else ''}"


if __name__ == "__main__":
    sys.exit(main())
