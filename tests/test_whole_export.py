"""Exported graphs that take the picture, and the programs beside models: they answer as predict."""

import dataclasses
import io
import json
import re
import runpy
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from fractions import Fraction

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.bands import Form
from tests.test_formats import PICTURES
from trainer.build.model import build_model
from trainer.build.prepare import prepare
from trainer.build.trained import TrainedModel, load_trained
from trainer.components.calibration import Calibration
from trainer.config import load_config
from trainer.export import main
from trainer.inference.prediction import choose_rejection, file_source, predict_images
from trainer.input.data import build_pipelines
from trainer.loop.fit import fit
from trainer.process.errors import RunError
from trainer.process.stop import StopRequest
from transforms.own import Letterbox, LinearTransformation, Normalize, ToTensor
from transforms.pipeline import Pipeline
from yaml_trainer.export import exporting
from yaml_trainer.export.export_check import Sample
from yaml_trainer.export.exporting import onnx_model, write_pt2
from yaml_trainer.export.model_card import describe_model, program
from yaml_trainer.export.odd_pictures import odd_pictures
from yaml_trainer.export.preparing import Prepare, takes_any_size
from yaml_trainer.export.program_check import check_program, run_program
from yaml_trainer.export.resizing import resized
from yaml_trainer.export.whole import Whole, describe_whole, export, picture_card, picture_onnx
from yaml_trainer.export.whole_check import noise

pytest.importorskip("onnxruntime", reason='needs pip install -e ".[export]"')

NORMALIZE = Normalize([0.5, 0.4, 0.3], [0.25, 0.3, 0.2])
PREPARED = {
    "resize": [v2.Resize([32, 32]), NORMALIZE],
    "shorter side": [v2.Resize(40, interpolation="bicubic"), v2.CenterCrop(32), NORMALIZE],
    "longest side": [v2.Resize(32, max_size=50), v2.CenterCrop([30, 44]), NORMALIZE],
    "only the longest": [v2.Resize(None, max_size=48), v2.CenterCrop(48), NORMALIZE],
    "without antialiasing": [v2.Resize(40, antialias=False), v2.CenterCrop(32), NORMALIZE],
    "letterbox": [Letterbox(28, [9, 80, 7]), v2.Pad([1, 2, 3, 2], fill=30), NORMALIZE],
    "edges": [v2.Pad(3, padding_mode="edge"), v2.Resize([32, 32])],
    "five crops": [v2.Resize(40), v2.FiveCrop(32), NORMALIZE],
    "ten crops": [v2.Resize(41), v2.TenCrop(32, vertical_flip=True), NORMALIZE],
    "grey": [v2.Resize([32, 32]), v2.Grayscale(3), NORMALIZE],
    "one channel": [v2.Grayscale(), v2.Resize([32, 32]), Normalize([0.5], [1.0])],
    "a crop first": [v2.CenterCrop(60), v2.Resize([32, 32], interpolation="bicubic")],
    "after floats": [ToTensor(), v2.Resize([36, 36]), NORMALIZE, v2.CenterCrop(32), v2.Resize(20)],
    "whitened": [
        v2.Resize([2, 3]),
        LinearTransformation(torch.eye(18).flip(0).tolist(), [0.1] * 18),
    ],
}
SIZES = [(61, 97), (97, 61), (40, 40), (9, 11), (33, 32), (200, 131)]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", PREPARED)
def test_pictures_of_any_size_are_prepared_as_the_run_prepares_them(name, bits):
    pipeline = Pipeline(PREPARED[name], 0)
    module, zero = Prepare(pipeline, bits), torch.zeros(1, dtype=torch.int64)
    generator = np.random.default_rng(0)
    for size in SIZES:
        levels = generator.integers(0, 1 << bits, (3, *size))
        image = torch.from_numpy(levels.astype(np.uint8 if bits == 8 else np.uint16))
        expected = pipeline([pipeline.prepare(image)], zero, zero, 0)[0][0]
        # Of 16 bits, one level, divided by the least std; of 8 not one pixel is another.
        within = 1e-5 if bits == 8 else 1.1 / 65535 / 0.2
        torch.testing.assert_close(module(image), expected, rtol=0, atol=within)


