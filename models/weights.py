"""Load weights that were trained for other classes or input channels, or by another program."""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.tensor_file import read_tensors

# Names that wrappers put before those of the model: DataParallel and DDP, torch.compile, FSDP.
WRAPPERS = re.compile(r"\b(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
PARTS = ("state_dict", "model_state_dict", "model")  # of a training checkpoint; averages come first
MAX_CARD = 2**26  # bytes of a JSON file with class names
MAX_NAMED = 5  # names in a sentence

Build = Callable[[int], nn.Module]  # the same model for a number of classes


class Weights(NamedTuple):
    """A state_dict, the class names of its head's rows (None: not known), and where it is from."""

    state: Mapping[str, Tensor]
    classes: tuple[str, ...] | None = None
    source: str = "weights"


def read_weights(path: str) -> Weights:
    """Read a state_dict file, such as a run's ``model.pt``, onto the CPU.

    The file may be of safetensors, or a training checkpoint that holds a state_dict. Class names
    are those of the run's model.json, of the file itself, or of config.json beside it.
    No code in the file is executed. Raises ValueError if the file is missing, unreadable or
    damaged, or holds anything but names and dense real tensors.
    """
    if Path(path).is_dir():
        patterns = ("model.pt", "*/model.pt", "*/*/model.pt")  # a run, its name, the root of runs
        inside = [file for p in patterns for file in sorted(Path(path).glob(p))][-1:]
        message = f"such as {inside[0]}" if inside else "such as a run's model.pt"
        raise ValueError(f"weights: {path} is a folder; name a file, {message}")
    try:
        read = _read_safetensors if path.endswith(".safetensors") else read_tensors
        content = read(path)
    except FileNotFoundError:
        inside = sorted(Path(path).parent.glob(f"*/{Path(path).name}"))[-1:]
        near = f"; did you mean {inside[0]}?" if inside else ""
        raise ValueError(f"weights: there is no file {path!r}{near}") from None
    except ValueError as error:
        raise ValueError(f"weights: {error}") from error
    part, state = _state_in(content, path)
    for name, tensor in state.items():
        if tensor.is_complex():
            raise ValueError(f"weights: {path}: {name} is of {tensor.dtype}; expected real numbers")
    classes, epoch = _described(Path(path))
    source = ", ".join([path, *([part] if part else []), *([f"epoch {epoch}"] if epoch else [])])
    return Weights(state, classes or _names_in(content), source)


def _read_safetensors(path: str) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ValueError(f'{path} needs safetensors: pip install -e ".[export]"') from None
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
            return {"state_dict": state, **(file.metadata() or {})}
    except (SafetensorError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} cannot be read: {error}") from None


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    )


def _state_in(content: Any, path: str) -> tuple[str, dict[str, Tensor]]:
    """The state_dict in a file, and its key there ("": it is the file). Averaged weights win."""
    if _is_state(content):
        return "", content
    found = content.items() if isinstance(content, dict) else ()
    parts = {str(key): value for key, value in found if value and _is_state(value)}
    averaged = [key for key in parts if "ema" in key.lower()]
    named = [key for key in PARTS if key in parts]
    if len(chosen := averaged or named or list(parts)) != 1 and not named:
        what = f"holds several: {', '.join(chosen)}" if chosen else "is not a plain state_dict"
        raise ValueError(
            f"weights: {path} {what} (names and tensors);"
            " save it with torch.save(model.state_dict(), path)"
        )
    return chosen[0] if len(parts) > 1 else "", parts[chosen[0]]


def _names_in(content: Any) -> tuple[str, ...] | None:
    """The class names that a checkpoint holds beside its weights: a list, JSON, or a dict."""
    if not isinstance(content, dict):
        return None
    names = content.get("classes", content.get("class_to_idx"))
    with suppress(ValueError, TypeError, RecursionError):
        names = json.loads(names) if isinstance(names, str) else names
        if isinstance(names, dict):
            names = sorted(names, key=names.__getitem__)
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def _described(path: Path) -> tuple[tuple[str, ...] | None, int | None]:
    """Class names and epoch by the JSON files of a run, or of a model's folder; None: not known."""
    folder = path.parent
    card = _card(folder / "model.json")
    if (described := card.get("weights")) and isinstance(described, dict):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest == described.get("sha256"):
            metrics = card.get("metrics")
            return _names_in(card), metrics.get("epoch") if isinstance(metrics, dict) else None
    if folder.parent.name == "checkpoints":
        return _names_in(_card(folder.parent.parent / "model.json")), None
    labels = _card(folder / "config.json").get("id2label")  # Hugging Face's layout
    if path.suffix == ".safetensors" and isinstance(labels, dict):
        return _names_in({"classes": [labels.get(str(i)) for i in range(len(labels))]}), None
    return None, None


