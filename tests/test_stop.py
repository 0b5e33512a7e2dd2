"""Being asked to stop, in every phase: saved, exit 75, how to go on; the second time, at once."""

import _thread
import atexit
import importlib
import importlib.abc
import os
import random
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

import trainer.build.prepare
import trainer.loop.epochs
import trainer.loop.fit
import trainer.loop.record
import trainer.process.quit
import trainer.process.stop
import trainer.run.saver
from datasets.files import ImageFiles
from datasets.temporary import unfinished
from tests.conftest import FORK, exit_code_of, fork
from tests.test_architecture import COMMANDS
from tests.test_training import assert_same_run
from tests.torture import startup
from trainer.components.schedulers import Schedule
from trainer.input.loader import Loader
from trainer.process.errors import Stopped
from trainer.process.launch import run_as_command
from trainer.process.quit import watch
from trainer.process.stop import StopRequest
from trainer.run.checkpoint import checkpoints, problem_of, read_state, write_checkpoint
from trainer.run.disk import read_json
from trainer.train import main


def asking(monkeypatch, place, name, at=1, number=signal.SIGTERM):
    """Ask to stop during the ``at``-th call of ``place.name``."""
    original, calls = getattr(place, name), [0]

    def called(*arguments, **keywords):
        calls[0] += 1
        if calls[0] == at:
            os.kill(os.getpid(), number)
        return original(*arguments, **keywords)

    monkeypatch.setattr(place, name, called)


def newest(tmp_path) -> Path:
    runs: list[Path] = list((tmp_path / "runs" / "small").iterdir())
    return max(runs, key=lambda run: run.stat().st_ctime_ns)


