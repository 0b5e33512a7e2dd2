"""The command that looks at a dataset: counts, mean and std, duplicates, broken files, pictures."""

import csv
import hashlib
import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from datasets.draw import draw
from datasets.duplicates import DETAIL, groups_of_pairs, near_duplicates, thumbnail
from datasets.fashion_mnist import FashionMNIST
from datasets.images import read_image
from trainer.config import load_config
from trainer.data import main
from trainer.input.data import load_data
from trainer.input.kept import Kept
from trainer.input.loader import train_loader
from trainer.insight import data_facts
from trainer.insight.data_facts import inspect_dataset
from trainer.insight.data_report import augmented
from trainer.insight.image_facts import moments
from trainer.insight.samples import as_pictures

SHARED = Path("../shared/data")
MIXED = """transforms.train=[
  {name: Resize, size: [32, 32]}, {name: RandomHorizontalFlip}, {name: CutMix},
  {name: Normalize, mean: [0.5, 0.4, 0.3], std: [0.25, 0.2, 0.3]}, {name: MixUp}]"""


@pytest.fixture
def own(tmp_path, notes):
    """A copy of the notes that a test may spoil."""
    return Path(shutil.copytree(notes, tmp_path / "own"))


@pytest.fixture
def command(config_file, tmp_path):
    """Call the command on the small configuration; its exit code."""

    def call(*more):
        return main(["--config", str(config_file), "--output", str(tmp_path / "out"), *more])

    return call


