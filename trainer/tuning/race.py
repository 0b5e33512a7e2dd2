"""Contenders: jobs of one YAML with other settings each, whose steps are timed by turns."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from trainer.build.job import Job
from trainer.build.optimizer import build_average
from trainer.build.precision import build_precision
from trainer.build.prepare import prepare
from trainer.components.schedulers import Schedule
from trainer.config import Config
from trainer.input.data import Data
from trainer.loop.guard import Guard
from trainer.loop.step import Batches, Task, new_task, train_steps
from trainer.process.console import say
from trainer.tuning.memory import held, peak, watch_peak
from trainer.tuning.variants import Variant

BLOCK_SECONDS = 0.5  # least length of a timed block, or one step if that takes longer
EQUAL_SECONDS = 2.0  # of the steps whose losses are compared
MOST_EQUAL, FEWEST_EQUAL = 20, 2  # of these steps


@dataclass
class Contender:
    """A job that is ready, and where its next block begins.

    threads: of its arithmetic on the CPU. losses: of the equal steps at the start, which begin from
    the same weights and see the same batches in each contender. memory: the most bytes that it held
    in them; None if unknown. start_seconds: until it was ready, without the data.
    """

    job: Job
    task: Task
    threads: int
    start_seconds: float = 0.0
    memory: int | None = None
    losses: list[float] = field(default_factory=list)
    epoch: int = 0
    batch: int = 0
    step: int = 0
    waited: float = 0.0  # seconds that steps waited for their batches

    def close(self) -> None:
        """End its worker processes."""
        self.job.train_loader.close()
        self.job.val_loader.close()


@dataclass(frozen=True)
class Course:
    """What is alike for all contenders of a YAML.

    config_of gives the configuration with other settings; data: loaded once. weights: the YAML's
    initial ones. threads: of the YAML itself. equal: steps at the start whose losses are compared.
    block: steps that are timed at once.
    """

    config_of: Callable[[Variant], Config]
    data: Data
    weights: Mapping[str, Tensor]
    device: torch.device
    threads: int
    equal: int
    block: int

    def enter(self, settings: Variant) -> Contender:
        """Build a contender, and do its equal steps and an untimed block. Raises as ``prepare``."""
        config = without_init(self.config_of(settings))
        gc.collect()  # earlier contenders are gone
        torch.set_num_threads(self.threads)  # the last contender may have had others
        before = held(self.device)
        if config.train.compile:
            say(f"note    compiling {config.model.name}; it takes longest the first time")
        began = time.perf_counter()
        job = prepare(config, _nothing, data=self.data)
        job.model.load_state_dict(self.weights)
        job.average = build_average(config, job.model, len(job.train_loader))  # begins with them
        contender = contender_of(job, self.threads)
        contender.start_seconds = time.perf_counter() - began
        watch_peak(self.device)
        contender.losses = do_steps(contender, self.equal).losses[: self.equal]
        most = peak(self.device)
        contender.memory = None if most is None or before is None else max(most - before, 0)
        keep_weights(contender)
        if self.block > 1:
            do_steps(contender, self.block)  # such as the last batch's shape, which is new
        return contender

    def speed(self, contender: Contender) -> float:
        """Images a second in a block."""
        return do_steps(contender, self.block).speed


@dataclass(frozen=True)
class Block:
    """What a block of steps came to.

    losses: also of the steps before the timed ones, which ``do_steps`` does if there are workers.
    """

    steps: int
    images: int
    seconds: float
    waited: float
    losses: list[float]

    @property
    def speed(self) -> float:
        """Images a second."""
        return self.images / self.seconds


def without_init(config: Config) -> Config:
    """The configuration without ``model.init``, for weights that are copied afterwards.

    ``init: whiten`` reads thousands of images.
    """
    ours = {k: v for k, v in config.model.trainer_arguments.items() if k != "init"}
    model = config.model.model_copy(update={"trainer_arguments": ours})
    return config.model_copy(update={"model": model})


def _nothing(line: str) -> None:
    """Print nothing: the YAML's own job has told its notes."""


def contender_of(job: Job, threads: int) -> Contender:
    """A contender of a job that is ready to train."""
    job.train_loader.close()  # its workers run in its own blocks only
    goes_on = job.config.train.skip_non_finite > 0 or job.precision.scaler.is_enabled()
    guard = Guard(
        job.model,
        job.optimizer,
        job.config.train.clip_grad_norm,
        restore=goes_on,
        several_labels=job.data.several_labels,
    )
    own = job.config.train.threads
    return Contender(job, new_task(job, guard), threads if own == "auto" else own)


