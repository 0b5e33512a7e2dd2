"""From files to batches: the same bits by every way, kept where they fit, nothing waited for."""

import contextlib
import functools
import gc
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from datasets import DataError, temporary
from models.lenet import LeNet
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.input import kept as kept_module
from trainer.input import workers as workers_module
from trainer.input.data import load_data
from trainer.input.kept import Kept
from trainer.input.loader import Loader, Order, train_loader
from trainer.input.source import SIDES, Source
from trainer.input.subset import Subset
from trainer.input.workers import copied_ahead
from trainer.loop.guard import Guard
from trainer.loop.summary import dry_run
from trainer.process import start as start_module
from trainer.process.errors import ConfigError
from trainer.process.start import keep_freed_memory, spin_briefly
from transforms.batched import KERNELS
from transforms.own import Normalize
from transforms.pipeline import Pipeline

CPU = torch.device("cpu")

AUGMENTED = """
dataset: {{name: RMB, root: {root}}}
transforms:
  train:
    - {{name: Resize, size: 40}}
    - {{name: RandomResizedCrop, size: [32, 32], scale: [0.5, 1.0]}}
    - AlternatingFlip
    - {{name: RandomApply, p: 0.5, transforms: [{{name: ColorJitter, brightness: 0.4, hue: 0.1}}]}}
    - {{name: RandomRotation, degrees: 20, interpolation: bilinear}}
    - {{name: RandAugment, num_ops: 1}}
    - {{name: GaussianBlur, kernel_size: 3}}
    - {{name: SaltPepperNoise, probability: 0.1}}
    - {{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
    - {{name: RandomErasing, p: 0.5, value: random}}
    - {{name: RandomChoice, transforms: [{{name: MixUp}}, {{name: CutMix}}]}}
  eval:
    - {{name: Resize, size: [32, 32]}}
loader: {{batch_size: 8, workers: 0}}
model: LeNet
optimizer: {{name: SGD, lr: 0.01}}
train: {{epochs: 2, device: cpu}}
"""


@pytest.fixture
def augmented(tmp_path, notes):
    """A YAML with every kind of transform: batched, per sample, nested, mixing."""
    path = tmp_path / "augmented.yaml"
    path.write_text(AUGMENTED.format(root=notes))
    return path


def hashes(loader: Loader, epoch: int, start: int = 0) -> list[str]:
    """SHA-256 of each sample's pixels and label, in the epoch's order."""
    return [
        hashlib.sha256(image.numpy().tobytes() + label.numpy().tobytes()).hexdigest()
        for images, labels in loader.epoch(epoch, start)
        for image, label in zip(images, labels, strict=True)
    ]


def loader_of(file, *overrides: str) -> Loader:
    config = load_config(file, overrides)
    return train_loader(config, load_data(config, CPU).subsets["train"], CPU)


@pytest.mark.parametrize("file", ["augmented", "config_file"])
def test_every_cache_worker_count_and_batch_size_gives_a_sample_the_same_bits(file, request):
    file = request.getfixturevalue(file)
    reference = loader_of(file, "loader.cache=ram")
    expected = [hashes(reference, epoch) for epoch in (0, 1)]
    assert len(set(expected[0] + expected[1])) > 1.9 * len(reference.subset)
    for overrides in (
        ("loader.cache=off", "loader.workers=2"),
        ("loader.cache=off", "loader.batch_size=5"),
        ("loader.cache=device", "loader.batch_size=64"),
        ("loader.cache=ram", "loader.workers=2", "loader.batch_size=1"),
    ):
        other = loader_of(file, *overrides)
        for epoch in (0, 1):
            assert hashes(other, epoch) == expected[epoch], overrides