@settings(max_examples=30)
@given(
    old=st.tuples(st.integers(2, 90), st.integers(2, 90)),
    new=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    cubic=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_resized_picture_has_the_levels_of_torchvision(old, new, cubic, seed):
    levels = np.random.default_rng(seed).integers(0, 256, (3, *old)).astype(np.uint8)
    mode = v2.InterpolationMode.BICUBIC if cubic else v2.InterpolationMode.BILINEAR
    expected = v2.functional.resize(torch.from_numpy(levels), list(new), interpolation=mode)
    found = resized(torch.from_numpy(levels).float(), new[0], new[1], cubic, True, True)
    assert torch.equal(found, expected.float())


@pytest.mark.parametrize(
    ("transform", "why"),
    [
        (v2.Resize(32, interpolation=v2.InterpolationMode.NEAREST), "Resize with .* nearest"),
        (v2.Resize(32, interpolation="bicubic", antialias=False), "Resize by bicubic without"),
        (v2.Pad(2, padding_mode="reflect"), "Pad with padding_mode reflect"),
        (v2.Pad(2, padding_mode="symmetric"), "Pad with padding_mode symmetric"),
    ],
)
def test_a_transform_that_no_graph_expresses_is_refused_by_name(transform, why):
    with pytest.raises(RunError, match=f"--with-preprocessing: {why}"):
        Prepare(Pipeline([transform, NORMALIZE], 0), 8)


@pytest.mark.parametrize(
    ("transforms", "is_any"),
    [
        ([v2.Resize([32, 32])], True),
        ([v2.Resize(32)], False),
        ([v2.Pad(2)], False),
        ([v2.CenterCrop(32)], True),
    ],
)
def test_pictures_have_any_size_only_where_transforms_make_them_equal(transforms, is_any):
    assert takes_any_size(Prepare(Pipeline(transforms, 0), 8), 3, (3, 32, 32)) is is_any


# --- a run ----------------------------------------------------------------------------------------

CONFIG = """
name: tiny
dataset: {{name: RMB, root: {root}}}
split: {{ratios: [6, 2, 2]}}
transforms:
  train:
    - {{name: Resize, size: [32, 32]}}
    - {normalize}
  eval: {transforms}
loader: {{batch_size: 8, workers: 0}}
model: {{name: LeNet}}
optimizer: {{name: SGD, lr: 0.01, momentum: 0.9}}
evaluation: {{tta: {tta}}}
train: {{epochs: 1, device: cpu}}
log: {{images: 0}}
"""
FIVE = "{name: Resize, size: 40}, {name: FiveCrop, size: 32}"
RESIZE = "{name: Resize, size: [32, 32]}"
BOXES = "{name: Letterbox, size: 30, fill: 7}, {name: Pad, padding: 1}"
GREY = "{name: Resize, size: 35}, {name: Grayscale}, {name: CenterCrop, size: 32}"
PLAIN = Form()


def config_of(folder, root, transforms, tta="null", channels=3):
    file = folder / "tiny.yaml"
    mean, std = ([0.5, 0.4, 0.3], [0.25, 0.3, 0.2]) if channels == 3 else ([0.4], [0.3])
    if channels != 3:
        mean, std = mean * channels, std * channels
    normalize = f"{{name: Normalize, mean: {mean}, std: {std}}}"
    eval_side = f"[{transforms}, {normalize}]"
    file.write_text(CONFIG.format(root=root, transforms=eval_side, normalize=normalize, tta=tta))
    return load_config(file)


@pytest.fixture(scope="module")
def run(tmp_path_factory, notes):
    """A run whose answer is a mean over five crops and their mirror images, with a temperature."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    with StopRequest() as stop, redirect_stdout(io.StringIO()):
        job = prepare(config_of(folder, notes, FIVE, "flip"), print)
        made = fit(job, folder, None, print, stop)
    card = json.loads((made / "model.json").read_text())
    card["calibration"] = Calibration(True, "for the test", 100, 0.5, (1.0, 0.9))._asdict()
    (made / "model.json").write_text(json.dumps(card))
    return made


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The run's files that take pictures, with ``unknown``; and what the command printed."""
    folder = tmp_path_factory.mktemp("files")
    words = ["--format", "all", "--with-preprocessing", "--reject", "0.8", "--output", str(folder)]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        assert main([str(run), *words]) == 0
    assert "note    safetensors holds weights, which take no picture: left out" in err.getvalue()
    return folder, out.getvalue()


def network(folder, kind):
    if kind == "pt2":
        model = torch.export.load(folder / "tiny-picture.pt2").module()
        return lambda image: [each.numpy() for each in model(torch.from_numpy(image))]
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "tiny-picture.onnx")
    names = ["probabilities", "logits", "unknown"]
    return lambda image: session.run(names, {"image": image})


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_graph_gives_the_probabilities_of_predict_for_pictures_of_any_size(
    exported, run, notes, kind
):
    paths = [str(path) for path in sorted(notes.rglob("*.jpg"))[::3]]
    model = network(exported[0], kind)
    for one in predict_images(load_trained(run), map(file_source, paths)):
        assert one.probabilities is not None
        image = np.asarray(Image.open(one.path)).transpose(2, 0, 1)
        chances, logits, unknown = model(np.ascontiguousarray(image))
        assert chances.shape == logits.shape == (2,) and unknown.shape == ()
        np.testing.assert_allclose(chances, one.probabilities, atol=1e-4)


