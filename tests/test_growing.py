"""Runs that begin with another run's weights: other classes, other sizes, and what is told."""

import csv
import hashlib
import json
import os
import shutil
import warnings

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from models.external import timm_model, torchvision_model
from models.lenet import LeNet
from models.weights import Weights, load_weights, read_weights
from tests.test_training import assert_same_run
from trainer.build.model import build_model, first_weights
from trainer.build.prepare import prepare
from trainer.build.trained import load_trained
from trainer.comparing.grown import about_grown, grown, note_on_seen
from trainer.config import load_config
from trainer.process.errors import ConfigError
from trainer.run.resume import find_resumable
from trainer.train import main

FAMILIES = ["LeNet", "torchvision/squeezenet1_1", "timm/test_resnet"]
SHAPE = (3, 32, 32)


def grey_lenet(count):
    return LeNet(count, 1)


def last(model):
    return model.get_parameter("classifier.4.weight")


def json_of(path):
    return json.loads(path.read_text())


@pytest.fixture
def more_notes(notes, tmp_path):
    """The notes, by links, and 25 blue ones of 5 yuan; the folder."""
    root = tmp_path / "more"
    for name in ("1", "100"):
        (root / name).mkdir(parents=True)
        for file in (notes / name).iterdir():
            (root / name / file.name).symlink_to(file)
    (root / "5").mkdir()
    for file in sorted((notes / "1").iterdir()):
        red, green, blue = Image.open(file).split()
        Image.merge("RGB", (red, blue, green)).save(root / "5" / f"{file.stem}.png")
    return root


def of_weights(config_file, *overrides):
    """(configuration, weights) of the small configuration with overrides."""
    config = load_config(config_file, overrides)
    return config, first_weights(config)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# --- head --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("classes", [("100", "1"), ("5", "100", "2", "1"), ("100", "7")])
def test_each_familys_answers_follow_the_names_of_classes_in_any_order_and_number(
    finished, config_file, model, classes
):
    if model.startswith("timm"):
        pytest.importorskip("timm")
    run = finished("train.epochs=1", f"model.name={model}")
    config, weights = of_weights(config_file, f"model.name={model}", f"model.weights={run}")
    said: list[str] = []
    new = build_model(config, classes, SHAPE, said.append, weights=weights).eval()
    old = load_trained(run)
    images = torch.randn(4, *SHAPE)
    with torch.inference_mode():
        answers, before = new(images), old.model(images)
    kept = [name for name in classes if name in old.classes]
    torch.testing.assert_close(
        answers[:, [classes.index(name) for name in kept]],
        before[:, [old.classes.index(name) for name in kept]],
    )
    if len(kept) == 2 == len(classes):
        assert "the head is for the same classes, its rows brought into the order" in said[0]
    else:
        assert f"the head has {len(kept)} of its 2 rows taken by class name" in said[0]
        assert f"{len(classes) - len(kept)} new rows (" in said[0]


@pytest.mark.parametrize("model", FAMILIES)
def test_rows_of_unknown_classes_are_told_in_the_result_and_the_report(
    finished, train, tmp_path, model
):
    run = finished("train.epochs=1", f"model.name={model}")
    shutil.copy(run / "model.pt", tmp_path / "alone.pt")
    new = train(f"model.name={model}", "train.epochs=1", f"model.weights={tmp_path}/alone.pt")
    told = "the head is taken row by row: which 2 classes it was for is not known"
    assert told in json_of(new / "result.json")["weights"]["taken"]
    assert all(told in (new / "report" / name).read_text() for name in ("report.md", "report.html"))
    assert "run" not in json_of(new / "result.json")["weights"]