def test_files_that_were_just_written_are_prepared_for_the_splits_that_take_from_others(
    config_file, tmp_path, monkeypatch
):
    """Their states are not trusted, so nothing is remembered of them. Of 4 images of a class val
    and test take some from train, whose hash alone does not give them."""
    monkeypatch.setenv("TRAINER_STORE", str(tmp_path / "store"))
    for number in range(24):
        folder = tmp_path / "images" / f"class{number % 6}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36), (10 * number, 7, 9)).save(folder / f"{number}.png")
    crop = "transforms.train=[{name: RandomCrop, size: 32}, {name: Normalize, mean: [0], std: [1]}]"
    words = (f"dataset={{name: ImageFolder, root: '{tmp_path / 'images'}'}}", crop)
    kept, anew = (
        load_data(load_config(config_file, [*words, f"loader.cache={cache}"]), CPU).subsets
        for cache in ("store", "off")
    )
    for split, subset in kept.items():
        rows = torch.arange(len(subset))
        assert subset.cache == "store"
        assert torch.equal(subset.batch(rows)[0], anew[split].batch(rows)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_begin_at_any_batch(augmented, workers):
    loader = loader_of(augmented, f"loader.workers={workers}", "loader.cache=ram")
    whole = hashes(loader, epoch=3)
    for start in range(len(loader) + 1):
        assert hashes(loader, epoch=3, start=start) == whole[start * 8 :]


class Memory:
    """A dataset of so many images in memory."""

    classes, on_broken, note = ("a", "b"), "error", ""

    def __init__(self, images: torch.Tensor) -> None:
        self.images: torch.Tensor | None = images
        count = len(images)
        self.labels = tuple(i % 2 for i in range(count))
        self.ids, self.parts = tuple(map(str, range(count))), (None,) * count

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> torch.Tensor:
        assert self.images is not None
        return self.images[index]

    def digest(self, index: int) -> str:
        return str(index)

    def digests(self, indices):
        return [str(index) for index in indices]


def memory_part(count: int, size: int) -> Subset:
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    dataset = Memory(images)
    rows, labels = torch.arange(count), torch.tensor(dataset.labels)
    return Subset(dataset, Pipeline([], seed=0), rows, labels, images, rows[:2])


@settings(max_examples=40)
@given(st.integers(1, 70), st.integers(1, 20), st.booleans(), st.integers(0, 9), st.data())
def test_batches_made_in_one_go_are_those_of_one_at_a_time(count, batch_size, drop, epoch, data):
    part = memory_part(count, data.draw(st.sampled_from([4, 5])))  # aligned to 64 bytes, or not
    loader = Loader(part, batch_size, Order(1, drop_last=drop))
    start = data.draw(st.integers(0, len(loader)))
    at_once = list(loader.epoch(epoch, start))
    loader._blocks[None] = 1
    alone = list(loader.epoch(epoch, start))
    assert len(at_once) == len(alone) == len(loader) - start
    for (images, labels), (expected, expected_labels) in zip(at_once, alone, strict=True):
        assert torch.equal(images, expected) and torch.equal(labels, expected_labels)


def test_a_batch_begins_at_the_same_alignment_wherever_the_epoch_began():
    # A matrix product may have other last bits on memory that is aligned otherwise.
    loader = Loader(memory_part(50, 5), 4, Order(1))
    for start in range(len(loader)):
        for images, _ in loader.epoch(0, start):
            assert images.data_ptr() % 64 == 0


def test_workers_hand_over_small_uint8_crops(tmp_path, notes, augmented):
    lines = ("transforms.train.1={name: RandomCrop, size: 20}", "loader.cache=off")
    config = load_config(augmented, [*lines, "transforms.train.5=AlternatingFlip"])
    part = load_data(config, CPU).subsets["train"]
    images, labels = part.read(torch.arange(5), epoch=0)
    assert isinstance(images, torch.Tensor)
    assert images.shape == (5, 3, 20, 20) and images.dtype == torch.uint8
    assert part.pipeline.early(cached=True) == 0 and part.early == 2  # crop and flip


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_alone_gets_the_bits_that_it_gets_in_a_batch(channels):
    images = torch.randint(0, 256, (40, channels, 28, 28), dtype=torch.uint8)
    labels, indices = torch.zeros(40), torch.arange(40)
    for before in ([], [Normalize([0.5], [0.2])]):
        for kernel in KERNELS:
            transform = kernel(**ARGUMENTS.get(kernel.__name__, {}))
            pipeline = Pipeline([*before, transform], seed=0)
            whole, _ = pipeline(images, labels, indices, epoch=0)
            for i in range(40):
                alone, _ = pipeline(images[i : i + 1], labels[:1], indices[i : i + 1], epoch=0)
                assert torch.equal(alone[0], whole[i]), kernel.__name__


SELDOM = "transforms.train.1={name: RandomApply, p: 0.001, transforms: "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (SELDOM + "[{name: RandomCrop, size: 99}]}", "crop of 99 x 99 is larger"),
        (SELDOM + "[{name: RandomCrop, size: 8}]}", "leaves images of different sizes"),
        (
            SELDOM + "[{name: RandomVerticalFlip, alternate: true}, RandAugment]}",
            "RandomVerticalFlip has no other where it alternates",
        ),
        ("transforms.train.1={name: RandomHorizontalFlip, alternate: true, p: 0.3}", "must be 0.5"),
        ("transforms.train.1={name: RandomRotation, degrees: .inf}", "from -360 to 360"),
        ("transforms.train.1={name: RandomRotation, degrees: 9, fill: 999}", "from 0 to 255"),
        ("transforms.train.1={name: MixUp, alpha: .inf}", "at most 1,000,000"),
        (
            "transforms.train.1={name: RandomChoice, p: [-1, 2], "
            "transforms: [RandomHorizontalFlip, RandomVerticalFlip]}",
            "expected a number from 0 to 1,000,000, got -1",
        ),
    ],
)
def test_what_a_random_draw_would_meet_seldom_is_told_before_a_run_begins(
    config_file, change, message
):
    with pytest.raises(ConfigError, match=rf"transforms\.train\.1[^\n]*{message}"):
        prepare(load_config(config_file, [change]), print)


