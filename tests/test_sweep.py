"""Sweeps: every trial once, whatever is killed; the same numbers again; faults before any run."""

import csv
import fcntl
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from html.parser import HTMLParser
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.conftest import SMALL, exit_code_of, fork
from trainer import sweep as sweep_command
from trainer.process.errors import ConfigError
from trainer.sweeping import folder as folders
from trainer.sweeping import results, space, study, work
from trainer.sweeping.charts import spread_apart
from trainer.sweeping.page import sweep_page
from trainer.sweeping.plan import load_sweep
from trainer.sweeping.process import values_of
from trainer.sweeping.settings import Range, Sweep
from trainer.sweeping.trials import trials_of

ROOT = Path(__file__).resolve().parent.parent
TWELVE = """
  method: grid
  params:
    optimizer.lr: [0.4, 0.3, 0.2, 0.1]
    optimizer.momentum: [0.0, 0.5, 0.9]
"""
SEARCH = """
  method: tpe
  params:
    optimizer.lr: {{low: 0.001, high: 1.0, log: true}}
    optimizer.momentum: {{low: 0, high: 0.9}}
    loader.batch_size: [4, 8]
  trials: {trials}
"""

# Stands in for `python -m trainer.train`: the folder of a run whose value is 1 - lr, in no time. It
# holds the run's lock, counts ends in ends.txt, and saves an epoch at a time, as a run does.
STUB = """
import fcntl, json, os, signal, sys, time
from pathlib import Path

resume, folder, name, seconds, epochs, settings = json.loads(sys.argv[1])
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
sweep = Path(folder)
run = Path(resume) if resume else sweep / name / f"20260101-000000-{os.getpid() % 65536:04x}"
draws = settings.get("draws")


def told(what):
    with open(sweep / "events.txt", "a") as file:
        file.write(f"{what} {name}\\n" * bool(draws))


told("begin")
if resume and draws:
    time.sleep(0.2)  # it imports
if not resume:
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("train:\\n  epochs: 3\\n  monitor: val/accuracy\\n")
if not resume or draws:
    (run / "result.json").write_text('{"status": "running"}')
lock = open(run / "run.lock", "a")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
path = run / "metrics.jsonl"
done = len(path.read_text().splitlines()) if path.exists() else 0
lr, value = settings["optimizer.lr"], 0.0
if settings.get("fails"):
    print("boom: it does not work")
    sys.exit(settings["fails"])
with open(run / "starts.txt", "a") as file:
    file.write(f"{done}\\n")
for epoch in range(done + 1, epochs + 1):
    time.sleep(seconds / epochs)
    if stopped:
        sys.exit(75)
    value = (1 - lr) * epoch / epochs + 0.001 * settings["seed"]
    line = {"step": epoch, "epoch": epoch, "train/loss_epoch": 1.0, "val/accuracy": value}
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\\n")
if draws:
    told("tested")
    result = {"status": "running", "device": settings["device"], "test": {}}
    (run / "new.json").write_text(json.dumps(result))
    os.replace(run / "new.json", run / "result.json")
    time.sleep(abs(draws))
    if draws < 0 and not resume:
        os.kill(os.getpid(), signal.SIGKILL)
    told("end")
value = (1 - lr) + 0.001 * settings["seed"]
with open(sweep / "ends.txt", "a") as file:
    file.write(f"{name}\\n")
if settings.get("table"):
    (run / "predictions.csv").write_text(settings["table"])
best = {"epoch": epochs, "val/accuracy": value, "val/loss": lr}
result = {"status": "done", "best": best, "test": {"accuracy": value / 2}, "epochs": epochs}
(run / "result.json").write_text(json.dumps(result | {"train_seconds": seconds}))
"""


def stub_command(seconds, epochs=3, fails=lambda member: 0, more=lambda member: {}):
    def command(plan, folder, member):
        run = folders.newest_run(folder / member.name)
        settings = {**member.trial.settings, "seed": member.seed, "fails": fails(member)}
        settings |= more(member)
        settings.setdefault("optimizer.lr", 0.1)
        given = [run and str(run), str(folder), member.name, seconds, epochs, settings]
        return [sys.executable, "-S", "-c", STUB, json.dumps(given)]

    return command


@pytest.fixture
def write(tmp_path, config_file):
    """Write a sweep of the small configuration; its path."""

    def written(sweep, name="trial.yaml", base="small.yaml"):
        path = tmp_path / name
        path.write_text(f"base: {base}\nsweep:{sweep}")
        return path

    return written


@pytest.fixture
def swept(write, tmp_path, monkeypatch):
    """Run a sweep in this process, with the stand-in for its runs; its folder, and the code."""

    def run(
        sweep,
        *more,
        seconds=0.0,
        fails=lambda member: 0,
        name="trial.yaml",
        epochs=3,
        stub=lambda member: {},
    ):
        monkeypatch.setattr(
            "trainer.sweeping.process.train_command", stub_command(seconds, epochs, fails, stub)
        )
        monkeypatch.setattr(work, "ASK_EVERY", 0.05)
        monkeypatch.setattr(work, "LOOK_EVERY", 0.005)
        # So that no process begins as a copy of this one: the stand-in soon ends by itself.
        monkeypatch.setattr("trainer.sweeping.process.end_with", lambda parent: None)
        file = write(sweep, name)
        code = sweep_command.main(["--config", str(file), "--runs", str(tmp_path / "runs"), *more])
        return tmp_path / "runs" / file.stem, code

    return run


def found(folder):
    return json.loads((folder / "sweep.json").read_text())


def ends(folder):
    return Counter((folder / "ends.txt").read_text().split())


# What is asked for


def test_every_fault_of_a_sweep_and_of_what_it_sets_is_told_at_once(write):
    path = write("""
  method: gird
  parms: {}
  params:
    optimizer.lr: [0.1, many, 0.1]
    optimizer.learning: [1]
    seed: [0, 1]
    model: [LeNet, {name: LeNett}]
    train.epochs: {low: 5, high: 2}
    loader.batch_size: {low: 0, high: 8}
    transforms.train.9.padding: [1]
  seeds: [1, 1]
  prune: {name: MedianPrunner}
  storage: mysql://host/x
""")
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    told = {(fault.line, fault.path): fault.message for fault in caught.value.faults}
    lines = [line or 0 for line, _ in told]
    assert lines == sorted(lines)
    expected = {
        (3, "sweep.method"): "did you mean 'grid'",
        (4, "sweep.parms"): "did you mean 'params'",
        (6, "sweep.params.optimizer.lr.1"): "expected a number",
        (6, "sweep.params.optimizer.lr.2"): "listed twice",
        (7, "sweep.params.optimizer.learning.0"): "unknown key 'learning'",
        (8, "sweep.params.seed"): "'seeds: [0, 1, 2]'",
        (9, "sweep.params.model.1"): "did you mean 'LeNet'",
        (10, "sweep.params.train.epochs.high"): "more than low (5), got 2",
        (11, "sweep.params.loader.batch_size.low"): "at least 1, got 0",
        (12, "sweep.params.transforms.train.9.padding.0"): "is a list with items 0 to 2",
        (13, "sweep.seeds.1"): "listed twice",
        (14, "sweep.prune.name"): "did you mean 'MedianPruner'",
        (15, "sweep.storage"): "storage: FILE",
    }
    assert set(told) == set(expected)
    for place, words in expected.items():
        assert words in told[place], place


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n  method: grid\n", "nothing is varied"),
        ("\n  method: random\n  params: {optimizer.lr: [1]}\n", "must know how many"),
        ("\n  method: grid\n  trials: 3\n  params: {optimizer.lr: [1]}\n", "every combination"),
        ("\n  method: grid\n  params: {optimizer.lr: {low: 1, high: 2}}\n", "a list of choices"),
        ("\n  method: grid\n  params: {optimizer.lr: []}\n", "no choice; write values, such as"),
        ("\n  method: tpe\n  trials: 2\n  seeds: [0]\n", "'params' is missing"),
        (
            "\n  method: random\n  trials: 2\n  params: {seed: [1]}\n  prune: MedianPruner\n",
            "only method: tpe",
        ),
        (
            "\n  method: tpe\n  trials: 2\n  params: {optimizer.lr: {low: 0, high: 1}}\n"
            "  prune: {name: MedianPruner, n_warm: 2}\n",
            "unknown key 'n_warm'; did you mean 'n_warmup_steps'?",
        ),
        (
            "\n  method: tpe\n  trials: 2\n"
            "  params: {optimizer.lr: {low: 0, high: 1, log: true}}\n",
            "more than 0, got 0",
        ),
        (
            "\n  method: grid\n  params: {train.monitor: [val/loss]}\n",
            "must be the same for all",
        ),
        (
            "\n  method: grid\n  params:\n    optimizer: [{name: SGD, lr: 1.0}, {name: AdamW}]\n"
            "    optimizer.momentum: [0.5]\n",
            "(with optimizer={name: AdamW} optimizer.momentum=0.5)",
        ),
        ("\n  method: grid\n  params: {metrics: [[macro_f1]]}\n", "'val/accuracy' is not measured"),
    ],
)
def test_what_does_not_go_together_is_refused(write, text, words):
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(text))
    assert any(words in fault.message for fault in caught.value.faults), str(caught.value)


