"""Arrays of numbers become images of 8 bits: their shape is told apart, their range is checked."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets import DataError

TOGETHER = 1024  # images that are converted at a time
_OFF = 0.1  # grey levels: floats nearer to a whole one were made of uint8

_Convert = Callable[[NDArray[Any]], NDArray[Any]]


def as_images(arrays: Mapping[str, NDArray[Any]], channels: str) -> tuple[Tensor, str]:
    """All images of the arrays, one after the other: (N, C, H, W) uint8, and a note on conversion.

    The keys are the arrays' places, for messages. channels: "first", "last", or "auto" if only one
    is possible. A single array of uint8 is not copied, so (N, H, W, C) in memory becomes a view.
    Raises DataError for shapes and numbers that are no images.
    """
    ordered = {place: _channels_first(place, array, channels) for place, array in arrays.items()}
    (first, one), *others = ordered.items()
    for place, array in others:
        if array.shape[1:] != one.shape[1:] or array.dtype != one.dtype:
            raise DataError(
                f"{place}: images {array.dtype} {array.shape[1:]} (C, H, W), but those of {first} "
                f"are {one.dtype} {one.shape[1:]}; expected the same in all splits."
            )
    convert, note = _conversion(first, ordered)
    if not others and convert is None:
        return torch.from_numpy(one), note
    images = np.empty((sum(map(len, ordered.values())), *one.shape[1:]), np.uint8)
    done = 0
    for some in _pieces(ordered):
        images[done : done + len(some)] = some if convert is None else convert(some)
        done += len(some)
    return torch.from_numpy(images), note


def _channels_first(place: str, array: NDArray[Any], channels: str) -> NDArray[Any]:
    """A view (N, C, H, W)."""
    shape, expected = array.shape, "(N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W)"
    if 0 in shape:
        raise DataError(f"{place}: {shape} has no pixels; expected images {expected}.")
    if len(shape) == 3:
        return array[:, None]
    found = [
        end for end, axis in (("first", 1), ("last", 3)) if shape[axis:] and shape[axis] in (1, 3)
    ]
    if len(shape) != 4 or not found or channels not in ("auto", *found):
        advice = "; give the rows their height and width by reshape" if len(shape) == 2 else ""
        wanted = "" if channels == "auto" else f" with channels {channels}"
        raise DataError(f"{place}: {shape} are no images{wanted}; expected {expected}{advice}.")
    if channels == "auto" and len(found) > 1:
        raise DataError(
            f"{place}: {shape} may be (N, C, H, W) or (N, H, W, C); write dataset.channels=first "
            "or dataset.channels=last."
        )
    is_first = (found if channels == "auto" else [channels]) == ["first"]
    return array if is_first else np.moveaxis(array, 3, 1)


def _pieces(arrays: Mapping[str, NDArray[Any]]) -> Iterator[NDArray[Any]]:
    for array in arrays.values():
        for first in range(0, len(array), TOGETHER):
            yield array[first : first + TOGETHER]


def _conversion(place: str, arrays: Mapping[str, NDArray[Any]]) -> tuple[_Convert | None, str]:
    """The function that makes uint8, None if they are; and a note on it."""
    dtype = next(iter(arrays.values())).dtype
    if dtype == np.uint8:
        return None, ""
    if dtype.kind == "b":
        return lambda array: array * np.uint8(255), "images of bool: false is 0, true is 255"
    if dtype.kind not in "iuf":
        raise DataError(f"{place}: it holds {dtype}; expected the numbers of images, as uint8.")
    if dtype.kind == "u" and dtype.itemsize == 2:
        raise DataError(
            f"{place}: it holds 16 bits a channel (uint16); expected uint8: scale its range to 0 "
            "to 255 and save it again."
        )
    ends = [(piece.min(), piece.max()) for piece in _pieces(arrays)]
    low, high = np.min([end[0] for end in ends]), np.max([end[1] for end in ends])
    told = f"images of {dtype}, from {low:g} to {high:g}, are converted to uint8"
    if dtype.kind == "f" and low >= 0 and high <= 1:
        return _from_unit, f"{told}: times 255{_rounded(arrays)}"
    if low >= 0 and high <= 255 and all((piece % 1 == 0).all() for piece in _pieces(arrays)):
        dark = "; with such numbers they are nearly black" if high < 16 else ""
        return lambda array: array.astype(np.uint8), told + dark
    raise DataError(
        f"{place}: it holds {dtype} from {low:g} to {high:g}; expected uint8, whole numbers from "
        "0 to 255, or floats from 0 to 1. Save the images as they were before any normalisation."
    )


def _from_unit(array: NDArray[Any]) -> NDArray[Any]:
    """Grey levels of floats from 0 to 1."""
    levels: NDArray[Any] = np.rint(array.astype(np.float32) * 255)
    return levels


def _rounded(arrays: Mapping[str, NDArray[Any]]) -> str:
    count = sum(
        int((np.abs(piece.astype(np.float32) * 255 - _from_unit(piece)) > _OFF).sum())
        for piece in _pieces(arrays)
    )
    share = count / sum(array.size for array in arrays.values())
    return f" and rounded, {share:.1%} of the values between two grey levels" if count else ""
