"""Shows a comparison of runs: tables that fit the terminal, and one picture."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trainer.comparing import comparison
from trainer.comparing.comparability import incomparable, information, warnings
from trainer.comparing.compared import Compared, CurvePoints
from trainer.comparing.comparison import ABSENT
from trainer.comparing.listing import short
from trainer.config.document import flow
from trainer.drawing.columns import fits_in_one_block, lay_out
from trainer.process.words import visible

if TYPE_CHECKING:
    from PIL import Image

LONGER = 10  # times as many epochs as another run: the axis becomes logarithmic
MAX_CURVES = 8  # in a panel: there are 8 colours
MAX_PANELS = 36


def text_of(runs: Sequence[Compared], width: int, everything: bool = False) -> list[str]:
    """Return the comparison as lines of at most ``width``; everything: equal settings too."""
    lines = [f"{r.label}  {r.found.status:<11}  {visible(str(r.found.folder))}" for r in runs]
    keys = comparison.differing(runs, everything)
    # A section without content (scheduler: null) is told by its keys, if another run has them.
    empty = {key for key in keys if not any(run.config.get(key) for run in runs)}
    empty = {key for key in empty if any(other.startswith(f"{key}.") for other in keys)}
    keys = [key for key in keys if key not in empty]
    if keys:
        heading = "config" if everything else "config keys that differ"
        rows = {key: [shown_value(run, key) for run in runs] for key in keys}
        lines += ["", f"{heading} ({ABSENT} is absent)", *settings_of(runs, rows, width)]
    elif all(run.config for run in runs):
        lines += ["", "the configurations are equal"]
    rows, best = {}, comparison.marked(runs)
    for name, values in comparison.metric_rows(runs).items():
        texts = comparison.shown_metrics(name, values)
        rows[name] = [text + ("*" if i in best[name] else "") for i, text in enumerate(texts)]
    if rows:
        unmarked = "; none where the numbers cannot be compared"
        heading = "results (* is the best of a row" + unmarked * bool(incomparable(runs)) + ")"
        lines += ["", heading, *side_by_side(runs, rows, width)]
    if spread := comparison.over_seeds(runs):
        lines += ["", f"only the seed differs: mean and standard deviation of {len(runs)} runs"]
        broad = max(map(len, spread))
        lines += [f"{row:<{broad}}  {short(m)} +- {short(std)}" for row, (m, std) in spread.items()]
    messages = [f"note: {text}" for text in information(runs)]
    messages += [f"warning: {visible(text)}" for text in warnings(runs)]
    lines += ["", *messages] if messages else []
    return lines


def shown_value(run: Compared, key: str) -> str:
    """Return a setting of a run as the YAML has it."""
    if key not in run.config:
        return ABSENT
    value = run.config[key]
    names = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return visible(", ".join(value) if names and value else flow(value))


def side_by_side(
    runs: Sequence[Compared], rows: Mapping[str, Sequence[str]], width: int
) -> list[str]:
    """Return a table's lines: a column per run, or, if that is too wide, a row per run."""
    table = [["", *(run.label for run in runs)]]
    table += [[visible(name), *cells] for name, cells in rows.items()]
    if not fits_in_one_block(table, width):
        table = [list(column) for column in zip(*table, strict=True)]
    return lay_out(table, width)


def settings_of(
    runs: Sequence[Compared], rows: Mapping[str, Sequence[str]], width: int
) -> list[str]:
    """Return the settings side by side; if too wide, the most common and each run's exceptions."""
    across = [["", *(run.label for run in runs)], *([key, *cells] for key, cells in rows.items())]
    down = list(zip(*across, strict=True))
    if fits_in_one_block(across, width) or fits_in_one_block(down, width):
        return side_by_side(runs, rows, width)
    usual = {key: most_common(cells) for key, cells in rows.items()}
    present = {key: value for key, value in usual.items() if value != ABSENT}
    table = [["", "settings"], ["most", settings_text(present)]]
    for i, run in enumerate(runs):
        own = {key: cells[i] for key, cells in rows.items() if cells[i] != usual[key]}
        table.append([run.label, settings_text(own) or "as most"])
    return lay_out(table, width)


def most_common(cells: Sequence[str]) -> str:
    """Return the most common cell, the first one if several are as common."""
    return Counter(cells).most_common(1)[0][0]


def settings_text(values: Mapping[str, str]) -> str:
    """Return settings as the command line takes them: ``key=value; key=value``."""
    return "; ".join(f"{visible(key)}={value}" for key, value in values.items())


def draw_comparison(runs: Sequence[Compared]) -> "Image.Image | None":
    """Return a picture of the curves of all runs, or None if no epoch has ended yet."""
    from trainer.drawing.charts import draw_lines

    names = short_names(runs)
    monitors = comparison.merge_orders([[r.found.monitor] for r in runs if r.found.monitor])
    panels: dict[str, dict[str, CurvePoints]] = {}
    for tag in dict.fromkeys(["val/loss", *monitors, "train/loss_epoch"]):
        title = tag.removesuffix("_epoch")
        for begin in range(0, len(runs), MAX_CURVES):
            shown = runs[begin : begin + MAX_CURVES]
            within = f" ({shown[0].label} to {shown[-1].label})" if len(runs) > MAX_CURVES else ""
            curves = {names[run.label]: run.curves.get(tag, []) for run in shown}
            if any(curves.values()):
                panels[title + within] = curves
    ends = [x for curves in panels.values() for curve in curves.values() for x, _ in curve[-1:]]
    if not ends:
        return None
    if (more := len(panels) - MAX_PANELS) > 0:
        *kept, (title, curves) = list(panels.items())[:MAX_PANELS]
        panels = dict(kept) | {f"{title}; no room for {more} more panels": curves}
    if max(ends) > LONGER * min(ends):  # else short curves would be a dash at the edge
        return draw_lines(panels, "epoch (logarithmic)", log_x=True)
    return draw_lines(panels, "epoch")


def short_names(runs: Sequence[Compared]) -> dict[str, str]:
    """Return each run's name in the legend: its label, its name, and its folder if it is needed.

    If a single setting tells the runs apart, it is named too.
    """
    keys = [key for key in comparison.differing(runs) if not key.startswith(comparison.NO_EFFECT)]
    often = Counter(run.found.name for run in runs)
    names = {}
    for run in runs:
        name = visible(run.found.name)
        name += f"/{visible(run.found.stamp)}" if often[run.found.name] > 1 else ""
        if len(keys) == 1:
            what = keys[0].rpartition(".")[2] if not keys[0].startswith("split.") else keys[0]
            name += f", {what} {shown_value(run, keys[0])}"
        names[run.label] = f"{run.label}: {name}"
    return names
