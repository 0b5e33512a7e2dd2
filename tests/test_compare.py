"""What `python -m trainer.compare` says of several runs, in whatever state they are."""

import json
import os
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer.compare import main
from trainer.comparing import side_by_side
from trainer.comparing.compared import flat_config, read_curves, read_run, read_runs
from trainer.comparing.comparison import best_of, differing, merge_orders, shown_metrics
from trainer.comparing.side_by_side import draw_comparison, short_names, text_of
from trainer.config.document import write
from trainer.drawing.columns import width_of

SETTINGS = {
    "name": "x",
    "seed": 0,
    "dataset": {"name": "RMB", "root": "data"},
    "split": {"ratios": [8, 1, 1], "seed": 0},
    "transforms": {"train": [{"name": "Resize", "size": [32, 32]}, {"name": "Flip"}], "eval": []},
    "model": {"name": "LeNet"},
    "optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.9},
    "scheduler": None,
    "train": {"epochs": 3, "device": "auto", "monitor": "val/accuracy"},
    "log": {"images": 16},
}
TESTED = [f"{i:064x}" for i in range(10)]


@pytest.fixture
def make(tmp_path):
    """Make a finished run's folder; ``with_`` replaces sections of its settings."""
    count = iter(range(100))

    def run(with_=None, losses=(0.9, 0.5, 0.6), commit="c" * 40, torch="2.15.0", **result):
        folder = tmp_path / "runs" / "x" / f"20260131-12{next(count):04d}-ab12"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(write(SETTINGS | (with_ or {})))
        (folder / "split.json").write_text(json.dumps({"test": {h: h for h in TESTED}}))
        content = {
            "status": "done",
            "device": "cpu (2 threads)",
            "dataset": {"name": "RMB", "note": ""},
            "split": "a" * 64,
            "best": {"epoch": 2, "val/loss": 0.5, "val/accuracy": 0.75},
            "test": {"loss": 0.6, "accuracy": 0.625, "confusion_matrix": [[1]]},
            "images_per_second": 1000.0,
            "train_seconds": 12.0,
            "epochs": 3,
        }
        (folder / "result.json").write_text(json.dumps(content | result))
        lines = [
            {"step": e, "epoch": e, "train/loss_epoch": 2 * v, "val/loss": v, "val/accuracy": 1 - v}
            for e, v in enumerate(losses, 1)
        ]
        log = "".join(json.dumps(line) + "\n" for line in [{"step": 0, "epoch": 1}, *lines])
        (folder / "metrics.jsonl").write_text(log)
        environment = {"git_commit": commit, "packages": {"torch": torch}}
        (folder / "environment.json").write_text(json.dumps(environment))
        (folder / "uncommitted.patch").touch()
        return folder

    return run


