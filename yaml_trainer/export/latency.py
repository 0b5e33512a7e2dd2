"""Times models beside each other on this machine, such as exported files beside PyTorch.

Models take turns, round by round, so that whatever else the machine does meets all of them. A ratio
is the median of the rounds' ratios.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from trainer.drawing.columns import fit_columns, terminal_width
from trainer.process.console import bar
from trainer.run import disk
from yaml_trainer.export.export_check import Network, note
from yaml_trainer.export.exporting import Exported, as_run_error, onnx_model, pt2_model, quiet
from yaml_trainer.export.openvino_file import openvino_model

ROUNDS = 15
BLOCK = 0.03  # seconds: so long a model is called in its turn, at least once
MAX_CALLS = 100  # of a turn
SIZES = (1, 8, 32)  # images of a call
# Instructions for products of 8-bit integers, as Linux names them, the widest first.
INT8 = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Turns:
    """The seconds of each call of a model with so many images, turn by turn.

    processor: the processor's seconds of each call, of all threads. Other programs hardly change
    them; threads that wait for work count.
    """

    size: int
    seconds: list[list[float]]
    processor: list[float] = field(default_factory=list)

    def milliseconds(self, percent: float) -> float:
        """This percentile of all calls, such as 50 or 95."""
        return 1000 * float(numpy.percentile(sum(self.seconds, []), percent))

    @property
    def processor_milliseconds(self) -> float:
        """The median of the processor's time of a call."""
        return 1000 * statistics.median(self.processor)

    @property
    def images_per_second(self) -> float:
        """The images of a call, divided by the median time of one."""
        return 1000 * self.size / self.milliseconds(50)

    def times_as_fast_as(self, other: "Turns") -> float:
        """The median over rounds of the other's time, divided by this one's."""
        rounds = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(
            statistics.median(its) / statistics.median(own) for own, its in rounds
        )


def take_turns(
    models: Mapping[str, Network], inputs: Tensor, sizes: Sequence[int] = SIZES
) -> dict[str, dict[int, Turns]]:
    """Time each model on batches of each size, made of ``inputs`` (N, C, H, W), which repeat.

    Every turn begins with a call that is not counted; the order is reversed in every other round.
    """
    batches = {size: inputs[torch.arange(size) % len(inputs)].contiguous() for size in sizes}
    turns = {name: {size: Turns(size, []) for size in sizes} for name in models}
    total = ROUNDS * len(models) * len(sizes)
    for name, size in bar(_order([*models], sizes), "timing", total, unit="turn"):
        seconds, processor = _turn(models[name], batches[size])
        turns[name][size].seconds.append(seconds)
        turns[name][size].processor.extend(processor)
    return turns


def _order(names: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[str, int]]:
    for number in range(ROUNDS):
        for size in sizes:
            yield from ((name, size) for name in (names if number % 2 else names[::-1]))


@torch.inference_mode()
def _turn(model: Network, images: Tensor) -> tuple[list[float], list[float]]:
    """The seconds of the calls of one turn, and those of the processor."""
    model(images)
    seconds, processor = list[float](), list[float]()
    while not seconds or (sum(seconds) < BLOCK and len(seconds) < MAX_CALLS):
        begin, used = time.perf_counter(), time.process_time()
        model(images)
        processor.append(time.process_time() - used)
        seconds.append(time.perf_counter() - begin)
    return seconds, processor


def about_machine(threads: int) -> dict[str, Any]:
    """What times depend on: the processor, its instructions for int8 (None: none known), threads.

    threads: those that each model computes with. load: how many threads of all programs wanted to
    run in the last minute (None: the system doesn't tell), beside the number of cores.
    """
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    text = CPUINFO.read_text(encoding="utf-8") if CPUINFO.is_file() else ""
    facts: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    name = facts.get("model name") or platform.processor() or platform.machine()
    int8 = next((flag for flag in INT8 if flag in flags), None)
    machine = {"cpu": name, "int8": int8, "threads": threads}
    return machine | {"load": load, "cores": os.cpu_count()}


