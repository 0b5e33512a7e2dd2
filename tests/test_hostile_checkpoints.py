"""Files of tensors made by an enemy: each is refused in a sentence, and nothing in it is run."""

import builtins
import collections
import functools
import gc
import io
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import tarfile
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from models.lenet import LeNet
from models.tensor_file import read_tensors
from models.weights import load_weights, read_weights
from tests.conftest import exit_code_of, fork

# --- how the files are made -----------------------------------------------------------------------


class Call:
    """Pickled, it is a call: reading it as pickles are read makes the file ``marker``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def pickled(content: object) -> bytes:
    return pickle.dumps(content, protocol=2)


def zipped(pickle_bytes: bytes, *storages: bytes, **others: bytes) -> bytes:
    """A file as torch.save makes it, of any pickle and any bytes of tensors."""
    members = {"data.pkl": pickle_bytes, "byteorder": b"little", "version": b"3\n"}
    members |= {f"data/{key}": content for key, content in enumerate(storages)} | others
    return zip_of((f"archive/{name}", content) for name, content in members.items())


def zip_of(members, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # two members of one name
        for name, content in members:
            info = zipfile.ZipInfo("?")
            info.filename, info.compress_type = name, method
            archive.writestr(info, content)
    return buffer.getvalue()


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def shape(*sizes: int) -> bytes:
    return b"(" + b"".join(map(number, sizes)) + b"t"


HOOKS = b"ccollections\nOrderedDict\n)R"


def storage(
    kind: str = "FloatStorage", key: str = "0", length: int = 4, device: str = "cpu"
) -> bytes:
    name = f"ctorch\n{kind}\n".encode()
    return b"(" + text("storage") + name + text(key) + text(device) + number(length) + b"tQ"


def tensor(
    size: bytes = shape(4),
    stride: bytes = shape(1),
    offset: int = 0,
    stored: bytes = storage(),
    hooks: bytes = HOOKS,
    grad: bytes = b"\x89",
    function: bytes = b"ctorch._utils\n_rebuild_tensor_v2\n",
) -> bytes:
    return function + b"(" + stored + number(offset) + size + stride + grad + hooks + b"tR"


def state(value: bytes, end: bytes = b"s.") -> bytes:
    """The pickle of {"a": value}."""
    return b"\x80\x02}" + text("a") + value + end


FOUR = struct.pack("<4f", 1, 2, 3, 4)
HONEST = zipped(state(tensor()), FOUR)


def corpus() -> dict[str, bytes]:
    """Name -> file; all of them must be refused, and none may make the file ``marker``."""
    marker = "marker"
    touch, code = f"touch {marker}", f"open({marker!r}, 'w')"
    calls = {
        "os.system": Call(os.system, touch),
        "subprocess": Call(subprocess.check_output, ["touch", marker]),
        "eval": Call(builtins.eval, code),
        "exec": Call(builtins.exec, code),
        "open": Call(builtins.open, marker, "w"),
        "getattr": Call(builtins.getattr, Call(builtins.__import__, "os"), "system"),
        "import": Call(builtins.__import__, "os"),
        "torch.load": Call(torch.load, marker),
        "torch.save": Call(torch.save, 1, marker),
        "hub": Call(torch.hub.load, "a/b", "c"),
        "pickle.loads": Call(pickle.loads, pickled(Call(os.system, touch))),
        "nested torch bytes": Call(torch.load, Call(io.BytesIO, saved(Call(os.system, touch)))),
        "rename": Call(os.rename, marker, marker),
        "in a list": [[{"a": Call(os.system, touch)}]],
        "a module": torch.nn.Linear(2, 2),
        "a class": LeNet,
        "a set": {1, 2},
        "a range": range(3),
        "a dtype": torch.float32,
        "a device": torch.device("cpu"),
        "memory": Call(bytearray, 10**12),
        "memory of a tensor": Call(torch.FloatTensor, 10**11),
        "a default": collections.defaultdict(int, {1: 2}),
        "a path": Path("/tmp"),
        "a generator": torch.Generator,
    }  # fmt: skip
    found = {f"call: {name}": zipped(pickled({"a": call})) for name, call in calls.items()}
    deep_tuple = b")" + b"\x85" * 100_000
    doubling = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(60))
    sizes = {
        "10^12 elements": tensor(shape(10**12)),
        "10^12 elements of none": tensor(shape(10**12), shape(0)),
        "2^62 elements, overflowing": tensor(shape(2**31, 2**31), shape(1, 1)),
        "2^64 elements": tensor(shape(2**32, 2**32), shape(0, 0)),
        "one element too many": tensor(shape(5)),
        "an offset too many": tensor(offset=1),
        "a huge offset": tensor(offset=2**60),
        "a negative offset": tensor(offset=-1),
        "a negative size": tensor(shape(-4)),
        "two negative sizes": tensor(shape(-2, -2), shape(2, 1)),
        "a negative stride": tensor(stride=shape(-1), offset=3),
        "a huge stride": tensor(shape(2), shape(2**61)),
        "a stride too few": tensor(shape(2, 2)),
        "a size of text": tensor(b"(" + text("4") + b"t"),
        "a size of true": tensor(b"\x88\x85"),
        "a list of sizes": tensor(b"](" + number(4) + b"e"),
        "33 dimensions": tensor(shape(*[1] * 33), shape(*[1] * 33)),
        "none of 2^63": tensor(shape(0, 2**40, 2**40), shape(1, 1, 1)),
        "a storage too long": tensor(stored=storage(length=10**12)),
        "a storage too short": tensor(shape(2), stored=storage(length=2)),
        "a storage of negative length": tensor(shape(0), stored=storage(length=-1)),
        "a storage that is missing": tensor(stored=storage(key="7")),
        "a storage elsewhere": tensor(stored=storage(key="../../0")),
        "a storage of the pickle": tensor(stored=storage(key="../data.pkl")),
        "a storage of no type": tensor(stored=storage("NoStorage")),
        "a storage of wide type": tensor(stored=storage("DoubleStorage")),
        "a storage of quantized type": tensor(stored=storage("QInt8Storage")),
        "a storage without a tensor": storage(),
        "a storage id of text": text("storage") + b"Q",
        "hooks": tensor(hooks=HOOKS + text("x") + b"Ns"),
        "hooks of None": tensor(hooks=b"N"),
        "a meta tensor": pickled({"a": 1})[2:-1],
        "a sparse tensor": b"ctorch._utils\n_rebuild_sparse_tensor\n(Nt R",
        "a quantized tensor": tensor(function=b"ctorch._utils\n_rebuild_qtensor\n"),
        "a wrapper": b"ctorch._utils\n_rebuild_wrapper_subclass\n)R",
        "a tensor type": b"ctorch._tensor\n_rebuild_from_type_v2\n)R",
        "an old tensor": tensor(function=b"ctorch._utils\n_rebuild_tensor\n"),
        "a tensor of tensors": b"ctorch\nTensor\n" + tensor() + b"\x85R",
        "BUILD on a tensor": tensor() + b"(" + storage() + number(10**9) + b"tb",
        "BUILD on a dict": b"}}" + text("items") + b"Nsb",
        "BUILD that hides items": HOOKS + b"}" + text("items") + b"Nsb",
        "BUILD of marks that are none": HOOKS + b"}" + text("_metadata") + b"Nsb",
        "SETITEM on a tensor": tensor() + b"K\x00K\x01s",
        "APPEND to a tensor": tensor() + b"K\x00a",
        "NEWOBJ": b"ctorch\nFloatStorage\n)\x81",
        "INST": b"(ios\nsystem\n",
        "OBJ": b"(cos\nsystem\n" + text(touch) + b"o",
        "EXT": b"\x82\x01",
        "STACK_GLOBAL": text("os") + text("system") + b"\x93",
        "posix": b"cposix\nsystem\n" + text(touch) + b"\x85R",
        "nt": b"cnt\nsystem\n" + text(touch) + b"\x85R",
        "a name in two lines": b"ctorch._utils _rebuild_tensor_v2\n\n)R",
        "a call of data": text("x") + b")R",
        "a call of a storage type": b"ctorch\nFloatStorage\n" + number(10**9) + b"\x85R",
        "a codec": b"c_codecs\nencode\n" + text("x") + text("rot13") + b"\x86R",
        "nested lists": b"]" * 5000 + b"a" * 4999,
        "nested tuples": deep_tuple,
        "a nested tuple as key": b"}" + deep_tuple + b"Ns",
        "a tuple that doubles as key": b"})" + b"q\x00h\x00\x86" * 60 + b"Ns",
        "lists that double": doubling,
        "a list in itself": b"]q\x00h\x00a",
        "a dict in its list": b"]q\x00}" + text("k") + b"h\x00sa",
        "a key with an escape": b"}" + text("\x1b[2J") + b"Ns",
        "half a character": b"X\x03\x00\x00\x00\xed\xa0\x80",
        "a memo out of range": b"h\x07",
        "a huge memo": b"]r\xff\xff\xff\xffj\xfe\xff\xff\xff",
        "a huge text": b"X\xff\xff\xff\x7fabc",
        "too many values": b"](" + b"N" * 1_100_000 + b"e",
        "an empty stack": b"a",
        "a mark alone": b"(",
    }  # fmt: skip
    found |= {f"pickle: {name}": zipped(state(value), FOUR) for name, value in sizes.items()}
    del found["pickle: a meta tensor"]
    found["tensors: meta"] = saved({"a": torch.ones(2, device="meta")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found["tensors: sparse"] = saved({"a": torch.eye(2).to_sparse()})
    large = tensor(shape(10**6), stored=storage(length=10**6))
    many = b"".join(text(f"k{n}") + large for n in range(200))
    found["pickle: one storage as many"] = zipped(b"\x80\x02}(" + many + b"u.", bytes(4 * 10**6))
    found["pickle: no end"] = zipped(state(tensor(), b"s"), FOUR)
    found["pickle: more after its end"] = zipped(state(tensor()) + b"N.", FOUR)
    found["pickle: protocol 4"] = zipped(pickle.dumps({"a": 1}, protocol=4))
    found["pickle: protocol 2 said twice"] = zipped(b"\x80\x02\x80\x02N.")
    found["pickle: too large"] = zipped(b"\x80\x02X\0\0\0\x01" + b"x" * (1 << 24) + b".")
    found["pickle: too many steps"] = zipped(b"\x80\x02" + b"}q\x00" * 700_000 + b".")
    found["pickle: empty"] = zipped(b"")

    plain = [("archive/data.pkl", state(tensor())), ("archive/data/0", FOUR)]
    with_file = lambda name, content=b"": zip_of([*plain, (name, content)])  # noqa: E731
    packed = zip_of(plain, zipfile.ZIP_DEFLATED)
    bomb = [("archive/data.pkl", b"\x80\x02N."), ("archive/data/0", bytes(2 * 10**7))]
    found |= {
        "zip: compressed": packed,
        "zip: bomb": zip_of(bomb, zipfile.ZIP_DEFLATED),
        "zip: ../ member": with_file("../evil", b"x"),
        "zip: absolute member": with_file("/tmp/evil", b"x"),
        "zip: ../ within": with_file("archive/../evil", b"x"),
        "zip: another folder": with_file("other/data.pkl", b"x"),
        "zip: a pickle twice": with_file("archive/data.pkl", state(tensor())),
        "zip: a storage twice": with_file("archive/data/0", FOUR),
        "zip: case twins": with_file("archive/DATA.PKL", pickled(Call(os.system, touch))),
        "zip: a program": with_file("archive/constants.pkl", b"x"),
        "zip: code": with_file("archive/code/x.py", b"x"),
        "zip: an odd member": with_file("archive/readme", b"x"),
        "zip: a large version": with_file("archive/version", b"1" * 10_000),
        "zip: an odd byte order": with_file("archive/byteorder", b"middle"),
        "zip: an endless alignment": with_file("archive/.storage_alignment", b"9" * 1000),
        "zip: a name of control characters": with_file("archive/\x1b[2J", b"x"),
        "zip: NUL in a name": with_file("archive/data.pkl\0x", b"x"),
        "zip: no pickle": zip_of(plain[1:]),
        "zip: empty": zip_of([]),
        "zip: with a comment": HONEST[:-2] + b"\x01\0x",
        "zip: more after its end": HONEST + b"\0",
        "zip: two of them": zipped(pickled(Call(os.system, touch))) + HONEST,
        "zip: bytes before it": b"x" + HONEST,
        "zip: encrypted": patched(HONEST, flags=1),
        "zip: claims a terabyte": patched(HONEST, size=0xFFFFFFF0),
        "zip: claims zip64 without it": patched(HONEST, size=0xFFFFFFFF),
        "zip: a check sum that differs": patched(HONEST, crc=1),
        "zip: local name differs": HONEST.replace(b"archive/data.pkl", b"archive/data.xyz", 1),
        "zip: overlapping": overlapping(),
        "zip: many members": HONEST[:-14] + struct.pack("<2H", 65535, 65535) + HONEST[-10:],
        "zip: two disks": HONEST[:-18] + b"\x01\0" + HONEST[-16:],
    }  # fmt: skip
    old = io.BytesIO()
    torch.save({"a": torch.ones(2)}, old, _use_new_zipfile_serialization=False)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            content = pickled(Call(os.system, touch))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    found |= {
        "file: legacy": old.getvalue(),
        "file: legacy that calls": old.getvalue()[:15] + pickled(Call(os.system, touch)) * 3,
        "file: legacy tar": tar.getvalue(),
        "file: bare pickle": pickled(Call(os.system, touch)),
        "file: bare pickle of protocol 0": pickle.dumps(Call(os.system, touch), protocol=0),
        "file: text": b"these are no weights\n",
        "file: HTML": b"<!DOCTYPE html><title>404</title>",
        "file: empty": b"",
        "file: one byte": b"P",
        "file: zeros": bytes(100_000),
        "file: only the end": HONEST[-22:],
        "file: random": random.Random(0).randbytes(10_000),
    }  # fmt: skip
    whole = saved(LeNet(2, 1).state_dict())
    for part in range(32):
        found[f"cut at {part}/32"] = whole[: len(whole) * part // 32]
    return found


def patched(content: bytes, **values: int) -> bytes:
    """The zip with other values in the directory's entry of its first member."""
    at = content.index(b"PK\x01\x02")
    places = {"flags": (8, "<H"), "crc": (16, "<L"), "size": (20, "<L")}
    changed = bytearray(content)
    for name, value in values.items():
        offset, form = places[name]
        struct.pack_into(form, changed, at + offset, value)
        if name == "size":
            struct.pack_into(form, changed, at + offset + 4, value)
    return bytes(changed)


