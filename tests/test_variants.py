"""Each way to save time or memory trains as training without it does.

One epoch of the same batches, once plain (fp32, no compiler, no parts) and once in the variant: the
losses of its steps and the weights at its end are compared. Where the arithmetic is the same they
are equal; else losses are relatively, and weights as a share of the way they went, close.
"""

import copy
import functools
import json
import math
import os
import signal

import pytest
import torch
from torch import nn

import trainer.loop.epochs
from models.recompute import recompute
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.inference.evaluation import evaluate_run
from trainer.loop.guard import Guard
from trainer.loop.model_summary import kept_for_backward
from trainer.loop.step import new_task, train_steps
from trainer.process.errors import ConfigError, NonFiniteLoss, Stopped
from trainer.run.checkpoint import checkpoints, read_state
from trainer.run.folder import read_metrics

CPU = torch.device("cpu")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU with CUDA")
    ),
]
LENET = "model=LeNet"
MLP = "model={name: MLP, hidden: [16]}"  # it compiles in less than half of LeNet's time
# Batch norm, dropout, and a row of layers of which some write into their input.
VGG = "model={name: VGG, depth: 11, batch_norm: true, variant: cifar}"
ALEXNET = "model={name: AlexNet, variant: cifar}"
RESNET = "model={name: torchvision/resnet18}"
# Sums in another order, and numbers of 8 or 11 bits: what was measured, times about five.
SUMS, HALF = 2e-5, 3e-2
EXACT = 0.0
# Batch norm over nine images makes a last bit of the first step a thousandth by the fifth. As far
# apart as twice what the other layout of the same numbers in memory makes is no difference.
AS_LAYOUT = "as layout"

VARIANTS = {
    "tf32": (LENET, ["train.precision=tf32"], {"cpu": EXACT, "cuda": 2e-2}),
    "bf16": (LENET, ["train.precision=bf16"], HALF),
    "fp16": (LENET, ["train.precision=fp16"], HALF),
    "channels last": (LENET, ["train.channels_last=true"], SUMS),
    "channels first": (LENET, ["train.channels_last=false"], SUMS),
    "fused": (LENET, ["optimizer.fused=true"], SUMS),
    "not fused": (LENET, ["optimizer.fused=false"], SUMS),
    "checkpointing": (LENET, ["train.activation_checkpointing=true"], EXACT),
    "accumulate 2": (LENET, ["train.accumulate=2"], SUMS),
    "accumulate 4": (LENET, ["train.accumulate=4"], SUMS),
    "accumulate 3 of 8": (LENET, ["train.accumulate=3"], SUMS),
    "compiled": (MLP, ["train.compile=true"], SUMS),
    "graphs": (LENET, ["train.cuda_graphs=true"], {"cpu": EXACT, "cuda": SUMS}),
    "dropout, checkpointing": (ALEXNET, ["train.activation_checkpointing=true"], EXACT),
    "dropout, accumulate": (ALEXNET, ["train.accumulate=2"], SUMS),
    "batch norm, checkpointing": (VGG, ["train.activation_checkpointing=true"], EXACT),
    "residual, checkpointing": (RESNET, ["train.activation_checkpointing=true"], EXACT),
    "bf16, checkpointing, channels last": (
        LENET,
        ["train.precision=bf16", "train.activation_checkpointing=true", "train.channels_last=true"],
        HALF,
    ),
}
SLOW = {
    "compiled, convolutions": (LENET, ["train.compile=true"], SUMS),
    "compiled, bf16, accumulate, checkpointing": (
        LENET,
        [
            *("train.compile=true", "train.precision=bf16", "train.accumulate=2"),
            *("train.activation_checkpointing=true", "train.channels_last=true"),
        ],
        HALF,
    ),
    "compiled, reduce-overhead": (LENET, ["train.compile=reduce-overhead"], SUMS),
    "compiled, max-autotune": (LENET, ["train.compile=max-autotune"], SUMS),
    "compiled, no graphs": (LENET, ["train.compile=max-autotune-no-cudagraphs"], SUMS),
    "compiled, batch norm": (VGG, ["train.compile=true"], AS_LAYOUT),
    "compiled, checkpointing": (
        VGG,
        ["train.compile=true", "train.activation_checkpointing=true"],
        AS_LAYOUT,
    ),
    "compiled, dropout, accumulate, checkpointing": (
        ALEXNET,
        ["train.compile=true", "train.accumulate=2", "train.activation_checkpointing=true"],
        1e-3,
    ),
}


@pytest.fixture(scope="module")
def one_epoch(shared_config):
    """Train one epoch of 5 batches of 8, the last one short; losses, and the weights after it."""

    def trained(device, *overrides):
        fixed = [f"train.device={device}", "loader.batch_size=9", "optimizer.lr=0.001"]
        job = prepare(load_config(shared_config, [*fixed, *overrides]), print)
        start = copy.deepcopy(job.model.state_dict())
        if (
            job.precision.scaler.is_enabled()
        ):  # the first steps look for a scale that fits: not here
            fitting = job.precision.scaler.state_dict() | {"scale": 256.0}
            job.precision.scaler.load_state_dict(fitting)
        guard = Guard(job.model, job.optimizer)
        steps = train_steps(new_task(job, guard), job.train_loader.epoch(), 0)
        assert list(steps) == [9, 9, 9, 9, 4]
        losses = [seen.loss for seen in guard.results(wait=True)]
        return losses, job.model.state_dict(), start

    return trained


