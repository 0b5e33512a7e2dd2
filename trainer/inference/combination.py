"""Combines runs into one: the mean of their probabilities, or the average of their weights."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.ensemble import Ensemble
from trainer.build.trained import (
    TrainedModel,
    load_with,
    probability_kind,
    tell_which,
    without_weights,
)
from trainer.comparing.predictions import PREDICTIONS
from trainer.components import is_higher_better
from trainer.components.averages import measure_statistics, unfrozen_batch_norms
from trainer.components.calibration import before_and_after, calibrate
from trainer.components.decisions import choose_thresholds
from trainer.config import Config, load_config
from trainer.inference.evaluation import measure_subset, open_part, require_unchanged
from trainer.inference.prediction import order_in, thresholds_of
from trainer.input.data import digest_of_split
from trainer.input.loader import eval_loader
from trainer.input.subset import Subset
from trainer.loop.answers import part_of, write_predictions
from trainer.loop.evaluate import scalars
from trainer.loop.record import set_aside
from trainer.process.errors import NoAnswer, RunError, UsageError
from trainer.process.words import shortened
from trainer.run import disk
from trainer.run.environment import environment, uncommitted_patch
from trainer.run.folder import create_run, keep_own_file, lock_run
from trainer.run.resume import config_for_use, require_own_images
from trainer.run.tensors import save_tensors

MEASURED = ("val", "test")
LONG = 5000  # images, from which on split.json is one line
# What model.json takes over from the first member; all else is measured anew.
OF_FIRST = (
    *("classes", "model", "num_classes", "in_channels", "input_size", "image_channels"),
    *("image_bits", "transforms", "evaluation", "components"),
)

# What must be the same of all members, because one model has it once.
ALIKE: dict[str, Callable[[TrainedModel], object]] = {
    "the set of classes": lambda one: sorted(one.classes),
    "the model's input (channels, height, width)": lambda one: one.input_shape,
    "own components (SHA-256 of the file)": lambda one: one.config.own.sha256,
    "the channels of images": lambda one: one.image_channels,
    "dataset.channels and dataset.bits": lambda one: one.form,
    "the pixels that are decoded (dataset.decode)": lambda one: one.at_least,
    "transforms.eval": lambda one: [step.written for step in one.config.transforms.eval],
    "how probabilities come from logits": lambda one: probability_kind(
        one.config, one.thresholds is not None
    ),
    "train.precision": lambda one: one.config.train.precision,
    "evaluation.tta": lambda one: one.config.evaluation.tta,
}


class Combined(NamedTuple):
    """What was combined: the new run, its result, and the members that are in it.

    left_out: of an average of weights, the runs with which val was not better. images: of val and
    test, how many are common to all members, and the most that one has. calibration: what val says
    about a temperature, in words; "" without val.
    """

    run: Path
    result: dict[str, Any]
    left_out: list[Path]
    images: dict[str, tuple[int, int]]
    monitor: str
    loss: str
    calibration: str


def combine(
    runs: Sequence[Path],
    parent: Path,
    name: str,
    by_weights: bool = False,
    overrides: Sequence[str] = (),
) -> Combined:
    """Write one run, ``parent``/``name``/STAMP, that answers as ``runs`` together.

    All members are in memory at once. val and test are the images that are val (test) of every
    member: no member was trained on them. Raises RunError if the members do not fit together, or
    if no average of weights is better on val than the best member: then nothing is written.
    """
    members = load_members(runs, overrides)
    split, images = common_split(members)
    left_out: list[Path] = []
    if by_weights:
        members, left_out, model = average_weights(members, split)
        card: dict[str, Any] = {"average_of": described(members)}
    else:
        model = ensemble_of(members)
        card = {"members": described(members)}
    first = members[0]
    config = load_config(first.run / "config.yaml", [*overrides, f"name={name}"])
    run = create_run(parent, name)
    try:
        with lock_run(run):
            begin_folder(run, members, split, card, model)
            keep_own_file(config, run)
            result, calibration = measure_as_one(run, load_with(config, run), split)
            disk.write_file(run / "config.yaml", config.dump())  # last: it marks a run
    except BaseException:
        shutil.rmtree(run, ignore_errors=True)
        raise
    monitor = config.train.monitor.removeprefix("val/")
    return Combined(run, result, left_out, images, monitor, config.loss.name, calibration)


def load_members(runs: Sequence[Path], overrides: Sequence[str]) -> list[TrainedModel]:
    """The best weights of each run. Raises RunError with all that keeps them from being one."""
    if len(runs) < 2:
        raise UsageError(f"{runs[0]} is one run; name two or more, or a sweep of several seeds.")
    members = []
    for run in runs:
        config = config_for_use(run, overrides)
        require_own_images(run, config)
        members.append(load_with(config, run))
        tell_which(members[-1])
        if members[-1].voters:
            raise RunError(f"{run} is several models already; name its members themselves.")
    first, faults = members[0], []
    for other in members[1:]:
        for what, of in ALIKE.items():
            if of(first) != of(other):
                own, its = (shortened(str(of(one)), 200) for one in (first, other))
                faults.append(f"{other.run}: {what}: {its}, but {own} in {first.run}")
    if faults:
        raise RunError("\n".join(["these runs cannot answer as one model", *faults]))
    return members


def common_split(
    members: Sequence[TrainedModel],
) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """The content of split.json: val and test are those of every member, train that of any.

    Also of val and test: how many images are common, and the most that a member has.
    """
    splits = []
    for one in members:
        splits.append(disk.read_json(one.run / "split.json", disk.MAX_SPLIT))
        require_unchanged(one.run, splits[-1])
    first = splits[0]
    for one, its in zip(members, splits, strict=True):
        if its.get("fixes") != first.get("fixes"):
            raise RunError(f"{one.run} and {members[0].run} have other corrections of labels")
    common = {
        part: {
            image: known
            for image, known in first[part].items()
            if all(split[part].get(image) == known for split in splits)
        }
        for part in MEASURED
    }
    train = {image: known for split in splits for image, known in split["train"].items()}
    head = {
        key: value
        for key, value in first.items()
        if key not in ("train", *MEASURED) and all(split.get(key) == value for split in splits)
    }
    images = {part: (len(common[part]), max(len(s[part]) for s in splits)) for part in MEASURED}
    return head | {"train": train} | common, images


def ensemble_of(members: Sequence[TrainedModel]) -> Ensemble:
    """The model that answers with the mean of the members' probabilities."""
    first = members[0]
    orders = [order_in(one, first.classes) for one in members]
    kind = probability_kind(first.config, first.thresholds is not None)
    return Ensemble([one.model for one in members], kind, orders)


