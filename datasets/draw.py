"""Draw pictures like notes of 1 and 100 yuan, for machines without photographs.

There are two series of each value, a green and a dark red 1, a red and a blue 100, so that colour
does not determine the value. Wear, background, angle, crop, light and noise are random.
"""

import math
import os
import random
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from datasets.temporary import unfinished

MARK = "DRAWN.txt"  # this file marks drawn pictures, so that nobody takes them for photographs

Colour = tuple[int, int, int]
Point = tuple[float, float]
NOTE = (480, 224)  # pixels
PHOTO = (400, 220)


class Series(NamedTuple):
    """The look of one series of notes."""

    name: str
    value: str
    paper: tuple[Colour, Colour]  # colour at the left and at the right end
    ink: Colour
    heads: tuple[tuple[float, float], ...]  # (centre x, height) in widths and heights of the note
    centre: float  # x of the large value
    band: bool  # the dark bar along the lower edge
    strip: float  # width of the unprinted left end


# The red and the blue 100 differ only in colour, unlike the real notes. So one can see whether a
# model uses the drawing or the colour.
SERIES = (
    Series(
        name="1999",
        value="1",
        paper=((214, 222, 178), (188, 206, 160)),
        ink=(92, 112, 62),
        heads=((0.74, 0.74),),
        centre=0.38,
        band=False,
        strip=0.0,
    ),
    Series(
        name="1990",
        value="1",
        paper=((222, 214, 160), (236, 186, 164)),
        ink=(104, 50, 40),
        heads=((0.60, 0.60), (0.74, 0.72)),
        centre=0.26,
        band=True,
        strip=0.0,
    ),
    Series(
        name="1999",
        value="100",
        paper=((240, 196, 196), (226, 160, 164)),
        ink=(184, 28, 66),
        heads=((0.33, 0.58), (0.41, 0.60), (0.49, 0.62), (0.58, 0.66)),
        centre=0.80,
        band=True,
        strip=0.22,
    ),
    Series(
        name="1990",
        value="100",
        paper=((232, 228, 210), (164, 196, 222)),
        ink=(44, 54, 84),
        heads=((0.33, 0.58), (0.41, 0.60), (0.49, 0.62), (0.58, 0.66)),
        centre=0.80,
        band=True,
        strip=0.22,
    ),
)


def draw(target: Path, per_class: int = 120, seed: int = 0) -> None:
    """Draw ``per_class`` pictures of each value into ``target/VALUE/NUMBER-SERIES.jpg``.

    Picture k of a value depends only on (seed, value, k), so the first pictures do not change with
    ``per_class``. The folder is made atomically; if another process makes it first, that one stays.
    Raises OSError if ``target`` cannot be written.
    """
    target = target.resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with unfinished(partial):
        for value in dict.fromkeys(series.value for series in SERIES):
            issues = [series for series in SERIES if series.value == value]
            (partial / value).mkdir(parents=True)
            for k in range(per_class):
                series = issues[k % len(issues)]
                rng = random.Random(f"{seed}/{value}/{k}")
                picture = photograph(print_note(series, rng), rng)
                path = partial / value / f"{k:04d}-{series.name}.jpg"
                picture.save(path, quality=rng.randint(70, 95))
        (partial / MARK).write_text(
            f"{per_class} pictures a class, drawn with seed {seed}. They are no photographs.\n"
        )
        try:
            partial.rename(target)
        except OSError:
            if not (target / MARK).exists():
                raise


