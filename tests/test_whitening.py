"""``model.init`` with whiten and dirac, by layer; whitening in a run, a resume and a prediction."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from models.compact_resnet import CompactResNet
from models.initialise import initialise
from models.resnet import ResNet
from models.whiten import whiten
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.process.errors import ConfigError
from trainer.train import main


def correlated(count=40, side=9, channels=3):
    """Images whose neighbouring pixels and channels are alike, with a mean that is not 0."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(count, channels, side + 2, side + 2))
    smooth = noise[..., 2:, 2:] + noise[..., 1:-1, 1:-1] + 0.7 * noise[..., :-2, 2:]
    images = smooth + smooth[:, :1] + 0.3
    return torch.from_numpy(images.astype(np.float32))


def patches_of(images, height, width):
    """Every patch, (N, C * height * width) float64, by plain loops."""
    array = images.numpy().astype(np.float64)
    _, _, h, w = array.shape
    places = [(y, x) for y in range(h - height + 1) for x in range(w - width + 1)]
    cuts = [array[:, :, y : y + height, x : x + width] for y, x in places]
    return np.concatenate([cut.reshape(len(array), -1) for cut in cuts])


@pytest.mark.parametrize("kernel", [(2, 2), (1, 3)])
def test_whitened_patches_are_uncorrelated_and_of_variance_one_up_to_eps(kernel):
    images = correlated()
    size = 3 * kernel[0] * kernel[1]
    layer = nn.Conv2d(3, 2 * size + 1, kernel)
    whiten(layer, images.split(7))
    outputs = patches_of(images, *kernel) @ layer.weight.detach().double().flatten(1).numpy().T
    covariance = np.cov(outputs[:, :size], rowvar=False, bias=True)
    variances = np.linalg.eigvalsh(np.cov(patches_of(images, *kernel), rowvar=False, bias=True))
    expected = np.diag(variances[::-1] / (variances[::-1] + 5e-4))
    np.testing.assert_allclose(covariance, expected, atol=1e-5)
    np.testing.assert_array_equal(outputs[:, size : 2 * size], -outputs[:, :size])


def test_whitening_keeps_the_filters_that_have_no_place_and_tells_the_counts():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 30, 2)
    before = layer.weight.detach().clone()
    assert whiten(layer, [correlated()]) == (
        "24 of 30 filters whiten 2,560 patches of 40 training images"
    )
    assert torch.equal(layer.weight[24:], before[24:])
    assert not torch.isclose(layer.weight[:24], before[:24]).any(0).all()


def test_whitening_has_the_same_bits_whatever_the_signs_of_the_eigenvectors(monkeypatch):
    once, again = nn.Conv2d(3, 24, 2), nn.Conv2d(3, 24, 2)
    whiten(once, [correlated()])
    real = torch.linalg.eigh

    def flipped(matrix):
        values, vectors = real(matrix)
        return values, vectors * torch.tensor([1, -1] * 6)

    monkeypatch.setattr(torch.linalg, "eigh", flipped)
    whiten(again, [correlated()])
    assert torch.equal(once.weight, again.weight)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(3, 23, 2), "3 x 2 x 2 need 24 filters, and the first convolution has 23"),
        (nn.Conv2d(1, 24, 2), "takes 1 channels, images have 3"),
        (nn.Conv2d(3, 24, 2, groups=3), "groups"),
        (nn.Conv2d(3, 600, 10), "no patch of 10 x 10"),
    ],
)
def test_a_layer_that_cannot_be_whitened_is_refused(layer, expected):
    with pytest.raises(ValueError, match=expected):
        whiten(layer, [correlated()])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3, padding=1),
        nn.Conv2d(3, 3, 1),
        nn.Conv1d(4, 6, 5, padding=2),
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
    ],
)
def test_dirac_passes_the_input_on_and_leaves_the_other_filters(layer):
    model, before = nn.Sequential(layer), layer.weight.detach().clone()
    initialise(model, "dirac")
    inputs = torch.randn(2, layer.in_channels, *[8] * (layer.weight.ndim - 2))
    outputs = model(inputs).unflatten(1, (layer.groups, -1))
    passed = inputs.unflatten(1, (layer.groups, -1))
    share = layer.in_channels // layer.groups
    assert torch.equal(outputs[:, :, :share], passed)
    kept, old = (t.unflatten(0, (layer.groups, -1))[:, share:] for t in (layer.weight, before))
    assert torch.equal(kept, old)


def test_dirac_changes_no_parameter_of_a_transposed_convolution():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ConvTranspose2d(2, 2, 3))
    before = [parameter.detach().clone() for parameter in model[1].parameters()]
    initialise(model, "dirac")
    assert all(map(torch.equal, before, model[1].parameters()))


def test_dirac_of_fewer_filters_than_inputs_passes_the_first_ones():
    layer = nn.Conv2d(5, 2, 3, padding=1)
    initialise(nn.Sequential(layer), "dirac")
    inputs = torch.randn(2, 5, 6, 6)
    assert torch.equal(layer(inputs), inputs[:, :2])