def test_losses_are_not_varied_where_trials_are_compared_by_their_values(write):
    text = "\n  method: grid\n  params:\n    loss.label_smoothing: [0.0, 0.2]\n"
    text += "    optimizer.lr: [0.1, 0.2]\n"
    assert load_sweep(write(text)).monitor == "val/accuracy"
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(text), ["train.monitor=val/loss"])
    (fault,) = caught.value.faults
    assert (fault.line, fault.path) == (5, "sweep.params.loss.label_smoothing")
    assert "changes what val/loss measures" in fault.message


def test_each_needs_lists_and_no_number_of_trials_which_is_told_at_their_lines(write):
    text = "\n  method: each\n  trials: 3\n  params: {optimizer.lr: {low: 1, high: 2}}\n"
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(text))
    told = {(fault.line, fault.path): fault.message for fault in caught.value.faults}
    assert sorted(told) == [(4, "sweep.trials"), (5, "sweep.params.optimizer.lr")]
    assert "each tries each choice once; remove it" in told[4, "sweep.trials"]
    assert "each needs a list of choices, not a range" in told[5, "sweep.params.optimizer.lr"]


def test_a_fault_is_told_before_torch_is_imported_and_nothing_is_written(write, tmp_path):
    path = write("\n  method: grid\n  params: {optimizer.lrr: [1]}\n")
    code = (
        "import sys; from trainer.sweep import main\n"
        f"code = main(['--config', {str(path)!r}, '--runs', {str(tmp_path / 'runs')!r}])\n"
        "assert 'torch' not in sys.modules and 'optuna' not in sys.modules\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"{path}:4:28: sweep.params.optimizer.lrr.0: unknown key 'lrr'" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_base_with_faults_or_none_at_all_is_told(write, tmp_path, config_file):
    config_file.write_text(SMALL.format(root="x").replace("epochs: 2", "epochs: 0"))
    with pytest.raises(ConfigError, match="small.yaml:15:17: train.epochs"):
        load_sweep(write(TWELVE))
    with pytest.raises(ConfigError, match="absent.yaml does not exist"):
        load_sweep(write(TWELVE, base="absent.yaml"))


@pytest.mark.parametrize("path", sorted(Path("configs/sweeps").glob("*.yaml")), ids=str)
def test_every_shipped_sweep_is_without_fault(path, capsys):
    assert sweep_command.main(["--config", str(path), "--dry-run"]) == 0
    assert f"python -m trainer.sweep --config {path}" in path.read_text()
    assert "no trial was begun" in capsys.readouterr().out


# Which settings are tried


def test_a_grid_is_every_combination_the_last_key_fastest():
    sweep = Sweep(method="grid", params={"a": [1, 2], "b": ["x", "y", "z"], "c": [True]})
    expected = [{"a": a, "b": b, "c": c} for a, b, c in product([1, 2], "xyz", [True])]
    assert space.points(sweep) == expected and space.count(sweep) == 6


def test_each_choice_is_tried_once_with_the_first_choices_of_the_other_keys():
    sweep = Sweep(method="each", params={"a": [1, 2, True], "b": ["x"], "c": [0.5, 0.25]})
    a, b, c = "abc"
    expected = [
        {a: 1, b: "x", c: 0.5},
        {a: 2, b: "x", c: 0.5},
        {a: True, b: "x", c: 0.5},
        {a: 1, b: "x", c: 0.25},
    ]
    # As text: 1 == True.
    assert list(map(str, space.points(sweep))) == list(map(str, expected))
    assert space.count(sweep) == 4
    only_seeds = Sweep(method="each", seeds=[0, 1])
    assert space.points(only_seeds) == [{}] and space.count(only_seeds) == 1


def test_random_settings_depend_on_seed_number_and_key_alone():
    params: dict[str, Any] = {"a": Range(low=0.0, high=1.0), "b": [1, 2, 3]}
    first = space.points(Sweep(method="random", params=params, trials=5, seed=1))
    longer = {**params, "c": Range(low=1, high=9)}
    more = space.points(Sweep(method="random", params=longer, trials=9, seed=1))
    other = space.points(Sweep(method="random", params=params, trials=5, seed=2))
    assert [{"a": s["a"], "b": s["b"]} for s in more[:5]] == first != other


def test_random_settings_are_evenly_spread_over_their_range():
    ranges = {
        "float": (Range(low=-1.0, high=3.0), lambda v: (v + 1) / 4),
        "log": (Range(low=1e-4, high=1.0, log=True), lambda v: (4 + math.log10(v)) / 4),
    }
    params: dict[str, Any] = {key: found for key, (found, _) in ranges.items()}
    drawn = space.points(Sweep(method="random", trials=2000, params=params))
    for key, (_, share) in ranges.items():
        shares = sorted(share(settings[key]) for settings in drawn)
        # Kolmogorov-Smirnov: 1.63 / sqrt(n) is exceeded once in a hundred times.
        largest = max(abs(s - (i + 0.5) / len(shares)) for i, s in enumerate(shares))
        assert largest < 1.63 / len(shares) ** 0.5
    whole = Sweep(
        method="random",
        trials=3000,
        params={
            "int": Range(low=2, high=4),
            "step": Range(low=0.0, high=0.3, step=0.1),
            "choice": ["a", "b"],
            "octave": Range(low=1, high=64, log=True),
        },
    )
    settings = space.points(whole)
    counts = Counter(s["int"] for s in settings)
    assert sorted(counts) == [2, 3, 4] and min(counts.values()) > 900
    assert sorted({round(s["step"], 9) for s in settings}) == [0.0, 0.1, 0.2, 0.3]
    assert set(Counter(s["choice"] for s in settings)) == {"a", "b"}
    octaves = [s["octave"] for s in settings]
    assert min(octaves) == 1 and max(octaves) == 64 and all(type(v) is int for v in octaves)


def test_settings_become_overrides_that_mean_the_same(write):
    choices = (
        "[{name: SGD, lr: 1e-3, nesterov: false, momentum: 0.5}, {name: AdamW, betas: [0.8, 0.9]}]"
    )
    plan = load_sweep(write(f"\n  method: grid\n  params: {{optimizer: {choices}}}\n"))
    from trainer.config import load_config

    for settings in space.points(plan.sweep):
        config = load_config(plan.base, plan.arguments(settings, 3, None))
        optimizer = config.optimizer.model_dump()
        assert optimizer == settings["optimizer"] and config.seed == 3


# How it runs


def test_mean_deviation_and_spread_over_seeds_are_those_of_the_statistics_module(swept):
    folder, code = swept(
        "\n  method: grid\n  params: {optimizer.lr: [0.5, 0.25]}\n  seeds: [0, 1, 7]\n"
    )
    assert code == 0
    for trial, lr in zip(found(folder)["trials"], (0.5, 0.25), strict=True):
        values = [1 - lr + 0.001 * seed for seed in (0, 1, 7)]
        assert [run["seed"] for run in trial["runs"]] == [0, 1, 7]
        assert trial["mean"] == pytest.approx(statistics.fmean(values), abs=1e-12)
        assert trial["std"] == pytest.approx(statistics.stdev(values), abs=1e-12)
        assert (trial["min"], trial["max"]) == (min(values), max(values))
        assert trial["test"]["accuracy"] == pytest.approx(statistics.fmean(values) / 2)
    assert found(folder)["best"] == 1


def test_the_best_is_chosen_by_validation_and_the_direction_of_its_metric(write):
    def row(number, values, loss=1.0, test=0.0):
        return results.Row(number, {}, "done", [], values, loss, {"accuracy": test}, 0, 1, "")

    plan = load_sweep(write(TWELVE))
    rows = [row(0, [0.8, 0.6], test=1.0), row(1, [0.9, 0.7]), row(2, [0.8, 0.8], loss=0.5)]
    assert [r.number for r in results.ranked(plan, rows)] == [2, 1, 0]
    by_loss = load_sweep(write(TWELVE), ["train.monitor=val/loss"])
    assert [r.number for r in results.ranked(by_loss, rows)] == [0, 2, 1]


def test_a_trial_that_fails_ends_neither_the_sweep_nor_counts_as_the_best(swept, capsys):
    fails = {"t001-seed0": 4, "t004-seed0": 7}
    folder, code = swept(TWELVE, fails=lambda member: fails.get(member.name, 0))
    assert code == 0
    states = [trial["status"] for trial in found(folder)["trials"]]
    assert Counter(states) == {"done": 10, "failed": 2}
    assert states[1] == states[4] == "failed"
    assert "exit code 4: boom: it does not work" in found(folder)["trials"][1]["reason"]
    live, failed = (
        line for line in capsys.readouterr().out.splitlines() if "boom" in line and "t001" in line
    )
    assert "momentum=0.5  (failed: exit code 4: boom: it does not work); best t000" in live
    assert failed == "failed  t001: exit code 4: boom: it does not work"
    swept(TWELVE)  # what failed is not tried again by itself,
    assert Counter(t["status"] for t in found(folder)["trials"])["failed"] == 2
    swept(TWELVE, "--retry")  # but when it is asked for
    assert Counter(t["status"] for t in found(folder)["trials"]) == {"done": 12}
    assert set(ends(folder).values()) == {1} and len(ends(folder)) == 12


def test_where_every_trial_fails_the_code_says_so(swept, capsys):
    _, code = swept(TWELVE, fails=lambda member: 3)
    assert code == 5
    assert "every trial failed; t000: exit code 3: boom" in capsys.readouterr().err


def test_a_run_that_is_killed_each_time_is_given_up(swept, monkeypatch):
    monkeypatch.setattr("trainer.sweeping.process.train_command", None)
    kill = "import os; os.kill(os.getpid(), 9)"
    killed = [sys.executable, "-S", "-c", kill]
    text = "\n  method: grid\n  params: {optimizer.lr: [0.5, 0.25]}\n"
    normal = stub_command(0.0)
    starts = []

    def command(plan, folder, member):
        starts.append(member.name)
        return killed if member.trial.number == 0 else normal(plan, folder, member)

    monkeypatch.setattr(sys.modules[__name__], "stub_command", lambda *_: command)
    folder, code = swept(text)
    assert code == 0 and Counter(starts) == {"t000-seed0": 3, "t001-seed0": 1}
    assert found(folder)["trials"][0]["reason"] == "killed by signal 9, 3 times"


def test_runs_that_ended_are_never_made_again_and_more_seeds_add_to_them(swept):
    text = "\n  method: grid\n  params: {optimizer.lr: [0.5, 0.25]}\n  seeds: [0]\n"
    folder, _ = swept(text)
    swept(text)
    assert ends(folder) == {"t000-seed0": 1, "t001-seed0": 1}
    swept(text.replace("[0]", "[0, 1]"))
    assert len(ends(folder)) == 4 and set(ends(folder).values()) == {1}
    assert [len(trial["runs"]) for trial in found(folder)["trials"]] == [2, 2]


def test_another_sweep_does_not_go_on_in_the_folder(swept, capsys):
    folder, _ = swept(TWELVE)
    before = (folder / "plan.json").read_text()
    _, code = swept(TWELVE.replace("0.4", "0.5"))
    told = capsys.readouterr().err
    assert code == 2 and "sweep.params: is " in told and "began with" in told
    _, code = swept(TWELVE, "train.epochs=9")
    told = capsys.readouterr().err
    assert code == 2 and "train.epochs: is 9" in told
    assert (folder / "plan.json").read_text() == before
    assert swept(TWELVE, "log.images=2")[1] == 0


def test_a_stop_leaves_in_order_and_the_same_command_goes_on(swept, monkeypatch, capsys):
    print_trial, ended = sweep_command.print_trial, []

    def print_and_stop(trial, work):
        print_trial(trial, work)
        ended.append(trial)
        if len(ended) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_command, "print_trial", print_and_stop)
        folder, code = swept(TWELVE, "--jobs", "2", seconds=0.6)
    told = capsys.readouterr().err
    assert code == 75 and "to go on:\n  python -m trainer.sweep --config" in told
    assert 0 < len(list(folder.glob("*/end.json"))) < 12
    assert Counter(t["status"] for t in found(folder)["trials"])["begun"] in (1, 2)
    for path in folder.glob("*/claim.lock"):  # nobody is left
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _, code = swept(TWELVE)
    assert code == 0 and set(ends(folder).values()) == {1} and len(ends(folder)) == 12


