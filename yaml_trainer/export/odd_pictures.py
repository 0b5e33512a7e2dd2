"""Odd picture files, made in memory: what a program that reads pictures may read wrongly."""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

Levels = npt.NDArray[np.uint8]


def odd_pictures(height: int, width: int) -> dict[str, bytes]:
    """Files by their names; all have this size, but those named large."""
    rows, columns = np.mgrid[:height, :width]
    four = np.stack([rows * 5, columns * 3, rows * columns, 255 - rows * 4], -1) % 256
    four = four.astype(np.uint8)
    colour, grey = four[..., :3], four[..., 0]
    deep = four * np.uint16(256) + np.arange(width, dtype=np.uint16)[:, None]
    pgm = (deep[..., 0] % 1001).astype(">u2").tobytes()
    rows, columns = np.mgrid[: 8 * height, : 8 * width]
    large = (128 + 99 * np.sin(rows * columns / 999)[..., None] * [1, 0.5, -1]).astype(np.uint8)
    files = {
        "plain.png": saved(colour, "PNG"),
        "grey.png": saved(grey, "PNG"),
        "alpha.png": saved(four, "PNG"),
        "grey and alpha.png": saved(four[..., [0, 3]], "PNG"),
        "palette.png": saved(colour, "PNG", "P"),
        "clear colour.png": saved(colour, "PNG", "P", transparency=3),
        "clear level.png": saved(grey, "PNG", transparency=int(grey[0, 0])),
        "black and white.png": saved(grey, "PNG", "1"),
        "deep grey.png": deep_png(deep[..., :1], 0),
        "deep colour.png": deep_png(deep[..., :3], 2),
        "deep alpha.png": deep_png(deep, 6),
        "turned.png": saved(colour.swapaxes(0, 1), "PNG", exif=exif(6)),
        "plain.jpg": saved(colour, "JPEG", quality=95),
        "grey.jpg": saved(grey, "JPEG", quality=95),
        "cmyk.jpg": saved(colour, "JPEG", "CMYK", quality=95),
        "turned.jpg": saved(colour.swapaxes(0, 1), "JPEG", quality=95, exif=exif(8)),
        "progressive.jpg": saved(colour, "JPEG", quality=80, progressive=True),
        "large.jpg": saved(large, "JPEG", quality=90),
        "large turned.jpg": saved(large.swapaxes(0, 1), "JPEG", quality=90, exif=exif(5)),
        "large grey.jpg": saved(large[..., 0], "JPEG", quality=90),
        "alpha.webp": saved(four, "WEBP", lossless=True),
        "alpha.tif": saved(four, "TIFF"),
        "deep.tif": saved(deep[..., 0], "TIFF"),
        "turned.tif": saved(colour.swapaxes(0, 1), "TIFF", tiffinfo={274: 6}),
        "cmyk.tif": saved(colour, "TIFF", "CMYK"),
        "floats.tif": saved(four[..., 0].astype(np.float32), "TIFF"),
        "plain.bmp": saved(colour, "BMP"),
        "palette.gif": saved(colour, "GIF"),
        "plain.ppm": saved(colour, "PPM"),
        "deep.pgm": b"P5 %d %d 1000\n" % (width, height) + pgm,
        "levels.npy": array(colour),
        "deep levels.npy": array(deep[..., :3]),
        "many bands.npy": array(np.concatenate([four, four], -1)),
        "floats.npy": array(colour.astype(np.float32)),
        "icon.ico": saved(colour, "ICO", sizes=[(min(width, 255), min(height, 255))]),
        "moving.png": animation(colour, "PNG"),
        "moving.webp": animation(colour, "WEBP", lossless=True),
        "empty.png": b"",
        "text.jpg": b"no picture",
    }  # fmt: skip
    files["cut off.jpg"] = files["plain.jpg"][:-30]
    files["cut off.png"] = files["plain.png"][:-60]
    return files


def saved(
    pixels: npt.NDArray[np.generic], kind: str, mode: str | None = None, **options: object
) -> bytes:
    """Pixels (H, W[, C]) as a file of Pillow's; ``mode`` is the colours to convert them to."""
    file, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def animation(pixels: Levels, kind: str, **options: object) -> bytes:
    """A file with two frames."""
    file, second = io.BytesIO(), Image.fromarray(255 - pixels)
    Image.fromarray(pixels).save(file, kind, save_all=True, append_images=[second], **options)
    return file.getvalue()


def array(values: npt.NDArray[np.generic]) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def exif(orientation: int) -> bytes:
    """EXIF data that say how the camera was held."""
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def deep_png(values: npt.NDArray[np.uint16], colours: int) -> bytes:
    """A PNG of 16 bits, (H, W, C); colours: 0 grey, 2 RGB, 6 RGBA. Pillow writes none in colour."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
