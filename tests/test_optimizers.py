import copy
import inspect
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer.components import OPTIMIZERS, UNSUPPORTED_OPTIMIZERS
from trainer.components.optimizers import Chosen, Muon, parameter_groups


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4 * 4, 8),
        nn.LayerNorm(8),
        nn.Linear(8, 3),
    )


def set_gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def names_of(model, group):
    ids = {id(p) for p in group["params"]}
    return [name for name, p in model.named_parameters() if id(p) in ids]


def test_the_table_has_every_optimizer_of_torch_but_the_explained_ones():
    of_torch = {name for name, cls in vars(torch.optim).items() if inspect.isclass(cls)}
    assert of_torch - {"Optimizer"} == set(OPTIMIZERS) | set(UNSUPPORTED_OPTIMIZERS)
    assert not set(OPTIMIZERS) & set(UNSUPPORTED_OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_without_a_closure(name):
    model = small_model()
    optimizer = resolve_name(OPTIMIZERS[name])(parameter_groups(model, no_decay=True), lr=0.01)
    images, labels = torch.randn(12, 1, 4, 4), torch.arange(12) % 3
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(images), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] * 0.99


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_exactly_from_its_saved_state(name, tmp_path):
    def run(model, optimizer, steps):
        for step in steps:
            set_gradients(model, step)
            optimizer.step()

    def build(model):
        return resolve_name(OPTIMIZERS[name])(parameter_groups(model, no_decay=True), lr=0.01)

    model = small_model()
    optimizer = build(model)
    run(model, optimizer, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed = copy.deepcopy(model)
    resumed_optimizer = build(resumed)
    resumed_optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    run(model, optimizer, range(3, 6))
    run(resumed, resumed_optimizer, range(3, 6))
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_no_decay_spares_norm_layers_and_biases_and_nothing_else():
    model = small_model()
    decay, spared = parameter_groups(model, no_decay=True)
    assert names_of(model, decay) == ["0.weight", "3.weight", "5.weight"]
    expected = ["0.bias", "1.weight", "1.bias", "3.bias", "4.weight", "4.bias", "5.bias"]
    assert names_of(model, spared) == expected
    assert "weight_decay" not in decay and spared["weight_decay"] == 0


def test_no_decay_spares_a_norm_layers_matrix():
    model = nn.Sequential(nn.LayerNorm([2, 3]), nn.Linear(3, 3, bias=False))
    decay, spared = parameter_groups(model, no_decay=True)
    assert (names_of(model, decay), names_of(model, spared)) == (
        ["1.weight"],
        ["0.weight", "0.bias"],
    )


def test_without_no_decay_all_parameters_stand_in_one_group_in_order():
    model = small_model()
    (group,) = parameter_groups(model, no_decay=False)
    assert names_of(model, group) == [name for name, _ in model.named_parameters()]
    assert group.keys() == {"params"}


def test_frozen_parameters_are_left_out_and_shared_ones_listed_once():
    model = small_model()
    model[0].requires_grad_(False)
    model.append(nn.Linear(3, 8, bias=False))
    model.append(nn.Linear(3, 8, bias=False))
    model[7].weight = model[6].weight
    for no_decay in (False, True):
        listed = [p for group in parameter_groups(model, no_decay) for p in group["params"]]
        assert len(listed) == len({id(p) for p in listed}) == 9
        assert all(p.requires_grad for p in listed)


def test_a_group_without_parameters_is_not_made():
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), no_decay=True)) == 1


def test_a_wholly_frozen_model_is_refused():
    with pytest.raises(ValueError, match="frozen"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), no_decay=False)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 7), nn.Linear(7, 3))


@pytest.mark.parametrize("no_decay", [False, True])
def test_muon_equals_torchs_muon_on_hidden_matrices_and_its_adamw_on_the_rest(no_decay):
    model, reference = mlp(), mlp()
    optimizer = Muon(parameter_groups(model, no_decay), lr=0.02, weight_decay=0.3)
    hidden = [reference[1].weight, reference[2].weight]
    biases = [layer.bias for layer in reference]
    groups: list[dict] = [
        {"params": [reference[0].weight, reference[3].weight]},
        {"params": biases, "weight_decay": 0.0 if no_decay else 0.3},
    ]
    references = [
        torch.optim.Muon(hidden, lr=0.02, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=0.02, weight_decay=0.3),
    ]
    for step in range(4):
        for each in (model, reference):
            set_gradients(each, step)
        for each in (optimizer, *references):
            each.step()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one, other)


def test_muon_follows_a_scheduler_in_every_group():
    model = mlp()
    optimizer = Muon(parameter_groups(model, no_decay=True), lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=11)
    for step in range(10):
        set_gradients(model, step)
        optimizer.step()
        scheduler.step()
    before = copy.deepcopy(list(model.parameters()))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([4e-6] * 3)
    optimizer.step()
    for one, other in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_muon_refuses_a_model_whose_hidden_layers_are_all_convolutions():
    layers = [nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 3)]
    with pytest.raises(ValueError, match="use AdamW"):
        Muon(nn.Sequential(*layers).parameters())


