"""The report as one page of HTML: no script, no request to anywhere, light and dark, for print."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.insight.charts import COLOURS, numbers, panels_of
from trainer.insight.findings import SECONDS, Findings, Shown, shown_number
from trainer.insight.pictures import png
from trainer.insight.svg import calibration_chart, curves_chart, escaped

FIT = 10  # classes whose confusion matrix a phone shows whole
STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


def page(found: Findings, confusion: Image.Image) -> str:
    """The whole page; ``confusion`` is the picture that many classes are shown by."""
    sections = {
        "Test split": _test(found),
        "Curves": _curves(found),
        "Confusion matrix": _confusion(found, confusion),
        "Classes": _classes(found),
        "Worst mistakes": _mistakes(found),
        "Calibration": _calibration(found),
        "Class balance": _balance(found),
        "What the time went to": _time(found),
        "To go on": _commands(found),
        "Config": f"<pre tabindex=0>{_lines(found.config_text)}</pre>",
    }
    sections = {title: content for title, content in sections.items() if content}
    anchors = {title: title.lower().replace(" ", "-") for title in sections}
    links = " ".join(f'<a href="#{anchors[title]}">{title}</a>' for title in sections)
    body = "\n".join(
        f'<section id="{anchors[title]}"><h2>{title}</h2>\n{content}\n</section>'
        for title, content in sections.items()
    )
    title = escaped(found.title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}: report</title>
<style>
{STYLE}</style>
</head>
<body>
<header><h1>{title}</h1>
{_facts(found)}{_notes(found)}<nav aria-label="Sections">{links}</nav></header>
<main>
{body}
</main>
</body>
</html>
"""


def _facts(found: Findings) -> str:
    rows = (f"<div><dt>{k}</dt><dd>{escaped(v)}</dd></div>" for k, v in found.facts.items())
    return f"<dl class=facts>{''.join(rows)}</dl>\n"


def _notes(found: Findings) -> str:
    notes = [f"<p class=note><b>Note:</b> {escaped(note)}</p>\n" for note in found.notes]
    if found.left_out:
        lines = "".join(f"<li>{escaped(line)}</li>" for line in found.left_out[:100])
        more = len(found.left_out) - 100
        lines += f"<li>and {more:,} more</li>" if more > 0 else ""
        head = f"{len(found.left_out):,} images could not be read and were left out"
        notes.append(f"<details class=note><summary>{head}</summary><ul>{lines}</ul></details>\n")
    return "".join(notes)


def _test(found: Findings) -> str:
    numbers_ = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{shown_number(value)}</dd></div>"
        for name, value in found.metrics.items()
    )
    said = f"{found.num_images:,} images, measured once with the weights of epoch "
    certainty = (
        f"<p>Accuracy of {found.certainty} (Wilson interval).</p>" if found.certainty else ""
    )
    return f"<p>{said}{found.best_epoch}.</p>\n<dl class=metrics>{numbers_}</dl>{certainty}"


def _curves(found: Findings) -> str:
    charts = "".join(
        curves_chart(title, curves, found.best_epoch)
        for title, curves in panels_of(found.history).items()
    )
    rows = [[numbers(row).get(tag) for tag in found.tags] for row in found.history]
    head = f"All {len(rows):,} epochs as numbers"
    table = _fold(head, _table(found.tags, rows))
    return f"<div class=charts>{charts}</div>\n{table}" if rows else ""


def _confusion(found: Findings, confusion: Image.Image) -> str:
    if found.many:
        rows = [list(pair) for pair in found.confused]
        header = ["true", "predicted", "images", "share of the true class"]
        alt = f"Confusion matrix of {len(found.classes):,} classes: the darker, the more images"
        pairs = _table(header, rows, words=2)
        return f"{_image(confusion, alt)}<h3>The pairs most often confused</h3>{pairs}"
    names = [escaped(name) for name in found.classes]
    head = "".join(f"<th scope=col><span>{name}</span></th>" for name in names)
    lines = []
    for name, counts in zip(names, found.confusion, strict=True):
        whole = sum(counts) or 1
        cells = []
        for column, number in enumerate(counts):
            depth = math.sqrt(number / whole)  # the root lets rare mistakes be seen
            tip = f"true {name}, predicted {names[column]}: {number / whole:.1%} of {name}"
            kind = " class=deep" if depth > 0.6 else ""
            cells += [f'<td{kind} style="--d:{depth:.2f}" title="{tip}">{number or ""}</td>']
        lines += [f"<tr><th scope=row>{name}</th>{''.join(cells)}</tr>"]
    dense = len(names) > FIT
    hint = "<span class=hint> Swipe it sideways to see all.</span>" if dense else ""
    kinds = '"confusion dense"' if dense else "confusion"
    return (
        f"<p>Rows: true class. Columns: predicted class.{hint}</p>"
        f"<div class=wide tabindex=0><table class={kinds}>"
        f"<thead><tr><td></td>{head}</tr></thead>\n"
        "<tbody>" + "\n".join(lines) + "</tbody></table></div>"
    )


def _classes(found: Findings) -> str:
    said = ""
    if found.many:
        said = f"<p>The {len(found.worst)} of the smallest F1, of {len(found.classes):,}.</p>"
    table = _class_table(found.worst)
    every = _fold("All classes", _class_table(found.by_class)) if found.many else ""
    return f"{said}{table}{every}"


def _class_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [escaped(row["class"]), f"{row['images']:,}"]
        + [_bar(row[key], shown_number(row[key])) for key in ("precision", "recall", "f1")]
        for row in rows
    ]
    return _rows(["class", "images", "precision", "recall", "F1"], lines)


