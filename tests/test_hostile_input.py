"""YAML, names, links and images made by an enemy; and secrets, which reach no artifact."""

import io
import json
import os
import secrets
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from datasets import BrokenImage
from datasets.image_folder import ImageFolder
from datasets.images import read_image
from trainer.config import load_config
from trainer.config.document import read_document
from trainer.process.errors import ConfigError, RunError
from trainer.run import checkpoint
from trainer.train import main

ROOT = Path(__file__).resolve().parent.parent

# --- YAML -----------------------------------------------------------------------------------------

MIB = 1 << 20
YAML = {
    "python object": "a: !!python/object/apply:os.system ['touch marker']\n",
    "python name": "a: !!python/name:os.system\n",
    "python module": "!!python/module:os\n",
    "own tag": "a: !evil 1\n",
    "tag of a mapping": "a: !!map {b: 1}\n",
    "tag of a key": "!!str a: 1\n",
    "binary": "a: !!binary aGk=\n",
    "tag directive": "%TAG ! tag:yaml.org,2002:python/\n---\na: !name:os.system\n",
    "anchor": "a: &x 1\n",
    "alias of itself": "a: &x [*x]\n",
    "alias without anchor": "a: *x\n",
    "merge": "a: {<<: {b: 1}}\n",
    "a billion laughs": "a0: &a0 x\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 60)),
    "twenty thousand anchors": "".join(f"b{n}: &b{n} [*b{n - 1}]\n" for n in range(1, 20_000)),
    "merges of merges": "".join(f"k{n}: &k{n}\n  <<: [*k{n - 1}]\n" for n in range(1, 9000)),
    "brackets": "[" * MIB,
    "braces": "{" * MIB,
    "nested mappings": "a: {" * (MIB // 4),
    "nested questions": "? " * (MIB // 2),
    "nested dashes": "- " * (MIB // 2),
    "nested by indentation": "".join(" " * n + "a:\n" for n in range(1400)),
    "a key twice": "a: 1\na: 2\n",
    "a key very often": "a: 1\n" * (MIB // 5),
    "many keys": "".join(f"k{n}: 1\n" for n in range(90_000)),
    "many faults": "".join(f"k{n}: [\n" for n in range(100_000)),
    "many open quotes": "".join(f"k{n}: 'x\n" for n in range(90_000)),
    "many damaged blocks": "".join(f"k{n}: {{a: 1\n  b: ]\n" for n in range(50_000)),
    "many items": "a: [" + "1," * (MIB // 2 - 4) + "]",
    "NUL": "a: 1\0\n",
    "only NULs": "\0" * MIB,
    "escape": "a: \x1b[2J\n",
    "half a character": 'a: "\\ud800"\n',
    "no character": 'a: "\\UFFFFFFFF"\n',
    "endless number": "a: " + "9" * (MIB - 4),
    "endless exponent": "a: 1e" + "9" * (MIB - 6),
    "endless version": "%YAML " + "9" * (MIB - 20) + "\n---\n",
    "endless text": "a: '" + "x" * (MIB - 5),
    "endless key": "x" * (MIB - 4) + ": 1",
    "two documents": "a: 1\n---\nb: 2\n",
    "a byte too many": "#" * (MIB + 1),
    "a list as key": "[1, 2]: 3\n",
    "a tab": "a:\n\tb: 1\n",
}

_CHILD = """
import json, resource, sys, time
from pathlib import Path
from trainer.config.document import read_document
from trainer.process.errors import ConfigError
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (1 << 28)  # a quarter of a gigabyte more than there is
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        document = read_document(path)
        told = str(ConfigError(document.faults, str(path))) if document.faults else "nothing"
    except ConfigError as error:
        told = str(error)
    print(json.dumps([told, time.process_time() - start]), flush=True)
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """What a process of little memory says of each file: (text, seconds)."""
    folder = tmp_path_factory.mktemp("yaml")
    files, work = folder / "files", folder / "work"
    files.mkdir()
    work.mkdir()
    for index, text in enumerate(YAML.values()):
        (files / f"{index:03d}.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(files)],
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not list(work.iterdir()), "something was run"
    return dict(zip(YAML, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", YAML)
def test_hostile_yaml_is_refused_at_once_with_its_line(verdicts, name):
    told, seconds = verdicts[name]
    head, first = told.splitlines()[:2]
    assert len(told) < 20_000  # not the file's long lines
    assert head.split()[1].startswith("fault"), told[:300]
    if name != "a byte too many":
        assert ".yaml:" in first and first.split(".yaml:")[1].split(":")[0].isdigit(), first
    assert seconds < 2


def test_more_keys_than_a_configuration_has_are_refused_at_the_first_too_many(tmp_path):
    for count in (1000, 1001):
        path = tmp_path / f"{count}.yaml"
        path.write_text("# comment\n" + "".join(f"k{n}: 1\n" for n in range(count)))
        faults = read_document(path).faults
        assert [(f.line, f.message.partition(";")[0]) for f in faults] == (
            [(1002, "too many keys")] if count == 1001 else []
        )


@pytest.mark.parametrize("name", [
    "..", ".", "../up", "a/b", "/abs", ".hidden", "-x", "_x", "~", "", " ", "a b", "a\n", "\na",
    "a\0", "a\x1b[2J", "a\\b", "é", "a" * 65, "a:b", "a/", "*", "$HOME",
])  # fmt: skip
def test_a_run_name_that_could_lead_elsewhere_is_refused(config_file, tmp_path, name):
    path = tmp_path / "named.yaml"
    path.write_text(f"name: {json.dumps(name)}\n{config_file.read_text()}")
    with pytest.raises(ConfigError, match=r"named\.yaml:1:7: name: "):
        load_config(path, [])


def test_a_file_name_that_is_no_run_name_is_refused_before_anything_is_written(
    config_file, tmp_path, capsys
):
    path = tmp_path / "-rf \x1b[2J.yaml"
    path.write_text(config_file.read_text())
    assert main(["--config", str(path), "--runs", str(tmp_path / "runs")]) == 2
    assert "name" in capsys.readouterr().err and not (tmp_path / "runs").exists()


# --- links in a run's folder ----------------------------------------------------------------------


def test_nothing_is_removed_through_a_link(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    (run / "checkpoints").mkdir(parents=True)
    (other / "step-000000001").mkdir(parents=True)
    (other / "step-000000001" / "state.pt").write_text("mine")
    (run / "checkpoints" / "step-000000001").symlink_to(other / "step-000000001")
    (run / "checkpoints" / "step-000000002.tmp-7").symlink_to(other)
    (run / ".model.pt.7.tmp").symlink_to(other / "step-000000001" / "state.pt")
    checkpoint.remove_leftovers(run)
    assert not checkpoint.checkpoints(run)
    assert (other / "step-000000001" / "state.pt").read_text() == "mine"


def test_a_folder_of_checkpoints_that_is_a_link_is_refused(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    (other / "step-000000001.tmp-7").mkdir(parents=True)
    (run / "checkpoints").symlink_to(other)
    with pytest.raises(RunError, match="is a link"):
        checkpoint.remove_leftovers(run)
    assert list(other.iterdir()) == [other / "step-000000001.tmp-7"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_known_wherever_they_hide(value):
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        good = torch.ones(4, 6, dtype=dtype)
        state = {"model": {"a": good.t()[1:], "n": torch.arange(3)}, "other": [(good[:, ::2], 1)]}
        assert checkpoint.is_finite(state)
        good[3, 4] = value
        assert not checkpoint.is_finite(state)


# --- images ---------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width: int, height: int, data: bytes = b"", *more: bytes) -> bytes:
    head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(data, 9))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(more) + pixels + chunk(b"IEND", b"")
    )


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    content = buffer.getvalue()
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">2H", height, width) + content[at + 4 :]


def tiff(width: int, height: int) -> bytes:
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 200), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 10),
    ]  # fmt: skip
    body = b"".join(struct.pack("<2H2L", *tag) for tag in tags)
    return (
        b"II*\0" + struct.pack("<L", 8) + struct.pack("<H", len(tags)) + body + bytes(4) + bytes(90)
    )


def bmp(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<L4xL", 54, 54)
        + struct.pack("<L2l2H6L", 40, width, height, 1, 24, *[0] * 6)
    )


def vp8x(width: int, height: int) -> bytes:
    canvas = (
        bytes([0, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )
    body = b"WEBPVP8X" + struct.pack("<L", 10) + canvas
    return b"RIFF" + struct.pack("<L", len(body)) + body


IMAGES = {
    "PNG of 2.5 gigapixels": png(50_000, 50_000),
    "PNG of 4 million terapixels": png(2**31 - 1, 2**31 - 1),
    "PNG just too large": png(12_001, 10_000),
    "PNG without its pixels": png(9_000, 9_000),
    "PNG of no width": png(0, 10),
    "PNG bomb of text": png(1, 1, b"", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 9))),
    "PNG bomb of a profile": png(
        1, 1, b"", chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8), 9))
    ),
    "JPEG of 4 gigapixels": jpeg(65_500, 65_500),
    "GIF of 4 gigapixels": b"GIF89a" + struct.pack("<2H3B", 65_535, 65_535, 0, 0, 0) + b";",
    "TIFF of 10 gigapixels": tiff(100_000, 100_000),
    "TIFF of the largest numbers": tiff(2**32 - 1, 2**32 - 1),
    "BMP of 10 gigapixels": bmp(100_000, 100_000),
    "BMP of negative size": bmp(-5, -5),
    "WEBP of 268 megapixels": vp8x(16_384, 16_384),
    "PPM of 2.5 gigapixels": b"P6 50000 50000 255\n" + bytes(100),
    "PPM of endless numbers": b"P6 " + b"9" * 100_000 + b" 1 255\n",
    "ICNS": b"icns" + struct.pack(">L", 100) + b"ic10" + bytes(92),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(marker) (w) file\n",
    "PDF": b"%PDF-1.4\n" + bytes(100),
    "PSD": b"8BPS\0\1" + bytes(100),
    "FITS": b"SIMPLE  =                    T" + bytes(3000),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "HTML": b"<html>",
    "a zip": b"PK\3\4" + bytes(100),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_a_hostile_image_is_broken_at_once(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.jpg").write_bytes(IMAGES[name])
    start = time.process_time()
    with pytest.raises(BrokenImage, match=r"image\.jpg: .") as caught:
        read_image(tmp_path / "image.jpg")
    assert time.process_time() - start < 1 and len(str(caught.value)) < 400
    assert os.listdir(tmp_path) == ["image.jpg"]


def test_an_enormous_file_is_broken_before_it_is_read(tmp_path):
    with open(tmp_path / "image.jpg", "wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(BrokenImage, match="larger than 1 GiB"):
        read_image(tmp_path / "image.jpg")


def test_pipes_devices_and_loops_in_a_folder_are_broken_images_and_nobody_waits(tmp_path):
    folder = tmp_path / "root" / "class"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "secret.jpg").symlink_to("/etc/passwd")
    (folder / "folder.jpg").symlink_to(tmp_path)
    (folder / "nowhere.jpg").symlink_to(tmp_path / "nowhere")
    dataset = ImageFolder(str(tmp_path / "root"))
    assert len(dataset) == 3 and "left out 3: 2 broken links" in dataset.note
    for index in range(len(dataset)):
        with pytest.raises(BrokenImage) as caught:
            dataset.image(index)
        assert "root:" not in str(caught.value)  # as /etc/passwd begins


def test_a_folder_that_links_to_itself_is_not_walked_for_ever(tmp_path):
    (tmp_path / "root" / "class").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "root" / "class" / "a.png")
    (tmp_path / "root" / "class" / "up").symlink_to(tmp_path / "root")
    assert ImageFolder(str(tmp_path / "root")).ids == ("class/a.png",)


# --- secrets --------------------------------------------------------------------------------------


def test_no_secret_reaches_an_artifact_of_a_run(config_file, tmp_path, monkeypatch):
    planted: list[str] = []

    def secret() -> str:
        planted.append(f"canary{secrets.token_hex(12)}")
        return planted[-1]

    variables = (
        "AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN GITHUB_TOKEN GH_TOKEN HF_TOKEN WANDB_API_KEY"
        " OPENAI_API_KEY DATABASE_URL PGPASSWORD NETRC_PASSWORD PIP_INDEX_URL HTTPS_PROXY_PASSWORD"
        " SSH_AUTH_SOCK KAGGLE_KEY COMET_API_KEY MLFLOW_TRACKING_PASSWORD"
    )
    for name in variables.split():
        monkeypatch.setenv(name, secret())
    home, checkout = tmp_path / "home", tmp_path / "checkout"
    for name in (
        ".netrc",
        ".git-credentials",
        ".aws/credentials",
        ".pypirc",
        ".config/gh/hosts.yml",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"machine example.com login me password {secret()}\n")
    monkeypatch.setenv("HOME", str(home))
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@example.com", "-C", str(checkout)]
    checkout.mkdir()
    (checkout / "code.py").write_text("x = 1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    remote = f"https://me:{secret()}@example.com/repository.git"
    subprocess.run([*git, "remote", "add", "origin", remote], check=True)
    subprocess.run([*git, "config", "http.extraheader", f"Authorization: {secret()}"], check=True)
    (checkout / "code.py").write_text("x = 2\n")
    (checkout / ".env").write_text(f"PASSWORD={secret()}\n")
    monkeypatch.setattr("trainer.run.environment.ROOT", checkout)
    argv = [
        f"https://me:{secret()}@example.com/a",
        f"https://{secret()}@example.com/b",
        f"--proxy=http://:{secret()}@example.com:8080",
        f"ssh://me:{secret()}@example.com",
        f"postgresql+psycopg://me:{secret()}@db/x",
        f"git+https://x-access-token:{secret()}@example.com/c",
        f"https://me:a@{secret()}@example.com",
        f"https://example.com/?page=1&access_token={secret()}",
    ]
    arguments = ["--config", str(config_file), "--runs", str(tmp_path / "runs"), "train.epochs=1"]
    monkeypatch.setattr(sys, "orig_argv", [*sys.orig_argv[:1], *arguments, *argv])
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    assert len(planted) == 32
    assert main(arguments) == 0
    artifacts = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert {"environment.json", "uncommitted.patch", "model.pt"} <= {
        path.name for path in artifacts
    }
    patch = next(path for path in artifacts if path.name == "uncommitted.patch")
    assert "+x = 2" in patch.read_text()  # the checkout was looked at
    for path in artifacts:
        content = path.read_bytes()
        assert b"canary" not in content, path
        assert not [word for word in planted if word.encode() in content], path
