"""k-fold cross-validation: every image is tested once and validated once, and stays where it is."""

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets import DataError
from datasets.split import PARTS, split
from tests.test_split import digest, part_of
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.evaluate import main as evaluate
from trainer.input.data import digest_of_split
from trainer.process.errors import ConfigError
from trainer.run.disk import read_json
from trainer.run.resume import find_resumable

FOLDED = ("split.folds=5", "split.fold=1")


def cut(labels, fold, folds=5, contents=None, parts=None, seed=0, pool=False):
    contents = range(len(labels)) if contents is None else contents
    parts = [None] * len(labels) if parts is None else parts
    digests = [digest(content) for content in contents]
    return split(labels, digests, parts, (8, 1, 1), seed, pool, folds, fold)


def by_hash(content, folds, seed):
    """The documented rule, written a second time."""
    hashed = hashlib.sha256(f"{seed} {digest(content)}".encode()).hexdigest()
    return int(hashed[:16], 16) * folds >> 64


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60)), min_size=40, max_size=120),
    st.integers(3, 6),
    st.integers(0, 99),
)
def test_over_all_folds_each_content_is_tested_once_and_validated_once(samples, folds, seed):
    labels, contents = [label for label, _ in samples], [content for _, content in samples]
    try:
        cuts = [cut(labels, k, folds, contents, seed=seed) for k in range(folds)]
    except DataError:
        return  # so few contents that a fold has none
    for parts in cuts:
        assert list(parts) == list(PARTS)
        assert sorted(sum(parts.values(), [])) == list(range(len(labels)))
        where = {(content, part_of(parts)[i]) for i, content in enumerate(contents)}
        assert len(where) == len(set(contents))  # equal contents share a part
    for part in ("test", "val"):
        assert sorted(sum((parts[part] for parts in cuts), [])) == list(range(len(labels)))
    assert all(cuts[k]["val"] == cuts[(k + 1) % folds]["test"] for k in range(folds))


@given(st.lists(st.integers(0, 3), min_size=20, max_size=80), st.integers(3, 6), st.integers(0, 99))
def test_every_class_of_enough_contents_has_half_its_share_of_each_fold(labels, folds, seed):
    size = Counter(labels)
    if max(size.values()) < folds:
        return
    for k in range(folds):
        tested = Counter(labels[i] for i in cut(labels, k, folds, seed=seed)["test"])
        for label, n in size.items():
            if n >= folds:
                assert tested[label] >= max(1, int(n / folds / 2))


def test_large_sets_follow_the_hash_alone():
    labels = [index % 10 for index in range(10_000)]
    for k in range(5):
        expected = [index for index in range(10_000) if by_hash(index, 5, 3) == k]
        assert cut(labels, k, seed=3)["test"] == expected
        assert abs(len(expected) - 2000) < 5 * (0.16 * 10_000) ** 0.5


def test_adding_files_moves_only_what_was_borrowed():
    labels, moved = [index % 2 for index in range(320)], []
    for seed in range(30):
        before = part_of(cut(labels[:160], 0, seed=seed))
        after = part_of(cut(labels, 0, seed=seed))
        moves = [index for index in before if before[index] != after[index]]
        for index in moves:
            fold = by_hash(index, 5, seed)
            assert before[index] != {0: "test", 1: "val"}.get(fold, "train")  # was borrowed
        moved.append(len(moves))
    assert moved.count(0) >= 24 and sum(moved) <= 0.005 * 30 * 160


def test_names_and_order_do_not_matter():
    labels = [index % 3 for index in range(90)]
    forward = part_of(cut(labels, 2))
    backward = part_of(cut(labels[::-1], 2, contents=range(89, -1, -1)))
    assert all(forward[index] == backward[89 - index] for index in range(90))


def test_an_official_test_part_stays_and_each_fold_of_the_rest_is_validated_once():
    labels, parts = [0, 1] * 60, ["train"] * 70 + ["val"] * 20 + ["test"] * 30
    for folds in (2, 4):
        cuts = [cut(labels, k, folds, parts=parts) for k in range(folds)]
        assert all(each["test"] == list(range(90, 120)) for each in cuts)
        assert sorted(sum((each["val"] for each in cuts), [])) == list(range(90))
    pooled = cut(labels, 1, 4, parts=parts, pool=True)
    assert pooled == cut(labels, 1, 4)


def test_a_fold_without_images_is_an_error_of_the_data():
    with pytest.raises(DataError, match="in 5 folds of which 0 is held out, leave no image"):
        cut([0, 0], 0)


# --- The YAML


