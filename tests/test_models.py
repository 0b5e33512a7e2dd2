import functools
import hashlib
import importlib
import json
import math
import random
import re
import subprocess
import sys
import urllib.error

import pytest
import torch
import torchvision
from torch import nn

from models import INITIALISATIONS, MODELS, probe
from models.alexnet import AlexNet
from models.external import timm_model, torchvision_model
from models.freeze import freeze, train_mode
from models.initialise import initialise
from models.lenet import LeNet
from models.mlp import MLP
from models.probe import check_input
from models.vgg import VGG
from models.weights import Weights, head_of, load_weights, read_weights, spread_channels
from trainer.build.model import check_size
from trainer.config import load_config
from trainer.process.errors import ConfigError

TORCHVISION = torchvision.models.list_models(module=torchvision.models)
DIGITS = tuple("0123456789")
VGGS = [(depth, batch_norm) for depth in (11, 13, 16, 19) for batch_norm in (False, True)]


def on_meta(build):
    with torch.device("meta"):
        return build()


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def same(model, other, name):
    return torch.equal(model.get_parameter(name), other.get_parameter(name))


def outputs(model, images, kind):
    """Shapes (C, H, W) or (C,) that leave each layer of a kind."""
    found: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _, __, y: found.append(tuple(y.shape[1:])))
    model(images)
    return found.copy()


# --- the table ---------------------------------------------------------------------------------


def test_the_table_is_read_without_torch():
    code = "import sys, models; assert models.MODELS; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", MODELS)
def test_every_name_is_the_name_of_its_class(name):
    module, _, attribute = MODELS[name].partition(":")
    assert getattr(importlib.import_module(module), attribute).__name__ == name == attribute


# --- sizes and shapes --------------------------------------------------------------------------


def test_lenet_has_the_papers_maps_and_61706_parameters():
    model = LeNet(num_classes=10, in_channels=1)
    assert count(model) == 61_706
    convolutions = outputs(model, torch.zeros(2, 1, 32, 32), nn.Conv2d)
    pools = outputs(model, torch.zeros(2, 1, 32, 32), nn.MaxPool2d)
    assert convolutions == [(6, 28, 28), (16, 10, 10)]
    assert pools == [(6, 14, 14), (16, 5, 5)]


def test_lenet_takes_colour():
    model = LeNet(num_classes=2, in_channels=3)
    assert count(model) == 61_706 + 2 * 6 * 25 - 8 * 85
    assert model(torch.zeros(4, 3, 32, 32)).shape == (4, 2)


@pytest.mark.parametrize("side", [224, 227])
def test_alexnet_has_the_papers_maps_and_60965224_parameters(side):
    model = on_meta(lambda: AlexNet(num_classes=1000, in_channels=3))
    assert count(model) == 60_965_224
    layers = outputs(model, torch.zeros(2, 3, side, side, device="meta"), (nn.Conv2d, nn.Linear))
    first = 55 if side == 224 else 56
    assert layers == [
        (96, first, first), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13),
        (4096,), (4096,), (1000,),
    ]  # fmt: skip


def test_alexnet_normalises_responses_by_the_papers_formula():
    norm = next(m for m in AlexNet(2, 1, "cifar").modules() if isinstance(m, nn.LocalResponseNorm))
    a = torch.randn(2, 7, 3, 3) * 50
    expected = torch.empty_like(a)
    for i in range(7):
        neighbours = a[:, max(0, i - 2) : min(6, i + 2) + 1]
        expected[:, i] = a[:, i] / (2 + 1e-4 * neighbours.square().sum(1)) ** 0.75
    torch.testing.assert_close(norm(a), expected)


@pytest.mark.parametrize(("depth", "batch_norm"), VGGS)
def test_vgg_equals_torchvisions_in_every_name_and_shape(depth, batch_norm):
    ours = on_meta(lambda: VGG(1000, 3, depth=depth, batch_norm=batch_norm))
    name = f"vgg{depth}" + "_bn" * batch_norm
    theirs = on_meta(lambda: torchvision.models.get_model(name, weights=None))
    assert list(shapes(ours).items()) == list(shapes(theirs).items())
    images = torch.zeros(2, 3, 224, 224, device="meta")
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.Linear)
    assert outputs(ours, images, kinds) == outputs(theirs, images, kinds)


def test_vgg_computes_what_torchvisions_does_with_the_same_weights():
    theirs = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"], batch_norm=True)
    ours = VGG(10, 3, depth=11, batch_norm=True, variant="cifar").features
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


def test_vgg_for_small_images_differs_in_the_head_only():
    large = shapes(on_meta(lambda: VGG(10, 3, depth=16)))
    small = shapes(on_meta(lambda: VGG(10, 3, depth=16, variant="cifar")))
    assert {name.split(".")[0] for name in large if large[name] != small[name]} == {"classifier"}


