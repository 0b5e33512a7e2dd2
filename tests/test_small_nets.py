"""CompactResNet and ResNet: their layers, sizes and sums."""

import math

import pytest
import torch
import torchvision
from torch import nn

from models.compact_resnet import CompactResNet
from models.freeze import freeze
from models.probe import check_input
from models.resnet import ResNet


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def on_meta(build):
    with torch.device("meta"):
        return build()


def normed(maps, bias):
    """Batch norm in training, of scale 1, by its formula."""
    mean = maps.mean((0, 2, 3), keepdim=True)
    variance = ((maps - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (maps - mean) / (variance + 1e-5).sqrt() + bias.view(1, -1, 1, 1)


def halved(maps):
    side = maps.shape[-1] // 2
    patches = maps[..., : 2 * side, : 2 * side].unflatten(3, (side, 2)).unflatten(2, (side, 2))
    return patches.amax((3, 5))


def by_hand(model, images, depth):
    """The network's formula, with convolutions as sums over unfolded patches."""

    def convolved(maps, weight, padding=0):
        columns = nn.functional.unfold(maps, weight.shape[2:], padding=padding)
        side = maps.shape[-1] + 2 * padding - weight.shape[-1] + 1
        return (weight.flatten(1) @ columns).unflatten(2, (side, side))

    def gelu(x):
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    state = model.state_dict()
    maps = gelu(convolved(images, state["whiten.weight"]) + state["whiten.bias"].view(1, -1, 1, 1))
    for number in range(len(model.groups)):
        own = {k.rpartition(f"groups.{number}.")[2]: v for k, v in state.items()}
        pooled = halved(convolved(maps, own["conv1.weight"], 1))
        first = gelu(normed(pooled, own["norm1.bias"]))
        maps = gelu(normed(convolved(first, own["conv2.weight"], 1), own["norm2.bias"]))
        if depth == 3:
            maps = normed(convolved(maps, own["conv3.weight"], 1), own["norm3.bias"])
            maps = gelu(maps + first)
    return maps.amax((2, 3)) @ state["head.weight"].T / 9


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("side", [24, 32])
def test_the_compact_resnet_computes_its_formula_at_several_sizes(depth, side):
    torch.manual_seed(0)
    model = CompactResNet(5, 3, widths=[6, 8], depth=depth).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    images = torch.randn(4, 3, side, side, dtype=torch.double)
    torch.testing.assert_close(model(images), by_hand(model, images, depth))


def test_the_compact_resnet_has_the_sources_parameters_and_fixed_scales():
    model = on_meta(lambda: CompactResNet(10, 3))
    filters = [24 * 64, 64 * 64, 64 * 256, 256 * 256, 256 * 256, 256 * 256]
    norms = 2 * (64 + 256 + 256)
    trained = 24 * 12 + 24 + 9 * sum(filters) + norms + 256 * 10
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    fixed = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert fixed == [f"groups.{g}.norm{n}.weight" for g in range(3) for n in (1, 2)]
    assert CompactResNet(2, 1, widths=[2]).whiten.weight.shape == (8, 1, 2, 2)


def test_the_compact_resnets_statistics_follow_its_momentum():
    torch.manual_seed(0)
    model = CompactResNet(2, 3, widths=[4], batch_norm_momentum=0.75)
    seen: list[torch.Tensor] = []
    norm = model.get_submodule("groups.0.norm1")
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.randn(8, 3, 16, 16))
    mean = 0.75 * seen[0].mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, mean)


@pytest.mark.parametrize(
    ("model", "arguments", "expected"),
    [
        (CompactResNet, {"depth": 4}, "depth must be 2 or 3, not 4"),
        (CompactResNet, {"widths": []}, "widths must be"),
        (CompactResNet, {"batch_norm_momentum": 0.0}, "more than 0 and at most 1"),
        (ResNet, {"depth": 20}, r"depth must be one of \[18, 34, 50\], not 20"),
        (ResNet, {"variant": "tiny"}, "variant must be .*not 'tiny'"),
    ],
)
def test_impossible_arguments_are_refused(model, arguments, expected):
    with pytest.raises(ValueError, match=expected):
        model(2, 3, **arguments)


def test_the_compact_resnet_says_which_images_are_too_small():
    check_input(CompactResNet(2, 3, widths=[2, 2, 2]), (3, 9, 9))
    with pytest.raises(ValueError, match="cannot take 3-channel images of 8 x 8"):
        check_input(CompactResNet(2, 3, widths=[2, 2, 2]), (3, 8, 8))


def test_its_first_filters_can_be_frozen_without_their_bias():
    model = CompactResNet(2, 3, widths=[2])
    assert freeze(model, ["whiten.weight"]) == 24 * 3 * 2 * 2
    assert model.get_parameter("whiten.bias").requires_grad


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_the_imagenet_resnet_equals_torchvisions_in_every_name_and_shape(depth):
    ours = on_meta(lambda: ResNet(1000, 3, depth=depth))
    theirs = on_meta(lambda: torchvision.models.get_model(f"resnet{depth}", weights=None))
    assert list(shapes(ours).items()) == list(shapes(theirs).items())


def test_the_imagenet_resnet_computes_torchvisions_bits_with_its_weights():
    torch.manual_seed(0)
    ours, theirs = ResNet(7, 3).eval(), torchvision.models.resnet18(num_classes=7).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


# 11,173,962 is the count that is published for this network of ten classes.
@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_173_962), (50, 23_520_842)])
def test_the_cifar_resnet_has_the_known_number_of_parameters(depth, parameters):
    assert count(on_meta(lambda: ResNet(10, 3, depth=depth, variant="cifar"))) == parameters


def test_the_cifar_resnet_keeps_the_side_up_to_its_second_stage():
    model = on_meta(lambda: ResNet(10, 1, variant="cifar"))
    sides: list[int] = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda _, __, maps: sides.append(maps.shape[-1]))
    assert model(torch.zeros(2, 1, 32, 32, device="meta")).shape == (2, 10)
    assert sides == [32, 16, 8, 4]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "build",
    [
        lambda channels: CompactResNet(3, channels, widths=[4, 4]),
        lambda channels: CompactResNet(3, channels, widths=[4, 4], depth=3),
        lambda channels: ResNet(3, channels, variant="cifar"),
    ],
)
def test_every_trained_parameter_gets_a_gradient(build, channels):
    torch.manual_seed(0)
    model = build(channels)
    logits = model(torch.randn(2, channels, 32, 32))
    nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
