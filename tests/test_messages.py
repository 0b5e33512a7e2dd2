"""What people write from habit, of other programs or by a slip: the message says what to type."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from models.weights import read_weights
from trainer import train
from trainer.config import load_config
from trainer.config.components import SCHEMA_FILE, published
from trainer.input.data import transform_fault
from trainer.process.errors import ConfigError
from trainer.process.words import NAMES, SETTINGS
from trainer.run.resume import differences

COMMANDS = (
    "combine compare data evaluate explain export find_lr predict runs schema speed sweep train"
).split()
YAML = """\
seed: 0
dataset: {name: RMB, root: data/rmb}
transforms:
  train:
    - {name: Resize, size: [32, 32]}
  eval:
    - {name: Resize, size: [32, 32]}
loader: {batch_size: 16}
model: {name: LeNet}
optimizer: {name: SGD, lr: 0.01, momentum: 0.9}
metrics: [accuracy]
train:
  epochs: 10
"""


@pytest.fixture
def told(tmp_path, monkeypatch):
    """The faults of the YAML with a replacement or overrides, as (line, message)."""
    monkeypatch.chdir(tmp_path)

    def told(*overrides, old="", new=""):
        assert old in YAML
        Path("exp.yaml").write_text(YAML.replace(old, new, 1) if old else YAML)
        try:
            faults = load_config("exp.yaml", overrides).check_arguments(published())
        except ConfigError as error:
            faults = error.faults
        return [(fault.line, fault.message.partition("; allowed are")[0]) for fault in faults]

    return told


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.pretrained=true", "unknown key 'pretrained'; LeNet has no pretrained weights; "
         "give a file: model.weights=runs/NAME/DATE/model.pt"),
        ("train.batch=3", "unknown key 'batch'; it belongs in 'loader': loader.batch_size=3"),
        ("batchsize=3", "unknown key 'batchsize'; it belongs in 'loader': loader.batch_size=3"),
        ("lrate=1", "unknown key 'lrate'; it belongs in 'optimizer': optimizer.lr=1"),
        ("lr=0.1", "unknown key 'lr'; it belongs in 'optimizer': optimizer.lr=0.1"),
        ("num_epochs=3", "unknown key 'num_epochs'; it belongs in 'train': train.epochs=3"),
        ("train.epoch=3", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("train.seed=3", "unknown key 'seed'; it belongs at the top level: seed=3"),
        ("loader.num_workers=2", "unknown key 'num_workers'; did you mean 'workers'?"),
        ("train.gpu=0", "unknown key 'gpu'; write train.device=auto"),
        ("gpu=0", "unknown key 'gpu'; it belongs in 'train': train.device=auto"),
        ("amp=true", "unknown key 'amp'; it belongs in 'train': train.precision=bf16"),
        ("criterion=MSELoss", "unknown key 'criterion'; did you mean 'loss'?"),
        ("optim.lr=0.1", "unknown key 'optim'; did you mean 'optimizer'?"),
        ("naem=SGD", "unknown key 'naem'; did you mean 'name'?"),
        ("transforms.val=[]", "unknown key 'val'; did you mean 'eval'?"),
        ("split.val=0.1", "unknown key 'val'; write 'split.ratios=[8, 1, 1]'"),
        ("patience=5", "unknown key 'patience'; it belongs in 'early_stop': early_stop.patience=5"),
        ("warmup_epochs=5", "unknown key 'warmup_epochs'; it belongs in 'scheduler': "
         "scheduler.warmup=5ep"),
        ("num_classes=3", "unknown key 'num_classes'; the data give the number of classes; "
         "remove it"),
        ("outdir=x", "unknown key 'outdir'; --runs DIR on the command line sets the folder"),
        ("optimizer.args={lr: 1}", "unknown key 'args'; its keys belong beside 'name'"),
        ("train.device=0", "expected auto, cpu, cuda, mps or cuda:NUMBER (such as cuda:1), got 0; "
         "write cuda:0"),
        ("train.device=gpu", "expected auto, cpu, cuda, mps or cuda:NUMBER (such as cuda:1), "
         "got the text 'gpu'; did you mean 'auto'?"),
        ("train.precision=16", "expected fp32, tf32, bf16, fp16 or auto, got 16; "
         "did you mean 'fp16'?"),
        ("model.weights=true", "expected text or null, got true; LeNet has no pretrained "
         "weights; give a file: model.weights=runs/NAME/DATE/model.pt"),
        ("metrics=accuracy", "expected a list (each a metric as {name: ..., ...}), got the text "
         "'accuracy'; write [accuracy]"),
        ("transforms=[Resize]", "expected a mapping, got a list of 1; write {both: [...]}"),
        ("early_stop=5", "expected a mapping or null, got 5; write {patience: 5}"),
        ("split=[8, 1, 1]", "expected a mapping, got a list of 3; write {ratios: [...]}"),
        ("optimizer=[SGD]", "expected an optimizer as {name: ..., ...}, got a list of 1; write it "
         "without the list"),
        ("checkpoint.every=5", "expected a whole number of steps, epochs or minutes (such as 20st, "
         "1ep, 10m), got 5; write 5st, 5ep or 5m"),
        ("optimizer.lr=0,1", "expected a number of at least 0, got the text '0,1'; write 0.1"),
        ("train.monitor=accuracy", "'accuracy' is not measured; did you mean 'val/accuracy'?; "
         "allowed are val/loss and val/accuracy"),
        ("optimizer.lr 0.1", "expected key=value; write optimizer.lr=0.1"),
        ("optimizer.lr: 0.1", "expected key=value; write optimizer.lr=0.1"),
    ],
)  # fmt: skip
def test_a_setting_of_other_programs_leads_to_ours(told, override, message):
    assert told(override) == [(None, message.partition("; allowed are")[0])]


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("optimizer=adam", "Adam"),
        ("optimizer=torch.optim.AdamW", "AdamW"),
        ("optimizer=SGD(lr=0.1)", "SGD"),
        ("loss=crossentropy", "CrossEntropyLoss"),
        ("loss=ce", "CrossEntropyLoss"),
        ("loss=nn.CrossEntropyLoss()", "CrossEntropyLoss"),
        ("loss=focal", "FocalLoss"),
        ("model=lenet", "LeNet"),
        ("model=ResNet18", "torchvision/resnet18"),
        ("model=vit", "torchvision/vit_b_16"),
        ("scheduler=cosine", "CosineAnnealingLR"),
        ("scheduler=step", "StepLR"),
        ("scheduler=plateau", "ReduceLROnPlateau"),
        ("metrics=[f1]", "macro_f1"),
        ("metrics=[auc]", "auroc"),
        ("metrics=[top5]", "top_k"),
        ("average=ema", "EMA"),
        ("transforms.train=[hflip]", "RandomHorizontalFlip"),
        ("transforms.train=[Cutout]", "RandomErasing"),
        ("dataset=cifar", "CIFAR10"),
    ],
)
def test_a_name_of_other_programs_leads_to_ours(told, override, meant):
    assert any(f"; did you mean '{meant}'?" in message for _, message in told(override))


LIBRARY = "model: {name: torchvision/resnet18"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("model: {name: LeNet", LIBRARY + ", pretrained: true", "write weights: DEFAULT"),
        ("model: {name: LeNet", LIBRARY + ", weights: true", "; write DEFAULT"),
        ("model: {name: LeNet", LIBRARY + ", weights: imagenet", "; write weights: DEFAULT"),
        ("seed: 0\n", "weights: imagenet\n", "LeNet has no pretrained weights; give a file"),
        ("name: LeNet", "name: LeNet, pretrained: true", "LeNet has no pretrained weights; give a"),
        ("name: LeNet", "name: LeNet, weights: DEFAULT", "LeNet has no pretrained weights; give a"),
        ("name: LeNet", "name: LeNet, freeze: true", "such as freeze: [features.*]"),
        ("seed: 0", "loss: {name: CrossEntropyLoss, weight: true}", "; write weight: balanced, or"),
        ("seed: 0", "loss: {name: CrossEntropyLoss, weight: {a: 9}}", "in the order of the"),
        ("{name: Resize, size: [32, 32]}", "{name: Normalize, mean: imagenet, std: [1]}",
         "for imagenet: mean: [0.485, 0.456, 0.406]"),
        ("{name: Resize, size: [32, 32]}", "{name: Normalize, mean: [1], std: imagenet}",
         "for imagenet: std: [0.229, 0.224, 0.225]"),
        ("size: [32, 32]", "size: (32, 32)", "square brackets; write size: [32, 32]"),
        ("{name: SGD, lr: 0.01, momentum: 0.9}", "{name: AdamW, betas: (0.9, 0.99)}",
         "square brackets; write betas: [0.9, 0.99]"),
        ("{name: SGD, lr: 0.01, momentum: 0.9}", "\n  name: AdamW\n  betas: (0.9, 0.99)",
         "square brackets; write betas: [0.9, 0.99]"),
        ("{name: SGD, lr: 0.01, momentum: 0.9}", "AdamW\nlr: 0.001",
         "; write optimizer: {name: AdamW, lr: 0.001}"),
        ("seed: 0", "mixup: 0.2", "it in transforms.train: {name: MixUp, alpha: 0.2}"),
        ("seed: 0", "hflip: 0.3", "transforms.train: {name: RandomHorizontalFlip, p: 0.3}"),
        ("seed: 0", "cutmix: true", "transforms.train: {name: CutMix}"),
        ("seed: 0", "n_splits: 5", "it belongs in 'split': folds: 5"),
        ("seed: 0", "save_every: 5", "it belongs in 'checkpoint': every: 5ep"),
        ("seed: 0", "log_interval: 5st", "it belongs in 'log': every: 5st"),
        ("seed: 0", "early_stop: {patience: 3, mode: max}", "train.monitor decides"),
        ("[accuracy]\ntrain:", "[f1]\ntrain:\n  monitor: val/macro_f1", "did you mean 'macro_f1'?"),
    ],
)  # fmt: skip
def test_what_is_typed_from_habit_is_one_fault_that_shows_what_to_type(told, old, new, expected):
    ((_, message),) = told(old=old, new=new)
    assert expected in message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["transforms.train.Resize.size=64"], "; write transforms.train.0.size=64"),
        (["dataset={name: CSVImages, root: x, csv: y}", "dataset.suffix="],
         """; write 'dataset.suffix=""'"""),
        (["scheduler="], "; write scheduler=null"),
        (["model={name: LeNet", "seed=1"], "this '{' is not closed; a '}' or a comma is missing"),
        (["optimizer.lr="], "; write optimizer.lr=0.1"),
        (["train.epochs="], "; write train.epochs=1"),
        (["train.device="], "; expected auto, cpu, cuda, mps or cuda:NUMBER"),
        (["optimizer=AdamW", "optimizer.betas=(0.9,0.99)"], "; write [0.9,0.99]"),
    ],
)  # fmt: skip
def test_an_override_from_habit_is_one_fault_that_shows_what_to_type(told, overrides, expected):
    ((_, message),) = told(*overrides)
    assert expected in message


def test_an_open_brace_is_the_only_fault_where_it_takes_the_keys_that_follow(told):
    assert told(old=YAML, new="model: {name: LeNet\n  ") == [
        (1, "this '{' is not closed; a '}' or a comma is missing")
    ]
    faults = told(old="train:\n  epochs: 10", new="train: {\nepochs: 10")
    assert [line for line, _ in faults] == [13]


def test_arguments_beside_a_mistaken_name_are_judged_in_the_same_round(told):
    faults = told("scheduler={name: cosine, warmup_epochs: 1}")
    assert [message.partition("; there")[0] for _, message in faults] == [
        "unknown scheduler 'cosine'; did you mean 'CosineAnnealingLR'?",
        "unknown key 'warmup_epochs'; write scheduler.warmup=1ep",
    ]


def test_print_config_refuses_a_wrong_argument_without_pytorch(told):
    code = (
        "import sys\nfrom trainer.train import main\n"
        "argv = ['--config', 'configs/lenet_rmb.yaml', '--print-config', *sys.argv[1:]]\n"
        "assert main(argv) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "optimizer.momentun=1", "model.depth=2"]
    ended = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert "did you mean 'momentum'?" in ended.stderr
    assert "model.depth: unknown key 'depth'" in ended.stderr and not ended.stdout


@pytest.mark.parametrize("word", ["none", "None", "NULL"])
def test_none_is_null(told, word):
    ((_, message),) = told(f"scheduler='{word}'")
    assert "write null for none" in message


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("seed: 0", "seed 0", 1, "a colon is missing: write 'seed: 0'"),
        ("seed: 0", "seed = 0", 1, "a colon is missing: write 'seed: 0'"),
        ("seed: 0", "seed:0", 1, "a space is missing after the colon: write 'seed: 0'"),
        ("  train:", "  train", 4, "a colon is missing: write 'train:'"),
        ("  eval:", "  eval", 6, "a colon is missing: write 'eval:'"),
        ("loader: {", "loader {", 8, "a colon is missing: write 'loader: {batch_size: ...'"),
        ("loader: {", "loader:{", 8, "after the colon: write 'loader: {batch_size: ...'"),
        ("name: LeNet", "name LeNet", 9, "a colon is missing: write 'name: LeNet'"),
        ("name: LeNet", "name:LeNet", 9, "a space is missing after the colon: write 'name: LeNet'"),
        ("lr: 0.01", "lr 0.01", 10, "a colon is missing: write 'lr: 0.01'"),
        ("epochs: 10", "epochs 10", 13, "a colon is missing: write 'epochs: 10'"),
        ("epochs: 10", "epochs: 10\n  device cpu", 14, "missing: write 'device: cpu'"),
        ("epochs: 10", "epochs: 10\n  device cpu\n  budget: 1m", 14, "write 'device: cpu'"),
        ("{name: SGD", "{naem: SGD", 10, "unknown key 'naem'; did you mean 'name'?"),
        ("{name: SGD", "{type: SGD", 10, "unknown key 'type'; did you mean 'name'?"),
        ("  eval:", "\teval:", 6, "a tab in the indentation; use spaces"),
        ("train:\n  epochs: 10", "train.epochs: 10", 12, "it belongs in 'train': epochs: 10"),
        ("[accuracy]", "\n  accuracy\n  recall", 13, "a list is [a, b]"),
    ],
)
def test_a_slip_in_the_text_is_one_fault_at_its_line(told, old, new, line, message):
    ((told_line, told_message),) = told(old=old, new=new)
    assert told_line == line
    assert message in told_message


def test_a_long_path_with_spaces_loads_as_yaml_dump_folds_it(tmp_path):
    root = " ".join(["/data/of a long name"] * 9)
    data = {**yaml.safe_load(YAML), "dataset": {"name": "RMB", "root": root}}
    for style in (False, None):  # None: inner mappings in braces
        text = yaml.safe_dump(data, default_flow_style=style)
        assert root not in text
        (tmp_path / "exp.yaml").write_text(text)
        assert load_config(tmp_path / "exp.yaml").dataset.arguments["root"] == root


def test_a_folded_line_is_not_blamed_for_another_lines_fault(told):
    dataset = "dataset: {name: RMB, root: data/rmb}"
    folded = "dataset:\n  name: RMB\n  root: /data/of a name/until\n    it folds\n"
    ((line, message),) = told(old=dataset, new=f"{folded}  on_broken: a: b")
    assert line == 6 and "a ': ' is not expected here" in message


def test_a_key_in_the_file_is_told_as_it_is_written_there(told):
    ((_, message),) = told(old="loader: {batch_size: 16}", new="batch_size: 16")
    assert message == "unknown key 'batch_size'; it belongs in 'loader': batch_size: 16"


def test_an_init_that_would_replace_loaded_weights_is_told_at_its_line(told):
    model = "model: {name: LeNet, weights: a.pt, init: xavier}"
    message = "would replace the weights that 'weights' loads; remove one of the two"
    assert told(old="model: {name: LeNet}", new=model) == [(9, message)]
    assert told("model.weights=a.pt", "model.init=null") == []
    assert told("model.init=xavier", "model.weights=null") == []


def test_every_word_of_other_programs_leads_to_a_setting_or_name_that_exists():
    names = {name.partition(".")[2] for name in published()}
    schema = {word for entry in published().values() for word in _words(entry)}
    assert {name for found in NAMES.values() for name in found} <= names | schema | {
        "DEFAULT",
        "tpe",
    }
    whole = json.loads(SCHEMA_FILE.read_text())
    for path in {path.partition("=")[0] for found in SETTINGS.values() for path in found}:
        places = [whole]
        for key in path.split("."):
            places = [entry[key] for place in places for entry in _properties(place, whole)
                      if key in entry and "not" not in entry[key]]  # fmt: skip
        assert places, path


def _properties(schema, whole):
    """The keys of a mapping, by each alternative of its schema."""
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    for inner in schema.get("anyOf", ()):
        yield from _properties(inner, whole)
    yield schema.get("properties", {})


def _words(schema):
    if isinstance(schema, dict):
        yield from (word for word in schema.get("enum", ()) if isinstance(word, str))
        for inner in schema.values():
            yield from _words(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _words(inner)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("configs/lenet_rnb.yaml", "; did you mean configs/lenet_rmb.yaml"),
        ("configs/lenet_rmb", "; did you mean configs/lenet_rmb.yaml?"),
        ("lenet_rmb.yaml", "; did you mean configs/lenet_rmb.yaml?"),
        ("confgs/lenet_rmb.yaml", "; did you mean configs/lenet_rmb.yaml?"),
        ("configs", "; name a file in it, such as configs/alexnet_cifar10.yaml"),
    ],
)
def test_a_mistyped_path_names_the_files_that_are_near(typed, meant):
    with pytest.raises(ConfigError, match="cannot be read") as told:
        load_config(typed)
    assert meant in str(told.value)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["optimizer.lr", "0.1"], "optimizer.lr=0.1"),
        (["optimizer.lr", "=", "0.1"], "optimizer.lr=0.1"),
        (["optimizer.lr=", "0.1"], "optimizer.lr=0.1"),
        (["optimizer.lr:", "0.1"], "optimizer.lr=0.1"),
        (["metrics=[accuracy,", "recall]"], "'metrics=[accuracy, recall]'"),
    ],
)
def test_a_setting_typed_with_spaces_is_told_once(told, words, meant):
    message = f"a setting is one word, without spaces; write {meant}"
    assert told("seed=1", *words, "train.epochs=2") == [(None, message)]


def test_an_open_bracket_in_a_path_takes_no_other_setting_with_it(told):
    assert told("dataset.root=/data/x[1", "seed=3") == []
    assert told("seed=3", "dataset.root=/data/x{1", "train.epochs=2") == []


OPTIONS = [
    ("train", ["--epochs", "5"], "a setting has no dashes: train.epochs=5"),
    ("train", ["--batch-size", "8"], "a setting has no dashes: loader.batch_size=8"),
    ("train", ["--lr=0.1"], "a setting has no dashes: optimizer.lr=0.1"),
    ("train", ["--optimizer.lr", "0.1"], "a setting has no dashes: optimizer.lr=0.1"),
    ("evaluate", ["runs/x", "--data", "DIR"], "a setting has no dashes: dataset.root=DIR"),
    ("train", ["--metrics", "f1"], "a setting has no dashes: 'metrics=[f1]'"),
    ("train", ["--early-stopping", "5"], "a setting has no dashes: early_stop.patience=5"),
    ("train", ["--save-every", "5"], "a setting has no dashes: checkpoint.every=5ep"),
    ("train", ["--num-classes", "5"], "the data give the number of classes"),
    ("train", ["--output-dir", "x"], "--runs DIR on the command line sets the folder"),
    ("train", ["--pretrained"], "a setting has no dashes: model.weights=DEFAULT"),
    ("train", ["--set", "seed=1"], "a setting needs none: seed=1"),
    ("train", ["--dry_run"], "did you mean --dry-run?"),
    ("find_lr", ["--config", "a.yaml", "--lr", "1"], "a setting has no dashes: optimizer.lr=1"),
    ("sweep", ["--config", "a.yaml", "--epochs", "3"], "a setting has no dashes: train.epochs=3"),
    ("speed", ["--config", "a.yaml", "--amp"], "a setting has no dashes: train.precision=bf16"),
    ("data", ["a.yaml"], "name the file by --config a.yaml"),
    ("find_lr", ["a.yml"], "name the file by --config a.yml"),
    ("sweep", ["a.yaml"], "name the file by --config a.yaml"),
    ("evaluate", [], "RUN is a run's folder, and python -m trainer.runs list shows all"),
    ("evaluate", ["runs/x", "--config", "a.yaml"], "this takes a run's folder"),
    ("predict", ["runs/x", "a.png", "--gpu"], "unknown option --gpu; there are --top, --json,"),
    ("predict", ["runs/x", "a.png", "--jsno"], "unknown option --jsno; did you mean --json?"),
    ("export", ["runs/x", "--format", "onnx", "--lr", "1"], "no dashes: optimizer.lr=1"),
    ("explain", ["x", "a.png", "--layer", "3"], "there are --class, --method, --output, --device"),
    ("combine", ["a", "b", "--device", "cpu"], "a setting has no dashes: train.device=cpu"),
    ("compare", ["a", "b", "--config", "x"], "there are --picture, --no-picture, --all, --json"),
    ("runs", ["list", "--foo"], "unknown option --foo"),
    ("schema", ["--foo"], "unknown option --foo; there are --check"),
]


@pytest.mark.parametrize(("command", "argv", "message"), OPTIONS)
def test_an_unknown_option_of_any_command_says_what_to_type(command, argv, message, capsys):
    main = importlib.import_module(f"trainer.{command}").main
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_every_command_is_tried():
    assert sorted({command for command, *_ in OPTIONS}) == COMMANDS


# --- A run that is there already


def test_a_resume_says_what_it_may_change_and_how_to_begin_anew(finished, start, capsys):
    run = finished("train.epochs=1")
    capsys.readouterr()
    assert start("--resume", str(run), "optimizer.lr=0.5", "--runs", "somewhere") == 2
    told = capsys.readouterr().err
    assert "optimizer.lr: is 0.5, but the run began with 0.01" in told
    assert "may change train.epochs, train.budget, " in told
    (again,) = [line for line in told.splitlines() if "python -m trainer.train" in line]
    command = again.split("trainer.train ")[1].split()
    assert command[-1] == f"model.weights={run}/model.pt" and "optimizer.lr=0.5" in command
    runs = run.parent.parent / "anew"
    assert command[2:4] == ["--runs", "somewhere"]
    command[3] = str(runs)
    assert start(*command) == 0
    assert list(runs.glob("*/*/result.json"))


def test_weights_of_a_run_with_initial_ones_of_its_own_can_be_trained_further(finished, capsys):
    run = finished("train.epochs=1", "model.init=xavier")
    main = importlib.import_module("trainer.train").main
    runs = str(run.parent.parent / "anew")
    assert main(["--resume", str(run), "model.init=kaiming", "--runs", runs]) == 2
    lines = capsys.readouterr().err.splitlines()
    (again,) = [line for line in lines if "python -m trainer.train" in line]
    assert main(again.split("trainer.train ")[1].split()) == 0
    assert list(Path(runs).glob("*/*/result.json"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("wrong.key=1", "unknown key 'wrong'"),
        ("optimizer.momentun=1", "unknown key 'momentun'; did you mean 'momentum'?"),
        ("optimizer=AdamW", 'optimizer.name: is "AdamW", but the run began with "SGD"'),
    ],
)
def test_a_slip_on_resume_is_the_only_fault(finished, start, capsys, override, message):
    run = finished("train.epochs=1")
    capsys.readouterr()
    assert start("--resume", str(run), override) == 2
    told = capsys.readouterr().err
    assert told.startswith("1 fault") and message in told
    assert ("To train its best weights" in told) == ("began with" in message)


def test_commands_find_a_wrong_setting_of_a_run_before_pytorch_is_imported(finished):
    run = finished("train.epochs=1")
    code = (
        "import sys, importlib\n"
        "run = sys.argv[1]\n"
        "for name, *argv in ["
        "('train', '--resume', run, 'wrong.key=1'), ('train', '--resume', run, 'seed=5'),"
        "('evaluate', run, 'seed=5'), ('export', run, '--format', 'pt2', 'a.b=1'),"
        "('predict', 'absent', 'a.png'), ('explain', 'absent', 'a.png')]:\n"
        "    assert importlib.import_module(f'trainer.{name}').main(argv) == 2, name\n"
        "    assert 'torch' not in sys.modules, name"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, capture_output=True)


def test_resume_alone_lists_the_newest_runs(finished, capsys):
    run = finished("train.epochs=1")
    with pytest.raises(SystemExit):
        train.parse(["--resume", "--runs", str(run.parent.parent)])
    assert f"name a run: --resume RUN; the newest are in {run.parent.parent}\n  --resume {run}" in (
        capsys.readouterr().err
    )


def test_a_list_that_changed_on_resume_is_told_whole():
    old: dict = {"log": {"show": ["text", "report"]}}
    new: dict = {"log": {"show": []}}
    assert differences(old, new) == [("log.show", ["text", "report"], [])]


def test_a_resumed_run_leaves_no_report_of_an_earlier_end_and_no_word_on_first_weights(
    finished, capsys
):
    first = finished("train.epochs=1")
    run = finished("train.epochs=1", f"model.weights={first}/model.pt")
    assert (run / "report" / "report.html").exists()
    capsys.readouterr()
    assert train.main(["--resume", str(run)]) == 0
    assert "is finished, epochs done: 1;" in capsys.readouterr().out
    assert train.main(["--resume", str(run), "train.epochs=2", "log.show=[]"]) == 0
    told = capsys.readouterr().out
    assert "report" not in told.partition("best  ")[2] and "weights " not in told
    assert "changed log.show is now []" in told
    assert not (run / "report").exists()


def test_weights_that_lie_a_folder_deeper_are_named(tmp_path):
    (tmp_path / "20260131-120000-ab12").mkdir()
    (inside := tmp_path / "20260131-120000-ab12" / "model.pt").touch()
    with pytest.raises(ValueError, match="did you mean") as told:
        read_weights(str(tmp_path / "model.pt"))
    assert str(told.value).endswith(f"did you mean {inside}?")


def test_a_resize_to_one_number_is_named_where_a_batch_transform_meets_several_sizes(told):
    assert told() == []
    mixed = "train:\n    - {name: Resize, size: 24}\n    - {name: MixUp}"
    Path("exp.yaml").write_text(YAML.replace("train:\n    - {name: Resize, size: [32, 32]}", mixed))
    error = ValueError("MixUp (transform 1) cannot work on ...: ... cannot form a batch; ...")
    fault = transform_fault(load_config("exp.yaml"), "train", error)
    assert (fault.line, fault.path) == (5, "transforms.train.0.size")
    assert fault.message.endswith("of several sizes reach MixUp; write size: [24, 24]")
