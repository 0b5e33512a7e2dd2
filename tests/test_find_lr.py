import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageChops, ImageColor

from trainer.build.optimizer import build_optimizer, build_schedule_of
from trainer.build.prepare import prepare
from trainer.components import OPTIMIZERS
from trainer.config import load_config
from trainer.drawing.axes import COLOURS
from trainer.drawing.charts import MARKS
from trainer.find_lr import main
from trainer.process.errors import ConfigError, UsageError
from trainer.run.folder import find_run
from trainer.tuning.rates import (
    Finder,
    NoSuggestion,
    Probe,
    RateSearch,
    Shortened,
    Tried,
    at_rate,
    compared,
    draw_search,
    is_sure,
    rate_key,
    rates_between,
    suggest,
    take_probe,
    train_at,
)


def quiet(line):
    """Print nothing."""


@pytest.fixture
def job_of(config_file):
    def build(*overrides):
        return prepare(load_config(config_file, overrides), quiet)

    return build


@pytest.fixture
def find(config_file, tmp_path):
    """Call the command; its exit code."""

    def call(*more):
        return main(["--config", str(config_file), "--runs", str(tmp_path / "runs"), *more])

    return call


@pytest.fixture
def arrays(tmp_path):
    """Write images (N, 1, 8, 8) and labels; the overrides that train an MLP on them."""

    def write(images, labels):
        count = len(labels) // 5
        parts = {"train": slice(count, None), "test": slice(0, count)}
        named = {f"{part}_images": images[rows] for part, rows in parts.items()}
        named |= {f"{part}_labels": labels[rows] for part, rows in parts.items()}
        np.savez(tmp_path / "data.npz", **named)
        normal = "[{name: Normalize, mean: [0.5], std: [0.25]}]"
        return [
            f"dataset={{name: Arrays, root: {tmp_path / 'data.npz'}}}",
            f"transforms={{train: {normal}, eval: {normal}}}",
            "model={name: MLP, hidden: [32]}",
            "split.ratios=[3, 1, 0]",
            "metrics=[accuracy]",
        ]

    return write


def searched(losses, constant=1.0, spread=0.0, count=40):
    """A search whose trials ended at these losses of each image, at rates from 1e-4 on."""
    probe = Probe([], count // 2, torch.full((count,), constant, dtype=torch.float64))

    def tried(rate, loss):
        both = [torch.full((count,), loss + way * spread / 2) for way in (-1, 1)]
        return Tried(rate, 100, [each.double() for each in both])

    trials = [tried(1e-4 * 10 ** (i / 2), loss) for i, loss in enumerate(losses)]
    return RateSearch(probe, trials, trials, 0.01)


def test_rates_rise_by_equal_factors_from_one_end_to_the_other():
    assert rates_between(1e-7, 10) == pytest.approx(np.geomspace(1e-7, 10, 17).tolist())
    assert rates_between(1e-3, 2e-3) == pytest.approx(np.geomspace(1e-3, 2e-3, 3).tolist())


@given(st.floats(1e-9, 1.0), st.floats(1.001, 1e9))
def test_any_ends_are_tried_with_factors_of_at_most_the_root_of_ten(low, factor):
    rates = rates_between(low, low * factor)
    assert rates[0] == low and rates[-1] == pytest.approx(low * factor) and len(rates) >= 3
    assert all(b / a < 10**0.5 * 1.001 for a, b in zip(rates, rates[1:], strict=False))


def test_a_trial_as_long_as_the_training_is_the_training(job_of):
    """The losses of its images are those of a loop by hand."""
    job = job_of("optimizer.lr=0.05", "train.epochs=3")
    model = copy.deepcopy(job.model)
    weights = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    probe, steps = take_probe(job), 3 * len(job.train_loader)
    trial = Tried(0.02, steps)
    for _ in train_at(job, weights, probe, trial, 0):
        pass
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for images, labels in [batch for epoch in range(3) for batch in job.train_loader.epoch(epoch)]:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    images = torch.cat([images for images, _ in probe.batches])
    labels = torch.cat([labels for _, labels in probe.batches])
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model(images), labels, reduction="none")
    assert trial.losses[0].tolist() == pytest.approx(losses.tolist(), rel=1e-3, abs=1e-4)


