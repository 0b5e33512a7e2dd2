"""Times the parts of a training step with torch.profiler: a table, and a trace to look at."""

import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from datasets.temporary import unfinished
from trainer.build.job import Job
from trainer.drawing.columns import fit_columns, terminal_width
from trainer.loop.step import Batches, Task, train_steps
from trainer.process.console import Say, bar
from trainer.run.disk import make_folders
from trainer.tuning.race import batches_of, contender_of, do_steps

PLAIN_BLOCKS = 3  # without the profiler; their median counts, as other programs disturb one
WARM_UP = 3  # steps before any is counted
OPERATORS = 10  # lines of the second table
STEP_PREFIX = "step: "  # of the parts' names in the trace
PARTS = ("batch", "prepare", "forward", "loss", "backward", "check", "optimizer", "rest")


class StepCost(NamedTuple):
    """Milliseconds a step on the CPU, and of what it started on the GPU; calls a step."""

    name: str
    cpu: float
    gpu: float
    calls: float


class Parts:
    """Names the part of the step that runs: each part ends where the next one begins."""

    def __init__(self) -> None:
        self.open: Any = None

    def begin(self, name: str) -> None:
        """End the part that runs, and begin ``name``; "" begins none."""
        if self.open is not None:
            self.open.__exit__(None, None, None)
        self.open = record_function(STEP_PREFIX + name) if name else None
        if self.open is not None:
            self.open.__enter__()

    def watch(self, of: Any, **begins: str) -> Any:
        """``of``, but a call of one of these methods begins the part that is named for it."""
        return _Watched(of, self, begins)

    def named(self, task: Task, batches: Batches) -> tuple[Task, Batches]:
        """The same step, whose parts have names."""

        def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
            self.begin("loss")
            mean = task.loss(images, logits, labels)
            self.begin("backward")
            return mean

        def batches_by_part() -> Any:
            waiting = iter(batches)
            while True:
                self.begin("batch")
                batch = next(waiting, None)
                self.begin("prepare" if batch is not None else "")
                if batch is None:
                    return
                yield batch

        watched = replace(
            task,
            network=_Named(task.network, self),
            loss=loss,
            guard=self.watch(task.guard, add="check"),
            optimizer=self.watch(task.optimizer, step="optimizer"),
            scaler=self.watch(task.scaler, update="rest"),
        )
        return watched, batches_by_part()


class _Watched:
    def __init__(self, of: Any, parts: Parts, begins: dict[str, str]) -> None:
        self._of, self._parts, self._begins = of, parts, begins

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        if (part := self._begins.get(name)) is None:
            return found

        def call(*arguments: Any) -> Any:
            self._parts.begin(part)
            return found(*arguments)

        return call


class _Named(nn.Module):
    """A network whose forward pass has a name."""

    def __init__(self, network: nn.Module, parts: Parts) -> None:
        super().__init__()
        self.network, self.parts = network, parts

    def forward(self, images: Tensor) -> Tensor:
        self.parts.begin("forward")
        logits: Tensor = self.network(images)
        return logits


def profile_steps(job: Job, steps: int, folder: Path, say: Say) -> None:
    """Train for ``steps`` steps under the profiler; print tables, write FOLDER/trace.json.gz.

    The job is of no use afterwards: its weights have changed.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes lines of its own to stderr
    contender = contender_of(job, torch.get_num_threads())
    do_steps(contender, WARM_UP)
    blocks = [do_steps(contender, steps) for _ in range(PLAIN_BLOCKS)]
    plain = statistics.median(block.seconds / block.steps for block in blocks)
    lead = max(1, min(2 * job.train_loader.delivery.workers, steps))
    parts = Parts()
    task, batches = parts.named(contender.task, batches_of(contender, lead + 1 + steps))
    done = train_steps(task, batches, contender.step)
    on_gpu = job.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(
        activities=activities,
        schedule=torch.profiler.schedule(wait=lead, warmup=1, active=steps, repeat=1),
        acc_events=True,
    ) as profiler:
        for _ in bar(done, "profiling", lead + 1 + steps):
            parts.begin("")
            profiler.step()
    contender.close()
    trace = folder / "trace.json.gz"
    make_folders(folder)
    half = folder / f".{os.getpid()}-{trace.name}"
    with unfinished(half):
        profiler.export_chrome_trace(str(half))
        half.replace(trace)
    for line in cost_lines(costs_of(profiler, steps), plain, on_gpu):
        say(line)
    say(f"trace   {trace}: open it at https://ui.perfetto.dev, or in chrome://tracing")


def costs_of(profiler: profile, steps: int) -> list[StepCost]:
    """What the parts and the operators cost a step; of operators, without those that they call."""
    found = []
    for event in profiler.key_averages():
        if event.device_type.name != "CPU":
            continue  # a kernel, whose time the operator that started it has too
        is_part = event.key.startswith(STEP_PREFIX)
        cpu = event.cpu_time_total if is_part else event.self_cpu_time_total
        gpu = event.device_time_total if is_part else event.self_device_time_total
        found.append(
            StepCost(event.key, cpu / 1000 / steps, gpu / 1000 / steps, event.count / steps)
        )
    return found


def cost_lines(costs: Sequence[StepCost], plain: float, on_gpu: bool) -> Iterator[str]:
    """Yield the lines of both tables. plain: the seconds of a step without the profiler."""
    by_name = {cost.name: cost for cost in costs}
    parts = [by_name[STEP_PREFIX + name] for name in PARTS if STEP_PREFIX + name in by_name]
    whole = sum(part.cpu for part in parts)
    yield f"step    {plain * 1000:.2f} ms, {whole:.2f} ms under the profiler"
    yield from cost_rows("part", parts, whole, on_gpu)
    operators = [cost for cost in costs if not cost.name.startswith((STEP_PREFIX, "ProfilerStep"))]
    operators.sort(key=lambda cost: -(cost.gpu if on_gpu else cost.cpu))
    yield ""
    yield from cost_rows("operator", operators[:OPERATORS], whole, on_gpu)


def cost_rows(title: str, costs: Sequence[StepCost], whole: float, on_gpu: bool) -> Iterator[str]:
    """Yield the lines of a table. whole: the milliseconds of a step."""
    heads = ["ms a step", "share", "calls", *["GPU ms"] * on_gpu]
    rows = [[title, *heads]]
    for cost in costs:
        share = f"{cost.cpu / whole:.1%}" if whole else ""
        cells = [f"{cost.cpu:.3f}", share, f"{cost.calls:,.4g}", *[f"{cost.gpu:.3f}"] * on_gpu]
        rows.append([cost.name.removeprefix(STEP_PREFIX), *cells])
    yield from fit_columns(rows, terminal_width(), drop=["calls"])[0]