def described(members: Sequence[TrainedModel]) -> list[dict[str, Any]]:
    """What model.json and result.json hold of each member."""
    return [
        {
            "run": str(one.run),
            "model": without_weights(one.config).model.model_dump(mode="json"),
            "weights": {"sha256": one.digest},
            "epoch": one.epoch,
            "seed": one.config.seed,
            "order": order_in(one, members[0].classes),
        }
        for one in members
    ]


def begin_folder(
    run: Path,
    members: Sequence[TrainedModel],
    split: Mapping[str, Any],
    card: Mapping[str, Any],
    model: nn.Module,
) -> None:
    """Write the files from which ``load_with`` loads the run, and those about the machine."""
    first, thresholds = members[0], thresholds_of(members)
    old = disk.read_json(first.run / "model.json")
    kept = {key: old[key] for key in OF_FIRST if key in old}
    if thresholds is not None:
        kept["thresholds"] = thresholds.tolist()
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    entry = save_tensors(run / "model.pt", weights)
    disk.write_json(run / "model.json", {**kept, **card, "metrics": {}, "weights": entry})
    is_long = len(split["train"]) >= LONG
    (disk.write_long_json if is_long else disk.write_json)(run / "split.json", split)
    disk.copy_file(first.run / "data_path.json", run / "data_path.json")
    disk.write_json(run / "environment.json", environment(first.device))
    disk.write_file(run / "uncommitted.patch", uncommitted_patch())
    disk.write_file(run / "metrics.jsonl", "")
    results = [disk.read_json(one.run / "result.json") for one in members]
    begun = {
        "status": "done",
        "name": run.parent.name,
        "seed": first.config.seed,
        "dataset": about_images(first.run, split),
        "split": digest_of_split(dict(split)),
        **{key: split[key] for key in ("folds", "fold", "group", "fixes") if key in split},
        "epochs": max((r.get("epochs") or 0 for r in results), default=0),
        "train_seconds": sum(r.get("train_seconds") or 0.0 for r in results),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "mean_of": "probabilities" if "members" in card else "weights",
        "members": [
            about | numbers_on(split, one)
            for about, one in zip(described(members), members, strict=True)
        ],
    }
    disk.write_json(run / "result.json", begun)


