from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.models.feature_extraction import create_feature_extractor

from models.lenet import LeNet
from models.mlp import MLP
from trainer.insight.features import feature_maps, first_kernels, grad_cam, penultimate


@pytest.fixture(scope="module")
def lenet():
    torch.manual_seed(0)
    return LeNet(num_classes=4, in_channels=3).eval()


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=5).eval()


def kernels_of(model: nn.Module, shape: tuple[int, int, int]) -> torch.Tensor:
    kernels = first_kernels(model, shape)
    assert kernels is not None
    return kernels


def pictures(count: int = 1, side: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


class Restless(nn.Module):
    """Dropout, batch norm, a frozen layer in eval mode, and a ReLU that writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.relu, self.drop, self.head = nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4, 2)
        self.norm.eval()

    def forward(self, images):
        maps = self.relu(self.norm(self.conv(images)))
        return self.head(self.drop(maps.mean((2, 3)) + torch.rand(4)))


def test_kernels_are_the_first_convolutions_weights(lenet, resnet):
    assert torch.equal(kernels_of(lenet, (3, 32, 32)), lenet.features[0].weight)
    assert torch.equal(kernels_of(resnet, (3, 64, 64)), resnet.conv1.weight)


def test_kernels_of_a_linear_first_layer_are_its_rows_as_images():
    mlp = MLP(num_classes=2, in_channels=3, input_size=[4, 5])
    kernels = kernels_of(mlp, (3, 4, 5))
    assert kernels.shape == (512, 3, 4, 5)
    image = pictures()[:, :, :4, :5]
    first: Any = mlp.layers[0]
    expected = first(image.flatten(1))[0]
    assert torch.allclose((kernels * image).sum((1, 2, 3)) + first.bias, expected, atol=1e-5)


def test_there_are_no_kernels_where_the_first_layer_reads_no_picture():
    assert first_kernels(nn.Sequential(nn.Linear(7, 2)), (3, 4, 4)) is None
    assert first_kernels(nn.Sequential(nn.ReLU()), (3, 4, 4)) is None


def test_feature_maps_are_what_each_layer_gives_in_order(lenet):
    found = feature_maps(lenet, pictures())
    names = [f"features.{i}" for i in range(6)]
    assert list(found) == names
    expected = create_feature_extractor(lenet, names)(pictures())
    for name in names:
        assert torch.equal(found[name], expected[name][0])


def test_feature_maps_of_layers_that_run_twice_and_write_into_their_input(resnet):
    found = feature_maps(resnet, pictures(side=64), channels=7)
    assert all(maps.shape[0] == 7 for maps in found.values())
    assert "layer1.0.relu" in found and "layer1.0.relu (2)" in found
    conv = resnet.conv1(pictures(side=64))[0, :7]
    norm = resnet.bn1(resnet.conv1(pictures(side=64)))[0, :7]
    assert torch.allclose(found["conv1"], conv) and torch.allclose(found["bn1"], norm)
    assert (found["bn1"] < 0).any() and (found["relu"] >= 0).all()


def test_a_model_without_maps_gives_none():
    assert feature_maps(MLP(2, 3, [4, 4]), pictures()[:, :, :4, :4]) == {}


@pytest.mark.parametrize(
    ("name", "node"), [("resnet18", "flatten"), ("mobilenet_v3_small", "classifier.1")]
)
def test_penultimate_features_are_those_of_torchvisions_extractor(name, node):
    model = getattr(torchvision.models, name)(num_classes=5).eval()
    expected = create_feature_extractor(model, [node])(pictures(2, 64))[node]
    assert torch.allclose(penultimate(model, pictures(2, 64)), expected)


def test_penultimate_features_of_a_last_convolution_are_its_inputs_mean():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Flatten())
    expected = model[1](model[0](pictures(2))).mean((2, 3))
    assert torch.allclose(penultimate(model, pictures(2)), expected, atol=1e-6)


def test_penultimate_features_need_a_layer_to_read():
    with pytest.raises(ValueError, match="no linear layer"):
        penultimate(nn.Flatten(), pictures())


@pytest.mark.parametrize("class_index", [0, 3])
def test_grad_cam_is_the_papers_two_equations(lenet, class_index):
    maps = lenet.features(pictures()).detach().requires_grad_()
    score = lenet.classifier(maps.flatten(1))[0, class_index]
    score.backward()
    cam = torch.zeros(5, 5)
    for k in range(16):  # eq. 1 and 2, a channel at a time
        cam += maps.grad[0, k].sum() / 25 * maps[0, k].detach()
    cam = functional.interpolate(cam.clamp_min(0)[None, None], (32, 32), mode="bilinear")[0, 0]
    found, layer = grad_cam(lenet, pictures(), class_index)
    assert layer == "features.5"
    assert torch.allclose(found, cam / cam.max(), atol=1e-5)
    assert found.max() == 1 and found.min() >= 0


def test_grad_cam_looks_at_the_last_blocks_output_after_it_was_written_into(resnet):
    for parameter in resnet.parameters():
        parameter.grad = None
    maps = create_feature_extractor(resnet, ["layer4"])(pictures(side=96))["layer4"]
    maps = maps.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(resnet.fc(maps.mean((2, 3)))[0, 2], maps)
    cam = (gradient.mean((2, 3), keepdim=True) * maps.detach()).sum(1, keepdim=True).relu()
    cam = functional.interpolate(cam, (96, 96), mode="bilinear")[0, 0]
    found, layer = grad_cam(resnet, pictures(side=96), 2)
    assert layer == "layer4.1.relu"
    assert torch.allclose(found, cam / cam.max(), atol=1e-5)
    assert all(parameter.grad is None for parameter in resnet.parameters())


def test_grad_cam_of_parallel_branches_looks_at_their_sum_not_at_the_last_one():
    model = torchvision.models.googlenet(num_classes=3, init_weights=False, aux_logits=False).eval()
    assert grad_cam(model, pictures(side=96), 0)[1] == "inception5b"


def test_grad_cam_works_where_everything_is_frozen_and_under_inference_mode(lenet):
    expected = grad_cam(lenet, pictures(), 1)[0]
    try:
        lenet.requires_grad_(False)
        with torch.inference_mode():
            found = grad_cam(lenet, pictures(), 1)[0]
    finally:
        lenet.requires_grad_(True)
    assert torch.equal(found, expected)


def test_grad_cam_of_a_class_that_nothing_speaks_for_is_zero():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 32 * 32, 2))
    with torch.no_grad():
        list(model.parameters())[2][1].fill_(-1.0)
    assert not grad_cam(model, pictures(), 1)[0].any()


def test_grad_cam_says_why_there_is_none():
    with pytest.raises(ValueError, match="MLP has no layer that gives maps"):
        grad_cam(MLP(2, 3, [32, 32]), pictures(), 0)
    vit = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 16, num_classes=2)
    with pytest.raises(ValueError, match="VisionTransformer goes on with tokens"):
        grad_cam(vit, pictures(), 0)


@pytest.mark.parametrize(
    "look", [feature_maps, penultimate, lambda model, inputs: grad_cam(model, inputs, 0)]
)
def test_looking_leaves_the_model_and_the_generator_as_they_were(look):
    model = Restless().train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [layer.training for layer in model.modules()]
    state = torch.get_rng_state()
    look(model, pictures())
    assert modes == [layer.training for layer in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for layer in model.modules():
        assert not layer._forward_hooks and not layer._forward_pre_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_fails_keeps_no_hooks_and_its_mode():
    model = Restless().train()
    with pytest.raises(RuntimeError):
        feature_maps(model, torch.zeros(1, 2, 8, 8))
    assert model.training and not model.conv._forward_hooks