def test_choices_that_a_later_crop_makes_equal_are_taken(config_file):
    choice = "transforms.train.1={name: RandomChoice, transforms: [{name: RandomCrop, size: 20}, "
    choice += "{name: RandomResizedCrop, size: [24, 24]}, RandomHorizontalFlip]}"
    config = load_config(config_file, [choice, "transforms.train.2={name: Resize, size: [32, 32]}"])
    assert prepare(config, print).input_shape == (3, 32, 32)


def test_a_fork_removes_nothing_that_its_parent_has_begun(tmp_path):
    (tmp_path / "begun").touch()
    with temporary.unfinished(tmp_path / "begun"):
        if (child := os.fork()) == 0:
            temporary.remove_all()
            os._exit(0)
        os.waitpid(child, 0)
        assert (tmp_path / "begun").exists()
    assert not (tmp_path / "begun").exists()


def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_trainer(config_file):
    loader = loader_of(config_file, "loader.workers=2", "loader.cache=off")
    batches = loader.epoch(0)
    first = [next(batches), next(batches)]  # one of each worker, which is ready then
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
    again = [*first, *batches]
    assert len(again) == len(loader)


# --- where images are kept ----------------------------------------------------------------------


def test_auto_keeps_what_fits_into_half_of_the_memory_and_reads_the_rest_anew(
    config_file, monkeypatch
):
    config = load_config(config_file, [])
    kept = load_data(config, CPU).subsets["train"].images
    assert isinstance(kept, Kept) and kept.place == "store"
    every = 50 * kept.nbytes // len(kept)  # train, val and test are prepared alike
    for free, expected in ((2 * every + 2, "store"), (2 * every, "off")):
        monkeypatch.setattr(kept_module, "available_memory", lambda free=free: free)
        assert load_data(config, CPU).subsets["train"].cache == expected


def test_a_split_in_memory_that_its_transforms_make_too_large_is_made_anew_each_epoch(
    fashion_root, tmp_path, monkeypatch
):
    file = tmp_path / "large.yaml"
    file.write_text(
        f"dataset: {{name: FashionMNIST, root: {fashion_root}}}\n"
        "transforms: {train: [{name: Resize, size: 64}], eval: [{name: Resize, size: 64}]}\n"
        "model: MLP\noptimizer: {name: SGD, lr: 0.1}\ntrain: {epochs: 1, device: cpu}\n"
    )
    kept = loader_of(file)
    monkeypatch.setattr(kept_module, "free_memory", lambda device: 200_000)
    made = loader_of(file, "loader.workers=0")
    assert (kept.subset.cache, made.subset.cache) == ("ram", "off")
    assert hashes(kept, 0) == hashes(made, 0)


