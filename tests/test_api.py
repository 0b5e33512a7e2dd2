"""``yaml_trainer.load``: what a model says in Python is what the command predict says."""

import dataclasses
import io
import json
import random
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import yaml_trainer
from datasets.images import read_image
from trainer.build.trained import load_trained
from trainer.components.calibration import Calibration
from trainer.predict import main as predict
from trainer.train import main as train
from yaml_trainer import Answer, InputError, Model, TrainerError, load

MANY_VAL = "split.ratios=[3,5,2]"  # of the 50 notes, 25 or so are val


@pytest.fixture(scope="module")
def shared(tmp_path_factory, notes):
    from tests.conftest import SMALL

    folder = tmp_path_factory.mktemp("api")
    (folder / "small.yaml").write_text(SMALL.format(root=notes))
    more = ["--runs", str(folder / "runs"), MANY_VAL, "train.epochs=1", "log.show=[]"]
    for seed in (0, 1):
        assert train(["--config", str(folder / "small.yaml"), *more, f"seed={seed}"]) == 0
    return sorted((folder / "runs" / "small").iterdir())


@pytest.fixture(scope="module")
def run(shared):
    return shared[0]


@pytest.fixture(scope="module")
def model(run):
    return load(run)


@pytest.fixture(scope="module")
def photos(notes):
    return [str(path) for path in sorted(notes.glob("*/*.jpg"))]


