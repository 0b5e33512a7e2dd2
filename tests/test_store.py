"""The store of prepared images: what harms it is noticed, and never changes a pixel."""

import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import FORK, exit_code_of, fork
from tests.stored_pictures import RESIZED, Counted, is_right, load, recipe, write_pictures
from trainer.config.settings import StoreSettings
from trainer.input import kept as kept_module
from trainer.input import pool, reading, source
from trainer.input import store as store_module
from trainer.input.kept import Kept
from trainer.input.pool import ABOUT, Pool, Segment
from trainer.input.source import PROBED
from trainer.input.store import Store
from trainer.process.errors import UsageError
from trainer.process.lock import hold
from trainer.run import disk
from trainer.train import main

NO_PREFIX = "[{name: RandomResizedCrop, size: 16}]"


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """The folder of an empty store. Files are old enough to be remembered."""
    monkeypatch.setenv("TRAINER_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(source, "clock", lambda: time.time_ns() + 10**10)
    return tmp_path / "store"


@pytest.fixture
def root(tmp_path):
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def file(tmp_path, root, stored):
    return recipe(tmp_path / "a.yaml", root)


def pools(stored):
    return sorted((stored / "images").iterdir())


def one_file(stored, kind):
    """The file of this kind in the store's only pool."""
    (folder,) = pools(stored)
    if kind == ABOUT:
        return folder / ABOUT
    (found,) = (path for path in folder.glob(f"*{kind}") if path.name != ABOUT)
    return found


def half_written(stored):
    """What a pool holds beside complete segments."""
    found = []
    for folder in pools(stored) if (stored / "images").is_dir() else ():
        complete = {path.stem for path in folder.glob("*.json")}
        found += [path.name for path in folder.iterdir() if path.stem not in complete]
    return found


# --- damage ---------------------------------------------------------------------------------------

KINDS = (".pixels", ".records", ".json", ABOUT)
HARMS = ["truncated", "emptied", "flipped", "flipped at the same time", "longer"]
HARMS += ["deleted", "a folder", "a full folder", "a dangling link", "a loop"]


def damage(path, harm, tmp_path):
    content, state = path.read_bytes(), path.stat()
    middle = 3 if path.suffix == ".json" else len(content) // 2  # of a key in a manifest
    if harm == "truncated":
        path.write_bytes(content[:middle])
    elif harm == "emptied":
        path.write_bytes(b"")
    elif harm.startswith("flipped"):
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        if harm != "flipped":
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif harm == "longer":
        path.write_bytes(content + content[:100])
    else:
        path.unlink()
        if harm.endswith("folder"):
            path.mkdir()
        if harm == "a full folder":
            (path / "file").write_text("not ours")
        elif harm == "a dangling link":
            path.symlink_to(tmp_path / "nowhere")
        elif harm == "a loop":
            path.symlink_to(path)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_noticed_told_and_made_good(
    file, root, stored, tmp_path, monkeypatch, capsys, kind, harm
):
    load(file)
    path = one_file(stored, kind)
    damage(path, harm, tmp_path)
    capsys.readouterr()
    counted = Counted(monkeypatch)
    assert is_right(load(file), root)
    told = capsys.readouterr().out
    if (kind, harm) != (".json", "deleted"):  # which looks like a segment that was never complete
        name = ABOUT if kind == ABOUT else path.with_suffix(".json").name
        assert f"note    {path.with_name(name)} " in told
    if kind == ABOUT:
        assert counted.read == [] and json.loads(path.read_text())["format"] == pool.FORMAT
    else:
        assert set(counted.decoded) == set(load(file).dataset.ids)
        assert harm == "deleted" or path.with_suffix(".json").name not in os.listdir(path.parent)
    capsys.readouterr()
    counted.clear()
    assert is_right(load(file), root)
    assert counted.read == [] and capsys.readouterr().out == ""
    (entry,) = Store(StoreSettings()).entries()
    assert entry.made_by.endswith("Resize([18, 24])") and entry.images == 24


def test_every_flipped_byte_of_a_manifest_or_of_records_leaves_the_pixels_right(
    file, root, stored, monkeypatch
):
    data = load(file)
    for kind in (".records", ".json"):
        path = one_file(stored, kind)
        content = path.read_bytes()
        monkeypatch.setattr(pool, "remove_segment", lambda *_: None)
        for at in range(0, len(content), 7):
            changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
            path.write_bytes(changed)
            found = Pool(path.parent)
            if not found.damaged:
                assert kind == ".json" and len(found.records) == len(data.dataset)
                assert found.pixels[0].numpy().tobytes() == path.with_suffix(".pixels").read_bytes()
        path.write_bytes(content)


@pytest.mark.parametrize("kind", (".pixels", ".records", ".json"))
def test_a_file_that_is_moved_and_linked_to_is_checked_and_used(
    file, root, stored, tmp_path, monkeypatch, kind
):
    load(file)
    path = one_file(stored, kind)
    path.symlink_to(path.rename(tmp_path / "moved"))
    counted = Counted(monkeypatch)
    assert is_right(load(file), root) and counted.read == []


def test_a_copy_of_a_store_is_used_after_its_digests_were_checked(
    file, root, stored, tmp_path, monkeypatch
):
    load(file)
    shutil.copytree(stored, tmp_path / "copy", copy_function=shutil.copyfile)
    monkeypatch.setenv("TRAINER_STORE", str(tmp_path / "copy"))
    checked, check = [], pool._check_pixels

    def noted(pixels, chunks):
        checked.append(len(pixels))
        check(pixels, chunks)

    monkeypatch.setattr(pool, "_check_pixels", noted)
    counted = Counted(monkeypatch)
    assert is_right(load(file), root)
    assert counted.read == [] and checked == [24 * 18 * 24 * 3]
    assert is_right(load(file), root) and len(checked) == 1, "its state is known by now"


def test_pixels_that_were_not_changed_are_not_read_at_a_start(file, root, stored, monkeypatch):
    load(file)
    monkeypatch.setattr(pool, "_check_pixels", None)
    assert is_right(load(file), root)


def test_a_write_to_an_image_changes_neither_the_store_nor_another_mapping(file, root, stored):
    data = load(file)
    for subset in data.subsets.values():
        for row in range(len(subset)):
            assert isinstance(subset.images, Kept)
            subset.images[row].fill_(7)
    assert is_right(load(file), root)
    os.utime(one_file(stored, ".pixels"))  # so its digests are checked
    assert is_right(load(file), root)


# --- half-written segments, several processes -----------------------------------------------------


def begun(folder, seconds):
    """A segment without a manifest, of a writer that ended, last written so long ago."""
    segment = Segment(folder)
    segment.append(b"half")
    (folder / f"{segment.name}.records").write_bytes(b"half")
    (folder / f".{segment.name}.json.1.tmp").write_bytes(b"half")
    path, then = folder / f"{segment.name}.pixels", time.time() - seconds
    os.utime(path, (then, then))
    return path, segment


def test_a_half_written_segment_is_ignored_and_removed_once_its_writer_is_gone(
    file, root, stored, capsys
):
    load(file)
    (folder,) = pools(stored)
    old, writer = begun(folder, seconds=100)
    writer.close()
    held, holder = begun(folder, seconds=100)
    young, other = begun(folder, seconds=10)
    other.close()
    assert is_right(load(file), root)
    assert not list(folder.glob(f"*{old.stem}*"))
    for path in (held, young):
        assert len(list(folder.glob(f"*{path.stem}*"))) == 3
    assert is_right(load(file), root) and "note" not in capsys.readouterr().out
    holder.discard()
    assert not held.exists()


@pytest.mark.parametrize("seconds", [100, 10])
def test_a_killed_writers_temporary_files_go_with_a_start_that_is_a_minute_later(
    file, root, stored, seconds
):
    load(file)
    (folder,) = pools(stored)
    left = [folder / f".{ABOUT}.1.tmp", stored / "files" / ".0.files.1.tmp"]
    for path in left:
        path.write_bytes(b"half")
        os.utime(path, (time.time() - seconds,) * 2)
    first = sorted(root.rglob("*.jpg"))[0]
    first.write_bytes(sorted(root.rglob("*.jpg"))[1].read_bytes())  # so the index is written anew
    load(file)
    assert [path.exists() for path in left] == [seconds < 60] * 2


def test_a_segment_that_its_writer_completes_meanwhile_is_not_removed(file, root, stored):
    load(file)
    path = one_file(stored, ".json")
    manifest = path.read_text()
    path.unlink()
    os.utime(path.with_suffix(".pixels"), (0, 0))

    def complete(file, wait=False):
        path.write_text(manifest)
        hold(file, wait)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "hold", complete)
        Pool(path.parent).remove_unfinished()
    assert path.exists() and path.with_suffix(".pixels").exists()
    assert is_right(load(file), root)


