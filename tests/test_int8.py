"""int8 and OpenVINO files: what they cost is measured on val and told, and they compute as said."""

import dataclasses
import io
import json
import runpy
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

from trainer.build.prepare import prepare
from trainer.build.trained import load_trained
from trainer.config import load_config
from trainer.export import main
from trainer.loop.fit import fit
from trainer.process.stop import StopRequest
from trainer.run.disk import read_json

onnx = pytest.importorskip("onnx", reason='needs pip install -e ".[export]"')
onnxruntime = pytest.importorskip("onnxruntime", reason='needs pip install -e ".[export]"')

from yaml_trainer.export import int8, latency  # noqa: E402

CONFIG = """
name: tiny
dataset: {dataset}
split: {{ratios: [2, 2, 1]}}
transforms:
  train: [{train}]
  eval: [{transforms}]
loader: {{batch_size: 8, workers: 0}}
model: {model}
loss: {{name: {loss}}}
optimizer: {{name: SGD, lr: 0.01, momentum: 0.9}}
metrics: [macro_f1]
train: {{epochs: {epochs}, device: cpu}}
log: {{images: 0}}
"""
NORMALIZE = "{name: Normalize, mean: [0.5, 0.4, 0.3], std: [0.25, 0.3, 0.2]}"
RESIZED = f"{{name: Resize, size: [32, 32]}}, {NORMALIZE}"
INT8 = ["tiny.int8.onnx", "tiny.int8.json", "tiny_int8.py"]


@pytest.fixture(autouse=True, scope="module")
def briefly():
    """Times are measured in few rounds: no test here asks for exact ones of real models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "ROUNDS", 3)
        patch.setattr(latency, "BLOCK", 0.001)
        yield


def trained_on(folder, dataset, epochs=2, **more):
    """The folder of a small run."""
    given = {"train": RESIZED, "transforms": RESIZED, "model": "LeNet", "loss": "CrossEntropyLoss"}
    (folder / "tiny.yaml").write_text(
        CONFIG.format(dataset=dataset, epochs=epochs, **(given | more))
    )
    torch.set_num_threads(1)
    with StopRequest() as stop, redirect_stdout(io.StringIO()):
        job = prepare(load_config(folder / "tiny.yaml"), print)
        return fit(job, folder / "runs", None, print, stop)


@pytest.fixture(scope="module")
def run(tmp_path_factory, notes):
    """Two epochs of LeNet on pictures of notes, of which two fifths are val."""
    return trained_on(tmp_path_factory.mktemp("int8"), f"{{name: ImageFolder, root: {notes}}}")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Its ONNX and int8 files, where val accuracy may fall to any: the folder, and the output."""
    folder = tmp_path_factory.mktemp("files")
    words = ["--format", "onnx", "--int8", "--max-drop", "1", "--output", str(folder)]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        assert main([str(run), *words]) == 0
    return folder, out.getvalue() + err.getvalue()


def logits_of(file, images):
    return onnxruntime.InferenceSession(file).run(["logits"], {"images": images})[0]


def test_the_int8_file_answers_val_images_as_the_card_and_the_output_say(exported, run, notes):
    folder, printed = exported
    trained, val = load_trained(run), read_json(run / "split.json")["val"]
    images = trained.inputs([trained.read(notes / name) for name in val]).numpy()
    labels = np.array([trained.classes.index(name.split("/")[0]) for name in val])
    before, after = (
        logits_of(folder / name, images).argmax(axis=1) for name in ("tiny.onnx", "tiny.int8.onnx")
    )
    card = json.loads((folder / "tiny.int8.json").read_text())["int8"]
    was_right, is_right = before == labels, after == labels
    assert card["val_images"] == len(val) > 12
    assert card["val_float32"]["accuracy"] == pytest.approx(was_right.mean())
    assert card["val_int8"]["accuracy"] == pytest.approx(is_right.mean())
    assert card["val_changed"] == (before != after).sum()
    assert card["val_right_to_wrong"] == (was_right & ~is_right).sum()
    assert card["val_wrong_to_right"] == (is_right & ~was_right).sum()
    accuracy = f"accuracy {was_right.mean():.4f} -> {is_right.mean():.4f}"
    assert f"{len(val)} val images: " in printed and accuracy in printed
    # The same metrics are in the file itself, with the classes.
    metadata = onnxruntime.InferenceSession(folder / INT8[0]).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["int8"])["val_int8"] == card["val_int8"]
    assert json.loads(metadata["classes"]) == list(trained.classes)