@pytest.mark.parametrize(
    ("section", "path", "told"),
    [
        ("{folds: 5}", "split.fold", "'fold' is missing beside 'folds'"),
        ("{fold: 1}", "split.folds", "'folds' is missing beside 'fold'"),
        ("{folds: 5, fold: 5}", "split.fold", "there are folds 0 to 4"),
        ("{folds: 5, fold: -1}", "split.fold", "at least 0"),
        ("{folds: 1, fold: 0}", "split.folds", "from 2 to 1,000"),
        ("{folds: 5.5, fold: 0}", "split.folds", "a whole number"),
        ("{folds: 5, fold: 0, ratios: [8, 1, 1]}", "split.ratios", "play no part"),
    ],
)
def test_what_cannot_be_is_told_where_it_stands(config_file, section, path, told):
    config_file.write_text(config_file.read_text() + f"split: {section}\n")
    lines = config_file.read_text().splitlines()
    with pytest.raises(ConfigError) as caught:
        load_config(config_file)
    (fault,) = caught.value.faults
    assert (fault.path, fault.line) == (path, len(lines)) and told in fault.message


def test_two_folds_are_enough_only_where_the_data_has_a_test_part(
    config_file, fashion_root, tmp_path
):
    with pytest.raises(ConfigError, match="leave nothing to train on.*at least 3") as caught:
        prepare(load_config(config_file, ["split={folds: 2, fold: 1}"]), print)
    assert caught.value.faults[0].path == "split.folds"
    grey = "{name: Normalize, mean: [0.5], std: [0.25]}"
    fashion = [f"dataset={{name: FashionMNIST, root: {fashion_root}}}",
               f"transforms={{train: [{grey}], eval: [{grey}]}}", "model=MLP"]  # fmt: skip
    job = prepare(load_config(config_file, [*fashion, "split={folds: 2, fold: 1}"]), print)
    assert len(job.data.subsets["test"]) == 30
    assert len(job.data.subsets["train"]) + len(job.data.subsets["val"]) == 120
    with pytest.raises(ConfigError, match="at least 3"):
        again = "split={folds: 2, fold: 1, pool: true}"
        prepare(load_config(config_file, [*fashion, again]), print)


def test_on_the_command_line_folds_replace_the_files_ratios_and_it_is_said(config_file):
    plain = config_file.read_text()
    config_file.write_text(plain + "split: {ratios: [6, 2, 2], seed: 4}\n")
    config = load_config(config_file, FOLDED)
    assert (config.split.folds, config.split.fold, config.split.seed) == (5, 1, 4)
    assert config.messages == ("split.folds=5 drops split.ratios",)
    config_file.write_text(plain)
    assert load_config(config_file, FOLDED).messages == ()
    with pytest.raises(ConfigError, match="play no part"):
        load_config(config_file, [*FOLDED, "split.ratios=[1, 1, 1]"])


def test_what_is_dumped_loads_again_to_an_equal_config(config_file, tmp_path):
    config = load_config(config_file, FOLDED)
    dumped = tmp_path / "small2.yaml"
    for text in (config.dump(), config.print()):
        dumped.write_text(text)
        assert load_config(dumped) == config
        assert "ratios" not in text and "folds: 5" in text
    assert "ratios: [8.0, 1.0, 1.0]" in load_config(config_file).dump()


@pytest.mark.parametrize("images", [0, 1, 4096, 4097, 9000])
def test_the_digest_of_a_split_is_of_its_lines_however_many_there_are(images):
    names = {f"a/{i}\udce9.jpg": f"{i:064x}" for i in range(images)}
    lines = "\n".join(f"{name} {digest}" for name, digest in names.items())
    text = f"ratios\n[8.0, 1.0, 1.0]\npool\nFalse\ntrain\n{lines}\n"
    whole = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
    assert digest_of_split({"ratios": [8.0, 1.0, 1.0], "pool": False, "train": names}) == whole


def test_a_fold_has_its_own_digest_and_no_folds_have_the_digest_of_ever(config_file):
    digests = {}
    for fold in (None, 0, 1):
        more = [] if fold is None else ["split.folds=5", f"split.fold={fold}"]
        data = prepare(load_config(config_file, more), print).data
        digests[fold] = data.split_digest
        if fold is None:
            settings = {"ratios": [8.0, 1.0, 1.0], "seed": 0, "pool": False}
            assert {k: v for k, v in data.split.items() if k not in PARTS} == settings
            assert list(data.split) == [*settings, *PARTS]
            named = {part: data.split[part] for part in PARTS}
            assert data.split_digest == digest_of_split({**settings, **named})
    assert len(set(digests.values())) == 3


def test_a_run_tells_its_fold_and_is_evaluated_on_it_again(train, capsys):
    run = train(*FOLDED)
    assert "fold 1 of 5 (from 0) held out" in capsys.readouterr().out
    kept, result = read_json(run / "split.json"), read_json(run / "result.json")
    for told in (kept, result):
        assert (told["folds"], told["fold"]) == (5, 1)
    assert "ratios" not in kept
    assert sum(len(kept[part]) for part in PARTS) == 50
    assert evaluate([str(run)]) == 0
    assert f"{result['test']['accuracy']:.4f}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"split\.fold.* is 2, but the run began with 1"):
        find_resumable(str(run), None, ["split.fold=2"], run)
