"""Pictures with wrong labels among them: a run on them is too sure, and has 397 val images."""

import gzip
import struct

import torch
from PIL import Image

from trainer.train import main

YAML = """
name: noisy
dataset: {{name: FashionMNIST, root: {root}}}
split: {{ratios: [2, 1, 1], seed: 0}}
transforms:
  train: [{{name: Normalize, mean: [0.5], std: [0.25]}}]
  eval: [{{name: Normalize, mean: [0.5], std: [0.25]}}]
loader: {{batch_size: 64, workers: 0}}
model: {{name: MLP, hidden: [64]}}
optimizer: {{name: AdamW, lr: 0.003}}
metrics: [accuracy]
train: {{epochs: 6, device: cpu}}
log: {{images: 4}}
"""


def pictures_of(count, seed):
    """Noise, in which row k is bright for class k; one label of four is drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    images = torch.randint(0, 200, (count, 28, 28), dtype=torch.uint8, generator=generator)
    images[torch.arange(count), 2 * labels] = 225
    is_wrong = torch.rand(count, generator=generator) < 0.25
    drawn = torch.randint(10, (count,), generator=generator)
    return images, torch.where(is_wrong, drawn, labels)


def write_squares(root):
    """Write 1,200 training and 500 test images in Fashion-MNIST's own IDX files."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for seed, (prefix, count) in enumerate((("train", 1200), ("t10k", 500))):
        images, labels = pictures_of(count, seed)
        for kind, magic, tensor in (("images-idx3", 2051, images), ("labels-idx1", 2049, labels)):
            head = struct.pack(f">{1 + tensor.ndim}i", magic, *tensor.shape)
            with gzip.open(raw / f"{prefix}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + tensor.byte().numpy().tobytes())


def train_noisy(root):
    """Write the pictures into ``root`` and train on them; returns the run's folder."""
    write_squares(root)
    (root / "noisy.yaml").write_text(YAML.format(root=root))
    assert main(["--config", str(root / "noisy.yaml"), "--runs", str(root / "runs")]) == 0
    return next((root / "runs" / "noisy").glob("2*"))


def save_pictures(folder, pictures):
    """Save pictures (N, 28, 28) uint8 as files; returns their folder."""
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.numpy()).save(folder / f"{number:03d}.png")
    return folder
