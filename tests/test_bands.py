"""Image files with their own channels and 16 bits a channel are read whole, or refused."""

import hashlib
import io
import itertools
import struct
import tracemalloc
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import datasets.heif
from datasets import BrokenImage, DataError, bands
from datasets.bands import MAX_CHANNELS, Form, decode_as, notes_on_bits
from datasets.csv_images import CSVImages
from datasets.image_folder import ImageFolder
from datasets.images import HAS_AVIF, Remark, decode, decode_and_tell, decoders, notes_on
from datasets.rmb import RMB
from datasets.shards import Shards
from tests.deep_pictures import imagecodecs, levels, npy, patched, saved, tif, tifffile
from tests.picture_files import chunk, png, tiff

KEEP, KEEP_16, RGB_16 = Form("keep", 8), Form("keep", 16), Form("rgb", 16)
CPU = torch.device("cpu")
FIVE = {"photometric": "minisblack", "planarconfig": "contig"}  # a TIFF of five channels


def read(content, form=KEEP_16):
    """The pixels as (H, W, C)."""
    return decode_as(form, content, "x")[0].permute(1, 2, 0).numpy()


def why_not(content, form=KEEP_16):
    with pytest.raises(BrokenImage) as refused:
        decode_as(form, content, "x")
    return refused.value.reason


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "lzw", "adobe_deflate", "packbits", "zstd"])
def test_a_tiff_of_five_channels_keeps_each_value(order, planes, compression):
    array = levels(20, 30, 5)
    written = np.moveaxis(array, -1, 0) if planes == "separate" else array
    for tile, predictor in itertools.product([None, (16, 16)], [False, bool(compression)]):
        content = tif(
            np.ascontiguousarray(written),
            photometric="minisblack",
            planarconfig=planes,
            byteorder=order,
            compression=compression,
            tile=tile,
            predictor=predictor,
        )
        found = read(content)
        assert found.dtype == np.uint16
        assert np.array_equal(found, array), (tile, predictor)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_any_bits_is_scaled_to_16_bits_so_that_the_highest_value_is_white(bits, order):
    array = levels(7, 11, 3, bits=bits)
    expected = np.rint(array * (65535 / ((1 << bits) - 1)))
    for planar, reverse in itertools.product([False, True], [1, 2] if bits < 8 else [1]):
        content = tiff(array, bits, 2, order, planar=planar, fill_order=reverse)
        image, remark = decode_as(KEEP_16, content, "x")
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected), (planar, reverse)
        assert bool(notes_on_bits([remark])) == (bits < 16)
    grey = tiff(array[..., :1], bits, 0, order, rows=3)  # 0 is white
    assert np.array_equal(read(grey), 65535 - expected[..., :1])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tif(levels(4, 5).astype(np.float32)), "floats, of unknown range"),
        (tif(levels(4, 5).astype(np.int16)), "signed integers"),
        (tif(levels(4, 5).astype(np.uint32)), "32 bits, of unknown range"),
        (tif(levels(3, 4, 5), photometric="minisblack"), "several pages"),
        (tiff(levels(4, 5, 3, bits=8), 8, 2, t258=[5, 6, 5]), "differ in bits"),
        (tiff(levels(4, 5, 3), 16, 2, t256=[60000], t257=[60000]), "are allowed"),
        (patched(tif(levels(4, 5)), 273, 0), "sparse"),
        (tif(levels(40, 50))[:-9], "cut off"),
        (tif(levels(40, 50), compression="lzw")[:-9], "cut off"),
        (tiff(levels(2, 3, 70, bits=8), 8, 1), f"70 channels; {MAX_CHANNELS}"),
        (b"II*\0", ""),
    ],
)
def test_an_odd_tiff_is_refused_with_the_reason(content, reason):
    assert reason in why_not(content)


@pytest.mark.parametrize(
    ("content", "typed"),
    [
        (tif(levels(9, 7, 5, bits=8), **FIVE), "channels=keep"),
        (tif(levels(9, 7, 5), **FIVE), "channels=keep"),
        (tif(levels(9, 7, 3, bits=12), photometric="rgb", bitspersample=12), "bits=16"),
    ],
)
def test_what_pillow_cannot_open_and_another_form_reads_is_told_with_that_form(content, typed):
    assert why_not(content, Form()).endswith(f"; training with dataset.{typed} reads it")
    form = {"channels=keep": KEEP, "bits=16": RGB_16}[typed]
    assert decode_as(form, content, "x")[0].shape[1:] == (9, 7)


