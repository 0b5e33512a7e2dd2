"""What the splitter promises, and its command line."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets import DataError
from datasets.image_folder import ImageFolder
from datasets.rmb import RMB
from datasets.split import PARTS, conflicts, expected_part, manifest, split
from scripts.split_dataset import main

PHOTOS = Path("../shared/data/rmb")
needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"{PHOTOS} is not on this machine")


def digest(content: object) -> str:
    return hashlib.sha256(str(content).encode()).hexdigest()


def cut(labels, contents=None, parts=None, ratios=(8, 1, 1), seed=0, pool=False):
    contents = range(len(labels)) if contents is None else contents
    parts = [None] * len(labels) if parts is None else parts
    return split(labels, [digest(content) for content in contents], parts, ratios, seed, pool)


def part_of(parts: dict[str, list[int]]) -> dict[int, str]:
    return {index: part for part, indices in parts.items() for index in indices}


def place(content: object, seed: int) -> float:
    """The documented rule, written a second time."""
    return int(hashlib.sha256(f"{seed} {digest(content)}".encode()).hexdigest()[:16], 16) / 2**64


def by_hash_alone(content: object, seed: int) -> str:
    u = place(content, seed)
    return "train" if u < 0.8 else "val" if u < 0.9 else "test"


@given(
    st.lists(st.integers(0, 3), min_size=12, max_size=80),
    st.integers(0, 9),
    st.sampled_from([(8, 1, 1), (1, 1, 1), (0.5, 0.3, 0.2)]),
)
def test_every_sample_is_in_one_part_in_ascending_order(labels, seed, ratios):
    parts = cut(labels, ratios=ratios, seed=seed)
    assert list(parts) == list(PARTS)
    assert sorted(sum(parts.values(), [])) == list(range(len(labels)))
    assert all(indices == sorted(indices) for indices in parts.values())


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), min_size=30), st.integers(0, 99))
def test_equal_contents_share_a_part_even_across_classes(samples, seed):
    labels, contents = [label for label, _ in samples], [content for _, content in samples]
    try:
        parts = part_of(cut(labels, contents, seed=seed))
    except DataError:
        return  # too few different contents for three parts
    where = [(content, parts[index]) for index, content in enumerate(contents)]
    assert len(set(where)) == len(set(contents))


@given(st.lists(st.integers(0, 3), min_size=3), st.integers(0, 99))
def test_every_class_of_three_contents_or_more_has_half_its_share_of_each_part(labels, seed):
    size = Counter(labels)
    if max(size.values()) < 3:
        return
    count = Counter((labels[i], part) for i, part in part_of(cut(labels, seed=seed)).items())
    for label, n in size.items():
        for part, share in zip(PARTS, (0.8, 0.1, 0.1), strict=True):
            if n >= 3:
                assert count[label, part] >= max(1, int(n * share / 2))
        assert count[label, "train"] >= 1


def test_an_empty_part_borrows_the_one_training_content_that_lies_nearest():
    borrowed = 0
    for seed in range(100):
        hashed = {content: by_hash_alone(content, seed) for content in range(20)}
        if list(hashed.values()).count("val") == 0 and list(hashed.values()).count("test") in (
            1,
            2,
        ):
            nearest = max((i for i in hashed if hashed[i] == "train"), key=lambda i: place(i, seed))
            assert part_of(cut([0] * 20, seed=seed)) == {**hashed, nearest: "val"}
            borrowed += 1
    assert borrowed > 5  # else this test saw nothing


def test_large_sets_follow_the_hash_alone_and_meet_the_ratios():
    labels = [index % 10 for index in range(20_000)]
    parts = cut(labels)
    assert part_of(parts) == {index: by_hash_alone(index, 0) for index in range(20_000)}
    for part, share in zip(PARTS, (0.8, 0.1, 0.1), strict=True):  # 5 standard deviations
        assert abs(len(parts[part]) - share * 20_000) < 5 * (share * (1 - share) * 20_000) ** 0.5


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("folds, fold", [(None, 0), (3, 0), (5, 4)])
@pytest.mark.parametrize("official", [(None,), ("train", "test"), ("train", "val"), PARTS])
def test_without_borrowing_the_expected_part_of_a_digest_is_its_part(official, folds, fold, pool):
    digests = [digest(content) for content in range(600)]
    parts = [official[i % len(official)] for i in range(600)]
    found = split([0] * 600, digests, parts, (8, 1, 1), 3, pool, folds, fold)
    expected = expected_part(iter(parts), (8, 1, 1), 3, pool, folds, fold)
    assert {i: expected(digests[i], parts[i]) for i in range(600)} == part_of(found)


def test_the_expected_part_follows_the_hash_alone_where_a_split_borrows():
    expected = expected_part([None], (8, 1, 1), 0)
    assert [expected(digest(i), None) for i in range(3)] == [by_hash_alone(i, 0) for i in range(3)]
    assert len({expected(digest(i), None) for i in range(3)}) < 3  # ``split`` gives each part one


def test_adding_files_moves_only_what_was_borrowed():
    """80 images a class doubled, with 50 seeds: most move nothing, and together they move a few."""
    labels = [index % 2 for index in range(320)]
    moved = []
    for seed in range(50):
        before, after = part_of(cut(labels[:160], seed=seed)), part_of(cut(labels, seed=seed))
        moves = [index for index in before if before[index] != after[index]]
        for index in moves:  # back to train comes only what had been borrowed
            assert before[index] != by_hash_alone(index, seed) or after[index] != "train"
        moved.append(len(moves))
    assert moved.count(0) >= 40
    assert sum(moved) <= 0.005 * 50 * 160


def test_names_and_order_do_not_matter():
    labels = [index % 3 for index in range(90)]
    forward = part_of(cut(labels))
    backward = part_of(cut(labels[::-1], range(89, -1, -1)))
    assert all(forward[index] == backward[89 - index] for index in range(90))


def test_the_seed_moves_the_split():
    labels = [0] * 100
    assert len({tuple(cut(labels, seed=seed)["test"]) for seed in range(10)}) == 10


def test_the_official_test_part_stays_and_validation_is_cut_from_train():
    parts = ["train"] * 900 + ["test"] * 300
    result = cut([index % 3 for index in range(1200)], parts=parts)
    assert result["test"] == list(range(900, 1200))
    assert sorted(result["train"] + result["val"]) == list(range(900))
    assert 60 < len(result["val"]) < 140  # 1 / (8 + 1) of 900
    assert result == cut([index % 3 for index in range(1200)], parts=parts, ratios=(8, 1, 0))


def test_the_official_validation_part_stays():
    parts = ["train", "val", "test"] * 20
    result = cut([0] * 60, parts=parts)
    assert result == {part: list(range(k, 60, 3)) for k, part in enumerate(PARTS)}


def test_pool_ignores_the_official_parts():
    labels = [0] * 200
    assert cut(labels, parts=["train"] * 100 + ["test"] * 100, pool=True) == cut(labels)


@pytest.mark.parametrize(
    "ratios", [(8, 1), (8, 1, 1, 1), (8, -1, 1), (0, 0, 0), (0, 1, 1), (8, 1, 0), (8, 0, 2),
               (float("nan"), 1, 1), (float("inf"), 1, 1), (1, 1e308, 1e308), (1e307, 1, 1),
               (10**400, 1, 1)]
)  # fmt: skip
def test_ratios_that_cannot_be_met_are_refused(ratios):
    with pytest.raises(DataError, match="split.ratios"):
        cut([0] * 100, ratios=ratios)


@pytest.mark.parametrize("labels", [[], [0], [0, 0], [0, 1]])
def test_a_part_without_images_is_an_error(labels):
    with pytest.raises(DataError, match="leave no image for"):
        cut(labels)


def test_a_class_too_small_to_test_on_is_trained_on():
    labels = [0] * 50 + [1]
    assert all(50 in cut(labels, seed=seed)["train"] for seed in range(30))


def test_contents_in_two_classes_or_two_official_parts_are_told():
    ids, contents = ("a/1", "b/1", "a/2", "a/3"), ("same", "same", "twin", "twin")
    result = {"train": [0, 1, 2], "val": [], "test": [3]}
    told = conflicts(ids, (0, 1, 0, 0), contents, result)
    assert told == [
        "1 group of equal images (2 in all) in different classes: one of the labels is wrong\n"
        "  a/1 = b/1",
        "1 group of equal images (2 in all) in different parts of the official split: "
        "what is tested was trained on\n  a/2 = a/3",
    ]
    assert conflicts(ids, (0, 0, 0, 0), ("w", "x", "y", "z"), result) == []


def test_the_manifest_names_each_sample_and_its_content():
    result = {"train": [0, 2], "val": [1], "test": []}
    assert manifest(result, ("a", "b", "c"), ("1", "2", "3")) == {
        "train": {"a": "1", "c": "3"},
        "val": {"b": "2"},
        "test": {},
    }


# --- python -m scripts.split_dataset -------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    """Two classes of 20 images of one pixel colour each, one nested, one a copy of another."""
    root = tmp_path / "source"
    for index in range(40):
        path = root / f"{1 + 99 * (index % 2)}" / ("more" if index == 4 else "") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (index, 0, 0)).save(path)
    (root / "1" / "copy.png").write_bytes((root / "1" / "0.png").read_bytes())
    return root


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_every_file_lands_in_one_part_and_the_result_is_read_with_that_split(
    source, tmp_path, mode
):
    target = tmp_path / "new" / "target"
    assert main(["--source", str(source), "--target", str(target), "--mode", mode]) == 0
    assert {path.name for path in target.iterdir()} == {"train", "valid", "test", "split.json"}
    placed = {name.split("/", 1)[1] for name in files(target) - {"split.json"}}
    assert placed == files(source) and len(files(target)) == 41 + 1
    for dataset in (ImageFolder(str(target)), RMB(str(target))):
        assert dataset.classes == ("1", "100") and set(dataset.parts) == set(PARTS)
    listed = json.loads((target / "split.json").read_text())
    for part, folder in zip(PARTS, ("train", "valid", "test"), strict=True):
        assert set(listed[part]) == files(target / folder)
        for name, expected in listed[part].items():
            content = (target / folder / name).read_bytes()
            assert hashlib.sha256(content).hexdigest() == expected
    linked = os.path.samefile(source / "1/more/4.png", next(target.rglob("4.png")))
    assert linked == (mode == "link")
    assert not list(tmp_path.rglob("*.partial"))


def test_the_command_and_a_training_run_split_alike(source, tmp_path):
    main(["--source", str(source), "--target", str(tmp_path / "target"), "--seed", "7"])
    data = ImageFolder(str(source))
    digests = [data.digest(index) for index in range(len(data))]
    expected = manifest(split(data.labels, digests, data.parts, (8, 1, 1), 7), data.ids, digests)
    listed = json.loads((tmp_path / "target" / "split.json").read_text())
    assert {part: listed[part] for part in PARTS} == expected


def test_a_source_with_an_official_test_part_keeps_it(source, tmp_path):
    official = tmp_path / "official"
    (official / "test").mkdir(parents=True)
    source.rename(official / "train")
    for name in ("1", "100"):
        (official / "test" / name).mkdir()
        (official / "train" / name / f"{int(name == '100')}.png").rename(
            official / "test" / name / "t.png"
        )
    assert main(["--source", str(official), "--target", str(tmp_path / "target")]) == 0
    assert files(tmp_path / "target" / "test") == {"1/t.png", "100/t.png"}
    assert files(tmp_path / "target" / "valid")


def test_where_links_are_impossible_files_are_copied_and_it_is_said(
    source, tmp_path, monkeypatch, capsys
):
    def link(*_):
        raise OSError

    monkeypatch.setattr(os, "link", link)
    assert main(["--source", str(source), "--target", str(tmp_path / "target")]) == 0
    assert "41 images were copied" in capsys.readouterr().out
    assert len(files(tmp_path / "target")) == 42


def test_a_used_target_and_bad_arguments_end_with_2(source, tmp_path, capsys):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    for wrong in (
        ["--target", str(tmp_path / "used")],
        ["--target", str(source / "inside")],
        ["--target", str(tmp_path / "t"), "--ratios", "8", "1"],
        ["--target", str(tmp_path / "t"), "--ratios", "8", "1", "-1"],
        ["--target", str(tmp_path / "t"), "--mode", "move"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(["--source", str(source), *wrong])
        assert ended.value.code == 2
    assert files(tmp_path / "used") == {"file"} and not (tmp_path / "t").exists()


def test_bad_data_ends_with_3_and_leaves_nothing(source, tmp_path, capsys):
    target = tmp_path / "target"
    assert main(["--source", str(tmp_path / "sauce"), "--target", str(target)]) == 3
    assert f"Did you mean '{source}'?" in capsys.readouterr().err
    (source / "1" / "2.png").write_bytes(b"")
    assert main(["--source", str(source), "--target", str(target)]) == 3
    assert f"{source / '1' / '2.png'}: the file is empty" in capsys.readouterr().err
    assert not target.exists() and not list(tmp_path.rglob("*.partial"))


def test_broken_images_are_left_out_and_listed_on_request(source, tmp_path, capsys):
    (source / "1" / "2.png").write_bytes(b"no image")
    target = tmp_path / "target"
    command = ["--source", str(source), "--target", str(target), "--on-broken", "skip"]
    assert main(command) == 0
    assert "left out 1 broken images" in (told := capsys.readouterr().err)
    assert str(source / "1" / "2.png") in told
    assert len(files(target)) == 41


def test_files_that_need_channels_or_bits_are_split_with_these_options(source, tmp_path):
    for name in ("1", "100"):
        np.save(source / name / "scan.npy", np.full((2, 2, 3), 300, np.uint16))
    command = ["--source", str(source), "--target", str(tmp_path / "deep")]
    assert main([*command, "--channels", "keep", "--bits", "16"]) == 0
    assert sum(name.endswith(".npy") for name in files(tmp_path / "deep")) == 2
    assert len(ImageFolder(str(tmp_path / "deep"), bits=16)) == 43


def test_help_and_bad_arguments_are_answered_without_torch():
    code = (
        "import sys; from scripts.split_dataset import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'PIL' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@needs_photos
def test_real_photographs_are_split_with_both_classes_in_every_part(tmp_path):
    target = tmp_path / "target"
    assert main(["--source", str(PHOTOS), "--target", str(target)]) == 0
    data = RMB(str(target))
    count = Counter(zip(data.parts, data.labels, strict=True))
    assert len(data) == 160 and data.classes == ("1", "100")
    assert all(count[part, label] >= 4 for part in PARTS for label in (0, 1))