def test_the_images_that_judge_are_those_of_evaluation_and_half_are_not_trained_on(job_of):
    job = job_of()
    probe = take_probe(job)
    val = torch.cat([images for images, _ in job.val_loader.epoch()])
    images = torch.cat([images for images, _ in probe.batches])
    assert probe.held == len(val) and torch.equal(images[-probe.held :], val)
    assert len(images) == len(val) + len(job.data.subsets["train"])
    assert all(torch.equal(*two) for two in zip(images, _judges(job), strict=True))  # each time


def _judges(job):
    return torch.cat([images for images, _ in take_probe(job).batches])


def test_the_constant_answer_is_the_best_there_is(job_of):
    """Of cross entropy it is the shares of the classes, and the loss their entropy."""
    probe = take_probe(job_of())
    labels = torch.cat([labels for _, labels in probe.batches])
    shares = np.bincount(labels) / len(labels)
    assert probe.chance == pytest.approx(scipy.stats.entropy(shares), rel=1e-4)


@pytest.mark.parametrize(
    "scheduler",
    [
        "null",
        "{name: StepLR, step_size: 2, gamma: 0.1}",
        "{name: CosineAnnealingLR, warmup: 1ep}",
        "{name: OneCycleLR}",
        "{name: OneCycleLR, max_lr: 0.3}",
    ],
)
@pytest.mark.parametrize("steps", [7, 1000])
@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_the_schedule_is_passed_through_in_fewer_steps(job_of, scheduler, steps):
    job = job_of(f"scheduler={scheduler}", "train.epochs=6")
    an_epoch = len(job.train_loader)
    whole, steps = 6 * an_epoch, min(steps, 6 * an_epoch)

    def built():
        optimizer = build_optimizer(job.config, job.model)
        return optimizer, build_schedule_of(job.config, optimizer, an_epoch)

    optimizer, schedule = built()
    rates = []
    for step in range(whole):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.after_step()
        if (step + 1) % an_epoch == 0:
            schedule.after_epoch(0.0)
    optimizer, schedule = built()
    short = Shortened(schedule, whole, an_epoch, steps)
    for step in range(steps):
        assert optimizer.param_groups[0]["lr"] == rates[step * whole // steps]
        short.after_step()


def test_a_trial_has_the_settings_of_the_command_that_is_suggested(config_file):
    for words, key in [
        ((), "optimizer.lr"),
        (("optimizer={name: AdamW, layer_decay: 0.5}",), "optimizer.lr"),
        (("scheduler={name: OneCycleLR}",), "optimizer.lr"),
        (("scheduler={name: OneCycleLR, max_lr: 0.3}",), "scheduler.max_lr"),
    ]:
        config = load_config(config_file, words)
        assert rate_key(config) == key
        assert at_rate(config, 0.07) == load_config(config_file, [*words, f"{key}=0.07"])


def found_by(job, low=1e-5, high=1.0, steps=20):
    return Finder(job, low, high, steps, quiet).search()


def test_the_same_seed_gives_the_same_losses_and_another_others(job_of):
    first, again, other = (
        [t.loss for t in found_by(job_of(f"seed={seed}")).trials] for seed in (3, 3, 4)
    )
    assert first == again != other


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"Rprop"}))
def test_every_optimizer_can_be_tried(job_of, name):
    model = "{name: MLP, hidden: [8, 8]}" if name == "Muon" else "LeNet"
    job = job_of(f"optimizer={{name: {name}, lr: 0.001}}", f"model={model}")
    found = found_by(job, 1e-4, 1e-2)
    assert found.own == 0.001 and len(found.trials) >= 2


def test_rprop_is_refused_as_it_chooses_its_own_steps(find, capsys):
    assert find("optimizer={name: Rprop, lr: 0.01}") == 2
    assert "Rprop" in capsys.readouterr().err


def test_mixed_labels_accumulation_clipping_and_batch_norm_are_as_in_a_run(job_of):
    job = job_of(
        "transforms.train=[{name: Resize, size: [32, 32]}, {name: MixUp}]",
        "model={name: CompactResNet, widths: [4, 4]}",
        "train.accumulate=2",
        "train.clip_grad_norm=0.5",
    )
    assert all(math.isfinite(trial.loss) for trial in found_by(job).trials)


def test_a_training_that_diverges_ends_and_counts_as_the_worst(job_of):
    job = job_of()
    weights = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    probe, trial = take_probe(job), Tried(1e30, 20)
    assert len(list(train_at(job, weights, probe, trial, 0))) < 20
    assert trial.loss == pytest.approx(2 * probe.chance, rel=0.2)


