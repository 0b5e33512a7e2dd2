"""What TensorBoard reads of a run, read back with TensorBoard's own reader."""

import io
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.data_ingester import DEFAULT_TENSOR_SIZE_GUIDANCE
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.plugins.core.core_plugin import _parse_samples_per_plugin
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.backend_context import _sort_and_reduce_to_hparams_limit
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.util import tensor_util
from torch import nn
from torch.utils.tensorboard.summary import compute_curve

from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.input.loader import eval_loader
from trainer.insight import board, panels, projector
from trainer.insight.board import Board, show_end, show_epoch, show_start
from trainer.insight.features import penultimate
from trainer.insight.samples import as_pictures
from trainer.loop.evaluate import answers_of, predict
from trainer.process.words import visible
from trainer.run.events import Events
from trainer.run.folder import tensorboard_command

EVERYTHING = {"images": 0, "histograms": 0, "tensors": 0, "scalars": 0}


@pytest.fixture
def job(config_file):
    return lambda *overrides: prepare(load_config(config_file, overrides), print)


@pytest.fixture
def show(tmp_path):
    """Show the start, some epochs and the end of a job; what TensorBoard then reads of it."""

    def shown(job, epochs=1, say=lambda line: pytest.fail(line)):
        (tmp_path / "environment.json").write_text(json.dumps({"python": "3.x", "a|b": ["<b>"]}))
        events = Events(tmp_path)
        show_start(Board(events, job, say), tmp_path, 0)
        images, labels = next(iter(job.train_loader.epoch()))
        job.loss_fn(job.model(images), labels).backward()
        for epoch in range(1, epochs + 1):
            logits, labels = predict(job.model, job.val_loader.epoch())
            show_epoch(
                Board(events, job, say), epoch, 10 * epoch, answers_of(job.config, logits, labels)
            )
        part = job.data.subsets["test"]
        logits, labels = predict(job.model, eval_loader(job.config, part, job.device).epoch())
        show_end(
            Board(events, job, say),
            tmp_path,
            part,
            answers_of(job.config, logits, labels),
            10 * epochs,
        )
        events.close()
        return read(tmp_path)

    return shown


def read(folder):
    read_back = EventAccumulator(str(folder), size_guidance=EVERYTHING)
    read_back.Reload()
    return read_back


def tags_of(read_back) -> set[str]:
    found = read_back.Tags()
    tags = {tag for kind in ("images", "histograms", "tensors", "scalars") for tag in found[kind]}
    try:
        return tags | set(read_back.PluginTagToContent("hparams"))
    except KeyError:
        return tags


def test_everything_is_there_once_a_step_and_can_be_decoded(job, show, tmp_path):
    made = job()
    shown = show(made, epochs=5)
    found = shown.Tags()
    weights = dict(made.model.named_parameters())
    kinds = ("weights", "gradients")
    assert set(found["histograms"]) == {f"{kind}/{name}" for kind in kinds for name in weights}
    assert {tag for tag in found["tensors"] if tag.startswith("pr_")} == {
        f"pr_curve/{split}/{name}" for split in ("val", "test") for name in ("1", "100")
    }
    steps = {tag: [event.step for event in shown.Images(tag)] for tag in found["images"]}
    maps = {f"feature_maps/features.{i}": [10, 40] for i in (0, 2, 3, 5)}
    of_the_best = {tag.replace("maps/", "maps_best/"): [50] for tag in maps}
    assert steps == maps | of_the_best | {
        "kernels_best/first_layer": [50],
        "images/raw": [0],
        "images/augmented": [0],
        "kernels/first_layer": [0, 10, 40],
        "confusion_matrix/val": [10, 20, 30, 40, 50],
        "confusion_matrix/test": [50],
        "predictions/val": [10, 40],
        "predictions/test": [50],
    }
    for tag in found["images"]:
        image = shown.Images(tag)[0]
        with Image.open(io.BytesIO(image.encoded_image_string)) as picture:
            picture.load()
        assert picture.format == "PNG" and picture.size == (image.width, image.height)
    for tag in found["histograms"]:
        assert [event.step for event in shown.Histograms(tag)] == [10, 20, 30, 40, 50]
    assert len(list(tmp_path.glob("events*"))) == 1


