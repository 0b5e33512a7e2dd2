import math
import time
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.loop.model_summary import (
    MOST_ROWS,
    Cost,
    ModelSummary,
    bytes_of,
    count_flops,
    kept_for_backward,
    layer_table,
    lines,
    real_steps,
    scaled,
    summarize,
    table_of,
)

COST = Cost((8, 3, 32, 32), 0.7, 2**20, 2**20, 2**21, 2**22, None, 1.0, 0.1, 11.0)


@pytest.fixture
def job_of(config_file):
    def build(*overrides):
        return prepare(load_config(config_file, overrides), lambda line: None)

    return build


def summary_of(model, image):
    flops, outputs = count_flops(model, image)
    rows, hidden = table_of(model, outputs)
    count = sum(p.numel() for p in model.parameters())
    return ModelSummary(rows, hidden, count, 0, flops, COST, 10)


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "resnet18", "vit_b_16", "swin_t"])
def test_parameters_and_flops_are_those_that_torchvision_publishes(name):
    with torch.device("meta"):
        model, image = torchvision.models.get_model(name), torch.zeros(1, 3, 224, 224)
    known = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta
    summary = summary_of(model, image)
    assert summary.flops / 2e9 == pytest.approx(known["_ops"], abs=0.005)  # multiply-adds
    assert summary.parameters == known["num_params"]
    assert sum(row.parameters for row in summary.rows) == known["num_params"]
    shown = lines(summary)
    assert len(summary.rows) <= MOST_ROWS and max(map(len, shown)) <= 100
    assert any(f"{known['num_params']:,} parameters" in line for line in shown)


def test_lenet_costs_what_its_paper_s_figure_adds_up_to(job_of):
    job = job_of()
    summary = summarize(job)
    convolutions = 2 * (5 * 5 * 3 * 6 * 28 * 28 + 5 * 5 * 6 * 16 * 10 * 10)
    linear = 2 * (400 * 120 + 120 * 84 + 84 * 2)
    assert summary.flops == convolutions + linear
    assert summary.parameters == sum(p.numel() for p in job.model.parameters()) == 61_326
    outputs = {row.name: row.output for row in summary.rows}
    assert outputs["features.0"] == "6 x 28 x 28" and outputs["classifier.4"] == "2"
    assert [row.parameters for row in summary.rows if row.kind == "Conv2d"] == [456, 2416]
    assert summary.cost.batch == (8, 3, 32, 32)


@pytest.mark.parametrize(
    "optimizer, copies",
    [("{name: SGD}", 0), ("{name: SGD, momentum: 0.9}", 1), ("{name: Adam}", 2)],
)
def test_memory_of_gradients_and_optimizer_is_a_multiple_of_the_weights(job_of, optimizer, copies):
    cost = summarize(job_of(f"optimizer={optimizer}")).cost
    assert cost.parameters == cost.gradients == 4 * 61_326
    assert copies * cost.parameters <= cost.optimizer <= copies * cost.parameters + 100


def test_frozen_layers_have_no_gradient_and_are_marked(job_of):
    summary = summarize(job_of("model={name: LeNet, freeze: ['features.*']}"))
    assert summary.frozen == 456 + 2416
    assert summary.cost.gradients == 4 * (61_326 - summary.frozen)
    marked = {row.name: row.trainable for row in summary.rows}
    assert marked["features.0"] is False and marked["classifier.0"] is True
    assert marked["features.1"] is None
    assert any("2,872 of them frozen" in line for line in lines(summary))


def test_what_is_kept_for_the_backward_pass_is_counted_by_hand(job_of):
    job = job_of("model={name: MLP, hidden: [16]}", "loss=MSELoss")
    job.model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 16), nn.ReLU(), nn.Linear(16, 2))
    images, labels = torch.rand(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64)
    loss, size = kept_for_backward(job, images, labels)
    inputs, hidden, difference = 8 * 3072, 8 * 16, 8 * 2
    assert size == 4 * (inputs + hidden + difference)
    targets = nn.functional.one_hot(labels, 2).float()
    assert loss == pytest.approx(((job.model(images) - targets) ** 2).mean().item())


def test_parts_of_a_batch_keep_as_much_less(job_of):
    whole, quarter = (
        summarize(job_of(f"train.accumulate={parts}")).cost.activations for parts in (1, 4)
    )
    batch = 4 * 8 * 3 * 32 * 32  # of which a part is a view: all of it stays
    assert quarter - batch == pytest.approx((whole - batch) / 4, rel=0.01)


