"""What `python -m trainer.runs list` tells of run folders, in whatever state they are."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.comparing.listing import inspect_run
from trainer.drawing.columns import hang, lay_out, width_of, wrap
from trainer.process.words import visible
from trainer.run.folder import lock_run
from trainer.runs import main

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "name: x\nseed: 0\ntrain:\n  device: auto\n  epochs: 7\n  monitor: {}\n"


def make_run(runs, name="x", stamp="20260131-120000-ab12", monitor="val/accuracy", **result):
    """A run's folder as the trainer leaves it, with three epochs in its log."""
    folder = runs / name / stamp
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(monitor))
    content = {
        "status": "done",
        "best": {"epoch": 2, "val/loss": 0.5, "val/accuracy": 0.75, "val/macro_f1": 0.7},
        "test": {"loss": 0.6, "accuracy": 0.625, "confusion_matrix": [[1]]},
        "train_seconds": 95.0,
        "epochs": 3,
    }
    (folder / "result.json").write_text(json.dumps(content | result))
    lines = [{"step": e, "epoch": e, "train/loss_epoch": 1.0, "val/loss": 0.9} for e in (1, 2, 3)]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 4, "epoch": 4}])
    (folder / "metrics.jsonl").write_text(text)
    (folder / "run.lock").touch()
    return folder


