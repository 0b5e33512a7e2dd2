"""Compares runs: settings and metrics, and the best of each."""

import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.comparing.comparability import incomparable, information, is_unlike, warnings
from trainer.comparing.compared import Compared
from trainer.comparing.listing import POWERS_BELOW, number, short, strict_json, took
from trainer.components import HIGHER_IS_BETTER, is_higher_better

# Keys that change no weight.
NO_EFFECT = (
    *("name", "dataset.root", "dataset.draw_if_absent", "log.", "checkpoint."),
    *("loader.workers", "loader.cache", "loader.eval_batch_size", "store.", "train.budget"),
)
ABSENT = "-"


def differing(runs: Sequence[Compared], everything: bool = False) -> list[str]:
    """Return the keys that differ (with a component's name, all its keys), or ``everything``."""
    known = [run.config for run in runs if run.config]
    keys = merge_orders([list(config) for config in known])
    other = {key for key in keys if not all_equal([plain_path(c.get(key, ...)) for c in known])}
    renamed = tuple(key.removesuffix("name") for key in other if key.endswith(".name"))
    return [key for key in keys if everything or key in other or key.startswith(renamed)]


def plain_path(value: Any) -> Any:
    """Return a path without what leaves it the same, such as a last "/"; else the value."""
    return os.path.normpath(value) if isinstance(value, str) and "/" in value else value


def merge_orders(lists: Sequence[Sequence[str]]) -> list[str]:
    """Return each word once; a new word of a later list stands after its predecessor there."""
    merged: list[str] = []
    for words in lists:
        at = 0
        for word in words:
            if word in merged:
                at = merged.index(word) + 1
            else:
                merged.insert(at, word)
                at += 1
    return merged


def all_equal(values: Sequence[Any]) -> bool:
    """Return whether all values are equal; True does not equal 1, but 1 equals 1.0."""
    first = values[0]
    return all(v == first and isinstance(v, bool) == isinstance(first, bool) for v in values)


def metric_rows(runs: Sequence[Compared]) -> dict[str, list[float | None]]:
    """Return rows with one number per run: best val metrics, test metrics, speed, size."""
    best = merge_orders([[k for k in r.found.best if k.startswith("val/")] for r in runs])
    test = merge_orders([list(r.found.test) for r in runs])
    rows: dict[str, list[float | None]] = {}
    for key in sorted(best, key=lambda key: key == "val/loss"):
        rows[f"best {key}"] = [r.found.best.get(key) for r in runs]
    for key in sorted(test, key=lambda key: key == "loss"):
        rows[f"test/{key}"] = [r.found.test.get(key) for r in runs]
    rows["best epoch"] = [r.found.best.get("epoch") for r in runs]
    rows["epochs"] = [r.found.epochs for r in runs]
    rows["images/s"] = [number(r.found.result.get("images_per_second")) for r in runs]
    rows["training time"] = [r.found.seconds for r in runs]
    rows["parameters"] = [number(r.found.result.get("parameters")) for r in runs]
    return {name: values for name, values in rows.items() if values.count(None) < len(values)}


def shown_metrics(row: str, values: Sequence[float | None]) -> list[str]:
    """Return a row's numbers as printed; if one loss is tiny, all have powers of ten."""
    is_fraction = row.rpartition("/")[2] in HIGHER_IS_BETTER
    powers = not is_fraction and any(value and abs(value) < POWERS_BELOW for value in values)
    return [shown_metric(row, value, powers) for value in values]


def shown_metric(row: str, value: float | None, powers: bool) -> str:
    """Return one number of a row as it is printed."""
    if value is None or math.isnan(value):
        return ABSENT if value is None else "nan"
    if row == "training time":
        return took(value)
    if row in ("best epoch", "epochs", "images/s", "parameters"):
        return f"{value:,.0f}"
    return f"{value:.1e}" if powers and value else short(value)


def best_of(row: str, values: Sequence[float | None]) -> set[int]:
    """Return the indices of the best values, as printed; none if all are printed the same."""
    if row in ("best epoch", "epochs", "parameters"):
        return set()
    is_less = row == "training time" or not is_higher_better(row.rpartition("/")[2])
    sign = -1 if is_less else 1
    scores = {i: sign * v for i, v in enumerate(values) if v is not None and math.isfinite(v)}
    texts = shown_metrics(row, values)
    shown = {i: texts[i] for i in scores}
    if len(set(shown.values())) < 2:
        return set()
    best = shown[max(scores, key=lambda i: scores[i])]
    return {i for i, text in shown.items() if text == best}


def marked(runs: Sequence[Compared]) -> dict[str, set[int]]:
    """The indices of the best values of each row; none where the numbers do not mean the same."""
    unlike = incomparable(runs)
    return {
        row: set() if is_unlike(row, unlike) else best_of(row, values)
        for row, values in metric_rows(runs).items()
    }


def over_seeds(runs: Sequence[Compared]) -> dict[str, tuple[float, float]]:
    """Return (mean, std by n - 1) of each metric; {} unless all are done and only seeds differ."""
    keys = {key for key in differing(runs) if not key.startswith(NO_EFFECT)}
    seeds = [run.config.get("seed") for run in runs]
    same = len({(run.dataset, run.split) for run in runs}) == 1
    done = all(run.found.status == "done" and run.config for run in runs)
    if keys != {"seed"} or len(set(map(str, seeds))) < len(runs) or not same or not done:
        return {}
    result = {}
    for row, values in metric_rows(runs).items():
        numbers = [v for v in values if v is not None and math.isfinite(v)]
        if "/" in row and row != "images/s" and len(numbers) == len(runs):
            result[row] = (statistics.fmean(numbers), statistics.stdev(numbers))
    return result


def comparison_json(runs: Sequence[Compared], picture: Path | None) -> dict[str, Any]:
    """Return the comparison as plain values by label; a key that a run lacks is left out."""
    content = {
        "runs": {
            run.label: {
                "path": str(run.found.folder),
                "status": run.found.status,
                "reason": run.found.reason,
                "dataset": run.dataset,
                "split": run.split,
                "code": run.commit,
                "torch": run.torch,
                "device": run.device,
            }
            for run in runs
        },
        "config": {
            key: {run.label: run.config[key] for run in runs if key in run.config}
            for key in differing(runs)
        },
        "results": {
            row: {run.label: v for run, v in zip(runs, values, strict=True) if v is not None}
            for row, values in metric_rows(runs).items()
        },
        "best": {
            row: [runs[i].label for i in sorted(indices)] for row, indices in marked(runs).items()
        },
        "over_seeds": {
            row: {"mean": mean, "std": std} for row, (mean, std) in over_seeds(runs).items()
        },
        "notes": information(runs),
        "warnings": warnings(runs),
        "picture": picture and str(picture),
    }
    return {key: strict_json(value) for key, value in content.items()}


def common_folder(folders: Sequence[Path]) -> Path:
    """Return the deepest folder that holds all runs; the working one if no file can be there."""
    common = os.path.commonpath([os.path.abspath(folder.parent) for folder in folders])
    if common == os.path.dirname(common) or not os.access(common, os.W_OK):  # such as /
        return Path.cwd()
    here = os.path.relpath(common)
    return Path(common if here.startswith("..") else here)
