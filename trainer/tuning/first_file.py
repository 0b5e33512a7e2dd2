"""Writes the first YAML for data: each value is chosen by a rule, and a comment says by which."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets.words import counted
from trainer.build.notes import SCARCE
from trainer.config.document import flow
from trainer.tuning.look import BURST, Sight

SMALL_SIDE = 48  # pixels of a shorter side: up to here, networks for 32 x 32
FEW_TO_TRAIN, SOME_IMAGES, MANY_IMAGES = 500, 5000, 20_000  # training images
INPUT_SIDES = (64, 96, 128, 160, 224)
SIDE_ON_CPU = 128  # at most: the time goes with its square
UNEQUAL = 5  # the largest class has so many times the images of the smallest
# The classes may be characters or directions: their mirror image is another thing.
NO_MIRROR = re.compile(r"\d+([.,]\d+)?|\w|.*(left|right|digit|letter|number|text|sign).*", re.I)


class Recipe(NamedTuple):
    """The values of a YAML's sections that depend on each other; ``why`` is a comment.

    first, train, evaluation: transforms before Normalize: of both, of train, of evaluation.
    side: the size of the model's input, in pixels. edge: how much of it, at each side, is Pad's.
    """

    why: str
    first: list[str]
    train: list[str]
    evaluation: list[str]
    side: int
    batch: int
    lines: list[str]  # model, loss, optimizer, scheduler, evaluation
    epochs: int
    why_epochs: str
    settings: str  # more of ``train``
    drop_last: bool
    edge: int = 0


class Machine(NamedTuple):
    """What decides how much can be computed: a GPU, instructions for bf16."""

    has_gpu: bool
    has_bf16: bool


def choose_recipe(sight: Sight, machine: Machine) -> Recipe:
    """The recipe that suits the number and the size of the pictures."""
    n, is_small = sight.num_train, sight.side <= SMALL_SIDE
    flips = not all(NO_MIRROR.fullmatch(name) for name in sight.dataset.classes)
    if n < FEW_TO_TRAIN or (is_small and (n < SOME_IMAGES or (sight.is_grey and n < MANY_IMAGES))):
        return _lenet(sight, flips)
    if is_small:
        return _compact(sight, flips, machine.has_bf16)
    return _resnet(sight, flips, machine.has_gpu)


def _flip(flips: bool, alternate: bool = False) -> list[str]:
    if not flips:
        return []
    more = ", alternate: true" if alternate else ""
    return [f"{{name: RandomHorizontalFlip{more}}}  # not if left and right matter, as for letters"]


def _to_32(sight: Sight) -> list[str]:
    """The transforms that make pictures 32 x 32: 28 x 28 gets an edge, others are resized."""
    side, edge = sight.side, _edge(sight)
    if edge is None:
        return [f"{{name: Resize, size: [32, 32]}}  # the median of the shorter sides is {side}"]
    size = f"{{name: Resize, size: [{side}, {side}]}}  # all that were looked at have it"
    return [size] + [f"{{name: Pad, padding: {edge}}}  # to 32 x 32"] * bool(edge)


def _edge(sight: Sight) -> int | None:
    """The edge that makes pictures 32 x 32; None if they are resized."""
    side, edge = sight.side, (32 - sight.side) // 2
    is_near = {*sight.sizes} == {(side, side)} and side + 2 * edge == 32 and side >= 24
    return edge if is_near else None


def _lenet(sight: Sight, flips: bool) -> Recipe:
    n, few = sight.num_train, sight.num_train < FEW_TO_TRAIN
    batch, rate, edge = (16, 0.01, 4) if few else (64, 0.05, 2)
    while batch > max(n // 2, 1):  # the training images are counted about
        batch //= 2
    # With few images an epoch has few steps; 300 steps train LeNet.
    epochs = min(max(30, math.ceil(300 * batch / max(n, 1))), 100)
    kind, shipped = ("few", "lenet_rmb") if few else ("small", "lenet_fashion_mnist")
    return Recipe(
        why=f"about {counted(n, 'training image')}, shorter side {sight.side}: {kind}, so LeNet",
        first=_to_32(sight),
        train=[f"{{name: RandomCrop, size: 32, padding: {edge}}}", *_flip(flips and not few)],
        evaluation=[],
        side=32,
        batch=batch,
        lines=[
            f"model: {{name: LeNet}}  # with the rates of configs/{shipped}.yaml",
            "loss: {name: CrossEntropyLoss}",
            f"optimizer: {{name: SGD, lr: {rate}, momentum: 0.9, weight_decay: 0.0005}}",
            "scheduler: {name: CosineAnnealingLR, warmup: 1ep}",
        ],
        epochs=epochs,
        why_epochs="30, or more for 300 steps",
        settings="",
        drop_last=False,
        edge=_edge(sight) or 0,
    )


def _compact(sight: Sight, flips: bool, has_bf16: bool) -> Recipe:
    n, large = sight.num_train, sight.num_train >= MANY_IMAGES
    batch, epochs = (1000, 10) if large else (256, 16)
    shipped = "cifar10_cpu" if large else "resnet_fashion_mnist"
    widths = "[64, 256, 256]" if large and has_bf16 else "[64, 128, 256]"
    half = "  # half the time of [64, 256, 256], as there is no bf16" * (large and not has_bf16)
    muon, bias, head = (0.24, 53, 0.83) if large else (0.12, 13, 0.21)
    tta = ["evaluation: {tta: flip+shifts}"] if flips else []
    of_bias = f"lr: {bias}, momentum: 0.85, weight_decay: 3.8e-5"
    return Recipe(
        why=f"about {counted(n, 'training image')}, shorter side {sight.side}: many small "
        f"ones, so the compact ResNet of configs/{shipped}.yaml",
        first=_to_32(sight),
        train=[
            "{name: RandomCrop, size: 32, padding: 2, padding_mode: reflect}",
            *_flip(flips, alternate=True),
        ],
        evaluation=[],
        side=32,
        batch=batch,
        lines=[
            "model:",
            "  name: CompactResNet",
            f"  widths: {widths}{half}",
            "  depth: 3",
            '  init: {whiten: whiten, "groups.*": dirac}',
            "  freeze: [whiten.weight]",
            "loss: {name: CrossEntropyLoss, label_smoothing: 0.2}",
            "optimizer:",
            f"  {{name: Muon, lr: {muon}, momentum: 0.6, weight_decay: 0.0, ns_steps: 3,",
            "   filters: true, normalise: true, adjust_lr_fn: original, rest: SGD, groups: [",
            f"     {{match: whiten.bias, {of_bias}, until: 3ep}},",
            f'     {{match: "groups.*.bias", {of_bias}}},',
            f"     {{match: head.weight, lr: {head}, momentum: 0.85, weight_decay: 0.0024}}]}}",
            "scheduler:",
            "  {name: OneCycleLR, anneal_strategy: linear, pct_start: 0.0, div_factor: 1,",
            "   final_div_factor: 1.0e+9, cycle_momentum: false}",
            *tta,
        ],
        epochs=epochs,
        why_epochs=f"as in configs/{shipped}.yaml",
        settings=(", sizes: {0ep: 24, 4ep: 32}" if large else "") + ", precision: auto",
        drop_last=True,
        edge=_edge(sight) or 0,
    )


def _resnet(sight: Sight, flips: bool, has_gpu: bool) -> Recipe:
    n, most = sight.num_train, 224 if has_gpu else SIDE_ON_CPU
    side = max(s for s in INPUT_SIDES if s <= max(min(most, sight.side), INPUT_SIDES[0]))
    where = "GPU" if has_gpu else "CPU"
    return Recipe(
        why=f"about {counted(n, 'training image')}, shorter side {sight.side}: photographs, so "
        f"ResNet-18; {side} pixels, at most {most} on a {where}",
        first=[],
        train=[f"{{name: RandomResizedCrop, size: {side}, scale: [0.35, 1.0]}}", *_flip(flips)],
        evaluation=[
            f"{{name: Resize, size: {round(side * 8 / 7)}}}",
            f"{{name: CenterCrop, size: {side}}}",
        ],
        side=side,
        batch=32,
        lines=[
            "model: {name: ResNet, depth: 18}  # with network, torchvision/resnet18 with weights: "
            "DEFAULT is better",
            "loss: {name: CrossEntropyLoss, label_smoothing: 0.1}",
            "optimizer: {name: AdamW, lr: 0.001, weight_decay: 0.05, no_decay: true}"
            "  # as configs/own_photos.yaml, whose accuracy is not measured",
            "scheduler: {name: CosineAnnealingLR, warmup: 1ep}",
        ],
        epochs=40 if n < SOME_IMAGES else 20 if n < MANY_IMAGES else 10,
        why_epochs=f"40 to {SOME_IMAGES:,} images, 20 to {MANY_IMAGES:,}, else 10",
        settings=", precision: auto",
        drop_last=True,
    )


def first_file(
    sight: Sight, name: str, recipe: Recipe, told: Mapping[str, str], arguments: dict[str, Any]
) -> str:
    """The text of the YAML. arguments: of the dataset. told: file, schema, data, time."""
    mean, std = (
        [round(x, 4) for x in row] for row in sight.statistics(recipe.side - 2 * recipe.edge)
    )
    looked = len(sight.pixels)
    joins = sight.is_grey and sight.channels > 1
    grey = ["{name: Grayscale}  # the images are grey: one channel holds all"] * joins
    normalize = (
        f"{{name: Normalize, mean: {mean}, std: {std}}}"
        f"  # of {counted(looked, 'training image')}, as they are resized"
    )
    transforms = {
        "both": [*grey, *recipe.first, "own", normalize],
        "train": recipe.train,
        "eval": recipe.evaluation,
    }
    return "\n".join(
        [
            *([f"# yaml-language-server: $schema={told['schema']}"] * bool(told["schema"])),
            f"# Written by python -m trainer.new for {told['data']}: a start, to be changed.",
            f"#   python -m trainer.train --config {told['file']}",
            f"# Chosen: {recipe.why}.",
            f"name: {flow(name)}",
            "seed: 0",
            _dataset(sight.config.dataset.name, arguments),
            *_split(sight),
            "transforms:",
            *(line for key, steps in transforms.items() if steps for line in _steps(key, steps)),
            *_loader(sight, recipe),
            *(_loss(line, sight) if sight.has_several_labels else line for line in recipe.lines),
            *_metrics(sight),
            f"train: {{epochs: {recipe.epochs}, device: auto{recipe.settings}}}"
            f"  # {recipe.why_epochs}{told['time']}",
            "",
        ]
    )


def _dataset(name: str, arguments: Mapping[str, Any]) -> str:
    skips = arguments.get("on_broken") == "skip"
    comment = "  # on_broken: files that cannot be read are left out and told" * skips
    return f"dataset: {flow({'name': name, **arguments})}{comment}"


def _steps(key: str, steps: list[str]) -> list[str]:
    return [f"  {key}:", *(f"    - {step}" for step in steps)]


def _loss(line: str, sight: Sight) -> str:
    """The loss of images with several labels in place of ``line``, if that is the loss."""
    if not line.startswith("loss:"):
        return line
    rarest, most = min(sight.class_sizes), max(sight.class_sizes)
    more = f", pos_weight: balanced}}  # labels of {rarest:,} to {most:,} images"
    return "loss: {name: BCEWithLogitsLoss" + (more if is_unequal(sight.class_sizes) else "}")


def _split(sight: Sight) -> list[str]:
    official = ", ".join(f"{part} {count:,}" for part, count in sight.parts.items())
    cut = [part for part in ("val", "test") if part not in sight.parts]
    comment = "a hash of each file decides"
    if official:
        comment = f"the data's own parts stay: {official}"
        comment += f"; {' and '.join(cut)} cut from train" if cut else ""
    lines = [f"split: {{ratios: [8, 1, 1], seed: 0}}  # {comment}"]
    if groups := sight.bursts():
        lines += [
            f"# File names tell {groups:,} groups. If one is a burst, a patient or a scene, its "
            "images must share a split: else the test is too easy. Then write:",
            f"# split: {{ratios: [8, 1, 1], seed: 0, group: {{regex: '{BURST}'}}}}",
        ]
    return lines


def _loader(sight: Sight, recipe: Recipe) -> list[str]:
    counts = sight.class_sizes
    drop = ", drop_last: true" * recipe.drop_last
    balance, comment = "", f"for about {counted(sight.num_train, 'training image')}"
    if is_unequal(counts) and not sight.has_several_labels:  # there the loss balances
        balance = ", sampling: balanced"
        comment += f"; balanced: classes of {min(counts):,} to {max(counts):,} images"
    return [f"loader: {{batch_size: {recipe.batch}{drop}{balance}}}  # {comment}"]


def _metrics(sight: Sight) -> list[str]:
    is_scarce = sight.least_held_out < SCARCE
    mean = ", macro_f1" * (not is_scarce)
    why = f"no macro_f1: val or test may have fewer than {SCARCE} images of a class"
    if sight.has_several_labels:
        names, what = f"mean_average_precision, accuracy{mean}", "accuracy: all labels right"
        return [f"metrics: [{names}]  # {what}{f'; {why}' * is_scarce}"]
    if not is_unequal(sight.class_sizes):
        return [f"metrics: [accuracy{mean}]{f'  # {why}' * is_scarce}"]
    return ["metrics: [macro_f1, accuracy]  # the first chooses the epoch; each class counts alike"]


def is_unequal(counts: list[int]) -> bool:
    """Whether the largest class has ``UNEQUAL`` times the images of the smallest."""
    return max(counts) >= UNEQUAL * max(min(counts), 1)


def name_for(path: Path) -> str:
    """A name of a run from the name of a folder or file: letters, digits, '.', '_' and '-'."""
    stem = path.resolve().name if path.is_dir() else path.stem
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-")[:64]
    return plain or "data"
