"""Parquet files made by an enemy: refused at once, in little memory, and the process goes on."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from datasets import DataError
from datasets.parquet import Parquet
from tests.conftest import exit_code_of, fork
from tests.test_parquet import write
from tests.test_shards import noise

pa = pytest.importorskip("pyarrow", reason='pip install -e ".[parquet]"')
pq = pytest.importorskip("pyarrow.parquet", reason='pip install -e ".[parquet]"')


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The bytes of 12 small image files."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{k}.png" for k in range(12)]
    for number, path in enumerate(paths):
        noise(path, number)
    return [path.read_bytes() for path in paths]


def test_a_missing_file_a_pipe_and_a_folder_without_files_are_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        Parquet(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="no .parquet files in this folder or below"):
        Parquet(str(tmp_path))
    os.mkfifo(tmp_path / "train-0.parquet")  # to open it would be to wait for ever
    with pytest.raises(DataError, match="not a regular file"):
        Parquet(str(tmp_path))
    (tmp_path / "train-0.parquet").unlink()
    (tmp_path / "train-0.parquet").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="No such file"):
        Parquet(str(tmp_path))


@pytest.mark.parametrize(
    "info",
    [
        b"", b"[", b"[" * 100_000, b"null", b'{"info": 3}', b'{"info": {"features": []}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, 2]}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "a"]}}}}',
        b'{"info": {"features": {"label": {"_type": "List", "feature": 7}}}}', b"\xff\xfe",
    ],
)  # fmt: skip
def test_odd_metadata_of_the_library_are_as_good_as_none(tmp_path, contents, info):
    path = tmp_path / "a.parquet"
    table = pa.table({"image": pa.array(contents[:4]), "label": [0, 1, 0, 1]})
    pq.write_table(table.replace_schema_metadata({b"huggingface": info}), path)
    assert Parquet(str(path)).classes == ("0", "1")


class Small(int):
    """A number of 32 bits; other ints have 64."""


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def compact(value: object) -> bytes:
    """Thrift's compact protocol: ints, bytes, lists, and dicts of field number -> value."""
    if isinstance(value, int):
        return varint(value << 1 if value >= 0 else ~(value << 1))
    if isinstance(value, bytes):
        return varint(len(value)) + value
    if isinstance(value, list):
        return (
            bytes([0xF0 | kind_of(value[0])]) + varint(len(value)) + b"".join(map(compact, value))
        )
    assert isinstance(value, dict)
    fields = b"".join(bytes([kind_of(v)]) + compact(k) + compact(v) for k, v in value.items())
    return fields + b"\0"


def kind_of(value: object) -> int:
    return {Small: 5, int: 6, bytes: 8, list: 9, dict: 12}[type(value)]


def file_of(footer: bytes, body: bytes = b"", claimed: int | None = None) -> bytes:
    size = struct.pack("<I", len(footer) if claimed is None else claimed)
    return b"PAR1" + body + footer + size + b"PAR1"


ONE = Small(1)


def leaf(name: bytes) -> dict:
    return {1: Small(6), 3: ONE, 4: name}


def metadata(schema, rows, groups) -> bytes:
    return compact({1: ONE, 2: schema, 3: rows} | ({4: groups} if groups else {}))


def group_of(rows, columns=2, size=100, more=None) -> dict:
    chunk = {1: Small(6), 2: [Small(0)], 3: [b"image"], 4: Small(0), 5: rows, 6: size, 7: size}
    return {1: [{2: 4, 3: chunk | {9: 4} | (more or {})}] * columns, 2: size, 3: rows}


TWO = [{4: b"schema", 5: Small(2)}, leaf(b"image"), leaf(b"label")]
DEEP = [{3: ONE, 4: b"g", 5: ONE}] * 9000
EMPTY = [group_of(0)]
HOSTILE = {
    "empty": b"",
    "only magic": b"PAR1",
    "twice magic": b"PAR1PAR1",
    "wrong magic": b"PAR2" + bytes(100) + b"PAR1",
    "encrypted": b"PARE" + bytes(100) + b"PARE",
    "a footer of 4 GB": file_of(b"\0" * 50, claimed=2**32 - 1),
    "an empty footer": file_of(b""),
    "a footer of noise": file_of(np.random.default_rng(0).bytes(500)),
    "a billion rows": file_of(metadata(TWO, 10**9, [group_of(10**9)])),
    "rows below none": file_of(metadata(TWO, -5, [group_of(-5)])),
    "fewer rows in groups": file_of(metadata(TWO, 10, [group_of(3)])),
    "a billion columns": file_of(b"\x15\x02\x19\xfc" + varint(10**9) + b"\0" * 99),
    "a string of 2 GB": file_of(b"\x15\x02\x19\x1c\x48" + varint(2**31 - 1) + b"abc"),
    "a group of no columns": file_of(metadata(TWO, 4, [group_of(4, columns=1)])),
    "data beyond the end": file_of(metadata(TWO, 4, [group_of(4, size=10**12)])),
    "sizes below none": file_of(metadata(TWO, 4, [group_of(4, size=-7)])),
    "histograms of no column": file_of(metadata(TWO, 4, [group_of(4, more={16: {2: [1, 2]}})])),
    "deep": file_of(metadata([{4: b"schema", 5: ONE}, *DEEP, leaf(b"image")], 0, EMPTY)),
    "children below none": file_of(metadata([{4: b"s", 5: Small(-2)}, leaf(b"image")], 0, EMPTY)),
    "too many children": file_of(metadata([{4: b"s", 5: Small(9)}, leaf(b"image")], 0, EMPTY)),
    "text": b"image,label\n" * 100,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_at_once_in_little_memory(tmp_path, name):
    path = tmp_path / "a.parquet"
    path.write_bytes(HOSTILE[name])

    def read():
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(DataError) as caught:
            Parquet(str(path), "image", "label")
        assert str(path) in str(caught.value) and len(str(caught.value)) < 600
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
        return 0

    said = tmp_path / "said.txt"
    assert exit_code_of(fork(said, read), 20) == 0, said.read_text()


def test_a_dictionary_of_one_large_value_in_many_rows_takes_the_memory_of_one(tmp_path):
    """600 rows of 1 MB in a file of 1 MB: a batch of 256 rows would take 256 MB."""
    path = tmp_path / "a.parquet"
    value = bytes(1 << 20)
    column = pa.DictionaryArray.from_arrays(np.zeros(600, np.int32), pa.array([value]))
    table = pa.table({"image": column, "label": [0, 1] * 300})
    pq.write_table(table, path, compression="none", store_schema=False)
    assert path.stat().st_size < 2e6

    def read():
        import resource

        data = Parquet(str(path))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert all(data.content(k) == value for k in range(0, 600, 100))
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert taken < 150_000, taken  # KiB
        return 0

    said = tmp_path / "said.txt"
    assert exit_code_of(fork(said, read)) == 0, said.read_text()


def test_one_long_text_as_the_label_of_many_rows_is_refused_in_little_memory(tmp_path):
    path = tmp_path / "a.parquet"
    column = pa.DictionaryArray.from_arrays(np.zeros(4000, np.int32), pa.array(["x" * (1 << 20)]))
    table = pa.table({"image": pa.array([bytes(20)] * 4000), "label": column})
    pq.write_table(table, path, compression="zstd")

    def read():
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(DataError, match="unpacks|1,048,576 bytes is no class name|cannot be"):
            Parquet(str(path))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KiB
        return 0

    said = tmp_path / "said.txt"
    assert exit_code_of(fork(said, read)) == 0, said.read_text()


def test_damage_anywhere_gives_the_true_bytes_or_another_error(tmp_path, contents):
    path = Path(write(tmp_path / "a.parquet", contents[:12], [0, 1, 2] * 4, rows=5))
    sound, random = path.read_bytes(), np.random.default_rng(1)
    footer = len(sound) - 8 - int.from_bytes(sound[-8:-4], "little")

    def read():
        for trial in range(60):
            content = bytearray(sound)
            first = footer if trial % 2 else 0
            for place in random.integers(first, len(sound), 1 + trial % 3).tolist():
                content[place] = int(random.integers(256))
            path.write_bytes(content[: len(sound) - (trial % 5 == 0) * trial])
            try:
                data = Parquet(str(path), on_broken="skip")
                for index in range(len(data)):
                    data.image(index)
            except DataError as error:
                assert len(str(error)) < 1000
        return 0

    said = tmp_path / "said.txt"
    assert exit_code_of(fork(said, read)) == 0, said.read_text()
