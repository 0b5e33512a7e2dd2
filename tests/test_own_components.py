"""Components of a user's own file: named, checked, trained, kept in the run, and run by consent."""

import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

import trainer.config.config
from tests.conftest import exit_code_of, fork
from trainer.build.prepare import prepare
from trainer.build.trained import load_trained
from trainer.build.trial import check_components
from trainer.combine import main as combine
from trainer.components.own import MODULE, Rerun
from trainer.config import load_config
from trainer.config.components import published
from trainer.evaluate import main as evaluate
from trainer.explain import main as explain
from trainer.export import main as export
from trainer.input.data import build_pipelines
from trainer.input.store import description
from trainer.predict import main as predict
from trainer.process.errors import ConfigError
from trainer.run.disk import sha256_of
from trainer.run.folder import runs_in
from trainer.runs import main as runs
from trainer.schema import main as schema
from trainer.sweep import main as sweep
from trainer.train import main

OWN = '''
"""A file of a user's own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Small(nn.Module):
    """One convolution.

    width: The number of its maps.
    """

    def __init__(self, num_classes: int, in_channels: int, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(images)).mean((2, 3)))


class Half:
    def __call__(self, images: Tensor) -> Tensor:
        return images // 2 if images.dtype == torch.uint8 else images / 2


class RandomNegative:
    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, images: Tensor) -> Tensor:
        if torch.rand(()) >= self.p:
            return images
        return (1.0 if images.is_floating_point() else 255) - images


class PowerLoss(nn.Module):
    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (F.cross_entropy(logits, labels, reduction="none") ** self.power).mean()


def share_of(probabilities: Tensor, labels: Tensor, label: int = 0) -> float:
    return (probabilities.argmax(1) == label).float().mean().item()


MODELS = [Small]
FIXED_TRANSFORMS = [Half]
RANDOM_TRANSFORMS = [RandomNegative]
LOSSES = [PowerLoss]
METRICS = [share_of]
'''
YAML = """
components: mine.py
dataset: {{name: RMB, root: {root}}}
transforms:
  train:
    - {{name: Resize, size: [32, 32]}}
    - Half
    - {{name: RandomNegative, p: 0.3}}
    - {{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
  eval:
    - {{name: Resize, size: [32, 32]}}
    - Half
    - {{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
loader: {{batch_size: 8, workers: 0}}
model: {{name: Small, width: 4}}
loss: {{name: PowerLoss, power: 1.5}}
optimizer: {{name: SGD, lr: 0.01, momentum: 0.9}}
metrics: [accuracy, {{name: share_of, label: 1}}]
train: {{epochs: 2, device: cpu}}
log: {{every: 2st, images: 0}}
"""