def begin(file, runs, seconds, *more, told="told.txt"):
    """Begin a sweep in a process of its own, with the stand-in for its runs."""

    def sweep():
        patch = pytest.MonkeyPatch()  # of this fork
        patch.setattr("trainer.sweeping.process.train_command", stub_command(seconds))
        patch.setattr(work, "LOOK_EVERY", 0.01)
        patch.setattr(work, "ASK_EVERY", 0.1)
        return sweep_command.main(["--config", str(file), "--runs", str(runs), *more])

    return fork(file.with_name(told), sweep)


def children_of(pid):
    """The processes that ``pid`` started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, no run begins before another's end")
@pytest.mark.parametrize(
    ("sweep", "device", "begins_early"),
    [
        ("\n  method: grid\n  params: {optimizer.lr: [0.4, 0.3, 0.2, 0.1]}\n", "cpu (2)", True),
        ("\n  method: grid\n  params: {optimizer.lr: [0.4, 0.3]}\n", "cuda:0 (H200)", False),
        (SEARCH.format(trials=2), "cpu (2)", False),
    ],
)
def test_on_a_cpu_the_next_run_of_a_list_begins_while_one_draws_and_no_more(
    swept, sweep, device, begins_early
):
    draws = {0: 0.6, 1: -1.2}  # seconds; trial 1 is then killed, the first time

    def more(member):
        return {"draws": draws.get(member.trial.number, 0.4), "device": device}

    folder, code = swept(sweep, seconds=0.1, stub=more)
    assert code == 0 and set(ends(folder).values()) == {1}
    busy: set[str] = set()
    drawing: set[str] = set()
    early = 0
    for line in (folder / "events.txt").read_text().splitlines():
        what, name = line.split()
        if what == "begin":
            drawing.discard(name)  # it was killed
            assert not busy and len(drawing) <= 1
            busy, early = {name}, early + len(drawing)
        elif what == "tested":
            busy.remove(name)
            drawing.add(name)
        else:
            drawing.remove(name)
    assert (early > 0) == begins_early


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for children")
@pytest.mark.parametrize("children_too", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_of_twelve_trials_killed_twice_all_end_and_none_twice(write, tmp_path, children_too):
    file, runs = write(TWELVE), tmp_path / "runs"
    folder = runs / "trial"

    def is_under_way():
        metrics = folder.glob("*/*/metrics.jsonl")
        return any(path.read_text().count("\n") == 1 for path in metrics)  # of 3 epochs

    for ended in (3, 7):
        process = begin(file, runs, 0.9, "--jobs", "2")
        wait_for(lambda ended=ended: len(list(folder.glob("*/end.json"))) >= ended)
        wait_for(is_under_way)
        pid = process.pid
        for victim in [pid, *(children_of(pid) if children_too else [])]:
            os.kill(victim, signal.SIGKILL)
        process.join()
        assert len(list(folder.glob("*/end.json"))) < 12
    last = begin(file, runs, 0.05, "--jobs", "2")
    assert exit_code_of(last) == 0, file.with_name("told.txt").read_text()
    assert Counter(trial["status"] for trial in found(folder)["trials"]) == {"done": 12}
    assert len(ends(folder)) == 12 and set(ends(folder).values()) == {1}
    # What was interrupted went on in its own run: there is one folder a trial, but for those
    # that were killed before they had begun one.
    assert all(len(list(path.glob("2026*"))) == 1 for path in folder.glob("t0*"))
    starts = [path.read_text().split() for path in folder.glob("*/*/starts.txt")]
    assert max(map(len, starts)) >= 2


def test_a_run_whose_sweep_was_killed_is_not_taken_while_its_process_lives(
    write, tmp_path, monkeypatch
):
    plan = load_sweep(write("\n  method: grid\n  seeds: [0]\n"))
    folder, identity = folders.open_folder(plan, tmp_path / "runs")
    member = folders.members_of(plan, trials_of(plan, folder, identity).known()[0])[0]
    taken = folders.claim(folder / member.name)
    assert taken is not None
    child = subprocess.Popen(["sleep", "60"], pass_fds=(taken.fileno(),))
    taken.close()  # as when this process dies
    try:
        assert folders.claim(folder / member.name) is None
    finally:
        child.kill()
        child.wait()
    again = folders.claim(folder / member.name)
    assert again is not None
    again.close()


def test_two_workers_share_a_grid_and_make_no_run_twice(write, tmp_path):
    file, runs = write(TWELVE), tmp_path / "runs"
    two = [begin(file, runs, 0.1, told=name) for name in ("one", "two")]
    codes = [exit_code_of(worker, 90) for worker in two]
    told = [file.with_name(name).read_text() for name in ("one", "two")]
    assert codes == [0, 0], told
    folder = runs / "trial"
    assert len(ends(folder)) == 12 and set(ends(folder).values()) == {1}
    assert all("12 done" in text for text in told)


def test_a_run_that_ended_unseen_is_only_written_down(swept, write, tmp_path):
    text = "\n  method: grid\n  params: {optimizer.lr: [0.5, 0.25]}\n"
    folder, _ = swept(text)
    (folder / "t001-seed0" / "end.json").unlink()  # as if killed right before
    folder, code = swept(text)
    assert code == 0 and ends(folder) == {"t000-seed0": 1, "t001-seed0": 1}
    assert Counter(trial["status"] for trial in found(folder)["trials"]) == {"done": 2}


@pytest.mark.parametrize(
    "edited", ["half a fi", "[]", '{"status": "done"}', {"value": "high"}, {"test": {"a": []}}]
)
def test_an_end_that_somebody_has_edited_costs_its_trial_only(swept, capsys, edited):
    text = "\n  method: grid\n  params: {optimizer.lr: [0.5, 0.25]}\n"
    folder, _ = swept(text)
    file = folder / "t001-seed0" / "end.json"
    before = json.loads(file.read_text())
    file.write_text(edited if isinstance(edited, str) else json.dumps(before | edited))
    folder, code = swept(text)
    first, second = found(folder)["trials"]
    assert code == 0 and (first["status"], second["status"]) == ("done", "failed")
    assert f"{file} is damaged; without it, the sweep takes the run's own result" in (
        capsys.readouterr().out
    )
    file.unlink()
    folder, _ = swept(text)
    again = json.loads(file.read_text())
    unknown = {name: before[name] for name in ("ended", "wall_seconds")}  # its process is gone
    assert (
        again | unknown == before
        and again["wall_seconds"] is None
        and set(ends(folder).values()) == {1}
    )


def test_a_damaged_result_costs_its_trial_only(swept):
    text = "\n  method: grid\n  params: {optimizer.lr: [0.5, 0.25]}\n"
    folder, _ = swept(text)
    (folder / "t001-seed0" / "end.json").unlink()
    (result,) = (folder / "t001-seed0").glob("*/result.json")
    result.write_text('{"status": "do')
    folder, code = swept(text)  # the run is resumed, as one that was killed
    assert code == 0
    assert Counter(trial["status"] for trial in found(folder)["trials"]) == {"done": 2}


# Studies


def numbers_of(folder):
    return [trial["settings"] for trial in found(folder)["trials"]]


def test_a_search_is_the_same_again_and_whatever_is_killed(swept, monkeypatch):
    folder, code = swept(SEARCH.format(trials=12))
    again, _ = swept(SEARCH.format(trials=12), name="again.yaml")
    assert code == 0 and numbers_of(folder) == numbers_of(again) and len(numbers_of(folder)) == 12
    part, _ = swept(SEARCH.format(trials=5), name="part.yaml")
    swept(SEARCH.format(trials=12), name="part.yaml")  # in two goes, with a sampler each
    assert numbers_of(part) == numbers_of(folder)
    assert set(ends(part).values()) == {1} and len(ends(part)) == 12


def test_a_search_learns_from_what_it_saw(swept):
    folder, _ = swept(SEARCH.format(trials=40))  # the stand-in is best at the lowest lr
    rates = [settings["optimizer.lr"] for settings in numbers_of(folder)]
    assert statistics.median(rates[25:]) < 0.3 * statistics.median(rates[:10])


def test_two_workers_share_one_study(write, tmp_path):
    file, runs = write(SEARCH.format(trials=12)), tmp_path / "runs"
    two = [begin(file, runs, 0.3, told=name) for name in ("one", "two")]
    codes = [exit_code_of(worker, 90) for worker in two]
    told = [file.with_name(name).read_text() for name in ("one", "two")]
    assert codes == [0, 0], told
    folder = runs / "trial"
    assert len(ends(folder)) == 12 and set(ends(folder).values()) == {1}
    assert all(text.count("best t") >= 2 for text in told), told  # lines of trials: both worked
    rates = [settings["optimizer.lr"] for settings in numbers_of(folder)]
    assert len(set(rates)) == 12  # none drew what the other drew


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_with_the_runs_it_had(write, tmp_path):
    file, runs = write(SEARCH.format(trials=6)), tmp_path / "runs"
    folder = runs / "trial"
    process = begin(file, runs, 0.6)
    wait_for(lambda: len(list(folder.glob("*/*/starts.txt"))) >= 3)
    process.kill()
    process.join()
    last = begin(file, runs, 0.05)
    assert exit_code_of(last) == 0, file.with_name("told.txt").read_text()
    assert len(ends(folder)) == 6 and set(ends(folder).values()) == {1}
    assert all(len(list(path.glob("2026*"))) == 1 for path in folder.glob("t0*"))


def test_trials_that_promise_little_are_stopped_by_their_first_seed(swept):
    text = """
  method: tpe
  params: {optimizer.lr: {low: 0.0, high: 1.0}}
  trials: 8
  seeds: [0, 1]
  prune: {name: MedianPruner, n_startup_trials: 2}
