"""Exported files: they answer as the run does, say what they are, and are kept only then."""

import dataclasses
import io
import json
import math
import runpy
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from datasets.bands import Form
from tests.deep_pictures import levels as drawn
from tests.deep_pictures import tif
from tests.picture_files import png
from trainer.build.model import build_model
from trainer.build.prepare import prepare
from trainer.build.trained import TrainedModel, load_trained
from trainer.config import load_config
from trainer.export import main
from trainer.input.data import build_pipelines
from trainer.loop.fit import fit
from trainer.process.stop import StopRequest
from yaml_trainer.export.export_check import Difference, Sample, take_sample
from yaml_trainer.export.exporting import export, write_onnx, write_pt2, write_safetensors
from yaml_trainer.export.model_card import building, describe_model, program, readme

pytest.importorskip("onnxruntime", reason='needs pip install -e ".[export]"')
pytest.importorskip("safetensors", reason='needs pip install -e ".[export]"')

ROOT = Path(__file__).resolve().parent.parent
RESIZE = "{name: Resize, size: [32, 32]}"
NORMALIZE = "{name: Normalize, mean: [0.5, 0.4, 0.3], std: [0.25, 0.3, 0.2]}"
CONFIG = """
name: tiny
dataset: {{name: RMB, root: {root}}}
transforms:
  train: [{train}]
  eval: [{transforms}]
loader: {{batch_size: 8, workers: 0}}
model: {model}
loss: {{name: {loss}}}
optimizer: {{name: SGD, lr: 0.01, momentum: 0.9}}
train: {{epochs: 2, device: cpu}}
log: {{images: 0}}
"""


def config_of(folder, root, model="LeNet", transforms=f"{RESIZE}, {NORMALIZE}", loss=None):
    file = folder / "tiny.yaml"
    loss, train = loss or "CrossEntropyLoss", f"{RESIZE}, {NORMALIZE}"
    file.write_text(
        CONFIG.format(root=root, model=model, train=train, transforms=transforms, loss=loss)
    )
    return load_config(file)


@pytest.fixture
def untrained(tmp_path, notes):
    """A model as the configuration names it, with random weights, as if a run had left it."""

    def make(model="LeNet", shape=(3, 32, 32), image_channels=3, classes=("1", "100"), **more):
        config = config_of(tmp_path, notes, model, **more)
        net = build_model(config, classes, shape).eval()
        if any(p.ndim == 4 for p in net.parameters()):
            net.to(memory_format=torch.channels_last)  # as a run on a CPU does
        pipeline = build_pipelines(config, num_classes=len(classes))["eval"]
        cpu = torch.device("cpu")
        return TrainedModel(tmp_path, config, classes, shape, net, image_channels, pipeline, cpu)

    return make


@pytest.fixture(scope="module")
def run(tmp_path_factory, notes):
    """A run of two epochs on pictures of notes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("export")
    with StopRequest() as stop, redirect_stdout(io.StringIO()):
        job = prepare(config_of(folder, notes), print)
        return fit(job, folder / "runs", None, print, stop)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Its export into all formats: the folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("files")
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        assert main([str(run), "--format", "all", "--output", str(folder)]) == 0
    assert err.getvalue() == f"run     {run}, weights of epoch {best_epoch(run)}\n"
    return folder, out.getvalue()


def best_epoch(run):
    return json.loads((run / "model.json").read_text())["metrics"]["epoch"]


def photographs(notes):
    return [notes / "1" / "003.jpg", notes / "100" / "007.jpg", notes / "100" / "011.jpg"]


def answers(folder, images):
    """Logits of each file, read with nothing of ours but the model's class."""
    import onnxruntime
    from safetensors.torch import load_file

    from models.lenet import LeNet

    session = onnxruntime.InferenceSession(folder / "tiny.onnx")
    net = LeNet(num_classes=2, in_channels=3)
    net.load_state_dict(load_file(folder / "tiny-safetensors" / "model.safetensors"))
    return {
        "pt2": torch.export.load(folder / "tiny.pt2").module()(images),
        "onnx": torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
        "safetensors": net.eval()(images).detach(),
    }


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_each_file_gives_the_logits_of_the_run_for_batches_of_any_size(exported, run, notes, batch):
    trained = load_trained(run)
    files = sorted(notes.rglob("*.jpg"))[::2][:batch]
    inputs = trained.inputs([trained.read(file) for file in files])
    expected = trained.logits(inputs)
    for name, logits in answers(exported[0], inputs).items():
        assert not logits.requires_grad, name
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5, msg=name)


