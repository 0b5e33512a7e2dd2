"""Worker processes: every batch exact, nothing overwritten in use, nothing left behind."""

import hashlib
import json
import os
import pickle
import signal
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from datasets import DataError
from tests.conftest import fork
from trainer.input import loader as loader_module
from trainer.input import workers as workers_module
from trainer.input.loader import Delivery, Loader, Order
from trainer.input.subset import Subset
from trainer.input.workers import Workers
from trainer.process.errors import ComponentError, RunError, WorkerDied
from transforms.own import Normalize
from transforms.pipeline import Pipeline

CPU = torch.device("cpu")


def numbered(request):
    """(4, 3) int64 of the request's number, and its square."""
    return [torch.full((4, 3), request[0]), torch.tensor(request[0] ** 2)]


@pytest.fixture
def started():
    """Returns a function that starts workers, which are ended with the test."""
    begun: list[Workers] = []

    def start(read, count=2, size=1000):
        begun.append(Workers(read, count, CPU, size))
        return begun[-1]

    yield start
    for workers in begun:
        workers.close()


def numbers(*which: int) -> list[tuple[int, ...]]:
    return [(number,) for number in which]


@pytest.mark.parametrize("size", [0, 100, 1000, 2**27])
def test_results_come_in_the_order_of_requests_whether_they_fit_into_shared_memory(started, size):
    workers = started(numbered, size=size)
    workers_results = [
        (result[0].clone(), int(result[1])) for result in workers.read(numbers(*range(50)))
    ]
    for number, (filled, square) in enumerate(workers_results):
        assert torch.equal(filled, torch.full((4, 3), number)) and square == number**2
    assert len(workers_results) == 50


def test_tensors_of_every_type_and_form_arrive_as_they_were(started):
    made = [
        torch.tensor(2.5),
        torch.empty(0, 3),
        torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1)[:, 1:],
        torch.tensor([1.5, -2], dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8).expand(2, 3, 5, 7),
        torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8).movedim(-1, -3),
    ]
    for size in (0, 300, 10000):
        (arrived,) = started(lambda request: (made, "told"), size=size).read(numbers(1))
        assert arrived[1] == "told"
        for tensor, expected in zip(arrived[0], made, strict=True):
            assert tensor.dtype == expected.dtype and torch.equal(tensor, expected)
        assert arrived[0][-1].stride() == made[-1].stride()  # channels last


def test_a_result_is_not_written_again_before_the_next_one_is_asked_for(started):
    workers = started(numbered)
    for number, (filled, _) in enumerate(workers.read(numbers(*range(40)))):
        time.sleep(0.002)  # the workers go on meanwhile
        assert torch.equal(filled, torch.full((4, 3), number))


def test_what_is_owned_stays_as_it_is(started):
    workers = started(numbered)
    kept = []
    for filled, _ in workers.read(numbers(*range(40))):
        kept.append(workers.own(filled))
        assert kept[-1] is not filled  # it lies in the memory that workers share
    assert [int(filled[3, 2]) for filled in kept] == list(range(40))
    assert workers.own(kept[0]) is kept[0]


def test_what_is_read_ahead_is_used_if_it_is_asked_for_and_dropped_if_not(started, tmp_path):
    def read(request):
        with (tmp_path / str(request[0])).open("a") as file:
            file.write("x")
        return numbered(request)

    workers = started(read)
    for _ in workers.read(numbers(1, 2, 3), numbers(4, 5, 6)):
        pass
    assert [int(square) for _, square in workers.read(numbers(4, 5, 6))] == [16, 25, 36]
    assert {(tmp_path / str(i)).read_text() for i in range(1, 7)} == {"x"}  # each read once
    for _ in range(30):  # more often than there are pieces of memory
        workers.begin(numbers(*range(10, 30)))
        results = workers.read(numbers(7, 8), numbers(9, 10))
        assert int(next(results)[1]) == 49  # and the rest is not taken


def broken(request):
    raise [
        DataError("picture.jpg is gone"),
        ValueError("unforeseen"),
        OSError(24, "Too many open files"),
    ][request[0]]


def test_an_error_of_reading_is_raised_in_its_turn(started):
    workers = started(broken)
    results = workers.read(numbers(0, 1))
    with pytest.raises(DataError, match="^picture.jpg is gone$"):
        next(results)
    with pytest.raises(ComponentError, match=r"ValueError: unforeseen \(.*test_workers.py:\d+, in"):
        list(workers.read(numbers(1)))
    with pytest.raises(RunError, match=r"loader.workers=2 takes more .*ulimit -n"):
        list(workers.read(numbers(2)))
    with pytest.raises(TypeError, match="must be str") as error:
        list(started(json.loads).read(numbers(1)))
    assert "in loads" in "".join(error.value.__notes__)  # where a bug is
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        list(started(lambda request: lambda: request).read(numbers(1)))


def test_a_worker_that_ends_is_told_when_a_result_is_asked_for(started):
    def read(request):
        if request[0] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return numbered(request)

    seen = []
    with pytest.raises(WorkerDied, match=r"the worker process \d+ ended by itself"):
        for _, square in started(read).read(numbers(*range(100))):
            seen.append(int(square))
    assert seen == [0, 1, 4, 9, 16][: len(seen)]


def test_a_worker_that_closes_its_connection_before_it_is_gone_is_told_as_dead(started):
    def read(request):
        os.closerange(3, 200)
        time.sleep(0.2)
        os._exit(3)

    with pytest.raises(WorkerDied, match=r"the worker process \d+ ended by itself"):
        list(started(read, count=1).read(numbers(1)))


