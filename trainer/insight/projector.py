"""The files of TensorBoard's embedding projector: how the model sees images of the test split."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from trainer.disk import write_file
from trainer.errors import RunError
from trainer.insight.columns import visible
from trainer.insight.features import penultimate
from trainer.insight.pictures import png
from trainer.insight.samples import as_seen, one_crop, spread
from trainer.job import Job
from trainer.loader import Part
from transforms.pipeline import Pipeline

POINTS = 1000  # images at most
PROJECTOR = """embeddings {{
  tensor_name: "test images, as the last layer reads them"
  tensor_path: "projector/tensors.bytes"
  tensor_shape: {rows}
  tensor_shape: {columns}
  metadata_path: "projector/metadata.tsv"
  sprite {{
    image_path: "projector/sprite.png"
    single_image_dim: {width}
    single_image_dim: {height}
  }}
}}
"""


def write_projector(run: Path, job: Job, part: Part, chances: Tensor, labels: Tensor) -> None:
    """What the embedding projector reads: last features of test images, with names and pictures."""
    rows, classes = spread(len(part), POINTS), job.data.classes
    vectors, thumbnails, largest = [], [], 64 if len(rows) <= 256 else 32
    for some in torch.split(rows, job.val_loader.batch_size):
        images, _ = part.batch(some, device=job.device)
        features = penultimate(job.model, images.flatten(0, -4))
        vectors.append(features.view(len(some), -1, features.shape[1]).mean(dim=1))
        thumbnails.append(_thumbnails(part.pipeline, one_crop(images), largest))
    table, pictures = torch.cat(vectors), torch.cat(thumbnails)
    lines = ["class\tpredicted\tprobability\tfile"]
    likeliest, predicted = chances[rows].max(dim=1)
    for row, true, found, chance in zip(
        part.indices[rows].tolist(),
        labels[rows].tolist(),
        predicted.tolist(),
        likeliest.tolist(),
        strict=True,
    ):
        cells = (classes[true], classes[found], f"{chance:.3f}", part.dataset.ids[row])
        lines.append("\t".join(map(visible, cells)))
    folder = run / "projector"
    if folder.is_symlink():
        raise RunError(f"{folder} is a link; nothing is written behind it")
    folder.mkdir(exist_ok=True)
    # A tenth of the time that text would take.
    write_file(folder / "tensors.bytes", table.numpy().tobytes())
    write_file(folder / "metadata.tsv", "\n".join(lines) + "\n")
    write_file(folder / "sprite.png", png(_sprite(pictures, math.ceil(math.sqrt(len(rows))))))
    height, width = pictures.shape[-2:]
    write_file(
        run / "projector_config.pbtxt",
        PROJECTOR.format(rows=len(table), columns=table.shape[1], width=width, height=height),
    )


def _thumbnails(pipeline: Pipeline, images: Tensor, largest: int) -> Tensor:
    """Images (B, C, H, W) as the model sees them, made small: (B, C, h, w) uint8 on the CPU."""
    seen = as_seen(pipeline, images).float()
    scale = largest / max(seen.shape[-2:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in seen.shape[-2:]]
        seen = interpolate(seen, size, mode="bilinear", antialias=True)
    return seen.round().clamp(0, 255).byte().cpu()


def _sprite(pictures: Tensor, columns: int) -> Image.Image:
    """Pictures (N, C, h, w) uint8 row by row in a square of ``columns``."""
    count, channels, height, width = pictures.shape
    whole = torch.zeros(columns * columns, channels, height, width, dtype=torch.uint8)
    whole[:count] = pictures
    whole = whole.view(columns, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    array = whole.reshape(columns * height, columns * width, channels).numpy()
    return Image.fromarray(array[:, :, 0] if channels == 1 else array)