def test_a_model_whose_rows_cannot_be_found_takes_weights_of_the_same_classes_only():
    def refuses(count):
        if count > 2:
            raise ValueError("two classes, or none")
        return LeNet(count, 1)

    trained, model = LeNet(2, 1), LeNet(2, 1)
    with pytest.raises(ValueError, match="which of its tensors are for which class cannot be told"):
        load_weights(model, Weights(trained.state_dict(), ("b", "a")), "ab", refuses)
    load_weights(model, Weights(trained.state_dict(), ("a", "b")), "ab", refuses)
    assert torch.equal(last(model), last(trained))
    said = load_weights(model, Weights(trained.state_dict()), "ab", refuses)
    assert "which of its tensors are for which class cannot be told" in said


def test_names_that_differ_in_how_they_are_composed_only_are_matched_where_none_is_lost():
    composed, apart = "\u00e9", "e\u0301"
    trained, model = LeNet(2, 1), LeNet(2, 1)
    load_weights(model, Weights(trained.state_dict(), (apart, "b")), ("b", composed), grey_lenet)
    assert torch.equal(last(model), last(trained).flip(0))
    both = Weights(trained.state_dict(), (composed, apart))
    load_weights(model, both, (apart, composed), grey_lenet)
    assert torch.equal(last(model), last(trained).flip(0))


# --- sources -----------------------------------------------------------------------------------


def test_a_name_stands_for_its_newest_run_and_the_run_keeps_which_that_was(
    finished, train, config_file
):
    finished()
    newest = finished("train.epochs=1")
    link = newest.parent.parent.parent / "link"
    link.symlink_to(newest)
    for named, kept in ((newest.parent, newest), (newest, newest), (link, link)):
        job = prepare(load_config(config_file, ["name=new", f"model.weights={named}"]), print)
        assert job.config.model.trainer_arguments["weights"] == job.origin["run"] == str(kept)
        job.train_loader.close()
    run = train("name=new", "train.epochs=1", f"model.weights={newest.parent}")
    finished()  # a newer one
    assert load_config(run / "config.yaml").model.trainer_arguments["weights"] == str(newest)
    again = [f"model.weights={newest.parent}", "name=new", "train.epochs=3"]
    config, _ = find_resumable(str(run), str(config_file), again, run.parent.parent)
    assert config.model.trainer_arguments["weights"] == str(newest)


def test_what_comes_from_which_run_is_in_the_result(finished, train, more_notes):
    run = finished("train.epochs=1")
    for named in (run, run / "model.pt"):
        new = train("train.epochs=1", f"dataset.root={more_notes}", f"model.weights={named}")
        origin = json_of(new / "result.json")["weights"]
        digest = hashlib.sha256((run / "model.pt").read_bytes()).hexdigest()
        classes = {"known": ["1", "100"], "new": ["5"], "gone": []}
        taken = origin.pop("taken")
        assert taken.startswith(f"{named}, epoch 1: 10 of 10 tensors taken; the head has 2 of its")
        assert origin == {"run": str(run), "sha256": digest, "epoch": 1, "classes": classes}
        assert f"- began with: {run}, epoch 1" in (new / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("no weights", "has no weights yet"),
        ("other weights", "model.pt is not the file that model.json describes"),
        ("cut", "model.pt is not the file that model.json describes"),
        ("no classes", "model.json is damaged: it lacks classes"),
        ("no run", "holds no run. Expected a folder such as runs/NAME/"),
    ],
)
def test_a_run_that_cannot_give_weights_is_refused_with_what_to_type(
    finished, start, monkeypatch, capsys, damage, told
):
    monkeypatch.setattr("trainer.run.best.RETRY_AFTER", 0.0)
    run = finished("train.epochs=1")
    if damage == "no weights":
        (run / "model.pt").unlink(), (run / "model.json").unlink()
        (run / "result.json").write_text('{"status": "stopped"}')
    elif damage == "other weights":
        torch.save(LeNet(2, 3).state_dict(), run / "model.pt")
    elif damage == "cut":
        (run / "model.pt").write_bytes((run / "model.pt").read_bytes()[:1000])
    elif damage == "no classes":
        (run / "model.json").write_text(json.dumps(json_of(run / "model.json") | {"classes": 3}))
    else:
        shutil.rmtree(run)
        run.mkdir()
    runs = len(list(run.parent.iterdir()))
    assert start("name=new", f"model.weights={run}") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "model.weights: " in said and told in said and "Traceback" not in said
    if damage != "no run":
        assert f"python -m trainer.train --resume {run}" in said
    assert len(list(run.parent.iterdir())) == runs and not (run.parent.parent / "new").exists()


