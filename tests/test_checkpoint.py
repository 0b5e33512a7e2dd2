"""Checkpoints: on the disk before they are seen, never lost to a later one, damage never read."""

import concurrent.futures
import copy
import errno
import hashlib
import json
import os
import random
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.loop.record import save
from trainer.loop.resume import compare
from trainer.loop.snapshot import restore_job, snapshot
from trainer.loop.state import State
from trainer.process.errors import NonFiniteLoss, RunError
from trainer.run import disk
from trainer.run.checkpoint import (
    bring_back_best,
    checkpoints,
    is_finite,
    load_checkpoint,
    problem_of,
    read_state,
    remove_leftovers,
    write_checkpoint,
)
from trainer.run.folder import create_run
from trainer.run.log import Lengths, RunLog
from trainer.run.saver import Saver
from trainer.run.tensors import load_tensors, save_tensors

KINDS = ("open", "write", "fsync", "close", "replace", "mkdir")


def state_of(step: int) -> dict:
    """A small state that tells which step it is of."""
    return {
        "model": {"weight": torch.full((3, 5), float(step))},
        "optimizer": {"state": {0: {"momentum_buffer": torch.full((3, 5), -float(step))}}},
        "counters": {"step": step},
    }


def write(run: Path, step: int, keep: int = 9, best: dict | None = None) -> Path:
    before = checkpoints(run)
    write_checkpoint(run, step, state_of(step), keep, best)
    (new,) = set(checkpoints(run)) - set(before)
    return new


def save_best(run: Path, step: int) -> dict:
    """model.pt of an epoch that ended with ``step``."""
    return save_tensors(run / "model.pt", state_of(step)["model"])


def steps(run: Path) -> list[str]:
    return [folder.name.removeprefix("step-").lstrip("0") for folder in checkpoints(run)]


def load(run: Path) -> tuple[int, list[str]]:
    """The step that the run goes on from, and what it says about others."""
    said: list[str] = []
    found = load_checkpoint(run, said.append)
    assert found is not None
    step = found[1]["counters"]["step"]
    assert found[1]["model"]["weight"].eq(step).all()
    return step, said


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, and the contents of its files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


class FaultyOs:
    """The ``os`` of trainer.run.disk: notes each call and its path; fails the n-th of a kind."""

    def __init__(self, fail: str = "", n: int = 0) -> None:
        self.fail, self.n = fail, n
        self.calls: list[tuple[str, str, str]] = []
        self.paths: dict[int, str] = {}

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in KINDS:
            return real

        def call(*arguments):
            first = arguments[0]
            path = self.paths.get(first, str(first)) if isinstance(first, int) else str(first)
            target = str(arguments[1]) if name == "replace" else ""
            self.calls.append((name, path, target))
            fails = name == self.fail and sum(kind == name for kind, *_ in self.calls) == self.n
            if fails and name != "close":
                raise OSError(errno.ENOSPC, "No space left on device", path)
            result = real(*arguments)
            if name == "open":
                self.paths[result] = path
            if fails:
                raise OSError(errno.EIO, "Input/output error")
            return result

        return call


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def calls(monkeypatch):
    """The calls that trainer.run.disk makes from now on."""
    faulty = FaultyOs()
    monkeypatch.setattr(disk, "os", faulty)
    return faulty.calls


# --- on the disk before it is seen ----------------------------------------------------------------


def test_a_file_is_on_the_disk_before_its_name_and_its_name_before_the_call_returns(run, calls):
    disk.write_file(run / "a.json", b"content")
    (_, temporary, _), *_ = calls
    assert calls == [
        ("open", temporary, ""),
        ("write", temporary, ""),
        ("fsync", temporary, ""),
        ("close", temporary, ""),
        ("replace", temporary, str(run / "a.json")),
        ("open", str(run), ""),
        ("fsync", str(run), ""),
        ("close", str(run), ""),
    ]


