"""What several processes, or several parts of a batch, need of a model: dropout, batch norm, FSDP.

What takes processes is done once by three of them, against loops written by hand over whole
batches; the tests read what they found.
"""

import copy
import json
import os
import pickle
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.ops import StochasticDepth

from models.dropout import draws_elsewhere, drop_out_by_batch
from tests.conftest import as_ranks
from trainer.build.device import choose_device
from trainer.build.precision import FP32
from trainer.build.prepare import prepare
from trainer.build.rehearse import check_batches, check_sharding
from trainer.components.schedulers import build_schedule
from trainer.config import load_config
from trainer.distributed.fsdp import blocks, shard, size, synchronise
from trainer.distributed.micro_batches import choose_micro_batches
from trainer.distributed.processes import on_main
from trainer.distributed.shares import Shares, share_of
from trainer.distributed.sync_batch_norm import with_synced_batch_norm
from trainer.input.loader import Loader
from trainer.loop.evaluate import predict
from trainer.loop.guard import Guard
from trainer.loop.resume import Found, send_content
from trainer.loop.step import Task, train_steps
from trainer.process.errors import ConfigError
from trainer.run.checkpoint import manifest_of, read_state, write_checkpoint
from transforms.keyed import seed_at, seed_of

CPU = torch.device("cpu")
PROCESSES = 3
LAYERS = {
    "Dropout": (partial(nn.Dropout, 0.3), (5, 6, 4)),
    "Dropout, in place": (partial(nn.Dropout, 0.3, inplace=True), (9,)),
    "Dropout of all": (partial(nn.Dropout, 1.0), (9,)),
    "Dropout1d": (partial(nn.Dropout1d, 0.4), (5, 6)),
    "Dropout2d": (partial(nn.Dropout2d, 0.4), (5, 6, 4)),
    "Dropout3d": (partial(nn.Dropout3d, 0.4), (5, 3, 2, 2)),
    "AlphaDropout": (partial(nn.AlphaDropout, 0.3), (5, 6, 4)),
    "FeatureAlphaDropout": (partial(nn.FeatureAlphaDropout, 0.3), (5, 6, 4)),
    "StochasticDepth, row": (partial(StochasticDepth, 0.4, "row"), (5, 6, 4)),
    "StochasticDepth, batch": (partial(StochasticDepth, 0.4, "batch"), (5, 6, 4)),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]


def drawn(model, images, low=0, high=None):
    torch.manual_seed(3)
    return model(images.clone(memory_format=torch.preserve_format)[low:high])  # may be in place


def check_masks(make, images, each=1):
    """Parts of the images give what torch's own layer gives for all, and so do all in one part."""
    expected = drawn(make(), images)
    model = nn.Sequential(make())
    rows = drop_out_by_batch(model)
    assert rows is not None
    whole = len(images) // each
    for cuts in ([0, 3, 7], [0, 1, 2, 3, 4, 5, 6, 7], [0, 6, 7]):
        parts = []
        for low, high in zip(cuts, cuts[1:], strict=False):
            rows.take(low, high, whole, CPU)
            parts.append(drawn(model, images, low * each, high * each))
        assert torch.equal(torch.cat(parts), expected)
    rows.indices, rows.batch_size = torch.arange(whole), whole  # as micro-batch, but all rows
    assert torch.equal(drawn(model, images), expected)
    model.eval()
    assert torch.equal(model(images), images)


def test_parts_of_a_batch_are_dropped_from_as_the_whole_one(layer):
    make, shape = layer
    check_masks(make, torch.randn(7, *shape))


def test_so_they_are_channels_last(layer):
    make, shape = layer
    if len(shape) == 3:
        check_masks(make, torch.randn(7, *shape).to(memory_format=torch.channels_last))


def test_so_they_are_where_a_layer_sees_several_rows_an_image():
    check_masks(partial(nn.Dropout, 0.5), torch.randn(28, 3, 4), each=4)


def test_timms_drop_path_is_drawn_for_the_whole_batch_too():
    drop = pytest.importorskip("timm.layers.drop")
    check_masks(partial(drop.DropPath, 0.4), torch.randn(7, 5, 6))
    check_masks(partial(drop.DropPath, 0.4, scale_by_keep=False), torch.randn(7, 5, 6))


def test_names_of_weights_stay():
    model = small_net()
    names = list(model.state_dict())
    drop_out_by_batch(model)
    assert list(model.state_dict()) == names and type(model.drop).__name__ == "Dropout"
    assert drop_out_by_batch(nn.Linear(2, 2)) is None


