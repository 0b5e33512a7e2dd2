"""What reading Parquet files promises: Hugging Face's layout, each row once, bounded memory."""

import hashlib
import json
import multiprocessing
import os
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import BrokenImage, DataError, parquet_file
from datasets.image_folder import ImageFolder
from datasets.parquet import Parquet
from tests.test_datasets import check_contract
from tests.test_shards import noise
from trainer.config import load_config
from trainer.input.data import load_data

pa = pytest.importorskip("pyarrow", reason='pip install -e ".[parquet]"')
pq = pytest.importorskip("pyarrow.parquet", reason='pip install -e ".[parquet]"')

NAMES = ["cat", "dog", "c10", "c9"]
CLASS_LABEL = {"names": NAMES, "_type": "ClassLabel"}


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The bytes of 60 small image files of several formats."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{k}.{('jpg', 'png', 'webp')[k % 3]}" for k in range(60)]
    for number, path in enumerate(paths):
        noise(path, number)
    return [path.read_bytes() for path in paths]


def write(path, contents, labels, feature=CLASS_LABEL, rows=100, names=("image", "label"), **more):
    """A file as the library datasets 5.2.0 writes it, with row groups of so many rows.

    Its own ones have 100 MB. Bytes are plain and uncompressed, labels a snappy dictionary. The
    metadata are {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": [...],
    "_type": "ClassLabel"}}}}, several labels {"feature": {...}, "_type": "List"}.
    """
    image, label = names
    structs = [None if c is None else {"bytes": c or None, "path": f"{k}.jpg"}
               for k, c in enumerate(contents)]  # fmt: skip
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {image: pa.array(structs, kind), label: labels} | more
    table = pa.table(columns)
    if feature is not None:
        features = {image: {"_type": "Image"}, label: feature}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    leaves = [f"{image}.bytes", f"{image}.path"]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table,
        path,
        row_group_size=rows,
        use_dictionary=[label],
        compression={label: "snappy"} | dict.fromkeys(leaves, "none"),
        column_encoding=dict.fromkeys(leaves, "PLAIN"),
        write_page_index=True,
    )
    return str(path)


@pytest.fixture
def hub(tmp_path, contents):
    """A folder as a repository of Hugging Face's hub has it."""
    labels = [k % 4 for k in range(60)]
    places = {"train-00000-of-00002": (0, 24), "train-00001-of-00002": (24, 40)}
    places |= {"validation-00000-of-00001": (40, 50), "test-00000-of-00001": (50, 60)}
    for name, (first, end) in places.items():
        path = tmp_path / "hub" / "data" / f"{name}.parquet"
        write(path, contents[first:end], labels[first:end], rows=7)
    return tmp_path / "hub"


# --- what is read ---------------------------------------------------------------------------------


def test_a_folder_of_the_hub_gives_its_images_labels_names_and_parts(hub, contents):
    data = Parquet(str(hub))
    check_contract(data)
    assert len(data) == 60 and data.classes == tuple(NAMES)
    assert data.parts == ("test",) * 10 + ("train",) * 40 + ("val",) * 10
    assert data.ids[0] == "data/test-00000-of-00001.parquet/0"
    assert data.ids[33] == "data/train-00000-of-00002.parquet/23"
    order = [*range(50, 60), *range(40), *range(40, 50)]
    assert [data.content(i) for i in range(60)] == [contents[k] for k in order]
    assert data.labels == tuple(k % 4 for k in order)
    assert data.digest(3) == hashlib.sha256(contents[53]).hexdigest()
    assert "images are those of the column 'image', labels those of 'label'" in data.note
    assert Parquet(str(hub), "image", "label").note == ""


def test_rows_are_read_in_any_order_by_threads_forks_and_other_processes(hub, contents):
    data = Parquet(str(hub))
    order = np.random.default_rng(0).permutation(60).tolist() * 3
    expected = [hashlib.sha256(contents[(k + 50) % 60]).hexdigest() for k in order]
    assert [data.digest(k) for k in order] == expected
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(data.digest, order)) == expected
    with data._contents._mine.lock:  # as if a thread of the parent reads
        with multiprocessing.get_context("fork").Pool(2) as forks:
            assert forks.map(data.digest, order) == expected
    again = pickle.loads(pickle.dumps(data))  # noqa: S301, as spawned workers get it
    assert [again.digest(k) for k in order] == expected