def overlapping() -> bytes:
    """A zip whose second tensor lies within the first one."""
    alone = zip_of([("archive/data/1", FOUR)])
    inner = alone[: alone.index(b"PK\x01\x02")]  # its header and its bytes
    members = [("data.pkl", state(tensor())), ("data/0", inner), ("data/1", FOUR)]
    content = bytearray(zip_of((f"archive/{name}", bytes_) for name, bytes_ in members))
    last = content.rindex(b"PK\x01\x02")
    content[last + 42 : last + 46] = struct.pack("<L", content.index(inner))
    return bytes(content)


CORPUS = corpus()
NAMES = sorted(CORPUS)


# --- what must be kept ----------------------------------------------------------------------------


def read_all(files, work, verdicts):
    """Read each file, with little memory: a line of what is said, the seconds, the files made."""
    os.chdir(work)
    warnings.simplefilter("ignore")
    gc.freeze()  # objects of the tests before are no matter of the reader's time
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (1 << 29)  # half a gigabyte more than there is
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in sorted(files.iterdir()):
        start = time.process_time()
        try:
            read_tensors(path)
            told = "nothing"
        except ValueError as error:
            told = str(error)
        except BaseException as error:
            told = repr(error)
        verdict = [path.name, told, time.process_time() - start, os.listdir()]
        with verdicts.open("a") as file:
            file.write(f"{json.dumps(verdict)}\n")
    return 0


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """What a process of little memory says of each: name -> (text, seconds, files made by then)."""
    folder = tmp_path_factory.mktemp("hostile")
    files, work, output = folder / "files", folder / "work", folder / "verdicts.jsonl"
    files.mkdir()
    work.mkdir()
    for index, name in enumerate(NAMES):
        (files / f"{index:03d}.pt").write_bytes(CORPUS[name])
    said = folder / "said.txt"
    code = exit_code_of(fork(said, functools.partial(read_all, files, work, output)), 300)
    assert code == 0, (code, said.read_text()[-3000:])
    assert len(list(files.iterdir())) == len(NAMES)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    return {name: rest for (_, *rest), name in zip(lines, NAMES, strict=True)}


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file_is_refused_in_one_sentence_at_once_and_runs_nothing(verdicts, name):
    told, seconds, made = verdicts[name]
    assert made == []
    assert ".pt cannot be read: " in told and "\n" not in told and len(told) < 300, told
    assert "weights_only=False" not in told and "allowlist" not in told
    assert seconds < 1