def no_lock(*_, **__):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("locks", [True, False])
def test_two_builders_at_once_both_get_the_right_pixels_and_leave_a_right_store(
    file, root, stored, tmp_path, monkeypatch, locks
):
    if not locks:
        for module in (store_module, pool):
            monkeypatch.setattr(module, "hold", no_lock)
    barrier, read = FORK.Barrier(2), reading.read_files

    def together(*given):
        if not locks:  # with locks one waits for the other
            barrier.wait(30)
        return read(*given)

    monkeypatch.setattr(source, "read_files", together)

    def build():
        if locks:
            barrier.wait(30)
        return 0 if is_right(load(file), root) else 1

    said = [tmp_path / f"{number}.txt" for number in range(2)]
    processes = [fork(path, build) for path in said]
    assert [exit_code_of(process) for process in processes] == [0, 0], said[0].read_text()
    assert not half_written(stored)
    assert len(list(pools(stored)[0].glob("*.pixels"))) == (1 if locks else 2)
    counted = Counted(monkeypatch)
    monkeypatch.setattr(source, "read_files", read)
    assert is_right(load(file), root) and counted.read == []


def test_who_waits_for_another_builder_decodes_nothing(file, root, stored, monkeypatch, capsys):
    """Another process holds the lock, prepares all, and frees it."""
    told: list[str] = []
    held: list[bool] = []

    def of_another(file, wait=False):
        if not held:
            held.append(True)
            if not wait:
                raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        elif wait:
            load_elsewhere()
        hold(file, wait)

    def load_elsewhere():
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "hold", lambda *_, **__: None)
            load(file)

    monkeypatch.setattr(store_module, "hold", of_another)
    monkeypatch.setattr(store_module, "say", told.append)
    counted = Counted(monkeypatch)
    assert is_right(load(file), root)
    assert told == ["waiting for another process that prepares the same images"]
    assert len(counted.decoded) <= 24 + 2 * PROBED