@pytest.mark.parametrize("form", ["dictionary", "zstd", "binary", "large", "one group"])
def test_other_encodings_and_plain_binary_columns_give_the_same_bytes(tmp_path, contents, form):
    kind = {"binary": pa.binary(), "large": pa.large_binary()}.get(form)
    labels = ["dog", "cat"] * 30
    table = pa.table({"img": pa.array(contents * 1, kind or pa.binary()), "label": labels})
    path = tmp_path / "a.parquet"
    rows = 60 if form == "one group" else 13
    pq.write_table(table, path, rows, use_dictionary=form == "dictionary", data_page_size=2000,
                   compression="zstd" if form == "zstd" else "snappy")  # fmt: skip
    data = Parquet(str(path))
    assert [data.content(k) for k in range(59, -1, -1)] == contents[::-1]
    assert data.classes == ("cat", "dog") and data.labels == (1, 0) * 30
    assert data.ids[5] == "a.parquet/5" and set(data.parts) == {None}


def test_reading_in_order_reads_each_batch_once_and_keeps_little(tmp_path, contents, monkeypatch):
    path = write(tmp_path / "a.parquet", contents * 20, [k % 4 for k in range(1200)], rows=1200)
    monkeypatch.setattr(parquet_file, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(parquet_file, "KEPT_BYTES", 60_000)
    data, kept = Parquet(path), []
    keep = parquet_file._Mine.keep

    def counted(self, key, values):
        keep(self, key, values)
        kept.append(key)
        assert self.bytes <= 60_000 + 40_000

    monkeypatch.setattr(parquet_file._Mine, "keep", counted)
    assert [data.content(k) for k in range(1200)] == contents * 20
    assert len(kept) == len({*kept}) > 20


@pytest.mark.parametrize(
    ("labels", "feature", "classes", "expected"),
    [
        ([3, 1, 3], None, ("1", "3"), (1, 0, 1)),
        (pa.array([3, 1, 3], pa.uint8()), None, ("1", "3"), (1, 0, 1)),
        ([True, False, True], None, ("0", "1"), (1, 0, 1)),
        (["c10", "c9", "c10"], {"dtype": "string", "_type": "Value"}, ("c9", "c10"), (1, 0, 1)),
        (pa.array(["b", "a", "b"], pa.large_string()), None, ("a", "b"), (1, 0, 1)),
        (pa.array(["b", "a", "b"]).dictionary_encode(), None, ("a", "b"), (1, 0, 1)),
        ([3, 1, 3], CLASS_LABEL, ("dog", "c9"), (1, 0, 1)),
    ],
)
def test_labels_are_numbers_texts_or_named_numbers(
    tmp_path, contents, labels, feature, classes, expected
):
    data = Parquet(write(tmp_path / "a.parquet", contents[:3], labels, feature))
    assert (data.classes, data.labels) == (classes, expected)
    told = "2 class names of 4 without any image: left out ('cat', 'c10')"
    assert (told in data.note) == (feature is CLASS_LABEL)


@pytest.mark.parametrize("kind", ["List", "Sequence", "old", "text", "numbers"])
def test_lists_are_several_labels_an_image(tmp_path, contents, kind):
    lists = [[0, 2], [1], [], [2, 0], [3]]
    features = {"old": [CLASS_LABEL], "text": None, "numbers": None}
    feature = features.get(kind, {"feature": CLASS_LABEL, "_type": kind})
    labels = [[NAMES[k] for k in one] for one in lists] if kind == "text" else lists
    data = Parquet(write(tmp_path / "a.parquet", contents[:5], labels, feature))
    found = torch.tensor(data.labels)
    assert found.dtype == torch.float32 and found.shape == (5, 4)
    names = [str(k) for k in range(4)] if kind == "numbers" else NAMES
    for row, one in zip(found, lists, strict=True):
        assert {data.classes[k] for k in row.nonzero()} == {names[k] for k in one}
        assert set(row.tolist()) <= {0.0, 1.0}
    assert data.labels[0] is data.labels[3]


def test_an_unlabelled_test_part_is_left_out_and_told(tmp_path, contents):
    write(tmp_path / "train-0.parquet", contents[:8], [0, 1] * 4)
    write(tmp_path / "test-0.parquet", contents[8:12], [-1] * 4)
    data = Parquet(str(tmp_path))
    assert set(data.parts) == {"train"} and len(data) == 8
    assert "4 rows of test without label: left out" in data.note
    write(tmp_path / "train-0.parquet", contents[:8], [0, 1, None, 1, 0, -1, 0, 0])
    with pytest.raises(DataError, match=r"train-0.parquet: row 2 has no label \(2 such rows"):
        Parquet(str(tmp_path))
    data = Parquet(str(tmp_path), on_broken="skip")
    assert [name.rpartition("/")[2] for name in data.ids] == ["0", "1", "3", "4", "6", "7"]
    assert [data.content(k) for k in range(6)] == [contents[k] for k in (0, 1, 3, 4, 6, 7)]


def test_files_that_no_split_names_are_left_out_beside_those_that_one_names(tmp_path, contents):
    for name in ("train-0", "extra-0", "default/test/0000"):
        write(tmp_path / f"{name}.parquet", contents[:4], [0, 1, 2, 3])
    data = Parquet(str(tmp_path))
    assert sorted(set(data.parts)) == ["test", "train"] and "extra-0.parquet" in data.note


def test_columns_are_asked_for_if_several_may_be_meant(tmp_path, contents):
    path = write(tmp_path / "a.parquet", contents[:4], [0, 1, 0, 1], names=("x", "kind"),
                 thumb=pa.array(contents[4:8]), feature=None)  # fmt: skip
    with pytest.raises(DataError, match=r"dataset.image_column: several may be: x, thumb.*kind"):
        Parquet(path)
    with pytest.raises(DataError, match=r"dataset.label_column: none is marked.*kind \(int64\)"):
        Parquet(path, "x")
    with pytest.raises(DataError, match="no column 'y'"):
        Parquet(path, "x", "y")
    with pytest.raises(DataError, match="the column 'kind' is int64; expected the bytes"):
        Parquet(path, "kind", "kind")
    assert Parquet(path, "thumb", "kind").content(1) == contents[5]


def test_a_column_is_text_in_the_order_of_the_ids(tmp_path, contents):
    patients = [f"p{k // 3}" for k in range(12)]
    labels = [0, 1, None, 1] * 3
    tags = [[1, 2]] * 12
    path = write(tmp_path / "a.parquet", contents[:12], labels, patient=patients, tags=tags)
    data = Parquet(path, on_broken="skip")
    assert data.column("patient") == [
        p for p, x in zip(patients, labels, strict=True) if x in (0, 1)
    ]
    with pytest.raises(DataError, match="no such column; there: image, label, patient, tags"):
        data.column("age")
    with pytest.raises(DataError, match=r"'tags': it holds list<.*expected texts or numbers"):
        data.column("tags")


@pytest.mark.parametrize("kind", ["texts", "categories", "numbers", "floats"])
def test_null_and_nan_in_a_column_are_no_text(tmp_path, contents, kind):
    values = [7, None, 10, 7] if kind != "floats" else [7.0, float("nan"), 10.0, None]
    expected = ["7", "", "10", "7" if kind != "floats" else ""]
    if kind in ("texts", "categories"):
        values = pa.array([None if value is None else str(value) for value in values])
        values = values.dictionary_encode() if kind == "categories" else values
    data = Parquet(write(tmp_path / "a.parquet", contents[:4], [0, 1] * 2, patient=values))
    assert data.column("patient") == expected


def test_rows_of_0_and_1_are_shares_of_the_classes_and_told(tmp_path, contents):
    rows = [[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]]
    fixed = pa.array(rows, pa.list_(pa.int8(), 4))
    for labels in (rows, [[bool(x) for x in row] for row in rows], fixed):
        data = Parquet(write(tmp_path / "a.parquet", contents[:4], labels, None))
        assert torch.equal(torch.tensor(data.labels), torch.tensor(rows, dtype=torch.float32))
        assert data.classes == ("0", "1", "2", "3") and data.labels[0] is data.labels[3]
        assert "lists of 4 numbers, 0 or 1: each is the share of a class" in data.note
    path = write(tmp_path / "a.parquet", contents[:4], np.eye(4, dtype=int)[[3, 1, 0, 1]].tolist(),
                 None)  # fmt: skip
    data = Parquet(path)
    assert data.labels == (2, 1, 0, 1) and data.classes == ("0", "1", "3")
    assert "single 1 in each row" in data.note


def test_a_number_twice_in_a_list_is_refused_and_a_text_twice_is_told(tmp_path, contents):
    path = tmp_path / "a.parquet"
    lists = {"feature": CLASS_LABEL, "_type": "List"}
    for labels, feature in (([[0, 1], [3, 2, 3], [1, 1]], lists), ([[5], [6, 7], [7, 7]], None)):
        row = 1 if feature else 2
        with pytest.raises(DataError, match=rf"a.parquet/{row}: its list of .* a number twice"):
            Parquet(write(path, contents[:3], labels, feature))
    data = Parquet(write(path, contents[:3], [["a", "b"], ["b", "b"], ["a"]], None))
    assert data.labels == ((1.0, 1.0), (0.0, 1.0), (1.0, 0.0))
    assert "1 row with a label twice, which counts once" in data.note


def test_a_column_whose_name_begins_with_that_of_another_is_not_taken_for_it(tmp_path, contents):
    kinds = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    structs = pa.array([{"bytes": content, "path": "x"} for content in contents[:4]], kinds)
    columns = {"label.name": ["x", "y", "z", "x"], "label": [0, 1, 0, 1],
               "image.bytes": pa.array(contents[4:8], pa.binary()), "image": structs}  # fmt: skip
    states = []
    for order in (list(columns), list(columns)[::-1]):
        path = tmp_path / f"{order[0]}.parquet"
        pq.write_table(pa.table({name: columns[name] for name in order}), path)
        for image, expected in (("image", contents[:4]), ("image.bytes", contents[4:8])):
            data = Parquet(str(path), image, "label")
            assert data.classes == ("0", "1") and data.labels == (0, 1, 0, 1)
            assert [data.content(k) for k in range(4)] == expected
            assert data.column("label") == ["0", "1", "0", "1"]
            assert data.column("label.name") == ["x", "y", "z", "x"]
            states.append(data.states()[0, 3])
        assert Parquet(str(path), "image", "label.name").classes == ("x", "y", "z")
    assert len({*states}) == 4


def test_linked_folders_are_followed_and_circles_are_told(tmp_path, contents):
    write(tmp_path / "far" / "train-0.parquet", contents[:4], [0, 1, 2, 3])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "near").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "round").symlink_to(tmp_path / "far")
    data = Parquet(str(tmp_path / "data"))
    assert data.ids[0] == "near/train-0.parquet/0" and len(data) == 4
    assert "left out 1 link in a circle: " in data.note and "near/round" in data.note