def test_mlp_has_the_given_layers():
    model = MLP(num_classes=10, in_channels=1, input_size=[28, 30], hidden=[5, 4])
    linear = [tuple(p.shape) for p in model.parameters() if p.dim() == 2]
    assert linear == [(5, 28 * 30), (4, 5), (10, 4)]
    assert MLP(10, 1, [8, 8], hidden=[])(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


SMALL = [
    pytest.param(lambda c: LeNet(3, c), id="LeNet"),
    pytest.param(lambda c: MLP(3, c, [32, 32], dropout=0.1), id="MLP"),
    pytest.param(lambda c: AlexNet(3, c, variant="cifar"), id="AlexNet"),
    *(
        pytest.param(
            lambda c, d=d, bn=bn: VGG(3, c, depth=d, batch_norm=bn, variant="cifar"),
            id=f"VGG{d}{'_bn' * bn}",
        )
        for d, bn in VGGS
    ),
]
LARGE = [
    pytest.param(lambda c: AlexNet(3, c), id="AlexNet"),
    *(
        pytest.param(lambda c, d=d, bn=bn: VGG(3, c, depth=d, batch_norm=bn), id=f"VGG{d}{bn}")
        for d, bn in VGGS
    ),
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("build", SMALL)
def test_every_model_gives_every_parameter_a_gradient_at_32(build, channels):
    torch.manual_seed(0)
    model = build(channels)
    logits = model(torch.randn(2, channels, 32, 32))
    assert logits.shape == (2, 3)
    nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("build", LARGE)
def test_every_model_runs_backward_at_224(build, channels):
    model = on_meta(lambda: build(channels))
    model(torch.zeros(2, channels, 224, 224, device="meta")).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_alexnet_runs_with_real_numbers_at_224():
    logits = AlexNet(2, 3)(torch.randn(2, 3, 224, 224))
    logits.sum().backward()
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    "build",
    [
        lambda: LeNet(4, 3),
        lambda: MLP(4, 3, [32, 32]),
        lambda: AlexNet(4, 3, variant="cifar", dropout=0.0),
        lambda: VGG(4, 3, depth=16, variant="cifar", dropout=0.0),
        lambda: VGG(4, 3, depth=11, batch_norm=True, variant="cifar", dropout=0.0),
    ],
    ids=["LeNet", "MLP", "AlexNet", "VGG16", "VGG11_bn"],
)
def test_every_model_memorises_a_batch(build):
    torch.manual_seed(0)
    images = nn.functional.interpolate(torch.randn(8, 3, 4, 4), size=32, mode="bilinear")
    model, labels = build(), torch.arange(8) % 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.05:
            return
    pytest.fail(f"the loss is {loss:.3f} after 60 steps on one batch")


@pytest.mark.parametrize(
    ("model", "arguments", "expected"),
    [
        (VGG, {"depth": 12}, r"depth must be one of \[11, 13, 16, 19\], not 12"),
        (VGG, {"variant": "tiny"}, r"variant must be .*'imagenet', 'cifar'.* not 'tiny'"),
        (AlexNet, {"variant": "tiny"}, r"variant must be .*'imagenet', 'cifar'.* not 'tiny'"),
        (AlexNet, {"variant": "cifar", "dropout": 1.5}, "dropout probability"),
        (MLP, {"input_size": [32, 32], "hidden": [16, 0]}, r"at least 1, not \[16, 0\]"),
        (MLP, {"input_size": [32]}, r"\[height, width\], not \[32\]"),
    ],
)
def test_impossible_arguments_are_refused_with_what_is_possible(model, arguments, expected):
    with pytest.raises(ValueError, match=expected):
        model(2, 3, **arguments)


# --- initialisation ----------------------------------------------------------------------------


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(64, 128, 3)  # fan_in 576, fan_out 1152
        self.norm = nn.BatchNorm2d(128)
        self.linear = nn.Linear(400, 200)


@pytest.mark.parametrize(
    ("scheme", "convolution", "linear"),
    [
        ("xavier", math.sqrt(2 / (576 + 1152)), math.sqrt(2 / (400 + 200))),
        ("kaiming", math.sqrt(2 / 576), math.sqrt(2 / 400)),
        ("normal", 0.01, 0.01),
        ("orthogonal", math.sqrt(2 / 576), math.sqrt(2 / 400)),
    ],
)
def test_initialisation_has_the_spread_of_its_paper(scheme, convolution, linear):
    torch.manual_seed(0)
    model = Layers()
    norm = model.norm.weight.detach().uniform_().clone()
    initialise(model, scheme)
    for layer, std in ((model.convolution, convolution), (model.linear, linear)):
        assert abs(layer.weight.mean()) < 0.03 * std
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        assert layer.bias is not None and not layer.bias.any()
    assert torch.equal(model.norm.weight, norm)


def test_an_unknown_initialisation_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="init must be one of .*'kaiming'.* not 'he'"):
        initialise(LeNet(2, 1), "he")