@pytest.fixture
def facts(command, tmp_path):
    """What the command finds, from data.json."""

    def call(*more, code=0):
        assert command(*more) == code
        return json.loads((tmp_path / "out" / "data.json").read_text())

    return call


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Twelve photographs of notes; drawn ones where there are no real ones."""
    root = SHARED / "rmb"
    if not root.is_dir():
        root = tmp_path_factory.mktemp("drawn") / "rmb"
        draw(root, per_class=6)
    paths = sorted(root.rglob("*.jpg"))
    return [Image.open(path).convert("RGB") for path in paths[:: max(1, len(paths) // 12)][:12]]


def test_the_counts_are_those_of_the_split_that_training_makes(facts, config_file):
    found = facts()["counts"]
    data = load_data(load_config(config_file), torch.device("cpu"))
    for name, part in data.subsets.items():
        labels = part.labels.tolist()
        expected = {"1": labels.count(0), "100": labels.count(1)}
        assert found[name] == expected


def test_mean_and_std_are_those_of_all_pixels_of_the_training_images(facts, config_file):
    pixels = facts()["pixels"]
    data = load_data(load_config(config_file), torch.device("cpu"))
    train = data.subsets["train"]
    assert isinstance(train.images, Kept)
    images = train.images.gather(torch.arange(len(train)))
    assert isinstance(images, torch.Tensor)
    stacked = images.numpy().astype(np.float64) / 255
    assert pixels["mean"] == pytest.approx(stacked.mean((0, 2, 3)), abs=1e-12)
    assert pixels["std"] == pytest.approx(stacked.std((0, 2, 3)), abs=1e-12)
    dataset = data.dataset
    raw = np.stack([dataset.image(int(i)).numpy() for i in data.subsets["train"].indices]) / 255
    assert pixels["raw"]["mean"] == pytest.approx(raw.mean((0, 2, 3)), abs=1e-12)
    assert pixels["config"] == {"mean": [0.5] * 3, "std": [0.25] * 3}


def test_where_sizes_differ_every_image_counts_alike():
    large = torch.full((1, 3, 40, 40), 255, dtype=torch.uint8)
    small = torch.zeros((1, 3, 10, 20), dtype=torch.uint8)
    mean, square = torch.cat([moments(large), moments(small)]).mean(dim=0)
    assert mean.tolist() == [0.5] * 3
    assert square.tolist() == [0.5] * 3


def test_pad_lowers_the_mean_and_the_summary_says_what_was_measured(fashion_root, tmp_path, capsys):
    told = [f"dataset={{name: FashionMNIST, root: {fashion_root}}}", "train.device=cpu"]
    told += ["--output", str(tmp_path / "out")]
    assert main(["--config", "configs/lenet_fashion_mnist.yaml", *told]) == 0
    pixels = json.loads((tmp_path / "out" / "data.json").read_text())["pixels"]
    assert pixels["mean"][0] == pytest.approx(pixels["raw"]["mean"][0] * (28 / 32) ** 2)
    assert pixels["after"] == ["Pad"]
    assert f"mean: [{pixels['mean'][0]:.4f}]" in capsys.readouterr().out


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_numbers_of_the_pictures_without_pads_edge_are_not_called_wrong(
    command, tmp_path, capsys, shift
):
    resize, pad = "{name: Resize, size: [28, 28]}", "{name: Pad, padding: 8}"

    def call(before, mean, std):
        normal = f"{{name: Normalize, mean: {mean}, std: {std}}}"
        steps = f"[{', '.join([*before, normal])}]"
        told = (f"transforms.train={steps}", f"transforms.eval={steps}", "--no-near")
        assert command(*told) == 0
        return json.loads((tmp_path / "out" / "data.json").read_text())["pixels"]

    bare = call([resize], [0.5], [0.5])  # the reference: the same pictures, without Pad
    assert bare["before_pad"] is None and "no edge" not in capsys.readouterr().out
    mean = [round(value + shift, 4) for value in bare["mean"]]
    found = call([resize, pad], mean, [round(value, 4) for value in bare["std"]])
    assert found["before_pad"] == {"after": ["Resize"], **{k: bare[k] for k in ("mean", "std")}}
    assert found["mean"][0] == pytest.approx(bare["mean"][0] * (28 / 44) ** 2, abs=1e-9)
    shown = ", ".join(f"{value:.4f}" for value in bare["mean"])
    out, page = capsys.readouterr().out, (tmp_path / "out" / "data.md").read_text()
    words = " ".join(out.split())  # lines are broken at the terminal's width
    assert f"no edge mean {shown}," in words and " after Resize, before Pad" in words
    assert "| before Pad |" in page
    assert ("are not those measured here" in page) == bool(shift)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not on this machine")
def test_the_known_numbers_of_fashion_mnist_come_out(tmp_path):
    told = [f"dataset.root={SHARED}", "--no-near", "--output", str(tmp_path)]
    assert main(["--config", "configs/mlp_fashion_mnist.yaml", *told]) == 0
    raw = json.loads((tmp_path / "data.json").read_text())["pixels"]["raw"]
    assert raw["mean"][0] == pytest.approx(0.2860, abs=2e-3)
    assert raw["std"][0] == pytest.approx(0.3530, abs=2e-3)


def test_equal_files_are_found_and_two_labels_for_one_are_a_warning(facts, own):
    shutil.copy(own / "1" / "000.jpg", own / "1" / "copy.jpg")
    shutil.copy(own / "1" / "001.jpg", own / "100" / "wrong.jpg")
    found = facts(f"dataset.root={own}")
    groups = [[one["id"] for one in group["samples"]] for group in found["exact_duplicates"]]
    assert sorted(groups) == [["1/000.jpg", "1/copy.jpg"], ["1/001.jpg", "100/wrong.jpg"]]
    assert [group["across_classes"] for group in found["exact_duplicates"]] == [True, False]
    assert any("different classes" in line for line in found["warnings"])


def test_equal_files_in_two_official_parts_are_a_leak(facts, own, tmp_path):
    root = tmp_path / "official"
    shutil.copytree(own, root / "train")
    shutil.copytree(own, root / "test", ignore=lambda _, names: [n for n in names if "2" in n])
    (root / "test" / "1" / "new.jpg").write_bytes((own / "1" / "002.jpg").read_bytes())
    found = facts(f"dataset.root={root}", "--no-near")
    assert all(group["across_parts"] for group in found["exact_duplicates"])
    assert any("trained on" in line for line in found["warnings"])


def encoded(picture, **options):
    """A picture after a file of another quality."""
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def cropped(picture, share):
    """A picture without a margin of half the share at each side."""
    x, y = round(picture.width * share / 2), round(picture.height * share / 2)
    return picture.crop((x, y, picture.width - x, picture.height - y))


def resized(picture, share):
    return picture.resize((round(picture.width * share), round(picture.height * share)))


CHANGES = {
    "JPEG of quality 60": lambda picture: encoded(picture, quality=60),
    "90 % of the size": lambda picture: resized(picture, 0.9),
    "10 % brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.1),
    "3 % cropped": lambda picture: cropped(picture, 0.03),
    "all of it": lambda picture: encoded(
        ImageEnhance.Brightness(resized(cropped(picture, 0.03), 0.9)).enhance(1.1), quality=60
    ),
}


def near(pictures):
    """The near duplicates among pictures, as pairs of numbers."""
    tensors = [torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in pictures]
    sides = torch.tensor([min(one.size) for one in pictures])
    small = torch.stack([thumbnail(one) for one in tensors])
    found = near_duplicates(
        small, sides, lambda rows: torch.stack([thumbnail(tensors[r], DETAIL) for r in rows])
    )
    return {(i, j) for i, j, _ in found}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_of_photographs_are_found_and_nothing_else(photographs, change):
    copies = [CHANGES[change](picture) for picture in photographs]
    n = len(photographs)
    assert near([*photographs, *copies]) == {(i, i + n) for i in range(n)}


@pytest.mark.parametrize("change", list(CHANGES)[:3])
def test_copies_of_small_pictures_are_found_too(photographs, change):
    small = [cropped(picture, 0.1).resize((32, 32)) for picture in photographs]
    n = len(small)
    found = near([*small, *(CHANGES[change](picture) for picture in small)])
    assert {(i, i + n) for i in range(n)} <= found


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not on this machine")
def test_among_millions_of_pairs_of_like_clothes_a_handful_is_called_similar():
    images = FashionMNIST(str(SHARED)).images[:3000]
    found = near_duplicates(thumbnail(images), torch.full((3000,), 28), lambda rows: images)
    assert len(found) < 30


def test_pictures_of_one_colour_are_told_and_are_nobodys_copies(facts, own):
    for number in range(3):
        Image.new("RGB", (48, 24), (90, 90 + number, 90)).save(own / "1" / f"flat{number}.png")
    found = facts(f"dataset.root={own}")
    assert found["one_colour"] == [f"1/flat{number}.png" for number in range(3)]
    assert found["near_duplicates"] == []


def test_similar_pictures_in_two_parts_come_first_and_are_drawn(facts, own, tmp_path):
    root = tmp_path / "official"
    shutil.copytree(own, root / "train")
    for name in ("1", "100"):
        (root / "test" / name).mkdir(parents=True)
        source = Image.open(own / name / "003.jpg")
        source.save(root / "test" / name / "leaked.png")
        Image.open(own / name / "004.jpg").save(root / "train" / name / "again.png")
    found = facts(f"dataset.root={root}", "split.ratios=[9, 1, 1]")["near_duplicates"]
    assert [pair["across_parts"] for pair in found][:2] == [True, True]
    names = {one["id"] for pair in found for one in pair["samples"]}
    assert {"test/1/leaked.png", "train/1/again.png", "test/100/leaked.png"} <= names
    with Image.open(tmp_path / "out" / "duplicates.png") as drawn:
        assert drawn.width > 600
    facts("--no-near")  # the next look finds none, and leaves no old picture
    assert not (tmp_path / "out" / "duplicates.png").exists()


def test_pairs_that_share_an_image_are_one_group_with_the_least_likeness():
    pairs = [(4, 5, 0.999), (0, 1, 0.998), (2, 3, 0.997), (1, 2, 0.995), (0, 3, 0.996)]
    assert groups_of_pairs(pairs) == [([4, 5], 0.999), ([0, 1, 2, 3], 0.995)]
    assert groups_of_pairs([]) == []


def test_many_copies_of_one_picture_are_one_group_and_one_row_of_pictures(facts, own, tmp_path):
    source = Image.open(own / "1" / "003.jpg")
    for number in range(8):
        source.save(own / "1" / f"other{number}.jpg", quality=88 + number)
    found = facts(f"dataset.root={own}")["near_duplicates"]
    expected = ["1/003.jpg", *(f"1/other{number}.jpg" for number in range(8))]
    assert [[one["id"] for one in group["samples"]] for group in found] == [expected]
    with Image.open(tmp_path / "out" / "duplicates.png") as drawn:
        assert 150 < drawn.height < 300  # a single row


def test_every_broken_file_is_listed_and_the_rest_is_reported_all_the_same(
    facts, own, config_file, capsys
):
    (own / "1" / "000.jpg").write_bytes(b"no image")
    (own / "100" / "001.jpg").write_bytes((own / "100" / "001.jpg").read_bytes()[:400])
    root = f"dataset.root={own}"
    found = facts(root, code=3)
    assert [Path(entry["path"]).name for entry in found["broken"]] == ["000.jpg", "001.jpg"]
    told = capsys.readouterr()
    assert "2 of 50 images cannot be read" in told.err
    total = {split: sum(counts.values()) for split, counts in found["counts"].items()}
    parts = ", ".join(f"{name} {total[name]}" for name in ("train", "val", "test"))
    assert sum(total.values()) + 2 == 50
    assert f"50 images of 2 classes ({parts}, unreadable 2)" in told.out
    skipping = load_config(config_file, [root, "dataset.on_broken=skip"])
    data = load_data(skipping, torch.device("cpu"))
    look = inspect_dataset(skipping)
    assert look.splits == {name: part.indices.tolist() for name, part in data.subsets.items()}
    assert look.facts["split"] == data.split_digest  # by which a report knows the same data
    assert facts(root, "dataset.on_broken=skip")["counts"] == found["counts"]


@pytest.mark.parametrize("cache", ["off", "store"])
def test_a_split_by_name_is_that_of_training_without_what_cannot_be_read(own, config_file, cache):
    options = [f"dataset.root={own}", "dataset.on_broken=skip", f"loader.cache={cache}"]
    config = load_config(config_file, [*options, "split.by=name"])
    splits = load_data(config, torch.device("cpu")).subsets
    broken = {int(part.indices[0]) for part in splits.values()}
    files = load_data(config, torch.device("cpu")).dataset.ids
    for index in broken:
        (own / files[index]).write_bytes(b"no image")
    data, look = load_data(config, torch.device("cpu")), inspect_dataset(config)
    assert look.splits == {
        name: [index for index in part.indices.tolist() if index not in broken]
        for name, part in data.subsets.items()
    }
    assert look.facts["split"] == data.split_digest
    assert {own / files[index] for index in broken} == {Path(one.path) for one in look.broken}


def test_each_file_is_read_once(own, config_file, monkeypatch):
    opened = []
    config = load_config(config_file, [f"dataset.root={own}"])
    plain = open

    def counting(path, *arguments, **more):
        if str(path).startswith(str(own)):
            opened.append(str(path))
        return plain(path, *arguments, **more)

    monkeypatch.setattr("builtins.open", counting)
    look = inspect_dataset(config, search_near=False)
    assert sorted(opened) == sorted(str(path) for path in own.rglob("*.jpg"))
    assert look.facts["formats"] == {"JPEG RGB": 50}


def test_a_missing_class_and_a_rare_one_are_warnings(facts, own, monkeypatch):
    monkeypatch.setattr(data_facts, "IMBALANCE", 5)  # the split is by content: 17 to 23, and 1 or 2
    for path in sorted((own / "1").iterdir())[2:]:
        path.unlink()
    warnings = facts(f"dataset.root={own}", "--no-near")["warnings"]
    assert any(line.endswith(" has no image of '1'.") for line in warnings)
    assert any("times as many images of '100' as of '1'" in line for line in warnings)


def test_the_augmented_pictures_are_what_training_sees(config_file):
    config = load_config(config_file, [" ".join(MIXED.split()), "loader.batch_size=16"])
    part = load_data(config, torch.device("cpu")).subsets["train"]
    loader = train_loader(config, part, torch.device("cpu"))
    for epoch in (0, 3):
        for number, (images, labels) in enumerate(loader.epoch(epoch)):
            for i, row in enumerate(loader.rows(epoch, number).tolist()):
                if i % 5 == 0:
                    image, label = augmented(config, part, row, epoch)
                    assert torch.equal(image[0], images[i])
                    assert torch.equal(label[0], labels[i])


def test_a_picture_without_augmentation_is_the_image_itself(config_file, notes):
    config = load_config(
        config_file,
        ["transforms.train=[{name: Normalize, mean: [0.5, 0.4, 0.3], std: [0.25, 0.2, 0.3]}]"],
    )
    look = inspect_dataset(config, search_near=False)
    image = look.dataset.image(0)
    made, _ = look.pipelines["train"]([image], torch.zeros(1).long(), torch.zeros(1).long(), 0)
    assert torch.equal(
        as_pictures(look.pipelines["train"], made[:1])[0], read_image(notes / "1/000.jpg")
    )


def test_the_files_are_written_and_the_data_is_left_alone(command, own, tmp_path, capsys):
    def state():
        return {p: hashlib.sha256(p.read_bytes()).digest() for p in own.rglob("*.jpg")}

    before = state()
    assert command(f"dataset.root={own}") == 0
    assert state() == before
    assert set(own.rglob("*")) == {*before, own / "1", own / "100"}
    out = tmp_path / "out"
    names = {"data.md", "data.json", "counts.png", "augmentation.png", "classes.png"}
    assert {path.name for path in out.iterdir()} == names
    said = capsys.readouterr().out
    assert all(str(out / name) in said for name in names)


def test_the_folder_is_the_runs_own_unless_told(config_file, tmp_path):
    runs = tmp_path / "runs"
    assert main(["--config", str(config_file), "--runs", str(runs), "--no-near"]) == 0
    assert (runs / "small" / "data" / "data.md").is_file()


def test_json_is_one_object_and_that_of_the_file(command, tmp_path, capsys):
    assert command("--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((tmp_path / "out" / "data.json").read_text())


def test_no_model_is_needed(command):
    assert command("--no-near", "model.name=torchvision/vit_h_14", "model.weights=absent.pt") == 0


@pytest.mark.parametrize(
    "override", ["dataset.rooot=x", "transforms.eval.0.size=[-1, 3]", "model.name=LeNett"]
)
def test_a_fault_of_the_yaml_ends_before_anything_is_written(command, tmp_path, override):
    assert command(override) == 2
    assert not (tmp_path / "out").exists()


def test_a_transform_that_refuses_the_images_is_named(command, capsys):
    code = command(
        "transforms.eval=[{name: Grayscale}, {name: Normalize, mean: [0, 0], std: [1, 1]}]",
        "transforms.train=[{name: Normalize, mean: [0, 0], std: [1, 1]}]",
    )
    assert code == 2
    assert "transforms.train.0" in capsys.readouterr().err


def test_a_list_of_images_in_a_csv_is_looked_at(facts, notes, tmp_path):
    table = tmp_path / "list.csv"
    with table.open("w", newline="") as file:
        rows = [(p.relative_to(notes), p.parent.name) for p in sorted(notes.rglob("*.jpg"))]
        csv.writer(file).writerows([("path", "label"), *rows])
    found = facts(f"dataset={{name: CSVImages, root: {notes}, csv: {table}}}", "--no-near")
    assert sum(map(sum, (c.values() for c in found["counts"].values()))) == 50
    assert found["formats"] == {"JPEG RGB": 50}
    assert found["sizes"]["most_common"] == [[24, 48, 50]]


def test_names_of_files_cannot_write_markup_or_move_the_cursor(command, own, tmp_path, capsys):
    evil = "a\x1b[2J\n| <b>x</b>.jpg"
    try:
        for name in ("1", "100"):
            (own / name / (random.Random(0).choice("xy") + "b.jpg")).write_bytes(b"")
            shutil.copy(own / "1" / "000.jpg", own / name / evil.replace("/", "_"))
    except OSError:
        pytest.skip("this file system has no such names")
    assert command(f"dataset.root={own}", "dataset.on_broken=skip") == 0
    said, page = capsys.readouterr().out, (tmp_path / "out" / "data.md").read_text()
    assert "\x1b" not in said + page
    assert "<b>" not in page.replace("\\<b", "")


def test_a_folder_of_other_things_is_not_written_over(command, own, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "duplicates.png").write_text("mine")
    for folder in (tmp_path / "mine", own / "1"):
        before = sorted(folder.iterdir())
        assert command("--output", str(folder), "--no-near") == 2
        assert "holds other things" in capsys.readouterr().err
        assert sorted(folder.iterdir()) == before
