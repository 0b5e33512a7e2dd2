"""Makes the report as one page of HTML: no script, no request, light and dark, printable."""

import base64
import io
from pathlib import Path

from PIL import Image

from trainer.drawing.axes import COLOURS
from trainer.drawing.charts import panels_of
from trainer.drawing.page import render
from trainer.drawing.pictures import png
from trainer.drawing.svg import calibration_chart, curves_chart, element
from trainer.insight.findings import SETS_COLUMNS, UNCHANGED, Findings, error_of, lowest_first

FIT = 10  # classes whose confusion matrix fits on a phone
CRISP_BELOW = 64  # pixels of a side; smaller pictures are shown crisp
REPORT_TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"


def report_page(found: Findings, confusion: Image.Image) -> str:
    """The page as HTML; if there are many classes, it shows the picture ``confusion``."""
    charts = [
        curves_chart(title, curves, found.best_epoch)
        for title, curves in panels_of(found.history).items()
    ]
    kinds = [f"c{i % len(COLOURS)}" for i in range(len(found.seconds))]
    return render(
        REPORT_TEMPLATE,
        title=found.title,
        kind="report",
        facts=found.facts,
        found=found,
        worst=[row.values() for row in found.worst],
        by_class=[row.values() for row in found.by_class],
        charts=charts,
        confusion=confusion,
        fit=FIT,
        calibration_chart=calibration_chart(found.bins, found.calibration_error),
        calibrated_chart=found.calibrated_bins
        and calibration_chart(found.calibrated_bins, error_of(found.calibrated_bins)),
        unchanged=UNCHANGED,
        sets_columns=SETS_COLUMNS,
        sets=lowest_first(found.sets),
        intervals=[
            (f"{i / len(found.bins):.2f} to {(i + 1) / len(found.bins):.2f}", *row)
            for i, row in enumerate(found.bins)
            if row[0]
        ],
        times=[
            [
                element("span", element("span", kind=f"swatch {kind}"), row[0], kind="label"),
                *row[1:],
            ]
            for kind, row in zip(kinds, found.times, strict=True)
        ],
        kinds=kinds,
        data_url=data_url,
        small=CRISP_BELOW,
    )


def data_url(picture: Image.Image) -> str:
    """A picture as a data URL: small pictures and charts as PNG, photographs as JPEG."""
    if max(picture.size) <= CRISP_BELOW or picture.width > 400:  # JPEG blurs the letters of charts
        kind, data = "png", png(picture)
    else:
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=85)
        kind, data = "jpeg", content.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