def test_xavier_is_uniform_and_orthogonal_is_orthogonal():
    model = Layers()
    initialise(model, "xavier")
    bound = math.sqrt(6 / (400 + 200))
    assert 0.99 * bound < model.linear.weight.abs().max() <= bound
    initialise(model, "orthogonal")
    rows = model.linear.weight @ model.linear.weight.T
    torch.testing.assert_close(rows, 2 * torch.eye(200), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scheme", INITIALISATIONS)
def test_initialisation_follows_the_seed(scheme):
    def draw(seed):
        torch.manual_seed(seed)
        model = LeNet(2, 1)
        initialise(model, scheme)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_a_deep_vgg_starts_with_living_signals():
    torch.manual_seed(0)
    model = VGG(10, 3, depth=19, variant="cifar").eval()
    spread = model(torch.randn(16, 3, 32, 32)).std(0).mean()
    assert 0.02 < spread < 5  # torch's own default leaves about 1e-5: the net would not train


# --- freeze ------------------------------------------------------------------------------------


def test_freeze_stops_the_parameters_that_match_and_counts_them():
    model = LeNet(10, 1)
    assert freeze(model, ["features.*", "classifier.0.bias"]) == 156 + 2416 + 120
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [
        "classifier.0.weight", "classifier.2.weight", "classifier.2.bias",
        "classifier.4.weight", "classifier.4.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["features.*", "feature.*"], r"'feature\.\*'; did you mean 'features\.\*'"),
        (["clasifier.0.wieght"], r"did you mean 'classifier\.0\.weight'"),
        (["features"], r"did you mean 'features\.\*'"),
        (["zzz"], r"did you mean 'features\.\*' or 'classifier\.\*'\?"),
        (["*"], "nothing to train"),
        (["features.*", "classifier.*"], "nothing to train"),
    ],
)
def test_a_freeze_that_cannot_be_meant_is_refused_and_changes_nothing(patterns, expected):
    model = LeNet(10, 1)
    with pytest.raises(ValueError, match=expected):
        freeze(model, patterns)
    assert all(p.requires_grad for p in model.parameters())


def test_no_patterns_freeze_nothing():
    assert freeze(LeNet(10, 1), []) == 0


def test_training_leaves_frozen_statistics_alone_and_moves_the_others():
    model = torchvision_model("resnet18", 2, 3, None, {})
    freeze(model, ["conv1.*", "bn1.*", "layer[12].*"])
    model.eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    train_mode(model)
    model(torch.randn(2, 3, 32, 32))
    for name, buffer in model.named_buffers():
        frozen = name.startswith(("bn1", "layer1", "layer2"))
        assert torch.equal(buffer, before[name]) == frozen, name
    assert model.training and model.get_submodule("layer1").training
    assert not model.get_submodule("layer1.0.bn1").training


def test_statistics_without_parameters_are_not_frozen():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, affine=False), nn.Dropout())
    train_mode(model.eval())
    assert model[1].training and model[2].training


# --- probe -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "shape", "expected"),
    [
        (
            lambda: VGG(2, 3, depth=16, batch_norm=True, variant="cifar"),
            (3, 16, 16),
            r"VGG cannot take 3-channel images of 16 x 16: layer features\.43 \(MaxPool2d\)"
            r" received \(2, 512, 1, 1\).*smallest square size that works is 32 x 32",
        ),
        (
            lambda: VGG(2, 3),
            (3, 32, 32),
            r"classifier\.0 \(Linear\) received \(2, 512\).*works is 224 x 224",
        ),
        (
            lambda: LeNet(2, 3),
            (3, 28, 28),
            r"classifier\.0 \(Linear\) received \(2, 256\).*works is 32 x 32",
        ),
        (
            lambda: LeNet(2, 3),
            (3, 64, 64),
            r"classifier\.0 \(Linear\) received \(2, 2704\).*sizes from 32 to 35 work",
        ),
        (lambda: LeNet(2, 3), (3, 8, 64), r"8 x 64.*works is 32 x 32"),
        (lambda: MLP(2, 1, [28, 28]), (1, 32, 32), r"It works at 28 x 28 only"),
        (
            lambda: LeNet(2, 3),
            (1, 32, 32),
            r"features\.0 \(Conv2d\) received \(2, 1, 32, 32\).*No square size up to 512 x 512",
        ),
        (
            lambda: AlexNet(2, 3),
            (3, 100, 32),
            r"100 x 32.*features\.\d+ \(MaxPool2d\).*works is 223 x 223",
        ),
        (
            lambda: torchvision_model("vit_b_32", 2, 3, None, {}),
            (3, 32, 32),
            r"layer \(root\) \(VisionTransformer\).*works is 224 x 224",
        ),
    ],
)
def test_a_wrong_size_is_told_by_layer_shape_and_the_size_that_works(build, shape, expected):
    with pytest.raises(ValueError, match=expected):
        check_input(on_meta(build), shape)


