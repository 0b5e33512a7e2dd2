"""All randomness of the data path: pure functions of integers, the same on every device.

A random parameter is a function of (seed, epoch, sample index, transform position, draw), so a
sample's augmentation does not depend on batch size, workers, processes, or where a run was resumed.
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
    return (words >> bits) & ((1 << (64 - bits)) - 1)  # int64 shifts drag the sign bit along


def _mix(words: Tensor) -> Tensor:
    words = (words ^ _shift_right(words, 30)) * _FACTOR_1
    words = (words ^ _shift_right(words, 27)) * _FACTOR_2
    return words ^ _shift_right(words, 31)


def _outputs(state: int, counters: Tensor) -> Tensor:
    """Those outputs (from 0) of SplitMix64 started at ``state``."""
    return _mix((counters + 1) * _GAMMA + state)


def _output(states: Tensor, counter: int) -> Tensor:
    """Output ``counter`` (from 0) of a SplitMix64 started at each of ``states``."""
    return _mix(states + _signed((counter + 1) * _GAMMA))


def seed_of(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part and on their order (SHA-256 of them)."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def keys(seed: int, epoch: int, indices: Tensor, position: int) -> Tensor:
    """One key for each sample, from which all draws of the transform at ``position`` are made.

    indices: (B,) int64 sample indices.  Returns (B,) int64 on the same device.
    """
    return _outputs(seed_of("sample", seed, epoch, position), indices)


def uniform(keys: Tensor, draw: int) -> Tensor:
    """Draw number ``draw`` (from 0) of each key: (B,) float64, uniform in [0, 1)."""
    return _shift_right(_output(keys, draw), 11).to(torch.float64) * 2.0**-53


def integers(keys: Tensor, draw: int, high: int) -> Tensor:
    """Draw number ``draw`` (from 0) of each key: (B,) int64, uniform in [0, high).

    Raises ValueError unless 1 <= high <= 2**31. No value is likelier than another by more than
    high / 2**32 (Lemire, 2019, "Fast random integer generation in an interval", without rejection).
    """
    if not 1 <= high <= 2**31:
        raise ValueError(f"high must lie in 1..2**31, but is {high}")
    return (_shift_right(_output(keys, draw), 32) * high) >> 32


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits ``n`` samples: (n,) int64, every index once."""
    words = _outputs(seed_of("order", seed, epoch), torch.arange(n))
    return torch.argsort(words, stable=True)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the body with torch's CPU generator seeded by ``seed``; its state is restored after.

    The generator is one for the whole process: no other thread may draw from it meanwhile.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)
