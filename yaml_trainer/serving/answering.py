"""A run's model, and its answers to pictures as what JSON holds."""

import base64
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets.images import notes_on
from trainer.build.trained import TrainedModel, load_with, tell_which
from trainer.config import load_config
from trainer.drawing.pictures import png, to_picture
from trainer.inference.explanation import overlay
from trainer.inference.prediction import (
    Also,
    Decoded,
    Prediction,
    Readable,
    choose_rejection,
    decoded_file,
    label_sets_of,
    predict_images,
    with_sets,
)
from trainer.insight.features import grad_cam
from trainer.insight.samples import as_pictures
from trainer.process.words import visible
from yaml_trainer.serving.settings import Serving
from yaml_trainer.serving.uploads import Upload

NAME = "the picture"  # an upload's file name is never used


class Answering:
    """A loaded run. Its numbers are those of ``trainer.predict`` for the same files and batch."""

    def __init__(self, settings: Serving, tells: bool) -> None:
        """Load the run, as ``load_trained`` and ``trainer.predict`` do; tells: whether on stderr.

        Raises RunError, ConfigError or UsageError as they do.
        """
        overrides = [f"train.device={settings.device}"] if settings.device else []
        overrides += [f"train.threads={settings.threads}"] if settings.threads else []
        run = Path(settings.run)
        self.trained = load_with(load_config(run / "config.yaml", overrides), run)
        self.settings = settings
        if tells:
            tell_which(self.trained)
        tta = settings.tta
        self.sets = (
            None if settings.sets is None else label_sets_of(self.trained, settings.sets, tta)
        )
        for note in self.sets.notes if self.sets and tells else ():
            print(f"note    {visible(note)}", file=sys.stderr)
        self.rejection = None
        if settings.reject is not None:
            self.rejection = choose_rejection(self.trained, settings.reject, settings.score, tta)
        self._warm_up()

    def _warm_up(self) -> None:
        """Compute once: the first time costs more."""
        import torch

        trained = self.trained
        trained.logits(torch.zeros(1, *trained.input_shape, device=trained.device))

    def facts(self) -> dict[str, Any]:
        """What /info tells of the model."""
        trained, settings = self.trained, self.settings
        return {
            "run": "/".join(Path(settings.run).resolve().parts[-2:]),
            "name": trained.model_name,
            "epoch": trained.epoch,
            "sha256": trained.digest,
            "classes": list(trained.classes),
            "several_labels": trained.thresholds is not None,
            "input": list(trained.input_shape),
            "device": str(trained.device),
            "tta": settings.tta or trained.config.evaluation.tta or "none",
            "temperature": trained.temperature,
            "sets": None if settings.sets is None else float(settings.sets),
            "reject": None if settings.reject is None else float(settings.reject),
            "limits": {
                "bytes": settings.max_bytes,
                "requests": settings.max_queue,
                "seconds": settings.timeout,
                "batch": settings.max_batch,
            },
        }

    def answers(self, uploads: Sequence[Upload]) -> Iterator[dict[str, Any] | str]:
        """Yield the answer for each picture, or the reason why there is none.

        They are decoded in threads, and one batch for the model.
        """
        trained, remarks = self.trained, [0] * len(uploads)

        def reading(number: int) -> Callable[[TrainedModel], Decoded]:
            def read(trained: TrainedModel) -> Decoded:
                found = decoded_file(trained, uploads[number].content, NAME)
                remarks[number] = found.remark
                return found

            return read

        predictions: Iterable[Prediction] = predict_images(
            trained,
            [Readable(NAME, reading(number)) for number in range(len(uploads))],
            batch_size=len(uploads),
            tta=self.settings.tta,
            also=Also(self.rejection),
        )
        if self.sets:
            predictions = with_sets(predictions, self.sets.threshold, trained.classes)
        for prediction, upload, remark in zip(predictions, uploads, remarks, strict=True):
            if prediction.probabilities is None:
                yield prediction.reason
                continue
            answer = self._answer(prediction, remark)
            if upload.explain:
                answer["explanation"] = self._explanation(upload.content, prediction)
            yield answer
        del trained.remarks[:]

    def _answer(self, prediction: Prediction, remark: int) -> dict[str, Any]:
        classes, found = self.trained.classes, prediction.probabilities
        assert found is not None
        predicted = [classes[label] for label in prediction.predicted]
        answer: dict[str, Any] = {"label": predicted[0] if predicted else None}
        if prediction.has_several:
            answer = {"labels": predicted}
        in_set = prediction.label_set
        return answer | {
            "probabilities": dict(zip(classes, found.tolist(), strict=True)),
            "label_set": None if in_set is None else [classes[label] for label in in_set],
            "unknown": prediction.is_unknown if self.rejection else None,
            "score": prediction.score,
            "notes": notes_on([remark]),
        }

    def _explanation(self, content: bytes, prediction: Prediction) -> dict[str, Any]:
        """Grad-CAM of the predicted class: a picture as a data URL; or why there is none."""
        trained = self.trained
        if trained.voters:
            return {"why": "the run is several models, each of which sees its own"}
        inputs = trained.inputs([decoded_file(trained, content, NAME).image])
        if inputs.ndim == 5:
            inputs = inputs[:, 4]  # the middle one of FiveCrop and TenCrop
        raw = prediction.raw
        assert raw is not None
        label = prediction.predicted[0] if prediction.predicted else int(raw.argmax())
        try:
            with trained.precision.autocast():
                heat, layer = grad_cam(trained.model, inputs, label)
        except ValueError as error:
            return {"why": str(error)}
        seen = to_picture(as_pictures(trained.pipeline, inputs.cpu())[0])
        return {
            "class": trained.classes[label],
            "layer": layer,
            "has_evidence": bool(heat.any()),
            "grad_cam": _data_url(png(overlay(seen, heat))),
        }


def _data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
