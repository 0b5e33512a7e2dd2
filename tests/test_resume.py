"""Going on with a run: what comes back, what may differ and is said, and what a failure leaves."""

import copy
import dataclasses
import errno
import gc
import itertools
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import datasets.images
import trainer.input.loader
import trainer.input.workers
import trainer.loop.fit
import trainer.loop.snapshot
from datasets import DataError
from datasets.files import ImageFiles
from tests.conftest import SMALL, exit_code_of, fork
from tests.test_training import assert_same_run, last_state, same, tags_of
from tests.torture.run import adopt_orphans
from trainer.build.prepare import prepare
from trainer.components.schedulers import forecast
from trainer.config import load_config
from trainer.evaluate import main as evaluate
from trainer.input.loader import Loader
from trainer.input.workers import Workers
from trainer.insight.board import show_epoch
from trainer.loop.evaluate import evaluate as evaluated
from trainer.loop.guard import Guard
from trainer.loop.record import save
from trainer.loop.snapshot import restore_job, snapshot
from trainer.loop.state import CLOCKS, PLAIN, State
from trainer.predict import main as predict
from trainer.process.errors import ConfigError, RunError
from trainer.run.checkpoint import checkpoints, digest_of, problem_of, read_state
from trainer.run.disk import read_json, write_json
from trainer.run.folder import lock_run, read_metrics
from trainer.run.log import Lengths
from trainer.run.resume import find_resumable, flatten, settings
from trainer.run.tensors import save_tensors
from trainer.train import main

JITTER = "transforms.train.1={name: ColorJitter, brightness: 0.5}"

# Every key of a configuration, and whether a run may go on with another value.
MAY_CHANGE = {
    "train.epochs": 5,
    "train.budget": "30m",
    "train.skip_non_finite": 2,
    "train.parallel": "fsdp",
    "evaluation.tta": "flip",  # it changes no weight
    "notify": {},
    "store.root": "elsewhere",
    "store.gigabytes": 3,
    "store.days": 3,
    "early_stop.patience": 9,
    "early_stop.min_delta": 0.5,
    "log.every": "5st",
    "log.images": 1,
    "log.show": ["scalars"],
    "checkpoint.every": "5st",
    "checkpoint.keep": 9,
    "loader.workers": 1,
    "loader.cache": "ram",
    "loader.eval_batch_size": 3,
    "distill.run": "elsewhere",  # the teacher's weights are compared
}
REFUSED = {
    "seed": 1,
    "dataset.on_broken": "skip",
    "split.ratios": [6, 2, 2],
    "split.seed": 1,
    "split.pool": True,
    "split.by": "name",
    "split.group": {"regex": "^(.)"},
    "split.folds": 5,
    "split.fold": 1,
    "transforms.train.0.size": [36, 36],
    "transforms.train.1.padding": 2,
    "transforms.eval.0.size": [36, 36],
    "loader.batch_size": 4,
    "loader.drop_last": True,
    "loader.sampling": "balanced",
    "model.name": "MLP",
    "loss.name": "FocalLoss",
    "optimizer.lr": 0.5,
    "optimizer.momentum": 0.8,
    "optimizer.layer_decay": 0.5,
    "optimizer.groups": "[{match: features.*, lr: 0.5}]",
    "scheduler.name": "OneCycleLR",
    "metrics.1": "precision",
    "train.device": "auto",
    "train.threads": 1,
    "train.channels_last": False,
    "train.precision": "bf16",
    "train.compile": True,
    "train.cuda_graphs": True,
    "train.activation_checkpointing": True,
    "train.accumulate": 2,
    "train.sync_batch_norm": True,
    "train.clip_grad_norm": 1.0,
    "train.monitor": "val/loss",
    "train.sizes": "{0ep: 24}",
    "average.name": "Lookahead",
    "distill.weight": 0.25,
    "distill.temperature": 2.0,
}


BEST = {"step": 3, "epoch": 1, "val/loss": 0.5, "val/accuracy": 0.5}