def test_there_are_many_hostile_files():
    assert len(NAMES) > 150


def test_what_the_corpus_is_made_from_is_read_when_it_is_honest(tmp_path):
    (tmp_path / "honest.pt").write_bytes(HONEST)
    assert read_tensors(tmp_path / "honest.pt")["a"].tolist() == [1, 2, 3, 4]


def test_honest_files_of_all_kinds_are_read_as_torch_reads_them(tmp_path):
    path = tmp_path / "honest.pt"
    model = LeNet(3, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 1, 32, 32)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    types = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64)
    content: dict[str, Any] = {
        "model": model.state_dict(),
        "norm": torch.nn.BatchNorm2d(2).state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "types": [torch.ones(2, 3, dtype=dtype) for dtype in types],
        "views": [torch.arange(24).view(4, 6)[1:, ::2].t(), torch.tensor(7), torch.empty(0, 3)],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "random": torch.get_rng_state(),
        "plain": [None, True, -1, 2**70, 0.5, float("inf"), "权重", b"\x00\xff", (), [], {1: (2,)}],
        "size": torch.Size([1, 2]),
    }
    torch.save(content, path)
    found, expected = read_tensors(path), torch.load(path, weights_only=True)
    assert saved(found) == saved(expected)
    assert found["norm"]._metadata == expected["norm"]._metadata
    assert torch.equal(found["views"][0], content["views"][0])


