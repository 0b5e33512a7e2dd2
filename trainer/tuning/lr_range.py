"""The learning-rate range test: the rate rises with every step until the loss diverges.

Smith, 2017, "Cyclical learning rates for training neural networks", section 3.3. As in fastai and
Lightning, the rate rises exponentially, and the loss is smoothed.
"""

import math
import statistics
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, count, islice, pairwise
from pathlib import Path

from PIL import Image

from trainer.build.job import Job
from trainer.build.optimizer import build_optimizer
from trainer.components.schedulers import Schedule
from trainer.drawing.charts import draw_lines
from trainer.drawing.pictures import png
from trainer.loop.guard import Guard
from trainer.loop.step import new_task, train_steps
from trainer.process.console import bar
from trainer.process.errors import ConfigError, NonFiniteLoss
from trainer.run.disk import write_file

SMOOTHING = 0.9  # decay of the moving mean: about the last ten steps
DIVERGED = 4.0  # the test ends if the smoothed loss is so many times its least
FEWEST = 10  # steps needed for a suggestion
LEARNED = 0.02  # the loss must fall by this fraction of the first loss
NOISE = 1.5  # and by so many times the difference between batches: less may be chance
FALLEN = 0.95  # after this fraction of the fall, a higher rate brings next to nothing


class NoSuggestion(NonFiniteLoss):
    """A test from which no learning rate can be read."""


