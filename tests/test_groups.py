"""Parameters with settings of their own: by name pattern, by layer, and through everything else."""

import copy
import math

import pytest
import torch
import torchvision
from torch import nn

from models.layers import layers
from tests.test_optimizers import mlp, names_of, set_gradients, small_model
from tests.test_resume import stopped_at
from tests.test_training import assert_same_run, tags_of
from trainer.build.optimizer import build_optimizer, build_schedule_of
from trainer.build.prepare import prepare
from trainer.build.trial import check_components
from trainer.components.optimizers import Chosen, Muon, parameter_groups
from trainer.config import load_config
from trainer.process.errors import ConfigError
from trainer.run.folder import read_metrics
from trainer.run.resume import find_resumable

GROUPS = "optimizer.groups=[{match: features.0.*, lr: 0.002}, {match: ['features.*'], lr_scale: 0.1, weight_decay: 0.3, momentum: 0.5}]"  # noqa: E501


@pytest.fixture
def optimizer_of(config_file):
    """The optimizer that a YAML's ``optimizer:`` becomes over a model, and its schedule."""

    def make(model, text, *more):
        config = load_config(config_file, [f"optimizer={text}", *more])
        optimizer = build_optimizer(config, model)
        return optimizer, build_schedule_of(config, optimizer, 5)

    return make


# --- What a layer is


def beit_layer(name, blocks):
    """get_num_layer_for_vit of BEiT, in torchvision's names."""
    if name == "class_token" or name.startswith(("conv_proj", "encoder.pos_embedding")):
        return 0
    if "encoder_layer_" in name:
        return int(name.split("encoder_layer_")[1].split(".")[0]) + 1
    return blocks + 1


def test_the_layers_of_a_vit_are_those_of_beit():
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    found = layers(model)
    assert len(found) == 14
    for number, names in enumerate(found):
        assert all(beit_layer(name, 12) == number for name in names)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mixer_s32_224", "resnet18", "resnet50"])
def test_layer_rates_are_those_of_timms_own_rule(name):
    timm = pytest.importorskip("timm")
    pytest.importorskip("timm.optim")
    with torch.device("meta"):
        model = timm.create_model(name)
    theirs = timm.optim.param_groups_layer_decay(model, layer_decay=0.5)
    expected = {id(p): group["lr_scale"] for group in theirs for p in group["params"]}
    # The norm before the head belongs to timm's last block, and to BEiT's head.
    expected |= {id(p): 1.0 for name, p in model.named_parameters() if name.startswith("norm.")}
    for group in parameter_groups(model, False, lr=2.0, layer_decay=0.5):
        for p in group["params"]:
            assert group.get("lr", 2.0) == 2.0 * expected[id(p)], names_of(model, group)


def test_residual_blocks_and_plain_stacks():
    with torch.device("meta"):
        resnet, vgg = torchvision.models.resnet18(), torchvision.models.vgg11_bn()
    starts = [names[0].removesuffix(".weight") for names in layers(resnet)]
    blocks = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert starts == ["conv1", *blocks, "fc"]
    assert layers(resnet)[0] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert len(layers(vgg)) == 11  # as it is called, each with its batch norm
    assert len(layers(nn.Linear(2, 2))) == len(layers(nn.BatchNorm2d(2))) == 1


@pytest.mark.parametrize(
    "name",
    ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3",
     "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5",
     "squeezenet1_1", "swin_t", "swin_v2_t"],
)  # fmt: skip
def test_every_parameter_is_in_one_layer_and_layers_follow_the_models_order(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, init_weights=False) if name in (
            "googlenet", "inception_v3") else torchvision.models.get_model(name)  # fmt: skip
    found = layers(model)
    named = [name for name, _ in model.named_parameters()]
    assert sorted(sum(found, [])) == sorted(named)
    assert all(found) and len(found) > 7
    assert named[0] in found[0] and named[-1] in found[-1]
    last = [named.index(names[-1]) for names in found]
    assert last == sorted(last)


