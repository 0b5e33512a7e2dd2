"""What a YAML may say, but hardly means: settings without effect, transforms that do not fit.

Imports no torch. What depends on the data or the machine is in trainer/build/notes.py.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from trainer.components.duration import Duration
from trainer.config.components import published
from trainer.config.config import Config, components
from trainer.config.settings import CheckpointSettings, Component
from trainer.process.words import listed
from transforms import FIXED

NOTHING = ("ToTensor", "ToImage", "ToDtype")
CROPS = ("CenterCrop", "FiveCrop", "TenCrop")
# They make floats of bytes, and their result is about the same after Resize.
BETTER_AFTER_RESIZE = ("Normalize", "RandomErasing", "MixUp")
NEED_0_TO_1 = ("ColorJitter", "RandAugment", "TrivialAugmentWide", "AutoAugment", "SaltPepperNoise")
# A transform changes no image if these arguments are all 0 or null.
CHANGED_BY = {
    "ColorJitter": ("brightness", "contrast", "saturation", "hue"),
    "Pad": ("padding",),
    "RandAugment": ("num_ops",),
    "RandomAffine": ("degrees", "translate", "scale", "shear"),
    "RandomPerspective": ("distortion_scale",),
    "RandomRotation": ("degrees",),
    "SaltPepperNoise": ("probability",),
}
SHRINKING = ("SGD", "AdamW")  # a step shrinks weights by lr * weight_decay
STEEP = ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Muon")  # a step is about lr


class Note(NamedTuple):
    """What the user should know about the setting at ``path``."""

    path: str
    message: str


def as_lines(config: Config, notes: Iterable[Note]) -> list[str]:
    """The notes as lines for the user: FILE:LINE: path: message; each once."""
    faults = dict.fromkeys(config.fault(*note) for note in notes)  # of both lists' shared items
    return [str(dataclasses.replace(fault, column=None, source=None)) for fault in faults]


def notes_on_config(config: Config) -> Iterator[Note]:
    """Every note that the YAML alone gives."""
    yield from notes_on_transforms(config)
    yield from _on_learning(config)
    yield from _on_length(config)
    yield from _on_own_metric(config)


def notes_on_transforms(config: Config) -> Iterator[Note]:
    """Notes on what train and eval do differently, and on transforms in a wrong place."""
    yield from _in_one_list_only(config)
    for side in ("train", "eval"):
        yield from _in_wrong_order(side, getattr(config.transforms, side))
    for kind, path, component in components(config):
        if kind == "transform":
            yield from _without_effect(path, component)


def _in_one_list_only(config: Config) -> Iterator[Note]:
    """Fixed transforms that stand in train or eval only, or have other arguments there.

    A random crop in train stands for the crop of eval, and RandomResizedCrop for all that resizes.
    """
    at_top = {c.name for c in config.transforms.train}
    every = {c.name for kind, path, c in components(config) if path.startswith("transforms.train")}
    free = {*NOTHING, *(every - at_top)}
    if every & {"RandomCrop", "RandomResizedCrop"}:
        free |= {*CROPS, "Pad"}
    if "RandomResizedCrop" in every:
        free |= {"Resize", "Letterbox"}
    of_any_size = {"Resize", "Letterbox"} if "RandomCrop" in every else set()
    for name in (*FIXED, *config.own.listed.get("FIXED_TRANSFORMS", ())):
        if name in free or name in CROPS[1:]:
            continue
        alike = CROPS if name == "CenterCrop" else (name,)
        train, other = (
            {f"transforms.{side}.{i}": c for i, c in enumerate(listed) if c.name in alike}
            for side, listed in (
                ("train", config.transforms.train),
                ("eval", config.transforms.eval),
            )
        )
        if bool(train) != bool(other):
            path = next(iter(train or other))
            lacks = "transforms.eval" if train else "transforms.train"
            yield Note(
                path,
                f"{(train or other)[path].name} is not in {lacks}: val, test and predictions get "
                "other images than training; write it in both lists or in none",
            )
        elif name not in of_any_size and [*map(_effect, train.values())] != [
            *map(_effect, other.values())
        ]:
            yield Note(
                next(iter(other)),
                f"{name} is another one than in transforms.train: val, test and predictions get "
                "other images than training; write the same in both lists",
            )


def _effect(component: Component) -> dict[str, Any]:
    """The arguments with defaults; two transforms that do the same have equal ones."""
    properties = published().get(f"transform.{component.name}", {}).get("properties", {})
    given = {name: schema["default"] for name, schema in properties.items() if "default" in schema}
    given |= component.arguments
    for name in ("inplace", "vertical_flip"):
        given.pop(name, None)
    is_edge = component.name == "Resize"  # one number is the shorter side
    return {name: _one(value, len_1=is_edge) for name, value in given.items()}


def _one(value: Any, len_1: bool) -> Any:
    """The number that a list repeats: [0.5, 0.5, 0.5] is 0.5; with ``len_1`` only of [0.5]."""
    if isinstance(value, list) and (len(value) == 1 or (not len_1 and value[1:] == value[:-1])):
        return value[0] if value else value
    return value


def _in_wrong_order(side: str, listed: Sequence[Component]) -> Iterator[Note]:
    names = [component.name for component in listed]
    normal = names.index("Normalize") if "Normalize" in names else len(names)
    resize = max((i for i, name in enumerate(names) if name in ("Resize", "Letterbox")), default=-1)
    for index, component in enumerate(listed):
        path, name = f"transforms.{side}.{index}", component.name
        if index < resize and name in BETTER_AFTER_RESIZE:
            yield Note(
                path,
                f"{name} before {names[resize]} makes it resize 32-bit floats in place of 8-bit "
                f"pixels, which takes more time; put it after {names[resize]}",
            )
        if index > normal and name in NEED_0_TO_1:
            message = f"{name} takes pixels of 0 to 1 and cuts off all others"
            yield Note(path, f"{message}; put it before Normalize")
    if normal < len(names):
        arguments = listed[normal].arguments
        mean, std = (_numbers(arguments.get(key)) for key in ("mean", "std"))
        if max(mean, default=0) > 1 or max(std, default=0) > 5:
            example = ", ".join(f"{value / 255:.3g}" for value in mean)
            message = "is for pixels of 0 to 255, and here they are 0 to 1; divide mean and std by"
            yield Note(f"transforms.{side}.{normal}", f"{message} 255, as in mean: [{example}]")


def _numbers(given: Any) -> list[float]:
    """The numbers in a list, or the one number itself; what is neither is told elsewhere."""
    return [n for n in (given if isinstance(given, list) else [given]) if type(n) in (int, float)]


def _without_effect(path: str, component: Component) -> Iterator[Note]:
    name, given = component.name, component.arguments
    properties = published().get(f"transform.{name}", {}).get("properties", {})
    used = [
        given.get(key, properties.get(key, {}).get("default")) for key in CHANGED_BY.get(name, ())
    ]
    if given.get("p") == 0 or (used and not any(map(_moves, used))):
        yield Note(path, f"{name} changes no image with these arguments; remove it")
    elif name in ("RandomHorizontalFlip", "RandomVerticalFlip", "RandomGrayscale"):
        if given.get("p", 0) >= 1 and ".transforms." not in path:
            message = f"{name} with p 1 changes every training image, and none in evaluation"
            yield Note(path, f"{message}; write p: 0.5")


def _moves(value: Any) -> bool:
    return any(value) if isinstance(value, list) else bool(value)


def _on_learning(config: Config) -> Iterator[Note]:
    optimizer, arguments = config.optimizer, config.optimizer.arguments
    ours, loss = optimizer.trainer_arguments, config.loss
    properties = published().get(f"optimizer.{optimizer.name}", {}).get("properties", {})
    defaults = {name: schema.get("default") for name, schema in properties.items()}
    rate, decay = ({**defaults, **arguments}.get(name) or 0 for name in ("lr", "weight_decay"))
    top = config.scheduler.arguments.get("max_lr") if config.scheduler else None
    groups = ours.get("groups", ())
    if isinstance(top, int | float) and not groups:
        yield from _on_rate("scheduler.max_lr", optimizer.name, top)
        if "lr" in arguments and rate != top:
            yield Note("optimizer.lr", "plays no part: scheduler.max_lr sets the learning rate")
    else:
        yield from _on_rate("optimizer.lr", optimizer.name, rate, of_all=not groups)
    for index, group in enumerate(groups):
        if "lr" in group:
            name = arguments.get("rest", optimizer.name)  # Muon's groups are as a rule of the rest
            if name != "SGD" or optimizer.name == "SGD" or not group["lr"]:
                # Beside Muon, biases take far larger rates of SGD: the logits are made small.
                yield from _on_rate(f"optimizer.groups.{index}.lr", name, group["lr"], False)
    if rate * decay >= 1 and optimizer.name in SHRINKING:
        message = f"{decay:g} at a learning rate of {rate:g} removes the weights in one step"
        yield Note("optimizer.weight_decay", message)
    for path, momentum in _momenta(optimizer):
        if momentum >= 1:
            yield Note(path, f"{momentum:g} never fades: steps only grow; write 0.9")
    if arguments.get("maximize") is True:
        yield Note("optimizer.maximize", "true makes the loss larger, not smaller")
    yield from _on_momentum(config)
    if arguments.get("rest") == "SGD" and "betas" in arguments:
        yield Note("optimizer.betas", "has no effect: they are AdamW's, and rest is SGD")
    decays = [decay, *(group.get("weight_decay", 0) for group in groups)]
    if ours.get("no_decay") and not any(decays):
        yield Note("optimizer.no_decay", "has no effect without a weight_decay")
    if loss.trainer_arguments.get("weight") == "balanced" == config.loader.sampling:
        message = "balanced, and loader.sampling balanced too: each makes up for rare classes"
        yield Note("loss.weight", f"{message}; keep one of the two")
    if loss.arguments.get("label_smoothing", 0) >= 1:
        yield Note("loss.label_smoothing", "1 leaves nothing of the labels; write 0.1")


def _momenta(optimizer: Component) -> Iterator[tuple[str, float]]:
    """The path and value of each ``momentum``, of the optimizer and of its groups."""
    places = {"optimizer": optimizer.arguments}
    groups = optimizer.trainer_arguments.get("groups", ())
    places |= {f"optimizer.groups.{index}": group for index, group in enumerate(groups)}
    for path, given in places.items():
        if isinstance(momentum := given.get("momentum"), int | float):
            yield f"{path}.momentum", momentum


def _on_momentum(config: Config) -> Iterator[Note]:
    """Notes on a momentum far from those of OneCycleLR, which sets that of each group."""
    scheduler, optimizer = config.scheduler, config.optimizer
    if scheduler is None or scheduler.name != "OneCycleLR" or optimizer.name == "Muon":
        return  # of Muon it sets the betas only
    given = scheduler.arguments
    low, high = given.get("base_momentum", 0.85), given.get("max_momentum", 0.95)
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return
    for path, momentum in _momenta(optimizer) if given.get("cycle_momentum", True) else ():
        if not low <= momentum <= high:
            message = f"{momentum:g} plays no part: scheduler OneCycleLR sets {high:g} to {low:g}"
            yield Note(path, f"{message}; write cycle_momentum: false to keep it")


def _on_rate(path: str, optimizer: str, rate: float, of_all: bool = True) -> Iterator[Note]:
    if rate == 0:
        what = ": nothing is learned" if of_all else " of those that have this rate"
        yield Note(path, f"0 changes no weight{what}")
    elif rate > 10 or (rate >= 1 and optimizer in STEEP):
        usual = "0.00001 to 0.01" if optimizer in STEEP else "0.001 to 1"
        message = f"{rate:g} is far above what {optimizer} usually takes ({usual})"
        yield Note(path, f"{message}; python -m trainer.find_lr suggests one")


def _on_own_metric(config: Config) -> Iterator[Note]:
    """A note on what is best by a metric of one's own."""
    if (metric := config.train.monitor.removeprefix("val/")) in config.own.names("metric"):
        message = f"{metric} is of {config.own.path}: the epoch where it is largest is the best"
        yield Note("train.monitor", f"{message}; let it give 1 - x or -x where less is better")