def test_a_store_that_is_cleared_while_a_process_prepares_images_harms_it_not(
    file, root, stored, monkeypatch, capsys
):
    read = reading.read_files

    def cleared(*given):
        found = read(*given)
        Store(StoreSettings()).clear([])
        return found

    monkeypatch.setattr(source, "read_files", cleared)
    assert is_right(load(file), root)
    monkeypatch.setattr(source, "read_files", read)
    assert is_right(load(file), root) and not half_written(stored)


def test_a_store_that_is_cleared_harms_no_process_that_has_read_it(file, root, stored):
    load(file)
    data = load(file)
    Store(StoreSettings()).clear([])
    assert not pools(stored) and is_right(data, root)


# --- no store -------------------------------------------------------------------------------------


class Full:
    """The ``os`` of trainer.run.disk, of which the n-th call of a kind below ``stored`` fails."""

    def __init__(self, kind, n, error):
        self.kind, self.left, self.error = kind, n, error

    def __getattr__(self, name):
        real = getattr(os, name)
        if name != self.kind:
            return real

        def call(*arguments):
            self.left -= 1
            if self.left == 0:
                raise OSError(self.error, os.strerror(self.error))
            return real(*arguments)

        return call


ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE)
CALLS = [("write", 1), ("write", 2), ("write", 3), ("fsync", 1), ("fsync", 2), ("fsync", 3)]
CALLS += [("open", 1), ("replace", 1), ("replace", 2), ("replace", 3)]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_a_full_disk_costs_the_store_and_nothing_else(file, root, stored, monkeypatch, number):
    (kind, n), error = CALLS[number], ERRORS[number % len(ERRORS)]
    with monkeypatch.context() as patch:
        patch.setattr(disk, "os", Full(kind, n, error))
        data = load(file)
    assert is_right(data, root)
    why = f"({stored}: {os.strerror(error)}); a next start prepares them again"
    assert f"prepared images are not stored {why}" in data.notes
    assert {subset.cache for subset in data.subsets.values()} == {"ram"}
    assert not half_written(stored)
    data = load(file)
    assert is_right(data, root) and {one.cache for one in data.subsets.values()} == {"store"}