def flow(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize(("key", "value"), [*MAY_CHANGE.items(), *REFUSED.items()])
def test_each_key_may_change_or_is_refused_with_both_values(finished, config_file, key, value):
    begin = ["early_stop={patience: 3}", "scheduler={name: StepLR, step_size: 1}"]
    begin += ["average=EMA"]
    run = finished(*begin, "train.epochs=1")
    if key.startswith("distill"):  # what a run that began with a teacher has there
        text = (run / "config.yaml").read_text()
        taught = "distill: {run: somewhere, weight: 0.5, temperature: 4.0}\n"
        (run / "config.yaml").write_text(text.replace("distill: null\n", taught))
    old = flatten(settings(load_config(run / "config.yaml")))
    old_value = old.get(key, old.get(f"{key}.0"))
    change = [f"{key}={flow(value)}"]
    if key == "early_stop.min_delta":
        change.append("early_stop.patience=3")
    if key in (folds := {"split.folds": "split.fold=0", "split.fold": "split.folds=5"}):
        change.append(folds[key])
    if key in MAY_CHANGE:
        config, folder = find_resumable(str(run), None, change, Path("nowhere"))
        assert folder == run and flatten(settings(config)) != old
        return
    with pytest.raises(ConfigError) as told:
        find_resumable(str(run), None, change, Path("nowhere"))
    assert re.search(rf"{re.escape(key)}.* is .*, but the run began with ", str(told.value))
    assert old_value is None or str(old_value).lower() in str(told.value).lower()


def test_every_key_of_a_configuration_is_judged_above(config_file):
    judged = [*MAY_CHANGE, *REFUSED]
    config = load_config(
        config_file,
        ["early_stop={patience: 3}", "scheduler=OneCycleLR", "average=EMA", "distill={run: runs}"],
    )
    # The name chooses the run; the data's place is judged by content, and so are own components,
    # in test_own_components.py.
    others = ["name", "dataset.name", "dataset.root", "dataset.draw_if_absent", "components"]
    for key in flatten(settings(config)):
        component = re.match(
            r"(transforms\.\w+\.\d+|optimizer|model|loss|metrics|scheduler|average)\b", key
        )
        assert component or any(key.startswith(known) for known in [*judged, *others]), key


def test_what_differs_is_said_when_a_run_goes_on(train, finished, capsys, monkeypatch):
    run = finished()
    monkeypatch.setattr(
        trainer.loop.snapshot,
        "made_on",
        lambda job: {"torch": "9.9", "device": "cpu", "machine": "m"},
    )
    train("train.epochs=3", "log.every=5st", resume=run, file=run / "config.yaml")
    told = capsys.readouterr().out
    assert "changed train.epochs is now 3, was 2" in told
    assert 'changed log.every is now "5st", was "2st"' in told
    assert f"torch is now 9.9, was {torch.__version__}: last bits may differ" in told


@pytest.mark.parametrize(
    "scheduler",
    [
        "{name: StepLR, step_size: 1}",
        "{name: MultiStepLR, milestones: [1, 3]}",
        "{name: ExponentialLR, gamma: 0.5}",
        "CosineAnnealingLR",
        "OneCycleLR",
        "{name: LinearLR, total_iters: 3}",
        "PolynomialLR",
        "{name: StepLR, step_size: 1, warmup: 3st}",
    ],
)
def test_a_run_with_more_epochs_says_which_rates_they_will_have(train, finished, capsys, scheduler):
    run = finished(f"scheduler={scheduler}")
    capsys.readouterr()
    train("train.epochs=4", resume=run, file=run / "config.yaml")
    told = re.search(
        r"as it was planned .* lr (\S+) in epoch 3 to (\S+) in epoch 4", capsys.readouterr().out
    )
    assert told
    lines = read_metrics(run / "metrics.jsonl")
    # The rate of an epoch's first logged step; OneCycleLR's moves within the epoch.
    first = {line["epoch"]: line["lr/group0"] for line in reversed(lines) if "train/loss" in line}
    assert float(told[1]) == pytest.approx(first[3], rel=0.01)
    assert float(told[2]) == pytest.approx(first[4], rel=0.01)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema",), 99),
        (("counters",), [1, 2]),
        (("counters", "step"), "5"),
        (("counters", "step"), 7),
        (("counters", "step"), 10**400),
        (("counters", "best"), {5: 1}),
        (("clocks", "train_seconds"), 10**400),
        (("means",), [10**400, 1, 0, 0, 0, 0]),
        (("counters", "batch"), -1),
        (("counters", "epoch"), 10**9),
        (("counters", "best"), {"epoch": 1}),
        (("counters", "best"), "none"),
        (("counters", "rates"), 3),
        (("counters", "more"), 3),
        (("clocks", "train_seconds"), "long"),
        (("clocks", "seconds"), {"data": 1.0}),
        (("clocks", "seconds", "data"), "long"),
        (("clocks", "events_length"), "x"),
        (("metrics_length",), -5),
        (("metrics_length",), 10**15),
        (("metrics_length",), "0"),
        (("means",), torch.zeros(7)),
        (("means",), "nothing"),
        (("schedule", "scheduler", "step"), "not a method any more"),
        (("schedule", "scheduler", "last_epoch"), [1]),
        (("schedule", "steps"), "1"),
        (("schedule", "scheduler"), None),
        (("optimizer", "param_groups", 0, "lr"), "fast"),
        (("optimizer", "param_groups", 0, "params"), [0]),
        (("optimizer", "param_groups", 0, "more"), 1),
        (("optimizer", "param_groups"), []),
        (("optimizer", "state"), {77: {"momentum_buffer": torch.zeros(3)}}),
        (("optimizer", "state", 0, "momentum_buffer"), torch.zeros(3)),
        (("optimizer", "state", 0, "momentum_buffer"), torch.zeros(1)),
        (("optimizer", "state", 0, "momentum_buffer"), "x"),
        (("model", "more"), torch.zeros(3)),
        (("model",), {}),
        (("model",), [1]),
        (("settings",), "none"),
        (("settings", "name"), torch.zeros(3)),
        (("settings", "train"), {}),
        (("settings", "train"), 3),
        (("settings", "train", "epochs"), "many"),
        (("settings", "optimizer", "lr"), 5),
        (("split",), "0" * 64),
        (("made_on",), "elsewhere"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_checkpoint_that_others_made_is_refused_in_one_message_or_is_plain_data(
    finished, capfd, place, value
):
    """Its manifest certifies it: whoever can write the one can write the other."""
    run = finished("scheduler={name: StepLR, step_size: 1}")
    folder = checkpoints(run)[-1]
    content = read_state(folder)
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    manifest = read_json(folder / "MANIFEST.json")
    manifest["files"]["weights.pt"] = save_tensors(folder / "weights.pt", content.pop("model"))
    manifest["files"]["state.pt"] = save_tensors(folder / "state.pt", content)
    write_json(folder / "MANIFEST.json", manifest | {"sha256": digest_of(manifest)})
    assert problem_of(folder) is None
    capfd.readouterr()
    code = main(["--resume", str(run), "train.epochs=3"])
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert code == (0 if place == ("made_on",) else 5), told


def test_a_forecast_leaves_schedule_and_rates_as_they_were(config_file):
    for scheduler in ("OneCycleLR", "CosineAnnealingLR", "{name: StepLR, step_size: 1}"):
        job = prepare(load_config(config_file, [f"scheduler={scheduler}"]), print)
        before = copy.deepcopy((job.schedule.state_dict(), job.optimizer.state_dict()))
        forecast(job.schedule, job.optimizer, 3, 5)
        assert same(before, (job.schedule.state_dict(), job.optimizer.state_dict()))


def test_plateau_goes_on_by_what_it_watches(train, finished, capsys):
    run = finished("scheduler=ReduceLROnPlateau")
    train("train.epochs=3", resume=run, file=run / "config.yaml")
    assert "ReduceLROnPlateau goes on as before" in capsys.readouterr().out


def test_everything_that_a_run_keeps_in_memory_is_in_its_checkpoint(config_file):
    """A new field of the state, or of the job's moving parts, has to be saved or named here."""
    fields = {field.name for field in dataclasses.fields(State)}
    assert fields == {*PLAIN, *CLOCKS, "means", "saved_at", "saved", "norm"}
    overrides = ["scheduler=ReduceLROnPlateau", "average=EMA"]
    job, trained = (prepare(load_config(config_file, overrides), print) for _ in range(2))
    assert job.average is not None and trained.average is not None
    state = State()
    for step in range(2):  # so that nothing is as it was built
        images, labels = next(trained.train_loader.epoch())
        loss = trained.loss_fn(trained.model(images), labels)
        loss.backward()
        trained.optimizer.step()
        trained.schedule.after_step()
        trained.schedule.after_epoch(0.5)
        trained.average.after_step(step + 1)
        state.means.add(loss.item(), 1.0, len(images))
    for number, name in enumerate(PLAIN):
        kind = type(getattr(state, name))
        value = {"best": BEST, "rates": [0.5], "reference": 0.25}.get(name, number + 1)
        setattr(state, name, bool(value) if kind is bool else value)
    state.speeds, state.train_seconds, state.aside = [3.0], 4.0, 0.5
    state.seconds["eval"] = 2.0
    state.step = state.epoch * len(job.train_loader) + state.batch
    content = snapshot(trained, state, Lengths(70, 80))
    back, lengths = restore_job(job, content)
    assert lengths == Lengths(70, 80)
    for field in fields - {"means", "saved_at", "saved", "norm"}:
        assert getattr(back, field) == getattr(state, field), field
    assert back.means == state.means
    assert same(job.model.state_dict(), trained.model.state_dict())
    assert same(job.optimizer.state_dict(), trained.optimizer.state_dict())
    assert same(job.schedule.state_dict(), trained.schedule.state_dict())
    assert same(job.average.state_dict(), trained.average.state_dict())
    assert vars(job.schedule).keys() == {
        "optimizer", "scheduler", "warmup_steps", "first_lrs", "steps"
    }  # fmt: skip


def stopped_at(train, monkeypatch, step, *overrides, resume=None, file=None):
    """A run of the small configuration that is stopped after ``step``."""
    from trainer.process.errors import Stopped

    rates = trainer.loop.epochs.learning_rates

    def asking(job):
        if job.schedule.steps == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return rates(job)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(trainer.loop.epochs, "learning_rates", asking)
        train(*overrides, resume=resume, **({"file": file} if file else {}))


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=AdamW", "model={name: CompactResNet, widths: [8, 8, 8]}"),
        (
            "model={name: MLP, hidden: [64], dropout: 0.5}",
            "scheduler=OneCycleLR",
            "loader.workers=2",
            JITTER,
        ),
        ("early_stop={patience: 2}", "optimizer.lr=1e-30", "train.epochs=4", "loader.cache=off"),
        (
            "train.sizes={0ep: 24, 1ep: [28, 32]}",
            "transforms.train.1={name: RandomHorizontalFlip, alternate: true}",
            "model=torchvision/squeezenet1_1",
            "log.show=[scalars]",
        ),
    ],
    ids=["batch norm", "dropout and workers", "early stopping", "sizes and alternate"],
)
def test_stopped_three_times_within_two_epochs_a_run_is_still_the_same(
    train, finished, monkeypatch, tmp_path, overrides
):
    straight = finished(*overrides)
    stopped_at(train, monkeypatch, 3, *overrides)
    runs = (tmp_path / "runs" / "small").iterdir()
    run = max(runs, key=lambda path: path.stat().st_ctime_ns)
    for step in (4, 7):
        stopped_at(train, monkeypatch, step, resume=run, file=run / "config.yaml")
    train(resume=run, file=run / "config.yaml")
    assert_same_run(straight, run)


