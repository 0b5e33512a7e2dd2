"""A run's report folder: report.md and two pictures, from the test split measured once."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from trainer.disk import write_file
from trainer.errors import RunError
from trainer.insight.pictures import draw_confusion, draw_curves, numbers
from trainer.metrics import confusion_matrix, per_class

NUM_WORST = 16  # mistakes listed
MAX_TABLE_CLASSES = 20  # beyond, the confusion matrix is a picture only


def write_report(
    folder: Path,
    history: list[dict[str, Any]],
    classes: Sequence[str],
    probabilities: Tensor,
    labels: Tensor,
    ids: Sequence[str],
    config_text: str,
    result: dict[str, Any],
) -> None:
    """Write ``folder``/report.md, confusion_matrix.png and curves.png, making the folder.

    history: one dict an epoch with "epoch" (from 1) and tags such as "val/accuracy"; values that
    are no numbers are passed over. probabilities (N, K), labels (N,) and ids (N) are the test
    split's on the CPU. Of ``result``, "best" (with its "epoch") and "test" are shown.
    """
    if folder.is_symlink():
        raise RunError(f"{folder} is a link; nothing is written behind it.")
    folder.mkdir(parents=True, exist_ok=True)
    best_epoch = result["best"]["epoch"]
    confusion = confusion_matrix(probabilities, labels)
    write_picture(folder / "confusion_matrix.png", draw_confusion(confusion, classes))
    write_picture(folder / "curves.png", draw_curves(history, best_epoch))

    columns = list(dict.fromkeys(["epoch", *(tag for row in history for tag in numbers(row))]))
    parts = ["# Report", "## Test split"]
    parts += [f"{len(labels)} images, measured once with the weights of epoch {best_epoch}."]
    dataset = result.get("dataset", {})
    parts += [f"**Note:** {dataset['note']}"] if dataset.get("note") else []
    left_out = [f"{entry['path']}: {entry['reason']}" for entry in dataset.get("left_out", ())]
    parts += [f"{len(left_out)} images could not be read and were left out:"] if left_out else []
    parts += ["\n".join(f"- {line}" for line in left_out[:100])] if left_out else []
    parts += [_table(["metric", "value"], list(numbers(result["test"]).items()))]
    parts += ["## Classes"]
    rows = [list(row.values()) for row in per_class(probabilities, labels, classes)]
    parts += [_table(["class", "images", "precision", "recall", "F1"], rows)]
    parts += ["## Confusion matrix", "![confusion matrix](confusion_matrix.png)"]
    if len(classes) <= MAX_TABLE_CLASSES:
        rows = [[name, *counts] for name, counts in zip(classes, confusion, strict=True)]
        parts += [_table(["true / predicted", *classes], rows)]
    parts += ["## Worst mistakes"]
    parts += [_worst_mistakes(classes, probabilities, labels, ids)]
    parts += ["## Curves", "![curves](curves.png)"]
    parts += [_table(columns, [[row.get(tag) for tag in columns] for row in history])]
    indented = "\n".join(f"    {line}".rstrip() for line in config_text.splitlines())
    parts += ["## Config", indented]
    text = "\n\n".join(parts) + "\n"
    write_file(folder / "report.md", text)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, at once."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_file(path, content.getvalue())


def _worst_mistakes(
    classes: Sequence[str], probabilities: Tensor, labels: Tensor, ids: Sequence[str]
) -> str:
    """The wrongly predicted images, those of the highest probability first."""
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != labels).nonzero().flatten()
    if not len(wrong):
        return "None: every image is predicted right."
    order = confidence[wrong].argsort(descending=True, stable=True)[:NUM_WORST]
    rows = []
    for i in wrong[order].tolist():
        true, guess = int(labels[i]), int(predicted[i])
        of_guess, of_true = float(probabilities[i, guess]), float(probabilities[i, true])
        rows.append([ids[i], classes[true], classes[guess], of_guess, of_true])
    header = ["image", "true", "predicted", "probability of predicted", "of true"]
    shown = f"{len(rows)} of {len(wrong)} wrong among {len(labels)} images."
    return shown + "\n\n" + _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """A value as it stands in a table; names come from files and may hold anything."""
    if value is None:
        return ""
    if isinstance(value, float):
        return _number(value)
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return "".join("\\" + c if c in "\\|<>&`[]" else c for c in text)


def _number(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 10 else f"{value:.4g}"