def test_an_index_that_cannot_be_written_costs_only_the_reading(file, root, stored, monkeypatch):
    (stored).mkdir()
    (stored / "files").write_text("a file is in its place")
    assert is_right(load(file), root)
    counted = Counted(monkeypatch)
    data = load(file)
    assert is_right(data, root) and {one.cache for one in data.subsets.values()} == {"store"}
    assert set(counted.read) == set(data.dataset.ids) and len(counted.decoded) <= PROBED


def no_such_user(tmp_path):
    return "~nobody123/store", "~nobody123/store: the user after ~ is not known here"


def a_file(tmp_path):
    (tmp_path / "file").write_text("not ours")
    return tmp_path / "file", f"{tmp_path / 'file'} is no folder, and none can be made there"


def below_a_file(tmp_path):
    place = a_file(tmp_path)[0] / "store"
    return place, f"{place} is no folder, and none can be made there"


def read_only(tmp_path):
    place = tmp_path / "read only"
    place.mkdir(mode=0o500)
    return place, f"{place} cannot be written"


def images_is_a_file(tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "images").write_text("not ours")
    return tmp_path / "odd", f"{tmp_path / 'odd'}: Not a directory"


@pytest.mark.parametrize(
    "place_of", [no_such_user, a_file, below_a_file, read_only, images_is_a_file]
)
@pytest.mark.parametrize("cache", ["auto", "store", "off", "ram"])
def test_without_a_store_a_run_trains_on_the_same_pixels_and_says_why(
    file, root, tmp_path, monkeypatch, capsys, place_of, cache
):
    path, why = place_of(tmp_path)
    if place_of is read_only:
        access = os.access  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda p, mode: p != path and access(p, mode))
        monkeypatch.setattr(Path, "mkdir", denied(path, Path.mkdir))
    monkeypatch.setenv("TRAINER_STORE", str(path))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    data = load(file, f"loader.cache={cache}")
    assert is_right(data, root)
    assert {one.cache for one in data.subsets.values()} == {"off" if cache == "off" else "ram"}
    told = [note for note in data.notes if "not stored" in note]
    assert cache not in ("auto", "store") or len(told) == 1 and why in told[0]
    assert sorted(tmp_path.iterdir()) == before
    if cache == "auto":
        assert main(["--config", str(file), "--runs", str(tmp_path / "runs")]) == 0
        assert why in capsys.readouterr().out


def denied(place, mkdir):
    def make(path, *given, **named):
        if path != place and place in path.parents:
            raise OSError(errno.EACCES, "Permission denied", str(path))
        mkdir(path, *given, **named)

    return make