def test_a_shared_parameter_belongs_to_its_first_layer():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert layers(model) == [["0.weight", "0.bias"], ["1.weight", "1.bias", "2.bias"]]
    assert len(parameter_groups(model, False, layer_decay=0.5)) == 2


# --- The groups


def test_without_the_new_keys_groups_hold_what_they_held():
    model = small_model()
    assert [set(group) for group in parameter_groups(model, False)] == [{"params"}]
    two = parameter_groups(model, True, lr=0.3, layer_decay=None, chosen=())
    assert [set(group) for group in two] == [{"params"}, {"params", "weight_decay"}]
    one = parameter_groups(model, True, lr=0.3, layer_decay=1.0)
    assert [names_of(model, g) for g in one] == [names_of(model, g) for g in two]


def test_groups_are_in_the_told_order_and_named_for_people():
    model = small_model()
    head = Chosen("5.*", ["5.weight", "5.bias"], {"lr": 0.7})
    low = Chosen("0.* 5.*", ["0.weight", "0.bias", "5.weight"], {"lr_scale": 0.1})
    found = parameter_groups(model, True, lr=2.0, layer_decay=0.5, chosen=[head, low])
    told = [(g["name"], names_of(model, g), g.get("lr"), g.get("weight_decay")) for g in found]
    assert told == [
        ("the rest, layer 2", ["3.weight"], 1.0, None),
        ("the rest, layer 2, no decay", ["3.bias", "4.weight", "4.bias"], 1.0, 0.0),
        ("the rest, layer 1, no decay", ["1.weight", "1.bias"], 0.5, 0.0),
        ("5.*", ["5.weight"], 0.7, None),
        ("5.*, no decay", ["5.bias"], 0.7, 0.0),
        ("0.* 5.*, layer 1", ["0.weight"], 2.0 * (0.1 * 0.25), None),
        ("0.* 5.*, layer 1, no decay", ["0.bias"], 2.0 * (0.1 * 0.25), 0.0),
    ]


def lenet():
    from models.lenet import LeNet

    torch.manual_seed(0)
    return LeNet(2, 3)


def by_hand(kind, model, default, special, **more):
    """torch's optimizer, a group for each parameter; ``special``: (start of name, settings)."""
    groups = []
    for name, p in model.named_parameters():
        own = next((dict(values) for start, values in special if name.startswith(start)), {})
        if p.ndim < 2:
            own["weight_decay"] = 0.0
        groups.append({"params": [p], **own})
    return kind(groups, **default, **more)


