"""Balanced sampling: every class equally often, and each visit of an image another augmentation."""

from collections import Counter

import pytest
import torch
import torchvision.transforms.v2 as v2
from hypothesis import given
from hypothesis import strategies as st

from datasets.memory import ImagesInMemory
from tests.test_resume import stopped_at
from tests.test_training import assert_same_run
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.input.loader import Delivery, Loader, Order
from trainer.input.subset import Subset
from transforms.keyed import balanced, permutation
from transforms.own import AlternatingFlip
from transforms.pipeline import Pipeline

CLASSES = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(torch.tensor)


def part_of(labels, transforms=(), seed=3):
    """Noise of 8 x 8 with these labels, which lies somewhere in a dataset."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(labels), 1, 8, 8), dtype=torch.uint8, generator=generator)
    names = [str(number) for number in range(int(labels.max()) + 1)]
    dataset = ImagesInMemory(images, labels.tolist(), len(labels), names)
    indices = torch.arange(len(labels)) + 7
    return Subset(dataset, Pipeline(transforms, seed), indices, labels, images, torch.arange(1))


@given(CLASSES, st.integers(0, 2**40), st.integers(0, 1000))
def test_classes_and_the_images_of_a_class_are_visited_equally_often_to_within_one(
    labels, seed, epoch
):
    order = balanced(labels, seed, epoch)
    rows = (order % len(labels)).tolist()
    assert len(rows) == len(labels)
    present = sorted(set(labels.tolist()))
    visits = Counter(labels[rows].tolist())
    assert sorted(visits) == [k for k in present if visits[k]]
    assert max(visits.values()) - min(visits[k] for k in present) <= 1
    for k in present:
        counts = [rows.count(i) for i in range(len(labels)) if labels[i] == k]
        assert max(counts) - min(counts) <= 1
    # Each visit of an image is numbered: 0, 1, ... in some order.
    for row, count in Counter(rows).items():
        numbers = (order[order % len(labels) == row] // len(labels)).tolist()
        assert sorted(numbers) == list(range(count))


@given(CLASSES, st.integers(0, 99), st.integers(0, 99))
def test_the_order_is_a_function_of_seed_and_epoch(labels, seed, epoch):
    assert torch.equal(balanced(labels, seed, epoch), balanced(labels.clone(), seed, epoch))


def test_another_seed_or_epoch_gives_another_order_and_a_mixed_one():
    labels = torch.tensor([0] * 190 + [1] * 10)
    orders = [balanced(labels, seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({tuple(order.tolist()) for order in orders}) == 16
    for order in orders:
        of_one = labels[order % 200]
        assert of_one.sum() == 100 and 25 <= of_one[:100].sum() <= 75
    seen = {row for epoch in range(30) for row in (balanced(labels, 0, epoch) % 200).tolist()}
    assert seen == set(range(200))  # no image of the large class is forgotten


def test_which_classes_have_one_more_changes():
    labels = torch.arange(7).repeat(3)[:20]  # 20 visits for 7 classes: six have one more
    least = {
        int(torch.bincount(labels[balanced(labels, 0, epoch) % 20]).argmin()) for epoch in range(60)
    }
    assert least == set(range(7))


CROP = [v2.RandomCrop(8, padding=4)]


def test_an_image_that_comes_again_is_cropped_otherwise_and_first_as_when_shuffled():
    part = part_of(torch.tensor([0] * 45 + [1] * 3), CROP)
    loader = Loader(part, 6, Order(1, "balanced"))
    order = balanced(part.labels, 1, 2)
    images = torch.cat([images for images, _ in loader.epoch(2)])
    for row in range(45, 48):
        of_row = (order % 48 == row).nonzero().flatten()
        assert len(of_row) == 8
        shown = {images[place].numpy().tobytes() for place in of_row.tolist()}
        assert len(shown) > 4  # of 81 crops
        first = of_row[order[of_row] // 48 == 0]
        assert torch.equal(images[first], part.batch(torch.tensor([row]), 2)[0])


def test_numbers_of_visits_reach_every_transform_that_draws():
    """One by its batched form, one per sample, one that goes by the epoch, and one that mixes."""
    for transform in (
        v2.ColorJitter(brightness=0.9),
        v2.RandAugment(),
        AlternatingFlip(),
        v2.MixUp(num_classes=2),
    ):
        part = part_of(torch.tensor([0] * 30 + [1]), [transform])
        visits = 31 * torch.arange(16)[:, None] + torch.tensor([[0, 30]])
        seen = [part.batch(rows)[0][-1].numpy().tobytes() for rows in visits]
        assert len(set(seen)) > (1 if isinstance(transform, AlternatingFlip) else 4), transform


@pytest.mark.parametrize("transforms", [CROP, [*CROP, v2.MixUp(num_classes=3)]])
def test_batch_size_start_workers_and_cache_change_nothing(transforms):
    labels = torch.tensor([0] * 20 + [1] * 7 + [2] * 4)
    part = part_of(labels, transforms)
    whole = [torch.cat(tensors) for tensors in zip(*Loader(
        part, 31, Order(5, "balanced")).epoch(3), strict=True)]  # fmt: skip
    uncached = Subset(part.dataset, part.pipeline, part.indices - 7, labels, None, part.extremes)
    for start, workers, size in ((0, 0, 4), (3, 0, 4), (2, 2, 4), (5, 1, 3)):
        loader = Loader(part, size, Order(5, "balanced"), Delivery(workers))
        got = [torch.cat(tensors) for tensors in zip(*loader.epoch(3, start), strict=True)]
        loader.close()
        for one, other in zip(got, whole, strict=True):
            assert torch.equal(one, other[start * size :])
    rows = Loader(part, 4, Order(5, "balanced"))._order(3)[:4]
    kept = Subset(part.dataset, part.pipeline, part.indices - 7, labels, part.images, part.extremes)
    for one, other in zip(uncached.batch(rows, 3), kept.batch(rows, 3), strict=True):
        assert torch.equal(one, other)


def test_the_rows_that_are_told_are_rows_of_the_part():
    part = part_of(torch.tensor([0] * 9 + [1]), CROP)
    loader = Loader(part, 4, Order(0, "balanced"))
    for number, (_, labels) in enumerate(loader.epoch(6)):
        rows = loader.rows(6, number)
        assert rows.max() < 10 and torch.equal(part.labels[rows], labels)


def test_shuffle_is_the_permutation_and_its_keys_are_the_samples_numbers():
    part = part_of(torch.tensor([0] * 9 + [1]), CROP)
    assert torch.equal(Loader(part, 4, Order(2))._order(5), permutation(10, 2, 5))
    assert torch.equal(part._keys(torch.arange(10)), part.indices)


def test_a_balanced_run_goes_on_exactly_and_evaluates_as_ever(
    train, finished, monkeypatch, tmp_path
):
    overrides = ("loader.sampling=balanced", "loader.batch_size=7", "split.ratios=[6, 2, 2]")
    straight = finished(*overrides)
    stopped_at(train, monkeypatch, 3, *overrides)
    runs = (tmp_path / "runs" / "small").iterdir()
    run = max(runs, key=lambda path: path.stat().st_ctime_ns)
    train(resume=run, file=run / "config.yaml")
    assert_same_run(straight, run)


def test_only_training_is_balanced(config_file):
    job = prepare(load_config(config_file, ["loader.sampling=balanced"]), print)
    assert job.train_loader.order.sampling == "balanced"
    assert job.val_loader.order == Order()
