"""The keyed random numbers: known answers, distribution, independence, no global state."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transforms.keyed import Draws, _outputs, permutation, seed_of, seeded

MASK = 2**64 - 1
seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 10_000)


def splitmix64(state: int, counter: int) -> int:
    """Output ``counter`` of SplitMix64 as Vigna's C code computes it, in plain big integers."""
    word = (state + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def chi_square(counts: torch.Tensor) -> float:
    """Chi-square against equal counts, in standard deviations from its mean (df large)."""
    counts = counts.flatten().double()
    expected, df = counts.mean(), len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - df) / (2 * df) ** 0.5)


def test_outputs_are_the_published_ones_of_splitmix64():
    published = [  # Rosetta Code, "Pseudo-random numbers/Splitmix64", seed 1234567
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [word & MASK for word in _outputs(1234567, torch.arange(5)).tolist()] == published


@given(seeds, epochs, st.integers(0, 2**40), st.integers(0, 50), st.integers(0, 20), st.data())
def test_every_draw_equals_plain_big_integer_arithmetic(seed, epoch, index, position, draw, data):
    high = data.draw(st.integers(1, 2**31))
    key = splitmix64(seed_of("sample", seed, epoch, position), index)
    word = splitmix64(key, draw)

    def draws() -> Draws:
        """Those of the sample, with the earlier ones taken."""
        draws = Draws(seed, epoch, torch.tensor([index]), position)
        for _ in range(draw):
            draws.uniform()
        return draws

    assert int(draws().keys) & MASK == key
    assert draws().uniform().item() == (word >> 11) / 2**53
    assert draws().integers(high).item() == (word >> 32) * high >> 32
    assert draws().integers(torch.tensor([high])).item() == (word >> 32) * high >> 32
    many = [(splitmix64(word, k) >> 40) / 2**24 for k in range(3)]
    assert draws().many(3).tolist() == [many]


def test_draws_of_some_rows_are_those_of_the_batch():
    draws, rows = Draws(1, 2, torch.arange(10) * 3, 4), torch.tensor([7, 0, 3])
    assert torch.equal(draws.rows(rows).uniform(), draws.uniform()[rows])
    assert torch.equal(draws.rows(rows).inside(1).keys, draws.inside(1).keys[rows])


def test_draws_inside_a_transform_and_of_another_epoch_are_others():
    draws = Draws(1, 2, torch.arange(4), 4)
    others = [draws.inside(0), draws.inside(1), draws.inside(0).inside(0), draws.of_epoch(3)]
    words = torch.cat([draws.keys, *(other.keys for other in others)])
    assert len(words.unique()) == len(words)
    assert torch.equal(draws.of_epoch(3).keys, Draws(1, 3, torch.arange(4), 4).keys)


def test_every_order_of_a_permutation_is_equally_likely():
    orders = Draws(0, 0, torch.arange(48_000), 0).permutation(4)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(4).expand(48_000, 4))
    counts = torch.bincount((orders * torch.tensor([64, 16, 4, 1])).sum(dim=1))
    assert (counts > 0).sum() == 24 and abs(chi_square(counts[counts > 0])) < 4


def test_seed_of_is_the_same_in_every_process_and_version():
    # printf '["order", 0, 0]' | sha256sum | cut -c 1-16
    assert seed_of("order", 0, 0) == 0xDF088DC9A0203344 >> 1


def test_seed_of_depends_on_each_part_on_type_and_on_order():
    parts: list[tuple[int | str, ...]] = [(), (0,), ("0",), (0, 1), (1, 0), ("a", "b"), ("ab",)]
    values = [seed_of(*p) for p in parts]
    assert len(set(values)) == len(parts)
    assert all(0 <= value < 2**63 for value in values)


def test_uniform_is_uniform():
    values = Draws(0, 0, torch.arange(100_000), 0).uniform().sort().values
    assert 0 <= values[0] and values[-1] < 1
    distance = (values - (torch.arange(100_000) + 0.5) / 100_000).abs().max()
    assert distance < 1.95 / 100_000**0.5  # Kolmogorov-Smirnov, p = 0.001