@pytest.mark.parametrize(
    ("name", "side", "smallest", "largest"),
    [
        ("inception_v3", 32, 75, 512),
        ("squeezenet1_0", 20, 21, 512),
        ("alexnet", 1, 63, 512),
        ("vit_b_32", 300, 224, 224),
    ],
)
def test_the_sizes_that_work_are_found_exactly_with_few_tries(
    monkeypatch, name, side, smallest, largest
):
    """Each bound is checked by trying it and the size beyond it; 512 sizes are never tried."""
    model = on_meta(lambda: torchvision_model(name, 2, 3, None, {})).eval()
    sides, run = [], probe._run

    def counted(model, stand_ins, shape):
        sides.append(shape[1])
        run(model, stand_ins, shape)

    monkeypatch.setattr(probe, "_run", counted)
    with pytest.raises(ValueError, match=rf"[a-z ]{smallest}( x|.* {largest} work|.*only)"):
        check_input(model, (3, side, side))
    assert len(sides) <= 40
    assert not any("forward" in vars(module) for module in model.modules())
    for size in {smallest, largest}:
        check_input(model, (3, size, size))
    for size in {smallest - 1, largest + 1} - {513}:
        with pytest.raises(ValueError, match="cannot take"):
            check_input(model, (3, size, size))


def test_of_sizes_that_work_only_here_and_there_one_is_named(config_file):
    class Patches(nn.Module):
        def forward(self, images):
            return images.unflatten(3, (-1, 32)).flatten(1)

    with pytest.raises(ConfigError) as raised:
        check_size(load_config(config_file), Patches(), (3, 50, 50))
    assert "Square sizes such as 32 x 32 work" in str(raised.value)
    assert "{name: Resize, size: [32, 32]} in transforms.train and" in str(raised.value)


@pytest.mark.parametrize(
    ("build", "shape", "size"),
    [
        (lambda: LeNet(2, 3), (3, 28, 28), 32),
        (lambda: LeNet(2, 3), (3, 64, 64), 32),
        (lambda: MLP(2, 1, [28, 28]), (1, 32, 32), 28),
        (lambda: LeNet(2, 3), (1, 32, 32), None),
    ],
)
def test_the_error_of_a_wrong_size_carries_a_size_that_works(build, shape, size):
    with pytest.raises(probe.ImageSizeError) as raised:
        check_input(on_meta(build), shape)
    assert raised.value.size == size


@pytest.mark.parametrize("side", [1, 4, 5, 13, 16, 31, 32, 35, 36, 64])
def test_the_probe_judges_as_a_real_run_does(side):
    model = LeNet(2, 1)
    try:
        model(torch.zeros(2, 1, side, side))
        runs = True
    except RuntimeError:
        runs = False
    if runs:
        check_input(model, (1, side, side))
    else:
        with pytest.raises(ValueError, match="LeNet cannot take"):
            check_input(model, (1, side, side))


def test_the_probe_leaves_a_layer_with_two_names_and_a_tied_weight_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = self.b = nn.Conv2d(3, 3, 5, padding=2)
            self.tied = nn.Conv2d(3, 3, 5, bias=False)
            self.tied.weight = self.a.weight

        def forward(self, images):
            return self.tied(self.b(self.a(images))).mean((2, 3))

    model = Twice()
    before = dict(model.named_parameters())
    check_input(model, (3, 8, 8))
    with pytest.raises(ValueError, match=r"layer tied .*smallest square size that works is 5 x 5"):
        check_input(model, (3, 4, 4))
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and model.tied.weight is model.b.weight
    assert all(after[name] is parameter for name, parameter in before.items())


@pytest.mark.parametrize("side", [16, 32])
def test_the_probe_leaves_weights_statistics_mode_hooks_and_randomness_alone(side):
    model = VGG(2, 3, depth=11, batch_norm=True, variant="cifar")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    randomness = torch.get_rng_state()
    try:
        check_input(model, (3, side, side))
    except ValueError:
        assert side == 16
    assert torch.equal(torch.get_rng_state(), randomness)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks
               for m in model.modules())  # fmt: skip


def test_the_probe_draws_nothing_for_a_model_that_draws_on_the_cpu():
    class RandomDepth(nn.Module):
        def forward(self, images):
            return images * 2 if torch.rand(1).item() < 0.5 else images

    randomness = torch.get_rng_state()
    check_input(RandomDepth(), (3, 8, 8))
    assert torch.equal(torch.get_rng_state(), randomness)


def test_a_model_that_cannot_run_on_meta_is_not_judged():
    class Peeks(nn.Module):
        def forward(self, images):
            return images if images.sum().item() > 0 else -images

    check_input(Peeks(), (3, 8, 8))


# --- weights -----------------------------------------------------------------------------------


def lenet(channels=1):
    """LeNet for a number of classes."""
    return functools.partial(LeNet, in_channels=channels)


def last_layer(model):
    return model.get_parameter("classifier.4.weight"), model.get_parameter("classifier.4.bias")


def test_weights_of_the_same_model_are_loaded_whole_and_said_to_be(tmp_path):
    trained = LeNet(10, 1)
    path = str(tmp_path / "model.pt")
    torch.save(trained.state_dict(), path)
    model = LeNet(10, 1)
    assert load_weights(model, read_weights(path), DIGITS, lenet()) == (
        f"{path}: 10 of 10 tensors taken; "
        "the head is taken row by row: which 10 classes it was for is not known"
    )
    assert all(same(model, trained, name) for name, _ in model.named_parameters())


