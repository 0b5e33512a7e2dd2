"""Charts within a page: SVG, crisp at any size, with numbers under the pointer. Imports no torch.

A chart is made of parts, which are text: elements of SVG whose contents are escaped already.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

from markupsafe import Markup

from trainer.insight.axes import COLOURS, Curves, ticks, x_ticks
from trainer.insight.text import Bins, plain, shown_number

MAX_MARKS = 200  # points of a curve that tell their number
WIDTH, HEIGHT = 480, 240  # units of a chart
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 36

Place = Callable[[float], float]
Spots = Iterable[tuple[float, float]]


def curves_chart(title: str, curves: Curves, best_epoch: int) -> Markup:
    """A panel of curves; its points tell their numbers under the pointer."""
    points = [point for curve in curves.values() for point in curve]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    across = scale(first, last, LEFT, WIDTH - RIGHT)
    up, parts = vertical_axis([y for _, y in points])
    parts += [below(across(x), f"{x:.6g}") for x in x_ticks(first, last)]
    parts += [text(WIDTH - RIGHT, HEIGHT - 4, "epoch", "end")]
    if first <= best_epoch <= last:
        x = across(best_epoch)
        side, kind = (-5, "dim end") if x > WIDTH / 2 else (5, "dim")
        parts += [path("best", f"M{x} {TOP}V{HEIGHT - BOTTOM}")]
        parts += [text(x + side, TOP + 12, "best", kind)]
    tags = list(curves)
    kinds = {tag: f"c{i % len(COLOURS)}" + " dashed" * (i % 2) for i, tag in enumerate(tags)}
    for tag in tags[::2] + tags[1::2]:  # dashed ones above the others: of two equal ones both show
        curve, kind = curves[tag], kinds[tag]
        parts += [polyline(kind, [(across(x), up(y)) for x, y in curve])]
        kind += " faint" * (len(curve) > 60)
        radius = 1.5 if "dashed" in kind else 2.5
        for x, y in curve[:: math.ceil(len(curve) / MAX_MARKS)]:
            parts += [dot(kind, across(x), up(y), f"epoch {x}: {tag} {shown_number(y)}", radius)]
    told = [
        f"{tag} from {shown_number(curve[0][1])} to {shown_number(curve[-1][1])}"
        for tag, curve in curves.items()
    ]
    alt = f"{title} by epoch: {', '.join(told)}"
    return figure(title, svg(alt, parts), [(kind, tag) for tag, kind in kinds.items()])


def calibration_chart(bins: Bins, error: float) -> Markup:
    """Reliability diagram: a bar is an interval's accuracy, a red mark its mean confidence."""
    side, low = 300, 60  # of the square, of the counts below it
    bottom, base = TOP + side, TOP + side + low + 12
    most = max(images for images, _, _ in bins) or 1
    parts = []
    for i in range(6):
        parts += [grid_line(TOP + side * (1 - i / 5), f"{i / 5:g}", LEFT + side)]
        parts += [below(LEFT + side * i / 5, f"{i / 5:g}", base)]
    parts += [path("best", f"M{LEFT} {bottom}L{LEFT + side} {TOP}")]
    width = side / len(bins)
    for i, (images, sure, right) in enumerate(bins):
        if images:
            x, wide = LEFT + i * width + 1, width - 2
            tip = f"{images:,} images: confidence {sure:.3f}, accuracy {right:.3f}"
            parts += [bar("c0", x, bottom, wide, side * right, tip)]
            parts += [path("c3", f"M{x:.1f} {bottom - side * sure:.1f}h{wide:.1f}")]
            parts += [bar("dim", x, base, wide, low * images / most, tip)]
    parts += [text(LEFT + side, base + 32, "confidence", "end")]
    alt = f"Accuracy by confidence; expected calibration error {shown_number(error)}"
    legend = [("c0", "accuracy"), ("c3", "confidence"), ("dim", "images")]
    return figure("", svg(alt, parts, LEFT + side + RIGHT, base + 36), legend, "square")


# Parts


def scale(low: float, high: float, begin: float, end: float) -> Place:
    """Where a value from ``low`` to ``high`` lies between ``begin`` and ``end``."""

    def place(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(begin + share * (end - begin), 1)

    return place


def vertical_axis(values: Sequence[float]) -> tuple[Place, list[str]]:
    """Where a value stands in a chart of the usual size, and the lines of its axis."""
    marks = ticks(min(values), max(values))
    up = scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)
    return up, [grid_line(up(mark), f"{mark:.6g}") for mark in marks]


def grid_line(y: float, label: str, right: float = WIDTH - RIGHT) -> str:
    """A horizontal line with its number on the left."""
    y = round(y, 1)
    return path("grid", f"M{LEFT} {y}H{right}") + text(LEFT - 6, y + 4, label, "end")


def below(x: float, label: str, y: float = HEIGHT - BOTTOM) -> str:
    """A text under the axis that lies at ``y``."""
    return text(x, y + 16, label, "middle")


def text(x: float, y: float, content: str, kind: str) -> str:
    """A text; ``kind`` is what the style knows it by, as in all parts."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escaped(content)}</text>'


def path(kind: str, way: str, tip: str = "") -> str:
    """A line along ``way``, which is SVG's own language."""
    return f'<path class="{kind}" d="{way}">{_tip(tip)}</path>'


def polyline(kind: str, spots: Spots, tip: str = "", style: str = "") -> str:
    """A line through the places."""
    places = " ".join(f"{x},{y}" for x, y in spots)
    look = f' style="{style}"' if style else ""
    return f'<polyline class="{kind}"{look} points="{places}">{_tip(tip)}</polyline>'


def dot(kind: str, x: float, y: float, tip: str, radius: float = 3) -> str:
    """A dot that tells its number under the pointer."""
    return f'<circle class="{kind}" cx="{x}" cy="{y}" r="{radius}">{_tip(tip)}</circle>'


def bar(kind: str, x: float, foot: float, width: float, height: float, tip: str) -> str:
    """A bar that stands at ``foot``."""
    place = f'x="{x:.1f}" y="{foot - height:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{kind}" {place}>{_tip(tip)}</rect>'


def svg(alt: str, parts: Iterable[str], width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """The picture made of the parts; ``alt`` says in words what it shows."""
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escaped(alt)}">'
    return Markup(f"{head}{''.join(parts)}</svg>")


def figure(
    title: str, picture: Markup, legend: Sequence[tuple[str, str]] = (), kind: str = "chart"
) -> Markup:
    """A picture with its title and legend: the kind of each curve, and its name."""
    head = f"<b>{escaped(title)}</b>" if title else ""
    items = "".join(f'<li class="{kind}">{escaped(name)}</li>' for kind, name in legend)
    head += f"<ul class=legend>{items}</ul>" if legend else ""
    return Markup(f'<figure class="{kind}"><figcaption>{head}</figcaption>{picture}</figure>')


def escaped(content: str) -> str:
    """Text as HTML shows it, whatever it holds."""
    return escape(plain(content), quote=True)


def _tip(content: str) -> str:
    return f"<title>{escaped(content)}</title>" if content else ""