def test_a_folder_that_cannot_be_read_is_named(tmp_path, contents, monkeypatch):
    write(tmp_path / "train-0.parquet", contents[:4], [0, 1, 2, 3])
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def closed(place):  # as root, who may run this test, every folder can be read
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match="closed: cannot be read: Permission denied"):
        Parquet(str(tmp_path))


@pytest.mark.parametrize("text", ["nan", "NaN", "N/A", "null"])
def test_a_text_that_means_no_label_is_none(tmp_path, contents, text):
    path = write(tmp_path / "a.parquet", contents[:4], ["b", text, "a", "b"], None)
    with pytest.raises(DataError, match=r"row 1 has no label \(1 such.*texts such as 'nan'"):
        Parquet(path)
    data = Parquet(path, on_broken="skip")
    assert data.classes == ("a", "b") and data.labels == (1, 0, 1)
    assert "1 row of the data without label: left out" in data.note
    path = write(tmp_path / "a.parquet", contents[:2], [["b"], [text]], None)
    with pytest.raises(DataError, match="a list with a null or 'nan'"):
        Parquet(path)


def test_a_read_keeps_what_it_began_with_while_another_thread_replaces_it(
    tmp_path, contents, monkeypatch
):
    contents_of = Parquet(write(tmp_path / "a.parquet", contents[:4], [0, 1, 2, 3]))._contents
    mine, other = contents_of._mine, parquet_file._Mine()

    class Lock:
        def __enter__(self):
            contents_of._mine = other

        def __exit__(self, *_):
            pass

    mine.kept.clear()
    mine.open.clear()
    monkeypatch.setattr(mine, "lock", Lock())
    assert contents_of.read(2) == contents[2]
    assert mine.kept and not other.kept  # the other one's lock is not held


