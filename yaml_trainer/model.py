"""A run's model in Python: ``load`` a run, ``predict`` images. Imports no torch before it loads."""

import functools
import os
from array import array
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaml_trainer.answer import Answer
from yaml_trainer.errors import (
    SHOWN_FAULTS,
    InputError,
    TrainerError,
    all_errors,
    known_errors,
)
from yaml_trainer.process_state import kept

if TYPE_CHECKING:
    from trainer.build.trained import TrainedModel
    from trainer.inference.prediction import LabelSets, Prediction
    from trainer.run.known import Rejection
    from yaml_trainer.pictures import Pictures

RunPath = str | os.PathLike[str]


class Model:
    """A run's best model, ready to predict; ``load`` makes it. It may be used by several threads.

    classes: the names of the classes. folder: the run's; of several runs the first one's.
    """

    def __init__(self, models: "Sequence[TrainedModel]") -> None:
        self._models = tuple(models)
        self._one = self._models[0]
        self.classes: tuple[str, ...] = self._one.classes
        self.folder: Path = self._one.run
        self._remarks = Counter[int]()
        self._sets_of = functools.lru_cache(8)(self._measured_sets)
        self._rejection_of = functools.lru_cache(8)(self._measured_rejection)

    def __repr__(self) -> str:
        """Returns the run and the number of classes."""
        more = f" and {len(self._models) - 1} more" if len(self._models) > 1 else ""
        return f"Model({str(self.folder)!r}{more}, {len(self.classes)} classes)"

    @property
    def notes(self) -> list[str]:
        """What the command would tell: which weights these are, and how images were converted.

        The latter with the number of images, over all that were predicted so far.
        """
        from datasets.bands import notes_on_bits
        from datasets.images import notes_on
        from trainer.build.trained import notes_on_model

        told = [note for one in self._models for note in notes_on_model(one)]
        remarks = list(self._remarks.elements())
        return [*told, *notes_on(remarks), *notes_on_bits(remarks)]

    def predict(
        self,
        images: "Pictures",
        *,
        batch_size: int | None = None,
        tta: int | str | None = None,
        sets: float | str | Fraction | None = None,
        reject: float | str | Fraction | None = None,
        score: str | None = None,
        calibrated: bool = True,
    ) -> list[Answer]:
        """Predict images, as ``python -m trainer.predict`` predicts their files.

        Args:
            images: one image, or an iterable of them: a path, the bytes of a file, a PIL image,
                a NumPy array (H, W, C), (C, H, W) or (H, W), a tensor (C, H, W) or (H, W). Arrays
                and tensors hold decoded pixels: uint8, 0 to 255; uint16 too if the run has
                ``bits: 16``. One of four dimensions is several images.
            batch_size: images at once; None: the run's loader.eval_batch_size, or 32.
            tta: "none", "flip", "flip+shifts", or the number of views: the image and random draws
                of the training transforms. None: the run's evaluation.tta.
            sets: also give sets of classes, with the true one in this share of images: 0.9.
            reject: also say which images are unknown, keeping this share of known ones: 0.95.
            score: how ``reject`` measures: "distance" (None), "energy" ...
            calibrated: whether probabilities have the run's temperature, if it has one.

        Returns:
            An Answer for each image, in their order; for one image a list of one.

        Raises:
            InputError: (a ValueError) an option or an image cannot be used. All images are tried;
                ``faults`` of the error has the reasons, ``answers`` those of the other images.
            TrainerError: the run does not allow what is asked, such as ``sets`` without val.
        """
        from trainer.inference.prediction import Also, predict_as_one, predict_images, with_sets
        from yaml_trainer.pictures import sources_of

        views = _views(tta)
        options: dict[str, Any] = {"batch_size": _batch_size(batch_size), "tta": views}
        models = [replace(one, remarks=array("H")) for one in self._models]
        one = models[0] if calibrated else replace(models[0], calibration=None)
        with kept(one.config), known_errors():
            threshold = None
            if sets is not None:
                threshold = self._sets_of(_level("sets", sets), views, calibrated).threshold
            rejection = None
            if reject is not None:
                rejection = self._rejection_of(_level("reject", reject), _score(score), views)
            elif score is not None:
                raise InputError("score: says how reject measures; give reject too, such as 0.95")
            sources = sources_of(images)
            found: Generator[Prediction, None, None]
            if len(models) == 1:
                found = predict_images(one, sources, **options, also=Also(rejection))
            else:
                found = predict_as_one(models, sources, **options)
            with closing(found):
                each: Iterable[Prediction] = found
                if threshold is not None:
                    each = with_sets(found, threshold, self.classes)
                try:
                    return self._answers(each)
                finally:
                    self._remarks.update(one.remarks)

    def _answers(self, predictions: "Iterable[Prediction]") -> list[Answer]:
        answers: list[Answer | None] = []
        names: dict[int, str] = {}
        reasons: dict[int, str] = {}
        for number, prediction in enumerate(predictions):
            if prediction.probabilities is None:
                names[number], reasons[number] = prediction.path, prediction.reason
                answers.append(None)
            else:
                answers.append(self._answer(prediction))
        if reasons:
            _raise_faults(names, reasons, answers)
        return [answer for answer in answers if answer is not None]

    def _answer(self, one: "Prediction") -> Answer:
        assert one.probabilities is not None
        labels = tuple(self.classes[label] for label in one.predicted)
        in_set = one.label_set
        return Answer(
            label=labels[0] if labels else "",
            labels=labels,
            probabilities=dict(zip(self.classes, one.probabilities.tolist(), strict=True)),
            label_set=None if in_set is None else tuple(self.classes[label] for label in in_set),
            is_unknown=one.is_unknown,
            score=one.score,
        )

    def _measured_sets(
        self, level: Fraction, tta: int | str | None, calibrated: bool
    ) -> "LabelSets":
        from trainer.inference.prediction import label_sets_of

        self._require_one("sets", "python -m trainer.combine makes one of these")
        one = self._one if calibrated else replace(self._one, calibration=None)
        return label_sets_of(one, level, tta)

    def _measured_rejection(
        self, level: Fraction, score: str | None, tta: int | str | None
    ) -> "Rejection":
        from trainer.components import SCORES
        from trainer.inference.prediction import choose_rejection

        if score is not None and score not in SCORES:
            raise InputError(f"score: {score!r}; expected {' or '.join(SCORES)}")
        self._require_one("reject", "it takes the scores of one model")
        return choose_rejection(self._one, level, score, tta)

    def _require_one(self, option: str, why: str) -> None:
        if len(self._models) > 1:
            raise TrainerError(f"{option} needs one run, and these are {len(self._models)}; {why}.")


