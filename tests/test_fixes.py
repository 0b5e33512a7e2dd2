"""Labels that a file of fixes corrects, and images that it leaves out."""

import hashlib
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datasets import DataError
from datasets.fixes import Fixes
from trainer.config import load_config
from trainer.data import main as look
from trainer.evaluate import main as evaluate
from trainer.input.data import load_data
from trainer.process.errors import ConfigError, RunError
from trainer.run.disk import read_json


def pictures(labels, classes=("cat", "dog", "cow")) -> Any:
    """What Fixes need of a dataset."""
    return SimpleNamespace(labels=labels, classes=classes)


def sha(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def fixes(tmp_path, rows, dataset=None, header="sha256,label"):
    path = tmp_path / "fixes.csv"
    path.write_text("\n".join([header, *rows, ""]))
    return Fixes(str(path), dataset or pictures((0, 0, 1, 2)))


def all_of(dataset):
    return [(index, sha(index)) for index in range(len(dataset.labels))]


def test_labels_are_changed_images_left_out_and_all_is_counted(tmp_path):
    data = pictures((0, 0, 1, 2))
    rows = [f"{sha(0).upper()},dog", f"{sha(1)}, leave out ", f"{sha(2)},dog", "", f"{sha(9)},cow"]
    table = fixes(tmp_path, [*rows, f"{sha(9)},cow"], data)
    left_out, note = table.apply(data, all_of(data))
    assert data.labels == (1, 0, 1, 2) and left_out == {1}
    told = "1 label changed, 1 image out, 1 image had the label already, "
    assert note.endswith(told + "1 row of contents that no image has, 1 row repeated")
    assert table.digest == hashlib.sha256((tmp_path / "fixes.csv").read_bytes()).hexdigest()


def test_several_labels_are_separated_and_equal_ones_are_one_object(tmp_path):
    one, none = (1.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    data = pictures((one, one, none, (0.5, 0.0, 1.0)))
    rows = [f"{sha(0)},dog; cat", f"{sha(1)},;", f"{sha(3)},cat"]
    fixes(tmp_path, rows, data).apply(data, all_of(data))
    assert data.labels == ((1.0, 1.0, 0.0), none, none, one)
    assert data.labels[1] is data.labels[2] is none and data.labels[3] is one


def test_other_columns_are_for_people(tmp_path):
    data = pictures((0, 0))
    rows = [f"blurred, a/1.jpg,dog,{sha(1)}"]
    fixes(tmp_path, rows, data, "note,id,label,sha256").apply(data, all_of(data))
    assert data.labels == (0, 1)


@pytest.mark.parametrize("header", ["SHA256,Label", " Sha256 ; LABEL", "sha256,label,Label"])
def test_a_header_in_another_case_is_read(tmp_path, header):
    data = pictures((0, 0))
    row = f"{sha(1)},dog".replace(",", ";" if ";" in header else ",")
    fixes(tmp_path, [row], data, header).apply(data, all_of(data))
    assert data.labels == (0, 1)


@pytest.mark.parametrize("header", ["Hash,Label", "SHA256,Sha256,label", "sha256,Label,LABEL", ""])
def test_a_header_without_the_columns_is_refused_with_those_that_are_wanted(tmp_path, header):
    with pytest.raises(DataError, match="fixes.csv:1: expected a header with the columns sha256,l"):
        fixes(tmp_path, [f"{sha(1)},dog"], header=header)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([f"{sha(0)},Dogs"], ":2: 'Dogs' is no class; did you mean 'dog'? There are 'cat', 'dog'"),
        ([f"{sha(0)},leave"], ":2: 'leave' is no class"),
        ([f"{sha(0)},"], ":2: the label is empty; write a class, or 'leave out'."),
        ([f"{sha(0)}"], ":2: the label is empty"),
        (["abc,dog"], ":2: 'abc' is no SHA-256; expected 64 of"),
        ([f"{sha(0)},dog", f"{sha(0)},cat"], ":3: contradicts line 2"),
        ([f"{sha(0)},dog", f"{sha(0)},leave out"], ":3: contradicts line 2"),
        ([f'"{sha(0)},dog'], "not a CSV file"),
        ([f"{sha(k)},bird" for k in range(15)], "... and 5 more"),
    ],
)
def test_each_bad_row_is_told_with_its_line(tmp_path, rows, told):
    with pytest.raises(DataError) as caught:
        fixes(tmp_path, rows)
    assert told in str(caught.value) and "fixes.csv" in str(caught.value)


