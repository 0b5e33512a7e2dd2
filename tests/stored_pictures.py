"""A folder of pictures, a file that trains on it, and what Pillow and torchvision make of them."""

from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2 as v2
from PIL import Image, ImageOps
from torch import Tensor

from datasets.files import ImageFiles
from trainer.config import load_config
from trainer.input.data import Data, load_data
from trainer.input.subset import Subset

CPU = torch.device("cpu")
CLASSES, EACH = ("cat", "dog"), 12
TURNED = 2  # of each class
RESIZED = "[{name: Resize, size: [18, 24]}]"
RECIPE = """
dataset: {{name: ImageFolder, root: {root}}}
transforms: {{train: {train}, eval: {evaluation}}}
loader: {{batch_size: 8, workers: 0}}
model: MLP
optimizer: {{name: SGD, lr: 0.01}}
train: {{epochs: 1, device: cpu}}
"""


def write_pictures(root: Path, side: int = 40) -> Path:
    """24 different photographs of 24 sizes: PNGs, and JPEGs of which some lie on a side."""
    drawn = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for k in range(len(CLASSES) * EACH):
        coarse = Image.fromarray(drawn.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        image = coarse.resize((side + 8 + 3 * k, side + k), Image.Resampling.BICUBIC)
        path = root / CLASSES[k % 2] / f"{k // 2:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if k // 2 < TURNED:
            image.save(path.with_suffix(".jpg"), exif=exif)
        else:
            image.save(path.with_suffix(".png" if k % 5 == 0 else ".jpg"))
    return root


def recipe(file: Path, root: Path, train: str = RESIZED, evaluation: str = RESIZED) -> Path:
    """A YAML file for ``root`` with these transforms."""
    file.write_text(RECIPE.format(root=root, train=train, evaluation=evaluation))
    return file


def load(file: Path, *overrides: str) -> Data:
    return load_data(load_config(file, overrides), CPU)


def pixels_of(path: Path) -> Tensor:
    """A file by Pillow alone: (3, H, W) uint8."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()


def resized(path: Path, size: tuple[int, int] = (18, 24)) -> Tensor:
    return v2.functional.resize(pixels_of(path), list(size), antialias=True)  # type: ignore[no-any-return]


def shown(subset: Subset) -> dict[str, Tensor]:
    """What each sample of a split is after the fixed transforms, by its id."""
    images, _ = subset.read(torch.arange(len(subset)), 0)
    names = [subset.dataset.ids[index] for index in subset.indices.tolist()]
    return dict(zip(names, images, strict=True))


def is_right(data: Data, root: Path, sizes: dict[str, tuple[int, int]] | None = None) -> bool:
    """Whether each sample of each split has the pixels of its file, resized."""
    found = 0
    for split, subset in data.subsets.items():
        for name, image in shown(subset).items():
            size = (sizes or {}).get(split, (18, 24))
            assert torch.equal(image, resized(root / name, size)), (split, name)
            found += 1
    return found == len(data.dataset)


class Counted:
    """Which files an ImageFiles reads, and which it decodes, from now on."""

    def __init__(self, monkeypatch) -> None:
        self.read: list[str] = []
        self.decoded: list[str] = []
        content, decode = ImageFiles.content, ImageFiles.decode

        def counted_content(dataset: ImageFiles, index: int) -> bytes:
            self.read.append(dataset.ids[index])
            return content(dataset, index)

        def counted_decode(
            dataset: ImageFiles, index: int, data: bytes, at_least: int = 0
        ) -> Tensor:
            self.decoded.append(dataset.ids[index])
            return decode(dataset, index, data, at_least)

        monkeypatch.setattr(ImageFiles, "content", counted_content)
        monkeypatch.setattr(ImageFiles, "decode", counted_decode)

    def clear(self) -> None:
        self.read.clear()
        self.decoded.clear()