@pytest.fixture
def compared(capsys):
    """The command's JSON for some runs."""

    def call(*folders, more=("--no-picture",)):
        assert main([*map(str, folders), *more, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def sgd(**arguments):
    return {"optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.9} | arguments}


def test_only_the_keys_that_differ_are_shown(make, compared):
    said = compared(make(), make(sgd(lr=0.1)), make())
    assert said["config"] == {"optimizer.lr": {"A": 0.01, "B": 0.1, "C": 0.01}}


def test_a_key_that_a_run_lacks_is_not_one_that_is_null(make, compared, capsys):
    a, b = make(), make({"scheduler": {"name": "StepLR", "step_size": 5}})
    assert compared(a, b)["config"] == {
        "scheduler": {"A": None},
        "scheduler.name": {"B": "StepLR"},
        "scheduler.step_size": {"B": 5},
    }
    main([str(a), str(b), "--no-picture"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["scheduler.name", "-", "StepLR"] in rows and ["scheduler.step_size", "-", "5"] in rows
    assert "scheduler" not in {row[0] for row in rows if row}  # it would say the same once more


def test_of_another_component_every_argument_is_shown(make, compared):
    adam = {"optimizer": {"name": "AdamW", "lr": 0.01, "weight_decay": 0.1}}
    assert compared(make(), make(adam))["config"] == {
        "optimizer.name": {"A": "SGD", "B": "AdamW"},
        "optimizer.lr": {"A": 0.01, "B": 0.01},
        "optimizer.momentum": {"A": 0.9},
        "optimizer.weight_decay": {"B": 0.1},
    }


def test_a_transform_more_leaves_the_others_arguments_in_their_place(make, compared):
    listed = [{"name": "Crop", "size": 8}, {"name": "Resize", "size": [32, 32]}, {"name": "Flip"}]
    said = compared(make(), make({"transforms": {"train": listed, "eval": []}}))
    assert said["config"] == {
        "transforms.train": {"A": ["Resize", "Flip"], "B": ["Crop", "Resize", "Flip"]},
        "transforms.train.Crop.size": {"B": 8},
    }


def test_two_components_of_a_name_are_told_apart():
    pads = [{"name": "Pad", "by": 1}, {"name": "Pad", "by": 2}]
    assert flat_config({"t": pads}) == {"t": ["Pad", "Pad"], "t.Pad#1.by": 1, "t.Pad#2.by": 2}


@given(st.lists(st.lists(st.sampled_from("abcdef"), unique=True), min_size=1))
def test_keys_in_order_are_all_there_and_each_once(lists):
    merged = merge_orders(lists)
    assert sorted(merged) == sorted({word for words in lists for word in words})
    assert merged[: len(lists[0])] == lists[0] or set(merged) > set(lists[0])


def test_the_best_is_marked_by_what_the_metric_means():
    assert best_of("test/accuracy", [0.5, 0.9, None]) == {1}
    assert best_of("best val/loss", [0.5, 0.9, float("nan")]) == {0}
    assert best_of("test/calibration_error", [0.5, 0.1]) == {1}
    assert best_of("images/s", [10.0, 20.0]) == {1}
    assert best_of("training time", [10.0, 20.0]) == {0}
    assert best_of("epochs", [10, 20]) == set()


def test_what_looks_the_same_is_marked_together_and_not_at_all_where_all_do():
    assert best_of("test/accuracy", [0.9, 0.90000001, 0.5]) == {0, 1}
    assert best_of("test/accuracy", [0.9, 0.90000001, None]) == set()
    assert best_of("test/accuracy", [0.9]) == set()


def test_a_row_with_a_tiny_loss_is_in_powers_of_ten_and_nothing_else_seems_to_be_0():
    losses = [1.385e-05, 0.005, 0.0, None, float("nan")]
    assert shown_metrics("best val/loss", losses) == ["1.4e-05", "5.0e-03", "0", "-", "nan"]
    assert shown_metrics("test/loss", [3.2e-4, 1.25]) == ["3.2e-04", "1.2e+00"]
    assert shown_metrics("test/loss", [0.0, 0.005]) == ["0", "0.0050"]
    assert best_of("test/loss", losses) == {2}


def test_digits_of_an_accuracy_are_kept_beside_one_that_is_next_to_nothing():
    accuracies = [2e-4, 0.9123, 0.9187]
    assert shown_metrics("test/accuracy", accuracies) == ["2.0e-04", "0.9123", "0.9187"]
    assert best_of("test/accuracy", accuracies) == {2}


def test_results_stand_side_by_side_with_the_best_marked(make, capsys):
    a, b = make(), make(test={"accuracy": 0.75, "loss": 0.7}, train_seconds=95.0)
    assert main([str(a), str(b), "--no-picture"]) == 0
    rows = {line[:18].strip(): line[18:].split() for line in capsys.readouterr().out.splitlines()}
    assert rows["best val/accuracy"] == ["0.7500", "0.7500"]
    assert rows["test/accuracy"] == ["0.6250", "0.7500*"]
    assert rows["test/loss"] == ["0.6000*", "0.7000"]
    assert rows["training time"] == ["12s*", "1m35s"]
    assert rows["epochs"] == ["3", "3"]


def test_equal_runs_have_no_difference_and_no_warning(make, compared, capsys):
    a, b = make(), make()
    said = compared(a, b)
    assert (said["config"], said["warnings"]) == ({}, [])
    assert main([str(a), str(b), "--no-picture"]) == 0
    assert "the configurations are equal" in capsys.readouterr().out


def test_where_splits_differ_the_test_images_in_common_are_counted(make, compared):
    a, b = make(), make(split="b" * 64)
    other = {f"renamed{i}": h for i, h in enumerate([*TESTED[:3], "f" * 64])}
    (b / "split.json").write_text(json.dumps({"test": other}))
    first, second = compared(a, b)["warnings"]
    assert first == "splits differ: A: aaaaaaaaaa; B: bbbbbbbbbb"
    assert second.startswith("A and B share 3 of their 10 and 4 test images: ")


def test_splits_are_compared_within_a_dataset_only(make, compared):
    other = {"name": "CIFAR10", "note": ""}
    runs = [make(), make(dataset=other, split="b" * 64), make(dataset=other, split="d" * 64)]
    assert [warning.split(":")[0] for warning in compared(*runs)["warnings"]] == [
        "datasets differ",
        "splits differ",
    ]


def test_the_same_test_images_are_information_and_equal_files_count_each(make, compared, capsys):
    a, b = make(), make(split="b" * 64)
    for name, folder in (("x", a), ("y", b)):
        images = {f"{name}{i}": h for i, h in enumerate([*TESTED, TESTED[0]])}
        (folder / "split.json").write_text(json.dumps({"test": images}))
    said = compared(a, b)
    assert said["notes"] == ["A and B were tested on the same 11 images"]
    assert said["warnings"] == ["splits differ: A: aaaaaaaaaa; B: bbbbbbbbbb"]
    assert main([str(a), str(b), "--no-picture"]) == 0
    assert "note: A and B were tested on the same 11 images" in capsys.readouterr().out


def loss(name="CrossEntropyLoss", **arguments):
    return {"loss": {"name": name} | arguments}


OTHERS = {"test": {"accuracy": 0.75, "loss": 0.3}, "best": {"val/loss": 0.3, "val/accuracy": 0.8}}
MARKED = {"best val/accuracy", "best val/loss", "test/accuracy", "test/loss"}


def marked(said):
    return {row for row in MARKED if said["best"][row] == ["B"]}


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            {"label_smoothing": 0.2},
            "A: CrossEntropyLoss; B: CrossEntropyLoss, label_smoothing",
        ),
        ({"name": "FocalLoss", "gamma": 2.0}, "A: CrossEntropyLoss; B: FocalLoss:"),
    ],
)
def test_different_losses_are_not_compared_and_their_metrics_are(
    make, compared, capsys, other, told
):
    given = {"label_smoothing": 0.0}  # the default: to write it is no other loss
    a, same = make(loss(**given)), make(loss(), **OTHERS)
    assert marked(compared(a, same)) == MARKED and not compared(a, same)["warnings"]
    b = make(loss(**other), **OTHERS)
    said = compared(a, b)
    assert marked(said) == {"best val/accuracy", "test/accuracy"}
    (warning,) = said["warnings"]
    assert warning.startswith(f"losses differ: {told}")
    assert warning.endswith(": their values of loss cannot be compared")
    main([str(a), str(b), "--no-picture"])
    text = capsys.readouterr().out
    assert "(* is the best of a row; none where the numbers cannot be compared)" in text
    assert "0.3000*" not in text and "0.8000*" in text


@pytest.mark.parametrize(
    ("cards", "told"),
    [
        (({}, {"thresholds": [0.5, 0.5]}), "A: one of a, b; B: several of a, b"),
        (({}, {"classes": ["a", "b", "c"]}), "A: one of a, b; B: one of a, b, c"),
        (({"classes": ["x" * 300]}, {"classes": ["x" * 301]}), "A: one of xxx"),
    ],
)
def test_metrics_of_other_questions_are_not_compared(make, compared, cards, told):
    runs = make(), make(**OTHERS)
    for run, card in zip(runs, cards, strict=True):
        (run / "model.json").write_text(json.dumps({"classes": ["a", "b"]} | card))
    said = compared(*runs)
    assert marked(said) == set()
    assert said["best"]["training time"] == [] and said["best"]["images/s"] == []
    (warning,) = said["warnings"]
    assert warning.startswith(f"classes differ: {told}") and "; B: " in warning
    assert len(warning) < 600


def test_metrics_of_labels_that_were_corrected_otherwise_are_not_compared(make, compared):
    said = compared(make(fixes="c" * 64), make(**OTHERS))
    assert marked(said) == set()
    assert said["warnings"] == [
        "fixes of labels differ: A: cccccccccc; B: none: their numbers cannot be compared"
    ]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"val": TESTED[:4], "test": TESTED}, MARKED),
        ({"val": TESTED[:3], "test": TESTED}, {"test/accuracy", "test/loss"}),
        ({"val": TESTED[:4], "test": TESTED[1:]}, {"best val/accuracy", "best val/loss"}),
        ({}, set()),
    ],
)
def test_metrics_of_other_images_are_not_compared(make, compared, parts, expected):
    a, b = make(), make(split="b" * 64, **OTHERS)
    for run, images in ((a, {"val": TESTED[:4], "test": TESTED}), (b, parts)):
        content = {part: {d: d for d in digests} for part, digests in images.items()}
        (run / "split.json").write_text(json.dumps(content))
    said = compared(a, b)
    assert marked(said) == expected
    other = "A and B have different val images: their val numbers cannot be compared"
    assert (other in said["warnings"]) == (parts.get("val") == TESTED[:3])


