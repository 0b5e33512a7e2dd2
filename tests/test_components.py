"""Components: their arguments judged by the real signatures, all together, and built from YAML."""

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode

from trainer.build.trial import check_components
from trainer.config import load_config
from trainer.config.arguments import RANGES
from trainer.config.components import RESERVED, TABLES
from trainer.config.config import components
from trainer.config.construct import build
from trainer.config.settings import Component
from trainer.config.signatures import SUPPLIED, arguments_schema, parameters_of, resolve, schema_of
from trainer.process.errors import ConfigError
from trainer.train import main as train
from transforms import TRANSFORMS

SHIPPED = sorted(Path("configs").glob("*.yaml"))
EVERY = [(kind, name) for kind, table in TABLES.items() for name in table]
GOOD = """\
dataset: {name: RMB, root: absent}
transforms:
  train:
    - {name: Resize, size: [32, 32], interpolation: bicubic}
    - {name: RandomApply, p: 0.5, transforms: [{name: ColorJitter, hue: [-0.1, 0.1]}]}
    - {name: AutoAugment, policy: cifar10}
    - {name: Normalize, mean: [0.5, 0.5, 0.5], std: [1, 1, 1]}
    - {name: MixUp, alpha: 0.2}
  eval:
    - {name: Resize, size: [32, 32]}
model: {name: VGG, depth: 11, init: kaiming, freeze: ["features.*"]}
loss: {name: FocalLoss, gamma: 1, weight: balanced}
optimizer: {name: Adam, lr: 1, betas: [0.9, 0.99], no_decay: true}
scheduler: {name: OneCycleLR, warmup: 1ep}
metrics: [{name: top_k, k: 2}]
train: {epochs: 3}
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    """The faults of a text's components, as (line, path, message)."""
    monkeypatch.chdir(tmp_path)

    def check(text, *overrides):
        Path("exp.yaml").write_text(text)
        faults = check_components(load_config("exp.yaml", overrides))
        return [(fault.line, fault.path, fault.message) for fault in faults]

    return check


def test_arguments_that_fit_have_no_fault(check):
    assert check(GOOD) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_fits(path):
    assert check_components(load_config(path)) == []


BAD_ARGUMENTS = """\
dataset: {name: RMB, rot: data/rmb}
transforms:
  train:
    - {name: Resize, size: "32", interpolation: bilinar}
    - RandomCrop
    - {name: RandomApply, transforms: [{name: ColorJitter, hue: [0.1, x]}]}
    - {name: MixUp, num_classes: 3}
  eval: []
model: {name: VGG, num_classes: 3, depth: 12}
loss: {name: FocalLoss, gama: 2}
optimizer: {name: SGD, momentum: true, learning_rate: 3}
scheduler: {name: StepLR}
metrics: [{name: top_k, n: 2}]
train: {epochs: 10}
"""


def test_the_arguments_of_all_components_are_judged_together(check):
    expected = {
        "dataset.rot": (1, "unknown key 'rot'; did you mean 'root'?; allowed are name, root"),
        "transforms.train.0.size": (
            4,
            "expected a whole number from 1 to 10,000, a list of 1 to 2 (e",
        ),
        "transforms.train.0.interpolation": (
            4,
            "expected nearest, nearest-exact, bilinear, bicubic or",
        ),
        "transforms.train.1.size": (5, "'size' is missing; expected a whole number from 1 to 10"),
        "transforms.train.2.transforms.0.hue.1": (6, "expected a number from -0.5 to 0.5, got the"),
        "transforms.train.3.num_classes": (7, "'num_classes' is set by the trainer; remove it"),
        "model.num_classes": (9, "'num_classes' is set by the trainer; remove it"),
        "model.depth": (9, "expected 11, 13, 16 or 19, got 12"),
        "loss.gama": (10, "unknown key 'gama'; did you mean 'gamma'?"),
        "optimizer.momentum": (11, "expected a number of at least 0, got true"),
        "optimizer.learning_rate": (11, "unknown key 'learning_rate'; did you mean 'lr'?"),
        "scheduler.step_size": (12, "'step_size' is missing; expected a whole number"),
        "metrics.0.n": (13, "unknown key 'n'; allowed are name and k"),
    }
    found = {path: (line, message) for line, path, message in check(BAD_ARGUMENTS)}
    assert found.keys() == expected.keys()
    for path, (line, message) in expected.items():
        assert found[path][0] == line
        assert found[path][1].startswith(message), found[path][1]


