"""Odd pictures of every format, against the arithmetic of the specifications and other decoders."""

import contextlib
import io
import itertools
import json
import re
import struct
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image, ImageOps
from PIL import __version__ as PILLOW

from datasets import BrokenImage
from datasets.bands import Form
from datasets.image_folder import ImageFolder
from datasets.images import HAS_AVIF, Remark, decode, decode_and_tell, notes_on
from tests.picture_files import (
    adobe,
    bmp,
    bmp_rows,
    chunk,
    gif,
    gif_frame,
    jpeg,
    packed,
    png,
    riff,
    segment,
    tiff,
)
from trainer.build.trained import TrainedModel
from trainer.config import load_config
from trainer.data import main as data_command
from trainer.drawing.page import render
from trainer.input.data import load_data
from trainer.input.loader import train_loader
from yaml_trainer.export.model_card import SCRIPT_TEMPLATE

H, W = 9, 11
CPU = torch.device("cpu")
NEWEST = int(PILLOW.split(".")[0]) >= 13  # older versions of Pillow read fewer files
rng = np.random.default_rng(0)


class Odd(NamedTuple):
    """A picture: its file, its pixels (H, W, 3) by the specification, or the reason of a refusal.

    within: levels by which a pixel may differ.
    """

    content: bytes
    pixels: np.ndarray | str
    within: int = 0


# --- the arithmetic of the specifications ---------------------------------------------------------


def draw(most: int, channels: int = 1, height: int = H, width: int = W) -> np.ndarray:
    """Random samples (H, W, C) from 0 to ``most``; the same two levels stand side by side."""
    samples = rng.integers(0, most + 1, (height, width, channels))
    samples[0, :2] = min(1, most - 1)
    return samples


def levels(samples: np.ndarray, bits: int) -> np.ndarray:
    """Samples in 8 bits: scaled up so that the highest is 255, or their high byte."""
    return samples >> (bits - 8) if bits > 8 else samples * 255 // ((1 << bits) - 1)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., :1], 3, axis=2)


def on_white(colours, alpha):
    return np.rint((colours * alpha + 255.0 * (255 - alpha)) / 255).astype(int)


def of_ycc(y: float, cb: float, cr: float) -> list[float]:
    """JFIF's RGB of a colour."""
    r, b = y + 1.402 * (cr - 128), y + 1.772 * (cb - 128)
    return [r, y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), b]


def of_lab(lab):
    """sRGB of CIE L*a*b* with the white of D50."""
    y = (lab[..., :1] + 16) / 116
    f = np.concatenate([y + lab[..., 1:2] / 500, y, y - lab[..., 2:] / 200], axis=2)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1, 0.8249]
    to_linear = [
        [3.13386, -0.97877, 0.07195],
        [-1.61687, 1.91614, -0.22899],
        [-0.49061, 0.03345, 1.40524],
    ]
    linear = np.clip(xyz @ np.array(to_linear), 0, 1)
    curved = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return np.rint(255 * curved).astype(int)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels as EXIF's orientation 1 to 8 says that they are seen."""
    across = pixels.transpose(1, 0, 2)
    seen = [pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1]]
    seen += [across, across[:, ::-1], across[::-1, ::-1], across[::-1]]
    return seen[orientation - 1]


def exif(orientation: int, order: str = ">") -> bytes:
    head = {">": b"MM\0*", "<": b"II*\0"}[order]
    return head + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)


def flat(colour, height=16, width=16):
    return np.rint(np.full((height, width, 3), np.clip(colour, 0, 255))).astype(int)


def saved(pixels: np.ndarray, format: str, mode: str | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.astype(np.uint8))
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


def table(count: int, size: int = 3) -> tuple[np.ndarray, bytes]:
    """A palette of random colours, and its bytes: RGB, or BGR and zeros for a BMP's."""
    colours = rng.integers(0, 256, (count, 3))
    if size == 3:
        return colours, colours.astype(np.uint8).tobytes()
    return colours, b"".join(bytes([b, g, r, 0]) for r, g, b in colours.tolist())


# --- the pictures ---------------------------------------------------------------------------------


def png_pictures():
    kinds = [(0, b) for b in (1, 2, 4, 8, 16)] + [(c, b) for c in (2, 4, 6) for b in (8, 16)]
    for (colour, bits), interlaced in itertools.product(kinds, (False, True)):
        name = f"colour {colour}, {bits} bits" + ", interlaced" * interlaced
        samples = draw((1 << bits) - 1, {0: 1, 2: 3, 4: 2, 6: 4}[colour])
        seen = levels(samples, bits)
        if bits == 16:
            samples[0, 1] += 1  # the same high byte: only one of the two is the key
        colours = rgb(seen) if colour in (0, 4) else seen[..., :3]
        alpha = seen[..., -1:] if colour > 2 else np.array(255)
        file = png(samples, bits, colour, interlaced=interlaced, filters=True, pieces=3)
        yield name, Odd(file, on_white(colours, alpha))
        if colour < 3:
            key = samples[0, 0]
            is_key = (samples == key).all(axis=2, keepdims=True)
            assert is_key.any() and not is_key.all()
            extra = chunk(b"tRNS", key.astype(">u2").tobytes())
            file = png(samples, bits, colour, extra, interlaced, pieces=2)
            yield f"{name}, a transparent level", Odd(file, np.where(is_key, 255, colours))
    for bits in (1, 2, 4, 8):
        colours, entries = table(1 << bits)
        samples, alpha = draw((1 << bits) - 1), rng.integers(0, 256, 1 << bits)
        alpha[1 << bits - 1 :] = 255  # a short table: the rest is opaque
        clear = chunk(b"tRNS", bytes(alpha[: 1 << bits - 1].tolist()))
        yield (
            f"palette of {bits} bits",
            Odd(
                png(samples, bits, 3, chunk(b"PLTE", entries), interlaced=bits == 2),
                colours[samples[..., 0]],
            ),
        )
        yield (
            f"palette of {bits} bits with alpha",
            Odd(
                png(samples, bits, 3, chunk(b"PLTE", entries) + clear),
                on_white(colours[samples[..., 0]], alpha[samples]),
            ),
        )
    samples = draw(255, 3)
    for orientation in range(1, 9):
        extra = chunk(b"eXIf", exif(orientation, "<>"[orientation % 2]))
        yield (
            f"orientation {orientation}",
            Odd(png(samples, 8, 2, extra), turned(samples, orientation)),
        )
    extra = chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"bKGD", b"\0\1\0\2\0\3")
    yield "gamma and background, which have no effect", Odd(png(samples, 8, 2, extra), samples)
    control = struct.pack(">IIIIIHHBB", 0, W, H, 0, 0, 1, 10, 0, 0)
    extra = chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", control)
    yield "an animation", Odd(png(samples, 8, 2, extra), samples)
    yield "one pixel", Odd(png(draw(15, 1, 1, 1), 4, 0), flat([17, 17, 17], 1, 1))