def test_muon_takes_a_model_without_hidden_layers():
    Muon(nn.Linear(2, 2).parameters()).step()


def test_muon_refuses_impossible_arguments():
    with pytest.raises(ValueError, match="lr|earning rate"):
        Muon(mlp().parameters(), lr=-1.0)


def convolutions(layout=torch.contiguous_format):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 2), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 60, 3), nn.Linear(60, 3)
    )
    return model.to(memory_format=layout)


def in_float32(gradients, momentum, steps):
    """Muon's directions after these gradients: its moving mean, and the published polynomial."""
    mean = np.zeros_like(gradients[0])
    for gradient in gradients:
        mean = momentum * mean + gradient
    x = gradients[-1] + momentum * mean
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_makes_the_update_of_filters_orthogonal_as_a_matrix_of_a_row_each(layout):
    model, gradients = convolutions(layout), []
    optimizer = Muon(
        model.parameters(), lr=0.5, weight_decay=0.0, momentum=0.6, ns_steps=3, filters=True,
        adjust_lr_fn="original",
    )  # fmt: skip
    filters = model[1].weight
    for step in range(3):
        before = filters.detach().clone()
        set_gradients(model, step)
        gradients.append(filters.grad.flatten(1).double().numpy())
        optimizer.step()
        moved = (before - filters.detach()).flatten(1).numpy() / 0.5
        np.testing.assert_allclose(moved, in_float32(gradients, 0.6, 3), atol=0.03)
    singular = np.linalg.svd(moved, compute_uv=False)
    assert 0.3 < singular.min() and singular.max() < 1.3
    tall = model[2].weight  # 60 filters of 54 values: original scales it
    assert optimizer.state[tall]["momentum_buffer"].shape == (60, 54)
    kept = {id(p) for group in optimizer.param_groups if group["muon"] for p in group["params"]}
    assert kept == {id(filters), id(tall)}


def test_muon_scales_its_weights_before_the_update_if_asked():
    model = convolutions()
    optimizer = Muon(model.parameters(), lr=0.0, filters=True, normalise=True)
    first = model[0].weight.detach().clone()
    set_gradients(model, 0)
    optimizer.step()
    for layer in (model[1], model[2]):
        norms = layer.weight.detach().flatten(1).norm(dim=1)
        torch.testing.assert_close(norms.square().mean(), torch.tensor(1.0))
    assert torch.equal(model[0].weight, first)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_on_filters_goes_on_with_the_same_bits_in_any_layout(layout):
    def steps(optimizer, model, numbers):
        for step in numbers:
            set_gradients(model, step)
            optimizer.step()

    def made(model):
        return Muon(model.parameters(), lr=0.1, filters=True, normalise=True, rest="SGD")

    whole, first, second = convolutions(), convolutions(), convolutions(layout)
    steps(made(whole), whole, range(4))
    begun = made(first)
    steps(begun, first, range(2))
    second.load_state_dict(first.state_dict())
    resumed = made(second)
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    steps(resumed, second, range(2, 4))
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_muon_leaves_the_rest_to_sgd_with_nesterov_and_rates_of_their_own():
    model, reference = convolutions(), convolutions()
    names = {"1.bias": {"lr": 2.0, "momentum": 0.85}, "3.weight": {"lr": 0.7, "weight_decay": 0.1}}
    chosen = [Chosen(name, [name], settings) for name, settings in names.items()]
    optimizer = Muon(
        parameter_groups(model, no_decay=False, chosen=chosen), lr=0.2, weight_decay=0.0,
        momentum=0.6, filters=True, rest="SGD", in_order=list(model.parameters()),
    )  # fmt: skip
    theirs = dict(reference.named_parameters())
    rest = [p for name, p in theirs.items() if name not in ("1.weight", "2.weight", *names)]
    groups: list[dict] = [{"params": [theirs[n]], **own} for n, own in names.items()]
    sgd = torch.optim.SGD([{"params": rest}, *groups], lr=0.2, momentum=0.6, nesterov=True)
    for step in range(3):
        set_gradients(model, step)
        set_gradients(reference, step)
        optimizer.step()
        sgd.step()
    for name, parameter in model.named_parameters():
        assert name in ("1.weight", "2.weight") or torch.equal(parameter, theirs[name]), name


def test_muon_counts_a_frozen_first_layer_as_the_first_if_it_takes_filters():
    model = convolutions()
    model[0].weight.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    with pytest.raises(ValueError, match="filters: true"):
        Muon(trained, in_order=list(model.parameters()))
    optimizer = Muon(trained, filters=True, in_order=list(model.parameters()))
    of_muon = [group["params"] for group in optimizer.param_groups if group["muon"]]
    assert [id(p) for p in of_muon[0]] == [id(model[1].weight), id(model[2].weight)]


def test_muon_refuses_a_model_whose_hidden_layers_are_all_frozen():
    model = convolutions()
    for name in ("1.weight", "2.weight"):
        model.get_parameter(name).requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    with pytest.raises(ValueError, match="is frozen; use AdamW"):
        Muon(trained, filters=True, in_order=list(model.parameters()))