@pytest.fixture(scope="module")
def as_ever(one_epoch):
    """The same, each only once: what several variants are compared with."""
    return functools.cache(one_epoch)


def far(found, expected, start):
    """How far two trainings ended from each other, as a share of the way that the second went."""
    apart = sum((found[name] - expected[name]).double().square().sum() for name in expected)
    way = sum((expected[name] - start[name]).double().square().sum() for name in expected)
    return math.sqrt(apart / way)


def apart_by(found, expected):
    """How far losses are from each other, as a share of the largest."""
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) / max(expected)


def equal_to_plain(one_epoch, as_ever, device, model, overrides, tolerance):
    tolerance = tolerance[device] if isinstance(tolerance, dict) else tolerance
    layout = [
        f"train.channels_last={str('channels_last=false' not in ' '.join(overrides)).lower()}"
    ]
    plain = [] if tolerance else layout  # where bits are compared, the layout is the same
    losses, weights, start = as_ever(device, model, *plain)
    own_losses, own_weights, _ = one_epoch(device, model, *plain, *overrides)
    if tolerance == AS_LAYOUT:
        other = as_ever(device, model, f"train.channels_last={str(device == 'cuda').lower()}")
        tolerance = 2 * max(apart_by(other[0], losses), far(other[1], weights, start))
        assert tolerance < 0.02
        assert apart_by(own_losses[:2], losses[:2]) <= SUMS  # it has not grown yet
    apart = apart_by(own_losses, losses)
    print(f"measured {apart:.1e} of the losses, {far(own_weights, weights, start):.1e} of the way")
    if not tolerance:
        assert own_losses == losses
        assert all(torch.equal(own_weights[name], weight) for name, weight in weights.items())
    assert own_weights.keys() == weights.keys()
    assert apart <= tolerance
    assert far(own_weights, weights, start) <= tolerance


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("model", "overrides", "tolerance"), VARIANTS.values(), ids=VARIANTS)
def test_an_epoch_trains_the_same_as_without(
    one_epoch, as_ever, device, model, overrides, tolerance
):
    equal_to_plain(one_epoch, as_ever, device, model, overrides, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("model", "overrides", "tolerance"), SLOW.values(), ids=SLOW)
def test_an_epoch_trains_the_same_in_the_longer_variants(
    one_epoch, as_ever, device, model, overrides, tolerance
):
    equal_to_plain(one_epoch, as_ever, device, model, overrides, tolerance)


@pytest.mark.parametrize(
    "overrides", [[MLP, "train.compile=true"], ["train.precision=fp16"]], ids=str
)
def test_a_run_stopped_in_mid_epoch_and_resumed_has_the_bits_of_one_that_was_not(
    train, finished, monkeypatch, overrides
):
    """Also where the resumed one meets the short batch before a full one."""
    overrides = [*overrides, "loader.batch_size=9", "log.show=[]"]
    straight = finished(*overrides)
    seen, rates = [0], trainer.loop.epochs.learning_rates

    def stopping(job):
        seen[0] += 1
        if seen[0] == 5:  # after step 4: the short batch comes next
            os.kill(os.getpid(), signal.SIGTERM)
        return rates(job)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(trainer.loop.epochs, "learning_rates", stopping)
        train(*overrides)
    stopped = max(straight.parent.glob("*"), key=lambda run: run.stat().st_ctime_ns)
    train(resume=stopped, file=stopped / "config.yaml")
    a, b = (read_state(checkpoints(run)[-1]) for run in (straight, stopped))
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    assert a["scaler"] == b["scaler"] and a["counters"] == b["counters"]
    assert read_metrics(straight / "metrics.jsonl") == read_metrics(stopped / "metrics.jsonl")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_judged_again_gives_its_numbers_to_the_last_digit(finished, precision):
    run = finished(f"train.precision={precision}", "train.epochs=1", "log.show=[]")
    result = json.loads((run / "result.json").read_text())["test"]
    assert evaluate_run(run, load_config(run / "config.yaml"), "test") == result


class Steep(nn.Module):
    """Cross entropy whose gradient overflows fp16 while it is scaled by more than ``most``."""

    def __init__(self, job, most):
        super().__init__()
        self.job, self.most = job, most

    def forward(self, logits, labels):
        if logits.requires_grad and self.job.precision.scaler.get_scale() > self.most:
            logits.register_hook(lambda gradient: gradient * math.inf)
        return nn.functional.cross_entropy(logits, labels)


