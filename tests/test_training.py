"""Whole runs on small data: what a run folder promises."""

import csv
import gc
import importlib
import json
import os
import re
import signal
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trainer.loop.epochs
import trainer.loop.fit
from models.freeze import train_mode
from models.lenet import LeNet
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.inference.evaluation import evaluate_run
from trainer.input.data import load_data
from trainer.loop.evaluate import predict
from trainer.loop.guard import Guard
from trainer.loop.record import set_aside
from trainer.loop.snapshot import restore_job, snapshot
from trainer.loop.state import State
from trainer.process.errors import ConfigError, NonFiniteLoss, RunError, Stopped
from trainer.run import best
from trainer.run.checkpoint import checkpoints, read_state, write_checkpoint
from trainer.run.disk import sha256_of
from trainer.run.folder import create_run, lock_run, read_metrics
from trainer.run.log import Lengths
from trainer.run.resume import find_resumable
from trainer.run.tensors import load_tensors
from transforms.keyed import permutation, seed_of

CPU = torch.device("cpu")


def weights(run: Path):
    return torch.load(run / "model.pt", weights_only=True)


def last_state(run: Path):
    return read_state(checkpoints(run)[-1])


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(a: Path, b: Path) -> None:
    """Equal to the last bit, but for the clocks."""
    assert same(weights(a), weights(b))
    states = [{k: v for k, v in last_state(run).items() if k != "clocks"} for run in (a, b)]
    assert same(*states)
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


def test_a_run_leaves_the_folder_that_is_promised(finished):
    run = finished()
    for name in ("config.yaml", "environment.json", "uncommitted.patch", "split.json"):
        assert (run / name).is_file(), name
    for name in ("metrics.jsonl", "model.pt", "model.json", "result.json", "report/report.md"):
        assert (run / name).is_file(), name
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "done"
    assert set(result["test"]) == {"loss", "accuracy", "macro_f1"}
    assert {"epoch", "val/accuracy", "val/loss"} <= set(result["best"])
    assert result["images_per_second"] > 0 and result["train_seconds"] > 0
    card = json.loads((run / "model.json").read_text())
    assert card["classes"] == ["1", "100"]
    assert card["input_size"] == [32, 32]
    assert not list(run.rglob("*.tmp*"))


def test_the_weights_load_into_a_plain_model(finished):
    model = LeNet(num_classes=2, in_channels=3)
    model.load_state_dict(weights(finished()))


def test_the_last_checkpoint_holds_tensors_and_plain_values_only(finished):
    state = torch.load(checkpoints(finished())[-1] / "state.pt", weights_only=True)
    assert state["counters"]["epoch"] == 2


def test_one_seed_gives_one_run_and_another_seed_another(train):
    first, second, other = train(), train(), train("seed=1")
    assert_same_run(first, second)
    assert not same(weights(first), weights(other))


def test_seed_zero_is_used_and_stored(train):
    run = train("seed=0")
    assert load_config(run / "config.yaml").seed == 0
    assert_same_run(run, train())


def test_only_split_seed_moves_the_split(finished):
    first, other_seed, other_split = finished(), finished("seed=1"), finished("split.seed=1")
    splits = [json.loads((run / "split.json").read_text()) for run in (first, other_seed)]
    assert splits[0] == splits[1]
    moved = json.loads((other_split / "split.json").read_text())
    assert moved["test"] != splits[0]["test"]


def test_training_equals_a_hand_written_loop(finished, config_file):
    """The same bits as plain PyTorch that knows nothing of this framework but its order."""
    config = load_config(config_file)
    part = load_data(config, CPU).subsets["train"]
    torch.manual_seed(seed_of(0, "weights"))
    model = LeNet(num_classes=2, in_channels=3)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    model.train()
    losses: list[tuple[float, int]] = []
    for epoch in range(2):
        for rows in permutation(len(part), 0, epoch).split(8):
            images, labels = part.batch(rows, epoch)
            images = images.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append((loss.item(), len(rows)))
    run = finished("log.every=3st")
    assert same(last_state(run)["model"], model.state_dict())
    lines = read_metrics(run / "metrics.jsonl")

    def mean(part):
        return pytest.approx(sum(loss * n for loss, n in part) / sum(n for _, n in part))

    logged = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    assert logged == {step: mean(losses[step - 3 : step]) for step in (3, 6, 9)}
    epochs = [line["train/loss_epoch"] for line in lines if "train/loss_epoch" in line]
    assert epochs == [mean(losses[:5]), mean(losses[5:])]


STOPPED = {
    "LeNet": (),
    "dropout": ("model={name: MLP, hidden: [64], dropout: 0.5}",),
    "OneCycleLR": ("optimizer.name=AdamW", "optimizer.lr=0.001", "scheduler.name=OneCycleLR"),
    "plateau and warm-up": (
        *("scheduler.name=ReduceLROnPlateau", "scheduler.patience=0", "scheduler.warmup=3st"),
    ),
    "workers": ("loader.workers=2", "transforms.train.1.name=ColorJitter"),
}
STOPS = [  # each amid an epoch and at its end, one of them in more places
    pytest.param(
        overrides,
        stop_at,
        marks=[] if stop_at in (1, 5) or name == "LeNet" else pytest.mark.slow,
        id=f"{stop_at}-{name}",
    )
    for stop_at in (1, 4, 5, 7)
    for name, overrides in STOPPED.items()
]


