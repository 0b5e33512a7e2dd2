"""Images with their own channels and 16 bits a channel: kept, transformed, trained, used."""

import json
import runpy
from contextlib import closing

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
from PIL import Image

from datasets import BrokenImage, DataError
from tests.deep_pictures import levels, npy, saved, tif
from tests.picture_files import png, tiff
from trainer.build.prepare import prepare
from trainer.build.trained import load_trained
from trainer.config import load_config
from trainer.drawing.pictures import to_picture
from trainer.input.data import load_data
from trainer.input.kept import place_kept
from trainer.input.loader import train_loader
from trainer.input.pool import LAST, RECORD, image_bytes
from trainer.insight.data_facts import inspect_dataset
from trainer.loop.fit import fit
from trainer.predict import main as predict
from trainer.process.errors import ConfigError
from trainer.process.stop import StopRequest
from transforms.own import Letterbox, Normalize
from transforms.pipeline import Pipeline

CPU = torch.device("cpu")


# --- transforms -----------------------------------------------------------------------------------


def images_of(count=3, channels=5, height=40, width=50):
    return torch.from_numpy(levels(count, channels, height, width))


def prepared(images, *transforms):
    return Pipeline(transforms, 0).prepare(images).numpy()


def test_crops_pads_and_flips_of_16_bits_change_no_value():
    images = images_of()
    array = images.numpy()
    assert np.array_equal(prepared(images, v2.CenterCrop(20)), array[..., 10:30, 15:35])
    padded = np.pad(array, [(0, 0), (0, 0), (2, 2), (2, 2)])
    assert np.array_equal(prepared(images, v2.Pad(2)), padded)
    rows, labels = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    flipped = Pipeline([v2.RandomHorizontalFlip(1), v2.RandomVerticalFlip(1)], 0)
    found, _ = flipped(images, labels, rows, 0)
    assert np.array_equal(
        found.numpy(), array[..., ::-1, ::-1].astype(np.float32) / np.float32(65535)
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_a_resize_of_16_bits_is_torchvisions_of_float64_within_one_level(interpolation):
    images = images_of()
    resize = v2.Resize([17, 23], interpolation=v2.InterpolationMode(interpolation))
    expected = resize(images.to(torch.float64)).numpy().clip(0, 65535)
    found = prepared(images, resize)
    assert found.dtype == np.uint16
    assert np.abs(found - expected).max() <= 0.6


def test_a_letterbox_of_16_bits_fills_with_the_same_grey_as_of_8():
    found = prepared(images_of(), Letterbox([60, 60], fill=[100]))
    assert (found[..., 0, :] == 100 * 257).all()


def test_the_numbers_of_16_bits_are_divided_by_65535_and_normalised_by_channel():
    images, mean, std = images_of(), [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]
    found, _ = Pipeline([Normalize(mean, std)], 0)(
        images, torch.zeros(3, dtype=torch.int64), torch.arange(3), 0
    )
    scaled = images.numpy().astype(np.float32) / np.float32(65535)
    m, s = (np.array(x, np.float32).reshape(5, 1, 1) for x in (mean, std))
    assert np.array_equal(found.numpy(), (scaled - m) / s)
    eight = torch.randint(0, 256, (3, 5, 9, 9), dtype=torch.uint8)
    both = [
        Pipeline([v2.RandomRotation(30), Normalize(mean, std)], 0)(
            x, torch.zeros(3), torch.arange(3), 0
        )
        for x in (eight, (eight.int() * 257).to(torch.uint16))
    ]
    assert torch.allclose(both[0][0], both[1][0], atol=0.03)  # rotated in float, not in grey levels


def test_pictures_show_the_first_three_channels_and_the_high_byte():
    array = levels(5, 8, 9)
    for channels in (1, 2, 3, 4, 5):
        shown = array[: 3 if channels > 2 else 1] >> 8
        expected = np.broadcast_to(shown, (3, 8, 9)).transpose(1, 2, 0)
        assert np.array_equal(np.asarray(to_picture(torch.from_numpy(array[:channels]))), expected)


# --- runs -----------------------------------------------------------------------------------------

CONFIG = """
name: bits
dataset: {{name: ImageFolder, root: {root}, channels: keep, bits: {bits}}}
split: {{ratios: [2, 1, 1]}}
transforms:
  train: [{transforms}]
  eval: [{transforms}]
loader: {{batch_size: 16, workers: 0}}
model: {{name: MLP, hidden: [16]}}
optimizer: {{name: Adam, lr: 0.01}}
train: {{epochs: 8, device: cpu}}
log: {{images: 2}}
"""
LOW_BYTE = "{name: Normalize, mean: [0.501961], std: [0.0009766]}"  # 0x8080, 64 levels


def config(tmp_path, root, bits=16, transforms=LOW_BYTE, *overrides):
    path = tmp_path / "bits.yaml"
    path.write_text(CONFIG.format(root=root, bits=bits, transforms=transforms))
    return load_config(path, overrides)


def run_of(config, folder):
    job = prepare(config, lambda line: None)
    with StopRequest() as stop:
        return fit(job, folder, None, lambda line: None, stop)


@pytest.fixture(scope="module")
def low_byte(tmp_path_factory):
    """Images of 8 x 8 whose high byte is always 0x80: only the low byte tells the class."""
    root = tmp_path_factory.mktemp("low")
    random = np.random.default_rng(1)
    for name, middle in (("dark", 0x8040), ("light", 0x80C0)):
        (root / name).mkdir()
        for number in range(40):
            array = (middle + random.integers(-60, 60, (8, 8))).astype(np.uint16)
            kinds = {"tif": tif(array), "png": png(array[..., None], 16, 0), "npy": npy(array)}
            suffix = list(kinds)[number % 3]
            (root / name / f"{number}.{suffix}").write_bytes(kinds[suffix])
    return root


@pytest.fixture(scope="module")
def finished_run(low_byte, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return run_of(config(folder, low_byte), folder / "runs")


def result(run):
    return json.loads((run / "result.json").read_text())["test"]["accuracy"]


def test_what_the_low_byte_tells_is_learnt_with_16_bits_only(low_byte, finished_run, tmp_path):
    assert result(finished_run) == 1
    eight = run_of(config(tmp_path, low_byte, 8), tmp_path / "runs")
    assert 0.3 <= result(eight) <= 0.7  # all images are equal: one class for all


def test_predict_reads_16_bits_as_the_run_did(low_byte, finished_run, capsys):
    predict([str(finished_run), str(low_byte), "--sheet", str(finished_run / "sheet.png")])
    lines = capsys.readouterr().out.splitlines()[1:]
    found = [line.split()[:2] for line in lines if line.startswith("/")]
    assert len(found) == 80
    assert all(f"/{name}/" in path for path, name in found)
    with Image.open(finished_run / "sheet.png") as sheet:
        assert sheet.mode == "RGB"


def test_an_image_of_other_channels_is_refused_by_predict(finished_run, tmp_path):
    (tmp_path / "x.png").write_bytes(saved(levels(8, 8, 3, bits=8), "PNG"))
    with pytest.raises(BrokenImage, match="has 3 channels, and the run's images 1"):
        load_trained(finished_run).read(tmp_path / "x.png")


def test_a_refused_image_is_not_counted_among_those_that_were_scaled(
    finished_run, low_byte, tmp_path, capsys
):
    """Neither one of other channels nor one of another size, which the model refuses."""
    good = sorted(map(str, (low_byte / "dark").iterdir()))[:4]
    for name, shape in (("colour", (8, 8, 3)), ("large", (9, 9))):
        (tmp_path / f"{name}.png").write_bytes(saved(np.full(shape, 7, np.uint8), "PNG"))
    refused = [str(tmp_path / "colour.png"), str(tmp_path / "large.png")]
    assert predict([str(finished_run), *good, *refused]) == 3
    told = capsys.readouterr().err
    assert "2 files cannot be used; 4 files are done" in told and "scaled" not in told
    grey = tmp_path / "grey.png"
    grey.write_bytes(saved(np.full((8, 8), 7, np.uint8), "PNG"))
    predict([str(finished_run), *good, str(grey), *refused])
    assert "1 of 5 images holds fewer than 16 bits" in capsys.readouterr().err


def test_the_onnx_file_and_its_program_answer_from_the_low_byte(low_byte, finished_run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason='needs pip install -e ".[export]"')
    from trainer.export import main

    main([str(finished_run), "--format", "onnx", "--output", str(tmp_path)])
    session = onnxruntime.InferenceSession(tmp_path / "bits.onnx")
    program = runpy.run_path(str(tmp_path / "bits_onnx.py"))
    card = json.loads((tmp_path / "bits.json").read_text())
    assert (card["image_channels"], card["image_bits"]) == (1, 16)
    for label, name in enumerate(("dark", "light")):
        for path in sorted((low_byte / name).glob("*.npy")):
            scaled = np.load(path).astype(np.float32)[None, None] / np.float32(65535)
            images = (scaled - np.float32(0.501961)) / np.float32(0.0009766)
            assert session.run(None, {"images": images})[0].argmax() == label
            assert np.array_equal(program["preprocess"](path, card), images)


@pytest.mark.parametrize("size", [8, 200])  # small images are kept as a table, large ones alone
def test_each_place_of_prepared_images_gives_the_same_16_bits(tmp_path, size):
    root = tmp_path / "data"
    for name in "ab":
        (root / name).mkdir(parents=True)
        for number in range(8):
            array = levels(size, size, 5, seed=number + 10 * (name == "a"))
            (root / name / f"{number}.npy").write_bytes(npy(array))
    normalize = f"{{name: Normalize, mean: {[0.5] * 5}, std: {[0.25] * 5}}}"
    transforms = f"{{name: CenterCrop, size: {size - 2}}}, {normalize}"
    found = {}
    for cache in ("off", "ram", "store", "store"):  # the last reads what the third has written
        data = load_data(config(tmp_path, root, 16, transforms, f"loader.cache={cache}"), CPU)
        subset = data.subsets["train"]
        assert subset.cache == cache
        images = subset.batch(torch.arange(len(subset)))[0]
        for index, image in zip(subset.indices.tolist(), images, strict=True):
            array = np.load(root / data.dataset.ids[index])[1:-1, 1:-1].transpose(2, 0, 1)
            expected = (
                array.astype(np.float32) / np.float32(65535) - np.float32(0.5)
            ) / np.float32(0.25)
            assert np.array_equal(image.numpy(), expected), cache
        found[cache] = images
        assert any("first three of 5 channels and the high byte" in note for note in data.notes)
    assert torch.equal(found["off"], found["store"])


def test_records_of_a_store_from_before_16_bits_mean_the_same():
    fields = [("digest", "u1", 32), ("shape", "<i4", 4), ("offset", "<i8"), ("remark", "<u2")]
    old = np.zeros(2, np.dtype([*fields, ("last", "?")]))
    old["last"], old["shape"] = [False, True], [[0, 3, 4, 5], [2, 3, 4, 5]]
    records = np.frombuffer(old.tobytes(), RECORD)
    assert records["layout"].tolist() == [0, LAST]
    assert image_bytes(records).tolist() == [60, 120]


def test_no_gpu_keeps_16_bits(low_byte, tmp_path):
    gpu = torch.device("cuda")
    auto = config(tmp_path, low_byte)
    assert place_kept(auto, Pipeline([], 0), 1, True, gpu, True) == CPU
    wanted = config(tmp_path, low_byte, 16, LOW_BYTE, "loader.cache=device")
    with pytest.raises(DataError, match="device takes no images of 16 bits"):
        place_kept(wanted, Pipeline([], 0), 1, True, gpu, True)


def test_workers_give_the_same_16_bits(tmp_path):
    root = tmp_path / "data"
    for name in "ab":
        (root / name).mkdir(parents=True)
        for number in range(8):
            array = levels(90, 90, 5, seed=number + 10 * (name == "a"))
            (root / name / f"{number}.npy").write_bytes(npy(array))
    crop = "{name: RandomCrop, size: 60}, {name: RandomHorizontalFlip}"
    config(tmp_path, root, 16, "")
    path = tmp_path / "bits.yaml"
    path.write_text(path.read_text().replace("train: []", f"train: [{crop}]"))
    found = []
    for workers in (0, 2):
        settings = load_config(
            path, [f"loader.workers={workers}", "loader.cache=off", "loader.batch_size=4"]
        )
        loader = train_loader(settings, load_data(settings, CPU).subsets["train"], CPU)
        with closing(loader):
            found.append([images.clone() for images, _ in loader.epoch(1)])
    assert found[0][0].shape == (4, 5, 60, 60)
    values = found[0][0].double() * 65535
    assert torch.allclose(values, values.round(), rtol=0, atol=0.01)
    assert values.round().remainder(256).unique().numel() > 200  # the low byte is there
    assert all(map(torch.equal, *found))


def test_images_of_different_channels_are_told_in_one_error_with_counts(tmp_path):
    root = tmp_path / "data"
    for name in "ab":
        (root / name).mkdir(parents=True)
        for number in range(8):
            channels = {0: 4, 1: 1}.get(number, 3)
            array = levels(8, 8, channels, bits=8, seed=number + 10 * (name == "a"))
            (root / name / f"{number}.png").write_bytes(saved(array.squeeze(), "PNG"))
    for cache in ("off", "ram", "store"):
        with pytest.raises(DataError) as refused:
            load_data(config(tmp_path, root, 8, "", f"loader.cache={cache}"), CPU)
        told = str(refused.value)
        assert "1 channel: 2 images, first " in told
        assert "3 channels: 12 images, first " in told
        assert "4 channels: 2 images, first " in told
        assert "dataset.channels=rgb" in told
    with pytest.raises(DataError, match="3 channels: 12 images, first "):
        inspect_dataset(config(tmp_path, root, 8, ""), search_near=False)  # of trainer.data
    load_data(config(tmp_path, root, 8, "", "dataset.channels=rgb"), CPU)


def test_grey_on_one_side_only_is_still_a_fault_of_the_transforms(tmp_path):
    root = tmp_path / "data"
    for name in "ab":
        (root / name).mkdir(parents=True)
        for number in range(8):
            array = levels(8, 8, 3, bits=8, seed=number + 10 * (name == "a"))
            (root / name / f"{number}.png").write_bytes(saved(array, "PNG"))
    config(tmp_path, root, 8, "")
    path = tmp_path / "bits.yaml"
    path.write_text(path.read_text().replace("train: []", "train: [{name: Grayscale}]"))
    with pytest.raises(ConfigError, match="gives 3 channels where transforms.train gives 1"):
        prepare(load_config(path), lambda line: None)


@pytest.mark.parametrize(
    ("transform", "told"),
    [
        ("{name: RandAugment}", "works on images of 8 bits only"),
        ("{name: RandomRotation, degrees: 9, fill: 128}", "only 0, black, is possible"),
    ],
)
def test_a_transform_that_needs_8_bits_is_a_fault_at_its_place(low_byte, tmp_path, transform, told):
    path = tmp_path / "bits.yaml"
    path.write_text(CONFIG.format(root=low_byte, bits=16, transforms=LOW_BYTE))
    text = path.read_text().replace("train: [", f"train: [{transform}, ")
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s)transforms.train.0.*{told}"):
        load_config(path)
    path.write_text(text.replace("bits: 16", "bits: 8"))
    load_config(path)


def test_a_transform_of_colours_is_a_fault_for_five_channels(tmp_path):
    root = tmp_path / "data"
    for name in "ab":
        (root / name).mkdir(parents=True)
        for number in range(8):
            array = levels(8, 8, 5, seed=number + 10 * (name == "a"))
            (root / name / f"{number}.tif").write_bytes(tiff(array, 16, 1))
    settings = config(tmp_path, root, 16, "")
    text = (tmp_path / "bits.yaml").read_text()
    (tmp_path / "bits.yaml").write_text(
        text.replace("train: []", "train: [{name: RandomGrayscale, p: 0.001}]")
    )
    settings = load_config(tmp_path / "bits.yaml")
    with pytest.raises(ConfigError, match="RandomGrayscale is for grey and RGB, .* 5 channels"):
        prepare(settings, lambda line: None)


def test_a_normalize_of_another_number_of_channels_is_a_fault_at_its_place(low_byte, tmp_path):
    three = "{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"
    with pytest.raises(ConfigError, match=r"transforms\.(train|eval)\.0.*give one value a channel"):
        prepare(config(tmp_path, low_byte, 16, three), lambda line: None)
