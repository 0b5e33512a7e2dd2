"""torchvision and timm classifiers, adapted to the number of classes and of input channels."""

import difflib
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from models.arguments import build_checked, without_depth
from models.weights import (
    Weights,
    first_convolution,
    load_weights,
    match_rows,
    read_weights,
    spread_channels,
)

# torchvision's two models with auxiliary heads. Only the main logits are trained.
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")

# Not for users: set from num_classes, in_channels and weights, or reading unchecked files and URLs.
RESERVED = frozenset(
    {"num_classes", "in_chans", "weights", "progress", "aux_logits", "init_weights"}
    | {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
    | {"features_only", "device", "dtype"}
)


WNID = re.compile(r"n\d{8}")  # ImageNet's names of its classes; their order is that of the weights


def torchvision_model(
    name: str,
    num_classes: int,
    in_channels: int,
    weights: Weights | str | None,
    arguments: Mapping[str, Any],
    classes: Sequence[str] = (),
    tell: Callable[[str], object] = str,
) -> nn.Module:
    """A torchvision classifier by the name of its builder, such as "resnet18".

    weights: None (random), "DEFAULT" or another name of torchvision's weights for this model
    (downloaded once), the path of a state_dict file, or weights that were read. What fits is taken
    (see ``load_weights``) and told by ``tell``; the head's rows are matched by the names in
    ``classes``.
    arguments: for torchvision's builder, such as dropout or stochastic_depth_prob.
    Forward returns plain logits in every mode. The weights of googlenet and inception_v3 expect
    Normalize with mean and std 0.5, those of all others with ImageNet's.
    Raises ValueError for unknown names and arguments, and for weights that cannot be read.
    """
    _check_name("torchvision", name, torchvision.models.list_models(module=torchvision.models))
    _check_arguments(f"torchvision/{name}", arguments)
    fixed = {"aux_logits": False, "init_weights": True} if name in WITH_AUXILIARY_HEADS else {}

    def build(**given: Any) -> nn.Module:
        model: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=num_classes, **fixed, **given
        )
        return model

    model = build_checked("torchvision", name, build, arguments)
    _adapt_stem(model, in_channels)
    if weights is not None:
        names = torchvision.models.get_model_weights(name).__members__
        if isinstance(weights, Weights):
            given = weights
        elif weights in names:
            entry = names[weights]
            known = None if all(map(WNID.fullmatch, classes)) else tuple(entry.meta["categories"])
            given = Weights(_official_weights(name, entry, arguments), known, str(entry))
        elif Path(weights).exists():
            given = read_weights(weights)
        else:
            raise ValueError(
                f"weights: {weights!r} is neither a file nor weights of torchvision/{name}:"
                f" {', '.join(names)}"
            )

        def of_size(count: int) -> nn.Module:
            return torchvision_model(name, count, in_channels, None, arguments)

        tell(load_weights(model, given, classes or _numbered(num_classes), of_size))
    return model


