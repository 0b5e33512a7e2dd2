"""Where prepared images are kept: in the store, in memory, on the device, or nowhere."""

from pathlib import Path

import torch
from torch import Tensor

from datasets import DataError, Dataset, has_several_labels
from trainer.config import Config
from trainer.input.subset import CPU, Subset
from trainer.process.console import bar
from trainer.process.launch import local_world_size
from transforms.pipeline import Pipeline


def choose_keeping(config: Config, size: int, no_store: str, device: torch.device) -> str | None:
    """Where ``size`` bytes of prepared images are kept: "store", "ram", or None for nowhere.

    ``no_store``: why the store has no room for them, else "". ``auto`` keeps them if they fit into
    half of the free memory: what is mapped from the store is read from there again and again.
    Raises DataError if ``ram`` is not possible, or ``device`` on a CPU.
    """
    wanted = config.loader.cache
    if wanted == "off":
        return None
    if wanted == "ram" or (wanted == "device" and (device.type == "cpu" or no_store)):
        require_free(config, size, CPU)
        return "ram"
    if not no_store and (wanted in ("store", "device") or size < available_memory() // 2):
        return "store"
    return "ram" if size < free_memory(CPU) // 2 else None


def place_kept(
    config: Config,
    pipeline: Pipeline,
    size: int,
    one_size: bool,
    device: torch.device,
    has_16_bits: bool = False,
) -> torch.device:
    """Where the kept images are put in the end: on ``device``, or in main memory.

    Images of 16 bits stay in main memory: torch selects no rows of them on every device.

    ``auto`` takes the device if four times ``size`` is free there. Raises DataError if ``device``
    is not possible.
    """
    wanted = config.loader.cache
    if device.type == "cpu" or wanted not in ("auto", "device"):
        return CPU
    # Transforms that run per sample run in other processes, which cannot share a device's memory.
    per_sample = pipeline.early(cached=True) > 0
    if has_16_bits:
        if wanted == "device":
            raise DataError("loader.cache: device takes no images of 16 bits; use auto or ram.")
        return CPU
    if wanted == "auto":
        fits = one_size and not per_sample and size < free_memory(device) // 4
        return device if fits else CPU
    if not one_size:
        raise DataError("loader.cache: device needs images of one size: let a Resize come first.")
    if per_sample:
        raise DataError(
            f"loader.cache: device cannot be with {', '.join(pipeline.without_batched_form)}, "
            "which has no batched form: it works on images in main memory; use auto or ram."
        )
    require_free(config, size, device)
    return device


def require_free(config: Config, size: int, device: torch.device) -> None:
    """Raise DataError unless ``size`` bytes are free on ``device``."""
    if size > (free := free_memory(device)):
        raise DataError(
            f"loader.cache: {config.loader.cache} needs {size / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free; use auto or off, or let a Resize come first."
        )


def free_memory(device: torch.device) -> int:
    """Free bytes on ``device``; for all but CUDA, this rank's share of free main memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory() // local_world_size()  # an Apple GPU shares it


def available_memory() -> int:
    """Free bytes of main memory without swapping; 4 GiB if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration):
        return 4 * 2**30


def labels_of(dataset: Dataset, rows: Tensor) -> Tensor:
    """The labels of the samples ``rows``: (N,) int64, or (N, K) float32 of several labels."""
    kind = torch.float32 if has_several_labels(dataset.labels) else torch.int64
    return torch.tensor([dataset.labels[row] for row in rows.tolist()], dtype=kind)


def subset_in_memory(
    dataset: Dataset, pipeline: Pipeline, rows: Tensor, config: Config, device: torch.device
) -> Subset:
    """The samples ``rows`` of a dataset with ``images``, which all have one size."""
    assert dataset.images is not None
    labels = labels_of(dataset, rows)
    first = pipeline.prepare(dataset.images[rows[:1]])
    size = first.nbytes * len(rows)
    place = place_kept(config, pipeline, size, True, device, first.dtype == torch.uint16)
    kept = None
    if place != CPU or choose_keeping(config, size, "it is in memory", device):
        kept = prepare_all(dataset.images, pipeline, rows, first.shape[1:], place)
    return Subset(dataset, pipeline, rows, labels, kept, torch.arange(len(rows))[:2])


def prepare_all(
    images: Tensor, pipeline: Pipeline, rows: Tensor, shape: torch.Size, place: torch.device
) -> Tensor:
    """``rows`` of ``images`` (N, C, H, W), each prepared to ``shape``, at ``place``."""
    kept = torch.empty((len(rows), *shape), dtype=images.dtype, device=place)
    chunks = torch.split(torch.arange(len(rows)), 4096)
    for chunk in bar(chunks, "preparing images", len(chunks), unit="chunk"):
        kept[chunk[0] : chunk[-1] + 1] = pipeline.prepare(images.index_select(0, rows[chunk]))
    return kept
