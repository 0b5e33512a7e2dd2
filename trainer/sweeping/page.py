"""Makes the page of a sweep as HTML, in the report's style: no script, no request."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer.comparing.listing import STAMPED, short, took
from trainer.drawing.page import render
from trainer.sweeping.charts import by_parameter, over_trials, parallel
from trainer.sweeping.plan import Plan
from trainer.sweeping.results import Row, about_noise, in_rank, ranked, reported_test
from trainer.sweeping.space import display_value, overrides

SWEEP_TEMPLATE = Path(__file__).parent / "templates" / "sweep.html.j2"


def sweep_page(plan: Plan, rows: Sequence[Row]) -> str:
    """The page of a sweep in any state, as HTML."""
    params, monitor, test = list(plan.sweep.params), plan.monitor, reported_test(plan, rows)
    best = ranked(plan, rows)[:1]
    charts = []
    if any(row.values for row in rows):
        charts = [by_parameter(plan, rows, key) for key in params] + [over_trials(plan, rows)]
    header = ["trial", *params, "status", f"{monitor} mean ± std", "min..max"]
    header += [f"test/{test} mean ± std", "min..max"] if test else []
    return render(
        SWEEP_TEMPLATE,
        title=plan.file.name,
        kind="sweep",
        facts=_sweep_facts(plan, rows),
        best=_best(monitor, best[0]) if best else None,
        charts=charts,
        dashes=any(len(row.values) > 1 for row in rows),
        parallel=parallel(plan, rows) if params and best else "",
        params=params,
        test=test,
        noise=about_noise(plan, rows),
        trial_header=[*header, "epochs", "wall time of its runs"],
        trials=[_trial(row, params, test) for row in in_rank(plan, rows)],
        monitor=monitor,
        runs=[
            (
                end["run"] or f"t{row.number:03d}",
                "" if end["fold"] is None else str(end["fold"]),
                end["status"],
                str(end["seed"]),
                short(end["value"]),
                str(end["epoch"] or ""),
            )
            for row in rows
            for end in row.runs
        ],
    )


def _sweep_facts(plan: Plan, rows: Sequence[Row]) -> dict[str, str]:
    states = dict.fromkeys(row.status for row in rows)
    many = ", ".join(f"{sum(row.status == state for row in rows)} {state}" for state in states)
    better = "more is better" if plan.sign > 0 else "less is better"
    return {
        "trials": many or "none yet",
        "method": plan.sweep.method,
        "judged by": f"{plan.monitor} of each run's best epoch; {better}",
        "runs each": str(len(plan.members)),
        "training steps": took(sum(row.seconds for row in rows) or None),
        "wall time": _wall_time([end for row in rows for end in row.runs]),
        "experiment": str(plan.base),
    }


def _wall_time(ends: Sequence[Mapping[str, Any]]) -> str:
    """From the start of the first run to the end of the last, pauses included."""
    stamps = [found for end in ends if (found := STAMPED.search(str(end["run"])))]
    begun = [_time("{}-{}-{} {}:{}:{}".format(*stamp.groups())) for stamp in stamps]
    first = min(filter(None, begun), default=None)
    last = max(filter(None, (_time(end.get("ended")) for end in ends)), default=None)
    if first is None or last is None:
        return took(None)
    return f"{took((last - first).total_seconds())}, from {first} to {last}"


def _time(text: object) -> datetime | None:
    """The time that ``text`` names; None if it names none, as after an edit of a file."""
    try:
        return datetime.strptime(str(text), "%Y-%m-%d %H:%M:%S")
    except ValueError:
        return None


def _best(monitor: str, row: Row) -> dict[str, Any]:
    numbers = {monitor: row.shown, "min..max": row.spread}
    for name, (mean, spread) in row.tests.items():
        numbers |= {f"test {name}": mean, f"test {name}, min..max": spread}
    return {
        "name": f"t{row.number:03d}",
        "settings": " ".join(overrides(row.settings)) or "the experiment's own settings",
        "numbers": {name: value for name, value in numbers.items() if value},
    }


def _trial(row: Row, params: Sequence[str], test: str | None) -> list[str]:
    return [
        f"t{row.number:03d}",
        *(display_value(row.settings[key]) for key in params),
        row.status + (f": {row.reason}" if row.reason else ""),
        row.marked,
        row.spread,
        *(row.tests.get(test, ("", "")) if test else ()),
        "" if row.epochs is None else f"{row.epochs:.0f}",
        took(row.wall),
    ]