@pytest.fixture
def listed(capsys):
    """The entries of predict --json."""

    def command(*arguments):
        capsys.readouterr()
        assert predict([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return command


def chances(answers):
    return [list(answer.probabilities.values()) for answer in answers]


def rows_of(entries):
    return [list(entry["probabilities"].values()) for entry in entries]


def opened(path):
    return Image.open(io.BytesIO(Path(path).read_bytes()))


def loaded(path):
    image = opened(path)
    image.load()
    return image


KINDS: dict[str, Callable[..., Any]] = {
    "path": Path,
    "text": str,
    "bytes": lambda path: Path(path).read_bytes(),
    "memory": lambda path: memoryview(Path(path).read_bytes()),
    "PIL": opened,
    "PIL, loaded": loaded,
    "PIL, copied": lambda path: opened(path).copy(),
    "HWC": lambda path: np.ascontiguousarray(read_image(path).permute(1, 2, 0).numpy()),
    "CHW": lambda path: np.ascontiguousarray(read_image(path).numpy()),
    "tensor": read_image,
}


# --- the numbers are predict's --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_image_gives_the_very_numbers_of_the_command(kind, run, model, photos, listed):
    told = listed(run, *photos)
    answers = model.predict([KINDS[kind](path) for path in photos])
    assert chances(answers) == rows_of(told)
    assert [answer.label for answer in answers] == [entry["class"] for entry in told]
    assert [answer.probability for answer in answers] == [entry["probability"] for entry in told]
    assert list(answers[0].probabilities) == list(model.classes) == ["1", "100"]
    assert answers[0] == Answer(answers[0].label, (answers[0].label,), answers[0].probabilities)


def test_kinds_may_be_mixed_and_one_image_needs_no_list(model, photos):
    mixed = [kind(path) for kind, path in zip(KINDS.values(), photos, strict=False)]
    count = len(mixed)
    assert chances(model.predict(mixed)) == chances(model.predict(photos[:count]))
    assert chances(model.predict(iter(mixed[:3]))) == chances(model.predict(photos[:3]))
    alone = chances(model.predict(photos[0]))
    for kind in KINDS.values():
        assert chances(model.predict(kind(photos[0]))) == alone
    assert model.predict([]) == []


def test_an_array_of_four_dimensions_is_several_images(model, photos):
    images = [read_image(path) for path in photos[:5]]
    expected = chances(model.predict(images))
    batch = torch.stack(images)
    assert chances(model.predict(batch)) == expected
    assert chances(model.predict(batch.numpy())) == expected
    assert chances(model.predict(batch.permute(0, 2, 3, 1).numpy())) == expected
    assert chances(model.predict(np.array(photos[:5]))) == chances(model.predict(photos[:5]))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--tta", "flip"], {"tta": "flip"}),
        (["--tta", "flip+shifts"], {"tta": "flip+shifts"}),
        (["--tta", "3"], {"tta": 3}),
        (["--batch-size", "1"], {"batch_size": 1}),
        (["--batch-size", "7"], {"batch_size": 7}),
        (["--sets", "0.9"], {"sets": 0.9}),
        (["--sets", "0.55", "--no-calibration"], {"sets": "0.55", "calibrated": False}),
        (["--reject", "0.8"], {"reject": 0.8}),
        (["--reject", "0.9", "--score", "energy", "--sets", "0.9"],
         {"reject": 0.9, "score": "energy", "sets": 0.9}),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)  # fmt: skip
def test_each_option_does_what_that_of_the_command_does(words, options, run, model, photos, listed):
    told = listed(run, *photos, *words)
    for images in (photos, [read_image(path) for path in photos]):
        answers = model.predict(images, **options)
        assert chances(answers) == rows_of(told)
        for answer, entry in zip(answers, told, strict=True):
            assert answer.label_set == (tuple(entry["set"]) if "set" in entry else None)
            assert answer.is_unknown == entry.get("unknown", False)
            assert answer.score == entry.get("score")


def test_uncalibrated_probabilities_are_those_without_the_temperature(run, photos):
    trained = load_trained(run)
    calibration = Calibration(used=True, why="", images=25, temperature=4.0)
    model = Model([dataclasses.replace(trained, calibration=calibration)])
    logits = trained.logits(trained.inputs([read_image(path) for path in photos])).double()
    for calibrated, temperature in ((True, 4.0), (False, 1.0)):
        found = torch.tensor(chances(model.predict(photos, calibrated=calibrated))).double()
        torch.testing.assert_close(found, (logits / temperature).softmax(1), rtol=0, atol=1e-6)


def test_several_runs_are_one_model_the_mean_of_the_probabilities(shared, photos, listed):
    told = listed(*shared, *photos)
    both = load(shared)
    for images in (photos, iter([read_image(path) for path in photos])):
        assert chances(both.predict(images)) == rows_of(told)
    with pytest.raises(TrainerError, match="sets needs one run, and these are 2"):
        both.predict(photos, sets=0.9)
    with pytest.raises(TrainerError, match="reject needs one run"):
        both.predict(photos, reject=0.9)


def test_a_folder_of_runs_is_its_newest(shared):
    assert load(shared[0].parent).folder == shared[1]
    assert load(str(shared[0])).folder == shared[0]


def test_where_an_image_may_have_several_labels_an_answer_has_them_all(tmp_path, listed):
    rows = ["path,red,green,blue"]
    drawn = np.random.default_rng(0)
    for number in range(60):
        has = [number % 2, number // 2 % 2, int(number % 3 == 0)]
        pixels = drawn.integers(0, 120, (8, 8, 3)) + 100 * np.array(has)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number:03d}.png")
        rows.append(f"{number:03d}.png," + ",".join(map(str, has)))
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "several.yaml").write_text(
        f"dataset: {{name: CSVImages, root: {tmp_path}, csv: {tmp_path}/labels.csv, "
        "label_columns: [red, green, blue]}\n"
        "transforms: {train: [{name: Resize, size: 8}], eval: [{name: Resize, size: 8}]}\n"
        "loader: {batch_size: 16, workers: 0}\nmodel: {name: MLP, hidden: [8]}\n"
        "loss: {name: BCEWithLogitsLoss}\noptimizer: {name: Adam, lr: 0.02}\n"
        "metrics: [mean_average_precision]\ntrain: {epochs: 3, device: cpu}\nlog: {show: []}\n"
    )
    words = ["--config", str(tmp_path / "several.yaml"), "--runs", str(tmp_path / "runs")]
    assert train(words) == 0
    files = sorted(map(str, tmp_path.glob("*.png")))
    told = listed(tmp_path / "runs", *files)
    answers = load(tmp_path / "runs").predict([np.asarray(Image.open(file)) for file in files])
    assert [list(answer.labels) for answer in answers] == [entry["labels"] for entry in told]
    assert len({len(answer.labels) for answer in answers}) > 1
    for answer in answers:
        assert answer.label == (answer.labels[0] if answer.labels else "")
        assert answer.probability == answer.probabilities.get(answer.label, 0)


# --- each kind is read by the run's rules ---------------------------------------------------------