@pytest.fixture
def mine(tmp_path, notes):
    """A YAML with own components beside it."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.py").write_text(OWN)
    (folder / "own.yaml").write_text(YAML.format(root=notes))
    return folder / "own.yaml"


@pytest.fixture
def own_run(train, mine):
    """A run of it."""
    return train(file=mine)


def change(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def faults_of(mine, *overrides):
    """The faults that a command would print."""
    try:
        faults = check_components(load_config(mine, overrides, by_user=True))
    except ConfigError as error:
        faults = error.faults
    return [re.sub(r"^/\S*/", "", str(fault)) for fault in faults]


def test_a_wrong_name_is_told_in_half_a_second_with_a_suggestion_over_both_and_without_torch(mine):
    program = (
        "import sys, time; from trainer.config import load_config\n"
        "from trainer.process.errors import ConfigError\n"
        "begun = time.perf_counter()\n"
        "try: load_config(sys.argv[1], sys.argv[2:])\n"
        "except ConfigError as error: print(error)\n"
        "assert 'torch' not in sys.modules\n"
        "assert time.perf_counter() - begun < 0.5\n"
    )
    names = ["model=Smal", "transforms.train.2=RandomNegativ", "loss=PowrLoss", "metrics=[acuracy]"]
    words = [sys.executable, "-c", program, str(mine), *names]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for meant in ("Small", "RandomNegative", "PowerLoss", "accuracy"):
        assert f"did you mean '{meant}'?" in said
    assert "there are Small, AlexNet" in said


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("class Half:", "class Half", "mine.py:24:11: is no Python: expected ':'"),
        ("[Small]", "[Smal]", "MODELS lists 'Smal', which this file does not define"),
        ("[Small]", "[Small, Small]", "Small is listed twice"),
        ("[Small]", "list([Small])", "expected MODELS = [NAME, ...]"),
        ("MODELS =", "MODEL =", "MODEL is none of the lists that are read; did you mean MODELS?"),
        ("FIXED_TR", "TR", "did you mean FIXED_TRANSFORMS (the same image always gives the same)"),
        ("Small", "LeNet", "mine.py:9:1: LeNet is a model of the project"),
        ("share_of", "accuracy", "accuracy is a metric of the project"),
        ("share_of", "loss", "loss is a metric of the project"),
        ("import torch\n", "import torch\nimport beside\n", "mine.py:5:1: imports 'beside', which"),
        (OWN, "x = 1", "mine.py: lists no component; expected such as MODELS = [MyNet]"),
        (OWN, "(" * 5000, "is no Python"),
        (OWN, "x = " + "-" * 100_000 + "1", "mine.py: is no Python: too deeply nested"),
        ("MODELS = [Small]", "MODELS = []\nMODELS += [Small]", "mine.py:53:1: MODELS is read with"),
        ("MODELS = [Small]", "MODELS = []\nMODELS.append(Small)", "mine.py:53:1: MODELS is read"),
        ("MODELS = [Small]", "if True:\n    MODELS = [Small]", "mine.py:53:1: MODELS is read with"),
        ("MODELS = [Small]", "(MODELS := [Small])", "write MODELS = [NAME, ...] once, unindented"),
        ("MODELS = [Small]", "MODELS, X = [Small], []", "mine.py:52:1: MODELS is read without"),
    ],
)
def test_what_the_file_lists_wrongly_is_told_with_its_line_before_torch(mine, old, new, wanted):
    (mine.parent / "beside.py").touch()
    change(mine.parent / "mine.py", old, new)
    with pytest.raises(ConfigError) as error:
        load_config(mine)
    assert any(wanted in re.sub(r"^/\S*/", "", str(fault)) for fault in error.value.faults)


def test_a_class_may_be_defined_in_a_branch_and_using_a_list_changes_nothing(mine):
    file = mine.parent / "mine.py"
    half = OWN[OWN.index("class Half:") : OWN.index("class RandomNegative")]
    missing = "try:\n    import nowhere_at_all\nexcept ImportError:\n"
    change(file, half, missing + textwrap.indent(half, "    ").rstrip() + "\n\n\n")
    change(file, "METRICS =", "def more():\n    MODELS = [1]\n    MODELS.append(2)\n\nMETRICS =")
    more = "__all__ = [one.__name__ for one in MODELS]\nx = " + " + ".join(["1"] * 900)
    file.write_text(f"{file.read_text()}{more}\n")
    assert faults_of(mine) == []


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("components=no.py", "no.py is no file; expected a Python file; its place is relative to"),
        ("components=.", "is no file"),
        ("components=3", "components: expected text"),
        ("components={file: mine.py}", "'sha256' is missing"),
        ("components={file: mine.py, sha256: abc}", "components.sha256: "),
    ],
)
def test_what_the_key_names_wrongly_is_one_fault_however_many_names_are_unknown_then(
    mine, given, wanted
):
    (fault,) = faults_of(mine, given)
    assert wanted in fault


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("import torch\n", "import torch\nimport nowhere_at_all\n", ":5:1: cannot be imported: "),
        ("MODELS =", "1 / 0\nMODELS =", "cannot be imported: ZeroDivisionError: division by zero"),
        ("MODELS =", "raise SystemExit\nMODELS =", "cannot be imported: SystemExit"),
        ("MODELS =", "class E(BaseException): ...\nraise E\nMODELS =", "cannot be imported: E"),
        ("MODELS =", "class E(Exception):\n    def __str__(self): return 1 / 0\nraise E\nMODELS =",
         ":54:1: cannot be imported: E"),
        ("class Small(nn.Module)", "class Small(dict)", "it must inherit from torch.nn.Module"),
        ("def forward(self, images", "def go(self, images", "Small has no forward"),
        ("def __call__(self, images: Tensor) -> Tensor:\n        if", "def go(self, images):\n   "
         "     if", "RandomNegative is no transform: it has no __call__"),
        ("p: float = 0.5", "**more: float", "RandomNegative takes **more; name each argument"),
        ("MODELS = [Small]", "MODELS = [Small]\nSmall = 3", "Small is no class or function, but"),
        ("METRICS = [share_of]", "METRICS = [Tensor]", "Tensor is no function"),
        ("class PowerLoss(nn.Module)", "class PowerLoss(dict)", "PowerLoss is no loss"),
        ("else images / 2", "else images / 2\n\n    def __call__(self, images):\n        "
         "return images + torch.rand(())", "Half cannot be used: it gives the same images"),
        ("else images / 2", "else images / 2\n\n    def __call__(self, images):\n        "
         "return images.flip(0)", "something else than in a stack"),
        (".float().mean().item()", ".float().mean()", "share_of cannot be used: it gives tensor"),
        (".float().mean().item()", ".float().mean()", "expected a float; write .item()"),
        ("images // 2 if", "images[None, None] if", "it gives 5 dimensions"),
        ("images // 2 if", "images.double() if", "Half cannot be used: it gives torch.float64"),
        ("images // 2 if", "images.numpy() if", "it gives ndarray; expected a torch.Tensor"),
        ("images // 2 if", "images.movedim(-3, -1) if", "it gives images (H, W, C)"),
    ],
)  # fmt: skip
def test_what_is_no_such_component_is_told_with_its_line_when_it_is_run(mine, old, new, wanted):
    change(mine.parent / "mine.py", old, new)
    faults = faults_of(mine, *["metrics=[accuracy]"] * ("METRICS" in old))
    assert any(wanted in fault and re.match(r"\w+\.(py|yaml):\d+", fault) for fault in faults)


DRAWS = "def __call__(self, images: Tensor) -> Tensor:\n        if torch.rand(()) >= self.p:"
ELSEWHERE = "draws from another generator than torch's"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("if np.random.rand() >= self.p:", ELSEWHERE),
        ("if random.random() >= self.p:", ELSEWHERE),
        ("if torch.rand((), generator=MINE) >= self.p:", ELSEWHERE),
        ("if torch.rand(()) < self.p:\n            return images + np.uint8(random.random() * 99)\n"
         "        if False:", ELSEWHERE),
        ("if torch.rand(()) < self.p:\n            return images * np.random.rand(1)\n"
         "        if False:", "it gives torch.float64 for an image of torch.uint8"),
        ("if torch.rand(()) >= self.p:", None),
        ("assert images.shape[-1] == 224\n        if torch.rand(()) >= self.p:", None),
        ("assert images.shape[-1] == 224\n        if random.random() >= self.p:", ELSEWHERE),
        ("assert images.shape[-1] == 17\n        if random.random() >= self.p:", None),  # untried
        ("if torch.rand(()) < 0.5:\n            return images / torch.zeros(())\n        if False:",
         None),  # NaN equals NaN
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["alone", "inside RandomApply"])
def test_an_own_random_transform_must_draw_from_torch_which_the_trial_leaves_as_it_was(
    mine, body, wanted, how
):
    more = "import random\nimport numpy as np\nimport torch\nMINE = torch.Generator()\n"
    change(mine.parent / "mine.py", "import torch\n", more)
    change(mine.parent / "mine.py", "if torch.rand(()) >= self.p:", body)
    if how != "alone":
        apply = "{name: RandomApply, transforms: [{name: RandomNegative, p: 0.3}]}"
        change(mine, "{name: RandomNegative, p: 0.3}", apply)
    before = torch.get_rng_state()
    faults = faults_of(mine)
    assert torch.equal(torch.get_rng_state(), before)
    if wanted is None:
        assert faults == []
    else:
        (fault,) = faults
        assert wanted in fault and fault.startswith("own.yaml:8:")


def test_after_normalize_an_own_transform_is_tried_with_floats(mine):
    """Noise of NumPy is float64: so is what becomes of an image to which it is added."""
    noise = "torch.from_numpy(np.full(images.shape, 0.1))"
    code = f"\nclass Noise:\n    def __call__(self, images):\n        return images + {noise}\n"
    change(mine.parent / "mine.py", "import torch\n", "import numpy as np\nimport torch\n")
    file = mine.parent / "mine.py"
    file.write_text(file.read_text().replace("\n\nMODELS", f"{code}\n\nMODELS"))
    change(file, "[Half]", "[Half, Noise]")
    normal = "    - {name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}\n"
    change(mine, f"{normal}loader", f"{normal}    - Noise\nloader")
    (fault,) = faults_of(mine)
    assert (
        "own.yaml:14:" in fault and "it gives torch.float64 for an image of torch.float32" in fault
    )
    change(file, noise, f"{noise}.float()")
    assert faults_of(mine) == []


def test_a_run_that_draws_elsewhere_can_still_be_used_but_not_trained(mine):
    file = mine.parent / "mine.py"
    change(file, "torch.rand(()) >= self.p", "__import__('random').random() >= self.p")
    config = load_config(mine, by_user=True)
    assert check_components(config, ranges=False) == [] != check_components(config)


def test_a_metric_may_give_a_number_of_numpy_which_is_recorded_as_a_float(train, mine):
    """``np.float32`` is no Python float, which JSON needs."""
    given = "(probabilities.argmax(1) == label).float().mean().numpy()[()]"
    change(mine.parent / "mine.py", given.replace("numpy()[()]", "item()"), given)
    run = train("train.epochs=1", file=mine)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [type(line["val/share_of"]) for line in lines if "val/share_of" in line] == [float]


@pytest.mark.parametrize("how", ["in no list", "without the list"])
def test_a_class_that_no_list_has_is_told_as_such(mine, how):
    file = mine.parent / "mine.py"
    net = "class Net(Small):\n    pass\n\n\nMODELS = [Small]"
    change(file, "MODELS = [Small]", net if how == "in no list" else net.replace("MODELS", "M"))
    (fault,) = faults_of(mine, "model=Net")
    assert (
        "unknown model 'Net': mine.py defines it, but lists it nowhere; add it to MODELS" in fault
    )
    assert "did you mean" not in fault
    faults = faults_of(mine, "transforms.train.1=Net")
    assert any("add it to FIXED_TRANSFORMS or RANDOM_TRANSFORMS there" in one for one in faults)


@pytest.mark.parametrize(
    ("default", "given", "wanted"),
    [
        ("4", "abc", "expected a number, got the text 'abc'"),
        ("4", "8", None),
        ("4.0", "abc", "expected a number, got the text 'abc'"),
        ("1", "1.5", None),  # an int may stand for a float
        ("'relu'", "3", "expected text"),
        ("True", "3", "expected true or false"),
        ("None", "3", None),
    ],
)
def test_an_argument_without_annotation_has_the_type_of_its_default(mine, default, given, wanted):
    file = mine.parent / "mine.py"
    change(file, "width: int = 4) -> None", f"width=4, more={default})")
    faults = faults_of(mine, f"model.more={given}")
    assert [wanted in fault for fault in faults] == [True] * (wanted is not None)


@pytest.mark.parametrize("loss", ["CrossEntropyLoss", "PowerLoss"])
def test_a_note_tells_of_a_softmax_at_an_own_models_end(train, mine, capsys, loss):
    """A loss of one's own may take what it likes."""
    head = "self.head(F.relu(self.conv(images)).mean((2, 3)))"
    change(mine.parent / "mine.py", head, f"{head}.softmax(1)")
    train("train.epochs=1", f"loss={loss}", file=mine)
    said = " ".join(capsys.readouterr().out.split())
    assert ("takes logits: end the model without softmax" in said) == (loss == "CrossEntropyLoss")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("model.widht=3", "unknown key 'widht'; did you mean 'width'?"),
        ("model.width=big", "expected a whole number, got the text 'big'"),
        ("model.num_classes=3", "'num_classes' is set by the trainer"),
        ("loss.weight=balanced", "PowerLoss takes no class weights"),
        ("transforms.eval.1=RandomNegative", "RandomNegative is random, but evaluation must"),
        ("train.monitor=val/share", "did you mean 'val/share_of'?"),
    ],
)
def test_arguments_of_own_components_are_checked_as_those_of_the_project(mine, given, wanted):
    (fault,) = faults_of(mine, given)
    assert wanted in fault