def test_the_programs_beside_the_files_classify_photographs_as_the_run_does(
    exported, run, notes, monkeypatch, capsys, tmp_path
):
    trained, files = load_trained(run), photographs(notes)
    chances = trained.probabilities(trained.inputs([trained.read(file) for file in files]))
    best = chances.max(dim=1)
    expected = [trained.classes[i] for i in best.indices.tolist()]
    assert expected == [file.parent.name for file in files]  # the run itself is right
    monkeypatch.setattr(sys, "argv", ["x", *map(str, files)])
    printed = {}
    for kind in ("onnx", "pt2"):
        runpy.run_path(str(exported[0] / f"tiny_{kind}.py"), run_name="__main__")
        printed[kind] = capsys.readouterr().out
    # The folder of weights alone, where this project is not to be had.
    command = [sys.executable, "-B", exported[0] / "tiny-safetensors" / "use.py", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed["safetensors"] = done.stdout
    for kind, text in printed.items():
        rows = [line.split("\t") for line in text.splitlines()]
        assert [row[1] for row in rows] == expected, kind
        np.testing.assert_allclose([float(row[2]) for row in rows], best.values, atol=0.01)


@pytest.mark.parametrize("file", ["tiny_onnx.py", "tiny_pt2.py", "tiny-safetensors/use.py"])
def test_the_programs_without_a_photograph_say_what_they_want(exported, file, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [file])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(exported[0] / file), run_name="__main__")
    assert capsys.readouterr().err == f"usage: python {Path(file).name} PHOTO...\n"


def test_the_programs_name_a_file_that_is_no_photograph_and_do_the_others(
    exported, notes, tmp_path, monkeypatch, capsys
):
    bad, gone, good = tmp_path / "bad.jpg", tmp_path / "gone.jpg", photographs(notes)[0]
    bad.write_bytes(good.read_bytes()[:300])
    monkeypatch.setattr(sys, "argv", ["x", str(bad), str(gone), str(good)])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(exported[0] / "tiny_pt2.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(good)]
    assert [line.split(": ")[0] for line in err.splitlines()] == [str(bad), str(gone)]


@pytest.mark.parametrize("file", ["tiny_onnx.py", "tiny_pt2.py", "tiny-safetensors/use.py"])
@pytest.mark.parametrize("damage", ["missing", "cut", "no package"])
def test_the_programs_say_in_words_what_they_lack(
    exported, notes, file, damage, tmp_path, monkeypatch, capsys
):
    shutil.copytree(exported[0], tmp_path / "copy")
    place = tmp_path / "copy" / file
    kind = "safetensors" if place.name == "use.py" else place.stem.partition("_")[2]
    (model,) = place.parent.glob(f"*.{kind}")
    if damage == "missing":
        model.unlink()
    elif damage == "cut":
        model.write_bytes(model.read_bytes()[:900])
    else:
        monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setattr(sys, "argv", [place.name, str(photographs(notes)[0])])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(place), run_name="__main__")
    told = str(ended.value.code)
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and "\n" not in told
    assert {
        "missing": f"{model.name} is missing: it must lie beside this program",
        "cut": f"{model.name} or a file beside it is missing or damaged: ",
        "no package": "This program needs: python -m pip install ",
    }[damage] in told
    assert damage != "no package" or "pillow" in told


