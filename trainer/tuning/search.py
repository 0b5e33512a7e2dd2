"""Finds the settings that are faster than the YAML's own, by timing them in turns.

A setting counts as faster if the lower quartile of its ratios to the YAML is above FASTER. Each
ratio is of two blocks of steps that ran one after the other, so that other programs on the machine
slow both. What is advised was measured twice, and was faster both times.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from trainer.build.prepare import prepare
from trainer.config import Config
from trainer.loop.summary import introduce
from trainer.process.console import Say, bar
from trainer.process.errors import (
    ComponentError,
    ConfigError,
    NonFiniteLoss,
    OutOfMemory,
    RunError,
    in_plain_words,
)
from trainer.tuning.race import Contender, Course, lay_out_course, lines_of, loss_distance
from trainer.tuning.timer import at_most
from trainer.tuning.variants import Variant, is_compiled, variants_of

FASTER = 1.03  # the lower quartile of the ratios of what is advised
ROUNDS = 9  # in each of which every contender runs one block
ENOUGH = 5  # rounds from which a quartile says something
CONFIRMED = 2  # measurements, of ENOUGH rounds each, of what is advised
LOSING = 3  # rounds after which a contender that lost all of them is given up
IMPOSSIBLE = (ConfigError, ComponentError, RunError, OutOfMemory, NonFiniteLoss)
Now = Callable[[], float]


@dataclass
class Measured:
    """What is known of some settings: speeds of each round, images a second, and of the YAML.

    times: how often they were measured in ENOUGH rounds; ``speeds`` are of the last time. failed:
    why they could not be measured. distance: of the loss, from the YAML's, relative to it.
    start_seconds: until the job was ready, without the data. remark: why something faster is of no
    use.
    """

    settings: Variant
    speeds: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    times: int = 0
    memory: int | None = None
    distance: float | None = None
    start_seconds: float = 0.0
    failed: str = ""
    remark: str = ""

    @property
    def ratios(self) -> list[float]:
        """The ratio to the YAML in each round."""
        return ratios_of(self.speeds, self.plain)

    @property
    def is_faster(self) -> bool:
        """Whether the settings are faster than the YAML by more than chance."""
        return not self.failed and is_above(self.ratios)

    @property
    def name(self) -> str:
        """The settings as the user would write them on a command line."""
        return " ".join(lines_of(self.settings))


@dataclass
class Gains:
    """What a search has found so far: every row, and the row of the settings that are best.

    best is None where nothing is faster; it may have been measured only once. ended: why the search
    ended before it was complete.
    """

    rows: list[Measured] = field(default_factory=list)
    best: Measured | None = None
    not_tried: dict[str, str] = field(default_factory=dict)
    ended: str = ""

    @property
    def advised(self) -> Measured | None:
        """The best, if it was faster in two measurements; else None."""
        best = self.best
        return best if best and best.is_faster and best.times >= CONFIRMED else None


class Arena(Protocol):
    """Where settings become contenders, whose speed can be measured; as ``Course``."""

    def enter(self, settings: Variant) -> Contender:
        """A contender with these settings."""

    def speed(self, contender: Contender) -> float:
        """Its images a second in one block."""


def ratios_of(speeds: Sequence[float], others: Sequence[float]) -> list[float]:
    """speeds[i] / others[i] of the rounds that both have finished."""
    return [speed / other for speed, other in zip(speeds, others, strict=False)]


def quartiles(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median, and the upper quartile."""
    if len(ratios) < 2:
        return (ratios[0],) * 3 if ratios else (math.nan,) * 3
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high


def is_above(ratios: Sequence[float]) -> bool:
    """Whether the ratios are above FASTER by more than chance."""
    return len(ratios) >= ENOUGH and quartiles(ratios)[0] > FASTER


def find_faster(
    config_of: Callable[[Variant], Config], seconds: float, tries_compiler: bool, say: Say
) -> tuple[Gains, Course | None]:
    """Measure for at most ``seconds`` beside loading the data; Ctrl-C ends it earlier.

    config_of gives the configuration with some settings changed. The course is None if the time was
    too short to learn how long a step takes. Raises as ``prepare`` does.
    """
    found, courses = Gains(), list[Course]()
    job = prepare(config_of({}), say)
    introduce(job, say)
    until = time.monotonic() + seconds

    def measure() -> None:
        nonlocal job
        course, waits = lay_out_course(job, config_of)
        courses.append(course)
        variants, found.not_tried = variants_of(job, waits)
        images = job.config.train.epochs * sum(job.train_loader.sizes())
        del job  # its memory is free for the contenders
        if not tries_compiler:
            found.not_tried["train.compile"] = "--no-compile"
            variants = [settings for settings in variants if not is_compiled(settings)]
        say(f"speed   {len(variants)} settings to try, for {seconds:g} s at most")
        Search(course, found, images, until).run(variants)

    found.ended = at_most(seconds, measure)
    return found, courses[0] if courses else None