class Packed(Memory):
    """A set whose images lie in files, and were checked when those were made."""

    def __init__(self, count: int) -> None:
        super().__init__(torch.randint(0, 256, (count, 3, 40, 40), dtype=torch.uint8))
        assert self.images is not None
        self.packed, self.images, self.read = self.images, None, 0

    def image(self, index: int) -> torch.Tensor:
        self.read += 1
        return self.packed[index]


def test_shards_that_are_not_kept_are_not_all_decoded_before_a_run(config_file):
    config, packed = load_config(config_file, ["loader.cache=off"]), Packed(200)
    source = Source(packed, dict.fromkeys(SIDES, reading_pipeline(config)), config, CPU)
    source.prepare("train", range(200))
    part = source.subset("train", range(200))
    assert part.cache == "off" and not source.broken and packed.read < 20
    assert len(part) == 200 and len(part.batch(torch.tensor([150, 199]))[0]) == 2


def test_a_part_whose_first_images_are_all_broken_names_every_one(config_file, tmp_path, notes):
    root = shutil.copytree(notes, tmp_path / "broken")
    for file in sorted((root / "1").iterdir())[:20]:
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="20 of 50 images cannot be read"):
        load_data(load_config(config_file, [f"dataset.root={root}"]), CPU)


@pytest.mark.parametrize("cache", ["ram", "device"])
def test_a_cache_that_does_not_fit_is_refused_before_anything_is_kept(
    config_file, monkeypatch, cache
):
    config = load_config(config_file, [f"loader.cache={cache}"])
    monkeypatch.setattr(kept_module, "free_memory", lambda device: 1000)
    with pytest.raises(DataError, match=rf"loader\.cache: {cache} needs .* are free; use auto"):
        load_data(config, CPU)


def test_auto_keeps_a_split_on_a_gpu_where_a_quarter_of_its_memory_holds_it(
    config_file, augmented, monkeypatch
):
    gpu = torch.device("cuda", 0)
    memory = {"cuda": 4004, "cpu": 10**9}
    monkeypatch.setattr(kept_module, "free_memory", lambda device: memory[device.type])

    def chosen(file, size: int, *overrides: str) -> torch.device:
        config = load_config(file, overrides)
        return kept_module.place_kept(config, reading_pipeline(config), size, True, gpu)

    assert chosen(config_file, 1000) == gpu
    assert chosen(config_file, 1001) == CPU
    assert chosen(config_file, 1000, "loader.cache=ram") == CPU
    assert chosen(config_file, 4000, "loader.cache=device") == gpu
    assert chosen(augmented, 1000) == CPU, "RandAugment runs in processes that see no GPU"
    with pytest.raises(DataError, match="device does not go with RandAugment"):
        chosen(augmented, 1000, "loader.cache=device")


def reading_pipeline(config) -> Pipeline:
    from trainer.input.data import build_pipelines

    return build_pipelines(config, num_classes=2)["train"]


# --- what was decided is told -------------------------------------------------------------------


def test_what_was_decided_is_stored_in_the_run(train):
    run = train("loader.workers=2", "transforms.train.1=RandAugment", "train.epochs=1")
    decided = json.loads((run / "data_path.json").read_text())
    assert decided["device"] == "cpu" and decided["threads"] == 1
    assert decided["channels_last"] is True and decided["fused_optimizer"] is True
    assert decided["train"] == {
        "cache": "store",
        "bytes": decided["train"]["bytes"],
        "workers": 2,
        "batch_size": 8,
        "transforms": [
            {"name": "Resize", "runs": "once per sample"},
            {"name": "RandAugment", "runs": "per sample in 2 worker processes"},
            {"name": "Normalize", "runs": "batched"},
        ],
    }
    assert decided["train"]["bytes"] % (3 * 32 * 32) == 0


