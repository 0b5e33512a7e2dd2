"""The benchmark measures what it says: equal work, the real command, ratios of raw numbers."""

import json
import math
import re
import statistics
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from datasets.fashion_mnist import FashionMNIST
from models.lenet import LeNet
from models.mlp import MLP
from scripts import benchmark_models
from scripts.benchmark import main
from scripts.benchmark_arms import ARMS, framework, is_installed, new_model, train_by_command
from scripts.benchmark_cases import fashion_task, measure_rmb, measure_step
from scripts.benchmark_report import (
    fashion_ratios,
    model_rows,
    own_cost,
    picture,
    report,
    rmb_ratio,
)
from scripts.benchmark_showing import main as showing
from trainer.loop.step import new_task
from trainer.process.errors import RunError
from trainer.run.folder import read_metrics

CPU = torch.device("cpu")
MACHINE = {"processor": "a & b", "torch": "2", "commit": "abc1234"}


@pytest.fixture
def task(fashion_root, tmp_path):
    return fashion_task(str(fashion_root), 8, CPU, tmp_path)


def count_training(monkeypatch, model_class):
    """The sizes of all batches that a model of this class is trained on from now on."""
    sizes = []
    forward = model_class.forward

    def counting(self, images):
        if self.training and images.device == CPU:  # on "meta" only shapes are tried
            sizes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(model_class, "forward", counting)
    return sizes


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_trains_on_as_many_images_as_it_claims(name, task, monkeypatch):
    if not is_installed(name):
        pytest.skip(f"{name} is not installed")
    sizes = count_training(monkeypatch, LeNet)
    outcome = ARMS[name](task, len(task.images), 3)
    assert set(sizes) == {8}
    assert (outcome.images, outcome.steps) == (sum(sizes), len(sizes))
    assert outcome.steps == 3 * (len(task.images) // 8)
    assert math.isfinite(outcome.loss) and outcome.images_per_second > 0


FIXED = ("computing alone", "computing alone, tuned")


def test_all_arms_see_batches_of_one_distribution(task, monkeypatch):
    statistics_of = {}
    for name in ARMS:
        if name in (*FIXED, "Lightning", "timm"):  # no augmentation; as DataLoader; own
            continue
        seen: list[torch.Tensor] = []
        forward = LeNet.forward

        def looking(self, images, forward=forward, seen=seen):
            if self.training and images.device == CPU:
                seen.append(images.detach().clone())
            return forward(self, images)

        with monkeypatch.context() as patch:
            patch.setattr(LeNet, "forward", looking)
            ARMS[name](task, len(task.images), 5)
        images = torch.cat(seen)
        assert images.shape[1:] == (1, 32, 32) and images.dtype == torch.float32
        statistics_of[name] = (images.mean().item(), images.std().item(), images.min().item())
    expected = statistics_of.pop("DataLoader, 0 workers")
    for name, found in statistics_of.items():
        assert found == pytest.approx(expected, rel=0.03), name


def test_the_framework_runs_through_its_command_and_all_start_from_its_weights(task):
    framework(task, len(task.images), 3)
    (file,) = task.runs.glob("*/benchmark.yaml")
    (result,) = task.runs.glob("*/benchmark/*/result.json")
    assert json.loads(result.read_text())["status"] == "done"
    assert (result.parent / "report").is_dir()
    run = train_by_command(file, ["optimizer.lr=1e-30", "train.epochs=1"], task.runs)
    weights = torch.load(run.folder / "model.pt", weights_only=True)
    ours = new_model(task).state_dict()
    assert weights.keys() == ours.keys()
    for name, tensor in ours.items():  # biases begin at 0, and move even at such a rate
        assert torch.allclose(weights[name], tensor, rtol=0, atol=1e-25), name


def test_the_task_is_the_training_split_of_the_framework(task, fashion_root):
    framework(task, len(task.images), 3)
    (file,) = task.runs.glob("*/benchmark/*/split.json")
    names = json.loads(file.read_text())["train"]
    assert len(task.images) == len(names)
    dataset = FashionMNIST(str(fashion_root), download=False)
    rows = [row for row, name in enumerate(dataset.ids) if name in names]
    assert torch.equal(task.images, dataset.images[rows])


def test_a_run_that_fails_is_told_with_what_it_said(task):
    framework(task, len(task.images), 3)
    (file,) = task.runs.glob("*/benchmark.yaml")
    with pytest.raises(RunError, match="exit code 2(.|\n)*optimiser"):
        train_by_command(file, ["optimiser.lr=1"], task.runs)


def test_the_ratios_of_the_written_table_are_those_of_the_raw_numbers(
    fashion_root, tmp_path, capsys
):
    out = tmp_path / "out"
    arguments = ["--cases", "fashion", "--arms", "by hand", "framework", "--quick", "--blocks", "2"]
    places = ["--batch-size", "8", "--root", str(fashion_root), "--out", str(out)]
    assert main([*arguments, *places]) == 0
    raw = json.loads((out / "benchmark.json").read_text())["fashion"]
    text = (out / "benchmark.md").read_text()
    assert text in capsys.readouterr().out
    assert [len(raw[name]) for name in ("computing alone", "by hand", "framework")] == [4, 2, 2]
    for name in ("by hand", "framework"):
        ratios = []
        for block in (0, 1):
            alone = [row["images_per_second"] for row in raw["computing alone"][2 * block :][:2]]
            ratios.append(raw[name][block]["images_per_second"] / (sum(alone) / 2))
        shown = re.findall(rf"^\| {name} +\| (\d+\.\d+) +\|", text, re.MULTILINE)
        assert shown[0] == f"{statistics.median(ratios):.3f}"
        assert f"{min(ratios):.3f} to {max(ratios):.3f}" in text
        speeds = [row["images_per_second"] for row in raw[name]]
        assert f"| {statistics.median(speeds):,.0f} " in text
    assert (out / "benchmark.svg").exists()


def arms(*speeds_by_block):
    rows = [
        {"block": block, "images_per_second": speed, "images": 10, "steps": 2, "loss": 1.0}
        for block, speed in speeds_by_block
    ]
    return rows


def test_a_block_in_which_the_machine_was_slower_changes_no_ratio_and_is_told():
    found = {
        "computing alone": arms((0, 100), (0, 100), (1, 10), (1, 10)),
        "framework": arms((0, 95), (1, 9.5)),
    }
    assert fashion_ratios(found)["framework"] == pytest.approx([0.95, 0.95])
    assert "Not a quiet machine" in report({"machine": MACHINE, "fashion": found})


def test_the_picture_has_a_bar_as_long_as_each_ratio():
    found = {"computing alone": arms((0, 80), (0, 120)), "framework": arms((0, 50))}
    root = ElementTree.fromstring(picture({"machine": MACHINE, "fashion": found}))
    widths = [float(bar.attrib["width"]) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[1] == widths[0] / 2
    line = next(root.iter("{http://www.w3.org/2000/svg}line"))
    bar = next(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert float(line.attrib["x1"]) == float(bar.attrib["x"]) + widths[0]


@pytest.mark.parametrize(("speed", "verdict"), [(92, "met"), (91, "not")])
def test_a_target_is_met_from_its_very_value_on(speed, verdict):
    found = {"computing alone": arms((0, 100), (0, 100)), "framework": arms((0, speed))}
    text = report({"machine": MACHINE, "fashion": found})
    assert re.search(rf"of computing alone +\| 0\.{speed} +\| >= 0\.92 \| {verdict} ", text)


def test_the_cost_of_a_step_is_measured_over_equally_many_steps(tmp_path, monkeypatch):
    sizes = count_training(monkeypatch, MLP)
    measured = measure_step(400, 1, CPU, tmp_path, lambda line: None)
    assert set(sizes) == {8}
    ready, gathered, own = measured.values()
    steps = len(sizes) / 6  # three ways, in the warm-up and in one block
    assert steps >= 800 and abs(steps - 1000) < 30  # the framework's split is one by hash
    assert len(ready) == len(gathered) == len(own) == 1 and min(ready + gathered + own) > 0
    assert own_cost(measured, "bare loop, batches ready") == [own[0] - ready[0]]


def test_photographs_are_measured_through_the_command_and_against_equal_steps(notes, tmp_path):
    said: list[str] = []
    (rows,) = measure_rmb(str(notes), ["LeNet"], 1, CPU, tmp_path, said.append).values()
    (row,) = rows
    result = json.loads(next(tmp_path.glob("*/lenet_rmb/*/result.json")).read_text())
    assert row["steps"] == 10 * math.ceil(result["dataset"]["images"]["train"] / 16)
    assert row["photographs"] == 50 and len(said) == 1
    assert rmb_ratio(rows) == row["framework"] / (row["decode"] + row["compute"])


@pytest.mark.parametrize("case", ["fashion", "rmb"])
def test_missing_data_is_one_clear_line_and_exit_code_3(case, tmp_path, capsys):
    absent, out = str(tmp_path / "absent"), tmp_path / "out"
    places = ["--root", absent, "--rmb", absent, "--out", str(out)]
    assert main(["--cases", case, *places]) == 3
    told = capsys.readouterr().err.strip()
    assert absent in told and "\n" not in told
    assert not out.exists()


def test_an_unknown_arm_is_told_with_the_known_ones(capsys):
    assert main(["--arms", "keras"]) == 2
    assert "keras" in (told := capsys.readouterr().err) and "by hand" in told


def test_the_cost_of_saving_is_measured_in_one_run_saved_in_every_second_epoch(
    config_file, tmp_path, monkeypatch, capsys
):
    from scripts import benchmark_saving

    resumed: list[tuple[str, int]] = []

    def resume(run, epochs):
        resumed.append((run.name, epochs))
        return 0.5

    monkeypatch.setattr(benchmark_saving, "resume", resume)
    assert benchmark_saving.main(["--config", str(config_file), "--epochs", "9"]) == 0
    told = capsys.readouterr().out
    assert "9 epochs, every second one saved" in told
    assert "saving costs " in told and "MiB a checkpoint" in told
    assert len(resumed) == 3 and resumed[0][1] == 9
    plain, saved, waits = benchmark_saving.measure(str(config_file), ["train.epochs=9"], tmp_path)
    assert (len(plain), len(saved)) == (3, 3)  # epochs 4, 6, 8 and 5, 7, 9
    assert len(waits) >= 4
    (run,) = [path for path in (tmp_path / "small").iterdir() if path.is_dir()]
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert len(names) == 2 and len(read_metrics(run / "metrics.jsonl")) > 9


def test_the_time_to_resume_is_that_of_a_real_run(finished, monkeypatch):
    from scripts.benchmark_saving import resume

    assert 0 < resume(finished(), 2) < 60


def test_what_showing_costs_is_measured_on_real_runs(config_file, notes, capsys):
    words = ["--config", str(config_file), "--root", str(notes), "--pairs", "1"]
    assert showing([*words, "train.epochs=1"]) == 0
    told = capsys.readouterr().out
    assert "shown" in told and "not shown" in told and "median of 1 pair" in told


def test_advice_is_compared_with_runs_without_it_and_with_what_was_not_advised(monkeypatch, capsys):
    from scripts import benchmark_advice

    rows = [
        {"settings": {"train.precision": "bf16"}, "ratio": 0.9, "failed": None},
        {"settings": {"train.threads": 1}, "ratio": 1.25, "failed": None},
        {"settings": {"train.accumulate": 2}, "ratio": None, "failed": "out of memory"},
    ]
    facts = {"advice": ["train.threads=1"], "rows": rows}
    monkeypatch.setattr(benchmark_advice, "output_of", lambda *_: json.dumps(facts))
    speeds = {"train.threads=1": 120.0, "train.precision=bf16": 80.0}
    calls = []

    def run(words, epochs):
        calls.append((words[-1], epochs))
        return speeds.get(words[-1], 100.0)

    monkeypatch.setattr(benchmark_advice, "images_per_second", run)
    assert benchmark_advice.main(["--data", "here", "--only", "alexnet"]) == 0
    kinds = ["dataset.root=here/rmb", *speeds]  # alone, with the advice, in bf16
    assert calls == [(kind, 2) for kind in kinds] * 2
    told = capsys.readouterr().out
    assert "advised train.threads=1" in told and "out of memory" in told
    assert "with the advice      120.0, 120.0 images/s; x 1.200, 1.200" in told
    assert "in bf16, not advised 80.0, 80.0 images/s; x 0.800, 0.800" in told


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bare_loop_ends_with_the_weights_of_the_framework(precision, tmp_path, monkeypatch):
    seen = []
    original = benchmark_models.bare_loop

    def keeping(model, config, precision):
        seen.append(model)
        return original(model, config, precision)

    def taking_the_model(job, guard):
        seen.append(job.model)
        return new_task(job, guard)

    monkeypatch.setattr(benchmark_models, "bare_loop", keeping)
    monkeypatch.setattr(benchmark_models, "new_task", taking_the_model)
    arms = benchmark_models.arms_of("lenet_rmb", precision, CPU, tmp_path)
    before = [weight.clone() for weight in seen[0].parameters()]
    for do in arms.values():
        do(3)
    framework, bare = seen
    moved = [not torch.equal(a, b) for a, b in zip(before, bare.parameters(), strict=True)]
    assert any(moved)
    for own, by_hand in zip(framework.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(own, by_hand, rtol=1e-6, atol=1e-9)


def test_two_arms_take_turns_of_equal_work_and_the_table_has_the_median_of_their_ratios():
    done: dict[str, list[int]] = {"bare": [], "framework": []}
    arms = {name: of.append for name, of in done.items()}
    rows = benchmark_models.in_turns(arms, 0.0)
    assert done["bare"] == done["framework"] and len(rows) == 3
    turns = [
        {"bare": (1.0, 2.0), "framework": (1.5, 2.0)},
        {"bare": (10.0, 2.0), "framework": (11.0, 3.0)},
        {"bare": (2.0, 2.0), "framework": (2.0, 5.0)},
    ]
    (row,) = model_rows({"LeNet": {"bf16": turns}})
    expected = ["LeNet", "bf16", "1.100", "1.00 to 1.50", "1.500", "2000.0", "2000.0", "3"]
    assert row == expected
