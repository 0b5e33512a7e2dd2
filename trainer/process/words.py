"""Phrases for messages."""

import difflib
from collections.abc import Iterable
from typing import Any


def suggestion(word: Any, known: Iterable[Any]) -> str:
    """ "; did you mean 'x'?" with the nearest known word, with or without a family; else ""."""
    if not isinstance(word, str):
        return ""
    words = [name for name in known if isinstance(name, str)]
    nearby = {name.rpartition("/")[2].lower(): name for name in words}
    nearby |= {name.lower(): name for name in words}
    short = word[:100].lower()
    begun = {name for key, name in nearby.items() if key.startswith(short)}
    if len(begun) == 1 and len(short) > 2:  # n_warm is n_warmup_steps rather than name
        return f"; did you mean '{begun.pop()}'?"
    near = difflib.get_close_matches(short, nearby, n=1)
    return f"; did you mean '{nearby[near[0]]}'?" if near else ""


def listed(words: Iterable[object], joint: str = "and") -> str:
    """The words as a list in a sentence: "a, b and c"; "nothing" if there are none."""
    *most, last = [str(word) for word in words] or ["nothing"]
    return f"{', '.join(most)} {joint} {last}" if most else last


def shortened(text: str, length: int = 60) -> str:
    """The text on one line, shortened to ``length`` characters for a message."""
    text = text.replace("\r", "\\r").replace("\n", "\\n")
    return text if len(text) <= length else f"{text[: length - 3]}..."


def visible(text: str) -> str:
    """Return text with escapes in place of control characters, which a terminal would act on."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )
