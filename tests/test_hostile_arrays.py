"""Files of NumPy made by an enemy: nothing is executed, and no memory is taken for a claim."""

import io
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import datasets.npy
from datasets import DataError
from datasets.arrays import Arrays
from tests.conftest import exit_code_of, fork
from tests.test_arrays import pixels, save


@pytest.fixture
def npz(tmp_path):
    return tmp_path / "data.npz"


class _Marker:
    def __reduce__(self):
        return os.mkdir, ("marker",)


def test_python_objects_are_refused_and_never_executed(npz, monkeypatch):
    monkeypatch.chdir(npz.parent)
    objects = np.array([_Marker(), _Marker()], object)
    path = save(npz, images=pixels(2, 2, 2), labels=objects)
    with pytest.raises(DataError, match="labels: it holds Python objects"):
        Arrays(path)
    with open(npz, "wb") as file:
        pickle.dump(objects, file)
    with pytest.raises(DataError, match="not a file of NumPy"):
        Arrays(path)
    assert not Path("marker").exists()


def npy(header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    size = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + version + size + header.encode() + body


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}}}\n"


@pytest.mark.parametrize("packed", [None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "content",
    [
        npy(HEADER.format("|u1", (10**9, 1000, 1000)), b"\0" * 100),
        npy(HEADER.format("<U500000000", (2,)), b"\0" * 100),
        npy(HEADER.format("|u1", (-1, 5, 5)), b"\0" * 25),
        npy(HEADER.format("|u1", (-5, 10**30, -5)), b"\0" * 25),
        npy(HEADER.format("|u1", (2, 4, 4)), b"\0" * 31),
        npy(HEADER.format("|O", (2,)), b"\x80\x04."),
        npy("(" * 9000),
        npy("[" * 9000 + "]" * 9000, version=b"\x02\x00"),
        npy("{'descr': __import__('os').mkdir('marker'), 'fortran_order': False, 'shape': (1,)}"),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        npy(HEADER.format("|u1", (2, 4, 4)), version=b"\x03\x00"),
        npy(HEADER.format("|u1", (2, 4, 4)), version=b"\x09\x00"),
        npy(HEADER.format("|u1", "'a'")),
        npy(HEADER.format("nonsense", (2,))),
        b"\x93NUMPY",
        b"",
    ],
)
def test_a_hostile_header_is_refused_at_once(tmp_path, monkeypatch, content, packed):
    monkeypatch.chdir(tmp_path)
    np.save("labels.npy", np.arange(2))
    path = tmp_path / "images.npy"
    if packed is None:
        path.write_bytes(content)
    else:
        path = tmp_path / "data.npz"
        with zipfile.ZipFile(path, "w", packed) as archive:
            archive.writestr("images.npy", content)
            archive.write("labels.npy")
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        Arrays(str(path), None if packed is not None else "labels.npy")
    assert str(path) in str(caught.value) and len(str(caught.value)) < 900
    assert time.monotonic() - began < 2 and not Path("marker").exists()


def test_a_bomb_of_zeros_is_refused_without_unpacking_it(npz, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.npy, "FREE_BYTES", 1 << 24)  # so that the test takes no long time
    size = 1 << 26  # 64 kB of a file, at deflate's ratio
    header = npy(HEADER.format("|u1", (size // 1024, 32, 32)))
    with zipfile.ZipFile(npz, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            file.write(header)
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
        labels = io.BytesIO()
        np.save(labels, np.arange(size // 1024) % 2)
        archive.writestr("labels.npy", labels.getvalue())
    assert npz.stat().st_size < 1e5

    def read():
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(DataError, match="its header says uint8 .*67,108,864 bytes, but"):
            Arrays(str(npz))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB
        return 0

    said = tmp_path / "said.txt"
    assert exit_code_of(fork(said, read)) == 0, said.read_text()


@pytest.mark.parametrize(("parts", "dtype"), [(1, "uint8"), (2, "uint8"), (1, "float32")])
def test_compressed_splits_and_their_copy_must_fit_into_memory_together(
    npz, monkeypatch, parts, dtype
):
    """Each split has 400 bytes as uint8, 1,600 as float32, which are mapped, and is copied."""
    is_packed = dtype == "uint8"
    arrays = {}
    for part in ("train", "test")[:parts]:
        arrays[f"{part}_x"], arrays[f"{part}_y"] = pixels(4, 10, 10).astype(dtype), np.arange(4)
    path = save(npz, is_packed, **arrays)
    taken = parts * 400 * (1 + (parts > 1)) if is_packed else 400
    monkeypatch.setattr(datasets.npy, "_memory", lambda: taken)
    assert len(Arrays(path)) == 4 * parts
    monkeypatch.setattr(datasets.npy, "_memory", lambda: taken - 1)
    with pytest.raises(DataError, match="GiB of memory left") as caught:
        Arrays(path)
    assert path in str(caught.value)


def test_what_macos_writes_beside_arrays_is_no_array(tmp_path):
    arrays = {"images": pixels(4, 2, 2), "labels": np.arange(4)}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        (tmp_path / f"._{name}.npy").write_bytes(b"\0\5\x16\7")
    assert Arrays(str(tmp_path)).labels == (0, 1, 2, 3)
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        for name in arrays:
            archive.write(tmp_path / f"{name}.npy", f"{name}.npy")
            archive.write(tmp_path / f"._{name}.npy", f"__MACOSX/._{name}.npy")
    assert Arrays(str(tmp_path / "data.npz")).labels == (0, 1, 2, 3)


def test_a_folder_of_too_many_arrays_is_refused_as_a_file_is(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.npy, "MAX_ARRAYS", 2)
    arrays = {"images": pixels(4, 2, 2), "labels": np.arange(4), "more": np.arange(4)}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    for path in (str(tmp_path), save(tmp_path / "data.npz", **arrays)):
        with pytest.raises(DataError, match="it holds 3 arrays, more than 2"):
            Arrays(path)


def test_damage_in_compressed_pixels_is_noticed(npz):
    path = save(npz, images=pixels(20, 16, 16), labels=np.arange(20) % 2)
    content = bytearray(npz.read_bytes())
    content[2000] ^= 1
    npz.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        Arrays(path)
    npz.write_bytes(content[:3000])
    with pytest.raises(DataError, match="damaged or cut off"):
        Arrays(path)


@pytest.mark.parametrize("written", [np.savez, np.savez_compressed])
def test_damage_behind_the_first_pages_is_noticed_as_unzip_does(npz, written):
    images = np.random.default_rng(0).integers(0, 256, (200, 16, 16), np.uint8)
    written(npz, images=images, labels=np.arange(200) % 2)
    assert len(Arrays(str(npz))) == 200
    content = bytearray(npz.read_bytes())
    content[30_000] ^= 1
    npz.write_bytes(content)
    with zipfile.ZipFile(npz) as archive:
        assert archive.testzip() == "images.npy"
    with pytest.raises(DataError, match=r"data\.npz: images: it is damaged \(.*CRC"):
        Arrays(str(npz))


def test_an_array_that_is_there_twice_is_refused(npz):
    save(npz, images=pixels(20, 16, 16), labels=np.arange(20) % 2)
    with zipfile.ZipFile(npz, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("images.npy", archive.read("images.npy"))
    with pytest.raises(DataError, match=r"it holds images\.npy twice"):
        Arrays(str(npz))


def test_a_missing_file_and_a_pipe_are_named(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        Arrays(str(tmp_path / "absent.npz"))
    os.mkfifo(tmp_path / "pipe.npz")  # to open it would be to wait for ever
    with pytest.raises(DataError, match="not a regular file"):
        Arrays(str(tmp_path / "pipe.npz"))
    with pytest.raises(DataError, match="no arrays"):
        Arrays(str(tmp_path))
