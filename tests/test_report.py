"""The report: what it says is so, in Markdown and in HTML, whatever the names in it."""

import json
import re
import shutil
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.components.decisions import Answers
from trainer.components.metrics import calibration_error
from trainer.insight.findings import ReportData, calibration_bins, wilson
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


ARGUMENTS: dict[str, Any] = {
    "history": HISTORY,
    "classes": CLASSES,
    "probabilities": PROBABILITIES,
    "labels": LABELS,
    "ids": IDS,
    "config_text": "name: x\nseed: 0\n",
    "result": RESULT,
}
FAULTLESS: dict[str, Any] = {
    "classes": ["a", "b"],
    "probabilities": torch.tensor([[0.9, 0.1], [0.4, 0.6]]),
    "labels": torch.arange(2),
    "ids": ["x", "y"],
}
# What a stranger may have called his folders and files.
HOSTILE = [
    "<script>alert(1)</script>",
    "\"onload='x()' \"><img src=http://x.example/y.png>",
    "</style></pre></title><b>",
    "\x1b[31m\x00\u202egnp\udcff",
    "一百元",
    "a\n# b\n\n    c | d & `e` [f](http://x.example) *g*",
]


def report(folder, **changed):
    run, given = changed.pop("run", None), ARGUMENTS | changed
    answers = Answers(
        given.pop("probabilities"), given.pop("labels"), given.pop("thresholds", None)
    )
    write_report(folder, ReportData(answers=answers, **given), run)
    return (folder / "report.md").read_text(encoding="utf-8")


def page_of(folder, **changed):
    """The report's HTML, read by a parser."""
    report(folder, **changed)
    page = Page()
    page.feed((folder / "report.html").read_text(encoding="utf-8"))
    page.close()
    return page


class Page(HTMLParser):
    """Elements and text of a page of which every element is closed in its turn."""

    VOID = ("meta", "link", "img")

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.title = ""  # the nearest heading
        self.sections = {}

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.title = data
        if "style" not in self.open:
            self.text += data
            self.sections[self.title] = self.sections.get(self.title, "") + data + " "

    def close(self):
        super().close()
        assert not self.open

    def images(self):
        return [attributes for tag, attributes in self.elements if tag == "img"]


def table_after(text, heading):
    """The rows of the first table below a heading, without header and rule."""
    lines = text.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows][2:]


def test_the_folder_is_made_and_holds_the_report_and_its_pictures(tmp_path):
    folder = tmp_path / "run" / "report"
    text = report(folder, picture_of=lambda i: torch.zeros(3, 9, 9, dtype=torch.uint8))
    assert {f.name for f in folder.iterdir()} == {
        *("report.md", "report.html", "confusion_matrix.png", "curves.png"),
        *("calibration.png", "mistakes.png"),
    }
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        with Image.open(folder / name) as picture:
            picture.verify()
    assert text.count("![") == 4


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
    text = report(tmp_path, classes=["a", "b"], probabilities=probabilities, labels=labels, ids=ids)
    assert "16 of 40 wrong" in text
    assert [row[0] for row in table_after(text, "Worst mistakes")] == ids[:16]


def test_a_model_without_mistakes_is_said_to_have_none(tmp_path):
    text = report(tmp_path, **FAULTLESS)
    assert "every image is predicted right" in text


def test_of_a_model_without_mistakes_the_least_certain_images_are_shown(tmp_path):
    rows = table_after(report(tmp_path, **FAULTLESS), "Worst mistakes")
    assert [row[:3] for row in rows] == [["y", "b", "b"], ["x", "a", "a"]]
    section = page_of(tmp_path, **FAULTLESS).sections["Worst mistakes"]
    assert "every image is predicted right" in section
    assert section.index("60.0%") < section.index("90.0%")


def test_the_curves_table_has_a_row_an_epoch_and_numbers_only(tmp_path):
    rows = table_after(report(tmp_path), "Curves")
    assert rows[1] == ["2", "0.5000", "1.0000", "0.7500", "0.1000"]
    assert len(rows) == 3