def test_a_head_for_another_number_of_unknown_classes_stays_new():
    trained, model = LeNet(10, 1), LeNet(3, 1)
    head = [tensor.clone() for tensor in last_layer(model)]
    assert load_weights(model, Weights(trained.state_dict()), "abc", lenet()) == (
        "weights: 8 of 10 tensors taken; the head is for 10 classes, and the data have 3; "
        "started fresh: 2 tensors (classifier.4.weight, classifier.4.bias)"
    )
    assert all(map(torch.equal, last_layer(model), head))
    assert same(model, trained, "classifier.2.weight")


@pytest.mark.parametrize(
    ("theirs", "mine", "rows", "told"),
    [  # rows[k]: which row of the file is that of class k; None: a new one
        ("abc", "abc", [0, 1, 2], "the head is for the same classes"),
        (
            "cab",
            "abc",
            [1, 2, 0],
            "the head is for the same classes, its rows brought into the order of the data's",
        ),
        (
            "abc",
            "bxc",
            [1, None, 2],
            "the head has 2 of its 3 rows taken by class name, 1 new rows (x), 1 left out (a)",
        ),
        ("abcd", "db", [3, 1], "2 of its 4 rows taken by class name, 2 left out (a, c)"),
        ("ab", "abc", [0, 1, None], "2 of its 2 rows taken by class name, 1 new rows (c)"),
        ("abc", "xyz", [None] * 3, "the head is for 3 other classes (a, b, c); started fresh: 2"),
    ],
)
def test_rows_of_the_head_are_those_of_their_class_names(theirs, mine, rows, told):
    trained, model = LeNet(len(theirs), 1), LeNet(len(mine), 1)
    before = [tensor.clone() for tensor in last_layer(model)]
    said = load_weights(model, Weights(trained.state_dict(), tuple(theirs)), mine, lenet())
    assert told in said
    for now, fresh, old in zip(last_layer(model), before, last_layer(trained), strict=True):
        expected = [fresh[k] if row is None else old[row] for k, row in enumerate(rows)]
        assert torch.equal(now, torch.stack(expected))
    assert same(model, trained, "features.0.weight")


def test_the_head_is_what_one_more_class_enlarges_also_where_other_layers_have_as_many_rows():
    trained, model = LeNet(6, 1), LeNet(6, 1)  # LeNet's first convolution has six maps
    said = load_weights(model, Weights(trained.state_dict(), tuple("abcdef")), "uvwxyz", lenet())
    assert "started fresh: 2 tensors (classifier.4.weight, classifier.4.bias)" in said
    assert same(model, trained, "features.0.weight")
    two = torchvision.models.get_model("maxvit_t", num_classes=7)
    found = head_of(
        two.state_dict(), lambda n: torchvision.models.get_model("maxvit_t", num_classes=n), 7
    )
    assert found == {"classifier.5.weight"}


def test_a_file_without_a_head_is_taken_as_such():
    trained, model = LeNet(3, 1), LeNet(3, 1)
    state = trained.state_dict()
    body = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.4")}
    said = load_weights(model, Weights(body, tuple("abc")), "abc", lenet())
    assert said == (
        "weights: 8 of 10 tensors taken; the file has no head; "
        "started fresh: 2 tensors (classifier.4.weight, classifier.4.bias)"
    )
    features = {name: tensor for name, tensor in state.items() if name.startswith("features")}
    said = load_weights(model, Weights(features), "abc", lenet())  # of VGG and the like too
    assert "4 of 10 tensors taken" in said and "started fresh: 6 tensors" in said
    with pytest.raises(ValueError, match=r"missing features\.0\.weight"):
        load_weights(model, Weights({"features.3.bias": state["features.3.bias"]}), "abc", lenet())


@pytest.mark.parametrize(
    "begin", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "net.backbone.", "state."]
)
def test_names_that_wrappers_and_programs_put_before_those_of_the_model_are_passed_over(begin):
    trained, model = LeNet(2, 1), LeNet(2, 1)
    state = {begin + name: tensor for name, tensor in trained.state_dict().items()}
    said = load_weights(model, Weights(state | {"n_averaged": torch.ones(())}), "ab", lenet())
    assert "10 of 10 tensors" in said
    assert said.endswith("left out of the file: 1 tensors (n_averaged)")
    assert all(same(model, trained, name) for name, _ in model.named_parameters())


def test_a_wrapper_within_the_model_is_passed_over_too():
    trained, model = LeNet(2, 1), LeNet(2, 1)
    state = {
        name.replace("features.", "features.module."): tensor
        for name, tensor in trained.state_dict().items()
    }
    load_weights(model, Weights(state), "ab", lenet())
    assert same(model, trained, "features.3.weight")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (lambda own, other: {"state_dict": own, "epoch": 3}, ""),
        (lambda own, other: {"model": own, "optimizer": {"state": {}, "param_groups": []}}, ""),
        (lambda own, other: {"net": own, "acc": 0.5}, ""),
        (lambda own, other: {"state_dict": other, "state_dict_ema": own}, ", state_dict_ema"),
        (lambda own, other: {"model": other, "model_ema": own}, ", model_ema"),
        (lambda own, other: {"state_dict": own, "teacher": other}, ", state_dict"),
    ],
)
def test_of_a_training_checkpoint_the_averaged_weights_are_taken_or_else_the_weights(
    tmp_path, content, part
):
    own, other = LeNet(2, 1).state_dict(), LeNet(2, 1).state_dict()
    path = str(tmp_path / "checkpoint.pt")
    torch.save(content(own, other), path)
    weights = read_weights(path)
    assert weights.source == path + part
    assert all(torch.equal(weights.state[name], own[name]) for name in own)


