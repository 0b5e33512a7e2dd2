"""Load weights that were trained for other classes or other input channels."""

from collections.abc import Mapping

from torch import Tensor, nn

from models.tensor_file import read_tensors


def read_weights(path: str) -> dict[str, Tensor]:
    """Read a state_dict file, such as a run's ``model.pt``, onto the CPU.

    No code in the file is executed. Raises ValueError if the file is missing, unreadable or
    damaged, or holds anything but names and dense real tensors.
    """
    try:
        state = read_tensors(path)
    except FileNotFoundError:
        raise ValueError(f"weights: there is no file {path!r}") from None
    except ValueError as error:
        raise ValueError(f"weights: {error}") from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise ValueError(
            f"weights: {path} is not a plain state_dict (names and tensors);"
            " save it with torch.save(model.state_dict(), path)"
        )
    for name, tensor in state.items():
        if tensor.is_complex():
            raise ValueError(f"weights: {path}: {name} is of {tensor.dtype}; expected real numbers")
    return state


def load_weights(model: nn.Module, state: Mapping[str, Tensor], num_classes: int) -> list[str]:
    """Load a state_dict into a model, in place; returns the names of tensors that were not loaded.

    Two differences are allowed. Tensors of a head for another number of classes are not loaded.
    The first convolution is adapted to another number of input channels.
    Raises ValueError that lists every other difference.
    """
    own = model.state_dict()  # with torch's version numbers, which some layers require
    first = f"{first_convolution(model)}.weight"
    new, faults = [], [f"unexpected {name}" for name in state if name not in own]
    for name, tensor in own.items():
        if name not in state:
            if not name.endswith("num_batches_tracked"):  # files from before 2018 lack it
                faults.append(f"missing {name}")
        elif state[name].shape == tensor.shape:
            own[name] = state[name]
        elif name == first and _without(1, state[name]) == _without(1, tensor):
            own[name] = spread_channels(state[name], tensor.shape[1])
        elif tensor.shape[:1] == (num_classes,) and _without(0, state[name]) == _without(0, tensor):
            new.append(name)
        else:
            faults.append(f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}")
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise ValueError(
            f"weights: they do not fit {type(model).__name__}: {'; '.join(faults[:8])}{more}."
            " The model's arguments must be those the weights were trained with"
        )
    model.load_state_dict(own)
    return new


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