def test_a_dry_run_tells_where_each_transform_runs_and_what_has_no_batched_form(augmented):
    lines: list[str] = []
    config = load_config(augmented, ["model={name: LeNet}", "loss=CrossEntropyLoss"])
    dry_run(prepare(config, lines.append), lines.append)
    text = "\n".join(lines)
    assert "note    RandAugment has no batched form" in text
    assert "GaussianBlur             batched" in text
    assert "kept in the store" in text and "workers 0" in text and "1 thread" in text


# --- nothing waits for the device ---------------------------------------------------------------


class ReadBacks(TorchDispatchMode):
    """Counts the reads of a number from a tensor, each of which would make a GPU wait."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize(("every", "logged"), [("1st", 5), ("2st", 2), ("100st", 0)])
def test_training_reads_back_once_a_log_interval_and_once_an_epoch(
    train, monkeypatch, every, logged
):
    from trainer.loop import epochs, fit

    counted: list[int] = []
    one_epoch, tolist = epochs.train_one_epoch, torch.Tensor.tolist

    def counting(*arguments):
        with ReadBacks() as read_backs, monkeypatch.context() as patch:

            def counted_tolist(tensor):
                read_backs.count += tensor.is_floating_point()  # rows are integers, on the CPU
                return tolist(tensor)

            patch.setattr(torch.Tensor, "tolist", counted_tolist)
            result = one_epoch(*arguments)
        counted.append(read_backs.count)
        return result

    monkeypatch.setattr(epochs, "train_one_epoch", counting)
    monkeypatch.setattr(fit, "Guard", functools.partial(Guard, lag=64))  # as on a GPU
    train(f"log.every={every}", "train.epochs=1", "train.clip_grad_norm=1.0")
    unread = logged < 5  # steps that the guard has not told of when the epoch ends
    assert counted == [logged + unread]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("overrides", [("loader.cache=device",), ("loader.workers=2",)])
def test_cuda_batches_are_those_of_the_cpu(config_file, overrides):
    gpu = torch.device("cuda")
    config = load_config(config_file, [*overrides, "train.device=cuda"])
    loader = train_loader(config, load_data(config, gpu).subsets["train"], gpu)
    expected = hashes(loader_of(config_file), epoch=1)
    found = []
    for images, labels in loader.epoch(1):
        assert images.device.type == labels.device.type == "cuda"
        for image, label in zip(images.cpu(), labels.cpu(), strict=True):
            content = image.numpy().tobytes() + label.numpy().tobytes()
            found.append(hashlib.sha256(content).hexdigest())
    assert found == expected


@pytest.mark.parametrize("kernel", list(KERNELS))
@pytest.mark.parametrize("normalized", [False, True])
def test_no_kernel_reads_back_from_the_device_of_the_images(kernel, normalized):
    # A meta tensor has no values: whatever asks for one, or mixes devices, fails.
    images = torch.randint(0, 256, (6, 3, 12, 14), dtype=torch.uint8)
    before = [Normalize([0.5], [0.2])] if normalized else []
    pipeline = Pipeline([*before, kernel(**ARGUMENTS.get(kernel.__name__, {}))], seed=0)
    labels, indices = torch.arange(6), torch.arange(6)
    expected, _ = pipeline(images, labels, indices, epoch=1)
    result, _ = pipeline(images.to("meta"), labels.to("meta"), indices, epoch=1)
    assert result.device.type == "meta" and result.shape == expected.shape


ARGUMENTS: dict[str, dict[str, object]] = {
    "RandomCrop": {"size": 8, "padding": 1},
    "RandomRotation": {"degrees": 20},
    "RandomAffine": {"degrees": 20, "translate": (0.1, 0.1), "fill": 7},
    "RandomResizedCrop": {"size": (8, 8)},
    "RandomErasing": {"p": 1.0, "value": "random"},
    "ColorJitter": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1},
    "GaussianBlur": {"kernel_size": 3},
}


class Queue:
    """Stands for a CUDA stream: knows whom it waited for."""

    current: "Queue"
    finished: "list[Queue]"

    def __init__(self, device: object = None) -> None:
        self.waited_for: list[Queue] = []

    def wait_stream(self, other: "Queue") -> None:
        self.waited_for.append(other)

    def synchronize(self) -> None:
        Queue.finished.append(self)


def test_copies_ahead_go_by_their_own_queue_and_the_work_waits_for_them(monkeypatch):
    working, used = Queue(), []
    Queue.current, Queue.finished = working, []

    @contextlib.contextmanager
    def on(queue):
        before, Queue.current = Queue.current, queue
        yield
        Queue.current = before

    def copied(tensors, device):
        used.append(Queue.current)
        return tensors

    monkeypatch.setattr(torch.cuda, "Stream", Queue)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Queue.current)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, queue: None)
    monkeypatch.setattr(workers_module, "to_device", copied)

    def batches():
        for i in range(4):
            assert len(Queue.finished) == i, (
                "the batch before may be overwritten, and is not copied"
            )
            yield torch.tensor([i]), torch.tensor([i])

    for number, (images, _) in enumerate(copied_ahead(batches(), torch.device("cuda"))):
        assert int(images) == number
        assert Queue.current is working, "the step would run in the copies' queue"
        assert len(working.waited_for) == number + 1
        assert len(used) == 2 * min(number + 2, 4), "the next one is copied meanwhile"
    assert working not in used


# --- start-up -----------------------------------------------------------------------------------


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_of_one_step_is_there_for_the_next(monkeypatch):
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    assert keep_freed_memory()
    for _ in range(10):  # glibc sets the first seven pieces of a size aside
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)  # 64 MiB: 16,384 pages, which the system would clear each time
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 16384


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_memory_is_left_alone_where_the_environment_tells_how(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    assert not keep_freed_memory()


def test_threads_wait_as_the_environment_says_where_it_does(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    spin_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ


FROZEN = """
import gc
from trainer.process.start import start
with start():
    import decimal
    own = {id(decimal.Decimal)}
