"""Groups of images that share a split."""

import hashlib
import json
import random
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import KNeighborsClassifier

from datasets import DataError, duplicates, grouping
from datasets.grouping import groups_by_name, groups_of_similar
from datasets.image_folder import ImageFolder
from datasets.split import PARTS, split
from tests.test_split import PHOTOS, digest, needs_photos, part_of, place
from trainer.config import load_config
from trainer.config.settings import StoreSettings
from trainer.data import main as look
from trainer.evaluate import main as evaluate
from trainer.input.data import load_data
from trainer.input.store import Store
from trainer.process.errors import ConfigError
from trainer.run.disk import read_json
from trainer.run.resume import find_resumable

CPU = torch.device("cpu")


def cut(labels, names, seed=0, folds=None, fold=0, contents=None, parts=None):
    """The split of samples in the groups ``names``, each of its own content, as trainer cuts it."""
    digests = [digest(content) for content in (contents or range(len(labels)))]
    groups = groups_by_name("test", names, digests)
    parts = parts or [None] * len(labels)
    return split(labels, digests, parts, (8, 1, 1), seed, False, folds, fold, groups.keys)


def torn(parts, names):
    """The groups that are in several parts."""
    where = {(names[index], part) for part, rows in parts.items() for index in rows}
    count = Counter(name for name, _ in where)
    return [name for name, number in count.items() if number > 1 and name]


# --- A group has one split


@pytest.mark.parametrize("several", [False, True])
def test_over_a_thousand_seeds_and_all_folds_no_group_is_in_two_parts(several):
    drawn = random.Random(0)
    names = [f"p{drawn.randrange(25)}" for _ in range(80)]
    labels: list[Any] = [drawn.randrange(3) for _ in names]
    if several:
        labels = [tuple(float(drawn.random() < p) for p in (0.5, 0.2, 0.03)) for _ in names]
    for seed in range(1000):
        parts = cut(labels, names, seed)
        assert sum(map(len, parts.values())) == 80 and not torn(parts, names)
        assert not torn(cut(labels, names, seed, 5, seed % 5), names)


def test_each_group_is_tested_in_one_fold_and_validated_in_one():
    names = [f"p{number // 4}" for number in range(200)]
    cuts = [cut([number % 2 for number in range(200)], names, 3, 5, fold) for fold in range(5)]
    for part in ("test", "val"):
        assert sorted(sum((parts[part] for parts in cuts), [])) == list(range(200))


def test_the_hash_of_its_name_alone_places_a_group_so_added_files_move_none():
    names = [f"p{number // 3}" for number in range(3000)]
    parts = part_of(cut([0] * 3000, names, seed=7))
    for number in range(0, 3000, 3):
        key = hashlib.sha256(f"group p{number // 3}".encode()).hexdigest()
        u = int(hashlib.sha256(f"7 {key}".encode()).hexdigest()[:16], 16) / 2**64
        assert parts[number] == ("train" if u < 0.8 else "val" if u < 0.9 else "test")
    more = [*names, *(f"q{number // 2}" for number in range(500)), *["p5", "p6"]]
    after = part_of(cut([0] * 3502, more, seed=7))
    assert {index: after[index] for index in parts} == parts


def test_an_image_in_no_group_lies_where_it_lies_without_groups():
    names = ["p" if number < 100 else "" for number in range(2000)]
    plain = split([0] * 2000, [digest(i) for i in range(2000)], [None] * 2000, (8, 1, 1), 1)
    grouped = part_of(cut([0] * 2000, names, seed=1))
    assert {i: part_of(plain)[i] for i in range(100, 2000)} == {
        i: grouped[i] for i in range(100, 2000)
    }


@given(st.lists(st.tuples(st.sampled_from("abcdefgh "), st.integers(0, 30)), min_size=12))
def test_groups_that_share_a_content_are_one_as_are_groups_that_a_third_connects(samples):
    names, contents = [name.strip() for name, _ in samples], [content for _, content in samples]
    keys = groups_by_name("test", names, [digest(content) for content in contents]).keys
    names_of, rows = np.array(names), np.array(contents)
    linked = (names_of[:, None] == names_of) & (names_of != "") | (rows[:, None] == rows)
    _, component = connected_components(linked)
    assert len(set(zip(keys, component, strict=True))) == len(set(keys)) == len(set(component))