def test_weights_brought_back_by_resuming_are_taken(finished, train, monkeypatch):
    run = finished("train.epochs=1")
    whole = (run / "model.pt").read_bytes()
    (run / "model.pt").write_bytes(whole[:1000])
    train(resume=run, file=run / "config.yaml")  # as the error says
    assert (run / "model.pt").read_bytes() == whole
    train("name=new", "train.epochs=1", f"model.weights={run}")


def test_another_models_weights_are_refused_with_the_model_that_they_are_of(
    finished, start, capsys
):
    run = finished("train.epochs=1", "model={name: CompactResNet}")
    assert start("name=new", f"model.weights={run}") == 2
    said = capsys.readouterr().err
    assert "they do not fit LeNet: " in said
    assert 'model: {"name": "CompactResNet"}, and images of [32, 32]' in said


def test_an_exported_folder_of_safetensors_gives_its_weights_by_class_name(
    finished, config_file, tmp_path
):
    pytest.importorskip("safetensors")
    from yaml_trainer.export.exporting import export_run

    run = finished()
    export_run(run, ["safetensors"], tmp_path / "export")
    folder = tmp_path / "export" / "small-safetensors"
    config, weights = of_weights(config_file, f"model.weights={folder}")
    assert isinstance(weights, Weights) and weights.classes == ("1", "100")
    (folder / "config.json").unlink()  # the file itself names them too
    assert read_weights(str(folder)).classes == ("1", "100")
    new = build_model(config, ("100", "1"), SHAPE, weights=weights).eval()
    images = torch.randn(3, *SHAPE)
    torch.testing.assert_close(new(images).flip(1), load_trained(run).model(images))


def test_a_folder_that_timm_wrote_gives_its_weights_by_class_name(tmp_path):
    pytest.importorskip("timm")
    from timm.models import save_for_hf

    trained = timm_model("test_resnet", 2, 3, None, {})
    save_for_hf(trained, tmp_path, {"label_names": ["b", "a"]}, safe_serialization=True)
    weights = read_weights(str(tmp_path))
    assert weights.classes == ("b", "a")
    new = timm_model("test_resnet", 2, 3, weights, {}, "ab")
    images = torch.randn(3, *SHAPE)
    torch.testing.assert_close(new.eval()(images).flip(1), trained.eval()(images))


# --- positions ---------------------------------------------------------------------------------