@pytest.mark.parametrize(
    "names", [{"classes": ["b", "a"]}, {"class_to_idx": {"a": 1, "b": 0}}], ids=str
)
def test_class_names_of_a_training_checkpoint_are_read(tmp_path, names):
    torch.save({"state_dict": LeNet(2, 1).state_dict(), **names}, tmp_path / "checkpoint.pt")
    assert read_weights(str(tmp_path / "checkpoint.pt")).classes == ("b", "a")


def test_a_runs_class_names_count_only_for_the_file_that_its_model_json_describes(tmp_path):
    torch.save(LeNet(2, 1).state_dict(), tmp_path / "model.pt")
    digest = hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()
    card = {"classes": ["b", "a"], "metrics": {"epoch": 4}, "weights": {"sha256": digest}}
    (tmp_path / "model.json").write_text(json.dumps(card))
    weights = read_weights(str(tmp_path / "model.pt"))
    assert weights.classes == ("b", "a") and weights.source.endswith("model.pt, epoch 4")
    folder = tmp_path / "checkpoints" / "step-000000007"
    folder.mkdir(parents=True)
    torch.save(LeNet(2, 1).state_dict(), folder / "weights.pt")
    assert read_weights(str(folder / "weights.pt")).classes == ("b", "a")
    torch.save(LeNet(2, 1).state_dict(), tmp_path / "model.pt")  # put there by somebody
    assert read_weights(str(tmp_path / "model.pt")).classes is None


def test_safetensors_are_read_with_their_class_names(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    trained, model = LeNet(2, 1), LeNet(2, 1)
    path = tmp_path / "model.safetensors"
    library.save_file(trained.state_dict(), path, {"classes": json.dumps(["b", "a"])})
    weights = read_weights(str(path))
    load_weights(model, weights, "ab", lenet())
    assert torch.equal(last_layer(model)[0], last_layer(trained)[0].flip(0))
    library.save_file(trained.state_dict(), path)
    assert read_weights(str(path)).classes is None
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "b", "1": "a"}}))
    assert read_weights(str(path)).classes == ("b", "a")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="cannot be read: "):
        read_weights(str(path))


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 5), (3, 4)])
def test_an_image_of_equal_channels_gives_the_same_result_with_other_channels(old, new):
    trained, model = LeNet(2, old), LeNet(2, new)
    said = load_weights(model, Weights(trained.state_dict()), "ab", lenet(new))
    assert f"features.0.weight made for {new} channels, from {old}" in said
    grey = torch.randn(2, 1, 32, 32)
    expected = trained(grey.expand(-1, old, -1, -1))
    torch.testing.assert_close(model(grey.expand(-1, new, -1, -1)), expected)


def test_grey_weights_are_the_sum_over_colours():
    weight = torch.arange(6.0).reshape(1, 3, 1, 2)
    assert spread_channels(weight, 1).tolist() == [[[[6.0, 9.0]]]]


def test_weights_that_do_not_fit_are_refused_with_every_difference():
    state = VGG(2, 3, depth=11, variant="cifar").state_dict()
    with pytest.raises(ValueError, match=r"do not fit LeNet: unexpected features\.6\.weight.*more"):
        load_weights(LeNet(2, 3), Weights(state), "ab", lenet(3))
    state = LeNet(2, 3).state_dict()
    state["classifier.2.bias"] = torch.zeros(7)
    del state["features.3.bias"]
    with pytest.raises(
        ValueError, match=r"missing features\.3\.bias; classifier\.2\.bias is \(7,\)"
    ):
        load_weights(LeNet(2, 3), Weights(state), "ab", lenet(3))


def test_files_that_are_no_state_dict_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    with pytest.raises(ValueError, match="there is no file"):
        read_weights(str(path))
    for content in (b"", b"not weights"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read: "):
            read_weights(str(path))
    torch.save(LeNet(2, 1), path)  # a pickled object: reading it would run code
    with pytest.raises(ValueError, match="cannot be read: "):
        read_weights(str(path))
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, path)
    with pytest.raises(ValueError, match="not a plain state_dict"):
        read_weights(str(path))
    torch.save({"generator": {"a": torch.ones(1)}, "critic": {"a": torch.ones(1)}}, path)
    with pytest.raises(ValueError, match="holds several: generator, critic"):
        read_weights(str(path))
    with pytest.raises(ValueError, match=r"is a folder; name a file, such as a run's model\.pt"):
        read_weights(str(tmp_path))