def tell_if_busy(machine: Mapping[str, Any]) -> None:
    """Print a note if programs wanted to run more threads than there are cores."""
    load, cores = machine["load"], machine["cores"]
    if load and cores and load > cores:
        note(
            f"other programs keep this machine busy (load {load:g}, {cores} cores): long calls "
            "are interrupted more often than short ones, so of the times only cpu ms says much"
        )


def in_words(machine: Mapping[str, Any]) -> str:
    """``about_machine`` as a phrase."""
    threads, int8 = machine["threads"], machine["int8"] or "no instructions for int8 known"
    return f"{machine['cpu']} ({int8}), {threads} thread{'s' * (threads > 1)}"


def facts_of(turns: Mapping[str, Mapping[int, Turns]]) -> dict[str, Any]:
    """What ``take_turns`` found, as plain values; ratios are to the first model."""
    first = next(iter(turns.values()))
    return {
        name: [
            {
                "batch": size,
                "p50_ms": round(own.milliseconds(50), 4),
                "p95_ms": round(own.milliseconds(95), 4),
                "cpu_ms": round(own.processor_milliseconds, 4),
                "images_per_second": round(own.images_per_second, 1),
                "times_as_fast": round(own.times_as_fast_as(first[size]), 3),
            }
            for size, own in of_sizes.items()
        ]
        for name, of_sizes in turns.items()
    }


def lines_of(turns: Mapping[str, Mapping[int, Turns]]) -> list[str]:
    """A table of ``take_turns``: single images, and the batch size of most images a second."""
    first_name, first = next(iter(turns.items()))
    most = {
        name: max(own.values(), key=lambda t: t.images_per_second) for name, own in turns.items()
    }
    cells = [("", "p50 ms", "p95 ms", "cpu ms", "as fast", "images/s", "at batch", "as fast there")]
    for name, own in turns.items():
        one, best = own[1], most[name]
        ratio = best.images_per_second / most[first_name].images_per_second
        if best.size == most[first_name].size:
            ratio = best.times_as_fast_as(most[first_name])
        cells.append(
            (
                name,
                f"{one.milliseconds(50):.3f}",
                f"{one.milliseconds(95):.3f}",
                f"{one.processor_milliseconds:.3f}",
                f"{one.times_as_fast_as(first[1]):.2f}x",
                f"{best.images_per_second:,.0f}",
                str(best.size),
                f"{ratio:.2f}x",
            )
        )
    lines, _ = fit_columns(cells, terminal_width(), ())
    return lines


READ: dict[str, Callable[[Path], Network]] = {
    "pt2": pt2_model,
    "onnx": onnx_model,
    "int8": onnx_model,
    "openvino": openvino_model,
}


def write_benchmark(done: Exported, folder: Path) -> Path:
    """Print a table of times, and write it to NAME.benchmark.json in ``folder``.

    Files that hold weights alone are left out: PyTorch computes with them as with the run's.
    """
    models: dict[str, Network] = {"pytorch": done.trained.logits}
    for name, path in done.files.items():
        if name in READ:
            with as_run_error(f"{path.name} cannot be read back"), quiet():
                models[name] = READ[name](path)
        else:
            note(f"{name} is not timed: it holds weights, which PyTorch computes with")
    machine = about_machine(torch.get_num_threads())
    tell_if_busy(machine)
    turns = take_turns(models, done.sample.inputs)
    print(f"benchmark    {in_words(machine)}, {ROUNDS} rounds")
    for line in lines_of(turns):
        print(f"{'':<12} {line}")
    path = folder / f"{done.trained.config.name}.benchmark.json"
    facts = {"machine": machine, "rounds": ROUNDS, "models": facts_of(turns)}
    disk.write_json(path, facts)
    print(f"{'':<12} {path}; as fast: PyTorch's time of a batch divided by the file's")
    return path