def test_the_weights_of_the_int8_file_are_integers_of_7_bits_in_a_third_of_the_size(exported):
    folder, _ = exported
    sizes = [(folder / name).stat().st_size for name in ("tiny.int8.onnx", "tiny.onnx")]
    assert sizes[0] < 0.4 * sizes[1]
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(folder / "tiny.int8.onnx").graph.initializer
        if len(tensor.dims) > 1
    ]
    assert weights
    for each in weights:
        assert each.dtype == np.int8 and abs(each.astype(int)).max() <= 64


def test_val_images_that_are_too_few_to_judge_are_noted(exported):
    assert "val images are too few to rule out a drop above" not in exported[1]  # 1 was allowed
    price = int8.Price(10, {"accuracy": 1.0}, {"accuracy": 1.0}, 0, 0, 0)
    with redirect_stderr(io.StringIO()) as err, redirect_stdout(io.StringIO()):
        int8.tell_price(price, "8 of 8", 0.01)
    assert "10 val images are too few to rule out a drop above --max-drop 0.01" in err.getvalue()
    assert "up to 0.2589" in err.getvalue()  # 1 - 0.05 ** (1 / 10)


@pytest.mark.parametrize(("lost", "images"), [(0, 1), (0, 10), (3, 967), (40, 1000), (9, 9)])
def test_the_bound_of_images_that_turn_wrong_is_that_of_clopper_and_pearson(lost, images):
    expected = scipy.stats.beta.ppf(0.95, lost + 1, images - lost) if lost < images else 1
    assert int8.most_lost(lost, images) == pytest.approx(expected, rel=1e-9)


def test_the_same_run_gives_an_int8_file_of_the_same_bytes(exported, run, tmp_path, capsys):
    words = ["--format", "onnx", "--int8", "--max-drop", "1", "--output", str(tmp_path)]
    assert main([str(run), *words]) == 0
    assert (tmp_path / INT8[0]).read_bytes() == (exported[0] / INT8[0]).read_bytes()


def test_calibration_reads_only_training_images(run, notes, tmp_path):
    split = read_json(run / "split.json")
    for name in split["train"]:  # a copy of the data without any image of val or test
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(notes / name, tmp_path / name)
    trained = load_trained(run)
    config = load_config(run / "config.yaml", [f"dataset.root={tmp_path}"])
    subset = int8.calibration_images(dataclasses.replace(trained, config=config), split["train"])
    batches = iter(int8.Calibration(subset).get_next, None)
    seen = np.concatenate([batch["images"] for batch in batches])
    files = [tmp_path / name for name in sorted(split["train"])]
    expected = trained.inputs([trained.read(file) for file in files]).numpy()
    assert len(seen) == len(split["train"]) == sum(file.is_file() for file in tmp_path.rglob("*.*"))
    np.testing.assert_array_equal(
        sorted(map(bytes, seen)), sorted(map(bytes, expected)), strict=True
    )


def test_the_command_calibrates_on_the_training_images(run, tmp_path, monkeypatch):
    given: list[str] = []

    def quantised(file, images):
        given.extend(images.dataset.ids[index] for index in images.indices.tolist())
        return file.read_bytes()

    monkeypatch.setattr(int8, "quantised", quantised)
    monkeypatch.setattr(latency, "ROUNDS", 1)
    assert main([str(run), "--format", "onnx", "--int8", "--output", str(tmp_path)]) == 0
    assert sorted(given) == sorted(read_json(run / "split.json")["train"])


def test_of_many_training_images_a_fixed_number_is_drawn_by_the_seed(run, notes, monkeypatch):
    monkeypatch.setattr(int8, "CALIBRATION", 5)
    train = read_json(run / "split.json")["train"]
    trained = load_trained(run)

    def drawn(seed):
        config = trained.config.model_copy(update={"seed": seed})
        subset = int8.calibration_images(dataclasses.replace(trained, config=config), train)
        return [subset.dataset.ids[index] for index in subset.indices.tolist()]

    assert len(set(drawn(0))) == 5 and drawn(0) == drawn(0) != drawn(1)
    assert {*drawn(0)} < {*train}


def test_a_drop_above_the_limit_leaves_no_file(run, tmp_path, monkeypatch, capsys):
    for name in INT8:  # of an earlier export
        (tmp_path / name).write_text("earlier")

    def spoilt(file, images):
        model = onnx.load(file)
        for tensor in model.graph.initializer:  # each answer becomes its opposite
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.shape[0] == 2:
                tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))
        return model.SerializeToString()

    monkeypatch.setattr(int8, "quantised", spoilt)
    command = [str(run), "--format", "onnx", "--int8", "--output", str(tmp_path)]
    assert main(command) == 5
    err = capsys.readouterr().err
    assert "tiny.int8.onnx was removed: val accuracy falls by" in err
    assert "--max-drop 0.01 is allowed" in err and "Traceback" not in err
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["tiny.json", "tiny.onnx", "tiny_onnx.py"]


