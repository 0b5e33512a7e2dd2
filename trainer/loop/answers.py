"""What the best weights answer for the images of val and test, and the table of these answers."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datasets import BrokenImage, DataError
from datasets.bands import form_in
from datasets.split import is_digest
from datasets.unknown import unknown_images
from datasets.words import counted
from trainer.build.job import Job
from trainer.build.trained import TrainedModel
from trainer.comparing.predictions import SEPARATOR, Answer, fill_table
from trainer.components import SCORES, novelty
from trainer.components.calibration import (
    Calibration,
    before_and_after,
    calibrate,
    calibrated,
)
from trainer.components.decisions import Answers, decided, likeliest
from trainer.components.novelty import Novelty
from trainer.distributed.fsdp import is_sharded, model_shard
from trainer.distributed.network import from_main
from trainer.distributed.processes import on_main
from trainer.input.loader import Loader, eval_loader
from trainer.input.subset import Subset, at_least_of
from trainer.loop.epochs import Session
from trainer.loop.evaluate import answers_of, predict
from trainer.loop.record import keep_calibration
from trainer.process.errors import NO_ANSWER
from trainer.run.best import load_best, read_best
from trainer.run.disk import read_json, write_with
from trainer.run.known import save_known
from transforms.pipeline import Pipeline

ROWS = 1024  # rows of a table that are Python's numbers at once
AT_A_TIME = 32  # images; the largest model takes so many on a laptop

# The logits and labels of a part: plainly (None), and with test-time augmentation of this name.
Logits = dict[str | None, tuple[Tensor, Tensor]]


class Part(NamedTuple):
    """A part's images and what is answered for them; ``losses`` (N,) float64, or None if unknown.

    digests: the SHA-256 of each image's content; "" where it is not known.
    """

    name: str
    ids: Sequence[str]
    digests: Sequence[str]
    answers: Answers
    losses: Tensor | None


class Known(NamedTuple):
    """How unlike the training images an image is, and the scores of val and test.

    images: how many of them it learned from. scores: of each part by the views, a name of
    ``evaluation.tta`` or None, (N, 3).
    """

    model: Novelty
    images: int
    scores: dict[str, dict[str | None, Tensor]]


def predict_best(session: Session) -> tuple[dict[str, Logits], Known | None]:
    """Logits and labels of val and test by the best weights, on rank 0. All ranks call it.

    Both have the answers with ``evaluation.tta``; test has the plain ones too, and so has val if
    there are scores of how unlike the training images each image is.
    """
    job, run, tta = session.job, session.run, session.job.config.evaluation.tta
    if is_sharded(job.model):
        job.model.load_state_dict(model_shard(job.model, on_main(lambda: read_best(run)[0])))
    else:
        on_main(lambda: load_best(job.model, run))
        from_main(job.model)
    if job.val_loader.will_fork:
        session.saver.wait()
    layout = job.train_loader.delivery.channels_last
    known = learn_known(session)
    with closing(eval_loader(job.config, job.data.subsets["test"], job.device, layout)) as loader:
        return {
            "val": _predict(session, job.val_loader, "val", [None, tta] if known else [tta], known),
            "test": _predict(session, loader, "test", [None, tta], known),  # plain first
        }, known


def _predict(
    session: Session, loader: Loader, part: str, kinds: Sequence[str | None], known: Known | None
) -> Logits:
    """Logits and labels of a part by the views; its scores go into ``known``."""
    model: nn.Module = session.job.model if known is None else known.model
    found: Logits = {}
    with session.state.spending("eval"):
        for kind in dict.fromkeys(kinds):
            batches = session.stop.watch(loader.epoch(), loader.rounds)
            outputs, labels = predict(model, batches, session.job.precision, kind)
            if known is not None:
                outputs, known.scores[part][kind] = novelty.split_scores(outputs)
            found[kind] = outputs.contiguous(), labels
    return found


@torch.inference_mode()
def learn_known(session: Session) -> Known | None:
    """Learn what the last features of training images are like; each rank does so by itself.

    None, with a note, where that cannot be: several labels, FSDP, a model without a last layer.
    """
    job = session.job
    if job.data.several_labels:
        return _not_learned(session, "an image may have several labels, or none")
    if is_sharded(job.model):
        return _not_learned(session, "train.parallel=fsdp leaves no process the whole model")
    num_classes, found = len(job.data.classes), list[tuple[Tensor, Tensor]]()
    labels, layer, taken = job.data.subsets["train"].labels, "", 0
    rows = novelty.rows_to_learn(labels, num_classes, job.config.seed)
    try:
        with session.state.spending("eval"), job.precision.autocast():
            job.model.eval()
            for images, labels in training_images(job, rows):
                taken += len(images)
                labels = labels.repeat_interleave(images.shape[1] if images.ndim == 5 else 1)
                images = images.flatten(0, -4).to(job.device)
                layer = layer or novelty.last_layer(job.model, images[:2], num_classes)
                features = novelty.with_features(job.model, layer, images)[1]
                found.append((features.cpu(), labels))
                if sum(features.numel() for features, _ in found) > novelty.MAX_NUMBERS:
                    break
            learned = novelty.learn(*map(torch.cat, zip(*found, strict=True)))
    except ValueError as error:
        return _not_learned(session, str(error))
    model = Novelty(job.model, layer, learned).to(job.device)
    return Known(model, taken, {"val": {}, "test": {}})


def training_images(job: Job, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of these rows of train after the eval transforms, and their labels.

    Images that are kept are used, if the transforms before are those of eval too.
    """
    train, pipeline = job.data.subsets["train"], job.val_loader.subset.pipeline
    done, steps = len(train.pipeline.fixed), job.config.transforms
    if train.images is None or steps.train[:done] != steps.eval[:done]:
        plain = dataclasses.replace(train, pipeline=pipeline, images=None)
        yield from map(plain.sample, torch.split(rows, AT_A_TIME))
        return
    rest = Pipeline([*pipeline.fixed, *pipeline.rest][done:], job.config.seed)
    for some in torch.split(rows if train.used is None else train.used[rows], AT_A_TIME):
        images = [rest.prepare(train.images[row]) for row in some.tolist()]
        yield rest(images, train.labels[some], train.indices[some], 0)


