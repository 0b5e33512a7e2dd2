"""The drawing: what a picture shows is where it belongs, whatever the names and numbers."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from trainer.drawing import charts, fonts
from trainer.drawing.axes import COLOURS
from trainer.drawing.charts import (
    MARKS,
    MAX_BARS,
    draw_bars,
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_lines,
)
from trainer.drawing.fonts import (
    CJK_FONTS,
    drawable,
    drawables,
    font,
    legible,
    names_in_lines,
    note_on_names,
)
from trainer.drawing.pictures import fit_into, grid, png, sheet, to_picture

BLUE, ORANGE, WHITE = (31, 119, 180), (255, 127, 14), (255, 255, 255)
HISTORY = [
    {
        "epoch": epoch,
        "train/loss": 1.0 / epoch,
        "train/accuracy": 1 - 0.6 / epoch,
        "val/loss": 2.0 / epoch,
        "val/accuracy": 1 - 0.5 / epoch,
        "lr/group0": 0.1,
    }
    for epoch in (1, 2, 3)
]


def colours(picture):
    return {colour for _, colour in picture.getcolors(1 << 24)}


def forget_fonts():
    frame = charts._confusion_frame
    for cached in (fonts._system_fonts, fonts._place, fonts._has, frame):
        cached.cache_clear()


@pytest.fixture
def no_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "WIDE_FONTS", ())
    monkeypatch.setattr(fonts, "CJK_FONTS", ())
    forget_fonts()
    yield
    monkeypatch.undo()
    forget_fonts()


@pytest.fixture
def chinese_font():
    if not fonts._can_write(fonts._place("一百元"), "一百元"):
        pytest.skip(f"this system has none of {', '.join(name for name, _ in CJK_FONTS)}")


# Text


def test_a_name_that_the_font_lacks_is_drawn_as_the_classes_number(no_fonts):
    confusion = [[1, 0], [0, 1]]
    by_name, by_number = (draw_confusion(confusion, names) for names in (["一", "b"], ["#0", "b"]))
    assert by_name.tobytes() == by_number.tobytes()


def test_a_chinese_name_is_written_where_the_system_has_a_font(chinese_font):
    assert drawable("一百元", 3) == "一百元"
    drawn = draw_confusion([[1, 0], [0, 1]], ["一", "b"])
    assert drawn.tobytes() != draw_confusion([[1, 0], [0, 1]], ["#0", "b"]).tobytes()
    # One letter, and not the empty box that stands for one that is missing.
    box, letter = (bytes(font(20, "一").getmask(c)) for c in ("\uffff", "百"))
    assert letter != box


def test_a_font_is_looked_for_only_where_a_name_needs_it(monkeypatch):
    def sought():
        raise AssertionError("the system's fonts were looked through")

    monkeypatch.setattr(fonts, "_system_fonts", sought)
    assert drawable("Cafe’s 5", 0) == "Cafe’s 5"
    draw_confusion([[1, 0], [0, 1]], ["a", "b"])
    sheet([Image.new("RGB", (9, 9))], ["a → b"])


@pytest.mark.parametrize(
    "name", ["\x1b[31m", "a\nb", "\udcff", "\u202eabc", "\ue000", "\u0633\u0644", "\u0939\u093f"]
)
def test_what_no_font_can_write_becomes_the_number(name):
    assert drawable(name, 7) == "#7"


@pytest.mark.parametrize("name", ["Caf\u00e9", "Z\u030cofie", "\u4e00"])
def test_what_pillows_font_lacks_is_a_number_in_every_picture_and_one_note_tells_it(no_fonts, name):
    assert drawables(["a", name]) == ["a", "#1"]
    told = note_on_names(["a", name])
    assert f"1 of 2 class names; pictures have their numbers: #1 is {name!r}." in told
    assert note_on_names(["a", "#1", "Cafe’s"]) == ""


@pytest.mark.parametrize("name", ["\x1b[31m", "a\nb", "\udcff", "\u202eabc", "\ue000"])
def test_control_characters_are_no_matter_of_fonts(no_fonts, name):
    told = note_on_names(["a", name, "c"])
    assert told.startswith("1 of 3 class names hold control characters")
    assert f"pictures have their numbers: #1 is {name!r}. Rename" in told and "font" not in told
    both = note_on_names(["a", name, "\u4e00"])
    assert both.startswith(f"{told}. no font here can write 1 of 3 class names; ")
    assert "their numbers: #2 is '\u4e00'. Install" in both


def test_accents_are_written_composed_by_a_font_of_the_system_that_has_them():
    if not fonts._can_write(fonts._place("Žü"), "Žü"):
        pytest.skip(f"this system has none of {', '.join(name for name, _ in fonts.WIDE_FONTS)}")
    name = "Z\u030cofie’s Hu\u0308ndchen"  # as a Mac's file system has it
    assert drawable(name, 0) == legible(name) == "Žofie’s Hündchen"
    face = font(20, "Žofie’s Hündchen")
    shapes = {bytes(face.getmask(letter)) for letter in "ŽüZu\uffff"}
    assert len(shapes) == 5  # each letter is its own, and not the empty box
    by_form = [draw_bars([one], {"train": [1]}).tobytes() for one in (name, "Žofie’s Hündchen")]
    assert by_form[0] == by_form[1]


def test_plain_names_are_drawn_by_the_same_font_on_every_system():
    assert font(15, "cat 5") is font(15) is font(15, "’")


# Charts


def test_a_confusion_cell_is_darker_the_larger_its_share_of_the_row():
    picture = draw_confusion([[90, 10, 0], [0, 100, 0], [1, 0, 1]], ["a", "b", "c"]).convert("L")
    cell, end = 72, picture.height - 20
    start = end - 3 * cell

    def grey(row, column):  # near the cell's corner, beside its number
        return picture.getpixel((start + column * cell + 6, start + row * cell + 6))

    assert grey(1, 1) < grey(0, 0) < grey(2, 0) < grey(0, 1) < grey(0, 2) == 255
    assert grey(2, 0) == grey(2, 2)


@pytest.mark.parametrize("num_classes", [1, 2, 10, 29, 48, 49, 1000, 1001, 3001])
def test_a_confusion_picture_of_any_number_of_classes_is_of_a_size_to_look_at(num_classes):
    confusion = torch.eye(num_classes, dtype=torch.int64)
    picture = draw_confusion(confusion, ["a rather long name of a class " * 3] * num_classes)
    assert 200 <= picture.width <= 1300 and 100 <= picture.height <= 1300


def test_a_cell_of_thousands_of_classes_is_the_sum_over_a_square_of_them():
    counts = torch.zeros(1999, 1999, dtype=torch.int64)
    counts[2, 4], counts[3, 1001] = 1, 3  # a quarter and the rest of the second row of cells
    row = draw_confusion(counts, ["x"] * 1999).convert("L").crop((60, 61, 1060, 62))
    greys = {place: grey for place, grey in enumerate(row.tobytes()) if grey < 200 and place}
    assert greys == {2: 149, 500: 71}  # white to dark blue by the share's square root


@pytest.mark.parametrize("num_classes", [1, 2, 10, 11, 20, 21, 100, 300, 500])
def test_a_confusion_picture_for_tensorboard_fills_a_card_without_losing_pixels(num_classes):
    # TensorBoard shows 350 pixels, and drops pixels of a wider picture instead of averaging.
    confusion = (torch.eye(num_classes, dtype=torch.int64) * 128).tolist()
    picture = draw_confusion(confusion, [f"class {i}" for i in range(num_classes)], card=True)
    assert picture.width == (700 if 10 < num_classes <= 20 or num_classes >= 350 else 350)
    assert len(set(picture.convert("L").tobytes())) > 20  # smooth letters have greys


def test_curves_have_a_panel_for_losses_metrics_and_learning_rate():
    full = draw_curves(HISTORY, best_epoch=2)
    only_loss = draw_curves([{"epoch": 1, "val/loss": 2.0}], best_epoch=None)
    assert full.height == 3 * only_loss.height
    assert {BLUE, ORANGE} <= colours(full)  # two losses
    assert ORANGE not in colours(only_loss)


def test_a_curve_runs_through_its_points():
    picture = draw_curves([{"epoch": 1, "val/loss": 0.0}, {"epoch": 3, "val/loss": 1.0}], None)
    left, right, top, bottom = 90, 730, 44, 276
    assert picture.getpixel((left, bottom)) == picture.getpixel((right, top)) == BLUE
    assert picture.getpixel(((left + right) // 2, (top + bottom) // 2)) == BLUE
    assert picture.getpixel((right - 20, bottom - 20)) == WHITE


def test_on_a_logarithmic_axis_equal_factors_are_equal_distances():
    points = [(0.0, 9.0), (1e-4, 0.0), (1e-3, 1.0), (1e-2, 0.0)]  # zero has no place there
    picture = draw_lines({"loss": {"a": points}}, "lr", log_x=True)
    assert picture.getpixel(((90 + 730) // 2, 44)) == BLUE


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-12, 1e9])
def test_a_constant_curve_and_a_single_epoch_can_be_drawn(value):
    for epochs in (1, 4):
        history = [{"epoch": epoch + 1, "val/loss": value} for epoch in range(epochs)]
        assert BLUE in colours(draw_curves(history, best_epoch=1))


@pytest.mark.parametrize("low", [1.0, 0.1, -1e9, 0.0])
def test_values_that_differ_in_the_last_bit_can_be_drawn(low):
    high = math.nextafter(low, math.inf)
    assert BLUE in colours(draw_lines({"loss": {"a": [(1.0, low), (2.0, high)]}}, "epoch"))


def test_an_empty_history_gives_an_empty_picture():
    assert colours(draw_curves([], best_epoch=None)) == {WHITE}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=8), st.booleans())
def test_any_points_can_be_drawn_and_those_that_are_no_numbers_are_left_out(points, log_x):
    picture = draw_lines({"a": {"b": points}, "empty": {}}, "x", [(1.0, "here")], log_x)
    kept = [(x, y) for x, y in points if abs(x) < 1e300 and abs(y) < 1e300]  # NaN is neither
    kept = [(x, y) for x, y in kept if x > 0 or not log_x]
    assert (colours(picture) != {WHITE}) == bool(kept)


def test_more_curves_than_the_legend_holds_are_drawn_and_counted():
    curves = {f"run {i}": [(0.0, float(i)), (1.0, float(i))] for i in range(30)}
    assert draw_lines({"loss": curves}, "epoch").height == 320


def test_bars_are_as_long_as_their_counts():
    picture = draw_bars(["a"], {"train": [100], "val": [50]})
    lengths = [
        sum(picture.getpixel((x, y)) == colour for x in range(picture.width))
        for y, colour in ((44 + 2, BLUE), (44 + 14 + 2, ORANGE))
    ]
    assert lengths == [461, 231]
    assert BLUE not in [draw_bars(["a"], {"t": [0]}).getpixel((x, 46)) for x in range(100)]


def test_bars_of_very_many_classes_show_the_smallest_and_the_largest():
    def height(count):
        return draw_bars([f"class {i}" for i in range(count)], {"train": range(count)}).height

    assert height(MAX_BARS) < height(1000) == height(10_000) < 1300


@pytest.mark.parametrize("first", [0, 1], ids=["below a dashed one", "above it"])
@pytest.mark.parametrize("epochs", [2, 30, 60, 61, 1000])
def test_of_two_curves_that_coincide_both_are_seen(epochs, first):
    curves = {"other": [(0.0, 0.0), (epochs - 1.0, 0.5)]} if first else {}
    curves |= {f"run {i}": [(float(e), 1.0) for e in range(epochs)] for i in range(2)}
    picture = draw_lines({"accuracy": curves}, "epoch")
    upper_edge = [picture.getpixel((x, 44)) for x in range(100, 720)]  # the middle of both lines
    pair = COLOURS[first : first + 2]
    shares = [upper_edge.count(ImageColor.getrgb(colour)) for colour in pair]
    assert min(shares) > 0.25 * len(upper_edge)


def test_a_curve_alone_is_solid_and_its_neighbour_is_dashed_in_the_legend_too():
    curves = {name: [(1.0, y), (9.0, y)] for name, y in (("a", 1.0), ("b", 0.0))}
    picture = draw_lines({"loss": curves}, "epoch")

    def pieces(colour, y, left, right):
        row = [picture.getpixel((x, y)) == colour for x in range(left, right)]
        return sum(now and not before for before, now in pairwise([False, *row]))

    assert pieces(BLUE, 44, 100, 720) == 1 and 35 <= pieces(ORANGE, 276, 100, 720) <= 40
    assert pieces(BLUE, 54, 740, 775) == 1 and pieces(ORANGE, 76, 740, 775) == 2


@pytest.mark.parametrize("end", [(7.0, 0.6), (7.0, 1.5), (5.0, 3.3), (2.0, 3.3), (1.01, 3.3)])
def test_a_line_is_as_thick_whatever_its_slope(end):
    def drawn(**more):
        # So that axes stay the same, and that the line is the third, which is solid.
        frame = {"frame": [(0.0, 0.0), (8.0, 0.0), (8.0, 4.0)], "second": [(0.0, 0.0)]}
        return draw_lines({"loss": frame | more}, "epoch").convert("L").crop((90, 44, 730, 276))

    begin = (1.0, 0.6)
    line = [tuple(np.linspace(begin, end, 99)[i].tolist()) for i in range(99)]  # too many for dots
    ink = np.asarray(drawn(), float) - np.asarray(drawn(a=line), float)
    covered = ink.sum() / ink.max()
    length = math.hypot((end[0] - begin[0]) / 8 * 640, (end[1] - begin[1]) / 4 * 232)
    assert covered / length == pytest.approx(3, rel=0.1)


def test_a_vertical_line_beyond_the_points_is_in_the_picture():
    picture = draw_lines({"loss": {"a": [(1.0, 0.0), (2.0, 1.0)]}}, "epoch", [(3.0, "here")])
    assert ImageColor.getrgb(MARKS[0]) in {picture.getpixel((x, 100)) for x in range(725, 735)}


def test_a_calibration_bar_reaches_to_the_accuracy_of_its_interval():
    picture = draw_calibration([(0, 0.0, 0.0), (10, 0.75, 0.5)])
    x = 64 + 420 - 40  # beside the diagonal
    column = [picture.getpixel((x, y)) for y in range(44, 44 + 420)]
    assert 205 <= column.count(BLUE) <= 211  # half of 420, less the diagonal's two pixels
    assert column.index((214, 39, 40)) == pytest.approx(105, abs=2)  # the confidence


# Pictures of pictures


def test_an_image_keeps_its_pixels_as_a_picture():
    image = torch.arange(24, dtype=torch.uint8).reshape(3, 2, 4)
    assert to_picture(image).getpixel((3, 1)) == tuple(image[:, 1, 3].tolist())
    assert to_picture(image[:1]).getpixel((2, 0)) == (2, 2, 2)


def test_a_small_picture_is_enlarged_a_whole_number_of_times_and_stays_crisp():
    image = torch.randint(0, 256, (1, 28, 28), dtype=torch.uint8)
    large = fit_into(to_picture(image), 160)
    assert large.size == (140, 140)
    assert large.getpixel((139, 0)) == large.getpixel((135, 4)) == (int(image[0, 0, 27]),) * 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (3000, 2), (90, 170), (160, 160)])
def test_a_picture_of_any_shape_fits_its_cell(shape):
    assert max(fit_into(Image.new("L", shape), 160).size) == 160


def test_a_sheet_has_a_cell_a_picture_framed_in_its_colour():
    images: list[Any] = [
        Image.new("RGB", (30, 20), "blue"),
        torch.zeros(1, 28, 28, dtype=torch.uint8),
    ] * 3
    captions = ["a", ["b", "c"], "d", "e" * 500, "\x00\udcff", "一 → 二"]
    frames = ["#2ca02c", "#d62728", None] * 2
    made = sheet(images, captions, frames, columns=4, size=80)
    assert {(44, 160, 44), (214, 39, 40), (0, 0, 255), (0, 0, 0)} <= colours(made)
    assert made.width == 4 * (80 + 14) + 14
    assert sheet([], []).size  # nothing to show is no fault
    assert sheet(images[:2], ["a", "b"], columns=4, size=80).width == 2 * (80 + 14) + 14


@pytest.mark.parametrize("width", [60, 90, 166, 400])
@pytest.mark.parametrize("lines", [1, 2, 4])
@pytest.mark.parametrize("long", ["b", "a class of many letters, also with commas in its name"])
def test_names_below_a_picture_are_all_there_or_counted(width, lines, long):
    for count in range(1, 9):
        names = ["ant", long, *(f"name{i}" for i in range(count))][:count]
        made = names_in_lines(names, 13, width, lines)
        assert len(made) <= lines
        assert all(font(13, line).getlength(line) <= width for line in made)
        text, _, more = ", ".join(made).partition(", +")
        if more:
            assert len(made) == lines
            names = names[: -int(more)]
        # Of a name that is too long the beginning is shown.
        for name in names:
            start = next(i for i in range(len(name), -1, -1) if text.startswith(name[:i]))
            assert start == len(name) or text[start:].startswith("...")
            text = text[start:].removeprefix("..." if start < len(name) else "").removeprefix(", ")
        assert text == ""


def test_a_list_of_names_takes_lines_of_its_own_below_a_picture():
    image = torch.zeros(1, 9, 9, dtype=torch.uint8)
    names = [f"a long name {i}" for i in range(9)]
    flat, some, all_of_them = (
        sheet([image], [[names[:n], "file.png"]], size=80).height for n in (1, 2, 9)
    )
    assert (some - flat, all_of_them - flat) == (17, 3 * 17)


def test_each_kernel_is_stretched_to_its_own_range():
    made = grid(torch.tensor([[[0.0, 1.0]], [[0.0, 4.0]]]), scale=10).convert("L")
    assert [made.getpixel((x, 5)) for x in (5, 15, 27, 37)] == [0, 255, 0, 255]


@pytest.mark.parametrize(
    "shape", [(6, 5, 5), (6, 1, 5, 5), (64, 3, 11, 11), (2, 4, 3, 3), (1, 300, 1), (0, 5, 5)]
)
def test_kernels_and_maps_of_any_shape_make_a_picture(shape):
    assert grid(torch.randn(shape)).size
    assert grid(torch.full(shape, torch.nan)).size


@pytest.mark.parametrize("shape", [(6, 3, 5, 5), (64, 3, 3), (16, 14, 14), (256, 4, 4)])
def test_a_grid_is_large_enough_to_look_at_and_no_larger_than_a_screen(shape):
    made = grid(torch.randn(shape))
    assert 750 <= made.width <= 1300


def test_a_coloured_kernel_keeps_its_colours():
    kernel = torch.zeros(1, 3, 4, 4)
    kernel[0, 0] = 1
    assert (255, 0, 0) in colours(grid(kernel))


def test_a_written_picture_is_a_png_of_the_same_pixels(tmp_path):
    picture = to_picture(torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8))
    (tmp_path / "a.png").write_bytes(png(picture))
    with Image.open(tmp_path / "a.png") as read:
        assert read.format == "PNG" and read.tobytes() == picture.tobytes()