def test_a_yaml_without_the_key_knows_no_own_name_also_after_one_with_it(mine, config_file):
    assert not faults_of(mine)
    (fault, *_) = faults_of(config_file, "model=Small")
    assert "unknown model 'Small'" in fault
    assert "Small" not in json.dumps(published())


def test_a_copy_of_a_shipped_model_and_loss_under_own_names_trains_the_same_bits(train, tmp_path):
    text = Path("models/lenet.py").read_text().replace("LeNet", "MyLeNet")
    text += (
        "\n\nclass MyLoss(nn.CrossEntropyLoss):\n    def __init__(self) -> None:\n"
        "        super().__init__()\n\n\nMODELS = [MyLeNet]\nLOSSES = [MyLoss]\n"
    )
    (tmp_path / "copy.py").write_text(text)
    shipped = train()
    own = train("components=copy.py", "model=MyLeNet", "loss=MyLoss")
    assert sha256_of(own / "model.pt") == sha256_of(shipped / "model.pt")
    assert (own / "metrics.jsonl").read_bytes() == (shipped / "metrics.jsonl").read_bytes()


def test_every_kind_of_component_may_be_ones_own(train, mine):
    more = '''
from datasets.image_folder import ImageFolder
from torch.optim.lr_scheduler import LRScheduler
from trainer.components.averages import EMA

class Pictures(ImageFolder):
    """Pictures of class folders."""

class Descent(torch.optim.Optimizer):
    def __init__(self, params, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                weight -= group["lr"] * weight.grad

class Thirds(LRScheduler):
    def get_lr(self):
        return [lr / 3**self.last_epoch for lr in self.base_lrs]

class Mean(EMA):
    """An average."""

DATASETS, OPTIMIZERS, SCHEDULERS, AVERAGES = [Pictures], [Descent], [Thirds], [Mean]
'''.replace(
        "DATASETS, OPTIMIZERS, SCHEDULERS, AVERAGES = [Pictures], [Descent], [Thirds], [Mean]",
        "DATASETS = [Pictures]\nOPTIMIZERS = [Descent]\nSCHEDULERS = [Thirds]\nAVERAGES = [Mean]",
    )
    (mine.parent / "mine.py").write_text(OWN + more)
    root = load_config(mine).dataset.arguments["root"]
    run = train(
        f"dataset={{name: Pictures, root: {root}}}", "optimizer={name: Descent, lr: 0.3}",
        "scheduler=Thirds", "average=Mean", "train.epochs=3", file=mine,
    )  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr/group0"] for line in lines if "val/accuracy" in line]
    assert rates == pytest.approx([0.3, 0.1, 0.1 / 3])