def _on_length(config: Config) -> Iterator[Note]:
    epochs, stop, every = config.train.epochs, config.early_stop, config.checkpoint.every
    run = f"the run's {epochs} epoch{'s' * (epochs != 1)}"
    if stop is not None and stop.patience >= epochs - 1:
        yield Note("early_stop.patience", f"{stop.patience} can't stop {run} early")
    if stop is not None and stop.min_delta >= 1 and config.train.monitor != "val/loss":
        message = f"{stop.min_delta:g} is more than {config.train.monitor} can improve"
        yield Note("early_stop.min_delta", f"{message}; write 0.001")
    if every.unit == "ep" and every.value > epochs and every != CheckpointSettings().every:
        yield Note("checkpoint.every", f"{every} is after {run}: a killed run begins anew")
    for index, group in enumerate(config.optimizer.trainer_arguments.get("groups", ())):
        until = Duration.parse(group["until"]) if "until" in group else None
        if until is not None and until.unit == "ep" and until.value >= epochs:
            message = f"{until} is not before the end of {run}: it has no effect"
            yield Note(f"optimizer.groups.{index}.until", message)
    if (tta := config.evaluation.tta) and any(c.name == "TenCrop" for c in config.transforms.eval):
        message = f"{tta} mirrors what TenCrop in transforms.eval mirrors already"
        yield Note("evaluation.tta", f"{message}: twice the time for the same; write FiveCrop")
    for first, size in config.train.sizes_by_epoch.items():
        if first >= epochs:
            yield Note(f"train.sizes.{first}ep", f"{size[0]} x {size[1]} begins after {run}")
    scheduler = config.scheduler
    if scheduler is not None and scheduler.name == "ReduceLROnPlateau":
        patience = scheduler.arguments.get("patience", 10)
        if patience >= epochs - 2:
            yield Note("scheduler.patience", f"{patience} can't lower the rate within {run}")
    if scheduler is not None and scheduler.name == "MultiStepLR":
        beyond = [m for m in scheduler.arguments["milestones"] if m >= epochs]
        if 0 < len(beyond) < len(scheduler.arguments["milestones"]):
            yield Note("scheduler.milestones", f"{listed(beyond)} lie after {run}")
