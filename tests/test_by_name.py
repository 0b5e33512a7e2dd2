"""split.by=name: a start reads no images, and what is broken is found when it is met."""

import hashlib
import json
import time

import pytest
import torch

from scripts import pack_shards
from tests.stored_pictures import Counted, is_right, load, recipe, resized, write_pictures
from trainer import evaluate
from trainer.config import load_config
from trainer.input import source
from trainer.input.loader import Delivery, Loader, Order
from trainer.input.source import PROBED
from trainer.train import main

NAME, OFF, SKIP = "split.by=name", "loader.cache=off", "dataset.on_broken=skip"
PARTS = ("train", "val", "test")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(source, "clock", lambda: time.time_ns() + 10**10)  # files are old by then
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def file(root, tmp_path):
    return recipe(tmp_path / "a.yaml", root)


@pytest.fixture
def start(file, tmp_path):
    def command(*more):
        return main(["--config", str(file), "--runs", str(tmp_path / "runs"), *more])

    return command


def newest(tmp_path):
    return max((tmp_path / "runs" / "a").iterdir())


def spoil(root, name):
    """Make a file no image, of the same size."""
    size = (root / name).stat().st_size
    (root / name).write_bytes(b"no image".ljust(size, b"\0"))


def spoilt_part(file, root, part, count=2):
    """Spoil some images of train, val or test, and return their names."""
    names = list(load(file, NAME, OFF).split[part])[1 : 1 + count]
    for name in names:
        spoil(root, name)
    return names


def test_a_start_decodes_a_few_images_and_reads_no_other(file, root, monkeypatch):
    counted = Counted(monkeypatch)
    data = load(file, NAME, OFF)
    assert len(set(counted.read)) <= 3 * PROBED
    assert sorted(name for part in PARTS for name in data.split[part]) == sorted(data.dataset.ids)
    monkeypatch.setattr(source, "PROBED", 2)
    counted.clear()
    load(file, NAME, OFF, "split.ratios=[1,1,1]")
    assert len(counted.read) <= 3 * 2
    assert is_right(data, root)


def test_split_json_holds_sizes_and_says_so(file, root):
    data = load(file, NAME, OFF)
    assert data.split["by"] == "name"
    for part in PARTS:
        for name, identity in data.split[part].items():
            assert identity == f"{(root / name).stat().st_size} bytes"


def test_a_hash_of_seed_and_name_decides_the_split_whatever_the_content(file, root):
    before = load(file, NAME, OFF)
    for name in list(before.split["train"])[::2]:
        spoil(root, name)
    assert load(file, NAME, OFF, SKIP).split == before.split
    content = load(file, SKIP)
    assert set(content.split["train"]) != set(before.split["train"]) and "by" not in content.split


@pytest.mark.parametrize("cache", ["off", "ram", "store", "auto"])
def test_the_split_is_the_same_with_every_cache_and_the_images_are_right(file, root, cache):
    wanted = load(file, NAME, OFF).split
    for _ in range(2):
        data = load(file, NAME, f"loader.cache={cache}")
        assert data.split == wanted and is_right(data, root)


def test_auto_splits_by_name_where_the_files_have_more_bytes_than_that(file, root, monkeypatch):
    size = sum(path.stat().st_size for path in root.rglob("*.*"))
    monkeypatch.setattr(source, "BY_NAME", size)
    assert "by" not in load(file, OFF).split
    monkeypatch.setattr(source, "BY_NAME", size - 1)
    assert load(file, OFF).split["by"] == "name"
    assert "by" not in load(file, OFF, "split.by=content").split


def test_shards_are_split_as_the_folder_that_they_were_packed_from(
    file, root, tmp_path, monkeypatch
):
    monkeypatch.setattr(source, "BY_NAME", 1)
    assert pack_shards.main(["--source", str(root), "--target", str(tmp_path / "packed")]) == 0
    wanted = load(file, OFF).split
    packed = load(file, OFF, "dataset.name=Shards", f"dataset.root={tmp_path / 'packed'}").split
    assert wanted["by"] == "name" and packed == wanted


# --- broken images --------------------------------------------------------------------------------


def batches(data, workers):
    """What each row of train becomes: by its name, the image; and the labels."""
    subset = data.subsets["train"]
    loader = Loader(subset, 3, Order(), Delivery(workers))
    try:
        found = list(loader.epoch(0))
    finally:
        loader.close()
    names = list(data.split["train"])
    images = torch.cat([images for images, _ in found])
    labels = torch.cat([labels for _, labels in found])
    return {name: (images[k], int(labels[k])) for k, name in enumerate(names)}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["off", "store", "ram"])
@pytest.mark.parametrize("which", ["first", "neighbours", "last"])
def test_the_next_image_that_can_be_read_takes_the_place_of_a_broken_one(
    file, root, capsys, cache, workers, which
):
    names = list(load(file, NAME, OFF).split["train"])
    chosen = {"first": [0], "neighbours": [4, 5], "last": [len(names) - 1]}[which]
    for k in chosen:
        spoil(root, names[k])
    readable = [k for k in range(len(names)) if k not in chosen]
    for _ in range(2):
        data = load(file, NAME, SKIP, f"loader.cache={cache}")
        assert list(data.split["train"]) == names
        shown = batches(data, workers)
        for k, name in enumerate(names):
            instead = names[next((one for one in readable if one >= k), readable[0])]
            image, label = shown[name]
            assert torch.equal(image, resized(root / instead) / 255), (name, instead)
            assert label == ("cat", "dog").index(instead.partition("/")[0])
        batches(data, workers)
        assert sorted(path for path, _ in data.left_out) == [str(root / names[k]) for k in chosen]
        told = capsys.readouterr().out.splitlines()
        if cache == "off":
            for k in chosen:
                assert (
                    sum(f"left out {root / names[k]}: not an image" in line for line in told) == 1
                )


