"""``yaml_trainer.train``: a run in Python is the command's run; what it leaves; how it stops."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trainer.loop.epochs
import yaml_trainer.training
from tests.test_api import state_of_the_process
from trainer.loop.evaluate import evaluate
from trainer.run.folder import runs_in
from yaml_trainer import InputError, Run, TrainerError, load, train

EPOCHS = ["train.epochs=3"]


def bits_of(run):
    """What a run's seed decides: its metrics, and its weights."""
    folder = run.folder if isinstance(run, Run) else run
    return (folder / "metrics.jsonl").read_bytes(), (folder / "model.pt").read_bytes()


@pytest.fixture
def by_command(start, tmp_path):
    """The run that the command makes; it is moved out of ``runs``."""

    def command(*words):
        assert start(*words) == 0
        (run,) = (tmp_path / "runs" / "small").iterdir()
        return run.rename(tmp_path / "by-command")

    return command


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def test_a_run_in_python_has_the_bits_of_the_commands_also_the_second_time_and_in_a_thread(
    by_command, config_file, runs
):
    expected = bits_of(by_command(*EPOCHS))
    assert bits_of(train(config_file, EPOCHS, runs=runs)) == expected
    torch.manual_seed(7)
    with torch.no_grad():
        again = train(str(config_file), {"train.epochs": 3}, runs=str(runs))
    assert bits_of(again) == expected
    made = []
    thread = threading.Thread(target=lambda: made.append(train(config_file, EPOCHS, runs=runs)))
    thread.start()
    thread.join()
    assert bits_of(made[0]) == expected
    assert len(runs_in(runs / "small")) == 3


def test_a_run_tells_its_result_its_epochs_and_gives_its_model(config_file, runs, notes):
    run = train(config_file, EPOCHS, runs=runs)
    assert run == Run(run.folder) and run.folder.parent == runs / "small"
    assert run.result == json.loads((run.folder / "result.json").read_text())
    assert run.result["status"] == "done" and run.result["epochs"] == 3
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    assert run.metrics == [line for line in lines if "train/loss_epoch" in line]
    assert [line["epoch"] for line in run.metrics] == [1, 2, 3]
    photos = sorted(notes.glob("*/*.jpg"))
    assert run.model(threads=1).predict(photos) == load(run.folder, threads=1).predict(photos)


@pytest.mark.parametrize(
    ("overrides", "typed"),
    [
        ({"train.epochs": 3, "seed": np.int64(4)}, ["train.epochs=3", "seed=4"]),
        ({"split.ratios": [2, 1, 1], "log.show": []}, ["split.ratios=[2,1,1]", "log.show=[]"]),
        ({"optimizer.lr": 1e-05, "optimizer.nesterov": True},
         ["optimizer.lr=0.00001", "optimizer.nesterov=true"]),
        ({"dataset.root": Path("a b"), "name": "123"}, ["dataset.root=a b", "name='123'"]),
        ({"train.clip_grad_norm": None, "transforms.train.1": {"name": "RandomCrop", "size": 32}},
         ["train.clip_grad_norm=null", "transforms.train.1={name: RandomCrop, size: 32}"]),
        ({"split.ratios": np.array([2, 1, 1]), "seed": torch.tensor(4)},
         ["split.ratios=[2,1,1]", "seed=4"]),
        ("seed=4", ["seed=4"]),
        (("seed=4", "train.epochs=3"), ["seed=4", "train.epochs=3"]),
    ],
)  # fmt: skip
def test_overrides_in_python_are_those_of_the_command_line(overrides, typed, config_file):
    from trainer.config import load_config

    given = yaml_trainer.training._as_typed(overrides)
    assert load_config(config_file, given) == load_config(config_file, typed)


def test_a_value_that_no_yaml_file_can_hold_is_refused(config_file):
    with pytest.raises(TrainerError, match=r"overrides: .*object.* cannot be written"):
        train(config_file, {"seed": object()})
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(TrainerError, match=r"overrides: Circular reference"):
        train(config_file, {"split.ratios": endless})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"file": 3}, "file: 3; expected a path"),
        ({"file": b"a.yaml"}, "file: b'a.yaml'; expected a path"),
        ({"file": ""}, "file: ''; expected a path"),
        ({"file": "a.yaml", "runs": 3}, "runs: 3; expected a path"),
        ({"resume": 3}, "resume: 3; expected a path"),
        (
            {"file": "a.yaml", "overrides": None},
            r'overrides: None; expected such as \["train.epochs',
        ),
        ({"file": "a.yaml", "overrides": 3}, "overrides: 3; expected such as"),
    ],
)
def test_an_argument_of_another_kind_is_told_by_its_name(given, message):
    with pytest.raises(TrainerError, match=message):
        train(**given)


