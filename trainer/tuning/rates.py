"""Short trainings at several learning rates, from the same weights: the best one is suggested.

A range test (Smith, 2017, "Cyclical learning rates for training neural networks", section 3.3)
reads one noisy curve. Here each rate has trainings of its own, with the YAML's scheduler passed
through in fewer steps. All are judged on the same images, so the noise of batches decides nothing.
An average of weights plays no part.
"""

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainer.build.job import Job
from trainer.build.optimizer import build_optimizer, build_schedule_of
from trainer.components.schedulers import Schedule
from trainer.config import Config
from trainer.config.construct import rate_of
from trainer.drawing.charts import draw_lines
from trainer.drawing.pictures import png
from trainer.input.data import build_pipelines
from trainer.loop.evaluate import each_loss, predict
from trainer.loop.guard import Guard
from trainer.loop.step import new_task, train_steps
from trainer.process.console import Say, bar, duration
from trainer.process.errors import ConfigError, NonFiniteLoss
from trainer.run.disk import write_file
from transforms.keyed import permutation

STEP = 10**0.5  # the largest factor between two neighbouring rates
LOOK = 5  # the first look at a rate takes this fraction of --steps
FRACTION = 30  # a trial takes this fraction of a training, but at least --steps
LONGEST = 10  # and at most so many times --steps
TRIED_LONGER = 3  # trials become so many times longer if none has learned anything
TRAININGS = 8  # trials in all, as a rule
ORDERS = 2  # of the batches, for the rates that count
PROBE = 512  # images of train and of val that judge, at most
PROBE_NUMBERS = 2**25  # pixels of each of both, at most
FEW_HELD = 20  # images of val below which those of train decide whether anything was learned
SURE = 3.0  # standard errors by which answers must be better than the best constant answer
EQUAL = 0.02  # a lower rate is as good if its loss is higher by this share of chance at most
CLIP = 2.0  # times the loss of a constant answer: the most that one image counts


class NoSuggestion(NonFiniteLoss):
    """Trainings that tell no learning rate from another; the message says what to try."""


@dataclass(frozen=True)
class Probe:
    """The images that judge: those of train come first, then ``held`` of val.

    constant (N,): the loss of each image if the answer is the same for all, the best of these.
    """

    batches: list[tuple[Tensor, Tensor]]
    held: int
    constant: Tensor

    @property
    def chance(self) -> float:
        """The mean loss of the best constant answer."""
        return self.constant.mean().item()


@dataclass
class Tried:
    """What trainings of ``steps`` steps at ``rate`` came to.

    losses: for each order of the batches the losses (N,) of the probe's images.
    """

    rate: float
    steps: int
    losses: list[Tensor] = field(default_factory=list)

    @property
    def mean(self) -> Tensor:
        """(N,) over the orders."""
        return torch.stack(self.losses).mean(0)

    @property
    def loss(self) -> float:
        """The mean over all images and orders."""
        return self.mean.mean().item()

    @property
    def spread(self) -> float:
        """The largest difference between two orders."""
        each = [losses.mean().item() for losses in self.losses]
        return max(each) - min(each)


@dataclass(frozen=True)
class RateSearch:
    """What was tried: a first look at rates far apart, then trials near the best of them."""

    probe: Probe
    first: list[Tried]
    trials: list[Tried]  # by rate
    own: float


class Shortened(Schedule):
    """The schedule of a training of ``whole`` steps, passed through in ``steps`` steps.

    Each step has the rates of the training's step at the same fraction of its length.
    ReduceLROnPlateau never reduces here.
    """

    def __init__(self, schedule: Schedule, whole: int, epoch: int, steps: int) -> None:
        self.inner, self.whole, self.epoch, self.length = schedule, whole, epoch, steps
        self.steps = self.passed = 0

    def after_step(self) -> None:
        """Set the learning rates of the next step."""
        self.steps += 1
        waits = isinstance(self.inner.scheduler, ReduceLROnPlateau)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns if the first step was not taken
            while self.passed < self.steps * self.whole // self.length:
                self.passed += 1
                self.inner.after_step()
                if self.passed % self.epoch == 0 and not waits:
                    self.inner.after_epoch(0.0)


def rate_key(config: Config) -> str:
    """The setting of the YAML that decides the learning rate."""
    top = config.scheduler.arguments.get("max_lr") if config.scheduler else None
    return "optimizer.lr" if top is None else "scheduler.max_lr"


