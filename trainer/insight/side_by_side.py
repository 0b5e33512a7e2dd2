"""A comparison of runs as a person sees it: tables that fit the terminal, and one picture."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trainer.document import flow
from trainer.insight.columns import fits_in_one_block, lay_out, visible
from trainer.insight.compared import Compared, CurvePoints
from trainer.insight.comparison import (
    ABSENT,
    NO_EFFECT,
    best_of,
    differing,
    merge_orders,
    metric_rows,
    over_seeds,
    shown_metrics,
    warnings,
)
from trainer.insight.listing import short

if TYPE_CHECKING:
    from PIL import Image

# What tells runs apart best.
NAMED_FIRST = ("model.name", "optimizer.name", "optimizer.lr", "seed", "loader.batch_size")
LONGER = 10  # times as many epochs as another run
CURVES_IN_A_PANEL = 8  # as many colours as a panel has
MAX_PANELS = 12


def text_of(runs: Sequence[Compared], width: int, everything: bool = False) -> list[str]:
    """The comparison as lines of at most ``width``."""
    lines = [f"{r.label}  {r.found.status:<11}  {visible(str(r.found.folder))}" for r in runs]
    keys = differing(runs, everything)
    if keys:
        heading = "config" if everything else "config keys that differ"
        rows = {key: [shown_value(run, key) for run in runs] for key in keys}
        lines += ["", f"{heading} ({ABSENT} is absent)", *settings_of(runs, rows, width)]
    elif all(run.config for run in runs):
        lines += ["", "the configurations are equal"]
    rows = {}
    for name, values in metric_rows(runs).items():
        best = best_of(name, values)
        texts = shown_metrics(name, values)
        rows[name] = [text + ("*" if i in best else "") for i, text in enumerate(texts)]
    if rows:
        lines += ["", "results (* is the best of a row)", *side_by_side(runs, rows, width)]
    if spread := over_seeds(runs):
        lines += ["", f"only the seed differs: mean and standard deviation of {len(runs)} runs"]
        broad = max(map(len, spread))
        lines += [f"{row:<{broad}}  {short(m)} +- {short(std)}" for row, (m, std) in spread.items()]
    if told := warnings(runs):
        lines += ["", *(f"warning: {visible(text)}" for text in told)]
    return lines


def shown_value(run: Compared, key: str) -> str:
    """A setting as the YAML has it."""
    if key not in run.config:
        return ABSENT
    value = run.config[key]
    names = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return visible(", ".join(value) if names and value else flow(value))


def side_by_side(
    runs: Sequence[Compared], rows: Mapping[str, Sequence[str]], width: int
) -> list[str]:
    """A column a run where there is room for it, else a line a run."""
    table = [["", *(run.label for run in runs)]]
    table += [[visible(name), *cells] for name, cells in rows.items()]
    if not fits_in_one_block(table, width):
        table = [list(column) for column in zip(*table, strict=True)]
    return lay_out(table, width)


def settings_of(
    runs: Sequence[Compared], rows: Mapping[str, Sequence[str]], width: int
) -> list[str]:
    """The settings side by side; where that has no room, what most runs have, and who has not."""
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
    """What most of the runs have; of equally many, the first."""
    return Counter(cells).most_common(1)[0][0]


def settings_text(values: Mapping[str, str]) -> str:
    """Settings one after the other, as the command line takes them."""
    return "; ".join(f"{visible(key)}={value}" for key, value in values.items())


def draw_comparison(runs: Sequence[Compared]) -> "Image.Image | None":
    """The curves of all runs, a colour each; None where no epoch has ended yet.

    More runs than there are colours go into further panels.
    """
    from trainer.insight.charts import draw_lines

    names = short_names(runs)
    monitors = merge_orders([[r.found.monitor] for r in runs if r.found.monitor])
    panels: dict[str, dict[str, CurvePoints]] = {}
    for tag in dict.fromkeys(["val/loss", *monitors, "train/loss_epoch"]):
        title = tag.removesuffix("_epoch")
        for begin in range(0, len(runs), CURVES_IN_A_PANEL):
            part = runs[begin : begin + CURVES_IN_A_PANEL]
            within = (
                f" ({part[0].label} to {part[-1].label})" if len(runs) > CURVES_IN_A_PANEL else ""
            )
            curves = {names[run.label]: run.curves.get(tag, []) for run in part}
            if any(curves.values()) and len(panels) < MAX_PANELS:
                panels[title + within] = curves
    ends = [x for curves in panels.values() for curve in curves.values() for x, _ in curve[-1:]]
    if not ends:
        return None
    if max(ends) > LONGER * min(ends):  # else the short ones would be a dash at the edge
        return draw_lines(panels, "epoch (logarithmic)", log_x=True)
    return draw_lines(panels, "epoch")


def short_names(runs: Sequence[Compared]) -> dict[str, str]:
    """What each run is called in a legend: its label, and what it has that most have not.

    Of more than two such settings, those that come first in NAMED_FIRST; of none, the run's name.
    """
    keys = [key for key in differing(runs) if not key.startswith(NO_EFFECT)]
    keys.sort(key=lambda key: NAMED_FIRST.index(key) if key in NAMED_FIRST else len(NAMED_FIRST))
    cells = {key: [shown_value(run, key) for run in runs] for key in keys}
    names = {}
    for i, run in enumerate(runs):
        own = [k for k in keys if len(keys) <= 2 or cells[k][i] != most_common(cells[k])]
        told = []
        for key in own[:2]:
            section, _, rest = key.partition(".")
            named = "" if rest == "name" else key if section == "split" else rest or key
            told.append(f"{named} {cells[key][i]}".strip())
        names[run.label] = f"{run.label}: {', '.join(told) or run.found.name}"
    return names