SHOWN_BY = {
    "text": r"config/|environment/",
    "scalars": "custom_scalars__config__",
    "hparams": "_hparams_/",
    "inputs": "images/",
    "graph": None,
    "histograms": "weights/|gradients/",
    "kernels": "kernels",
    "feature_maps": "feature_maps",
    "predictions": "predictions/",
    "confusion_matrix": "confusion_matrix/",
    "pr_curves": "pr_curve/",
    "embedding": None,
}


@pytest.mark.parametrize("name", SHOWN_BY)
def test_each_part_is_shown_alone_where_it_alone_is_asked_for(name, job, show, tmp_path):
    shown = show(job(f"log.show=[{name}]"))
    tags = tags_of(shown)
    wanted = SHOWN_BY[name]
    assert all(re.match(wanted or "$", tag) for tag in tags) and bool(tags) == bool(wanted)
    assert shown.Tags()["graph"] == (name == "graph")
    assert (tmp_path / "projector").is_dir() == (name == "embedding")


def test_nothing_is_shown_where_nothing_is_asked_for(job, show):
    assert not tags_of(show(job("log.show=[]")))


def test_no_images_means_no_pictures_of_images(job, show):
    tags = tags_of(show(job("log.images=0")))
    assert not [tag for tag in tags if tag.startswith(("images/", "predictions/"))]
    assert "confusion_matrix/val" in tags


def test_two_runs_of_one_seed_write_events_of_equal_sizes(config_file, tmp_path):
    sizes = []
    for name in ("one", "two"):
        made = prepare(load_config(config_file), print)
        (tmp_path / name).mkdir()
        events = Events(tmp_path / name)
        logits, labels = predict(made.model, made.val_loader.epoch())
        show_epoch(Board(events, made, pytest.fail), 1, 10, answers_of(made.config, logits, labels))
        events.close()
        (file,) = (tmp_path / name).glob("events*")
        sizes.append(file.stat().st_size)
    assert sizes[0] == sizes[1]


def test_what_fails_is_said_once_and_nothing_else_is_lost(job, show, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no way\nto draw it")

    monkeypatch.setattr(panels, "graph", fail)
    monkeypatch.setattr(board, "draw_confusion", fail)
    said: list[str] = []
    shown = show(job(), epochs=3, say=said.append)
    assert said == [
        "note    graph cannot be shown in TensorBoard: no way",
        "note    confusion_matrix cannot be shown in TensorBoard: no way",
    ]
    assert {"predictions/val", "kernels/first_layer"} <= tags_of(shown)


def test_a_full_disk_is_no_picture_that_cannot_be_drawn(job, show, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(projector, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        show(job())


def test_showing_changes_neither_weights_nor_statistics_nor_generators(job, tmp_path):
    made = job()
    made.model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)),
    ).train()
    made.model[1].eval()  # as frozen ones are
    images, labels = next(iter(made.val_loader.epoch()))
    made.loss_fn(made.model(images), labels).backward()
    (tmp_path / "environment.json").write_text("{}")
    events, part = Events(tmp_path), made.data.subsets["test"]
    chances, test_labels = torch.zeros(len(part), 2), part.labels
    values = dict(made.model.state_dict())
    values |= {f"gradient {name}": p.grad for name, p in made.model.named_parameters()}
    before = {name: value.clone() for name, value in values.items()}
    modes = [layer.training for layer in made.model.modules()]
    state = torch.get_rng_state()
    shown = Board(events, made, pytest.fail)
    show_start(shown, tmp_path, 0)
    show_epoch(shown, 1, 10, answers_of(made.config, torch.zeros(len(labels), 2), labels))
    show_end(shown, tmp_path, part, answers_of(made.config, chances, test_labels), 10)
    events.close()
    assert modes == [layer.training for layer in made.model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in values.items())


def test_the_graph_is_of_the_models_layers_and_warns_of_nothing(job):
    made = job()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = panels.graph(made.model, made.input_shape, made.device)
    nodes = [node.name for node in GraphDef.FromString(content).node]
    for layer in ("Conv2d[0]", "MaxPool2d[4]", "Linear[4]"):
        assert any(layer in name for name in nodes)


def test_a_transformer_has_a_graph_too():
    import torchvision

    vit = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 16, num_classes=2)
    assert GraphDef.FromString(panels.graph(vit, (3, 32, 32), torch.device("cpu"))).node