@pytest.mark.parametrize(
    "content",
    [
        tif(levels(9, 7, 5, bits=8), **FIVE)[:-9],
        tif(levels(4, 5).astype(np.float32)),
        png(levels(9, 7, 3), 16, 2)[:-40],
        b"GIF89a",
    ],
)
def test_no_form_is_named_for_what_none_reads(content):
    assert "dataset." not in why_not(content, Form())


def test_without_the_readers_of_tiff_it_is_told_how_to_get_them(monkeypatch):
    monkeypatch.setattr("datasets.bands.find_spec", lambda name: None)
    told = why_not(tif(levels(9, 7, 5), **FIVE), Form())
    assert told.endswith('dataset.channels=keep or dataset.bits=16 may read it, with pip install '
                         '-e ".[tiff]"')  # fmt: skip


def test_a_smaller_copy_in_a_tiff_is_no_second_page():
    array, file = levels(16, 16), io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(array, photometric="minisblack")
        writer.write(array[::2, ::2], photometric="minisblack", subfiletype=1)
    assert np.array_equal(read(file.getvalue())[..., 0], array)


def test_a_small_tiff_cannot_unpack_to_more_than_its_pixels():
    large = zlib.compress(bytes(1 << 24), 9)
    content = tif(levels(4, 5), compression="adobe_deflate")
    content = patched(patched(content + large, 273, len(content)), 279, len(large))
    tracemalloc.start()
    assert "SPACE" in why_not(content)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_a_png_of_16_bits_keeps_each_value_and_channel(colour, channels, interlaced):
    array = levels(9, 14, channels)
    content = png(array, 16, colour, interlaced=interlaced)
    assert np.array_equal(read(content), array)
    assert np.array_equal(read(content, KEEP), array >> 8)


def test_a_damaged_png_of_16_bits_is_refused():
    content = png(levels(40, 40, 3), 16, 2)
    for cut in range(20, len(content) - 12, 97):
        why_not(content[:cut])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 16, 2, 0, 0, 0))
    assert "pixels" in why_not(content[:8] + header + content[33:])


@pytest.mark.parametrize("kind", ["png", "lzw", "deflate", "npy"])
def test_a_file_with_wrong_bytes_is_read_or_refused_and_ends_nothing(kind):
    array, random = levels(9, 11, 3), np.random.default_rng(3)
    content = {"png": png(array, 16, 2), "npy": npy(array)}.get(kind)
    content = content or tif(array, photometric="rgb", compression=kind)
    for _ in range(150):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), random.integers(1, 5)):
            damaged[min(place, random.integers(1, len(content)))] = random.integers(256)
        try:
            assert decode_as(KEEP_16, bytes(damaged), "x")[0].dtype == torch.uint16
        except BrokenImage as error:
            assert error.reason


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WebP"])
def test_an_8_bit_picture_keeps_its_channels_and_becomes_257_times_as_much_in_16(mode, format):
    if format == "WebP" and mode in ("L", "LA"):
        pytest.skip("WebP has colours only")
    array = levels(9, 14, len(mode), bits=8).squeeze()
    content = saved(
        array, format, **({"lossless": True, "exact": True} if format == "WebP" else {})
    )
    expected = array.reshape(9, 14, -1)
    assert np.array_equal(read(content, KEEP), expected)
    assert np.array_equal(read(content), expected.astype(int) * 257)


def test_a_grey_jpeg_has_one_channel_and_a_colour_one_three():
    for array in (levels(16, 16, bits=8), levels(16, 16, 3, bits=8)):
        content = saved(array, "JPEG")
        with Image.open(io.BytesIO(content)) as image:
            assert np.array_equal(read(content, KEEP).squeeze(), np.asarray(image))


def test_a_turned_picture_of_two_channels_is_upright():
    array, exif = levels(9, 14, 2, bits=8), Image.Exif()
    exif[0x0112] = 6
    image, remark = decode_as(KEEP, saved(array, "PNG", exif=exif), "x")
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.rot90(array, -1))
    assert remark & Remark.TURNED
    deep = tiff(levels(9, 14, 5), 16, 1, t274=[8])
    assert np.array_equal(read(deep), np.rot90(levels(9, 14, 5)))