def test_metrics_of_other_data_sets_are_not_compared(make, compared):
    assert marked(compared(make(), make(dataset={"name": "CIFAR10"}, **OTHERS))) == set()


def test_a_folder_written_with_a_last_slash_is_the_same_one(make, compared):
    roots = ("/My photos", "/My photos/", "/My photos/2")
    runs = [make({"dataset": {"name": "RMB", "root": root}}) for root in roots]
    assert "dataset.root" not in compared(*runs[:2])["config"]
    assert "dataset.root" in compared(*runs)["config"]


def test_of_runs_with_no_folder_in_common_the_picture_is_in_the_working_directory(
    make, capsys, tmp_path, monkeypatch
):
    a, b = make(), make()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.path.commonpath", lambda paths: "/")
    assert main([str(a), str(b)]) == 0
    assert f"curves   {tmp_path / 'compare.png'}\n" in capsys.readouterr().out
    assert (tmp_path / "compare.png").is_file()


def test_a_split_that_cannot_be_read_is_told(make, compared):
    a, b = make(), make(split="b" * 64)
    (b / "split.json").write_text("{")
    assert "A and B: their split.json cannot be compared" in compared(a, b)["warnings"]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"dataset": {"name": "RMB", "note": "drawn"}}, "datasets differ: A: RMB; B: RMB (drawn)"),
        ({"commit": "d" * 40}, "code differs: A: cccccccccc; B: dddddddddd"),
        ({"commit": None}, "code differs: A: cccccccccc; B: unknown"),
        ({"torch": "2.11.0"}, "torch differs: A: 2.15.0; B: 2.11.0"),
        ({"device": "cuda (H)"}, "devices differ: A: cpu (2 threads); B: cuda (H)"),
        ({"status": "failed", "reason": "no\nmemory"}, "B is failed: no memory"),
        ({"status": "running"}, "B is interrupted"),
    ],
)
def test_what_keeps_runs_from_being_comparable_is_told(make, compared, other, expected):
    (warning,) = compared(make(), make(**other))["warnings"]
    assert warning.startswith(expected)


