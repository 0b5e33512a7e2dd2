import copy
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageChops, ImageColor

from trainer.build.prepare import prepare
from trainer.components import OPTIMIZERS
from trainer.config import load_config
from trainer.drawing.axes import COLOURS
from trainer.drawing.charts import MARKS
from trainer.find_lr import main
from trainer.process.errors import ConfigError, UsageError
from trainer.run.folder import find_run
from trainer.tuning import lr_range
from trainer.tuning.lr_range import (
    NoSuggestion,
    RangeTest,
    compared,
    draw_range,
    suggest,
    sweep_rates,
)


@pytest.fixture
def job_of(config_file):
    def build(*overrides):
        return prepare(load_config(config_file, overrides), lambda line: None)

    return build


@pytest.fixture
def find(config_file, tmp_path):
    """Call the command; its exit code."""

    def call(*more):
        return main(["--config", str(config_file), "--runs", str(tmp_path / "runs"), *more])

    return call


def curve(losses, own=0.01, low=1e-6, high=1.0, diverged=False):
    """A test that saw just these losses, whose mean is themselves."""
    rates = list(np.geomspace(low, high, len(losses)))
    return RangeTest(rates, list(losses), list(losses), own, diverged)


def test_the_rate_rises_by_equal_factors_from_one_end_to_the_other(job_of):
    test = sweep_rates(job_of(), 1e-6, 1e-3, 30)
    assert test.rates == pytest.approx(np.geomspace(1e-6, 1e-3, 30).tolist())
    assert len(test.losses) == len(test.smoothed) == 30 and not test.diverged


def test_its_losses_are_those_of_a_loop_by_hand_over_several_epochs(job_of):
    job = job_of()
    model = copy.deepcopy(job.model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    rates, losses = np.geomspace(1e-4, 0.1, 20).tolist(), []
    batches = [batch for epoch in range(9) for batch in job.train_loader.epoch(epoch)]
    assert len(job.train_loader) < 20 < len(batches)
    for rate, (images, labels) in zip(rates, batches, strict=False):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    test = sweep_rates(job, 1e-4, 0.1, 20)
    assert test.losses == pytest.approx(losses, rel=1e-4, abs=1e-5)


def test_the_smoothed_loss_is_the_bias_corrected_moving_mean(job_of):
    test = sweep_rates(job_of(), 1e-5, 1e-2, 20)
    for n in range(1, 21):
        weights = 0.9 ** np.arange(n)[::-1]
        assert test.smoothed[n - 1] == pytest.approx(np.average(test.losses[:n], weights=weights))


def test_the_same_seed_gives_the_same_curve_and_another_another(job_of):
    first, again, other = (
        sweep_rates(job_of(f"seed={seed}"), 1e-6, 1.0, 25).losses for seed in (3, 3, 4)
    )
    assert first == again != other


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"Rprop"}))
def test_every_optimizer_can_be_tested(job_of, name):
    model = "{name: MLP, hidden: [8, 8]}" if name == "Muon" else "LeNet"
    job = job_of(f"optimizer={{name: {name}, lr: 0.001}}", f"model={model}")
    test = sweep_rates(job, 1e-5, 0.1, 20)
    assert len(test.losses) >= 10 and test.own == 0.001


def test_rprop_is_refused_as_it_chooses_its_own_steps(find, capsys):
    assert find("optimizer={name: Rprop, lr: 0.01}") == 2
    assert "Rprop" in capsys.readouterr().err


def test_groups_keep_the_proportions_of_their_rates(job_of, monkeypatch):
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            super().step(closure)

    def two_groups(config, model):
        first, *rest = model.parameters()
        return Spy([{"params": [first]}, {"params": rest, "lr": 0.05}], lr=0.5)

    monkeypatch.setattr(lr_range, "build_optimizer", two_groups)
    test = sweep_rates(job_of(), 1e-5, 1e-2, 20)
    assert [first for first, _ in seen] == pytest.approx(test.rates)
    assert [second for _, second in seen] == pytest.approx([rate / 10 for rate in test.rates])


@pytest.mark.parametrize(
    "scheduler", ["{name: OneCycleLR}", "{name: StepLR, step_size: 1, warmup: 3st}"]
)
def test_the_scheduler_is_put_aside(job_of, scheduler):
    plain = sweep_rates(job_of(), 1e-6, 1e-2, 20)
    assert sweep_rates(job_of(f"scheduler={scheduler}"), 1e-6, 1e-2, 20) == plain


def test_mixed_labels_accumulation_and_clipping_are_as_in_a_run(job_of):
    job = job_of(
        "transforms.train=[{name: Resize, size: [32, 32]}, {name: MixUp}]",
        "train.accumulate=2",
        "train.clip_grad_norm=0.5",
    )
    assert len(sweep_rates(job, 1e-6, 1e-3, 20).losses) == 20


def test_a_loss_that_becomes_no_number_ends_the_test_and_is_no_error(job_of):
    test = sweep_rates(job_of(), 1e-5, 1e30, 60)
    assert test.diverged and len(test.losses) < 60
    assert all(map(np.isfinite, test.losses))
    draw_range(test, None)


def test_the_picture_names_its_lines_beside_them_and_keeps_single_batches_back():
    test = RangeTest([1e-4, 1e-2, 1.0], [1.0, 3.0, 2.0], [1.0, 1.0, 1.0], 0.01, False)
    marked, plain = draw_range(test, 0.5), draw_range(dataclasses.replace(test, own=0.0), None)
    shades = {colour for _, colour in marked.getcolors(1 << 24) or ()}
    rgb = {name: ImageColor.getrgb(name) for name in (*COLOURS, *MARKS)}
    assert rgb[COLOURS[0]] not in shades  # single batches are pale
    assert {rgb[COLOURS[1]], *(rgb[mark] for mark in MARKS)} <= shades
    # Within the axes only the two lines themselves are new: no word lies there.
    changed = ImageChops.difference(marked, plain).crop((100, 44, 720, 276)).convert("L")
    columns = np.flatnonzero(np.asarray(changed).max(axis=0))
    assert 2 <= len(columns) <= 10