def test_16_bits_as_rgb_have_three_channels_and_alpha_on_white():
    grey, colours, alpha = levels(6, 7, 1), levels(6, 7, 3), levels(6, 7, 4)
    assert np.array_equal(read(png(grey, 16, 0), RGB_16), grey.repeat(3, 2))
    assert np.array_equal(read(png(colours, 16, 2), RGB_16), colours)
    share = alpha[..., 3:] / 65535
    expected = np.rint(alpha[..., :3] * share + 65535 * (1 - share))
    image, remark = decode_as(RGB_16, png(alpha, 16, 6), "x")
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() <= 1
    assert remark & Remark.ON_WHITE
    straight = tif(alpha, photometric="rgb", extrasamples=["unassalpha"])
    assert torch.equal(decode_as(RGB_16, straight, "x")[0], image)
    key = chunk(b"tRNS", colours[2, 3].astype(">u2").tobytes())
    found = read(png(colours, 16, 2, key), RGB_16)
    assert (found[2, 3] == 65535).all()
    assert np.array_equal(
        np.delete(found.reshape(-1, 3), 17, 0), np.delete(colours.reshape(-1, 3), 17, 0)
    )
    assert "5 channels that are not RGB" in why_not(tiff(levels(4, 5, 5), 16, 1), RGB_16)


@pytest.mark.parametrize(
    "array", [levels(5, 6), levels(5, 6, 1), levels(5, 6, 7), levels(5, 6, bits=8)]
)
def test_an_array_file_keeps_each_value(array):
    expected = array.reshape(5, 6, -1).astype(int) * (257 if array.dtype == np.uint8 else 1)
    for same in (array, np.asfortranarray(array), array.astype(array.dtype.newbyteorder(">"))):
        assert np.array_equal(read(npy(same)), expected)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (npy(levels(4, 5).astype(float)), "float64; uint8 and uint16"),
        (npy(np.array([{}], object), allow_pickle=True), "object; uint8"),
        (npy(levels(3, 4, 224)), "expected (H, W) or (H, W, C)"),
        (npy(levels(4, 5))[:-1], "bytes of pixels"),
        (npy(levels(4, 5)).replace(b"(4, 5)", b"(9, 5)"), "bytes of pixels"),
        (npy(levels(40, 50)).replace(b"(40, 50)", b"(9**9, )"), ""),
        (npy(levels(1000, 100)).replace(b"(1000, 100)", b"(9999,99999)"), "are allowed"),
        (b"\x93NUMPY", ""),
    ],
)
def test_an_odd_array_file_is_refused_with_the_reason(content, reason):
    assert reason in why_not(content)


def test_over_8_bits_in_other_formats_are_refused_as_16_bits():
    jpeg2000 = io.BytesIO()
    Image.fromarray(levels(32, 32)).save(jpeg2000, "JPEG2000")
    assert "save it as PNG or TIFF" in why_not(jpeg2000.getvalue())


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("container", ["j2k", "jp2"])
def test_a_jpeg_2000_of_12_or_16_bits_in_colour_is_refused_as_16_bits(channels, container):
    def encoded(bits):
        pixels, options = levels(32, 32, channels, bits=bits), {"bitspersample": bits}
        return imagecodecs.jpeg2k_encode(pixels, level=0, codecformat=container, **options)

    for bits in (12, 16):
        assert "save it as PNG or TIFF" in why_not(encoded(bits))
    assert read(encoded(8)).shape == (32, 32, channels)


def test_a_colour_netpbm_of_over_8_bits_is_refused_as_16_bits():
    for highest in (1023, 65535):
        pixels = levels(4, 5, 3).clip(0, highest)
        for content in (
            b"P6 5 4 %d\n" % highest + pixels.astype(">u2").tobytes(),
            b"P3 5 4 %d\n" % highest + b" ".join(b"%d" % one for one in pixels.ravel()),
        ):
            assert "save it as PNG or TIFF" in why_not(content)
            assert read(content, KEEP).shape == (4, 5, 3)
    pixels = levels(4, 5, 3, bits=8)
    assert np.array_equal(read(b"P6 5 4 255\n" + pixels.tobytes()), pixels.astype(int) * 257)


