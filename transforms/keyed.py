"""All randomness of the data path: pure functions of integers, the same on every device.

A random parameter is a function of (seed, epoch, sample index, transform position, draw number), so
augmentation does not depend on batch size, workers, ranks, or where a run was resumed.
The numbers are those of SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom
number generators"): output i of state s is mix(s + (i + 1) * gamma), in 64-bit integer arithmetic.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """The int64 with the lowest 64 bits of ``word``: torch has no uint64 arithmetic."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FACTOR_1 = _signed(0xBF58476D1CE4E5B9)
_FACTOR_2 = _signed(0x94D049BB133111EB)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    return (words >> bits) & ((1 << (64 - bits)) - 1)  # int64 shifts copy the sign bit


def _mix(words: Tensor) -> Tensor:
    words = (words ^ _shift_right(words, 30)) * _FACTOR_1
    words = (words ^ _shift_right(words, 27)) * _FACTOR_2
    return words ^ _shift_right(words, 31)


def _outputs(state: int, counters: Tensor) -> Tensor:
    """The outputs number ``counters`` (from 0) of SplitMix64 started at ``state``."""
    return _mix((counters + 1) * _GAMMA + state)


def seed_of(*values: int | str) -> int:
    """A seed in [0, 2**63) that depends on every value and on their order (SHA-256 of them)."""
    digest = hashlib.sha256(json.dumps(values).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_at(seed: int, number: int) -> int:
    """One of a sequence of seeds: the state of SplitMix64 after ``number`` outputs, in [0, 2**63).

    Cheap enough for every step; ``seed_of`` takes 10 microseconds.
    """
    return (seed + number * 0x9E3779B97F4A7C15) % (1 << 63)


class Draws:
    """The random numbers of one transform for a batch, with a separate stream for each sample.

    Each call takes the next draw of every stream. A stream is a function of (seed, epoch, sample
    index, positions). ``positions`` are the transform's position in the list and in each transform
    that contains it. Numbers are on the device of ``indices``: the CPU, as some GPUs lack float64.
    """

    def __init__(self, seed: int, epoch: int, indices: Tensor, *positions: int) -> None:
        self.seed, self.epoch, self.indices, self.positions = seed, epoch, indices, positions
        self.keys = _outputs(seed_of("sample", seed, epoch, *positions), indices)  # (B,) int64
        self._taken = 0

    def __len__(self) -> int:
        return len(self.keys)

    def _next(self) -> Tensor:
        self._taken += 1
        return _mix(self.keys + _signed(self._taken * _GAMMA))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B,) float64, uniform in [low, high): the upper 53 bits of a word."""
        return _shift_right(self._next(), 11).to(torch.float64) * 2.0**-53 * (high - low) + low

    def integers(self, high: int | Tensor) -> Tensor:
        """(B,) int64, uniform in [0, high); ``high`` (one, or one per sample) is in 1..2**31.

        No value is likelier than another by more than high / 2**32 (Lemire, 2019, "Fast random
        integer generation in an interval", without rejection). Raises ValueError for another
        ``high``.
        """
        if isinstance(high, int) and not 1 <= high <= 2**31:
            raise ValueError(f"high must lie in 1..2**31, but is {high}")
        return (_shift_right(self._next(), 32) * high) >> 32

    def many(self, count: int, device: torch.device | None = None) -> Tensor:
        """(B, count) float32 on ``device``, uniform in [0, 1): one draw of ``count`` numbers."""
        states = self._next().to(device, non_blocking=True)
        counters = torch.arange(1, count + 1, device=states.device) * _GAMMA
        words = _mix(states[:, None] + counters)
        return _shift_right(words, 40).to(torch.float32) * 2.0**-24

    def permutation(self, n: int) -> Tensor:
        """(B, n) int64: a random order of 0..n-1 for each sample."""
        return torch.argsort(self.many(n), dim=1, stable=True)

    def rows(self, rows: Tensor) -> "Draws":
        """Draws of the samples ``rows`` of the batch, from their first draw on."""
        return Draws(self.seed, self.epoch, self.indices[rows], *self.positions)

    def inside(self, position: int) -> "Draws":
        """Draws of the inner transform at ``position``."""
        return Draws(self.seed, self.epoch, self.indices, *self.positions, position)

    def of_epoch(self, epoch: int) -> "Draws":
        """Draws of another epoch, from their first draw on."""
        return Draws(self.seed, epoch, self.indices, *self.positions)


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits ``n`` samples: (n,) int64, every index once."""
    words = _outputs(seed_of("order", seed, epoch), torch.arange(n))
    return torch.argsort(words, stable=True)


def balanced(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """A random order in which an epoch visits every class equally often: (n,) int64, for n labels.

    Numbers of visits differ by at most one between classes, and between images of a class; which
    get one more is random in each epoch. Visit k (from 0) of sample i is coded as i + k * n, so
    that repeated visits get other random numbers.
    """
    n = len(labels)
    shuffled = permutation(n, seed_of("cycle", seed), epoch)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]  # each class in random order
    sizes = torch.bincount(labels)
    sizes = sizes[sizes > 0]  # classes without images are not visited
    visits = torch.full_like(sizes, n // len(sizes))
    visits[permutation(len(sizes), seed_of("one more", seed), epoch)[: n % len(sizes)]] += 1
    classes = torch.repeat_interleave(visits)  # (n,) the class of each visit
    number = torch.arange(n) - (visits.cumsum(0) - visits)[classes]  # within its class
    size, first = sizes[classes], (sizes.cumsum(0) - sizes)[classes]
    order: Tensor = by_class[first + number % size] + number // size * n
    return order[permutation(n, seed, epoch)]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context manager: seed torch's CPU generator with ``seed``; restore its state at the end.

    All threads share this generator: no other thread may draw from it meanwhile.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)
