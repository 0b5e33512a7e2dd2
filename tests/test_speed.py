import gc
import json
import math
import os
import random
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import yaml

from trainer.build import precision
from trainer.build import prepare as preparing
from trainer.build.precision import note_on_unused
from trainer.build.prepare import prepare
from trainer.components import OPTIMIZERS
from trainer.config import load_config
from trainer.loop.step import new_task, train_steps
from trainer.loop.summary import dry_run
from trainer.process.errors import OutOfMemory
from trainer.run.folder import find_run
from trainer.speed import main
from trainer.tuning import race, search, timer, variants
from trainer.tuning.advice import advised_lines, facts_of
from trainer.tuning.race import (
    batches_of,
    block_of,
    contender_of,
    do_steps,
    keep_weights,
    lay_out_course,
)
from trainer.tuning.search import Gains, Search
from trainer.tuning.timer import CTRL_C, Enough, at_most
from trainer.tuning.variants import variants_of

# --- the decisions, on a machine whose true speeds are known --------------------------------------


class Machine:
    """An arena with speeds that are known: of each setting, times those of the others.

    Other programs slow it: each block by up to ``noise``, and all of them by a slow wave.
    """

    def __init__(self, factors, noise=0.0, seed=0, start_seconds=None, losses=None):
        self.factors, self.noise, self.random = factors, noise, random.Random(seed)
        self.start_seconds, self.losses = start_seconds or {}, losses or {}
        self.clock, self.blocks, self.entered = 0.0, 0, []

    def true(self, settings):
        return math.prod(self.factors[key, value] for key, value in settings.items())

    def enter(self, settings):
        self.entered.append(dict(settings))
        self.clock += (took := sum(self.start_seconds.get(key, 0.0) for key in settings) + 1.0)
        return SimpleNamespace(
            settings=settings,
            memory=None,
            start_seconds=took,
            losses=[next((self.losses[key] for key in settings if key in self.losses), 1.0)],
        )

    def speed(self, contender):
        self.blocks += 1
        self.clock += 1.0
        wave = 1 - 0.3 * math.sin(self.blocks / 40) ** 2
        return 100 * self.true(contender.settings) * wave * (1 - self.noise * self.random.random())

    def searched(self, seconds=1e9, images=10**6):
        found = Gains()
        Search(self, found, images, seconds, now=lambda: self.clock).run(
            [{key: value} for key, value in self.factors]
        )
        return found


KEYS = [
    ("train.precision", "bf16"),
    ("train.channels_last", False),
    ("train.threads", 1),
    ("train.accumulate", 2),
    ("train.accumulate", 4),
    ("optimizer.fused", True),
    ("train.compile", True),
]


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_nothing_that_is_slower_is_ever_advised(noise):
    drawn = random.Random(0)
    for seed in range(60):
        factors = {key: drawn.choice([0.4, 0.8, 0.95, 0.99]) for key in KEYS}
        assert Machine(factors, noise, seed).searched().best is None, factors


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_each_line_that_is_advised_makes_the_others_faster(noise):
    drawn, advised = random.Random(1), 0
    for seed in range(60):
        factors = {key: drawn.choice([0.5, 0.9, 1.0, 1.2, 1.9]) for key in KEYS}
        best = Machine(factors, noise, seed).searched().best
        advised += best is not None
        for key, value in (best.settings if best else {}).items():
            assert factors[key, value] > 1, (factors, best.settings)
    assert advised > 30


def test_all_settings_that_help_are_joined_and_of_each_key_the_fastest():
    factors = dict(zip(KEYS, [1.9, 0.8, 1.0, 1.2, 1.5, 1.1, 1.3], strict=True))
    machine = Machine(factors, noise=0.02)
    found = machine.searched()
    assert found.best.settings == {
        "train.precision": "bf16", "train.accumulate": 4, "optimizer.fused": True,
        "train.compile": True,
    }  # fmt: skip
    assert found.advised is found.best and machine.entered.count(found.best.settings) == 2
    assert search.middle(found.best) == pytest.approx(1.9 * 1.5 * 1.1 * 1.3, rel=0.03)


def test_the_loser_of_three_rounds_takes_no_more_time():
    machine = Machine({("train.precision", "bf16"): 0.64})
    machine.searched()
    assert machine.blocks == 2 * search.LOSING