"""
    folder, code = swept(text, seconds=0.8, epochs=8)
    assert code == 0
    trials = found(folder)["trials"]
    states = Counter(trial["status"] for trial in trials)
    assert states["pruned"] >= 1 and states["done"] >= 2 and sum(states.values()) == 8
    for trial in trials:
        pruned = trial["status"] == "pruned"
        assert len(trial["runs"]) == (1 if pruned else 2)
        assert pruned == (trial["runs"][0]["epochs"] < 8)
    assert trials[found(folder)["best"]]["status"] == "done"


@pytest.fixture
def two_folders(write, tmp_path, monkeypatch):
    """Two machines, each with a folder of its own, and one study."""
    monkeypatch.setattr(study, "ALIVE_EVERY", 0.0)

    def opened(trials=3, method="tpe"):
        text = SEARCH.format(trials=trials)
        if method == "grid":
            text = "\n  method: grid\n  params: {optimizer.lr: [0.4, 0.3, 0.2]}\n"
        file = write(f"{text}  storage: {tmp_path / 'shared.journal'}\n")
        plan = load_sweep(file)
        machines = [folders.open_folder(plan, tmp_path / name) for name in ("one", "two")]
        return [study.Study(plan, *machine) for machine in machines]

    return opened


@pytest.mark.parametrize("method", ["tpe", "grid"])
def test_machines_with_folders_of_their_own_share_a_study(two_folders, method):
    one, two = two_folders(method=method)
    asked = [one.ask(), two.ask(), one.ask(), two.ask()]
    assert [trial and trial.number for trial in asked] == [0, 1, 2, None]
    assert [trial.number for trial in one.known()] == [0, 2]
    assert [trial.number for trial in two.known()] == [1]
    assert one.others() == 1 and two.others() == 2
    end = {"status": "done", "value": 0.5, "best": {}, "test": {}, "epochs": 1, "seconds": 1.0}
    end |= {"seed": 0, "fold": None, "reason": "", "run": "x", "epoch": 1}
    two.tell(asked[1], [end], 0.5)
    assert one.others() == 0
    assert [elsewhere for _, elsewhere in one.everything()] == [None, [end], None]


def test_the_trial_of_a_machine_that_is_gone_is_made_by_another(two_folders, monkeypatch):
    one, two = two_folders()
    lost = one.ask()
    assert two.others() == 1 and two.ask().number == 1
    one.alive([lost])  # a sign of life: it is waited for
    monkeypatch.setattr(study, "LOST_AFTER", -1.0)
    assert two.others() == 1  # the sign has changed
    assert two.others() == 0  # and now no more
    taken = two.ask()
    assert (taken.number, taken.settings) == (lost.number, lost.settings)
    assert one.known() == []  # should it come back
    one.tell(lost, [], 0.5)  # nothing: it is too late
    assert [trial.number for trial in two.known()] == [0, 1]


def test_of_two_trials_of_one_number_the_first_counts(two_folders, monkeypatch):
    one, two = two_folders(trials=1)
    real, stale = (
        two.counted,
        [dict[int, Any]()],
    )  # it asks in the same moment, and does not see the other's yet
    monkeypatch.setattr(two, "counted", lambda: stale.pop() if stale else real())
    assert one.ask().number == 0
    assert two.ask() is None and two.known() == [] and len(one.known()) == 1


def test_a_process_killed_while_it_asked_leaves_a_trial_that_the_next_completes(
    two_folders, monkeypatch
):
    one, _ = two_folders()
    whole = study.Study(one.plan, one.folder, one.identity)
    with monkeypatch.context() as patch:
        patch.setattr(one, "_settle", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            one.ask()
    assert whole.known() == []
    asked = [whole.ask(), whole.ask()]
    assert [trial and trial.number for trial in asked] == [0, 1]


def test_no_default_of_another_version_of_optuna_moves_a_draw(write, tmp_path, monkeypatch):
    text = """
  method: tpe
  params: {optimizer.lr: {low: 0.0, high: 1.0}, loader.batch_size: [1, 2, 3]}
  trials: 13
