"""Writes a report's folder: report.md, report.html and pictures of the images it is about."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.drawing.charts import RIGHT, WRONG, draw_calibration, draw_confusion, draw_curves
from trainer.drawing.fonts import fit_to_pixels
from trainer.drawing.pictures import png, sheet
from trainer.drawing.text import markdown, markdown_table, plain, shown_number
from trainer.insight.data_report import tail
from trainer.insight.findings import (
    SETS_COLUMNS,
    UNCHANGED,
    Findings,
    ReportData,
    find,
    lowest_first,
)
from trainer.insight.report_page import report_page
from trainer.run.disk import all_or_nothing, make_output_folder, write_file


def write_report(folder: Path, results: ReportData, run: Path | None = None) -> None:
    """Write ``folder``/report.md, report.html and the Markdown's pictures; make the folder.

    run: the run's folder (default: the parent). Raises RunError if ``folder`` is a link.
    """
    with all_or_nothing():
        make_output_folder(folder)
        _write_files(folder, results, run)


def _write_files(folder: Path, results: ReportData, run: Path | None) -> None:
    found = find(results, run or folder.parent)
    confusion = draw_confusion(found.counts, found.classes)
    write_file(folder / "confusion_matrix.png", png(confusion))
    if found.history:
        write_file(folder / "curves.png", png(draw_curves(found.history, found.best_epoch)))
    for name, bins in (("", found.bins), ("_after", found.calibrated_bins)):
        file = folder / f"calibration{name}.png"
        if bins:
            write_file(file, png(draw_calibration(bins)))
        else:
            file.unlink(missing_ok=True)  # of an older report
    if pictures := [shown.picture for shown in found.shown if shown.picture]:
        captions = [
            [
                *shown.caption,
                "" if shown.of_predicted is None else f"{shown.of_predicted:.2%}",
                shown.name
                if fit_to_pixels(shown.name, 13, 166) == shown.name
                else tail(shown.name),
            ]
            for shown in found.shown
            if shown.picture
        ]
        colours = [WRONG if found.num_wrong else RIGHT] * len(pictures)
        write_file(folder / "mistakes.png", png(sheet(pictures, captions, colours)))
    else:
        (folder / "mistakes.png").unlink(missing_ok=True)  # of an older report
    write_file(folder / "report.md", _markdown(found))
    write_file(folder / "report.html", report_page(found, confusion))


def _markdown(found: Findings) -> str:
    parts = [f"# Report: {markdown(found.title)}"]
    parts += ["\n".join(f"- {name}: {markdown(value)}" for name, value in found.facts.items())]
    parts += [f"## {found.about}", found.measured]
    parts += [markdown_table(["metric", "value"], list(found.metrics.items()))]
    parts += [f"Accuracy of {found.certainty} (Wilson interval)."] if found.certainty else []
    if found.grown:
        parts += ["## Old and new classes", "\n".join(f"- {markdown(n)}" for n in found.grown)]
    if found.notes or found.left_out:
        parts += ["## Notes", "\n".join(f"- {markdown(note)}" for note in found.notes)]
    if found.left_out:
        parts += [f"{len(found.left_out)} images could not be read and were left out:"]
        more = len(found.left_out) - 100
        lines = found.left_out[:100] + ([f"and {more} more"] if more > 0 else [])
        parts += ["\n".join(f"- {markdown(line)}" for line in lines)]
    parts += ["## Labels" if found.several_labels else "## Classes"]
    if found.many:
        parts += [f"The {len(found.worst)} of the smallest F1, of {len(found.classes)}."]
    rows: list[Sequence[Any]] = [list(row.values()) for row in found.worst]
    parts += [markdown_table(found.columns, rows)]
    parts += ["## Confusion matrix", *([found.about_matrix] if found.several_labels else [])]
    parts += ["![confusion matrix](confusion_matrix.png)"]
    if found.many:
        header = ["true", "predicted", "images", "share of the true class"]
        parts += ["The pairs most often confused:", markdown_table(header, found.confused)]
    else:
        matrix = zip(found.classes, found.confusion, strict=True)
        rows = [[name, *counts] for name, counts in matrix]
        parts += [markdown_table(["true / predicted", *found.classes], rows)]
    caption = f"{len(found.shown)} of {found.num_wrong} wrong among {found.num_images} images."
    if not found.num_wrong:
        caption = "None: every image is predicted right. The least certain ones:"
    parts += ["## Worst mistakes", caption]
    if any(shown.picture for shown in found.shown):
        parts += ["![worst mistakes](mistakes.png)"]
    rows = [[s.name, s.true, s.predicted, s.of_predicted, s.of_true] for s in found.shown]
    parts += [found.about_shares] if found.about_shares else []
    header = ["image", "true", "predicted", "probability of predicted", "of true"]
    parts += [markdown_table(header, rows)]
    parts += ["## Calibration", "![calibration](calibration.png)"]
    parts += [
        f"Expected calibration error: {shown_number(found.calibration_error)} "
        f"({len(found.bins)} intervals of confidence; Guo et al., 2017)."
    ]
    parts += [found.about_bins] if found.about_bins else []
    parts += _calibrated(found)
    if found.about_unknown:
        parts += ["## Unknown images", found.about_unknown]
        if found.unknown_rows:
            parts += [markdown_table(found.unknown_columns, found.unknown_rows)]
    if found.history:
        parts += ["## Curves", "![curves](curves.png)"]
        parts += [markdown_table(found.tags, found.epochs)]
    if found.balance:
        sums = found.balance_columns, found.balance_sums
        table = sums if found.many else ([found.kind, *found.balance], found.balance_rows)
        parts += [f"## {found.kind.capitalize()} balance", markdown_table(*table)]
    if found.seconds:
        header = ["activity", "what", "seconds", "share"]
        parts += ["## What the time went to", markdown_table(header, found.times)]
    parts += ["## To go on"]
    parts += ["\n".join(f"    # {what}\n    {plain(command)}" for what, command in found.commands)]
    if found.many:
        both = zip(found.by_class, found.balance_rows, strict=True)
        rows = [(*row.values(), *counts) for row, (_, *counts) in both]
        parts += ["## All classes", markdown_table([*found.by_class[0], *found.balance], rows)]
    indented = "\n".join(f"    {plain(line)}".rstrip() for line in found.config_text.splitlines())
    parts += ["## Config", indented]
    return "\n\n".join(parts) + "\n"


def _calibrated(found: Findings) -> list[str]:
    """The paragraphs on the temperature and on label sets."""
    parts = [found.temperature] if found.temperature else []
    if found.truth:
        parts += [UNCHANGED, markdown_table(["metric", "raw", "calibrated"], found.truth)]
        parts += ["With the temperature:", "![calibrated](calibration_after.png)"]
    if found.about_sets:
        parts += ["## Label sets", found.about_sets]
        rows = lowest_first(found.sets)
        parts += [markdown_table(SETS_COLUMNS, rows)] if rows else []
    return parts