def odd_files():
    """Files whose pixels need a rule: turned, transparent, palette, CMYK, grey, 16 bits, frames."""
    drawn = np.random.default_rng(0)
    rgb = Image.fromarray(drawn.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    rgba, palette = rgb.copy(), rgb.quantize(16)
    rgba.putalpha(Image.fromarray(drawn.integers(0, 256, (24, 40), dtype=np.uint8)))
    deep = Image.fromarray(drawn.integers(0, 65536, (24, 40), dtype=np.uint16))
    turned = Image.Exif()
    turned[0x112] = 6
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "turned.jpg": (rgb, {"exif": turned}),
        "turned.png": (rgb, {"exif": turned}),
        "turned-alpha.png": (rgba, {"exif": turned}),
        "grey.jpg": (rgb.convert("L"), {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "cmyk.tif": (rgb.convert("CMYK"), {}),
        "palette.png": (palette, {}),
        "palette-key.png": (palette, {"transparency": 3}),
        "palette-alpha.png": (palette, {"transparency": bytes([0, 128, 255, 30] * 4)}),
        "palette.gif": (palette, {"transparency": 2}),
        "frames.gif": (palette, {"save_all": True, "append_images": [rgb.quantize(4)]}),
        "alpha.png": (rgba, {}),
        "alpha.webp": (rgba, {"lossless": True}),
        "grey-alpha.png": (rgba.convert("LA"), {}),
        "key.png": (rgb, {"transparency": rgb.getpixel((3, 4))}),
        "bits.png": (rgb.convert("1"), {}),
        "deep.png": (deep, {}),
        "deep.tif": (deep, {}),
    }
    files = {}
    for name, (image, options) in made.items():
        file = io.BytesIO()
        image.save(
            file, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name[-4:].strip(".")), **options
        )
        files[name] = file.getvalue()
    return files


ODD = odd_files()
AS_FILES_ONLY = {"deep.tif"}  # Pillow forgets what its numbers mean when it has read them


@pytest.mark.parametrize("name", ODD)
def test_a_picture_of_pillow_gives_what_its_file_gives_or_is_refused(name, model, tmp_path):
    (tmp_path / name).write_bytes(ODD[name])
    expected = chances(model.predict(tmp_path / name))
    assert chances(model.predict(ODD[name])) == expected
    assert chances(model.predict(opened(tmp_path / name))) == expected
    with Image.open(tmp_path / name) as image:
        assert chances(model.predict([image, image])) == chances(model.predict([ODD[name]] * 2))
        image.load()
        if name in AS_FILES_ONLY:
            with pytest.raises(InputError, match="no known range; give its path"):
                model.predict(image)
        else:
            assert chances(model.predict(image)) == expected


def test_a_picture_that_was_changed_in_pillow_is_taken_as_it_is_now(model, photos):
    for change in ("thumbnail", "draft", "paste"):
        image = opened(photos[0])
        arguments = {
            "thumbnail": ((20, 20),),
            "draft": ("RGB", (24, 12)),
            "paste": ((0, 0, 0), (0, 0, 9, 9)),
        }[change]
        getattr(image, change)(*arguments)
        pixels = np.asarray(image.copy())
        assert chances(model.predict(image)) == chances(model.predict(pixels))
    frames = Image.open(io.BytesIO(ODD["frames.gif"]))
    frames.seek(1)
    second = np.asarray(frames.convert("RGB"))
    assert chances(model.predict(frames)) == chances(model.predict(second))


def test_a_gif_whose_first_frame_is_a_part_of_it_is_read_as_a_file_only(model):
    image = Image.open(io.BytesIO(ODD["palette.gif"]))
    image.load()
    image.dispose_extent = (0, 0, 3, 3)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="first frame is a part"):
        model.predict(image)


def test_transparent_pixels_of_an_array_are_composed_on_white_as_those_of_a_file(model):
    for name in ("alpha.png", "grey-alpha.png"):
        pixels = np.asarray(Image.open(io.BytesIO(ODD[name])))
        expected = chances(model.predict(ODD[name]))
        assert chances(model.predict(pixels)) == expected
        assert chances(model.predict(np.moveaxis(pixels, 2, 0))) == expected
        assert chances(model.predict(torch.tensor(pixels).permute(2, 0, 1))) == expected


def test_grey_pixels_are_those_of_a_grey_file(model):
    file = io.BytesIO()
    grey = np.asarray(Image.open(io.BytesIO(ODD["grey.jpg"])))
    Image.fromarray(grey).save(file, "PNG")
    expected = chances(model.predict(file.getvalue()))
    for pixels in (grey, grey[None], grey[..., None], torch.tensor(grey), torch.tensor(grey)[None]):
        assert chances(model.predict(pixels)) == expected


