"""What TensorBoard shows of a run beside its curves: at its start, after epochs, at its end.

``log.show`` chooses. If something cannot be drawn, a note says so once, and the run goes on.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard.summary as summary
from PIL import Image
from torch import Tensor

from datasets.words import label_names
from trainer.build.job import Job
from trainer.components.decisions import Answers, confusion_counts, decided
from trainer.distributed.fsdp import is_sharded
from trainer.drawing.charts import RIGHT, WRONG, draw_confusion
from trainer.drawing.fonts import drawables
from trainer.drawing.pictures import grid, sheet
from trainer.input.subset import Subset
from trainer.insight import panels
from trainer.insight.features import feature_maps, first_kernels
from trainer.insight.projector import write_projector
from trainer.insight.samples import as_pictures, one_crop, original_images, spread, stored_image
from trainer.run.disk import read_json
from trainer.run.events import Events

KERNELS, LAYERS, CHANNELS = 64, 4, 16  # at most so many are shown
CELL = 112  # pixels of an image in a sheet
# The items of log.show that need weights or a forward pass.
OF_THE_MODEL = ("graph", "histograms", "kernels", "feature_maps", "embedding")


class Board:
    """A run's event file and its job. ``draw`` draws an item that ``log.show`` names.

    If the model is sharded over ranks, rank 0 has no whole weights: OF_THE_MODEL is not shown.
    """

    def __init__(self, events: Events, job: Job, say: Callable[[str], None]) -> None:
        self.events, self.job, self.say = events, job, say
        self.shown, self.given_up = job.config.log.show, events.given_up
        hidden = [name for name in OF_THE_MODEL if name in self.shown]
        if is_sharded(job.model) and not self.given_up.issuperset(hidden):
            self.given_up.update(hidden)
            say(f"note    train.parallel=fsdp: TensorBoard does not show {', '.join(hidden)}")

    def draw(self, name: str, function: Callable[[], None]) -> None:
        """Call ``function`` if ``log.show`` has ``name``. If it fails, say why and never retry."""
        if name not in self.shown or name in self.given_up:
            return
        try:
            function()
        except OSError:  # the disk, which the run needs too
            raise
        except Exception as error:
            self.given_up.add(name)
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            self.say(f"note    {name} cannot be shown in TensorBoard: {reason}")

    def picture(self, tag: str, image: Image.Image, step: int) -> None:
        """Add a picture to the images dashboard."""
        self.events.add(step, summary=panels.picture(tag, image))


def show_start(board: Board, run: Path, step: int) -> None:
    """Show settings, input images and the model; a resumed run adds what its event file lacks."""
    events, job = board.events, board.job
    config = job.config
    contents: dict[str, tuple[str, Callable[[], None]]] = {  # item -> (a tag it adds, function)
        "text": ("config/text_summary", lambda: _show_text(board, run)),
        "scalars": (
            "custom_scalars__config__",
            lambda: events.add(0, summary=panels.curves_together(config)),
        ),
        "hparams": ("_hparams_/experiment", lambda: _show_hyperparameters(board)),
        "inputs": ("images/raw", lambda: _show_inputs(board)),
        "graph": (
            "graph",
            lambda: events.add(0, graph_def=panels.graph(job.model, job.input_shape, job.device)),
        ),
    }
    for name, (tag, function) in contents.items():
        if tag not in events.tags and (name != "inputs" or config.log.images):
            board.draw(name, function)
    if step == 0:
        board.draw("kernels", lambda: _show_kernels(board, 0))


def show_epoch(board: Board, epoch: int, step: int, answers: Answers) -> None:
    """Show the state of the model after an epoch, counted from 1.

    ``answers`` are those for the validation split. The confusion
    matrix comes in each epoch; histograms and PR curves in epochs 1 to 8, then less and less often;
    pictures in epochs 1, 4, 16, ... Most changes happen early.
    """
    job = board.job
    board.draw("confusion_matrix", lambda: _show_confusion(board, "val", answers, step))
    bits = epoch.bit_length()
    if epoch % (1 << max(0, bits - 3)) == 0:  # from 8 on every 2nd, from 16 on every 4th, ...
        board.draw("histograms", lambda: _show_histograms(board, step))
        board.draw("pr_curves", lambda: _show_pr_curves(board, "val", answers, step))
    if epoch == 1 << (bits - 1) and bits % 2:
        if job.config.log.images:
            images = job.val_loader.subset
            board.draw(
                "predictions",
                lambda: _show_predictions(board, "val", images, answers, step),
            )
        board.draw("kernels", lambda: _show_kernels(board, step))
        board.draw("feature_maps", lambda: _show_feature_maps(board, step))


def show_end(board: Board, run: Path, images: Subset, answers: Answers, step: int) -> None:
    """Show the results of the best weights on the test split: ``answers`` for ``images``."""
    job = board.job
    if job.config.log.images:
        board.draw(
            "predictions",
            lambda: _show_predictions(board, "test", images, answers, step),
        )
    board.draw("confusion_matrix", lambda: _show_confusion(board, "test", answers, step))
    board.draw("pr_curves", lambda: _show_pr_curves(board, "test", answers, step))
    board.draw("kernels", lambda: _show_kernels(board, step, "kernels_best/first_layer"))
    board.draw("feature_maps", lambda: _show_feature_maps(board, step, "feature_maps_best"))
    board.draw("embedding", lambda: write_projector(run, job, images, answers))


def _show_text(board: Board, run: Path) -> None:
    for tag, text in {
        "config": panels.code(board.job.config.dump()),
        "environment": panels.name_value_table(read_json(run / "environment.json")),
    }.items():
        board.events.add(0, summary=summary.text(tag, text))  # type: ignore[no-untyped-call]


def _show_hyperparameters(board: Board) -> None:
    """Write them to the run's event file: SummaryWriter would put them into a second run."""
    for entry in panels.hparams(board.job.config):
        board.events.add(0, summary=entry)