def test_no_hook_is_left_and_the_model_goes_on_training(job_of):
    job = job_of()
    summarize(job)
    assert not any(module._forward_hooks for module in job.model.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    batches = job.train_loader.epoch(2)
    assert sum(1 for _ in real_steps(job, batches)) == len(job.train_loader)


class Odd(nn.Module):
    """Layers that give a dict, a tuple and nothing, one that is used twice and one that is not."""

    class Inner(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.kind, self.scale = kind, nn.Parameter(torch.ones(1))

        def forward(self, x):
            x = x * self.scale
            return {"dict": {"out": x}, "tuple": (x, x), "list": [], "none": None}[self.kind]

    def __init__(self):
        super().__init__()
        self.gives_dict, self.gives_tuple = self.Inner("dict"), self.Inner("tuple")
        self.gives_list, self.gives_none = self.Inner("list"), self.Inner("none")
        self.twice = nn.Linear(4, 4)
        self.again = self.twice
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.twice.weight
        self.unused = nn.Linear(9, 9)
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        x = self.gives_tuple(self.gives_dict(x)["out"])[0]
        self.gives_list(x), self.gives_none(x)
        return self.tied(self.again(self.twice(x))) + self.bias


def test_layers_of_any_kind_are_listed_and_what_they_share_counts_once():
    model = Odd()
    summary = summary_of(model, torch.rand(1, 4))
    rows = {row.name: row for row in summary.rows}
    assert sum(row.parameters for row in summary.rows) == summary.parameters == 16 + 8 + 90 + 4 + 4
    assert rows["gives_dict"].output == "4" and rows["gives_tuple"].output == "4 (+1)"
    assert rows["gives_list"].output == rows["gives_none"].output == rows["unused"].output == "-"
    assert rows["(model)"].parameters == 4 and rows["tied"].parameters == 4
    assert "again" not in rows
    assert summary.flops == 3 * 2 * 16


def test_a_model_of_one_layer_has_one_row():
    (row,) = summary_of(nn.Linear(4, 2), torch.rand(1, 4)).rows
    assert (row.name, row.kind, row.output, row.parameters) == ("(model)", "Linear", "2", 10)


def test_a_model_that_cannot_be_counted_is_listed_all_the_same():
    class Refuses(nn.Linear):
        def forward(self, x):
            raise AssertionError("not with one image")

    summary = summary_of(Refuses(4, 2), torch.rand(1, 4))
    assert summary.rows[0].parameters == 10
    assert any(
        "one image forward: not counted (AssertionError: not with" in x for x in lines(summary)
    )


def test_a_layer_that_gets_an_expanded_parameter_is_counted():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 4))
            self.layer, self.same = nn.Linear(4, 2), nn.Identity()

        def forward(self, x):
            return self.layer(x + self.same(self.token.expand(len(x), -1)))

    assert summary_of(Token(), torch.rand(1, 4)).flops == 2 * 4 * 2


@pytest.mark.parametrize("layers", [60, 61, 400])
def test_a_long_flat_model_is_cut_off_and_says_by_how_much(layers):
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(layers)])
    shown = layer_table(summary_of(model, torch.rand(1, 2)))
    if layers > MOST_ROWS:
        assert len(shown) == 1 + MOST_ROWS + 1 and f"{layers - MOST_ROWS} more" in shown[-1]
    else:
        assert len(shown) == 1 + layers


@pytest.mark.parametrize(
    ("width", "out"),
    [
        (100, ""),
        (60, "trained, type"),
        (40, "trained, type, output"),
        (30, "trained, type, output"),
    ],
)
def test_long_names_stay_whole_and_columns_without_room_are_named(width, out):
    model = nn.Sequential()
    model.add_module("a_layer_of_a_long_name", nn.Conv2d(3, 1000, 5))
    model.add_module("b" * 27, nn.Flatten())
    shown = layer_table(summary_of(model, torch.rand(1, 3, 9, 9)), width)
    begin = next((i for i, line in enumerate(shown) if line.startswith("left out")), len(shown))
    told = " ".join(shown[begin:])
    assert max(map(len, shown)) <= width
    assert told == (out and f"left out at {width} columns: {out}; a wider terminal shows all")
    words = " ".join(shown[:begin]).split()
    assert {"a_layer_of_a_long_name", "b" * 27, "76,000"} <= set(words)
    assert ("1000 x 5 x 5" in " ".join(shown)) == ("output" not in out)
    assert ("Conv2d" in words) == (not out)


def test_the_time_of_an_epoch_is_that_of_its_steps(job_of):
    class Slow(nn.Module):
        def forward(self, logits, labels):
            time.sleep(0.1)
            return nn.functional.cross_entropy(logits, labels)

    job = job_of("train.epochs=7")
    job.loss_fn = Slow()
    summary = summarize(job)
    cost = summary.cost
    assert 0.1 * len(job.train_loader) <= cost.train_seconds < 0.2 * len(job.train_loader)
    assert 0 < cost.val_seconds < cost.train_seconds
    assert cost.run_seconds > 7 * (cost.train_seconds + cost.val_seconds)
    assert any("7 epochs" in line for line in lines(summary))


def test_a_first_loss_that_is_no_number_is_told():
    summary = summary_of(nn.Linear(3, 2), torch.zeros(1, 3))
    spoilt = replace(summary, cost=replace(COST, loss=math.nan))
    notes = [line for line in lines(spoilt) if line not in lines(summary)]
    assert any("a run ends there" in note for note in notes)


def test_sizes_are_told_in_fitting_units():
    assert [scaled(n) for n in (999, 833_040, 30_940_000_000)] == ["999 ", "833 k", "30.94 G"]
    tensor = torch.zeros(10)
    assert bytes_of([tensor, tensor, torch.zeros(5, dtype=torch.int64)]) == 80


def test_of_each_size_one_step_is_enough_where_a_step_is_slow(job_of, monkeypatch):
    monkeypatch.setattr("trainer.loop.model_summary.TIMED_SECONDS", 0.0)
    steps = []

    def counted(job, batches):
        for images, labels in batches:
            steps.append(images.shape[-1])
            yield from real_steps(job, [(images, labels)])

    monkeypatch.setattr("trainer.loop.model_summary.real_steps", counted)
    net = "model={name: CompactResNet, widths: [4]}"
    assert summarize(job_of(net, "train.sizes={0ep: 24, 1ep: 32}")).cost.train_seconds > 0
    assert steps == [32, 24, 32]  # the first batch, of the largest size, and one of each
