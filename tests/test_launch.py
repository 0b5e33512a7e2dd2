"""What the environment tells of other processes: who speaks, and what a torchrun did before."""

import json
import tempfile

import pytest

from trainer import launch
from trainer.errors import UsageError
from trainer.train import main


@pytest.fixture
def torchrun(monkeypatch, tmp_path):
    """Be a process that torchrun ``agent`` started, so many times again."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def be(agent="one", restarts=0, job="none"):
        now = {"agent": agent, "id": job, "restarts": restarts}
        monkeypatch.setattr(launch, "launcher", lambda: now)

    return be


@pytest.fixture
def left(tmp_path):
    """A run that a torchrun left behind."""

    def leave(name, agent="one", restarts=0, job="none", status="running"):
        run = tmp_path / "runs" / "small" / name
        run.mkdir(parents=True)
        before = {"agent": agent, "id": job, "restarts": restarts}
        (run / "launcher.json").write_text(json.dumps(before))
        (run / "result.json").write_text(json.dumps({"status": status}))
        return run

    return leave


def test_without_torchrun_nothing_is_found(left, tmp_path):
    left("20260101-000000-aaaa")
    assert launch.run_before_restart(tmp_path / "runs", "small") == (None, False)


@pytest.mark.parametrize(
    ("before", "now", "is_ours"),
    [
        ({}, {"restarts": 1}, True),
        ({}, {"restarts": 0}, True),  # machines came or went
        ({"agent": "other"}, {"restarts": 1}, False),
        ({"agent": "other", "job": "7"}, {"restarts": 1, "job": "7"}, True),
        ({"agent": "other", "job": "7"}, {"restarts": 0, "job": "7"}, False),  # an id used again
        ({"agent": "other", "job": "7"}, {"restarts": 1, "job": "8"}, False),
    ],
)
def test_a_torchrun_finds_its_own_run_again_and_no_other(
    torchrun, left, tmp_path, before, now, is_ours
):
    run = left("20260101-000000-aaaa", **before)
    torchrun(**now)
    found = run if is_ours else None
    assert launch.run_before_restart(tmp_path / "runs", "small") == (found, False)


def test_a_run_that_was_told_to_stop_stays_so_when_torchrun_starts_it_again(
    torchrun, left, tmp_path
):
    run = left("20260101-000000-aaaa", status="stopped")
    torchrun(restarts=1)
    assert launch.run_before_restart(tmp_path / "runs", "small") == (run, True)
    assert launch.run_before_restart(tmp_path / "elsewhere", "small", run) == (run, True)
    torchrun(restarts=0)  # torchrun stopped it itself: machines came or went
    assert launch.run_before_restart(tmp_path / "runs", "small") == (run, False)
    torchrun("another", restarts=1)
    assert launch.run_before_restart(tmp_path / "elsewhere", "small", run) == (None, False)


def test_so_does_a_start_that_was_told_to_stop_before_there_was_a_run(
    torchrun, monkeypatch, tmp_path
):
    monkeypatch.setattr(launch, "local_world_size", lambda: 1)
    torchrun()
    launch.remember_early_stop()  # this process's own siblings live
    torchrun(restarts=1)
    assert launch.run_before_restart(tmp_path / "runs", "small") == (None, True)
    torchrun("another", restarts=1)
    assert launch.run_before_restart(tmp_path / "runs", "small") == (None, False)


def test_where_torchrun_told_it_because_another_is_gone_it_is_to_begin_again(
    torchrun, monkeypatch, tmp_path
):
    monkeypatch.setattr(launch, "local_world_size", lambda: 1000)
    torchrun()
    launch.remember_early_stop()
    torchrun(restarts=1)
    assert launch.run_before_restart(tmp_path / "runs", "small") == (None, False)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but not MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "ranks count from 0"),
    ],
)
def test_an_environment_that_cannot_be_is_told_at_once(
    monkeypatch, config_file, capsys, environment, told
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["--config", str(config_file)]) == 2
    assert told in capsys.readouterr().err
    with pytest.raises(UsageError):
        launch.was_launched()


def test_the_command_to_go_on_is_that_of_as_many_processes(together, tmp_path):
    import os
    import signal

    from tests.test_distributed import at_step

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    assert together(2, prepare=at_step(2, 0, stop)) == [75, 75]
    told = (tmp_path / "rank-0.txt").read_text()
    assert "torchrun --nproc-per-node 2 -m trainer.train --resume" in told
    assert "device  2 processes (ddp), each cpu" in told
