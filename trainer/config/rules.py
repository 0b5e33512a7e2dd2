"""The rules about values that do not go together in a configuration; imports no torch."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from trainer.components import METRICS, OF_ONE_CLASS, OF_SEVERAL_LABELS, SCALAR
from trainer.components.own import NO_FILE, OwnFile
from trainer.config.components import NESTING, PRETRAINED, no_pretrained
from trainer.config.document import OWN, component_name
from trainer.config.json_schema import Finding
from trainer.config.yaml_text import Place
from trainer.process.words import bare, listed, nearest, shortened, suggestion
from transforms import MIXING, RANDOM

_STEPS_WITHOUT_RATE = ("ASGD", "Rprop")  # their steps' sizes are states of their own
_SEVERAL_CROPS = ("FiveCrop", "TenCrop")
_OF_8_BITS = ("RandAugment", "AutoAugment", "TrivialAugmentWide")
_NO_GREY_LEVELS = ("Normalize", "LinearTransformation", "ToDtype")  # after these, images are floats


def rule_findings(data: dict[str, Any], own: OwnFile = NO_FILE) -> Iterator[Finding]:
    """Every fault of values that are right by themselves but do not go together."""
    rules = _split_rules, _model_rules, _loss_rules, _train_rules, _group_rules, _size_rules
    for rule in (*rules, _table_rules):
        yield from rule(data)
    yield from _transform_rules(data, own)
    yield from _metric_rules(data, own)
    dataset = data.get("dataset")
    table = dataset if isinstance(dataset, dict) and not dataset.get("one_hot") else {}
    if table.get("label_columns") or table.get("label_separator"):
        yield from several_labels_findings(data)


def several_labels_findings(data: dict[str, Any]) -> Iterator[Finding]:
    """Every fault of values that do not go with data whose images may have several labels."""
    loss = component_name(data.get("loss", "CrossEntropyLoss"))
    if loss is not None and loss not in OF_SEVERAL_LABELS:
        message = f"{loss} needs one class an image, and these images may have several labels"
        more = listed(OF_SEVERAL_LABELS[1:])
        yield Finding(("loss",), f"{message}; write {OF_SEVERAL_LABELS[0]} (or {more})")
    given = data.get("loss")
    if isinstance(given, dict) and given.get("weight") is not None:
        message = "weighs the one class of an image, and these images may have several labels"
        yield Finding(("loss", "weight"), f"{message}; write pos_weight: balanced", at_key=True)
    for index, metric in enumerate(_items(data, "metrics")):
        if (name := component_name(metric)) in OF_ONE_CLASS:
            message = f"{name} needs one class an image, and these images may have several labels"
            yield Finding(("metrics", index), f"{message}; remove it")


def _items(data: Any, *path: str) -> list[Any]:
    """The list at ``path``; empty if the file has something else there."""
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, list) else []


def _split_rules(data: dict[str, Any]) -> Iterator[Finding]:
    split = data.get("split")
    if not isinstance(split, dict):
        return
    given = {key for key in ("folds", "fold", "ratios") if split.get(key) is not None}
    folds, fold = split.get("folds"), split.get("fold")
    if "fold" in given and "folds" not in given:
        yield Finding(("split", "folds"), "'folds' is missing beside 'fold'; such as folds: 5")
    elif "folds" in given and "fold" not in given:
        message = "'fold' is missing beside 'folds': which of them, from 0, is held out"
        yield Finding(("split", "fold"), message)
    elif type(folds) is int and type(fold) is int and fold >= folds >= 2:
        message = f"there are folds 0 to {folds - 1} (split.folds), got {fold}"
        yield Finding(("split", "fold"), message)
    yield from _grouping_rules(data, split)
    if {"folds", "ratios"} <= given:
        message = "play no part where 'folds' cuts into equal shares; remove one of the two"
        yield Finding(("split", "ratios"), message, at_key=True)


def _table_rules(data: dict[str, Any]) -> Iterator[Finding]:
    dataset = data.get("dataset")
    given = dataset if isinstance(dataset, dict) else {}
    if component_name(dataset) == "CSVImages" and not given.get("csv"):
        message = "'csv' is missing; expected the table that lists the images, such as labels.csv"
        yield Finding(("dataset", "csv"), message)


def _grouping_rules(data: dict[str, Any], split: dict[str, Any]) -> Iterator[Finding]:
    group, place = split.get("group"), ("split", "group")
    by_name = "reads all images first, and by: name none; write by: content"
    if group == "duplicates" and split.get("by") == "name":
        yield Finding(("split", "by"), f"group: duplicates {by_name}")
    dataset = data.get("dataset")
    if isinstance(dataset, dict) and dataset.get("fixes") and split.get("by") == "name":
        yield Finding(("split", "by"), f"dataset.fixes {by_name}")
    if isinstance(group, dict) and len(group) != 1:
        yield Finding(place, "expected one of column, folder and regex, as in {column: patient}")
    pattern = group.get("regex") if isinstance(group, dict) else None
    if isinstance(pattern, str) and (fault := _fault_of_pattern(pattern)):
        yield Finding((*place, "regex"), fault)


def _fault_of_pattern(pattern: str) -> str:
    """Why a text cannot find groups, or ""."""
    if len(pattern) > 1000:
        return f"has {len(pattern):,} characters; expected at most 1,000"
    try:
        if re.compile(pattern).groups:
            return ""
    except (re.error, RecursionError, OverflowError) as error:
        return f"is no regular expression: {error}"
    return r"has no parentheses; the first pair finds the name of the group, as in '^([^_]+)_'"


def _group_rules(data: dict[str, Any]) -> Iterator[Finding]:
    for index, group in enumerate(_items(data, "optimizer", "groups")):
        if isinstance(group, dict) and {"lr", "lr_scale"} <= group.keys():
            message = "sets the rate that 'lr' sets too; remove one of the two"
            yield Finding(("optimizer", "groups", index, "lr_scale"), message, at_key=True)
        name = component_name(data.get("optimizer"))
        if isinstance(group, dict) and "until" in group and name in _STEPS_WITHOUT_RATE:
            message = f"{name} goes on where the learning rate is 0; remove 'until'"
            yield Finding(("optimizer", "groups", index, "until"), message, at_key=True)


def _transform_rules(data: dict[str, Any], own: OwnFile) -> Iterator[Finding]:
    section, dataset = data.get("transforms"), data.get("dataset")
    has_16_bits = isinstance(dataset, dict) and dataset.get("bits") == 16
    for side in ("train", "eval"):
        if isinstance(section, dict) and "both" not in section and side not in section:
            wanted = "a list (each a transform as {name: ..., ...}), or 'both' for shared ones"
            yield Finding(("transforms", side), f"'{side}' is missing; expected {wanted}")
    for side in ("train", "eval"):
        in_grey_levels = True
        for index, component in enumerate(_items(data, "transforms", side)):
            place = ("transforms", side, index)
            yield from _transform_rule(component, place, side, {*RANDOM, *MIXING, *own.random})
            in_grey_levels &= component_name(component) not in _NO_GREY_LEVELS
            if in_grey_levels:
                yield from _fill_rule(component, place)
            if has_16_bits:
                yield from _rule_of_16_bits(component, place, in_grey_levels)


def _rule_of_16_bits(component: Any, place: Place, in_grey_levels: bool) -> Iterator[Finding]:
    """What works on 8 bits only, or fills with one of 255 grey levels."""
    name = component_name(component)
    if name in _OF_8_BITS:
        message = f"{name} works on images of 8 bits only; remove it, or dataset.bits"
        yield Finding((*place, "name"), message)
    given: Any = component.get("fill") if isinstance(component, dict) else None
    if given not in (None, 0, [0]) and in_grey_levels and name != "Letterbox":
        message = f"with dataset.bits: 16 only 0, black, is possible before Normalize, got {given}"
        yield Finding((*place, "fill"), message)
    for index, inner in enumerate(_items(component, "transforms")):
        yield from _rule_of_16_bits(inner, (*place, "transforms", index), in_grey_levels)


def _fill_rule(component: Any, place: Place) -> Iterator[Finding]:
    """Fills of images of 0 to 255, as all are before Normalize."""
    given: Any = component.get("fill") if isinstance(component, dict) else None
    listed_ones = given if isinstance(given, list) else [given]
    numbers = [number for number in listed_ones if type(number) in (int, float)]
    if any(not 0 <= number <= 255 for number in numbers):
        message = f"expected grey levels from 0 to 255 before Normalize, got {given}"
        yield Finding((*place, "fill"), message)
    for index, inner in enumerate(_items(component, "transforms")):
        yield from _fill_rule(inner, (*place, "transforms", index))


def _transform_rule(
    component: Any, place: Place, side: str, random: Collection[str], outer: str = ""
) -> Iterator[Finding]:
    name = component_name(component)
    reason = ""
    if component == OWN:
        yield Finding(place, f"'{OWN}' stands once, in transforms.both; remove it here")
    if side == "eval" and name in random:
        reason = "is random, but evaluation must always give the same; move it to transforms.train"
    elif side == "train" and name in _SEVERAL_CROPS:
        reason = "gives several crops of an image, which only evaluation averages; use RandomCrop"
    elif outer and name in MIXING:
        reason = f"mixes whole batches, the others in {outer} change one image; separate them"
    if reason:
        yield Finding((*place, "name"), f"{name} {reason}")
    elif name in NESTING:
        inner = _items(component, "transforms")
        all_mix = all(component_name(item) in MIXING for item in inner)  # as [MixUp, CutMix]
        for index, item in enumerate(inner):
            outer = "" if all_mix else str(name)
            inner_place = (*place, "transforms", index)
            yield from _transform_rule(item, inner_place, side, random, outer)


def _model_rules(data: dict[str, Any]) -> Iterator[Finding]:
    name, model = component_name(data.get("model")), data.get("model")
    if not isinstance(model, dict) or name is None:
        return
    weights = model.get("weights")
    if weights is not None and model.get("init") is not None:
        message = "would replace the weights that 'weights' loads; remove one of the two"
        yield Finding(("model", "init"), message)
    if model.get("init") == {}:
        message = "names no layers; write one way for the model, or a way for each PATTERN, or null"
        yield Finding(("model", "init"), message)
    if "/" in name and "pretrained" in model:
        how = "write weights: DEFAULT" if model["pretrained"] is True else "remove it"
        yield Finding(("model", "pretrained"), f"is no argument here; {how}", at_key=True)
    if not isinstance(weights, str) or bare(weights) not in PRETRAINED or Path(weights).exists():
        return
    if "/" not in name:
        yield Finding(("model", "weights"), no_pretrained(name))
    elif weights != "DEFAULT":
        message = f"'{weights}' is no file and no name of weights; write weights: DEFAULT"
        yield Finding(("model", "weights"), message)


def _loss_rules(data: dict[str, Any]) -> Iterator[Finding]:
    weight = _items(data, "loss", "weight")
    if weight and not any(weight):
        message = "all class weights are 0, so no image counts; write at least one above 0"
        yield Finding(("loss", "weight"), message)


def _size_rules(data: dict[str, Any]) -> Iterator[Finding]:
    train = data.get("train")
    sizes = train.get("sizes") if isinstance(train, dict) else None
    before = -1
    for key in sizes if isinstance(sizes, dict) else ():
        place = ("train", "sizes", key)
        found = re.fullmatch("(0|[1-9][0-9]{0,8})ep", str(key))
        first = int(found[1]) if found else before
        if found is None:
            message = (
                f"expected the epoch from which on it counts, from 0ep, got '{shortened(key)}'"
            )
            yield Finding(place, message, at_key=True)
        elif before < 0 < first:
            yield Finding(place, f"the first size counts from 0ep on, not from {key}", at_key=True)
        elif first <= before:
            yield Finding(place, f"comes before {before}ep; write it above it", at_key=True)
        before = max(before, first)
    if sizes == {}:
        message = "holds no size; write {0ep: 24, 4ep: 32}, or null for that of the transforms"
        yield Finding(("train", "sizes"), message)


def _train_rules(data: dict[str, Any]) -> Iterator[Finding]:
    train = data.get("train")
    if not isinstance(train, dict) or train.get("cuda_graphs") is not True:
        return
    others = {"compile": False, "accumulate": 1, "activation_checkpointing": False}
    for key, off in others.items():
        if train.get(key, off) not in (off, None):
            message = f"does not go with {key}; write train.{key}={str(off).lower()}"
            also = ", or train.compile=reduce-overhead alone" if key == "compile" else ""
            yield Finding(("train", "cuda_graphs"), f"{message}{also}, or train.cuda_graphs=false")


def default_monitor(data: dict[str, Any], own: OwnFile = NO_FILE) -> str:
    """ "val/" and the first metric that is one number; "val/loss" if there is none."""
    names = map(component_name, _items({"metrics": ["accuracy"], **data}, "metrics"))
    scalar = {*SCALAR, *own.names("metric")}
    return f"val/{next((name for name in names if name in scalar), 'loss')}"


def _metric_rules(data: dict[str, Any], own: OwnFile) -> Iterator[Finding]:
    items = _items({"metrics": ["accuracy"], **data}, "metrics")
    scalar, known = {*SCALAR, *own.names("metric")}, [*METRICS, *own.names("metric")]
    names = [nearest(name, known) if (name := component_name(m)) else None for m in items]
    for index, name in enumerate(names):
        if name is not None and name in names[:index]:
            yield Finding(("metrics", index), f"{name} is listed twice; remove one")
    train = data.get("train")
    monitor = train.get("monitor") if isinstance(train, dict) else None
    allowed = ["val/loss", *(f"val/{name}" for name in names if name in scalar)]
    if isinstance(monitor, str) and monitor not in allowed:
        message = f"'{shortened(monitor)}' is not measured{suggestion(monitor, allowed)}"
        choice = listed(dict.fromkeys(allowed))
        yield Finding(("train", "monitor"), f"{message}; allowed are {choice}")