@pytest.mark.parametrize(("overrides", "stop_at"), STOPS)
def test_a_run_stopped_by_sigterm_and_resumed_equals_one_that_never_stopped(
    train, finished, monkeypatch, overrides, stop_at
):
    """40 training images in batches of 8: step 5 ends an epoch, the others are amid one."""
    straight = finished(*overrides)
    seen, rates = [0], trainer.loop.epochs.learning_rates

    def interrupting(job):
        seen[0] += 1  # called once before the first step, and after each
        if seen[0] == stop_at + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return rates(job)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.loop.epochs, "learning_rates", interrupting)
        with pytest.raises(Stopped) as told:
            train(*overrides)
    assert "--resume" in told.value.__notes__[0]
    stopped = max((straight.parent).glob("*"), key=lambda run: run.stat().st_ctime_ns)
    assert json.loads((stopped / "result.json").read_text())["status"] == "stopped"
    config, folder = find_resumable(str(stopped), None, (), straight.parent)
    assert_same_run(straight, train(resume=folder, file=folder / "config.yaml"))
    points, straight_points = tags_of(stopped), tags_of(straight)
    for tag in straight_points.keys() - {"perf/images_per_second"}:  # not of an epoch in pieces
        assert points[tag] == straight_points[tag], tag
    assert len(list(stopped.glob("events*"))) == 1


def tags_of(run: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run)).Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [event.step for event in accumulator.Scalars(tag)] for tag in tags}