"""
    plan = load_sweep(write(text))

    def drawn(name):
        one = study.Study(plan, *folders.open_folder(plan, tmp_path / name))
        for number in range(13):  # TPE itself draws from the eleventh on
            trial = one.ask()
            assert trial is not None
            one.tell(trial, [{"status": "done"}], (trial.settings["optimizer.lr"] - 0.3) ** 2)
            assert trial.number == number
            yield trial.settings

    class Otherwise(optuna.samplers.TPESampler):
        def __init__(self, **given):
            others = {"multivariate": False, "constant_liar": False}
            super().__init__(**{**others, "n_startup_trials": 3, "n_ei_candidates": 5, **given})

    first = list(drawn("first"))
    monkeypatch.setattr(optuna.samplers, "TPESampler", Otherwise)
    assert list(drawn("second")) == first


def test_another_sweep_does_not_join_a_study(two_folders, tmp_path, write):
    from trainer.process.errors import RunError

    one, _ = two_folders()
    other = write(f"{SEARCH.format(trials=3)}  seed: 5\n  storage: {tmp_path / 'shared.journal'}\n")
    with pytest.raises(RunError, match="another sweep"):
        study.Study(load_sweep(other), one.folder, "x")


def test_what_an_extra_is_missing_for_is_told(write, monkeypatch, capsys, tmp_path):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    file = write(SEARCH.format(trials=3))
    assert sweep_command.main(["--config", str(file), "--runs", str(tmp_path / "runs")]) == 2
    assert 'optuna, an extra: python -m pip install -e ".[sweep]"' in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_journal_that_cannot_be_written_is_told(write, tmp_path, capsys):
    pytest.importorskip("optuna")
    journal = tmp_path / "nowhere" / "shared.journal"
    file = write(f"{SEARCH.format(trials=3)}  storage: {journal}\n")
    assert sweep_command.main(["--config", str(file), "--runs", str(tmp_path / "runs")]) == 5
    told = capsys.readouterr().err
    assert str(journal) in told and "Traceback" not in told


@pytest.mark.parametrize("address", ["postgresql://me@server/sweeps", "mysql://host/x"])
def test_a_database_is_refused_and_the_file_that_does_the_same_is_named(
    write, tmp_path, capsys, address
):
    file = write(f"{SEARCH.format(trials=3)}  storage: {address}\n")
    assert sweep_command.main(["--config", str(file), "--runs", str(tmp_path / "runs")]) == 2
    told = capsys.readouterr().err
    assert "sweep.storage: " in told and "write storage: FILE, a journal file on a shared" in told
    assert not (tmp_path / "runs").exists()


# What it leaves


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        if tag not in ("meta", "link", "path", "circle", "img"):
            self.open.append(tag)
        self.outside += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag
        else:
            assert tag in ("path", "circle")


def test_a_sweep_tells_the_notes_on_the_data_once_with_the_images_left_out(
    swept, capsys, tmp_path, monkeypatch
):
    left_out = [{"path": f"{i}.jpg", "reason": "truncated"} for i in range(13)]
    notes = ["2 groups of equal images\n  a = b", "left out 3: 3 .heic", "  a.heic"]
    content = {"dataset": {"notes": notes, "left_out": left_out}}
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert work.notes_on_data(tmp_path) == [
        *("2 groups of equal images", "left out 3: 3 .heic"),
        "13 images could not be read and were left out",
    ]
    monkeypatch.setattr(work, "notes_on_data", lambda run: [f"the data of {run.parent.name}"])
    _, code = swept("\n  method: grid\n  params:\n    optimizer.lr: [0.1, 0.2]\n", "--jobs", "1")
    assert code == 0 and capsys.readouterr().out.count("note    the data of t") == 1


def test_labels_of_one_axis_lie_apart_in_the_order_of_their_values_and_near_their_places():
    crowded = [100.0, 101.0, 40.0, 219.0, 220.0, 30.0]
    moved = spread_apart(crowded, 30, 220)
    assert sorted(range(6), key=lambda i: moved[i]) == sorted(range(6), key=lambda i: crowded[i])
    ordered = sorted(moved)
    assert all(low + 14.9 < high for low, high in pairwise(ordered))
    assert 30 <= ordered[0] and ordered[-1] <= 220
    assert max(abs(a - b) for a, b in zip(crowded, moved, strict=True)) < 15
    assert spread_apart([50.0, 80.0], 30, 220) == [50.0, 80.0]
    many = sorted(spread_apart([100.0] * 40, 30, 220))
    assert [round(spot, 6) for spot in many] == [round(30 + i * 190 / 39, 6) for i in range(40)]


@pytest.mark.parametrize("each", [1, 2])
def test_a_dash_is_explained_only_where_one_is_drawn(write, each):
    plan = load_sweep(write("\n  method: grid\n  params:\n    optimizer.lr: [0.1, 0.2]\n"))
    rows = [
        results.Row(n, settings, "done", [], [0.4, 0.5][:each], 0, {}, 9.0, 1.0, "")
        for n, settings in enumerate(space.points(plan.sweep))
    ]
    content = sweep_page(plan, rows)
    assert ("A red dash" in content) == (each > 1) and "A dot is a run." in content


def test_the_page_labels_every_choice_in_full_and_gives_the_wall_time(write):
    optimizers = ["SGD", "{name: AdamW, weight_decay: 0.05, betas: [0.9, 0.95]}", "Adam"]
    text = (
        f"\n  method: grid\n  params:\n    optimizer: [{', '.join(optimizers)}]\n"
        "    optimizer.lr: [0.001, 0.0011, 0.0012, 0.005, 0.1]\n"
    )
    plan = load_sweep(write(text))
    rows = []
    for number, settings in enumerate(space.points(plan.sweep)):
        stamp = f"20260131-12{number:02d}00-ab12"
        ended = f"2026-01-31 13:{number:02d}:30"
        end = {"run": f"t/{stamp}", "ended": ended, "status": "done", "seed": 0, "fold": None}
        end |= {"value": 0.5, "epoch": 1}
        rows.append(results.Row(number, settings, "done", [end], [0.5], 0, {}, 9.0, 1.0, ""))
    content = sweep_page(plan, rows)
    assert "1h14m, from 2026-01-31 12:00:00 to 2026-01-31 13:14:30" in content
    edited = ["yesterday", 7.5, None, "2026-01-31T19:00:00+01:00", "2026-02-31 12:00:00"]
    for row, other in zip(rows, edited, strict=False):
        row.runs[0]["ended"] = other  # type: ignore[index]
    rows[5].runs[0]["run"] = "t/20261331-120000-ab12"  # type: ignore[index]
    assert "1h14m, from 2026-01-31 12:00:00 to 2026-01-31 13:14:30" in sweep_page(plan, rows)
    for row in rows:
        row.runs[0]["ended"] = "yesterday"  # type: ignore[index]
    assert "to yesterday" not in sweep_page(plan, rows)
    chart_of = {
        key: re.search(rf"<b>{key}</b>.*?</svg>", content, re.DOTALL)[0]  # type: ignore[index]
        for key in plan.sweep.params
    }
    for key, choices in plan.sweep.params.items():
        labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="middle">(.*?)<', chart_of[key])
        assert {label for *_, label in labels} == {space.display_value(c) for c in choices}
        for x, y, label in labels:  # none lies on another
            for other_x, other_y, other in labels:
                apart = 3 * (len(label) + len(other))
                assert label == other or y != other_y or abs(float(x) - float(other_x)) > apart


def test_lines_of_metrics_that_hold_no_numbers_cost_the_pruner_only_these(tmp_path):
    good = {"step": 9, "epoch": 1, "train/loss_epoch": 1.0, "val/loss": 0.5, "val/accuracy": 0.25}
    loss, epoch = "val/loss", "epoch"
    changes: list[dict[str, Any]] = [{}, {loss: None}, {loss: "low"}, {loss: math.nan}, {loss: 7}]
    changes += [{loss: 10**400}, {loss: [1]}, {epoch: None}, {epoch: [2]}, {"val/accuracy": None}]
    lines = [good | {"epoch": number} | change for number, change in enumerate(changes)]
    lines += [{k: v for k, v in good.items() if k != loss} | {epoch: 98}]
    lines += [{k: v for k, v in good.items() if k != epoch}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert values_of(tmp_path, "val/accuracy") == {0: 0.25, 4: 0.25, 98: 0.25}


def test_the_page_is_whole_and_asks_for_nothing_from_elsewhere(swept):
    text = """
  method: random
  params:
    optimizer.lr: {low: 0.01, high: 0.9, log: true}
    optimizer: [{name: SGD, lr: 0.1}, {name: AdamW}]
  trials: 6
  seeds: [0, 1]