def test_a_compiler_that_takes_longer_than_it_saves_is_not_advised():
    machine = Machine({("train.compile", True): 1.5}, start_seconds={"train.compile": 60.0})
    short, long = (machine.searched(images=images) for images in (10_000, 100_000))
    assert short.best is None and "saves" in short.rows[1].remark  # 60 s for 33 s
    assert long.best.settings == {"train.compile": True}


def test_what_gives_no_finite_loss_is_not_advised():
    machine = Machine({("train.precision", "fp16"): 3.0}, losses={"train.precision": math.nan})
    found = machine.searched()
    assert found.best is None and "nan" in found.rows[1].failed


def test_a_gain_that_is_gone_in_the_second_measurement_is_not_advised(monkeypatch):
    machine = Machine({("train.threads", 1): 1.5})
    enter = machine.enter

    def slower_later(settings):
        if settings in machine.entered:
            machine.factors["train.threads", 1] = 0.9
        return enter(settings)

    monkeypatch.setattr(machine, "enter", slower_later)
    assert machine.searched().best is None


def test_what_was_measured_once_when_the_time_ends_is_told_and_not_advised(monkeypatch):
    machine = Machine({("train.threads", 1): 1.5, ("train.precision", "bf16"): 1.0})
    speed, found = machine.speed, Gains()

    def until_the_second_setting(contender):
        if contender.settings == {"train.precision": "bf16"}:
            raise Enough
        return speed(contender)

    monkeypatch.setattr(machine, "speed", until_the_second_setting)
    with pytest.raises(Enough):
        Search(machine, found, 10**6, 1e9).run([{key: value} for key, value in machine.factors])
    found.ended = CTRL_C
    told = "\n".join(advised_lines(found, "some.yaml", [], 200))
    assert "faster  nothing so far is faster" in told and "\nset " not in told
    assert "train.threads=1 was 1.50 times as fast" in told and "but once only" in told
    assert facts_of(found, None)["advice"] == []


def test_what_fails_when_it_is_measured_again_is_not_advised(monkeypatch):
    machine = Machine({("train.threads", 1): 1.5, ("train.precision", "bf16"): 1.2})
    enter = machine.enter

    def no_room_later(settings):
        if settings == {"train.threads": 1} and settings in machine.entered:
            raise OutOfMemory("out of memory: no more could be had")
        return enter(settings)

    monkeypatch.setattr(machine, "enter", no_room_later)
    found = machine.searched()
    assert found.best is None and found.advised is None
    assert "beside the YAML's own job" in found.rows[1].failed


def test_the_distance_of_the_loss_is_relative_to_the_yamls():
    machine = Machine({("train.precision", "bf16"): 1.0}, losses={"train.precision": 1.25})
    assert [row.distance for row in machine.searched().rows] == [0.0, 0.25]


# --- the measurement ------------------------------------------------------------------------------


@pytest.fixture
def job_of(config_file):
    def build(*overrides):
        return prepare(load_config(config_file, overrides), lambda line: None)

    return build


def test_the_equal_steps_are_those_of_a_run(job_of, train):
    run = train("log.every=1st", "train.epochs=1")
    lines = map(json.loads, (find_run(run) / "metrics.jsonl").read_text().splitlines())
    logged = [
        line["train/loss"] for line in lines if "train/loss" in line and "val/loss" not in line
    ]
    losses = do_steps(contender_of(job_of(), 1), 4).losses
    assert losses == pytest.approx(logged[:4], rel=1e-6) and len(losses) == 4


def test_blocks_go_through_the_epochs_without_a_gap(job_of):
    contender = contender_of(job_of(), 1)
    epochs = len(contender.job.train_loader)
    seen = [images for _ in range(3) for images, _ in batches_of(contender, epochs - 1)]
    loader = job_of().train_loader
    every = [images for epoch in range(3) for images, _ in loader.epoch(epoch)]
    assert len(seen) == 3 * (epochs - 1)
    assert all(map(torch.equal, seen, every))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_timed_steps_do_not_change_the_weights(job_of, name):
    contender = contender_of(job_of(f"optimizer={{name: {name}, lr: 0.1}}"), 1)
    do_steps(contender, 2)
    keep_weights(contender)
    do_steps(contender, 1)  # ASGD takes its rate a step later
    before = [p.clone() for p in contender.job.model.parameters()]
    do_steps(contender, 3)
    assert all(map(torch.equal, before, contender.job.model.parameters()))