def test_without_memory_and_without_a_store_images_are_read_anew(file, root, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_STORE", "~nobody123/store")
    monkeypatch.setattr(kept_module, "available_memory", lambda: 1000)
    data = load(file)
    assert is_right(data, root) and {one.cache for one in data.subsets.values()} == {"off"}


def test_a_home_that_is_not_known_is_no_error(file, root, tmp_path, monkeypatch):
    monkeypatch.delenv("TRAINER_STORE")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    data = load(file)
    assert is_right(data, root)
    assert any("the user after ~ is not known here" in note for note in data.notes)


# --- limits ---------------------------------------------------------------------------------------


def make_pool(stored, size, days_ago, extra=b""):
    folder = stored / "images" / secrets.token_hex(16)
    folder.mkdir(parents=True)
    (folder / "0.pixels").write_bytes(bytes(size))
    (folder / ABOUT).write_text("{}")
    then = time.time() - days_ago * 86400
    os.utime(folder / ABOUT, (then, then))
    return folder


def there(*folders):
    return [folder.exists() for folder in folders]


def test_the_least_recently_used_pools_make_room_and_no_more_of_them_than_needed(stored):
    ages = (5, 40, 1, 3)
    folders = [make_pool(stored, 1000, age) for age in ages]
    store = Store(StoreSettings(gigabytes=(4 * 1002 + 500) / 1e9, days=50))
    assert store.room(500) == "" and there(*folders) == [True] * 4
    assert store.room(501) == "" and there(*folders) == [True, False, True, True]
    assert store.room(2000) == "" and there(*folders) == [False, False, True, True]


def test_what_is_in_use_stays_however_old_it_is(stored):
    folders = [make_pool(stored, 1000, age) for age in (90, 80, 2)]
    store = Store(StoreSettings(gigabytes=3500e-9, days=60))
    assert store.room(1000, keep=[folders[0]]) == ""
    assert there(*folders) == [True, False, True]
    assert store.room(1600, keep=[folders[0]]) == "" and there(*folders) == [True, False, False]


def test_a_set_larger_than_the_limit_is_not_stored_and_removes_nothing(
    file, root, stored, monkeypatch
):
    size = 24 * 18 * 24 * 3
    folder = make_pool(stored, 1000, 1)
    data = load(file, f"store.gigabytes={(size - 1) / 1e9}")
    assert is_right(data, root) and folder.exists() and pools(stored) == [folder]
    assert {one.cache for one in data.subsets.values()} == {"ram"}
    (note,) = (note for note in data.notes if "not stored" in note)
    assert "pass the store's limit of" in note
    data = load(file, f"store.gigabytes={(size + 500) / 1e9}")
    assert is_right(data, root) and not folder.exists()
    assert {one.cache for one in data.subsets.values()} == {"store"}


def test_a_set_of_more_than_half_of_the_free_disk_is_not_stored(file, root, stored, monkeypatch):
    size = 24 * 18 * 24 * 3
    free = [2 * size - 2]
    usage = shutil._ntuple_diskusage
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, free[0]))
    data = load(file)
    assert is_right(data, root) and not (stored / "images").exists()
    assert any(f"more than half of what is free in {stored}" in note for note in data.notes)
    free[0] = 2 * size
    assert {one.cache for one in load(file).subsets.values()} == {"store"}


def test_a_start_counts_as_use(file, stored):
    load(file)
    about = one_file(stored, ABOUT)
    os.utime(about, (0, 0))
    load(file)
    assert time.time() - about.stat().st_mtime < 60


def test_pools_that_were_not_used_for_long_go_where_there_is_room_too(file, root, stored):
    old, young = make_pool(stored, 10, 61), make_pool(stored, 10, 59)
    assert is_right(load(file), root) and there(old, young) == [False, True]
    assert is_right(load(file, "store.days=58", "dataset.decode=fast"), root)
    assert there(old, young) == [False, False]


def test_a_pool_without_a_readable_about_json_is_listed_and_removed_like_others(stored):
    first, second = make_pool(stored, 100, 1), make_pool(stored, 200, 2)
    (first / ABOUT).unlink()
    (second / ABOUT).write_text("[")
    found = Store(StoreSettings()).entries()
    assert [one.folder for one in found] == sorted([first, second])
    assert [one.made_by for one in found] == ["?", "?"]
    assert Store(StoreSettings()).clear([]) >= 300 and there(first, second) == [False, False]