"""
    fails = {"t002-seed1": 4}
    folder, _ = swept(text, fails=lambda member: fails.get(member.name, 0))
    content = (folder / "sweep.html").read_text()
    page = _Page(content)
    assert page.open == [] and page.outside == [] and page.tags["script"] == 0
    assert page.tags["svg"] == 4  # two params, the order, all at once
    assert page.tags["polyline"] == 1 + 5
    assert content.count("<circle") == 2 * 11 + 6
    assert "boom: it does not work" in content and "AdamW" in content


def test_the_csv_has_a_line_a_run(swept):
    folder, _ = swept("\n  method: grid\n  params: {optimizer.lr: [0.5, 0.25]}\n  seeds: [0, 1]\n")
    with (folder / "sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(r["trial"], r["optimizer.lr"], r["seed"], r["status"]) for r in lines] == [
        *(("0", "0.5", seed, "done") for seed in "01"),
        *(("1", "0.25", seed, "done") for seed in "01"),
    ]
    assert [float(r["val/accuracy"]) for r in lines] == [0.5, 0.501, 0.75, 0.751]
    assert [float(r["test/accuracy"]) for r in lines] == [0.25, 0.2505, 0.375, 0.3755]


def answers_to_val(wrong, images=40):
    """A table of answers, of which the first ``wrong`` are wrong."""
    head = "id,sha256,part,true,predicted,probability,loss,p:a,p:b\n"
    answers = ["b" if i < wrong else "a" for i in range(images)]
    return head + "".join(f"{i},,val,a,{x},0.9,0.1,0.5,0.5\n" for i, x in enumerate(answers))


def test_trials_within_noise_of_the_best_are_marked_wherever_trials_are_listed(
    swept, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", "200")
    tables = [answers_to_val(2), answers_to_val(0), answers_to_val(20), answers_to_val(1, 39), ""]
    folder, _ = swept(
        "\n  method: grid\n  params: {optimizer.lr: [0.2, 0.1, 0.3, 0.4, 0.5]}\n",
        stub=lambda member: {"table": tables[member.trial.number]},
    )
    near = [True, True, False, None, None]
    assert [trial["within_noise_of_best"] for trial in found(folder)["trials"]] == near
    with (folder / "sweep.csv").open() as file:
        cells = [row["within_noise_of_best"] for row in csv.DictReader(file)]
    assert cells == ["True", "True", "False", "", ""]
    told, page = capsys.readouterr().out, (folder / "sweep.html").read_text()
    legend = (
        "≈ within noise of t001, image by image on val: with 95% certainty the truly best trial is "
        "a marked one; of these models: sweep.seeds: [0, 1, 2] tells it of settings; 2 not judged"
    )
    for text in (told, page):
        assert legend in " ".join(text.split())
        assert text.count("≈") == 3 and "0.9000 ≈" in text and "0.8000 ≈" in text


def test_trials_that_were_stopped_early_are_told_beside_the_marks(write):
    plan = load_sweep(
        write("\n  method: tpe\n  params: {optimizer.lr: {low: 0.1, high: 1.0}}\n  trials: 3\n")
    )
    rows = [
        results.Row(number, {}, status, [], [value], 0.1, {}, 1.0, 1.0, "", near)
        for number, (status, value, near) in enumerate(
            [("done", 0.9, True), ("done", 0.5, False), ("pruned", 0.4, None)]
        )
    ]
    assert "pruned" not in results.about_noise(plan, rows[:2])
    assert results.about_noise(plan, rows).endswith("; 1 pruned not judged")


def test_over_seeds_a_trial_is_marked_by_all_of_its_runs(swept):
    wrong = {(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 0, (2, 0): 30, (2, 1): 31}
    folder, _ = swept(
        "\n  method: grid\n  params: {optimizer.lr: [0.1, 0.2, 0.3]}\n  seeds: [0, 1]\n",
        stub=lambda m: {"table": answers_to_val(wrong[m.trial.number, m.seed])},
    )
    near = [trial["within_noise_of_best"] for trial in found(folder)["trials"]]
    assert near == [True, True, False]


def test_folds_are_joined_each_image_once_by_models_that_did_not_see_it(finished, write, tmp_path):
    plan = load_sweep(write("\n  method: grid\n  folds: 3\n  seeds: [0, 1]\n"))
    more = "split.folds=3", "optimizer.lr=0.0002", "train.epochs=1"
    runs = {
        (seed, fold): finished(*more, f"seed={seed}", f"split.fold={fold}")
        for seed, fold in plan.members
    }
    ends = [
        {"seed": seed, "fold": fold, "run": str(run.relative_to(tmp_path))}
        for (seed, fold), run in runs.items()
    ]
    row = results.Row(0, {}, "done", ends, [0.5], 0, {}, 9.0, 1.0, "")
    (told,) = work.join_folds(plan, tmp_path, [row])
    assert "t000: tNNN/predictions.csv has 50 images, each once, by the model of the fold" in told
    assert "that had it in test, the mean over 2 seeds" in told
    with (tmp_path / "t000" / "predictions.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    split = json.loads((runs[0, 0] / "split.json").read_text())
    images = {name for part in ("train", "val", "test") for name in split[part]}
    assert len(rows) == len(images) == 50 and {row["id"] for row in rows} == images
    expected: dict[str, list[dict[str, str]]] = {}
    for run in runs.values():
        trained = json.loads((run / "split.json").read_text())["train"]
        with (run / "predictions.csv").open(newline="") as text:
            tested = [one for one in csv.DictReader(text) if one["part"] == "test"]
        assert not {one["id"] for one in tested} & trained.keys()
        for one in tested:
            expected.setdefault(one["id"], []).append(one)
    for joined in rows:
        one, other = expected[joined["id"]]
        assert (joined["sha256"], joined["true"]) == (one["sha256"], one["true"])
        chances = {name: float(joined[name]) for name in joined if name.startswith("p:")}
        for cell, value in (chances | {"loss": float(joined["loss"])}).items():
            assert value == pytest.approx((float(one[cell]) + float(other[cell])) / 2, rel=1e-6)
        assert f"p:{joined['predicted']}" == max(chances, key=chances.__getitem__)
        assert float(joined["probability"]) == max(chances.values())


def test_a_sweep_tells_which_trials_it_could_join_and_why_not_the_others(swept, capsys):
    def tested(member):
        rows = range(member.fold * 4, member.fold * 4 + 4)
        if (member.trial.number, member.fold) == (1, 2):
            return ""
        text = answers_to_val(0, 0)
        return text + "".join(f"{i},,test,a,a,0.9,0.1,0.9,0.1\n" for i in rows)

    folder, _ = swept(
        "\n  method: grid\n  params: {optimizer.lr: [0.2, 0.1]}\n  folds: 3\n",
        stub=lambda member: {"table": tested(member)},
    )
    told = " ".join(capsys.readouterr().out.split())
    assert "folds t000: tNNN/predictions.csv has 12 images, each once" in told
    assert "folds t001: not joined: " in told and "predictions.csv is missing" in told
    with (folder / "t000" / "predictions.csv").open() as text:
        assert [row["id"] for row in csv.DictReader(text)] == [str(i) for i in range(12)]
    assert not (folder / "t001").exists()


def test_tensorboard_reads_one_table_of_all_trials(swept):
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    text = (
        "\n  method: grid\n  params: {optimizer.lr: [0.5, 0.25], model: [LeNet]}\n  seeds: [0, 1]\n"
    )
    folder, _ = swept(text)
    runs = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(folder))
    runs.Reload()
    provider = data_provider.MultiplexerDataProvider(runs, str(folder))
    read = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=100, allowed_statuses=[api_pb2.STATUS_SUCCESS]
    )
    for kind in ("mean", "std"):
        name = api_pb2.MetricName(tag=f"val/accuracy ({kind})")
        request.col_params.add(metric=name)
    handler = list_session_groups.Handler(RequestContext(), read, "", request)
    groups = {group.name: group for group in handler.run().session_groups}
    assert sorted(groups) == ["t000", "t001"]
    for name, lr in (("t000", 0.5), ("t001", 0.25)):
        assert groups[name].hparams["optimizer.lr"].number_value == lr
        assert groups[name].hparams["model"].string_value == "LeNet"
        values = {v.name.tag: v.value for v in groups[name].metric_values}
        assert values["val/accuracy (mean)"] == pytest.approx(1 - lr + 0.0005, abs=1e-6)
        assert values["val/accuracy (std)"] == pytest.approx(0.001 / 2**0.5, abs=1e-6)


def test_a_dry_run_lists_the_trials_and_writes_nothing(swept, tmp_path, capsys):
    _, code = swept(TWELVE, "--dry-run", "sweep.seeds=[0, 5]")
    told = capsys.readouterr().out
    assert code == 0 and "12 trials of 2 runs" in told and "seed=5" in told
    assert "t011    optimizer.lr=0.1 optimizer.momentum=0.9" in told
    assert not (tmp_path / "runs").exists()


# With real runs


def test_a_trial_is_the_run_that_its_settings_make_by_hand(write, tmp_path, train):
    file = write("\n  method: grid\n  params: {optimizer.lr: [0.02]}\n  seeds: [3]\n")
    alike = "train.threads=1"  # sums over other numbers of threads differ in their last bits
    arguments = ["--config", str(file), "--runs", str(tmp_path / "swept"), alike]
    assert sweep_command.main(arguments) == 0
    (run,) = (tmp_path / "swept" / "trial").glob("t000-seed3/2*")
    by_hand = train("optimizer.lr=0.02", "seed=3", alike)
    assert (run / "metrics.jsonl").read_bytes() == (by_hand / "metrics.jsonl").read_bytes()
    made = json.loads((run / "result.json").read_text())
    expected = json.loads((by_hand / "result.json").read_text())
    assert made["best"] == expected["best"] and made["test"] == expected["test"]
    (trial,) = found(tmp_path / "swept" / "trial")["trials"]
    assert trial["mean"] == expected["best"]["val/accuracy"]
    assert trial["test"]["accuracy"] == expected["test"]["accuracy"]


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]


def claims_held_by(pid):
    """The folders whose claims a process has open."""
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the run has closed this file since
            links.append(os.readlink(link))
    return [Path(link).parent.name for link in links if link.endswith("claim.lock")]


def forked_sweep(file, runs, *more, prepare=lambda: None):
    """Begin a sweep, and its real runs as forks of it, in a fork of the tests' process."""

    def sweep():
        patch = pytest.MonkeyPatch()  # of this fork
        patch.setattr("trainer.sweeping.process.Starter.may_fork", lambda self: True)
        prepare()
        return sweep_command.main(["--config", str(file), "--runs", str(runs), *more])

    return fork(file.with_name("told.txt"), sweep)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, runs are no forks")