def test_a_program_says_in_words_what_is_wrong_with_a_photograph(
    exported, notes, tmp_path, monkeypatch, capsys
):
    names: dict[str, Any] = {"__name__": "use", "__file__": str(exported[0] / "tiny_pt2.py")}
    exec((exported[0] / "tiny_pt2.py").read_text(), names)
    card = json.loads((exported[0] / "tiny.json").read_text())
    card["transforms"] = [step for step in card["transforms"] if step["name"] != "Resize"]
    model = names["load"]()[0]
    names["load"] = lambda: (model, card)
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    files = [tmp_path / name for name in ("text.jpg", "gone.jpg", "folder", "large.png")]
    monkeypatch.setattr(sys, "argv", ["x", *map(str, files)])
    with pytest.raises(SystemExit, match="1"):
        names["main"]()
    out, err = capsys.readouterr()
    told = dict(line.split(": ", 1) for line in err.splitlines())
    assert out == "" and list(told) == list(map(str, files))
    assert told[str(files[0])] == "this is no picture that Pillow can read"
    assert told[str(files[1])] == "No such file or directory"
    assert told[str(files[2])] == "Is a directory"
    assert told[str(files[3])].startswith("the model does not take images of 3 x 30 x 40: ")


def test_the_classes_travel_inside_each_file(exported):
    import onnxruntime
    from safetensors import safe_open

    folder, _ = exported
    card = json.loads((folder / "tiny.json").read_text())
    assert card["classes"] == ["1", "100"] and card["input"]["shape"] == ["batch", 3, 32, 32]
    extra = {"card.json": ""}
    torch.export.load(folder / "tiny.pt2", extra_files=extra)
    assert json.loads(extra["card.json"]) == card
    meta = onnxruntime.InferenceSession(folder / "tiny.onnx").get_modelmeta()
    assert json.loads(meta.custom_metadata_map["classes"]) == ["1", "100"]
    with safe_open(folder / "tiny-safetensors" / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["1", "100"]
    hub = json.loads((folder / "tiny-safetensors" / "config.json").read_text())
    assert hub["id2label"] == {"0": "1", "1": "100"} and hub["label2id"] == {"1": 0, "100": 1}


def test_no_file_tells_of_the_machine_that_wrote_it(exported, run, notes):
    folder, _ = exported
    private = [str(ROOT), str(run), str(notes), str(folder), sys.prefix, "site-packages"]
    for file in filter(Path.is_file, folder.rglob("*")):
        content = file.read_bytes()
        assert not [text for text in private if text.encode() in content], file


def test_one_onnx_file_is_written_and_nothing_else_is_left(exported):
    folder, _ = exported
    assert sorted(path.name for path in folder.iterdir()) == [
        *("tiny-safetensors", "tiny.json", "tiny.onnx", "tiny.pt2", "tiny_onnx.py", "tiny_pt2.py")
    ]


def test_the_output_names_each_file_its_greatest_difference_and_program_and_nothing_else(exported):
    folder, out = exported
    lines = out.splitlines()
    assert sum("py: as predict on 28 odd pictures, and refuses 13" in line for line in lines) == 3
    assert len(lines) == 12 and lines[1].endswith(" test images of RMB")
    for name, file in (("onnx", "tiny.onnx"), ("pt2", "tiny.pt2")):
        place = next(i for i, line in enumerate(lines) if line.startswith(name))
        assert str(folder / file) in lines[place]
        assert float(lines[place + 1].split("logits ")[1].split(",")[0]) <= 1e-5


def test_the_model_card_is_what_hugging_face_reads(exported, run):
    text = (exported[0] / "tiny-safetensors" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    front = yaml.safe_load(head)
    result = json.loads((run / "result.json").read_text())["test"]
    metrics = front["model-index"][0]["results"][0]["metrics"]
    assert {m["type"]: m["value"] for m in metrics} == pytest.approx(result)
    assert front["library_name"] == "pytorch" and "license" not in front
    program = (exported[0] / "tiny-safetensors" / "use.py").read_text()
    assert program in body.replace("\n```\n", "\n")


def test_a_class_name_cannot_break_the_card(untrained):
    hostile = ("a|b", "<script>alert(1)</script>", "`x`\n---\nlicense: mit", "猫")
    trained = untrained(classes=hostile)
    text = readme(describe_model(trained, {}), "use\n")
    assert "<script" not in text.replace("\\<script", "") and "\n---\nlicense" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "猫" in line]
    assert rows == ["| 3 | 猫 |"]
    for kind in ("pt2", "onnx", "safetensors"):
        compile(program(kind, trained), kind, "exec")


def test_a_file_that_answers_otherwise_is_not_kept_and_an_older_one_stays(
    run, tmp_path, monkeypatch, capsys
):
    import yaml_trainer.export.exporting

    command = [str(run), "--format", "safetensors", "--output", str(tmp_path)]
    assert main(command) == 0
    folder = tmp_path / "tiny-safetensors"
    before = (folder / "model.safetensors").read_bytes()
    honest = yaml_trainer.export.exporting.plain_copy

    def spoilt(model: nn.Module) -> nn.Module:
        model = honest(model)
        with torch.no_grad():
            next(reversed(list(model.parameters())))[0] += 1e-3
        return model

    monkeypatch.setattr(yaml_trainer.export.exporting, "plain_copy", spoilt)
    assert main(command) == 5
    assert "differs from the run's model by 1.0e-03" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == before
    assert not [path for path in tmp_path.rglob("*") if "unproven" in path.name]


@pytest.mark.parametrize(
    ("logits", "chances", "largest", "agrees"),
    [
        (1e-5, 1e-5, 1.0, True),
        (1.1e-5, 0.0, 0.5, False),
        (9e-5, 1e-6, 10.0, True),  # float32 knows 10 to 1e-6 only
        (0.0, 1.1e-5, 10.0, False),
        (math.nan, 0.0, 1.0, False),
        (0.0, math.nan, 1.0, False),
        (math.inf, 0.0, 1.0, False),
    ],
)
def test_agreement_means_1e5_of_probabilities_and_of_logits(logits, chances, largest, agrees):
    assert Difference(logits, chances, largest).is_small is agrees


def moved(run, tmp_path, root):
    """A copy of the run whose configuration names another place of the data."""
    copy = tmp_path / "copied"
    copy.mkdir()
    for file in run.glob("*.*"):
        text = file.read_bytes()
        if file.name == "config.yaml":
            config = yaml.safe_load(text)
            config["dataset"]["root"] = root
            text = yaml.safe_dump(config).encode()
        (copy / file.name).write_bytes(text)
    return copy


def test_without_the_dataset_the_command_says_that_only_noise_was_compared(
    run, tmp_path, notes, capsys
):
    copy = moved(run, tmp_path, str(tmp_path / "gone"))
    assert main([str(copy), "--format", "safetensors"]) == 0
    out, err = capsys.readouterr()
    assert "NOISE" in out and "only noise is compared" in err and "gone" in err
    assert not (tmp_path / "gone").exists()
    assert (copy / "export" / "tiny-safetensors" / "model.safetensors").exists()
    # Real images, named on the command line; or the dataset's new place, also behind --format.
    assert main([str(copy), "--format", "safetensors", "--images", str(notes)]) == 0
    assert "50 images of --images" in capsys.readouterr().out
    assert main([str(copy), "--format", "safetensors", f"dataset.root={notes}"]) == 0
    assert "test images of RMB" in capsys.readouterr().out


def test_a_package_that_is_missing_is_told_before_any_work(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    output = tmp_path / "out"
    assert main([str(run), "--format", "pt2", "onnx", "--output", str(output)]) == 2
    assert 'pip install -e ".[export]"' in capsys.readouterr().err
    assert not output.exists()


def test_the_command_without_a_format_names_the_choices(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["somewhere"])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert all(name in err for name in ("pt2", "onnx", "safetensors", "all"))


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (["--output", "{tmp}/model.onnx"], 2, "name a folder"),
        (["--output", "{tmp}/link"], 5, "is a link"),
        (["--images", "{tmp}/none.jpg"], 2, "does not exist"),
        (["--images", "{tmp}/broken.jpg"], 3, "not an image"),
        (["--images", "{tmp}/empty"], 3, "no images in"),
        (["optimizer.lr=3"], 2, "the run began with"),
    ],
)
def test_what_cannot_be_done_is_told_with_its_exit_code(run, tmp_path, capsys, more, code, told):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "broken.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    command = [str(run), "--format", "safetensors", *(text.format(tmp=tmp_path) for text in more)]
    assert main(command) == code
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err
    assert not list(tmp_path.rglob("*.safetensors"))