def tiff_pictures():
    ways: dict[str, dict] = {"": {}, ", tiles": {"tile": 16}, ", deflated": {"deflated": True}}
    ways |= {", strips": {"rows": 2}}
    for bits, order in [(1, "<"), (2, ">"), (4, "<"), (8, ">"), (12, "<"), (16, "<"), (16, ">")]:
        for way, options in ways.items():
            samples = draw((1 << bits) - 1)
            name = f"grey of {bits} bits {order}{way}"
            yield name, Odd(tiff(samples, bits, 1, order, **options), rgb(levels(samples, bits)))
    for bits, order in [(1, "<"), (4, ">"), (8, "<"), (16, "<")]:
        samples = draw((1 << bits) - 1)
        file = tiff(samples, bits, 0, order, deflated=bits == 4)
        yield f"grey of {bits} bits, 0 is white", Odd(file, 255 - rgb(levels(samples, bits)))
    for bits, order in itertools.product((8, 16), "<>"):
        for way, options in (ways | {", planes": {"planar": True}}).items():
            samples = draw((1 << bits) - 1, 3)
            file = tiff(samples, bits, 2, order, **options)
            yield f"colour of {bits} bits {order}{way}", Odd(file, levels(samples, bits))
        samples = draw((1 << bits) - 1, 4)
        seen = levels(samples, bits)
        composed = on_white(seen[..., :3], seen[..., 3:])
        for kind, pixels in ((0, seen[..., :3]), (2, composed)):
            file = tiff(samples, bits, 2, order, t338=[kind], deflated=kind == 0)
            yield f"colour of {bits} bits {order}, a fourth of kind {kind}", Odd(file, pixels)
        file = tiff(samples, bits, 2, order, planar=True, t338=[2])
        yield f"colour and alpha of {bits} bits {order} in planes", Odd(file, composed)
        tone, key = 255 - seen[..., :3], 255 - seen[..., 3:]
        file = tiff(samples, bits, 5, order, t332=[1], rows=4)
        yield f"CMYK of {bits} bits {order}", Odd(file, np.rint(tone * key / 255).astype(int), 1)
        samples[..., :3] = samples[..., :3] * samples[..., 3:] // ((1 << bits) - 1)
        seen = levels(samples, bits)
        composed = np.minimum(255, seen[..., :3] + 255 - seen[..., 3:])
        file = tiff(samples, bits, 2, order, t338=[1])
        yield f"colour of {bits} bits {order}, premultiplied", Odd(file, composed, 1)
    samples = draw(255, 2)
    composed = on_white(rgb(samples), samples[..., 1:])
    yield "grey and alpha", Odd(tiff(samples, 8, 1, t338=[2]), composed)
    samples[..., :1] = samples[..., :1] * samples[..., 1:] // 255
    composed = np.minimum(255, rgb(samples) + 255 - samples[..., 1:])
    yield "grey and alpha, premultiplied", Odd(tiff(samples, 8, 1, t338=[1]), composed, 1)
    for bits in (1, 2, 4, 8):
        colours, _ = table(1 << bits)
        samples = draw((1 << bits) - 1)
        file = tiff(
            samples, bits, 3, "<>"[bits % 4 == 0], t320=(colours * 257).T.flatten().tolist()
        )
        yield f"palette of {bits} bits", Odd(file, colours[samples[..., 0]])
    samples, entries = draw(255, 2), (colours * 257).T.flatten().tolist()
    for kind, alpha in ((0, np.array(255)), (2, samples[..., 1:])):
        seen = on_white(colours[samples[..., 0]], alpha)
        yield (
            f"palette and a second of kind {kind}",
            Odd(tiff(samples, 8, 3, t338=[kind], t320=entries), seen),
        )
    for orientation in range(1, 9):
        samples = draw(255, 3)
        file = tiff(samples, 8, 2, deflated=orientation % 2 == 0, t274=[orientation])
        yield f"orientation {orientation}", Odd(file, turned(samples, orientation))
    small, large = draw(255), draw(65535)
    kinds: dict[str, dict] = {"i4": {"t339": [2]}, "u4": {}}
    for number, tags in kinds.items():
        yield f"{number}, up to 255", Odd(tiff(small, 32, 1, kind=number, **tags), rgb(small))
        yield (
            f"{number}, up to 65535",
            Odd(tiff(large, 32, 1, kind=number, **tags), rgb(large >> 8)),
        )
    yield "i4 >, up to 255", Odd(tiff(small, 32, 1, ">", kind="i4", t339=[2]), rgb(small))
    yield "i2, up to 255", Odd(tiff(small, 16, 1, kind="i2", t339=[2]), rgb(small))
    lab = np.zeros((1, 5, 3), int)
    lab[0, :, 0] = [0, 136, 255, 136, 136]  # 136 of 255 is L* 53.3
    lab[0, 3, 1], lab[0, 4, 2] = 30, -30
    file = tiff(lab % 256, 8, 8)
    yield "Lab", Odd(file, of_lab(lab * [100 / 255, 1, 1]), 2)
    two = io.BytesIO()
    pages = [Image.fromarray(draw(255, 3).astype(np.uint8)) for _ in range(2)]
    pages[0].save(two, "TIFF", save_all=True, append_images=pages[1:])
    yield "two pages", Odd(two.getvalue(), np.asarray(pages[0]).astype(int))
    for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate"):
        pixels = draw(255, 3)
        yield compression, Odd(saved(pixels, "TIFF", compression=compression), pixels)
    negative, wide, colour = draw(255) - 200, draw(255), draw(255, 3)
    wide[0, 0] = 1 << 16
    lost = ", which Pillow reads wrongly; save it as an 8-bit PNG"
    unknown = "of unknown range; save it with 8 or 16 bits"
    for name, file, reason in (
        ("negative", tiff(negative, 16, 1, kind="i2", t339=[2]), unknown),
        ("over 65535", tiff(wide, 32, 1, kind="i4", t339=[2]), unknown),
        ("float", tiff(draw(1), 32, 1, kind="f4", t339=[3]), unknown),
        ("64 bits", tiff(draw(1), 64, 1, kind="f8", t339=[3]), "a TIFF file that Pillow cannot"),
        ("signed bytes", tiff(negative, 8, 1, kind="i1", t339=[2]), f"signed 8-bit pixels{lost}"),
        ("Lab in planes", tiff(colour, 8, 8, planar=True), f"Lab colours in planes{lost}"),
        ("i4 >, deflated", tiff(small, 32, 1, ">", kind="i4", deflated=True, t339=[2]), lost),
        (
            "CMYK planes",
            tiff(draw(65535, 4), 16, 5, planar=True),
            f"CMYK of 16 bits in planes{lost}",
        ),
        ("YCbCr 4:2:0", tiff(draw(255, 3, 5), 8, 6, t257=[10], t530=[2, 2]), f"compressed{lost}"),
    ):
        yield f"refused: {name}", Odd(file, reason)


