"""The end of a run or a sweep is told, however it ends; the address comes from the environment."""

import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import yaml_trainer
from tests.conftest import exit_code_of, fork
from trainer.config import load_config
from trainer.train import main as train
from yaml_trainer.notifying import Notice


class Server:
    """A local HTTP server that keeps the JSON of each message; ``pause``: seconds per answer."""

    def __init__(self) -> None:
        self.messages: list[dict] = []
        self.pause, self.status = 0.0, 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers["Content-Length"]))
                outer.messages.append(json.loads(text))
                time.sleep(outer.pause)
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *arguments: object) -> None: ...

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"json://me:secretpw@127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setenv("YAML_TRAINER_NOTIFY", made.address)
    yield made
    made.http.shutdown()
    made.http.server_close()


def result_of(tmp_path: Path) -> tuple[Path, dict]:
    (run,) = (path.parent for path in tmp_path.glob("runs/*/*/result.json"))
    return run, json.loads((run / "result.json").read_text())


def test_a_finished_run_tells_its_name_test_result_and_folder(server, start, tmp_path, capfd):
    assert start("notify={}") == 0
    run, result = result_of(tmp_path)
    (message,) = server.messages
    assert message["title"] == "run small: finished"
    assert message["type"] == "success"
    assert f"accuracy {result['test']['accuracy']:.4f}" in message["message"]
    assert str(run) in message["message"]
    written = [path.read_text(errors="replace") for path in run.rglob("*") if path.is_file()]
    assert "secretpw" not in "".join([*written, *capfd.readouterr()])


def test_a_run_that_fails_tells_the_reason_and_how_to_go_on(server, start, tmp_path):
    code = start("notify={}", "optimizer.lr=1e30", "train.epochs=3")
    assert code == 4
    run, result = result_of(tmp_path)
    (message,) = server.messages
    assert message["title"] == "run small: failed"
    assert message["type"] == "failure"
    assert result["reason"] in message["message"]
    assert f"--resume {run}" in message["message"]
    assert f"folder: {run.resolve()}" in message["message"].splitlines()


def test_a_run_that_is_out_of_memory_tells_it(server, start, monkeypatch):
    def full(*arguments, **named):
        raise MemoryError

    monkeypatch.setattr("trainer.loop.epochs.train_epoch", full, raising=False)
    monkeypatch.setattr("trainer.loop.fit.train_epochs", full)
    assert start("notify={}") == 7
    (message,) = server.messages
    assert "failed" in message["title"]
    assert "out of memory" in message["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_tells_how_to_go_on(server, config_file, tmp_path, number):
    argv = ["--config", str(config_file), "--runs", str(tmp_path / "runs"), "notify={}"]
    process = fork(tmp_path / "output.txt", lambda: train([*argv, "train.epochs=500"]))
    while not list(tmp_path.glob("runs/*/*/checkpoints/*/MANIFEST.json")):
        assert process.is_alive(), (tmp_path / "output.txt").read_text()
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, number)
    assert exit_code_of(process) == 75
    (message,) = server.messages
    assert message["title"] == "run small: stopped"
    assert message["type"] == "warning"
    assert f"stopped by {number.name}" in message["message"]
    (run,) = (path.parent for path in tmp_path.glob("runs/*/*/result.json"))
    assert f"folder: {run.resolve()}" in message["message"].splitlines()
    assert "--resume" in message["message"]


def test_only_the_ends_that_are_asked_for_are_told(server, start):
    assert start("notify.on=[failed, stopped]") == 0
    assert server.messages == []


def test_who_does_not_answer_is_a_note_and_changes_no_exit_code(server, start, capsys, monkeypatch):
    monkeypatch.setattr("yaml_trainer.notifying.PATIENCE", 0.3)
    server.pause = 2.0
    began = time.monotonic()
    assert start("notify={}", "train.epochs=1", "log.show=[]") == 0
    assert time.monotonic() - began < 10
    output = "".join(capsys.readouterr())
    assert "note    notify: 1 of 1 addresses in YAML_TRAINER_NOTIFY did not take" in output
    assert "secretpw" not in output


def test_a_refusal_is_a_note_and_an_error_keeps_its_exit_code(server, start, capsys, caplog):
    server.status = 500
    assert start("notify={}", "optimizer.lr=1e30", "train.epochs=3") == 4
    output = "".join(capsys.readouterr())
    assert "did not take the message" in output
    assert "secretpw" not in output
    assert not [record for record in caplog.records if record.name.startswith("apprise")]


def test_a_long_message_is_cut(server, config_file):
    notice = Notice(load_config(config_file, ["notify={}"]), "run", "small")
    notice.check()
    notice.send("failed", "x" * 9000)
    (message,) = server.messages
    assert message["message"].count("x") == 2000