GREY = "{name: Resize, size: [32, 32]}, {name: Grayscale}, {name: Normalize, mean: [0.5], std: [1]}"


def noise(*shape):
    return Sample(torch.randn(shape, generator=torch.Generator().manual_seed(0)), "noise")


FAMILIES = [
    ("MLP", (1, 8, 8)),
    ("{name: VGG, depth: 11, batch_norm: true, variant: cifar}", (3, 32, 32)),
    ("{name: torchvision/squeezenet1_1, freeze: [features.0.*]}", (1, 32, 32)),
    pytest.param(
        "{name: torchvision/mobilenet_v3_small, freeze: [features.0.*]}",
        (1, 32, 32),
        marks=pytest.mark.slow,
    ),
    ("timm/resnet10t", (3, 32, 32)),
]


@pytest.mark.parametrize(("model", "shape"), FAMILIES, ids=lambda value: str(value)[:20])
def test_every_family_agrees_and_its_program_builds_the_model(untrained, tmp_path, model, shape):
    trained = untrained(model, shape)
    card = describe_model(trained, {})
    sample = noise(9, *shape)
    _, seen = write_safetensors(tmp_path, trained, sample, card)
    assert seen.is_small
    graph = export(trained, sample.inputs)
    _, seen = write_pt2(tmp_path, trained, sample, card, graph)
    assert seen.is_small
    names: dict = {"torch": torch}
    imported, lines = building(trained)
    exec("\n".join([imported, *lines]), names)
    names["model"].load_state_dict(trained.model.state_dict())
    torch.testing.assert_close(
        names["model"].eval()(sample.inputs), trained.logits(sample.inputs), rtol=0, atol=1e-5
    )