def print_note(series: Series, rng: random.Random) -> Image.Image:
    """A flat note with a random serial number and wear: RGB, ``NOTE`` pixels."""
    width, height = NOTE
    ramp = Image.linear_gradient("L").rotate(90).resize(NOTE)  # dark on the left
    note = Image.composite(
        Image.new("RGB", NOTE, series.paper[1]), Image.new("RGB", NOTE, series.paper[0]), ramp
    )
    pen = ImageDraw.Draw(note)
    pale = _mix(series.ink, series.paper[0], 0.7)
    for k in range(14):  # guilloche
        wave = [
            (x, height * (0.5 + 0.42 * math.sin(x / 38 + k * 0.45) * math.cos(k * 0.3)))
            for x in range(0, width + 1, 6)
        ]
        pen.line(wave, fill=pale)
    pen.rectangle(
        (0, 0, width * series.strip, height), fill=_mix(series.paper[0], (255, 255, 255), 0.6)
    )
    if series.band:
        pen.rectangle(
            (0, height * 0.80, width, height * 0.94), fill=_mix(series.ink, (0, 0, 0), 0.25)
        )
        pen.ellipse((width * 0.80, height * 0.76, width * 0.96, height * 0.97), fill=series.ink)
    for x, tall in series.heads:
        _head(pen, series, x * width, height * 0.82, tall * height)
    _emblem(pen, series.ink, (width * 0.09, height * 0.20), height * 0.11)
    for k in range(6):  # the bank's name
        _character(pen, series.ink, k, (width * (0.18 + 0.048 * k), height * 0.11), 15)
    for k in range(1 + len(series.value) // 2):  # the value in characters
        _character(pen, series.ink, 10 + k, (width * (series.centre + 0.09 * k), height * 0.40), 42)
    _text(pen, series.value, (width * 0.90, height * 0.12), 30, series.ink)
    _text(pen, series.value, (width * 0.10, height * 0.86), 30, pale if series.band else series.ink)
    _text(pen, series.value, (width * series.centre, height * 0.66), 52, series.ink)
    number = "".join(rng.choices("ABCDEFGHJK", k=2) + rng.choices("0123456789", k=8))
    _text(pen, number, (width * 0.13, height * 0.60), 14, series.ink)
    return _worn(note, rng)


def photograph(note: Image.Image, rng: random.Random) -> Image.Image:
    """The note on a table, seen by a camera: RGB, ``PHOTO`` pixels."""
    width, height = PHOTO
    margin = 80  # pixels around the camera's view, so that a tilted view stays on the table
    scene = _table((width + 2 * margin, height + 2 * margin), rng)
    size = rng.uniform(0.84, 1.04) * width / NOTE[0]
    flat = note.resize((round(NOTE[0] * size), round(NOTE[1] * size)))
    mask = ImageOps.expand(Image.new("L", flat.size, 255), border=2, fill=0)  # for a smooth rim
    flat = ImageOps.expand(flat, border=2, fill=(200, 196, 184))
    angle = rng.gauss(0, 3.5)
    mask = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    turned = flat.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    corner = (
        round((scene.width - turned.width) / 2 + rng.uniform(-0.04, 0.04) * width),
        round((scene.height - turned.height) / 2 + rng.uniform(-0.04, 0.04) * height),
    )
    shadow = mask.filter(ImageFilter.GaussianBlur(6)).point(lambda level: level * 0.5)
    scene.paste((20, 20, 20), (corner[0] + 4, corner[1] + 5), shadow)
    scene.paste(turned, corner, mask)

    def jitter(x: float, y: float) -> Point:
        return x + margin + rng.uniform(-16, 16), y + margin + rng.uniform(-12, 12)

    view = (*jitter(0, 0), *jitter(0, height), *jitter(width, height), *jitter(width, 0))
    picture = scene.transform(PHOTO, Image.Transform.QUAD, view, Image.Resampling.BICUBIC)
    return _developed(_lit(picture, rng), rng)


def _worn(note: Image.Image, rng: random.Random) -> Image.Image:
    """The note with folds, dirt and faded ink."""
    width, height = note.size
    wear = Image.new("L", note.size, 0)
    pen = ImageDraw.Draw(wear)
    for _ in range(rng.randint(0, 4)):  # folds are lighter: the ink has gone
        x, slant = rng.uniform(0, width), rng.uniform(-12, 12)
        pen.line((x, 0, x + slant, height), fill=rng.randint(60, 170), width=rng.randint(1, 3))
    note = Image.composite(Image.new("RGB", note.size, (240, 235, 225)), note, wear)
    dirt = Image.new("L", note.size, rng.randint(0, 50))
    pen = ImageDraw.Draw(dirt)
    for _ in range(rng.randint(0, 5)):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(8, 40)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=rng.randint(40, 110))
    dirt = dirt.filter(ImageFilter.GaussianBlur(9))
    note = Image.composite(Image.new("RGB", note.size, (120, 100, 72)), note, dirt)
    return ImageEnhance.Color(note).enhance(rng.uniform(0.55, 1.15))


