"""Archives made by an enemy: refused in a sentence, and nothing is left inside or outside."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasets import DataError, archive
from datasets.archive import unpack
from scripts.unpack import main

ROOT = Path(__file__).resolve().parent.parent


def tar_of(*members: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, **values) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in values.items():
        setattr(info, key, value)
    return info


def header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.GNU_FORMAT)


def zip_of(*members: tuple[str, bytes], mode: int = 0, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as packed:
        warnings.simplefilter("ignore")  # two members of one name
        for name, content in members:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, method
            info.external_attr = mode << 16
            packed.writestr(info, content)
    return buffer.getvalue()


def pax(**values: str) -> bytes:
    """A PAX header that says so of the file that comes next."""
    lines = b""
    for key, value in values.items():
        text = f" {key.replace('_', '.')}={value}\n".encode()
        length = len(text) + len(str(len(text) + 3))
        lines += f"{length}".encode() + text
    return header(entry("pax", tarfile.XHDTYPE, size=len(lines))) + lines.ljust(512, b"\0")


OK = ("a/ok.txt", b"fine")
END = bytes(1024)
LINK, HARD, GNU = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.GNU_FORMAT


def corpus() -> dict[str, bytes | Callable[[], bytes]]:
    """Name -> archive, or what makes a large one; all of them must be refused."""
    names = {
        "absolute": "/tmp/evil",
        "two slashes": "//evil",
        "parent": "../evil",
        "parent within": "a/../../evil",
        "parent at the end": "a/..",
        "point within": "a/./b",
        "slashes within": "a//b",
        "a drive": "C:/evil",
        "a drive without slash": "C:evil",
        "a backslash": "a\\..\\evil",
        "an escape": "a\x1b[2J",
        "a newline": "a\nb",
        "turned around": "a\u202etxt.exe",
        "invisible": "a\u200b",
        "too long": "a/" * 600 + "b",
        "a part too long": "a" * 256,
    }  # fmt: skip
    found: dict[str, bytes | Callable[[], bytes]] = {}
    found |= {f"tar: {what}": tar_of(OK, (name, b"x")) for what, name in names.items()}
    found |= {f"zip: {what}": zip_of(OK, (name, b"x")) for what, name in names.items()}
    twins = {
        "case": ("a/OK.txt", b"x"),
        "case of a folder": ("A/b", b"x"),
        "Unicode": ("cafe\u0301", b"x"),
        "the same": OK,
        "file as folder": ("a/ok.txt/b", b"x"),
        "folder as file": ("a", b"x"),
    }  # fmt: skip
    first = (OK, ("caf\u00e9", b"x"))
    found |= {f"tar twins: {what}": tar_of(*first, twin) for what, twin in twins.items()}
    found |= {f"zip twins: {what}": zip_of(*first, twin) for what, twin in twins.items()}
    write_through = tar_of(entry("l", LINK, linkname="/tmp"), ("l/evil", b"x"))
    found |= {
        "tar: symbolic link": tar_of(OK, entry("l", LINK, linkname="a/ok.txt")),
        "tar: symbolic link out": tar_of(entry("l", LINK, linkname="../../etc/passwd")),
        "tar: symbolic link, then through it": write_through,
        "tar: symbolic link to nothing": tar_of(OK, entry("l", LINK, linkname="")),
        "tar: symbolic link of the top": tar_of(entry(".", LINK, linkname="/tmp"), OK),
        "tar: hard link": tar_of(OK, entry("h", HARD, linkname="a/ok.txt")),
        "tar: hard link out": tar_of(entry("h", HARD, linkname="/etc/passwd")),
        "tar: character device": tar_of(entry("d", tarfile.CHRTYPE, devmajor=1, devminor=5)),
        "tar: block device": tar_of(entry("d", tarfile.BLKTYPE, devmajor=8)),
        "tar: pipe": tar_of(entry("p", tarfile.FIFOTYPE)),
        "tar: contiguous": tar_of(entry("c", tarfile.CONTTYPE)),
        "tar: unknown type": tar_of(entry("u", b"Z")),
        "tar: long link name": tar_of(entry("l", LINK, linkname="x" * 300), form=GNU),
        "tar: old sparse file": header(entry("s", tarfile.GNUTYPE_SPARSE, size=10**12)) + END,
        "tar: PAX sparse file": pax(GNU_sparse_realsize=str(10**12)) + tar_of(OK),
        "tar: a terabyte": header(entry("t", size=10**12)) + END,
        "tar: a terabyte by PAX": pax(size=str(10**12)) + tar_of(OK),
        "tar: negative size": header(entry("n", size=-5)) + END,
        "tar: PAX name out": pax(path="../../evil") + tar_of(OK),
        "tar: PAX name of NUL": pax(path="a\0b") + tar_of(OK),
        "tar: PAX size of text": pax(size="-1") + tar_of(OK),
        "tar: PAX without length": header(entry("p", tarfile.XHDTYPE, size=4)) + b"x=y\n" * 128,
        "tar: PAX header of a terabyte": header(entry("p", tarfile.XHDTYPE, size=10**12)) + END,
        "tar: PAX header alone": pax(path="b") + b"",
        "tar: long name out": tar_of(("../" * 50 + "evil", b"x"), form=GNU),
        "tar: long name of a terabyte": header(entry("n", tarfile.GNUTYPE_LONGNAME, size=2**40)),
        "tar: folder with content": header(entry("d", tarfile.DIRTYPE, size=4)) + b"evil" + END,
        "tar: only a folder": tar_of(entry("d", tarfile.DIRTYPE)),
        "tar: no name": header(entry("")) + END,
        "tar: not UTF-8": header(entry("n\udcff")) + END,
        "tar: cut in a file": tar_of(OK)[:700],
        "tar: cut in a header": tar_of(OK)[:300],
        "tar: without an end": tar_of(OK)[:1024],
        "tar: damaged check sum": b"X" + tar_of(OK)[1:],
        "tar: more after its end": tar_of(OK) + b"x" * 512,
        "tar: two of them": tar_of(OK) + tar_of(("b", b"x")),
        "tar: many empty files": lambda: gzip.compress(
            b"".join(header(entry(f"{n:x}")) for n in range(60_000)) + END, 1
        ),
        "gz: bomb": lambda: gzip.compress(header(entry("b", size=1 << 27)) + bytes(1 << 27), 1),
        "gz: bomb after the end": lambda: gzip.compress(tar_of(OK) + bytes(1 << 26), 1),
        "gz: cut": gzip.compress(tar_of(OK, ("r", random.Random(0).randbytes(5000))))[:-2000],
        "gz: wrong CRC": gzip.compress(tar_of(OK))[:-8] + bytes(8),
        "gz: garbage behind": gzip.compress(tar_of(OK)) + b"evil",
        "gz: in gz": gzip.compress(gzip.compress(tar_of(OK))),
        "gz: empty": gzip.compress(b""),
        "bz2: damaged": b"BZh9" + bytes(100),
        "xz: damaged": b"\xfd7zXZ\0" + bytes(100),
        "xz: bomb": lambda: lzma.compress(
            header(entry("b", size=1 << 26)) + bytes(1 << 26), preset=0
        ),
        "zip: symbolic link": zip_of(OK, ("l", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777),
        "zip: device": zip_of(("d", b""), mode=stat.S_IFCHR | 0o666),
        "zip: pipe": zip_of(("p", b""), mode=stat.S_IFIFO | 0o666),
        "zip: NUL": zip_of(OK, ("a.txt\0.jpg", b"x")),
        "zip: bomb": lambda: zip_of(("b", bytes(1 << 26))),
        "zip: LZMA": zip_of(OK, method=zipfile.ZIP_LZMA),
        "zip: folder with content": zip_of(("d/", b"evil")),
        "zip: empty": zip_of(),
        "zip: cut": zip_of(OK)[:-30],
        "zip: wrong CRC": damaged_zip("crc"),
        "zip: longer than it says": damaged_zip("size"),
        "zip: encrypted": damaged_zip("flags"),
        "zip: of another method": damaged_zip("method"),
        "text": b"this is no archive\n" * 100,
        "HTML": b"<!DOCTYPE html>".ljust(2000),
        "empty": b"",
        "zeros": bytes(10_000),
        "random": random.Random(1).randbytes(10_000),
        "rar": b"Rar!\x1a\x07\x01\0" + bytes(600),
    }  # fmt: skip
    return found


def damaged_zip(what: str) -> bytes:
    """A zip of one stored file, of which the directory and the local header say something else."""
    content = bytearray(zip_of(("a", b"content" * 10), method=zipfile.ZIP_STORED))
    at = content.index(b"PK\x01\x02")
    local, central, form, value = {
        "crc": (14, 16, "<L", 1),
        "size": (22, 24, "<L", 5),
        "flags": (6, 8, "<H", 1),
        "method": (8, 10, "<H", 99),
    }[what]
    struct.pack_into(form, content, local, value)
    struct.pack_into(form, content, at + central, value)
    if what == "size":  # of both, packed and unpacked; the bytes are there
        struct.pack_into(form, content, at + 20, value)
        struct.pack_into(form, content, 18, value)
    return bytes(content)


CORPUS = corpus()
NAMES = sorted(CORPUS)

_CHILD = """
import json, os, resource, shutil, sys, time
from pathlib import Path
from datasets import DataError
from datasets.archive import unpack
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (1 << 29)  # half a gigabyte more than there is
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        unpack(path, Path("new/target"))
        told = "nothing"
    except DataError as error:
        told = str(error)
    except BaseException as error:
        told = repr(error)
    shutil.rmtree("new/target", ignore_errors=True)  # if it was not refused
    left = os.listdir(".") + os.listdir("..")
    print(json.dumps([told, time.process_time() - start, left]), flush=True)
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """What a process of little memory says of each archive, and what it left behind."""
    folder = tmp_path_factory.mktemp("hostile")
    files, work = folder / "files", folder / "around" / "work"
    files.mkdir()
    work.mkdir(parents=True)
    for index, name in enumerate(NAMES):
        content = CORPUS[name]
        (files / f"{index:03d}").write_bytes(content if isinstance(content, bytes) else content())
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(files)],
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-300:], done.stderr)
    assert not [path for path in folder.rglob("*evil*")] and not Path("/tmp/evil").exists()
    return dict(zip(NAMES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_archive_is_refused_in_one_sentence_at_once_and_leaves_nothing(verdicts, name):
    told, seconds, left = verdicts[name]
    assert told.endswith("; nothing was unpacked.") and "\n" not in told, told
    assert told.isprintable() and len(told) < 400
    assert left == ["work"]
    assert seconds < 2


def test_there_are_many_hostile_archives():
    assert len(NAMES) > 90


FILES = {"b/1.txt": b"one", "b/2.bin": bytes(range(256)) * 40, "b/c/空.txt": b"", "top": b"t"}


def pack(tmp_path: Path, suffix: str) -> Path:
    path = tmp_path / f"packed{suffix}"
    if suffix == ".zip":
        path.write_bytes(zip_of(("b/", b""), *FILES.items()))
    else:
        content = tar_of(entry("./b", tarfile.DIRTYPE), *((f"./{n}", c) for n, c in FILES.items()))
        compress: dict[str, Any] = {
            ".tar": bytes,
            ".tar.gz": gzip.compress,
            ".tar.bz2": bz2.compress,
        }
        path.write_bytes(compress.get(suffix, lzma.compress)(content))
    return path


def files_in(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip"])
def test_an_honest_archive_is_unpacked_whole(tmp_path, suffix):
    path = pack(tmp_path, suffix)
    assert unpack(path, tmp_path / "new" / "target") == len(FILES)
    assert files_in(tmp_path / "new" / "target") == FILES
    assert os.listdir(tmp_path / "new") == ["target"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_form_of_tar_are_read(tmp_path, form):
    name = "/".join(["folder" * 6] * 4) + "/" + "n" * 60
    (tmp_path / "a.tar").write_bytes(tar_of((name, b"long"), ("next", b"short"), form=form))
    unpack(tmp_path / "a.tar", tmp_path / "target")
    assert files_in(tmp_path / "target") == {name: b"long", "next": b"short"}


def test_an_archive_that_the_tar_command_wrote_is_read(tmp_path):
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "sub" / "a b.txt").write_bytes(b"x" * 1000)
    subprocess.run(["tar", "czf", tmp_path / "a.tgz", "-C", tmp_path / "source", "."], check=True)
    unpack(tmp_path / "a.tgz", tmp_path / "target")
    assert files_in(tmp_path / "target") == {"sub/a b.txt": b"x" * 1000}


def test_modes_of_the_archive_do_not_count(tmp_path):
    info = entry("run", mode=0o6777, uid=0, size=0)
    (tmp_path / "a.tar").write_bytes(tar_of(info))
    unpack(tmp_path / "a.tar", tmp_path / "target")
    assert not (tmp_path / "target" / "run").stat().st_mode & 0o7111


def test_another_sha256_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    path = pack(tmp_path, ".tar.gz")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    unpack(path, tmp_path / "good", digest)
    monkeypatch.setattr(archive, "_members", lambda *_: pytest.fail("it was read"))
    with pytest.raises(DataError, match=f"its SHA-256 is {digest}, not 000"):
        unpack(path, tmp_path / "target", "0" * 64)


@pytest.mark.parametrize("kind", ["folder", "empty", "file", "link", "dangling"])
def test_a_target_that_exists_is_left_alone(tmp_path, kind):
    path, target, other = pack(tmp_path, ".zip"), tmp_path / "target", tmp_path / "other"
    other.mkdir()
    if kind in ("folder", "empty"):
        target.mkdir()
        if kind == "folder":
            (target / "mine").write_text("mine")
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(other if kind == "link" else tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="target: exists already"):
        unpack(path, target)
    assert sorted(tmp_path.rglob("*")) == before and not list(other.iterdir())


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="cannot be read"):
            unpack(path, tmp_path / "target")
    assert os.listdir(tmp_path) == ["pipe"]


def test_more_than_the_disk_has_left_is_refused_before_it_is_written(tmp_path, monkeypatch):
    path = pack(tmp_path, ".tar")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="b/2.bin': it is 10,240 bytes, but the disk has 997 left"):
        unpack(path, tmp_path / "target")


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    for suffix in (".zip", ".tar"):
        with pytest.raises(DataError, match="more than 3 files and folders"):
            unpack(pack(tmp_path, suffix), tmp_path / "target")


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_damage_anywhere_is_refused_or_does_not_matter(tmp_path, suffix):
    whole, dice = pack(tmp_path, suffix).read_bytes(), random.Random(0)
    path, target, refused = tmp_path / "damaged", tmp_path / "target", 0
    for number in range(150):
        damaged = bytearray(whole[: dice.randrange(len(whole)) if number % 3 else len(whole)])
        if damaged and not number % 3:
            damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            unpack(path, target)
        except DataError:
            refused += 1
            continue
        contents = files_in(target)
        assert sorted(contents.values()) == sorted(FILES.values())
        shutil.rmtree(target)
    assert refused > 120 and sorted(os.listdir(tmp_path)) == ["damaged", f"packed{suffix}"]


def test_the_command_unpacks_and_its_errors_are_sentences(tmp_path, capsys):
    path, target = pack(tmp_path, ".tar.gz"), tmp_path / "target"
    arguments = ["--archive", str(path), "--target", str(target)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.endswith(f"{target}: 4 files\n")
    assert files_in(target) == FILES
    assert main(arguments) == 3
    assert capsys.readouterr().err.startswith(f"error: {target}: exists already")
    content = CORPUS["tar: symbolic link, then through it"]
    assert isinstance(content, bytes)
    path.write_bytes(content)
    assert main([*arguments[:3], str(tmp_path / "new")]) == 3
    assert f"error: {path}: 'l': it is a symbolic link" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--sha256", "abc"])
    assert "64 hexadecimal digits" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "full"), 5)])
def test_an_interrupt_or_a_full_disk_leaves_nothing(tmp_path, monkeypatch, capsys, error, code):
    path = pack(tmp_path, ".tar")

    def fail(partial, member):
        (partial / "half").touch()
        raise error

    monkeypatch.setattr(archive, "_write", fail)
    assert main(["--archive", str(path), "--target", str(tmp_path / "target")]) == code
    assert os.listdir(tmp_path) == [path.name]
    assert capsys.readouterr().err
