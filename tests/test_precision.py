"""What is computed in which number format, in a step of each precision on a CPU."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.alexnet import AlexNet, ResponseNorm
from models.depthwise import Float32Conv2d
from models.lenet import LeNet
from models.mlp import MLP
from models.vgg import VGG
from trainer import train
from trainer.build.precision import build_precision
from trainer.build.prepare import distribute, prepare, prepare_precision
from trainer.components.schedulers import Schedule
from trainer.config import load_config
from trainer.loop.guard import Guard
from trainer.loop.step import new_task, train_steps
from trainer.process.errors import ConfigError

CPU = torch.device("cpu")
PRODUCTS = ("convolution", "addmm", "mm", "bmm", "linear")  # parts of the names of operations
MODELS: dict[str, Any] = {
    "LeNet": (lambda: LeNet(10, 3), (3, 32, 32)),
    "MLP": (lambda: MLP(10, 1, [28, 28]), (1, 28, 28)),
    "AlexNet, cifar": (lambda: AlexNet(10, 3, "cifar"), (3, 32, 32)),
    "VGG11": (lambda: VGG(10, 1, depth=11, batch_norm=True, variant="cifar"), (1, 32, 32)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=2), (3, 64, 64)),
    "mobilenet": (lambda: torchvision.models.mobilenet_v3_small(num_classes=2), (3, 64, 64)),
}


class Seen(TorchDispatchMode):
    """Records the number formats of each operation, in forward and backward passes."""

    def __init__(self):
        super().__init__()
        self.operations = []  # (name, formats of the tensors that go in)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        flat = torch.utils._pytree.arg_tree_leaves(*args, **(kwargs or {}))
        formats = {one.dtype for one in flat if isinstance(one, torch.Tensor)}
        self.operations.append((func.overloadpacket.__name__, formats))
        return func(*args, **(kwargs or {}))

    def products(self):
        return [
            formats & {torch.float32, torch.bfloat16}
            for name, formats in self.operations
            if any(part in name for part in PRODUCTS)
        ]


def operations_of_a_step(model, images, precision):
    """The operations of one training step of ``model``, optimizer and losses included."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    config: Any = SimpleNamespace(
        seed=0, train=SimpleNamespace(precision=precision, accumulate=1, clip_grad_norm=1.0)
    )
    job: Any = SimpleNamespace(
        network=model, optimizer=optimizer, loss_fn=nn.CrossEntropyLoss(), teacher=None,
        train_loader=None, schedule=Schedule(optimizer), device=CPU, config=config,
        precision=build_precision(config, CPU),
    )  # fmt: skip
    task = new_task(job, Guard(model, optimizer, clip_grad_norm=1.0))
    labels = torch.arange(len(images)) % 2
    with Seen() as seen:
        list(train_steps(task, [(images, labels)], 0))
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_a_step_in_bf16_multiplies_no_float32_and_one_in_fp32_computes_nothing_in_bf16(name):
    build, shape = MODELS[name]
    layout = torch.channels_last
    images = torch.randn(2, *shape).contiguous(memory_format=layout)
    in_half = operations_of_a_step(build().to(memory_format=layout), images, "bf16").products()
    weights = sum(parameter.ndim > 1 for parameter in build().parameters())
    assert len(in_half) >= 2 * weights  # forward and backward
    assert all(formats == {torch.bfloat16} for formats in in_half)
    plain = operations_of_a_step(build().to(memory_format=layout), images, "fp32")
    assert not any(torch.bfloat16 in formats for _, formats in plain.operations)
    assert all(formats == {torch.float32} for formats in plain.products())