@pytest.mark.parametrize("classes", [2, 7, 30])
def test_pr_curves_are_those_of_torchs_own_function(classes):
    generator = torch.Generator().manual_seed(classes)
    chances = torch.randn(200, classes, generator=generator).mul(3).softmax(1)
    chances[:20] = torch.eye(classes)[torch.arange(20) % classes]  # certain ones: 0 and 1
    labels = torch.randint(0, classes - 1, (200,), generator=generator)  # the last has no image
    names = [f"class {k}" for k in range(classes)]
    made = list(panels.pr_curves("pr", chances, labels, names))
    assert len(made) == min(classes, 20)
    for k, curve in enumerate(made):
        (value,) = curve.value
        expected = compute_curve((labels == k).numpy(), chances[:, k].numpy(), num_thresholds=127)
        assert value.tag == f"pr/class {k}"
        assert torch.allclose(
            torch.tensor(tensor_util.make_ndarray(value.tensor)),
            torch.tensor(expected, dtype=torch.float32),
        )


@given(
    st.lists(
        st.floats(width=32, allow_nan=True, allow_infinity=True, min_value=None, max_value=None),
        max_size=60,
    )
)
def test_a_histogram_counts_every_finite_number_where_it_lies(values):
    values = [value for value in values if not 1e15 < abs(value) < float("inf")]
    finite = [value for value in values if abs(value) < float("inf")]
    made: Any = panels.histogram("weights/w", torch.tensor(values))
    if not finite:
        assert made is None
        return
    histogram = made.value[0].histo
    assert (histogram.min, histogram.max, histogram.num) == (min(finite), max(finite), len(finite))
    assert sum(histogram.bucket) == len(finite)
    assert histogram.bucket_limit[-1] == pytest.approx(max(finite))
    assert list(histogram.bucket_limit) == sorted(histogram.bucket_limit)
    assert histogram.sum == pytest.approx(sum(finite), rel=1e-3, abs=1e-3 * max(map(abs, finite)))


def test_a_histogram_of_a_large_tensor_looks_at_even_strides():
    large = torch.arange(1_000_000.0).reshape(1000, 1000)
    made: Any = panels.histogram("w", large)
    histogram = made.value[0].histo
    assert histogram.num == 31_250 and histogram.max == 999_968
    assert max(histogram.bucket) - min(histogram.bucket) <= 1


def test_hyperparameters_are_flat_and_readable(config_file):
    values = panels.hyperparameters(load_config(config_file, ["loader.drop_last=true"]))
    assert values["optimizer.name"] == "SGD" and isinstance(values["optimizer.lr"], float)
    assert values["loader.drop_last"] == "true" and "early_stop" not in values
    assert "optimizer.lr" in sorted(values)[:7] and "loader.cache" not in values
    assert str(values["transforms.eval"]).startswith("Resize(size=[32, 32])")
    assert not [key for key in values if key.split(".")[0] in ("log", "checkpoint", "name")]


def test_hyperparameters_and_metrics_are_in_the_runs_own_file(job, show):
    contents = {
        tag: HParamsPluginData.FromString(read_back.SummaryMetadata(tag).plugin_data.content)
        for read_back in [show(job())]
        for tag in read_back.PluginTagToContent("hparams")
    }
    experiment = contents["_hparams_/experiment"].experiment
    assert {info.name.tag for info in experiment.metric_infos} >= {"val/loss", "test/accuracy"}
    _sort_and_reduce_to_hparams_limit(experiment, 5)  # TensorBoard's order of those it shows
    first = [info.name for info in experiment.hparam_infos]
    assert first[0] == "optimizer.lr" and {"loader.batch_size", "model.name"} <= set(first)
    deciding = [info.name.tag for info in experiment.metric_infos][:2]
    assert deciding == ["val/accuracy", "test/accuracy"]
    started = contents["_hparams_/session_start_info"].session_start_info
    assert started.hparams["optimizer.name"].string_value == "SGD"
    assert "_hparams_/session_end_info" in contents


