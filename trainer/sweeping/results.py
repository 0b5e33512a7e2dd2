"""The results of a sweep, one row per trial, as table, JSON and CSV."""

import csv
import io
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.comparing.compared import has_several, what_it_answers
from trainer.comparing.listing import short, strict_json, took
from trainer.comparing.paired import CERTAINTY
from trainer.config.document import flow
from trainer.drawing.columns import fit_columns, hang, lay_out, left_out, width_of
from trainer.process.errors import RunError
from trainer.process.words import visible
from trainer.sweeping.plan import Plan
from trainer.sweeping.space import Settings, display_value, overrides

if TYPE_CHECKING:
    from trainer.comparing.predictions import Predictions
    from trainer.sweeping.trials import Trials

MAX_ROWS = 60  # of the table in the terminal
MAX_FAILED = 10  # failed trials that are listed below the table
NEAR = "≈"  # beside the value of a trial within noise of the best
TRIAL_STATES = ("done", "pruned", "failed", "begun", "waiting")


@dataclass(frozen=True)
class Row:
    """A trial: its settings, and the results of its runs (one per seed and fold).

    ``values``: the monitored value of each ended run, at the run's best epoch. ``loss``: the mean
    val/loss of these epochs. ``test``: the mean of each test number. ``runs``: the content of each
    end.json, with seed and fold. ``status``: one of TRIAL_STATES. ``near``: whether it is within
    noise of the best trial; None if that was not judged.
    """

    number: int
    settings: Settings
    status: str
    runs: Sequence[Mapping[str, Any]]
    values: Sequence[float]
    loss: float
    test: Mapping[str, float]
    seconds: float
    epochs: float | None
    reason: str
    near: bool | None = None

    @property
    def mean(self) -> float | None:
        """The mean of the values; None if there are none."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """The standard deviation of the values (divided by n - 1); None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def wall(self) -> float | None:
        """Seconds from start to end of its runs' processes, added up; None if not all are known."""
        found = [end.get("wall_seconds") for end in self.runs]
        is_known = bool(found) and all(map(_is_number, found))
        return math.fsum(map(float, filter(None, found))) if is_known else None

    @property
    def shown(self) -> str:
        """Mean and standard deviation: ``0.9375 ± 0.0312``."""
        return _mean_and_std(self.values)

    @property
    def marked(self) -> str:
        """``shown``, with NEAR if it is within noise of the best."""
        return self.shown + f" {NEAR}" * bool(self.near)

    @property
    def spread(self) -> str:
        """The smallest and the largest value: ``0.9062..0.9688``; "" for fewer than two."""
        return _spread(self.values)

    @property
    def tests(self) -> dict[str, tuple[str, str]]:
        """(mean ± std, min..max) of each test number. They are shown, but never rank trials."""
        found = {name: [end["test"].get(name) for end in self.runs] for name in self.test}
        numbers = {name: [v for v in values if _is_number(v)] for name, values in found.items()}
        return {name: (_mean_and_std(v), _spread(v)) for name, v in numbers.items()}


def _mean_and_std(values: Sequence[float]) -> str:
    deviation = f" ± {short(statistics.stdev(values))}" if len(values) > 1 else ""
    return short(statistics.fmean(values) if values else None) + deviation


def _spread(values: Sequence[float]) -> str:
    return f"{short(min(values))}..{short(max(values))}" if len(values) > 1 else ""


def reported_test(plan: Plan, rows: Sequence[Row]) -> str | None:
    """The monitored metric's name; None if trials have one run, or no run has its test number."""
    name = plan.monitor.removeprefix("val/")
    return name if len(plan.members) > 1 and any(name in row.test for row in rows) else None


def value_of(ends: Sequence[Mapping[str, Any]]) -> float | None:
    """A trial's value: the mean over its runs; None if one of them failed or has no number."""
    values = [end["value"] for end in ends if end["status"] == "done"]
    if len(values) < len(ends) or not values or any(v is None for v in values):
        return None
    mean = statistics.fmean(values)
    return mean if math.isfinite(mean) else None


def rows_of(plan: Plan, folder: Path, trials: "Trials") -> list[Row]:
    """A row for every trial in its present state, in the order of their numbers."""
    from trainer.sweeping.folder import ended, members_of

    rows = []
    for trial, elsewhere in trials.everything():
        ends, begun = elsewhere or [], elsewhere is not None
        if elsewhere is None:
            for member in members_of(plan, trial):
                begun = begun or (folder / member.name).exists()
                if (end := ended(folder / member.name)) is not None:
                    ends.append({"seed": member.seed, "fold": member.fold, **end})
        rows.append(_row(plan, trial.number, trial.settings, ends, begun))
    return rows


