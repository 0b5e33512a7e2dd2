import math
import re
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainer.build.notes import warm_up_note
from trainer.build.optimizer import build_schedule_of
from trainer.components import SCHEDULERS
from trainer.components.schedulers import build_schedule
from trainer.config import load_config
from trainer.process.errors import ConfigError

LR = 0.4
EPOCHS, STEPS = 6, 5  # of an epoch
ARGUMENTS: dict[str, dict] = {
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "MultiStepLR": {"milestones": [1, 3], "gamma": 0.1},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {},
    "OneCycleLR": {},
    "LinearLR": {"start_factor": 0.25, "total_iters": 3},
    "PolynomialLR": {"power": 2.0},
    "ReduceLROnPlateau": {"patience": 1, "factor": 0.5},
}
MONITORED = [0.1, 0.2, 0.3, 0.3, 0.3, 0.2]  # of each epoch


def new_optimizer():
    return torch.optim.SGD(
        [{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))]}],
        lr=LR,
        momentum=0.9,
    )


def build(name, optimizer, warmup_steps=0, extra=None):
    arguments = {**ARGUMENTS.get(name, {}), **(extra or {})}
    return build_schedule(name, arguments, optimizer, EPOCHS, STEPS, warmup_steps)


def rates(optimizer, schedule, first_step=0):
    """The rate of each step from ``first_step`` to the end of the run."""
    found = []
    for step in range(first_step, EPOCHS * STEPS):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert first == second
        found.append(first)
        optimizer.step()
        schedule.after_step()
        if (step + 1) % STEPS == 0:
            schedule.after_epoch(MONITORED[step // STEPS])
    return found


def rates_of_torch(name, advances, **arguments):
    """The rates that torch's own scheduler gives when it advances that often."""
    optimizer = new_optimizer()
    scheduler = resolve_name(SCHEDULERS[name])(optimizer, **{**ARGUMENTS[name], **arguments})
    found = []
    for advance in range(advances):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([MONITORED[advance]] if name == "ReduceLROnPlateau" else []))
    return found


def test_every_scheduler_of_the_table_is_tested():
    assert set(ARGUMENTS) == set(SCHEDULERS)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("StepLR", {}),
        ("MultiStepLR", {}),
        ("ExponentialLR", {}),
        ("CosineAnnealingLR", {"T_max": EPOCHS}),
        ("LinearLR", {}),
        ("PolynomialLR", {"total_iters": EPOCHS}),
        ("ReduceLROnPlateau", {}),
    ],
)
def test_a_scheduler_equals_torchs_advanced_once_an_epoch(name, arguments):
    optimizer = new_optimizer()
    expected = rates_of_torch(name, EPOCHS, **arguments)
    assert len(set(expected)) > 1
    assert rates(optimizer, build(name, optimizer))[::STEPS] == expected


def test_one_cycle_equals_torchs_advanced_once_a_step():
    optimizer = new_optimizer()
    expected = rates_of_torch("OneCycleLR", EPOCHS * STEPS, max_lr=LR, total_steps=EPOCHS * STEPS)
    assert rates(optimizer, build("OneCycleLR", optimizer)) == expected
    assert max(expected) == pytest.approx(LR)


def test_arguments_of_the_yaml_win_over_the_runs():
    optimizer = new_optimizer()
    schedule = build("CosineAnnealingLR", optimizer, extra={"T_max": 2})
    assert rates(optimizer, schedule)[2 * STEPS] == pytest.approx(0, abs=1e-12)


def test_one_cycle_ends_at_its_lowest_rate_and_rests_there():
    optimizer = new_optimizer()
    schedule = build("OneCycleLR", optimizer)
    lowest = LR / 25 / 1e4
    assert rates(optimizer, schedule)[-1] == pytest.approx(lowest)
    assert rates(optimizer, schedule) == pytest.approx([lowest] * EPOCHS * STEPS)


def test_the_cosine_falls_to_its_end_with_the_last_epoch():
    optimizer = new_optimizer()
    found = rates(optimizer, build("CosineAnnealingLR", optimizer))
    assert found[-1] == pytest.approx(LR / 2 * (1 + math.cos(math.pi * (EPOCHS - 1) / EPOCHS)))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("monitor", "more", "expected"),
    [
        ("val/accuracy", "", LR / 2),
        ("val/loss", "", LR / 4),
        ("val/loss", ", mode: max", LR / 2),
    ],
)
def test_a_plateau_goes_by_the_direction_of_the_monitored_value(
    monitor, more, expected, config_file
):
    scheduler = f"scheduler={{name: ReduceLROnPlateau, patience: 1, factor: 0.5{more}}}"
    config = load_config(config_file, [scheduler, f"train.monitor={monitor}"])
    optimizer = new_optimizer()
    rates(optimizer, build_schedule_of(config, optimizer, STEPS))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_a_run_that_is_too_short_for_a_phase_of_the_curve_is_refused(config_file):
    scheduler = "scheduler={name: OneCycleLR, pct_start: 0.5}"
    config = load_config(config_file, [scheduler, "train.epochs=1"])
    with pytest.raises(ConfigError, match="no step, as the run has 2 only; train more epochs"):
        build_schedule_of(config, new_optimizer(), 2)
    build_schedule_of(config, new_optimizer(), 3)


