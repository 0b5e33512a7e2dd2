"""A run's report folder: report.md, report.html and pictures, from the test split measured once."""

from collections.abc import Callable, Mapping, Sequence
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
)
from trainer.insight.findings import SECONDS, Findings, find
from trainer.insight.html import page
from trainer.insight.page import render
from trainer.insight.pictures import sheet, write_picture

TEMPLATE = Path(__file__).parent / "templates" / "report.md.j2"


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
    pictures = [shown.picture for shown in found.shown if shown.picture]
    if pictures:
        captions = [
            [f"{shown.true} -> {shown.predicted}", f"{shown.of_predicted:.2%}", shown.name]
            for shown in found.shown
            if shown.picture
        ]
        colours = [WRONG if found.num_wrong else RIGHT] * len(pictures)
        write_picture(folder / "mistakes.png", sheet(pictures, captions, colours))
    else:
        (folder / "mistakes.png").unlink(missing_ok=True)  # an older report's
    write_file(folder / "report.md", _markdown(found, bool(pictures)))
    write_file(folder / "report.html", page(found, confusion))


def _markdown(found: Findings, has_pictures: bool) -> str:
    counts = list(zip(*found.balance.values(), strict=True)) or [()] * len(found.classes)
    whole = sum(found.seconds.values()) or 1
    return render(
        TEMPLATE,
        found=found,
        classes=[row.values() for row in found.worst],
        matrix=[[name, *n] for name, n in zip(found.classes, found.confusion, strict=True)],
        has_pictures=has_pictures,
        mistakes=[[s.name, s.true, s.predicted, s.of_predicted, s.of_true] for s in found.shown],
        balance=[[name, *row] for name, row in zip(found.classes, counts, strict=True)],
        seconds=[
            [name, SECONDS.get(name, ""), f"{value:.2f}", f"{value / whole:.1%}"]
            for name, value in found.seconds.items()
        ],
        all_classes=[[*r.values(), *n] for r, n in zip(found.by_class, counts, strict=True)],
    )
