"""The proof of equal bits can fail: it tells other bits, failing runs, and digests from elsewhere.

Most tests use a stand-in for the trainer, which writes the files of a run and does not train.
"""

import json
import subprocess
import sys

import pytest

from tests.torture import same_bits

STAND_IN = """
import json, pathlib, sys, time
BITS = "old"
arguments = sys.argv[1:]
if arguments[0] == "--resume":
    run = pathlib.Path(arguments[1])
else:
    name, runs = arguments[2].partition("=")[2], pathlib.Path(arguments[-1])
    run = runs / name / "20260131-120000-ab12"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps({"status": "running"}))
    (run / "begun_by").write_text(BITS)
    (run / "checkpoints" / "step-000000005").mkdir(parents=True)  # whoever kills waits for it
    if name in ("resume", "handed_over"):
        time.sleep(1)  # the time in which it is killed
    (run / "result.json").write_text(json.dumps({"status": "done"}))
(run / "model.pt").write_text(BITS)
(run / "metrics.jsonl").write_text("{}")
"""

# Of another size: within a second, Python would take the bytecode of the old one for it.
NEW_CODE = STAND_IN.replace('"old"', '"new"') + "# changed\n"


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A checkout with one commit, whose trainer is the stand-in; the file to change."""
    file = tmp_path / "checkout" / "trainer" / "train.py"
    file.parent.mkdir(parents=True)
    file.write_text(STAND_IN)
    git = ["git", "-C", str(tmp_path / "checkout"), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "Begin"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(same_bits, "ROOT", tmp_path / "checkout")
    monkeypatch.setattr(same_bits, "PER_CLASS", 1)
    return file


def test_there_are_fourteen_runs_and_one_that_goes_from_old_to_new_code():
    assert len(same_bits.RUNS) == 15 and same_bits.RUNS["handed_over"] == same_bits.RUNS["resume"]


@pytest.mark.parametrize("name", ["swa", "distillation", "mixup"])
def test_the_trainer_accepts_the_runs(tmp_path, name):
    file = tmp_path / "same_bits.yaml"
    file.write_text(same_bits.CONFIG)
    command = [sys.executable, "-m", "trainer.train", "--print-config", "--config", str(file)]
    done = subprocess.run([*command, *same_bits.RUNS[name]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_same_code_is_equal_also_where_it_is_killed_and_resumed(code, capsys):
    assert same_bits.main(["--old", "HEAD", "--only", "plain", "resume", "handed_over"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [[n, "equal"] for n in ("plain", "resume", "handed_over")]


def test_other_bits_of_the_new_code_differ(code, capsys):
    code.write_text(NEW_CODE)
    assert same_bits.main(["--old", "HEAD", "--only", "plain", "handed_over"]) == 1
    assert capsys.readouterr().out.count("DIFFERS") == 2


def test_a_run_that_the_new_code_cannot_train_is_told_with_its_reason(code, capsys):
    code.write_text("raise SystemExit('no such layout')")
    assert same_bits.main(["--old", "HEAD", "--only", "plain"]) == 1
    assert "FAILS    exit code 1: no such layout" in capsys.readouterr().out


def test_the_old_code_begins_what_the_new_code_ends(code, tmp_path):
    same_bits.check_out("HEAD", tmp_path / "old")
    code.write_text(NEW_CODE)
    same_bits.outcome(same_bits.ROOT, tmp_path, "handed_over")
    (run,) = (tmp_path / "runs" / "handed_over").iterdir()
    assert [(run / name).read_text() for name in ("begun_by", "model.pt")] == ["old", "new"]


def test_an_absent_commit_is_told_with_what_to_do(code, capsys):
    assert same_bits.main(["--old", "80af801", "--only", "plain"]) == 2
    assert "git fetch --unshallow" in capsys.readouterr().err


def test_recorded_digests_are_compared_with_only_where_they_hold(code, tmp_path, capsys):
    file = tmp_path / "recorded.json"
    only = ["--only", "plain", "ema"]
    assert same_bits.main(["--old", "HEAD", *only, "--record", str(file)]) == 0
    assert same_bits.main(["--against", str(file), *only]) == 0
    code.write_text(NEW_CODE)
    assert same_bits.main(["--against", str(file), *only]) == 1
    content = json.loads(file.read_text())
    content["environment"]["torch"] = "1.0"
    file.write_text(json.dumps(content))
    assert same_bits.main(["--against", str(file), *only]) == 2
    assert "do not hold here: torch 1.0, here " in capsys.readouterr().err


@pytest.mark.slow
def test_the_code_as_committed_trains_to_the_bits_of_the_code_as_it_lies_here():
    assert same_bits.main(["--old", "HEAD", "--only", "plain", "resume"]) == 0