def _show_inputs(board: Board) -> None:
    """Show some training images twice: as the dataset gives them, and as the model gets them."""
    subset, classes = board.job.train_loader.subset, drawables(board.job.data.classes)
    rows = spread(len(subset), board.job.config.log.images)
    names = [[label_names(label, classes)] for label in subset.labels[rows].tolist()]
    raw = original_images(subset, rows.tolist(), CELL)
    inputs, labels = subset.sample(rows)
    augmented = list(as_pictures(subset.pipeline, one_crop(inputs)))
    is_mixed = not torch.equal(labels, subset.labels[rows])  # by MixUp or CutMix
    mixed_names = [[_class_weights(row, classes)] for row in labels] if is_mixed else names
    board.picture("images/raw", _captioned_sheet(raw, names), 0)
    board.picture("images/augmented", _captioned_sheet(augmented, mixed_names), 0)


def _captioned_sheet(
    images: Sequence[Tensor],
    captions: Sequence[Sequence[str | Sequence[str]]],
    colours: Sequence[str | None] | None = None,
) -> Image.Image:
    return sheet(images, captions, colours, columns=8, size=CELL)


def _class_weights(label: Tensor, classes: Sequence[str]) -> list[str]:
    weights = enumerate(label.tolist())
    return [f"{weight:.2f} {classes[k]}" for k, weight in weights if weight >= 0.005]


def _show_histograms(board: Board, step: int) -> None:
    for name, parameter in board.job.model.named_parameters():
        for kind, tensor in (("weights", parameter), ("gradients", parameter.grad)):
            if tensor is None:
                continue
            if (histogram := panels.histogram(f"{kind}/{name}", tensor)) is not None:
                board.events.add(step, summary=histogram)


def _show_pr_curves(board: Board, split: str, answers: Answers, step: int) -> None:
    chances, labels = answers.probabilities, answers.labels
    for curve in panels.pr_curves(f"pr_curve/{split}", chances, labels, board.job.data.classes):
        board.events.add(step, summary=curve)


def _show_confusion(board: Board, split: str, answers: Answers, step: int) -> None:
    counts = confusion_counts(*answers)
    drawn = draw_confusion(counts, board.job.data.classes, card=True)
    board.picture(f"confusion_matrix/{split}", panels.in_blue(drawn), step)


def _show_predictions(
    board: Board, split: str, subset: Subset, answers: Answers, step: int
) -> None:
    """Show some images of a split with true and predicted class, green where the two agree."""
    rows = spread(len(subset), board.job.config.log.images)
    classes = drawables(board.job.data.classes)
    chances, labels = answers.probabilities[rows], answers.labels[rows]
    likeliest, predicted = chances.max(dim=1)
    wanted: list[Any] = labels.tolist()
    found: list[Any] = predicted.tolist()
    if labels.ndim == 2:
        wanted = (labels > 0.5).tolist()
        found = decided(chances, answers.thresholds).tolist()
    captions, colours = [], []
    for true, guess, chance in zip(wanted, found, likeliest.tolist(), strict=True):
        is_answer = not math.isnan(chance)
        answer: str | list[str] = "no answer (NaN)"
        if is_answer and labels.ndim == 1:
            answer = f"{classes[guess]} ({chance:.0%})"
        elif is_answer:
            answer = label_names(guess, classes)
        captions.append([answer, _true_words(true, classes)])
        colours.append(RIGHT if is_answer and true == guess else WRONG)
    # The dataset's files are read only once, at the end.
    images = (
        original_images(subset, rows.tolist(), CELL)
        if split == "test"
        else [stored_image(subset, row) for row in rows.tolist()]
    )
    board.picture(f"predictions/{split}", _captioned_sheet(images, captions, colours), step)


def _true_words(true: Any, classes: Sequence[str]) -> str | list[str]:
    if isinstance(true, int):
        return f"true: {classes[true]}"
    first, *others = label_names(true, classes)
    return [f"true: {first}", *others]


def _show_kernels(board: Board, step: int, tag: str = "kernels/first_layer") -> None:
    kernels = first_kernels(board.job.model, board.job.input_shape)
    if kernels is not None:
        board.picture(tag, _small_grid(kernels[:KERNELS]), step)


def _small_grid(planes: Tensor) -> Image.Image:
    """The planes at about 64 pixels each: TensorBoard enlarges a picture on a click."""
    return grid(planes, scale=max(1, round(64 / max(planes.shape[-2:]))))


def _show_feature_maps(board: Board, step: int, group: str = "feature_maps") -> None:
    """Show the outputs of some layers, from first to last, for the first validation image."""
    job = board.job
    images, _ = job.val_loader.subset.sample(torch.arange(1))
    maps = feature_maps(job.model, one_crop(images).to(job.device), CHANNELS)
    places = torch.linspace(0, len(maps) - 1, min(len(maps), LAYERS)).round().long()
    names = list(maps)
    for name in [names[place] for place in places.tolist()]:
        board.picture(f"{group}/{name}", _small_grid(maps[name]).convert("L"), step)