def test_training_and_validation_share_a_chart(job, show):
    content = show(job()).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    charts = {
        chart.title: list(chart.multiline.tag)
        for category in Layout.FromString(content).category
        for chart in category.chart
    }
    tags = ["train/loss_epoch", "val/loss", "train/accuracy_epoch", "val/accuracy", "lr/group0"]
    matched = {
        title: [tag for tag in tags if any(re.match(pattern, tag) for pattern in patterns)]
        for title, patterns in charts.items()
    }
    assert matched["loss"] == tags[:2] and matched["accuracy"] == tags[2:4]
    assert matched["learning rate"] == tags[4:]


def test_the_environments_table_holds_no_markup_of_others(job, show):
    texts = show(job()).Tensors("environment/text_summary")[0].tensor_proto.string_val
    assert b"&lt;b&gt;" in texts[0] and b"<b>" not in texts[0] and b"a&#124;b" in texts[0]


def test_the_projector_finds_vectors_names_and_pictures_of_the_test_images(job, show, tmp_path):
    made = job()
    show(made)
    part = made.data.subsets["test"]
    config = ProjectorConfig()
    text_format = pytest.importorskip("google.protobuf.text_format")
    text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), config)
    (shown,) = config.embeddings
    vectors = torch.frombuffer(
        bytearray((tmp_path / shown.tensor_path).read_bytes()), dtype=torch.float32
    ).view(*shown.tensor_shape)
    expected = penultimate(made.model, part.batch(torch.arange(len(part)))[0])
    assert torch.allclose(vectors, expected, atol=1e-5)
    head, *lines = (tmp_path / shown.metadata_path).read_text().splitlines()
    assert head.split("\t") == ["class", "predicted", "probability", "file"]
    ids = [made.data.dataset.ids[index] for index in part.indices.tolist()]
    assert [line.split("\t")[3] for line in lines] == ids
    width, height = shown.sprite.single_image_dim
    with Image.open(tmp_path / shown.sprite.image_path) as sprite:
        assert sprite.width == sprite.height * width / height
        assert (sprite.width // width) * (sprite.height // height) >= len(part)


def test_many_test_images_are_thinned_evenly(job, show, tmp_path, monkeypatch):
    monkeypatch.setattr(projector, "POINTS", 3)
    show(job())
    lines = (tmp_path / "projector" / "metadata.tsv").read_text().splitlines()
    assert len(lines) == 4 and {line.split("\t")[0] for line in lines[1:]} == {"1", "100"}


def test_names_cannot_break_a_line_of_the_projectors_table():
    assert visible("a\tb\nc\x1b[0m\udc80 一") == r"a\tb\nc\x1b[0m\udc80 一"


def test_pictures_of_inputs_have_their_own_colours_again(job):
    made = job()
    part = made.data.subsets["val"]
    inputs, _ = part.sample(torch.arange(3))
    assert inputs.min() < -0.1
    seen = as_pictures(part.pipeline, inputs)
    assert torch.equal(seen, part.images.gather(torch.arange(3)))


def points(run) -> list[tuple[str, int]]:
    """Every (tag, step) of the run's only event file, in the order in which they were written."""
    (file,) = run.glob("events.out.tfevents.*")
    return [
        (value.tag, event.step)
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]


def test_after_a_crash_and_a_resume_each_tag_has_each_step_once(train, finished):
    run = finished("train.epochs=4")
    uninterrupted = points(run)
    assert len(set(uninterrupted)) == len(uninterrupted)
    (file,) = run.glob("events*")
    content = file.read_bytes()
    newest = max((run / "checkpoints").iterdir())
    shutil.rmtree(newest)  # the run goes on after an older one, with the newer events in the file
    train(resume=run, file=run / "config.yaml")
    assert points(run) == uninterrupted
    again = file.read_bytes()  # the same, at other times
    assert len(again) == len(content) and again != content


def counted(run) -> list[tuple[str, int]]:
    """What ``points`` gives, sorted, without the clocks' scalars of epochs in pieces."""
    return sorted(point for point in points(run) if not point[0].startswith("perf/"))


@pytest.mark.parametrize("damage", ["gone", "cut", "overwritten", "doubled"])
def test_an_event_file_that_is_lost_or_damaged_begins_anew_with_all_its_curves(
    train, finished, damage, capsys
):
    run = finished()
    (file,) = run.glob("events*")
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:5000])
    elif damage == "overwritten":
        file.write_bytes(content[:5000] + bytes(100) + content[5100:])
    else:
        (run / "events.out.tfevents.9999999999.x.1").write_bytes(content)
    capsys.readouterr()
    train("train.epochs=3", resume=run, file=run / "config.yaml")
    told = capsys.readouterr().out
    assert ("TensorBoard no longer reads it" in told) == (damage != "gone")
    found = counted(run)
    assert len(set(found)) == len(found)
    straight = counted(finished("train.epochs=3"))
    kinds = ("train/", "val/", "lr/", "test/", "images/", "config/", "_hparams_", "custom_scalars")
    for kind in kinds:  # pictures of past epochs cannot be drawn again
        expected = [point for point in straight if point[0].startswith(kind)]
        assert expected and [point for point in found if point[0].startswith(kind)] == expected