def test_the_program_beside_the_int8_file_classifies_as_the_file_does(
    exported, run, notes, monkeypatch, capsys
):
    files = [notes / "1" / "003.jpg", notes / "100" / "007.jpg"]
    trained = load_trained(run)
    images = trained.inputs([trained.read(file) for file in files]).numpy()
    best = logits_of(exported[0] / INT8[0], images).argmax(axis=1)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["x", *map(str, files)])
    runpy.run_path(str(exported[0] / "tiny_int8.py"), run_name="__main__")
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows] == [trained.classes[k] for k in best]


def test_int8_of_a_run_that_takes_the_mean_over_ten_crops_is_judged_by_that_mean(
    notes, tmp_path, capsys
):
    crops = f"{{name: Resize, size: [40, 40]}}, {{name: TenCrop, size: 32}}, {NORMALIZE}"
    dataset = f"{{name: ImageFolder, root: {notes}}}"
    run = trained_on(tmp_path, dataset, epochs=1, transforms=crops)
    assert main([str(run), "--format", "onnx", "--int8", "--max-drop", "1"]) == 0
    card = json.loads((run / "export" / "tiny.int8.json").read_text())["int8"]
    trained, val = load_trained(run), read_json(run / "split.json")["val"]
    inputs = trained.inputs([trained.read(notes / name) for name in val])
    logits = logits_of(run / "export" / "tiny.int8.onnx", inputs.flatten(0, 1).numpy())
    chosen = logits.reshape(len(val), 10, 2).mean(axis=1).argmax(axis=1)
    right = [trained.classes[k] == name.split("/")[0] for k, name in zip(chosen, val, strict=True)]
    assert card["val_int8"]["accuracy"] == pytest.approx(np.mean(right))