def bmp_pictures():
    for bits, header, up in itertools.product((1, 4, 8), (12, 40, 124), (True, False)):
        if header == 12 and not up:
            continue  # OS/2's cannot tell
        colours, entries = table(1 << bits, 4)
        if header == 12:
            entries = b"".join(entries[i : i + 3] for i in range(0, len(entries), 4))
        samples = draw((1 << bits) - 1)[..., 0]
        file = bmp(W, H if up else -H, bits, bmp_rows(samples, bits, up), entries, header=header)
        yield f"{bits} bits, header {header}" + ", upwards" * up, Odd(file, colours[samples])
    for bits in (4, 8):
        colours, entries = table(10, 4)
        samples = draw(9)[..., 0]
        file = bmp(W, H, bits, bmp_rows(samples, bits), entries, colours=10)
        yield f"{bits} bits, ten colours", Odd(file, colours[samples])
    for bits in (1, 8):
        ramp = 255 - np.arange(1 << bits) * 255 // ((1 << bits) - 1)
        samples = draw((1 << bits) - 1)[..., 0]
        entries = b"".join(bytes([level, level, level, 0]) for level in ramp.tolist())
        file = bmp(W, H, bits, bmp_rows(samples, bits), entries)
        yield f"{bits} bits, from white to black", Odd(file, rgb(ramp[samples][..., None]))
    four, masks = draw(255, 4), struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    colours, composed = four[..., :3], on_white(four[..., :3], four[..., 3:])
    for header, up in itertools.product((12, 40, 56, 108, 124), (True, False)):
        if header > 12 or up:
            height = H if up else -H
            rows = bmp_rows(colours[..., ::-1].reshape(H, -1), 8, up)
            file = bmp(W, height, 24, rows, header=header)
            yield f"24 bits, header {header}" + ", upwards" * up, Odd(file, colours)
        if header > 12:
            rows = bmp_rows(four[..., [2, 1, 0, 3]].reshape(H, -1), 8, up)
            file = bmp(W, height, 32, rows, header=header)
            yield f"32 bits, header {header}" + ", upwards" * up, Odd(file, colours)
        if header > 40:
            file = bmp(W, height, 32, rows, compression=3, masks=masks, header=header)
            yield f"alpha, header {header}" + ", upwards" * up, Odd(file, composed)
            file = bmp(W, height, 32, rows, b"", 3, masks[:12] + bytes(4), header)
            yield f"no alpha, header {header}" + ", upwards" * up, Odd(file, colours)
    words = rng.integers(0, 1 << 16, (H, W))
    for name, shifts, sizes, mask in (
        ("5, 5 and 5 bits", (10, 5, 0), (31, 31, 31), (0x7C00, 0x3E0, 0x1F)),
        ("5, 6 and 5 bits", (11, 5, 0), (31, 63, 31), (0xF800, 0x7E0, 0x1F)),
    ):
        seen = np.stack(
            [(words >> s & n) * 255 // n for s, n in zip(shifts, sizes, strict=True)], -1
        )
        file = bmp(W, H, 16, bmp_rows(words, 16), b"", 3, struct.pack("<3I", *mask))
        yield name, Odd(file, seen)
    seen = np.stack([(words >> shift & 31) * 255 // 31 for shift in (10, 5, 0)], -1)
    yield "16 bits", Odd(bmp(W, H, 16, bmp_rows(words, 16)), seen)
    colours, entries = table(256, 4)
    samples = draw(255)[..., 0]
    runs = b"".join(b"".join(b"\1%c" % x for x in row) + b"\0\0" for row in samples[::-1].tolist())
    yield "RLE8, runs", Odd(bmp(W, H, 8, runs[:-2] + b"\0\1", entries, 1), colours[samples])
    lines = [b"\0%c" % W + bytes(row) + b"\0" * (W % 2) for row in samples[::-1].tolist()]
    file = bmp(W, H, 8, b"\0\0".join(lines) + b"\0\1", entries, 1)
    yield "RLE8, as they are", Odd(file, colours[samples])
    for width in (8, 9, 10, 11):
        some = samples[:, :width] % 16
        lines = [packed(np.pad(row, (0, -width % 4))[None], 4) for row in some[::-1]]
        file = b"\0\0".join(b"\0%c" % width + line for line in lines) + b"\0\1"
        yield f"RLE4, {width} wide", Odd(bmp(width, H, 4, file, entries[:64], 2), colours[some])
    pair = np.array([[3, 9, 3, 5, 5, 5, 5, 9, 3, 9, 3]] * H)
    file = bmp(W, H, 4, b"\x03\x39\x04\x55\x04\x93\0\0" * H + b"\0\1", entries[:64], 2)
    yield "RLE4, runs of two colours", Odd(file, colours[pair])
    file = bmp(W, H, 8, bytes([2, 9, 0, 1]), entries, 1)
    yield "refused: RLE8 that ends early", Odd(file, "not enough image data")
    file = bmp(W, H, 2, bmp_rows(samples % 4, 2), entries[:16])
    yield "refused: 2 bits", Odd(file, r"a BMP file that Pillow cannot open|pixel depth \(2\)")


def gif_pictures():
    for bits in range(1, 9):
        (colours, entries), (others, local) = table(1 << bits), table(1 << bits)
        indices = draw((1 << bits) - 1)[..., 0]
        size = max(2, bits)
        seen, clear = colours[indices], (indices == 1)[..., None]
        ways = {
            "plain": (entries, gif_frame(indices, bits=size), seen),
            "its own palette": (entries, gif_frame(indices, local, bits=size), others[indices]),
            "only its own palette": (b"", gif_frame(indices, local, bits=size), others[indices]),
            "interlaced": (entries, gif_frame(indices, interlaced=True, bits=size), seen),
            "a transparent colour": (
                *(entries, gif_frame(indices, transparent=1, bits=size)),
                np.where(clear, 255, seen),
            ),
        }
        for name, (palette, frame, pixels) in ways.items():
            yield f"{bits} bits, {name}", Odd(gif(W, H, palette, frame), pixels)
        second = gif_frame(1 - indices % 2, disposal=2, bits=size)
        yield f"{bits} bits, two frames", Odd(gif(W, H, entries, ways["plain"][1], second), seen)
    colours, entries = table(8)
    indices = draw(7, height=4, width=5)[..., 0]
    parts: dict[str, dict] = {
        "opaque": {},
        "clear": {"transparent": 3},
        "own": {"palette": entries},
    }
    for name, options in parts.items():
        pixels = np.full((H, W, 3), 255)
        pixels[2:6, 3:8] = colours[indices]
        if name == "clear":
            pixels[2:6, 3:8][indices == 3] = 255
        frame = gif_frame(indices, left=3, top=2, bits=3, **options)
        yield f"a part of the canvas, {name}", Odd(gif(W, H, entries, frame, background=5), pixels)
    ramp = np.arange(256)
    indices = draw(255)[..., 0]
    file = gif(W, H, np.repeat(ramp, 3).astype(np.uint8).tobytes(), gif_frame(indices))
    yield "a grey ramp", Odd(file, rgb(indices[..., None]))
    plain = gif(W, H, entries, gif_frame(draw(7)[..., 0], bits=3), version=b"GIF87a")
    yield "refused: cut off", Odd(plain[:-30], "truncated|not enough")


def jpeg_pictures():
    jfif = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
    colour, seen = [120, 90, 160], of_ycc(120, 90, 160)
    even = [(1, 1)] * 3
    for first in ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4), (4, 2), (3, 1)):
        for size in ((16, 16), (17, 5)):
            file = jpeg(colour, [first, (1, 1), (1, 1)], extra=jfif, size=size)
            yield f"sampling {first}, {size}", Odd(file, flat(seen, size[1], size[0]), 1)
    for name, odd in {
        "no JFIF": (jpeg(colour, even), seen),
        "components named R, G and B": (jpeg(colour, even, [82, 71, 66]), colour),
        "JFIF with components named R, G and B": (jpeg(colour, even, [82, 71, 66], jfif), seen),
        "components from 0": (jpeg(colour, even, [0, 1, 2]), seen),
        "Adobe, no transform": (jpeg(colour, even, extra=adobe(0)), colour),
        "Adobe, YCbCr": (jpeg(colour, even, extra=adobe(1)), seen),
        "JFIF before Adobe": (jpeg(colour, even, extra=jfif + adobe(0)), seen),
        "extended": (jpeg(colour, even, extra=jfif, marker=0xC1), seen),
        "grey": (jpeg([77], [(1, 1)]), [77.0] * 3),
        "grey, sampled": (jpeg([77], [(2, 2)]), [77.0] * 3),
    }.items():
        yield name, Odd(odd[0], flat(odd[1]), 1)
    # Adobe's CMYK is inverted. Files without Adobe's segment are read as inverted too.
    ink = [200, 100, 50, 220]
    inverted = flat([level * ink[3] / 255 for level in ink[:3]])
    yield "CMYK by Adobe", Odd(jpeg(ink, [(1, 1)] * 4, extra=adobe(0)), inverted, 1)
    yield "CMYK of others", Odd(jpeg(ink, [(1, 1)] * 4), inverted, 1)
    inverted = flat([(255 - level) * 220 / 255 for level in seen])
    for first in ((1, 1), (2, 2)):
        file = jpeg([*colour, 220], [first, (1, 1), (1, 1), first], extra=adobe(2))
        yield f"YCCK, {first}", Odd(file, inverted, 1)
    smooth = np.add.outer(np.arange(0, 240, 10), np.arange(0, 270, 10)) // 2
    pixels = np.stack([smooth, smooth[::-1], 255 - smooth], -1)
    for number, (mode, options) in enumerate(
        itertools.product(
            ("RGB", "L", "CMYK"),
            (
                {"quality": 100, "subsampling": 0},
                {"progressive": True, "quality": 95},
                {"optimize": True, "restart_marker_blocks": 1, "quality": 95},
            ),
        )
    ):
        expected = np.asarray(Image.fromarray(pixels.astype(np.uint8)).convert(mode).convert("RGB"))
        file = saved(pixels, "JPEG", mode, **options)
        yield f"{mode} by Pillow {number}", Odd(file, expected.astype(int), 12)
    for orientation in range(1, 9):
        data = segment(0xE1, b"Exif\0\0" + exif(orientation, "<>"[orientation % 2]))
        file = saved(pixels, "JPEG", quality=100, subsampling=0)
        yield (
            f"orientation {orientation}",
            Odd(file[:2] + data + file[2:], turned(pixels, orientation), 4),
        )
    several = io.BytesIO()  # as cameras store a preview beside a photograph
    two = [Image.fromarray(x.astype(np.uint8)) for x in (pixels, 255 - pixels)]
    two[0].save(several, "MPO", save_all=True, append_images=two[1:], quality=100)
    yield "several pictures", Odd(several.getvalue(), pixels, 12)
    deep = jpeg([2000], [(1, 1)], bits=12, marker=0xC1)
    yield "refused: 12 bits", Odd(deep, "a JPEG file that Pillow cannot open .*12")
    yield (
        "refused: two components",
        Odd(jpeg([9, 9], [(1, 1)] * 2), "a JPEG file that Pillow cannot"),
    )
    yield "refused: cut off", Odd(saved(pixels, "JPEG")[:-200], "[Tt]runcated")


def webp_pictures():
    four = draw(255, 4)
    colours, composed = four[..., :3], on_white(four[..., :3], four[..., 3:])
    yield "lossless", Odd(saved(colours, "WEBP", lossless=True), colours)
    yield "lossless with alpha", Odd(saved(four, "WEBP", lossless=True, exact=True), composed)
    yield "lossless, clear pixels rewritten", Odd(saved(four, "WEBP", lossless=True), composed)
    for width, height in ((1, 1), (1, 17), (16, 1), (15, 33), (64, 2)):
        some = draw(255, 3, height, width)
        yield f"lossless, {width} x {height}", Odd(saved(some, "WEBP", lossless=True), some)
    ramp = np.add.outer(np.arange(0, 240, 10), np.arange(0, 270, 10)) // 2
    smooth = np.stack([ramp, ramp[::-1], 255 - ramp, 255 - ramp // 4], -1)
    for quality, method in itertools.product((60, 80, 100), (0, 4)):
        for name, channels in (("colour", [0, 1, 2]), ("grey", [0, 0, 0]), ("alpha", [0, 1, 2, 3])):
            pixels = smooth[..., channels]
            file = saved(pixels, "WEBP", quality=quality, method=method)
            alpha = pixels[..., 3:] if len(channels) == 4 else np.array(255)
            expected = on_white(pixels[..., :3], alpha)
            yield f"{name} of quality {quality}, method {method}", Odd(file, expected, 30)
    head = b"VP8X", struct.pack("<IHBHB", 8, W - 1, 0, H - 1, 0)
    image = saved(colours, "WEBP", lossless=True)[12:]
    for orientation in range(1, 9):
        data = exif(orientation, "<>"[orientation % 2])
        body = (image[:4], image[8 : 8 + int.from_bytes(image[4:8], "little")])
        file = riff(head, body, (b"EXIF", data))
        yield f"orientation {orientation}", Odd(file, turned(colours, orientation))
    first, second = (Image.fromarray(x.astype(np.uint8)) for x in (colours, 255 - colours))
    ways: dict[str, dict] = {"": {}, ", minimal": {"minimize_size": True}, ", thrice": {"loop": 3}}
    for name, options in ways.items():
        moving = io.BytesIO()
        first.save(moving, "WEBP", save_all=True, append_images=[second], lossless=True, **options)
        yield f"an animation{name}", Odd(moving.getvalue(), colours)
    for flag in (0, 0x10):  # without alpha, what the first frame leaves out is black
        corner = saved(colours[:4, :6], "WEBP", lossless=True)[12:]
        place = struct.pack("<HBHBHBHBHBB", 1, 0, 2, 0, 5, 0, 3, 0, 9, 0, 2)
        pixels = np.full((H, W, 3), 255 if flag else 0)
        pixels[4:8, 2:8] = colours[:4, :6]
        head = b"VP8X", struct.pack("<IHBHB", 2 | flag, W - 1, 0, H - 1, 0)
        file = riff(head, (b"ANIM", bytes(6)), (b"ANMF", place + corner))
        yield f"a part of the canvas, {flag}", Odd(file, pixels)
    yield "refused: cut off", Odd(saved(colours, "WEBP", lossless=True)[:-40], ".")


def netpbm_pictures():
    for most in (1, 15, 100, 255, 256, 1023, 4095, 40000, 65535):
        for channels in (1, 3):
            samples = draw(most, channels)
            head = f"P%d {W} {H} {most}\n"
            text = (
                head % (2 if channels == 1 else 3) + " ".join(map(str, samples.flatten()))
            ).encode()
            kind = ">u2" if most > 255 else "u1"
            file = (head % (5 if channels == 1 else 6)).encode() + samples.astype(kind).tobytes()
            # Grey of more than 8 bits becomes one of 16, whose high byte is kept.
            scaled = np.rint(samples / most * (65535 if most > 255 and channels == 1 else 255))
            pixels = scaled.astype(int) >> (8 if most > 255 and channels == 1 else 0)
            pixels = rgb(pixels) if channels == 1 else pixels
            yield f"{channels} up to {most}", Odd(file, pixels, int(most > 255 or most in (100,)))
            yield f"{channels} up to {most}, as text", Odd(text, pixels, 1)
    ink = draw(1)
    bits = b"P4 %d %d\n" % (W, H) + packed(ink[..., 0], 1)
    yield "black and white", Odd(bits, rgb(255 - 255 * ink))
    text = b"P1 # a comment\n%d %d\n" % (W, H) + " ".join(map(str, ink.flatten())).encode()
    yield "black and white, as text", Odd(text, rgb(255 - 255 * ink))
    yield "refused: float", Odd(b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5), "of unknown range")
    yield "refused: any number of channels", Odd(b"P7\nWIDTH 1\n", "a PPM file|not an image")


def jpeg_2000_pictures():
    four = draw(255, 4)
    kinds = {
        "grey": (four[..., :1], rgb(four[..., :1])),
        "grey with alpha": (four[..., 2:], on_white(rgb(four[..., 2:3]), four[..., 3:])),
        "colour": (four[..., :3], four[..., :3]),
        "colour with alpha": (four, on_white(four[..., :3], four[..., 3:])),
    }
    ways: dict[str, dict] = {
        "": {},
        ", bare": {"no_jp2": True},
        ", tiles": {"tile_size": (8, 8)},
        ", one resolution": {"num_resolutions": 1},
        ", by components": {"progression": "CPRL"},
        ", in layers": {"quality_layers": [4, 2, 0]},
        ", small blocks": {"codeblock_size": (4, 4)},
        ", lengths of packets": {"plt": True},
    }
    for (kind, (pixels, expected)), (way, options) in itertools.product(
        kinds.items(), ways.items()
    ):
        yield f"{kind}{way}", Odd(saved(pixels.squeeze(), "JPEG2000", **options), expected)
    for width, height in ((1, 1), (1, 17), (16, 1), (15, 33), (64, 2)):
        some = draw(255, 3, height, width)
        file = io.BytesIO()
        Image.fromarray(some.astype(np.uint8)).save(file, "JPEG2000")
        yield f"{width} x {height}", Odd(file.getvalue(), some)
    deep = draw(65535)[..., 0].astype(np.uint16)
    for way, options in (("", {}), (", bare", {"no_jp2": True})):
        file = io.BytesIO()
        Image.fromarray(deep).save(file, "JPEG2000", **options)
        yield f"grey of 16 bits{way}", Odd(file.getvalue(), rgb(deep[..., None].astype(int) >> 8))
    colours = four[..., :3]
    yield "refused: cut off", Odd(saved(colours, "JPEG2000")[:-60], ".")
    yield "refused: a header alone", Odd(saved(colours, "JPEG2000")[:80], ".")


def avif_pictures():
    ramp = np.add.outer(np.arange(0, 240, 10), np.arange(0, 270, 10)) // 2
    smooth = np.stack([ramp, ramp[::-1], 255 - ramp, 255 - ramp // 4], -1)
    for quality, subsampling in itertools.product((70, 85, 100), ("4:4:4", "4:2:2", "4:2:0")):
        for name, channels in (("colour", [0, 1, 2]), ("grey", [0, 0, 0]), ("alpha", [0, 1, 2, 3])):
            pixels = smooth[..., channels]
            alpha = pixels[..., 3:] if len(channels) == 4 else np.array(255)
            file = saved(pixels, "AVIF", quality=quality, subsampling=subsampling, speed=10)
            expected = on_white(pixels[..., :3], alpha)
            yield f"{name} of quality {quality}, {subsampling}", Odd(file, expected, 24)
    colours = smooth[..., :3]
    for orientation in range(1, 9):
        file = saved(colours, "AVIF", exif=exif(orientation, "<>"[orientation % 2]), speed=10)
        yield f"orientation {orientation}", Odd(file, turned(colours, orientation), 24)
    for width, height in ((1, 1), (1, 17), (16, 1)):
        some = np.full((height, width, 3), (200, 100, 50))
        yield f"{width} x {height}", Odd(saved(some, "AVIF", speed=10), some, 4)
    first, second = (Image.fromarray(x.astype(np.uint8)) for x in (colours, 255 - colours))
    moving = io.BytesIO()
    first.save(moving, "AVIF", save_all=True, append_images=[second], speed=10)
    yield "an animation", Odd(moving.getvalue(), colours, 24)
    yield "refused: cut off", Odd(saved(colours, "AVIF", speed=10)[:-40], ".")


MAKERS = {
    "PNG": png_pictures,
    "TIFF": tiff_pictures,
    "BMP": bmp_pictures,
    "GIF": gif_pictures,
    "JPEG": jpeg_pictures,
    "WebP": webp_pictures,
    "Netpbm": netpbm_pictures,
    "JPEG 2000": jpeg_2000_pictures,
    **({"AVIF": avif_pictures} if HAS_AVIF else {}),
}
PICTURES = {format: dict(make()) for format, make in MAKERS.items()}


def fault(odd: Odd) -> str:
    """How the decoder's pixels differ from those of the specification; "" if they do not."""
    try:
        found = decode(odd.content, "x").permute(1, 2, 0).numpy().astype(int)
    except BrokenImage as error:
        if isinstance(odd.pixels, str):
            wanted = re.search(odd.pixels, error.reason)
            return "" if wanted else f"the reason is {error.reason!r}"
        return f"refused: {error.reason}" if NEWEST else ""
    if isinstance(odd.pixels, str):
        return "not refused"
    if found.shape != odd.pixels.shape:
        return f"{found.shape} instead of {odd.pixels.shape}"
    worst = int(abs(found - odd.pixels).max())
    return f"{worst} levels off" if worst > odd.within else ""


@pytest.mark.parametrize("format", PICTURES)
def test_forty_odd_pictures_of_a_format_have_the_pixels_of_its_specification(format):
    assert len(PICTURES[format]) >= 40
    faults = {name: fault(odd) for name, odd in PICTURES[format].items()}
    assert {name: text for name, text in faults.items() if text} == {}


# Where decoders of others give other pixels than the specification, as docs/data.md says.
OTHERS_DIFFER = {
    ("Pillow", "PNG"): r"(2|4) bits.*transparent|16 bits.*transparent|colour 0, 16 bits",
    ("Pillow", "TIFF"): r"grey of (12|16) bits|16 bits.*planes|up to 65535",
    ("Pillow", "GIF"): r"part of the canvas",
    ("Pillow", "Netpbm"): r"1 up to (256|1023|4095|40000|65535)",
    ("Pillow", "JPEG 2000"): r"grey of 16 bits",
    ("torchvision", "PNG"): r"transparent level|palette|colour 0, [124] bits|one pixel",
    ("torchvision", "GIF"): r"transparent colour|part of the canvas",
    ("torchvision", "WebP"): r"orientation",
}


def by_pillow(content: bytes) -> np.ndarray:
    """What people write: upright, on white, then RGB."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB")).astype(int)


def by_torchvision(content):
    mode = torchvision.io.ImageReadMode.RGB if content[:2] == b"\xff\xd8" else "RGB_ALPHA"
    image = torchvision.io.decode_image(
        torch.frombuffer(bytearray(content), dtype=torch.uint8), mode, apply_exif_orientation=True
    )
    image = image[0] if image.ndim == 4 else image
    image = image.int() >> 8 if image.dtype == torch.uint16 else image.int()
    pixels = image.permute(1, 2, 0).numpy()
    return on_white(pixels[..., :3], pixels[..., 3:]) if pixels.shape[2] == 4 else pixels


@pytest.mark.parametrize("format", PICTURES)
def test_pillow_and_torchvision_give_the_same_pixels_but_where_the_docs_say(format):
    others = {"Pillow": by_pillow}
    if format in ("PNG", "GIF", "JPEG", "WebP"):
        others["torchvision"] = by_torchvision
    for other, read in others.items():
        compared = 0
        for name, odd in PICTURES[format].items():
            if isinstance(odd.pixels, str):
                continue
            try:
                theirs = read(odd.content)
            except Exception:  # it reads fewer pictures: none is compared
                continue
            compared += 1
            ours = decode(odd.content, "x").permute(1, 2, 0).numpy()
            is_equal = theirs.shape == ours.shape and (theirs == ours).all()
            documented = OTHERS_DIFFER.get((other, format), "nothing")
            assert is_equal or re.search(documented, name), (other, name)
        assert compared >= 30


def of_one_size(format: str) -> dict[str, bytes]:
    """Odd pictures of H x W by the end of a file name."""
    return {
        f"{number:03}.{format.lower()}": odd.content
        for number, odd in enumerate(PICTURES[format].values())
        if isinstance(odd.pixels, np.ndarray) and odd.pixels.shape == (H, W, 3)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of odd pictures of one size; the suffixes are those that are listed."""
    root = tmp_path_factory.mktemp("odd")
    for place, formats in {"a": ("PNG", "GIF", "WebP"), "b": ("TIFF", "BMP")}.items():
        (root / place).mkdir()
        for format in formats:
            for name, content in of_one_size(format).items():
                with contextlib.suppress(BrokenImage):  # an older Pillow
                    decode(content, name)
                    (root / place / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def expected(folder):
    """The pixels of each file, by its id."""
    ids = ImageFolder(str(folder)).ids
    pixels = {name: decode((folder / name).read_bytes(), name) for name in ids}
    assert len(pixels) > 200
    return pixels


CONFIG = """
dataset: {{name: {name}, root: {root}}}
transforms: {{train: [], eval: []}}
loader: {{batch_size: 16}}
model: MLP
optimizer: {{name: SGD, lr: 0.1}}
train: {{epochs: 1, device: cpu}}
"""


def config_of(folder: Path, root: Path, name: str = "ImageFolder", *overrides: str):
    file = folder / "odd.yaml"
    file.write_text(CONFIG.format(name=name, root=root))
    return load_config(file, overrides)


@pytest.mark.parametrize("cache", ["ram", "off"])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_sees_the_same_pixels_at_any_cache_and_worker_count(
    tmp_path, folder, expected, cache, workers
):
    config = config_of(
        tmp_path, folder, "ImageFolder", f"loader.cache={cache}", f"loader.workers={workers}"
    )
    data = load_data(config, CPU)
    subset = data.subsets["train"]
    assert subset.cache == cache
    found = torch.cat([images for images, _ in train_loader(config, subset, CPU).epoch(0)])
    seen = sorted(image.numpy().tobytes() for image in (found * 255).round().byte())
    names = [data.dataset.ids[index] for index in subset.indices.tolist()]
    assert seen == sorted(expected[name].numpy().tobytes() for name in names)


def test_folders_predictions_shards_and_unpacked_archives_give_the_same_pixels(
    tmp_path, folder, expected
):
    pytest.importorskip("webdataset", reason='pip install -e ".[shards]"')
    from datasets.shards import Shards
    from scripts import pack_shards, unpack

    assert pack_shards.main(["--source", str(folder), "--target", str(tmp_path / "shards")]) == 0
    with tarfile.open(tmp_path / "odd.tar", "w") as archive:
        archive.add(folder, "odd")
    archive_and_target = ["--archive", str(tmp_path / "odd.tar"), "--target", str(tmp_path / "new")]
    assert unpack.main(archive_and_target) == 0
    for dataset in (
        ImageFolder(str(folder)),
        Shards(str(tmp_path / "shards")),
        ImageFolder(str(tmp_path / "new" / "odd")),
    ):
        for index, name in enumerate(dataset.ids):
            assert torch.equal(dataset.image(index), expected[name]), name
    # predict and explain read by it
    run = SimpleNamespace(image_channels=3, at_least=0, remarks=bytearray(), form=Form())
    for name, pixels in expected.items():
        content = (folder / name).read_bytes()
        image, _ = TrainedModel.decode(run, content, name)  # type: ignore[arg-type]
        assert torch.equal(image, pixels)


def test_pictures_are_opened_in_one_place():
    opens = re.compile(r"Image\.open\(|decode_image\(|decode_(png|gif|webp)\(|io\.read_image\(")
    files = [*Path("trainer").rglob("*.py"), *Path("datasets").rglob("*.py")]
    files += [*Path("transforms").rglob("*.py"), *Path("scripts").glob("[!b]*.py")]
    found = {str(file) for file in files if opens.search(file.read_text())}
    # The second reads the name of the format only, the third colours photographs anew.
    # bands.py reads what images.py does not: own channels and 16 bits, if a dataset wants them.
    images = {"datasets/images.py", "datasets/bands.py"}
    assert found == images | {"trainer/insight/image_facts.py", "scripts/results.py"}


def test_the_program_beside_an_exported_model_gives_the_same_pixels_or_refuses():
    names: dict = {"__name__": "use", "__file__": "use.py"}
    imports = ["import numpy as np", "from PIL import Image, ImageOps"]
    values = {"imports": imports, "packages": [], "building": [], "arrays": False}
    values["unknown"] = False
    exec(render(SCRIPT_TEMPLATE, kind="onnx", file="x", **values), names)
    card = {"image_channels": 3, "transforms": []}
    for format in ("PNG", "GIF", "BMP", "JPEG", "WebP", "TIFF"):
        for name, odd in PICTURES[format].items():
            try:
                found = names["preprocess"](io.BytesIO(odd.content), card)
            except Exception as error:
                is_plain = format in ("BMP", "JPEG", "WebP") and isinstance(odd.pixels, np.ndarray)
                assert not is_plain or not NEWEST, (format, name, error)
                continue
            pixels = np.rint(found[0] * 255).astype(np.uint8)
            assert np.array_equal(pixels, decode(odd.content, name).numpy()), (format, name)


# --- what is told ---------------------------------------------------------------------------------


def dim(most: int) -> np.ndarray:
    samples = draw(most)
    samples[0, 0] = most
    return samples


TOLD = {
    "a/plain.png": png(draw(255, 3), 8, 2),
    "a/opaque.png": png(np.full((H, W, 2), 255), 8, 4),
    "a/alpha.png": png(draw(255, 4), 8, 6),
    "a/key.png": png(np.ones((H, W, 1), int), 4, 0, chunk(b"tRNS", b"\0\1")),
    "a/deep.png": png(dim(65535), 16, 0),
    "b/12 bits.tif": tiff(dim(4095), 16, 1),
    "b/12 bits of colour.png": png(np.repeat(dim(4095), 3, 2), 16, 2),
    "b/packed.tif": tiff(dim(4095), 12, 1),
    "b/ints.tif": tiff(dim(255), 32, 1, kind="i4", t339=[2]),
    "b/cmyk.tif": tiff(draw(255, 4), 8, 5),
    "b/turned.tif": tiff(draw(255, 3), 8, 2, t274=[3]),
    "b/moving.gif": gif(W, H, bytes(12), *[gif_frame(draw(3)[..., 0], bits=2)] * 2),
}
LINES = [
    "1 of 12 images holds integers of unknown range; over 255 it is taken for 16 bits",
    "2 of 12 images hold 16-bit values below 4096 only and are nearly black; save 12 bits as 8",
    "4 of 12 images hold more than 8 bits a channel; the high ones are kept",
    "2 of 12 images are partly transparent, composed on white",
    "1 of 12 images has several frames or pages; the first is read",
    "1 of 12 images is CMYK or Lab, converted without colour profiles",
    "1 of 12 images is turned upright as EXIF data say",
]


@pytest.fixture
def told(tmp_path):
    for name, content in TOLD.items():
        (tmp_path / "told" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "told" / name).write_bytes(content)
    return tmp_path / "told"


@pytest.mark.parametrize("cache", ["ram", "off"])
def test_a_run_tells_what_was_converted_or_guessed_with_counts(tmp_path, told, cache):
    ratios = "split.ratios=[2, 1, 1]"
    data = load_data(config_of(tmp_path, told, "ImageFolder", f"loader.cache={cache}", ratios), CPU)
    assert [line for line in data.notes if line in LINES] == LINES


def test_a_look_at_the_data_tells_what_was_converted_or_guessed(
    tmp_path, told, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "1000")
    config_of(tmp_path, told)
    arguments = ["--config", str(tmp_path / "odd.yaml"), "--output", str(tmp_path / "look")]
    assert data_command([*arguments, "split.ratios=[2, 1, 1]"]) == 0
    printed = capsys.readouterr().out
    assert [
        line.removeprefix("converted   ")
        for line in printed.splitlines()
        if line.startswith("converted")
    ] == LINES
    assert json.loads((tmp_path / "look" / "data.json").read_text())["converted"] == LINES
    page = (tmp_path / "look" / "data.md").read_text()
    assert all(f"- {line}\n" in page for line in LINES)


def test_packing_tells_what_was_converted_or_guessed(tmp_path, told, capsys):
    pytest.importorskip("webdataset", reason='pip install -e ".[shards]"')
    from datasets.shards import Shards
    from scripts import pack_shards

    assert pack_shards.main(["--source", str(told), "--target", str(tmp_path / "shards")]) == 0
    expected = [f"note    {line} when they are used" for line in LINES]
    assert [x for x in capsys.readouterr().err.splitlines() if x.startswith("note")] == expected
    shards = Shards(str(tmp_path / "shards"))
    for index in range(len(shards)):
        shards.image(index)
    assert notes_on(shards.remarks) == LINES


def test_a_plain_picture_has_no_remark():
    for content in (TOLD["a/plain.png"], saved(draw(255, 3), "JPEG"), TOLD["a/opaque.png"]):
        assert decode_and_tell(content, "x")[1] == Remark.READ
    assert notes_on([Remark.READ, 0]) == []
