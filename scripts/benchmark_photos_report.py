"""Tables and a picture of the cases "photos", "stream", "start" and "ranks"."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Blocks = Sequence[Mapping[str, Any]]
BASE = "tutorial"
LIMITS = ("decode", "crop")  # the first words of the arms that do only a part
UNKNOWN = "unknown"
MIB = 2**20


def photo_ratios(arms: Mapping[str, Blocks], key: str = "images_per_second") -> dict[str, Any]:
    """Each arm's speeds, divided by those of the tutorial in the same block."""
    base = {row["block"]: row[key] for row in arms[BASE]}
    return {name: [row[key] / base[row["block"]] for row in rows] for name, rows in arms.items()}


def photo_rows(arms: Mapping[str, Blocks]) -> list[list[str]]:
    """A row per arm: ratios first. The limits stand first, the rest is sorted by speed."""
    ratios, first = photo_ratios(arms), photo_ratios(arms, "first_epoch")

    def place(name: str) -> tuple[bool, float]:
        return not name.startswith(LIMITS), -statistics.median(ratios[name])

    rows = []
    for name in sorted(arms, key=place):
        own = arms[name]
        cpu = [row["cpu_seconds_an_image"] for row in own if row["cpu_seconds_an_image"]]
        peaks = [row["peak_bytes"] for row in own if row["peak_bytes"] is not None]
        rows.append(
            [
                name,
                f"{statistics.median(ratios[name]):.2f}",
                f"{min(ratios[name]):.2f} to {max(ratios[name]):.2f}",
                f"{statistics.median(row['images_per_second'] for row in own):,.0f}",
                f"{1000 * statistics.median(cpu):.2f}" if cpu else UNKNOWN,
                f"{statistics.median(row['first_epoch'] for row in own):,.0f}",
                f"{statistics.median(first[name]):.2f}",
                f"{statistics.median(row['seconds_to_the_end_of_epoch_1'] for row in own):.1f}",
                mib(max(peaks, default=None)),
            ]
        )
    return rows


def start_rows(starts: Blocks) -> list[list[str]]:
    """A row per data set, kind of keeping, and start."""
    rows = []
    for row in starts:
        for number, which in enumerate(("first", "second")):
            own, few = row["all"][number], row["few"][number]
            seconds = own["seconds"], few["seconds"]
            rows.append([row["data"], row["cache"], which])
            rows[-1] += [f"{seconds[0]:.2f}", f"{seconds[1]:.2f}", f"{seconds[0] - seconds[1]:.2f}"]
            beyond = bytes_beyond_pixels(row, number)
            rows[-1].append(UNKNOWN if beyond is None else f"{beyond:,.0f}")
    return rows


def bytes_beyond_pixels(row: Mapping[str, Any], number: int) -> float | None:
    """Bytes of memory that a file takes beside its pixels; below 0 if pixels are not held."""
    own, few = row["all"][number]["peak_bytes"], row["few"][number]["peak_bytes"]
    if own is None or few is None:
        return None
    return float((own - few - row["more_pixels"]) / row["files"])


def rank_rows(ranks: Blocks) -> list[list[str]]:
    """A row per kind of keeping and number of ranks."""
    rows = []
    for row in ranks:
        own, few = row["all"], row["few"]
        copies = copies_held(row)
        rows.append(
            [
                f"{row['ranks']}",
                row["cache"],
                f"{own['seconds']:.2f}",
                f"{own['seconds'] - few['seconds']:.2f}",
                mib(own["peak_bytes"]),
                mib(few["peak_bytes"]),
                mib(row["pixels, all"]),
                UNKNOWN if copies is None else f"{copies:.2f}",
            ]
        )
    return rows


def copies_held(row: Mapping[str, Any]) -> float | None:
    """How many copies of the pixels all ranks hold together; None if memory is unknown."""
    own, few = row["all"]["peak_bytes"], row["few"]["peak_bytes"]
    if own is None or few is None:
        return None
    return float((own - few) / (row["pixels, all"] - row["pixels, few"]))


def mib(size: int | None) -> str:
    """A size in MiB."""
    return UNKNOWN if size is None else f"{size / MIB:,.0f}"


HEAD_OF_PHOTOS = (
    "way of loading",
    "of the tutorial",
    "min to max",
    "images/s",
    "CPU ms an image",
    "epoch 1",
    "of the tutorial's",
    "s to its end",
    "peak MiB",
)
HEAD_OF_STARTS = ("data", "cache", "start", "s to the first step", "s with a few", "difference")
HEAD_OF_RANKS = ("ranks", "cache", "s to the first step", "above a few", "peak MiB", "with a few")


def tables_of_photos(results: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Any]]:
    """(text, head, rows) of each table that these results have."""
    tables: list[tuple[str, Sequence[str], Any]] = []
    if "photos" in results:
        found = results["photos"]
        text = (
            f"{found['photographs']:,} photographs of {found['bytes'] / 1000:.0f} kB, batches of "
            "64: RandomResizedCrop 224, RandomHorizontalFlip, Normalize. images/s is the median "
            "after epoch 1. Decoding and cropping alone use one process per core. Seconds count "
            "from the start of the process; memory (PSS) and CPU time are of all its processes. "
            "Other programs on the machine hardly change the CPU time."
        )
        for name in ("with a step", "batches only"):
            tables.append((f"{text} Here: {name}.", HEAD_OF_PHOTOS, photo_rows(found[name])))
            text = "The same without a model."
    if "start" in results:
        text = (
            "A start of `python -m trainer.train`: the first with an empty store, the second with "
            "the store that the first left. A start on a few pictures takes the imports. Bytes of "
            "a file are those of the peak beside its pixels, below 0 where not all pixels are held."
        )
        head = [*HEAD_OF_STARTS, "bytes a file"]
        tables.append((text, head, start_rows(results["start"])))
    if "ranks" in results:
        text = "Ranks on one machine, photographs kept. Memory (PSS) is that of all processes."
        head = [*HEAD_OF_RANKS, "MiB of pixels", "copies held"]
        tables.append((text, head, rank_rows(results["ranks"])))
    return tables


def ratios_with_a_step(results: Mapping[str, Any]) -> dict[str, float]:
    """The medians of the arms' ratios to the tutorial, with a step."""
    arms = results["photos"]["with a step"]
    return {name: statistics.median(values) for name, values in photo_ratios(arms).items()}
