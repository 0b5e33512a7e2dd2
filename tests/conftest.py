"""Small data of each dataset's own format, and a configuration that trains on it in a second."""

import ctypes
import functools
import gc
import gzip
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest
import torch
from PIL import Image

SMALL = """
dataset: {{name: RMB, root: {root}}}
transforms:
  train:
    - {{name: Resize, size: [32, 32]}}
    - {{name: RandomCrop, size: 32, padding: 4}}
    - {{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
  eval:
    - {{name: Resize, size: [32, 32]}}
    - {{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
loader: {{batch_size: 8, workers: 0}}
model: {{name: LeNet}}
optimizer: {{name: SGD, lr: 0.01, momentum: 0.9}}
metrics: [accuracy, macro_f1]
train: {{epochs: 2, device: cpu}}
log: {{every: 2st, images: 4}}
"""


# The machine may be busy. Where a test names no number of examples, each run tries fifty others.
hypothesis.settings.register_profile("untimed", deadline=None, max_examples=50)
hypothesis.settings.load_profile("untimed")
FORK = multiprocessing.get_context("fork")
COPIES = itertools.count()


def fork(output: Path, work: Callable[[], int]) -> ForkProcess:
    """Begin ``work``, which gives an exit code, in a fork of this process; it writes to a file.

    A fork need not import PyTorch again.
    """

    def done() -> NoReturn:
        for number in (1, 2):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        # After a fork PyTorch makes its pool of threads anew when it is first asked for, and aborts
        # ("Invalid thread pool!") where two threads ask at once: autograd's are not there yet.
        torch.set_num_threads(1)
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    process = FORK.Process(target=done)
    process.start()
    return process


def exit_code_of(process: ForkProcess, timeout: float = 60) -> int | None:
    """The exit code of a fork; None where it had to be killed after so many seconds."""
    process.join(max(timeout, 0))
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return code


def as_ranks(
    count: int, folder: Path, work: Callable[[int], int], timeout: float = 100
) -> list[int | None]:
    """Do ``work(rank)`` in forks, with the environment that torchrun gives: the exit code of each.

    What rank r says is in ``rank-r.txt`` in the folder.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def begin(rank: int) -> int:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(count)}
        return work(rank)

    end = time.monotonic() + timeout
    ranks = [
        fork(folder / f"rank-{rank}.txt", functools.partial(begin, rank)) for rank in range(count)
    ]
    return [exit_code_of(process, end - time.monotonic()) for process in ranks]


def train_together(count, argv, folder, prepare=None, timeout=100):
    """Call the command as so many ranks, ``prepare(rank)`` first in each: the exit codes."""

    def work(rank):
        from trainer.train import main

        if prepare is not None:
            prepare(rank)
        return main(argv)

    return as_ranks(count, folder, work, timeout)


def pytest_collection_finish():
    """The million objects of seven thousand collected tests are no garbage: nothing looks at them.

    A full collection takes 0.8 s with them. In a fork it also copies their pages.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    """A shell's background job ignores Ctrl-C, one under nohup SIGHUP; a run would keep to that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def require_open(descriptor: int) -> None:
    """Raise what ``os.fsync`` raises for a file that is not open."""
    os.fstat(descriptor)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """A run of a second calls fsync forty times, and nobody pulls the plug in a test.

    Whether and when it is called, tests still see: they put their own in its place.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", require_open)
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_store(tmp_path_factory):
    """The tests' own store of prepared images, and trusted code; processes they start use both."""
    os.environ["TRAINER_STORE"] = str(tmp_path_factory.mktemp("store"))
    os.environ["TRAINER_TRUST"] = str(tmp_path_factory.mktemp("trusted"))


@pytest.fixture(autouse=True)
def _without_heif(monkeypatch):
    """Tests do not depend on whether pillow-heif is installed."""
    monkeypatch.setattr("datasets.heif.find_spec", lambda name: None)