def test_local_response_normalisation_agrees_in_onnx(untrained, tmp_path):
    trained = untrained("{name: AlexNet, variant: cifar}")
    sample = noise(3, 3, 32, 32)
    graph = export(trained, sample.inputs)
    _, seen = write_onnx(tmp_path, trained, sample, describe_model(trained, {}), graph)
    assert seen.is_small


def test_tied_and_channels_last_weights_are_written_whole(untrained, tmp_path):
    from safetensors.torch import load_file

    trained = untrained("{name: MLP, hidden: [192, 192]}", (3, 8, 8))
    trained.model.layers[3].weight = trained.model.layers[0].weight
    sample = noise(2, 3, 8, 8)
    path, seen = write_safetensors(tmp_path, trained, sample, describe_model(trained, {}))
    assert seen.logits == 0
    content = load_file(path)
    assert content.keys() == trained.model.state_dict().keys()
    assert torch.equal(content["layers.0.weight"], content["layers.3.weight"])


def test_a_model_that_cannot_be_exported_is_told_in_one_line(untrained, tmp_path):
    from trainer.process.errors import RunError

    class Choosing(nn.Module):
        def forward(self, images):
            return images[:, 0, 0, :2] if images.sum() > 0 else images[:, 0, 1, :2]

    trained = dataclasses.replace(untrained(), model=Choosing())
    with pytest.raises(RunError, match="torch.export cannot export LeNet: .+"):
        export(trained, torch.ones(2, 3, 32, 32))


def test_a_run_that_averages_crops_is_compared_on_single_crops(untrained, notes, capsys):
    resize = "{name: Resize, size: [40, 40]}"
    trained = untrained(transforms=f"{resize}, {{name: TenCrop, size: 32}}, {NORMALIZE}")
    sample = take_sample(trained, trained.config, photographs(notes))
    assert sample.inputs.shape == (30, 3, 32, 32)
    assert "mean over 10 crops" in capsys.readouterr().err


