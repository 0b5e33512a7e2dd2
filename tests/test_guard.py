"""What happens when a loss or a gradient is no number: nothing of it is kept, and it is named."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trainer.build.model
import trainer.build.trained
import trainer.loop.epochs
from trainer.build.model import logits_of
from trainer.build.prepare import prepare
from trainer.build.teacher import Distillation
from trainer.config import load_config
from trainer.evaluate import main as evaluate
from trainer.explain import main as explain
from trainer.export import main as export
from trainer.loop.fit import fit
from trainer.loop.guard import Guard, number_correct
from trainer.loop.step import new_task, train_steps
from trainer.predict import main as predict
from trainer.process.errors import ConfigError, NonFiniteLoss, Stopped
from trainer.process.stop import StopRequest
from trainer.run.best import load_best
from trainer.run.checkpoint import checkpoints, is_finite, read_state
from trainer.run.disk import read_json
from trainer.run.folder import read_metrics
from trainer.sweeping.process import values_of

CPU = torch.device("cpu")
NORMED = "model=torchvision/mobilenet_v3_small"  # and dropout


class Spoiled(nn.Module):
    """Cross entropy, spoiled in the training steps ``bad`` (from 1): the loss or its gradient."""

    def __init__(self, bad, what="loss", value=math.nan):
        super().__init__()
        self.bad, self.what, self.value, self.calls = bad, what, value, 0

    def forward(self, logits, labels):
        if not logits.requires_grad:
            return F.cross_entropy(logits, labels)
        self.calls += 1
        if self.calls in self.bad:
            if self.what == "gradient":
                logits.register_hook(lambda gradient: gradient * self.value)
            else:
                return F.cross_entropy(logits, labels) * self.value
        return F.cross_entropy(logits, labels)


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad", [1, 3, 5, 6, 10])
def test_a_step_that_is_no_number_is_not_taken_and_is_named_with_its_images(
    spoiled, tmp_path, config_file, what, value, bad
):
    with pytest.raises(NonFiniteLoss) as told:
        spoiled(Spoiled({bad}, what, value), "checkpoint.every=1st", "checkpoint.keep=9")
    epoch, batch = (bad - 1) // 5, (bad - 1) % 5
    message = str(told.value)
    assert f"in step {bad} (epoch {epoch + 1}, batch {batch + 1})" in message
    assert ("loss became" if what == "loss" else "gradient's length became") in message
    job = prepare(load_config(config_file), print)
    rows = job.train_loader.rows(epoch, batch)
    ids = [job.data.dataset.ids[i] for i in job.data.subsets["train"].indices[rows].tolist()]
    assert f"of these images: {', '.join(ids)}." in message
    (run,) = (tmp_path / "runs" / "small").iterdir()
    saved = [read_state(folder) for folder in checkpoints(run)]
    # A step that ends an epoch is saved once that is judged; all before the bad one are there.
    assert [state["counters"]["step"] for state in saved] == list(range(1, bad))
    assert all(is_finite(state) for state in saved)


@pytest.fixture(scope="module")
def five_batches(shared_config):
    """A job of an optimizer, and the five batches to train on."""

    def made(optimizer):
        overrides = [NORMED, f"optimizer={optimizer}", "transforms.train.1.name=CenterCrop"]
        overrides += ["transforms.train.1.size=32", "loader.batch_size=4"]
        job = prepare(load_config(shared_config, overrides), print)
        return job, list(job.train_loader.epoch())[:5]

    return made


@pytest.fixture(scope="module")
def with_three_of_five(five_batches):
    """What an optimizer comes to without the second and the fourth of the batches."""

    @functools.cache
    def state(optimizer):
        job, batches = five_batches(optimizer)
        guard = Guard(job.model, job.optimizer)
        for step in (0, 2, 4):  # dropout is drawn by the step's number
            (_,) = train_steps(new_task(job, guard), [batches[step]], step)
        return {**job.model.state_dict(), **flat(job.optimizer)}

    return state


@pytest.mark.parametrize("lag", [1, 2, 3, 64])
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize(
    "optimizer", ["{name: SGD, lr: 0.01, momentum: 0.9}", "AdamW", "Adam", "Adagrad"]
)
def test_a_step_left_out_leaves_no_trace_in_weights_optimizer_or_batch_norm(
    five_batches, with_three_of_five, optimizer, what, lag
):
    """With a look at each step, or with the fused step told on the device and looked at later."""
    job, batches = five_batches(optimizer)
    guard = Guard(job.model, job.optimizer, restore=True, lag=lag)
    loss_fn = Spoiled({2, 4}, what)
    job.loss_fn = loss_fn
    steps = train_steps(new_task(job, guard), batches, 0)
    list(steps)
    seen = guard.results(wait=True)
    assert [(one.step, one.images) for one in seen] == [(n, 4) for n in range(5)]
    unfit = [step for step, _, *values in seen if not all(map(math.isfinite, values))]
    assert unfit == [1, 3]
    expected = with_three_of_five(optimizer)
    found = {**job.model.state_dict(), **flat(job.optimizer)}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_the_length_of_the_gradient_is_torchs_own(config_file):
    job = prepare(load_config(config_file), print)
    images, labels = next(job.train_loader.epoch())
    job.loss_fn(job.model(images), labels).backward()
    parameters = list(job.model.parameters())
    expected = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    for lag in (1, 64):
        norm = Guard(job.model, job.optimizer, lag=lag).norm()
        assert float(norm) == pytest.approx(expected)


class SpoiledAt(nn.Module):
    """Cross entropy, spoiled in the steps ``bad`` (from 0), also of a resumed run."""

    def __init__(self, job, what, bad):
        super().__init__()
        self.schedule, self.what, self.bad = job.schedule, what, bad

    def forward(self, logits, labels):
        bad = logits.requires_grad and self.schedule.steps in self.bad
        if bad and self.what == "gradient":
            logits.register_hook(lambda gradient: gradient * math.inf)
        return F.cross_entropy(logits, labels) * (math.nan if bad and self.what == "loss" else 1)


@pytest.mark.parametrize(
    ("every", "what"),
    [
        ("3st", "gradient"),
        ("2ep", "loss"),
        pytest.param("3st", "loss", marks=pytest.mark.slow),
        pytest.param("2ep", "gradient", marks=pytest.mark.slow),
    ],
)
def test_when_the_guard_looks_and_the_run_stops_changes_no_number(
    config_file, tmp_path, monkeypatch, what, every
):
    """A stop or a save between two looks counts every loss and every step left out."""
    overrides = ["train.skip_non_finite=9", f"checkpoint.every={every}", "log.every=2st"]
    learning_rates = trainer.loop.epochs.learning_rates

    def run_of(lag, stops, name):
        monkeypatch.setattr("trainer.loop.fit.Guard", functools.partial(Guard, lag=lag))
        run, stops = None, list(stops)
        while True:
            job = prepare(load_config(config_file, overrides), lambda _: None)
            job.loss_fn = SpoiledAt(job, what, {1, 4, 7})
            with StopRequest() as stop:

                def stopping(job, stop=stop):
                    if stops and job.schedule.steps == stops[0]:
                        stop.reason = f"step {stops.pop(0)}"
                    return learning_rates(job)

                monkeypatch.setattr(trainer.loop.epochs, "learning_rates", stopping)
                try:
                    return fit(job, tmp_path / name, run, lambda _: None, stop)
                except Stopped:
                    (run,) = (tmp_path / name / "small").iterdir()

    straight = run_of(1, [], "straight")
    for lag, stops in ((64, []), (64, [1, 2, 5, 8]), (1, [3, 5]), (4, [4, 6, 7])):
        other = run_of(lag, stops, f"{lag} {stops}")
        logs = [read_metrics(run / "metrics.jsonl") for run in (straight, other)]
        lengths = [[line.pop("train/gradient_norm", 0.0) for line in log] for log in logs]
        assert logs[0] == logs[1]
        assert lengths[0] == pytest.approx(lengths[1], rel=1e-6)  # each way adds in its own order
        assert any(lengths[0])
        a, b = (read_state(checkpoints(run)[-1]) for run in (straight, other))
        assert a["means"] == b["means"] and a["counters"] == b["counters"]
        assert a["counters"]["skipped"] == 3
        assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    counted = [line for line in read_metrics(straight / "metrics.jsonl") if "train/loss" in line]
    assert all(math.isfinite(line["train/loss"]) for line in counted)


@pytest.mark.parametrize("clip", ["null", "0.05"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_accuracy_and_gradient_length_of_training_are_those_of_a_loop_by_hand(
    train, config_file, accumulate, clip
):
    overrides = ["log.every=2st", f"train.accumulate={accumulate}", f"train.clip_grad_norm={clip}"]
    overrides += ["loader.batch_size=9", "train.channels_last=false", "train.epochs=1"]
    lines = read_metrics(train(*overrides) / "metrics.jsonl")
    job = prepare(load_config(config_file, overrides), print)
    job.model.train()
    lengths, right = [], []
    for images, labels in job.train_loader.epoch():
        job.optimizer.zero_grad()
        logits = job.model(images)
        F.cross_entropy(logits, labels).backward()
        right += (logits.argmax(1) == labels).tolist()
        gradients = [p.grad for p in job.model.parameters() if p.grad is not None]
        squares = [(gradient.double() ** 2).sum().item() for gradient in gradients]
        lengths.append(math.sqrt(sum(squares)))
        if clip != "null":
            nn.utils.clip_grad_norm_(job.model.parameters(), float(clip))
        job.optimizer.step()
        job.schedule.after_step()
    logged = [line for line in lines if "train/loss" in line]
    assert [line["train/gradient_norm"] for line in logged] == pytest.approx(
        lengths[1::2], rel=1e-4
    )
    accuracies = [sum(right[n : n + 18]) / 18 for n in range(0, 18 * len(logged), 18)]
    assert [line["train/accuracy"] for line in logged] == accuracies
    assert lines[-1]["train/accuracy_epoch"] == sum(right) / len(right)


def test_of_mixed_labels_the_greater_share_counts_as_right():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]], requires_grad=True)
    mixed = torch.tensor([[0.6, 0.0, 0.4], [0.6, 0.0, 0.4]])
    assert number_correct(logits, mixed).item() == 1
    assert number_correct(logits, torch.tensor([0, 2])).item() == 2


def test_a_finite_loss_counts_though_its_gradient_is_infinite(spoiled):
    overrides = ("train.skip_non_finite=1", "train.epochs=1", "log.every=1st")
    straight, run = (spoiled(Spoiled(bad, "gradient", math.inf), *overrides) for bad in ([], [5]))
    lines = [read_metrics(path / "metrics.jsonl") for path in (straight, run)]
    assert [a["train/loss"] for a in lines[0][:5]] == [b["train/loss"] for b in lines[1][:5]]


def flat(optimizer):
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, kept in state.items()
        for name, value in kept.items()
        if isinstance(value, torch.Tensor)
    }


def test_steps_are_left_out_as_often_as_allowed_and_counted_over_resumes(spoiled, tmp_path):
    every = ("checkpoint.every=1st", "checkpoint.keep=99")
    run = spoiled(Spoiled({2, 4, 7}), "train.skip_non_finite=3", *every)
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "train/loss" in line]
    counts = {line["step"]: line.get("train/skipped") for line in lines}
    assert counts == {2: 1, 4: 2, 6: 2, 8: 3, 10: 3}
    assert all(math.isfinite(line["train/loss"]) for line in lines)
    with pytest.raises(NonFiniteLoss, match="in step 7 "):
        spoiled(Spoiled({2, 4, 7}), "train.skip_non_finite=2", *every)
    stopped = max((tmp_path / "runs" / "small").iterdir(), key=lambda path: path.stat().st_ctime_ns)
    with pytest.raises(NonFiniteLoss, match="in step 7 "):  # its calls count from the resume: 1
        spoiled(Spoiled({1}), "train.skip_non_finite=2", *every, resume=stopped)
    again = spoiled(Spoiled({1}), "train.skip_non_finite=3", *every, resume=stopped)
    last, other = (read_state(checkpoints(path)[-1]) for path in (run, again))
    assert all(torch.equal(last["model"][name], other["model"][name]) for name in last["model"])
    assert (run / "metrics.jsonl").read_bytes() == (again / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("where", ["weight", "buffer", "momentum"])
def test_a_state_that_is_no_number_is_never_saved_and_displaces_none(
    config_file, tmp_path, monkeypatch, where
):
    """Spoiled behind the guard's back, after the fourth step: something else wrote into it."""
    job = prepare(
        load_config(config_file, [NORMED, "checkpoint.every=1st", "checkpoint.keep=2"]), print
    )
    after_step = job.schedule.after_step

    def spoiling():
        after_step()
        if job.schedule.steps == 4:
            with torch.no_grad():
                if where == "momentum":
                    next(iter(job.optimizer.state.values()))["momentum_buffer"].fill_(math.nan)
                elif where == "weight":
                    list(job.model.parameters())[-1].fill_(math.inf)
                else:
                    next(job.model.buffers()).fill_(math.nan)

    monkeypatch.setattr(job.schedule, "after_step", spoiling)
    with pytest.raises(NonFiniteLoss, match="is not saved|in step 5"), StopRequest() as stop:
        fit(job, tmp_path / "runs", None, print, stop)
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    states = [read_state(path) for path in checkpoints(folder)]
    assert [state["counters"]["step"] for state in states] == [2, 3]
    assert all(is_finite(state) for state in states)


