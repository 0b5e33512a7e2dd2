"""Charts within the report's page: SVG, crisp at any size, with numbers under the pointer."""

import math
from collections.abc import Iterable
from html import escape
from itertools import count

from trainer.insight.charts import COLOURS, Curves, ticks, x_ticks
from trainer.insight.findings import Bins, plain, shown_number

MAX_MARKS = 200  # points of a curve that tell their number
_WIDTH, _HEIGHT = 480, 240  # units of a chart
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 34


def curves_chart(title: str, curves: Curves, best_epoch: int) -> str:
    """A panel of curves; its points tell their numbers under the pointer."""
    points = [point for curve in curves.values() for point in curve]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points))
    low, high = y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        share = (x - first) / (last - first) if last > first else 0.5
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def up(y: float) -> float:
        share = (y - low) / (high - low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [_grid_line(up(tick), f"{tick:.6g}") for tick in y_ticks]
    parts += [_below(across(x), f"{x:.6g}") for x in x_ticks(first, last)]
    parts += [f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" class=end>epoch</text>']
    if first <= best_epoch <= last:
        x = across(best_epoch)
        side, kind = (-5, "dim end") if x > _WIDTH / 2 else (5, "dim")
        parts += [f'<path class=best d="M{x} {_TOP}V{_HEIGHT - _BOTTOM}"/>']
        parts += [f'<text x="{x + side}" y="{_TOP + 12}" class="{kind}">best</text>']
    legend, told = [], []
    for colour, (tag, curve) in zip(count(), curves.items(), strict=False):
        name, kind = escaped(tag), f"c{colour % len(COLOURS)}"
        places = " ".join(f"{across(x)},{up(y)}" for x, y in curve)
        faint = " faint" if len(curve) > 60 else ""
        parts += [f'<polyline class={kind} points="{places}"/>']
        for x, y in curve[:: math.ceil(len(curve) / MAX_MARKS)]:
            tip = f"<title>epoch {x}: {name} {shown_number(y)}</title>"
            dot = f'cx="{across(x)}" cy="{up(y)}" r="2.5"'
            parts += [f'<circle class="{kind}{faint}" {dot}>{tip}</circle>']
        legend += [f"<li class={kind}>{name}</li>"]
        told += [f"{name} from {shown_number(curve[0][1])} to {shown_number(curve[-1][1])}"]
    alt = f"{title} by epoch: {', '.join(told)}"
    return (
        f"<figure><figcaption><b>{title}</b><ul class=legend>{''.join(legend)}</ul></figcaption>"
        f"{_svg(alt, parts)}</figure>"
    )


def calibration_chart(bins: Bins, error: float) -> str:
    """Reliability diagram: a bar is an interval's accuracy, a red mark its mean confidence."""
    side, low = 300, 60  # of the square, of the counts below it
    bottom, base = _TOP + side, _TOP + side + low + 12
    most = max(images for images, _, _ in bins) or 1
    parts = []
    for i in range(6):
        parts += [_grid_line(_TOP + side * (1 - i / 5), f"{i / 5:g}", _LEFT + side)]
        parts += [_below(_LEFT + side * i / 5, f"{i / 5:g}", base)]
    parts += [f'<path class=best d="M{_LEFT} {bottom}L{_LEFT + side} {_TOP}"/>']
    width = side / len(bins)
    for i, (images, sure, right) in enumerate(bins):
        if images:
            x, wide = _LEFT + i * width + 1, width - 2
            tip = f"<title>{images:,} images: confidence {sure:.3f}, accuracy {right:.3f}</title>"
            tall, many = side * right, low * images / most
            parts += [
                f'<rect class=c0 x="{x:.1f}" y="{bottom - tall:.1f}" width="{wide:.1f}"'
                f' height="{tall:.1f}">{tip}</rect>'
                f'<path class=c3 d="M{x:.1f} {bottom - side * sure:.1f}h{wide:.1f}"/>'
                f'<rect class=dim x="{x:.1f}" y="{base - many:.1f}" width="{wide:.1f}"'
                f' height="{many:.1f}">{tip}</rect>'
            ]
    parts += [f'<text x="{_LEFT + side}" y="{base + 32}" class=end>confidence</text>']
    alt = f"Accuracy by confidence; expected calibration error {shown_number(error)}"
    legend = "<ul class=legend><li class=c0>accuracy</li><li class=c3>confidence</li>"
    legend += "<li class=dim>images</li></ul>"
    svg = _svg(alt, parts, _LEFT + side + _RIGHT, base + 36)
    return f"<figure class=square><figcaption>{legend}</figcaption>{svg}</figure>"


def _svg(alt: str, parts: Iterable[str], width: int = _WIDTH, height: int = _HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{alt}">{"".join(parts)}</svg>'
    )


def _grid_line(y: float, text: str, right: float = _WIDTH - _RIGHT) -> str:
    y = round(y, 1)
    line = f'<path class=grid d="M{_LEFT} {y}H{right}"/>'
    return f'{line}<text x="{_LEFT - 6}" y="{y + 4}" class=end>{text}</text>'


def _below(x: float, text: str, y: float = _HEIGHT - _BOTTOM) -> str:
    return f'<text x="{x:.1f}" y="{y + 16}" class=middle>{text}</text>'


def escaped(text: object) -> str:
    """Text as HTML shows it, whatever it holds."""
    return escape(plain(str(text)), quote=True)