def depthwise(kernel, stride, groups=4):
    return nn.Conv2d(4, 4, kernel, stride, padding=kernel // 2, groups=groups)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_only_depthwise_layers_that_are_slow_in_half_precision_train_in_float32(precision):
    layers = [depthwise(3, 1), depthwise(3, 2), depthwise(5, 1), depthwise(5, 2, groups=1)]
    model = nn.Sequential(*layers)
    names = list(model.state_dict())
    train = SimpleNamespace(precision=precision, activation_checkpointing=False)
    config: Any = SimpleNamespace(train=train)
    found = prepare_precision(config, model, CPU, print)
    chosen = [isinstance(layer, Float32Conv2d) for layer in layers]
    assert chosen == [False, precision != "fp32", precision != "fp32", False]
    assert list(model.state_dict()) == names
    images = torch.randn(2, 4, 8, 8)
    with found.autocast(), Seen() as seen:
        trained = model.train()(images)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    formats = [f for name, f in seen.operations if "convolution" in name]
    expected = [half, torch.float32, torch.float32, half]
    assert formats == [{one} for one in expected] and trained.dtype == half
    with found.autocast():
        judged = model.eval()(images)
        for layer in layers:
            layer.__class__ = nn.Conv2d
        assert torch.equal(model(images), judged)  # evaluation is as ever


class FirstInput(TorchDispatchMode):
    """Keeps what goes into the first convolution."""

    images: Any = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.images is None and "convolution" in func.overloadpacket.__name__:
            self.images = args[0].clone()
        return func(*args, **(kwargs or {}))


def test_the_images_of_a_bf16_run_are_those_of_an_fp32_run_rounded_once(config_file):
    first = {}
    for precision in ("fp32", "bf16"):
        job = prepare(load_config(config_file, [f"train.precision={precision}"]), print)
        batch = next(job.train_loader.epoch())
        task = new_task(job, Guard(job.model, job.optimizer))
        with FirstInput() as seen:
            list(train_steps(task, [batch], 0))
        first[precision] = seen.images
    assert first["fp32"].dtype == torch.float32 and first["bf16"].dtype == torch.bfloat16
    assert torch.equal(first["bf16"], first["fp32"].bfloat16())


@pytest.mark.parametrize("found", [{"avx512_bf16": True}, {"avx2": True}], ids=str)
def test_auto_is_bf16_where_the_processor_has_it_and_a_run_keeps_what_it_began(
    found, config_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("trainer.build.precision._bf16_is_for_onednn", lambda: True)
    expected = "bf16" if "avx512_bf16" in found else "fp32"
    weights = {}
    for name in ("auto", expected):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
        settings = [f"train.precision={name}", "train.epochs=1"]
        runs = ["--runs", str(tmp_path / name)]
        assert train.main(["--config", str(config_file), *runs, *settings]) == 0
        told = capsys.readouterr().out
        assert ("precision fp32: auto finds" in told) == (name == "auto" and expected == "fp32")
        assert ("train   precision bf16" in told) == (expected == "bf16")
        [run] = (tmp_path / name).glob("*/2*")
        assert f"precision: {expected}" in (run / "config.yaml").read_text()
        other = {"amx_bf16": expected == "fp32"}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda other=other: other)
        for epochs, more in ((2, ["train.epochs=2"]), (3, ["--config", str(config_file)])):
            again = [*settings[:1], "train.epochs=3"] if "--config" in more else []
            assert train.main(["--resume", str(run), *more, *again]) == 0
            assert f"precision: {expected}" in (run / "config.yaml").read_text()
            assert json.loads((run / "result.json").read_text())["epochs"] == epochs
        weights[name] = torch.load(run / "model.pt")
    for key, value in weights["auto"].items():
        assert torch.equal(value, weights[expected][key])


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("shape", [(2, 96, 15, 15), (3, 7, 4, 5), (1, 3, 2, 2)])
def test_alexnets_normalisation_has_the_bits_of_torchs_and_its_gradient_too(shape, layout):
    ends = []
    for kind in (ResponseNorm, nn.LocalResponseNorm):
        torch.manual_seed(0)
        maps = (30 * torch.randn(shape)).contiguous(memory_format=layout).requires_grad_()
        output = kind(5, alpha=5e-4, beta=0.75, k=2.0)(maps)
        output.backward(torch.randn(shape))
        ends.append((output, maps.grad))
    assert all(torch.equal(own, theirs) for own, theirs in zip(*ends, strict=True))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_alexnets_normalisation_rounds_to_bf16_only_once(layout):
    maps = (30 * torch.randn(2, 96, 9, 9)).bfloat16().contiguous(memory_format=layout)
    norm = ResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(maps)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, norm(maps.float()).bfloat16())


def test_ranks_that_would_compute_in_different_precisions_are_an_error(config_file, monkeypatch):
    job = prepare(load_config(config_file, ["train.precision=auto"]), print)
    monkeypatch.setattr("trainer.build.prepare.world_size", lambda: 2)
    monkeypatch.setattr("trainer.build.prepare.is_true_everywhere", lambda mine: False)
    with pytest.raises(ConfigError, match="train.precision: is bf16 on some of the processes"):
        distribute(job, print)
