import re

import pytest
import torch
from PIL import Image

from trainer.insight.pictures import draw_confusion, draw_curves
from trainer.insight.report import write_report

CLASSES = ["1", "5", "100"]
PROBABILITIES = torch.tensor(
    [[0.9, 0.05, 0.05], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.3, 0.2, 0.5], [0.8, 0.1, 0.1]]
)
LABELS = torch.tensor([0, 1, 1, 2, 2])
IDS = ["1/a.jpg", "5/b.jpg", "5/c.jpg", "100/d.jpg", "100/e.jpg"]
HISTORY = [
    {
        "epoch": epoch,
        "train/loss": 1.0 / epoch,
        "val/loss": 2.0 / epoch,
        "val/accuracy": 1 - 0.5 / epoch,
        "val/confusion_matrix": [[1]],
        "lr/group0": 0.1,
    }
    for epoch in (1, 2, 3)
]
RESULT = {"best": {"epoch": 3}, "test": {"accuracy": 0.6, "loss": 1.25, "confusion_matrix": [[1]]}}


def report(folder, classes=CLASSES, ids=IDS, history=HISTORY, config="name: x\nseed: 0\n"):
    write_report(folder, history, classes, PROBABILITIES, LABELS, ids, config, RESULT)
    return (folder / "report.md").read_text(encoding="utf-8")


def table_after(text, heading):
    """The rows of the first table below a heading, without header and rule."""
    lines = text.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows][2:]


def colours(picture):
    return {colour for _, colour in picture.getcolors(1 << 24)}


def test_the_folder_is_made_and_holds_the_report_and_its_two_pictures(tmp_path):
    folder = tmp_path / "run" / "report"
    text = report(folder)
    assert {f.name for f in folder.iterdir()} == {
        *("report.md", "confusion_matrix.png", "curves.png")
    }
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        with Image.open(folder / name) as picture:
            picture.verify()
    assert text.count("![") == 2


def test_the_numbers_of_the_test_split_are_shown(tmp_path):
    text = report(tmp_path)
    assert "5 images, measured once with the weights of epoch 3" in text
    assert table_after(text, "Test split") == [["accuracy", "0.6000"], ["loss", "1.2500"]]
    assert table_after(text, "Classes") == [
        ["1", "1", "0.3333", "1.0000", "0.5000"],
        ["5", "2", "1.0000", "0.5000", "0.6667"],
        ["100", "2", "1.0000", "0.5000", "0.6667"],
    ]
    assert table_after(text, "Confusion matrix") == [
        *(["1", "1", "0", "0"], ["5", "1", "1", "0"], ["100", "1", "0", "1"])
    ]


def test_the_most_certain_mistake_stands_first_with_both_probabilities(tmp_path):
    text = report(tmp_path)
    assert "2 of 2 wrong among 5 images." in text
    assert table_after(text, "Worst mistakes") == [
        ["100/e.jpg", "100", "1", "0.8000", "0.1000"],
        ["5/b.jpg", "5", "1", "0.6000", "0.3000"],
    ]


def test_at_most_16_mistakes_are_listed_and_all_are_counted(tmp_path):
    probabilities = torch.tensor([[0.9, 0.1]]).repeat(40, 1)
    labels, ids = torch.ones(40, dtype=torch.int64), [str(i) for i in range(40)]
    write_report(tmp_path, HISTORY, ["a", "b"], probabilities, labels, ids, "", RESULT)
    text = (tmp_path / "report.md").read_text()
    assert "16 of 40 wrong" in text
    assert [row[0] for row in table_after(text, "Worst mistakes")] == ids[:16]


def test_a_model_without_mistakes_is_said_to_have_none(tmp_path):
    probabilities, labels = torch.eye(2), torch.arange(2)
    write_report(tmp_path, HISTORY, ["a", "b"], probabilities, labels, ["x", "y"], "", RESULT)
    assert "every image is predicted right" in (tmp_path / "report.md").read_text()


def test_the_curves_table_has_a_row_an_epoch_and_numbers_only(tmp_path):
    rows = table_after(report(tmp_path), "Curves")
    assert rows[1] == ["2", "0.5000", "1.0000", "0.7500", "0.1000"]
    assert len(rows) == 3