def test_what_is_no_table_of_fixes_is_told(tmp_path):
    with pytest.raises(DataError, match="fixes.csv:1: expected a header with the columns sha256"):
        fixes(tmp_path, [], header="digest,label")
    with pytest.raises(DataError, match="a class has the name 'leave out'"):
        fixes(tmp_path, [], pictures((0, 1), ("cat", "leave out")))
    (tmp_path / "binary").write_bytes(b"sha256,label\n\xff\xfe")
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        Fixes(str(tmp_path / "binary"), pictures((0,)))
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match=r"dataset.fixes: .*(not a regular file|No such file)"):
            Fixes(str(path), pictures((0,)))


# --- In a run


def table_for(notes, tmp_path, change=(), out=()):
    """A file that turns the named notes of 1 yuan into 100, and leaves others out."""
    digest_of = {name: hashlib.sha256((notes / name).read_bytes()).hexdigest() for name in
                 (*change, *out)}  # fmt: skip
    rows = [f"{digest_of[name]},100,{name}" for name in change]
    rows += [f"{digest_of[name]},leave out,{name}" for name in out]
    path = tmp_path / "fixes.csv"
    path.write_text("\n".join(["sha256,label,id", *rows, ""]))
    return path


CHANGED, OUT = ("1/003.jpg", "1/004.jpg", "1/005.jpg"), ("1/000.jpg", "100/001.jpg")