def test_workers_end_with_a_trainer_that_is_killed(tmp_path):
    def trainer():
        workers = [Workers(numbered, 2, CPU, 1000) for _ in range(2)]
        for one in workers:
            list(one.read(numbers(1)))
        pids = [process.pid for one in workers for process in one._processes]
        (tmp_path / "pids.tmp").write_text(" ".join(map(str, pids)))
        (tmp_path / "pids.tmp").rename(tmp_path / "pids")
        time.sleep(60)
        return 0

    process = fork(tmp_path / "told.txt", trainer)
    while not (tmp_path / "pids").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    patience = time.monotonic() + 20
    for pid in (tmp_path / "pids").read_text().split():
        while is_running(pid):
            assert time.monotonic() < patience
            time.sleep(0.01)
    assert (tmp_path / "told.txt").read_text() == ""


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False


# --- batches ------------------------------------------------------------------------------------


class Pictures:
    """A dataset of 50 images of several sizes."""

    classes, on_broken, note, images = ("a", "b"), "error", "", None
    labels = tuple(i % 2 for i in range(50))
    ids, parts = tuple(map(str, range(50))), (None,) * 50

    def __len__(self) -> int:
        return 50

    def image(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        size = (3, 20 + index % 5, 30 - index % 3)
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)

    def digest(self, index: int) -> str:
        return str(index)

    def digests(self, indices):
        return [str(index) for index in indices]


def pictures(*transforms) -> Subset:
    dataset, rows = Pictures(), torch.arange(50)
    pipeline = Pipeline(transforms, seed=0)
    return Subset(dataset, pipeline, rows, torch.tensor(dataset.labels), None, torch.tensor([0, 4]))


def digests(batches) -> list[str]:
    """SHA-256 of each batch's pixels and labels."""
    return [
        hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
        for images, labels in batches
    ]


CROPPED = [v2.RandomResizedCrop([8, 8]), v2.RandomHorizontalFlip(), Normalize([0.5], [0.2])]
FLOAT_IN_WORKERS = [v2.RandomCrop([8, 8]), Normalize([0.5], [0.2]), v2.RandomEqualize()]


MIXED = [*CROPPED, v2.RandomChoice([v2.MixUp(num_classes=2), v2.CutMix(num_classes=2)])]
SENT = {
    "cropped": CROPPED,
    "mixed": MIXED,
    "per sample": [v2.RandomCrop([8, 8]), v2.RandAugment()],
    "several sizes": [v2.RandAugment(), v2.RandomCrop([8, 8])],  # images of several sizes are sent
}
LITTLE_AND_MUCH_AHEAD = [
    pytest.param(
        transforms,
        ahead,
        marks=pytest.mark.slow if much != ("mixed" in name) else [],
        id=f"{name}-{ahead}",
    )
    for ahead, much in ((1, False), (2**25, True))
    for name, transforms in SENT.items()
]


@pytest.mark.parametrize(("transforms", "ahead"), LITTLE_AND_MUCH_AHEAD)
def test_no_number_of_workers_no_reading_ahead_and_no_resume_changes_a_bit(
    transforms, ahead, monkeypatch
):
    part = pictures(*transforms)
    monkeypatch.setattr(workers_module, "AHEAD", ahead)
    expected = [digests(Loader(part, 4, Order(7)).epoch(epoch)) for epoch in range(3)]
    assert len(set(sum(expected, []))) == 39
    for count in (1, 2):
        loader = Loader(part, 4, Order(7), Delivery(count))
        loader.begin(0, 0)
        for epoch, then in enumerate((1, 2, None)):
            assert digests(loader.epoch(epoch, then=then)) == expected[epoch]
        assert digests(loader.epoch(1, 5, then=2)) == expected[1][5:]  # as after a resume
        next(loader.epoch(2, then=0))  # and after a stop
        loader.begin(1, 3)
        assert digests(loader.epoch(1, 3)) == expected[1][3:]
        loader.close()


@pytest.mark.parametrize("transforms", [[v2.RandomCrop([8, 8])], FLOAT_IN_WORKERS])
def test_kept_batches_and_labels_are_not_overwritten(transforms, monkeypatch):
    monkeypatch.setattr(workers_module, "AHEAD", 1)  # less memory than an epoch's batches take
    loader = Loader(pictures(*transforms), 4, Order(7), Delivery(2))
    kept = list(loader.epoch(0))
    assert digests(kept) == digests(Loader(loader.subset, 4, Order(7)).epoch(0))
    loader.close()


@pytest.mark.parametrize(
    ("reading", "sending", "epochs", "count"),
    [
        (0.0001, 0.0001, 9000, 0),  # small pictures, kept in memory
        (0.004, 0.002, 9000, 0),
        (0.02, 0.002, 9000, 8),
        (0.02, 0.002, 2, 0),  # 26 batches in all: done before the processes begin
    ],
)
def test_auto_takes_workers_where_reading_costs_more_than_sending(
    reading, sending, epochs, count, monkeypatch
):
    part = pictures(v2.RandomCrop([8, 8]))
    loader = types.SimpleNamespace(workers="auto", batch_size=4)
    config: Any = types.SimpleNamespace(loader=loader, train=types.SimpleNamespace(epochs=epochs))
    costs = iter([reading, sending])
    monkeypatch.setattr(loader_module, "cpu_seconds", lambda work: next(costs))
    monkeypatch.setattr(loader_module, "cores", lambda: 16)
    assert loader_module.choose_workers(config, part) == count
    monkeypatch.setattr(loader_module, "cores", lambda: 1)
    costs = iter([reading, sending])
    assert loader_module.choose_workers(config, part) == 0