def test_values_that_are_missing_or_no_numbers_leave_gaps(tmp_path):
    history = [{**HISTORY[0], "val/accuracy": float("nan")}, {"epoch": 2, "val/accuracy": 0.5}]
    rows = table_after(report(tmp_path, history=history), "Curves")
    assert rows[1] == ["2", "", "", "", "0.5000"]


def test_an_epochs_means_of_training_are_shown_once_under_their_short_name(tmp_path):
    history = [{"epoch": 1, "train/loss_epoch": 2.0, "train/accuracy_epoch": 0.5, "val/loss": 1.0}]
    text = report(tmp_path, history=history)
    assert "| epoch | train/loss | train/accuracy | val/loss |" in text
    charts = [a["aria-label"] for t, a in page_of(tmp_path, history=history).elements if t == "svg"]
    assert "train/loss from 2.0000" in charts[0] and "train/accuracy from 0.5000" in charts[1]


def test_odd_names_cannot_break_a_table_or_become_markup(tmp_path):
    classes = ["a|b", "<b>x</b>\n# heading", "一百元"]
    ids = [f"{name}/`[link](http://x)`\\|.jpg" for name in "abcde"]
    text = report(tmp_path, classes=classes, ids=ids)
    assert {len(row) for row in table_after(text, "Classes")} == {5}
    assert {len(row) for row in table_after(text, "Worst mistakes")} == {5}
    assert "\n# heading" not in text and "一百元" in text
    assert not re.search(r"(?<!\\)<b>", text) and not re.search(r"(?<!\\)\[link", text)


def test_the_config_is_shown_as_it_is_even_with_code_fences_in_it(tmp_path):
    text = report(tmp_path, config_text="name: x\n\n# ```\n## Worst\nseed: 0\n")
    assert text.endswith("## Config\n\n    name: x\n\n    # ```\n    ## Worst\n    seed: 0\n")


def test_the_same_run_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        report(tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


# What was measured


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 2**32), st.booleans())
def test_the_bins_add_up_to_the_calibration_error_of_the_metric(images, classes, seed, edges):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(images, classes, generator=generator).softmax(dim=1)
    if edges:  # confidences on the borders of the intervals, and both ends
        probabilities = torch.randint(0, 16, (images, classes), generator=generator) / 15
    labels = torch.randint(0, classes, (images,), generator=generator)
    bins = calibration_bins(Answers(probabilities, labels))
    assert len(bins) == 15 and sum(count for count, _, _ in bins) == images
    error = sum(count * abs(accuracy - sure) for count, sure, accuracy in bins) / images
    assert error == pytest.approx(calibration_error(probabilities, labels), abs=1e-12)


def test_both_reports_name_the_calibration_error(tmp_path):
    shown = f"{calibration_error(PROBABILITIES, LABELS):.4f}"
    assert f"Expected calibration error: {shown}" in report(tmp_path)
    assert f"Expected calibration error {shown}" in page_of(tmp_path).sections["Calibration"]


