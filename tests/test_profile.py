"""``--profile N``: the parts of a step are timed, and the step stays what it is."""

import gzip
import json
import re

import pytest
import torch

from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.loop.step import train_steps
from trainer.train import main
from trainer.tuning.profiling import PARTS, STEP_PREFIX, Parts
from trainer.tuning.race import batches_of, contender_of

CONFIG = """
dataset: {{name: RMB, root: {root}}}
transforms:
  train: [{{name: Resize, size: [32, 32]}}, {{name: Normalize, mean: [0.5], std: [0.25]}}]
  eval: [{{name: Resize, size: [32, 32]}}, {{name: Normalize, mean: [0.5], std: [0.25]}}]
loader: {{batch_size: 8, workers: 0}}
model: {{name: LeNet}}
optimizer: {{name: SGD, lr: 0.01}}
train: {{epochs: 2, device: cpu, threads: 1}}
"""


@pytest.fixture
def file(tmp_path, notes):
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.format(root=notes))
    return path


@pytest.mark.parametrize("more, forwards", [([], 1), (["train.accumulate=4"], 4)])
def test_each_part_is_counted_as_often_as_a_step_does_it(
    file, tmp_path, capsys, monkeypatch, more, forwards
):
    monkeypatch.setenv("COLUMNS", "100")
    runs = tmp_path / "runs"
    assert main(["--config", str(file), "--profile", "7", "--runs", str(runs), *more]) == 0
    out = capsys.readouterr().out
    rows = dict(re.findall(r"^(\w+) +[\d.]+ +[\d.]+% +([\d.]+)$", out, re.MULTILINE))
    assert list(rows)[: len(PARTS)] == list(PARTS)
    once = dict.fromkeys(PARTS, "1")
    several = dict.fromkeys(("forward", "loss", "backward"), str(forwards))
    checks = {"check": str(forwards)}
    assert rows.items() >= {**once, **several, **checks}.items()
    shares = re.findall(r"^(\w+) .* ([\d.]+)%", out, re.MULTILINE)
    assert sum(float(share) for name, share in shares if name in PARTS) == pytest.approx(100, abs=1)
    with gzip.open(runs / "small" / "profile" / "trace.json.gz") as trace:
        events = json.load(trace)["traceEvents"]
    begun = [event for event in events if event.get("name") == f"{STEP_PREFIX}optimizer"]
    assert len(begun) == 7
    assert [path.name for path in (runs / "small").iterdir()] == ["profile"]  # no run was begun


def test_steps_with_named_parts_give_the_same_bits(file):
    def weights(is_named):
        job = prepare(load_config(file, []), lambda line: None)
        contender = contender_of(job, 1)
        task, batches = contender.task, batches_of(contender, 5)
        if is_named:
            task, batches = Parts().named(task, batches)
        assert list(train_steps(task, batches, 0))
        return job.model.state_dict()

    plain, named = weights(False), weights(True)
    assert all(torch.equal(value, named[name]) for name, value in plain.items())


@pytest.mark.parametrize("steps", ["0", "-1", "many", "1000000"])
def test_another_number_of_steps_is_refused(file, capsys, steps):
    with pytest.raises(SystemExit) as end:
        main(["--config", str(file), f"--profile={steps}"])
    assert end.value.code == 2
    assert "is no number of steps from 1 to 1000" in capsys.readouterr().err


def test_one_of_several_processes_is_not_profiled(file, capsys, monkeypatch):
    launched = "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1"
    for variable in launched.split():
        monkeypatch.setenv(*variable.split("="))
    assert main(["--config", str(file), "--profile", "2"]) == 2
    assert "--profile looks at one process; leave torchrun out" in capsys.readouterr().err
