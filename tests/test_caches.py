"""Every cache, worker count, batch size and kind of dataset gives a sample the same bits."""

import csv
import hashlib
import json
import re
import shutil
import time

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
from PIL import Image

from scripts import pack_shards
from tests.stored_pictures import (
    RESIZED,
    Counted,
    is_right,
    load,
    pixels_of,
    recipe,
    shown,
    write_pictures,
)
from trainer import data as data_command
from trainer.input import source
from trainer.input.kept import Kept
from trainer.input.loader import Delivery, Loader, Order
from transforms.keyed import permutation

CROPS = "[{name: RandomResizedCrop, size: 16}, {name: RandomHorizontalFlip}]"
KEPT_RATIO = "[{name: Resize, size: 20}, {name: CenterCrop, size: 16}]"
SMALL_CROPS = f"{RESIZED[:-1]}, {{name: RandomCrop, size: 16, padding: 2}}]"
SMALL = f"{RESIZED[:-1]}, {{name: CenterCrop, size: 16}}]"
LISTS = {"photographs": (CROPS, KEPT_RATIO), "small": (SMALL_CROPS, SMALL)}


@pytest.fixture(autouse=True)
def _empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(source, "clock", lambda: time.time_ns() + 10**10)  # files are old by then


@pytest.fixture
def root(tmp_path):
    """Photographs of 24 sizes, of which a few are large enough to be treated one by one."""
    root = write_pictures(tmp_path / "pictures")
    drawn = np.random.default_rng(1)
    for k, name in enumerate(("cat/90.jpg", "dog/90.jpg", "cat/91.jpg", "dog/91.jpg")):
        coarse = Image.fromarray(drawn.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((420 + k, 380 - k), Image.Resampling.BICUBIC).save(root / name)
    return root


def digests(data, workers, batch_size, epoch):
    """SHA-256 of each sample's tensor, and its label, by its id."""
    found = {}
    for split, subset in data.subsets.items():
        seed = 3 if split == "train" else None
        loader = Loader(subset, batch_size, Order(seed), Delivery(workers))
        rows = torch.arange(len(subset))
        if seed is not None:
            rows = permutation(len(subset), seed, epoch)
        names = [data.dataset.ids[index] for index in subset.indices[rows].tolist()]
        try:
            batches = list(loader.epoch(epoch))
        finally:
            loader.close()
        images = torch.cat([images for images, _ in batches])
        labels = torch.cat([labels for _, labels in batches])
        for name, image, label in zip(names, images, labels.tolist(), strict=True):
            bits = hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
            assert name not in found
            found[name] = (split, bits, label)
    return found


# auto reads the store, or makes it where there is none.
EACH = ("off", "ram", "auto", "store")
AGAIN = ("off", "ram", "auto", "store", "auto", "off", "store")


@pytest.mark.parametrize("caches", [EACH, pytest.param(AGAIN, marks=pytest.mark.slow)], ids=len)
@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("kind", LISTS)
def test_every_cache_worker_count_and_start_gives_a_sample_the_same_bits(
    root, tmp_path, kind, decode, caches
):
    file = recipe(tmp_path / "a.yaml", root, *LISTS[kind])
    wanted: dict[str, tuple[str, str, int]] = {}
    for number, cache in enumerate(caches):
        data = load(file, f"dataset.decode={decode}", f"loader.cache={cache}")
        where = {"off": "off", "ram": "ram"}.get(cache, "store")
        assert {subset.cache for subset in data.subsets.values()} == {where}
        for workers, batch_size in ((0, 3 + number), (2, 5)):
            found = digests(data, workers, batch_size, epoch=1)
            wanted = wanted or found
            assert found == wanted, (cache, workers, batch_size)
    assert len(wanted) == 28


def test_val_has_the_bits_of_pillow_and_torchvision_from_every_cache(root, tmp_path):
    file = recipe(tmp_path / "a.yaml", root, CROPS, KEPT_RATIO)
    whole = v2.Compose([v2.Resize(20), v2.CenterCrop(16)])
    for cache in ("off", "ram", "store", "store"):
        data = load(file, f"loader.cache={cache}")
        for split in ("val", "test"):
            assert len(data.subsets[split]) > 1
            for name, image in shown(data.subsets[split]).items():
                assert torch.equal(image, whole(pixels_of(root / name))), (cache, name)


def test_photographs_are_kept_as_they_are_and_the_extremes_are_those_of_all(root, tmp_path):
    file = recipe(tmp_path / "a.yaml", root, CROPS, "[]")
    for _ in range(2):
        data = load(file)
        for subset in data.subsets.values():
            sizes = []
            assert isinstance(subset.images, Kept)
            for index, row in zip(subset.indices.tolist(), range(len(subset)), strict=True):
                image = pixels_of(root / data.dataset.ids[index])
                assert torch.equal(subset.images[row], image)
                sizes.append(tuple(image.shape[1:]))
            chosen = [sizes[row] for row in subset.extremes.tolist()]
            for side in (0, 1):
                assert min(one[side] for one in chosen) == min(one[side] for one in sizes)
                assert max(one[side] for one in chosen) == max(one[side] for one in sizes)


# --- Shards and tables ----------------------------------------------------------------------------


def other(file, dataset):
    """The same file with another dataset."""
    file.write_text(re.sub("^dataset: .*", f"dataset: {dataset}", file.read_text(), flags=re.M))
    return file


def test_a_table_of_the_files_and_shards_of_them_use_the_folders_pool(root, tmp_path, monkeypatch):
    pytest.importorskip("webdataset", reason='pip install -e ".[shards]"')
    file = recipe(tmp_path / "a.yaml", root)
    first = load(file)
    with open(tmp_path / "table.csv", "w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("path", "label"))
        rows.writerows((name, name.partition("/")[0]) for name in first.dataset.ids)
    target = tmp_path / "shards"
    assert pack_shards.main(["--source", str(root), "--target", str(target)]) == 0
    counted = Counted(monkeypatch)
    table = load(other(file, f"{{name: CSVImages, root: {root}, csv: {tmp_path / 'table.csv'}}}"))
    packed = load(other(file, f"{{name: Shards, root: {target}}}"))
    for data in (table, packed):
        assert is_right(data, root) and data.split == first.split
        assert data.notes == first.notes
        assert {subset.cache for subset in data.subsets.values()} == {"store"}
    assert counted.read == counted.decoded == []
    assert len(list((tmp_path / "store" / "images").iterdir())) == 1


@pytest.mark.parametrize("cache", ["auto", "ram", "store", "off"])
def test_shards_alone_are_stored_and_right(root, tmp_path, monkeypatch, cache):
    pytest.importorskip("webdataset", reason='pip install -e ".[shards]"')
    target = tmp_path / "shards"
    assert pack_shards.main(["--source", str(root), "--target", str(target)]) == 0
    file = recipe(tmp_path / "a.yaml", root)
    other(file, f"{{name: Shards, root: {target}}}")
    for start in range(2):
        assert is_right(load(file, f"loader.cache={cache}"), root)
        if start == 0 and cache in ("auto", "store"):
            monkeypatch.setattr("datasets.shards.Shards.content", None)


@pytest.mark.parametrize("cache", ["auto", "ram", "store", "off"])
def test_a_table_whose_files_lie_outside_of_the_classes_is_right(root, tmp_path, cache):
    flat = tmp_path / "flat"
    flat.mkdir()
    rows = ["path,label"]
    for path in sorted(root.rglob("*.*")):
        shutil.copy(path, flat / f"{path.parent.name}-{path.name}")
        rows.append(f"{path.parent.name}-{path.name},{path.parent.name}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    file = recipe(tmp_path / "a.yaml", flat)
    other(file, f"{{name: CSVImages, root: {flat}, csv: {tmp_path / 'table.csv'}}}")
    for _ in range(2):
        assert is_right(load(file, f"loader.cache={cache}"), flat)


# --- python -m trainer.data --store ---------------------------------------------------------------


@pytest.fixture
def entries(root, tmp_path):
    """Two pools: 28 images of train, and 4 of them for val and test; the names of their folders."""
    load(recipe(tmp_path / "a.yaml", root, RESIZED, "[{name: Resize, size: [4, 4]}]"))
    return sorted(path.name for path in (tmp_path / "store" / "images").iterdir())


def stored(capsys, *arguments):
    capsys.readouterr()
    assert data_command.main(["--store", *arguments]) == 0
    return capsys.readouterr().out


def test_the_store_is_listed(entries, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    head, titles, *lines = stored(capsys).splitlines()
    root, _, sizes = head.partition(": ")
    assert root == str(tmp_path / "store") and sizes.endswith("B of at most 100 GB")
    assert titles.split() == ["key", "images", "size", "last", "used", "made", "by"]
    assert sorted(line.split()[0] for line in lines) == [name[:12] for name in entries]
    # A few are prepared for both, as a class had too few for val or test.
    assert 28 <= sum(int(line.split()[1]) for line in lines) < 35
    assert any(line.endswith("exact decoding, Resize([4, 4])") for line in lines)


def test_the_store_is_listed_as_json(entries, tmp_path, capsys):
    listed = json.loads(stored(capsys, "--json"))
    assert listed["root"] == str(tmp_path / "store")
    assert sorted(one["key"] for one in listed["stored"]) == entries
    for one in listed["stored"]:
        folder = tmp_path / "store" / "images" / one["key"]
        assert one["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
        assert one["made"] == json.loads((folder / "about.json").read_text())
        assert one["used"] == (folder / "about.json").stat().st_mtime
    assert 28 <= sum(one["images"] for one in listed["stored"]) < 35


def test_one_pool_is_removed_by_the_beginning_of_its_key(entries, tmp_path, capsys):
    assert "removed" in stored(capsys, "--clear", entries[0][:12])
    assert [path.name for path in (tmp_path / "store" / "images").iterdir()] == entries[1:]
    assert entries[0][:12] not in stored(capsys)


def test_all_is_removed_and_made_anew(entries, root, tmp_path, capsys):
    stored(capsys, "--clear")
    assert not list((tmp_path / "store" / "images").iterdir())
    assert not list((tmp_path / "store" / "files").iterdir())
    assert stored(capsys).count("\n") == 2 and json.loads(stored(capsys, "--json"))["stored"] == []
    sizes = {"val": (4, 4), "test": (4, 4)}
    assert is_right(load(tmp_path / "a.yaml"), root, sizes)


def test_a_store_that_is_not_there_is_empty(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRAINER_STORE", str(tmp_path / "nowhere"))
    assert json.loads(stored(capsys, "--json")) == {"root": str(tmp_path / "nowhere"), "stored": []}
    stored(capsys, "--clear")
    assert not (tmp_path / "nowhere").exists()


def test_the_store_of_a_file_is_its_own(entries, root, tmp_path, capsys):
    file = tmp_path / "a.yaml"
    place = f"store.root={tmp_path / 'other'}"
    load(file, place)
    out = stored(capsys, "--config", str(file), place, "--json")
    assert json.loads(out)["root"] == str(tmp_path / "other")
    stored(capsys, "--config", str(file), place, "--clear")
    assert not list((tmp_path / "other" / "images").iterdir())
    assert len(list((tmp_path / "store" / "images").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--config"),
        (["--clear"], "--store --clear"),
        (["--clear", "abc"], "--store --clear"),
        (["--store", "--clear", "zzzz"], "no stored images have a key that begins with 'zzzz'"),
        (["--store", "--clear", ""], "no stored images have a key that begins with ''"),
        (["--store", "--keep"], "--keep"),
    ],
)
def test_wrong_use_is_refused_and_removes_nothing(entries, tmp_path, capsys, arguments, told):
    try:
        code = data_command.main(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 2 and told in capsys.readouterr().err
    assert len(list((tmp_path / "store" / "images").iterdir())) == 2
