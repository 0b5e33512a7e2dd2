"""The prepared images of one split, gathered from the memory maps of a pool."""

import ctypes
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets import DataError
from trainer.config import Config
from trainer.input.pool import LAST, WIDE, Pool, Records, image_bytes
from trainer.process.launch import local_world_size
from transforms.memory import Images
from transforms.pipeline import Pipeline

POPULATE_READ = 22  # of Linux's madvise


@dataclass(frozen=True)
class Kept:
    """N prepared images: their records, and the pixels of the segments that hold them.

    segments (N,): the number in ``pixels`` of each image's segment. place: "store" or "ram".
    fits: whether main memory has room for all of them.
    """

    records: Records
    segments: Tensor
    pixels: list[Tensor]
    place: str
    fits: bool

    def __len__(self) -> int:
        return len(self.records)

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return int(image_bytes(self.records).sum())

    @cached_property
    def tables(self) -> list[Tensor] | None:
        """Each segment as a table of images, (M, ..., C, H, W), if all images have one size.

        None if sizes differ, or if a segment has images of another size too.
        """
        shape, layout = self.records[["shape", "layout"]][0]
        sizes = image_bytes(self.records)
        if not has_one_size(self.records) or (self.records["offset"] % sizes[0]).any():
            return None
        size = int(sizes[0])
        return [_image(flat[: len(flat) // size * size], shape, layout) for flat in self.pixels]

    @cached_property
    def _places(self) -> Tensor:
        """The row of each image in its table."""
        return torch.from_numpy(self.records["offset"] // image_bytes(self.records))

    @cached_property
    def gives_views(self) -> bool:
        """Whether ``gather`` returns views: if sizes differ, or if images are large."""
        return self.tables is None or bool(self.records["layout"][0] & LAST)

    def map_pages(self) -> None:
        """Map all pages for this process, if they fit, instead of each when it is first read.

        Linux 5.14 and newer do so; elsewhere the first epoch is slower.
        """
        if self.fits and sys.platform == "linux":
            for flat in self.pixels:
                address = ctypes.c_void_p(flat.data_ptr())
                ctypes.CDLL(None).madvise(address, ctypes.c_size_t(len(flat)), POPULATE_READ)

    def gather(self, rows: Tensor) -> Images:
        """The images of these rows: (B, ..., C, H, W) uint8 or uint16, or a list of views."""
        if self.tables is None or self.gives_views:
            return self.views(rows)
        if len(self.tables) == 1:
            return _select(self.tables[0], self._places[rows])
        segments, images, found = self.segments[rows], [], []
        for number, table in enumerate(self.tables):
            found.append((segments == number).nonzero()[:, 0])
            images.append(_select(table, self._places[rows[found[-1]]]))
        return _select(torch.cat(images), torch.cat(found).argsort())

    def views(self, rows: Tensor) -> list[Tensor]:
        """The images of these rows, each (..., C, H, W) uint8 or uint16, without a copy."""
        records = self.records[rows.numpy()]
        columns = (records[name].tolist() for name in ("offset", "shape", "layout"))
        segments = self.segments[rows].tolist()
        return [
            _view(self.pixels[segment], first, shape, layout)
            for segment, first, shape, layout in zip(segments, *columns, strict=True)
        ]

    def __getitem__(self, row: int) -> Tensor:
        return self.views(torch.tensor([row]))[0]


def has_one_size(records: Records) -> bool:
    """Whether all images have one shape."""
    return bool((records["shape"] == records["shape"][:1]).all())


def kept_in(pool: Pool, places: NDArray[np.int64], place: str, free: int) -> Kept:
    """The images at ``places`` in the pool's records. free: bytes of main memory."""
    used, segments = np.unique(pool.segments[places], return_inverse=True)
    pixels = [pool.pixels[number] for number in used]
    fits = sum(map(len, pixels)) < free
    return Kept(
        pool.records[places], torch.from_numpy(segments.astype(np.int64)), pixels, place, fits
    )


def on_device(kept: Kept, device: torch.device) -> Tensor:
    """All images, of one size, as one tensor (N, ..., C, H, W) on ``device``."""
    images = torch.empty((len(kept), *kept[0].shape), dtype=kept[0].dtype, device=device)
    for rows in torch.split(torch.arange(len(kept)), 1024):
        images[rows[0] : rows[-1] + 1] = torch.stack(kept.views(rows))
    return images


def _image(flat: Tensor, shape: NDArray[np.int32], layout: int) -> Tensor:
    """``flat`` as images of ``shape``, a RECORD's, one after the other."""
    crops, channels, height, width = map(int, shape)
    lead = [crops] * (crops > 0)
    flat = flat.view(torch.uint16) if layout & WIDE else flat
    if layout & LAST:
        return flat.view(-1, *lead, height, width, channels).movedim(-1, -3)
    return flat.view(-1, *lead, channels, height, width)


def _view(flat: Tensor, first: int, shape: list[int], layout: int) -> Tensor:
    crops, channels, height, width = shape
    plane = height * width
    if layout & WIDE:  # all images of a segment are, so their places are even
        flat, first = flat[: len(flat) // 2 * 2].view(torch.uint16), first // 2
    inner = (1, width * channels, channels) if layout & LAST else (plane, width, 1)
    if crops:
        return flat.as_strided((crops, channels, height, width), (channels * plane, *inner), first)
    return flat.as_strided((channels, height, width), inner, first)


def _select(table: Tensor, rows: Tensor) -> Tensor:
    """``table[rows]`` in the table's own memory layout."""
    if table.is_contiguous():
        return table.index_select(0, rows)
    return table.movedim(-3, -1).index_select(0, rows).movedim(-1, -3)


CPU = torch.device("cpu")


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

    ``auto`` takes the device if four times ``size`` is free there. Images of 16 bits stay in main
    memory: torch selects no rows of them on every device. Raises DataError if ``device`` is not
    possible.
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
            f"loader.cache: device does not go with {', '.join(pipeline.without_batched_form)}, "
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