def test_a_damaged_weights_file_is_a_value_error_without_torchs_advice(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(4, 3)}, path)
    good = path.read_bytes()
    dice = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(good[: dice.randrange(1, len(good) + 1)])
        damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            read_weights(str(path))
        except ValueError as error:
            assert str(error).startswith(f"weights: {path}") and "weights_only" not in str(error)
            assert type(error) is ValueError  # not its kin, such as UnicodeDecodeError
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(("tensor", "told"), [
    (torch.ones(2, dtype=torch.complex64), ": a is of torch.complex64; expected real numbers"),
    (torch.ones(2, device="meta"), "_rebuild_meta_tensor_no_storage', which is neither"),
])  # fmt: skip
def test_weights_that_are_not_dense_real_numbers_are_refused(tmp_path, tensor, told):
    torch.save({"a": tensor}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=told):
        read_weights(str(tmp_path / "weights.pt"))


# --- torchvision -------------------------------------------------------------------------------


# One of each family, and those of other stems, heads or blocks within it. The others are wider or
# deeper only.
FAMILIES = {
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s"),
    *("googlenet", "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d"),
    *("shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11"),
    *("vgg11_bn", "vit_b_16", "wide_resnet50_2", "mobilenet_v3_large"),
}
FEW_THEN_ALL = [
    pytest.param(name, marks=[] if name in FAMILIES else pytest.mark.slow) for name in TORCHVISION
]


def test_every_torchvision_classifier_has_one_of_its_family_here():
    family = re.compile(r"\b(?:efficientnet_v2|swin_v2|mobilenet_v\d|regnet_.|wide_resnet|[a-z]+)")
    here, all_of_them = (set(family.findall(" ".join(names))) for names in (FAMILIES, TORCHVISION))
    assert here == all_of_them and set(TORCHVISION) >= FAMILIES


