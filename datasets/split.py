"""Split samples into train, val and test."""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from datasets import DataError

PARTS = ("train", "val", "test")
_SHOWN = 5  # groups of equal images in a warning, and images of a group
_LARGEST = 1e9  # larger than any useful ratio; sums and products with it cannot overflow


def split(
    labels: Sequence[int],
    digests: Sequence[str],
    parts: Sequence[str | None],
    ratios: Sequence[float],
    seed: int,
    pool: bool = False,
    folds: int | None = None,
    fold: int = 0,
) -> dict[str, list[int]]:
    """Split samples into "train", "val" and "test"; returns the ascending indices of each split.

    A hash of (seed, content) places every content on [0, 1), which is cut at the ``ratios`` of
    train, val and test. So equal contents are in one split, whatever their names, and a file keeps
    its split when others are added.
    To keep small datasets stratified, a class with less than half its share in a split (or with
    nothing) takes the nearest contents from the split with most to spare. When files are added,
    other contents may be taken; no other content changes its split.
    ``parts``: the official split of each sample. Official val and test samples keep it; a missing
    split is cut from the rest, in the ratio of the splits concerned. ``pool`` ignores ``parts``.
    ``folds`` cuts the samples into this many folds, each of about the same size, instead of by
    ratios: number ``fold`` (from 0) is test, the next one val (after the last, the first), the
    others train. So over all folds each sample is tested once and validated once. An official test
    split stays, and then ``fold`` is val; an official val split is cut with the rest.
    Raises DataError for ratios that cannot be met and for a split without samples.
    """
    kept = ("val", "test") if folds is None else ("test",)
    fixed = [part if part in kept and not pool else None for part in parts]
    free = [index for index, part in enumerate(fixed) if part is None]
    samples = ((labels[i], digests[i]) for i in free)
    if folds is None:
        weights = _weights(ratios, {part for part in fixed if part is not None})
        part_of = _cut(samples, weights, seed)
        cut = ":".join(f"{ratio:g}" for ratio in ratios)
    else:
        shares = _cut(samples, {str(number): 1.0 for number in range(folds)}, seed)
        part_of = _of_fold(shares, folds, fold, has_test="test" in fixed)
        cut = f"in {folds} folds of which {fold} is held out"
    result: dict[str, list[int]] = {part: [] for part in PARTS}
    for index, part in enumerate(fixed):
        result[part or part_of[digests[index]]].append(index)
    for part, indices in result.items():
        if not indices:
            raise DataError(
                f"split: {len(labels)} images of {len(set(digests))} different contents, cut "
                f"{cut}, leave no image for {part}; add images or change "
                f"split.{'ratios' if folds is None else 'folds'}."
            )
    return result


def conflicts(
    ids: Sequence[str],
    labels: Sequence[int],
    digests: Sequence[str],
    split: Mapping[str, list[int]],
) -> list[str]:
    """Warnings about contents with two labels, or in two splits (which official ones allow).

    The first line of a warning has the total, the next lines some of the groups of equal images.
    """
    part_of = {index: part for part, indices in split.items() for index in indices}
    count = Counter(digests[index] for index in part_of)
    groups: dict[str, list[int]] = {}  # only of repeated contents, which are few
    for index in sorted(part_of):
        if count[digests[index]] > 1:
            groups.setdefault(digests[index], []).append(index)
    kinds: list[tuple[str, Mapping[int, object]]] = [
        ("different classes: one of the labels is wrong", dict(enumerate(labels))),
        ("different parts of the official split: what is tested was trained on", part_of),
    ]
    warnings = []
    for what, key_of in kinds:
        found = [group for group in groups.values() if len({key_of[i] for i in group}) > 1]
        if not found:
            continue
        groups_of = f"{len(found):,} group{'s' * (len(found) > 1)} of equal images"
        lines = [f"{groups_of} ({sum(map(len, found)):,} in all) in {what}"]
        for group in found[:_SHOWN]:
            more = f" and {len(group) - _SHOWN:,} more" if len(group) > _SHOWN else ""
            lines.append("  " + " = ".join(ids[index] for index in group[:_SHOWN]) + more)
        if len(found) > _SHOWN:
            lines.append(f"  and {len(found) - _SHOWN:,} more groups; trainer.data lists all")
        warnings.append("\n".join(lines))
    return warnings


def manifest(
    split: Mapping[str, list[int]], ids: Sequence[str], digests: Sequence[str]
) -> dict[str, dict[str, str]]:
    """The split in the form of split.json: for each split, sample id -> SHA-256 of its content."""
    return {part: {ids[i]: digests[i] for i in indices} for part, indices in split.items()}


def _weights(ratios: Sequence[float], official: set[str]) -> dict[str, float]:
    """Split -> ratio, for the splits that have no official samples."""
    if len(ratios) != 3 or not all(0 <= ratio <= _LARGEST for ratio in ratios):
        raise DataError(
            f"split.ratios: {list(ratios)}; expected three numbers from 0 to {_LARGEST:g}, "
            f"such as [8, 1, 1]."
        )
    weights = {
        part: ratio for part, ratio in zip(PARTS, ratios, strict=True) if part not in official
    }
    for part, weight in weights.items():
        if weight == 0:
            raise DataError(
                f"split.ratios: {list(ratios)} gives {part} nothing, and the data has no {part} "
                f"part of its own; expected a number > 0."
            )
    return weights


def _cut(
    samples: Iterable[tuple[int, str]], weights: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Content -> split, for (label, content) pairs and the relative size of each split."""
    contents: dict[int, dict[str, float]] = {}  # label -> content -> place on [0, 1)
    for label, digest in samples:
        contents.setdefault(label, {})[digest] = _place(seed, digest)

    total, edge = sum(weights.values()), 0.0
    bounds: dict[str, tuple[float, float]] = {}
    for part, weight in weights.items():
        bounds[part] = (edge, edge := edge + weight / total)
    names = list(bounds)
    edges = [high for _, high in bounds.values()][:-1]  # the last may be rounded below 1
    part_of = {
        digest: names[bisect_right(edges, place)]
        for places in contents.values()
        for digest, place in places.items()
    }

    for _, places in sorted(contents.items()):
        enough = {part: max(1, int(len(places) * w / total / 2)) for part, w in weights.items()}
        if len(places) < len(weights):
            enough = {part: int(part == "train") for part in weights}  # too few for val and test
        count = Counter(part_of[digest] for digest in places)
        for part, (low, high) in bounds.items():
            while count[part] < enough[part]:
                giver = max(weights, key=lambda other: count[other] - enough[other])
                _, nearest = min(
                    (max(low - place, place - high), digest)
                    for digest, place in places.items()
                    if part_of[digest] == giver
                )
                part_of[nearest] = part
                count.update({giver: -1, part: 1})
    return part_of


def _of_fold(shares: Mapping[str, str], folds: int, fold: int, has_test: bool) -> dict[str, str]:
    """Content -> split, given content -> fold (as text), with fold ``fold`` held out."""
    held_out = {str((fold + 1) % folds): "val", str(fold): "test"}
    if has_test:
        held_out = {str(fold): "val"}
    return {digest: held_out.get(share, "train") for digest, share in shares.items()}


def _place(seed: int, digest: str) -> float:
    hashed = hashlib.sha256(f"{seed} {digest}".encode()).digest()
    return (int.from_bytes(hashed[:8], "big") >> 11) / 2**53  # 53 bits: exact in a float, below 1