EVAL = {
    "plain": f"{RESIZE}, {NORMALIZE}",
    "crop": f"{{name: Resize, size: 40, interpolation: bicubic}}, {{name: CenterCrop, size: 32}}, "
    f"{NORMALIZE}",
    "letterbox": "{name: Letterbox, size: 28, fill: [9, 80, 7]}, "
    f"{{name: Pad, padding: [1, 2, 3, 2], fill: 30}}, {NORMALIZE}",
    "grey": GREY,
    "no floats": RESIZE,
}


def prepared(trained, path):
    """A file as the program beside an exported model prepares it, told by the model's card."""
    names: dict = {"__name__": "use", "__file__": "use.py"}
    exec(program("pt2", trained), names)
    return names["preprocess"](path, json.loads(json.dumps(describe_model(trained, {}))))


@pytest.mark.parametrize("name", EVAL)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_programs_prepare_a_photograph_as_the_run_does(untrained, tmp_path, name, channels):
    transforms = EVAL[name]
    if channels == 1:
        transforms = transforms.replace("[9, 80, 7]", "9").replace("[0.5, 0.4, 0.3]", "[0.5]")
        transforms = transforms.replace("[0.25, 0.3, 0.2]", "[0.25]")
    grey = channels == 1 or name == "grey"
    trained = untrained("LeNet", (1 if grey else 3, 32, 32), channels, transforms=transforms)
    smooth = torch.linspace(0, 6, 90 * 61).sin().reshape(61, 90)
    picture = Image.fromarray((127 + 100 * smooth.numpy()).astype(np.uint8)).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(tmp_path / "photo.png")
    found = prepared(trained, tmp_path / "photo.png")
    expected = trained.inputs([trained.read(tmp_path / "photo.png")]).numpy()
    assert found.dtype == np.float32 and found.shape == expected.shape
    # Two ways to round an 8-bit image differ by one or two levels, divided by the smallest std.
    np.testing.assert_allclose(found, expected, atol=2.1 / 255 / 0.2)


OWN = {
    "resize": "{name: Resize, size: [32, 32]}",
    "bicubic": "{name: Resize, size: 36, interpolation: bicubic}, {name: CenterCrop, size: 32}",
    "small crop": "{name: Resize, size: [21, 37]}, {name: CenterCrop, size: 32}",
    "letterbox": "{name: Letterbox, size: 28, fill: FILL}, {name: Pad, padding: 2, fill: 0}",
    "grey": "{name: Grayscale, num_output_channels: 3}, {name: Resize, size: [32, 32]}",
    "as it is": "{name: CenterCrop, size: 32}",
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_programs_prepare_an_array_as_the_run_does(untrained, tmp_path, name, channels, bits):
    if name == "grey" and channels == 5:
        pytest.skip("Grayscale takes no five channels")
    form = Form("rgb" if channels == 3 and bits == 16 else "keep", bits)
    given = 3 if name == "grey" else channels
    fill = str([9, 80, 7, 200, 30][:channels])
    normalize = f"{{name: Normalize, mean: {[0.5] * given}, std: {[0.25] * given}}}"
    transforms = f"{OWN[name].replace('FILL', fill)}, {normalize}"
    model = untrained("LeNet", (given, 32, 32), channels, transforms=transforms)
    trained = dataclasses.replace(model, form=form)
    places = np.indices((61, 90)).sum(axis=0)[..., None] / 9 + np.arange(channels)
    levels = np.uint16(32767 + 30000 * np.sin(places)) + np.arange(61 * 90).reshape(61, 90, 1) % 255
    for kind, array in {
        "own": levels if bits == 16 else levels >> 8,
        "grey": levels[..., 0],
        "8 bits": levels >> 8,
    }.items():
        if kind == "grey" and form.channels == "keep" and channels > 1:
            continue
        dtype = np.uint16 if bits == 16 and kind != "8 bits" else np.uint8
        array = array >> 8 if kind == "grey" and bits == 8 else array
        np.save(tmp_path / "photo.npy", array.astype(dtype))
        expected = trained.inputs([trained.read(tmp_path / "photo.npy")]).numpy()
        found = prepared(trained, tmp_path / "photo.npy")
        assert found.dtype == np.float32 and found.shape == expected.shape
        # Two ways to round differ by one level, or two; none is rounded before 16 bits are.
        step = 2.1 / 255 if bits == 8 else 2.1 / 65535
        np.testing.assert_allclose(found, expected, atol=step / 0.25)


@pytest.mark.parametrize("form", [Form("keep", 8), Form("keep", 16), Form("rgb", 16)])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, "png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
    + [("RGB", "bmp"), ("L", "bmp"), ("RGB", "jpg"), ("CMYK", "jpg"), ("RGB", "webp")],
)
def test_the_programs_of_own_channels_read_plain_pictures_as_the_run_does(
    untrained, tmp_path, form, mode, suffix
):
    channels = {"L": 1, "1": 1, "LA": 2, "RGBA": 4}.get(mode, 3) if form.channels == "keep" else 3
    model = untrained("LeNet", (channels, 32, 32), channels, transforms=OWN["resize"])
    trained, place = dataclasses.replace(model, form=form), tmp_path / f"photo.{suffix}"
    rows = np.random.default_rng(0).integers(0, 256, (61, 160, 4)).astype(np.uint8)
    Image.fromarray(rows).convert("RGB" if mode == "CMYK" else mode).convert(mode).save(place)
    expected = trained.inputs([trained.read(place)]).numpy()
    np.testing.assert_allclose(prepared(trained, place), expected, atol=1.1 / 255)