def test_decoding_and_its_recipe_are_those_of_a_folder(tmp_path, contents):
    """So the store's images of the one serve the other."""
    path = write(tmp_path / "a.parquet", contents[:8], [0, 1] * 4)
    for index in range(8):
        name = tmp_path / "files" / NAMES[index % 2] / f"{index}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(contents[index])
    for decode in ("exact", "fast"):
        folder = ImageFolder(str(tmp_path / "files"), decode=decode)
        data = Parquet(path, decode=decode)
        assert (data.recipe, data.decoding) == (folder.recipe, folder.decoding)
        for index, name in enumerate(folder.ids):
            row = int(Path(name).stem)
            content = folder.content(index)
            assert data.content(row) == content
            for at_least in (0, 3, 12):
                expected = folder.decode(index, content, at_least)
                assert torch.equal(data.decode(row, content, at_least), expected)


# --- a start, and training ------------------------------------------------------------------------


def folder_of(root: Path, data: Parquet) -> Path:
    for index, label in enumerate(data.labels):
        path = root / data.classes[label] / f"{index:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.content(index))
    return root


def test_training_on_parquet_gives_the_folders_weights_to_the_last_bit(tmp_path, notes, train):
    paths = sorted(notes.rglob("*.jpg"))
    labels = [["1", "100"].index(path.parent.name) for path in paths]
    feature = {"names": ["1", "100"], "_type": "ClassLabel"}
    write(tmp_path / "a.parquet", [path.read_bytes() for path in paths], labels, feature)
    runs = [
        train(f"dataset={{name: {name}, root: {root}}}", "train.epochs=1")
        for name, root in (("ImageFolder", notes), ("Parquet", tmp_path / "a.parquet"))
    ]
    weights = [torch.load(run / "model.pt", weights_only=True) for run in runs]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_second_start_reads_no_image_and_a_changed_file_is_read_again(
    hub, config_file, monkeypatch, contents
):
    for path in hub.rglob("*.parquet"):  # younger files are not remembered: they may change again
        os.utime(path, (time.time() - 100,) * 2)
    monkeypatch.setattr("trainer.input.file_index.clock", lambda: time.time_ns() + 10**10)
    monkeypatch.setattr("trainer.input.source.clock", lambda: time.time_ns() + 10**10)
    read = []
    content = Parquet.content

    def counted(self, index):
        read.append(self.ids[index])
        return content(self, index)

    monkeypatch.setattr(Parquet, "content", counted)
    monkeypatch.setattr("trainer.input.reading.INLINE", 10**6)  # all in this process
    config = load_config(config_file, [f"dataset={{name: Parquet, root: {hub}}}"])
    first = load_data(config, torch.device("cpu"))
    assert {*read} == {*Parquet(str(hub)).ids}
    read.clear()
    second = load_data(config, torch.device("cpu"))
    assert len(read) <= 1 and second.split == first.split  # the number of channels takes one
    changed = "data/test-00000-of-00001.parquet"
    write(hub / changed, contents[:10], [k % 4 for k in range(10)], rows=7)
    read.clear()
    third = load_data(config, torch.device("cpu"))
    assert {name.rpartition("/")[0] for name in read} == {changed}
    assert third.split["test"] != first.split["test"]
    assert third.split["train"] == first.split["train"]