def test_the_memory_of_an_array_changes_nothing(model, photos):
    pixels = read_image(photos[0]).permute(1, 2, 0).numpy()
    expected = chances(model.predict(photos[0]))
    read_only = pixels.copy()
    read_only.flags.writeable = False
    backwards = np.ascontiguousarray(pixels[::-1, ::-1])[::-1, ::-1]
    spread = np.zeros((48, 96, 6), np.uint8)[::2, ::2, ::2]
    spread[:] = pixels
    for same in (read_only, backwards, spread, np.asfortranarray(pixels)):
        assert chances(model.predict(same)) == expected
    assert chances(model.predict(torch.from_numpy(spread.copy()).permute(2, 0, 1))) == expected


def test_a_buffer_that_is_filled_again_for_each_image_gives_each_image(model, photos):
    """As cameras and decoders of videos hand out their frames."""

    def frames():
        buffer = np.zeros((24, 48, 3), np.uint8)
        for path in photos:
            buffer[:] = read_image(path).permute(1, 2, 0).numpy()
            yield buffer

    assert chances(model.predict(frames())) == chances(model.predict(photos))


BITS = """
dataset: {{name: ImageFolder, root: {root}, channels: {channels}, bits: {bits}}}
split: {{ratios: [2, 1, 1]}}
transforms: {{train: [], eval: []}}
loader: {{batch_size: 16, workers: 0}}
model: {{name: MLP, hidden: [16]}}
optimizer: {{name: Adam, lr: 0.01}}
train: {{epochs: 1, device: cpu}}
log: {{show: []}}
"""


def run_of_arrays(folder, shape, channels, bits):
    """A run on .npy files of this shape, and the files."""
    drawn = np.random.default_rng(0)
    for number in range(24):
        (folder / "data" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = drawn.integers(0, 1 << bits, shape).astype(f"u{bits // 8}")
        np.save(folder / "data" / "ab"[number % 2] / f"{number:02d}.npy", pixels)
    text = BITS.format(root=folder / "data", channels=channels, bits=bits)
    (folder / "bits.yaml").write_text(text)
    words = ["--config", str(folder / "bits.yaml"), "--runs", str(folder / "runs")]
    assert train(words) == 0
    return load(folder / "runs"), sorted(map(str, folder.glob("data/*/*.npy")))


@pytest.mark.parametrize(
    ("shape", "channels", "bits"),
    [((9, 8), "keep", 16), ((9, 8, 5), "keep", 16), ((9, 8, 5), "keep", 8), ((9, 8, 3), "rgb", 16)],
)
def test_runs_of_other_channels_and_of_16_bits_take_arrays_as_their_files(
    shape, channels, bits, tmp_path, listed
):
    model, files = run_of_arrays(tmp_path, shape, channels, bits)
    expected = rows_of(listed(model.folder, *files))
    arrays = [np.load(file) for file in files]
    assert chances(model.predict(files)) == expected
    assert chances(model.predict(arrays)) == expected
    assert chances(model.predict([array.astype(f">u{bits // 8}") for array in arrays])) == expected
    first = [array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0) for array in arrays]
    assert chances(model.predict(first)) == expected
    assert chances(model.predict([torch.tensor(array) for array in first])) == expected
    if bits == 16 and channels == "keep" and len(shape) == 2:
        assert chances(model.predict([Image.fromarray(array) for array in arrays])) == expected
        eight = (arrays[0] >> 8).astype(np.uint8)  # a file of 8 bits is scaled
        scaled = chances(model.predict(eight.astype(np.uint16) * 257))
        assert chances(model.predict(eight)) == scaled
        with pytest.raises(
            InputError, match="keeps 8 bits a channel, and the run's images have 16"
        ):
            model.predict(Image.fromarray(eight))
    if shape[2:] == (5,):
        with pytest.raises(InputError, match=r"\(9, 8, 3\); expected .*with C 5"):
            model.predict(arrays[0][..., :3])


def test_the_notes_of_a_model_are_those_of_the_command(run, tmp_path, capsys):
    for name in ("alpha.png", "turned.jpg", "key.png"):
        (tmp_path / name).write_bytes(ODD[name])
    model, files = load(run), sorted(map(str, tmp_path.glob("*.*")))
    capsys.readouterr()
    assert predict([str(run), *files]) == 0
    told = [line[8:] for line in capsys.readouterr().err.splitlines()]
    assert len(told) == 3 and model.notes == told[:1]
    model.predict(files[:2])
    model.predict(files[2:])
    assert model.notes == told


