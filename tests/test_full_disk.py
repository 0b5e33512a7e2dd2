"""A disk that is full, or takes no file: said in words, exit code 5, and nothing half-written."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import trainer.schema
from datasets import temporary
from tests.test_checkpoint import FaultyOs
from trainer import compare, data, evaluate, explain, export, predict, schema
from trainer.build.compile import no_room
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.config.components import SCHEMA_FILE
from trainer.input.file_index import FileIndex
from trainer.process.errors import RunError
from trainer.run import disk

COMMANDS = {
    "explain": lambda run, notes, config, out: explain.main(
        [str(run), str(notes / "1" / "003.jpg"), "--output", str(out / "new" / "folder")]
    ),
    "explain in the run": lambda run, notes, config, out: explain.main(
        [str(run), str(notes / "1" / "003.jpg")]
    ),
    "predict": lambda run, notes, config, out: predict.main(
        [str(run), str(notes / "1" / "003.jpg"), "--sheet", str(out / "sheet.png")]
    ),
    "export": lambda run, notes, config, out: export.main([str(run), "--format", "safetensors"]),
    "evaluate": lambda run, notes, config, out: evaluate.main(
        [str(run), str(notes), "--output", str(out / "new"), "loader.cache=ram"]
    ),
    "data": lambda run, notes, config, out: data.main(
        ["--config", str(config), "--output", str(out / "data"), "--no-near"]
    ),
    "compare": lambda run, notes, config, out: compare.main(
        [str(run), str(shutil.copytree(run, out / "b")), "--picture", str(out / "c.png")]
    ),
}


def tree(*folders: Path) -> list[str]:
    return sorted(str(path) for folder in folders for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        *(("explain", 1), ("explain", 5), ("explain in the run", 2), ("predict", 1)),
        *(("export", 1), ("export", 3), ("data", 1), ("data", 4), ("compare", 1)),
        *(("evaluate", 1), ("evaluate", 6)),
    ],
)
def test_a_command_that_cannot_write_says_so_and_leaves_nothing(
    finished, notes, config_file, tmp_path, monkeypatch, capsys, name, write
):
    if name == "export":
        pytest.importorskip("safetensors")
    run, out = finished(), tmp_path / "out"
    out.mkdir()
    # Images drawn a moment ago are indexed again, which may fail: that write is not the command's.
    monkeypatch.setattr(FileIndex, "remember", lambda *_: None)
    before = tree(run, out)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "os", FaultyOs("write", write))
        assert COMMANDS[name](run, notes, config_file, out) == 5
    told = capsys.readouterr().err
    assert told.endswith(": No space left on device\n") and "Traceback" not in told
    shutil.rmtree(out / "b", ignore_errors=True)  # compare's second run
    assert tree(run, out) == before


def test_what_was_there_before_stays_when_a_folder_cannot_be_filled(tmp_path):
    (tmp_path / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), disk.all_or_nothing():
        disk.make_output_folder(tmp_path / "new" / "deep")
        disk.write_file(tmp_path / "new" / "deep" / "file", "new")
        disk.write_file(tmp_path / ".unproven", "new")
        disk.rename(tmp_path / ".unproven", tmp_path / "renamed")
        disk.write_file(tmp_path / "old", "newer")
        raise KeyboardInterrupt
    assert tree(tmp_path) == [str(tmp_path / "old")]
    with disk.all_or_nothing():
        disk.make_output_folder(tmp_path / "kept")
    assert (tmp_path / "kept").is_dir()


def test_what_another_process_writes_meanwhile_stays_when_a_command_fails(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "ours" / "theirs"
    with pytest.raises(KeyboardInterrupt), disk.all_or_nothing():
        disk.make_output_folder(ours)
        disk.write_file(ours / "a", "ours")
        disk.write_file(ours / "b", "ours")
        theirs.mkdir()
        (theirs / "file").touch()
        (tmp_path / "beside").touch()
        (tmp_path / "other").write_text("theirs")
        os.replace(tmp_path / "other", ours / "b")
        raise KeyboardInterrupt
    assert tree(tmp_path) == sorted(
        map(str, [tmp_path / "beside", ours, ours / "b", theirs, theirs / "file"])
    )
    assert (ours / "b").read_text() == "theirs"


def test_a_report_that_cannot_be_written_leaves_no_half_of_one(start, tmp_path, monkeypatch):
    def full(path, content):
        if path.name == "calibration.png":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        disk.write_file(path, content)

    monkeypatch.setattr("trainer.insight.report.write_file", full)
    assert start("train.epochs=1", "log.show=[report]") == 5
    (run,) = (tmp_path / "runs" / "small").iterdir()
    assert not (run / "report").exists()
    assert "calibration.png" in json.loads((run / "result.json").read_text())["reason"]


@pytest.mark.parametrize("error", [errno.EROFS, errno.ENOSPC])
def test_a_checkout_that_takes_no_file_keeps_its_schema(tmp_path, monkeypatch, capsys, error):
    file = tmp_path / "configs" / "schema.json"
    file.parent.mkdir()
    file.write_text("{}")
    content = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    monkeypatch.setattr(trainer.schema, "SCHEMA_FILE", file)
    monkeypatch.setattr(trainer.schema, "generate", lambda: content)

    class Refusing(FaultyOs):
        def __getattr__(self, name):
            if name == "open":
                raise OSError(error, os.strerror(error), str(file))
            return getattr(os, name)

    monkeypatch.setattr(disk, "os", Refusing())
    assert schema.main([]) == 5
    assert capsys.readouterr().err == f"{file}: {os.strerror(error)}\n"
    assert file.read_text() == "{}" and tree(tmp_path) == [str(file.parent), str(file)]


def test_a_full_folder_of_the_compiler_is_told_with_how_to_name_another(config_file, monkeypatch):
    def full(*_, **__):
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/tmp/code.cpp")
        except OSError as cause:
            raise RuntimeError("the backend failed") from cause

    monkeypatch.setattr(torch, "compile", full)
    with pytest.raises(RunError, match=r"'/tmp/code\.cpp'\. Free some space.*TMPDIR=/elsewhere"):
        prepare(load_config(config_file, ["train.compile=true"]), print)
    assert no_room(RuntimeError("c++: fatal error\n  ld: No space left on device\nmore")) == (
        "ld: No space left on device"
    )
    assert no_room(RuntimeError("an operator is unknown")) == ""


def test_a_signal_that_ends_the_process_removes_new_files_of_an_unfinished_whole(tmp_path):
    old, first, second = (tmp_path / name for name in ("old", "first", "second"))
    old.write_text("")
    with disk.all_or_nothing():
        disk.write_file(old, "renewed")
        disk.write_file(first, "new")
        with temporary.unfinished(tmp_path / ".unproven"):
            disk.write_file(tmp_path / ".unproven", "new")
            disk.rename(tmp_path / ".unproven", second)
        assert first.exists() and second.exists()
        temporary.remove_all()  # as the handler of SIGTERM does
        assert sorted(tmp_path.iterdir()) == [old]
    with disk.all_or_nothing():
        disk.write_file(first, "new")
    temporary.remove_all()
    assert sorted(tmp_path.iterdir()) == [first, old]


def test_a_name_that_a_folder_has_is_told_and_not_the_temporary_one(tmp_path):
    (tmp_path / "model.onnx").mkdir()
    (tmp_path / ".unproven").write_text("")
    with pytest.raises(OSError, match="directory") as caught:
        disk.rename(tmp_path / ".unproven", tmp_path / "model.onnx")
    assert caught.value.filename == str(tmp_path / "model.onnx")