@pytest.mark.parametrize(
    ("kind", "text", "default"),
    [
        (torch.optim.SGD, "{name: SGD, lr: 0.1, momentum: 0.9, weight_decay: 0.01",
         {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
        (torch.optim.SGD, "{name: SGD, foreach: false, lr: 0.1, weight_decay: 0.01",
         {"lr": 0.1, "weight_decay": 0.01, "foreach": False}),
        (torch.optim.AdamW, "{name: AdamW, weight_decay: 0.2", {"weight_decay": 0.2}),
        (torch.optim.RMSprop, "{name: RMSprop, lr: 0.01", {"lr": 0.01}),
    ],
)  # fmt: skip
def test_weights_are_to_the_bit_those_of_a_torch_optimizer_built_by_hand(
    optimizer_of, kind, text, default
):
    model, reference = lenet(), lenet()
    names = [name for name, _ in model.named_parameters()]
    groups = "[{match: features.0.*, lr: 0.002}, {match: 'features.*', lr_scale: 0.5, weight_decay: 0.3}]"  # noqa: E501
    optimizer, _ = optimizer_of(
        model, f"{text}, no_decay: true, layer_decay: 0.8, groups: {groups}}}"
    )
    lr = default.get("lr", 1e-3)
    heads = [name.removesuffix(".weight") for name in names if name.endswith("weight")]
    special = [
        (head, {"lr": lr * (0.8 ** (len(heads) - 1 - i))} if i < len(heads) - 1 else {})
        for i, head in enumerate(heads)
    ]
    special[0] = (heads[0], {"lr": 0.002})
    for i in range(1, len(heads)):
        if heads[i].startswith("features."):
            rate = lr * (0.5 * 0.8 ** (len(heads) - 1 - i))
            special[i] = (heads[i], {"lr": rate, "weight_decay": 0.3})
    assert sum(head.startswith("features.") for head in heads) == 2 and len(heads) == 5
    fused = {"fused": True} if optimizer.defaults.get("fused") else {}
    other = by_hand(kind, reference, default, special, **fused)
    for step in range(5):
        for each, steps in ((model, optimizer), (reference, other)):
            set_gradients(each, step)
            steps.step()
    for one, its in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one, its)


def test_muon_keeps_first_and_last_weight_for_adamw_whatever_the_groups(optimizer_of):
    """Groups stand head first; what is hidden goes by the model."""
    model, plain = mlp(), mlp()
    text = "{name: Muon, lr: 0.02, layer_decay: 0.5, groups: [{match: 1.*, momentum: 0.8}]}"
    optimizer, _ = optimizer_of(model, text)
    matrices = [id(p) for group in optimizer.param_groups if group["muon"] for p in group["params"]]
    assert sorted(matrices) == sorted([id(model[1].weight), id(model[2].weight)])
    rates = [0.02 * 0.5**3, 0.02 * 0.5**2, 0.02 * 0.5, 0.02]
    muon = torch.optim.Muon(
        [{"params": [plain[1].weight], "lr": rates[1], "momentum": 0.8},
         {"params": [plain[2].weight], "lr": rates[2]}],
        lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    others: list[tuple[int, str]] = [(0, "weight"), (3, "weight"), *((i, "bias") for i in range(4))]
    adamw = torch.optim.AdamW(
        [{"params": [getattr(plain[i], kind)], "lr": rates[i]} for i, kind in others],
        weight_decay=0.1,
    )
    for step in range(4):
        set_gradients(model, step)
        set_gradients(plain, step)
        for each in (optimizer, muon, adamw):
            each.step()
    for one, its in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, its)


@pytest.mark.parametrize(
    "scheduler",
    ["{name: StepLR, step_size: 1}", "CosineAnnealingLR", "OneCycleLR",
     "{name: OneCycleLR, max_lr: 0.5}", "{name: LinearLR, total_iters: 2, warmup: 3st}",
     "{name: PolynomialLR, warmup: 1ep}", "{name: ReduceLROnPlateau, patience: 0}", "null"],
)  # fmt: skip
def test_every_group_keeps_its_proportion_through_a_schedule(optimizer_of, scheduler):
    model = lenet()
    text = "{name: SGD, lr: 0.1, groups: [{match: 'features.*', lr: 0.02}]}"
    optimizer, schedule = optimizer_of(model, text, f"scheduler={scheduler}", "train.epochs=3")
    optimizer.step()
    rates = []
    for _ in range(3):
        for _ in range(5):
            rest, features = (group["lr"] for group in optimizer.param_groups)
            assert features == pytest.approx(rest / 5)
            rates.append(rest)
            schedule.after_step()
        schedule.after_epoch(0.5)
    assert len(set(rates)) > 1 or scheduler == "null"
    if "0.5" in scheduler:
        assert max(rates) == pytest.approx(0.5, rel=0.05)


def test_a_max_lr_is_left_to_torch_where_all_groups_have_one_rate(optimizer_of):
    text = "{name: SGD, lr: 0.1, no_decay: true}"
    _, schedule = optimizer_of(lenet(), text, "scheduler={name: OneCycleLR, max_lr: 0.3}")
    assert [group["max_lr"] for group in schedule.optimizer.param_groups] == [0.3, 0.3]


# --- What is refused


@pytest.mark.parametrize(
    ("change", "path", "told"),
    [
        ("[{match: 'features.*', momentm: 0.5}]", "optimizer.groups.0.momentm",
         "unknown key 'momentm'; did you mean 'momentum'?; allowed are match, lr_scale, until, "),
        ("[{lr: 0.5}]", "optimizer.groups.0.match", "'match' is missing; expected text or a list"),
        ("[{match: a, fused: true}]", "optimizer.groups.0.fused", "unknown key 'fused'"),
        ("[{match: a, lr: fast}]", "optimizer.groups.0.lr", "expected a number"),
        ("[{match: [], lr: 1}]", "optimizer.groups.0.match", "expected text or a list"),
        ("[{match: a}, {match: b, lr: 1, lr_scale: 2}]", "optimizer.groups.1.lr_scale",
         "sets the rate that 'lr' sets too"),
        ("[{match: a, lr_scale: 0}]", "optimizer.groups.0.lr_scale", "above 0"),
        ("{match: a}", "optimizer.groups", "expected a list"),
        ("[{match: a}, {match: b, lr: -1.0}]", "optimizer.groups.1.lr",
         "expected a number of at least 0, got -1.0"),
        ("[{match: a, momentum: -1}]", "optimizer.groups.0.momentum", "of at least 0, got -1"),
        ("[{match: a, lr_scale: .inf}]", "optimizer.groups.0", "no longer numbers"),
    ],
)  # fmt: skip
def test_a_group_that_cannot_be_is_told_where_it_stands(config_file, change, path, told):
    text = config_file.read_text().replace("momentum: 0.9}", f"momentum: 0.9, groups: {change}}}")
    config_file.write_text(text)
    line = 1 + text[: text.index("groups:")].count("\n")
    try:
        (fault,) = check_components(load_config(config_file))
    except ConfigError as error:
        (fault,) = error.faults
    assert (fault.path, fault.line) == (path, line) and told in fault.message


@pytest.mark.parametrize("name", ["ASGD", "Rprop"])
def test_until_is_refused_where_steps_go_on_at_a_rate_of_0(config_file, name):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = getattr(torch.optim, name)([weight], lr=0.1)
    for rate in (0.1, 0.0):
        before = weight.item()
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.ones(1)
        optimizer.step()
    assert weight.item() != before  # so torch's own optimizer does go on
    setting = f"optimizer={{name: {name}, groups: [{{match: '*', until: 1ep}}]}}"
    with pytest.raises(ConfigError, match=f"{name} goes on where the learning rate is 0") as caught:
        load_config(config_file, [setting])
    assert [fault.path for fault in caught.value.faults] == ["optimizer.groups.0.until"]


@pytest.mark.parametrize("value", ["0", "1.5", "-1", "high"])
def test_an_impossible_layer_decay_is_refused(config_file, value):
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, [f"optimizer.layer_decay={value}"])
    assert [fault.path for fault in caught.value.faults] == ["optimizer.layer_decay"]


