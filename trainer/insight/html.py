"""The report as one page of HTML: no script, no request to anywhere, light and dark, for print."""

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.insight.axes import COLOURS
from trainer.insight.charts import panels_of
from trainer.insight.findings import SECONDS, Findings
from trainer.insight.page import render
from trainer.insight.pictures import png
from trainer.insight.svg import calibration_chart, curves_chart
from trainer.insight.text import shown_number

FIT = 10  # classes whose confusion matrix a phone shows whole
SMALL = 64  # pixels of a side; smaller pictures are shown crisp
TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"


def page(found: Findings, confusion: Image.Image) -> str:
    """The whole page; ``confusion`` is the picture that many classes are shown by."""
    charts = [
        curves_chart(title, curves, found.best_epoch)
        for title, curves in panels_of(found.history).items()
    ]
    return render(
        TEMPLATE,
        title=found.title,
        kind="report",
        facts=found.facts,
        found=found,
        charts=charts,
        matrix=_matrix(found) if not found.many else [],
        confusion=confusion,
        fit=FIT,
        class_rows=_class_rows,
        calibration_chart=calibration_chart(found.bins, found.calibration_error),
        intervals=[
            (f"{i / len(found.bins):.2f} to {(i + 1) / len(found.bins):.2f}", *row)
            for i, row in enumerate(found.bins)
            if row[0]
        ],
        balance=_balance(found),
        what=SECONDS,
        colours=len(COLOURS),
        data_url=_data_url,
        small=SMALL,
    )


def _matrix(found: Findings) -> list[tuple[str, list[tuple[str, int, float]]]]:
    """Each true class with its (predicted class, images, their share of the true class)."""
    return [
        (name, [(p, n, n / (sum(counts) or 1)) for p, n in zip(found.classes, counts, strict=True)])
        for name, counts in zip(found.classes, found.confusion, strict=True)
    ]


def _class_rows(rows: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    scores = ("precision", "recall", "f1")
    return [
        [row["class"], row["images"], *((row[key], shown_number(row[key])) for key in scores)]
        for row in rows
    ]


def _balance(found: Findings) -> list[list[Any]]:
    """Each class with its images in each part, as shares of the largest class's there."""
    most = [max(counts, default=0) or 1 for counts in found.balance.values()]
    by_class = zip(*found.balance.values(), strict=True)
    return [
        [name, *((n / whole, f"{n:,}") for n, whole in zip(counts, most, strict=True))]
        for name, counts in zip(found.classes, by_class, strict=False)
    ]


def _data_url(picture: Image.Image) -> str:
    """A picture within the page: small ones and charts as PNG, photographs as JPEG."""
    kind = "png"
    if max(picture.size) <= SMALL or picture.width > 400:  # of charts JPEG would blur the letters
        data = png(picture)
    else:
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=85)
        kind, data = "jpeg", content.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