class Functional(nn.Module):
    """Drops out without a layer for it."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        return F.dropout(self.norm(images), 0.5, self.training)


def test_random_numbers_that_no_layer_draws_are_noticed():
    images = torch.randn(2, 3, 8, 8)
    model = Functional()
    assert draws_elsewhere(model, images)
    assert model.norm.num_batches_tracked == 0 and not model.norm.state_dict()["running_mean"].any()
    model = small_net().train()
    assert not draws_elsewhere(model, images)
    assert model.drop.training and model.norm.num_batches_tracked == 0


@pytest.mark.parametrize("accumulate", [2, 4])
def test_parts_of_a_batch_train_a_model_with_dropout_as_the_whole_one(accumulate):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(144, 2), nn.Dropout(0.5)
    )
    expected = by_hand(copy.deepcopy(model), BATCHES)
    drop_out_by_batch(model)
    trained(model, model, BATCHES, accumulate)
    assert difference(model.state_dict(), expected.state_dict()) < 1e-6


def test_images_without_a_label_only_fill_a_place(config_file):
    job = prepare(load_config(config_file, ["loader.eval_batch_size=2"]), print)
    part = job.val_loader.subset
    assert len(part) == 5  # three batches, for two processes
    own, other = (Loader(part, 2, shares=Shares(n, 2, even=True)) for n in (0, 1))
    assert [len(labels) for _, labels in own.epoch()] == [2, 1]
    assert [(len(images), len(labels)) for images, labels in other.epoch()] == [(2, 2), (1, 0)]
    logits, labels = predict(job.model, other.epoch())
    assert len(logits) == len(labels) == 2


def test_blocks_are_found_by_size_and_by_being_called():
    model = VisionTransformer(16, 8, 4, 4, 32, 64, num_classes=3)
    found = blocks(model, torch.zeros(2, 3, 16, 16))
    names = [name for name, module in model.named_modules() if module in found]
    assert not any("out_proj" in name for name in names)  # whose weights the attention reads itself
    assert not any(module in list(block.modules())[1:] for block in found for module in found)
    assert size(model) > sum(map(size, found)) > 0.5 * size(model)
    assert model.training


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("optimizer={name: Muon, lr: 0.01}", "optimizer.name"),
        ("optimizer={name: Adafactor}", "optimizer.name"),
        ("optimizer.fused=true", "optimizer.fused"),
        ("train.precision=fp16", "train.precision"),
        ("train.compile=true", "train.compile"),
        ("average={name: EMA}", "average"),
    ],
)
def test_what_cannot_be_cut_is_refused(config_file, override, path):
    check_sharding(load_config(config_file, ["train.parallel=fsdp"]))
    with pytest.raises(ConfigError) as caught:
        check_sharding(load_config(config_file, ["train.parallel=fsdp", override]))
    assert [fault.path for fault in caught.value.faults] == [path]


def test_one_process_keeps_its_model_whole_and_says_so(config_file, capsys):
    prepare(load_config(config_file, ["train.parallel=fsdp"]), print)
    assert "train.parallel=fsdp cuts the model for several processes" in capsys.readouterr().out


def test_synced_batch_norm_needs_an_image_in_each_process(config_file, monkeypatch):
    config = load_config(config_file, ["train.sync_batch_norm=true", "loader.batch_size=6"])
    loader, model = prepare(config, print).train_loader, nn.BatchNorm2d(3)
    monkeypatch.setattr("trainer.build.rehearse.world_size", lambda: 4)
    check_batches(config, loader, model)  # 40 images: a last batch of 4
    monkeypatch.setattr("trainer.build.rehearse.world_size", lambda: 5)
    with pytest.raises(ConfigError, match="leaves a batch of 4 for 5 processes"):
        check_batches(config, loader, model)


def test_processes_on_a_cpu_refuse_synced_batch_norm(together, tmp_path):
    assert together(2, "train.sync_batch_norm=true", "train.device=cpu") == [2, 2]
    told = (tmp_path / "rank-0.txt").read_text()
    assert "train.sync_batch_norm: needs GPUs" in told and "write false" in told
    assert not (tmp_path / "together").exists()


def test_a_teacher_that_trained_with_synced_batch_norm_may_teach_on_a_cpu(config_file, monkeypatch):
    monkeypatch.setattr("trainer.build.device.world_size", lambda: 2)
    config = load_config(config_file, ["train.sync_batch_norm=true", "train.device=cpu"])
    assert choose_device(config).type == "cpu"  # only its training is refused


class Whitening(nn.BatchNorm2d):
    """A batch norm of somebody else, of which nothing is known."""


def test_only_batch_norm_layers_that_are_known_are_synced():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(2, 2))
    names = list(model.state_dict())
    assert with_synced_batch_norm(model) is model
    assert [type(module) for module in model] == [nn.Conv2d, nn.SyncBatchNorm, nn.Linear]
    assert list(model.state_dict()) == names
    with pytest.raises(ValueError, match="Whitening cannot be synchronised"):
        with_synced_batch_norm(nn.Sequential(Whitening(3)))


def test_timms_batch_norm_keeps_its_activation():
    norm_act = pytest.importorskip("timm.layers.norm_act")
    layer = norm_act.BatchNormAct2d(5)
    images = torch.randn(4, 5, 6, 6)
    expected = copy.deepcopy(layer).eval()(images)
    assert torch.equal(with_synced_batch_norm(layer).eval()(images), expected)
    assert isinstance(layer, nn.SyncBatchNorm)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_command_leaves_its_interpreter_whole(processes):
    code = (
        "import atexit, os, sys; from trainer.process.launch import leave\n"
        "class Last:\n"
        "    def __del__(self, write=os.write): write(1, b' taken apart')\n"
        "last = Last(); atexit.register(sys.stdout.write, ' at exit')\n"
        "sys.stdout.write('said'); leave(6)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "WORLD_SIZE": processes},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 6
    assert set(done.stdout.split()) >= {"said", "at", "exit"}
    assert "taken apart" not in done.stdout  # where a signal would change the exit code


# What processes do.

torch.manual_seed(0)
BATCHES = [(torch.randn(n, 3, 8, 8) * 3 + 5, torch.arange(n) % 2) for n in (7, 8, 2)]


class SmallNet(nn.Module):
    """A convolution, batch norm, dropout, and a bias that moves."""

    def __init__(self, norm=True):
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5, momentum=None) if norm else nn.GroupNorm(1, 5)
        self.register_buffer("kept", torch.ones(3))
        self.drop = nn.Dropout(0.4)
        self.last = nn.Linear(180, 2)

    def forward(self, images):
        return self.last(self.drop(self.norm(self.first(images)).relu().flatten(1)))


def small_net(norm=True):
    torch.manual_seed(0)
    return SmallNet(norm)


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def by_hand(model, batches, clip=None):
    """Train a whole model on whole batches; returns it."""
    optimizer = optimizer_of(model)
    for step, (images, labels) in enumerate(batches):
        torch.manual_seed(seed_at(seed_of(0, "step"), step))
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    model.optimizer = optimizer
    return model


def trained(model, network, batches, accumulate=1, rank=0, clip=None):
    """Do the trainer's steps on a process's share of the batches; returns the optimizer."""
    optimizer = optimizer_of(model)
    schedule = build_schedule(None, {}, optimizer, 1, len(batches), 0)
    own = []
    for images, labels in batches:
        low, high = share_of(len(images), rank, int(os.environ.get("WORLD_SIZE", "1")))
        low = min(low, len(images) - 1)
        own.append((images[low : max(high, low + 1)], labels[low : max(high, low + 1)]))
    sizes = [len(images) for images, _ in batches]
    task = Task(
        network=network,
        optimizer=optimizer,
        loss=lambda images, logits, labels: F.cross_entropy(logits, labels),
        micro_batches=choose_micro_batches(
            network, CPU, 0, accumulate, batch_size_at=sizes.__getitem__
        ),
        scaler=FP32.scaler,
        schedule=schedule,
        guard=Guard(model, optimizer, clip),
    )
    steps = train_steps(task, own, 0)
    assert list(steps) == [len(images) for images, _ in batches]
    return optimizer


def difference(state, expected):
    assert state.keys() == expected.keys()
    return max(float((state[name] - expected[name]).abs().max()) for name in expected)


def local(parameter: Any) -> torch.Tensor:
    """The process's own part of a parameter."""
    part: torch.Tensor = parameter.to_local()
    return part


