"""Images listed in a CSV file."""

import csv as csv_format
import re
from pathlib import Path, PurePosixPath
from typing import Literal

from datasets import DataError
from datasets.files import PARTS, ImageFiles, Sample, missing_folder, natural, shorten, user_path
from datasets.images import check_file, reason

_SHOWN = 10  # faults printed; with a wrong root every line is a fault
_LONGEST = 255  # characters of a label, the limit for the name of a class folder
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")


class CSVImages(ImageFiles):
    """Images below ``root`` that a CSV file lists: a header, then one line per image.

    Images: (3, H, W) uint8, RGB, sizes may differ. Raises DataError with the CSV's line numbers.

    root: The folder that the paths in the CSV start from; none may leave it.
    csv: The CSV file: UTF-8, separated by commas, with a header.
    path_column: The column with the image's path, relative to root.
    label_column: The column with the class: text, or only numbers, which are sorted by value.
    part_column: The column with train, val (valid, validation) or test; null, or an empty cell,
        leaves it to split.
    on_broken: What a file that cannot be decoded does: error ends the run, skip leaves it out.
    """

    def __init__(
        self,
        root: str,
        csv: str,
        path_column: str = "path",
        label_column: str = "label",
        part_column: str | None = None,
        on_broken: Literal["error", "skip"] = "error",
    ) -> None:
        folder, table = user_path(root, "dataset.root"), user_path(csv, "dataset.csv")
        if not folder.is_dir():
            raise missing_folder(folder)
        samples = _read(table, folder, path_column, label_column, part_column)
        super().__init__(folder, samples, _classes(samples, table), on_broken)


def _read(
    table: Path, root: Path, path_column: str, label_column: str, part_column: str | None
) -> list[Sample]:
    columns = [column for column in (path_column, label_column, part_column) if column is not None]
    samples: list[Sample] = []
    lines: dict[str, int] = {}  # path -> the line that lists it
    faults: list[str] = []
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:  # -sig: Excel writes a BOM
            reader = csv_format.DictReader(file, strict=True)
            header = reader.fieldnames or []
            for column in columns:
                if column not in header:
                    raise DataError(
                        f"{table}:1: no column '{column}'; the header has: {', '.join(header)}."
                    )
            for row in reader:
                path, class_name, part = (
                    (row[column] or "").strip() if column is not None else ""
                    for column in (path_column, label_column, part_column)
                )
                path = PurePosixPath(path).as_posix()  # one spelling per file: no "./a.jpg"
                if fault := _fault(path, class_name, part, root, lines):
                    faults.append(f"{table}:{reader.line_num}: {fault}")
                    continue
                lines[path] = reader.line_num
                samples.append(Sample(path, class_name, PARTS.get(part)))
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv_format.Error) as error:
        raise DataError(f"{table}: not a CSV file in UTF-8: {error}.") from error
    if faults:
        more = [f"... and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise DataError("\n".join(faults[:_SHOWN] + more))
    if not samples:
        raise DataError(f"{table}: no images listed; expected a header and one line an image.")
    return samples


def _fault(path: str, class_name: str, part: str, root: Path, lines: dict[str, int]) -> str | None:
    if path == ".":
        return "the path is empty."
    if path.startswith("/") or ".." in path.split("/"):
        return f"'{path}' leaves the root {root}; paths must be relative to it."
    if path in lines:
        return f"'{path}' is listed a second time; first in line {lines[path]}."
    if not class_name:
        return f"'{path}' has no label."
    if len(class_name) > _LONGEST:
        return f"the label '{shorten(class_name)}' is too long; at most {_LONGEST} are allowed."
    if part and part not in PARTS:
        return f"'{path}': unknown part '{part}'; expected {', '.join(PARTS)} or nothing."
    try:
        check_file(root / path)
    except FileNotFoundError:
        return f"'{path}': no such file below {root}."
    except (OSError, ValueError) as error:
        return f"'{shorten(path)}': {reason(error)}."
    return None


def _classes(samples: list[Sample], table: Path) -> list[str]:
    names = {sample.class_name for sample in samples}
    if not all(_NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=natural)
    by_value: dict[float, str] = {}
    for name in sorted(names):
        if (other := by_value.setdefault(float(name), name)) != name:
            raise DataError(f"{table}: the labels '{other}' and '{name}' are the same number.")
    return [by_value[value] for value in sorted(by_value)]