@pytest.mark.parametrize(
    ("groups", "path", "told"),
    [
        ("[{match: featres.*}]", "optimizer.groups.0.match",
         "no parameter matches 'featres.*'; did you mean 'features.*' or "),
        ("[{match: 'classifier.*'}, {match: classifier.0.weight}]", "optimizer.groups.1.match",
         "all that it matches is in groups before it"),
        ("[{match: 'features.*'}]", "optimizer.groups.0.match", "frozen parameters only"),
    ],
)  # fmt: skip
def test_a_pattern_that_leaves_a_group_nothing_is_refused(config_file, groups, path, told):
    more = ["model.freeze=['features.*']"] if "frozen" in told else []
    with pytest.raises(ConfigError) as caught:
        prepare(load_config(config_file, [f"optimizer.groups={groups}", *more]), print)
    (fault,) = caught.value.faults
    assert fault.path == path and told in fault.message


# --- Through a run


def test_a_run_with_groups_goes_on_exactly_logs_each_rate_and_refuses_others(
    train, finished, monkeypatch, tmp_path, capsys
):
    overrides = (GROUPS, "optimizer.no_decay=true", "optimizer.layer_decay=0.9",
                 "scheduler={name: OneCycleLR, warmup: 2st}")  # fmt: skip
    straight = finished(*overrides)
    stopped_at(train, monkeypatch, 4, *overrides)
    runs = (tmp_path / "runs" / "small").iterdir()
    run = max(runs, key=lambda path: path.stat().st_ctime_ns)
    train(resume=run, file=run / "config.yaml")
    assert_same_run(straight, run)
    groups = [tag for tag in tags_of(straight) if tag.startswith("lr/group")]
    line = [line for line in read_metrics(straight / "metrics.jsonl") if "train/loss" in line][-1]
    assert len(groups) == 10 and {tag for tag in line if tag.startswith("lr/")} == set(groups)
    assert load_config(run / "config.yaml") == load_config(straight / "config.yaml")
    for change in ("optimizer.groups.0.lr=0.5", "optimizer.layer_decay=null"):
        with pytest.raises(ConfigError, match="but the run began with"):
            find_resumable(str(run), None, [change], tmp_path)


