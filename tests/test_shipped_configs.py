"""Every YAML that is shipped passes a dry run on small data of its own format."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml

import datasets.cifar10
from trainer.train import main

CONFIGS = sorted(Path("configs").glob("*.yaml"))
SHIPPED = {
    *("lenet_rmb", "alexnet_rmb", "vgg16_rmb", "resnet18_rmb", "lenet_rmb_grayscale"),
    *("lenet_fashion_mnist", "vgg11_fashion_mnist", "mlp_fashion_mnist", "resnet_fashion_mnist"),
    *("lenet_cifar10", "alexnet_cifar10", "vgg16_cifar10", "resnet18_cifar10", "cifar10_speedrun"),
    *("cifar10_cpu", "resnet18_finetune", "own_photos"),
}


NARROW = "model.widths=[64, 64, 64]"  # Muon's bfloat16 matrices are slow where a CPU lacks it
SMALLER = {"cifar10_cpu": NARROW, "cifar10_speedrun": NARROW, "vgg16_rmb": "model.depth=11"}
SMALL_AND_WHOLE = [
    *(pytest.param(path, SMALLER.get(path.stem), id=path.stem) for path in CONFIGS),
    *(
        pytest.param(path, None, marks=pytest.mark.slow, id=f"{path.stem}, whole")
        for path in CONFIGS
        if path.stem in SMALLER
    ),
]


@pytest.fixture
def cifar_root(tmp_path, monkeypatch):
    """Twenty images a batch in CIFAR-10's own pickles; their digests count as official."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random, digests = np.random.default_rng(0), {}
    for name in datasets.cifar10.BATCHES:
        data = random.integers(0, 256, (20, 3072), dtype=np.uint8)
        array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNK\x00K\x00K\x00tb"
        labels = b"".join(b"K%c" % (index % 10) for index in range(20))
        content = b"\x80\x02}(U\x06labels](" + labels + b"eU\x04data" + array
        content += b"(K\x01K\x14M\x00\x0c\x86" + dtype + b"\x89T\x00\xf0\x00\x00" + data.tobytes()
        content += b"tbu."  # as Python 2 pickled the official ones
        (folder / name).write_bytes(content)
        digests[name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(datasets.cifar10, "BATCHES", digests)
    return tmp_path


def test_the_list_of_shipped_yamls_is_whole():
    assert {path.stem for path in CONFIGS} == SHIPPED


@pytest.mark.parametrize(("path", "smaller"), SMALL_AND_WHOLE)
def test_every_shipped_yaml_passes_a_dry_run(path, smaller, request, tmp_path, monkeypatch, capsys):
    """Its steps are real ones, but few: how long an epoch takes is no matter here."""
    monkeypatch.setattr("trainer.loop.model_summary.TIMED_SECONDS", 0.0)
    text = path.read_text()
    kind = yaml.safe_load(text)["dataset"]["name"]
    fixtures = {"FashionMNIST": "fashion_root", "CIFAR10": "cifar_root"}
    root = request.getfixturevalue(fixtures.get(kind, "notes"))
    overrides = [f"dataset.root={root}", "loader.batch_size=4", "loader.drop_last=true"]
    overrides += [smaller] if smaller else []
    if path.stem == "resnet18_finetune":  # its weights cannot be fetched here: others of their form
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
        overrides.append(f"model.weights={tmp_path / 'resnet18.pth'}")
    runs = tmp_path / "runs"
    arguments = ["--config", str(path), "--runs", str(runs), "--dry-run", *overrides]
    assert main(arguments) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "batch   4 x" in shown and "dry run: no run was begun" in shown
    assert not runs.exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_yaml_opens_with_schema_command_and_measured_result(path):
    schema, _, *rest = path.read_text().splitlines()
    assert schema == "# yaml-language-server: $schema=./schema.json"
    head = "\n".join(line for line in rest[:6] if line.startswith("#"))
    assert f"python -m trainer.train --config configs/{path.name}" in head
    assert "# Measured: " in head