def test_one_run_folder_is_one_tensorboard_run_with_config_and_images(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = finished()
    assert not [path for path in run.rglob("events*") if path.parent != run]
    tags = tags_of(run)
    assert {"train/loss", "val/loss", "val/accuracy", "lr/group0"} <= set(tags)
    assert {"perf/images_per_second", "test/accuracy"} <= set(tags)
    assert all(len(steps) == len(set(steps)) for steps in tags.values())
    other = EventAccumulator(str(run)).Reload().Tags()
    assert {"images/raw", "images/augmented"} <= set(other["images"])
    assert {"config/text_summary", "environment/text_summary"} <= set(other["tensors"])


def test_every_logged_step_and_epoch_is_one_line_without_clock(finished):
    lines = read_metrics(finished() / "metrics.jsonl")
    epochs = [line for line in lines if "val/accuracy" in line]
    assert [line["epoch"] for line in epochs] == [1, 2]
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == sorted(set(steps)) and all(step % 2 == 0 for step in steps)
    assert not any("second" in key for line in lines for key in line)


def test_a_saved_config_gives_the_identical_config(finished, config_file):
    run = finished("optimizer.lr=1e-3")
    assert load_config(run / "config.yaml") == load_config(config_file, ["optimizer.lr=1e-3"])
    assert load_config(run / "config.yaml").optimizer.arguments["lr"] == 0.001


@pytest.mark.parametrize("name", ["SGD, momentum: 0.9", "AdamW", "Adagrad"])
def test_a_state_saved_in_another_memory_layout_goes_on_alike(config_file, tmp_path, name):
    """Fused steps take one layout for granted; a checkpoint may come from another."""
    overrides = [f"optimizer={{name: {name}, lr: 0.01}}"]
    states = []
    for layout in ("true", "false"):
        job = prepare(load_config(config_file, [*overrides, "train.channels_last=true"]), print)
        other = [*overrides, f"train.channels_last={layout}"]
        saved = prepare(load_config(config_file, other), print)
        step(saved)
        restore_job(job, snapshot(saved, State(), Lengths()))
        step(job)
        states.append(job.model.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-6)


def step(job):
    images, labels = next(job.train_loader.epoch())
    job.model.train()
    job.optimizer.zero_grad()
    job.loss_fn(job.model(images), labels).backward()
    job.optimizer.step()


def test_evaluate_gives_the_numbers_of_the_run_again(finished):
    run = finished("loss.weight=balanced")
    config = load_config(run / "config.yaml")
    test = json.loads((run / "result.json").read_text())["test"]
    assert evaluate_run(run, config, "test") == test
    best = json.loads((run / "result.json").read_text())["best"]
    assert evaluate_run(run, config, "val") == {
        name: best[f"val/{name}"] for name in ("loss", "accuracy", "macro_f1")
    }


def test_evaluate_prints_how_many_images_it_took_and_what_was_left_out(
    train, notes, tmp_path, capsys
):
    import shutil

    from trainer.evaluate import main as evaluate

    copy = tmp_path / "copy"
    shutil.copytree(notes, copy)
    (copy / "1" / "phone.heic").touch()
    (copy / "1" / "broken.jpg").write_bytes(b"no picture")
    run = train(f"dataset.root={copy}", "dataset.on_broken=skip")
    split = json.loads((run / "split.json").read_text())
    assert capsys.readouterr().out.count("left out 1: 1 .heic") == 1  # in the whole training
    assert evaluate([str(run)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"{run}, test split, {len(split['test'])} images\n")
    assert "note    left out 1: 1 .heic (1/phone.heic)" in told.err
    assert "note    1 image that the run could not read: in no split" in told.err
    assert evaluate([str(run), "--json"]) == 0
    test = json.loads((run / "result.json").read_text())["test"]
    assert json.loads(capsys.readouterr().out).keys() == test.keys()


def test_evaluate_refuses_images_that_changed(train, config_file, notes, tmp_path):
    import shutil

    from datasets import DataError

    copy = tmp_path / "copy"
    shutil.copytree(notes, copy)
    run = train(f"dataset.root={copy}")
    name = next(iter(json.loads((run / "split.json").read_text())["test"]))
    (copy / name).unlink()
    with pytest.raises(DataError, match=name):
        evaluate_run(run, load_config(run / "config.yaml"), "test")


def test_epoch_means_count_images_when_the_last_batch_is_short(finished, monkeypatch):
    """Batches of 16 from about 40 images, at a rate so small that the weights stay as they are."""
    run = finished("loader.batch_size=16", "optimizer.lr=1e-30", "train.epochs=1")
    config = load_config(run / "config.yaml")
    job = prepare(config, print)
    logits, labels = predict(job.model, job.train_loader.epoch(0))
    assert len(labels) % 16
    expected = F.cross_entropy(logits, labels).item()
    epoch = next(line for line in read_metrics(run / "metrics.jsonl") if "train/loss_epoch" in line)
    assert epoch["train/loss_epoch"] == pytest.approx(expected, rel=1e-6)


def test_two_passes_over_validation_give_the_same_tensors(config_file):
    job = prepare(load_config(config_file), print)
    first, second = list(job.val_loader.epoch()), list(job.val_loader.epoch())
    assert all(
        torch.equal(a, c) and torch.equal(b, d)
        for (a, b), (c, d) in zip(first, second, strict=True)
    )


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(finished):
    whole, parts = finished(), finished("train.accumulate=3")
    for name, tensor in last_state(whole)["model"].items():
        torch.testing.assert_close(tensor, last_state(parts)["model"][name], rtol=1e-4, atol=1e-5)


def test_a_step_reads_nothing_back(config_file, monkeypatch):
    """What .item() and its like cost on a GPU is a wait: an epoch may not call them a step."""
    from trainer.loop.step import new_task, train_steps

    job = prepare(load_config(config_file), print)
    read = []

    def counting(name):
        original = getattr(torch.Tensor, name)

        def counted(tensor):
            read.append(name)
            return original(tensor)

        return counted

    for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, counting(name))
    batches = [(torch.zeros(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64))] * 3
    guard = Guard(job.model, job.optimizer, lag=4)  # a CPU's values are there at once
    steps = train_steps(new_task(job, guard), batches, 0)
    assert len(list(steps)) == 3
    assert read == []


def test_early_stopping_ends_a_run_that_no_longer_improves(finished):
    run = finished("optimizer.lr=1e-30", "train.epochs=9", "early_stop={patience: 2}")
    result = json.loads((run / "result.json").read_text())
    assert result["early_stopped"] and result["epochs"] == 3
    assert result["best"]["epoch"] == 1  # a tie does not replace the earlier one


def test_the_best_epoch_is_the_one_of_the_monitored_metric(finished):
    run = finished("train.monitor=val/loss", "train.epochs=4", "optimizer.lr=0.05")
    result = json.loads((run / "result.json").read_text())
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "val/loss" in line]
    best = min(lines, key=lambda line: line["val/loss"])
    assert result["best"]["epoch"] == best["epoch"]


def test_a_loss_that_is_no_number_ends_the_run_and_spares_the_last_good_checkpoint(train, tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"optimizer\.lr"):
        train("optimizer.lr=1e30", "checkpoint.every=1st")
    run = next((tmp_path / "runs" / "small").iterdir())
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "failed" and "optimizer.lr" in result["reason"]
    for folder in checkpoints(run):
        state = read_state(folder)
        assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())


def test_two_starts_in_one_second_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    names = iter("aab")
    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    first, second = create_run(tmp_path, "x"), create_run(tmp_path, "x")
    assert (first.name, second.name) == ("20260101-000000-a", "20260101-000000-b")


def test_a_run_has_one_writer(finished):
    run = finished()
    with lock_run(run), pytest.raises(RunError, match="another process"):
        lock_run(run)