def keep_weights(contender: Contender) -> None:
    """From now on, steps do all their arithmetic with a learning rate of 0.

    So many steps from the start of training diverge in none of the contenders. An average that
    starts later in the run takes weights from now on, in each contender.
    """
    optimizer = contender.job.optimizer
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        if "step_sizes" in group:  # Rprop's least and largest step; its lr counts at the start only
            group["step_sizes"] = (0.0, 0.0)
    contender.step = max(contender.step, getattr(contender.job.average, "start", 0))
    contender.task = replace(contender.task, schedule=Schedule(optimizer))
    contender.epoch, contender.batch = contender.epoch + 1, 0


def do_steps(contender: Contender, steps: int) -> Block:
    """Train for ``steps`` steps, with loading and all that a run does between two steps.

    Worker processes are started before, and ended after it: they would take processor time from
    the blocks of others. Their first batches are not timed.
    """
    job, guard = contender.job, contender.task.guard
    torch.set_num_threads(contender.threads)
    build_precision(job.config, job.device)  # on a GPU it is a setting of the process
    lead = min(2 * job.train_loader.delivery.workers, steps)
    done = train_steps(contender.task, batches_of(contender, lead + steps), contender.step)
    for _ in islice(done, lead):
        pass
    results = guard.results(wait=True)
    contender.step += lead
    images, waited, began = 0, contender.waited, time.perf_counter()
    for number in done:
        images += number
        contender.step += 1
        results += guard.results(wait=False)
        if job.average is not None:
            job.average.after_step(contender.step)
    results += guard.results(wait=True)  # the GPU is done
    seconds = time.perf_counter() - began
    contender.close()
    losses = [result.loss for result in results]
    return Block(steps, images, seconds, contender.waited - waited, losses)


def batches_of(contender: Contender, steps: int) -> Batches:
    """The next batches, over as many epochs as it takes; counts the time that each takes to come.

    They go on at the place where the last block ended.
    """
    loader = contender.job.train_loader
    while steps:
        if contender.batch >= len(loader):
            contender.epoch, contender.batch = contender.epoch + 1, 0
        count = min(steps, len(loader) - contender.batch)
        batches = islice(loader.epoch(contender.epoch, contender.batch, contender.epoch + 1), count)
        yield from _timed(contender, batches)
        contender.batch += count
        steps -= count


def _timed(contender: Contender, batches: Batches) -> Iterator[Any]:
    began = time.perf_counter()
    for batch in batches:
        contender.waited += time.perf_counter() - began
        yield batch
        began = time.perf_counter()


def lay_out_course(job: Job, config_of: Callable[[Variant], Config]) -> tuple[Course, float]:
    """The course for the YAML's own job, and the share of a step's time that batches take.

    The job is trained for some seconds to learn how long a step takes; it is of no use afterwards.
    """
    weights = {name: tensor.to("cpu", copy=True) for name, tensor in job.model.state_dict().items()}
    contender = contender_of(job, torch.get_num_threads())
    do_steps(contender, 1)  # warms up
    known = do_steps(contender, 1)
    if known.seconds < EQUAL_SECONDS / 4:
        keep_weights(contender)
        known = do_steps(contender, max(1, int(EQUAL_SECONDS / 4 / known.seconds)))
    a_step = known.seconds / known.steps
    equal = min(max(int(EQUAL_SECONDS / a_step), FEWEST_EQUAL), MOST_EQUAL)
    equal = min(equal, job.config.train.epochs * len(job.train_loader))
    same = job.data, weights, job.device, contender.threads
    return Course(config_of, *same, equal, block_of(job, a_step)), known.waited / known.seconds


def block_of(job: Job, a_step: float) -> int:
    """The steps of a block: whole epochs, or a part with as many batches as are made at once."""
    loader = job.train_loader
    steps, epoch = max(1, -int(-BLOCK_SECONDS // a_step)), len(loader)
    if 2 * steps >= epoch:
        return -(-steps // epoch) * epoch
    at_once = 1 if loader.delivery.workers else loader.batches_at_once()
    return min(-(-steps // at_once) * at_once, epoch)


def loss_distance(losses: list[float], plain: list[float]) -> float:
    """How far the last of the losses is from ``plain``'s, relative to it."""
    return abs(losses[-1] - plain[-1]) / max(abs(plain[-1]), 1e-12)


def lines_of(settings: Mapping[str, Any]) -> list[str]:
    """The settings as overrides of a command line: "train.compile=true"."""
    return [f"{key}={_word(value)}" for key, value in settings.items()]


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