@pytest.mark.parametrize(
    "right, images, low, high",
    [  # Newcombe, 1998, "Two-sided confidence intervals for the single proportion", table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_of_an_accuracy_is_the_published_one(right, images, low, high):
    assert wilson(right, images) == pytest.approx((low, high), abs=5e-5)
    assert wilson(images - right, images) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_an_interval_holds_the_accuracy_and_lies_between_0_and_1(images, share):
    right = round(share * images)
    low, high = wilson(right, images)
    assert 0 <= low <= right / images + 1e-12 and right / images - 1e-12 <= high <= 1


def test_the_accuracy_of_a_small_test_split_is_told_with_its_interval(tmp_path):
    few = "11 images: between 0.74 and 1 with 95 % confidence"
    result = RESULT | {"test": {"accuracy": 1.0, "loss": 0.1}}
    for images, told in ((11, True), (999, True), (1000, False)):
        split = FAULTLESS | {
            "probabilities": torch.tensor([[0.9, 0.1]]).repeat(images, 1),
            "labels": torch.zeros(images, dtype=torch.int64),
            "ids": [str(i) for i in range(images)],
            "result": result,
        }
        for text in (report(tmp_path, **split), page_of(tmp_path, **split).sections["Test split"]):
            assert ("95 % confidence" in text) == told
            assert (few in text) == (images == 11)
    assert "95 %" not in report(tmp_path, result=RESULT | {"test": {"loss": 0.1}})


def test_both_reports_tell_what_the_time_went_to_and_its_shares(tmp_path):
    result = RESULT | {"seconds": {"data": 1.0, "compute": 6.0, "eval": 2.0, "save": 1.0}}
    rows = table_after(report(tmp_path, result=result), "What the time went to")
    assert [(row[0], *row[2:]) for row in rows] == [
        *(("data", "1.00", "10.0%"), ("compute", "6.00", "60.0%")),
        *(("eval", "2.00", "20.0%"), ("save", "1.00", "10.0%")),
    ]
    section = page_of(tmp_path, result=result).sections["What the time went to"]
    assert all(cell in section for row in rows for cell in row)


@pytest.mark.parametrize("seconds", [None, {}, {"data": 0.0}, {"data": None, "odd": "x"}])
def test_without_measured_times_the_report_is_written_all_the_same(tmp_path, seconds):
    assert "compute" not in page_of(tmp_path, result=RESULT | {"seconds": seconds}).text


def test_the_class_balance_is_counted_by_part(tmp_path):
    balance = {"train": [8, 16, 16], "val": [1, 0, 2], "test": [1, 2, 2]}
    text = report(tmp_path, class_balance=balance)
    assert table_after(text, "Class balance") == [
        *(["1", "8", "1", "1"], ["5", "16", "0", "2"], ["100", "16", "2", "2"])
    ]


def test_the_notes_on_the_data_are_repeated_with_their_examples(tmp_path):
    notes = ["left out 2: 2 .heic (a, b)", "2 groups of equal images\n  a = b\n  c = d"]
    result = RESULT | {"dataset": {"note": notes[0], "notes": notes}}
    for text in (report(tmp_path, result=result), page_of(tmp_path, result=result).text):
        assert text.count("left out 2: 2 .heic (a, b)") == 1
        assert "2 groups of equal images; a = b; c = d" in text


def test_what_was_skipped_and_left_out_is_told(tmp_path):
    left_out = [{"path": f"1/{i}.jpg", "reason": "truncated"} for i in range(130)]
    dataset = {"note": "drawn, no photographs", "left_out": left_out}
    dataset["notes"] = ["drawn, no photographs", "2 of 9 images are CMYK"]
    result = RESULT | {"dataset": dataset, "skipped_steps": 3}
    for text in (report(tmp_path, result=result), page_of(tmp_path, result=result).text):
        assert "drawn, no photographs" in text and "3 steps" in text
        assert "2 of 9 images are CMYK" in text
        assert "130 images could not be read" in text and "1/99.jpg: truncated" in text
        assert "and 30 more" in text


def test_the_run_is_named_with_its_date_device_and_code(tmp_path):
    run = tmp_path / "lenet" / "20260131-120059-ab12"
    run.mkdir(parents=True)
    environment = {"git_commit": "0123456789abcdef", "git_changed_files": [" M a.py"]}
    (run / "environment.json").write_text(
        json.dumps(environment | {"device": "cpu (2 threads)", "packages": {"torch": "2.11.0"}})
    )
    result = RESULT | {"name": "lenet", "epochs": 5, "early_stopped": True}
    for text in (
        report(run / "report", result=result),
        page_of(run / "report", result=result).text,
    ):
        assert "2026-01-31 12:00:59" in text and "cpu (2 threads), torch 2.11.0" in text
        assert "commit 0123456789ab, 1 file changed since" in text
        assert "3 of 5, stopped early" in text and "lenet" in text


def test_the_commands_to_go_on_name_the_run_and_can_be_pasted(tmp_path):
    run = tmp_path / "my runs" / "lenet" / "20260131-120059-ab12"
    text = report(run / "report", result=RESULT | {"epochs": 5})
    page = page_of(run / "report", result=RESULT | {"epochs": 5})
    quoted = f"'{run}'"
    for command in (
        f"python -m trainer.evaluate {quoted}",
        f"python -m trainer.predict {quoted} path/to/images",
        f"python -m trainer.explain {quoted} path/to/image.jpg",
        f"python -m trainer.export {quoted} --format onnx",
        f"python -m trainer.compare '{run.parent}'",
        f"python -m trainer.train --resume {quoted} train.epochs=10",
        f"tensorboard --logdir '{run.parent.parent}'",
    ):
        assert f"\n    {command}\n" in text and command in page.sections["To go on"]


# The page


def test_the_page_needs_no_script_and_asks_nothing_of_any_host(tmp_path):
    page = page_of(tmp_path, picture_of=lambda i: torch.zeros(1, 28, 28, dtype=torch.uint8))
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data"):
                assert value.startswith(("data:", "#"))
    style = (tmp_path / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    policy = [a["content"] for t, a in page.elements if a.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


@pytest.mark.parametrize("num_classes, told", [(3, False), (10, False), (11, True), (20, True)])
def test_a_matrix_too_wide_for_a_phone_says_that_it_moves(tmp_path, num_classes, told):
    names = [f"class {i}" for i in range(num_classes)]
    page = page_of(
        tmp_path,
        classes=names,
        probabilities=torch.eye(num_classes),
        labels=torch.arange(num_classes),
        ids=names,
    )
    assert ("sideways" in page.sections["Confusion matrix"]) == told


@pytest.mark.parametrize("width", [1200, 400])
def test_in_a_browser_neither_the_matrix_of_ten_classes_nor_the_config_is_cut(tmp_path, width):
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright to look")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs a browser: apt-get install chromium")
    report(
        tmp_path,
        classes=["T-shirt/top", "Trouser", "Ankle boot", *(f"class {i}" for i in range(7))],
        probabilities=torch.eye(10).repeat(1000, 1),
        labels=torch.arange(10).repeat(1000),
        ids=["x"] * 10_000,
        config_text=f"transforms: [{'{name: Normalize, mean: [0.5]}, ' * 9}]\n",
    )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((tmp_path / "report.html").as_uri())
        for part in ("#confusion-matrix .wide", "#config pre"):
            assert page.eval_on_selector(part, "part => part.scrollWidth <= part.clientWidth")
        browser.close()


def test_every_picture_and_chart_says_in_words_what_it_shows(tmp_path):
    page = page_of(tmp_path, picture_of=lambda i: torch.zeros(1, 28, 28, dtype=torch.uint8))
    assert [image["alt"] for image in page.images()] == [
        *("100/e.jpg: true 100, predicted 1", "5/b.jpg: true 5, predicted 1")
    ]
    charts = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert len(charts) == 4
    assert "val/loss from 2.0000 to 0.6667" in charts[0]


def test_a_points_number_is_told_where_it_lies(tmp_path):
    page = page_of(tmp_path)
    assert "epoch 2: val/accuracy 0.7500" in page.sections["Curves"]


def test_of_two_equal_curves_in_the_page_both_are_seen(tmp_path):
    """The second one is dashed and lies above the first."""
    history = [{"epoch": epoch, "train/loss": 1.0, "val/loss": 1.0} for epoch in (1, 2)]
    lines = [a for tag, a in page_of(tmp_path, history=history).elements if tag == "polyline"]
    assert [line["class"] for line in lines] == ["c0", "c1 dashed"]
    assert lines[0]["points"] == lines[1]["points"]
    assert "polyline.dashed { stroke-dasharray:" in (tmp_path / "report.html").read_text()


def test_names_cannot_become_markup_in_the_page(tmp_path):
    balance = {part: [0, 1, 2, 3, 4, 5] for part in ("train", "val", "test")}
    probabilities = torch.eye(6).roll(1, dims=0)

    def page(names, folder):
        return page_of(
            tmp_path / folder,
            classes=names,
            ids=[f"{name}/1.jpg" for name in names],
            probabilities=probabilities,
            labels=torch.arange(6),
            class_balance=balance,
            config_text="\n".join(names),
            result=RESULT
            | {"name": names[0], "dataset": {"note": names[1], "images": {"train": 1}}}
            | {"dataset": {"left_out": [{"path": names[2], "reason": names[3]}]}},
            picture_of=lambda i: 1 / 0,
        )

    plain, hostile = page(list("abcdef"), "plain"), page(HOSTILE, "hostile")
    assert [tag for tag, _ in plain.elements] == [tag for tag, _ in hostile.elements]
    assert [list(a) for _, a in plain.elements] == [list(a) for _, a in hostile.elements]
    assert HOSTILE[0] in hostile.text and "一百元" in hostile.text
    assert not set(hostile.text) & set("\x00\x1b\u202e\udcff")
    (tmp_path / "hostile" / "report.html").read_bytes().decode()


def test_a_picture_that_cannot_be_had_is_said_so_and_the_others_are_shown(tmp_path):
    def picture_of(i):
        if i == 4:
            raise OSError("e.jpg is <gone>")
        return torch.full((3, 400, 800), 7, dtype=torch.uint8)

    page = page_of(tmp_path, picture_of=picture_of)
    assert "e.jpg is <gone>" in page.sections["Worst mistakes"]
    (image,) = page.images()
    assert image["alt"].startswith("5/b.jpg") and image["src"].startswith("data:image/jpeg;")
    assert (image["width"], image["height"]) == ("320", "160")
    assert (tmp_path / "mistakes.png").is_file()


def test_pictures_of_an_older_report_do_not_stay(tmp_path):
    report(tmp_path, picture_of=lambda i: torch.zeros(1, 9, 9, dtype=torch.uint8))
    assert "mistakes.png" not in report(tmp_path)
    assert not (tmp_path / "mistakes.png").exists()


def test_of_very_many_classes_the_worst_stand_first_and_the_page_stays_small(tmp_path):
    count = 1000
    labels = torch.arange(count).repeat_interleave(3)
    probabilities = torch.eye(count)[labels]
    wrong = labels == 500  # all three images of one class, taken for another
    probabilities[wrong] = torch.eye(count)[501]
    many = {
        "classes": [f"class {i}" for i in range(count)],
        "ids": [f"{i}.jpg" for i in range(len(labels))],
        "class_balance": {"train": [9] * count, "val": [1] * count, "test": [3] * count},
        "probabilities": probabilities,
        "labels": labels,
    }
    text, page = report(tmp_path, **many), page_of(tmp_path, **many)
    rows = table_after(text, "Classes")
    assert len(rows) == 20 and [row[0] for row in rows[:2]] == ["class 500", "class 501"]
    assert table_after(text, "Confusion matrix") == [["class 500", "class 501", "3", "1.0000"]]
    assert len(table_after(text, "All classes")) == count
    assert max(map(len, text.splitlines())) < 300
    section = page.sections["Classes"]
    assert section.index("class 500 ") < section.index("class 501 ") < section.index("class 7 ")
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


def test_probabilities_that_are_no_numbers_still_give_a_report(tmp_path):
    probabilities = PROBABILITIES.clone()
    probabilities[0] = torch.nan
    assert "Calibration" in page_of(tmp_path, probabilities=probabilities).sections


def test_a_confidence_on_a_bins_edge_belongs_to_the_bin_below():
    """Guo et al.'s intervals (a, b]; sixteenths are exact in floating point."""
    confidence = torch.tensor([9 / 16, 10 / 16, 10 / 16 + 1e-6, 1.0], dtype=torch.float64)
    probabilities = torch.stack([confidence, 1 - confidence], dim=1)
    bins = calibration_bins(Answers(probabilities, torch.tensor([0, 1, 0, 0])), bins=16)
    counts = {number: (images, right) for number, (images, _, right) in enumerate(bins) if images}
    assert counts == {8: (1, 1.0), 9: (1, 0.0), 10: (1, 1.0), 15: (1, 1.0)}


def test_the_picture_of_mistakes_shows_the_ends_of_paths_and_numbers_of_lost_names(
    tmp_path, monkeypatch
):
    captions = []

    def noted(pictures, lines, colours):
        captions.extend(lines)
        return Image.new("RGB", (9, 9))

    monkeypatch.setattr("trainer.insight.report.sheet", noted)
    ids = [f"folder of photographs/of a summer/{i}.jpg" for i in range(4)] + ["100/e.jpg"]
    names = ["1", "\ue000", "100"]  # no font has a letter for private use
    white = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    report(tmp_path, ids=ids, classes=names, picture_of=lambda i: white)
    assert [lines[2] for lines in captions] == ["100/e.jpg", "...f a summer/1.jpg"]
    assert [lines[0] for lines in captions] == ["100 -> 1", "#1 -> 1"]


def test_the_report_tells_each_fact_once_and_lets_the_result_be_seen_first(tmp_path):
    equal = "2 groups of equal images (4 in all) in different classes: one of the labels is wrong"
    notes = [f"note {i}" for i in range(20)]
    notes += [equal, "  a = b", "  c = d", "val has no image of 5"]
    told = list(notes)
    result = RESULT | {"dataset": {"notes": notes}, "split": "ab"}
    warnings = [
        "3 of 9 images cannot be read.",  # the report has a list of its own
        "2 groups of equal images are in different classes: one of the labels is wrong.",
        "val has no image of '5'.",
        "1 images are of nearly one colour.",
    ]
    (tmp_path / "data").mkdir()
    facts = {"split": "ab", "warnings": warnings}
    (tmp_path / "data" / "data.json").write_text(json.dumps(facts))
    text = report(tmp_path / "run" / "report", result=result, notes=["note 7"])
    listed = text.split("## Notes\n\n")[1].split("\n\n")[0].split("\n")
    assert len(listed) == 23 and text.index("## Test split") < text.index("## Notes")
    assert listed[20].replace("\\", "") == f"- {equal}; a = b; c = d"
    page = page_of(tmp_path / "run" / "report", result=result, notes=["note 7"])
    assert page.text.count("one of the labels is wrong") == 1 == page.text.count("note 7")
    assert list(page.sections).index("Test split") < list(page.sections).index("Notes")
    assert "20 more of 23 notes" in page.sections["Notes"]
    assert notes == told  # a reader of result.json sees what was written


@pytest.mark.parametrize("more", [0, 1])
def test_the_report_repeats_what_the_run_told_and_what_a_look_at_the_same_data_warned_of(
    tmp_path, more
):
    balance = {"train": [5, 6, 7], "val": [1, 1, 1], "test": [1, 2, 2]}
    (tmp_path / "data").mkdir()
    warning = "2 groups of equal images are in different splits: what is tested was trained on."
    facts = {"split": "other" if more else "same", "warnings": [warning]}  # equal counts
    (tmp_path / "data" / "data.json").write_text(json.dumps(facts))
    notes = ["Normalize is in train only", "Normalize is in train only"]
    result = RESULT | {"split": "same"}
    text = report(tmp_path / "run" / "report", result=result, class_balance=balance, notes=notes)
    page = (tmp_path / "run" / "report" / "report.html").read_text(encoding="utf-8")
    for content in (text, page):
        assert content.count("Normalize is in train only") == 1
        assert (warning in content) == (not more)


def test_a_note_that_a_run_prints_stands_in_its_report(finished, capsys):
    run = finished("train.cuda_graphs=true")
    (note,) = re.findall(r"^note    (train.cuda_graphs.*)$", capsys.readouterr().out, re.MULTILINE)
    text = (run / "report" / "report.md").read_text(encoding="utf-8")
    assert note in text.replace("\\", "")