def test_another_column_of_the_same_file_is_not_taken_for_the_first(tmp_path, contents):
    path = write(tmp_path / "a.parquet", contents[:4], [0, 1, 0, 1], thumb=pa.array(contents[4:8]))
    one, other = (Parquet(path, column).states() for column in ("image", "thumb"))
    assert one.shape == other.shape == (4, 4) and (one[:, 3] != other[:, 3]).all()


def test_a_file_that_changes_under_a_run_is_a_broken_image(tmp_path, contents):
    path = write(tmp_path / "a.parquet", contents[:20], [0, 1] * 10)
    data = Parquet(path)
    assert data.content(0) == contents[0]  # so that it is open
    write(Path(path), contents[20:40], [0, 1] * 10)
    with pytest.raises(BrokenImage, match="a.parquet/17: .*has changed since it was opened"):
        data.content(17)


@pytest.mark.parametrize("version", [None, "25.0.0"])
def test_without_pyarrow_or_with_an_older_one_the_error_names_the_extra(
    hub, monkeypatch, start, capsys, version
):
    if version is None:
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    else:
        monkeypatch.setattr(pa, "__version__", version)
    assert start(f"dataset={{name: Parquet, root: {hub}}}") == 2
    assert 'pip install -e ".[parquet]"' in capsys.readouterr().err