@pytest.fixture(autouse=True)
def _one_thread():
    """Each worker of the test run has a core, not all of them."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def notes(tmp_path_factory):
    """Folders 1 and 100 with 25 pictures each: noise, green or red on the whole."""
    root = tmp_path_factory.mktemp("notes")
    drawn = random.Random(0)
    ctypes.CDLL(None).srand(1)  # Pillow's noise is of C's rand(), which other tests may have called
    for name, colour in (("1", (60, 140, 60)), ("100", (180, 60, 60))):
        (root / name).mkdir()
        for number in range(25):
            picture = Image.effect_noise((48, 24), 60).convert("RGB")
            tint = Image.new("RGB", picture.size, colour)
            mixed = Image.blend(picture, tint, 0.5 + 0.3 * drawn.random())
            mixed.save(root / name / f"{number:03d}.jpg")
    return root


@pytest.fixture
def config_file(tmp_path, notes):
    """A YAML that trains LeNet on the notes for two epochs."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.format(root=notes))
    return path


@pytest.fixture(scope="session")
def fashion_root(tmp_path_factory):
    """120 training and 30 test images in Fashion-MNIST's own IDX files."""
    root = tmp_path_factory.mktemp("fashion")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for prefix, count in (("train", 120), ("t10k", 30)):
        images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.arange(count, dtype=torch.uint8) % 10
        for kind, magic, tensor in (("images-idx3", 2051, images), ("labels-idx1", 2049, labels)):
            head = struct.pack(f">{1 + tensor.ndim}i", magic, *tensor.shape)
            with gzip.open(raw / f"{prefix}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + tensor.numpy().tobytes())
    return root


@pytest.fixture
def train(config_file, tmp_path) -> Callable[..., Path]:
    """Train the small configuration with overrides; returns the run's folder."""
    from trainer.build.prepare import prepare
    from trainer.config import load_config
    from trainer.loop.fit import fit
    from trainer.process.stop import StopRequest

    def run(*overrides: str, resume: Path | None = None, file: Path = config_file) -> Path:
        job = prepare(load_config(file, overrides, by_user=True), print)
        with StopRequest() as stop:
            return fit(job, tmp_path / "runs", resume, print, stop)

    return run


@pytest.fixture(scope="session")
def shared_config(tmp_path_factory, notes) -> Path:
    """The YAML of ``config_file``, for what several tests share"""
    path = tmp_path_factory.mktemp("shared") / "small.yaml"
    path.write_text(SMALL.format(root=notes))
    return Path(path)


@pytest.fixture(scope="session")
def _trained_once(shared_config) -> Callable[..., Path]:
    """Train the small configuration, but only once for each set of overrides."""
    from trainer.build.prepare import prepare
    from trainer.config import load_config
    from trainer.loop.fit import fit
    from trainer.process.stop import StopRequest

    @functools.cache
    def run(*overrides: str) -> Path:
        job = prepare(load_config(shared_config, overrides), print)
        with StopRequest() as stop:
            return fit(job, shared_config.parent / "runs", None, print, stop)

    return run


@pytest.fixture
def finished(_trained_once, tmp_path) -> Callable[..., Path]:
    """What ``train`` leaves, for a test that only begins with it: a copy of a run trained once.

    Call it while nothing of the trainer is patched: other tests get copies of the same run.
    """

    def copy(*overrides: str) -> Path:
        run = _trained_once(*overrides)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{next(COPIES):04x}"  # they sort as they are made
        return Path(shutil.copytree(run, tmp_path / "runs" / run.parent.name / name, symlinks=True))

    return copy


@pytest.fixture
def start(config_file, tmp_path):
    """Call the command with the small configuration; the exit code."""
    from trainer.train import main

    def command(*more):
        return main(["--config", str(config_file), "--runs", str(tmp_path / "runs"), *more])

    return command


@pytest.fixture
def spoiled(config_file, tmp_path):
    """Train the small configuration with another loss; the run's folder."""
    from trainer.build.prepare import prepare
    from trainer.config import load_config
    from trainer.loop.fit import fit
    from trainer.process.stop import StopRequest

    def run(loss, *overrides, resume=None):
        job = prepare(load_config(config_file, overrides), print)
        job.loss_fn = loss
        with StopRequest() as stop:
            return fit(job, tmp_path / "runs", resume, print, stop)

    return run


@pytest.fixture
def together(config_file, tmp_path):
    """Call the command as several ranks: the exit code of each."""

    def command(count, *more, prepare=None, runs="together", resume=None, timeout=100):
        argv = ["--config", str(config_file)] if resume is None else ["--resume", str(resume)]
        argv += ["--runs", str(tmp_path / runs), *more]
        return train_together(count, argv, tmp_path, prepare, timeout)

    return command
