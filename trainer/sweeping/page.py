"""A sweep as one page of HTML, in the report's style: no script, no request to anywhere."""

from collections.abc import Sequence

from trainer.insight.html import STYLE
from trainer.insight.listing import short, took
from trainer.insight.svg import escaped
from trainer.sweeping.drawing import by_parameter, over_trials, parallel
from trainer.sweeping.reading import Plan
from trainer.sweeping.results import Row, in_rank, ranked, reported_test
from trainer.sweeping.space import overrides, told


def page(plan: Plan, rows: Sequence[Row]) -> str:
    """The whole page, of a sweep in any state."""
    title = escaped(plan.file.name)
    sections = {
        "Best": _best(plan, rows),
        "By parameter": _charts(plan, rows),
        "All settings at once": _parallel(plan, rows),
        "Trials": _trials(plan, rows),
        "Runs": _runs(plan, rows),
    }
    body = "\n".join(
        f"<section><h2>{name}</h2>\n{content}\n</section>"
        for name, content in sections.items()
        if content
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}: sweep</title>
<style>
{STYLE}</style>
</head>
<body>
<header><h1>{title}</h1>
{_facts(plan, rows)}</header>
<main>
{body}
</main>
</body>
</html>
"""


def _facts(plan: Plan, rows: Sequence[Row]) -> str:
    states = dict.fromkeys(row.status for row in rows)
    many = ", ".join(f"{sum(row.status == state for row in rows)} {state}" for state in states)
    better = "more is better" if plan.sign > 0 else "less is better"
    facts = {
        "trials": many or "none yet",
        "method": plan.sweep.method,
        "judged by": f"{plan.monitor} of each run's best epoch; {better}",
        "runs each": str(len(plan.members)),
        "time": took(sum(row.seconds for row in rows) or None),
        "experiment": str(plan.base),
    }
    lines = (f"<div><dt>{k}</dt><dd>{escaped(v)}</dd></div>" for k, v in facts.items())
    return f"<dl class=facts>{''.join(lines)}</dl>\n"


def _best(plan: Plan, rows: Sequence[Row]) -> str:
    if not (best := ranked(plan, rows)[:1]):
        return "<p>No trial is done yet.</p>"
    (row,) = best
    numbers = {plan.monitor: row.shown}
    if row.spread:
        numbers["min..max"] = row.spread
    for name, (mean, spread) in row.tests.items():
        numbers[f"test {name}"] = mean
        if spread:
            numbers[f"test {name}, min..max"] = spread
    shown = "".join(
        f"<div><dt>{escaped(k)}</dt><dd>{escaped(v)}</dd></div>" for k, v in numbers.items()
    )
    settings = " ".join(overrides(row.settings)) or "the experiment's own settings"
    return (
        f"<p>Trial t{row.number:03d}: <code>{escaped(settings)}</code></p>\n"
        f"<dl class=metrics>{shown}</dl>\n"
        "<p>Chosen by validation alone; the test numbers are shown for it as they are.</p>"
    )


def _charts(plan: Plan, rows: Sequence[Row]) -> str:
    if not any(row.values for row in rows):
        return ""
    charts = [by_parameter(plan, rows, key) for key in plan.sweep.params]
    charts.append(over_trials(plan, rows))
    said = (
        "A dot is a run; a red dash the mean of a trial's runs; grey was stopped early or failed."
    )
    return f"<p>{said}</p>\n<div class=charts>{''.join(charts)}</div>"


def _parallel(plan: Plan, rows: Sequence[Row]) -> str:
    if not plan.sweep.params or not ranked(plan, rows):
        return ""
    said = "A line is a trial; orange is the best, and the fainter a line the worse."
    return f"<p>{said}</p>\n<div class=wide tabindex=0>{parallel(plan, rows)}</div>"


def _trials(plan: Plan, rows: Sequence[Row]) -> str:
    keys = list(plan.sweep.params)
    test = reported_test(plan, rows)
    head = ["trial", *keys, "status", f"{plan.monitor} mean ± std", "min..max"]
    head += [f"test/{test} mean ± std", "min..max"] if test else []
    head += ["epochs", "time"]
    lines = [
        [
            f"t{row.number:03d}",
            *(told(row.settings[key]) for key in keys),
            row.status + (f": {row.reason}" if row.reason else ""),
            row.shown,
            row.spread,
            *(row.tests.get(test, ("", "")) if test else ()),
            "" if row.epochs is None else f"{row.epochs:.0f}",
            took(row.seconds or None),
        ]
        for row in in_rank(plan, rows)
    ]
    said = "<p>In the order of val/; test/ is reported, and no trial is chosen by it.</p>\n"
    return (said if test else "") + _table(head, lines, len(keys) + 2)


def _runs(plan: Plan, rows: Sequence[Row]) -> str:
    lines = [
        [
            str(end["run"] or f"t{row.number:03d}"),
            "" if end["fold"] is None else str(end["fold"]),
            end["status"],
            str(end["seed"]),
            short(end["value"]),
            str(end["epoch"] or ""),
        ]
        for row in rows
        for end in row.runs
    ]
    if not lines:
        return ""
    head = ["run", "fold", "status", "seed", plan.monitor, "best epoch"]
    table = _table(head, lines, 3)
    return f"<details><summary>All {len(lines):,} runs</summary>{table}</details>"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], words: int) -> str:
    """A table whose first ``words`` columns hold no numbers."""
    kinds = [" class=word" if i < words else "" for i in range(len(head))]
    top = "".join(f"<th scope=col{k}>{escaped(n)}</th>" for k, n in zip(kinds, head, strict=True))
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{k}>{escaped(c)}</td>" for k, c in zip(kinds, line, strict=True))
        + "</tr>"
        for line in lines
    )
    return (
        f"<div class=wide tabindex=0><table><thead><tr>{top}</tr></thead>\n"
        f"<tbody>{body}</tbody></table></div>"
    )