def test_faults_are_told_in_the_commands_words_and_without_torch(start, config_file, runs, capfd):
    assert start("train.epoch=3", "model.name=LeNett") == 2
    told = capfd.readouterr().err.strip()
    with pytest.raises(TrainerError) as caught:
        train(config_file, ["train.epoch=3", "model.name=LeNett"], runs=runs)
    assert str(caught.value) == told and caught.value.exit_code == 2
    assert len(caught.value.__cause__.faults) == 2  # type: ignore[union-attr]
    assert not isinstance(caught.value, InputError) and not runs.exists()
    code = (
        "import sys; from yaml_trainer import train, TrainerError\n"
        f"try: train({str(config_file)!r}, ['train.epoch=3'])\n"
        "except TrainerError as error: print(error.exit_code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2 False\n", done.stderr


def test_each_kind_of_error_has_the_commands_message_and_exit_code(
    start, config_file, runs, tmp_path, capfd
):
    for words in (["dataset.root=nowhere"], ["optimizer.lr=1e30"], ["optimizer.foo=1"]):
        code = start(*words)
        told = capfd.readouterr().err.strip()
        with pytest.raises(TrainerError) as caught:
            train(config_file, words, runs=runs)
        assert caught.value.exit_code == code > 0
        stamp = r"\d{8}-\d{6}-[0-9a-f]{4}"
        assert re.sub(stamp, "", told).endswith(re.sub(stamp, "", str(caught.value)))
    with pytest.raises(TrainerError, match=r"nowhere.yaml: cannot be read"):
        train("nowhere.yaml")
    with pytest.raises(TrainerError, match="name a file"):
        train()
    with pytest.raises(TrainerError, match="nowhere does not exist"):
        train(resume="nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainerError, match="no run folder can be made there") as caught:
        train(config_file, runs=tmp_path / "file")
    assert caught.value.exit_code == 5


def test_one_of_several_processes_is_refused(config_file, monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainerError, match=r"in one process; for several: torchrun"):
        train(config_file)


# --- stopping -------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Send signals when the run evaluates its first epoch."""

    def ask(*numbers):
        left = list(numbers)

        def asking(*arguments):
            while left:
                os.kill(os.getpid(), left.pop())
            return evaluate(*arguments)

        monkeypatch.setattr(trainer.loop.epochs, "evaluate", asking)

    return ask


def handlers():
    return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_ctrl_c_saves_says_how_to_go_on_and_what_goes_on_ends_with_the_same_bits(
    by_command, config_file, runs, asked
):
    expected, before = bits_of(by_command(*EPOCHS)), handlers()
    state = state_of_the_process()
    asked(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(config_file, EPOCHS, runs=runs)
    assert handlers() == before and state_of_the_process() == state
    message = str(caught.value)
    (run,) = runs_in(runs / "small")
    assert message.startswith("stopped by SIGINT\nsaved after step ")
    assert f"python -m trainer.train --resume {run}" in message
    assert f"train(resume={str(run)!r})" in message
    assert Run(run).result["status"] == "stopped"
    assert train(resume=run) == Run(run)
    assert bits_of(run) == expected
    assert bits_of(train(resume=Run(run))) == expected  # it is done


def test_a_second_ctrl_c_stops_at_once_and_the_callers_program_goes_on(config_file, runs, asked):
    before = handlers()
    asked(signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(config_file, EPOCHS, runs=runs)
    assert "saved" not in str(caught.value) and handlers() == before
    assert train(config_file, EPOCHS, runs=runs).result["status"] == "done"


def test_sigterm_saves_and_then_reaches_the_callers_own_handler(config_file, runs, asked):
    reached = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: reached.append(number))
    try:
        asked(signal.SIGTERM)
        with pytest.raises(TrainerError, match="saved after step") as caught:
            train(config_file, EPOCHS, runs=runs)
        assert reached == [signal.SIGTERM] and caught.value.exit_code == 75
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_before_training_begins_leaves_nothing(config_file, runs, monkeypatch):
    def ask(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)

    before = handlers()
    monkeypatch.setattr("trainer.loop.fit.prepare", ask)
    with pytest.raises(KeyboardInterrupt, match="before training began, nothing was written"):
        train(config_file, runs=runs)
    assert handlers() == before and not runs.exists()


def test_a_budget_that_is_used_up_has_the_commands_exit_code(config_file, runs, monkeypatch):
    monkeypatch.setattr("trainer.process.stop.StopRequest.elapsed", lambda self: 0.0)
    clock = iter(range(0, 10**9, 600))
    monkeypatch.setattr("trainer.process.stop.time.monotonic", lambda: next(clock))
    with pytest.raises(TrainerError, match="train.budget") as caught:
        train(config_file, [*EPOCHS, "train.budget=30m"], runs=runs)
    assert caught.value.exit_code == 75


def test_a_run_changes_nothing_of_the_callers_process(config_file, runs):
    torch.set_num_threads(2)
    with torch.no_grad():
        state, before = state_of_the_process(), handlers()
        train(config_file, ["train.threads=1", "loader.workers=1"], runs=runs)
        assert state_of_the_process() == state and handlers() == before


# --- types ----------------------------------------------------------------------------------------

SCRIPT = """
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from yaml_trainer import Answer, InputError, Model, Run, TrainerError, load, train


def label_of(model: Model, path: Path) -> str:
    answers: list[Answer] = model.predict([path, str(path), path.read_bytes()])
    model.predict(Image.open(path), tta="flip", sets=0.9, reject="0.95", score="energy")
    model.predict(np.zeros((8, 8, 3), np.uint8), batch_size=8, calibrated=False)
    model.predict(torch.zeros(3, 8, 8, dtype=torch.uint8))
    likely: float = answers[0].probabilities[answers[0].label]
    may_be: tuple[str, ...] | None = answers[0].label_set
    return f"{answers[0].label} {likely} {may_be}"


def main() -> None:
    try:
        run: Run = train("a.yaml", ["train.epochs=3"], runs="runs")
        again = train("a.yaml", {"train.epochs": 3, "seed": 1}, resume=run)
        print(label_of(load(run.folder, device="cpu", threads=1), Path("a.jpg")))
        print(again.result["test"], again.metrics[0], again.model().classes)
    except InputError as error:
        print(error.faults, error.answers)
    except TrainerError as error:
        print(error.exit_code)
"""
WRONG = 'from yaml_trainer import load\n\nload(3).predict("a.jpg", sets=[])[0].lable\n'


@pytest.mark.slow
def test_a_users_script_is_checked_by_mypy_strictly(tmp_path):
    pytest.importorskip("mypy", reason='needs pip install -e ".[dev]"')
    (tmp_path / "good.py").write_text(SCRIPT)
    (tmp_path / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull]
    command += ["--cache-dir", str(tmp_path / "cache"), "--follow-imports", "silent"]
    paths = {**os.environ, "MYPYPATH": os.getcwd()}

    def told(name):
        words = [*command, str(tmp_path / name)]
        return subprocess.run(words, capture_output=True, text=True, env=paths).stdout

    assert told("good.py").startswith("Success"), told("good.py")
    kinds = re.findall(r"wrong.py:3: .*\[([\w-]+)\]", told("wrong.py"))
    assert sorted(kinds) == ["arg-type", "arg-type", "attr-defined"]


# --- the page -------------------------------------------------------------------------------------


def test_each_example_of_the_page_runs_and_the_shown_message_is_the_real_one(
    config_file, notes, tmp_path, monkeypatch, capsys
):
    page = Path("docs/python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(notes / "100", "photos")
    shutil.copy(notes / "1" / "000.jpg", "photo.jpg")
    Path("small.yaml").write_text(config_file.read_text() + "split: {ratios: [3, 5, 2]}\n")
    names: dict[str, Any] = {}
    for language, block in blocks:
        if language == "python":
            exec(block, names)
    assert names["run"].result["epochs"] == 4
    printed = capsys.readouterr().out
    (shown,) = (block for language, block in blocks if not language)
    assert re.sub("values .*? to .*?;", "", shown) in re.sub("values .*? to .*?;", "", printed)
    labels = re.findall(r"^(1|100) (0\.\d+)$", printed, re.MULTILINE)
    assert len(labels) >= 5 and len({round(float(chance), 5) for _, chance in labels[:5]}) == 1