def unfinished(runs, status, **more):
    """The same while it is not done: no result yet, the best epoch told with its weights."""
    folder = make_run(runs, **more)
    (folder / "result.json").write_text(json.dumps({"status": status, "reason": "because"}))
    metrics = {"metrics": {"epoch": 1, "val/loss": 0.7, "val/accuracy": 0.5}}
    (folder / "model.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def listed(tmp_path, capsys):
    """The command's JSON for the runs below the test's folder."""

    def call(*more):
        assert main(["list", "--runs", str(tmp_path), "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_a_finished_run_is_a_line_with_its_values(tmp_path, capsys):
    make_run(tmp_path)
    assert main(["list", "--runs", str(tmp_path)]) == 0
    head, row, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "status", "epochs", "best", "val", "test", "time"]
    expected = ["x/20260131-120000-ab12", "done", "3/7", "0.7500", "0.6250", "1m35s"]
    assert row.split() == expected


def test_json_holds_what_the_table_does_and_more(tmp_path, listed):
    folder = make_run(tmp_path)
    (one,) = listed()
    assert one == {
        "name": "x",
        "run": "20260131-120000-ab12",
        "path": str(folder),
        "status": "done",
        "reason": "",
        "epochs": 3,
        "planned_epochs": 7,
        "monitor": "val/accuracy",
        "best": {"epoch": 2, "val/loss": 0.5, "val/accuracy": 0.75, "val/macro_f1": 0.7},
        "test": {"loss": 0.6, "accuracy": 0.625},
        "train_seconds": 95.0,
        "started": "2026-01-31 12:00:00",
    }


def test_a_run_that_says_running_is_so_only_while_it_is_held(tmp_path, listed):
    folder = unfinished(tmp_path, "running")
    with lock_run(folder):
        assert listed()[0]["status"] == "running"
        assert listed()[0]["epochs"] == 3  # the fourth has begun only
    (one,) = listed()
    assert one["status"] == "interrupted"
    assert one["best"]["val/accuracy"] == 0.5
    lock_run(folder).close()  # looking at it does not hold it


@pytest.mark.skipif(sys.platform == "win32", reason="locks are others there")
def test_two_lists_at_a_time_do_not_take_each_other_for_a_trainer(tmp_path, listed):
    import fcntl

    folder = unfinished(tmp_path, "running")
    with (folder / "run.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert listed()[0]["status"] == "interrupted"


def test_a_run_that_was_copied_under_another_name_is_one(tmp_path, listed):
    make_run(tmp_path, stamp="my best one")
    (one,) = listed()
    assert (one["run"], one["status"], one["started"]) == ("my best one", "done", None)


def test_looking_changes_nothing_and_makes_no_lock(tmp_path, listed):
    folder = unfinished(tmp_path, "running")
    (folder / "run.lock").unlink()
    before = snapshot(tmp_path)
    assert listed()[0]["status"] == "interrupted"
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_a_run_that_ended_early_says_why(tmp_path, listed, status):
    unfinished(tmp_path, status)
    (one,) = listed()
    assert (one["status"], one["reason"], one["epochs"]) == (status, "because", 3)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("result.json", None),
        ("result.json", b""),
        ("result.json", b'{"status": "do'),
        ("result.json", b"[1]"),
        ("result.json", b"[" * 100_000),
        ("result.json", b"\xff\x00"),
        ("result.json", b'{"status": ["done"]}'),
        ("config.yaml", None),
    ],
)
def test_a_damaged_run_is_listed_with_the_reason_and_the_others_too(
    tmp_path, listed, capsys, file, content
):
    folder = make_run(tmp_path)
    make_run(tmp_path, stamp="20260131-120001-ab12")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    damaged, whole = listed()
    assert damaged["status"] == "damaged" and file in damaged["reason"]
    assert whole["status"] == "done"
    assert main(["list", "--runs", str(tmp_path)]) == 0
    assert f"{folder.name}: damaged: {file}" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_or_a_link_in_a_files_place_is_neither_waited_for_nor_followed(tmp_path):
    folder = unfinished(tmp_path, "running")
    for name in ("run.lock", "metrics.jsonl", "model.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    found = inspect_run(folder)
    assert (found.status, found.epochs, found.best) == ("interrupted", None, {})
    (folder / "result.json").rename(tmp_path / "elsewhere")
    (folder / "result.json").symlink_to(tmp_path / "elsewhere")
    assert inspect_run(folder).status == "damaged"


def test_half_a_last_line_and_numbers_that_are_none_do_no_harm(tmp_path):
    best = {"epoch": 10**400, "val/loss": float("nan"), "val/accuracy": "high"}
    folder = make_run(tmp_path, best=best, epochs=None, test=[1])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "epoch": 5, "train/loss_epo')
    found = inspect_run(folder)
    assert found.epochs == 3
    assert set(found.best) == {"val/loss"} and found.test == {}


def test_json_stays_strict_where_a_value_is_no_number(tmp_path, listed):
    make_run(tmp_path, best={"val/accuracy": float("nan")})
    assert listed()[0]["best"] == {"val/accuracy": None}


def test_the_newest_comes_last_whatever_its_name(tmp_path, listed):
    for name, stamp in (("a", "20260103-000000-0000"), ("b", "20260101-000000-0000")):
        make_run(tmp_path, name, stamp)
    assert [one["name"] for one in listed()] == ["b", "a"]
    assert [one["name"] for one in listed("--sort", "name")] == ["a", "b"]


def test_sorted_by_a_value_the_best_comes_last_and_runs_without_it_first(tmp_path, listed):
    for i, accuracy in enumerate((0.5, 0.9, float("nan"), 0.7)):
        make_run(tmp_path, stamp=f"2026010{i}-000000-0000", test={"accuracy": accuracy})
    shown = [one["test"]["accuracy"] for one in listed("--sort", "test")]
    assert shown == [None, 0.5, 0.7, 0.9]


@pytest.mark.parametrize("key", ["accuracy", "test/accuracy", "best"])
def test_a_key_that_is_none_to_sort_by_is_answered_with_those_that_are(key, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["list", "--sort", key])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and repr(key) in told
    assert "started, name, status, epochs, val, test or time" in told
    assert "val and test are the metric that the run's train.monitor names" in told


def test_of_losses_the_lowest_is_the_best(tmp_path, listed):
    for i, loss in enumerate((0.1, 0.9, 0.5)):
        stamp = f"2026010{i}-000000-0000"
        make_run(tmp_path, stamp=stamp, monitor="val/loss", best={"val/loss": loss})
    assert [one["best"]["val/loss"] for one in listed("--sort", "val")] == [0.9, 0.5, 0.1]


def test_a_name_a_folder_or_a_run_can_be_named(tmp_path, listed):
    first = make_run(tmp_path, "a")
    make_run(tmp_path, "b")
    make_run(tmp_path, "deep/c")
    assert [one["name"] for one in listed("b")] == ["b"]
    assert [one["name"] for one in listed(str(tmp_path / "deep"), str(first))] == ["a", "c"]
    assert [one["name"] for one in listed("a", str(first))] == ["a"]
    assert len(listed()) == 3


def test_no_run_is_no_error_and_tells_how_to_start_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["list"]) == 0
    assert "python -m trainer.train --config" in capsys.readouterr().err
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_name_that_is_not_there_is_a_usage_error(tmp_path, capsys):
    for arguments in (["nothing"], ["--runs", str(tmp_path / "no")]):
        assert main(["list", "--runs", str(tmp_path), *arguments]) == 2
        assert "does not exist" in capsys.readouterr().err


def test_without_a_command_the_help_names_it(capsys):
    assert main([]) == 0
    assert "list" in capsys.readouterr().out


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_list_cuts_no_word_and_names_the_columns_that_it_leaves_out(
    tmp_path, listed, capsys, monkeypatch, width
):
    names = ["lenet_rmb", "n" * 60, "\u6570\u636e\u589e\u5f3a\u5b9e\u9a8c"]
    for name in names:
        make_run(tmp_path, name)

    def at(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["list", "--runs", str(tmp_path)]) == 0
        return capsys.readouterr().out.splitlines()

    whole, narrow = at(200), at(width)
    table = narrow[: narrow.index("")]
    assert max(map(width_of, table)) <= width
    begin = next((i for i, line in enumerate(table) if line.startswith("left out at")), len(table))
    told = " ".join(table[begin:])
    assert told in ("", f"left out at {width} columns: {told.partition(': ')[2]}")
    out = told.partition(": ")[2].partition(";")[0].split(", ") if told else []
    heads = whole[0].replace("best val", "best_val").split()[1:]
    shown = dict(zip(heads, ["done", "3/7", "0.7500", "0.6250", "1m35s"], strict=True))
    for column in out:
        del shown[column.replace(" ", "_")]
    words = [word for line in table[1:begin] for word in line.split()]
    for value in shown.values():
        assert words.count(value) == len(names)
    # Only a path that is longer than a line goes on in the next one.
    assert all(f"{name}/20260131-120000-ab12" in "".join(words) for name in names)
    assert "lenet_rmb/20260131-120000-ab12" in words
    assert (width < 80) == bool(told)
    assert {one["name"] for one in listed()} == set(names)


def test_names_of_folders_cannot_speak_to_the_terminal(tmp_path, capsys):
    make_run(tmp_path, "a\x1b[31m\nb")
    folder = make_run(tmp_path, "\udcff")
    (folder / "result.json").write_text('{"status": "failed", "reason": "\\u001b]0;x\\u0007"}')
    assert main(["list", "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out
    assert "a\\x1b[31m\\nb/" in out


def test_it_is_quick_and_loads_neither_torch_nor_pydantic_nor_yaml(tmp_path):
    for i in range(200):
        make_run(tmp_path, stamp=f"20260101-{i:06d}-0000")
    code = (
        "import sys; from trainer.runs import main\n"
        f"assert main(['list', '--runs', {str(tmp_path)!r}]) == 0\n"
        "assert not {'torch', 'pydantic', 'yaml', 'tqdm', 'numpy', 'PIL'} & set(sys.modules)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 204
    assert time.monotonic() - began < 5  # 0.15 s on an idle machine


def test_a_real_run_is_read_as_its_files_tell(finished):
    run = finished()
    found = inspect_run(run)
    result = json.loads((run / "result.json").read_text())
    assert (found.status, found.epochs, found.planned) == ("done", 2, 2)
    assert found.monitor == "val/accuracy"
    assert found.best["val/accuracy"] == result["best"]["val/accuracy"]
    assert found.test == {k: v for k, v in result["test"].items() if isinstance(v, float)}


def test_wide_letters_count_twice_and_lines_keep_to_their_width():
    assert width_of("\u5341\u5143ab") == 6
    rows = [["", "A", "B"], ["key.of.many.parts", "\u5143" * 30, "one, two, three, four, five"]]
    for width in (40, 60, 100):
        assert max(map(width_of, lay_out(rows, width))) <= width
    assert "".join(wrap("\u5143" * 9, 4)) == "\u5143" * 9
    assert width_of("e\u0301 \U0001f600\ufe0f") == 4  # letters that take no room of their own
    assert visible("a\u202eb\tc") == "a\\u202eb\\tc"


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_a_table_cuts_no_number_and_no_word(width):
    rows = [
        ["trial", "optimizer", "optimizer.lr", "val/accuracy mean \u00b1 std", "min..max", "time"],
        ["t000", "SGD(momentum=0.9)", "0.001234", "0.9375 \u00b1 0.0312", "0.9062..0.9688", "9s"],
        ["t001", "AdamW(betas=[0.9, 0.999])", "1e-05", "0.9 \u00b1 0.03", "0.5..1", "1,234m"],
    ]
    lines = lay_out(rows, width)
    assert max(map(width_of, lines)) <= width
    told = {word for line in lines for word in line.split()}
    assert told == {word for row in rows for cell in row for word in cell.split()}


@pytest.mark.parametrize("width", [40, 60])
def test_a_long_line_goes_on_below_its_beginning_and_cuts_no_number(width):
    line = "training    mean 0.5354, 0.4982, 0.4799, std 0.1891, 0.1947, 0.1931 after Resize"
    first, *more = lines = hang(line, 12, width)
    assert max(map(len, lines)) <= width and first.startswith("training    mean")
    assert more and all(part[:12].isspace() and part[12] != " " for part in more)
    assert " ".join(lines).split() == line.split()


@pytest.mark.parametrize("epochs", ["NaN", "Infinity", "1e999", "true", '"x"', "[]"])
def test_epochs_that_are_no_number_are_told_as_unknown(tmp_path, listed, epochs):
    make_run(tmp_path, "sound")
    run = make_run(tmp_path, "odd")
    text = json.dumps(json.loads((run / "result.json").read_text()) | {"epochs": "HERE"})
    (run / "result.json").write_text(text.replace('"HERE"', epochs))
    (run / "metrics.jsonl").write_text(f'{{"step": 1, "epoch": {epochs}}}\n')
    assert {one["name"] for one in listed()} == {"sound", "odd"}


def test_a_full_disk_below_the_list_is_told(tmp_path, monkeypatch, capsys):
    make_run(tmp_path, "sound")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main(["list", "--runs", str(tmp_path), "--json"]) == 5
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert "No space left" in capsys.readouterr().err