def _card(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        if path.is_file() and path.stat().st_size <= MAX_CARD:
            card = json.loads(path.read_text(encoding="utf-8"))
            return card if isinstance(card, dict) else {}
    return {}


def load_weights(model: nn.Module, weights: Weights, classes: Sequence[str], build: Build) -> str:
    """Load weights into a model, in place; returns a sentence: what was taken, and what was not.

    These differences are allowed:
    - Rows of the head are matched by the names in ``classes``, if the weights' own are known.
      Classes that the weights lack keep their new rows. Without names, a head for as many classes
      is taken row by row, and another one is not taken.
    - The file has no head.
    - The first convolution is adapted to another number of input channels.
    - A wrapper or another program has put names before those of the model.
    - The file has top-level modules that the model lacks, such as auxiliary heads.
    Raises ValueError that lists every other difference.
    """
    own = model.state_dict()  # with torch's version numbers, which some layers require
    state = with_names_of(weights.state, own)
    head, first = head_of(own, build, len(classes)), f"{first_convolution(model)}.weight"
    known, given_tops, head_tops = (set(map(_top, names)) for names in (own, state, head))
    unknown = [name for name in state if name not in own]
    left_out = [n for n in unknown if _top(n) not in known and not n[:1].isdecimal()]
    faults = [f"unexpected {name}" for name in unknown if name not in left_out]
    rows = next((len(state[n]) for n in own if n in head and n in state and state[n].ndim), None)
    pairs, about_head = match_rows(weights.classes, rows, classes)
    taken, fresh, notes = 0, list[str](), [about_head] if head else []
    for name, tensor in own.items():
        given = state.get(name)
        if given is None:
            if name in head or _top(name) in head_tops - given_tops:
                fresh.append(name)
            elif not name.endswith("num_batches_tracked"):  # files from before 2018 lack it
                faults.append(f"missing {name}")
            continue
        if name in head and given.shape == (rows, *tensor.shape[1:]):
            own[name] = tensor.clone()
            for row, their_row in pairs:
                own[name][row] = given[their_row]
            if not pairs:
                fresh.append(name)
                continue
        elif given.shape == tensor.shape:
            own[name] = given
        elif name == first and _without(1, given) == _without(1, tensor):
            own[name] = spread_channels(given, tensor.shape[1])
            notes.append(f"{name} made for {tensor.shape[1]} channels, from {given.shape[1]}")
        else:
            faults.append(f"{name} is {tuple(given.shape)}, not {tuple(tensor.shape)}")
        taken += 1
    if not (faults or taken):
        faults = ["it has none of the model's tensors"]
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise ValueError(
            f"weights: they do not fit {type(model).__name__}: {'; '.join(faults[:8])}{more}."
            " The model's arguments must be those the weights were trained with"
        )
    model.load_state_dict(own)
    for names, what in ((fresh, "started fresh"), (left_out, "left out of the file")):
        notes += [f"{what}: {len(names)} tensors ({_first(names)})"] if names else []
    return f"{weights.source}: {'; '.join([f'{taken} of {len(own)} tensors taken', *notes])}"


def with_names_of(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """The tensors by the model's ``own`` names: without wrappers' names, and without the beginning
    that gives the most of them.
    """
    if not any(map(WRAPPERS.search, own)):
        state = {WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    beginnings: Counter[str] = Counter()
    for name in state:
        ends = [0, *(match.end() for match in re.finditer(r"\.", name))]
        beginnings.update(name[:end] for end in ends if name[end:] in own)
    begin = max(beginnings, key=lambda text: (beginnings[text], -len(text)), default="")
    named = {n.removeprefix(begin): t for n, t in state.items() if n.startswith(begin)}
    rest = {
        name: tensor for name, tensor in state.items() if not (begin and name.startswith(begin))
    }
    return named | rest  # a name of the model itself counts before one with a beginning


def head_of(own: Mapping[str, Tensor], build: Build, num_classes: int) -> set[str]:
    """The tensors with a row for each class: those that one more class would enlarge."""
    for device in ("meta", "cpu"):  # some models cannot be built on meta
        with suppress(Exception), torch.random.fork_rng(devices=[]), torch.device(device):
            larger = {name: t.shape for name, t in build(num_classes + 1).state_dict().items()}
            return {
                name
                for name, tensor in own.items()
                if larger[name] == (num_classes + 1, *tensor.shape[1:]) != tensor.shape
            }
    return set()


def match_rows(
    theirs: Sequence[str] | None, rows: int | None, classes: Sequence[str]
) -> tuple[list[tuple[int, int]], str]:
    """(row here, row there) of each row of a head to take, and a sentence about the head.

    rows: of the head in the file, whose classes are ``theirs``; None if it has no head.
    """
    if rows is None:
        return [], "the file has no head"
    if theirs is None or len(theirs) != rows or len(set(theirs)) != rows:
        if rows == len(classes):
            unsure = f"the head is taken row by row: which {rows} classes it was for is not known"
            return [(row, row) for row in range(rows)], unsure
        return [], f"the head is for {rows} classes, and the data have {len(classes)}"
    there = {unicodedata.normalize("NFC", name): row for row, name in enumerate(theirs)}
    here = [unicodedata.normalize("NFC", name) for name in classes]
    pairs = [(row, there[name]) for row, name in enumerate(here) if name in there]
    if not pairs:
        return [], f"the head is for {rows} other classes ({_first(theirs)})"
    if len(pairs) == rows == len(classes):
        in_order = all(row == their_row for row, their_row in pairs)
        changed = "" if in_order else ", its rows brought into the order of the data's classes"
        return pairs, f"the head is for the same classes{changed}"
    new = [name for name in here if name not in there]
    old = [name for name in there if name not in here]
    sides = [f"{len(pairs)} of its {rows} rows taken by class name"]
    sides += [f"{len(new)} new rows ({_first(new)})"] if new else []
    sides += [f"{len(old)} left out ({_first(old)})"] if old else []
    return pairs, f"the head has {', '.join(sides)}"


def first_convolution(model: nn.Module) -> str | None:
    """Name of the first 2-D convolution in definition order (it reads the image), or None."""
    return next((n for n, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)


def spread_channels(weight: Tensor, in_channels: int) -> Tensor:
    """Convolution weights (O, I, h, w) for another number of channels: (O, in_channels, h, w).

    Each new channel is the sum of the old channels / in_channels. So an image with equal channels
    (grey as RGB) gives the same result as before.
    """
    return weight.sum(1, keepdim=True).expand(-1, in_channels, -1, -1) / in_channels


def _without(dimension: int, tensor: Tensor) -> list[int]:
    return [size for d, size in enumerate(tensor.shape) if d != dimension]


def _top(name: str) -> str:
    return name.partition(".")[0]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
