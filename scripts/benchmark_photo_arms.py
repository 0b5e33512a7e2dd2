"""The ways of loading photographs, for one process each: ``scripts/benchmark_photos.py`` starts it.

All ways give batches of RandomResizedCrop 224, RandomHorizontalFlip and Normalize, and take the
same step.
"""

import importlib
import importlib.util
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
import torchvision.transforms.v2
from PIL import Image
from torch import Tensor, nn

from models import MODELS
from scripts.benchmark_arms import new_optimizer, synchronise

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # RGB, ImageNet's
SIDE = 224
CROPPED = 128  # photographs that are decoded to measure cropping alone
Epochs = list[dict[str, float]]
CORES = os.cpu_count() or 1


class Pixels(nn.Module):
    """Softmax regression on 16 pixels a channel: a step costs next to nothing."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(16 * in_channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_channels, H, W), H and W at least 4."""
        height, width = (size // 4 for size in images.shape[-2:])
        logits: Tensor = self.head(images[..., ::height, ::width][..., :4, :4].flatten(1))
        return logits


def do_task(file: Path) -> int:
    """Do the task in a file, and return the exit code of the process.

    Unless it is a run of the trainer, ``epochs.json`` beside the file then holds for each epoch the
    images per second, and when it ended in seconds since 1970.
    """
    task = json.loads(file.read_text(encoding="utf-8"))
    kind, _, detail = task["arm"].partition(", ")
    MODELS["Pixels"] = "scripts.benchmark_photo_arms:Pixels"  # in this process only
    if kind == "framework" and task["model"]:
        command = importlib.import_module("trainer.train")  # by name: it is run here
        return int(command.main(["--config", str(file.with_name("photos.yaml")), *task["words"]]))
    torch.manual_seed(0)
    if kind in LIMITS:
        epochs = limit(task, LIMITS[kind](task, detail))
    elif kind == "framework":
        epochs = framework_batches(task, str(file.with_name("photos.yaml")))
    else:
        loader = LOADERS[task["arm"]](task)
        epochs = drive(task, lambda _: loader)
    file.with_name("epochs.json").write_text(json.dumps(epochs), encoding="utf-8")
    return 0


def drive(
    task: dict[str, Any], batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]]
) -> Epochs:
    """Take each batch to the device, and a training step with it if the task has a model."""
    device, done = torch.device(task["device"]), []
    model = new_photo_model(len(os.listdir(Path(task["root"], "train"))), device)
    optimizer, loss_fn = new_optimizer(model), nn.CrossEntropyLoss()
    for number in range(task["epochs"]):
        images, began = 0, time.perf_counter()
        for inputs, labels in batches(number):
            inputs = inputs.to(device, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            if task["model"]:
                optimizer.zero_grad()
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    loss = loss_fn(model(inputs), labels)
                loss.backward()
                optimizer.step()
            images += len(inputs)
        synchronise(device)
        done.append(epoch_of(images, began))
    return done


def epoch_of(images: int, began: float) -> dict[str, float]:
    """An epoch that ends at this moment."""
    seconds = time.perf_counter() - began
    return {"images_per_second": images / seconds, "ended": time.time()}


def new_photo_model(classes: int, device: torch.device) -> nn.Module:
    """ResNet-18 on a GPU, elsewhere a model that does next to nothing."""
    if device.type == "cuda":
        model: nn.Module = torchvision.models.resnet18(num_classes=classes)
    else:
        model = Pixels(classes, 3)
    return model.to(device).train()


def framework_batches(task: dict[str, Any], config: str) -> Epochs:
    """The framework's batches without a model: its loader alone."""
    from trainer.build.prepare import prepare
    from trainer.config import load_config

    overrides = [word for word in task["words"] if "=" in word]
    job = prepare(load_config(config, overrides), lambda _: None)
    try:
        return drive(task, job.train_loader.epoch)
    finally:
        job.train_loader.close()


def tutorial_photos(task: dict[str, Any], decoder: str = "PIL") -> Iterable[Any]:
    """ImageFolder, transforms and DataLoader as in torchvision's examples."""
    v2 = torchvision.transforms.v2
    steps: list[Any] = [v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip()]
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    kind: Any = {} if decoder == "PIL" else {"loader": DECODERS[decoder]}
    folder = torchvision.datasets.ImageFolder(
        str(Path(task["root"], "train")), v2.Compose(steps), **kind
    )
    return torch.utils.data.DataLoader(
        folder,
        batch_size=task["batch_size"],
        shuffle=True,
        drop_last=True,
        num_workers=task["workers"],
        persistent_workers=task["workers"] > 0,
        pin_memory=task["device"].startswith("cuda"),
    )


def timm_photos(task: dict[str, Any]) -> Iterable[Any]:
    """Timm's loader; its prefetcher, which also normalises, needs CUDA."""
    data = importlib.import_module("timm.data")
    on_cuda = task["device"].startswith("cuda")
    loader: Iterable[Any] = data.create_loader(
        data.ImageDataset(str(Path(task["root"], "train"))),
        input_size=(3, SIDE, SIDE),
        batch_size=task["batch_size"],
        is_training=True,
        hflip=0.5,
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=task["workers"],
        persistent_workers=task["workers"] > 0,
        device=torch.device(task["device"]),
        use_prefetcher=on_cuda,
        pin_memory=on_cuda,
    )
    return loader


LOADERS: dict[str, Callable[[dict[str, Any]], Iterable[Any]]] = {
    "tutorial": tutorial_photos,
    "tutorial, torchvision.io": lambda task: tutorial_photos(task, "torchvision.io"),
    "timm": timm_photos,
}


def by_torchvision(path: str) -> Tensor:
    """A file decoded by torchvision.io: (3, H, W) uint8."""
    image: Tensor = torchvision.io.decode_image(path, torchvision.io.ImageReadMode.RGB)
    return image


def by_pillow(path: str) -> Tensor:
    """A file decoded by Pillow: (3, H, W) uint8."""
    array = importlib.import_module("numpy").array(Image.open(path).convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1)


def by_simplejpeg(path: str) -> Tensor:
    """A file decoded by simplejpeg: (3, H, W) uint8."""
    array = importlib.import_module("simplejpeg").decode_jpeg(Path(path).read_bytes())
    return torch.from_numpy(array).permute(2, 0, 1)


def by_opencv(path: str) -> Tensor:
    """A file decoded by OpenCV: (3, H, W) uint8, in its order BGR."""
    return torch.from_numpy(importlib.import_module("cv2").imread(path)).permute(2, 0, 1)


DECODERS: dict[str, Callable[[str], Tensor]] = {
    "torchvision.io": by_torchvision,
    "PIL": by_pillow,
    "simplejpeg": by_simplejpeg,
    "OpenCV": by_opencv,
}
PACKAGES = {"simplejpeg": "simplejpeg", "OpenCV": "cv2"}


def fastest_decoder(files: Sequence[str]) -> str:
    """The installed decoder that takes the least processor time for some files."""
    seconds = {}
    for name, decode in DECODERS.items():
        if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name]):
            decode(files[0])  # imports its package
            began = time.process_time()
            for file in files:
                decode(file)
            seconds[name] = time.process_time() - began
    return min(seconds, key=lambda name: seconds[name])


