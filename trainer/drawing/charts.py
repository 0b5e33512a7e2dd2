"""Draws charts as pictures, with Pillow alone: curves, bars, confusion matrix, calibration."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw
from torch.nn.functional import pad

from trainer.drawing.axes import COLOURS, Curves, Points, ticks, x_ticks
from trainer.drawing.fonts import drawable, fit_to_pixels, font, legible

RIGHT, WRONG = "#2ca02c", "#d62728"
_WIDTH, _HEIGHT = 960, 320  # pixels of a panel of curves
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 230, 44, 44  # a panel's margins; the right one holds the legend
_WIDEST = 480  # of a legend with longer names: the picture becomes wider
_FINE = 3  # curves are drawn this many times larger, then averaged, for smooth edges
CARD = 350  # pixels of a card's width in TensorBoard's Images dashboard
_EDGE = 8  # pixels around the axes that a point at their end may cover
_DASH = 8  # pixels of a dash, and of the gap behind it
INK, GRID = "#222222", "#dddddd"
MARKS = ("#777777", "#9467bd")  # of vertical lines
MAX_CELLS = 1000  # in a row of a confusion matrix
MAX_BARS = 40  # names in a bar chart, at most: those with the smallest and the largest sums


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The items of ``values`` that are finite numbers."""
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def draw_confusion(
    confusion: Sequence[Sequence[int]] | torch.Tensor, classes: Sequence[str], card: bool = False
) -> Image.Image:
    """A table of counts, shaded by their share of the row. Rows: true class; columns: predicted.

    Of more than MAX_CELLS classes, a cell is the sum over a square of them.
    card: for a card of TensorBoard, which is CARD pixels wide and drops pixels of a wider picture,
    which spoils letters: up to ten classes fit; more take two or three times the width.
    """
    counts = torch.as_tensor(confusion)
    if (block := math.ceil(len(classes) / MAX_CELLS)) > 1:
        missing, classes = -len(classes) % block, [""] * math.ceil(len(classes) / block)
        counts = pad(counts, (0, missing, 0, missing))
        counts = counts.view(len(classes), block, len(classes), block).sum(dim=(1, 3))
    k = len(classes)
    if card:
        width, edge = CARD * (1 if k <= 10 else 2 if k <= 20 else 1 + k // CARD), 20
        room = min(140, width - 40 - 22 * k) if k <= 20 else 0  # for the names
        cell = max(1, min(72, (width - 40 - room) // k))
    else:
        width, edge = 420, 60
        cell = max(1, min(72, max(560 // k, min(20, 960 // k))))
        room = 140 if cell >= 20 else 0  # smaller cells hold no text
    frame, (left, top) = _confusion_frame(tuple(classes), cell, room, edge, width)
    picture, end, foot = frame.copy(), left + k * cell, top + k * cell
    draw = ImageDraw.Draw(picture)
    # The square root makes rare mistakes visible.
    depth = (counts / counts.sum(dim=1, keepdim=True).clamp_min(1)).sqrt()
    shades = 255 + depth[..., None] * (torch.tensor([8, 48, 107]) - 255)
    cells = Image.fromarray(shades.round().byte().numpy())
    picture.paste(cells.resize((k * cell, k * cell), Image.Resampling.NEAREST), (left, top))
    for row, column in counts.nonzero().tolist() if room else []:
        text = str(int(counts[row, column]))
        x, y = left + (column + 0.5) * cell, top + (row + 0.5) * cell
        ink = "white" if depth[row, column] > 0.5 else INK
        fitting = font(min(18, cell // 2, int(1.5 * cell / len(text))))
        draw.text((x, y), text, ink, fitting, "mm")
    for line in range(0, k * cell + 1, cell if room else k * cell):
        draw.line([(left, top + line), (end, top + line)], GRID)
        draw.line([(left + line, top), (left + line, foot)], GRID)
    return picture


@lru_cache(maxsize=4)  # a run draws it in every epoch
def _confusion_frame(
    classes: tuple[str, ...], cell: int, room: int, edge: int, width: int
) -> tuple[Image.Image, tuple[int, int]]:
    """The picture of the names around a confusion matrix, and the pixel where its cells begin.

    room: pixels for the names; 0 for none. edge: pixels to their left. width: the least width.
    """
    size = min(18, cell // 2) if room else 16
    names = [fit_to_pixels(drawable(n, i), size, room) for i, n in enumerate(classes) if room]
    longest = math.ceil(max((font(size, name).getlength(name) for name in names), default=0))
    left, top, all_cells = edge + longest, max(edge, 50) + longest, len(classes) * cell
    picture = Image.new("RGB", (max(left + all_cells + 20, width), top + all_cells + 20), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((12, 10), "Rows: true class. Columns: predicted class.", INK, font(16))
    for i, name in enumerate(names):
        middle = (i + 0.5) * cell
        draw.text((left - 8, top + middle), name, INK, font(size, name), "rm")
        _vertical_text(picture, (left + middle, top - 8), name, size)
    return picture, (left, top)


def panels_of(history: Sequence[dict[str, Any]]) -> dict[str, Curves]:
    """The curves of a run for each panel: loss, metrics and learning rate by epoch."""
    belongs: dict[str, Callable[[str], bool]] = {
        "loss": lambda tag: tag in ("train/loss", "val/loss"),
        "metrics": lambda tag: (
            (tag == "train/accuracy" or tag.startswith("val/")) and tag != "val/loss"
        ),
        "learning rate": lambda tag: tag.startswith("lr/"),
    }
    panels: dict[str, Curves] = {}
    for title, is_in in belongs.items():
        for row in history:
            for tag, value in numbers(row).items():
                if is_in(tag):
                    panels.setdefault(title, {}).setdefault(tag, []).append((row["epoch"], value))
    return {
        title: dict(sorted(curves.items(), key=lambda curve: curve[0].startswith("val/")))
        for title, curves in panels.items()
    }


def draw_curves(history: Sequence[dict[str, Any]], best_epoch: int | None) -> Image.Image:
    """One panel each for losses, metrics and learning rate, over the epochs."""
    best = [] if best_epoch is None else [(best_epoch, "best epoch")]
    return draw_lines(panels_of(history), "epoch", best)


def draw_lines(
    panels: Mapping[str, Curves],
    x_label: str,
    verticals: Sequence[tuple[float, str]] = (),
    log_x: bool = False,
    faint: Collection[str] = (),
) -> Image.Image:
    """A picture of panels one below the other. ``panels``: title -> curve's name -> points (x, y).

    Left out are points that are not finite, and with log_x points with x <= 0. verticals: (x, name
    in the legend) of vertical lines. faint: names of curves that are pale, behind the others.
    """
    drawn = []
    for title, curves in panels.items():
        kept = {name: _finite(curve, log_x) for name, curve in curves.items()}
        if any(kept.values()):
            drawn.append((title, kept))
    marks = {text: x for x, text in verticals if _finite([(x, 0.0)], log_x)}
    names = [legible(name) for _, curves in drawn for name in [*curves, *marks]]
    legend = max((font(15, name).getlength(name) for name in names), default=0) + 60
    right = min(max(_RIGHT, math.ceil(legend)), _WIDEST)
    size = (_WIDTH - _RIGHT + right, _HEIGHT * max(len(drawn), 1))
    picture = Image.new("RGB", size, "white")
    for i, (title, curves) in enumerate(drawn):
        _draw_panel(picture, i * _HEIGHT, _Panel(title, curves, x_label, marks, log_x, faint))
    return picture


class _Panel(NamedTuple):
    """One panel of ``draw_lines``; marks: name of a vertical line in the legend -> its x."""

    title: str
    curves: Curves
    x_label: str
    marks: Mapping[str, float]
    log_x: bool
    faint: Collection[str]


def _finite(curve: Sequence[tuple[float, float]], log_x: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in curve if abs(x) < 1e300 and abs(y) < 1e300 and (x > 0 or not log_x)]


def _draw_panel(picture: Image.Image, offset: int, panel: _Panel) -> None:
    title, curves, x_label, marks, log_x, faint = panel
    draw, small = ImageDraw.Draw(picture), font(15)
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    left, right, top, bottom = _LEFT, _LEFT + wide, offset + _TOP, offset + _TOP + tall
    points = [point for curve in curves.values() for point in curve]
    all_x = [x for x, _ in points] + list(marks.values())
    first, last = min(all_x), max(all_x)
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points))
    low, high = y_ticks[0], y_ticks[-1]
    along: Callable[[float], float] = math.log10 if log_x else float
    begin, span = along(first), along(last) - along(first)

    def across(x: float) -> float:  # from the left
        return ((along(x) - begin) / span if span > 0 else 0.5) * wide

    def down(y: float) -> float:  # from the top
        return (1 - (y - low) / (high - low)) * tall

    colours = _colours(curves, faint)
    spots = {n: [(across(x), down(y)) for x, y in curve] for n, curve in curves.items() if curve}
    # Every second curve is dashed and drawn on top, so that two equal curves both show.
    strong = [name for name in spots if name not in faint]
    solid, dashed = strong[::2], strong[1::2]
    fine = _Fine(wide, tall)
    for tick in y_ticks:
        fine.line([(0, round(down(tick))), (wide, round(down(tick)))], GRID, 1)
    for colour, x in zip(MARKS * len(marks), marks.values(), strict=False):
        fine.line([(across(x), 0), (across(x), tall)], colour, 2)
    for name in [*(name for name in spots if name in faint), *solid]:
        fine.line(spots[name], colours[name], 1.5 if name in faint else 3)
    for name in dashed:
        for dash in _dashes(spots[name]):
            fine.line(dash, colours[name], 3)
    for name in solid + dashed:
        for x, y in spots[name] if len(spots[name]) <= 60 else []:
            fine.dot((round(x), round(y)), colours[name], 2.5 if name in dashed else 4)
    picture.paste(fine.reduced(), (left - _EDGE, top - _EDGE))

    heading = fit_to_pixels(legible(title), 18, wide)
    draw.text((left, offset + 12), heading, INK, font(18, heading))
    for tick in y_ticks:
        draw.text((left - 10, top + down(tick)), f"{tick:.6g}", INK, small, "rm")
    for x in x_ticks(first, last, log_x):
        draw.text((left + across(x), bottom + 8), f"{x:.6g}", INK, small, "mt")
    draw.text((right, bottom + 26), legible(x_label), INK, font(15, x_label), "rt")
    room = tall // 22 - len(marks)  # lines of the legend
    shown = list(curves) if len(curves) <= room else list(curves)[: room - 1]
    entries = [(name, colours[name]) for name in shown]
    if len(shown) < len(curves):
        entries.append((f"and {len(curves) - len(shown)} more", ""))
    entries += zip(marks, MARKS * len(marks), strict=False)
    _draw_legend(draw, (right, top, picture.width), entries, dashed)


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int, int],
    entries: Sequence[tuple[str, str]],
    dashed: Collection[str],
) -> None:
    """Draw each name with a piece of its line; colour "": no line. corner: left, top, right."""
    left, top, right = corner
    for i, (name, colour) in enumerate(entries):
        line = top + 10 + 22 * i
        text = fit_to_pixels(legible(name), 15, right - left - 56, end=20)
        if colour:
            sample: Points = [(left + 16, line), (left + 40, line)]
            for piece in _dashes(sample) if name in dashed else [sample]:
                draw.line(piece, colour, 3)
        draw.text((left + 48, line), text, INK, font(15, text), "lm")


def _colours(curves: Curves, faint: Collection[str]) -> dict[str, str]:
    """The colour of each curve; a pale one for faint curves."""
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(curves)}
    for name in set(faint) & set(colours):
        red, green, blue = (170 + c // 3 for c in ImageColor.getrgb(colours[name])[:3])
        colours[name] = f"#{red:02x}{green:02x}{blue:02x}"
    return colours


def _dashes(line: Points) -> Iterator[Points]:
    """The pieces of a dashed line. Dashes and gaps are equally long at any slope."""
    points = np.asarray(line)
    along = np.cumsum([0.0, *np.hypot(*np.diff(points, axis=0).T)])  # pixels from the start
    edges = np.arange(0, along[-1], _DASH)
    places = np.array(sorted({*along.tolist(), *edges.tolist()}))  # np.union1d loads numpy.ma
    xs, ys = (np.interp(places, along, axis).tolist() for axis in points.T)
    cuts = [*np.searchsorted(places, edges).tolist(), len(places)]
    for begin, end in zip(cuts[::2], cuts[1::2], strict=False):
        yield list(zip(xs[begin : end + 1], ys[begin : end + 1], strict=True))


class _Fine:
    """A panel's lines with smooth edges: drawn larger, on white, and averaged."""

    def __init__(self, wide: int, tall: int) -> None:
        size = ((wide + 2 * _EDGE + 1) * _FINE, (tall + 2 * _EDGE + 1) * _FINE)
        self.picture = Image.new("RGB", size, "white")
        self.draw = ImageDraw.Draw(self.picture)

    def place(self, spots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """The points, in pixels from the axes, in pixels of the larger picture."""
        middle = _EDGE * _FINE + _FINE // 2
        return [(x * _FINE + middle, y * _FINE + middle) for x, y in spots]

    def line(self, spots: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        """Draw a line through the points, ``width`` pixels broad."""
        joint = "curve" if 2 < len(spots) <= 1000 else None
        self.draw.line(self.place(spots), colour, round(width * _FINE), joint)

    def dot(self, spot: tuple[float, float], colour: str, radius: float) -> None:
        """Draw a dot with a ``radius`` in pixels."""
        ((x, y),), r = self.place([spot]), radius * _FINE
        self.draw.ellipse((x - r, y - r, x + r, y + r), colour)

    def reduced(self) -> Image.Image:
        """The picture in its real size; the axes begin _EDGE pixels from its left and top."""
        return self.picture.reduce(_FINE)


def draw_bars(names: Sequence[str], series: Mapping[str, Sequence[float]]) -> Image.Image:
    """A group of horizontal bars for each name: one bar, with its count, for each series."""
    sums = [sum(values) for values in zip(*series.values(), strict=True)]
    order = list(range(len(names)))
    left_out = len(names) - MAX_BARS
    if left_out > 0:
        by_sum = sorted(order, key=lambda i: (sums[i], i))
        order = by_sum[: MAX_BARS // 2] + by_sum[-(MAX_BARS // 2) :]
    texts = [fit_to_pixels(drawable(names[i], i), 15, 200) for i in order]
    left = 24 + math.ceil(max((font(15, text).getlength(text) for text in texts), default=0))
    thick, gap, top = 14, 10, 44
    group = len(series) * thick + gap
    height = top + len(order) * group + (26 if left_out > 0 else 0) + 10
    picture = Image.new("RGB", (left + 560, height), "white")
    draw = ImageDraw.Draw(picture)
    longest = max((max(values, default=0) for values in series.values()), default=0) or 1
    x = float(left)
    for i, label in enumerate(map(legible, series)):
        draw.rectangle((x, 14, x + 14, 28), COLOURS[i % len(COLOURS)])
        draw.text((x + 20, 21), label, INK, font(15, label), "lm")
        x += 44 + font(15, label).getlength(label)
    y = top
    for place, (index, text) in enumerate(zip(order, texts, strict=True)):
        if left_out > 0 and place == MAX_BARS // 2:
            draw.text((left, y), f"... {left_out:,} more, then the largest", "#777777", font(15))
            y += 26
        middle = y + len(series) * thick / 2
        draw.text((left - 10, middle), text, INK, font(15, text), "rm")
        for i, values in enumerate(series.values()):
            end = left + 460 * values[index] / longest
            line = y + i * thick
            if values[index]:
                draw.rectangle((left, line, end, line + thick - 3), COLOURS[i % len(COLOURS)])
            draw.text((end + 8, line + 6), f"{values[index]:,}", INK, font(13), "lm")
        y += group
    return picture


def draw_calibration(bins: Sequence[tuple[int, float, float]]) -> Image.Image:
    """Reliability diagram of equal intervals of confidence, with the number of images in each.

    bins: (images, mean confidence, accuracy) of each interval, from 0 to 1. A bar is the accuracy,
    a red mark the mean confidence. A bar below its mark means that the model is too sure.
    """
    side, left, top, low = 420, 64, 44, 110  # square, margins, height of the counts
    picture = Image.new("RGB", (left + side + 30, top + side + low + 70), "white")
    draw = ImageDraw.Draw(picture)
    bottom, base, small = top + side, top + side + low + 16, font(15)
    draw.text((left, 12), "accuracy by confidence", INK, font(18))
    for i in range(6):
        y = bottom - side * i / 5
        draw.line([(left, y), (left + side, y)], GRID)
        draw.text((left - 8, y), f"{i / 5:g}", INK, small, "rm")
        draw.text((left + side * i / 5, base + 8), f"{i / 5:g}", INK, small, "mt")
    most = max((count for count, _, _ in bins), default=0) or 1
    width = side / max(len(bins), 1)
    for i, (count, confidence, accuracy) in enumerate(bins):
        if not count:
            continue
        x0, x1 = left + i * width + 1, left + (i + 1) * width - 2
        draw.rectangle((x0, bottom - side * accuracy, x1, bottom), COLOURS[0])
        draw.rectangle((x0, base - (low - 16) * count / most, x1, base), "#999999")
        y = bottom - side * confidence
        draw.line([(x0, y), (x1, y)], WRONG, 3)
    draw.line([(left, bottom), (left + side, top)], "#777777", 2)
    draw.line([(left, base), (left + side, base)], GRID)
    draw.text((left - 8, base - low + 16), f"{most:,}", INK, small, "rt")
    draw.text((left + 4, bottom + 12), "images", "#777777", small)
    draw.text((left + side, base + 28), "confidence", INK, small, "rt")
    return picture


def _vertical_text(
    picture: Image.Image, bottom_middle: tuple[float, float], text: str, size: int
) -> None:
    """Draw the text upwards from the given point."""
    face = font(size, text)
    width, height = math.ceil(face.getlength(text)) + 4, 28
    strip = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(strip).text((0, height / 2), text, INK, face, "lm")
    x, y = bottom_middle
    picture.paste(strip.rotate(90, expand=True), (round(x - height / 2), round(y - width)))