def test_the_environment_and_the_file_set_place_and_limits(file, root, tmp_path, monkeypatch):
    for name, value in (("", tmp_path / "e"), ("_GIGABYTES", 0.5), ("_DAYS", "2")):
        monkeypatch.setenv(f"TRAINER_STORE{name}", str(value))
    store = Store(StoreSettings())
    assert (store.root, store.limit, store.age) == (tmp_path / "e", 5e8, 2 * 86400)
    store = Store(StoreSettings(root="~/x", gigabytes=3, days=4))
    assert (store.root, store.limit) == (Path.home() / "x", 3e9)
    assert store.age == 4 * 86400
    for name in ("", "_GIGABYTES", "_DAYS"):
        monkeypatch.setenv(f"TRAINER_STORE{name}", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = Store(StoreSettings())
    assert (store.root, store.limit) == (tmp_path / "cache" / "yaml-trainer", 1e11)
    assert store.age == 60 * 86400
    data = load(file, f"store.root={tmp_path / 'own'}")
    assert is_right(data, root) and len(pools(tmp_path / "own")) == 1


@pytest.mark.parametrize("name", ["TRAINER_STORE_GIGABYTES", "TRAINER_STORE_DAYS"])
@pytest.mark.parametrize("value", ["much", "0", "-1", "nan", "1e9x", "1,5"])
def test_a_limit_in_the_environment_that_is_no_number_is_refused(
    file, stored, tmp_path, monkeypatch, capsys, name, value
):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"{name} is '{value}'; expected a number above 0"):
        Store(StoreSettings())
    assert main(["--config", str(file), "--runs", str(tmp_path / "runs")]) == 2
    told = capsys.readouterr().err
    assert f"{name} is '{value}'" in told and "Traceback" not in told


def test_no_limit_may_be_written_as_infinity(stored, monkeypatch):
    monkeypatch.setenv("TRAINER_STORE_GIGABYTES", "inf")
    monkeypatch.setenv("TRAINER_STORE_DAYS", "inf")
    folder = make_pool(stored, 10, 10_000)
    assert Store(StoreSettings()).room(10) == "" and folder.exists()


def test_clearing_touches_only_what_the_store_has_made(file, stored):
    load(file)
    ours = pools(stored)
    (stored / "images" / "cats").mkdir()
    (stored / "images" / "cats" / ABOUT).write_text("{}")
    (stored / "files" / "thesis.txt").write_text("not ours")
    Store(StoreSettings()).clear([])
    assert there(*ours) == [False] and not list((stored / "files").glob("*.files"))
    assert (stored / "images" / "cats" / ABOUT).exists()
    assert (stored / "files" / "thesis.txt").exists()


def test_a_lock_is_the_systems_own_and_ends_with_the_process(stored):
    store = Store(StoreSettings())
    with store.builder("one"):
        (path,) = (stored / "locks").iterdir()
        with open(path) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with store.builder("another"):
            pass
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_image_of_the_store_is_that_of_its_own_transforms(file, root, tmp_path, stored):
    """Several pools and sizes in one store, used in turns."""
    size = {"train": (18, 24), "val": (18, 24), "test": (18, 24)}
    for sides in ((18, 24), (24, 18), (9, 9), (18, 24), (9, 9)):
        text = f"[{{name: Resize, size: [{sides[0]}, {sides[1]}]}}]"
        assert is_right(load(recipe(file, root, text, RESIZED)), root, size | {"train": sides})
    assert len(pools(stored)) == 3


def test_what_one_pool_has_of_several_segments_is_right(file, root, stored, tmp_path):
    every = sorted(root.rglob("*.*"))
    for one in every[:6] + every[13:19]:
        (tmp_path / "part" / one.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(one, tmp_path / "part" / one.parent.name)
    load(recipe(tmp_path / "part.yaml", tmp_path / "part"))
    data = load(file)
    assert is_right(data, root) and len(list(pools(stored)[0].glob("*.pixels"))) == 2
    images, _ = data.subsets["train"].read(torch.arange(-3, 5) % len(data.subsets["train"]), 0)
    assert len(images) == 8
    assert is_right(load(file), root)
