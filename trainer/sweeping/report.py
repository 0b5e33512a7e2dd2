"""What a sweep leaves in its folder, written after each trial, and the last lines it prints."""

from collections.abc import Sequence
from pathlib import Path

from trainer.disk import write_file, write_json
from trainer.insight.columns import terminal_width
from trainer.sweeping.hparams import write_hparams
from trainer.sweeping.page import page
from trainer.sweeping.reading import Plan
from trainer.sweeping.results import Row, as_csv, as_json, conclusion, table


def write_all(plan: Plan, folder: Path, rows: Sequence[Row]) -> None:
    """sweep.json, sweep.csv, sweep.html and TensorBoard's table, as the sweep stands."""
    write_json(folder / "sweep.json", as_json(plan, rows))
    write_file(folder / "sweep.csv", as_csv(plan, rows))
    write_file(folder / "sweep.html", page(plan, rows))
    write_hparams(plan, folder, rows)


def show_all(plan: Plan, folder: Path, rows: Sequence[Row]) -> list[str]:
    """The table, the best trial, and where the rest is to be found."""
    lines = ["", *table(plan, rows, terminal_width()), "", *conclusion(plan, folder, rows)]
    return [*lines, f"page    {folder / 'sweep.html'}"]