def test_without_scheduler_the_rate_stays():
    optimizer = new_optimizer()
    assert rates(optimizer, build(None, optimizer)) == [LR] * EPOCHS * STEPS


@pytest.mark.parametrize("warmup_steps", [1, STEPS, 7])
@pytest.mark.parametrize("name", [None, *SCHEDULERS])
def test_a_warm_up_rises_evenly_to_the_rate_at_which_the_scheduler_begins(name, warmup_steps):
    optimizer = new_optimizer()
    found = rates(optimizer, build(name, optimizer, warmup_steps))
    beginning = {"LinearLR": LR / 4, "OneCycleLR": LR / 25}.get(name, LR)
    ramp = [beginning * (i + 1) / (warmup_steps + 1) for i in range(warmup_steps)]
    assert found[:warmup_steps] == pytest.approx(ramp)
    assert found[warmup_steps] == pytest.approx(beginning)


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"OneCycleLR", "ReduceLROnPlateau"}))
@pytest.mark.parametrize(
    ("warmup_steps", "first_epoch"),
    [(1, 0), (STEPS - 1, 0), (STEPS, 1), (STEPS + 1, 1), (2 * STEPS, 2)],
)
def test_after_a_warm_up_the_scheduler_runs_from_its_own_beginning(name, warmup_steps, first_epoch):
    epochs_left = EPOCHS - first_epoch
    arguments = {
        "CosineAnnealingLR": {"T_max": epochs_left},
        "PolynomialLR": {"total_iters": epochs_left},
    }.get(name, {})
    optimizer = new_optimizer()
    found = rates(optimizer, build(name, optimizer, warmup_steps))
    last_of_each_epoch = found[STEPS - 1 :: STEPS]
    assert last_of_each_epoch[first_epoch:] == rates_of_torch(name, epochs_left, **arguments)


def test_one_cycle_after_a_warm_up_fills_the_steps_that_are_left():
    optimizer = new_optimizer()
    found = rates(optimizer, build("OneCycleLR", optimizer, warmup_steps=7))
    left = EPOCHS * STEPS - 7
    assert found[7:] == rates_of_torch("OneCycleLR", left, max_lr=LR, total_steps=left)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([None, *SCHEDULERS]),
    warmup_steps=st.integers(0, EPOCHS * STEPS - 1),
    stop=st.integers(1, EPOCHS * STEPS - 1),
    schedule_first=st.booleans(),
)
def test_a_loaded_schedule_goes_on_exactly_at_any_step(
    tmp_path_factory, name, warmup_steps, stop, schedule_first
):
    file = tmp_path_factory.mktemp("state") / "state.pt"
    optimizer = new_optimizer()
    schedule = build(name, optimizer, warmup_steps)
    whole = []
    for step in range(EPOCHS * STEPS):
        if step == stop:
            state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            torch.save(state, file)
        whole.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.after_step()
        if (step + 1) % STEPS == 0:
            schedule.after_epoch(MONITORED[step // STEPS])

    state = torch.load(file, weights_only=True)
    optimizer = new_optimizer()
    schedule = build(name, optimizer, warmup_steps)
    loads = [(schedule, "schedule"), (optimizer, "optimizer")]
    for part, key in loads if schedule_first else reversed(loads):
        part.load_state_dict(state[key])
    assert rates(optimizer, schedule, first_step=stop) == whole[stop:]


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="31 steps is longer than the run's 30"):
        build("StepLR", new_optimizer(), warmup_steps=EPOCHS * STEPS + 1)


@pytest.mark.parametrize("name", [None, *SCHEDULERS])
def test_a_warm_up_that_fills_the_run_is_all_there_is(name):
    optimizer = new_optimizer()
    schedule = build(name, optimizer, warmup_steps=EPOCHS * STEPS)
    whole = rates(optimizer, schedule)
    assert whole == sorted(whole) and len(set(whole)) == len(whole)


@pytest.mark.parametrize("warmup_steps", [0, STEPS - 1, STEPS, 2 * STEPS, 2 * STEPS + 1])
def test_the_note_names_the_epochs_of_the_run_after_which_the_rate_changes(warmup_steps):
    optimizer = new_optimizer()
    schedule = build("MultiStepLR", optimizer, warmup_steps)
    component = SimpleNamespace(name="MultiStepLR", arguments=ARGUMENTS["MultiStepLR"])
    job: Any = SimpleNamespace(
        config=SimpleNamespace(scheduler=component), schedule=schedule, train_loader=range(STEPS)
    )
    note = warm_up_note(job)
    found = rates(optimizer, schedule)
    falls = [step // STEPS for step in range(1, len(found)) if found[step] < found[step - 1]]
    if warmup_steps < STEPS:
        assert note == "" and falls == [1, 3]
        return
    begins = f"MultiStepLR begins after the warm-up: its epoch 1 is epoch {falls[0]} of the run"
    assert note == f"{begins}; milestones 1 and 3 come after epochs {falls[0]} and {falls[1]}"
    assert [int(n) for n in re.findall(r"(\d+)$", note)] == falls[1:]