def test_each_file_of_a_checkpoint_is_on_the_disk_before_the_checkpoint_has_its_name(run, calls):
    """All tensors before the manifest, all before the name; folders after what is new."""
    best = save_best(run, 1)
    calls.clear()
    final = write(run, 2, best=best)
    folder = str(final.parent)
    made = {path: place for place, (kind, path, _) in enumerate(calls) if kind == "mkdir"}
    (temporary,) = set(made) - {folder}
    synced = [(path, place) for place, (kind, path, _) in enumerate(calls) if kind == "fsync"]
    commit = calls.index(("replace", temporary, str(final)))
    named = {}
    for name in ("weights.pt", "state.pt", "best.pt", "MANIFEST.json"):
        (named[name],) = (
            place
            for place, (kind, _, target) in enumerate(calls)
            if kind == "replace" and target == f"{temporary}/{name}"
        )
        content = calls[named[name]][1]
        last_write = max(
            p for p, (kind, path, _) in enumerate(calls) if (kind, path) == ("write", content)
        )
        assert any(path == content and last_write < p < named[name] for path, p in synced), name
        assert any(path == temporary and named[name] < p < commit for path, p in synced), name
    assert max(named.values()) == named["MANIFEST.json"] < commit
    assert any(path == str(run) and made[folder] < p < commit for path, p in synced)
    assert any(path == folder and made[temporary] < p < commit for path, p in synced)
    assert any(path == folder and commit < p for path, p in synced)


def test_older_checkpoints_go_only_after_the_new_one_is_on_the_disk(run, calls):
    old = write(run, 1)
    calls.clear()
    new = write(run, 2, keep=1)
    commit = next(p for p, call in enumerate(calls) if call[0] == "replace" and call[2] == str(new))
    on_disk = next(
        p for p, call in enumerate(calls) if p > commit and call[:2] == ("fsync", str(new.parent))
    )
    going = [p for p, call in enumerate(calls) if call[:2] == ("replace", str(old))]
    assert going and min(going) > on_disk


def test_the_name_of_a_new_folder_is_on_the_disk_before_the_call_returns(run, calls):
    disk.make_folder(run / "new")
    assert [call[:2] for call in calls][0] == ("mkdir", str(run / "new"))
    assert ("fsync", str(run), "") in calls


def test_the_names_of_a_new_run_and_of_its_folder_are_on_the_disk(tmp_path, calls):
    new = create_run(tmp_path, "first")
    synced = {path for kind, path, _ in calls if kind == "fsync"}
    assert {str(tmp_path), str(new.parent)} <= synced


def test_what_is_appended_is_on_the_disk_after_sync(run, calls):
    file = disk.AppendedFile(run / "metrics.jsonl")
    file.write(b"a line\n")
    assert not [call for call in calls if call[0] == "fsync"]
    file.sync()
    file.close()
    assert calls[-2:] == [
        ("fsync", str(run / "metrics.jsonl"), ""),
        ("close", str(run / "metrics.jsonl"), ""),
    ]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.binary(max_size=40), max_size=12))
def test_in_whatever_pieces_it_comes_a_file_and_its_digest_are_of_the_whole(
    run, monkeypatch, pieces
):
    monkeypatch.setattr(disk, "PIECE", 16)
    entry = disk.write_with(run / "a", lambda file: [file.write(piece) for piece in pieces])
    content = b"".join(pieces)
    assert (run / "a").read_bytes() == content
    assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("images", [0, 1, 4096, 4097, 9000])
def test_a_long_json_file_is_that_of_the_json_module(run, images):
    names = {f'a/{i} "\udce9é.jpg': f"{i:064x}" for i in range(images)}
    content = {"ratios": [8.0, 1], "train": names, "pool": False, "val": {"b": "c"}}
    disk.write_long_json(run / "a.json", content)
    text = json.dumps(content, ensure_ascii=False) + "\n"
    assert (run / "a.json").read_bytes() == text.encode(errors="backslashreplace")
    disk.write_long_json(run / "a.json", {})
    assert (run / "a.json").read_bytes() == b"{}\n"


def test_what_was_appended_after_the_state_is_cut_off(run):
    (run / "metrics.jsonl").write_bytes(b"one\ntwo\nthr")
    file = disk.AppendedFile(run / "metrics.jsonl", length=4)
    assert (run / "metrics.jsonl").read_bytes() == b"one\n" and file.length == 4
    file.write(b"2\n")
    file.close()
    assert (run / "metrics.jsonl").read_bytes() == b"one\n2\n"
    with pytest.raises(RunError, match="lines of it are lost"):
        disk.AppendedFile(run / "metrics.jsonl", length=7)


def test_a_log_brings_metrics_and_events_to_the_disk(run, config_file, calls):
    with RunLog(run, load_config(config_file)) as log:
        log.step(1, 1, {"train/loss": 0.5})
        assert log.flush().metrics == (run / "metrics.jsonl").stat().st_size > 0
        log.sync()
    synced = sorted(Path(path).name for kind, path, _ in calls if kind == "fsync")
    assert synced[0].startswith("events.out.tfevents.") and synced[1:] == ["metrics.jsonl"]


