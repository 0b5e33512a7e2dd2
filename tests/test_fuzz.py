"""Wrong and extreme values end in a run or a message: the long form, and that it sees a bad end."""

import os
import signal
import time

import pytest

from tests import fuzz


@pytest.fixture
def case(tmp_path):
    fuzz.make_data(tmp_path)
    return fuzz.Case("transform", "Resize", "size", 32, fuzz.base(tmp_path))


def kill(file):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(file):
    raise RuntimeError("an error of nobody")


def sleep(file):
    time.sleep(60)


def start_processes(file):
    for _ in range(fuzz.PROCESSES + 1):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    time.sleep(60)


@pytest.mark.parametrize(
    "work, end",
    [
        (kill, "signal 9"),
        (fail, "traceback"),
        (sleep, "hung for 1 s"),
        (start_processes, f"more than {fuzz.PROCESSES} processes"),
    ],
)
def test_a_bad_end_of_a_case_is_seen(tmp_path, monkeypatch, case, work, end):
    monkeypatch.setitem(fuzz.SECONDS, work.__name__, 1 if work is sleep else 30)
    assert fuzz.outcome(work, case, tmp_path / "case")[0] == end


@pytest.mark.parametrize(
    "argument, value, stage, end",
    [("size", 16, "epoch", "exit 0"), ("size", -1, "check", "exit 2")],
)
def test_a_file_is_checked_and_trained_if_the_check_accepts_it(
    tmp_path, argument, value, stage, end
):
    fuzz.make_data(tmp_path)
    content = fuzz.base(tmp_path)
    crop = {"name": "CenterCrop", argument: value}
    content["transforms"] = {
        side: [*listed, crop] for side, listed in content["transforms"].items()
    }
    case = fuzz.Case("transform", "CenterCrop", argument, value, content)
    assert fuzz.try_case(case, tmp_path / "case")[:2] == [stage, end]


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_every_wrong_value_ends_in_a_run_or_in_a_message(kind):
    assert fuzz.run([kind], every=1, results=None) == []
