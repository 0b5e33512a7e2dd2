"""Load weights that were trained for other classes or input channels, or by another program."""

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.positions import resample_positions
from models.tensor_file import read_tensors

# Names that wrappers put before those of the model: DataParallel and DDP, torch.compile, FSDP.
WRAPPERS = re.compile(r"\b(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
PARTS = ("state_dict", "model_state_dict", "model")  # of a training checkpoint; averages come first
MAX_CARD = 2**26  # bytes of a JSON file with class names
POSITIONS = re.compile(r"(pos_emb\w*|rel_pos\w*|attention_bias\w*|position_bias_table) is \(")
UNKNOWN_HEAD = "which of its tensors are for which class cannot be told"
EMPTY = "it has none of the model's tensors"
MAX_NAMED = 5  # names in a sentence
SAFETENSORS = "model.safetensors"  # in Hugging Face's layout of a model

Build = Callable[[int], nn.Module]  # the same model for a number of classes


class Weights(NamedTuple):
    """A state_dict, the class names of its head's rows (None: not known), and where it is from.

    run: the folder of the run whose best weights these are, if they are; card: its model.json.
    """

    state: Mapping[str, Tensor]
    classes: tuple[str, ...] | None = None
    source: str = "weights"
    run: Path | None = None
    card: Mapping[str, Any] = MappingProxyType({})

    @property
    def epoch(self) -> int | None:
        """The epoch of the run after which these were its weights; None: not known."""
        metrics = self.card.get("metrics")
        epoch = metrics.get("epoch") if isinstance(metrics, dict) else None
        return epoch if type(epoch) is int else None

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The (height, width) of the images that the run was trained on; None: not known."""
        size = self.card.get("input_size")
        is_size = isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)
        return (size[0], size[1]) if is_size and isinstance(size, list) else None


def read_weights(path: str) -> Weights:
    """Read a state_dict file, such as a run's ``model.pt``, onto the CPU.

    The file may be of safetensors, or a training checkpoint that holds a state_dict. A folder in
    Hugging Face's layout stands for its model.safetensors. Class names are those of the run's
    model.json, of the file itself, or of config.json beside it.
    No code in the file is executed. Raises ValueError if the file is missing, unreadable or
    damaged, or holds anything but names and dense real tensors.
    """
    if os.path.isfile(inner := os.path.join(path, SAFETENSORS)):
        path = inner
    if os.path.isdir(path):
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
    classes, card = _described(Path(path))
    source = f"{path}, {part}" if part else path
    weights = Weights(state, classes or names_in(content), source)
    if card:
        weights = weights._replace(run=Path(path).parent, card=card)
    return weights._replace(source=f"{source}, epoch {weights.epoch}") if weights.epoch else weights


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


def names_in(content: Any) -> tuple[str, ...] | None:
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


def _described(path: Path) -> tuple[tuple[str, ...] | None, dict[str, Any]]:
    """Class names by the JSON files of a run, or of a model's folder; None: not known.

    Also model.json, if it says that the file is the run's best weights; else an empty dict.
    """
    folder = path.parent
    card = _card(folder / "model.json")
    if (described := card.get("weights")) and isinstance(described, dict):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest == described.get("sha256"):
            return names_in(card), card
    if folder.parent.name == "checkpoints":
        return names_in(_card(folder.parent.parent / "model.json")), {}
    about = _card(folder / "config.json")  # Hugging Face's layout
    labels = about.get("id2label")
    if path.suffix == ".safetensors" and isinstance(labels, dict):
        return names_in({"classes": [labels.get(str(i)) for i in range(len(labels))]}), {}
    if path.suffix == ".safetensors":
        return names_in({"classes": about.get("label_names")}), {}  # of timm
    return None, {}


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
    - Positions are resampled to the model's grid of patches: see ``resample_positions``.
    - A wrapper or another program has put names before those of the model.
    - The file has top-level modules that the model lacks, such as auxiliary heads.
    Raises ValueError that lists every other difference.
    """
    own = model.state_dict()  # with torch's version numbers, which some layers require
    state = with_names_of(weights.state, own)
    head = head_of(own, build, len(classes))
    first = f"{first_convolution(model)}.weight"
    known, given_tops, head_tops = (set(map(_top, names)) for names in (own, state, head))
    unknown = [name for name in state if name not in own]
    left_out = [n for n in unknown if _top(n) not in known and not n[:1].isdecimal()]
    faults = [f"unexpected {name}" for name in unknown if name not in left_out]
    rows = next((len(state[n]) for n in own if n in head and n in state and state[n].ndim), None)
    pairs, about_head = match_rows(weights.classes, rows, classes)
    if not head:
        same = weights.classes == (*classes,)
        about_head = "its classes are the same" if same else UNKNOWN_HEAD
        faults += [] if same or weights.classes is None else [UNKNOWN_HEAD]
    state, notes = resample_positions(model, state, weights.image_size, {*head, first})
    notes.insert(0, about_head)
    taken, fresh = 0, list[str]()
    for name, tensor in own.items():
        given = state.get(name)
        if given is None:
            if name in head or _top(name) in head_tops - given_tops:
                fresh.append(name)
            elif not name.endswith("num_batches_tracked"):  # files from before 2018 lack it
                faults.append(f"missing {name}")
        elif name in head and given.shape == (rows, *tensor.shape[1:]):
            if pairs:
                own[name], taken = _with_rows(tensor, given, pairs), taken + 1
            else:
                fresh.append(name)
        elif given.shape == tensor.shape and name not in head:
            own[name], taken = given, taken + 1
        elif name == first and _without(1, given) == _without(1, tensor):
            own[name], taken = spread_channels(given, tensor.shape[1]), taken + 1
            notes.append(f"{name} made for {tensor.shape[1]} channels, from {given.shape[1]}")
        else:
            faults.append(f"{name} is {tuple(given.shape)}, not {tuple(tensor.shape)}")
    _require_fit(model, weights, faults or [EMPTY] * (not taken))
    model.load_state_dict(own)
    for names, what in ((fresh, "started fresh"), (left_out, "left out of the file")):
        notes += [f"{what}: {len(names)} tensors ({_first(names)})"] if names else []
    return f"{weights.source}: {'; '.join([f'{taken} of {len(own)} tensors taken', *notes])}"


def _with_rows(tensor: Tensor, given: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """The tensor with rows of ``given`` in place of its own: (row here, row there) of each."""
    tensor = tensor.clone()
    for row, their_row in pairs:
        tensor[row] = given[their_row]
    return tensor


def _require_fit(model: nn.Module, weights: Weights, faults: Sequence[str]) -> None:
    """Raise ValueError with the first faults, if there are any, and with what would fit."""
    if not faults:
        return
    more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
    its, size = weights.card.get("model"), weights.card.get("input_size")
    typed = ""
    if isinstance(its, dict):
        own = {key: value for key, value in its.items() if key not in ("weights", "init", "freeze")}
        typed = f", model: {json.dumps(own)}, and images of {size}"
    is_place = any(map(POSITIONS.search, faults))
    hint = ". Positions of this model are not resampled: make images as large" if is_place else ""
    raise ValueError(
        f"weights: they do not fit {type(model).__name__}: {'; '.join(faults[:8])}{more}."
        f" The model's arguments must be those the weights were trained with{typed}{hint}"
    )


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
    """The tensors with a row for each class: those that one more class would enlarge by a row.

    Empty if one more class would change another tensor, or cannot be built.
    """
    for device in ("meta", "cpu"):  # some models cannot be built on meta
        with suppress(Exception), torch.random.fork_rng(devices=[]), torch.device(device):
            larger = {name: t.shape for name, t in build(num_classes + 1).state_dict().items()}
            changed = {name for name, tensor in own.items() if larger[name] != tensor.shape}
            by_a_row = (larger[n] == (num_classes + 1, *own[n].shape[1:]) for n in changed)
            return changed if all(by_a_row) else set()
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
    there = rows_by_name(theirs, classes)
    pairs = [(row, there[name]) for row, name in enumerate(classes) if name in there]
    if not pairs:
        return [], f"the head is for {rows} other classes ({_first(theirs)})"
    if len(pairs) == rows == len(classes):
        in_order = all(row == their_row for row, their_row in pairs)
        changed = "" if in_order else ", its rows brought into the order of the data's classes"
        return pairs, f"the head is for the same classes{changed}"
    new, old = (classes_apart(theirs, classes)[key] for key in ("new", "gone"))
    sides = [f"{len(pairs)} of its {rows} rows taken by class name"]
    sides += [f"{len(new)} new rows ({_first(new)})"] if new else []
    sides += [f"{len(old)} left out ({_first(old)})"] if old else []
    return pairs, f"the head has {', '.join(sides)}"


def rows_by_name(theirs: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """The place in ``theirs`` of each of ``classes`` that is there too.

    Names may be composed otherwise (Unicode's NFC), as file systems do, where no two become one.
    """
    there, here = (
        [unicodedata.normalize("NFC", name) for name in names] for names in (theirs, classes)
    )
    if len(set(there)) < len(theirs) or len(set(here)) < len(classes):
        there, here = list(theirs), list(classes)
    rows = {name: row for row, name in enumerate(there)}
    found = zip(classes, map(rows.get, here), strict=True)
    return {name: row for name, row in found if row is not None}


def classes_apart(theirs: Sequence[str], classes: Sequence[str]) -> dict[str, list[str]]:
    """The classes that the weights know, those that are new, and those that are gone."""
    rows = rows_by_name(theirs, classes)
    kept = {*rows.values()}
    return {
        "known": list(rows),
        "new": [name for name in classes if name not in rows],
        "gone": [name for row, name in enumerate(theirs) if row not in kept],
    }


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