def test_other_uncommitted_changes_are_other_code(make, compared):
    a, b = make(), make()
    (b / "uncommitted.patch").write_text("+ a line")
    (warning,) = compared(a, b)["warnings"]
    assert warning.startswith("code differs: A: cccccccccc; B: cccccccccc + changes ")


def test_over_seeds_the_mean_and_the_samples_deviation_are_told(make, compared, capsys):
    accuracies = [0.5, 0.75, 0.875]
    runs = [make({"seed": i}, test={"accuracy": a}) for i, a in enumerate(accuracies)]
    over_seeds = compared(*runs)["over_seeds"]
    split_metrics = {"best val/accuracy", "best val/loss", "test/accuracy"}
    assert set(over_seeds) == split_metrics  # no epochs, no speeds
    spread = over_seeds["test/accuracy"]
    assert spread["mean"] == pytest.approx(sum(accuracies) / 3)
    assert spread["std"] == pytest.approx(statistics.stdev(accuracies))
    main([*map(str, runs), "--no-picture"])
    assert "test/accuracy      0.7083 +- 0.1909" in capsys.readouterr().out


@pytest.mark.parametrize(
    "other",
    [
        {"with_": {"seed": 1} | sgd(lr=0.1)},
        {"with_": {"seed": 1}, "status": "stopped"},
        {"with_": {"seed": 1}, "split": "b" * 64},
        {"with_": {"seed": 0}},
    ],
)
def test_no_mean_is_taken_where_more_than_the_seed_differs(make, compared, other):
    assert compared(make(), make(**other))["over_seeds"] == {}


