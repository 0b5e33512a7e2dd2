import copy
import inspect
from pkgutil import resolve_name

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer.components import OPTIMIZERS, UNSUPPORTED_OPTIMIZERS
from trainer.components.optimizers import Muon, parameter_groups


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