def test_a_damaged_checkpoint_is_passed_over_and_named(train, finished, capsys):
    run = finished("checkpoint.every=1st", "checkpoint.keep=9")
    straight = last_state(run)
    newest = checkpoints(run)[-1]
    data = bytearray((newest / "weights.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "weights.pt").write_bytes(data)
    train(resume=run, file=run / "config.yaml")
    assert f"{newest} is damaged" in capsys.readouterr().out
    again = last_state(run)
    assert same(again["model"], straight["model"])


def test_resume_refuses_another_setting_and_shows_it(finished, tmp_path):
    run = finished()
    with pytest.raises(ConfigError, match=r"optimizer\.lr.*0\.5.*0\.01"):
        find_resumable(str(run), None, ["optimizer.lr=0.5"], tmp_path)
    config, _ = find_resumable(str(run), None, ["train.epochs=3"], tmp_path)
    assert config.train.epochs == 3


def test_a_resumed_run_can_be_given_more_epochs(train, finished):
    longer = finished("train.epochs=3")
    run = finished()
    train("train.epochs=3", resume=run, file=run / "config.yaml")
    assert same(last_state(run)["model"], last_state(longer)["model"])


@pytest.mark.parametrize(
    ("overrides", "path", "words"),
    [
        (["train.device=cuda:7"], "train.device", "not on this machine"),
        (["loader.batch_size=64", "loader.drop_last=true"], "loader.batch_size", "drop_last"),
        (["loss.weight=[1, 2, 3]"], "loss.weight", "3 numbers for 2 classes"),
        (["model.freeze=[nothing.*]"], "model", "nothing"),
        (["model.weights=absent.pt"], "model.weights", "absent.pt"),
        (["transforms.train.0.size=16"], "transforms.train.1", "16"),
        (["transforms.train.0.max_size=20"], "transforms.train.0", "max_size"),
        (["loss={name: BCEWithLogitsLoss, pos_weight: [1, 2, 3]}"], "loss", "fails on labels"),
        (["optimizer.name=Muon", "model=torchvision/resnet18"], "optimizer", "AdamW"),
        (["transforms.eval=[{name: Resize, size: [8, 8]}]"], "model", "32 x 32"),
        (["transforms.train=[{name: Resize, size: 32}, {name: CenterCrop, size: 32}, Grayscale]"],
         "transforms.eval", "channels"),
        (["scheduler={name: StepLR, step_size: 1, warmup: 99ep}"], "scheduler", "warm-up"),
    ],
)  # fmt: skip
def test_what_only_the_data_can_show_to_be_wrong_is_told_before_a_run_begins(
    config_file, tmp_path, overrides, path, words
):
    with pytest.raises(ConfigError) as caught:
        prepare(load_config(config_file, overrides), print)
    (fault,) = caught.value.faults
    assert fault.path == path and words in fault.message
    assert not (tmp_path / "runs").exists()


def test_an_image_too_small_for_the_model_names_layer_shape_and_the_smallest_size(config_file):
    overrides = ["model={name: VGG, depth: 11, variant: cifar}", "transforms.eval.0.size=[16, 16]"]
    with pytest.raises(ConfigError) as caught:
        prepare(load_config(config_file, overrides), print)
    message = caught.value.faults[0].message
    assert "Linear" in message or "MaxPool2d" in message
    assert "The smallest square size that works is" in message


ONE_PIXEL = "model=torchvision/mobilenet_v3_small"  # before its last batch norms, from 32 x 32


@pytest.mark.parametrize(
    ("overrides", "mend"),
    [
        (["loader.batch_size=39"], "set loader.drop_last=true or loader.batch_size=40"),
        (["loader.batch_size=13"], "set loader.drop_last=true or loader.batch_size=14"),
        (["loader.batch_size=1"], "set loader.batch_size=2"),
        (["loader.batch_size=1", "loader.drop_last=true"], "set loader.batch_size=2"),
        (["train.accumulate=8"], "set train.accumulate=4 or loader.batch_size=20"),
        (["train.accumulate=5"], "set train.accumulate=4 or loader.batch_size=10"),
    ],
)
def test_a_batch_of_one_image_where_batch_norm_cannot_take_it_is_told_with_what_mends_it(
    config_file, overrides, mend
):
    """Of 40 images; what it says is then accepted, and does not repeat what is set."""
    with pytest.raises(ConfigError) as caught:
        prepare(load_config(config_file, [ONE_PIXEL, *overrides]), print)
    (fault,) = caught.value.faults
    assert fault.path == "loader.batch_size" and fault.message.endswith(f"; {mend}")
    assert "Expected more than 1 value per channel when training" in fault.message
    for one in mend.removeprefix("set ").split(" or "):
        prepare(load_config(config_file, [ONE_PIXEL, *overrides, one]), print)


@pytest.mark.parametrize(
    "model",
    [
        "model={name: VGG, depth: 11, batch_norm: true, variant: cifar}",  # 4 pixels are left
        "model={name: torchvision/mobilenet_v3_small, freeze: ['features.*']}",
        "model=LeNet",
    ],
    ids=["pixels are left", "all batch norm frozen", "no batch norm"],
)
def test_a_batch_of_one_image_is_let_through_where_the_model_can_take_it(config_file, model):
    jobs = [
        prepare(load_config(config_file, [model, f"loader.batch_size={size}"]), print)
        for size in (39, 20)
    ]
    alone, other = (dict(job.model.state_dict()) for job in jobs)
    assert same(alone, other)  # it was tried, and is unchanged
    images, labels = list(jobs[0].train_loader.epoch())[-1]
    train_mode(jobs[0].model)
    assert len(images) == 1 and jobs[0].loss_fn(jobs[0].model(images), labels).isfinite()


def test_batch_norm_that_keeps_its_initial_statistics_is_told_with_what_mends_it(
    start, config_file, capsys
):
    """Five steps an epoch: (1 - 0.01)^10 = 0.904; below 0.05 after 299 steps, the 60th epoch."""

    def notes(*overrides):
        job = prepare(load_config(config_file, [ONE_PIXEL, *overrides]), print)
        (note,) = [one for one in job.notes if "batch norm's momentum" in one] or [""]
        return note.removeprefix("model: ")

    assert notes() == (
        "batch norm's momentum is 0.01: after the run's 10 steps 90% of its statistics are still "
        "the initial ones. Evaluation, which uses them, may stay at chance; train.epochs=60 or "
        "average={name: SWA, start: 5st}, which measures them anew, avoids that"
    )
    assert "train.epochs=60 or" in notes("train.epochs=59")
    assert "train.epochs=30 or" in notes("train.accumulate=2")
    assert not notes("train.epochs=60")
    assert not notes("average={name: SWA, start: 1ep}")
    frozen = "{name: torchvision/mobilenet_v3_small, freeze: ['features.*']}"
    assert not notes(f"model={frozen}") and not notes("model=LeNet")
    assert "0.0003: after" in notes("model=torchvision/mnasnet0_5", "train.epochs=300")
    assert start(ONE_PIXEL, "--dry-run") == 0
    assert "note    command line: model: batch norm's momentum is 0.01" in capsys.readouterr().out


def test_every_broken_file_is_named_at_once_or_left_out_where_asked(train, notes, tmp_path):
    import shutil

    from PIL import Image

    from datasets import DataError

    copy = tmp_path / "copy"
    shutil.copytree(notes, copy)
    good = (copy / "1" / "000.jpg").read_bytes()
    (copy / "1" / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (copy / "100" / "empty.jpg").write_bytes(b"")
    Image.new("CMYK", (40, 40), "red").save(copy / "1" / "ink.jpg")
    with pytest.raises(DataError, match=r"(?s)1/truncated\.jpg.*100/empty\.jpg"):
        train(f"dataset.root={copy}")
    run = train(f"dataset.root={copy}", "dataset.on_broken=skip")
    left_out = json.loads((run / "result.json").read_text())["dataset"]["left_out"]
    assert sorted(Path(entry["path"]).name for entry in left_out) == ["empty.jpg", "truncated.jpg"]
    (told,) = json.loads((run / "result.json").read_text())["dataset"]["notes"]
    assert re.fullmatch("1 of .* images is CMYK or Lab, converted without colour profiles", told)
    split = json.loads((run / "split.json").read_text())
    assert "1/truncated.jpg" not in split["train"] | split["val"] | split["test"]


@pytest.mark.parametrize("cut", ["FiveCrop", "TenCrop"])
def test_evaluation_averages_the_crops(config_file, cut):
    overrides = [
        "transforms.eval.0.size=[36, 36]",
        f"transforms.eval.1={{name: {cut}, size: [32, 32]}}",
    ]
    job = prepare(load_config(config_file, overrides), print)
    logits, _ = predict(job.model, job.val_loader.epoch())
    images, _ = next(job.val_loader.epoch())
    crops = {"FiveCrop": 5, "TenCrop": 10}[cut]
    assert images.shape[1:] == (crops, 3, 32, 32)
    by_hand = torch.stack([job.model(images[:, i]) for i in range(crops)]).mean(dim=0)
    torch.testing.assert_close(logits[: len(images)], by_hand.detach())


def test_cached_and_uncached_runs_are_the_same_run(finished):
    assert same(weights(finished("loader.cache=ram")), weights(finished("loader.cache=off")))


def test_workers_change_no_bit(finished):
    jitter = "transforms.train.1={name: ColorJitter, brightness: 0.5}"
    assert same(weights(finished(jitter)), weights(finished(jitter, "loader.workers=2")))


def test_one_batch_can_be_memorised(train, config_file):
    from trainer.loop.step import new_task, train_steps

    job = prepare(load_config(config_file, ["optimizer.lr=0.05"]), print)
    batch = next(job.train_loader.epoch())
    guard = Guard(job.model, job.optimizer)
    steps = train_steps(new_task(job, guard), [batch] * 60, 0)
    assert list(steps) == [len(batch[0])] * 60
    assert guard.results(wait=True)[-1].loss < 0.05


def test_a_test_image_of_a_size_that_the_model_refuses_is_told_before_a_run_begins(
    config_file, notes, tmp_path
):
    from PIL import Image

    for part, size in (("train", 32), ("valid", 32), ("test", 40)):
        for name in ("1", "100"):
            (tmp_path / "parts" / part / name).mkdir(parents=True)
            for number in range(4):
                picture = Image.effect_noise((size, size), 60 + number).convert("RGB")
                picture.save(tmp_path / "parts" / part / name / f"{number}.png")
    overrides = [f"dataset.root={tmp_path / 'parts'}", "transforms={train: [], eval: []}"]
    with pytest.raises(ConfigError, match="40 x 40"):
        prepare(load_config(config_file, overrides), print)


def test_a_model_with_another_number_of_outputs_is_told_before_a_run_begins(
    config_file, monkeypatch
):
    monkeypatch.setattr(LeNet, "forward", lambda self, images: images.new_zeros(len(images), 7))
    with pytest.raises(ConfigError, match=r"model: gives \(2, 7\) for 2 images of 2 classes"):
        prepare(load_config(config_file), print)


def test_a_file_that_cannot_be_opened_is_left_out_where_asked(train, notes, tmp_path):
    import shutil

    from datasets import DataError

    copy = tmp_path / "copy"
    shutil.copytree(notes, copy)
    os.mkfifo(copy / "1" / "nowhere.jpg")
    os.mkfifo(copy / "100" / "here.jpg")
    with pytest.raises(DataError, match=r"(?s)1/nowhere\.jpg.*100/here\.jpg"):
        train(f"dataset.root={copy}")
    run = train(f"dataset.root={copy}", "dataset.on_broken=skip")
    left_out = json.loads((run / "result.json").read_text())["dataset"]["left_out"]
    assert sorted(Path(entry["path"]).name for entry in left_out) == ["here.jpg", "nowhere.jpg"]
    assert "here.jpg" in (run / "report" / "report.md").read_text()


def test_a_file_name_that_is_no_utf8_is_no_obstacle(train, notes, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(notes, copy)
    (copy / "1" / "000.jpg").rename(copy / "1" / os.fsdecode(b"\xff\xfe.jpg"))
    run = train(f"dataset.root={copy}")
    assert "\\udcff" in (run / "split.json").read_text()
    evaluate_run(run, load_config(run / "config.yaml"), "test")


def test_a_run_killed_before_its_first_checkpoint_begins_anew_and_ends_the_same(train, finished):
    import shutil

    straight, killed = finished(), finished()
    for checkpoint in checkpoints(killed):
        shutil.rmtree(checkpoint)
    (killed / "result.json").write_text((killed / "result.json").read_text().replace("done", "no"))
    assert_same_run(straight, train(resume=killed, file=killed / "config.yaml"))
    assert all(len(steps) == len(set(steps)) for steps in tags_of(killed).values())
    assert json.loads((killed / "result.json").read_text())["status"] == "done"


def test_a_run_that_cannot_be_described_leaves_no_folder(train, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.loop.fit.write_description", full)
    with pytest.raises(OSError, match="No space"):
        train()
    assert not list((tmp_path / "runs" / "small").iterdir())


def test_each_state_is_written_once(train, monkeypatch):
    import trainer.run.saver

    saved = []

    def counting(run, step, *rest):
        saved.append(step)
        return write_checkpoint(run, step, *rest)

    monkeypatch.setattr(trainer.run.saver, "write_checkpoint", counting)
    train()
    assert saved == [5, 10]
    saved.clear()
    train("checkpoint.every=9ep")
    assert saved == [10]


def test_a_resumed_run_is_said_to_be_running(train, finished, monkeypatch):
    run = finished()
    seen = []
    monkeypatch.setattr(
        "trainer.loop.fit.train_epochs",
        lambda *_: seen.append(json.loads((run / "result.json").read_text())["status"]),
    )
    train("train.epochs=3", resume=run, file=run / "config.yaml")
    assert seen == ["running"]


def test_a_finished_run_is_not_tested_again_whatever_its_checkpoints(train, finished, capsys):
    run = finished("checkpoint.every=1st")
    before = (run / "result.json").stat().st_mtime_ns
    train(resume=run, file=run / "config.yaml")
    assert "is finished" in capsys.readouterr().out
    assert (run / "result.json").stat().st_mtime_ns == before


def test_a_config_that_was_edited_in_the_run_folder_is_refused_on_resume(train, finished):
    run = finished()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("CrossEntropyLoss", "MSELoss"))
    config, folder = find_resumable(str(run), None, ["train.epochs=3"], run.parent)
    with pytest.raises(RunError, match=r"loss\.name is \"MSELoss\", but .* \"CrossEntropyLoss\""):
        train("train.epochs=3", resume=folder, file=run / "config.yaml")


def test_lost_lines_of_metrics_are_told_before_training_goes_on(train, finished):
    run = finished()
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="lines of it are lost"):
        train("train.epochs=3", resume=run, file=run / "config.yaml")


def test_an_early_stopped_run_goes_on_with_more_patience(train, finished):
    stopping = ("optimizer.lr=1e-30", "train.epochs=9")
    patient = finished(*stopping, "early_stop={patience: 4}")
    run = finished(*stopping, "early_stop={patience: 2}")
    train("early_stop.patience=4", resume=run, file=run / "config.yaml")
    assert_same_run(patient, run)


def test_a_run_goes_on_where_its_data_was_moved_but_not_changed(train, finished, notes, tmp_path):
    import shutil

    longer, run = finished("train.epochs=3"), finished()
    shutil.copytree(notes, tmp_path / "moved")
    moved = (f"dataset.root={tmp_path / 'moved'}", "train.epochs=3")
    config, folder = find_resumable(str(run), None, moved, run.parent)
    train(*moved, resume=folder, file=run / "config.yaml")
    assert same(last_state(run)["model"], last_state(longer)["model"])


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("split.json", '"test"', '"tset"'),
        ("result.json", '"split": "', '"split": "0'),
        ("config.yaml", "[0.5, 0.5, 0.5]", "[0.4, 0.5, 0.5]"),
        ("model.json", '"mean"', '"std"'),
    ],
)
def test_evaluate_refuses_a_run_whose_files_do_not_belong_together(finished, file, old, new):
    run = finished()
    content = (run / file).read_text()
    assert old in content
    (run / file).write_text(content.replace(old, new))
    with pytest.raises(RunError, match="is not the split that|is not that of model.json"):
        evaluate_run(run, load_config(run / "config.yaml"), "val")


def test_a_confusion_matrix_lies_in_a_file_of_its_own_which_the_result_names(finished):
    run = finished("metrics=[accuracy, confusion_matrix]")
    test = json.loads((run / "result.json").read_text())["test"]
    assert test["confusion_matrix"] == "confusion_matrix.csv"
    with (run / "confusion_matrix.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    measured = evaluate_run(run, load_config(run / "config.yaml"), "test")["confusion_matrix"]
    places = {(line["true"], line["predicted"]): int(line["images"]) for line in lines}
    names = ("1", "100")
    assert [[places.get((t, p), 0) for p in names] for t in names] == measured
    assert sum(places.values()) == 5 and 0 not in places.values()


def test_of_ten_thousand_classes_a_result_is_as_small_as_of_two(tmp_path):
    none, mistakes = [0] * 10_000, [0] * 10_000
    mistakes[7], mistakes[9999] = 2, 1
    matrix = [none] * 9999 + [mistakes]
    names = [f'class "{k}", ü' for k in range(10_000)]
    values = set_aside(tmp_path, {"accuracy": 0.5, "confusion_matrix": matrix}, names)
    assert values == {"accuracy": 0.5, "confusion_matrix": "confusion_matrix.csv"}
    with (tmp_path / "confusion_matrix.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["true", "predicted", "images"],
            [names[9999], names[7], "2"],
            [names[9999], names[9999], "1"],
        ]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("failed", r"is failed: lr too high\nonce that is repaired, to go on with it: .*--resume"),
        ("stopped", r"is stopped: lr too high\nto go on with it: python -m trainer.train --resume"),
        ("running", r"is interrupted: lr too high\nto go on with it: "),  # no process holds it
    ],
)
def test_a_run_that_ended_in_its_first_epoch_is_said_to_have_no_weights_yet(tmp_path, status, told):
    files = {"result.json": json.dumps({"status": status, "reason": "lr too high"})}
    run = tmp_path
    for name, content in files.items():
        (run / name).write_text(content)
    with pytest.raises(RunError, match=f"no epoch was the best yet.\nits status {told}"):
        best.require_best(run)