@dataclass(frozen=True)
class RangeTest:
    """The results of a range test: rate, batch loss and smoothed loss of each step.

    own: the rate that the YAML sets. diverged: whether the test ended before its last step.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    own: float
    diverged: bool


def sweep_rates(job: Job, low: float, high: float, steps: int) -> RangeTest:
    """Train ``job`` for at most ``steps`` steps at rates from ``low`` to ``high``.

    The YAML's optimizer is built anew, without a scheduler; parameter groups keep the ratios of
    their rates. The test ends if the smoothed loss exceeds DIVERGED times its least, or if loss or
    gradient is not finite. The job cannot be used afterwards. Raises ConfigError for Rprop.
    """
    if job.config.optimizer.name == "Rprop":
        message = "takes its rate for the first step only and adapts it by itself; no need to find"
        raise ConfigError([job.config.fault("optimizer.name", f"Rprop {message} one")])
    optimizer = build_optimizer(job.config, job.model)  # a scheduler has set the rates of job's own
    groups = optimizer.param_groups
    own = float(optimizer.defaults["lr"])  # a group may have another rate
    shares = [float(group["lr"]) / own if own else 1.0 for group in groups]
    rates = [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]
    # This guard reads every step's results: a NaN ends the test, and is no error here.
    guard = Guard(
        job.model,
        optimizer,
        job.config.train.clip_grad_norm,
        lag=1,
        several_labels=job.data.several_labels,
    )
    task = replace(new_task(job, guard), optimizer=optimizer, schedule=Schedule(optimizer))
    epochs = (job.train_loader.epoch(epoch) for epoch in count())
    done = train_steps(task, islice(chain.from_iterable(epochs), steps), 0)
    losses: list[float] = []
    smoothed: list[float] = []
    mean, diverged = 0.0, False
    for rate in bar(rates, "learning rate", steps, unit="batch"):
        for group, share in zip(groups, shares, strict=True):
            group["lr"] = rate * share
        next(done)
        result = guard.results(wait=True)[-1]
        if not (math.isfinite(result.loss) and (math.isfinite(result.norm) or result.is_overflow)):
            diverged = True
            break
        losses.append(result.loss)
        mean = SMOOTHING * mean + (1 - SMOOTHING) * result.loss
        smoothed.append(mean / (1 - SMOOTHING ** len(losses)))  # the mean began at 0
        if smoothed[-1] > DIVERGED * min(smoothed):
            diverged = True
            break
    return RangeTest(rates[: len(losses)], losses, smoothed, own, diverged)


def suggest(test: RangeTest) -> float:
    """Return half the rate at which the smoothed loss had done 95 % of its fall, before any jump.

    Rule and constants were chosen on seven pairs of model and optimizer with three seeds each, none
    held out: 16 of the 21 rates were within a factor of three of the best rate of short trainings
    (0.13 to 2.6 times it). A tenth of the rate of the least loss was up to 15 times too low, the
    middle of the fall (fastai's "valley") 20 to 700 times. More than 100 steps give a lower rate.
    Raises NoSuggestion, which says what to try.
    """
    steps_done = len(test.losses)
    if not steps_done:
        raise NoSuggestion(
            "no suggestion: loss or gradient is no number in the first step already. "
            "Look at transforms (Normalize?), model and loss, not at the rate."
        )
    if steps_done <= FEWEST:
        raise NoSuggestion(
            f"no suggestion: the loss diverged after {steps_done} steps, at a rate of "
            f"{test.rates[-1]:.2g}. Try a smaller --from, and look at the inputs (Normalize?)."
        )
    first, end = first_loss(test), max(calm_until(test), FEWEST + 1)
    least = min(test.smoothed[FEWEST:end])  # before FEWEST steps it is hardly a mean
    if first - least <= chance(test, end):
        more = "more --steps" if test.diverged else "a higher --to, more --steps"
        raise NoSuggestion(
            f"no suggestion: the loss fell nowhere from {test.rates[0]:.2g} to "
            f"{test.rates[end - 1]:.2g} more than by chance ({first:.4g} at first, {least:.4g} at "
            f"best). Try {more} or a larger loader.batch_size; or labels and loss do not fit."
        )
    enough = max(first - FALLEN * (first - least), least)
    reached = (step for step in range(FEWEST, end) if test.smoothed[step] <= enough)
    return test.rates[next(reached)] / 2


def first_loss(test: RangeTest) -> float:
    """Return the mean loss of the first tenth of the steps, which learn next to nothing."""
    head = test.losses[: max(len(test.losses) // 10, FEWEST // 2)]
    return sum(head) / len(head)


def chance(test: RangeTest, steps: int) -> float:
    """Return the fall of the smoothed loss in the first ``steps`` steps that may be by chance."""
    losses = test.losses[:steps]
    apart = [abs(after - before) for before, after in pairwise(losses)]
    return max(LEARNED * first_loss(test), NOISE * statistics.median(apart))


def calm_until(test: RangeTest) -> int:
    """Return the number of steps before the first batch with more than twice the first loss.

    After such a jump the loss may fall again at rates too high for any run: the model has learned
    a few images by heart, or all its units are dead. Jumps before anything was learned do not
    count: they come from small batches, mixed images or class weights.
    """
    first = first_loss(test)
    learned = False
    for step, (loss, mean) in enumerate(zip(test.losses, test.smoothed, strict=True)):
        learned = learned or (step >= FEWEST and first - mean > chance(test, step + 1))
        if learned and loss > 2 * first:
            return step
    return len(test.losses)


def draw_range(test: RangeTest, suggestion: float | None) -> Image.Image:
    """Draw the losses over the rate, with marks at the suggested rate and the YAML's own."""
    # A diverging loss would flatten all the rest, so it is cut at the top.
    top = 1.5 * max(test.smoothed[:FEWEST]) if test.smoothed else 1.0
    each = [min(loss, top) for loss in test.losses]
    mean = [min(loss, top) for loss in test.smoothed]
    curves = {
        "each batch": list(zip(test.rates, each, strict=True)),
        "smoothed": list(zip(test.rates, mean, strict=True)),
    }
    marks = [] if suggestion is None else [(suggestion, f"suggested {suggestion:.2g}")]
    if test.own > 0:
        marks += [(test.own, f"the YAML's {test.own:.3g}")]
    return draw_lines({"loss": curves}, "learning rate", marks, log_x=True, faint=["each batch"])


def find_rate(
    job: Job, low: float, high: float, steps: int, output: Path, say: Callable[[str], None]
) -> float:
    """Do the test, write its picture, print and return the suggested rate; raises NoSuggestion."""
    output.parent.mkdir(parents=True, exist_ok=True)  # so that this fails before the test
    with closing(job.train_loader), closing(job.val_loader):
        test = sweep_rates(job, low, high, steps)
    try:
        suggestion = suggest(test)
    except NoSuggestion as error:
        if test.losses:
            write_file(output, png(draw_range(test, None)))
            error.add_note(f"the curve is in {output}")
        raise
    write_file(output, png(draw_range(test, suggestion)))
    end = "where the loss diverged" if test.diverged else "without divergence"
    say(f"test    {len(test.losses)} steps, from {low:.2g} to {test.rates[-1]:.2g}, {end}")
    say(f"suggest {suggestion:.2g}; {compared(suggestion, test.own)}")
    say(f"picture {output}")
    return suggestion


def compared(suggestion: float, own: float) -> str:
    """Return a sentence on how the suggestion compares with the YAML's own rate."""
    if own <= 0:
        return "the YAML has 0"
    times = max(suggestion / own, own / suggestion)
    if times < 4:
        return f"the YAML has {own:.3g}: such a test cannot tell them apart"
    return f"the YAML has {own:.3g}: {times:,.3g} times {'less' if suggestion > own else 'more'}"