def test_a_file_of_very_many_tensors_is_read(tmp_path):
    torch.save(
        {f"layer{n}.weight": torch.full((2,), float(n)) for n in range(3000)}, tmp_path / "a"
    )
    start = time.process_time()
    assert read_tensors(tmp_path / "a")["layer2999.weight"].tolist() == [2999, 2999]
    assert time.process_time() - start < 2


def test_a_flipped_bit_is_refused_or_changes_a_number_of_a_tensor_at_most(tmp_path):
    honest = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int64)}
    whole, dice, path = saved(honest), random.Random(0), tmp_path / "flipped.pt"
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_tensors(path)
        except ValueError:
            refused += 1
            continue
        assert list(found) == ["a", "b"]
        for name, expected in honest.items():
            assert found[name].shape == expected.shape and found[name].dtype == expected.dtype
    assert refused > 100


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a regular file|Is a directory"):
            read_tensors(path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="symbolic links"):
        read_tensors(tmp_path / "loop")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "link")


def test_what_is_loaded_is_the_file_that_was_checked(tmp_path, monkeypatch):
    path, evil = tmp_path / "a.pt", tmp_path / "evil.pt"
    path.write_bytes(HONEST)
    torch.save({"a": torch.zeros(4)}, evil)
    load = torch.load

    def swap(file, **arguments):
        evil.replace(path)  # the moment between check and load
        assert arguments["weights_only"] is True
        return load(file, **arguments)

    monkeypatch.setattr(torch, "load", swap)
    assert read_tensors(path)["a"].tolist() == [1, 2, 3, 4]


