"""What decides whether prepared images are the same ones, and which datasets are stored at all."""

import hashlib
import importlib
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
from torch import nn

import datasets
from datasets import images
from datasets.image_folder import ImageFolder
from tests.stored_pictures import (
    RESIZED,
    Counted,
    is_right,
    load,
    pixels_of,
    recipe,
    resized,
    shown,
    write_pictures,
)
from trainer.input import source, store
from trainer.input.loader import Loader
from trainer.input.store import description, key_of, recipe_of
from transforms.own import Letterbox

Mode = v2.InterpolationMode


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(source, "clock", lambda: time.time_ns() + 10**10)  # files are old by then
    return write_pictures(tmp_path / "pictures")


def pools(tmp_path):
    folder = tmp_path / "store" / "images"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


# --- the same pool or another ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ["split.seed=7"],
        ["split.ratios=[2,1,1]"],
        ["split.folds=3", "split.fold=1"],
        ["loader.batch_size=3"],
        ["seed=4"],
        ["dataset.on_broken=skip"],
        ["train.epochs=3"],
        ["dataset.root=COPY"],
    ],
)
def test_what_decides_no_pixel_decides_no_pool(root, tmp_path, monkeypatch, overrides):
    if overrides == ["dataset.root=COPY"]:
        (tmp_path / "copy").symlink_to(root)
        overrides = [f"dataset.root={tmp_path / 'copy'}"]
    file = recipe(tmp_path / "a.yaml", root)
    load(file)
    before, counted = pools(tmp_path), Counted(monkeypatch)
    assert is_right(load(file, *overrides), root)
    assert pools(tmp_path) == before and len(before) == 1 and counted.decoded == []


@pytest.mark.parametrize(
    "other",
    [
        "[{name: Resize, size: [24, 18]}]",
        "[{name: Resize, size: [18, 24], antialias: false}]",
        "[{name: Resize, size: [18, 24], interpolation: bicubic}]",
        "[{name: Resize, size: 18}]",
        "[{name: CenterCrop, size: [18, 24]}]",
        "[{name: Resize, size: [18, 24]}, {name: Grayscale, num_output_channels: 3}]",
        "[{name: Grayscale, num_output_channels: 3}, {name: Resize, size: [18, 24]}]",
        "[]",
    ],
)
def test_another_prefix_of_fixed_transforms_is_another_pool(root, tmp_path, other):
    load(recipe(tmp_path / "a.yaml", root))
    before = pools(tmp_path)
    load(recipe(tmp_path / "b.yaml", root, other, RESIZED))
    assert len(pools(tmp_path) - before) == 1


def test_what_follows_the_fixed_transforms_decides_no_pool(root, tmp_path, monkeypatch):
    load(recipe(tmp_path / "a.yaml", root))
    before, counted = pools(tmp_path), Counted(monkeypatch)
    more = f"{RESIZED[:-1]}, {{name: RandomCrop, size: 9}}, {{name: Normalize, mean: [0.5, 0.5, "
    load(recipe(tmp_path / "b.yaml", root, f"{more}0.5], std: [1, 1, 1]}}]", RESIZED))
    assert pools(tmp_path) == before and counted.read == counted.decoded == []


def test_fast_decoding_is_another_pool_for_each_number_of_pixels_that_are_needed(root, tmp_path):
    load(recipe(tmp_path / "a.yaml", root))
    load(recipe(tmp_path / "a.yaml", root), "dataset.decode=fast")
    assert len(pools(tmp_path)) == 2
    no_prefix = [f"[{{name: RandomResizedCrop, size: {size}}}]" for size in (8, 16)]
    for crop in no_prefix:
        load(recipe(tmp_path / "a.yaml", root, crop, RESIZED), "dataset.decode=fast")
    assert len(pools(tmp_path)) == 4


@pytest.mark.parametrize("library", ["torch", "torchvision"])
def test_another_version_of_a_library_is_another_pool(root, tmp_path, monkeypatch, library):
    file = recipe(tmp_path / "a.yaml", root)
    load(file)
    monkeypatch.setattr(store, "version", lambda name: "9.9" if name == library else version(name))
    assert is_right(load(file), root) and len(pools(tmp_path)) == 2


def test_another_decoder_is_another_pool(root, tmp_path, monkeypatch):
    file = recipe(tmp_path / "a.yaml", root)
    load(file)
    assert "simplejpeg" in images.decoders()
    monkeypatch.setattr("datasets.bands.decoders", lambda: images.decoders() + " newer")
    assert is_right(load(file), root) and len(pools(tmp_path)) == 2


# --- transforms of one's own ----------------------------------------------------------------------