def _table(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A table of any colour, plain or with stripes."""
    base = _mix(
        rng.choice([(225, 228, 228), (120, 84, 56), (60, 66, 78), (150, 40, 40), (70, 110, 80)]),
        (rng.randrange(256), rng.randrange(256), rng.randrange(256)),
        0.15,
    )
    table = Image.new("RGB", size, base)
    pen = ImageDraw.Draw(table)
    step = rng.choice([0, 0, 7, 13])
    if step:
        for y in range(0, size[1], step):
            shade = _mix(base, (0, 0, 0), rng.uniform(0.05, 0.25))
            pen.line(
                (0, y, size[0], y + rng.uniform(-9, 9)), fill=shade, width=rng.randint(1, step // 2)
            )
    return table.filter(ImageFilter.GaussianBlur(1))


def _lit(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The picture under uneven light of random strength and colour."""
    ramp = Image.linear_gradient("L").rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC)
    ramp = ramp.crop((48, 48, 208, 208)).resize(picture.size)  # without the empty corners
    darkest = rng.uniform(0.6, 0.95)
    shade = ramp.point(lambda level: 255 * darkest + level * (1 - darkest))
    picture = ImageChops.multiply(picture, Image.merge("RGB", (shade, shade, shade)))
    warmth = rng.uniform(-0.1, 0.1)
    red, green, blue = picture.split()
    red = red.point(lambda level: level * (1 + warmth))
    blue = blue.point(lambda level: level * (1 - warmth))
    picture = Image.merge("RGB", (red, green, blue))
    return ImageEnhance.Brightness(picture).enhance(rng.uniform(0.7, 1.2))


def _developed(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The picture with the camera's contrast, blur and noise."""
    picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.75, 1.25))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.6)))
    noise = Image.frombytes("RGB", picture.size, rng.randbytes(picture.width * picture.height * 3))
    return Image.blend(picture, noise, rng.uniform(0.01, 0.10))


def _head(pen: ImageDraw.ImageDraw, series: Series, x: float, foot: float, tall: float) -> None:
    """A portrait that looks to the left: shoulders, face, hair."""
    wide, top = tall * 0.52, foot - tall
    skin, dark = _mix(series.ink, series.paper[0], 0.55), _mix(series.ink, (0, 0, 0), 0.2)
    pen.pieslice(
        (x - wide, foot - tall * 0.32, x + wide, foot + tall * 0.32), 180, 360, fill=series.ink
    )
    pen.ellipse((x - wide * 0.62, top, x + wide * 0.68, top + tall * 0.62), fill=dark)
    pen.ellipse((x - wide * 0.66, top + tall * 0.12, x + wide * 0.34, top + tall * 0.74), fill=skin)
    pen.line(
        (x - wide * 0.5, top + tall * 0.36, x - wide * 0.2, top + tall * 0.36), fill=dark, width=3
    )
    pen.line(
        (x - wide * 0.5, top + tall * 0.58, x - wide * 0.25, top + tall * 0.57), fill=dark, width=2
    )


def _emblem(pen: ImageDraw.ImageDraw, ink: Colour, centre: Point, radius: float) -> None:
    (x, y), r = centre, radius
    pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    pen.regular_polygon((x, y - r * 0.15, r * 0.5), 5, fill=_mix(ink, (255, 255, 255), 0.7))


def _character(
    pen: ImageDraw.ImageDraw, ink: Colour, code: int, centre: Point, size: float
) -> None:
    """Strokes in a square that imitate a Chinese character; they depend only on ``code``."""
    rng = random.Random(code)
    (x, y), half = centre, size / 2
    thick = max(1, round(size / 10))
    for _ in range(3):
        level, side = rng.uniform(-half, half), rng.uniform(-half, half)
        pen.line((x - half, y + level, x + half, y + level), fill=ink, width=thick)
        pen.line((x + side, y - half, x + side * 0.6, y + half), fill=ink, width=thick)


def _text(pen: ImageDraw.ImageDraw, text: str, centre: Point, size: int, ink: Colour) -> None:
    pen.text(centre, text, fill=ink, font=ImageFont.load_default(size), anchor="mm")


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    """(1 - share) * first + share * second, rounded; ``share`` is 0 to 1."""
    r, g, b = (round(a + (z - a) * share) for a, z in zip(first, second, strict=True))
    return r, g, b