def test_a_dry_run_names_every_group(start, capsys):
    assert start("--dry-run", GROUPS) == 0
    told = capsys.readouterr().out
    assert "group0  the rest" in told and "group1  features.0.*" in told
    first = lenet().features[0]
    number = first.weight.numel() + first.bias.numel()  # not the two tensors
    assert f"{number:,} parameters, lr 0.002 at the start" in told


def test_the_original_settings_are_not_changed_by_building(config_file):
    config = load_config(config_file, [GROUPS])
    before = copy.deepcopy(config.optimizer.written)
    build_optimizer(config, lenet())
    assert config.optimizer.written == before
    assert math.isclose(before["groups"][1]["lr_scale"], 0.1)


def test_muon_takes_no_order_from_a_yaml(config_file):
    (fault,) = check_components(
        load_config(config_file, ["optimizer={name: Muon, in_order: [1]}", "model=MLP"])
    )
    assert "is set by the trainer" in fault.message
    assert Muon(mlp().parameters()).param_groups


@pytest.mark.parametrize("scheduler", ["null", "CosineAnnealingLR", "{name: StepLR, step_size: 1}"])
def test_a_group_has_rate_0_after_its_time(optimizer_of, scheduler):
    text = "{name: SGD, lr: 0.1, groups: [{match: '0.*', lr: 0.5, until: 2ep}]}"
    model, plain = mlp(), mlp()
    optimizer, schedule = optimizer_of(model, text, f"scheduler={scheduler}", "train.epochs=4")
    more = (f"scheduler={scheduler}", "train.epochs=4")
    other, free = optimizer_of(plain, text.replace(", until: 2ep", ""), *more)
    steps = 5
    for step in range(1, 2 * steps + 3):
        for each in (schedule, free):
            each.optimizer.step()
            each.after_step()
            if step % steps == 0:
                each.after_epoch(0.0)
        rates = [[g["lr"] for g in o.param_groups] for o in (optimizer, other)]
        assert rates[0] == [rates[1][0], 0.0 if step >= 2 * steps else rates[1][1]], step


def test_one_cycle_makes_a_triangle_of_every_groups_rate(optimizer_of):
    text = "{name: SGD, lr: 0.2, groups: [{match: '0.*', lr: 3.0}]}"
    triangle = "{name: OneCycleLR, anneal_strategy: linear, pct_start: 0.25, div_factor: 5, "
    triangle += "final_div_factor: 1000000, cycle_momentum: false}"
    optimizer, schedule = optimizer_of(mlp(), text, f"scheduler={triangle}", "train.epochs=4")
    total = 4 * 5
    top = total / 4 - 1
    for step in range(total):
        rise = 0.2 + 0.8 * step / top
        fall = (total - 1 - step) / (total - 1 - top)
        for group, rate in zip(optimizer.param_groups, (0.2, 3.0), strict=True):
            assert group["lr"] == pytest.approx(rate * min(rise, fall), abs=1e-5 * rate), step
        optimizer.step()
        schedule.after_step()