def test_its_card_tells_input_outputs_and_what_is_inside(exported):
    import onnxruntime

    card = json.loads((exported[0] / "tiny-picture.json").read_text())
    assert card["input"]["type"] == "uint8" and card["input"]["shape"] == [3, "height", "width"]
    assert [each["name"] for each in card["outputs"]] == ["probabilities", "logits", "unknown"]
    inside = ["Resize", "FiveCrop", "Normalize", "mean over crops", "mean over views: flip"]
    assert card["unknown"]["shape"] == card["outputs"][2]["shape"] == []
    assert card["inside"] == [*inside, "temperature", "softmax of the logits"]
    assert "EXIF" in card["outside"]
    session = onnxruntime.InferenceSession(exported[0] / "tiny-picture.onnx")
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type) == ("image", "tensor(uint8)")
    assert taken.shape == [3, "height", "width"]
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == ["1", "100"]


def test_the_command_prints_differences_and_what_the_programs_did(exported):
    folder, out = exported
    assert sorted(path.name for path in folder.iterdir()) == [
        *("tiny-picture.json", "tiny-picture.md", "tiny-picture.onnx", "tiny-picture.pt2"),
        *("tiny-picture_onnx.py", "tiny-picture_pt2.py"),
    ]
    lines = out.splitlines()
    differences = [line for line in lines if "greatest difference from predict" in line]
    assert len(differences) == 2
    for line in differences:
        assert float(line.partition("probabilities ")[2].split(",")[0]) < 1e-4
    assert sum("as predict on 28 odd pictures, and refuses 13" in line for line in lines) == 2
    assert lines[-1] == "each takes one picture at a time, of any size"


