"""Shows the benchmark's results as tables and a picture: ratios first, absolute numbers second."""

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from scripts.benchmark_photos_report import ratios_with_a_step, tables_of_photos

Numbers = Sequence[float]
Rows = Sequence[Sequence[str]]


def report(results: Mapping[str, Any]) -> str:
    """The whole report in Markdown: targets, ratios and absolute numbers, the machine."""
    parts = []
    rows = targets(results)
    if rows:
        parts.append(table(["what", "measured", "target", ""], rows))
    if "fashion" in results:
        speeds = [row["images_per_second"] for row in results["fashion"]["computing alone"]]
        if min(speeds) < 0.8 * max(speeds):
            parts.append(
                f"**Not a quiet machine**: computing alone had {span(speeds, 0)} images/s."
            )
        parts.append(
            "LeNet on Fashion-MNIST: images a second, next to computing alone. The framework uses "
            'channels last and a fused optimizer, as "tuned" does. It also keeps freed memory, '
            "which helps all ways in this process. The others are as on their first pages."
        )
        ratios, absolute = fashion_tables(results["fashion"])
        head = ["way of training", "of computing alone", "min to max", "the framework is"]
        parts.append(table(head, ratios))
        head = ["way of training", "images/s", "min to max", "images", "steps", "last loss"]
        parts.append(table(head, absolute))
    if "step" in results:
        parts.append("A step of a model that does next to nothing: microseconds.")
        parts.append(table(["step", "median", "min to max"], step_rows(results["step"])))
    if results.get("rmb"):
        parts.append("10 epochs on photographs of notes, next to decoding once + computing alone.")
        head = ["model", "of decode + compute", "wall", "decode", "in 1 thread", "compute", "steps"]
        parts.append(table([*head, "photographs"], rmb_rows(results["rmb"])))
    for model, times in results.get("variants", {}).items():
        parts.append(f"{model}, a step of each variant next to the plain one (less is faster).")
        head = ["variant", "of plain", "min to max", "milliseconds"]
        parts.append(table(head, variant_rows(times)))
    if "models" in results:
        parts.append("A step of each model next to that of a bare loop (less is faster).")
        head = ["model", "precision", "of the bare loop", "min to max", "of its processor time"]
        parts.append(table([*head, "ms", "bare, ms", "turns"], model_rows(results["models"])))
    for text, columns, cells in tables_of_photos(results):
        parts += [text, table(columns, cells)] if cells else []
    machine = results["machine"]
    parts.append("\n".join(f"- {name}: {value}" for name, value in machine.items()))
    return "\n\n".join(parts) + "\n"


def fashion_ratios(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Each arm's speeds, divided by "computing alone" (the mean of two) of the same block."""
    by_block: dict[int, list[float]] = {}
    for row in arms["computing alone"]:
        by_block.setdefault(row["block"], []).append(row["images_per_second"])
    alone = {block: statistics.mean(speeds) for block, speeds in by_block.items()}
    return {
        name: [row["images_per_second"] / alone[row["block"]] for row in rows]
        for name, rows in arms.items()
    }


def times_faster(arms: Mapping[str, Sequence[Mapping[str, Any]]], than: str) -> float:
    """The framework's speed divided by that of ``than``: the median of the blocks' ratios."""
    own, other = ([row["images_per_second"] for row in arms[name]] for name in ("framework", than))
    return float(statistics.median(a / b for a, b in zip(own, other, strict=True)))


def fashion_tables(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Rows, Rows]:
    """The rows of ratios and the rows of absolute numbers, the fastest first."""
    ratios, relative, absolute = fashion_ratios(arms), [], []
    for name in sorted(arms, key=lambda name: -statistics.median(ratios[name])):
        rows = arms[name]
        faster = ""
        if "framework" in arms and name not in ("framework", "computing alone"):
            faster = f"{times_faster(arms, name):.2f} x as fast"
        relative.append([name, f"{statistics.median(ratios[name]):.3f}", span(ratios[name], 3)])
        relative[-1].append(faster)
        speeds = [row["images_per_second"] for row in rows]
        last = rows[-1]
        absolute.append([name, f"{statistics.median(speeds):,.0f}", span(speeds, 0)])
        absolute[-1] += [f"{last['images']:,}", f"{last['steps']:,}", f"{last['loss']:.2f}"]
    return relative, absolute


def own_cost(step: Mapping[str, Numbers], above: str) -> list[float]:
    """Microseconds that a step of the framework takes more than one of ``above``, by block."""
    return [a - b for a, b in zip(step["framework"], step[above], strict=True)]


def step_rows(step: Mapping[str, Numbers]) -> Rows:
    """Differences first, then each way's own time."""
    others = [name for name in step if name != "framework"]
    differences = {f"framework above {name}": own_cost(step, name) for name in others}
    return [
        [name, f"{statistics.median(times):.1f}", span(times, 1)]
        for name, times in (differences | dict(step)).items()
    ]


def rmb_ratio(rows: Sequence[Mapping[str, float]]) -> float:
    """The wall time of a run, divided by the time of decoding once plus computing alone."""
    return statistics.median(row["framework"] / (row["decode"] + row["compute"]) for row in rows)


def rmb_rows(models: Mapping[str, Sequence[Mapping[str, float]]]) -> Rows:
    """A row per model: the ratio, the medians of its seconds, and what was done."""
    timed = ("framework", "decode", "decode_1_thread", "compute")
    return [
        [
            name,
            f"{rmb_ratio(rows):.2f}",
            *(f"{statistics.median(row[key] for row in rows):.2f} s" for key in timed),
            *(f"{rows[0][key]:.0f}" for key in ("steps", "photographs")),
        ]
        for name, rows in models.items()
    ]


def variant_rows(times: Mapping[str, Numbers]) -> Rows:
    """A row per variant: the median of its blocks' ratios to the plain step, and its own time."""
    rows = []
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times["plain"], strict=True)]
        ratio, span = statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([name, f"{ratio:.2f}", span, f"{statistics.median(own):.2f}"])
    return rows