def own_rate(config: Config) -> float:
    """The rate that the YAML sets. Raises ConfigError where there is none to find."""
    if config.optimizer.name == "Rprop":
        message = "takes its rate for the first step only and adapts it by itself; no need to find"
        raise ConfigError([config.fault("optimizer.name", f"Rprop {message} one")])
    if rate_key(config) == "optimizer.lr":
        return rate_of(config.optimizer)
    assert config.scheduler is not None
    top = config.scheduler.arguments["max_lr"]
    if isinstance(top, int | float):
        return float(top)
    message = "sets several rates, and one is sought; write one number"
    raise ConfigError([config.fault("scheduler.max_lr", message)])


def at_rate(config: Config, rate: float) -> Config:
    """The configuration with this rate, as ``rate_key``'s override gives it."""
    section, name = rate_key(config).split(".")
    component = getattr(config, section)
    arguments = {**component.arguments, name: rate}
    return config.model_copy(
        update={section: component.model_copy(update={"arguments": arguments})}
    )


def take_probe(job: Job) -> Probe:
    """Images of train and val as in evaluation, the same for all trials."""
    pipeline = build_pipelines(job.config, len(job.data.classes))["eval"]
    layout = job.train_loader.delivery.channels_last
    most = max(FEW_HELD, min(PROBE, PROBE_NUMBERS // math.prod(job.input_shape)))
    batches: list[tuple[Tensor, Tensor]] = []
    for name in ("train", "val"):
        subset = job.data.subsets[name]
        rows = permutation(len(subset), job.config.seed, 0)[:most].sort().values
        if name == "train":
            subset = replace(subset, pipeline=pipeline, images=None)
        for some in torch.split(rows, job.val_loader.batch_size):
            batches.append(subset.batch(some, 0, job.device, layout))
    held = min(most, len(job.data.subsets["val"]))
    labels = torch.cat([labels for _, labels in batches])
    constant = torch.zeros(len(job.data.classes), device=job.device, requires_grad=True)
    solver = torch.optim.LBFGS([constant], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> float:
        solver.zero_grad()
        loss: Tensor = job.loss_fn(constant.expand(len(labels), -1), labels)
        if not loss.isfinite():
            raise NoSuggestion("no suggestion: the loss of a constant answer is no number already")
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    solver.step(closure)  # type: ignore[no-untyped-call]
    answers = constant.detach().expand(len(labels), -1)
    return Probe(batches, held, each_loss(job.loss_fn, answers, labels))


def train_at(
    job: Job, weights: Mapping[str, Tensor], probe: Probe, trial: Tried, order: int
) -> Iterator[int]:
    """Train ``trial.steps`` steps from ``weights``; yields after each; adds the losses at the end.

    ``order``: a number that gives other batches. A loss or gradient that is not finite ends it, and
    so do the answers; then each image counts the most that it can.
    """
    job.model.load_state_dict(weights)
    config, an_epoch = at_rate(job.config, trial.rate), len(job.train_loader)
    epochs = config.train.epochs
    optimizer = build_optimizer(config, job.model)
    schedule = build_schedule_of(config, optimizer, an_epoch)
    several = job.data.several_labels
    clip = config.train.clip_grad_norm
    guard = Guard(job.model, optimizer, clip, lag=1, several_labels=several)
    task = replace(
        new_task(job, guard),
        optimizer=optimizer,
        schedule=Shortened(schedule, epochs * an_epoch, an_epoch, trial.steps),
    )
    most = (CLIP * probe.constant).clamp(min=CLIP * probe.chance)
    each = most
    read = (job.train_loader.epoch(epoch) for epoch in count(order * epochs))
    for _ in train_steps(task, islice(chain.from_iterable(read), trial.steps), 0):
        result = guard.results(wait=True)[-1]
        if not (math.isfinite(result.loss) and (math.isfinite(result.norm) or result.is_overflow)):
            break
        yield 1
    else:
        logits, labels = predict(job.model, probe.batches, job.precision)
        each = each_loss(job.loss_fn, logits, labels)
    trial.losses.append(each.nan_to_num(math.inf).minimum(most))


def rates_between(low: float, high: float) -> list[float]:
    """Rates from ``low`` to ``high``, at least three, with equal factors of at most STEP."""
    parts = max(math.ceil(math.log(high / low) / math.log(STEP) - 1e-6), 2)
    return [low * (high / low) ** (part / parts) for part in range(parts + 1)]


class Finder:
    """Does the trainings of a search; they all begin from the job's first weights."""

    def __init__(self, job: Job, low: float, high: float, steps: int, say: Say) -> None:
        self.own = own_rate(job.config)
        self.job, self.rates, self.least, self.say = job, rates_between(low, high), steps, say
        self.weights = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
        self.probe = take_probe(job)
        self.whole = job.config.train.epochs * len(job.train_loader)
        self.steps = min(self.whole, max(steps, min(self.whole // FRACTION, LONGEST * steps)))

    def search(self) -> RateSearch:
        """Look at all rates, then try those near the best; longer, if none has learned anything."""
        looks = sorted({*range(0, len(self.rates), 2), len(self.rates) - 1})
        short = max(min(self.whole, self.least // LOOK), 1)
        began = time.monotonic()
        first = [self.trained(Tried(self.rates[looks[0]], short))]
        a_step = (time.monotonic() - began) / short
        self.tell(a_step, len(looks), short)
        first += [self.trained(Tried(self.rates[i], short)) for i in looks[1:]]
        lead = looks[min(range(len(looks)), key=lambda i: first[i].loss)]
        trials = self.climb(lead, self.steps)
        longer = min(self.whole, TRIED_LONGER * self.steps)
        if longer > self.steps and not any(learned(trial, self.probe) for trial in trials):
            self.say(f"longer  nothing was learned in {self.steps:,} steps; {longer:,} are tried")
            trials = self.climb(lead, longer)
        return RateSearch(self.probe, first, trials, self.own)

    def tell(self, a_step: float, looks: int, short: int) -> None:
        """Say what will be done, and how long it takes."""
        seconds = (looks * short + TRAININGS * self.steps) * a_step
        trials = f"about {TRAININGS} trainings of {self.steps:,} near the best"
        self.say(f"plan    {looks} trainings of {short:,} steps, then {trials}")
        training = f"a training has {self.whole:,}, about {duration(self.whole * a_step)}"
        self.say(f"time    about {duration(seconds)} in all; {training}")

    def climb(self, lead: int, steps: int) -> list[Tried]:
        """Trials from rate number ``lead`` to the best that has a worse one on both sides.

        A few steps flatter high rates, so two lower ones are tried, too. The best and its
        neighbours have ORDERS orders of batches each.
        """
        trials: dict[int, Tried] = {}
        wanted = [i for i in range(lead - 2, lead + 2) if 0 <= i < len(self.rates)]
        while wanted:
            for i in wanted:
                self.trained(trials.setdefault(i, Tried(self.rates[i], steps)))
            best = min(trials, key=lambda i: (trials[i].loss, i))
            near = [i for i in (best - 1, best, best + 1) if 0 <= i < len(self.rates)]
            wanted = [i for i in near if i not in trials]
            wanted = wanted or [i for i in near if len(trials[i].losses) < ORDERS]
        return [trials[i] for i in sorted(trials)]

    def trained(self, trial: Tried) -> Tried:
        """Train with the next order of batches."""
        steps = train_at(self.job, self.weights, self.probe, trial, len(trial.losses))
        for _ in bar(steps, f"lr {trial.rate:.2g}", trial.steps, unit="batch"):
            pass
        return trial


def learned(trial: Tried, probe: Probe) -> bool:
    """Whether the answers are better than the best constant one by more than chance.

    Both for images of train and of val: labels that follow from nothing can be known by heart.
    Less than FEW_HELD images of val need only be answered better in the mean.
    """
    gain = probe.constant - trial.mean
    seen, held = gain[: len(gain) - probe.held], gain[len(gain) - probe.held :]
    return is_sure(seen) and (is_sure(held) if probe.held >= FEW_HELD else held.mean().item() > 0)


def is_sure(gain: Tensor) -> bool:
    """Whether the mean of ``gain`` (N,) is more than SURE standard errors above 0."""
    error = gain.std().item() / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    return gain.mean().item() > SURE * error


def suggest(found: RateSearch) -> Tried:
    """The best trial, or one at a lower rate that is as good. Raises NoSuggestion."""
    if all(trial.loss >= CLIP * found.probe.chance * 0.999 for trial in found.first):
        raise NoSuggestion(
            "no suggestion: the answers are no numbers, or all wrong, at each rate after a few "
            "steps already. Look at transforms (Normalize?), model and loss, not at the rate."
        )
    sound = [trial for trial in found.trials if len(trial.losses) >= ORDERS]
    best = min(sound, key=lambda trial: trial.loss)
    chance, steps = found.probe.chance, best.steps
    if not learned(best, found.probe):
        raise NoSuggestion(
            f"can't tell: no rate from {found.first[0].rate:.2g} to {found.first[-1].rate:.2g} "
            f"learned more in {steps:,} steps than a constant answer knows (loss {best.loss:.4g}, "
            f"constant {chance:.4g}). Try more --steps; or labels and images do not fit."
        )
    for lower in reversed([trial for trial in sound if trial.rate < best.rate]):
        if lower.loss <= best.loss + EQUAL * chance and learned(lower, found.probe):
            best = lower
    alone = [Tried(best.rate, steps, [losses]) for losses in best.losses]
    if not all(learned(order, found.probe) for order in alone):
        each = " and ".join(f"{order.loss:.4g}" for order in alone)
        raise NoSuggestion(
            f"can't tell: at the best rate, {best.rate:.2g}, only some orders of the same batches "
            f"learned anything (loss {each} after {steps:,} steps, of a constant answer "
            f"{chance:.4g}). Try more --steps, or a scheduler with warmup."
        )
    middle = (best.loss + chance) / 2
    for other in found.trials:
        low, high = sorted((best.rate, other.rate))
        between = [trial for trial in found.trials if low < trial.rate < high]
        if other.loss < middle and any(trial.loss > middle for trial in between):
            raise NoSuggestion(
                f"can't tell: {best.rate:.2g} and {other.rate:.2g} train, and a rate between them "
                f"does not, after {steps:,} steps. Try more --steps."
            )
    return best


def draw_search(found: RateSearch, suggestion: float | None) -> Image.Image:
    """Draw the losses over the rate, with marks at the suggested rate and the YAML's own."""
    held = found.probe.held
    top = 1.2 * max(found.probe.chance, *(trial.loss for trial in found.trials))
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, trials in (("first look", found.first), ("trials", found.trials)):
        steps = f", {trials[0].steps:,} steps" if trials else ""
        for part, images in (("train", slice(None, -held)), ("val", slice(-held, None))):
            points = [(t.rate, min(t.mean[images].mean().item(), top)) for t in trials]
            curves[f"{name}, {part}{steps}"] = points
    marks = [] if suggestion is None else [(suggestion, f"suggested {suggestion:.2g}")]
    if found.own > 0:
        marks += [(found.own, f"the YAML's {found.own:.3g}")]
    faint = [name for name in curves if name.startswith("first")]
    return draw_lines({"loss": curves}, "learning rate", marks, log_x=True, faint=faint)


def find_rate(job: Job, limits: tuple[float, float], steps: int, output: Path, say: Say) -> float:
    """RateSearch, write the picture, print and return the suggested rate; raises NoSuggestion."""
    output.parent.mkdir(parents=True, exist_ok=True)  # so that this fails before the trainings
    with closing(job.train_loader), closing(job.val_loader):
        finder = Finder(job, *limits, steps, say)
        found = finder.search()
    for line in trial_lines(found):
        say(line)
    try:
        best = suggest(found)
    except NoSuggestion as error:
        write_file(output, png(draw_search(found, None)))
        error.add_note(f"the losses are drawn in {output}")
        raise
    write_file(output, png(draw_search(found, best.rate)))
    say(f"suggest {best.rate:.2g}; {compared(best.rate, found.own)}")
    if found.probe.held < FEW_HELD:
        say(f"note    val has {found.probe.held} images: those of train decided")
    if best.rate in (finder.rates[0], finder.rates[-1]):
        say("note    it is the end of the range; --from and --to make the range wider")
    say(f"picture {output}")
    return best.rate


def trial_lines(found: RateSearch) -> list[str]:
    """A line for each trial."""
    held = found.probe.held
    chance = f"a constant answer has a loss of {found.probe.chance:.4g}"
    lines = [f"trials  {found.trials[0].steps:,} steps each; {chance}"]
    for trial in found.trials:
        seen, val = trial.mean[:-held].mean().item(), trial.mean[-held:].mean().item()
        twice = f", orders differ by {trial.spread:.2g}" if len(trial.losses) > 1 else ""
        lines.append(f"        {trial.rate:<8.2g} loss {seen:.4g} train, {val:.4g} val{twice}")
    return lines


def compared(suggestion: float, own: float) -> str:
    """Return a sentence on how the suggestion compares with the YAML's own rate."""
    if own <= 0:
        return "the YAML has 0"
    times = max(suggestion / own, own / suggestion)
    if times < STEP:
        return f"the YAML has {own:.3g}: the trials cannot tell them apart"
    return f"the YAML has {own:.3g}: {times:,.3g} times {'less' if suggestion > own else 'more'}"
