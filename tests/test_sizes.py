"""train.sizes: training images of another size in each part of a run; evaluation has its own."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.test_data_path import memory_part
from trainer.build.compile import Graphed
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.find_lr import main as find_lr
from trainer.input.loader import Delivery, Loader, Order
from trainer.loop.model_summary import epochs_of_sizes
from trainer.loop.summary import introduce
from trainer.process.errors import ConfigError
from transforms.own import Normalize, RandomErasing, RandomHorizontalFlip
from transforms.pipeline import Pipeline

SIZES = {0: (6, 6), 2: (5, 9), 3: (12, 12)}
ANY_SIZE = "model=torchvision/squeezenet1_1"


def weights_of(old: int, new: int) -> np.ndarray:
    """(new, old): how much of each old pixel is in each new one, for a triangle filter.

    The filter is as wide as a new pixel if images become smaller, which avoids aliasing.
    """
    scale = old / new
    wide = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    away = np.abs(np.arange(old)[None] + 0.5 - centres[:, None]) / wide
    weights = np.clip(1 - away, 0, None)
    shares: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return shares


def sized(part, sizes=SIZES):
    pipeline = Pipeline(part.pipeline.rest, part.pipeline.seed, sizes)
    return dataclasses.replace(part, pipeline=pipeline)


def test_an_epochs_images_are_the_finished_ones_resized_by_a_triangle_filter():
    transforms: list[Any] = [
        RandomHorizontalFlip(alternate=True),
        Normalize([0.4], [0.2]),
        RandomErasing(1.0),
    ]
    images = torch.randint(0, 256, (4, 3, 8, 10), dtype=torch.uint8)
    rows = torch.arange(4)
    for epoch, size in ((0, (6, 6)), (1, (6, 6)), (2, (5, 9)), (3, (12, 12)), (9, (12, 12))):
        whole, _ = Pipeline(transforms, 0)(images, rows, rows, epoch)
        found, _ = Pipeline(transforms, 0, SIZES)(images, rows, rows, epoch)
        down, across = weights_of(8, size[0]), weights_of(10, size[1])
        expected = np.einsum("ih,bchw,jw->bcij", down, whole.double().numpy(), across)
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)
        assert found.dtype == torch.float32


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_image_has_the_same_bits_in_any_batch_with_any_workers_and_from_any_start(channels_last):
    plain = memory_part(23, 16)
    part = sized(plain, {0: (12, 12), 2: (7, 16), 3: (16, 16)})

    def by_row(batch_size, workers, start=0):
        delivery = Delivery(workers, torch.device("cpu"), channels_last)
        loader = Loader(part, batch_size, Order(3), delivery)
        found: dict[tuple[int, int], torch.Tensor] = {}
        for epoch in range(4):
            for number, (images, _) in enumerate(loader.epoch(epoch, start), start):
                layout = torch.channels_last if channels_last else torch.contiguous_format
                assert images.is_contiguous(memory_format=layout)
                rows = loader.rows(epoch, number).tolist()
                found |= {(epoch, row): image for row, image in zip(rows, images, strict=True)}
        loader.close()
        return found

    whole = by_row(23, 0)
    assert {image.shape[1:] for image in whole.values()} == {(12, 12), (7, 16), (16, 16)}
    for other in (by_row(4, 0), by_row(5, 2), by_row(4, 0, start=2)):
        assert all(torch.equal(whole[key], image) for key, image in other.items())
    own = Loader(plain, 23, Order(3), Delivery(0, torch.device("cpu"), channels_last))
    (images, _) = next(own.epoch(3))  # of its own size an image is not touched
    rows = own.rows(3, 0).tolist()
    assert all(torch.equal(whole[3, row], one) for row, one in zip(rows, images, strict=True))


@pytest.mark.parametrize(
    ("sizes", "place", "message"),
    [
        ("{1ep: 24}", "1ep", "from 0ep on, not from 1ep"),
        ("{0ep: 24, 5ep: 32, 5ep: 28}", "5ep", "twice"),
        ("{0ep: 24, 5ep: 32, 4ep: 28}", "4ep", "comes before 5ep"),
        ("{0ep: 24, 20st: 32}", "20st", "expected the epoch"),
        ("{0ep: 0}", "0ep", "from 1 to 4,096"),
        ("{0ep: [24, 24, 3]}", "0ep", "a list of 2"),
        ("{}", "", "holds no size"),
        ("24", "", "expected a mapping"),
    ],
)
def test_a_wrong_size_is_told_at_its_line_before_anything_runs(config_file, sizes, place, message):
    text = config_file.read_text().replace("train: {", f"train: {{sizes: {sizes}, ")
    config_file.write_text(text)
    with pytest.raises(ConfigError, match=rf"yaml:\d+[^\n]*{place}[^\n]*{message}"):
        load_config(config_file)


@pytest.mark.parametrize("model", ["LeNet", "MLP"])
def test_each_size_that_the_model_cannot_take_is_told_before_a_run(config_file, model):
    sizes = "train.sizes={0ep: 24, 1ep: 32, 2ep: [28, 20]}"
    with pytest.raises(ConfigError) as told:
        prepare(load_config(config_file, [f"model={model}", sizes]), print)
    assert re.search(r"train\.sizes\.0ep: \w+ cannot take .* 24 x 24", str(told.value))
    assert re.search(r"train\.sizes\.2ep: \w+ cannot take .* 28 x 20", str(told.value))
    assert "sizes.1ep" not in str(told.value)


def test_only_training_changes_its_size_and_a_run_says_so(config_file):
    changed = ["train.sizes={0ep: 24, 1ep: [28, 32], 7ep: 64}", ANY_SIZE, "loader.workers=0"]
    told: list[str] = []
    job = prepare(load_config(config_file, changed), told.append)
    introduce(job, told.append)
    text = "\n".join(told)
    assert "sizes   training images are 24 x 24 from epoch 1 on, 28 x 32 from epoch 2 on" in text
    assert "64 x 64 begins after the run's 2 epochs" in text
    assert re.search(r"sizes\.7ep: enlarges images of 32 x 32", text)
    assert job.input_shape == (3, 32, 32)  # of model.json, and of predict
    for epoch, size in enumerate([(24, 24), (28, 32)]):
        assert {images.shape[2:] for images, _ in job.train_loader.epoch(epoch)} == {size}
        assert {images.shape[2:] for images, _ in job.val_loader.epoch(epoch)} == {(32, 32)}
    assert epochs_of_sizes(job) == {0: 1, 1: 1}


def test_find_lr_trains_at_the_size_of_evaluation(config_file, tmp_path, capsys):
    # LeNet takes no other size than 32 x 32.
    words = ["--config", str(config_file), "--steps", "20", "train.sizes={0ep: 24}"]
    assert find_lr([*words, "--output", str(tmp_path / "curve.png")]) in (0, 4)
    assert "train.sizes plays no part here" in capsys.readouterr().err


def test_a_cuda_graph_is_captured_for_each_size(monkeypatch):
    model = nn.Flatten()
    plain = model.forward

    def capture(module, inputs, allow_unused_input):
        module.forward = lambda images: plain(images) + len(inputs[0])

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    graphed = Graphed(model, [torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 4, 4)], "fp32")
    for side, count, is_graph in ((3, 2, True), (4, 2, True), (4, 1, False), (5, 2, False)):
        assert graphed(torch.zeros(count, 1, side, side)).max() == (2 if is_graph else 0)
