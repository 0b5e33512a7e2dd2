"""Formats text for pages: on one line, without markup, with few digits. Imports no torch."""

import re
from collections.abc import Sequence
from typing import Any

Bins = list[tuple[int, float, float]]  # (images, mean confidence, accuracy) of each interval


def plain(text: str) -> str:
    """Text on one line: white space becomes a blank, any other unprintable character U+FFFD."""
    if text.isprintable():  # pictures are data URIs of 100,000 characters
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def sentence(text: str) -> str:
    """A clause with a capital letter first and a full stop at its end."""
    return f"{text[:1].upper()}{text[1:]}."


def shown_number(value: float) -> str:
    """A number as text for a table."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 10 else f"{value:.4g}"


def shown(value: Any) -> Any:
    """A value for a table: ``1,234``, ``0.5000``, "" for None; others as they are."""
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else shown_number(value)
    return "" if value is None else value


def markdown(text: object) -> str:
    """Text on one line, escaped for Markdown, because names from files hold any character."""
    # An underscore between letters has no meaning, and model_a reads better than model\_a.
    return re.sub(r"[\\|<>&`*\[\]]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", plain(str(text)))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table without a last line break; numbers to the right, None as an empty cell."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    return markdown(shown(value) if value is None or isinstance(value, float) else value)
