"""Averages of weights: torch's own numbers, judged and kept in place of the trained ones."""

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_multi_avg_fn,
    get_swa_multi_avg_fn,
    update_bn,
)

from models.freeze import freeze
from models.lenet import LeNet
from tests.conftest import SMALL
from tests.test_resume import stopped_at
from tests.test_training import CPU, assert_same_run, last_state, same, weights
from trainer.build.precision import FP32
from trainer.build.prepare import prepare
from trainer.components.averages import EMA, SWA, Average, Lookahead
from trainer.components.duration import Duration
from trainer.config import load_config
from trainer.inference.evaluation import evaluate_run
from trainer.input.data import load_data
from trainer.loop.evaluate import predict
from trainer.loop.guard import Guard
from trainer.process.errors import ConfigError
from trainer.run.checkpoint import checkpoints, digest_of, problem_of, read_state
from trainer.run.disk import read_json, write_json
from trainer.run.folder import read_metrics
from trainer.run.resume import find_resumable
from trainer.run.tensors import save_tensors
from trainer.train import main
from transforms.keyed import permutation, seed_of

MOBILE = "model=torchvision/mobilenet_v3_small"  # batch norm and dropout
SMALL_NET = "model={name: CompactResNet, widths: [8, 8, 8]}"  # batch norm, in a third of the time
EMA_3 = "average={name: EMA, decay: 0.9, every: 3st}"
SWA_3 = "average={name: SWA, start: 3st, every: 2st}"
LOOKAHEAD_3 = "average={name: Lookahead, steps: 3, alpha: 0.25}"
# SWA alone lets images through the model to measure statistics: dropout must not draw for them.
KINDS = [(EMA_3, SMALL_NET), (SWA_3, MOBILE), (LOOKAHEAD_3, SMALL_NET)]
IDS = [average for average, _ in KINDS]
EVERY_STEP = Duration(1, "st")


def small_model() -> nn.Sequential:
    """A convolution, batch norm and a linear layer, of drawn weights."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
    return nn.Sequential(*layers)


def steps(model: nn.Module, count: int):
    """Train ``model`` on noise; yields the steps done, and the batch."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, count + 1):
        images = torch.randn(6, 3, 8, 8, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model.train()(images), torch.arange(6) % 2).backward()
        optimizer.step()
        yield step, (images, torch.arange(6) % 2)


def judged(average: Average) -> dict:
    with average.applied():
        return {name: tensor.clone() for name, tensor in average.model.state_dict().items()}


@pytest.mark.parametrize("every", [1, 3])
def test_the_moving_average_is_torchs(every):
    model = small_model()
    average = EMA(model, 5, decay=0.9, every=Duration(every, "st"), warmup=False)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(model)  # the first call copies
    for step, _ in steps(model, 12):
        average.after_step(step)
        if step % every == 0:
            theirs.update_parameters(model)
    ours, expected = judged(average), theirs.module.state_dict()
    whole = "1.num_batches_tracked"  # torch averages the whole number too; here it is the model's
    assert ours.pop(whole) == 12 and same(ours, {k: v for k, v in expected.items() if k != whole})
    assert set(average.values) == set(ours)