def test_the_run_has_a_copy_and_its_hash_and_every_command_works_from_its_folder_alone(
    own_run, mine, tmp_path, notes, capsys
):
    digest = sha256_of(mine.parent / "mine.py")
    assert (own_run / "components.py").read_text() == OWN
    named = {"file": "components.py", "sha256": digest}
    assert json.loads((own_run / "model.json").read_text())["components"] == named
    assert json.loads((own_run / "result.json").read_text())["components"] == digest
    assert f"sha256: {digest}" in (own_run / "config.yaml").read_text()
    shutil.rmtree(mine.parent)
    run = Path(shutil.move(own_run, tmp_path / "elsewhere"))
    image = str(next((notes / "1").iterdir()))
    capsys.readouterr()
    assert predict([str(run), image]) == 0
    assert image in capsys.readouterr().out
    assert evaluate([str(run)]) == 0
    assert "share_of" in capsys.readouterr().out
    assert explain([str(run), image]) == 0
    assert main(["--resume", str(run), "train.epochs=3"]) == 0


def test_the_export_in_safetensors_holds_the_file_that_builds_the_model(own_run):
    assert export([str(own_run), "--format", "safetensors"]) == 0
    folder = own_run / "export" / "own-safetensors"
    assert (folder / "components.py").read_text() == OWN
    program = "import use, torch; print(type(use.model).__name__)"
    assert "from components import Small" in (folder / "use.py").read_text(), program
    # An own transform is in no program: it says what to write there, and predicts nothing.
    image = Path(load_config(own_run / "config.yaml").dataset.arguments["root"]) / "1" / "000.jpg"
    said = subprocess.run(
        [sys.executable, "use.py", image], cwd=folder, capture_output=True, text=True
    )
    assert said.returncode != 0 and "do here what the run's Half does" in said.stderr