def _row(
    plan: Plan, number: int, settings: Settings, ends: list[dict[str, Any]], begun: bool
) -> Row:
    states = {end["status"] for end in ends}
    if "pruned" in states:
        status = "pruned"
    elif len(ends) < len(plan.members):
        status = "begun" if begun else "waiting"
    else:
        status = "failed" if "failed" in states else "done"
    values = [end["value"] for end in ends if _is_number(end["value"])]
    losses = [end["best"].get("val/loss", math.inf) for end in ends]
    epochs = [end["epochs"] for end in ends if _is_number(end["epochs"])]
    tests: dict[str, list[float]] = {}
    for end in ends:
        for name, value in end["test"].items():
            tests.setdefault(name, []).append(value)
    return Row(
        number,
        settings,
        status,
        ends,
        values,
        statistics.fmean(losses) if losses else math.inf,
        {name: statistics.fmean(found) for name, found in tests.items()},
        sum(end["seconds"] or 0.0 for end in ends),
        statistics.fmean(epochs) if epochs else None,
        next((end["reason"] for end in ends if end["reason"]), ""),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def ranked(plan: Plan, rows: Sequence[Row]) -> list[Row]:
    """The trials that are done, the best first; among equal values, the lowest val/loss first."""
    done = [row for row in rows if row.status == "done" and row.mean is not None]
    return sorted(done, key=lambda row: (-plan.sign * (row.mean or 0), row.loss, row.number))


def in_rank(plan: Plan, rows: Sequence[Row]) -> list[Row]:
    """All trials: first ``ranked``, then the others in the order of TRIAL_STATES."""
    best = ranked(plan, rows)
    rest = [row for row in rows if row not in best]
    return best + sorted(rest, key=lambda row: (TRIAL_STATES.index(row.status), row.number))


def sweep_table(plan: Plan, rows: Sequence[Row], width: int) -> list[str]:
    """The trials as lines for a terminal of ``width`` columns, the best first.

    Columns without room are left out, the least important first, and named in a line.
    """
    keys = list(plan.sweep.params)
    several, test = len(plan.members) > 1, reported_test(plan, rows)
    head = ["trial", *column_names(keys), plan.monitor, *["min..max"] * several]
    head += [f"test/{test}", "test min..max"] if test else []
    cells = [[*head, "epochs", "wall", "status"]]
    listed = in_rank(plan, rows)
    for row in listed[:MAX_ROWS]:
        values = [visible(display_value(row.settings[key])) for key in keys]
        line = [f"t{row.number:03d}", *values, row.marked] + [row.spread] * several
        if test:
            line += row.tests.get(test, ("-", ""))
        epochs = "-" if row.epochs is None else f"{row.epochs:.0f}"
        cells.append([*line, epochs, took(row.wall), row.status])
    droppable = ["epochs", "test min..max", "min..max", "wall"]
    lines, out = fit_columns(cells, width, [name for name in droppable if name in cells[0]])
    if any(width_of(line) > width for line in lines):  # the settings alone are wider
        kept = [at for at, name in enumerate(cells[0]) if name not in out]
        lines = lay_out([[line[at] for at in kept] for line in cells], width)
    lines += left_out(out, width, "sweep.html has all")
    means = f"mean ± std over {len(plan.members)} runs; " if several else ""
    lines += hang(f"{means}wall: from start to end of each run's process, added up", 0, width)
    if test:
        told = "test/ is reported only: trials are ranked, and the best is chosen, by val/"
        lines += hang(told, 0, width)
    if told := about_noise(plan, rows):
        lines += hang(told, 0, width)
    if len(listed) > MAX_ROWS:
        lines.append(f"and {len(listed) - MAX_ROWS} more; sweep.csv has all")
    return lines


def judge_noise(plan: Plan, folder: Path, rows: Sequence[Row]) -> list[Row]:
    """The rows, with ``near`` where the tables of the runs' answers to val tell it."""
    from trainer.comparing.head_to_head import LOSS, NotPaired, measure_of
    from trainer.comparing.near_best import is_near

    done = ranked(plan, rows)
    if len(done) < 2 or not (tables := answers_of_runs(folder, done[0])):
        return list(rows)
    first, *others = done
    name = plan.monitor.removeprefix("val/")
    several = has_several(what_it_answers(folder / first.runs[0]["run"]))
    metric = next((one for one in plan.config.metrics if one.name == name), None)
    measure = LOSS if metric is None else measure_of(metric, several)
    near = {first.number: True}
    for row in others:
        if theirs := answers_of_runs(folder, row):
            with suppress(NotPaired):
                near[row.number] = is_near(tables, theirs, measure, len(others), several)
    return [replace(row, near=near.get(row.number)) for row in rows]


def answers_of_runs(folder: Path, row: Row) -> dict[tuple[int, int], "Predictions"]:
    """What the runs of a trial answer, by seed and fold (0 without folds); {} if one is absent."""
    from trainer.comparing.predictions import PREDICTIONS, read_predictions

    with suppress(RunError):
        return {
            (end["seed"], end["fold"] or 0): read_predictions(folder / end["run"] / PREDICTIONS)
            for end in row.runs
        }
    return {}


def about_noise(plan: Plan, rows: Sequence[Row]) -> str:
    """A sentence on the trials that are within noise of the best, and on those not judged."""
    done = ranked(plan, rows)
    unknown = sum(row.near is None for row in done)
    if len(done) < 2 or unknown == len(done):
        return ""
    told = (
        f"{NEAR} within noise of t{done[0].number:03d}, image by image on val: with "
        f"{CERTAINTY:.0%} certainty the truly best trial is a marked one"
    )
    if len(plan.members) == 1:
        told += "; of these models: sweep.seeds: [0, 1, 2] tells it of settings"
    other = f"; {unknown} not judged, as their predictions.csv is absent or has other val images"
    return told + other * bool(unknown)


def column_names(keys: Sequence[str]) -> list[str]:
    """The last word of each key ("lr" for "optimizer.lr"), or the key if others end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    alike = [*last, "trial", "epochs", "wall", "status"]
    return [s if alike.count(s) == 1 else key for s, key in zip(last, keys, strict=True)]


def conclusion(plan: Plan, folder: Path, rows: Sequence[Row]) -> list[str]:
    """Lines below the table: trials per state, the best trial with its test numbers, failures."""
    counts = Counter(row.status for row in rows)
    many = ", ".join(f"{counts[state]} {state}" for state in TRIAL_STATES if counts[state])
    lines = [f"trials  {many or 'none'}"]
    if best := ranked(plan, rows)[:1]:
        (row,) = best
        settings = " ".join(overrides(row.settings)) or "the experiment's own settings"
        lines += [f"best    t{row.number:03d}: {visible(settings)}"]
        lines += [f"        {plan.monitor} {row.shown} of the best epoch, by which it was chosen"]
        if row.test:
            numbers = ", ".join(
                f"{name} {shown}" + (f" ({spread})" if spread else "")
                for name, (shown, spread) in row.tests.items()
            )
            lines += [f"        test: {numbers}; no trial was chosen by these"]
        for end in row.runs[:5]:
            run = folder / str(end["run"])
            elsewhere = "" if run.exists() else ", in the folder of another machine"
            lines += [f"        {run if run.exists() else end['run']}{elsewhere}"]
    failed = [row for row in rows if row.status == "failed"]
    lines += [f"failed  t{row.number:03d}: {visible(row.reason)}" for row in failed[:MAX_FAILED]]
    if len(failed) > MAX_FAILED:
        lines.append(f"        and {len(failed) - MAX_FAILED} more; sweep.html has all")
    return lines


def sweep_json(plan: Plan, rows: Sequence[Row]) -> dict[str, Any]:
    """The content of sweep.json: all trials and their runs."""
    best = ranked(plan, rows)[:1]
    trials = [
        {
            "trial": row.number,
            "settings": row.settings,
            "status": row.status,
            "reason": row.reason,
            "mean": row.mean,
            "std": row.std,
            "within_noise_of_best": row.near,
            "min": min(row.values, default=None),
            "max": max(row.values, default=None),
            "test": dict(row.test),
            "epochs": row.epochs,
            "seconds": row.seconds,
            "wall_seconds": row.wall,
            "runs": list(row.runs),
        }
        for row in rows
    ]
    counts = Counter(row.status for row in rows)
    content: dict[str, Any] = strict_json(
        {
            "name": plan.file.name,
            "method": plan.sweep.method,
            "optuna": version("optuna") if plan.sweep.method == "tpe" else None,
            "monitor": plan.monitor,
            "direction": "maximize" if plan.sign > 0 else "minimize",
            "params": list(plan.sweep.params),
            "counts": dict(counts),
            "best": best[0].number if best else None,
            "trials": trials,
        }
    )
    return content


def sweep_csv(plan: Plan, rows: Sequence[Row]) -> str:
    """The content of sweep.csv: one line per run, with the settings of its trial."""
    keys = list(plan.sweep.params)
    tests = list(dict.fromkeys(name for row in rows for name in row.test))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["trial", *keys, "seed", "fold", "status", plan.monitor, "epoch", "epochs"]
    head += ["seconds", "wall_seconds", "within_noise_of_best"]
    writer.writerow([*head, *(f"test/{name}" for name in tests), "run", "reason"])
    for row in rows:
        settings = [_csv_cell(row.settings[key]) for key in keys]
        for end in row.runs:
            own = [end[key] for key in ("seed", "fold", "status", "value", "epoch", "epochs")]
            test = [end["test"].get(name) for name in tests]
            own += [end["seconds"], end.get("wall_seconds"), row.near]
            line = [row.number, *settings, *own, *test, end["run"], end["reason"]]
            writer.writerow([_harmless(cell) for cell in line])
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else flow(value)


def _harmless(cell: Any) -> Any:
    """The cell with a leading quote if a spreadsheet would read it as a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@" and cell else cell