def test_an_average_that_starts_later_takes_weights_in_the_timed_steps_of_each(job_of):
    contender = contender_of(job_of("average={name: SWA, start: 1ep, every: 1st}"), 1)
    do_steps(contender, 1)
    average = contender.job.average
    assert average is not None and average.count == 0
    keep_weights(contender)
    do_steps(contender, 3)
    assert average.count == 3


def test_contenders_begin_from_the_weights_of_a_run_without_reading_images_anew(
    job_of, config_file, train, monkeypatch
):
    model = "model={name: CompactResNet, widths: [2], init: {whiten: whiten}}"
    overrides = [model, "average={name: Lookahead, steps: 2}"]
    run = train(*overrides, "log.every=1st", "train.epochs=1")
    lines = map(json.loads, (find_run(run) / "metrics.jsonl").read_text().splitlines())
    logged = [line["train/loss"] for line in lines if "train/loss" in line]
    monkeypatch.setattr(race, "EQUAL_SECONDS", 1e-6)  # two equal steps
    course, _ = lay_out_course(
        job_of(*overrides), lambda settings: load_config(config_file, overrides)
    )

    def not_again(config, data):
        raise AssertionError("images are read to whiten")

    monkeypatch.setattr(preparing, "batches_to_whiten", not_again)
    assert course.enter({}).losses == pytest.approx(logged[:2], rel=1e-6)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_length_of_a_step_is_that_of_the_timed_steps(job_of, monkeypatch, workers):
    clock = [0.0]
    monkeypatch.setattr(race, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def slow(task, batches, first):
        for images in train_steps(task, batches, first):
            clock[0] += race.EQUAL_SECONDS / 3
            yield images

    monkeypatch.setattr(race, "train_steps", slow)
    job = job_of(f"loader.workers={workers}", "loader.cache=off", "train.epochs=20")
    course, _ = lay_out_course(job, lambda settings: job.config)
    assert course.equal == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGALRM])
@pytest.mark.parametrize("ends_itself", [True, False])
def test_a_signal_between_any_two_lines_ends_the_work_without_an_error(number, ends_itself):
    def work():
        if not ends_itself:
            signal.raise_signal(signal.SIGALRM)

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGALRM)]
    count, is_sent = 0, True
    while is_sent:  # the signal comes at the first line, at the second, ...
        count, left, is_sent = count + 1, count, False

        def at_line(frame, event, argument):
            nonlocal left, is_sent
            ours = getattr(signal.getsignal(number), "__module__", "") == timer.__name__
            if event == "line" and ours:
                left -= 1
                if left == -1:
                    is_sent = True
                    signal.raise_signal(number)
            return at_line

        def of_timer(frame, event, argument):
            return at_line if frame.f_code is at_most.__code__ else None

        traced = sys.gettrace()
        sys.settrace(of_timer)
        try:
            at_most(1000, work)
        finally:
            sys.settrace(traced)
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGALRM)] == before
    assert count > 5


def test_workers_end_with_their_block_and_give_the_same_batches(job_of):
    contender = contender_of(job_of("loader.workers=1", "loader.cache=off"), 1)
    losses = do_steps(contender, 2).losses[:2]
    assert contender.job.train_loader.will_fork  # none is left
    assert losses == do_steps(contender_of(job_of("loader.cache=off"), 1), 2).losses


@pytest.mark.parametrize("a_step, epochs", [(1e-5, None), (0.1, 1), (10.0, 0)])
def test_a_block_is_whole_epochs_unless_that_takes_too_long(job_of, a_step, epochs):
    job = job_of("loader.batch_size=4")
    block, epoch = block_of(job, a_step), len(job.train_loader)
    if epochs is None:
        assert block % epoch == 0 and block * a_step >= race.BLOCK_SECONDS
    else:
        assert block == (epoch if epochs else job.train_loader.batches_at_once() and block)
        assert block <= epoch


# --- what is tried --------------------------------------------------------------------------------