def test_a_copy_that_was_changed_is_refused_by_every_command(own_run, notes, capsys):
    with (own_run / "components.py").open("a") as file:
        file.write("# one more\n")
    for command, argv in (
        (predict, [str(own_run), str(notes / "1")]),
        (evaluate, [str(own_run)]),
        (export, [str(own_run), "--format", "pt2"]),
        (main, ["--resume", str(own_run)]),
    ):
        capsys.readouterr()
        assert command(argv) == 2
        said = capsys.readouterr().err
        assert "components.py was changed: its SHA-256 is" in said and "Traceback" not in said


def test_resume_with_the_yaml_refuses_a_changed_file_with_both_hashes_and_says_how_to_go_on(
    own_run, mine, capsys
):
    before = sha256_of(mine.parent / "mine.py")
    change(mine.parent / "mine.py", "width: int = 4", "width: int = 5")
    again = ["--resume", str(own_run), "train.epochs=3"]
    assert main([*again, "--config", str(mine)]) == 2
    said = capsys.readouterr().err
    assert before in said and sha256_of(mine.parent / "mine.py") in said
    assert f"goes on by --resume {own_run} alone" in said
    assert main(again) == 0


def test_a_run_killed_in_the_middle_and_resumed_ends_with_the_same_bits(train, mine, tmp_path):
    more = ["train.epochs=8", "checkpoint.every=3st"]
    whole = train(*more, file=mine)
    killed = tmp_path / "killed"
    argv = ["--config", str(mine), "--runs", str(killed), *more]
    process = fork(tmp_path / "log", lambda: main(argv))
    while process.is_alive() and not list(killed.glob("own/*/checkpoints/step-00000000?")):
        time.sleep(0.005)
    process.kill()
    assert exit_code_of(process) == -signal.SIGKILL
    (run,) = runs_in(killed / "own")
    assert main(["--resume", str(run)]) == 0
    assert sha256_of(run / "model.pt") == sha256_of(whole / "model.pt")
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("has_hash", [True, False])
def test_code_of_a_run_from_elsewhere_runs_only_after_it_is_trusted(
    has_hash, own_run, tmp_path, notes, monkeypatch, capsys
):
    """Whoever sends a run can make the hash in its config.yaml fit."""
    code, marker = own_run / "components.py", tmp_path / "it ran"
    old = sha256_of(code)
    code.write_text(OWN + f"\n__import__('pathlib').Path({str(marker)!r}).touch()\n")
    for name in ("config.yaml", "model.json"):
        change(own_run / name, old, sha256_of(code))
    if not has_hash:
        text = (own_run / "config.yaml").read_text()
        named = re.sub("components:\n.*\n.*\n", "components: components.py\n", text)
        (own_run / "config.yaml").write_text(named)
    image, commands = str(notes / "1" / "000.jpg"), [evaluate, export, main]
    for command, argv in zip(
        [predict, *commands],
        [[str(own_run), image], [str(own_run)], [str(own_run), "--format", "pt2"],
         ["--resume", str(own_run), "train.epochs=3"]],
        strict=True,
    ):  # fmt: skip
        capsys.readouterr()
        assert command(argv) == 5
        said = capsys.readouterr().err
        assert sha256_of(code) in said and f"python -m trainer.runs trust {own_run}" in said
    if has_hash:  # else it is as any YAML that the user names
        assert main(["--config", str(own_run / "config.yaml"), "--runs", str(tmp_path)]) == 5
    assert main(["--config", str(own_run / "config.yaml"), "--print-config"]) == 0
    assert runs(["list", "--runs", str(own_run.parent.parent)]) == 0
    assert not marker.exists()
    assert runs(["trust", str(own_run)]) == 0 and not marker.exists()
    assert predict([str(own_run), image]) == 0 and marker.exists()


