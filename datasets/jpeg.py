"""JPEGs that libjpeg-turbo decodes without Pillow, by simplejpeg: several times faster if small."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg

SEGMENTS = 1000  # before the pixels; a hostile file has millions
SCAN = 0xDA  # the marker before the pixels
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive, with Huffman's codes
_TABLES = frozenset({0xC4, 0xDB, 0xDD, 0xFE})  # Huffman, quantisation, restart interval, comment
_LEAST = 8  # pixels: below this, simplejpeg's factors give sizes that are equal


class Frame(NamedTuple):
    """What the markers of a JPEG say. is_plain: no segment tells of orientation or more frames."""

    height: int
    width: int
    is_plain: bool


def read_frame(content: bytes) -> Frame | None:
    """The frame of a JPEG that ``decode_frame`` may decode; None for any other file.

    Such a file has 8 bits, 1 or 3 channels, Huffman's codes, and only well-formed segments before
    its pixels. Nothing is decoded.
    """
    if content[:2] != b"\xff\xd8":
        return None
    place, frame, is_plain = 2, b"", True
    for _ in range(SEGMENTS):
        head = content[place : place + 4]
        if len(head) < 4 or head[0] != 0xFF:
            return None
        marker, end = head[1], place + 2 + (head[2] << 8) + head[3]
        if marker == SCAN:
            break
        if marker not in _TABLES:
            data = content[place + 4 : end]
            if marker in _FRAMES and not frame:
                frame = data
            elif 0xE0 <= marker <= 0xEF:
                is_plain = is_plain and _is_harmless(data)
            else:
                return None
        place = max(end, place + 4)
    else:
        return None
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3):
        return None
    height, width = (frame[1] << 8) + frame[2], (frame[3] << 8) + frame[4]
    return Frame(height, width, is_plain) if height and width else None


def _is_harmless(data: bytes) -> bool:
    """Whether an APP segment is a whole one that only tells of density or colours."""
    if data.startswith(b"Adobe"):
        return len(data) >= 12
    return len(data) >= 14 and data.startswith((b"JFIF\0", b"ICC_PROFILE\0"))


def decode_frame(content: bytes, frame: Frame, at_least: int = 0) -> npt.NDArray[np.uint8] | None:
    """The pixels, (H, W, 3) RGB, not turned; None if the file has any fault.

    at_least: above 0, the JPEG is decoded at 1/8, 1/4 or 1/2 of its size (rounded up), the smallest
    of these whose shorter side has this many pixels; else at its full size.
    """
    height, width, _ = frame
    shrink = 1
    if at_least > 0:
        sides = {factor: -(-min(height, width) // factor) for factor in (8, 4, 2, 1)}
        shrink = next((f for f, side in sides.items() if side >= max(at_least, _LEAST)), 1)
    height, width = -(-height // shrink), -(-width // shrink)
    try:
        # simplejpeg takes its smallest factor (of 8ths) that leaves these sides: 1 / shrink.
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            content, "RGB", min_height=height, min_width=width
        )
    except (ValueError, RuntimeError):
        return None
    return pixels if pixels.shape == (height, width, 3) else None