def files_of(task: dict[str, Any]) -> list[str]:
    """The training photographs."""
    return sorted(map(str, Path(task["root"], "train").glob("*/*")))


def decode_only(task: dict[str, Any], decoder: str) -> Callable[[int], object]:
    """Decodes the file of a number."""
    files, decode = files_of(task), DECODERS[decoder]
    return lambda number: decode(files[number])


def decode_and_crop(task: dict[str, Any], decoder: str) -> Callable[[int], object]:
    """Decodes the file of a number and crops it at random."""
    files, decode = files_of(task), DECODERS[decoder]
    crop = torchvision.transforms.v2.RandomResizedCrop(SIDE, antialias=True)
    return lambda number: crop(decode(files[number]))


def crop_only(task: dict[str, Any], decoder: str) -> Callable[[int], object]:
    """Crops a decoded photograph at random."""
    images = [DECODERS["torchvision.io"](file) for file in files_of(task)[:CROPPED]]
    crop = torchvision.transforms.v2.RandomResizedCrop(SIDE, antialias=True)
    return lambda number: crop(images[number % len(images)])


LIMITS = {"decode": decode_only, "decode and crop": decode_and_crop, "crop": crop_only}
_work: list[Callable[[int], object]] = []  # a fork finds here what it does


def do(number: int) -> None:
    """Do the work on one photograph."""
    _work[0](number)


def limit(task: dict[str, Any], work: Callable[[int], object]) -> Epochs:
    """Do the work on every photograph, in one process per core, with nothing around it."""
    torch.set_num_threads(1)
    _work[:] = [work]
    done, count = [], len(files_of(task))
    with multiprocessing.get_context("fork").Pool(CORES) as pool:
        pool.map(do, range(min(count, 8 * CORES)), chunksize=1)  # warms up
        for _ in range(task["epochs"]):
            began = time.perf_counter()
            pool.map(do, range(count), chunksize=16)
            done.append(epoch_of(count, began))
    return done