@pytest.mark.parametrize("high", [2, 9, 162, 1000])
def test_integers_are_uniform_and_reach_every_value(high):
    values = Draws(1, 2, torch.arange(100_000), 3).integers(high)
    counts = torch.bincount(values, minlength=high)
    assert len(counts) == high
    assert abs(chi_square(counts)) < 4


@pytest.mark.parametrize("high", [0, -1, 2**31 + 1])
def test_integers_refuse_an_impossible_range(high):
    with pytest.raises(ValueError, match=r"1\.\.2\*\*31"):
        Draws(0, 0, torch.arange(1), 0).integers(high)


NEIGHBOURS = {
    "seed": ((0, 0, 0, 0, 0), (1, 0, 0, 0, 0)),
    "epoch": ((0, 0, 0, 0, 0), (0, 1, 0, 0, 0)),
    "index": ((0, 0, 0, 0, 0), (0, 0, 1, 0, 0)),
    "position": ((0, 0, 0, 0, 0), (0, 0, 0, 1, 0)),
    "draw": ((0, 0, 0, 0, 0), (0, 0, 0, 0, 1)),
    "seed against epoch": ((0, 1, 0, 0, 0), (1, 0, 0, 0, 0)),
    "epoch against position": ((0, 1, 0, 0, 0), (0, 0, 0, 1, 0)),
}


@pytest.mark.parametrize(("one", "other"), NEIGHBOURS.values(), ids=NEIGHBOURS.keys())
def test_draws_of_neighbouring_arguments_are_independent(one, other):
    def draws(seed: int, epoch: int, index: int, position: int, draw: int) -> torch.Tensor:
        draws = Draws(seed, epoch, torch.arange(100_000) + index, position)
        return [draws.integers(16) for _ in range(draw + 1)][-1]

    joint = torch.bincount(draws(*one) * 16 + draws(*other), minlength=256)
    assert abs(chi_square(joint)) < 4


@given(st.integers(0, 300), seeds, epochs)
def test_permutation_holds_every_index_once(n, seed, epoch):
    assert permutation(n, seed, epoch).sort().values.tolist() == list(range(n))


def test_permutation_is_a_function_of_seed_and_epoch():
    order = permutation(1000, 0, 0)
    assert torch.equal(order, permutation(1000, 0, 0))
    for other in (permutation(1000, 0, 1), permutation(1000, 1, 0), torch.arange(1000)):
        assert (order == other).sum() < 10  # a random order agrees in one place on average


def test_every_sample_is_equally_often_at_every_place():
    orders = torch.stack([permutation(8, 0, epoch) for epoch in range(8000)])
    counts = torch.stack([torch.bincount(place, minlength=8) for place in orders.T])
    assert abs(chi_square(counts)) < 4


def test_keyed_numbers_neither_read_nor_move_the_global_generator():
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append((Draws(0, 0, torch.arange(4), 0).uniform(), permutation(9, 0, 0)))
        assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_seeded_draws_as_manual_seed_and_restores_the_generator():
    torch.manual_seed(5)
    expected, after = torch.rand(3), torch.rand(3)
    torch.manual_seed(5)
    torch.rand(3)
    with pytest.raises(KeyError), seeded(5):
        inside = torch.rand(3)
        raise KeyError
    assert torch.equal(inside, expected)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_the_same_numbers_as_the_cpu():
    indices = torch.arange(1000)
    cpu, cuda = Draws(3, 4, indices, 5), Draws(3, 4, indices.cuda(), 5)
    assert torch.equal(cpu.keys, cuda.keys.cpu())
    assert torch.equal(cpu.uniform(), cuda.uniform().cpu())
    assert torch.equal(cpu.integers(81), cuda.integers(81).cpu())
    assert torch.equal(cpu.many(9), cuda.many(9).cpu())