def test_an_address_that_is_absent_or_wrong_is_told_before_training(
    start, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("YAML_TRAINER_NOTIFY", raising=False)
    assert start("notify={}") == 2
    assert "the environment has no YAML_TRAINER_NOTIFY" in capsys.readouterr().err
    monkeypatch.setenv("MY_NOTIFY", "nonsense://me:secretpw@host")
    assert start("notify.to=MY_NOTIFY", "--dry-run") == 2
    error = capsys.readouterr().err
    assert "no such address as number 1 in MY_NOTIFY, which begins with nonsense://" in error
    assert "secretpw" not in error
    monkeypatch.setattr("yaml_trainer.notifying.importlib.util.find_spec", lambda name: None)
    assert start("notify={}") == 2
    assert 'pip install -e ".[notify]"' in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "text", ["notify={to: 'mailto://me:secretpw@x'}", "notify=json://me:secretpw@x",
             "notify.to=me:secretpw@x", "notify.urls=[json://me:secretpw@x]"],
)  # fmt: skip
def test_an_address_in_the_settings_is_refused_and_not_repeated(start, config_file, capsys, text):
    assert start(text) == 2
    on_command_line = capsys.readouterr().err
    if text.startswith("notify="):
        config_file.write_text(f"{config_file.read_text()}\n{text.replace('=', ': ', 1)}\n")
        assert start() == 2
    for error in (on_command_line, capsys.readouterr().err or on_command_line):
        assert "an address may hold a password" in error
        assert "secretpw" not in error


def test_a_run_in_python_tells_its_end(server, config_file, tmp_path):
    run = yaml_trainer.train(config_file, ["notify={}"], runs=tmp_path / "runs")
    (message,) = server.messages
    assert message["title"] == "run small: finished"
    assert str(run.folder) in message["message"]
    with pytest.raises(yaml_trainer.TrainerError, match="finite"):
        yaml_trainer.train(config_file, ["notify={}", "optimizer.lr=1e30"], runs=tmp_path / "runs")
    (failed,) = server.messages[1:]
    assert (failed["title"], failed["type"]) == ("run small: failed", "failure")
    (other,) = {path.parent for path in tmp_path.glob("runs/*/*/result.json")} - {run.folder}
    assert f"folder: {other.resolve()}" in failed["message"].splitlines()


def test_a_profile_tells_nobody(server, start):
    assert start("notify={}", "--profile", "2") == 0
    assert server.messages == []


def test_a_dry_run_tells_nobody(server, start):
    assert start("notify={}", "--dry-run") == 0
    assert server.messages == []


def test_only_rank_0_tells_it(server, together):
    assert together(2, "notify={}", "train.epochs=1", "log.show=[]") == [0, 0]
    assert len(server.messages) == 1


def test_a_sweep_tells_its_end_once_and_its_runs_do_not(server, config_file, tmp_path):
    from trainer.sweep import main as sweep

    file = tmp_path / "rates.yaml"
    file.write_text(
        f"base: {config_file.name}\n"
        "sweep: {method: grid, params: {optimizer.lr: [0.1, 0.01]}}\n"
    )
    argv = ["--config", str(file), "--runs", str(tmp_path / "runs")]
    assert sweep([*argv, "notify={}", "train.epochs=1", "log.show=[]"]) == 0
    (message,) = server.messages
    assert message["title"] == "sweep rates: finished"
    assert str(tmp_path / "runs" / "rates") in message["message"]
    assert "best" in message["message"]


def test_a_sweep_that_is_stopped_tells_how_to_go_on(server, config_file, tmp_path):
    from trainer.sweep import main as sweep

    file = tmp_path / "rates.yaml"
    file.write_text(
        f"base: {config_file.name}\n"
        "sweep: {method: grid, params: {optimizer.lr: [0.1, 0.01]}}\n"
    )
    argv = ["--config", str(file), "--runs", str(tmp_path / "runs"), "notify={}"]
    process = fork(tmp_path / "output.txt", lambda: sweep([*argv, "train.epochs=5000"]))
    until = time.monotonic() + 60
    while not list((tmp_path / "runs").rglob("metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert exit_code_of(process) == 75
    (message,) = server.messages
    assert message["title"] == "sweep rates: stopped"
    assert f"trainer.sweep --config {file}" in message["message"]
    assert f"folder: {(tmp_path / 'runs' / 'rates').resolve()}" in message["message"].splitlines()


def test_a_mirror_that_follows_tells_of_a_run_that_was_killed(server, config_file, tmp_path):
    from trainer.mirror import main as mirror

    argv = ["--config", str(config_file), "--runs", str(tmp_path / "runs"), "notify={}"]
    training = fork(tmp_path / "output.txt", lambda: train([*argv, "train.epochs=500"]))
    while not (found := list(tmp_path.glob("runs/*/*/metrics.jsonl"))):
        assert training.is_alive(), (tmp_path / "output.txt").read_text()
        time.sleep(0.02)
    run, output = found[0].parent, tmp_path / "mirror.txt"
    follower = fork(output, lambda: mirror([str(run), "--to", "csv", "--follow"]))
    while not (run / "metrics.csv").is_file():
        assert follower.is_alive(), output.read_text()
        time.sleep(0.02)
    training.kill()
    training.join()
    assert exit_code_of(follower) == 0, output.read_text()
    assert "was killed" in output.read_text()
    assert len(server.messages) == 1
    assert f"folder: {run.resolve()}" in server.messages[0]["message"].splitlines()
    (message,) = server.messages
    assert message["title"] == "run small: failed"
    assert f"--resume {run}" in message["message"]