def about_images(run: Path, split: Mapping[str, Any]) -> dict[str, Any]:
    """What result.json tells of the data: as that of a member, with the numbers of this split."""
    known = disk.read_json(run / "result.json").get("dataset")
    images = {part: len(split[part]) for part in ("train", *MEASURED)}
    return {**(known if isinstance(known, dict) else {}), "images": images}


def numbers_on(split: Mapping[str, Any], member: TrainedModel) -> dict[str, dict[str, float]]:
    """A member's own val and test, for the parts that have no other images for it."""
    result = disk.read_json(member.run / "result.json")
    its = disk.read_json(member.run / "split.json", disk.MAX_SPLIT)
    best = {k.removeprefix("val/"): v for k, v in (result.get("best") or {}).items() if "val/" in k}
    found = {"val": result.get("val") or best, "test": scalars(result.get("test") or {})}
    return {part: found[part] for part in MEASURED if its[part] == split[part] and found[part]}


def measure_as_one(
    run: Path, trained: TrainedModel, split: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """Measure val and test, write model.json, predictions.csv and result.json, and return that.

    Also what val says about a temperature, in words.
    The thresholds of several labels are chosen on val, and the temperature is fitted, as in
    training.
    """
    result, parts = disk.read_json(run / "result.json"), []
    config, card = trained.config, disk.read_json(run / "model.json")
    tta = config.evaluation.tta
    for part in filter(split.get, MEASURED):
        subset, loss_fn = open_part(trained, split, part)
        if part == "val":
            trained = with_thresholds(trained, subset)
        found = measure_subset(trained, config, subset, loss_fn, part)
        assert found.losses is not None  # there is a loss function
        parts.append(part_of(subset, part, split[part], found.answers, found.losses))
        if part == "val":
            result["val"] = scalars(found.values)
            result["best"] = {f"val/{name}": value for name, value in result["val"].items()}
            fitted = calibrate(config.loss.name, found.logits, found.answers.labels)
            trained = replace(trained, calibration=fitted)
            result["calibration"] = card["calibration"] = fitted._asdict()
            continue
        result["test"] = set_aside(run, found.values, trained.classes)
        if trained.calibration is not None:
            how_true = before_and_after(found.answers, found.calibrated)
            result["calibration"] = trained.calibration._asdict() | {"test": how_true}
        if tta:
            plain = measure_subset(trained, without_tta(config), subset, loss_fn, part)
            result |= {"tta": tta, "test_plain": scalars(plain.values)}
    if trained.thresholds is not None:
        card["thresholds"] = trained.thresholds.tolist()
    write_predictions(run / PREDICTIONS, trained.classes, parts)
    disk.write_json(run / "model.json", card | {"metrics": result.get("best", {})})
    disk.write_json(run / "result.json", result)
    return result, "" if trained.calibration is None else trained.calibration.in_words


def with_thresholds(trained: TrainedModel, val: Subset) -> TrainedModel:
    """The model with the best thresholds on val, as in training; of one label, as it is."""
    if trained.thresholds is None:
        return trained
    answers = measure_subset(trained, trained.config, val, None, "val").answers
    chosen = choose_thresholds(answers.probabilities, answers.labels)
    return replace(trained, thresholds=chosen)


def without_tta(config: Config) -> Config:
    """The configuration without test-time augmentation."""
    evaluation = config.evaluation.model_copy(update={"tta": None})
    return config.model_copy(update={"evaluation": evaluation})


def average_weights(
    members: Sequence[TrainedModel], split: dict[str, Any]
) -> tuple[list[TrainedModel], list[Path], nn.Module]:
    """The members whose average of weights is best on val, those left out, and the averaged model.

    Greedily: the best member on val first, then each next one stays in if val becomes better by
    ``train.monitor``, or equal with a lower loss. Source: Wortsman et al., 2022, "Model soups",
    recipe 1. Batch norm's statistics are measured on the training images, with the eval transforms.
    Raises RunError if no average is better than the best member.
    """
    require_same_weights(members, split)
    model = members[0].model
    weights = [{k: v.clone() for k, v in one.model.state_dict().items()} for one in members]
    judge = _Judge(members[0], split)
    scores = [judge(state, is_average=False) for state in weights]
    order = sorted(range(len(members)), key=scores.__getitem__, reverse=True)
    taken, best, told = order[:1], scores[order[0]], []
    for number in order[1:]:
        score = judge(average([weights[one] for one in [*taken, number]]), is_average=True)
        told.append(f"  with {members[number].run}: {judge.shown(score)}")
        if score > best:
            taken, best = [*taken, number], score
    if len(taken) == 1:
        raise RunError(
            "\n".join(
                [
                    "no average of the weights is better on val than the best run alone:",
                    f"  {members[taken[0]].run}: {judge.shown(best)}",
                    *told,
                    "Nothing was written. Weights average well where runs went on from the same "
                    "weights (model.weights); leave out --weights for the mean of probabilities.",
                ]
            )
        )
    judge(average([weights[one] for one in taken]), is_average=True)  # the model holds it now
    left_out = [one.run for number, one in enumerate(members) if number not in taken]
    return [members[number] for number in taken], left_out, model


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of the floating-point tensors, computed in float64; others as in the first."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }


def require_same_weights(members: Sequence[TrainedModel], split: Mapping[str, Any]) -> None:
    """Raise RunError unless the members differ in their weights only, and share val images."""
    first = members[0]
    forms = [{k: v.shape for k, v in one.model.state_dict().items()} for one in members]
    for one, form in zip(members, forms, strict=True):
        what = ""
        if without_weights(one.config).model != without_weights(first.config).model:
            what = "the model"
        elif one.classes != first.classes:
            what = "the order of classes"
        elif form != forms[0]:
            what = "the shape of its weights"
        elif one.config.train.monitor != first.config.train.monitor:
            what = "train.monitor"
        if what:
            raise RunError(f"{one.run} and {first.run}: {what} differs; leave out --weights.")
    if not split["val"]:
        raise RunError("no image is val of every run, so no average can be judged; no --weights.")


class _Judge:
    """How good weights are on val: (the monitored number, more is better; -loss)."""

    def __init__(self, trained: TrainedModel, split: dict[str, Any]) -> None:
        self.trained, self.monitor = trained, trained.config.train.monitor.removeprefix("val/")
        self.sign = 1 if is_higher_better(self.monitor) else -1
        self.val, self.loss_fn = open_part(trained, split, "val")
        self.train = None
        if unfrozen_batch_norms(trained.model):
            self.train, _ = open_part(trained, split, "train")
        trained.model.eval()

    def __call__(self, state: Mapping[str, Tensor], is_average: bool) -> tuple[float, float]:
        """Load the weights; of an average, measure batch norm's statistics first."""
        trained = self.trained
        trained.model.load_state_dict(state)
        if is_average and self.train is not None:
            layers = unfrozen_batch_norms(trained.model)
            trained.model.eval()
            for layer in layers:  # dropout stays off
                layer.train()
            config, layout = trained.config, trained.channels_last
            with closing(eval_loader(config, self.train, trained.device, layout)) as loader:
                batches = (  # crops are images; one image alone has no variance
                    (images.flatten(0, -4), labels) for images, labels in loader.epoch()
                )
                several = (batch for batch in batches if len(batch[0]) > 1)
                autocast = trained.precision.autocast
                measure_statistics(trained.model, layers, several, autocast, lambda _: None)
        try:
            trained = with_thresholds(trained, self.val)
            values = measure_subset(trained, trained.config, self.val, self.loss_fn, "val").values
        except NoAnswer:
            return -math.inf, -math.inf
        return self.sign * values[self.monitor], -values["loss"]

    def shown(self, score: tuple[float, float]) -> str:
        """A score in words."""
        if not math.isfinite(score[0]):
            return "no finite answer"
        text = f"val/{self.monitor} {self.sign * score[0]:.4f}"
        return text if self.monitor == "loss" else f"{text}, val/loss {-score[1]:.4f}"