def test_what_the_system_takes_in_parts_is_written_in_full(run, monkeypatch):
    class Slow:
        def __getattr__(self, name):
            return getattr(os, name)

        def write(self, descriptor, data):
            return os.write(descriptor, data[:7])

    monkeypatch.setattr(disk, "os", Slow())
    content = bytes(range(256))
    disk.write_file(run / "a", content)
    assert (run / "a").read_bytes() == content
    write(run, 1)
    assert load(run) == (1, [])


# --- a disk that fails ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_call_fails_the_earlier_checkpoint_stays_and_no_litter(run, monkeypatch, kind):
    """The n-th call of a kind fails, for every n that there is."""
    for n in range(1, 1000):
        shutil.rmtree(run)
        run.mkdir()
        best = save_best(run, 1)
        write(run, 2, best=best)
        before = tree(run)
        faulty = FaultyOs(kind, n)
        monkeypatch.setattr(disk, "os", faulty)
        try:
            final = write(run, 3, keep=1, best=best)
        except RunError as error:
            assert "checkpoint" in str(error)
            assert before.items() <= tree(run).items()
            assert load(run)[0] in (2, 3)
        else:  # what is too old may stay for once
            assert problem_of(final) is None and load(run) == (3, [])
            fired = Counter(call[0] for call in faulty.calls)[kind] >= n
            assert not fired or kind == "replace"
            if not fired:
                break
        monkeypatch.setattr(disk, "os", os)
        assert all(problem_of(folder) is None for folder in checkpoints(run))
        remove_leftovers(run)
        assert not list(run.rglob("*.tmp*"))
    assert n > 1
    assert steps(run) == ["3"]


@pytest.mark.parametrize("kind", ["open", "write", "fsync", "close", "replace"])
def test_a_file_that_cannot_be_replaced_stays_as_it_was(run, monkeypatch, kind):
    best = save_best(run, 1)
    monkeypatch.setattr(disk, "os", FaultyOs(kind, 1))
    with pytest.raises(OSError):
        save_best(run, 2)
    assert disk.sha256_of(run / "model.pt") == best["sha256"]
    assert [path.name for path in run.iterdir()] == ["model.pt"]


def test_the_digest_is_of_what_was_meant_not_of_what_the_disk_took(run, monkeypatch):
    class Lying:
        state = False

        def __getattr__(self, name):
            return getattr(os, name)

        def open(self, path, *rest):
            self.state = Path(path).name.startswith(".state.pt")
            return os.open(path, *rest)

        def write(self, descriptor, data):
            return os.write(descriptor, bytes(len(data)) if self.state else data)

    monkeypatch.setattr(disk, "os", Lying())
    folder = write(run, 1)
    assert problem_of(folder) == "state.pt does not hold what was written"


# --- which ones are kept --------------------------------------------------------------------------


def test_the_newest_are_kept_by_number_whatever_their_text_and_their_clocks(run):
    for age, step in enumerate((9, 10, 100, 999_999_999, 1_000_000_000, 10_000_000_000)):
        folder = write(run, step, keep=3)
        os.utime(folder, (10**9 - age, 10**9 - age))  # each seems older than the one before
    assert steps(run) == ["999999999", "1000000000", "10000000000"]
    assert load(run) == (10_000_000_000, [])


def test_what_was_just_written_is_kept_whatever_is_there(run):
    write(run, 100)
    new = write(run, 5, keep=1)
    assert problem_of(new) is None


def test_a_second_state_of_a_step_stands_beside_the_first_and_is_the_newer(run):
    first = write(run, 7)
    before = tree(first)
    for number in range(2, 12):
        state = state_of(7)
        state["counters"]["number"] = number
        write_checkpoint(run, 7, state, 99, None)
    assert tree(first) == before
    newest = load_checkpoint(run, print)
    assert newest is not None and newest[1]["counters"]["number"] == 11
    write(run, 8, keep=2)
    assert steps(run) == ["7.11", "8"]


def test_damaged_ones_are_named_set_aside_and_not_counted_among_those_to_keep(run):
    folders = [write(run, step) for step in (1, 2, 3, 4)]
    for folder in folders[2:]:
        (folder / "state.pt").write_bytes(b"")
    step, said = load(run)
    assert step == 2
    assert [str(folder) in line for folder, line in zip(folders[:1:-1], said, strict=True)] == [
        True
    ] * 2
    assert steps(run) == ["1", "2"]
    assert all(folder.with_name(f"{folder.name}.damaged").is_dir() for folder in folders[2:])
    write(run, 3, keep=2)
    assert steps(run) == ["2", "3"]
    (checkpoints(run)[-1] / "state.pt").unlink()
    assert load(run)[0] == 2  # its name with .damaged is taken already
    assert len(list(run.glob("checkpoints/*.damaged*"))) == 3


