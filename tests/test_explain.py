import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
import torchvision.transforms.v2 as v2
from PIL import Image
from torch import nn

from trainer.build.prepare import prepare
from trainer.build.trained import load_trained
from trainer.config import load_config
from trainer.drawing.pictures import to_picture
from trainer.explain import main
from trainer.inference.explanation import MAX_CHANNELS, choose_folder, explain, file_name, overlay
from trainer.insight.features import grad_cam
from trainer.insight.samples import as_pictures
from trainer.loop.fit import fit
from trainer.process.errors import NoAnswer
from trainer.process.stop import StopRequest
from transforms.own import Normalize
from transforms.pipeline import Pipeline

CONFIG = """
dataset: {{name: RMB, root: {root}}}
transforms:
  train: [{{name: Resize, size: [32, 32]}}, {{name: Normalize, mean: [0.5], std: [0.25]}}]
  eval: [{{name: Resize, size: [32, 32]}}, {{name: Normalize, mean: [0.5], std: [0.25]}}]
loader: {{batch_size: 8, workers: 0}}
model: {{name: LeNet}}
optimizer: {{name: SGD, lr: 0.01}}
train: {{epochs: 1, device: cpu}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, notes):
    folder = tmp_path_factory.mktemp("explained")
    (folder / "small.yaml").write_text(CONFIG.format(root=notes))
    job = prepare(load_config(folder / "small.yaml", []), lambda line: None)
    with StopRequest() as stop:
        return fit(job, folder / "runs", None, lambda line: None, stop)


@pytest.fixture
def trained(run):
    return load_trained(run)


@pytest.fixture
def image(notes, tmp_path):
    return shutil.copy(notes / "1" / "000.jpg", tmp_path / "photo.jpg")


class Bright(nn.Module):
    """Class 1 is what is bright: its evidence is where the light is."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 4, stride=4, bias=False)
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.conv.weight.fill_(1)
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))

    def forward(self, images):
        return self.head(self.conv(images).mean(dim=(2, 3)))


def with_model(trained, model, size, *more):
    pipeline = Pipeline([v2.Resize(list(size)), *more], 0)
    return replace(trained, model=model, pipeline=pipeline, input_shape=(3, *size))


def redness(picture):
    """How much redder than blue each pixel is: (H, W) float."""
    red, _, blue = v2.functional.pil_to_tensor(picture).float()
    return red - blue


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("left", [True, False])
def test_evidence_in_one_corner_lights_up_that_corner(trained, tmp_path, top, left):
    picture = torch.zeros(3, 60, 120, dtype=torch.uint8)
    picture[:, :15, :30] = 255
    picture = picture if top else picture.flip(1)
    picture = picture if left else picture.flip(2)
    path = tmp_path / "corner.png"
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
    bright = with_model(trained, Bright().eval(), (32, 64))
    explain(bright, path, bright.read(path), tmp_path / "out")
    with Image.open(tmp_path / "out" / "grad_cam.png") as drawn:
        assert drawn.width == 2 * drawn.height  # as the input: nothing is stretched or turned
        red = redness(drawn)
    half_height, half_width = (side // 2 for side in red.shape)
    rows = red[:half_height] if top else red[half_height:]
    corner = rows[:, :half_width] if left else rows[:, half_width:]
    assert corner.max() > 100
    elsewhere = red.clone()
    elsewhere[:half_height, :half_width] *= not (top and left)
    elsewhere[:half_height, half_width:] *= not (top and not left)
    elsewhere[half_height:, :half_width] *= not (not top and left)
    elsewhere[half_height:, half_width:] *= not (not top and not left)
    assert elsewhere.max() < 20


def test_without_heat_the_picture_stays_as_it_is():
    picture = Image.effect_noise((40, 40), 50).convert("RGB")
    drawn = overlay(picture, torch.zeros(40, 40), size=40)
    assert drawn.tobytes() == picture.tobytes()


def test_what_the_model_sees_is_its_input_before_it_is_normalised(trained, image):
    pixels = trained.read(image)
    inputs = trained.inputs([pixels])
    seen = as_pictures(trained.pipeline, inputs)[0]
    undone = inputs[0] * 0.25 + 0.5
    assert seen.dtype == torch.uint8
    assert torch.equal(seen, (undone * 255).round().clamp(0, 255).byte())


def test_all_pictures_are_written_and_named(run, image, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main([str(run), str(image), "--class", "100", "--output", str(folder)]) == 0
    out, err = capsys.readouterr()
    written = {str(p.relative_to(folder)) for p in folder.rglob("*.png")}
    assert {"overview.png", "grad_cam.png", "kernels.png"} < written
    assert len([name for name in written if name.startswith("grad_cam")]) in (1, 2)
    assert len([name for name in written if name.startswith("feature_maps/")]) == 6
    for name in written:
        assert f"  {name}: " in out
        with Image.open(folder / name) as picture:
            picture.load()
    assert err == f"run     {run}, weights of epoch 1\n"


def test_the_classes_told_are_those_of_the_model(run, trained, image, tmp_path, capsys):
    main([str(run), str(image), "--output", str(tmp_path / "out")])
    wanted = trained.probabilities(trained.inputs([trained.read(image)]))[0]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:3]]
    told = {name: float(value) for value, name in lines}
    for name, value in zip(trained.classes, wanted.tolist(), strict=True):
        assert told[name] == pytest.approx(value, abs=5e-5)
    top = json.loads((tmp_path / "out" / "explanation.json").read_text())["top"]
    assert top == pytest.approx(dict(zip(trained.classes, wanted.tolist(), strict=True)))