def test_int8_of_several_labels_is_judged_by_images_whose_labels_are_all_right(tmp_path, capsys):
    rows = ["path,red,green"]
    drawn = np.random.default_rng(0)
    for number in range(60):
        has = [number % 2, number // 2 % 2, 0]
        pixels = drawn.integers(0, 120, (8, 8, 3)) + 100 * np.array(has)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number:03d}.png")
        rows.append(f"{number:03d}.png,{has[0]},{has[1]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    run = trained_on(
        tmp_path,
        f"{{name: CSVImages, root: {tmp_path}, csv: {tmp_path}/labels.csv, "
        "label_columns: [red, green]}",
        train=NORMALIZE,
        transforms=NORMALIZE,
        model="{name: MLP, hidden: [16]}",
        loss="BCEWithLogitsLoss",
    )
    assert main([str(run), "--format", "onnx", "--int8", "--max-drop", "1"]) == 0
    card = json.loads((run / "export" / "tiny.int8.json").read_text())
    trained, val = load_trained(run), read_json(run / "split.json")["val"]
    inputs = trained.inputs([trained.read(tmp_path / name) for name in val]).numpy()
    chances = 1 / (1 + np.exp(-logits_of(run / "export" / "tiny.int8.onnx", inputs)))
    chosen = chances >= np.array(card["thresholds"], np.float32)
    numbers = [int(name.split(".")[0]) for name in val]
    right = [[k % 2, k // 2 % 2] == row.tolist() for k, row in zip(numbers, chosen, strict=True)]
    assert card["int8"]["val_int8"]["accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--format pt2 --int8", "--int8 rounds the ONNX file: give --format onnx too"),
        ("--format onnx --max-drop 0.1", "--max-drop says what --int8 may cost"),
        ("--format onnx --int8 --reject 0.95", "--int8 has no output unknown"),
        ("--format onnx --int8 --max-drop 2", "'2' is no number from 0 to 1, such as 0.01"),
        ("--format onnx --int8 --max-drop nan", "'nan' is no number from 0 to 1, such as 0.01"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_the_reason(words, reason, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["runs/none", *words.split()])
    assert reason in " ".join(capsys.readouterr().err.split())


def test_without_openvino_its_extra_is_named(monkeypatch, capsys):
    there = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "openvino" else there(name)
    )
    assert main(["runs/none", "--format", "openvino"]) == 2
    err = capsys.readouterr().err
    assert 'openvino, not installed here: pip install -e ".[export,openvino]"' in err


@pytest.fixture(scope="module")
def opened(run, tmp_path_factory):
    """Its OpenVINO files."""
    pytest.importorskip("openvino", reason='needs pip install -e ".[openvino]"')
    folder = tmp_path_factory.mktemp("openvino")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert main([str(run), "--format", "openvino", "--output", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_openvino_in_float32_gives_the_logits_of_the_run_for_batches_of_any_size(
    opened, run, notes, batch
):
    import openvino

    trained = load_trained(run)
    files = sorted(notes.rglob("*.jpg"))[::2][:batch]
    inputs = trained.inputs([trained.read(file) for file in files])
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.compile_model(opened / "tiny.xml", "CPU", hint)
    found = torch.from_numpy(model({"images": inputs.numpy()})["logits"].copy())
    torch.testing.assert_close(found, trained.logits(inputs), rtol=0, atol=1e-5)


def test_openvinos_precision_is_pinned_in_the_check_and_in_the_program(opened, run, monkeypatch):
    import openvino

    asked = []
    compile_model = openvino.Core.compile_model

    def watched(self, *arguments):
        model = compile_model(self, *arguments)
        asked.append(model.get_property("INFERENCE_PRECISION_HINT"))
        return model

    monkeypatch.setattr(openvino.Core, "compile_model", watched)
    from yaml_trainer.export.openvino_file import openvino_model

    openvino_model(opened / "tiny.xml")
    runpy.run_path(str(opened / "tiny_openvino.py"))["load"]()
    assert asked == [openvino.Type.f32] * 2
    # Its weights are as the run's: of float16 there would be half the bytes.
    parameters = sum(p.numel() for p in load_trained(run).model.parameters())
    assert (opened / "tiny.bin").stat().st_size >= 4 * parameters


def test_openvinos_program_classifies_pictures_without_this_project(opened, run, notes, tmp_path):
    files = [notes / "1" / "003.jpg", notes / "100" / "007.jpg"]
    trained = load_trained(run)
    chances = trained.probabilities(trained.inputs([trained.read(file) for file in files]))
    command = [sys.executable, "-B", opened / "tiny_openvino.py", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    best = chances.max(dim=1)
    assert [row[1] for row in rows] == [trained.classes[k] for k in best.indices.tolist()]
    np.testing.assert_allclose([float(row[2]) for row in rows], best.values, atol=0.01)


def test_models_take_turns_and_a_ratio_is_of_the_medians_of_rounds(monkeypatch):
    clock, calls = [0.0], []

    def takes(name, seconds):
        def model(images):
            calls.append(name)
            clock[0] += seconds * (1 if len(images) == 1 else len(images) / 2)
            return images

        return model

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(time, "process_time", lambda: clock[0] / 2)
    models = {"slow": takes("slow", 0.04), "fast": takes("fast", 0.01)}
    turns = latency.take_turns(models, torch.zeros(3, 1, 2, 2), (1, 8))
    for size, milliseconds in ((1, 40), (8, 160)):
        assert turns["fast"][size].times_as_fast_as(turns["slow"][size]) == pytest.approx(4)
        assert turns["slow"][size].milliseconds(50) == pytest.approx(milliseconds)
        speed = turns["slow"][size].images_per_second
        assert speed == pytest.approx(1000 * size / milliseconds)
        assert len(turns["slow"][size].seconds) == latency.ROUNDS
    changes = sum(a != b for a, b in zip(calls, calls[1:], strict=False))
    assert changes >= 2 * latency.ROUNDS  # neither waits until the other is done
    table = [line.split() for line in latency.lines_of(turns)]
    assert table[2] == ["fast", "10.000", "10.000", "5.000", "4.00x", "200", "8", "4.00x"]


def test_the_benchmark_prints_and_keeps_a_ratio_to_pytorch_of_each_file(run, tmp_path, capsys):
    command = [str(run), "--format", "pt2", "onnx", "--benchmark", "--output", str(tmp_path)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    facts = json.loads((tmp_path / "tiny.benchmark.json").read_text())
    assert list(facts["models"]) == ["pytorch", "pt2", "onnx"]
    assert facts["machine"]["threads"] == torch.get_num_threads()
    for name, rows in facts["models"].items():
        assert [row["batch"] for row in rows] == [1, 8, 32]
        assert all(0 < row["p50_ms"] <= row["p95_ms"] for row in rows)
        row = next(line for line in reversed(printed.splitlines()) if line.split()[:1] == [name])
        ratio = float(row.split()[4].removesuffix("x"))
        assert ratio == pytest.approx(rows[0]["times_as_fast"], abs=0.006)  # both are rounded
    assert facts["models"]["pytorch"][0]["times_as_fast"] == 1


@pytest.mark.parametrize(("load", "is_told"), [(1.9, False), (12.9, True)])
def test_a_busy_machine_is_noted_beside_its_times(load, is_told, monkeypatch, capsys):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    machine = latency.about_machine(1)
    latency.tell_if_busy(machine)
    assert (machine["load"], machine["cores"]) == (load, 2)
    assert ("load 12.9, 2 cores" in capsys.readouterr().err) == is_told
