"""Says what makes the numbers of runs incomparable, and what keeps them comparable."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from trainer.comparing.compared import Compared
from trainer.comparing.listing import MAX_GROWING, read_object
from trainer.components import LOSSES
from trainer.config.document import flow
from trainer.process.errors import UsageError
from trainer.process.words import listed, shortened

MAX_LABELS = 8  # in a sentence
MAX_LETTERS = 200  # of a loss, or of the names of classes
CANNOT = "their {} cannot be compared"


def incomparable(runs: Sequence[Compared]) -> set[str]:
    """What of "loss", "val" and "test" has numbers that do not mean the same in all runs."""
    unlike = {"loss"} if len(losses_of(runs)) > 1 else set()
    questions = (datasets_of(runs), grouped(runs, lambda run: run.answers))
    fixes = {str(run.found.result.get("fixes")) for run in runs}
    if len(fixes) > 1 or any(len(groups) > 1 for groups in questions):
        return unlike | {"val", "test"}
    firsts = [group[0] for group in grouped(runs, lambda run: run.split).values()]
    for part in ("val", "test") if len(firsts) > 1 else ():
        mine, *others = (images_of(run, part) for run in firsts)
        if not mine or any(theirs != mine for theirs in others):  # unknown, or others
            unlike.add(part)
    return unlike


def is_unlike(row: str, unlike: Collection[str]) -> bool:
    """Whether the numbers of a row do not mean the same. unlike: see ``incomparable``."""
    part, _, metric = row.removeprefix("best ").partition("/")
    return part in ("val", "test") and (part in unlike or (metric == "loss" and "loss" in unlike))


def datasets_of(runs: Sequence[Compared]) -> dict[str, list[Compared]]:
    """The runs of each dataset."""
    return grouped(runs, lambda run: run.dataset)


def losses_of(runs: Sequence[Compared]) -> dict[str, list[Compared]]:
    """The runs of each loss, with the arguments that are not its defaults."""
    groups = grouped(runs, lambda run: loss_text(run.config))
    if len(groups) < 2:  # else the defaults are looked up, which takes PyTorch's import
        return groups
    return grouped(runs, lambda run: loss_text(run.config, defaults_of_loss(run.config)))


def loss_text(config: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> str:
    """A flat config's loss with its arguments, without those of ``defaults``; "" for none."""
    inner = {key.removeprefix("loss."): v for key, v in config.items() if key.startswith("loss.")}
    name = str(inner.pop("name", ""))
    own = {key: v for key, v in inner.items() if key not in defaults or v != defaults[key]}
    return ", ".join([name, *(f"{key} {flow(own[key])}" for key in sorted(own))])


