"""What a search for speed found, as a table, as lines for a YAML, and as JSON."""

import shlex
import statistics
from collections.abc import Sequence
from typing import Any

from trainer.drawing.columns import fit_columns, hang, left_out
from trainer.tuning.race import Course, lines_of
from trainer.tuning.search import FASTER, Gains, Measured, quartiles

TITLES = (
    "settings",
    "ratio",
    "quartiles",
    "images/s",
    "peak memory",
    "loss differs",
    "ready after",
)
DROP = ("ready after", "peak memory", "loss differs", "quartiles")  # where the terminal is narrow


def table(found: Gains, course: Course | None, width: int) -> list[str]:
    """The rows as lines of at most ``width`` columns, and a line for each that has no numbers."""
    cells: list[tuple[str, ...]] = [TITLES]
    failed = []
    for row in found.rows:
        if row.failed:
            failed.append(f"{row.name}: not measured: {row.failed}")
        elif row.speeds:
            cells.append(_cells(row))
        elif row.settings:
            failed.append(f"{row.name}: not measured")
        if row.remark:
            failed.append(f"{row.name}: {row.remark}")
    lines = list[str]()
    if len(cells) > 1:
        lines, out = fit_columns(cells, width, DROP)
        lines += left_out(out, width, "a wider terminal or --json shows all")
    lines += [part for line in failed for part in hang(line, 8, width)]
    lines += [
        part
        for key, reason in found.not_tried.items()
        for part in hang(f"{key}: not tried: {reason}", 8, width)
    ]
    if course is None:
        return lines
    blocks = f"ratios of blocks of {course.block:,} steps to the YAML's own block beside them"
    losses = f"losses after {course.equal:,} equal steps"
    return [*lines, *hang(f"note    {blocks}; {losses}", 8, width)]


def _cells(row: Measured) -> tuple[str, ...]:
    low, middle, high = quartiles(row.ratios)
    is_plain = not row.settings
    return (
        "the YAML" if is_plain else row.name,
        "1.00" if is_plain else f"{middle:.2f}",
        "" if is_plain else f"{low:.2f} to {high:.2f}",
        f"{statistics.median(row.speeds):,.4g}",
        "" if row.memory is None else f"{row.memory / 2**20:,.0f} MiB",
        "" if is_plain or row.distance is None else f"{row.distance:.2g}",
        f"{row.start_seconds:.1f} s",
    )


def advised_lines(found: Gains, config: str, overrides: Sequence[str], width: int) -> list[str]:
    """What to set in the YAML ``config``, as lines; all but commands fit into ``width`` columns."""
    lines = [f"ended   {found.ended}, before all was tried"] if found.ended else []
    best = found.advised
    if not any(row.ratios for row in found.rows if row.settings) and found.ended:
        lines.append(
            "faster  nothing so far: no setting was timed beside the YAML; give more --seconds"
        )
        return [part for line in lines for part in hang(line, 8, width)]
    if best is None:
        so_far = " so far" if found.ended else ""
        what = f"nothing{so_far} is faster than the YAML by more than chance"
        lines.append(f"faster  {what} (lower quartile above {FASTER:g}, measured twice)")
        if found.best is not None and found.best.is_faster:
            lines.append(f"note    {_in_words(found.best)}, but once only; more --seconds may tell")
        return [part for line in lines for part in hang(line, 8, width)]
    lines.append(f"faster  {_in_words(best)}, more than once")
    if best.distance:
        equal = "the loss of equal steps differs"
        lines.append(f"note    {equal} by {best.distance:.2g} of it; look at a run's accuracy, too")
    folded = [part for line in lines for part in hang(line, 8, width)]
    advice = lines_of(best.settings)
    for title, line in zip(["set", *[""] * len(advice)], advice, strict=False):
        folded.append(f"{title:8}{line.replace('=', ': ', 1)}")
    kept = [word for word in overrides if word.partition("=")[0] not in best.settings]
    words = ["--config", config, *kept, *advice]
    return [*folded, f"or      python -m trainer.train {shlex.join(words)}"]


def _in_words(row: Measured) -> str:
    low, middle, high = quartiles(row.ratios)
    return f"{row.name} was {middle:.2f} times as fast as the YAML ({low:.2f} to {high:.2f})"


def facts_of(found: Gains, course: Course | None) -> dict[str, Any]:
    """What was found, for JSON: plain values; what was not measured is null."""
    best = found.advised
    return {
        "ended": found.ended or None,
        "equal_steps": course and course.equal,
        "block_steps": course and course.block,
        "rows": [_row_facts(row) for row in found.rows],
        "not_tried": found.not_tried,
        "advice": lines_of(best.settings) if best else [],
    }


def _row_facts(row: Measured) -> dict[str, Any]:
    low, middle, high = quartiles(row.ratios) if row.ratios else (None,) * 3
    return {
        "settings": row.settings,
        "ratio": middle,
        "quartiles": [low, high],
        "rounds": len(row.ratios),
        "images_per_second": statistics.median(row.speeds) if row.speeds else None,
        "peak_bytes": row.memory,
        "loss_differs": row.distance,
        "ready_seconds": row.start_seconds,
        "is_faster": row.is_faster,
        "times": row.times,
        "failed": row.failed or None,
        "remark": row.remark or None,
    }
