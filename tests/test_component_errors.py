"""What a model, loss, transform, dataset or metric raises is told as theirs, with file and line."""

import importlib
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets import DATASETS
from models import MODELS
from trainer import data, evaluate, explain, export, find_lr, predict
from trainer.components import LOSSES, METRICS
from trainer.config.components import TABLES
from trainer.process.child import what_ends
from trainer.process.errors import (
    CHECKOUT,
    Stopped,
    component_place,
    in_plain_words,
    is_machinery,
)
from trainer.run.disk import read_json
from trainer.train import main
from transforms import RANDOM, TRANSFORMS

# Each component raises ERROR at the place that FAILS names.
THEIRS = """
import os
import torch
from torch import nn
import torch.nn.functional as F
from datasets.memory import ImagesInMemory

FAILS, ERROR = "", None

class Unspeakable(Exception):
    def __str__(self):
        raise TypeError

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, gradient):
        if FAILS == "backward": raise ERROR
        return gradient

class Tiny(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, ends_in: str = "") -> None:
        super().__init__()
        if FAILS == "model": raise ERROR
        self.layer, self.ends_in = nn.Conv2d(in_channels, num_classes, 4), ends_in
    def forward(self, x):
        if FAILS == "evaluation" and not self.training: raise ERROR
        if FAILS == "training" and self.training: raise ERROR
        if FAILS == "in_place":
            x = self.layer(x).exp()
            return x.add_(1).mean((2, 3))
        layout = torch.channels_last if self.ends_in == "channels_last" else torch.contiguous_format
        in_layout = self.ends_in and x.is_contiguous(memory_format=layout)
        if in_layout or (FAILS == "SIGFPE" and torch.is_autocast_enabled("cpu")):
            os.kill(os.getpid(), getattr(__import__("signal"), FAILS))
        return Backward.apply(self.layer(x).mean((2, 3)))

class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
    def forward(self, logits, labels):
        if FAILS == "loss" and logits.requires_grad: raise ERROR
        if FAILS == "loss at first": raise ERROR
        return F.cross_entropy(logits, labels)

class Darker:
    def __call__(self, images):
        if FAILS == "transform": raise ERROR
        if FAILS == "once" and torch.rand(()) < 0.01: raise ERROR
        return images // 2

class Noise(ImagesInMemory):
    def __init__(self, at_hand: bool = True) -> None:
        if FAILS == "dataset": raise ERROR
        images = torch.arange(40 * 3 * 8 * 8).mul(7).fmod(251).byte().view(40, 3, 8, 8)
        super().__init__(images, [n % 2 for n in range(40)], 30, ["a", "b"])
        if not at_hand:
            self.kept, self.images = self.images, None
    def image(self, index):
        if FAILS == "image" and index == 9: raise ERROR
        return self.images[index] if self.images is not None else self.kept[index]
    def digests(self, indices):
        return [str(index) for index in indices]

def measure(probabilities, labels) -> float:
    if FAILS == "metric" and len(labels) > 4: raise ERROR
    return 0.5
"""
LINE = {
    match[1]: number
    for number, line in enumerate(THEIRS.splitlines(), 1)
    if (match := re.search(r'FAILS == "([\w ]+)".*raise', line))
}
CONFIG = """
dataset: Noise
split: {ratios: [8, 2, 0]}
transforms: {train: [Darker], eval: []}
loader: {batch_size: 8, workers: 0}
model: {name: Tiny}
loss: Loss
optimizer: {name: SGD, lr: 0.01}
metrics: [accuracy, measure]
train: {epochs: 1, device: cpu, monitor: val/loss}
log: {show: []}
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Their file, imported, with its components in the tables; and a YAML that names all."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    (tmp_path / "own.yaml").write_text(CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    tables = {"Noise": DATASETS, "Darker": RANDOM, "Tiny": MODELS, "Loss": LOSSES}
    for name, table in (*tables.items(), ("measure", METRICS)):
        monkeypatch.setitem(table, name, f"theirs:{name}")
    monkeypatch.setitem(TRANSFORMS, "Darker", "theirs:Darker")
    monkeypatch.setitem(TABLES["model"], "Tiny", "theirs:Tiny")
    return importlib.import_module("theirs")


@pytest.fixture
def command(tmp_path, capfd):
    """Runs the YAML; returns the exit code and what it printed on stderr."""

    def run(*words, entry=main):
        code = entry(["--config", str(tmp_path / "own.yaml"), *words, "--runs", str(tmp_path)])
        return code, capfd.readouterr().err

    return run


@pytest.fixture
def run(theirs, command, tmp_path):
    """A finished run, and an image file."""
    from PIL import Image

    assert command()[0] == 0
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    (folder,) = (tmp_path / "own").iterdir()
    return folder


def is_told(told, fails, kind):
    assert "Traceback" not in told and "bug of the trainer" not in told
    where = rf"\S*theirs\.py:{LINE[fails]}, in "
    return re.search(where, told) and kind in told


@pytest.mark.parametrize(
    ("fails", "error", "words"),
    [
        ("model", KeyError("x"), []),
        ("evaluation", KeyError("x"), []),
        ("evaluation", AssertionError(), ["--dry-run"]),
        ("training", ZeroDivisionError("division by zero"), ["--dry-run"]),
        ("training", ValueError("no"), []),
        ("training", SystemExit(3), []),
        ("training", IndexError("no"), ["train.accumulate=2"]),
        ("backward", KeyError("x"), []),
        ("loss at first", KeyError("x"), []),
        ("loss", RuntimeError("no"), []),
        ("transform", KeyError("x"), []),
        ("once", ValueError("no"), ["train.epochs=9"]),
        ("once", KeyError("x"), ["train.epochs=9", "loader.workers=1"]),
        ("dataset", AttributeError("no"), []),
        ("image", IndexError("no"), ["dataset.at_hand=false"]),
        ("image", ValueError("no"), ["dataset.at_hand=false"]),
        ("image", FileNotFoundError(2, "absent"), ["dataset.at_hand=false", "--dry-run"]),
        ("metric", KeyError("x"), []),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value),
)
def test_what_a_component_raises_is_told_with_its_line_and_exit_code_2(
    theirs, command, fails, error, words
):
    theirs.FAILS, theirs.ERROR = fails, error
    code, told = command(*words)
    assert (code, bool(is_told(told, fails, type(error).__name__))) == (2, True), told


def test_an_error_that_cannot_be_written_as_text_is_told_by_its_type(theirs, command):
    theirs.FAILS, theirs.ERROR = "training", theirs.Unspeakable()
    code, told = command()
    assert code == 2 and is_told(told, "training", "Unspeakable")


def test_a_wrong_image_size_is_told_with_what_to_type(config_file, tmp_path, capfd):
    vit = "model={name: timm/vit_tiny_patch16_224, depth: 1}"  # the SMALL images are 32 x 32
    command = ["--config", str(config_file), "--runs", str(tmp_path / "runs"), vit]
    assert main([*command, "--dry-run"]) == 2
    told = capfd.readouterr().err
    assert "cannot take 3-channel images of 32 x 32" in told and "Traceback" not in told
    assert "{name: Resize, size: [224, 224]} in transforms.train and transforms.eval" in told
    assert "model.img_size=32 makes the model for such images" in told
    assert main([*command, "model.img_size=32", "train.epochs=1", "log.show=[]"]) == 0


def test_find_lr_tells_it_too(theirs, command):
    theirs.FAILS, theirs.ERROR = "training", KeyError("x")
    code, told = command(entry=find_lr.main)
    assert code == 2 and is_told(told, "training", "KeyError")


def test_the_compiler_is_not_blamed_for_what_the_model_raises(theirs, command, monkeypatch):
    monkeypatch.setattr("trainer.build.compile._compiled", lambda network, *_: network)
    theirs.FAILS, theirs.ERROR = "training", KeyError("x")
    code, told = command("train.compile=true")
    assert code == 2 and is_told(told, "training", "KeyError") and "train.compile" not in told


def test_the_data_report_tells_what_the_dataset_raises(theirs, command):
    theirs.FAILS, theirs.ERROR = "image", KeyError("x")
    code, told = command("dataset.at_hand=false", entry=data.main)
    assert code == 2 and is_told(told, "image", "KeyError")


def test_a_backward_pass_that_the_model_makes_impossible_is_the_models(theirs, command):
    theirs.FAILS = "in_place"
    code, told = command()
    assert code == 2 and "modified by an inplace operation" in told
    assert "Traceback" not in told and "correct it there" in told


def test_memory_that_runs_out_in_a_component_keeps_its_exit_code(theirs, command):
    for fails in ("model", "evaluation", "training", "loss at first"):
        theirs.FAILS, theirs.ERROR = fails, MemoryError()
        code, told = command()
        assert code == 7 and "out of memory" in told


def test_ctrl_c_in_a_component_stops_the_run(theirs, command):
    theirs.FAILS, theirs.ERROR = "training", KeyboardInterrupt()
    assert command()[0] == 130


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (evaluate.main, []),
        (predict.main, ["image.png"]),
        (explain.main, ["image.png"]),
        (export.main, ["--format", "pt2"]),
    ],
    ids=["evaluate", "predict", "explain", "export"],
)
def test_commands_that_use_a_run_tell_what_its_model_raises(
    theirs, run, tmp_path, capfd, entry, words
):
    theirs.FAILS, theirs.ERROR = "evaluation", ValueError("no")
    arguments = [str(tmp_path / word) if word.endswith(".png") else word for word in words]
    assert entry([str(run), *arguments]) == 2
    assert is_told(capfd.readouterr().err, "evaluation", "ValueError: no")


def test_a_run_that_ended_so_says_why_and_can_go_on(theirs, command, tmp_path):
    theirs.FAILS, theirs.ERROR = "loss", KeyError("x")
    _, told = command()
    (folder,) = (tmp_path / "own").iterdir()
    result = read_json(folder / "result.json")
    assert result["status"] == "failed" and f"theirs.py:{LINE['loss']}" in result["reason"]
    assert "--resume" in told
    theirs.FAILS = ""
    assert main(["--resume", str(folder)]) == 0


def test_the_trainers_own_errors_stay_bugs():
    with pytest.raises(AttributeError) as raised:
        read_json(None)  # type: ignore[arg-type]
    assert in_plain_words(raised.value) is raised.value


def test_machinery_is_what_no_table_names(monkeypatch):
    files = [Path("datasets/walk.py"), Path("datasets/folders.py"), Path("models/probe.py")]
    files += [
        Path("transforms/pipeline.py"),
        Path("models/external.py"),
        Path("models/__init__.py"),
    ]
    for file in files:
        assert file.exists() and is_machinery(file.as_posix())
    for table in (DATASETS, MODELS, TRANSFORMS):
        for line in table.values():
            assert not is_machinery(line.partition(":")[0].replace(".", "/") + ".py")
    assert not is_machinery("trainer/components/losses.py")
    assert is_machinery("models/mine.py")
    monkeypatch.setitem(MODELS, "Mine", "models.mine:Mine")
    assert not is_machinery("models/mine.py")


COMPONENT = "datasets/image_folder.py"


@pytest.mark.parametrize(
    ("files", "error", "place"),
    [
        ([COMPONENT], KeyError("x"), f"{COMPONENT}:2"),
        ([COMPONENT, "datasets/walk.py"], KeyError("x"), ""),
        ([COMPONENT, "datasets/walk.py"], ValueError("refused"), f"{COMPONENT}:2"),
        (["datasets/walk.py", COMPONENT], KeyError("x"), f"{COMPONENT}:2"),
        ([COMPONENT, "trainer/run/disk.py"], KeyError("x"), ""),
        ([COMPONENT, "datasets/walk.py", "/site-packages/a.py"], KeyError("x"), f"{COMPONENT}:2"),
    ],
)
def test_an_error_of_machinery_is_a_bug_unless_it_refuses(files, error, place):
    """Each file calls the next; the last one raises."""

    names: dict[str, Any] = {"error": error}
    for file in reversed(files):
        does = "names['call']()" if "call" in names else "raise error"
        code = compile(f"def call():\n    {does}", str(CHECKOUT / file), "exec")
        exec(code, names := {"names": names, "error": error})
    call = names["call"]
    with pytest.raises(type(error)) as raised:
        call()
    assert component_place(raised.value).partition(",")[0] == place


def test_a_bug_below_a_dataset_is_the_trainers(config_file, tmp_path, monkeypatch, capfd):
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    monkeypatch.setattr("datasets.walk.defaultdict", None)
    words = [f"dataset={{name: ImageFolder, root: {tmp_path / 'pictures'}}}", "--dry-run"]
    assert main(["--config", str(config_file), *words]) == 70
    assert "this is a bug of the trainer" in capfd.readouterr().err


# --- a model whose step ends the process


@pytest.mark.parametrize("number", ["SIGSEGV", "SIGABRT"])
def test_a_step_that_ends_the_process_with_channels_last_is_done_without(
    theirs, command, tmp_path, capfd, number
):
    theirs.FAILS = number
    code = main(
        ["--config", str(tmp_path / "own.yaml"), "model.ends_in=channels_last"]
        + ["--runs", str(tmp_path)]
    )
    out = capfd.readouterr().out
    assert code == 0
    assert f"note    a step of Tiny ends the process ({number}) with channels last" in out
    (folder,) = (tmp_path / "own").iterdir()
    assert read_json(folder / "data_path.json")["channels_last"] is False


def test_a_resumed_run_keeps_the_layout_that_it_began_with(theirs, command, tmp_path):
    theirs.FAILS = "SIGSEGV"
    assert command("model.ends_in=channels_last")[0] == 0
    (folder,) = (tmp_path / "own").iterdir()
    theirs.FAILS = "SIGCHLD"  # which ends nothing: channels last would now be chosen
    assert main(["--resume", str(folder), "train.epochs=2"]) == 0
    assert read_json(folder / "data_path.json")["channels_last"] is False
    assert "channels_last: auto" in (folder / "config.yaml").read_text()


def test_a_step_that_is_killed_is_told_as_memory_that_ran_out(theirs, command, tmp_path):
    theirs.FAILS = "SIGKILL"
    for words in (["channels_last"], ["channels_first", "train.channels_last=false"]):
        code, told = command(f"model.ends_in={words[0]}", *words[1:])
        assert code == 7 and "out of memory: the system killed a first step of Tiny" in told
        assert "loader.batch_size" in told and "PyTorch" not in told
    assert not (tmp_path / "own").exists()


def test_a_step_that_takes_long_is_told(monkeypatch, capfd):
    assert what_ends(int) == "" and capfd.readouterr().out == ""
    monkeypatch.setattr("trainer.process.child.TELL_AFTER", 0.05)
    assert what_ends(lambda: time.sleep(0.5)) == ""
    assert capfd.readouterr().out == (
        "note    still waiting for a step that is tried first, for 300 s at most\n"
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["model.ends_in=channels_last", "train.channels_last=true"],
            r"train\.channels_last: a step of Tiny ends .*SIGSEGV\) in this layout; write false",
        ),
        (
            ["model.ends_in=channels_first", "train.channels_last=false"],
            "model: a step of Tiny ends the process .SIGSEGV.: a fault of PyTorch, or of the",
        ),
        (["train.precision=bf16"], "model: a step of Tiny ends the process .SIGFPE."),
    ],
)
def test_a_step_that_ends_the_process_in_the_layout_asked_for_is_refused(
    theirs, command, words, expected
):
    theirs.FAILS = "SIGFPE" if "bf16" in words[0] else "SIGSEGV"
    code, told = command(*words)
    assert code == 2 and re.search(expected, told), told


def test_the_trial_step_changes_neither_weights_nor_random_numbers(theirs, tmp_path):
    from trainer.build.rehearse import what_ends_a_step
    from trainer.config import load_config

    class Images:
        extremes = torch.arange(2)

        def sample(self, rows):
            return torch.rand(2, 3, 8, 8), torch.tensor([0, 1])

    model, state = theirs.Tiny(2, 3), torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = load_config(tmp_path / "own.yaml")
    subsets: Any = [Images()]
    assert what_ends_a_step(config, model, theirs.Loss(), subsets, torch.device("cpu"), False) == ""
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_stop_ends_the_trial_step_too(tmp_path):
    file = tmp_path / "pid"

    def stop(*_):
        raise Stopped("stopped by SIGUSR1")

    def step():
        file.write_text(str(os.getpid()))
        time.sleep(0.3)  # os.fork calls Python's functions in the parent, which ignore exceptions
        os.kill(os.getppid(), signal.SIGUSR1)
        time.sleep(60)

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stopped):
            what_ends(step)
    finally:
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)