# --- what is refused, and how it is told ----------------------------------------------------------

ONES = np.ones((24, 48, 3), np.uint8)


def closed():
    image = Image.new("RGB", (9, 9))
    image.close()
    return image


REFUSED = {
    "floats to 1": (ONES / 2, "float64, shape (24, 48, 3), values 0.5 to 0.5; expected uint8, 0 to "
                    "255: (x * 255).round().astype(np.uint8)"),
    "floats to 255": (ONES * 99.5, "values 99.5 to 99.5; .*: x.round().astype(np.uint8)"),
    "normalised": (ONES - 1.5, "normalised, give the image from before"),
    "NaN": (ONES * np.nan, "NaN or infinity"),
    "float tensor": (torch.ones(3, 24, 48), "a tensor of torch.float32, shape (3, 24, 48), "
                     "values 1 to 1; expected uint8, 0 to 255: (x * 255).round().to(torch.uint8)"),
    "bfloat16": (torch.ones(3, 24, 48).bfloat16(), "torch.bfloat16, .* (x * 255).round()"),
    "integers": (ONES.astype(int), "int64, .*: x.astype(np.uint8)"),
    "uint16": (ONES.astype(np.uint16) * 999, "(x >> 8).astype(np.uint8) keeps the high byte"),
    "large": (ONES.astype(int) * 99999, "scale it to 0 to 255 first"),
    "bool": (ONES > 0, "bool, .*: x.astype(np.uint8) * 255"),
    "complex": (ONES * 1j, "complex128, .*expected uint8"),
    "objects": (ONES.astype(object), "object, .*expected uint8"),
    "texts": (np.array([["a"]]), "expected uint8"),
    "masked": (np.ma.masked_less(ONES, 2), "x.filled(0)"),
    "empty": (ONES[:0], "shape (0, 48, 3); expected (H, W, C), (C, H, W) or (H, W)"),
    "no channels": (ONES[..., :0], "shape (24, 48, 0); expected"),
    "a row": (np.array([255, 216], np.uint8), "shape (2,); .*; of a file's bytes give bytes"),
    "five dimensions": (ONES[None, None, :], "shape (1, 1, 24, 48, 3); .*give a list"),
    "five channels": (np.ones((24, 48, 5), np.uint8), "(24, 48, 5); .* with C 1 or 2 or 3 or 4"),
    "HWC tensor": (torch.from_numpy(ONES), "shape (24, 48, 3); .*: x.permute(2, 0, 1)"),
    "either layout": (np.ones((3, 9, 3), np.uint8), "may both be channels; .*torch.tensor"),
    "a number": ([3], "images[0]: an int; expected a path, the bytes of a file"),
    "nothing": ([None], "images[0]: a NoneType; expected"),
    "a list of lists": ([[[1, 2], [3, 4]]], "images[0]: a list; expected"),
    "no image": (3, "images: an int; expected .* or a list of these"),
    "an open file": (io.BytesIO(b"x"), "images: a BytesIO, an open file; give its content"),
    "a sparse tensor": (torch.ones(3, 9, 9).byte().to_sparse(), "no array of pixels: can"),
    "Pillow, closed": (closed(), "images[0]: Operation on closed image"),
    "a dictionary": ({"a.png": 1}, "images: a dict; expected"),
    "no file": ("nowhere.png", "images[0] (nowhere.png): cannot be read: No such file"),
    "a folder": (Path("docs"), "images[0] (docs): not a regular file"),
    "no bytes": (b"", "images[0]: the file is empty"),
    "other bytes": (b"hello", "images[0]: not an image"),
    "floats of Pillow": (Image.new("F", (9, 9)), "mode F, whose pixels have no known range"),
    "Pillow without pixels": (Image.new("RGB", (0, 9)), "images[0]: a PIL image of 0 x 9 pixels"),
}  # fmt: skip


def as_pattern(text):
    import re

    return ".*".join(map(re.escape, text.split(".*")))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_refused_with_what_it_is_and_how_to_mend_it(name, model):
    images, message = REFUSED[name]
    with pytest.raises(ValueError, match=as_pattern(message)) as caught:
        model.predict(images)
    assert isinstance(caught.value, InputError) and isinstance(caught.value, TrainerError)
    assert "Traceback" not in str(caught.value) and caught.value.exit_code in (2, 3)


