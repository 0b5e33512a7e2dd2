"""Writes files for TensorBoard's embedding projector: the last layer's inputs for test images."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from datasets.words import label_words
from trainer.build.job import Job
from trainer.components.decisions import Answers, decided
from trainer.drawing.pictures import png
from trainer.input.subset import Subset
from trainer.insight.features import penultimate
from trainer.insight.samples import as_pictures, one_crop, spread
from trainer.process.words import visible
from trainer.run.disk import make_output_folder, write_file
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


def write_projector(run: Path, job: Job, subset: Subset, answers: Answers) -> None:
    """Write features, classes and pictures of at most POINTS images; RunError if into a link."""
    rows, classes = spread(len(subset), POINTS), job.data.classes
    vectors, thumbnails, largest = [], [], 64 if len(rows) <= 256 else 32
    for chunk in torch.split(rows, job.val_loader.batch_size):
        images, _ = subset.batch(chunk, device=job.device)
        features = penultimate(job.model, images.flatten(0, -4))
        vectors.append(features.view(len(chunk), -1, features.shape[1]).mean(dim=1))
        thumbnails.append(_thumbnails(subset.pipeline, one_crop(images), largest))
    table, pictures = torch.cat(vectors), torch.cat(thumbnails)
    lines = ["class\tpredicted\tprobability\tfile"]
    likeliest, predicted = answers.probabilities[rows].max(dim=1)
    if answers.thresholds is not None:
        predicted = decided(answers.probabilities[rows], answers.thresholds)
    for row, true, found, chance in zip(
        subset.indices[rows].tolist(),
        answers.labels[rows].tolist(),
        predicted.tolist(),
        likeliest.tolist(),
        strict=True,
    ):
        names = label_words(true, classes), label_words(found, classes)
        cells = (*names, f"{chance:.3f}", subset.dataset.ids[row])
        lines.append("\t".join(map(visible, cells)))
    folder = run / "projector"
    make_output_folder(folder)
    # Bytes: text would take ten times as long.
    write_file(folder / "tensors.bytes", table.numpy().tobytes())
    write_file(folder / "metadata.tsv", "\n".join(lines) + "\n")
    write_file(folder / "sprite.png", png(_sprite(pictures, math.ceil(math.sqrt(len(rows))))))
    height, width = pictures.shape[-2:]
    write_file(
        run / "projector_config.pbtxt",
        PROJECTOR.format(rows=len(table), columns=table.shape[1], width=width, height=height),
    )


def _thumbnails(pipeline: Pipeline, images: Tensor, largest: int) -> Tensor:
    """Return a model's inputs (B, C, H, W) as small pictures (B, C, h, w), uint8 on the CPU."""
    images = as_pictures(pipeline, images).float()
    scale = largest / max(images.shape[-2:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in images.shape[-2:]]
        images = interpolate(images, size, mode="bilinear", antialias=True)
    return images.round().clamp(0, 255).byte().cpu()


def _sprite(pictures: Tensor, columns: int) -> Image.Image:
    """Return pictures (N, C, h, w) uint8 as one picture: ``columns`` rows of ``columns`` each."""
    count, channels, height, width = pictures.shape
    squares = torch.zeros(columns * columns, channels, height, width, dtype=torch.uint8)
    squares[:count] = pictures
    squares = squares.view(columns, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    array = squares.reshape(columns * height, columns * width, channels).numpy()
    return Image.fromarray(array[:, :, 0] if channels == 1 else array)