def test_the_suggestion_is_half_the_rate_where_nearly_all_of_the_fall_is_done():
    fall = np.concatenate([np.full(20, 2.0), np.linspace(2, 1, 101), np.linspace(1, 9, 10)])
    test = curve(fall, diverged=True)
    assert suggest(test) == pytest.approx(test.rates[20 + 95] / 2, rel=0.15)


def test_what_comes_after_a_jump_counts_for_nothing():
    """As where the few images are known by heart, at rates which no run bears."""
    before = np.concatenate([np.full(20, 1.0), np.linspace(1, 0.5, 21)])
    test = curve([*before, 5.0, *np.linspace(0.5, 0.01, 19)])
    assert test.rates[36] / 2 < suggest(test) < test.rates[41] / 2


def test_what_is_known_by_heart_suggests_no_higher_rate():
    """A loss that is 0 has no gradient: any rate goes on then, and the mean still falls."""
    fall = np.concatenate([np.full(20, 1.0), np.linspace(1, 0.001, 20), np.geomspace(1e-3, 1e-6)])
    test = curve(fall)
    assert suggest(test) < test.rates[40] / 2


def test_single_bad_batches_before_anything_is_learned_do_not_count():
    fall = np.concatenate([np.full(20, 1.0), np.linspace(1, 0.5, 30)])
    fall[12] = 3.0
    test = curve(fall)
    assert test.rates[-4] / 2 < suggest(test) < test.rates[-1] / 2


@pytest.mark.parametrize("seed", range(10))
def test_peaks_of_noise_before_the_fall_do_not_end_the_test(seed):
    """As with class weights or MixUp: at first single batches differ by a factor of two."""
    losses = 2.0 + np.random.default_rng(seed).normal(0, 0.5, 100).clip(-1, 1)
    losses[20:60:4] = 4.5
    losses[60:80] *= np.linspace(1, 0.3, 20)
    losses[80:] *= 0.3
    weights = [0.9 ** np.arange(n)[::-1] for n in range(1, 101)]
    means = [float(np.average(losses[: len(w)], weights=w)) for w in weights]
    rates = np.geomspace(1e-7, 10, 100).tolist()
    assert rates[60] / 2 < suggest(RangeTest(rates, losses.tolist(), means, 0.01, False))


@given(st.lists(st.floats(0, 1e6), max_size=120))
def test_any_losses_give_a_rate_of_the_test_or_a_reason(losses):
    test = curve(losses)
    try:
        assert 2 * suggest(test) in test.rates
    except NoSuggestion as reason:
        assert "no suggestion" in str(reason)


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_suggests_nothing(seed):
    losses = np.random.default_rng(seed).normal(2.3, 0.2, 100)
    weights = [0.9 ** np.arange(n)[::-1] for n in range(1, 101)]
    means = [float(np.average(losses[: len(w)], weights=w)) for w in weights]
    rates = np.geomspace(1e-7, 10, 100).tolist()
    with pytest.raises(NoSuggestion):
        suggest(RangeTest(rates, losses.tolist(), means, 0.01, False))


@pytest.mark.parametrize(
    "losses, advice",
    [
        ([], "Normalize"),
        ([2.0, 3.0, 9.0], "smaller --from"),
        ([2.0] * 40, "a higher --to"),
        ([2.0, 2.1] * 20, "larger loader.batch_size"),
    ],
)
def test_without_a_fall_it_says_so_and_what_to_try(losses, advice):
    with pytest.raises(NoSuggestion, match=f"no suggestion: .*{advice}"):
        suggest(curve(losses))


def test_the_suggestion_trains_better_than_a_hundredth_and_a_hundredfold_of_it(job_of):
    rate = suggest(sweep_rates(job_of(), 1e-7, 10, 100))
    ends = []
    for lr in (rate, rate / 100, rate * 100):
        test = sweep_rates(job_of(f"optimizer.lr={lr}"), lr * 0.999, lr, 40)
        ends.append(test.smoothed[-1] if len(test.losses) == 40 else float("inf"))
    assert ends[0] < min(ends[1:])


def test_the_command_prints_a_rate_to_paste_and_writes_one_picture_and_nothing_else(
    find, tmp_path, capsys
):
    assert find() == 0
    out = capsys.readouterr().out
    rate = float(out.split("optimizer.lr=")[1])
    assert 1e-5 < rate < 1 and f"suggest {rate:.2g}" in out and "the YAML has 0.01" in out
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert [file.name for file in files] == ["find_lr.png"]
    with pytest.raises(UsageError):
        find_run(str(tmp_path / "runs"))


def test_the_picture_goes_where_it_is_asked_to(find, tmp_path):
    target = tmp_path / "new" / "曲线.png"
    assert find("--output", str(target), "--steps", "30", "--from", "1e-4", "--to", "1") == 0
    assert target.read_bytes().startswith(b"\x89PNG") and not (tmp_path / "runs").exists()


def test_where_nothing_can_be_suggested_the_exit_code_is_4_and_the_curve_is_kept(
    find, tmp_path, capsys
):
    assert find("--to", "1e-6", "--steps", "20") == 4
    told = capsys.readouterr()
    assert "no suggestion" in told.err and "find_lr.png" in told.err and "Traceback" not in told.err
    assert "optimizer.lr=" not in told.out
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