class Search:
    """Times single settings against the YAML, joins those that are faster, and times them again."""

    def __init__(
        self,
        arena: Arena,
        found: Gains,
        images: int,
        until: float,
        now: Now = time.monotonic,
    ) -> None:
        """``images``: of all steps of the run. ``until``: when to end, on the clock ``now``."""
        self.arena, self.found, self.images = arena, found, images
        self.until, self.now = until, now
        self.plain = arena.enter({})
        losses = self.plain.losses
        if losses and not math.isfinite(losses[-1]):
            raise NonFiniteLoss(
                f"the loss of the YAML's own settings is {losses[-1]} after {len(losses)} steps. "
                "Look at transforms (Normalize?), loss, model and optimizer.lr"
            )
        row = Measured({}, memory=self.plain.memory, start_seconds=self.plain.start_seconds)
        row.distance = 0.0
        found.rows.append(row)

    def run(self, variants: Sequence[Variant]) -> None:
        """Try each of the variants, join what is faster; the compiler is tried last.

        A compiler takes long, so it is added only to what is best without it.
        """
        found = self.found
        singles = [settings for settings in variants if not is_compiled(settings)]
        compiled = [settings for settings in variants if is_compiled(settings)]
        rows = []
        for number, settings in enumerate(singles):
            rows.append(row := Measured(settings))
            found.rows.append(row)
            self._race([row], share=0.7 / (len(singles) - number))
            if row.is_faster and (found.best is None or middle(row) > middle(found.best)):
                found.best = row  # if the search ends here
        self._join(sorted((row for row in rows if row.is_faster), key=middle, reverse=True))
        for settings in compiled:
            self._try_to_add(settings, share=0.6)

    def _join(self, winners: Sequence[Measured]) -> None:
        """Add each of the winners, the fastest first, to what is best so far."""
        found = self.found
        found.best = None
        for number, row in enumerate(winners):
            if found.best is None:
                found.best = row
            elif not row.settings.keys() & found.best.settings.keys():
                self._try_to_add(row.settings, share=0.4 / (len(winners) - number))
        if found.best is not None and found.best.times < CONFIRMED:
            self._race([found.best], share=0.6)
            self._judge_again()

    def _judge_again(self) -> None:
        """Give up what was best so far if it has now failed or is not faster any more."""
        if self.found.best is not None and not self.found.best.is_faster:
            self.found.best = None

    def _try_to_add(self, settings: Variant, share: float) -> None:
        """Time ``settings`` together with the best so far; twice, if they seem to add to it.

        This measures the best so far once more, too.
        """
        found, best = self.found, self.found.best
        joined = Measured(settings if best is None else with_compiler(best.settings | settings))
        found.rows.append(joined)
        for _ in range(2):
            is_measured = self._race([joined] if best is None else [best, joined], share)
            self._judge_again()
            adds = best is None or is_above(ratios_of(joined.speeds, best.speeds))
            if not (is_measured and joined.is_faster and adds and self._pays(joined)):
                return
        found.best = joined

    def _pays(self, row: Measured) -> bool:
        """Whether the time that the compiler takes, if it is on, comes back within the run."""
        costs = row.start_seconds - self.found.rows[0].start_seconds
        plain, own = (self.images / statistics.median(of) for of in (row.plain, row.speeds))
        if is_compiled(row.settings) and costs > plain - own:
            row.remark = f"compiling takes {costs:.0f} s, and saves {plain - own:.0f} s of the run"
        return not row.remark

    def _race(self, rows: list[Measured], share: float) -> bool:
        """Let the rows' contenders and the YAML run their blocks in turns.

        ``share`` of the time that is left. Earlier measurements of a row stay until there are
        ENOUGH new ones; returns whether there are. If one fails, its row says why.
        """
        until = self.now() + share * (self.until - self.now())
        may_lose = not rows[-1].speeds  # what was faster once is measured ENOUGH
        contenders, speeds = [self.plain], [list[float]() for _ in range(len(rows) + 1)]
        row = rows[0]
        try:
            for row in rows:
                contenders.append(self._entered(row))
            row = rows[-1]
            order = list(range(len(contenders)))
            for done in bar(range(1, ROUNDS + 1), row.name, ROUNDS, unit="round"):
                for number in order:
                    speeds[number].append(self.arena.speed(contenders[number]))
                order = order[::-1]  # so that a drift of the machine's speed is of no effect
                lost = all(ratio < 1 for ratio in ratios_of(speeds[-1], speeds[-2]))
                if (done >= LOSING and lost and may_lose) or (
                    done >= ENOUGH and self.now() > until
                ):
                    break
        except Exception as error:
            plain_error = in_plain_words(error)
            if not isinstance(plain_error, IMPOSSIBLE):
                raise
            row.failed = first_line(plain_error)
            if isinstance(plain_error, OutOfMemory):
                row.failed += " (beside the YAML's own job; a run of its own may have enough)"
        finally:
            self.found.rows[0].speeds += speeds[0]
            for row, own in zip(rows, speeds[1:], strict=True):
                row.times += len(own) >= ENOUGH
                if len(own) >= ENOUGH or not row.times:
                    row.speeds, row.plain = own, speeds[0][: len(own)]
        return len(speeds[-1]) >= ENOUGH

    def _entered(self, row: Measured) -> Contender:
        contender = self.arena.enter(row.settings)
        row.memory, row.start_seconds = contender.memory, contender.start_seconds
        if contender.losses:
            if not math.isfinite(contender.losses[-1]):
                raise NonFiniteLoss(f"its loss is {contender.losses[-1]}")
            row.distance = loss_distance(contender.losses, self.plain.losses)
        return contender


def middle(row: Measured) -> float:
    """The median of the ratios to the YAML."""
    return quartiles(row.ratios)[1]


def with_compiler(settings: Variant) -> Variant:
    """The settings without CUDA graphs, where they are compiled: the two do not go together."""
    if not is_compiled(settings):
        return settings
    return {key: value for key, value in settings.items() if key != "train.cuda_graphs"}


def first_line(error: BaseException) -> str:
    """The first line of an error's message; of a ConfigError its first fault, without the place."""
    if isinstance(error, ConfigError) and error.faults:
        return error.faults[0].message
    return str(error).partition("\n")[0]