def test_of_a_run_that_is_done_the_weights_are_said_to_be_removed(finished):
    run = finished()
    for name in ("model.json", "model.pt"):
        (run / name).unlink()
        with pytest.raises(RunError, match=rf"{name} is missing: it was removed"):
            evaluate_run(run, load_config(run / "config.yaml"), "test")


def test_best_weights_that_a_run_replaces_meanwhile_are_read_once_more(finished, monkeypatch):
    run, later = finished(), finished("train.epochs=1")
    old, new = ((folder / "model.json").read_text() for folder in (run, later))
    (run / "model.pt").write_bytes((later / "model.pt").read_bytes())
    waits: list[float] = []

    def sleep(seconds):  # in which the run writes what describes the new weights
        waits.append(seconds)
        (run / "model.json").write_text(new)

    monkeypatch.setattr(time, "sleep", sleep)
    weights, card = best.read_best(run)
    assert card == json.loads(new) and waits == [best.RETRY_AFTER]
    assert all(
        torch.equal(value, load_tensors(later / "model.pt")[name])
        for name, value in weights.items()
    )
    (run / "model.json").unlink()  # of the first best weights, model.pt is there first
    best.require_best(run)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    (run / "model.json").write_text(old)
    with pytest.raises(RunError, match="is not the file that model.json describes"):
        best.read_best(run)


