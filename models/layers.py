"""A model's layers, from its input to its output, whatever it is built of."""

from collections import Counter
from collections.abc import Iterator

from torch import nn

PLAIN = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
LEAST_OF_BLOCK = 3  # modules with weights: a convolution and its norm are no block yet


def layers(model: nn.Module) -> list[list[str]]:
    """The names of the parameters of each layer; the first is the input's, the last the head.

    A layer is what layer-wise learning rates take for one: a residual or transformer block as a
    whole, elsewhere a module with a weight of two or more dimensions. A norm (or another module of
    vectors only) belongs to the convolution or linear layer right before it, and otherwise to what
    comes next: the one between blocks and head to the head. What a model holds itself, such as
    class token and positions, belongs to what comes before it, or to the first layer.

    So a ViT of 12 blocks has 14, as in Bao et al., 2021, "BEiT" (embedding, blocks, norm with
    head), and a ResNet-18 10: stem, residual blocks, head. The order is that in which the model
    registered its modules; branches that run beside each other count as layers one by one.
    """
    known = {name for name, _ in model.named_parameters()}  # a shared one by its first name
    found: list[list[str]] = []
    waiting: list[str] = []  # of the layer that comes next
    joins_before = False
    for prefix, module, whole in _pieces("", model, whole=not any(True for _ in model.children())):
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


def _pieces(prefix: str, module: nn.Module, whole: bool) -> Iterator[tuple[str, nn.Module, bool]]:
    """Each module that is one piece, and of the others, before theirs, what they hold themselves.

    With its name, and whether the piece is the ``whole`` module.
    """
    yield prefix, module, whole
    if not whole:
        for name, child in module.named_children():
            inner = f"{prefix}.{name}" if prefix else name
            yield from _pieces(inner, child, whole=not _is_cut(child))


def _is_cut(module: nn.Module) -> bool:
    """Whether a module is several layers: a plain container, or one with blocks or a list of them.

    A class of its own that derives from a container, as torchvision's convolution with its norm,
    is a layer.
    """
    inside = [module, *module.children()]
    return type(module) in PLAIN or any(_holds_blocks(inner) for inner in inside)


def _holds_blocks(module: nn.Module) -> bool:
    """Whether a container has two or more blocks of a kind."""
    if not isinstance(module, PLAIN):
        return False
    kinds = Counter(type(child) for child in module.children() if _is_block(child))
    return max(kinds.values(), default=0) > 1


def _is_block(module: nn.Module) -> bool:
    weighty = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    return len(weighty) >= LEAST_OF_BLOCK