def _not_learned(session: Session, reason: str) -> Known | None:
    session.say(f"note    no scores for predict --reject are kept: {reason}")
    return None


def write_known(session: Session, known: Known) -> dict[str, Any]:
    """Write known.pt; returns what result.json has on unknown images.

    The file names the weights that it is made for, so that it is never used with others.
    """
    run, tta = session.run, session.job.config.evaluation.tta
    weights = read_json(run / "model.json")["weights"]["sha256"]
    ordered = {
        part: {kind or "none": novelty.sorted_scores(scores) for kind, scores in by_view.items()}
        for part, by_view in known.scores.items()
    }
    file = save_known(run, weights, known.model, ordered)
    found = novelty.kept_of_test(known.scores["val"][tta], known.scores["test"][tta])
    result = {
        "file": file,
        "train_images": known.images,
        "val_images": len(known.scores["val"][tta]),
        **found,
    }
    return result | measure_unknown(session, known)


def measure_unknown(session: Session, known: Known) -> dict[str, Any]:
    """How well the pictures of ``dataset.unknown`` are told from test; {} without the setting.

    A picture that cannot be read, or that the model does not take, is left out and told.
    """
    job = session.job
    config, tta, pipeline = job.config, job.config.evaluation.tta, job.val_loader.subset.pipeline
    if (root := config.dataset.trainer_arguments.get("unknown")) is None:
        return {}
    trained = TrainedModel(
        session.run, config, job.data.classes, job.input_shape, known.model,
        job.data.image_channels, pipeline, job.device, job.precision,
        form=form_in(config.dataset.arguments),
        at_least=at_least_of(job.data.dataset, pipeline),
    )  # fmt: skip
    scores, refused = list[Tensor](), list[str]()
    try:
        paths, _ = unknown_images(root, trained.form.suffixes, None)
    except DataError as error:  # the folder was there when the run began
        session.say(f"note    {error}")
        return {}

    def read(path: str) -> Tensor | str:
        try:
            return trained.inputs([trained.read(Path(path))])
        except (BrokenImage, ValueError) as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        for first in range(0, len(paths), AT_A_TIME):
            got = list(pool.map(read, paths[first : first + AT_A_TIME]))
            refused += [reason for reason in got if isinstance(reason, str)]
            if inputs := [one for one in got if isinstance(one, Tensor)]:
                outputs = trained.logits(torch.cat(inputs), tta).cpu()
                finite = outputs.isfinite().all(dim=1)
                refused += [f"{root}: {NO_ANSWER}"] * int((~finite).sum())
                scores.append(novelty.split_scores(outputs[finite])[1])
    if refused:
        told = f"{len(refused):,} of {counted(len(paths), 'image')} left out; the first: "
        session.say(f"note    dataset.unknown: {told}{' '.join(refused[0].split())}")
    unknown = torch.cat(scores) if scores else torch.empty(0, len(SCORES))
    found: dict[str, Any] = {"images": len(unknown), "left_out": len(refused)}
    if len(unknown):
        found |= novelty.told_apart(known.scores["test"][tta], unknown)
    return {"unknown": found}


