"""Draws a page's charts as SVG: crisp at any size, numbers under the pointer. Imports no torch."""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

from markupsafe import Markup

from trainer.drawing.axes import COLOURS, Curves, ticks, x_ticks
from trainer.drawing.columns import width_of
from trainer.drawing.text import Bins, plain, shown_number

MAX_MARKS = 200  # points of a curve that show their number under the pointer
WIDTH, HEIGHT = 480, 240  # units of a chart
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 56, 14, 12, 36
ROW = 15  # units from a line of text to the next

Scale = Callable[[float], float]


def element(name: str, *content: str, **attributes: object) -> Markup:
    """An element; all but Markup is escaped. ``kind``: its class. Attributes of "" are left out."""
    inner = (item if isinstance(item, Markup) else escape(plain(item)) for item in content)
    given = {"class" if k == "kind" else k.replace("_", "-"): v for k, v in attributes.items()}
    start = "".join(f' {key}="{escape(plain(str(v)))}"' for key, v in given.items() if v != "")
    return Markup(f"<{name}{start}>{''.join(inner)}</{name}>")


def svg(alt: str, parts: Iterable[Markup], width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """The picture made of ``parts``; ``alt`` describes it in words."""
    box = f"0 0 {width} {height}"
    return element("svg", *parts, viewBox=box, role="img", aria_label=alt)


def figure(
    title: str, picture: Markup, legend: Iterable[tuple[str, str]] = (), kind: str = ""
) -> Markup:
    """A picture with its title and its legend: (kind, name) of each curve."""
    items = [element("li", name, kind=kind) for kind, name in legend]
    head = [element("b", title)] if title else []
    head += [element("ul", *items, kind="legend")] if items else []
    return element("figure", element("figcaption", *head), picture, kind=kind)


def text(x: float, y: float, content: str, kind: str) -> Markup:
    """A text with its begin at ``x``, or with its middle or end, if ``kind`` has that word."""
    return element("text", content, x=round(x, 1), y=round(y, 1), kind=kind)


def text_width(content: str) -> float:
    """Roughly the units that a text takes; a Chinese letter takes two of the others."""
    return 7.8 * width_of(content)


def dot(kind: str, x: float, y: float, tip: str, radius: float = 3) -> Markup:
    """A dot that shows ``tip`` under the pointer."""
    return element("circle", element("title", tip), kind=kind, cx=x, cy=y, r=radius)


def line(kind: str, spots: Iterable[tuple[float, float]], *content: str, style: str = "") -> Markup:
    """A line through the points ``spots``."""
    places = " ".join(f"{x},{y}" for x, y in spots)
    return element("polyline", *content, kind=kind, style=style, points=places)


def grid_line(y: float, label: str, right: float = WIDTH - MARGIN_RIGHT) -> Markup:
    """A horizontal line with its number on the left."""
    grid = element("path", kind="grid", d=f"M{MARGIN_LEFT} {y:.1f}H{right}")
    return grid + text(MARGIN_LEFT - 6, y + 4, label, "end")


def below(x: float, label: str, y: float = HEIGHT - MARGIN_BOTTOM) -> Markup:
    """A text below a horizontal axis at ``y``."""
    return text(x, y + 16, label, "middle")


def scale(low: float, high: float, begin: float, end: float) -> Scale:
    """The linear function that maps ``low`` to ``begin`` and ``high`` to ``end``."""

    def place(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(begin + share * (end - begin), 1)

    return place


def vertical_axis(values: Sequence[float]) -> tuple[Scale, list[Markup]]:
    """The scale from a value to y in a chart of the usual size, and the lines of its axis."""
    marks = ticks(min(values), max(values))
    up = scale(marks[0], marks[-1], HEIGHT - MARGIN_BOTTOM, MARGIN_TOP)
    return up, [grid_line(up(mark), f"{mark:.6g}") for mark in marks]


def curves_chart(title: str, curves: Curves, best_epoch: int) -> Markup:
    """A panel of curves; its points show their numbers under the pointer."""
    points = [point for curve in curves.values() for point in curve]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    across = scale(first, last, MARGIN_LEFT, WIDTH - MARGIN_RIGHT)
    up, parts = vertical_axis([y for _, y in points])
    parts += [below(across(x), f"{x:.6g}") for x in x_ticks(first, last)]
    parts += [text(WIDTH - MARGIN_RIGHT, HEIGHT - 4, "epoch", "end")]
    if first <= best_epoch <= last:
        x = across(best_epoch)
        side, kind = (-5, "dim end") if x > WIDTH / 2 else (5, "dim")
        parts += [element("path", kind="best", d=f"M{x} {MARGIN_TOP}V{HEIGHT - MARGIN_BOTTOM}")]
        parts += [text(x + side, MARGIN_TOP + 12, "best", kind)]
    tags = list(curves)
    kinds = {tag: f"c{i % len(COLOURS)}" + " dashed" * (i % 2) for i, tag in enumerate(tags)}
    for tag in tags[::2] + tags[1::2]:  # dashed ones on top, so that two equal curves both show
        curve, kind = curves[tag], kinds[tag]
        parts += [line(kind, [(across(x), up(y)) for x, y in curve])]
        kind += " faint" * (len(curve) > 60)
        radius = 1.5 if "dashed" in kind else 2.5
        for x, y in curve[:: math.ceil(len(curve) / MAX_MARKS)]:
            parts += [dot(kind, across(x), up(y), f"epoch {x}: {tag} {shown_number(y)}", radius)]
    ends = {tag: (shown_number(c[0][1]), shown_number(c[-1][1])) for tag, c in curves.items()}
    ranges = ", ".join(f"{tag} from {begin} to {end}" for tag, (begin, end) in ends.items())
    legend = [(kind, tag) for tag, kind in kinds.items()]
    return figure(title, svg(f"{title} by epoch: {ranges}", parts), legend)


def calibration_chart(bins: Bins, error: float) -> Markup:
    """Reliability diagram: a bar is an interval's accuracy, a red mark its mean confidence."""
    side, low = 300, 60  # the square's side, and the height of the counts below it
    bottom, base = MARGIN_TOP + side, MARGIN_TOP + side + low + 12
    most = max(images for images, _, _ in bins) or 1
    parts = []
    for i in range(6):
        parts += [grid_line(MARGIN_TOP + side * (1 - i / 5), f"{i / 5:g}", MARGIN_LEFT + side)]
        parts += [below(MARGIN_LEFT + side * i / 5, f"{i / 5:g}", base)]
    parts += [
        element("path", kind="best", d=f"M{MARGIN_LEFT} {bottom}L{MARGIN_LEFT + side} {MARGIN_TOP}")
    ]
    width = side / len(bins)
    for i, (images, sure, right) in enumerate(bins):
        x, wide = MARGIN_LEFT + i * width + 1, width - 2
        tip = f"{images:,} images: confidence {sure:.3f}, accuracy {right:.3f}"
        bars = ("c0", bottom, side * right), ("dim", base, low * images / most)
        for kind, foot, height in bars if images else ():
            size = {"x": x, "y": foot - height, "width": wide, "height": height}
            size = {key: round(value, 1) for key, value in size.items()}
            parts += [element("rect", element("title", tip), kind=kind, **size)]
        if images:
            way = f"M{x:.1f} {bottom - side * sure:.1f}h{wide:.1f}"
            parts += [element("path", kind="c3", d=way)]
    parts += [text(MARGIN_LEFT + side, base + 32, "confidence", "end")]
    alt = f"Accuracy by confidence; expected calibration error {shown_number(error)}"
    legend = [("c0", "accuracy"), ("c3", "confidence"), ("dim", "images")]
    return figure(
        "", svg(alt, parts, MARGIN_LEFT + side + MARGIN_RIGHT, base + 36), legend, "square"
    )
