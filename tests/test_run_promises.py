"""What a run promises beyond its numbers: nothing left over, nothing lost, nothing untrue said."""

import concurrent.futures
import errno
import fcntl
import os
import re
import signal
import sys
import time
from functools import partial

import pytest
import torch

import trainer.loop.epochs
import trainer.loop.fit
import trainer.run.saver
from tests.test_guard import Spoiled, flat
from tests.test_stop import asking, newest
from tests.test_training import tags_of
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.loop.guard import Guard
from trainer.loop.step import new_task, train_steps
from trainer.process.errors import NonFiniteLoss, RunError
from trainer.run.checkpoint import checkpoints
from trainer.run.disk import read_json
from trainer.run.folder import lock_run
from trainer.run.log import Table
from trainer.run.saver import Saver
from trainer.run.tensors import load_tensors


def test_a_save_that_failed_ends_a_run_at_the_next_step_and_not_at_the_next_save(
    train, monkeypatch
):
    save, rates, done = Saver.save, trainer.loop.epochs.learning_rates, []

    def failing(*_):
        raise RunError("the disk is full")

    def saving(self, *arguments):
        save(self, *arguments)
        concurrent.futures.wait([self._pending])

    def counting(job):
        done.append(job.schedule.steps)
        return rates(job)

    monkeypatch.setattr(trainer.run.saver, "write_checkpoint", failing)
    monkeypatch.setattr(Saver, "save", saving)
    monkeypatch.setattr(trainer.loop.epochs, "learning_rates", counting)
    with pytest.raises(RunError, match="is full"):
        train("checkpoint.every=3st")
    assert done[-1] == 3


def test_a_resumed_run_removes_what_a_killed_process_left_half_written(train, finished):
    run = finished()
    (run / "checkpoints" / "step-000000099.tmp-1").mkdir()
    (run / ".model.pt.1.tmp").write_text("half")
    train("train.epochs=3", resume=run, file=run / "config.yaml")
    assert not [path for path in run.rglob("*") if ".tmp" in path.name]


def test_on_a_gpu_too_a_stop_after_a_ruined_step_saves_nothing(spoiled, monkeypatch, tmp_path):
    monkeypatch.setattr(trainer.loop.fit, "Guard", partial(Guard, lag=64))
    rates = trainer.loop.epochs.learning_rates

    def stopping(job):
        if job.schedule.steps == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return rates(job)

    monkeypatch.setattr(trainer.loop.epochs, "learning_rates", stopping)
    with pytest.raises(NonFiniteLoss, match="in step 2 "):
        spoiled(Spoiled({2}), "log.every=50st")
    (run,) = (tmp_path / "runs" / "small").iterdir()
    assert checkpoints(run) == []


@pytest.mark.parametrize("optimizer", ["{name: SGD, lr: 0.01, momentum: 0.9}", "AdamW"])
def test_a_first_step_left_out_leaves_no_trace(config_file, optimizer):
    """SGD's fused step leaves momentum as it lay in memory where the flag is up at once."""
    overrides = [f"optimizer={optimizer}", "transforms.train.1={name: CenterCrop, size: 32}"]
    states = []
    for lag in (1, 64):
        job = prepare(load_config(config_file, overrides), print)
        junk = [torch.full_like(p, 1e6) for p in job.model.parameters() for _ in range(9)]
        del junk
        guard = Guard(job.model, job.optimizer, restore=True, lag=lag)
        batches = list(job.train_loader.epoch())[:4]
        job.loss_fn = Spoiled({1})
        list(train_steps(new_task(job, guard), batches, 0))
        states.append({**job.model.state_dict(), **flat(job.optimizer)})
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor), name


def test_a_terminal_that_closes_sends_its_signal_twice_and_the_run_still_saves(
    start, monkeypatch, tmp_path
):
    """The shell sends SIGHUP to its jobs, and the system once more as the shell ends."""
    rates = trainer.loop.epochs.learning_rates

    def closing(job):
        if job.schedule.steps == 3:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
        return rates(job)

    monkeypatch.setattr(trainer.loop.epochs, "learning_rates", closing)
    assert start() == 75
    assert checkpoints(newest(tmp_path))[-1].name == "step-000000003"


def test_a_stop_whose_result_cannot_be_written_is_still_a_stop(start, monkeypatch, tmp_path, capfd):
    def full(run, **values):
        if values.get("status") == "stopped":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer.loop.fit, "update_result", full)
    asking(monkeypatch, trainer.loop.epochs, "learning_rates", 4)
    assert start() == 75
    assert "--resume" in capfd.readouterr().err


def test_a_folder_that_cannot_be_locked_is_not_said_to_be_in_use(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(RunError, match="No locks available"):
        lock_run(tmp_path)


def test_a_message_that_nobody_can_read_changes_no_exit_code(start, monkeypatch):
    class Closed:
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

        flush = isatty = lambda self: None

    asking(monkeypatch, trainer.loop.epochs, "learning_rates", 4, signal.SIGHUP)
    monkeypatch.setattr(sys, "stderr", Closed())
    assert start() == 75
    sys.stderr.close()  # it was replaced


def test_what_fails_before_the_first_step_is_said_to_have_failed(train, monkeypatch, tmp_path):
    def failing(*_):
        raise RunError("no")

    monkeypatch.setattr(trainer.loop.fit, "introduce", failing)
    with pytest.raises(RunError):
        train()
    run = newest(tmp_path)
    assert read_json(run / "result.json")["status"] == "failed"


def test_an_event_file_that_was_cut_is_put_aside_and_the_new_one_goes_on(train, finished):
    run = finished()
    (cut,) = run.glob("events*")
    cut.write_bytes(cut.read_bytes()[:100])
    for epochs in (3, 4):
        train(f"train.epochs={epochs}", resume=run, file=run / "config.yaml")
    (events,) = run.glob("events*")
    assert events != cut and tags_of(run)["val/accuracy"] == [5, 10, 15, 20]
    assert len(list(run.glob("damaged.*"))) == 1


def test_a_run_that_was_stopped_counts_all_its_seconds(start, monkeypatch, tmp_path):
    rates = trainer.loop.epochs.learning_rates

    def slow(job):
        if job.schedule.steps == 3:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGTERM)
        return rates(job)

    monkeypatch.setattr(trainer.loop.epochs, "learning_rates", slow)
    assert start() == 75
    state = load_tensors(checkpoints(newest(tmp_path))[-1] / "state.pt")
    assert state["clocks"]["train_seconds"] >= 0.5


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_table_of_epochs_leaves_out_columns_without_room_and_says_which(
    width, monkeypatch, capsys
):
    columns = ["epoch", "train/loss", "val/loss", "val/accuracy", "val/macro_f1", "lr", "left"]
    monkeypatch.setenv("COLUMNS", str(width))
    table = Table(columns, ["lr", "val/macro_f1", "val/loss", "left", "train/loss"])
    for epoch in ("1/100", "2/100"):
        table.row([epoch, "0.1000", "0.2000", "0.3000", "0.4000", "0.005", "1m35s"], "* best")
    *told, head, first, second = capsys.readouterr().out.splitlines()
    out = re.findall(r"(?<=: )[^;]*", told[0])[0].split(", ") if told else []
    assert max(map(len, (head, first, second))) <= width
    assert head.split() == [column for column in columns if column not in out]
    assert {40: 5, 60: 3, 80: 1, 200: 0}[width] == len(out)
    assert "val/accuracy" in head and first.endswith("* best") and "0.3000" in second