def test_evaluate_refuses_what_would_not_be_the_run(finished):
    run = finished()
    for override in ("model.name=MLP", "optimizer.lr=3", "transforms.eval.0.size=16"):
        with pytest.raises(ConfigError, match="but the run began with"):
            evaluate_run(run, load_config(run / "config.yaml", [override]), "test")
    torch.save(LeNet(num_classes=3, in_channels=3).state_dict(), run / "model.pt")
    with pytest.raises(RunError, match=r"not the file that model\.json describes"):
        evaluate_run(run, load_config(run / "config.yaml"), "test")
    described = json.loads((run / "model.json").read_text())
    described["weights"]["sha256"] = sha256_of(run / "model.pt")
    (run / "model.json").write_text(json.dumps(described))
    with pytest.raises(RunError, match="does not fit"):
        evaluate_run(run, load_config(run / "config.yaml"), "test")


def test_a_reader_that_has_seen_enough_does_not_end_a_run(train, monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    from trainer.process.console import say

    say("first")
    say("second")
    sys.stdout.close()


def test_a_checkpoint_is_due_after_minutes_steps_or_epochs(train, config_file, monkeypatch):
    """Minutes count from the last save, on a clock that nobody sets."""
    clock = [1000.0]

    class Clock:
        perf_counter = staticmethod(time.perf_counter)

        @staticmethod
        def monotonic():
            return clock[0]

    rates = trainer.loop.epochs.learning_rates

    def passing(job):
        clock[0] += 4 * 60 if job.schedule.steps else 0
        return rates(job)

    monkeypatch.setattr("trainer.loop.epochs.time", Clock)
    monkeypatch.setattr("trainer.loop.record.time", Clock)

    def begun():
        state = State()
        state.saved_at = clock[0]
        return state

    monkeypatch.setattr(trainer.loop.fit, "State", begun)
    monkeypatch.setattr(trainer.loop.epochs, "learning_rates", passing)

    def saved(every):
        run = train(f"checkpoint.every={every}", "checkpoint.keep=99")
        return [read_state(path)["counters"]["step"] for path in checkpoints(run)]

    assert saved("10m") == [3, 6, 9, 10]
    assert saved("4st") == [4, 8, 10]
    assert saved("5st") == [5, 10]
    assert saved("1ep") == [5, 10]
    assert saved("2ep") == [10]


def test_a_run_says_which_weights_it_begins_with(finished, start, capsys):
    file = finished() / "model.pt"
    epoch = json.loads((file.parent / "model.json").read_text())["metrics"]["epoch"]
    assert start("train.epochs=1", f"model.weights={file}") == 0
    told = (
        f"weights {file}, epoch {epoch}: 10 of 10 tensors taken; the head is for the same classes"
    )
    assert told in capsys.readouterr().out.splitlines()
    assert start("train.epochs=1", f"model.weights={file.parent}") == 0
    assert told.replace(str(file), str(file.parent)) in capsys.readouterr().out.splitlines()


def live_tensors() -> list[torch.Tensor]:
    """All tensors that Python knows, also those that only a graph of autograd holds."""
    gc.collect()
    return [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]


COMMANDS_CALLED = {  # command: its arguments; RUN and CONFIG stand for a run and a configuration
    "train": ["--config", "CONFIG", "--runs", "RUNS", "train.epochs=1"],
    "train --dry-run": ["--config", "CONFIG", "--dry-run"],
    "train --resume": ["--resume", "RUN", "train.epochs=3"],
    "train, refused": ["--config", "CONFIG", "transforms.train.1.size=8"],
    "train, not finite": ["--config", "CONFIG", "--runs", "RUNS", "optimizer.lr=1e30"],
    "find_lr": ["--config", "CONFIG", "--runs", "RUNS", "--steps", "20"],
    "speed": ["--config", "CONFIG", "--seconds", "5", "--no-compile"],
    "evaluate": ["RUN"],
    "predict": ["RUN", "IMAGE"],
    "explain": ["RUN", "IMAGE", "--output", "RUNS/look"],
    "export": ["RUN", "--format", "safetensors"],
    "data": ["--config", "CONFIG", "--runs", "RUNS"],
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.slow]
            if name in ("data", "speed", "train, refused", "train --resume")
            else [],
        )
        for name in COMMANDS_CALLED
    ],
)
def test_a_command_that_is_called_again_keeps_no_tensor(
    config_file, finished, notes, tmp_path, monkeypatch, name
):
    """In a notebook, each call would keep a model, its gradients and a batch."""
    module = importlib.import_module(f"trainer.{re.split('[ ,]', name)[0]}")
    image = next(notes.glob("*/*.jpg"))
    models = []
    build = nn.Module.__init__

    def built(model, *arguments, **named):
        models.append(weakref.ref(model))
        build(model, *arguments, **named)

    monkeypatch.setattr(nn.Module, "__init__", built)

    def call():
        names = {"CONFIG": config_file, "RUN": finished(), "RUNS": tmp_path, "IMAGE": image}
        given = [re.sub("CONFIG|RUNS|RUN|IMAGE", lambda m: str(names[m[0]]), text)
                 for text in COMMANDS_CALLED[name]]  # fmt: skip
        module.main(given)

    call()  # the first call may keep constants of libraries
    before = live_tensors()
    known = {id(tensor) for tensor in before}
    models.clear()
    call()
    assert not [tensor.shape for tensor in live_tensors() if id(tensor) not in known]
    assert not [model() for model in models if model() is not None]
    assert models or name == "data"