def defaults_of_loss(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the arguments of a config's loss; {} if it cannot be imported."""
    from trainer.config.signatures import parameters_of, resolve

    with suppress(KeyError, UsageError):  # KeyError: also a loss of a user's own file
        parameters = parameters_of(resolve(LOSSES, str(config.get("loss.name"))))
        return {name: parameter.default for name, parameter in parameters.items()}
    return {}


def warnings(runs: Sequence[Compared]) -> list[str]:
    """Return the reasons why numbers cannot be compared or are missing: a sentence each."""
    messages = []
    for run in runs:
        reason = f": {' '.join(run.found.reason.split())}" if run.found.reason else ""
        if run.found.status != "done":
            messages.append(f"{run.label} is {run.found.status}{reason}")
        elif not run.found.best:
            messages.append(f"{run.label} has no best epoch")
        messages += [f"{run.label}: {fault}" for fault in run.faults if fault not in reason]
    datasets = datasets_of(runs)
    messages += differ("datasets differ", datasets, CANNOT.format("numbers"))
    for alike in datasets.values():
        splits = grouped(alike, lambda run: run.split[:10])
        messages += differ("splits differ", splits)
        messages += shared_images([group[0] for group in splits.values()])
    messages += other_questions(runs)
    messages += differ("code differs", grouped(runs, lambda run: run.commit or "unknown"))
    messages += differ("torch differs", grouped(runs, lambda run: run.torch))
    devices = grouped(runs, lambda run: run.device)
    messages += differ("devices differ", devices, CANNOT.format("speeds"))
    return messages


def differ(what: str, groups: Mapping[str, Sequence[Compared]], effect: str = "") -> list[str]:
    """Return a sentence that names the runs of each value; [] if all have the same value."""
    if len(groups) < 2:
        return []
    values = "; ".join(f"{labels(group)}: {name}" for name, group in groups.items())
    return [f"{what}: {values}" + (f": {effect}" if effect else "")]


def grouped(
    runs: Iterable[Compared], value: Callable[[Compared], str]
) -> dict[str, list[Compared]]:
    """Group runs by ``value(run)``; runs with an empty value are left out."""
    groups: dict[str, list[Compared]] = {}
    for run in runs:
        if value(run):
            groups.setdefault(value(run), []).append(run)
    return groups


def labels(runs: Sequence[Compared]) -> str:
    """Return the runs' labels as "A, B and C"; at most MAX_LABELS of them."""
    more = [f"{len(runs) - MAX_LABELS} more"] if len(runs) > MAX_LABELS else []
    return listed([run.label for run in runs[:MAX_LABELS]] + more)


def shared_images(runs: Sequence[Compared]) -> list[str]:
    """Say how many test images, by content, the first run shares with each other run.

    Nothing is said of a run with the same ones: ``information`` tells it.
    """
    if len(runs) < 2:
        return []
    messages = []
    mine, *others = (images_of(run, "test") for run in runs)
    for run, theirs in zip(runs[1:], others, strict=True):
        if not mine or not theirs:
            messages.append(f"{runs[0].label} and {run.label}: their split.json cannot be compared")
        elif mine != theirs:
            sizes = {count.total(): None for count in (mine, theirs)}
            messages.append(
                f"{runs[0].label} and {run.label} share {(mine & theirs).total()} of their "
                f"{' and '.join(map(str, sizes))} test images: {CANNOT.format('test numbers')}"
            )
    their_val = [images_of(run, "val") for run in runs]
    if all(their_val) and any(theirs != their_val[0] for theirs in their_val):
        messages.append(f"{labels(runs)} have different val images: {CANNOT.format('val numbers')}")
    return messages


def other_questions(runs: Sequence[Compared]) -> list[str]:
    """Say which runs have other classes, corrections of labels, or losses than others."""
    cannot = CANNOT.format("numbers")
    answers = grouped(runs, lambda run: run.answers)
    messages = differ(
        "classes differ", {in_a_sentence(a): group for a, group in answers.items()}, cannot
    )
    fixes = grouped(runs, lambda run: str(run.found.result.get("fixes") or "none")[:10])
    messages += differ("fixes of labels differ", fixes, cannot)
    texts = {in_a_sentence(loss): group for loss, group in losses_of(runs).items()}
    return messages + differ("losses differ", texts, CANNOT.format("values of loss"))


def in_a_sentence(text: str) -> str:
    """A text as a part of a sentence; two that differ stay two."""
    if len(text) <= MAX_LETTERS:
        return text
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:6]
    return f"{shortened(text, MAX_LETTERS)} ({digest})"


def images_of(run: Compared, part: str) -> Counter[str]:
    """Count each content among a split's images in a run's split.json."""
    images = read_object(run.found.folder / "split.json", MAX_GROWING)[0].get(part)
    values = images.values() if isinstance(images, dict) else ()
    return Counter(digest for digest in values if isinstance(digest, str))


def information(runs: Sequence[Compared]) -> list[str]:
    """Return what speaks for comparing runs of different splits: a sentence each."""
    messages = []
    for alike in grouped(runs, lambda run: run.dataset).values():
        firsts = [group[0] for group in grouped(alike, lambda run: run.split).values()]
        if len(firsts) > 1 and (mine := images_of(firsts[0], "test")):
            same = [run for run in firsts if images_of(run, "test") == mine]
            if len(same) > 1:
                messages.append(f"{labels(same)} were tested on the same {mine.total()} images")
    return messages