def test_weights_without_a_graph_cannot_take_pictures(run, tmp_path, capsys):
    words = ["--format", "safetensors", "--with-preprocessing", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="2"):
        main([str(run), *words])
    assert "safetensors holds weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_graph_that_answers_otherwise_is_not_kept(run, tmp_path, monkeypatch, capsys):
    honest = Whole.probabilities
    monkeypatch.setattr(Whole, "probabilities", lambda self, logits: honest(self, logits * 0.9))
    words = ["--format", "pt2", "--with-preprocessing", "--output", str(tmp_path / "out")]
    assert main([str(run), *words]) == 5
    assert "tiny-picture.pt2 was removed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_graph_whose_unknown_is_another_is_not_kept(run, tmp_path, monkeypatch, capsys):
    honest = Whole.forward

    def forward(self, image):
        chances, logits, unknown = honest(self, image)
        return chances, logits, unknown + 0.05 * (1 + unknown.abs())

    monkeypatch.setattr(Whole, "forward", forward)
    words = ["--format", "pt2", "--with-preprocessing", "--output", str(tmp_path / "out")]
    assert main([str(run), *words, "--reject", "0.9"]) == 5
    told = capsys.readouterr().err
    assert "tiny-picture.pt2 was removed" in told and "and unknown by" in told
    assert not (tmp_path / "out").exists()


# --- programs -------------------------------------------------------------------------------------


@pytest.fixture
def untrained(tmp_path, notes):
    """A model with random weights, whose probabilities tell pictures apart, and its pt2 program."""

    def make(transforms=RESIZE, channels=3, form=PLAIN, tta="null", at_least=0):
        given = 1 if "Grayscale" in transforms else channels
        config = config_of(tmp_path, notes, transforms, tta, given)
        classes = tuple("abcde")
        torch.manual_seed(0)
        model = build_model(config, classes, (given, 32, 32)).eval()
        with torch.no_grad():
            [*model.parameters()][-2].mul_(2)  # so that probabilities depend on small differences
        pipeline = build_pipelines(config, num_classes=5)["eval"]
        trained = TrainedModel(
            *(tmp_path, config, classes, (given, 32, 32), model, channels, pipeline),
            torch.device("cpu"),
            form=form,
            at_least=at_least,
        )
        sample = Sample(torch.randn(3, given, 32, 32), "noise")
        graph = exporting.export(trained, sample.inputs)
        path, _ = write_pt2(tmp_path, trained, sample, describe_model(trained, {}), graph)
        return trained, path.with_name("tiny_pt2.py")

    return make


def equal_and_refused(told):
    return tuple(int(word) for word in told.replace(",", "").split() if word.isdigit())


@pytest.mark.parametrize(
    ("transforms", "tta"),
    [
        (FIVE, "null"),
        (FIVE.replace("Five", "Ten"), "flip"),
        (RESIZE, "flip+shifts"),
        (BOXES, "null"),
        (GREY, "null"),
    ],
)
def test_programs_take_the_mean_over_crops_and_views_as_predict_does(untrained, transforms, tta):
    trained, beside = untrained(transforms, tta=tta)
    assert equal_and_refused(check_program(beside, trained)) == (28, 13)


def with_class(trained, name):
    """A program beside a model whose answer is always the class ``name``."""
    trained = dataclasses.replace(trained, classes=(name, *"bcde"))
    with torch.no_grad():
        [*trained.model.parameters()][-1][0] += 100
    sample = Sample(torch.randn(3, *trained.input_shape), "noise")
    graph = exporting.export(trained, sample.inputs)
    path, _ = write_pt2(trained.run, trained, sample, describe_model(trained, {}), graph)
    return trained, path.with_name("tiny_pt2.py")


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("unknown", "unknown"),
        ("-", "-"),
        ("a\ttab", "a\\ttab"),
        ("two\nlines", "two\\nlines"),
        ("a\u2028b", "a\\u2028b"),
        ("quo'te\"s", "quo'te\"s"),
        ("猫", "猫"),
    ],
)
def test_a_class_of_any_name_is_one_word_of_one_line(untrained, tmp_path, name, printed):
    trained, beside = with_class(untrained()[0], name)
    if name in ("unknown", "a\ttab"):
        assert equal_and_refused(check_program(beside, trained)) == (28, 13)
    picture = tmp_path / "new\nline.png"
    picture.write_bytes(odd_pictures(20, 20)["plain.png"])
    answers, _ = run_program(beside, [str(picture)])
    assert answers == {f"{tmp_path}/new\\nline.png": [[printed, "1.0000"]]}