@pytest.mark.parametrize("change", ["removed", "added", "changed"])
def test_a_run_whose_images_are_no_longer_the_same_is_refused_and_left_as_it_is(
    train, notes, tmp_path, change
):
    root = tmp_path / "copy"
    shutil.copytree(notes, root)
    run = train(f"dataset.root={root}")
    if change == "removed":
        (root / "1" / "000.jpg").unlink()
    else:
        name = {"added": "more.jpg", "changed": "000.jpg"}[change]
        shutil.copy(root / "1" / "001.jpg", root / "1" / name)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    told = {
        "removed": r"1 image absent \(1/000.jpg\)",
        "added": r"1 image added \(1/more.jpg\)",
        "changed": r"1 image changed \(1/000.jpg\)",
    }[change]
    with pytest.raises(RunError, match=f"another split than RMB gives now: .*{told}.* Bring them"):
        train("train.epochs=3", resume=run, file=run / "config.yaml")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_killed_between_its_test_and_its_end_a_run_shows_the_test_once(train, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def killed(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(trainer.loop.fit, "write_report", killed)
        train()
    run = next(train().parent.glob("*"))
    for path in run.parent.glob("*"):
        if read_json(path / "result.json")["status"] != "done":
            train(resume=path, file=path / "config.yaml")
        assert tags_of(path)["test/accuracy"] == [10]
        assert tags_of(path)["val/accuracy"] == [5, 10]


def test_answers_of_weights_that_may_not_stay_the_best_are_gone_once_a_run_goes_on(
    train, finished, notes, capsys, monkeypatch
):
    """predictions.csv and result.json of an ended run never stand beside later weights."""
    run = finished("train.epochs=1")
    assert {"best", "val", "test", "calibration"} <= read_json(run / "result.json").keys()

    def stopped(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.loop.fit, "evaluate_best", stopped)
        train("train.epochs=3", resume=run, file=run / "config.yaml")
    assert not (run / "predictions.csv").exists()
    assert not {"best", "val", "test", "calibration"} & read_json(run / "result.json").keys()
    for option in ("--sets", "--reject"):
        assert predict([str(run), str(notes), option, "0.5"]) == 5
        told = " ".join(capsys.readouterr().err.split())
        assert f"is interrupted; to end it: python -m trainer.train --resume {run}" in told
    train("train.epochs=3", resume=run, file=run / "config.yaml")
    assert (run / "predictions.csv").is_file()
    assert predict([str(run), str(notes), "--sets", "0.5"]) == 0


def test_a_run_whose_checkpoints_are_away_is_not_begun_anew_over_its_logs(train, finished):
    run = finished("train.epochs=1")
    for path in [run / "result.json", run / "config.yaml"]:
        path.write_text(path.read_text().replace('"done"', '"stopped"'))
    before = {path: path.read_bytes() for path in run.glob("*") if path.is_file()}
    (run / "checkpoints").rename(run / "away")
    with pytest.raises(RunError, match="checkpoints is missing.*bring it back"):
        train("train.epochs=2", resume=run, file=run / "config.yaml")
    (run / "checkpoints").write_text("no folder")
    with pytest.raises(RunError, match="checkpoints cannot be read: Not a directory"):
        train("train.epochs=2", resume=run, file=run / "config.yaml")
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(train, finished, monkeypatch):
    run = finished()
    forbidden, access = checkpoints(run)[-1] / "weights.pt", os.access
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: access(path, mode) and (path != forbidden or mode == os.F_OK),
    )
    with pytest.raises(RunError, match=r"weights\.pt: you have no permission to read it"):
        train("train.epochs=3", resume=run, file=run / "config.yaml")
    assert forbidden.exists()


def test_a_log_that_is_a_pipe_is_not_waited_for(train, finished):
    run = finished("train.epochs=1")
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    with pytest.raises(RunError, match="it is no file"):
        train("train.epochs=2", resume=run, file=run / "config.yaml")


def test_a_run_is_not_resumed_or_judged_on_drawn_pictures_where_its_photographs_are_away(
    tmp_path, monkeypatch, notes, capsys
):
    shutil.copytree(notes, tmp_path / "data" / "rmb")
    monkeypatch.chdir(tmp_path)
    settings = SMALL.format(root="data/rmb").replace("root: data/rmb", "draw_if_absent: true")
    Path("small.yaml").write_text(settings)
    assert main(["--config", "small.yaml"]) == 0
    (run,) = Path("runs/small").iterdir()
    Path("data/rmb").rename("away")
    resume = ["--resume", str(run), "train.epochs=3"]
    for command, words in ((main, resume), (main, [*resume, "--dry-run"]), (evaluate, resume[1:2])):
        assert command(words) == 3
        assert "data/rmb does not exist" in capsys.readouterr().err
    assert not Path("data/rmb_drawn").exists()
    Path("away").rename("data/rmb")
    assert evaluate([str(run)]) == 0
    (Path("data/rmb") / "1" / "000.jpg").unlink()
    assert main(["--resume", str(run), "train.epochs=3", "--dry-run"]) == 5
    assert "began with another split" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_does_not_lose_the_result(train, monkeypatch, capsys):
    def failing(*_, **__):
        raise ValueError("no ink")

    monkeypatch.setattr(trainer.loop.fit, "write_report", failing)
    result = read_json(train() / "result.json")
    assert result["status"] == "done" and "accuracy" in result["test"]
    assert "the report cannot be written: no ink" in capsys.readouterr().out


def test_what_the_time_went_to_adds_up(train, monkeypatch):
    slow = {"data": 0.03, "save": 0.05, "eval": 0.04, "log": 0.06}

    def after(name, function):
        def slowed(*arguments, **more):
            time.sleep(slow[name])
            return function(*arguments, **more)

        return slowed

    batch = trainer.input.subset.Subset.batch
    monkeypatch.setattr(trainer.input.loader, "BLOCK", 1)
    monkeypatch.setattr(trainer.input.subset.Subset, "batch", after("data", batch))
    monkeypatch.setattr(trainer.loop.epochs, "save", after("save", save))
    monkeypatch.setattr(trainer.loop.epochs, "evaluate", after("eval", evaluated))
    monkeypatch.setattr(trainer.loop.epochs, "show_epoch", after("log", show_epoch))
    began = time.monotonic()
    result = read_json(train("log.show=[]") / "result.json")
    took = time.monotonic() - began
    seconds = result["seconds"]
    assert sum(seconds.values()) <= took
    assert seconds["data"] >= 10 * 0.03 and seconds["save"] >= 2 * 0.05
    assert seconds["eval"] >= 2 * 0.04 and seconds["log"] >= 2 * 0.06
    assert 0 < seconds["compute"] <= result["train_seconds"] - 10 * 0.03


def test_a_failed_read_in_mid_epoch_saves_names_the_file_and_goes_on_once_mended(
    finished, config_file, notes, tmp_path, monkeypatch, capfd
):
    """With nothing kept in memory, an image that vanishes is met when its turn comes."""
    straight = finished("loader.cache=off")
    broken: list[str] = []
    read = ImageFiles.content
    monkeypatch.setattr(trainer.input.loader, "BLOCK", 1)  # batch by batch, as large images are

    def vanishing(self, index):
        if broken and self.ids[index] == broken[0]:
            (self.root / broken[0]).rename(tmp_path / "away")
        return read(self, index)

    monkeypatch.setattr(ImageFiles, "content", vanishing)
    job = prepare(load_config(config_file), print)
    row = job.train_loader.rows(1, 2)[0]  # of the second epoch's third batch
    image = job.data.dataset.ids[job.data.subsets["train"].indices[row]]
    rates = trainer.loop.epochs.learning_rates

    def arming(job):
        if job.schedule.steps == 6:
            broken[:] = [image]
        return rates(job)

    monkeypatch.setattr(trainer.loop.epochs, "learning_rates", arming)
    command = ["--config", str(config_file), "--runs", str(tmp_path / "runs"), "loader.cache=off"]
    try:
        assert main(command) == 3
    finally:
        (tmp_path / "away").rename(notes / image)
    told = capfd.readouterr().err
    assert image in told and "--resume" in told
    run = max((tmp_path / "runs" / "small").iterdir(), key=lambda path: path.stat().st_ctime_ns)
    assert last_state(run)["counters"]["step"] == 7  # not a step is lost
    broken.clear()
    monkeypatch.setattr(trainer.loop.epochs, "learning_rates", rates)
    assert main(["--resume", str(run)]) == 0
    assert_same_run(straight, run)


def test_workers_end_with_a_run_whose_test_images_cannot_be_read(train, config_file, monkeypatch):
    """They ignore the signal by which Python would end them at its exit: that would hang."""
    job, decode = prepare(load_config(config_file), print), ImageFiles.decode
    image = job.data.dataset.ids[job.data.subsets["test"].indices[0]]

    def vanished(self, index, content, at_least=0):
        if multiprocessing.parent_process() and self.ids[index] == image:  # once a worker reads it
            raise DataError(f"{image} cannot be read")
        return decode(self, index, content, at_least)

    monkeypatch.setattr(ImageFiles, "decode", vanished)
    with pytest.raises(DataError) as error:
        train("loader.workers=2", "loader.cache=off")
    assert multiprocessing.active_children() == [] and error.traceback  # which holds the loader


def test_a_worker_that_dies_ends_in_one_message_and_its_own_exit_code(
    finished, config_file, tmp_path, monkeypatch, capfd
):
    straight = finished(JITTER)
    rates = trainer.loop.epochs.learning_rates
    killed: list[int] = []

    def killing(job):
        if job.schedule.steps == 3 and not killed:
            killed.append(job.train_loader._workers._processes[0].pid)
            os.kill(killed[0], signal.SIGKILL)
        return rates(job)

    monkeypatch.setattr(trainer.loop.epochs, "learning_rates", killing)
    monkeypatch.setattr(trainer.input.workers, "AHEAD", 1)  # else it has read all before it dies
    more = ("loader.workers=2", JITTER)
    code = main(["--config", str(config_file), "--runs", str(tmp_path / "runs"), *more])
    told = capfd.readouterr().err
    assert code == 8, told
    assert f"the worker process {killed[0]} ended by itself" in told
    assert "Traceback" not in told and "--resume" in told
    run = max((tmp_path / "runs" / "small").iterdir(), key=lambda path: path.stat().st_ctime_ns)
    assert all(problem_of(folder) is None for folder in checkpoints(run))
    assert last_state(run)["counters"]["step"] >= 3  # not a step is lost
    assert main(["--resume", str(run), "loader.workers=0"]) == 0
    assert same(last_state(run)["model"], last_state(straight)["model"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_runs_out_ends_in_one_message_its_exit_code_and_a_valid_checkpoint(
    finished, config_file, tmp_path, monkeypatch, capfd, error
):
    straight = finished("checkpoint.every=1st")
    norm, calls = Guard.norm, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise error
        return norm(*arguments)

    monkeypatch.setattr(Guard, "norm", failing)
    command = ["--config", str(config_file), "--runs", str(tmp_path / "runs")]
    assert main([*command, "checkpoint.every=1st"]) == 7
    told = capfd.readouterr().err
    assert told.startswith("out of memory") and "loader.batch_size" in told and "--resume" in told
    assert "Traceback" not in told
    run = max((tmp_path / "runs" / "small").iterdir(), key=lambda path: path.stat().st_ctime_ns)
    assert last_state(run)["counters"]["step"] == 3
    assert read_json(run / "result.json")["status"] == "failed"
    assert main(["--resume", str(run)]) == 0
    assert_same_run(straight, run)


def test_workers_that_outlive_a_killed_trainer_do_not_hold_its_run(tmp_path):
    """The lock is the trainer's alone: a worker process gives its copy back when it begins."""
    lock = lock_run(tmp_path)
    (began, tell), (wait, end) = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        os.write(tell, b"x")
        os.read(wait, 1)  # lives on, as a worker of a killed trainer does for some seconds
        os._exit(0)
    os.read(began, 1)
    try:
        os.close(lock.fileno())  # the trainer is gone: the system closes its files
        lock_run(tmp_path).close()
    finally:
        os.write(end, b"x")
        os.waitpid(child, 0)
        with pytest.raises(OSError, match="Bad file"):
            lock.close()


def test_a_run_with_workers_that_fails_ends(config_file, tmp_path):
    """Python ends worker processes by a signal that these ignore, and would wait for ever."""
    script = f"""
import sys, torch
torch.set_num_threads(1)
from trainer.process.compiler_stand_in import defer_compiler
defer_compiler()  # as the command does, and as it would too late
import trainer.loop.epochs
kept = []
def failing(session, *_):  # something keeps the workers, as a traceback does
    kept.append(session.job.train_loader._workers)
    raise OSError(28, "No space left on device", "somewhere")
trainer.loop.epochs.end_epoch = failing
from trainer.train import main
sys.exit(main(["--config", {str(config_file)!r}, "--runs", {str(tmp_path / "runs")!r},
               "loader.workers=2", {JITTER!r}]))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert ended.returncode == 5, ended.stderr.decode()
    assert b"somewhere: No space left on device" in ended.stderr


def refuse_files(monkeypatch, more):
    """Allow ``more`` open files than there are now: the system limits the largest number."""
    gc.collect()  # else files of the tests before may be closed later, and more would be allowed
    used = {int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/dev/fd/{name}")}
    free = (number for number in itertools.count() if number not in used)
    limit = next(itertools.islice(free, more, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def refuse_forks(monkeypatch, allowed):
    """Let only so many forks succeed, as ``ulimit -u`` does."""
    forked, left = os.fork, iter(range(allowed))

    def fork():
        if next(left, None) is None:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return forked()

    monkeypatch.setattr(os, "fork", fork)


@pytest.mark.parametrize(
    ("refuse", "count", "told"),
    [
        (refuse_files, 2, "ulimit -n"),
        (refuse_files, 6, "ulimit -n"),  # enough for one of them
        (refuse_forks, 0, "ulimit -u"),
        (refuse_forks, 1, "ulimit -u"),
    ],
)
def test_workers_that_the_system_refuses_end_the_run_in_words_with_exit_code_5(
    config_file, tmp_path, monkeypatch, refuse, count, told
):
    def command():
        adopt_orphans()

        def begin_refused(*arguments):
            monkeypatch.setattr(trainer.input.loader, "Workers", Workers)
            refuse(monkeypatch, count)
            return Workers(*arguments)

        monkeypatch.setattr(trainer.input.loader, "Workers", begin_refused)
        runs = str(tmp_path / "runs")
        code = main(["--config", str(config_file), "--runs", runs, "loader.workers=2"])
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        return 1  # a worker is left

    output = tmp_path / "told.txt"
    code = exit_code_of(fork(output, command))
    assert code == 5, output.read_text()
    assert told in output.read_text() and "loader.workers=2" in output.read_text()
    assert "Traceback" not in output.read_text()


def test_images_for_which_no_file_may_be_opened_are_not_broken(start, monkeypatch, capfd):
    """With ``on_broken: skip`` they would be left out of the run."""
    check, calls = datasets.images.check_file, itertools.count()

    def refusing(path):
        if next(calls) == 20:
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        check(path)

    monkeypatch.setattr(datasets.images, "check_file", refusing)
    assert start("dataset.on_broken=skip", "loader.cache=ram", "--dry-run") == 5
    told = capfd.readouterr()
    assert "ulimit -n" in told.err and "left out" not in told.out


def test_a_batch_that_is_named_is_the_batch_that_was_shown(config_file):
    job = prepare(load_config(config_file, ["transforms.train.1.name=CenterCrop",
                                            "transforms.train.1.size=32"]), print)  # fmt: skip
    part = job.data.subsets["train"]
    for number, (images, labels) in enumerate(job.train_loader.epoch(3)):
        rows = Loader.rows(job.train_loader, 3, number)
        assert same(part.batch(rows)[0], images) and same(part.labels[rows], labels)


def test_a_run_does_not_go_on_with_classes_in_another_order(train, tmp_path):
    for number in range(1, 41):
        colour = (number * 6, 40, 40) if number % 2 else (40, 40, number * 6)
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{number}.png")

    def table(first):
        lines = [f"{n}.png,{first if n % 2 else 'dog'}" for n in range(1, 41)]
        (tmp_path / "table.csv").write_text("\n".join(["path,label", *lines]))

    table("cat")
    data = f"dataset={{name: CSVImages, root: {tmp_path}, csv: {tmp_path / 'table.csv'}}}"
    run = train(data, "train.epochs=1")
    table("zebra")  # the same images in the same split; "dog" is now the first class
    with pytest.raises(RunError, match="began with other classes, or in another order"):
        train(data, "train.epochs=2", resume=run)
