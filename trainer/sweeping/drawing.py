"""The pictures of a sweep's page: values by parameter, over trials, and parallel coordinates."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trainer.insight.charts import ticks
from trainer.insight.findings import shown_number
from trainer.insight.svg import escaped
from trainer.sweeping.reading import Plan
from trainer.sweeping.results import Row, ranked
from trainer.sweeping.space import overrides, told

_WIDTH, _HEIGHT = 480, 240  # units of a chart
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 36
MAX_LABEL = 14  # letters below an axis

Place = Callable[[float], float]


def axis(values: Sequence[Any], log: bool = False) -> tuple[list[float], list[tuple[float, str]]]:
    """Where each value lies in 0..1, and the marks of its axis: (place, text).

    Numbers lie by size, or by their logarithm where ``log``; all else in the order of appearance.
    """
    if all(type(value) in (int, float) for value in values):
        numbers = [math.log10(v) if log else float(v) for v in values]
        low, high = min(numbers), max(numbers)
        places = [(n - low) / (high - low) if high > low else 0.5 for n in numbers]
        first, *others = sorted(dict(zip(places, values, strict=True)).items())
        shown = [first, *others[-1:]]
        for place, value in others[:-1]:  # those that have room between the ends
            if place - shown[-2][0] > 0.18 and shown[-1][0] - place > 0.18:
                shown.insert(-1, (place, value))
        return places, [(place, f"{value:.3g}") for place, value in shown]
    names = list(dict.fromkeys(map(told, values)))
    where = {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
    return [where[told(value)] for value in values], [(p, name) for name, p in where.items()]


def is_log(plan: Plan, key: str) -> bool:
    """Whether a parameter is better seen by its logarithm."""
    space = plan.sweep.params[key]
    if not isinstance(space, list):
        return space.log
    numbers = [v for v in space if type(v) in (int, float)]
    return len(numbers) == len(space) and min(numbers) > 0 and max(numbers) >= 20 * min(numbers)


def by_parameter(plan: Plan, rows: Sequence[Row], key: str) -> str:
    """A dot a run's value over one parameter, and a dash at each trial's mean."""
    seen = [row for row in rows if row.values]
    places, marks = axis([row.settings[key] for row in seen], is_log(plan, key))
    values = [value for row in seen for value in row.values]
    up, parts = _up(values)
    parts += [_below(_across(place), text) for place, text in marks]
    for row, place in zip(seen, places, strict=True):
        tip, x = _tip(plan, row), _across(place)
        kind = "c0" if row.status == "done" else '"" style="--c:var(--dim)"'
        parts += [
            f'<circle class={kind} cx="{x}" cy="{up(v)}" r="3">{tip}</circle>' for v in row.values
        ]
        if row.mean is not None and len(row.values) > 1:
            parts += [f'<path class=c3 d="M{x - 7} {up(row.mean)}h14">{tip}</path>']
    return _figure(key, f"{plan.monitor} by {key}", parts)


def over_trials(plan: Plan, rows: Sequence[Row]) -> str:
    """Each trial's mean in their order, and the best so far as steps."""
    seen = [row for row in rows if row.mean is not None]
    last = max([row.number for row in rows] + [1])
    up, parts = _up([row.mean or 0.0 for row in seen])
    parts += [_below(_across(n / last), str(n)) for n in sorted({0, last // 2, last})]
    line: list[str] = []
    best: float | None = None
    for row in seen:
        assert row.mean is not None
        x = _across(row.number / last)
        if row.status == "done" and (best is None or plan.sign * row.mean > plan.sign * best):
            line += [f"{x},{up(best)}"] if best is not None else []
            best = row.mean
        if best is not None:
            line += [f"{x},{up(best)}"]
        kind = "c0" if row.status == "done" else '"" style="--c:var(--dim)"'
        parts += [
            f'<circle class={kind} cx="{x}" cy="{up(row.mean)}" r="3">{_tip(plan, row)}</circle>'
        ]
    parts.insert(0, f'<polyline class=c2 points="{" ".join(line)}"/>')
    parts += [f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 3}" class=end>trial</text>']
    return _figure("by trial, and the best so far", f"{plan.monitor} by trial", parts)


def parallel(plan: Plan, rows: Sequence[Row]) -> str:
    """Parallel coordinates: a line a trial through its settings to its value."""
    seen = [row for row in rows if row.mean is not None and row.status == "done"]
    keys = list(plan.sweep.params)
    axes = [axis([row.settings[key] for row in seen], is_log(plan, key)) for key in keys]
    axes.append(axis([row.mean for row in seen]))
    width, top, bottom = max(_WIDTH, 170 * len(axes)), 30, 220
    wide = (width - 140) / max(len(axes) - 1, 1)
    xs = [round(70 + i * wide, 1) for i in range(len(axes))]
    order = ranked(plan, rows)
    parts = []
    for row in reversed(order):  # the best is drawn last, above the others
        at = seen.index(row)
        share = order.index(row) / max(len(order) - 1, 1)
        points = " ".join(
            f"{x},{bottom - places[at] * (bottom - top):.1f}"
            for x, (places, _) in zip(xs, axes, strict=True)
        )
        kind, bold = ("c1", 3) if share == 0 else ("c0", 1.5)
        style = f"stroke-width:{bold};opacity:{1 - 0.8 * share:.2f}"
        parts += [
            f'<polyline class={kind} style="{style}" points="{points}">{_tip(plan, row)}</polyline>'
        ]
    for x, (_, marks), name in zip(xs, axes, [*keys, plan.monitor], strict=True):
        parts += [f'<path class=grid d="M{x} {top}V{bottom}"/>']
        parts += [f'<text x="{x}" y="{top - 12}" class=middle>{_short(name, 26)}</text>']
        for place, text in marks:
            y = bottom - place * (bottom - top) + 4
            parts += [f'<text x="{x + 5}" y="{y:.1f}" class=dim>{_short(text)}</text>']
    return _svg(f"{plan.monitor} of {len(order)} trials by their settings", parts, width, 240)


def _up(values: Sequence[float]) -> tuple[Place, list[str]]:
    """Where a value stands, and the lines of its axis."""
    marks = ticks(min(values), max(values))
    low, high = marks[0], marks[-1]

    def up(value: float) -> float:
        share = (value - low) / (high - low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)

    lines = []
    for mark in marks:
        y = up(mark)
        lines += [f'<path class=grid d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>']
        lines += [f'<text x="{_LEFT - 6}" y="{y + 4}" class=end>{mark:.6g}</text>']
    return up, lines


def _across(share: float) -> float:
    room = _WIDTH - _LEFT - _RIGHT - 24
    return round(_LEFT + 12 + share * room, 1)


def _below(x: float, text: str) -> str:
    return f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 16}" class=middle>{_short(text)}</text>'


def _short(text: str, length: int = MAX_LABEL) -> str:
    return escaped(text if len(text) <= length else f"{text[: length - 1]}…")


def _tip(plan: Plan, row: Row) -> str:
    value = "" if row.mean is None else shown_number(row.mean)
    settings = " ".join(overrides(row.settings))
    text = f"t{row.number:03d}: {plan.monitor} {value} ({row.status}) {settings}"
    return f"<title>{escaped(text)}</title>"


def _figure(title: str, alt: str, parts: Iterable[str]) -> str:
    head = f"<figcaption><b>{escaped(title)}</b></figcaption>"
    return f"<figure>{head}{_svg(alt, parts)}</figure>"


def _svg(alt: str, parts: Iterable[str], width: float = _WIDTH, height: float = _HEIGHT) -> str:
    inner = "".join(parts)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escaped(alt)}">{inner}</svg>'
    )
