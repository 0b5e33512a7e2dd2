"""Split samples into train, val and test."""

import functools
import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from datasets import DataError
from datasets.words import counted

PARTS = ("train", "val", "test")
_SHOWN = 5  # groups of equal images in a warning, and images of a group
_LARGEST = 1e9  # larger than any useful ratio; sums and products with it cannot overflow
Label = int | tuple[float, ...]  # the number of a class, or the share of each class


def is_digest(known: str) -> bool:
    """Whether split.json has the SHA-256 of an image's content; else its size ("123 bytes")."""
    return not known.endswith(" bytes")


def split(
    labels: Sequence[Label],
    digests: Sequence[str],
    parts: Sequence[str | None],
    ratios: Sequence[float],
    seed: int,
    pool: bool = False,
    folds: int | None = None,
    fold: int = 0,
    groups: Sequence[str] | None = None,
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
    ``groups``: the key of each sample's group, equal for equal contents. A group takes the place
    of a content then: its hash places all its samples, and classes take whole groups.
    Raises DataError for ratios that cannot be met and for a split without samples.
    """
    official, weights, split_of = _shares(parts, ratios, pool, folds, fold)
    keys = digests if groups is None else groups
    samples = zip(labels, keys, parts, strict=True)
    free = ((label, key) for label, key, part in samples if part not in official)
    if groups is None and not any(isinstance(label, tuple) for label in labels):
        share_of = _cut(free, weights, seed)
    else:
        share_of = _cut_of_several(free, weights, seed)
    result: dict[str, list[int]] = {part: [] for part in PARTS}
    for index, (key, part) in enumerate(zip(keys, parts, strict=True)):
        chosen = part if part is not None and part in official else split_of[share_of[key]]
        result[chosen].append(index)
    for part, indices in result.items():
        if not indices:
            cut = ":".join(f"{ratio:g}" for ratio in ratios)
            if folds is not None:
                cut = f"in {folds} folds of which {fold} is held out"
            number = len(set(keys))
            of = f"{number} different contents" if groups is None else counted(number, "group")
            raise DataError(
                f"split: {len(labels)} images of {of}, cut "
                f"{cut}, leave no image for {part}; add images or change "
                f"split.{'ratios' if folds is None else 'folds'}"
                f"{'' if groups is None else ' or split.group'}."
            )
    return result


def expected_part(
    parts: Iterable[str | None],
    ratios: Sequence[float],
    seed: int,
    pool: bool = False,
    folds: int | None = None,
    fold: int = 0,
) -> Callable[[str, str | None], str]:
    """The split of a content by its hash alone: ``split`` before a small class takes from others.

    The arguments are those of ``split``. The function that is returned takes a digest and the
    official split of its sample. Raises DataError for ratios that cannot be met.
    """
    official, weights, split_of = _shares(parts, ratios, pool, folds, fold)
    share_of = _share_by_hash(weights, seed)

    def expected(digest: str, part: str | None) -> str:
        if part is not None and part in official:
            return part
        return split_of[share_of(digest)]

    return expected


def shares_of_parts(
    parts: Iterable[str | None],
    ratios: Sequence[float],
    pool: bool = False,
    folds: int | None = None,
    fold: int = 0,
) -> dict[str, float]:
    """The share, from 0 to 1, that each part has of the samples that are cut.

    Official parts are not among them. The arguments are those of ``split``.
    """
    _, weights, split_of = _shares(parts, ratios, pool, folds, fold)
    found = Counter[str]()
    for share, weight in weights.items():
        found[split_of[share]] += weight / sum(weights.values())  # type: ignore[assignment]
    return dict(found)


def conflicts(
    ids: Sequence[str],
    labels: Sequence[Label],
    digests: Sequence[str],
    split: Mapping[str, list[int]],
) -> list[str]:
    """Warnings about contents with two labels, or in two splits (which official ones allow).

    The first line of a warning has the total, the next lines some of the groups of equal images.
    """
    count = Counter(digests[index] for indices in split.values() for index in indices)
    repeated = {digest for digest, number in count.items() if number > 1}  # few
    part_of = {i: part for part, rows in split.items() for i in rows if digests[i] in repeated}
    groups: dict[str, list[int]] = {}
    for index in sorted(part_of):
        groups.setdefault(digests[index], []).append(index)
    kinds: list[tuple[str, Mapping[int, object]]] = [
        ("different classes: one of the labels is wrong", {i: labels[i] for i in part_of}),
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
            more = f"  and {len(found) - _SHOWN:,} more groups"
            lines.append(f"{more}; python -m trainer.data lists all")
        warnings.append("\n".join(lines))
    return warnings


def manifest(
    split: Mapping[str, list[int]], ids: Sequence[str], digests: Sequence[str]
) -> dict[str, dict[str, str]]:
    """The split in the form of split.json: for each split, sample id -> SHA-256 of its content."""
    return {part: {ids[i]: digests[i] for i in indices} for part, indices in split.items()}


def _shares(
    parts: Iterable[str | None],
    ratios: Sequence[float],
    pool: bool,
    folds: int | None,
    fold: int,
) -> tuple[set[str], dict[str, float], dict[str, str]]:
    """The official splits that stay, the relative size of each share of the rest, and its split.

    A share is a split or, with folds, the number of a fold.
    """
    kept = {"val", "test"} if folds is None else {"test"}
    official = kept.intersection(() if pool else filter(None, parts))
    if folds is None:
        weights = _weights(ratios, official)
        return official, weights, {part: part for part in weights}
    held_out = {(fold + 1) % folds: "val", fold: "test"}
    if official:
        held_out = {fold: "val"}
    split_of = {str(number): held_out.get(number, "train") for number in range(folds)}
    return official, dict.fromkeys(split_of, 1.0), split_of


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
    samples: Iterable[tuple[Label, str]], weights: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Content -> share, for (label, content) pairs and the relative size of each share."""
    contents: dict[Any, list[str]] = {}  # by label; sets of all would take five times the memory
    share_of: dict[str, str] = {}
    by_hash = _share_by_hash(weights, seed)
    for label, digest in samples:
        contents.setdefault(label, []).append(digest)
        if digest not in share_of:
            share_of[digest] = by_hash(digest)

    bounds = _bounds(weights)
    for _, digests in sorted(contents.items()):
        own = set(digests)
        enough = _enough(len(own), weights)
        count = Counter(map(share_of.__getitem__, own))
        if all(count[share] >= least for share, least in enough.items()):
            continue
        places = {digest: _place(seed, digest) for digest in own}
        for share, (low, high) in bounds.items():
            while count[share] < enough[share]:
                giver = max(weights, key=lambda other: count[other] - enough[other])
                _, nearest = min(
                    (max(low - place, place - high), digest)
                    for digest, place in places.items()
                    if share_of[digest] == giver
                )
                share_of[nearest] = share
                count.update({giver: -1, share: 1})
    return share_of


def _cut_of_several(
    samples: Iterable[tuple[Label, str]], weights: Mapping[str, float], seed: int
) -> dict[str, str]:
    """``_cut`` where a key, of a content or a group, may have several classes.

    The rarest class comes first, as in iterative stratification (Sechidis et al., 2011), and
    nothing that it needs is taken from it later. So a class may have to be content with less.
    """
    classes_of = functools.cache(_classes_of)
    of_key: dict[str, tuple[int, ...]] = {}  # mostly the cache's own tuples, which saves memory
    for label, key in samples:
        new = classes_of(label)
        if (old := of_key.setdefault(key, new)) != new:
            of_key[key] = tuple(sorted({*old, *new}))
    own: dict[int, list[str]] = {}
    for key, classes in of_key.items():
        for one in classes:
            own.setdefault(one, []).append(key)
    by_hash = _share_by_hash(weights, seed)
    share_of = {key: by_hash(key) for key in of_key}

    bounds = _bounds(weights)
    spare: dict[int, Counter[str]] = {}  # of the classes so far: keys of each share beyond enough
    for one, keys in sorted(own.items(), key=lambda item: (len(item[1]), item[0])):
        spare[one] = Counter(map(share_of.__getitem__, keys))
        spare[one].subtract(_enough(len(keys), weights))
        if all(spare[one][share] >= 0 for share in weights):
            continue
        places = {key: _place(seed, key) for key in keys}
        for share, (low, high) in bounds.items():
            while spare[one][share] < 0:
                found: list[tuple[float, str]] = []
                for giver in sorted(weights, key=lambda other: -spare[one][other]):
                    found = found or [
                        (max(low - place, place - high), key)
                        for key, place in places.items()
                        if share_of[key] == giver
                        and all(spare[k][giver] > 0 for k in of_key[key] if k in spare)
                    ]
                if not found:
                    break
                _, nearest = min(found)
                giver, share_of[nearest] = share_of[nearest], share
                for k in spare.keys() & {*of_key[nearest]}:
                    spare[k].update({giver: -1, share: 1})
    return share_of


def _classes_of(label: Label) -> tuple[int, ...]:
    """The classes of a label, of shares those above a half; (-1,) for shares that name none."""
    if not isinstance(label, tuple):
        return (label,)
    return tuple(number for number, share in enumerate(label) if share > 0.5) or (-1,)


def _enough(count: int, weights: Mapping[str, float]) -> dict[str, int]:
    """How many of a class's ``count`` contents each share needs: half of what it should have."""
    if count < len(weights):
        return {share: int(share == "train") for share in weights}  # too few for val and test
    total = sum(weights.values())
    return {share: max(1, int(count * w / total / 2)) for share, w in weights.items()}


def _share_by_hash(weights: Mapping[str, float], seed: int) -> Callable[[str], str]:
    """The share of a content by its place on [0, 1) alone."""
    names, edges = list(weights), [high for _, high in _bounds(weights).values()]
    edges.pop()  # the last may be rounded below 1
    return lambda digest: names[bisect_right(edges, _place(seed, digest))]


def _bounds(weights: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """The part of [0, 1) that each share has."""
    total, edge = sum(weights.values()), 0.0
    return {share: (edge, edge := edge + weight / total) for share, weight in weights.items()}


def _place(seed: int, digest: str) -> float:
    hashed = hashlib.sha256(f"{seed} {digest}".encode()).digest()
    return (int.from_bytes(hashed[:8], "big") >> 11) / 2**53  # 53 bits: exact in a float, below 1