def test_beside_other_faults_arguments_are_judged_the_same_without_torch(check):
    by_signature = check(BAD_ARGUMENTS)
    with pytest.raises(ConfigError) as caught:
        check(BAD_ARGUMENTS + "lgo: {}\n")
    told = [(fault.line, fault.path, fault.message) for fault in caught.value.faults]
    assert sorted(told[:-1]) == sorted(by_signature)
    assert told[-1][1] == "lgo"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.weights=3", "expected text or null, got 3"),
        ("model.init=xavir", "did you mean 'xavier'?"),
        ("model.init={}", "names no layers; write one way for the model"),
        ("model.freeze=features", "expected a list (each text), got the text 'features'"),
        ("loss.weight=balansed", "did you mean 'balanced'?"),
        ("loss.weight=[1, -1]", "expected a number of at least 0, got -1"),
        ("optimizer.no_decay=yes", "expected true or false, got the text 'yes'; write true"),
        (
            "scheduler.warmup=3m",
            "expected a whole number of steps or epochs (such as 20st, 1ep) or null",
        ),
    ],
)
def test_the_trainers_own_arguments_are_judged_for_every_component(check, override, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(GOOD, override)


@pytest.mark.parametrize(
    ("overrides", "path", "message"),
    [
        (["transforms.train.1.transforms.0.hue=[0.1, -0.1]"], "transforms.train.1", "hue"),
        (["optimizer.capturable=true", "train.device=cpu"], "optimizer.capturable", "on supported"),
        (["optimizer.differentiable=true"], "optimizer", "leaf Variable"),
        (["scheduler={name: ExponentialLR, gamma: 1e6}", "train.epochs=90"], "scheduler", "inf"),
        (["model=torchvision/resnet18", "model.foo=3"], "model.foo", "unexpected keyword"),
        (["optimizer=Rprop"], "scheduler", "OneCycleLR cannot be used: optimizer must support"),
    ],
)
def test_what_a_constructor_refuses_is_a_fault_at_its_component(check, overrides, path, message):
    ((_, told_path, told),) = check(GOOD, *overrides)
    assert told_path == path
    assert message in told


@pytest.mark.parametrize(
    ("override", "path", "message"),
    [
        ("optimizer.lr=-1", "optimizer.lr", "expected a number of at least 0, got -1"),
        ("loss.gamma=-1", "loss.gamma", "expected a number from 0 to 1,000, got -1"),
        ("model.dropout=2", "model.dropout", "expected a number from 0 to 1, got 2"),
        ("metrics.0.k=0", "metrics.0.k", "expected a whole number from 1 to 1,000,000,000, got 0"),
        (
            "metrics=[{name: calibration_error, bins: 1000001}]",
            "metrics.0.bins",
            "expected a whole number from 1 to 1,000,000, got 1000001",
        ),
        (
            "transforms.eval=[{name: CenterCrop, size: 0}]",
            "transforms.eval.0.size",
            "expected a whole number from 1 to 10,000 or a list of 1 to 2 "
            "(each a whole number from 1 to 10,000), got 0",
        ),
        (
            "transforms.eval.0.size=[1, 2, 3]",
            "transforms.eval.0.size",
            "expected a whole number from 1 to 10,000, a list of 1 to 2 "
            "(each a whole number from 1 to 10,000) or null, got a list of 3",
        ),
        (
            "transforms.train.0={name: RandomErasing, scale: [0, 2]}",
            "transforms.train.0.scale.1",
            "expected a number from 0 to 1, got 2",
        ),
        (
            "transforms.train.2.interpolation=bicubic",
            "transforms.train.2.interpolation",
            "expected nearest or bilinear, got the text 'bicubic'",
        ),
        (
            "transforms.eval.0.interpolation=hamming",
            "transforms.eval.0.interpolation",
            "expected nearest, nearest-exact, bilinear, bicubic or lanczos, got the text 'hamming'",
        ),
        (
            "scheduler={name: StepLR, step_size: 0}",
            "scheduler.step_size",
            "expected a whole number from 1 to 1,000,000,000, got 0",
        ),
        (
            "optimizer={name: RMSprop, alpha: 1}",
            "optimizer.alpha",
            "expected a number of at least 0 and below 1, got 1",
        ),
    ],
)
def test_a_number_out_of_range_is_told_with_the_range(check, override, path, message):
    ((_, told_path, told),) = check(GOOD, override)
    assert (told_path, told) == (path, message)


@pytest.mark.parametrize(
    "transform",
    [
        "{name: RandomErasing, value: -0.5}",
        "{name: RandomErasing, value: [-2, 0, 2]}",
        "{name: Pad, padding: 1, fill: -0.5}",
        "{name: RandomRotation, degrees: 9, fill: [-2, -2, -2]}",
    ],
)
def test_new_pixels_after_normalize_are_in_its_units(check, transform):
    normalize = "{name: Normalize, mean: [0.5], std: [0.25]}"
    assert check(GOOD, f"transforms.train=[{normalize}, {transform}]") == []


def test_every_limit_belongs_to_an_argument_that_exists():
    kinds = {name: kind for kind, table in TABLES.items() for name in table}
    for name, limits in RANGES.items():
        factory = resolve(TABLES[kinds[name]], name)
        assert limits.keys() <= inspect.signature(factory).parameters.keys(), name


@pytest.mark.parametrize("interpolation", RANGES["Resize"]["interpolation"]["enum"])
@pytest.mark.parametrize("name", ["Resize", "RandomResizedCrop"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_interpolation_that_may_be_written_scales_images(interpolation, name, dtype):
    if interpolation == "lanczos" and torchvision.__version__ < "0.27":
        pytest.skip("this torchvision has no lanczos for tensors")
    arguments = {"size": [4, 4], "interpolation": interpolation}
    transform = build(TRANSFORMS, "t", Component(name=name, arguments=arguments))
    assert transform(torch.ones(3, 9, 9, dtype=dtype)).shape == (3, 4, 4)


@pytest.mark.parametrize(
    "scheduler", ["{name: ReduceLROnPlateau, min_lr: [0, 0]}", "{name: OneCycleLR, max_lr: [1, 2]}"]
)
def test_a_schedule_may_have_a_value_for_each_of_the_two_groups_of_no_decay(check, scheduler):
    assert check(GOOD, f"scheduler={scheduler}") == []
    ((_, path, _),) = check(GOOD, f"scheduler={scheduler}", "optimizer.no_decay=false")
    assert path.startswith("scheduler")


@pytest.mark.parametrize("name", TABLES["optimizer"])
@pytest.mark.parametrize("no_decay", ["true", "false"])
def test_the_defaults_of_every_optimizer_pass_the_trial(check, name, no_decay):
    optimizer = f"optimizer={{name: {name}, no_decay: {no_decay}}}"
    assert check(GOOD, optimizer, "scheduler=null") == []


@pytest.mark.parametrize("epochs", [1, 2, 5000])
@pytest.mark.parametrize(
    "scheduler",
    ["CosineAnnealingLR", "PolynomialLR", "OneCycleLR", "ReduceLROnPlateau", "LinearLR"]
    + ["{name: StepLR, step_size: 3}", "{name: OneCycleLR, pct_start: 0.1}"],
)
def test_schedules_that_work_pass_the_trial_for_any_length_of_run(check, scheduler, epochs):
    assert check(GOOD, f"scheduler={scheduler}", f"train.epochs={epochs}") == []


@pytest.mark.parametrize(
    ("name", "near"),
    [("torchvision/RESNET18", "torchvision/resnet18"), ("torchvision/resnet81", "resnet18")],
)
def test_a_slip_in_the_name_of_a_torchvision_model_is_mended(check, name, near):
    ((_, path, message),) = check(GOOD, f"model={name}")
    assert path == "model.name"
    assert re.search(f"unknown model '{name}'; did you mean '(torchvision/)?{near}'", message)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("models.lenet:Typo", "AttributeError: .*has no attribute 'Typo'"),
        ("models.absent:Tiny", "No module named 'models.absent'"),
        ("a_model_that_does_not_parse:Tiny", "SyntaxError: .*line 1"),
        ("a_model_with_a_slip:Tiny", r"NameError: .*a_model_with_a_slip\.py:2\)"),
    ],
)
def test_a_table_line_that_cannot_be_imported_ends_with_its_name_and_exit_code_2(
    line, reason, tmp_path, monkeypatch, capsys
):
    (tmp_path / "a_model_that_does_not_parse.py").write_text("class Tiny(:\n")
    (tmp_path / "a_model_with_a_slip.py").write_text("import torch\nclass Tiny(nn.Module): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TABLES["model"], "Tiny", line)
    file = tmp_path / "exp.yaml"
    file.write_text(GOOD)
    assert train(["--config", str(file), "model=Tiny"]) == 2
    told = capsys.readouterr().err
    start = f"models/__init__.py: 'Tiny' stands for {line}, which cannot be imported: "
    assert re.search(re.escape(start) + reason, told)
    assert "Traceback" not in told


def test_several_refusals_are_told_together(check):
    hue = "transforms.train.1.transforms.0.hue=[0.1, -0.1]"
    found = check(GOOD, "optimizer.capturable=true", "train.device=cpu", hue, "model.foo=1")
    assert [path for _, path, _ in found] == ["model.foo"]  # a slip hides what is tried later
    found = check(GOOD, "optimizer.capturable=true", "train.device=cpu", hue)
    assert [path for _, path, _ in found] == ["transforms.train.1", "optimizer.capturable"]


def test_the_check_draws_nothing_from_the_global_generator(check):
    state = torch.get_rng_state()
    assert check(GOOD) == []
    assert torch.equal(torch.get_rng_state(), state)


def test_components_are_listed_with_their_paths(tmp_path):
    path = tmp_path / "exp.yaml"
    path.write_text(GOOD)
    listed = [(kind, path) for kind, path, _ in components(load_config(path))]
    assert ("transform", "transforms.train.1.transforms.0") in listed
    assert [kind for kind, _ in listed if kind not in ("transform",)] == [
        "dataset", "model", "loss", "optimizer", "scheduler", "metric",
    ]  # fmt: skip


# --- Building


def test_text_becomes_the_member_of_the_enum():
    resize = Component(name="Resize", arguments={"size": [8, 8], "interpolation": "bicubic"})
    assert build(TRANSFORMS, "t", resize).interpolation == InterpolationMode.BICUBIC
    augment = Component(name="AutoAugment", arguments={"policy": "svhn"})
    assert build(TRANSFORMS, "t", augment).policy == AutoAugmentPolicy.SVHN


def test_inner_components_are_built():
    inner = Component(name="ColorJitter", arguments={"hue": 0.1})
    outer = Component(name="RandomApply", arguments={"transforms": [inner], "p": 0.3})
    built = build(TRANSFORMS, "t", outer)
    assert isinstance(built.transforms[0], torchvision.transforms.v2.ColorJitter)
    assert built.p == 0.3


def test_what_is_supplied_goes_only_to_those_that_ask():
    supplied = {"num_classes": 7, "in_channels": 1, "input_size": [28, 28]}
    mlp = build(TABLES["model"], "model", Component(name="MLP"), **supplied)
    assert mlp(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    resize = Component(name="Resize", arguments={"size": 8})
    assert build(TRANSFORMS, "t", resize, num_classes=7).size == [8]


def test_an_error_in_a_constructor_tells_its_path():
    bad = Component(name="Resize", arguments={"size": [1, 2, 3]})
    with pytest.raises(ValueError, match="size") as caught:
        build(TRANSFORMS, "transforms.train.0", bad)
    assert caught.value.__notes__ == ["while building transforms.train.0: Resize"]


# --- Signatures


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_table_line_leads_to_a_described_component(kind, name):
    described = arguments_schema(kind, name)
    assert described["description"]
    if not name.endswith("/"):
        assert described["additionalProperties"] is False
        parameters = parameters_of(resolve(TABLES[kind], name))
        assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values()), (
            "a signature with **kwargs judges nothing"
        )
        known = described["properties"].keys() | RESERVED.get(kind, {}).keys()
        assert parameters.keys() <= known
        ours = not TABLES[kind][name].startswith(("torch.", "torchvision."))
        for parameter, schema in described["properties"].items():
            typed = schema.keys() & {"type", "anyOf", "enum", "not"}
            # torch leaves some arguments without a type, and a line must be enough to add one.
            assert typed or not ours, f"{name}.{parameter} takes anything"
        assert not set(described["required"]) & set(SUPPLIED[kind])


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (str | None, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}),  # noqa: UP045
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (Sequence[float], {"type": "array", "items": {"type": "number"}}),
        (Iterable[int], {"type": "array", "items": {"type": "integer"}}),
        (Literal["a", 2], {"enum": ["a", 2]}),
        (float | Tensor, {"type": "number"}),
        (int | float, {"type": "number"}),
        (Sequence[Callable], {"type": "array"}),
        (Union[Sequence[Callable], nn.ModuleList], {"type": "array"}),  # noqa: UP007
        (
            tuple[float | Tensor, float],
            {
                "type": "array",
                "prefixItems": [{"type": "number"}, {"type": "number"}],
                "minItems": 2,
                "maxItems": 2,
            },
        ),
        (AutoAugmentPolicy, {"enum": ["imagenet", "cifar10", "svhn"]}),
        (Any, {}),
        (inspect.Parameter.empty, {}),
        (Tensor, None),
        (Callable[[int], int], None),
        (dict[str, int], None),
        (typing.TypeVar("T"), None),
    ],
)
def test_annotations_become_json_schema(annotation, schema):
    assert schema_of(annotation) == schema


@pytest.mark.parametrize("value", [None, "x", 1j, torch.ones(())])
def test_a_metric_that_gives_no_number_is_told_before_a_run_begins(check, monkeypatch, value):
    import trainer.components.metrics

    monkeypatch.setattr(trainer.components.metrics, "macro_f1", lambda probabilities, labels: value)
    ((_, path, message),) = check(GOOD, "metrics=[accuracy, macro_f1]")
    assert path == "metrics.1" and "for four images; expected a float" in message


def test_weights_that_let_no_image_count_are_refused(check):
    with pytest.raises(ConfigError, match="loss.weight: all class weights are 0"):
        check(GOOD, "loss={name: CrossEntropyLoss, weight: [0, 0]}")
