"""What packing an image folder into tar files, and reading it from there, promise."""

import gc
import hashlib
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from datasets import BrokenImage, DataError
from datasets.image_folder import ImageFolder
from datasets.shards import INDEX, Shards
from datasets.split import split
from scripts import pack_shards
from tests.conftest import exit_code_of, fork

webdataset = pytest.importorskip("webdataset", reason='pip install -e ".[shards]"')


def noise(path: Path, seed: int) -> None:
    """A picture of random pixels and of its own size, in the format that its name tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = 20 + seed % 7, 30 + seed % 5
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height * width * 3,), generator=generator)
    Image.frombytes("RGB", (width, height), bytes(pixels.tolist())).save(path)


# Two files of one stem, dots, upper case, accents, a long and a nested path: tar and webdataset
# would each trip over one of them if these names were the members' names.
NAMES = (
    *("1.jpg", "1.png", "a.b.c.jpg", "x/y/2.PNG", "été 10.jpeg", "10.gif", f"{'long/' * 30}3.bmp"),
    *(f"{k}.webp" for k in range(8)),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    for number, (part, name) in enumerate((p, n) for p in ("train", "test") for n in NAMES):
        for place, label in enumerate(("cat", "dog", "c10", "c9")):
            noise(root / part / label / name, 4 * number + place)
    shutil.copyfile(root / "test/cat/1.jpg", root / "test/cat/copy.jpg")
    return root


def pack(source: Path, target: Path, *options: str) -> int:
    return pack_shards.main(["--source", str(source), "--target", str(target), *options])


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory):
    target = tmp_path_factory.mktemp("packed") / "shards"
    assert pack(source, target, "--size", "50K") == 0
    assert len(list(target.glob("shard-*.tar"))) > 3
    return target


@pytest.fixture
def copy(packed, tmp_path):
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- the same data -------------------------------------------------------------------------------


def test_shards_give_what_the_folder_gives(source, packed):
    folder, shards = ImageFolder(str(source)), Shards(str(packed))
    every = range(len(folder))
    assert len(shards) == len(folder) == 8 * len(NAMES) + 1
    assert shards.classes == folder.classes == ("c9", "c10", "cat", "dog")
    assert (shards.ids, shards.labels, shards.parts) == (folder.ids, folder.labels, folder.parts)
    digests = [folder.digest(index) for index in every]
    assert shards.digests(every) == digests == [shards.digest(index) for index in every]
    for index in every:
        assert torch.equal(shards.image(index), folder.image(index))
    cut = [split(d.labels, digests, d.parts, (8, 1, 1), 3) for d in (folder, shards)]
    assert cut[0] == cut[1]


def test_training_on_shards_gives_the_folders_run_to_the_last_bit(notes, tmp_path, train):
    assert pack(notes, tmp_path / "shards") == 0
    runs = [
        train(f"dataset={{name: {name}, root: {root}}}", "train.epochs=1")
        for name, root in (("ImageFolder", notes), ("Shards", tmp_path / "shards"))
    ]
    for file in ("split.json", "metrics.jsonl"):
        assert (runs[0] / file).read_bytes() == (runs[1] / file).read_bytes()
    weights = [torch.load(run / "model.pt", weights_only=True) for run in runs]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_folder_without_parts_is_packed_too(source, tmp_path):
    assert pack(source / "train", tmp_path / "shards") == 0
    folder, shards = ImageFolder(str(source / "train")), Shards(str(tmp_path / "shards"), "skip")
    assert shards.ids == folder.ids and set(shards.parts) == {None} and shards.on_broken == "skip"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's habit
def test_the_shards_read_by_webdataset_itself_hold_the_files_as_they_are(source, packed):
    urls = sorted(str(path) for path in packed.glob("*.tar"))
    folder = ImageFolder(str(source))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    gc.collect()  # here, where the warnings are not errors
    assert [int(sample["cls"]) for sample in samples] == list(folder.labels)
    assert [sample["__key__"] for sample in samples] == [f"{k:08d}" for k in range(len(folder))]
    for sample, name in zip(samples, folder.ids, strict=True):
        assert sample[Path(name).suffix[1:].lower()] == (source / name).read_bytes()


def test_the_index_tells_the_sum_and_size_of_each_shard(packed):
    index = json.loads((packed / INDEX).read_text())
    assert [shard["name"] for shard in index["shards"]] == sorted(p.name for p in packed.glob("*r"))
    for shard in index["shards"]:
        content = (packed / shard["name"]).read_bytes()
        assert shard["size"] == len(content) and 50_000 < len(content) < 80_000 + 10_240
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()


def test_packing_twice_gives_the_same_bytes(source, packed, tmp_path):
    for path in source.rglob("*.gif"):
        os.utime(path, (time.time(), 1e9))
    (tmp_path / "again").mkdir()  # empty: as good as new
    assert pack(source, tmp_path / "again", "--size", "50K") == 0
    assert tree(tmp_path / "again") == tree(packed)


def test_threads_and_forked_and_spawned_workers_read_the_same_pixels(packed):
    shards = Shards(str(packed))
    order = [len(shards) - 1 - k // 2 if k % 2 else k // 2 for k in range(len(shards))]
    expected = [shards.image(index) for index in order]
    with ThreadPoolExecutor(8) as pool:
        for image, want in zip(pool.map(shards.image, order), expected, strict=True):
            assert torch.equal(image, want)
    for method in multiprocessing.get_all_start_methods()[:2]:
        workers = 1 + (method == "fork")  # one that is spawned imports PyTorch anew
        loader = DataLoader(
            _Images(shards), None, None, order[:40], None, workers, multiprocessing_context=method
        )
        for image, want in zip(loader, expected, strict=False):
            assert torch.equal(image, want)


class _Images(torch.utils.data.Dataset):
    def __init__(self, shards):
        self.shards = shards

    def __getitem__(self, index):
        return self.shards.image(index)


def test_reading_needs_no_webdataset(packed, tmp_path, monkeypatch):
    def read():
        for name in [name for name in sys.modules if name.partition(".")[0] == "datasets"]:
            del sys.modules[name]  # in this fork only; imported anew
        monkeypatch.setitem(sys.modules, "webdataset", None)
        importlib.import_module("datasets.shards").Shards(str(packed)).image(0)
        return 0

    said = tmp_path / "said.txt"
    assert exit_code_of(fork(said, read)) == 0, said.read_text()


# --- packing -------------------------------------------------------------------------------------


def test_broken_images_are_named_at_once_or_left_out(source, tmp_path, capsys):
    shutil.copytree(source / "train", tmp_path / "source")
    for name in ("cat/1.jpg", "dog/2.webp"):
        (tmp_path / "source" / name).write_bytes(b"<html>")
    target = tmp_path / "target"
    assert pack(tmp_path / "source", target) == 3
    told = capsys.readouterr().err
    assert "2 broken images" in told and "cat/1.jpg: not an image" in told and "2.webp" in told
    assert [path.name for path in tmp_path.iterdir()] == ["source"]

    assert pack(tmp_path / "source", target, "--skip-broken") == 0
    assert "left out 2 broken images" in capsys.readouterr().err
    folder, shards = ImageFolder(str(tmp_path / "source")), Shards(str(target))
    kept = [i for i, name in enumerate(folder.ids) if name not in ("cat/1.jpg", "dog/2.webp")]
    assert shards.ids == tuple(folder.ids[index] for index in kept)
    for row, index in enumerate(kept):
        assert torch.equal(shards.image(row), folder.image(index))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupt_or_a_full_disk_leaves_nothing(source, tmp_path, monkeypatch, capsys, error):
    written = []
    write = webdataset.TarWriter.write

    def interrupted(self, sample):
        written.append(sample)
        if len(written) == 60:
            raise error
        return write(self, sample)

    monkeypatch.setattr(webdataset.TarWriter, "write", interrupted)
    code = pack(source, tmp_path / "target", "--size", "50K")
    told = capsys.readouterr().err
    assert (code, "nothing was written" in told) in [(130, True), (5, False)]
    assert code == 130 or "cannot be written: No space left" in told
    assert list(tmp_path.rglob("*")) == []


def test_an_image_that_changes_while_it_is_packed_is_an_error(
    source, tmp_path, monkeypatch, capsys
):
    shutil.copytree(source / "train" / "cat", tmp_path / "source" / "cat")
    check = pack_shards._check

    def checked(*arguments):
        digests = check(*arguments)
        noise(tmp_path / "source" / "cat" / "1.png", 999)
        return digests

    monkeypatch.setattr(pack_shards, "_check", checked)
    assert pack(tmp_path / "source", tmp_path / "target") == 3
    assert "cat/1.png: has changed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_killed_packing_leaves_no_folder_that_opens_as_a_dataset(
    source, tmp_path, tmp_path_factory, monkeypatch
):
    write, said = webdataset.TarWriter.write, tmp_path_factory.mktemp("said") / "said.txt"
    count = []

    def slow(self, sample):
        count.append(0)
        if len(count) == 80:
            print("half", flush=True)
            time.sleep(60)
        return write(self, sample)

    def command():
        monkeypatch.setattr(webdataset.TarWriter, "write", slow)  # in this fork only
        return pack(source, tmp_path / "out", "--size", "50K")

    process = fork(said, command)
    end = time.monotonic() + 60
    while "half" not in (said.read_text() if said.exists() else ""):
        assert time.monotonic() < end and process.is_alive(), said.read_text()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.") and list(left.glob("*.tar"))
    with pytest.raises(DataError, match=INDEX):
        Shards(str(left))
    assert pack(source, tmp_path / "out") == 0  # and is not in the way


def test_packing_refuses_a_target_with_files_or_inside_the_source(source, packed, tmp_path, capsys):
    for target in (packed, packed / INDEX, source / "shards"):
        with pytest.raises(SystemExit) as ended:
            pack(source, target)
        assert ended.value.code == 2
    assert "lies inside" in capsys.readouterr().err
    for size in ("0", "-1M", "1T", "M", "1e6"):
        with pytest.raises(SystemExit):
            pack(source, tmp_path / "new", f"--size={size}")
    assert pack(tmp_path / "nowhere", tmp_path / "new") == 3
    assert "does not exist" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_without_webdataset_the_error_names_the_extra(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(SystemExit):
        pack(source, tmp_path / "new")
    assert 'pip install -e ".[shards]"' in capsys.readouterr().err


# --- what cannot be trusted ----------------------------------------------------------------------


def test_a_missing_cut_or_foreign_shard_is_named_when_the_set_is_opened(copy, packed):
    shard = copy / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"shard-000001.tar: .* bytes, but shards.json says"):
        Shards(str(copy))
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-000001.tar: cannot be read: No such file"):
        Shards(str(copy))
    os.mkfifo(shard)  # to open it would be to wait for ever
    with pytest.raises(DataError, match=r"shard-000001.tar: not a regular file"):
        Shards(str(copy))
    with pytest.raises(DataError, match="shards.json: no such file"):
        Shards(str(packed.parent))
    with pytest.raises(DataError, match="does not exist"):
        Shards(str(packed.parent / "shard"))


def test_an_image_whose_bytes_have_changed_is_broken(copy):
    shards = Shards(str(copy))
    place = json.loads((copy / INDEX).read_text())["samples"][5]
    with open(copy / "shard-000000.tar", "r+b") as file:
        file.seek(place["offset"] + place["size"] - 1)
        file.write(b"?")
    shards.image(4)
    with pytest.raises(BrokenImage, match=r"shard-000000.tar: train/.*: its bytes are not those"):
        shards.image(5)
    (copy / "shard-000000.tar").unlink()
    with pytest.raises(BrokenImage, match="No such file"):
        shards.image(4)


SAMPLE = [
    ("id", "../../etc/passwd", "not a relative path"),
    ("id", "/etc/passwd", "not a relative path"),
    ("id", "a//b", "not a relative path"),
    ("id", "", "not a relative path"),
    ("id", "a\0b", "not a relative path"),
    ("id", 3, "sample 1 must have id, label"),
    ("label", 4, "label"),
    ("label", -1, "label"),
    ("label", True, "sample 1 must have"),
    ("label", 1.0, "sample 1 must have"),
    ("part", "training", "unknown part"),
    ("sha256", "0" * 63 + "G", "not a SHA-256"),
    ("sha256", "0" * 64 + "\n", "not a SHA-256"),
    ("shard", 10**6, "its shard"),
    ("shard", -1, "its shard"),
    ("offset", -1, "outside of its shard"),
    ("offset", 10**4000, "outside of its shard"),
    ("size", 0, "outside of its shard"),
    ("size", -5, "outside of its shard"),
    ("size", 10**9, "outside of its shard"),
    ("more", 1, "sample 1 must have"),
]


@pytest.mark.parametrize(("key", "value", "message"), SAMPLE)
def test_a_hostile_sample_in_the_index_is_an_error(copy, key, value, message):
    index = json.loads((copy / INDEX).read_text())
    index["samples"][1][key] = value
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match=message) as caught:
        Shards(str(copy))
    assert str(copy / INDEX) in str(caught.value) and len(str(caught.value)) < 600


def change(index, *path_and_value):
    *path, last, value = path_and_value
    for key in path:
        index = index[key]
    index[last] = value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("shards", 0, "name", "../shard-000000.tar"), "shard 0 must be shard-000000.tar"),
        (("shards", 0, "name", "/etc/passwd"), "shard 0 must be shard-000000.tar"),
        (("shards", 1, "name", "shard-000000.tar"), "shard 1 must be shard-000001.tar"),
        (("shards", 0, "size", "1"), "shard 0 must be"),
        (("shards", 0, "size", 10**4000), "says 10,000"),
        (("shards", 0, None), "shard 0 must be"),
        (("shards", []), "its shard is none of the 0"),
        (("samples", []), "no samples"),
        (("samples", {}), "not an index of shards"),
        (("samples", 0, "text"), "sample 0 must have"),
        (("classes", ["cat", "cat", "dog", "x"]), "two classes have one name"),
        (("classes", ["cat", 1, "dog", "x"]), "classes must be names"),
        (("classes", []), "classes must be names"),
        (("format", "images in tar shards, 2"), "not an index of shards"),
        (("more", 1), "not an index of shards"),
    ],
)
def test_a_malformed_index_is_an_error(copy, changes, message):
    index = json.loads((copy / INDEX).read_text())
    change(index, *changes)
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match=message) as caught:
        Shards(str(copy))
    assert str(copy) in str(caught.value) and len(str(caught.value)) < 600


def test_two_samples_of_one_id_are_an_error(copy):
    index = json.loads((copy / INDEX).read_text())
    index["samples"][1]["id"] = index["samples"][0]["id"]
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match="two samples have one id"):
        Shards(str(copy))


@pytest.mark.parametrize("content", [b"", b"[1]", b"null", b"{", b"\xff\xfe", b"[" * 100_000])
def test_an_index_that_is_no_json_object_is_an_error(copy, content):
    (copy / INDEX).write_bytes(content)
    with pytest.raises(DataError, match=INDEX):
        Shards(str(copy))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=3))
def test_damage_anywhere_in_the_index_gives_the_true_image_or_an_error(packed, copy, damage):
    content = bytearray((packed / INDEX).read_bytes())
    for place, byte in damage:
        content[place] = byte
    (copy / INDEX).write_bytes(content)
    true = Shards(str(packed))
    try:
        shards = Shards(str(copy))
        image = shards.image(0)
    except DataError:
        return
    assert torch.equal(image, true.image(0))