def model_rows(models: Mapping[str, Mapping[str, Sequence[Mapping[str, Numbers]]]]) -> Rows:
    """A row per model and precision: medians of the turns' ratios, and of milliseconds a step."""
    found = []
    for model, precisions in models.items():
        for precision, turns in precisions.items():
            wall, work = ([t["framework"][i] / t["bare"][i] for t in turns] for i in (0, 1))
            own, bare = (
                1000 * statistics.median(t[arm][0] for t in turns) for arm in ("framework", "bare")
            )
            row = [model, precision, f"{statistics.median(wall):.3f}", span(wall, 2)]
            row += [f"{statistics.median(work):.3f}", f"{own:.1f}", f"{bare:.1f}", f"{len(turns)}"]
            found.append(row)
    return found


def targets(results: Mapping[str, Any]) -> Rows:
    """The targets of the framework for what was measured, and whether each is met."""
    found: list[tuple[str, float, str, float]] = []
    arms = results.get("fashion", {})
    if "framework" in arms:
        ratio = statistics.median(fashion_ratios(arms)["framework"])
        found.append(("framework, of computing alone", ratio, ">=", 0.92))
        if "by hand" in arms:
            found.append(("framework / by hand", times_faster(arms, "by hand"), ">", 1.0))
        loaders = [times_faster(arms, name) for name in arms if name.startswith("DataLoader")]
        if loaders:
            found.append(("framework / best DataLoader", min(loaders), ">=", 3.2))
        if "Lightning" in arms:
            found.append(("framework / Lightning", times_faster(arms, "Lightning"), ">=", 4.5))
    if "step" in results:
        cost = statistics.median(own_cost(results["step"], "bare loop, batches ready"))
        found.append(("own cost of a step, microseconds", cost, "<=", 30.0))
    for model, rows in results.get("rmb", {}).items():
        found.append((f"RMB, {model}: of decode + compute", rmb_ratio(rows), "<=", 2.0))
    return [
        [what, f"{value:.2f}", f"{sign} {target:g}", "met" if met(value, sign, target) else "not"]
        for what, value, sign, target in found
    ]


def met(value: float, sign: str, target: float) -> bool:
    """Whether ``value`` ``sign`` ``target`` holds, for example 0.95 >= 0.92."""
    return {">=": value >= target, ">": value > target, "<=": value <= target}[sign]


def span(values: Numbers, digits: int) -> str:
    """The least and the greatest value."""
    return f"{min(values):,.{digits}f} to {max(values):,.{digits}f}"


def table(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table, its columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [list(head), ["-" * width for width in widths], *map(list, rows)]
    cells = ([c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def picture(results: Mapping[str, Any]) -> str:
    """An SVG of the arms' ratios to computing alone: a bar per arm, a line at 1."""
    ratios = {
        name: statistics.median(values)
        for name, values in fashion_ratios(results["fashion"]).items()
    }
    heading = "LeNet on Fashion-MNIST: images/s, computing alone = 1"
    title = "Training speed, as a share of computing alone"
    return bars(ratios, title, heading, results["machine"], unit=380)


def picture_of_photos(results: Mapping[str, Any]) -> str:
    """An SVG of the ways to load photographs, as ratios to the tutorial."""
    ratios = ratios_with_a_step(results)
    heading = "Photographs, 224 x 224 crops: images/s, torchvision's tutorial = 1"
    title = "Training speed on photographs, as a multiple of the tutorial's"
    unit = 400 / max(1.0, *ratios.values())
    return bars(ratios, title, heading, results["machine"], unit)


def bars(
    ratios: Mapping[str, float], title: str, heading: str, machine: Mapping[str, Any], unit: float
) -> str:
    """An SVG with a bar per ratio, the longest first, and a line at 1, ``unit`` from the left.

    The framework's own bars have another colour.
    """
    left, row = 190, 30
    height, right = row * len(ratios) + 62, left + unit
    drawn = []
    for i, name in enumerate(sorted(ratios, key=lambda name: -ratios[name])):
        y, width = 30 + row * i, unit * ratios[name]
        kind = ' class="own"' if name.startswith("framework") else ""
        drawn.append(
            f'<text x="{left - 10}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect{kind} x="{left}" y="{y}" width="{width:.1f}" height="20" rx="2"/>'
            f'<text x="{max(left + width, 0) + 8:.1f}" y="{y + 15}">{ratios[name]:.2f}</text>'
        )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 {height}" role="img"'
            ' font-family="system-ui, sans-serif" font-size="13">',
            f"<title>{escape(title)}</title>",
            "<style>text {fill: #24292f} rect {fill: #8c959f} .own {fill: #0969da}"
            " line {stroke: #24292f; stroke-dasharray: 4 3}"
            " @media (prefers-color-scheme: dark) {text {fill: #e6edf3} .own {fill: #4493f8}"
            " line {stroke: #e6edf3}}</style>",
            f'<text x="10" y="18">{escape(heading)}</text>',
            *drawn,
            f'<line x1="{right:g}" x2="{right:g}" y1="26" y2="{height - 30}"/>',
            f'<text x="10" y="{height - 10}" font-size="11">'
            f"{escape(str(machine['processor']))}, torch {escape(str(machine['torch']))},"
            f" commit {escape(str(machine['commit']))}</text>",
            "</svg>\n",
        ]
    )