def test_with_a_warm_up_the_first_updates_keep_less_as_tensorflows_do():
    model = small_model()
    average = EMA(model, 5, decay=0.3)
    expected = model.state_dict()["4.weight"].double()
    for step, _ in steps(model, 8):
        average.after_step(step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.state_dict()["4.weight"].double()
        torch.testing.assert_close(judged(average)["4.weight"].double(), expected)


def test_the_mean_of_weights_and_its_batch_norm_are_torchs():
    model = small_model()
    average = SWA(model, 4, start=Duration(1, "ep"), every=Duration(2, "st"))
    theirs = AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())
    batches = []
    for step, batch in steps(model, 11):
        average.after_step(step)
        if step in (4, 6, 8, 10):
            theirs.update_parameters(model)
        batches.append(batch)
        assert average.count == max(0, (step - 2) // 2)
    momentum = model[1].momentum
    with average.applied():
        assert average.needs_statistics()
        average.take_statistics(batches, FP32.autocast, lambda number: None)
    update_bn(batches, theirs.module)
    assert same(judged(average), theirs.module.state_dict())
    assert same(average.weights(), theirs.module.state_dict())
    assert model[1].momentum == momentum and model[1].num_batches_tracked == 11


def test_lookahead_is_the_papers_algorithm():
    model = small_model()
    ours = Lookahead(model, 5, steps=4, alpha=0.25)
    other = copy.deepcopy(model)
    slow = [parameter.detach().clone() for parameter in other.parameters()]
    theirs = steps(other, 10)
    for step, _ in steps(model, 10):
        ours.after_step(step)
        next(theirs)
        if step % 4 == 0:
            for kept, parameter in zip(slow, other.parameters(), strict=True):
                kept += 0.25 * (parameter.detach() - kept)
                parameter.data.copy_(kept)
        assert same(list(model.state_dict().values()), list(other.state_dict().values()))
        shown = judged(ours)
        if step < 4:
            assert same(shown, dict(model.state_dict()))
        else:
            assert same([shown[name] for name, _ in other.named_parameters()], slow)
            assert same(shown["1.running_mean"], other.state_dict()["1.running_mean"])


@pytest.mark.parametrize("kind", [EMA, SWA, Lookahead])
def test_training_goes_on_with_the_trained_weights_even_where_judging_fails(kind):
    model = small_model().to(memory_format=torch.channels_last)
    more = {"start": EVERY_STEP} if kind is SWA else {}
    average = kind(model, 5, **more)
    for step, _ in steps(model, 7):
        average.after_step(step)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    memory = [tensor.data_ptr() for tensor in model.state_dict().values()]
    with pytest.raises(KeyboardInterrupt), average.applied():
        assert not same(dict(model.state_dict()), before)
        model.train()(torch.randn(4, 3, 8, 8))  # statistics move
        raise KeyboardInterrupt
    assert same(dict(model.state_dict()), before)
    assert memory == [tensor.data_ptr() for tensor in model.state_dict().values()]
    strides = [tensor.stride() for tensor in average.values.values()]
    assert strides == [model.state_dict()[name].stride() for name in average.values]


def test_what_is_frozen_or_shared_by_two_names_is_judged_as_it_is():
    model = small_model()
    freeze(model, ["0.*", "1.*"])
    model.append(nn.Linear(2, 2)).append(model[5])
    average = EMA(model, 5, decay=0.5)
    assert {n for n in average.values if "running" not in n} == {
        f"{layer}.{kind}" for layer in (4, 5, 6) for kind in ("weight", "bias")
    }
    for step, _ in steps(model, 3):
        average.after_step(step)
    shown = judged(average)
    assert same(shown["5.weight"], shown["6.weight"])
    assert not same(shown["5.weight"], model.state_dict()["5.weight"])
    assert same(shown, dict(average.weights()))
    assert not SWA(model, 5, start=EVERY_STEP).needs_statistics()


# Several processes


@pytest.mark.parametrize("override", [EMA_3, SWA_3, LOOKAHEAD_3])
def test_two_processes_judge_and_keep_the_average_that_one_does(together, tmp_path, override):
    for processes in (1, 2):
        assert together(processes, override, runs=f"runs-{processes}") == [0] * processes
    (alone,), (shared,) = ((tmp_path / f"runs-{n}" / "small").iterdir() for n in (1, 2))
    for one, other in zip(
        read_metrics(alone / "metrics.jsonl"), read_metrics(shared / "metrics.jsonl"), strict=True
    ):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4)
    for name, tensor in weights(alone).items():
        torch.testing.assert_close(weights(shared)[name], tensor, rtol=1e-3, atol=1e-5)
    assert not same(dict(weights(shared)), dict(last_state(shared)["model"]))


# Whole runs


