"""What is remembered of files from one start to the next, and when it is not trusted."""

import hashlib
import io
import os
import shutil
import time

import pytest
import torch
from PIL import Image

from datasets import DataError
from tests.stored_pictures import (
    RESIZED,
    Counted,
    is_right,
    load,
    recipe,
    write_pictures,
)
from trainer.input import source
from trainer.input.file_index import FileIndex, states_of
from trainer.input.pool import as_digests
from trainer.input.source import PROBED

DIFFERENT = "[{name: Resize, size: [16, 16]}]"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Pictures that are old enough to be remembered, and a store without any."""
    monkeypatch.setenv("TRAINER_STORE", str(tmp_path / "store"))
    wait(monkeypatch)
    return write_pictures(tmp_path / "pictures")


def wait(monkeypatch, seconds=10.0):
    """Files that are written now are so old at the next start."""
    monkeypatch.setattr(source, "clock", lambda: time.time_ns() + int(seconds * 1e9))


@pytest.mark.parametrize("evaluation", [RESIZED, DIFFERENT])
def test_a_second_start_reads_no_image_and_gives_the_same(
    root, tmp_path, monkeypatch, evaluation, capsys
):
    file = recipe(tmp_path / "a.yaml", root, RESIZED, evaluation)
    sizes = {} if evaluation == RESIZED else {"val": (16, 16), "test": (16, 16)}
    first, counted = load(file), Counted(monkeypatch)
    second = load(file)
    assert counted.read == counted.decoded == []
    assert is_right(first, root, sizes) and is_right(second, root, sizes)
    assert first.dataset.ids == second.dataset.ids
    assert first.split == second.split
    for data in (first, second):
        digests = {k: v for part in ("train", "val", "test") for k, v in data.split[part].items()}
        files = {name: (root / name).read_bytes() for name in data.dataset.ids}
        assert digests == {name: hashlib.sha256(files[name]).hexdigest() for name in files}
        assert data.notes == ["4 of 24 images are turned upright as EXIF data say"]
    for split, subset in first.subsets.items():
        again = second.subsets[split]
        assert torch.equal(subset.extremes, again.extremes)
        assert torch.equal(subset.labels, again.labels)
        assert subset.cache == again.cache == "store"
    assert "changed" not in capsys.readouterr().out


def test_the_pixels_of_train_are_found_again_where_val_is_to_be_another_size(
    root, tmp_path, monkeypatch
):
    load(recipe(tmp_path / "a.yaml", root))
    counted = Counted(monkeypatch)
    data = load(recipe(tmp_path / "b.yaml", root, RESIZED, DIFFERENT))
    assert is_right(data, root, {"val": (16, 16), "test": (16, 16)})
    outside = [*data.split["val"], *data.split["test"]]
    assert sorted(set(counted.decoded)) == sorted(outside)


def test_a_file_changed_in_place_with_its_time_put_back_is_read_again(root, tmp_path, monkeypatch):
    file = recipe(tmp_path / "a.yaml", root)
    before = load(file)
    changed = root / before.dataset.ids[9]
    state, content = changed.stat(), changed.read_bytes()
    other = next(  # a picture of the same size in bytes
        data for quality in range(1, 96) if len(data := again(changed, quality)) <= len(content)
    )
    changed.write_bytes(other.ljust(len(content), b"\0"))
    os.utime(changed, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert changed.stat().st_size == state.st_size
    assert changed.stat().st_mtime_ns == state.st_mtime_ns
    counted = Counted(monkeypatch)
    after = load(file)
    assert set(counted.read) == set(counted.decoded) == {before.dataset.ids[9]}
    assert is_right(after, root)
    assert after.split != before.split
    counted.clear()
    load(file)
    assert counted.read == []


def again(path, quality):
    """A picture of ``path`` upside down."""
    out = io.BytesIO()
    with Image.open(path) as image:
        turned = image.convert("RGB").transpose(Image.Transpose.ROTATE_180)
    turned.save(out, "JPEG", quality=quality)
    return out.getvalue()


def test_a_renamed_file_is_read_again_and_not_decoded_again(root, tmp_path, monkeypatch):
    file = recipe(tmp_path / "a.yaml", root)
    before = load(file)
    old = root / before.dataset.ids[5]
    old.rename(old.with_stem("renamed"))
    counted = Counted(monkeypatch)
    data = load(file)
    assert counted.read == [f"cat/renamed{old.suffix}"] and counted.decoded == []
    assert is_right(data, root)


def test_of_files_added_later_only_those_are_decoded(root, tmp_path, monkeypatch):
    file = recipe(tmp_path / "a.yaml", root)
    load(file)
    more = write_pictures(tmp_path / "more", side=90)
    for name in ("cat/03.jpg", "dog/04.jpg"):
        shutil.copy(more / name, root / name.replace("/", "/new"))
    counted = Counted(monkeypatch)
    data = load(file)
    assert set(counted.read) == set(counted.decoded) == {"cat/new03.jpg", "dog/new04.jpg"}
    assert is_right(data, root)


def test_the_same_files_elsewhere_are_read_and_not_decoded(root, tmp_path, monkeypatch):
    load(recipe(tmp_path / "a.yaml", root))
    moved = shutil.copytree(root, tmp_path / "copy")
    counted = Counted(monkeypatch)
    data = load(recipe(tmp_path / "a.yaml", moved))
    assert set(counted.read) == set(data.dataset.ids)
    assert len(counted.decoded) <= PROBED
    assert is_right(data, moved)


@pytest.mark.parametrize(("seconds", "is_read"), [(1.9, True), (2.3, False)])
def test_a_file_written_within_two_seconds_before_it_was_read_is_not_remembered(
    root, tmp_path, monkeypatch, seconds, is_read
):
    file, last = recipe(tmp_path / "a.yaml", root), root / "cat" / "04.jpg"
    last.write_bytes(last.read_bytes())
    end = last.stat().st_ctime_ns + int(seconds * 1e9)
    monkeypatch.setattr(source, "clock", lambda: end)
    load(file)
    counted = Counted(monkeypatch)
    assert is_right(load(file), root)
    assert ("cat/04.jpg" in counted.read) == is_read
    assert len(counted.decoded) <= PROBED


def test_what_a_start_has_just_read_it_does_not_forget_where_it_prepares_more(
    root, tmp_path, monkeypatch
):
    """Files too young to be remembered, some of which are prepared in a second pass."""
    wait(monkeypatch, seconds=0)
    counted = Counted(monkeypatch)
    monkeypatch.setattr(
        "trainer.input.cut.expected_part", lambda *_: lambda digest, part: "val"
    )  # all of train is prepared in a second pass
    data = load(recipe(tmp_path / "a.yaml", root, RESIZED, DIFFERENT))
    twice = {name for name in data.dataset.ids if counted.read.count(name) > 1}
    outside = {*data.split["val"], *data.split["test"]}
    assert len(twice & outside) <= PROBED and set(data.split["train"]) <= twice
    assert is_right(data, root, {"val": (16, 16), "test": (16, 16)})


def test_a_file_that_changes_between_the_look_and_the_reading_spoils_no_stored_image(
    root, tmp_path, monkeypatch
):
    file = recipe(tmp_path / "a.yaml", root, DIFFERENT, DIFFERENT)
    before = load(file)  # now all digests are remembered
    victim = before.dataset.ids[7]
    content, other = (root / victim).read_bytes(), (root / before.dataset.ids[8]).read_bytes()

    def change(*arguments):
        found = states_of(*arguments)
        (root / victim).write_bytes(other)
        return found

    recipe(file, root)
    with monkeypatch.context() as patch:
        patch.setattr(source, "states_of", change)
        with pytest.raises(DataError, match=f"{victim}: has changed while"):
            load(file)
    assert is_right(load(file), root)
    (root / victim).write_bytes(content)
    assert is_right(load(file), root)


@pytest.mark.parametrize(
    "harm", ["truncated", "emptied", "flipped", "deleted", "a folder", "a link", "a loop"]
)
def test_a_damaged_index_is_not_trusted_and_made_anew(root, tmp_path, monkeypatch, harm):
    file = recipe(tmp_path / "a.yaml", root)
    before = load(file)
    (index,) = (tmp_path / "store" / "files").iterdir()
    content, state = index.read_bytes(), index.stat()
    if harm == "truncated":
        index.write_bytes(content[:-40])
    elif harm == "emptied":
        index.write_bytes(b"")
    elif harm == "flipped":
        index.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
        os.utime(index, ns=(state.st_atime_ns, state.st_mtime_ns))
    else:
        index.unlink()
    if harm == "a folder":
        (index / "in it").mkdir(parents=True)
    elif harm == "a link":
        (tmp_path / "other").write_text("not ours")
        index.symlink_to(tmp_path / "other")
    elif harm == "a loop":
        index.symlink_to(index)
    counted = Counted(monkeypatch)
    after = load(file)
    assert set(counted.read) == set(before.dataset.ids)
    assert len(counted.decoded) <= PROBED
    assert is_right(after, root) and after.split == before.split
    assert index.is_file() and not index.is_symlink()
    assert harm != "a link" or (tmp_path / "other").read_text() == "not ours"
    counted.clear()
    load(file)
    assert counted.read == []


def test_every_flipped_byte_of_an_index_is_noticed(tmp_path):
    (tmp_path / "a").write_text("content")
    names, digest = ["a"], as_digests(["0f" * 32])
    states = states_of(tmp_path, names)
    index = FileIndex(tmp_path, tmp_path)
    index.remember(names, states, digest, states[:, 0] > 0, time.time_ns() + 10**10)
    digests, known = index.recall(names, states)
    assert known.all() and (digests == digest).all()
    content = index.path.read_bytes()
    for place in range(len(content)):
        index.path.write_bytes(
            content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]
        )
        assert not index.recall(names, states)[1].any(), place
    for size in range(len(content)):
        index.path.write_bytes(content[:size])
        assert not index.recall(names, states)[1].any(), size


def test_two_names_of_a_folder_share_an_index_and_two_folders_do_not(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    paths = [FileIndex(tmp_path, tmp_path / name).path for name in ("folder", "link", ".")]
    assert paths[0] == paths[1] != paths[2]


def test_names_that_are_no_text_are_remembered(tmp_path):
    names = [os.fsdecode(b"caf\xe9 \xff.jpg"), "a\nb", "雪.png"]
    for name in names:
        (tmp_path / name).write_text(name.encode(errors="surrogateescape").hex())
    states = states_of(tmp_path, names)
    digests = as_digests(["ab" * 32, "cd" * 32, "ef" * 32])
    index = FileIndex(tmp_path / "index", tmp_path)
    index.remember(names, states, digests, states[:, 0] > 0, time.time_ns() + 10**10)
    found, known = index.recall(names[::-1], states[::-1])
    assert known.all() and (found == digests[::-1]).all()