def test_values_that_are_missing_or_no_numbers_leave_gaps(tmp_path):
    history = [{**HISTORY[0], "val/accuracy": float("nan")}, {"epoch": 2, "val/accuracy": 0.5}]
    rows = table_after(report(tmp_path, history=history), "Curves")
    assert rows[1] == ["2", "", "", "", "0.5000"]


def test_odd_names_cannot_break_a_table_or_become_markup(tmp_path):
    classes = ["a|b", "<b>x</b>\n# heading", "一百元"]
    ids = [f"{name}/`[link](http://x)`\\|.jpg" for name in "abcde"]
    text = report(tmp_path, classes=classes, ids=ids)
    assert {len(row) for row in table_after(text, "Classes")} == {5}
    assert {len(row) for row in table_after(text, "Worst mistakes")} == {5}
    assert "\n# heading" not in text and "一百元" in text
    assert not re.search(r"(?<!\\)<b>", text) and not re.search(r"(?<!\\)\[link", text)


def test_the_config_is_shown_as_it_is_even_with_code_fences_in_it(tmp_path):
    text = report(tmp_path, config="name: x\n\n# ```\n## Worst\nseed: 0\n")
    assert text.endswith("## Config\n\n    name: x\n\n    # ```\n    ## Worst\n    seed: 0\n")


def test_the_same_run_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        report(tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_a_confusion_cell_is_darker_the_larger_its_share_of_the_row():
    picture = draw_confusion([[90, 10, 0], [0, 100, 0], [1, 0, 1]], ["a", "b", "c"]).convert("L")
    cell, end = 72, picture.height - 20
    start = end - 3 * cell

    def grey(row, column):  # near the cell's corner, beside its number
        return picture.getpixel((start + column * cell + 6, start + row * cell + 6))

    assert grey(1, 1) < grey(0, 0) < grey(2, 0) < grey(0, 1) < grey(0, 2) == 255
    assert grey(2, 0) == grey(2, 2)


@pytest.mark.parametrize("num_classes", [1, 2, 48, 49, 1000])
def test_a_confusion_picture_of_any_number_of_classes_is_of_a_size_to_look_at(num_classes):
    confusion = [[int(i == j) for j in range(num_classes)] for i in range(num_classes)]
    picture = draw_confusion(confusion, ["a rather long name of a class " * 3] * num_classes)
    assert 200 <= picture.width <= 1300 and 100 <= picture.height <= 1300


def test_a_name_that_the_font_lacks_is_drawn_as_the_classes_number():
    confusion = [[1, 0], [0, 1]]
    by_name, by_number = (draw_confusion(confusion, names) for names in (["一", "b"], ["#0", "b"]))
    assert by_name.tobytes() == by_number.tobytes()


def test_curves_have_a_panel_for_losses_metrics_and_learning_rate():
    full = draw_curves(HISTORY, best_epoch=2)
    only_loss = draw_curves([{"epoch": 1, "val/loss": 2.0}], best_epoch=None)
    assert full.height == 3 * only_loss.height
    assert {(31, 119, 180), (255, 127, 14)} <= colours(full)  # two losses
    assert (255, 127, 14) not in colours(only_loss)


def test_a_curve_runs_through_its_points():
    picture = draw_curves([{"epoch": 1, "val/loss": 0.0}, {"epoch": 3, "val/loss": 1.0}], None)
    curve = (31, 119, 180)
    left, right, top, bottom = 90, 730, 44, 276
    assert picture.getpixel((left, bottom)) == picture.getpixel((right, top)) == curve
    assert picture.getpixel(((left + right) // 2, (top + bottom) // 2)) == curve
    assert picture.getpixel((right - 20, bottom - 20)) == (255, 255, 255)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-12, 1e9])
def test_a_constant_curve_and_a_single_epoch_can_be_drawn(value):
    for epochs in (1, 4):
        history = [{"epoch": epoch + 1, "val/loss": value} for epoch in range(epochs)]
        assert (31, 119, 180) in colours(draw_curves(history, best_epoch=1))


def test_an_empty_history_gives_an_empty_picture():
    assert colours(draw_curves([], best_epoch=None)) == {(255, 255, 255)}