def test_another_class_is_explained_too_in_a_file_of_its_name(trained, image, tmp_path):
    pixels = trained.read(image)
    predicted = int(trained.probabilities(trained.inputs([pixels])).argmax())
    explain(trained, image, pixels, tmp_path, label=1 - predicted)
    assert (tmp_path / f"grad_cam_{trained.classes[1 - predicted]}.png").is_file()


def test_each_class_has_a_file_name_of_its_own_that_every_file_system_can_hold(trained):
    classes = ("100", "../猫", "a/b", "a:b", "Dog", "dog", "//", "", "class_2", "x" * 300)
    many = replace(trained, classes=classes)
    names = [file_name(many, label) for label in range(len(classes))]
    assert names == [
        *("100", "_猫", "class_2", "class_3", "class_4", "class_5", "class_6", "class_7"),
        *("class_8", "x" * 40),
    ]


def test_a_model_without_maps_gets_the_other_pictures_and_a_note(
    trained, image, tmp_path, monkeypatch
):
    monkeypatch.setattr("trainer.inference.attribution.has_captum", lambda: False)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 100), nn.ReLU(), nn.Linear(100, 2))
    flat = with_model(trained, model.eval(), (8, 8))
    made = explain(flat, image, flat.read(image), tmp_path)
    names = {path.name: what for path, what in made.written}
    assert names.keys() == {"overview.png", "kernels.png"}
    assert names["kernels.png"].startswith(f"{MAX_CHANNELS} of 100")
    assert len(made.notes) == 1 and "Grad-CAM" in made.notes[0]


def predicted(trained, pixels):
    return int(trained.probabilities(trained.inputs([pixels])).argmax())


def test_of_several_crops_the_middle_one_is_shown(trained, image, tmp_path):
    crops = with_model(trained, trained.model, (48, 48), v2.FiveCrop(32), Normalize([0.5], [0.25]))
    crops = replace(crops, input_shape=(3, 32, 32))
    pixels = crops.read(image)
    made = explain(crops, image, pixels, tmp_path)
    assert "5 crops" in made.notes[0]
    middle = v2.functional.center_crop(v2.functional.resize(pixels, [48, 48]), [32, 32])
    inputs = crops.inputs([pixels])[:, 4]
    assert torch.equal(as_pictures(crops.pipeline, inputs)[0], middle)
    # The pictures that were written are those of this crop.
    (expected,) = [heat for heat, _ in [grad_cam(crops.model, inputs, predicted(crops, pixels))]]
    drawn = overlay(to_picture(middle), expected)
    with Image.open(tmp_path / "grad_cam.png") as written:
        assert written.convert("RGB").tobytes() == drawn.tobytes()


def test_pictures_of_another_image_are_not_replaced(run, notes, tmp_path, capsys):
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
    first = shutil.copy(notes / "1" / "001.jpg", tmp_path / "a" / "same name.jpg")
    second = shutil.copy(notes / "1" / "002.jpg", tmp_path / "b" / "same name.jpg")
    for path in (first, second, first):
        assert main([str(run), str(path)]) == 0
    folders = sorted(path.name for path in (run / "explain").iterdir())
    assert folders == ["same name", "same name-2"]
    about = json.loads((run / "explain" / "same name" / "explanation.json").read_text())
    assert about["image"] == str(first)


def test_what_was_converted_is_told(run, tmp_path, capsys):
    Image.new("CMYK", (40, 20), "red").save(tmp_path / "ink.jpg")
    assert main([str(run), str(tmp_path / "ink.jpg"), "--output", str(tmp_path / "out")]) == 0
    told = "note    1 of 1 images is CMYK or Lab, converted without colour profiles\n"
    assert told in capsys.readouterr().err


def test_nothing_is_written_behind_a_link(run, image, tmp_path, capsys):
    copied = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("explain"))
    (tmp_path / "elsewhere").mkdir()
    (copied / "explain").symlink_to(tmp_path / "elsewhere")
    assert main([str(copied), str(image)]) == 5
    assert "is a link" in capsys.readouterr().err
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("none.png", 2, "does not exist"),
        ("folder", 2, "is a folder"),
        ("text.png", 3, "not an image"),
    ],
)
def test_what_is_no_image_is_told_of_and_nothing_written(run, tmp_path, capsys, name, code, told):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    assert main([str(run), str(tmp_path / name), "--output", str(tmp_path / "out")]) == code
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_class_is_found_in_either_form_of_its_letters(run, trained, image, tmp_path, monkeypatch):
    named = replace(trained, classes=("1", "Z\u030cofie\u2019s Hu\u0308ndchen"))
    monkeypatch.setattr("trainer.build.trained.load_trained", lambda *given: named)
    out = tmp_path / "out"
    typed = ["--class", "\u017dofie\u2019s H\u00fcndchen", "--output", str(out)]
    assert main([str(run), str(image), *typed]) == 0


def test_an_unknown_class_is_told_with_those_there_are(run, image, tmp_path, capsys):
    assert main([str(run), str(image), "--class", "10"]) == 2
    err = capsys.readouterr().err
    assert "no such class" in err and "1 and 100" in err


@pytest.mark.parametrize("name", ["...jpg", "..jpg", ". .jpg"])
def test_a_name_of_dots_leads_nowhere_else(run, image, tmp_path, name):
    photograph = tmp_path / name
    photograph.write_bytes(image.read_bytes())
    assert choose_folder(run, photograph).parent == run / "explain"
    assert choose_folder(run, photograph).name not in ("", ".", "..")


def test_a_model_that_gives_no_numbers_is_told_as_such(trained, image, tmp_path):
    broken = copy.deepcopy(trained.model)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(NoAnswer, match="no finite numbers"):
        explain(replace(trained, model=broken), image, trained.read(image), tmp_path)
