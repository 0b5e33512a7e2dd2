"""Learning from another run: the paper's loss, and only from a teacher that sees what is meant."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.mlp import MLP
from tests.test_resume import stopped_at
from tests.test_training import CPU, assert_same_run, last_state, same, weights
from trainer.build.prepare import prepare
from trainer.build.teacher import Distillation, mismatch
from trainer.build.trained import load_trained
from trainer.config import load_config
from trainer.evaluate import main as evaluate
from trainer.inference.evaluation import evaluate_run
from trainer.input.data import load_data
from trainer.predict import main as predict
from trainer.process.errors import ConfigError, RunError
from trainer.run.disk import read_json, sha256_of, write_json
from trainer.run.resume import find_resumable
from trainer.train import main
from transforms.keyed import permutation, seed_of

QUIET = "log.show=[]"


@pytest.fixture
def teacher(finished):
    """An MLP that has learnt the notes for an epoch."""
    return finished("model=MLP", "train.epochs=1", "seed=3", "name=teacher", QUIET)


def distill(teacher, **more):
    given = "".join(f", {key}: {value}" for key, value in more.items())
    return f"distill={{run: {teacher}{given}}}"


def test_the_loss_is_the_papers():
    torch.manual_seed(0)
    logits, answers = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    teacher = Distillation(nn.Identity(), 0.3, 2.5, Path("run"), "")
    p, q = (answers / 2.5).softmax(1), (logits / 2.5).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    expected = 0.7 * 11.0 + 0.3 * 2.5**2 * divergence
    found = teacher(answers, logits, torch.tensor(11.0, dtype=torch.float64))
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_training_equals_a_hand_written_loop(train, finished, config_file, teacher):
    # A linear model: at a kink, as of ReLU, the last bits of a processor would choose the branch.
    linear = "model={name: MLP, hidden: []}"
    run = train(distill(teacher, weight=0.7, temperature=3.0), QUIET, linear)
    config = load_config(config_file)
    part = load_data(config, CPU).subsets["train"]
    knows = load_trained(teacher).model
    torch.manual_seed(seed_of(0, "weights"))
    model = MLP(num_classes=2, in_channels=3, input_size=[32, 32], hidden=[])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(2):
        for rows in permutation(len(part), 0, epoch).split(8):
            images, labels = part.batch(rows, epoch)
            with torch.no_grad():
                p = (knows(images).double() / 3).softmax(1)
            logits = model(images)
            log_q = (logits.double() / 3).log_softmax(1)  # the formula's own rounding is out
            divergence = (p * (p.log() - log_q)).sum(1).mean()
            loss = 0.3 * F.cross_entropy(logits, labels) + 0.7 * 9 * divergence
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, weight in last_state(run)["model"].items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert not same(weights(run), weights(finished(QUIET, linear)))


def test_the_teacher_stays_as_it_was_and_draws_nothing(config_file, teacher):
    overrides = [distill(teacher), "model={name: AlexNet, variant: cifar}"]
    with_one, without = (prepare(load_config(config_file, overrides[n:]), print) for n in (0, 1))
    assert same(dict(with_one.model.state_dict()), dict(without.model.state_dict()))
    assert with_one.teacher is not None and without.teacher is None
    state = torch.default_generator.get_state()
    images, _ = next(with_one.train_loader.epoch())
    logits = with_one.model(images)
    state = torch.default_generator.get_state()
    with_one.teacher(images, logits, logits.sum()).backward()
    assert torch.equal(state, torch.default_generator.get_state())
    model = with_one.teacher.model
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert same(dict(model.state_dict()), dict(weights(teacher)))


def test_stopped_in_mid_epoch_and_gone_on_with_a_run_is_the_same(
    train, monkeypatch, tmp_path, teacher
):
    more = (distill(teacher), QUIET, "train.accumulate=2", "average={name: EMA}")
    straight = train(*more)
    stopped_at(train, monkeypatch, 3, *more)
    runs = (tmp_path / "runs" / "small").iterdir()
    run = max(runs, key=lambda path: path.stat().st_ctime_ns)
    train(resume=run, file=run / "config.yaml")
    assert_same_run(straight, run)


def test_two_processes_learn_what_one_does(together, tmp_path, teacher):
    for processes in (1, 2):
        assert together(processes, distill(teacher), runs=f"runs-{processes}") == [0] * processes
    (alone,), (shared,) = ((tmp_path / f"runs-{n}" / "small").iterdir() for n in (1, 2))
    for name, tensor in weights(alone).items():
        torch.testing.assert_close(weights(shared)[name], tensor, rtol=1e-3, atol=1e-5)
    assert (
        read_json(shared / "result.json")["teacher"] == read_json(alone / "result.json")["teacher"]
    )


def test_which_teacher_it_was_is_kept_and_another_is_refused_with_code_5(
    train, finished, teacher, tmp_path, capfd
):
    run = train(distill(teacher), QUIET)
    digest = sha256_of(teacher / "model.pt")
    told = read_json(run / "result.json")["teacher"]
    assert told == {"run": str(teacher), "weights": {"sha256": digest}}
    assert last_state(run)["teacher"] == digest
    other = finished("model=MLP", "train.epochs=1", "seed=4", "name=teacher", QUIET)
    before = (run / "result.json").read_bytes()
    assert main(["--resume", str(run), "train.epochs=3", f"distill.run={other}"]) == 5
    assert "began with another teacher" in capfd.readouterr().err
    assert (run / "result.json").read_bytes() == before
    moved = tmp_path / "moved"
    shutil.move(teacher, moved)
    assert main(["--resume", str(run), "train.epochs=3"]) == 2
    assert "distill.run: cannot teach" in capfd.readouterr().err
    assert main(["--resume", str(run), "train.epochs=3", f"distill.run={moved}"]) == 0


def test_another_share_or_temperature_is_another_run(train, teacher):
    run = train(distill(teacher), QUIET)
    for change in ("distill.weight=0.4", "distill.temperature=2", "distill=null"):
        with pytest.raises(ConfigError, match="distill"):
            find_resumable(str(run), None, [change], run)


def test_the_student_is_used_without_its_teacher(train, teacher, notes, capsys):
    run = train(distill(teacher), QUIET)
    shutil.rmtree(teacher)
    result = read_json(run / "result.json")
    assert evaluate_run(run, load_config(run / "config.yaml"), "test") == result["test"]
    assert evaluate([str(run)]) == 0
    assert predict([str(run), str(notes / "1" / "000.jpg")]) == 0


NORMALIZE = "{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["loss=BCEWithLogitsLoss"], "loss: BCEWithLogitsLoss trains a sigmoid a class"),
        (["transforms.train.2.std=[0.2, 0.2, 0.2]"], "its images were made by Normalize (mean"),
        (["transforms.train=[{name: Resize, size: [32, 32]}]"], "transforms.train has no Normal"),
        (
            ["transforms.train.1.size=28", "transforms.train.1.padding=0"],
            "trained on images of 3 x 32 x 32 (channels, height, width); here they are 3 x 28 x 28",
        ),
    ],
)
def test_a_teacher_of_other_images_or_losses_is_refused_with_its_place(
    config_file, teacher, overrides, told, tmp_path
):
    with pytest.raises(ConfigError) as error:
        prepare(load_config(config_file, [distill(teacher), *overrides]), print)
    assert told in str(error.value)
    assert "loss:" in told or "distill.run: " in str(error.value)
    assert not (tmp_path / "runs" / "small").exists()


def test_a_teacher_of_other_classes_or_in_another_order_is_refused(config_file, teacher, tmp_path):
    for classes, told in ((["100", "1"], "in another order: 100, 1"), (["a", "b"], "other ones")):
        changed = tmp_path / classes[0]
        shutil.copytree(teacher, changed)
        card = read_json(changed / "model.json")
        write_json(changed / "model.json", card | {"classes": classes})
        with pytest.raises(ConfigError, match=told):
            prepare(load_config(config_file, [distill(changed)]), print)


def test_a_teacher_whose_logits_are_sigmoids_is_refused(train, config_file):
    run = train("loss=BCEWithLogitsLoss", "train.epochs=1", QUIET)
    with pytest.raises(ConfigError, match="its loss, BCEWithLogitsLoss, trains a sigmoid"):
        prepare(load_config(config_file, [distill(run)]), print)


@pytest.mark.parametrize("damage", ["absent", "no weights", "other weights", "no config"])
def test_a_teacher_that_is_not_there_or_has_no_weights_is_told_before_training(
    start, teacher, tmp_path, capfd, damage
):
    run = tmp_path / "teacher"
    shutil.copytree(teacher, run)
    if damage == "absent":
        shutil.rmtree(run)
    elif damage == "no weights":
        (run / "model.pt").unlink()
    elif damage == "other weights":
        (run / "model.pt").write_bytes(b"other")
    else:
        (run / "config.yaml").write_text("nothing: 3")
    assert start(distill(run)) == 2
    told = capfd.readouterr().err
    assert "distill.run: cannot teach: " in told and "Traceback" not in told
    assert not (tmp_path / "runs" / "small").exists()


def test_the_device_and_threads_are_the_students(train, config_file):
    run = train("train.threads=2", "train.epochs=1", QUIET)
    torch.set_num_threads(1)
    job = prepare(load_config(config_file, [distill(run)]), print)
    assert torch.get_num_threads() == 1 and job.teacher is not None
    assert json.dumps(job.teacher.description())


def load_config_of(job, folder):
    (folder / "again.yaml").write_text(job.config.dump())
    return load_config(folder / "again.yaml")


def test_a_run_name_stands_for_its_newest_run(config_file, teacher, tmp_path):
    job = prepare(load_config(config_file, [distill(teacher.parent)]), print)
    assert job.teacher is not None and job.teacher.run == teacher
    # A later run of this name changes nothing.
    assert job.config.distill is not None and job.config.distill.run == str(teacher)
    assert load_config_of(job, tmp_path) == job.config
    assert mismatch(job.config, load_trained(teacher), ("1", "100"), (3, 32, 32)) == ""


def test_a_checkpoint_of_a_run_with_another_teacher_is_none_of_a_run_with_none(
    train, finished, teacher
):
    run = finished(QUIET)
    assert last_state(run)["teacher"] is None
    with pytest.raises((ConfigError, RunError)):
        train(distill(teacher), "train.epochs=3", resume=run)
