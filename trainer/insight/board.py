"""What TensorBoard shows of a run beside its curves: at its start, after epochs, at its end.

``log.show`` chooses. What can't be drawn is told once and left out: no run ends for a picture.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import summary

from trainer.console import Say
from trainer.disk import read_json
from trainer.events import Events
from trainer.insight import panels
from trainer.insight.charts import draw_confusion
from trainer.insight.features import feature_maps, first_kernels
from trainer.insight.pictures import grid, sheet
from trainer.insight.projector import write_projector
from trainer.insight.samples import as_seen, one_crop, original_image, spread, stored_image
from trainer.job import Job
from trainer.loader import Part
from trainer.losses import probabilities
from trainer.metrics import confusion_matrix
from trainer.sharding import is_sharded

KERNELS, LAYERS, CHANNELS = 64, 4, 16  # of the model's inside, at most
RIGHT, WRONG = "#2ca02c", "#d62728"
# What needs weights or a forward.
OF_THE_MODEL = ("graph", "histograms", "kernels", "feature_maps", "embedding")


def show_start(events: Events, job: Job, run: Path, step: int, say: Say) -> None:
    """Show what is known before the first step: settings, images as they come in, the model.

    Of a run that goes on after ``step``, what its event file lacks of it.
    """
    config = job.config
    attempt = _Attempts(events, job, say)
    told: dict[str, tuple[str, Callable[[], None]]] = {  # with a tag by which it is known
        "text": ("config/text_summary", lambda: _show_text(events, job, run)),
        "scalars": (
            "custom_scalars__config__",
            lambda: events.add(0, summary=panels.curves_together(config)),
        ),
        "hparams": ("_hparams_/experiment", lambda: _show_hyperparameters(events, job)),
        "inputs": ("images/raw", lambda: _show_inputs(events, job)),
        "graph": (
            "graph",
            lambda: events.add(0, graph_def=panels.graph(job.model, job.input_shape, job.device)),
        ),
    }
    for name, (tag, draw) in told.items():
        if tag not in events.tags and (name != "inputs" or config.log.images):
            attempt(name, draw)
    if step == 0:
        attempt("kernels", lambda: _show_kernels(events, job, 0))


def show_epoch(
    events: Events, job: Job, epoch: int, step: int, logits: Tensor, labels: Tensor, say: Say
) -> None:
    """Show what the epoch, counted from 1, made of the model: the confusion in each; histograms

    and PR curves in epochs 1 to 8, then in ever fewer; pictures in epochs 1, 4, 16, ... Most
    changes early. logits (N, K) and labels (N,) of the validation split, on the CPU.
    """
    attempt = _Attempts(events, job, say)
    chances = probabilities(job.config.loss.name, logits)
    attempt("confusion_matrix", lambda: _show_confusion(events, job, "val", chances, labels, step))
    bits = epoch.bit_length()
    if epoch % (1 << max(0, bits - 3)) == 0:  # from 8 on every 2nd, from 16 on every 4th, ...
        attempt("histograms", lambda: _show_histograms(events, job, step))
        attempt("pr_curves", lambda: _show_pr_curves(events, job, "val", chances, labels, step))
    if epoch == 1 << (bits - 1) and bits % 2:
        part = job.val_loader.part
        if job.config.log.images:
            attempt(
                "predictions",
                lambda: _show_predictions(events, job, "val", part, chances, labels, step),
            )
        attempt("kernels", lambda: _show_kernels(events, job, step))
        attempt("feature_maps", lambda: _show_feature_maps(events, job, step))


def show_end(
    events: Events,
    run: Path,
    job: Job,
    part: Part,
    logits: Tensor,
    labels: Tensor,
    step: int,
    say: Say,
) -> None:
    """Show how the best weights do on the test split ``part``, and how they see its images."""
    attempt = _Attempts(events, job, say)
    chances = probabilities(job.config.loss.name, logits)
    if job.config.log.images:
        attempt(
            "predictions",
            lambda: _show_predictions(events, job, "test", part, chances, labels, step),
        )
    attempt("confusion_matrix", lambda: _show_confusion(events, job, "test", chances, labels, step))
    attempt("pr_curves", lambda: _show_pr_curves(events, job, "test", chances, labels, step))
    attempt("kernels", lambda: _show_kernels(events, job, step, "kernels_best/first_layer"))
    attempt("feature_maps", lambda: _show_feature_maps(events, job, step, "feature_maps_best"))
    attempt("embedding", lambda: write_projector(run, job, part, chances, labels))


class _Attempts:
    """Draws what ``log.show`` names; of what fails the reason is said, and it is left out.

    Of a model that several processes share by parts the main one has no whole weights to show.
    """

    def __init__(self, events: Events, job: Job, say: Say) -> None:
        self.given_up, self.shown, self.say = events.given_up, job.config.log.show, say
        unseen = [name for name in OF_THE_MODEL if name in self.shown]
        if is_sharded(job.model) and not self.given_up.issuperset(unseen):
            self.given_up.update(unseen)
            say(f"note    train.parallel=fsdp: TensorBoard does not show {', '.join(unseen)}")

    def __call__(self, name: str, draw: Callable[[], None]) -> None:
        if name not in self.shown or name in self.given_up:
            return
        try:
            draw()
        except OSError:  # the disk, which the run needs too
            raise
        except Exception as error:
            self.given_up.add(name)
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            self.say(f"note    {name} cannot be shown in TensorBoard: {reason}")


def _show_text(events: Events, job: Job, run: Path) -> None:
    for tag, text in {
        "config": panels.code(job.config.dump()),
        "environment": panels.table(read_json(run / "environment.json")),
    }.items():
        events.add(0, summary=summary.text(tag, text))  # type: ignore[no-untyped-call]


def _show_hyperparameters(events: Events, job: Job) -> None:
    """Into the run's own file: TensorBoard's own way makes a run of its own for them."""
    values = panels.hyperparameters(job.config)
    tags = dict.fromkeys(panels.metrics_of(job.config), 0.0)
    for part in summary.hparams(values, tags):  # type: ignore[no-untyped-call]
        events.add(0, summary=part)


def _show_inputs(events: Events, job: Job) -> None:
    """The same training images as the dataset gives them, and as the model sees them."""
    part, classes = job.train_loader.part, job.data.classes
    rows = spread(len(part), job.config.log.images)
    names = [classes[label] for label in part.labels[rows].tolist()]
    raw = [original_image(part, row) for row in rows.tolist()]
    inputs, labels = part.sample(rows)
    augmented = list(as_seen(part.pipeline, one_crop(inputs)))
    if labels.ndim == 2:  # mixed
        names_then = [_shares(row, classes) for row in labels]
    else:
        names_then = names
    events.add(0, summary=panels.picture("images/raw", _rows(raw, names)))
    events.add(0, summary=panels.picture("images/augmented", _rows(augmented, names_then)))


def _rows(
    images: Sequence[Tensor],
    captions: Sequence[str | Sequence[str]],
    colours: Sequence[str | None] | None = None,
) -> Image.Image:
    return sheet(images, captions, colours, columns=8, size=112)


def _shares(row: Tensor, classes: tuple[str, ...]) -> str:
    return " + ".join(
        f"{share:.2f} {classes[k]}" for k, share in enumerate(row.tolist()) if share >= 0.005
    )


def _show_histograms(events: Events, job: Job, step: int) -> None:
    for name, parameter in job.model.named_parameters():
        for kind, tensor in (("weights", parameter), ("gradients", parameter.grad)):
            if tensor is None:
                continue
            if (made := panels.histogram(f"{kind}/{name}", tensor)) is not None:
                events.add(step, summary=made)


def _show_pr_curves(
    events: Events, job: Job, split: str, chances: Tensor, labels: Tensor, step: int
) -> None:
    for curve in panels.pr_curves(f"pr_curve/{split}", chances, labels, job.data.classes):
        events.add(step, summary=curve)


def _show_confusion(
    events: Events, job: Job, split: str, chances: Tensor, labels: Tensor, step: int
) -> None:
    made = draw_confusion(confusion_matrix(chances, labels), job.data.classes, room=360)
    events.add(step, summary=panels.picture(f"confusion_matrix/{split}", panels.in_blue(made)))


def _show_predictions(
    events: Events, job: Job, split: str, part: Part, chances: Tensor, labels: Tensor, step: int
) -> None:
    """Some images of a split with true and predicted class, green where they agree."""
    rows = spread(len(part), job.config.log.images)
    classes = job.data.classes
    likeliest, predicted = chances[rows].max(dim=1)
    captions, colours = [], []
    for true, found, chance in zip(
        labels[rows].tolist(), predicted.tolist(), likeliest.tolist(), strict=True
    ):
        captions.append([f"{classes[found]} ({chance:.0%})", f"true: {classes[true]}"])
        colours.append(RIGHT if true == found else WRONG)
    # The files themselves are read only once, at the end.
    read = original_image if split == "test" else stored_image
    images = [read(part, row) for row in rows.tolist()]
    events.add(
        step,
        summary=panels.picture(f"predictions/{split}", _rows(images, captions, colours)),
    )


def _show_kernels(events: Events, job: Job, step: int, tag: str = "kernels/first_layer") -> None:
    kernels = first_kernels(job.model, job.input_shape)
    if kernels is not None:
        made = _small_grid(kernels[:KERNELS])
        events.add(step, summary=panels.picture(tag, made))


def _small_grid(planes: Tensor) -> Image.Image:
    """About 64 pixels each: TensorBoard enlarges a picture on a click."""
    return grid(planes, scale=max(1, round(64 / max(planes.shape[-2:]))))


def _show_feature_maps(events: Events, job: Job, step: int, group: str = "feature_maps") -> None:
    """What some layers, from first to last, make of the first validation image."""
    images, _ = job.val_loader.part.sample(torch.arange(1))
    maps = feature_maps(job.model, one_crop(images).to(job.device), CHANNELS)
    places = torch.linspace(0, len(maps) - 1, min(len(maps), LAYERS)).round().long()
    names = list(maps)
    for name in [names[place] for place in places.tolist()]:
        made = _small_grid(maps[name]).convert("L")
        events.add(step, summary=panels.picture(f"{group}/{name}", made))