@pytest.mark.parametrize("optimizer", ["{name: SGD, momentum: 0.9}", "Adam"])
def test_rates_at_which_all_diverges_suggest_nothing(find, capsys, optimizer):
    assert find(f"optimizer={optimizer}", "--from", "1e3", "--to", "1e8", "--steps", "20") == 4
    assert "Normalize" in capsys.readouterr().err


def test_a_loss_that_is_no_number_suggests_nothing(job_of):
    class NoNumber(torch.nn.Module):
        def forward(self, logits, labels):
            return logits.sum() * math.nan

    job = job_of()
    job.loss_fn = NoNumber()
    with pytest.raises(NoSuggestion, match="no number"):
        found_by(job)


@pytest.mark.parametrize("seed", range(3))
def test_random_labels_suggest_nothing_although_they_can_be_known_by_heart(job_of, arrays, seed):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (500, 8, 8), dtype=np.uint8)
    words = arrays(images, random.integers(0, 4, 500))
    job = job_of(*words, "optimizer={name: Adam, lr: 0.001}", "train.epochs=20")
    found = found_by(job, 1e-5, 0.1, steps=100)
    seen = min(trial.mean[: -found.probe.held].mean().item() for trial in found.trials)
    assert seen < found.probe.chance / 2
    with pytest.raises(NoSuggestion, match="can't tell: .* constant"):
        suggest(found)


@pytest.mark.parametrize("seed", range(6))
def test_noise_of_small_batches_does_not_end_it(job_of, arrays, seed):
    """33 images of two kinds with noise, in batches of 8."""
    random = np.random.default_rng(seed)
    labels = np.arange(41) % 2
    images = random.integers(0, 200, (41, 8, 8)) + 55 * labels[:, None, None]
    words = arrays(images.astype(np.uint8), labels)
    job = job_of(*words, "train.epochs=20", f"seed={seed}")
    assert len(job.data.subsets["train"]) + len(job.data.subsets["val"]) == 33
    try:
        trial = suggest(found_by(job, 1e-7, 10, 60))
    except NoSuggestion as reason:
        assert str(reason).startswith("can't tell: ")
    else:
        assert 1e-5 < trial.rate < 10 and trial.loss < 0.6


def test_fewer_images_than_a_batch_are_enough(job_of):
    found = found_by(job_of("loader.batch_size=512", "train.epochs=30"), 1e-4, 1)
    assert suggest(found).rate in [trial.rate for trial in found.trials]


def test_the_best_of_two_that_are_equal_is_the_lower():
    assert suggest(searched([0.9, 0.3, 0.302, 0.9])).rate == pytest.approx(1e-4 * 10**0.5)
    assert suggest(searched([0.9, 0.305, 0.3, 0.9])).rate == pytest.approx(1e-4 * 10**0.5)
    assert suggest(searched([0.9, 0.4, 0.3, 0.9])).rate == pytest.approx(1e-3)


@pytest.mark.parametrize(
    "found, words",
    [
        (searched([2.0, 2.0, 2.0]), "no numbers.*Normalize"),
        (searched([1.0, 1.01, 1.3]), "constant.*more --steps"),
        (searched([0.9, 0.6, 0.9], spread=1.0), "only some orders.*more --steps"),
        (searched([0.9, 0.35, 0.9, 0.3, 0.9]), "between them.*more --steps"),
    ],
)
def test_where_it_cannot_tell_it_says_why_and_what_to_try(found, words):
    with pytest.raises(NoSuggestion, match=words):
        suggest(found)


@given(st.lists(st.floats(0, 2), min_size=3, max_size=9), st.floats(0, 2))
def test_any_losses_give_a_rate_that_learned_or_a_reason(losses, spread):
    found = searched(losses, spread=spread)
    try:
        assert suggest(found).loss < found.probe.chance
    except NoSuggestion as reason:
        assert str(reason).startswith(("can't tell: ", "no suggestion: "))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=50))
def test_what_is_sure_is_three_standard_errors_above_chance(gain):
    if len(set(gain)) > 1:
        t = scipy.stats.ttest_1samp(gain, 0.0).statistic
        assert is_sure(torch.tensor(gain, dtype=torch.float64)) == (t > 3)