def test_torchvisions_position_embedding_is_resampled_as_by_hand():
    def of_size(side):
        return lambda count: torchvision_model("vit_b_32", count, 3, None, {"image_size": side})

    old, new = of_size(64)(2), of_size(96)(2)
    said = load_weights(new, Weights(old.state_dict(), ("a", "b")), "ab", of_size(96))
    assert "; position embedding resampled from 2 x 2 to 3 x 3" in said
    given = old.encoder.pos_embedding.detach()
    grid = given[:, 1:].reshape(1, 2, 2, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(3, 3), mode="bicubic", align_corners=True)
    expected = torch.cat([given[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(new.encoder.pos_embedding.detach(), expected)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("sizes", "grids"),
    [
        (((64, 64), (96, 96)), ((4, 4), (6, 6))),
        (((64, 64), (96, 128)), ((4, 4), (6, 8))),
        (((64, 144), (96, 96)), ((4, 9), (6, 6))),  # as many patches
        (((32, 64), (64, 64)), ((2, 4), (4, 4))),
    ],
)
def test_timms_position_embedding_is_resampled_as_by_hand_from_the_grid_that_it_was_for(
    sizes, grids, known
):
    pytest.importorskip("timm")

    def of_size(size):
        return lambda count: timm_model("test_vit", count, 3, None, {"img_size": list(size)})

    old, new = of_size(sizes[0])(2), of_size(sizes[1])(2)
    card = {"input_size": list(sizes[0])} if known else {}
    weights = Weights(old.state_dict(), ("a", "b"), card=card)
    given = old.pos_embed.detach()
    if not known and sizes[0] == (32, 64):
        with pytest.raises(ValueError, match=r"pos_embed is .*images as large"):
            load_weights(new, weights, "ab", of_size(sizes[1]))
        return
    said = load_weights(new, weights, "ab", of_size(sizes[1]))
    if not known and sizes[0] == (64, 144):  # nothing tells that they differ
        assert torch.equal(new.pos_embed.detach(), given) and "resampled" not in said
        return
    names = [f"{height} x {width}" for height, width in grids]
    assert f"; position embedding resampled from {names[0]} to {names[1]}" in said
    grid = given[:, 1:].reshape(1, *grids[0], -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=grids[1], mode="bicubic", antialias=True)
    expected = torch.cat([given[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(new.pos_embed.detach(), expected)


def test_relative_positions_are_resampled_as_timm_does_for_pretrained_weights(tmp_path):
    timm = pytest.importorskip("timm")

    def of_size(side):
        return lambda count: timm_model("test_coatnet", count, 3, None, {"img_size": side})

    old, new = of_size(96)(2), of_size(160)(2)
    said = load_weights(new, Weights(old.state_dict(), ("b", "a")), "ab", of_size(160))
    torch.save(old.state_dict(), tmp_path / "old.pt")
    with warnings.catch_warnings(action="ignore"):  # torch warns of how timm indexes
        theirs = timm.create_model(
            "test_coatnet", pretrained=True, num_classes=2, img_size=160,
            pretrained_cfg_overlay={"file": str(tmp_path / "old.pt"), "num_classes": 2},
        )  # fmt: skip
    for name, tensor in theirs.state_dict().items():
        mine = new.state_dict()[name]
        assert torch.equal(mine, tensor.flip(0) if name.startswith("head.fc") else tensor), name
    assert "resampled by timm: " in said and "relative_position_bias_table, ...)" in said


# --- old and new classes -----------------------------------------------------------------------


@pytest.fixture
def grown_run(finished, train, more_notes):
    """(old run on two classes, new run on three that begins with its weights)"""
    some_wrong = ("split.ratios=[2, 1, 2]", "optimizer.lr=0.0005", "train.epochs=1")
    old = finished(*some_wrong)
    return old, train(*some_wrong, f"dataset.root={more_notes}", f"model.weights={old}")


def test_old_images_keep_their_part_when_a_class_is_added(grown_run):
    parts = [
        {digest: part for part, images in json_of(run / "split.json").items()
         if part in ("train", "val", "test") for digest in images.values()}
        for run in grown_run
    ]  # fmt: skip
    assert len(parts[0]) == 50 and len(parts[1]) == 75
    assert all(parts[1][digest] == part for digest, part in parts[0].items())


def test_accuracy_of_old_classes_is_that_of_both_tables_on_the_same_images(grown_run):
    old, new = grown_run
    before = {row["sha256"]: row for row in rows_of(old / "predictions.csv")}
    after = [row for row in rows_of(new / "predictions.csv") if row["part"] == "test"]
    shared = [(before[row["sha256"]], row) for row in after if row["true"] != "5"]
    assert shared and all(was["part"] == "test" for was, _ in shared)
    right = [[row["true"] == row["predicted"] for row in pair] for pair in shared]
    was_right, is_right = [first for first, _ in right], [second for _, second in right]
    assert 0 < sum(was_right) < len(right) and was_right != is_right
    of_new = [row["predicted"] == "5" for row in after if row["true"] == "5"]
    found = json_of(new / "result.json")["grown"]
    assert found["old"] == {
        "images": len(shared),
        "before": sum(was_right) / len(shared),
        "after": sum(is_right) / len(shared),
        "won": right.count([False, True]),
        "lost": right.count([True, False]),
        "untested": 0,
        "relabelled": 0,
    }
    assert found["new"] == {"images": len(of_new), "after": sum(of_new) / len(of_new)}
    lines = about_grown(found, json_of(new / "result.json")["weights"])
    assert lines[0].startswith(f"old classes: before {found['old']['before']:.4f}, after ")
    assert lines[1] == f"new classes (5): {found['new']['after']:.4f} on {len(of_new)} images"
    for name in ("report.md", "report.html"):
        text = (new / "report" / name).read_text()
        assert "Old and new classes" in text and all(line in text for line in lines)


def test_folders_that_change_their_names_change_no_answer(finished, train, notes, tmp_path):
    old = finished("train.epochs=1")
    for name, other in (("1", "100"), ("100", "1")):
        (tmp_path / "swapped").mkdir(exist_ok=True)
        (tmp_path / "swapped" / name).symlink_to(notes / other)
    still = ("train.epochs=1", "optimizer.lr=1e-30", f"model.weights={old}")
    new = train(f"dataset.root={tmp_path}/swapped", *still)
    before, after = (
        {row["sha256"]: row for row in rows_of(run / "predictions.csv")} for run in (old, new)
    )
    assert before.keys() == after.keys()
    for key, row in before.items():
        answers = ("predicted", "p:1", "p:100")
        assert [row[name] for name in answers] == [after[key][name] for name in answers]
        assert row["true"] != after[key]["true"]
    found = json_of(new / "result.json")["grown"]["old"]
    assert found["relabelled"] == found["images"] > 0


def test_each_case_of_an_image_is_counted(tmp_path):
    head = "id,sha256,part,true,predicted,probability,loss,p:a,p:b"
    rows = ["i0,0,test,a,a,,,1,0", "i1,1,test,a,b,,,0,1", "i2,2,test,a;b,a;b,,,1,1",
            "i3,3,test,a,a,,,1,0", "i4,4,test,b,a,,,1,0", "i9,9,test,b,b,,,0,1"]  # fmt: skip
    (tmp_path / "before.csv").write_text("\n".join([head, *rows]) + "\n")
    rows = ["i0,0,test,a,c,,1,0,1", "i1,1,test,a,a,,1,1,0", "i2,2,test,a;b,a;b,,1,1,0",
            "i3,3,test,b,b,,1,0,0", "i4,4,test,b,b,,1,0,0", "i5,5,test,b,b,,1,0,0",
            "i6,6,test,a;c,c,,1,0,1", "i7,7,test,c,c,,1,0,1", "i8,8,val,c,c,,1,0,1"]  # fmt: skip
    (tmp_path / "predictions.csv").write_text("\n".join([f"{head[:-4]},p:c", *rows]) + "\n")
    found = grown(tmp_path, {"known": ["b"], "new": ["c"], "gone": []}, several=True)
    # Of the images 0 to 4: before 0 and 2 are right, for 3 is a "b" now; after, all but 0.
    assert found["old"] == {
        "images": 5, "before": 0.4, "after": 0.8, "won": 3, "lost": 1, "untested": 1,
        "relabelled": 1,
    }  # fmt: skip
    assert found["new"] == {"images": 2, "after": 0.5}
    assert grown(tmp_path, {"new": ["c"]}, several=False)["new"]["images"] == 1  # a;c is a name


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("no table", "predictions.csv is missing"),
        ("not ended", "has not ended, so its predictions.csv is not that of these weights"),
        ("other images", "no image of this run's test was in the test of"),
        ("cut table", "cannot be read"),
    ],
)
def test_where_old_classes_cannot_be_compared_the_reason_is_told(
    finished, train, more_notes, damage, told
):
    old = finished("train.epochs=1")
    table = old / "predictions.csv"
    if damage == "no table":
        table.unlink()
    elif damage == "not ended":
        result = json_of(old / "result.json") | {"status": "stopped"}
        (old / "result.json").write_text(json.dumps(result))
    elif damage == "other images":
        table.write_text(table.read_text().replace(",test,", ",val,"))
    else:
        table.write_text(table.read_text()[:-30])
    new = train(f"dataset.root={more_notes}", "train.epochs=1", f"model.weights={old}")
    assert told in json_of(new / "result.json")["grown"]["reason"]
    text = (new / "report" / "report.md").read_text()
    assert "- old classes: not compared: " in text and told in text
    assert "- new classes (5)" in text


def test_test_images_that_the_old_run_was_trained_on_are_told(finished, train, config_file):
    old = finished("train.epochs=1")
    split = json_of(old / "split.json")
    new = train("train.epochs=1", "split.seed=3", f"model.weights={old}")
    test = {*json_of(new / "split.json")["test"].values()}
    count = len(test & {*split["train"].values()})
    assert count
    notes = json_of(new / "result.json")["notes"]
    told = f"model.weights: {count} test images of {len(test)} were training images of {old}"
    assert any(note.startswith(told) for note in notes)


def test_a_run_goes_on_to_the_bit_where_the_old_run_is_gone(finished, train, more_notes):
    old = finished()
    rest = [f"dataset.root={more_notes}", f"model.weights={old}"]
    straight = train(*rest)
    run = train(*rest, "train.epochs=1")
    os.rename(old, old.with_name("away"))
    assert main(["--resume", str(run), "train.epochs=2"]) == 0
    assert_same_run(straight, run)
    for key in ("weights", "grown", "test"):
        assert json_of(run / "result.json")[key] == json_of(straight / "result.json")[key]
    told = f"- model.weights: {old}, epoch 2: 10 of 10 tensors taken"
    assert told in (run / "report" / "report.md").read_text()
    (run / "before.csv").unlink()
    assert main(["--resume", str(run), "train.epochs=3"]) == 0
    assert json_of(run / "result.json")["grown"] == {"reason": f"before.csv was removed from {run}"}


def test_a_run_without_old_weights_says_nothing_of_old_classes(finished):
    run = finished()
    assert not {"grown", "weights"} & json_of(run / "result.json").keys()
    assert "Old and new classes" not in (run / "report" / "report.html").read_text()
    assert not (run / "before.csv").exists()
    assert about_grown({}, {}) == []
    none = {"images": 0, "before": None, "after": None, "won": 0, "lost": 0}
    origin = {"run": "x", "classes": {"known": [], "new": [], "gone": []}}
    found = {"old": none | {"untested": 0, "relabelled": 0}}
    assert about_grown(found, origin) == ["old classes: no image that both runs tested"]


def test_weights_that_are_not_there_are_a_fault_of_their_line(config_file):
    with pytest.raises(ConfigError, match="model.weights: there is no file 'absent.pt'"):
        of_weights(config_file, "model.weights=absent.pt")
    assert first_weights(load_config(config_file)) is None


def test_images_of_a_fold_that_trained_the_weights_to_begin_with_are_counted(train):
    old = train("train.epochs=1")
    folds = ("split.folds=3", "train.epochs=1")
    runs = [train(*folds, f"split.fold={fold}", f"model.weights={old}") for fold in (0, 1)]
    seen = set(json_of(old / "split.json")["train"])
    for chosen in (runs[:1], runs, runs * 2):
        held = {name for run in chosen for name in json_of(run / "split.json")["test"]}
        told = note_on_seen(chosen, "test")
        assert told.startswith(f"{len(held & seen)} of {len(held)} images trained {old}, whose")
    assert not note_on_seen([old], "test")
    shutil.rmtree(old)
    told = note_on_seen(runs, "test")
    assert told.startswith("whether the images trained") and "is not known" in told
