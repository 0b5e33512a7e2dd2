"""What the environment tells of other processes: who speaks, and what a torchrun did before."""

import json
import os
import signal

import pytest

import trainer.loop.record
from tests.test_distributed import at_step
from trainer.process import launch
from trainer.process.errors import Stopped, UsageError
from trainer.run import restarts
from trainer.run.disk import read_json
from trainer.run.restarts import run_before_restart
from trainer.train import main


@pytest.fixture
def torchrun(monkeypatch):
    """Be a process that torchrun ``agent`` started, so many times again."""

    def be(agent="one", restarts=0, job="none"):
        now = {"agent": agent, "id": job, "restarts": restarts}
        monkeypatch.setattr("trainer.run.restarts.launcher", lambda: now)

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
    assert run_before_restart(tmp_path / "runs", "small") is None


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
    assert run_before_restart(tmp_path / "runs", "small") == found


def test_what_lies_beside_it_and_cannot_be_read_is_passed_over(torchrun, left, tmp_path):
    run = left("20260101-000000-aaaa")
    (left("20260102-000000-aaaa") / "launcher.json").write_text("[]")
    (left("20260103-000000-aaaa") / "result.json").write_text("{")
    torchrun(restarts=1)
    assert run_before_restart(tmp_path / "runs", "small") == run


def test_a_run_that_was_told_to_stop_stays_so_when_torchrun_starts_it_again(
    torchrun, left, tmp_path
):
    run = left("20260101-000000-aaaa", status="stopped")
    torchrun(restarts=1)
    with pytest.raises(Stopped, match=f"{run} was stopped"):
        run_before_restart(tmp_path / "runs", "small")
    with pytest.raises(Stopped):
        run_before_restart(tmp_path / "elsewhere", "small", run)
    torchrun(restarts=0)  # torchrun stopped it itself: machines came or went
    assert run_before_restart(tmp_path / "runs", "small") == run
    torchrun("another", restarts=1)
    assert run_before_restart(tmp_path / "elsewhere", "small", run) is None


def test_so_it_does_in_all_processes_although_only_the_first_one_looks(together, tmp_path):
    """As where torchrun runs on several machines: only rank 0 finds launcher.json to be its own."""

    def under_torchrun(count):
        def prepare(rank):
            os.environ |= {"TORCHELASTIC_RUN_ID": "7", "TORCHELASTIC_RESTART_COUNT": str(count)}
            now = {"agent": f"machine {rank}", "id": "none", "restarts": count}
            for module in (restarts, trainer.loop.record):
                setattr(module, "launcher", lambda: now)  # noqa: B010
            if count == 0:
                at_step(2, 0, lambda: os.kill(os.getpid(), signal.SIGTERM))(rank)

        return prepare

    assert together(2, prepare=under_torchrun(0)) == [75, 75]
    (run,) = (tmp_path / "together" / "small").iterdir()
    before = read_json(run / "result.json")
    assert together(2, prepare=under_torchrun(1)) == [75, 75]
    assert f"{run} was stopped" in (tmp_path / "rank-0.txt").read_text()
    assert "was stopped" not in (tmp_path / "rank-1.txt").read_text()
    assert read_json(run / "result.json") == before
    assert [run] == list((tmp_path / "together" / "small").iterdir())


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
    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    assert together(2, prepare=at_step(2, 0, stop)) == [75, 75]
    told = (tmp_path / "rank-0.txt").read_text()
    assert "torchrun --nproc-per-node 2 -m trainer.train --resume" in told
    assert "device  2 processes (ddp), each cpu" in told