def _mistakes(found: Findings) -> str:
    said = f"{len(found.shown)} of {found.num_wrong:,} wrong among {found.num_images:,} images, "
    said += "those first of which the model was most certain."
    if not found.num_wrong:
        said = "None: every image is predicted right. The least certain ones:"
    kind = "wrong" if found.num_wrong else "right"
    figures = "\n".join(_figure(shown, kind) for shown in found.shown)
    return f"<p>{said}</p>\n<div class=sheet>{figures}</div>"


def _figure(shown: Shown, kind: str) -> str:
    true, predicted, name = escaped(shown.true), escaped(shown.predicted), escaped(shown.name)
    image = f"<div class=absent>{escaped(shown.fault)}</div>"
    if shown.picture:
        image = _image(shown.picture, f"{name}: true {true}, predicted {predicted}")
    of_true = f", true {shown.of_true:.1%}" if kind == "wrong" else ""
    return (
        f"<figure class={kind}><div class=frame>{image}</div><figcaption>"
        f"<b>{true} \u2192 {predicted}</b> <span>{shown.of_predicted:.1%}{of_true}</span>"
        f"<small>{name}</small></figcaption></figure>"
    )


def _calibration(found: Findings) -> str:
    said = (
        f"Expected calibration error {shown_number(found.calibration_error)}: how far confidence "
        f"and accuracy lie apart, 0 being best ({len(found.bins)} intervals; Guo et al., 2017). "
        "A bar below its red mark: the model is surer than it should be."
    )
    shown = [(i, *row) for i, row in enumerate(found.bins) if row[0]]
    rows = [
        [f"{i / len(found.bins):.2f} to {(i + 1) / len(found.bins):.2f}", images, sure, right]
        for i, images, sure, right in shown
    ]
    table = _table(["confidence", "images", "mean confidence", "accuracy"], rows)
    chart = calibration_chart(found.bins, found.calibration_error)
    return f"<p>{said}</p>\n<div class=charts>{chart}<div>{_fold('As numbers', table)}</div></div>"


def _balance(found: Findings) -> str:
    if not found.balance:
        return ""
    most = {part: max(counts, default=0) or 1 for part, counts in found.balance.items()}
    lines = [
        [escaped(name)]
        + [
            _bar(number / most[part], f"{number:,}")
            for part, number in zip(found.balance, counts, strict=True)
        ]
        for name, counts in zip(
            found.classes, zip(*found.balance.values(), strict=True), strict=True
        )
    ]
    table = _rows(["class", *map(escaped, found.balance)], lines)
    if not found.many:
        return table
    rows = [[part, sum(c), min(c), max(c)] for part, c in found.balance.items()]
    summary = _table(["part", "images", "smallest class", "largest class"], rows)
    return summary + _fold(f"All {len(lines):,} classes", table)


def _time(found: Findings) -> str:
    whole = sum(found.seconds.values())
    if not whole:
        return ""
    bar, lines = [], []
    for colour, (name, seconds) in zip(count(), found.seconds.items(), strict=False):
        share, label = seconds / whole, escaped(name)
        kind = f"c{colour % len(COLOURS)}"
        bar += [
            f'<div class={kind} style="flex-grow:{share:.4f}" title="{label} {share:.1%}"></div>'
        ]
        what = f'<span class=label><span class="swatch {kind}"></span>{label}</span>'
        lines += [[what, escaped(SECONDS.get(name, "")), f"{seconds:.2f}", f"{share:.1%}"]]
    table = _rows(["part", "what", "seconds", "share"], lines, words=2)
    speed = found.facts.get("speed")
    said = f"<p>{escaped(speed)} while training.</p>" if speed else ""
    return f"{said}<div class=stack aria-hidden=true>{''.join(bar)}</div>{table}"


def _commands(found: Findings) -> str:
    lines = (
        f"<dt>{what}</dt><dd><code>{escaped(line)}</code></dd>" for what, line in found.commands
    )
    said = "<p>In the checkout's root; a click selects a whole line.</p>"
    return f"{said}<dl class=commands>{''.join(lines)}</dl>"


# Pieces


def _bar(share: float, text: str) -> str:
    return f'<span class=bar style="--v:{share:.3f}">{text}</span>'


def _fold(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>{content}</details>"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]], words: int = 1) -> str:
    cells = [[_cell(value) for value in row] for row in rows]
    return _rows([escaped(name) for name in header], cells, words)


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table of cells that are HTML already; the first ``words`` columns hold no numbers."""
    kinds = [" class=word" if i < words else "" for i in range(len(header))]
    head = "".join(
        f"<th scope=col{kind}>{name}</th>" for kind, name in zip(kinds, header, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f"<div class=wide tabindex=0><table><thead><tr>{head}</tr></thead>\n"
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return shown_number(value)
    return f"{value:,}" if isinstance(value, int) else escaped(str(value))


def _image(picture: Image.Image, alt: str) -> str:
    """A picture within the page: small ones crisp, photographs as JPEG."""
    small = max(picture.size) <= 64
    kind = "png"
    if small or picture.width > 400:  # of charts JPEG would blur the letters
        data = png(picture)
    else:
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=85)
        kind, data = "jpeg", content.getvalue()
    text = base64.b64encode(data).decode()
    crisp = " class=crisp" if small else ""
    return (
        f'<img{crisp} alt="{alt}" width="{picture.width}" height="{picture.height}"'
        f' src="data:image/{kind};base64,{text}">'
    )


def _lines(text: str) -> str:
    return "\n".join(escaped(line) for line in text.splitlines())