def followed(error, **names):
    """What the code at the end of an error's message gives."""
    exec(f"mended = {str(error).rpartition(': ')[2]}", names)
    return names["mended"]


def test_the_help_for_floats_gives_the_image_that_they_were_made_of(model, photos):
    x = read_image(photos[0]).permute(1, 2, 0).numpy() / np.float32(255)
    with pytest.raises(InputError) as caught:
        model.predict(x)
    mended = followed(caught.value, x=x, np=np)
    assert chances(model.predict(mended)) == chances(model.predict(photos[0]))
    y = torch.from_numpy(x).permute(2, 0, 1)
    with pytest.raises(InputError) as caught:
        model.predict(y)
    mended = followed(caught.value, x=y, torch=torch)
    assert chances(model.predict(mended)) == chances(model.predict(photos[0]))


def test_of_several_images_all_are_tried_and_the_error_has_the_answers_of_the_good_ones(
    model, photos
):
    images = [photos[0], "nowhere.png", photos[1], ONES / 2, photos[2]]
    with pytest.raises(InputError) as caught:
        model.predict(images, batch_size=2)
    error = caught.value
    lines = str(error).splitlines()
    assert lines[0] == "2 of 5 images cannot be predicted:"
    assert lines[1].startswith("images[1] (nowhere.png): ") and lines[2].startswith("images[3]: ")
    assert sorted(error.faults) == [1, 3] and error.faults[1].startswith("cannot be read")
    assert [answer is None for answer in error.answers] == [False, True, False, True, False]
    good = [answer for answer in error.answers if answer is not None]
    assert [answer.label for answer in good] == [a.label for a in model.predict(photos[:3])]
    with pytest.raises(InputError, match=r"and 30 more$"):
        model.predict([b""] * 50)


def test_an_error_of_the_callers_own_iterator_is_not_taken_for_one_of_an_image(model, photos):
    def broken():
        yield photos[0]
        raise FileNotFoundError(2, "the camera is gone", "camera")

    with pytest.raises(FileNotFoundError, match="the camera is gone"):
        model.predict(broken())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": 1.0}, "sets: 1.0; expected a number between 0 and 1"),
        ({"sets": "many"}, "sets: 'many'; expected"),
        ({"sets": float("nan")}, "sets: nan; expected"),
        ({"reject": 0}, "reject: 0; expected"),
        ({"sets": "1/0"}, "sets: '1/0'; expected"),
        ({"reject": "1/0"}, "reject: '1/0'; expected"),
        ({"reject": 0.9, "score": ["energy"]}, r"score: \['energy'\]; expected a name"),
        ({"tta": np.array([2, 3])}, "tta: array"),
        ({"reject": 0.9, "score": "size"}, "score: 'size'; expected distance or"),
        ({"score": "energy"}, "score: says how reject measures"),
        ({"tta": "flips"}, "tta: 'flips'; expected none, flip"),
        ({"tta": 1}, "tta: 1; expected"),
        ({"tta": True}, "tta: True; expected"),
        ({"batch_size": 0}, "batch_size: 0; expected a whole number"),
        ({"batch_size": 2.5}, "batch_size: 2.5; expected"),
    ],
)
def test_a_wrong_option_is_refused_with_what_was_expected(options, message, model, photos):
    with pytest.raises(InputError, match=message):
        model.predict(photos[0], **options)


def test_whole_numbers_of_numpy_are_whole_numbers(model, photos):
    expected = chances(model.predict(photos[:3], batch_size=2, tta=2))
    given = model.predict(photos[:3], batch_size=np.int64(2), tta=np.uint8(2))
    assert chances(given) == expected


@pytest.mark.parametrize("device", ["meta", "context"])
def test_the_callers_default_device_changes_nothing(device, run, photos, model):
    """A notebook sets it for a model of its own; here meta stands for a GPU."""
    expected = chances(model.predict(photos[:2]))
    try:
        if device == "meta":
            torch.set_default_device("meta")
        with torch.device("meta") if device == "context" else nullcontext():
            assert chances(load(run).predict(photos[:2])) == expected
            assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("given", [None, 3, b"runs", {"runs": 1}, [3], [b"runs"]])
