"""The layers of any model, from its input to its output."""

from collections import Counter
from collections.abc import Iterator

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
MIN_BLOCK_MODULES = 3  # modules with weights: a convolution with its norm is not a block


def layers(model: nn.Module) -> list[list[str]]:
    """Parameter names of each layer, from the input layer to the head.

    For layer-wise learning rates, a residual or transformer block is one layer; elsewhere each
    module with a weight of two or more dimensions is one. A norm (or another module with vectors
    only) joins the convolution or linear layer right before it, else the next layer: the norm
    between blocks and head joins the head. Parameters that a model holds itself, such as class
    token and position embedding, join the layer before them, or the first layer.

    So a ViT of 12 blocks has 14 layers, as in Bao et al., 2021, "BEiT" (embedding, blocks, norm
    with head), and a ResNet-18 has 10 (stem, residual blocks, head). The order is that in which the
    model registered its modules; parallel branches count as separate layers.
    """
    known = {name for name, _ in model.named_parameters()}  # without second names of shared ones
    found: list[list[str]] = []
    waiting: list[str] = []  # parameters that join the next layer
    joins_before = False
    for prefix, module, whole in _walk("", model, whole=not any(True for _ in model.children())):
        own = module.named_parameters(prefix, recurse=whole)
        named = {name: parameter for name, parameter in own if name in known}
        if not whole:
            (found[-1] if found else waiting).extend(named)
        elif any(parameter.ndim > 1 for parameter in named.values()):
            found.append([*waiting, *named])
            waiting, joins_before = [], not any(True for _ in module.children())
        elif joins_before:
            found[-1].extend(named)
        else:
            waiting.extend(named)
    if waiting and found:
        found[-1].extend(waiting)
    return found or [waiting]


def _walk(prefix: str, module: nn.Module, whole: bool) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield (name, module, whole) for each module that is not subdivided, with ``whole`` True.

    A subdivided module comes before its children, with ``whole`` False: its own parameters only.
    """
    yield prefix, module, whole
    if not whole:
        for name, child in module.named_children():
            inner = f"{prefix}.{name}" if prefix else name
            yield from _walk(inner, child, whole=not _is_subdivided(child))


def _is_subdivided(module: nn.Module) -> bool:
    """Whether a module is several layers: a plain container, or a module that holds blocks.

    A subclass of a container, such as torchvision's convolution with norm, is one layer.
    """
    inside = [module, *module.children()]
    return type(module) in CONTAINERS or any(_holds_blocks(inner) for inner in inside)


def _holds_blocks(module: nn.Module) -> bool:
    """Whether a module is a container with two or more blocks of the same class."""
    if not isinstance(module, CONTAINERS):
        return False
    kinds = Counter(type(child) for child in module.children() if _is_block(child))
    return max(kinds.values(), default=0) > 1


def _is_block(module: nn.Module) -> bool:
    weighty = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    return len(weighty) >= MIN_BLOCK_MODULES