@pytest.mark.parametrize("lag", [1, 64])
def test_an_overflow_of_the_scaled_gradient_halves_the_scale_and_leaves_its_step_out(
    config_file, lag
):
    job = prepare(load_config(config_file, ["train.precision=fp16"]), print)
    loss_fn, start = Steep(job, 2.0**14), copy.deepcopy(job.model.state_dict())
    guard = Guard(job.model, job.optimizer, restore=True, lag=lag)
    batch, weights = next(job.train_loader.epoch()), []
    for step in range(4):
        job.loss_fn = loss_fn
        steps = train_steps(new_task(job, guard), [batch], step)
        assert list(steps) == [8]
        weights.append(copy.deepcopy(job.model.state_dict()))
    seen = guard.results(wait=True)
    assert [one.is_overflow for one in seen] == [True, True, False, False]
    assert [one.scale for one in seen] == [2.0**16, 2.0**15, 2.0**14, 2.0**14]
    for name, weight in start.items():
        assert torch.equal(weights[1][name], weight)
    assert not torch.equal(weights[2]["features.0.weight"], start["features.0.weight"])


def test_overflows_do_not_count_as_steps_left_out_until_the_scale_is_used_up(
    train, finished, monkeypatch
):
    overrides = ["train.precision=fp16", "train.epochs=5", "log.show=[]"]
    run = finished(*overrides)
    assert json.loads((run / "result.json").read_text())["skipped_steps"] == 0
    steep = lambda job: setattr(job, "loss_fn", Steep(job, 0.0))  # noqa: E731
    original = trainer.loop.epochs.train_epochs
    monkeypatch.setattr(
        "trainer.loop.fit.train_epochs", lambda session: (steep(session.job), original(session))
    )
    with pytest.raises(NonFiniteLoss, match=r"step 17 .*|fp16, scaled by 1\)"):
        train(*overrides)


def test_without_a_compiler_the_run_does_not_begin_and_says_what_is_missing(config_file, tmp_path):
    torch._dynamo.reset()
    # monkeypatch cannot put back a setting of torch: it deletes it, for all tests to come.
    nowhere = torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "none"))})
    with nowhere, pytest.raises(ConfigError) as told:
        prepare(load_config(config_file, ["train.compile=true", "optimizer.lr=0.02"]), print)
    assert "train.compile: needs a C++ compiler" in str(told.value)
    assert "apt install g++" in str(told.value)


def test_several_processes_without_a_compiler_say_so_once(together, tmp_path):
    def without_one(rank):
        torch._inductor.config.cpp.cxx = (None, str(tmp_path / "none"))
        torch._dynamo.reset()

    assert together(2, "train.compile=true", prepare=without_one) == [2, 2]
    told = [(tmp_path / f"rank-{rank}.txt").read_text() for rank in range(2)]
    assert [text.count("train.compile: needs a C++ compiler") for text in told] == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["train.activation_checkpointing=true", "train.precision=bf16"],
        ["train.compile=true", "train.activation_checkpointing=true", "train.precision=bf16"],
    ],
    ids=str,
)
def test_several_processes_train_so_as_one_does(together, tmp_path, more):
    ends = []
    for processes in (1, 2):
        runs = f"of-{processes}"
        own = ["train.epochs=1", "log.show=[]", *more]
        assert together(processes, *own, runs=runs) == [0] * processes
        (run,) = (tmp_path / runs).glob("*/2*")
        ends.append(read_state(checkpoints(run)[-1])["model"])
    start = {name: torch.zeros_like(weight) for name, weight in ends[0].items()}
    assert far(ends[1], ends[0], start) < 1e-3


@pytest.mark.parametrize("other", ["compile=true", "accumulate=2", "activation_checkpointing=true"])
def test_cuda_graphs_are_refused_beside_what_they_cannot_hold(config_file, other):
    with pytest.raises(ConfigError, match=f"train.cuda_graphs: does not go with {other[:7]}"):
        load_config(config_file, ["train.cuda_graphs=true", f"train.{other}"])


@pytest.mark.parametrize("model", [VGG, RESNET, ALEXNET], ids=str)
def test_checkpointing_keeps_less_and_names_each_weight_as_before(config_file, model):
    sizes, names = [], []
    for how in ("false", "true"):
        overrides = [model, f"train.activation_checkpointing={how}"]
        job = prepare(load_config(config_file, overrides), print)
        job.model.train()
        sizes.append(kept_for_backward(job, *next(job.train_loader.epoch()))[1])
        names.append(list(job.model.state_dict()))
    assert sizes[1] < 0.65 * sizes[0]
    assert names[0] == names[1]


def test_a_recomputed_block_moves_running_statistics_once_and_a_copy_has_its_own():
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Hardswish(inplace=True),
    )  # fmt: skip
    other = copy.deepcopy(plain)
    assert recompute(other) == 1
    images = torch.randn(8, 3, 9, 9)
    for net in (plain, copied := copy.deepcopy(other)):
        for step in range(2):
            torch.manual_seed(step)
            net(images).square().sum().backward()
    for (name, a), b in zip(plain.state_dict().items(), copied.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(plain.parameters(), copied.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad)
    assert all(parameter.grad is None for parameter in other.parameters())
    assert plain[1].num_batches_tracked == 2
