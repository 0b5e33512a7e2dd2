"""The pictures of a run: the confusion matrix and the curves, drawn with Pillow alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT = 960, 320  # pixels of a panel of curves
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 230, 44, 44  # its margins; the right one holds the legend
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")
_INK, _GRID = "#222222", "#dddddd"

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """Those of ``values`` that are finite numbers."""
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def draw_confusion(confusion: list[list[int]], classes: Sequence[str]) -> Image.Image:
    """Counts, shaded by their share of the row; rows are true classes, columns predicted ones."""
    k = len(classes)
    cell = max(1, min(72, 960 // k))
    named = cell >= 20  # smaller cells hold no text
    font = _font(min(18, cell // 2) if named else 16)
    names = [_fit(_drawable(name, i), font, 140) for i, name in enumerate(classes) if named]
    margin = 60 + math.ceil(max(map(font.getlength, names), default=0))
    end = margin + k * cell
    picture = Image.new("RGB", (max(end + 20, 420), end + 20), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((12, 10), "Rows: true class. Columns: predicted class.", _INK, _font(16))
    for row, counts in enumerate(confusion):
        total = max(sum(counts), 1)
        for column, count in enumerate(counts):
            if not count:
                continue
            depth = math.sqrt(count / total)  # the root lets rare mistakes be seen
            shade = tuple(round(255 + depth * (c - 255)) for c in (8, 48, 107))
            x, y = margin + column * cell, margin + row * cell
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), shade)
            if named:
                ink = "white" if depth > 0.5 else _INK
                fitting = _font(min(18, cell // 2, int(1.5 * cell / len(str(count)))))
                draw.text((x + cell / 2, y + cell / 2), str(count), ink, fitting, "mm")
    for line in range(margin, end + 1, cell if named else k * cell):
        draw.line([(margin, line), (end, line)], _GRID)
        draw.line([(line, margin), (line, end)], _GRID)
    for i, name in enumerate(names):
        middle = margin + (i + 0.5) * cell
        draw.text((margin - 8, middle), name, _INK, font, "rm")
        _vertical_text(picture, (middle, margin - 8), name, font)
    return picture


def draw_curves(history: list[dict[str, Any]], best_epoch: int | None) -> Image.Image:
    """A panel each for losses, validation metrics and learning rate, over the epochs."""
    belongs: dict[str, Callable[[str], bool]] = {
        "loss": lambda tag: tag.endswith("/loss"),
        "validation metrics": lambda tag: tag.startswith("val/") and tag != "val/loss",
        "learning rate": lambda tag: tag == "lr/group0",
    }
    panels = []
    for title, is_in in belongs.items():
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in history:
            for tag, value in numbers(row).items():
                if is_in(tag):
                    curves.setdefault(tag, []).append((row["epoch"], value))
        if curves:
            panels.append((title, curves))
    picture = Image.new("RGB", (_WIDTH, _HEIGHT * max(len(panels), 1)), "white")
    draw = ImageDraw.Draw(picture)
    for i, (title, curves) in enumerate(panels):
        _draw_panel(draw, i * _HEIGHT, title, curves, best_epoch)
    return picture


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    offset: int,
    title: str,
    curves: dict[str, list[tuple[float, float]]],
    best_epoch: int | None,
) -> None:
    font = _font(15)
    left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, offset + _TOP, offset + _HEIGHT - _BOTTOM
    points = [point for curve in curves.values() for point in curve]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    y_ticks = _ticks(min(y for _, y in points), max(y for _, y in points))
    low, high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / (last - first) if last > first else 0.5
        return left + share * (right - left), bottom - (y - low) / (high - low) * (bottom - top)

    draw.text((left, offset + 12), title, _INK, _font(18))
    for tick in y_ticks:
        y = place(first, tick)[1]
        draw.line([(left, y), (right, y)], _GRID)
        draw.text((left - 8, y), f"{tick:.6g}", _INK, font, "rm")
    room = (last - first) / 20  # between the numbers of the ends and those within
    within = {round(x) for x in _ticks(first, last) if first + room < x < last - room}
    for epoch in {first, last} | within:
        draw.text((place(epoch, low)[0], bottom + 8), str(epoch), _INK, font, "mt")
    draw.text((right, bottom + 26), "epoch", _INK, font, "rt")
    if best_epoch is not None and first <= best_epoch <= last:
        best = place(best_epoch, low)[0]
        draw.line([(best, top), (best, bottom)], "#999999", 2)
        anchor, side = ("rb", -6) if best > (left + right) / 2 else ("lb", 6)
        draw.text((best + side, (top + bottom) / 2), "best", "#777777", font, anchor)
    for i, (tag, curve) in enumerate(curves.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        places = [place(x, y) for x, y in curve]
        draw.line(places, colour, 3, joint="curve")
        for x, y in places if len(places) <= 60 else []:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), colour)
        line = top + 10 + 22 * i
        draw.line([(right + 16, line), (right + 40, line)], colour, 3)
        draw.text((right + 48, line), _fit(tag, font, _RIGHT - 56), _INK, font, "lm")


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers from at most ``low`` to at least ``high``."""
    span = high - low or abs(high) or 1.0
    low = min(low, high - span)  # a constant stands at the upper edge: no accuracy above 1
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= span / 5 * (1 - 1e-9))
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(start, max(stop, start + 1) + 1)]


def _font(size: int) -> _Font:
    return ImageFont.load_default(size)


def _drawable(name: str, index: int) -> str:
    """The name, or its place where Pillow's own font cannot write it."""
    return name if name.isprintable() and max(map(ord, name), default=0) < 256 else f"#{index}"


def _fit(text: str, font: _Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _vertical_text(
    picture: Image.Image,
    bottom_middle: tuple[float, float],
    text: str,
    font: _Font,
) -> None:
    """Write upwards from the given point."""
    width, height = math.ceil(font.getlength(text)) + 4, 28
    strip = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(strip).text((0, height / 2), text, _INK, font, "lm")
    x, y = bottom_middle
    picture.paste(strip.rotate(90, expand=True), (round(x - height / 2), round(y - width)))