def test_a_fix_changes_labels_and_moves_no_image(config_file, notes, tmp_path):
    cpu = torch.device("cpu")
    before = load_data(load_config(config_file), cpu)
    path = table_for(notes, tmp_path, CHANGED, OUT)
    data = load_data(load_config(config_file, [f"dataset.fixes={path}"]), cpu)
    labels: dict[str, str] = {}
    for part, subset in data.subsets.items():
        assert set(data.split[part]) == set(before.split[part]) - {*OUT}
        found = [data.classes[k] for k in subset.labels.tolist()]
        labels |= dict(zip(data.split[part], found, strict=True))
    assert all(labels[n] == ("100" if n in CHANGED else n.split("/")[0]) for n in labels)
    assert f"dataset.fixes={path}: 3 labels changed, 2 images out" in data.notes
    assert data.split["fixes"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_is_evaluated_with_its_fixes_and_refuses_others(train, notes, tmp_path, capsys):
    path = table_for(notes, tmp_path, [f"1/{number:03d}.jpg" for number in range(8)], OUT[1:])
    run = train(f"dataset.fixes={path}", "loss.weight=balanced")
    result = read_json(run / "result.json")
    assert result["fixes"] == hashlib.sha256(path.read_bytes()).hexdigest()
    capsys.readouterr()
    for part in ("test", "val"):
        assert evaluate([str(run), "--json", "--split", part]) == 0
        told = json.loads(capsys.readouterr().out)
        assert part == "val" or {k: told[k] for k in result["test"]} == result["test"]
    moved = path.rename(tmp_path / "moved.csv")
    assert evaluate([str(run)]) == 3 and "No such file" in capsys.readouterr().err
    assert evaluate([str(run), f"dataset.fixes={moved}"]) == 0
    told = f"note    dataset.fixes={moved}: 8 labels changed, 1 image out\n"
    assert capsys.readouterr().err.count(told) == 1
    train(f"dataset.fixes={moved}", "loss.weight=balanced", "train.epochs=3", resume=run)
    path.write_text(moved.read_text().replace("leave out", "1"))
    assert evaluate([str(run), f"dataset.fixes={path}"]) == 3
    assert "or has changed" in capsys.readouterr().err
    path.write_text(moved.read_text().replace(",100,1/007.jpg", ",1,1/007.jpg"))
    with pytest.raises(RunError, match="dataset.fixes holds other fixes"):
        train(f"dataset.fixes={path}", "loss.weight=balanced", "train.epochs=4", resume=run)


def test_several_labels_are_fixed_as_well(config_file, notes, tmp_path):
    lines = [f"{n}/{i:03d}.jpg,{n}{';old' * (i % 2)}" for n in ("1", "100") for i in range(25)]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *lines]))
    path = table_for(notes, tmp_path, CHANGED[:1], OUT)
    path.write_text(path.read_text().replace(",100,", ",100; old,"))
    data = f"{{name: CSVImages, root: {notes}, csv: {tmp_path / 'table.csv'}, label_separator: ;}}"
    config = load_config(config_file, [f"dataset={data}", "loss=BCEWithLogitsLoss"])
    before = load_data(config, torch.device("cpu"))
    how = [f"dataset={data}", f"dataset.fixes={path}", "loss=BCEWithLogitsLoss"]
    after = load_data(load_config(config_file, how), torch.device("cpu"))
    assert len(set(map(id, after.dataset.labels))) == len(set(after.dataset.labels))
    for part in ("train", "val", "test"):
        names = list(after.split[part])
        assert names == [name for name in before.split[part] if name not in OUT]
        old = dict(zip(before.split[part], before.subsets[part].labels.tolist(), strict=True))
        new = dict(zip(names, after.subsets[part].labels.tolist(), strict=True))
        fixed = {"1/003.jpg": [0.0, 1.0, 1.0]}
        assert new == {name: fixed.get(name, old[name]) for name in names}


def test_trainer_data_counts_with_the_fixes(config_file, notes, tmp_path):
    path = table_for(notes, tmp_path, CHANGED, OUT)
    command = ["--config", str(config_file), "--output", str(tmp_path / "out")]
    assert look([*command, f"dataset.fixes={path}"]) == 0
    facts = json.loads((tmp_path / "out" / "data.json").read_text())
    total = {k: sum(count[k] for count in facts["counts"].values()) for k in ("1", "100")}
    assert total == {"1": 25 - 3 - 1, "100": 25 + 3 - 1}
    assert "3 labels changed, 2 images out" in facts["dataset"]["note"]


def test_fixes_go_by_content_and_so_not_with_a_split_by_name(config_file):
    with pytest.raises(ConfigError, match="dataset.fixes reads all images first") as caught:
        load_config(config_file, ["dataset.fixes=a.csv", "split.by=name"])
    assert caught.value.faults[0].path == "split.by"


def test_a_table_of_fixes_that_excel_wrote_with_semicolons_is_read(tmp_path):
    data = pictures((0, 0, 1, 2))
    rows = [f"{sha(0)};dog;seen twice", f"{sha(1)};leave out;"]
    table = fixes(tmp_path, rows, data, header="\ufeffsha256;label;remark")
    left_out, note = table.apply(data, all_of(data))
    assert data.labels == (1, 0, 1, 2) and left_out == {1}
    assert "read with ';' between values" in note


def test_each_set_of_several_labels_is_made_once(tmp_path):
    none = (0.0, 0.0, 0.0)
    rows = [f"{sha(0)},cat;dog", f"{sha(1)},dog; cat;dog", f"{sha(2)},cow"]
    table = fixes(tmp_path, rows, pictures((none,) * 3))
    first, second, third = table.label_of.values()
    assert first is second == (1.0, 1.0, 0.0) and third == (0.0, 0.0, 1.0)