def test_only_what_keeps_the_training_and_applies_is_tried(job_of, monkeypatch):
    monkeypatch.setattr(variants, "computes_in", lambda name, device: name != "tf32")
    monkeypatch.setattr(variants, "cpus", lambda: (8, 4))
    tried, not_tried = variants_of(job_of("loader.cache=ram"), waits=0.5)
    for settings in (
        {"train.precision": "bf16"}, {"train.channels_last": False}, {"train.threads": 4},
        {"train.threads": 8}, {"train.accumulate": 2}, {"train.accumulate": 4},
        {"loader.workers": 4}, {"loader.workers": 8}, {"optimizer.fused": False},
    ):  # fmt: skip
        assert settings in tried
    assert {"train.threads": 1} not in tried  # which is the YAML's here
    assert {"train.precision": "fp16"} not in tried  # on a CPU
    assert not_tried.keys() >= {"train.cuda_graphs"}


@pytest.mark.parametrize(
    "overrides, key, reason",
    [
        (["model=torchvision/resnet18"], "train.accumulate", "batch norm would see other batches"),
        ([], "loader.workers", "batches take 1.0% of a step's time"),
        (["model={name: MLP, hidden: [4]}"], "train.channels_last", "the model has no convolution"),
    ],
)
def test_what_does_not_apply_is_told(job_of, overrides, key, reason):
    tried, not_tried = variants_of(job_of(*overrides), waits=0.01)
    assert not_tried[key] == reason and not any(key in settings for settings in tried)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def measured(config_file, tmp_path, monkeypatch, capsys):
    """Call the command with the given variants, on a clock where a step takes ``pace(config)``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(race, "BLOCK_SECONDS", 0.02)
    monkeypatch.setattr(race, "EQUAL_SECONDS", 0.05)
    monkeypatch.setattr(gc, "collect", lambda *_: 0)  # of all that the tests hold: it takes long
    configs, clock = {}, [0.0]
    monkeypatch.setattr(race, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def remembered(job, guard):
        configs[id(guard)] = job.config
        return new_task(job, guard)

    def measured(tried, pace, *more):
        def slowed(task, batches, first):
            for images in train_steps(task, batches, first):
                clock[0] += pace(configs[id(task.guard)])
                yield images

        monkeypatch.setattr(race, "new_task", remembered)
        monkeypatch.setattr(race, "train_steps", slowed)
        monkeypatch.setattr(search, "variants_of", lambda job, waits: (tried, {}))
        code = main(["--config", str(config_file), *more])
        return code, capsys.readouterr().out

    return measured


TWO = [{"train.accumulate": 2}, {"train.threads": 1}]


def cut_is_faster(config):
    return 0.002 if config.train.accumulate == 2 else 0.02


def test_the_lines_to_set_are_those_that_are_faster_and_make_a_configuration(
    measured, config_file, tmp_path
):
    before = sorted(tmp_path.rglob("*"))
    code, told = measured(TWO, cut_is_faster, "--json")
    facts = json.loads(told)
    assert code == 0 and facts["advice"] == ["train.accumulate=2"]
    assert [row["times"] for row in facts["rows"][1:]] == [2, 1]
    data = yaml.safe_load(config_file.read_text())
    data["train"]["accumulate"] = 2
    config_file.with_name("set.yaml").write_text(yaml.safe_dump(data))
    changed = load_config(config_file.with_name("set.yaml"), ["name=small"])
    assert changed == load_config(config_file, facts["advice"])
    config_file.with_name("set.yaml").unlink()
    assert sorted(tmp_path.rglob("*")) == before  # it wrote nothing


def test_all_contenders_train_on_images_of_one_size(measured, monkeypatch):
    seen = set()

    def watched(contender, steps):
        for images, labels in batches_of(contender, steps):
            seen.add(tuple(images.shape[2:]))
            yield images, labels

    monkeypatch.setattr(race, "batches_of", watched)
    code, told = measured(TWO[:1], cut_is_faster, "train.sizes={0ep: 20, 2ep: 24}")
    assert code == 0 and seen == {(32, 32)}
    assert "'train.sizes={0ep: 20, 2ep: 24}' train.accumulate=2\n" in told


def test_equal_settings_have_a_loss_that_differs_by_zero(measured):
    tried = [{"train.threads": 1}, {"train.precision": "bf16"}]
    code, told = measured(tried, lambda config: 0.01, "--json")
    _, same, other = json.loads(told)["rows"]
    assert code == 0 and same["loss_differs"] == 0.0 < other["loss_differs"] < 0.1


def test_where_nothing_is_faster_nothing_is_advised(measured):
    code, told = measured(TWO, lambda config: 0.02 * config.train.accumulate)
    assert code == 0 and "nothing is faster than the YAML" in told and "\nset " not in told


def test_a_setting_that_cannot_be_built_is_told_and_the_others_are_measured(measured):
    tried = [{"loader.workers": 1000}, {"train.accumulate": 2}]
    code, told = measured(tried, cut_is_faster)
    assert code == 0 and "loader.workers=1000: not measured: 1000 is too many" in told
    assert "\nset     train.accumulate: 2\nor      " in told
    assert told.splitlines()[-1].endswith(" train.accumulate=2")


def test_ctrl_c_gives_the_table_so_far(measured, capsys):
    blocks = []

    def pace(config):
        blocks.append(config)
        if config.train.accumulate == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return 0.001

    before = signal.getsignal(signal.SIGINT)
    code, told = measured([{"train.threads": 1}, *TWO], pace)
    assert code == 130 and signal.getsignal(signal.SIGINT) is before
    assert "\nthe YAML " in told and "\ntrain.threads=1 " in told
    assert "ended   Ctrl-C, before all was tried" in told


def test_it_ends_in_time_and_tells_what_it_has(measured):
    began = time.monotonic()
    code, told = measured(TWO * 20, cut_is_faster, "--seconds", "2", "--json")
    assert code == 0 and json.loads(told)["ended"] == "2 s are over"
    assert time.monotonic() - began < 20


def test_too_little_time_is_told(measured):
    code, told = measured(TWO, cut_is_faster, "--seconds", "0.001")
    assert code == 0 and "ended   0.001 s are over" in told and "nothing so far" in told
    assert "no setting was timed beside the YAML" in told and "ratio " not in told


def test_a_wrong_setting_is_told_with_its_place(config_file, capsys):
    assert main(["--config", str(config_file), "train.precision=bf17"]) == 2
    assert "train.precision: expected fp32" in capsys.readouterr().err
    config_file.write_text(config_file.read_text().replace("epochs: 2", "epochs: two"))
    assert main(["--config", str(config_file)]) == 2
    assert f"{config_file}:15:17: train.epochs: expected" in capsys.readouterr().err


def test_a_loss_that_is_no_number_is_told(config_file, capsys):
    assert main(["--config", str(config_file), "optimizer.lr=1e30", "--seconds", "300"]) == 4
    assert "the loss of the YAML's own settings" in capsys.readouterr().err


# --- the dry run's line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "instructions, overrides, is_told",
    [
        ({"avx512_bf16": True}, [], True),
        ({"amx_bf16": True, "avx512_bf16": False}, [], True),
        ({"amx_bf16": False, "avx512_f": True}, [], False),
        ({"avx512_bf16": True}, ["train.precision=bf16"], False),
    ],
)
def test_a_dry_run_tells_of_bf16_exactly_if_the_cpu_has_it_and_the_yaml_does_not_use_it(
    config_file, monkeypatch, instructions, overrides, is_told
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    monkeypatch.setattr(precision, "_bf16_is_for_onednn", lambda: True)
    lines: list[str] = []
    dry_run(prepare(load_config(config_file, overrides), lines.append), lines.append)
    told = [line for line in lines if "trainer.speed" in line]
    assert len(told) == is_told
    for line in told:
        assert line.startswith(f"note    {config_file}:")
        assert "train.precision=bf16 may be faster, or slower" in line
        assert f"python -m trainer.speed --config {config_file} measures it" in line


@pytest.mark.parametrize(
    "capability, names",
    [((9, 0), ["bf16", "tf32"]), ((7, 5), ["fp16"]), ((6, 1), [])],
)
def test_of_a_gpu_it_tells_what_its_generation_has(config_file, monkeypatch, capability, names):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    told = note_on_unused(load_config(config_file), torch.device("cuda"))
    assert [name for name in ("bf16", "tf32", "fp16") if f"train.precision={name}" in told] == names
