"""Counts in words, as one image is, two images are; and labels in words."""

import re
from collections.abc import Sequence

_VERBS = {"are": "is", "have": "has", "hold": "holds", "repeat": "repeats"}


def counted(number: int, what: str) -> str:
    """The number and the noun: "1 file", "2,000 files"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def agreeing(number: int, words: str) -> str:
    """``words`` for several things, or for a single one: "broken link" for "broken links"."""
    if number != 1:
        return words
    words = re.sub(r"\b(image|link|folder|row|path|id)s\b", r"\1", words, count=1)
    return re.sub(rf"\b({'|'.join(_VERBS)})\b", lambda found: _VERBS[found[1]], words)


def label_names(label: int | Sequence[float], classes: Sequence[str]) -> list[str]:
    """The names of a label's classes, or "no label".

    label: the class number, or for each class a number, above 0.5 if the image has it.
    """
    if not isinstance(label, Sequence):
        return [classes[label]]
    names = [name for name, share in zip(classes, label, strict=True) if share > 0.5]
    return names or ["no label"]


def label_words(label: int | Sequence[float], classes: Sequence[str]) -> str:
    """``label_names`` as one text, such as "cat, dog"."""
    return ", ".join(label_names(label, classes))
