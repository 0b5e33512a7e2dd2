"""The colours of curves and the numbers along an axis, for all charts. Imports no torch."""

import math

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")

Points = list[tuple[float, float]]
Curves = dict[str, Points]


def ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers from at most ``low`` to at least ``high``."""
    largest = max(abs(low), abs(high))
    span = high - low
    if span <= 1e-9 * largest:  # smaller steps would vanish in the float's last digits
        span = largest
    span = max(span, 1e-300) if span else 1.0
    low = min(low, high - span)  # a constant stands at the upper edge: no accuracy above 1
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= span / 5 * (1 - 1e-9))
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(start, max(stop, start + 1) + 1)]


def x_ticks(first: float, last: float, log_x: bool = False) -> list[float]:
    """Numbers for the axis from ``first`` to ``last``: both ends, and round ones between them."""
    if log_x:
        powers = range(math.ceil(math.log10(first)), math.floor(math.log10(last)) + 1)
        decades = [10.0**power for power in powers]
        return decades if len(decades) >= 2 else sorted({first, last, *decades})
    room = (last - first) / 20  # the least distance from an end to a number between them
    integers = float(first).is_integer() and float(last).is_integer()
    within = (round(x) if integers else x for x in ticks(first, last))
    return sorted({first, last} | {x for x in within if first + room < x < last - room})