def what_ranks_see_of_a_checkpoint(run, rank, weights):
    """Whether ranks read a checkpoint themselves, are sent it, and have the same content then."""
    if rank == 0:
        run.mkdir()
        write_checkpoint(run, 1, {"model": weights, "number": 7}, keep=2, best_entry=None)
    dist.barrier()
    (folder,) = (run / "checkpoints").iterdir()
    content, digest = read_state(folder), manifest_of(folder)["sha256"]
    cases = {
        "there": (folder, digest),
        "absent": (run / "x", digest),
        "another": (folder, "0" * 64),
    }
    results = {}
    for case, (place, known) in cases.items():
        found = Found(folder, digest, content)
        if rank == 1:  # as it arrives from rank 0
            found = pickle.loads(pickle.dumps(Found(place, known, content)))  # noqa: S301
            assert not found.content
        with mock.patch("trainer.loop.resume.on_main", wraps=on_main) as sent:
            got = send_content(found)
        assert got is not None
        results[f"checkpoint {case}: sent"] = float(sent.called)
        same = got.content["number"] == 7
        same = same and difference(got.content["model"], content["model"]) == 0
        all_same: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(all_same, same)
        results[f"checkpoint {case}: same"] = float(all(all_same))
    return results


def statistics_over_ranks(images, rank):
    """How far batch norm's statistics differ over ranks after a step, and as the next begins."""
    model = small_net()
    shard(model, images)
    own, labels = BATCHES[0][0] + 10 * rank, BATCHES[0][1]
    trained(model, model, [(own, labels)], 1, rank)

    def spread():
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, dict(model.named_buffers()))
        return max(difference(buffers, everywhere[0]) for buffers in everywhere)

    apart = spread()
    synchronise(model, is_last=True)
    return apart, spread()


