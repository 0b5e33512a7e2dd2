"""The charts of a sweep's page: values by parameter, over trials, and parallel coordinates."""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from trainer.drawing import svg
from trainer.drawing.axes import x_ticks
from trainer.drawing.svg import (
    HEIGHT,
    MARGIN_BOTTOM,
    MARGIN_LEFT,
    MARGIN_RIGHT,
    ROW,
    WIDTH,
    below,
    element,
)  # fmt: skip
from trainer.drawing.text import shown_number
from trainer.sweeping.plan import Plan
from trainer.sweeping.results import Row, ranked
from trainer.sweeping.space import display_value, overrides

MAX_LABEL = 48  # characters of a label
MAX_VALUES = 12  # of an axis that labels each one; of more, those that have room
_across = svg.scale(0, 1, MARGIN_LEFT + 12, WIDTH - MARGIN_RIGHT - 12)


def axis(values: Sequence[Any], log: bool = False) -> tuple[list[float], list[tuple[float, str]]]:
    """The place of each value in 0..1 (texts: in order of first use), and marks: (place, text)."""
    if all(type(value) in (int, float) for value in values):
        numbers = [math.log10(v) if log else float(v) for v in values]
        low, high = min(numbers), max(numbers)
        places = [(n - low) / (high - low) if high > low else 0.5 for n in numbers]
        first, *others = sorted(dict(zip(places, values, strict=True)).items())
        if len(others) < MAX_VALUES:
            return places, [(place, f"{value:.6g}") for place, value in [first, *others]]
        shown = [first, *others[-1:]]
        for place, value in others[:-1]:  # the marks that have room between the ends
            if place - shown[-2][0] > 0.18 and shown[-1][0] - place > 0.18:
                shown.insert(-1, (place, value))
        return places, [(place, f"{value:.3g}") for place, value in shown]
    names = list(dict.fromkeys(map(display_value, values)))
    where = {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
    return [where[display_value(value)] for value in values], [
        (p, name) for name, p in where.items()
    ]


def is_log(plan: Plan, key: str) -> bool:
    """Whether a parameter's axis is logarithmic."""
    space = plan.sweep.params[key]
    if not isinstance(space, list):
        return space.log
    numbers = [v for v in space if type(v) in (int, float)]
    return len(numbers) == len(space) and min(numbers) > 0 and max(numbers) >= 20 * min(numbers)


def by_parameter(plan: Plan, rows: Sequence[Row], key: str) -> Markup:
    """A chart over one parameter: a dot for each run's value, and a dash for each trial's mean."""
    done = [row for row in rows if row.values]
    places, marks = axis([row.settings[key] for row in done], is_log(plan, key))
    up, parts = svg.vertical_axis([value for row in done for value in row.values])
    labels, more = _labels([(_across(place), _short_label(mark)) for place, mark in marks])
    parts += labels
    for row, place in zip(done, places, strict=True):
        tip, x = _tip(plan, row), _across(place)
        parts += [svg.dot(_kind(row), x, up(value), tip) for value in row.values]
        if row.mean is not None and len(row.values) > 1:
            parts += [
                element("path", element("title", tip), kind="c3", d=f"M{x - 7} {up(row.mean)}h14")
            ]
    return svg.figure(key, svg.svg(f"{plan.monitor} by {key}", parts, height=HEIGHT + more))


def _labels(marks: Sequence[tuple[float, str]]) -> tuple[list[Markup], int]:
    """The labels below an axis, in as many rows as they need, and the height of the further rows.

    marks: (x, text) of each. A label of a lower row hangs on a line from its place.
    """
    foot = HEIGHT - MARGIN_BOTTOM
    ends: list[float] = []  # of each row, where its last label ends
    lines, texts = [], []
    for x, label in sorted(marks):
        wide = svg.text_width(label)
        middle = min(max(x, wide / 2), WIDTH - wide / 2)
        row = next((i for i, end in enumerate(ends) if middle - wide / 2 > end + 6), len(ends))
        ends[row : row + 1] = [middle + wide / 2]
        if row:
            lines += [element("path", kind="grid", d=f"M{x} {foot}V{foot + 3 + ROW * row}")]
        texts += [below(middle, label, foot + ROW * row)]
    return lines + texts, ROW * max(len(ends) - 1, 0)


def over_trials(plan: Plan, rows: Sequence[Row]) -> Markup:
    """A chart over the trials' numbers: a dot for each mean, and steps for the best mean so far."""
    means = [(row, row.mean) for row in rows if row.mean is not None]
    last = max([row.number for row in rows] + [1])
    up, parts = svg.vertical_axis([mean for _, mean in means])
    parts += [below(_across(n / last), f"{n:g}") for n in x_ticks(0, last)]
    steps: list[tuple[float, float]] = []
    best: float | None = None
    for row, mean in means:
        x = _across(row.number / last)
        if row.status == "done" and (best is None or plan.sign * mean > plan.sign * best):
            steps += [(x, up(best))] if best is not None else []
            best = mean
        if best is not None:
            steps += [(x, up(best))]
        parts += [svg.dot(_kind(row), x, up(mean), _tip(plan, row))]
    parts.insert(0, svg.line("c2", steps))
    parts += [svg.text(WIDTH - MARGIN_RIGHT, HEIGHT - 3, "trial", "end")]
    return svg.figure("by trial, and the best so far", svg.svg(f"{plan.monitor} by trial", parts))


def parallel(plan: Plan, rows: Sequence[Row]) -> Markup:
    """Parallel coordinates: a line for each trial, through its settings to its value."""
    done = [row for row in rows if row.mean is not None and row.status == "done"]
    keys = list(plan.sweep.params)
    axes = [axis([row.settings[key] for row in done], is_log(plan, key)) for key in keys]
    axes.append(axis([row.mean for row in done]))
    names = [_short_label(mark) for _, marks in axes[:-1] for _, mark in marks]
    apart = max(170, 40 + max(svg.text_width(name) for name in names))
    width, top, bottom = max(WIDTH, apart * (len(axes) - 1) + 170), 30, 220
    up, across = svg.scale(0, 1, bottom, top), svg.scale(0, max(len(axes) - 1, 1), 70, width - 70)
    order = ranked(plan, rows)
    parts = []
    for row in reversed(order):  # the best is drawn last, above the others
        at = done.index(row)
        share = order.index(row) / max(len(order) - 1, 1)
        spots = [(across(i), up(places[at])) for i, (places, _) in enumerate(axes)]
        kind, bold = ("c1", 3) if share == 0 else ("c0", 1.5)
        style = f"stroke-width:{bold};opacity:{1 - 0.8 * share:.2f}"
        parts += [svg.line(kind, spots, element("title", _tip(plan, row)), style=style)]
    for i, ((_, marks), name) in enumerate(zip(axes, [*keys, plan.monitor], strict=True)):
        parts += [element("path", kind="grid", d=f"M{across(i)} {top}V{bottom}")]
        parts += [svg.text(across(i), top - 12, _short_label(name, 26), "middle")]
        heights = spread_apart([up(place) for place, _ in marks], top, bottom)
        parts += [
            svg.text(across(i) + 5, height + 4, _short_label(mark), "halo")
            for height, (_, mark) in zip(heights, marks, strict=True)
        ]
    alt = f"{plan.monitor} of {len(order)} trials by their settings"
    return svg.svg(alt, parts, width, 240)


def spread_apart(spots: Sequence[float], top: float, bottom: float) -> list[float]:
    """Move the labels of an axis apart, as little as they need, so that each can be read.

    spots: their heights. More labels than there is room for stay at even distances.
    """
    room = min(ROW, (bottom - top) / max(len(spots) - 1, 1))
    moved = list(spots)
    order = sorted(range(len(spots)), key=lambda i: spots[i])
    lowest = top
    for i in order:
        moved[i] = lowest = max(moved[i], lowest)
        lowest += room
    highest = bottom
    for i in reversed(order):
        moved[i] = highest = min(moved[i], highest)
        highest -= room
    return moved


def _kind(row: Row) -> str:
    return "c0" if row.status == "done" else "dim"


def _short_label(label: str, length: int = MAX_LABEL) -> str:
    return label if len(label) <= length else f"{label[: length - 1]}…"


def _tip(plan: Plan, row: Row) -> str:
    value = "" if row.mean is None else shown_number(row.mean)
    settings = " ".join(overrides(row.settings))
    return f"t{row.number:03d}: {plan.monitor} {value} ({row.status}) {settings}"