def go_on(told: str) -> list[str]:
    """The arguments of the command that the message gives."""
    command = told.rstrip().splitlines()[-1]
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "trainer.train"], told
    return words[3:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(
    ("place", "name", "at"),
    [
        (trainer.build.prepare, "check_components", 1),
        (trainer.build.prepare, "load_data", 1),
        (ImageFiles, "content", 7),
        (ImageFiles, "decode", 3),
        (ImageFiles, "decode", 40),
        (trainer.build.rehearse, "rehearse", 1),
        (trainer.build.prepare, "build_optimizer", 1),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_before_training_a_signal_ends_the_command_at_once_and_nothing_is_written(
    start, monkeypatch, tmp_path, capfd, place, name, at, number
):
    monkeypatch.setenv("TRAINER_STORE", str(tmp_path / "store"))  # so that each file is read
    with monkeypatch.context() as patch:
        asking(patch, place, name, at, number)
        assert start() == 75
    told = capfd.readouterr().err
    assert f"stopped by {signal.Signals(number).name}" in told
    assert "nothing was written" in told
    assert not list((tmp_path / "runs").rglob("config.yaml"))
    assert not list((tmp_path / "runs").rglob("*.tmp"))
    assert main(go_on(told)) == 0  # the same command again
    assert read_json(newest(tmp_path) / "result.json")["status"] == "done"


def test_a_stop_that_breaks_into_somebodys_finally_is_still_a_stop(start, monkeypatch, capfd):
    """argparse, for one, puts things back that it has not yet put aside."""

    def broken(*_):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise AttributeError("nothing was put aside")

    monkeypatch.setattr(trainer.build.prepare, "check_components", broken)
    assert start() == 75
    told = capfd.readouterr().err
    assert "stopped by SIGTERM" in told and "Traceback" not in told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("place", "name", "at", "step"),
    [
        (trainer.loop.fit, "create_run", 1, 0),
        (trainer.loop.record, "environment", 1, 0),
        (trainer.loop.fit, "introduce", 1, 0),
        (trainer.loop.fit, "show_start", 1, 0),
        (trainer.loop.epochs, "learning_rates", 1, 0),  # before the first step
        (trainer.loop.epochs, "learning_rates", 4, 3),
        (trainer.loop.epochs, "learning_rates", 6, 5),  # the step that ends the epoch
        (Schedule, "after_step", 3, 3),  # the weights are changed, the step is not yet counted
        (Loader, "_here", 2, 5),  # validation of the first epoch
        (trainer.loop.epochs, "evaluate", 1, 5),
        (trainer.loop.epochs, "save", 1, 5),
        (trainer.run.saver, "write_checkpoint", 1, None),  # in the thread that writes
        (os, "fsync", 22, None),
        (os, "replace", 10, None),
        (trainer.loop.fit, "evaluate_best", 1, 10),
        (Loader, "_here", 5, 10),  # the test split
    ],
)
def test_a_signal_in_any_phase_of_a_run_saves_within_a_step_and_tells_how_to_go_on(
    start, finished, monkeypatch, tmp_path, capfd, place, name, at, step, number
):
    straight = finished()
    done = [0]
    rates = trainer.loop.epochs.learning_rates

    def counting(job):
        done[0] = job.schedule.steps
        return rates(job)

    monkeypatch.setattr(trainer.loop.epochs, "learning_rates", counting)
    with monkeypatch.context() as patch:
        asking(patch, place, name, at, number)
        assert start() == 75
    run, told = newest(tmp_path), capfd.readouterr().err
    assert f"stopped by {signal.Signals(number).name}" in told
    saved = read_state(checkpoints(run)[-1])["counters"]["step"]
    assert f"saved after step {saved}" in told
    assert saved == done[0]  # no step is lost
    assert step in (None, saved)
    assert read_json(run / "result.json")["status"] == "stopped"
    assert all(problem_of(folder) is None for folder in checkpoints(run))
    assert main(go_on(told)) == 0
    assert_same_run(straight, run)
    assert not [path for path in run.rglob("*") if ".tmp" in path.name]


def test_a_stop_while_the_report_is_written_finds_the_run_done(start, monkeypatch, tmp_path):
    asking(monkeypatch, trainer.loop.fit, "write_report")
    assert start() == 0
    assert read_json(newest(tmp_path) / "result.json")["status"] == "done"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process_at_once(first, second):
    """But not the echo of the first: `timeout` sends two, and so does a terminal that closes."""
    child = os.fork()
    if child == 0:
        with StopRequest() as stop:
            stop.training_begins(None)
            os.kill(os.getpid(), first)
            if second == signal.SIGTERM == first:
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            if stop.reason != first.name:
                os._exit(1)
            stop._asked = (stop._asked or 0) - 1
            os.kill(os.getpid(), second)
        os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == second


def test_two_ctrl_c_through_a_save_leave_the_earlier_checkpoint_and_the_same_result(
    train, finished, monkeypatch, config_file, tmp_path
):
    """A process of its own, whose second save takes long: the second signal does not wait."""
    calls = []

    def slow(*arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return write_checkpoint(*arguments)

    def command():
        monkeypatch.setattr(trainer.run.saver, "write_checkpoint", slow)  # in this fork only
        runs = str(tmp_path / "runs")
        return main(["--config", str(config_file), "--runs", runs, "checkpoint.every=3st"])

    output = tmp_path / "told.txt"
    assert exit_code_of(fork(output, command)) == -signal.SIGINT, output.read_text()
    run = newest(tmp_path)
    assert [path.name for path in checkpoints(run)] == ["step-000000003"]
    train("checkpoint.every=3st", resume=run, file=run / "config.yaml")
    assert_same_run(finished("checkpoint.every=3st"), run)


def test_a_wish_to_outlive_the_terminal_is_kept(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_handlers_of_others_come_back():
    before = {number: signal.getsignal(number) for number in trainer.process.quit.SIGNALS}
    with StopRequest():
        pass
    assert before == {number: signal.getsignal(number) for number in trainer.process.quit.SIGNALS}


@pytest.mark.parametrize("step", [1, 4, 5, 8])
def test_a_budget_that_is_used_up_stops_a_run_as_a_signal_does(
    start, finished, monkeypatch, tmp_path, capfd, step
):
    """The clock jumps by twenty minutes at ``step``; each resume has the whole budget again."""
    straight = finished()
    rates, clock = trainer.loop.epochs.learning_rates, [0.0]

    class Clock:
        @staticmethod
        def monotonic():
            return clock[0]

    def jumping(job):
        if job.schedule.steps == step and not clock[0]:
            clock[0] += 20 * 60
        return rates(job)

    monkeypatch.setattr(trainer.process.stop, "time", Clock)
    monkeypatch.setattr(trainer.loop.epochs, "learning_rates", jumping)
    assert start("train.budget=20m") == 75
    told = capfd.readouterr().err
    assert "stopped by train.budget (20m)" in told and f"saved after step {step};" in told
    assert main(go_on(told)) == 0
    # The budget is in the settings that a checkpoint holds; all else is the same.
    assert (newest(tmp_path) / "metrics.jsonl").read_bytes() == (
        straight / "metrics.jsonl"
    ).read_bytes()
    a, b = (read_state(checkpoints(r)[-1]) for r in (straight, newest(tmp_path)))
    assert all((a["model"][name] == b["model"][name]).all() for name in a["model"])
    result = read_json(newest(tmp_path) / "result.json")
    assert result["status"] == "done" and "reason" not in result


def test_the_first_signal_during_the_save_of_a_used_up_budget_does_not_end_it():
    """It is the first request of a person or a scheduler, whatever the budget asked before."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with StopRequest() as stop:
                stop._began -= 3600
                stop.training_begins(20)
                with pytest.raises(Stopped, match="train.budget"):
                    stop.check()
                os.kill(os.getpid(), signal.SIGTERM)
                code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def test_a_budget_has_minutes(start, capfd):
    assert start("train.budget=20st") == 2
    assert "train.budget" in capfd.readouterr().err


def test_no_handler_of_errors_takes_a_stop_for_one():
    with pytest.raises(Stopped):
        try:
            raise Stopped
        except Exception:
            pytest.fail("a stop was swallowed")


def test_a_stop_message_names_a_run_that_has_spaces_so_that_a_shell_takes_it(
    config_file, monkeypatch, tmp_path, capfd
):
    asking(monkeypatch, trainer.loop.epochs, "learning_rates", 3)
    assert main(["--config", str(config_file), "--runs", str(tmp_path / "my runs")]) == 75
    told = capfd.readouterr().err
    assert re.search(r"--resume '.*my runs.*'", told)
    assert main(go_on(told)) == 0


def test_a_stop_in_validation_does_not_wait_for_its_end(start, monkeypatch):
    judged: list[int] = []
    monkeypatch.setattr(trainer.loop.epochs, "evaluate", lambda *_: judged.append(1))
    asking(monkeypatch, Loader, "_here", 2)
    assert start() == 75
    assert not judged


@pytest.mark.parametrize(
    "forks",
    [
        "import 100",
        pytest.param("import 1", marks=pytest.mark.slow),
        pytest.param("line 1500", marks=pytest.mark.slow),
        pytest.param("call 550", marks=pytest.mark.slow),
    ],
)
def test_a_signal_at_any_moment_of_the_start_ends_it_at_once_and_tells_how_to_start_again(
    config_file, tmp_path, forks
):
    """At imports, while the lock of an import is taken or freed, in any function."""
    arguments = ["trainer.train", "--config", str(config_file), "--runs", str(tmp_path / "a b")]
    code, ends = startup.at_imports([*arguments, "train.epochs=1"], forks, tmp_path)
    assert code == 0  # the start from which the others were forked
    assert len(ends) > 10 and {name for name, _, _ in ends} == set(startup.SIGNALS)
    wrong = [startup.problem_of(*end, [*arguments, "train.epochs=1"]) for end in ends]
    assert not any(wrong), "\n".join(wrong)


@pytest.mark.slow
def test_signals_at_random_times_of_real_starts(config_file, tmp_path):
    """``STARTS=2000 python -m pytest -m slow -k random_times`` takes an hour or two."""
    arguments = ["trainer.train", "--config", str(config_file), "--runs", str(tmp_path / "runs")]
    for number in range(int(os.environ.get("STARTS", "100"))):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        problem, _ = startup.at_a_random_time(arguments, tmp_path / "runs", random.Random(number))
        assert not problem, f"start {number}: {problem}"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_ended_by_a_signal_from_its_first_line_on(tmp_path, command):
    """75 if the same command goes on; else the shell's code, as there is nothing to resume."""
    code, ends = startup.at_imports([f"trainer.{command}", "--help"], "import 20", tmp_path)
    assert code == 0 and ends
    for name, ended, message in ends:
        number = getattr(signal, name)
        assert ended == (75 if command in ("train", "sweep") else 128 + number)
        assert message.splitlines()[0] == f"stopped by {name}" and "Traceback" not in message


def test_a_command_that_is_ended_leaves_no_worker_and_nothing_half_written(tmp_path):
    """Workers ignore signals, and the command's own clean-up does not run."""
    folder, download = tmp_path / ".rmb.partial", tmp_path / "weights.pth.1a2b.partial"

    def command():
        watch("trainer.train")
        os.setpgid(0, 0)
        ready = FORK.Event()
        worker = FORK.Process(target=obstinate, args=(ready,))
        worker.start()
        ready.wait()
        (tmp_path / "worker").write_text(str(worker.pid))
        with unfinished(folder), download.open("w"):
            folder.mkdir()
            (folder / "picture.jpg").touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    def obstinate(ready):
        for number in trainer.process.quit.SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        ready.set()
        time.sleep(60)

    assert exit_code_of(fork(tmp_path / "told.txt", command)) == 75
    assert not folder.exists() and not download.exists()
    assert not Path(f"/proc/{(tmp_path / 'worker').read_text()}").exists()


def test_the_sigint_of_openblas_that_may_not_start_its_threads_is_told_as_that(
    tmp_path, monkeypatch
):
    """It sends the signal to its own process while numpy is imported."""

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    def command():
        monkeypatch.setattr(_thread, "start_new_thread", refuse)
        watch("trainer.predict")
        os.kill(os.getpid(), signal.SIGINT)
        return 1

    assert exit_code_of(fork(tmp_path / "told.txt", command)) == 5
    assert "ulimit -u" in (tmp_path / "told.txt").read_text()


def test_a_signal_after_the_end_changes_neither_the_exit_code_nor_the_message(tmp_path, capfd):
    def command():
        watch("trainer.train")
        atexit._clear()
        atexit.register(os.kill, os.getpid(), signal.SIGTERM)
        run_as_command(main)

    def main():
        with StopRequest() as stop:
            stop.training_begins(None)
        os.kill(os.getpid(), signal.SIGTERM)
        return 3

    assert exit_code_of(fork(tmp_path / "told.txt", command)) == 3
    assert (tmp_path / "told.txt").read_text() == ""


def test_in_a_program_that_calls_a_command_a_signal_waits_for_the_end_of_an_import(
    monkeypatch, tmp_path
):
    """An exception within importlib can leave its lock held: the next import waits for ever."""
    passed = []

    class Asking(importlib.abc.MetaPathFinder):
        def find_spec(self, *_):
            os.kill(os.getpid(), signal.SIGTERM)
            passed.append("the signal's handler")

    (tmp_path / "imported_while_asked.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [Asking(), *sys.meta_path])
    with pytest.raises(Stopped), StopRequest():
        importlib.import_module("imported_while_asked")
        passed.append("the import")
        time.sleep(10)
    assert passed == ["the signal's handler", "the import"]