def test_a_class_whose_letters_the_output_lacks_is_printed_by_their_numbers(
    untrained, tmp_path, monkeypatch
):
    _, beside = with_class(untrained()[0], "猫")
    picture = tmp_path / "a.png"
    picture.write_bytes(odd_pictures(20, 20)["plain.png"])
    monkeypatch.setattr("sys.argv", [str(beside), str(picture)])
    content = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(content, encoding="ascii", write_through=True)):
        runpy.run_path(str(beside), run_name="__main__")
        assert content.getvalue() == f"{picture}\t\\u732b\t1.0000\n".encode()


SHORTER = "{name: Resize, size: 40}, {name: CenterCrop, size: 32}"


@pytest.mark.parametrize("transforms", [SHORTER, RESIZE])
def test_a_long_and_narrow_picture_is_refused_where_resizing_it_would_take_gigabytes(
    untrained, tmp_path, transforms
):
    trained, beside = untrained(transforms)
    narrow, plain = tmp_path / "narrow.png", tmp_path / "plain.png"
    for file, height in ((narrow, 2), (plain, 300)):
        Image.fromarray(np.zeros((height, 9000, 3), np.uint8)).save(file)
    answers, said = run_program(beside, [str(narrow), str(plain)])
    assert str(plain) in answers
    assert (str(narrow) in answers) == (transforms == RESIZE)
    assert (f"{narrow}: too long and narrow: " in said) == (transforms == SHORTER)

    graphs = tmp_path / "tiny-picture_pt2.py"
    graphs.write_text(program("pt2", trained, whole="tiny-picture"))
    preprocess = runpy.run_path(str(graphs))["preprocess"]
    assert preprocess(plain, {"image_channels": 3}).shape == (3, 300, 9000)
    refused = pytest.raises(ValueError, match="^too long and narrow: ")
    with refused if transforms == SHORTER else nullcontext():
        preprocess(narrow, {"image_channels": 3})


@pytest.mark.parametrize(
    ("form", "channels", "least"),
    [
        *((Form("keep", 8), 1, 5), (Form("keep", 8), 3, 14), (Form("keep", 8), 4, 3)),
        *((Form("keep", 16), 3, 14), (Form("keep", 16), 4, 3), (Form("rgb", 16), 3, 18)),
        (Form("rgb", 8), 1, 28),
    ],
)
def test_programs_of_other_channels_and_bits_answer_as_predict_or_refuse(
    untrained, form, channels, least
):
    trained, beside = untrained(channels=channels, form=form)
    equal, refused = equal_and_refused(check_program(beside, trained))
    assert equal >= least and equal + refused == 41


def test_a_graph_of_16_bits_takes_uint16_and_answers_as_predict(untrained, tmp_path):
    trained, _ = untrained(channels=4, form=Form("keep", 16))
    card = describe_whole(trained, {}, None, None)
    whole = Whole(trained, Prepare(trained.pipeline, trained.form.bits), None).eval()
    place = tmp_path / "tiny-picture.onnx"
    place.write_bytes(picture_onnx(export(whole, trained, None), card))
    assert card["input"]["type"] == "uint16"
    image = noise(trained, 50, 70)
    expected = trained.probabilities(trained.inputs([image]))[0]
    torch.testing.assert_close(onnx_model(place)(image)[0], expected, rtol=0, atol=1e-4)
    beside = tmp_path / "tiny-picture_onnx.py"
    beside.write_text(program("onnx", trained, whole="tiny-picture"))
    assert equal_and_refused(check_program(beside, trained)) == (3, 38)