print(gc.isenabled(), gc.get_freeze_count() > 0, own & {id(item) for item in gc.get_objects()})
"""


def test_the_collector_passes_over_what_a_command_imports():
    command = [sys.executable, "-c", FROZEN]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert made.stdout == "True True set()\n"


def test_the_collector_looks_at_all_that_a_process_had_before_a_command():
    before = gc.get_freeze_count()
    with start_module.start():
        pass
    assert gc.get_freeze_count() == before, "in a notebook, tensors of earlier calls would stay"


def test_a_model_that_cannot_keep_channels_last_trains_as_it_is_and_says_so(
    config_file, monkeypatch
):
    def forward(self, images):
        return self.classifier(self.features(images).view(len(images), -1))

    monkeypatch.setattr(LeNet, "forward", forward)
    lines: list[str] = []
    job = prepare(load_config(config_file, []), lines.append)
    assert not job.train_loader.delivery.channels_last
    assert any("LeNet cannot keep channels last" in line and "view" in line for line in lines)
    images, labels = next(job.train_loader.epoch())
    job.loss_fn(job.model(images), labels).backward()
    with pytest.raises(ConfigError, match="view"):
        prepare(load_config(config_file, ["train.channels_last=true"]), lines.append)


def test_training_does_not_load_the_compiler_and_compiling_afterwards_works(config_file, tmp_path):
    code = f"""
import sys
from trainer.train import main
assert main(["--config", {str(config_file)!r}, "--runs", {str(tmp_path)!r}]) == 0
from trainer.process.compiler_stand_in import is_loaded
assert not is_loaded() and "torch._dynamo.symbolic_convert" not in sys.modules
import os
assert os.environ["GOMP_SPINCOUNT"] == "10000"
import torch, torch._dynamo.config as settings
from torch._dynamo import eval_frame
assert eval_frame.config is settings and torch._dynamo.optimize is eval_frame.optimize
assert torch._dynamo.config is settings is sys.modules["torch._dynamo.config"]
double = torch.compile(lambda x: 2 * x, backend="eager")
assert is_loaded() and double(torch.ones(2)).tolist() == [2, 2]
parameter = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([parameter], lr=1.0)
parameter.grad = torch.ones(2)
optimizer.step()
optimizer.zero_grad()
assert parameter.tolist() == [0, 0]
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