def test_a_joined_group_keeps_its_key_where_the_new_name_sorts_behind():
    before = groups_by_name("test", ["a", "b"], ["1", "1"])
    after = groups_by_name("test", ["a", "b", "c"], ["1", "1", "1"])
    assert before.keys[0] == before.keys[1] == after.keys[2] == after.keys[0]
    assert before.joined == 1 and after.joined == 2 and after.names == {after.keys[0]: "a"}


def test_similar_contents_have_the_smallest_digest_of_their_group_as_key():
    found = groups_of_similar("abcde", ["5", "2", "9", "1", "5"], [("5", "2"), ("9", "5")])
    assert found.keys == ["2", "2", "2", "1", "2"] and found.names == {"2": "a"}


def test_similar_images_are_read_in_the_order_of_the_data(monkeypatch):
    drawn = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8), np.uint8)
    images = torch.from_numpy(drawn).repeat_interleave(8, 2).repeat_interleave(8, 3)
    read: list[int] = []

    def image(index):
        read.append(index)
        return images[index // 2] if index % 2 else images[index // 2] // 8 * 8

    monkeypatch.setattr("os.cpu_count", lambda: 1)
    digests = [digest(index) for index in range(24)]
    found = duplicates.similar_contents(SimpleNamespace(image=image), digests)
    assert read[:24] == list(range(24))
    assert {frozenset(pair) for pair in found} == {
        frozenset(digests[index : index + 2]) for index in range(0, 24, 2)
    }
    assert all(one < other for one, other in found)  # as if read in the order of the digests


# --- Stratification of several classes


@given(
    st.lists(st.integers(0, 3), min_size=12, max_size=80),
    st.sampled_from([(8, 1, 1), (1, 1, 1)]),
    st.integers(0, 99),
)
def test_images_of_one_class_each_are_cut_alike_as_numbers_and_as_shares(labels, ratios, seed):
    digests, none = [digest(i) for i in range(len(labels))], [None] * len(labels)
    shares = [tuple(float(k == label) for k in range(4)) for label in labels]
    expected = split(labels, digests, none, ratios, seed)
    assert split(shares, digests, none, ratios, seed) == expected
    assert split(labels, digests, none, ratios, seed, groups=digests) == expected


def test_the_rarest_class_is_in_every_part_and_few_images_move_for_it():
    drawn = random.Random(1)
    shares = [tuple(float(drawn.random() < p) for p in (0.6, 0.3, 0.008)) for _ in range(1500)]
    own = [index for index, share in enumerate(shares) if share[2]]
    digests, moved, lacking = [digest(i) for i in range(1500)], 0, 0
    for seed in range(100):
        parts = part_of(split(shares, digests, [None] * 1500, (8, 1, 1), seed))
        by_hash = {
            i: "train" if (u := place(i, seed)) < 0.8 else "val" if u < 0.9 else "test"
            for i in range(1500)
        }
        count = Counter(parts[index] for index in own)
        assert min(count[part] for part in PARTS) >= 1
        lacking += len({by_hash[index] for index in own}) < 3
        changed = [i for i in range(1500) if parts[i] != by_hash[i]]
        assert set(changed) <= set(own) and len(changed) <= 2
        moved += len(changed)
    assert lacking > 20 and moved > 20  # else this test saw nothing


def test_what_a_rarer_class_needs_is_not_taken_for_a_commoner_one():
    """Nine images of class 0 are also of class 1, which has 30: each part keeps one of class 0."""
    shares = [(1.0, 1.0)] * 9 + [(0.0, 1.0)] * 21 + [(0.0, 0.0)] * 60
    digests = [digest(i) for i in range(90)]
    for seed in range(200):
        parts = part_of(split(shares, digests, [None] * 90, (1, 1, 1), seed))
        rare = Counter(parts[i] for i in range(9))
        common = Counter(parts[i] for i in range(30))
        none = Counter(parts[i] for i in range(30, 90))
        assert min(rare[p] for p in PARTS) >= 1 and min(common[p] for p in PARTS) >= 5
        assert min(none[p] for p in PARTS) >= 10  # images of no class are a class too


# --- From the YAML to the split


@pytest.fixture
def photos(tmp_path):
    """Two classes of 30 patients with 2 pictures each, in folders and named after them."""
    drawn, root = random.Random(0), tmp_path / "photos"
    for number in range(60):
        for shot in range(2):
            path = root / "ab"[number % 2] / f"p{number}" / f"p{number}-{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = bytes(drawn.randrange(256) for _ in range(64))
            Image.frombytes("L", (8, 8), grey).resize((16, 16)).save(path)
    return root


def load(config_file, root, *more, kind="ImageFolder"):
    dataset = f"dataset={{name: {kind}, root: {root}}}"
    return load_data(load_config(config_file, [dataset, *more]), CPU)


def patients(data):
    """The patients of each part."""
    return {part: {Path(name).name.split("-")[0] for name in data.split[part]} for part in PARTS}


@pytest.mark.parametrize(
    ("group", "told"),
    [("{folder: 1}", "folder 1"), (r'{regex: "^(p[0-9]+)-"}', "regex ^(p[0-9]+)-")],
)
def test_folders_and_patterns_keep_patients_together(config_file, photos, group, told):
    data = load(config_file, photos, f"split.group={group}")
    parts = patients(data)
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 60
    assert data.split["group"] == told
    assert f"split.group ({told}): 60 groups of 2 to 2 images" in data.notes
    plain = patients(load(config_file, photos))
    assert sum(map(len, plain.values())) > 60  # without groups they are torn apart


@pytest.fixture
def table(photos, tmp_path):
    """A table of the photos: path, label (of p0 to p5 also "rare"), patient (empty for p1)."""
    lines = ["path,label,patient"]
    for path in sorted(photos.rglob("*.png")):
        patient = path.stem.split("-")[0]
        label = path.relative_to(photos).parts[0] + ";rare" * (int(patient[1:]) < 6)
        lines.append(f"{path.relative_to(photos)},{label},{patient if patient != 'p1' else ''}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path / "table.csv"


def test_a_column_keeps_patients_together_and_empty_cells_are_no_group(config_file, photos, table):
    table.write_text(table.read_text().replace(";rare", ""))
    dataset = f"dataset={{name: CSVImages, root: {photos}, csv: {table}}}"
    data = load_data(load_config(config_file, [dataset, "split.group.column=patient"]), CPU)
    parts = patients(data)
    assert sum(len(found - {"p1"}) for found in parts.values()) == 59
    assert (
        "split.group (column patient): 59 groups of 2 to 2 images; 2 images in no group"
        in data.notes
    )


def test_with_several_labels_groups_stay_whole_and_each_part_has_the_rarest_label(
    config_file, photos, table
):
    dataset = f"dataset={{name: CSVImages, root: {photos}, csv: {table}, label_separator: ;}}"
    how = [dataset, "split.group.column=patient", "loss=BCEWithLogitsLoss"]
    for seed in range(4):
        data = load_data(load_config(config_file, [*how, f"split.seed={seed}"]), CPU)
        parts = patients(data)
        assert sum(len(found - {"p1"}) for found in parts.values()) == 59
        rare = data.classes.index("rare")
        assert all(subset.labels[:, rare].sum() >= 1 for subset in data.subsets.values())


def test_folders_of_part_and_class_are_no_groups_and_an_image_above_them_is_alone(photos):
    (photos / "a" / "p0" / "deep").mkdir()
    (photos / "a" / "p0" / "p0-0.png").rename(photos / "a" / "p0" / "deep" / "x.png")
    (photos / "a" / "p2" / "p2-0.png").rename(photos / "a" / "alone.png")
    dataset = ImageFolder(str(photos))
    for depth in (1, 2):
        name_of = dict(
            zip(dataset.ids, grouping.group_names("folder", depth, dataset), strict=True)
        )
        assert name_of["a/p0/deep/x.png"] == ("p0" if depth == 1 else "p0/deep")
        assert name_of["a/p4/p4-0.png"] == ("p4" if depth == 1 else "")
        assert name_of["a/alone.png"] == ""
    parts = photos.parent / "parts"
    for part in ("train", "test"):
        (parts / part).mkdir(parents=True)
    photos.rename(parts / "train" / "x")
    (parts / "train" / "x" / "a").rename(parts / "train" / "a")
    (parts / "train" / "x" / "b").rename(parts / "test" / "b")
    (parts / "train" / "x").rmdir()
    dataset = ImageFolder(str(parts))
    assert set(dataset.parts) == {"train", "test"}
    named = grouping.group_names("folder", 1, dataset)
    assert {name for name in named if name} == {f"p{number}" for number in range(60)}


def test_groups_of_names_stay_where_they_are_when_images_are_split_by_name(config_file, photos):
    how = ["split.group={folder: 1}", "split.by=name"]
    data = load(config_file, photos, *how)
    assert data.split["by"] == "name"
    by_content = load(config_file, photos, how[0])
    assert patients(data) == patients(by_content)
    assert sum(map(len, patients(data).values())) == 60


def test_a_group_in_two_official_parts_is_refused_unless_all_are_pooled(config_file, photos):
    root = photos.parent / "parts"
    for path in sorted(photos.rglob("*.png")):
        patient = int(path.stem[1:].split("-")[0])
        part = "test" if patient >= 50 or path.stem == "p0-1" else "train"
        target = root / part / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    with pytest.raises(DataError, match="1 group of 60 is in several official parts") as caught:
        load(config_file, root, "split.group={folder: 1}")
    for words in ("'p0': 1 in test, 1 in train", "split.pool=true", "split.group=null"):
        assert words in str(caught.value)
    data = load(config_file, root, "split.group={folder: 1}", "split.pool=true")
    assert sum(map(len, patients(data).values())) == 60
    (root / "test/a/p0/p0-1.png").rename(root / "train/a/p0/p0-1.png")
    data = load(config_file, root, "split.group={folder: 1}")
    assert patients(data)["test"] == {f"p{number}" for number in range(50, 60)}
    folds = ["split.group={folder: 1}", "split.folds=3", "split.fold=0"]
    assert sum(map(len, patients(load(config_file, root, *folds)).values())) == 60


def test_a_large_group_is_told_with_its_share(config_file, photos):
    regex = r'split.group={regex: "^(p[0-9])"}'  # p1 and p10 to p19: 22 of 120 images
    notes = "\n".join(load(config_file, photos, regex, "split.ratios=[1, 1, 1]").notes)
    assert "split.group (regex ^(p[0-9])): 10 groups of 2 to 22 images" in notes
    notes = "\n".join(load(config_file, photos, regex, "split.ratios=[18, 1, 1]").notes)
    assert "images (18%) and is in val, which should have 5%" in notes


def test_too_few_groups_are_an_error_that_names_groups(config_file, photos):
    with pytest.raises(DataError, match="of 1 group, cut .* or split.group"):
        load(config_file, photos, 'split.group={regex: "^(p)"}')


@pytest.mark.parametrize(
    ("section", "path", "told"),
    [
        ("{group: {column: a, folder: 1}}", "split.group", "one of column, folder and regex"),
        ("{group: {}}", "split.group", "one of column, folder and regex"),
        ("{group: patient}", "split.group", "duplicates, a mapping or null"),
        ("{group: {colum: a}}", "split.group.colum", "did you mean 'column'"),
        ("{group: {folder: 0}}", "split.group.folder", "1"),
        ('{group: {regex: "(a"}}', "split.group.regex", "is no regular expression: missing )"),
        ('{group: {regex: "^a"}}', "split.group.regex", "has no parentheses"),
        (f'{{group: {{regex: "({"a" * 1001})"}}}}', "split.group.regex", "at most 1,000"),
        ("{group: duplicates, by: name}", "split.by", "write by: content"),
    ],
)
def test_what_cannot_be_is_told_where_it_stands(config_file, section, path, told):
    config_file.write_text(config_file.read_text() + f"split: {section}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(config_file)
    (fault,) = caught.value.faults
    assert fault.path == path and fault.line and told in fault.message


def test_a_dataset_without_a_table_is_told_which_have_one(config_file, photos):
    with pytest.raises(ConfigError, match="ImageFolder has no table .*: .*CSVImages") as caught:
        load(config_file, photos, "split.group={column: patient}")
    assert caught.value.faults[0].path == "split.group.column"


def test_a_pattern_that_tries_every_way_is_stopped(config_file, photos, monkeypatch):
    monkeypatch.setattr(grouping, "SECONDS", 1)
    (photos / "a" / "p0" / "p0-0.png").rename(photos / "a" / "p0" / f"{'a' * 60}!.png")
    began = time.monotonic()
    with pytest.raises(ConfigError, match="takes over 1 seconds for 120 names") as caught:
        load(config_file, photos, r'split.group={regex: "^((a+)+)b"}')
    assert time.monotonic() - began < 20 and caught.value.faults[0].path == "split.group.regex"


# --- Similar pictures


@pytest.fixture
def bursts(tmp_path):
    """Two classes of 12 scenes, each in 3 shots that are shifted and compressed differently."""
    drawn, root = random.Random(2), tmp_path / "bursts"
    for scene in range(24):
        coarse = bytes(drawn.randrange(256) for _ in range(3 * 7 * 7))
        picture = Image.frombytes("RGB", (7, 7), coarse).resize((84, 84), Image.Resampling.BICUBIC)
        for shot in range(3):
            path = root / "ab"[scene % 2] / f"p{scene}-{shot}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.crop((shot, shot, 80 + shot, 80 + shot)).save(path, quality=70 + 8 * shot)
    return root


def test_similar_pictures_share_a_split_and_a_second_start_searches_none(
    config_file, bursts, monkeypatch
):
    data = load(config_file, bursts, "split.group=duplicates")
    parts = patients(data)
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 24
    assert data.split["group"] == "duplicates"
    assert "split.group (duplicates): 24 groups of 3 to 3 images" in data.notes

    monkeypatch.setattr(duplicates, "similar_contents", None)  # a call of it would fail
    assert load(config_file, bursts, "split.group=duplicates").split == data.split


def test_a_damaged_or_cleared_memory_of_similar_pictures_is_searched_for_again(
    config_file, bursts, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRAINER_STORE", str(tmp_path / "store"))
    searched, search = [], duplicates.similar_contents

    def counting(*given):
        searched.append(given)
        return search(*given)

    monkeypatch.setattr(duplicates, "similar_contents", counting)
    before = load(config_file, bursts, "split.group=duplicates").split
    (kept,) = (tmp_path / "store" / "made").iterdir()
    kept.write_text(kept.read_text().replace("[", "[[", 1))
    assert load(config_file, bursts, "split.group=duplicates").split == before
    kept.write_text(kept.read_text().replace('"made": [["', '"made": [["0'))
    assert load(config_file, bursts, "split.group=duplicates").split == before
    assert load(config_file, bursts, "split.group=duplicates").split == before
    assert len(searched) == 3
    Store(StoreSettings()).clear([])
    assert not kept.exists()


def test_names_and_order_do_not_matter_for_similar_pictures(config_file, bursts):
    before = load(config_file, bursts, "split.group=duplicates", "loader.cache=ram").split
    for path in sorted(bursts.rglob("*.jpg")):
        path.rename(path.with_name(f"{9 - int(path.stem[-1])}{path.name}"))
    after = load(config_file, bursts, "split.group=duplicates", "loader.cache=ram").split
    for part in PARTS:
        assert set(before[part].values()) == set(after[part].values())


def test_broken_images_are_in_no_group(config_file, bursts):
    (bursts / "a" / "p0-0.jpg").write_bytes(b"no image")
    (bursts / "a" / "p2-0.jpg").write_bytes(b"no image")
    skip = "dataset.on_broken=skip"
    data = load(config_file, bursts, skip, "split.group=duplicates")
    assert len(data.skipped) == 2 and sum(map(len, patients(data).values())) == 24


# --- trainer.data, split.json, resume


def test_trainer_data_shows_the_groups(config_file, photos, tmp_path, capsys):
    (photos / "a" / "p2" / "p2-0.png").rename(photos / "a" / "alone.png")
    command = ["--config", str(config_file), "--output", str(tmp_path / "out"), "--no-near"]
    dataset = f"dataset={{name: ImageFolder, root: {photos}}}"
    assert look([*command, dataset, "split.group={folder: 1}"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "groups 60 by folder 1 (train" in told and "of 1 to 2 images" in told
    facts = json.loads((tmp_path / "out" / "data.json").read_text())["groups"]
    assert facts["groups"] == 60 and facts["in_no_group"] == 1 and facts["sizes"] == [1, 2, 2]
    assert sum(facts["by_part"].values()) == 60 and len(facts["largest"]) == 20
    assert "## Groups" in (tmp_path / "out" / "data.md").read_text()
    split_of = load_data(
        load_config(config_file, [dataset, "split.group={folder: 1}"]), CPU
    ).split_digest
    assert json.loads((tmp_path / "out" / "data.json").read_text())["split"] == split_of


def test_a_run_tells_its_groups_and_goes_on_with_these_only(train):
    group = r'split.group={regex: "(.).jpg"}'
    run = train(group)
    assert read_json(run / "split.json")["group"] == read_json(run / "result.json")["group"]
    with pytest.raises(ConfigError, match="split.group.regex.*the run began with"):
        find_resumable(str(run), None, ['split.group={regex: "^(..)"}'], run)
    train(group, "train.epochs=3", resume=run)
    assert evaluate([str(run)]) == 0


# --- What groups are for


@needs_photos
def test_bursts_in_train_and_test_answer_what_cannot_be_known_and_groups_tell_the_truth(
    config_file, tmp_path
):
    """A label that is drawn for each photograph can be remembered, but not be learned."""
    drawn, root = random.Random(0), tmp_path / "bursts"
    for path in sorted(PHOTOS.glob("*/*"))[::2]:
        with Image.open(path) as opened:
            opened.draft("RGB", (300, 150))
            picture = opened.convert("RGB").resize((98, 50))
        folder = root / drawn.choice(["heads", "tails"])
        folder.mkdir(parents=True, exist_ok=True)
        for shot in range(5):
            x, y = drawn.randrange(2), drawn.randrange(2)
            shifted = picture.crop((x, y, x + 96, y + 48))
            shifted.save(folder / f"{path.stem}_{shot}.jpg", quality=drawn.randrange(60, 95))
    small = "[{name: Resize, size: [24, 48]}]"
    sides = f"transforms={{train: {small}, eval: {small}}}"
    accuracy = {}
    for group in ("null", '{regex: "^(.*)_"}', "duplicates"):
        data = load(config_file, root, f"split.group={group}", sides, "split.ratios=[3, 1, 1]")
        images, labels = zip(
            *(data.subsets[part].sample(torch.arange(len(data.split[part]))) for part in PARTS),
            strict=True,
        )
        model = KNeighborsClassifier(1).fit(images[0].flatten(1), labels[0])
        accuracy[group] = model.score(images[2].flatten(1), labels[2])
    print(accuracy)
    assert accuracy["null"] > 0.9
    assert accuracy['{regex: "^(.*)_"}'] < 0.65 and accuracy["duplicates"] < 0.65


@pytest.mark.parametrize("how", ["{folder: 3}", '{regex: "^(nothing)_"}'])
def test_a_rule_that_finds_no_group_at_all_is_a_fault_at_its_place(config_file, how):
    with pytest.raises(ConfigError, match=r"split\.group\.\w+: finds no group") as raised:
        load_data(load_config(config_file, [f"split.group={how}"]), CPU)
    assert "/000.jpg" in str(raised.value)  # what a name looks like