def test_what_the_file_tells_already_is_not_made_again_on_resume(train, finished, monkeypatch):
    run = finished()
    drawn: list[str] = []
    monkeypatch.setattr(panels, "graph", lambda *_: drawn.append("graph"))
    monkeypatch.setattr(board, "_show_inputs", lambda *_: drawn.append("inputs"))
    train("train.epochs=3", resume=run, file=run / "config.yaml")
    assert not drawn


def test_what_log_show_adds_on_resume_is_shown_from_the_start_on(train, finished):
    run = finished("log.show=[scalars]")
    more = "log.show=[scalars,text,hparams,inputs,graph,kernels]"
    train("train.epochs=3", more, resume=run, file=run / "config.yaml")
    tags = {tag for tag, _ in points(run)}
    assert {"config/text_summary", "images/raw", "_hparams_/experiment"} <= tags
    assert "kernels/first_layer" not in {tag for tag, step in points(run) if step == 0}
    train("train.epochs=4", more, resume=run, file=run / "config.yaml")
    found = points(run)
    assert len(set(found)) == len(found)


def test_right_predictions_are_framed_green_and_wrong_ones_red(job, show, tmp_path, monkeypatch):
    drawn: list[tuple[Any, Any]] = []

    def sheet(pictures, captions, colours=None, **_):
        drawn.append((captions, colours))
        return Image.new("RGB", (9, 9))

    monkeypatch.setattr(board, "sheet", sheet)
    made = job()
    with torch.no_grad():
        made.model.classifier[-1].bias += torch.tensor([9.0, 0.0])  # all are taken for the first
    show(made)
    seen = set()
    for captions, colours in drawn:
        for (found, true), colour in zip(captions, colours, strict=True) if colours else []:
            is_right = true == f"true: {found.partition(' ')[0]}"
            assert colour == ("#2ca02c" if is_right else "#d62728")
            seen.add(is_right)
    assert seen == {True, False}


@pytest.mark.parametrize(
    "overrides",
    [
        ("model={name: MLP}",),
        ("model={name: torchvision/squeezenet1_1}", "log.images=3"),
        ("loss={name: BCEWithLogitsLoss}",),
        ("transforms.train=[{name: Resize, size: [32, 32]}, {name: MixUp}]",),
        ("transforms.eval=[{name: Resize, size: [40, 40]}, {name: FiveCrop, size: 32}]",),
        ("loader.cache=off",),
        ("train.channels_last=true", "model.freeze=[features.*]"),
    ],
    ids=lambda overrides: overrides[0][:60],
)
def test_other_models_losses_and_transforms_are_shown_too(overrides, job, show):
    shown = show(job(*overrides))
    assert {"predictions/test", "confusion_matrix/val", "images/augmented"} <= tags_of(shown)


def test_the_command_for_tensorboard_asks_for_all_pictures_where_it_would_drop_some(tmp_path):
    assert tensorboard_command(Path("my runs"), 10) == "tensorboard --logdir 'my runs'"
    command, _, option = tensorboard_command(Path("runs"), 11).rpartition(" --samples_per_plugin ")
    assert command == "tensorboard --logdir runs"
    events = Events(tmp_path)
    for step in range(11):
        events.add(step, summary=panels.picture("matrix", Image.new("L", (2, 2))))
    events.close()
    default, asked = DEFAULT_TENSOR_SIZE_GUIDANCE, _parse_samples_per_plugin(option)
    for guidance, kept in ((default, 10), (default | asked, 11)):
        found = PluginEventAccumulator(str(tmp_path), tensor_size_guidance=guidance)
        assert len(found.Reload().Tensors("matrix")) == kept