@pytest.mark.parametrize("seed", range(20))
def test_answers_by_chance_are_not_taken_for_learning(seed):
    random = torch.Generator().manual_seed(seed)
    assert not is_sure(torch.randn(500, generator=random))


def test_the_picture_has_the_first_look_the_trials_and_both_rates():
    found = searched([0.9, 0.3, 0.9])
    marked = draw_search(found, 3e-4)
    plain = draw_search(RateSearch(found.probe, found.first, found.trials, 0.0), None)
    shades = {colour for _, colour in marked.getcolors(1 << 24) or ()}
    rgb = {name: ImageColor.getrgb(name) for name in (*COLOURS, *MARKS)}
    assert rgb[COLOURS[0]] not in shades  # the first look is pale
    assert {rgb[COLOURS[2]], rgb[COLOURS[3]], *(rgb[mark] for mark in MARKS)} <= shades
    assert ImageChops.difference(marked, plain.resize(marked.size)).getbbox()


def test_the_suggestion_trains_better_than_a_hundredth_and_a_hundredfold_of_it(job_of):
    job = job_of("train.epochs=10")
    finder = Finder(job, 1e-7, 10, 100, quiet)
    rate = suggest(finder.search()).rate
    ends = [finder.trained(Tried(lr, 100)).loss for lr in (rate, rate / 100, rate * 100)]
    assert ends[0] < min(ends[1:])


def test_the_command_prints_a_rate_to_paste_and_writes_one_picture_and_nothing_else(
    find, tmp_path, capsys
):
    assert find("train.epochs=8") == 0
    out = capsys.readouterr().out
    rate = float(out.split("optimizer.lr=")[1])
    assert 1e-5 < rate < 1 and f"suggest {rate:.2g}" in out and "the YAML has 0.01" in out
    assert "a training has" in out.split("trials")[0]  # what it takes is told before
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert [file.name for file in files] == ["find_lr.png"]
    with pytest.raises(UsageError):
        find_run(str(tmp_path / "runs"))


def test_the_picture_goes_where_it_is_asked_to_and_the_range_holds(find, tmp_path, capsys):
    target = tmp_path / "new" / "曲线.png"
    ends = ["--steps", "30", "--from", "3e-4", "--to", "2e-3"]
    assert find("--output", str(target), "train.epochs=8", *ends) == 0
    assert target.read_bytes().startswith(b"\x89PNG") and not (tmp_path / "runs").exists()
    assert 3e-4 <= float(capsys.readouterr().out.split("optimizer.lr=")[1]) <= 2e-3


def test_where_nothing_can_be_suggested_the_exit_code_is_4_and_the_curve_is_kept(
    find, tmp_path, capsys
):
    assert find("--to", "1e-6", "--steps", "20") == 4
    told = capsys.readouterr()
    assert "can't tell" in told.err and "find_lr.png" in told.err and "Traceback" not in told.err
    assert "trainer.sweep" in told.err and "optimizer.lr=" not in told.out
    assert list((tmp_path / "runs").rglob("find_lr.png"))


@pytest.mark.parametrize(
    "wrong",
    [
        ("--from", "1", "--to", "0.1"),
        ("--from", "0"),
        ("--from", "nan"),
        ("--to", "inf"),
        ("--steps", "3"),
        ("--output", "x.jpg"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(find, wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        find(*wrong)
    assert ended.value.code == 2 and wrong[-2] in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to_is_told_before_the_test(find, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert find("--output", str(tmp_path / "file" / "x.png")) == 5
    told = capsys.readouterr().err
    assert "file" in told and "Traceback" not in told


def test_a_fault_of_the_file_is_one_of_config(job_of, find):
    with pytest.raises(ConfigError):
        job_of("optimizer.lrr=1")
    assert find("optimizer.lrr=1") == 2


@pytest.mark.parametrize(
    "suggestion, own, words",
    [(0.01, 0.01, "cannot tell"), (0.1, 0.01, "10 times less"), (1e-4, 0.01, "100 times more")],
)
def test_it_is_compared_with_the_files_own_rate(suggestion, own, words):
    assert words in compared(suggestion, own) and f"{own:.3g}" in compared(suggestion, own)


def test_help_answers_before_anything_heavy_is_imported():
    code = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        "try: runpy.run_module('trainer.find_lr', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'pydantic', 'yaml', 'tqdm'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
