"""Which images of a batch belong to a rank, and how a rank cuts them into micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

Bounds = tuple[int, int]  # from and to, in the order of an epoch


def share_of(count: int, rank: int, ranks: int) -> Bounds:
    """From and to: the rank's images among ``count`` in a row. Sizes differ by at most one."""
    least, more = divmod(count, ranks)
    low = rank * least + min(rank, more)
    return low, low + least + (rank < more)


@dataclass(frozen=True)
class Shares:
    """How the ranks share the batches of a split.

    A shuffled batch (training) is cut: each rank gets ``share_of`` it, at least one image.
    Batches in the split's own order (evaluation) alternate: rank r gets batches r, r + ranks, ...
    even: a rank with one batch fewer gets a padding image, without a label, in place of that batch.
    """

    rank: int = 0
    ranks: int = 1
    even: bool = False

    def bounds(self, batches: list[Bounds], cut_each: bool) -> tuple[list[Bounds], list[Bounds]]:
        """From and to, in the epoch's order, of this rank's batches; then of padding images."""
        if cut_each:
            return [self._cut(begin, end) for begin, end in batches], []
        own = batches[self.rank :: self.ranks]
        fills = self.even and len(own) < self.rounds(len(batches), cut_each)
        return own, [(0, 1)] if fills else []

    def rounds(self, batches: int, cut_each: bool) -> int:
        """The largest number of ``batches`` that any rank gets."""
        return batches if cut_each else -(-batches // self.ranks)

    def _cut(self, begin: int, end: int) -> Bounds:
        low, high = share_of(end - begin, self.rank, self.ranks)
        low = min(low, end - begin - 1)  # fewer images than ranks: this rank gets one to go on with
        return begin + low, begin + max(high, low + 1)


def in_micro_batches(
    images: Tensor, labels: Tensor, batch_size: int, accumulate: int, shares: Shares
) -> Iterator[tuple[Tensor, Tensor, float, int, bool]]:
    """Split this rank's images into micro-batches, the same number on every rank.

    Yields images, labels, weight in the mean over the whole batch, index of the first image,
    is_last. ``batch_size`` counts the images of all ranks. The weight is 0 if the batch has fewer
    images than there are ranks and another rank has this rank's image too.
    """
    low, high = share_of(batch_size, shares.rank, shares.ranks)
    count = min(accumulate, max(batch_size // shares.ranks, 1))
    if count == 1:
        yield images, labels, (high - low) / batch_size, low, True
        return
    pieces = zip(images.tensor_split(count), labels.tensor_split(count), strict=True)
    for number, (some, targets) in enumerate(pieces, start=1):
        weight = len(some) / batch_size if high > low else 0.0
        yield some, targets, weight, low, number == count
        low += len(some)
