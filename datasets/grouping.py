"""Groups of samples that must not be torn apart: images of a patient, a burst, one photograph."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import DataError, Dataset
from datasets.files import PARTS
from datasets.words import counted

SECONDS = 60  # that a pattern may take for all names
_SHOWN = 5  # groups in a message
# Python cannot stop its own search for a pattern; another process can be ended.
_SEARCH = """
import json, re, sys
pattern, names = json.load(sys.stdin)
search = re.compile(pattern).search
found = map(search, names)
json.dump([one[1] or "" if one else "" for one in found], sys.stdout)
"""


@dataclass(frozen=True)
class Groups:
    """The groups of a dataset's samples, whatever makes them.

    how: the setting in words. keys: of each sample; equal keys, equal split. names: a group's name
    by its key; a sample whose key has none stands alone. joined: groups that share a content with
    another one and so count as one.
    """

    how: str
    keys: list[str]
    names: dict[str, str]
    joined: int = 0

    def refuse_divided(
        self, rows: Iterable[int], parts: Sequence[str | None], official: Collection[str]
    ) -> None:
        """Raise DataError if a group has samples in an ``official`` part, and others elsewhere."""
        places: dict[str, Counter[str]] = {}
        for row in rows:
            places.setdefault(self.keys[row], Counter()).update([parts[row] or "no part"])
        divided = {
            key: count
            for key, count in places.items()
            if len(count) > 1 and count.keys() & set(official)
        }
        if not divided:
            return
        lines = [
            f"  {self.names.get(key, 'equal images')!r}: "
            + ", ".join(f"{number:,} in {part}" for part, number in sorted(count.items()))
            for key, count in list(divided.items())[:_SHOWN]
        ]
        if len(divided) > _SHOWN:
            lines.append(f"  and {len(divided) - _SHOWN:,} more")
        raise DataError(
            f"split.group ({self.how}): {counted(len(divided), 'group')} of {len(places):,} "
            f"{'is' if len(divided) == 1 else 'are'} in several official parts of the data, so "
            "what is tested was trained on:\n"
            + "\n".join(lines)
            + "\nCut all images anew with split.pool=true, or keep the parts as they are with "
            "split.group=null."
        )

    def facts(self, splits: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Number, sizes and the largest of the groups, as plain values."""
        sizes = Counter(self.keys[row] for rows in splits.values() for row in rows)
        part_of = {self.keys[row]: part for part, rows in splits.items() for row in rows}
        named = {key: size for key, size in sizes.most_common() if key in self.names}
        spread = sorted(named.values())
        return {
            "by": self.how,
            "groups": len(named),
            "in_no_group": sum(sizes.values()) - sum(spread),
            "joined": self.joined,
            "sizes": spread and [spread[0], spread[len(spread) // 2], spread[-1]],
            "by_part": dict(Counter(part_of[key] for key in named)),
            "largest": [
                {"name": self.names[key], "images": size, "part": part_of[key]}
                for key, size in list(named.items())[:20]
            ],
        }

    def note(self, splits: Mapping[str, Sequence[int]], wanted: Mapping[str, float]) -> str:
        """How many groups there are, of what size, and which are too large.

        wanted: the share of each part among all images of these parts, from 0 to 1.
        """
        found = self.facts(splits)
        spread = " of {0:,} to {2:,} images".format(*found["sizes"]) if found["sizes"] else ""
        text = f"split.group ({self.how}): {counted(found['groups'], 'group')}{spread}"
        if alone := found["in_no_group"]:
            text += f"; {counted(alone, 'image')} in no group"
        if self.joined:
            text += f"; {counted(self.joined, 'group')} joined to others by equal images"
        sizes = Counter(self.keys[row] for part in wanted for row in splits[part])
        part_of = {self.keys[row]: part for part in wanted for row in splits[part]}
        total, lines = sum(len(splits[part]) for part in wanted), []
        for key, size in sizes.most_common():
            part, share = part_of[key], size / total
            if key in self.names and share > min(wanted[part], 1 / 3):
                lines.append(
                    f"the group {self.names[key]!r} has {size:,} of {total:,} images ({share:.0%}) "
                    f"and is in {part}, which should have {wanted[part]:.0%}"
                )
        more = [f"and {len(lines) - _SHOWN:,} more large groups"] * (len(lines) > _SHOWN)
        return "\n".join([text, *lines[:_SHOWN], *more])


def in_words(how: Any) -> str:
    """The setting ``split.group`` on one line: "column patient"; "" for none."""
    if isinstance(how, dict):
        return " ".join(f"{kind} {value}" for kind, value in how.items())
    return how or ""


def group_names(kind: str, value: Any, dataset: Dataset) -> list[str]:
    """The name of each sample's group, "" for none: a ``column``, ``folder`` or ``regex`` gives it.

    Raises ValueError for a pattern that takes too long, DataError of ``dataset.column``.
    """
    if kind == "column":
        return [text.strip() for text in dataset.column(value)]  # type: ignore[attr-defined]
    if kind == "folder":
        return _folders(dataset, value)
    return _found(value, [name.rpartition("/")[2] for name in dataset.ids])


def groups_by_name(how: str, names: Sequence[str], digests: Sequence[str]) -> Groups:
    """The groups of ``names``. Those with equal contents are one, as ``digests`` ("": unknown) say.

    The name alone makes the key, so files that are added change no other group. Of joined groups
    the first name, in the order of its characters, makes it.
    """
    of_content: dict[str, str] = {}
    pairs = []
    for name, digest in zip(names, digests, strict=True):
        if name and digest and (other := of_content.setdefault(digest, name)) != name:
            pairs.append((name, other))
    first = _firsts(pairs)
    key_of = {name: key_by_name(first.get(name, name), "") for name in {*names} - {""}}
    keys = [
        key_of[name or of_content[digest]] if name or digest in of_content else digest
        for name, digest in zip(names, digests, strict=True)
    ]
    is_first = {name for name in key_of if first.get(name, name) == name}
    own_names = {key_of[name]: name for name in is_first}
    return Groups(how, keys, own_names, len(key_of) - len(is_first))


def groups_of_similar(
    ids: Sequence[str], digests: Sequence[str], pairs: Iterable[tuple[str, str]]
) -> Groups:
    """Groups of contents that ``pairs`` connect; the smallest digest of a group is its key."""
    first = _firsts(pairs)
    keys = [first.get(digest, digest) for digest in digests]
    count = Counter(keys)
    names = {key: name for key, name in zip(keys[::-1], ids[::-1], strict=True) if count[key] > 1}
    return Groups("duplicates", keys, names)


def key_by_name(name: str, digest: str) -> str:
    """The key of a sample, as far as the name of its own group, or else its content, tells it."""
    if not name:
        return digest
    return hashlib.sha256(f"group {name}".encode(errors="surrogateescape")).hexdigest()


def _firsts(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each text of ``pairs`` the smallest of those that pairs connect it with."""
    above: dict[str, str] = {}

    def top(text: str) -> str:
        while (higher := above.setdefault(text, text)) != text:
            above[text] = text = above[higher]  # halves the way for the next time
        return text

    for pair in pairs:
        low, high = sorted(map(top, pair))
        above[high] = low
    return {text: top(text) for text in above}


def _folders(dataset: Dataset, count: int) -> list[str]:
    """The first ``count`` folders of each id below those of its part and class; "" if it has fewer.

    Class folders are those with the name of the sample's class, up to the first.
    """
    names = []
    for name, label, part in zip(dataset.ids, dataset.labels, dataset.parts, strict=True):
        folders = name.split("/")[:-1]
        if folders and part and PARTS.get(folders[0].lower()) == part:
            del folders[0]
        class_name = dataset.classes[label] if isinstance(label, int) else None
        if class_name in folders:
            del folders[: folders.index(class_name) + 1]
        names.append("/".join(folders[:count]) if len(folders) >= count else "")
    return names


def _found(pattern: str, names: Sequence[str]) -> list[str]:
    """What the first group of ``pattern`` matches in each name, "" for nothing.

    Raises ValueError if that takes more than SECONDS, or does not work.
    """
    given = json.dumps([pattern, names])  # in ASCII
    command = [sys.executable, "-I", "-c", _SEARCH]
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"takes over {SECONDS} seconds for {counted(len(names), 'name')}: nested repeats such "
            "as (a+)+ try every way; write a simpler pattern"
        ) from None
    if done.returncode:
        raise ValueError(f"cannot be searched for: {done.stderr.strip().rpartition(chr(10))[2]}")
    return [str(text) for text in json.loads(done.stdout)]