def test_what_names_no_run_is_told(given):
    with pytest.raises(TrainerError, match="expected the folder of a run"):
        load(given)


def test_what_the_run_does_not_allow_is_told_as_the_command_tells_it(model, photos, capsys):
    assert predict([str(model.folder), photos[0], "--sets", "0.999"]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    with pytest.raises(TrainerError) as caught:
        model.predict(photos[0], sets=0.999)
    assert str(caught.value) == told and caught.value.exit_code == 2
    assert not isinstance(caught.value, ValueError)


def test_a_run_that_cannot_be_loaded_is_told_as_the_command_tells_it(run, tmp_path, capsys):
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / "model.pt").write_bytes(b"nothing")
    for place, code in (("nowhere", 2), (tmp_path / "none", 2), (damaged, 5)):
        assert predict([str(place), "x.png"]) == code
        told = capsys.readouterr().err.strip()
        with pytest.raises(TrainerError) as caught:
            load(place)
        assert (str(caught.value), caught.value.exit_code) == (told, code)
    with pytest.raises(TrainerError, match="0 is not|train.threads"):
        load(run, threads=0)
    with pytest.raises(TrainerError, match="train.device"):
        load(run, device="quantum")
    with pytest.raises(TrainerError, match="an empty list"):
        load([])
    with pytest.raises(TrainerError, match="named twice"):
        load([run, run])


def test_answers_that_are_no_numbers_are_no_fault_of_the_image(run, photos):
    model = load(run)
    with torch.no_grad():
        next(model._one.model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainerError, match="no finite numbers") as caught:
        model.predict(photos[:2])
    assert caught.value.exit_code == 4 and not isinstance(caught.value, InputError)


# --- the caller's process -------------------------------------------------------------------------


def test_importing_the_package_and_its_names_imports_no_torch():
    code = (
        "import sys, yaml_trainer; from yaml_trainer import *\n"
        "from yaml_trainer import load, train, Model, Answer, Run, InputError, TrainerError\n"
        "try: load('nowhere')\nexcept TrainerError as error: print(error)\n"
        "assert not {'torch', 'numpy', 'PIL'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nowhere does not exist")


def test_the_package_offers_its_names_and_no_others():
    assert set(yaml_trainer.__all__) <= set(dir(yaml_trainer))
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        yaml_trainer.predict  # noqa: B018


def state_of_the_process():
    flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    return (
        torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist(), flags,
        random.getstate(), str(np.random.get_state(legacy=False)), list(warnings.filters),
        torch.is_grad_enabled(), list(sys.argv), threading.active_count(),
    )  # fmt: skip


def test_nothing_of_the_callers_process_is_changed_and_nothing_of_it_changes_the_numbers(
    run, photos, listed
):
    expected = rows_of(listed(run, *photos, "--tta", "3"))
    precision = torch.get_float32_matmul_precision()
    torch.manual_seed(5)
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        before = state_of_the_process()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert chances(load(run).predict(photos, tta=3)) == expected
            load(run, threads=2).predict(photos[0])
        assert state_of_the_process() == before
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(precision)


def test_threads_may_share_a_model(model, photos):
    expected, found = chances(model.predict(photos)), []

    def work():
        found.append(chances(model.predict(photos)))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 6


def test_memory_does_not_grow_with_the_number_of_images(model):
    alive = 0

    class Watched(bytes):
        def __del__(self):
            nonlocal alive
            alive -= 1

    most = 0

    def images():
        nonlocal alive, most
        for _ in range(300):
            alive += 1
            most = max(most, alive)
            yield Watched(ODD["palette.png"])

    assert len(model.predict(images())) == 300
    assert most < 100


def test_an_image_more_costs_no_reading_of_the_run_again(model, photos):
    """As a server does that answers each request with sets, and what is unknown."""
    model.predict(photos[0], sets=0.9, reject=0.9)
    began = time.perf_counter()
    for path in photos[:20]:
        model.predict(path, sets=0.9, reject=0.9)
    assert time.perf_counter() - began < 2


def test_the_functions_of_earlier_code_tell_what_they_need(run):
    from trainer.build.trained import load_trained

    trained = load_trained(str(run))
    assert trained.run == run
    with pytest.raises(ValueError, match=r"must be tensors \(C, H, W\), but are ndarray of uint8"):
        trained.inputs([ONES])  # type: ignore[list-item]