@pytest.mark.parametrize("first", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_forked_run_is_bit_for_bit_the_run_of_its_command_and_says_so(write, tmp_path, first):
    """A fork after another one; if it was slow, the one before too."""
    file, runs = write("\n  method: grid\n  seeds: [3, 4]\n"), tmp_path / "runs"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    sweep = [sys.executable, "-m", "trainer.sweep", "--config", str(file), "--runs", str(runs)]
    sweep.append("train.device=auto")
    process = subprocess.Popen(sweep, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    own, seen = command_of(process.pid), []
    while process.poll() is None:  # to its end: a fork may replace itself by the command
        with suppress(OSError):  # it has ended
            seen += [command_of(child) for child in children_of(process.pid)]
        time.sleep(0.02)
    told, _ = process.communicate()
    assert own in seen and not [command for command in seen if b"trainer.train" in command]
    assert process.returncode == 0 and "anew" not in told
    both = sorted((runs / "trial").glob("t*/2*"))
    assert len(both) == 2
    for run in both[first:]:
        command = json.loads((run / "environment.json").read_text())["command"]
        by_hand = [*command[:-1], str(tmp_path / "alone")]
        assert command[:3] == [sys.executable, "-m", "trainer.train"]
        assert command[-2:] == ["--runs", str(runs / "trial")]
        subprocess.run(by_hand, cwd=ROOT, env=environment, check=True, capture_output=True)
        (alone,) = (tmp_path / "alone" / run.parent.name).glob("2*")
        for name in ("metrics.jsonl", "model.pt", "split.json", "data_path.json"):
            assert (run / name).read_bytes() == (alone / name).read_bytes(), name
        mine, theirs = (json.loads((r / "environment.json").read_text()) for r in (run, alone))
        changing = ("git_commit", "git_changed_files")  # somebody may be at work
        own = {"command": by_hand} | {name: theirs[name] for name in changing}
        assert mine | own == theirs
        assert sorted(p.name for p in run.iterdir() if "events" not in p.name) == (
            sorted(p.name for p in alone.iterdir() if "events" not in p.name)
        )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, runs are no forks")
def test_whatever_ends_a_forked_run_ends_that_run_alone(write, tmp_path):
    rates = [0.01, 1e30, 0.02, 0.03, 0.04]
    file, runs = (
        write(f"\n  method: grid\n  params: {{optimizer.lr: {rates}}}\n"),
        tmp_path / "runs",
    )

    def break_runs():
        from trainer.loop import fit

        real, held = fit.fit, tempfile.TemporaryDirectory(dir=tmp_path)

        def broken(job, *given):
            rate = job.config.optimizer.arguments["lr"]
            if rate == 0.02:
                os._exit(9)
            if rate == 0.03 and not (tmp_path / "killed").exists():
                (tmp_path / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if rate == 0.04 and Path(held.name).exists():  # no run has removed what is the sweep's
                raise MemoryError
            return real(job, *given)

        fit.fit = broken

    sweep = forked_sweep(file, runs, "train.epochs=1", prepare=break_runs)
    assert exit_code_of(sweep, 120) == 0, file.with_name("told.txt").read_text()
    trials = found(runs / "trial")["trials"]
    states = [trial["status"] for trial in trials]
    assert states == ["done", "failed", "failed", "done", "failed"]
    codes = [re.findall(r"^exit code (\d+)", trial["reason"]) for trial in trials]
    assert codes == [[], ["4"], ["9"], [], ["7"]]
    assert all(trial["wall_seconds"] > 0 for trial in trials)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, runs are no forks")
def test_forked_runs_hold_their_own_claims_and_save_when_their_sweep_stops_or_dies(write, tmp_path):
    file, runs = write("\n  method: grid\n  seeds: [0, 1]\n"), tmp_path / "runs"
    folder, more = runs / "trial", ("--jobs", "2", "train.epochs=60", "log.show=[]")

    def lines():
        return [path.read_text().count("\n") for path in folder.glob("*/*/metrics.jsonl")]

    for number, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)):
        process = forked_sweep(file, runs, *more)
        before = lines()
        wait_for(lambda before=before: len(lines()) == 2 and all(n not in before for n in lines()))
        children = children_of(process.pid)
        assert sorted(map(claims_held_by, children)) == [["t000-seed0"], ["t000-seed1"]]
        assert all(os.getsid(child) == child for child in children)
        os.kill(process.pid, number)
        assert exit_code_of(process) == code
        for path in folder.glob("*/claim.lock"):  # until the runs have saved
            with path.open() as claimed:
                fcntl.flock(claimed, fcntl.LOCK_EX)
        results = [json.loads(path.read_text()) for path in folder.glob("*/*/result.json")]
        assert [result["status"] for result in results] == ["stopped", "stopped"]
    assert exit_code_of(forked_sweep(file, runs, *more), 120) == 0
    assert found(folder)["counts"] == {"done": 1}
    finished = [path.read_text().count("\ntest ") for path in folder.glob("t0*/log.txt")]
    assert finished == [1, 1] and len(list(folder.glob("t0*/2*"))) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, runs are no forks")
@pytest.mark.parametrize("change", ["thread", "code"])
def test_a_sweep_that_can_no_longer_be_forked_says_why(write, tmp_path, monkeypatch, change):
    from trainer.sweeping.process import Starter, state_of_code, thread_count

    told: list[str] = []
    starter = Starter(load_sweep(write(TWELVE)), 1, told.append)
    assert not starter.may_fork() and told == []  # this process is no sweep's command
    starter.forks, starter.threads, starter.code = True, thread_count(), state_of_code()
    assert starter.may_fork() and told == []
    if change == "thread":
        starter.threads -= 1
    else:
        (path, when), *_ = starter.code.items()
        starter.code[path] = when - 1
    assert [starter.may_fork(), starter.may_fork()] == [False, False]
    why = {"thread": "a component has started threads", "code": "the code has changed"}
    assert len(told) == 1 and told[0].startswith(f"note    {why[change]}")


def test_code_that_only_a_run_imports_is_watched_too(tmp_path, monkeypatch):
    from trainer.sweeping import process

    monkeypatch.setattr(process, "ROOT", tmp_path)
    (tmp_path / "models").mkdir()
    (later := tmp_path / "models" / "later.py").write_text("")
    before = process.state_of_code()
    os.utime(later, ns=(0, 0))
    assert before[str(later)] != process.state_of_code()[str(later)] == 0


@pytest.mark.slow
def test_twelve_real_trials_killed_twice_end_with_twelve_results(write, tmp_path):
    text = TWELVE.replace("0.4, 0.3, 0.2, 0.1", "0.05, 0.02, 0.01, 0.005")
    file, runs = write(text), tmp_path / "runs"
    command = [sys.executable, "-m", "trainer.sweep", "--config", str(file), "--runs", str(runs)]
    command += ["--jobs", "2", "train.epochs=60"]
    for ended in (2, 6):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        enough = lambda ended=ended: len(list(runs.glob("*/*/end.json"))) >= ended  # noqa: E731
        wait_for(enough, 300)
        for victim in [process.pid, *children_of(process.pid)]:
            os.kill(victim, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    folder = runs / "trial"
    assert Counter(trial["status"] for trial in found(folder)["trials"]) == {"done": 12}
    finished = [path.read_text().count("\ntest ") for path in sorted(folder.glob("t0*/log.txt"))]
    assert finished == [1] * 12


# What newcomers ask for


def test_a_sweeps_folder_is_refused_as_a_run_and_its_best_one_named(swept):
    from trainer.process.errors import UsageError
    from trainer.run.folder import find_run

    folder, _ = swept("\n  method: grid\n  params: {optimizer.lr: [0.5, 0.25]}\n")
    (best,) = folder.glob("t001-seed0/2*")
    with pytest.raises(UsageError, match=f"trial is a sweep; its best run is {best}: name that"):
        find_run(str(folder))
    assert find_run(str(best.parent)) == find_run(str(best)) == best
    text = "\n  method: grid\n  params: {optimizer.lr: [0.5, 0.25]}\n  seeds: [0, 1]\n"
    folder, _ = swept(text, name="two.yaml")
    with pytest.raises(UsageError, match="runs are .*/t001-seed0/2.*, .*/t001-seed1/2.*: name one"):
        find_run(str(folder))
    (folder / "sweep.json").unlink()
    with pytest.raises(UsageError, match="none of its trials is done yet"):
        find_run(str(folder))


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_what_pytorch_refuses_is_told_at_once_before_the_first_trial(swept, tmp_path, capsys, more):
    text = """
  method: grid
  params:
    optimizer.momentum: [0.9, -3]
    optimizer.weight_decay: [-1.0, 0.0]
    optimizer.nesterov: [false, true]
"""
    _, code = swept(text, *more)
    told = capsys.readouterr().err.splitlines()
    assert code == 2 and not (tmp_path / "runs").exists()
    file = tmp_path / "trial.yaml"
    assert told[0] == f"2 faults in {file}"
    what = "expected a number of at least 0, got"
    for line in (
        f"{file}:5:31: sweep.params.optimizer.momentum.1: {what} -3",
        f"{file}:6:30: sweep.params.optimizer.weight_decay.0: {what} -1.0",
    ):
        assert line in told


def test_choices_that_pytorch_refuses_together_and_faults_of_the_base_are_told(write):
    from trainer.sweeping.plan import check_with_torch

    pair = """
  method: grid
  params: {optimizer.nesterov: [false, true], optimizer.momentum: [0.0, 0.9]}
"""
    with pytest.raises(ConfigError) as caught:
        check_with_torch(load_sweep(write(pair)))
    (fault,) = caught.value.faults
    assert "with optimizer.nesterov=true optimizer.momentum=0.0" in fault.message
    with pytest.raises(ConfigError) as caught:  # once, however many choices
        check_with_torch(load_sweep(write(TWELVE), ["optimizer.weight_decay=-1.0"]))
    (fault,) = caught.value.faults
    assert (fault.file, fault.path) == ("command line", "optimizer.weight_decay")
    check_with_torch(load_sweep(write(SEARCH.format(trials=3))))


def test_a_changed_sweep_is_told_where_the_change_was_written(swept, tmp_path, capsys):
    text = "\n  method: grid\n  params: {optimizer.lr: [0.5, 0.25]}\n  seeds: [0, 1]\n"
    swept(text)
    capsys.readouterr()
    _, code = swept(text, "sweep.seeds=[0]", "train.epochs=3")
    told = capsys.readouterr().err
    assert code == 2 and told.startswith(f"2 faults in {tmp_path / 'trial.yaml'}\n")
    assert "command line: sweep.seeds: is [0], but" in told
    assert "command line: train.epochs: is 3, but" in told and "small.yaml" not in told
    swept(text.replace("0.5", "0.6"))
    assert f"{tmp_path / 'trial.yaml'}:4:11: sweep.params: is " in capsys.readouterr().err


def test_a_sweep_given_to_train_and_an_experiment_given_to_sweep_are_told_apart(
    write, config_file, capsys
):
    from trainer.train import main

    file = write(TWELVE)
    assert main(["--config", str(file)]) == 2
    words = f"sweep: this is a sweep; run python -m trainer.sweep --config {file}"
    assert words in capsys.readouterr().err
    assert sweep_command.main(["--config", str(config_file)]) == 2
    told = capsys.readouterr().err
    assert "this is an experiment, not a sweep; run python -m trainer.train --config" in told
    assert told.startswith("1 fault in")


def test_params_are_set_on_the_command_line_by_their_dotted_keys(write):
    path = write(SEARCH.format(trials=3))
    typed = ["sweep.params.optimizer.lr.high=0.5", "sweep.params.optimizer.momentum=[0.1, 0.2]"]
    params = load_sweep(path, [*typed, "sweep.params.train.epochs=[1]"]).sweep.params
    assert params["optimizer.lr"] == Range(low=0.001, high=0.5, log=True)
    assert params["optimizer.momentum"] == [0.1, 0.2] and params["train.epochs"] == [1]
    with pytest.raises(ConfigError, match="command line: sweep.params.optimizer.lrr.0: unknown"):
        load_sweep(path, ["sweep.params.optimizer.lrr=[1]"])


def test_a_search_is_told_in_words(swept, capsys):
    assert swept(SEARCH.format(trials=3), "--dry-run")[1] == 0
    told = capsys.readouterr().out
    assert "optimizer.lr: 0.001 to 1.0, evenly in the logarithm\n" in told
    assert "loader.batch_size: one of 4, 8\n" in told
    words = space.in_words(Range(low=5, high=20, step=5))
    assert words == "whole numbers from 5 to 20 in steps of 5"


def test_test_numbers_are_told_with_their_deviation_and_what_they_are(swept, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder, _ = swept(
        "\n  method: grid\n  params: {optimizer.lr: [0.5, 0.25]}\n  seeds: [0, 1, 7]\n",
        fails=lambda member: 4 if member.name == "t000-seed7" else 0,
    )
    values = [(0.75 + 0.001 * seed) / 2 for seed in (0, 1, 7)]
    mean = f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"
    spread = f"{min(values):.4f}..{max(values):.4f}"
    told, page = capsys.readouterr().out, (folder / "sweep.html").read_text()
    assert f"test: accuracy {mean} ({spread}); no trial was chosen by these" in told
    assert "test/ is reported only" in told and "test/ is reported" in page
    for text in (" ".join(told.split()), page.replace("</td>", "").replace("<td>", " ")):
        assert f"{mean} {spread} 3 " in text  # the epochs as a whole number
    assert told.count("boom") == 2 and "t000-seed7  failed\n" in told  # live, and in the end
    assert "val/accuracy 0.5005 ± 7.1e-04 (failed: exit code 4: boom" in told


def test_torchrun_does_not_begin_a_sweep(write, monkeypatch, capsys):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    assert sweep_command.main(["--config", str(write(TWELVE))]) == 2
    assert "leave torchrun out" in capsys.readouterr().err


def test_the_reason_of_a_run_refused_for_its_configuration_is_its_faults(tmp_path):
    from trainer.sweeping.process import reason_of

    faults = "a.yaml:3:1: x: is wrong\n      3 | x\n        | ^\ncommand line: y: too\n        y=1"
    (tmp_path / "log.txt").write_text(f"what was before\n2 faults in a.yaml\n{faults}\n")
    assert reason_of(tmp_path, None, 2) == "a.yaml:3:1: x: is wrong / command line: y: too"
