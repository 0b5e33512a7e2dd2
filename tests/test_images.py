"""What `read_image` promises about every kind of file that people call an image."""

import io
import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from datasets import BrokenImage, DataError, images
from datasets.files import ImageFiles, Sample
from datasets.images import FORMATS, SUFFIXES, read_image

PHOTOS = Path("../shared/data/rmb")
ARCHIVE = Path("../shared/data/cifar10_jpeg.tar.gz")


def picture(width=17, height=11) -> Image.Image:
    """Random RGB pixels, so that every flip and every channel order differs."""
    pixels = torch.randint(
        0, 256, (height * width * 3,), generator=torch.Generator().manual_seed(0)
    )
    return Image.frombytes("RGB", (width, height), bytes(pixels.tolist()))


def tensor(image: Image.Image) -> torch.Tensor:
    rows = torch.tensor(list(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return rows.view(image.height, image.width, 3).permute(2, 0, 1)


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes = b"", extra: bytes = b""
) -> bytes:
    """A PNG by hand, for what Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def write(tmp_path):
    def write(content, name="image.jpg"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_pixels_arrive_exactly_and_the_suffix_does_not_matter(write, format):
    image = read_image(write(encoded(picture(), format), "named.jpg"))
    assert image.dtype == torch.uint8 and image.shape == (3, 11, 17)
    assert torch.equal(image, tensor(picture()))


@pytest.mark.parametrize("format", FORMATS)
def test_every_allowed_format_is_read_as_pillow_reads_it(write, format):
    content = encoded(picture(), format)
    with Image.open(io.BytesIO(content)) as expected:
        assert torch.equal(read_image(write(content)), tensor(expected))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("mode", "size"), [("RGB", (1, 1)), ("RGB", (333, 5)), ("L", (8, 33))])
def test_every_kind_of_jpeg_is_read_as_pillow_reads_it(write, mode, size, progressive, subsampling):
    content = encoded(
        picture(*size).convert(mode), "JPEG", progressive=progressive, subsampling=subsampling
    )
    with Image.open(io.BytesIO(content)) as expected:
        assert torch.equal(read_image(write(content)), tensor(expected))


def test_a_format_outside_the_list_is_refused(write):
    path = write(encoded(picture(16, 16), "ICO"), "icon.png")
    with pytest.raises(BrokenImage, match="not an image of a known format"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(write, format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture(), format, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        expected = tensor(ImageOps.exif_transpose(image))
    assert expected.shape == ((3, 17, 11) if orientation > 4 else (3, 11, 17))
    assert torch.equal(read_image(write(content)), expected)


def test_damaged_exif_data_does_not_cost_a_good_picture(write):
    good = encoded(picture(), "JPEG")
    damaged = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\xff\xff\xff\xff")
    assert torch.equal(read_image(write(damaged)), read_image(write(good, "good.jpg")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composed_on_white(write, mode):
    image = Image.new(mode, (3, 1), (100,) * (len(mode) - 1) + (255,))
    image.putpixel((1, 0), (100,) * (len(mode) - 1) + (0,))
    image.putpixel((2, 0), (100,) * (len(mode) - 1) + (51,))
    levels = read_image(write(encoded(image, "PNG")))[:, 0, :]
    assert levels.tolist() == [[100, 255, 224]] * 3  # 224 = 0.2 * 100 + 0.8 * 255


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_a_transparent_palette_colour_becomes_white(write, transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 0, 0, 0])
    image.putpixel((1, 0), 1)
    levels = read_image(write(encoded(image, "PNG", transparency=transparency)))
    assert levels[:, 0, :].T.tolist() == [[200, 10, 20], [255, 255, 255]]


def test_grey_and_bilevel_become_three_equal_channels(write):
    grey = Image.frombytes("L", (3, 1), bytes([0, 77, 255]))
    assert read_image(write(encoded(grey, "PNG"))).tolist() == [[[0, 77, 255]]] * 3
    bilevel = Image.frombytes("L", (2, 1), bytes([0, 255])).convert("1")
    assert read_image(write(encoded(bilevel, "PNG"))).tolist() == [[[0, 255]]] * 3


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_the_high_byte_of_every_value(write, format):
    values = struct.pack("<65536H", *range(65536))
    image = Image.frombytes("I;16", (256, 256), values)
    expected = (torch.arange(65536) >> 8).view(256, 256)
    assert torch.equal(read_image(write(encoded(image, format))), expected.expand(3, 256, 256))


def test_16_bit_colour_keeps_the_high_byte(write):
    rows = b"\0" + struct.pack(">6H", 0x12FF, 0x3400, 0xFFFF, 0x00FF, 0x0100, 0x8080)
    image = read_image(write(png(2, 1, depth=16, colour=2, rows=rows)))
    assert image[:, 0, :].T.tolist() == [[0x12, 0x34, 0xFF], [0x00, 0x01, 0x80]]


def test_16_bit_grey_with_a_transparent_level_is_read(write):
    transparent = struct.pack(">I", 2) + b"tRNS" + struct.pack(">H", 0x1234)
    transparent += struct.pack(">I", zlib.crc32(transparent[4:]))
    rows = b"\0" + struct.pack(">2H", 0x1300, 0xFF00)
    image = read_image(write(png(2, 1, depth=16, colour=0, rows=rows, extra=transparent)))
    assert image.tolist() == [[[0x13, 0xFF]]] * 3


def test_cmyk_becomes_rgb(write):
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = read_image(write(encoded(cmyk, "JPEG", quality=100))).float().mean((1, 2))
    assert red[0] > 240 and red[1] < 15 and red[2] < 15


def test_of_an_animation_the_first_frame_is_read(write):
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    content = encoded(first, "GIF", save_all=True, append_images=[second])
    assert read_image(write(content))[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_unknown_range_are_refused(write, mode):
    image = Image.new(mode, (2, 2), 70000)
    with pytest.raises(BrokenImage, match="float or 32-bit"):
        read_image(write(encoded(image, "TIFF")))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_file_is_broken_and_named(write, format, share):
    content = encoded(picture(64, 64), format)
    path = write(content[: int(len(content) * share)])
    with pytest.raises(BrokenImage) as caught:
        read_image(path)
    assert caught.value.path == str(path) and str(path) in str(caught.value)
    assert caught.value.reason


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\0" * 100, b"\xff\xd8\xff"])
def test_what_is_no_image_is_broken(write, content):
    with pytest.raises(BrokenImage):
        read_image(write(content))


def unreadable(folder: Path) -> dict[str, str]:
    """Names in a folder that are no files to read -> the reason why."""
    os.mkfifo(folder / "fifo.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "broken.jpg").symlink_to(folder / "gone.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    return {
        "fifo.jpg": "not a regular file",
        "folder.jpg": "not a regular file",
        "none.jpg": "cannot be read: No such file or directory",
        "broken.jpg": "cannot be read: No such file or directory",
        "loop.jpg": "cannot be read: Too many levels of symbolic links",
        "x" * 300: "cannot be read: File name too long",
        "a\0.jpg": "cannot be read: embedded null byte",
    }


def test_what_is_no_regular_file_is_broken_with_the_reason_and_never_waited_for(tmp_path):
    for name, reason in unreadable(tmp_path).items():
        for read in (read_image, lambda path: listed(path).digest(0)):
            with pytest.raises(BrokenImage) as caught:
                read(tmp_path / name)
            assert caught.value.path == str(tmp_path / name)
            assert caught.value.reason == reason


def listed(path: Path) -> ImageFiles:
    return ImageFiles(path.parent, [Sample(path.name, "a", None)], ["a"], "error")


def test_a_file_that_claims_too_many_pixels_is_broken_before_it_is_decoded(write, monkeypatch):
    with pytest.raises(BrokenImage, match="pixels"):
        read_image(write(png(60_000, 60_000, depth=8, colour=0)))
    with pytest.raises(BrokenImage, match="pixels, more than"):
        read_image(write(png(12_000, 10_001, depth=8, colour=0)))
    monkeypatch.setattr(images, "MAX_PIXELS", 11 * 17)
    read_image(write(encoded(picture(17, 11), "PNG")))
    with pytest.raises(BrokenImage, match="more than 187 are allowed"):
        read_image(write(encoded(picture(17, 12), "PNG")))


def test_pillow_warnings_do_not_reach_the_user(write):
    # Between Pillow's own limit, where it warns, and ours; truncated, so that it costs no memory.
    path = write(png(10_000, 10_000, depth=8, colour=0))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(BrokenImage):
            read_image(path)
    assert seen == []


def test_running_out_of_memory_is_not_blamed_on_the_file(write, monkeypatch):
    def load(self):
        raise MemoryError

    path = write(encoded(picture(), "BMP"))
    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(MemoryError):
        read_image(path)


SEEDS = [encoded(picture(), format) for format in FORMATS]


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255))))
def test_damage_anywhere_gives_an_image_or_a_broken_image_and_nothing_else(
    tmp_path_factory, seed, damage
):
    content = bytearray(seed)
    for place, byte in damage:
        content[place % len(content)] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(content)
    try:
        image = read_image(path)
    except BrokenImage:
        return
    assert image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3


def test_a_broken_image_survives_the_way_back_from_a_worker_process():
    error = pickle.loads(pickle.dumps(BrokenImage("a/b.jpg", "truncated")))  # noqa: S301
    assert (error.path, error.reason, str(error)) == ("a/b.jpg", "truncated", "a/b.jpg: truncated")
    assert isinstance(error, DataError)


def test_listed_suffixes_are_lower_case_with_a_dot():
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in SUFFIXES)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"{PHOTOS} is not on this machine")
def test_real_photographs_are_read_as_pillow_reads_them():
    for path in sorted(PHOTOS.glob("*/*.jpg"))[::20]:
        with Image.open(path) as expected:
            assert torch.equal(read_image(path), tensor(expected))
