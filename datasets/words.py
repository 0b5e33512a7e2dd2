"""Counts in words: one image is, two images are."""

import re

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
