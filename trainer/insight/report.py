"""A run's report folder: report.md, report.html and pictures, from the test split measured once."""

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.disk import write_file
from trainer.errors import RunError
from trainer.insight.charts import (
    RIGHT,
    WRONG,
    draw_calibration,
    draw_confusion,
    draw_curves,
    numbers,
)
from trainer.insight.findings import SECONDS, Findings, find, plain, shown_number
from trainer.insight.html import page
from trainer.insight.pictures import sheet, write_picture


def write_report(
    folder: Path,
    *,
    history: Sequence[dict[str, Any]],
    classes: Sequence[str],
    probabilities: Tensor,
    labels: Tensor,
    ids: Sequence[str],
    config_text: str,
    result: dict[str, Any],
    picture_of: Callable[[int], Tensor] | None = None,
    class_balance: Mapping[str, Sequence[int]] | None = None,
    run: Path | None = None,
) -> None:
    """Write ``folder``/report.md and report.html, and the Markdown's pictures, making the folder.

    history: one dict an epoch with "epoch" (from 1) and tags such as "val/accuracy" and, with or
    without its ending, "train/loss_epoch"; values that are no numbers are passed over.
    probabilities (N, K), labels (N,) and ids (N) are the test split's on the CPU; picture_of(i) is
    its image i, uint8 (C, H, W), and may raise. class_balance: images of each class by part.
    result: as result.json has it, "best" (with its "epoch") and "test" at least. run: the run's
    folder, by default the one that ``folder`` lies in.
    """
    if folder.is_symlink():
        raise RunError(f"{folder} is a link; nothing is written behind it.")
    folder.mkdir(parents=True, exist_ok=True)
    found = find(
        history=history,
        classes=classes,
        probabilities=probabilities,
        labels=labels,
        ids=ids,
        picture_of=picture_of,
        class_balance=class_balance,
        config_text=config_text,
        result=result,
        run=run or folder.parent,
    )
    confusion = draw_confusion(found.confusion, classes)
    write_picture(folder / "confusion_matrix.png", confusion)
    write_picture(folder / "curves.png", draw_curves(found.history, found.best_epoch))
    write_picture(folder / "calibration.png", draw_calibration(found.bins))
    if pictures := [shown.picture for shown in found.shown if shown.picture]:
        captions = [
            [f"{shown.true} -> {shown.predicted}", f"{shown.of_predicted:.2%}", shown.name]
            for shown in found.shown
            if shown.picture
        ]
        colours = [WRONG if found.num_wrong else RIGHT] * len(pictures)
        write_picture(folder / "mistakes.png", sheet(pictures, captions, colours))
    else:
        (folder / "mistakes.png").unlink(missing_ok=True)  # an older report's
    write_file(folder / "report.md", _markdown(found))
    write_file(folder / "report.html", page(found, confusion))


def _markdown(found: Findings) -> str:
    parts = [f"# Report: {_escape(found.title)}"]
    parts += ["\n".join(f"- {name}: {_escape(value)}" for name, value in found.facts.items())]
    parts += [f"**Note:** {_escape(note)}" for note in found.notes]
    if found.left_out:
        parts += [f"{len(found.left_out)} images could not be read and were left out:"]
        more = len(found.left_out) - 100
        lines = found.left_out[:100] + ([f"and {more} more"] if more > 0 else [])
        parts += ["\n".join(f"- {_escape(line)}" for line in lines)]
    parts += ["## Test split"]
    parts += [
        f"{found.num_images} images, measured once with the weights of epoch {found.best_epoch}."
    ]
    parts += [_table(["metric", "value"], list(found.metrics.items()))]
    parts += [f"Accuracy of {found.certainty} (Wilson interval)."] if found.certainty else []
    parts += ["## Classes"]
    if found.many:
        parts += [f"The {len(found.worst)} of the smallest F1, of {len(found.classes)}."]
    rows = [list(row.values()) for row in found.worst]
    parts += [_table(["class", "images", "precision", "recall", "F1"], rows)]
    parts += ["## Confusion matrix", "![confusion matrix](confusion_matrix.png)"]
    if found.many:
        header = ["true", "predicted", "images", "share of the true class"]
        parts += ["The pairs most often confused:", _table(header, found.confused)]
    else:
        matrix = zip(found.classes, found.confusion, strict=True)
        rows = [[name, *counts] for name, counts in matrix]
        parts += [_table(["true / predicted", *found.classes], rows)]
    parts += ["## Worst mistakes", _mistakes(found)]
    parts += ["## Calibration", "![calibration](calibration.png)"]
    parts += [
        f"Expected calibration error: {shown_number(found.calibration_error)} "
        f"({len(found.bins)} intervals of confidence; Guo et al., 2017)."
    ]
    parts += ["## Curves", "![curves](curves.png)"]
    parts += [
        _table(found.tags, [[numbers(row).get(t) for t in found.tags] for row in found.history])
    ]
    parts += _balance(found)
    if found.seconds:
        whole = sum(found.seconds.values()) or 1
        rows = [
            [name, SECONDS.get(name, ""), f"{value:.2f}", f"{value / whole:.1%}"]
            for name, value in found.seconds.items()
        ]
        parts += ["## What the time went to", _table(["part", "what", "seconds", "share"], rows)]
    parts += ["## To go on"]
    parts += ["\n".join(f"    # {what}\n    {plain(command)}" for what, command in found.commands)]
    if found.many:
        counts = zip(*found.balance.values(), strict=True) if found.balance else repeat(())
        rows = [[*row.values(), *more] for row, more in zip(found.by_class, counts, strict=False)]
        parts += ["## All classes", _table([*found.by_class[0], *found.balance], rows)]
    indented = "\n".join(f"    {plain(line)}".rstrip() for line in found.config_text.splitlines())
    parts += ["## Config", indented]
    return "\n\n".join(parts) + "\n"


def _mistakes(found: Findings) -> str:
    """The wrongly predicted images, those of the highest probability first."""
    rows = [[s.name, s.true, s.predicted, s.of_predicted, s.of_true] for s in found.shown]
    header = ["image", "true", "predicted", "probability of predicted", "of true"]
    said = f"{len(rows)} of {found.num_wrong} wrong among {found.num_images} images."
    if not found.num_wrong:
        said = "None: every image is predicted right. The least certain ones:"
    pictures = any(shown.picture for shown in found.shown)
    parts = [said, "![worst mistakes](mistakes.png)" if pictures else "", _table(header, rows)]
    return "\n\n".join(part for part in parts if part)


def _balance(found: Findings) -> list[str]:
    if not found.balance:
        return []
    parts = list(found.balance)
    if found.many:
        header = ["part", "images", "smallest class", "largest class"]
        rows = [[p, sum(c), min(c), max(c)] for p, c in found.balance.items()]
    else:
        header = ["class", *parts]
        counts = zip(*found.balance.values(), strict=True)
        rows = [[name, *row] for name, row in zip(found.classes, counts, strict=True)]
    return ["## Class balance", _table(header, rows)]


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """A value as it stands in a table."""
    if value is None:
        return ""
    return shown_number(value) if isinstance(value, float) else _escape(str(value))


def _escape(text: str) -> str:
    """Text without markup; names come from files and may hold anything."""
    return "".join("\\" + c if c in "\\|<>&`*[]" else c for c in plain(text))