def test_the_environment_cannot_switch_the_guard_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    (tmp_path / "a.pt").write_bytes(zipped(pickled({"a": Call(os.system, f"touch {marker}")})))
    with pytest.raises(ValueError, match="it holds 'posix.system', which is neither"):
        read_tensors(tmp_path / "a.pt")
    assert not marker.exists()


def test_the_form_of_old_versions_is_refused_with_the_command_that_converts_it(tmp_path):
    old, new = tmp_path / "old.pth", tmp_path / "new.pt"
    torch.save(LeNet(2, 1).state_dict(), old, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"before PyTorch 1\.6; convert it: python -c") as caught:
        read_weights(str(old))
    command = str(caught.value).partition('python -c "')[2].removesuffix('"')
    code = command.replace("OLD", str(old)).replace("NEW", str(new))

    def convert():
        exec(code, {})
        return 0

    said = tmp_path / "said.txt"
    assert exit_code_of(fork(said, convert)) == 0, said.read_text()
    told = load_weights(LeNet(2, 1), read_weights(str(new)), "ab", lambda n: LeNet(n, 1))
    assert "10 of 10 tensors taken" in told


def test_weights_of_wrong_shapes_are_refused_by_the_model(tmp_path):
    torch.save({"features.0.weight": torch.ones(10**6)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"features\.0\.weight is \(1000000,\)"):
        load_weights(LeNet(2, 1), read_weights(str(tmp_path / "a.pt")), "ab", lambda n: LeNet(n, 1))


def test_lack_of_memory_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_bytes(HONEST)

    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MemoryError):
        read_tensors(tmp_path / "a.pt")


def is_plain(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes() <= 16 and not value._backward_hooks
    if isinstance(value, dict):
        return all(is_plain(item) for item in (*value, *value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str, bytes)


def test_a_pickle_changed_at_random_is_refused_or_still_holds_only_plain_things(tmp_path):
    whole = b"\x80\x02}(" + text("a") + tensor() + text("b") + b"](" + number(7) + b"N}eu."
    dice, path, refused = random.Random(0), tmp_path / "changed.pt", 0
    for _ in range(600):
        changed = bytearray(whole)
        for _ in range(dice.choice((1, 1, 2))):
            at = dice.randrange(2, len(changed))
            changed[at : at + dice.randrange(3)] = dice.choice(
                (b"", dice.randbytes(1), b"h\x01", b"0")
            )
        path.write_bytes(zipped(bytes(changed), FOUR))
        try:
            assert is_plain(read_tensors(path))
        except ValueError:
            refused += 1
    assert refused > 300


def test_members_that_overlap_are_refused_here_and_not_left_to_torch(verdicts):
    assert verdicts["zip: overlapping"][0].endswith("its members overlap")
