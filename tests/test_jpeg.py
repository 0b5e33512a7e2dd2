"""JPEGs decoded without Pillow have Pillow's pixels; damaged ones have Pillow's messages."""

import io
import itertools
import random
import struct
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from datasets import BrokenImage, images
from datasets.images import Remark, decode_and_tell
from datasets.jpeg import SEGMENTS, decode_frame, read_frame
from tests.picture_files import adobe, jpeg, segment

ARCHIVE = Path("../shared/data/cifar10_jpeg.tar.gz")
JFIF = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
SIZES = [(1, 1), (1, 2), (2, 1), (3, 3), (7, 9), (8, 8), (9, 8), (15, 17), (16, 16), (17, 33)]


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise over a smooth background."""
    random = np.random.default_rng(width * 1000 + height)
    noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    few = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(few.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(noise // 4 + smooth // 4 * 3).convert(mode)


def encoded(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def oriented(orientation: int, order: str = ">") -> bytes:
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, 1)
    entry = struct.pack(f"{order}HHIHHI", 0x0112, 3, 1, orientation, 0, 0)
    return segment(0xE1, b"Exif\0\0" + head + entry)


def pixels_by_pillow(content: bytes, shrink: int = 1) -> np.ndarray:
    """What people write. shrink: 1, 2, 4 or 8."""
    with Image.open(io.BytesIO(content)) as image:
        if shrink > 1:
            image.draft("RGB", (image.width // shrink, image.height // shrink))
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def outcome(content: bytes, at_least: int = 0) -> tuple[np.ndarray, Remark] | str:
    try:
        image, remark = decode_and_tell(content, "x.jpg", at_least)
    except BrokenImage as error:
        return str(error)
    return image.permute(1, 2, 0).numpy(), remark


def assert_as_by_pillow(content: bytes) -> None:
    """Pixels, remark or message are the same as where Pillow decodes every file."""
    found = outcome(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "read_frame", lambda content: None)
        wanted = outcome(content)
    if isinstance(found, str) or isinstance(wanted, str):
        assert found == wanted
    else:
        assert found[1] == wanted[1] and np.array_equal(found[0], wanted[0])


def is_without_pillow(content: bytes) -> bool:
    """Whether libjpeg-turbo decodes the pixels without Pillow."""
    frame = read_frame(content)
    return frame is not None and decode_frame(content, frame) is not None


def variants() -> list[bytes]:
    kinds = [("RGB", "4:4:4"), ("RGB", "4:2:2"), ("RGB", "4:2:0"), ("L", "4:4:4")]
    table = list(itertools.product(SIZES, kinds, (False, True), (0, 1, 3)))
    drawn = random.Random(0)
    made = [
        encoded(
            picture(*size, mode),
            quality=drawn.randint(1, 100),
            optimize=drawn.random() < 0.5,
            subsampling=sampling,
            progressive=progressive,
            restart_marker_blocks=restart,
        )
        for size, (mode, sampling), progressive, restart in table
    ]
    made += [encoded(picture(40, 30), quality=quality) for quality in range(1, 101)]
    for size, sampling in itertools.product(SIZES, ("440", "411")):  # Pillow writes neither
        pixels = np.array(picture(*size))
        made.append(simplejpeg.encode_jpeg(pixels, colorsubsampling=sampling, quality=70))
    return made


def test_every_kind_of_jpeg_has_pillows_pixels_without_pillow():
    for number, content in enumerate(variants()):
        found = outcome(content)
        assert is_without_pillow(content) and not isinstance(found, str), number
        assert found[1] == Remark.READ and np.array_equal(found[0], pixels_by_pillow(content))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("progressive", [False, True])
def test_photographs_are_turned_as_exif_says(orientation, order, progressive):
    content = encoded(picture(33, 17), progressive=progressive)
    content = content[:2] + oriented(orientation, order) + content[2:]
    found = outcome(content)
    assert is_without_pillow(content) and not isinstance(found, str)
    assert np.array_equal(found[0], pixels_by_pillow(content))
    assert (Remark.TURNED in found[1]) == (2 <= orientation <= 8)


XMP = segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6">')


@pytest.mark.parametrize(
    ("extra", "plain"),
    [
        (b"", True),
        (segment(0xE2, b"ICC_PROFILE\0\1\1abc"), True),
        (segment(0xFE, b"a comment"), True),
        *((adobe(transform), True) for transform in (0, 1, 2, 7)),
        *((JFIF + adobe(transform), True) for transform in (0, 1, 2, 7)),
        (segment(0xEE, b"Adobe"), False),
        (segment(0xE2, b"ICC_PROFILE\0"), False),
        (segment(0xE2, b"MPF\0junk"), False),
        (segment(0xE0, b"JFIF\0"), False),
        (segment(0xED, b"Photoshop 3.0\0008BIM\3\xed"), False),
        (segment(0xE1, b"Exif\0\0"), False),
        (XMP, False),
        (oriented(6), False),
    ],
)
@pytest.mark.parametrize("ids", [[1, 2, 3], [82, 71, 66], [0, 1, 2]])
def test_pillow_reads_what_segments_say_but_of_density_and_colours(extra, plain, ids):
    content = jpeg([120, 90, 160], [(2, 1), (1, 1), (1, 1)], ids, extra, size=(16, 9))
    frame = read_frame(content)
    assert frame == (9, 16, plain)
    assert_as_by_pillow(content)


def several_frames() -> bytes:
    return encoded(
        picture(20, 10), "MPO", save_all=True, append_images=[picture(20, 10).rotate(180)]
    )


@pytest.mark.parametrize(
    "content",
    [
        encoded(picture(20, 10, "CMYK")),
        jpeg([9, 9, 9, 9], [(1, 1)] * 4, extra=adobe(2)),
        jpeg([9, 9], [(1, 1)] * 2),
        jpeg([2000], [(1, 1)], bits=12, marker=0xC1),
        *(jpeg([120, 90, 160], [(1, 1)] * 3, marker=0xC0 + kind) for kind in (3, 5, 6, 7, 9, 10)),
        b"\xff\xd8\xff\xff" + encoded(picture(20, 10))[3:],
        b"\xff\xd8junk" + encoded(picture(20, 10))[2:],
        encoded(picture(20, 10))[:-40],
        encoded(picture(20, 10), "PNG"),
        b"",
        b"\xff\xd8\xff",
    ],
)
def test_other_files_are_left_to_pillow(content):
    assert not is_without_pillow(content)
    assert_as_by_pillow(content)


def test_of_several_frames_the_first_is_read():
    found = outcome(several_frames())
    assert not isinstance(found, str) and Remark.FIRST in found[1]
    assert np.array_equal(found[0], pixels_by_pillow(several_frames()))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restart", [0, 2])
def test_a_jpeg_cut_off_anywhere_has_pillows_message(progressive, restart):
    content = encoded(picture(40, 24), progressive=progressive, restart_marker_blocks=restart)
    for end in (*range(0, len(content), 7), len(content) - 2, len(content) - 1):
        assert_as_by_pillow(content[:end])
    assert_as_by_pillow(content + content)


@st.composite
def jpegs(draw):
    """Small JPEGs of every kind."""
    mode = draw(st.sampled_from(["RGB", "L", "CMYK"]))
    content = encoded(
        picture(draw(st.integers(1, 40)), draw(st.integers(1, 40)), mode),
        quality=draw(st.integers(1, 100)),
        subsampling=draw(st.sampled_from(["4:4:4", "4:2:2", "4:2:0"])),
        progressive=draw(st.booleans()),
        restart_marker_blocks=draw(st.integers(0, 3)),
        comment=draw(st.sampled_from([b"", b"a comment"])),
    )
    return content[:2] + draw(st.sampled_from([b"", oriented(6), XMP, adobe(0)])) + content[2:]


@given(jpegs(), st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 255)), max_size=3))
@settings(max_examples=200, deadline=None)
def test_damaged_jpegs_have_pillows_pixels_or_messages(content, damage):
    assert_as_by_pillow(content)
    damaged = bytearray(content)
    for place, byte in damage:
        damaged[place % len(damaged)] = byte
    assert_as_by_pillow(bytes(damaged))


@pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"{ARCHIVE} is not on this machine")
def test_real_small_jpegs_have_pillows_pixels_without_pillow():
    with tarfile.open(ARCHIVE) as archive:
        files = (archive.extractfile(member) for member in archive if member.isfile())
        for file in itertools.islice(files, 0, 3000, 10):
            assert file is not None
            content = file.read()
            found, frame = outcome(content), read_frame(content)
            assert frame is not None and frame.is_plain and not isinstance(found, str)
            assert np.array_equal(found[0], pixels_by_pillow(content))


@pytest.mark.parametrize("extra", [JFIF, oriented(6)])
def test_too_many_pixels_are_refused_before_they_take_memory(extra):
    content = bytearray(jpeg([120, 90, 160], [(1, 1)] * 3, extra=extra))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", 12_001, 10_000)
    tracemalloc.start()  # NumPy tells it of its arrays
    try:
        with pytest.raises(BrokenImage, match="10000 x 12001 pixels, more than 120,000,000"):
            decode_and_tell(bytes(content), "x.jpg")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_of_endless_segments_only_the_first_are_looked_at():
    class Watched(bytes):
        looks = 0

        def __getitem__(self, place):
            Watched.looks += 1
            return super().__getitem__(place)

    good = encoded(picture(9, 9))
    assert read_frame(good[:2] + segment(0xFE, b"") * (SEGMENTS // 2) + good[2:]) == (9, 9, True)
    assert read_frame(Watched(good[:2] + segment(0xFE, b"") * 100_000 + good[2:])) is None
    assert Watched.looks < 3 * SEGMENTS
    assert read_frame(good[:2] + b"\xff\xfe\0\0" * 100_000) is None  # a length below its own two


# --- reduced --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at_least", "shrink"),
    [(0, 1), (1, 8), (32, 8), (33, 4), (63, 4), (64, 2), (126, 2), (127, 1), (251, 1), (900, 1)],
)
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_is_reduced_in_whole_steps_as_by_pillows_draft(
    at_least, shrink, progressive, orientation, mode
):
    content = encoded(picture(331, 251, mode), progressive=progressive, subsampling="4:2:0")
    if orientation > 1:
        content = content[:2] + oriented(orientation) + content[2:]
    found = outcome(content, at_least)
    assert not isinstance(found, str)
    wanted = pixels_by_pillow(content, shrink)
    assert min(wanted.shape[:2]) == -(-251 // shrink)
    assert np.array_equal(found[0], wanted)


def test_the_reduction_is_the_smallest_that_leaves_the_shorter_side():
    for side in (*range(1, 70), 255, 256, 257, 1000):
        content = jpeg([77], [(1, 1)], size=(side, side + 3))
        for at_least in (1, 8, 9, 16, 31, 32, 100, 128):
            image, _ = decode_and_tell(content, "x.jpg", at_least)
            sizes = [-(-side // factor) for factor in (8, 4, 2)]
            fitting = [size for size in sizes if size >= max(at_least, 8)]
            assert min(image.shape[1:]) == min(fitting, default=side), (side, at_least)


def test_files_that_pillow_decodes_are_not_reduced():
    for content in (encoded(picture(64, 64), "PNG"), encoded(picture(64, 64, "CMYK"))):
        assert torch.equal(*(decode_and_tell(content, "x", side)[0] for side in (0, 8)))