@pytest.mark.parametrize("every", ["checkpoint.every=3st", "log.every=3st"])
@pytest.mark.parametrize("bad", [1, 3, 5])
def test_on_a_gpu_too_what_is_saved_and_logged_knows_of_each_step_left_out(
    spoiled, monkeypatch, every, bad
):
    """As on a GPU, where a step is looked at up to 64 steps later."""
    at_once = spoiled(Spoiled({bad}), "train.skip_non_finite=1", every, "checkpoint.keep=9")
    monkeypatch.setattr("trainer.loop.fit.Guard", functools.partial(Guard, lag=64))
    run = spoiled(Spoiled({bad}), "train.skip_non_finite=1", every, "checkpoint.keep=9")
    for folder in checkpoints(run):
        counters = read_state(folder)["counters"]
        assert counters["skipped"] == (counters["step"] >= bad), folder
    for line in read_metrics(run / "metrics.jsonl"):
        if "train/loss" in line:
            assert line.get("train/skipped") == (1.0 if line["step"] >= bad else None)
    last, other = (read_state(checkpoints(path)[-1]) for path in (run, at_once))
    assert all(torch.equal(last["model"][name], other["model"][name]) for name in last["model"])


class Spoiling:
    """``logits_of`` of evaluations, spoilt: in evaluation ``n`` the logits of ``images[n]``."""

    def __init__(self, monkeypatch, images, value=math.nan):
        self.true, self.images, self.value = logits_of, images, value
        self.batches = 0
        monkeypatch.setattr(trainer.build.model, "logits_of", self)

    def __call__(self, model, images):
        logits = self.true(model, images)  # one batch for each evaluation
        if (rows := self.images.get(self.batches)) is not None:
            logits[rows, 0] = self.value
        self.batches += 1
        return logits