@pytest.mark.skipif(not HAS_AVIF, reason="this Pillow reads no AVIF")
def test_an_avif_of_10_bits_is_refused_as_16_bits():
    content = imagecodecs.avif_encode(levels(32, 32, 3, bits=10), bitspersample=10)
    assert "save it as PNG or TIFF" in why_not(content)
    assert read(imagecodecs.avif_encode(levels(32, 32, 3, bits=8))).shape == (32, 32, 3)


def test_without_the_extra_a_tiff_is_refused_by_its_name(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.tif").write_bytes(tif(levels(4, 5)))
    monkeypatch.setattr("datasets.bands.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'2 TIFF files; .*pip install -e "\.\[tiff\]"'):
        ImageFolder(str(tmp_path), channels="keep")
    ImageFolder(str(tmp_path))


def test_the_default_reads_stores_and_names_images_as_without_the_two_arguments(tmp_path):
    for name, mode in (("a", "RGBA"), ("b", "L")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(
            saved(levels(8, 8, len(mode), bits=8).squeeze(), "PNG")
        )
        (tmp_path / name / "x.npy").write_bytes(npy(levels(8, 8)))
    plain = ImageFolder(str(tmp_path))
    assert plain.ids == ("a/x.png", "b/x.png")
    assert "2 .npy" in plain.note
    assert plain.recipe == f"exact decoding by {decoders()}"
    for index in range(2):
        content = plain.content(index)
        assert torch.equal(plain.image(index), decode(content, "x"))
        assert plain.remarks[index] == decode_and_tell(content, "x")[1]
    others = [ImageFolder(str(tmp_path), channels=c, bits=b) for c, b in [KEEP, KEEP_16, RGB_16]]
    assert len({plain.recipe, *(other.recipe for other in others)}) == 4
    assert all(len(other) == 4 for other in others)
    assert [plain.digest(i) for i in range(2)] == [others[0].digest(i) for i in (1, 3)]


def test_notes_count_what_was_scaled_and_what_was_cut():
    remarks = [
        decode_as(KEEP_16, c, "x")[1]
        for c in (saved(levels(4, 4, bits=8), "PNG"), tif(levels(4, 5)))
    ]
    assert notes_on_bits([0, *remarks])[0].startswith("1 of 2 images holds fewer than 16 bits")
    assert not notes_on(remarks)
    assert "the high ones" in notes_on([decode_as(KEEP, tif(levels(4, 5)), "x")[1]])[0]


def arrays(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(npy(levels(4, 5)))


def test_array_files_beside_folders_are_counted_as_images_of_their_class(tmp_path):
    arrays(tmp_path, *(f"{k}/{i}.npy" for k in "ab" for i in range(2)))
    arrays(tmp_path, *(f"{k}/{side}/0.npy" for k in "ab" for side in ("left", "right")))
    assert len(ImageFolder(str(tmp_path), channels="keep")) == 8


def test_more_array_files_than_the_folders_hold_are_a_root_one_level_too_low(tmp_path):
    arrays(tmp_path, *(f"{i}.npy" for i in range(5)), "left/0.npy", "right/0.npy")
    with pytest.raises(DataError, match="5 images lie directly in this folder"):
        ImageFolder(str(tmp_path), channels="keep")


def test_array_files_of_a_folder_that_is_no_part_are_counted(tmp_path):
    arrays(tmp_path, "train/a/0.npy", "train/b/0.npy", "other/0.npy", "other/1.npy")
    assert "other: 2 images" in ImageFolder(str(tmp_path), "error", "parts", bits=16).note


# --- HEIC and AVIF ------------------------------------------------------------------------------


@pytest.fixture
def heif(monkeypatch):
    module = pytest.importorskip("pillow_heif", reason='needs pip install -e ".[heif]"')
    monkeypatch.setattr("datasets.heif.find_spec", find_spec)
    return module


def heic(array):
    import pillow_heif

    if "x265" not in str(pillow_heif.libheif_info()["encoders"]):
        pytest.skip("this pillow-heif cannot write")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(array)).save(file, quality=-1, chroma=444)
    return file.getvalue()


def test_a_heic_photograph_is_read_as_pillow_heif_reads_it(heif, tmp_path):
    for name, channels in (("a", 3), ("b", 4)):
        (tmp_path / name).mkdir()
        content = heic(levels(40, 56, channels, bits=8))
        (tmp_path / name / "x.HEIC").write_bytes(content)
    content = (tmp_path / "a" / "x.HEIC").read_bytes()
    expected = np.asarray(heif.open_heif(io.BytesIO(content)).to_pillow())
    dataset = ImageFolder(str(tmp_path))
    assert dataset.ids == ("a/x.HEIC", "b/x.HEIC")
    assert np.array_equal(dataset.image(0).permute(1, 2, 0).numpy(), expected)
    assert dataset.image(1).shape == (3, 40, 56)
    assert dataset.remarks[1] & Remark.ON_WHITE
    assert "libheif" in dataset.recipe
    code = b"".join(Path(str(one.__file__)).read_bytes() for one in (datasets.heif, bands))
    assert hashlib.sha256(code).hexdigest() in dataset.recipe  # the pixels pass through both
    kept = ImageFolder(str(tmp_path), channels="keep", bits=16)
    assert np.array_equal(kept.image(0).permute(1, 2, 0).numpy(), expected.astype(int) * 257)
    assert kept.image(1).shape == (4, 40, 56)
    with pytest.raises(BrokenImage):
        decode_as(Form(), content[:-900], "x.heic")
    assert torch.equal(
        decode_as(Form(), saved(expected, "PNG"), "a PNG.heic")[0], dataset.image(0)
    )  # the content decides


def test_tables_and_notes_are_read_with_their_own_channels_and_bits(tmp_path):
    for name in ("1", "100"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.npy").write_bytes(npy(levels(4, 5, 7)))
    table = tmp_path / "table.csv"
    table.write_text("path,label\n1/x.npy,a\n100/x.npy,b\n")
    for dataset in (
        CSVImages(str(tmp_path), str(table), channels="keep", bits=16),
        RMB(str(tmp_path), channels="keep", bits=16),
    ):
        assert len(dataset) == 2
        assert np.array_equal(dataset.image(1).permute(1, 2, 0).numpy(), levels(4, 5, 7))


def test_packed_files_of_other_channels_are_read_as_in_their_folder(tmp_path):
    pytest.importorskip("webdataset", reason='needs pip install -e ".[shards]"')
    from scripts.pack_shards import main

    for name in "ab":
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "x.npy").write_bytes(npy(levels(4, 5, 7)))
        (tmp_path / "in" / name / "y.tif").write_bytes(tiff(levels(4, 5, 7, seed=1), 16, 1))
    target = tmp_path / "out"
    form = ["--channels", "keep", "--bits", "16"]
    assert main(["--source", str(tmp_path / "in"), "--target", str(target), *form]) == 0
    packed = Shards(str(target), channels="keep", bits=16)
    assert packed.ids == ("a/x.npy", "a/y.tif", "b/x.npy", "b/y.tif")
    for index in range(4):
        expected = levels(4, 5, 7, seed=index % 2)
        assert np.array_equal(packed.image(index).permute(1, 2, 0).numpy(), expected)


def test_without_the_extra_heic_files_are_left_out_and_the_extra_is_named(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(saved(levels(4, 4, bits=8), "PNG"))
        (tmp_path / name / "y.heic").write_bytes(b"....ftypheic....")
    dataset = ImageFolder(str(tmp_path))
    assert len(dataset) == 2
    assert "left out 2: 2 .heic" in dataset.note
    assert 'pip install -e ".[heif]"' in dataset.note
    assert "heif" not in dataset.recipe
    with pytest.raises(BrokenImage, match=r'pip install -e "\.\[heif\]"'):
        decode_as(Form(), b"....ftypheic....", "y.heic")


@pytest.mark.skipif(not HAS_AVIF, reason="this Pillow reads no AVIF")
def test_an_avif_photograph_keeps_its_channels():
    for channels in (3, 4):
        content = saved(levels(32, 32, channels, bits=8), "AVIF", quality=100)
        with Image.open(io.BytesIO(content)) as image:
            assert np.array_equal(read(content, KEEP), np.asarray(image))
            assert np.array_equal(read(content), np.asarray(image).astype(int) * 257)