def test_where_all_are_damaged_nothing_is_changed_and_training_does_not_begin_anew(run):
    for step in (1, 2):
        (write(run, step) / "state.pt").write_bytes(b"x")
    before = tree(run)
    with pytest.raises(RunError, match="no checkpoint of it is whole"):
        load_checkpoint(run, print)
    assert tree(run) == before


def test_a_run_without_checkpoint_has_none(run):
    assert load_checkpoint(run, print) is None


# --- damage ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with two checkpoints, both with best.pt."""
    run = tmp_path_factory.mktemp("whole")
    best = save_best(run, 1)
    for step in (2, 3):
        write(run, step, best=best)
    return run


def test_a_flipped_bit_in_any_byte_of_a_manifest_is_noticed(whole, tmp_path):
    folder = Path(shutil.copytree(checkpoints(whole)[-1], tmp_path / "step-000000003"))
    content = (folder / "MANIFEST.json").read_bytes()
    for place in range(len(content)):
        for bit in {5, place % 8}:  # the fifth makes a capital of a letter
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            (folder / "MANIFEST.json").write_bytes(damaged)
            assert problem_of(folder) is not None, bytes(damaged)


def damage(folder: Path, name: str, kind: str, place: float, bit: int) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    at = int(place * len(data))
    path.unlink()
    if kind == "flip":
        data[at] ^= 1 << bit
        path.write_bytes(data)
    elif kind == "cut":
        path.write_bytes(data[: min(at, len(data) - 2)])  # JSON can do without its last newline
    elif kind == "longer":
        path.write_bytes(data + bytes(bit + 1))
    elif kind == "zeros":
        path.write_bytes(bytes(len(data)))
    elif kind == "folder":
        path.mkdir()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(["state.pt", "weights.pt", "best.pt", "MANIFEST.json"]),
    kind=st.sampled_from(["flip", "flip", "flip", "cut", "longer", "zeros", "missing", "folder"]),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_whatever_is_damaged_the_one_before_is_taken(whole, tmp_path, name, kind, place, bit):
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    damage(checkpoints(run)[-1], name, kind, place, bit)
    if name == "best.pt":  # which model.pt holds too, unless that was damaged as well
        assert load(run) == (3, [])
        (run / "model.pt").unlink()
    step, said = load(run)
    assert step == 2 and len(said) == 1 and "is damaged" in said[0]


