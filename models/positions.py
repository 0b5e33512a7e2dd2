"""Fit what a file knows of positions in the image to a model for another size of image."""

import math
import sys
import warnings
from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

TABLE = "encoder.pos_embedding"  # of torchvision's vision transformers
Size = tuple[int, int]  # height, width


def resample_positions(
    model: nn.Module,
    state: Mapping[str, Tensor],
    image_size: Size | None,
    others: Collection[str],
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors with those of positions resampled to the model's grid, and a sentence for each.

    image_size: of the images that the weights were trained on, None if it is not known. A grid is
    square then. ``others`` are names that are no positions. Vision transformers of torchvision and
    timm are resampled by torchvision and timm. What is not known to them stays as it is.
    """
    fitted, told = dict(state), list[str]()
    own = model.state_dict()
    if isinstance(model, VisionTransformer) and TABLE in state:
        given = state[TABLE]
        if given.shape != own[TABLE].shape:
            with suppress(ValueError):  # its grid is no square
                fitted |= interpolate_embeddings(
                    model.image_size, model.patch_size, OrderedDict({TABLE: given})
                )
                side = model.image_size // model.patch_size
                told.append(_sentence((math.isqrt(given.shape[1] - 1),) * 2, (side, side)))
    elif (found := _resample_timm(model, state, own, image_size)) is not None:
        fitted["pos_embed"], sentence = found
        told.append(sentence)
    differ = [n for n in own if n in fitted and n not in others and fitted[n].shape != own[n].shape]
    fit = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if differ and fit is not None:  # timm's own way from pretrained weights to each kind of model
        # The caller tells which tensors do not fit. timm calls torch in ways that torch warns of.
        with suppress(Exception), warnings.catch_warnings(action="ignore"):
            made = fit(dict(fitted), model)
            names = [n for n in differ if n in made and made[n].shape == own[n].shape]
            fitted |= {name: made[name] for name in names}
            told += [f"resampled by timm: {len(names)} tensors ({names[0]}, ...)"] if names else []
    return fitted, told


def _resample_timm(
    model: Any, state: Mapping[str, Tensor], own: Mapping[str, Tensor], image_size: Size | None
) -> tuple[Tensor, str] | None:
    """timm's ``pos_embed``, (1, tokens, D), for the model's grid, and a sentence; None if it fits.

    Tokens before those of the grid, such as that of the class, are kept.
    """
    patches: Any = getattr(model, "patch_embed", None)
    name = "pos_embed"
    grid = getattr(patches, "grid_size", None)
    if grid is None or name not in state or name not in own or own[name].ndim != 3:
        return None
    given, before = state[name], own[name].shape[1] - math.prod(grid)
    tokens = given.shape[1] - before if given.ndim == 3 else 0
    if not 0 <= before < own[name].shape[1] or tokens < 1:
        return None
    old = (math.isqrt(tokens),) * 2 if given.shape != own[name].shape else tuple(grid)
    with suppress(Exception):  # not every kind of patches has it
        its = patches.dynamic_feat_size(image_size) if image_size else old
        old = tuple(its) if math.prod(its) == tokens else old
    if old == tuple(grid) or math.prod(old) != tokens:
        return None
    from timm.layers.pos_embed import resample_abs_pos_embed

    made = resample_abs_pos_embed(given, list(grid), list(old), num_prefix_tokens=before)
    return made, _sentence(old, grid)


def _sentence(old: Size, new: Size) -> str:
    before, after = (f"{height} x {width}" for height, width in (old, new))
    return f"position embedding resampled from {before} to {after}"