@pytest.mark.parametrize("name", FEW_THEN_ALL)
def test_every_torchvision_classifier_takes_our_classes_and_channels(name, monkeypatch):
    block_params = torchvision.models.regnet.BlockParams

    def computed_on_cpu(*args, **kwargs):  # RegNet computes its widths with tensors
        with torch.device("cpu"):
            return original(*args, **kwargs)

    original = block_params.from_init_params
    monkeypatch.setattr(block_params, "from_init_params", computed_on_cpu)
    model = on_meta(lambda: torchvision_model(name, 7, 1, None, {}))
    side = 299 if name == "inception_v3" else 224
    logits = model.train()(torch.zeros(2, 1, side, side, device="meta"))
    assert isinstance(logits, torch.Tensor) and logits.shape == (2, 7)
    theirs = shapes(on_meta(lambda: torchvision.models.get_model(name, init_weights=True))
                    if name in ("googlenet", "inception_v3")
                    else on_meta(lambda: torchvision.models.get_model(name)))  # fmt: skip
    differ = [key for key, shape in shapes(model).items() if theirs[key] != shape]
    assert len(differ) in (2, 3)  # the first convolution, and the head with or without a bias


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mnasnet0_5", "googlenet"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_trained_weights_come_with_a_new_head_and_an_adapted_stem(
    name, in_channels, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    arguments = {"init_weights": True} if name == "googlenet" else {}
    torch.manual_seed(0)
    trained = torchvision.models.get_model(name, weights=None, **arguments).eval()
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(trained.state_dict(), tmp_path / "checkpoints" / url.rpartition("/")[2])

    model = torchvision_model(name, 5, in_channels, "DEFAULT", {}).eval()
    grey = torch.randn(2, 1, 64, 64)
    features, expected = [], []
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    their_last = dict(trained.named_modules())[
        next(n for n, m in model.named_modules() if m is last)
    ]
    last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    their_last.register_forward_pre_hook(lambda _, inputs: expected.append(inputs[0]))
    assert model(grey.expand(-1, in_channels, -1, -1)).shape == (2, 5)
    trained(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("named", ["categories", "wnids", "others"])
def test_imagenets_head_is_taken_only_for_imagenets_classes(named, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    entry = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT
    trained = torchvision.models.get_model("squeezenet1_1", weights=None)
    (tmp_path / "checkpoints").mkdir()
    torch.save(trained.state_dict(), tmp_path / "checkpoints" / entry.url.rpartition("/")[2])
    classes = {
        "categories": entry.meta["categories"][::-1],
        "wnids": [f"n{k:08}" for k in range(1000)],  # as ImageNet's folders are named
        "others": [f"bird {k}" for k in range(1000)],
    }[named]
    said: list[str] = []
    torch.manual_seed(1)
    model = torchvision_model("squeezenet1_1", 1000, 3, "DEFAULT", {}, classes, said.append)
    head, theirs = (m.get_parameter("classifier.1.weight") for m in (model, trained))
    if named == "categories":
        assert "order of the data's" in said[0] and torch.equal(head, theirs.flip(0))
    elif named == "wnids":
        assert "row by row" in said[0] and torch.equal(head, theirs)
    else:
        assert "started fresh: 2 tensors" in said[0] and not torch.equal(head, theirs)


def test_a_failed_download_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(ValueError) as caught:
        torchvision_model("resnet18", 2, 3, "IMAGENET1K_V1", {})
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in str(caught.value)
    assert str(tmp_path / "checkpoints" / "resnet18-f37072fd.pth") in str(caught.value)


def test_a_file_in_the_download_folder_is_never_unpickled_as_code(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(LeNet(2, 1), tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    with pytest.raises(ValueError, match="could not be downloaded"):
        torchvision_model("resnet18", 2, 3, "DEFAULT", {})


def test_a_state_dict_file_is_fine_tuned_for_other_classes(tmp_path):
    trained = torchvision_model("squeezenet1_1", 10, 3, None, {})
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    model = torchvision_model("squeezenet1_1", 2, 3, str(tmp_path / "model.pt"), {"dropout": 0.1})
    assert same(model, trained, "features.0.weight")
    assert model.get_parameter("classifier.1.weight").shape[0] == 2
    assert "p=0.1" in repr(model.get_submodule("classifier.0"))


@pytest.mark.parametrize(
    ("name", "weights", "arguments", "expected"),
    [
        ("resnet81", None, {}, r"torchvision has no model 'resnet81'; did you mean .*'resnet18'"),
        ("fcn_resnet50", None, {}, "torchvision has no model"),  # segmentation
        (
            "resnet18",
            "BEST",
            {},
            "'BEST' is neither a file nor weights of .*IMAGENET1K_V1, DEFAULT",
        ),
        ("resnet18", None, {"depht": 3}, "torchvision/resnet18: .*unexpected.*'depht'"),
        ("resnet18", None, {"num_classes": 3}, "num_classes cannot be set"),
        ("googlenet", None, {"aux_logits": True}, "aux_logits cannot be set"),
    ],
)
def test_a_wrong_torchvision_model_is_refused(name, weights, arguments, expected):
    with pytest.raises(ValueError, match=expected):
        torchvision_model(name, 2, 3, weights, arguments)


# --- timm --------------------------------------------------------------------------------------


def test_timm_models_take_our_classes_channels_arguments_and_weights(tmp_path):
    pytest.importorskip("timm")
    model = timm_model("resnet18.a1_in1k", 5, 1, None, {"drop_rate": 0.25})
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    assert model.drop_rate == 0.25
    torch.save(model.state_dict(), tmp_path / "model.pt")
    tuned = timm_model("resnet18", 2, 1, str(tmp_path / "model.pt"), {})
    assert same(tuned, model, "conv1.weight")
    assert tuned.get_parameter("fc.weight").shape[0] == 2


@pytest.mark.parametrize(
    ("name", "weights", "arguments", "expected"),
    [
        ("resnet81", None, {}, "timm has no model 'resnet81'; did you mean .*resnet"),
        ("resnet18.a9_in1k", None, {}, r"no model .*; did you mean .*'resnet18\.a\d_in1k'"),
        ("hf-hub:someone/something", None, {}, "timm has no model"),
        ("hf-hub:timm/resnet18.a1_in1k", None, {}, "timm has no model"),
        ("resnet18", None, {"checkpoint_path": "x.pt"}, "checkpoint_path cannot be set"),
        ("resnet18", None, {"depht": 3}, "timm/resnet18: .*unexpected.*'depht'"),
        ("resnet18", "nowhere.pt", {}, "there is no file 'nowhere.pt'"),
    ],
)
def test_a_wrong_timm_model_is_refused(name, weights, arguments, expected):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=expected):
        timm_model(name, 2, 3, weights, arguments)


@pytest.mark.parametrize("depths", [100_000, [2, 2, 100_000, 2]])
def test_a_number_that_would_build_for_minutes_is_refused_at_once(depths):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="timm/test_mambaout: depths must be at most 1,000, is"):
        timm_model("test_mambaout", 2, 3, None, {"depths": depths})
    with pytest.raises(ValueError, match="image_size must be at most 65,536, is 100000"):
        torchvision_model("vit_b_16", 2, 3, None, {"image_size": 100_000})


def test_a_failed_timm_download_says_where_the_weights_are(monkeypatch):
    timm = pytest.importorskip("timm")

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(ValueError, match=r"huggingface\.co/timm/resnet18\.a1_in1k \(no network\)"):
        timm_model("resnet18", 2, 3, "DEFAULT", {})


def test_without_timm_the_install_command_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[timm\]"'):
        timm_model("resnet18", 2, 3, None, {})


def test_lenet_computes_what_relu_before_the_pooling_would():
    torch.manual_seed(0)
    model, images = LeNet(10, 3), torch.randn(8, 3, 32, 32)
    first, second = (m for m in model.features if isinstance(m, nn.Conv2d))

    def textbook(images):
        pooled = nn.functional.max_pool2d(torch.relu(first(images)), 2)
        pooled = nn.functional.max_pool2d(torch.relu(second(pooled)), 2)
        return model.classifier(pooled.flatten(1))

    gradients = []
    for forward in (model, textbook):
        model.zero_grad()
        logits = forward(images)
        logits.square().sum().backward()
        gradients.append([logits, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