def test_settings_that_move_no_weight_do_not_hinder_the_mean(make, compared):
    b = make({"seed": 1, "log": {"images": 0}, "dataset": {"name": "RMB", "root": "elsewhere"}})
    assert compared(make(), b)["over_seeds"]["best val/accuracy"] == {"mean": 0.75, "std": 0.0}


FILES = ("config.yaml", "result.json", "metrics.jsonl", "environment.json", "split.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "content", [None, b"", b'{"a": [', b"[" * 3000, b"\xff\xfe\x00", b"7\n7\n"]
)
def test_a_damaged_run_is_shown_with_what_is_there(make, capsys, file, content, tmp_path):
    a, b, c = make(split="b" * 64), make(sgd(lr=0.1)), make()
    if content is None:
        (b / file).unlink()
    else:
        (b / file).write_bytes(content)
    assert main([str(a), str(b), str(c), "--picture", str(tmp_path / "p.png")]) == 0
    out = capsys.readouterr().out
    assert "test/accuracy" in out
    half = file == "metrics.jsonl" and content is not None and not content.endswith(b"\n")
    if not half:  # which is what a line looks like that is being written
        assert file in out.split("warning: ", 1)[1]
    assert main([str(a), str(b), "--json", "--no-picture"]) == 0
    json.loads(capsys.readouterr().out)


def test_half_a_last_line_is_one_that_was_being_written(make):
    folder = make()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "epoch": 4, "train/loss_epoch": 1.0, "val/lo')
    curves, fault = read_curves(folder / "metrics.jsonl")
    assert curves["val/loss"] == [(1, 0.9), (2, 0.5), (3, 0.6)] and not fault


def test_a_damaged_line_in_between_is_counted_and_the_rest_is_drawn(make):
    folder = make()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[2] = lines[2][:30]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    curves, fault = read_curves(folder / "metrics.jsonl")
    assert [x for x, _ in curves["val/loss"]] == [1, 3]
    assert fault == "1 line of metrics.jsonl cannot be read"


def test_a_run_without_an_epoch_yet_is_compared_and_keeps_its_colour(make):
    empty, full = make(losses=(), best={}, test={}, status="stopped"), make()
    runs = read_runs([empty, full])
    assert runs[0].found.epochs == 0
    picture = draw_comparison(runs)
    assert picture is not None
    shades = {colour for _, colour in picture.getcolors(1 << 24) or ()}
    assert {(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)} <= shades  # both in the legend
    assert draw_comparison(read_runs([empty, make(losses=())])) is None


def test_the_picture_lies_where_all_runs_do_and_its_path_is_printed(make, capsys, tmp_path):
    folder = make().parent
    make()
    assert main([str(folder)]) == 0
    assert str(folder / "compare.png") in capsys.readouterr().out
    with Image.open(folder / "compare.png") as picture:
        assert picture.height == 3 * 320  # val/loss, val/accuracy, train/loss


def test_what_lies_beside_the_runs_is_passed_over_with_a_note(make, capsys):
    folder = make().parent
    make()
    assert main([str(folder)]) == 0  # leaves compare.png, which runs/NAME/* takes for a run
    assert capsys.readouterr().err == f"note    {folder} stands for its 2 runs\n"
    (folder / "data").mkdir()
    (folder / "data" / "report.md").touch()
    capsys.readouterr()
    assert main([*map(str, sorted(folder.iterdir())), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["runs"].keys() == {"A", "B"}
    (note,) = captured.err.splitlines()
    assert note.startswith("note    ") and "compare.png" in note and "data" in note


def test_where_the_usual_place_cannot_be_written_the_rest_is_told_all_the_same(make, capsys):
    folder = make().parent
    make()
    (folder / "compare.png").mkdir()
    assert main([str(folder)]) == 0
    captured = capsys.readouterr()
    assert "test/accuracy" in captured.out and "curves" not in captured.out
    assert "name a file with --picture" in captured.err
    assert sorted(path.name for path in folder.glob(".*")) == []


def test_a_named_picture_is_replaced(make, compared, tmp_path):
    path = tmp_path / "p.png"
    path.write_text("old")
    assert compared(make(), make(), more=("--picture", str(path)))["picture"] == str(path)
    with Image.open(path) as picture:
        picture.verify()
    assert not (tmp_path / "runs" / "x" / "compare.png").exists()


def test_values_that_no_curve_can_hold_are_left_out(make, tmp_path):
    folder = make(losses=(1e300, float("nan"), 5e-324, 0.5))
    assert draw_comparison(read_runs([folder, make()])) is not None
    assert read_run("A", folder).curves["val/loss"] == [(3, 0.0), (4, 0.5)]


@pytest.mark.parametrize("path", ["p.jpg", "missing/p.png", "."])
def test_a_picture_that_cannot_be_made_is_told_first(make, capsys, tmp_path, path):
    assert main([str(make()), str(make()), "--picture", str(tmp_path / path)]) == 2
    captured = capsys.readouterr()
    assert "--picture" in captured.err and not captured.out


def test_one_run_or_none_is_a_usage_error(make, capsys, tmp_path):
    second, folder = make().rename(tmp_path / "second"), make()
    (tmp_path / "empty").mkdir()
    for arguments, expected in (
        ([folder, folder], "needs two or more runs"),
        ([folder.parent], "needs two or more runs"),
        ([folder, tmp_path / "empty"], "holds no run"),
        ([folder, tmp_path / "no"], "does not exist"),
        ([folder, folder, tmp_path / "empty"], "holds no run"),
        ([folder / "result.json"], "is a file, not a run's folder"),
        ([folder, folder / "result.json"], "is a file, not a run's folder"),
        ([folder, second, tmp_path / "no"], "does not exist"),  # a slip, nothing to pass over
    ):
        assert main(list(map(str, arguments))) == 2
        assert expected in capsys.readouterr().err
    assert not list(tmp_path.rglob("compare.png"))


@pytest.mark.parametrize("count", [2, 4, 12, 30])
@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_keep_to_the_terminal_and_name_every_run(make, count, width):
    transforms = [{"name": "RandomResizedCropWithALongName", "interpolation": "bilinear"}] * 5
    runs = read_runs(
        [make()]
        + [make({"seed": i, "name": "x" * 30} | sgd(lr=i)) for i in range(count - 2)]
        + [make({"transforms": {"train": transforms, "eval": []}})]
    )
    lines = text_of(runs, width)
    tables = lines[lines.index("") :]
    tables = [line for line in tables if not line.startswith("warning")]
    assert max(map(width_of, tables)) <= width
    words = {word for line in tables for word in line.split()}
    assert {run.label for run in runs} <= words


def test_many_runs_are_told_by_what_most_have_and_who_has_not(make):
    other = {
        "model": {"name": "VGG", "depth": 11, "batch_norm": True},
        "seed": 5,
        "scheduler": {"name": "StepLR", "step_size": 5},
    }
    runs = read_runs([make() for _ in range(11)] + [make(other | sgd(lr=0.5, momentum=0.5))])
    lines = text_of(runs, 80)
    assert "B     as most" in lines
    (last,) = [i for i, line in enumerate(lines) if line.startswith("L     ")]
    told = " ".join(line.strip() for line in lines[last : lines.index("", last)])
    expected = {"seed=5", "model.name=VGG", "model.depth=11", "optimizer.lr=0.5"}
    assert expected <= set(told.removeprefix("L     ").split("; "))


def test_a_legend_names_what_tells_the_runs_apart(make):
    runs = read_runs([make(), make(sgd(lr=0.1)), make(sgd(lr=0.5))])
    name = runs[0].found.name
    rates = {"A": "0.01", "B": "0.1", "C": "0.5"}
    assert short_names(runs) == {
        run.label: f"{run.label}: {name}/{run.found.stamp}, lr {rates[run.label]}" for run in runs
    }
    assert differing(runs) == ["optimizer.lr"]


def test_a_legend_names_runs_and_a_picture_of_many_says_what_has_no_room(make, monkeypatch):
    other = {"model": {"name": "VGG", "depth": 11}, "name": "vgg", "seed": 5}
    a, b = read_runs([make(), make(other | sgd(lr=0.5))])
    names = short_names([a, b])
    assert names["A"] == f"A: {a.found.name}/{a.found.stamp}" and "lr" not in names["B"]
    assert names["B"].startswith(f"B: {b.found.name}/")
    monkeypatch.setattr(side_by_side, "MAX_PANELS", 2)
    titles: list[str] = []
    monkeypatch.setattr(
        "trainer.drawing.charts.draw_lines", lambda panels, *_, **__: titles.extend(panels)
    )
    draw_comparison([a, b])
    assert titles == ["val/loss", "val/accuracy; no room for 1 more panels"]


def test_what_others_wrote_cannot_speak_to_the_terminal(make, capsys):
    evil = "\x1b]0;x\x07\u202e"
    a = make({"name": f"n{evil}"}, status="failed", reason=evil, device=evil, torch=evil)
    b = make(test={f"accuracy{evil}": 0.5})
    (b / "environment.json").write_text(json.dumps({"git_commit": evil, "packages": [evil]}))
    assert main([str(a), str(b), "--no-picture"]) == 0
    assert not {"\x1b", "\x07", "\u202e"} & set(capsys.readouterr().out)


def test_real_runs_are_compared(finished, compared, capsys):
    a, b = finished(), finished("seed=1", "optimizer.lr=0.001")
    capsys.readouterr()
    said = compared(a.parent, more=())
    assert said["config"].keys() == {"seed", "optimizer.lr"}
    (first,) = [run for run, seed in said["config"]["seed"].items() if seed == 0]
    assert said["config"]["optimizer.lr"][first] == 0.01  # both may have begun in one second
    assert sorted(said["config"]["optimizer.lr"].values()) == [0.001, 0.01]
    result = json.loads((b / "result.json").read_text())
    assert said["results"]["test/accuracy"]["B"] == result["test"]["accuracy"]
    assert said["warnings"] == []
    assert said["picture"] == str(a.parent / "compare.png")


def test_a_pipe_in_a_files_place_is_not_waited_for(make, capsys):
    a, b = make(), make()
    (b / "config.yaml").unlink()
    os.mkfifo(b / "config.yaml")
    assert main([str(a), str(b), "--no-picture"]) == 0
    assert "config.yaml" in capsys.readouterr().out