OWN = """
import numpy as np
import torch
from torch import nn
{helper}

class Own{base}:
    def __init__(self, value):
        {super}
        self.{name} = value

    def __call__(self, images):
        return images  # {mark}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Make an instance of a transform in a file of one's own."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(value, name="value", base="", mark="", helper="", super=""):
        text = OWN.format(name=name, base=base, mark=mark, helper=helper, super=super)
        (tmp_path / "own_transform.py").write_text(text)
        sys.modules.pop("own_transform", None)
        importlib.invalidate_caches()
        return importlib.import_module("own_transform").Own(value)

    yield make
    sys.modules.pop("own_transform", None)


def test_the_source_of_a_transform_of_ones_own_counts(own):
    assert description(own(1, mark="a")) == description(own(1, mark="a"))
    assert description(own(1, mark="a")) != description(own(1, mark="b"))


def test_the_source_of_its_base_class_counts(own, tmp_path):
    found = []
    for text in ("class Base: side = 1", "class Base: side = 2"):
        (tmp_path / "own_base.py").write_text(text)
        sys.modules.pop("own_base", None)
        found.append(description(own(1, base="(Base)", helper="from own_base import Base")))
    sys.modules.pop("own_base")
    assert found[0] != found[1]


@pytest.mark.parametrize("name", ["value", "_value", "__value"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, 1.0),
        ([1, 2], (1, 2)),
        ({"a": 1}, {"a": 2}),
        (np.zeros(5000), np.eye(5000)[4000]),
        (np.zeros(4), np.zeros((2, 2))),
        (torch.zeros(5000), torch.eye(5000)[4000]),
        (np.zeros(4, np.int32), np.zeros(4, np.float32)),
        (v2.Pad(3), v2.Pad(4)),
    ],
    ids=str,
)
def test_all_that_a_transform_holds_counts_private_or_not(own, name, one, other):
    first, second = (description(own(value, name)) for value in (one, other))
    assert first != second and first == description(own(one, name))


@pytest.mark.parametrize("kind", ["parameter", "buffer", "child", "grandchild"])
def test_what_a_module_holds_counts(own, kind):
    def module(number):
        made = own(1, base="(nn.Module)", super="super().__init__()")
        values = torch.full((3000,), 0.0)
        values[1500] = number
        if kind == "parameter":
            made.weight = nn.Parameter(values)
        elif kind == "buffer":
            made.register_buffer("table", values)
        else:
            inner = nn.Linear(1, 1)
            inner.weight.data[:], inner.bias.data[:] = number, 0
            made.inner = inner if kind == "child" else nn.Sequential(nn.ReLU(), inner)
        return description(made)

    assert module(1) == module(1) != module(2)


@pytest.mark.parametrize(
    "value",
    [lambda images: images, object(), [object()], [np.arange(5000)], [torch.arange(5000)]],
    ids=["function", "object", "objects", "arrays", "tensors"],
)
def test_a_transform_that_holds_what_cannot_be_compared_is_not_stored(root, own, value):
    with pytest.raises(ValueError, match="Own.value cannot be compared"):
        description(own(value))
    assert recipe_of(ImageFolder(str(root)), [own(value)], 0) is None
    assert recipe_of(ImageFolder(str(root)), [own(1)], 0) is not None


def test_the_projects_and_torchvisions_transforms_are_told_apart_by_their_arguments(root):
    data = ImageFolder(str(root))
    made = [
        [],
        *([v2.Resize(size)] for size in (8, [8], (8, 8), (8, 9))),
        *([v2.Resize(8, interpolation=mode)] for mode in (Mode.NEAREST, Mode.BICUBIC)),
        *([v2.Resize(8, antialias=False)], [v2.Resize(8, max_size=20)], [v2.CenterCrop(8)]),
        *([v2.Pad(1)], [v2.Pad(1, fill=3)], [v2.Pad(1, padding_mode="reflect")]),
        *([v2.Grayscale(1)], [v2.Grayscale(3)], [v2.FiveCrop(4)], [v2.TenCrop(4)]),
        *([v2.TenCrop(4, vertical_flip=True)], [Letterbox([8, 8])], [Letterbox([8, 9])]),
        [Letterbox([8, 8], fill=3)],
        *([v2.Resize(8), v2.Pad(1)], [v2.Pad(1), v2.Resize(8)]),
    ]
    recipes = [recipe_of(data, fixed, 0) for fixed in made]
    assert None not in recipes
    keys = [key_of(one) for one in recipes if one is not None]
    # Resize(8), Resize([8]): torchvision makes one of the other
    assert len(set(keys)) >= len(keys) - 1
    again = [recipe_of(ImageFolder(str(root)), fixed, 0) for fixed in made]
    assert again == recipes and recipe_of(data, [], 9) != recipes[0]


# --- datasets of one's own ------------------------------------------------------------------------


class Negative(ImageFolder):
    """Overrides image() alone."""

    def image(self, index):
        return 255 - super().image(index)


class NegativeDecode(ImageFolder):
    def decode(self, index, content, at_least=0):
        return 255 - super().decode(index, content, at_least)


class Encrypted(ImageFolder):
    """The files' bytes are others: here those of the next file."""

    def content(self, index):
        return super().content((index + 1) % len(self))