def test_comparing_runs_runs_no_code_that_is_not_trusted(own_run, tmp_path, monkeypatch):
    from trainer.compare import main as compare

    other = Path(shutil.copytree(own_run, own_run.parent / "20260101-000000-abcd"))
    monkeypatch.setenv("TRAINER_TRUST", str(tmp_path / "nobody"))
    name = MODULE + sha256_of(own_run / "components.py")[:32]
    monkeypatch.delitem(sys.modules, name)
    argv = [str(own_run), str(other), "--picture", str(tmp_path / "compare.png")]
    assert compare(argv) == 0 and name not in sys.modules


def test_where_trust_cannot_be_kept_the_command_says_so(own_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRAINER_TRUST", str(tmp_path / "file" / "folder"))
    assert runs(["trust", str(own_run)]) == 5
    assert "name another folder by TRAINER_TRUST" in capsys.readouterr().err


def test_two_runs_whose_files_define_the_same_name_otherwise_work_in_one_process(train, mine):
    first = train(file=mine)
    change(mine.parent / "mine.py", "F.relu(self.conv(images))", "F.gelu(self.conv(images))")
    second = train(f"model.weights={first}", "optimizer.lr=0.0000001", file=mine)
    one, two, again = map(load_trained, (first, second, first))
    images = torch.rand(2, 3, 32, 32)
    assert type(one.model) is type(again.model) is not type(two.model)
    with torch.no_grad():
        assert torch.equal(one.model(images), again.model(images))
        assert not torch.allclose(one.model(images), two.model(images))
    # A teacher of one file, a student of the other.
    run = train(f"distill={{run: {first}}}", "loss=CrossEntropyLoss", file=mine)
    assert "MODELS" in (run / "components.py").read_text()


def test_an_own_fixed_transform_runs_once_a_sample_and_a_random_one_in_each_epoch(mine):
    config = load_config(mine, by_user=True)
    check_components(config)
    pipelines = build_pipelines(config, num_classes=2)
    assert [type(step).__name__ for step in pipelines["train"].fixed] == ["Resize", "Half"]
    assert pipelines["train"].description[2] == ("RandomNegative", "per sample")


def test_a_spawned_process_gets_own_objects_with_the_file_that_has_run(mine, tmp_path):
    config = load_config(mine, by_user=True)
    check_components(config)
    half = build_pipelines(config, num_classes=2)["eval"].fixed[1]
    (tmp_path / "sent").write_bytes(pickle.dumps((Rerun(), half)))
    program = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))[1](4.0))"
    program = program.replace("4.0", "__import__('torch').tensor(4.0)")
    words = [sys.executable, "-c", program, str(tmp_path / "sent")]
    assert subprocess.run(words, capture_output=True, text=True).stdout == "tensor(2.)\n"