def load(
    run: RunPath | Sequence[RunPath],
    *,
    device: str | None = None,
    threads: int | None = None,
) -> Model:
    """Load the best model of a run.

    Args:
        run: the run's folder, or a folder of runs for its newest; of several runs, or a sweep's
            folder, the mean of the probabilities.
        device: as ``train.device``: "auto", "cpu", "cuda", "cuda:1", "mps". None: the run's.
        threads: as ``train.threads``: threads of a computation on the CPU. None: the run's.

    Raises:
        TrainerError: there is no such run, or its folder, device or settings cannot be used.
    """
    texts = [run] if isinstance(run, str | os.PathLike) else run
    if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable):
        raise TrainerError(f"run: {run!r}; expected the folder of a run, or a list of such.")
    texts = list(texts)
    if not texts:
        raise TrainerError("run: an empty list; expected the folder of a run.")
    if strange := [text for text in texts if not isinstance(text, str | os.PathLike)]:
        raise TrainerError(f"run: {strange[0]!r} in the list; expected the folder of a run.")
    settings = {"train.device": device, "train.threads": threads}
    overrides = [f"{key}={value}" for key, value in settings.items() if value is not None]
    with all_errors():
        from trainer.config import load_config
        from trainer.run.folder import find_runs

        runs = find_runs([os.fspath(text) for text in texts])
        configs = [load_config(one / "config.yaml", overrides) for one in runs]
    with kept(), all_errors():
        from trainer.build.trained import load_with
        from trainer.inference.prediction import require_same_classes

        models = [load_with(config, one) for config, one in zip(configs, runs, strict=True)]
        require_same_classes(models)
    return Model(models)


def _raise_faults(
    names: dict[int, str], reasons: dict[int, str], answers: "list[Answer | None]"
) -> None:
    from trainer.process.errors import NO_ANSWER
    from trainer.process.exits import Exit

    lines = [f"{names[number]}: {reason}" for number, reason in reasons.items()]
    if (more := len(lines) - SHOWN_FAULTS) > 0:
        lines = [*lines[:SHOWN_FAULTS], f"... and {more:,} more"]
    if len(answers) > 1:
        lines.insert(0, f"{len(reasons):,} of {len(answers):,} images cannot be predicted:")
    if any(NO_ANSWER in reason for reason in reasons.values()):
        raise TrainerError("\n".join(lines), Exit.NON_FINITE)
    raise InputError("\n".join(lines), reasons, answers)


def _level(option: str, value: float | str | Fraction) -> Fraction:
    """A share between 0 and 1, as exactly as it was written."""
    try:
        level = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        level = Fraction(0)
    if not 0 < level < 1:
        raise InputError(f"{option}: {value!r}; expected a number between 0 and 1, such as 0.9")
    return level


def _views(tta: int | str | None) -> int | str | None:
    if tta is None or (isinstance(tta, str) and tta in ("none", "flip", "flip+shifts")):
        return tta
    if (number := _whole(tta)) >= 2:
        return number
    raise InputError(f"tta: {tta!r}; expected none, flip, flip+shifts, or a number of views from 2")


def _score(score: str | None) -> str | None:
    if score is None or isinstance(score, str):
        return score
    raise InputError(f"score: {score!r}; expected a name, such as 'distance'")


def _batch_size(size: int | None) -> int | None:
    if size is None:
        return None
    if (number := _whole(size)) >= 1:
        return number
    raise InputError(f"batch_size: {size!r}; expected a whole number from 1 on")


def _whole(value: object) -> int:
    """A whole number of Python or NumPy; -1 of anything else."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        return -1
    return int(value)
