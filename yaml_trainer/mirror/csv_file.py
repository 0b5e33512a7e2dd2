"""A run's points as one table: a row for each step, a column for each name."""

import csv
import io
import os
from pathlib import Path

from trainer.process.errors import RunError
from trainer.process.lock import PLAIN_FILE
from trainer.run.disk import make_folders, write_file
from yaml_trainer.mirror.about import About
from yaml_trainer.mirror.points import Rows, merge


class CSVFile:
    """The file metrics.csv in the run's folder, or PLACE/GROUP/RUN.csv.

    It is replaced as a whole, so a reader, or a kill, finds the old or the new one.
    """

    def __init__(self, place: str | None) -> None:
        self.place, self.path, self.rows = place, Path(), Rows()

    def open(self, about: About) -> Rows:
        """The rows of the file that is there; raises RunError if it is none of ours."""
        if self.place is None:
            self.path = about.run / "metrics.csv"
        else:
            self.path = Path(self.place) / about.group / f"{about.identity}.csv"
            try:
                make_folders(self.path.parent)
            except OSError as error:
                raise RunError(f"--place {self.place}: {error.strerror}.") from None
        self.rows = read_rows(self.path)
        return {step: dict(row) for step, row in self.rows.items()}

    def add(self, rows: Rows) -> None:
        """Write the file with these rows too."""
        merge(self.rows, rows)
        names = dict.fromkeys(name for row in self.rows.values() for name in row)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", *names])
        for step, row in sorted(self.rows.items()):
            writer.writerow([step, *(repr(row[name]) if name in row else "" for name in names)])
        write_file(self.path, text.getvalue())

    def begin_again(self) -> None:
        """Forget the rows; the next ``add`` replaces the file."""
        self.rows = {}

    def describe(self, about: About) -> None:
        """Nothing: config.yaml and result.json are files already."""

    def close(self) -> None:
        """Nothing: the file is written."""

    def where(self) -> str:
        """The file's path."""
        return str(self.path)

    def look(self) -> str:
        """None: any program shows a table."""
        return ""


def read_rows(path: Path) -> Rows:
    """The rows of a file that ``CSVFile`` wrote; none if there is no file.

    Raises RunError for any other file, whose content nobody else may have.
    """
    rows = Rows()
    try:
        with open(os.open(path, os.O_RDONLY | PLAIN_FILE), newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if table.fieldnames and table.fieldnames[0] != "step":
                raise ValueError
            for line in table:
                step = int(line.pop("step"))
                rows[step] = {name: as_number(text) for name, text in line.items() if text}
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError, AttributeError, csv.Error):
        raise RunError(
            f"{path} holds something else than a mirror's numbers, so it is not replaced. Move it "
            "away, or name another folder: --place FOLDER"
        ) from None
    return rows


def as_number(text: str) -> float:
    """The number that ``repr`` wrote: whole if it was, else to the bit."""
    return int(text) if text.lstrip("-").isdecimal() else float(text)
