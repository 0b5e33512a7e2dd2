"""Writes picture files byte by byte from their formats' specifications, for what Pillow cannot."""

import itertools
import struct
import zlib

import numpy as np

ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
ADAM7 += [(1, 0, 2, 1)]  # top, left, rows and columns between two pixels of a pass


def packed(samples: np.ndarray, bits: int, order: str = ">", reverse: bool = False) -> bytes:
    """Rows of samples (H, n), of 1 to 32 bits each, every row padded to whole bytes."""
    if bits >= 8 and bits % 8 == 0:
        kind = {8: "u1", 16: "u2", 24: "u4", 32: "u4"}[bits]
        return np.ascontiguousarray(samples).astype(f"{order}{kind}").tobytes()
    places = np.arange(bits)[::-1]
    flags = (samples[..., None].astype(np.int64) >> places & 1).reshape(len(samples), -1)
    rows = np.packbits(flags.astype(np.uint8), axis=1, bitorder="little" if reverse else "big")
    return rows.tobytes()


# --- PNG ------------------------------------------------------------------------------------------


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def filtered(samples: np.ndarray, bits: int, filters: bool) -> bytes:
    """Rows of samples (H, W, C) of a PNG; ``filters``: each row with the next one of the five."""
    channels = samples.shape[2]
    step = max(1, channels * bits // 8)
    width = len(packed(samples[:1].reshape(1, -1), bits))
    above, lines = np.zeros(width, np.int64), []
    for number, row in enumerate(samples):
        line = np.frombuffer(packed(row.reshape(1, -1), bits), np.uint8).astype(np.int64)
        left, corner = (
            np.concatenate([np.zeros(step, np.int64), a])[:width] for a in (line, above)
        )
        first = left + above - corner
        distances = np.stack([abs(first - left), abs(first - above), abs(first - corner)])
        paeth = np.choose(distances.argmin(axis=0), [left, above, corner])
        kind = number % 5 if filters else 0
        guess = (0 * line, left, above, (left + above) // 2, paeth)[kind]
        lines.append(bytes([kind]) + ((line - guess) % 256).astype(np.uint8).tobytes())
        above = line
    return b"".join(lines)


def png(
    samples: np.ndarray,
    bits: int,
    colour: int,
    extra: bytes = b"",
    interlaced: bool = False,
    filters: bool = False,
    pieces: int = 1,
) -> bytes:
    """A PNG of samples (H, W, C); ``extra`` are chunks before the pixels."""
    height, width, _ = samples.shape
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    images = [samples[top::down, left::right] for top, left, down, right in passes]
    data = zlib.compress(b"".join(filtered(i, bits, filters) for i in images if i.size))
    cuts = [len(data) * i // pieces for i in range(pieces + 1)]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))
    body = b"".join(chunk(b"IDAT", data[a:b]) for a, b in itertools.pairwise(cuts))
    return b"\x89PNG\r\n\x1a\n" + head + extra + body + chunk(b"IEND", b"")


# --- TIFF -----------------------------------------------------------------------------------------


def tiff(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    order: str = "<",
    tile: int = 0,
    rows: int = 0,
    planar: bool = False,
    fill_order: int = 1,
    kind: str = "",
    deflated: bool = False,
    **tags: list[int],
) -> bytes:
    """An uncompressed TIFF of samples (H, W, C); ``tags`` are named t258=[8, 8, 8] and so on.

    kind: NumPy's kind of a sample if it is no unsigned integer. rows: of a strip.
    """
    height, width, channels = samples.shape
    planes = [samples[..., c : c + 1] for c in range(channels)] if planar else [samples]

    def raw(block: np.ndarray) -> bytes:
        flat = block.reshape(len(block), -1)
        if kind:
            return np.ascontiguousarray(flat).astype(order + kind).tobytes()
        return packed(flat, bits, order, fill_order == 2)

    blocks: list[bytes] = []
    for plane in planes:
        if tile:
            padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
            blocks += [
                raw(padded[y : y + tile, x : x + tile])
                for y in range(0, height, tile)
                for x in range(0, width, tile)
            ]
        else:
            high = rows or height
            blocks += [raw(plane[y : y + high]) for y in range(0, height, high)]
    if fill_order == 2 and bits >= 8:
        blocks = [bytes(int(f"{b:08b}"[::-1], 2) for b in block) for block in blocks]
    blocks = [zlib.compress(block) for block in blocks] if deflated else blocks
    entries = {256: [width], 257: [height], 258: [bits] * channels, 262: [photometric]}
    entries |= {259: [8 if deflated else 1]}
    entries |= {277: [channels], 284: [2 if planar else 1]}
    entries |= {266: [fill_order]} if fill_order != 1 else {}
    entries |= {322: [tile], 323: [tile]} if tile else {278: [rows or height]}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    places, sizes = (324, 325) if tile else (273, 279)
    entries |= {places: [0] * len(blocks), sizes: [len(block) for block in blocks]}
    long = {places, sizes}
    end = 8 + 2 + 12 * len(entries) + 4
    rooms = [len(values) * (4 if tag in long else 2) for tag, values in entries.items()]
    at = end + sum(room for room in rooms if room > 4)
    for i, block in enumerate(blocks):
        entries[places][i] = at
        at += len(block) + len(block) % 2
    table, extra = b"", b""
    for tag, values in sorted(entries.items()):
        letter, number = ("I", 4) if tag in long else ("H", 3)
        value = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(value) > 4:
            table += struct.pack(f"{order}HHII", tag, number, len(values), end + len(extra))
            extra += value
        else:
            table += struct.pack(f"{order}HHI", tag, number, len(values)) + value.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    body = b"".join(block + b"\0" * (len(block) % 2) for block in blocks)
    return head + struct.pack(f"{order}H", len(entries)) + table + b"\0\0\0\0" + extra + body


# --- BMP ------------------------------------------------------------------------------------------


def bmp(
    width: int,
    height: int,
    bits: int,
    rows: bytes,
    palette: bytes = b"",
    compression: int = 0,
    masks: bytes = b"",
    header: int = 40,
    colours: int = 0,
) -> bytes:
    """A BMP; ``rows`` as they stand in the file. header: 12 is OS/2's, 40 to 124 are Windows'."""
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        info = struct.pack(
            "<IiiHHIIiiII",
            header,
            width,
            height,
            1,
            bits,
            compression,
            len(rows),
            2835,
            2835,
            colours,
            0,
        )
        if header > 40:
            info += masks.ljust(header - 40, b"\0")
        else:
            info += masks
    place = 14 + len(info) + len(palette)
    head = b"BM" + struct.pack("<IHHI", place + len(rows), 0, 0, place)
    return head + info + palette + rows


def bmp_rows(samples: np.ndarray, bits: int, upwards: bool = True) -> bytes:
    """Rows of samples (H, n) as a BMP has them: the last first, each padded to four bytes."""
    lines = [packed(row[None], bits, "<") for row in samples]
    lines = lines[::-1] if upwards else lines
    return b"".join(line + b"\0" * (-len(line) % 4) for line in lines)


# --- GIF ------------------------------------------------------------------------------------------


def gif_frame(
    indices: np.ndarray,
    palette: bytes = b"",
    left: int = 0,
    top: int = 0,
    interlaced: bool = False,
    transparent: int | None = None,
    disposal: int = 0,
    bits: int = 8,
) -> bytes:
    """A frame of a GIF: LZW that starts anew before its codes grow."""
    height, width = indices.shape
    if interlaced:
        order = [*range(0, height, 8), *range(4, height, 8), *range(2, height, 4)]
        indices = indices[[*order, *range(1, height, 2)]]
    size, clear = bits + 1, 1 << bits
    codes: list[int] = []
    for i, value in enumerate(indices.flatten().tolist()):
        codes += [clear] * (i % ((1 << bits) - 2) == 0) + [value]
    number = sum(code << (size * i) for i, code in enumerate([*codes, clear + 1]))
    data = number.to_bytes((size * (len(codes) + 1) + 7) // 8, "little")
    blocks = b"".join(
        bytes([len(b)]) + b for b in (data[i : i + 255] for i in range(0, len(data), 255))
    )
    flags = interlaced << 6 | (0x80 | (len(palette) // 3).bit_length() - 2 if palette else 0)
    control = b""
    if transparent is not None or disposal:
        packed_fields = disposal << 2 | (transparent is not None)
        control = b"!\xf9\x04" + struct.pack("<BHBB", packed_fields, 10, transparent or 0, 0)
    place = struct.pack("<BHHHHB", 0x2C, left, top, width, height, flags)
    return control + place + palette + bytes([bits]) + blocks + b"\0"


def gif(
    width: int,
    height: int,
    palette: bytes,
    *frames: bytes,
    background: int = 0,
    version: bytes = b"GIF89a",
) -> bytes:
    """A GIF of frames, with a palette for all of them or b""."""
    flags = 0x70 | (0x80 | (len(palette) // 3).bit_length() - 2 if palette else 0)
    head = version + struct.pack("<HHBBB", width, height, flags, background, 0)
    return head + palette + b"".join(frames) + b";"


# --- JPEG -----------------------------------------------------------------------------------------


def segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG file."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg(
    levels: list[int],
    factors: list[tuple[int, int]],
    ids: list[int] | None = None,
    extra: bytes = b"",
    bits: int = 8,
    size: tuple[int, int] = (16, 16),
    marker: int = 0xC0,
) -> bytes:
    """A JPEG in which component i has the level ``levels[i]`` everywhere: only DC coefficients.

    factors: of horizontal and vertical sampling. size: width and height.
    """
    ids = ids or list(range(1, len(levels) + 1))
    width, height = size
    highest = [max(f[k] for f in factors) if len(levels) > 1 else 1 for k in (0, 1)]
    mcus = -(-width // (8 * highest[0])) * -(-height // (8 * highest[1]))
    shift = 1 << bits - 1
    # Quantisation of 8: a DC coefficient of (level - 128) * 8 becomes level - 128.
    flags = ""
    for mcu in range(mcus):
        for level, (across, down) in zip(levels, factors, strict=True):
            for block in range(1 if len(levels) == 1 else across * down):
                value = level - shift if mcu == block == 0 else 0
                count = abs(value).bit_length()
                flags += f"{count:04b}"
                if count:
                    flags += f"{value if value > 0 else value + (1 << count) - 1:0{count}b}"
                flags += "0"  # the end of the block
    flags += "1" * (-len(flags) % 8)
    data = int(flags, 2).to_bytes(len(flags) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = struct.pack(">BHHB", bits, height, width, len(levels))
    frame += b"".join(bytes([i, h << 4 | v, 0]) for i, (h, v) in zip(ids, factors, strict=True))
    # DC: 13 codes of 4 bits for 0 to 12 bits; AC: one code of 1 bit, the end of a block.
    dc = b"\0" + bytes([0, 0, 0, 13] + [0] * 12) + bytes(range(13))
    ac = b"\x10" + bytes([1] + [0] * 15) + b"\0"
    scan = bytes([len(levels)]) + b"".join(bytes([i, 0]) for i in ids) + bytes([0, 63, 0])
    return (
        b"\xff\xd8"
        + extra
        + segment(0xDB, b"\0" + b"\x08" * 64)
        + segment(marker, frame)
        + segment(0xC4, dc)
        + segment(0xC4, ac)
        + segment(0xDA, scan)
        + data
        + b"\xff\xd9"
    )


def adobe(transform: int) -> bytes:
    """Adobe's segment: 0 no transform (RGB, CMYK), 1 YCbCr, 2 YCCK."""
    return segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform))


# --- WebP -----------------------------------------------------------------------------------------


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP file of chunks."""
    body = b"".join(n + struct.pack("<I", len(d)) + d + b"\0" * (len(d) % 2) for n, d in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