# --- what cannot be used --------------------------------------------------------------------------


def test_paths_instead_of_images_are_refused_with_what_to_do(tmp_path):
    """As to_parquet of the library datasets writes images of local files."""
    path = write(tmp_path / "a.parquet", [b""] * 4, [0, 1, 0, 1])
    with pytest.raises(DataError, match=r"holds no bytes of images.*embed_external_files=True"):
        Parquet(path)


def test_a_row_without_bytes_and_a_broken_image_are_named(tmp_path, contents):
    some = [contents[0], b"", None, b"<html>", contents[1][:50]]
    data = Parquet(write(tmp_path / "a.parquet", some, [0, 1, 0, 1, 0]))
    for index, message in enumerate(("no bytes", "no bytes", "not an image", ""), start=1):
        with pytest.raises(BrokenImage, match=rf"a.parquet/{index}: .*{message}"):
            data.image(index)


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([0, 1, 4, 1], CLASS_LABEL, r"a.parquet/2: the label is 4; .*from 0 to 3"),
        ([0, 1, -1, 1], None, r"a.parquet/2: the label is -1"),
        (pa.array([0, 1, 2, 2**63], pa.uint64()), None, r"/3: the label is 9223372036854775808"),
        ([0.5, 1, 2, 3], None, "it holds double; expected whole numbers, texts"),
        ([[0], [1], [None], [1]], None, "a list with a null"),
        ([[], [], [], []], None, "no image has a label"),
        (pa.array([[]] * 4, pa.list_(pa.int64())), None, "no image has a label"),
        ([[["a"]], [["b"]], [["a"]], [["b"]]], None, "it holds list<"),
        ([[0], [1], [7], [1]], {"feature": CLASS_LABEL, "_type": "List"}, "/2: the label is 7"),
        (["a", "b", "x" * 5000, "a"], None, "a text of 5,000 bytes is no class name"),
        (["a", "b", "", "a"], None, "/2: the label is ''"),
        ([None] * 4, CLASS_LABEL, "no row has a label|has no label"),
        ([{"a": 1}] * 4, None, "it holds struct"),
    ],
)
def test_a_wrong_label_is_located(tmp_path, contents, labels, feature, message):
    path = write(tmp_path / "a.parquet", contents[:4], labels, feature)
    with pytest.raises(DataError, match=message) as caught:
        Parquet(path)
    assert path in str(caught.value) and len(str(caught.value)) < 600


def test_files_with_other_class_names_are_refused(tmp_path, contents):
    write(tmp_path / "train-0.parquet", contents[:4], [0, 1, 2, 3])
    other = {"names": NAMES[::-1], "_type": "ClassLabel"}
    write(tmp_path / "train-1.parquet", contents[:4], [0, 1, 2, 3], other)
    with pytest.raises(DataError, match=r"train-1.parquet: .*are others than those of"):
        Parquet(str(tmp_path))
