"""Tables as people have them: several labels, several files, paths of other machines, limits."""

import csv
import re
import sqlite3
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.preprocessing import MultiLabelBinarizer

from datasets import DataError
from datasets.csv_images import CSVImages
from datasets.csv_labels import misspelt
from datasets.csv_table import LONGEST
from tests.test_datasets import check_contract, touch
from trainer.config import load_config
from trainer.input.cut import open_dataset
from trainer.process.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder ``images`` with pictures, for a table beside it."""
    touch(tmp_path, "images/a.png", "images/b.png", "images/c.png", "images/sub/d.png")
    return tmp_path


def table(folder: Path, text: str | bytes, **arguments) -> CSVImages:
    """The dataset of a table whose paths start from ``images``."""
    path = folder / "list.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return CSVImages(**{"root": str(folder / "images"), "csv": str(path), **arguments})


def refusal(folder: Path, text: str | bytes, **arguments) -> str:
    with pytest.raises(DataError) as caught:
        table(folder, text, **arguments)
    return str(caught.value)


def test_classes_that_seem_to_be_several_names_in_a_cell_are_told_with_what_to_type(folder):
    text = "path,label\na.png,cat|dog\nb.png,dog|bird\nc.png,cat|bird\nsub/d.png,cat\n"
    data = table(folder, text)
    assert len(data.classes) == 4
    assert "3 classes such as 'cat|bird'" in data.note
    assert "dataset.label_separator='|'" in data.note
    named = "path,label\na.png,'Smith, J.'\nb.png,'Miller, K.'\nc.png,cat\nsub/d.png,dog\n"
    assert "label_separator" not in table(folder, named.replace("'", '"')).note


@pytest.mark.parametrize(
    "cells",
    [
        ["red;;spot; red", "blue;;spot; blue", "red", "blue"],
        ["red;", "blue ; ", "red", "blue"],
        [" ;red; spot", "red", "spot", "spot"],  # a single cell of names that are classes
    ],
)
def test_cells_with_empty_names_and_blanks_tell_of_the_separator_too(folder, cells):
    names = ("a.png", "b.png", "c.png", "sub/d.png")
    text = "path,label\n" + "".join(f"{n},{c}\n" for n, c in zip(names, cells, strict=True))
    assert "type dataset.label_separator=';'" in table(folder, text).note
    assert {*table(folder, text, label_separator=";").classes} <= {"red", "blue", "spot"}


def test_cells_without_any_name_tell_of_no_separator(folder):
    text = "path,label\na.png,;\nb.png,;;\nc.png,a\n"
    assert "label_separator" not in table(folder, text).note


# --- several labels in one cell ------------------------------------------------------------------

CELLS = {"a.png": "dog; cat", "b.png": "cat;dog;cat", "c.png": "", "sub/d.png": "img10;img2;"}
OF_CELLS = "path,label\n" + "".join(f"{path},{cell}\n" for path, cell in CELLS.items())


def test_labels_in_one_cell_are_those_of_scikit_learn_in_natural_order(folder):
    data = table(folder, OF_CELLS, label_separator=";")
    assert data.classes == ("cat", "dog", "img2", "img10")
    names = [[n for n in map(str.strip, cell.split(";")) if n] for cell in CELLS.values()]
    expected = MultiLabelBinarizer(classes=data.classes).fit_transform(names)
    labels = torch.tensor(data.labels)
    assert labels.dtype == torch.float32 and np.array_equal(labels.numpy(), expected)
    assert data.labels[0] is data.labels[1]  # equal ones are one object
    assert data.parts == (None,) * 4 and data.image(0).dtype == torch.uint8


def test_a_cell_without_labels_and_one_with_a_label_twice_are_counted(folder):
    data = table(folder, OF_CELLS, label_separator=";")
    assert "1 row has no label at all" in data.note
    assert "1 row has a label twice, which counts once" in data.note


def test_an_empty_cell_among_several_names_tells_of_the_separator(folder):
    text = "path,label\na.png,dog;cat\nb.png,cat;ant\nc.png,\nsub/d.png,dog;ant\n"
    told = refusal(folder, text)
    assert ":4: 'c.png' has no label." in told and "dataset.on_broken=skip" in told
    assert "If an empty cell is an image without any label: 3 classes such as 'cat;ant'" in told
    assert "type dataset.label_separator=';'" in told
    assert "label_separator" not in refusal(folder, text.replace(";", " "))


def test_several_labels_that_are_numbers_are_sorted_by_value(folder):
    data = table(folder, "path,label\na.png,10 9.5\nb.png,-1\n", label_separator=" ")
    assert data.classes == ("-1", "9.5", "10") and data.labels[0] == (0.0, 1.0, 1.0)


def test_names_among_several_labels_are_judged_as_single_ones_are(folder):
    told = refusal(folder, "path,label\na.png,Cat;dog\nb.png,cat\n", label_separator=";")
    assert "'Cat' (1 times, first in line 2) and 'cat' (1 times, first in line 3)" in told
    told = refusal(folder, "path,label\na.png,nan;dog\n", label_separator=";")
    assert ":2: 'a.png': the label 'nan' usually means that there is none" in told
    root = touch(folder / "many", *(f"{i}.png" for i in range(40)))
    rows = "".join(f"{i}.png,airplane;car\n" for i in range(39)) + "39.png,car;airplnae\n"
    note = table(folder, "path,label\n" + rows, root=str(root), label_separator=";").note
    assert "the label 'airplnae' (1 images) is similar to 'airplane' (39); is it misspelt?" in note


def test_labels_of_which_no_image_has_several_are_told_to_be_classes(folder):
    data = table(folder, "path,label\na.png,x\nb.png,y\n", label_separator=";")
    told = "each image has exactly one label; without dataset.label_separator these are read as cl"
    assert told in data.note and data.labels == ((1.0, 0.0), (0.0, 1.0))
    data = table(folder, "path,x,y\na.png,1,0\nb.png,0,1\n", label_columns="all")
    assert "with dataset.one_hot=true these are read as classes" in data.note
    assert "exactly one" not in table(folder, OF_CELLS, label_separator=";").note


def test_so_many_labels_that_their_shares_fill_the_memory_are_refused(folder, monkeypatch):
    monkeypatch.setattr("datasets.csv_labels.MAX_SHARES", 7)  # 4 labels in 3 different sets are 12
    told = refusal(folder, OF_CELLS, label_separator=";")
    assert "4 labels in 3 different sets take too much memory; is dataset.label_separator" in told


def test_a_table_with_empty_cells_only_is_refused(folder):
    told = refusal(folder, "path,label\na.png,\nb.png,\n", label_separator=";")
    assert "no image has a label" in told


# --- a column for each label ---------------------------------------------------------------------


def test_columns_of_labels_are_the_numbers_that_they_hold(folder):
    text = "path,cat,age,dog,owl\na.png,1,30,0,1.0\nb.png,.25,3,True,0\nc.png,1.0,9,-0,1\n"
    data = table(folder, text, label_columns=["owl", "cat", "dog"])
    assert data.classes == ("owl", "cat", "dog")
    rows = np.genfromtxt(text.replace("True", "1").splitlines(), delimiter=",", names=True)
    expected = np.stack([rows[name] for name in data.classes], axis=1).astype(np.float32)
    assert np.array_equal(torch.tensor(data.labels).numpy(), expected)
    assert data.labels[0] is data.labels[2]  # 1 and 1.0
    assert "1 images have labels between 0 and 1, which are taken as probabilities" in data.note


def test_all_columns_are_all_but_those_of_path_and_part(folder):
    text = "part,path,x,y,\ntrain,a.png,0,1,\nTEST,b.png,1,1,\n,c.png,0,0,\n"
    data = table(folder, text, label_columns="all", part_column="part")
    assert data.classes == ("x", "y") and data.parts == ("train", "test", None)
    assert data.labels == ((0.0, 1.0), (1.0, 1.0), (0.0, 0.0))
    assert "1 row has no label at all" in data.note


def test_one_hot_columns_are_classes(folder):
    text = "path,x,y,z\na.png,0,1,0\nb.png,1.0,0,0\nc.png,false,false,true\n"
    data = table(folder, text, label_columns="all", one_hot=True)
    check_contract(data)
    assert data.classes == ("x", "y", "z") and data.labels == (1, 0, 2)


@pytest.mark.parametrize(
    ("row", "arguments", "told"),
    [
        ("-1,0", {}, ":2: 'a.png': the column 'x' holds -1, often 'not known', which cannot be"),
        ("0,", {}, ":2: 'a.png': the column 'y' is empty; write 0 or 1, or type dataset.empty_is"),
        ("0,yes", {}, ":2: 'a.png': the column 'y' holds 'yes'; expected 0, 1, true, false or a"),
        ("0,1_0", {}, "holds '1_0'; expected"),
        ("0,nan", {}, "holds 'nan'; expected"),
        ("0,1.01", {}, "holds '1.01'; expected 0, 1"),
        (",", {}, ":2: 'a.png' has no label.\nCorrect them, or leave them out: dataset.on_broken"),
        ("1,1", {"one_hot": True}, "x, y above 0, but dataset.one_hot needs exactly one 1"),
        ("0,0", {"one_hot": True}, "no column above 0, but dataset.one_hot needs"),
        ("0.5,0", {"one_hot": True}, "x above 0, but dataset.one_hot needs exactly one 1"),
    ],
)
def test_a_cell_that_is_no_share_is_refused_with_line_and_column(folder, row, arguments, told):
    text = f"path,x,y\na.png,{row}\nb.png,1,0\n"
    assert told in refusal(folder, text, label_columns=["x", "y"], **arguments)


def test_empty_cells_are_zero_where_asked_and_rows_without_any_are_left_out_where_asked(folder):
    text = "path,x,y\na.png,,1\nb.png,1,0\nc.png,,\n"
    data = table(folder, text, label_columns=["x", "y"], empty_is_zero=True)
    assert data.labels == ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0))
    assert "2 rows have empty cells, read as 0" in data.note
    text = text.replace("a.png,,1", "a.png,1,1")
    data = table(folder, text, label_columns=["x", "y"], on_broken="skip")
    assert data.ids == ("a.png", "b.png") and "1 rows without label are left out" in data.note


def test_columns_of_labels_that_are_not_there_are_named_with_those_that_are(folder):
    told = refusal(folder, "path,x,y,y\na.png,1,0,0\n", label_columns=["x", "y", "z"])
    assert ":1: dataset.label_columns: no column 'z', 'y' stands several times; the header" in told
    assert "fewer than two" in refusal(folder, "path,x\na.png,1\n", label_columns="all")


def test_a_table_of_ones_and_zeros_is_offered_its_columns_which_can_be_typed(folder):
    names = [f"kind {i}" for i in range(12)]
    text = f"file,{','.join(names)}\na.png,{'1,' * 11}0\nb.png,{'0,' * 12}\n"
    told = refusal(folder, text)
    typed = told.rpartition(" Type ")[2].split()
    assert typed == ["dataset.path_column=file", "dataset.label_columns=all"]
    base = f"dataset={{name: CSVImages, root: {folder}/images, csv: {folder}/list.csv}}"
    data = open_dataset(
        load_config("configs/lenet_rmb.yaml", [base, *typed, "loss=BCEWithLogitsLoss"])
    )
    assert data.classes == tuple(names)
    assert torch.tensor(data.labels).sum(dim=1).tolist() == [11.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"label_columns": ["x", "y"], "label_separator": ";"}, "label_separator exclude each"),
        ({"label_columns": ["x", "y"], "label_column": "z"}, "label_column exclude each other"),
        ({"label_columns": ["x"]}, "must name at least two columns, each once"),
        ({"label_columns": ["x", "x"]}, "must name at least two columns, each once"),
        ({"one_hot": True}, "one_hot is about label_columns"),
        ({"empty_is_zero": True}, "empty_is_zero is about label_columns"),
        ({"label_separator": ""}, "label_separator must not be empty"),
        ({"csv": []}, "csv is missing"),
        ({"csv": {"dev": "a.csv"}}, "'dev' is no part; expected train, val and test"),
        ({"csv": {"train": "a.csv"}, "part_column": "x"}, "part_column says it twice"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(folder, arguments, told):
    with pytest.raises(ValueError, match=told):
        table(folder, "path,x,y\na.png,1,0\n", **arguments)


# --- several files, and any column ---------------------------------------------------------------


def two(folder: Path) -> tuple[str, str]:
    (folder / "one.csv").write_text("path,label,who\na.png,x,p1\nb.png,y,p2\n")
    (folder / "two.csv").write_text("label;who;path\nx;p3;c.png\ny;p1;sub/d.png\n")
    return str(folder / "one.csv"), str(folder / "two.csv")


def test_a_table_for_each_part_gives_the_parts_and_a_list_is_joined(folder):
    one, other = two(folder)
    root = str(folder / "images")
    data = CSVImages(root, {"train": one, "Test": other})
    assert data.ids == ("a.png", "b.png", "c.png", "sub/d.png")
    assert data.parts == ("train", "train", "test", "test") and data.labels == (0, 1, 0, 1)
    assert data.column("who") == ["p1", "p2", "p3", "p1"]
    assert CSVImages(root, [one, other]).parts == (None,) * 4


def test_an_image_in_the_tables_of_two_parts_is_refused_with_both_places(folder):
    one, other = two(folder)
    Path(other).write_text("path,label\nc.png,y\nb.png,y\n")
    with pytest.raises(DataError) as caught:
        CSVImages(str(folder / "images"), {"train": one, "val": other})
    told = f"{other}:3: 'b.png' is listed a second time; first in {one}:3, there with the part 'tr"
    assert told in str(caught.value)


def test_a_yaml_gives_a_table_for_each_part_and_faults_are_told_at_its_line(folder, capsys):
    one, other = two(folder)
    given = f"name: CSVImages, root: {folder}/images, csv: {{train: {one}, test: {other}}}"
    data = open_dataset(load_config("configs/lenet_rmb.yaml", [f"dataset={{{given}}}"]))
    assert data.parts == ("train", "train", "test", "test")
    config = load_config("configs/lenet_rmb.yaml", [f"dataset={{{given}, one_hot: true}}"])
    with pytest.raises(ConfigError, match="dataset: cannot be opened: one_hot is about label_col"):
        open_dataset(config)
    for dataset in ("CSVImages", "{name: CSVImages, root: images}"):
        with pytest.raises(ConfigError, match="dataset.csv: 'csv' is missing; expected the table"):
            load_config("configs/lenet_rmb.yaml", [f"dataset={dataset}"])


def test_a_column_has_the_text_of_each_sample_as_python_reads_it(folder):
    text = (
        'path,label,"who, what"\na.png,x,"p1\n2"\n\nb.png,y\na.png,x,other\n# end\nc.png,y, p3 \n'
    )
    data = table(folder, text)
    assert data.column("who, what") == ["p1\n2", "", "p3"]
    with open(folder / "list.csv", newline="") as file:
        rows = {
            row["path"]: row for row in reversed(list(csv.DictReader(file)))
        }  # the first counts
    assert data.column("label") == [rows[name]["label"] for name in data.ids]
    with pytest.raises(DataError, match=":1: no column 'age'; the header has: path, label, who"):
        data.column("age")


def test_a_column_of_a_table_that_has_changed_is_refused(folder):
    data = table(folder, "path,label,who\na.png,x,p1\nb.png,y,p2\n")
    (folder / "list.csv").write_text("path,label,who\nb.png,y,p2\na.png,x,p1\nc.png,x,p3\n")
    with pytest.raises(DataError, match="has changed since it was read; start again"):
        data.column("who")


# --- paths ---------------------------------------------------------------------------------------


def test_without_a_root_paths_start_from_the_folder_of_the_table(folder):
    data = table(folder, "path,label\nimages/a.png,x\nimages/sub/d.png,y\n", root=None)
    assert data.ids == ("images/a.png", "images/sub/d.png") and data.root == folder
    other = folder / "images" / "other.csv"
    other.write_text("path,label\na.png,x\n")
    with pytest.raises(DataError, match="the files are in several folders .*dataset.root="):
        CSVImages(csv=[str(folder / "list.csv"), str(other)])


@pytest.mark.parametrize(
    "begin", ["/home/me/data/images/", "D:\\me\\images\\", "../x/", "file:///m/"]
)
def test_paths_of_another_machine_are_refused_with_what_to_strip_which_then_works(folder, begin):
    text = f"path,label\n{begin}a.png,x\n{begin}sub/d.png,y\n{begin}gone.png,y\n"
    told = refusal(folder, text)
    assert "To find 2 of 3 such paths below the root, type " in told
    strip = told.rpartition("dataset.strip=")[2].strip("'")
    data = table(folder, text, strip=strip, on_broken="skip")
    assert data.ids == ("a.png", "sub/d.png", "gone.png")
    assert f"3 paths are read without '{strip}' at their beginning" in data.note
    note = table(folder, "path,label\na.png,x\n", strip=strip).note
    assert note.endswith(f"list.csv: no path begins with dataset.strip, '{strip}'")


def test_file_addresses_are_paths_and_web_addresses_are_refused(folder):
    touch(folder / "images", "e f.png")
    text = f"path,label\nfile://{folder}/images/a.png,x\nfile://{folder}/images/e%20f.png,y\n"
    data = table(folder, text)
    assert data.ids == ("a.png", "e f.png") and "2 paths with file:// are read" in data.note
    told = refusal(folder, "path,label\nhttps://example.org/a.png,x\n")
    assert ":2: 'https://example.org/a.png' is an address: download the images, and list" in told


# --- the text ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("sep=;\npath;label\na.png;x\nb.png;y\n", "its first line says that ';' separates"),
        ("# by me\n#, 2\npath,label\na.png,x\nb.png,y\n", "lines 1 to 2 begin with # and are no"),
        ("path,label\n# one\na.png,x\nb.png,y\n#\n", "2 rows that begin with # are passed over"),
        ("'path','label'\n'a.png','x'\n'b.png','y'\n", "read with ' as the quotation mark"),
        ("path,label,,\r\na.png,x,,\r\n\r\nb.png,y,,\r\n", ""),
        ("path,label\ra.png,x\rb.png,y\r", ""),
    ],
)
def test_marks_of_other_programs_are_read_and_told(folder, text, note):
    data = table(folder, text)
    assert data.ids == ("a.png", "b.png") and data.classes == ("x", "y")
    assert note in data.note and bool(note) == bool(data.note)


def test_lines_are_counted_from_the_top_of_the_file(folder):
    told = refusal(folder, "# by me\n# 2\npath,label\na.png,x\ngone.png,y\n")
    assert "list.csv:5: 'gone.png': no such file" in told
    assert "list.csv:3: no column 'label'" in refusal(folder, "# by me\n#\npath,kind\na.png,x\n")
    assert "list.csv:1: no column 'path'; the header has: #path, label" in refusal(
        folder, "#path,label\na.png,x\n"
    )


def test_a_file_whose_name_begins_with_a_hash_is_no_comment(folder):
    touch(folder / "images", "#1.png")
    text = "path,label\n#1.png,\na.png,x;y\n"
    assert table(folder, text, label_separator=";").ids == ("#1.png", "a.png")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PK\x03\x04", "it is a workbook or an archive: save the sheet as 'CSV UTF-8'"),
        (bytes.fromhex("d0cf11e0a1b11ae1"), "it is a workbook of an old Excel"),
        (b"PAR1\x15\x04", "it is Parquet: type dataset.name=Parquet"),
        (b"\x1f\x8b\x08\0", "it is compressed: gunzip --stdout"),
        (b'[{"path": "a.png"}]', "it is JSON"),
        (b'{\n "path": 1}', "it is JSON"),
        (b"<!DOCTYPE html>", "it is HTML or XML, perhaps a page that asks to log in"),
        ("path,label".encode("utf-16-le"), "it is UTF-16: iconv -f UTF-16LE -t UTF-8"),
        ("path,label".encode("utf-16-be"), "it is UTF-16: iconv -f UTF-16BE -t UTF-8"),
        (b"path,label\na.png,x\nb.png,\xe9\n", "line 3 has the byte 0xe9"),
        (b"path label\na.png x\n", "Blanks or colons are not read as separators: write commas"),
        (b"path,label\na.png,x\0\n", ":2: 'a.png': the label 'x\\x00' has a NUL byte"),
    ],
)
def test_what_is_no_csv_in_utf8_is_named_with_what_to_do(folder, content, told):
    assert told in refusal(folder, content)


def test_a_database_and_the_conversions_that_are_offered_are_real(folder):
    path = folder / "list.csv"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (path TEXT)")
    database.close()
    with pytest.raises(DataError, match="it is a database: sqlite3 -csv -header"):
        CSVImages(str(folder / "images"), str(path))
    content = "path,label\na.png,x\nb.png,é\n"
    for code in ("utf-16", "utf-16-le", "utf-32", "cp1252"):
        told = refusal(folder, content.encode(code))
        command = "iconv" + told.partition(": iconv")[2].removesuffix(".")
        subprocess.run(command, shell=True, check=True, cwd=folder)
        data = table(folder, (folder / "NEW.csv").read_bytes())
        assert data.classes == ("x", "é")


@pytest.mark.parametrize(
    "content",
    [
        b"path,label" + b"," * 3 * LONGEST + b"\na.png,x\n",
        b"path,label\na.png," + b"x," * LONGEST + b"\n",
        b"path,label\na.png," + b'"x\n",' * LONGEST,
        b'path,label\na.png,"' + b"x" * 3 * LONGEST,
        b"\0" * 3 * LONGEST,
    ],
    ids=["columns", "values", "lines of one row", "an open quotation mark", "NUL"],
)
def test_a_row_without_end_is_refused_before_it_fills_the_memory(folder, content):
    told = refusal(folder, content)
    assert "over 1,048,576 characters" in told or "field larger than field limit" in told


def test_a_line_of_a_gigabyte_takes_little_memory(folder):
    path = folder / "list.csv"
    with open(path, "wb") as file:
        file.write(b"path,label\na.png,")
        file.truncate(1 << 30)  # NUL, which take no room on the disk
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="line 2 on has over 1,048,576 characters"):
            CSVImages(str(folder / "images"), str(path))
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_of_the_faults_of_many_rows_ten_are_shown_and_all_counted(folder):
    rows = "".join(f"gone{i}.png,x\n" for i in range(20_000))
    told = refusal(folder, "path,label\n" + rows)
    assert "20,000 of 20,000 rows cannot be used" in told
    assert "... and 19,990 more missing files" in told and told.count("\n") == 12


def test_the_digits_of_each_label_are_looked_for_once(monkeypatch):
    calls, sub = [], re.sub

    def counted(*arguments):
        calls.append(arguments)
        return sub(*arguments)

    monkeypatch.setattr("re.sub", counted)
    assert not list(misspelt(f"person_{number:05d}" for number in range(500)))
    assert len(calls) <= 500
    (text,) = misspelt(["room_12"] * 40 + ["rom_12", "room_13"])
    assert "'rom_12' (1 images) is similar to 'room_12' (40)" in text