def test_stored_images_are_others_once_the_file_has_changed_anywhere(mine):
    def stored():
        config = load_config(mine, by_user=True)
        check_components(config)
        return description(build_pipelines(config, num_classes=2)["eval"].fixed[1])

    before = stored()
    assert stored() == before
    with (mine.parent / "mine.py").open("a") as file:
        file.write("\nLEVEL = 3\n")
    assert stored() != before


def test_of_an_own_metric_the_largest_value_is_the_best_and_a_note_says_so(train, mine, capsys):
    run = train("metrics=[{name: share_of, label: 1}]", "train.epochs=4", file=mine)
    assert "share_of is of" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [line["val/share_of"] for line in lines if "val/share_of" in line]
    best = json.loads((run / "result.json").read_text())["best"]
    assert best["val/share_of"] == max(values)


def test_a_sweep_keeps_a_copy_which_its_trials_use(mine, tmp_path, notes):
    plan = mine.parent / "many.yaml"
    plan.write_text("base: own.yaml\nsweep: {method: grid, params: {model.width: [3]}}")
    argv = ["--config", str(plan), "--runs", str(tmp_path / "sweeps"), "train.epochs=1"]
    assert sweep(argv) == 0
    folder = tmp_path / "sweeps" / "many"
    assert (folder / "components.py").read_text() == OWN
    (run,) = runs_in(folder / "t000-seed0")
    assert (run / "components.py").read_text() == OWN
    change(mine.parent / "mine.py", "width: int = 4", "width: int = 5")
    assert sweep(argv) == 2  # another experiment