def in_processes(output, rank):
    """What each of the processes does; the first one writes what was found. Returns 0."""
    from torch.nn.parallel import DistributedDataParallel

    from trainer.distributed.fsdp import hand_over, model_shard, optimizer_shard
    from trainer.distributed.sync_batch_norm import with_synced_batch_norm
    from trainer.loop.snapshot import copied

    warnings.simplefilter("default")  # torch's own of its own: they are no errors here
    dist.init_process_group("gloo")
    world = dist.get_world_size()
    found = {}

    # Batch norm over processes, which may share a GPU: of one step, all that comes out and back.
    on_gpu = torch.cuda.is_available()
    for layout in (torch.contiguous_format, torch.channels_last) if on_gpu else ():
        expected = small_net().to("cuda", memory_format=layout)
        expected.drop.p = 0.0
        model = with_synced_batch_norm(copy.deepcopy(expected))
        network = DistributedDataParallel(model)
        for images, labels in BATCHES[:2]:
            images, labels = images.to("cuda", memory_format=layout), labels.to("cuda")
            low, high = share_of(len(images), rank, world)
            whole = images.clone().requires_grad_()
            own = images[low:high].clone().requires_grad_()
            F.cross_entropy(expected(whole), labels).backward()
            share = (high - low) / len(images) * world
            (F.cross_entropy(network(own), labels[low:high]) * share).backward()
        name = str(layout).partition(".")[2]
        gradients = {n: p.grad for n, p in model.named_parameters()}
        wanted = {n: p.grad for n, p in expected.named_parameters()}
        found[f"synced, {name}: weights"] = difference(gradients, wanted)
        buffers = dict(expected.named_buffers())
        found[f"synced, {name}: statistics"] = difference(dict(model.named_buffers()), buffers)
        assert own.grad is not None and whole.grad is not None
        given = float(
            (own.grad / world - whole.grad[low:high]).abs().max() / whole.grad.abs().max()
        )
        found[f"synced, {name}: images"] = given

    # Dropout, whole and in parts, also where a batch has fewer images than there are processes.
    for accumulate in (1, 2):
        expected = by_hand(small_net(norm=False), BATCHES)
        model = small_net(norm=False)
        drop_out_by_batch(model)
        trained(model, DistributedDataParallel(model), BATCHES, accumulate, rank)
        found[f"dropout, {accumulate}"] = difference(model.state_dict(), expected.state_dict())

    # FSDP, with dropout.
    expected = by_hand(small_net(norm=False), BATCHES[:2], clip=1.0)
    images = BATCHES[0][0][:2]
    model = small_net(norm=False)
    drop_out_by_batch(model)
    shard(model, images)
    optimizer = trained(model, model, BATCHES[:2], 1, rank, clip=1.0)
    states = model.state_dict(), optimizer.state_dict()
    kept = sum(p.numel() for p in map(local, model.parameters()))
    found["fsdp: kept"] = kept / size(model)
    if rank == 0:
        weights, momenta = copied(states[0]), copied(states[1])
    else:
        hand_over(states)
    outcome: Any = [(weights, momenta) if rank == 0 else None]
    dist.broadcast_object_list(outcome)
    weights, momenta = outcome[0]
    found["fsdp: weights"] = difference(weights, expected.state_dict())
    plain = expected.optimizer.state_dict()
    own_groups = [{**g, "fused": None} for g in momenta["param_groups"]]
    found["fsdp: form"] = float(own_groups != [{**g, "fused": None} for g in plain["param_groups"]])
    for number, state in plain["state"].items():
        found[f"fsdp: momentum {number}"] = difference(momenta["state"][number], state)

    # A plain model takes what was saved, and a cut one what a plain one saved.
    again = small_net(norm=False)
    again.load_state_dict(weights)
    optimizer_of(again).load_state_dict(momenta)
    cut_again = small_net(norm=False)
    shard(cut_again, images)
    optimizer = optimizer_of(cut_again)
    cut_again.load_state_dict(model_shard(cut_again, expected.state_dict()))
    optimizer.load_state_dict(optimizer_shard(optimizer, plain))
    if rank == 0:
        found["fsdp: loaded"] = difference(copied(cut_again.state_dict()), expected.state_dict())
        for number, state in copied(optimizer.state_dict())["state"].items():
            found[f"fsdp: loaded {number}"] = difference(state, plain["state"][number])
    else:
        hand_over((cut_again.state_dict(), optimizer.state_dict()))

    found |= what_ranks_see_of_a_checkpoint(output.parent / "run", rank, weights)
    found["fsdp: statistics apart"], found["fsdp: statistics"] = statistics_over_ranks(images, rank)

    # Judged by all; in the last round there is a batch for the first one only.
    filler = (images[:1], torch.zeros(0, dtype=torch.int64))
    judged, labels = predict(cut_again, [BATCHES[rank], BATCHES[0] if rank == 0 else filler])
    if rank == 0:
        expected.eval()
        with torch.inference_mode():
            right = torch.cat([expected(images) for images, _ in [*BATCHES, BATCHES[0]]])
        found["fsdp: judged"] = float((judged - right).abs().max())
        found["fsdp: labels"] = float(len(labels) != len(right))
        output.write_text(json.dumps(found))
    dist.barrier()  # none leaves while another is still being answered
    dist.destroy_process_group()
    return 0


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What processes found, started once."""
    folder = tmp_path_factory.mktemp("processes")
    codes = as_ranks(PROCESSES, folder, partial(in_processes, folder / "found.json"), timeout=120)
    assert codes == [0] * PROCESSES, [path.read_text() for path in folder.glob("rank-*.txt")]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_synced_batch_norm_is_that_of_one_process_over_the_whole_batch(found, layout):
    for what in ("weights", "statistics", "images"):
        assert found[f"synced, {layout}: {what}"] < 2e-6


@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_train_a_model_with_dropout_as_one_does(found, accumulate):
    assert found[f"dropout, {accumulate}"] < 2e-6


def test_a_cut_model_trains_as_a_whole_one(found):
    """With dropout, momentum and the gradient's length limited."""
    assert found["fsdp: weights"] < 2e-6
    assert 0.3 < found["fsdp: kept"] < 0.5  # of three processes, the first has the most


def test_a_rank_reads_the_checkpoint_that_it_sees_and_is_sent_it_only_if_it_does_not(found):
    for case, sent in (("there", 0), ("absent", 1), ("another", 1)):
        assert found[f"checkpoint {case}: same"] == 1
        assert found[f"checkpoint {case}: sent"] == sent


def test_a_step_of_a_cut_model_begins_with_the_statistics_of_rank_0(found):
    assert found["fsdp: statistics apart"] > 0.1
    assert found["fsdp: statistics"] == 0


def test_what_it_saves_is_a_plain_models_state_and_the_other_way_round(found):
    assert found["fsdp: form"] == 0
    assert max(v for name, v in found.items() if name.startswith("fsdp: momentum")) < 2e-6
    assert max(v for name, v in found.items() if name.startswith("fsdp: loaded")) == 0


def test_it_is_judged_by_all_processes_however_many_batches_each_has(found):
    assert found["fsdp: labels"] == 0
    assert found["fsdp: judged"] < 2e-6