class Judged(NamedTuple):
    """What is answered for val and test, with raw probabilities and with calibrated ones.

    The calibrated ones are the raw ones if no temperature is used.
    """

    calibration: Calibration
    raw: dict[str, Answers]
    calibrated: dict[str, Answers]

    @property
    def result(self) -> dict[str, Any]:
        """What result.json has: how true the probabilities of test are, before and after."""
        after = self.calibrated["test"] if self.calibration.used else None
        test = before_and_after(self.raw["test"], after)
        return {**self.calibration._asdict(), "test": test}


def calibrate_best(
    session: Session, parts: Mapping[str, tuple[Tensor, Tensor]], thresholds: Tensor | None
) -> Judged:
    """Fit a temperature on val, write it into model.json, and tell it; on rank 0.

    parts: the logits and labels of val and test.
    """
    job, loss = session.job, session.job.config.loss.name
    found = calibrate(loss, *parts["val"])
    keep_calibration(session.run, found)
    session.say(f"note    {found.in_words}")
    raw = {name: answers_of(job.config, *part, thresholds) for name, part in parts.items()}
    after = {
        name: raw[name]._replace(
            probabilities=calibrated(loss, logits, found.temperature, labels.ndim == 2)
        )
        for name, (logits, labels) in parts.items()
        if found.used
    }
    return Judged(found, raw, raw | after)


def part_of(
    subset: Subset, name: str, known: Mapping[str, str], answers: Answers, losses: Tensor
) -> Part:
    """What is answered for the images of a split, which split.json has as ``known``."""
    ids = [subset.dataset.ids[index] for index in subset.indices.tolist()]
    digests = [known[image] if is_digest(known[image]) else "" for image in ids]
    return Part(name, ids, digests, answers, losses)


def write_predictions(path: Path, classes: Sequence[str], parts: Sequence[Part]) -> None:
    """Write the table of the images of all parts, in their order; as Parquet if path ends so."""
    answers = (answer for part in parts for answer in _answers(classes, part))
    write_with(path, lambda file: fill_table(file, path.suffix, classes, answers))


def _answers(classes: Sequence[str], part: Part) -> Iterator[Answer]:
    """The rows of a part's images."""
    chances, labels, thresholds = part.answers
    has_several = labels.ndim == 2
    found = (decided(chances, thresholds) if has_several else likeliest(chances)).tolist()
    losses = [None] * len(labels) if part.losses is None else part.losses.tolist()
    rows = (row for piece in torch.split(chances, ROWS) for row in piece.tolist())
    for name, digest, true, predicted, loss, row in zip(
        part.ids, part.digests, labels.tolist(), found, losses, rows, strict=True
    ):
        is_known = not has_several and predicted >= 0
        probability = row[predicted] if is_known else None
        names = _names(true, classes), _names(predicted, classes)
        yield Answer(name, digest, part.name, *names, probability, loss, row)


def _names(label: int | Sequence[float], classes: Sequence[str]) -> str:
    """The class of this number, or those with a share above 0.5; "" for none, which is -1 too."""
    if isinstance(label, int):
        return classes[label] if label >= 0 else ""
    return SEPARATOR.join(name for name, share in zip(classes, label, strict=True) if share > 0.5)
