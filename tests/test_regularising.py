"""Stochastic depth, where a model has it, and label smoothing with all that it may meet."""

import re

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import StochasticDepth

from models.arguments import DEPTH
from models.external import timm_model, torchvision_model
from tests.test_resume import stopped_at
from tests.test_training import assert_same_run
from trainer.build.model import build_model
from trainer.build.prepare import prepare
from trainer.build.trained import load_trained
from trainer.build.trial import check_components
from trainer.config import load_config
from trainer.loop.guard import Guard
from trainer.loop.step import new_task, train_steps
from yaml_trainer.export.model_card import building

DEEP = "{name: torchvision/efficientnet_b0, stochastic_depth_prob: 0.5, dropout: 0.0}"


def rates(model):
    return [module.p for module in model.modules() if isinstance(module, StochasticDepth)]


def of_swin(rate):
    """Torchvision's swin_t, by its class."""
    return torchvision.models.SwinTransformer(
        [4, 4], 96, [2, 2, 6, 2], [3, 6, 12, 24], [7, 7], stochastic_depth_prob=rate
    )


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0", "efficientnet_v2_s"])
@pytest.mark.parametrize("rate", [0, 0.35])
def test_a_rate_of_stochastic_depth_is_torchvisions_own(name, rate):
    with torch.device("meta"):
        ours = torchvision_model(name, 2, 3, None, {"stochastic_depth_prob": rate})
        theirs = torchvision.models.get_model(name, stochastic_depth_prob=rate)
    assert rates(ours) == rates(theirs) and max(rates(ours)) == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize("rate", [0, 0.35])
def test_a_rate_reaches_the_models_whose_builders_take_none(rate):
    """Swin and MaxViT."""
    arguments = {"stochastic_depth_prob": rate}
    with torch.device("meta"):
        swin = torchvision_model("swin_t", 2, 3, None, arguments)
        assert rates(swin) == pytest.approx(rates(of_swin(rate)))
        assert rates(torchvision_model("swin_t", 2, 3, None, {})) == rates(of_swin(0.2))
        maxvit = rates(torchvision_model("maxvit_t", 2, 3, None, arguments))
    own = rates(torchvision.models.maxvit_t())  # it builds nothing on meta
    assert maxvit == pytest.approx([rate * p / 0.2 for p in own]) and max(own) == 0.2


def test_a_rate_reaches_timms_models():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm_model("resnet18", 2, 3, None, {"drop_path_rate": 0.3})
        expected = timm.create_model("resnet18", drop_path_rate=0.3)
    kept, theirs = (
        [module.drop_prob for module in each.modules() if type(module).__name__ == "DropPath"]
        for each in (model, expected)
    )
    assert kept == theirs and kept[-1] == 0.3


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("{name: torchvision/resnet18, stochastic_depth_prob: 0.1}",
         r"it has no stochastic depth. torchvision's convnext, .* most of timm's models"),
        ("{name: torchvision/convnext_tiny, drop_path_rate: 0.1}",
         "takes no argument 'drop_path_rate'; did you mean 'stochastic_depth_prob'"),
        ("{name: torchvision/convnext_tiny, layer_scal: 0.1}", "did you mean 'layer_scale'"),
        ("{name: torchvision/mobilenet_v3_small, width_mul: 0.5}", "takes no argument 'width_mul'"),
        ("{name: torchvision/swin_t, stochastic_depth_prob: 1}", "0 or more and below 1, but is 1"),
        ("{name: torchvision/swin_t, stochastic_depth_prob: high}", "but is high"),
        ("{name: timm/resnet18, stochastic_depth_prob: 0.1}", "did you mean 'drop_path_rate'"),
        ("{name: timm/vgg11, drop_path_rate: 0.1}", "it has no stochastic depth"),
        ("{name: timm/resnet18, drop_path_rate: -0.1}", "0 or more and below 1, but is -0.1"),
    ],
)  # fmt: skip
def test_an_argument_that_a_model_does_not_take_is_told_with_a_suggestion(config_file, model, told):
    if "timm/" in model:
        pytest.importorskip("timm")
    (fault,) = check_components(load_config(config_file, [f"model={model}"]))
    assert fault.path in [
        "model.layer_scal",
        "model.width_mul",
        *(f"model.{argument}" for argument in DEPTH.values()),
    ]
    assert re.search(told, fault.message), fault.message


def test_arguments_of_builders_that_their_classes_do_not_name_are_taken():
    arguments = {"width_mult": 0.5, "reduced_tail": True}
    small = torchvision_model("mobilenet_v3_small", 2, 3, None, arguments)
    whole = torchvision_model("mobilenet_v3_small", 2, 3, None, {"dropout": 0.1})
    assert len(nn.utils.parameters_to_vector(small.parameters())) < len(
        nn.utils.parameters_to_vector(whole.parameters())
    )


def test_blocks_are_passed_by_in_training_and_never_in_evaluation(config_file):
    config = load_config(config_file, [f"model={DEEP}"])
    model = build_model(config, ("1", "100"), (3, 32, 32))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False  # so that only the draws differ between two calls
            module.running_mean = module.running_var = None
    images = torch.rand(8, 3, 32, 32)
    trained = [model.train()(images) for _ in range(2)]
    assert not torch.equal(*trained)
    judged = [model.eval()(images) for _ in range(2)]
    assert torch.equal(*judged)
    for module in model.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0
    assert torch.equal(judged[0], model(images)) and torch.equal(judged[0], model.train()(images))


@pytest.mark.parametrize(
    "model", [DEEP, "{name: timm/test_vit, drop_path_rate: 0.5, img_size: 32}"]
)
def test_a_run_with_stochastic_depth_goes_on_exactly(train, finished, monkeypatch, tmp_path, model):
    """The draws are keyed by seed and step."""
    if "timm/" in model:
        pytest.importorskip("timm")
    overrides = (f"model={model}", "train.epochs=1", "log.show=[]", "optimizer.lr=0.001")
    straight = finished(*overrides)
    stopped_at(train, monkeypatch, 2, *overrides)
    runs = (tmp_path / "runs" / "small").iterdir()
    run = max(runs, key=lambda path: path.stat().st_ctime_ns)
    train(resume=run, file=run / "config.yaml")
    assert_same_run(straight, run)
    if "timm/" not in model:
        _, (line,) = building(load_trained(run))
        assert "'dropout': 0.0" in line and "depth" not in line


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("mixed", [False, True])
def test_label_smoothing_is_torchs_in_parts_of_a_batch_and_of_mixed_labels(
    config_file, accumulate, mixed
):
    """A loop by hand over the same batches, with torch's own loss on each batch as a whole."""
    mixing = ", {name: MixUp, alpha: 1.0}" if mixed else ""
    transforms = f"transforms.train=[{{name: Resize, size: [32, 32]}}{mixing}]"
    overrides = [transforms, "loss.label_smoothing=0.2", f"train.accumulate={accumulate}"]
    config = load_config(config_file, overrides)
    job, reference = prepare(config, print), prepare(config, print)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.2)
    optimizer = torch.optim.SGD(reference.model.parameters(), lr=0.01, momentum=0.9)
    reference.model.train()
    for images, labels in reference.train_loader.epoch(0):
        assert labels.ndim == 1 + mixed
        optimizer.zero_grad()
        criterion(reference.model(images), labels).backward()
        optimizer.step()
    guard = Guard(job.model, job.optimizer)
    steps = train_steps(new_task(job, guard), job.train_loader.epoch(0), 0)
    assert sum(steps) == 40
    for one, other in zip(job.model.parameters(), reference.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