def test_the_programs_of_own_channels_refuse_what_pillow_reads_otherwise(untrained, tmp_path):
    model = untrained(transforms=OWN["resize"])
    trained = dataclasses.replace(model, form=Form("keep", 16))
    (tmp_path / "bands.tif").write_bytes(tif(drawn(9, 9, 3)))
    trained.read(tmp_path / "bands.tif")  # the run reads it
    with pytest.raises(ValueError, match="save it by numpy.save"):
        prepared(trained, tmp_path / "bands.tif")


@pytest.mark.parametrize("form", [Form("keep", 8), Form("keep", 16), Form("rgb", 16)])
@pytest.mark.parametrize("colours", [0, 2, 6])
def test_the_programs_of_own_channels_read_all_bits_of_a_png(untrained, tmp_path, form, colours):
    channels = {0: 1, 2: 3, 6: 4}[colours]
    given = channels if form.channels == "keep" else 3
    model = untrained("LeNet", (given, 32, 32), given, transforms=OWN["resize"])
    trained, place = dataclasses.replace(model, form=form), tmp_path / "deep.png"
    place.write_bytes(png(drawn(61, 90, channels), 16, colours))
    expected = trained.inputs([trained.read(place)]).numpy()
    if form.channels == "rgb" and channels == 4:
        with pytest.raises(ValueError, match="save it by numpy.save"):
            prepared(trained, place)
        return
    levels = 255 if form.bits == 8 else 65535
    np.testing.assert_allclose(prepared(trained, place), expected, atol=1.1 / levels)


@pytest.mark.parametrize(
    "transforms",
    [
        "{name: Resize, size: [32, 32], interpolation: nearest}, " + NORMALIZE,
        "{name: Resize, size: 32, max_size: 40}, " + NORMALIZE,
        "{name: Resize, size: 32, antialias: false}, {name: CenterCrop, size: 32}",
        f"{RESIZE}, {{name: Pad, padding: 2, padding_mode: reflect}}, {NORMALIZE}",
        f"{RESIZE}, {NORMALIZE}, {{name: CenterCrop, size: 28}}",
    ],
)
def test_a_transform_without_a_form_in_pillow_stops_the_program_by_name(
    untrained, notes, transforms
):
    trained = untrained(transforms=transforms)
    with pytest.raises(NotImplementedError, match="do here what the run's .* does: {"):
        prepared(trained, photographs(notes)[0])
