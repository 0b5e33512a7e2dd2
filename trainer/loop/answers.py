"""What the best weights answer for the images of val and test, and the table of these answers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.comparing.predictions import SEPARATOR, Answer, fill_table
from trainer.components.calibration import (
    Calibration,
    before_and_after,
    calibrate,
    calibrated,
)
from trainer.components.decisions import Answers, decided, likeliest
from trainer.distributed.fsdp import is_sharded, model_shard
from trainer.distributed.network import from_main
from trainer.distributed.processes import on_main
from trainer.input.loader import Loader, eval_loader
from trainer.input.subset import Subset
from trainer.loop.epochs import Session
from trainer.loop.evaluate import answers_of, predict
from trainer.loop.record import keep_calibration
from trainer.run.best import load_best, read_best
from trainer.run.disk import write_with

ROWS = 1024  # rows of a table that are Python's numbers at once

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


def predict_best(session: Session) -> dict[str, Logits]:
    """Logits and labels of val and test by the best weights, on rank 0. All ranks call it.

    Both have the answers with ``evaluation.tta``; test has the plain ones too.
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
    with closing(eval_loader(job.config, job.data.subsets["test"], job.device, layout)) as loader:
        return {
            "val": _predict(session, job.val_loader, [tta]),
            "test": _predict(session, loader, [None, tta]),  # plain first
        }


def _predict(session: Session, loader: Loader, kinds: Sequence[str | None]) -> Logits:
    model, precision = session.job.model, session.job.precision
    found: Logits = {}
    with session.state.spending("eval"):
        for kind in dict.fromkeys(kinds):
            batches = session.stop.watch(loader.epoch(), loader.rounds)
            found[kind] = predict(model, batches, precision, kind)
    return found


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
    digests = ["" if known[image].endswith(" bytes") else known[image] for image in ids]
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