ALL = slice(None)
WHOLE = "loader.eval_batch_size=100"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("loss", ["CrossEntropyLoss", "BCELoss"])
def test_an_epoch_with_one_answer_that_is_no_number_goes_on_and_is_never_the_best(
    train, monkeypatch, capsys, value, loss
):
    Spoiling(monkeypatch, {0: [2], 2: ALL}, value)  # of epochs 1 and 3
    run = train("train.epochs=3", f"loss={loss}", WHOLE, "early_stop={patience: 3}")
    told = [line for line in capsys.readouterr().out.splitlines() if "cannot be the best" in line]
    val = list(read_json(run / "split.json")["val"])
    assert told == [
        "note    epoch 1 cannot be the best: the model gives no finite numbers (NaN or infinity) "
        f"for 1 of {len(val)} val images: {val[2]}",
        "note    epoch 3 cannot be the best: the model gives no finite numbers (NaN or infinity) "
        f"for {len(val)} of {len(val)} val images: {', '.join(val[:3])} "
        f"and {len(val) - 3} more",
    ]
    assert read_json(run / "result.json")["best"]["epoch"] == 2
    assert read_json(run / "model.json")["metrics"]["epoch"] == 2
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "val/loss" in line]
    assert [math.isfinite(line["val/loss"]) for line in lines] == [False, True, False]
    assert lines[2]["val/accuracy"] == 0.0
    assert list(values_of(run, "val/accuracy")) == [2]  # what a sweep's pruner sees