class Plain:
    """The protocol, and no more than that."""

    images = None

    def __init__(self, root: str) -> None:
        self._folder = ImageFolder(root)
        self.classes, self.labels = self._folder.classes, self._folder.labels
        self.ids, self.parts = self._folder.ids, self._folder.parts
        self.on_broken, self.note = "error", ""

    def __len__(self):
        return len(self.ids)

    def image(self, index):
        return 255 - self._folder.image(index)

    def digest(self, index):
        return self._folder.digest(index)

    def digests(self, indices):
        return None


class Given(Plain):
    """Gives texts for digests, which are no SHA-256."""

    def digests(self, indices):
        return [f"version 1 of {self.ids[index]}" for index in indices]


@pytest.fixture
def kind(root, tmp_path, monkeypatch):
    """A file that trains on a class of this module."""

    def file(kind, train=RESIZED):
        monkeypatch.setitem(datasets.DATASETS, kind.__name__, f"{__name__}:{kind.__name__}")
        made = recipe(tmp_path / f"{kind.__name__}.yaml", root, train, train)
        text = made.read_text().replace("ImageFolder", kind.__name__)
        made.write_text(text)
        return made

    return file


def expected(kind, root, name, names):
    if kind is Encrypted:
        return resized(root / names[(names.index(name) + 1) % len(names)])
    return v2.functional.resize(255 - pixels_of(root / name), [18, 24], antialias=True)


@pytest.mark.parametrize("cache", ["auto", "ram", "store", "off"])
@pytest.mark.parametrize("kind_", [Negative, NegativeDecode, Encrypted, Plain, Given])
def test_a_dataset_that_decodes_in_its_own_way_is_not_stored_and_works(
    root, tmp_path, kind, kind_, cache
):
    load(recipe(tmp_path / "a.yaml", root))  # the same files, decoded as they are
    before = pools(tmp_path)
    for workers in (0, 2):
        data = load(kind(kind_), f"loader.cache={cache}", f"loader.workers={workers}")
        names = list(data.dataset.ids)
        for subset in data.subsets.values():
            assert subset.cache == ("off" if cache == "off" else "ram")
            for name, image in shown(subset).items():
                assert torch.equal(image, expected(kind_, root, name, names)), name
        if kind_ in (Negative, NegativeDecode, Plain):
            files = {name: hashlib.sha256((root / name).read_bytes()) for name in names}
            digests = {k: v for part in list(data.split.values())[-3:] for k, v in part.items()}
            assert digests == {name: digest.hexdigest() for name, digest in files.items()}
        note = "prepared images are not stored (what decides the pixels of this dataset is not"
        assert any(one.startswith(note) for one in data.notes) == (cache == "store")
    assert pools(tmp_path) == before
    assert is_right(load(recipe(tmp_path / "a.yaml", root)), root)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_such_a_dataset_come_from_workers_too(root, kind, workers):
    data = load(kind(Negative), "loader.cache=ram")
    loader = Loader(data.subsets["val"], 2)
    object.__setattr__(loader.delivery, "workers", workers)
    try:
        found = torch.cat([batch for batch, _ in loader.epoch(0)])
    finally:
        loader.close()
    names = list(data.split["val"])
    wanted = torch.stack([expected(Negative, root, name, names) for name in names]) / 255
    assert torch.equal(found, wanted)


class OwnRecipe(Negative):
    """Says itself what decides its pixels."""

    @property
    def recipe(self):
        return f"negative of {Path(__file__).name}"


class InstanceRecipe(Plain):
    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.recipe = "negative"


@pytest.mark.parametrize("kind_", [OwnRecipe, InstanceRecipe])
def test_a_dataset_that_gives_its_own_recipe_is_stored(root, tmp_path, kind, kind_):
    for _ in range(2):
        data = load(kind(kind_))
        for subset in data.subsets.values():
            assert subset.cache == "store"
            for name, image in shown(subset).items():
                assert torch.equal(image, expected(kind_, root, name, ())), name
    assert len(pools(tmp_path)) == 1