def test_runs_of_one_file_answer_as_one_model_and_those_of_two_are_refused(
    own_run, train, mine, tmp_path, notes, capsys
):
    second = train("seed=1", file=mine)
    argv = ["--name", "both", "--runs", str(tmp_path / "both")]
    assert combine([str(own_run), str(second), *argv]) == 0
    (both,) = runs_in(tmp_path / "both" / "both")
    assert predict([str(both), str(notes / "1")]) == 0
    with (mine.parent / "mine.py").open("a") as file:
        file.write("# another\n")
    third = train("seed=2", file=mine)
    capsys.readouterr()
    assert combine([str(own_run), str(third), *argv]) == 5
    assert "own components (SHA-256 of the file)" in capsys.readouterr().err


def test_ranks_with_other_files_are_refused_by_both(mine, tmp_path):
    from tests.conftest import train_together

    (mine.parent / "other.py").write_text(OWN + "# other\n")
    names = vars(trainer.config.config)
    read = names["read_own_file"]

    def prepare(rank):
        if rank:
            names["read_own_file"] = lambda path, *more, **how: read(
                path.with_name("other.py"), *more, **how
            )

    argv = ["--config", str(mine), "--runs", str(tmp_path / "ranks")]
    codes = train_together(2, argv, tmp_path, prepare)
    assert 0 not in codes and None not in codes
    assert "all ranks need the same file" in (tmp_path / "rank-1.txt").read_text()
    assert not list((tmp_path / "ranks").glob("own/*"))
    assert train_together(2, argv, tmp_path) == [0, 0]


def test_the_schema_of_a_yaml_has_its_own_names_and_arguments_and_the_shipped_ones(mine, capsys):
    jsonschema = pytest.importorskip("jsonschema")
    import yaml

    assert schema(["--config", str(mine)]) == 0
    line = "# yaml-language-server: $schema=./mine.schema.json"
    assert line in capsys.readouterr().out
    made = json.loads((mine.parent / "mine.schema.json").read_text())
    assert made["$defs"]["model.Small"]["description"] == "One convolution."
    width = made["$defs"]["model.Small"]["properties"]["width"]
    assert width["default"] == 4 and "number of its maps" in width["description"]
    assert made["$defs"]["model.LeNet"] == published()["model.LeNet"]
    content = yaml.safe_load(mine.read_text())
    jsonschema.validate(content, made)
    content["model"]["widht"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, made)
    mine.write_text(f"{line}\n{mine.read_text()}")
    assert schema(["--config", str(mine)]) == 0
    assert line not in capsys.readouterr().out


def test_a_file_that_fails_in_training_is_named_with_its_line_and_what_a_mended_one_needs(
    mine, tmp_path, capsys
):
    body = "return self.head("
    change(mine.parent / "mine.py", body, f"assert len(images) < 8, 'too many'\n        {body}")
    argv = ["--config", str(mine), "--runs", str(tmp_path / "runs")]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert f"too many ({mine.parent / 'mine.py'}:" in said and "Traceback" not in said
    assert "with components.py as it is (what is mended in it needs a new run)" in said


def test_a_model_with_a_lazy_layer_is_refused_for_its_weights_would_never_train(mine):
    file = mine.parent / "mine.py"
    change(file, "nn.Linear(width, num_classes)", "nn.LazyLinear(num_classes)")
    with pytest.raises(ConfigError) as error:
        prepare(load_config(mine, by_user=True), lambda line: None)
    (fault,) = error.value.faults
    assert fault.path == "model" and "head.weight" in fault.message
    assert "Use the layer with a size" in fault.message