def by_hand(config, average, after_step):
    """LeNet trained by hand for two epochs; what it is at the end of each, as it is judged."""
    part = load_data(config, CPU).subsets["train"]
    torch.manual_seed(seed_of(0, "weights"))
    model = LeNet(num_classes=2, in_channels=3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    mean, step, epochs = average(model), 0, []
    for epoch in range(2):
        for rows in permutation(len(part), 0, epoch).split(8):
            images, labels = part.batch(rows, epoch)
            optimizer.zero_grad()
            F.cross_entropy(
                model(images.contiguous(memory_format=torch.channels_last)), labels
            ).backward()
            optimizer.step()
            step += 1
            after_step(step, model, mean)
        epochs.append(copy.deepcopy(mean))
    return model, epochs


def ema_by_hand(step, model, mean):
    if step % 3 == 0:
        mean.multi_avg_fn = get_ema_multi_avg_fn(min(0.9, (1 + step // 3) / (10 + step // 3)))
        mean.update_parameters(model)


def swa_by_hand(step, model, mean):
    if step in (3, 5, 7, 9):
        mean.update_parameters(model)


@pytest.mark.parametrize(
    ("override", "after_step"), [(EMA_3, ema_by_hand), (SWA_3, swa_by_hand)], ids=["EMA", "SWA"]
)
def test_the_average_is_judged_and_kept_and_training_goes_on_as_without(
    finished, config_file, override, after_step
):
    plain, run = finished(), finished(override)
    state = last_state(run)
    assert same(state["model"], last_state(plain)["model"])
    assert state["optimizer"]["state"].keys() and last_state(plain)["average"] is None

    def begun(model):
        mean = AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())
        if "EMA" in override:
            mean.update_parameters(model)
        return mean

    config = load_config(config_file)
    _, epochs = by_hand(config, begun, after_step)
    assert same(dict(state["average"]["values"]), dict(epochs[-1].module.state_dict()))
    best = epochs[read_json(run / "result.json")["best"]["epoch"] - 1].module
    assert same(dict(weights(run)), dict(best.state_dict()))
    job = prepare(config, print)
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "val/loss" in line]
    for line, mean in zip(lines, epochs, strict=True):
        logits, labels = predict(mean.module, job.val_loader.epoch())
        assert line["val/loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    assert lines != [line for line in read_metrics(plain / "metrics.jsonl") if "val/loss" in line]


@pytest.mark.parametrize(("override", "model"), KINDS, ids=IDS)
def test_evaluate_gives_the_numbers_of_the_result_again(finished, override, model):
    run = finished(override, model, "optimizer.lr=0.001", "log.show=[]")
    result = read_json(run / "result.json")
    again = evaluate_run(run, load_config(run / "config.yaml"), "test")
    assert {name: again[name] for name in result["test"]} == result["test"]
    val = evaluate_run(run, load_config(run / "config.yaml"), "val")
    assert val["loss"] == result["best"]["val/loss"]
    assert not same(dict(weights(run)), dict(last_state(run)["model"]))


@pytest.mark.parametrize(("override", "model"), KINDS, ids=IDS)
def test_stopped_in_mid_epoch_and_gone_on_with_a_run_is_the_same(
    train, finished, monkeypatch, tmp_path, override, model
):
    more = (override, model, "optimizer.lr=0.001", "log.show=[]")
    straight = finished(*more)
    stopped_at(train, monkeypatch, 2, *more)
    run = max((tmp_path / "runs" / "small").iterdir(), key=lambda path: path.stat().st_ctime_ns)
    for step in (4, 7):
        stopped_at(train, monkeypatch, step, resume=run, file=run / "config.yaml")
    train(resume=run, file=run / "config.yaml")
    assert_same_run(straight, run)


def test_stopped_while_statistics_are_measured_a_run_goes_on_from_the_trained_weights(
    train, finished, monkeypatch, tmp_path
):
    from trainer.process.errors import Stopped

    more = (SWA_3, MOBILE, "optimizer.lr=0.001", "log.show=[]")
    straight = finished(*more)

    def stopped(self, batches, *rest):
        raise Stopped("stopped")

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(SWA, "take_statistics", stopped)
        train(*more)
    run = max((tmp_path / "runs" / "small").iterdir(), key=lambda path: path.stat().st_ctime_ns)
    assert last_state(run)["counters"]["step"] == 5
    train(resume=run, file=run / "config.yaml")
    assert_same_run(straight, run)


@pytest.mark.parametrize("bad", [2, 5])
@pytest.mark.parametrize("lag", [1, 64])
def test_a_step_that_is_no_number_never_enters_an_average(spoiled, monkeypatch, bad, lag):
    """What is left out leaves the weights as they are, and those the average takes in.

    With a lag as on a GPU, where it is known up to 64 steps later.
    """
    monkeypatch.setattr("trainer.loop.fit.Guard", functools.partial(Guard, lag=lag))

    class Spoiling(nn.Module):
        calls = 0

        def forward(self, logits, labels):
            self.calls += logits.requires_grad
            loss = F.cross_entropy(logits, labels)
            return loss * math.nan if logits.requires_grad and self.calls == bad else loss

    more = (SMALL_NET, "train.skip_non_finite=1", "train.epochs=1", "optimizer.lr=0.001",
            "log.show=[]")  # fmt: skip
    run = spoiled(Spoiling(), *more, "average={name: EMA, decay: 0.5, warmup: false}")
    seen = []
    plain = spoiled(Spoiling(), *more, "checkpoint={every: 1st, keep: 9}")
    for folder in checkpoints(plain):
        seen.append(read_state(folder)["model"])
    values = last_state(run)["average"]["values"]
    assert len(seen) == 5 and all(value.isfinite().all() for value in values.values())
    first = prepare(load_config(plain / "config.yaml"), print).model.state_dict()
    for name, value in values.items():
        expected = first[name]
        for state in seen:
            expected = torch.lerp(expected, state[name], 0.5)
        assert torch.equal(value, expected), name


@pytest.mark.parametrize(
    ("average", "told"),
    [
        ("{name: SWA, start: 2ep}", "average.start: is step 10, and the run ends after 10"),
        ("{name: SWA, start: 10m}", "average.start: expected a whole number of steps or epochs"),
        ("{name: SWA}", "average.start: 'start' is missing"),
        (
            "{name: EMA, decay: 1.0}",
            "average.decay: expected a number of at least 0 and below 1, g",
        ),
        ("{name: EMA, every: 3}", "average.every: expected a whole number of steps or epochs"),
        ("{name: EMA, decey: 0.9}", "average.decey: unknown key 'decey'; did you mean 'decay'"),
        (
            "{name: Lookahead, alpha: 0}",
            "average.alpha: expected a number above 0 and of at most 1, g",
        ),
        (
            "{name: Lookahead, steps: 0}",
            "average.steps: expected a whole number from 1 to 1,000,000,0",
        ),
        ("{name: EMA, steps_per_epoch: 5}", "average.steps_per_epoch: 'steps_per_epoch' is set by"),
        ("SAM", "average.name: unknown average 'SAM'"),
    ],
)
def test_an_average_that_cannot_be_is_told_with_its_place(config_file, average, told):
    with pytest.raises(ConfigError) as error:
        prepare(load_config(config_file, [f"average={average}"]), print)
    assert told in str(error.value)


def test_durations_of_an_average_come_back_from_the_runs_own_file(config_file, tmp_path):
    config = load_config(config_file, ["average={name: SWA, start: 1ep}"])
    (tmp_path / "again.yaml").write_text(config.dump())
    assert load_config(tmp_path / "again.yaml", ["name=small"]) == config
    again = prepare(load_config(tmp_path / "again.yaml"), print).average
    assert isinstance(again, SWA) and (again.start, again.every) == (5, 5)


def test_another_average_is_another_run(finished):
    run = finished(EMA_3, "log.show=[]")
    for change in ("average.decay=0.8", "average=null", "average=SWA"):
        with pytest.raises(ConfigError, match="average|start"):
            find_resumable(str(run), None, [change], run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", -1),
        ("count", "3"),
        ("values", {}),
        ("values", "x"),
        ("values", {"conv1.weight": torch.zeros(1)}),
    ],
)
def test_an_average_that_others_made_is_refused_in_one_message(finished, capfd, key, value):
    run = finished(EMA_3, "log.show=[]")
    folder = checkpoints(run)[-1]
    content = read_state(folder)
    content["average"][key] = value
    del content["model"]
    manifest = read_json(folder / "MANIFEST.json")
    manifest["files"]["state.pt"] = save_tensors(folder / "state.pt", content)
    write_json(folder / "MANIFEST.json", manifest | {"sha256": digest_of(manifest)})
    assert problem_of(folder) is None
    capfd.readouterr()
    assert main(["--resume", str(run), "train.epochs=3"]) == 5
    assert "Traceback" not in capfd.readouterr().err


def test_best_weights_of_an_earlier_step_come_back_though_a_later_epoch_was_better(
    train, finished, tmp_path, notes
):
    """model.pt is not the checkpoint's weights.pt: the checkpoint has a copy of its own."""
    file = tmp_path / "small.yaml"
    file.write_text(SMALL.format(root=notes))
    run = finished(EMA_3, "train.epochs=1", "log.show=[]")
    folder = checkpoints(run)[-1]
    assert (folder / "best.pt").read_bytes() == (run / "model.pt").read_bytes()
    kept = (run / "model.pt").read_bytes()
    (run / "model.pt").write_bytes(b"lost")
    train("train.epochs=1", resume=run, file=run / "config.yaml")
    assert (run / "model.pt").read_bytes() == kept