@pytest.mark.parametrize("temperature", [None, 0.4])
@pytest.mark.parametrize(
    ("loss", "has_several"),
    [("CrossEntropyLoss", False), ("BCEWithLogitsLoss", False), ("BCEWithLogitsLoss", True)],
)
def test_a_graph_makes_probabilities_as_the_run_does(untrained, loss, has_several, temperature):
    trained, _ = untrained()
    config = trained.config.model_copy(
        update={"loss": trained.config.loss.model_copy(update={"name": loss})}
    )
    trained = dataclasses.replace(
        trained,
        config=config,
        thresholds=torch.full((5,), 0.5) if has_several else None,
        calibration=Calibration(True, "", 100, temperature) if temperature else None,
    )
    whole = Whole(trained, Prepare(trained.pipeline, trained.form.bits), None)
    for logits in (torch.tensor([-3.0, 0.5, 2.0, 0.0, 9.0]), torch.tensor([-120.0, -99, 0, 1, 2])):
        expected = trained.chances(logits[None], trained.temperature)[0]
        torch.testing.assert_close(whole.probabilities(logits), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("at_least", [20, 64, 100, 300])
def test_a_program_decodes_large_jpegs_smaller_where_the_run_does(untrained, tmp_path, at_least):
    trained, beside = untrained(at_least=at_least)
    levels_of = runpy.run_path(str(beside))["levels_of"]
    for name, content in odd_pictures(45, 61).items():
        if name.startswith("large"):
            (tmp_path / name).write_bytes(content)
            expected = trained.read(tmp_path / name).numpy()
            assert np.array_equal(levels_of(tmp_path / name, {"image_channels": 3}), expected)
            assert (min(expected.shape[1:]) < 360) is (at_least <= 180)


def as_program(page, beside):
    """The code of a page, as a program that does each file of its command line."""
    code = page.split("```python\n")[1].split("```")[0]
    before, _, after = re.split('^path = "(photo.jpg|photo.npy)"', code, flags=re.MULTILINE)
    beside.write_text(
        f"import sys\n{before}\nfor path in sys.argv[1:]:\n    try:\n        exec({after!r})\n"
        "    except Exception as error:\n        print(f'{path}: {error}', file=sys.stderr)\n"
    )
    return beside


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A folder that code may make the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_the_code_of_a_page_answers_as_predict_or_refuses(exported, run, here, kind):
    trained = load_trained(run)
    rejection = choose_rejection(trained, Fraction("0.8"))
    card = json.loads((exported[0] / "tiny-picture.json").read_text())
    page = picture_card("tiny-picture", card, trained, [kind])
    assert ("tiny-picture.pt2" in page) is ("tiny-picture_pt2.py" in page) is (kind == "pt2")
    (here / f"tiny-picture.{kind}").write_bytes((exported[0] / f"tiny-picture.{kind}").read_bytes())
    told = check_program(as_program(page, here / "code.py"), trained, rejection)
    assert equal_and_refused(told) == (14, 27)


@pytest.mark.parametrize(
    ("transforms", "form", "channels", "at_least", "equal"),
    [
        (RESIZE, PLAIN, 3, 64, 14),
        (RESIZE, PLAIN, 1, 0, 14),
        (RESIZE, Form("keep", 8), 1, 0, 3),
        (RESIZE, Form("keep", 16), 3, 0, 10),
        (RESIZE, Form("rgb", 16), 3, 0, 13),
        (RESIZE, Form("keep", 8), 8, 0, 1),
        ("{name: Pad, padding: 1}", PLAIN, 3, 0, 11),
    ],
)
def test_the_code_of_a_page_reads_each_form_as_predict_or_refuses(
    untrained, here, transforms, form, channels, at_least, equal
):
    trained, _ = untrained(transforms, channels=channels, form=form, at_least=at_least)
    sizes = None if transforms == RESIZE else (30, 30)
    card = describe_whole(trained, {}, None, sizes)
    whole = Whole(trained, Prepare(trained.pipeline, trained.form.bits), None).eval()
    (here / "tiny-picture.onnx").write_bytes(picture_onnx(export(whole, trained, sizes), card))
    page = picture_card("tiny-picture", card, trained, ["onnx"])
    told = check_program(as_program(page, here / "code.py"), trained, sizes=[(30, 30)])
    assert equal_and_refused(told) == (equal, 41 - equal)


def test_the_code_of_a_page_prints_all_labels_from_their_thresholds_on(untrained, here, notes):
    trained, _ = untrained()
    thresholds = torch.tensor([0.1, 0.45, 0.5, 0.55, 0.9])
    calibration = Calibration(True, "", 100, 0.4)
    trained = dataclasses.replace(trained, thresholds=thresholds, calibration=calibration)
    card = describe_whole(trained, {}, None, None)
    whole = Whole(trained, Prepare(trained.pipeline, trained.form.bits), None).eval()
    (here / "tiny-picture.onnx").write_bytes(picture_onnx(export(whole, trained, None), card))
    page = picture_card("tiny-picture", card, trained, ["onnx"])
    told = check_program(as_program(page, here / "code.py"), trained)
    assert equal_and_refused(told) == (14, 27)


def test_the_page_beside_a_graph_shows_code_that_works(
    exported, notes, monkeypatch, tmp_path, run, capsys
):
    page = (exported[0] / "tiny-picture.md").read_text()
    assert "| input | `image` | uint8 | (3, height, width) |" in page
    (path, *_) = sorted(notes.rglob("*.jpg"))
    (tmp_path / "photo.jpg").write_bytes(path.read_bytes())
    (tmp_path / "tiny-picture.onnx").write_bytes((exported[0] / "tiny-picture.onnx").read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    (expected,) = predict_images(load_trained(run), [file_source(str(path))])
    assert expected.probabilities is not None
    np.testing.assert_allclose(names["probabilities"], expected.probabilities, atol=1e-4)
    (_, name, *_) = capsys.readouterr().out.split()
    assert name == ("unknown" if names["unknown"] > 0 else ["1", "100"][expected.predicted[0]])


def test_sixty_pictures_of_all_formats_are_answered_as_predict_does_or_refused(untrained, tmp_path):
    trained, beside = untrained()
    paths = []
    for format, pictures in PICTURES.items():
        for number, odd in enumerate(list(pictures.values())[::5]):
            paths.append(str(tmp_path / f"{format}-{number}"))
            (tmp_path / paths[-1]).write_bytes(odd.content)
    assert len(paths) >= 60
    answers, said = run_program(beside, paths)
    read = 0
    for one in predict_images(trained, map(file_source, paths)):
        if one.path not in answers:
            assert one.path in said
            continue
        assert one.probabilities is not None  # predict reads what the program reads
        ((name, chance),) = answers[one.path]
        best = one.probabilities.argmax()
        assert name == "abcde"[best] and abs(float(chance) - one.probabilities[best]) < 1e-3
        read += 1
    assert read >= 0.7 * len(paths)


@pytest.mark.parametrize(
    ("line", "other", "picture"),
    [
        ("ImageOps.exif_transpose(image)", "image", "turned.(png|jpg)"),
        ('"white"', '"black"', "(grey and )?alpha.png"),
        (">> 8)", ">> 7)", "deep grey.png"),
        ("(images + one / 2)", "(images + one * 4)", "(plain|grey).png"),
    ],
)
def test_a_program_that_reads_otherwise_than_the_run_is_refused(untrained, line, other, picture):
    trained, beside = untrained()
    text = beside.read_text()
    beside.write_text(text.replace(line, other))
    assert text != beside.read_text()
    with pytest.raises(RunError, match=f"of an odd picture, ({picture})"):
        check_program(beside, trained)


def test_a_model_file_whose_program_differs_is_not_kept(run, tmp_path, monkeypatch, capsys):
    def spoilt(*words, **more):
        return program(*words, **more).replace('"white"', '"black"')

    monkeypatch.setattr(exporting, "program", spoilt)
    words = ["--format", "pt2", "--output", str(tmp_path / "out")]
    assert main([str(run), *words]) == 5
    assert "tiny_pt2.py was removed: of an odd picture, alpha.png" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))