def test_a_model_that_answers_nan_in_each_epoch_has_no_best_one_and_ends_with_code_4(
    start, tmp_path, monkeypatch, capfd
):
    Spoiling(monkeypatch, dict.fromkeys(range(9), ALL))
    assert start(NORMED, "train.precision=bf16", WHOLE, "log.show=[]") == 4
    told = capfd.readouterr().err
    assert "no epoch is the best: val/accuracy was never a finite number" in told
    assert "batch norm's running statistics" in told and "train.precision=fp32" in told
    assert "train.epochs=4" in told and "skip_non_finite" not in told
    (run,) = (tmp_path / "runs" / "small").iterdir()
    assert not (run / "model.pt").exists()
    result = read_json(run / "result.json")
    assert result["status"] == "failed" and "test" not in result


@pytest.mark.parametrize(("part", "turn"), [("val", 2), ("test", 3)])
def test_a_nan_answer_of_the_best_weights_ends_with_code_4_and_without_a_test_result(
    start, tmp_path, monkeypatch, capfd, part, turn
):
    Spoiling(monkeypatch, {turn: [0]})
    assert start(WHOLE, "log.show=[]") == 4
    (run,) = (tmp_path / "runs" / "small").iterdir()
    images = list(read_json(run / "split.json")[part])
    told = capfd.readouterr().err
    assert f"for 1 of {len(images)} {part} images: {images[0]}. " in told
    assert "batch norm" not in told and "train.precision" not in told  # it has neither
    result = read_json(run / "result.json")
    assert result["status"] == "failed" and "test" not in result
    assert (run / "model.pt").exists()