def forge(folder: Path, manifest: dict) -> None:
    """Another manifest, which certifies itself as ours do."""
    text = json.dumps(manifest, sort_keys=True)
    manifest |= {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def test_a_forged_manifest_that_is_right_is_taken(whole, tmp_path):
    folder = Path(shutil.copytree(checkpoints(whole)[-1], tmp_path / "step-000000003"))
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    forge(folder, {key: manifest[key] for key in manifest if key != "sha256"})
    assert problem_of(folder) is None


NO_ENTRIES: list[Any] = [None, 1, "x", [], {}, {"size": 1}]
NO_FILES: list[Any] = [None, [], "state.pt", {}, {"best.pt": {}}, {"state.pt": {}}]
NO_FILES += [{"state.pt": entry, "weights.pt": entry} for entry in NO_ENTRIES]


@pytest.mark.parametrize("files", NO_FILES, ids=str)
def test_a_manifest_of_another_form_is_no_manifest(whole, tmp_path, files):
    folder = Path(shutil.copytree(checkpoints(whole)[-1], tmp_path / "step-000000003"))
    forge(folder, {"files": files})
    assert problem_of(folder) is not None


@pytest.mark.parametrize("content", ["null", "[]", "1", "{}", "", "{", "[" * 99_999], ids=len)
def test_what_is_no_json_object_is_no_manifest(whole, tmp_path, content):
    folder = Path(shutil.copytree(checkpoints(whole)[-1], tmp_path / "step-000000003"))
    (folder / "MANIFEST.json").write_text(content)
    assert problem_of(folder) is not None


def test_a_manifest_cannot_name_files_elsewhere(whole, tmp_path):
    folder = Path(shutil.copytree(checkpoints(whole)[-1], tmp_path / "step-000000003"))
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    del manifest["sha256"]
    shutil.copy(folder / "best.pt", tmp_path)
    manifest["files"]["../best.pt"] = manifest["files"]["best.pt"]
    forge(folder, manifest)
    assert problem_of(folder) is not None


@pytest.mark.parametrize("value", [None, "12", -1, 10**30, float("nan"), [], {}], ids=str)
@pytest.mark.parametrize("key", ["size", "sha256"])
def test_a_manifest_of_other_numbers_is_noticed(whole, tmp_path, key, value):
    folder = Path(shutil.copytree(checkpoints(whole)[-1], tmp_path / "step-000000003"))
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    del manifest["sha256"]
    manifest["files"]["state.pt"][key] = value
    forge(folder, manifest)
    assert problem_of(folder) is not None


# --- the best weights -----------------------------------------------------------------------------


def ahead(run):
    save_best(run, 4)


def overwritten(run):
    with (run / "model.pt").open("r+b") as file:
        file.write(random.Random(0).randbytes(100))


def removed(run):
    (run / "model.pt").unlink()


def untouched(run):
    pass


@pytest.mark.parametrize("happened", [ahead, overwritten, removed, untouched])
@pytest.mark.parametrize("best_step", [1, 2, 3])
def test_the_best_weights_of_a_state_come_back_whatever_became_of_model_pt(
    run, happened, best_step
):
    """Best in an earlier epoch, in that of the checkpoint before, and in the state's own."""
    for step in (1, 2, 3):
        if step <= best_step:
            best = save_best(run, step)
        folder = write(run, step, keep=1, best=best)
    happened(run)
    found = load_checkpoint(run, print)
    assert found is not None and found[0] == folder
    entry = bring_back_best(found[0], print)
    weights = torch.load(run / "model.pt", weights_only=True)
    assert weights["weight"].eq(best_step).all()
    assert entry is not None and entry["sha256"] == disk.sha256_of(run / "model.pt")


def test_the_best_weights_lie_in_two_places_of_which_one_may_be_damaged(run):
    best = save_best(run, 1)
    first, second = (write(run, step, best=best) for step in (2, 3))
    assert (first / "best.pt").samefile(second / "best.pt")  # written once
    overwritten(run)  # a user writes into model.pt
    assert problem_of(first) is None and problem_of(second) is None
    found = load_checkpoint(run, print)
    assert found is not None and bring_back_best(found[0], print) == best
    (second / "best.pt").write_bytes(b"")  # of both checkpoints
    found = load_checkpoint(run, print)
    assert found is not None and found[0] == second
    said: list[str] = []
    assert bring_back_best(found[0], said.append) == best
    assert len(said) == 1 and "best.pt is damaged" in said[0]
    assert disk.sha256_of(second / "best.pt") == best["sha256"]  # mended, for those to come
    overwritten(run)
    assert problem_of(second) is None and problem_of(first) is not None


def test_the_best_weights_are_written_once_and_are_two_files_of_which_one_is_the_users(run):
    with Saver(run, 9, lambda: None) as saver:
        for step in (1, 2, 3):
            card = {"classes": ["a"]} if step == 1 else None
            saver.save(step, state_of(step), card, True)
    first, *later = checkpoints(run)
    assert disk.sha256_of(run / "model.pt") == disk.sha256_of(first / "weights.pt")
    assert not (run / "model.pt").samefile(first / "weights.pt")
    assert not (first / "best.pt").exists()
    assert not (later[0] / "best.pt").samefile(first / "weights.pt")  # one may be damaged
    assert (later[0] / "best.pt").samefile(later[1] / "best.pt")


def test_a_better_epoch_between_two_checkpoints_is_the_one_that_goes_along(run):
    with Saver(run, 9, lambda: None) as saver:
        for step, is_best, is_saved in ((1, 1, 1), (2, 0, 1), (3, 1, 0), (4, 0, 1)):
            saver.save(step, state_of(step), {"classes": []} if is_best else None, bool(is_saved))
    for folder, best_step in zip(checkpoints(run), (1, 1, 3), strict=True):
        (run / "model.pt").unlink(missing_ok=True)
        bring_back_best(folder, print)
        assert load_tensors(run / "model.pt")["weight"].eq(best_step).all()


def test_a_damaged_file_costs_no_other_checkpoint_though_model_pt_is_ahead(run):
    with Saver(run, 2, lambda: None) as saver:
        for step, is_best, is_saved in ((1, 1, 1), (2, 0, 1), (3, 1, 0)):
            saver.save(step, state_of(step), {"classes": []} if is_best else None, bool(is_saved))
    with (checkpoints(run)[-1] / "best.pt").open("r+b") as file:  # a bad sector, under any name
        file.write(b"damaged")
    assert load(run)[0] == 1


def test_without_links_the_best_weights_are_copied(run, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(disk, "link", no_links)
    best = save_best(run, 1)
    folders = [write(run, step, best=best) for step in (2, 3)]
    assert all(disk.sha256_of(folder / "best.pt") == best["sha256"] for folder in folders)
    assert all(problem_of(folder) is None for folder in folders)


def test_damaged_weights_are_not_taken_though_model_pt_holds_the_same(run):
    with Saver(run, 9, lambda: None) as saver:
        saver.save(1, state_of(1), None, True)
        saver.save(2, state_of(2), {"classes": []}, True)
    (checkpoints(run)[-1] / "weights.pt").write_bytes(b"")
    assert load(run)[0] == 1


@pytest.mark.parametrize("name", ["weights.pt", "state.pt"])
def test_a_manifest_that_leaves_a_file_out_is_no_manifest(whole, tmp_path, name):
    folder = Path(shutil.copytree(checkpoints(whole)[-1], tmp_path / "step-000000003"))
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    del manifest["sha256"], manifest["files"][name]
    forge(folder, manifest)
    assert problem_of(folder) is not None


def test_a_checkpoint_of_an_older_form_is_told_as_such(whole, tmp_path):
    folder = Path(shutil.copytree(checkpoints(whole)[-1], tmp_path / "step-000000003"))
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    del manifest["sha256"]
    forge(folder, manifest | {"schema": 2})
    assert problem_of(folder) == "its form is 2, and this version reads 3"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mkdir"])
def test_whatever_call_fails_the_best_weights_and_their_copy_are_whole_and_no_litter(
    run, monkeypatch, kind
):
    for n in range(1, 99):
        shutil.rmtree(run)
        run.mkdir()
        card = {"classes": ["a"]}
        best = write_checkpoint(run, 1, state_of(1), 9, None, card)
        faulty = FaultyOs(kind, n)
        monkeypatch.setattr(disk, "os", faulty)
        try:
            write_checkpoint(run, 2, state_of(2), 9, best, card)
            failed = False
        except RunError:
            failed = True
        monkeypatch.setattr(disk, "os", os)
        assert load(run)[0] in ((1, 2) if failed else (2,))
        bring_back_best(checkpoints(run)[-1], print)
        step = load(run)[0]
        assert load_tensors(run / "model.pt")["weight"].eq(step).all()
        assert not [path for path in run.rglob("*") if "tmp" in path.name]
        if sum(name == kind for name, *_ in faulty.calls) < n:
            break
    assert n > 2


def test_the_best_weights_and_their_copy_are_on_the_disk_before_their_names(run, calls):
    write_checkpoint(run, 1, state_of(1), 9, None, {"classes": ["a"]})
    for name in ("model.pt", "weights.pt"):
        ((place, (_, temporary, target)),) = (
            (place, call)
            for place, call in enumerate(calls)
            if call[0] == "replace" and Path(call[2]).name == name
        )
        last_write = max(p for p, call in enumerate(calls) if call[:2] == ("write", temporary))
        assert any(c[:2] == ("fsync", temporary) for c in calls[last_write:place]), name
        assert ("fsync", str(Path(target).parent), "") in calls[place:], name
        assert any(c[:2] == ("close", temporary) for c in calls[last_write:place]), name


def test_where_model_pt_was_changed_the_best_weights_come_from_an_earlier_checkpoint(run):
    best = save_best(run, 1)
    write(run, 2, best=best)
    for happened in (overwritten, removed):
        happened(run)
        folder = write(run, 3, best=best)
        assert disk.sha256_of(folder / "best.pt") == best["sha256"]


def test_weights_that_changed_while_the_run_went_on_are_not_taken_for_the_best(run):
    best = save_best(run, 1)
    overwritten(run)
    with pytest.raises(RunError, match=r"model\.pt was changed"):
        write(run, 2, best=best)
    remove_leftovers(run)
    assert tree(run).keys() == {"model.pt", "checkpoints"}


def test_a_run_without_a_best_epoch_goes_on_without_one(run):
    folder = write(run, 1)
    assert bring_back_best(folder, print) is None
    assert not (run / "model.pt").exists()


# --- links ----------------------------------------------------------------------------------------


def test_checkpoints_that_are_a_link_are_refused_and_nothing_behind_it_is_touched(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write(other, 1)
    (other / "checkpoints" / "step-000000009.tmp-1").mkdir()
    (run / "checkpoints").symlink_to(other / "checkpoints")
    before = tree(other)
    for act in (
        lambda: write(run, 2, keep=1),
        lambda: load_checkpoint(run, print),
        lambda: remove_leftovers(run),
    ):
        with pytest.raises(RunError, match="is a link"):
            act()
    assert tree(other) == before


def test_nothing_is_read_or_removed_through_a_link_with_a_checkpoints_name(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    elsewhere = write(other, 5)
    write(run, 1)
    names = ("step-000000000", "step-000000009", "step-000000009.tmp-1", ".model.pt.1.tmp")
    for name in names:
        (run / ("" if name.endswith(".tmp") else "checkpoints") / name).symlink_to(elsewhere)
    before = tree(other)
    assert load(run) == (1, [])
    write(run, 2, keep=1)
    remove_leftovers(run)
    assert steps(run) == ["2"]
    assert tree(other) == before
    assert not list(run.rglob("*.tmp*"))


def test_a_write_goes_into_a_file_of_its_own_and_not_through_a_link(run, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (run / "model.pt").symlink_to(tmp_path / "precious")
    (run / "metrics.jsonl").symlink_to(tmp_path / "precious")
    save_best(run, 1)
    with pytest.raises(OSError):
        disk.AppendedFile(run / "metrics.jsonl")
    assert (tmp_path / "precious").read_text() == "precious"


# --- what is no number ----------------------------------------------------------------------------


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))


def trained() -> tuple[dict, dict]:
    """Weights (batch norm's statistics among them) and an optimizer's state, after a step."""
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    model(torch.ones(4, 1, 4, 4)).sum().backward()
    optimizer.step()
    return copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())


def places(value, path=()):
    """Where the tensors of floating-point numbers are."""
    if isinstance(value, torch.Tensor):
        return [path] if value.is_floating_point() else []
    items = value.items() if isinstance(value, dict) else ()
    return [place for key, item in items for place in places(item, (*path, key))]


PLACES = [
    (part, place)
    for part, value in zip(("model", "optimizer"), trained(), strict=True)
    for place in places(value)
]


@pytest.mark.parametrize("value", [float("nan"), float("-inf")], ids=str)
def test_a_state_that_is_no_number_is_never_written_and_displaces_none(run, value):
    """Each tensor in turn: weights, batch norm's statistics, the optimizer's averages."""
    assert len(PLACES) > 20
    best = save_best(run, 1)
    write(run, 1, best=best)
    before = tree(run)
    for part, place in PLACES:
        weights, optimizer = trained()
        state = state_of(2) | {"model": weights, "optimizer": optimizer}
        tensor = state[part]
        for key in place:
            tensor = tensor[key]
        tensor.view(-1)[-1] = value
        with Saver(run, 1, lambda: None, best) as saver:
            saver.save(2, state, {"classes": []}, True)
            with pytest.raises(NonFiniteLoss, match="after step 2; that state is not saved"):
                saver.wait()
        assert tree(run) == before, place


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_value_anywhere_in_a_tensor_of_any_layout_is_noticed(dtype):
    large = torch.zeros(2**19 + 3, dtype=dtype)
    turned = torch.zeros(6, 5, 4, 3, dtype=dtype).permute(3, 1, 0, 2)
    for tensor in (large, large[3:], large[::2], turned):
        for place in (0, tensor.numel() // 2, tensor.numel() - 1):
            assert is_finite({"a": [tensor]})
            at = np.unravel_index(place, tensor.shape)
            tensor[at] = float("nan")
            assert not is_finite({"a": [tensor]})
            assert not is_finite((0, {"b": tensor}))
            tensor[at] = 0


# --- beside training ------------------------------------------------------------------------------


class Held:
    """A disk that takes its time: until ``let_go``, no state is written."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.let_go = self.event.set

    def __call__(self) -> None:
        assert self.event.wait(20)


def test_training_may_go_on_at_once_and_the_file_still_holds_the_moment(run, config_file):
    optimizer = "optimizer={name: AdamW, lr: 0.01, amsgrad: true}"
    overrides = [
        optimizer,
        "scheduler.name=OneCycleLR",
        "model={name: VGG, depth: 11, batch_norm: true, variant: cifar}",
    ]
    job = prepare(load_config(config_file, overrides), print)
    images, labels = next(job.train_loader.epoch())

    def step():
        job.loss_fn(job.model(images), labels).backward()
        job.optimizer.step()
        job.schedule.after_step()

    step()
    state = State()
    state.step, state.best, state.rates, state.speeds = 1, {"step": 1}, [0.5], [7.0]
    state.means.add(3.0, 1.0, 2)
    disk_is_slow = Held()
    with RunLog(run, job.config) as log, Saver(run, 9, disk_is_slow) as saver:
        expected = copy.deepcopy(snapshot(job, state, log.flush()))
        save(job, state, log, saver, best_metrics={"step": 1})
        step()
        for tensor in job.model.state_dict().values():
            tensor.zero_()
        for kept in job.optimizer.state.values():
            for tensor in kept.values():
                tensor.zero_()
        state.step, state.epoch = 5, 5
        state.means.add(9.0, 4.0, 7)
        state.best["step"] = 5
        state.rates.append(1.0)
        state.speeds.append(1.0)
        disk_is_slow.let_go()
    saved = read_state(checkpoints(run)[-1])
    assert saved.keys() == expected.keys()
    assert_equal(saved, expected)
    assert_equal(load_tensors(run / "model.pt"), expected["model"])


@pytest.mark.parametrize("change", ["a tensor less", "a tensor more", "a shape", "a part less"])
def test_a_state_of_another_model_is_refused(config_file, change):
    job = prepare(load_config(config_file), print)
    content = snapshot(job, State(), Lengths())
    restore_job(job, content)
    name = next(iter(content["model"]))
    if change == "a tensor less":
        del content["model"][name]
    elif change == "a tensor more":
        content["model"]["more"] = torch.ones(1)
    elif change == "a shape":
        content["model"][name] = torch.ones(1)
    else:
        del content["schedule"]
    with pytest.raises(RunError, match="does not fit this run"):
        restore_job(job, content)


def test_a_state_of_another_split_is_refused(config_file, run):
    job = prepare(load_config(config_file), print)
    content = snapshot(job, State(), Lengths())
    compare(job, content, run, print)
    with pytest.raises(RunError, match="another split.*Bring them back, or start a new run"):
        compare(job, content | {"split": "0" * 64}, run, print)


def assert_equal(a, b):
    if isinstance(b, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(b, dict):
        assert list(a) == list(b)
        for key in b:
            assert_equal(a[key], b[key])
    elif isinstance(b, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert a == b


def test_a_second_save_waits_for_the_first_whose_memory_it_fills_anew(run, config_file):
    job = prepare(load_config(config_file), print)
    state, disk_is_slow = State(), Held()
    with RunLog(run, job.config) as log, Saver(run, 9, disk_is_slow) as saver:
        save(job, state, log, saver)
        first = saver.memory
        threading.Timer(0.2, disk_is_slow.let_go).start()
        with torch.no_grad():
            for weight in job.model.parameters():
                weight.fill_(7.0)
        state.step = 1
        save(job, state, log, saver)
        assert first is not None and saver.memory is not None
        name = next(iter(first["model"]))
        assert first["model"][name] is saver.memory["model"][name]  # no new memory
    files = [read_state(folder)["model"][name] for folder in checkpoints(run)]
    assert not files[0].eq(7.0).any() and files[1].eq(7.0).all()


def test_what_was_logged_is_on_the_disk_before_the_state_that_counts_it_is_seen(run):
    seen = []
    with Saver(run, 9, lambda: seen.append(steps(run))) as saver:
        saver.save(1, state_of(1), None, True)
        saver.save(2, state_of(2), None, True)
    assert seen == [[], ["1"]]
    assert steps(run) == ["1", "2"]


def test_the_best_weights_are_written_before_the_state_that_counts_on_them(run):
    with Saver(run, 9, lambda: None) as saver:
        saver.save(1, state_of(1), {"classes": ["a"]}, True)
        saver.save(2, state_of(2), None, True)
    assert json.loads((run / "model.json").read_text())["weights"] == saver.best_entry
    newest = load_checkpoint(run, print)
    assert newest is not None and bring_back_best(newest[0], print) == saver.best_entry
    assert load_tensors(newest[0] / "best.pt")["weight"].eq(1).all()


def test_what_fails_beside_training_is_raised_at_the_next_look(run):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with Saver(run, 9, full) as saver:
        saver.save(1, state_of(1), None, True)
        assert saver._pending is not None
        concurrent.futures.wait([saver._pending])
        with pytest.raises(RunError, match="No space left"):
            saver.check()
        saver.check()  # told once
        saver.save(2, state_of(2), None, True)
        with pytest.raises(RunError, match="No space left"):
            saver.wait()
    assert checkpoints(run) == []


def test_a_look_does_not_wait_and_leaving_does(run):
    disk_is_slow = Held()
    with Saver(run, 9, disk_is_slow) as saver:
        saver.save(1, state_of(1), None, True)
        saver.check()
        assert steps(run) == []
        threading.Timer(0.2, disk_is_slow.let_go).start()
    assert load(run) == (1, [])