def timm_model(
    name: str,
    num_classes: int,
    in_channels: int,
    weights: Weights | str | None,
    arguments: Mapping[str, Any],
    classes: Sequence[str] = (),
    tell: Callable[[str], object] = str,
) -> nn.Module:
    """A timm model by name, optionally with the tag of its weights, such as "resnet18.a1_in1k".

    weights: None (random), "DEFAULT" (those of the tag, downloaded once; timm makes the new head
    and the new stem), the path of a state_dict file, or weights that were read; classes and tell
    as for ``torchvision_model``. arguments: for the model, such as drop_rate, or drop_path_rate for
    stochastic depth.
    Raises ImportError without timm, and ValueError for unknown names and arguments, and for
    weights that cannot be read.
    """
    try:
        import timm
    except ImportError:
        raise ImportError(f'timm/{name} needs timm: pip install -e ".[timm]"') from None
    # Only names from timm's list: an address such as hf-hub:... is refused.
    _check_name("timm", name, timm.list_models(pretrained="." in name))
    _check_arguments(f"timm/{name}", arguments)

    def build(**given: Any) -> nn.Module:
        given |= {"num_classes": num_classes, "in_chans": in_channels}
        model: nn.Module = timm.create_model(name, pretrained=weights == "DEFAULT", **given)
        return model

    try:
        model = build_checked("timm", name, build, arguments)
    except (OSError, RuntimeError) as error:
        if weights != "DEFAULT":
            raise
        known = timm.get_pretrained_cfg(name)
        url = f"https://huggingface.co/{known.hf_hub_id}" if known else "the Hugging Face hub"
        raise ValueError(
            f"weights: those of timm/{name} could not be downloaded from {url} "
            f"({_first_line(error)}). Without network, download its pytorch_model.bin "
            "elsewhere, and give its path as weights"
        ) from error
    if weights == "DEFAULT":
        _match_timm_head(model, num_classes, classes, tell)
    elif weights is not None:

        def of_size(count: int) -> nn.Module:
            return timm_model(name, count, in_channels, None, arguments)

        given = weights if isinstance(weights, Weights) else read_weights(weights)
        tell(load_weights(model, given, classes or _numbered(num_classes), of_size))
    return model


def _match_timm_head(
    model: Any, num_classes: int, classes: Sequence[str], tell: Callable[[str], object]
) -> None:
    """Start the head anew if timm took one for as many classes that are others; tell of the head.

    timm names no classes of its weights. ImageNet's folders are in their order.
    """
    given = getattr(model, "pretrained_cfg", None) or {}
    rows, is_imagenet = given.get("num_classes"), all(map(WNID.fullmatch, classes))
    pairs, about_head = match_rows(None, rows, classes or _numbered(num_classes))
    if pairs and not is_imagenet:
        model.reset_classifier(num_classes)
        about_head = f"the head starts fresh: its {rows} classes may be others than the data's"
    tell(f"timm/{given.get('architecture')}.{given.get('tag')}: {about_head}")


def _numbered(num_classes: int) -> list[str]:
    """Names for classes that match none of any weights."""
    return [f"class {label} of {num_classes}" for label in range(num_classes)]


def _check_name(library: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise ValueError(
            f"{library} has no model {name!r};"
            f" {'did you mean ' + ' or '.join(map(repr, near or known[:3]))}?"
        )


def _check_arguments(model: str, arguments: Mapping[str, Any]) -> None:
    if taken := sorted(RESERVED & arguments.keys()):
        raise ValueError(f"{model}: {', '.join(taken)} cannot be set; remove it")


def _adapt_stem(model: nn.Module, in_channels: int) -> None:
    """Change the first convolution, in place, to ``in_channels`` input channels."""
    name = first_convolution(model)
    assert name is not None, "every classifier of torchvision has one"
    old = model.get_submodule(name)
    assert isinstance(old, nn.Conv2d) and old.groups == 1
    if old.in_channels != in_channels:
        old.weight = nn.Parameter(spread_channels(old.weight.detach(), in_channels))
        old.in_channels = in_channels


def _official_weights(name: str, entry: Any, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """State dict of torchvision's weights, from its own builder, which converts old files."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(entry.url)
    try:
        # get_model unpickles anything; this first read, with weights_only, refuses all but tensors.
        entry.get_state_dict(check_hash=True, weights_only=True)
        own = without_depth("torchvision", arguments)
        trained = torchvision.models.get_model(name, weights=entry, **own)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"weights: {entry} could not be downloaded from {entry.url} ({_first_line(error)})."
            f" Without network, download that file elsewhere and put it at {file}"
        ) from error
    state: dict[str, Tensor] = trained.state_dict()
    if name in WITH_AUXILIARY_HEADS:
        return {k: v for k, v in state.items() if not k.startswith(("aux", "AuxLogits"))}
    return state


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