@pytest.mark.parametrize("cache", ["off", "store"])
@pytest.mark.parametrize("part", ["val", "test"])
def test_broken_images_of_val_and_test_are_left_out_before_the_start(file, root, part, cache):
    wide = "split.ratios=[2,1,1]"
    before = load(file, NAME, OFF, wide).split
    broken = list(before[part])[:2]
    for name in broken:
        spoil(root, name)
    data = load(file, NAME, SKIP, wide, f"loader.cache={cache}")
    assert [path for path, _ in data.skipped] == [str(root / name) for name in sorted(broken)]
    # As a class is small, others may take their places.
    every = {name for one in PARTS for name in data.split[one]}
    assert every == set(data.dataset.ids) - set(broken)
    for one in ("val", "test"):
        images, _ = data.subsets[one].read(torch.arange(len(data.split[one])), 0)
        for name, image in zip(data.split[one], images, strict=True):
            assert torch.equal(image, resized(root / name))


@pytest.mark.parametrize("cache", ["off", "store"])
def test_a_run_with_broken_images_ends_well_and_lists_each_once(
    file, root, start, tmp_path, capsys, cache
):
    broken = spoilt_part(file, root, "train", 2)
    assert start(NAME, SKIP, f"loader.cache={cache}", "train.epochs=2") == 0
    out = capsys.readouterr().out
    run = newest(tmp_path)
    result = json.loads((run / "result.json").read_text())
    assert sorted(one["path"] for one in result["dataset"]["left_out"]) == sorted(
        str(root / name) for name in broken
    )
    for name in broken:
        assert sum(line.startswith(f"left out {root / name}") for line in out.splitlines()) == 1
    assert evaluate.main([str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(result["test"]["loss"], rel=1e-6)
    assert evaluate.main([str(run), "--split", "val"]) == 0


def metrics(run):
    """What metrics.jsonl tells but for times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "/loss" in k or "accuracy" in k} for line in lines]


FEW = (("off", 0), ("store", 2), ("store", 0), ("off", 2), ("ram", 2))
ALL = tuple((cache, workers) for cache in ("off", "store", "off", "ram") for workers in (0, 2))


@pytest.mark.parametrize("ways", [FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=len)
def test_the_curves_are_the_same_with_every_cache_and_worker_count(
    file, root, start, tmp_path, ways
):
    spoilt_part(file, root, "train", 2)
    found = []
    for cache, workers in ways:
        more = (f"loader.cache={cache}", f"loader.workers={workers}")
        assert start(NAME, SKIP, "train.epochs=2", *more) == 0
        found.append(metrics(newest(tmp_path)))
    assert found[0] and all(one == found[0] for one in found)


def test_a_resumed_run_has_the_curves_of_one_that_never_stopped(file, root, start, tmp_path):
    spoilt_part(file, root, "train", 2)
    assert start(NAME, SKIP, OFF, "train.epochs=4") == 0
    whole = metrics(newest(tmp_path))
    assert start(NAME, SKIP, OFF, "train.epochs=2") == 0
    half = newest(tmp_path)
    assert main(["--resume", str(half), "train.epochs=4", "loader.workers=2"]) == 0
    trained = [
        [one for one in lines if "train/loss_epoch" in one] for lines in (metrics(half), whole)
    ]
    assert trained[0] == trained[1] and len(trained[0]) == 4


def test_with_on_broken_error_a_broken_image_ends_the_run_with_its_path(file, root, start, capsys):
    names = list(load(file, NAME, OFF).split["train"])
    spoil(root, names[7])  # is not among those that are decoded first, or is
    for cache, workers in (("off", 0), ("off", 2), ("store", 0)):
        more = (f"loader.cache={cache}", f"loader.workers={workers}")
        assert start(NAME, "train.epochs=2", *more) == 3
        told = capsys.readouterr().err
        assert f"{root / names[7]}: not an image" in told and "Traceback" not in told


@pytest.mark.parametrize("cache", ["off", "store", "ram"])
def test_where_all_of_train_is_broken_it_is_an_error_of_the_data(file, root, start, capsys, cache):
    for name in load(file, NAME, OFF).split["train"]:
        spoil(root, name)
    assert start(NAME, SKIP, f"loader.cache={cache}") == 3
    told = capsys.readouterr().err
    assert "Traceback" not in told and "train" in told


def test_a_file_that_has_changed_size_is_named_by_evaluate(file, root, start, tmp_path, capsys):
    assert start(NAME, OFF) == 0
    run = newest(tmp_path)
    name = next(iter(json.loads((run / "split.json").read_text())["test"]))
    with open(root / name, "ab") as out:
        out.write(b"more")
    assert evaluate.main([str(run)]) == 3
    assert f"{name} has changed" in capsys.readouterr().err


def test_the_keys_of_names_are_their_hashes(file, root):
    """An independent cut of the same places."""
    data = load(file, NAME, OFF)
    dataset = data.dataset
    made = source.Source(
        dataset,
        {side: data.subsets[part].pipeline for side, part in (("train", "train"), ("eval", "val"))},
        load_config(file, [NAME]),
        torch.device("cpu"),
    )
    wanted = [hashlib.sha256(name.encode()).hexdigest() for name in dataset.ids]
    assert list(made.split_keys()) == wanted