def test_each_layer_follows_the_first_pattern_that_matches_it():
    torch.manual_seed(0)
    model = CompactResNet(4, 3, widths=[30, 30])
    head, first = model.head.weight.detach().clone(), model.whiten.weight.detach().clone()
    initialise(model, {"groups.1.conv2": "normal", "groups.*": "dirac"})
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.whiten.weight, first)
    for name in ("groups.0.conv1", "groups.0.conv2", "groups.1.conv1"):
        weight = model.get_parameter(f"{name}.weight")
        assert torch.equal(weight[:24, :, 1, 1], torch.eye(24, weight.shape[1])), name
    assert 0.008 < model.get_parameter("groups.1.conv2.weight").std() < 0.012


@pytest.mark.parametrize(
    ("model", "ways", "expected"),
    [
        (CompactResNet(2, 3, widths=[2]), {"grops.*": "dirac"}, r"no layer matches 'grops\.\*'"),
        (CompactResNet(2, 3, widths=[2]), {"head": "he"}, "init must be one of"),
        (CompactResNet(2, 3, widths=[2]), {"groups.*": "whiten"}, "first layer that is a conv"),
        (nn.Sequential(nn.Linear(2, 2)), "whiten", "first layer that is a convolution, not '0'"),
        (
            CompactResNet(2, 3, widths=[2]),
            {"*": "normal", "groups.*": "dirac"},
            "all that 'groups.*' matches is matched before it; let the narrower one come first",
        ),
        (CompactResNet(2, 3, widths=[2]), {"head": "dirac"}, "dirac is for conv.* 'head' matches"),
        (nn.Sequential(nn.Linear(2, 2)), "dirac", "dirac is for convolutions"),
        (ResNet(2, 3), "whiten", "3 x 7 x 7 need 294 filters, and the first convolution has 64"),
    ],
)
def test_an_initialisation_that_cannot_be_meant_is_refused(model, ways, expected):
    with pytest.raises(ValueError, match=expected):
        initialise(model, ways, lambda: [correlated()])


MODEL = "model={name: CompactResNet, widths: [4], init: {whiten: whiten, 'groups.*': dirac}}"


def test_a_run_whitens_training_images_as_evaluation_sees_them(config_file):
    lines: list[str] = []
    config = load_config(config_file, [MODEL, "train.channels_last=false"])
    job = prepare(config, lines.append)
    train = job.data.subsets["train"]
    seen = replace(job.data.subsets["val"], indices=train.indices, labels=train.labels, images=None)
    images, _ = seen.sample(torch.arange(len(train)))
    layer = job.model.get_submodule("whiten")
    assert isinstance(layer, nn.Conv2d)
    size = layer.out_channels // 2
    patches = patches_of(images, 2, 2)
    outputs = patches @ layer.weight.detach().double().flatten(1).numpy().T
    covariance = np.cov(outputs[:, :size], rowvar=False, bias=True)
    variances = np.linalg.eigvalsh(np.cov(patches, rowvar=False, bias=True))[::-1]
    np.testing.assert_allclose(covariance, np.diag(variances / (variances + 5e-4)), atol=1e-4)
    of = f"{len(patches):,} patches of {len(train)} training images"
    assert [line for line in lines if line.startswith("weights")] == [
        f"weights whiten: {2 * size} of {2 * size} filters whiten {of}"
    ]
    prepare(config, lines.append, is_restored=True)
    assert len([line for line in lines if line.startswith("weights")]) == 1


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_a_run_that_was_killed_before_its_first_checkpoint_whitens_again_when_it_goes_on(
    start, tmp_path, capsys, has_checkpoint
):
    assert start(MODEL, "train.epochs=2", "train.precision=fp32") == 0
    [run] = tmp_path.glob("runs/*/*")
    whole = torch.load(run / "model.pt", weights_only=True)
    capsys.readouterr()
    (run / "result.json").write_text("{}")
    steps = sorted(run.glob("checkpoints/step-*"))
    for folder in steps[1:] if has_checkpoint else steps:
        shutil.rmtree(folder)
    # What a kill leaves while the first checkpoint is written is none.
    (run / "checkpoints" / "step-000000001.tmp-1").mkdir()
    assert main(["--resume", str(run)]) == 0
    again = torch.load(run / "model.pt", weights_only=True)
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    told = capsys.readouterr()
    assert ("filters whiten" in told.out + told.err) is not has_checkpoint


def test_a_fault_of_init_has_its_line(config_file):
    config = load_config(config_file, ["model={name: LeNet, init: whiten}"])
    with pytest.raises(ConfigError, match="model.init: whiten: patches of . x 5 x 5 need"):
        prepare(config, list[str]().append)
    with pytest.raises(ConfigError, match="model.init.*dirac"):
        load_config(config_file, ["model={name: LeNet, init: {'features.*': dirak}}"])