@pytest.mark.parametrize("command", ["evaluate", "predict", "explain", "export", "distill"])
def test_whatever_uses_a_model_that_answers_nan_says_so_with_code_4(
    finished, config_file, notes, tmp_path, monkeypatch, capfd, command
):
    """Its weights are finite, as those of all models that are loaded, but its logits overflow."""
    run = finished("log.show=[]")

    def load_large(model, run):
        card = load_best(model, run)
        for parameter in model.parameters():
            parameter.data.fill_(1e30)
        return card

    monkeypatch.setattr(trainer.build.trained, "load_best", load_large)
    image, out = str(notes / "1" / "000.jpg"), tmp_path / "out"
    if command == "distill":
        with pytest.raises(ConfigError, match="distill.run: .* no finite numbers"):
            prepare(load_config(config_file, [f"distill={{run: {run}}}"]), print)
        return
    code = {
        "evaluate": lambda: evaluate([str(run)]),
        "predict": lambda: predict([str(run), image, "--csv"]),
        "explain": lambda: explain([str(run), image, "--output", str(out)]),
        "export": lambda: export([str(run), "--format", "pt2", "--output", str(out)]),
    }[command]()
    told = capfd.readouterr()
    assert code == 4
    assert "no finite numbers (NaN or infinity)" in told.err and "nan" not in told.out
    assert not out.exists()


def test_a_loss_that_a_teacher_may_have_spoilt_names_the_teacher(
    finished, config_file, tmp_path, monkeypatch
):
    run = finished("log.show=[]")
    job = prepare(load_config(config_file, [f"distill={{run: {run}}}"]), print)
    monkeypatch.setattr(Distillation, "__call__", lambda *_: torch.tensor(math.nan) * _[2].sum())
    with pytest.raises(NonFiniteLoss, match=r"python -m trainer.evaluate .* --split train"):
        with StopRequest() as stop:
            fit(job, tmp_path / "other", None, print, stop)
