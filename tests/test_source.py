"""Files that were written just now, whose digests the store does not remember, are read right."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from datasets import DataError
from datasets.image_folder import ImageFolder
from trainer.config import load_config
from trainer.inference.evaluation import evaluate_run
from trainer.input import source
from trainer.input.data import load_data
from trainer.input.kept import Kept

SIZES = "transforms.train=[{name: Resize, size: [8, 8]}, {name: Normalize, mean: [0.5], std: [1]}]"


@pytest.fixture
def fresh(tmp_path):
    """Thirty pictures of one class and three of another, each of one colour of its own."""
    for name, count in (("often", 30), ("seldom", 3)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(count):
            colour = (number, 100 + number, 50 * (name == "often"))
            Image.new("RGB", (12, 12), colour).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def colours(image):
    """The different pixels of (C, H, W)."""
    return image.flatten(1).T.unique(dim=0).tolist()


@pytest.mark.parametrize("by", ["content", "name"])
@pytest.mark.parametrize("cache", ["store", "ram"])
def test_each_sample_has_its_own_pixels_and_digest_whatever_it_is_split_by(
    fresh, config_file, by, cache
):
    options = ["dataset.name=ImageFolder", f"dataset.root={fresh}", f"loader.cache={cache}"]
    config = load_config(config_file, [*options, SIZES, f"split.by={by}"])
    data = load_data(config, torch.device("cpu"))
    assert {name for name, part in data.subsets.items() if set(part.labels.tolist()) == {0, 1}} == {
        "train",
        "val",
        "test",
    }  # the class of three gives each split one, wherever their hashes fall
    for split, part in data.subsets.items():
        assert isinstance(part.images, Kept)
        for row, (name, digest) in enumerate(data.split[split].items()):
            content = (fresh / name).read_bytes()
            assert colours(part.images[row]) == colours(pil_to_tensor(Image.open(fresh / name)))
            expected = hashlib.sha256(content).hexdigest()
            assert digest == (f"{len(content)} bytes" if by == "name" else expected)


@pytest.mark.parametrize("cache", ["auto", "device", "ram"])
def test_images_that_were_only_checked_are_prepared_when_they_are_to_be_kept(
    fresh, config_file, cache
):
    options = ["dataset.name=ImageFolder", f"dataset.root={fresh}", SIZES]
    load_data(load_config(config_file, [*options, "loader.cache=off"]), torch.device("cpu"))
    config = load_config(config_file, [*options, f"loader.cache={cache}"])
    for split, part in load_data(config, torch.device("cpu")).subsets.items():
        assert isinstance(part.images, Kept)
        for row, index in enumerate(part.indices.tolist()):
            path = fresh / part.dataset.ids[index]
            assert colours(part.images[row]) == colours(pil_to_tensor(Image.open(path))), split


@pytest.mark.parametrize(("before", "after"), [(2**32, 1), (1, 2**32)])
def test_a_run_is_judged_as_it_was_split_though_auto_would_split_otherwise_now(
    train, fresh, monkeypatch, before, after
):
    monkeypatch.setattr(source, "BY_NAME", before)
    run = train("dataset.name=ImageFolder", f"dataset.root={fresh}", "model.name=MLP")
    monkeypatch.setattr(source, "BY_NAME", after)
    expected = json.loads((run / "result.json").read_text())["test"]
    found = evaluate_run(run, load_config(run / "config.yaml"), "test")
    assert {name: found[name] for name in expected} == expected
    changed = next(iter(json.loads((run / "split.json").read_text())["test"]))
    Image.new("RGB", (99, 12)).save(fresh / changed)
    with pytest.raises(DataError, match=rf"{changed} has changed"):
        evaluate_run(run, load_config(run / "config.yaml"), "test")


def test_a_class_that_changes_images_only_is_asked_for_its_images(fresh, config_file, monkeypatch):
    class Inverted(ImageFolder):
        def image(self, index):
            return 255 - super().image(index)

    monkeypatch.setattr("datasets.image_folder.ImageFolder", Inverted)
    for cache in ("store", "ram", "off"):
        options = ["dataset.name=ImageFolder", f"dataset.root={fresh}", f"loader.cache={cache}"]
        part = load_data(load_config(config_file, [*options, SIZES]), torch.device("cpu")).subsets
        images, _ = part["train"].read(torch.arange(3), 0)
        for row, image in enumerate(images):
            path = Path(fresh, part["train"].dataset.ids[int(part["train"].indices[row])])
            assert colours(image) == colours(255 - pil_to_tensor(Image.open(path)))


def test_a_run_tells_what_fast_decoding_does_for_each_pipeline(fresh, config_file):
    pad = "transforms.eval=[{name: Pad, padding: 1}, {name: Resize, size: [8, 8]}]"
    options = ["dataset.name=ImageFolder", f"dataset.root={fresh}", SIZES, pad]
    notes = {
        decode: load_data(
            load_config(config_file, [*options, f"dataset.decode={decode}"]), torch.device("cpu")
        ).notes
        for decode in ("exact", "fast")
    }
    told = [note for note in notes["fast"] if note not in notes["exact"]]
    assert len(told) == 2 and all(note.startswith("dataset.decode=fast: JPEGs") for note in told)
    assert "transforms.train are decoded smaller if 16 pixels" in told[0]
    assert "transforms.eval are decoded whole" in told[1]
